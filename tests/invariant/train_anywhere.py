"""Many steps of the Trainer on mixed rows, however `accelerate launch` splits model and rows. Usage:

    accelerate launch --config_file configs/accelerate/X.yaml -m ross3d.tests.invariant.train_anywhere \\
        OUTPUT BATCH_SIZE ACCUMULATION NUM_STEPS

Rows are drawn with the accumulation as seed. Writes the gathered parameters after 20 steps of plain SGD in float32
(OUTPUT/parameters.safetensors), the gathered checkpoint at the end (OUTPUT/final), and for every rank which kinds of
rows it was given, what was logged, how many weights it held itself, of the model and of the geometry encoder, and what
an evaluation gave (OUTPUT/rank-N.json).
A process that is stuck writes where it is, and ends.
"""

import faulthandler
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration, get_loss_names
from ross3d.tests.fabricate import (
    EARLY_DISTILLATION,
    WORST_KINDS,
    MixedRows,
    make_collator,
    make_config,
    make_model,
    make_training_arguments,
)
from ross3d.training.build import load_geometry_encoder
from ross3d.training.callbacks import NamedLosses
from ross3d.training.trainer import Ross3DTrainer


COMPARED_STEPS, LEARNING_RATE, VIEW_MASK_PERIOD = 20, 0.02, 2
# All five losses.
CHANGES = {"view_mask_period": VIEW_MASK_PERIOD, "distillation_config": EARLY_DISTILLATION}
LOSS_NAMES = get_loss_names(make_config(**CHANGES))

# Seconds after which a process that has not ended a step waits for another one in vain; at first ZeRO compiles.
PATIENCE, FIRST_PATIENCE = 90, 1800


class EndWhenStuck(TrainerCallback):
    """Ends a process that does not come to the end of a step, and says in which call each of its threads is."""

    def on_step_end(self, args, state, control, **kwargs):
        # Also what comes behind the last step, an evaluation, has so long.
        faulthandler.dump_traceback_later(PATIENCE, exit=True)


class KeepParameters(TrainerCallback):
    """Writes the whole model's parameters down after `COMPARED_STEPS`."""

    def __init__(self, file: Path):
        self.file = file
        self.trainer: Ross3DTrainer | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step != COMPARED_STEPS:
            return
        weights = self.trainer.accelerator.get_state_dict(self.trainer.model_wrapped)
        if state.is_world_process_zero:
            save_file({name: value.contiguous().clone() for name, value in weights.items()}, self.file)


def make_start() -> Ross3DForConditionalGeneration:
    """The model that every run begins with."""
    return make_model(**CHANGES)


def main(output: Path, batch_size: int, accumulation: int, steps: int) -> None:
    faulthandler.dump_traceback_later(FIRST_PATIENCE, exit=True)
    torch.set_num_threads(1)
    output.mkdir(parents=True, exist_ok=True)
    # Before the arguments: behind them ZeRO-3 would cut new weights to pieces before they are drawn.
    model, folder = make_start(), TemporaryDirectory()
    model.get_geometry_encoder().save_pretrained(folder.name)
    arguments = make_training_arguments(
        output,
        batch_size,
        accumulation,
        steps,
        learning_rate=LEARNING_RATE,
        per_device_eval_batch_size=batch_size,
        ddp_find_unused_parameters=False,
    )
    # As train.py reads it, where ZeRO-3 is already at work.
    encoder = load_geometry_encoder(Path(folder.name))
    model.attach_geometry_encoder(encoder)
    counted = []
    model.register_forward_hook(
        lambda module, args, found: counted.append(found.loss_counts.tolist()) if module.training else None
    )
    keeper = KeepParameters(output / "parameters.safetensors")
    trainer = Ross3DTrainer(
        model=model,
        args=arguments,
        train_dataset=MixedRows(steps * batch_size * accumulation * arguments.world_size, accumulation, geometry=True),
        data_collator=make_collator(),
        callbacks=[keeper, EndWhenStuck()],
    )
    keeper.trainer = trainer
    trainer.callback_handler.callbacks.insert(0, NamedLosses(model))
    trainer.train()
    held, held_of_encoder = (sum(p.numel() for p in part.parameters()) for part in (model, encoder))
    metrics = trainer.evaluate(MixedRows(len(WORST_KINDS), geometry=True))
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        model.save_pretrained(output / "final", state_dict=weights)
    logs = [{key: log[key] for key in sorted({"loss", *LOSS_NAMES} & log.keys())} for log in trainer.state.log_history]
    record = {"world_size": arguments.world_size, "held": held, "held_of_encoder": held_of_encoder}
    record |= {"counts": counted, "logs": logs[:steps]}
    faulthandler.cancel_dump_traceback_later()
    record["evaluated"] = {name: metrics[f"eval_{name}"] for name in ("loss", *LOSS_NAMES)}
    (output / f"rank-{arguments.process_index}.json").write_text(json.dumps(record))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
