"""Runs compared question by question: differences, intervals, changes, seeds, and what cannot be compared."""

import json
from pathlib import Path

import numpy as np
import pytest

from ross3d.report.comparison import format_comparison, is_apart, make_comparison_page
from ross3d.tasks import find_tasks
from ross3d.tasks.comparison import Run, compare_systems, read_run
from ross3d.tasks.intervals import Summed, average, compute_interval, compute_ratio, subtract
from ross3d.tests.test_report import check_page
from ross3d.tools.compare import main


TASKS = find_tasks()


def make_record(number: int, answer: str, scene: str | None = None) -> dict:
    return {
        "task": "scanqa",
        "id": f"q{number}",
        "scene_id": scene or f"scene{number // 4}",
        "question_type": "unknow",
        "question": f"What is <{number}>?",
        "references": ["a bed"],
        "response": answer,
        "prediction": answer,
        "right": answer == "a bed",
    }


def write_run(folder: Path, answers: list[str], reverse: bool = False) -> Path:
    records = [make_record(number, answer) for number, answer in enumerate(answers)]
    folder.mkdir()
    scores = {"scanqa": TASKS["scanqa"].score(records)}
    (folder / "metrics.json").write_text(json.dumps({"scores": scores}))
    lines = reversed(records) if reverse else records
    (folder / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in lines))
    return folder


def make_answers(right: list[bool]) -> list[str]:
    return ["a bed" if is_right else f"lamp {number}" for number, is_right in enumerate(right)]


def test_differences_and_changes_are_those_of_paired_questions(tmp_path):
    before = np.arange(24) % 3 == 0
    after = before.copy()
    # Every scene of four questions gains one; one question of scene 2 is lost.
    after[1::4] = True
    after[9] = False
    a, b = (
        write_run(tmp_path / name, make_answers(x), reverse=name == "b") for name, x in (("a", before), ("b", after))
    )
    comparison = main([str(a), str(b), "--output", str(tmp_path / "out")])
    found = comparison["scanqa"]
    score = found["scores"]["exact_match"]
    assert [row["mean"] for row in score["systems"]] == pytest.approx([before.mean(), after.mean()])
    (difference,) = score["differences"]
    assert difference["mean"] == pytest.approx(after.mean() - before.mean())
    assert difference["low"] <= difference["mean"] <= difference["high"]
    (changes,) = found["changes"]
    assert changes["num_better"] == int((after & ~before).sum()) and changes["num_worse"] == int(
        (before & ~after).sum()
    )
    assert [row["id"] for row in changes["questions"] if row["gain"] < 0] == ["q9"]
    assert {row["id"] for row in changes["questions"]} == {f"q{n}" for n in np.flatnonzero(before != after)}
    # BLEU is no mean of questions; its interval comes from its counts.
    (bleu,) = found["scores"]["BLEU-1"]["differences"]
    assert bleu["low"] <= bleu["mean"] <= bleu["high"] and bleu["mean"] > 0
    assert found["num_scenes"] == 6
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == comparison
    page = (tmp_path / "out" / "comparison.html").read_text()
    check_page(page)
    assert "6 scenes: 95 % intervals over so few scenes are too narrow" in page
    assert "What is &lt;9&gt;?" in page and "a bed" in page


def test_two_systems_are_resampled_together():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 5, (40, 2)) + [[0, 5]]
    scenes = np.arange(40) // 4
    worse, better = Summed(counts, compute_ratio), Summed(counts + [[1, 0]], compute_ratio)
    interval = compute_interval(subtract(better, worse), scenes)
    assert interval["mean"] == pytest.approx(40 / counts[:, 1].sum()) and 0 < interval["low"] < interval["high"]
    alone = compute_interval(worse, scenes)
    assert interval["high"] - interval["low"] < (alone["high"] - alone["low"]) / 2
    same = compute_interval(subtract(worse, worse), scenes)
    assert same == {"mean": 0.0, "low": 0.0, "high": 0.0, "num_scenes": 10}
    middle = compute_interval(average([better, worse]), scenes)
    assert middle["mean"] == pytest.approx(alone["mean"] + interval["mean"] / 2)


