"""Tensors kept in a file with what they were made of: mapped into memory, summed up each time they are read."""

import pickle
import zlib
from pathlib import Path
from typing import Any

import torch

from ross3d.data.atomic import replace_file


FIELDS = {"identity", "about", "tensors", "checksum"}


def describe_source(path: Path) -> list[list[Any]]:
    """Name, size and time of change of every file of a scene folder: what tells it from what it was."""
    stats = [(file, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def sum_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """A checksum of all tensors, by name."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy(), total)
    return total


def make_kept(identity: dict[str, Any], about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a file holds: tensors, plain values `about` them, and what tells whether they are still right."""
    return {"identity": identity, "about": about, "tensors": tensors, "checksum": sum_bytes(tensors)}


def write_kept(file: Path, kept: dict[str, Any]) -> None:
    with replace_file(file) as partial:
        torch.save(kept, partial)


def load_kept(file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """What a file holds, or None when it is not there or was made of something else.

    Raises:
        ValueError: for a broken file.
    """
    if not file.is_file():
        return None
    broken = f"{file}: expected tensors that were kept whole, got a broken file; remove it, and it is made anew."
    try:
        kept = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        return None
    except (RuntimeError, EOFError, OSError, KeyError, UnicodeDecodeError, pickle.UnpicklingError) as error:
        raise ValueError(broken) from error
    if not isinstance(kept, dict) or kept.keys() != FIELDS:
        raise ValueError(broken)
    if kept["identity"] != identity:
        return None
    if sum_bytes(kept["tensors"]) != kept["checksum"]:
        raise ValueError(broken)
    return kept
