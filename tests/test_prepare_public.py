"""Preparation of Video-3D-LLM's public files: the same scenes and questions as of the raw scans they were made of."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ross3d.data.annotations import load_annotations
from ross3d.data.prepare.__main__ import main
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tasks.reconstruction import get_object_pixels
from ross3d.tests.given_scans import get_given
from ross3d.tests.official_annotations import SPLIT_OF, write_raw_set
from ross3d.tests.posed_views import make_test_processor
from ross3d.tests.public_files import write_public_root
from ross3d.tests.test_prepare import hash_files, list_states
from ross3d.tests.test_prepare import prepare as prepare_raw
from ross3d.tools import view


def prepare(root: Path, output: Path, *more) -> None:
    arguments = ["posed-images", "--root", root, "--output", output, "--views", 3, "--bev-size", 48]
    main([str(argument) for argument in [*arguments, "--num-workers", 1, *more]])


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return write_raw_set(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def from_raw(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("given") / "out"
    prepare_raw(get_given(), output, "--published")
    return output


@pytest.fixture(scope="module", params=[False, True], ids=["meta data", "EmbodiedScan"])
def root(scans, from_raw, tmp_path_factory, request) -> Path:
    root = tmp_path_factory.mktemp("public") / "data"
    write_public_root(root, scans, from_raw, infos=request.param)
    return root


@pytest.fixture(scope="module")
def prepared(root) -> Path:
    before = hash_files(root), list_states(root)
    prepare(root, root.parent / "out")
    assert (hash_files(root), list_states(root)) == before
    return root.parent / "out"


@pytest.mark.parametrize("scene_id", SPLIT_OF)
def test_scenes_are_those_of_the_raw_scans(prepared, from_raw, scene_id):
    ours, raw = (read_rgbd_folder(folder / SPLIT_OF[scene_id] / scene_id) for folder in (prepared, from_raw))
    assert ours.view_names == raw.view_names and np.array_equal(ours.images, raw.images)
    assert np.array_equal(ours.depth_maps, raw.depth_maps)
    assert np.allclose(ours.cam2world, raw.cam2world, atol=1e-5)
    assert np.allclose(ours.intrinsics, raw.intrinsics, atol=1e-4)
    assert (ours.proposal_boxes is None) == (raw.proposal_boxes is None)
    if raw.proposal_boxes is not None:
        assert np.array_equal(ours.proposal_boxes, raw.proposal_boxes)
    if scene_id == "scene0002_00":  # its ids have a gap, so the box file lacks it: the objects asked about are left
        ids = [label["object_id"] for label in raw.box_labels]
        assert [label["object_id"] for label in ours.box_labels] == ids[2:]
        assert np.array_equal(ours.boxes, raw.boxes[2:])
    else:
        assert np.array_equal(ours.boxes, raw.boxes)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_questions_are_those_of_the_official_files(prepared, from_raw, split):
    ours, raw = (
        {row.id: row for row in load_annotations(folder / "annotations" / f"{split}.parquet")}
        for folder in (prepared, from_raw)
    )
    assert ours.keys() == raw.keys() and len(ours) == {"train": 52, "val": 18, "test": 1}[split]
    for name, row in ours.items():
        same = raw[name]
        if row.object_ids is not None and row.scene_id == "scene0002_00":
            same.object_ids = [number - 2 for number in same.object_ids]
        assert row == same


def test_twice_changes_nothing(root, prepared):
    before = hash_files(prepared), list_states(prepared)
    prepare(root, prepared)
    assert (hash_files(prepared), list_states(prepared)) == before


def test_workers_and_folders_of_tasks_change_nothing(root, prepared, tmp_path):
    """Ross3D's layout has a folder for each task."""
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "processed" / "sqa_task").mkdir()
    for file in (tmp_path / "data" / "processed").glob("sqa3d_*.json"):
        file.rename(file.parent / "sqa_task" / file.name)
    prepare(tmp_path / "data", tmp_path / "out", "--num-workers", 2)
    assert hash_files(tmp_path / "out") == hash_files(prepared)


