"""Calibrate a model's confidence from an evaluation, and describe the scans that it was trained on.

    python -m ross3d.tools.calibrate RUN [--model DIR] [--data ROOMS] [--scans 400] [--train-split train]

RUN is an output folder of eval.py on rooms that the model was not trained on. Half of its rooms (by a hash of their
names) decide how token probabilities and margins to "no target" become confidences; the other half shows how well they
do. Training scans and the run's scans are read once more, to tell later when a scan is unlike the training. Writes
`calibration.json` beside the model's weights, where eval.py and tools/ask.py find it: run eval.py again with the same
options, and its answers and page have confidences, without being asked anew.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ross3d.command_line import COUNT_OR_NONE, add_debug, parse_path, run_program
from ross3d.data.annotations import find_annotations, load_annotations
from ross3d.data.likeness import (
    FALSE_ALARMS,
    MIN_SCANS,
    compute_unlikeness,
    describe_training,
    find_threshold,
)
from ross3d.data.sources import get_reading, read_scene
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.text_files import read_json
from ross3d.eval import get_fingerprint
from ross3d.metrics.calibration import compute_share_interval
from ross3d.report.calibration import format_calibration
from ross3d.report.run import read_all_records
from ross3d.tasks.confidence import VERSION, fit_confidences, is_for_fitting, name_sources
from ross3d.training.calibration import get_weights_mark, measure_seen, save_calibration
from ross3d.training.card import get_commit
from ross3d.training.checkpoint import find_checkpoint, load_processor
from ross3d.training.loading import load_model


NEEDED = ("model", "model_sha256", "data", "tasks", "num_views", "decode", "view_size", "blind")


def read_run(run: Path) -> dict[str, Any]:
    """The `metrics.json` of an evaluation with views.

    Raises:
        FileNotFoundError, ValueError: for a folder that is none, and for a blind evaluation.
    """
    file = run / "metrics.json"
    metrics = read_json(file, "the output of eval.py", keys=["settings", "scores"], remedy="evaluate again")
    missing = [name for name in NEEDED if name not in metrics["settings"]]
    if missing:
        raise ValueError(f"{file}: expected the settings of an evaluation, got none of {missing}; evaluate again.")
    if metrics["settings"]["blind"]:
        raise ValueError(
            f"{file}: expected an evaluation in which the model saw the rooms, got one with --blind true; evaluate"
            " without it."
        )
    return metrics


def find_model(name: str, sha256: str | None, option: str) -> Path:
    """The folder of the model that was evaluated.

    Raises:
        ValueError: for a Hub id, beside whose weights nothing can be written, and for another model.
    """
    if not Path(name).is_dir():
        raise ValueError(
            f"{option}: expected the folder of the evaluated model, beside whose weights calibration.json is written,"
            f" got {name!r}; copy it with `hf download` if it is a Hub id, evaluate the copy, and give --model."
        )
    folder = find_checkpoint(name, option)
    if get_fingerprint(str(folder)) != sha256:
        raise ValueError(
            f"{option}: expected the model that was evaluated (model_sha256 {sha256}), got another one in {folder};"
            " evaluate this model first."
        )
    return folder


def list_scans(data: Path, split: str) -> list[str]:
    """The scans of a split's annotations, in their order; none if there are no annotations."""
    file = find_annotations(data, split)
    return list(dict.fromkeys(item.scene_id for item in load_annotations(file))) if file.is_file() else []


def choose_evenly(names: Sequence[str], count: int) -> list[str]:
    """At most `count` of the names, evenly spread."""
    places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).astype(int))
    return [names[place] for place in places]


def measure_scans(
    model: Any, processor: Any, data: Path, split: str, names: Sequence[str], settings: dict[str, Any]
) -> tuple[list[dict[str, float]], np.ndarray]:
    """Numbers and looks (N, D) of scans, read as the evaluation did; prints how far it is."""
    reading = get_reading(
        settings["num_views"],
        settings["decode"],
        processor.view_size,
        settings.get("rotate"),
        settings.get("max_excluded"),
        bool(settings.get("allow_outside")),
    )
    numbers, looks = [], []
    for place, name in enumerate(names, start=1):
        scene = read_scene(resolve_inside(data, f"{split}/{name}", check_links=False), **reading)
        row, look = measure_seen(
            model, processor, processor(**scene.get_inputs(), return_tensors="pt"), scene.cam2world
        )
        numbers.append(row)
        looks.append(look)
        if place % 50 == 0 or place == len(names):
            print(f"scans of {split}: {place} of {len(names)}", flush=True)
    return numbers, np.stack(looks)


