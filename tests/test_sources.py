"""Scenes and the folders they are read from: exact round trips, alignment applied once, refusals that teach."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder, write_rgbd_folder
from ross3d.tests.posed_views import make_poses


def make_scene(num_views: int = 3, height: int = 12, width: int = 16, num_boxes: int = 2, seed: int = 0) -> Scene:
    """A scene whose values survive the files exactly: whole millimetres, boxes of four decimals."""
    rng = np.random.default_rng(seed)
    millimetres = rng.integers(400, 5000, (num_views, height, width))
    millimetres[rng.random(millimetres.shape) < 0.1] = 0
    valid = np.ones((10, 10), dtype=bool)
    valid[:, :4] = False
    image = rng.integers(1, 256, (10, 10, 3), dtype=np.uint8)
    image[~valid] = 0
    return Scene(
        scene_id="room",
        images=rng.integers(0, 256, (num_views, height, width, 3), dtype=np.uint8),
        depth_maps=millimetres.astype(np.float32) / np.float32(1000),
        intrinsics=np.array([[14.0, 0, 7.5], [0, 13.0, 5.5], [0, 0, 1]]),
        cam2world=make_poses(num_views, seed),
        view_names=[f"frame-{10 * view:06d}" for view in range(num_views)],
        boxes=rng.uniform(0.1, 2, (num_boxes, 6)).round(4).astype(np.float32),
        box_labels=[{"category": f"thing {k}", "yaw": 0.5 * k} for k in range(num_boxes)],
        bev_image=image,
        bev_valid=valid,
        bev_bounds=np.array([-2, -1.5, 3, 3.5], dtype=np.float32),
    )


ARRAYS = ("images", "depth_maps", "intrinsics", "boxes", "bev_image", "bev_valid", "bev_bounds")


# ---- round trips


@pytest.mark.parametrize("sizes", [(3, 12, 16, 2), (2, 20, 14, 5)])
def test_a_written_scene_comes_back(tmp_path, sizes):
    scene = make_scene(*sizes)
    write_rgbd_folder(scene, tmp_path / "room")
    again = read_rgbd_folder(tmp_path / "room")
    for name in ARRAYS:
        found, wanted = getattr(again, name), getattr(scene, name)
        assert found.dtype == wanted.dtype and np.array_equal(found, wanted), name
    assert np.abs(again.cam2world - scene.cam2world).max() < 1e-9
    assert (again.scene_id, again.view_names, again.box_labels) == ("room", scene.view_names, scene.box_labels)
    assert [path.name for path in tmp_path.iterdir()] == ["room"]


def test_a_scene_of_pictures_alone_comes_back(tmp_path):
    """Without depth, boxes and bird's-eye picture; cameras stay, since the layout asks for them."""
    scene = make_scene()
    bare = Scene("room", scene.images, None, scene.intrinsics, scene.cam2world, scene.view_names)
    again = read_rgbd_folder(write_rgbd_folder(bare, tmp_path / "room"))
    assert again.depth_maps is None and again.boxes is None and again.bev_image is None
    assert np.array_equal(again.images, scene.images)


def test_writing_over_a_folder_replaces_it(tmp_path):
    write_rgbd_folder(make_scene(4), tmp_path / "room")
    write_rgbd_folder(make_scene(2, seed=1), tmp_path / "room")
    assert read_rgbd_folder(tmp_path / "room").num_views == 2


