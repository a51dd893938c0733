"""SQA3D: questions asked from a situation in a ScanNet scene; test split, exact match of cleaned answers."""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import compute_sqa3d_values, score_sqa3d
from ross3d.metrics.qa import SQA3D_QUESTION_TYPES
from ross3d.tasks.answering import (
    answer_questions,
    clean_response,
    get_columns,
    get_question,
    load_questions,
    prepare_questions,
)
from ross3d.tasks.intervals import split_by_type
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task


NAME = "sqa3d"


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    return load_questions(data_dir, settings, NAME, SQA3D_QUESTION_TYPES)


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    answered = answer_questions(context, scenes, NAME, get_question, clean_response)
    return [[record | {"right": is_right(record)} for record in records] for records in answered]


def get_texts(records: list[Record]) -> tuple[list[str], list[str]]:
    """Predictions, and the single reference answer of each question."""
    return [record["prediction"] for record in records], [record["references"][0] for record in records]


def is_right(record: Record) -> bool:
    return bool(compute_sqa3d_values(*get_texts([record]))["exact_match"][0])


def score(records: list[Record]) -> dict[str, Any]:
    return score_sqa3d(*get_texts(records), *get_columns(records, "question_type"))


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    values = compute_sqa3d_values(*get_texts(records))
    return split_by_type({"exact_match": values["exact_match"]}, *get_columns(records, "question_type")) | values


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_questions,
    answer,
    score,
    get_values,
    split="test",
    max_new_tokens=512,
)
__all__ = ["TASK"]
