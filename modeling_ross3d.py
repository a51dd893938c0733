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

"""Ross3D: posed RGB-D views and questions -> answers, grounded objects, reconstructions, named losses.

Shapes: B scenes, V views (R real views of all scenes together), N = h*w tokens of a view, P = p*p vision patches,
L sequence, D width, K proposals, Q questions of a scene, H W pixels.
"""

from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from typing import Any, TypedDict

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .attention_ross3d import (
    SharedPrefixCache,
    count_segments,
    prepare_packed_rows,
    share_prefixes_of,
)
from .configuration_ross3d import Ross3DConfig
from .denoiser_ross3d import init_denoiser_weights
from .distillation_ross3d import DistillationObjective
from .fusion_ross3d import Ross3DGeometryMixin
from .generation_ross3d import Ross3DGenerationMixin
from .geometry_ross3d import (
    MAX_CAMERA_DISTANCE,
    check_shape,
    get_sin3d_embedding,
    quantize_coords,
)
from .geometry_supervision_ross3d import CameraObjective, DepthObjective
from .grounding_ross3d import GroundingObjective, Ross3DGroundingHead, score_questions
from .inputs_ross3d import INPUTS, check_inputs, check_mask, check_numbers, list_inputs, read_float32
from .objectives_ross3d import (
    Draws,
    Objective,
    SceneStates,
    TextObjective,
    compute_losses,
    count_items,
    is_sharded,
    list_read_layers,
    take_part,
)
from .reconstruction_ross3d import (
    BevObjective,
    Ross3DReconstructionHead,
    Ross3DTeacherMixin,
    ViewObjective,
    check_timesteps,
    get_masked_views,
    get_unseen_views,
    get_visible_views,
)
from .scene_cache_ross3d import Ross3DSceneCache
from .views_ross3d import ViewPlaces, find_views, get_views


# Which class each Auto class of the library loads from a saved checkpoint; the library itself registers only one each.
AUTO_MAP = {
    "AutoConfig": "configuration_ross3d.Ross3DConfig",
    "AutoModel": "modeling_ross3d.Ross3DForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_ross3d.Ross3DForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_ross3d.Ross3DForConditionalGeneration",
}

# The training objectives, in the order of the counts in `num_items_in_batch` and `loss_counts`. A further objective is
# a class, a weight in the config and, where it reads tensors of its own, rows in `inputs_ross3d.INPUTS`.
CORE_OBJECTIVES: list[Objective] = [TextObjective(), ViewObjective(), BevObjective(), GroundingObjective()]
OBJECTIVES: list[Objective] = [*CORE_OBJECTIVES, DistillationObjective(), CameraObjective(), DepthObjective()]
LOSS_NAMES = tuple(objective.loss_name for objective in CORE_OBJECTIVES)


def get_objectives(config: Ross3DConfig) -> tuple[Objective, ...]:
    """The objectives that have a column in the loss counts: our four, and those that the config adds."""
    return tuple(o for o in OBJECTIVES if o.loss_name in LOSS_NAMES or o.is_on(config))


def get_loss_names(config: Ross3DConfig) -> tuple[str, ...]:
    """Names of a model's losses, in the order of their counts."""
    return tuple(objective.loss_name for objective in get_objectives(config))


def count_losses(batch: dict[str, torch.Tensor], config: Ross3DConfig) -> torch.Tensor:
    """The number of items (n,), float32, that each named loss of a batch averages over, in `get_objectives` order."""
    return torch.stack([count_items(objective, batch, config) for objective in get_objectives(config)])


@dataclass
class Ross3DImageFeatures(BaseModelOutputWithPooling):
    """
    Attributes:
        last_hidden_state (`torch.FloatTensor` of shape `(R, P, Dv)`): what the vision tower returns, of its own width.
        pooler_output (`torch.FloatTensor` of shape `(R, N, D)`): the views' tokens for the language model.
        patch_features (`torch.FloatTensor` of shape `(R, P, D)`): projected patches, before pooling.
        hidden_states, attentions: of the tower's layers.
    """

    patch_features: torch.FloatTensor | None = None


@dataclass
class Ross3DModelOutput(BaseModelOutputWithPast):
    """
    Attributes:
        visual_states (`torch.FloatTensor` of shape `(B, V, N, D)`): output states at the visual tokens, newlines left
            out, zero for padding views.
        visual_positions (`torch.FloatTensor` of shape `(B, V, N, D)`): 3D position embeddings of those tokens.
        patch_features (`torch.FloatTensor` of shape `(B, V, P, D)`): projected vision patches, before pooling.
        visual_layers (`dict`): states like `visual_states` of the layers that were asked for, by layer.
    """

    visual_states: torch.FloatTensor | None = None
    visual_positions: torch.FloatTensor | None = None
    patch_features: torch.FloatTensor | None = None
    visual_layers: dict[int, torch.FloatTensor] | None = None


