"""Preparation from files of others: names lead nowhere else, sizes are looked at first, nothing is passed over."""

import io
import json
import os
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from PIL import Image

from ross3d.command_line import run_program
from ross3d.data.annotations import load_annotations
from ross3d.data.box_files import read_mask3d
from ross3d.data.names import check_name
from ross3d.data.prepare import mask_files
from ross3d.data.prepare.__main__ import main
from ross3d.data.prepare.bev import MAX_POINTS, sample_mesh
from ross3d.data.prepare.mask_files import read_mask_boxes
from ross3d.data.prepare.official_set import read_official
from ross3d.data.prepare.posed_images import read_public, read_view
from ross3d.data.sources import list_folders
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tests.given_scans import copy_given, prepare_given
from ross3d.tests.limited_memory import call_within
from ross3d.tests.official_annotations import write
from ross3d.tests.public_files import write_posed_images
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.tiny import get_rooms


NAMES_OUT = ["..", ".", "", "../secret", "a/b", "/etc", ".hidden", "a b", "a\n", "a\0b", "x" * 300, 7, None]


@pytest.mark.parametrize("name", NAMES_OUT)
def test_names_that_lead_elsewhere_are_refused(name):
    with pytest.raises(ValueError, match="list.json: expected a name of letters, digits, _, - and .*rename it"):
        check_name(name, "list.json")


@pytest.mark.parametrize("name", ["scene0000_00", "47333462", "küche-2", "0a1b.v2", "-"])
def test_plain_names_pass(name):
    assert check_name(name, "list.json") == name


@pytest.fixture
def given(tmp_path) -> Path:
    return copy_given(tmp_path / "given")


# ---- names


def make_public(root: Path, **changes) -> Path:
    """One record about one scene, whose frames are those of a raw scan."""
    scan = write_raw_scan(root / "raw", "scene0001_00", 0, 21)
    write_posed_images(root / "data" / "scannet", "scene0001_00", scan)
    turns = [{"value": "<image> Why?", "from": "human"}, {"value": "so", "from": "gpt"}]
    metadata = {"dataset": "scanqa", "question_type": "unknow"}
    record = {"id": 7, "video": "scannet/scene0001_00", "conversations": turns, "metadata": metadata}
    write(root / "data" / "processed" / "scanqa_train_llava_style.json", [record | changes])
    return root / "data"


def prepare_public(root: Path, output: Path) -> None:
    given = ["posed-images", "--root", root, "--output", output, "--views", 2, "--bev-size", 24, "--num-workers", 1]
    main([str(argument) for argument in given])


@pytest.mark.parametrize("video", ["scannet/..", "scannet/../..", "..", "scannet/../../out", "scannet/", "/etc"])
def test_a_record_names_no_other_folder(tmp_path, video):
    """`scannet/..` made the output itself the scene's folder, which was removed with all that was in it."""
    root, out = make_public(tmp_path, video=video), tmp_path / "out"
    (out / "train").mkdir(parents=True)
    (out / "thesis.txt").write_text("mine")
    shutil.copytree(root / "scannet" / "posed_images" / "scene0001_00", root / "scannet", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="scanqa_train_llava_style.json, record 0: expected a name of letters"):
        prepare_public(root, out)
    assert (out / "thesis.txt").read_text() == "mine"


def test_box_files_and_lists_name_no_other_folder(tmp_path, given):
    root = make_public(tmp_path)
    for split, kind, rows in (("train", "gt", [[0.0] * 6]), ("val", "pred", [])):
        file = root / "metadata" / f"scannet_{split}_{kind}_box.json"
        write(file, {"scannet/..": rows})
        with pytest.raises(ValueError, match=f"{file.name}: expected a name of letters.*got '..'"):
            read_public(root)
        file.unlink()
    (given / "official" / "scannetv2_train.txt").write_text("scene0001_00\n../../secret\n")
    with pytest.raises(ValueError, match="scannetv2_train.txt: expected a name of letters.*got '../../secret'"):
        read_official(given / "official")