def write_published_pictures(root: Path) -> np.ndarray:
    """4:3 pictures whose void has the traces that JPEG leaves."""
    picture = np.zeros((72, 96, 3), np.uint8)
    picture[20:50, 30:70] = 180, 90, 40
    for scan in (root / "scannet" / "scans").iterdir():
        Image.fromarray(picture).save(scan / "view_0.jpg")
    return picture


def test_published_bev_pictures_are_taken(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    picture = write_published_pictures(tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "out", "--bev", "published")
    scene = read_rgbd_folder(tmp_path / "out" / "val" / "scene0003_00")
    assert scene.bev_image.shape == picture.shape and scene.bev_bounds is None
    assert np.array_equal(scene.bev_valid, scene.bev_image.any(-1))
    assert np.abs(scene.bev_image[25:45, 35:65].astype(int) - picture[25:45, 35:65]).max() < 12
    assert not scene.bev_image[:12].any() and scene.bev_valid[30, 40]
    processor = make_test_processor(geometry_mode="published")
    inputs = processor(**scene.get_inputs(bev=True), return_tensors="pt")
    assert inputs["bev_pixel_values"].shape[-1] == inputs["bev_pixel_values"].shape[-2] == processor.bev_size
    assert not get_object_pixels(scene).any()
    page = view.main([str(scene.path), "--output", str(tmp_path / "page.html")])
    assert "Cameras" in page.read_text()
    prepare(tmp_path / "data", tmp_path / "out", "--bev", "published")
    (tmp_path / "data" / "scannet" / "scans" / "scene0003_00" / "view_0.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)2 of 4 failed.*scene0003_00: .*view_0.jpg: expected a published"):
        prepare(tmp_path / "data", tmp_path / "other", "--bev", "published")


def drop(*parts: str):
    return lambda root: shutil.rmtree(root.joinpath(*parts))


def copy_records(root: Path) -> None:
    (root / "processed" / "scanqa").mkdir()
    name = "scanqa_val_llava_style.json"
    shutil.copy(root / "processed" / name, root / "processed" / "scanqa" / name)


def write(*parts: str, content):
    return lambda root: root.joinpath(*parts).write_text(json.dumps(content))


def forget_alignment(root: Path) -> None:
    shutil.rmtree(root / "embodiedscan", ignore_errors=True)
    for scan in (root / "scannet" / "posed_images").iterdir():
        np.savetxt(scan / "depth_intrinsic.txt", np.eye(4))
        file = root / "scannet" / "scans" / scan.name / f"{scan.name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (drop("processed"), "--root: no NAME_SPLIT_llava_style.json in .*processed or its subfolders"),
        (copy_records, "--root: expected one layout, got both .*scanqa_val_llava_style.json and .*; remove one"),
        (
            write("processed", "scanqa_val_llava_style.json", content={}),
            "scanqa_val_llava_style.json: expected a JSON list of records, got dict",
        ),
        (
            write("metadata", "scannet_val_pred_box.json", content=[]),
            "scannet_val_pred_box.json: expected a list of boxes for each scene; check that it is the right file",
        ),
        (
            drop("scannet", "posed_images", "scene0003_00"),
            r"--root: 2 scenes of the records or boxes have no folder in scannet/posed_images, such as",
        ),
        (
            forget_alignment,
            r"scene0001_00.txt: expected a line axisAlignment, because the scene's boxes are in the aligned",
        ),
        (
            lambda root: (root / "scannet/posed_images/scene0001_00/00010.jpg").unlink(),
            "scene0001_00: expected .*00010.jpg, whose pose exists, found no such",
        ),
        (
            lambda root: (root / "scannet/posed_images/scene0001_00/00010.txt").unlink(),
            "scene0001_00: .*00010.txt",
        ),
    ],
)
def test_public_files_that_are_wrong(root, tmp_path, spoil, message):
    shutil.copytree(root, tmp_path / "data")
    spoil(tmp_path / "data")
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){message}"):
        prepare(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out" / "account.json").exists()


def test_captions_of_objects_that_were_not_found_count_without_the_detectors_boxes(root, prepared, tmp_path):
    """The records say which object was found: without the box file one that was not stays, without a place."""
    shutil.copytree(root, tmp_path / "data")
    for file in (tmp_path / "data" / "metadata").glob("*_pred_box.json"):
        file.unlink()
    prepare(tmp_path / "data", tmp_path / "out")
    ours, known = (
        [row for row in load_annotations(folder / "annotations" / "val.parquet") if row.task == "scan2cap"]
        for folder in (tmp_path / "out", prepared)
    )
    assert [row.id for row in ours] == [row.id for row in known] and ours[-1].query_box is None
    assert [row.query_coords for row in ours] == [row.query_coords for row in known]


def test_questions_alone_need_no_boxes(root, tmp_path):
    """SQA3D's test split: nothing but records, pictures and cameras."""
    shutil.copytree(root, tmp_path / "data")
    for folder in ("metadata", "processed"):
        for file in (tmp_path / "data" / folder).iterdir():
            if file.name != "sqa3d_test_llava_style.json":
                file.unlink()
    prepare(tmp_path / "data", tmp_path / "out")
    scene = read_rgbd_folder(tmp_path / "out" / "test" / "scene0003_00")
    assert scene.boxes is None and scene.proposal_boxes is None and scene.num_views == 3
    assert len(load_annotations(tmp_path / "out" / "annotations" / "test.parquet")) == 1


def test_a_frame_that_was_unpacked_again_prepares_its_scene_again(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "out")
    before = list_states(tmp_path / "out" / "train")
    file = tmp_path / "data" / "scannet" / "posed_images" / "scene0001_00" / "00000.png"
    Image.fromarray(np.array(Image.open(file)) // 2).save(file)
    records = tmp_path / "data" / "processed" / "scanqa_val_llava_style.json"
    records.write_text(records.read_text() + "\n")
    prepare(tmp_path / "data", tmp_path / "out")
    changed = {path for path, state in list_states(tmp_path / "out" / "train").items() if before[path] != state}
    assert changed == {path for path in before if "scene0001_00" in path}


def test_an_alignment_that_is_corrected_prepares_its_scene_again(root, tmp_path):
    if (root / "embodiedscan").is_dir():
        pytest.skip("the info files of this root have the alignment")
    shutil.copytree(root, tmp_path / "data")
    file = tmp_path / "data" / "scannet" / "scans" / "scene0001_00" / "scene0001_00.txt"
    right = file.read_text()
    alignments = []
    for text in ("axisAlignment = 1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 1", right):
        file.write_text(text + "\n")
        prepare(tmp_path / "data", tmp_path / "out")
        alignments.append(np.loadtxt(tmp_path / "out" / "train" / "scene0001_00" / "axis_align.txt"))
    assert np.array_equal(alignments[0], np.eye(4)) and not np.allclose(alignments[1], np.eye(4))


def test_a_scan_without_poses_is_told(root, tmp_path, capsys):
    shutil.copytree(root, tmp_path / "data")
    for file in (tmp_path / "data" / "scannet" / "posed_images" / "scene0001_00").glob("00*.txt"):
        np.savetxt(file, np.full((4, 4), -np.inf))
    prepare(tmp_path / "data", tmp_path / "out")
    account = json.loads((tmp_path / "out" / "account.json").read_text())
    assert account["excluded_scans"] == {"scene0001_00": "none of its 4 frames has a pose"}
    assert len(account["left_out_annotations"]["train"]["scanqa: its scene is missing"]) == 4
    assert "excluded: 1 scans: none of its 4 frames has a pose" in capsys.readouterr().out


def test_what_is_not_unpacked_is_told(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "scannet" / "posed_images" / "scene0003_00")
    prepare(tmp_path / "data", tmp_path / "out", "--partial")
    left_out = json.loads((tmp_path / "out" / "account.json").read_text())["left_out_annotations"]
    assert sum(map(len, left_out["val"].values())) == 18 and sum(map(len, left_out["test"].values())) == 1
