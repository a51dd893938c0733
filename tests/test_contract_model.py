"""The checks Transformers makes of its own multimodal generative models, made of this one.

The library's own suites, which are not installed with it, run in `tests/suites` where they can be downloaded; these
run everywhere, in seconds. Everything is on a model of fifty thousand weights.
"""

import copy
import json
import pickle
import re

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model, infer_auto_device_map
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import GenerationMixin, PreTrainedModel, StaticCache, Trainer, TrainingArguments
from transformers.utils.generic import find_labels

from ross3d.attention_ross3d import SHARED_PREFIX_ATTENTION
from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.denoiser_ross3d import get_sincos_table
from ross3d.inputs_ross3d import list_inputs
from ross3d.modeling_ross3d import LOSS_NAMES, Ross3DForConditionalGeneration, Ross3DModel, Ross3DTargets
from ross3d.tests.fabricate import (
    COORD_TOKEN,
    EOS_TOKEN,
    GRID,
    IMAGE_TOKEN,
    PAD_TOKEN,
    RaggedRows,
    make_collator,
    make_config,
    make_model,
    make_row,
    make_teacher,
)
from ross3d.tests.plain_rows import assert_plain
from ross3d.views_ross3d import get_views


NAMED_LOSSES = (*LOSS_NAMES, "loss")
# Same arithmetic in another order: what float32 may differ by, relative to the largest number of a tensor.
ROUNDING = 2e-6


def get_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest wanted number; infinities must stand in the same places."""
    assert found.shape == wanted.shape
    finite = wanted.isfinite()
    assert torch.equal(finite, found.isfinite())
    if not finite.any():
        return 0.0
    difference = (found[finite].double() - wanted[finite].double()).abs().max()
    return float(difference / wanted[finite].double().abs().max().clamp(min=1e-12))


def assert_same(found, wanted, tolerance: float = 0.0, names=("logits", "grounding_scores", *NAMED_LOSSES)) -> None:
    """Outputs hold the same tensors; with no tolerance, bit by bit."""
    assert found.keys() == wanted.keys()
    for name in names:
        if wanted.get(name) is not None:
            assert get_error(found[name], wanted[name]) <= tolerance, name


def run(model, batch, **kwargs):
    with torch.no_grad():
        return model(**batch, **kwargs)


def select(batch, *names):
    return {name: batch[name] for name in names if name in batch}


SCENE_NAMES = ("pixel_values", "view_mask", "patch_coords", "patch_valid", "query_coords")
TEXT_NAMES = ("input_ids", "attention_mask", "segment_ids")
ROW_NAMES = (*TEXT_NAMES, *SCENE_NAMES)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.fixture(scope="module")
def packed():
    """Three ragged rows: several questions, no depth, masked views, bird's-eye pictures, targets of every kind."""
    return make_collator()([RaggedRows(3)[index] for index in range(3)])


@pytest.fixture(scope="module")
def plain():
    """One question about one scene, no answer, no targets."""
    row = make_row(3, 2, 3, ["coord"])
    end = row["input_ids"].tolist().index(COORD_TOKEN) + 1
    return select(make_collator(0.0)([row]), *SCENE_NAMES) | {name: row[name][None, :end] for name in TEXT_NAMES}


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    model.save_pretrained(path)
    return path


def load(path, **kwargs) -> Ross3DForConditionalGeneration:
    loaded = Ross3DForConditionalGeneration.from_pretrained(path, **kwargs).eval()
    if loaded.reconstruction_head is not None:
        loaded.attach_teacher(make_teacher())
    return loaded


# Initialisation


def test_initialization_follows_the_config():
    """With `initializer_range` 1e-9, every weight outside SigLIP (which has no such setting) rounds to 0 or 1."""
    text = make_config().text_config.to_dict() | {"initializer_range": 1e-9}
    config = make_config(
        denoiser={"initializer_range": 1e-9, "position_embedding": "zeros"},
        text_config=text,
        initializer_range=1e-9,
        projector_norm="layer_norm",
    )
    for name, weight in Ross3DForConditionalGeneration(config).named_parameters():
        if "vision_tower" not in name:
            assert set(weight.detach().round(decimals=6).unique().tolist()) <= {0.0, 1.0}, name


def test_initialization_spread_is_that_of_each_part():
    """Denoiser, heads and language model are drawn with the `initializer_range` of their own config."""
    changed = Ross3DForConditionalGeneration(make_config(denoiser={"initializer_range": 0.5}, initializer_range=0.01))
    spread = {name: float(weight.detach().std()) for name, weight in changed.named_parameters() if weight.dim() > 1}
    assert spread["reconstruction_head.view_pooler.k_proj.weight"] == pytest.approx(0.5, rel=0.2)
    assert spread["reconstruction_head.denoiser.blocks.0.mlp.fc1.weight"] == pytest.approx(0.5, rel=0.2)
    assert spread["grounding_head.query_mlp.linear_1.weight"] == pytest.approx(0.01, rel=0.2)
    assert spread["model.multi_modal_projector.linear_1.weight"] == pytest.approx(0.01, rel=0.2)
    assert spread["model.language_model.layers.0.mlp.up_proj.weight"] == pytest.approx(0.15, rel=0.2)


def test_new_denoiser_begins_at_zero():
    """A new denoiser predicts zero: its modulations and output are zero, its position tables sinusoids."""
    head = Ross3DForConditionalGeneration(make_config()).reconstruction_head
    zeros = [name for name, weight in head.named_parameters() if not weight.any() and "bias" not in name]
    assert zeros == [
        "denoiser.blocks.0.modulation.weight",
        "denoiser.final_layer.modulation.weight",
        "denoiser.final_layer.linear.weight",
    ]
    assert torch.equal(head.view_embedding.position_embedding, get_sincos_table(GRID, 16))
    latents, condition = torch.randn(2, 12, GRID, GRID), torch.randn(2, GRID**2, 16)
    assert not head.predict(latents, torch.tensor([1, 500]), condition, "view").any()


