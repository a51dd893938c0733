"""Preparation of raw scans and official files: what comes out, and that it is the same however it was cut off."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from PIL import Image

from ross3d.data.annotations import Annotation, load_annotations
from ross3d.data.atomic import hold_folder, remove_leftovers, remove_leftovers_of_the_dead, replace_file
from ross3d.data.prepare.__main__ import main
from ross3d.data.prepare.boxes import match_proposal
from ross3d.data.sampling import (
    get_view_voxels,
    list_coverage_candidates,
    quantize_points,
    select_max_coverage,
    take_covering_frames,
)
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tests.given_scans import get_given
from ross3d.tests.invariant.kill_inside import kill_inside_write
from ross3d.tests.official_annotations import SPLIT_OF, write_raw_set
from ross3d.tests.raw_scannet import RawScan, write_raw_scan


ROOT = Path(__file__).resolve().parents[1]
NUM_VIEWS = 3


def get_arguments(raw: Path, output: Path, *more: str, num_workers: int = 1) -> list[str]:
    given = ["scannet", "--scans", raw / "raw", "--annotations", raw / "official", "--output", output]
    given += ["--proposals", raw / "masks", "--views", NUM_VIEWS, "--bev-size", 48, "--num-workers", num_workers]
    return [str(value) for value in [*given, *more]]


def prepare(raw: Path, output: Path, *more: str, num_workers: int = 1) -> None:
    main(get_arguments(raw, output, *more, num_workers=num_workers))


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file, masked ones too."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def list_states(folder: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of change of every file."""
    states = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (state.st_ino, state.st_mtime_ns) for path, state in states.items()}