@dataclass
class Ross3DOutput(ModelOutput):
    """
    Attributes:
        loss (`torch.FloatTensor`): sum of the named losses times their weights in the config.
        lm_loss (`torch.FloatTensor`): mean over answers of the mean cross entropy over an answer's tokens.
        view_loss (`torch.FloatTensor`): mean over scenes with masked views of the denoising error.
        bev_loss (`torch.FloatTensor`): mean over scenes with a bird's-eye picture of the denoising error.
        grounding_loss (`torch.FloatTensor`): mean over grounding questions of the InfoNCE loss.
        loss_counts (`torch.FloatTensor` of shape `(n,)`): how many answers, scenes, scenes and grounding questions of
            this batch the named losses averaged over, in that order; then those of further objectives.
        logits (`torch.FloatTensor` of shape `(B, L, vocab_size)`): absent in training on processor rows, where only
            supervised positions pass the vocabulary.
        grounding_scores (`torch.FloatTensor` of shape `(B, Q, K + 1)`): cosine scores of the proposals and, last, of
            "no target"; -inf for padding proposals and questions without `<ground>`.
        past_key_values, hidden_states, attentions: as in every language model of the library.
    """

    loss: torch.FloatTensor | None = None
    lm_loss: torch.FloatTensor | None = None
    view_loss: torch.FloatTensor | None = None
    bev_loss: torch.FloatTensor | None = None
    grounding_loss: torch.FloatTensor | None = None
    loss_counts: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    grounding_scores: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@cache
def make_output_class(loss_names: tuple[str, ...]) -> type[Ross3DOutput]:
    """A subclass of `Ross3DOutput` with a field for every loss that it lacks."""
    known = {own.name for own in fields(Ross3DOutput)}
    further = [(name, Any, field(default=None)) for name in loss_names if name not in known]
    return make_dataclass("Ross3DOutput", further, bases=(Ross3DOutput,))


def name_auto_classes(config: Ross3DConfig) -> None:
    """Write into a config, in place, which Auto classes load this code; entries that it has already stay."""
    given = getattr(config, "auto_map", None) or {}
    # Entries of a checkpoint that was loaded from the Hub: `REPO--file.Class`.
    repository = "".join(given.get("AutoModel", "").rpartition("--")[:2])
    config.auto_map = {name: f"{repository}{place}" for name, place in AUTO_MAP.items()} | given


def count_cached(past_key_values: Cache | None) -> int | None:
    """How many positions of a row a cache holds; None where only the device knows.

    A static cache counts on the device: reading the count would stop every decoding step, and a compiled graph.
    """
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    return seen if isinstance(seen, int) else None


class Ross3DProjector(nn.Module):
    """Vision width -> text width: Linear, activation, Linear and, when asked for, a LayerNorm."""

    def __init__(self, config: Ross3DConfig):
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.text_config.hidden_size, config.text_config.hidden_size)
        # CODEPATH: published checkpoints have no norm here; models trained from scratch (configs/tiny.yaml) have one.
        self.norm = nn.LayerNorm(config.text_config.hidden_size) if config.projector_norm == "layer_norm" else None

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        projected = self.linear_2(self.act(self.linear_1(patches)))
        return projected if self.norm is None else self.norm(projected)


class Ross3DPreTrainedModel(PreTrainedModel):
    config: Ross3DConfig
    config_class = Ross3DConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Ross3DReconstructionHead", "Ross3DGroundingHead", "Ross3DProjector"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A decoding step on a cache of fixed length compiles to one graph.
    _can_compile_fullgraph = True
    # Losses are means over answers or scenes, never over tokens: a stock Trainer divides by its accumulation steps.
    accepts_loss_kwargs = False

    def initialize_weights(self):
        # In custom code the library skips modules without weights of their own, where SigLIP initialises its layers.
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and not module.is_custom_code():
                module.initialize_weights()
        super().initialize_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        head = getattr(self, "reconstruction_head", None)
        if head is not None and any(module is part for part in head.modules()):
            init_denoiser_weights(module, head.config.initializer_range)
            return
        super()._init_weights(module)
        if isinstance(module, Ross3DGroundingHead):
            init.normal_(module.no_target, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, Ross3DModel):
            init.normal_(module.image_newline, mean=0.0, std=self.config.initializer_range)
            init.normal_(module.mask_token, mean=0.0, std=self.config.initializer_range)


