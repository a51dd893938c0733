"""The page of an evaluated run: what the model can and cannot do, examples, reconstructions, scores, losses, scenes.

Everything is read from files of `eval.py` and `train.py`; scenes are read again with the given reader. Other
evaluations that lie in folders of the run stand beside it under the names of their folders: `blind` is the blind
model, which scores are measured against.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ross3d.data.atomic import write_text
from ross3d.data.names import check_name
from ross3d.data.scene import Scene
from ross3d.data.text_files import read_json as read_json_file
from ross3d.data.text_files import read_json_lines
from ross3d.report.bev import make_bev_drawing
from ross3d.report.calibration import make_calibration_section
from ross3d.report.charts import make_line_chart
from ross3d.report.examples import (
    PICTURE_WIDTH,
    Examples,
    choose_examples,
    describe_answer,
    describe_question,
    describe_sureness,
    describe_truth,
    make_example,
    make_examples_section,
    make_mark,
)
from ross3d.report.glance import CAN, list_abilities, make_basis_section, make_glance_section
from ross3d.report.html import (
    Markup,
    element,
    make_details,
    make_figure,
    make_page,
    make_row,
    make_section,
    make_table,
)
from ross3d.report.scores import format_percent, make_benchmark_section, make_runs_section, make_scores_section
from ross3d.report.summary import get_baselines, get_main_score
from ross3d.report.words import count, shorten_path, shorten_paths


PAGE_NAME = "report.html"
# Scenes that are shown in full, and scenes whose rebuilt pictures are shown.
PAGE_SCENES, REBUILT_SCENES = 2, 3
# Types of questions whose examples stand on the first screen, if there are any.
SHOWN_FIRST = ("grounding_unique", "grounding_multiple")
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


def read_training(model: str) -> dict[str, Any]:
    """The Trainer's state of a checkpoint folder, or of its checkpoint with most steps.

    Empty if there is none, as for a Hub id or a converted checkpoint.
    """
    folder = Path(model)
    own = folder / "trainer_state.json"
    states = [own] if own.is_file() else folder.glob("checkpoint-*/trainer_state.json")
    return max(map(read_json, states), key=lambda state: state["global_step"], default={})


def read_runs(run_dir: Path, blind_dir: Path | None) -> dict[str, dict[str, Any]]:
    """Metrics of the evaluations beside a run, by the names of their folders in it; the blind one's is `blind`.

    Raises:
        FileNotFoundError: there is none in `blind_dir`.
    """
    files = {file.parent.name: file for file in sorted(run_dir.glob("*/metrics.json"))}
    if blind_dir is not None:
        files["blind"] = blind_dir / "metrics.json"
        if not files["blind"].is_file():
            raise FileNotFoundError(
                f"--blind {blind_dir}: expected the evaluation of the blind model, got a folder without metrics.json;"
                " give the --output folder of its eval.py."
            )
    return {name: read_json(file) for name, file in files.items()}


def make_reconstruction_section(scores: dict[str, Any], folders: Sequence[Path]) -> Markup:
    """Rebuilt pictures of the first scenes; PSNR of each predictor, and paired differences with their intervals.

    Args:
        folders: of the saved pictures of each scene.
    """
    regions = [name for name in REGION_NAMES if name in scores]
    headers = ["PSNR, dB", *[f"{REGION_NAMES[r]} ({scores[r]['num_pictures']})" for r in regions]]
    rows_of_scores = [
        [label, *[f"{scores[r]['psnr'][name]:.2f}" for r in regions]] for name, label in PREDICTOR_NAMES.items()
    ]
    differences = []
    for region in regions:
        for name, row in scores[region]["differences"].items():
            ours, control = (PREDICTOR_NAMES[part] for part in name.split(" - "))
            look = "good" if row["low"] > 0 else "bad" if row["high"] < 0 else "soft"
            interval = element("span", f"{row['low']:+.2f} … {row['high']:+.2f}", class_=look)
            differences.append([REGION_NAMES[region], ours, control, f"{row['mean']:+.2f}", interval])
    table = make_table(["region", "ours", "against", "difference, dB", "95 % interval"], differences, numeric=[3, 4])
    note = (
        "Some views are hidden from the model. It draws them, and the room from above, from what it saw in the others."
        " One sample is one drawing; the mean of several is blurred and scores higher. The VAE round trip is the best"
        " that can be drawn, because the model draws what the VAE decodes. The last three columns are reached without"
        " this room: the mean picture of training rooms, drawings from what was seen of another room, and drawings"
        " with every view hidden."
    )
    how = (
        f"PSNR in dB, higher is better, over {scores['num_scenes']} scenes; in brackets the number of pictures."
        " Differences are paired, and their intervals draw whole scenes again; green intervals are above zero, red"
        " ones below."
    )
    shown = folders[:REBUILT_SCENES]
    rows = [make_reconstruction_row(path) for folder in shown for path in list_rebuilt(folder)[:2]]
    title = f"Pictures of {len(shown)} of {scores['num_scenes']} scenes: of each the first hidden view, and from above"
    first = make_table(headers, rows_of_scores, numeric=range(1, len(headers)), strong=[1])
    tables = make_details(
        f"PSNR of {len(PREDICTOR_NAMES)} ways to fill in a picture, and {len(differences)} differences",
        element("p", how, class_="note"), first, element("h3", "Paired differences"), table,
    )  # fmt: skip
    return make_section("Reconstruction", *([element("h3", title), *rows] if rows else []), tables, note=note)


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
    note = (
        "Over training steps: each value is the mean since the value before, the dark line is smoothed, and the last"
        " value is the last of the log."
    )
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


def make_answer_table(records: Sequence[dict[str, Any]]) -> Markup:
    """Questions with the model's and the right answers, and how sure the model is."""
    rows = [
        [
            make_mark(record["right"]),
            element("span", record["question_type"], class_="whole"),
            describe_question(record),
            describe_answer(record),
            describe_sureness(record),
            describe_truth(record),
        ]
        for record in records
    ]
    headers = ["right?", "type", "question", "answer", "how sure", "right answer"]
    return make_table(headers, rows, numeric=[4])


