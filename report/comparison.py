"""The page and the table of systems compared on the same questions."""

from typing import Any

from ross3d.report.html import Markup, clip_text, element, join, make_page, make_section, make_table


MAX_QUESTIONS = 200
ROUNDING = 1e-9
# With fewer scenes, resampling says too little about how scenes differ.
FEW_SCENES = 20


def is_apart(difference: dict[str, float] | None) -> bool:
    """Whether an interval excludes 0 by more than rounding."""
    if difference is None or difference["low"] is None:
        return False
    return difference["low"] > ROUNDING or difference["high"] < -ROUNDING


def describe_size(found: dict[str, Any]) -> str:
    """The numbers of questions and scenes of a task, and what they mean for intervals."""
    text = f"{found['num_questions']} questions, {found['num_scenes']} scenes"
    if found["num_scenes"] == 1:
        return f"{text}: no intervals, because one scene cannot be resampled"
    if found["num_scenes"] < FEW_SCENES:
        return f"{text}: 95 % intervals over so few scenes are too narrow"
    return f"{text}: 95 % intervals over scenes"


def format_system(row: dict[str, Any]) -> str:
    """Mean, spread over runs and interval over scenes, as far as available."""
    text = f"{row['mean']:.4f}"
    if row["std"] is not None:
        text += f" ± {row['std']:.4f} ({row['num_runs']} runs)"
    if row["low"] is not None:
        text += f" [{row['low']:.4f}, {row['high']:.4f}]"
    return text


def format_difference(row: dict[str, float] | None) -> str:
    """A difference with its interval, a star if 0 is outside of it; a dash if there is no difference."""
    if row is None:
        return "-"
    interval = "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
    return f"{row['mean']:+.4f}{interval}" + (" *" if is_apart(row) else "")


def format_comparison(names: list[str], comparison: dict[str, Any]) -> str:
    """The comparison as plain text: a block per task, a line per score."""
    blocks = ["\n".join(f"{chr(65 + place)} = {name}" for place, name in enumerate(names))]
    for task, found in comparison.items():
        lines = [f"{task}: {describe_size(found)}; * marks intervals that exclude 0"]
        for name, score in found["scores"].items():
            cells = [f"{chr(65 + place)} {format_system(row)}" for place, row in enumerate(score["systems"])]
            cells += [
                f"{chr(66 + place)}-A {format_difference(row)}" for place, row in enumerate(score["differences"])
            ]
            lines.append(f"  {name}: " + "; ".join(cells))
        for place, changes in enumerate(found["changes"]):
            lines.append(f"  {describe_changes(place, changes)}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def describe_changes(place: int, changes: dict[str, Any]) -> str:
    return (
        f"{chr(66 + place)} answers {len(changes['questions'])} questions differently from A: {changes['num_better']}"
        f" better, {changes['num_worse']} worse, {changes['num_as_good']} equal"
    )


def make_score_table(found: dict[str, Any]) -> Markup:
    """A table with a row per score: each system, and its difference from the first."""
    num_systems = len(next(iter(found["scores"].values()))["systems"])
    headers = ["score", *[chr(65 + place) for place in range(num_systems)]]
    headers += [f"{chr(65 + place)} - A" for place in range(1, num_systems)]
    rows = []
    for name, score in found["scores"].items():
        differences = [element("span", format_difference(row), class_=get_look(row)) for row in score["differences"]]
        rows.append([name, *map(format_system, score["systems"]), *differences])
    return make_table(headers, rows, numeric=range(1, len(headers)))


def get_look(difference: dict[str, float] | None) -> str:
    if not is_apart(difference):
        return "soft"
    return "good" if difference["low"] > 0 else "bad"


def make_change_table(changes: dict[str, Any]) -> Markup:
    """The questions whose answers differ, greatest changes first."""
    rows = []
    for row in changes["questions"][:MAX_QUESTIONS]:
        look = "good" if row["gain"] > 0 else "bad" if row["gain"] < 0 else "soft"
        gain = element("span", f"{row['gain']:+.2f}", class_=look)
        right = row["references"][0] if row["references"] else ""
        rows.append([gain, row["scene_id"], row["question"], row["before"], row["after"], clip_text(right)])
    return make_table(["gain", "scene", "question", "A", "other", "right answer"], rows)


def make_comparison_page(names: list[str], comparison: dict[str, Any]) -> str:
    """The whole page as HTML.

    Args:
        names (list of `str`): of the systems; the others are compared with the first.
        comparison (`dict`): what `tasks.comparison.compare_systems` returns.
    """
    sections = []
    for task, found in comparison.items():
        sections.append(
            make_section(
                f"{task}: {found['num_questions']} questions",
                make_score_table(found),
                note=describe_size(found),
            )
        )
        for place, changes in enumerate(found["changes"]):
            title = f"{task}: {describe_changes(place, changes)}"
            left = len(changes["questions"]) - MAX_QUESTIONS
            note = f"{left} more are in comparison.json." if left > 0 else ""
            sections.append(make_section(title, make_change_table(changes), note=note))
    lead = join([f"{chr(65 + place)} is {name}. " for place, name in enumerate(names)])
    facts = [("systems", str(len(names))), ("tasks", str(len(comparison)))]
    return make_page("ross3d: systems compared", lead, facts, sections)


__all__ = ["format_comparison", "make_comparison_page"]
