"""The page of an evaluated run: scores with baselines, reconstructions, loss curves, and scenes with their answers.

Everything is read from files of `eval.py` and `train.py`; scenes are read again with the given reader.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ross3d.data.atomic import write_text
from ross3d.data.names import check_name
from ross3d.data.scene import Scene
from ross3d.data.text_files import read_json as read_json_file
from ross3d.data.text_files import read_json_lines
from ross3d.report.bev import DrawnBox, make_bev_drawing
from ross3d.report.calibration import make_calibration_section
from ross3d.report.charts import make_line_chart
from ross3d.report.html import (
    Markup,
    clip_text,
    element,
    join,
    make_bar,
    make_details,
    make_figure,
    make_page,
    make_row,
    make_section,
    make_table,
)
from ross3d.report.summary import flatten_scores, format_interval, get_baselines, get_main_score


PAGE_NAME = "report.html"
PAGE_SCENES = 4
QUESTIONS_PER_TYPE = 2
GROUNDINGS_PER_SCENE = 6
RECORDS_FILES = {"reconstruction": "reconstruction.jsonl"}
LOSS_COLORS = {
    "loss": "#1c2430",
    "lm_loss": "#2457c5",
    "grounding_loss": "#14804a",
    "view_loss": "#d9730d",
    "bev_loss": "#8e44ad",
}
OTHER_COLOR = "#5c677d"
PREDICTOR_NAMES = {
    "one_sample": "one sample",
    "mean_of_samples": "mean of samples",
    "teacher": "VAE round trip (upper bound)",
    "mean_picture": "mean training image",
    "other_scene": "another scene's states, same positions",
    "positions_only": "positions only, all views masked",
}
REGION_NAMES = {
    "view": "masked views",
    "bev_object": "bird's-eye picture: objects",
    "bev_rest": "bird's-eye picture: background",
}
TARGET_COLOR, RIGHT_COLOR, WRONG_COLOR = "#ffd60a", "#34c759", "#ff453a"


def read_json(path: Path) -> Any:
    return read_json_file(path, "a file of eval.py or train.py", kind=dict) if path.is_file() else None


def read_records(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [record for _, record in read_json_lines(path, "a record of eval.py", keys=["task", "id", "scene_id"])]


def read_all_records(run_dir: Path, metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of all tasks, from the file of each task.

    Raises:
        FileNotFoundError: a task has scores, but its file is missing.
    """
    noted = metrics.get("records_files", {})
    # Older runs, which did not record the names, had these two files.
    files = {task: RECORDS_FILES.get(task, "predictions.jsonl") for task in metrics["scores"]}
    files |= {task: check_name(name, f"{run_dir / 'metrics.json'}, records_files") for task, name in noted.items()}
    for task, name in files.items():
        if metrics["scores"].get(task) and task != "reconstruction" and not (run_dir / name).is_file():
            raise FileNotFoundError(
                f"{run_dir / name}: expected the answers scored in metrics.json, got no such file; restore it, or"
                " evaluate again."
            )
    return [record for name in dict.fromkeys(files.values()) for record in read_records(run_dir / name)]


def read_loss_history(model: str) -> list[dict[str, float]]:
    """The Trainer's log of a checkpoint folder; empty if there is none (a Hub id, a converted checkpoint)."""
    folder = Path(model)
    states = [folder / "trainer_state.json", *sorted(folder.glob("checkpoint-*/trainer_state.json"))]
    found = [state for state in states if state.is_file()]
    return read_json(found[0])["log_history"] if found else []


