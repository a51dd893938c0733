"""Confidence of answers: what `calibration.json` says of a record's token probability or margin to "no target".

The file lies beside a model's weights; `python -m ross3d.tools.calibrate` writes it from the records of an evaluation.
Rooms are divided by a hash of their names: maps are fitted on one half and reported on the other.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from ross3d.data.text_files import read_json
from ross3d.metrics.calibration import (
    ConfidenceMap,
    compute_calibration_error,
    compute_chance_error,
    compute_ranking,
    fit_confidence,
    get_log_odds,
    make_reliability_table,
)
from ross3d.metrics.grounding import SELECTION_TEMPERATURE, compute_iou
from ross3d.tasks.task import Record


CALIBRATION_FILE, VERSION = "calibration.json", 1
MEANING = "the calibration of a model's confidence"
REMEDY = "write it again with `python -m ross3d.tools.calibrate`, or remove it: there is no confidence then"
# Kinds of signals: answers in words, whatever was asked; the best box; and that no box is meant.
TEXT, BOX, NO_TARGET = "text", "box", "no_target"
# A question type has a map of its own from so many questions in the half that is fitted, and so many right and wrong.
MIN_QUESTIONS, MIN_OF_EACH = 100, 15
# A box is right if it overlaps a target by so much.
BOX_IOU = 0.5
DECIMALS = 4
# Scans of one room in ScanNet: scene0011_00, scene0011_01.
SAME_ROOM = re.compile(r"(scene\d{4})_\d\d")


@dataclass(frozen=True)
class Case:
    """One answer: the signal that a map reads, the model's own probability, and whether it was right."""

    scene_id: str
    signal: float
    raw: float
    right: bool


def is_for_fitting(scene_id: str) -> bool:
    """Whether a room belongs to the half that maps are fitted on; the same for all scans of a room, on any machine."""
    found = SAME_ROOM.fullmatch(scene_id)
    room = found[1] if found else scene_id
    return hashlib.sha256(room.encode()).digest()[0] % 2 == 0


def get_cases(record: Record, where: str) -> dict[str, Case]:
    """The cases of a record by their kinds: `text` and `TASK/QUESTION_TYPE`, or `box` and `no_target`, or none.

    Raises:
        ValueError: for a record of earlier code; names the file.
    """
    if "question" not in record:
        return {}
    is_text = record["response"] is not None
    name = "token_probability" if is_text else "margin"
    if name not in record and (is_text or "scores" in record):
        raise ValueError(
            f"{where}: expected {name} in the records of eval.py, got none in {record['id']!r}: they were written by"
            " earlier code; evaluate again into a new --output folder."
        )
    scene_id = record["scene_id"]
    if is_text:
        if record["right"] is None:
            return {}
        probability = record["token_probability"]
        case = Case(scene_id, float(get_log_odds(probability)), probability, record["right"])
        return {TEXT: case, f"{record['task']}/{record['question_type']}": case}
    if record.get("margin") is None:
        return {}
    probabilities = softmax(np.array(record["scores"]) / SELECTION_TEMPERATURE)
    targets = np.array(record["target_boxes"]).reshape(-1, 6)
    found = len(targets) > 0 and compute_iou(np.array([record["best_box"]]), targets).max() >= BOX_IOU
    return {
        BOX: Case(scene_id, record["margin"], float(probabilities[:-1].max()), bool(found)),
        NO_TARGET: Case(scene_id, -record["margin"], float(probabilities[-1]), len(targets) == 0),
    }


def collect_cases(records: Sequence[Record], where: str) -> dict[str, list[Case]]:
    """The cases of all records, by kind; see `get_cases`."""
    cases: dict[str, list[Case]] = defaultdict(list)
    for record in records:
        for kind, case in get_cases(record, where).items():
            cases[kind].append(case)
    return dict(cases)


def fit_kind(cases: Sequence[Case]) -> dict[str, Any] | None:
    """A map fitted on one half of the rooms, and its figures on the other half; None for too few questions.

    Returns:
        `slope` and `offset`; `fitted_on` and `reported_on`, numbers of scenes and questions; on the latter `accuracy`,
        `ranking`, the calibration `error_before` (of the model's own probability), `error_after` and
        `error_by_chance`, which so few questions would give if each confidence were true, and the reliability `table`.
    """
    halves = [[case for case in cases if is_for_fitting(case.scene_id) == wanted] for wanted in (True, False)]
    fitted, reported = halves
    num_right = sum(case.right for case in fitted)
    if len(fitted) < MIN_QUESTIONS or min(num_right, len(fitted) - num_right) < MIN_OF_EACH or not reported:
        return None
    found = fit_confidence(*get_arrays(fitted))
    found = ConfidenceMap(float(f"{found.slope:.6g}"), float(f"{found.offset:.6g}"))
    signals, right = get_arrays(reported)
    confidences, ranking = found(signals), compute_ranking(signals, right)
    sizes = [{"questions": len(half), "scenes": len({case.scene_id for case in half})} for half in halves]
    raw = np.array([case.raw for case in reported])
    return {
        "slope": found.slope,
        "offset": found.offset,
        "fitted_on": sizes[0],
        "reported_on": sizes[1],
        "accuracy": round(float(right.mean()), DECIMALS),
        "ranking": None if ranking is None else round(ranking, DECIMALS),
        "error_before": round(compute_calibration_error(raw, right), DECIMALS),
        "error_after": round(compute_calibration_error(confidences, right), DECIMALS),
        "error_by_chance": round(compute_chance_error(confidences), DECIMALS),
        "table": make_reliability_table(confidences, right),
    }


