"""Choice of views: maximum coverage is greedy, seeded where frames are equally good, and takes what is enough."""

import numpy as np
import pytest

from ross3d.data.sampling import (
    get_view_voxels,
    list_coverage_candidates,
    quantize_points,
    select_max_coverage,
    take_covering_frames,
)
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import get_depth_metres


def make_voxels(*numbers):
    return np.array([[number, 2 * number, -number] for number in numbers]).reshape(-1, 3)


def test_points_are_rounded_to_voxels():
    """Halves go to the even one, in float32, as published; nothing comes twice."""
    points = np.array([[[0.05, 0.15, -0.25]], [[0.149, 0.151, -0.051]], [[0.05, 0.15, -0.25]]])
    found = quantize_points(points)
    # 0.15 / 0.1 is a little above 1.5 in float32, 0.25 / 0.1 exactly 2.5.
    assert found.tolist() == [[0, 2, -2], [1, 2, -1]] and found.dtype == np.int64
    assert quantize_points(points, 0.5).tolist() == [[0, 0, 0]]


def test_views_see_the_rooms_surfaces(tmp_path):
    """Voxels of a view are those of its pixels' points; a pixel without reading is at the camera."""
    raw = write_raw_scan(tmp_path, num_frames=2)
    depth = get_depth_metres(raw)[1]
    depth[3, 5] = 0
    voxels = get_view_voxels(depth, raw.depth_intrinsics, raw.cam2world[1])
    inside = (voxels * 0.1 > raw.room.low - 0.051).all(1) & (voxels * 0.1 < raw.room.high + 0.051).all(1)
    assert inside.all() and 50 < len(voxels) <= depth.size
    centre = np.round(raw.cam2world[1][:3, 3].astype(np.float32) / np.float32(0.1)).astype(int).tolist()
    assert centre in voxels.tolist()
    depth[3, 5] = 1
    assert centre not in get_view_voxels(depth, raw.depth_intrinsics, raw.cam2world[1]).tolist()


def test_every_second_frame_is_a_candidate():
    assert list_coverage_candidates(64).tolist() == list(range(0, 64, 2))
    assert list_coverage_candidates(62).tolist() == list(range(62))
    assert list_coverage_candidates(63).tolist() == list(range(0, 63, 2))
    assert list_coverage_candidates(9, 5).tolist() == [0, 2, 4, 6, 8]


def test_the_frame_that_adds_most_comes_next():
    frames = [make_voxels(1, 2, 3), make_voxels(1, 2, 3, 4, 5), make_voxels(6, 7, 90), make_voxels(5, 6, 91, 92, 93)]
    found = select_max_coverage(frames, make_voxels(*range(1, 9)), 3)
    # 8 is seen by none; 90 to 93 are voxels of no surface.
    assert (found.indices[:2].tolist(), found.gains.tolist()) == ([1, 2], [5, 2, 0])
    assert (found.num_all_voxels, found.num_selected_voxels) == (7, 7)
    first = select_max_coverage(frames, make_voxels(*range(1, 9)), 1)
    assert (first.indices.tolist(), first.num_all_voxels, first.num_selected_voxels) == ([1], 7, 5)
    everything = select_max_coverage(frames, make_voxels(*range(1, 9)))
    assert sorted(everything.indices.tolist()) == [0, 1, 2, 3]


def test_ties_are_drawn_from_the_seed():
    frames, scene = [make_voxels(k) for k in range(1, 7)], make_voxels(*range(1, 7))
    orders = [select_max_coverage(frames, scene, 6, seed=seed).indices.tolist() for seed in range(5)]
    assert orders == [select_max_coverage(frames, scene, 6, seed=seed).indices.tolist() for seed in range(5)]
    assert len(set(map(tuple, orders))) > 1 and all(sorted(order) == list(range(6)) for order in orders)


def test_coverage_equals_a_plain_loop_over_sets():
    """The published rule written out, on frames without ties."""
    rng = np.random.default_rng(5)
    for num_frames, num_views in ((7, 4), (12, 32)):
        frames = [rng.integers(-4, 5, (int(rng.integers(20, 90)), 3)) for _ in range(num_frames)]
        scene = rng.integers(-3, 6, (300, 3))
        sets, cloud = [set(map(tuple, frame.tolist())) for frame in frames], set(map(tuple, scene.tolist()))
        found = select_max_coverage(frames, scene, num_views, seed=1)
        used, left = set(), set(range(num_frames))
        for index, gain in zip(found.indices.tolist(), found.gains.tolist(), strict=True):
            gains = {place: len((sets[place] & cloud) - used) for place in left}
            assert gain == gains[index] == max(gains.values())
            used |= sets[index]
            left.remove(index)
        assert len(found.indices) == min(num_frames, num_views)
        assert found.num_all_voxels == len(set.union(*sets) & cloud)
        assert found.num_selected_voxels == len(used & cloud)


def test_as_many_frames_as_are_enough_are_taken_in_time():
    frames = [make_voxels(1), make_voxels(2, 3, 4, 5, 6), make_voxels(7, 8), make_voxels(9, 10)]
    coverage = select_max_coverage(frames, make_voxels(*range(1, 11)), seed=3)
    assert coverage.indices[0] == 1 and coverage.gains.tolist() == [5, 2, 2, 1]
    assert take_covering_frames(coverage, 4).tolist() == [0, 1, 2, 3]
    assert take_covering_frames(coverage, 4, 0.95).tolist() == [0, 1, 2, 3]
    assert take_covering_frames(coverage, 4, 0.9).tolist() == [1, 2, 3]
    assert take_covering_frames(coverage, 2, 0.5).tolist() == [1]
    two = take_covering_frames(coverage, 2, 0.95)
    assert len(two) == 2 and two.tolist() == sorted(coverage.indices[:2].tolist())


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="maximum coverage needs candidates and num_views >= 1, got 0 and 32"):
        select_max_coverage([], make_voxels(1))
    with pytest.raises(ValueError, match="maximum coverage needs candidates and num_views >= 1, got 1 and 0"):
        select_max_coverage([make_voxels(1)], make_voxels(1), 0)
    empty = select_max_coverage([make_voxels(), make_voxels(4)], make_voxels(4), 2)
    assert (empty.indices.tolist(), empty.gains.tolist()) == ([1, 0], [1, 0])
