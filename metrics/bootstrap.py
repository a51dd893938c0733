"""Intervals by resampling, and tables of several seeds. Seeded: the same numbers give the same interval."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        mean, low, high (`float`): the mean, of scores or of differences a - b, and the ends of its interval.
        num_pairs, num_groups (`int`): how many scores (pairs, for differences), in how many groups, it rests on.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    num_groups: int


@dataclass(frozen=True)
class SeedSummary:
    """A score over runs that differ in their seed alone.

    Attributes:
        mean (`float`), std (`float`, *optional*): mean and sample deviation (n - 1); None for a single run.
        num_runs (`int`): how many runs.
    """

    mean: float
    std: float | None
    num_runs: int


def compute_mean_interval(
    scores: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean, whole groups resampled at a time.

    Args:
        scores (`np.ndarray` of shape `(number of scores,)`): finite.
        groups (`np.ndarray` of shape `(number of scores,)`, *optional*): scores that are not independent of one
            another, such as the questions about one scene, carry the same label; by default each is its own group.
        confidence (`float`, defaults to 0.95), num_samples (`int`, defaults to 10000), seed (`int`, defaults to 0).

    Raises:
        ValueError: for no score, scores that are not finite, or another number of labels.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or len(scores) == 0 or not np.isfinite(scores).all():
        raise ValueError(
            f"scores: expected finite scores in one list of length > 0, got shape {scores.shape}, of which"
            f" {int((~np.isfinite(scores)).sum())} are NaN or infinite; leave such items out by name first."
        )
    groups = np.arange(len(scores)) if groups is None else np.asarray(groups)
    if groups.shape != scores.shape:
        raise ValueError(f"groups: expected one label for each of {len(scores)} scores, got shape {groups.shape}.")
    labels = np.unique(groups, return_inverse=True)[1]
    sums, sizes = np.bincount(labels, weights=scores), np.bincount(labels)
    rng = np.random.default_rng(seed)
    means = np.empty(num_samples)
    for start in range(0, num_samples, 1000):
        drawn = rng.integers(len(sums), size=(min(1000, num_samples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(scores.mean()), float(low), float(high), len(scores), len(sums))


def compute_paired_interval(
    a: np.ndarray,
    b: np.ndarray,
    groups: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of mean(a - b), pairs resampled together, whole groups at a time.

    Args:
        a, b (`np.ndarray` of shape `(number of pairs,)`): two scores of the same things.
        groups (`np.ndarray` of shape `(number of pairs,)`, *optional*): pairs that are not independent of one
            another, such as the views of one scene, carry the same label; by default each pair is its own group.
        confidence (`float`, defaults to 0.95), num_samples (`int`, defaults to 10000), seed (`int`, defaults to 0).

    Raises:
        ValueError: for different shapes, no pair, or numbers that are not finite.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(f"a, b: expected two lists of the same length > 0, got shapes {a.shape} and {b.shape}.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a, b: expected finite scores, got NaN or infinity; leave such pairs out by name first.")
    return compute_mean_interval(a - b, groups, confidence=confidence, num_samples=num_samples, seed=seed)


def summarize_seeds(runs: list[dict[str, float]]) -> dict[str, SeedSummary]:
    """Mean, deviation and number of every score over runs with different seeds.

    Args:
        runs (list of dict): the same named scores of each run.

    Raises:
        ValueError: for no run, or runs with other scores than the first.
    """
    if not runs:
        raise ValueError("runs: expected the scores of at least one run, got none.")
    for index, run in enumerate(runs):
        if run.keys() != runs[0].keys():
            raise ValueError(
                f"runs[{index}]: expected the named scores of the first run, got {sorted(run.keys() ^ runs[0].keys())}"
                " in one of the two alone; a score that one run lacks has no mean over runs."
            )
    columns = {name: np.array([run[name] for run in runs], np.float64) for name in runs[0]}
    return {
        name: SeedSummary(float(values.mean()), float(values.std(ddof=1)) if len(runs) > 1 else None, len(runs))
        for name, values in columns.items()
    }


__all__ = [
    "Interval",
    "SeedSummary",
    "compute_mean_interval",
    "compute_paired_interval",
    "summarize_seeds",
]
