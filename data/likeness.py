"""Whether a scan is like those that a model was trained on: a few numbers of what the model sees, compared.

A scan's unlikeness in a number is its distance from the middle of the training scans, in units of the distance of
their 1st or 99th percentile; in its look it is the distance of the mean and spread of its patches' features, in units
of the training scans' 99th percentile. The largest of them is compared with a threshold that 99 % of held-out scans
stay below.

Shape letters: V views, h w patches, D numbers of a look, N scans.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


FALSE_ALARMS = 0.01
# Directions of the training scans' looks in which their spread is known one by one; the others share one spread.
NUM_DIRECTIONS = 16
# Scans of each kind that a comparison needs.
MIN_SCANS = 20
LOOK = "look"
DIGITS = 5


@dataclass(frozen=True)
class Number:
    """A number of a scan: its name for people, how it is written, and the least distance that says anything."""

    below: str
    above: str
    unit: str
    least: float
    scale: float = 1.0
    decimals: int = 0

    def write(self, value: float, unit: str | None = None) -> str:
        return f"{self.scale * value:.{self.decimals}f}{self.unit if unit is None else unit}"


NUMBERS = {
    "num_views": Number("there are fewer views", "there are more views", "", 1.0),
    "brightness": Number("the views are darker", "the views are brighter", " % of white", 0.03, 100.0),
    "light_from_above": Number(
        "the upper thirds of the views are darker, against the lower ones, (upside down?)",
        "the upper thirds of the views are brighter, against the lower ones,",
        " % of white",
        0.03,
        100.0,
    ),
    "contrast": Number("the views have less contrast", "the views have more contrast", " % of white", 0.02, 100.0),
    "grain": Number(
        "the views are smoother (blurred?)", "the views are grainier (noise?)", " % of their contrast", 0.02, 100.0
    ),
    "valid_depth": Number(
        "depth covers less of the views", "depth covers more of the views", " % of the patches", 0.03, 100.0
    ),
    "viewing_distance": Number(
        "what the cameras see is nearer (the unit of depth?)",
        "what the cameras see is further away (the unit of depth?)",
        " m",
        0.1,
        decimals=1,
    ),
    "scene_size": Number(
        "the scene is smaller (the unit of depth and poses?)",
        "the scene is larger (the unit of depth and poses?)",
        " m across",
        0.25,
        decimals=1,
    ),
    "camera_height": Number(
        "the cameras are lower above z = 0", "the cameras are higher above z = 0", " m", 0.05, decimals=2
    ),
    "camera_tilt": Number(
        "the cameras are held straighter", "the cameras are tilted or upside down", "° off upright", 3.0
    ),
}


def measure_scan(
    pixels: np.ndarray,
    patch_coords: np.ndarray | None = None,
    patch_valid: np.ndarray | None = None,
    cam2world: np.ndarray | None = None,
) -> dict[str, float]:
    """The numbers of a scan, by name; without depth or cameras those that need none.

    Args:
        pixels (`np.ndarray` of shape `(V, 3, H, W)`): the views as the model sees them, in [0, 1].
        patch_coords (V, h, w, 3), patch_valid (V, h, w) bool, *optional*: metres, as the processor gives them.
        cam2world (V, 4, 4), *optional*: metres, z up.
    """
    grey = np.asarray(pixels, np.float64).mean(axis=1)
    contrast = float(grey.std(axis=(1, 2)).mean())
    third = grey.shape[1] // 3
    steps = np.abs(np.diff(grey, axis=1)).mean() + np.abs(np.diff(grey, axis=2)).mean()
    found = {
        "num_views": float(len(grey)),
        "brightness": float(grey.mean()),
        "light_from_above": float(grey[:, :third].mean() - grey[:, -third:].mean()),
        "contrast": contrast,
        "grain": float(steps / 2 / max(contrast, 1e-3)),
        "valid_depth": 0.0 if patch_valid is None else float(patch_valid.mean()),
    }
    if cam2world is not None:
        matrices = np.asarray(cam2world, np.float64)
        found["camera_height"] = float(np.median(matrices[:, 2, 3]))
        # The picture's upper edge is camera -y.
        found["camera_tilt"] = float(np.degrees(np.arccos(np.clip(-matrices[:, 2, 1], -1, 1))).mean())
    if patch_valid is not None and patch_valid.any() and cam2world is not None:
        away = np.linalg.norm(patch_coords - matrices[:, None, None, :3, 3], axis=-1)
        low, high = np.quantile(patch_coords[patch_valid][:, :2], [0.02, 0.98], axis=0)
        found["viewing_distance"] = float(np.median(away[patch_valid]))
        found["scene_size"] = float(np.linalg.norm(high - low))
    return found


def round_number(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def fit_look(looks: np.ndarray) -> dict[str, Any]:
    """The middle and spread of looks (N, D): their main directions one by one, all others together.

    That is the covariance of probabilistic PCA, whose inverse exists with fewer scans than numbers.
    """
    mean = looks.mean(axis=0)
    _, sizes, directions = np.linalg.svd(looks - mean, full_matrices=False)
    variances = sizes**2 / (len(looks) - 1)
    kept = min(NUM_DIRECTIONS, len(looks) // 4, looks.shape[1] - 1)
    rest = float(variances[kept:].sum() / (looks.shape[1] - kept))
    floor = max(rest, 1e-12)
    return {
        "mean": [round_number(value) for value in mean],
        "directions": [[round_number(value) for value in row] for row in directions[:kept]],
        "variances": [round_number(max(value, floor)) for value in variances[:kept]],
        "rest": round_number(floor),
    }


def compute_look_distances(looks: np.ndarray, fitted: Mapping[str, Any]) -> np.ndarray:
    """Mahalanobis distance (N,) of looks (N, D) from the training scans', over the root of D."""
    centred = np.asarray(looks, np.float64) - np.array(fitted["mean"])
    along = centred @ np.array(fitted["directions"]).reshape(-1, centred.shape[1]).T
    rest = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
    squares = (along**2 / np.array(fitted["variances"])).sum(axis=1) + rest / fitted["rest"]
    return np.sqrt(squares / centred.shape[1])


