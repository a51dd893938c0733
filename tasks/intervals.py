"""Express scores as functions of sums over questions, to get intervals of scores and differences by resampling scenes.

Questions about one scene are not independent, so scenes are resampled, not questions. No answer is generated or parsed
again: BLEU, for example, is a function of counts that each answer adds to.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ross3d.metrics.bootstrap import compute_score_interval
from ross3d.metrics.captioning import compute_bleu_of_counts, get_bleu_counts
from ross3d.metrics.meteor import Meteor, compute_meteor_of_counts
from ross3d.tasks.task import Record, Task


@dataclass(frozen=True)
class Summed:
    """A score that is a function of sums over questions.

    Attributes:
        counts (`np.ndarray` of shape `(N, C)`): what each question adds.
        compute: scores (R,) of sums (R, C).
    """

    counts: np.ndarray
    compute: Callable[[np.ndarray], np.ndarray]


def make_mean(values: np.ndarray) -> Summed:
    """The mean of values (N,), those that are NaN left out."""
    known = ~np.isnan(values)
    counts = np.stack([np.where(known, values, 0.0), known], axis=1)
    # A resample may contain no question of a rare type; it then has no score for that type.
    return Summed(counts, compute_ratio)


def compute_ratio(sums: np.ndarray) -> np.ndarray:
    """The first sum over the second, (R,); NaN where that is 0."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def split_by_type(values: dict[str, np.ndarray], question_types: list[str]) -> dict[str, np.ndarray]:
    """Values (N,) and, as `NAME/TYPE`, those of each question type with NaN elsewhere."""
    types = np.array(question_types)
    by_type = {
        f"{name}/{kind}": np.where(types == kind, scores, np.nan)
        for name, scores in values.items()
        for kind in dict.fromkeys(question_types)
    }
    return values | by_type


def make_caption_sums(
    hypotheses: list[str], references: list[list[str]], meteor: Meteor | None = None
) -> dict[str, Summed]:
    """BLEU-1..4, and METEOR where its program is given."""
    counts = get_bleu_counts(hypotheses, references)
    sums = {f"BLEU-{order}": Summed(counts, make_bleu(order)) for order in range(1, 5)}
    if meteor is not None:
        sums["METEOR"] = Summed(meteor.get_counts(hypotheses, references), compute_meteor_of_counts)
    return sums


def make_bleu(order: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda sums: compute_bleu_of_counts(sums)[:, order - 1]


def get_sums(task: Task, records: list[Record], meteor: Meteor | None = None) -> dict[str, Summed]:
    """Every score of a task that has an interval: means of single questions, then scores of all together."""
    sums = {}
    if task.get_values is not None:
        sums = {name: make_mean(values) for name, values in task.get_values(records).items()}
    if task.get_sums is not None:
        sums |= task.get_sums(records, meteor) if task.is_captions else task.get_sums(records)
    return sums


def compute_intervals(sums: dict[str, Summed], scenes: np.ndarray) -> dict[str, dict[str, Any]]:
    """Score and 95 % bootstrap interval of each, scenes resampled.

    Args:
        scenes (`np.ndarray` of shape `(N,)`): scene of each question.

    Returns:
        name -> mean, low, high, num_scenes.
    """
    return {name: compute_interval(summed, scenes) for name, summed in sums.items()}


def compute_interval(summed: Summed, scenes: np.ndarray) -> dict[str, Any]:
    """As `compute_intervals`, for one score; with a single scene, low and high are None."""
    interval = compute_score_interval(summed.counts, summed.compute, scenes)
    ends = {"low": interval.low, "high": interval.high} if interval.num_groups > 1 else {"low": None, "high": None}
    return {"mean": interval.mean, **ends, "num_scenes": interval.num_groups}


def average(parts: list[Summed]) -> Summed:
    """The mean of one score over several runs."""
    return Summed(
        np.concatenate([part.counts for part in parts], axis=1),
        lambda sums: np.mean(
            [part.compute(part_sums) for part, part_sums in zip(parts, split(sums, parts), strict=True)], axis=0
        ),
    )


def subtract(a: Summed, b: Summed) -> Summed:
    """How much higher score `a` is than score `b` of the same questions."""

    def compute(sums: np.ndarray) -> np.ndarray:
        of_a, of_b = split(sums, [a, b])
        return a.compute(of_a) - b.compute(of_b)

    return Summed(np.concatenate([a.counts, b.counts], axis=1), compute)


def split(sums: np.ndarray, parts: list[Summed]) -> list[np.ndarray]:
    """Sums (R, all C) of each part."""
    return np.split(sums, np.cumsum([part.counts.shape[1] for part in parts])[:-1], axis=1)


__all__ = [
    "Summed",
    "average",
    "compute_interval",
    "compute_intervals",
    "get_sums",
    "make_caption_sums",
    "make_mean",
    "subtract",
]
