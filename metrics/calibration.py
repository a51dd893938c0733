"""Confidence: a monotone map from a raw signal to the probability of being right, and how well it fits.

N questions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from ross3d.metrics.columns import check_columns


NUM_BINS = 10
# Probabilities are written with five decimals.
LEAST_PROBABILITY = 5e-6


@dataclass(frozen=True)
class ConfidenceMap:
    """confidence = 1 / (1 + exp(-(slope * signal + offset))), with slope >= 0: more never means less sure."""

    slope: float
    offset: float

    def __call__(self, signals: np.ndarray) -> np.ndarray:
        """Confidences (N,) in [0, 1] of signals (N,)."""
        return expit(self.slope * np.asarray(signals, np.float64) + self.offset)


def get_log_odds(probabilities: np.ndarray) -> np.ndarray:
    """The log odds (N,) of probabilities (N,), finite at 0 and 1: the signal of token probabilities."""
    return logit(np.clip(np.asarray(probabilities, np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY))


def fit_confidence(signals: np.ndarray, right: np.ndarray) -> ConfidenceMap:
    """The map under which the outcomes are most likely (Platt scaling).

    As Platt does, outcomes are moved a little away from 0 and 1, so that signals which separate right from wrong
    perfectly do not give an infinite slope.

    Args:
        signals (`np.ndarray` of shape `(N,)`): finite.
        right (`np.ndarray` of shape `(N,)`): 0 or 1.

    Raises:
        ValueError: for different shapes, signals that are not finite, and outcomes that are all the same.
    """
    check_columns(signals=list(signals), right=list(right))
    signals, right = np.asarray(signals, np.float64), np.asarray(right, np.float64)
    if not np.isfinite(signals).all() or right.min(initial=1) == right.max(initial=0):
        raise ValueError(
            f"signals: expected finite numbers of right and wrong answers, got {len(right)} with {int(right.sum())}"
            f" right and {int((~np.isfinite(signals)).sum())} not finite; give more questions."
        )
    num_right = right.sum()
    targets = np.where(right > 0, (num_right + 1) / (num_right + 2), 1 / (len(right) - num_right + 2))
    centre, scale = signals.mean(), signals.std() or 1.0
    scaled = (signals - centre) / scale

    def compute_loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        linear = parameters[0] * scaled + parameters[1]
        error = expit(linear) - targets
        return float((np.logaddexp(0, linear) - targets * linear).mean()), np.array(
            [(error * scaled).mean(), error.mean()]
        )

    found = minimize(compute_loss, [1.0, 0.0], jac=True, bounds=[(0, None), (None, None)], method="L-BFGS-B")
    slope = float(found.x[0] / scale)
    return ConfidenceMap(slope, float(found.x[1] - slope * centre))


def find_bins(confidences: np.ndarray) -> np.ndarray:
    """Which of ten equal bins of [0, 1] each confidence (N,) falls into; 1 falls into the last."""
    return np.minimum((np.asarray(confidences) * NUM_BINS).astype(int), NUM_BINS - 1)


def compute_calibration_error(confidences: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |mean confidence - share of right answers| in ten bins, weighted by questions."""
    confidences, right, bins = np.asarray(confidences), np.asarray(right, np.float64), find_bins(confidences)
    gaps = np.bincount(bins, confidences - right, minlength=NUM_BINS)
    return float(np.abs(gaps).sum() / len(right))


def compute_chance_error(confidences: np.ndarray, num_draws: int = 200, seed: int = 0) -> float:
    """The mean calibration error of answers (N,) that are right exactly as often as their confidence says."""
    confidences = np.asarray(confidences, np.float64)
    drawn = np.random.default_rng(seed).random((num_draws, len(confidences))) < confidences
    return float(np.mean([compute_calibration_error(confidences, right) for right in drawn]))


def compute_share_interval(num_right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share; it has a width even where all or none are right."""
    z = norm.ppf((1 + confidence) / 2)
    share, shrink = num_right / count, 1 / (1 + z**2 / count)
    centre = (share + z**2 / (2 * count)) * shrink
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) * shrink
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def compute_ranking(signals: np.ndarray, right: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a right answer has a larger signal than a wrong one. 0.5 is chance.

    None where all answers are right, or none is.
    """
    right = np.asarray(right, bool)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if not num_right or not num_wrong:
        return None
    ranks = rankdata(signals)[right].sum()
    return float((ranks - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def make_reliability_table(confidences: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """A row for each of ten bins of confidence that has questions.

    Returns:
        rows with `low` and `high` ends, `count`, mean confidence `predicted`, share of right answers `observed`, and
        its 95 % `interval`, which takes questions as independent of one another.
    """
    confidences, right = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    bins, rows = find_bins(confidences), []
    for place in np.unique(bins).tolist():
        chosen = bins == place
        count, num_right = int(chosen.sum()), int(right[chosen].sum())
        rows.append(
            {
                "low": place / NUM_BINS,
                "high": (place + 1) / NUM_BINS,
                "count": count,
                "predicted": round(float(confidences[chosen].mean()), 4),
                "observed": round(num_right / count, 4),
                "interval": [round(end, 4) for end in compute_share_interval(num_right, count)],
            }
        )
    return rows


__all__ = [
    "ConfidenceMap",
    "compute_calibration_error",
    "compute_chance_error",
    "compute_ranking",
    "compute_share_interval",
    "fit_confidence",
    "get_log_odds",
    "make_reliability_table",
]
