"""3D detection in short videos of ScanNet (VG-LLM): all objects of a window as a list of oriented boxes.

Data: `scannet_det_val_4frames.json` (or 6) of VG-LLM in the data folder, frames under the paths it names. Boxes are
centre, size and angles in the coordinates of the window's first camera, metres and radians.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.metrics.benchmarks import count_scannet_det, score_scannet_det
from ross3d.metrics.columns import check_boxes
from ross3d.metrics.detection import (
    CATEGORIES,
    Counts,
    compute_scores_of_counts,
    tabulate_counts,
)
from ross3d.tasks.answering import get_columns
from ross3d.tasks.intervals import Summed
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task
from ross3d.tasks.windows import Window, answer_windows, get_scan, load_windows, prepare_window


NAME = "scannet_det"
FILE = "scannet_det_{split}_*frames.json"


def make_window(row: dict[str, Any], window_id: str, where: str) -> Window:
    """The published prompt: removed picture slots leave their line breaks, one of which belongs to our slot."""
    human, gpt = (turn["value"] for turn in row["conversations"])
    boxes = [{"label": box["label"], "bbox_3d": box["bbox_3d"]} for box in row["boxes"]]
    for box in boxes:
        check_boxes(f"{where}, {box['label']}", [box["bbox_3d"]], 9)
    return Window(
        id=window_id,
        scene_id=window_id,
        task=NAME,
        question_type="detection",
        question=human.replace("<image>", "").removeprefix("\n"),
        answer=gpt,
        scan=get_scan(row["images"]),
        images=row["images"],
        facts={"labelled_boxes": boxes},
    )


def load_items(data_dir: Path, settings: EvalSettings) -> list[Window]:
    return load_windows(data_dir, settings, FILE, make_window)


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    """Answer the windows; answers are lists, so none is marked right or wrong."""
    return answer_windows(context, scenes, NAME, lambda record: None)


def score(records: list[Record]) -> dict[str, Any]:
    return score_scannet_det(*get_columns(records, "prediction", "labelled_boxes"))


def count(records: list[Record]) -> list[Counts]:
    """Hits and misses of each window, by our rules."""
    return count_scannet_det(*get_columns(records, "prediction", "labelled_boxes"))[0]


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    """F1 of each window over all its boxes, regardless of category; the score itself is a mean over categories."""
    return {"window_f1": np.array([compute_window_f1(counts) for counts in count(records)])}


def get_sums(records: list[Record]) -> dict[str, Summed]:
    """F1 of each list of categories."""
    counted = count(records)
    return {
        f"f1_{group}": Summed(tabulate_counts(counted, names), lambda sums: compute_scores_of_counts(sums)[2])
        for group, names in CATEGORIES.items()
    }


def compute_window_f1(counts: Counts) -> float:
    """F1 of a window's counts; 1 if there is neither a target nor a prediction."""
    hits, extra, missed = (sum(row[name] for row in counts.values()) for name in ("tp", "fp", "fn"))
    return 1.0 if hits + extra + missed == 0 else 2 * hits / (2 * hits + extra + missed)


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_window,
    answer,
    score,
    get_values,
    get_sums,
    scene_path=None,
    max_new_tokens=2000,
)
__all__ = ["TASK"]
