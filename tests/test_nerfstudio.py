"""Folders with a transforms.json: equal to the room they were written from, whatever the exporter left out."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources import read_scene
from ross3d.data.sources.nerfstudio import read_nerfstudio
from ross3d.tests.raw_scannet import COLOR_SIZE, write_raw_scan
from ross3d.tests.scan_folders import (
    decode_colors,
    get_depth_metres,
    measure_misfit,
    save_transforms,
    write_nerfstudio,
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=5, index=2)


@pytest.fixture
def folder(raw, tmp_path):
    write_nerfstudio(raw, tmp_path / "capture")
    return tmp_path / "capture"


@pytest.fixture
def content(raw, tmp_path):
    return write_nerfstudio(raw, tmp_path / "other")


def change(folder, content, shared=None, **of_frame):
    """Write transforms.json with keys replaced, those of the first frame by `of_frame`; None takes a key out."""
    content = copy.deepcopy(content)
    for place, changes in ((content, shared or {}), (content["frames"][0], of_frame)):
        place |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del place[key]
    save_transforms(folder, content)
    return folder


def test_a_capture_is_the_room_it_was_written_from(raw, folder):
    scene = read_nerfstudio(folder)
    assert scene.scene_id == "capture" and scene.exclusions == {}
    assert scene.view_names == [f"images/frame_{index:05d}" for index in range(5)]
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-12
    assert np.abs(scene.intrinsics - raw.depth_intrinsics).max() < 1e-12
    assert read_nerfstudio(folder, num_views=3).view_names == [scene.view_names[index] for index in (0, 2, 4)]


def test_opengl_axes_are_turned(raw, folder, content):
    """Depth lies on the room's surfaces, to the half millimetre that it is rounded to and a slanted ray's length of
    it; with the file's own axes it does not."""
    scene = read_nerfstudio(folder)
    assert measure_misfit(scene, raw.room) < 1e-3
    scene.cam2world = np.array([frame["transform_matrix"] for frame in content["frames"]])
    assert measure_misfit(scene, raw.room) > 1


def test_depth_units_come_from_the_file_or_the_caller(raw, tmp_path):
    shared = {"camera_angle_x": 2 * np.arctan(COLOR_SIZE[0] / 2 / raw.color_intrinsics[0, 0])}
    content = write_nerfstudio(raw, tmp_path / "fine", shared, depth_unit=2.5e-4)
    scene = read_nerfstudio(tmp_path / "fine", depth_unit_scale_factor=2.5e-4)
    assert np.abs(scene.depth_maps - get_depth_metres(raw)).max() < 1e-6
    save_transforms(tmp_path / "fine", content | {"depth_unit_scale_factor": 2.5e-4})
    assert np.array_equal(read_nerfstudio(tmp_path / "fine").depth_maps, scene.depth_maps)
    assert np.abs(read_nerfstudio(tmp_path / "fine", depth_unit_scale_factor=5e-4).depth_maps / 2).max() == (
        pytest.approx(scene.depth_maps.max())
    )


UNITS = {
    1.0: r"expected metres, got a median depth of \d+ in .*; correct the unit: {}",
    0.01: r"views do not agree .* differ in unit: .*whichever makes both metres \({}",
    1e-5: r"the largest depth is \d+, which at 100000 units a metre is nearer than 0.05 m; correct the unit: {}",
}


@pytest.mark.parametrize("metres", UNITS)
@pytest.mark.parametrize(
    ("depth_key", "unit_key"),
    [("depth_file_path", "depth_unit_scale_factor"), ("depth_path", "integer_depth_scale")],
)
def test_depth_in_another_unit_names_the_key_that_says_so(raw, tmp_path, metres, depth_key, unit_key):
    folder = tmp_path / "capture"
    content = write_nerfstudio(raw, folder)
    for frame in content["frames"]:
        frame[depth_key] = frame.pop("depth_file_path")
    save_transforms(folder, content | {unit_key: metres})
    said = rf"{unit_key} = {metres:g} in {folder}/transforms.json \(metres a unit; 0.001 for millimetres\)"
    with pytest.raises(ValueError, match=UNITS[metres].format(said)):
        read_scene(folder)
    save_transforms(folder, content | {unit_key: 1e-3})
    with pytest.raises(ValueError, match=UNITS[metres].format(f"the argument depth_unit_scale_factor = {metres:g}")):
        read_scene(folder, depth_unit_scale_factor=metres)
    assert unit_key in read_scene(folder).units


