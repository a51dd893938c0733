"""An objective from outside: one class, one weight in the config, one row in the table of inputs. Usage:

    python -m ross3d.tests.invariant.toy_objective OUTPUT BATCH_SIZExACCUMULATION      (or under torchrun)

Trains a model that also tells how bright each view is from its states, and writes parameters and log of every rank.
"""

import json
import os
import sys
from pathlib import Path

import torch
from huggingface_hub.dataclasses import strict
from safetensors.torch import save_file
from torch import nn

from ross3d import inputs_ross3d, modeling_ross3d
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.inputs_ross3d import FLOATS, NAN, Input
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.objectives_ross3d import Batch, Draws, Objective, SceneStates, count_nothing
from ross3d.tests.fabricate import RaggedRows, make_collator, make_config, make_teacher, make_training_arguments
from ross3d.training.callbacks import NamedLosses
from ross3d.training.trainer import Ross3DTrainer


NUM_STEPS = 3


@strict
class BrightnessConfig(Ross3DConfig):
    brightness_loss_weight: float | int = 0.5


class BrightnessObjective(Objective):
    """Mean over views with a known brightness of the squared error of what a linear layer makes of their states."""

    name = "brightness"
    reads = ("view_brightness", "pixel_values")
    head = "brightness_head"

    def is_on(self, config: Ross3DConfig) -> bool:
        return hasattr(config, "brightness_loss_weight")

    def make_head(self, config: Ross3DConfig) -> nn.Module:
        return nn.Linear(config.text_config.hidden_size, 1)

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        if "view_brightness" not in batch:
            return count_nothing(batch)
        return (~batch["view_brightness"].isnan()).sum(dim=1)

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        found = model.brightness_head(states.states.mean(dim=2))[..., 0]
        wanted = batch.get("view_brightness", torch.full_like(found, torch.nan))
        errors = (found - wanted.nan_to_num()).square()
        return (errors * ~wanted.isnan()).sum()


class BrightnessModel(Ross3DForConditionalGeneration):
    config_class = BrightnessConfig


class BrightRows(RaggedRows):
    """Rows whose views say how bright they are, but for every third row."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(index)
        if index % 3 != 2:
            row["view_brightness"] = row["pixel_values"].flatten(1).mean(dim=1)
        return row


def register(set_item=dict.__setitem__, set_attribute=setattr) -> None:
    """Add the objective; a test hands over what undoes it again."""
    set_item(inputs_ross3d.INPUTS, "view_brightness", Input(("B", "V"), FLOATS, "target", NAN))
    set_attribute(modeling_ross3d, "OBJECTIVES", [*modeling_ross3d.OBJECTIVES, BrightnessObjective()])


def make_bright_model(seed: int = 0) -> BrightnessModel:
    torch.manual_seed(seed)
    model = BrightnessModel(BrightnessConfig.from_dict(make_config(view_mask_period=2).to_dict()))
    model.attach_teacher(make_teacher())
    return model


def train(output: Path, batch_size: int, accumulation: int) -> Ross3DTrainer:
    model, counts = make_bright_model(), []
    model.register_forward_pre_hook(
        lambda module, given, words: counts.append(words["num_items_in_batch"].tolist()), with_kwargs=True
    )
    arguments = make_training_arguments(output, batch_size, accumulation, NUM_STEPS)
    trainer = Ross3DTrainer(model=model, args=arguments, train_dataset=BrightRows(60), data_collator=make_collator())
    trainer.callback_handler.callbacks.insert(0, NamedLosses(model))
    trainer.train()
    output.mkdir(parents=True, exist_ok=True)
    parameters = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(parameters, output / f"parameters-{arguments.process_index}.safetensors")
    record = {"counts": counts[::accumulation], "log": trainer.state.log_history}
    (output / f"record-{arguments.process_index}.json").write_text(json.dumps(record))
    return trainer


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    register()
    train(Path(sys.argv[1]), *map(int, sys.argv[2].split("x")))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
