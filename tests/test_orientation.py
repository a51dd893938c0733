"""Pictures and videos that are stored on their side come upright, their depth and cameras with them."""

import io
import json
import shutil
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from ross3d.data.sources import read_scene
from ross3d.data.sources.frames import Exclusions, check_rotation, decode_color, decode_views
from ross3d.data.sources.video import get_display_turn, read_video
from ross3d.tasks.task import EvalSettings
from ross3d.tasks.windows import Window, prepare_window
from ross3d.tests.raw_scannet import COLOR_SIZE, DEPTH_SIZE, write_raw_scan
from ross3d.tests.scan_folders import (
    decode_colors,
    get_depth_metres,
    lay_on_side,
    measure_misfit,
    write_nerfstudio,
    write_rgbd,
)


ORIENTATION_TAG = 0x0112
# Orientation by the clockwise quarter turns that pictures are stored after.
TAGS = {0: 1, 1: 8, 2: 3, 3: 6}


def save_tagged(pixels: np.ndarray, file, orientation: int) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    exif = image.getexif()
    exif[ORIENTATION_TAG] = orientation
    image.save(file, format="PNG", exif=exif)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=3, index=2)


@pytest.fixture
def folder(raw, tmp_path):
    folder = write_rgbd(raw, tmp_path / "room")
    for name in ("boxes.json", "axis_align.txt"):
        (folder / name).unlink()
    return folder


def lay_rgbd(raw, folder, turns: list[int], with_tags=True, with_cameras=True) -> None:
    """Store each picture after so many clockwise turns, and depth and cameras with it; in the aligned world."""
    for index, quarter_turns in enumerate(turns):
        stem = folder / f"frame-{index:06d}"
        picture = np.rot90(decode_colors(raw)[index], -quarter_turns)
        (folder / f"{stem.name}.color.jpg").unlink(missing_ok=True)
        save_tagged(picture, f"{stem}.color.png", TAGS[quarter_turns] if with_tags else 1)
        turned = quarter_turns if with_cameras else 0
        depth = np.ascontiguousarray(np.rot90(raw.depth_mm[index], -turned))
        Image.fromarray(depth).save(f"{stem}.depth.png")
        intrinsics, cam2world = lay_on_side(raw.depth_intrinsics, raw.cam2world[index], DEPTH_SIZE, turned)
        np.savetxt(f"{stem}.pose.txt", cam2world, fmt="%.12f")
        np.savetxt(folder / "camera-intrinsics.txt", intrinsics, fmt="%.12f")


def check_is_upright(scene, raw) -> None:
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-8
    assert np.abs(scene.intrinsics - raw.depth_intrinsics).max() < 1e-8


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_cameras_of_stored_pixels_turn_with_the_picture(raw, folder, quarter_turns):
    lay_rgbd(raw, folder, [quarter_turns] * 3)
    scene = read_scene(folder)
    check_is_upright(scene, raw)
    assert measure_misfit(scene, raw.room) < 1e-3


@pytest.mark.parametrize("quarter_turns", [1, 3])
def test_cameras_of_upright_pixels_stay(raw, folder, quarter_turns):
    """Depth has the aspect of the upright picture, so only the picture is turned."""
    lay_rgbd(raw, folder, [quarter_turns] * 3, with_cameras=False)
    check_is_upright(read_scene(folder), raw)


def test_each_view_turns_by_its_own_tag(raw, folder):
    """A phone that was turned over between two pictures: sizes agree, so the views stay one scan."""
    lay_rgbd(raw, folder, [0, 2, 0])
    scene = read_scene(folder)
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-8 and scene.intrinsics.shape == (3, 3, 3)
    lay_rgbd(raw, folder, [1, 1, 1])
    save_tagged(np.rot90(decode_colors(raw)[1], -1), folder / "frame-000001.color.png", 1)
    message = "frame-000001: picture, turned upright by its EXIF orientation, of size 48x64 differs from frame-000000"
    with pytest.raises(ValueError, match=message):
        read_scene(folder)