def compare_scans(
    folder: Path, data: Path, train_split: str, held_out: dict[str, str], settings: dict[str, Any], count: int
) -> dict[str, Any] | None:
    """What training scans are like, and how unlike them held-out scans are; None, with a sentence, without enough.

    False alarms are counted in each half of the held-out scans with the threshold that the other half gives.

    Args:
        held_out: scan -> split, of the evaluation. count: of scans of each kind, at most.
    """
    training = choose_evenly(list_scans(data, train_split), count)
    others = {split: [name for name in held_out if held_out[name] == split] for split in set(held_out.values())}
    split, names = max(others.items(), key=lambda item: len(item[1]), default=("", []))
    names = choose_evenly([name for name in names if name not in training], count)
    fitted = [is_for_fitting(name) for name in names]
    smaller_half = min(sum(fitted), len(fitted) - sum(fitted))
    if min(len(training), smaller_half) < MIN_SCANS:
        print(
            f"scans are not compared with the training: {len(training)} scans in the split {train_split!r} of {data},"
            f" {smaller_half} in half of the evaluation; {MIN_SCANS} of each are needed (--data, --train-split)"
        )
        return None
    model, processor = load_model(folder).eval(), load_processor(folder)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    numbers, looks = measure_scans(model, processor, data, train_split, training, settings)
    described = describe_training(numbers, looks)
    numbers, looks = measure_scans(model, processor, data, split, names, settings)
    largest = [
        max(compute_unlikeness(row, look, described).values()) for row, look in zip(numbers, looks, strict=True)
    ]
    halves = [[value for value, own in zip(largest, fitted, strict=True) if own == half] for half in (True, False)]
    # With the threshold of the other half each; the one that is written rests on all scans.
    alarms = sum(value > find_threshold(other) for half, other in (halves, halves[::-1]) for value in half)
    threshold = find_threshold(largest)
    return {
        "split": train_split,
        "num_views": settings["num_views"],
        "threshold": float(f"{threshold:.4g}"),
        "wanted_false_alarms": FALSE_ALARMS,
        "num_held_out": len(names),
        "false_alarms": alarms,
        "interval": [round(end, 4) for end in compute_share_interval(alarms, len(names))],
        "training": described,
    }


def parse_arguments(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=parse_path, help="output folder of eval.py on held-out rooms")
    parser.add_argument("--model", help="folder of the evaluated model (default: where the evaluation found it)")
    parser.add_argument(
        "--data", type=parse_path, help="folder of the rooms (default: where the evaluation found them)"
    )
    parser.add_argument("--train-split", default="train", help="split of --data that the model was trained on")
    parser.add_argument(
        "--scans",
        type=COUNT_OR_NONE,
        default=400,
        help="scans of the training, and of the evaluation, that are read for the comparison; 0 leaves it out",
    )
    add_debug(parser)
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> dict[str, Any]:
    """Read the run, fit, compare, write; returns the content of `calibration.json`."""
    options = parse_arguments(args)
    metrics = read_run(options.run)
    settings = metrics["settings"]
    option = "--model" if options.model else f"{options.run}/metrics.json, model"
    folder = find_model(options.model or settings["model"], settings["model_sha256"], option)
    data = options.data or Path(settings["data"])
    records = read_all_records(options.run, metrics)
    fitted = fit_confidences(records, str(options.run))
    scans = None
    if options.scans:
        tasks = settings["tasks"]
        asked = [record for record in records if tasks[record["task"]]["scene_path"] == "{split}/{scene_id}"]
        held_out = {record["scene_id"]: tasks[record["task"]]["split"] for record in asked}
        scans = compare_scans(folder, data, options.train_split, held_out, settings, options.scans)
    content = {
        "version": VERSION,
        "weights": get_weights_mark(folder),
        "commit": get_commit(),
        "evaluation": {
            "data": Path(settings["data"]).name,
            "tasks": {name: task["split"] for name, task in settings["tasks"].items()},
            "proposals": name_sources(task.get("proposals") for task in settings["tasks"].values()),
        },
        "confidence": fitted,
        "scans": scans,
    }
    file = save_calibration(folder, content)
    print(format_calibration(content))
    print(file)
    return content


if __name__ == "__main__":
    run_program(main)
