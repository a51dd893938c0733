"""Published `config.json` (`mm_*` keys) and `Ross3DConfig`: one table, used in both directions.

The published file leaves out what its code fixes: the sizes of denoiser, grounding head and the projection of 3DRS
follow from the weights, vision tower and VAE have their own folders. `make_config` combines all of these.
"""

from collections.abc import Collection, Mapping
from math import isqrt
from typing import Any

from transformers import GenerationConfig, Qwen2Config

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.tools.checkpoints.keys import DISTILLATION_PREFIX, INVERSE_PROJECTOR


REQUIRED = object()
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")

# Published key, our key, the published default if a config.json lacks the key.
CONFIG_TABLE: tuple[tuple[str, str, Any], ...] = (
    ("hidden_size", "text_config.hidden_size", REQUIRED),
    ("intermediate_size", "text_config.intermediate_size", REQUIRED),
    ("num_hidden_layers", "text_config.num_hidden_layers", REQUIRED),
    ("num_attention_heads", "text_config.num_attention_heads", REQUIRED),
    ("num_key_value_heads", "text_config.num_key_value_heads", REQUIRED),
    ("hidden_act", "text_config.hidden_act", "silu"),
    ("rms_norm_eps", "text_config.rms_norm_eps", 1e-6),
    ("initializer_range", "text_config.initializer_range", 0.02),
    ("attention_dropout", "text_config.attention_dropout", 0.0),
    ("use_sliding_window", "text_config.use_sliding_window", False),
    ("sliding_window", "text_config.sliding_window", None),
    ("max_window_layers", "text_config.max_window_layers", 28),
    ("tie_word_embeddings", "tie_word_embeddings", False),
    ("voxel_size", "voxel_size", 0.1),
    ("min_xyz_range", "scene_bounds_min", [-15, -15, -5]),
    ("max_xyz_range", "scene_bounds_max", [15, 15, 5]),
    ("ground_head_temperature", "grounding_temperature", 0.07),
    ("ground_loss_scale", "grounding_loss_weight", 1),
    ("view_mask_ratio", "view_mask_ratio", 0.25),
    ("decode_image_size", "denoiser_config.view_image_size", 216),
    ("image_mean", "image_mean", [0.5, 0.5, 0.5]),
    ("image_std", "image_std", [0.5, 0.5, 0.5]),
)
# Keys whose value has a different form in ours.
CONVERTED_KEYS = (
    "max_position_embeddings", "tokenizer_model_max_length", "rope_theta", "rope_parameters", "view_mask_prob",
    "vocab_size",
    "ground_token_ids", "coord_token_ids", "mm_vision_tower", "mm_pixel_decoder", "mm_hidden_size",
    "mm_inv_hidden_size", "image_embed_len",
)  # fmt: skip
# Options of the published code of which ours supports one value: any other value is refused.
ONLY_VALUES: dict[str, Any] = {
    "mm_projector_type": "mlp2x_gelu",
    "world_position_embedding_type": "avg-discrete-sin3d",
    "object_feature_type": "patch14-pe",
    "ground_head_type": "infonce",
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_use_im_start_end": False,
    "rope_scaling": None,
}
# Those of them that the published recipe sets itself, regardless of the base model.
SET_BY_RECIPE = tuple(key for key in ONLY_VALUES if key not in ("mm_projector_type", "rope_scaling"))
# Keys that the published code writes and that have no effect at the published setting, or only on its training.
IDLE_KEYS = frozenset(
    {
        "add_faster_video", "add_time_instruction", "delay_load", "faster_token_stride", "force_sample",
        "freeze_mm_mlp_adapter", "ground_head_hidden_size", "image_aspect_ratio", "image_crop_resolution",
        "image_grid_pinpoints", "image_split_resolution", "mm_inv_projector_lr", "mm_inv_projector_type",
        "mm_projector_lr", "mm_resampler_type",
        "mm_spatial_pool_mode", "mm_spatial_pool_out_channels", "mm_spatial_pool_stride", "mm_tunable_parts",
        "mm_use_im_patch_token", "mm_vision_select_feature", "mm_vision_select_layer",
        "mm_vision_tower_lr", "pos_skipping_range", "ross_enable", "ross_multi_task", "tokenizer_padding_side",
        "unfreeze_mm_vision_tower", "use_mm_inv_proj", "use_mm_proj", "use_pos_skipping", "vision_tower_pretrained",
    }
)  # fmt: skip
# Keys that Transformers writes, today or at the time of the release.
LIBRARY_ENTRIES = frozenset(
    {
        "_attn_implementation", "_name_or_path", "add_cross_attention", "architectures", "attn_implementation",
        "auto_map", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
        "cross_attention_hidden_size", "dtype", "finetuning_task", "id2label", "is_decoder", "is_encoder_decoder",
        "label2id", "model_type", "prefix", "problem_type", "pruned_heads", "return_dict", "sep_token_id",
        "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class", "torch_dtype",
        "torchscript", "transformers_version", "use_bfloat16", "use_cache",
    }
    | set(Qwen2Config().to_dict())
    | set(GenerationConfig._get_default_generation_params())
    | set(GenerationConfig().to_dict())
)  # fmt: skip

