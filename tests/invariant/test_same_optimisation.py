"""However a step is split over micro-batches and processes, it is the same step."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from ross3d.modeling_ross3d import LOSS_NAMES
from ross3d.tests.fabricate import RaggedRows, make_collator, make_model
from ross3d.training.trainer import count_losses


def get_gradients(model, batches, counts):
    model.zero_grad()
    for batch in batches:
        batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        model(**batch, num_items_in_batch=counts).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def get_relative_error(found, wanted):
    largest = max(float(value.abs().max()) for value in wanted.values())
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted) / largest


@pytest.mark.parametrize("condition", ["pooled", "per_view"])
@pytest.mark.parametrize("loss_name", [*LOSS_NAMES, "loss"])
def test_one_step_however_split(loss_name, condition):
    weights = {f"{name}_weight": float(loss_name in (name, "loss")) for name in LOSS_NAMES}
    model = make_model(denoiser={"condition": condition}, **weights).double().train()
    model._teacher[0].double()
    rows, collate = [RaggedRows(8)[i] for i in range(8)], make_collator()
    whole = collate(rows)
    counts = count_losses(whole, model.config)
    assert (counts > 0).all(), "the batch must exercise every named loss"
    wanted = get_gradients(model, [whole], counts)
    assert max(float(value.abs().max()) for value in wanted.values()) > 1e-3
    singles = [collate([row]) for row in rows]
    assert torch.equal(sum(count_losses(single, model.config) for single in singles), counts)
    pairs = [collate(rows[i : i + 2]) for i in range(0, 8, 2)]
    for batches in (singles, pairs):
        assert get_relative_error(get_gradients(model, batches, counts), wanted) <= 1e-6


def run_trainer(output, batch_size, accumulation, processes=1, steps=20):
    module = "ross3d.tests.invariant.run_trainer"
    launcher = [sys.executable, "-m", module]
    if processes > 1:
        launcher = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            str(processes),
            "-m",
            module,
        ]
    arguments = [str(output), str(batch_size), str(accumulation), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*launcher, *arguments], env=environment, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr[-3000:]
    records = [json.loads((output / f"rows-{rank}.json").read_text()) for rank in range(processes)]
    return load_file(output / "parameters-0.safetensors"), records


def test_twenty_steps_however_split(tmp_path):
    wanted, records = run_trainer(tmp_path / "one", batch_size=4, accumulation=1)
    assert records[0]["world_size"] == 1
    start = dict(make_model(view_mask_period=2).named_parameters())
    assert get_relative_error(wanted, start) > 1e-2, "the run must move the parameters"
    accumulated, _ = run_trainer(tmp_path / "accumulated", batch_size=1, accumulation=4)
    assert get_relative_error(accumulated, wanted) <= 1e-5
    parallel, records = run_trainer(tmp_path / "parallel", batch_size=2, accumulation=1, processes=2)
    assert [record["world_size"] for record in records] == [2, 2]
    first, second = (set(record["rows"]) for record in records)
    assert not (first & second) and len(first | second) == 80, "ranks must read disjoint rows"
    assert get_relative_error(parallel, wanted) <= 1e-5
