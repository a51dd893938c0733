"""A saved directory is all that another machine needs: no checkout, no diffusers, the same bits.

The other machine is a virtual environment with the library's requirements alone, a fresh isolated process in it and a
working directory elsewhere.
"""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.other_machine import read_inputs, use
from ross3d.tests.posed_views import make_views
from ross3d.tools.make_tiny import make_tiny_checkpoint


ROOT = Path(__file__).parents[1]
# What the library itself needs to load and run a model, pictures and chat templates; their own needs follow.
LIBRARY = ("torch", "transformers", "pillow", "jinja2")
SHIPPED = {path.name for path in ROOT.glob("*_ross3d.py")}
QUESTIONS = ["How many chairs are there in the room?", "What is at <coord>?", "the lamp"]
POINTS = [None, [0.5, -0.2, 1.0], None]


def list_requirements(names) -> set[str]:
    """Distributions these need here, themselves included."""
    found, waiting = set(), list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


def make_machine(path: Path) -> Path:
    """A virtual environment that sees the library's requirements, linked from this one, and nothing else."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(path)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(path), "platbase": str(path)}))
    for name in list_requirements(LIBRARY):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(distribution.locate_file(top))
    return path / "bin/python"


def run_there(python: Path, folder: Path, *names: str) -> dict[str, dict]:
    """Run `other_machine.py` in `folder`; names are of checkpoint, inputs, answers and the second checkpoint."""
    script = shutil.copy(ROOT / "tests/other_machine.py", folder)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    command = [python, "-I", script, *names, str(torch.get_num_threads())]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return torch.load(folder / names[2])


def assert_bit_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_bit_equal(found[key], value)
        else:
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def machine(folder):
    return make_machine(folder / "machine")


@pytest.fixture(scope="module")
def checkpoint(folder):
    return make_tiny_checkpoint(folder / "checkpoint", seed=3)


@pytest.fixture(scope="module")
def wanted(folder, checkpoint):
    """What this process finds, with the classes of this checkout; the inputs lie in `given.npz`."""
    points = np.array(POINTS, dtype=object)
    np.savez(folder / "given.npz", **make_views(), questions=np.array(QUESTIONS), points=points)
    return use_here(checkpoint)


def use_here(checkpoint: Path) -> dict:
    model = Ross3DForConditionalGeneration.from_pretrained(checkpoint)
    return use(model, Ross3DProcessor.from_pretrained(checkpoint), *read_inputs(checkpoint.parent / "given.npz"))


@pytest.fixture(scope="module")
def first(folder, machine, checkpoint, wanted):
    return run_there(machine, folder, "checkpoint", "given.npz", "first.pt", "again")


def test_the_directory_holds_the_code_and_names_it(checkpoint):
    assert {file.name for file in checkpoint.glob("*.py")} == SHIPPED
    for name in SHIPPED:
        assert (checkpoint / name).read_text() == (ROOT / name).read_text()
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_ross3d.Ross3DConfig",
        "AutoModel": "modeling_ross3d.Ross3DForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_ross3d.Ross3DForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_ross3d.Ross3DForConditionalGeneration",
    }
    settings = json.loads((checkpoint / "processor_config.json").read_text())
    assert settings["auto_map"] == {"AutoProcessor": "processing_ross3d.Ross3DProcessor"}


def test_no_path_of_this_machine_is_saved(checkpoint):
    for file in checkpoint.rglob("*.json"):
        assert str(ROOT) not in file.read_text() and str(checkpoint.parent) not in file.read_text(), file.name


def test_another_machine_finds_the_same_bits(first, wanted):
    assert first.keys() == {"AutoModel", "AutoModelForImageTextToText"}
    for found in first.values():
        assert_bit_equal(found, wanted)
    assert wanted["scores"].shape == (3, 6) and wanted["ids"].shape[1] > wanted["inputs"]["input_ids"].shape[1]


def test_what_was_loaded_there_can_be_saved_there_and_loaded_again(folder, machine, checkpoint, first, wanted):
    names = {file.name for file in checkpoint.iterdir()} - {"teacher"}
    assert_bit_equal(run_there(machine, folder, "again", "given.npz", "second.pt", "third"), first)
    # Loading writes down what was the default before (dtype, where a tokenizer came from); then nothing changes.
    settled = {"config.json", "tokenizer_config.json"}
    for older, newer, same in (("checkpoint", "again", names - settled), ("again", "third", names)):
        assert {file.name for file in (folder / newer).iterdir()} == names
        for name in same:
            assert (folder / older / name).read_bytes() == (folder / newer / name).read_bytes(), name
    assert_bit_equal(use_here(folder / "again"), wanted)