# What the code of 3DRS fixes; the sizes of its projection are in the weights.
DISTILLATION_3DRS: dict[str, Any] = {
    "encoder_layers": [-1],
    "student_layer": -1,
    "tasks": ["text", "grounding"],
    "masked_views": "exclude",
    "encoder_image_size": 518,
    "encoder_dtype": "autocast_bfloat16",
}
# Attention heads of the released denoiser and its poolers, which cannot be read from the weights.
DENOISER_HEADS, LATENT_PATCH_SIZE = 16, 2


def list_unknown_keys(published: Mapping[str, Any]) -> list[str]:
    """Keys of a published config that are neither converted nor known to have no effect."""
    known = {key for key, _, _ in CONFIG_TABLE} | set(CONVERTED_KEYS) | set(ONLY_VALUES) | IDLE_KEYS | LIBRARY_ENTRIES
    return sorted(set(published) - known)


def make_config(
    published: Mapping[str, Any],
    vocab_size: int,
    token_ids: Mapping[str, int | None],
    vision: Mapping[str, Any],
    denoiser: Mapping[str, Any] | None,
    grounding: bool,
    distillation: Mapping[str, Any] | None = None,
) -> Ross3DConfig:
    """Our config for a published model, with the published choice of every named value.

    Args:
        published: its `config.json`; a null value counts as absent.
        vocab_size (`int`): rows of the word embeddings.
        token_ids: of `image`, `ground`, `coord`, `eos`, `pad`.
        vision: SigLIP's configuration; its `num_hidden_layers` counts the last layer, which the model leaves out.
        denoiser: see `get_denoiser_settings`; None for a model without one.
        grounding (`bool`): whether it has a grounding head.
        distillation (*optional*): see `get_distillation_settings`; None for a model that is not of 3DRS.

    Raises:
        ValueError: for a setting that this model cannot have, or one that is missing.
    """
    published = {key: value for key, value in published.items() if value is not None}
    for key, only in ONLY_VALUES.items():
        if published.get(key, only) != only:
            raise ValueError(
                f"{key}: expected {only!r}, the only supported value, got {published[key]!r}; use a checkpoint"
                " that was trained with it."
            )
    settings: dict[str, Any] = {"text_config": {}, "denoiser_config": {}}
    for key, ours, default in CONFIG_TABLE:
        value = published.get(key, default)
        if value is REQUIRED:
            raise ValueError(
                f"{key}: expected it in the published config.json, found none; check that it is the config of a"
                " published checkpoint."
            )
        section, _, name = ours.rpartition(".")
        (settings[section] if section else settings)[name] = value
    settings["text_config"] |= {
        "vocab_size": vocab_size,
        "max_position_embeddings": get_max_positions(published),
        "rope_parameters": {"rope_type": "default", "rope_theta": get_rope_theta(published)},
        "bos_token_id": published.get("bos_token_id"),
        "eos_token_id": token_ids["eos"],
        "pad_token_id": token_ids["pad"],
    }
    settings["denoiser_config"] = None if denoiser is None else settings["denoiser_config"] | denoiser
    settings["view_mask_ratio"] = get_mask_ratio(published)
    if distillation is not None:
        # As its evaluation does, whatever the file says.
        settings["tie_word_embeddings"] = False
    config = Ross3DConfig(
        **settings,
        vision_config={**vision, "num_hidden_layers": vision["num_hidden_layers"] - 1},
        **{f"{name}_token_id": token_ids[name] for name in ("image", "ground", "coord")},
        projector_hidden_act="gelu",
        projector_norm="none",
        position_embedding="sin3d",
        grounding=grounding,
        distillation_config=None if distillation is None else dict(distillation),
        proposal_pooling="vision" if distillation is None else "mean",
        view_mask_period=get_mask_period(published),
        reconstruct_on_grounding_rows=False,
    )
    sizes = {"mm_hidden_size": vision["hidden_size"], "image_embed_len": config.view_grid_size**2}
    for key, size in sizes.items():
        if published.get(key, size) != size:
            raise ValueError(
                f"{key}: expected {size}, which follows from vision tower and pooling, got {published[key]}; the"
                " tower belongs to another checkpoint."
            )
    return config