@pytest.mark.parametrize("name", ["ScanQA_v1.0_val", "ScanRefer_filtered_train", "multi3drefer_train"])
def test_official_files_name_no_other_folder(given, name):
    file = next((given / "official").rglob(f"{name}.json"))
    rows = json.loads(file.read_text())
    write(file, [*rows[:-1], rows[-1] | {"scene_id": "../train"}])
    with pytest.raises(ValueError, match=f"{name}.json, entry {len(rows) - 1}, field 'scene_id': expected a name of"):
        prepare_given(given)


def test_what_somebody_put_there_is_not_removed(given):
    """A folder, or a link to one, where a scene is to be written."""
    mine, place = given / "mine", given / "out" / "train" / "scene0001_00"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    place.parent.mkdir(parents=True)
    for put in (lambda: shutil.copytree(mine, place), lambda: place.symlink_to(mine)):
        put()
        with pytest.raises(ValueError, match="--output: .*scene0001_00 exists and is not a prepared scene; move"):
            prepare_given(given)
        assert (place / "thesis.txt").read_text() == "mine" == (mine / "thesis.txt").read_text()
        place.unlink() if place.is_symlink() else shutil.rmtree(place)
    prepare_given(given)
    assert read_rgbd_folder(place).num_views == 2


def test_what_lies_where_a_scene_is_linked_is_not_removed(given):
    """A scan of two splits is the same files in both; the second place is somebody's folder."""
    prepare_given(given)
    (given / "out" / "account.json").unlink()
    place = next(path for path in (given / "out" / "test").iterdir())
    shutil.rmtree(place)
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"--output: .*{place.name} exists and is not a prepared scene; move"):
        prepare_given(given)
    assert (place / "thesis.txt").read_text() == "mine"


def test_boxes_that_are_none_are_told_with_their_file(tmp_path):
    root = make_public(tmp_path)
    file = root / "metadata" / "scannet_train_gt_box.json"
    for rows, message in (
        ([[0, 0, 0, 1, 1]], r"scannet/scene0001_00: expected shape \(K, 6\)"),
        ([[0, 0, 0, 1, 1, -1]], "scannet/scene0001_00: expected sizes >= 0"),
        ([None], "scannet/scene0001_00: "),
        ([{"box": [0] * 6}], "scene0001_00: expected boxes of six numbers, centre and size in metres, got .*download"),
    ):
        write(file, {"scannet/scene0001_00": rows})
        with pytest.raises(ValueError, match=message):
            read_public(root)


# ---- depth of public files


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.full((4, 5), 150, np.uint8), "00010.png: expected a 16-bit one-channel PNG"),
        (np.full((4, 5), 70_000, np.int32), "00010.png: expected depth of 0 to 65535 millimetres, got 70000 to 70000"),
        (np.full((4, 5), -3, np.int32), "00010.png"),
        (np.full((4, 5), 3, np.uint16), "00010.png: the largest depth is 3, which looks like metres"),
        (np.full((4, 5, 3), 9, np.uint8), "00010.png: expected a 16-bit one-channel PNG"),
    ],
)
def test_depth_is_refused_as_its_reader_would(tmp_path, depth, message):
    suffix = "TIFF" if depth.dtype == np.int32 else "PNG"
    Image.fromarray(depth).save(tmp_path / "00010.png", format=suffix)
    (tmp_path / "00010.jpg").write_bytes(b"picture")
    with pytest.raises(ValueError, match=message):
        read_view(tmp_path, "00010", np.eye(4))


def test_depth_within_sixteen_bits_passes(tmp_path):
    (tmp_path / "00010.jpg").write_bytes(b"picture")
    for kind in (np.uint16, np.int32):
        depth = np.array([[0, 1234, 65535], [700, 800, 900]], kind)
        Image.fromarray(depth).save(tmp_path / "00010.png", format="TIFF" if kind == np.int32 else "PNG")
        view = read_view(tmp_path, "00010", np.eye(4))
        assert view.depth_mm.dtype == np.uint16 and np.array_equal(view.depth_mm, depth)


def test_frames_have_numbers_for_names(tmp_path):
    root = make_public(tmp_path)
    images = root / "scannet" / "posed_images" / "scene0001_00"
    for name in ("1_copy", "000010"):
        for suffix in (".jpg", ".png", ".txt"):
            shutil.copy(images / f"00010{suffix}", images / f"{name}{suffix}")
        with pytest.raises(ValueError, match="scene0001_00: expected frames named by unique numbers.*00010"):
            prepare_public(root, tmp_path / "out")
        for suffix in (".jpg", ".png", ".txt"):
            (images / f"{name}{suffix}").unlink()
    prepare_public(root, tmp_path / "out")


