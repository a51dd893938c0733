"""eval.py: what it writes, and that a kill at any moment changes none of it."""

import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ross3d.data.annotations import Annotation
from ross3d.data.proposals import propose_boxes
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.scenes.build import build_scenes
from ross3d.tasks.records import RecordStore
from ross3d.tasks.task import EvalContext, EvalSettings
from ross3d.tests.tiny import get_checkpoint, get_rooms


ROOT = Path(__file__).resolve().parents[1]
TIMESTAMPS = {"timing.json"}
FEW_STEPS = ["--num_samples", "2", "--num_inference_steps", "2", "--max_new_tokens", "4"]


def load_door():
    """eval.py as a module; its name is a builtin's, and doors are imported by nobody but tests."""
    spec = importlib.util.spec_from_file_location("ross3d_eval_door", ROOT / "eval.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


door = load_door()


def get_arguments(output: Path, *more: str, task: str = "rooms,reconstruction") -> list[str]:
    given = ["--model", get_checkpoint(), "--task", task, "--data", get_rooms(), "--output", output]
    return [str(value) for value in [*given, "--limit", "2", *FEW_STEPS, *more]]


def evaluate(output: Path, *more: str, task: str = "rooms,reconstruction"):
    return door.main(door.parse_arguments(get_arguments(output, *more, task=task)))


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file but those that hold times.

    The folder's own path is made equal, and the commit, which somebody may move on while tests run.
    """
    hashes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in TIMESTAMPS):
        data = path.read_bytes().replace(str(folder).encode(), b"OUTPUT")
        data = re.sub(rb"\b[0-9a-f]{40}\b(\+changes)?", b"COMMIT", data)
        hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("finished")
    evaluate(output)
    return output


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_files_hold_every_answer_once_and_how_they_came_about(finished):
    assert {path.name for path in finished.iterdir()} == {
        "metrics.json", "predictions.jsonl", "reconstruction.json", "reconstruction.jsonl", "report.html",
        "settings.json", "timing.json", "pictures",
    }  # fmt: skip
    asked = read_lines(get_rooms() / "annotations" / "val.jsonl")
    asked = [row["id"] for row in asked if row["scene_id"] in {"val-000000", "val-000001"}]
    predictions = read_lines(finished / "predictions.jsonl")
    assert [record["id"] for record in predictions] == asked
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["scores"]["rooms"]["num_questions"] == len(asked)
    assert sum(row["num_questions"] for row in metrics["scores"]["rooms"]["types"].values()) == len(asked)
    sources = {name: task["proposals"] for name, task in metrics["settings"]["tasks"].items()}
    assert sources == {"rooms": "depth", "reconstruction": None} and "proposals" not in metrics["settings"]
    assert metrics["settings"]["spatial_instruction"] is False and metrics["config"]["model_type"] == "ross3d"
    assert metrics["command"] and set(metrics["baselines"]["rooms"]) == {"majority", "lookup"}
    rebuilt = metrics["scores"]["reconstruction"]
    assert rebuilt["view"]["num_pictures"] == 4 and rebuilt["bev_object"]["num_pictures"] == 2
    assert rebuilt == json.loads((finished / "reconstruction.json").read_text())
    assert (finished / "pictures" / "val-000000" / "bev_mean_of_samples.png").is_file()


def test_boxes_of_another_source_are_scored_in_another_folder(finished, tmp_path):
    evaluate(tmp_path, "--proposals", "jittered", task="rooms")
    counts = [
        {record["scene_id"]: len(record["scores"]) - 1 for record in read_lines(folder / "predictions.jsonl")
         if record["question_type"].startswith("grounding")}
        for folder in (finished, tmp_path)
    ]  # fmt: skip
    for scene_id, count in counts[1].items():
        scene = read_rgbd_folder(get_rooms() / "val" / scene_id)
        assert count == len(scene.boxes) + 4 and counts[0][scene_id] == len(propose_boxes(scene).boxes)
    with pytest.raises(ValueError, match="expected tasks.rooms.proposals='jittered', as for the answers"):
        evaluate(tmp_path, task="rooms")


@pytest.mark.parametrize("at_once", ["2", "5"])
def test_scenes_answered_together_get_the_same_answers(finished, tmp_path, at_once):
    evaluate(tmp_path, "--scenes_at_once", at_once, task="rooms")
    assert read_lines(tmp_path / "predictions.jsonl") == read_lines(finished / "predictions.jsonl")


def test_a_named_split_is_evaluated_beside_look_ups_of_the_split_it_tests(tmp_path, capsys):
    """`val_unseen_pairs` tests models of `train_seen_pairs`; spatial questions are scored with the others."""
    rooms = {"num_train": 4, "num_val": 2, "image_size": (64, 64), "num_views": 4, "bev_size": 8, "workers": 1}
    splits = ["train_seen_pairs", "val_unseen_pairs"]
    build_scenes(tmp_path / "rooms", **rooms, splits=splits, question_set="spatial")
    given = ["--data", str(tmp_path / "rooms"), "--split", "val_unseen_pairs", "--report", "false"]
    metrics = evaluate(tmp_path / "out", *given, task="rooms")
    assert metrics["settings"]["tasks"]["rooms"]["split"] == "val_unseen_pairs"
    assert "rooms, split val_unseen_pairs" in capsys.readouterr().out
    assert set(metrics["baselines"]["rooms"]) == {"majority", "lookup"}
    types = metrics["scores"]["rooms"]["types"]
    asked = read_lines(tmp_path / "rooms" / "annotations" / "val_unseen_pairs.jsonl")
    assert set(types) == {row["question_type"] for row in asked} and "object_abs_distance" in types
    known = metrics["baselines"]["rooms"]["lookup"]["types"]
    assert 0 < known["object_counting"]["relative_accuracy"] <= 1


class RecordedTask:
    """A task that notes what is answered together, and with whose processor scenes are prepared."""

    name, records_file = "recorded", "recorded.jsonl"
    is_captions, get_values, get_sums = False, None, None

    def score(self, records):
        return {"count": len(records)}

    def __init__(self):
        self.together: list[list[str]] = []
        self.processors: set[int] = set()

    def prepare(self, context, items):
        self.processors.add(id(context.processor))
        return items[0].scene_id

    def answer(self, context, scenes):
        self.together.append([scene.prepared for scene in scenes])
        return [[make_plain_record(item) for item in scene.items] for scene in scenes]


def make_plain_record(item: Annotation) -> dict:
    return {"task": "recorded", "id": item.id, "scene_id": item.scene_id}


def make_items(count: int) -> list[Annotation]:
    """Two questions a scene."""
    return [Annotation(f"{n}-{k}", f"scene{n}", "recorded", "t", "q", "a") for n in range(count) for k in range(2)]


@pytest.mark.parametrize(("answered", "ranks"), [([], 1), ([0, 3], 1), ([2], 1), ([], 2), ([1], 3)])
def test_scenes_that_are_answered_together_stay_together(tmp_path, answered, ranks):
    """After a restart and with any number of processes; what was answered is kept as it was."""
    items, processor = make_items(7), object()
    context = EvalContext(None, processor, None, *(None,) * 5, settings=EvalSettings(scenes_at_once=3))
    RecordStore(tmp_path, []).append_scene(
        [make_plain_record(item) | {"first": True} for n in answered for item in items[2 * n : 2 * n + 2]]
    )
    together, wanted = [], [["scene0", "scene1", "scene2"], ["scene3", "scene4", "scene5"], ["scene6"]]
    stores = [RecordStore(tmp_path, [], rank) for rank in range(ranks)]
    for rank, store in enumerate(stores):
        task, state = RecordedTask(), SimpleNamespace(process_index=rank, num_processes=ranks, is_main_process=False)
        door.answer_open_scenes(context, task, items, store, state)
        together += task.together
        assert id(processor) not in task.processors
    assert sorted(together) == wanted
    records = RecordStore(tmp_path, []).get_records("recorded", items)
    kept = {record["id"] for record in records if record.get("first")}
    assert len(records) == 14 and kept == {f"{n}-{k}" for n in answered for k in range(2)}


def test_scenes_with_and_without_depth_are_answered_together(tmp_path):
    rooms = tmp_path / "rooms"
    shutil.copytree(get_rooms(), rooms)
    for file in (rooms / "val" / "val-000001").glob("*.depth.png"):
        file.unlink()
    file = rooms / "annotations" / "val.jsonl"
    kept = [row for row in read_lines(file) if row["scene_id"] != "val-000001" or row["object_ids"] is None]
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    for name in ("1", "2"):
        evaluate(tmp_path / name, "--data", str(rooms), "--scenes_at_once", name, "--no_report", task="rooms")
    one, two = (read_lines(tmp_path / name / "predictions.jsonl") for name in ("1", "2"))
    assert one == two and {row["scene_id"] for row in one} == {"val-000000", "val-000001"}


def test_a_finished_evaluation_is_not_answered_again(finished, monkeypatch):
    before = hash_files(finished)
    monkeypatch.setattr(RecordStore, "append_scene", lambda *_: pytest.fail("answered again"))
    evaluate(finished)
    assert hash_files(finished) == before


@pytest.mark.parametrize("scenes_before", [0, 1, 3])
def test_a_kill_inside_a_write_loses_and_repeats_nothing(finished, tmp_path, monkeypatch, scenes_before):
    append, written = RecordStore.append_scene, []

    def append_and_die(store, records):
        if len(written) == scenes_before:
            append(store, records)
            data = store.part.read_bytes()
            store.part.write_bytes(data[: len(data) - 23])
            raise KeyboardInterrupt
        written.append(records[0]["scene_id"])
        append(store, records)

    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "append_scene", append_and_die)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    evaluate(tmp_path)
    assert hash_files(tmp_path) == hash_files(finished)


def test_other_settings_do_not_go_on_with_an_evaluation(finished):
    with pytest.raises(ValueError, match=r"expected limit=2, as for the answers already there, got\s+1"):
        evaluate(finished, "--limit", "1")


def test_other_questions_do_not_go_on_with_an_evaluation(tmp_path):
    shutil.copytree(get_rooms(), tmp_path / "rooms")
    own = ["--data", str(tmp_path / "rooms"), "--no_report"]
    evaluate(tmp_path / "out", *own, task="rooms")
    file = tmp_path / "rooms" / "annotations" / "val.jsonl"
    file.write_text(file.read_text().replace("Is there", "Can you see", 1))
    with pytest.raises(ValueError, match="expected tasks.rooms.items_sha256='"):
        evaluate(tmp_path / "out", *own, task="rooms")


def test_a_blind_evaluation_looks_at_nothing(tmp_path, monkeypatch):
    seen = []
    processor = door.load_processor(get_checkpoint())
    call = type(processor).__call__

    def watch(self, **inputs):
        seen.append(inputs)
        return call(self, **inputs)

    monkeypatch.setattr(type(processor), "__call__", watch)
    monkeypatch.setattr(door, "load_processor", lambda *given: processor)
    metrics = evaluate(tmp_path, "--blind", "true", task="rooms")
    assert metrics["settings"]["blind"] is True
    assert {name for inputs in seen for name in inputs} <= {"images", "text", "query_coords", "return_tensors"}
    shown = [inputs["images"] for inputs in seen if "images" in inputs]
    assert shown and all((view == 128).all() for views in shown for view in views)
    points = [p for inputs in seen for p in inputs.get("query_coords", []) if p is not None]
    assert points and not any(point.any() for point in points)


def test_the_spatial_instruction_is_a_setting_that_is_reported(tmp_path):
    metrics = evaluate(tmp_path, "--spatial_instruction", "true", "--no_report", task="rooms")
    assert metrics["settings"]["spatial_instruction"] is True and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("left", ["nothing", "other tasks"])
def test_without_training_questions_there_are_scores_and_no_baselines(tmp_path, left, capsys):
    """Said before the first answer; the table has no columns for them."""
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    file = rooms / "annotations" / "train.jsonl"
    if left == "nothing":
        file.unlink()
    else:
        rows = [row | {"task": "other"} for row in read_lines(file)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="--task rooms: .*train.jsonl: no training questions, so the look-up"):
        metrics = evaluate(tmp_path / "out", "--data", str(rooms), "--blind", "true", task="rooms")
    assert metrics["scores"]["rooms"]["num_questions"] > 0 and metrics["baselines"] == {"rooms": {}}
    table = capsys.readouterr().out
    assert "mean of exact-match types" in table and "majority" not in table and "look-up" not in table
    page = (tmp_path / "out" / "report.html").read_text()
    assert "majority, %" not in page and "look-up, %" not in page


def test_broken_training_questions_are_told_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(door, "load_model", lambda *given: pytest.fail("the model was loaded first"))
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    (rooms / "annotations" / "train.jsonl").write_text("{cut\n")
    with pytest.raises(ValueError, match="train.jsonl:1: expected one annotation per line"):
        evaluate(tmp_path / "out", "--data", str(rooms), task="rooms")


@pytest.mark.parametrize("point", [[150.0, -20.0, 40.0], [0.0, 0.0, -400.0]])
def test_a_place_far_outside_of_the_scene_is_not_asked_about(tmp_path, point):
    rooms = Path(shutil.copytree(get_rooms(), tmp_path / "rooms"))
    file = rooms / "annotations" / "val.jsonl"
    rows = read_lines(file)
    place = next(n for n, row in enumerate(rows) if row["query_coords"])
    rows[place]["query_coords"] = point
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = (
        rf"val.jsonl: query_coords of question '{rows[place]['id']}': expected a point in metres, at most 50 m from"
        rf" the observed part of scene '{rows[place]['scene_id']}', got \[{point[0]}, {point[1]}, {point[2]}\]; divide"
    )
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "out", "--data", str(rooms), "--no_report", task="rooms")
    # A blind model is told no places.
    evaluate(tmp_path / "blind", "--data", str(rooms), "--no_report", "--blind", "true", task="rooms")


def test_what_cannot_be_evaluated_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--task: expected names of \[.*'rooms'.*\], each once, got 'roms'"):
        evaluate(tmp_path, task="roms")
    (tmp_path / "bare").mkdir()
    for path in get_checkpoint().iterdir():
        if path.is_file():
            (tmp_path / "bare" / path.name).symlink_to(path)
    with pytest.raises(ValueError, match="expected the VAE teacher in .*teacher, got no such folder"):
        evaluate(tmp_path / "out", "--model", str(tmp_path / "bare"), task="reconstruction")
    with pytest.raises(ValueError, match=r"--task: expected names of .*, each once, got 'rooms' in 'rooms,rooms'"):
        evaluate(tmp_path, task="rooms,rooms")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="expected 2 connected processes, got 1"):
        evaluate(tmp_path / "out", task="rooms")


def start(output: Path, *launcher: str, more: tuple[str, ...] = (), **variables: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, *launcher, str(ROOT / "eval.py"), *get_arguments(output, *more)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()[-3000:]


def get_time(file: Path) -> int:
    return file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
def test_twelve_kills_at_random_moments_change_no_file(tmp_path):
    finish(start(tmp_path / "whole"))
    settings, drawn = tmp_path / "killed" / "settings.json", random.Random(0)
    for number in range(12):
        if number % 2:
            # Whatever is left to do, the settings and the final files are more than 14 changes of files.
            inside = ["-m", "ross3d.tests.invariant.kill_inside"]
            process = start(tmp_path / "killed", *inside, KILL_AT=f"killed:{drawn.randint(1, 14)}")
        else:
            before = get_time(settings)
            process = start(tmp_path / "killed")
            # The first one dies before it has written anything.
            while number and process.poll() is None and get_time(settings) == before:
                time.sleep(0.002)
            time.sleep(drawn.uniform(0.0, 0.2))
            assert process.poll() is None, "the evaluation ended before its moment"
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors.decode()[-3000:]
    finish(start(tmp_path / "killed"))
    whole, killed = hash_files(tmp_path / "whole"), hash_files(tmp_path / "killed")
    assert killed == whole
    ids = [record["id"] for record in read_lines(tmp_path / "killed" / "predictions.jsonl")]
    assert len(ids) == len(set(ids)) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "limit"), [(2, 2), (4, 1), (4, 3)])
def test_processes_write_what_one_writes(tmp_path, processes, limit):
    more = ("--limit", str(limit))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    finish(start(tmp_path / "one", more=more))
    finish(start(tmp_path / "many", *launcher, more=more))
    assert hash_files(tmp_path / "many") == hash_files(tmp_path / "one")
    assert len({record["scene_id"] for record in read_lines(tmp_path / "many" / "predictions.jsonl")}) == limit
