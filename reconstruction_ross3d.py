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

"""The reconstruction head: pictures hidden from the model, rebuilt in a frozen VAE's latent space.

One denoiser, two branches: hidden views (cross-view) and the bird's-eye picture (global-view).

Shapes: B scenes, V views, N tokens of a view, D width of the language model, C width of the denoiser, n pictures to
rebuild, M tokens of such a picture (grid g x g), Z channels of a folded latent token, S visible tokens of a scene.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import maybe_autocast

from .configuration_ross3d import Ross3DDenoiserConfig
from .diffusion_ross3d import (
    add_noise,
    get_alphas_cumprod,
    get_cosine_betas,
    get_target,
    sample_latents,
    space_timesteps,
)


# The release normalises the states with torch's default and its blocks with 1e-6.
CONDITION_NORM_EPS = 1e-5
BLOCK_NORM_EPS = 1e-6


@dataclass
class SceneStates:
    """What the language model made of the views of B scenes.

    Attributes:
        states (`torch.Tensor` of shape `(B, V, N, D)`): output states at the visual tokens, newlines left out.
        visible (`torch.BoolTensor` of shape `(B, V)`): real views that were not hidden.
        positions (`torch.Tensor` of shape `(B, V, N, D)`, *optional*): 3D position embedding of each token, zero
            where it has none.
    """

    states: torch.Tensor
    visible: torch.Tensor
    positions: torch.Tensor | None = None


def fold_latents(latents: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(n, z, g*p, g*p) -> (n, z*p*p, g, g); channel order (z, row in patch, column in patch)."""
    return F.pixel_unshuffle(latents, patch_size)


