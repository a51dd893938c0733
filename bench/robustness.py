"""How scores change with the quality of a scan: held-out rooms with errors of known size, evaluated by eval.py.

    python bench/robustness.py run --data outputs/rooms --models [NAME=]FOLDER ... --output outputs/robustness
        [--split val] [--rooms 100] [--kinds depth_noise,views]
    python bench/robustness.py plot --output outputs/robustness

`run` writes the rooms with one kind of error of one size (`CURVES`), lets eval.py answer all questions about them with
each model, and adds a line of JSON to OUTPUT/robustness.jsonl: the scores of all question types with their 95 %
intervals, rooms resampled. What has its line is not run again; an evaluation that was cut off goes on where it was.
`plot` draws OUTPUT/KIND.svg, a panel for each question type and a curve for each model.

Grounding chooses among boxes that are proposed from the depth with its errors and written as given ones: of several
boxes of one object none is dropped, so "several targets" can be lower than with `--proposals depth`. Errors of a room
are the same numbers at each size, scaled. Questions stay as they are, also where fewer views no longer show what they
ask about; only the order of appearance depends on the views, so that it is not asked with fewer of them. Readers
refuse some scans whose cameras are plainly wrong: here they are answered all the same, and counted.
"""

import argparse
import contextlib
import json
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ross3d.bench.harness import describe_run
from ross3d.command_line import COUNT, add_debug, parse_path, run_program
from ross3d.data import sources
from ross3d.data.annotations import Annotation, find_annotations, load_annotations, save_annotations
from ross3d.data.atomic import write_text
from ross3d.data.consistency import ConsistencyWarning, check_consistency
from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.eval import EvalArguments, get_fingerprint
from ross3d.eval import main as evaluate
from ross3d.report.charts import choose_ticks, format_tick, make_text
from ross3d.report.html import Markup, element
from ross3d.tasks import rooms
from ross3d.tasks.task import limit_scenes


LINES = "robustness.jsonl"
CLEAN = "none"
# Readings are lost in squares: a picture has this many of them along its shorter side.
SQUARES = 16
COLORS = ("#2457c5", "#b3541e", "#14804a", "#7b3fa0", "#c0392b", "#5b6675")
COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 4, 250, 170
LEFT, RIGHT, TOP, BOTTOM, HEAD = 40, 12, 26, 22, 46

Perturb = Callable[[Scene, float, np.random.Generator], Scene]
# Level, score and the ends of its interval, per cent.
Point = tuple[float, float, float, float]


