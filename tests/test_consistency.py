"""Views that do not belong together are noticed, with the reason, wherever scans are read; those that do are not.

Rooms, sizes and seeds are not those that the constants of `data/consistency.py` were chosen on.
"""

import os
import re
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ross3d.data.consistency import (
    Cameras,
    ConsistencyWarning,
    check_consistency,
    find_disagreement,
    get_cameras,
    make_planar,
    measure_agreement,
    measure_scene_agreement,
    pair_views,
    sample_points,
    sample_readings,
)
from ross3d.data.scene import Scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.scenes.build import make_scene
from ross3d.scenes.rooms import look_at


KITCHEN = Path(os.environ.get("ROSS3D_KITCHEN", Path(__file__).resolve().parents[1].parent / "shared" / "kitchen"))
SEED = 77


@cache
def make_scan(index: int = 0, num_views: int = 9, image_size: tuple[int, int] = (80, 60)) -> Scene:
    """A room with posed depth and nothing else."""
    scene, *_ = make_scene(SEED, "train", index, num_views, image_size)
    return replace(scene, boxes=None, box_labels=None, bev_image=None, bev_valid=None, bev_bounds=None)


def with_rotation(cam2world: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    cam2world = cam2world.copy()
    cam2world[:, :3, :3] = rotation
    return cam2world


def with_translation(cam2world: np.ndarray, translation: np.ndarray) -> np.ndarray:
    cam2world = cam2world.copy()
    cam2world[:, :3, 3] = translation
    return cam2world


def scale_intrinsics(intrinsics: np.ndarray, focal: float, centre: float) -> np.ndarray:
    scaled = np.array(intrinsics, np.float64)
    scaled[[0, 1], [0, 1]] *= focal
    scaled[:2, 2] = (scaled[:2, 2] + 0.5) * centre - 0.5
    return scaled


def turn_pictures(scene: Scene) -> Scene:
    """Pictures, depth and intrinsics a quarter turn counter-clockwise; the cameras stay."""
    width = scene.depth_maps.shape[2]
    k = np.asarray(scene.intrinsics)
    turned = np.array([[k[1, 1], 0, k[1, 2]], [0, k[0, 0], width - 1 - k[0, 2]], [0, 0, 1]])
    images, depth_maps = (np.ascontiguousarray(np.rot90(a, axes=(1, 2))) for a in (scene.images, scene.depth_maps))
    return replace(scene, images=images, depth_maps=depth_maps, intrinsics=turned)


def measure_along_rays(scene: Scene) -> np.ndarray:
    v, u = np.indices(scene.depth_maps.shape[1:])
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(scene.intrinsics).T
    return (scene.depth_maps * np.linalg.norm(rays, axis=-1)).astype(np.float32)


def misread_quaternions(cam2world: np.ndarray) -> np.ndarray:
    quaternions = Rotation.from_matrix(cam2world[:, :3, :3]).as_quat()
    return with_rotation(cam2world, Rotation.from_quat(np.roll(quaternions, 1, axis=1)).as_matrix())


def swap(cam2world: np.ndarray, first: int, second: int) -> np.ndarray:
    order = np.arange(len(cam2world))
    order[[first, second]] = second, first
    return cam2world[order]


SWAP_YZ = np.eye(3)[[0, 2, 1]]
CAMERA_FAULTS = {
    "inverted": (np.linalg.inv, "poses are world to camera where camera to world is expected"),
    "inverted, OpenGL": (
        lambda c: np.diag([1.0, -1, -1, 1]) @ np.linalg.inv(c) @ np.diag([1.0, -1, -1, 1]),
        "world to camera where camera to world is expected, in OpenGL axes",
    ),
    "OpenGL": (
        lambda c: c @ np.diag([1.0, -1, -1, 1]),
        r"OpenGL axes \(x right, y up, z backward\) stand where OpenCV",
    ),
    "PyTorch3D": (lambda c: c @ np.diag([-1.0, -1, 1, 1]), "PyTorch3D axes"),
    "rotation transposed": (
        lambda c: with_rotation(c, c[:, :3, :3].transpose(0, 2, 1)),
        "the rotations are world to camera, the translations camera to world",
    ),
    "translation of the inverse": (
        lambda c: with_translation(c, np.linalg.inv(c)[:, :3, 3]),
        "the translations are world to camera, the rotations camera to world",
    ),
    "quaternions": (misread_quaternions, "quaternions .* were read as"),
    "y and z of translations": (
        lambda c: with_translation(c, c[:, [0, 2, 1], 3]),
        "y and z of the translations are exchanged",
    ),
    "y and z of everything": (
        lambda c: with_translation(with_rotation(c, SWAP_YZ @ c[:, :3, :3] @ SWAP_YZ), c[:, [0, 2, 1], 3]),
        "the y and z axes of world and cameras are exchanged",
    ),
    "millimetres": (lambda c: with_translation(c, c[:, :3, 3] * 1000), "translations are in millimetres"),
    "y of everything": (
        lambda c: np.diag([1.0, -1, 1, 1]) @ c @ np.diag([1.0, -1, 1, 1]),
        r"mirrored top to bottom against their cameras, or the world is left-handed \(as in Unity\), its y axis",
    ),
    "feet": (lambda c: with_translation(c, c[:, :3, 3] * 3.28), "translations are in feet"),
    "0.6": (lambda c: with_translation(c, c[:, :3, 3] * 0.6), r"differ in unit: translations times 1\.[67]"),
    "1.7": (lambda c: with_translation(c, c[:, :3, 3] * 1.7), r"differ in unit: translations times 0\.[56]"),
    "reversed": (lambda c: c[::-1], "the reverse order of the frames"),
    "shifted": (lambda c: np.roll(c, -1, axis=0), "every frame has the pose of the frame after it"),
    "two swapped": (lambda c: swap(c, 2, 6), "frame-000002 and frame-000006 have each other's pose"),
}


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("fault", CAMERA_FAULTS)
def test_wrong_cameras_are_named(fault, index):
    spoil, reason = CAMERA_FAULTS[fault]
    scene = make_scan(index)
    wrong = replace(scene, cam2world=np.ascontiguousarray(spoil(scene.cam2world)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, ConsistencyWarning), match=rf"'train-00000{index}'.*do not agree.*{reason}"):
            check_consistency(wrong)
        check_consistency(scene)


DEPTH_FAULTS = {
    "half-size intrinsics": (
        lambda s: replace(s, intrinsics=scale_intrinsics(s.intrinsics, 0.5, 0.5)),
        "the intrinsics are of a picture of about 40x30 pixels, the depth maps have 80x60; multiply fx, fy, .* by 2",
    ),
    "focal of twice the size": (
        lambda s: replace(s, intrinsics=scale_intrinsics(s.intrinsics, 2, 1)),
        r"the focal lengths are not those of the depth maps.*multiply fx and fy by 0\.(4[5-9]|5[0-5])",
    ),
    "transposed": (lambda s: replace(s, intrinsics=s.intrinsics.T.copy()), "the intrinsics are transposed"),
    "x and y exchanged": (
        lambda s: replace(s, intrinsics=s.intrinsics[[1, 0, 2]][:, [1, 0, 2]].copy()),
        "x and y of the intrinsics are exchanged",
    ),
    "along the ray": (
        lambda s: replace(s, depth_maps=measure_along_rays(s)),
        "the depth maps hold distances along the ray",
    ),
    "5000 units": (lambda s: replace(s, depth_maps=s.depth_maps * np.float32(5)), "depth of 5000 units a metre"),
    "pictures turned": (turn_pictures, "pictures and depth maps are turned by a quarter or half turn"),
    "depth left to right": (
        lambda s: replace(s, depth_maps=s.depth_maps[:, :, ::-1].copy()),
        "either the depth maps are mirrored left to right against their cameras, or the world is left-handed, its x",
    ),
    "depth top to bottom": (
        lambda s: replace(s, depth_maps=s.depth_maps[:, ::-1].copy()),
        "either the depth maps are mirrored top to bottom against their cameras, or the world is left-handed",
    ),
    "depth upside down": (
        lambda s: replace(s, depth_maps=s.depth_maps[:, ::-1, ::-1].copy()),
        "the depth maps are turned by 180 degrees against their cameras and pictures; turn the depth maps",
    ),
    "shuffled": (
        lambda s: replace(s, cam2world=s.cam2world[np.random.default_rng(4).permutation(s.num_views)]),
        "no usual mistake explains it",
    ),
}


@pytest.mark.parametrize("index", [2, 3])
@pytest.mark.parametrize("fault", DEPTH_FAULTS)
def test_wrong_depth_or_intrinsics_are_named(fault, index):
    spoil, reason = DEPTH_FAULTS[fault]
    wrong = spoil(make_scan(index))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ValueError, ConsistencyWarning), match=reason):
            check_consistency(wrong)