@pytest.fixture(scope="module")
def raw() -> Path:
    """Raw scans, official files and masks, which nothing may change."""
    return get_given()


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, RawScan]:
    """What a reader has to find in the scans."""
    return write_raw_set(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("prepared") / "out"
    before = hash_files(raw), list_states(raw)
    prepare(raw, output, "--published")
    assert (hash_files(raw), list_states(raw)) == before, "an official file was rewritten"
    return output


def read_rows(folder: Path, split: str, task: str) -> list[Annotation]:
    return [row for row in load_annotations(folder / "annotations" / f"{split}.parquet") if row.task == task]


def read_official(raw: Path, name: str) -> list[dict]:
    return json.loads(next((raw / "official").rglob(name)).read_text())


@pytest.mark.parametrize("scene_id", SPLIT_OF)
def test_a_scan_becomes_a_scene(prepared, scans, scene_id):
    """Pictures byte by byte, depth, cameras, boxes of all objects with their ids, also where those have gaps."""
    scan, folder = scans[scene_id], prepared / SPLIT_OF[scene_id] / scene_id
    scene = read_rgbd_folder(folder)
    chosen = {(): [0, 10, 30], (10,): [0, 20, 30]}[scan.lost]
    assert scene.view_names == [f"frame-{index:06d}" for index in chosen]
    for index, name in zip(chosen, scene.view_names, strict=True):
        assert (folder / f"{name}.color.jpg").read_bytes() == scan.color_jpegs[index]
        assert np.array_equal(np.array(Image.open(folder / f"{name}.depth.png")), scan.depth_mm[index])
    assert np.allclose(scene.cam2world, scan.cam2world[chosen], atol=1e-5)
    assert np.allclose(scene.intrinsics, scan.depth_intrinsics, atol=1e-4)
    assert np.allclose(scene.boxes, scan.boxes, atol=1e-5)
    assert [label["object_id"] for label in scene.box_labels] == scan.object_ids
    assert [label["category"] for label in scene.box_labels] == scan.categories
    assert (scan.object_ids == list(range(len(scan.object_ids)))) == (not scan.vanished)
    assert scene.bev_image.shape == (48, 48, 3) and scene.bev_valid.any() and scene.bev_bounds is not None
    facts = json.loads((folder / "scene.json").read_text())
    assert facts["num_frames"] == 31 and facts["lost_frames"] == len(scan.lost)


@pytest.mark.parametrize(("choose", "ratio"), [("coverage", 1.0), ("coverage90", 0.9)])
def test_views_may_be_those_that_see_most_of_the_mesh(raw, scans, tmp_path, choose, ratio):
    prepare(raw, tmp_path, "--choose", choose, "--views", "2", "--partial")
    for scene_id, scan in scans.items():
        tracked = [index for index in (0, 10, 20, 30) if index not in scan.lost]
        candidates = [tracked[i] for i in list_coverage_candidates(len(tracked), 2)]
        seen = [
            get_view_voxels(scan.depth_mm[i] / np.float32(1000), scan.depth_intrinsics, scan.cam2world[i])
            for i in candidates
        ]
        coverage = select_max_coverage(seen, quantize_points(scan.vertices), 2)
        wanted = [candidates[i] for i in take_covering_frames(coverage, 2, ratio)]
        scene = read_rgbd_folder(tmp_path / SPLIT_OF[scene_id] / scene_id)
        assert scene.view_names == [f"frame-{index:06d}" for index in wanted]


def test_proposals_are_the_boxes_of_the_masks(prepared, scans):
    """In their order, the empty one left out; in the other split of the scene they are the same file."""
    scene = read_rgbd_folder(prepared / "val" / "scene0003_00")
    assert np.allclose(scene.proposal_boxes[1:], scans["scene0003_00"].boxes[:-1], atol=1e-5)
    assert (scene.proposal_boxes[0, 3:] <= scene.boxes[2, 3:] + 1e-6).all()
    assert read_rgbd_folder(prepared / "train" / "scene0001_00").proposal_boxes is None
    for file in (prepared / "val" / "scene0003_00").iterdir():
        assert file.samefile(prepared / "test" / "scene0003_00" / file.name)


def test_questions_and_answers(prepared, raw):
    for split, per_question in (("train", 2), ("val", 1)):
        official = read_official(raw, f"ScanQA_v1.0_{split}.json")
        rows = read_rows(prepared, split, "scanqa")
        assert len(rows) == per_question * len(official) > 0
        for row, asked in zip(rows[::per_question], official, strict=True):
            assert (row.id, row.scene_id) == (f"scanqa_{asked['question_id']}_0", asked["scene_id"])
            assert row.question == f" {asked['question']} Answer the question simply."
            assert row.question_type == "unknow" and row.answer == asked["answers"][0]
            assert row.references == (asked["answers"] if split == "val" else asked["answers"][:1])
    for split, per_question in (("train", 3), ("val", 1), ("test", 1)):
        rows = read_rows(prepared, split, "sqa3d")
        annotations = read_official(raw, f"v1_balanced_sqa_annotations_{split}_scannetv2.json")["annotations"]
        assert len(rows) == per_question * len(annotations) > 0
        last = rows[per_question - 1]
        assert last.question == (
            " I am facing a window. Is the door open? Answer the question using a single word or phrase."
        )
        assert (last.question_type, last.answer, last.references) == ("is", "no", ["no"])
        assert len({row.id for row in rows}) == len(rows)


@pytest.mark.parametrize("split", ["train", "val"])
def test_grounding(prepared, raw, split):
    official = read_official(raw, f"ScanRefer_filtered_{split}.json")
    rows = read_rows(prepared, split, "scanrefer")
    assert len(rows) == len(official) > 0
    for row, asked in zip(rows, official, strict=True):
        scene = read_rgbd_folder(prepared / split / row.scene_id)
        start = "Identify the object according to the following description.\n"
        assert row.question == start + asked["description"].capitalize()
        assert row.answer == "<ground>" and row.question_type in {"unique", "multiple"}
        assert (row.ann_id, row.target_ids) == (asked["ann_id"], [int(asked["object_id"])])
        assert scene.box_labels[row.object_ids[0]]["object_id"] == row.target_ids[0]
        assert np.array_equal(np.float32(row.target_boxes), scene.boxes[row.object_ids])
    official = read_official(raw, f"multi3drefer_{split}.json")
    rows = read_rows(prepared, split, "multi3drefer")
    assert len(rows) == len(official) > 0
    for row, asked in zip(rows, official, strict=True):
        scene = read_rgbd_folder(prepared / split / row.scene_id)
        assert (row.target_ids, row.question_type) == (asked["object_ids"], asked["eval_type"])
        assert row.ann_id == str(asked["ann_id"])
        assert [scene.box_labels[number]["object_id"] for number in row.object_ids] == row.target_ids
        assert np.array_equal(np.float32(row.target_boxes).reshape(-1, 6), scene.boxes[row.object_ids])


def test_captions_of_training_are_about_the_objects_own_boxes(prepared, raw):
    official = read_official(raw, "ScanRefer_filtered_train.json")
    rows = read_rows(prepared, "train", "scan2cap")
    assert len(rows) == len(official) > 0
    for row, asked in zip(rows, official, strict=True):
        assert row.question == " Given an object located at <coord> , describe the object in detail."
        assert row.answer == asked["description"].capitalize() and row.references == [row.answer]
        assert row.query_box == row.target_boxes[0] and row.query_coords == tuple(row.query_box[:3])
        assert row.query_iou is None


def test_captions_of_validation_are_about_proposals(prepared, raw):
    """One row an object; below an overlap of a half it has no place, so no answer, and counts."""
    official = read_official(raw, "ScanRefer_filtered_val.json")
    rows = read_rows(prepared, "val", "scan2cap")
    assert len(rows) == len({asked["object_id"] for asked in official}) == len(official) / 2
    proposals = json.loads((prepared / "val" / "scene0003_00" / "proposals.json").read_text())
    for row in rows:
        texts = [asked["description"] for asked in official if int(asked["object_id"]) == row.target_ids[0]]
        assert row.references == texts and row.answer == texts[0].capitalize()
        assert (row.query_box, row.query_iou) == match_proposal(row.target_boxes[0], proposals)
        assert row.query_coords == (tuple(row.query_box[:3]) if row.query_iou >= 0.5 else None)
    assert [row.query_coords is None for row in rows] == [False] * (len(rows) - 1) + [True]


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_the_folder(prepared, scans, tmp_path, streaming):
    """Every split of both tables, with their types."""
    for split in ("train", "val", "test"):
        load = partial(load_dataset, str(prepared), split=split, streaming=streaming, cache_dir=str(tmp_path))
        questions = load()
        rows = load_annotations(prepared / "annotations" / f"{split}.parquet")
        assert [row["id"] for row in questions] == [row.id for row in rows]
        assert (
            questions.features["query_box"].length == 6 and questions.features["references"].feature.dtype == "string"
        )
        table = list(load("scans"))
        assert [row["scene_id"] for row in table] == sorted(path.name for path in (prepared / split).iterdir())
        for row in table:
            scene = read_rgbd_folder(prepared / row["folder"])
            assert np.array_equal(np.float32(row["boxes"]), scene.boxes)
            assert row["object_ids"] == scans[row["scene_id"]].object_ids
            assert np.allclose(row["cam2world"], scene.cam2world, atol=1e-6)
            assert (row["proposal_boxes"] is None) == (scene.proposal_boxes is None)
            for file in [*row["color_files"], *row["depth_files"], row["bev_file"]]:
                assert (prepared / file).is_file()


def test_the_account(prepared, capsys, raw):
    account = json.loads((prepared / "account.json").read_text())
    assert account["splits"]["train"] == {
        "scenes": 2,
        "views": 6,
        "frames": 62,
        "frames_without_pose": 1,
        "scenes_without_objects": [],
        "scenes_without_proposals": ["scene0001_00", "scene0002_00"],
        "empty_masks": 0,
        "annotations": {
            task: len(read_rows(prepared, "train", task))
            for task in ("multi3drefer", "scan2cap", "scanqa", "scanrefer", "sqa3d")
        },
    }
    assert account["splits"]["val"]["empty_masks"] == 1 and account["excluded_scans"] == {}
    assert account["left_out_annotations"] == {} and account["files_not_there"] == []
    prepare(raw, prepared, "--published")
    told = capsys.readouterr().out
    assert "already complete, nothing to do" in told and "train: 2 scenes, 6 views of 62 frames" in told


def test_published_files(prepared):
    """Records in the public form; the scene whose ids have a gap is missing from the box file, as published."""
    records = {file.name: json.loads(file.read_text()) for file in (prepared / "processed").iterdir()}
    splits = ["train", "val"]
    names = ["scanqa", "scan2cap", "scanrefer_vg", "multi3drefer", "sqa3d"]
    expected = {f"{name}_{split}_llava_style.json" for name in names for split in splits}
    assert set(records) == expected | {"sqa3d_test_llava_style.json"}
    captions = records["scan2cap_val_llava_style.json"]
    assert captions[-1]["box_input"] is None and captions[0]["box_input"] is not None
    assert [record["id"] for record in records["scanrefer_vg_train_llava_style.json"]] == list(range(16))
    boxes = json.loads((prepared / "metadata" / "scannet_train_gt_box.json").read_text())
    assert list(boxes) == ["scannet/scene0001_00"]
    found = json.loads((prepared / "metadata" / "scannet_val_pred_box.json").read_text())
    assert found["scannet/scene0003_00"] == json.loads((prepared / "val/scene0003_00/proposals.json").read_text())


def test_twice_changes_nothing(prepared, raw):
    before = hash_files(prepared), list_states(prepared)
    prepare(raw, prepared, "--published")
    assert (hash_files(prepared), list_states(prepared)) == before


def test_workers_change_nothing(prepared, raw, tmp_path):
    prepare(raw, tmp_path / "out", "--published", num_workers=2)
    assert hash_files(tmp_path / "out") == hash_files(prepared)


def prepare_until_killed(raw: Path, output: Path, count: int, num_workers: int) -> None:
    os.setsid()
    torch.set_num_threads(1)
    os.environ["KILL_AT"] = f"{output.name}:{count}"
    kill_inside_write()
    prepare(raw, output, "--published", num_workers=num_workers)


def run_until_killed(raw: Path, output: Path, count: int, num_workers: int = 1) -> int:
    """Prepare in a process that dies, with its workers, at the `count`-th change of a file; its exit code."""
    process = multiprocessing.get_context("fork").Process(
        target=prepare_until_killed, args=(raw, output, count, num_workers)
    )
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_changes_nothing(prepared, raw, tmp_path, seed):
    """Two kills at writes that are drawn at random, then to the end: the same bytes, and nothing else."""
    rng, output = random.Random(seed), tmp_path / "out"
    for _ in range(2):
        assert run_until_killed(raw, output, rng.randrange(1, 60), 1 + seed % 2) == -signal.SIGKILL
        assert not (output / "account.json").exists()
    prepare(raw, output, "--published")
    assert hash_files(output) == hash_files(prepared)


@pytest.mark.slow
def test_a_kill_at_any_write_changes_nothing(prepared, raw, tmp_path):
    """Every single one, from the first to the one after the last."""
    expected, count = hash_files(prepared), 0
    while True:
        count += 1
        code = run_until_killed(raw, tmp_path / "out", count)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        prepare(raw, tmp_path / "out", "--published")
        assert hash_files(tmp_path / "out") == expected, count
        shutil.rmtree(tmp_path / "out")
    assert count > 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_time_changes_nothing(prepared, raw, tmp_path, seed):
    """The command itself, with two workers, killed after a random time until a run is through."""
    arguments = get_arguments(raw, tmp_path / "out", "--published", num_workers=2)
    command = [sys.executable, "-m", "ross3d.data.prepare", *arguments]
    rng, code = random.Random(seed), -signal.SIGKILL
    while code == -signal.SIGKILL:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            code = process.wait(rng.uniform(1.0, 9.0))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            time.sleep(0.5)
    assert code == 0
    assert hash_files(tmp_path / "out") == hash_files(prepared)


def test_only_what_changed_is_made_again(prepared, raw, tmp_path):
    """A new annotation file leaves scenes alone; a scan that was downloaded again is made again."""
    output, given = tmp_path / "out", tmp_path / "given"
    shutil.copytree(raw, given)
    prepare(given, output, "--published")
    pictures = list_states(output / "train")
    file = given / "official" / "scanqa" / "ScanQA_v1.0_train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    prepare(given, output, "--published")
    assert list_states(output / "train") == pictures
    assert len(read_rows(output, "train", "scanqa")) == len(read_rows(prepared, "train", "scanqa")) - 2
    scan = given / "raw" / "scans" / "scene0001_00" / "scene0001_00.txt"
    scan.write_text(scan.read_text() + "sceneType = Office\n")
    prepare(given, output, "--published")
    changed = {path for path, state in list_states(output / "train").items() if pictures[path] != state}
    assert changed == {path for path in pictures if "scene0001_00" in path}


def test_what_is_absent_is_told(raw, tmp_path, capsys):
    """--partial: questions about scans, masks or objects that are not there are left out, each one named."""
    given, output = tmp_path / "given", tmp_path / "out"
    shutil.copytree(raw, given)
    shutil.rmtree(given / "raw" / "scans" / "scene0001_00")
    (given / "masks" / "scene0003_00.mask.npz").unlink()
    file = given / "official" / "scanrefer" / "ScanRefer_filtered_train.json"
    rows = json.loads(file.read_text())
    rows[-1]["object_id"] = "2"  # vanished: all its segments went to a later object
    file.write_text(json.dumps(rows))
    prepare(given, output, "--partial")
    left_out = json.loads((output / "account.json").read_text())["left_out_annotations"]
    official = [row["question_id"] for row in read_official(raw, "ScanQA_v1.0_train.json")]
    gone = [f"scanqa_{name}_{number}" for name in official if "scene0001_00" in name for number in (0, 1)]
    assert left_out["train"]["scanqa: its scene is missing"] == gone
    assert left_out["train"]["scanrefer: its object has no points in the scan, or the scan has no objects"] == [
        f"scanrefer-{len(rows) - 1}"
    ]
    captions = read_rows(output, "val", "scan2cap")
    assert len(captions) == 4 and all(row.query_coords is None and row.target_boxes for row in captions)
    assert len(read_rows(output, "val", "scanrefer")) == 8 and "val" not in left_out
    for split in ("train", "val", "test"):
        kept = len(load_annotations(output / "annotations" / f"{split}.parquet"))
        lost = sum(map(len, left_out.get(split, {}).values()))
        assert kept + lost == {"train": 52, "val": 18, "test": 1}[split]
    told = capsys.readouterr().out
    assert "left out of train: 4 of scanqa: its scene is missing, such as scanqa_train-scene0001" in told


def test_a_split_without_scans_is_told(raw, tmp_path, capsys):
    given, output = tmp_path / "given", tmp_path / "out"
    shutil.copytree(raw, given)
    shutil.rmtree(given / "raw" / "scans" / "scene0003_00")
    prepare(given, output, "--partial")
    account = json.loads((output / "account.json").read_text())
    assert set(account["splits"]) == {"train"}
    assert account["left_out_annotations"]["test"] == {"sqa3d: its scene is missing": ["sqa3d-300"]}
    assert "left out of test: 1 of sqa3d" in capsys.readouterr().out


def test_scans_that_nothing_names_are_told(raw, tmp_path, capsys):
    """So are scans without a frame that can be used, files that are not there and labels of no table."""
    given, output = tmp_path / "given", tmp_path / "out"
    shutil.copytree(raw, given)
    (given / "raw" / "scans" / "scene0009_00").mkdir()
    shutil.rmtree(given / "official" / "sqa_task")
    file = given / "raw" / "scans" / "scene0001_00" / "scene0001_00.aggregation.json"
    file.write_text(file.read_text().replace('"floor"', '"flor"'))
    prepare(given, output)
    account = json.loads((output / "account.json").read_text())
    assert account["excluded_scans"] == {"scene0009_00": "it is in no list of a split and no annotation file"}
    assert account["labels_not_in_the_table"] == {"flor": 1}
    assert len(account["files_not_there"]) == 6
    told = capsys.readouterr().out
    assert "excluded: 1 scans: it is in no list" in told and "used as `case`: {'flor': 1}" in told
    assert "missing files: v1_balanced_questions_train_scannetv2.json" in told
    assert read_rgbd_folder(output / "train" / "scene0001_00").box_labels[0]["nyu40_id"] == 40


def test_test_scans_have_neither_objects_nor_alignment(raw, tmp_path):
    """In a folder of their own, as they are downloaded; published box files keep to the lists."""
    given, output = tmp_path / "given", tmp_path / "out"
    shutil.copytree(raw, given)
    scan = write_raw_scan(tmp_path / "other", "scene0707_00", 5, 21, axis_alignment=False)
    for suffix in (".aggregation.json", "_vh_clean_2.0.010000.segs.json"):
        (scan.folder / f"scene0707_00{suffix}").unlink()
    shutil.copytree(scan.folder, given / "raw" / "scans_test" / "scene0707_00")
    (given / "official" / "scannetv2_test.txt").write_text("scene0707_00\n")
    prepare(given, output, "--published")
    scene = read_rgbd_folder(output / "test" / "scene0707_00")
    assert scene.boxes is None and scene.num_views == 3 and scene.bev_valid.any()
    assert np.allclose(scene.cam2world, scan.cam2world[[0, 10, 20]], atol=1e-5)
    account = json.loads((output / "account.json").read_text())
    assert account["splits"]["test"]["scenes_without_objects"] == ["scene0707_00"]
    assert {path.name for path in (output / "test").iterdir()} == {"scene0003_00", "scene0707_00"}
    for kind in ("gt", "pred"):
        assert json.loads((output / "metadata" / f"scannet_test_{kind}_box.json").read_text()) == {}
    rows = list(load_dataset(str(output), "scans", split="test", cache_dir=str(tmp_path)))
    assert [row["boxes"] is None for row in rows] == [False, True]


def test_another_table_of_labels_makes_scenes_again(raw, tmp_path):
    given, output = tmp_path / "given", tmp_path / "out"
    shutil.copytree(raw, given)
    prepare(given, output)
    table = given / "raw" / "scannetv2-labels.combined.tsv"
    table.write_text(table.read_text().replace("\tfloor\tfloor\t7\t2\t", "\tfloor\tfloor\t7\t24\t"))
    prepare(given, output)
    labels = [label for path in (output / "train").iterdir() for label in read_rgbd_folder(path).box_labels]
    assert {label["nyu40_id"] for label in labels if label["category"] == "floor"} == {24}


def test_leftovers_are_removed(tmp_path):
    """What `replace_file` and scene folders leave when they are killed, and nothing else, whatever it is called."""
    with replace_file(tmp_path / "a.txt") as partial_file:
        partial_file.write_text("half")
        shutil.copy(partial_file, partial_file.with_name(partial_file.name.replace(".a.", ".b.")))
    (tmp_path / ".scene0001_00.17.part" / "deep").mkdir(parents=True)
    others = {".hidden", ".film.mp4.partial", ".x.17.partial", ".a.17.0123abcd.partial.txt"}
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".thesis.part").mkdir()
    assert len(list(tmp_path.iterdir())) == 8
    remove_leftovers_of_the_dead(tmp_path)
    assert len(list(tmp_path.iterdir())) == 8
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", ".thesis.part", *others}


