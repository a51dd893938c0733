"""Scan2Cap: descriptions of objects of ScanNet scenes at IoU 0.5; validation split, caption scores.

The question gives the centre of the detected box whose IoU with the object is at least 0.5. If there is none, the
caption is empty and is scored as such, which is what "@0.5" means. With `--proposals ground_truth` the question gives
the centre of the object's own box.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import get_scan2cap_captions, score_scan2cap
from ross3d.metrics.captioning import compute_caption_values
from ross3d.metrics.meteor import Meteor
from ross3d.tasks.answering import (
    SceneForQuestions,
    answer_questions,
    clean_response,
    get_columns,
    get_question,
    load_questions,
    make_record,
    prepare_questions,
)
from ross3d.tasks.intervals import Summed, make_caption_sums
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task, limit_scenes


NAME = "scan2cap"


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    """Objects with their descriptions.

    Raises:
        ValueError: for another source of boxes than `given` and `ground_truth`; for annotations that were prepared
            without detected boxes; with `--proposals ground_truth`, for an object without its own.
    """
    if settings.proposals in ("depth", "jittered"):
        raise ValueError(
            f"--proposals {settings.proposals}: expected given or ground_truth for {NAME}, because its annotations"
            " were prepared with the boxes that they ask about; choose one of these, or prepare them with others"
            " (docs/DATA.md)."
        )
    everything = load_questions(data_dir, replace(settings, limit=None), NAME)
    objects = limit_scenes(everything, settings.limit)
    if settings.proposals != "ground_truth":
        if not get_asked(everything):
            raise ValueError(
                f"--data {data_dir}: expected detected boxes matched to the objects of {NAME}, got none for any of"
                f" {len(everything)}; prepare the annotations with --proposals (docs/DATA.md), or evaluate with"
                " --proposals ground_truth."
            )
        return objects
    for item in objects:
        if not item.target_boxes:
            raise ValueError(
                f"id {item.id!r}: expected target_boxes with --proposals ground_truth, got {item.target_boxes};"
                " prepare the annotations again (docs/DATA.md), or evaluate with --proposals given."
            )
    return [replace(item, query_coords=tuple(item.target_boxes[0][:3])) for item in objects]


def get_asked(objects: list[Annotation]) -> list[Annotation]:
    """The objects that have a matching box."""
    return [item for item in objects if item.query_coords is not None]


def prepare(context: EvalContext, objects: list[Annotation]) -> SceneForQuestions | None:
    asked = get_asked(objects)
    return prepare_questions(context, asked) if asked else None


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    asked = [OpenScene(get_asked(scene.items), scene.prepared) for scene in scenes if scene.prepared is not None]
    answered = answer_questions(context, asked, NAME, get_question, clean_response) if asked else []
    by_id = {record["id"]: record | {"right": None} for records in answered for record in records}
    return [[by_id.get(item.id) or make_empty_record(item) for item in scene.items] for scene in scenes]


def make_empty_record(item: Annotation) -> Record:
    """The record of an object without a matching detected box."""
    return make_record(NAME, item, response=None, prediction="", right=None)


def score(records: list[Record], meteor: Meteor | None = None) -> dict[str, Any]:
    scores = score_scan2cap(*get_columns(records, "prediction", "references"), meteor)
    return scores | {"num_without_box": sum(record["query_coords"] is None for record in records)}


def get_captions(records: list[Record]) -> tuple[list[str], list[list[str]]]:
    return get_scan2cap_captions(*get_columns(records, "prediction", "references"))


def get_sums(records: list[Record], meteor: Meteor | None = None) -> dict[str, Summed]:
    return make_caption_sums(*get_captions(records), meteor)


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    return compute_caption_values(*get_captions(records))


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare,
    answer,
    score,
    get_values,
    get_sums,
    is_captions=True,
    proposals="given",
    max_new_tokens=512,
)
__all__ = ["TASK"]
