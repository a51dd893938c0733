"""What the configs refuse, each beside a near-miss that passes; what else they do is in `test_contract_model.py`."""

import json
import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import AutoModel, AutoModelForMultimodalLM

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import make_config, make_model


SIZES = {"num_attention_heads": 2, "num_pool_heads": 2}
# What is wrong, a near-miss that passes, what the error says.
REFUSED = [
    (
        {"denoiser": {"num_attention_heads": 3}},
        {"denoiser": {"num_attention_heads": 8}},
        "denoiser_config.num_attention_heads: expected a divisor of hidden_size 16, got 3; change it in the config",
    ),
    (
        {"denoiser": {"num_pool_heads": 0}},
        {"denoiser": {"num_pool_heads": 1}},
        "denoiser_config.num_pool_heads: expected a divisor of hidden_size 16, got 0; change it in the config",
    ),
    (
        {"denoiser": {"hidden_size": 18, **SIZES}},
        {"denoiser": {"hidden_size": 20, **SIZES}},
        "denoiser_config.hidden_size: expected a multiple of 4 (2D sinusoids), got 18; change it",
    ),
    (
        {"denoiser": {"frequency_embedding_size": 9}},
        {"denoiser": {"frequency_embedding_size": 8}},
        "denoiser_config.frequency_embedding_size: expected an even number, got 9; change it",
    ),
    (
        {"scene_bounds_min": [-15.0, -15.0]},
        {"scene_bounds_min": [-15.0, -15.0, -15.0]},
        "scene_bounds_min: expected three finite numbers, got [-15.0, -15.0]; change it in the config",
    ),
    (
        {"image_mean": [0.5, 0.5, 0.5, 1.0]},
        {"image_mean": [0.5, 0.4, 0.3]},
        "image_mean: expected three finite numbers, got [0.5, 0.5, 0.5, 1.0]; change it in the config",
    ),
    (
        {"image_mean": [0.5, float("nan"), 0.5]},
        {"image_mean": [0.5, 0.0, 0.5]},
        "image_mean: expected three finite numbers, got [0.5, nan, 0.5]; change it in the config",
    ),
    (
        {"image_std": [0.5, 0, 0.5]},
        {"image_std": [0.5, 1, 0.5]},
        "image_std: expected three numbers above 0, got [0.5, 0, 0.5]; change it in the config",
    ),
    (
        {"scene_bounds_min": [-1.0, -1.0, 5.0]},
        {"scene_bounds_min": [-1.0, -1.0, 4.9]},
        "scene_bounds_min: expected less than scene_bounds_max on every axis (15.0, 15.0, 5.0), got [-1.0, -1.0, 5.0]",
    ),
    ({"voxel_size": 0.0}, {"voxel_size": 1e-3}, "voxel_size: expected a finite number above 0, got 0.0; change it"),
    (
        {"view_mask_ratio": 1.0},
        {"view_mask_ratio": 0.0},
        "view_mask_ratio: expected a fraction in [0, 1), got 1.0; change it in the config",
    ),
    (
        {"view_loss_weight": float("nan")},
        {"view_loss_weight": 0},
        "view_loss_weight: expected a finite number >= 0, got nan; change it",
    ),
    (
        {"denoiser": {"bev_grid_size": 0}},
        {"denoiser": {"bev_grid_size": 1}},
        "denoiser_config.bev_grid_size: expected a number >= 1, got 0; change it",
    ),
    (
        {"denoiser": {"num_hidden_layers": -1}},
        {"denoiser": {"num_hidden_layers": 1}},
        "denoiser_config.num_hidden_layers: expected a number >= 1, got -1; change it",
    ),
    (
        {"view_mask_period": 0},
        {"view_mask_period": 1},
        "view_mask_period: expected a number >= 1, got 0; change it in the config",
    ),
    (
        {"grounding_temperature": -0.07},
        {"grounding_temperature": 0.01},
        "grounding_temperature: expected a finite number above 0, got -0.07; change it in the config",
    ),
    (
        {"coord_token_id": 91},
        {"coord_token_id": 93},
        "image_token_id, ground_token_id, coord_token_id: expected distinct ids, got [90, 91, 91]; change it",
    ),
    (
        {"coord_token_id": 99},
        {"coord_token_id": 98},
        "ground_token_id, coord_token_id: expected ids below text_config.vocab_size 99, got [90, 91, 99]; change it",
    ),
    (
        {"projector_hidden_act": "gleu"},
        {"projector_hidden_act": "gelu_new"},
        "projector_hidden_act: expected an activation of Transformers [.*'gelu', .*], got 'gleu'; change it",
    ),
    (
        {"vision": {"image_size": [20, 20]}},
        {"vision": {"image_size": 24}},
        "vision_config.image_size: expected one number (square images), got [20, 20]; change it in the config",
    ),
    (
        {"vision": {"patch_size": 21}},
        {"vision": {"patch_size": 20}},
        "vision_config.patch_size: expected 1..20 pixels (image_size), got 21; change it in the config",
    ),
]


