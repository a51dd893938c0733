# Copyright 2026 The ross3d authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Configuration of the Ross3D architecture: nested, typed, validated; an error names a misspelt key."""

import difflib
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec


# Keys that are not fields of a config class, although the library writes or reads them.
LIBRARY_CONFIG_KEYS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_experts_implementation_internal",
        "_name_or_path",
        "attn_implementation",
        "auto_map",
        "experts_implementation",
        "model_type",
        "name_or_path",
        "num_labels",
        "output_attentions",
        "per_layer_config",
        "quantization_config",
        "rope_scaling",
        "rope_theta",
        "tie_last_hidden_states",
        "torch_dtype",
    }
)

# Similarity (0 to 1) above which a name counts as a misspelling of another where names of other owners may occur too.
NEAR = 0.8

DENOISER_COUNTS = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "num_train_timesteps", "view_image_size",
    "bev_image_size", "bev_grid_size", "latent_channels", "latent_patch_size",
)  # fmt: skip


# Whether a config is being read from a file or dictionary of settings, rather than built in code.
READS_SAVED_CONFIG: ContextVar[bool] = ContextVar("READS_SAVED_CONFIG", default=False)


@contextmanager
def reading_saved_config() -> Iterator[None]:
    """Inside this context unknown keys cause warnings instead of errors."""
    token = READS_SAVED_CONFIG.set(True)
    try:
        yield
    finally:
        READS_SAVED_CONFIG.reset(token)


def check_config_keys(config_class: type, keys: Iterable[str], where: str) -> None:
    """Refuse keys that neither `config_class` nor the library knows; in a saved config, warn of them.

    A saved config may hold keys that its user or a later version wrote: it loads, and all of its keys stay.

    Args:
        config_class (`type`): the dataclass whose fields are legal.
        keys (iterable of `str`): the names that were given.
        where (`str`): what the error calls the place, such as `vision_config`.

    Raises:
        ValueError: for the first unknown key, with the nearest known name.
    """
    if "mm_vision_tower" in keys:
        raise ValueError(
            f"{where}: expected keys of {config_class.__name__}, got those of a published checkpoint"
            " (mm_vision_tower); convert it with tools/convert.py."
        )
    known = {field.name for field in fields(config_class)} | set(getattr(config_class, "attribute_map", {}))
    known |= LIBRARY_CONFIG_KEYS | set(GenerationConfig._get_default_generation_params())
    for key in keys:
        if key in known:
            continue
        close = difflib.get_close_matches(key, sorted(known), n=1)
        if READS_SAVED_CONFIG.get():
            hint = f" (did you mean `{close[0]}`?)" if close else ""
            warnings.warn(
                f"{where}: `{key}` is not a key of {config_class.__name__}{hint}; it remains in the config but is not"
                " used.",
                stacklevel=2,
            )
            continue
        hint = f"did you mean `{close[0]}`?" if close else "remove it, or see the keys of the class."
        raise ValueError(f"{where}: expected keys of {config_class.__name__}, got unknown key `{key}`; {hint}")


def check_choice(name: str, value, rule: bool, expected: str) -> None:
    """Raise a `ValueError` that names the field, the rule and the value unless `rule` holds."""
    if not rule:
        raise ValueError(f"{name}: expected {expected}, got {value!r}; change it in the config.")


def check_ranges(config, where: str, counts: Sequence[str], positive: Sequence[str], weights: Sequence[str]) -> None:
    """Counts are whole numbers from 1 on, `positive` numbers lie above 0, `weights` are finite and not negative."""
    for name in counts:
        check_choice(f"{where}{name}", getattr(config, name), getattr(config, name) >= 1, "a number >= 1")
    for name in positive:
        value = getattr(config, name)
        check_choice(f"{where}{name}", value, 0 < value < math.inf, "a finite number above 0")
    for name in weights:
        value = getattr(config, name)
        check_choice(f"{where}{name}", value, 0 <= value < math.inf, "a finite number >= 0")


def get_scaled_length(rope: dict, longest: int) -> int:
    """Positions that one set of `rope_parameters` allows: `longest`, which is `max_position_embeddings`, or more."""
    factor = None if rope.get("rope_type", "default") == "default" else rope.get("factor")
    original = rope.get("original_max_position_embeddings") or longest
    return max(longest, int(original * (factor or 1)))


