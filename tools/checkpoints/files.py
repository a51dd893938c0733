"""Checkpoints on disk, tensor by tensor: find tensors in files, and write shards while their tensors are read.

No function holds more in memory than one shard of the output and, for `.bin` files, the shard that is being read.
"""

import fcntl
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from ross3d.data.atomic import replace_file, tell_full_disk, write_text
from ross3d.data.names import check_links, check_name
from ross3d.data.text_files import check_file
from ross3d.data.text_files import read_json as read_any_json
from ross3d.training.checkpoint import CHECKPOINT_FILES, is_hub_id


# File names of weights in a checkpoint folder, the preferred first: an index of shards, or one file.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
)
# Configurations, tokenizer and templates.
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
PLAN_FILE, LOCK_FILE = "plan.json", "lock"


class Readable(Protocol):
    """A tensor of known shape and type that is computed or read when it is needed."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, by its `name` there."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> torch.Tensor:
        if self.file.suffix != ".safetensors":
            return load_pickle(self.file)[self.name]
        # Opened again each time: the pages of a mapped file count as memory until it is closed.
        with safe_open(self.file, "pt") as opened:
            return opened.get_tensor(self.name)


@dataclass(frozen=True)
class MadeTensor:
    """A tensor that is computed when it is needed.

    Attributes:
        note (`str`): how it is computed, for the report.
        source (`str`, *optional*): the key in a file that it is computed from; None when it is new.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]
    note: str = ""
    source: str | None = None

    def read(self) -> torch.Tensor:
        tensor = self.make().to(self.dtype)
        if tuple(tensor.shape) != self.shape:
            raise ValueError(f"MadeTensor: expected to make {self.shape}, made {tuple(tensor.shape)}.")
        return tensor


def load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """Tensors of a `.bin` file, memory-mapped if its format allows it; no code in the file is run.

    Raises:
        ValueError: when it is broken, or holds anything but named tensors.
    """
    stat = file.stat()
    return load_unchanged_pickle(file, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1)
def load_unchanged_pickle(file: Path, size: int, changed: int) -> dict[str, torch.Tensor]:
    """Load a `.bin` file, with the last one cached; `size` and `changed` (modification time) are parts of the key."""
    expected = f"{file}: expected a dictionary of tensors as torch.save writes it"
    try:
        try:
            state_dict = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except RuntimeError as error:
            # Files of torch before 1.6 cannot be memory-mapped.
            if "mmap can only be used" not in str(error):
                raise
            state_dict = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{expected}, got other objects, which could run code; save only its state_dict.") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{expected}, got a damaged file; download it again. ({error})") from error
    if not isinstance(state_dict, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state_dict.values()):
        found = sorted(state_dict)[:3] if isinstance(state_dict, dict) else type(state_dict).__name__
        raise ValueError(f"{expected}, got {found}; save only the inner state_dict.")
    return state_dict


