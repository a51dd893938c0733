"""Detect damaged checkpoint files by sizes, formats, checksums and numbers.

A file of torch.save is a zip archive with its own checksums. `checksums.json` lists those of the other files; without
it, a flipped bit that leaves a weight finite would not be detected. Checkpoints of earlier code have no such list.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from ross3d.command_line import check_value
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.tensor_cache import hash_file
from ross3d.data.text_files import AGAIN, check_file, read_json
from ross3d.training.loading import is_finite, show_names


# Written last into a folder of a run, with the sizes of its files; a folder without it is incomplete.
COMPLETE_MARK = "complete.json"
# In the same folder: file -> sha256, for the files whose format has no checksums.
CHECKSUMS, ARCHIVES = "checksums.json", (".pt", ".pth", ".bin")
DAMAGED = "remove the file, and the folder counts as unfinished"
STATE = "trainer_state.json"
# Files of the Trainer with only plain tensors and numbers; others, such as DeepSpeed's, may hold more.
PLAIN_FILES = re.compile(r"optimizer\.pt|scheduler\.pt|rng_state(_\d+)?\.pth")

# The folder attribute of an entry in a zip archive's table.
MSDOS_FOLDER = 0x10


def read_mark(folder: Path, remedy: str = DAMAGED) -> dict[str, int]:
    """Sizes of the files of a finished folder, by their paths in it; errors end with `remedy`.

    Raises:
        FileNotFoundError, ValueError: for a missing or broken mark; names the file.
    """
    mark, meaning = folder / COMPLETE_MARK, "the file sizes of a finished folder"
    sizes = read_json(mark, meaning, kind=dict, remedy=remedy)
    for name in sizes:
        resolve_inside(folder, name, where=str(mark), allow_outside=None, check_links=False)
    wrong = [name for name, size in sizes.items() if not isinstance(size, int) or isinstance(size, bool)]
    if wrong or not sizes:
        raise ValueError(
            f"{mark}: expected the file sizes of a finished folder, got"
            f" {sizes[wrong[0]] if wrong else 'none'!s}{f' for {wrong[0]}' if wrong else ''}; {remedy}."
        )
    return sizes


def find_changed_file(folder: Path, remedy: str = DAMAGED) -> tuple[Path, int, str] | None:
    """The first file of a finished folder that is missing, or has another size than the mark says; None without any.

    Returns:
        the file, its expected size in bytes, and what was found.

    Raises:
        FileNotFoundError, ValueError: as `read_mark`.
    """
    for name, size in read_mark(folder, remedy).items():
        file = folder / name
        found = f"{file.stat().st_size}" if file.is_file() else "no such file"
        if found != f"{size}":
            return file, size, found
    return None


def check_checkpoint_files(folder: Path, step: int) -> None:
    """Refuse a checkpoint of the Trainer with damaged files.

    Args:
        step (`int`): the step after which it was written.

    Raises:
        ValueError: names the file and what is wrong with it.
    """
    changed = find_changed_file(folder, AGAIN)
    if changed is not None:
        file, size, found = changed
        if file.is_file():
            check_file(file, "a file of a checkpoint")
        raise ValueError(f"{file}: expected a file of {size} bytes, got {found}; copy it again.")
    for name in read_mark(folder):
        # A file without read permission is not damaged: that is an OSError.
        (folder / name).open("rb").close()
        look = CHECKS.get(Path(name).suffix)
        if look is not None:
            look(folder / name)
    check_state(folder / STATE, step)
    check_sums(folder)


def sum_files(folder: Path) -> dict[str, str]:
    """sha256 of the files below a folder, by their paths in it, if their format has no checksums."""
    own = (COMPLETE_MARK, CHECKSUMS)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.suffix not in ARCHIVES]
    return {str(file.relative_to(folder)): hash_file(file) for file in files if file.name not in own}


def check_sums(folder: Path) -> None:
    """Refuse files whose bytes have changed since they were written, if there is a list of checksums.

    Raises:
        ValueError: names the first.
    """
    listed = folder / CHECKSUMS
    if not listed.is_file():
        return
    for name, wanted in read_json(listed, "checksums of a checkpoint's files", kind=dict).items():
        file = resolve_inside(folder, name, where=str(listed), allow_outside=None, check_links=False)
        if not file.is_file() or hash_file(file) != wanted:
            raise ValueError(
                f"{file}: expected the checksum in {CHECKSUMS}, got a different one: the file has changed; restore it"
                " from a copy."
            )


def check_state(file: Path, step: int) -> None:
    """Refuse a state of the Trainer that it could not resume from after this step.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    meaning = f"the Trainer's state after step {step}"
    state = read_json(file, meaning, keys=["global_step", "log_history"])
    unknown = sorted(state.keys() - {field.name for field in fields(TrainerState)})
    if unknown or state["global_step"] != step:
        problem = f"the unknown {unknown[0]!r}" if unknown else f"global_step {state['global_step']!r}"
        raise ValueError(f"{file}: expected the Trainer's state after step {step}, got {problem}.")
    hints = get_type_hints(TrainerState)
    for name, value in state.items():
        check_value(f"{file}: {name}", value, hints[name])
    log = state["log_history"]
    if not isinstance(log, list) or not all(isinstance(record, dict) for record in log):
        raise ValueError(f"{file}: expected log_history as a list of records, got {str(log)[:80]}.")


