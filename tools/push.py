"""Upload a checkpoint to the Hub: weights, processor, code, VAE teacher, and a page with its scores, in one commit.

    python tools/push.py DIR --to USER/NAME [--run EVAL_OUTPUT ...] [--without-teacher] [--private] [--dry-run FOLDER]

DIR is an output folder of train.py or tools/convert.py. The page is DIR's README.md, so your own text there is
included; scores of `--run` (an output folder of eval.py for DIR) and how to load the model by its Hub id are added. An
interrupted push leaves the repository unchanged, and the next one uploads only what is missing. Files of a checkpoint
that was pushed earlier are removed in the same commit; other files of the repository stay.
"""

import argparse
import fnmatch
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from httpx2 import TransportError
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers.dynamic_module_utils import get_relative_imports

from ross3d.command_line import DEBUG_HELP, parse_path, run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.atomic import check_output_folder, write_text
from ross3d.data.names import check_links
from ross3d.data.text_files import describe_kind
from ross3d.data.text_files import read_json as read_any_json
from ross3d.eval import get_fingerprint
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.report.card import (
    CARD_NAME,
    INTRODUCTION,
    LIMITATIONS,
    USAGE,
    Origin,
    format_results,
    get_section,
    list_results,
    load_card,
    make_card,
    make_unknown,
    set_section,
)
from ross3d.tools.checkpoints.files import check_new_folder, describe_files, list_tensors, read_json, replace_folder
from ross3d.tools.checkpoints.plan import check_own_layers
from ross3d.training.callbacks import COMPLETE_MARK, is_complete


# The files of a checkpoint that are uploaded, besides its page. Optimizer states, logs and settings are not.
PATTERNS = (
    "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer*.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "*.jinja", "*_ross3d.py",
    "calibration.json", "conversion.json", "model*.safetensors", "model.safetensors.index.json", "published/*",
    "teacher/*",
)  # fmt: skip
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
CODE_NAMED_IN = ("config.json", "processor_config.json")
NEEDED = (*CODE_NAMED_IN, "tokenizer.json")
# The licence of the uploaded code; a different one that is already in the folder stays.
LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"
# The settings of an evaluation that identify the model it scored, and those that the page shows.
READ_SETTINGS = (
    "model", "model_sha256", "tasks", "limit", "num_views", "blind", "spatial_instruction", "seed",
)  # fmt: skip
TEACHER_NOTE = "; not in this repository"


def is_ours(name: str) -> bool:
    """Whether a file of a repository is part of a checkpoint; folders match by their whole path."""
    return any(fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in PATTERNS)


def list_files(folder: Path, with_teacher: bool) -> dict[str, Path]:
    """The files of a checkpoint, by their names in the repository, after checking it.

    Raises:
        FileNotFoundError, ValueError: as `check_checkpoint`.
    """
    check_checkpoint(folder)
    names = {path.relative_to(folder).as_posix(): path for path in list_paths(folder) if path.is_file()}
    kept = {name: path for name, path in names.items() if is_ours(name)}
    return {name: path for name, path in kept.items() if with_teacher or not name.startswith("teacher/")}


def list_paths(folder: Path) -> list[Path]:
    """Everything in a folder, recursively."""
    return sorted([*folder.glob("*"), *folder.glob("*/*")])


