"""Train Ross3D with the stock Trainer.

    accelerate launch train.py configs/tiny.yaml [--section.key value ...]

Parse -> build -> train -> save. An interrupted run resumes from its last complete checkpoint when it is restarted with
the same settings, and ends with the same files; a finished run is left unchanged.
"""

import json
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from ross3d.command_line import run_program
from ross3d.data.atomic import hold_folder, write_text
from ross3d.data.sources import read_scene
from ross3d.training.arguments import RunArguments, check_same_run, describe_run, read_command_line
from ross3d.training.build import (
    build_collator,
    build_config,
    build_model,
    build_processor,
    build_rows,
    check_same_data,
    choose_optimizer,
    find_published,
    find_teacher,
    freeze_parts,
    get_data_fingerprint,
    get_run_reading,
    list_scenes,
    restore_dtypes,
    save_by_own_class,
    save_run,
    widen_weights,
)
from ross3d.training.callbacks import MarkComplete, NamedLosses, check_shared, find_start, has_begun
from ross3d.training.damage import check_weight_names
from ross3d.training.lora import add_lora
from ross3d.training.trainer import Ross3DTrainer
from ross3d.training.vision_warmup import warm_up_vision


# Trainer settings that our rows and losses require, and where a user sets each of them instead.
FIXED_ARGUMENTS = {
    "remove_unused_columns": (False, "the collator reads every column of a row"),
    "train_sampling_strategy": ("sequential", "rows are shuffled by seed and epoch in data/dataset.py"),
    "num_train_epochs": (1, "set data.epochs"),
    "average_tokens_across_devices": (True, "losses are averaged over the answers and scenes of all processes"),
    "resume_from_checkpoint": (None, "restarting a run with the same settings resumes it"),
    "save_only_model": (False, "an interrupted run could not resume without its optimizer state"),
    "ignore_data_skip": (False, "a resumed run would read its first rows again"),
    "label_smoothing_factor": (0.0, "label smoothing would ignore the weights of the targets"),
    "eval_strategy": ("no", "training does not evaluate; run eval.py on the checkpoints"),
    "load_best_model_at_end": (False, "training does not evaluate checkpoints; run eval.py on the saved ones"),
    "push_to_hub": (
        False,
        "the Trainer would upload neither the code nor the model card; upload the finished run with tools/push.py",
    ),
}


# In the folder of run.yaml: hashes of the data that the run's rows are made of.
DATA_FILE = "run_data.json"
# Seconds for which workers of a killed run may still hold its folder; they check for their parent every five.
LOCK_PATIENCE = 20.0


def build_training_arguments(settings: dict, seed: int) -> TrainingArguments:
    """`TrainingArguments` of the run, with the settings that our rows need.

    Raises:
        ValueError: for a setting that is given elsewhere or is fixed, for several GPUs in one process, and when
            checkpoints fall between two reports, which a resumed run could not repeat.
    """
    for name, (value, remedy) in {**FIXED_ARGUMENTS, "seed": (seed, "set --seed instead")}.items():
        if settings.get(name, value) != value:
            raise ValueError(f"trainer.{name}: expected {value!r} or nothing, got {settings[name]!r}; {remedy}.")
    if settings.get("hub_token") is not None:
        raise ValueError(
            "trainer.hub_token: expected none, because all settings are written to run.yaml and the model card, got"
            " one; set HF_TOKEN or run `hf auth login`."
        )
    if not settings.get("output_dir"):
        raise ValueError("trainer.output_dir: expected the folder of the run, got none; set --trainer.output_dir.")
    fixed = {name: value for name, (value, _) in FIXED_ARGUMENTS.items()}
    # Every parameter gets a gradient in every step (tests/invariant/test_same_modules.py): DDP need not search for
    # unused ones.
    settings = {"ddp_find_unused_parameters": False} | settings
    # `MarkComplete` removes old checkpoints: the Trainer would do it before the new one is known to be complete.
    try:
        arguments = TrainingArguments(**{**settings, **fixed, "seed": seed, "save_total_limit": None})
    except (TypeError, ValueError) as error:
        raise ValueError(f"trainer: expected settings of transformers.TrainingArguments, got: {error}") from error
    if arguments.n_gpu > 1:
        raise ValueError(
            f"train.py: expected one GPU per process, got {arguments.n_gpu}, over which the Trainer would split rows;"
            " start with `accelerate launch train.py ...`, or select one with CUDA_VISIBLE_DEVICES=0."
        )
    if arguments.save_strategy == "steps" and arguments.save_steps % arguments.logging_steps:
        raise ValueError(
            f"trainer.save_steps: expected a multiple of logging_steps {arguments.logging_steps}, got"
            f" {arguments.save_steps}; otherwise a resumed run could not repeat its log."
        )
    return arguments