def test_poses_in_another_unit_name_the_scale(raw, tmp_path):
    content = write_nerfstudio(raw, tmp_path / "capture")
    for scale in (100, 0.1):
        save_transforms(tmp_path / "capture", content | {"applied_scale": scale})
        message = rf"no depth_unit_scale_factor in .*translations are metres times applied_scale = {scale}\)"
        with pytest.raises(ValueError, match=f"views do not agree .*(differ in unit|translations are in).*{message}"):
            read_scene(tmp_path / "capture")


@pytest.mark.parametrize("unit_key", ["depth_unit_scale_factor", "integer_depth_scale"])
@pytest.mark.parametrize("depth_key", ["depth_file_path", "depth_path"])
@pytest.mark.parametrize("of_frame", [False, True])
def test_units_of_depth_count_under_either_name(raw, folder, content, unit_key, depth_key, of_frame):
    whole = json.loads(json.dumps(content))
    for frame in whole["frames"]:
        frame[depth_key] = frame.pop("depth_file_path")
        frame.update({unit_key: 2e-3} if of_frame else {})
    # A frame's own unit takes the place of the file's.
    whole |= {"integer_depth_scale": 0.7} if of_frame else {unit_key: 2e-3}
    save_transforms(folder, whole)
    assert np.allclose(read_nerfstudio(folder).depth_maps, 2 * get_depth_metres(raw), atol=1e-6)
    assert np.allclose(read_nerfstudio(folder, depth_unit_scale_factor=1e-3).depth_maps, get_depth_metres(raw))


def test_frames_may_name_their_depth_differently(raw, folder, content):
    """Every other frame by the other key and with another unit."""
    whole = json.loads(json.dumps(content))
    for frame in whole["frames"][1::2]:
        frame["depth_path"] = frame.pop("depth_file_path")
        frame["integer_depth_scale"] = 3e-3
    save_transforms(folder, whole)
    expected = get_depth_metres(raw)
    expected[1::2] *= 3
    assert np.allclose(read_nerfstudio(folder).depth_maps, expected, atol=1e-6)
    whole["frames"][1]["depth_unit_scale_factor"] = 1e-3
    save_transforms(folder, whole)
    message = (
        "images/frame_00001: expected one unit of depth, transforms.json says depth_unit_scale_factor = 0.001 and"
        " integer_depth_scale = 0.003 metres; leave the right one of the two"
    )
    with pytest.raises(ValueError, match=message):
        read_nerfstudio(folder)


def test_cameras_may_be_described_in_several_ways(raw, folder, content):
    """By an angle of view, by each frame, without size or centre: the middle of the picture then."""
    middle = raw.depth_intrinsics.copy()
    middle[:2, 2] = [15.5, 11.5]
    angle = 2 * np.arctan(COLOR_SIZE[0] / 2 / content["fl_x"])
    bare = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h", "camera_model", "k1"))
    for shared in (
        bare | {"camera_angle_x": angle},
        bare | {"fl_y": content["fl_y"]},
        dict.fromkeys(("cx", "cy", "w", "h")),
    ):
        found = read_nerfstudio(change(folder, content, shared)).intrinsics
        assert np.abs(found - middle).max() < 1e-9
    found = read_nerfstudio(change(folder, content, fl_x=2 * content["fl_x"])).intrinsics
    assert found.shape == (5, 3, 3) and found[0, 0, 0] == pytest.approx(2 * found[1, 0, 0])
    assert np.allclose(found[1:], raw.depth_intrinsics)