def test_one_scene_and_rounding_set_nothing_apart(tmp_path):
    runs = [[make_record(n, answer, "scene") for n, answer in enumerate(words)] for words in ("xx", "yx")]
    systems = [[Run(tmp_path, {"scanqa": TASKS["scanqa"].score(records)}, {"scanqa": records})] for records in runs]
    comparison = compare_systems(systems, {"scanqa": TASKS["scanqa"]})
    (difference,) = comparison["scanqa"]["scores"]["exact_match"]["differences"]
    assert difference["low"] is None and "no intervals" in format_comparison(["a", "b"], comparison)
    assert not is_apart(difference) and not is_apart({"mean": 1e-12, "low": 1e-13, "high": 1e-12})
    check_page(make_comparison_page(["a", "b"], comparison))


def test_an_interval_tells_a_real_difference_from_none(tmp_path):
    rng = np.random.default_rng(0)
    before = rng.random(200) < 0.5
    better = before | (rng.random(200) < 0.3)
    same = np.where(rng.random(200) < 0.1, ~before, before)
    folders = [write_run(tmp_path / n, make_answers(x)) for n, x in (("a", before), ("b", better), ("c", same))]
    systems = [[read_run(folder)] for folder in folders]
    comparison = compare_systems(systems, {"scanqa": TASKS["scanqa"]})
    first, second = comparison["scanqa"]["scores"]["exact_match"]["differences"]
    assert first["low"] > 0 and second["low"] < 0 < second["high"]
    text = format_comparison(["a", "b", "c"], comparison)
    (line,) = [line for line in text.splitlines() if line.startswith("  exact_match:")]
    assert line.count("*") == 1 and "B-A +" in line and "C-A " in line
    assert 'class="good"' in make_comparison_page(["a", "b", "c"], comparison)


def test_seeds_of_a_system_are_one_row_with_a_spread(tmp_path):
    shares = [np.arange(12) < count for count in (3, 5, 7)]
    seeds = [write_run(tmp_path / f"seed{n}", make_answers(share)) for n, share in enumerate(shares)]
    other = write_run(tmp_path / "other", make_answers(np.ones(12, dtype=bool)))
    comparison = main([",".join(map(str, seeds)), str(other)])
    row, single = comparison["scanqa"]["scores"]["exact_match"]["systems"]
    values = [share.mean() for share in shares]
    assert row["mean"] == pytest.approx(np.mean(values)) and row["num_runs"] == 3
    assert row["std"] == pytest.approx(np.std(values, ddof=1)) and single["std"] is None
    assert "± 0.1667 (3 runs)" in format_comparison(["a", "b"], comparison)


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    a = write_run(tmp_path / "a", make_answers([True] * 6))
    fewer = write_run(tmp_path / "fewer", make_answers([True] * 5))
    with pytest.raises(
        ValueError, match=r"fewer, scanqa: expected the same questions .*: 1 missing, such as \['q5'\]"
    ):
        main([str(a), str(fewer)])
    twice = write_run(tmp_path / "twice", make_answers([True] * 5))
    with (twice / "predictions.jsonl").open("a") as file:
        file.write(json.dumps(make_record(4, "x")) + "\n")
    with pytest.raises(ValueError, match="twice, scanqa: .*each once. prediction_ids: expected unique ids"):
        main([str(a), str(twice)])
    other = write_run(tmp_path / "other", make_answers([True] * 6))
    (other / "predictions.jsonl").write_text(json.dumps(make_record(0, "x") | {"task": "sqa3d"}) + "\n")
    with pytest.raises(ValueError, match=r"runs with a common task, got \[\['scanqa'\], \['sqa3d'\]\]"):
        main([str(a), str(other)])
    with pytest.raises(ValueError, match=r"RUN: expected folders, separated by commas, got an empty name in 'a,'"):
        main(["a,", "b"])
    (other / "metrics.json").write_text('{"scores": 3}')
    with pytest.raises(
        ValueError, match="metrics.json: expected scores, an object with the scores of each task, got 3"
    ):
        read_run(other)
    (other / "metrics.json").write_text('{"scores": {}}')
    (other / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="predictions.jsonl:1: expected a record of eval.py, got no task, id"):
        main([str(a), str(other)])
    with pytest.raises(FileNotFoundError, match="metrics.json: expected a file of eval.py, got no such file"):
        main([str(a), str(tmp_path)])