class SavedKeysMixin:
    """A config whose saved form may have keys that this version does not know; keys given in code must be known."""

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As in the library; unknown keys cause a warning in `config_dict` and an error in `kwargs`, which are code.

        Raises:
            ValueError: names the key of `kwargs` and the nearest known one.
        """
        check_changes(cls, config_dict, kwargs)
        # The library builds no section that the saved form lacks: it would stay a dictionary.
        absent = [key for key, spec in cls.sub_configs_defaults.items() if spec.optional and not config_dict.get(key)]
        added = {name: kwargs.pop(name) for name in absent if kwargs.get(name) is not None}
        with reading_saved_config():
            return super().from_dict({**config_dict, **added}, **kwargs)

    @classmethod
    def from_json_file(cls, json_file):
        """As in the library; unknown keys cause a warning."""
        with reading_saved_config():
            return super().from_json_file(json_file)


def find_section_class(spec: SubConfigSpec, name: str, given: dict) -> type:
    """The class of a section, from its `model_type`."""
    return type(spec.create_subconfig(name, {key: given[key] for key in ("model_type",) if key in given})[0])


def check_changes(config_class: type, saved: dict, changes: dict) -> None:
    """Refuse misspelt keys among the changes that code makes to a saved config.

    Args:
        config_class (`type`): of the config.
        saved (`dict`): its saved form.
        changes (`dict`): keyword arguments, which may include some for other functions; a section is a nested
            dictionary.

    Raises:
        ValueError: names the key and the nearest known one.
    """
    for name, spec in config_class.sub_configs_defaults.items():
        given = changes.get(name)
        if isinstance(given, dict):
            before = saved.get(name) or {}
            check_config_keys(find_section_class(spec, name, before | given), given.keys() - before.keys(), name)
    known = [field.name for field in fields(config_class)]
    for key in changes.keys() - saved.keys() - set(known) - LIBRARY_CONFIG_KEYS:
        close = difflib.get_close_matches(key, known, n=1, cutoff=NEAR)
        if close:
            raise ValueError(
                f"{config_class.__name__}: expected its own keys, got unknown key `{key}`; did you mean `{close[0]}`?"
            )


@strict
class Ross3DDenoiserConfig(SavedKeysMixin, PreTrainedConfig):
    r"""
    The reconstruction head: condition poolers and the diffusion transformer that rebuilds masked views and the
    bird's-eye picture in the latent space of a frozen VAE teacher. Defaults are those of the published 7B model,
    except the values named *ours*, which are the defaults of new training.

    Args:
        hidden_size (`int`, defaults to 1024): width of the denoiser.
        num_hidden_layers (`int`, defaults to 3): transformer blocks.
        num_attention_heads (`int`, defaults to 16): heads of the blocks.
        num_pool_heads (`int`, defaults to 16): heads of the condition poolers.
        intermediate_size (`int`, defaults to 4096): width of the blocks' MLP.
        frequency_embedding_size (`int`, defaults to 256): sinusoid channels of the timestep embedding.
        condition (`str`, defaults to `"per_view"`): `"pooled"` (published): learned queries pool the visible states
            into one condition that all masked views of a scene share. `"per_view"` (ours): the queries also carry
            the 3D position embedding of the target view's patches. `"positions"`: as `per_view`, with the states set
            to zero: a control that shows what positions alone can rebuild.
        prediction_type (`str`, defaults to `"epsilon"`): `"epsilon"` (published) or `"v_prediction"`.
        num_train_timesteps (`int`, defaults to 1000): length of the squared-cosine schedule.
        sampler (`str`, defaults to `"ancestral"`): `"published"` clips the predicted latents to [-1, 1] and uses the
            large variance; `"ancestral"` (ours) does neither.
        bev_loss_mask (`str`, defaults to `"valid"`): cells of the bird's-eye loss. `"rgb_positive"` (published):
            cells whose resized colour is above zero; `"valid"` (ours): cells mostly covered by readings.
        view_image_size (`int`, defaults to 216): pixels of a view given to the teacher.
        bev_image_size (`int`, defaults to 432): pixels of a bird's-eye picture given to the teacher.
        bev_grid_size (`int`, defaults to 27): tokens along a side of the bird's-eye picture.
        latent_channels (`int`, defaults to 16): channels of the teacher's latent.
        latent_patch_size (`int`, defaults to 2): latent pixels folded into one token along a side.
        scaling_factor (`float`, defaults to 0.3611): latents are `(z - shift_factor) * scaling_factor`.
        shift_factor (`float`, defaults to 0.1159): see `scaling_factor`.
        position_embedding (`str`, defaults to `"sincos"`): how new position tables begin, `"sincos"` or `"zeros"`
            (the published initialiser is never called, so its tables are zero unless a file brings them).
        initializer_range (`float`, defaults to 0.02): spread of new weights.
    """

    model_type = "ross3d_denoiser"
    base_config_key = "denoiser_config"

    hidden_size: int = 1024
    num_hidden_layers: int = 3
    num_attention_heads: int = 16
    num_pool_heads: int = 16
    intermediate_size: int = 4096
    frequency_embedding_size: int = 256
    condition: Literal["pooled", "per_view", "positions"] = "per_view"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    num_train_timesteps: int = 1000
    sampler: Literal["published", "ancestral"] = "ancestral"
    bev_loss_mask: Literal["rgb_positive", "valid"] = "valid"
    view_image_size: int = 216
    bev_image_size: int = 432
    bev_grid_size: int = 27
    latent_channels: int = 16
    latent_patch_size: int = 2
    scaling_factor: float | int = 0.3611
    shift_factor: float | int = 0.1159
    position_embedding: Literal["sincos", "zeros"] = "sincos"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_config_keys(type(self), kwargs, "denoiser_config")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: each error names the field, the rule and the value."""
        check_ranges(self, "denoiser_config.", DENOISER_COUNTS, ("scaling_factor", "initializer_range"), ())
        for heads in ("num_attention_heads", "num_pool_heads"):
            value = getattr(self, heads)
            fits = value > 0 and self.hidden_size % value == 0
            check_choice(f"denoiser_config.{heads}", value, fits, f"a divisor of hidden_size {self.hidden_size}")
        check_choice(
            "denoiser_config.hidden_size",
            self.hidden_size,
            self.hidden_size % 4 == 0,
            "a multiple of 4 (2D sinusoids)",
        )
        even = self.frequency_embedding_size > 0 and self.frequency_embedding_size % 2 == 0
        check_choice("denoiser_config.frequency_embedding_size", self.frequency_embedding_size, even, "an even number")

    @property
    def queries_have_positions(self) -> bool:
        """Whether pooling queries carry the 3D positions of the target patches."""
        return self.condition != "pooled"

    @property
    def token_channels(self) -> int:
        """Channels of one folded latent token: `latent_channels * latent_patch_size ** 2`."""
        return self.latent_channels * self.latent_patch_size**2


