"""Intervals of scores, and of differences between runs, from the values of single questions.

Questions about one scene stand or fall together, so scenes are resampled, not questions.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from ross3d.metrics.bootstrap import compute_mean_interval
from ross3d.tasks.task import Record


def compute_intervals(values: dict[str, np.ndarray], records: list[Record]) -> dict[str, dict[str, Any]]:
    """Mean and 95 % bootstrap interval of each named value, scenes resampled.

    Args:
        values: scores of each question by name (N,), NaN where it has none.
        records (list): the same questions.

    Returns:
        name -> mean, low, high, num_questions, num_scenes.
    """
    scenes = np.array([record["scene_id"] for record in records])
    intervals = {}
    for name, scores in values.items():
        known = ~np.isnan(scores)
        if known.any():
            interval = asdict(compute_mean_interval(scores[known], scenes[known]))
            interval["num_questions"], interval["num_scenes"] = interval.pop("num_pairs"), interval.pop("num_groups")
            intervals[name] = interval
    return intervals


__all__ = ["compute_intervals"]
