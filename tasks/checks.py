"""Check a benchmark's records and scores on the first answered scene, instead of failing after hours at the end.

Every record has `task`, `id` and `scene_id`. Records of questions (in `predictions.jsonl`, or of a task with
`get_values`), which pages and comparisons show, also have `QUESTION_FIELDS`, which `make_record` fills, and those
answered by boxes `BOX_FIELDS`.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ross3d.data.text_files import describe_kind
from ross3d.tasks.intervals import compute_intervals, get_sums
from ross3d.tasks.task import Record, Task


PREDICTIONS_FILE = "predictions.jsonl"
FIELDS = ("task", "id", "scene_id")
# Fields of a question: its text, accepted answers, the model's response (None for boxes), the parsed prediction, and
# whether it is right (None if undefined).
QUESTION_FIELDS = ("question_type", "question", "query_coords", "references", "response", "prediction", "right")
# Fields of a question whose prediction is None: target boxes and predicted boxes, six numbers each.
BOX_FIELDS = ("target_boxes", "answer_boxes")


def check_records(task: Task, items: list[Any], records: Any) -> list[Record]:
    """Return a scene's records if they have what the files, pages and scores need.

    Args:
        items: the items of the scene.
        records: the result of `task.answer` for it.

    Raises:
        ValueError: names the task, the question and the field.
    """
    where = f"task {task.name!r}, answer(context, scenes)"
    if not isinstance(records, list) or len(records) != len(items):
        got = len(records) if isinstance(records, list) else describe_kind(records)
        raise ValueError(
            f"{where}: expected a list of {len(items)} records for the scene, one per question, got {got}."
        )
    for item, record in zip(items, records, strict=True):
        if not isinstance(record, dict):
            raise ValueError(
                f"{where}: expected a dictionary as the record of {item.id!r}, got {type(record).__name__}."
            )
        fields = FIELDS
        if task.records_file == PREDICTIONS_FILE or task.get_values is not None:
            is_boxes = "prediction" in record and record["prediction"] is None
            fields = (*FIELDS, *QUESTION_FIELDS, *(BOX_FIELDS if is_boxes else ()))
        missing = [name for name in fields if name not in record]
        if missing:
            raise ValueError(
                f"{where}: expected the fields {list(fields)} in the record of {item.id!r}, got none of {missing};"
                " start from make_record(...) of tasks/answering.py and add them."
            )
        if (record["task"], record["id"]) != (task.name, item.id):
            raise ValueError(
                f"{where}: expected task {task.name!r} and id {item.id!r}, in the order of the questions, got"
                f" {record['task']!r} and {record['id']!r}."
            )
        references = record.get("references", [""])
        if not isinstance(references, list) or not references:
            raise ValueError(f"{where}: expected a non-empty list of references of {item.id!r}, got {references!r}.")
        check_json(record, f"{where}: record of {item.id!r}")
    return records


def check_scores(task: Task, records: list[Record]) -> None:
    """Let a task score some of its records, and refuse scores that could not be written.

    Raises:
        ValueError: names the task and its function.
    """
    if not records:
        return
    given = (records, None) if task.is_captions else (records,)
    scores = call(task, "score", *given)
    if not isinstance(scores, dict):
        raise ValueError(
            f"task {task.name!r}, score(records): expected a dictionary of scores, got {type(scores).__name__};"
            " return a score under each name."
        )
    check_json(scores, f"task {task.name!r}, score(records)")
    if task.get_values is not None:
        values = call(task, "get_values", records)
        for name, of_questions in values.items() if isinstance(values, dict) else [("", values)]:
            is_column = isinstance(of_questions, np.ndarray) and of_questions.shape == (len(records),)
            if not is_column or not np.issubdtype(of_questions.dtype, np.floating):
                raise ValueError(
                    f"task {task.name!r}, get_values(records): expected name -> array of float64, one number per"
                    f" record ({len(records)} here), got {name}: {describe_array(of_questions)}; use np.array(...,"
                    " np.float64), NaN where a question has no such score."
                )
    try:
        compute_intervals(get_sums(task, records), np.array([record["scene_id"] for record in records]))
    # Whatever a new task's functions do.
    except Exception as error:
        raise ValueError(
            f"task {task.name!r}, get_sums(records): expected sums for which an interval can be computed, got"
            f" {error!r}."
        ) from error


def describe_array(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def call(task: Task, name: str, *given: Any) -> Any:
    """Call a task's function on records and return its result.

    Raises:
        ValueError: names task and function when it fails.
    """
    function: Callable[..., Any] = getattr(task, name)
    try:
        return function(*given)
    # Whatever a new task's function does.
    except Exception as error:
        raise ValueError(
            f"task {task.name!r}, {name}(records): failed on the {len(given[0])} records of the first scenes, which"
            f" have the fields {sorted(given[0][0])}: {error!r}; use --debug for the traceback."
        ) from error


@contextmanager
def name_task(task: Task, function: str) -> Iterator[None]:
    """Prefix errors of the block with the task and its function; out-of-memory errors stay as they are.

    Raises:
        OSError, ValueError: the block's error, with the names in front.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (ValueError, OSError) as error:
        if len(error.args) == 1:
            error.args = (f"task {task.name!r}, {function}: {error}",)
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"task {task.name!r}, {function}, ended with the error {error}") from error
    # Whatever a new task's function does.
    except Exception as error:
        raise ValueError(
            f"task {task.name!r}, {function}: expected a result, but the function failed with {error!r}; use --debug"
            " for the traceback."
        ) from error


def check_json(value: Any, where: str) -> None:
    """Refuse what JSON cannot hold: arrays, NumPy's numbers, NaN.

    Raises:
        ValueError: with `where` in front.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected values that JSON can hold (text, numbers, None, lists, dictionaries), got: {error};"
            " convert arrays with .tolist(), NumPy's numbers with float()."
        ) from error


__all__ = ["BOX_FIELDS", "FIELDS", "QUESTION_FIELDS", "check_records", "check_scores", "name_task"]
