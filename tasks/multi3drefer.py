"""Multi3DRefer: the none, one or several objects that a description means; validation split, mean F1 at IoU."""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import IOU_THRESHOLDS, MULTI3DREFER_TYPES, score_multi3drefer
from ross3d.metrics.grounding import compute_f1
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


NAME = "multi3drefer"


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    """Descriptions.

    Raises:
        ValueError: for one without boxes, empty where it means nothing.
    """
    items = load_questions(data_dir, settings, NAME, MULTI3DREFER_TYPES)
    for item in items:
        if item.target_boxes is None:
            raise ValueError(
                f"id {item.id!r}: expected a list in target_boxes, empty where nothing is meant, got None; prepare the"
                " annotations again (docs/DATA.md)."
            )
    check_detected(data_dir, items, settings)
    return items


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    """Proposals are chosen by the published rule, see `select_proposals`."""
    answered = answer_questions(context, scenes, NAME, get_question, clean_response)
    return [[add_answer(record) for record in records] for records in answered]


def add_answer(record: Record) -> Record:
    record = record | {"answer_boxes": record["predicted_boxes"]}
    return record | {"right": compute_record_f1(record, 0.5) == 1.0}


def compute_record_f1(record: Record, threshold: float) -> float:
    boxes = [np.array(record[name], np.float64).reshape(-1, 6) for name in ("answer_boxes", "target_boxes")]
    return compute_f1(*boxes, threshold)


def score(records: list[Record]) -> dict[str, Any]:
    return score_multi3drefer(*get_columns(records, "answer_boxes", "target_boxes", "question_type"))


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    values = {f"f1@{t}": np.array([compute_record_f1(record, t) for record in records]) for t in IOU_THRESHOLDS}
    return split_by_type(values, *get_columns(records, "question_type"))


TASK = Task(NAME, "predictions.jsonl", load_items, prepare_questions_about_boxes, answer, score, get_values)
__all__ = ["TASK"]
