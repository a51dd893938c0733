"""A model is what its files hold: weights that are absent, unknown, of another shape or not finite are refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from ross3d.tests.fabricate import make_config, make_model
from ross3d.training.loading import check_finite_weights, load_model


@pytest.fixture
def folder(tmp_path):
    make_model().save_pretrained(tmp_path)
    return tmp_path


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_whole_checkpoint_loads_bit_for_bit(folder, caplog):
    model, wanted = load_model(folder), make_model().state_dict()
    assert not caplog.records and not model.training
    assert all(torch.equal(weight, wanted[name]) for name, weight in model.state_dict().items())
    assert load_model(folder, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.mask_token", "grounding_head.no_target", "model.language_model.norm.weight"]
)
def test_a_weight_that_is_absent_is_refused_unless_asked_for(folder, name, caplog):
    change_weights(folder, lambda weights: weights.pop(name))
    message = rf"expected all weights of the model in config.json, but {name} are missing; download the whole"
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    # The error says it all; the library's table is not printed on top.
    assert not caplog.records
    with caplog.at_level(logging.WARNING, logger="transformers.modeling_utils"):
        loaded = load_model(folder, allow_missing=True)
    # Drawn as in a new model: the norm is 1, the others have the spread of their config.
    drawn = loaded.get_parameter(name).detach()
    assert (drawn == 1).all() if name.endswith("norm.weight") else 0.05 < float(drawn.std()) < 0.3
    wanted = make_model().state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in loaded.state_dict().items() if key != name)


def test_absent_weights_are_counted(folder):
    change_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if "grounding" in name])
    with pytest.raises(
        ValueError, match=r"but grounding_head.no_target, .* and 10 more are missing; download the whole"
    ):
        load_model(folder)


def test_weights_of_another_config_are_refused(folder):
    change_weights(folder, lambda weights: weights.update({"model.other.weight": torch.zeros(2, 3)}))
    message = "expected only the weights of the model in config.json, got unknown weights model.other.weight; config"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_weights_of_another_shape_are_refused(folder):
    change_weights(folder, lambda weights: weights.update({"model.mask_token": torch.zeros(33)}))
    message = r"expected model.mask_token of shape \(32,\), as in the config, got \(33,\) \(1 such weights\)"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        ("denoiser_config", "bev_image_size", -1, "denoiser_config.bev_image_size: expected a number >= 1, got -1"),
        ("vision_config", "patch_size", 21, r"vision_config.patch_size: expected 1..20 pixels .*, got 21"),
        (None, "voxel_size", "wide", "'voxel_size' with value 'wide'"),
    ],
)
def test_values_that_the_config_refuses_name_the_file_and_the_key(folder, part, key, value, message):
    file = folder / "config.json"
    settings = json.loads(file.read_text())
    (settings[part] if part else settings)[key] = value
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=rf"{file}: .*{message}.*; download the checkpoint again"):
        load_model(folder)


def test_settings_of_generation_that_cannot_be_read_name_their_file(folder):
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"suppress_tokens": [3, [[]]]}))
    with pytest.raises(ValueError, match=f"{file}: expected generation settings, got .*unhashable.*remove the file"):
        load_model(folder)
    file.write_text(json.dumps(settings | {"suppress_tokens": [3, 4]}))
    assert load_model(folder).generation_config.suppress_tokens == [3, 4]
    file.unlink()
    assert load_model(folder).generation_config.suppress_tokens is None


def test_settings_may_add_a_head_and_take_one_away(tmp_path):
    make_model(grounding=False).save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")["lm_head.weight"]
    loaded = load_model(tmp_path, grounding=True, denoiser_config=None)
    assert float(loaded.grounding_head.query_mlp.linear_1.weight.std()) == pytest.approx(0.15, rel=0.2)
    assert loaded.reconstruction_head is None and torch.equal(loaded.lm_head.weight, saved)
    # What the checkpoint's own config asks for stays due.
    change_weights(tmp_path, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ValueError, match="but lm_head.weight are missing; download"):
        load_model(tmp_path, grounding=True)


def test_settings_may_not_change_the_shape_of_trained_weights(folder):
    with pytest.raises(ValueError, match="a setting of this run changes the size of trained weights"):
        load_model(folder, denoiser_config=make_config(denoiser={"intermediate_size": 44}).denoiser_config.to_dict())


def test_tied_weights_are_not_missing(tmp_path):
    tied = make_model(tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.mask_token", "reconstruction_head.view_pooler.queries"])
def test_weights_that_are_not_finite_are_refused(folder, name, value):
    def change(weights):
        weights[name].view(-1)[-1] = value

    change_weights(folder, change)
    message = rf"{folder}: expected finite weights, got NaN or infinity in {name}; the run that saved them had"
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_numbers_that_half_precision_cannot_hold_are_refused(folder):
    def change(weights):
        weights["lm_head.weight"][0, 0] = 7e4

    change_weights(folder, change)
    with pytest.raises(ValueError, match="infinity in lm_head.weight; .* or load it as bfloat16"):
        load_model(folder, dtype=torch.float16)
    loaded = load_model(folder, dtype=torch.bfloat16).lm_head.weight
    assert torch.equal(loaded, load_file(folder / "model.safetensors")["lm_head.weight"].bfloat16())


def test_eight_bit_and_offloaded_weights_are_passed_over():
    module = torch.nn.Module()
    module.register_buffer("codes", torch.tensor([1, 255], dtype=torch.uint8))
    module.register_buffer("scales", torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn))
    module.weight = torch.nn.Parameter(torch.empty(2, 3, device="meta"))
    with pytest.raises(ValueError, match="here: expected finite weights, got NaN or infinity in scales; the run"):
        check_finite_weights(module, "here")
    module.scales = torch.ones(2).to(torch.float8_e4m3fn)
    check_finite_weights(module, "here")


@pytest.mark.parametrize("whole", [0, 100, 5000])
def test_a_broken_weight_file_is_named(folder, whole):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:whole])
    with pytest.raises(ValueError, match=r"model\.safetensors: expected weights in the safetensors format, got a"):
        load_model(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.mask_token", "grounding_head.no_target"])
def test_whole_numbers_are_no_weights(folder, name):
    change_weights(folder, lambda weights: weights.update({name: (weights[name] * 100).to(torch.int8)}))
    with pytest.raises(ValueError, match=rf"model.safetensors: expected floating-point weights, got I8 in {name}"):
        load_model(folder)


@pytest.mark.parametrize("name", ["lm_head", "model.language_model.embed_tokens"])
def test_a_vocabulary_of_zeros_answers_nothing(folder, name):
    change_weights(folder, lambda weights: weights[f"{name}.weight"].zero_())
    short = name.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"expected trained weights, got only zeros in {short}, so every"):
        load_model(folder)
    # Other vectors of zeros are how some parts begin.
    change_weights(folder, lambda weights: [weights[f"{name}.weight"].add_(1), weights["model.mask_token"].zero_()])
    load_model(folder)


def test_a_broken_shard_is_named(tmp_path):
    make_model().save_pretrained(tmp_path, max_shard_size="60KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{shard.name}: expected weights in the safetensors format"):
        load_model(tmp_path)
    # Its tensors are in no file once the index has lost them.
    index = tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"] = {name: file for name, file in entries["weight_map"].items() if file != shard.name}
    index.write_text(json.dumps(entries))
    shard.unlink()
    with pytest.raises(ValueError, match="expected all weights of the model in config.json"):
        load_model(tmp_path)


def test_a_config_of_other_sizes_than_the_files_is_refused_before_anything_is_drawn(tmp_path):
    make_model().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["num_hidden_layers"] = 4_000_000_000
    file.write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="expected vision_config with at most 10000 layers, got 4000000000; download the whole"
    ):
        load_model(tmp_path)
    file.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"config.json does not exist; expected the settings of a checkpoint's"
    ):
        load_model(tmp_path)
