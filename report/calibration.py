"""How far a model's confidence can be trusted: the tables of `calibration.json`, on a page and in a terminal."""

from collections.abc import Mapping
from typing import Any

from ross3d.report.html import Markup, make_details, make_section, make_table


KIND_TITLES = {"text": "answers in words", "box": "boxes", "no_target": '"no target"'}


def get_title(kind: str) -> str:
    return KIND_TITLES.get(kind, kind)


def make_reliability(row: Mapping[str, Any]) -> Markup:
    """Ten bins of confidence: what was predicted, and what came true."""
    rows = [
        [
            f"{100 * line['low']:.0f} – {100 * line['high']:.0f}",
            line["count"],
            f"{100 * line['predicted']:.0f}",
            f"{100 * line['observed']:.0f}",
            f"{100 * line['interval'][0]:.0f} – {100 * line['interval'][1]:.0f}",
        ]
        for line in row["table"]
    ]
    return make_table(["confidence, %", "answers", "mean, %", "right, %", "95 % interval"], rows, numeric=range(1, 5))


def make_calibration_section(calibration: Mapping[str, Any]) -> Markup:
    """A row for each kind of answer, and the reliability tables of answers in words, boxes and "no target"."""
    kinds = calibration["confidence"]
    rows = [
        [
            get_title(kind),
            row["reported_on"]["questions"],
            f"{100 * row['accuracy']:.0f}",
            "–" if row["ranking"] is None else f"{row['ranking']:.2f}",
            f"{100 * row['error_before']:.1f}",
            f"{100 * row['error_after']:.1f}",
            f"{100 * row['error_by_chance']:.1f}",
        ]
        for kind, row in kinds.items()
    ]
    headers = ["answers", "questions", "right, %", "ranking", "error before, points", "after", "by chance"]
    tables = [
        make_details(f"Reliability: {get_title(kind)}", make_reliability(kinds[kind]))
        for kind in KIND_TITLES
        if kind in kinds
    ]
    note = (
        "Confidence is fitted on one half of the held-out rooms; these figures are of the other half. Error: mean"
        " distance between confidence and share of right answers (before: of the model's own probability; by chance:"
        " of as many answers if every confidence were true). Ranking: how often a right answer is more confident than"
        " a wrong one; 0.5 is chance."
    )
    head = make_details(f"Table of {len(rows)} kinds of answers", make_table(headers, rows, numeric=range(1, 7)))
    return make_section("Confidence", head, *tables, note=note)


def format_calibration(calibration: Mapping[str, Any]) -> str:
    """The same as text, with the comparison of scans."""
    heads = f"{'questions':>10}{'right':>8}{'ranking':>9}{'error, points':>16}{'by chance':>11}"
    lines = [f"{'on rooms not used in fitting':<30}{heads}"]
    for kind, row in calibration["confidence"].items():
        ranking = "-" if row["ranking"] is None else f"{row['ranking']:.2f}"
        error = f"{100 * row['error_before']:.1f} -> {100 * row['error_after']:.1f}"
        chance = f"{100 * row['error_by_chance']:.1f}"
        right = f"{100 * row['accuracy']:.1f}"
        lines.append(
            f"{get_title(kind):<30}{row['reported_on']['questions']:>10}{right:>8}{ranking:>9}{error:>16}{chance:>11}"
        )
    scans = calibration["scans"]
    if scans is not None:
        lines.append(
            f"scans called unlike the {scans['training']['num_scans']} of the training, by a threshold from other"
            f" scans: {scans['false_alarms']} of {scans['num_held_out']} held-out ones"
        )
    return "\n".join(lines)


__all__ = ["format_calibration", "make_calibration_section"]
