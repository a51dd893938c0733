"""A run of configs/tiny_3drs.yaml, cut down to seconds: it learns, by encoder or by files, alone or with another."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from ross3d import train
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.invariant.test_resume import make_settings, write_inputs
from ross3d.tests.invariant.test_train_anywhere import check_same_parameters, launch
from ross3d.tests.invariant.test_train_anywhere import run as run_command
from ross3d.tests.test_eval import door as eval_door
from ross3d.training import geometry_features
from ross3d.training.arguments import RunArguments, read_run_arguments
from ross3d.training.callbacks import is_complete


ROOT = Path(__file__).resolve().parents[2]
NUM_SCENES, ROWS_PER_STEP = 8, 4
LOSSES = ("loss", "lm_loss", "grounding_loss", "distill_loss")
# For another process, which imports nothing of the checkout.
LOAD = """
import json, sys
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
model.attach_geometry_encoder(sys.argv[2])
pictures = torch.arange(2 * 3 * 64 * 64).reshape(1, 2, 3, 64, 64).remainder(256).to(torch.uint8)
found = model.encode_geometry(pictures)
assert not any("ross3d" == name.split(".")[0] for name in sys.modules)
weights = {name: value.double().sum().item() for name, value in model.state_dict().items()}
print(json.dumps([weights, found.patches[0].double().sum().item(), list(found.cam2world.shape)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run_3drs")
    write_inputs(folder, NUM_SCENES, num_val=2)
    settings = make_settings(folder, "tiny_3drs")
    settings["vision_warmup"] = None
    settings["data"]["epochs"] = 6
    settings["trainer"] |= {"dataloader_num_workers": 0, "per_device_train_batch_size": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


def get_run(folder: Path, name: str, **data) -> RunArguments:
    """The run of `folder`, with settings of `data` changed, that writes into the folder of that name."""
    arguments = read_run_arguments(folder / "run.yaml", ["--trainer.output_dir", str(folder / name)])
    return replace(arguments, data=replace(arguments.data, **data))


def read_logs(output: Path) -> list[dict]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in log.items() if name in (*LOSSES, "grad_norm")} for log in history]


@pytest.fixture(scope="module")
def online(folder) -> Path:
    """The folder of the finished run, whose targets are the encoder's."""
    train.main(get_run(folder, "online"))
    assert is_complete(folder / "online")
    return folder / "online"


def test_its_losses_fall(online):
    logs = read_logs(online)
    assert len(logs) == 6 * NUM_SCENES // ROWS_PER_STEP // 2
    first, last = logs[0], logs[-1]
    assert {name: last[name] < 0.95 * first[name] for name in LOSSES} == dict.fromkeys(LOSSES, True), (first, last)
    assert first["distill_loss"] > 0.5 and last["distill_loss"] < 0.7 * first["distill_loss"]
    weights = load_file(online / "model.safetensors")
    assert {name for name in weights if name.startswith("distillation_head")} == {
        f"distillation_head.linear_{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")
    }
    assert not any("aggregator" in name for name in weights)


def test_features_from_files_train_the_same(folder, online):
    files = {"geometry_features": str(folder / "features"), "geometry_storage": "float32"}
    geometry_features.main(get_run(folder, "files", **files))
    assert len(list((folder / "features").iterdir())) == NUM_SCENES
    train.main(get_run(folder, "files", **files))
    assert read_logs(folder / "files") == read_logs(online)
    wanted, found = (load_file(output / "model.safetensors") for output in (online, folder / "files"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], value) for name, value in wanted.items())


def test_the_finished_run_is_evaluated(folder, online):
    given = ["--model", online, "--data", folder / "rooms", "--output", folder / "evaluated"]
    options = ["--task", "rooms", "--max_new_tokens", "3"]
    eval_door.main(eval_door.parse_arguments([str(word) for word in (*given, *options)]))
    asked = [json.loads(line)["id"] for line in (folder / "rooms/annotations/val.jsonl").read_text().splitlines()]
    answers = (folder / "evaluated" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in answers] == asked
    assert json.loads((folder / "evaluated" / "metrics.json").read_text())


def test_a_fresh_process_loads_it_without_the_checkout(folder, online):
    """By the code beside the weights, the encoder's included."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-c", LOAD, str(online), str(folder / "geometry_encoder")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    weights, features, cameras = json.loads(done.stdout.splitlines()[-1])
    model = Ross3DForConditionalGeneration.from_pretrained(online)
    assert weights == {name: value.double().sum().item() for name, value in model.state_dict().items()}
    model.attach_geometry_encoder(folder / "geometry_encoder")
    pictures = torch.arange(2 * 3 * 64 * 64).reshape(1, 2, 3, 64, 64).remainder(256).to(torch.uint8)
    assert features == pytest.approx(model.encode_geometry(pictures).patches[0].double().sum().item(), rel=1e-6)
    assert cameras == [1, 2, 4, 4]


@pytest.mark.parametrize("config", ["ddp", pytest.param("deepspeed_zero3", marks=pytest.mark.slow)])
def test_two_processes_end_with_the_parameters_of_one(folder, config):
    """Plain SGD: the steps of Adam are of one size however small a gradient is, rounding included."""
    changes = {
        "trainer.optim": "sgd", "trainer.learning_rate": 0.02, "trainer.lr_scheduler_type": "constant",
        "trainer.max_grad_norm": 0.0, "trainer.max_steps": 6, "parts": "{}",
    }  # fmt: skip
    found, logs = {}, {}
    for processes, accumulation in ((1, 2), (2, 1)):
        output = folder / f"{config}-{processes}"
        own = {"trainer.gradient_accumulation_steps": accumulation, "trainer.output_dir": output}
        words = [word for name, value in (changes | own).items() for word in (f"--{name}", str(value))]
        if processes == 1:
            train.main(read_run_arguments(folder / "run.yaml", words))
        else:
            command = ["-m", *launch(config, 2), str(ROOT / "train.py"), str(folder / "run.yaml"), *words]
            run_command(command, timeout=900)
        found[processes], logs[processes] = load_file(output / "model.safetensors"), read_logs(output)
    check_same_parameters(found[2], found[1])
    for two, one in zip(logs[2], logs[1], strict=True):
        assert {name: two[name] for name in LOSSES} == pytest.approx({n: one[n] for n in LOSSES}, rel=1e-4)