def test_worlds_that_were_scaled_or_lie_on_their_side(raw, folder, content):
    frames = copy.deepcopy(content["frames"])
    for frame in frames:
        matrix = np.array(frame["transform_matrix"])
        matrix[:3, 3] *= 0.3
        frame["transform_matrix"] = matrix[:3].tolist()
    scene = read_nerfstudio(change(folder, content, {"frames": frames, "applied_scale": 0.3}))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-9
    lying = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    for frame, cam2world in zip(frames, raw.cam2world, strict=True):
        frame["transform_matrix"] = (lying @ cam2world @ np.diag([1.0, -1, -1, 1])).tolist()
    upright = np.linalg.inv(lying)
    scene = read_nerfstudio(change(folder, content, {"frames": frames}), axis_align_matrix=upright)
    assert measure_misfit(scene, raw.room) < 1e-3
    boxes = read_nerfstudio(folder, axis_align_matrix=upright, boxes=raw.boxes).boxes
    assert np.array_equal(boxes, raw.boxes.astype(np.float32))


def test_pictures_alone(raw, folder, content):
    """Without depth, intrinsics are pixels of the picture, also of one that was decoded smaller."""
    frames = [{key: value for key, value in frame.items() if "depth" not in key} for frame in content["frames"]]
    for frame in frames:
        frame["file_path"] = frame["file_path"].removesuffix(".jpg")
    for shared in ({}, {"w": None, "h": None}):
        scene = read_nerfstudio(change(folder, content, {"frames": frames, **shared}))
        assert scene.depth_maps is None and scene.images.shape == (5, 48, 64, 3)
        assert np.abs(scene.intrinsics - raw.color_intrinsics).max() < 1e-12
        smaller = read_nerfstudio(folder, reduce_to=24)
        assert smaller.images.shape == (5, 24, 32, 3)
        assert np.abs(smaller.intrinsics - raw.depth_intrinsics).max() < 1e-9


def save_beside(file, suffix: str) -> None:
    """The same picture under another suffix, brighter, so that it is told from the first."""
    pixels = np.asarray(Image.open(file).convert("RGB"))
    Image.fromarray(np.clip(pixels.astype(int) + 40, 0, 255).astype(np.uint8)).save(file.with_suffix(suffix))


@pytest.mark.parametrize("suffix", [".png", ".webp", ".JPEG"])
def test_of_two_pictures_of_a_name_without_suffix_none_is_taken(folder, content, suffix):
    for frame in content["frames"]:
        frame["file_path"] = frame["file_path"].removesuffix(".jpg")
    wanted = read_nerfstudio(change(folder, content)).images
    save_beside(folder / "images" / "frame_00002.jpg", suffix)
    there = sorted([f"images/frame_00002{suffix}", "images/frame_00002.jpg"])
    told = rf"frame_00002: the picture does not exist \({', '.join(there)} lie there\); correct the name"
    with pytest.raises(FileNotFoundError, match=told):
        read_nerfstudio(folder, max_excluded=0)
    with pytest.warns(UserWarning, match=told):
        assert np.array_equal(read_nerfstudio(folder).images, np.delete(wanted, 2, axis=0))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_depth_of_the_same_name_is_not_the_picture_of_a_name_without_suffix(folder, content, suffix):
    wanted = read_nerfstudio(change(folder, content))
    for frame in content["frames"]:
        picture, depth = folder / frame["file_path"], folder / frame["depth_file_path"]
        depth.rename(picture.with_suffix(".png"))
        if suffix != ".jpg":
            Image.open(picture).save(picture.with_suffix(suffix), lossless=True)
            picture.unlink()
        frame["file_path"] = frame["file_path"].removesuffix(".jpg")
        frame["depth_file_path"] = f"{frame['file_path']}.png"
    scene = read_nerfstudio(change(folder, content))
    assert np.array_equal(scene.images, wanted.images) and np.array_equal(scene.depth_maps, wanted.depth_maps)
    for path in (folder.parent / "x" / ".." / folder.name, folder / ".." / folder.name):
        (folder.parent / "x").mkdir(exist_ok=True)
        assert np.array_equal(read_nerfstudio(path).images, wanted.images)


