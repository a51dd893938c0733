"""Scores of detected oriented boxes by category, as VG-LLM counts them for ScanNet windows of a few views."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ross3d.metrics.box_text import LabelledBox
from ross3d.metrics.columns import check_boxes, check_columns
from ross3d.metrics.oriented_boxes import compute_oriented_box_iou


# A pair matches if its IoU is above this value, not equal to it (published).
IOU_THRESHOLD = 0.25
CATEGORIES_8 = ("chair", "cabinet", "table", "bin", "couch", "bed", "bathtub", "toilet")
CATEGORIES_20 = (
    "chair", "pillow", "cabinet", "table", "lamp", "couch", "desk", "stand", "bed", "backpack", "bathtub", "ottoman",
    "dresser", "bin", "toilet", "refrigerator", "stove", "microwave", "monitor", "computer",
)  # fmt: skip
CATEGORIES_MORE = ("window", "shelf", "curtain", "plant", "stairs", "picture", "book", "bottle")
# The published list of 31 has "lamp" twice and "towl" for "towel"; the corrected list has 30 categories.
PUBLISHED_CATEGORIES = {
    "cate8": CATEGORIES_8,
    "cate20": CATEGORIES_20,
    "cate31": (*CATEGORIES_20, *CATEGORIES_MORE, "lamp", "towl", "sink"),
}
CATEGORIES = {
    "cate8": CATEGORIES_8,
    "cate20": CATEGORIES_20,
    "cate31": (*CATEGORIES_20, *CATEGORIES_MORE, "towel", "sink"),
}
Counts = dict[str, dict[str, int]]


def compute_pair_overlaps(
    predictions: Sequence[Sequence[LabelledBox]],
    targets: Sequence[Sequence[LabelledBox]],
    rule: Literal["no_volume", "small_faces"],
) -> list[dict[tuple[int, int], float]]:
    """IoU, rounded to float32, of predictions with targets of their label: by both indices, a table an item."""
    pairs = [
        (item, index, other)
        for item, (predicted, wanted) in enumerate(zip(predictions, targets, strict=True))
        for index, prediction in enumerate(predicted)
        for other, target in enumerate(wanted)
        if prediction.label == target.label and prediction.box is not None
    ]
    boxes_a = np.array([predictions[item][index].box for item, index, _ in pairs]).reshape(-1, 9)
    boxes_b = np.array([targets[item][other].box for item, _, other in pairs]).reshape(-1, 9)
    iou = compute_oriented_box_iou(boxes_a, boxes_b, rule=rule)[0].astype(np.float32)
    overlaps: list[dict[tuple[int, int], float]] = [{} for _ in predictions]
    for (item, index, other), value in zip(pairs, iou, strict=True):
        overlaps[item][index, other] = float(value)
    return overlaps


def count_item(
    predicted: Sequence[LabelledBox],
    targets: Sequence[LabelledBox],
    overlaps: dict[tuple[int, int], float],
) -> Counts:
    """Greedy matching: each prediction in turn takes the free target with the highest IoU; the first one of a tie."""
    labels = {box.label for box in (*predicted, *targets)}
    counts = {label: {"tp": 0, "fp": 0, "fn": 0} for label in sorted(labels)}
    free = set(range(len(targets)))
    for index, prediction in enumerate(predicted):
        best = max(free, key=lambda other: (overlaps.get((index, other), 0.0), -other), default=None)
        is_hit = overlaps.get((index, best), 0.0) > IOU_THRESHOLD
        counts[prediction.label]["tp" if is_hit else "fp"] += 1
        if is_hit:
            free.remove(best)
    for other in free:
        counts[targets[other].label]["fn"] += 1
    return counts


def count_detections(
    predictions: Sequence[Sequence[LabelledBox]],
    targets: Sequence[Sequence[LabelledBox]],
    rule: Literal["no_volume", "small_faces"] = "no_volume",
) -> list[Counts]:
    """True and false positives and misses of every label, for each item.

    Args:
        predictions: the boxes of each item, in the order of the answer; the angles are "ZXY".
        targets: the true boxes of each item.
        rule (`str`): which boxes have IoU 0, see `find_degenerate`; published is `"small_faces"`.

    Raises:
        ValueError: for columns of different length, and for a target that is not nine finite numbers.
    """
    check_columns(predictions=predictions, targets=targets)
    for item, boxes in enumerate(targets):
        for index, target in enumerate(boxes):
            check_boxes(f"targets[{item}][{index}]", [target.box], 9)
    overlaps = compute_pair_overlaps(predictions, targets, rule)
    return [count_item(*columns) for columns in zip(predictions, targets, overlaps, strict=True)]


def sum_counts(items: Sequence[Counts]) -> Counts:
    """Counts of every label over all items."""
    totals: Counts = defaultdict(lambda: {"tp": 0, "fp": 0, "fn": 0})
    for counts in items:
        for label, row in counts.items():
            for name, value in row.items():
                totals[label][name] += value
    return dict(totals)


def tabulate_counts(items: Sequence[Counts], categories: Sequence[str]) -> np.ndarray:
    """Counts of each item, (number of items, 3 * categories): all true positives, all false ones, all misses."""
    nothing = {"tp": 0, "fp": 0, "fn": 0}
    rows = [[counts.get(name, nothing)[key] for key in nothing for name in categories] for counts in items]
    return np.array(rows, np.float64)


def compute_scores_of_counts(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1, each (...,) the mean over categories, of sums (..., 3 * categories)."""
    tp, fp, fn = np.split(np.asarray(sums, np.float64), 3, axis=-1)
    precision, recall = tp / np.maximum(tp + fp, 1), tp / np.maximum(tp + fn, 1)
    both = precision + recall
    f1 = np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)
    return precision.mean(axis=-1), recall.mean(axis=-1), f1.mean(axis=-1)


def compute_category_scores(totals: Counts, categories: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1, each the mean over categories; a category that does not occur counts 0 (published)."""
    means = compute_scores_of_counts(tabulate_counts([totals], categories))
    return {name: float(mean[0]) for name, mean in zip(("precision", "recall", "f1"), means, strict=True)}


__all__ = [
    "CATEGORIES",
    "PUBLISHED_CATEGORIES",
    "compute_category_scores",
    "compute_scores_of_counts",
    "count_detections",
    "sum_counts",
    "tabulate_counts",
]
