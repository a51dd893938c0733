"""Scans turned any way come back upright, and the surface that says so: planes, normals, votes, all from depth."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from ross3d.data.scene import Scene
from ross3d.data.surface import (
    count_voxel_votes,
    find_upright_planes,
    fit_inverse_planes,
    pool_inverse_depth,
    sample_surface,
)
from ross3d.data.upright import (
    LOW_CONFIDENCE,
    UprightEstimate,
    UprightWarning,
    align_scene,
    estimate_upright,
    find_floor_height,
    find_heading,
)
from ross3d.geometry_ross3d import unproject
from ross3d.scenes.build import make_scene
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import make_cameras, make_room


# Rooms that the constants were not chosen on.
SEED = 7
SIZES = {"few small": (6, (64, 48)), "many": (14, (160, 120)), "portrait": (9, (72, 96))}


def make_scan(index: int, num_views: int = 12, image_size: tuple[int, int] = (96, 72)) -> Scene:
    """A room in its upright world, without what only an aligned scene has."""
    scene, *_ = make_scene(SEED, "train", index, num_views, image_size)
    return replace(scene, boxes=None, box_labels=None, bev_image=None, bev_valid=None, bev_bounds=None)


def draw_motion(index: int) -> np.ndarray:
    """Any rotation (4, 4) about any axis, and a shift of some metres."""
    motion = np.eye(4)
    motion[:3, :3] = Rotation.random(rng=index).as_matrix()
    motion[:3, 3] = np.random.default_rng(index).uniform(-4, 4, 3)
    return motion


def move(scene: Scene, motion: np.ndarray) -> Scene:
    return replace(scene, cam2world=motion @ scene.cam2world)


def measure(estimate: UprightEstimate, motion: np.ndarray) -> tuple[float, float, float]:
    """Degrees of tilt, degrees between walls and axes, metres of the true floor's middle above or below z = 0."""
    found = estimate.axis_align_matrix @ motion
    turn = np.rad2deg(np.arctan2(found[1, 0], found[0, 0]))
    tilt = np.rad2deg(np.arccos(np.clip(found[2, 2], -1, 1)))
    return tilt, abs((turn + 45) % 90 - 45), abs(float(np.linalg.inv(found)[2, 3]))


def get_points(scene: Scene) -> np.ndarray:
    """World points (V, H, W, 3)."""
    arrays = (scene.depth_maps, scene.intrinsics, scene.cam2world)
    return unproject(*(torch.from_numpy(np.asarray(array)) for array in arrays)).numpy()


def cut(scene: Scene, keep) -> Scene:
    """No readings where `keep` of the world points (..., 3) says so."""
    return replace(scene, depth_maps=np.where(keep(get_points(scene)), scene.depth_maps, 0).astype(np.float32))


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_a_turned_room_stands_upright_again(kind, index):
    motion = draw_motion(10 * index + len(kind))
    scan = move(make_scan(index, *SIZES[kind]), motion)
    estimate = estimate_upright(scan)
    tilt, turn, height = measure(estimate, motion)
    assert tilt < 1 and turn < 3 and height < 0.03
    assert estimate.confidence > 0.75 and estimate.floor_area > 2 and estimate.num_views == scan.num_views
    aligned = align_scene(scan, estimate)
    assert aligned.scene_id == scan.scene_id and aligned.depth_maps is scan.depth_maps
    points = get_points(aligned)[scan.depth_maps > 0]
    # The room is a box, so nothing but the floor's error lies below z = 0, and much lies on it.
    assert np.quantile(points[:, 2], 0.002) > -0.05 and (np.abs(points[:, 2]) < 0.03).mean() > 0.05


def test_the_first_camera_looks_towards_y_and_the_floor_lies_about_the_origin():
    for index in range(4):
        scan = move(make_scan(index), draw_motion(index))
        aligned = align_scene(scan, estimate_upright(scan))
        looking = aligned.cam2world[0, :3, 2]
        assert looking[1] >= abs(looking[0]) - 1e-6
        points = get_points(aligned)[scan.depth_maps > 0]
        floor = points[np.abs(points[:, 2]) < 0.03]
        assert np.all(np.abs(np.median(floor[:, :2], axis=0)) < 1.0)