def unfold_latents(tokens: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of `fold_latents`."""
    return F.pixel_shuffle(tokens, patch_size)


def prepare_view_pictures(
    pixel_values: torch.Tensor, image_mean: torch.Tensor, image_std: torch.Tensor, size: int
) -> torch.Tensor:
    """Undo the normalisation of views (n, 3, H, W) and resize them for the teacher: (n, 3, size, size) in [-1, 1]."""
    pictures = pixel_values * image_std.view(1, 3, 1, 1) + image_mean.view(1, 3, 1, 1)
    pictures = (2 * pictures - 1).clamp(-1, 1)
    return resize_bilinear(pictures, size)


def resize_bilinear(pictures: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear, no antialias, corners not aligned; contiguous, since convolutions on CPU differ on strided input."""
    if pictures.shape[-2:] != (size, size):
        pictures = F.interpolate(pictures, size=(size, size), mode="bilinear", align_corners=False)
    return pictures.contiguous()


def get_bev_cells(
    bev_pixel_values: torch.Tensor | None, bev_valid: torch.Tensor | None, grid_size: int, rule: str
) -> torch.Tensor:
    """Which cells of the bird's-eye picture the loss counts.

    Args:
        bev_pixel_values (B, 3, H, W): in [0, 1]; needed by the rule `"rgb_positive"`.
        bev_valid (B, H, W) bool: pixels that a reading fell on; needed by the rule `"valid"`.
        grid_size (`int`): cells along a side.
        rule (`str`): `"rgb_positive"` (published): colour above zero after a bilinear resize; `"valid"`: at least
            half of the cell's pixels are valid.

    Returns:
        (B, grid, grid) bool.
    """
    if rule == "rgb_positive":
        if bev_pixel_values is None:
            raise ValueError(
                "bev_pixel_values: expected the picture itself, since bev_loss_mask='rgb_positive' counts its coloured"
                " cells, got None; pass it beside bev_latents or choose bev_loss_mask='valid'."
            )
        return resize_bilinear(bev_pixel_values.float(), grid_size).mean(dim=1) > 0
    if bev_valid is None:
        raise ValueError(
            "bev_valid: expected a mask (B, H, W) of the pixels that were seen, since bev_loss_mask='valid' counts"
            " them, got None; pass bev_valid or choose bev_loss_mask='rgb_positive'."
        )
    return F.adaptive_avg_pool2d(bev_valid.float()[:, None], grid_size)[:, 0] >= 0.5


def draw_rows(row_seed: torch.Tensor | None, purpose: int, shapes: list[tuple[int, ...]], draw) -> list[torch.Tensor]:
    """One draw a row, from a generator of its own seeded by (row_seed, purpose), or from torch's global one.

    Draws are made on CPU, so they do not depend on device, batch composition or process count.
    """
    if row_seed is None:
        return [draw(shape, None) for shape in shapes]
    drawn = []
    for seed, shape in zip(row_seed.tolist(), shapes, strict=True):
        generator = torch.Generator().manual_seed((seed * 8 + purpose) % 2**63)
        drawn.append(draw(shape, generator))
    return drawn


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def get_timestep_draw(num_train_timesteps: int):
    """A draw of uniform timesteps in [0, T)."""

    def draw(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
        return torch.randint(num_train_timesteps, shape, generator=generator)

    return draw


def get_sincos_table(grid_size: int, width: int) -> torch.Tensor:
    """2D sinusoid of a grid (1, grid * grid, width): half the channels for the column, half for the row."""
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    angles = torch.arange(grid_size, dtype=torch.float64, device="cpu")[:, None] * omega
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns = axis[None].expand(grid_size, -1, -1)
    rows = axis[:, None].expand(-1, grid_size, -1)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid_size * grid_size, width).float()


class Ross3DTimestepEmbedding(nn.Module):
    """Sinusoid of the timestep (cosines first), then Linear, SiLU, Linear: (n,) -> (n, C)."""

    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.num_frequencies = config.frequency_embedding_size // 2
        self.linear_1 = nn.Linear(config.frequency_embedding_size, config.hidden_size)
        self.linear_2 = nn.Linear(config.hidden_size, config.hidden_size)

    def get_frequencies(self, timesteps: torch.Tensor) -> torch.Tensor:
        steps = torch.arange(self.num_frequencies, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * steps / self.num_frequencies)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        frequencies = self.get_frequencies(timesteps).to(next(self.linear_1.parameters()).dtype)
        return self.linear_2(F.silu(self.linear_1(frequencies)))


class Ross3DConditionPooler(nn.Module):
    """Learned queries attend the visible states of their own scene: (B, S, D) -> (B, M', C).

    Unless `pooled`, the 3D position embedding of the queries' own patches joins queries and output, that of the
    visible tokens joins the keys, so a query can find what was seen where it looks.
    """

    def __init__(self, config: Ross3DDenoiserConfig, state_size: int, num_queries: int):
        super().__init__()
        self.num_heads = config.num_pool_heads
        self.queries = nn.Parameter(torch.zeros(1, num_queries, config.hidden_size))
        self.state_proj = nn.Linear(state_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.has_positions = config.queries_have_positions
        if self.has_positions:
            self.query_position_proj = nn.Linear(state_size, config.hidden_size, bias=False)
            self.key_position_proj = nn.Linear(state_size, config.hidden_size, bias=False)

    def split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def add_positions(self, tensor: torch.Tensor, proj: nn.Linear, positions: torch.Tensor | None) -> torch.Tensor:
        """Without positions the layer runs all the same, on nothing: processes that have positions and processes that
        have none run the same modules in the same order, which sharded weights need."""
        if positions is None:
            positions = tensor.new_zeros(proj.in_features)
        return tensor + proj(positions)

    def forward(
        self,
        states: torch.Tensor,
        state_mask: torch.Tensor,
        state_positions: torch.Tensor | None = None,
        query_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Args:
            states (B, S, D): normalised states.
            state_mask (B, S) bool: which of them may be attended.
            state_positions (B, S, D), query_positions (B, m, M, D): 3D position embeddings, not read with `pooled`;
                m pictures of each scene are asked for.

        Returns:
            (B, m, M, C); m is 1 when the queries carry no positions.
        """
        hidden = self.state_proj(F.silu(states))
        keys, values = self.k_proj(hidden), self.v_proj(hidden)
        queries = self.queries[:, None].expand(states.shape[0], -1, -1, -1)
        if self.has_positions:
            queries = self.add_positions(queries, self.query_position_proj, query_positions)
            keys = self.add_positions(keys, self.key_position_proj, state_positions)
        num_pictures, num_queries = queries.shape[1:3]
        pooled = F.scaled_dot_product_attention(
            self.split_heads(queries.flatten(1, 2)),
            self.split_heads(keys),
            self.split_heads(values),
            attn_mask=state_mask[:, None, None],
        )
        condition = self.out_proj(pooled.transpose(1, 2).flatten(2)).unflatten(1, (num_pictures, num_queries))
        return condition + queries if self.has_positions else condition


class Ross3DZeroLinear(nn.Linear):
    """A linear layer that begins at zero: new weights of a class of their own, since the library draws them leaf by
    leaf and never asks a module that holds only others."""


class Ross3DDenoiserAttention(nn.Module):
    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # (n, M, 3C) -> 3 x (n, heads, M, C / heads)
        query, key, value = self.qkv_proj(hidden_states).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class Ross3DDenoiserMLP(nn.Module):
    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


def modulate(hidden_states: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Adaptive LayerNorm: non-affine norm over C, then scale and shift given for every token."""
    normed = F.layer_norm(hidden_states, hidden_states.shape[-1:], eps=BLOCK_NORM_EPS)
    return normed * (1 + scale) + shift


class Ross3DDenoiserBlock(GradientCheckpointingLayer):
    """Transformer block whose norms and residual gates are set, token by token, by the condition."""

    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.attention = Ross3DDenoiserAttention(config)
        self.mlp = Ross3DDenoiserMLP(config)
        self.modulation = Ross3DZeroLinear(config.hidden_size, 6 * config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(F.silu(condition)).chunk(6, dim=-1)
        hidden_states = hidden_states + gate_a * self.attention(modulate(hidden_states, shift_a, scale_a))
        return hidden_states + gate_m * self.mlp(modulate(hidden_states, shift_m, scale_m))


class Ross3DDenoiserFinalLayer(nn.Module):
    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.modulation = Ross3DZeroLinear(config.hidden_size, 2 * config.hidden_size)
        self.linear = Ross3DZeroLinear(config.hidden_size, config.token_channels)

    def forward(self, hidden_states: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.linear(modulate(hidden_states, shift, scale))


class Ross3DDenoiser(nn.Module):
    """The trunk both branches share: tokens (n, M, C), timesteps (n,), condition (n, M, C) -> (n, M, Z)."""

    def __init__(self, config: Ross3DDenoiserConfig):
        super().__init__()
        self.timestep_embedding = Ross3DTimestepEmbedding(config)
        self.blocks = nn.ModuleList([Ross3DDenoiserBlock(config) for _ in range(config.num_hidden_layers)])
        self.final_layer = Ross3DDenoiserFinalLayer(config)

    def forward(self, tokens: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        condition = condition + self.timestep_embedding(timesteps)[:, None]
        for block in self.blocks:
            tokens = block(tokens, condition)
        return self.final_layer(tokens, condition)


class Ross3DPictureEmbedding(nn.Module):
    """Noisy latent tokens (n, Z, g, g) -> (n, M, C) with a learned position table."""

    def __init__(self, config: Ross3DDenoiserConfig, grid_size: int):
        super().__init__()
        self.grid_size = grid_size
        self.initial_table = config.position_embedding
        self.proj = nn.Conv2d(config.token_channels, config.hidden_size, kernel_size=1)
        self.position_embedding = nn.Parameter(torch.zeros(1, grid_size**2, config.hidden_size))

    def forward(self, noisy_latents: torch.Tensor) -> torch.Tensor:
        return self.proj(noisy_latents).flatten(2).transpose(1, 2) + self.position_embedding


class Ross3DReconstructionHead(nn.Module):
    """Condition poolers, picture embeddings and the shared denoiser.

    `forward` predicts the noise (or v) of noisy latents; the losses and the sampler around it are methods. All work is
    done in the dtype of the head's weights (float32 as loaded), under autocast too.
    """

    def __init__(self, config: Ross3DDenoiserConfig, state_size: int, view_grid_size: int):
        super().__init__()
        self.config = config
        self.view_grid_size = view_grid_size
        self.view_pooler = Ross3DConditionPooler(config, state_size, view_grid_size**2)
        self.bev_pooler = Ross3DConditionPooler(config, state_size, config.bev_grid_size**2)
        self.view_embedding = Ross3DPictureEmbedding(config, view_grid_size)
        self.bev_embedding = Ross3DPictureEmbedding(config, config.bev_grid_size)
        self.denoiser = Ross3DDenoiser(config)

    @property
    def dtype(self) -> torch.dtype:
        # Not by the weight's name: that would gather it from all processes under ZeRO-3.
        return next(self.parameters()).dtype

    def get_grid_size(self, branch: str) -> int:
        return self.view_grid_size if branch == "view" else self.config.bev_grid_size

    def forward(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, condition: torch.Tensor, branch: str
    ) -> torch.Tensor:
        """Prediction (n, Z, g, g) for noisy latents (n, Z, g, g), timesteps (n,) and condition (n, M, C).

        `branch` is `"view"` or `"bev"`.
        """
        embedding = self.view_embedding if branch == "view" else self.bev_embedding
        with maybe_autocast(noisy_latents.device.type, enabled=False):
            tokens = self.denoiser(embedding(noisy_latents.to(self.dtype)), timesteps, condition.to(self.dtype))
        return tokens.transpose(1, 2).unflatten(2, noisy_latents.shape[-2:])

    def normalize_states(self, states: torch.Tensor) -> torch.Tensor:
        """Non-affine LayerNorm over D, in the head's own dtype."""
        return F.layer_norm(states.to(self.dtype), states.shape[-1:], eps=CONDITION_NORM_EPS)

    def get_condition(
        self, scene_states: SceneStates, branch: str, query_positions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Pool the visible states of each scene.

        Args:
            scene_states (`SceneStates`): of B scenes.
            branch (`str`): `"view"` or `"bev"`.
            query_positions (B, m, M, D): 3D position embedding of the patches to rebuild; not read with `pooled`.

        Returns:
            (B, m, M, C); with `pooled` m is 1: all pictures of a scene share one condition.
        """
        states = self.normalize_states(scene_states.states).flatten(1, 2)  # (B, S, D)
        # CODEPATH: "positions" is the control of "per_view", in no published checkpoint.
        if self.config.condition == "positions":
            states = torch.zeros_like(states)
        num_tokens = scene_states.states.shape[2]
        mask = scene_states.visible[:, :, None].expand(-1, -1, num_tokens).flatten(1)
        # What is padding alone attends padding, so that nothing is NaN.
        mask = mask | ~mask.any(dim=1, keepdim=True)
        positions = None
        if scene_states.positions is not None:
            positions = scene_states.positions.to(self.dtype).flatten(1, 2)
        pooler = self.view_pooler if branch == "view" else self.bev_pooler
        if query_positions is not None:
            query_positions = query_positions.to(self.dtype)
        with maybe_autocast(states.device.type, enabled=False):
            return pooler(states, mask, positions, query_positions).to(states.device)

    def get_targets(self, latents: torch.Tensor, branch: str) -> torch.Tensor:
        """Teacher latents (n, z, a, b) -> scaled, resized to the grid and folded (n, Z, g, g)."""
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        size = self.get_grid_size(branch) * self.config.latent_patch_size
        return fold_latents(resize_bilinear(latents.float(), size), self.config.latent_patch_size).to(self.dtype)

    def compute_errors(
        self,
        targets: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        condition: torch.Tensor,
        branch: str,
    ) -> torch.Tensor:
        """Squared errors (n, Z, g, g) of the denoiser at the given timesteps, best on CPU as drawn, and noise."""
        schedule = get_alphas_cumprod(get_cosine_betas(self.config.num_train_timesteps))
        noisy_latents = add_noise(targets, noise, timesteps, schedule)
        prediction = self(noisy_latents, timesteps.to(targets.device), condition, branch).to(targets.device)
        wanted = get_target(targets, noise, timesteps, schedule, self.config.prediction_type)
        return (wanted - prediction).square()

    def sample(
        self,
        condition: torch.Tensor,
        branch: str,
        num_inference_steps: int | str,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> torch.Tensor:
        """Sample teacher latents (n, z, g*p, g*p), unfolded and unscaled, for conditions (n, M, C)."""
        grid = self.get_grid_size(branch)
        shape = (condition.shape[0], self.config.token_channels, grid, grid)

        def draw(index: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(condition)

        published = self.config.sampler == "published"
        tokens = sample_latents(
            lambda sample, timesteps: self(sample, timesteps, condition, branch).to(sample.device),
            draw(len(space_timesteps(self.config.num_train_timesteps, num_inference_steps))),
            draw,
            num_train_timesteps=self.config.num_train_timesteps,
            num_inference_steps=num_inference_steps,
            prediction_type=self.config.prediction_type,
            clip=published,
            large_variance=published,
            temperature=temperature,
        )
        latents = unfold_latents(tokens, self.config.latent_patch_size)
        return latents / self.config.scaling_factor + self.config.shift_factor


def init_reconstruction_weights(module: nn.Module, std: float) -> None:
    """New weights of one module of the head: zero modulation and output, sin-cos tables, the rest drawn with `std`.

    The release builds the same modules but never calls its initialiser (docs/DEVIATIONS.md).
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        init.normal_(module.weight, mean=0.0, std=0.0 if isinstance(module, Ross3DZeroLinear) else std)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, Ross3DConditionPooler):
        init.normal_(module.queries, mean=0.0, std=std)
    elif isinstance(module, Ross3DPictureEmbedding):
        table = torch.zeros_like(module.position_embedding, device="cpu")
        if module.initial_table == "sincos":
            table = get_sincos_table(module.grid_size, table.shape[-1])
        init.copy_(module.position_embedding, table)


__all__ = [
    "Ross3DReconstructionHead",
    "SceneStates",
    "draw_normal",
    "draw_rows",
    "fold_latents",
    "get_bev_cells",
    "get_timestep_draw",
    "init_reconstruction_weights",
    "prepare_view_pictures",
    "resize_bilinear",
    "unfold_latents",
]