def get_rope_theta(published: Mapping[str, Any]) -> float:
    """The RoPE base: a key of its own in configs of the release's time, a part of `rope_parameters` today."""
    rope = published.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters: expected rope_type 'default', the only supported one, got {rope}.")
    return rope.get("rope_theta") or published.get("rope_theta") or 1000000.0


def get_vocab_size(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of rows that input and output embeddings have in common.

    Raises:
        ValueError: when there are no word embeddings.
    """
    rows = [shapes[name][0] for name in EMBEDDINGS if name in shapes]
    if EMBEDDINGS[0] not in shapes:
        raise ValueError(
            f"{EMBEDDINGS[0]}: expected it among the published weights, found {sorted(shapes)[:3]}; the checkpoint is"
            " incomplete."
        )
    return min(rows)


def get_shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(f"{name}: expected it among the published weights, found none; the checkpoint is incomplete.")
    return shapes[name]


def get_max_positions(published: Mapping[str, Any]) -> int:
    """The longest row: the tokenizer's limit, since the published code checks no length itself."""
    return max(published.get("max_position_embeddings") or 0, published.get("tokenizer_model_max_length") or 32768)


def get_mask_period(published: Mapping[str, Any]) -> int:
    """The masking period: the published code uses the inverse of `view_mask_prob`, truncated."""
    return int(1 / (published.get("view_mask_prob") or 0.25))


def get_mask_ratio(published: Mapping[str, Any]) -> float:
    """The share of masked views; 0 if `view_mask_prob` is 0, with which no view is ever masked."""
    return 0.0 if published.get("view_mask_prob", 0.25) == 0 else published.get("view_mask_ratio", 0.25)


def get_denoiser_settings(shapes: Mapping[str, tuple[int, ...]], teacher: Mapping[str, Any]) -> dict[str, Any] | None:
    """`denoiser_config` of published weights, or None when they have no denoiser.

    The published code fixes heads, schedule and sampler.

    Args:
        shapes: of the weights, by published name.
        teacher: the diffusers configuration of the VAE.

    Raises:
        ValueError: when the denoiser is incomplete.
    """
    if not any(name.startswith(INVERSE_PROJECTOR) for name in shapes):
        return None
    hidden_size, token_channels = get_shape(shapes, f"{INVERSE_PROJECTOR}x_embedder_view.proj.weight")[:2]
    blocks = {name.split(".")[4] for name in shapes if name.startswith(f"{INVERSE_PROJECTOR}blocks.")}
    if token_channels != LATENT_PATCH_SIZE**2 * teacher["latent_channels"]:
        raise ValueError(
            f"{INVERSE_PROJECTOR}x_embedder: expected {LATENT_PATCH_SIZE**2} times the {teacher['latent_channels']}"
            f" latent channels of the VAE, got {token_channels} channels; the VAE belongs to another checkpoint."
        )
    bev_grid_size = isqrt(get_shape(shapes, f"{INVERSE_PROJECTOR}pos_embed_bev")[1])
    latent_pixels = 2 ** (len(teacher["block_out_channels"]) - 1)
    return {
        "hidden_size": hidden_size,
        "num_hidden_layers": len(blocks),
        "num_attention_heads": DENOISER_HEADS,
        "num_pool_heads": DENOISER_HEADS,
        "intermediate_size": get_shape(shapes, f"{INVERSE_PROJECTOR}blocks.0.mlp.fc1.weight")[0],
        "frequency_embedding_size": get_shape(shapes, f"{INVERSE_PROJECTOR}t_embedder.mlp.0.weight")[1],
        "condition": "pooled",
        "prediction_type": "epsilon",
        "num_train_timesteps": 1000,
        "sampler": "published",
        "bev_loss_mask": "rgb_positive",
        "bev_image_size": bev_grid_size * LATENT_PATCH_SIZE * latent_pixels,
        "bev_grid_size": bev_grid_size,
        "latent_channels": teacher["latent_channels"],
        "latent_patch_size": LATENT_PATCH_SIZE,
        "scaling_factor": teacher["scaling_factor"],
        "shift_factor": teacher["shift_factor"] or 0.0,
        "position_embedding": "zeros",
    }


def get_distillation_settings(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """`distillation_config` of published weights of 3DRS.

    Args:
        shapes: of the weights, by published name.

    Raises:
        ValueError: when a half of the projection is missing.
    """
    names = [f"{DISTILLATION_PREFIX}{layer}.weight" for layer in (0, 2)]
    if missing := [name for name in names if not shapes.get(name)]:
        raise ValueError(
            f"{missing[0]}: expected both layers of the projection of 3DRS, {' and '.join(names)}, found none;"
            " download the other files of the checkpoint, and leave these keys out of --drop."
        )
    return {"head_hidden_size": shapes[names[0]][0], "feature_size": shapes[names[1]][0]} | DISTILLATION_3DRS


# Further entries of the release's config.json, for checkpoints that were not converted from one.
PUBLISHED_TEMPLATE: dict[str, Any] = {
    "architectures": ["Ross3DQwenForCausalLM"],
    "model_type": "ross3d_qwen",
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_use_im_patch_token": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "image_aspect_ratio": "anyres_max_9",
    "mm_inv_projector_type": "denoiser_vit3x",
    "ross_enable": True,
    "ross_multi_task": True,
    "tokenizer_padding_side": "right",
    "use_cache": True,
    "use_mm_inv_proj": True,
    "use_mm_proj": True,
} | ONLY_VALUES
ROSS3D_ENTRIES = ("mm_inv_projector_type", "ross_enable", "ross_multi_task", "use_mm_inv_proj")
# The same for 3DRS.
TEMPLATE_3DRS: dict[str, Any] = {
    **{key: value for key, value in PUBLISHED_TEMPLATE.items() if key not in ROSS3D_ENTRIES},
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
}


def is_3drs_model(config: Ross3DConfig) -> bool:
    """Whether the published form of our model is that of 3DRS: Ross3D has no projection and other proposals."""
    return config.distillation_config is not None and config.proposal_pooling == "mean"


def check_publishable(config: Ross3DConfig) -> None:
    """Refuse models whose answers the published code cannot compute.

    Raises:
        ValueError: for the first setting that it does not support.
    """
    only = {
        "text_config.model_type": "qwen2",
        "vision_config.model_type": "siglip_vision_model",
        "projector_hidden_act": "gelu",
        "projector_norm": "none",
        "position_embedding": "sin3d",
        "position_embedding_base": 10000.0,
    }
    if is_3drs_model(config):
        # The layers that its projection was trained on; the other values concern only further training.
        fixed = ("encoder_layers", "student_layer")
        only |= {f"distillation_config.{name}": DISTILLATION_3DRS[name] for name in fixed}
    else:
        # 3DRS is recognised by its projection, so "mean" without one would come back as "vision".
        only["proposal_pooling"] = "vision"
    for name, wanted in only.items():
        value = get_value(config, name)
        if not same(value, wanted):
            raise ValueError(
                f"{name}: expected {wanted!r}, the only value in the published code, got {value!r}; this model cannot"
                " be converted back."
            )


def explain_unpublished(name: str, config: Ross3DConfig) -> str | None:
    """The reason why the published form of a model has no place for one of our keys, or None when it has one."""
    if name.startswith("reconstruction_head."):
        return explain_dropped_denoiser(config)
    if name.startswith("distillation_head.") and not is_3drs_model(config):
        return "the published code of Ross3D distils nothing"
    if name == "model.mask_token" and is_3drs_model(config):
        return "the published code of 3DRS masks no views"
    return None


def explain_dropped_denoiser(config: Ross3DConfig) -> str | None:
    """The reason why the published code cannot use this model's denoiser; None when it can."""
    if is_3drs_model(config):
        return "the published code of 3DRS has no denoiser"
    denoiser = config.denoiser_config
    if denoiser is None:
        return None
    only = {"condition": "pooled", "prediction_type": "epsilon", "num_train_timesteps": 1000}
    only |= {"num_attention_heads": DENOISER_HEADS, "num_pool_heads": DENOISER_HEADS}
    found = {name: getattr(denoiser, name) for name in only}
    other = [f"{name}={value!r}" for name, value in found.items() if value != only[name]]
    return f"the published denoiser has no {', '.join(other)}" if other else None


def make_published_config(
    config: Ross3DConfig,
    base: Mapping[str, Any] | None,
    parts: Mapping[str, str],
    has_denoiser: bool,
    vocab_sizes: Collection[int],
) -> dict[str, Any]:
    """The published `config.json` of our config: `base`, with the entries that differ changed.

    Args:
        config: ours.
        base: the published config that the model came from, or None.
        parts: `mm_vision_tower` and, except for 3DRS, `mm_pixel_decoder`, used without `base`.
        has_denoiser (`bool`): whether the checkpoint has denoiser weights.
        vocab_sizes: rows of the checkpoint's input and output embeddings.
    """
    template = TEMPLATE_3DRS if is_3drs_model(config) else PUBLISHED_TEMPLATE
    published = {**template, **parts} if base is None else dict(base)
    for key, ours, default in CONFIG_TABLE:
        section = ours.rpartition(".")[0]
        if section and getattr(config, section) is None:
            continue
        if key == "view_mask_ratio" and base is not None and get_mask_ratio(base) == config.view_mask_ratio:
            continue
        if key in ("sliding_window", "max_window_layers") and not config.text_config.use_sliding_window and base:
            continue
        value = get_value(config, ours)
        said = default if published.get(key) is None else published[key]
        if (base is None and key not in published) or not same(said, value):
            published[key] = list(value) if isinstance(value, tuple) else value
    text = config.text_config
    if base is None or get_max_positions(base) != text.max_position_embeddings:
        published["max_position_embeddings"] = text.max_position_embeddings
        published["tokenizer_model_max_length"] = text.max_position_embeddings
    if base is None or get_mask_period(base) != config.view_mask_period:
        published["view_mask_prob"] = get_mask_share(config.view_mask_period)
    if base is None or get_rope_theta(base) != text.rope_parameters["rope_theta"]:
        published["rope_theta"] = text.rope_parameters["rope_theta"]
    dtype = str(config.dtype).removeprefix("torch.")
    if base is None or base.get("torch_dtype") not in (None, dtype):
        published["torch_dtype"] = dtype
    derived = {
        "vocab_size": published["vocab_size"] if published.get("vocab_size") in vocab_sizes else text.vocab_size,
        "ground_token_ids": [config.ground_token_id],
        "coord_token_ids": [config.coord_token_id],
        "mm_hidden_size": config.vision_config.hidden_size,
        "image_embed_len": config.view_grid_size**2,
    }
    if has_denoiser:
        derived["mm_inv_hidden_size"] = config.denoiser_config.token_channels
    if base is None:
        derived |= {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id}
    # A base may omit keys with default values; the keys that it has must match.
    published |= {key: value for key, value in derived.items() if base is None or key in base}
    if not has_denoiser and (base is None or config.denoiser_config is not None):
        published |= {key: False for key in ("ross_enable", "ross_multi_task", "use_mm_inv_proj") if key in published}
    return published


def get_mask_share(period: int) -> float:
    """A `view_mask_prob` whose truncated inverse is `period`, regardless of rounding in the division."""
    return next(share for share in (1 / period, 1 / (period + 0.5)) if int(1 / share) == period)


def get_value(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def same(first: Any, second: Any) -> bool:
    """Whether two values are equal; lists and tuples with equal items are."""
    plain = [list(value) if isinstance(value, (list, tuple)) else value for value in (first, second)]
    return plain[0] == plain[1]