def make(vision: dict | None = None, **changes) -> Ross3DConfig:
    if vision is not None:
        changes["vision_config"] = make_config().vision_config.to_dict() | vision
    return make_config(**changes)


def check_values(config: Ross3DConfig, changes: dict) -> None:
    """The config, and its parts, hold the values that they were made with."""
    parts = {"vision": config.vision_config, "denoiser": config.denoiser_config}
    for name, value in changes.items():
        if name in parts:
            assert {key: getattr(parts[name], key) for key in value} == value
        else:
            found = getattr(config, name)
            assert value.items() <= found.to_dict().items() if isinstance(value, dict) else found == value


@pytest.mark.parametrize(("wrong", "right", "message"), REFUSED)
def test_wrong_numbers_are_refused(wrong, right, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(StrictDataclassClassValidationError, match=pattern):
        make(**wrong)
    check_values(make(**right), right)


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        (
            {"denoiser": {"condition": "both"}},
            {"denoiser": {"condition": "pooled"}},
            r"'positions'\), got both",
        ),
        ({"view_objective": "hidden"}, {"view_objective": "vanilla"}, r"'cross_view', 'vanilla'\), got hidden"),
        ({"projector_norm": "rms"}, {"projector_norm": "layer_norm"}, r"'none', 'layer_norm'\), got rms"),
        ({"proposal_pooling": "max"}, {"proposal_pooling": "mean"}, r"'vision', 'states', 'mean'\), got max"),
        ({"position_embedding": "rope"}, {"position_embedding": "none"}, r"'none', 'sin3d'\), got rope"),
        ({"voxel_size": "10 cm"}, {"voxel_size": 0.1}, "'voxel_size'.*10 cm"),
    ],
)
def test_wrong_kinds_are_refused_by_the_library(wrong, right, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        make(**wrong)
    check_values(make(**right), right)


def test_wrong_numbers_are_refused_when_set_later():
    config = make_config()
    with pytest.raises(StrictDataclassFieldValidationError, match="'view_mask_period' expected int, got float"):
        config.view_mask_period = 2.5
    config.view_mask_period = 2
    assert config.view_mask_period == 2


def test_unknown_keys_without_a_near_one_are_refused():
    message = "denoiser_config: expected keys of Ross3DDenoiserConfig, got unknown key `qqqq`; remove it, or see"
    with pytest.raises(ValueError, match=message):
        Ross3DDenoiserConfig(qqqq=1)
    assert Ross3DDenoiserConfig(hidden_size=64).hidden_size == 64


def add_notes(config: Ross3DConfig) -> Ross3DConfig:
    """A checkpoint's config as its user, or a later version of the library, may leave it."""
    config.my_note, config.voxel_sizes = {"reviewed": "Monday"}, 3
    config.text_config.rotary_mode, config.vision_config.windows = "later", [1, 2]
    config.denoiser_config.guidance = 2.5
    return config


@pytest.mark.parametrize("read", ["from_pretrained", "from_dict", "from_json_file"])
def test_what_others_wrote_into_a_saved_config_stays(read, tmp_path):
    add_notes(make_config()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    given = {"from_pretrained": tmp_path, "from_dict": json.loads(file.read_text()), "from_json_file": file}[read]
    with pytest.warns(UserWarning) as warned:
        config = getattr(Ross3DConfig, read)(given)
    assert (config.my_note, config.voxel_sizes, config.voxel_size) == ({"reviewed": "Monday"}, 3, 0.1)
    assert (config.text_config.rotary_mode, config.vision_config.windows) == ("later", [1, 2])
    assert config.denoiser_config.guidance == 2.5
    said = sorted(str(warning.message) for warning in warned)
    places = ["Ross3DConfig: `my_note`", "Ross3DConfig: `voxel_sizes`", "denoiser_config: `guidance`"]
    places += ["text_config: `rotary_mode`", "vision_config: `windows`"]
    assert [text.split(" is not a key of ")[0] for text in said] == places
    assert "did you mean `voxel_size`?" in said[1] and "did you mean" not in said[0]
    # Saved again, it is the same; written in code, it is refused as ever.
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == json.loads(file.read_text())
    with pytest.raises(ValueError, match="got unknown key `my_note`; remove it, or see the keys of the class"):
        Ross3DConfig(**config.to_dict())


@pytest.mark.filterwarnings("ignore:.*is not a key of")
def test_a_checkpoint_with_notes_loads(tmp_path):
    noted = make_model()
    add_notes(noted.config)
    noted.save_pretrained(tmp_path)
    for cls in (Ross3DForConditionalGeneration, AutoModel, AutoModelForMultimodalLM):
        model = cls.from_pretrained(tmp_path, **({} if cls is Ross3DForConditionalGeneration else REMOTE))
        assert model.config.my_note == {"reviewed": "Monday"} and model.config.text_config.rotary_mode == "later"


REMOTE = {"trust_remote_code": True}


@pytest.mark.filterwarnings("ignore:.*is not a key of")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"voxel_sise": 0.2},
            "expected its own keys, got unknown key `voxel_sise`; did you mean `voxel_size`",
        ),
        (
            {"text_config": {"hiden_size": 8}},
            "text_config: expected keys of Qwen2Config, got unknown key `hid",
        ),
        (
            {"denoiser_config": {"samplr": 1}},
            "denoiser_config: expected keys of Ross3DDenoiserConfig, got unkno",
        ),
    ],
)
def test_misspelt_changes_of_a_saved_config_are_refused(changes, message, tmp_path):
    """They stand in code, or in the file of a run."""
    add_notes(make_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        Ross3DConfig.from_pretrained(tmp_path, **changes)
    right = {"voxel_size": 0.2, "my_note": 1, "text_config": {"rope_theta": 5.0, "rotary_mode": 2}}
    config = Ross3DConfig.from_pretrained(tmp_path, **right, denoiser_config={"sampler": "published"})
    assert (config.voxel_size, config.my_note, config.text_config.rotary_mode) == (0.2, 1, 2)
    assert (config.denoiser_config.sampler, config.denoiser_config.guidance) == ("published", 2.5)


@pytest.mark.parametrize("given", [{}, {"hidden_size": 24, "num_attention_heads": 2, "num_pool_heads": 3}])
@pytest.mark.parametrize("read", ["from_pretrained", "from_dict"])
def test_a_section_that_a_saved_config_lacks_is_added(given, read, tmp_path):
    """With the defaults of its class for what is not given; a section that it has keeps its values."""
    Ross3DConfig().save_pretrained(tmp_path)
    source = tmp_path if read == "from_pretrained" else Ross3DConfig().to_dict()
    wanted = Ross3DDenoiserConfig(**given).to_dict()
    config = getattr(Ross3DConfig, read)(source, denoiser_config=given)
    assert isinstance(config.denoiser_config, Ross3DDenoiserConfig) and config.denoiser_config.to_dict() == wanted
    again = Ross3DConfig.from_dict(config.to_dict(), denoiser_config={"condition": "pooled"})
    assert again.denoiser_config.to_dict() == wanted | {"condition": "pooled"}
    assert Ross3DConfig.from_dict(config.to_dict(), denoiser_config=None).denoiser_config is None


def test_checkpoints_of_before_learn_the_new_auto_class(tmp_path):
    """What a checkpoint names stays; what it lacks is added when the model is built, in its own repository's words."""
    old = {"AutoConfig": "x--configuration_ross3d.Ross3DConfig", "AutoModel": "x--own.Model"}
    config = make_config()
    config.auto_map = dict(old)
    built = Ross3DForConditionalGeneration(config)
    place = "x--modeling_ross3d.Ross3DForConditionalGeneration"
    assert built.config.auto_map == old | {"AutoModelForImageTextToText": place, "AutoModelForMultimodalLM": place}
    names = Ross3DForConditionalGeneration(make_config()).config.auto_map
    assert names["AutoModelForMultimodalLM"] == "modeling_ross3d.Ross3DForConditionalGeneration"


def test_a_published_config_is_sent_to_the_converter():
    with pytest.raises(ValueError, match=r"got those of a published checkpoint \(mm_vision_tower\); convert it with"):
        Ross3DConfig(hidden_size=64, mm_vision_tower="google/siglip-so400m-patch14-384")


def test_a_trainer_leaves_the_named_losses_out_of_predictions():
    """The list is one of the class, which users change, as in the library; subclasses add their losses."""
    names = {"past_key_values", "loss_counts", "grounding_scores", *Ross3DConfig().loss_names}
    assert set(Ross3DConfig.keys_to_ignore_at_inference) == names and "lm_loss" in names
    config = Ross3DConfig()
    config.keys_to_ignore_at_inference = ["past_key_values"]
    assert config.keys_to_ignore_at_inference == ["past_key_values"]
    assert set(Ross3DConfig.keys_to_ignore_at_inference) == names