def test_the_same_scan_in_another_world_ends_in_the_same_place():
    first, second = (move(make_scan(5), draw_motion(index)) for index in (1, 2))
    ends = [align_scene(scan, estimate_upright(scan)).cam2world for scan in (first, second)]
    np.testing.assert_allclose(ends[0], ends[1], atol=0.02)
    again = align_scene(first, estimate_upright(first)).cam2world
    np.testing.assert_array_equal(ends[0], again)


def test_noisy_depth_with_holes():
    """Disparity noise of 1.6 cm at 3 m, steps of its resolution, a tenth of the readings missing, none beyond 5 m."""
    for index in range(3):
        scan, rng = make_scan(index, 12, (160, 120)), np.random.default_rng(index)
        inverse = 1 / np.maximum(scan.depth_maps, 0.1) + rng.normal(0, 0.0018, scan.depth_maps.shape)
        depth = 1 / np.maximum(np.round(inverse / 0.0028) * 0.0028, 0.0028)
        depth = np.where((rng.random(depth.shape) < 0.1) | (depth > 5), 0, depth).astype(np.float32)
        motion = draw_motion(index)
        estimate = estimate_upright(move(replace(scan, depth_maps=depth), motion))
        tilt, turn, height = measure(estimate, motion)
        assert tilt < 1 and turn < 3 and height < 0.03 and estimate.confidence > LOW_CONFIDENCE


def make_rolled_scan(index: int, rolls) -> Scene:
    """A room seen by cameras that are turned about their own axis, degrees (V,)."""
    room, rng = make_room(SEED, "train", index)
    intrinsics, cam2world = make_cameras(room, rng, len(rolls), (96, 72))
    cam2world[:, :3, :3] @= Rotation.from_euler("z", np.reshape(rolls, (-1, 1)), degrees=True).as_matrix()
    seen = render_room(room, intrinsics, cam2world, (96, 72))
    return Scene(f"rolled-{index}", seen.images, seen.depth_maps, intrinsics, cam2world)


def test_cameras_held_by_hand():
    for index in range(4):
        rolls = np.random.default_rng(index).normal(0, 15, 11)
        motion = draw_motion(index)
        estimate = estimate_upright(move(make_rolled_scan(index, rolls), motion))
        tilt, turn, height = measure(estimate, motion)
        assert tilt < 1 and turn < 3 and height < 0.03 and estimate.confidence > 0.75


WORLDS = {
    "z up": np.eye(4),
    "y up": np.array([[1.0, 0, 0, 0.3], [0, 0, 1, -0.2], [0, -1, 0, 1.1], [0, 0, 0, 1]]),
    "x up": np.array([[0.0, 0, 1, 0], [1, 0, 0, 0.7], [0, 1, 0, 0], [0, 0, 0, 1]]),
    "any": draw_motion(12),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("degrees", "turns"), [(90.0, 3), (-90.0, 1), (180.0, 2)])
def test_pictures_that_lie_on_their_side_turn_no_world(degrees, turns, world):
    """Their cameras are right, whatever edge of the picture is up, so the floor is found all the same and is told."""
    for index in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scan = move(make_rolled_scan(index, np.full(11, degrees)), WORLDS[world])
            estimate = estimate_upright(scan)
        tilt, turn, height = measure(estimate, WORLDS[world])
        assert tilt < 1 and turn < 3 and height < 0.03 and estimate.confidence > 0.7
        assert estimate.picture_turns == turns and "give --rotate auto" in estimate.describe_pictures()
        assert estimate.tilt == pytest.approx({"z up": 0, "y up": 90, "x up": 90}.get(world, estimate.tilt), abs=1)
    assert ("stand on their head" if turns == 2 else "lie on their side") in estimate.describe_pictures()


