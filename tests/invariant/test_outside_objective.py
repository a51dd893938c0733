"""An objective that no file of ours knows is trained, counted, logged, shown in the report and ignored by answers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ross3d import inputs_ross3d, modeling_ross3d
from ross3d.inputs_ross3d import list_inputs
from ross3d.modeling_ross3d import LOSS_NAMES, count_losses, get_loss_names
from ross3d.report.run import make_loss_section
from ross3d.tests.fabricate import make_collator, make_model
from ross3d.tests.invariant.toy_objective import NUM_STEPS, BrightRows, make_bright_model, register


# Rows a batch, batches a step, processes: always four rows a step.
SPLITS = ((4, 1, 1), (2, 2, 1), (1, 2, 2))


@pytest.fixture
def bright(monkeypatch):
    register(monkeypatch.setitem, monkeypatch.setattr)
    return make_bright_model()


def make_bright_batch(*indices: int) -> dict[str, torch.Tensor]:
    rows = BrightRows(60)
    return make_collator()([rows[index] for index in indices])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[tuple[int, int, int], list[tuple[dict, dict]]]:
    """Parameters and record of every rank, for each way to split a step."""
    found = {}
    for batch_size, accumulation, processes in SPLITS:
        output = tmp_path_factory.mktemp("trained")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes > 1 else []
        module = ["-m", "ross3d.tests.invariant.toy_objective", str(output), f"{batch_size}x{accumulation}"]
        run = subprocess.run(
            [sys.executable, *launcher, *module], env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        found[batch_size, accumulation, processes] = [
            (load_file(output / f"parameters-{rank}.safetensors"), read(output / f"record-{rank}.json"))
            for rank in range(processes)
        ]
    return found


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def test_it_is_trained_and_counted_over_accumulation_and_processes(trained):
    ((wanted, record),) = trained[SPLITS[0]]
    rows = BrightRows(60)
    for step, counts in enumerate(record["counts"]):
        known = [row["view_brightness"] for index in range(4) if "view_brightness" in (row := rows[4 * step + index])]
        assert len(counts) == len(LOSS_NAMES) + 1 and counts[-1] == sum(map(len, known)) > 0
    with torch.no_grad():
        assert not torch.equal(wanted["brightness_head.weight"], make_unregistered_head())
    for split in SPLITS[1:]:
        for parameters, other in trained[split]:
            assert other["counts"] == record["counts"], split
            for name, value in wanted.items():
                assert torch.allclose(parameters[name], value, rtol=1e-4, atol=1e-6), (split, name)


def make_unregistered_head() -> torch.Tensor:
    """The weights that the head of a run begins with."""
    with pytest.MonkeyPatch.context() as patch:
        register(patch.setitem, patch.setattr)
        return make_bright_model().brightness_head.weight.detach()


def test_it_is_logged_and_shown_in_the_report(trained):
    logs = [record["log"][:NUM_STEPS] for ranks in trained.values() for _, record in ranks[:1]]
    for log in logs:
        assert all(entry["brightness_loss"] > 0 for entry in log)
        assert [entry["brightness_loss"] for entry in log] == pytest.approx(
            [entry["brightness_loss"] for entry in logs[0]], rel=1e-4
        )
    assert "brightness_loss" in str(make_loss_section(logs[0])) and "train_loss" not in str(make_loss_section(logs[0]))


def test_it_weighs_in_the_loss_and_is_absent_where_no_row_has_its_target(bright):
    batch = make_bright_batch(0, 1, 2)
    outputs = bright.eval()(**batch)
    assert get_loss_names(bright.config) == (*LOSS_NAMES, "brightness_loss")
    assert torch.equal(outputs.loss_counts, count_losses(batch, bright.config))
    named = sum(getattr(bright.config, f"{name}_weight") * outputs[name] for name in get_loss_names(bright.config))
    assert torch.allclose(outputs.loss, named)
    without = bright(**make_bright_batch(2, 5))
    assert without.brightness_loss is None and without.loss_counts[-1] == 0
    # In training it runs all the same: other processes may have rows for it.
    trained = bright.train()(**make_bright_batch(2, 5))
    assert trained.brightness_loss == 0
    trained.loss.backward()
    assert not bright.brightness_head.weight.grad.any()


def test_answers_do_not_read_it(bright):
    batch = make_bright_batch(1)
    names = list_inputs("text", "scene")
    prompt = {name: batch[name] for name in names if name in batch} | {"segment_ids": None}
    targets = {name: batch[name] for name in ("view_brightness",)}
    settings = {"max_new_tokens": 3, "do_sample": False}
    plain = bright.eval().generate(**prompt, **settings)
    assert torch.equal(bright.generate(**prompt, **targets, **settings), plain)
    assert "brightness_loss" in bright.config.keys_to_ignore_at_inference


def test_it_is_refused_by_name_without_what_it_reads(bright):
    batch = make_bright_batch(0, 1)
    del batch["pixel_values"]
    batch["view_mask"] = None
    with pytest.raises(
        ValueError,
        match=r"view_brightness: expected pixel_values with this target, to compare the two, got none",
    ):
        bright.eval()(input_ids=torch.tensor([[1, 2], [1, 2]]), view_brightness=batch["view_brightness"])


def test_models_of_ours_do_not_have_it(bright):
    model = make_model().eval()
    assert get_loss_names(model.config) == LOSS_NAMES and not hasattr(model, "brightness_head")
    assert "view_brightness" in inputs_ross3d.INPUTS and modeling_ross3d.OBJECTIVES[-1].name == "brightness"