@pytest.mark.parametrize(("first", "second", "suffix"), [(0, 1, ".png"), (3, 2, ".webp")])
def test_pictures_that_differ_in_their_suffix_alone_are_two_views(folder, content, first, second, suffix):
    wanted = read_nerfstudio(change(folder, content))
    frames = content["frames"]
    other = folder / frames[second]["file_path"]
    name = frames[first]["file_path"].removeprefix("./").removesuffix(".jpg")
    Image.open(other).save(folder / f"{name}{suffix}", lossless=True)
    frames[second]["file_path"] = f"{name}{suffix}"
    scene = read_nerfstudio(change(folder, content))
    assert np.array_equal(scene.images, wanted.images)
    names = list(wanted.view_names)
    names[first], names[second] = f"{name}.jpg", f"{name}{suffix}"
    assert scene.view_names == names
    frames[second]["file_path"] = name
    with pytest.raises(
        ValueError, match=f"the picture '{name}' has two frames; each frame needs a picture of its own"
    ):
        read_nerfstudio(change(folder, content))


def test_lost_and_broken_frames_are_counted(folder, content):
    lost = np.full((4, 4), np.nan).tolist()
    change(folder, content, transform_matrix=lost)
    with pytest.warns(
        UserWarning, match=r"left out 1 of 5 frames \(tracking was lost: 1, such as scene 'capture', im"
    ):
        scene = read_nerfstudio(folder)
    assert scene.exclusions == {"images/frame_00000": "tracking was lost"} and scene.num_views == 4
    with pytest.raises(ValueError, match="images/frame_00000: cam2world is not finite, so tracking was lost there"):
        read_nerfstudio(folder, max_excluded=0)
    change(folder, content, depth_file_path=None)
    message = r"images/frame_00000.jpg: the frame has no depth_file_path although others have one; leave it out"
    with pytest.raises(FileNotFoundError, match=message):
        read_nerfstudio(folder, max_excluded=0)
    with pytest.warns(UserWarning, match="left out 1 of 5 frames .depth map is missing: 1, such as"):
        assert read_nerfstudio(folder).num_views == 4
    picture = folder / "images" / "frame_00003.jpg"
    picture.write_bytes(picture.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"frame_00003.jpg: the picture cannot be read \(image file is truncated"):
        read_nerfstudio(change(folder, content), max_excluded=0)
    picture.unlink()
    with pytest.warns(UserWarning, match=r"left out 1 of 5 frames \(picture is missing: 1, such as .*frame_00003.jpg"):
        assert read_nerfstudio(folder).num_views == 4