def check_processes(arguments: RunArguments, training: TrainingArguments) -> None:
    """Write the number of processes into the settings, or refuse a number that differs from theirs."""
    if arguments.num_processes not in (None, training.world_size):
        rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
        raise ValueError(
            f"num_processes: expected {arguments.num_processes} processes for {rows} rows per step, got"
            f" {training.world_size}; start that many with `accelerate launch --num_processes`, or set"
            f" --num_processes {training.world_size} and --trainer.gradient_accumulation_steps so that a step has the"
            " same number of rows."
        )
    arguments.num_processes = training.world_size


def count_rows_per_step(training: TrainingArguments) -> int:
    return training.per_device_train_batch_size * training.gradient_accumulation_steps * training.world_size


def main(arguments: RunArguments) -> None:
    training = build_training_arguments(arguments.trainer, arguments.seed)
    output_dir = Path(training.output_dir)
    check_processes(arguments, training)
    held = hold_folder(output_dir, LOCK_PATIENCE, "trainer.output_dir")
    with held if training.process_index == 0 else nullcontext():
        run(arguments, training, output_dir)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run(arguments: RunArguments, training: TrainingArguments, output_dir: Path) -> None:
    """Train, from the folder's last complete checkpoint if there is one, and save."""
    if training.process_index == 0 and has_begun(output_dir):
        check_same_run(arguments, output_dir / "run.yaml")
    is_finished, checkpoint = find_start(output_dir, training.process_index)
    if is_finished:
        print(f"{output_dir}: this run is finished; nothing to do.")
        return
    told = get_data_fingerprint(arguments.data) if training.process_index == 0 else {}
    if training.process_index == 0 and has_begun(output_dir):
        check_same_data(told, output_dir / DATA_FILE)
    # Raises here if the optimizer needs a library that is not installed, before anything large is read.
    Trainer.get_optimizer_cls_and_kwargs(training)
    # Refused before training, not after it.
    published = find_published(arguments)
    find_teacher(arguments)
    processor = build_processor(arguments)
    # Questions and scenes that do not fit are refused before the model is built and warmed up.
    rows = build_rows(arguments, processor, count_rows_per_step(training), build_config(arguments, processor))
    model = build_model(arguments, processor)
    if training.process_index == 0:
        write_text(output_dir / "run.yaml", describe_run(arguments))
        write_text(output_dir / DATA_FILE, json.dumps(told, indent=1) + "\n")
    check_shared(output_dir / "run.yaml", training.process_index)
    if checkpoint is None and arguments.vision_warmup is not None and not arguments.data.blind:
        paths = list_scenes(arguments.data)
        read = partial(read_scene, **get_run_reading(arguments, processor))
        accuracy = warm_up_vision(model, processor, paths, read, arguments.vision_warmup, arguments.seed)
        print("vision warm-up, accuracy on object patches:", json.dumps(accuracy))
    freeze_parts(model, arguments.parts)
    dtypes = {}
    if arguments.lora is not None:
        model = add_lora(model, processor, arguments.lora, arguments.seed)
    else:
        dtypes = widen_weights(model, autocast=training.bf16 or training.fp16)
    if checkpoint is not None:
        check_weight_names(checkpoint, model)
    save_by_own_class(model)
    trainer = Ross3DTrainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=build_collator(processor, model.config),
        processing_class=processor,
        callbacks=[MarkComplete(keep=arguments.trainer.get("save_total_limit"))],
        optimizer_cls_and_kwargs=choose_optimizer(model, arguments.parts, training),
    )
    # Before the reporting callbacks, which otherwise report before the named losses are known.
    trainer.callback_handler.callbacks.insert(0, NamedLosses(model))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    # Every process contributes its shards of the weights.
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        if dtypes:
            weights = restore_dtypes(model, dtypes)
        save_run(model, weights, processor, find_teacher(arguments), published, trainer.state, output_dir)


if __name__ == "__main__":
    run_program(lambda: main(read_command_line(sys.argv[1:], __doc__)))