@pytest.mark.parametrize("what", ["folder", "scene with more", "file", "link"])
def test_writing_over_something_else_is_refused(tmp_path, what):
    place, mine = tmp_path / "room", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    if what == "scene with more":
        write_rgbd_folder(make_scene(2), place)
        shutil.copy(mine / "thesis.txt", place)
    elif what == "folder":
        shutil.copytree(mine, place)
    elif what == "file":
        place.write_text("mine")
    else:
        place.symlink_to(mine)
    with pytest.raises(
        ValueError, match="room: expected no such folder yet, or one with a scene's files alone, which"
    ):
        write_rgbd_folder(make_scene(2), place)
    assert [file.name for file in tmp_path.glob(".*.part")] == []
    assert (place if what == "file" else place / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../frame-000000", "images/frame_1", ""])
def test_names_of_views_lead_to_no_other_folder(tmp_path, name):
    scene = make_scene(2)
    scene.view_names = ["frame-000000", name]
    with pytest.raises(ValueError, match="scene 'room', view_names: expected a name of letters"):
        write_rgbd_folder(scene, tmp_path / "room")
    assert not (tmp_path / "room").exists()


def test_a_failed_write_leaves_the_old_folder(tmp_path):
    scene = make_scene()
    write_rgbd_folder(scene, tmp_path / "room")
    scene.depth_maps[1, 0, 0] = 70.0
    with pytest.raises(ValueError, match=r"scene 'room', frame-000010: depth over 65.5 m does not fit uint16 millim"):
        write_rgbd_folder(scene, tmp_path / "room")
    assert read_rgbd_folder(tmp_path / "room").depth_maps.max() < 6
    scene.depth_maps[1, 0, 0] = 65.5
    write_rgbd_folder(scene, tmp_path / "room")


def test_cameras_of_their_own_do_not_fit_this_layout(tmp_path):
    scene = make_scene(2)
    scene.intrinsics = np.stack([scene.intrinsics] * 2)
    write_rgbd_folder(scene, tmp_path / "same")
    np.testing.assert_allclose(read_rgbd_folder(tmp_path / "same").intrinsics, scene.intrinsics[0], rtol=1e-6)
    scene.intrinsics[1, 0, 0] += 1
    with pytest.raises(ValueError, match="scene 'room': this layout has one camera; intrinsics differ between views"):
        write_rgbd_folder(scene, tmp_path / "other")


def test_alignment_is_applied_once(tmp_path):
    scene = make_scene()
    folder = write_rgbd_folder(scene, tmp_path / "room")
    turn = np.eye(4)
    turn[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    turn[:3, 3] = [0.5, -1, 2]
    for given in (turn, tmp_path / "align.txt"):
        np.savetxt(tmp_path / "align.txt", turn)
        assert np.allclose(read_rgbd_folder(folder, axis_align_matrix=given).cam2world, turn @ scene.cam2world)
    np.savetxt(folder / "axis_align.txt", turn)
    aligned = read_rgbd_folder(folder)
    assert np.allclose(aligned.cam2world, turn @ scene.cam2world)
    # The aligned scene is upright already; read again from disk it is where it was.
    assert np.allclose(read_rgbd_folder(write_rgbd_folder(aligned, tmp_path / "again")).cam2world, aligned.cam2world)
    # A matrix that is given stands in place of the file's.
    assert np.allclose(read_rgbd_folder(folder, axis_align_matrix=np.eye(4)).cam2world, scene.cam2world)


def test_depth_of_another_size_and_jpeg_are_read(tmp_path):
    """Colour of twice the depth's size; 65535 stands for no reading as 0 does."""
    folder = write_rgbd_folder(make_scene(2), tmp_path / "room")
    for file in folder.glob("*.color.png"):
        Image.open(file).resize((32, 24)).save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    values = np.asarray(Image.open(folder / "frame-000000.depth.png")).copy()
    values[2, 3] = 65535
    Image.fromarray(values).save(folder / "frame-000000.depth.png")
    scene = read_rgbd_folder(folder)
    assert scene.images.shape == (2, 24, 32, 3) and scene.depth_maps.shape == (2, 12, 16)
    assert scene.depth_maps[0, 2, 3] == 0


def test_boxes_can_be_given(tmp_path):
    folder = write_rgbd_folder(make_scene(), tmp_path / "room")
    boxes = np.array([[0, 0, 0.5, 1, 1, 1]])
    scene = read_rgbd_folder(folder, boxes=boxes)
    assert np.array_equal(scene.boxes, boxes) and scene.box_labels is None
    (tmp_path / "boxes.json").write_text(json.dumps([{"box": [0, 0, 0.5, 1, 2, 1]}] * 3))
    assert read_rgbd_folder(folder, boxes=tmp_path / "boxes.json").boxes.shape == (3, 6)
    (tmp_path / "boxes.json").write_text(json.dumps([[0, 0, 0.5, 1, 2, 1]] * 4))
    assert read_rgbd_folder(folder, boxes=tmp_path / "boxes.json").boxes.shape == (4, 6)
    (tmp_path / "none.json").write_text("[]")
    assert read_rgbd_folder(folder, boxes=tmp_path / "none.json").boxes.shape == (0, 6)


# ---- choice of views


def test_views_are_spread_evenly(tmp_path):
    assert sample_uniform(10, 4).tolist() == [0, 3, 6, 9]
    assert sample_uniform(3, 5).tolist() == [0, 0, 1, 1, 2]
    assert sample_uniform(3, 5, unique=True).tolist() == [0, 1, 2]
    assert sample_uniform(1, 1).tolist() == [0]
    with pytest.raises(
        ValueError, match="num_frames and num_views must be at least 1, got 0 and 4; is the scan empty"
    ):
        sample_uniform(0, 4)
    folder = write_rgbd_folder(make_scene(5), tmp_path / "room")
    scene = read_rgbd_folder(folder, num_views=3)
    assert scene.view_names == ["frame-000000", "frame-000020", "frame-000040"]
    assert read_rgbd_folder(folder, num_views=9).num_views == 5


# ---- folders that are wrong


def spoil_text(name, text):
    return lambda folder: (folder / name).write_text(text)


def spoil_picture(name, array, mode=None):
    return lambda folder: Image.fromarray(array, mode).save(folder / name)


def remove(name):
    return lambda folder: (folder / name).unlink()


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:60])


