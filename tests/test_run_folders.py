"""An evaluation's folder: one writer, files that name themselves when they are broken, boxes that are said."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ross3d import eval as door
from ross3d.data.annotations import load_annotations
from ross3d.data.atomic import hold_folder
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.report.run import make_run_page
from ross3d.tasks import multi3drefer, reconstruction, rooms, scan2cap, scanrefer
from ross3d.tasks.answering import get_proposals
from ross3d.tasks.comparison import read_run
from ross3d.tasks.records import RecordStore, read_whole_lines
from ross3d.tasks.task import EvalContext, EvalSettings
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import view


RECORD = {"task": "rooms", "id": "a", "scene_id": "val-000000"}


def test_two_evaluations_in_one_folder_are_refused(tmp_path):
    words = [
        "--model",
        str(get_checkpoint()),
        "--task",
        "rooms",
        "--data",
        str(get_rooms()),
        "--output",
        str(tmp_path),
    ]
    with (
        hold_folder(tmp_path),
        pytest.raises(BlockingIOError, match="--output: another process is writing to .*; wait"),
    ):
        door.main(door.parse_arguments(words))


@pytest.fixture
def run_folder(tmp_path):
    settings = {
        "num_views": 2,
        "decode": "exact",
        "view_size": 64,
        "data": str(get_rooms()),
        "model": "m",
        "tasks": {},
    }
    (tmp_path / "metrics.json").write_text(json.dumps({"scores": {"rooms": {"a": 1}}, "settings": settings}))
    (tmp_path / "predictions.jsonl").write_text(json.dumps(RECORD) + "\n")
    return tmp_path


def test_a_broken_file_of_a_run_names_itself(run_folder):
    assert read_run(run_folder).records == {"rooms": [RECORD]}
    (run_folder / "predictions.jsonl").write_text(json.dumps(RECORD) + '\n{"task": "rooms"}\n')
    with pytest.raises(
        ValueError, match=r"predictions.jsonl:2: expected a record of eval.py, got no id, scene_id; check"
    ):
        read_run(run_folder)
    (run_folder / "predictions.jsonl").write_text("")
    (run_folder / "metrics.json").write_text('{"scores": {')
    for read in (read_run, view.get_run_reader):
        with pytest.raises(
            ValueError, match=r"metrics.json: expected .*, but the file is not valid JSON \(.*line 1 column 13"
        ):
            read(run_folder)
    (run_folder / "metrics.json").write_text('{"scores": {}, "settings": {"num_views": 2}}')
    with pytest.raises(
        ValueError, match=r"metrics.json: expected the settings of an evaluation, got none of \['decode'"
    ):
        view.get_run_reader(run_folder)
    (run_folder / "settings.json").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"settings.json: expected the settings of the evaluation in this folder.*it is empty"
    ):
        door.check_settings(run_folder / "settings.json", {})


def test_an_evaluation_removes_its_own_parts_alone(tmp_path):
    """In a folder where somebody keeps other things, too."""
    parts, pictures = tmp_path / "parts", tmp_path / "pictures" / "room"
    for name in (
        "parts/thesis.txt",
        "parts/notes.jsonl",
        "run/.model.safetensors.17.0123abcd.partial",
        ".film.partial",
        "pictures/room/.view00.png.17.0123abcd.partial",
        ".metrics.json.17.0123abcd.partial",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    store = RecordStore(tmp_path, [])
    store.append_scene([{"task": "t", "id": "a", "scene_id": "s"}])
    assert (parts / "rank0-0.jsonl").is_file()
    store.remove_parts()
    assert sorted(file.name for file in parts.iterdir()) == ["notes.jsonl", "thesis.txt"]
    assert (tmp_path / "run" / ".model.safetensors.17.0123abcd.partial").exists() and not list(pictures.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == [".film.partial", "parts", "pictures", "run"]
    shutil.rmtree(parts)
    store.append_scene([{"task": "t", "id": "b", "scene_id": "s"}])
    store.remove_parts()
    assert not parts.exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"task": "rooms", "id', "expected a record of eval.py, but the file is not valid JSON"),
        (b'{"task": "rooms", "id": "caf\xe9"}', "expected a record of eval.py, got bytes that are not UTF-8"),
        (b"[1]", "expected a record of eval.py with task, id and scene_id, got [1]"),
        (b"\x00\x00", "expected a record of eval.py, but the file is not valid JSON"),
    ],
)
def test_a_damaged_record_is_named_with_its_line(tmp_path, line, message):
    file = tmp_path / "rank0-0.jsonl"
    file.write_bytes(json.dumps(RECORD).encode() + b"\n" + line + b"\n" + json.dumps(RECORD).encode()[:9])
    with pytest.raises(ValueError) as found:
        read_whole_lines(file)
    assert str(found.value).startswith(f"{file}:2: {message}")
    assert str(found.value).endswith("remove the line, and its scene is answered again.")


def test_questions_about_scenes_that_are_not_there_are_named(tmp_path):
    data = Path(shutil.copytree(get_rooms(), tmp_path / "data"))
    gone = sorted((data / "val").iterdir())[1:]
    names = [path.name for path in gone]
    asked = [row.id for row in load_annotations(data / "annotations" / "val.jsonl") if row.scene_id in names]
    for path in gone:
        shutil.rmtree(path)
    words = ["--model", str(get_checkpoint()), "--task", "rooms", "--data", str(data), "--output", str(tmp_path / "o")]
    with pytest.raises(
        FileNotFoundError,
        match=rf"split val: expected questions about existing scenes, got {len(asked)}, first '{asked[0]}',"
        rf" about 2 that are not, such as \['{names[0]}', '{names[1]}'\]: there is no folder .*{names[0]}, and no",
    ):
        door.main(door.parse_arguments(words))


def test_what_a_page_lacks_is_said(run_folder):
    with pytest.raises(FileNotFoundError, match="--blind .*nope: expected the evaluation of the blind model, got a"):
        make_run_page(run_folder, read_rgbd_folder, run_folder / "nope")
    (run_folder / "predictions.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"predictions.jsonl: expected the answers scored in metrics.json, got"
    ):
        make_run_page(run_folder, read_rgbd_folder)


# ---- what rooms choose among


def test_rooms_choose_among_boxes_from_depth_unless_told_otherwise(tmp_path):
    settings = rooms.TASK.fill_settings(EvalSettings())
    assert settings.proposals == "depth"
    assert rooms.TASK.fill_settings(EvalSettings(proposals="jittered")).proposals == "jittered"
    assert {scanrefer.TASK.proposals, multi3drefer.TASK.proposals, scan2cap.TASK.proposals} == {"given"}
    # A task without boxes has no source, whatever is asked of the others.
    assert reconstruction.TASK.fill_settings(EvalSettings(proposals="given")).proposals is None
    context = EvalContext(None, None, None, tmp_path, tmp_path, None, None, None, EvalSettings())
    with pytest.raises(ValueError, match=r'got None; end its file with Task\(..., proposals="given"\)'):
        get_proposals(context, read_rgbd_folder(get_rooms() / "val" / "val-000000"))


def test_given_boxes_have_to_be_in_every_scene(tmp_path):
    data = Path(shutil.copytree(get_rooms(), tmp_path / "data"))
    folders = sorted((data / "val").iterdir())
    found = [[0.5, 0.25, 0.4, 0.3, 0.2, 0.8], [1.0, -0.5, 0.3, 0.6, 0.5, 0.4]]
    items = rooms.load_items(data, EvalSettings("val"))
    (folders[0] / "proposals.json").write_text(json.dumps(found))
    given = EvalSettings("val", proposals="given")
    with pytest.raises(
        ValueError,
        match=r"expected detected boxes in proposals.json of 3 scenes, got none in 2, first val-000001; prepare them",
    ):
        rooms.load_items(data, given)
    for folder in folders:
        (folder / "proposals.json").write_text(json.dumps(found))
    assert rooms.load_items(data, given) == items
    boxes = ProposalMaker("--proposals").propose(read_rgbd_folder(folders[0]), "given", 0)
    np.testing.assert_allclose(boxes, found, rtol=1e-6)


def test_questions_about_objects_that_a_scene_does_not_have_are_refused_at_load(tmp_path):
    data = Path(shutil.copytree(get_rooms(), tmp_path / "data"))
    file = data / "annotations" / "val.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = next(row for row in rows if row["object_ids"])
    wrong["object_ids"] = [0, 99]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    count = len(json.loads((data / "val" / wrong["scene_id"] / "boxes.json").read_text()))
    message = rf"object_ids of question '{wrong['id']}': expected box indices below {count}, .*got \[0, 99\]"
    with pytest.raises(ValueError, match=message):
        rooms.load_items(data, rooms.TASK.fill_settings(EvalSettings()))
