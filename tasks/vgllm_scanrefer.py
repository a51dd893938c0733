"""ScanRefer from frames alone (VG-LLM): answer with the first clear frame of an object and its oriented box there.

Data: `scanrefer_val_32frames.json` (or 24) of VG-LLM in the data folder, frames under the paths it names. The answer
is text, `{"frame": ..., "bbox_3d": [...]}`, in the coordinates of that frame's camera; the row's cameras turn it into
the world.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ross3d.metrics.benchmarks import compute_located_overlaps, find_hits, score_vgllm_scanrefer
from ross3d.metrics.columns import check_boxes
from ross3d.tasks.answering import get_columns
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task
from ross3d.tasks.windows import Window, answer_windows, get_scan, load_windows, prepare_window, to_matrix


NAME = "vgllm_scanrefer"
FILE = "scanrefer_{split}_*frames.json"


def make_window(row: dict[str, Any], window_id: str, where: str) -> Window:
    """A description with its frames, box and cameras.

    Raises:
        ValueError: for boxes and cameras of another form, or another number of cameras than frames.
    """
    align = to_matrix(row["axis_align_matrix"], where, "axis_align_matrix")
    cam2world = [align @ to_matrix(matrix, where, "cam2global") for matrix in row["cam2global"]]
    if len(cam2world) != len(row["images"]):
        raise ValueError(
            f"{where}: expected one cam2global for each of {len(row['images'])} images, got {len(cam2world)}."
        )
    box = check_boxes(f"{where}, gt_bbox", [row["gt_bbox"]], 9)[0].tolist()
    return Window(
        id=window_id,
        scene_id=window_id,
        task=NAME,
        question_type=row.get("metadata", {}).get("question_type", "object"),
        question=row["prompt"],
        answer=row["conversations"][-1]["value"] if row.get("conversations") else str(box),
        scan=get_scan(row["images"]),
        images=row["images"],
        facts={"target_box": box, "cam2world": [matrix.tolist() for matrix in cam2world]},
    )


def load_items(data_dir: Path, settings: EvalSettings) -> list[Window]:
    return load_windows(data_dir, settings, FILE, make_window)


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    return answer_windows(context, scenes, NAME, lambda record: bool(get_values([record])["accuracy@0.5"][0]))


def score(records: list[Record]) -> dict[str, Any]:
    return score_vgllm_scanrefer(*get_columns(records, "prediction", "target_box", "cam2world"))


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    predictions, targets, cam2world = get_columns(records, "prediction", "target_box", "cam2world")
    return find_hits(compute_located_overlaps(predictions, np.array(targets), cam2world)[0].astype(np.float32))


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_window,
    answer,
    score,
    get_values,
    scene_path=None,
    max_new_tokens=100,
)
__all__ = ["TASK"]
