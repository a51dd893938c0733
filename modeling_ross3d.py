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

import os
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import maybe_autocast

from .attention_ross3d import (
    SharedPrefixCache,
    count_segments,
    get_packed_rows,
    share_prefixes_of,
    shares_prefixes,
)
from .configuration_ross3d import Ross3DConfig
from .diffusion_ross3d import space_timesteps
from .geometry_ross3d import (
    MAX_CAMERA_DISTANCE,
    MAX_COORDINATE,
    check_shape,
    get_sin3d_embedding,
    quantize_coords,
    unpack_patches,
)
from .inputs_ross3d import check_inputs, check_mask, check_mask_values
from .reconstruction_ross3d import (
    Ross3DReconstructionHead,
    SceneStates,
    draw_normal,
    draw_rows,
    get_bev_cells,
    get_timestep_draw,
    init_reconstruction_weights,
    prepare_view_pictures,
)
from .scene_cache_ross3d import Ross3DSceneCache, check_scene


logger = logging.get_logger(__name__)

# Which class each Auto class of the library finds in a saved checkpoint; one name a class is all it registers itself.
AUTO_MAP = {
    "AutoConfig": "configuration_ross3d.Ross3DConfig",
    "AutoModel": "modeling_ross3d.Ross3DForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_ross3d.Ross3DForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_ross3d.Ross3DForConditionalGeneration",
}

# Order of the counts in `num_items_in_batch` and `loss_counts`.
LOSS_NAMES = ("lm_loss", "view_loss", "bev_loss", "grounding_loss")


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
    """

    visual_states: torch.FloatTensor | None = None
    visual_positions: torch.FloatTensor | None = None
    patch_features: torch.FloatTensor | None = None


@dataclass
class Ross3DOutput(ModelOutput):
    """
    Attributes:
        loss (`torch.FloatTensor`): sum of the named losses times their weights in the config.
        lm_loss (`torch.FloatTensor`): mean over answers of the mean cross entropy over an answer's tokens.
        view_loss (`torch.FloatTensor`): mean over scenes with hidden views of the denoising error.
        bev_loss (`torch.FloatTensor`): mean over scenes with a bird's-eye picture of the denoising error.
        grounding_loss (`torch.FloatTensor`): mean over grounding questions of the InfoNCE loss.
        loss_counts (`torch.FloatTensor` of shape `(4,)`): how many answers, scenes, scenes and grounding questions of
            this batch the named losses averaged over, in that order.
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


def name_auto_classes(config: Ross3DConfig) -> None:
    """Write into a config, in place, which Auto classes find this code; names that it has already stay."""
    given = getattr(config, "auto_map", None) or {}
    # Of a checkpoint that was loaded from the Hub: `REPO--file.Class`.
    repository = "".join(given.get("AutoModel", "").rpartition("--")[:2])
    config.auto_map = {name: f"{repository}{place}" for name, place in AUTO_MAP.items()} | given


def pad_views(flat: torch.Tensor, real: tuple[torch.Tensor, ...], view_mask: torch.Tensor) -> torch.Tensor:
    """Real views (R, ...) -> (B, V, ...), zero for padding, on the device of the mask.

    `real` are the places (scene, view) where `view_mask` (B, V) is True. Under a device map parts of the model lie on
    several devices: what is indexed by inputs goes back to them.
    """
    padded = flat.new_zeros(*view_mask.shape, *flat.shape[1:], device=view_mask.device)
    padded[real] = flat.to(view_mask.device)
    return padded


def check_numbers(name: str, tensor: torch.Tensor, used: torch.Tensor, limit: float = float("inf")) -> None:
    """Refuse NaN, infinities and coordinates that are no metres, which would become positions like any others.

    Args:
        name (`str`): what the error calls the tensor.
        tensor (B, ...): the numbers.
        used (`torch.BoolTensor`, broadcast to the tensor): where they count; padding may hold anything.
        limit (`float`): how far from the origin coordinates may be, metres.

    Raises:
        ValueError: names the first row that has them.
    """
    far = (tensor.isfinite() & (tensor.abs() > limit) & used).flatten(1).any(dim=1)
    if bool(far.any()):
        row = int(far.nonzero()[0])
        largest = float(torch.where(used[row], tensor[row].abs(), 0.0).max())
        raise ValueError(
            f"{name}: expected metres, at most {limit:.0f}, got {largest:g} in row {row}; divide millimetres by 1000."
        )
    broken = (~tensor.isfinite() & used).flatten(1).any(dim=1)
    if bool(broken.any()):
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or infinity in row {int(broken.nonzero()[0])}; look at the"
            " scene that it was made of."
        )


class TakePart(torch.autograd.Function):
    """The first tensor, to the bit; the others get gradients of zero."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.others = [(other.shape, other.dtype, other.device) for other in others]
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.others]
        return gradient, *zeros


def take_part(tensor: torch.Tensor, *others: Any) -> torch.Tensor:
    """`tensor` as it is, in whose gradient all others that have one take part, with nothing.

    Weights in shards are fetched again for each output of a module that a gradient reaches. An output that is used on
    one process and not on another would make them wait for each other for ever.
    """
    others = [other for other in others if isinstance(other, torch.Tensor) and other.requires_grad]
    return TakePart.apply(tensor, *others) if others else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold pieces of the weights (ZeRO-3, FSDP2), which all of them gather when a module runs."""
    return hasattr(next(model.parameters()), "ds_id") or hasattr(model, "reshard")