def belongs(path: Path, folder: Path) -> bool:
    """Whether a path is part of the checkpoint in a folder: one of its files, its page, or a folder of such files."""
    name = path.relative_to(folder).as_posix()
    return is_ours(name) or name == CARD_NAME or any(pattern.startswith(f"{name}/") for pattern in PATTERNS)


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder from which no model can be loaded.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for another model, a run that is not finished, weights that the model does not have or lacks, and
            links that lead out of the folder.
    """
    if (folder / "run.yaml").is_file() and not is_complete(folder):
        raise ValueError(
            f"{folder}: expected a finished run, got one without a whole {COMPLETE_MARK}; start train.py again with"
            " the same settings to finish it."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: expected a checkpoint's folder, found no config.json; give another (for LoRA the folder of"
            " the run, which contains the merged model)."
        )
    # The target of a link would be uploaded, and could be any file of this machine.
    check_links([path for path in list_paths(folder) if belongs(path, folder)], folder)
    settings = read_json(folder / "config.json")
    if settings.get("model_type") != "ross3d":
        raise ValueError(
            f"{folder}: expected a checkpoint of ross3d, got model_type {settings.get('model_type')!r}; convert it"
            " with tools/convert.py (docs/CHECKPOINTS.md)."
        )
    missing = [name for name in (*NEEDED, *list_code(folder)) if not (folder / name).is_file()]
    missing += [f"auto_map in {name}" for name in CODE_NAMED_IN if not read_auto_map(folder / name)]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected processor, tokenizer, and the code files named by auto_map in config.json and"
            f" processor_config.json, found no {', '.join(missing)}; save model and processor again with"
            " save_pretrained."
        )
    check_weights(folder)


def read_auto_map(file: Path) -> dict[str, str]:
    """The `auto_map` of a file: Auto class -> file and class; empty if the file is missing."""
    return read_json(file).get("auto_map", {}) if file.is_file() else {}


def list_code(folder: Path) -> list[str]:
    """Names of the code files that the library needs to build model and processor, whether they exist or not."""
    classes = [cls for name in CODE_NAMED_IN for cls in read_auto_map(folder / name).values()]
    named, found = {f"{cls.split('.')[0]}.py" for cls in classes}, set()
    while named - found:
        name = min(named - found)
        found.add(name)
        if (folder / name).is_file():
            named |= {f"{module}.py" for module in get_relative_imports(folder / name)}
    return sorted(found)


def check_weights(folder: Path) -> None:
    """Refuse weights that do not match the config's model: the library would initialise missing ones at random."""
    named = [name for name in WEIGHTS if (folder / name).is_file()]
    if len(named) != 1:
        raise FileNotFoundError(
            f"{folder}: expected either {' or '.join(WEIGHTS)}, found {' and '.join(named) or 'neither'}; save the"
            " model again into an empty folder."
        )
    found = list_tensors(folder)
    check_own_layers(read_json(folder / "config.json"), found, folder / "config.json")
    with torch.device("meta"):
        model = Ross3DForConditionalGeneration(Ross3DConfig.from_pretrained(folder))
    tied = set(model.all_tied_weights_keys)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    lost = sorted(wanted.keys() - found.keys() - tied)
    others = sorted(name for name, tensor in found.items() if wanted.get(name) != tensor.shape)
    if lost or others:
        raise ValueError(
            f"{folder}: expected the weights of its config.json, got {len(lost)} that are missing and {len(others)}"
            f" that are unknown or of another size: {(lost + others)[:3]}; save model and config together."
        )


