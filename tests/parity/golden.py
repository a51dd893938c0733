"""Sets of recorded references: where they are, what they hold, and a ledger of what was compared.

A set is a folder with an `index.json`: its `cases` name a safetensors file each, with tensors and scalars. Every
tensor and every number of a case, down to the last of a list, is a leaf with a path: `tensor name`, or
`scalars|key|...|index`. Leaves have to be compared or listed; texts and yes/no values may be compared as well.
"""

import fnmatch
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ross3d.tests.parity.tables import INPUTS, LISTED


ROOT = Path(__file__).resolve().parents[2]
DEFAULT_GOLDENS = ROOT.parent / "shared" / "goldens"


def get_goldens_folder() -> Path:
    """The folder that holds the sets, from the environment variable ROSS3D_GOLDENS.

    Raises:
        FileNotFoundError: when the variable names a folder that is not there; without the variable, tests skip.
    """
    folder = Path(os.environ.get("ROSS3D_GOLDENS", DEFAULT_GOLDENS))
    if "ROSS3D_GOLDENS" in os.environ and not any(folder.glob("*")):
        raise FileNotFoundError(f"ROSS3D_GOLDENS: expected a folder of recorded sets, got {folder}; correct the path.")
    return folder


def list_tensor_sets(folder: Path) -> list[Path]:
    """Folders with an `index.json` of cases: `folder` itself or those in it."""
    found = []
    for candidate in [folder, *sorted(folder.glob("*"))]:
        index = candidate / "index.json"
        if index.is_file() and "cases" in json.loads(index.read_text()):
            found.append(candidate)
    return found


def walk_numbers(value: Any, path: str) -> Iterator[str]:
    """Paths of the numbers in nested lists and dicts."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from walk_numbers(item, f"{path}|{key}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def find_reason(table: dict[str, str], case: str, path: str) -> str | None:
    """The reason that a table (patterns `case:path`) gives for a leaf."""
    return next((why for pattern, why in table.items() if fnmatch.fnmatchcase(f"{case}:{path}", pattern)), None)


def get_deviation(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """max|a - b| / max|b|, in float64; max|a - b| where b is zero everywhere."""
    got, wanted = got.detach().double().reshape(-1), wanted.double().reshape(-1)
    if not wanted.numel():
        return 0.0
    scale = wanted.abs().max().item()
    difference = (got - wanted).abs().max().item()
    return difference / scale if scale else difference


def take_stride(full: torch.Tensor, shape: tuple[int, ...], hints: str) -> torch.Tensor:
    """Every n-th entry of each axis on which a recorded tensor (of `shape`) is shorter than the full one.

    n is a number named in `hints` ("every 4th channel", "::8"), else the one n that gives the recorded size.
    """
    assert full.dim() == len(shape), f"recorded shape {shape}, ours {tuple(full.shape)}"
    named = {int(a or b) for a, b in re.findall(r"every (\d+)(?:st|nd|rd|th)|::(\d+)", hints)}
    for axis, (ours, recorded) in enumerate(zip(full.shape, shape, strict=True)):
        if ours == recorded:
            continue
        fitting = [n for n in range(2, ours + 1) if -(-ours // n) == recorded]
        chosen = [n for n in fitting if n in named] or [n for n in fitting if ours % n == 0] or fitting
        assert chosen, f"recorded shape {shape} is no stride of {tuple(full.shape)}"
        full = full[(slice(None),) * axis + (slice(None, None, chosen[0]),)]
    return full


def read_slices(description: str) -> list[slice]:
    """The slices `a:b` named in a description, in order."""
    return [slice(int(start), int(stop)) for start, stop in re.findall(r"(\d+):(\d+)", description)]


def read_factor(description: str) -> int:
    """The factor of a "nearest x8" enlargement."""
    return int(re.search(r"nearest x(\d+)", description).group(1))


class GoldenSet:
    """One recorded set: its index, its cases, its weights."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.name
        self.index = json.loads((path / "index.json").read_text())
        self.config = self.index["config"]

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        """The recorded model's parameters under their published names."""
        return load_file(self.path / self.config["weights_file"])

    def get_case(self, name: str) -> "GoldenCase":
        return GoldenCase(self, name)