def list_rebuilt(folder: Path) -> list[Path]:
    """Prefixes of the names of a scene's rebuilt pictures: first a hidden view, then from above, then other views."""
    truths = sorted(path.name.removesuffix("_truth.png") for path in folder.glob("*_truth.png"))
    views = [name for name in truths if name.startswith("view")]
    above = [name for name in truths if name not in views]
    return [folder / name for name in [*views[:1], *above, *views[1:]]]


def make_reconstruction_row(path: Path) -> Markup:
    """The saved pictures of one masked view, or of the bird's-eye picture; `path` is what their names begin with."""
    thing = "from above" if path.name == "bev" else f"view {path.name.removeprefix('view').lstrip('0') or '0'}"
    title = f"{path.parent.name}, {thing}"
    figures = [make_figure(path.with_name(f"{path.name}_truth.png"), f"{title}: original", width=134)]
    for predictor, label in PREDICTOR_NAMES.items():
        file = path.with_name(f"{path.name}_{predictor}.png")
        if file.is_file():
            figures.append(make_figure(file, label, width=134, alt=f"{title}: {label}"))
    return element("div", make_row(*figures), style="margin-bottom:14px")


def make_scene_section(
    scene: Scene, records: Sequence[dict[str, Any]], rebuilt: dict[str, Any] | None, pictures: Path
) -> Markup:
    """One scene: views, bird's-eye picture, reconstructions and all its questions."""
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
    rows = [make_reconstruction_row(path) for path in list_rebuilt(pictures / scene.scene_id)] if rebuilt else []
    parts += [element("h3", "Reconstructions"), *rows] if rows else []
    if records:
        judged = [record["right"] for record in records if record["right"] is not None]
        title = f"All {count(len(records), 'question', 'questions')}, {sum(judged)} of {len(judged)} right"
        parts += [element("h3", title), make_answer_table(records)]
    return make_details(f"Scene {scene.scene_id}", *parts)


def make_settings_section(metrics: dict[str, Any], run_dir: Path) -> Markup:
    """Command, settings and config, with paths as the page shows them."""
    shown = shorten_paths({name: metrics[name] for name in ("command", "settings", "config")}, run_dir)
    facts = {"command": " ".join(shown["command"]), "commit": metrics["commit"], **shown["settings"]}
    rows = [[name, json.dumps(value) if not isinstance(value, str) else value] for name, value in facts.items()]
    table = make_details(f"Table of {len(rows)} settings", make_table(["setting", "value"], rows))
    config = element("pre", json.dumps(shown["config"], indent=2, sort_keys=True), tabindex=0)
    note = "./ is the run's own folder, where this page was written; of other paths only the last name is shown."
    return make_section("Settings", table, make_details("Model config", config), note=note)


