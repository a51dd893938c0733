"""Exact IoU of oriented 3D boxes, vectorised over pairs.

A box is nine numbers: centre xyz and size xyz in metres, and three Euler angles in radians. `convention` says how the
angles turn the box, in scipy's letters: `"ZXY"` turns about the box's own axes, R = Rz(a) Rx(b) Ry(c); `"zxy"` about
fixed axes, R = Ry(c) Rx(b) Rz(a).
"""

from typing import Any, Literal

import numpy as np
from scipy.spatial.transform import Rotation

from ross3d.metrics.columns import check_boxes, check_known


CONVENTIONS = ("ZXY", "zxy")
DEGENERATE_RULES = ("no_volume", "small_faces")
# Corners in the published order, as signs of the half sizes.
CORNER_SIGNS = np.array(
    [[-1, -1, -1], [-1, -1, 1], [-1, 1, 1], [-1, 1, -1], [1, -1, -1], [1, -1, 1], [1, 1, 1], [1, 1, -1]]
)
# Corners of the faces at -x, +x, -y, +y, -z, +z, each once around.
FACES = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 5, 4], [3, 2, 6, 7], [0, 3, 7, 4], [1, 2, 6, 5]])
FACE_SIGNS = np.array([-1, 1, -1, 1, -1, 1])
FACE_AXES = np.array([0, 0, 1, 1, 2, 2])
# The published evaluation fails on a face triangle below this area (m²), and on a corner as far from its face (m).
PUBLISHED_EPS = 1e-4
# Coinciding faces are separated by this share of the larger box, so that they count once.
TIE = 1e-9
CHUNK = 4096


def get_rotation_matrices(angles: np.ndarray, convention: str = "ZXY") -> np.ndarray:
    """Rotations (N, 3, 3) of Euler angles (N, 3), radians."""
    check_known("convention", [convention], CONVENTIONS)
    return Rotation.from_euler(convention, angles).as_matrix()


def compute_corners(boxes: np.ndarray, convention: str = "ZXY") -> np.ndarray:
    """The eight corners (N, 8, 3) of boxes (N, 9), in the boxes' own precision.

    x0y0z0, x0y0z1, x0y1z1, x0y1z0, and the same at x1, before turning (published order).
    """
    rotations = get_rotation_matrices(boxes[:, 6:], convention).astype(boxes.dtype)
    offsets = boxes[:, None, 3:6] * (CORNER_SIGNS / 2).astype(boxes.dtype)
    return offsets @ rotations.transpose(0, 2, 1) + boxes[:, None, :3]


def find_degenerate(
    boxes: np.ndarray,
    rule: Literal["no_volume", "small_faces"] = "no_volume",
    convention: str = "ZXY",
) -> np.ndarray:
    """Which boxes (N, 9) are degenerate and get IoU 0: (N,) bool.

    Args:
        rule (`str`, defaults to `"no_volume"`):
            - `"no_volume"` (ours): a side of length 0; also accepts boxes (N, 6).
            - `"small_faces"` (published): those for which the published evaluation fails, in float32: half a face
              below 1e-4 m², such as any of a cube of 1 cm, or a corner 1e-4 m off its face's plane.
    """
    check_known("rule", [rule], DEGENERATE_RULES)
    if rule == "no_volume":
        return (boxes[:, 3:6] == 0).any(axis=1)
    corners = compute_corners(boxes.astype(np.float32), convention)[:, FACES]
    sides = corners[:, :, 1:] - corners[:, :, :1]
    halves = [np.cross(sides[:, :, 0], sides[:, :, 1]), np.cross(sides[:, :, 1], sides[:, :, 2])]
    areas = np.stack([np.linalg.norm(half, axis=-1) for half in halves]) / 2
    lengths = np.maximum(np.linalg.norm(halves[0], axis=-1, keepdims=True), np.finfo(np.float32).tiny)
    heights = np.abs((sides[:, :, 2] * (halves[0] / lengths)).sum(axis=-1))
    return (areas < PUBLISHED_EPS).any(axis=(0, 2)) | (heights >= PUBLISHED_EPS).any(axis=1)


