"""Bad input of preparation: each is named, with its file, and what was good stays prepared."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ross3d.data.prepare.llava_style import make_annotations
from ross3d.data.prepare.official_set import read_official
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.sources.ply import read_ply
from ross3d.data.sources.sens import iterate_sens_frames
from ross3d.tests.given_scans import copy_given, get_given, prepare_given
from ross3d.tests.raw_scannet import write_ply, write_sens


@pytest.fixture
def given(tmp_path) -> Path:
    return copy_given(tmp_path / "given")


prepare = partial(prepare_given, masks=True)


def edit(name: str, change: Callable) -> Callable[[Path], None]:
    """Change the content of an official file in place."""

    def spoil(folder: Path) -> None:
        file = next(folder.rglob(name))
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return spoil


def repeat_last(rows: list) -> None:
    rows.append(rows[-1])


def put(place: int, name: str, value) -> Callable[[list], None]:
    return lambda rows: rows[place].update({name: value})


QUESTIONS, ANSWERS = "v1_balanced_questions_val_scannetv2.json", "v1_balanced_sqa_annotations_val_scannetv2.json"
SCANQA, SCANREFER, MULTI = "ScanQA_v1.0_train.json", "ScanRefer_filtered_train.json", "multi3drefer_train.json"


def rename(old: str, new: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        file = next(folder.rglob(old))
        file.rename(file.with_name(new))

    return spoil


def copy_deeper(folder: Path) -> None:
    (folder / "old").mkdir()
    shutil.copy(folder / "scanqa" / SCANQA, folder / "old" / SCANQA)


def cut_off(folder: Path) -> None:
    file = folder / "scanqa" / SCANQA
    file.write_text(file.read_text()[:-20])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "--annotations: .*official is not a folder; give the folder of the official files"),
        (
            lambda folder: [path.unlink() for path in list(folder.rglob("*")) if path.is_file()],
            "--annotations: expected official files in .*, found none; docs/DATA.md lists their names",
        ),
        (copy_deeper, f"--annotations: expected {SCANQA} once, got .* remove one"),
        (
            rename(ANSWERS, "answers.json"),
            f"--annotations: sqa3d needs both {QUESTIONS} and {ANSWERS}, but one is missing",
        ),
        (cut_off, rf"{SCANQA}: expected the JSON file.*not valid JSON \(.*\); download the file again"),
        (rename(SCANQA, MULTI.replace("train", "val") + ".bak"), None),
        (
            lambda folder: shutil.copy(next(folder.rglob(SCANREFER)), next(folder.rglob(SCANQA))),
            rf"{SCANQA}, entry 0: expected a field 'question_id', got only \['ann_id', .*; check that it is",
        ),
        (
            lambda folder: next(folder.rglob(SCANQA)).write_text("{}"),
            f"{SCANQA}: expected a JSON list of objects, got dict; check that it is the right file",
        ),
        (edit(SCANQA, put(1, "question", 7)), f"{SCANQA}, entry 1: expected field 'question' of type str, got 7"),
        (
            edit(SCANQA, put(1, "question", " ")),
            f"{SCANQA}, entry 1: expected text in field 'question', got ' '; remove the entry in a copy",
        ),
        (edit(SCANQA, put(0, "answers", ["a", ""])), r"entry 0: expected text in field 'answers', got \['a', ''\]"),
        (edit(SCANQA, put(3, "answers", [])), f"{SCANQA}, entry 3: answers is empty; expected at least one answer"),
        (
            edit(SCANQA, repeat_last),
            f"{SCANQA}, entry 4: 'train-scene0002_00-4' repeats entry 3; download the file again",
        ),
        (edit(SCANREFER, repeat_last), rf"{SCANREFER}, entry 16: \('scene0002_00', '\d', '1'\) repeats entry 15"),
        (
            edit(SCANREFER, put(2, "object_id", "chair")),
            f"{SCANREFER}, entry 2: object_id must be a whole number, got 'chair'",
        ),
        (edit(MULTI, repeat_last), rf"{MULTI}, entry 6: \('scene0002_00', 2\) repeats entry 5"),
        (
            edit(MULTI, put(1, "object_ids", ["2"])),
            rf"{MULTI}, entry 1: object_ids must be whole numbers, got \['2'\]",
        ),
        (
            edit(MULTI, put(1, "eval_type", "zt")),
            rf"{MULTI}, entry 1: eval_type must be of \['zt_wo_d', .*\], got 'zt'",
        ),
        (
            lambda folder: shutil.copy(next(folder.rglob(ANSWERS)), next(folder.rglob(QUESTIONS))),
            f"{QUESTIONS}: expected questions under the key 'questions'; this may be the file of annotations",
        ),
        (
            lambda folder: shutil.copy(next(folder.rglob(QUESTIONS)), next(folder.rglob(ANSWERS))),
            f"{QUESTIONS}: expected answers under the key 'annotations'; this may be the file of questions",
        ),
        (
            edit(QUESTIONS, lambda content: content["questions"].clear()),
            f"{QUESTIONS}, annotations, entry 0: expected the id of a question, got 200, which is not in the file",
        ),
        (
            edit(ANSWERS, lambda content: content["annotations"][0]["answers"].clear()),
            r"annotations, entry 0: expected exactly one answer, got \[\]",
        ),
        (
            edit(ANSWERS, lambda content: content["annotations"][0]["answers"][0].clear()),
            "annotations, entry 0, entry 0: expected a field 'answer'",
        ),
        (
            edit(QUESTIONS, lambda content: repeat_last(content["questions"])),
            f"{QUESTIONS}, questions, entry 1: 200 repeats entry 0",
        ),
    ],
)
def test_official_files(given, spoil, message):
    """With a message the files are refused; without one they are read."""
    read_official(given / "official")
    spoil(given / "official")
    if message is None:
        assert SCANQA in read_official(given / "official").missing
        return
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(given)
    assert not (given / "out").exists()


def test_a_line_break_in_a_text_is_kept(given):
    edit(SCANQA, put(0, "question", "What is\nthis?"))(given / "official")
    assert read_official(given / "official").rows["train"]["scanqa"][0]["question"] == "What is\nthis?"


def test_a_file_that_is_not_there(given):
    given.joinpath("raw", "scannetv2-labels.combined.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="scannetv2-labels.combined.tsv is missing; expected ScanNet's table"):
        prepare(given)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda given: shutil.rmtree(given / "raw"), "--scans: .*raw is not a folder; give the folder that contains"),
        (
            lambda given: shutil.rmtree(given / "raw" / "scans"),
            "--scans: no folder sceneNNNN_NN in .*raw; give the folder of the download",
        ),
        (
            lambda given: shutil.rmtree(given / "raw" / "scans" / "scene0002_00"),
            r"--scans: 1 scenes of the annotations are missing, such as \['scene0002_00'\]; download them",
        ),
        (
            lambda given: (given / "masks" / "scene0003_00.mask.npz").unlink(),
            r"--proposals: 1 validation scenes have no SCENE.mask.npz in .*masks, such as \['scene0003_00'\]",
        ),
    ],
)
def test_scans_that_are_not_there(given, spoil, message):
    spoil(given)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare(given)
    assert not (given / "out").exists()


def cut_recording(given: Path, share: float) -> None:
    file = given / "raw" / "scans" / "scene0003_00" / "scene0003_00.sens"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def get_raw(given: Path, suffix: str) -> Path:
    return given / "raw" / "scans" / "scene0003_00" / f"scene0003_00{suffix}"


def edit_raw(suffix: str, change: Callable) -> Callable[[Path], None]:
    """Change the content of a JSON file of the scan in place."""

    def spoil(given: Path) -> None:
        content = json.loads(get_raw(given, suffix).read_text())
        change(content)
        get_raw(given, suffix).write_text(json.dumps(content))

    return spoil


def spoil_mesh(given: Path, change: Callable) -> None:
    file = get_raw(given, "_vh_clean_2.ply")
    mesh = read_ply(file)
    change(mesh.vertices, mesh.faces)
    write_ply(file, mesh.vertices, mesh.colors, mesh.faces, normals=False)


def spoil_depth(given: Path) -> None:
    """Depth that was written in metres, which no single file is wrong by itself for."""
    file = get_raw(given, ".sens")
    frames = list(iterate_sens_frames(file))
    header = frames[0].header
    depth = np.stack([np.minimum(frame.depth // 1000, 9) for frame in frames])
    cameras = np.stack([frame.cam2world for frame in frames])
    intrinsics = (header.color_intrinsics[:3, :3], header.depth_intrinsics[:3, :3])
    write_sens(file, [frame.color_jpeg for frame in frames], depth, cameras, *intrinsics)


def write_masks_of(given: Path, masks: np.ndarray) -> None:
    scipy.sparse.save_npz(given / "masks" / "scene0003_00.mask.npz", scipy.sparse.csr_matrix(masks))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda given: (given / "raw/scans/scene0003_00/scene0003_00.sens").unlink(),
            "scene0003_00: expected scene0003_00.sens in .*, found none; download that file of the scan",
        ),
        (
            lambda given: write_masks_of(given, np.ones((2, 7), np.uint8)),
            "scene0003_00.mask.npz: masks of 7 vertices for a mesh of .*; expected masks over the vertices",
        ),
        (
            lambda given: (given / "masks" / "scene0003_00.mask.npz").write_bytes(b"PK\x03\x04 half"),
            r"scene0003_00.mask.npz: expected a sparse matrix of masks \(.*\); download it again",
        ),
        (
            lambda given: (given / "raw/scans/scene0003_00/scene0003_00_vh_clean_2.ply").write_bytes(b"ply\nhalf"),
            "scene0003_00_vh_clean_2.ply",
        ),
        (
            edit_raw(".aggregation.json", lambda content: content["segGroups"][2].update(objectId=99999)),
            "scene0003_00.aggregation.json: segGroups, object 2: objectId must be a whole number of 0 to 32767, got",
        ),
        (
            edit_raw(".aggregation.json", lambda content: content["segGroups"][1].update(segments=[[1], [2]])),
            r"aggregation.json: segGroups, object 1: segments must be whole numbers, .*got \[1\] at place 0",
        ),
        (
            lambda given: get_raw(given, ".aggregation.json").write_text("[" * 100_000),
            "scene0003_00.aggregation.json: expected a dictionary with .*too deeply nested brackets",
        ),
        (
            lambda given: spoil_mesh(given, lambda vertices, faces: faces.__setitem__((3, 1), len(vertices))),
            r"scene0003_00_vh_clean_2.ply: face 3: expected corners of 0 to \d+, the mesh's vertices, got",
        ),
        (
            lambda given: spoil_mesh(given, lambda vertices, faces: vertices.__setitem__((7, 0), 1e6)),
            "scene0003_00_vh_clean_2.ply: expected vertices in metres, .* such as vertex 7 at",
        ),
        (
            lambda given: get_raw(given, ".txt").write_text("axisAlignment = " + 16 * "2 "),
            "axisAlignment: expected rigid .* in .*scene0003_00.txt; remove scale",
        ),
        (
            # What shows only once the scene is read back is told by the scan's own name too.
            lambda given: spoil_depth(given),
            "raw/scans/scene0003_00: the scene made from it is not valid: frame-000000.depth.png: the largest depth",
        ),
        (lambda given: cut_recording(given, 0.6), "scene0003_00.sens"),
        (lambda given: cut_recording(given, 0.001), "scene0003_00.sens"),
    ],
)
def test_a_damaged_scan(given, spoil, message):
    """The others are prepared; once the scan is mended, the same command makes that one alone."""
    num_workers = 2 if message.endswith(".sens") else 1
    spoil(given)
    with pytest.raises(ValueError, match=rf"(?s)scans: 1 of 3 failed; the others are done:.*{message}"):
        prepare(given, "--num-workers", num_workers)
    done = {path.name for path in (given / "out" / "train").iterdir()}
    assert done == {"scene0001_00", "scene0002_00"} and not (given / "out" / "account.json").exists()
    times = [(given / "out" / "train" / name).stat().st_mtime_ns for name in sorted(done)]
    for part in ("raw", "masks"):
        shutil.copytree(get_given() / part, given / part, dirs_exist_ok=True)
    prepare(given)
    assert times == [(given / "out" / "train" / name).stat().st_mtime_ns for name in sorted(done)]
    assert (given / "out" / "account.json").is_file()


def test_other_settings_for_a_folder(given):
    prepare(given)
    with pytest.raises(
        ValueError, match=r"--output: .*out was prepared with \{'num_views': 2\}, but this command sets \{'num_"
    ):
        prepare(given, "--views", 3)
    shutil.rmtree(given / "raw" / "scans" / "scene0001_00")
    with pytest.raises(
        ValueError, match="--output: 1 scenes in this folder are not part of the input, such as .*train"
    ):
        prepare(given, "--partial")


def test_run_jobs():
    assert run_jobs(str, [3, 1], 1, "numbers", repr) == ["3", "1"]
    with pytest.raises(ValueError, match="--num-workers: expected 1 process or more, got 0"):
        run_jobs(str, [3, 1], 0, "numbers", repr)
    with pytest.raises(ValueError, match=r"numbers: 2 of 3 failed.*\n  'a': invalid.*\n  'b': invalid"):
        run_jobs(int, ["a", "1", "b"], 1, "numbers", repr)
    # Whatever is raised; beyond the first few, by name alone.
    with pytest.raises(
        ValueError, match=r"(?s)numbers: 6 of 7 failed.*\n  3: KeyError: '3'.*report.*\n  and 8\nCorrect or rem"
    ):
        run_jobs({"a": 1}.__getitem__, ["a", *"345678"], 1, "numbers", lambda item: item.strip("a") or "a")
    with pytest.raises(
        OSError, match="numbers: a process was killed, perhaps because memory ran out; finished scenes are not lost"
    ):
        run_jobs(os._exit, [3, 3], 2, "numbers", repr)


BOX = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


def make_record(task: str, **changes) -> dict:
    record = {
        "id": 7,
        "video": "scannet/scene0001_00",
        "conversations": [{"value": "<image> Why?", "from": "human"}, {"value": "so", "from": "gpt"}],
        "metadata": {"dataset": task, "question_type": "what"},
    }
    if task == "scanrefer":
        record |= {"box": BOX}
        record["metadata"] |= {"object_id": "4", "ann_id": "0"}
        record["conversations"][1]["value"] = "<ground>"
    return record | changes


OBJECTS = {"scene0001_00": {4: 2}}


def test_records_become_annotations():
    record = make_record("scanrefer")
    (row,) = make_annotations([record], "file.json", OBJECTS).annotations
    assert (row.object_ids, row.target_ids, row.target_boxes) == ([2], [4], [BOX])
    (row,) = make_annotations([make_record("scanQA")], "file.json", OBJECTS).annotations
    assert (row.id, row.task, row.question, row.answer) == ("scanqa-7", "scanqa", " Why?", "so")


def test_published_records_of_mmscan_have_numbers_for_answers():
    record = make_record("mmscan_qa")
    record["conversations"][1]["value"] = 3
    rows = make_annotations([make_record("mmscan_qa"), record], "mmscan_qa_train_x.json", OBJECTS).annotations
    assert [(row.id, row.answer) for row in rows] == [("mmscan_qa-7", "so"), ("mmscan_qa-7-1", "3")]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [make_record("scanqa", conversations=[])],
            "file.json, record 0: expected id, video, two turns of conversations and metadata with dataset and",
        ),
        (["text"], "record 0: expected id, video, two turns of conversations"),
        # Situations share an id in training alone.
        ([make_record("sqa3d"), make_record("sqa3d")], "record 1: expected unique ids, got 7 again"),
        (
            [make_record("scanqa", conversations=make_record("scanqa")["conversations"][::-1])],
            "record 0: expected one human turn and one gpt turn with text, got",
        ),
        (
            [make_record("scanqa"), make_record("scannet_qa")],
            r"record 1: expected a dataset of \['scanqa', .*\], got 'scannet_qa'",
        ),
        ([make_record("scanqa")] * 2, "record 1: expected unique ids, got 7 again"),
        (
            [make_record("scanrefer", metadata={"dataset": "scanrefer", "question_type": "unique"})],
            r"record 0: expected the boxes and ids of a scanrefer record \(docs/DATA.md\), got KeyError\('obj",
        ),
        (
            [
                make_record(
                    "multi3drefer",
                    box=[BOX],
                    metadata={"dataset": "multi3drefer", "question_type": "mt", "ann_id": 0, "object_id": [4, 5]},
                )
            ],
            "expected the boxes and ids of a multi3drefer record .* got ValueError.'2 ids for 1 boxes of objects'",
        ),
        ([make_record("scanrefer", box=BOX[:5])], "record 0: target_boxes must be a list of"),
    ],
)
def test_records_that_are_wrong(records, message):
    with pytest.raises(ValueError, match=message):
        make_annotations(records, "file.json", OBJECTS)
