"""The first screen of an evaluated run's page: what the model can and cannot do, and what the numbers rest on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ross3d.report.html import Markup, element, make_bar, make_section
from ross3d.report.summary import get_main_score
from ross3d.report.words import BASELINES, PROPOSALS, count, format_share, get_title, shorten_path


# With fewer rooms, resampling says too little about how rooms differ.
FEW_SCENES = 20
CAN, CANNOT, UNKNOWN = "It can", "It cannot yet", "Nothing to compare with"
REBUILT = {"view": "Rebuild a view that was hidden", "bev_object": "Rebuild furniture seen from above"}


@dataclass(frozen=True)
class Ability:
    """One thing that a model is asked to do.

    Attributes:
        verdict (`str`): `CAN` if the 95 % interval lies above the best score without seeing the room, else `CANNOT`;
            `UNKNOWN` without an interval or without such a score.
        title, text (`str`): what it is, and its numbers in words.
        bar (`Markup`, *optional*): its numbers drawn.
    """

    verdict: str
    title: str
    text: str
    bar: Markup | None = None


def judge(low: float | None, other: float | None) -> str:
    if low is None or other is None:
        return UNKNOWN
    return CAN if low > other else CANNOT


def list_answering(
    scores: Mapping[str, Any], intervals: Mapping[str, Any], baselines: Mapping[str, dict[str, Any] | None]
) -> list[Ability]:
    """An ability for each type of question about rooms, the highest gains over the best baseline first."""
    abilities = []
    for name, row in scores["types"].items():
        score, interval = row[row["main_score"]], intervals.get(name)
        others = {title: get_main_score(of_baseline, name) for title, of_baseline in baselines.items()}
        known = {title: value for title, value in others.items() if value is not None}
        best = max(known, key=known.get) if known else None
        other = known.get(best)
        text = f"{format_share(score, interval)}, {count(row['num_questions'], 'question', 'questions')}"
        text += "" if best is None else f"; {BASELINES[best]}: {format_share(other)}"
        has_ends = interval is not None and interval["low"] is not None
        ends = (interval["low"], interval["high"]) if has_ends else None
        verdict = judge(interval["low"] if has_ends else None, other)
        ability = Ability(verdict, get_title(name), text, make_bar(score, ends, other))
        abilities.append((score - (other or 0.0), ability))
    return [ability for _, ability in sorted(abilities, key=lambda pair: -pair[0])]


def list_rebuilding(scores: Mapping[str, Any]) -> list[Ability]:
    """An ability for each kind of rebuilt picture: one sample against the mean picture of the training rooms."""
    abilities = []
    for region, title in REBUILT.items():
        difference = scores.get(region, {}).get("differences", {}).get("one_sample - mean_picture")
        if difference is not None:
            number = count(scores[region]["num_pictures"], "picture", "pictures")
            text = (
                f"{difference['mean']:+.1f} dB [{difference['low']:+.1f}, {difference['high']:+.1f}] in {number},"
                " against the mean training picture"
            )
            abilities.append(Ability(judge(difference["low"], 0.0), title, text))
    return abilities


def list_abilities(metrics: Mapping[str, Any], baselines: Mapping[str, dict[str, Any] | None]) -> list[Ability]:
    """Everything that the run was asked to do and that has a rule to judge it by."""
    scores, abilities = metrics["scores"], []
    if scores.get("rooms"):
        abilities += list_answering(scores["rooms"], metrics["intervals"].get("rooms", {}), baselines)
    return abilities + list_rebuilding(scores.get("reconstruction") or {})


def make_glance_section(abilities: Sequence[Ability], pictures: Sequence[Markup]) -> Markup:
    """Lists of what the model can and cannot do, beside pictures."""
    columns, verdicts = [], {ability.verdict for ability in abilities}
    for verdict, look in ((CAN, "good"), (CANNOT, "bad"), (UNKNOWN, "soft")):
        listed = [ability for ability in abilities if ability.verdict == verdict]
        # Empty lists say something only where others could be compared.
        if not listed and (verdict == UNKNOWN or verdicts == {UNKNOWN}):
            continue
        items = [
            element("li", element("b", ability.title), ability.bar or "", element("div", ability.text, class_="small"))
            for ability in listed
        ]
        title = element("h3", f"{verdict} ({len(listed)} of {len(abilities)})", class_=look)
        body = element("ul", *items, class_="plain") if items else element("p", "Nothing.", class_="small soft")
        columns.append(element("div", title, body))
    note = (
        "It can: the whole 95 % interval lies above the best score that is reached without seeing the room. It cannot"
        " yet: it does not. Bars: the score, a thin line for its interval, and an orange mark for that other score."
    )
    if pictures:
        columns.append(element("div", element("h3", "In pictures: what it was surest of"), *pictures))
    return make_section("At a glance", element("div", *columns, class_="columns"), note=note)


def describe_size(metrics: Mapping[str, Any], name: str) -> str:
    """How many questions of a task about how many rooms, and how sure the numbers are."""
    split = metrics["settings"]["tasks"][name]["split"]
    scores = metrics["scores"][name]
    number = max((row["num_scenes"] for row in metrics["intervals"].get(name, {}).values()), default=None)
    asked = scores.get("num_questions")
    of = "" if asked is None else f"{count(asked, 'question', 'questions')}, "
    if number is None:
        return f"{name}: {of}split {split}, without intervals."
    if number == 1:
        return f"{name}: {of}1 scene of the split {split}, without intervals: one scene cannot be drawn again."
    few = " With so few scenes they are too narrow." if number < FEW_SCENES else ""
    return (
        f"{name}: {of}{count(number, 'scene', 'scenes')} of the split {split}. In brackets: 95 % intervals, from"
        f" drawing these scenes again at random.{few}"
    )


def make_basis_section(
    metrics: Mapping[str, Any], blind: Mapping[str, Any] | None, run_dir: Path, num_steps: int | None
) -> Markup:
    """What the numbers rest on, one sentence each.

    Args:
        blind (`dict`, *optional*): metrics of the blind model. num_steps (`int`, *optional*): of the training.
    """
    scores, tasks = metrics["scores"], metrics["settings"]["tasks"]
    model = shorten_path(metrics["settings"]["model"], run_dir)
    steps = "" if num_steps is None else f", after {count(num_steps, 'training step', 'training steps')}"
    lines = [f"One model, {model}{steps}: the intervals do not say how much another training run would differ."]
    lines += [describe_size(metrics, name) for name in scores if scores[name] and name != "reconstruction"]
    if scores.get("reconstruction"):
        lines.append(f"Rebuilt pictures: of {count(scores['reconstruction']['num_scenes'], 'scene', 'scenes')}.")
    sources = {name: task["proposals"] for name, task in tasks.items() if task.get("proposals")}
    lines += [
        f"Boxes ({name}, --proposals {source}): the model chooses among boxes that {PROPOSALS[source]}."
        for name, source in sources.items()
        # Evaluations of earlier code had other names.
        if source in PROPOSALS
    ]
    if scores.get("rooms"):
        if blind is not None:
            name = shorten_path(blind["settings"]["model"], run_dir)
            lines.append(
                f"Blind model, {name}: asked without pictures, places and boxes, it can only use the words of a"
                " question, and chooses boxes at random. (Who always says that no object fits is always"
                " right where none does, and never finds one: read these scores together.)"
            )
        else:
            lines.append(
                "No blind model was evaluated, so boxes and descriptions have little to be compared with: evaluate one"
                " with --blind true into the folder ./blind, then write the page again (tools/view.py)."
            )
        if metrics["baselines"].get("rooms"):
            lines.append(
                "Look-up: answers learned from the words of the training questions. Commonest answer: the most"
                " frequent training answer to that kind of question. Neither sees a room."
            )
    if metrics.get("calibration") is None:
        lines.append(
            "How sure it is: the mean probability of an answer's tokens, or by how much a box's score exceeds that of"
            ' "no target" (margin). Neither is a probability of being right; calibrate for that'
            " (docs/CONFIDENCE.md)."
        )
    return make_section(
        "What the numbers rest on", element("ul", *(element("li", line) for line in lines), class_="notes small")
    )


__all__ = ["CAN", "CANNOT", "UNKNOWN", "Ability", "list_abilities", "make_basis_section", "make_glance_section"]
