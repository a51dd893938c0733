"""Two processes, however they share model and optimizer, train as one does, without hanging, and leave the same.

The launchers' files are those in configs/accelerate/, on CPU processes. Needs deepspeed, g++ and ninja for ZeRO. Rows
are mixed: what the one process has in a step, views, depth, boxes, questions or a bird's-eye picture, the other lacks.
"""

import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ross3d.tests.fabricate import make_geometry_encoder
from ross3d.tests.invariant.train_anywhere import COMPARED_STEPS, LOSS_NAMES, make_start


ROOT = Path(__file__).resolve().parents[2]
MANY_STEPS = 200
# Seconds, of which the first start with ZeRO spends minutes on compiling kernels.
LONGEST = 2400
# Largest difference allowed, of what the largest number of a tensor is: rounding of float32 over 20 steps.
TOLERANCE = 1e-5
LOAD = """
import json, sys
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps({name: value.double().sum().item() for name, value in model.state_dict().items()}))
"""


def get_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def launch(config: str, num_processes: int) -> list[str]:
    """The start of a command that runs a module on CPU processes."""
    if config == "fsdp2":
        return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    given = ["--num_processes", str(num_processes), "--main_process_port", str(get_free_port())]
    file = Path(config) if config.endswith(".json") else ROOT / "configs" / "accelerate" / f"{config}.yaml"
    if file.suffix == ".json":
        given += ["--use_deepspeed", "--deepspeed_config_file", str(file), "--zero3_init_flag", "true"]
    else:
        given += ["--config_file", str(file)]
    return ["accelerate.commands.launch", *given]


def check_tools(config: str) -> None:
    """Skip where ZeRO cannot build the one kernel that it needs on CPU."""
    if "zero" in config:
        missing = [name for name in ("deepspeed", "ninja") if importlib.util.find_spec(name) is None]
        missing += [] if shutil.which("g++") else ["g++"]
        if missing:
            pytest.skip(f"ZeRO on CPU needs {', '.join(missing)}")


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a launcher and to what it has started, which has sessions of its own."""
    family = psutil.Process(process.pid)
    for member in [*family.children(recursive=True), family]:
        os.kill(member.pid, signal.SIGKILL)
    process.wait()


def run(command: list[str], timeout: int, **variables: str) -> str:
    """Run a Python command to its end; one that takes too long is killed with all that it started."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # On a machine with a GPU as well, where DeepSpeed would choose it.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} | variables
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        written, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_all(process)
        pytest.fail(f"no end after {timeout} s: {process.communicate()[1][-12000:]}")
    # Of a process that was stuck, with the stacks of its threads.
    assert process.returncode == 0, errors[-12000:]
    return written