def test_a_mirrored_picture_has_no_camera_of_its_own(raw, folder):
    lay_rgbd(raw, folder, [1, 1, 1])
    for index in range(3):
        save_tagged(np.rot90(decode_colors(raw)[index], -1), folder / f"frame-{index:06d}.color.png", 5)
    with pytest.raises(ValueError, match=r"frame-000000: the picture is stored mirrored \(EXIF orientation 5\), and"):
        read_scene(folder)
    # Where the cameras are those of the upright picture, it is mirrored back.
    lay_rgbd(raw, folder, [0, 0, 0])
    for index in range(3):
        stored = decode_colors(raw)[index].transpose(1, 0, 2)
        save_tagged(stored, folder / f"frame-{index:06d}.color.png", 5)
    check_is_upright(read_scene(folder), raw)


@pytest.mark.parametrize("tagged", [(0, 1, 2), (1,), (0, 2)])
def test_upright_cameras_tell_what_no_size_can(raw, folder, tagged):
    """Pictures stored upside down: cameras and depth of the upright ones stay, in whole or for some frames."""
    lay_rgbd(raw, folder, [2 if index in tagged else 0 for index in range(3)], with_cameras=False)
    check_is_upright(read_scene(folder), raw)
    # Cameras of the stored pixels turn all the same.
    lay_rgbd(raw, folder, [2] * 3)
    check_is_upright(read_scene(folder), raw)


def test_frames_without_a_tag_tell_the_up_of_another_world(raw, folder):
    """With y up, z tells nothing; the cameras of the other frames do."""
    y_up = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    lay_rgbd(raw, folder, [0, 2, 0], with_cameras=False)
    for index in range(3):
        np.savetxt(folder / f"frame-{index:06d}.pose.txt", y_up @ raw.cam2world[index])
    scene = read_scene(folder, look_at_world=False)
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.abs(scene.cam2world - y_up @ raw.cam2world).max() < 1e-8
    # Without them the colours of places do; without depth cameras belong to the pixels as stored.
    lay_rgbd(raw, folder, [2, 2, 2], with_cameras=False)
    for index in range(3):
        np.savetxt(folder / f"frame-{index:06d}.pose.txt", y_up @ raw.cam2world[index])
    scene = read_scene(folder, look_at_world=False)
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.abs(scene.cam2world - y_up @ raw.cam2world).max() < 1e-8
    for file in folder.glob("*.depth.png"):
        file.unlink()
    scene = read_scene(folder, look_at_world=False)
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.abs(scene.cam2world[:, :3, 1] + (y_up @ raw.cam2world)[:, :3, 1]).max() < 1e-8


@pytest.mark.parametrize("quarter_turns", [1, 3])
def test_square_pictures_turn_as_their_cameras_say(quarter_turns):
    """Of square pictures the same: a tag that the cameras contradict turns the picture alone."""
    looks = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1], [0, 0, 0, 1]])
    pixels = np.random.default_rng(4).integers(0, 255, (2, 9, 9, 3), dtype=np.uint8)
    files = []
    for picture in pixels:
        file = io.BytesIO()
        save_tagged(np.rot90(picture, -quarter_turns), file, TAGS[quarter_turns])
        files.append(file)
    names = ["a", "b"]

    def decode(cam2world):
        for file in files:
            file.seek(0)
        cameras = dict.fromkeys(names, cam2world)
        find = dict(zip(names, files, strict=True)).__getitem__
        return decode_views(names, find, None, Exclusions("scene 'square'"), cam2world=cameras)

    upright = decode(looks)
    assert upright.turns == () and np.array_equal(upright.images, pixels)
    _, stored = lay_on_side(np.eye(3), looks, (9, 9), quarter_turns)
    assert decode(stored).turns == (quarter_turns,) * 2