def test_all_missing_weights_can_be_initialised(monkeypatch):
    """Loading an empty state dict draws the same weights and buffers as building a new model from the same seed."""
    draw = PreTrainedModel._initialize_weights

    def draw_seeded(self, module, *args, **kwargs):
        torch.manual_seed(0)
        draw(self, module, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", draw_seeded)
    config = make_config(projector_norm="layer_norm")
    fresh = Ross3DForConditionalGeneration(copy.deepcopy(config))
    loaded = Ross3DForConditionalGeneration.from_pretrained(None, config=config, state_dict={})
    for named in ("named_parameters", "named_buffers"):
        found, wanted = dict(getattr(loaded, named)()), dict(getattr(fresh, named)())
        assert found.keys() == wanted.keys()
        for name in wanted:
            assert found[name].device.type == "cpu" and torch.equal(found[name], wanted[name]), name


def test_every_tensor_is_a_parameter_or_a_buffer(model, packed):
    """A model built on the meta device computes the same outputs once its parameters are filled in."""
    with torch.device("meta"):
        built = Ross3DForConditionalGeneration(make_config()).eval()
    built.to_empty(device="cpu")
    built.init_weights()
    built.attach_teacher(make_teacher())
    for name, buffer in model.named_buffers():
        assert torch.equal(built.get_buffer(name), buffer), name
    with torch.no_grad():
        for name, weight in model.named_parameters():
            built.get_parameter(name).copy_(weight)
    assert_same(run(built, packed), run(model, packed))


def test_a_weight_missing_from_the_file_is_drawn_and_reported(saved, tmp_path, model):
    """Weights that a file lacks are drawn as in a new model and reported as missing; all others are loaded."""
    weights = load_file(saved / "model.safetensors")
    dropped = [
        "grounding_head.no_target",
        "model.mask_token",
        "reconstruction_head.denoiser.final_layer.linear.weight",
    ]
    rest = {name: weight for name, weight in weights.items() if name not in dropped}
    loaded, info = Ross3DForConditionalGeneration.from_pretrained(
        None, config=make_config(), state_dict=rest, output_loading_info=True
    )
    assert sorted(info["missing_keys"]) == sorted(dropped)
    assert float(loaded.grounding_head.no_target.detach().std()) == pytest.approx(0.15, rel=0.5)
    assert float(loaded.model.mask_token.detach().std()) == pytest.approx(0.15, rel=0.5)
    assert not loaded.reconstruction_head.denoiser.final_layer.linear.weight.any()
    for name, weight in rest.items():
        assert torch.equal(loaded.get_parameter(name), weight), name


def test_mismatched_shapes_are_refused_unless_asked_for(saved, model):
    """Weights of other shapes are refused; with `ignore_mismatched_sizes` they are drawn and all others loaded."""
    other = make_config(denoiser={"hidden_size": 32})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        Ross3DForConditionalGeneration.from_pretrained(saved, config=other)
    loaded, info = Ross3DForConditionalGeneration.from_pretrained(
        saved, config=other, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mismatched = {key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"]}
    assert mismatched and all(name.startswith("reconstruction_head.") for name in mismatched)
    for name, weight in loaded.named_parameters():
        if name not in mismatched:
            assert torch.equal(weight, model.get_parameter(name)), name
    drawn = loaded.reconstruction_head.view_pooler.k_proj.weight.detach()
    assert drawn.shape[0] == 32 and float(drawn.std()) == pytest.approx(0.1, rel=0.2)


def test_model_can_be_built_on_the_meta_device():
    """Under `torch.device("meta")` every parameter is made on the meta device."""
    with torch.device("meta"):
        built = Ross3DForConditionalGeneration(make_config())
    assert all(weight.device.type == "meta" for weight in built.parameters())


def test_loading_on_the_meta_device_is_refused(saved):
    """`from_pretrained` under a meta device context is refused."""
    with torch.device("meta"), pytest.raises(RuntimeError, match="with a meta device context manager"):
        Ross3DForConditionalGeneration.from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_from_config_takes_a_dtype(dtype):
    """`_from_config(dtype=)` draws weights of that type, with the spread that they have in float32."""
    built = Ross3DForConditionalGeneration._from_config(make_config(), dtype=dtype)
    exact = Ross3DForConditionalGeneration(make_config())
    for name, weight in built.named_parameters():
        assert weight.dtype == dtype, name
        if weight.numel() > 500:
            spread = float(exact.get_parameter(name).detach().std())
            assert float(weight.detach().float().std()) == pytest.approx(spread, rel=0.2), name


# Saving and loading


def test_save_load_is_bit_equal(model, saved, packed):
    """A saved and loaded model has bit-equal weights and outputs."""
    loaded = load(saved)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    assert all(weight.is_contiguous() for weight in loaded.parameters())
    assert_same(run(loaded, packed), run(model, packed))


def test_weights_can_be_given_without_a_file(model, packed):
    """A model from a config and a state dict has the outputs of the original."""
    loaded = Ross3DForConditionalGeneration.from_pretrained(
        None, config=copy.deepcopy(model.config), state_dict=model.state_dict()
    ).eval()
    loaded.attach_teacher(make_teacher())
    assert_same(run(loaded, packed), run(model, packed))


@pytest.mark.parametrize("original", [True, False])
def test_saving_again_writes_the_same_files(saved, tmp_path, original):
    """Saving a loaded model writes the same bytes; the config only gains the parts' dtype."""
    load(saved).save_pretrained(tmp_path, save_original_format=original)
    for name in ("model.safetensors", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (saved / name).read_bytes(), name
    first, second = (json.loads((path / "config.json").read_text()) for path in (saved, tmp_path))
    for part in ("text_config", "vision_config", "denoiser_config"):
        assert second[part].pop("dtype") == "float32"
    assert first == second


def test_load_reports_no_missing_and_no_unexpected_keys(saved):
    """Loading a complete checkpoint reports no missing, unexpected or mismatched keys."""
    _, info = Ross3DForConditionalGeneration.from_pretrained(saved, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))


def test_a_file_without_any_weight_is_reported_whole(saved, model, tmp_path):
    """A file without a single known weight is reported with all names, missing and unexpected."""
    for file in saved.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file({"other": torch.zeros(2)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, info = Ross3DForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {name for name, _ in model.named_parameters()}
    assert set(info["unexpected_keys"]) == {"other"}


def test_only_safetensors_are_written_and_no_teacher_is_in_them(model, saved):
    """Saving writes only safetensors, without the weights of the attached VAE."""
    files = {file.name for file in saved.iterdir()}
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    with safe_open(saved / "model.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == set(model.state_dict()) and metadata == {"format": "pt"}
    assert not [name for name in names if "teacher" in name or "decoder" in name or "quant" in name]
    assert not any("teacher" in name for name, _ in model.named_modules())


def test_sharded_files_load(model, packed, tmp_path):
    """A checkpoint in several files loads with bit-equal outputs."""
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(run(load(tmp_path), packed), run(model, packed))


def test_base_model_loads_from_the_whole_and_the_whole_from_the_base(model, saved, plain, tmp_path):
    """`Ross3DModel` loads from a full checkpoint, and the full model from the base's, with only its heads missing."""
    base, info = Ross3DModel.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"]
    wanted = run(model.model, plain).last_hidden_state
    assert torch.equal(run(base.eval(), plain).last_hidden_state, wanted)
    base.save_pretrained(tmp_path)
    whole, info = Ross3DForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {
        "lm_head",
        "grounding_head",
        "reconstruction_head",
    }
    assert torch.equal(run(whole.model.eval(), plain).last_hidden_state, wanted)


@pytest.mark.parametrize("where", ["text_config", "config"])
def test_tied_weights_share_memory_and_are_saved_once(where, plain, tmp_path):
    """Tied embeddings share memory before and after loading and resizing, and are in the file once."""
    changes = {"tie_word_embeddings": True}
    if where == "text_config":
        changes = {"text_config": make_config().text_config.to_dict() | {"tie_word_embeddings": True}}
    tied = make_model(**changes).eval()
    source = tied.model.language_model.embed_tokens.weight
    assert tied.lm_head.weight is source
    shared = [name for name, weight in tied.state_dict().items() if weight.data_ptr() == source.data_ptr()]
    assert sorted(shared) == ["lm_head.weight", "model.language_model.embed_tokens.weight"]
    pointers = [weight.data_ptr() for weight in tied.state_dict().values() if weight.numel()]
    assert len(set(pointers)) == len(pointers) - 1
    tied.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()
    loaded, info = Ross3DForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert torch.equal(run(loaded.eval(), plain).logits, run(tied, plain).logits)
    loaded.resize_token_embeddings(104)
    assert loaded.lm_head.weight is loaded.model.language_model.embed_tokens.weight
    assert loaded.lm_head.weight.shape[0] == 104


def test_untied_weights_stay_apart(model, saved):
    """Without tying, the loaded output embeddings equal the saved ones and differ from the input embeddings."""
    loaded = load(saved)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.language_model.embed_tokens.weight)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


def test_loading_under_a_device_as_context_or_default(saved, model):
    """Loading under a device context or a default device gives the same weights."""
    with torch.device("cpu"):
        loaded = Ross3DForConditionalGeneration.from_pretrained(saved)
    torch.set_default_device("cpu")
    try:
        again = Ross3DForConditionalGeneration.from_pretrained(saved)
    finally:
        torch.set_default_device(None)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight) and torch.equal(again.state_dict()[name], weight), name


def test_non_persistent_buffers_are_filled_after_loading(model, saved):
    """Buffers that are not saved have the same values after loading."""
    persistent = set(model.state_dict())
    names = [name for name, _ in model.named_buffers() if name not in persistent]
    assert [name.split(".")[-1] for name in names] == ["position_ids", "inv_freq", "original_inv_freq"]
    loaded = load(saved)
    for name in names:
        assert torch.equal(loaded.get_buffer(name), model.get_buffer(name)), name


def test_deepcopy_and_pickle_are_bit_equal(model, plain):
    """A deep copy and an unpickled model give bit-equal logits."""
    wanted = run(model, plain).logits
    assert torch.equal(run(copy.deepcopy(model), plain).logits, wanted)
    assert torch.equal(run(pickle.loads(pickle.dumps(model)), plain).logits, wanted)


def test_generation_config_is_saved(model, tmp_path):
    """The generation config is saved and loaded, with the ids of the end and padding tokens."""
    changed = copy.deepcopy(model)
    changed.generation_config.max_new_tokens = 7
    changed.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.generation_config.to_dict() == changed.generation_config.to_dict()
    assert loaded.generation_config.eos_token_id == EOS_TOKEN and loaded.generation_config.pad_token_id == PAD_TOKEN


# Configuration


def test_config_round_trip(saved, tmp_path):
    """A saved config, its parts included, equals the loaded one, a copy, and one built from its dictionary."""
    config = make_config(denoiser={"condition": "pooled"}, grounding_temperature=0.5, id2label={0: "a"})
    config.save_pretrained(tmp_path)
    again = Ross3DConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() | {"transformers_version": again.transformers_version}
    assert again.denoiser_config.condition == "pooled" and again.text_config.model_type == "qwen2"
    assert Ross3DConfig(**config.to_dict()).to_diff_dict() == config.to_diff_dict()
    assert Ross3DConfig.from_json_file(tmp_path / "config.json").to_dict() == again.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_config_lies_in_a_subfolder_and_its_parts_are_found(tmp_path):
    """A config loads from a subfolder, and the denoiser's config from the same file."""
    config = make_config()
    config.save_pretrained(tmp_path / "a/b")
    again = Ross3DConfig.from_pretrained(tmp_path, subfolder="a/b")
    assert again.to_dict() == Ross3DConfig.from_pretrained(tmp_path / "a/b").to_dict()
    part = Ross3DDenoiserConfig.from_pretrained(tmp_path / "a/b")
    assert part.to_diff_dict() == config.denoiser_config.to_diff_dict()


def test_config_takes_the_common_arguments():
    """Arguments that all configs of the library take, such as `id2label`, are kept."""
    common = {
        "return_dict": False, "output_hidden_states": True, "output_attentions": True, "chunk_size_feed_forward": 5,
        "architectures": ["X"], "id2label": {0: "a"}, "label2id": {"a": 0}, "problem_type": "regression",
    }  # fmt: skip
    config = Ross3DConfig(**make_config().to_dict() | common | {"dtype": "float16"})
    assert {name: getattr(config, name) for name in common} == common and config.dtype == torch.float16
    assert len(Ross3DConfig(num_labels=5).id2label) == 5


def test_config_has_the_common_properties_in_its_text_config():
    """`get_text_config()` has the hidden size, heads, layers and vocabulary that the library reads."""
    text = make_config().get_text_config()
    assert [text.hidden_size, text.num_attention_heads, text.num_hidden_layers, text.vocab_size] == [32, 4, 2, 99]


def test_forward_without_the_common_tokens_in_the_config(plain, model):
    """A config without token ids, as in old files, gives the logits of one that has them."""
    settings = make_config().to_diff_dict()
    for part in (settings, settings["text_config"], settings["vision_config"]):
        for name in ("pad_token_id", "eos_token_id", "bos_token_id", "tie_word_embeddings"):
            part.pop(name, None)
    built = Ross3DForConditionalGeneration(Ross3DConfig(**settings)).eval()
    built.load_state_dict(model.state_dict())
    assert torch.equal(run(built, plain).logits, run(model, plain).logits)


def test_config_of_a_part_is_the_one_in_the_config(model):
    """Each part of the model holds the same config object as the model's config, so a change reaches both."""
    assert model.model.language_model.config is model.config.text_config
    assert model.model.vision_tower.config is model.config.vision_config
    assert model.reconstruction_head.config is model.config.denoiser_config


def test_config_defaults_build_and_are_typed():
    """The default config builds the published geometry without a denoiser and refuses values of a wrong type."""
    config = Ross3DConfig()
    assert config.denoiser_config is None and get_views(config).layout.num_positions == 14 * 15
    assert isinstance(Ross3DConfig(denoiser_config={}).denoiser_config, Ross3DDenoiserConfig)
    assert config.get_text_config() is config.text_config
    with pytest.raises(Exception, match="voxel_size"):
        Ross3DConfig(voxel_size="ten centimetres")


def test_config_without_heads_builds_without_them(plain, tmp_path):
    """Without `denoiser_config` and `grounding` the model has no heads, also after saving and loading."""
    bare = Ross3DForConditionalGeneration(make_config(denoiser_config=None, grounding=False)).eval()
    assert bare.reconstruction_head is None and bare.grounding_head is None
    bare.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.reconstruction_head is None
    assert torch.equal(run(loaded, plain).logits, run(bare, plain).logits)


@pytest.mark.parametrize(
    ("where", "key", "near"),
    [
        ("Ross3DConfig", "view_mask_ration", "view_mask_ratio"),
        ("vision_config", "num_hiden_layers", "num_hidden_layers"),
        ("text_config", "num_key_value_head", "num_key_value_heads"),
        ("denoiser_config", "conditions", "condition"),
    ],
)
def test_unknown_config_keys_are_refused(where, key, near, tmp_path):
    """A misspelled config key is refused with the nearest name; in a file it is kept, with a warning."""
    settings = make_config().to_dict()
    (settings if where == "Ross3DConfig" else settings[where])[key] = 1
    message = rf"{where}: expected keys of \w+, got unknown key `{key}`; did you mean `{near}`\?"
    with pytest.raises(ValueError, match=message):
        Ross3DConfig(**settings)
    # From a file that somebody else wrote they come along, with a word about it.
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.warns(UserWarning, match=rf"{where}: `{key}` is not a key of \w+ \(did you mean `{near}`\?\); it"):
        config = Ross3DConfig.from_pretrained(tmp_path)
    assert getattr(config if where == "Ross3DConfig" else getattr(config, where), key) == 1


def test_config_keys_of_the_library_pass():
    """Keys that only the library knows are accepted."""
    config = Ross3DConfig(
        **make_config().to_dict()
        | {"output_attentions": True, "id2label": {"0": "x"}, "architectures": ["X"], "attn_implementation": "eager"}
    )
    assert config.output_attentions and config._attn_implementation == "eager"


# Names the library relies on


def test_forward_begins_with_input_ids_and_names_every_processor_key(model):
    """`forward` takes `input_ids` first, every key of the processor, and `labels` as its only label for a Trainer."""
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    # A stock Trainer takes every `label` there for one that all batches have: two are among the typed other arguments.
    assert find_labels(type(model)) == ["labels"]
    names += list(Ross3DTargets.__annotations__)
    assert names[0] == model.main_input_name == "input_ids"
    training = ["labels", "shift_labels", "loss_weights", "grounding_labels", "bev_pixel_values", "bev_valid"]
    read = list_inputs("text", "scene", "proposals", "question", "masking")
    wanted = [*read, *training, "bev_bounds", "row_seed"]
    assert set(wanted) <= set(names)


def test_embeddings_can_be_read_and_replaced():
    """`set_input_embeddings` and `set_output_embeddings` install the very modules that they are given."""
    changed = make_model()
    table, head = torch.nn.Embedding(99, 32), torch.nn.Linear(32, 99, bias=False)
    changed.set_input_embeddings(table)
    changed.set_output_embeddings(head)
    assert changed.get_input_embeddings() is table is changed.model.get_input_embeddings()
    assert changed.get_output_embeddings() is head is changed.lm_head


def test_class_says_what_the_library_asks_of_it(model):
    """The class inherits GenerationMixin, has a base model, and every pattern of its `tp_plan` names a module."""
    assert GenerationMixin in Ross3DForConditionalGeneration.__bases__ and model.can_generate()
    assert model.base_model is model.model and model.num_parameters() < 1_000_000
    names = [name for name, _ in model.named_modules()]
    assert model.tp_plan
    for pattern in model.tp_plan:
        pattern = pattern.replace(".", r"\.").replace("*", r"\d+")
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_no_split_modules_are_modules_of_this_model(model):
    """Every class in `_no_split_modules` is in the model, with the layers of both towers among them."""
    classes = {type(module).__name__ for module in model.modules()}
    own = set(type(model)._no_split_modules)
    assert own <= classes
    assert {"Qwen2DecoderLayer", "SiglipEncoderLayer"} <= set(model._no_split_modules)


def test_outputs_before_logits_are_ignored_at_inference(model, packed, tmp_path):
    """Predictions of a stock Trainer begin with the logits; the losses before them are ignored."""
    names = [name for name in run(model, packed).keys() if name != "loss"]
    ignored = set(model.config.keys_to_ignore_at_inference)
    assert next(name for name in names if name not in ignored) == "logits"
    arguments = TrainingArguments(tmp_path, use_cpu=True, per_device_eval_batch_size=2, remove_unused_columns=False)
    trainer = Trainer(model=model, args=arguments, data_collator=make_collator())
    rows = [row | {"labels": row["input_ids"]} for row in (RaggedRows(2)[0], RaggedRows(2)[1])]
    prediction = trainer.predict(rows)
    assert prediction.predictions.shape[0] == 2 and prediction.predictions.shape[-1] == 99
    assert prediction.metrics["test_loss"] > 0


# Vocabulary


@pytest.mark.parametrize("size", [112, 95])
def test_resize_token_embeddings(size, plain, tmp_path):
    """After resizing, larger or smaller, tokens that remain keep their logits, and the size is saved."""
    changed = make_model().eval()
    wanted = run(changed, plain).logits
    changed.resize_token_embeddings(size)
    assert changed.config.text_config.vocab_size == changed.config.get_text_config().vocab_size == size
    assert changed.get_input_embeddings().weight.shape == changed.lm_head.weight.shape == (size, 32)
    found = run(changed, plain).logits
    kept = min(size, 99)
    assert found.shape[-1] == size and torch.equal(found[..., :kept], wanted[..., :kept])
    changed.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.config.text_config.vocab_size == size
    assert torch.equal(run(loaded, plain).logits, found)


def test_resized_head_is_not_drawn_again():
    """`post_init` after resizing leaves the output embeddings as they are."""
    changed = make_model()
    changed.resize_token_embeddings(109)
    before = changed.lm_head.weight.detach().clone()
    changed.post_init()
    assert torch.equal(changed.lm_head.weight, before)


def test_resize_token_embeddings_to_a_multiple(plain):
    """`pad_to_multiple_of` rounds the vocabulary up, and a new token has logits and a gradient."""
    changed = make_model().eval()
    changed.resize_token_embeddings(pad_to_multiple_of=16)
    assert changed.lm_head.weight.shape[0] == 112
    more = plain | {"input_ids": plain["input_ids"].clone()}
    more["input_ids"][0, 0] = 105
    assert_plain(changed, more)
    changed.train()(**more, labels=more["input_ids"]).loss.backward()
    assert changed.get_input_embeddings().weight.grad[105].any()


# Training


def test_shift_labels_replace_labels(model, plain):
    """The loss reads only `shift_labels` if both are given, as sequence parallel training needs."""
    ids = plain["input_ids"]
    logits = run(model, plain).logits
    likely, unlikely = logits.argmax(dim=-1), logits.argmin(dim=-1)
    wanted = run(model, plain, labels=ids, shift_labels=likely).loss
    assert torch.equal(run(model, plain, labels=ids.flip(1), shift_labels=likely).loss, wanted)
    assert run(model, plain, labels=ids, shift_labels=unlikely).loss > wanted
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    assert torch.equal(run(model, plain, labels=ids).loss, run(model, plain, shift_labels=shifted).loss)


def test_training_fits_one_batch(packed):
    """Forty steps on three rows: text and grounding losses fall below a tenth, the others fall."""
    trained = make_model().train()
    optimizer = torch.optim.Adam(trained.parameters(), lr=5e-3)
    history = []
    for _ in range(40):
        outputs = trained(**packed)
        optimizer.zero_grad()
        outputs.loss.backward()
        optimizer.step()
        history.append([float(outputs[name].detach()) for name in LOSS_NAMES])
    first, last = (dict(zip(LOSS_NAMES, losses, strict=True)) for losses in (history[0], history[-1]))
    assert last["lm_loss"] < 0.1 * first["lm_loss"] and last["grounding_loss"] < 0.1 * first["grounding_loss"]
    assert last["view_loss"] < first["view_loss"] and last["bev_loss"] < first["bev_loss"]


class HostReads(TorchFunctionMode):
    """Counts what makes a GPU tell the host a value: numbers, lists, comparisons, places where a mask is True."""

    NAMES = {"__bool__", "__int__", "__float__", "__index__", "item", "tolist", "cpu", "equal", "nonzero"}

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        masks = ()
        if name in ("__getitem__", "__setitem__"):
            masks = args[1] if isinstance(args[1], tuple) else (args[1],)
        self.count += name in self.NAMES or any(getattr(mask, "dtype", None) == torch.bool for mask in masks)
        return func(*args, **(kwargs or {}))


def test_training_reads_few_values_back():
    """A training forward reads values from the GPU a fixed number of times, for any number of rows.

    25 are counted: the 17 of docs/CONVENTIONS.md, and eight of seeds and timesteps that are on the host already.
    """
    trained = make_model().train()
    counts = []
    for rows in (3, 8):
        batch = make_collator()([RaggedRows(rows)[index] for index in range(rows)])
        with HostReads() as reads:
            trained(**batch)
        counts.append(reads.count)
    assert counts == [25, 25]


def test_step_of_an_answer_is_one_graph(model, plain):
    """A generation step on a static cache compiles without a graph break and gives the same logits."""
    length = plain["input_ids"].shape[1]
    cache = StaticCache(config=model.config.text_config, max_cache_len=length + 1)
    run(model, plain, past_key_values=cache, use_cache=True)
    step = {
        "input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[length]]),
        "attention_mask": torch.ones(1, length + 1, dtype=torch.long),
    }  # fmt: skip
    wanted = run(model, step, past_key_values=copy.deepcopy(cache), use_cache=True).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert get_error(run(compiled, step, past_key_values=cache, use_cache=True).logits, wanted) <= ROUNDING


@pytest.mark.slow
def test_compiled_training_has_the_same_gradients(packed):
    """Compiled training breaks graphs where shapes depend on data, and has the same gradients."""
    found, wanted = make_model().train(), make_model().train()
    torch.compile(found, backend="eager")(**packed).loss.backward()
    wanted(**packed).loss.backward()
    for (name, one), other in zip(found.named_parameters(), wanted.parameters(), strict=True):
        assert one.grad is None and other.grad is None or get_error(one.grad, other.grad) <= ROUNDING, name


def test_training_gives_every_trainable_weight_a_gradient(packed):
    """A training step on packed rows gives every trainable weight a gradient."""
    trained = make_model().train()
    trained(**packed).loss.backward()
    assert all(weight.requires_grad and weight.grad is not None for weight in trained.parameters())


def test_training_names_every_loss(packed):
    """Every loss is in the output with a graph, as zero if nothing applies to it, and they add up to `loss`."""
    trained = make_model().train()
    row = make_collator(0.0)([make_row(1, 2, 1, ["text"], depth=False, bev=False)])
    for batch in (packed, row):
        outputs = trained(**batch)
        assert all(outputs[name].requires_grad for name in NAMED_LOSSES)
        total = sum(getattr(trained.config, f"{name}_weight") * outputs[name] for name in LOSS_NAMES)
        assert torch.equal(outputs.loss, total)
    assert outputs.loss_counts.tolist() == [1, 0, 0, 0]
    assert not outputs.view_loss.any() and not outputs.bev_loss.any() and not outputs.grounding_loss.any()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_gives_the_same_gradients(packed, use_reentrant):
    """Activation checkpointing, reentrant or not, gives the same gradients and can be disabled."""
    grads = []
    for checkpointing in (False, True):
        trained = make_model().train()
        if checkpointing:
            trained.activation_checkpointing_enable({"use_reentrant": use_reentrant})
            trained.enable_input_require_grads()
            assert trained.is_activation_checkpointing
            assert sum(getattr(part, "gradient_checkpointing", False) for part in trained.modules()) >= 4
        trained(**packed).loss.backward()
        grads.append({name: weight.grad for name, weight in trained.named_parameters() if weight.requires_grad})
    for name, wanted in grads[0].items():
        assert get_error(grads[1][name], wanted) <= 1e-5, name
    trained.activation_checkpointing_disable()
    assert not trained.is_activation_checkpointing
    assert not any(getattr(part, "gradient_checkpointing", False) for part in trained.modules())


@pytest.mark.parametrize("way", ["method", "adapters", "config"])
def test_activation_checkpointing_reaches_every_part(way):
    """Activation checkpointing reaches the tower, the language model and the denoiser, however it is enabled."""
    config = make_config()
    if way == "config":
        config.gradient_checkpointing = True
    built = Ross3DForConditionalGeneration(config)
    if way != "config":
        assert not built.is_activation_checkpointing
        # What the library sets when adapters are loaded.
        built._hf_peft_config_loaded = way == "adapters"
        built.activation_checkpointing_enable()
    assert built.is_activation_checkpointing
    parts = {name: part for name, part in built.named_modules() if hasattr(part, "gradient_checkpointing")}
    assert all(part.gradient_checkpointing for part in parts.values())
    assert {name.split(".")[0] for name in parts if name} == {"model", "reconstruction_head"}


def test_post_norm_of_the_tower_takes_part_with_nothing(packed, saved):
    """The tower's post-norm, which the method never reads (docs/DEVIATIONS.md), gets a gradient of zeros.

    So no rank waits for it. The library enables the gradients of all that it loads: freezing it where it is made
    would not last.
    """
    for trained in (make_model().train(), load(saved).train()):
        trained(**packed).loss.backward()
        zero = [
            name for name, weight in trained.named_parameters() if weight.grad is not None and not weight.grad.any()
        ]
        assert {f"model.vision_tower.post_layernorm.{end}" for end in ("weight", "bias")} <= set(zero)
        assert all(weight.grad is not None for weight in trained.parameters())


def test_evaluation_ignores_activation_checkpointing(model, plain):
    """In evaluation mode activation checkpointing changes neither logits nor answers."""
    trained = make_model().eval()
    trained.activation_checkpointing_enable()
    assert torch.equal(run(trained, plain).logits, run(model, plain).logits)
    assert torch.equal(trained.generate(**plain, max_new_tokens=2), model.generate(**plain, max_new_tokens=2))


def test_forward_is_deterministic(model, packed):
    """Two passes over the same batch give bit-equal outputs and losses."""
    assert_same(run(model, packed), run(model, packed))


def test_lora_attaches_trains_and_loads_again(plain, tmp_path):
    """LoRA adapters get gradients, are saved and loaded bit-equal, and merge into the weights."""
    peft = pytest.importorskip("peft")
    targets = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
    settings = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["multi_modal_projector"])
    adapted = peft.get_peft_model(make_model(), settings)
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trainable and all("lora_" in name or "multi_modal_projector" in name for name in trainable)
    adapted.train()(**plain, labels=plain["input_ids"]).loss.backward()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                assert weight.grad.any(), name
                weight += 0.1
    adapted.eval().save_pretrained(tmp_path)
    wanted = run(adapted, plain).logits
    again = peft.PeftModel.from_pretrained(make_model(), tmp_path).eval()
    assert torch.equal(run(again, plain).logits, wanted)
    assert again.generate(**plain, max_new_tokens=2).shape[0] == 1
    assert get_error(run(again.merge_and_unload(), plain).logits, wanted) <= ROUNDING


# Attention


@pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_attention_implementations_agree(implementation, rows, request):
    """`eager`, `sdpa` and `flex_attention` agree on a row with one question and on padded packed rows."""
    batch = request.getfixturevalue(rows)
    model = make_model().eval()
    model.set_attn_implementation("eager")
    assert model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation == "eager"
    wanted = run(model, batch)
    model.set_attn_implementation(implementation)
    # Flex attention as it is written: compiling it takes half a minute and computes the same.
    with torch.compiler.set_stance("force_eager"):
        found = run(model, batch)
    real = batch["attention_mask"].bool()
    assert get_error(found.logits[real], wanted.logits[real]) <= 5e-6
    assert_same(found, wanted, 5e-6, ("grounding_scores", *NAMED_LOSSES))


def test_attention_implementation_can_differ_between_parts(saved, packed, model):
    """Text and vision config may have different attention implementations, with the same outputs."""
    mixed = load(saved, attn_implementation={"text_config": "eager", "vision_config": "sdpa"})
    assert mixed.config.text_config._attn_implementation == "eager"
    assert mixed.config.vision_config._attn_implementation == "sdpa"
    assert_same(run(mixed, packed), run(model, packed), 5e-6, ("grounding_scores", *NAMED_LOSSES))


def test_attention_implementation_is_set_by_config_and_by_method():
    """The attention implementation is set by argument, attribute, dictionary or method; unknown names are refused."""

    def read(config):
        parts = (config, config.text_config, config.vision_config, config.denoiser_config)
        return {part._attn_implementation for part in parts}

    settings = make_config().to_diff_dict()
    config = Ross3DConfig(**settings, attn_implementation="eager")
    assert read(config) == {"eager"}
    config._attn_implementation = "sdpa"
    assert read(config) == {"sdpa"}
    config._attn_implementation = {"": "eager", "text_config": "eager", "vision_config": "eager"}
    built = Ross3DForConditionalGeneration(config)
    assert built.config.text_config._attn_implementation == "eager"
    assert built.model.language_model.layers[0].self_attn.config._attn_implementation == "eager"
    built.set_attn_implementation("sdpa")
    assert built.config.text_config._attn_implementation == built.config.vision_config._attn_implementation == "sdpa"
    with pytest.raises(ValueError, match='Specified `attn_implementation="foo"` is not supported'):
        built.set_attn_implementation("foo")
    assert built.config.text_config._attn_implementation == "sdpa"
    built.set_attn_implementation({"": "eager"})
    assert built.config._attn_implementation == "eager" and built.config.text_config._attn_implementation == "sdpa"


def test_attention_implementation_by_default_is_sdpa_and_is_not_saved(saved):
    """The default is `sdpa_shared_prefix` for text and `sdpa` for the tower, and the config file names neither."""
    loaded = load(saved)
    assert loaded.model.language_model.config._attn_implementation == SHARED_PREFIX_ATTENTION
    assert loaded.model.vision_tower.config._attn_implementation == "sdpa"
    assert "attn_implementation" not in (saved / "config.json").read_text()


def test_attentions_are_returned(packed):
    """Returned attentions sum to 1 and are zero from a question to another question or to later tokens."""
    model = make_model().eval()
    model.set_attn_implementation("eager")
    outputs = run(model, packed, output_attentions=True)
    length = packed["input_ids"].shape[1]
    assert [tuple(layer.shape) for layer in outputs.attentions] == [(3, 4, length, length)] * 2
    rows = packed["attention_mask"].bool()
    for layer in outputs.attentions:
        sums = layer.sum(dim=-1).transpose(1, 2)[rows]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        # A question never looks at another question, nor ahead.
        segments = packed["segment_ids"]
        foreign = (segments[:, :, None] != segments[:, None, :]) & (segments[:, None, :] > 0)
        ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
        hidden = ((foreign | ahead) & rows[:, :, None])[:, None].expand_as(layer)
        assert not layer[hidden].any()
    model.config.text_config.output_attentions = True
    both = run(model, packed, output_hidden_states=True)
    assert len(both.attentions) == 2 and list(both.keys())[-2:] == ["hidden_states", "attentions"]


def test_hidden_states_are_returned(model, packed):
    """Hidden states are returned by argument or config; the last ones give the logits."""
    outputs = run(model, packed, output_hidden_states=True)
    length = packed["input_ids"].shape[1]
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(3, length, 32)] * 3
    assert torch.equal(model.lm_head(outputs.hidden_states[-1]), outputs.logits)
    assert run(model, packed).hidden_states is None
    changed = make_model().eval()
    changed.config.text_config.output_hidden_states = True
    for found, wanted in zip(run(changed, packed).hidden_states, outputs.hidden_states, strict=True):
        assert torch.equal(found, wanted)


def test_hidden_states_of_some_layers(model, packed):
    """`output_hidden_states` takes a list of layers and returns only theirs."""
    every = run(model, packed, output_hidden_states=True).hidden_states
    some = run(model, packed, output_hidden_states=[0, -1]).hidden_states
    assert torch.equal(some[0], every[0]) and torch.equal(some[2], every[2]) and some[1] is None


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn"])
def test_rope_scaling_reaches_the_language_model(kind, plain):
    """RoPE scaling of the text config changes logits: `linear` and `yarn` always, `dynamic` only on longer rows."""
    text = make_config().text_config.to_dict()
    original = plain["input_ids"].shape[1] // 2
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 10.0}
    if kind == "yarn":
        parameters["original_max_position_embeddings"] = original
    text |= {"rope_parameters": parameters, "max_position_embeddings": original * (10 if kind == "yarn" else 8)}
    wanted, found = (run(built.eval(), plain).logits for built in (make_model(), make_model(text_config=text)))
    assert found.isfinite().all()
    assert torch.equal(found, wanted) == (kind == "dynamic")


def test_hidden_states_and_attentions_keep_gradients(packed):
    """Gradients of the loss reach the returned hidden states and attentions."""
    trained = make_model().train()
    trained.set_attn_implementation("eager")
    outputs = trained(**packed, output_hidden_states=True, output_attentions=True)
    kept = (outputs.hidden_states[0], outputs.attentions[0])
    for states in kept:
        states.retain_grad()
    outputs.loss.backward()
    assert all(states.grad.any() for states in kept)


# Inputs


def pad_left(batch: dict, count: int) -> dict:
    """The same rows behind `count` tokens of padding."""
    fill = {"input_ids": PAD_TOKEN, "attention_mask": 0, "segment_ids": -1}
    padded = {
        name: torch.nn.functional.pad(batch[name], (count, 0), value=value)
        for name, value in fill.items()
        if name in batch
    }
    return batch | padded


@pytest.mark.parametrize("rows", ["plain", "packed"])
def test_left_padding_changes_nothing(model, rows, request):
    """Padding on the left leaves the logits of real tokens unchanged, up to rounding.

    Library: test_left_padding_compatibility
    """
    batch = select(request.getfixturevalue(rows), *ROW_NAMES)
    wanted = run(model, batch).logits
    found = run(model, pad_left(batch, 5)).logits[:, 5:]
    real = batch["attention_mask"].bool()
    assert get_error(found[real], wanted[real]) <= 5e-6


def test_padding_content_changes_nothing(model, packed):
    """Values in padding tokens, padding views and padding proposals are never read."""
    batch = {name: value.clone() for name, value in packed.items()}
    batch["input_ids"][~batch["attention_mask"].bool()] = 7
    batch["pixel_values"][~batch["view_mask"]] = 9.0
    batch["patch_coords"][~batch["view_mask"]] = 3.0
    batch["proposal_boxes"][~batch["proposal_mask"]] = 5.0
    found, wanted = run(model, batch), run(model, packed)
    real = packed["attention_mask"].bool()
    assert torch.equal(found.logits[real], wanted.logits[real])
    assert_same(found, wanted, names=("grounding_scores", *NAMED_LOSSES))


def test_inputs_embeds_stand_for_input_ids(model, plain):
    """`inputs_embeds` give the same logits and loss as `input_ids`."""
    batch = {name: value for name, value in plain.items() if name not in ("input_ids", "query_coords")}
    wanted = run(model, batch | {"input_ids": plain["input_ids"]}, labels=plain["input_ids"])
    embeds = model.get_input_embeddings()(plain["input_ids"])
    found = run(model, batch, inputs_embeds=embeds, labels=plain["input_ids"])
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.loss, wanted.loss)


