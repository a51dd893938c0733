"""Two processes that are killed and started again go through the same rows in the same order, and end the same."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from ross3d.tests.invariant.test_resume import (
    OUTPUT,
    RECORDS,
    finish,
    make_settings,
    read_records,
    start,
    write_inputs,
)
from ross3d.tests.invariant.test_train_anywhere import check_tools, kill_all, launch


def get_command(folder: Path, config: str, num_processes: int) -> list[str]:
    script = ["-m", "ross3d.tests.invariant.record_train", str(RECORDS), str(folder / "run.yaml")]
    return [sys.executable, "-m", *launch(config, num_processes), *script]


def make_run(folder: Path) -> None:
    write_inputs(folder, num_train=4, num_val=1)
    settings = make_settings(folder)
    settings["vision_warmup"] = None
    settings["data"] |= {"visit": "questions", "questions_per_row": 5}
    settings["parts"] = {"model.vision_tower": {"learning_rate": 3.0e-4}}  # Muon needs whole matrices.
    settings["trainer"] |= {"dataloader_num_workers": 0, "save_total_limit": None, "max_steps": 8}
    settings["trainer"]["activation_checkpointing"] = True
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))


def get_rows(folder: Path) -> set[tuple]:
    """What each optimizer step was fed, on any process: step, rows, a hash of all tensors, masked views, noise."""
    records = read_records(folder)
    return {(r["step"], *r["rows"], r["inputs"], json.dumps(r["hidden"]), r["noise"], r["num_draws"]) for r in records}


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "deepspeed_zero3"])
def test_two_processes_resume_in_the_same_order(tmp_path, config):
    check_tools(config)
    make_run(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(get_command(tmp_path, config, 2), whole), whole)
    process = start(get_command(tmp_path, config, 2), killed)
    while max((record["step"] for record in read_records(killed)), default=0) < 5:
        assert process.poll() is None, (killed / "errors.txt").read_text()[-3000:]
        time.sleep(0.01)
    kill_all(process)
    assert (killed / OUTPUT / "checkpoint-4").is_dir() and not (killed / OUTPUT / "model.safetensors").exists()
    # One process would go through other rows in a step: it is refused, and nothing is changed.
    alone = start(get_command(tmp_path, "single", 1), killed)
    assert alone.wait(timeout=300) != 0
    assert "expected num_processes=2, as when this run began, got 1" in (killed / "errors.txt").read_text()
    before = len(read_records(killed))
    finish(start(get_command(tmp_path, config, 2), killed), killed)
    assert min(record["step"] for record in read_records(killed)[before:]) == 4, "the run did not go on"
    assert get_rows(killed) == get_rows(whole)
    assert len(get_rows(whole)) == 8 * 2 * 2, "a process read what the other one read"
    wanted, found = (load_file(folder / OUTPUT / "model.safetensors") for folder in (whole, killed))
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not value.equal(found[name])] == []
    shutil.rmtree(tmp_path)