def test_pictures_of_a_transforms_file_turn_as_its_size_says(raw, tmp_path):
    """Without depth: cameras of w x h that are those of the stored, or of the upright picture."""
    content = write_nerfstudio(raw, tmp_path / "capture")
    plain = read_scene(tmp_path / "capture")
    shutil.rmtree(tmp_path / "capture" / "depth")
    for frame in content["frames"]:
        del frame["depth_file_path"]
        frame["file_path"] = frame["file_path"].replace(".jpg", ".png")
    for index, picture in enumerate(decode_colors(raw)):
        save_tagged(np.rot90(picture, -3), tmp_path / "capture" / "images" / f"frame_{index:05d}.png", 6)
    (tmp_path / "capture" / "transforms.json").write_text(json.dumps(content))
    upright = read_scene(tmp_path / "capture")
    assert np.array_equal(upright.images, decode_colors(raw)) and upright.depth_maps is None
    assert np.abs(upright.cam2world - plain.cam2world).max() < 1e-9
    assert np.abs(upright.intrinsics - raw.color_intrinsics).max() < 1e-9
    for index, frame in enumerate(content["frames"]):
        intrinsics, cam2world = lay_on_side(raw.color_intrinsics, raw.cam2world[index], COLOR_SIZE, 3)
        frame["transform_matrix"] = (cam2world @ np.diag([1.0, -1, -1, 1])).tolist()
    stored = {"fl_x": intrinsics[0, 0], "fl_y": intrinsics[1, 1], "w": COLOR_SIZE[1], "h": COLOR_SIZE[0]}
    stored |= {"cx": intrinsics[0, 2] + 0.5, "cy": intrinsics[1, 2] + 0.5}
    (tmp_path / "capture" / "transforms.json").write_text(json.dumps(content | stored))
    turned = read_scene(tmp_path / "capture")
    for part in ("images", "cam2world", "intrinsics"):
        assert np.allclose(getattr(turned, part), getattr(upright, part), atol=1e-8), part


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_pictures_that_truly_lie_on_their_side_are_turned_when_asked(raw, folder, quarter_turns):
    """No tag, and a world that is upright: the pictures lie as the sensor did."""
    lay_rgbd(raw, folder, [quarter_turns] * 3, with_tags=False)
    as_it_lies = read_scene(folder)
    assert measure_misfit(as_it_lies, raw.room) < 1e-3
    assert np.array_equal(as_it_lies.images[1], np.rot90(decode_colors(raw)[1], -quarter_turns))
    for rotate in ("auto", 90 * quarter_turns, str(90 * quarter_turns)):
        check_is_upright(read_scene(folder, rotate=rotate), raw)
    assert np.array_equal(read_scene(folder, rotate=0).images, as_it_lies.images)


def test_rotations_are_checked(folder):
    assert [check_rotation(value) for value in (None, "auto", "0", "270", 90)] == [None, "auto", 0, 270, 90]
    for wrong in ("45", 1, True, "up"):
        with pytest.raises(ValueError, match="rotate must be one of auto, 0, 90, 180, 270 .degrees, counter-cl"):
            read_scene(folder, rotate=wrong)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_without_cameras_are_as_pil_shows_them(orientation, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    save_tagged(pixels, buffer, orientation)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))
    found, size = decode_color(buffer, "here")
    assert np.array_equal(found, wanted) and size == wanted.shape[1::-1]