def format_percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def make_score_table(scores: dict[str, Any], baselines: dict[str, dict[str, Any] | None]) -> Markup:
    """A table with a row per question type: scores of the model and of each baseline, and the number of questions."""
    columns = list(baselines)
    rows = []

    def make_cells(own: float | None, others: Sequence[float | None]) -> list:
        known = [value for value in others if value is not None]
        gain = "–" if own is None or not known else f"{100 * (own - max(known)):+.1f}"
        bar = "" if own is None else make_bar(own)
        return [join([bar, format_percent(own)]), *map(format_percent, others), gain]

    for name, row in scores["types"].items():
        others = [get_main_score(baselines[column], name) for column in columns]
        label = row["main_score"].replace("_", " ")
        rows.append([name, label, row["num_questions"], *make_cells(row[row["main_score"]], others)])
    macro = [(baselines[column] or {}).get("macro_exact_match") for column in columns]
    exact = [row["num_questions"] for row in scores["types"].values() if row["main_score"] == "exact_match"]
    cells = make_cells(scores["macro_exact_match"], macro)
    rows.append(["mean of exact-match types", "exact match", sum(exact), *cells])
    headers = ["question type", "score", "questions", "model, %", *[f"{name}, %" for name in columns], "gain, points"]
    return make_table(headers, rows, numeric=range(2, len(headers)), strong=[len(rows) - 1])


def make_other_scores(scores: dict[str, Any]) -> Markup:
    """Every number of every question type."""
    rows = [
        [name, score.replace("_", " "), f"{value:.4f}"]
        for name, row in scores["types"].items()
        for score, value in row.items()
        if score not in {"num_questions", "main_score"}
    ]
    return make_details("All scores", make_table(["question type", "score", "value"], rows, numeric=[2]))


def make_benchmark_section(name: str, scores: dict[str, Any], intervals: dict[str, Any]) -> Markup:
    """Every number of a benchmark, with its interval if there is one."""
    rows = [[title, value, format_interval(intervals.get(title))] for title, value in flatten_scores(scores)]
    table = make_table(["score", "value", "95 % interval over scenes"], rows, numeric=[1, 2])
    return make_section(f"Scores: {name}", table)


def make_reconstruction_section(scores: dict[str, Any]) -> Markup:
    """PSNR of each predictor, and paired differences with their intervals."""
    regions = [name for name in REGION_NAMES if name in scores]
    headers = ["PSNR, dB", *[f"{REGION_NAMES[r]} ({scores[r]['num_pictures']})" for r in regions]]
    rows = [[label, *[f"{scores[r]['psnr'][name]:.2f}" for r in regions]] for name, label in PREDICTOR_NAMES.items()]
    differences = []
    for region in regions:
        for name, row in scores[region]["differences"].items():
            ours, control = (PREDICTOR_NAMES[part] for part in name.split(" - "))
            look = "good" if row["low"] > 0 else "bad" if row["high"] < 0 else "soft"
            interval = element("span", f"{row['low']:+.2f} … {row['high']:+.2f}", class_=look)
            differences.append([REGION_NAMES[region], ours, control, f"{row['mean']:+.2f}", interval])
    table = make_table(["region", "ours", "against", "difference, dB", "95 % interval"], differences, numeric=[3, 4])
    note = (
        f"{scores['num_scenes']} held-out scenes. Masked views are replaced by the mask token and keep their 3D"
        " positions. Differences are paired, and the bootstrap resamples whole scenes; green intervals are above"
        " zero, red ones below."
    )
    first = make_table(headers, rows, numeric=range(1, len(headers)), strong=[1])
    return make_section("Reconstruction", first, element("h3", "Paired differences"), table, note=note)


def make_loss_section(history: Sequence[dict[str, float]]) -> Markup:
    """One chart for each named loss of the Trainer's log."""
    charts = []
    # The Trainer's own summary at the end of a run is not part of a curve.
    logged = {name for row in history for name in row if name.endswith("_loss") and name != "train_loss"}
    for name in [*LOSS_COLORS, *sorted(logged - LOSS_COLORS.keys())]:
        rows = [(row["step"], row[name]) for row in history if name in row and "step" in row]
        if rows:
            charts.append(make_line_chart(name, *zip(*rows, strict=True), color=LOSS_COLORS.get(name, OTHER_COLOR)))
    if not charts:
        note = "No loss curves: the model folder has no trainer_state.json."
        return make_section("Losses", note=note)
    note = "Mean loss since the previous log entry, over optimizer steps; the dark line is smoothed."
    return make_section("Losses", element("div", *charts, class_="charts"), note=note)


