"""Cache files of tensors with a description of their sources; memory-mapped, checksum verified at each read."""

import hashlib
import os
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ross3d.data.atomic import replace_file
from ross3d.data.sources import list_files


class DamagedError(ValueError):
    """A cache file whose content is not what was written to it."""


class Stored(NamedTuple):
    """Tensors of a scene from a file, by name, and the names of its views where the file knows them."""

    tensors: dict[str, torch.Tensor]
    views: Sequence[str] = ()


FIELDS = {"identity", "about", "tensors", "checksum"}


def describe_file(file: Path) -> tuple[int, int]:
    """Size and time of change.

    Raises:
        FileNotFoundError: when it is not there.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file that the data refers to, got no such file; put it back.")
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def hash_file(file: Path) -> str:
    """sha256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe_source(path: Path) -> dict[str, Any]:
    """The folder, and name, size and time of change of every file that a scan is read from."""
    files = [[os.path.relpath(file, path), *describe_file(file)] for file in list_files(path)]
    return {"path": str(path.resolve()), "files": files}


def get_file_name(path: Path, suffix: str) -> str:
    """Cache file name: the scan's name and a hash of its folder."""
    folder = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"{path.name}-{folder}.{suffix}"


def sum_bytes(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> int:
    """A checksum of plain values and of all tensors with their names, shapes and dtypes."""
    total = zlib.crc32(repr(about).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), total)
        total = zlib.crc32(tensor.contiguous().view(-1).view(torch.uint8).numpy(), total)
    return total


def make_cache(identity: dict[str, Any], about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The content of a cache file: tensors, plain values `about` them, checksum, and `identity` to detect changes."""
    return {"identity": identity, "about": about, "tensors": tensors, "checksum": sum_bytes(about, tensors)}


def load_cache_or_none(file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """As `load_cache`, but a damaged file gives a warning and None, so that its content is made again."""
    try:
        return load_cache(file, identity)
    except DamagedError:
        warnings.warn(f"{file} is damaged; it is made again.", stacklevel=2)
        return None


def write_cache(file: Path, content: dict[str, Any]) -> None:
    # Given a path, torch writes the path's name into the file, which then differs from process to process.
    with replace_file(file) as partial, open(partial, "wb") as stream:
        torch.save(content, stream)


def load_cache(file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Load a cache file; None if it does not exist or was made from other sources.

    Raises:
        DamagedError: for a broken file.
    """
    return load_any_cache(file, identity)


def load_any_cache(
    file: Path, identity: dict[str, Any] | None = None, check_tensors: bool = True
) -> dict[str, Any] | None:
    """As `load_cache`; without `identity`, whatever the file was made from. Checking tensors reads all of the file."""
    if not file.is_file():
        return None
    broken = f"{file}: expected tensors as they were written, got a damaged file; remove it, and it is made again."
    try:
        content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        if content.keys() == FIELDS and identity not in (None, content["identity"]):
            return None
        if content.keys() == FIELDS and not check_tensors:
            return content
        if content.keys() == FIELDS and sum_bytes(content["about"], content["tensors"]) == content["checksum"]:
            return content
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    # Damaged bytes can make an unpickler raise anything.
    except Exception as error:
        raise DamagedError(broken) from error
    raise DamagedError(broken)