class Ross3DModel(Ross3DPreTrainedModel):
    """Views and text -> hidden states: vision tower, projector, pooling, 3D positions, language model."""

    def __init__(self, config: Ross3DConfig):
        super().__init__(config)
        self.views = get_views(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = Ross3DProjector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        share_prefixes_of(self.language_model.config)
        self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.language_model.set_input_embeddings(value)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> Ross3DImageFeatures:
        """Encode views: tower, projector (which reads the tower before its post-norm), pooling to half the grid.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, V, 3, H, W)` or `(R, 3, H, W)`): normalised views.
            view_mask (`torch.BoolTensor` of shape `(B, V)`, *optional*): True for real views; the others are left out.
            output_hidden_states, output_attentions (`bool`, *optional*): also return those of the tower; by default
                what `vision_config` says.

        Returns:
            see `Ross3DImageFeatures`; `hidden_states` and `attentions` when asked for.
        """
        if not pixel_values.is_floating_point() or pixel_values.dim() not in (4, 5):
            raise ValueError(
                "pixel_values: expected normalised floating-point views of shape (B, V, 3, S, S) or (R, 3, S, S),"
                f" got {pixel_values.dtype} of {tuple(pixel_values.shape)}; prepare them with this model's processor."
            )
        if pixel_values.dim() == 5:
            pixel_values = pixel_values.flatten(0, 1) if view_mask is None else pixel_values[view_mask]
        size = self.config.vision_config.image_size
        if pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"pixel_values: expected views of {size} x {size} pixels (vision_config.image_size), got"
                f" {tuple(pixel_values.shape[-2:])}; prepare them with this model's processor."
            )
        if self.vision_tower.device.type != "meta":
            pixel_values = pixel_values.to(self.vision_tower.device)
        vision_config = self.config.vision_config
        if output_hidden_states is None:
            output_hidden_states = vision_config.output_hidden_states
        if output_attentions is None:
            output_attentions = vision_config.output_attentions
        encoded = self.views.encode(self.vision_tower, pixel_values, output_hidden_states, output_attentions)
        patches = encoded.patches
        if self.training:
            # Nothing else reads the post-norm after these patches. Adding it times zero gives every tower parameter a
            # gradient, which DDP and ZeRO-3 wait for.
            patches = patches + 0.0 * encoded.last_hidden_state[:1, :1].sum()
        projected = self.multi_modal_projector(patches)
        return Ross3DImageFeatures(
            last_hidden_state=encoded.last_hidden_state,
            pooler_output=self.views.to_tokens(projected),
            patch_features=projected,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def get_position_embedding(self, coords: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """Discrete sinusoidal embedding (..., D), float32, of world coordinates (..., 3) in metres.

        Zero where `valid` (...) is False, and everywhere with `position_embedding="none"`.
        """
        width = self.config.text_config.hidden_size
        # CODEPATH: "sin3d" in published checkpoints; "none" in ablations that drop positions.
        if self.config.position_embedding == "none":
            return coords.new_zeros(*coords.shape[:-1], width)
        bounds_min = torch.tensor(self.config.scene_bounds_min, dtype=torch.float32, device=coords.device)
        bounds_max = torch.tensor(self.config.scene_bounds_max, dtype=torch.float32, device=coords.device)
        voxels = quantize_coords(coords.float(), self.config.voxel_size, bounds_min, bounds_max)
        embedding = get_sin3d_embedding(voxels, width, self.config.position_embedding_base)
        return embedding if valid is None else torch.where(valid[..., None], embedding, 0.0)

    def get_visual_embeddings(
        self, pooled: torch.Tensor, positions: torch.Tensor | None, masked: torch.Tensor | None
    ) -> torch.Tensor:
        """Embeddings for the placeholders of R views, laid out by the backbone: (R, positions of a view, D).

        Args:
            pooled (R, N, D): tokens of the views.
            positions (R, N, D): 3D position embeddings; also added to masked views.
            masked (R,) bool: views to replace by the mask token.
        """
        # Under a device map the views, their positions and these two vectors may lie on different devices.
        mask_token = self.mask_token.to(pooled)
        if masked is None:
            tokens = take_part(pooled, mask_token)
        else:
            tokens = torch.where(masked.to(pooled.device)[:, None, None], mask_token, pooled)
        if positions is not None:
            tokens = tokens + positions.to(tokens)
        # A layout without newlines does not use their vector; it gets a zero gradient.
        tokens = tokens if self.views.layout.ends_rows else take_part(tokens, self.image_newline)
        return self.views.layout.lay_out(tokens, self.image_newline)

    def get_placeholder_mask(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Which positions (B, L) hold visual tokens."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(dim=-1)

    def embed_views(
        self,
        batch: dict[str, torch.Tensor | None],
        inputs_embeds: torch.Tensor,
        images: Ross3DImageFeatures | None,
        places: ViewPlaces,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
        """Fill the placeholders (B, L, D) with views, encoded here unless their features are given.

        Returns:
            the rows (B, L, D), and `patch_features` (B, V, P, D) and `visual_positions` (B, V, N, D).
        """
        pixel_values, coords, valid, masked = (
            batch[name] for name in ("pixel_values", "patch_coords", "patch_valid", "bool_masked_views")
        )
        if images is None and places.num_views:
            images = self.get_image_features(places.choose(pixel_values), return_dict=True)
        elif images is None:
            # Text alone: the tower encodes a blank view and its features are dropped, so that its weights take part.
            images = self.get_image_features(pixel_values.new_zeros(1, *pixel_values.shape[2:]), return_dict=True)
        else:
            shape = (places.num_views, self.views.layout.num_cells, inputs_embeds.shape[-1])
            check_shape("mm_encoder_outputs", images.pooler_output, shape, "pass the output of get_image_features.")
        pooled, patches = images.pooler_output, images.patch_features
        if not places.num_views:
            pooled, patches = pooled[:0], patches[:0]
        positions = None
        if coords is not None:
            real_valid = None if valid is None else places.choose(valid).flatten(1, 2)
            positions = self.get_position_embedding(places.choose(coords).flatten(1, 2), real_valid)
        visual = self.get_visual_embeddings(pooled, positions, None if masked is None else places.choose(masked))
        visual = visual.to(inputs_embeds.device, inputs_embeds.dtype)
        slots = places.placeholders[..., None].to(inputs_embeds.device)
        extras = {
            "patch_features": places.pad(patches),
            "visual_positions": None if positions is None else places.pad(positions),
        }
        return inputs_embeds.masked_scatter(slots, visual), extras

    def add_query_positions(
        self,
        inputs_embeds: torch.Tensor,
        input_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        query_coords: torch.Tensor,
    ) -> torch.Tensor:
        """Add to each `<coord>` token the 3D position embedding of its question's point (B, Q, 3), metres."""
        if input_ids is None:
            raise ValueError(
                "query_coords: expected input_ids with them to find <coord>, got only inputs_embeds; pass input_ids,"
                " or embeddings that already include the points."
            )
        query_coords = read_float32("query_coords", query_coords).to(input_ids.device)
        is_coord = input_ids == self.config.coord_token_id
        question = torch.zeros_like(input_ids) if segment_ids is None else (segment_ids - 1).clamp(min=0)
        question = question.clamp(max=query_coords.shape[1] - 1)
        points = torch.gather(query_coords, 1, question[..., None].expand(-1, -1, 3))  # (B, L, 3)
        given = (points.abs() <= MAX_CAMERA_DISTANCE).all(dim=-1)
        if bool((is_coord & ~given).any()):
            row, place = (is_coord & ~given).nonzero()[0].tolist()
            raise ValueError(
                f"query_coords: expected a point for the <coord> of row {row}, got {points[row, place].tolist()};"
                " pass query_coords for every question with <coord>, finite and in metres, at most"
                f" {MAX_CAMERA_DISTANCE:.0f}."
            )
        positions = self.get_position_embedding(points.nan_to_num(), is_coord & given)
        return inputs_embeds + positions.to(inputs_embeds)

    def get_blank_views(self, num_rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Padding (B, 1, 3, S, S) and its mask (B, 1), all False, for rows without views."""
        size = self.config.vision_config.image_size
        pixel_values = torch.zeros(num_rows, 1, 3, size, size, dtype=self.vision_tower.dtype, device=device)
        return pixel_values, torch.zeros(num_rows, 1, dtype=torch.bool, device=device)

    def check_views_given(self, input_ids: torch.Tensor) -> None:
        """Refuse placeholders that no view would fill: rows given without views and without a cache."""
        count = self.get_placeholder_mask(input_ids, None).sum(dim=1)
        if bool(count.any()):
            raise ValueError(
                f"pixel_values: expected views for the image placeholders (id {self.config.image_token_id}) of the"
                f" rows, {count.tolist()} of them, got none; pass the processor's whole output, pixel_values included."
            )

    def check_length(self, length: int, past_key_values: Cache | None) -> None:
        """Refuse rows longer than the context limit, cached positions included."""
        length += count_cached(past_key_values) or 0
        if isinstance(past_key_values, SharedPrefixCache):
            length += past_key_values.longest_prefix
        limit = self.config.context_length
        if length > limit:
            raise ValueError(
                f"input_ids: expected at most {limit} positions (max_position_embeddings), got {length}; use fewer"
                f" views ({self.views.layout.num_positions} positions each) or fewer questions per row."
            )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        view_mask: torch.BoolTensor | None = None,
        patch_coords: torch.FloatTensor | None = None,
        patch_valid: torch.BoolTensor | None = None,
        bool_masked_views: torch.BoolTensor | None = None,
        query_coords: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, Ross3DImageFeatures] | None = None,
        visual_layers: tuple[int, ...] = (),
        **kwargs,
    ) -> Ross3DModelOutput:
        """Shapes as in the processor's output; see `Ross3DForConditionalGeneration.forward`.

        `visual_layers` asks for the states of these layers at the visual tokens (`objectives_ross3d.LAST_LAYER`).
        """
        batch = {
            "input_ids": input_ids, "segment_ids": segment_ids, "pixel_values": pixel_values, "view_mask": view_mask,
            "bool_masked_views": bool_masked_views, "patch_coords": patch_coords, "patch_valid": patch_valid,
            "query_coords": query_coords,
        }  # fmt: skip
        check_inputs(batch, **self.views.layout.sizes)
        unknown = sorted(kwargs.keys() - LIBRARY_ARGUMENTS)
        if unknown:
            raise TypeError(
                f"forward: expected the processor's output and arguments of Transformers, got {', '.join(unknown)};"
                " check the spelling."
            )
        if self.training and past_key_values is None:
            kwargs.setdefault("use_cache", False)
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(
                f"input_ids: expected either input_ids or inputs_embeds, got {got}; pass the processor's input_ids."
            )
        if past_key_values is not None and self.training and self.is_activation_checkpointing:
            raise ValueError(
                "past_key_values: expected no cache with activation checkpointing, which drops it, got one; call"
                " model.eval() or model.activation_checkpointing_disable() first."
            )
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        self.check_length(inputs_embeds.shape[1], past_key_values)
        num_cached = count_cached(past_key_values)
        check_mask(attention_mask, *inputs_embeds.shape[:2], num_cached)
        visible = segment_ids
        has_mask = isinstance(attention_mask, torch.Tensor) and segment_ids is not None
        if has_mask and attention_mask.shape == segment_ids.shape:
            visible = torch.where(attention_mask.bool(), segment_ids, -1)
        num_segments, prefix_length = (1, 0) if segment_ids is None else count_segments(visible)
        if query_coords is not None:
            inputs_embeds = self.add_query_positions(inputs_embeds, input_ids, segment_ids, query_coords)
        extras, places = {}, None
        images = (mm_encoder_outputs or {}).get("image")
        if images is not None and pixel_values is not None:
            raise ValueError(
                "mm_encoder_outputs: expected no pixel_values together with features of views, got both; pass only"
                " one of them."
            )
        if pixel_values is not None or images is not None:
            batch |= {"patch_coords": None if patch_coords is None else read_float32("patch_coords", patch_coords)}
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
            places = find_views(batch, placeholders, self.views.layout.num_positions, self.config.image_token_id)
            inputs_embeds, extras = self.embed_views(batch, inputs_embeds, images, places)
        if num_segments > 1:
            if past_key_values is not None:
                raise ValueError(
                    "past_key_values: expected none for rows with several questions, whose segments would attend to"
                    f" each other, got a cache of {int(past_key_values.get_seq_length())} positions; pass one"
                    " question per row."
                )
            attention_mask, packed = prepare_packed_rows(
                self.config.text_config, inputs_embeds, segment_ids, visible, attention_mask, prefix_length
            )
            kwargs |= packed
        counts_otherwise = places is not None and not self.views.counts_along_row
        if num_segments > 1 or (counts_otherwise and (position_ids is None or position_ids.dim() == 2)):
            rows = segment_ids
            if rows is None:
                has_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2
                rows = attention_mask.long() - 1 if has_mask else torch.zeros_like(places.placeholders).long()
            placeholders = torch.zeros_like(rows, dtype=torch.bool) if places is None else places.placeholders
            position_ids = self.views.get_positions(placeholders, rows)
        if isinstance(past_key_values, SharedPrefixCache):
            # Questions count from 0; the scene they are about precedes them.
            if position_ids is None:
                seen = past_key_values.get_seq_length()
                position_ids = torch.arange(seen, seen + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            position_ids = position_ids + past_key_values.get_row_starts().to(position_ids.device)
            kwargs["shared_prefix"] = past_key_values
        wants_layers = places is not None and len(visual_layers) > 0
        if wants_layers:
            wants_all = kwargs.pop("output_hidden_states", self.language_model.config.output_hidden_states)
            kwargs["output_hidden_states"] = True
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        if places is not None:
            extras["visual_states"] = places.gather(outputs.last_hidden_state, self.views.layout)
        hidden_states = outputs.hidden_states
        if wants_layers:
            found = {layer: places.gather(hidden_states[layer], self.views.layout) for layer in visual_layers}
            extras["visual_layers"] = found
            hidden_states = hidden_states if wants_all else None
        return Ross3DModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=hidden_states,
            attentions=outputs.attentions,
            **extras,
        )


class Ross3DTargets(TypedDict, total=False):
    """Targets that not every row has, declared as keyword arguments of `forward`, as in the library's models.

    A stock `Trainer` computes an evaluation loss only for batches with every named argument of `forward` whose name
    contains `label`; so these two are not named arguments.
    """

    shift_labels: torch.LongTensor | None
    grounding_labels: torch.Tensor | None


# Keyword arguments that the library passes from `generate` and `Trainer` to the language model and its attention.
LIBRARY_ARGUMENTS = frozenset(TransformersKwargs.__annotations__) | {"use_cache", "cache_position", "return_dict"}


class Ross3DForConditionalGeneration(
    Ross3DPreTrainedModel, Ross3DTeacherMixin, Ross3DGeometryMixin, Ross3DGenerationMixin, GenerationMixin
):
    """Ross3D with its language, grounding and reconstruction heads."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # Parts that quantisation leaves alone; the small grounding head has the requested precision (float16: float32).
    _keep_in_fp32_modules = ["reconstruction_head", "grounding_head"]
    # The denoising losses are computed in float32, regardless of the dtype of the rest. The parts of the head are
    # listed one by one because the library allows no name in both lists.
    _keep_in_fp32_modules_strict = ["view_pooler", "bev_pooler", "view_embedding", "bev_embedding", "denoiser"]

    def __init__(self, config: Ross3DConfig):
        super().__init__(config)
        checkpointing = getattr(config, "gradient_checkpointing", False)
        self.model = Ross3DModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # CODEPATH: published checkpoints ground; models of the systems without proposals do not.
        self.grounding_head = Ross3DGroundingHead(config) if config.grounding else None
        self.reconstruction_head = None
        layout = self.model.views.layout
        if config.denoiser_config is not None and layout.num_rows != layout.num_columns:
            raise ValueError(
                f"denoiser_config: expected None with backbone {config.backbone!r}, whose views have a grid of"
                f" {layout.num_rows} x {layout.num_columns} tokens, because the denoiser reconstructs square views;"
                " leave it out."
            )
        # CODEPATH: published checkpoints carry the denoiser; exports for inference alone may leave it out.
        if config.denoiser_config is not None:
            self.reconstruction_head = Ross3DReconstructionHead(
                config.denoiser_config, config.text_config.hidden_size, config.view_grid_size
            )
        for objective in get_objectives(config):
            if objective.head is not None and not hasattr(self, objective.head):
                self.add_module(objective.head, objective.make_head(config))
        name_auto_classes(config)
        # These tokens are placeholders of the input: an answer never contains them.
        self.generation_config.suppress_tokens = [config.image_token_id, config.coord_token_id]
        self.post_init()
        # The base model consumed this old switch before the denoiser was built.
        if checkpointing:
            self.activation_checkpointing_enable()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None = None, **kwargs):
        """As `Ross3DModel.get_image_features`; NaN is refused outside training."""
        if not self.training and pixel_values.is_floating_point():
            used = torch.ones_like(pixel_values[..., :1, :1, :1], dtype=torch.bool)
            used = used if view_mask is None else view_mask[..., None, None, None]
            check_numbers("pixel_values", pixel_values, used)
        return self.model.get_image_features(pixel_values, view_mask, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        view_mask: torch.BoolTensor | None = None,
        patch_coords: torch.FloatTensor | None = None,
        patch_valid: torch.BoolTensor | None = None,
        proposal_boxes: torch.FloatTensor | None = None,
        proposal_mask: torch.BoolTensor | None = None,
        proposal_patches: torch.BoolTensor | None = None,
        proposal_tokens: torch.BoolTensor | None = None,
        query_coords: torch.FloatTensor | None = None,
        bool_masked_views: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.FloatTensor | None = None,
        bev_pixel_values: torch.FloatTensor | None = None,
        bev_valid: torch.BoolTensor | None = None,
        bev_bounds: torch.FloatTensor | None = None,
        view_latents: torch.FloatTensor | None = None,
        bev_latents: torch.FloatTensor | None = None,
        geometry_pixel_values: torch.Tensor | None = None,
        geometry_features: torch.FloatTensor | None = None,
        cam2world: torch.FloatTensor | None = None,
        fields_of_view: torch.FloatTensor | None = None,
        row_seed: torch.LongTensor | None = None,
        view_timesteps: torch.LongTensor | None = None,
        view_noise: torch.FloatTensor | None = None,
        view_posterior_noise: torch.FloatTensor | None = None,
        bev_timesteps: torch.LongTensor | None = None,
        bev_noise: torch.FloatTensor | None = None,
        bev_posterior_noise: torch.FloatTensor | None = None,
        mm_encoder_outputs: dict[str, Ross3DImageFeatures] | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Unpack[Ross3DTargets],
    ) -> Ross3DOutput:
        r"""
        Args:
            input_ids, attention_mask, segment_ids (`torch.Tensor` of shape `(B, L)`): rows of the processor.
                `segment_ids` is 0 for the scene prefix, q for question q, -1 for padding; with more than one question
                a token sees the prefix and its own question only.
            pixel_values (`(B, V, 3, H, W)`), view_mask (`(B, V)`): normalised views; True = a real view.
            patch_coords (`(B, V, h, w, 3)`), patch_valid (`(B, V, h, w)`): world position of each visual token in
                metres, z up; a token that is not valid gets no position embedding.
            proposal_boxes (`(B, K, 6)`), proposal_mask (`(B, K)`), proposal_patches (`(B, K, V, p, p)`),
                proposal_tokens (`(B, K, V, h, w)`): candidate objects: centre and size in metres, real or padding, the
                vision patches inside, and the visual tokens.
            query_coords (`(B, Q, 3)`): metres; NaN for questions without `<coord>`.
            bool_masked_views (`(B, V)`): True = the view is masked and, with a teacher, has to be rebuilt; with the
                vanilla objective it stays visible and is rebuilt from its own states.
            labels, shift_labels, loss_weights (`(B, L)`): text targets; `labels` alone are shifted here and averaged
                row by row, which is refused for rows with several questions.
            grounding_labels (`(B, Q, K + 1)`): multi-hot, last column "no target"; all zero: not a grounding question.
            bev_pixel_values (`(B, 3, Hb, Wb)` in [0, 1]), bev_valid (`(B, Hb, Wb)`), bev_bounds (`(B, 4)` metres).
            view_latents (`(B, V, 2z, a, b)`), bev_latents (`(B, 2z, a, b)`): posterior mean and log-variance, in
                place of a teacher.
            geometry_pixel_values (`(B, V, 3, H, W)`): views for the attached geometry encoder, uint8, or floats in
                [0, 1].
            geometry_features (`(B, V, T, h, w, C)`): features of T of its layers, pooled to the token grid, in its
                place; NaN for rows without any.
            cam2world (`(B, V, 4, 4)`), fields_of_view (`(B, V, 2)`): cameras of the views, OpenCV axes, metres, and
                vertical and horizontal field of view, radians; NaN for rows without any.
            row_seed (`(B,)`): seeds of the diffusion draws; absent, torch's generator draws.
            view_timesteps (`(n,)`), view_noise (`(n, Z, h, w)`), view_posterior_noise (`(masked, z, a, b)`) and the
                same for `bev_`: draws given from outside; n = the masked views of each scene, V // masked times.
            mm_encoder_outputs (`dict`): `{"image": features}` of `get_image_features`, in place of `pixel_values`: of
                the real views, row by row.
            logits_to_keep (`int` or `torch.Tensor`): positions whose logits are returned; 0 = all.
            num_items_in_batch (`torch.Tensor` of shape `(n,)`): numbers of answers, scenes with masked views, scenes
                with a bird's-eye picture and grounding questions, and of scenes with a target of each further
                objective, that the losses are averaged over; by default those of this batch.
        """
        batch = {
            "input_ids": input_ids, "segment_ids": segment_ids, "labels": labels, "loss_weights": loss_weights,
            "pixel_values": pixel_values, "view_mask": view_mask, "bool_masked_views": bool_masked_views,
            "patch_coords": patch_coords, "patch_valid": patch_valid, "proposal_boxes": proposal_boxes,
            "proposal_mask": proposal_mask, "proposal_patches": proposal_patches, "proposal_tokens": proposal_tokens,
            "query_coords": query_coords,
            "bev_pixel_values": bev_pixel_values, "bev_valid": bev_valid, "bev_bounds": bev_bounds,
            "view_latents": view_latents, "bev_latents": bev_latents, "row_seed": row_seed,
            "geometry_pixel_values": geometry_pixel_values, "geometry_features": geometry_features,
            "cam2world": cam2world, "fields_of_view": fields_of_view,
        }  # fmt: skip
        batch |= {name: kwargs.pop(name) for name in INPUTS.keys() & kwargs.keys()}
        batch = {name: tensor for name, tensor in batch.items() if tensor is not None}
        denoiser = self.config.denoiser_config
        bev_size = {} if denoiser is None else {"b": denoiser.bev_image_size}
        check_inputs(batch, **self.model.views.layout.sizes, **bev_size)
        objectives = get_objectives(self.config)
        for objective in objectives:
            objective.check_batch(self, batch)
        # Another process may have inputs that are missing here; all have to run the same modules.
        runs_all = self.training or (past_key_values is None and is_sharded(self))
        given = inputs_embeds if input_ids is None else input_ids
        if runs_all and past_key_values is None and pixel_values is None and given is not None:
            batch["pixel_values"], batch["view_mask"] = self.model.get_blank_views(len(given), given.device)
        if "view_mask" not in batch and "pixel_values" in batch:
            shape, device = batch["pixel_values"].shape[:2], batch["pixel_values"].device
            batch["view_mask"] = torch.ones(shape, dtype=torch.bool, device=device)
        # Read once: decoding the bits of float32 waits for the device.
        if "loss_weights" in batch and ("labels" in batch or "shift_labels" in batch):
            batch["loss_weights"] = read_float32("loss_weights", batch["loss_weights"])
        given_draws = {
            "view.timesteps": view_timesteps, "view.noise": view_noise,
            "view.posterior_noise": view_posterior_noise, "bev.timesteps": bev_timesteps, "bev.noise": bev_noise,
            "bev.posterior_noise": bev_posterior_noise,
        }  # fmt: skip
        draws = Draws(row_seed, given_draws)
        if denoiser is not None:
            check_timesteps(draws, denoiser)
        unseen = get_unseen_views(get_masked_views(batch, self.config), self.config)
        outputs = self.model(
            **{name: batch[name] for name in list_inputs("text", "scene", "question") if name in batch},
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            bool_masked_views=unseen,
            mm_encoder_outputs=mm_encoder_outputs,
            visual_layers=list_read_layers(objectives, batch, self.config, runs_all),
            return_dict=True,
            **kwargs,
        )
        hidden_states, logits = outputs.last_hidden_state, None
        # A step of train.py needs no logits, whether its rows have text or not.
        if not (self.training and (loss_weights is not None or num_items_in_batch is not None)):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
        elif num_items_in_batch is None:
            # Under a stock Trainer, rows without text run the head twice like rows with text: for logits and loss.
            self.lm_head(hidden_states[:, :1])
        states = SceneStates(None, None, None, hidden_states)
        # Without pixels (features were given instead) there is nothing to rebuild.
        if "pixel_values" in batch and outputs.visual_states is not None:
            visible = get_visible_views(batch["view_mask"], unseen)
            states = SceneStates(
                outputs.visual_states, visible, outputs.visual_positions, hidden_states,
                layers=outputs.visual_layers or {},
            )  # fmt: skip
        states.grounding_scores, states.has_ground = score_questions(self, outputs, batch, runs_all)
        losses, loss, counts = compute_losses(self, objectives, states, batch, draws, runs_all, num_items_in_batch)
        if self.training and loss is not None:
            loss = take_part(loss, *outputs.values())
        scores = states.grounding_scores
        if scores is not None:
            scores = scores.masked_fill(~states.has_ground[..., None], float("-inf"))
        names = get_loss_names(self.config)
        output_class = Ross3DOutput if names == LOSS_NAMES else make_output_class(names)
        return output_class(
            loss=loss,
            **losses,
            loss_counts=counts,
            logits=logits,
            grounding_scores=scores,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


Ross3DForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "Ross3DForConditionalGeneration",
    "Ross3DModel",
    "Ross3DOutput",
    "Ross3DPreTrainedModel",
    "Ross3DSceneCache",
    "count_losses",
    "get_loss_names",
    "get_objectives",
]