def choose_scenes(records: Sequence[dict], pictures_dir: Path, tasks: dict[str, dict]) -> list[tuple[str, str]]:
    """Scenes to show, with their path below the data: those with saved pictures, then those with most questions."""
    counts: Counter[tuple[str, str]] = Counter()
    for record in records:
        task = tasks[record["task"]]
        if task["scene_path"] is not None:
            path = task["scene_path"].format(split=task["split"], scene_id=record["scene_id"])
            counts[record["scene_id"], path] += 1
    pictured = {path.name for path in pictures_dir.iterdir()} if pictures_dir.is_dir() else set()
    return sorted(counts, key=lambda scene: (scene[0] not in pictured, -counts[scene], scene))[:PAGE_SCENES]


def make_mark(right: bool | None) -> Markup:
    """A tick for right answers, a cross for wrong ones, a dash for answers that are neither."""
    if right is None:
        return element("span", "–", class_="soft")
    return element("span", "✓" if right else "✗", class_="good" if right else "bad")


def describe_confidence(record: dict[str, Any]) -> str:
    """A record's confidence in percent, or without one its raw token probability, or margin to "no target"."""
    if record.get("confidence") is not None:
        return f"{100 * record['confidence']:.0f} %"
    if record.get("token_probability") is not None:
        return f"p {record['token_probability']:.2f}"
    return "" if record.get("margin") is None else f"margin {record['margin']:+.2f}"


def make_answer_table(records: Sequence[dict[str, Any]]) -> Markup:
    """Some questions of each type with the model's and the right answers, and how sure the model is."""
    rows, shown = [], {}
    for record in records:
        kind = record["question_type"]
        shown[kind] = shown.get(kind, 0) + 1
        if record["prediction"] is None or shown[kind] > QUESTIONS_PER_TYPE:
            continue
        mark = make_mark(record["right"])
        coords = record["query_coords"]
        question = record["question"]
        if coords is not None:
            question = question.replace("<coord>", "(" + ", ".join(f"{value:.1f}" for value in coords) + ")")
        kind = element("span", kind, class_="whole")
        answer = clip_text(record["prediction"]) or "(nothing)"
        rows.append([mark, kind, question, answer, describe_confidence(record), record["references"][0]])
    return make_table(["", "type", "question", "answer", "confidence", "right answer"], rows, numeric=[4])


def make_grounding_figure(record: dict[str, Any], scene: Scene) -> Markup:
    """Target boxes dashed, predicted ones green where the answer is right and red where it is wrong."""
    predicted = record["answer_boxes"]
    color = RIGHT_COLOR if record["right"] else WRONG_COLOR
    boxes = [DrawnBox(box, color, width=6.0) for box in predicted]
    boxes += [DrawnBox(box, TARGET_COLOR, dashed=True, width=3.0) for box in record["target_boxes"]]
    said = f"{len(predicted)} found" if predicted else "no target"
    sure = describe_confidence(record)
    said = f"{said}, {sure}" if sure else said
    caption = join(
        [
            make_mark(record["right"]),
            " " + record["question"],
            element("span", f" ({said}, {len(record['target_boxes'])} to find)", class_="soft"),
        ]
    )
    return make_bev_drawing(
        scene.bev_image, scene.bev_bounds, boxes, caption=caption, width=250, has_metres=scene.depth_maps is not None
    )


