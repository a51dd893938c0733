"""ScanQA: short answers about ScanNet scenes; validation split, exact match and caption scores of the answers."""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import compute_scanqa_values, get_scanqa_captions, score_scanqa
from ross3d.metrics.captioning import compute_caption_values
from ross3d.metrics.meteor import Meteor
from ross3d.tasks.answering import (
    answer_questions,
    clean_response,
    get_columns,
    get_question,
    load_questions,
    prepare_questions,
)
from ross3d.tasks.intervals import Summed, make_caption_sums
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task


NAME = "scanqa"


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    return load_questions(data_dir, settings, NAME)


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    answered = answer_questions(context, scenes, NAME, get_question, clean_response)
    return [[record | {"right": is_right(record)} for record in records] for records in answered]


def is_right(record: Record) -> bool:
    return bool(compute_scanqa_values([record["prediction"]], [record["references"]])["exact_match"][0])


def score(records: list[Record], meteor: Meteor | None = None) -> dict[str, Any]:
    predictions, references = get_columns(records, "prediction", "references")
    return score_scanqa(predictions, references, meteor)


def get_sums(records: list[Record], meteor: Meteor | None = None) -> dict[str, Summed]:
    return make_caption_sums(*get_scanqa_captions(*get_columns(records, "prediction", "references")), meteor)


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    columns = get_columns(records, "prediction", "references")
    return compute_scanqa_values(*columns) | compute_caption_values(*get_scanqa_captions(*columns))


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_questions,
    answer,
    score,
    get_values,
    get_sums,
    is_captions=True,
    max_new_tokens=512,
)
__all__ = ["TASK"]