def test_text_alone_is_a_row_as_well(model):
    """Rows without views give the logits of the language model alone."""
    ids = torch.randint(1, 80, (2, 6))
    assert run(model, {"input_ids": ids}).logits.shape == (2, 6, 99)
    base = run(model.model.language_model, {"input_ids": ids}).last_hidden_state
    assert torch.equal(run(model, {"input_ids": ids}).logits, model.lm_head(base))


def test_image_features_are_reachable(model, packed):
    """`get_image_features` returns the tower's output and the tokens made from it, for real views only."""
    features = model.get_image_features(packed["pixel_values"], packed["view_mask"])
    views = int(packed["view_mask"].sum())
    assert features.last_hidden_state.shape == (views, 25, 24) and features.pooler_output.shape == (views, GRID**2, 32)
    flat = model.get_image_features(packed["pixel_values"][packed["view_mask"]])
    assert torch.equal(flat.pooler_output, features.pooler_output)
    # What the library promises: the tower's own output, and from it the tokens of the language model.
    tower = model.model.vision_tower(packed["pixel_values"][packed["view_mask"]])
    assert torch.equal(features.last_hidden_state, tower.last_hidden_state)
    assert torch.equal(features.pooler_output, model.model.views.to_tokens(features.patch_features))
    base = model.model.get_image_features(packed["pixel_values"], packed["view_mask"])
    assert torch.equal(base.last_hidden_state, features.last_hidden_state)
    assert features.hidden_states is None and features.attentions is None


