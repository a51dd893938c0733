"""Boxes of objects and of Mask3D proposals, to the last digit of the published files."""

from collections.abc import Iterable
from itertools import takewhile

import numpy as np
import torch

from ross3d.data.prepare.llava_style import PREFIX, Boxes
from ross3d.geometry_ross3d import compute_box_iou


# Maximum per scene, as in the published files.
MAX_PROPOSALS = 50
# Added to the denominator of the published IoU, cubic metres.
IOU_EPS = 1e-8


def make_box(low: np.ndarray, high: np.ndarray) -> list[float]:
    """Centre and size, metres, of limits (3,) and (3,).

    The published arithmetic: the far corner is the near one plus the size, in float32; centre and size are taken of
    the corners in float64.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    low, high = low.astype(np.float64), (low + (high - low)).astype(np.float64)
    return [*((low + high) / 2).tolist(), *(high - low).tolist()]


def make_mask_boxes(vertices: np.ndarray, masks: Iterable[np.ndarray]) -> list[list[float] | None]:
    """A box for each mask (M,) over vertices (M, 3), metres, aligned; None for an empty mask."""
    boxes = []
    for mask in masks:
        points = vertices[np.asarray(mask) == 1]
        boxes.append(make_box(points.min(0), points.max(0)) if len(points) else None)
    return boxes


def make_gt_file(objects: dict[str, Boxes]) -> dict[str, list[list[float]]]:
    """`scannet_*_gt_box.json`: scenes whose object ids are not 0, 1, 2, ... are left out, as published."""
    return {
        PREFIX + scene_id: [boxes[number] for number in sorted(boxes)]
        for scene_id, boxes in objects.items()
        if sorted(boxes) == list(range(len(boxes)))
    }


def make_pred_file(proposals: dict[str, list[list[float] | None]]) -> dict[str, list[list[float]]]:
    """`scannet_*_pred_box.json`: at most 50 masks of a scene; as published, it ends at the first empty mask."""
    return {
        PREFIX + scene_id: list(takewhile(lambda box: box is not None, boxes[:MAX_PROPOSALS]))
        for scene_id, boxes in proposals.items()
    }


def match_proposal(box: list[float], proposals: list[list[float]]) -> tuple[list[float] | None, float]:
    """The proposal that overlaps a box most, the first of equal ones, and its IoU; (None, 0.0) without proposals."""
    if not proposals:
        return None, 0.0
    overlaps = compute_box_iou(
        torch.tensor([box], dtype=torch.float64), torch.tensor(proposals, dtype=torch.float64), eps=IOU_EPS
    )
    best = int(overlaps[0].numpy().argmax())
    return proposals[best], float(overlaps[0, best])
