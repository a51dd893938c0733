"""Evaluate a model on benchmarks, with one loop for all tasks.

    accelerate launch eval.py --model DIR_OR_REPO --task rooms[,reconstruction] --data DIR --output DIR
        [--limit SCENES] [--blind true] [--spatial-instruction true|false] [--geometry-mode MODE] [--debug]

Writes `predictions.jsonl` (and `reconstruction.jsonl`), `metrics.json`, `timing.json` and `report.html`. An
interrupted evaluation resumes when it is restarted with the same settings, and writes the same files. Answers have
`token_probability` or `margin`, and `confidence` if `calibration.json` lies beside the model's weights (`python -m
ross3d.tools.calibrate`); after calibrating, the same command adds it to the answers.
"""

import argparse
import contextlib
import copy
import difflib
import hashlib
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from transformers import HfArgumentParser, set_seed

from ross3d.command_line import add_debug, list_attributes, parse_path, run_program
from ross3d.data.ahead import iterate_ahead
from ross3d.data.annotations import Annotation, find_annotations, load_annotations
from ross3d.data.atomic import check_output_folder, hold_folder
from ross3d.data.dataset import get_row_seed
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.sources import find_video, get_reading, read_scene
from ross3d.data.tensor_cache import describe_file, describe_source, hash_file
from ross3d.data.text_files import read_json
from ross3d.metrics.meteor import Meteor, check_meteor
from ross3d.processing_ross3d import GeometryMode
from ross3d.report.run import write_run_page
from ross3d.report.summary import format_summary
from ross3d.scenes.lookup import lookup_baseline
from ross3d.scenes.rooms import find_training_split
from ross3d.tasks import find_tasks, list_modules, reconstruction, rooms
from ross3d.tasks.checks import check_records, check_scores, name_task
from ross3d.tasks.confidence import CALIBRATION_FILE, add_confidence, name_sources
from ross3d.tasks.intervals import compute_intervals, get_sums
from ross3d.tasks.records import RecordStore, group_items, write_json
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task
from ross3d.training.arguments import flatten_settings
from ross3d.training.calibration import load_calibration
from ross3d.training.card import get_commit
from ross3d.training.checkpoint import check_lengths, find_checkpoint, load_processor
from ross3d.training.damage import CHECKSUMS
from ross3d.training.loading import load_model as read_weights


NO_CONFIDENCE = (
    f"no {CALIBRATION_FILE} for these weights: answers have a token_probability or a margin, and no confidence (python"
    " -m ross3d.tools.calibrate writes one from this folder)"
)
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class EvalArguments(EvalSettings):
    """Command line of eval.py; see `EvalSettings` for the rest.

    Attributes:
        model (`str`): checkpoint folder or Hub id.
        task (`str`): names separated by commas.
        data (`Path`): folder with scenes and annotations.
        output (`Path`): where the files go.
        spatial_instruction (`bool`, *optional*): overrides the setting that was saved with the model.
        geometry_mode (`str`, *optional*): overrides the setting that was saved with the model: how views are cropped
            and depth is pooled. `published` refuses to crop pictures that are higher than wide.
        dtype (`str`): of the loaded model; `auto`: as it was saved.
        allow_missing_weights (`bool`): initialise weights that the checkpoint lacks at random instead of refusing it.
        meteor (`bool`): score captions by METEOR as well, which needs Java and `pip install pycocoevalcap`.
        report (`bool`): write the page `report.html`; `--no-report` leaves it out.
    """

    model: str = field(kw_only=True)
    task: str = field(kw_only=True)
    data: Path = field(kw_only=True)
    output: Path = field(kw_only=True)
    spatial_instruction: bool | None = None
    geometry_mode: GeometryMode | None = None
    dtype: Dtype = "auto"
    allow_missing_weights: bool = False
    meteor: bool = False
    report: bool = True


