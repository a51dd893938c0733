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
# questions, h token grid, S pixels of a view; "*" is any size, "..." any further axes.
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
    "bev_pixel_values": (("B", 3, "*", "*"), FLOATS),
    "bev_valid": (("B", "*", "*"), TRUTH),
    "bev_bounds": (("B", 4), METRES),
    "view_latents": (("B", "V", "..."), FLOATS),
    "bev_latents": (("B", "..."), FLOATS),
    "row_seed": (("B",), WHOLE),
}


HINTS = {
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
        ValueError: axes that do not fit.
    """
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
            raise ValueError(f"{name}: expected shape {expected}, got {shape}; {HINTS.get(name, HINT)}")


__all__ = ["INPUTS", "check_inputs"]