# ---- masks


VERTICES = np.arange(21, dtype=np.float32).reshape(7, 3)


def write_arrays(file: Path, compression=zipfile.ZIP_DEFLATED, **arrays) -> Path:
    """A `.npz`; bytes are written as they are."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, array in arrays.items():
            if not isinstance(array, bytes):
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=True)
                array = buffer.getvalue()
            archive.writestr(f"{name}.npy", array)
    return file


def make_csr(**changes) -> dict:
    masks = scipy.sparse.csr_matrix(np.array([[1, 0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0]], np.uint8))
    arrays = {"data": masks.data, "indices": masks.indices, "indptr": masks.indptr}
    return arrays | {"shape": np.array(masks.shape), "format": np.array(b"csr")} | changes


def make_header(shape: tuple, kind: str = "<i4") -> bytes:
    """The beginning of an array that is not there."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": kind, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


BROKEN_MASKS = {
    "a place beyond the last vertex": make_csr(indices=np.array([0, 4, 7], np.int32)),
    "a place far beyond": make_csr(indices=np.array([0, 4, 2**30], np.int32)),
    "a place before the first": make_csr(indices=np.array([0, -5, 2], np.int32)),
    "starts beyond the end": make_csr(indptr=np.array([0, 2, 2**30], np.int32)),
    "starts that go back": make_csr(indptr=np.array([0, 4, 3], np.int32)),
    "coordinates beyond": {
        "row": np.array([0, 9]), "col": np.array([1, 1]), "data": np.ones(2), "shape": np.array([2, 7]),
        "format": np.array(b"coo"),
    },
    "places between two vertices": make_csr(indices=np.array([0, 4.7, 2])),
    "starts of floats": make_csr(indptr=np.array([0, 2, 3.0])),
    "a shape of floats": make_csr(shape=np.array([2, 7.5])),
    "coordinates of truth values": {
        "row": np.array([True, False]), "col": np.array([1, 1]), "data": np.ones(2), "shape": np.array([2, 7]),
        "format": np.array(b"coo"),
    },
    "objects": make_csr(data=np.array([{}, {}, {}], dtype=object)),
    "another format": {
        "data": np.ones((1, 7)), "offsets": np.array([0]), "shape": np.array([2, 7]), "format": np.array(b"dia")
    },
    "no array": make_csr(data=b"half"),
    "a header of 4 TB": make_csr(data=make_header((2**40,))),
    "a header of exabytes": make_csr(indices=make_header((2**31, 2**31))),
}  # fmt: skip


# What is told of those that NumPy and SciPy would take as they are.
REASONS = {
    "coordinates beyond": "axis 0 index 9 exceeds matrix dimension 2",
    "another format": "format dia of 2 axes, one of .* of 2 is read",
    "a header of 4 TB": "data.npy does not hold the .1099511627776,. of int32 that it says",
    "places between two vertices": "indices.npy holds float64, places are whole numbers",
    "starts of floats": "indptr.npy holds float64, places are whole numbers",
    "a shape of floats": "shape.npy holds float64, places are whole numbers",
    "coordinates of truth values": "row.npy holds bool, places are whole numbers",
    "objects": "data.npy does not hold the .3,. of object that it says",
}


@pytest.mark.parametrize("case", BROKEN_MASKS)
def test_masks_whose_numbers_lie_elsewhere_are_refused(tmp_path, case):
    """SciPy would write outside of its memory; a process of its own tells whether it did."""
    file = write_arrays(tmp_path / "scene0001_00.mask.npz", **BROKEN_MASKS[case])
    reason = REASONS.get(case, ".*")
    message = rf"scene0001_00.mask.npz: expected a sparse matrix of masks \({reason}\); download it again"
    with pytest.raises(ValueError, match=message):
        call_within(256, read_mask_boxes, file, VERTICES)


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_masks_in_any_of_three_forms(tmp_path, kind):
    masks = np.zeros((3, 7), bool)
    masks[0, [1, 4]], masks[2, 6] = True, True
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_matrix(masks).asformat(kind))
    first, empty, point = read_mask_boxes(tmp_path / "a.npz", VERTICES)
    assert first == [*((VERTICES[1] + VERTICES[4]) / 2), 9, 9, 9] and empty is None and point[3:] == [0, 0, 0]
    scipy.sparse.save_npz(tmp_path / "a.npz", scipy.sparse.csr_matrix(masks * 0.5).asformat(kind))
    with pytest.raises(ValueError, match="a.npz: expected masks of 0 and 1, got 0.5; apply the threshold when export"):
        read_mask_boxes(tmp_path / "a.npz", VERTICES)