def check_json(file: Path) -> None:
    read_json(file, "the saved object")


def check_weights(file: Path) -> None:
    """Refuse a safetensors file that is broken, or holds whole numbers or numbers that are not finite.

    Raises:
        ValueError: names the file.
    """
    broken = []
    try:
        with safe_open(file, "pt") as stored:
            for name in list(stored.keys()):
                tensor = stored.get_tensor(name)
                if not tensor.is_floating_point() or not is_finite(tensor):
                    broken.append(name)
    # The library raises many kinds of errors for a broken header.
    except Exception as error:
        raise ValueError(
            f"{file}: expected weights in the safetensors format, got a damaged file ({describe(error)})."
        ) from error
    if broken:
        raise ValueError(
            f"{file}: expected finite floating-point weights, got others in {show_names(sorted(broken))}."
        )


def check_archive(file: Path) -> None:
    """Refuse a file of torch.save (a zip archive) whose records do not match its checksums.

    Raises:
        ValueError: names the file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            # For an entry marked as a folder, torch would read nothing and return uninitialised memory.
            folders = [info.filename for info in archive.infolist() if info.external_attr & MSDOS_FOLDER]
            record = archive.testzip() or next(iter(folders), None)
        problem = None if record is None else f"changed bytes in {record}"
        if problem is None and PLAIN_FILES.fullmatch(file.name):
            # Checks the archive's own tables, which have no checksums.
            with safe_globals():
                torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    # The two libraries raise many kinds of errors for broken tables.
    except Exception as error:
        problem = f"a damaged file ({describe(error)})"
    if problem is not None:
        raise ValueError(f"{file}: expected a file written by torch.save, got {problem}.")


def describe(error: Exception) -> str:
    """The first line of a library's error, some of which go on for a page."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


# Suffix -> check of the content of such a file.
CHECKS: dict[str, Callable[[Path], None]] = {
    ".json": check_json,
    ".safetensors": check_weights,
    ".pt": check_archive,
    ".pth": check_archive,
    ".bin": check_archive,
}


def check_weight_names(folder: Path, model: nn.Module) -> None:
    """Refuse a checkpoint whose weights are not exactly the model's: the Trainer would leave the others unchanged.

    Raises:
        ValueError: names folder and weights.
    """
    is_lora = isinstance(model, PeftModel)
    files = sorted(folder.glob("adapter_model*.safetensors" if is_lora else "model*.safetensors"))
    if not files:
        return  # FSDP writes other files.
    wanted = set(get_peft_model_state_dict(model) if is_lora else model.state_dict())
    found = set()
    for file in files:
        with safe_open(file, "pt") as stored:
            found.update(stored.keys())
    # The files hold tied weights, which are one tensor under two names, only once.
    shared = set() if is_lora else set(model.all_tied_weights_keys)
    wrong = sorted((wanted - found - shared) | (found - wanted))
    if wrong:
        raise ValueError(
            f"{files[0]}: expected the weights of this run's model and no others, got missing or unknown names:"
            f" {show_names(wrong)}; the file is damaged. Remove {folder.name}, and the run resumes from the"
            " checkpoint before it, or starts over."
        )


__all__ = [
    "CHECKSUMS",
    "COMPLETE_MARK",
    "check_checkpoint_files",
    "check_weight_names",
    "find_changed_file",
    "sum_files",
]
