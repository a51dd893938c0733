"""What the configs refuse, each beside a near-miss that passes; what else they do is in `test_contract_model.py`."""

import re

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.tests.fabricate import make_config


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
        "scene_bounds_min: expected three numbers, got [-15.0, -15.0]; change it in the config",
    ),
    (
        {"image_mean": [0.5, 0.5, 0.5, 1.0]},
        {"image_mean": [0.5, 0.4, 0.3]},
        "image_mean: expected three numbers, got [0.5, 0.5, 0.5, 1.0]; change it in the config",
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
        "view_mask_ratio: expected a share in [0, 1), got 1.0; change it in the config",
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
        "projector_hidden_act: expected an activation of the library [.*'gelu', .*], got 'gleu'; change it",
    ),
    (
        {"vision": {"image_size": [20, 20]}},
        {"vision": {"image_size": 24}},
        "vision_config.image_size: expected one number (square pictures), got [20, 20]; change it in the config",
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


@pytest.mark.parametrize(("wrong", "right", "message"), REFUSED)
def test_wrong_numbers_are_refused(wrong, right, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises(StrictDataclassClassValidationError, match=pattern):
        make(**wrong)
    assert isinstance(make(**right), Ross3DConfig)


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
        ({"position_embedding": "rope"}, {"position_embedding": "none"}, r"'none', 'sin3d'\), got rope"),
        ({"voxel_size": "10 cm"}, {"voxel_size": 0.1}, "'voxel_size'.*10 cm"),
    ],
)
def test_wrong_kinds_are_refused_by_the_library(wrong, right, message):
    with pytest.raises(StrictDataclassFieldValidationError, match=message):
        make(**wrong)
    assert isinstance(make(**right), Ross3DConfig)


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


def test_a_published_config_is_sent_to_the_converter():
    with pytest.raises(ValueError, match=r"got those of a published checkpoint \(mm_vision_tower\); convert it with"):
        Ross3DConfig(hidden_size=64, mm_vision_tower="google/siglip-so400m-patch14-384")
