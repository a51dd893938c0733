"""Steps on mixed rows with weights in shards, as accelerate cuts them by configs/accelerate/fsdp2.yaml. Usage:

    torchrun --nproc_per_node 2 -m ross3d.tests.invariant.train_fsdp2 OUTPUT BATCH_SIZE ACCUMULATION NUM_STEPS [bf16]

On CPU `accelerate launch` falls back to whole copies. Here accelerate's own function wraps the model on a gloo mesh,
and a loop of a few lines does what the Trainer would. Files as in `train_anywhere.py`.
"""

import faulthandler
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from ross3d.tests.fabricate import MixedRows, make_collator
from ross3d.tests.invariant.train_anywhere import (
    COMPARED_STEPS,
    LEARNING_RATE,
    PATIENCE,
    VIEW_MASK_PERIOD,
    make_start,
)
from ross3d.training.build import save_by_own_class
from ross3d.training.trainer import count_losses, keep_float32, open_view_gate


ROOT = Path(__file__).resolve().parents[2]


def shard(model: torch.nn.Module, num_processes: int, precision: str) -> torch.nn.Module:
    """Cut a model by the classes that the config names; with `bf16` it computes as `trainer.bf16` makes it."""
    settings = yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"],
        transformer_cls_names_to_wrap=settings["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
        state_dict_type=settings["fsdp_state_dict_type"],
    )
    if precision != "no":
        plugin.set_mixed_precision(precision)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        torch_device_mesh={("fsdp",): init_device_mesh("cpu", (num_processes,))},
        parallelism_config=SimpleNamespace(fsdp_dim_names=["fsdp"]),
        mixed_precision=precision,
        device=torch.device("cpu"),
        is_main_process=torch.distributed.get_rank() == 0,
    )
    return fsdp2_prepare_model(accelerator, model)


def main(output: Path, batch_size: int, accumulation: int, steps: int, precision: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, num_processes = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = make_start().train()
    save_by_own_class(model)
    model = shard(model, num_processes, precision)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    rows = MixedRows(steps * batch_size * accumulation * num_processes, accumulation, geometry=True)
    collate, counted = make_collator(), []
    for step in range(steps):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        batches = []
        for micro in range(step * accumulation, (step + 1) * accumulation):
            first = (micro * num_processes + rank) * batch_size
            batches.append(collate([rows[index] for index in range(first, first + batch_size)]))
            open_view_gate(batches[-1], step, VIEW_MASK_PERIOD)
        counts = sum(count_losses(batch, model.config) for batch in batches)
        torch.distributed.all_reduce(counts)
        for batch in batches:
            keep_float32(batch)
            found = model(**batch, num_items_in_batch=counts.long())
            counted.append(found.loss_counts.tolist())
            # Gradients are averaged over processes; the losses are shares of a sum over them.
            (found.loss * num_processes).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step + 1 in (COMPARED_STEPS, steps):
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
            if rank == 0 and step + 1 == COMPARED_STEPS:
                output.mkdir(parents=True, exist_ok=True)
                save_file(
                    {name: value.contiguous() for name, value in weights.items()}, output / "parameters.safetensors"
                )
            if rank == 0 and step + 1 == steps:
                model.save_pretrained(output / "final", state_dict=weights)
    faulthandler.cancel_dump_traceback_later()
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters())
    record = {"world_size": num_processes, "held": held, "counts": counted}
    torch.distributed.barrier()
    (output / f"rank-{rank}.json").write_text(json.dumps(record))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]), (sys.argv[5:] or ["no"])[0])