FOLDER_FAULTS = {
    "no frames": (
        lambda folder: [file.unlink() for file in folder.glob("frame-*")],
        r"room holds zero frames; expected files named frame-000000.color.jpg",
    ),
    "no pictures": (
        lambda folder: [file.unlink() for file in folder.glob("*.color.png")],
        r"room: the pictures of all \d+ frames are absent, from frame-000000.color.jpg \(or .png\) to frame-0000\d\d",
    ),
    "two pictures": (
        spoil_picture("frame-000000.color.jpg", np.zeros((12, 16, 3), np.uint8)),
        r"room: frame-000000 has two pictures, frame-000000.color.jpg and frame-000000.color.png",
    ),
    "no pose": (
        remove("frame-000010.pose.txt"),
        r"frame-000010.pose.txt is missing; expected a text file with a 4x4 matrix: camera to world, metres",
    ),
    "no intrinsics": (
        remove("camera-intrinsics.txt"),
        r"camera-intrinsics.txt is missing; expected a text file with a 3x3 matrix: the camera's focal lengths",
    ),
    "words": (
        spoil_text("frame-000000.pose.txt", "1 0 0 lost"),
        r"frame-000000.pose.txt: expected a 4x4 .* and nothing else, got 'lost', which is no number; write its 16",
    ),
    "too few numbers": (
        spoil_text("camera-intrinsics.txt", "14 0 7.5 0 13 5.5"),
        r"camera-intrinsics.txt: expected a 3x3 matrix \(the camera's.*\), got a file of 6 numbers; write its 9 n",
    ),
    "lost pose": (
        spoil_text("frame-000010.pose.txt", "-inf 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1"),
        r"scene 'room', frame-000010: cam2world is not finite, so tracking was lost there; leave the frame out",
    ),
    "scaled pose": (
        spoil_text("frame-000010.pose.txt", "2 0 0 0 0 2 0 0 0 0 2 0 0 0 0 1"),
        r"cam2world of .*: expected rigid .*got deviation 3 from a rotation, determinant 8, .*frame-000010; remove",
    ),
    "mirrored pose": (
        spoil_text("frame-000010.pose.txt", "1 0 0 0 0 1 0 0 0 0 -1 0 0 0 0 1"),
        r"expected rigid .*determinant -1, last row .*frame-000010; .*mirrored axis \(OpenCV axes: x right, y down",
    ),
    "truncated picture": (
        truncate("frame-000020.color.png"),
        r"frame-000020.color.png: the picture cannot be read \(.*\); it is truncated or damaged: copy it again",
    ),
    "another size": (
        spoil_picture("frame-000020.color.png", np.zeros((9, 12, 3), np.uint8)),
        r"scene 'room', frame-000020: picture of size 12x9 differs from frame-000000 with 16x12; the views of a scan",
    ),
    "a depth map is missing": (
        remove("frame-000010.depth.png"),
        r"frame-000010.depth.png is missing \(1 of 3 frames have no depth\); remove those frames, or all depth",
    ),
    "8 bits": (
        spoil_picture("frame-000000.depth.png", np.full((12, 16), 9, np.uint8)),
        r"frame-000000.depth.png: expected a 16-bit one-channel PNG \(millimetres\), got mode 'L'; save depth as",
    ),
    "metres": (
        spoil_picture("frame-000000.depth.png", np.full((12, 16), 3, np.uint16)),
        r"frame-000000.depth.png: the largest depth is 3, which looks like metres; expected millimetres: multiply",
    ),
    "another aspect": (
        lambda folder: [
            Image.fromarray(np.full((12, 12), 900, np.uint16)).save(file) for file in folder.glob("*.depth.png")
        ],
        r"^depth_maps of scene 'room': expected the aspect of the 12 x 16 pictures .*, got 12 x 12; register depth",
    ),
    "intrinsics of the colour picture": (
        spoil_text("camera-intrinsics.txt", "580 0 320 0 580 240 0 0 1"),
        r"^intrinsics of scene 'room': .* 12 x 16 depth map, got .*, centre \[320, 240\], .*; scale the calib",
    ),
    "boxes without corners": (
        spoil_text("boxes.json", '[{"bbox": [1, 2, 3, 4, 5, 6]}]'),
        r"boxes.json: expected \[\{\"box\": \[cx, cy, cz, dx, dy, dz\].*got KeyError\('box'\)",
    ),
    "boxes of five numbers": (
        spoil_text("boxes.json", '[{"box": [1, 2, 3, 4, 5]}]'),
        r"^boxes of .*boxes.json: expected shape \(K, 6\), got \(1, 5\); pass centre xyz and size xyz in metres",
    ),
    "negative size": (
        spoil_text("boxes.json", '[{"box": [1, 2, 3, 4, 5, 6]}, {"box": [1, 2, 3, 4, -5, 6]}]'),
        r"^boxes of .*boxes.json: expected sizes >= 0 .*, got a negative size in boxes \[1\]; turn corners",
    ),
    "bird's-eye picture without alpha": (
        spoil_picture("bev.png", np.ones((10, 10, 3), np.uint8)),
        r"bev.png: expected RGBA with alpha 0 = void, got mode 'RGB'; build the picture again",
    ),
    "bird's-eye picture without frame": (
        remove("bev.json"),
        r"bev.json is missing, which belongs to bev.png; expected \{\"bounds\": \[xmin, ymin, xmax, ymax\]\}",
    ),
    "frame without bounds": (
        spoil_text("bev.json", '{"bound": [0, 0, 1, 1]}'),
        r"bev.json: expected \{\"bounds\": \[xmin, ymin, xmax, ymax\]\}, got KeyError\('bounds'\)",
    ),
    "empty frame": (
        spoil_text("bev.json", '{"bounds": [0, 0, 0, 1]}'),
        r"^bev_bounds of scene 'room': expected xmin < xmax and ymin < ymax, finite, got \[0.0, 0.0, 0.0, 1.0\]; pass",
    ),
}


