"""Parse oriented boxes from a model's text answer without evaluating it as code.

The published evaluations (VG-LLM) pass lines of the answer to Python's `eval`. Here they are parsed as literals, which
accepts the same records and nothing else.
"""

import ast
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ross3d.metrics.columns import check_known


TEXT_RULES = ("whole_text", "lines")
BOX_SIZE = 9
# Maximum value of a box, metres and radians: beyond it the volume could overflow.
LARGEST = 1e30


@dataclass(frozen=True)
class LocatedBox:
    """A box in the coordinates of one view.

    Attributes:
        view (`int`): index of the view ("frame" in the answer).
        box (`np.ndarray` of shape `(9,)`): centre, size (m), Euler angles (rad).
    """

    view: int
    box: np.ndarray


@dataclass(frozen=True)
class LabelledBox:
    """A box with its category; the box is None if it is not nine finite numbers: its IoU is then 0."""

    label: str
    box: np.ndarray | None


def strip_fences(text: str) -> str:
    """An answer without the code fence around it (published: characters are stripped, not words)."""
    return text.strip("\n").strip("`").strip("json").strip("\n")


def read_literal(text: str) -> Any:
    """The value of a Python literal; None for anything else, the literal None included."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def read_value(text: str) -> Any:
    """The value of a Python literal or of JSON, which also has true, false and null; None for anything else."""
    value = read_literal(text)
    if value is None:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return value


def read_numbers(value: Any) -> np.ndarray | None:
    """A numpy array of the value if it holds numbers; None for anything else."""
    try:
        return np.array(value, np.float64)
    except (ValueError, TypeError, OverflowError):
        return None


def is_box(numbers: np.ndarray | None) -> bool:
    return numbers is not None and numbers.shape == (BOX_SIZE,) and bool((np.abs(numbers) < LARGEST).all())


def parse_located_box(
    text: str, num_views: int, rule: Literal["whole_text", "lines"] = "whole_text"
) -> LocatedBox | None:
    """The box of an answer with "frame" and "bbox_3d".

    Args:
        text (`str`): the answer.
        num_views (`int`): number of views; a larger index is invalid.
        rule (`str`, defaults to `"whole_text"`): `"lines"` (published) reads only the first line that contains
            "bbox_3d"; `"whole_text"` (ours) reads the whole answer if that is a record, for example one over several
            lines.

    Returns:
        the box; None if there is no such record, its view does not exist, or its box is not nine finite numbers.
    """
    check_known("rule", [rule], TEXT_RULES)
    text = strip_fences(text)
    record = read_value(text.strip()) if rule == "whole_text" else None
    if not isinstance(record, dict):
        lines = [line for line in text.split("\n") if "bbox_3d" in line]
        record = read_literal(lines[0].strip()) if lines else None
    if not isinstance(record, dict):
        return None
    view, numbers = record.get("frame"), record.get("bbox_3d")
    if not isinstance(view, int) or not 0 <= view < num_views:
        return None
    if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
        return None
    box = read_numbers(numbers)
    return LocatedBox(int(view), box) if is_box(box) else None


def parse_labelled_boxes(text: str, rule: Literal["whole_text", "lines"] = "whole_text") -> list[LabelledBox]:
    """The boxes of an answer with one record of "label" and "bbox_3d" for each object.

    Args:
        text (`str`): the answer.
        rule (`str`, defaults to `"whole_text"`): `"lines"` (published) reads one record per line, so a list on one
            line gives none; `"whole_text"` (ours) also reads lists, on one line or several.

    Returns:
        the boxes in the order of the answer. Records without a label, or whose box is not made of numbers, are left
        out; a number of values other than nine counts as a box with IoU 0 (published).
    """
    check_known("rule", [rule], TEXT_RULES)
    text = strip_fences(text)
    lines = [line.strip().strip(",") for line in text.split("\n")]
    if rule == "lines":
        values = [read_literal(line) for line in lines if "bbox_3d" in line or "label" in line]
    else:
        whole = read_value(text.strip())
        found = [read_value(line) for line in lines] if whole is None else [whole]
        values = [record for value in found for record in (value if isinstance(value, list | tuple) else [value])]
    boxes = []
    for record in values:
        if isinstance(record, dict) and isinstance(record.get("label"), str) and "bbox_3d" in record:
            numbers = read_numbers(record["bbox_3d"])
            if numbers is not None:
                boxes.append(LabelledBox(record["label"], numbers if is_box(numbers) else None))
    return boxes


__all__ = ["LabelledBox", "LocatedBox", "parse_labelled_boxes", "parse_located_box"]