def test_a_frame_with_a_foreign_pose_is_named():
    """Of many views one looks 35 degrees up or down from where it looked."""
    scene = make_scan(4, num_views=18)
    stray = scene.cam2world.copy()
    stray[7, :3, :3] = stray[7, :3, :3] @ Rotation.from_euler("x", 35, degrees=True).as_matrix()
    with pytest.warns(ConsistencyWarning, match="frame-000007: pose or depth does not fit the other views"):
        check_consistency(replace(scene, cam2world=stray))


def spoil_depth(scene: Scene, kind: str) -> Scene:
    """What sensors and trackers do to a right scan."""
    rng, depth, cam2world = np.random.default_rng(5), scene.depth_maps, scene.cam2world
    if kind == "noise":
        depth = depth * (1 + rng.normal(0, 0.02, depth.shape))
    if kind == "holes":
        depth = np.where(rng.random(depth.shape) < 0.4, 0, depth)
    if kind == "sparse":
        depth = np.where(rng.random(depth.shape) < 0.95, 0, depth)
    if kind == "blank views":
        depth = depth * (np.arange(len(depth)) % 3 > 0)[:, None, None]
    if kind == "somebody walks by":
        depth = depth.copy()
        for view in range(0, len(depth), 2):
            depth[view, :, 20:35] = np.minimum(depth[view, :, 20:35], 1.0)
    if kind == "drift":
        cam2world = cam2world.copy()
        cam2world[:, :3, 3] += np.cumsum(rng.normal(0, 0.012, (len(cam2world), 3)), axis=0)
    return replace(scene, depth_maps=depth.astype(np.float32), cam2world=cam2world)


