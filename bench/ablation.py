"""What each kind of supervision brings: equal steps from the same start, several seeds, paired differences.

    python bench/ablation.py run [--output outputs/ablation] [--results docs/ablation.jsonl] [--seeds 5] [--jobs 2]
    python bench/ablation.py table [--results docs/ablation.jsonl]

`run` builds rooms of our own, warms up one start a seed, trains every arm from it with the settings of `--config`,
evaluates it on held-out rooms and adds a line to the results. What has its line is not run again; training and
evaluation that were cut off go on where they were. `table` prints the lines as Markdown: mean and deviation over
seeds, and differences of arms of the same seed with their 95 % intervals (Student's t over seeds).

All arms of a seed begin with the same weights. Arms named `..._10` and `..._50` have questions about so many per cent
of the rooms, half as many in a step as the others; beside each of their rows `both_..` gets one of a room without any.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import t as student_t

from ross3d.bench.harness import describe_run
from ross3d.data.annotations import find_annotations, load_annotations, save_annotations
from ross3d.data.atomic import write_text
from ross3d.data.sources import read_scene
from ross3d.report.summary import get_main_score
from ross3d.scenes.build import build_scenes
from ross3d.tools.demo import ENVIRONMENT
from ross3d.training.arguments import read_run_arguments
from ross3d.training.build import build_model, build_processor, find_teacher, get_run_reading, list_scenes
from ross3d.training.small_vggt import build_encoder, make_config
from ross3d.training.vision_warmup import warm_up_vision


ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Arm:
    """One kind of supervision.

    Attributes:
        title (`str`): what tables call it.
        model (`dict`): changes to the model's config; `denoiser_config` None trains no reconstruction.
        labels (`int`): per cent of the rooms that have questions.
        unlabelled (`bool`): whether the other rooms are there as well, for reconstruction alone.
        encoder (`str`, *optional*): whose features it learns to predict: "trained", the small VGGT that comes with the
            repository, or "untrained", what it was before its training.
    """

    title: str
    model: dict[str, Any]
    labels: int = 100
    unlabelled: bool = False
    encoder: str | None = None

    @property
    def rebuilds(self) -> bool:
        return self.model.get("denoiser_config", {}) is not None

    @property
    def regions(self) -> list[str]:
        """Which of `REBUILT` it learns to rebuild unseen; the vanilla objective never hides a view."""
        if not self.rebuilds:
            return []
        cross_view = self.model.get("view_objective") != "vanilla" and self.model.get("view_mask_ratio", 1.0) > 0
        weights = {"view": float(cross_view), "bev_object": self.model.get("bev_loss_weight", 1.0)}
        return [region for region in REBUILT if weights[region] > 0]


TEXT_ONLY = {"denoiser_config": None}
# The encoders whose features arms learn to predict: the one that is shipped, and one that `run` makes.
TRAINED, UNTRAINED = ROOT / "scenes" / "geometry_encoder", "encoder_untrained"
DISTILLATION = {
    "distillation_config": {
        "head_hidden_size": 256, "feature_size": 192, "encoder_image_size": 64, "encoder_dtype": "float32",
    }
}  # fmt: skip
NO_BEV = {"bev_loss_weight": 0.0}
ARMS = {
    "text": Arm("text only", TEXT_ONLY),
    "vanilla": Arm("+ vanilla, visible views", NO_BEV | {"view_objective": "vanilla"}),
    "pooled": Arm("+ cross-view, `pooled`", NO_BEV | {"denoiser_config": {"condition": "pooled"}}),
    "per_view": Arm("+ cross-view, `per_view`", NO_BEV),
    "positions": Arm("+ cross-view, `positions` (control)", NO_BEV | {"denoiser_config": {"condition": "positions"}}),
    "global": Arm("+ global-view", {"view_mask_ratio": 0.0}),
    "both": Arm("+ both (`per_view`)", {}),
    "distill": Arm("+ distillation", TEXT_ONLY | DISTILLATION, encoder="trained"),
    "distill_untrained": Arm(
        "+ distillation, encoder untrained (control)", TEXT_ONLY | DISTILLATION, encoder="untrained"
    ),
    "all": Arm("+ both, + distillation", DISTILLATION, encoder="trained"),
    "text_10": Arm("text only, 10 % of the rooms", TEXT_ONLY, labels=10),
    "both_10": Arm("+ both, others unlabelled", {}, labels=10, unlabelled=True),
    "text_50": Arm("text only, 50 % of the rooms", TEXT_ONLY, labels=50),
    "both_50": Arm("+ both, others unlabelled", {}, labels=50, unlabelled=True),
}
# First minus second, of the same seed.
PAIRS = (
    ("vanilla", "text"), ("pooled", "text"), ("per_view", "text"), ("positions", "text"), ("global", "text"),
    ("both", "text"), ("per_view", "vanilla"), ("per_view", "pooled"), ("per_view", "positions"),
    ("distill", "text"), ("distill", "distill_untrained"), ("all", "text"), ("all", "both"),
    ("both_10", "text_10"), ("both_50", "text_50"), ("both_50", "text"),
)  # fmt: skip
REBUILT_PAIRS = (
    ("per_view", "positions"), ("per_view", "pooled"), ("both", "per_view"), ("both", "global"), ("all", "both"),
)  # fmt: skip
SCORES = {
    "exact_match": "exact match", "grounding_unique": "unique grounding", "grounding_multiple": "several targets",
    "grounding_none": "no target", "caption": "captions", "room_size": "room size",
}  # fmt: skip
# Regions of the reconstruction task, and predictors of its means.
REBUILT = {"view": "masked views", "bev_object": "bird's-eye objects"}
PREDICTORS = ("mean_of_samples", "mean_picture", "other_scene", "positions_only")


@dataclass(frozen=True)
class Plan:
    """The size of a series; lines of different plans do not share a file.

    Attributes:
        config (`str`): the run's file, of the checkout.
        steps, rows (`int`): optimizer steps of every arm, and rows of a step; half as many where half of the rooms'
            rows have no questions in another arm.
        warmup (`int`): steps of the vision warm-up.
        train, val (`int`): rooms.
        rebuilt (`int`): held-out rooms whose views and bird's-eye pictures are rebuilt.
    """

    config: str
    steps: int
    rows: int
    warmup: int
    train: int
    val: int
    rebuilt: int


def link_scenes(sources: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for source in sources:
        if not (folder / source.name).exists():
            (folder / source.name).symlink_to(source.resolve())


def prepare_rooms(output: Path, plan: Plan) -> None:
    """Rooms in `output/rooms`; for each share of labels a folder of links to those with questions, and to the rest."""
    rooms = output / "rooms"
    build_scenes(rooms, num_train=plan.train, num_val=plan.val)
    scenes = sorted((rooms / "train").iterdir())
    annotations = load_annotations(find_annotations(rooms, "train"))
    for labels in sorted({arm.labels for arm in ARMS.values()} - {100}):
        folder, count = output / f"rooms_{labels}", len(scenes) * labels // 100
        link_scenes(scenes[:count], folder / "train")
        link_scenes(scenes[count:], folder / "unlabelled")
        names = {path.name for path in scenes[:count]}
        kept = [annotation for annotation in annotations if annotation.scene_id in names]
        save_annotations(kept, folder / "annotations" / "train.jsonl")


def make_settings(arm: Arm, plan: Plan, seed: int, output: Path, folder: Path, device: str) -> dict[str, Any]:
    """The YAML of one arm's run: the config's, from the seed's start, in as many steps as every other arm's."""
    settings = yaml.safe_load((ROOT / plan.config).read_text())
    root = output / ("rooms" if arm.labels == 100 else f"rooms_{arm.labels}")
    rows = plan.rows if arm.labels == 100 or arm.unlabelled else plan.rows // 2
    settings |= {"seed": seed, "init_from": str(output / f"start_{seed}"), "model": arm.model}
    settings |= {"new_weights": None, "vision_warmup": None}
    # As many passes as the steps take, and one more.
    epochs = plan.steps * plan.rows // (plan.train * arm.labels // 100) + 1
    settings["data"] |= {"root": str(root), "epochs": epochs, "prepared": str(output / "prepared")}
    if arm.unlabelled:
        settings["data"] |= {"unlabelled_root": str(root / "unlabelled"), "unlabelled_share": 0.5}
    if not arm.rebuilds:
        settings["parts"] = {name: part for name, part in settings["parts"].items() if "reconstruction" not in name}
    settings["trainer"] |= {"output_dir": str(folder / "model"), "max_steps": plan.steps, "disable_tqdm": True}
    settings["trainer"] |= {"per_device_train_batch_size": rows, "use_cpu": device == "cpu", "bf16": device != "cpu"}
    if arm.encoder is not None:
        encoder = TRAINED if arm.encoder == "trained" else output / UNTRAINED
        settings |= {"geometry_encoder": str(encoder), "allow_missing_weights": True}
        settings["data"]["geometry_features"] = str(output / f"features_{arm.encoder}")
    every = max(1, plan.steps // 12)
    settings["trainer"] |= {"logging_steps": every, "save_steps": 6 * every}
    return settings


def make_start(plan: Plan, seed: int, output: Path) -> None:
    """Checkpoint `output/start_SEED`: new weights, and a vision tower that has learned to name patches."""
    folder, aside = output / f"start_{seed}", output / f".start_{seed}.partial"
    torch.set_num_threads(1)
    arguments = read_run_arguments(
        ROOT / plan.config, ["--seed", str(seed), "--data.root", str(output / "rooms"), "--vision_warmup.steps",
                             str(plan.warmup)],
    )  # fmt: skip
    processor = build_processor(arguments)
    model = build_model(arguments, processor)
    read = partial(read_scene, **get_run_reading(arguments, processor))
    warm_up_vision(model, processor, list_scenes(arguments.data), read, arguments.vision_warmup, seed)
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    processor.save_pretrained(aside)
    shutil.copytree(find_teacher(arguments), aside / "teacher")
    aside.rename(folder)


def call(command: list[str], log: Path) -> float:
    """Run a program of the checkout on one thread; seconds it took.

    Raises:
        RuntimeError: when it fails, with where it says why.
    """
    begin = time.perf_counter()
    with log.open("a") as file:
        environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"bench/ablation.py: {' '.join(command[1:])} ended with {done.returncode}; see {log}.")
    return round(time.perf_counter() - begin, 1)


def run_arm(name: str, plan: Plan, seed: int, output: Path, device: str) -> dict[str, Any]:
    """Train and evaluate one arm; its line of the results."""
    # The commit that runs, not one that is made meanwhile.
    described = describe_run(device) | {"threads": 1}
    arm, folder = ARMS[name], output / f"{name}_seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    settings = make_settings(arm, plan, seed, output, folder, device)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    log = folder / "log.txt"
    if arm.encoder is not None:
        call([sys.executable, "-m", "ross3d.training.geometry_features", str(folder / "config.yaml")], log)
    train_seconds = call([sys.executable, "train.py", str(folder / "config.yaml")], log)
    tasks = "rooms,reconstruction" if arm.regions else "rooms"
    command = [
        sys.executable, "eval.py", "--model", str(folder / "model"), "--data", str(output / "rooms"),
        "--output", str(folder / "eval"), "--task", tasks, "--report", "false", "--num_inference_steps", "20",
        "--reconstruction_scenes", str(plan.rebuilt), "--proposals", "jittered",
    ]  # fmt: skip
    eval_seconds = call(command, log)
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    state = json.loads((folder / "model" / "trainer_state.json").read_text())
    losses = [record for record in state["log_history"] if "loss" in record][-1]
    return {
        "arm": name, "seed": seed, **described, "plan": asdict(plan), "train_seconds": train_seconds,
        "eval_seconds": eval_seconds, **read_scores(metrics),
        "losses": {key: round(value, 4) for key, value in losses.items() if key.endswith("_loss")},
    }  # fmt: skip


def read_scores(metrics: dict[str, Any]) -> dict[str, Any]:
    """Per cent of the rooms task by `SCORES`, and its question types, and dB of the reconstruction task."""
    rooms = metrics["scores"]["rooms"]
    types = {name: round(100 * get_main_score(rooms, name), 2) for name in rooms["types"]}
    scores = {"exact_match": round(100 * rooms["macro_exact_match"], 2), **types}
    rebuilt = metrics["scores"].get("reconstruction")
    psnr = {
        region: {name: round(rebuilt[region]["psnr"][name], 3) for name in PREDICTORS}
        for region in REBUILT
        if rebuilt is not None and region in rebuilt
    }
    return {"scores": scores, "psnr": psnr}


def read_results(file: Path, plan: Plan | None = None) -> dict[tuple[str, int], dict[str, Any]]:
    """Lines of a file by arm and seed.

    Raises:
        ValueError: when it holds lines of another plan.
    """
    lines = [json.loads(text) for text in file.read_text().splitlines()] if file.is_file() else []
    for line in lines:
        wanted = lines[0]["plan"] if plan is None else asdict(plan)
        if line["plan"] != wanted:
            raise ValueError(f"{file}: expected lines of {wanted}, got {line['plan']}; choose another --results.")
    return {(line["arm"], line["seed"]): line for line in lines}


def run(plan: Plan, output: Path, results: Path, seeds: int, jobs: int, arms: Sequence[str], device: str) -> None:
    """What has no line yet, `jobs` at a time with one thread each; all arms of a seed before the next seed."""
    known = read_results(results, plan)
    missing = [(seed, name) for seed in range(seeds) for name in arms if (name, seed) not in known]
    prepare_rooms(output, plan)
    if any(ARMS[name].encoder == "untrained" for _, name in missing):
        build_encoder(make_config(), seed=0).save_pretrained(output / UNTRAINED)
    starting = {seed: threading.Lock() for seed in range(seeds)}
    writing, failed = threading.Lock(), threading.Event()

    def finish(job: tuple[int, str]) -> None:
        if failed.is_set():
            return
        try:
            add_line(*job)
        except BaseException:
            failed.set()
            raise

    def add_line(seed: int, name: str) -> None:
        with starting[seed]:
            if not (output / f"start_{seed}").is_dir():
                command = [sys.executable, __file__, "start", "--output", str(output), "--seed", str(seed)]
                call([*command, "--plan", json.dumps(asdict(plan))], output / f"start_{seed}.txt")
        line = run_arm(name, plan, seed, output, device)
        with writing:
            before = results.read_text() if results.is_file() else ""
            write_text(results, before + json.dumps(line) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {name} seed {seed}: {line['train_seconds']:.0f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for future in [pool.submit(finish, job) for job in missing]:
            future.result()


def summarize(values: Sequence[float]) -> str:
    """Mean and sample deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def summarize_differences(first: Sequence[float], second: Sequence[float], digits: int = 1) -> str:
    """Mean of first - second, seed by seed, with its 95 % interval by Student's t; bold where 0 lies outside."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.{digits}f}"
    quantile = float(student_t.ppf(0.975, len(differences) - 1))
    half = quantile * statistics.stdev(differences) / len(differences) ** 0.5
    text = f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"**{text}**" if abs(mean) > half else text


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_results(results: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Markdown: scores of the arms, their differences, and what was rebuilt."""
    arms = [name for name in ARMS if any(name == arm for arm, _ in results)]
    seeds = {name: sorted(seed for arm, seed in results if arm == name) for name in arms}

    def get(name: str, of: Sequence[int], *place: str) -> list[float]:
        lines = [results[name, seed] for seed in of]
        return [reduce(dict.__getitem__, place, line) for line in lines]

    def list_differences(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, list[int]]]:
        for first, second in pairs:
            if shared := sorted(set(seeds.get(first, [])) & set(seeds.get(second, []))):
                yield first, second, shared

    scores = [
        [f"`{name}`", ARMS[name].title, str(len(of)), *(summarize(get(name, of, "scores", key)) for key in SCORES)]
        for name, of in seeds.items()
    ]
    differences = [
        [f"`{a}` - `{b}`"]
        + [summarize_differences(get(a, of, "scores", key), get(b, of, "scores", key)) for key in SCORES]
        for a, b, of in list_differences(PAIRS)
    ]
    rebuilt = []
    for name, of in seeds.items():
        for region in ARMS[name].regions:
            own, *others = (get(name, of, "psnr", region, key) for key in PREDICTORS)
            cells = [summarize_differences(own, other, 2) for other in others]
            rebuilt.append([f"`{name}`", REBUILT[region], f"{statistics.fmean(own):.2f}", *cells])
    between = []
    for a, b, of in list_differences(REBUILT_PAIRS):
        for region in REBUILT:
            if region in ARMS[a].regions and region in ARMS[b].regions:
                own, other = (get(name, of, "psnr", region, PREDICTORS[0]) for name in (a, b))
                between.append([f"`{a}` - `{b}`", REBUILT[region], summarize_differences(own, other, 2)])
    controls = ["above mean picture", "above another room", "above all views masked"]
    return "\n\n".join(
        [
            make_table(["arm", "", "seeds", *SCORES.values()], scores),
            make_table(["difference", *SCORES.values()], differences),
            make_table(["arm", "what", "PSNR, dB", *controls], rebuilt),
            make_table(["difference", "what", "PSNR, dB"], between),
        ]
    )


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running, table, start = (verbs.add_parser(name) for name in ("run", "table", "start"))
    for verb in (running, start):
        verb.add_argument("--output", type=Path, default=Path("outputs/ablation"), help="folder to write to")
    for verb in (running, table):
        verb.add_argument(
            "--results",
            type=Path,
            default=Path("docs/ablation.jsonl"),
            help="file that the lines of results are added to",
        )
    running.add_argument("--config", default="configs/tiny.yaml", help="run file of all arms")
    sizes = {
        "steps": (240, "optimizer steps of an arm"),
        "rows": (8, "rows of a step"),
        "warmup": (1200, "steps of the vision tower's warm-up"),
        "train": (1600, "rooms to train on"),
        "val": (120, "held-out rooms"),
        "rebuilt": (16, "held-out rooms whose pictures are rebuilt"),
    }
    for name, (value, meaning) in (sizes | {"seeds": (5, "seeds of each arm"), "jobs": (2, "arms at a time")}).items():
        running.add_argument(f"--{name}", type=int, default=value, help=meaning)
    running.add_argument("--arms", default=",".join(ARMS), help="names separated by commas")
    running.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda trains in bf16")
    start.add_argument("--plan", type=json.loads, required=True, help="settings of the series, as JSON")
    start.add_argument("--seed", type=int, required=True, help="random seed of the arm")
    options = parser.parse_args(args)
    if options.verb == "table":
        print(format_results(read_results(options.results)))
    elif options.verb == "start":
        make_start(Plan(**options.plan), options.seed, options.output.resolve())
    else:
        plan = Plan(options.config, **{name: getattr(options, name) for name in sizes})
        arms = options.arms.split(",")
        if unknown := sorted(set(arms) - ARMS.keys()):
            running.error(f"--arms: expected names of {list(ARMS)}, got {unknown}")
        run(plan, options.output.resolve(), options.results, options.seeds, options.jobs, arms, options.device)


if __name__ == "__main__":
    main()
