"""`read_scene`: one room in every layout is the same scene, exactly or with pictures decoded smaller."""

import shutil

import numpy as np
import pytest

from ross3d.data.sources import LAYOUTS, find_layout, read_scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import (
    decode_colors,
    get_depth_metres,
    measure_misfit,
    write_arkitscenes,
    write_nerfstudio,
    write_posed_images,
    write_rgbd,
)
from ross3d.tests.tiny import get_rooms


NUM_FRAMES = 5


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=NUM_FRAMES, index=4)


@pytest.fixture(scope="module")
def folders(raw, tmp_path_factory):
    """Layout -> folder of the room."""
    path = tmp_path_factory.mktemp("folders")
    write_nerfstudio(raw, path / "capture")
    write_arkitscenes(raw, path / "4733", quarter_turns=1)
    write_arkitscenes(raw, path / "4734", quarter_turns=3, frames_folder="4734_frames")
    return {
        "rgbd_folder": write_rgbd(raw, path / "room"),
        "scannet": raw.folder,
        "nerfstudio": path / "capture",
        "arkitscenes": path / "4733",
        "arkitscenes_3dod": path / "4734",
        "posed_images": write_posed_images(raw),
    }


JPEG_LAYOUTS = {"rgbd_folder", "scannet", "nerfstudio", "posed_images"}
# What a layout's numbers lose: metres of cam2world by float32 or six decimals, pixels of intrinsics by float32.
PRECISION = {"scannet": (1e-5, 1e-5), "posed_images": (1e-5, 1e-6)}
OWN_OPTIONS = {"scannet": {"frame_step": 1}}


def test_every_layout_is_tested(folders):
    assert folders.keys() == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS])
def test_one_room_is_the_same_scene_in_every_layout(raw, folders, name):
    assert find_layout(folders[name]).name == name
    scene = read_scene(folders[name], **OWN_OPTIONS.get(name, {}))
    assert scene.scene_id == folders[name].name and scene.num_views == NUM_FRAMES
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    metres, pixels = PRECISION.get(name, (1e-8, 1e-8))
    assert np.abs(scene.cam2world - raw.cam2world).max() < metres
    assert np.abs(scene.intrinsics - raw.depth_intrinsics).max() < pixels
    assert measure_misfit(scene, raw.room) < 1e-3
    if name not in {"nerfstudio", "posed_images"}:
        assert np.abs(scene.boxes[-len(raw.room.boxes) :] - raw.room.boxes).max() < 1e-4
    given = read_scene(folders[name], num_views=2, boxes=np.ones((3, 6)), max_excluded=0, **OWN_OPTIONS.get(name, {}))
    assert given.num_views == 2 and given.boxes.shape == (3, 6)


@pytest.mark.parametrize("name", [layout.name for layout in LAYOUTS])
def test_smaller_pictures_change_nothing_else(raw, folders, name):
    exact = read_scene(folders[name], **OWN_OPTIONS.get(name, {}))
    reduced = read_scene(folders[name], reduce_to=24, **OWN_OPTIONS.get(name, {}))
    for part in ("depth_maps", "intrinsics", "cam2world", "boxes"):
        first, second = getattr(exact, part), getattr(reduced, part)
        assert first is second is None or np.array_equal(first, second), part
    if name not in JPEG_LAYOUTS:
        assert np.array_equal(exact.images, reduced.images)
        return
    assert reduced.images.shape == (NUM_FRAMES, 24, 32, 3)
    covered = exact.images.astype(float).reshape(NUM_FRAMES, 24, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(reduced.images - covered).mean() < 2
    enough = read_scene(folders[name], reduce_to=25, **OWN_OPTIONS.get(name, {}))
    assert np.array_equal(enough.images, exact.images)


def test_an_rgbd_folder_without_depth_keeps_pixels_of_its_picture(raw, folders, tmp_path):
    folder = tmp_path / "room"
    shutil.copytree(folders["rgbd_folder"], folder)
    for file in folder.glob("*.depth.png"):
        file.unlink()
    assert np.allclose(read_rgbd_folder(folder).intrinsics, raw.depth_intrinsics)
    smaller = read_rgbd_folder(folder, reduce_to=24)
    pixel, small = (scene.intrinsics @ [0.3, -0.2, 1] for scene in (read_rgbd_folder(folder), smaller))
    assert np.allclose((small[:2] + 0.5) * 2, pixel[:2] + 0.5) and smaller.images.shape[1:3] == (24, 32)


def test_our_rooms_are_read_as_ever():
    """The same bytes as by the layout's own reader."""
    path = sorted((get_rooms() / "val").iterdir())[0]
    first, second = read_scene(path), read_rgbd_folder(path)
    assert find_layout(path).name == "rgbd_folder" and first.exclusions == {}
    for part in ("images", "depth_maps", "intrinsics", "cam2world", "boxes", "bev_image", "bev_valid", "bev_bounds"):
        found, wanted = getattr(first, part), getattr(second, part)
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted), part
    assert (first.view_names, first.box_labels) == (second.view_names, second.box_labels)


def test_folders_of_no_layout_are_refused(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder, and no video; give the folder of one scan"):
        read_scene(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("about the scan")
    with pytest.raises(ValueError, match="the layout of this folder is not known; a scan is one of these") as caught:
        read_scene(tmp_path / "other")
    assert all(f"\n  {layout.name}: {layout.looks_like}" in str(caught.value) for layout in LAYOUTS)
    for folder in (folders["nerfstudio"].parent, folders["posed_images"].parent):
        with pytest.raises(
            ValueError, match="is no scan of a known layout, but .* in it is one .*; give the folder of one scan: "
        ):
            read_scene(folder)


def test_a_scene_says_whether_an_alignment_is_in_it(raw, folders):
    """Scans and rooms with a file of their own have one; capture programs know none unless one is given."""
    for name, folder in folders.items():
        own = read_scene(folder, num_views=2, **OWN_OPTIONS.get(name, {})).axis_align_matrix
        assert (own is None) == (name in {"nerfstudio", "arkitscenes", "arkitscenes_3dod"}), name
        if own is not None:
            np.testing.assert_allclose(own, raw.axis_align_matrix, atol=1e-5)
        given = read_scene(folder, num_views=2, axis_align_matrix=np.eye(4), **OWN_OPTIONS.get(name, {}))
        np.testing.assert_array_equal(given.axis_align_matrix, np.eye(4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_views": "8"}, "num_views: expected a whole number, or None, got '8'"),
        ({"num_views": 2.0}, "num_views: expected a whole number, or None, got 2.0"),
        ({"num_views": [2]}, r"num_views: expected a whole number, or None, got \[2\]"),
        ({"reduce_to": True}, "reduce_to: expected a whole number, or None, got True"),
        ({"allow_outside": "no"}, "allow_outside: expected True or False, got 'no'"),
        ({"look_at_world": 1}, "look_at_world: expected True or False, got 1"),
    ],
)
def test_arguments_of_other_types_are_named(folders, given, message):
    with pytest.raises(TypeError, match=message):
        read_scene(folders["rgbd_folder"], **given)
    assert len(read_scene(folders["rgbd_folder"], num_views=np.int64(2)).images) == 2


@pytest.mark.parametrize("path", [None, 5, b"room"])
def test_a_path_is_a_string_or_a_path(path):
    kind = type(path).__name__
    with pytest.raises(TypeError, match=f"path: expected the folder of a scan, a string or Path, got {kind}"):
        read_scene(path)
