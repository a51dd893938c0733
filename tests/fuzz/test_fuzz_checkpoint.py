"""Malformed checkpoints, checkpoints of a run and saved scenes: each is loaded, or named in the error."""

import os
import shutil
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ross3d.data.likeness import describe_training, list_unlike
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tasks.confidence import get_text_confidence
from ross3d.tests.fabricate import make_collator, make_model, make_row
from ross3d.tests.fuzz.junk import spoiled_bytes
from ross3d.tests.fuzz.limits import attempt, limit_memory, run_seeded
from ross3d.tests.fuzz.test_fuzz_files import spoil_file
from ross3d.tests.test_damage import make_checkpoint
from ross3d.tests.test_likeness import make_training
from ross3d.tests.tiny import get_checkpoint
from ross3d.training.calibration import get_weights_mark, load_calibration, save_calibration
from ross3d.training.checkpoint import load_processor
from ross3d.training.damage import COMPLETE_MARK, check_checkpoint_files
from ross3d.training.loading import load_model


# What of a checkpoint is read: the rest is Python for other programs, and its page.
READ = ("config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
        "tokenizer_config.json", "chat_template.jinja")  # fmt: skip


@pytest.fixture(autouse=True)
def memory():
    with limit_memory():
        yield


def copy_checkpoint(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    for name in READ:
        shutil.copy(get_checkpoint() / name, path)
    return path


def load(folder: Path) -> Ross3DForConditionalGeneration:
    load_processor(folder)
    return load_model(folder)


def test_a_right_checkpoint_loads(tmp_path):
    model, refusal = attempt(lambda: load(copy_checkpoint(tmp_path / "right")), "a right checkpoint")
    assert refusal is None
    assert all(torch.equal(model.get_parameter(name), weight) for name, weight in get_weights().items())


@run_seeded(40)
@given(data=st.data())
def test_files_of_a_checkpoint(data, tmp_path_factory):
    """What is accepted has finite weights, those of the file where another file was spoiled."""
    folder = copy_checkpoint(tmp_path_factory.getbasetemp() / "spoiled-checkpoint")
    done = spoil_file(data, folder / data.draw(st.sampled_from(READ)))
    model, _ = attempt(lambda: load(folder), done, f"{folder.name}|{done.partition(':')[0]}")
    if model is not None:
        assert all(bool(weight.isfinite().all()) for weight in model.parameters())
        is_spoiled = done.startswith("model.safetensors")
        assert is_spoiled or all(
            torch.equal(model.get_parameter(name), weight) for name, weight in get_weights().items()
        )


@run_seeded(60)
@given(data=st.data())
def test_a_calibration_beside_a_checkpoint(data, tmp_path_factory):
    """What is accepted gives a confidence and compares a scan."""
    folder = copy_checkpoint(tmp_path_factory.getbasetemp() / "spoiled-calibration")
    numbers, looks = make_training()
    scans = {"threshold": 1.5, "training": describe_training(numbers, looks)}
    content = {"version": 1, "weights": get_weights_mark(folder), "evaluation": {"proposals": "given"}, "scans": scans}
    save_calibration(folder, content | {"confidence": {"text": {"slope": 1.5, "offset": -0.5}}})
    done = spoil_file(data, folder / "calibration.json")
    with warnings.catch_warnings():
        # Of other weights, where the hash was spoiled.
        warnings.simplefilter("ignore")
        loaded, _ = attempt(lambda: load_calibration(folder), done, f"{folder.name}|calibration.json")
    if loaded is not None:
        assert get_text_confidence(loaded, 0.7) is None or 0 <= get_text_confidence(loaded, 0.7) <= 1
        assert loaded["scans"] is None or all(list_unlike(row, looks[0], loaded["scans"]) != [""] for row in numbers)


TENSOR_FAULTS = {
    "NaN": lambda weights, name: weights | {name: weights[name] * torch.nan},
    "infinite": lambda weights, name: weights | {name: weights[name] + torch.inf},
    "absent": lambda weights, name: {key: weight for key, weight in weights.items() if key != name},
    "renamed": lambda weights, name: {f"{key}s" if key == name else key: w for key, w in weights.items()},
    "longer": lambda weights, name: weights | {name: torch.cat([weights[name], weights[name]])},
    "turned": lambda weights, name: weights | {name: weights[name][None]},
    "empty": lambda weights, name: weights | {name: weights[name][:0]},
    "whole numbers": lambda weights, name: weights | {name: weights[name].to(torch.int8)},
}


@cache
def get_weights() -> dict[str, torch.Tensor]:
    return load_file(get_checkpoint() / "model.safetensors")


@run_seeded(30, slow=8)
@given(data=st.data())
def test_weights_of_a_checkpoint(data, tmp_path_factory):
    folder = copy_checkpoint(tmp_path_factory.getbasetemp() / "spoiled-weights")
    fault, name = data.draw(st.sampled_from(list(TENSOR_FAULTS))), data.draw(st.sampled_from(sorted(get_weights())))
    save_file(TENSOR_FAULTS[fault](get_weights(), name), folder / "model.safetensors", {"format": "pt"})
    _, refusal = attempt(lambda: load(folder), (fault, name), name)
    assert refusal is not None, f"{fault} {name}: accepted in silence"


@run_seeded(80)
@given(data=st.data())
def test_checkpoints_of_a_run(data, tmp_path_factory):
    """Spoiled by bytes alone: what is of another kind or gone was put aside before, by the mark of the folder."""
    path = tmp_path_factory.getbasetemp() / "spoiled-run"
    shutil.rmtree(path, ignore_errors=True)
    folder = make_checkpoint(path, data.draw(st.integers(1, 3)))
    file = data.draw(st.sampled_from(sorted(folder.iterdir())))
    size = file.stat().st_size
    done = spoil_file(data, file)
    step = int(folder.name.rpartition("-")[2])
    # A mark of wrong sizes blames the files that it is about.
    named = folder.name if file.name == COMPLETE_MARK else file.name
    _, refusal = attempt(lambda: check_checkpoint_files(folder, step), done, named)
    assert refusal is not None or file.name == COMPLETE_MARK or file.stat().st_size == size, done


@cache
def get_reader() -> Ross3DForConditionalGeneration:
    return make_model().eval()


def save_scene(file: Path, views: int = 3) -> Path:
    batch = make_collator()([make_row(1, views, 4, [])])
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    with torch.no_grad():
        get_reader().encode_scene(**{name: batch[name] for name in names if name in batch}).save(file, get_reader())
    return file


@run_seeded(60)
@given(data=st.data())
def test_bytes_of_saved_scenes(data, tmp_path_factory):
    file = save_scene(tmp_path_factory.getbasetemp() / "spoiled.scene")
    right = torch.load(file)
    content = data.draw(spoiled_bytes(file.read_bytes()))
    file.write_bytes(content)
    scene, _ = attempt(lambda: get_reader().load_scene(file), content[:100], file.name)
    # Bytes that no tensor is read from may differ.
    if scene is not None:
        assert torch.equal(scene.prefix_mask, right["prefix_mask"])
        for layer, wanted in zip(scene.past_key_values.layers, right["layers"], strict=True):
            assert torch.equal(layer.keys, wanted["keys"]) and torch.equal(layer.values, wanted["values"])


def change_shapes(state: dict) -> dict[str, dict]:
    """Saved scenes whose tensors cannot be this model's, by the tensor."""
    mask, layers = state["prefix_mask"], state["layers"]
    return {
        "prefix_mask": state | {"prefix_mask": mask[:, :-1]},
        "keys of layer 0": state | {"layers": [{**layers[0], "keys": layers[0]["keys"][..., :-1]}, *layers[1:]]},
        "values of layer 1": state | {"layers": [layers[0], {**layers[1], "values": layers[1]["values"][:0]}]},
        "layers": state | {"layers": layers[:1]},
        "proposal_features": state | {"proposal_features": torch.zeros(1, 4, 7)},
        "patch_features": state | {"patch_features": torch.zeros(1, 1, 1, 1)},
    }


@pytest.mark.parametrize("views", [2, 3])
def test_saved_scenes_of_other_shapes_are_refused(tmp_path, views):
    file = save_scene(tmp_path / "right.scene", views)
    found = get_reader().load_scene(file)
    assert torch.equal(found.past_key_values.layers[0].keys, torch.load(file)["layers"][0]["keys"])
    spoiled = tmp_path / "spoiled.scene"
    for fault, state in change_shapes(torch.load(file)).items():
        torch.save(state, spoiled)
        _, refusal = attempt(lambda: get_reader().load_scene(spoiled), fault, spoiled.name)
        assert refusal is not None, fault


@pytest.mark.parametrize("kind", ["pipe", "folder", "sparse"])
def test_a_scene_that_is_no_file_is_refused(tmp_path, kind):
    file = tmp_path / "saved.scene"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        save_scene(file)
        os.truncate(file, 1 << 40)
    assert attempt(lambda: get_reader().load_scene(file), kind, file.name)[1] is not None
