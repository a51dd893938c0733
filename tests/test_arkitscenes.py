"""Videos of ARKitScenes: equal to the room they were written from, however the tablet was held."""

import json

import numpy as np
import pytest

from ross3d.data.sources.arkitscenes import read_arkitscenes, read_pincam, read_trajectory
from ross3d.data.upright import count_picture_turns
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import decode_colors, get_depth_metres, measure_misfit, write_arkitscenes


VIDEO = "47331234"


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=5, index=1)


def get_frame_file(folder, part, index):
    return sorted((folder / part).iterdir())[index]


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_a_video_is_the_room_it_was_written_from(raw, tmp_path, quarter_turns):
    times = write_arkitscenes(raw, tmp_path / VIDEO, quarter_turns)
    scene = read_arkitscenes(tmp_path / VIDEO)
    assert scene.scene_id == VIDEO and scene.view_names == times and scene.exclusions == {}
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-9
    assert scene.intrinsics.shape == (3, 3) and np.abs(scene.intrinsics - raw.depth_intrinsics).max() < 1e-8
    assert measure_misfit(scene, raw.room) < 1e-3
    as_it_lay = read_arkitscenes(tmp_path / VIDEO, rotate=0, num_views=2)
    assert as_it_lay.images.shape == ((2, 48, 64, 3) if quarter_turns % 2 == 0 else (2, 64, 48, 3))
    assert measure_misfit(as_it_lay, raw.room) < 1e-3


def test_boxes_are_hulls_of_the_oriented_ones(raw, tmp_path):
    write_arkitscenes(raw, tmp_path / VIDEO)
    scene = read_arkitscenes(tmp_path / VIDEO)
    assert np.abs(scene.boxes - raw.room.boxes).max() < 1e-5
    for label, piece in zip(scene.box_labels, raw.room.furniture, strict=True):
        assert label["category"] == piece.category and np.allclose(label["oriented_size"], piece.high - piece.low)
        assert np.isclose(np.exp(1j * label["yaw"]), np.exp(1j * piece.yaw))
    assert [label["uid"] for label in scene.box_labels] == [f"uid-{k}" for k in range(len(scene.boxes))]
    shift = np.eye(4)
    shift[:3, 3] = [1, -2, 0.5]
    moved = read_arkitscenes(tmp_path / VIDEO, axis_align_matrix=shift)
    assert np.allclose(moved.boxes[:, :3], scene.boxes[:, :3] + shift[:3, 3], atol=1e-5)
    assert np.array_equal(read_arkitscenes(tmp_path / VIDEO, boxes=np.ones((4, 6))).boxes, np.ones((4, 6)))
    (tmp_path / VIDEO / f"{VIDEO}_3dod_annotation.json").unlink()
    assert read_arkitscenes(tmp_path / VIDEO).boxes is None


def test_the_3dod_part_has_its_frames_in_a_folder(raw, tmp_path):
    write_arkitscenes(raw, tmp_path / VIDEO, frames_folder=f"{VIDEO}_frames")
    scene = read_arkitscenes(tmp_path / VIDEO, num_views=3)
    assert np.array_equal(scene.images, decode_colors(raw)[[0, 2, 4]])
    assert np.abs(scene.boxes - raw.room.boxes).max() < 1e-5


def test_intrinsics_may_differ_between_frames_and_in_size(raw, tmp_path):
    write_arkitscenes(raw, tmp_path / VIDEO)
    file = get_frame_file(tmp_path / VIDEO, "lowres_wide_intrinsics", 1)
    values = np.array(file.read_text().split(), dtype=float)
    assert np.allclose(read_pincam(file, (64, 48)), raw.color_intrinsics)
    values[2] += 3
    file.write_text(" ".join(map(str, values)))
    found = read_arkitscenes(tmp_path / VIDEO).intrinsics
    assert found.shape == (5, 3, 3) and found[1, 0, 0] == pytest.approx(raw.depth_intrinsics[0, 0] + 1.5)
    assert np.allclose(found[[0, 2, 3, 4]], raw.depth_intrinsics)