@pytest.mark.parametrize("kind", ["clean", "noise", "holes", "sparse", "blank views", "somebody walks by", "drift"])
@pytest.mark.parametrize(("num_views", "image_size"), [(3, (64, 48)), (8, (48, 64)), (20, (80, 60))])
def test_right_scans_pass_in_silence(kind, num_views, image_size):
    for index in (5, 6):
        scene = spoil_depth(make_scan(index, num_views, image_size), kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_consistency(scene)


@pytest.mark.parametrize("factor", [0.0021, 0.013, 0.045, 0.1, 0.23, 6.55, 9.3, 10, 20, 41, 170, 640])
def test_translations_off_by_any_factor_are_told(factor):
    """Between and beyond known units; the more so where views do not meet, which leaves no doubt."""
    scene = make_scan(1)
    wrong = replace(scene, cam2world=with_translation(scene.cam2world, factor * scene.cam2world[:, :3, 3]))
    found = find_disagreement(get_cameras(wrong), scene.view_names)
    told = float(re.search(r"multiply the translations by ([\d.e-]+)", found.remedy)[1])
    assert told == pytest.approx(1 / factor, rel=0.05) and found.is_unit
    assert found.certain or factor < 1


@pytest.mark.parametrize(("num_views", "factor"), [(12, 8), (18, 5)])
def test_large_maps_take_no_longer_where_no_mistake_is_found(monkeypatch, num_views, factor):
    """All poses exchanged: every mistake is tried, and readings are looked for in few maps, once each."""
    scene, looked_at = make_scan(3, num_views), []
    depth_maps = scene.depth_maps.repeat(factor, axis=1).repeat(factor, axis=2)
    depth_maps[np.random.default_rng(1).random(depth_maps.shape) < 0.7] = 0
    intrinsics = scale_intrinsics(scene.intrinsics, factor, factor)
    order = np.random.default_rng(2).permutation(num_views)
    wrong = replace(scene, depth_maps=depth_maps, intrinsics=intrinsics, cam2world=scene.cam2world[order])

    def sample(depth_maps, num_readings):
        looked_at.append(num_readings)
        return sample_readings(depth_maps, num_readings)

    monkeypatch.setattr("ross3d.data.consistency.sample_readings", sample)
    found = find_disagreement(get_cameras(wrong), scene.view_names)
    assert found.reason.startswith("no usual mistake explains it") and 0 < len(looked_at) <= 12  # measured: 8


@pytest.mark.parametrize("shape", [(4, 6), (30, 20)])
def test_distances_along_rays_become_depth(shape):
    rng = np.random.default_rng(0)
    points = np.stack([*np.indices(shape)[::-1], np.ones(shape)]).reshape(3, -1)
    intrinsics = np.array([[[20.0, 0, 3], [0, 25, 2], [0, 0, 1]], [[30.0, 0, 2], [0, 28, 4], [0, 0, 1]]])
    depth = rng.uniform(0.5, 3, (2, *shape))
    lengths = np.linalg.norm(np.linalg.inv(intrinsics) @ points, axis=1).reshape(2, *shape)
    cameras = Cameras((depth * lengths).astype(np.float32), intrinsics, np.stack([np.eye(4)] * 2))
    assert np.allclose(make_planar(cameras).depth_maps, depth, atol=1e-5)


def test_no_factor_is_told_where_any_would_do():
    """Each camera sees a wall of its own, 9 m from the next: brought together, in any unit, they would agree."""
    facing = make_facing(2.0)
    cam2world = np.stack([look_at(np.array([x, 0.0, 1.0]), np.array([x, 5.0, 1.0])) for x in (0.0, 9.0, 18.0, 27.0)])
    cameras = Cameras(facing.depth_maps[[0] * 4], facing.intrinsics[[0] * 4], cam2world)
    assert measure_agreement(cameras).num_compared == 0 and find_disagreement(cameras, list("abcd")) is None
    one_place = replace(cameras, cam2world=cam2world[[0] * 4])
    assert find_disagreement(one_place, list("abcd")) is None


def test_bounds_are_not_told_of_a_scan_in_another_unit(tmp_path):
    """Shuffled too, so that no factor puts it right: the unit is told, and no alignment as the way out."""
    scene = make_scan(1, 3, (64, 48))
    folder = write(
        replace(scene, cam2world=with_translation(scene.cam2world[[1, 2, 0]], 150 * scene.cam2world[:, :3, 3])),
        tmp_path / "apart",
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_scene(folder)
    told = [str(one.message) for one in caught]
    assert any("give translations and depth in metres" in text for text in told), told
    assert not any("scene_bounds" in text for text in told)


def test_views_that_see_nothing_in_common_pass_in_silence():
    rooms = [make_scan(index, 2, (64, 48)) for index in range(7, 11)]
    cam2world = np.concatenate([room.cam2world[:1] for room in rooms])
    cam2world[:, 0, 3] += 9.0 * np.arange(4)
    scene = Scene(
        scene_id="flat",
        images=np.concatenate([room.images[:1] for room in rooms]),
        depth_maps=np.concatenate([room.depth_maps[:1] for room in rooms]),
        intrinsics=np.stack([room.intrinsics for room in rooms]),
        cam2world=cam2world,
    )
    assert measure_scene_agreement(scene) is None and find_disagreement(get_cameras(scene), list("abcd")) is None


def test_cameras_far_apart_that_see_nothing_in_common_are_told():
    scene = make_scan(1, 3, (64, 48))
    # Shuffled too, so that no unit puts it right.
    cam2world = with_translation(scene.cam2world[[1, 2, 0]], 1e4 * scene.cam2world[:, :3, 3])
    with pytest.warns(ConsistencyWarning, match="many times further apart than anything they see; give translations"):
        check_consistency(replace(scene, cam2world=cam2world))


def test_what_cannot_be_compared_is_not_judged():
    scene = make_scan(0, 4)
    for bare in (
        replace(scene, depth_maps=None),
        replace(scene, cam2world=None),
        replace(scene, images=scene.images[:1], depth_maps=scene.depth_maps[:1], cam2world=scene.cam2world[:1]),
    ):
        assert get_cameras(bare) is None and measure_scene_agreement(bare) is None
        check_consistency(bare)


def make_facing(distance: float) -> Cameras:
    """Two cameras on the x axis, one metre apart, that look at a wall 2 m ahead; the second reads another depth."""
    depth = np.full((2, 30, 40), 2.0, np.float32)
    depth[1] = distance
    cam2world = np.stack([look_at(np.array([x, 0.0, 1.0]), np.array([x, 5.0, 1.0])) for x in (0.0, 1.0)])
    intrinsics = np.tile(np.array([[30.0, 0, 19.5], [0, 30.0, 14.5], [0, 0, 1]]), (2, 1, 1))
    return Cameras(depth, intrinsics, cam2world)


def test_readings_agree_contradict_or_are_hidden():
    """The wall in both; in the second 1 m behind it (the first's readings float before it); 1 m in front of it."""
    same = measure_agreement(make_facing(2.0))
    assert same.share == 1.0 and same.contradicting.sum() == 0 and same.agreeing.min() > 50
    behind = measure_agreement(make_facing(3.0))
    counts = np.stack([behind.agreeing, behind.contradicting], axis=1).tolist()
    by_pair = dict(zip(map(tuple, behind.pairs.T), counts, strict=True))
    assert by_pair[0, 1][0] == 0 and by_pair[0, 1][1] > 50 and by_pair[1, 0] == [0, 0]
    # 5 cm off is noise, twice the tolerance is not.
    assert measure_agreement(make_facing(2.05)).share == 1.0
    assert np.isnan(measure_agreement(make_facing(0.0)).share)


def test_pairs_and_readings():
    assert pair_views(4).shape == (2, 12) and (pair_views(4)[0] != pair_views(4)[1]).all()
    pairs = pair_views(40)
    assert len(np.unique(pairs.T, axis=0)) == pairs.shape[1] < 40 * 12 and set(pairs[0]) == set(range(40))
    depth = np.zeros((3, 20, 30), np.float32)
    depth[0] = 1.5
    depth[1, 3, 4:9] = 2.0
    columns, rows, depths = sample_readings(depth, 50)
    assert (depths[0] == 1.5).all() and len({*zip(columns[0], rows[0], strict=True)}) == 50
    assert (depths[1] > 0).sum() == 5 and set(columns[1, :5]) == {4, 5, 6, 7, 8} and (rows[1, :5] == 3).all()
    assert (depths[2] == 0).all()


def write(scene: Scene, folder: Path) -> Path:
    return write_rgbd_folder(scene, folder)


@pytest.mark.parametrize("index", [0, 3])
def test_inverted_poses_are_named_in_a_scan_that_is_aligned(tmp_path, index):
    """Once they are aligned they are no inverses any more."""
    scene = make_scan(index)
    align = np.eye(4)
    align[:3, :3] = Rotation.from_euler("zx", [40 + 60 * index, 90], degrees=True).as_matrix()
    align[:3, 3] = 2.5, -1.25, 0.75 + index
    folder = write(replace(scene, cam2world=np.linalg.inv(align) @ scene.cam2world), tmp_path / f"room-{index}")
    np.savetxt(folder / "axis_align.txt", align)
    assert measure_scene_agreement(read_scene(folder)) > 0.99
    points = sample_points(read_scene(folder))
    np.testing.assert_allclose(points, sample_points(scene), atol=2e-3)
    inverted = replace(scene, cam2world=np.linalg.inv(np.linalg.inv(align) @ scene.cam2world))
    folder = write(inverted, tmp_path / "inverted" / f"room-{index}")
    np.savetxt(folder / "axis_align.txt", align)
    with pytest.raises(
        ValueError, match="the poses are world to camera where camera to world is expected; write the inv"
    ):
        read_scene(folder)


def test_every_reading_of_a_scan_is_checked_and_told_once(tmp_path):
    """A warning once per process, an error each time, and again when the files changed."""
    scene = make_scan(0)
    odd = replace(scene, cam2world=scene.cam2world[np.random.default_rng(4).permutation(9)])
    folder = write(odd, tmp_path / "shuffled")
    with pytest.warns(ConsistencyWarning, match=r"scene 'shuffled': the views do not agree.*of \d+ depth readings"):
        read_scene(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConsistencyWarning)
        read_scene(folder)
    inverted = write(replace(scene, cam2world=np.linalg.inv(scene.cam2world)), tmp_path / "inverted")
    for _ in range(2):
        with pytest.raises(
            ValueError, match=r"scene 'inverted'.*Undoing one mistake makes 1?\d\d % agree.*write the inv"
        ):
            read_scene(inverted)


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="no kitchen scan; ROSS3D_KITCHEN says where it is")
def test_a_real_scan_agrees_and_its_faults_are_named():
    scene = read_scene(KITCHEN, num_views=16)
    assert measure_scene_agreement(scene) > 0.96
    with pytest.raises(ValueError, match="the views do not agree with each other: .*world to camera"):
        align = scene.axis_align_matrix
        # As its files would have them: inverted in the scan's own frame, and aligned by the reader.
        check_consistency(replace(scene, cam2world=align @ np.linalg.inv(np.linalg.inv(align) @ scene.cam2world)))
    with pytest.raises(ValueError, match=r"translations times 1\.[67]"):
        check_consistency(replace(scene, cam2world=with_translation(scene.cam2world, 0.6 * scene.cam2world[:, :3, 3])))