def test_masks_that_unpack_to_gigabytes_take_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(mask_files, "MAX_MASK_BYTES", 2**25)
    bomb = tmp_path / "a.mask.npz"
    zeros = bytes(2**20)
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("data.npy", "w") as member:
        for _ in range(100):
            member.write(zeros)
    assert bomb.stat().st_size < 2**18
    with pytest.raises(
        ValueError, match=r"a.mask.npz: expected a sparse matrix of masks \(it unpacks to \d+ bytes, at"
    ):
        call_within(64, read_mask_boxes, bomb, VERTICES)
    rows = 10**9
    empty = {"data": np.ones(0), "row": np.zeros(0, int), "col": np.zeros(0, int), "format": np.array(b"coo")}
    write_arrays(bomb, **empty, shape=np.array([rows, 7]))
    with pytest.raises(
        ValueError, match="a.mask.npz: expected at most 100000 masks, got 1000000000; are rows and col"
    ):
        call_within(64, read_mask_boxes, bomb, VERTICES)
    os.truncate(bomb, 3 * 2**30)
    with pytest.raises(ValueError, match="expected a sparse matrix of masks, of at most 34 MB, got 3221 MB"):
        call_within(64, read_mask_boxes, bomb, VERTICES)


@pytest.mark.parametrize(
    "name", ["../secret.txt", "/etc/hostname", "pred_mask/link.txt", "pred_mask/../../secret.txt"]
)
def test_a_list_of_masks_names_files_of_its_own_folder(tmp_path, name):
    (tmp_path / "secret.txt").write_text("top secret\n")
    folder = tmp_path / "masks"
    (folder / "pred_mask").mkdir(parents=True)
    (folder / "pred_mask" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "room.txt").write_text(f"{name} 4 0.9\n")
    with pytest.raises(ValueError, match="room.txt: expected a file inside .*masks, got") as caught:
        read_mask3d(folder / "room.txt", VERTICES)
    assert "top" not in str(caught.value)
    (folder / "pred_mask" / "link.txt").unlink()
    (folder / "pred_mask" / "link.txt").write_text("1\n0\n0\n0\n1\n0\n0\n")
    (folder / "room.txt").write_text("pred_mask/link.txt 4 0.9\n")
    assert len(read_mask3d(folder / "room.txt", VERTICES).boxes) == 1
    os.truncate(folder / "pred_mask" / "link.txt", 20 * 2**30)
    with pytest.raises(
        ValueError, match="link.txt: expected 0 or 1 for each of 7 vertices, of at most .* kB, got 21475"
    ):
        call_within(64, read_mask3d, folder / "room.txt", VERTICES)


def test_masks_over_a_mesh_of_polygons(tmp_path):
    """Squares, as in the meshes of Replica, and faces of other numbers of corners: only vertices are looked at."""
    room = shutil.copytree(get_rooms() / "val" / "val-000000", tmp_path / "val-000000")
    (room / "proposals.json").unlink(missing_ok=True)
    mesh = "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
    # Neither colours that are no bytes nor lists of an unknown name matter here.
    mesh += "property float red\nproperty float green\nproperty float blue\n"
    mesh += "element face 2\nproperty list uchar int corners\nend_header\n"
    rows = ("0 0 0", "1 0 0", "1 2 0.5", "0 2 0", "3 3 3")
    mesh += "".join(f"{row} 0.25 1 0\n" for row in rows) + "4 0 1 2 3\n5 0 1 2 3 4\n"
    masks = tmp_path / "masks"
    (masks / "pred_mask").mkdir(parents=True)
    (masks / "val-000000.ply").write_text(mesh)
    (masks / "val-000000.txt").write_text("pred_mask/a.txt 4 0.9\n")
    (masks / "pred_mask" / "a.txt").write_text("1\n1\n1\n0\n0\n")
    main(["proposals", "--data", str(room), "--masks", str(masks), "--num-workers", "1"])
    assert json.loads((room / "proposals.json").read_text()) == [[0.5, 1.0, 0.25, 1.0, 2.0, 0.5]]