VGGT_COUNTS = (
    "image_size", "patch_size", "hidden_size", "vision_num_hidden_layers", "vision_num_attention_heads",
    "num_hidden_layers", "num_attention_heads", "num_register_tokens", "camera_num_hidden_layers",
    "camera_num_attention_heads", "camera_num_iterations", "fusion_hidden_size", "dense_hidden_size",
)  # fmt: skip


@strict
class Ross3DVGGTConfig(SavedKeysMixin, PreTrainedConfig):
    r"""
    VGGT (arXiv 2503.11651), an encoder of the geometry of several views. Defaults are those of `facebook/VGGT-1B`.

    Args:
        image_size (`int`, defaults to 518): side in pixels of the pictures to which the position table belongs; other
            sizes interpolate it.
        patch_size (`int`, defaults to 14): side of a patch in pixels.
        hidden_size (`int`, defaults to 1024): width C of the tokens; outputs of the aggregator have 2 C channels.
        vision_num_hidden_layers (`int`, defaults to 24): layers of the DINOv2 patch embedder.
        vision_num_attention_heads (`int`, defaults to 16): its heads.
        num_hidden_layers (`int`, defaults to 24): pairs of a block within a view and a block across views.
        num_attention_heads (`int`, defaults to 16): heads of these blocks.
        num_register_tokens (`int`, defaults to 4): register tokens of a view.
        mlp_ratio (`int`, defaults to 4): width of the MLPs in multiples of the width of their tokens.
        rope_theta (`float`, defaults to 100.0): base of the rotary position embedding.
        heads (list of `str`, defaults to camera, depth and point): the heads that are built; none are needed for
            features.
        camera_num_hidden_layers (`int`, defaults to 4): blocks of the camera head.
        camera_num_attention_heads (`int`, defaults to 16): their heads.
        camera_num_iterations (`int`, defaults to 4): refinements of a camera.
        dense_layers (list of `int`, defaults to 4, 11, 17, 23): pairs whose outputs the dense heads read.
        neck_hidden_sizes (list of `int`, defaults to 256, 512, 1024, 1024): channels of these in the dense heads.
        fusion_hidden_size (`int`, defaults to 256): channels of the dense heads' fusion.
        dense_hidden_size (`int`, defaults to 32): channels before their last layer.
        initializer_range (`float`, defaults to 0.02): spread of new weights.
    """

    model_type = "ross3d_vggt"
    base_config_key = "vggt_config"

    image_size: int = 518
    patch_size: int = 14
    hidden_size: int = 1024
    vision_num_hidden_layers: int = 24
    vision_num_attention_heads: int = 16
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_register_tokens: int = 4
    mlp_ratio: int = 4
    rope_theta: float | int = 100.0
    heads: list[Literal["camera", "depth", "point"]] | tuple[str, ...] = ("camera", "depth", "point")
    camera_num_hidden_layers: int = 4
    camera_num_attention_heads: int = 16
    camera_num_iterations: int = 4
    dense_layers: list[int] | tuple[int, ...] = (4, 11, 17, 23)
    neck_hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 1024)
    fusion_hidden_size: int = 256
    dense_hidden_size: int = 32
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        check_config_keys(type(self), kwargs, "vggt_config")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: each error names the field, the rule and the value."""
        where = "vggt_config."
        check_ranges(self, where, VGGT_COUNTS, ("mlp_ratio", "rope_theta", "initializer_range"), ())
        for name, width in (("vision_num_attention_heads", self.hidden_size),
                            ("camera_num_attention_heads", 2 * self.hidden_size)):  # fmt: skip
            heads = getattr(self, name)
            check_choice(
                where + name, heads, width % heads == 0, f"heads that share the {width} channels of a token evenly"
            )
        heads = self.num_attention_heads
        check_choice(where + "num_attention_heads", heads, self.hidden_size % (4 * heads) == 0,
                     f"heads of a multiple of 4 channels, because positions rotate them by row and column, of"
                     f" hidden_size {self.hidden_size}")  # fmt: skip
        check_choice(where + "image_size", self.image_size, self.image_size % self.patch_size == 0,
                     f"a multiple of patch_size {self.patch_size}")  # fmt: skip
        known = ("camera", "depth", "point")
        check_choice(where + "heads", self.heads, set(self.heads) <= set(known), f"names of {known}")
        if not {"depth", "point"} & set(self.heads):
            return
        for name in ("dense_layers", "neck_hidden_sizes"):
            check_choice(where + name, getattr(self, name), len(getattr(self, name)) == 4,
                         "four numbers, one for each map of the dense heads")  # fmt: skip
        layers = list(self.dense_layers)
        fits = sorted(layers) == layers and 0 <= layers[0] and layers[-1] < self.num_hidden_layers
        check_choice(where + "dense_layers", self.dense_layers, fits,
                     f"rising numbers of pairs below num_hidden_layers {self.num_hidden_layers}")  # fmt: skip
        sizes = [*self.neck_hidden_sizes, self.fusion_hidden_size // 2]
        check_choice(where + "neck_hidden_sizes", sizes, all(size > 0 and size % 4 == 0 for size in sizes),
                     "multiples of 4, as half of fusion_hidden_size (2D sinusoids)")  # fmt: skip


@strict
class Ross3DDistillationConfig(SavedKeysMixin, PreTrainedConfig):
    r"""
    Distillation of a geometry encoder (3DRS, arXiv 2506.01946): the language model's visual states, projected, predict
    the encoder's features of the same views. The encoder is needed in training only. Defaults are those of the
    published model.

    Args:
        head_hidden_size (`int`, defaults to 7168): width between the two layers of the projection.
        feature_size (`int`, defaults to 2048): channels of one layer of the encoder, twice its `hidden_size`.
        encoder_layers (list of `int`, defaults to (-1,)): layers of the encoder that are predicted; negative numbers
            count from the last.
        student_layer (`int`, defaults to -1): which states of the language model predict them: 0 the embeddings, i the
            output of layer i, -1 the output after the final norm.
        tasks (list of `str`, defaults to `("text", "grounding")`): rows that carry the loss: those with grounding
            questions, and those with others or none.
        masked_views (`str`, defaults to `"exclude"`): whether masked views, which the language model does not see,
            carry the loss (`"include"`) or not.
        encoder_image_size (`int`, defaults to 518): longest side in pixels of the views that the encoder reads.
        encoder_dtype (`str`, defaults to `"autocast_bfloat16"`): precision of the encoder: `"float32"`, `"bfloat16"`
            and `"float16"` of weights and computation; `"autocast_bfloat16"` (published): float32 weights, matrix
            products in bfloat16.
    """

    model_type = "ross3d_distillation"
    base_config_key = "distillation_config"

    head_hidden_size: int = 7168
    feature_size: int = 2048
    encoder_layers: list[int] | tuple[int, ...] = (-1,)
    student_layer: int = -1
    tasks: list[Literal["text", "grounding"]] | tuple[str, ...] = ("text", "grounding")
    masked_views: Literal["exclude", "include"] = "exclude"
    encoder_image_size: int = 518
    encoder_dtype: Literal["float32", "autocast_bfloat16", "bfloat16", "float16"] = "autocast_bfloat16"

    def __post_init__(self, **kwargs):
        check_config_keys(type(self), kwargs, "distillation_config")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: each error names the field, the rule and the value."""
        where = "distillation_config."
        check_ranges(self, where, ("head_hidden_size", "feature_size", "encoder_image_size"), (), ())
        check_choice(where + "feature_size", self.feature_size, self.feature_size % 2 == 0,
                     "an even number, twice the encoder's hidden_size")  # fmt: skip
        layers = list(self.encoder_layers)
        check_choice(where + "encoder_layers", layers, 0 < len(layers) == len(set(layers)),
                     "one or more different layers of the encoder")  # fmt: skip
        check_choice(where + "tasks", self.tasks, len(self.tasks) > 0 and set(self.tasks) <= {"text", "grounding"},
                     "text, grounding or both")  # fmt: skip