def describe_training(numbers: Sequence[Mapping[str, float]], looks: np.ndarray) -> dict[str, Any]:
    """What the training scans are like.

    Args:
        numbers (N of `measure_scan`), looks (N, D): of training scans. Looks are fitted on every other scan, and their
            usual distance is that of the others, since a scan is nearer to a middle that it helped to find.

    Raises:
        ValueError: for too few scans.
    """
    if len(numbers) < MIN_SCANS:
        raise ValueError(
            f"scans: expected at least {MIN_SCANS} of the training, got {len(numbers)}; give more, or leave the"
            " comparison of scans out with --scans 0."
        )
    ranges = {}
    for name in NUMBERS:
        values = [row[name] for row in numbers if name in row]
        # Numbers that only some scans have say nothing of a scan that lacks them.
        if len(values) == len(numbers):
            low, middle, high = np.quantile(values, [0.01, 0.5, 0.99])
            ranges[name] = {"low": round_number(low), "middle": round_number(middle), "high": round_number(high)}
    fitted = fit_look(looks[::2])
    usual = float(np.quantile(compute_look_distances(looks[1::2], fitted), 0.99))
    return {"num_scans": len(numbers), "numbers": ranges, LOOK: fitted | {"high": round_number(usual)}}


def compute_unlikeness(
    numbers: Mapping[str, float], look: np.ndarray | None, training: Mapping[str, Any]
) -> dict[str, float]:
    """How unlike the training scans a scan is, by the name of the number; 1 is at the end of their usual range.

    Numbers that the scan does not have are left out.
    """
    found = {}
    for name, row in training["numbers"].items():
        if name in numbers:
            apart = numbers[name] - row["middle"]
            usual = row["high"] - row["middle"] if apart > 0 else row["middle"] - row["low"]
            found[name] = abs(apart) / max(usual, NUMBERS[name].least)
    if look is not None:
        found[LOOK] = float(compute_look_distances(look[None], training[LOOK])[0]) / training[LOOK]["high"]
    return found


def find_threshold(largest: Sequence[float]) -> float:
    """The unlikeness that a scan like these N exceeds with a probability of at most 1 %, given that N >= 99.

    Args:
        largest (N): the largest unlikeness of each held-out scan.
    """
    ranked = sorted(largest)
    return ranked[min(math.ceil((len(ranked) + 1) * (1 - FALSE_ALARMS)), len(ranked)) - 1]


def list_unlike(numbers: Mapping[str, float], look: np.ndarray | None, scans: Mapping[str, Any]) -> list[str]:
    """A sentence for each thing in which a scan is unlike the training scans, the most unlike first.

    Args:
        numbers, look: of the scan. scans: of `calibration.json`.
    """
    unlike = compute_unlikeness(numbers, look, scans["training"])
    names = sorted((name for name, value in unlike.items() if value > scans["threshold"]), key=lambda n: -unlike[n])
    return [describe_unlike(name, numbers, unlike[name], scans["training"]) for name in names]


def describe_unlike(name: str, numbers: Mapping[str, float], value: float, training: Mapping[str, Any]) -> str:
    """One such sentence."""
    if name == LOOK:
        return (
            "the views look different from those that this model was trained on (their features are"
            f" {value:.1f} times as far from the training's middle as 99 % of its scans)"
        )
    row, number = training["numbers"][name], NUMBERS[name]
    what = number.above if numbers[name] > row["middle"] else number.below
    usual = f"{number.write(row['low'], unit='')} to {number.write(row['high'], unit='')}"
    return f"{what} than in the scans that this model was trained on: {number.write(numbers[name])}, there {usual}"


def check_scans(scans: Any, where: str, remedy: str) -> None:
    """Refuse a description of scans that cannot be compared with.

    Raises:
        ValueError: begins with `where` and ends with `remedy`.
    """
    try:
        training = scans["training"]
        look, numbers = training[LOOK], training["numbers"]
        positive = [look["high"], look["rest"], *look["variances"]]
        values = [
            scans["threshold"],
            *positive,
            *look["mean"],
            *(value for row in look["directions"] for value in row),
        ]
        values += [value for row in numbers.values() for value in (row["low"], row["middle"], row["high"])]
        is_whole = {len(row) for row in look["directions"]} <= {len(look["mean"])}
        is_whole &= len(look["variances"]) == len(look["directions"]) and numbers.keys() <= NUMBERS.keys()
        is_whole &= all(map(math.isfinite, values)) and min(positive) > 0
        problem = None if is_whole else "numbers that do not fit together"
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        problem = f"{error!r}"[:100]
    if problem is not None:
        raise ValueError(f"{where}: expected numbers, look and threshold of training scans, got {problem}; {remedy}.")


__all__ = [
    "check_scans",
    "compute_unlikeness",
    "describe_training",
    "find_threshold",
    "list_unlike",
    "measure_scan",
]
