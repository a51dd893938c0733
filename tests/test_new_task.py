"""A task written as CONTRIBUTING.md says is found, asked, scored and shown; a wrong one ends at its first scene."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ross3d import eval as door
from ross3d import tasks
from ross3d.data.annotations import Annotation
from ross3d.data.sources import read_scene
from ross3d.report.run import make_run_page
from ross3d.tasks.answering import make_record
from ross3d.tasks.checks import check_records, check_scores, name_task
from ross3d.tasks.task import Task
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import compare


ROOT = Path(__file__).parents[1]


@pytest.fixture
def yes_no(tmp_path, monkeypatch):
    """The recipe's task, in a folder of its own; and a data folder with questions for it, one of a scene's two."""
    (text,) = re.findall(r"```python\n(\"\"\"Yes or no.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (tmp_path / "more_tasks").mkdir()
    (tmp_path / "more_tasks" / "yes_no.py").write_text(text)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path / "more_tasks")])
    found = tasks.find_tasks()
    monkeypatch.setattr(door, "find_tasks", lambda: found)
    data = Path(shutil.copytree(get_rooms(), tmp_path / "data"))
    scenes = sorted(path.name for path in (data / "val").iterdir())[:2]
    common = {"task": "yes_no", "question_type": "sofa", "answer": "yes", "references": ["yes"]}
    asked = [(scenes[0], "Is there a sofa?"), (scenes[0], "Is there a bed?"), (scenes[1], "Is there a lamp?")]
    rows = [common | {"id": f"q{i}", "scene_id": scene, "question": text} for i, (scene, text) in enumerate(asked)]
    (data / "annotations" / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found["yes_no"], data


def evaluate(data: Path, output: Path) -> dict:
    words = ["--model", str(get_checkpoint()), "--task", "yes_no", "--data", str(data), "--output", str(output)]
    return door.main(door.parse_arguments([*words, "--num_views", "2"]))


def test_the_recipe_runs_to_its_page_and_comparison(yes_no, tmp_path, monkeypatch, capsys):
    task, data = yes_no
    metrics = evaluate(data, tmp_path / "run")
    assert metrics["scores"]["yes_no"]["count"] == 3 and 0 <= metrics["scores"]["yes_no"]["accuracy"] <= 1
    assert metrics["intervals"]["yes_no"]["accuracy"]["num_scenes"] == 2
    records = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [record["id"] for record in records] == ["q0", "q1", "q2"]
    assert [record["right"] for record in records] == [
        record["prediction"].lower().split()[:1] == ["yes"] for record in records
    ]
    assert "Is there a lamp?" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setattr(compare, "find_tasks", lambda: {"yes_no": task})
    assert compare.main([str(tmp_path / "run"), str(tmp_path / "run")])
    assert "accuracy" in capsys.readouterr().out


def test_a_task_may_have_a_records_file_of_its_own(yes_no, tmp_path, monkeypatch, capsys):
    task, data = yes_no
    mine = replace(task, records_file="mine.jsonl")
    monkeypatch.setattr(door, "find_tasks", lambda: {"yes_no": mine})
    metrics = evaluate(data, tmp_path / "run")
    assert metrics["records_files"] == {"yes_no": "mine.jsonl"}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Scores: yes_no" in page and "Is there a lamp?" in page
    monkeypatch.setattr(compare, "find_tasks", lambda: {"yes_no": mine})
    assert compare.main([str(tmp_path / "run"), str(tmp_path / "run")])["yes_no"]["num_questions"] == 3
    (tmp_path / "run" / "mine.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine.jsonl: expected the records of eval.py, got no such"):
        compare.main([str(tmp_path / "run"), str(tmp_path / "run")])
    with pytest.raises(FileNotFoundError, match="mine.jsonl: expected the answers scored in metrics.json, got"):
        make_run_page(tmp_path / "run", read_scene)


def fail_with(error: Exception):
    def fail(*given):
        raise error

    return fail


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "load_items",
            KeyError("color"),
            "load_items(data_dir, settings): expected a result, but the function",
        ),
        ("load_items", ValueError("no wall"), "load_items(data_dir, settings): no wall"),
        (
            "prepare",
            FileNotFoundError(2, "No such file", "a.npy"),
            "prepare(context, items) of scene 'val-000000', ended with the error ",
        ),
        ("answer", IndexError("list index"), "answer(context, scenes) of 'val-000000': expected a result, but the"),
    ],
)
def test_a_function_that_raises_is_named(yes_no, tmp_path, monkeypatch, name, error, message):
    task, data = yes_no
    monkeypatch.setattr(door, "find_tasks", lambda: {"yes_no": replace(task, **{name: fail_with(error)})})
    kind = OSError if isinstance(error, OSError) else ValueError
    with pytest.raises(kind, match=re.escape(f"task 'yes_no', {message}")):
        evaluate(data, tmp_path / "run")


def test_memory_that_is_used_up_keeps_its_error():
    with pytest.raises(MemoryError, match="^17 GB$"), name_task(make_task(), "answer"):
        raise MemoryError("17 GB")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "TASK = Task(\n",
            r"tasks/broken_one.py: expected a task module that can be imported, got SyntaxError",
        ),
        (
            "import no_such_package\n",
            "broken_one.py: expected a task module .* ModuleNotFoundError: No module",
        ),
        ("TASK = 3\n", r"broken_one.py: expected TASK = Task\(...\), got 3; correct it"),
        (
            "NAME = 'broken_one'\n",
            "--task broken_one: expected a benchmark, but tasks/broken_one.py defines no TASK",
        ),
    ],
)
def test_a_broken_file_is_named_and_help_is_still_there(tmp_path, monkeypatch, capsys, text, message):
    (tmp_path / "broken_one.py").write_text(text)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "ross3d.tasks.broken_one", raising=False)
    with pytest.raises(ValueError, match=message):
        door.get_tasks("broken_one")
    with pytest.raises(SystemExit) as end:
        door.parse_arguments(["--help"])
    assert end.value.code == 0


def test_names_of_tasks_may_have_blanks_between():
    assert [task.name for task in door.get_tasks("rooms, reconstruction")] == ["rooms", "reconstruction"]
    with pytest.raises(ValueError, match="--task: expected names of .*, each once, got '' in 'rooms,'; separate"):
        door.get_tasks("rooms,")


def test_a_wrong_task_ends_at_its_first_scene(yes_no, tmp_path, monkeypatch):
    task, data = yes_no
    answered = []

    def answer(context, scenes):
        answered.append(len(scenes))
        return [
            [make_record("yes_no", item, response="no", prediction="no") for item in scene.items] for scene in scenes
        ]

    monkeypatch.setattr(door, "find_tasks", lambda: {"yes_no": replace(task, answer=answer)})
    with pytest.raises(
        ValueError, match=r"expected the fields .* in the record of 'q0', got none of \['right'\]; start"
    ):
        evaluate(data, tmp_path / "run")
    assert answered == [1] and not (tmp_path / "run" / "predictions.jsonl").exists()
    assert not list((tmp_path / "run").glob("parts/*"))


ITEMS = [Annotation(f"q{i}", f"scene{i // 2}", "mine", kind, "Is it?", "yes", ["yes"]) for i, kind in enumerate("abc")]


def make_records(**changes) -> list[dict]:
    records = [make_record("mine", item, response="no", prediction="no", right=False) for item in ITEMS]
    records[1] |= changes
    return records


def make_task(**changes) -> Task:
    task = Task(
        "mine",
        "predictions.jsonl",
        *[lambda *given: []] * 3,
        score=lambda records: {"accuracy": 0.5},
        get_values=lambda records: {"accuracy": np.zeros(len(records))},
    )
    return replace(task, **changes)


def test_right_records_and_scores_pass():
    records = make_records()
    assert check_records(make_task(), ITEMS, records) is records
    check_scores(make_task(), records)
    check_scores(make_task(get_values=None), records)
    check_scores(make_task(score=lambda records: 1 / 0), [])


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (make_records()[:2], "expected a list of 3 records for the scene, one per question, got 2"),
        ({"q0": {}}, "expected a list of 3 records for the scene, one per question, got an object"),
        ([None] * 3, "expected a dictionary as the record of 'q0', got NoneType"),
        (make_records()[::-1], "expected task 'mine' and id 'q0', in the order of the questions, got 'mine' and 'q2'"),
        (make_records(prediction=None), r"in the record of 'q1', got none of \['target_boxes', 'answer_boxes'\]"),
        (make_records(references=[]), r"expected a non-empty list of references of 'q1', got \[\]"),
        (
            make_records(right=np.bool_(True)),
            "record of 'q1': expected values that JSON can hold .* got: Object of type",
        ),
        (make_records(share=float("nan")), "record of 'q1': expected values that JSON can hold .* got: Out of range"),
    ],
)
def test_wrong_records_are_refused(records, message):
    with pytest.raises(ValueError, match=rf"task 'mine', answer\(context, scenes\):? ?.*{message}"):
        check_records(make_task(), ITEMS, records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"score": lambda records: records[0]["score"]},
            r"score\(records\): failed on the 3 records .* KeyError\('score",
        ),
        ({"score": lambda records: 0.5}, r"score\(records\): expected a dictionary of scores, got float; return"),
        ({"score": lambda records: {"a": np.float32(1)}}, r"score\(records\): expected values that JSON can hold"),
        (
            {"get_values": lambda records: {"a": [0.0, 1.0, 1.0]}},
            "expected name -> array of float64, .* got a: a list",
        ),
        (
            {"get_values": lambda records: {"a": np.zeros(2)}},
            r"\(3 here\), got a: float64 of shape \(2,\); use np.arr",
        ),
        ({"get_values": lambda records: {"a": np.zeros(3, bool)}}, r"got a: bool of shape \(3,\)"),
        (
            {"get_sums": lambda records: {"a": 3}},
            r"get_sums\(records\): expected sums for which an interval can be computed",
        ),
    ],
)
def test_functions_that_fail_are_named(changes, message):
    with pytest.raises(ValueError, match=rf"task 'mine', .*{message}"):
        check_scores(make_task(**changes), make_records())


def test_a_task_has_a_name_and_functions(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="Task: expected a name and a records_file that ends in .jsonl, got '' and"):
        make_task(name="")
    with pytest.raises(ValueError, match="expected a name and a records_file that ends in .jsonl, got 'mine' and"):
        make_task(records_file="../a.jsonl")
    with pytest.raises(ValueError, match="Task 'mine': expected a function as score, got None"):
        make_task(score=None)
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    (tmp_path / "copied_task.py").write_text("from ross3d.tasks.sqa3d import TASK\n")
    with pytest.raises(ValueError, match=r"copied_task.py: expected TASK = Task\(...\) with a unique name, got"):
        tasks.find_tasks()
