"""ScanRefer: find the one object of a description among detected boxes; validation split, accuracy at IoU."""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import SCANREFER_TYPES, compute_scanrefer_values, score_scanrefer
from ross3d.tasks.answering import (
    answer_questions,
    check_detected,
    clean_response,
    get_columns,
    get_question,
    load_questions,
    prepare_questions_about_boxes,
)
from ross3d.tasks.intervals import split_by_type
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task


NAME = "scanrefer"


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    """Descriptions.

    Raises:
        ValueError: for one without exactly one target box.
    """
    items = load_questions(data_dir, settings, NAME, SCANREFER_TYPES)
    for item in items:
        if item.target_boxes is None or len(item.target_boxes) != 1:
            raise ValueError(
                f"id {item.id!r}: expected one box in target_boxes, got {item.target_boxes}; prepare the annotations"
                " again (docs/DATA.md)."
            )
    check_detected(data_dir, items, settings)
    return items


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    """The best proposal is the answer, also where "no target" scores higher (published)."""
    answered = answer_questions(context, scenes, NAME, get_question, clean_response)
    return [[add_answer(record) for record in records] for records in answered]


def add_answer(record: Record) -> Record:
    boxes = [] if record["best_box"] is None else [record["best_box"]]
    record = record | {"answer_boxes": boxes}
    return record | {"right": bool(compute_scanrefer_values(*get_boxes([record]))["accuracy@0.5"][0])}


def get_boxes(records: list[Record]) -> tuple[list[list[float] | None], list[list[float]]]:
    """The predicted box of each record, None without proposals, and the target box."""
    answers = [record["answer_boxes"][0] if record["answer_boxes"] else None for record in records]
    return answers, [record["target_boxes"][0] for record in records]


def score(records: list[Record]) -> dict[str, Any]:
    return score_scanrefer(*get_boxes(records), *get_columns(records, "question_type"))


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    values = compute_scanrefer_values(*get_boxes(records))
    return split_by_type(values, *get_columns(records, "question_type"))


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_questions_about_boxes,
    answer,
    score,
    get_values,
    proposals="given",
)
__all__ = ["TASK"]