def read_metrics(outputs: Sequence[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """The `metrics.json` of each task, from evaluations of `folder`.

    Raises:
        FileNotFoundError: for an output folder without metrics.json.
        ValueError: for scores of another model, and a task that is in two output folders.
    """
    fingerprint = get_fingerprint(str(folder)) if outputs else None
    found: dict[str, dict[str, Any]] = {}
    for output in outputs:
        file = output / "metrics.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"--run: expected the output of eval.py, found no {file}; give its --output folder."
            )
        metrics = read_whole_metrics(file)
        if metrics["settings"]["model_sha256"] != fingerprint:
            raise ValueError(
                f"--run: expected scores of {folder}, got scores of another checkpoint"
                f" ({metrics['settings']['model']}, model_sha256 {metrics['settings']['model_sha256']}, not"
                f" {fingerprint}) in {file}; run eval.py with --model {folder}."
            )
        asked = {task for task, scores in metrics["scores"].items() if scores}
        if twice := sorted(asked & found.keys()):
            raise ValueError(
                f"--run: expected each task in one output only, got {twice} again in {file}; leave one out."
            )
        found |= dict.fromkeys(asked, metrics)
    return found


def read_whole_metrics(file: Path) -> dict[str, Any]:
    """Read a metrics.json, which has to have everything that this file and the page read.

    Raises:
        ValueError: names the file and what it lacks.
    """
    meaning = "the metrics of an evaluation"
    metrics = read_any_json(
        file, meaning, keys=["scores", "intervals", "settings", "baselines", "commit"], remedy="evaluate again"
    )
    for name in ("scores", "intervals", "settings"):
        if not isinstance(metrics[name], dict):
            raise ValueError(
                f"{file}: expected {meaning} with an object as {name}, got {describe_kind(metrics[name])}; evaluate"
                " again."
            )
    scores, settings = metrics["scores"], metrics["settings"]
    missing = [name for name in READ_SETTINGS if name not in settings]
    known = settings.get("tasks") if isinstance(settings.get("tasks"), dict) else {}
    missing += [f"tasks.{task}" for task in scores if not isinstance(known.get(task), dict)]
    if missing or not all(isinstance(of_task, dict) for of_task in scores.values()):
        raise ValueError(
            f"{file}: expected {meaning} with the scores of each task and their settings, got none of"
            f" {missing or sorted(scores)}; evaluate again."
        )
    return metrics


def keep_task(metrics: Mapping[str, Any], task: str) -> dict[str, Any]:
    """A metrics.json with one task alone."""
    return {**metrics, "scores": {task: metrics["scores"][task]}}


def make_page(folder: Path, repo_id: str, runs: Mapping[str, Any], with_teacher: bool) -> ModelCard:
    """The folder's page, or a new one if there is none, with scores and its Hub id."""
    if (folder / CARD_NAME).is_file():
        card = load_card(folder / CARD_NAME)
    else:
        origin = Origin()
        origin.add([make_unknown(folder.resolve().name)])
        card = make_card(f"{INTRODUCTION}.", origin, {"Use": USAGE, "Limitations": LIMITATIONS})
    card.text = re.sub(r'^path = ".*"$', f'path = "{repo_id}"', card.text, flags=re.MULTILINE)
    if runs:
        each = [keep_task(metrics, task) for task, metrics in sorted(runs.items())]
        card.data.model_name = repo_id.split("/")[1]
        card.data.eval_results = [result for metrics in each for result in list_results(metrics)]
        card.text = set_section(
            card.text, "Results", "\n\n".join(format_results(metrics) for metrics in each), before="Limitations"
        )
    if not with_teacher:
        lines = get_section(card.text, "Licences").splitlines()
        lines = [f"{line}{TEACHER_NOTE}" if "`teacher/`" in line else line for line in lines]
        card.text = set_section(card.text, "Licences", "\n".join(lines))
    return card


def check_repo_id(repo_id: str) -> str:
    if repo_id.count("/") != 1:
        raise argparse.ArgumentTypeError(f"expected USER/NAME, got {repo_id!r}; write the owner before the only slash")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return repo_id


def push(files: Mapping[str, Path | bytes], repo_id: str, private: bool) -> str:
    """Create the repository if needed, and one commit after which it holds `files`; returns the commit's address.

    Raises:
        ValueError: without a token with write access, and for a repository that holds another model.
        OSError: when the Hub cannot be reached or refuses a file.
    """
    if get_token() is None:
        raise ValueError(
            "HF_TOKEN: expected a token with write access to the Hub, found none; run `hf auth login`, or set"
            " HF_TOKEN."
        )
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        info = api.model_info(repo_id)
        there = {sibling.rfilename for sibling in info.siblings or []}
        if LICENSE.name in there:
            files = {name: file for name, file in files.items() if name != LICENSE.name}
        check_same_kind(api, repo_id, info.sha, there)
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, file) for name, file in files.items()]
            + [CommitOperationDelete(name) for name in sorted(there - files.keys()) if is_ours(name)],
            commit_message="Checkpoint of ross3d",
            parent_commit=info.sha,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ValueError(
                f"--to: expected a token with write access to {repo_id}, got {status} from the Hub; create a token"
                " with the role `write` for that user or organisation, or correct the name."
            ) from error
        if status == 412:
            raise ValueError(
                f"--to: expected no other change to {repo_id} during the push, but it changed; push again."
            ) from error
        raise
    # Errors of the client for a broken connection, and those it wraps around any error of an upload.
    except (TransportError, RuntimeError, ConnectionError) as error:
        raise OSError(
            f"--to: expected to upload all files to {repo_id}, got {error} ({error.__cause__}); nothing was changed"
            " there: push again, and only the missing files are uploaded."
        ) from error
    return commit.commit_url


