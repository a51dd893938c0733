"""train.py, writing down what each optimizer step was fed. Usage:

    python -m ross3d.tests.invariant.record_train RECORDS CONFIG [--section.key value ...]

Appends a line of JSON to RECORDS for every micro-batch: the step, the rows by their seeds, a hash of all tensors of
the batch, the hidden views and a hash of the diffusion draws. Nothing else differs from `python train.py CONFIG ...`.

With KILL_AT=FOLDER:COUNT in the environment the process and its workers are killed at the COUNT-th change of files in
FOLDER, that is, inside of what is written there.
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

from ross3d import modeling_ross3d, train
from ross3d.training.arguments import read_run_arguments
from ross3d.training.trainer import Ross3DTrainer


# Events of the interpreter that change a file or a folder; safetensors and torch.save write without one.
CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "shutil.rmtree")


def hash_tensors(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def record_steps(file: Path) -> None:
    """From here on every training step of this process appends to `file`."""
    drawn: list[torch.Tensor] = []
    draw_rows, training_step = modeling_ross3d.draw_rows, Ross3DTrainer.training_step

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

    modeling_ross3d.draw_rows = draw_and_keep
    Ross3DTrainer.training_step = step_and_write


def kill_inside_write(folder: str, count: int) -> None:
    """From here on the `count`-th change of files in folders of this name is not made: SIGKILL comes instead."""
    changes = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal changes
        is_write = event in CHANGES and (event != "open" or set(arguments[1] or "r") & set("wax"))
        if is_write and folder in Path(str(arguments[0])).parts:
            changes += 1
            if changes == count:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    if "KILL_AT" in os.environ:
        folder, count = os.environ["KILL_AT"].split(":")
        kill_inside_write(folder, int(count))
    record_steps(Path(sys.argv[1]))
    train.main(read_run_arguments(sys.argv[2], sys.argv[3:]))
