"""Whether weights in shards are seen to be finite by all processes alike, wherever a NaN stands. Usage:

    torchrun --nproc_per_node 2 -m ross3d.tests.invariant.finite_shards OUTPUT

Weights are cut as in `train_fsdp2.py`. Writes for every rank what it was told (OUTPUT/rank-N.json): for the whole
model, and for a NaN in the first and in the last row of a few weights in turn, of which some have a single row, so
that a process holds nothing of them.
"""

import faulthandler
import json
import sys
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from ross3d.tests.fabricate import make_model
from ross3d.tests.invariant.train_anywhere import PATIENCE
from ross3d.tests.invariant.train_fsdp2 import shard
from ross3d.training.callbacks import has_finite_weights


def write(weight: DTensor, row: int, value: float) -> None:
    """Set the first number of a row, on the process that holds it."""
    local, num_processes = weight.to_local(), torch.distributed.get_world_size()
    # As torch cuts: pieces of as many rows, the last ones shorter or empty.
    piece = -(-len(weight) // num_processes)
    place = row - torch.distributed.get_rank() * piece
    if 0 <= place < len(local):
        local[place].view(-1)[0] = value


@torch.no_grad()
def main(output: Path) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = shard(make_model(), num_processes, "no")
    weights = dict(model.named_parameters())
    thin = min(weights, key=lambda name: len(weights[name]))
    told, empty = {"whole": has_finite_weights(model, num_processes)}, []
    for name in (thin, "lm_head.weight", "model.multi_modal_projector.linear_1.weight"):
        weight = weights[name]
        empty += [] if weight.to_local().numel() else [name]
        for row in (0, len(weight) - 1):
            write(weight, row, torch.nan)
            told[f"{name}, row {row}"] = has_finite_weights(model, num_processes)
            write(weight, row, 0.0)
    write(weights[thin], 0, torch.inf)
    weights[thin].requires_grad_(False)
    told["frozen"] = has_finite_weights(model, num_processes)
    faulthandler.cancel_dump_traceback_later()
    torch.distributed.barrier()
    output.mkdir(parents=True, exist_ok=True)
    (output / f"rank-{rank}.json").write_text(json.dumps({"told": told, "empty": empty}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
