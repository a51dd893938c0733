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
"""The tensors of a batch: which axes and numbers each has, checked once where a call enters the model.

The checks look at shapes and dtypes alone: reading values would make a GPU wait.
"""

from collections.abc import Mapping
from typing import Any

import torch


WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Metres and loss weights: float32, or its bits as int32; half precision is refused, with the reason, when it is read.
METRES = (*FLOATS, torch.int32)
TRUTH = (torch.bool,)
KINDS = {
    WHOLE: "torch.int64",
    FLOATS: "torch.float32 or another floating-point one",
    METRES: "torch.float32",
    TRUTH: "torch.bool",
    (*WHOLE, *TRUTH): "torch.bool, or torch.uint8 for packed bits",
    (*WHOLE, *TRUTH, *FLOATS): "torch.int64",
}
# Name -> axes and dtypes. A letter is one size wherever it stands: B rows, V views, L positions, K proposals, Q
# questions, h token grid, S pixels of a view, b of a picture from above; "*" is any size, "..." any further axes.
INPUTS: dict[str, tuple[tuple[str | int, ...], tuple[torch.dtype, ...]]] = {
    "pixel_values": (("B", "V", 3, "S", "S"), FLOATS),
    "input_ids": (("B", "L"), WHOLE),
    "segment_ids": (("B", "L"), WHOLE),
    "labels": (("B", "L"), WHOLE),
    "shift_labels": (("B", "L"), WHOLE),
    "loss_weights": (("B", "L"), METRES),
    "view_mask": (("B", "V"), TRUTH),
    "bool_masked_views": (("B", "V"), TRUTH),
    "patch_coords": (("B", "V", "h", "h", 3), METRES),
    "patch_valid": (("B", "V", "h", "h"), TRUTH),
    "proposal_boxes": (("B", "K", 6), METRES),
    "proposal_mask": (("B", "K"), TRUTH),
    "proposal_patches": (("B", "K", "V", "..."), (*WHOLE, *TRUTH)),
    "query_coords": (("B", "Q", 3), METRES),
    "grounding_labels": (("B", "Q", "*"), (*WHOLE, *TRUTH, *FLOATS)),
    "bev_pixel_values": (("B", 3, "b", "b"), FLOATS),
    "bev_valid": (("B", "b", "b"), TRUTH),
    "bev_bounds": (("B", 4), METRES),
    "view_latents": (("B", "V", "..."), FLOATS),
    "bev_latents": (("B", "..."), FLOATS),
    "row_seed": (("B",), WHOLE),
}


# Tensors that say something about another, without which they would be passed over.
BELONG_TO = {
    "patch_valid": "patch_coords",
    "proposal_mask": "proposal_boxes",
    "proposal_patches": "proposal_boxes",
}
BEV_HINT = "build rows with a processor whose bev_size is this model's config.denoiser_config.bev_image_size."
HINTS = {
    "bev_pixel_values": BEV_HINT,
    "bev_valid": BEV_HINT,
    "bool_masked_views": "pass one value a view, True = hidden.",
    "bev_bounds": "pass x_min, y_min, x_max, y_max of each picture, metres.",
    "query_coords": "pass x, y, z of each question, metres.",
}
HINT = "build rows with this model's processor."


def check_inputs(inputs: Mapping[str, Any], **sizes: int) -> None:
    """Refuse what is no tensor, has another dtype, or does not fit the other tensors of the batch.

    Args:
        inputs: the arguments of a call by name; those that are None, or not in the table, are passed over.
        sizes (`int`): letters of axes whose size is known beforehand.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: axes that do not fit, and a tensor about another that is missing.
    """
    for name, other in BELONG_TO.items():
        if inputs.get(name) is not None and inputs.get(other) is None:
            raise ValueError(f"{name}: expected {other} with it, which it is about, got none; pass both or neither.")
    for name, (axes, dtypes) in INPUTS.items():
        tensor = inputs.get(name)
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{name}: expected a tensor, got {type(tensor).__name__}; pass what the processor returns, with"
                " return_tensors='pt'."
            )
        if tensor.dtype not in dtypes:
            hint = HINTS.get(name, HINT)
            raise TypeError(f"{name}: expected a tensor of dtype {KINDS[dtypes]}, got dtype {tensor.dtype}; {hint}")
        shape, further = tuple(tensor.shape), axes[-1] == "..."
        axes = axes[: -1 if further else None]
        wanted = tuple(sizes.get(axis, axis) for axis in axes)
        fits = len(shape) == len(axes) or (further and len(shape) > len(axes))
        for axis, size in zip(axes, shape, strict=False):
            fits = fits and (axis == "*" or size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size)))
        if not fits:
            expected = ", ".join([*map(str, wanted), *(["..."] if further else [])])
            expected = f"({expected}{',' if len(wanted) == 1 else ''})"
            raise ValueError(
                f"{name}: expected shape {expected}, got {shape}; {HINTS.get(name, HINT)} Tensors of one batch have to"
                " fit together."
            )


def check_mask(attention_mask: Any, num_rows: int, length: int, num_cached: int | None) -> None:
    """Refuse an attention mask that does not fit its rows, by type and shape alone.

    Args:
        attention_mask: numbers (B, past + L), or what the library takes besides: four axes, a mask for each kind of
            layer, a block mask.
        num_rows, length (`int`): B and L.
        num_cached (`int` or None): past; None where only the device knows, which is not asked.

    Raises:
        TypeError: no mask.
        ValueError: another shape.
    """
    is_tensor = isinstance(attention_mask, torch.Tensor)
    # The block mask by its name, so that flex attention is not imported for it.
    is_mask = attention_mask is None or isinstance(attention_mask, Mapping)
    if not is_tensor and not is_mask and type(attention_mask).__name__ != "BlockMask":
        raise TypeError(
            f"attention_mask: expected a tensor of 0 and 1, got {type(attention_mask).__name__}; pass what the"
            " processor returns, with return_tensors='pt'."
        )
    if not is_tensor or attention_mask.dim() == 4:
        return
    if attention_mask.is_complex():
        raise TypeError(f"attention_mask: expected 0 and 1, got dtype {attention_mask.dtype}; {HINT}")
    fits = attention_mask.dim() == 2 and attention_mask.shape[0] == num_rows
    if num_cached is not None:
        fits = fits and attention_mask.shape[1] == num_cached + length
    if not fits:
        width = "past + L" if num_cached is None else num_cached + length
        raise ValueError(
            f"attention_mask: expected shape ({num_rows}, {width}), got {tuple(attention_mask.shape)}; {HINT}"
        )


def check_mask_values(attention_mask: torch.Tensor) -> None:
    """Refuse a mask (B, L) with other numbers than 0 and 1, rows without a token, and rows with holes.

    Raises:
        ValueError: names the row.
    """
    mask = attention_mask.cpu()
    wrong = ((mask != 0) & (mask != 1)).any(dim=1)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        others = mask[row][(mask[row] != 0) & (mask[row] != 1)]
        raise ValueError(f"attention_mask: expected 0 and 1 alone, got {others[:3].tolist()} in row {row}; {HINT}")
    real = mask.bool()
    # A run of ones begins where a one follows no other.
    runs = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0]
    if bool((runs != 1).any()):
        row = int((runs != 1).nonzero()[0])
        got = "a row without tokens" if not runs[row] else "padding between them"
        raise ValueError(
            f"attention_mask: expected tokens in one piece, padded at one end or both, got {got} in row {row}; {HINT}"
        )


__all__ = ["INPUTS", "check_inputs", "check_mask", "check_mask_values"]