def choose_groundings(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Some grounding questions, alternating between kinds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record["prediction"] is None:
            groups.setdefault(record["question_type"], []).append(record)
    turns = [record for turn in range(GROUNDINGS_PER_SCENE) for g in groups.values() for record in g[turn : turn + 1]]
    return turns[:GROUNDINGS_PER_SCENE]


def make_reconstruction_row(folder: Path, name: str, title: str) -> Markup:
    """The saved pictures of one masked view, or of the bird's-eye picture."""
    figures = [make_figure(folder / f"{name}_truth.png", f"{title}: original", width=134)]
    figures += [
        make_figure(folder / f"{name}_{predictor}.png", label, width=134)
        for predictor, label in PREDICTOR_NAMES.items()
        if (folder / f"{name}_{predictor}.png").is_file()
    ]
    return make_row(*figures)


def make_scene_section(
    scene: Scene, records: Sequence[dict[str, Any]], rebuilt: dict[str, Any] | None, pictures: Path
) -> Markup:
    """One scene: views, bird's-eye picture, reconstructions, questions and grounded boxes."""
    masked = [rebuilt_view["view"] for rebuilt_view in rebuilt["views"]] if rebuilt else []
    views = [
        make_figure(image, f"view {index}" + (", masked" if index in masked else ""), 112, masked=index in masked)
        for index, image in enumerate(scene.images)
    ]
    parts: list[Markup] = [make_row(*views)]
    if scene.bev_bounds is not None:
        drawn = make_bev_drawing(
            scene.bev_image, scene.bev_bounds, cam2world=scene.cam2world, masked=masked, width=300,
            has_metres=scene.depth_maps is not None,
            caption="bird's-eye picture with cameras; masked views in orange",
        )  # fmt: skip
        parts += [element("h3", "Bird's-eye picture"), make_row(drawn)]
    if rebuilt and (pictures / scene.scene_id).is_dir():
        folder = pictures / scene.scene_id
        rows = [make_reconstruction_row(folder, f"view{v:02d}", f"view {v}") for v in masked]
        if (folder / "bev_truth.png").is_file():
            rows.append(make_reconstruction_row(folder, "bev", "bird's-eye picture"))
        parts += [element("h3", "Reconstructions"), *(element("div", row, style="margin-bottom:14px") for row in rows)]
    if records:
        judged = [record["right"] for record in records if record["right"] is not None]
        parts += [element("h3", f"Questions ({sum(judged)} of {len(judged)} right)"), make_answer_table(records)]
    groundings = choose_groundings(records)
    if groundings and scene.bev_bounds is not None:
        figures = [make_grounding_figure(record, scene) for record in groundings]
        title = "Grounding: targets in dashed yellow, right answers in green, wrong ones in red"
        parts += [element("h3", title), make_row(*figures)]
    return make_section(f"Scene {scene.scene_id}", *parts)


def make_settings_section(metrics: dict[str, Any]) -> Markup:
    facts = {"command": " ".join(metrics["command"]), "commit": metrics["commit"], **metrics["settings"]}
    rows = [[name, json.dumps(value) if not isinstance(value, str) else value] for name, value in facts.items()]
    config = element("pre", json.dumps(metrics["config"], indent=2, sort_keys=True))
    return make_section("Settings", make_table(["setting", "value"], rows), make_details("Model config", config))


def get_facts(metrics: dict[str, Any], blind: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The figures of the page's header."""
    facts = []
    rooms = metrics["scores"].get("rooms")
    if rooms:
        macro = format_percent(rooms["macro_exact_match"])
        blind_macro = blind and blind["scores"].get("rooms", {}).get("macro_exact_match")
        beside = f" (blind {format_percent(blind_macro)})" if blind_macro is not None else ""
        facts.append((f"mean exact match, %{beside}", macro))
        for name, label in (("grounding_unique", "unique grounding, %"), ("room_size", "room size, MRA %")):
            facts.append((label, format_percent(get_main_score(rooms, name))))
    rebuilt = metrics["scores"].get("reconstruction")
    for region in ("view", "bev_object"):
        if rebuilt and region in rebuilt:
            psnr = rebuilt[region]["psnr"]["mean_of_samples"]
            facts.append((f"{REGION_NAMES[region]}, PSNR dB", f"{psnr:.1f}"))
    return facts


def name_task(name: str, task: dict[str, Any]) -> str:
    """A task with its split, and the source of the boxes that its grounding chose among."""
    source = task.get("proposals")
    return f"{name} ({task['split']})" if source is None else f"{name} ({task['split']}, proposals: {source})"


def make_run_page(run_dir: Path, read_scene: Callable[[Path], Scene], blind_dir: Path | None = None) -> str:
    """The whole page as HTML.

    Args:
        run_dir (`Path`): output folder of `eval.py`.
        read_scene: folder -> `Scene`.
        blind_dir (`Path`, *optional*): output folder of the blind model's evaluation; `run_dir/blind` by default.
    """
    metrics = read_json(run_dir / "metrics.json")
    if metrics is None:
        raise FileNotFoundError(
            f"{run_dir / 'metrics.json'}: expected the output folder of eval.py, got no such file; evaluate first."
        )
    blind = read_json((blind_dir or run_dir / "blind") / "metrics.json")
    if blind is None and blind_dir is not None:
        raise FileNotFoundError(
            f"--blind {blind_dir}: expected the evaluation of the blind model, got a folder without metrics.json;"
            " give the --output folder of its eval.py."
        )
    records = read_all_records(run_dir, metrics)
    rebuilt = [record for record in records if record["task"] == "reconstruction"]
    predictions = [record for record in records if record["task"] != "reconstruction"]
    settings, sections = metrics["settings"], []
    if metrics["scores"].get("rooms"):
        scores, baselines = metrics["scores"]["rooms"], get_baselines(metrics, blind)
        note = (
            "Gain is relative to the best baseline. Blind: the same model trained and evaluated without images,"
            " coordinates and proposals. Look-up and majority use only the training answers and are omitted if there"
            " are none."
        )
        sections.append(
            make_section("Scores", make_score_table(scores, baselines), make_other_scores(scores), note=note)
        )
    for name in sorted(metrics["scores"].keys() - {"rooms", "reconstruction"}):
        intervals = metrics["intervals"].get(name, {})
        sections.append(make_benchmark_section(name, metrics["scores"][name], intervals))
    if metrics.get("calibration"):
        sections.append(make_calibration_section(metrics["calibration"]))
    if metrics["scores"].get("reconstruction"):
        sections.append(make_reconstruction_section(metrics["scores"]["reconstruction"]))
    sections.append(make_loss_section(read_loss_history(settings["model"])))
    rebuilt_by_scene = {record["scene_id"]: record for record in rebuilt}
    for scene_id, path in choose_scenes(predictions + rebuilt, run_dir / "pictures", settings["tasks"]):
        folder = Path(settings["data"]) / path
        try:
            scene = read_scene(folder)
        except FileNotFoundError:
            note = f"{folder} does not exist any more, so its images cannot be shown."
            sections.append(make_section(f"Scene {scene_id}", note=note))
            continue
        # A task may have records of another form, without a question to show.
        asked = [record for record in predictions if record["scene_id"] == scene_id and "question" in record]
        sections.append(make_scene_section(scene, asked, rebuilt_by_scene.get(scene_id), run_dir / "pictures"))
    sections.append(make_settings_section(metrics))
    names = ", ".join(name_task(name, task) for name, task in settings["tasks"].items())
    lead = f"{settings['model']} on {settings['data']}: {names}."
    return make_page("ross3d: evaluation results", lead, get_facts(metrics, blind), sections)


def write_page(path: Path, page: str) -> Path:
    """Write a page atomically; returns its path."""
    write_text(path, page)
    return path


def write_run_page(run_dir: Path, read_scene: Callable[[Path], Scene], blind_dir: Path | None = None) -> Path:
    """Write `make_run_page` to `run_dir/report.html`."""
    run_dir = Path(run_dir)
    return write_page(run_dir / PAGE_NAME, make_run_page(run_dir, read_scene, blind_dir))


__all__ = ["make_run_page", "write_page", "write_run_page"]
