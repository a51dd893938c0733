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
"""VGGT: features, cameras, depth and points of the views of a scene, from RGB alone (arXiv 2503.11651).

Names of modules and tensors are those of the published checkpoints, except those of the patch embedder, which is the
library's DINOv2 with registers (`convert_published_weights`). The blocks, the camera head and the dense heads follow
the paper and the published interface; no published code is used.

Shapes: B scenes, V views of a scene, N views of all scenes, H x W pixels, p x q patches, P tokens of a view
(1 camera + R registers + p q patches), C width.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, load_state_dict
from transformers.utils import cached_file
from transformers.utils.generic import maybe_autocast

from .configuration_ross3d import Ross3DVGGTConfig


# Normalisation of pictures in [0, 1], that of ImageNet.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Blocks within views read this many views at a time and dense heads so many pixels, at least one view: this bounds
# memory.
VIEWS_AT_ONCE, PIXELS_AT_ONCE = 16, 2**18
# Epsilons of the LayerNorms: of the patch embedder and of adaptive norms, and of all others.
PATCH_EPS, BLOCK_EPS = 1e-6, 1e-5
LAYER_SCALE = 0.01
# Numbers of a camera: translation (3), quaternion x, y, z, w (4), vertical and horizontal field of view (2).
CAMERA_SIZE, NUM_FIELDS_OF_VIEW = 9, 2
# Share and base of the sinusoid that the dense heads add to their maps.
GRID_SHARE, GRID_BASE = 0.1, 100.0


@dataclass
class Ross3DVGGTOutput(ModelOutput):
    """Outputs of `Ross3DVGGT`; zeros where `view_mask` is False.

    Attributes:
        features (B, V, P, 2 C) for each layer asked for, in that order: [within the view | across views]; the tokens
            are camera, registers, and patches row by row.
        camera_encodings (iterations of (B, V, 9)): translation and quaternion (x, y, z, w) from the world, which is
            the first view's camera, to the camera, and vertical and horizontal field of view in radians. The unit is
            arbitrary.
        world2cam (B, V, 4, 4), intrinsics (B, V, 3, 3): the last of these as matrices; OpenCV axes, pixels.
        depth_maps, depth_confidence (B, V, H, W): along the camera's z axis, in the unit of the translations.
        world_coords (B, V, H, W, 3), world_confidence (B, V, H, W): points in the first view's camera.
    """

    features: tuple[torch.Tensor, ...] | None = None
    camera_encodings: tuple[torch.Tensor, ...] | None = None
    world2cam: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    depth_maps: torch.Tensor | None = None
    depth_confidence: torch.Tensor | None = None
    world_coords: torch.Tensor | None = None
    world_confidence: torch.Tensor | None = None


# Blocks


def get_rotary_table(rows: int, columns: int, num_special: int, width: int, theta: float) -> tuple[torch.Tensor, ...]:
    """Cosines and sines (P, width) of the 2D rotary position embedding, float32 in every precision of the model.

    The first half of a head's channels turns with the row, the second with the column. Patches count from 1;
    the `num_special` tokens before them are at (0, 0).
    """
    frequencies = theta ** -(torch.arange(width // 4, dtype=torch.float32, device="cpu") / (width // 4))
    grid = torch.cartesian_prod(*(torch.arange(1, size + 1, dtype=torch.float32) for size in (rows, columns)))
    places = torch.cat([torch.zeros(num_special, 2), grid])
    angles = (places[:, :, None] * frequencies).repeat(1, 1, 2).flatten(1)
    return angles.cos(), angles.sin()


def rotate(tensor: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply the rotary embedding (L, c) to (n, heads, L, c), in float32."""
    cosines, sines = table
    low, high = tensor.float().unflatten(-1, (2, 2, -1)).unbind(-2)
    turned = torch.stack([-high, low], dim=-2).flatten(-3)
    return tensor.float() * cosines + turned * sines


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """Plain attention (n, heads, L, c) -> (n, L, heads, c), as the library's interface expects it."""
    weights = torch.softmax(query @ key.transpose(2, 3) * scaling, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Ross3DVGGTAttention(nn.Module):
    """Bidirectional self-attention; `normalize` adds LayerNorms of queries and keys, per head."""

    def __init__(self, config: Ross3DVGGTConfig, width: int, head_width: int, normalize: bool):
        super().__init__()
        self.config = config
        self.head_width, self.is_causal = head_width, False
        self.qkv = nn.Linear(width, 3 * width)
        if normalize:
            self.q_norm = nn.LayerNorm(head_width, eps=BLOCK_EPS)
            self.k_norm = nn.LayerNorm(head_width, eps=BLOCK_EPS)
        self.proj = nn.Linear(width, width)
        self.normalize = normalize

    def forward(self, tokens: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, -1, self.head_width)).permute(2, 0, 3, 1, 4)
        if self.normalize:
            query, key = self.q_norm(query), self.k_norm(key)
        if table is not None:
            query, key = rotate(query, table), rotate(key, table)
        # Norms and rotation are float32 under autocast; attention takes one dtype.
        query, key = query.to(value.dtype), key.to(value.dtype)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        scaling = query.shape[-1] ** -0.5
        attended, _ = attention(self, query, key, value, None, dropout=0.0, scaling=scaling)
        return self.proj(attended.flatten(2))


