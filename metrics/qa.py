"""Scores of short answers: exact match after normalisation, and mean relative accuracy of numbers."""

import re

import numpy as np


# Relative accuracies a number is held against: the share of thresholds it meets is its score.
MRA_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def normalize_answer(text: str) -> str:
    """Lower case, runs of blanks as one, no blanks or periods at the ends."""
    return re.sub(r"\s+", " ", text).strip(" .").lower()


def compute_exact_match(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """Which predictions equal one of their references after normalisation.

    Args:
        predictions (list of `str`): one an item.
        references (list of list of `str`): all accepted answers of each item.

    Returns:
        (number of items,) bool.
    """
    return np.array(
        [
            normalize_answer(prediction) in {normalize_answer(reference) for reference in accepted}
            for prediction, accepted in zip(predictions, references, strict=True)
        ],
        dtype=bool,
    )


def parse_number(text: str) -> float:
    """The number at the beginning of an answer ("12.5 square metres" -> 12.5); NaN when there is none."""
    words = text.split()
    try:
        return float(words[0].rstrip(".")) if words else float("nan")
    except ValueError:
        return float("nan")


def compute_relative_accuracy(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Mean relative accuracy: the share of thresholds t in .5, .55, ... .95 with |p - target| / |target| <= 1 - t.

    Args:
        predictions (`np.ndarray` of shape `(number of items,)`): NaN and infinite ones score 0.
        targets (`np.ndarray` of the same shape): finite. A target of 0 is met by 0 only.

    Returns:
        (number of items,) in [0, 1], float64.
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    if predictions.shape != targets.shape or not np.isfinite(targets).all():
        raise ValueError(
            f"targets: expected finite numbers of the predictions' shape {predictions.shape}, got shape"
            f" {targets.shape} with {int((~np.isfinite(targets)).sum())} that are not finite; check the annotations."
        )
    distance = np.abs(np.where(np.isfinite(predictions), predictions, np.inf) - targets)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = np.where(targets == 0, np.where(distance == 0, 0.0, np.inf), distance / np.abs(targets))
    return (error[:, None] <= 1 - MRA_THRESHOLDS).mean(axis=1)


__all__ = ["MRA_THRESHOLDS", "compute_exact_match", "compute_relative_accuracy", "normalize_answer", "parse_number"]
