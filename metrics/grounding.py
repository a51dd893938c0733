"""Scores of grounded boxes. Boxes are centre xyz and size xyz in metres; the last of K + 1 scores is "no target"."""

import numpy as np
import torch

from ross3d.geometry_ross3d import compute_box_iou


# Published rule for several targets: probabilities at this temperature, taken until they sum to the threshold.
SELECTION_TEMPERATURE = 0.07
SELECTION_THRESHOLD = 0.4
# Added to the union by the published evaluations.
IOU_EPS = 1e-8


def compute_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 6) and (M, 6), float64, as the published evaluations count it.

    They add an epsilon to the union and read a negative size as the same box.
    """
    tensors = [torch.tensor(np.asarray(boxes, np.float64).reshape(-1, 6)) for boxes in (boxes_a, boxes_b)]
    for boxes in tensors:
        boxes[:, 3:].abs_()
    return compute_box_iou(*tensors, eps=IOU_EPS).numpy()


def choose_proposal(scores: np.ndarray, allow_none: bool = False) -> int | None:
    """The proposal with the highest of K + 1 scores.

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`): proposals, then "no target".
        allow_none (`bool`): whether "no target" may win. When not (published for expressions that always have a
            target) the best proposal is taken although "no target" scores higher.

    Returns:
        index of the proposal; None when "no target" wins or there is no proposal.
    """
    scores = np.asarray(scores, np.float64)
    if len(scores) < 2:
        return None
    best = int(scores.argmax()) if allow_none else int(scores[:-1].argmax())
    return None if best == len(scores) - 1 else best


def select_proposals(scores: np.ndarray, threshold: float = SELECTION_THRESHOLD) -> list[int]:
    """The proposals an expression with no, one or several targets means (published rule).

    None when "no target" has the highest score. Else softmax of all scores at temperature 0.07, and proposals in
    descending order until their probabilities sum to `threshold`.

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`): proposals, then "no target"; -inf at padding.

    Returns:
        indices, best first.
    """
    scores = np.asarray(scores, np.float64)
    if scores.argmax() == len(scores) - 1:
        return []
    weights = np.exp((scores - scores.max()) / SELECTION_TEMPERATURE)
    probabilities = weights[:-1] / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    order = order[probabilities[order] > 0]
    taken = int(np.searchsorted(np.cumsum(probabilities[order]), threshold)) + 1
    return order[:taken].tolist()


def select_above_no_target(scores: np.ndarray) -> list[int]:
    """The proposals that score above "no target" (K + 1,), best first: ours, blind to how many there are."""
    scores = np.asarray(scores, np.float64)
    order = np.argsort(-scores[:-1], kind="stable")
    return order[scores[order] > scores[-1]].tolist()


def assign_rows(cost: np.ndarray) -> np.ndarray:
    """Column of each row in the assignment of least total cost: the Hungarian method by shortest paths.

    Args:
        cost (`np.ndarray` of shape `(n, n)`): finite.

    Returns:
        (n,) int64.
    """
    n = len(cost)
    row_of = np.full(n + 1, -1)  # the row each column is given to; column n is where a path begins
    row_price, column_price = np.zeros(n), np.zeros(n + 1)
    for row in range(n):
        row_of[n] = row
        distance, came_from = np.full(n, np.inf), np.full(n, n)
        done = np.zeros(n + 1, dtype=bool)
        column = n
        while row_of[column] >= 0:
            done[column] = True
            current = row_of[column]
            reduced = cost[current] - row_price[current] - column_price[:n]
            closer = ~done[:n] & (reduced < distance)
            distance[closer], came_from[closer] = reduced[closer], column
            following = int(np.where(done[:n], np.inf, distance).argmin())
            step = distance[following]
            row_price[row_of[done]] += step
            column_price[done] -= step
            distance[~done[:n]] -= step
            column = following
        while column != n:
            row_of[column] = row_of[came_from[column]]
            column = came_from[column]
    columns = np.empty(n, dtype=np.int64)
    columns[row_of[:n]] = np.arange(n)
    return columns


def compute_f1(predicted: np.ndarray, targets: np.ndarray, iou_threshold: float) -> float:
    """F1 of a set of boxes against the set of targets, matched one to one for the greatest sum of IoU.

    1 when both are empty, 0 when one is. IoU is rounded to float32, as published, so that an exact half counts.

    Args:
        predicted (n, 6), targets (m, 6): boxes. iou_threshold (`float`): a matched pair counts from here on.
    """
    num_predicted, num_targets = len(predicted), len(targets)
    if num_predicted == 0 or num_targets == 0:
        return float(num_predicted == num_targets)
    size = max(num_predicted, num_targets)
    iou = np.zeros((size, size), dtype=np.float32)
    iou[:num_predicted, :num_targets] = compute_iou(predicted, targets)
    matched = iou[np.arange(size), assign_rows(-iou.astype(np.float64))]
    return float(2 * (matched >= np.float32(iou_threshold)).sum() / (num_predicted + num_targets))


def compute_accuracy_at_iou(predicted: list[np.ndarray | None], targets: list[np.ndarray], iou_threshold: float):
    """Which single predictions overlap their single target by at least `iou_threshold`: (number of items,) bool.

    A prediction of None is wrong.
    """
    return np.array(
        [
            box is not None and compute_iou(box, target)[0, 0] >= iou_threshold
            for box, target in zip(predicted, targets, strict=True)
        ],
        dtype=bool,
    )


__all__ = [
    "choose_proposal",
    "compute_accuracy_at_iou",
    "compute_f1",
    "compute_iou",
    "select_above_no_target",
    "select_proposals",
]