def add_depth_noise(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Independent normal errors of each reading, `level` per cent of the depth as standard deviation."""
    noise = rng.standard_normal(scene.depth_maps.shape).astype(np.float32)
    return replace(scene, depth_maps=scene.depth_maps * np.maximum(1 + level / 100 * noise, 0.05))


def add_depth_holes(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """`level` per cent of the squares of each depth map without a reading."""
    num_views, height, width = scene.depth_maps.shape
    side = max(1, min(height, width) // SQUARES)
    grid = (num_views, -(-height // side), -(-width // side))
    lost = rng.random(grid) < level / 100
    lost = lost.repeat(side, axis=1).repeat(side, axis=2)[:, :height, :width]
    return replace(scene, depth_maps=np.where(lost, np.float32(0), scene.depth_maps))


def turn_cameras(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Each camera turned about its own centre, by `level` degrees as root mean square."""
    turns = Rotation.from_rotvec(np.deg2rad(level) / np.sqrt(3) * rng.standard_normal((scene.num_views, 3)))
    cam2world = scene.cam2world.copy()
    cam2world[:, :3, :3] = cam2world[:, :3, :3] @ turns.as_matrix()
    return replace(scene, cam2world=cam2world)


def move_cameras(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Each camera moved, by `level` centimetres as root mean square."""
    cam2world = scene.cam2world.copy()
    cam2world[:, :3, 3] += level / 100 / np.sqrt(3) * rng.standard_normal((scene.num_views, 3))
    return replace(scene, cam2world=cam2world)


def scale_focal_length(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Focal lengths `level` per cent too long or too short, the same for all views of a room."""
    intrinsics = scene.intrinsics.copy()
    intrinsics[..., [0, 1], [0, 1]] *= 1 + rng.choice((-1, 1)) * level / 100
    return replace(scene, intrinsics=intrinsics)


def leave_out_views(scene: Scene, level: float, _: np.random.Generator) -> Scene:
    """`level` views, evenly spread."""
    kept = np.linspace(0, scene.num_views, min(int(level), scene.num_views), endpoint=False).astype(int)
    return replace(
        scene,
        images=scene.images[kept],
        depth_maps=scene.depth_maps[kept],
        cam2world=scene.cam2world[kept],
        view_names=[scene.view_names[view] for view in kept],
    )


def leave_out_proposals(scene: Scene, level: float, rng: np.random.Generator) -> Scene:
    """Each proposed box missing with a probability of `level` per cent."""
    return replace(scene, proposal_boxes=scene.proposal_boxes[rng.random(len(scene.proposal_boxes)) >= level / 100])


@dataclass(frozen=True)
class Curve:
    """One kind of error.

    Attributes:
        title (`str`): of the axis.
        levels (`tuple`): sizes, the rooms as they are left out.
        perturb: (scene, level, rng) -> the scene with the error.
        after_proposals (`bool`): whether it changes the proposals, not what they are made from.
    """

    title: str
    levels: tuple[float, ...]
    perturb: Perturb
    after_proposals: bool = False


CURVES = {
    "depth_noise": Curve("noise of depth, % of the depth", (1, 2, 5, 10), add_depth_noise),
    "depth_holes": Curve("pixels without depth, %", (10, 25, 50, 75, 90), add_depth_holes),
    "camera_turn": Curve("error of the cameras' rotation, degrees", (0.5, 1, 2, 5), turn_cameras),
    "camera_move": Curve("error of the cameras' position, cm", (1, 2, 5, 10, 20), move_cameras),
    "focal_length": Curve("error of the focal length, %", (2, 5, 10), scale_focal_length),
    "views": Curve("views", (1, 2, 3, 4, 6), leave_out_views),
    "missing_proposals": Curve("missing proposals, %", (10, 25, 50, 75), leave_out_proposals, after_proposals=True),
}


# ---- rooms with errors


@dataclass
class Counts:
    """Rooms of which there is something to tell: refused by readers, without any proposal from depth; and views."""

    refused: int = 0
    without_proposals: int = 0
    views: int = 0


def make_room(scene: Scene, kind: str, level: float) -> tuple[Scene, bool, bool]:
    """The scene with one error and proposals from its depth; whether readers refuse it, and whether none was found."""
    curve = CURVES.get(kind)
    # The same numbers at each level and in each run.
    rng = np.random.default_rng(zlib.crc32(f"{kind}/{scene.scene_id}".encode()))
    scene = replace(scene, bev_image=None, bev_valid=None, bev_bounds=None)
    if curve is not None and not curve.after_proposals:
        scene = curve.perturb(scene, level, rng)
    is_refused = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConsistencyWarning)
            check_consistency(scene)
    except ValueError:
        is_refused = True
    try:
        boxes = propose_boxes(scene).boxes
    # Where much of what is seen lies below the floor.
    except ValueError:
        boxes = np.zeros((0, 6), np.float32)
    scene = replace(scene, proposal_boxes=boxes)
    if curve is not None and curve.after_proposals:
        scene = curve.perturb(scene, level, rng)
    return scene, is_refused, len(boxes) == 0


def make_rooms(
    source: Path, annotations: list[Annotation], split: str, error: tuple[str, float], folder: Path
) -> Counts:
    """Write the rooms of `annotations` with an error (kind, level), and the questions, into a data folder.

    A complete folder is left alone: an evaluation that was cut off goes on with the same files.
    """
    told = folder / "counts.json"
    if told.is_file():
        return Counts(**json.loads(told.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    counts = Counts()
    for name in dict.fromkeys(annotation.scene_id for annotation in annotations):
        scene = sources.read_scene(source / split / name)
        scene, is_refused, has_none = make_room(scene, *error)
        counts.refused += is_refused
        counts.without_proposals += has_none
        counts.views = max(counts.views, scene.num_views)
        write_rgbd_folder(scene, folder / split / name)
    asked = [row for row in annotations if error[0] != "views" or row.question_type != "obj_appearance_order"]
    save_annotations(asked, folder / "annotations" / f"{split}.jsonl")
    write_text(told, json.dumps(vars(counts)))
    return counts


@contextlib.contextmanager
def accept_any_scan() -> Iterator[None]:
    """Let readers take cameras and depth that disagree, which are the question here."""
    accepted = mock.patch.multiple(sources, check_consistency=lambda scene: None, check_world=lambda scene: None)
    with accepted, warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.filterwarnings("ignore", message=".*no training questions")
        yield


def evaluate_rooms(model: str, data: Path, split: str, output: Path) -> dict[str, Any]:
    """`metrics.json` of eval.py."""
    arguments = EvalArguments(
        model=model, task=rooms.NAME, data=data, output=output, split=split, proposals="given", report=False
    )
    with accept_any_scan():
        return evaluate(arguments)


# ---- lines


def parse_models(texts: Sequence[str]) -> dict[str, str]:
    """`NAME=FOLDER`, or a folder or Hub id whose last part is its name -> name to model."""
    models = {}
    for text in texts:
        name, _, model = text.rpartition("=")
        name = name or Path(model).name
        if not model or name in models:
            raise ValueError(
                f"--models: expected models of different names, got {text!r} among {list(texts)}; write NAME=FOLDER."
            )
        models[name] = model
    return models


def list_errors(kinds: Sequence[str]) -> list[tuple[str, float]]:
    """The rooms as they are, then each kind of error at each of its sizes."""
    return [(CLEAN, 0.0), *((kind, float(level)) for kind in kinds for level in CURVES[kind].levels)]


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def get_key(line: dict[str, Any]) -> tuple:
    return tuple(line[name] for name in ("model", "model_sha256", "split", "rooms", "kind", "level"))


def run(data: Path, models: dict[str, str], output: Path, split: str, limit: int, kinds: Sequence[str]) -> None:
    """Add the lines that the file does not have."""
    annotations = load_annotations(find_annotations(data, split))
    annotations = limit_scenes([row for row in annotations if row.task == rooms.NAME], limit)
    if not annotations:
        raise ValueError(f"--data {data}: expected questions of rooms in {split}, got none; see scenes/build.py.")
    num_rooms = len({row.scene_id for row in annotations})
    hashes = {name: get_fingerprint(model) for name, model in models.items()}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    output.mkdir(parents=True, exist_ok=True)
    known = {get_key(line) for line in read_lines(output / LINES)}
    for kind, level in list_errors(kinds):
        begun = {
            name: {"model": name, "model_sha256": hashes[name], "split": split, "rooms": num_rooms}
            | {"kind": kind, "level": level}
            for name in models
        }
        wanted = [name for name, line in begun.items() if get_key(line) not in known]
        if not wanted:
            continue
        place = f"{split}_{num_rooms}_{kind}_{level:g}"
        folder = output / "data" / place
        counts = make_rooms(data, annotations, split, (kind, level), folder)
        for name in wanted:
            answers = output / "answers" / place / f"{name}_{str(hashes[name])[:8]}"
            metrics = evaluate_rooms(models[name], folder, split, answers)
            line = {"bench": "robustness", **describe_run(device), **begun[name], **vars(counts)}
            line |= {"macro_exact_match": metrics["scores"][rooms.NAME]["macro_exact_match"]}
            line |= {"scores": metrics["intervals"][rooms.NAME]}
            with (output / LINES).open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(f"{kind} {level:g}: {name}", flush=True)
        shutil.rmtree(folder)


# ---- plots


def find_points(lines: Sequence[dict[str, Any]], kind: str, question_type: str) -> list[Point]:
    """Points of one model's lines, the rooms as they are among them, by level."""
    points = {}
    for line in lines:
        score = line["scores"].get(question_type)
        if line["kind"] in (kind, CLEAN) and score is not None:
            level = line["views"] if kind == "views" else line["level"]
            # A single room has no interval.
            ends = (score["mean"] if score[end] is None else score[end] for end in ("low", "high"))
            points[level] = (level, *(100 * value for value in (score["mean"], *ends)))
    return [points[level] for level in sorted(points)]


def draw_panel(title: str, curves: dict[str, list[Point]], colors: dict[str, str]) -> Markup:
    """Scores of one question type over the size of the error, 0 to 100 per cent, with their intervals."""
    levels = [point[0] for points in curves.values() for point in points]
    first, last = min(levels), max(max(levels), min(levels) + 1e-9)

    def place(level: float, score: float) -> str:
        x = LEFT + (level - first) / (last - first) * (PANEL_WIDTH - LEFT - RIGHT)
        return f"{x:.1f},{TOP + (100 - score) / 100 * (PANEL_HEIGHT - TOP - BOTTOM):.1f}"

    parts = [make_text(LEFT, 16, title, "start", "#1d2530", 12)]
    for score in (0, 50, 100):
        y = place(first, score).split(",")[1]
        parts.append(element("line", x1=LEFT, x2=PANEL_WIDTH - RIGHT, y1=y, y2=y, stroke="#e3e6ea"))
        parts.append(make_text(LEFT - 6, float(y) + 4, str(score), "end"))
    for tick in choose_ticks(first, last):
        x = float(place(tick, 0).split(",")[0])
        parts.append(make_text(x, PANEL_HEIGHT - 6, format_tick(tick), "middle"))
    for name, points in curves.items():
        band = [place(level, high) for level, _, _, high in points]
        band += [place(level, low) for level, _, low, _ in reversed(points)]
        parts.append(element("polygon", points=" ".join(band), fill=colors[name], opacity=0.12))
        path = " ".join(place(level, score) for level, score, _, _ in points)
        parts.append(element("polyline", points=path, fill="none", stroke=colors[name], stroke_width=2))
    return element("g", *parts)


def draw_curve(kind: str, lines: Sequence[dict[str, Any]]) -> str:
    """An SVG picture with a panel for each question type."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_model.setdefault(line["model"], []).append(line)
    colors = {name: COLORS[place % len(COLORS)] for place, name in enumerate(by_model)}
    panels = []
    for question_type in rooms.MAIN_SCORES:
        found = {name: find_points(of_model, kind, question_type) for name, of_model in by_model.items()}
        found = {name: points for name, points in found.items() if len(points) > 1}
        if found:
            panels.append(draw_panel(f"{question_type.replace('_', ' ')}, %", found, colors))
    places = [(PANEL_WIDTH * (n % COLUMNS), HEAD + PANEL_HEIGHT * (n // COLUMNS)) for n in range(len(panels))]
    placed = [
        element("g", panel, transform=f"translate({x},{y})") for panel, (x, y) in zip(panels, places, strict=True)
    ]
    width, height = PANEL_WIDTH * COLUMNS, HEAD + PANEL_HEIGHT * -(-len(panels) // COLUMNS)
    head = [make_text(LEFT, 20, f"Scores over {CURVES[kind].title}", "start", "#1d2530", 15)]
    head += [make_text(LEFT + 160 * n, 40, name, "start", colors[name], 13) for n, name in enumerate(by_model)]
    drawing = element(
        "svg", element("rect", width=width, height=height, fill="white"), *head, *placed,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {width} {height}", font_family="sans-serif",
    )  # fmt: skip
    return f"{drawing}\n"


def plot(output: Path) -> list[Path]:
    """Draw what has lines; returns the files.

    Raises:
        ValueError: for lines of several splits or numbers of rooms, which are not comparable; for no lines.
    """
    # The last line of a model that was trained again.
    lines = list({(line["model"], line["kind"], line["level"]): line for line in read_lines(output / LINES)}.values())
    if len({(line["split"], line["rooms"]) for line in lines}) != 1:
        raise ValueError(
            f"{output / LINES}: expected lines of one split and number of rooms, got"
            f" {sorted({(line['split'], line['rooms']) for line in lines})}; give each its own --output."
        )
    files = []
    for kind in CURVES:
        if any(line["kind"] == kind for line in lines):
            files.append(output / f"{kind}.svg")
            write_text(files[-1], draw_curve(kind, lines))
    return files


def parse_kinds(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= CURVES.keys():
        raise argparse.ArgumentTypeError(f"expected names of {list(CURVES)}, separated by commas, got {text!r}")
    return names


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running, drawing = verbs.add_parser("run"), verbs.add_parser("plot")
    for verb in (running, drawing):
        verb.add_argument("--output", type=parse_path, required=True, help="folder of the lines and the plots")
        add_debug(verb)
    running.add_argument("--data", type=parse_path, required=True, help="folder with the rooms and their questions")
    running.add_argument("--models", nargs="+", required=True, help="NAME=FOLDER or folders of models, side by side")
    running.add_argument("--split", default="val", help="which rooms of --data")
    running.add_argument("--rooms", type=COUNT, default=100, help="at most this many rooms")
    running.add_argument("--kinds", type=parse_kinds, default=list(CURVES), help=f"errors: {', '.join(CURVES)}")
    options = parser.parse_args(args)
    if options.verb == "run":
        models = parse_models(options.models)
        run(options.data, models, options.output, options.split, options.rooms, options.kinds)
    for file in plot(options.output):
        print(file)


if __name__ == "__main__":
    run_program(main)
