"""Boxes from depth: how much of rooms that nobody tuned on they find, empty rooms, the ways of grouping, errors."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ross3d.bench.proposals import add_sensor_noise, get_best_overlaps, measure
from ross3d.data.proposals import (
    Proposals,
    find_level,
    get_group_boxes,
    get_level_boxes,
    label_voxels,
    link_points,
    propose_boxes,
    rank_groupings,
)
from ross3d.data.scene import Scene
from ross3d.data.upright import align_scene, estimate_upright
from ross3d.inputs_ross3d import check_boxes
from ross3d.scenes.build import make_scene
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import make_cameras, make_room


@cache
def make_rooms(count: int, num_views: int, image_size: tuple[int, int]) -> list[Scene]:
    """Rooms that the constants were not chosen on."""
    return [make_scene(23, "train", index, num_views, image_size)[0] for index in range(count)]


@pytest.mark.parametrize(
    ("num_views", "image_size", "noisy", "measured", "boxes_a_scene"),
    [
        (12, (112, 84), False, (25, 25, 23), 39.2),
        (12, (112, 84), True, (25, 24, 20), 50.0),
        (8, (64, 48), False, (25, 24, 18), 48.8),
    ],
)
def test_recall_over_rooms(num_views, image_size, noisy, measured, boxes_a_scene):
    """As many of the 25 objects are found, at IoU 0.25, 0.5 and 0.5 of ten boxes, as were `measured`, or one fewer."""
    scenes = make_rooms(5, num_views, image_size)
    if noisy:
        scenes = [add_sensor_noise(scene, np.random.default_rng(index)) for index, scene in enumerate(scenes)]
    figures = measure(scenes)
    assert figures["objects"] == sum(len(scene.boxes) for scene in scenes) == 25
    recalls = [figures[name] for name in ("recall@0.25", "recall@0.5", "recall@0.5_of_ten")]
    assert all(25 * recall > count - 1.5 for recall, count in zip(recalls, measured, strict=True)), figures
    assert figures["boxes_a_scene"] == pytest.approx(boxes_a_scene, rel=0.05)


def test_a_scan_that_was_set_upright_by_estimate():
    """Turned any way, aligned, boxed: the objects, in the found world, are among the boxes (measured: all 25)."""
    overlaps = []
    for index, scene in enumerate(make_rooms(5, 12, (112, 84))):
        motion = np.eye(4)
        motion[:3, :3], motion[:3, 3] = Rotation.random(rng=index).as_matrix(), (3, -2, index)
        scan = replace(scene, cam2world=motion @ scene.cam2world, boxes=None, bev_image=None)
        estimate = estimate_upright(scan)
        found = estimate.axis_align_matrix @ motion
        # The walls stand along the axes again, so that boxes turn by quarters.
        centres = scene.boxes[:, :3] @ found[:3, :3].T + found[:3, 3]
        objects = np.concatenate([centres, scene.boxes[:, 3:] @ np.abs(found[:3, :3].T.round())], axis=1)
        overlaps.append(
            get_best_overlaps(propose_boxes(align_scene(scan, estimate)).boxes, objects.astype(np.float32))
        )
    best = np.concatenate(overlaps)
    assert len(best) == 25 and (best >= 0.25).sum() >= 24 and (best >= 0.5).sum() >= 24


def test_proposals_are_boxes_best_first_and_the_same_each_time():
    (scene,) = make_rooms(1, 12, (96, 72))
    first, again = propose_boxes(scene), propose_boxes(scene)
    for name in ("boxes", "agreement", "areas"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    check_boxes(first.boxes, "proposals")
    assert first.boxes.dtype == np.float32 and len(first.boxes) == len(first.agreement) == len(first.areas) > 4
    assert (first.agreement > 0).all() and first.agreement.max() <= 1 and (first.boxes[:, 3:] >= 0.019).all()
    few = propose_boxes(scene, max_proposals=3)
    np.testing.assert_array_equal(few.boxes, first.boxes[:3])
    assert f"{len(first.boxes)} boxes proposed from depth" in first.describe()


def test_an_empty_room_has_no_boxes():
    for index in range(4):
        room, rng = make_room(29, "train", index)
        intrinsics, cam2world = make_cameras(room, rng, 12, (96, 72))
        room.furniture.clear()
        seen = render_room(room, intrinsics, cam2world, (96, 72))
        found = propose_boxes(Scene("empty", seen.images, seen.depth_maps, intrinsics, cam2world))
        assert found.boxes.shape == (0, 6) and found.agreement.shape == found.areas.shape == (0,)
        assert found.describe() == "no boxes proposed: nothing was found apart from floor and walls"


def test_no_reading_gives_no_boxes():
    (scene,) = make_rooms(1, 3, (64, 48))
    assert len(propose_boxes(replace(scene, depth_maps=np.zeros_like(scene.depth_maps))).boxes) == 0


def test_a_wild_reading_costs_no_memory():
    """Points as far away as depth maps can say, in some views, hide no object that is found without them."""
    (scene,) = make_rooms(1, 6, (96, 72))
    depth = scene.depth_maps.copy()
    depth[::2, 10, 10] = 65.0
    wild, tame = (propose_boxes(given).boxes for given in (replace(scene, depth_maps=depth), scene))
    found, wanted = (get_best_overlaps(boxes, scene.boxes) >= 0.5 for boxes in (wild, tame))
    assert found.tolist() == wanted.tolist() and wanted.sum() > 2


def test_depth_and_an_upright_world_are_needed():
    (scene,) = make_rooms(1, 6, (64, 48))
    with pytest.raises(ValueError, match=r"'train-000000': proposing boxes needs depth_maps, intrinsics and cam2w"):
        propose_boxes(replace(scene, depth_maps=None))
    for motion in (Rotation.from_euler("x", 90, degrees=True), Rotation.from_euler("y", -60, degrees=True)):
        turned = np.eye(4)
        turned[:3, :3] = motion.as_matrix()
        with pytest.raises(
            ValueError, match=r"expected z up and the floor at z = 0 for proposing boxes, but \d+ % of the surface is"
        ):
            propose_boxes(replace(scene, cam2world=turned @ scene.cam2world))
    lowered = np.eye(4)
    lowered[2, 3] = -0.2
    assert len(propose_boxes(replace(scene, cam2world=lowered @ scene.cam2world)).boxes)


def make_cloud(low, high, spacing: float = 0.02) -> np.ndarray:
    """Points (N, 3) all through a box."""
    axes = [np.arange(a + spacing / 2, b, spacing) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 3)


def test_points_link_within_their_reach():
    left, right = make_cloud((0, 0, 0), (0.3, 0.2, 0.1)), make_cloud((0.37, 0, 0), (0.6, 0.2, 0.1))
    above = make_cloud((0, 0, 0.5), (0.1, 0.1, 0.6))
    points = np.concatenate([left, right, above])[::-1]
    assert len(np.unique(link_points(points, 0.03))) == 3
    assert len(np.unique(link_points(points, 0.08))) == 2
    assert len(np.unique(link_points(points, (0.03, 0.03, np.inf)))) == 2
    groups = link_points(points, 0.03)[::-1]
    assert len(set(groups[: len(left)])) == len(set(groups[-len(above) :])) == 1
    assert len(link_points(np.zeros((0, 3)), 0.1)) == 0


def test_rows_of_cells_do_not_link_around_the_rim():
    """The last cell of one row and the first of the next are neighbours in memory only."""
    points = np.array([[0, 0, 0.95], [0, 0.1, 0.05], [0, 0.95, 0], [0.1, 0, 0]]) + 0.001
    assert len(np.unique(link_points(points, 0.1))) == 3
    assert len(np.unique(link_points(points[:2], 0.1))) == 2


def test_voxels_are_numbered():
    points = np.array([[0.5, 0.1, 0.1], [0.02, 0.01, 0.03], [0.04, 0.04, 0.04], [0.51, 0.105, 0.105]])
    labels = label_voxels(points, 0.05)
    assert labels[0] == labels[3] != labels[1] == labels[2] and set(labels) == {0, 1}


def test_groups_become_boxes_down_to_the_floor():
    standing = make_cloud((0, 0, 0.1), (0.4, 0.3, 0.9), 0.04)
    hanging = make_cloud((2, 1, 1.2), (2.5, 1.2, 1.5), 0.04)
    speck = make_cloud((3, 3, 1), (3.05, 3.05, 1.05))
    points = np.concatenate([standing, hanging, speck])
    boxes, areas = get_group_boxes(points, np.repeat([0, 1, 2], [len(standing), len(hanging), len(speck)]))
    expected = [[0.2, 0.15, 0.45, 0.4, 0.3, 0.9], [2.25, 1.1, 1.35, 0.5, 0.2, 0.3]]
    np.testing.assert_allclose(boxes, expected, atol=0.065)
    assert areas[0] > areas[1] > 0


def test_level_surfaces_reach_down_to_the_floor_and_what_lies_on_them_is_told_apart():
    top = make_cloud((0, 0, 0), (1.2, 0.6, 0.05), 0.05) * [1, 1, 0] + [0, 0, 0.7]
    boxes, areas = get_level_boxes(top)
    np.testing.assert_allclose(boxes, [[0.6, 0.3, 0.35, 1.2, 0.6, 0.7]], atol=0.06)
    assert areas == pytest.approx([0.72], rel=0.2)
    cup, plate = make_cloud((0.5, 0.2, 0.76), (0.6, 0.3, 0.9)), make_cloud((0, 0, 0.69), (1.2, 0.6, 0.71))
    assert not find_level(cup, top).any() and find_level(plate, top).all()
    assert not find_level(cup, np.zeros((0, 3))).any()


def test_what_groupings_agree_on_comes_first_and_copies_go():
    shared, larger = np.array([0, 0, 0, 1, 1, 1.0]), np.array([0, 0, 0, 1, 1, 1.4])
    almost, alone = shared + [0.02, 0, 0, 0, 0, 0], np.array([5, 5, 0, 1, 1, 1.0])
    groupings = [
        (np.stack([alone, shared]), np.array([1.2, 1.0])),
        (almost[None], np.array([0.9])),
        (larger[None], np.array([0.9])),
    ]
    found = rank_groupings(groupings)
    assert isinstance(found, Proposals)
    np.testing.assert_allclose(found.boxes, np.stack([shared, larger, alone]).astype(np.float32))
    np.testing.assert_allclose(found.agreement, [1, 1, 1 / 3])
    np.testing.assert_allclose(found.areas, [1.0, 0.9, 1.2])