def read_float32(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of metres or loss weights in float32; int32 is taken for the bits of float32.

    Raises:
        ValueError: for half precision. bfloat16 moves a point five metres away by up to 16 mm and into another voxel,
            and nothing here could tell. For int32 that is counted metres, no bits: it reads as numbers below 1e-30.
    """
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor.float()
    if tensor.dtype == torch.int32:
        values = tensor.view(torch.float32)
        if bool(((values != 0) & (values.abs() < 1e-30)).any()):
            raise ValueError(
                f"{name}: expected float32, or int32 that holds its bits, got int32 numbers such as"
                f" {int(tensor.flatten()[tensor.flatten().nonzero()[0]])}; pass {name}.float()."
            )
        return values
    raise ValueError(
        f"{name}: expected float32, which voxels and loss weights need in every precision, got {tensor.dtype}; cast"
        f" with the processor's output.to(dtype), which leaves {name} alone, or, where every float tensor of a batch"
        f" is cast (Trainer under DeepSpeed), pass {name}.view(torch.int32), the same bits."
    )


def count_cached(past_key_values: Cache | None) -> int | None:
    """How many positions of a row a cache holds; None where only the device knows.

    A static cache counts on the device: reading it would stop every step of an answer, and a compiled graph.
    """
    seen = 0 if past_key_values is None else past_key_values.get_seq_length()
    return seen if isinstance(seen, int) else None


def get_segment_positions(segment_ids: torch.Tensor) -> torch.Tensor:
    """Position ids (B, L) of packed rows: the prefix counts from 0, every segment goes on from its end."""
    index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    rank = index - torch.where(starts, index, 0).cummax(dim=1).values
    prefix_length = (segment_ids == 0).sum(dim=1, keepdim=True)
    return rank + torch.where(segment_ids > 0, prefix_length, 0)


def get_segment_visibility(segment_ids: torch.Tensor) -> Callable:
    """A mask function of the library: a token sees the prefix and its own segment (the causal rule comes on top)."""

    def is_visible(batch_idx, head_idx, q_idx, kv_idx):
        key_segment = segment_ids[batch_idx, kv_idx]
        return (key_segment == 0) | (key_segment == segment_ids[batch_idx, q_idx])

    return is_visible


def list_view_items(counts: list[int], repeats: list[int]) -> tuple[list[int], list[float]]:
    """Which hidden view each denoising item rebuilds, and what it weighs.

    The `counts[b]` hidden views of scene b come `repeats[b]` times in a row, each time for a noise and timestep of
    their own; the weights of a scene sum to 1.
    """
    items, weights, first = [], [], 0
    for count, repeat in zip(counts, repeats, strict=True):
        items += list(range(first, first + count)) * repeat
        if count:
            weights += [1.0 / (count * repeat)] * (count * repeat)
        first += count
    return items, weights


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


class Ross3DGroundingMLP(nn.Module):
    """Linear, ReLU, LayerNorm, Linear, then unit length."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.linear_2(self.norm(F.relu(self.linear_1(states))))
        # In float32: in float16 the guard against a zero vector is zero itself.
        return F.normalize(states.float(), dim=-1).to(states.dtype)


class Ross3DGroundingHead(nn.Module):
    """Cosine scores between the state at `<ground>` and each proposal, with a learned "no target" as the last one."""

    def __init__(self, config: Ross3DConfig):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.no_target = nn.Parameter(torch.zeros(hidden_size))
        self.proposal_mlp = Ross3DGroundingMLP(hidden_size)
        self.query_mlp = Ross3DGroundingMLP(hidden_size)

    def forward(
        self, queries: torch.Tensor, proposal_features: torch.Tensor, proposal_mask: torch.Tensor
    ) -> torch.Tensor:
        """Scores (B, Q, K + 1) for queries (B, Q, D), proposals (B, K, D) and their mask (B, K), -inf at padding."""
        # In float16 the library keeps this head in float32.
        queries, proposal_features = queries.to(self.no_target.dtype), proposal_features.to(self.no_target.dtype)
        no_target = self.no_target.expand(queries.shape[0], 1, -1)
        candidates = self.proposal_mlp(torch.cat([proposal_features, no_target], dim=1))
        scores = self.query_mlp(queries) @ candidates.transpose(1, 2)
        padding = F.pad(~proposal_mask, (0, 1), value=False)
        return scores.masked_fill(padding[:, None], float("-inf"))


def compute_grounding_losses(scores: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE (..., ) of scores (..., K + 1) against multi-hot labels (..., K + 1), float32."""
    logits = scores.float() / temperature
    positive = logits.masked_fill(labels <= 0, float("-inf"))
    return torch.logsumexp(logits, dim=-1) - torch.logsumexp(positive, dim=-1)


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
    # A step of an answer on a cache of fixed length is one graph.
    _can_compile_fullgraph = True
    # A loss of ours is a mean over answers or scenes, never over tokens: a stock Trainer divides it by its steps.
    accepts_loss_kwargs = False

    def initialize_weights(self):
        # In custom code the library passes over modules without weights of their own: there SigLIP draws its layers.
        for module in self.modules():
            if isinstance(module, PreTrainedModel) and not module.is_custom_code():
                module.initialize_weights()
        super().initialize_weights()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        head = getattr(self, "reconstruction_head", None)
        if head is not None and any(module is part for part in head.modules()):
            init_reconstruction_weights(module, head.config.initializer_range)
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
                "pixel_values: expected normalised views, floating point, of shape (B, V, 3, S, S) or (R, 3, S, S),"
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
        if output_hidden_states or output_attentions:
            tower = self.vision_tower(
                pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True
            )
            patches, attentions = tower.hidden_states[-1], tower.get("attentions")
            hidden_states = tower.hidden_states if output_hidden_states else None
        else:
            embedded = self.vision_tower.embeddings(pixel_values)
            patches = self.vision_tower.encoder(inputs_embeds=embedded).last_hidden_state
            hidden_states, attentions = None, None
        states = self.vision_tower.post_layernorm(patches)
        if self.training:
            # Nothing else reads the post-norm of published weights; with nothing it takes part, so that no parameter
            # of a tower in training is without a gradient.
            patches = patches + 0.0 * states[:1, :1].sum()
        projected = self.multi_modal_projector(patches)
        return Ross3DImageFeatures(
            last_hidden_state=states,
            pooler_output=self.pool_patches(projected),
            patch_features=projected,
            hidden_states=hidden_states,
            attentions=attentions,
        )

    def pool_patches(self, projected: torch.Tensor) -> torch.Tensor:
        """(R, P, D) on a p x p grid -> (R, N, D) on the h x w grid, bilinear, corners not aligned."""
        grid, pooled = self.config.patch_grid_size, self.config.view_grid_size
        features = projected.transpose(1, 2).unflatten(2, (grid, grid))
        features = F.interpolate(features, size=(pooled, pooled), mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2)

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
        self, pooled: torch.Tensor, positions: torch.Tensor | None, hidden: torch.Tensor | None
    ) -> torch.Tensor:
        """What fills the placeholders of R views, newline after every grid row: (R, h * (w + 1), D).

        Args:
            pooled (R, N, D): tokens of the views.
            positions (R, N, D): 3D position embeddings; a hidden view keeps its own.
            hidden (R,) bool: views to replace by the mask token.
        """
        if hidden is None:
            hidden = torch.zeros(len(pooled), dtype=torch.bool, device=pooled.device)
        # Under a device map the views, their positions and these two vectors may lie on different devices.
        tokens = torch.where(hidden.to(pooled.device)[:, None, None], self.mask_token.to(pooled), pooled)
        if positions is not None:
            tokens = tokens + positions.to(tokens)
        grid = self.config.view_grid_size
        rows = tokens.unflatten(1, (grid, grid))
        newline = self.image_newline.to(tokens).expand(rows.shape[0], grid, 1, -1)
        return torch.cat([rows, newline], dim=2).flatten(1, 2)

    def find_placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Which positions (B, L) hold visual tokens."""
        if input_ids is not None:
            return input_ids == self.config.image_token_id
        image_token = torch.full((), self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(image_token)).all(dim=-1)

    def get_view_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        pixel_values: torch.Tensor | None,
        patch_coords: torch.Tensor | None,
    ) -> torch.Tensor:
        """Which views are real (B, V) where nobody says: all that have pixels, or as many as have placeholders."""
        if pixel_values is not None:
            return torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        counts = self.find_placeholders(input_ids, inputs_embeds).sum(dim=1) // self.config.tokens_per_view
        num_views = int(counts.max()) if patch_coords is None else patch_coords.shape[1]
        return torch.arange(num_views, device=counts.device) < counts[:, None]

    def get_placeholder_mask(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        view_mask: torch.Tensor,
        numbers: Sequence[tuple[str, torch.Tensor, torch.Tensor, float]] = (),
    ) -> torch.Tensor:
        """Which positions (B, L) hold visual tokens; checked row by row against the number of real views.

        `numbers` are tensors that have to be finite, and within a limit, where the mask behind them is True: name,
        tensor, mask, limit. A GPU tells the host about all of this at once.
        """
        mask = self.find_placeholders(input_ids, inputs_embeds)
        wanted = view_mask.sum(dim=1) * self.config.tokens_per_view
        found = mask.sum(dim=1).to(wanted.device)
        finite = [
            ((tensor.isfinite() & (tensor.abs() <= limit)) | ~used).all().to(wanted.device)
            for _, tensor, used, limit in numbers
        ]
        if wanted.shape == found.shape and bool(torch.stack([(wanted == found).all(), *finite]).all()):
            return mask
        for given in numbers:
            check_numbers(*given)
        raise ValueError(
            f"input_ids: expected {wanted.tolist()} image placeholders (id {self.config.image_token_id}) per row,"
            f" {self.config.tokens_per_view} for each of {view_mask.sum(dim=1).tolist()} views, got"
            f" {found.tolist()}; build rows with this model's processor."
        )

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
                "query_coords: expected input_ids beside them, where <coord> can be found, got inputs_embeds only;"
                " pass input_ids, or embeddings that hold the points already."
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
                f"query_coords: expected a point for the <coord> of row {row}, got {points[row, place].tolist()}; pass"
                " query_coords for every question that names <coord>, finite and in metres, at most"
                f" {MAX_CAMERA_DISTANCE:.0f}."
            )
        positions = self.get_position_embedding(points.nan_to_num(), is_coord & given)
        return inputs_embeds + positions.to(inputs_embeds)

    def prepare_packed_rows(
        self,
        inputs_embeds: torch.Tensor,
        segment_ids: torch.Tensor,
        visible: torch.Tensor,
        attention_mask: torch.Tensor | None,
        prefix_length: int,
    ):
        """Attention mask, position ids and what attention is told of rows with several questions behind one scene.

        `visible` (B, L): `segment_ids`, -1 also where `attention_mask` hides a position.
        """
        implementation = self.config.text_config._attn_implementation
        positions = get_segment_positions(segment_ids)
        # CODEPATH: shared for sdpa, the default; masks of the whole row for the other implementations of the library.
        if shares_prefixes(self.config.text_config):
            # The library makes a mask of its own where none is given; its name for the layers' mask says there is.
            return {"full_attention": None}, positions, {"packed_rows": get_packed_rows(visible, prefix_length)}
        if implementation is not None and "flash" in implementation:
            raise ValueError(
                f"attn_implementation: expected 'sdpa', 'eager' or 'flex_attention' for rows with several questions,"
                f" got {implementation!r}, which has no segment masks; set it on the text model or pass one question"
                " a row."
            )
        mask = create_causal_mask(
            config=self.config.text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=None,
            and_mask_function=get_segment_visibility(segment_ids),
        )
        return mask, positions, {}

    def get_blank_views(self, num_rows: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Padding (B, 1, 3, S, S) and its mask (B, 1), all False, for rows without views."""
        size = self.config.vision_config.image_size
        pixel_values = torch.zeros(num_rows, 1, 3, size, size, dtype=self.vision_tower.dtype, device=device)
        return pixel_values, torch.zeros(num_rows, 1, dtype=torch.bool, device=device)

    def check_views_given(self, input_ids: torch.Tensor) -> None:
        """Refuse placeholders that no view would fill: rows that are read without views, and no cache before them."""
        count = self.find_placeholders(input_ids, None).sum(dim=1)
        if bool(count.any()):
            raise ValueError(
                f"pixel_values: expected views for the image placeholders (id {self.config.image_token_id}) of the"
                f" rows, {count.tolist()} of them, got none; pass the processor's whole output, pixel_values included."
            )

    def check_length(self, length: int, past_key_values: Cache | None) -> None:
        """Refuse rows over the context limit, those in the cache included."""
        length += count_cached(past_key_values) or 0
        if isinstance(past_key_values, SharedPrefixCache):
            length += past_key_values.longest_prefix
        limit = self.config.context_length
        if length > limit:
            raise ValueError(
                f"input_ids: expected at most {limit} positions (max_position_embeddings), got {length}; use fewer"
                f" views ({self.config.tokens_per_view} positions each) or fewer questions a row."
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
        **kwargs,
    ) -> Ross3DModelOutput:
        """Shapes as in the processor's output; see `Ross3DForConditionalGeneration.forward`."""
        batch = {
            "input_ids": input_ids, "segment_ids": segment_ids, "pixel_values": pixel_values, "view_mask": view_mask,
            "bool_masked_views": bool_masked_views, "patch_coords": patch_coords, "patch_valid": patch_valid,
            "query_coords": query_coords,
        }  # fmt: skip
        check_inputs(batch, h=self.config.view_grid_size)
        unknown = sorted(kwargs.keys() - LIBRARY_KEYS)
        if unknown:
            raise TypeError(
                f"forward: expected the processor's output and the library's own arguments, got {', '.join(unknown)};"
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
                "past_key_values: expected no cache while activation checkpointing is on, which drops it, got one;"
                " call model.eval() or model.activation_checkpointing_disable() first."
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
        extras = {}
        images = (mm_encoder_outputs or {}).get("image")
        has_views = pixel_values is not None or images is not None
        if has_views:
            if images is not None and pixel_values is not None:
                raise ValueError(
                    "mm_encoder_outputs: expected no pixel_values beside the features of views, got both; leave one"
                    " of them out."
                )
            if view_mask is None:
                view_mask = self.get_view_mask(input_ids, inputs_embeds, pixel_values, patch_coords)
            numbers = []
            if pixel_values is not None:
                numbers.append(("pixel_values", pixel_values, view_mask[..., None, None, None], float("inf")))
            if patch_coords is not None:
                patch_coords = read_float32("patch_coords", patch_coords)
                used = view_mask[..., None, None] if patch_valid is None else patch_valid & view_mask[..., None, None]
                numbers.append(("patch_coords", patch_coords, used[..., None], MAX_COORDINATE))
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds, view_mask, numbers)
            # Once, before the tower runs: a GPU has to tell the host where masks are True (docs/CONTRACT_TESTS.md).
            real, slots = view_mask.nonzero(as_tuple=True), placeholders.nonzero(as_tuple=True)
            num_views = len(real[0])
            if images is None:
                views = pixel_values[real]
                if not num_views:
                    # Text alone: the tower sees a blank view, of which nothing is kept, so that its weights take part.
                    views = pixel_values.new_zeros(1, *pixel_values.shape[2:])
                images = self.get_image_features(views, return_dict=True)
            else:
                shape = (num_views, self.config.view_grid_size**2, inputs_embeds.shape[-1])
                check_shape("mm_encoder_outputs", images.pooler_output, shape, "pass what get_image_features returns.")
            pooled, patches = images.pooler_output[:num_views], images.patch_features[:num_views]
            positions, hidden = None, None
            if patch_coords is not None:
                coords, valid = patch_coords[real].flatten(1, 2), None
                if patch_valid is not None:
                    valid = patch_valid[real].flatten(1, 2)
                positions = self.get_position_embedding(coords, valid)
            if bool_masked_views is not None:
                hidden = bool_masked_views[real]
            visual = self.get_visual_embeddings(pooled, positions, hidden)
            visual = visual.to(inputs_embeds.device, inputs_embeds.dtype)
            inputs_embeds = inputs_embeds.masked_scatter(placeholders[..., None].to(inputs_embeds.device), visual)
            extras["patch_features"] = pad_views(patches, real, view_mask)
            extras["visual_positions"] = None if positions is None else pad_views(positions, real, view_mask)
        if num_segments > 1:
            if past_key_values is not None:
                raise ValueError(
                    "past_key_values: expected none for rows with several questions, whose segments would see each"
                    f" other, got a cache of {int(past_key_values.get_seq_length())} positions; pass one question a"
                    " row."
                )
            attention_mask, position_ids, packed = self.prepare_packed_rows(
                inputs_embeds, segment_ids, visible, attention_mask, prefix_length
            )
            kwargs |= packed
        if isinstance(past_key_values, SharedPrefixCache):
            # Questions count from 0; what they are asked about stands before them.
            if position_ids is None:
                seen = past_key_values.get_seq_length()
                position_ids = torch.arange(seen, seen + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
            position_ids = position_ids + past_key_values.get_row_prefix_lengths().to(position_ids.device)
            kwargs["shared_prefix"] = past_key_values
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            return_dict=True,
            **kwargs,
        )
        if has_views:
            extras["visual_states"] = self.gather_visual_states(outputs.last_hidden_state, slots, real, view_mask)
        return Ross3DModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **extras,
        )

    def gather_visual_states(
        self,
        hidden_states: torch.Tensor,
        slots: tuple[torch.Tensor, ...],
        real: tuple[torch.Tensor, ...],
        view_mask: torch.Tensor,
    ) -> torch.Tensor:
        """States at the placeholders (B, L, D) -> (B, V, N, D), without the newline that ends each grid row.

        `slots` are the places (row, position) of the placeholders; `real` and `view_mask` as in `pad_views`.
        """
        grid = self.config.view_grid_size
        row, position = (index.to(hidden_states.device) for index in slots)
        rows = hidden_states[row, position].unflatten(0, (len(real[0]), grid, grid + 1))[:, :, :grid]
        return pad_views(rows.flatten(1, 2), real, view_mask)


