"""An evaluated run in a few lines of plain text: the main figures of its page."""

from collections.abc import Iterator
from typing import Any


RECONSTRUCTION_ROWS = (
    ("one_sample", "one sample"),
    ("mean_of_samples", "mean of samples"),
    ("teacher", "VAE (upper bound)"),
    ("mean_picture", "mean image"),
    ("other_scene", "other scene"),
    ("positions_only", "positions only"),
)
REGIONS = (("view", "masked views"), ("bev_object", "bev objects"), ("bev_rest", "bev rest"))


def get_main_score(scores: dict[str, Any] | None, question_type: str) -> float | None:
    """The main score of a question type; None if there is none."""
    row = ((scores or {}).get("types") or {}).get(question_type)
    return None if row is None else row[row["main_score"]]


def get_baselines(metrics: dict[str, Any], blind: dict[str, Any] | None) -> dict[str, dict[str, Any] | None]:
    """Baseline scores on the rooms questions, by name."""
    known = metrics["baselines"].get("rooms", {})
    seen = {"blind": blind["scores"].get("rooms")} if blind else {}
    titles = {"lookup": "look-up", "majority": "majority"}
    return seen | {title: known[name] for name, title in titles.items() if name in known}


def format_value(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def format_rooms(scores: dict[str, Any], baselines: dict[str, dict[str, Any] | None]) -> list[str]:
    """Lines of percentages, one per question type, with the gain over the best baseline last."""
    rows = [
        (name, row["num_questions"], row[row["main_score"]], [get_main_score(b, name) for b in baselines.values()])
        for name, row in scores["types"].items()
    ]
    macro = [(scores_of or {}).get("macro_exact_match") for scores_of in baselines.values()]
    rows.append(("mean of exact-match types", "", scores["macro_exact_match"], macro))
    lines = [
        f"{'score, %':<26}{'questions':>10}{'model':>8}" + "".join(f"{n:>10}" for n in baselines) + f"{'gain':>8}"
    ]
    for name, count, own, others in rows:
        known = [value for value in others if value is not None]
        gain = f"{100 * (own - max(known)):+.1f}" if known and own is not None else "-"
        cells = "".join(f"{format_value(value):>10}" for value in others)
        lines.append(f"{name:<26}{count:>10}{format_value(own):>8}{cells}{gain:>8}")
    return lines


def format_reconstruction(scores: dict[str, Any]) -> list[str]:
    """Lines of PSNR, then the main differences with their intervals."""
    regions = [(key, title) for key, title in REGIONS if key in scores]
    lines = [f"{'PSNR, dB':<26}" + "".join(f"{title:>14}" for _, title in regions)]
    lines += [
        f"{title:<26}" + "".join(f"{scores[region]['psnr'][name]:>14.2f}" for region, _ in regions)
        for name, title in RECONSTRUCTION_ROWS
    ]
    for region, title in regions:
        for name, row in scores[region]["differences"].items():
            if name.startswith("mean_of_samples") and region != "bev_rest":
                interval = f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
                lines.append(f"{title}, {name.replace('_', ' ')}: {interval} over {row['num_pairs']}")
    return lines


def flatten_scores(scores: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of all numbers; the names of grouped ones are `group: name`."""
    for name, value in scores.items():
        if isinstance(value, dict):
            yield from flatten_scores(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", f"{value:.4f}" if isinstance(value, float) else str(value)


def format_benchmark(task: str, metrics: dict[str, Any]) -> list[str]:
    """Lines of a benchmark's scores, with intervals if there are any."""
    intervals = metrics["intervals"].get(task, {})
    lines = [f"{task}: scores, and 95 % intervals over scenes"]
    for name, value in flatten_scores(metrics["scores"][task]):
        lines.append(f"{name:<40}{value:>10}{format_interval(intervals.get(name)):>20}")
    return lines


def format_interval(interval: dict[str, Any] | None) -> str:
    """The ends of an interval in brackets; empty if there is none."""
    return "" if interval is None or interval["low"] is None else f"[{interval['low']:.4f}, {interval['high']:.4f}]"


def format_summary(metrics: dict[str, Any], blind: dict[str, Any] | None = None) -> str:
    """The main scores of `metrics.json` (and of a blind model's), as text for a terminal."""
    blocks = []
    blocks += [[f"{name}: no questions"] for name, scores in metrics["scores"].items() if not scores]
    if metrics["scores"].get("rooms"):
        rows = format_rooms(metrics["scores"]["rooms"], get_baselines(metrics, blind))
        settings = metrics["settings"]["tasks"]["rooms"]
        blocks.append([f"rooms, split {settings['split']}", *rows])
        # Evaluations of earlier code do not have it.
        source = settings.get("proposals")
        blocks[-1] += [] if source is None else [f"grounding chooses among proposals of the source: {source}"]
    for task in sorted(metrics["scores"].keys() - {"rooms", "reconstruction"}):
        if metrics["scores"][task]:
            blocks.append(format_benchmark(task, metrics))
    if metrics["scores"].get("reconstruction"):
        blocks.append(format_reconstruction(metrics["scores"]["reconstruction"]))
    return "\n\n".join("\n".join(lines) for lines in blocks)


__all__ = ["flatten_scores", "format_interval", "format_summary", "get_baselines", "get_main_score"]