def test_upright_pictures_in_a_world_with_z_down():
    """The ceiling could be the floor of pictures on their head: what stands between the two says which it is."""
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    for index in range(3):
        estimate = estimate_upright(move(make_scan(index), down))
        assert estimate.picture_turns == 0 and measure(estimate, down)[0] < 1 and estimate.tilt > 179
        assert estimate.describe_pictures() is None


def test_cameras_rolled_in_all_ways_are_not_trusted():
    """No edge of the pictures is up: nothing says where up is."""
    rolls = np.linspace(0, 330, 12)
    with pytest.warns(UprightWarning, match="weakest evidence: camera"):
        estimate_upright(move(make_rolled_scan(1, rolls), WORLDS["any"]))


def test_an_estimate_tells_what_speaks_for_it():
    estimate = estimate_upright(make_scan(2))
    assert set(estimate.evidence) == {"cameras", "votes", "floor", "nothing below", "camera height", "walls"}
    assert estimate.confidence == min(estimate.evidence.values()) == estimate.evidence[estimate.weakest]
    text = estimate.describe()
    assert f"confidence {estimate.confidence:.2f}" in text and f"{estimate.num_patches} flat patches" in text
    assert "floor lie within" in text and estimate.floor_height_error < 0.02


def test_little_evidence_is_said():
    """The floor out of view: what is taken for it, table tops and the like, stands too near the cameras."""
    scan = cut(make_scan(1), lambda points: points[..., 2] > 0.6)
    with pytest.warns(
        UprightWarning, match=r"train-000001.*confidence of only 0\.\d\d \(weakest evidence: .*axis_ali"
    ):
        estimate = estimate_upright(scan)
    assert estimate.confidence < LOW_CONFIDENCE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate_upright(make_scan(1))


def make_wall(num_views: int = 2) -> Scene:
    """Views of one wall, straight ahead."""
    return Scene(
        scene_id="wall",
        images=np.zeros((num_views, 30, 40, 3), np.uint8),
        depth_maps=np.full((num_views, 30, 40), 2.0, np.float32),
        intrinsics=np.array([[40.0, 0, 19.5], [0, 40.0, 14.5], [0, 0, 1]]),
        cam2world=np.tile(np.eye(4), (num_views, 1, 1)),
    )


@pytest.mark.parametrize("kind", ["wall", "no reading", "no floor"])
def test_without_a_floor_there_is_no_estimate(kind):
    scan = make_wall()
    if kind == "no reading":
        scan.depth_maps = np.zeros_like(scan.depth_maps)
    if kind == "no floor":
        # Upright surfaces only: nothing level is left of the room.
        scan = cut(make_scan(3), lambda points: (points[..., 2] > 1.6) & (points[..., 2] < 2.2))
    with pytest.raises(
        ValueError, match=r"expected a floor to set upright by, found no level surface.*as --axis-align"
    ):
        estimate_upright(scan)


def test_depth_and_cameras_are_needed():
    for missing in ("depth_maps", "cam2world", "intrinsics"):
        with pytest.raises(ValueError, match=r"'wall': finding surfaces needs depth_maps, intrinsics and cam2world"):
            estimate_upright(replace(make_wall(), **{missing: None}))


def test_what_is_aligned_already_is_not_aligned_by_estimate():
    scene, *_ = make_scene(SEED, "train", 4, 6, (64, 48))
    estimate = estimate_upright(scene)
    with pytest.raises(ValueError, match="expected a scan without boxes and bev_image to align by estimate"):
        align_scene(scene, estimate)
    with pytest.raises(ValueError, match="expected a scan without boxes to align by estimate"):
        align_scene(replace(scene, bev_image=None, bev_valid=None), estimate)


def test_the_floor_is_the_lowest_large_plane():
    heights = np.concatenate([np.full(400, 0.101), np.full(900, 0.84), np.full(20, -0.4)])
    assert find_floor_height(heights, np.ones(len(heights))) == pytest.approx(0.1, abs=0.02)
    assert find_floor_height(np.zeros(0), np.zeros(0)) is None
    assert find_floor_height(np.linspace(0, 90, 300), np.ones(300)) is None