def test_scans_whose_objects_are_asked_about_need_them(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "given")
    (tmp_path / "given" / "raw" / "scans" / "scene0003_00" / "scene0003_00.aggregation.json").unlink()
    with pytest.raises(ValueError, match="1 scenes with questions about objects have no SCENE.aggregation.json"):
        prepare(tmp_path / "given", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    prepare(tmp_path / "given", tmp_path / "out", "--partial")
    left_out = json.loads((tmp_path / "out" / "account.json").read_text())["left_out_annotations"]["val"]
    assert len(left_out["scanrefer: its object has no points in the scan, or the scan has no objects"]) == 8


@pytest.mark.parametrize("gone", ["val/scene0003_00", "annotations/val.parquet", "scans/train.parquet"])
def test_what_was_lost_is_made_again(raw, tmp_path, gone):
    prepare(raw, tmp_path)
    before = hash_files(tmp_path)
    lost = tmp_path / gone
    shutil.rmtree(lost) if lost.is_dir() else lost.write_bytes(b"")
    prepare(raw, tmp_path)
    assert hash_files(tmp_path) == before


def test_a_published_picture_that_is_replaced_is_taken(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "given")
    for color in ("red", "blue"):
        for scan in (tmp_path / "given" / "raw" / "scans").iterdir():
            picture = Image.new("RGB", (64, 48), color)
            picture.save(scan / "view_0.png", compress_level={"red": 0, "blue": 9}[color])
        prepare(tmp_path / "given", tmp_path / "out", "--bev", "published")
        scene = read_rgbd_folder(tmp_path / "out" / "val" / "scene0003_00")
        assert tuple(scene.bev_image[10, 10]) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[color]


def test_two_preparations_of_one_folder_do_not_meet(raw, tmp_path):
    with hold_folder(tmp_path), pytest.raises(BlockingIOError, match="another process is writing to .*; wait"):
        prepare(raw, tmp_path)
    prepare(raw, tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_the_table_of_scans_follows_new_pictures(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "out")
    main(["bev", "--data", str(tmp_path / "out"), "--from", "depth", "--bev-size", "32", "--num-workers", "1"])
    for split in ("train", "val"):
        for row in pq.read_table(tmp_path / "out" / "scans" / f"{split}.parquet").to_pylist():
            known = json.loads((tmp_path / "out" / row["folder"] / "bev.json").read_text())["bounds"]
            assert row["bev_bounds"] == known
