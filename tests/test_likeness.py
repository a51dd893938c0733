"""Whether a scan is like the training: its numbers, its look, and what is said about both."""

import numpy as np
import pytest

from ross3d.data.likeness import (
    NUMBERS,
    check_scans,
    compute_look_distances,
    compute_unlikeness,
    describe_training,
    find_threshold,
    fit_look,
    list_unlike,
    measure_scan,
)


def make_cameras(count: int, height: float = 1.5) -> np.ndarray:
    """Upright cameras (V, 4, 4) that look along +y."""
    matrices = np.tile(np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, height], [0, 0, 0, 1]]), (count, 1, 1))
    matrices[:, 0, 3] = np.arange(count)
    return matrices


@pytest.mark.parametrize(("num_views", "size", "grid"), [(2, (6, 9), 3), (5, (12, 4), 2)])
def test_numbers_are_those_of_a_scan_made_by_hand(num_views, size, grid):
    pixels = np.full((num_views, 3, *size), 0.25)
    pixels[:, :, : size[0] // 3] = 0.75
    cameras = make_cameras(num_views)
    away = np.array([0.0, 3.0, 0.0])
    coords = np.broadcast_to(cameras[:, None, None, :3, 3] + away, (num_views, grid, grid, 3))
    valid = np.ones((num_views, grid, grid), bool)
    valid[0] = False
    found = measure_scan(pixels, coords, valid, cameras)
    assert set(found) == set(NUMBERS)
    assert found["num_views"] == num_views and found["valid_depth"] == pytest.approx(1 - 1 / num_views)
    assert found["brightness"] == pytest.approx(0.25 + 0.5 / 3) and found["light_from_above"] == pytest.approx(0.5)
    assert found["viewing_distance"] == pytest.approx(3) and found["camera_height"] == pytest.approx(1.5)
    assert found["scene_size"] == pytest.approx(num_views - 2) and found["camera_tilt"] == pytest.approx(0)
    turned = cameras @ np.diag([-1.0, -1.0, 1.0, 1.0])
    assert measure_scan(pixels, coords, valid, turned)["camera_tilt"] == pytest.approx(180)
    assert set(found) - set(measure_scan(pixels)) == {"camera_height", "camera_tilt", "viewing_distance", "scene_size"}


def test_grain_is_noise_and_not_brightness():
    rng = np.random.default_rng(0)
    smooth = np.broadcast_to(np.linspace(0, 1, 16)[:, None], (2, 3, 16, 16))
    noisy = smooth + rng.normal(0, 0.2, (2, 1, 16, 16))
    grain = [measure_scan(pixels)["grain"] for pixels in (smooth, smooth / 4, noisy)]
    assert grain[0] == pytest.approx(grain[1], rel=1e-6) and grain[2] > 3 * grain[0]


def test_distances_of_looks_are_those_of_their_covariance():
    rng = np.random.default_rng(1)
    looks = rng.normal(size=(4000, 5)) * [3.0, 1.0, 1.0, 1.0, 1.0] + 2
    fitted = fit_look(looks)
    points = rng.normal(size=(7, 5))
    centred = points - looks.mean(0)
    exact = np.sqrt(np.einsum("nd,de,ne->n", centred, np.linalg.inv(np.cov(looks.T)), centred) / 5)
    assert compute_look_distances(points, fitted) == pytest.approx(exact, rel=0.05)
    # Fewer scans than numbers: finite, and larger off the scans than among them.
    few = fit_look(looks[:4, :])
    assert compute_look_distances(np.full((1, 5), 50.0), few)[0] > compute_look_distances(looks[:4], few).max() * 5


def make_training(count: int = 60) -> tuple[list[dict[str, float]], np.ndarray]:
    rng = np.random.default_rng(2)
    numbers = [
        {"num_views": 8.0, "brightness": 0.5 + 0.05 * rng.normal(), "scene_size": 5 + rng.normal()}
        for _ in range(count)
    ]
    return numbers, rng.normal(size=(count, 6))


def test_unlike_things_are_named_in_words_the_worst_first():
    numbers, looks = make_training()
    training = describe_training(numbers, looks)
    scans = {"training": training, "threshold": 1.5}
    check_scans(scans, "file, scans", "write it again")
    usual = {"num_views": 8.0, "brightness": 0.52, "scene_size": 5.0}
    assert list_unlike(usual, np.zeros(6), scans) == []
    dark = list_unlike(usual | {"brightness": 0.12, "scene_size": 12.0}, np.full(6, 4.0), scans)
    assert dark[0].startswith(
        "the views are darker than in the scans that this model was trained on: 12 % of white, there"
    )
    assert any("the scene is larger (the unit of depth and poses?)" in sentence for sentence in dark)
    assert any("the views look different from those" in sentence for sentence in dark) and len(dark) == 3
    assert list_unlike({"num_views": 3.0}, None, scans) == [
        "there are fewer views than in the scans that this model was trained on: 3, there 8 to 8"
    ]
    assert compute_unlikeness({"brightness": training["numbers"]["brightness"]["high"]}, None, training) == {
        "brightness": pytest.approx(1, rel=1e-3)
    }


@pytest.mark.parametrize("count", [99, 399])
def test_one_scan_in_a_hundred_exceeds_the_threshold(count):
    rng = np.random.default_rng(3)
    rates = []
    for _ in range(300):
        threshold = find_threshold(rng.exponential(size=count).tolist())
        rates.append((rng.exponential(size=400) > threshold).mean())
    assert np.mean(rates) == pytest.approx(0.01, abs=0.003)


def test_too_few_scans_and_damaged_descriptions_are_refused():
    numbers, looks = make_training()
    with pytest.raises(
        ValueError, match="scans: expected at least 20 of the training, got 7; give more, or leave the"
    ):
        describe_training(numbers[:7], looks[:7])
    training = describe_training(numbers, looks)
    with pytest.raises(ValueError, match="f: expected numbers, look and threshold of training scans, got KeyError"):
        check_scans({"threshold": 1.0, "training": {}}, "f", "write it again")
    broken = training | {"look": training["look"] | {"mean": [0.0]}}
    with pytest.raises(ValueError, match="got numbers that do not fit together; write it again"):
        check_scans({"threshold": 1.0, "training": broken}, "f", "write it again")
