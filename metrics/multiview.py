"""Errors of what an encoder of geometry predicts of several views: cameras and depth.

A predicted scene has its own world frame and its own unit, so only what neither changes is scored: cameras relative
to each other, translations by their direction, and depth after one factor for the whole scene.

Shapes: V views of one scene, P = V (V - 1) / 2 pairs of views.
"""

import numpy as np


def get_relative_cameras(world2cam: np.ndarray) -> np.ndarray:
    """From the camera of the second view to that of the first, for each pair (P, 4, 4) of cameras (V, 4, 4)."""
    first, second = np.triu_indices(len(world2cam), k=1)
    return world2cam[first] @ np.linalg.inv(world2cam[second])


def compute_pose_errors(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Error (P,) of each pair's relative camera, in degrees: that of the rotation or that of the translation's
    direction, whichever is larger.

    As in the published evaluations, opposite directions of a translation count as equal. A translation of length 0
    has no direction; its error is 90 degrees, the largest.

    Args:
        predicted, target (V, 4, 4): world2cam, each in a world and unit of its own.

    Raises:
        ValueError: for fewer than two cameras, or different numbers of them.
    """
    predicted, target = (np.asarray(cameras, np.float64) for cameras in (predicted, target))
    if predicted.shape != target.shape or target.shape[1:] != (4, 4) or len(target) < 2:
        raise ValueError(
            "cameras: expected two lists of the same length, (V, 4, 4) with at least 2 views, got"
            f" {predicted.shape} and {target.shape}; pass the cameras of the same views."
        )
    found, wanted = get_relative_cameras(predicted), get_relative_cameras(target)
    # The angle of a turn R: |R - 1| = 2 sqrt(2) sin(angle / 2), exact for small angles too.
    distance = np.linalg.norm(found[:, :3, :3] - wanted[:, :3, :3], axis=(1, 2))
    turns = 2 * np.arcsin(np.clip(distance / np.sqrt(8), 0, 1))
    places = found[:, :3, 3], wanted[:, :3, 3]
    directions = np.arctan2(np.linalg.norm(np.cross(*places), axis=1), np.abs((places[0] * places[1]).sum(axis=1)))
    has_none = np.minimum(*(np.linalg.norm(place, axis=1) for place in places)) < 1e-9
    return np.degrees(np.maximum(turns, np.where(has_none, np.pi / 2, directions)))


def compute_pose_auc(errors: np.ndarray, most: int) -> float:
    """Area under the curve "share of pairs whose error is below a threshold", for thresholds up to `most` degrees.

    As published, in steps of one degree: the mean of the shares at 1, 2, ... `most`. 1 is perfect.

    Args:
        errors (P,): degrees.
        most (`int`): the largest threshold.
    """
    errors = np.asarray(errors)
    return float(np.mean([(errors < threshold).mean() for threshold in range(1, most + 1)]))


def compute_depth_error(predicted: np.ndarray, target: np.ndarray) -> float:
    """Mean of |predicted - target| / target (AbsRel) over the pixels with a reading, all views together.

    The prediction's unit is that in which its median is the target's: one factor for the scene.

    Args:
        predicted, target (V, H, W): depth along the camera's z axis; 0 in `target` is no reading.

    Raises:
        ValueError: for different shapes, or no pixel with a reading.
    """
    predicted, target = (np.asarray(maps, np.float64) for maps in (predicted, target))
    if predicted.shape != target.shape or not (target > 0).any():
        raise ValueError(
            "depth maps: expected two lists of the same shape with at least one reading above 0, got"
            f" {predicted.shape} and {target.shape} with {int((target > 0).sum())} readings; pass those of the same"
            " views."
        )
    found, wanted = predicted[target > 0], target[target > 0]
    return float(np.mean(np.abs(found * (np.median(wanted) / np.median(found)) - wanted) / wanted))


__all__ = ["compute_depth_error", "compute_pose_auc", "compute_pose_errors", "get_relative_cameras"]