# ---- bird's-eye pictures


def test_triangles_that_would_never_end_are_refused():
    vertices, colors = np.zeros((3, 3), np.float32), np.zeros((3, 3), np.uint8)
    vertices[1, 0], vertices[2, 1] = 900, 900
    with pytest.raises(
        ValueError, match=rf"room.ply: expected triangles that {MAX_POINTS} points fill at 0.01 m spacing, got"
    ):
        call_within(256, sample_mesh, vertices, colors, np.array([[0, 1, 2]]), 0.01, "room.ply")
    assert len(sample_mesh(vertices, colors, np.array([[0, 1, 2]]), 10.0)[0]) > 3


@pytest.mark.parametrize(
    "option",
    [
        "--bev-size 0",
        "--bev-size 4097",
        "--bev-size 1e9",
        "--views 0",
        "--views -3",
        "--views 99999",
        "--num-workers 0",
    ],
)
def test_numbers_on_the_command_line_have_limits(option, capsys):
    with pytest.raises(SystemExit):
        main(["scannet", "--scans", "a", "--annotations", "b", "--output", "c", *option.split()])
    assert f"argument {option.split()[0]}: expected " in capsys.readouterr().err


def test_clouds_are_drawn_and_meshes_without_colours_are_refused(given):
    ply = given / "raw" / "scans" / "scene0001_00" / "scene0001_00_vh_clean_2.ply"
    for folder in ("scene0002_00", "scene0003_00"):
        shutil.rmtree(given / "raw" / "scans" / folder)
    (ply.parent / "scene0001_00.aggregation.json").unlink()
    head = "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    ply.write_text(head + "end_header\n0 0 0\n1 1 1\n")
    with pytest.raises(
        ValueError, match="clean_2.ply: expected vertices with red, green and blue, got x, y, z; use a mesh"
    ):
        prepare_given(given, "--partial")
    colors = "property uchar red\nproperty uchar green\nproperty uchar blue\n"
    ply.write_text(head + colors + "end_header\n0 0 0 9 8 7\n1 1 1 9 8 7\n")
    prepare_given(given, "--partial")
    assert read_rgbd_folder(given / "out" / "train" / "scene0001_00").bev_valid.any()


# ---- what is not read is named


OTHERS = {
    "scanqa/ScanQA_v1.0_test_wo_obj.json": "test questions without answers cannot be scored",
    "scanrefer/ScanRefer_filtered_test.json": "test questions without answers cannot be scored",
    "scanrefer/ScanRefer_filtered.json": "has the rows of all splits; the file of each split is read instead",
    "scanrefer/ScanRefer.zip": "an archive; unpack it if its files are missing",
    "scanrefer/scanrefer_FILTERED_val.json": "its name is not exactly ScanRefer_filtered_val.json; rename it",
    "nr3d.csv": "not the name of an official file (docs/DATA.md lists them)",
    "sqa_task/answer_dict.json": "not the name of an official file",
}


def test_files_that_are_not_read_are_listed_with_the_reason(given, capsys):
    folder = given / "official"
    question = {"question_id": "test-1", "scene_id": "scene0003_00", "question": "What is this?"}
    for name in OTHERS:
        row = {"description": "it", **question} if "ScanRefer" in name else question
        write(folder / name, [row])
    prepare_given(given)
    told = capsys.readouterr().out.splitlines()
    account = json.loads((given / "out" / "account.json").read_text())
    assert sorted(name for names in account["files_not_read"].values() for name in names) == sorted(OTHERS)
    for name, reason in OTHERS.items():
        assert [line for line in told if line.startswith("  not read: ") and name in line and reason[:50] in line], (
            name
        )
    # Another file that is not read is reported as well, and nothing is made again for it.
    made = {file: file.stat().st_mtime_ns for file in (given / "out" / "train").rglob("*")}
    for number in range(25):
        (folder / f"note-{number:02}.txt").write_text("later")
    prepare_given(given)
    assert "note-19.txt and 7 more, in account.json: not the name of an official" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (given / "out" / "train").rglob("*")} == made