def check_same_kind(api: HfApi, repo_id: str, revision: str, there: set[str]) -> None:
    """Refuse to overwrite another kind of model.

    Raises:
        ValueError: when the repository holds one.
    """
    if "config.json" not in there:
        return
    kind = read_json(Path(api.hf_hub_download(repo_id, "config.json", revision=revision))).get("model_type")
    if kind != "ross3d":
        raise ValueError(
            f"--to: expected a new repository or one with a ross3d model, but {repo_id} has model_type {kind!r};"
            " choose another name, or delete its files on the Hub first."
        )


def write_folder(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Write the files that would be pushed to a folder, which appears when it is complete."""
    paths = [file for file in files.values() if isinstance(file, Path)]
    num_bytes = sum(path.stat().st_size for path in paths)
    with replace_folder(folder, {"files": describe_files(paths)}, num_bytes) as partial:
        for name, file in files.items():
            (partial / name).parent.mkdir(exist_ok=True)
            if isinstance(file, Path):
                shutil.copyfile(file, partial / name)
            else:
                write_text(partial / name, file.decode())


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=parse_path, help="folder that train.py or tools/convert.py wrote")
    parser.add_argument("--to", type=check_repo_id, required=True, metavar="USER/NAME", help="repository on the Hub")
    parser.add_argument(
        "--run",
        type=parse_path,
        action="append",
        default=[],
        help="output folder of eval.py for this model; can be repeated",
    )
    parser.add_argument("--without-teacher", action="store_true", help="leave out the VAE, which answers do not need")
    parser.add_argument(
        "--private", action="store_true", help="create the repository as private, if it does not exist"
    )
    parser.add_argument(
        "--dry-run", type=parse_path, metavar="FOLDER", help="write the files to this folder instead of uploading them"
    )
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> str:
    """Check, complete the page, push; returns the commit's address, or the folder of a dry run."""
    options = parse_arguments(args)
    if options.dry_run is not None:
        check_new_folder(options.dry_run)
        check_output_folder(options.dry_run.absolute().parent, "--dry-run")
    files: dict[str, Path | bytes] = dict(list_files(options.checkpoint, not options.without_teacher))
    has_teacher = any(name.startswith("teacher/") for name in files)
    runs = read_metrics(options.run, options.checkpoint)
    card = make_page(options.checkpoint, options.to, runs, has_teacher)
    files[CARD_NAME] = str(card).encode()
    files.setdefault(LICENSE.name, LICENSE)
    for name, file in files.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        print(f"{size / 1e6:12.3f} MB  {name}")
    for line in get_section(card.text, "Licences").splitlines():
        print(f"licence of {line.removeprefix('- ')}")
    if has_teacher:
        print("if the licence of the VAE does not suit you, leave it out with --without-teacher")
    if options.dry_run is not None:
        write_folder(files, options.dry_run)
        return print_place(str(options.dry_run))
    return print_place(push(files, options.to, options.private))


def print_place(place: str) -> str:
    print(place)
    return place


if __name__ == "__main__":
    run_program(main)
