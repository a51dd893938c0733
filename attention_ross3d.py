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
"""Attention of many questions to one shared scene: in packed training rows, and from a cache that stores it once.

`SHARED_PREFIX_ATTENTION` is the name of an attention implementation that this file registers with the library; where
nothing is shared it equals the library's `sdpa`. Shapes: B rows, S scenes, H heads, G heads that share a key head, L
positions, P of them prefix, T of a question, C channels of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import create_causal_mask, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


SHARED_PREFIX_ATTENTION = "sdpa_shared_prefix"
# Attention scores (float32) in memory at once where no kernel returns attention with its log-sum-exp.
SCORES_AT_ONCE = 2**26


@dataclass
class PackedRows:
    """What may be seen in rows `[prefix | segment 1 | ... | segment Q | padding]`.

    Attributes:
        prefix_length (`int`): P: the first P positions are prefix in every row; their attention is causal.
        mask (`torch.BoolTensor` of shape `(B, 1, L - P, L)`): what each of the other positions sees. Its size grows
            with the questions' length times the row's length, not with the square of the row's length.
    """

    prefix_length: int
    mask: torch.Tensor


def count_segments(segment_ids: torch.Tensor) -> tuple[int, int]:
    """The largest number of segments in a row, and how many leading positions are prefix in every row.

    Copies from the device to the host once.
    """
    prefix_lengths = (segment_ids == 0).long().cumprod(dim=1).sum(dim=1)
    most, shortest = torch.stack([segment_ids.max(), prefix_lengths.min()]).tolist()
    return most, shortest


def get_packed_rows(segment_ids: torch.Tensor, prefix_length: int) -> PackedRows:
    """The layout of rows, from their `segment_ids` (B, L): 0 prefix, 1..Q segments, -1 padding.

    A position sees the prefix and its own segment, up to itself. The same rule applies to padding, so that no position
    has an empty mask. `prefix_length`: see `count_segments`.
    """
    length = segment_ids.shape[1]
    queries, keys = segment_ids[:, prefix_length:, None], segment_ids[:, None, :]
    place = torch.arange(length, device=segment_ids.device)
    before = place[None, :] <= place[prefix_length:, None]
    return PackedRows(prefix_length, (((keys == 0) | (keys == queries)) & before)[:, None])


def get_segment_visibility(segment_ids: torch.Tensor) -> Callable:
    """A mask function for the library: a token sees the prefix and its own segment. The library adds causality."""

    def is_visible(batch_idx, head_idx, q_idx, kv_idx):
        key_segment = segment_ids[batch_idx, kv_idx]
        return (key_segment == 0) | (key_segment == segment_ids[batch_idx, q_idx])

    return is_visible


def prepare_packed_rows(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    segment_ids: torch.Tensor,
    visible: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prefix_length: int,
) -> tuple[Any, dict[str, Any]]:
    """Attention mask and attention keyword arguments of packed rows: several questions after one scene.

    Args:
        config: of the language model.
        inputs_embeds (B, L, D), segment_ids (B, L), attention_mask (B, L): the rows.
        visible (B, L): `segment_ids`, -1 also where `attention_mask` hides a position.
        prefix_length (`int`): see `count_segments`.

    Raises:
        ValueError: for an attention implementation without segment masks.
    """
    implementation = config._attn_implementation
    # CODEPATH: shared for sdpa, the default; masks of the whole row for the other implementations of the library.
    if shares_prefixes(config):
        # Without a mask the library would make one; under this name it takes the mask as given.
        return {"full_attention": None}, {"packed_rows": get_packed_rows(visible, prefix_length)}
    if implementation is not None and "flash" in implementation:
        raise ValueError(
            "attn_implementation: expected 'sdpa', 'eager' or 'flex_attention' for rows with several questions, got"
            f" {implementation!r}, which does not support segment masks; set another on the text model, or pass one"
            " question per row."
        )
    mask = create_causal_mask(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=None,
        and_mask_function=get_segment_visibility(segment_ids),
    )
    return mask, {}


class SharedPrefixCache(DynamicCache):
    """Keys and values of questions whose scenes are stored once, regardless of the number of questions.

    To the library this is a cache of the questions alone: lengths, masks, appending, reordering and cropping refer to
    them. `SHARED_PREFIX_ATTENTION` adds the attention to the scene of each row.

    Args:
        prefixes: for each layer, keys and values of every scene, each (1, H / G, P, C).
        scene_index (`torch.LongTensor` of shape `(B,)`): the scene of each row.
        prefix_lengths (list of `int`): P of each scene.
        next_positions (`torch.LongTensor` of shape `(number of scenes,)`): the position that follows each scene.
    """

    def __init__(
        self,
        prefixes: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]],
        scene_index: torch.Tensor,
        prefix_lengths: Sequence[int],
        next_positions: torch.Tensor,
    ):
        super().__init__()
        self.prefixes = prefixes
        self.next_positions = next_positions.to(scene_index.device)
        # On the host, so that decoding steps do not wait for the device.
        self.longest_prefix = max(prefix_lengths)
        self.assign_rows(scene_index)

    def assign_rows(self, scene_index: torch.Tensor) -> None:
        """Set which scene each row asks about (B,)."""
        self.row_scenes = scene_index
        asked = scene_index.unique().tolist()
        everyone = len(asked) == 1
        # A slice where all rows ask about one scene, so that nothing is gathered.
        self.groups = [(s, slice(None) if everyone else (scene_index == s).nonzero()[:, 0]) for s in asked]

    def get_row_starts(self) -> torch.Tensor:
        """The position of each row's first token after its scene: (B, 1), which broadcasts to (B, L) and (3, B, L)."""
        return self.next_positions[self.row_scenes][:, None]

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.assign_rows(self.row_scenes.repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.assign_rows(self.row_scenes[indices.to(self.row_scenes.device)])


def attend_by_kernel(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Attention and its log-sum-exp from a fused kernel of torch, or None where there is none for these tensors."""
    if query.device.type == "cpu":
        bias = None if mask is None else torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return kernel(query, key, value, 0.0, is_causal, attn_mask=bias, scale=scale)
    is_half = query.dtype in (torch.float16, torch.bfloat16)
    if query.device.type == "cuda" and mask is None and is_half and has_flash_attention(query):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
        return kernel(query, key, value, 0.0, is_causal, scale=scale)[:2]
    if query.device.type == "cuda" and mask is None and (is_half or query.dtype == torch.float32):
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        out, log_sum = kernel(query, key, value, None, True, 0.0, is_causal, scale=scale)[:2]
        # The kernel pads its log-sum-exp to a multiple of its tiles.
        return out, log_sum[..., : query.shape[2]]
    return None


def has_flash_attention(query: torch.Tensor) -> bool:
    """Whether torch's dispatch would choose the flash kernel for this GPU and these heads."""
    channels = query.shape[-1]
    return torch.cuda.get_device_capability(query.device)[0] >= 8 and channels % 8 == 0 and channels <= 256


def attend_by_parts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without a kernel: scores in float32, computed for a limited number of queries at a time."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if is_causal:
        place = torch.arange(num_keys, device=query.device)
        mask = (place[None, :] <= place[:num_queries, None])[None, None]
    step = max(SCORES_AT_ONCE // (query.shape[0] * query.shape[1] * num_keys), 1)
    outs, log_sums = [], []
    for start in range(0, num_queries, step):
        part = query[:, :, start : start + step]
        scores = (part.float() @ key.float().transpose(2, 3)) * scale
        if mask is not None:
            rows = mask if mask.shape[2] == 1 else mask[:, :, start : start + step]
            scores = scores.masked_fill(~rows, -torch.inf)
        log_sum = scores.logsumexp(dim=-1)
        weights = torch.exp(scores - log_sum[..., None]).nan_to_num()
        outs.append((weights @ value.float()).to(query.dtype))
        log_sums.append(log_sum)
    return torch.cat(outs, dim=2), torch.cat(log_sums, dim=2)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and its log-sum-exp, the logarithm of the softmax denominator.

    The kernels give no gradient of the log-sum-exp: where one is needed, the slower implementation runs.

    Args:
        query (B, H, T, C), key and value (B, H, L, C); `mask` (B or 1, 1, T, L) bool, True = seen.

    Returns:
        (B, H, T, C) and (B, H, T) float32; a query that sees nothing gets 0 and -inf.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    differentiable = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    found = None if differentiable else attend_by_kernel(query, key, value, mask, is_causal, scale)
    out, log_sum = attend_by_parts(query, key, value, mask, is_causal, scale) if found is None else found
    if mask is not None:
        sees = mask.any(dim=-1)  # (B or 1, 1, T)
        out = out.masked_fill(~sees[..., None], 0)
        log_sum = log_sum.float().masked_fill(~sees, -torch.inf)
    return out, log_sum.float()


def merge_attention(
    first: torch.Tensor, first_log_sum: torch.Tensor, second: torch.Tensor, second_log_sum: torch.Tensor
) -> torch.Tensor:
    """Attention over the union of two key sets, from the attention over each and both log-sum-exps.

    Every query has to see at least one key of either set.
    """
    share = torch.sigmoid(first_log_sum - second_log_sum)[..., None]  # exp(a) / (exp(a) + exp(b))
    return (first * share + second * (1 - share)).to(first.dtype)


def attend_shared_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    cache: SharedPrefixCache,
    layer: int,
) -> torch.Tensor:
    """Attend the scene and the questions separately and merge the two by their log-sum-exps.

    For each scene, one call takes the queries of all its questions and of all heads that share a key head, so the
    scene's keys and values are neither copied nor read more than once.

    Args:
        query (B, H, T, C): of the new tokens; key and value (B, H / G, L, C): of the questions so far.
        mask (B, 1, T, L) bool: which question tokens are seen; None: causal.

    Returns:
        (B, H, T, C).
    """
    num_rows, num_heads, length, channels = query.shape
    groups = num_heads // key.shape[1]
    own, own_log_sum = attend(
        query, repeat_kv(key, groups), repeat_kv(value, groups), mask, mask is None and length > 1, scale
    )
    scene_out, scene_log_sum = torch.empty_like(own), torch.empty_like(own_log_sum)
    for scene, rows in cache.groups:
        rows = rows if isinstance(rows, slice) else rows.to(query.device)
        keys, values = cache.prefixes[layer][scene]
        asked = query[rows].unflatten(1, (-1, groups))  # (n, H / G, G, T, C)
        count = len(asked)
        asked = asked.transpose(0, 1).reshape(1, -1, count * groups * length, channels)
        out, log_sum = attend(asked, keys, values, scale=scale)
        out = out.view(-1, count, groups, length, channels).transpose(0, 1).flatten(1, 2)
        scene_out[rows] = out
        scene_log_sum[rows] = log_sum.view(-1, count, groups, length).transpose(0, 1).flatten(1, 2)
    return merge_attention(scene_out, scene_log_sum, own, own_log_sum)


def shared_prefix_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packed_rows: PackedRows | None = None,
    shared_prefix: SharedPrefixCache | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """An attention function for the library: (B, H, L, C) -> (B, L, H, C), without attention weights.

    Args:
        packed_rows: given for training rows with several questions; prefix and rest are attended separately.
        shared_prefix: given for questions about cached scenes; the cache whose update returned `key` and `value`.
    """
    if shared_prefix is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = attention_mask if attention_mask is None else attention_mask[..., : key.shape[2]]
        out = attend_shared_prefix(query, key, value, mask, scale, shared_prefix, module.layer_idx)
        return out.transpose(1, 2).contiguous(), None
    settings = {"dropout": dropout, "scaling": scaling, **kwargs}
    if packed_rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    end = packed_rows.prefix_length
    rest, _ = sdpa_attention_forward(module, query[:, :, end:], key, value, packed_rows.mask, **settings)
    if end == 0:
        return rest, None
    settings["is_causal"] = True
    prefix, _ = sdpa_attention_forward(module, query[:, :, :end], key[:, :, :end], value[:, :, :end], None, **settings)
    return torch.cat([prefix, rest], dim=1), None


def share_prefixes_of(config: PreTrainedConfig) -> None:
    """Replace `sdpa`, where the library chose it for a language model, by the same kernels with shared prefixes.

    Models with sliding windows keep `sdpa`: their layers do not see a whole prefix.
    """
    is_sdpa = ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation) is sdpa_attention_forward
    # CODEPATH: Qwen2 of published checkpoints has full attention alone; long-context variants slide.
    if is_sdpa and "sliding_attention" not in config.layer_types:
        config._attn_implementation = SHARED_PREFIX_ATTENTION


def shares_prefixes(config: PreTrainedConfig) -> bool:
    """Whether a language model's attention supports shared prefixes; `eager` and others of the library do not."""
    return getattr(ALL_ATTENTION_FUNCTIONS.get(config._attn_implementation), "shares_prefixes", False)


# A mark, not the function itself: a process may have loaded this file several times, once for each checkpoint with its
# code, and the last one loaded owns the name.
shared_prefix_attention_forward.shares_prefixes = True
AttentionInterface.register(SHARED_PREFIX_ATTENTION, shared_prefix_attention_forward)
AttentionMaskInterface.register(SHARED_PREFIX_ATTENTION, sdpa_mask)

__all__ = [
    "SHARED_PREFIX_ATTENTION",
    "PackedRows",
    "SharedPrefixCache",
    "count_segments",
    "get_packed_rows",
    "prepare_packed_rows",
    "share_prefixes_of",
    "shares_prefixes",
]
