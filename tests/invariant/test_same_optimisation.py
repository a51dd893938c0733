"""However a step is split over micro-batches and processes, it is the same step."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ross3d.tests.fabricate import EARLY_DISTILLATION, RaggedRows, make_collator, make_model
from ross3d.tests.invariant.run_trainer import CHANGES, LOSS_NAMES, NUM_STEPS
from ross3d.training.trainer import count_losses


ROWS_PER_STEP = 4
# Batch size of a process, accumulation, processes: the first is what the others have to equal.
WHOLE, *SPLITS = [(4, 1, 1), (1, 4, 1), (2, 1, 2), (1, 2, 2)]


def get_worst_deviation(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest max|a - b| / max|b| of all tensors.

    A tensor a billion times smaller than the largest is rounding (the bias of keys has no gradient): what differs in
    it is measured against a billionth of the largest.
    """
    assert found.keys() == wanted.keys()
    sizes = {name: value.abs().max().item() for name, value in wanted.items()}
    floor = 1e-9 * max(sizes.values())
    return max((found[name] - wanted[name]).abs().max().item() / max(size, floor) for name, size in sizes.items())


def get_gradients(model, batches, counts):
    model.zero_grad()
    for batch in batches:
        batch = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        model(**batch, num_items_in_batch=counts).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("condition", "objective"), [("pooled", "cross_view"), ("per_view", "cross_view"), ("per_view", "vanilla")]
)
@pytest.mark.parametrize("loss_name", [*LOSS_NAMES, "loss"])
def test_one_step_however_split(loss_name, condition, objective):
    """Rows of every kind, all parts trained, split by hand."""
    weights = {f"{name}_weight": float(loss_name in (name, "loss")) for name in LOSS_NAMES}
    changes = {"view_objective": objective, "distillation_config": EARLY_DISTILLATION, **weights}
    model = make_model(denoiser={"condition": condition}, **changes).double().train()
    model.get_teacher().double()
    rows, collate = [RaggedRows(8, geometry=True)[i] for i in range(8)], make_collator()
    whole = collate(rows)
    counts = count_losses(whole, model.config)
    assert (counts > 0).all(), "the batch must exercise every named loss"
    wanted = get_gradients(model, [whole], counts)
    assert max(value.abs().max().item() for value in wanted.values()) > 1e-3
    singles = [collate([row]) for row in rows]
    assert torch.equal(sum(count_losses(single, model.config) for single in singles), counts)
    pairs = [collate(rows[i : i + 2]) for i in range(0, 8, 2)]
    for batches in (singles, pairs):
        assert get_worst_deviation(get_gradients(model, batches, counts), wanted) <= 1e-6


def test_rows_of_a_step_are_ragged():
    """The rows of the first step differ in length, views, proposals and in what they have."""
    rows = [RaggedRows(ROWS_PER_STEP)[index] for index in range(ROWS_PER_STEP)]
    for name in ("input_ids", "pixel_values", "proposal_boxes"):
        assert len({len(row[name]) for row in rows}) >= 3
    answers = [weight for row in rows for weight in row["loss_weights"].unique().tolist() if weight]
    assert len(set(answers)) > 1, "answers of different lengths"
    for name in ("patch_coords", "bev_pixel_values", "grounding_labels"):
        assert {name in row for row in rows} == {True, False}


@dataclass
class Trained:
    """What `run_trainer.py` wrote for one split: tensors and records of every rank."""

    folder: Path
    num_processes: int

    def load(self, name: str) -> list[dict[str, torch.Tensor]]:
        return [load_file(self.folder / f"{name}-{rank}.safetensors") for rank in range(self.num_processes)]

    def read(self, name: str) -> list[dict]:
        return [json.loads((self.folder / f"{name}-{rank}.json").read_text()) for rank in range(self.num_processes)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[tuple[int, int, int], Trained]:
    """Every split, run by the Trainer: those of one process together, those of two processes together."""
    folder, found = tmp_path_factory.mktemp("trained"), {}
    for processes in (1, 2):
        splits = [split for split in (WHOLE, *SPLITS) if split[2] == processes]
        launcher = [sys.executable, "-m"]
        if processes > 1:
            launcher += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
        output = folder / str(processes)
        command = [*launcher, "ross3d.tests.invariant.run_trainer", str(output), *(f"{b}x{a}" for b, a, _ in splits)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr[-3000:]
        found |= {split: Trained(output / f"{split[0]}x{split[1]}", processes) for split in splits}
    return found


def check_rows(split: tuple[int, int, int], records: list[dict], steps: int) -> None:
    """As many processes as were started, each with rows of its own, together those of the whole."""
    assert [record["world_size"] for record in records] == [split[2]] * split[2]
    read = [set(record["rows"]) for record in records]
    assert all(len(rows) == steps * ROWS_PER_STEP // split[2] for rows in read), "a rank read a row twice"
    assert sum(map(len, read)) == len(set().union(*read)), "ranks must read disjoint rows"
    assert set().union(*read) == {1000 + index for index in range(steps * ROWS_PER_STEP)}


@pytest.mark.parametrize("name", [*LOSS_NAMES, "loss"])
def test_gradients_of_a_step_of_the_trainer(trained, name):
    """Each named loss alone, and their sum, in float64: what differs is no rounding."""
    (wanted,), (record,) = trained[WHOLE].load(name), trained[WHOLE].read(name)
    check_rows(WHOLE, [record], steps=1)
    assert min(record["counts"]) > 0, "the step must exercise every named loss"
    assert max(value.abs().max().item() for value in wanted.values()) > 1e-3
    for split in SPLITS:
        records = trained[split].read(name)
        check_rows(split, records, steps=1)
        assert all(found["counts"] == record["counts"] for found in records)
        for found in trained[split].load(name):
            assert get_worst_deviation(found, wanted) <= 1e-6, split


def test_parameters_after_twenty_steps(trained):
    (wanted,) = trained[WHOLE].load("parameters")
    start = {name: value.detach() for name, value in make_model(**CHANGES).named_parameters()}
    moved = {name for name, value in wanted.items() if (value - start[name]).abs().max() > 1e-3}
    assert len(moved) > len(wanted) / 2, "the run must move the parameters"
    for split in SPLITS:
        check_rows(split, trained[split].read("parameters"), NUM_STEPS)
        for found in trained[split].load("parameters"):
            assert get_worst_deviation(found, wanted) <= 1e-5, split


def test_logs_of_twenty_steps(trained):
    """The loss and each named loss that a step has, as the Trainer reports them."""
    (record,) = trained[WHOLE].read("parameters")
    assert len(record["logs"]) == NUM_STEPS and {"loss", *LOSS_NAMES} == set().union(*record["logs"])
    # Views are hidden in every other step only.
    assert ["view_loss" in log for log in record["logs"]] == [step % 2 == 0 for step in range(NUM_STEPS)]
    for split in SPLITS:
        logs = trained[split].read("parameters")[0]["logs"]
        assert len(logs) == NUM_STEPS
        for found, wanted in zip(logs, record["logs"], strict=True):
            assert found == pytest.approx(wanted, rel=1e-4), split
