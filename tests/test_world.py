"""Worlds are looked at wherever scans are read; one command aligns them; pages and answers say what is known."""

import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.own_scan import get_box_corners, read_own_scan
from ross3d.data.prepare.__main__ import main as prepare
from ross3d.data.prepare.align import align_folder, prepare_alignments
from ross3d.data.scene import Scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.data.upright import UprightEstimate
from ross3d.data.world import SCENE_BOUNDS, WorldWarning, check_world, describe_doubt, measure_clamped
from ross3d.scenes.build import make_scene
from ross3d.tests.test_own_scan import make_turn
from ross3d.tests.test_report import check_page
from ross3d.tests.tiny import get_checkpoint
from ross3d.tools import ask, view


Y_UP = np.array([[1.0, 0, 0, 0.2], [0, 0, 1, -1.3], [0, -1, 0, 0.5], [0, 0, 0, 1]])
LOWERED = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -1.4], [0, 0, 0, 1]])


@cache
def make_room(index: int = 0) -> Scene:
    scene, *_ = make_scene(seed=9, split="val", index=index, num_views=9, image_size=(96, 72), bev_size=48)
    return replace(scene, boxes=None, box_labels=None, bev_image=None, bev_valid=None, bev_bounds=None)


def move(scene: Scene, matrix: np.ndarray) -> Scene:
    return replace(scene, cam2world=matrix @ scene.cam2world)


def write(folder: Path, matrix: np.ndarray, index: int = 0) -> Path:
    return write_rgbd_folder(move(make_room(index), matrix), folder)


def test_the_bounds_are_those_of_the_model():
    config = Ross3DConfig()
    assert SCENE_BOUNDS == (tuple(config.scene_bounds_min), tuple(config.scene_bounds_max))