def test_the_heading_is_the_one_most_walls_share():
    rng = np.random.default_rng(0)
    angles = np.concatenate([89.2 + rng.normal(0, 0.5, 300) + 90 * rng.integers(0, 4, 300), rng.uniform(0, 360, 150)])
    heading, share = find_heading(angles, np.ones(len(angles)))
    assert abs((heading - 89.2 + 45) % 90 - 45) < 0.3 and 0.66 < share < 0.85


def test_normals_and_points_lie_on_a_tilted_plane():
    """A plane n . X = d seen by a turned camera; readings of a corner are missing."""
    motion = draw_motion(3)
    scene = make_wall(1)
    normal, distance = np.array([0.3, -0.8, -0.6]), -1.5
    normal /= np.linalg.norm(normal)
    v, u = np.indices((30, 40))
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(scene.intrinsics).T
    with np.errstate(divide="ignore"):
        depth = distance / (rays @ normal)
    scene.depth_maps = np.where((depth > 0) & (depth < 6), depth, 0).astype(np.float32)[None]
    scene.depth_maps[0, :12, :12] = 0
    surface = sample_surface(move(scene, motion))
    assert len(surface.points) > 200 and (surface.views == 0).all()
    in_camera = (surface.points - motion[:3, 3]) @ motion[:3, :3]
    np.testing.assert_allclose(in_camera @ normal, distance, atol=1e-4)
    np.testing.assert_allclose(surface.normals @ motion[:3, :3], np.tile(normal, (len(in_camera), 1)), atol=1e-3)


def test_no_patch_bridges_an_edge_of_depth():
    depth = np.full((24, 36), 1.0)
    depth[:, 18:] = 3.0
    inverse, u, v, valid = pool_inverse_depth(depth, 2)
    assert inverse.shape == (12, 18) and valid.all() and u[0, 1] == 2.5 and v[1, 0] == 2.5
    coefficients, flat = fit_inverse_planes(inverse, u, v, valid)
    assert coefficients.shape == (10, 16, 3) and not flat[:, 7:9].any() and flat[:, :7].all() and flat[:, 9:].all()


def test_maps_too_small_for_a_patch_have_none():
    scene = make_wall(2)
    scene.depth_maps = scene.depth_maps[:, :2, :]
    assert len(sample_surface(scene).points) == 0


def test_every_voxel_has_one_vote():
    votes = count_voxel_votes(np.array([[0.01, 0, 0], [0.04, 0, 0], [0.02, 0.01, 0], [0.3, 0, 0]]), 0.05)
    np.testing.assert_allclose(votes, [1 / 3, 1 / 3, 1 / 3, 1])


def test_the_walls_of_a_room_are_its_largest_upright_planes():
    scene, room, _ = make_scene(SEED, "train", 6, 20, (120, 90))
    surface = sample_surface(scene)
    planes = find_upright_planes(surface, count_voxel_votes(surface.points, 0.05), 0.05, 1.5)
    assert [plane.area for plane in planes] == sorted((plane.area for plane in planes), reverse=True)
    for axis, side in ((0, 0), (0, 1), (1, 0), (1, 1)):
        inwards = np.eye(2)[axis] * (1 - 2 * side)
        wall = inwards[axis] * (room.low, room.high)[side][axis]
        near = [plane for plane in planes if plane.normal @ inwards > 0.999 and abs(plane.offset - wall) < 0.03]
        assert len(near) == 1 and near[0].top > 1.8
        assert 0.5 * (room.high - room.low)[1 - axis] < near[0].end - near[0].start
    floor = sample_surface(cut(scene, lambda points: points[..., 2] < 0.01))
    assert find_upright_planes(floor, count_voxel_votes(floor.points, 0.05), 0.05, 1.0) == []