FAULTS = {
    "no frames": ({"frames": []}, {}, "transforms.json: expected frames, each with file_path and transform_matrix"),
    "no matrix": ({}, {"transform_matrix": None}, "expected frames, each with file_path and transform_matrix; export"),
    "one picture twice": (
        {},
        {"file_path": "images/frame_00002.jpg"},
        "transforms.json: the picture 'images/frame_00002' has two frames; each frame needs a picture of its own",
    ),
    "another shape": (
        {},
        {"transform_matrix": np.eye(3).tolist()},
        r"images/frame_00000.jpg: transform_matrix must be \(4, 4\) numbers, or their first three rows, got .*; exp",
    ),
    "words for a matrix": (
        {},
        {"transform_matrix": [["a", 0, 0, 1]] * 4},
        r"frame_00000.jpg: transform_matrix must be \(4, 4\) numbers, or their first three rows, got .*'a'",
    ),
    "words for a width": (
        {"w": "64 px"},
        {},
        "scene 'capture', images/frame_00000: w must be a finite number above 0, got '64 px'; correct the file",
    ),
    "no end of a centre": (
        {"cx": float("inf")},
        {},
        "images/frame_00000: cx must be a finite number above -inf, got inf; correct the file",
    ),
    "turned pictures": (
        {"w": 48, "h": 64},
        {},
        "images/frame_00000: cameras are of 48x64 pixels but the picture has 64x48, another aspect; was it cropped",
    ),
    "fisheye": (
        {"camera_model": "OPENCV_FISHEYE"},
        {},
        "scene 'capture', images/frame_00000: camera_model must be one of .*'OPENCV_FISHEYE'; undistort the pictures",
    ),
    "fisheye, as instant-ngp says it": (
        {"is_fisheye": True, "camera_model": None},
        {},
        "scene 'capture', images/frame_00000: camera_model must be one of .*, got is_fisheye = True; undistort the",
    ),
    "fisheye, of one frame": (
        {},
        {"is_fisheye": True},
        "camera_model must be one of .*, got is_fisheye = True; undistort the pictures",
    ),
    "no focal length": (
        {"fl_x": None, "fl_y": None},
        {},
        "images/frame_00000: transforms.json has neither fl_x nor camera_angle_x, for all frames or this one",
    ),
    "distorted": (
        {"k1": 0.2, "p1": 0.01},
        {},
        r"images/frame_00000: lens distortion \(k1, k2.*\) moves a corner by \d+\.\d pixels, more than 2% of the wid",
    ),
    "no scale": (
        {"applied_scale": 0},
        {},
        "scene 'capture': applied_scale must be a finite number above 0, got 0; correct",
    ),
    "words for a unit": (
        {"depth_unit_scale_factor": "mm"},
        {},
        "scene 'capture', .*: depth_unit_scale_factor must be a finite number above 0, got 'mm'; correct",
    ),
    "another spelling": (
        {"cx": None, "c_x": 30.0},
        {},
        "json: expected the key 'cx', got 'c_x', which is not read; rename",
    ),
    "another name": ({"cy": None, "ppy": 20.0}, {}, "transforms.json: expected the key 'cy', got 'ppy', which is not"),
    "capital letters": (
        {"k1": None, "K1": 0.3},
        {},
        "expected the key 'k1', got 'K1', which is not read; rename it, with its value",
    ),
    "a key in camel case": (
        {"camera_model": None, "cameraModel": "OPENCV"},
        {},
        "the key 'camera_model', got 'cameraMo",
    ),
    "a misspelt unit, of a frame": (
        {"depth_unit_scale_factor": None},
        {"depth_unit_scale_facter": 0.001},
        "expected the key 'depth_unit_scale_factor', got 'depth_unit_scale_facter'",
    ),
    "a list of coefficients": (
        {"distortion_params": [0, 0.3]},
        {},
        r"got distortion_params = \[0, 0.3\], which is not",
    ),
    "more coefficients": ({}, {"k5": 0.1}, "expected lens distortion as k1, k2, k3, k4, p1, p2, got k5 = 0.1, which"),
    "scaled cameras": ({}, {"transform_matrix": (2 * np.eye(4)).tolist()}, "cam2world of scene .*: expected rigid"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_captures_that_are_wrong_are_refused(folder, content, fault):
    shared, of_frame, message = FAULTS[fault]
    change(folder, content, shared, **of_frame)
    with pytest.raises(ValueError, match=message):
        read_nerfstudio(folder, max_excluded=0)


def test_keys_of_others_and_zeros_pass(folder, content):
    """What exporters write next to the keys that are read."""
    others = {
        "aabb_scale": 16, "orientation_override": "none", "distortion_params": [0, 0.0], "k5": 0, "n_frames": 5,
        "ply_file_path": "points.ply", "CX": 1.0,
    }  # fmt: skip
    plain = read_nerfstudio(folder)
    scene = read_nerfstudio(change(folder, content, others, colmap_im_id=3, blur_score=0.1))
    assert np.array_equal(scene.intrinsics, plain.intrinsics) and np.array_equal(scene.cam2world, plain.cam2world)


def test_a_little_distortion_and_missing_files(folder, content):
    assert read_nerfstudio(change(folder, content, {"k1": 0.01})).num_views == 5
    with pytest.raises(ValueError, match="depth_unit_scale_factor must be a finite number above 0, got 0"):
        read_nerfstudio(folder, depth_unit_scale_factor=0)
    for file in (folder / "depth").iterdir():
        Image.fromarray(np.full((30, 32), 900, np.uint16)).save(file)
    with pytest.raises(ValueError, match="depth_maps of scene 'capture': expected the aspect of the 48 x 64 pictures"):
        read_nerfstudio(folder)
    (folder / "transforms.json").write_text("{")
    with pytest.raises(
        ValueError, match="transforms.json: expected cameras as nerfstudio writes them, but the file is"
    ):
        read_nerfstudio(folder)
    (folder / "transforms.json").unlink()
    with pytest.raises(FileNotFoundError, match="transforms.json does not exist; expected cameras as nerfstudio"):
        read_nerfstudio(folder)