def get_arrays(cases: Sequence[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Signals (N,) and outcomes (N,) of cases."""
    return np.array([case.signal for case in cases]), np.array([case.right for case in cases], np.float64)


def fit_confidences(records: Sequence[Record], where: str) -> dict[str, dict[str, Any]]:
    """`fit_kind` of every kind that has enough questions.

    Raises:
        ValueError: for records of earlier code, and if no kind has enough questions.
    """
    cases = collect_cases(records, where)
    fitted = {kind: fit_kind(of_kind) for kind, of_kind in cases.items()}
    found = {kind: row for kind, row in fitted.items() if row is not None}
    if not found:
        counts = {kind: len(of_kind) for kind, of_kind in cases.items()}
        raise ValueError(
            f"{where}: expected {MIN_QUESTIONS} questions of a kind in half of the rooms, {MIN_OF_EACH} of them right"
            f" and {MIN_OF_EACH} wrong, and others in the other half, got in all {counts}; evaluate more rooms."
        )
    return found


def name_sources(sources: Iterable[str | None]) -> str:
    """The sources of proposals of an evaluation's tasks in one text; "none" where no task has proposals."""
    return ", ".join(sorted({source for source in sources if source})) or "none"


def read_calibration(folder: Path) -> dict[str, Any] | None:
    """The content of a model folder's `calibration.json`; None if there is no such file.

    Raises:
        ValueError: for a damaged file, and one of another version; names it.
    """
    file = folder / CALIBRATION_FILE
    if not file.exists():
        return None
    content = read_json(file, MEANING, keys=["version"], remedy=REMEDY)
    if content["version"] != VERSION:
        raise ValueError(f"{file}: expected version {VERSION} of {MEANING}, got {content['version']!r}; {REMEDY}.")
    needed = ["weights", "evaluation", "confidence", "scans"]
    content = read_json(file, MEANING, keys=needed, remedy=REMEDY)
    evaluation = content["evaluation"]
    if not isinstance(evaluation, dict) or not isinstance(evaluation.get("proposals"), str):
        raise ValueError(
            f"{file}, evaluation: expected an object with the source of proposals, got {str(evaluation)[:60]};"
            f" {REMEDY}."
        )
    check_maps(content["confidence"], file)
    return content


def check_maps(rows: Any, file: Path) -> None:
    """Refuse confidence maps that are none.

    Raises:
        ValueError: names the file and the kind.
    """
    rows = rows if isinstance(rows, dict) else {str(rows)[:40]: None}
    for kind, row in rows.items():
        values = [row.get(name) for name in ("slope", "offset")] if isinstance(row, dict) else [None]
        is_map = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
        if not is_map or values[0] < 0:
            raise ValueError(
                f"{file}, confidence of {kind!r}: expected a finite slope >= 0 and an offset, got {values}; {REMEDY}."
            )


def get_confidence(calibration: Mapping[str, Any], kinds: Sequence[str], signal: float) -> float | None:
    """The confidence that a signal means, by the map of the first of `kinds` that has one; None without any."""
    rows = calibration["confidence"]
    row = next((rows[kind] for kind in kinds if kind in rows), None)
    if row is None:
        return None
    return round(float(ConfidenceMap(row["slope"], row["offset"])(np.array(signal))), DECIMALS)


def get_text_confidence(calibration: Mapping[str, Any] | None, probability: float, kind: str = TEXT) -> float | None:
    """The confidence of an answer in words by its token probability; of `TASK/QUESTION_TYPE` if that has a map."""
    if calibration is None:
        return None
    return get_confidence(calibration, (kind, TEXT), float(get_log_odds(probability)))


def get_box_confidence(calibration: Mapping[str, Any] | None, margin: float, is_found: bool = True) -> float | None:
    """The confidence that a box is meant, by its margin to "no target"; or else that no box is."""
    if calibration is None:
        return None
    return get_confidence(calibration, (BOX,) if is_found else (NO_TARGET,), margin if is_found else -margin)


def add_confidence(record: Record, calibration: Mapping[str, Any] | None) -> Record:
    """The record with `confidence` if there is a map for it, and without an earlier one."""
    record = {name: value for name, value in record.items() if name != "confidence"}
    confidence = None
    if record.get("token_probability") is not None:
        kind = f"{record['task']}/{record['question_type']}"
        confidence = get_text_confidence(calibration, record["token_probability"], kind)
    elif record.get("margin") is not None:
        confidence = get_box_confidence(calibration, record["margin"], bool(record["answer_boxes"]))
    return record if confidence is None else record | {"confidence": confidence}


__all__ = [
    "CALIBRATION_FILE",
    "VERSION",
    "add_confidence",
    "fit_confidences",
    "get_box_confidence",
    "get_text_confidence",
    "is_for_fitting",
    "name_sources",
    "read_calibration",
]
