"""Boxes and cameras in other units or orders of numbers are refused with the reason; plausible ones are not."""

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.frames import read_axis_align_matrix
from ross3d.inputs_ross3d import check_cam2world, has_same_aspect
from ross3d.scenes.build import make_scene
from ross3d.tools.make_tiny import make_tiny_processor


@cache
def make_room() -> Scene:
    scene, *_ = make_scene(5, "train", 2, 6, (64, 48))
    return replace(scene, box_labels=None, bev_image=None, bev_valid=None, bev_bounds=None)


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (100, "look like centimetres: divide them by 100"),
        (1000, "(look like millimetres: divide them by 1000|looks like millimetres)"),
        (39.37, "look like (inches|centimetres): divide them by"),
    ],
)
@pytest.mark.parametrize("name", ["boxes", "proposal_boxes"])
def test_boxes_in_another_unit_are_refused(factor, told, name):
    room = make_room()
    wrong = (room.boxes * factor).astype(np.float32)
    with pytest.raises(ValueError, match=f"^{name} of scene .*: expected .*metres.*{told}"):
        check_scene(replace(room, **{"boxes": None, name: wrong}))


def test_errors_of_units_end_with_what_says_the_unit():
    room = replace(make_room(), boxes=None, units="scale = 7 in a.json")
    far = room.cam2world.copy()
    far[:, :3, 3] *= 1000
    for wrong, message in (
        ({"depth_maps": room.depth_maps * 1000}, "a median depth of .*; correct the unit: scale = 7 in a.json"),
        ({"depth_maps": room.depth_maps / 1000}, "divided by 1000 twice; correct the unit: scale = 7 in a.json"),
        ({"cam2world": far}, "translations in metres, got .*; correct the unit: scale = 7 in a.json"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scene(replace(room, **wrong))
        with pytest.raises(ValueError, match="divide|pass metres"):
            check_scene(replace(room, **wrong, units=""))


def test_boxes_of_a_room_next_door_and_of_few_views_pass():
    room = make_room()
    next_door = np.concatenate([room.boxes, room.boxes + np.float32([15, 0, 0, 0, 0, 0])])
    corridor = np.concatenate([room.boxes, np.float32([[9, 0, 1, 18, 0.1, 2]])])
    for boxes in (next_door, corridor):
        check_scene(replace(room, boxes=boxes))
        one_view = {"images": room.images[:1], "depth_maps": room.depth_maps[:1], "cam2world": room.cam2world[:1]}
        check_scene(replace(room, boxes=boxes, view_names=[], **one_view))


def test_only_depth_makes_cameras_metres():
    room = replace(make_room(), boxes=None)
    far = room.cam2world.copy()
    far[:, :3, 3] *= 1000
    check_scene(replace(room, depth_maps=None, cam2world=far))
    with pytest.raises(
        ValueError, match="^cam2world of .*: expected translations in metres, got a camera .* in frame-"
    ):
        check_scene(replace(room, cam2world=far))


def test_transposed_and_empty_matrices_are_named(tmp_path):
    room = make_room()
    stored = room.cam2world.transpose(0, 2, 1)
    with pytest.raises(ValueError, match=r"^poses: expected rigid .* in views \[0, 1.*; transpose matrices that are"):
        check_cam2world(stored, 6, "poses")
    np.savetxt(tmp_path / "axis_align.txt", stored[0])
    with pytest.raises(ValueError, match=r"alignment of scene 'x': .* in .*axis_align.txt; transpose matrices"):
        read_axis_align_matrix(tmp_path / "axis_align.txt", "x")
    lost = room.cam2world.copy()
    lost[3] = 0
    names = [f"frame-{index}" for index in range(6)]
    for views, place in (((), r"views \[3\]"), (names, "frame-3")):
        with pytest.raises(ValueError, match=f"^poses: .*got a rotation of zeros in {place}; drop the views whose"):
            check_cam2world(lost, 6, "poses", views)
    lost[:] = 0
    with pytest.raises(ValueError, match="in frame-0, frame-1, frame-2 and 3 more; drop the views"):
        check_cam2world(lost, 6, "poses", names)


@pytest.mark.parametrize("height", [48, 40])
def test_cameras_of_a_picture_turned_by_a_quarter_are_told_so(height):
    """Scaling them would mend nothing; those of a picture of half the size are still to be scaled."""
    room = make_room()
    room = replace(room, images=room.images[:, :height], depth_maps=room.depth_maps[:, :height], boxes=None)
    turned = np.array([[60.0, 0, height / 2 - 0.5], [0, 60, 31.5], [0, 0, 1]])
    message = (
        r"seems to belong to the image rotated by 90 degrees; swap fx with fy and cx with cy, or rotate images and dep"
    )
    with pytest.raises(ValueError, match=rf"^intrinsics of .* in pixels of the {height} x 64 depth map.*{message}"):
        check_scene(replace(room, intrinsics=turned))
    half = np.array([[30.0, 0, 15.5], [0, 30, height / 4 - 0.5], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"pictures 0\.5 times as large; scale the calibration from"):
        check_scene(replace(room, intrinsics=half))
    check_scene(replace(room, intrinsics=np.array([[60.0, 0, 31.5], [0, 60, height / 2 - 0.5], [0, 0, 1]])))


def test_arrays_that_cannot_be_written_to_pass_in_silence():
    room = make_room()
    depth = room.depth_maps.copy()
    depth.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_scene(replace(room, depth_maps=depth))


@pytest.mark.parametrize("shift", [200.0, -350.0])
@pytest.mark.parametrize("name", ["boxes", "proposal_boxes"])
def test_far_boxes_blame_poses_that_stand_far_apart(shift, name):
    room = make_room()
    boxes = {"boxes": None, name: room.boxes}
    centimetres = room.cam2world.copy()
    centimetres[:, :3, 3] = 100 * centimetres[:, :3, 3] / np.ptp(centimetres[:, :3, 3], axis=0).max()
    centimetres[:, 0, 3] += shift
    with pytest.raises(ValueError, match="cameras are 100 apart and see .* m far, so the poses are likely in anoth"):
        check_scene(replace(room, cam2world=centimetres, **boxes))
    moved = room.cam2world.copy()
    moved[:, 0, 3] += shift
    with pytest.raises(
        ValueError,
        match="divide boxes of millimetres by 1000, or the translations of the poses, if those are not in metres",
    ):
        check_scene(replace(room, cam2world=moved, **boxes))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wrong_alignment_is_told_of_its_file(tmp_path, value):
    matrix = np.eye(4)
    matrix[1, 3] = value
    np.savetxt(tmp_path / "axis_align.txt", matrix)
    for given, name in ((tmp_path / "axis_align.txt", "axis_align.txt"), (matrix, "axis_align_matrix")):
        with pytest.raises(
            ValueError, match=rf"^the axis alignment of scene 'x': .*NaN or infinity in .*{name}; write the right 4x4"
        ) as caught:
            read_axis_align_matrix(given, "x")
        assert "tracking" not in str(caught.value)
    for matrices in (matrix[None], np.zeros((2, 4, 4))):
        with pytest.raises(ValueError, match="drop the views whose tracking was lost"):
            check_cam2world(matrices, len(matrices), "poses")


FAULTS = {
    "depth in millimetres": lambda room: {"depth_maps": 1000 * room.depth_maps},
    "depth of two views": lambda room: {"depth_maps": room.depth_maps[:2]},
    "blank depth": lambda room: {"depth_maps": 0 * room.depth_maps},
    "readings without an end": lambda room: {"depth_maps": np.where(room.depth_maps > 1, room.depth_maps, 2000)},
    "no cameras": lambda room: {"intrinsics": None},
    "turned cameras": lambda room: {"intrinsics": np.array([[60.0, 0, 23.5], [0, 60, 31.5], [0, 0, 1]])},
    "normalised cameras": lambda room: {"intrinsics": np.array([[0.9, 0, 0.5], [0, 0.8, 0.5], [0, 0, 1]])},
    "scaled poses": lambda room: {"cam2world": 2 * room.cam2world},
    "lost poses": lambda room: {"cam2world": np.nan * room.cam2world},
    "poses in millimetres": lambda room: {"cam2world": room.cam2world + [[0, 0, 0, 900], *3 * [[0] * 4]]},
    "corners": lambda room: {"proposal_boxes": room.boxes * np.float32([1, 1, 1, -1, 1, 1])},
    "boxes of 7 numbers": lambda room: {"proposal_boxes": np.ones((3, 7), np.float32)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_readers_and_the_processor_refuse_by_one_rule_in_the_same_words(fault):
    room = replace(make_room(), boxes=None, view_names=[])
    changes = FAULTS[fault](make_room())
    with pytest.raises(ValueError) as read:
        check_scene(replace(room, **changes))
    given = {name: getattr(room, name) for name in ("depth_maps", "intrinsics", "cam2world")} | changes
    with pytest.raises(ValueError) as processed:
        make_tiny_processor()(images=list(room.images), scene_ids=repr(room.scene_id), **given)
    assert str(read.value) == str(processed.value)


@pytest.mark.parametrize(
    ("size", "depth_size", "same"),
    [
        ((968, 1296), (480, 640), True),  # ScanNet
        ((1440, 1920), (192, 256), True),  # ARKit
        ((1080, 1920), (480, 848), True),  # RealSense
        ((31, 41), (62, 83), True),  # a side rounded to a pixel
        ((720, 960), (172, 224), False),
        ((1024, 1280), (480, 640), False),  # Kinect's colour of another height
        ((1080, 1920), (480, 640), False),
        ((640, 480), (480, 640), False),
    ],
)
def test_sizes_of_sensors_that_see_the_same_pass(size, depth_size, same):
    assert has_same_aspect(size, depth_size) == same