def test_frames_of_a_benchmark_come_upright(tmp_path):
    """Also turned by the option, after their own tag."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    save_tagged(pixels, tmp_path / "a.png", 6)
    taken = {}

    def processor(images, scene_ids, return_tensors):
        taken["images"] = images

    processor.view_size = 64
    window = Window(id="w", scene_id="w", task="t", question_type="q", question="?", answer="", images=["a.png"])
    for rotate, turns in ((None, 3), ("180", 1)):
        context = SimpleNamespace(settings=EvalSettings(rotate=rotate), processor=processor, data_dir=tmp_path)
        prepare_window(context, [window])
        assert np.array_equal(taken["images"][0], np.rot90(pixels, turns))
    context.settings.rotate = "auto"
    with pytest.raises(ValueError, match="w: --rotate: expected 0, 90, 180 or 270, got auto"):
        prepare_window(context, [window])


# ---- videos

CORNERS = {(-1, -1): (200, 30, 30), (1, -1): (30, 200, 30), (-1, 1): (30, 30, 200), (1, 1): (200, 200, 200)}
# a, b, c, d of the display matrix: the eight ways of a phone and its mirror.
TURNS = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MATRICES = [*TURNS, (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


def write_cornered_video(file, matrix, count=4, height=48, width=64) -> None:
    """Frames whose quarters have a colour each; a matrix, if any, as phones write it into the header of the track."""
    frame = np.zeros((height, width, 3), np.uint8)
    for (x, y), color in CORNERS.items():
        rows = slice(height // 2, None) if y > 0 else slice(None, height // 2)
        frame[rows, slice(width // 2, None) if x > 0 else slice(None, width // 2)] = color
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libvpx" if file.suffix == ".webm" else "mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = height, width, "yuv420p", 4_000_000
        for _ in range(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    if matrix is None:
        return
    content = bytearray(file.read_bytes())
    # Behind the type: version, times, track, duration, reserved, layer, group, volume, reserved.
    place = content.index(b"tkhd") + 44
    a, b, c, d = (value * 0x10000 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    file.write_bytes(content)


@pytest.mark.parametrize("matrix", MATRICES)
def test_videos_are_shown_as_their_display_matrix_says(tmp_path, matrix):
    write_cornered_video(tmp_path / "walk.mp4", matrix)
    scene = read_scene(tmp_path / "walk", num_views=2)
    a, b, c, d = matrix
    height, width = scene.images.shape[1:3]
    assert (width, height) == ((64, 48) if a else (48, 64))
    for (x, y), color in CORNERS.items():
        shown_x, shown_y = a * x + c * y, b * x + d * y
        pixel = scene.images[1, height * (2 + shown_y) // 4, width * (2 + shown_x) // 4]
        assert np.abs(pixel.astype(int) - color).max() < 30, (matrix, x, y)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 32)])
@pytest.mark.parametrize("suffix", [".3gp", ".mov", ".m4v", ".MOV"])
def test_videos_of_phones_are_read_upright(tmp_path, suffix, height, width):
    write_cornered_video(tmp_path / "plain.mp4", None, 4, height, width)
    plain = read_scene(tmp_path / "plain.mp4", num_views=2)
    for turns, matrix in enumerate(TURNS):
        write_cornered_video(tmp_path / f"walk{suffix}", matrix, 4, height, width)
        scene = read_scene(tmp_path / f"walk{suffix}", num_views=2)
        assert np.array_equal(scene.images, np.rot90(plain.images, -turns, axes=(1, 2))), matrix
        assert scene.view_names == plain.view_names and scene.scene_id == "walk"


@pytest.mark.parametrize("suffix", [".mkv", ".avi", ".webm"])
def test_videos_of_other_containers_are_read(tmp_path, suffix):
    write_cornered_video(tmp_path / f"walk{suffix}", None)
    images = read_scene(tmp_path / f"walk{suffix}", num_views=2).images
    assert images.shape == (2, 48, 64, 3)
    for (x, y), color in CORNERS.items():
        assert np.abs(images[1, 24 + 12 * y, 32 + 16 * x].astype(int) - color).max() < 30


def test_turns_of_videos_agree_with_the_library(tmp_path):
    """Pure turns: degrees of the decoder, counter-clockwise; an angle between counts as the nearest quarter."""
    for matrix in TURNS:
        write_cornered_video(tmp_path / "walk.mp4", matrix)
        with av.open(str(tmp_path / "walk.mp4")) as container:
            rotation = next(container.decode(video=0)).rotation
        a, b, c, d = matrix
        turn = get_display_turn(np.array([[a, b, 0], [c, d, 0], [0, 0, 1]]))
        assert turn == (False, rotation // 90 % 4)
    cos, sin = np.cos(np.deg2rad(80)), np.sin(np.deg2rad(80))
    assert get_display_turn(np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])) == (False, 1)


def test_videos_are_turned_when_asked(tmp_path):
    write_cornered_video(tmp_path / "walk.mp4", MATRICES[1])
    own = read_video(tmp_path / "walk.mp4", num_views=1)
    turned = read_video(tmp_path / "walk.mp4", num_views=1, rotate="270")
    assert np.array_equal(turned.images[0], np.rot90(own.images[0], 3))
    assert np.array_equal(read_scene(tmp_path / "walk", max_excluded=0.3, allow_outside=True).images[0], own.images[0])
    with pytest.raises(ValueError, match="walk.mp4: rotate: a video has no cameras to be turned by; give 0, 90, 180"):
        read_video(tmp_path / "walk.mp4", rotate="auto")
