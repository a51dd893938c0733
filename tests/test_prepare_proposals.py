"""Proposals of data folders and scans by the command: from depth, masks and lists; only what is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ross3d.data.prepare.__main__ import main
from ross3d.data.prepare.boxes import make_mask_boxes
from ross3d.data.proposals import propose_boxes
from ross3d.data.sources import read_scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tests.public_files import write_posed_images
from ross3d.tests.raw_scannet import RawScan, write_raw_scan
from ross3d.tests.scan_folders import write_rgbd
from ross3d.tests.test_prepare import hash_files, list_states
from ross3d.tests.tiny import get_rooms


def run(*arguments) -> None:
    main(["proposals", *map(str, arguments), "--num-workers", "1"])


@pytest.fixture
def rooms(tmp_path) -> Path:
    """Two training rooms and one held-out one."""
    for name in ("train/train-000001", "train/train-000004", "val/val-000000"):
        shutil.copytree(get_rooms() / name, tmp_path / "rooms" / name)
    return tmp_path / "rooms"


def test_boxes_from_depth_are_made_where_there_are_none(rooms, capsys):
    detected = rooms / "val" / "val-000000" / "proposals.json"
    detected.write_text("[[0, 0, 0.5, 1, 1, 1]]")
    run("--data", rooms)
    assert capsys.readouterr().out == f"{rooms}: 2 made, 1 there already\n"
    assert detected.read_text() == "[[0, 0, 0.5, 1, 1, 1]]", "a benchmark's boxes stay"
    scene = read_rgbd_folder(rooms / "train" / "train-000004")
    np.testing.assert_allclose(scene.proposal_boxes, propose_boxes(scene).boxes, atol=6e-5)
    assert len(scene.proposal_boxes) > 4
    made, states = hash_files(rooms), list_states(rooms)
    run("--data", rooms)
    assert "0 made, 3 there already" in capsys.readouterr().out and list_states(rooms) == states
    missing = rooms / "train" / "train-000001" / "proposals.json"
    missing.unlink()
    (missing.parent / ".proposals.json.17.0123abcd.partial").write_text("half")
    run("--data", rooms)
    assert "1 made, 2 there already" in capsys.readouterr().out and hash_files(rooms) == made
    main(["proposals", "--data", str(rooms), "--force", "--num-workers", "2"])
    assert "3 made, 0 there already" in capsys.readouterr().out
    assert len(json.loads(detected.read_text())) > 4


def test_a_scene_without_depth_is_named_and_the_others_are_made(rooms):
    for file in (rooms / "train" / "train-000004").glob("*.depth.png"):
        file.unlink()
    with pytest.raises(
        ValueError, match=r"(?s)proposals: 1 of 3 failed.*train-000004: .*proposing boxes needs depth_maps"
    ):
        run("--data", rooms)
    scene = read_rgbd_folder(rooms / "val" / "val-000000")
    np.testing.assert_allclose(scene.proposal_boxes, propose_boxes(scene).boxes, atol=6e-5)


def test_lists_by_scene(rooms, tmp_path):
    file = tmp_path / "detector.json"
    rows = {path.name: [[number, 0, 1, 1, 1, 2]] for number, path in enumerate(sorted(rooms.glob("*/*")))}
    file.write_text(json.dumps(rows))
    run("--data", rooms, "--boxes", file)
    for path in rooms.glob("*/*"):
        assert json.loads((path / "proposals.json").read_text()) == rows[path.name]


ROWS = [[0, 0, 1, 1, 1, 2], [0.5, 1, 0.4, 0.2, 0.3, 0.8]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "boxes.json does not exist; expected a JSON list of boxes"),
        ("[[0, 0", "boxes.json: expected a JSON list of boxes"),
        ('"none"', "boxes.json: expected .{.box.: .*, got TypeError"),
        (json.dumps({"val-000000": ROWS[0][:5]}), "boxes.json, val-000000: expected .*, got TypeError"),
        (json.dumps({"val-000000": [ROWS[0][:5]]}), r"boxes.json, val-000000: expected shape \(K, 6\)"),
        (
            json.dumps({"scannet/val-000000": [[1e7, *ROWS[0][1:]]]}),
            "scannet/val-000000: expected .* in metres",
        ),
        (json.dumps({"room-7": ROWS, "room-8": []}), "of 3 scenes, such as 'train-000001', got boxes of 2 other"),
        (
            json.dumps(ROWS),
            "boxes.json: expected boxes by scene for 3 scenes, got one list without scene names; write",
        ),
    ],
)
def test_a_list_is_read_where_every_scene_has_proposals_already(rooms, tmp_path, content, message):
    """A file that is not there, none of boxes, of other scenes, or of one scene for three."""
    for path in rooms.glob("*/*-0*"):
        (path / "proposals.json").write_text("[]")
    file = tmp_path / "boxes.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        run("--data", rooms, "--boxes", file)


@pytest.mark.parametrize("name", ["val/val-000000", "train/train-000004"])
def test_a_list_in_another_unit_is_refused_before_it_is_written(rooms, tmp_path, name):
    room, file = rooms / name, tmp_path / "boxes.json"
    scene = read_rgbd_folder(room)
    rows = (100 * np.concatenate([scene.cam2world[0, :3, 3], [0.5, 0.6, 0.7]])).tolist()
    file.write_text(json.dumps([rows]))
    with pytest.raises(
        ValueError,
        match=rf"the boxes are not valid: proposal_boxes of scene '{room.name}': .*centimetres",
    ):
        run("--data", room, "--boxes", file)
    assert not (room / "proposals.json").exists()
    # Such a file of before is named, since its error is about it and not about what is given.
    (room / "proposals.json").write_text(json.dumps([rows]))
    file.write_text(json.dumps(ROWS))
    with pytest.raises(
        ValueError, match=r"This error is about .*proposals\.json: move it away and run this command again"
    ):
        run("--data", room, "--boxes", file, "--force")


def test_a_list_of_one_scene_or_of_some_is_taken(rooms, tmp_path):
    room, file = rooms / "val" / "val-000000", tmp_path / "boxes.json"
    file.write_text(json.dumps(ROWS))
    run("--data", room, "--boxes", file)
    assert json.loads((room / "proposals.json").read_text())[0] == ROWS[0]
    # Those that have theirs need not be in it.
    file.write_text(json.dumps({"train-000001": ROWS[:1], "scannet/train-000004": [], "elsewhere": [[1]]}))
    run("--data", rooms, "--boxes", file)
    assert json.loads((rooms / "train" / "train-000001" / "proposals.json").read_text()) == ROWS[:1]


@pytest.fixture(scope="module")
def scan(tmp_path_factory) -> RawScan:
    return write_raw_scan(tmp_path_factory.mktemp("raw"), "scene0004_00", 3, 31)


def get_masks(scan: RawScan) -> np.ndarray:
    """Masks (K, M) of its objects, a mask of nothing among them."""
    masks = np.stack([scan.instance_ids == number for number in scan.object_ids[2:]])
    return np.insert(masks, 1, False, axis=0).astype(np.uint8)


def write_export(scan: RawScan, folder: Path) -> Path:
    """Masks as Mask3D writes them, the best last in the file."""
    (folder / "pred_mask").mkdir(parents=True)
    masks, lines = get_masks(scan), []
    for number, mask in enumerate(masks):
        name = f"pred_mask/{scan.folder.name}_{number}.txt"
        np.savetxt(folder / name, mask, fmt="%d")
        lines.append(f"{name} {number + 2} {(number + 1) / 10}\n")
    (folder / f"{scan.folder.name}.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize("layout", ["rgbd_folder", "posed_images", "scannet"])
def test_masks_give_the_same_boxes_in_any_layout(scan, tmp_path, layout):
    """Over the raw scan's mesh, whose alignment the folder's reader knows; the best score first."""
    name, raw = scan.folder.name, shutil.copytree(scan.folder.parents[1], tmp_path / "raw")
    folder = {
        "rgbd_folder": tmp_path / "data" / name,
        "posed_images": tmp_path / "scannet" / "posed_images" / name,
        "scannet": raw / "scans" / name,
    }[layout]
    if layout == "rgbd_folder":
        write_rgbd(scan, folder)
    elif layout == "posed_images":
        write_posed_images(tmp_path / "scannet", name, scan)
    where = [] if layout == "scannet" else ["--scans", raw / "scans"]
    run("--data", folder, "--masks", write_export(scan, tmp_path / "mask3d"), *where)
    expected = [box for box in make_mask_boxes(scan.vertices, get_masks(scan))[::-1] if box is not None]
    scene = read_scene(folder)
    assert len(expected) == len(scan.object_ids) - 2 > 3
    np.testing.assert_allclose(scene.proposal_boxes, expected, atol=2e-4)
    turned = read_scene(folder, axis_align_matrix=np.eye(4))
    assert turned.proposal_boxes is None, "the boxes are of another world"


def test_published_masks_keep_their_order(scan, tmp_path):
    """SCENE.mask.npz, its file given for one scene; the mesh lies beside it."""
    folder = write_rgbd(scan, tmp_path / "data" / scan.folder.name)
    file = tmp_path / "mask" / f"{scan.folder.name}.mask.npz"
    file.parent.mkdir()
    scipy.sparse.save_npz(file, scipy.sparse.csr_matrix(get_masks(scan)))
    mesh = scan.folder / f"{scan.folder.name}_vh_clean_2.ply"
    shutil.copy(mesh, file.parent / f"{scan.folder.name}.ply")
    run("--data", tmp_path / "data", "--masks", file)
    expected = [box for box in make_mask_boxes(scan.vertices, get_masks(scan)) if box is not None]
    np.testing.assert_allclose(read_rgbd_folder(folder).proposal_boxes, expected, atol=2e-4)


def test_masks_and_meshes_that_are_not_there(scan, rooms, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="--masks: expected the folder of the masks or one file, found nothing at .*nowhere"
    ):
        run("--data", rooms, "--masks", tmp_path / "nowhere")
    masks = write_export(scan, tmp_path / "mask3d")
    with pytest.raises(ValueError, match=r"expected masks of 3 scenes .*scene0004_00.txt; give the folder"):
        run("--data", rooms, "--masks", masks / "scene0004_00.txt")
    with pytest.raises(ValueError, match=r"expected train-000001.mask.npz or .*add the masks of this"):
        run("--data", rooms, "--masks", masks)
    folder = write_rgbd(scan, tmp_path / "data" / scan.folder.name)
    with pytest.raises(ValueError, match=r"scene0004_00: expected the mesh of the masks, one of \["):
        run("--data", folder, "--masks", masks)
    assert not (folder / "proposals.json").exists()
    with pytest.raises(SystemExit):
        run("--data", folder, "--masks", masks, "--boxes", masks / "boxes.json")
