"""How the gain of sharing a scene grows with the questions and with the views: a line of figures each, and a plot.

    python bench/sweep.py run --output FILE.jsonl
    python bench/sweep.py plot FILE.jsonl --output docs/pictures/many_questions.svg

`run` measures answers (`bench/answer.py`) for 1 to 128 questions and 8 to 64 views, and training steps
(`bench/train_step.py`) for 1 to 32 questions, one round each; what FILE has already is not measured again.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from ross3d.bench import answer, train_step


QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128)
TRAIN_QUESTIONS = (1, 2, 4, 8, 16, 32)
VIEWS = (8, 16, 64)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 60, 150, 30, 50
TOP_RATIO = 128


def list_cases() -> list[tuple[str, int, int]]:
    """Bench, questions, views."""
    cases = [("answer", count, 32) for count in QUESTIONS] + [("answer", 64, views) for views in VIEWS]
    return cases + [("train_step", count, 32) for count in TRAIN_QUESTIONS]


def run(file: Path) -> None:
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    known = {(line["bench"], line["questions"], line["views"]) for line in lines}
    for bench, questions, views in list_cases():
        if (bench, questions, views) in known:
            continue
        if bench == "answer":
            figures = answer.run(views, questions, rounds=1, new_tokens=8, batch=64)
        else:
            figures = train_step.run(views, questions, rounds=1, text_only=False)
        with file.open("a") as opened:
            opened.write(json.dumps(figures) + "\n")
        print(bench, questions, views, figures.get("whole_over_shared") or figures["separate_over_packed"], flush=True)


def place(questions: float, ratio: float) -> tuple[float, float]:
    """Pixels of a point; both axes are logarithmic."""
    across = math.log2(questions) / math.log2(QUESTIONS[-1])
    up = math.log2(max(ratio, 0.5) / 0.5) / math.log2(TOP_RATIO / 0.5)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def draw_series(points: list[tuple[float, float]], color: str, label: str, dashed: bool) -> str:
    """A curve with its label at its end."""
    spots = [place(x, y) for x, y in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    line = f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"{dash}/>'
    dots = "" if dashed else "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in spots)
    x, y = spots[-1]
    return f'{line}{dots}<text x="{x + 8:.1f}" y="{y + (12 if dashed else -2):.1f}" fill="{color}">{label}</text>'


def plot(lines: list[dict[str, Any]]) -> str:
    """An SVG picture: times faster than a scene a question, over the questions about it."""
    answers = sorted((line for line in lines if line["bench"] == "answer" and line["views"] == 32),
                     key=lambda line: line["questions"])  # fmt: skip
    steps = sorted((line for line in lines if line["bench"] == "train_step"), key=lambda line: line["questions"])
    axes = []
    for count in QUESTIONS:
        x, y = place(count, 0.5)
        axes.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{y:.1f}" stroke="#e3e6ea"/>')
        axes.append(f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{count}</text>')
    for ratio in (1, 2, 4, 8, 16, 32, 64, 128):
        x, y = place(1, ratio)
        axes.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#e3e6ea"/>')
        axes.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{ratio}</text>')
    series = [
        draw_series([(a["questions"], a["bound"]) for a in answers], "#2457c5", "bound", True),
        draw_series(
            [(a["questions"], a["whole_over_shared"]["median"]) for a in answers], "#2457c5", "answers", False
        ),
        draw_series([(s["questions"], s["token_bound"]) for s in steps], "#b3541e", "bound", True),
        draw_series(
            [(s["questions"], s["separate_over_packed"]["median"]) for s in steps], "#b3541e", "training", False
        ),
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    title = f'<text x="{LEFT}" y="18">times faster than reading the scene for each question</text>'
    foot = (
        f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">questions about one scene of 32 views</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
        f' font-size="12" fill="#1d2530"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{title}{foot}'
        f"{''.join(axes + series)}</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("run").add_argument("--output", type=Path, required=True, help="folder to write to")
    drawing = verbs.add_parser("plot")
    drawing.add_argument("lines", type=Path, help="file with the lines of figures")
    drawing.add_argument("--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    if options.verb == "run":
        run(options.output)
    else:
        options.output.write_text(plot([json.loads(line) for line in options.lines.read_text().splitlines()]))


if __name__ == "__main__":
    main()
