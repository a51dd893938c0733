"""Two processes, however they share model and optimizer, train as one does, without hanging, and leave the same.

The launchers' files are those in configs/accelerate/, on CPU processes. Needs deepspeed, g++ and ninja for ZeRO.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ross3d.modeling_ross3d import LOSS_NAMES
from ross3d.tests.fabricate import make_model
from ross3d.tests.invariant.train_anywhere import COMPARED_STEPS, VIEW_MASK_PERIOD


ROOT = Path(__file__).resolve().parents[2]
MANY_STEPS = 200
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


def run(command: list[str], timeout: int, **variables: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    # On a machine with a GPU as well, where DeepSpeed would choose it.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, *command], env=environment | variables, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def train(output: Path, config: str, num_processes: int, num_steps: int, *more: str) -> dict[str, torch.Tensor]:
    """Train and give the gathered parameters after the compared steps. A hang ends in `TimeoutExpired`."""
    check_tools(config)
    module = "train_fsdp2" if config == "fsdp2" else "train_anywhere"
    split = (2, 2) if num_processes == 1 else (1, 2)
    command = ["-m", *launch(config, num_processes), "-m", f"ross3d.tests.invariant.{module}"]
    run([*command, str(output), *map(str, split), str(num_steps), *more], timeout=600)
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, torch.Tensor]:
    """Parameters of one process on the same global batch, which have moved."""
    wanted = train(tmp_path_factory.mktemp("alone"), "single", 1, COMPARED_STEPS)
    start = make_model(view_mask_period=VIEW_MASK_PERIOD).state_dict()
    moved = [name for name, value in wanted.items() if (value - start[name]).abs().max() > 1e-3]
    assert wanted.keys() == start.keys() and len(moved) > len(wanted) / 2, "the run must move the parameters"
    return wanted


def check_checkpoint(folder: Path) -> None:
    """The gathered checkpoint loads in a fresh process, with the numbers that its file holds and nothing missing."""
    found = json.loads(run(["-W", "error::UserWarning", "-c", LOAD, str(folder)], timeout=120))
    held = load_file(folder / "model.safetensors")
    native = set(make_model(view_mask_period=VIEW_MASK_PERIOD).state_dict())
    assert set(held) == native == set(found), "names differ from the model's own"
    for name, value in held.items():
        assert found[name] == pytest.approx(value.double().sum().item(), rel=1e-9, abs=1e-12), name


def check_many_steps(output: Path, alone: dict[str, torch.Tensor], config: str) -> None:
    check_same_parameters(train(output, config, 2, MANY_STEPS), alone)
    ranks = read_ranks(output)
    assert [record["world_size"] for record in ranks] == [2, 2]
    micro_batches = [record["counts"] for record in ranks]
    assert [len(counts) for counts in micro_batches] == [2 * MANY_STEPS] * 2
    # Every kind of loss is there on one process and missing on the other in some micro-batch.
    for place, name in enumerate(LOSS_NAMES):
        has = [(bool(one[place]), bool(other[place])) for one, other in zip(*micro_batches, strict=True)]
        assert (True, False) in has or (False, True) in has, f"{name} is never ragged"
    check_checkpoint(output / "final")


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_two_hundred_steps_on_two_processes(tmp_path, alone, config):
    check_many_steps(tmp_path, alone, config)
    total = sum(value.numel() for value in alone.values())
    held = [record["held"] for record in read_ranks(tmp_path)]
    # ZeRO-3 leaves tensors below its threshold whole, which are all of these.
    assert (max(held) < 0.7 * total) if config == "fsdp2" else (held == [total, total])


def test_twenty_steps_of_zero3(tmp_path, alone):
    """The quick one: every weight in shards, ragged rows, the parameters of one process."""
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    file = tmp_path / "zero3.json"
    file.write_text(json.dumps(dict.fromkeys(sizes, "auto") | {"zero_optimization": zero}))
    check_same_parameters(train(tmp_path / "run", str(file), 2, COMPARED_STEPS), alone)
    assert [record["held"] for record in read_ranks(tmp_path / "run")] == [0, 0]


@pytest.mark.slow
def test_twenty_steps_of_zero3_with_offload(tmp_path, alone):
    """Accelerate exchanges SGD for DeepSpeed's Adam on CPU, so the parameters are not those of one process."""
    found = train(tmp_path, "zero3_offload", 2, COMPARED_STEPS)
    assert found.keys() == alone.keys() and all(value.isfinite().all() for value in found.values())
    check_checkpoint(tmp_path / "final")


@pytest.mark.slow
def test_fsdp2_in_half_precision(tmp_path, alone):
    """FSDP casts every float that enters the model; metres, weights and counts are no floats there.

    Half precision moves twenty steep steps of SGD by a third (measured 0.35) of what they do.
    """
    found = train(tmp_path, "fsdp2", 2, COMPARED_STEPS, "bf16")
    start = make_model(view_mask_period=VIEW_MASK_PERIOD).state_dict()
    off = sum((found[name].float() - value).square().sum() for name, value in alone.items()).sqrt()
    moved = sum((start[name] - value).square().sum() for name, value in alone.items()).sqrt()
    assert found.keys() == alone.keys() and off < 0.6 * moved
