"""Errors of predicted cameras and depth: exact cases, and what must not matter."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ross3d.metrics.multiview import compute_depth_error, compute_pose_auc, compute_pose_errors


def make_cameras(num_views: int, seed: int = 3) -> np.ndarray:
    """Any cameras (V, 4, 4)."""
    rng = np.random.default_rng(seed)
    cameras = np.tile(np.eye(4), (num_views, 1, 1))
    cameras[:, :3, :3] = Rotation.random(num_views, random_state=seed).as_matrix()
    cameras[:, :3, 3] = rng.normal(size=(num_views, 3))
    return cameras


def turn(axis: str, degrees: float, place=(0.0, 0.0, 0.0)) -> np.ndarray:
    camera = np.eye(4)
    camera[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    camera[:3, 3] = place
    return camera


@pytest.mark.parametrize("num_views", [2, 5])
def test_a_perfect_prediction_in_another_world_and_unit(num_views):
    cameras = make_cameras(num_views)
    moved = cameras @ turn("zyx", [70, -20, 130], (4.0, -3.0, 1.0))
    moved[:, :3, 3] *= 0.2
    errors = compute_pose_errors(moved, cameras)
    assert errors.shape == (num_views * (num_views - 1) // 2,)
    np.testing.assert_allclose(errors, 0, atol=1e-5)
    assert compute_pose_auc(errors, 10) == compute_pose_auc(errors, 30) == 1.0
    # A mirrored set of cameras is another one.
    mirrored = cameras.copy()
    mirrored[:, :3, :3] = cameras[:, :3, :3].transpose(0, 2, 1)
    assert compute_pose_errors(mirrored, cameras).min() > 5


def test_errors_of_known_cameras():
    """Rotation and direction are off by known angles; the larger one of a pair counts."""
    target = np.stack([np.eye(4), turn("y", 90, (0, 0, 2)), turn("y", 180, (1, 0, 0))])
    predicted = np.stack([np.eye(4), turn("y", 97, (0, 0, 2)), turn("y", 180, (1, 0, 0))])
    errors = compute_pose_errors(predicted, target)
    # Of the first pair, only the turn is off, and where the first camera lies as seen from the second.
    np.testing.assert_allclose(errors[[0, 1]], [7, 0], atol=1e-6)
    assert errors[2] >= 7 - 1e-6
    places = np.stack([np.eye(4), turn("x", 0, (1, 0, 0))]), np.stack([np.eye(4), turn("x", 0, (1, 1, 0))])
    np.testing.assert_allclose(compute_pose_errors(*places), [45])
    # Opposite directions count as equal; no direction is the largest error.
    opposite = np.stack([np.eye(4), turn("x", 0, (-3, 0, 0))])
    np.testing.assert_allclose(compute_pose_errors(opposite, places[0]), [0], atol=1e-9)
    same_place = np.stack([np.eye(4), turn("x", 10)])
    np.testing.assert_allclose(compute_pose_errors(same_place, places[0]), [90])


def test_the_area_under_the_curve():
    """Shares below 1, 2, 3 and 4 degrees: 1/3, 1/3, 2/3, 2/3."""
    assert compute_pose_auc(np.array([0.5, 2.5, 40.0]), 4) == pytest.approx(0.5)
    assert compute_pose_auc(np.array([1.0]), 2) == 0.5
    assert compute_pose_auc(np.array([31.0, 90.0]), 30) == 0


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 3, 2)])
def test_errors_of_depth(shape):
    rng = np.random.default_rng(1)
    target = rng.uniform(1, 4, shape)
    target[0, 0, 0] = 0
    other = target * 7
    other[0, 0, 0] = 100
    assert compute_depth_error(other, target) == pytest.approx(0)
    # Medians 2 and 4, so the factor is 1/2: 1.5, 2 and 3 for 1, 2 and 4.
    found = np.array([[[3.0, 4.0, 6.0, 1.0]]])
    wanted = np.array([[[1.0, 2.0, 4.0, 0.0]]])
    assert compute_depth_error(found, wanted) == pytest.approx((0.5 + 0 + 0.25) / 3)


def test_what_is_refused():
    cameras = make_cameras(3)
    with pytest.raises(ValueError, match=r"cameras: expected two lists of the same length.*got \(2, 4, 4\) and \(3"):
        compute_pose_errors(cameras[:2], cameras)
    with pytest.raises(ValueError, match=r"at least 2 views, got \(1, 4, 4\)"):
        compute_pose_errors(cameras[:1], cameras[:1])
    with pytest.raises(ValueError, match=r"depth maps: expected two lists of the same shape.*with 0 readings"):
        compute_depth_error(np.ones((1, 2, 3)), np.zeros((1, 2, 3)))
    with pytest.raises(ValueError, match=r"got \(1, 2, 3\) and \(1, 3, 2\)"):
        compute_depth_error(np.ones((1, 2, 3)), np.ones((1, 3, 2)))
