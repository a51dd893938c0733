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

"""The denoiser: a diffusion transformer over picture tokens, and the poolers that make its condition.

Shapes: B scenes, S visible tokens of a scene, D width of the language model, C width of the denoiser, m pictures of a
scene, n pictures, M tokens of a picture (grid g x g), Z channels of a folded latent token.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ross3d import Ross3DDenoiserConfig


BLOCK_NORM_EPS = 1e-6


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

    Unless `pooled`, the 3D position embedding of the target patches is added to queries and output, and that of the
    visible tokens to the keys, so a query can find what was seen at its 3D position.
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
        """Add the projected position embedding to a tensor.

        Without positions the layer runs on zeros: with sharded weights all processes have to run the same modules in
        the same order, and another process may have positions.
        """
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
                m pictures per scene are to be rebuilt.

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
    """A linear layer that is initialised to zero.

    It needs a class of its own because the library initialises weights module by module, leaves only.
    """


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
    """Transformer block whose norms and residual gates are modulated per token by the condition (adaLN)."""

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
    """The trunk that both branches share: tokens (n, M, C), timesteps (n,), condition (n, M, C) -> (n, M, Z)."""

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


def init_denoiser_weights(module: nn.Module, std: float) -> None:
    """Initialise one module of the head: zero modulation and output, sin-cos tables, the rest normal with `std`.

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
    "Ross3DConditionPooler",
    "Ross3DDenoiser",
    "Ross3DPictureEmbedding",
    "init_denoiser_weights",
]