# What a scene brings to the first forward of `generate`; later steps read the cache.
SCENE_KEYS = (
    "pixel_values",
    "view_mask",
    "patch_coords",
    "patch_valid",
    "bool_masked_views",
    "query_coords",
    "segment_ids",
)
# What the processor returns for grounding and training; `generate` has no use for it.
NOT_FOR_GENERATION = (
    "proposal_boxes",
    "proposal_mask",
    "proposal_patches",
    "labels",
    "shift_labels",
    "loss_weights",
    "grounding_labels",
    "bev_pixel_values",
    "bev_valid",
    "bev_bounds",
    "row_seed",
)


# New tokens of an answer where nobody says how many, as everywhere in the library.
DEFAULT_NEW_TOKENS = 20


class Ross3DTargets(TypedDict, total=False):
    """Targets that not every row has. A stock `Trainer` reads the names of `forward` and evaluates only batches that
    bring everything with `label` in its name: these two are among its other arguments, as in the library's models."""

    shift_labels: torch.LongTensor | None
    grounding_labels: torch.Tensor | None


class PlaceholderSuppression(LogitsProcessor):
    """Keeps `<image>` and `<coord>` out of answers, whatever a generation config says: they stand for places."""

    def __init__(self, tokens: list[int]):
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for token in self.tokens:
            scores[:, token] = float("-inf")
        return scores


# What the library hands from `generate` and `Trainer` down to the language model and its attention.
LIBRARY_KEYS = frozenset(TransformersKwargs.__annotations__) | {"use_cache", "cache_position", "return_dict"}


def check_input_names(method: str, inputs: dict[str, Any], unused: tuple[str, ...] = ()) -> None:
    """Refuse names that no processor output has, and those that the method would leave out without a word."""
    unknown = sorted(inputs.keys() - {"input_ids", "attention_mask", *SCENE_KEYS, *NOT_FOR_GENERATION})
    if unknown:
        raise TypeError(
            f"{method}: expected the processor's output and this method's own arguments, got {', '.join(unknown)};"
            " check the spelling."
        )
    given = [name for name in unused if inputs.get(name) is not None]
    if given:
        raise TypeError(f"{method}: expected no {given[0]}, which means nothing here, got one; leave it out.")


