"""train.py, writing down what each optimizer step was fed. Usage:

    python -m ross3d.tests.invariant.record_train RECORDS CONFIG [--section.key value ...]

Appends a line of JSON to RECORDS for every micro-batch: the step, the rows by their seeds, a hash of all tensors of
the batch, the masked views and a hash of the diffusion draws. Nothing else differs from `python train.py CONFIG ...`.

KILL_AT=FOLDER:COUNT in the environment kills it inside of a write; see `kill_inside.py`.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch

from ross3d import objectives_ross3d, train
from ross3d.tests.invariant.kill_inside import kill_inside_write
from ross3d.training.arguments import read_run_arguments
from ross3d.training.trainer import Ross3DTrainer


def hash_tensors(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_steps(file: Path) -> None:
    """From here on every training step of this process appends to `file`."""
    drawn: list[torch.Tensor] = []
    draw_rows, training_step = objectives_ross3d.draw_rows, Ross3DTrainer.training_step

    def draw_and_keep(*arguments):
        rows = draw_rows(*arguments)
        drawn.extend(rows)
        return rows

    def step_and_write(trainer, model, inputs, *arguments):
        record = {
            "step": trainer.state.global_step,
            "rows": inputs["row_seed"].tolist(),
            "inputs": hash_tensors([inputs[name] for name in sorted(inputs)]),
            "hidden": inputs["bool_masked_views"].nonzero().tolist(),
        }
        drawn.clear()
        loss = training_step(trainer, model, inputs, *arguments)
        line = json.dumps(record | {"noise": hash_tensors(drawn), "num_draws": len(drawn), "loss": loss.item()})
        with file.open("a") as records:
            records.write(line + "\n")
        return loss

    objectives_ross3d.draw_rows = draw_and_keep
    Ross3DTrainer.training_step = step_and_write


if __name__ == "__main__":
    kill_inside_write()
    record_steps(Path(sys.argv[1]))
    train.main(read_run_arguments(sys.argv[2], sys.argv[3:]))
