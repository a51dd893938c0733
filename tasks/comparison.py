"""Systems compared on the same questions: scores with their spread over seeds, differences with intervals, changes.

A system is one or several runs of `eval.py` that differ in the model's seed alone. Every later system is compared with
the first. Intervals are 95 % bootstrap intervals over scenes, of differences paired by question.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.metrics.bootstrap import compute_mean_interval, compute_paired_interval, summarize_seeds
from ross3d.tasks.task import Record


GetValues = Callable[[list[Record]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Run:
    """An evaluation on disk.

    Attributes:
        folder (`Path`): output folder of `eval.py`.
        scores (`dict`): scores of each task.
        records (`dict`): task -> records in the order of its questions.
    """

    folder: Path
    scores: dict[str, dict[str, Any]]
    records: dict[str, list[Record]]


def read_run(folder: Path) -> Run:
    """A finished evaluation.

    Raises:
        FileNotFoundError: for a folder without one.
        ValueError: for records that cannot be read.
    """
    metrics, predictions = folder / "metrics.json", folder / "predictions.jsonl"
    for file in (metrics, predictions):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: expected what eval.py writes, got no such file; finish the run first.")
    records: dict[str, list[Record]] = {}
    for number, line in enumerate(predictions.read_text(encoding="utf-8").split("\n"), start=1):
        if line:
            try:
                record = json.loads(line)
                records.setdefault(record["task"], []).append(record)
            except (json.JSONDecodeError, KeyError) as error:
                raise ValueError(
                    f"{predictions}:{number}: expected a record of eval.py, got {error!r}; evaluate again."
                ) from error
    return Run(folder, json.loads(metrics.read_text(encoding="utf-8"))["scores"], records)


def check_same_questions(runs: list[Run], task: str) -> None:
    """Refuse runs whose answers cannot be paired.

    Raises:
        ValueError: names a run and the first question that differs.
    """
    first = [record["id"] for record in runs[0].records[task]]
    for run in runs:
        ids = [record["id"] for record in run.records[task]]
        if len(set(ids)) != len(ids):
            raise ValueError(
                f"{run.folder}: expected one answer a question of {task}, got some twice; evaluate again."
            )
        if set(ids) != set(first):
            other = sorted(set(ids) ^ set(first))
            raise ValueError(
                f"{run.folder}: expected the {len(first)} questions of {task} that {runs[0].folder} answers, got"
                f" {len(ids)}; {other[0]!r} is in one of them alone. Evaluate both with the same --split and --limit."
            )


def get_mean_values(runs: list[Run], task: str, get_values: GetValues) -> dict[str, np.ndarray]:
    """Values of each question (N,), in the order of its id, mean over the runs of a system."""
    tables = [get_values(sorted(run.records[task], key=lambda record: record["id"])) for run in runs]
    return {name: np.mean([table[name] for table in tables], axis=0) for name in tables[0]}


def compare_systems(systems: list[list[Run]], tasks: dict[str, GetValues]) -> dict[str, Any]:
    """Comparison of each task that all runs have answered.

    Args:
        systems (list of lists of `Run`): runs of each system.
        tasks: task -> its values of each question.

    Returns:
        task -> num_questions; `scores`: name -> systems (mean, std over runs, num_runs, low, high) and differences
        from the first (mean, low, high), None where a score has no values; `changes` of the first runs, see
        `list_changes`.

    Raises:
        ValueError: when no task is shared, or questions differ.
    """
    runs = [run for system in systems for run in system]
    shared = [name for name in tasks if all(run.records.get(name) for run in runs)]
    if not shared:
        raise ValueError(
            f"expected runs that answer a common task, got {[sorted(run.records) for run in runs]}; evaluate them on"
            " the same one."
        )
    for name in shared:
        check_same_questions(runs, name)
    return {name: compare_task(systems, name, tasks[name]) for name in shared}


def compare_task(systems: list[list[Run]], task: str, get_values: GetValues) -> dict[str, Any]:
    records = sorted(systems[0][0].records[task], key=lambda record: record["id"])
    scenes = np.array([record["scene_id"] for record in records])
    values = [get_mean_values(system, task, get_values) for system in systems]
    summaries = [summarize_seeds([dict(iterate_numbers(run.scores[task])) for run in system]) for system in systems]
    names = list(dict.fromkeys([*values[0], *summaries[0]]))
    scores = {}
    for name in names:
        if not all(name in summary or name in table for summary, table in zip(summaries, values, strict=True)):
            continue
        rows = [describe_system(name, *pair, scenes) for pair in zip(summaries, values, strict=True)]
        differences = [describe_difference(name, table, values[0], scenes) for table in values[1:]]
        scores[name] = {"systems": rows, "differences": differences}
    changes = [list_changes(systems[0][0], system[0], task, get_values) for system in systems[1:]]
    return {"num_questions": len(records), "scores": scores, "changes": changes}


def iterate_numbers(scores: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of all scores, those of groups as `group: name`; counts are left out."""
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from iterate_numbers(value, f"{prefix}{name}: ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def describe_system(name: str, summary: dict[str, Any], values: dict[str, np.ndarray], scenes: np.ndarray) -> dict:
    """Mean over runs with its spread, and the interval over scenes where there are values."""
    row = {"mean": None, "std": None, "num_runs": None, "low": None, "high": None}
    if name in summary:
        row |= asdict(summary[name])
    if name in values:
        known = ~np.isnan(values[name])
        interval = compute_mean_interval(values[name][known], scenes[known])
        row |= {"low": interval.low, "high": interval.high}
        row["mean"] = interval.mean if row["mean"] is None else row["mean"]
    return row


def describe_difference(
    name: str, values: dict[str, np.ndarray], first: dict[str, np.ndarray], scenes: np.ndarray
) -> dict[str, float] | None:
    """How much higher a score is than the first system's, with its paired interval; None without values."""
    if name not in values or name not in first:
        return None
    known = ~np.isnan(values[name]) & ~np.isnan(first[name])
    interval = compute_paired_interval(values[name][known], first[name][known], scenes[known])
    return {"mean": interval.mean, "low": interval.low, "high": interval.high}


def get_main_values(records: list[Record], get_values: GetValues) -> np.ndarray:
    """The first value that each question has, (N,)."""
    table = np.array(list(get_values(records).values()))
    first = (~np.isnan(table)).argmax(axis=0)
    return table[first, np.arange(table.shape[1])]


def list_changes(before: Run, after: Run, task: str, get_values: GetValues) -> dict[str, Any]:
    """Questions that are answered otherwise: how many are better, worse and as good, and each of them.

    Better and worse are told by the first value that a question has, such as exact match.
    """
    old, new = (sorted(run.records[task], key=lambda record: record["id"]) for run in (before, after))
    gains = get_main_values(new, get_values) - get_main_values(old, get_values)
    rows = []
    for gain, a, b in zip(gains.tolist(), old, new, strict=True):
        answers = [describe_answer(a), describe_answer(b)]
        if answers[0] != answers[1]:
            facts = {name: b[name] for name in ("id", "scene_id", "question_type", "question", "references")}
            rows.append(facts | {"gain": gain, "before": answers[0], "after": answers[1]})
    rows.sort(key=lambda row: (-abs(row["gain"]), -row["gain"], row["id"]))
    return {
        "num_better": sum(row["gain"] > 0 for row in rows),
        "num_worse": sum(row["gain"] < 0 for row in rows),
        "num_as_good": sum(row["gain"] == 0 for row in rows),
        "questions": rows,
    }


def describe_answer(record: Record) -> str:
    """What was said, or the boxes that were chosen, as text."""
    if record["prediction"] is not None:
        return record["prediction"]
    boxes = [" ".join(f"{value:.2f}" for value in box) for box in record["answer_boxes"]]
    return "; ".join(boxes) or "no box"


__all__ = ["Run", "compare_systems", "read_run"]