class Ross3DVGGTMLP(nn.Module):
    def __init__(self, width: int, hidden_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, out_width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


class Ross3DVGGTLayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens * self.gamma


class Ross3DVGGTBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block with LayerScale: (n, L, width), and the rotary table (L, c) if there is one."""

    def __init__(self, config: Ross3DVGGTConfig, width: int, head_width: int, normalize: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.attn = Ross3DVGGTAttention(config, width, head_width, normalize)
        self.ls1 = Ross3DVGGTLayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.mlp = Ross3DVGGTMLP(width, width * config.mlp_ratio, width)
        self.ls2 = Ross3DVGGTLayerScale(width)

    def forward(self, tokens: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor] | None = None) -> torch.Tensor:
        tokens = tokens + self.ls1(self.attn(self.norm1(tokens), table))
        return tokens + self.ls2(self.mlp(self.norm2(tokens)))


def map_views(function: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor) -> torch.Tensor:
    """`function` of (N, ...), a bounded number of views at a time."""
    parts = [function(part) for part in views.split(VIEWS_AT_ONCE)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def count_views(view_mask: torch.Tensor) -> list[int]:
    """Real views of each scene of a mask (B, V)."""
    return view_mask.sum(dim=1).tolist()


def list_slices(counts: Sequence[int]) -> Iterator[slice]:
    """The slice of each scene in the N views of all scenes."""
    start = 0
    for count in counts:
        yield slice(start, start + count)
        start += count


class Ross3DVGGTAggregator(nn.Module):
    """The trunk: patches of each view, then attention within views and across the views of a scene in turn."""

    def __init__(self, config: Ross3DVGGTConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        embedder = Dinov2WithRegistersConfig(
            hidden_size=width, num_hidden_layers=config.vision_num_hidden_layers,
            num_attention_heads=config.vision_num_attention_heads, mlp_ratio=config.mlp_ratio,
            layer_norm_eps=PATCH_EPS, image_size=config.image_size, patch_size=config.patch_size,
            num_register_tokens=config.num_register_tokens, initializer_range=config.initializer_range,
            attn_implementation=config._attn_implementation,
        )  # fmt: skip
        self.patch_embed = Dinov2WithRegistersModel(embedder)
        # Entry 0 for the first view of a scene, entry 1 for all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, width))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, width))
        shape = (config, width, width // config.num_attention_heads, True)
        self.frame_blocks = nn.ModuleList([Ross3DVGGTBlock(*shape) for _ in range(config.num_hidden_layers)])
        self.global_blocks = nn.ModuleList([Ross3DVGGTBlock(*shape) for _ in range(config.num_hidden_layers)])

    def embed_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (N, 3, H, W) in [0, 1] -> patch tokens (N, p q, C)."""
        # In float32: rounded to half precision, mean and deviation would shift and scale all pictures.
        mean, std = (
            torch.tensor(numbers, device=pixel_values.device)[:, None, None] for numbers in (IMAGE_MEAN, IMAGE_STD)
        )
        pictures = ((pixel_values.float() - mean) / std).to(self.patch_embed.dtype)
        tokens = self.patch_embed(pictures).last_hidden_state
        return tokens[:, 1 + self.config.num_register_tokens :]

    def get_special_tokens(self, counts: Sequence[int]) -> torch.Tensor:
        """Camera and register tokens (N, 1 + R, C) of scenes with `counts` views."""
        both = torch.cat([self.camera_token, self.register_token], dim=2)[0]
        kinds = [int(view > 0) for count in counts for view in range(count)]
        return both[torch.tensor(kinds, device=both.device)]

    def forward(
        self, pixel_values: torch.Tensor, counts: Sequence[int], layers: Iterable[int]
    ) -> dict[int, torch.Tensor]:
        """
        Args:
            pixel_values (N, 3, H, W): in [0, 1].
            counts (B numbers): views of each scene.
            layers: the pairs whose output is wanted; later pairs are not run.

        Returns:
            for each of them (N, P, 2 C): [output of the block within views | of the block across views].
        """
        rows, columns = (size // self.config.patch_size for size in pixel_values.shape[2:])
        special = self.get_special_tokens(counts)
        tokens = torch.cat([special, map_views(self.embed_patches, pixel_values).to(special.dtype)], dim=1)
        head_width = self.config.hidden_size // self.config.num_attention_heads
        table = get_rotary_table(rows, columns, special.shape[1], head_width, self.config.rope_theta)
        table = tuple(part.to(tokens.device) for part in table)
        wanted, outputs = set(layers), {}
        for layer in range(max(wanted) + 1):
            within = map_views(lambda part, block=self.frame_blocks[layer]: block(part, table), tokens)
            tokens = torch.cat(
                [self.attend_scene(self.global_blocks[layer], within[scene], table) for scene in list_slices(counts)]
            )
            if layer in wanted:
                outputs[layer] = torch.cat([within, tokens], dim=-1)
        return outputs

    def attend_scene(
        self, block: Ross3DVGGTBlock, tokens: torch.Tensor, table: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Run a block over all tokens of one scene together: (V, P, C)."""
        table = tuple(part.repeat(len(tokens), 1) for part in table)
        return block(tokens.flatten(0, 1)[None], table)[0].unflatten(0, tokens.shape[:2])


# Cameras


def activate_cameras(encodings: torch.Tensor) -> torch.Tensor:
    """Raw encodings (..., 9) with fields of view that are not negative."""
    place, fields = encodings.split([CAMERA_SIZE - NUM_FIELDS_OF_VIEW, NUM_FIELDS_OF_VIEW], dim=-1)
    return torch.cat([place, F.relu(fields)], dim=-1)


class Ross3DVGGTCameraHead(nn.Module):
    """Camera tokens of a scene -> encodings of its cameras, refined several times."""

    def __init__(self, config: Ross3DVGGTConfig):
        super().__init__()
        width = 2 * config.hidden_size
        self.num_iterations = config.camera_num_iterations
        blocks = [
            Ross3DVGGTBlock(config, width, width // config.camera_num_attention_heads, False)
            for _ in range(config.camera_num_hidden_layers)
        ]
        self.token_norm = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, CAMERA_SIZE))
        self.embed_pose = nn.Linear(CAMERA_SIZE, width)
        # Numbered as in the published checkpoints.
        self.poseLN_modulation = nn.ModuleList([nn.SiLU(), nn.Linear(width, 3 * width)])
        self.trunk = nn.ModuleList(blocks)
        self.trunk_norm = nn.LayerNorm(width, eps=BLOCK_EPS)
        self.pose_branch = Ross3DVGGTMLP(width, width // 2, CAMERA_SIZE)

    def forward(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        """Camera tokens (1, V, 2 C) of one scene -> the raw encodings (1, V, 9) of each iteration.

        An iteration corrects the encoding of the one before, without a gradient into it.
        """
        tokens = self.token_norm(tokens)
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=PATCH_EPS)
        encodings = []
        for _ in range(self.num_iterations):
            before = encodings[-1].detach() if encodings else self.empty_pose_tokens.expand(1, tokens.shape[1], -1)
            activation, modulation = self.poseLN_modulation
            shift, scale, gate = modulation(activation(self.embed_pose(before))).chunk(3, dim=-1)
            states = tokens + gate * (normed * (1 + scale) + shift)
            for block in self.trunk:
                states = block(states)
            change = self.pose_branch(self.trunk_norm(states))
            encodings.append(before + change if encodings else change)
        return encodings


def get_rotations(quaternions: torch.Tensor) -> torch.Tensor:
    """Quaternions (..., 4), x, y, z, w, of any length above 0 -> rotations (..., 3, 3)."""
    x, y, z, w = quaternions.unbind(-1)
    twice = 2.0 / quaternions.square().sum(-1)
    entries = [
        1 - twice * (y * y + z * z), twice * (x * y - z * w), twice * (x * z + y * w),
        twice * (x * y + z * w), 1 - twice * (x * x + z * z), twice * (y * z - x * w),
        twice * (x * z - y * w), twice * (y * z + x * w), 1 - twice * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(entries, dim=-1).unflatten(-1, (3, 3))


def get_quaternions(rotations: torch.Tensor) -> torch.Tensor:
    """Rotations (..., 3, 3) -> unit quaternions (..., 4), x, y, z, w, with w >= 0."""
    m = rotations
    trace = m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    # Four times the outer product of the quaternion with itself: its longest row is the most exact one.
    diagonal = torch.stack([1 + 2 * m[..., i, i] - trace for i in range(3)] + [1 + trace], dim=-1)
    products = torch.diag_embed(diagonal)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        products[..., i, j] = products[..., j, i] = m[..., i, j] + m[..., j, i]
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        products[..., i, 3] = products[..., 3, i] = m[..., k, j] - m[..., j, k]
    longest = diagonal.argmax(dim=-1)[..., None, None].expand(*diagonal.shape[:-1], 1, 4)
    quaternions = F.normalize(products.gather(-2, longest)[..., 0, :], dim=-1)
    return torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions)


def decode_cameras(encodings: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodings (..., 9) and the pictures' height and width -> world2cam (..., 4, 4) and intrinsics (..., 3, 3).

    The principal point is at half of the width and height, in pixels.
    """
    translations, quaternions, fields = encodings.float().split([3, 4, NUM_FIELDS_OF_VIEW], dim=-1)
    world2cam = torch.eye(4, device=encodings.device).repeat(*encodings.shape[:-1], 1, 1)
    world2cam[..., :3, :3], world2cam[..., :3, 3] = get_rotations(quaternions), translations
    height, width = size
    intrinsics = torch.zeros(*encodings.shape[:-1], 3, 3, device=encodings.device)
    intrinsics[..., 0, 0] = width / 2 / torch.tan(fields[..., 1] / 2)
    intrinsics[..., 1, 1] = height / 2 / torch.tan(fields[..., 0] / 2)
    intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 2, 2] = width / 2, height / 2, 1.0
    return world2cam, intrinsics


# Dense maps


def get_grid_sinusoid(rows: int, columns: int, num_channels: int, aspect: float) -> torch.Tensor:
    """Sinusoid (channels, rows, columns) of the cell centres of a picture with `aspect` (width over height).

    Coordinates are relative to the centre, in units of half the diagonal: half of the channels are for x, half for y.
    """
    diagonal = math.sqrt(aspect**2 + 1)
    frequencies = GRID_BASE ** -(
        torch.arange(num_channels // 4, dtype=torch.float64, device="cpu") / (num_channels // 4)
    )
    axes = []
    for span, count in ((aspect / diagonal, columns), (1 / diagonal, rows)):
        edge = span * (count - 1) / count
        angles = torch.linspace(-edge, edge, count, dtype=torch.float64)[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    across = axes[0][None].expand(rows, -1, -1)
    down = axes[1][:, None].expand(-1, columns, -1)
    return torch.cat([across, down], dim=-1).permute(2, 0, 1).float()


def add_grid_sinusoid(maps: torch.Tensor, aspect: float) -> torch.Tensor:
    """Maps (N, channels, rows, columns) plus a share of the sinusoid of their grid."""
    num_channels, rows, columns = maps.shape[1:]
    table = get_grid_sinusoid(rows, columns, num_channels, aspect)
    return maps + GRID_SHARE * table.to(maps.device, maps.dtype)


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


class Ross3DVGGTResidualUnit(nn.Module):
    """Two convolutions with a residual; it starts after the first activation, as in the published model."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(num_channels, num_channels, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        maps = F.relu(maps)
        return maps + self.conv2(F.relu(self.conv1(maps)))


class Ross3DVGGTFusion(nn.Module):
    """Adds a finer map, if there is one, and resizes the sum."""

    def __init__(self, num_channels: int, has_finer_map: bool):
        super().__init__()
        self.out_conv = nn.Conv2d(num_channels, num_channels, kernel_size=1)
        if has_finer_map:
            self.resConfUnit1 = Ross3DVGGTResidualUnit(num_channels)
        self.resConfUnit2 = Ross3DVGGTResidualUnit(num_channels)

    def forward(self, maps: torch.Tensor, finer: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor:
        if finer is not None:
            maps = maps + self.resConfUnit1(finer)
        return self.out_conv(resize_maps(self.resConfUnit2(maps), size))


class Ross3DVGGTScratch(nn.Module):
    """The fusion of four maps, from coarse to fine, and the output layers."""

    def __init__(self, config: Ross3DVGGTConfig, num_outputs: int):
        super().__init__()
        width = config.fusion_hidden_size
        for number, size in enumerate(config.neck_hidden_sizes, 1):
            setattr(self, f"layer{number}_rn", nn.Conv2d(size, width, kernel_size=3, padding=1, bias=False))
            setattr(self, f"refinenet{number}", Ross3DVGGTFusion(width, has_finer_map=number < 4))
        self.output_conv1 = nn.Conv2d(width, width // 2, kernel_size=3, padding=1)
        middle = config.dense_hidden_size
        # Numbered as in the published checkpoints.
        self.output_conv2 = nn.ModuleList(
            [
                nn.Conv2d(width // 2, middle, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.Conv2d(middle, num_outputs, kernel_size=1),
            ]
        )

    def forward(self, maps: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        """Maps from fine to coarse -> (N, outputs, H, W), `size` being (H, W)."""
        maps = [getattr(self, f"layer{number}_rn")(part) for number, part in enumerate(maps, 1)]
        fused = self.refinenet4(maps[3], None, maps[2].shape[2:])
        fused = self.refinenet3(fused, maps[2], maps[1].shape[2:])
        fused = self.refinenet2(fused, maps[1], maps[0].shape[2:])
        fused = self.refinenet1(fused, maps[0], [2 * length for length in maps[0].shape[2:]])
        fused = resize_maps(self.output_conv1(fused), size)
        wide, activation, last = self.output_conv2
        return last(activation(wide(add_grid_sinusoid(fused, size[1] / size[0]))))


class Ross3DVGGTDenseHead(nn.Module):
    """Patch tokens of four layers -> maps at the pictures' size: `num_outputs` values, the last a raw confidence."""

    def __init__(self, config: Ross3DVGGTConfig, num_outputs: int):
        super().__init__()
        self.patch_size = config.patch_size
        sizes = config.neck_hidden_sizes
        self.norm = nn.LayerNorm(2 * config.hidden_size, eps=BLOCK_EPS)
        self.projects = nn.ModuleList([nn.Conv2d(2 * config.hidden_size, size, kernel_size=1) for size in sizes])
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(sizes[0], sizes[0], kernel_size=4, stride=4),
                nn.ConvTranspose2d(sizes[1], sizes[1], kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(sizes[3], sizes[3], kernel_size=3, stride=2, padding=1),
            ]
        )
        self.scratch = Ross3DVGGTScratch(config, num_outputs)

    def forward(self, tokens: Sequence[torch.Tensor], size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Four times (N, p q, 2 C) -> raw values (N, H, W, outputs - 1) and confidence (N, H, W), at least 1."""
        grid = tuple(length // self.patch_size for length in size)
        maps = []
        for layer, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            part = project(self.norm(layer).transpose(1, 2).unflatten(2, grid))
            maps.append(resize(add_grid_sinusoid(part, size[1] / size[0])))
        values = self.scratch(maps, size).permute(0, 2, 3, 1)
        return values[..., :-1], 1 + values[..., -1].exp()


# The model


class Ross3DVGGT(PreTrainedModel):
    r"""
    VGGT. Without heads it gives features alone.

    Args:
        config ([`Ross3DVGGTConfig`]): sizes, and which heads are built.
    """

    config_class = Ross3DVGGTConfig
    base_model_prefix = "vggt"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["Ross3DVGGTBlock"]
    # Heads that the config leaves out, and the published head for tracks, which nothing here reads.
    _keys_to_ignore_on_load_unexpected = [r"^(camera|depth|point|track)_head\."]

    def __init__(self, config: Ross3DVGGTConfig):
        super().__init__(config)
        self.aggregator = Ross3DVGGTAggregator(config)
        # CODEPATH: facebook/VGGT-1B has all heads; features need none, and small encoders may lack some.
        if "camera" in config.heads:
            self.camera_head = Ross3DVGGTCameraHead(config)
        # CODEPATH: see the camera head.
        if "depth" in config.heads:
            self.depth_head = Ross3DVGGTDenseHead(config, num_outputs=2)
        # CODEPATH: see the camera head.
        if "point" in config.heads:
            self.point_head = Ross3DVGGTDenseHead(config, num_outputs=4)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Ross3DVGGTLayerScale):
            init.constant_(module.gamma, LAYER_SCALE)
        elif isinstance(module, Ross3DVGGTAggregator):
            # Nearly zero, as the published initial values.
            init.normal_(module.camera_token, std=1e-6)
            init.normal_(module.register_token, std=1e-6)
        elif isinstance(module, Ross3DVGGTCameraHead):
            init.zeros_(module.empty_pose_tokens)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As in the library; published checkpoints (`facebook/VGGT-1B`) are read as well.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): a folder or Hub id of either kind, or a published file
                `model.safetensors` or `model.pt`, which is read without running code from it.
            kwargs: of the library. With `heads=()` only the trunk is built; a published checkpoint takes its other
                sizes from its weights, or a `config`.

        Raises:
            ValueError: for weights that lack a tensor of the model or have one of another shape.
        """
        path = pretrained_model_name_or_path
        published = None if path is None else find_published_file(path, kwargs)
        if published is not None:
            weights = read_published_file(published)
            kwargs.pop("subfolder", None)
            changes = {key: kwargs.pop(key) for key in ("heads",) if key in kwargs}
            kwargs["config"] = kwargs.get("config") or make_published_config(weights, str(published), **changes)
            path, kwargs["state_dict"] = None, convert_published_weights(weights)
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        wrong = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
        if wrong:
            raise ValueError(
                f"{published or path}: expected all tensors of a VGGT of this config, got {len(wrong)} that are"
                f" missing or have another shape, {wrong[:3]} first; check the file, or leave out heads that it lacks"
                " (heads=)."
            )
        return (model, info) if wants_info else model

    def check_pictures(self, pixel_values: torch.Tensor, view_mask: torch.Tensor | None) -> None:
        """Refuse pictures that cannot be cut into patches, and masks that do not fit them.

        Raises:
            ValueError: names the argument, what was expected, and the shape.
        """
        patch = self.config.patch_size
        shape = tuple(pixel_values.shape)
        if len(shape) != 5 or shape[2] != 3 or not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values: expected pictures (B, V, 3, H, W) in [0, 1] as floats, got {shape} of"
                f" {pixel_values.dtype}; divide uint8 pictures by 255."
            )
        if shape[3] % patch or shape[4] % patch or 0 in shape:
            raise ValueError(
                f"pixel_values: expected heights and widths that are multiples of patch_size {patch}, got {shape[3]} x"
                f" {shape[4]}; resize or crop the pictures."
            )
        if view_mask is not None and (view_mask.shape != shape[:2] or not bool(view_mask.any(dim=1).all())):
            raise ValueError(
                f"view_mask: expected {shape[:2]} truth values, at least one view in each scene, got"
                f" {tuple(view_mask.shape)} with {view_mask.sum(-1).tolist()} views; pass those of pixel_values."
            )

    def forward(
        self,
        pixel_values: torch.Tensor,
        view_mask: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[str] | None = None,
    ) -> Ross3DVGGTOutput:
        """
        Args:
            pixel_values (B, V, 3, H, W): in [0, 1]; H and W multiples of the patch size.
            view_mask (B, V) bool, *optional*: which views are real; the first real view of a scene is the reference.
            layers: the pairs whose features are returned; negative numbers count from the last.
            heads: the heads that run, all that were built by default.
        """
        self.check_pictures(pixel_values, view_mask)
        heads = self.config.heads if heads is None else heads
        depth = self.config.num_hidden_layers
        layers = [layer % depth for layer in (layers or ())]
        needed = {*layers, *((depth - 1,) if "camera" in heads else ())}
        needed |= set(self.config.dense_layers) if {"depth", "point"} & set(heads) else set()
        if view_mask is None:
            view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
        counts = count_views(view_mask)
        size = tuple(pixel_values.shape[3:])
        found = self.aggregator(pixel_values[view_mask], counts, needed or {depth - 1})

        def spread(values: torch.Tensor) -> torch.Tensor:
            """(N, ...) of the real views -> (B, V, ...)."""
            return values.new_zeros(*view_mask.shape, *values.shape[1:]).masked_scatter(
                view_mask.view(*view_mask.shape, *[1] * (values.dim() - 1)), values
            )

        output = Ross3DVGGTOutput(features=tuple(spread(found[layer]) for layer in layers) or None)
        # Heads compute in the precision of their weights: cameras and depth would lose most of it to bfloat16.
        with maybe_autocast(pixel_values.device.type, enabled=False):
            self.run_heads(output, found, heads, counts, size, spread)
        return output

    def run_heads(
        self,
        output: Ross3DVGGTOutput,
        found: dict[int, torch.Tensor],
        heads: Sequence[str],
        counts: Sequence[int],
        size: tuple[int, int],
        spread: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Add cameras, depth and points to `output`; `found` are features (N, P, 2 C) by layer, `spread` makes
        (B, V, ...) of (N, ...)."""
        if "camera" in heads:
            tokens = found[self.config.num_hidden_layers - 1][:, 0]
            by_scene = [self.camera_head(tokens[scene][None]) for scene in list_slices(counts)]
            encodings = [activate_cameras(torch.cat(parts, dim=1)[0]) for parts in zip(*by_scene, strict=True)]
            output.camera_encodings = tuple(spread(encoding) for encoding in encodings)
            output.world2cam, output.intrinsics = (spread(part) for part in decode_cameras(encodings[-1], size))
        start = 1 + self.config.num_register_tokens
        if "depth" in heads:
            raw, confidence = self.run_dense_head(self.depth_head, found, start, size)
            output.depth_maps, output.depth_confidence = spread(raw[..., 0].exp()), spread(confidence)
        if "point" in heads:
            raw, confidence = self.run_dense_head(self.point_head, found, start, size)
            output.world_coords = spread(raw.sign() * torch.expm1(raw.abs()))
            output.world_confidence = spread(confidence)

    def run_dense_head(
        self, head: Ross3DVGGTDenseHead, found: dict[int, torch.Tensor], start: int, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Raw values and confidences of all views, a bounded number of pixels at a time."""
        count = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        tokens = zip(*(found[layer][:, start:].split(count) for layer in self.config.dense_layers), strict=True)
        values, confidences = zip(*(head(part, size) for part in tokens), strict=True)
        return torch.cat(values), torch.cat(confidences)


# Published weights

PUBLISHED_FILES = ("model.safetensors", "model.pt")
# Sizes that published weights do not tell; facebook/VGGT-1B's.
VISION_HEAD_WIDTH, CAMERA_HEADS = 64, 16
EMBEDDER = "aggregator.patch_embed."
# Tensors from which the sizes of the trunk are read.
TOLD_BY = (
    "aggregator.camera_token", "aggregator.register_token", "aggregator.frame_blocks.0.attn.q_norm.weight",
    f"{EMBEDDER}pos_embed", f"{EMBEDDER}patch_embed.proj.weight",
)  # fmt: skip
PARTS = ("q_proj", "k_proj", "v_proj")
# The published patch embedder's names, and the library's; `{part}` is one of PARTS, which are published as one tensor.
EMBEDDER_NAMES = (
    (r"patch_embed.proj", r"embeddings.patch_embeddings.projection"),
    (r"cls_token", r"embeddings.cls_token"),
    (r"pos_embed", r"embeddings.position_embeddings"),
    (r"register_tokens", r"embeddings.register_tokens"),
    (r"mask_token", r"embeddings.mask_token"),
    (r"blocks.#.attn.qkv", r"encoder.layer.#.attention.{part}"),
    (r"blocks.#.attn.proj", r"encoder.layer.#.attention.o_proj"),
    (r"blocks.#.ls1.gamma", r"encoder.layer.#.layer_scale1.lambda1"),
    (r"blocks.#.ls2.gamma", r"encoder.layer.#.layer_scale2.lambda1"),
    (r"blocks.#.norm1", r"encoder.layer.#.norm1"),
    (r"blocks.#.norm2", r"encoder.layer.#.norm2"),
    (r"blocks.#.mlp", r"encoder.layer.#.mlp"),
    (r"norm", r"layernorm"),
)


def find_published_file(path: str | os.PathLike, kwargs: dict[str, Any]) -> Path | None:
    """The weights of a published checkpoint at a file, folder or Hub id; None for one of this library's.

    Raises:
        FileNotFoundError: there is nothing at a path.
        ValueError: for what is neither, such as the folder of another model.
    """
    if os.path.isfile(path):
        return Path(path)
    if not os.path.isdir(path) and (isinstance(path, Path) or str(path).count("/") != 1):
        raise FileNotFoundError(
            f"{path}: expected a folder or a file of a VGGT, or a Hub id such as facebook/VGGT-1B, found none; correct"
            " the path."
        )
    names = ("cache_dir", "revision", "subfolder", "token", "local_files_only")
    hub = {key: kwargs[key] for key in names if key in kwargs} | {"_raise_exceptions_for_missing_entries": False}
    config = cached_file(path, "config.json", **hub)
    kind = None if config is None else read_model_type(Path(config))
    if kind == Ross3DVGGTConfig.model_type:
        return None
    file = next((file for name in PUBLISHED_FILES if (file := cached_file(path, name, **hub)) is not None), None)
    if kind is not None or file is None:
        got = f"config.json of {kind!r}" if kind is not None else "neither"
        raise ValueError(
            f"{path}: expected a VGGT, config.json with model_type {Ross3DVGGTConfig.model_type!r}, or published"
            f" weights as {' or '.join(PUBLISHED_FILES)}, got {got}; name another folder, such as geometry_encoder/ of"
            " a checkpoint, or facebook/VGGT-1B."
        )
    return Path(file)


def read_model_type(file: Path) -> str | None:
    """The `model_type` of a config, or None.

    Raises:
        ValueError: names the file, if it is not a config.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: expected a config in JSON, got a damaged file ({error}); copy it again.") from error


def read_encoder_config(path: str | os.PathLike) -> Ross3DVGGTConfig:
    """The config of an encoder, without its weights; `path` as in `Ross3DVGGT.from_pretrained`.

    Raises:
        ValueError: names a file that does not hold a VGGT.
    """
    published = find_published_file(path, {})
    if published is None:
        return Ross3DVGGTConfig.from_pretrained(path)
    return make_published_config(read_published_file(published, "meta"), str(published))


def read_published_file(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a published file, without the head for tracks; on the device `"meta"` only their shapes.

    Raises:
        ValueError: names the file, if it does not hold a VGGT.
    """
    try:
        weights = load_state_dict(file, map_location=device)
    except PermissionError:
        raise
    # Damaged bytes can make an unpickler raise anything.
    except Exception as error:
        raise ValueError(
            f"{file}: expected the weights of a published VGGT (.safetensors or .pt), got a damaged or other file"
            f" ({' '.join(str(error).split())}); copy it again, or name another."
        ) from error
    weights = weights.get("model", weights) if isinstance(weights, dict) else {}
    absent = [name for name in TOLD_BY if name not in weights]
    if absent:
        raise ValueError(
            f"{file}: expected the weights of a published VGGT, with {absent[0]}, got"
            f" {sorted(map(str, weights))[:3]}; pass a checkpoint such as facebook/VGGT-1B, or the folder of one of"
            " this library's."
        )
    return {key: value for key, value in weights.items() if not key.startswith("track_head.")}


def count_layers(weights: dict[str, torch.Tensor], prefix: str) -> int:
    """How many numbered entries a list of modules has."""
    numbers = [int(key.removeprefix(prefix).split(".")[0]) for key in weights if key.startswith(prefix)]
    return max(numbers, default=-1) + 1


def make_published_config(weights: dict[str, torch.Tensor], name: str, heads: Sequence[str] | None = None):
    """The config of published weights, with `heads` or all that the weights hold."""
    table = weights[f"{EMBEDDER}pos_embed"]
    patch_size, width = weights[f"{EMBEDDER}patch_embed.proj.weight"].shape[-1], table.shape[-1]
    present = [
        head for head in ("camera", "depth", "point") if any(key.startswith(f"{head}_head.") for key in weights)
    ]
    absent = sorted(set(heads or ()) - set(present))
    if absent:
        raise ValueError(f"heads: expected those that {name} has, {present}, got {absent}; leave these out.")
    return Ross3DVGGTConfig(
        image_size=math.isqrt(table.shape[1] - 1) * patch_size,
        patch_size=patch_size,
        hidden_size=width,
        vision_num_hidden_layers=count_layers(weights, f"{EMBEDDER}blocks."),
        vision_num_attention_heads=max(width // VISION_HEAD_WIDTH, 1),
        num_hidden_layers=count_layers(weights, "aggregator.frame_blocks."),
        num_attention_heads=width // len(weights["aggregator.frame_blocks.0.attn.q_norm.weight"]),
        num_register_tokens=weights["aggregator.register_token"].shape[2],
        camera_num_hidden_layers=count_layers(weights, "camera_head.trunk.") or 4,
        camera_num_attention_heads=CAMERA_HEADS,
        heads=present if heads is None else list(heads),
    )


def rename_embedder(key: str, reverse: bool) -> str:
    """A name of the patch embedder's in the library's naming, with `{part}` for a joined tensor; or the way back."""
    for published, ours in EMBEDDER_NAMES:
        old, new = (ours, published) if reverse else (published, ours)
        pattern = re.escape(old).replace(r"\#", r"(\d+)").replace(r"\{part\}", "(?:" + "|".join(PARTS) + ")")
        found = re.fullmatch(pattern + r"((?:\.\w+)*)", key)
        if found:
            return new.replace("#", found[1]) + found[found.lastindex]
    raise ValueError(
        f"{key}: expected a tensor of the patch embedder of a published VGGT, such as blocks.0.norm1.weight, got"
        " another name; pass a checkpoint such as facebook/VGGT-1B."
    )


def convert_published_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of a published checkpoint under the names of `Ross3DVGGT`.

    Raises:
        ValueError: names a tensor of the patch embedder that no rule covers.
    """
    converted = {}
    for key, value in weights.items():
        if not key.startswith(EMBEDDER):
            converted[key] = value
            continue
        name = EMBEDDER + rename_embedder(key.removeprefix(EMBEDDER), reverse=False)
        parts = value.chunk(3) if "{part}" in name else (value,)
        converted |= {name.format(part=part): piece for part, piece in zip(PARTS, parts, strict=False)}
    return converted


def make_published_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back from `convert_published_weights`."""
    converted = {}
    for key, value in weights.items():
        if not key.startswith(EMBEDDER):
            converted[key] = value
        elif PARTS[0] in key:
            whole = torch.cat([weights[key.replace(PARTS[0], part)] for part in PARTS])
            converted[EMBEDDER + rename_embedder(key.removeprefix(EMBEDDER), reverse=True)] = whole
        elif not any(part in key for part in PARTS):
            converted[EMBEDDER + rename_embedder(key.removeprefix(EMBEDDER), reverse=True)] = value
    return converted


__all__ = [
    "Ross3DVGGT",
    "Ross3DVGGTOutput",
    "convert_published_weights",
    "decode_cameras",
    "find_published_file",
    "get_quaternions",
    "make_published_weights",
    "read_encoder_config",
]
