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

"""Backbones: how views become tokens, where the tokens are in a row, and how rows count their positions.

`llava_video` is the backbone of the published model: a SigLIP tower read before its post-norm, patches pooled to half
their grid, a newline after every row of the grid, positions counted along the row. Another backbone is a class with
the same methods in `BACKBONES`.

Shapes: R views, P = p*p vision patches, Dv width of the tower, D width of the language model, N = h*w tokens of a
view, B rows, L positions, V views of a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ross3d import Ross3DConfig
from .geometry_ross3d import MAX_COORDINATE
from .inputs_ross3d import check_numbers


@dataclass(frozen=True)
class TokenLayout:
    """Which positions of a view's run of placeholders hold which cell of its grid.

    Attributes:
        num_rows, num_columns (`int`): h and w.
        ends_rows (`bool`): whether one more position, the newline, closes every row of the grid.
    """

    num_rows: int
    num_columns: int
    ends_rows: bool

    @property
    def num_cells(self) -> int:
        """N: tokens of a view that hold a cell."""
        return self.num_rows * self.num_columns

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the axis letters of `inputs_ross3d.INPUTS` that this layout fixes."""
        return {"h": self.num_rows, "w": self.num_columns}

    @property
    def num_positions(self) -> int:
        """Placeholders of a view, newlines included."""
        return self.num_rows * (self.num_columns + self.ends_rows)

    def lay_out(self, tokens: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
        """Tokens of the cells (R, N, D) and the newline (D,) -> embeddings of placeholders (R, num_positions, D)."""
        if not self.ends_rows:
            return tokens
        rows = tokens.unflatten(1, (self.num_rows, self.num_columns))
        ends = newline.to(tokens).expand(rows.shape[0], self.num_rows, 1, -1)
        return torch.cat([rows, ends], dim=2).flatten(1, 2)

    def pick_cells(self, states: torch.Tensor) -> torch.Tensor:
        """States at the placeholders (R, num_positions, D) -> those of the cells (R, N, D)."""
        if not self.ends_rows:
            return states
        rows = states.unflatten(1, (self.num_rows, self.num_columns + 1))
        return rows[:, :, : self.num_columns].flatten(1, 2)


class ViewPlaces:
    """The positions of a batch's views in its rows.

    Args:
        view_mask (B, V) bool: real views.
        placeholders (B, L) bool: positions of visual tokens, in each row as many as its real views need.
    """

    def __init__(self, view_mask: torch.Tensor, placeholders: torch.Tensor):
        self.view_mask = view_mask
        self.placeholders = placeholders
        # Computed once: the host has to wait for the GPU to know where masks are True.
        self.real, self.slots = view_mask.nonzero(as_tuple=True), placeholders.nonzero(as_tuple=True)

    @property
    def num_views(self) -> int:
        """R: real views of all rows together."""
        return len(self.real[0])

    @property
    def is_full(self) -> bool:
        """Whether every view is real: then choosing and padding views copies no memory."""
        return self.num_views == self.view_mask.numel() > 0

    def choose(self, padded: torch.Tensor) -> torch.Tensor:
        """(B, V, ...) -> real views (R, ...)."""
        return padded.flatten(0, 1) if self.is_full else padded[self.real]

    def pad(self, flat: torch.Tensor) -> torch.Tensor:
        """Real views (R, ...) -> (B, V, ...), zero for padding, on the device of the mask.

        Under a device map parts of the model are on several devices, so the result goes to the device of the inputs.
        """
        if self.is_full:
            return flat.unflatten(0, self.view_mask.shape).to(self.view_mask.device)
        padded = flat.new_zeros(*self.view_mask.shape, *flat.shape[1:], device=self.view_mask.device)
        padded[self.real] = flat.to(self.view_mask.device)
        return padded

    def gather(self, hidden_states: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        """States (B, L, D) at the placeholders -> those of the cells (B, V, N, D)."""
        row, position = (index.to(hidden_states.device) for index in self.slots)
        # One index instead of two: on a CPU the backward pass is faster.
        states = hidden_states.flatten(0, 1).index_select(0, row * hidden_states.shape[1] + position)
        states = states.unflatten(0, (self.num_views, layout.num_positions))
        return self.pad(layout.pick_cells(states))


def find_views(
    batch: Mapping[str, torch.Tensor | None], placeholders: torch.Tensor, num_positions: int, image_token_id: int
) -> ViewPlaces:
    """Find the positions of a batch's views in its rows, and check that the placeholders fit the views.

    Before the tower runs, the host waits for the GPU once, to learn where masks are True, whether numbers are finite
    and whether rows fit their views (docs/CONVENTIONS.md).

    Args:
        batch: `pixel_values`, `patch_coords`, `patch_valid` and `view_mask`, where given.
        placeholders (B, L) bool: positions that hold visual tokens.
        num_positions (`int`): placeholders of a view.
        image_token_id (`int`): the placeholder, which the error names.

    Raises:
        ValueError: for NaN, infinities and coordinates that are not metres, and rows that do not fit their views.
    """
    pixel_values, coords, valid, view_mask = (
        batch.get(name) for name in ("pixel_values", "patch_coords", "patch_valid", "view_mask")
    )
    if view_mask is None and pixel_values is not None:
        view_mask = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
    elif view_mask is None:
        counts = placeholders.sum(dim=1) // num_positions
        num_views = int(counts.max()) if coords is None else coords.shape[1]
        view_mask = torch.arange(num_views, device=counts.device) < counts[:, None]
    wanted = view_mask.sum(dim=1) * num_positions
    found = placeholders.sum(dim=1).to(wanted.device)
    fits, tests = wanted.shape == found.shape, []
    if pixel_values is not None:
        # A sum is finite if all its numbers are, and takes one pass over the pictures.
        sums = pixel_values.sum(dim=(2, 3, 4), dtype=torch.float32).to(wanted.device)
        tests.append((sums.isfinite() | ~view_mask).all())
    if coords is not None:
        used = view_mask[..., None, None] if valid is None else valid & view_mask[..., None, None]
        tests.append(((coords.abs() <= MAX_COORDINATE) | ~used[..., None]).all().to(wanted.device))
    if fits and bool(torch.stack([(wanted == found).all(), *tests]).all()):
        return ViewPlaces(view_mask, placeholders)
    # One of the tests failed, or a sum of large numbers overflowed: find out which.
    if pixel_values is not None:
        check_numbers("pixel_values", pixel_values, view_mask[..., None, None, None])
    if coords is not None:
        check_numbers("patch_coords", coords, used[..., None], MAX_COORDINATE)
    if not fits or not torch.equal(wanted, found):
        raise ValueError(
            f"input_ids: expected {wanted.tolist()} image placeholders (id {image_token_id}) per row,"
            f" {num_positions} for each of {view_mask.sum(dim=1).tolist()} views, got {found.tolist()}; build rows"
            " with this model's processor."
        )
    return ViewPlaces(view_mask, placeholders)


@dataclass
class EncodedViews:
    """The output of a vision tower for R views.

    Attributes:
        patches (`torch.Tensor` of shape `(R, P, Dv)`): what the projector reads.
        last_hidden_state (`torch.Tensor` of shape `(R, P, Dv)`): what the library's tower returns.
        hidden_states, attentions: of the tower's layers, where they were asked for.
    """

    patches: torch.Tensor
    last_hidden_state: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LlavaVideoViews:
    """The published backbone.

    Attributes:
        layout (`TokenLayout`): of a view.
        counts_along_row (`bool`): whether a view's tokens are counted like words, as the library does by itself.
    """

    counts_along_row = True

    def __init__(self, config: Ross3DConfig):
        self.patch_grid_size = config.patch_grid_size
        self.layout = TokenLayout(config.view_grid_size, config.view_grid_size, ends_rows=True)

    def encode(
        self, tower: nn.Module, pixel_values: torch.Tensor, output_hidden_states: bool, output_attentions: bool
    ) -> EncodedViews:
        """Views (R, 3, S, S) -> patches before and after the tower's post-norm."""
        hidden_states, attentions = None, None
        if output_hidden_states or output_attentions:
            outputs = tower(
                pixel_values, output_hidden_states=True, output_attentions=output_attentions, return_dict=True
            )
            patches, attentions = outputs.hidden_states[-1], outputs.get("attentions")
            hidden_states = outputs.hidden_states if output_hidden_states else None
        else:
            patches = tower.encoder(inputs_embeds=tower.embeddings(pixel_values)).last_hidden_state
        return EncodedViews(patches, tower.post_layernorm(patches), hidden_states, attentions)

    def to_tokens(self, projected: torch.Tensor) -> torch.Tensor:
        """Projected patches (R, P, D) -> tokens of the cells (R, N, D): bilinear, corners not aligned."""
        size = (self.layout.num_rows, self.layout.num_columns)
        features = projected.transpose(1, 2).unflatten(2, (self.patch_grid_size, self.patch_grid_size))
        features = F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return features.flatten(2).transpose(1, 2)

    def get_positions(self, placeholders: torch.Tensor, segment_ids: torch.Tensor) -> torch.Tensor:
        """Position ids (B, L) of packed rows: the prefix counts from 0, every segment continues from its end.

        Args:
            placeholders (B, L) bool: which positions hold views. A backbone with positions on several axes, such as
                (3, B, L) of M-RoPE, needs them; here a view's tokens are counted like words.
            segment_ids (B, L): 0 prefix, 1..Q segments, -1 padding.
        """
        index = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
        starts = torch.ones_like(segment_ids, dtype=torch.bool)
        starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        rank = index - torch.where(starts, index, 0).cummax(dim=1).values
        prefix_length = (segment_ids == 0).sum(dim=1, keepdim=True)
        return rank + torch.where(segment_ids > 0, prefix_length, 0)


BACKBONES: dict[str, Callable[[Ross3DConfig], LlavaVideoViews]] = {"llava_video": LlavaVideoViews}


def get_views(config: Ross3DConfig) -> LlavaVideoViews:
    """The backbone that a config names.

    Raises:
        ValueError: for a name that is not a backbone.
    """
    if config.backbone not in BACKBONES:
        raise ValueError(
            f"backbone: expected one of {sorted(BACKBONES)}, got {config.backbone!r}; correct config.backbone."
        )
    return BACKBONES[config.backbone](config)


__all__ = ["BACKBONES", "EncodedViews", "LlavaVideoViews", "TokenLayout", "ViewPlaces", "find_views", "get_views"]
