"""Steps of the Trainer on ragged rows, for comparing ways to split a step. Usage:

    python -m ross3d.tests.invariant.run_trainer OUTPUT BATCH_SIZExACCUMULATION ...      (or under torchrun)

Each split writes into OUTPUT/BATCH_SIZExACCUMULATION: for each named loss alone and for all of them the gradients of
the first step in float64 (LOSS-RANK.safetensors), and the parameters after 20 steps of plain SGD in float32
(parameters-RANK.safetensors). A JSON beside each tells the world size, which rows the rank read, what the first step's
losses were counted over, and what was logged.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainerCallback

from ross3d.modeling_ross3d import get_loss_names
from ross3d.tests.fabricate import (
    EARLY_DISTILLATION,
    RaggedRows,
    make_collator,
    make_config,
    make_model,
    make_training_arguments,
)
from ross3d.training.callbacks import NamedLosses
from ross3d.training.trainer import Ross3DTrainer


NUM_STEPS = 20
# All five losses, and views that are hidden in every other step.
CHANGES = {"view_mask_period": 2, "distillation_config": EARLY_DISTILLATION}
LOSS_NAMES = get_loss_names(make_config(**CHANGES))


class KeepGradients(TrainerCallback):
    """Copies what the optimizer is about to use."""

    def __init__(self):
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(
    output: Path, name: str, batch_size: int, accumulation: int, steps: int, dtype: torch.dtype, **weights: float
) -> None:
    """Train a new model and write `name`-RANK files: gradients of a single step, or parameters after several."""
    model = make_model(**CHANGES, **weights).to(dtype)
    model.get_teacher().to(dtype)
    model.model.vision_tower.requires_grad_(False)
    collator, rows, keeper = make_collator(), [], KeepGradients()

    def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        rows.extend(int(item["row_seed"]) for item in items)
        batch = collator(items)
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch.items()}

    counts = []
    model.register_forward_pre_hook(
        lambda module, args, words: counts.append(words["num_items_in_batch"].tolist()), with_kwargs=True
    )
    arguments = make_training_arguments(output, batch_size, accumulation, steps)
    trainer = Ross3DTrainer(
        model=model,
        args=arguments,
        train_dataset=RaggedRows(400, geometry=True),
        data_collator=collate,
        callbacks=[keeper],
    )
    trainer.callback_handler.callbacks.insert(0, NamedLosses(model))
    trainer.train()
    parameters = {key: value.detach().contiguous() for key, value in model.named_parameters()}
    rank = arguments.process_index
    output.mkdir(parents=True, exist_ok=True)
    save_file(keeper.gradients if steps == 1 else parameters, output / f"{name}-{rank}.safetensors")
    logs = [{key: log[key] for key in sorted({"loss", *LOSS_NAMES} & log.keys())} for log in trainer.state.log_history]
    # Rows that were collated ahead are left out, and the summary behind the last step.
    record = {"rows": rows[: batch_size * accumulation * steps], "logs": logs[:steps]}
    record |= {"world_size": arguments.world_size, "counts": counts[0]}
    (output / f"{name}-{rank}.json").write_text(json.dumps(record))


def main(output: Path, splits: list[str]) -> None:
    torch.set_num_threads(1)
    for split in splits:
        batch_size, accumulation = map(int, split.split("x"))
        for name in (*LOSS_NAMES, "loss"):
            weights = {f"{other}_weight": float(name in (other, "loss")) for other in LOSS_NAMES}
            train(output / split, name, batch_size, accumulation, 1, torch.float64, **weights)
        train(output / split, "parameters", batch_size, accumulation, NUM_STEPS, torch.float32)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), sys.argv[2:])