@pytest.mark.parametrize(
    ("matrix", "told"),
    [
        (Y_UP, "its floor is tilted by 90 degrees, y is up"),
        (make_turn(0, 20.0), "its floor is tilted by 20 degrees"),
        (make_turn(1, -8.0), "its floor is tilted by 8 degrees"),
        (LOWERED, r"its floor lies at z = -1\.40 m"),
        (np.diag([1.0, -1, -1, 1]), "its floor is tilted by 180 degrees, -z is up"),
    ],
)
@pytest.mark.parametrize("with_boxes", [False, True])
def test_a_world_that_is_not_upright_is_told_with_the_way_out(tmp_path, matrix, told, with_boxes):
    """Boxes make no world upright."""
    folder = write(tmp_path / "room", matrix, 1)
    if with_boxes:
        (folder / "boxes.json").write_text("[[0, 0, 0.5, 1, 1, 1]]")
    with pytest.warns(
        WorldWarning, match=rf"scene 'room' came without an alignment, and {told}.*align --data {folder}"
    ):
        read_scene(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_scene(folder)


def test_an_upright_world_passes_in_silence_and_a_wrong_alignment_does_not(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index in range(4):
            check_world(make_room(index))
        folder = write(tmp_path / "room", Y_UP)
        np.savetxt(folder / "axis_align.txt", np.linalg.inv(Y_UP))
        read_scene(folder)
    np.savetxt(folder / "axis_align.txt", make_turn(0, 30.0) @ np.linalg.inv(Y_UP))
    with pytest.warns(
        WorldWarning, match="'room' is not upright once it is aligned, and its floor is tilted by 30 deg"
    ):
        read_scene(folder)


def test_without_a_floor_the_cameras_are_asked():
    ups = np.tile([0.1, -0.9, 0.1], (4, 1))
    assert describe_doubt(None, ups) == "the upper edges of its pictures point along -y, not along z"
    assert describe_doubt(None, np.tile([0.1, 0.2, 0.9], (4, 1))) is None
    weak = UprightEstimate(np.linalg.inv(Y_UP), 0.3, 0.01, 2.0, {"floor": 0.3}, 10, 4)
    assert describe_doubt(weak, ups) is not None and describe_doubt(replace(weak, confidence=0.6), ups).endswith(
        "y is up"
    )


def test_positions_that_a_model_clamps_are_counted(tmp_path):
    far = np.eye(4)
    far[0, 3] = 14.5
    room = make_room(2)
    share = measure_clamped(move(room, far))
    points = measure_clamped(room)
    assert points == 0.0 and 0.1 < share < 0.9
    with pytest.warns(
        WorldWarning, match=rf"'val-000002': {100 * share:.0f} % of its readings lie outside of scene_bou"
    ):
        check_world(move(room, far))
    with pytest.warns(WorldWarning, match="outside of scene_bounds"):
        read_own_scan(write(tmp_path / "far", far, 2))


def test_pictures_on_their_side_are_told_and_the_world_stays(tmp_path):
    """A quarter turn of pictures, depth and cameras together, in a world that is upright already."""
    room = make_room(3)
    width, k = room.depth_maps.shape[2], np.asarray(room.intrinsics)
    quarter = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    lying = replace(
        room,
        images=np.ascontiguousarray(np.rot90(room.images, axes=(1, 2))),
        depth_maps=np.ascontiguousarray(np.rot90(room.depth_maps, axes=(1, 2))),
        intrinsics=np.array([[k[1, 1], 0, k[1, 2]], [0, k[0, 0], width - 1 - k[0, 2]], [0, 0, 1]]),
        cam2world=room.cam2world @ quarter,
    )
    with pytest.warns(
        WorldWarning, match="not upright, though their cameras are right: all 9 on their side; give --rotate auto"
    ):
        check_world(lying)
    scan = read_own_scan(write_rgbd_folder(lying, tmp_path / "lying"))
    assert scan.axis_align_matrix is None and "was not turned" in scan.alignment and "--rotate auto" in scan.alignment
    np.testing.assert_allclose(scan.scene.cam2world, lying.cam2world, atol=1e-5)


@pytest.mark.parametrize("command", ["bev", "proposals"])
def test_nothing_is_made_in_a_tilted_world_until_it_is_aligned(tmp_path, command):
    """The upright scan has its file; the tilted ones come after `align`, which nothing stands in the way of."""
    worlds = {"phone": make_turn(1, 10.0), "y_up": Y_UP, "upright": np.eye(4)}
    folders = {name: write(tmp_path / name, matrix, 1) for name, matrix in worlds.items()}
    more = ["--bev-size", "32"] if command == "bev" else []
    name = {"bev": "bev.png", "proposals": "proposals.json"}[command]
    call = [command, "--data", str(tmp_path), "--num-workers", "1", *more]
    with pytest.raises(
        ValueError, match=r"(?s)2 of 3 failed.*'phone' came without.*prepare align --data.*'y_up' came"
    ):
        prepare(call)
    assert [(folder / name).is_file() for folder in folders.values()] == [False, False, True]
    prepare(["align", "--data", str(tmp_path), "--num-workers", "1"])
    prepare(call)
    assert all((folder / name).is_file() for folder in folders.values())


def test_a_world_that_somebody_keeps_is_told_by_each_command(tmp_path):
    folder = write(tmp_path / "phone", make_turn(1, 10.0), 1)
    np.savetxt(folder / "axis_align.txt", np.eye(4))
    for command in (["bev", "--bev-size", "32"], ["bev", "--bev-size", "24"]):
        with pytest.warns(WorldWarning, match=rf"is not upright once it is aligned.*align --force --data {folder}"):
            prepare([*command, "--data", str(folder), "--num-workers", "1"])
    assert (folder / "bev.png").is_file()


def test_an_alignment_that_no_command_replaces_is_to_be_corrected():
    tilted = replace(move(make_room(1), make_turn(0, 20.0)), axis_align_matrix=np.eye(4), scene_id="given")
    with pytest.warns(WorldWarning, match="'given' is not upright once .*correct the alignment that was given, or"):
        check_world(tilted)


def test_one_command_aligns_all_scans(tmp_path, capsys):
    """A y-up, a tilted, an upright and an aligned scan; the second time nothing changes."""
    worlds = {"a": Y_UP, "b": make_turn(0, 20.0), "c": np.eye(4), "d": Y_UP}
    for index, (name, matrix) in enumerate(worlds.items()):
        write(tmp_path / "val" / name, matrix, index)
    given = np.linalg.inv(Y_UP) @ make_turn(1, 1.0)
    np.savetxt(tmp_path / "val" / "d" / "axis_align.txt", given)
    command = ["align", "--data", str(tmp_path), "--num-workers", "1"]
    prepare(command)
    said = capsys.readouterr().out
    assert "2 aligned, 1 upright already, 1 there already" in said
    assert "a: its floor was tilted by 90.0 degrees, confidence 0." in said
    assert "c: upright already, confidence 0." in said and "b: its floor was tilted by" in said
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "val" / "c" / "axis_align.txt"), np.eye(4))
    np.testing.assert_allclose(np.loadtxt(tmp_path / "val" / "d" / "axis_align.txt"), given)
    files = {file: file.read_bytes() for file in tmp_path.rglob("axis_align.txt")}
    prepare(command)
    assert "0 aligned, 0 upright already, 4 there already" in capsys.readouterr().out
    assert files == {file: file.read_bytes() for file in tmp_path.rglob("axis_align.txt")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, (name, matrix) in enumerate(worlds.items()):
            scene = read_scene(tmp_path / "val" / name)
            found = scene.cam2world[0] @ np.linalg.inv(make_room(index).cam2world[0])
            assert found[2, 2] > np.cos(np.deg2rad(2.0)), (name, matrix)
        assert read_own_scan(tmp_path / "val" / "a").alignment == "the alignment came with the scan"
    prepare([*command, "--force"])
    assert "3 aligned, 1 upright already, 0 there already" in capsys.readouterr().out
    assert not np.allclose(np.loadtxt(tmp_path / "val" / "d" / "axis_align.txt"), given, atol=1e-3)


def test_what_lies_in_the_old_world_keeps_a_scan_from_being_turned(tmp_path):
    folder, upright = write(tmp_path / "tilted", make_turn(1, 15.0)), write(tmp_path / "upright", np.eye(4))
    for path in (folder, upright):
        (path / "proposals.json").write_text(json.dumps([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]))
    with pytest.raises(
        ValueError, match=r"'tilted': proposals\.json lie in the world as it is.*tilted by 15.* make them"
    ):
        align_folder(folder, force=False, min_confidence=0.5)
    assert not (folder / "axis_align.txt").exists()
    assert align_folder(upright, force=False, min_confidence=0.5).outcome == "upright already"
    (folder / "proposals.json").unlink()
    assert align_folder(folder, force=False, min_confidence=0.5).outcome == "aligned"


@pytest.mark.parametrize("degrees", [15.0, 40.0])
def test_an_alignment_that_others_lie_in_is_kept_without_force(tmp_path, degrees):
    """The identity would change that world as well: it is no way to keep it."""
    folder = write(tmp_path / "tilted", make_turn(1, degrees))
    np.savetxt(folder / "axis_align.txt", make_turn(1, 5.0))
    (folder / "proposals.json").write_text(json.dumps([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"or leave out --force to keep the world of axis_align\.txt\.") as caught:
        align_folder(folder, force=True, min_confidence=0.0)
    assert "identity" not in str(caught.value)


def test_what_cannot_be_aligned_is_refused_and_the_others_are_done(tmp_path):
    write(tmp_path / "good", Y_UP)
    bare = write(tmp_path / "bare", Y_UP, 1)
    for file in bare.glob("*.depth.png"):
        file.unlink()
    flat = move(make_room(2), np.eye(4))
    flat.depth_maps = np.where(np.indices(flat.depth_maps.shape)[1] < 20, flat.depth_maps, 0).astype(np.float32)
    write_rgbd_folder(flat, tmp_path / "ceiling")
    with pytest.raises(ValueError, match=r"(?s)alignments: 2 of 3 failed.*'bare': expected depth and cameras.*"
                                         r"'ceiling': (no floor is in view|the estimate has)") as error:  # fmt: skip
        prepare_alignments(tmp_path, force=False, num_workers=1)
    assert (tmp_path / "good" / "axis_align.txt").is_file() and "axis_align.txt" in str(error.value)
    assert not (tmp_path / "ceiling" / "axis_align.txt").exists()


def test_little_confidence_writes_nothing_unless_told(tmp_path):
    folder = write(tmp_path / "room", make_turn(0, 25.0))
    with pytest.raises(
        ValueError, match=r"confidence of 0\.\d\d \(weakest evidence: .*\), less than --min-confidence 0\.99"
    ):
        align_folder(folder, force=False, min_confidence=0.99)
    assert not (folder / "axis_align.txt").exists()
    assert align_folder(folder, force=False, min_confidence=0.0).outcome == "aligned"
    with pytest.raises(ValueError, match=r"--min-confidence: expected a number from 0 to 1, got 50"):
        prepare_alignments(tmp_path, force=False, num_workers=1, min_confidence=50)


def test_corners_are_those_of_the_box_in_the_scan():
    matrix = Y_UP @ make_turn(2, 30.0)
    boxes = np.array([[1.0, -2.0, 0.5, 0.4, 0.6, 1.0], [0.0, 0.0, 1.0, 2.0, 1.0, 0.2], [3.0, 1.0, 0.2, 0.1, 0.2, 0.4]])
    corners = get_box_corners(boxes, matrix)
    assert corners.shape == (3, 8, 3)
    back = corners @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(back.min(1), boxes[:, :3] - boxes[:, 3:] / 2, atol=1e-12)
    np.testing.assert_allclose(back.max(1), boxes[:, :3] + boxes[:, 3:] / 2, atol=1e-12)
    np.testing.assert_allclose(back[1, 4], [1.0, -0.5, 0.9], atol=1e-12)
    assert get_box_corners(np.zeros((0, 6)), matrix).shape == (0, 8, 3)


def test_answers_give_boxes_in_both_frames(tmp_path, capsys):
    folder = write(tmp_path / "phone", Y_UP)
    given = [str(folder), "--model", str(get_checkpoint()), "--output", str(tmp_path / "page.html"), "--views", "3"]
    answers = ask.main([*given, "--steps", "2", "--max-new-tokens", "4", "How many beds?", "find the bed"])
    record = json.loads((tmp_path / "page.json").read_text())
    scan = read_own_scan(folder)
    matrix = np.array(record["scan_to_world"])
    np.testing.assert_allclose(matrix, scan.scan_to_world, atol=1e-12)
    # From the room's own frame to the scan's, and from there upright again.
    assert (matrix @ Y_UP)[2, 2] > 0.999 and record["scene_id"] == "phone" and len(record["views"]) == 3
    assert [one["question"] for one in record["answers"]] == ["How many beds?", "find the bed"]
    assert "boxes" not in record["answers"][0] and len(record["answers"][1]["boxes"]) == len(answers[1].numbers)
    said, page = capsys.readouterr().out, (tmp_path / "page.html").read_text(encoding="utf-8")
    check_page(page)
    for box in record["answers"][1]["boxes"]:
        corners = np.array(box["corners_in_scan"]) @ matrix[:3, :3].T + matrix[:3, 3]
        np.testing.assert_allclose(np.ptp(corners, axis=0), box["box"][3:], atol=1e-5)
        centre = "({:.2f}, {:.2f}, {:.2f})".format(*box["centre_in_scan"])
        assert f"box {box['number']} in the scan frame: centre {centre}" in said
    assert ("Scan frame to upright world" in page.replace("&#x27;", "'")) == bool(answers[1].numbers)
    assert "z up: by an estimate, with a confidence of 0." in page


def test_a_page_says_of_a_world_what_is_known(tmp_path):
    """Depth and a floor; depth without a floor; cameras alone; with an alignment; pictures alone."""
    folder = write(tmp_path / "room", np.eye(4))
    page = view.main([str(folder), "--output", str(tmp_path / "a.html")]).read_text(encoding="utf-8")
    assert "Posed views with depth in metres, as its files give it; z up: by an estimate" in page
    assert "camera height above the floor, m" in page and "depth confirmed by other views, %" in page
    assert "The scan frame equals the upright world" in page
    high = make_room(1)
    high = replace(high, depth_maps=np.where(np.indices(high.depth_maps.shape)[1] < 30, high.depth_maps, 0))
    folder = write_rgbd_folder(high, tmp_path / "high")
    np.savetxt(folder / "axis_align.txt", np.eye(4))
    page = view.main([str(folder), "--output", str(tmp_path / "b.html")]).read_text(encoding="utf-8")
    assert "by the alignment that came with the scan" in page
    assert ("cameras above the floor" in page) == ("no floor is in view" not in page)
    bare = write(tmp_path / "bare", LOWERED)
    for file in bare.glob("*.depth.png"):
        file.unlink()
    page = view.main([str(bare), "--output", str(tmp_path / "c.html")]).read_text(encoding="utf-8")
    assert "Posed views without depth: the unit of their world is not known, nor its upright axis." in page
    assert "metres" not in page and "z up" not in page and "above the floor" not in page
    np.savetxt(bare / "axis_align.txt", np.eye(4))
    page = view.main([str(bare), "--output", str(tmp_path / "d.html")]).read_text(encoding="utf-8")
    assert "not known, the upright axis rests on the alignment" in page


@pytest.mark.parametrize(("index", "has_depth"), [(0, False), (1, False), (1, True)])
def test_a_bar_of_one_metre_stands_where_the_unit_is_known(tmp_path, index, has_depth):
    folder = write(tmp_path / "room", np.eye(4), index=index)
    pixels = np.full((40, 40, 4), 255, np.uint8)
    Image.fromarray(pixels).save(folder / "bev.png")
    (folder / "bev.json").write_text('{"bounds": [-3, -3, 3, 3]}')
    np.savetxt(folder / "axis_align.txt", np.eye(4))
    for file in [] if has_depth else folder.glob("*.depth.png"):
        file.unlink()
    page = view.main([str(folder), "--output", str(tmp_path / "a.html")]).read_text(encoding="utf-8")
    assert "Bird&#x27;s-eye picture" in page and ("1 m<" in page) == has_depth


def test_a_video_has_no_world(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for image in make_room(0).images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    page = view.main([str(tmp_path / "walk.mp4"), "--output", str(tmp_path / "v.html")]).read_text(encoding="utf-8")
    assert "Pictures without cameras: nothing is known of places, sizes and directions." in page
    assert "metres" not in page and "z up" not in page and "above the floor" not in page