@pytest.mark.parametrize("way", ["argument", "config"])
def test_image_features_bring_states_and_attentions_of_the_tower(packed, way):
    """`get_image_features` returns hidden states and attentions of the tower, by argument or config."""
    built = make_model().eval()
    built.set_attn_implementation("eager")
    wanted, wanted_loss = (
        built.get_image_features(packed["pixel_values"], packed["view_mask"]),
        run(built, packed).loss,
    )
    asked = {"output_hidden_states": True, "output_attentions": True}
    if way == "config":
        for name, value in asked.items():
            setattr(built.config.vision_config, name, value)
        asked = {}
    found = built.get_image_features(packed["pixel_values"], packed["view_mask"], **asked)
    views = int(packed["view_mask"].sum())
    assert [tuple(states.shape) for states in found.hidden_states] == [(views, 25, 24)] * 3
    assert [tuple(layer.shape) for layer in found.attentions] == [(views, 3, 25, 25)] * 2
    assert torch.equal(found.pooler_output, wanted.pooler_output)
    assert torch.equal(built.model.multi_modal_projector(found.hidden_states[-1]), found.patch_features)
    assert torch.equal(found.last_hidden_state, wanted.last_hidden_state)
    assert torch.equal(run(built, packed).loss, wanted_loss)


def test_image_features_without_return_dict_are_a_tuple(packed):
    """With `return_dict=False`, `get_image_features` returns its values as a tuple."""
    built = make_model().eval()
    wanted = built.get_image_features(packed["pixel_values"], packed["view_mask"])
    assert isinstance(built.get_image_features(packed["pixel_values"], packed["view_mask"], return_dict=False), tuple)
    built.config.return_dict = False
    found = built.get_image_features(packed["pixel_values"], packed["view_mask"])
    assert isinstance(found, tuple) and torch.equal(found[1], wanted.pooler_output)
    assert isinstance(run(built, packed), tuple)