class GoldenCase:
    """One recorded case and what was compared of it; leaving it as a context checks that nothing was forgotten."""

    def __init__(self, golden: GoldenSet, name: str):
        record = golden.index["cases"][name]
        self.name = name
        self.scalars = record["scalars"]
        self.records = record["tensors"]
        self.tensors = load_file(golden.path / record["file"])
        assert set(self.tensors) == set(self.records), f"{name}: file and index name different tensors"
        for key, tensor in self.tensors.items():
            described = (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            assert described == (self.records[key]["shape"], self.records[key]["dtype"]), f"{name}:{key}: {described}"
        self.leaves = [*self.tensors, *walk_numbers(self.scalars, "scalars")]
        self.deviations: dict[str, float] = {}
        self.read_inputs: set[str] = set()

    def describe(self, name: str) -> str:
        return self.records[name]["desc"]

    def decode(self, name: str) -> torch.Tensor:
        """The tensor as it was before it was packed into bytes."""
        packed = re.search(r"value = int8 / (\d+)", self.describe(name))
        tensor = self.tensors[name]
        return tensor.float() / int(packed.group(1)) if packed else tensor

    def read(self, name: str) -> torch.Tensor:
        """A recorded input; what is to be compared cannot be read beforehand."""
        allowed = find_reason(INPUTS, self.name, name) or name in self.deviations
        assert allowed, f"{self.name}:{name} is no input; compare it, or give it a row in INPUTS"
        self.read_inputs.add(name)
        return self.decode(name)

    def get_leaf(self, path: str) -> Any:
        """A tensor by its name, or a scalar by `scalars|key|...`."""
        if not path.startswith("scalars|"):
            return self.decode(path)
        value = self.scalars
        for part in path.split("|")[1:]:
            value = value[int(part)] if isinstance(value, list) else value[part]
        return value

    def mark(self, path: str, deviation: float) -> None:
        """Enter the leaves under `path` as compared."""
        marked = [leaf for leaf in self.leaves if leaf == path or leaf.startswith(f"{path}|")]
        self.deviations |= dict.fromkeys(marked, deviation)

    def take_recorded(self, path: str, got: Any) -> torch.Tensor:
        """Ours as a tensor; where every n-th entry alone was recorded, those."""
        got = got.detach() if isinstance(got, torch.Tensor) else torch.as_tensor(got, dtype=torch.float64)
        if path not in self.tensors:
            return got
        strides = [f"::{value}" for key, value in self.scalars.items() if key.startswith(path) and "stride" in key]
        try:
            return take_stride(got, tuple(self.records[path]["shape"]), " ".join([self.describe(path), *strides]))
        except AssertionError as error:
            raise AssertionError(f"{self.name}:{path}: {error}") from error

    def close(self, path: str, got: Any, tolerance: float, scale: float | None = None) -> None:
        """Compare numbers: max|a - b| / max|b| within `tolerance`; a given `scale` takes the place of max|b|."""
        wanted, got = torch.as_tensor(self.get_leaf(path)), self.take_recorded(path, got)
        assert got.shape == wanted.shape, f"{self.name}:{path}: got {tuple(got.shape)}, wanted {tuple(wanted.shape)}"
        if scale is None:
            deviation = get_deviation(got, wanted)
        else:
            deviation = (got.double() - wanted.double()).abs().max().item() / scale
        assert deviation <= tolerance, f"{self.name}:{path}: deviation {deviation:.3g} > {tolerance:.3g}"
        self.mark(path, deviation)

    def same(self, path: str, got: Any) -> None:
        """Compare exactly: integers, masks, texts, lists of them."""
        wanted = self.get_leaf(path)
        if isinstance(wanted, torch.Tensor):
            got = self.take_recorded(path, got)
            equal = torch.equal(got.to(torch.float64), wanted.to(torch.float64))
        else:
            got = got.tolist() if hasattr(got, "tolist") else got
            equal = got == wanted
        assert equal, f"{self.name}:{path}: got {got}, wanted {wanted}"
        self.mark(path, 0.0)

    def __enter__(self) -> "GoldenCase":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is None:
            self.check_complete()

    def check_complete(self) -> None:
        """Every leaf was compared, or is an input that was read, or is listed with a reason; none is two of these."""
        inputs, listed = list_leaves(self.name, self.leaves)
        overlap = sorted((inputs.keys() | listed.keys()) & self.deviations.keys())
        assert not overlap, f"{self.name}: compared although the tables excuse it: {overlap}"
        left = sorted(set(self.leaves) - self.deviations.keys() - inputs.keys() - listed.keys())
        assert not left, f"{self.name}: neither compared nor listed: {left}"
        unread = sorted(name for name in inputs if name in self.tensors and name not in self.read_inputs)
        assert not unread, f"{self.name}: inputs that no comparison read: {unread}"
        assert len(self.deviations) == len(self.leaves) - len(inputs) - len(listed)


def list_leaves(case: str, leaves: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The inputs among a case's leaves and those that are listed instead of compared, each with its reason."""
    inputs = {leaf: why for leaf in leaves if (why := find_reason(INPUTS, case, leaf))}
    listed = {leaf: why for leaf in leaves if leaf not in inputs and (why := find_reason(LISTED, case, leaf))}
    return inputs, listed