def append_ground_slots(
    input_ids: torch.Tensor, real: torch.Tensor, segment_ids: torch.Tensor, ground_token_id: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Close every question that has no `<ground>` with one.

    Args:
        input_ids, segment_ids (B, L): rows; `real` (B, L) bool is False at padding, wherever it stands.

    Returns:
        new `input_ids` and `segment_ids` (B, L'), padded on the right with `pad_token_id` and -1.
    """
    new_rows = []
    for ids, keep, segments in zip(input_ids.tolist(), real.tolist(), segment_ids.tolist(), strict=True):
        questions: dict[int, list[int]] = {}
        for token, is_real, segment in zip(ids, keep, segments, strict=True):
            if is_real:
                questions.setdefault(segment, []).append(token)
        row: list[tuple[int, int]] = []
        for segment, tokens in questions.items():
            slot = [ground_token_id] if segment > 0 and ground_token_id not in tokens else []
            row.extend((token, segment) for token in tokens + slot)
        new_rows.append(row)
    length = max(len(row) for row in new_rows)
    padded = [row + [(pad_token_id, -1)] * (length - len(row)) for row in new_rows]
    stacked = torch.tensor(padded, device=input_ids.device)
    return stacked[..., 0], stacked[..., 1]


def get_ground_queries(
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    ground_token_id: int,
    num_questions: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States at the `<ground>` tokens: queries (B, Q, D), zero where a question has none, and which have one (B, Q).

    Raises:
        ValueError: when a question holds more than one `<ground>`.
    """
    rows, positions = (input_ids == ground_token_id).nonzero(as_tuple=True)
    questions = torch.zeros_like(rows) if segment_ids is None else (segment_ids[rows, positions] - 1).clamp(min=0)
    places = Counter(zip(*torch.stack([rows, questions]).tolist(), strict=True))
    for (row, question), count in sorted(places.items()):
        if count > 1:
            raise ValueError(
                f"input_ids: expected at most one <ground> a question, got {count} in question {question} of row"
                f" {row}; ask about one referring expression at a time."
            )
    num_questions = max([num_questions, *(question + 1 for _, question in places)])
    device = hidden_states.device
    found = hidden_states[rows.to(device), positions.to(device)].to(rows.device)
    asked = torch.zeros(input_ids.shape[0], num_questions, dtype=torch.bool, device=input_ids.device)
    asked[rows, questions] = True
    queries = found.new_zeros(*asked.shape, found.shape[-1])
    return queries.index_put((rows, questions), found), asked


class Ross3DForConditionalGeneration(Ross3DPreTrainedModel, GenerationMixin):
    """Ross3D with its language, grounding and reconstruction heads."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    # What no quantisation converts; the small grounding head stays in the precision that is asked for (float16: 32).
    _keep_in_fp32_modules = ["reconstruction_head", "grounding_head"]
    # The denoising losses are float32 work, whatever the rest is loaded in. All parts of the head by their names: the
    # library wants no name in both lists.
    _keep_in_fp32_modules_strict = ["view_pooler", "bev_pooler", "view_embedding", "bev_embedding", "denoiser"]

    def __init__(self, config: Ross3DConfig):
        super().__init__(config)
        checkpointing = getattr(config, "gradient_checkpointing", False)
        self.model = Ross3DModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # CODEPATH: published checkpoints ground; models of the systems without proposals do not.
        self.grounding_head = Ross3DGroundingHead(config) if config.grounding else None
        self.reconstruction_head = None
        # CODEPATH: published checkpoints carry the denoiser; exports for inference alone may leave it out.
        if config.denoiser_config is not None:
            self.reconstruction_head = Ross3DReconstructionHead(
                config.denoiser_config, config.text_config.hidden_size, config.view_grid_size
            )
        name_auto_classes(config)
        # Their vectors mean places of a scene: an answer never holds them.
        self.generation_config.suppress_tokens = [config.image_token_id, config.coord_token_id]
        # Held in a tuple: the teacher is equipment, no sub-module, and never in a checkpoint of this model.
        self._teacher = ()
        self.post_init()
        # The base model has used this old switch up before the denoiser was there.
        if checkpointing:
            self.activation_checkpointing_enable()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None = None, **kwargs):
        """See `Ross3DModel.get_image_features`; NaN is refused outside training."""
        if not self.training and pixel_values.is_floating_point():
            used = torch.ones_like(pixel_values[..., :1, :1, :1], dtype=torch.bool)
            used = used if view_mask is None else view_mask[..., None, None, None]
            check_numbers("pixel_values", pixel_values, used)
        return self.model.get_image_features(pixel_values, view_mask, **kwargs)

    def attach_teacher(self, teacher) -> None:
        """Give the model the frozen VAE whose latents it rebuilds.

        Args:
            teacher (`AutoencoderKL`, `str` or `Path`): a diffusers VAE or a folder that holds one (a checkpoint's
                `teacher/`). It is used in its own dtype under `no_grad` and never saved with the model.

        Raises:
            ImportError: when a folder is given and diffusers is not installed.
            ValueError: when its latent channels, scale or shift are not those of `denoiser_config`.
        """
        if isinstance(teacher, str | Path):
            # Here, since it takes a fifth of a cold start, and answers need no teacher.
            try:
                from diffusers import AutoencoderKL
            except ImportError as error:
                raise ImportError(
                    "attach_teacher: reading a VAE folder needs diffusers; run `pip install diffusers`."
                ) from error
            teacher = AutoencoderKL.from_pretrained(teacher)
        if self.reconstruction_head is None:
            raise ValueError(
                "attach_teacher: expected a model with denoiser_config, got None; it has nothing to teach."
            )
        for name in ("latent_channels", "scaling_factor", "shift_factor"):
            wanted, found = getattr(self.config.denoiser_config, name), getattr(teacher.config, name) or 0.0
            if wanted != found:
                raise ValueError(
                    f"attach_teacher: expected a VAE with {name}={wanted} (denoiser_config), got {found}; attach the"
                    " VAE that this checkpoint was trained with."
                )
        self._teacher = (teacher.requires_grad_(False).eval(),)

    def get_teacher(self):
        """The attached VAE, on this model's device.

        Raises:
            ValueError: when none is attached.
        """
        if not self._teacher:
            raise ValueError(
                "teacher: expected an attached VAE, since pictures are to be encoded or decoded, got none; call"
                " model.attach_teacher(DIR/'teacher') or pass view_latents and bev_latents."
            )
        teacher = self._teacher[0]
        # Not by the weight's name: that would gather it from all processes under ZeRO-3.
        device = next(self.lm_head.parameters()).device
        return teacher.to(device) if device.type != "meta" else teacher

    def encode_pictures(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior mean and log-variance (n, z, a, b) of pictures (n, 3, H, W) in [-1, 1]."""
        teacher = self.get_teacher()
        with torch.no_grad(), maybe_autocast(teacher.device.type, enabled=False):
            posterior = teacher.encode(pictures.to(teacher.device, teacher.dtype).contiguous()).latent_dist
        return posterior.mean.to(pictures.device), posterior.logvar.to(pictures.device)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (n, 3, H, W) in [0, 1] of teacher latents (n, z, a, b)."""
        teacher = self.get_teacher()
        with torch.no_grad(), maybe_autocast(teacher.device.type, enabled=False):
            pictures = teacher.decode(latents.to(teacher.device, teacher.dtype)).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def get_proposal_features(
        self,
        patch_features: torch.Tensor | None,
        proposal_boxes: torch.Tensor,
        proposal_mask: torch.Tensor | None,
        proposal_patches: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean of each proposal's patches plus the embedding of its centre.

        Args:
            patch_features (B, V, P, D): projected patches, never hidden.
            proposal_boxes (B, K, 6): centre and size, metres.
            proposal_mask (B, K) bool: real proposals, all when absent.
            proposal_patches (B, K, V, p, p) bool, or packed by `pack_patches`: patches inside each box; a proposal
                without any is its centre alone.

        Returns:
            features (B, K, D) and mask (B, K).
        """
        hint = "build rows with this model's processor."
        sizes = check_shape("proposal_boxes", proposal_boxes, ("B", "K", 6), hint)
        if proposal_mask is None:
            proposal_mask = torch.ones(proposal_boxes.shape[:2], dtype=torch.bool, device=proposal_boxes.device)
        check_shape("proposal_mask", proposal_mask, (sizes["B"], sizes["K"]), hint)
        proposal_boxes = read_float32("proposal_boxes", proposal_boxes)
        if not self.training:
            # A read of the device: training has no time for it, and gets its boxes from a processor that has looked.
            check_numbers("proposal_boxes", proposal_boxes, proposal_mask[..., None], MAX_COORDINATE)
            negative = ((proposal_boxes[..., 3:] < 0).any(dim=-1) & proposal_mask).nonzero().tolist()
            if negative:
                row, place = negative[0]
                raise ValueError(
                    f"proposal_boxes: expected sizes >= 0 (centre xyz, size xyz), got"
                    f" {proposal_boxes[row, place].tolist()} in row {row}; turn corners into centre and size."
                )
        centres = proposal_boxes[..., :3]
        features = take_part(self.model.get_position_embedding(centres, proposal_mask), patch_features)
        if proposal_patches is not None and patch_features is not None:
            views, grid = patch_features.shape[1], self.config.patch_grid_size
            if proposal_patches.dtype == torch.uint8:
                num_bytes = -(-(grid**2) // 8)
                check_shape("proposal_patches", proposal_patches, (sizes["B"], sizes["K"], views, num_bytes), hint)
                proposal_patches = unpack_patches(proposal_patches, grid)
            check_shape("proposal_patches", proposal_patches, (sizes["B"], sizes["K"], views, grid, grid), hint)
            member = proposal_patches.flatten(2).to(patch_features)  # (B, K, V*P)
            pooled = member @ patch_features.flatten(1, 2) / member.sum(dim=-1, keepdim=True).clamp(min=1)
            features = features.to(pooled) + pooled
        return features, proposal_mask

    def get_loss_rows(self, view_mask, bool_masked_views, grounding_labels) -> tuple[torch.Tensor | None, ...]:
        """Which views to hide (B, V) and which rows (B,) may carry reconstruction losses."""
        allowed = None
        # CODEPATH: published checkpoints rebuild nothing on grounding rows; models trained on mixed rows do.
        if grounding_labels is not None and not self.config.reconstruct_on_grounding_rows:
            allowed = ~(grounding_labels > 0).flatten(1).any(dim=1)
        if bool_masked_views is not None:
            if view_mask is not None:
                bool_masked_views = bool_masked_views & view_mask
            if allowed is not None:
                bool_masked_views = bool_masked_views & allowed[:, None]
        return bool_masked_views, allowed

    def compute_lm_loss(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        shift_labels: torch.Tensor | None,
        loss_weights: torch.Tensor | None,
        grounding_labels: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over answers of their mean cross entropy, and the number of answers."""
        if shift_labels is None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=-100)
        if loss_weights is not None:
            loss_weights = read_float32("loss_weights", loss_weights)
        if loss_weights is None:
            supervised = shift_labels != -100
            if grounding_labels is not None:
                supervised = supervised & ~(grounding_labels > 0).flatten(1).any(dim=1)[:, None]
            loss_weights = supervised / supervised.sum(dim=1, keepdim=True).clamp(min=1)
        kept = (loss_weights > 0).nonzero(as_tuple=True)
        if not len(kept[0]):
            return self.lm_head(hidden_states[:, :1]).sum() * 0.0, loss_weights.new_zeros(())
        row, position = (index.to(hidden_states.device) for index in kept)
        logits = self.lm_head(hidden_states[row, position]).float().to(loss_weights.device)
        errors = F.cross_entropy(logits, shift_labels[kept], reduction="none")
        return (errors * loss_weights[kept]).sum(), loss_weights.sum().round()

    def compute_grounding_loss(
        self, scores: torch.Tensor, has_slot: torch.Tensor, grounding_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the InfoNCE losses of grounding questions, and their number.

        Args:
            scores (B, Q, K + 1), has_slot (B, Q) bool: see `compute_grounding_scores`.
            grounding_labels (B, Q, K + 1): multi-hot; an all-zero row is no grounding question.
        """
        if grounding_labels is not None:
            hint = "pass one row a question and one column a proposal, then one for no target."
            check_shape("grounding_labels", grounding_labels, tuple(scores.shape), hint)
        asked = torch.zeros_like(has_slot) if grounding_labels is None else (grounding_labels > 0).any(dim=-1)
        places = asked.nonzero(as_tuple=True)
        # One read of the device, whichever of the two it is about.
        is_right = bool(has_slot[places].all() if grounding_labels is not None else ~has_slot.any())
        if not is_right and grounding_labels is None:
            raise ValueError(
                "grounding_labels: expected them in training beside <ground>, got none; pass target_objects= to the"
                " processor. A stock Trainer drops them unless remove_unused_columns=False."
            )
        if not is_right:
            row, question = (asked & ~has_slot).nonzero()[0].tolist()
            raise ValueError(
                f"grounding_labels: expected a <ground> in question {question} of row {row}, which has labels, got"
                " none; answer grounding questions with `<ground>`."
            )
        if not len(places[0]):
            return scores[..., -1].sum() * 0.0, asked.sum().to(scores.dtype)
        losses = compute_grounding_losses(scores[places], grounding_labels[places], self.config.grounding_temperature)
        return losses.sum(), asked.sum().to(losses.dtype)

    def get_unseen_views(self, bool_masked_views: torch.Tensor | None) -> torch.Tensor | None:
        """Which of the views to rebuild (B, V) are hidden from the language model: all; none with `vanilla`."""
        # CODEPATH: cross-view in published checkpoints; the vanilla objective is what the paper compares with.
        return bool_masked_views if self.config.view_objective == "cross_view" else None

    def get_visible_views(self, view_mask: torch.Tensor, unseen: torch.Tensor | None) -> torch.Tensor:
        """What conditions may attend (B, V): the views that are seen, or all of a scene that hides them all."""
        if unseen is None:
            return view_mask
        seen = view_mask & ~unseen
        return torch.where(seen.any(dim=1, keepdim=True), seen, view_mask)

    def get_view_repeats(self, view_mask: torch.Tensor, hidden: torch.Tensor) -> list[int]:
        """Noise draws per hidden view of each scene: V // hidden, as published, so that a scene counts V pictures."""
        views, counts = torch.stack([view_mask.sum(dim=1), hidden.sum(dim=1)]).tolist()
        return [view // count if count else 0 for view, count in zip(views, counts, strict=True)]

    def compute_view_loss(
        self,
        scene_states: SceneStates,
        view_mask: torch.Tensor,
        hidden: torch.Tensor | None,
        pixel_values: torch.Tensor,
        view_latents: torch.Tensor | None = None,
        row_seed: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        posterior_noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over scenes of the mean denoising error of their hidden views, and the number of such scenes."""
        head, config = self.reconstruction_head, self.config.denoiser_config
        places = () if hidden is None else hidden.nonzero(as_tuple=True)
        if hidden is None or not len(places[0]):
            return self.run_placeholder(scene_states, "view"), scene_states.states.new_zeros((), dtype=torch.float32)
        if view_latents is None:
            mean = torch.tensor(self.config.image_mean, device=pixel_values.device)
            std = torch.tensor(self.config.image_std, device=pixel_values.device)
            pictures = prepare_view_pictures(pixel_values[places].float(), mean, std, config.view_image_size)
            latent_mean, logvar = self.encode_pictures(pictures)
        else:
            latent_mean, logvar = view_latents[places].chunk(2, dim=1)
        counts = hidden.sum(dim=1).tolist()
        if posterior_noise is None:
            shapes = [(count, *latent_mean.shape[1:]) for count in counts]
            posterior_noise = torch.cat(draw_rows(row_seed, 0, shapes, draw_normal))
        latents = latent_mean + torch.exp(0.5 * logvar) * posterior_noise.to(latent_mean)
        targets = head.get_targets(latents, "view")

        repeats = self.get_view_repeats(view_mask, hidden)
        items, weights = list_view_items(counts, repeats)
        per_scene = [count * repeat for count, repeat in zip(counts, repeats, strict=True)]
        if timesteps is None:
            draw = get_timestep_draw(config.num_train_timesteps)
            timesteps = torch.cat(draw_rows(row_seed, 1, [(count,) for count in per_scene], draw))
        if noise is None:
            shapes = [(count, *targets.shape[1:]) for count in per_scene]
            noise = torch.cat(draw_rows(row_seed, 2, shapes, draw_normal))

        condition = self.get_view_conditions(scene_states, hidden)  # (n, M, C)
        errors = head.compute_errors(targets[items], timesteps, noise.to(targets), condition[items], "view")
        total = (errors.flatten(1).mean(dim=1) * torch.tensor(weights, device=errors.device)).sum()
        return total, hidden.any(dim=1).sum().to(total.dtype)

    def get_view_conditions(self, scene_states: SceneStates, hidden: torch.Tensor) -> torch.Tensor:
        """The condition of every view to rebuild, scene by scene: (n, M, C).

        That are the hidden views; with the vanilla objective `hidden` (B, V) names visible ones, each of which becomes
        a scene of its own.
        """
        scene, view = hidden.nonzero(as_tuple=True)
        # CODEPATH: cross-view in published checkpoints; the vanilla objective is what the paper compares with.
        if self.config.view_objective == "vanilla":
            positions = scene_states.positions
            scene_states = SceneStates(
                scene_states.states[scene, view][:, None],
                scene_states.visible[scene, view][:, None],
                None if positions is None else positions[scene, view][:, None],
            )
            hidden = torch.ones_like(scene[:, None], dtype=torch.bool)
            scene, view = torch.arange(len(scene), device=scene.device), torch.zeros_like(view)
        slot = hidden.cumsum(dim=1)[scene, view] - 1
        queries = None
        # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
        if self.config.denoiser_config.queries_have_positions and scene_states.positions is not None:
            positions = scene_states.positions
            queries = positions.new_zeros(len(hidden), int(hidden.sum(dim=1).max()), *positions.shape[2:])
            queries[scene, slot] = positions[scene, view]
        condition = self.reconstruction_head.get_condition(scene_states, "view", queries)
        return condition[scene, slot if queries is not None else torch.zeros_like(slot)]

    def check_bev_bounds(self, bev_bounds: torch.Tensor) -> torch.Tensor:
        """The edges of B pictures (B, 4) in float32, NaN where a scene has none.

        Their order is read from the device, so not in training, whose edges come from a processor that has looked.
        """
        hint = "pass x_min, y_min, x_max, y_max of each picture, metres."
        bev_bounds = read_float32("bev_bounds", bev_bounds)
        if not self.training:
            ordered = (bev_bounds[:, :2] < bev_bounds[:, 2:]).all(dim=1)
            ordered = ordered & (bev_bounds.abs() <= MAX_COORDINATE).all(dim=1)
            wrong = (~ordered & ~bev_bounds.isnan().all(dim=1)).nonzero()[:, 0].tolist()
            if wrong:
                raise ValueError(
                    "bev_bounds: expected finite x_min < x_max and y_min < y_max, in the order x_min, y_min, x_max,"
                    f" y_max, metres up to {MAX_COORDINATE:.0f}, got {bev_bounds[wrong[0]].tolist()} for scene"
                    f" {wrong[0]}; {hint}"
                )
        return bev_bounds

    def get_bev_conditions(self, scene_states: SceneStates, bev_bounds: torch.Tensor | None) -> torch.Tensor:
        """The condition of the bird's-eye picture of every scene: (B, M, C).

        `bev_bounds` (B, 4) are the picture's edges in metres (x_min, y_min, x_max, y_max).
        """
        queries = None
        # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
        if self.config.denoiser_config.queries_have_positions and bev_bounds is not None:
            bev_bounds = self.check_bev_bounds(bev_bounds)
            size = self.config.denoiser_config.bev_grid_size
            share = (torch.arange(size, device=bev_bounds.device, dtype=torch.float32) + 0.5) / size
            x = bev_bounds[:, None, 0] + share * (bev_bounds[:, None, 2] - bev_bounds[:, None, 0])  # (B, size)
            y = bev_bounds[:, None, 3] - share * (bev_bounds[:, None, 3] - bev_bounds[:, None, 1])
            x = x[:, None, :].expand(-1, size, -1)
            y = y[:, :, None].expand(-1, -1, size)
            cells = torch.stack([x, y, torch.zeros_like(x)], dim=-1).flatten(1, 2)  # (B, M, 3), on the floor
            given = ~torch.isnan(cells).any(dim=-1)
            queries = self.model.get_position_embedding(cells.nan_to_num(), given)[:, None]
        return self.reconstruction_head.get_condition(scene_states, "bev", queries)[:, 0]

    def compute_bev_loss(
        self,
        scene_states: SceneStates,
        bev_pixel_values: torch.Tensor | None,
        bev_valid: torch.Tensor | None,
        bev_bounds: torch.Tensor | None,
        allowed: torch.Tensor | None,
        bev_latents: torch.Tensor | None = None,
        row_seed: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        posterior_noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum over scenes of the denoising error averaged over the picture's counted cells, and their number."""
        head, config = self.reconstruction_head, self.config.denoiser_config
        rows = torch.zeros(len(scene_states.states), dtype=torch.bool, device=scene_states.states.device)
        if bev_pixel_values is not None or bev_latents is not None:
            cells = get_bev_cells(bev_pixel_values, bev_valid, config.bev_grid_size, config.bev_loss_mask)
            rows = cells.flatten(1).any(dim=1)
            rows = rows if allowed is None else rows & allowed
        places = rows.nonzero()[:, 0]
        if not len(places):
            return self.run_placeholder(scene_states, "bev"), scene_states.states.new_zeros((), dtype=torch.float32)
        if bev_latents is None:
            pictures = (2 * bev_pixel_values[places].float() - 1).clamp(-1, 1)
            latent_mean, logvar = self.encode_pictures(pictures)
        else:
            latent_mean, logvar = bev_latents[places].chunk(2, dim=1)
        seeds = None if row_seed is None else row_seed[places.to(row_seed.device)]
        count = len(latent_mean)
        if posterior_noise is None:
            posterior_noise = torch.cat(draw_rows(seeds, 3, [(1, *latent_mean.shape[1:])] * count, draw_normal))
        latents = latent_mean + torch.exp(0.5 * logvar) * posterior_noise.to(latent_mean)
        targets = head.get_targets(latents, "bev")
        if timesteps is None:
            timesteps = torch.cat(draw_rows(seeds, 4, [(1,)] * count, get_timestep_draw(config.num_train_timesteps)))
        if noise is None:
            noise = torch.cat(draw_rows(seeds, 5, [(1, *targets.shape[1:])] * count, draw_normal))
        chosen = SceneStates(
            scene_states.states[places],
            scene_states.visible[places],
            None if scene_states.positions is None else scene_states.positions[places],
        )
        condition = self.get_bev_conditions(chosen, None if bev_bounds is None else bev_bounds[places])
        errors = head.compute_errors(targets, timesteps, noise.to(targets), condition, "bev")
        counted = cells[places][:, None].to(errors)  # (n, 1, g, g)
        totals = (errors * counted).flatten(1).sum(dim=1) / (counted.flatten(1).sum(dim=1) * errors.shape[1])
        return totals.sum(), rows.sum().to(totals.dtype)

    def run_placeholder(self, scene_states: SceneStates, branch: str) -> torch.Tensor:
        """Zero, through every parameter of a branch: a rank with nothing to rebuild still takes part in the step."""
        head = self.reconstruction_head
        one = SceneStates(
            scene_states.states[:1],
            scene_states.visible[:1],
            None if scene_states.positions is None else scene_states.positions[:1],
        )
        grid, config = head.get_grid_size(branch), self.config.denoiser_config
        queries = None
        # CODEPATH: "pooled" in published checkpoints, "per_view" in new ones.
        if config.queries_have_positions:
            queries = one.states.new_zeros(1, 1, grid**2, one.states.shape[-1])
            if one.positions is None:
                one.positions = torch.zeros_like(one.states)
        condition = head.get_condition(one, branch, queries)[:, 0]
        latents = torch.zeros(1, config.token_channels, grid, grid, device=condition.device, dtype=condition.dtype)
        timesteps = torch.zeros(1, dtype=torch.long, device=condition.device)
        return head(latents, timesteps, condition, branch).sum() * 0.0

    def compute_grounding_scores(
        self,
        hidden_states: torch.Tensor,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor | None,
        proposal_features: torch.Tensor,
        proposal_mask: torch.Tensor,
        num_questions: int = 1,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (B, Q, K + 1), and which questions (B, Q) have a `<ground>`; the scores of others mean nothing."""
        queries, asked = get_ground_queries(
            hidden_states, input_ids, segment_ids, self.config.ground_token_id, num_questions
        )
        return self.grounding_head(queries, proposal_features, proposal_mask).to(asked.device), asked

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
        query_coords: torch.FloatTensor | None = None,
        bool_masked_views: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        loss_weights: torch.FloatTensor | None = None,
        bev_pixel_values: torch.FloatTensor | None = None,
        bev_valid: torch.BoolTensor | None = None,
        bev_bounds: torch.FloatTensor | None = None,
        view_latents: torch.FloatTensor | None = None,
        bev_latents: torch.FloatTensor | None = None,
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
            proposal_boxes (`(B, K, 6)`), proposal_mask (`(B, K)`), proposal_patches (`(B, K, V, p, p)`): candidate
                objects: centre and size in metres, real or padding, and the vision patches inside.
            query_coords (`(B, Q, 3)`): metres; NaN for questions without `<coord>`.
            bool_masked_views (`(B, V)`): True = the view is hidden and, with a teacher, has to be rebuilt; with the
                vanilla objective it is rebuilt from what is seen of it.
            labels, shift_labels, loss_weights (`(B, L)`): text targets; `labels` alone are shifted here and averaged
                row by row, which rows with several questions cannot be.
            grounding_labels (`(B, Q, K + 1)`): multi-hot, last column "no target"; an all-zero row is no question.
            bev_pixel_values (`(B, 3, Hb, Wb)` in [0, 1]), bev_valid (`(B, Hb, Wb)`), bev_bounds (`(B, 4)` metres).
            view_latents (`(B, V, 2z, a, b)`), bev_latents (`(B, 2z, a, b)`): posterior mean and log-variance, in
                place of a teacher.
            row_seed (`(B,)`): seeds of the diffusion draws; absent, torch's generator draws.
            view_timesteps (`(n,)`), view_noise (`(n, Z, h, w)`), view_posterior_noise (`(hidden, z, a, b)`) and the
                same for `bev_`: draws given from outside; n = the hidden views of each scene, V // hidden times.
            mm_encoder_outputs (`dict`): `{"image": features}` of `get_image_features`, in place of `pixel_values`, of
                the views that are real, row by row.
            logits_to_keep (`int` or `torch.Tensor`): positions whose logits are wanted; 0 = all.
            num_items_in_batch (`torch.Tensor` of shape `(4,)`): over how many answers, scenes with hidden views,
                scenes with a bird's-eye picture and grounding questions the losses are averaged; by default those
                of this batch.
        """
        shift_labels, grounding_labels = kwargs.pop("shift_labels", None), kwargs.pop("grounding_labels", None)
        batch = {
            "input_ids": input_ids, "segment_ids": segment_ids, "labels": labels, "shift_labels": shift_labels,
            "loss_weights": loss_weights, "pixel_values": pixel_values, "view_mask": view_mask,
            "bool_masked_views": bool_masked_views, "patch_coords": patch_coords, "patch_valid": patch_valid,
            "proposal_boxes": proposal_boxes, "proposal_mask": proposal_mask, "proposal_patches": proposal_patches,
            "query_coords": query_coords, "grounding_labels": grounding_labels, "bev_pixel_values": bev_pixel_values,
            "bev_valid": bev_valid, "bev_bounds": bev_bounds, "view_latents": view_latents,
            "bev_latents": bev_latents, "row_seed": row_seed,
        }  # fmt: skip
        denoiser = self.config.denoiser_config
        bev_size = {} if denoiser is None else {"b": denoiser.bev_image_size}
        check_inputs(batch, h=self.config.view_grid_size, **bev_size)
        # Another process may have what is missing here, and waits for the same weights.
        runs_all = self.training or (past_key_values is None and is_sharded(self))
        given = inputs_embeds if input_ids is None else input_ids
        if runs_all and past_key_values is None and pixel_values is None and given is not None:
            pixel_values, view_mask = self.model.get_blank_views(len(given), given.device)
        self.check_grounding_targets(grounding_labels, input_ids, proposal_boxes, proposal_mask)
        hidden_views, allowed = self.get_loss_rows(view_mask, bool_masked_views, grounding_labels)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            view_mask=view_mask,
            patch_coords=patch_coords,
            patch_valid=patch_valid,
            bool_masked_views=self.get_unseen_views(hidden_views),
            query_coords=query_coords,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        logits = None
        # A step of train.py has no use for them, whether its rows have text or not.
        if not (self.training and (loss_weights is not None or num_items_in_batch is not None)):
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
        elif num_items_in_batch is None:
            # A stock Trainer's process whose rows have no text calls it for logits and once more for the loss.
            self.lm_head(hidden_states[:, :1])

        totals: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        if labels is not None or shift_labels is not None or runs_all:
            self.check_text_targets(segment_ids, labels, shift_labels, loss_weights)
            if labels is None and shift_labels is None:
                labels = torch.full(hidden_states.shape[:2], -100, device=hidden_states.device)
            totals["lm_loss"] = self.compute_lm_loss(
                hidden_states, labels, shift_labels, loss_weights, grounding_labels
            )
        grounding_scores = None
        if self.grounding_head is not None and (proposal_boxes is not None or runs_all) and input_ids is not None:
            if proposal_boxes is None:
                proposal_boxes = hidden_states.new_zeros(len(input_ids), 0, 6, dtype=torch.float32)
            features, mask = self.get_proposal_features(
                outputs.patch_features, proposal_boxes, proposal_mask, proposal_patches
            )
            has_slots = (input_ids == self.config.ground_token_id).any()
            if runs_all or bool(has_slots):
                num_questions = 1 if grounding_labels is None else grounding_labels.shape[1]
                scores, asked = self.compute_grounding_scores(
                    hidden_states, input_ids, segment_ids, features, mask, num_questions
                )
                grounding_scores = scores.masked_fill(~asked[..., None], float("-inf"))
                if grounding_labels is not None or self.training:
                    totals["grounding_loss"] = self.compute_grounding_loss(scores, asked, grounding_labels)
        if self.reconstruction_head is not None and pixel_values is not None:
            draws = (view_timesteps, view_noise, view_posterior_noise, bev_timesteps, bev_noise, bev_posterior_noise)
            totals |= self.compute_reconstruction_losses(
                outputs,
                view_mask,
                hidden_views,
                allowed,
                pixel_values,
                bev_pixel_values,
                bev_valid,
                bev_bounds,
                view_latents,
                bev_latents,
                row_seed,
                draws,
                runs_all,
            )
        losses, loss, counts = self.combine_losses(totals, num_items_in_batch)
        if self.training and loss is not None:
            loss = take_part(loss, *outputs.values())
        return Ross3DOutput(
            loss=loss,
            **losses,
            loss_counts=counts,
            logits=logits,
            grounding_scores=grounding_scores,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def check_grounding_targets(self, grounding_labels, input_ids, proposal_boxes, proposal_mask) -> None:
        """Refuse labels of proposals that nothing would be scored against; their numbers, outside training."""
        if grounding_labels is None:
            return
        needed = {"input_ids": input_ids, "proposal_boxes": proposal_boxes, "grounding_head": self.grounding_head}
        for name, value in needed.items():
            if value is None:
                raise ValueError(
                    f"grounding_labels: expected {name} beside them, got None; pass the processor's whole output to a"
                    " model with config.grounding=True, or leave grounding questions out."
                )
        if self.training:
            return
        # Reads of the device.
        if not bool((grounding_labels >= 0).all()):
            raise ValueError(
                "grounding_labels: expected 0 and 1, got a negative number or NaN; pass target_objects= to the"
                " processor."
            )
        if proposal_mask is None or grounding_labels.shape[-1] != proposal_mask.shape[1] + 1:
            return
        padding = ((grounding_labels[..., :-1] > 0) & ~proposal_mask[:, None]).nonzero().tolist()
        if padding:
            row, question, place = padding[0]
            raise ValueError(
                f"grounding_labels: expected targets among the real proposals, got proposal {place} for question"
                f" {question} of row {row}, where proposal_mask is False; leave it out or unmask it."
            )

    def check_text_targets(self, segment_ids, labels, shift_labels, loss_weights) -> None:
        """Refuse unshifted labels for rows with several questions; rows of the processor are not even looked at."""
        if labels is None and shift_labels is not None and loss_weights is not None:
            raise ValueError(
                "labels: expected them beside shift_labels and loss_weights, as the processor returns them, got none;"
                " a Trainer with label_smoothing_factor takes them away, which this model cannot do with: set it to 0."
            )
        if not self.training:
            self.check_target_numbers(labels if shift_labels is None else shift_labels, loss_weights)
        if labels is None or shift_labels is not None or segment_ids is None:
            return
        if int(segment_ids.max()) > 1:
            raise ValueError(
                "shift_labels: expected shift_labels and loss_weights beside labels, since a row holds several"
                " questions and only its processor knows what each may predict, got None; pass answers= to the"
                " processor and give the model all that it returns. A stock Trainer drops some of it unless"
                " remove_unused_columns=False."
            )

    def check_target_numbers(self, labels: torch.Tensor | None, loss_weights: torch.Tensor | None) -> None:
        """Refuse targets that are no tokens and weights that are none; a read of the device, so not in training."""
        size = self.config.text_config.vocab_size
        if labels is not None:
            wrong = labels[((labels < 0) | (labels >= size)) & (labels != -100)]
            if len(wrong):
                raise ValueError(
                    f"labels: expected tokens in 0..{size - 1}, or -100 where nothing is learnt, got"
                    f" {wrong[:5].tolist()}; build rows with this model's processor."
                )
        if loss_weights is not None:
            weights = read_float32("loss_weights", loss_weights)
            wrong = weights[~(weights >= 0) | weights.isinf()]
            if len(wrong):
                raise ValueError(
                    f"loss_weights: expected finite numbers from 0 on, got {wrong[:5].tolist()}; build rows with this"
                    " model's processor."
                )

    def compute_reconstruction_losses(
        self,
        outputs,
        view_mask,
        hidden_views,
        allowed,
        pixel_values,
        bev_pixel_values,
        bev_valid,
        bev_bounds,
        view_latents,
        bev_latents,
        row_seed,
        draws,
        runs_all,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """View and bird's-eye losses where they apply; with `runs_all` both, zeros with a graph where they do not."""
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        visible = self.get_visible_views(view_mask, self.get_unseen_views(hidden_views))
        last = self.config.denoiser_config.num_train_timesteps - 1
        for name, timesteps in (("view_timesteps", draws[0]), ("bev_timesteps", draws[3])):
            # Given from outside, which no step of train.py does.
            if timesteps is not None and not bool(((timesteps >= 0) & (timesteps <= last)).all()):
                raise ValueError(f"{name}: expected 0..{last}, got {timesteps.tolist()}; draw them from the schedule.")
        # Draws are made on the host: the seeds go there once.
        row_seed = None if row_seed is None else row_seed.cpu()
        scene_states = SceneStates(outputs.visual_states, visible, outputs.visual_positions)
        totals = {}
        if runs_all or (hidden_views is not None and bool(hidden_views.any())):
            totals["view_loss"] = self.compute_view_loss(
                scene_states, view_mask, hidden_views, pixel_values, view_latents, row_seed, *draws[:3]
            )
        if runs_all or bev_pixel_values is not None or bev_latents is not None:
            totals["bev_loss"] = self.compute_bev_loss(
                scene_states, bev_pixel_values, bev_valid, bev_bounds, allowed, bev_latents, row_seed, *draws[3:]
            )
        return totals

    def combine_losses(
        self, totals: dict[str, tuple[torch.Tensor, torch.Tensor]], num_items_in_batch: torch.Tensor | None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
        """Named means, their weighted sum, and the counts (4,) of this batch."""
        if not totals:
            return {}, None, None
        shape = getattr(num_items_in_batch, "shape", type(num_items_in_batch).__name__)
        got = shape if isinstance(shape, str) else tuple(shape)
        if num_items_in_batch is not None and shape[-1:] != (len(LOSS_NAMES),):
            raise ValueError(
                f"num_items_in_batch: expected {len(LOSS_NAMES)} counts {LOSS_NAMES}, got shape"
                f" {got}; a stock Trainer counts tokens: use train.py's Ross3DTrainer, or"
                " leave the model's accepts_loss_kwargs at False."
            )
        device = next(iter(totals.values()))[0].device
        counts = torch.stack(
            [totals[n][1].to(device).float() if n in totals else torch.zeros((), device=device) for n in LOSS_NAMES]
        )
        divisors = (
            counts if num_items_in_batch is None else num_items_in_batch.reshape(-1)[: len(LOSS_NAMES)].to(device)
        )
        losses, loss = {}, torch.zeros((), device=device)
        for name, divisor in zip(LOSS_NAMES, divisors, strict=True):
            if name in totals:
                losses[name] = totals[name][0].to(device) / divisor.clamp(min=1)
                loss = loss + getattr(self.config, f"{name}_weight") * losses[name]
        return losses, loss, counts

    def prepare_inputs_for_generation(
        self, input_ids, *args, inputs_embeds=None, is_first_iteration: bool = False, **kwargs
    ):
        model_inputs = super().prepare_inputs_for_generation(
            input_ids, *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        # What stop strings are read with comes along to here, and the model does not read it.
        for name in ("tokenizer", "assistant_tokenizer"):
            model_inputs.pop(name, None)
        if not is_first_iteration and model_inputs.get("use_cache", True):
            for key in SCENE_KEYS:
                model_inputs.pop(key, None)
        segments = model_inputs.get("segment_ids")
        if segments is not None and model_inputs.get("input_ids") is not None:
            missing = model_inputs["input_ids"].shape[1] - segments.shape[1]
            if missing > 0:
                model_inputs["segment_ids"] = F.pad(segments, (0, missing), value=1)
        return model_inputs

    def _supports_mm_encoder_outputs(self) -> bool:
        """Whether `generate` makes features of views before the first forward on its own: an assistant model would be
        handed them, which may be of another width."""
        return False

    def _prepare_multimodal_encoder_kwargs_for_generation(self, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The library's, which takes the pixels out; the model goes on to read which views were real."""
        pixel_values, view_mask = model_kwargs.get("pixel_values"), model_kwargs.get("view_mask")
        if view_mask is None and pixel_values is not None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        prepared = super()._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        return prepared if view_mask is None else prepared | {"view_mask": view_mask}

    def _expand_multimodal_outputs(
        self,
        input_ids: torch.Tensor | None,
        mm_encoder_output: dict[str, Ross3DImageFeatures],
        expand_size: int = 1,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict[str, Ross3DImageFeatures]:
        """Features of the views of every row, `expand_size` times in a row: what beams and several answers read.

        The library counts a view's features by its placeholders; here these hold the ends of its grid's rows as well.
        """
        images = mm_encoder_output.get("image")
        if images is None:
            return mm_encoder_output
        is_given = input_ids is not None and input_ids.numel() > 0
        placeholders = self.model.find_placeholders(input_ids if is_given else None, inputs_embeds)
        counts = (placeholders.sum(dim=1) // self.config.tokens_per_view).tolist()
        order = [rows.repeat(expand_size) for rows in torch.arange(sum(counts)).split(counts)]
        chosen = torch.cat(order)
        tensors = {name: value for name, value in images.items() if isinstance(value, torch.Tensor)}
        expanded = type(images)(**{name: value[chosen.to(value.device)] for name, value in tensors.items()})
        return mm_encoder_output | {"image": expanded}

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *,
        scene: Ross3DSceneCache | None = None,
        scene_index: torch.Tensor | None = None,
        **kwargs,
    ):
        """The library's `generate`, also over scenes that were read before.

        Args:
            scene (`Ross3DSceneCache`, *optional*): from `encode_scene`; then the inputs are questions alone, as
                `processor(text=questions)` returns them.
            scene_index (`torch.LongTensor` of shape `(number of questions,)`, *optional*): which of several scenes
                each question is about.
            kwargs: the processor's output and every argument of the library's `generate`. An answer that would pass
                the context limit ends there, with a warning.

        Returns:
            ids of prompt (or question) and answer, without `<image>` and `<coord>` in the answer.

        Raises:
            ValueError: for rows with several questions, questions without a scene, `use_cache=False` beside `scene`,
                a `scene_index` that is missing or wrong, or prompts that leave no room for an answer.
        """
        for key in NOT_FOR_GENERATION:
            kwargs.pop(key, None)
        # An assistant model is asked again about longer rows with the first row's segments.
        batch = {"input_ids": kwargs.get("input_ids", inputs)}
        batch = kwargs | batch | {"segment_ids": None} if scene is None else batch
        check_inputs(batch, h=self.config.view_grid_size)
        self.check_prompts("generate", batch["input_ids"], kwargs)
        if kwargs.get("mm_encoder_outputs") is not None:
            # Refuses pixels beside them.
            kwargs = self._prepare_multimodal_encoder_kwargs_for_generation(kwargs)
        processors = LogitsProcessorList(kwargs.get("logits_processor") or [])
        if not any(isinstance(processor, PlaceholderSuppression) for processor in processors):
            processors.append(PlaceholderSuppression([self.config.image_token_id, self.config.coord_token_id]))
        kwargs["logits_processor"] = processors
        # Stop strings are read by a tokenizer; a processor has one.
        if hasattr(kwargs.get("tokenizer"), "tokenizer"):
            kwargs["tokenizer"] = kwargs["tokenizer"].tokenizer
        segments = kwargs.get("segment_ids")
        check_inputs({"segment_ids": segments})
        if segments is not None and int(segments.max()) > 1:
            raise ValueError(
                f"generate: expected one question a row, got rows with up to {int(segments.max())}; encode the scene"
                " once with scene = model.encode_scene(**processor(images=...)) and ask model.generate(scene=scene,"
                " **processor(text=questions))."
            )
        if scene is None:
            prompts = {"input_ids": inputs} if inputs is not None else {}
            self.check_has_scene("generate", segments, kwargs | prompts, scene_index)
            self.check_left_padding(kwargs.get("attention_mask"))
            self.limit_answers(inputs, kwargs)
            return super().generate(inputs, **kwargs)
        self.check_questions_alone("generate", scene, kwargs)
        generation_config = kwargs.get("generation_config") or self.generation_config
        if kwargs.get("use_cache", generation_config.use_cache) is False:
            raise ValueError(
                "generate: expected use_cache=True beside scene=, whose views are nowhere but in the cache, got False;"
                " leave it out, or pass the views with each question."
            )
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None or not len(input_ids) or kwargs.get("past_key_values") is not None:
            raise ValueError(
                "generate: expected input_ids of at least one question beside scene=, and no cache of yours, got"
                f" {'a cache' if kwargs.get('past_key_values') is not None else input_ids}; pass"
                " **processor(text=questions)."
            )
        if kwargs.get("cache_implementation", generation_config.cache_implementation) is not None:
            raise ValueError(
                "generate: expected no cache_implementation beside scene=, which is a cache already, got"
                f" {kwargs.get('cache_implementation', generation_config.cache_implementation)!r}; leave it out, or"
                " pass the views with each question."
            )
        # They only say that each row is a question, which an assistant model, seeing no scene, would refuse.
        kwargs.pop("segment_ids", None)
        guesses = [name for name in ("prompt_lookup_num_tokens", "assistant_model") if kwargs.get(name) is not None]
        if guesses and not shares_prefixes(self.config.text_config):
            raise ValueError(
                f"generate: expected no {guesses[0]} beside scene= with this attn_implementation, whose caches are cut"
                " back over the scene; load the model with attn_implementation='sdpa'."
            )
        question_mask = kwargs.pop("attention_mask", None)
        self.check_left_padding(question_mask)
        question_mask = torch.ones_like(input_ids) if question_mask is None else question_mask
        scene_index = self.check_scene_index(scene, scene_index, len(input_ids))
        copies = max(
            kwargs.get("num_beams") or getattr(generation_config, "num_beams", 1) or 1,
            kwargs.get("num_return_sequences") or getattr(generation_config, "num_return_sequences", 1) or 1,
        )
        cache, attention_mask = self.get_questions_cache(scene, scene_index, question_mask, copies)
        kwargs |= {"attention_mask": attention_mask, "past_key_values": cache}
        self.limit_answers(input_ids, kwargs)
        return super().generate(input_ids, **kwargs)

    def limit_answers(self, inputs: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
        """Have answers end at the context limit: change, in place, how many new tokens `generate` is asked for.

        Raises:
            ValueError: for prompts that leave no room for an answer.
        """
        prompts = next((given for given in (inputs, kwargs.get("input_ids")) if given is not None), None)
        embeds, mask, cache = (kwargs.get(name) for name in ("inputs_embeds", "attention_mask", "past_key_values"))
        widths = [given.shape[1] for given in (prompts, embeds) if given is not None]
        if not widths:
            return
        # A mask is longer than the prompt where a cache stands before it.
        length = max(widths) if mask is None else max(*widths, mask.shape[-1])
        if isinstance(cache, SharedPrefixCache):
            length += cache.longest_prefix
        limit = self.config.context_length
        if length >= limit:
            raise ValueError(
                f"generate: expected fewer than {limit} positions (max_position_embeddings), so that an answer has"
                f" room, got {length}; use fewer views ({self.config.tokens_per_view} positions each) or a shorter"
                " question."
            )
        given = [settings for settings in (kwargs.get("generation_config"), self.generation_config) if settings]

        def get_setting(name: str):
            if name in kwargs:
                return kwargs[name]
            values = [getattr(settings, name, None) for settings in given]
            return next((value for value in values if value is not None), None)

        for name in ("max_new_tokens", "max_length"):
            value = kwargs.get(name)
            # The library wants Python's own; others have whole numbers of their own.
            if isinstance(value, torch.Tensor) and value.numel() == 1:
                value = value.item()
            if isinstance(value, Integral) and not isinstance(value, bool):
                value = int(value)
            if value is not None:
                kwargs[name] = value
        wanted, total = get_setting("max_new_tokens"), get_setting("max_length")
        for name, value in (("max_new_tokens", wanted), ("max_length", total)):
            is_whole = isinstance(value, Integral) and not isinstance(value, bool)
            if value is not None and (not is_whole or value < 1):
                raise ValueError(f"generate: {name}: expected a whole number from 1 on, got {value!r}; correct it.")
        if wanted is None:
            wanted = DEFAULT_NEW_TOKENS if total is None else total - max(widths)
        if wanted <= limit - length:
            return
        warnings.warn(
            f"generate: {wanted} new tokens behind {length} positions pass the limit of {limit}"
            f" (max_position_embeddings): answers end after {limit - length} at the latest.",
            stacklevel=3,
        )
        kwargs.pop("max_length", None)
        kwargs["max_new_tokens"] = limit - length

    def get_questions_cache(
        self, scene: Ross3DSceneCache, scene_index: torch.Tensor, question_mask: torch.Tensor, copies: int = 1
    ) -> tuple[Cache, torch.Tensor]:
        """The cache of questions about encoded scenes, `copies` rows each, and the attention mask (B, L) that goes
        with it."""
        rows = scene_index.repeat_interleave(copies)
        # CODEPATH: shared for sdpa, the default; copied for the other implementations of the library.
        if shares_prefixes(self.config.text_config):
            return scene.share_prefixes(rows), question_mask
        prefix_mask = scene.prefix_mask[scene_index].to(question_mask)
        return scene.copy_prefixes(rows), torch.cat([prefix_mask, question_mask], dim=1)

    def check_prompts(self, name: str, input_ids: torch.Tensor | None, inputs: dict[str, Any]) -> None:
        """Refuse ids that are no tokens, and attention masks that do not fit them."""
        mask, cache = inputs.get("attention_mask"), inputs.get("past_key_values")
        if input_ids is None:
            return
        size = self.config.text_config.vocab_size
        outside = (input_ids < 0) | (input_ids >= size)
        if bool(outside.any()):
            raise ValueError(
                f"{name}: expected input_ids in 0..{size - 1}, got {input_ids[outside][:5].tolist()}; build rows with"
                " this model's processor."
            )
        if cache is not None or inputs.get("inputs_embeds") is not None:
            return
        check_mask(mask, *input_ids.shape, 0)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            check_mask_values(mask)
        elif mask is not None and name != "generate":
            raise TypeError(
                f"attention_mask: expected a tensor of 0 and 1 of shape (B, L), got"
                f" {tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}; build rows with"
                " this model's processor."
            )

    def has_questions(self, input_ids: torch.Tensor, segment_ids: torch.Tensor | None) -> bool:
        """Whether rows go on behind their scene.

        Without `segment_ids` a question is told by the end of its turn: a scene's rows end inside of that turn.
        """
        if segment_ids is not None:
            return bool((segment_ids > 0).any())
        ends = self.generation_config.eos_token_id
        ends = self.config.text_config.eos_token_id if ends is None else ends
        if ends is None:
            return False
        ends = torch.as_tensor(ends, device=input_ids.device).flatten()
        behind = self.model.find_placeholders(input_ids, None).cumsum(dim=1)
        return bool((torch.isin(input_ids, ends) & (behind > 0)).any())

    def check_has_scene(self, name: str, segment_ids: torch.Tensor | None, inputs: dict, scene_index) -> None:
        """Refuse questions that the processor made for a scene read before, when no such scene is given."""
        asks_alone = segment_ids is not None and not bool((segment_ids == 0).any())
        has_views = inputs.get("pixel_values") is not None or inputs.get("mm_encoder_outputs")
        if (asks_alone or scene_index is not None) and not has_views:
            raise ValueError(
                f"{name}: expected scene= or views, since the processor made these questions without images, got"
                " neither; pass scene=model.encode_scene(...), or images= to the processor."
            )
        if not has_views and inputs.get("past_key_values") is None and inputs.get("input_ids") is not None:
            self.model.check_views_given(inputs["input_ids"])
        if scene_index is not None:
            raise ValueError(f"scene_index: expected None without scene=, got {scene_index}; row i is scene i.")

    def check_left_padding(self, attention_mask: torch.Tensor | None) -> None:
        if attention_mask is not None and attention_mask.dim() == 2 and not bool(attention_mask[:, -1].all()):
            raise ValueError(
                "attention_mask: expected rows padded on the left, since answers go on at their ends, got padding at"
                f" the end of row {int((attention_mask[:, -1] == 0).nonzero()[0])}; leave answers= out of the"
                " processor."
            )

    def check_questions_alone(self, name: str, scene: Any, inputs: dict) -> None:
        """Refuse what is no encoded scene, and views next to one."""
        # By its name: a process may hold this class several times, once for each checkpoint with its code.
        if type(scene).__name__ != Ross3DSceneCache.__name__:
            raise TypeError(
                f"scene: expected a scene from model.encode_scene(...), got a {type(scene).__name__}"
                f" {str(scene)[:80]!r}; read a saved one with model.load_scene(file)."
            )
        check_scene(scene, self)
        given = [key for key in ("pixel_values", "mm_encoder_outputs") if inputs.get(key) is not None]
        if given:
            raise ValueError(
                f"{name}: expected questions alone beside scene=, which holds the views already, got {given[0]};"
                " call the processor without images=, or leave scene= out."
            )
        segments = inputs.get("segment_ids")
        if segments is not None and bool((segments == 0).any()):
            raise ValueError(
                f"{name}: expected plain questions beside scene=, which holds the beginning of the chat, got whole"
                " prompts with chat marks; pass the question's own words to the processor, or leave scene= out."
            )

    def check_scene_index(self, scene: Ross3DSceneCache, scene_index, num_questions: int) -> torch.Tensor:
        num_scenes = len(scene.prefix_mask)
        if scene_index is None:
            if num_scenes != 1:
                raise ValueError(
                    f"scene_index: expected the scene (0..{num_scenes - 1}) of each of {num_questions} questions, got"
                    f" None while {num_scenes} scenes are cached; pass scene_index=[...]."
                )
            return torch.zeros(num_questions, dtype=torch.long, device=scene.prefix_mask.device)
        # None of its own: a float would be cut off to the number of another scene.
        try:
            index = torch.as_tensor(scene_index, device=scene.prefix_mask.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"scene_index: expected {num_questions} whole numbers in 0..{num_scenes - 1}, got {scene_index!r};"
                " number the scenes in the order in which they were encoded."
            ) from error
        is_whole = not index.is_floating_point() and not index.is_complex() and index.dtype != torch.bool
        legal = is_whole and index.shape == (num_questions,) and bool(((index >= 0) & (index < num_scenes)).all())
        if not legal:
            raise ValueError(
                f"scene_index: expected {num_questions} whole numbers in 0..{num_scenes - 1}, got {index.tolist()};"
                " pass one scene for each question."
            )
        return index.long()

    @torch.no_grad()
    def encode_scene(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        proposal_boxes: torch.FloatTensor | None = None,
        proposal_mask: torch.BoolTensor | None = None,
        proposal_patches: torch.BoolTensor | None = None,
        keep_patch_features: bool = False,
        **inputs,
    ) -> Ross3DSceneCache:
        """Read scenes once; ask about them with `generate(scene=...)` and `ground(scene=...)`.

        Args:
            input_ids and the rest: `processor(images=..., depth_maps=..., ...)` without text, padded on the left.
            keep_patch_features (`bool`): keep the projected patches, so that other boxes can be grounded later.

        Raises:
            ValueError: when the rows hold questions.
        """
        check_input_names("encode_scene", inputs, unused=("bool_masked_views", "query_coords"))
        proposals = {
            "proposal_boxes": proposal_boxes, "proposal_mask": proposal_mask, "proposal_patches": proposal_patches
        }  # fmt: skip
        batch = {"input_ids": input_ids, "segment_ids": segment_ids, **inputs, **proposals}
        check_inputs(batch, h=self.config.view_grid_size)
        self.check_prompts("encode_scene", input_ids, {"attention_mask": attention_mask})
        if inputs.get("pixel_values") is None:
            self.model.check_views_given(input_ids)
        if self.has_questions(input_ids, segment_ids):
            raise ValueError(
                "encode_scene: expected rows without questions, got text; call the processor without text= and ask"
                " with model.generate(scene=scene, **processor(text=questions))."
            )
        self.check_left_padding(attention_mask)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        scene_inputs = {
            key: inputs[key]
            for key in ("pixel_values", "view_mask", "patch_coords", "patch_valid")
            if inputs.get(key) is not None
        }
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            # All of the prefix is kept, whatever a layer's window: questions slide over it.
            past_key_values=DynamicCache(),
            use_cache=True,
            return_dict=True,
            **scene_inputs,
        )
        features, features_mask = None, None
        if proposal_boxes is not None:
            features, features_mask = self.get_proposal_features(
                outputs.patch_features, proposal_boxes, proposal_mask, proposal_patches
            )
        return Ross3DSceneCache(
            past_key_values=outputs.past_key_values,
            prefix_mask=mask.bool(),
            proposal_features=features,
            proposal_mask=features_mask,
            patch_features=outputs.patch_features if keep_patch_features else None,
            readers=frozenset({weakref.ref(self)}),
        )

    def load_scene(self, file: str | os.PathLike, processor: Any = None) -> Ross3DSceneCache:
        """Scenes that this model has read and `scene.save(file, model, processor)` wrote, also in another process.

        Args:
            file: where they were saved.
            processor (*optional*): the one that prepared them, whose settings are compared.

        Raises:
            FileNotFoundError, ValueError: see `Ross3DSceneCache.load`.
        """
        return Ross3DSceneCache.load(file, self, processor)

    @torch.no_grad()
    def ground(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        segment_ids: torch.LongTensor | None = None,
        *,
        scene: Ross3DSceneCache | None = None,
        scene_index: torch.Tensor | None = None,
        proposal_boxes: torch.FloatTensor | None = None,
        proposal_mask: torch.BoolTensor | None = None,
        proposal_patches: torch.BoolTensor | None = None,
        query_coords: torch.FloatTensor | None = None,
        **inputs,
    ) -> torch.Tensor:
        """Score every proposal for every question.

        Args:
            input_ids and the rest: the processor's output, with views or, given `scene`, questions alone. Questions
                that do not end in `<ground>` get one.
            scene (`Ross3DSceneCache`), scene_index: see `generate`.

        Returns:
            scores (sum of Q, K + 1): cosines in [-1, 1], -inf at padding, last column "no target".
        """
        check_input_names("ground", inputs, unused=("bool_masked_views",))
        if scene is not None:
            self.check_questions_alone("ground", scene, inputs)
        proposals = {
            "proposal_boxes": proposal_boxes, "proposal_mask": proposal_mask, "proposal_patches": proposal_patches
        }  # fmt: skip
        batch = {"input_ids": input_ids, "segment_ids": segment_ids, "query_coords": query_coords}
        # Proposals of cached scenes come one list a scene, not one a question.
        check_inputs(batch if scene is not None else batch | inputs | proposals, h=self.config.view_grid_size)
        self.check_prompts("ground", input_ids, {"attention_mask": attention_mask})
        if self.grounding_head is None:
            raise ValueError(
                "ground: expected a model with config.grounding=True, got False; load another checkpoint."
            )
        real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        given_segments = segment_ids
        if segment_ids is None:
            segment_ids = torch.ones_like(input_ids)
        if not bool((segment_ids > 0).any()):
            raise ValueError(
                "ground: expected at least one question, got scenes alone; pass text= to the processor, one expression"
                " for each object that is meant."
            )
        pad = self.config.text_config.pad_token_id or 0
        input_ids, segment_ids = append_ground_slots(input_ids, real, segment_ids, self.config.ground_token_id, pad)
        mask = (segment_ids >= 0).long()
        if scene is None:
            if proposal_boxes is None:
                raise ValueError(
                    "ground: expected proposal_boxes (B, K, 6), got None; pass proposal_boxes= to the"
                    " processor (K = 0 is legal)."
                )
            self.check_has_scene("ground", given_segments, inputs, scene_index)
            if inputs.get("pixel_values") is None:
                self.model.check_views_given(input_ids)
            scene_inputs = {
                key: inputs[key]
                for key in ("pixel_values", "view_mask", "patch_coords", "patch_valid")
                if inputs.get(key) is not None
            }
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=mask,
                segment_ids=segment_ids,
                query_coords=query_coords,
                return_dict=True,
                **scene_inputs,
            )
            features, features_mask = self.get_proposal_features(
                outputs.patch_features, proposal_boxes, proposal_mask, proposal_patches
            )
        else:
            index = self.check_scene_index(scene, scene_index, len(input_ids))
            features, features_mask = self.get_cached_proposals(scene, proposal_boxes, proposal_mask, proposal_patches)
            features, features_mask = features[index], features_mask[index]
            cache, attention_mask = self.get_questions_cache(scene, index, mask)
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)[:, -mask.shape[1] :]
            outputs = self.model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                segment_ids=segment_ids,
                position_ids=positions,
                past_key_values=cache,
                query_coords=query_coords,
                return_dict=True,
            )
        scores, asked = self.compute_grounding_scores(
            outputs.last_hidden_state, input_ids, segment_ids, features, features_mask
        )
        return scores[asked]

    def get_cached_proposals(self, scene, proposal_boxes, proposal_mask, proposal_patches):
        """Proposal features (B, K, D) and mask of cached scenes: those encoded with them, or of new boxes."""
        if proposal_boxes is None:
            if scene.proposal_features is None:
                raise ValueError(
                    "ground: expected a scene encoded with proposal_boxes, got one without; pass proposal_boxes= to"
                    " the processor before encode_scene, or encode with keep_patch_features=True and pass them here."
                )
            return scene.proposal_features, scene.proposal_mask
        if scene.patch_features is None:
            raise ValueError(
                "ground: expected a scene encoded with keep_patch_features=True, since new proposal_boxes are given,"
                " got none; encode it again with keep_patch_features=True."
            )
        return self.get_proposal_features(scene.patch_features, proposal_boxes, proposal_mask, proposal_patches)

    @torch.no_grad()
    def reconstruct(
        self,
        masked_views: list[int] | list[list[int]] | None = None,
        *,
        bool_masked_views: torch.BoolTensor | None = None,
        bev_bounds: torch.FloatTensor | None = None,
        num_inference_steps: int | str = 50,
        generator: torch.Generator | None = None,
        pixel_values: torch.FloatTensor,
        view_mask: torch.BoolTensor | None = None,
        **inputs,
    ) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
        """Hide views, then sample what the model believes they and the bird's-eye picture look like.

        Args:
            masked_views (list of `int`, or one such list a scene): views to hide; or `bool_masked_views` (B, V).
            bev_bounds (`torch.FloatTensor` of shape `(B, 4)`): edges of the bird's-eye picture, metres.
            num_inference_steps (`int` or `str`): sampler steps; a text such as "5,3" spaces sections of the schedule.
            generator (`torch.Generator`, *optional*): on CPU.
            pixel_values, view_mask and the rest: the processor's output, with or without text.

        Returns:
            per scene: views (n, 3, h, w) in [0, 1], or None when none was hidden; bird's-eye picture (3, h, w).

        Raises:
            TypeError, ValueError: for views that do not exist, edges in the wrong order, and numbers of steps that the
                schedule does not have, before anything is computed.
        """
        check_input_names("reconstruct", inputs)
        batch = {
            "pixel_values": pixel_values, "view_mask": view_mask, "bool_masked_views": bool_masked_views,
            "bev_bounds": bev_bounds,
        }  # fmt: skip
        check_inputs(inputs | batch, h=self.config.view_grid_size)
        if self.reconstruction_head is None:
            raise ValueError("reconstruct: expected a model with denoiser_config, got None; load another checkpoint.")
        self.get_teacher()
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        if bool_masked_views is None:
            bool_masked_views = self.get_masked_views([] if masked_views is None else masked_views, view_mask)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator: expected a torch.Generator, got {generator!r}; pass torch.Generator().manual_seed(5)."
            )
        # A wrong number of steps is refused before anything is computed.
        space_timesteps(self.config.denoiser_config.num_train_timesteps, num_inference_steps)
        unseen = self.get_unseen_views(bool_masked_views)
        if bev_bounds is not None:
            # Before the model runs, and whatever its denoiser reads of them.
            self.check_bev_bounds(bev_bounds)
        names = ("input_ids", "attention_mask", "segment_ids", "patch_coords", "patch_valid", "query_coords")
        outputs = self.model(
            pixel_values=pixel_values,
            view_mask=view_mask,
            bool_masked_views=unseen,
            return_dict=True,
            **{name: inputs[name] for name in names if inputs.get(name) is not None},
        )
        visible = self.get_visible_views(view_mask, unseen)
        scene_states = SceneStates(outputs.visual_states, visible, outputs.visual_positions)
        head = self.reconstruction_head
        counts = bool_masked_views.sum(dim=1).tolist()
        views: list[torch.Tensor | None] = [None] * len(counts)
        if any(counts):
            condition = self.get_view_conditions(scene_states, bool_masked_views)
            latents = head.sample(condition, "view", num_inference_steps, generator)
            pictures = self.decode_latents(latents)
            views = [part if len(part) else None for part in pictures.split(counts)]
        latents = head.sample(self.get_bev_conditions(scene_states, bev_bounds), "bev", num_inference_steps, generator)
        return views, list(self.decode_latents(latents))

    def get_masked_views(self, masked_views: Sequence, view_mask: torch.Tensor) -> torch.Tensor:
        """Numbers of views to hide, for every scene or a list for each -> (B, V) bool."""
        given = masked_views.tolist() if hasattr(masked_views, "tolist") else masked_views
        nested = [isinstance(part, list | tuple) for part in given] if isinstance(given, list | tuple) else [None]
        if len(set(nested)) > 1 or None in nested:
            raise TypeError(
                "masked_views: expected a list of views such as [3, 7], or such a list for each scene, got"
                f" {masked_views!r}; pass [] to hide none."
            )
        lists = given if any(nested) else [given] * len(view_mask)
        if len(lists) != len(view_mask):
            raise ValueError(
                f"masked_views: expected one list for each of {len(view_mask)} scenes, got {len(lists)}; pass [] for a"
                " scene that keeps all its views."
            )
        hidden = torch.zeros_like(view_mask)
        for row, numbers in enumerate(lists):
            for number in numbers:
                # True and 1.0 are equal to a view's number and mean something else.
                is_whole = isinstance(number, Integral) and not isinstance(number, bool)
                if not is_whole or not 0 <= number < view_mask.shape[1] or not view_mask[row, number]:
                    raise ValueError(
                        f"masked_views: expected views 0..{int(view_mask[row].sum()) - 1} of scene {row}, got"
                        f" {number!r}; name views that exist by whole numbers, or pass bool_masked_views."
                    )
                hidden[row, number] = True
        return hidden


Ross3DForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "Ross3DForConditionalGeneration",
    "Ross3DModel",
    "Ross3DOutput",
    "Ross3DPreTrainedModel",
    "Ross3DSceneCache",
]