@pytest.mark.parametrize("fault", FOLDER_FAULTS)
def test_folders_that_are_wrong_are_refused(tmp_path, fault):
    folder = write_rgbd_folder(make_scene(), tmp_path / "room")
    assert read_rgbd_folder(folder).num_views == 3
    spoil, message = FOLDER_FAULTS[fault]
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_rgbd_folder(folder)


def test_paths_and_matrices_that_are_wrong_are_refused(tmp_path):
    folder = write_rgbd_folder(make_scene(), tmp_path / "room")
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; give the folder that holds frame-NNNNNN"):
        read_rgbd_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"none.json does not exist; expected a JSON list of boxes"):
        read_rgbd_folder(folder, boxes=tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"axis_align_matrix of scene 'room': expected shape \(4, 4\), got \(3, 4\)"):
        read_rgbd_folder(folder, axis_align_matrix=np.eye(4)[:3])
    with pytest.raises(ValueError, match=r"alignment of scene 'room': expected rigid .* in axis_align_matrix; remove"):
        read_rgbd_folder(folder, axis_align_matrix=np.diag([2.0, 2, 2, 1]))


# ---- scenes that are wrong


def set_to(**values):
    def change(scene):
        for name, value in values.items():
            setattr(scene, name, value)

    return change


def put(name, index, value):
    def change(scene):
        getattr(scene, name)[index] = value

    return change


