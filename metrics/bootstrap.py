"""Intervals of differences that belong together, by resampling. Seeded: the same numbers give the same interval."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean difference with its bootstrap interval.

    Attributes:
        mean, low, high (`float`): mean of a - b and the ends of the interval.
        num_pairs, num_groups (`int`): how many pairs, in how many groups, it rests on.
    """

    mean: float
    low: float
    high: float
    num_pairs: int
    num_groups: int


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
    labels = np.arange(len(a)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sums, sizes = np.bincount(labels, weights=a - b), np.bincount(labels)
    rng = np.random.default_rng(seed)
    means = np.empty(num_samples)
    for start in range(0, num_samples, 1000):
        drawn = rng.integers(len(sums), size=(min(1000, num_samples - start), len(sums)))
        means[start : start + len(drawn)] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float((a - b).mean()), float(low), float(high), len(a), len(sums))


__all__ = ["Interval", "compute_paired_interval"]
