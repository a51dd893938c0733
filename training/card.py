"""The model card of a trained checkpoint: its starting point, settings, data and licences."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import TrainerState

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.annotations import find_annotations, load_annotations
from ross3d.data.sources import list_folders
from ross3d.data.text_files import read_json
from ross3d.report.card import (
    CARD_NAME,
    INGREDIENTS,
    INTRODUCTION,
    LIMITATIONS,
    PROJECT,
    USAGE,
    Ingredient,
    Origin,
    find_data,
    load_card,
    make_card,
    make_scans,
    make_unknown,
    read_origin,
)
from ross3d.training.arguments import FREE_SETTINGS


# VAEs whose terms are known, by latent_channels, scaling_factor and shift_factor of their configuration.
TEACHERS = {(16, 0.3611, 0.1159): "teacher", (4, 0.4656, -0.892): "rooms_teacher"}
# Geometry encoders whose terms are known, by `geometry_encoder` of a run's file.
ENCODERS = {"facebook/VGGT-1B": "vggt", "scenes/geometry_encoder": "rooms_encoder"}


def make_run_card(settings: dict[str, Any], config: Ross3DConfig, state: TrainerState) -> ModelCard:
    """The model card of a run's final model; it names no path of the machine that trained.

    Args:
        settings (`dict`): the run's `run.yaml`.
        config (`Ross3DConfig`): of the model.
        state (`TrainerState`): at the end.
    """
    origin = find_origin(settings.get("init_from"))
    tasks = list_tasks(Path(settings["data"]["root"]), settings["data"]["split"])
    origin.datasets = list(dict.fromkeys([*origin.datasets, *tasks]))
    origin.add([INGREDIENTS["code"], *find_data(tasks), *find_vae(config.denoiser_config)])
    if config.distillation_config is not None:
        origin.add([find_encoder(settings.get("geometry_encoder"))])
    start = "from new weights" if settings.get("init_from") is None else f"from `{shorten(settings['init_from'])}`"
    learned = f"questions of {', '.join(tasks)}" if tasks else "images without questions"
    if not tasks:
        origin.add([make_scans(shorten(settings["data"]["root"]))])
    if (share := settings["data"].get("labelled_share", 1.0)) < 1:
        learned += f" ({100 * share:g} % of the samples; the others give only images)"
    if (scans := settings["data"].get("unlabelled_root")) is not None:
        origin.add([make_scans(shorten(scans))])
        learned += f" and on scans without questions (`{shorten(scans)}`)"
    return make_card(
        f"{INTRODUCTION}, trained {start} on {learned}.",
        origin,
        {"Use": USAGE, "Training": describe_training(settings, state), "Limitations": LIMITATIONS},
    )


def find_origin(init_from: str | None) -> Origin:
    """The origin of the checkpoint that a run started from, read from its page or from its Hub id."""
    if init_from is None:
        return Origin()
    card = Path(init_from) / CARD_NAME
    if card.is_file():
        return read_origin(load_card(card))
    origin = Origin(base_model=None if Path(init_from).is_dir() else init_from)
    origin.add([make_unknown(shorten(init_from))])
    return origin


def list_tasks(root: Path, split: str) -> list[str]:
    """The tasks of a data folder's annotations."""
    file = find_annotations(root, split)
    return sorted({annotation.task for annotation in load_annotations(file)}) if file.is_file() else []


def find_vae(denoiser: Any) -> list[Ingredient]:
    """The VAE teacher of reconstruction, recognised by the latents that the model was built for."""
    if denoiser is None:
        return []
    known = TEACHERS.get((denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor))
    unknown = Ingredient("VAE (`teacher/`)", "the teacher of the run", "as stated by its authors")
    return [unknown if known is None else INGREDIENTS[known]]


def find_encoder(name: str | None) -> Ingredient:
    """The geometry encoder whose features a run learned, by its name in the run's file."""
    if name in ENCODERS:
        return INGREDIENTS[ENCODERS[name]]
    source = "the encoder of the run" if name is None else shorten(name)
    return Ingredient("features of a geometry encoder", source, "as stated by its authors", "targets of training")


def describe_training(settings: dict[str, Any], state: TrainerState) -> str:
    """The command, the settings and the final losses of a run."""
    reports = [record for record in state.log_history if "loss" in record]
    losses = {name: value for name, value in (reports[-1] if reports else {}).items() if name.endswith("loss")}
    # A resumed run has them in another order.
    last = ", ".join(f"{name} {losses[name]:.4f}" for name in sorted(losses))
    text = yaml.safe_dump(strip_settings(settings), sort_keys=False).rstrip()
    processes = settings.get("num_processes") or 1
    commit = "" if get_commit() is None else f" (commit {get_commit()} at the end)"
    many = f"--num_processes {processes} " if processes > 1 else ""
    return (
        f"`accelerate launch {many}train.py CONFIG.yaml` of {PROJECT}{commit} with the settings below,"
        f" {describe_data(settings['data'])}, {state.global_step} optimizer"
        f" steps{f'; last reported: {last}' if last else ''}.\n\n```yaml\n{text}\n```"
    )


def describe_data(data: dict[str, Any]) -> str:
    """The numbers of scenes and questions in a run's data folder; for synthetic rooms, how to make them again."""
    root = Path(data["root"])
    scenes = len(list_folders(root / data["split"]))
    file = find_annotations(root, data["split"])
    told = f"{scenes} scenes with {len(load_annotations(file)) if file.is_file() else 0} questions"
    manifest = root / "manifest.json"
    if not manifest.is_file():
        return told
    made = read_json(manifest, "the record of how the scenes were built", keys=["arguments"])["arguments"]
    words = {"--train": made["num_train"], "--val": made["num_val"], "--views": made["num_views"]}
    words |= {"--bev-size": made["bev_size"], "--seed": made["seed"]}
    words["--image-size"] = "x".join(map(str, made["image_size"]))
    # Folders of earlier code do not say it.
    words["--questions"] = made.get("question_set", "standard")
    words["--splits"] = data["split"]
    return f"{told} (`python -m ross3d.scenes.build {' '.join(f'{k} {v}' for k, v in words.items())} --output DIR`)"


def strip_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that were given and affect training, without folders of the machine."""
    kept = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = strip_settings(value, f"{prefix}{name}.")
        if f"{prefix}{name}" not in FREE_SETTINGS and value not in (None, {}):
            kept[name] = shorten(value) if isinstance(value, str) else value
    return kept


def shorten(text: str) -> str:
    """The last part of a path that is absolute or leads upwards; other text unchanged."""
    path = Path(text)
    return path.name if path.is_absolute() or ".." in path.parts else text


def get_commit() -> str | None:
    """The commit of this checkout, with "+changes" when files differ from it; None outside of git."""
    root = Path(__file__).resolve().parents[1]
    try:
        commit, status = (
            subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + "+changes" if status else commit
