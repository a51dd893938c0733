"""Compare systems on the same questions: scores with their spread over seeds, differences with intervals, changes.

A system is one or several runs of `eval.py` that differ in the model's seed alone. Every later system is compared with
the first. Intervals are 95 % bootstrap intervals over scenes, of differences paired by question.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.names import check_name
from ross3d.data.text_files import read_json, read_json_lines
from ross3d.metrics.bootstrap import summarize_seeds
from ross3d.metrics.columns import match_ids
from ross3d.tasks.intervals import Summed, average, compute_interval, get_sums, subtract
from ross3d.tasks.task import Record, Task


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
    """Read a finished evaluation.

    Raises:
        FileNotFoundError: for a folder without one.
        ValueError: for records that cannot be read.
    """
    file = folder / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a file of eval.py, got no such file; finish the run first.")
    metrics = read_json(file, "a file of eval.py", keys=["scores"], remedy="evaluate again")
    scores = metrics["scores"]
    if not isinstance(scores, dict) or not all(isinstance(of_task, dict) for of_task in scores.values()):
        raise ValueError(
            f"{file}: expected scores, an object with the scores of each task, got {str(scores)[:60]}; evaluate again."
        )
    # Tasks without per-question values are not compared.
    noted = {metrics.get("records_files", {}).get(task, "predictions.jsonl") for task in scores}
    names = {check_name(name, f"{file}, records_files") for name in noted} or {"predictions.jsonl"}
    records: dict[str, list[Record]] = {}
    for name in sorted(names):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name}: expected the records of eval.py, got no such file; finish the run first."
            )
        for _, record in read_json_lines(folder / name, "a record of eval.py", keys=["task", "id", "scene_id"]):
            records.setdefault(record["task"], []).append(record)
    return Run(folder, scores, records)


def align_records(runs: list[Run], task: str) -> list[list[Record]]:
    """Records of each run in the order of the first one's, so that answers can be paired.

    Raises:
        ValueError: names the run with different questions, and such questions.
    """
    wanted = [record["id"] for record in runs[0].records[task]]
    aligned = []
    for run in runs:
        records = run.records[task]
        try:
            places = match_ids([record["id"] for record in records], wanted)
        except ValueError as error:
            raise ValueError(
                f"{run.folder}, {task}: expected the same questions as in {runs[0].folder}, each once. {error}"
            ) from error
        aligned.append([records[place] for place in places])
    return aligned


def compare_systems(systems: list[list[Run]], tasks: dict[str, Task]) -> dict[str, Any]:
    """Comparison of each task that all runs have answered.

    Args:
        systems (list of lists of `Run`): runs of each system.
        tasks: the tasks that can be compared, by name.

    Returns:
        task -> num_questions, num_scenes; `scores`: name -> systems (mean, std over runs, num_runs, low, high) and
        differences from the first (mean, low, high), None where a score has no interval; `changes` of the first runs
        of the systems, see `list_changes`.

    Raises:
        ValueError: when no task is shared, or questions differ.
    """
    runs = [run for system in systems for run in system]
    shared = [name for name in tasks if all(run.records.get(name) for run in runs)]
    if not shared:
        raise ValueError(
            f"expected runs with a common task, got {[sorted(run.records) for run in runs]}; evaluate them on the"
            " same task."
        )
    return {name: compare_task(systems, tasks[name]) for name in shared}


def compare_task(systems: list[list[Run]], task: Task) -> dict[str, Any]:
    aligned = iter(align_records([run for system in systems for run in system], task.name))
    records = [[next(aligned) for _ in system] for system in systems]
    scenes = np.array([record["scene_id"] for record in records[0][0]])
    sums = [average_runs([get_sums(task, of_run) for of_run in of_system]) for of_system in records]
    summaries = [
        summarize_seeds([dict(iterate_numbers(run.scores[task.name])) for run in system]) for system in systems
    ]
    scores = {}
    for name in dict.fromkeys([*sums[0], *summaries[0]]):
        if all(name in summary or name in table for summary, table in zip(summaries, sums, strict=True)):
            rows = [describe_system(name, *pair, scenes) for pair in zip(summaries, sums, strict=True)]
            differences = [describe_difference(name, table, sums[0], scenes) for table in sums[1:]]
            scores[name] = {"systems": rows, "differences": differences}
    changes = [list_changes(records[0][0], of_system[0], task) for of_system in records[1:]]
    return {
        "num_questions": len(scenes),
        "num_scenes": len(set(scenes.tolist())),
        "scores": scores,
        "changes": changes,
    }


def average_runs(tables: list[dict[str, Summed]]) -> dict[str, Summed]:
    """Each score, mean over the runs of a system."""
    return {name: average([table[name] for table in tables]) for name in tables[0]}


def iterate_numbers(scores: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Names and values of all scores, those of groups as `group: name`; counts are left out."""
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from iterate_numbers(value, f"{prefix}{name}: ")
        elif isinstance(value, float):
            yield f"{prefix}{name}", value


def describe_system(name: str, summary: dict[str, Any], sums: dict[str, Summed], scenes: np.ndarray) -> dict[str, Any]:
    """Mean over runs with its spread, and the interval over scenes where there is one."""
    row = {"mean": None, "std": None, "num_runs": None, "low": None, "high": None}
    if name in sums:
        interval = compute_interval(sums[name], scenes)
        row |= {key: interval[key] for key in ("mean", "low", "high")}
    return row | (asdict(summary[name]) if name in summary else {})


def describe_difference(
    name: str, sums: dict[str, Summed], first: dict[str, Summed], scenes: np.ndarray
) -> dict[str, float] | None:
    """How much higher a score is than the first system's, with its interval; None without sums."""
    if name not in sums or name not in first:
        return None
    interval = compute_interval(subtract(sums[name], first[name]), scenes)
    return {key: interval[key] for key in ("mean", "low", "high")}


def get_main_values(records: list[Record], task: Task) -> np.ndarray:
    """The first value that each question has, (N,)."""
    table = np.array(list(task.get_values(records).values()))
    first = (~np.isnan(table)).argmax(axis=0)
    return table[first, np.arange(table.shape[1])]


def list_changes(before: list[Record], after: list[Record], task: Task) -> dict[str, Any]:
    """Questions with different answers: the counts of better, worse and equally good ones, and a list of them.

    Better and worse are decided by the first value of a question, such as exact match.
    """
    gains = get_main_values(after, task) - get_main_values(before, task)
    rows = []
    for gain, a, b in zip(gains.tolist(), before, after, strict=True):
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
    """The prediction, or the chosen boxes, as text."""
    if record["prediction"] is not None:
        return record["prediction"]
    boxes = [" ".join(f"{value:.2f}" for value in box) for box in record["answer_boxes"]]
    return "; ".join(boxes) or "no box"


__all__ = ["Run", "compare_systems", "read_run"]
