"""Multi3DRefer: descriptions that match no, one or several objects; validation split, mean F1 at IoU."""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import MULTI3DREFER_TYPES, compute_multi3drefer_values, score_multi3drefer
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
        ValueError: for one without a list of boxes (an empty list means no target).
    """
    items = load_questions(data_dir, settings, NAME, MULTI3DREFER_TYPES)
    for item in items:
        if item.target_boxes is None:
            raise ValueError(
                f"id {item.id!r}: expected a list in target_boxes (empty for no target), got None; prepare the"
                " annotations again (docs/DATA.md)."
            )
    check_detected(data_dir, items, settings)
    return items


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    """Proposals are chosen by the published rule, see `select_proposals`; those from depth without duplicates."""
    answered = answer_questions(context, scenes, NAME, get_question, clean_response)
    return [[add_answer(record) for record in records] for records in answered]


def add_answer(record: Record) -> Record:
    record = record | {"answer_boxes": record["predicted_boxes"]}
    return record | {"right": bool(compute_multi3drefer_values(*get_boxes([record]))["f1@0.5"][0] == 1.0)}


def get_boxes(records: list[Record]) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """The boxes chosen for each, and those meant."""
    return get_columns(records, "answer_boxes", "target_boxes")


def score(records: list[Record]) -> dict[str, Any]:
    return score_multi3drefer(*get_boxes(records), *get_columns(records, "question_type"))


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    return split_by_type(compute_multi3drefer_values(*get_boxes(records)), *get_columns(records, "question_type"))


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