def get_facts(metrics: dict[str, Any], blind: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The figures of the page's header."""
    rooms = metrics["scores"].get("rooms")
    if not rooms:
        return []
    intervals = metrics["intervals"].get("rooms", {})
    blind_macro = blind and blind["scores"].get("rooms", {}).get("macro_exact_match")
    beside = f" (blind {format_percent(blind_macro)})" if blind_macro is not None else ""
    source = metrics["settings"]["tasks"]["rooms"].get("proposals")
    macro, found = rooms["macro_exact_match"], get_main_score(rooms, "grounding_unique")
    facts = []
    if macro is not None:
        label = f"exact answers, %, mean over their kinds{beside}"
        facts.append((label, format_percent(macro, intervals.get("macro_exact_match"))))
    if found is not None:
        label = "single objects found, %" + (f" (boxes: {source})" if source else "")
        facts.append((label, format_percent(found, intervals.get("grounding_unique"))))
    return [*facts, ("questions", str(rooms["num_questions"]))]


def make_lead(metrics: dict[str, Any], abilities: Sequence[Any], run_dir: Path) -> str:
    """A sentence or two: which model was asked what, and how much of it it can do."""
    settings = metrics["settings"]
    names = ", ".join(f"{name} (split {task['split']})" for name, task in settings["tasks"].items())
    model, data = (shorten_path(settings[name], run_dir) for name in ("model", "data"))
    lead = f"{model} was asked about {data}: {names}."
    if abilities:
        shown = sum(ability.verdict == CAN for ability in abilities)
        lead += f" It does {shown} of {len(abilities)} things better than can be done without seeing the room."
    return lead


def read_shown(read_scene: Callable[[Path], Scene], folder: Path) -> Scene | None:
    """A scene, or None if its files are not there any more."""
    try:
        return read_scene(folder)
    except FileNotFoundError:
        return None


def make_examples(
    groups: Sequence[Examples], settings: dict[str, Any], read_scene: Callable[[Path], Scene]
) -> dict[tuple[str, str], Markup]:
    """The examples by task and id; each scene is read once."""
    by_folder: dict[Path | None, list[dict[str, Any]]] = {}
    for record in (record for group in groups for record in group.list_chosen()):
        task = settings["tasks"][record["task"]]
        path = task["scene_path"]
        folder = None if path is None else path.format(split=task["split"], scene_id=record["scene_id"])
        by_folder.setdefault(folder and Path(settings["data"]) / folder, []).append(record)
    examples = {}
    for folder, records in by_folder.items():
        scene = None if folder is None else read_shown(read_scene, folder)
        examples |= {(record["task"], record["id"]): make_example(record, scene) for record in records}
    return examples


def make_glance_pictures(
    groups: Sequence[Examples], examples: Mapping[tuple[str, str], Markup], pictures: Path
) -> list[Markup]:
    """The surest right and wrong answer of one kind of question, and a rebuilt picture of the first scene."""
    order = [*SHOWN_FIRST, *(group.question_type for group in groups)]
    shown = []
    for group in sorted(groups, key=lambda group: order.index(group.question_type))[:1]:
        chosen = [record for right in (True, False) for record in group.chosen[right][:1]]
        shown += [examples[record["task"], record["id"]] for record in chosen]
    for folder in sorted(path for path in pictures.glob("*") if path.is_dir())[:1]:
        for path in list_rebuilt(folder)[:1]:
            kinds = {"truth": "hidden view", "one_sample": "rebuilt, one sample"}
            files = {title: path.with_name(f"{path.name}_{kind}.png") for kind, title in kinds.items()}
            shown.append(
                make_row(
                    *(
                        make_figure(file, title, PICTURE_WIDTH, alt=f"{title} of {folder.name}")
                        for title, file in files.items()
                        if file.is_file()
                    )
                )
            )
    return shown


def make_scenes_section(
    metrics: dict[str, Any], records: Sequence[dict[str, Any]], read_scene: Callable[[Path], Scene], run_dir: Path
) -> Markup | None:
    """Some scenes in full; None for an evaluation without scenes."""
    settings, pictures = metrics["settings"], run_dir / "pictures"
    rebuilt = {record["scene_id"]: record for record in records if record["task"] == "reconstruction"}
    chosen = choose_scenes(records, pictures, settings["tasks"])
    if not chosen:
        return None
    parts = []
    for scene_id, path in chosen:
        scene = read_shown(read_scene, Path(settings["data"]) / path)
        if scene is None:
            gone = shorten_path(str(Path(settings["data"]) / path), run_dir)
            parts.append(
                element("p", f"{gone} does not exist any more, so its images cannot be shown.", class_="note")
            )
            continue
        # A task may have records of another form, without a question to show.
        asked = [record for record in records if record["scene_id"] == scene_id and "question" in record]
        parts.append(make_scene_section(scene, asked, rebuilt.get(scene_id), pictures))
    number = len({record["scene_id"] for record in records})
    note = f"{len(chosen)} of {number}: those with rebuilt pictures first, then those with most questions."
    return make_section("Scenes in full", *parts, note=note)


def make_run_page(run_dir: Path, read_scene: Callable[[Path], Scene], blind_dir: Path | None = None) -> str:
    """The whole page as HTML.

    Args:
        run_dir (`Path`): output folder of `eval.py`. Evaluations in its own folders stand beside it.
        read_scene: folder -> `Scene`.
        blind_dir (`Path`, *optional*): output folder of the blind model's evaluation; `run_dir/blind` by default.
    """
    run_dir = Path(run_dir).absolute()
    metrics = read_json(run_dir / "metrics.json")
    if metrics is None:
        raise FileNotFoundError(
            f"{run_dir / 'metrics.json'}: expected the output folder of eval.py, got no such file; evaluate first."
        )
    runs = read_runs(run_dir, blind_dir)
    blind = runs.get("blind")
    scores, settings, records = metrics["scores"], metrics["settings"], read_all_records(run_dir, metrics)
    baselines = get_baselines(metrics, blind)
    # A task may have records of another form, without a question to show.
    groups = choose_examples([record for record in records if "question" in record])
    examples = make_examples(groups, settings, read_scene)
    abilities = list_abilities(metrics, baselines)
    training = read_training(settings["model"])
    pictures = run_dir / "pictures"

    sections = []
    if abilities:
        sections.append(make_glance_section(abilities, make_glance_pictures(groups, examples, pictures)))
    if scores.get("rooms"):
        sections.append(make_runs_section(metrics, runs, run_dir))
    for name in sorted(name for name in scores.keys() - {"rooms", "reconstruction"} if scores[name]):
        sections.append(make_benchmark_section(name, scores[name], metrics["intervals"].get(name, {})))
    sections.append(make_basis_section(metrics, blind, run_dir, training.get("global_step")))
    if groups:
        sections.append(make_examples_section(groups, examples))
    if scores.get("reconstruction"):
        folders = sorted(path for path in pictures.glob("*") if path.is_dir())
        sections.append(make_reconstruction_section(scores["reconstruction"], folders))
    if scores.get("rooms"):
        sections.append(make_scores_section(scores["rooms"], metrics["intervals"].get("rooms", {}), baselines))
    if metrics.get("calibration"):
        sections.append(make_calibration_section(metrics["calibration"]))
    sections.append(make_loss_section(training.get("log_history", [])))
    sections.append(make_scenes_section(metrics, records, read_scene, run_dir))
    sections.append(make_settings_section(metrics, run_dir))
    lead = make_lead(metrics, abilities, run_dir)
    shown = [section for section in sections if section is not None]
    title = "ross3d: what the model can and cannot do" if abilities else "ross3d: evaluation results"
    return make_page(title, lead, get_facts(metrics, blind), shown)


def write_page(path: Path, page: str) -> Path:
    """Write a page atomically; returns its path."""
    write_text(path, page)
    return path


def write_run_page(run_dir: Path, read_scene: Callable[[Path], Scene], blind_dir: Path | None = None) -> Path:
    """Write `make_run_page` to `run_dir/report.html`."""
    run_dir = Path(run_dir)
    return write_page(run_dir / PAGE_NAME, make_run_page(run_dir, read_scene, blind_dir))


__all__ = ["make_run_page", "write_page", "write_run_page"]