def get_tasks(names: str) -> list[Task]:
    """Tasks by their names, separated by commas.

    Raises:
        ValueError: for an unknown or repeated name, and for a broken file in `tasks/`.
    """
    tasks, chosen = find_tasks(), [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in tasks and name in list_modules():
            raise ValueError(
                f"--task {name}: expected a benchmark, but tasks/{name}.py defines no TASK; end the file with TASK ="
                " Task(...) (CONTRIBUTING.md)."
            )
        if name not in tasks or chosen.count(name) > 1:
            raise ValueError(
                f"--task: expected names of {sorted(tasks)}, each once, got {name!r} in {names!r}; separate them with"
                " commas."
            )
    return [tasks[name] for name in chosen]


def get_fingerprint(model: str) -> str | None:
    """One hash of what answers depend on in a checkpoint folder: weights, settings, tokenizer and code; None for a Hub
    id."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in {".safetensors", ".json", ".jinja", ".py"}):
        if path.name not in ("trainer_state.json", CHECKSUMS, CALIBRATION_FILE):
            digest.update(f"{path.name} {hash_file(path)}".encode())
    return digest.hexdigest()


def load_model(arguments: EvalArguments, tasks: list[Task], device: torch.device) -> tuple[Any, Any]:
    """Model and processor, ready to answer; with the teacher if a task decodes pictures."""
    folder = find_checkpoint(arguments.model)
    processor = load_processor(folder, arguments.geometry_mode)
    if arguments.spatial_instruction is not None:
        processor.spatial_instruction = arguments.spatial_instruction
    model = read_weights(folder, dtype=arguments.dtype, allow_missing=arguments.allow_missing_weights)
    model = model.to(device).eval()
    if reconstruction.TASK in tasks:
        teacher = folder / "teacher"
        if not teacher.is_dir():
            raise ValueError(
                f"--task reconstruction: expected the VAE teacher in {teacher}, got no such folder; evaluate a"
                " checkpoint that includes its teacher, or leave out this task."
            )
        model.attach_teacher(teacher)
    return model, processor


def describe_settings(
    arguments: EvalArguments, processor: Any, contexts: dict[str, EvalContext], items: dict[str, list[Any]]
) -> dict[str, Any]:
    """Everything besides the code that the answers depend on; contexts and items by the task's name."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(arguments).items()}
    # The output folder, and how answers are scored and shown, do not change the answers.
    del values["output"], values["report"], values["meteor"]
    # Each task's own, below.
    del values["proposals"]
    values["geometry_mode"] = processor.geometry_mode
    values["spatial_instruction"] = bool(processor.spatial_instruction)
    values["view_size"] = processor.view_size
    values["generation"] = {"do_sample": False, "num_beams": 1}
    values["tasks"] = {
        name: {
            "split": context.settings.split,
            "max_new_tokens": context.settings.max_new_tokens,
            "proposals": context.settings.proposals,
            "scene_path": context.scene_path,
            "items_sha256": hashlib.sha256(repr(items[name]).encode()).hexdigest(),
            "scenes_sha256": hash_scenes(context, items[name]),
        }
        for name, context in contexts.items()
    }
    values["model_sha256"] = get_fingerprint(arguments.model)
    return values


def hash_scenes(context: EvalContext, items: list[Any]) -> str:
    """One hash of the names, sizes and modification times of all files that the questions' scenes are read from.

    Raises:
        FileNotFoundError, ValueError: names the first scene or frame that is missing.
    """
    if context.scene_path is None:
        frames = sorted({image for item in items for image in item.images})
        sources = [[frame, *describe_file(context.data_dir / frame)] for frame in frames]
    else:
        folders = {name: context.find_scene(name) for name in dict.fromkeys(item.scene_id for item in items)}
        # Questions name a video without its suffix.
        absent = [name for name, path in folders.items() if not path.exists() and find_video(path) is None]
        if absent:
            known = set(absent)
            asked = [item.id for item in items if item.scene_id in known]
            raise FileNotFoundError(
                f"--data {context.data_dir}, split {context.settings.split}: expected questions about existing"
                f" scenes, got {len(asked)}, first {asked[0]!r}, about {len(absent)} that are not, such as"
                f" {absent[:3]}: there is no folder {folders[absent[0]]}, and no video of that name; copy or prepare"
                " them, or remove these questions."
            )
        sources = [describe_source(folder) for folder in folders.values()]
    return hashlib.sha256(repr(sources).encode()).hexdigest()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to resume an evaluation that was started with other settings.

    Raises:
        ValueError: names the first setting that differs.
    """
    if not path.is_file():
        return
    known = read_json(path, "the settings of the evaluation in this folder", kind=dict, remedy=f"remove {path.parent}")
    before, settings = flatten_settings(known), flatten_settings(settings)
    for name in sorted(settings.keys() | before.keys()):
        if settings.get(name) != before.get(name):
            raise ValueError(
                f"{path}: expected {name}={before.get(name)!r}, as for the answers already there, got"
                f" {settings.get(name)!r}; choose another --output, or remove that folder to start over."
            )


def compute_baselines(arguments: EvalArguments, split: str, items: list[Any]) -> dict[str, Any]:
    """Scores of two baselines without a model on the rooms questions: commonest answer, and look-up of question words.

    Both are fitted to the questions of the split that models of `split` are trained on; without training questions
    there are no baselines, with a warning.
    """
    file = find_annotations(arguments.data, find_training_split(split))
    train = load_annotations(file, arguments.allow_outside) if file.is_file() else []
    train = [annotation for annotation in train if annotation.task == rooms.NAME]
    if not train:
        warnings.warn(
            f"--task rooms: {file}: no training questions, so the look-up and majority baselines are omitted",
            stacklevel=2,
        )
        return {}
    looked_up = rooms.describe_lookup(lookup_baseline(train, items))
    return {"majority": rooms.score_majority(train, items), "lookup": looked_up}


def warn_of_other_boxes(calibration: dict[str, Any] | None, sources: str) -> None:
    """Warn if boxes come from other sources than in the calibration; tasks without boxes need none."""
    calibrated = sources if calibration is None else calibration["evaluation"]["proposals"]
    if sources not in ("none", calibrated):
        warnings.warn(
            f"the confidence of boxes was calibrated with --proposals {calibrated}; with {sources} it is a guess",
            stacklevel=2,
        )


def answer_open_scenes(context: EvalContext, task: Task, items: list[Any], store: RecordStore, state: PartialState):
    """Answer this process's share of the unanswered scenes; the next ones are prepared meanwhile.

    The batches of scenes are the same after a restart and for any number of processes: in half precision an answer may
    depend on the rest of its batch.
    """
    scenes = group_items(items)
    still_open = store.get_open_scenes(task.name, items).keys()
    at_once = context.settings.scenes_at_once
    together = [dict(list(scenes.items())[start : start + at_once]) for start in range(0, len(scenes), at_once)]
    mine = [group for group in together if group.keys() & still_open][state.process_index :: state.num_processes]
    # A tokenizer is not safe for several threads.
    ahead = replace(context, processor=copy.deepcopy(context.processor))
    in_order = [of_scene for group in mine for of_scene in group.values()]
    done = 0
    with contextlib.closing(iterate_ahead(partial(prepare_scene, task, ahead), in_order, at_once)) as prepared:
        for group in mine:
            opened = [OpenScene(of_scene, next(prepared)) for of_scene in group.values()]
            with name_task(task, f"answer(context, scenes) of {', '.join(map(repr, group))}"):
                answered = task.answer(context, opened)
            if not isinstance(answered, list) or len(answered) != len(group):
                raise ValueError(
                    f"task {task.name!r}, answer(context, scenes): expected a list of records for each of {len(group)}"
                    f" scenes, got {len(answered) if isinstance(answered, list) else type(answered).__name__}."
                )
            for (scene_id, asked), records in zip(group.items(), answered, strict=True):
                check_records(task, asked, records)
                if done == 0:
                    check_scores(task, records)
                if scene_id in still_open:
                    store.append_scene(records)
            before, done = done, done + len(group)
            if state.is_main_process and (before // 20 != done // 20 or done == len(in_order)):
                print(f"{task.name}: {done} of {len(in_order)} scenes", file=sys.stderr, flush=True)


def start_processes() -> PartialState:
    """Set up the processes that share this evaluation; without an accelerator, on CPU.

    Raises:
        ValueError: when the launcher started several processes that are not connected to each other.
    """
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=1))
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != state.num_processes:
        raise ValueError(
            f"WORLD_SIZE: expected {started} connected processes, got {state.num_processes}; set distributed_type:"
            " MULTI_GPU in accelerate's config (on CPU too), or start one process."
        )
    return state


def main(arguments: EvalArguments) -> dict[str, Any]:
    """Answer, score and write; returns what `metrics.json` holds.

    Raises:
        BlockingIOError: another evaluation writes into the folder.
        ValueError: nothing can be written there.
    """
    state = start_processes()
    if state.is_main_process:
        check_output_folder(arguments.output, "--output")
    held = hold_folder(arguments.output, option="--output")
    with held if state.is_main_process else contextlib.nullcontext():
        metrics = evaluate(arguments, state)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return metrics


def evaluate(arguments: EvalArguments, state: PartialState) -> dict[str, Any]:
    """Run this process's share of an evaluation, in a folder that no other evaluation writes into."""
    started = time.time()
    set_seed(arguments.seed)
    tasks = get_tasks(arguments.task)
    if arguments.meteor and state.is_main_process:
        check_meteor()
    settings = EvalSettings(**{f.name: getattr(arguments, f.name) for f in fields(EvalSettings)})
    items = {task.name: load_items(task, arguments.data, task.fill_settings(settings)) for task in tasks}
    baselines = {}
    # Before any answer, so that unreadable training questions raise an error early.
    if state.is_main_process and items.get(rooms.NAME):
        split = rooms.TASK.fill_settings(settings).split
        baselines[rooms.NAME] = compute_baselines(arguments, split, items[rooms.NAME])
    # Confidence holds for a model that sees the scene.
    calibration = None if arguments.blind else load_calibration(find_checkpoint(arguments.model))
    warn_of_other_boxes(calibration, name_sources(task.fill_settings(settings).proposals for task in tasks))
    model, processor = load_model(arguments, tasks, state.device)
    for task in tasks:
        asked = [item for item in items[task.name] if isinstance(item, Annotation)]
        check_lengths(asked, processor, f"--task {task.name}")
    reading = get_reading(
        arguments.num_views,
        arguments.decode,
        processor.view_size,
        arguments.rotate,
        arguments.max_excluded,
        arguments.allow_outside,
    )
    read_views = partial(read_scene, **reading)
    context = EvalContext(
        model=model,
        processor=processor,
        device=state.device,
        data_dir=arguments.data,
        output_dir=arguments.output,
        read_scene=read_views,
        make_proposals=ProposalMaker("--proposals").propose,
        get_seed=lambda seed, purpose: get_row_seed(seed, 0, purpose),
    )
    contexts = {
        task.name: replace(context, settings=task.fill_settings(settings), scene_path=task.scene_path)
        for task in tasks
    }
    described = describe_settings(arguments, processor, contexts, items)
    check_settings(arguments.output / "settings.json", described)
    store = RecordStore(arguments.output, sorted({task.records_file for task in tasks}), state.process_index)
    state.wait_for_everyone()
    if state.is_main_process:
        write_json(arguments.output / "settings.json", described)
    for task in tasks:
        answer_open_scenes(contexts[task.name], task, items[task.name], store, state)
    state.wait_for_everyone()
    metrics = {}
    if state.is_main_process:
        store.read_again()
        metrics = write_results(arguments, tasks, items, baselines, store, described, model, calibration)
        write_json(arguments.output / "timing.json", {"started": started, "seconds": time.time() - started})
        if arguments.report:
            write_run_page(arguments.output, read_views)
        store.remove_parts()
        print(format_summary(metrics))
        if metrics["calibration"] is None and not arguments.blind:
            print(NO_CONFIDENCE)
    state.wait_for_everyone()
    return metrics


def load_items(task: Task, data_dir: Path, settings: EvalSettings) -> list[Any]:
    with name_task(task, "load_items(data_dir, settings)"):
        return task.load_items(data_dir, settings)


def prepare_scene(task: Task, context: EvalContext, items: list[Any]) -> Any:
    with name_task(task, f"prepare(context, items) of scene {items[0].scene_id!r}"):
        return task.prepare(context, items)


def score_records(task: Task, records: list[Record], meteor: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """A task's scores and their intervals; with METEOR for captions if it is asked for."""
    if not records:
        return {}, {}
    scenes = np.array([record["scene_id"] for record in records])
    if not (meteor and task.is_captions):
        return task.score(records), compute_intervals(get_sums(task, records), scenes)
    with Meteor() as program:
        return task.score(records, program), compute_intervals(get_sums(task, records, program), scenes)


def write_results(
    arguments: EvalArguments,
    tasks: list[Task],
    items: dict[str, list[Any]],
    baselines: dict[str, Any],
    store: RecordStore,
    described: dict[str, Any],
    model: Any,
    calibration: dict[str, Any] | None,
) -> dict[str, Any]:
    """Write the records, with confidence if there is a calibration, to their final files, and `metrics.json`."""
    scores, intervals, by_file = {}, {}, {}
    for task in tasks:
        records = [add_confidence(record, calibration) for record in store.get_records(task.name, items[task.name])]
        scores[task.name], intervals[task.name] = score_records(task, records, arguments.meteor)
        by_file.setdefault(task.records_file, []).extend(records)
    for name, records in by_file.items():
        store.write_final(name, records)
    metrics = {
        "scores": scores,
        "intervals": intervals,
        "baselines": baselines,
        "records_files": {task.name: task.records_file for task in tasks},
        # The comparison of scans is long, and is about scans rather than answers.
        "calibration": None if calibration is None else calibration | {"scans": None},
        "settings": described,
        "commit": get_commit(),
        "command": sys.argv,
        "config": model.config.to_dict(),
    }
    write_json(arguments.output / "metrics.json", metrics)
    if scores.get(reconstruction.NAME):
        write_json(arguments.output / "reconstruction.json", scores[reconstruction.NAME])
    return metrics


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the description and shows defaults."""


def parse_arguments(argv: list[str] | None = None) -> EvalArguments:
    parser = HfArgumentParser(EvalArguments, description=__doc__, formatter_class=HelpFormatter)
    told = list_attributes(EvalArguments)
    for action in parser._actions:
        action.help = told.get(action.dest, action.help)
        action.type = parse_path if action.type is Path else action.type
        if "--no_report" in action.option_strings:
            action.help = "do not write the HTML report"
    add_debug(parser)
    arguments, *_, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if unknown:
        near = difflib.get_close_matches(unknown[0].partition("=")[0], parser._option_string_actions, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help for all options"
        parser.error(f"unknown options {' '.join(unknown)}; {hint}")
    return arguments


if __name__ == "__main__":
    run_program(lambda: main(parse_arguments()))
