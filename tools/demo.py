"""Build, train and evaluate a small Ross3D from scratch, with an HTML page: what `make demo` runs.

    python -m ross3d.tools.demo [--config configs/tiny.yaml] [--output outputs/demo] [--train-scenes N]
        [--val-scenes N] [--sampler-steps N]

Builds rooms, trains the model and, at the same time, a blind one (same architecture and steps, words only), evaluates
both on held-out rooms and writes the page. An interrupted demo resumes when it is restarted.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ross3d.command_line import COUNT, add_debug, parse_path, run_program
from ross3d.data.text_files import read_json
from ross3d.report.run import write_run_page
from ross3d.report.summary import format_summary
from ross3d.tools.view import get_run_reader


ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    # glibc returns large blocks to the system after each use; keeping them saves a quarter of a training step.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    # Waiting threads yield their core sooner: equally fast on idle cores, and if another program takes a core, a step
    # takes one second instead of thirteen.
    "GOMP_SPINCOUNT": "3000",
}


@dataclass
class Stage:
    """Commands that run in parallel, each with its number of threads."""

    name: str
    budget_seconds: int
    commands: list[list[str]]
    threads: list[int]


def plan(arguments: argparse.Namespace) -> list[Stage]:
    """The stages of a demo, with the seconds each may take on two idle cores."""
    python, output = sys.executable, arguments.output
    scenes, model, blind_model = output / "scenes", output / "model", output / "blind_model"
    common = [python, str(ROOT / "train.py"), arguments.config, "--data.root", str(scenes)]
    evaluate = [python, str(ROOT / "eval.py"), "--data", str(scenes), "--report", "false"]
    rebuild = ["--num_inference_steps", str(arguments.sampler_steps)]
    build = [python, "-m", "ross3d.scenes.build", "--output", str(scenes), "--train", str(arguments.train_scenes)]
    return [
        Stage("build rooms", 50, [[*build, "--val", str(arguments.val_scenes)]], [1]),
        Stage("train", 365, [[*common, "--trainer.output_dir", str(model)]], [2]),
        Stage(
            "train blind",
            125,
            [[*common, "--trainer.output_dir", str(blind_model), "--data.blind", "true"]],
            [2],
        ),
        Stage(
            "evaluate",
            60,
            [
                [
                    *evaluate,
                    "--model",
                    str(model),
                    "--task",
                    "rooms,reconstruction",
                    "--output",
                    str(output),
                    *rebuild,
                ],
                [
                    *[*evaluate, "--model", str(blind_model), "--task", "rooms", "--blind", "true"],
                    *["--output", str(output / "blind")],
                ],
            ],
            [2, 1],
        ),
    ]


def run_stage(stage: Stage) -> float:
    """Run a stage's commands to their end; returns the seconds it took.

    Raises:
        SystemExit: when a command fails, with the command that reproduces the failure.
    """
    print(f"== {stage.name} (budget {stage.budget_seconds} s on two idle cores)", flush=True)
    started = time.monotonic()
    running = []
    for command, threads in zip(stage.commands, stage.threads, strict=True):
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment))
    for process, command in zip(running, stage.commands, strict=True):
        if process.wait() != 0:
            raise SystemExit(f"{stage.name} failed; run it alone with:\n  {' '.join(map(str, command))}")
    seconds = time.monotonic() - started
    print(f"== {stage.name}: {seconds:.0f} s of {stage.budget_seconds} s", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/tiny.yaml", help="training configuration, a file of configs/")
    parser.add_argument(
        "--output", type=parse_path, default=Path("outputs/demo"), help="folder for rooms, models and the HTML page"
    )
    parser.add_argument("--train-scenes", type=COUNT, default=2200, help="number of training rooms")
    parser.add_argument("--val-scenes", type=COUNT, default=250, help="number of evaluation rooms")
    parser.add_argument("--sampler-steps", type=COUNT, default=20, help="sampler steps per image")
    add_debug(parser)
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    seconds = {stage.name: run_stage(stage) for stage in plan(arguments)}
    page = write_run_page(arguments.output, get_run_reader(arguments.output))
    metrics, blind = (
        read_json(folder / "metrics.json", "the metrics of eval.py", kind=dict)
        for folder in (arguments.output, arguments.output / "blind")
    )
    print(format_summary(metrics, blind))
    print("seconds:", json.dumps({name: round(value) for name, value in seconds.items()}))
    print(f"metrics      {arguments.output / 'metrics.json'}")
    print(f"predictions  {arguments.output / 'predictions.jsonl'}")
    print(f"report       {page}")


if __name__ == "__main__":
    run_program(main)