def clip_polygons(polygons: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Clip convex polygons by a plane.

    Args:
        polygons (M, K, 3): corners once around; a polygon with fewer repeats its last one.
        heights (M, K): of the corners above the plane; parts below it are removed.

    Returns:
        (M, K + 1, 3). A polygon of which nothing is left has the same corner everywhere.
    """
    following, next_heights = np.roll(polygons, -1, axis=1), np.roll(heights, -1, axis=1)
    inside = heights >= 0
    crosses = inside != (next_heights >= 0)
    share = np.divide(heights, heights - next_heights, out=np.zeros_like(heights), where=crosses)
    crossings = polygons + share[..., None] * (following - polygons)
    candidates = np.stack([polygons, crossings], axis=2).reshape(len(polygons), -1, 3)
    kept = np.stack([inside, crosses], axis=2).reshape(len(polygons), -1)
    last = np.maximum(kept.sum(axis=1, keepdims=True) - 1, 0)
    places = np.minimum(np.arange(polygons.shape[1] + 1), last)
    order = np.take_along_axis(np.argsort(~kept, axis=1, kind="stable"), places, axis=1)
    return np.take_along_axis(candidates, order[..., None], axis=1)


def compute_areas_inside(corners: np.ndarray, half_sizes: np.ndarray) -> np.ndarray:
    """Areas (N, 6) of the faces of boxes, given by their corners (N, 8, 3), within |xyz| <= half_sizes (N, 3)."""
    polygons = corners[:, FACES].reshape(-1, 4, 3)
    limits = np.repeat(half_sizes, 6, axis=0)
    for axis in range(3):
        for sign in (1, -1):
            polygons = clip_polygons(polygons, limits[:, axis, None] - sign * polygons[..., axis])
    spokes = polygons[:, 1:] - polygons[:, :1]
    triangles = np.cross(spokes[:, :-1], spokes[:, 1:])
    return np.linalg.norm(triangles.sum(axis=1), axis=-1).reshape(-1, 6) / 2


def compute_shared_volume(boxes_a: np.ndarray, boxes_b: np.ndarray, convention: str = "ZXY") -> np.ndarray:
    """Volume (N,) that boxes (N, 9) and boxes (N, 9) share, pair by pair.

    By the divergence theorem: a third of the sum, over the faces of the intersection, of area times distance from the
    centre of `a`. These faces are the parts of each box's faces that lie inside the other box.
    """
    turns = [get_rotation_matrices(boxes[:, 6:], convention) for boxes in (boxes_a, boxes_b)]
    corners = [compute_corners(boxes, convention) for boxes in (boxes_a, boxes_b)]
    halves = [np.abs(boxes[:, 3:6]) / 2 for boxes in (boxes_a, boxes_b)]
    tie = TIE * np.maximum(*halves).max(axis=1, keepdims=True)
    a_seen_from_b = (corners[0] - boxes_b[:, None, :3]) @ turns[1]
    b_seen_from_a = (corners[1] - boxes_a[:, None, :3]) @ turns[0]
    areas_a = compute_areas_inside(a_seen_from_b, halves[1] - tie)
    areas_b = compute_areas_inside(b_seen_from_a, halves[0] + tie)
    between = ((boxes_b[:, None, :3] - boxes_a[:, None, :3]) @ turns[1])[:, 0]
    distances_b = FACE_SIGNS * between[:, FACE_AXES] + halves[1][:, FACE_AXES]
    volumes = (areas_a * halves[0][:, FACE_AXES] + areas_b * distances_b).sum(axis=1) / 3
    return np.clip(volumes, 0, np.minimum(*(8 * half.prod(axis=1) for half in halves)))


def compute_oriented_box_iou(
    boxes_a: Any,
    boxes_b: Any,
    convention: Literal["ZXY", "zxy"] = "ZXY",
    rule: Literal["no_volume", "small_faces"] = "no_volume",
) -> tuple[np.ndarray, np.ndarray]:
    """IoU of oriented boxes, pair by pair: intersection / union, without an epsilon, float64.

    Args:
        boxes_a, boxes_b (N, 9): finite; a negative size is read as its absolute value.
        convention (`str`): of the angles, see above.
        rule (`str`): which boxes are degenerate, see `find_degenerate`.

    Returns:
        IoU (N,), 0 where one of the two boxes is degenerate; which pairs (N,) those are.

    Raises:
        ValueError: for another number of boxes on one side, other shapes, and numbers that are not finite.
    """
    boxes_a, boxes_b = check_boxes("boxes_a", boxes_a, 9), check_boxes("boxes_b", boxes_b, 9)
    if len(boxes_a) != len(boxes_b):
        raise ValueError(f"boxes_b: expected {len(boxes_a)} boxes, one for each of boxes_a, got {len(boxes_b)}.")
    degenerate = np.zeros(len(boxes_a), dtype=bool)
    iou = np.zeros(len(boxes_a))
    for start in range(0, len(boxes_a), CHUNK):
        a, b = boxes_a[start : start + CHUNK], boxes_b[start : start + CHUNK]
        shared = compute_shared_volume(a, b, convention)
        union = np.abs(a[:, 3:6].prod(axis=1)) + np.abs(b[:, 3:6].prod(axis=1)) - shared
        skipped = find_degenerate(a, rule, convention) | find_degenerate(b, rule, convention)
        iou[start : start + CHUNK] = np.divide(shared, union, out=np.zeros(len(a)), where=(union > 0) & ~skipped)
        degenerate[start : start + CHUNK] = skipped
    return iou, degenerate


def move_boxes(boxes: np.ndarray, transforms: np.ndarray, convention: Literal["ZXY", "zxy"] = "ZXY") -> np.ndarray:
    """Boxes (N, 9) after rigid transforms (N, 4, 4), such as cam2world: centres and angles move, sizes stay.

    The angles come back in the same convention; where two of them turn about one axis, the third is 0.
    """
    boxes, transforms = check_boxes("boxes", boxes, 9), np.asarray(transforms, np.float64)
    if transforms.shape != (len(boxes), 4, 4) or not np.isfinite(transforms).all():
        raise ValueError(
            f"transforms: expected {len(boxes)} finite 4x4 matrices, one per box, got shape {transforms.shape} with"
            f" {int((~np.isfinite(transforms)).sum())} values that are not finite; drop views without a camera."
        )
    turned = Rotation.from_matrix(transforms[:, :3, :3] @ get_rotation_matrices(boxes[:, 6:], convention))
    centres = np.einsum("nij,nj->ni", transforms[:, :3, :3], boxes[:, :3]) + transforms[:, :3, 3]
    return np.concatenate([centres, boxes[:, 3:6], turned.as_euler(convention, suppress_warnings=True)], axis=1)


__all__ = [
    "compute_corners",
    "compute_oriented_box_iou",
    "compute_shared_volume",
    "find_degenerate",
    "get_rotation_matrices",
    "move_boxes",
]
