"""A scan of one's own: what its alignment and its boxes come from, row by row of docs/CONVENTIONS.md."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ross3d.data import own_scan, proposals, sanity, upright
from ross3d.data.own_scan import is_upright, read_own_scan
from ross3d.data.prepare.__main__ import main as prepare
from ross3d.data.sanity import measure_sanity
from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder, write_rgbd_folder
from ross3d.data.surface import sample_surface
from ross3d.data.upright import align_scene, estimate_upright
from ross3d.scenes.build import make_scene
from ross3d.tools.view import main as view_main


def make_turn(axis: int, degrees: float) -> np.ndarray:
    """4x4 rotation about an axis."""
    angle, (a, b) = np.deg2rad(degrees), [other for other in range(3) if other != axis]
    matrix = np.eye(4)
    matrix[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
    return matrix


def make_room(index: int = 0) -> Scene:
    return make_scene(seed=5, split="val", index=index, num_views=10, image_size=(96, 72), bev_size=48)[0]


def write_moved(folder: Path, matrix: np.ndarray, room: Scene | None = None, with_boxes: bool = False) -> Path:
    """A room whose world was moved, in a folder without alignment; boxes stay where they were."""
    room = room or make_room()
    boxes = {} if with_boxes else {"boxes": None, "box_labels": None}
    moved = replace(room, cam2world=matrix @ room.cam2world, bev_image=None, bev_valid=None, bev_bounds=None, **boxes)
    return write_rgbd_folder(moved, folder / "scan")


def measure_tilt(scene: Scene, room: Scene) -> float:
    """Angle between the room's own up and the scan's z, degrees."""
    turn = scene.cam2world[0, :3, :3] @ room.cam2world[0, :3, :3].T
    return float(np.rad2deg(np.arccos(np.clip(turn[2, 2], -1, 1))))


@pytest.mark.parametrize(
    ("degrees", "lift", "moved"), [(0.0, 0.0, False), (0.0, 0.075, True), (2.8, 0.0, True), (2.5, 0.06, True)]
)
def test_a_world_that_is_nearly_upright_is_mended_all_the_same(tmp_path, degrees, lift, moved):
    """Proposals take off 5 cm of floor, so what is further off loses its boxes."""
    matrix, room = make_turn(0, degrees), make_room()
    matrix[2, 3] = lift
    scan = read_own_scan(write_moved(tmp_path, matrix, room))
    assert is_upright(scan.estimate) == (not moved) and (scan.axis_align_matrix is not None) == moved
    assert measure_tilt(scan.scene, room) < 0.5
    warned = measure_sanity(scan.scene).list_warnings()
    assert not [text for text in warned if "floor" in text], warned
    assert ("was not turned" in scan.alignment) == (not moved)


def test_an_empty_list_of_boxes_is_none(tmp_path):
    folder = write_moved(tmp_path, make_turn(1, 20.0))
    for name in ("proposals.json", "boxes.json"):
        (folder / name).write_text("[]")
    scan = read_own_scan(folder)
    assert scan.estimate is not None and scan.proposals is not None and len(scan.boxes)
    (folder / "given.json").write_text("[]")
    given = read_own_scan(folder, boxes=folder / "given.json")
    assert given.estimate is not None and len(given.boxes)


def test_what_was_made_in_an_unaligned_world_is_no_evidence(tmp_path):
    """Proposals and bird's-eye pictures that a command left there go when the world is turned."""
    folder = write_moved(tmp_path, make_turn(1, 15.0))
    (folder / "proposals.json").write_text(json.dumps([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]))
    # The command refuses a tilted world: the picture was made before it was moved.
    upright = write_moved(tmp_path / "upright", np.eye(4))
    prepare(["bev", "--data", str(upright), "--bev-size", "32", "--num-workers", "1"])
    for file in upright.glob("bev*"):
        shutil.copy(file, folder)
    assert (folder / "bev.png").is_file()
    scan = read_own_scan(folder)
    assert scan.estimate is not None and scan.scene.proposal_boxes is None and scan.scene.bev_image is None
    assert scan.proposals is not None and measure_tilt(scan.scene, make_room()) < 1.0


def test_boxes_of_objects_lie_in_an_upright_world(tmp_path):
    folder = write_moved(tmp_path, np.eye(4), with_boxes=True)
    scan = read_own_scan(folder)
    assert scan.estimate is None and "boxes did: its world is taken to be upright" in scan.alignment
    assert np.array_equal(scan.boxes, scan.scene.boxes) and scan.proposals is None
    assert scan.describe_boxes() == f"{len(scan.boxes)} boxes came with the scan"
    assert len(scan.read_views(3).boxes) == len(scan.boxes)


def test_a_given_alignment_goes_first_and_leaves_what_is_of_another_world(tmp_path):
    folder = write_moved(tmp_path, np.eye(4), with_boxes=True)
    np.savetxt(folder / "axis_align.txt", np.eye(4))
    assert read_own_scan(folder).alignment == "the alignment came with the scan"
    np.savetxt(tmp_path / "turn.txt", make_turn(2, 90.0))
    scan = read_own_scan(folder, axis_align_matrix=tmp_path / "turn.txt")
    assert scan.alignment == "alignment given: turn.txt" and scan.scene.boxes is None and scan.proposals is not None
    np.testing.assert_allclose(scan.scene.axis_align_matrix, make_turn(2, 90.0), atol=1e-12)
    np.savetxt(tmp_path / "same.txt", np.eye(4))
    assert read_own_scan(folder, axis_align_matrix=tmp_path / "same.txt").scene.boxes is not None