SCENE_FAULTS = {
    "no id": (
        set_to(scene_id=""),
        r"Scene.scene_id: expected a name, got an empty one; set a name",
    ),
    "names": (
        set_to(view_names=["a"]),
        r"^view_names of scene 'room': expected 3 names, .* got 1; name all views",
    ),
    "float pictures": (
        lambda scene: set_to(images=scene.images / 255)(scene),
        r"^images of scene 'room': expected a uint8 array \(V, H, W, 3\), got float64 .*; convert to RGB bytes first",
    ),
    "zero views": (
        lambda scene: set_to(images=scene.images[:0])(scene),
        r"^images of scene 'room': expected at least one view, got none; add views",
    ),
    "depth of two views": (
        lambda scene: set_to(depth_maps=scene.depth_maps[:2])(scene),
        r"^depth_maps of scene 'room': expected shape \(3, H, W\), got \(2, 12, 16\); give one depth map a view",
    ),
    "whole depth": (
        lambda scene: set_to(depth_maps=(1000 * scene.depth_maps).astype(np.uint16))(scene),
        r"^depth_maps of scene 'room': expected metres as floating point, got .*uint16; divide millimetres by 1000",
    ),
    "depth without intrinsics": (
        set_to(intrinsics=None),
        r"^intrinsics of scene 'room': expected cameras with depth_maps, got None; give intrinsics and cam2world",
    ),
    "depth without poses": (set_to(cam2world=None), r"^cam2world of scene 'room': expected cameras with"),
    "negative depth": (
        put("depth_maps", (0, 0, 0), -1.0),
        r"^depth_maps of scene 'room': expected finite metres >= 0, got negative, .*; write 0 where the sensor has no",
    ),
    "NaN depth": (
        put("depth_maps", (0, 0, 0), np.nan),
        r"expected finite metres >= 0, got negative, infinite or",
    ),
    "blank depth": (
        put("depth_maps", slice(None), 0.0),
        r"expected a reading in at least one view, got no depth above 0 in any view; look at the depth files, or",
    ),
    "millimetres": (
        lambda scene: set_to(depth_maps=1000 * scene.depth_maps)(scene),
        r"expected metres, got a median depth of \d+ in frame-000000, frame-000010, frame-000020, which",
    ),
    "one view in millimetres": (
        lambda scene: scene.depth_maps.__setitem__(2, 1000 * scene.depth_maps[2]),
        r"expected metres, got a median depth of \d+ in frame-000020, which looks like millimetres; divide",
    ),
    "divided twice": (
        lambda scene: set_to(depth_maps=scene.depth_maps / 1000)(scene),
        r"expected metres, got a median depth of 0.00\d+, which looks divided by 1000 twice; pass metres",
    ),
    "4x4 intrinsics": (
        set_to(intrinsics=np.eye(4)),
        r"^intrinsics of scene 'room': expected shape \(3, 3\), got \(4, 4\); of a 4 x 4 matrix pass",
    ),
    "normalised intrinsics": (
        set_to(intrinsics=np.array([[0.9, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]])),
        r"expected focal lengths in pixels, above 1, got focal \[0.9, 0.8\]; multiply normalised values by the size",
    ),
    "poses of two views": (
        lambda scene: set_to(cam2world=scene.cam2world[:2])(scene),
        r"^cam2world of scene 'room': expected shape \(3, 4, 4\), got \(2, 4, 4\); pass one camera-to-world matrix a",
    ),
    "NaN pose": (
        put("cam2world", (1, 0, 3), np.nan),
        r"^cam2world of scene 'room': expected finite numbers, got NaN or infinity in frame-000010; drop the views",
    ),
    "infinite box": (
        put("boxes", (1, 0), np.inf),
        r"^boxes of scene 'room': expected finite .* boxes \[1\]",
    ),
    "labels": (
        lambda scene: set_to(box_labels=scene.box_labels[:1])(scene),
        r"^box_labels of scene 'room': expected 2 entries, one per box, got 1; give one per box",
    ),
    "labels without boxes": (set_to(boxes=None), r"expected 0 entries, one per box, got 2; give one per box"),
    "float bird's-eye picture": (
        lambda scene: set_to(bev_image=scene.bev_image / 255)(scene),
        r"^bev_image of scene 'room': expected a uint8 array \(Hb, Wb, 3\), got float64 \(10, 10, 3\)",
    ),
    "mask of another size": (
        set_to(bev_valid=np.ones((9, 10), dtype=bool)),
        r"^bev_valid of scene 'room': expected a bool array \(10, 10\) with bev_image, got bool \(9, 10\); give one",
    ),
    "mask without picture": (set_to(bev_image=None), r"expected a bool array None with bev_image, got bool"),
}


@pytest.mark.parametrize("fault", SCENE_FAULTS)
def test_scenes_that_are_wrong_are_refused(fault):
    scene = make_scene()
    assert check_scene(scene) is scene
    spoil, message = SCENE_FAULTS[fault]
    spoil(scene)
    with pytest.raises(ValueError, match=message):
        check_scene(scene)


def test_nearly_wrong_scenes_pass():
    scene = make_scene(2)
    scene.cam2world[0, :3, :3] *= 1 + 1e-5
    scene.depth_maps[0] = 0
    scene.intrinsics = np.stack([scene.intrinsics, scene.intrinsics + np.diag([1.0, 1, 0])])
    scene.boxes, scene.box_labels = np.zeros((0, 6), dtype=np.float32), []
    scene.view_names, scene.bev_valid = [], None
    assert check_scene(scene).num_views == 2
