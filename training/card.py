"""The page of a trained checkpoint: what it began with, which settings and data made it, on what terms."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from transformers import TrainerState

from ross3d.data.annotations import find_annotations, load_annotations
from ross3d.report.card import (
    CARD_NAME,
    INGREDIENTS,
    INTRODUCTION,
    LIMITATIONS,
    USAGE,
    Ingredient,
    Origin,
    find_data,
    load_card,
    make_card,
    make_unknown,
    read_origin,
)
from ross3d.training.arguments import FREE_SETTINGS


# VAEs whose terms are known, by latent_channels, scaling_factor and shift_factor of their configuration.
TEACHERS = {(16, 0.3611, 0.1159): "teacher", (4, 0.4656, -0.892): "rooms_teacher"}


def make_run_card(settings: dict[str, Any], denoiser: Any, state: TrainerState) -> ModelCard:
    """The page of what a run ends with; it names no path of the machine that trained.

    Args:
        settings (`dict`): the run's `run.yaml`.
        denoiser (`Ross3DDenoiserConfig`, *optional*): of the model.
        state (`TrainerState`): at the end.
    """
    origin = find_origin(settings.get("init_from"))
    tasks = list_tasks(Path(settings["data"]["root"]), settings["data"]["split"])
    origin.datasets = list(dict.fromkeys([*origin.datasets, *tasks]))
    origin.add([INGREDIENTS["code"], *find_data(tasks), *find_vae(denoiser)])
    start = "from new weights" if settings.get("init_from") is None else f"from `{shorten(settings['init_from'])}`"
    questions = f"questions of {', '.join(tasks)}" if tasks else "views without questions"
    return make_card(
        f"{INTRODUCTION}, trained {start} on {questions}.",
        origin,
        {"Use": USAGE, "Training": describe_training(settings, state), "Limitations": LIMITATIONS},
    )


def find_origin(init_from: str | None) -> Origin:
    """What the checkpoint comes from that a run began with: told by its page, or by its Hub id."""
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
    """The VAE that taught reconstruction, known by the latents that the model was built for."""
    if denoiser is None:
        return []
    known = TEACHERS.get((denoiser.latent_channels, denoiser.scaling_factor, denoiser.shift_factor))
    unknown = Ingredient("VAE (`teacher/`)", "the run's teacher", "as its authors state")
    return [unknown if known is None else INGREDIENTS[known]]


def describe_training(settings: dict[str, Any], state: TrainerState) -> str:
    """Command, settings, and what the run came to."""
    reports = [record for record in state.log_history if "loss" in record]
    losses = {name: value for name, value in (reports[-1] if reports else {}).items() if name.endswith("loss")}
    # A run that went on has them in another order.
    last = ", ".join(f"{name} {losses[name]:.4f}" for name in sorted(losses))
    text = yaml.safe_dump(strip_settings(settings), sort_keys=False).rstrip()
    return (
        f"`accelerate launch train.py CONFIG.yaml` of ross3d with the settings below, {state.global_step} optimizer"
        f" steps{f'; last reported: {last}' if last else ''}.\n\n```yaml\n{text}\n```"
    )


def strip_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that were made and change what is trained, without folders of the machine."""
    kept = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            value = strip_settings(value, f"{prefix}{name}.")
        if f"{prefix}{name}" not in FREE_SETTINGS and value not in (None, {}):
            kept[name] = shorten(value) if isinstance(value, str) else value
    return kept


def shorten(text: str) -> str:
    """The last part of an absolute path; other text as it is."""
    return Path(text).name if Path(text).is_absolute() else text