def test_given_boxes_are_those_of_the_file_or_refused(tmp_path):
    folder = write_moved(tmp_path, np.eye(4), with_boxes=True)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps([[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]))
    scan = read_own_scan(folder, boxes=file)
    assert len(scan.boxes) == 1 and scan.describe_boxes() == "1 boxes given: mine.json"
    assert len(scan.read_views(2).boxes) == 1
    file.write_text(json.dumps({"another_scan": [[0.0, 0.0, 0.5, 1.0, 1.0, 1.0]]}))
    with pytest.raises(ValueError, match="mine.json"):
        read_own_scan(folder, boxes=file)


def test_a_lost_frame_is_left_out_and_told(tmp_path):
    folder = write_moved(tmp_path, make_turn(0, 10.0))
    np.savetxt(sorted(folder.glob("*.pose.txt"))[3], np.full((4, 4), -np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = read_own_scan(folder)
    assert list(scan.scene.exclusions) == ["frame-000003"] and scan.scene.num_views == 9


def test_an_alignment_without_depth_is_said_to_be_unchecked(tmp_path):
    folder = write_moved(tmp_path, np.eye(4))
    for file in folder.glob("*.depth.png"):
        file.unlink()
    assert read_own_scan(folder).alignment == "the views have no depth: nothing was estimated"
    np.savetxt(tmp_path / "turn.txt", make_turn(2, 30.0))
    given = read_own_scan(folder, axis_align_matrix=tmp_path / "turn.txt")
    assert given.alignment == "alignment given; the views have no depth: nothing checks it"


@pytest.mark.parametrize(("axis", "degrees"), [(0, 90.0), (0, 180.0), (1, -90.0)])
def test_a_room_on_its_side_does_not_look_upright(axis, degrees):
    room = make_room(1)
    assert not [text for text in measure_sanity(room).list_warnings() if "floor" in text or "edge" in text]
    turned = replace(room, cam2world=make_turn(axis, degrees) @ room.cam2world)
    assert "cameras have their upper edge up" in " ".join(measure_sanity(turned).list_warnings())


def test_a_tilted_floor_is_told():
    room = make_room(2)
    tilted = replace(room, cam2world=make_turn(0, 2.0) @ room.cam2world)
    sanity = measure_sanity(tilted)
    assert sanity.floor_tilt == pytest.approx(2.0, abs=0.3) and "the floor is tilted by" in " ".join(
        sanity.list_warnings()
    )
    assert measure_sanity(room).floor_tilt < 0.3


def test_alignments_are_put_one_behind_the_other(tmp_path):
    room = read_rgbd_folder(write_moved(tmp_path, make_turn(0, 12.0)))
    first = align_scene(room, estimate_upright(room))
    second = align_scene(first, estimate_upright(first))
    np.testing.assert_allclose(second.cam2world, second.axis_align_matrix @ room.cam2world, atol=1e-9)
    with pytest.raises(ValueError, match="expected a scan without proposal_boxes to align by estimate"):
        align_scene(replace(room, proposal_boxes=np.zeros((1, 6), np.float32)), estimate_upright(room))


@pytest.mark.parametrize(("image_size", "view"), [((96, 72), 0), ((64, 80), 3)])
@pytest.mark.parametrize("degrees", [0.0, 90.0])
def test_a_scan_of_one_frame_has_its_page(tmp_path, image_size, view, degrees):
    room = make_scene(seed=5, split="val", index=0, num_views=10, image_size=image_size, bev_size=48)[0]
    one = replace(
        room, images=room.images[[view]], depth_maps=room.depth_maps[[view]], cam2world=room.cam2world[[view]],
        view_names=[], boxes=None, box_labels=None,
    )  # fmt: skip
    folder = write_moved(tmp_path, make_turn(0, degrees), one)
    np.savetxt(folder / "axis_align.txt", make_turn(0, -degrees))
    scan = read_own_scan(folder)
    assert scan.scene.num_views == 1 and np.allclose(scan.scene.cam2world, one.cam2world, atol=1e-6)
    page = view_main([str(folder), "--output", str(tmp_path / "page.html")])
    assert "Posed views with depth in metres" in page.read_text()


@pytest.mark.parametrize(("degrees", "exact"), [(0.0, True), (17.0, False)])
def test_the_surface_of_a_scan_is_sampled_once(tmp_path, monkeypatch, degrees, exact):
    """Alignment, boxes, and what the page says of floor and walls come from the same patches of depth."""
    folder = write_moved(tmp_path, make_turn(1, degrees))
    sampled = []

    def sample(scene, *cells):
        sampled.append(scene.num_views)
        return sample_surface(scene, *cells)

    for module in (own_scan, proposals, sanity, upright):
        monkeypatch.setattr(module, "sample_surface", sample)
    view_main([str(folder), "--output", str(tmp_path / "page.html")])
    assert sampled == [10]
    scan = read_own_scan(folder)
    anew = proposals.propose_boxes(scan.scene).boxes
    assert len(anew) and scan.boxes.shape == anew.shape and np.allclose(scan.boxes, anew, atol=1e-4)
    assert not exact or np.array_equal(scan.boxes, anew)
    handed, again = (sanity.measure_sanity(scan.scene, surface) for surface in (scan.surface, None))
    assert handed.list_warnings() == again.list_warnings() and handed.list_facts() == again.list_facts()
