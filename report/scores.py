"""Scores as tables: of one run beside its baselines, of several runs side by side, of a benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ross3d.report.html import Markup, element, join, make_bar, make_details, make_section, make_table
from ross3d.report.summary import flatten_scores, format_interval, get_main_score
from ross3d.report.words import count, get_score_title, get_title, shorten_path


MACRO_TITLE = "Mean of the kinds with exact answers"


def format_percent(value: float | None, interval: Mapping[str, Any] | None = None) -> str:
    """A share in percent, with its interval if it has one."""
    if value is None:
        return "–"
    if interval is None or interval["low"] is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def make_name(title: str) -> Markup:
    """The first cell of a row, which a narrow screen does not squeeze."""
    return element("div", title, class_="name")


def count_exact(scores: dict[str, Any]) -> int:
    """The number of questions whose answers are right or wrong as a whole."""
    return sum(row["num_questions"] for row in scores["types"].values() if row["main_score"] == "exact_match")


def make_score_table(
    scores: dict[str, Any], intervals: Mapping[str, Any], baselines: dict[str, dict[str, Any] | None]
) -> Markup:
    """A table with a row per question type: scores of the model and of each baseline, and the number of questions."""
    rows = []

    def make_cells(own: float | None, others: Sequence[float | None], interval: Mapping[str, Any] | None) -> list:
        known = [value for value in others if value is not None]
        gain = "–" if own is None or not known else f"{100 * (own - max(known)):+.1f}"
        bar = "" if own is None else make_bar(own)
        return [join([bar, format_percent(own, interval)]), *map(format_percent, others), gain]

    for name, row in scores["types"].items():
        others = [get_main_score(of_baseline, name) for of_baseline in baselines.values()]
        cells = make_cells(row[row["main_score"]], others, intervals.get(name))
        rows.append([make_name(get_title(name)), get_score_title(row["main_score"]), row["num_questions"], *cells])
    macro = [(of_baseline or {}).get("macro_exact_match") for of_baseline in baselines.values()]
    cells = make_cells(scores["macro_exact_match"], macro, intervals.get("macro_exact_match"))
    rows.append([make_name(MACRO_TITLE), get_score_title("exact_match"), count_exact(scores), *cells])
    headers = ["kind of question", "score", "questions", "model, %", *[f"{name}, %" for name in baselines]]
    headers.append("gain, points")
    return make_table(headers, rows, numeric=range(2, len(headers)), strong=[len(rows) - 1])


def describe_run(name: str, metrics: dict[str, Any], run_dir: Path) -> str:
    """A run's name with its model, and the source of the boxes that it chose among."""
    task = metrics["settings"]["tasks"]["rooms"]
    return f"{name}: {shorten_path(metrics['settings']['model'], run_dir)}, boxes: {task.get('proposals')}"


def make_runs_section(metrics: dict[str, Any], runs: dict[str, dict[str, Any]], run_dir: Path) -> Markup | None:
    """A table with a column for this run and for each other run on the same questions, the blind model last.

    None if there is no run besides the blind one.
    """
    asked = {name: run["scores"].get("rooms") and run["settings"]["tasks"]["rooms"] for name, run in runs.items()}
    own = metrics["settings"]["tasks"]["rooms"].get("items_sha256")
    same = {name: runs[name] for name, task in asked.items() if task and task.get("items_sha256") == own}
    others = [name for name, task in asked.items() if task and name not in same]
    if not same.keys() - {"blind"}:
        return None
    columns = {"this run": metrics, **dict(sorted(same.items(), key=lambda item: item[0] == "blind"))}
    found = [(run["scores"]["rooms"], run["intervals"].get("rooms", {})) for run in columns.values()]
    rows = [
        [
            make_name(get_title(name)),
            row["num_questions"],
            *(format_percent(get_main_score(scores, name), intervals.get(name)) for scores, intervals in found),
        ]
        for name, row in metrics["scores"]["rooms"]["types"].items()
    ]
    name = "macro_exact_match"
    macro = [format_percent(scores.get(name), intervals.get(name)) for scores, intervals in found]
    rows.append([make_name(MACRO_TITLE), count_exact(metrics["scores"]["rooms"]), *macro])
    headers = ["kind of question, %", "questions", *columns]
    note = (
        "The same questions, asked of each. In brackets: 95 % intervals. tools/compare.py compares runs question by"
        " question."
    )
    if others:
        note += f" Left out, because they answered other questions: {', '.join(others)}."
    listed = [element("li", describe_run(name, run, run_dir)) for name, run in columns.items()]
    table = make_table(headers, rows, numeric=range(1, len(headers)), strong=[len(rows) - 1])
    return make_section("Side by side", table, element("ul", *listed, class_="notes small"), note=note)


def make_other_scores(scores: dict[str, Any]) -> Markup:
    """Every number of every question type."""
    rows = [
        [name, score.replace("_", " "), f"{value:.4f}"]
        for name, row in scores["types"].items()
        for score, value in row.items()
        if score not in {"num_questions", "main_score"}
    ]
    return make_details(f"All {len(rows)} scores", make_table(["question type", "score", "value"], rows, numeric=[2]))


def make_scores_section(
    scores: dict[str, Any], intervals: Mapping[str, Any], baselines: dict[str, dict[str, Any] | None]
) -> Markup:
    """The main scores beside the baselines, and all others, to unfold."""
    number = count(len(scores["types"]), "kind", "kinds")
    table = make_details(
        f"Table of {number} of questions, with baselines", make_score_table(scores, intervals, baselines)
    )
    note = (
        "In brackets: 95 % intervals over scenes. Gain: points above the best of the other columns, which do not see"
        " the room. Mean relative accuracy: how close a number is, as the mean over ten tolerances."
    )
    return make_section("Scores", table, make_other_scores(scores), note=note)


def make_benchmark_section(name: str, scores: dict[str, Any], intervals: dict[str, Any]) -> Markup:
    """Every number of a benchmark, with its interval if there is one."""
    rows = [[title, value, format_interval(intervals.get(title))] for title, value in flatten_scores(scores)]
    table = make_table(["score", "value", "95 % interval over scenes"], rows, numeric=[1, 2])
    return make_section(f"Scores: {name}", make_details(f"Table of {len(rows)} scores", table, is_open=True))


__all__ = ["format_percent", "make_benchmark_section", "make_runs_section", "make_score_table", "make_scores_section"]
