"""VSI-Bench: spatial questions about videos of ScanNet, ScanNet++ and ARKitScenes; choices and numbers.

Data: `test.jsonl` or Parquet of the public repository, videos as `DATASET/SCENE_NAME.mp4` in the same folder.
"""

from typing import Any

from ross3d.metrics.benchmarks import VSIBENCH_CHOICES, VSIBENCH_NUMBERS, score_vsibench
from ross3d.tasks.video_questions import VideoBenchmark


def get_video(row: dict[str, Any]) -> str:
    return f"{row['dataset']}/{row['scene_name']}"


TASK = VideoBenchmark(
    "vsibench", VSIBENCH_CHOICES, VSIBENCH_NUMBERS, get_video, "ground_truth", score_vsibench
).make_task()
__all__ = ["TASK"]
