"""Check the columns of a benchmark: one entry per item, unique ids, known types, texts, finite boxes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def check_columns(**columns: Sequence[Any]) -> int:
    """Return the number of items of the columns.

    Raises:
        ValueError: for columns of different length, or without an item.
    """
    sizes = {name: len(column) for name, column in columns.items()}
    if len(set(sizes.values())) != 1 or 0 in sizes.values():
        raise ValueError(
            f"{', '.join(sizes)}: expected one entry per item in every column and at least one item, got {sizes}"
            " entries; pass predictions and annotations of the same items."
        )
    return next(iter(sizes.values()))


def check_known(name: str, values: Iterable[Any], known: Sequence[str]) -> None:
    """Refuse values that are not among the known ones."""
    unknown = sorted({str(value) for value in values} - set(known))
    if unknown:
        raise ValueError(
            f"{name}: expected values from {list(known)}, got {unknown}; is it another benchmark's column?"
        )


def check_texts(name: str, values: Sequence[Any]) -> None:
    """Refuse a column with a value that is not a string; an empty answer is ""."""
    for index, value in enumerate([values] if isinstance(values, str) else values):
        if isinstance(values, str) or not isinstance(value, str):
            raise ValueError(
                f"{name}[{index}]: expected a list with one string per item, got {value!r}; an item without an"
                ' answer has the empty string "".'
            )


def match_ids(prediction_ids: Sequence[str], reference_ids: Sequence[str]) -> list[int]:
    """The index of each reference's prediction, to put a file's predictions into the order of the annotations.

    Raises:
        ValueError: for an id that comes twice on one side, and for one that the other side lacks.
    """
    for name, ids in (("prediction_ids", prediction_ids), ("reference_ids", reference_ids)):
        twice = [value for value, count in Counter(ids).items() if count > 1]
        if twice:
            raise ValueError(
                f"{name}: expected unique ids, got {len(twice)} repeated ones, such as {twice[:3]}; remove"
                " duplicates, or score each set by itself."
            )
    places = {value: index for index, value in enumerate(prediction_ids)}
    missing = [value for value in reference_ids if value not in places]
    unknown = sorted(places.keys() - set(reference_ids), key=str)
    if missing or unknown:
        raise ValueError(
            f"prediction_ids: expected one prediction for each of {len(reference_ids)} references, got"
            f" {len(prediction_ids)}: {len(missing)} missing, such as {missing[:3]}, and {len(unknown)} without a"
            f" reference, such as {unknown[:3]}; score a complete file against its own annotations."
        )
    return [places[value] for value in reference_ids]


def is_row(box: Any, width: int) -> bool:
    try:
        return np.asarray(box, np.float64).shape == (width,)
    except (ValueError, TypeError):
        return False


def check_boxes(name: str, boxes: Any, width: int) -> np.ndarray:
    """Boxes as float64 of shape (N, width); an empty list gives no box, a single row gives one.

    Raises:
        ValueError: for another number of values per box, text, or values that are not finite.
    """
    try:
        array = np.asarray(boxes, np.float64)
    except (ValueError, TypeError) as error:
        row, box = next(((row, box) for row, box in enumerate(boxes) if not is_row(box, width)), (0, boxes))
        raise ValueError(f"{name}: expected boxes of {width} numbers, got {box!r} in row {row}.") from error
    if array.ndim == 1 and array.size in (0, width):
        array = array.reshape(-1, width)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(f"{name}: expected an array of shape (N, {width}), metres, got shape {array.shape}.")
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(
            f"{name}: expected finite boxes, got {array[row].tolist()} in row {row}; pass None or no box where"
            " nothing was predicted, and correct the annotations."
        )
    return array


def compute_group_means(scores: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """Mean of the scores (N,) of each group, by name; NaN scores are left out."""
    members: dict[str, list[float]] = defaultdict(list)
    for score, group in zip(np.asarray(scores, np.float64), groups, strict=True):
        if not np.isnan(score):
            members[group].append(score)
    return {group: float(np.mean(values)) for group, values in members.items()}


__all__ = ["check_boxes", "check_columns", "check_known", "check_texts", "compute_group_means", "match_ids"]
