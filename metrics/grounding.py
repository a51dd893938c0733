"""Scores of grounded boxes. Boxes are centre xyz and size xyz in metres; the last of K + 1 scores is "no target"."""

from functools import partial

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ross3d.geometry_ross3d import compute_box_iou, keep_distinct, select_by_scores
from ross3d.metrics.columns import check_boxes, check_columns


# Published rule for several targets: probabilities at this temperature, taken until they sum to the threshold.
SELECTION_TEMPERATURE = 0.07
SELECTION_THRESHOLD = 0.4
# IoU from which on two selected boxes are one object, where boxes were proposed from depth.
DUPLICATE_IOU = 0.5
# Added to the union by the published evaluations.
IOU_EPS = 1e-8


def prepare_boxes(name: str, boxes: np.ndarray) -> torch.Tensor:
    """Checked boxes (N, 6), float64; a negative size is read as its absolute value."""
    array = check_boxes(name, boxes, 6)
    return torch.from_numpy(np.concatenate([array[:, :3], np.abs(array[:, 3:])], axis=1))


def compute_iou(boxes_a: np.ndarray, boxes_b: np.ndarray, union_eps: float = IOU_EPS) -> np.ndarray:
    """IoU (N, M) of boxes (N, 6) and (M, 6), float64, as the published evaluations count it.

    They add an epsilon to the union and read a negative size as its absolute value.

    Raises:
        ValueError: for boxes of another shape, or that are not finite.
    """
    return compute_box_iou(prepare_boxes("boxes_a", boxes_a), prepare_boxes("boxes_b", boxes_b), eps=union_eps).numpy()


def check_scores(scores: np.ndarray) -> np.ndarray:
    """Scores (K + 1,) as float64; refuses NaN, which would silently win or lose."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0 or np.isnan(scores).any() or np.isposinf(scores).any():
        raise ValueError(
            "scores: expected one score per proposal and a last one for no target, without NaN or +inf, got shape"
            f" {scores.shape} with {int((np.isnan(scores) | np.isposinf(scores)).sum())} such values; check the"
            " model's weights and the scene's depth for NaN."
        )
    return scores


def choose_proposal(scores: np.ndarray) -> int | None:
    """The proposal with the highest score, even if "no target" scores higher (published for tasks with one target).

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`): proposals, then "no target".

    Returns:
        index of the proposal; None when there is none.
    """
    scores = check_scores(scores)
    return int(scores[:-1].argmax()) if len(scores) > 1 else None


def compute_margin(scores: np.ndarray) -> float | None:
    """How far the best proposal's score lies above that of "no target"; None when there is no proposal.

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`): proposals, then "no target".
    """
    best = choose_proposal(scores)
    return None if best is None else float(scores[best] - scores[-1])


def select_proposals(scores: np.ndarray, threshold: float = SELECTION_THRESHOLD) -> list[int]:
    """The proposals an expression with no, one or several targets means: `select_by_scores` at temperature 0.07.

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`): proposals, then "no target"; -inf at padding.

    Returns:
        indices, best first.
    """
    return select_by_scores(check_scores(scores), SELECTION_TEMPERATURE, threshold)


def select_above_no_target(scores: np.ndarray) -> list[int]:
    """The proposals that score above "no target" (K + 1,), best first: our rule, without the number of targets."""
    scores = check_scores(scores)
    order = np.argsort(-scores[:-1], kind="stable")
    return order[scores[order] > scores[-1]].tolist()


def drop_duplicates(selected: list[int], boxes: np.ndarray) -> list[int]:
    """Selected boxes without those that overlap a better-scored selected one by an IoU of 0.5 or more.

    Our rule where boxes were proposed from depth, which may propose an object several times; the published rule for
    the boxes of a detector keeps all.

    Args:
        selected (`list[int]`): indices, best first. boxes (`np.ndarray` of shape `(K, 6)`): all proposals.
    """
    boxes = prepare_boxes("boxes", boxes)
    return keep_distinct(selected, compute_box_iou(boxes, boxes).numpy(), DUPLICATE_IOU)


def match_boxes(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """IoU of each matched pair, matched one to one for the greatest sum of IoU.

    As published, IoU is rounded to float32, so that exactly 0.5 counts as 0.5, and the table is padded to a square,
    which decides between matchings of equal sum.

    Args:
        predicted (n, 6), targets (m, 6): boxes.

    Returns:
        (max(n, m),) float32, 0 for unmatched boxes.
    """
    size = max(len(predicted), len(targets))
    iou = np.zeros((size, size), dtype=np.float32)
    iou[: len(predicted), : len(targets)] = compute_iou(predicted, targets)
    return iou[linear_sum_assignment(-iou)]


def get_f1(matched: np.ndarray, num_predicted: int, num_targets: int, iou_threshold: float) -> float:
    """F1 of a set of boxes from the result of `match_boxes`: 1 if both sets are empty, 0 if one is."""
    if num_predicted == 0 or num_targets == 0:
        return float(num_predicted == num_targets)
    return float(2 * (matched >= np.float32(iou_threshold)).sum() / (num_predicted + num_targets))


def compute_f1(predicted: np.ndarray, targets: np.ndarray, iou_threshold: float) -> float:
    """F1 of a set of boxes against the set of targets (published for Multi3DRefer).

    Args:
        predicted (n, 6), targets (m, 6): boxes. iou_threshold (`float`): a matched pair counts from here on.
    """
    return get_f1(match_boxes(predicted, targets), len(predicted), len(targets), iou_threshold)


def compute_paired_iou(
    predicted: list[np.ndarray | None],
    targets: list[np.ndarray],
    union_eps: float = IOU_EPS,
) -> np.ndarray:
    """IoU of each single prediction with its single target, 0 for no prediction: (number of items,) float64.

    Args:
        predicted (list of (6,) or None), targets (list of (6,)): boxes.
        union_eps (`float`, defaults to the published 1e-8): added to the union; with it an IoU of exactly 0.5 for a
            union of 1 cubic metre stays below a threshold of 0.5.
    """
    check_columns(predicted=predicted, targets=targets)
    missing = np.array([box is None for box in predicted])
    boxes_a = prepare_boxes("predicted", [np.zeros(6) if box is None else np.ravel(box) for box in predicted])
    boxes_b = prepare_boxes("targets", [np.ravel(box) for box in targets])
    overlaps = torch.vmap(partial(compute_box_iou, eps=union_eps))(boxes_a[:, None], boxes_b[:, None])
    return np.where(missing, 0.0, overlaps[:, 0, 0].numpy())


def compute_accuracy_at_iou(predicted: list[np.ndarray | None], targets: list[np.ndarray], iou_threshold: float):
    """Which single predictions overlap their single target by at least `iou_threshold`: (number of items,) bool.

    A prediction of None is wrong. The published rule, as in `compute_paired_iou`.
    """
    overlaps = compute_paired_iou(predicted, targets)
    return (overlaps >= iou_threshold) & np.array([box is not None for box in predicted], dtype=bool)


__all__ = [
    "choose_proposal",
    "compute_accuracy_at_iou",
    "compute_f1",
    "compute_iou",
    "compute_margin",
    "compute_paired_iou",
    "drop_duplicates",
    "get_f1",
    "match_boxes",
    "select_above_no_target",
    "select_proposals",
]
