"""What the columns of a benchmark have to be: one entry an item, known types, finite boxes."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def check_columns(**columns: Sequence[Any]) -> int:
    """How many items the columns hold.

    Raises:
        ValueError: for columns of different length, or without an item.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"{', '.join(sizes)}: expected one entry an item in every column and at least one item, got {sizes}"
            " entries; hand over predictions and annotations of the same items."
        )
    return next(iter(sizes.values()))


def check_known(name: str, values: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse values that are not among the known ones."""
    unknown = sorted({str(value) for value in values} - set(known))
    if unknown:
        raise ValueError(
            f"{name}: expected values among {list(known)}, got {unknown}; is it another benchmark's column?"
        )


def check_boxes(name: str, boxes: Any, width: int) -> np.ndarray:
    """Boxes as float64 of shape (N, width); an empty list is no box.

    Raises:
        ValueError: for another number of values a box, text, or values that are not finite.
    """
    try:
        array = np.asarray(boxes, np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: expected boxes of {width} numbers each, got {boxes!r}: {error}.") from error
    array = array.reshape(-1, width) if array.size % width == 0 and array.ndim <= 2 else array
    if array.ndim != 2 or (array.size and np.shape(boxes)[-1] != width):
        raise ValueError(f"{name}: expected an array of shape (N, {width}), metres, got shape {np.shape(boxes)}.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(
            f"{name}: expected finite boxes, got {array[row].tolist()} in row {row}; hand over None or no box for what"
            " was not predicted, and correct the annotations."
        )
    return array


def compute_group_means(scores: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Mean of the scores (N,) of each group, by name; NaN scores are left out."""
    members: dict[str, list[float]] = defaultdict(list)
    for score, group in zip(np.asarray(scores, np.float64), groups, strict=True):
        if not np.isnan(score):
            members[group].append(score)
    return {group: float(np.mean(values)) for group, values in members.items()}


__all__ = ["check_boxes", "check_columns", "check_known", "compute_group_means"]