def test_test_files_with_answers_are_read(given):
    """Where somebody has them; ScanQA's two test files make one split."""
    folder = given / "official"
    for number, name in enumerate(("w_obj", "wo_obj")):
        row = {"question_id": f"test-{number}", "scene_id": "scene0003_00", "question": "What is this?"}
        write(folder / f"ScanQA_v1.0_test_{name}.json", [row | {"answers": [f"a bed {number}"]}])
    rows = json.loads(next(folder.rglob("ScanRefer_filtered_val.json")).read_text())
    write(folder / "ScanRefer_filtered_test.json", rows[:3])
    rows = json.loads(next(folder.rglob("multi3drefer_val.json")).read_text())
    write(folder / "multi3drefer_test.json", [row | {"object_ids": rows[2]["object_ids"]} for row in rows])
    prepare_given(given)
    found = load_annotations(given / "out" / "annotations" / "test.parquet")
    assert [row.answer for row in found if row.task == "scanqa"] == ["a bed 0", "a bed 1"]
    tasks = [row.task for row in found]
    assert (tasks.count("scanrefer"), tasks.count("multi3drefer"), tasks.count("sqa3d")) == (3, 3, 1)
    write(folder / "multi3drefer_test.json", [rows[2] | {"eval_type": "mixed"}])
    with pytest.raises(ValueError, match="multi3drefer_test.json, entry 0: eval_type must be of"):
        read_official(folder)


def test_public_files_that_are_not_read_are_listed(tmp_path, capsys):
    root = make_public(tmp_path)
    record = json.loads((root / "processed" / "scanqa_train_llava_style.json").read_text())[0]
    write(root / "processed" / "scanqa_test_llava_style.json", [record])
    for name in ("processed/nr3d_train_llava_style.json", "metadata/scannet_select_frames.json", "processed.zip"):
        write(root / name, [])
    (root / "metadata" / "metadata.zip").write_bytes(b"PK")
    prepare_public(root, tmp_path / "out")
    told = capsys.readouterr().out
    assert (
        "not read: processed/nr3d_train_llava_style.json, metadata/scannet_select_frames.json: not the path of a"
        in told
    )
    assert "not read: metadata/metadata.zip: an archive; unpack it" in told
    # Another split of a benchmark that is read is read too.
    assert len(load_annotations(tmp_path / "out" / "annotations" / "test.parquet")) == 1


# ---- what writes leave


def test_hidden_folders_are_no_scenes(tmp_path):
    for name in ("b", "a", ".c.17.part", ".git"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    assert [path.name for path in list_folders(tmp_path)] == ["a", "b"] and list_folders(tmp_path / "none") == []


def test_a_damaged_scene_is_made_again(given):
    prepare_given(given)
    file = given / "out" / "train" / "scene0001_00" / "scene.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    (given / "out" / "account.json").unlink()
    with pytest.warns(UserWarning, match="scene0001_00/scene.json: .* The scene is prepared again"):
        prepare_given(given)
    assert file.read_bytes() == whole
    (given / "out" / "account.json").write_text('{"settings": ')
    with pytest.raises(ValueError, match="account.json: expected the settings of a prepared folder, but"):
        prepare_given(given)


def test_the_command_ends_in_one_line(given, monkeypatch, capsys):
    """With the scan that failed, the file, and the code of a failure; the others are done."""
    file = given / "raw" / "scans" / "scene0002_00" / "scene0002_00.aggregation.json"
    file.write_text(file.read_text().replace('"objectId": 4', '"objectId": 99999'))
    command = [
        "prepare",
        "scannet",
        "--num-workers",
        "1",
        "--views",
        "2",
        "--bev-size",
        "24",
        "--scans",
        given / "raw",
    ]
    command += ["--annotations", given / "official", "--output", given / "out"]
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    with pytest.raises(SystemExit) as ended:
        run_program(main)
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 1
    assert "error: scans: 1 of 3 failed; the others are done: scene0002_00: " in told
    assert f"{file}: segGroups, object 4: objectId must be a whole number of 0 to 32767, got 99999" in told
    assert {path.name for path in (given / "out").glob("*/scene*")} == {"scene0001_00", "scene0003_00"}
