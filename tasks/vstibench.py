"""VSTI-Bench: spatial and temporal questions about videos; choices (`mc_answer`) and numbers (`ground_truth`).

Data: `test.jsonl` or Parquet of the public repository, videos under its `video_path`.
"""

from pathlib import PurePosixPath
from typing import Any

from ross3d.metrics.benchmarks import VSTIBENCH_CHOICES, VSTIBENCH_NUMBERS, score_vstibench
from ross3d.tasks.video_questions import VideoBenchmark


def get_video(row: dict[str, Any]) -> str:
    return str(PurePosixPath(row["video_path"]).with_suffix(""))


TASK = VideoBenchmark(
    "vstibench", VSTIBENCH_CHOICES, VSTIBENCH_NUMBERS, get_video, "mc_answer", score_vstibench
).make_task()
__all__ = ["TASK"]