def test_frames_without_their_files_are_counted(raw, tmp_path):
    folder = tmp_path / VIDEO
    times = write_arkitscenes(raw, folder)
    picture = get_frame_file(folder, "lowres_wide", 1)
    late = picture.with_name(f"{VIDEO}_{float(times[1]) + 0.006:.3f}.png")
    picture.rename(late)
    with pytest.warns(UserWarning, match=r"scene '47331234': left out 1 of 5 frames \(picture is missing: 1, such as"):
        scene = read_arkitscenes(folder)
    assert scene.view_names == [times[index] for index in (0, 2, 3, 4)]
    assert np.array_equal(scene.images, decode_colors(raw)[[0, 2, 3, 4]])
    message = rf"lowres_wide: no file within 5 ms of {times[1]} s; the nearest is 47331234_\d+\.\d+\.png"
    with pytest.raises(FileNotFoundError, match=message):
        read_arkitscenes(folder, max_excluded=0)
    late.rename(picture)
    get_frame_file(folder, "lowres_depth", 4).unlink()
    with pytest.warns(UserWarning, match="depth map is missing: 1, such as .*lowres_depth: no file within 5 ms"):
        assert read_arkitscenes(folder).view_names == times[:4]
    get_frame_file(folder, "lowres_wide_intrinsics", 0).unlink()
    with pytest.raises(ValueError, match="1 of 4 frames cannot be used, more than max_excluded = 0.2 of them"):
        read_arkitscenes(folder)
    with pytest.warns(UserWarning, match="intrinsics is missing: 1"):
        assert read_arkitscenes(folder, max_excluded=0.5).view_names == times[1:4]


def test_lost_cameras_are_left_out(raw, tmp_path):
    times = write_arkitscenes(raw, tmp_path / VIDEO)
    file = tmp_path / VIDEO / "lowres_wide.traj"
    lines = file.read_text().splitlines()
    lines[3] = lines[3].split()[0] + " nan" * 6
    file.write_text("\n".join([lines[4], *lines[:4]]))
    assert list(read_trajectory(file)) == times
    with pytest.warns(UserWarning, match="left out 1 of 5 frames .tracking was lost: 1"):
        assert read_arkitscenes(tmp_path / VIDEO).exclusions == {times[3]: "tracking was lost"}


def test_an_identity_rotation_has_no_axis(tmp_path):
    file = tmp_path / "lowres_wide.traj"
    file.write_text("12.5 0 0 0 1 2 3\n")
    assert read_trajectory(file)["12.500"].tolist() == [[1, 0, 0, -1], [0, 1, 0, -2], [0, 0, 1, -3], [0, 0, 0, 1]]


def test_quarter_turns_bring_up_to_the_top():
    """The camera's axis that the world's z falls on tells them: y points down in an upright picture."""
    found = []
    for up in ((0, -1), (1, 0), (0, 1), (-1, 0)):
        cam2world = np.tile(np.eye(4), (2, 1, 1))
        cam2world[:, 2, :2] = up
        found.append(count_picture_turns(cam2world).tolist())
    assert found == [[0, 0], [1, 1], [2, 2], [3, 3]]


def test_videos_that_are_wrong_are_refused(raw, tmp_path):
    folder = tmp_path / VIDEO
    write_arkitscenes(raw, folder)
    trajectory, boxes = folder / "lowres_wide.traj", folder / f"{VIDEO}_3dod_annotation.json"
    whole, annotation = trajectory.read_text(), json.loads(boxes.read_text())

    def refuse(error, message):
        with pytest.raises(error, match=message):
            read_arkitscenes(folder)

    annotation["data"][1]["segments"]["obbAligned"]["axesLengths"][0] = 120
    boxes.write_text(json.dumps(annotation))
    refuse(ValueError, r"annotation.json: a box is \d+ m long, so these are no metres; divide by 100 or 1000 first")
    boxes.write_text(json.dumps({"data": [{"label": "chair", "uid": "a"}]}))
    refuse(ValueError, r"annotation.json: expected data\[i\] with label, uid and segments.obbAligned of .*KeyError")
    boxes.unlink()
    trajectory.write_text(whole + "12.5 0 0 0 1 2\n")
    refuse(ValueError, "lowres_wide.traj, line 6: expected time, three numbers of axis-angle rotation and three of")
    trajectory.write_text("")
    refuse(ValueError, "lowres_wide.traj has no line; expected one a camera")
    trajectory.unlink()
    refuse(FileNotFoundError, "lowres_wide.traj is missing; expected the trajectory of the video's cameras")
    trajectory.write_text(whole)
    odd = folder / "lowres_depth" / f"{VIDEO}_first.png"
    odd.write_bytes(b"")
    refuse(ValueError, f"{VIDEO}_first.png: expected a name that ends in its time in seconds, got 'first'")
    for file in (folder / "lowres_depth").iterdir():
        file.unlink()
    refuse(FileNotFoundError, "lowres_depth holds no file named <video>_<time>.png; download this part too")