def list_file(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one weight file by name; none is read.

    Raises:
        ValueError: when the file is broken.
    """
    check_file(file, "weights")
    if file.suffix != ".safetensors":
        found = load_pickle(file)
        return {name: StoredTensor(file, name, tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    try:
        with safe_open(file, "pt") as opened:
            # A memory-mapped tensor takes no memory until it is read.
            found = {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise ValueError(
            f"{file}: expected a safetensors file, got a damaged or truncated one; download it again. ({error})"
        ) from error
    return {name: StoredTensor(file, name, tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}


def list_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder, or of one weight file, by name; none is read.

    Raises:
        FileNotFoundError: when there are no weights, or a shard of the index is missing.
        ValueError: when a file is broken, or index and shards disagree.
    """
    if path.is_file():
        return list_file(path)
    found = next((path / name for name in WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path}: expected weights, one of {', '.join(WEIGHT_FILES)}, found none of them.")
    if found.suffix != ".json":
        return list_file(found)
    where = read_json(found).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{found}: expected a weight_map with the shard of every tensor, got {where!r}.")
    for name in where.values():
        check_name(name, f"{found}, weight_map")
    missing = sorted({name for name in where.values() if not (path / name).is_file()})
    if missing:
        raise FileNotFoundError(f"{found}: expected the shards in its list, but {missing} are missing; download them.")
    files = {name: list_file(path / name) for name in dict.fromkeys(where.values())}
    lost = [name for name, file in where.items() if name not in files[file]]
    unnamed = sorted({name for tensors in files.values() for name in tensors} - where.keys())
    if lost or unnamed:
        raise ValueError(
            f"{found}: expected the tensors of its shards and no others, got {len(lost)} that are in no shard and"
            f" {len(unnamed)} that are not in its list: {(lost + unnamed)[:3]}; download index and shards again."
        )
    return {name: files[file][name] for name, file in where.items()}


def read_json(path: Path) -> dict:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it does not hold a JSON object.
    """
    return read_any_json(path, "a JSON object of a checkpoint", kind=dict, remedy="download it again")


def find_folder(name: str | os.PathLike, patterns: Sequence[str]) -> Path:
    """A folder or file on disk, or the local copy of a Hub repository's files that fit `patterns`.

    Args:
        name: a path, or a Hub id such as `user/model`.
        patterns: names of the files that are needed; a Hub repository may hold much more.

    Raises:
        FileNotFoundError: when `name` is neither.
    """
    return Path(name) if Path(name).exists() else fetch_folder(name, patterns)


def fetch_folder(name: str | os.PathLike, patterns: Sequence[str]) -> Path:
    """The local copy of a Hub repository's files that fit `patterns`.

    Raises:
        FileNotFoundError: when it cannot be downloaded. A path is never looked up on the Hub.
    """
    if not is_hub_id(str(name)):
        raise FileNotFoundError(
            f"{name}: expected an existing folder or a Hub id such as user/model, found no such folder; correct the"
            " path."
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(
            f"{name}: expected an existing folder or a reachable Hub id such as user/model, found neither."
            f" ({str(error).splitlines()[0]})"
        ) from error


def find_checkpoint(name: str | os.PathLike) -> Path:
    """A checkpoint's folder; `.bin` files are downloaded from the Hub only if there are no safetensors.

    Raises:
        FileNotFoundError: as `find_folder`.
        ValueError: for links that lead out of the folder: their targets would be copied as parts of it.
    """
    folder = find_folder(name, (*SMALL_FILES, "*.safetensors"))
    if not Path(name).exists() and not any(folder.glob("*.safetensors")):
        folder = find_folder(name, (*SMALL_FILES, "*.bin"))
    patterns = (*CHECKPOINT_FILES, *SMALL_FILES, "*.bin", "README.md")
    check_links([file for pattern in patterns for file in folder.glob(pattern)], folder)
    return folder


def count_bytes(tensors: Iterable[Readable]) -> int:
    return sum(tensor.dtype.itemsize * torch.Size(tensor.shape).numel() for tensor in tensors)


def read_separately(tensors: Mapping[str, Readable]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory, as safetensors requires."""
    state_dict: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, source in tensors.items():
        tensor = source.read().detach()
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        state_dict[name] = tensor
    return state_dict


def write_shards(
    tensors: Mapping[str, Readable], folder: Path, stem: str, max_shard_size: str | int, progress: tqdm
) -> None:
    """Write `stem.safetensors`, or numbered shards with their index, reading each tensor when its shard is due.

    An existing shard is not written again: the folder comes from `replace_folder`, whose shards are complete.

    Args:
        tensors: name -> tensor to write, in the order of writing.
        folder (`Path`): created if it does not exist.
        max_shard_size: such as `"2GB"`; a larger tensor gets its own shard.
        progress (`tqdm`): counts bytes.
    """
    shapes = {name: torch.empty(t.shape, dtype=t.dtype, device="meta") for name, t in tensors.items()}
    split = split_torch_state_dict_into_shards(
        shapes, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        if not (folder / file).exists():
            with replace_file(folder / file) as partial:
                save_file(read_separately({name: tensors[name] for name in names}), partial, {"format": "pt"})
        progress.update(count_bytes(tensors[name] for name in names))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))}
        write_text(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def describe_files(paths: Iterable[Path]) -> list[list]:
    """Name, size and modification time of files, and of those in folders, to recognise the same source again."""
    found = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))}
    kept = sorted(f for f in found if f.is_file() and not any(part.endswith(".partial") for part in f.parts))
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in kept]


def copy_files(names: Iterable[str], source: Path, target: Path) -> list[str]:
    """Copy those of a checkpoint's files that exist; returns their names.

    Raises:
        ValueError: for a link that leads out of the checkpoint.
    """
    found = [name for name in names if (source / name).is_file()]
    check_links([source / name for name in found], source)
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def check_new_folder(path: Path) -> None:
    """Refuse an output folder that is not empty.

    Raises:
        FileExistsError: when it is not.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: expected a new folder, found an existing one; choose another.")


@contextmanager
def replace_folder(path: Path, plan: dict, num_bytes: int) -> Iterator[Path]:
    """A temporary folder next to `path` to write to, renamed to `path` when the block ends without an error.

    After a kill `path` does not exist; what was written stays in `.NAME.partial` and is reused by the next call with
    the same `plan`. A call with another plan starts again.

    Args:
        path (`Path`): must not exist, or be an empty folder.
        plan (`dict`): everything that determines the contents, as JSON.
        num_bytes (`int`): how much will be written; checked against the free space.

    Raises:
        FileExistsError: when `path` has contents.
        OSError: when the disk has too little room, or another process writes to the same place.
    """
    check_new_folder(path)
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{path}: another process is writing to this folder; wait for it.") from error
        known, text = partial / PLAN_FILE, json.dumps(plan, indent=1)
        if not known.is_file() or known.read_text(encoding="utf-8") != text:
            empty_folder(partial)
        for left in partial.rglob(".*.partial"):
            left.unlink()
        free = shutil.disk_usage(partial).free + sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
        if free < num_bytes:
            raise OSError(
                f"{path}: the disk is full: expected {format_size(num_bytes)} of free space, got {format_size(free)};"
                " free space and run the same command again."
            )
        try:
            write_text(known, text)
            yield partial
        except Exception as error:
            tell_full_disk(error, path)
            raise
        os.replace(partial, path)
        # Not earlier: without its plan, a finished folder would be written again after a kill.
        finish_replacing(path)


def format_size(num_bytes: int) -> str:
    """A number of bytes as text, in GB or, below 1 GB, in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3f} MB"


def finish_replacing(path: Path) -> None:
    """Remove the leftovers of a run that was killed right after its folder was renamed."""
    for name in (PLAN_FILE, LOCK_FILE):
        (path / name).unlink(missing_ok=True)


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()