def test_number_of_placeholders_must_be_that_of_the_views(model, plain, packed):
    """Pictures for fewer or more placeholders are refused; a scene given twice has the same logits twice.

    Library: test_mismatching_num_image_tokens
    """
    assert_plain(model, plain)
    views = select(plain, "pixel_values", "view_mask", "patch_coords", "patch_valid")
    with pytest.raises(ValueError, match="image placeholders"):
        run(model, plain | {name: value[:, 1:] for name, value in views.items()})
    twice = {name: torch.cat([plain[name]] * 2) for name in TEXT_NAMES}
    with pytest.raises(ValueError, match=r"input_ids: expected shape \(1, L\), got \(2, "):
        run(model, plain | twice | {"query_coords": torch.cat([plain["query_coords"]] * 2)})
    both = {name: torch.cat([value] * 2) for name, value in plain.items()}
    assert_plain(model, both)


def test_return_dict_false_gives_the_same_tuple(model, packed):
    """With `return_dict=False`, `forward` returns the same values as a tuple."""
    wanted = run(model, packed)
    found = run(model, packed, return_dict=False)
    assert isinstance(found, tuple) and len(found) == len(wanted.to_tuple())
    for name, one, other in zip(wanted.keys(), found, wanted.to_tuple(), strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), name
    changed = make_model().eval()
    changed.set_attn_implementation("eager")
    more = {"output_hidden_states": True, "output_attentions": True}
    named = run(changed, packed, **more)
    for one, other in zip(run(changed, packed, **more, return_dict=False)[-2:], named.to_tuple()[-2:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    changed.config.return_dict = False
    found = run(changed, packed)
    assert isinstance(found, tuple) and torch.equal(found[0], named.loss)
    assert isinstance(run(model.model, select(packed, *ROW_NAMES), return_dict=False), tuple)


def test_logits_to_keep(model, plain):
    """`logits_to_keep` returns the logits of the last positions, or of the ones that are named.

    Library: test_forward_with_logits_to_keep
    """
    wanted = run(model, plain).logits
    assert get_error(run(model, plain, logits_to_keep=1).logits, wanted[:, -1:]) <= ROUNDING
    places = torch.tensor([0, 3, 5])
    assert get_error(run(model, plain, logits_to_keep=places).logits, wanted[:, places]) <= ROUNDING


def test_loss_does_not_depend_on_logits_to_keep(model, packed):
    """`logits_to_keep` does not change the losses."""
    assert_same(run(model, packed, logits_to_keep=1), run(model, packed), names=NAMED_LOSSES)


# Precision and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_loading_keeps_the_reconstruction_head_in_float32(saved, packed, dtype, model):
    """Loading in half precision keeps the reconstruction head in float32, with the same losses up to rounding."""
    loaded = load(saved, dtype=dtype)
    parts = {name.split(".")[1] for name, _ in loaded.reconstruction_head.named_parameters(prefix="head")}
    assert parts == loaded._keep_in_fp32_modules_strict
    # What no quantisation converts is wide in float16, and what is strict in both.
    wide = ("reconstruction_head.", "grounding_head.") if dtype == torch.float16 else ("reconstruction_head.",)
    for name, weight in loaded.named_parameters():
        assert weight.dtype == (torch.float32 if name.startswith(wide) else dtype), name
    assert loaded.dtype == dtype
    assert loaded.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    outputs, wanted = run(loaded, packed), run(model, packed)
    assert outputs.logits.dtype == dtype and outputs.logits[packed["attention_mask"].bool()].isfinite().all()
    # Of each format's spacing (2^-8, 2^-11) a few, after two layers.
    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    assert_same(outputs, wanted, tolerance, NAMED_LOSSES)
    loaded.train()(**packed).loss.backward()
    assert all(weight.grad.isfinite().all() for weight in loaded.parameters() if weight.grad is not None)


def test_dtype_auto_is_that_of_the_file(model, packed, tmp_path):
    """`dtype="auto"`, also the default, loads the type of the file; other types round those weights."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.save_pretrained(tmp_path)
    for asked, dtype in (
        ({"dtype": "auto"}, torch.bfloat16),
        ({}, torch.bfloat16),
        ({"dtype": torch.float32}, torch.float32),
        ({"torch_dtype": "float16"}, torch.float16),
    ):
        weight = load(tmp_path, **asked).lm_head.weight
        assert weight.dtype == dtype and torch.equal(weight, half.lm_head.weight.to(dtype)), asked


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_a_built_model_runs(cast, model, packed, plain):
    """`half()`, `bfloat16()` and `double()` of a built model give its losses and logits, up to rounding."""
    changed = getattr(make_model().eval(), cast)()
    tolerance = {"half": 0.01, "bfloat16": 0.05, "double": 1e-5}[cast]
    assert_same(run(changed, packed), run(model, packed), tolerance, NAMED_LOSSES)
    found, wanted = run(changed, plain).logits, run(model, plain).logits
    assert found.dtype == changed.dtype and get_error(found, wanted) <= tolerance
    # The vectors of an answer's first step are those of forward.
    first = changed.generate(**plain, max_new_tokens=1, return_dict_in_generate=True, output_logits=True).logits[0]
    assert get_error(first, wanted[:, -1]) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_every_method(saved, model, dtype):
    """Every public method gives the float32 results in half precision, up to rounding."""
    row = select(make_collator(0.0)([make_row(4, 2, 3, ["text"])]), *ROW_NAMES, "proposal_boxes", "proposal_patches")
    prefix = int((row["segment_ids"] == 0).sum())
    scene_alone = row | {name: row[name][:, :prefix] for name in TEXT_NAMES}
    question = row["input_ids"][:, prefix:]

    def call_methods(asked) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        views, bevs = asked.reconstruct(**row, masked_views=[1], num_inference_steps=2, generator=generator)
        scene = asked.encode_scene(**scene_alone)
        first = asked.generate(
            scene=scene, input_ids=question, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
        )
        scores = asked.ground(**row), asked.ground(scene=scene, input_ids=question)
        return [*scores, views[0], bevs[0], first.logits[0]]

    tolerance = 0.05 if dtype == torch.bfloat16 else 0.01
    for found, wanted in zip(call_methods(load(saved, dtype=dtype)), call_methods(model), strict=True):
        assert get_error(found, wanted) <= tolerance


def test_autocast_runs(packed):
    """Under bfloat16 autocast the reconstruction head and the VAE compute in float32; losses agree up to rounding."""
    trained = make_model().train()
    dtypes = {}
    teacher = trained.get_teacher().encoder.conv_in
    for module in (trained.reconstruction_head.denoiser, trained.reconstruction_head.view_pooler, teacher):
        module.register_forward_hook(lambda part, _, output: dtypes.update({part: output.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = trained(**packed)
    outputs.loss.backward()
    exact = make_model().train()
    wanted = exact(**packed)
    wanted.loss.backward()
    assert_same(outputs, wanted, 0.02, NAMED_LOSSES)
    found, grads = (torch.cat([weight.grad.flatten() for weight in one.parameters()]) for one in (trained, exact))
    assert torch.cosine_similarity(found, grads, dim=0) > 0.99
    assert len(dtypes) == 3 and set(dtypes.values()) == {torch.float32}


def call_everything(model, packed):
    """Outputs of a forward with all losses, of an answer, of grounding and of a reconstruction."""
    row = select(make_collator(0.0)([make_row(4, 2, 3, ["text"])]), *ROW_NAMES, "proposal_boxes", "proposal_patches")
    views, bevs = model.reconstruct(
        **row, masked_views=[1], num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    ids = model.generate(**row, max_new_tokens=3)
    outputs = run(model, packed)
    return [outputs.logits, outputs.loss, outputs.grounding_scores, ids, model.ground(**row), views[0], bevs[0]]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloaded_weights_give_the_same_outputs(offload, packed, model, tmp_path):
    """Weights offloaded to CPU or disk give bit-equal outputs of all methods."""
    moved = copy.deepcopy(model)
    if offload == "cpu":
        cpu_offload(moved, execution_device=torch.device("cpu"), offload_buffers=True)
    else:
        disk_offload(moved, tmp_path, execution_device=torch.device("cpu"))
    assert moved.lm_head.weight.device.type == "meta"
    for found, wanted in zip(call_everything(moved, packed), call_everything(model, packed), strict=True):
        assert torch.equal(found, wanted)


def test_device_map_with_disk_loads(saved, model, packed, tmp_path):
    """`from_pretrained(device_map=)` with parts on disk gives the same outputs, as `"auto"` on a small machine."""
    device_map = {
        "model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": "disk",
        "model.image_newline": "cpu", "model.mask_token": "cpu", "lm_head": "cpu", "grounding_head": "disk",
        "reconstruction_head": "disk",
    }  # fmt: skip
    loaded = load(saved, device_map=device_map, offload_folder=tmp_path)
    assert loaded.hf_device_map == device_map
    assert loaded.reconstruction_head.view_pooler.queries.device.type == "meta"
    for found, wanted in zip(call_everything(loaded, packed), call_everything(model, packed), strict=True):
        assert get_error(found, wanted) <= ROUNDING


def test_automatic_device_map_keeps_whole_modules_together(model, packed, tmp_path):
    """An automatic device map splits no module of `_no_split_modules` and gives bit-equal outputs."""
    moved = copy.deepcopy(model)
    device_map = infer_auto_device_map(
        moved, max_memory={"cpu": 100_000, "disk": 10**9}, no_split_module_classes=list(moved._no_split_modules)
    )
    assert set(device_map.values()) == {"cpu", "disk"}
    for name, module in moved.named_modules():
        if type(module).__name__ in moved._no_split_modules:
            assert not [key for key in device_map if key.startswith(f"{name}.")], name
    dispatch_model(moved, device_map, main_device="cpu", offload_dir=tmp_path)
    for found, wanted in zip(call_everything(moved, packed), call_everything(model, packed), strict=True):
        assert torch.equal(found, wanted)


# Generation

# Settings that change how an answer is found, not which.
UNCHANGING = {"use_cache", "cache_implementation", "prompt_lookup_num_tokens", "logits_to_keep"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_sample": True},
        {"num_beams": 2},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 2},
        {"logits_to_keep": 0},
    ],
    ids=lambda settings: "-".join(map(str, settings)) or "greedy",
)
def test_generation_runs_in_every_mode(model, plain, settings):
    """Every mode of search repeats the prompt; modes that only change how ids are found give the greedy ids.

    Library: test_greedy_generate, test_sample_generate, test_beam_search_generate, test_beam_sample_generate,
    test_generate_with_static_cache, test_prompt_lookup_decoding_matches_greedy_search,
    test_generate_methods_with_logits_to_keep
    """
    outputs = model.generate(
        **plain, **settings, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True, output_logits=True
    )
    copies = settings.get("num_return_sequences", 1)
    assert outputs.sequences.shape == (copies, plain["input_ids"].shape[1] + 4)
    assert torch.equal(outputs.sequences[:1, :-4], plain["input_ids"])
    if not settings.keys() - UNCHANGING:
        wanted = model.generate(**plain, max_new_tokens=4, min_new_tokens=4)
        assert torch.equal(outputs.sequences, wanted)


def test_generation_scores_are_those_of_forward(model, plain):
    """The logits of each generated token equal those of one forward pass over the whole row."""
    outputs = model.generate(**plain, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True,
                             output_logits=True)  # fmt: skip
    length = plain["input_ids"].shape[1]
    whole = plain | {"input_ids": outputs.sequences, "attention_mask": torch.ones_like(outputs.sequences)}
    whole["segment_ids"] = torch.nn.functional.pad(plain["segment_ids"], (0, 3), value=1)
    wanted = run(model, whole).logits[:, length - 1 : -1]
    assert get_error(torch.stack(outputs.logits, dim=1), wanted) <= 5e-6


def test_generation_goes_on_from_past_key_values(model, plain):
    """Generation that continues from a returned cache gives the ids of one uninterrupted run.

    Library: test_generate_continue_from_past_key_values
    """
    wanted = model.generate(**plain, max_new_tokens=5, min_new_tokens=5)
    first = model.generate(**plain, max_new_tokens=2, min_new_tokens=2, return_dict_in_generate=True)
    second = model.generate(
        first.sequences, attention_mask=torch.ones_like(first.sequences), past_key_values=first.past_key_values,
        max_new_tokens=3, min_new_tokens=3,
    )  # fmt: skip
    assert torch.equal(second, wanted)


def test_generation_from_inputs_embeds(model, plain):
    """Generation from `inputs_embeds` gives the ids that `input_ids` give, greedily and with beams.

    Library: test_generate_from_inputs_embeds, test_generate_from_random_inputs_embeds
    """
    batch = {name: value for name, value in plain.items() if name not in ("input_ids", "query_coords")}
    wanted = model.generate(**batch, input_ids=plain["input_ids"], max_new_tokens=4, min_new_tokens=4)
    embeds = model.get_input_embeddings()(plain["input_ids"])
    found = model.generate(**batch, inputs_embeds=embeds, max_new_tokens=4, min_new_tokens=4)
    assert torch.equal(found, wanted[:, -4:])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 2}
    beams = model.generate(plain["input_ids"], **batch, **settings)
    assert torch.equal(model.generate(plain["input_ids"], **batch, inputs_embeds=embeds, **settings), beams)
    # Other embeddings (of the words: those of the views are replaced by pictures) lead to other logits.
    other = torch.where((plain["input_ids"] == IMAGE_TOKEN)[..., None], embeds, torch.rand_like(embeds))
    one, two = (run(model, batch, inputs_embeds=given).logits[:, -1] for given in (embeds, other))
    assert not torch.allclose(one, two)


def test_generation_goes_on_from_inputs_embeds(model, plain):
    """Generation from `inputs_embeds` continues from a returned cache with the same ids.

    Library: test_generate_continue_from_inputs_embeds
    """
    batch = {name: value for name, value in plain.items() if name not in ("input_ids", "query_coords")}
    embed = model.get_input_embeddings()
    embeds = embed(plain["input_ids"])
    wanted = model.generate(**batch, inputs_embeds=embeds, max_new_tokens=5, min_new_tokens=5)
    first = model.generate(
        **batch, inputs_embeds=embeds, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True
    )
    longer = torch.cat([embeds, embed(first.sequences)], dim=1)
    rest = model.generate(
        inputs_embeds=longer, attention_mask=torch.ones(longer.shape[:2], dtype=torch.long),
        past_key_values=first.past_key_values, max_new_tokens=2, min_new_tokens=2,
    )  # fmt: skip
    assert torch.equal(torch.cat([first.sequences, rest], dim=1), wanted)


@pytest.mark.parametrize("given", ["input_ids", "inputs_embeds"])
def test_generation_with_a_static_cache_has_its_shape(model, plain, given):
    """A static cache has the documented shape, one position less than the row, and the greedy ids.

    Library: test_generate_from_inputs_embeds_with_static_cache
    """
    batch = {name: value for name, value in plain.items() if name not in ("input_ids", "query_coords")}
    embeds = model.get_input_embeddings()(plain["input_ids"])
    start = {"input_ids": plain["input_ids"]} if given == "input_ids" else {"inputs_embeds": embeds}
    outputs = model.generate(**batch, **start, max_new_tokens=5, min_new_tokens=5, cache_implementation="static",
                             return_dict_in_generate=True)  # fmt: skip
    assert isinstance(outputs.past_key_values, StaticCache)
    shapes = [tuple(layer.keys.shape) for layer in outputs.past_key_values.layers]
    assert shapes == [(1, 2, plain["input_ids"].shape[1] + 4, 8)] * 2
    wanted = model.generate(**batch, **start, max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(outputs.sequences, wanted)


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 2}, {"use_cache": False}])
def test_generation_returns_states_attentions_and_scores(plain, settings):
    """Generation returns scores, logits, hidden states and attentions of each step, in the library's shapes.

    Library: test_greedy_generate_dict_outputs, test_sample_generate_dict_output,
    test_beam_search_generate_dict_output, test_beam_sample_generate_dict_output,
    test_greedy_generate_dict_outputs_use_cache, test_beam_search_generate_dict_outputs_use_cache
    """
    built = make_model().eval()
    built.set_attn_implementation("eager")
    outputs = built.generate(
        **plain, **settings, max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True, output_scores=True,
        output_logits=True, output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    length, rows = plain["input_ids"].shape[1], settings.get("num_beams", 1)
    seen = [length, length + 1, length + 2]
    cached = settings.get("use_cache", True)
    new = [length, 1, 1] if cached else seen
    assert [tuple(step.shape) for step in outputs.scores] == [tuple(step.shape) for step in outputs.logits]
    assert [tuple(step.shape) for step in outputs.scores] == [(rows, 99)] * 3
    for step in range(3):
        assert [tuple(layer.shape) for layer in outputs.attentions[step]] == [(rows, 4, new[step], seen[step])] * 2
        assert [tuple(states.shape) for states in outputs.hidden_states[step]] == [(rows, new[step], 32)] * 3
    assert (outputs.past_key_values is not None) == cached


def test_cache_has_the_format_of_the_library(model, packed, plain):
    """The cache holds, for each layer, keys and values (rows, key heads, positions, head size) that continue the row.

    Library: test_past_key_values_format
    """
    cache, length = run(model, plain, use_cache=True).past_key_values, plain["input_ids"].shape[1]
    assert len(cache) == 2 and cache.get_seq_length() == length
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (1, 2, length, 8)
    more = torch.tensor([[5, 6]])
    found = run(model, {"input_ids": more}, past_key_values=cache).logits
    longer = {name: torch.cat([plain[name], value], 1) for name, value in {
        "input_ids": more, "attention_mask": torch.ones_like(more), "segment_ids": torch.ones_like(more),
    }.items()}  # fmt: skip
    assert get_error(found, run(model, plain | longer).logits[:, length:]) <= 5e-6


def test_generation_by_an_assistant_gives_the_same_answer(model, plain):
    """Assisted generation gives the greedy ids, and samples rows of the same length.

    Library: test_assisted_decoding_matches_greedy_search, test_assisted_decoding_sample
    """
    wanted = model.generate(**plain, max_new_tokens=4, min_new_tokens=4)
    settings = {"assistant_model": model, "max_new_tokens": 4, "min_new_tokens": 4}
    assert torch.equal(model.generate(**plain, **settings), wanted)
    assert torch.equal(model.generate(**plain, **settings, logits_to_keep=0), wanted)
    assert model.generate(**plain, **settings, do_sample=True).shape == wanted.shape


def test_generation_takes_position_ids(model, plain):
    """Generation with explicit `position_ids` gives the same ids.

    Library: test_generate_with_and_without_position_ids
    """
    positions = torch.arange(plain["input_ids"].shape[1])[None]
    wanted = model.generate(**plain, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(model.generate(**plain, position_ids=positions, max_new_tokens=3, min_new_tokens=3), wanted)


def test_generation_from_nothing_begins_with_the_first_token(plain):
    """Without `input_ids`, generation continues a row that holds only the beginning-of-text token.

    Library: test_generate_without_input_ids
    """
    built = make_model().eval()
    built.generation_config.bos_token_id = 1
    found = built.generate(max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(found, built.generate(torch.tensor([[1]]), max_new_tokens=3, min_new_tokens=3))


def test_generation_by_eager_and_sdpa_agrees(plain):
    """Generation with `eager` and with `sdpa` attention gives the same logits, up to rounding.

    Library: test_eager_matches_sdpa_generate
    """
    built = make_model().eval()
    logits = []
    for implementation in ("eager", "sdpa"):
        built.set_attn_implementation(implementation)
        outputs = built.generate(**plain, max_new_tokens=4, min_new_tokens=4, return_dict_in_generate=True,
                                 output_logits=True)  # fmt: skip
        logits.append(torch.stack(outputs.logits))
    assert get_error(*logits) <= 5e-6


def test_generation_stops_at_the_end_token_when_it_looks_words_up(plain):
    """Prompt lookup, which proposes several tokens at once, keeps none behind the end token.

    Library: test_prompt_lookup_decoding_stops_at_eos
    """
    built = make_model().eval()
    wanted = built.generate(**plain, max_new_tokens=6, min_new_tokens=6)
    end = int(wanted[0, plain["input_ids"].shape[1] + 2])
    for settings in ({}, {"prompt_lookup_num_tokens": 2}):
        found = built.generate(**plain, max_new_tokens=6, eos_token_id=end, **settings)
        assert int(found[0, -1]) == end and end not in found[0, plain["input_ids"].shape[1] : -1]


def test_generation_drops_the_scene_after_the_first_step(model, plain, monkeypatch):
    """The vision tower runs once per answer, on the views of the scene."""
    calls = []
    forward = model.model.get_image_features
    monkeypatch.setattr(model.model, "get_image_features", lambda *a, **k: calls.append(1) or forward(*a, **k))
    model.generate(**plain, max_new_tokens=4, min_new_tokens=4)
    assert len(calls) == 1


def test_generation_never_writes_a_placeholder(plain):
    """A model whose most likely token is `<image>` or `<coord>` never writes it: both stand for places in a scene."""
    biased = make_model().eval()
    with torch.no_grad():
        state = run(biased, plain, output_hidden_states=True).hidden_states[-1][0, -1]
        biased.lm_head.weight[IMAGE_TOKEN] = 50 * state
        biased.lm_head.weight[COORD_TOKEN] = 40 * state
    for use_cache in (True, False):
        answer = biased.generate(**plain, max_new_tokens=4, use_cache=use_cache)[0, plain["input_ids"].shape[1] :]
        assert not set(answer.tolist()) & {IMAGE_TOKEN, COORD_TOKEN}