@strict
class Ross3DPredictionConfig(SavedKeysMixin, PreTrainedConfig):
    """Base class of the sections of the objectives that predict the geometry of views; see `Ross3DCameraConfig`."""

    head_hidden_size: int = 1024
    student_layer: int = -1
    source: Literal["scene", "encoder"] = "scene"
    masked_views: Literal["exclude", "include"] = "exclude"

    def __post_init__(self, **kwargs):
        check_config_keys(type(self), kwargs, self.base_config_key)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Part of `@strict` validation: each error names the field, the rule and the value."""
        check_ranges(self, f"{self.base_config_key}.", ("head_hidden_size",), (), ())


@strict
class Ross3DCameraConfig(Ross3DPredictionConfig):
    r"""
    Prediction of the camera of each view, relative to the first, from the language model's states at its tokens.

    Args:
        head_hidden_size (`int`, defaults to 1024): width between the two layers of the head.
        student_layer (`int`, defaults to -1): whose states predict, as in `Ross3DDistillationConfig`.
        source (`str`, defaults to `"scene"`): where targets come from: `"scene"`, the cameras that belong to the depth
            maps, in metres; `"encoder"`, the geometry encoder of `distillation_config`, in its own unit.
        masked_views (`str`, defaults to `"exclude"`): whether masked views, which the language model does not see,
            carry the loss (`"include"`) or not.
    """

    model_type = "ross3d_camera"
    base_config_key = "camera_config"


@strict
class Ross3DDepthConfig(Ross3DPredictionConfig):
    r"""
    Prediction of the depth of each visual token's cell from the language model's state at it.

    Args:
        head_hidden_size (`int`, defaults to 1024): width between the two layers of the head.
        student_layer (`int`, defaults to -1): whose states predict, as in `Ross3DDistillationConfig`.
        source (`str`, defaults to `"scene"`): where targets come from: `"scene"`, the tokens' positions in their
            cameras, in metres; `"encoder"`, the geometry encoder of `distillation_config`, up to one factor a scene.
        masked_views (`str`, defaults to `"exclude"`): whether masked views, which the language model does not see,
            carry the loss (`"include"`) or not.
    """

    model_type = "ross3d_depth"
    base_config_key = "depth_config"


def ignore_losses(config_class: type) -> None:
    """Make a stock Trainer leave the named losses of a config class out of its predictions."""
    own = [name.removesuffix("_weight") for name in config_class.__annotations__ if name.endswith("_loss_weight")]
    config_class.keys_to_ignore_at_inference = [*config_class.keys_to_ignore_at_inference, *own]


@strict
class Ross3DConfig(SavedKeysMixin, PreTrainedConfig):
    r"""
    A multimodal language model over posed RGB-D views of one indoor scene.

    Args:
        vision_config (`dict` or config): a SigLIP vision tower; `num_hidden_layers` counts the layers that run (the
            published model keeps 26 of 27 and reads the state before the post-norm).
        text_config (`dict` or config): a Qwen2 language model.
        denoiser_config (`dict` or config, *optional*): the reconstruction head; `None` builds the model without one.
        distillation_config (`dict` or config, *optional*): the head that predicts the features of a geometry encoder;
            `None` builds the model without one.
        camera_config, depth_config (`dict` or config, *optional*): the heads that predict views' cameras and tokens'
            depth; `None` builds the model without them.
        backbone (`str`, defaults to `"llava_video"`): how views become tokens and where these are in a row
            (`views_ross3d.BACKBONES`).
        image_token_id (`int`, defaults to 151646): id of `<image>`, the placeholder of every visual position.
        ground_token_id (`int`, defaults to 151647): id of `<ground>`; the state at it is the grounding query.
        coord_token_id (`int`, defaults to 151648): id of `<coord>`; a 3D position embedding is added to it.
        projector_hidden_act (`str`, defaults to `"gelu"`): activation between the projector's two layers.
        projector_norm (`str`, defaults to `"none"`): `"layer_norm"` normalises projected features, which models
            trained from scratch need (else the position embedding swamps them).
        position_embedding (`str`, defaults to `"sin3d"`): `"sin3d"` adds the discrete sinusoid of each patch's
            position to visual tokens, `<coord>` and proposals; `"none"` adds nothing.
        position_embedding_base (`float`, defaults to 10000.0): base of the sinusoid's wavelengths.
        voxel_size (`float`, defaults to 0.1): metres.
        scene_bounds_min (list of `float`, defaults to (-15, -15, -5)): metres; positions are clamped to the bounds.
        scene_bounds_max (list of `float`, defaults to (15, 15, 5)): metres.
        grounding (`bool`, defaults to `True`): whether the model has a grounding head.
        grounding_temperature (`float`, defaults to 0.07): of the InfoNCE loss.
        proposal_pooling (`str`, defaults to `"vision"`): the feature of a proposal. `"vision"` (published): the mean
            of the projected patches in its box plus the position embedding of its centre. `"states"`: the mean of the
            language model's output states at the visual tokens whose cell lies in the box, zero where there are none
            (a masked view has those at its mask tokens). `"mean"` (3DRS): the mean of the two. The last two need
            `proposal_tokens` of a processor with `object_token_threshold`.
        view_mask_ratio (`float`, defaults to 0.25): share of a scene's views that are masked; `int(V * (1 - ratio))`
            stay visible.
        view_mask_period (`int`, defaults to 4): views are masked in optimizer steps divisible by it.
        view_objective (`str`, defaults to `"cross_view"`): `"cross_view"` hides the views of `bool_masked_views` from
            the language model, which rebuilds them from the others (published). `"vanilla"` hides nothing and rebuilds
            each of them from its own states, the 2D objective that the paper compares with.
        reconstruct_on_grounding_rows (`bool`, defaults to `False`): whether rows that hold grounding questions also
            carry the reconstruction losses (published: they do not).
        lm_loss_weight, view_loss_weight, bev_loss_weight, grounding_loss_weight, distill_loss_weight,
            camera_loss_weight, depth_loss_weight (`float`, default 1.0): `loss` is the sum of the named losses with
            these weights.
        image_mean, image_std (list of `float`, default 0.5): normalisation of `pixel_values`, undone for the teacher.
        initializer_range (`float`, defaults to 0.02): spread of new weights outside the sub-models.
    """

    model_type = "ross3d"
    # What a stock Trainer leaves out of predictions, since it cannot be concatenated over batches: the named losses
    # (`ignore_losses` adds them) and grounding scores, whose shape varies with a batch's questions and proposals.
    keys_to_ignore_at_inference = ["past_key_values", "loss_counts", "grounding_scores"]
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="siglip_vision_model",
            init_kwargs={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
        ),
        "text_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="qwen2",
            init_kwargs={
                "vocab_size": 151649,
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            },
        ),
        "denoiser_config": SubConfigSpec(config_class=Ross3DDenoiserConfig, optional=True),
        "distillation_config": SubConfigSpec(config_class=Ross3DDistillationConfig, optional=True),
        "camera_config": SubConfigSpec(config_class=Ross3DCameraConfig, optional=True),
        "depth_config": SubConfigSpec(config_class=Ross3DDepthConfig, optional=True),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    denoiser_config: dict | PreTrainedConfig | None = None
    distillation_config: dict | PreTrainedConfig | None = None
    camera_config: dict | PreTrainedConfig | None = None
    depth_config: dict | PreTrainedConfig | None = None
    backbone: str = "llava_video"
    image_token_id: int = 151646
    ground_token_id: int = 151647
    coord_token_id: int = 151648
    projector_hidden_act: str = "gelu"
    projector_norm: Literal["none", "layer_norm"] = "none"
    position_embedding: Literal["none", "sin3d"] = "sin3d"
    position_embedding_base: float | int = 10000.0
    voxel_size: float | int = 0.1
    scene_bounds_min: list[float | int] | tuple[float | int, ...] = (-15.0, -15.0, -5.0)
    scene_bounds_max: list[float | int] | tuple[float | int, ...] = (15.0, 15.0, 5.0)
    grounding: bool = True
    grounding_temperature: float | int = 0.07
    proposal_pooling: Literal["vision", "states", "mean"] = "vision"
    view_mask_ratio: float = 0.25
    view_mask_period: int = 4
    view_objective: Literal["cross_view", "vanilla"] = "cross_view"
    reconstruct_on_grounding_rows: bool = False
    lm_loss_weight: float | int = 1.0
    view_loss_weight: float | int = 1.0
    bev_loss_weight: float | int = 1.0
    grounding_loss_weight: float | int = 1.0
    distill_loss_weight: float | int = 1.0
    camera_loss_weight: float | int = 1.0
    depth_loss_weight: float | int = 1.0
    image_mean: list[float | int] | tuple[float | int, ...] = (0.5, 0.5, 0.5)
    image_std: list[float | int] | tuple[float | int, ...] = (0.5, 0.5, 0.5)
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        ignore_losses(cls)

    def __post_init__(self, **kwargs):
        check_config_keys(type(self), kwargs, "Ross3DConfig")
        for name, spec in self.sub_configs_defaults.items():
            given = getattr(self, name)
            # Our own section checks its keys itself; the library's sections accept any key.
            if isinstance(given, dict) and spec.config_class is AutoConfig:
                check_config_keys(find_section_class(spec, name, given), given, name)
        super().__post_init__(**kwargs)
        # The tower's pooling head is never read, so it is never built.
        self.vision_config.vision_use_head = False
        # Only the outer flag ties weights; small Qwen2 checkpoints carry it in the text config.
        if getattr(self.text_config, "tie_word_embeddings", False):
            self.tie_word_embeddings = True

    def validate_architecture(self):
        """Part of `@strict` validation: each refusal names the field, the rule and the value."""
        for name in ("scene_bounds_min", "scene_bounds_max", "image_mean", "image_std"):
            value = getattr(self, name)
            check_choice(name, value, len(value) == 3 and all(map(math.isfinite, value)), "three finite numbers")
        check_choice("image_std", self.image_std, min(self.image_std) > 0, "three numbers above 0")
        ordered = all(low < high for low, high in zip(self.scene_bounds_min, self.scene_bounds_max, strict=True))
        check_choice(
            "scene_bounds_min",
            self.scene_bounds_min,
            ordered,
            f"less than scene_bounds_max on every axis {tuple(self.scene_bounds_max)}",
        )
        positive = ("voxel_size", "position_embedding_base", "grounding_temperature", "initializer_range")
        weights = [f"{name}_weight" for name in self.loss_names]
        check_ranges(self, "", ("view_mask_period",), positive, weights)
        check_choice("view_mask_ratio", self.view_mask_ratio, 0 <= self.view_mask_ratio < 1, "a fraction in [0, 1)")
        tokens = [self.image_token_id, self.ground_token_id, self.coord_token_id]
        check_choice("image_token_id, ground_token_id, coord_token_id", tokens, len(set(tokens)) == 3, "distinct ids")
        known = all(0 <= token < self.text_config.vocab_size for token in tokens)
        expected = f"ids below text_config.vocab_size {self.text_config.vocab_size}"
        check_choice("image_token_id, ground_token_id, coord_token_id", tokens, known, expected)
        act = self.projector_hidden_act
        check_choice("projector_hidden_act", act, act in ACT2FN, f"an activation of Transformers {sorted(ACT2FN)}")
        for name in ("image_size", "patch_size"):
            value = getattr(self.vision_config, name)
            check_choice(f"vision_config.{name}", value, isinstance(value, int), "one number (square images)")
        for name in ("distillation_config", "camera_config", "depth_config"):
            section, count = getattr(self, name), self.text_config.num_hidden_layers
            layer = -1 if section is None else section.student_layer
            check_choice(f"{name}.student_layer", layer, -count - 1 <= layer <= count,
                         f"0 (embeddings) to {count} (layers of text_config), or -1 to {-count - 1} counted from the"
                         " last")  # fmt: skip
        for name in self.list_predictions("encoder"):
            check_choice(f"{name}_config.source", "encoder", self.distillation_config is not None,
                         "'scene' without distillation_config, which says how the encoder runs (with"
                         " distill_loss_weight 0 its features are not learned)")  # fmt: skip
        size, patch = self.vision_config.image_size, self.vision_config.patch_size
        check_choice("vision_config.patch_size", patch, 0 < patch <= size, f"1..{size} pixels (image_size)")

    def list_predictions(self, source: str) -> tuple[str, ...]:
        """Which of "camera" and "depth" are predicted with targets from this source, "scene" or "encoder"."""
        sections = {"camera": self.camera_config, "depth": self.depth_config}
        return tuple(name for name, section in sections.items() if section is not None and section.source == source)

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of the losses that have a weight in this config."""
        names = (field.name for field in fields(self))
        return tuple(name.removesuffix("_weight") for name in names if name.endswith("_loss_weight"))

    @property
    def patch_grid_size(self) -> int:
        """p: vision patches along a side of a view (27 in the published model)."""
        return self.vision_config.image_size // self.vision_config.patch_size

    @property
    def view_grid_size(self) -> int:
        """h = w: tokens along a side of a view after pooling, `ceil(p / 2)` (14 in the published model)."""
        return (self.patch_grid_size + 1) // 2

    @property
    def context_length(self) -> int:
        """The largest number of positions in a row.

        `max_position_embeddings`, or more where `rope_parameters` scale the positions (YaRN and others): `factor`
        times the length before scaling, which linear and dynamic scaling have in `max_position_embeddings` itself.
        """
        longest = self.text_config.max_position_embeddings
        rope = self.text_config.rope_parameters or {}
        # One set of parameters, or one per layer type.
        nested = self.text_config.nested_rope_parameter_keys(rope)
        limits = [get_scaled_length(rope[key], longest) for key in nested if rope[key]]
        return min(limits) if limits else get_scaled_length(rope, longest)


ignore_losses(Ross3DConfig)
Ross3DConfig.register_for_auto_class()

__all__ = [
    "Ross3DCameraConfig",
    "Ross3DConfig",
    "Ross3DDenoiserConfig",
    "Ross3DDepthConfig",
    "Ross3DDistillationConfig",
    "Ross3DVGGTConfig",
]
