"""Bootstrap intervals, and summaries over several seeds. Seeded: the same numbers give the same interval.

A score that is a mean over items (matches, accuracy, ROUGE-L, CIDEr with the document frequencies of the whole set) is
resampled as a mean. Other scores need each item's contribution to their sums: BLEU has `get_bleu_counts`, METEOR
`Meteor.get_counts`, means of tasks `get_task_counts`, detection `tabulate_counts`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


# Resamples per batch, to limit memory.
CHUNK = 500


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval.

    Attributes:
        mean, low, high (`float`): the score of all items, or the difference of two, and the ends of its interval.
        num_pairs, num_groups (`int`): number of items (pairs, for differences) and of groups.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    num_groups: int


@dataclass(frozen=True)
class SeedSummary:
    """A score over runs that differ only in their seed.

    Attributes:
        mean (`float`), std (`float`, *optional*): mean and sample deviation (n - 1); None for a single run.
        num_runs (`int`): how many runs.
    """

    mean: float
    std: float | None
    num_runs: int


def compute_score_interval(
    counts: np.ndarray,
    compute_score: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    num_samples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a score of sums over items, whole groups resampled at a time.

    A resample draws as many groups as there are, with replacement, and adds up their counts; no text or box is scored
    again. With few groups (below about 20) such an interval is too narrow, with one its width is 0.

    Args:
        counts (`np.ndarray` of shape `(number of items, C)`): contribution of each item to the sums, finite.
        compute_score (callable): score (R,) of sums (R, C); NaN where undefined, which is left out.
        groups (`np.ndarray` of shape `(number of items,)`, *optional*): items that are not independent of one
            another, such as the questions about one scene, carry the same label; by default each is its own group.
        confidence (`float`, defaults to 0.95), num_samples (`int`, defaults to 10000), seed (`int`, defaults to 0).

    Raises:
        ValueError: for no item, counts that are not finite, or another number of labels.
    """
    counts = np.asarray(counts, np.float64)
    if counts.ndim != 2 or len(counts) == 0 or not np.isfinite(counts).all():
        raise ValueError(
            f"scores: expected finite numbers, one row per item and at least one item, got shape {counts.shape} with"
            f" {int((~np.isfinite(counts)).sum())} NaN or infinite values; remove those items first."
        )
    groups = np.arange(len(counts)) if groups is None else np.asarray(groups)
    if groups.shape != counts.shape[:1]:
        raise ValueError(f"groups: expected one label for each of {len(counts)} scores, got shape {groups.shape}.")
    labels = np.unique(groups, return_inverse=True)[1]
    sums = np.zeros((labels.max() + 1, counts.shape[1]))
    np.add.at(sums, labels, counts)
    rng = np.random.default_rng(seed)
    samples = []
    for start in range(0, num_samples, CHUNK):
        size = min(CHUNK, num_samples - start)
        drawn = rng.integers(len(sums), size=(size, len(sums))) + len(sums) * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * len(sums)).reshape(size, len(sums))
        samples.append(compute_score(times @ sums))
    # A resample without any item of a rare kind has no score of that kind.
    low, high = np.nanquantile(np.concatenate(samples), [(1 - confidence) / 2, (1 + confidence) / 2])
    score = float(compute_score(counts.sum(axis=0, keepdims=True))[0])
    return Interval(score, float(low), float(high), len(counts), len(sums))


def check_pairs(a: np.ndarray, b: np.ndarray) -> None:
    if np.shape(a) != np.shape(b) or np.size(a) == 0:
        raise ValueError(
            f"a, b: expected two lists of the same length > 0, got shapes {np.shape(a)} and {np.shape(b)}."
        )


def compute_mean_interval(scores: np.ndarray, groups: np.ndarray | None = None, **settings: float) -> Interval:
    """Percentile bootstrap interval of a mean over items.

    Args:
        scores (`np.ndarray` of shape `(number of scores,)`): finite.
        groups, settings: as in `compute_score_interval`.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1:
        raise ValueError(f"scores: expected one score per item, got shape {scores.shape}; pass one column.")
    counts = np.stack([scores, np.ones_like(scores)], axis=1)
    return compute_score_interval(counts, lambda sums: sums[:, 0] / sums[:, 1], groups, **settings)


def compute_paired_interval(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray | None = None, **settings: float
) -> Interval:
    """Percentile bootstrap interval of mean(a - b), pairs resampled together.

    Args:
        a, b (`np.ndarray` of shape `(number of pairs,)`): two scores of the same items, finite.
        groups, settings: as in `compute_score_interval`.

    Raises:
        ValueError: for different shapes, no pair, or numbers that are not finite.
    """
    check_pairs(a, b)
    with np.errstate(invalid="ignore"):
        return compute_mean_interval(np.asarray(a, np.float64) - np.asarray(b, np.float64), groups, **settings)


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
                f"runs[{index}]: expected the named scores of the first run, got"
                f" {sorted(run.keys() ^ runs[0].keys())} in only one of the two; every run needs every score."
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
    "compute_score_interval",
    "summarize_seeds",
]