def train(output: Path, config: str, num_processes: int, accumulation: int, num_steps: int, *more: str) -> dict:
    """Train and give the gathered parameters (`dict[str, torch.Tensor]`) after the compared steps."""
    check_tools(config)
    module = "train_fsdp2" if config == "fsdp2" else "train_anywhere"
    split = (2 // num_processes, accumulation, num_steps)
    command = ["-m", *launch(config, num_processes), "-m", f"ross3d.tests.invariant.{module}"]
    run([*command, str(output), *map(str, split), *more], timeout=LONGEST)
    return load_file(output / "parameters.safetensors")


def read_ranks(output: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted(output.glob("rank-*.json"))]


def check_same_parameters(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """To `TOLERANCE` of each tensor's largest number.

    Tensors a thousand times smaller than the model's largest number (the bias of keys has no gradient) are measured
    against a thousandth of it.
    """
    assert found.keys() == wanted.keys()
    floor = 1e-3 * max(value.abs().max().item() for value in wanted.values())
    for name, value in wanted.items():
        assert found[name].shape == value.shape, name
        allowed = TOLERANCE * max(value.abs().max().item(), floor)
        assert (found[name].float() - value).abs().max().item() <= allowed, name


class Trained(NamedTuple):
    parameters: dict[str, torch.Tensor]
    evaluated: dict[str, float]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Callable[[int], Trained]:
    """What one process makes of the same global batches, by accumulation; its parameters have moved."""

    @functools.cache
    def train_alone(accumulation: int) -> Trained:
        folder = tmp_path_factory.mktemp("alone")
        wanted = train(folder, "single", 1, accumulation, COMPARED_STEPS)
        start = make_start().state_dict()
        moved = [name for name, value in wanted.items() if (value - start[name]).abs().max() > 1e-3]
        assert wanted.keys() == start.keys() and len(moved) > len(wanted) / 2, "the run must move the parameters"
        return Trained(wanted, read_ranks(folder)[0]["evaluated"])

    return train_alone


def check_checkpoint(folder: Path) -> None:
    """The gathered checkpoint loads in a fresh process, with the numbers that its file holds and nothing missing."""
    found = json.loads(run(["-W", "error::UserWarning", "-c", LOAD, str(folder)], timeout=600))
    held = load_file(folder / "model.safetensors")
    native = set(make_start().state_dict())
    assert set(held) == native == set(found), "names differ from the model's own"
    for name, value in held.items():
        assert found[name] == pytest.approx(value.double().sum().item(), rel=1e-9, abs=1e-12), name


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("config", ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_two_hundred_steps_on_two_processes(tmp_path, alone, config, accumulation):
    found, wanted = train(tmp_path, config, 2, accumulation, MANY_STEPS), alone(accumulation).parameters
    check_same_parameters(found, wanted)
    ranks = read_ranks(tmp_path)
    assert [record["world_size"] for record in ranks] == [2, 2]
    micro_batches = [record["counts"] for record in ranks]
    assert [len(counts) for counts in micro_batches] == [accumulation * MANY_STEPS] * 2
    # Every kind of loss is there on one process and missing on the other in some micro-batch, and the other way round.
    for place, name in enumerate(LOSS_NAMES):
        has = {(bool(one[place]), bool(other[place])) for one, other in zip(*micro_batches, strict=True)}
        assert has >= {(True, False), (False, True)}, f"{name} is never mixed"
    total = sum(value.numel() for value in wanted.values())
    held = [record["held"] for record in ranks]
    # ZeRO-3 leaves tensors below its threshold whole, which are all of these.
    assert (max(held) < 0.7 * total) if config == "fsdp2" else (held == [total, total])
    check_checkpoint(tmp_path / "final")


def write_zero3(file: Path) -> str:
    """ZeRO-3 with every weight in shards, gradients reduced and weights fetched a few at a time; returns the path."""
    zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "stage3_param_persistence_threshold": 0}
    zero |= {"reduce_bucket_size": 2000, "stage3_prefetch_bucket_size": 1500, "stage3_max_reuse_distance": 3000}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    file.write_text(json.dumps(dict.fromkeys(sizes, "auto") | {"zero_optimization": zero}))
    return str(file)


def test_twenty_steps_of_zero3(tmp_path, alone):
    """The quick one: the worst mixtures and some that were drawn, and the parameters of one process."""
    found = train(tmp_path / "run", write_zero3(tmp_path / "zero3.json"), 2, 2, COMPARED_STEPS)
    check_same_parameters(found, alone(2).parameters)
    ranks = read_ranks(tmp_path / "run")
    assert [record["held"] for record in ranks] == [0, 0]
    encoder = sum(p.numel() for name, p in make_geometry_encoder().named_parameters() if "head" not in name)
    assert [record["held_of_encoder"] for record in ranks] == [encoder, encoder] and encoder > 5000
    # An evaluation of mixed rows is that of one process as well.
    assert ranks[0]["evaluated"] == ranks[1]["evaluated"] == pytest.approx(alone(2).evaluated, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_two_hundred_steps_of_zero3_in_small_shards(tmp_path, alone, accumulation):
    found = train(tmp_path / "run", write_zero3(tmp_path / "zero3.json"), 2, accumulation, MANY_STEPS)
    check_same_parameters(found, alone(accumulation).parameters)


@pytest.mark.slow
def test_twenty_steps_of_zero3_with_offload(tmp_path, alone):
    """Accelerate exchanges SGD for DeepSpeed's Adam on CPU, so the parameters are not those of one process.

    The first run compiles that Adam, which takes minutes.
    """
    found = train(tmp_path, "zero3_offload", 2, 2, COMPARED_STEPS)
    assert found.keys() == alone(2).parameters.keys() and all(value.isfinite().all() for value in found.values())
    check_checkpoint(tmp_path / "final")


@pytest.mark.slow
def test_fsdp2_in_half_precision(tmp_path, alone):
    """FSDP casts every float that enters the model; metres, weights and counts are no floats there.

    Half precision moves twenty steep steps of SGD by a third (measured 0.35) of what they do.
    """
    found, wanted = train(tmp_path, "fsdp2", 2, 2, COMPARED_STEPS, "bf16"), alone(2).parameters
    start = make_start().state_dict()
    off = sum((found[name].float() - value).square().sum() for name, value in wanted.items()).sqrt()
    moved = sum((start[name] - value).square().sum() for name, value in wanted.items()).sqrt()
    assert found.keys() == wanted.keys() and off < 0.6 * moved


@pytest.mark.slow
def test_all_processes_see_whether_weights_in_shards_are_finite(tmp_path):
    run(["-m", *launch("fsdp2", 2), "-m", "ross3d.tests.invariant.finite_shards", str(tmp_path)], timeout=300)
    ranks = read_ranks(tmp_path)
    assert ranks[0]["told"] == ranks[1]["told"] and len(ranks[0]["told"]) > 6
    fine = [place for place, is_finite in ranks[0]["told"].items() if is_finite]
    assert fine == ["whole", "frozen"]
    assert not ranks[0]["empty"] and ranks[1]["empty"], "the second process is to hold nothing of a weight"


@pytest.mark.slow
def test_a_stock_trainer_evaluates_rows_with_and_without_text_on_two_processes(tmp_path):
    """With `label_names=["input_ids"]`, as docs/TRAINING.md says; of two processes one has labels, the other none."""
    losses = []
    for config, num_processes in (("single", 1), ("ddp", 2)):
        output = tmp_path / config
        run(["-m", *launch(config, num_processes), "-m", "ross3d.tests.invariant.evaluate_stock", str(output)], 300)
        losses.append(json.loads((output / "evaluated.json").read_text())["eval_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] > 0
