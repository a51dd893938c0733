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
"""The tensors of a batch: one table of what each is, and the checks where a call enters the model.

Processor, collator, model, generation and trainer take their lists from the table. `check_inputs` looks
at shapes and dtypes alone: reading values would make a GPU wait.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .image_processing_ross3d import shorten


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
Part = Literal["text", "scene", "hiding", "question", "proposals", "target"]


@dataclass(frozen=True)
class Input:
    """What one tensor of a batch is.

    Attributes:
        axes (tuple of `str` and `int`): a letter is one size wherever it stands: B rows, V views, L positions, K
            proposals, Q questions, h and w token grid, S pixels of a view, b of a
            bird's-eye picture; "*" is any size, "..." any further axes.
        dtypes (tuple of `torch.dtype`): those that are taken.
        part (`str`): who reads it: "text" the language model, "scene" what a scene is encoded from, "hiding" which
            views are hidden, "question" the questions, "proposals" the grounding head, "target" the losses alone.
        padding (`float`, `int` or `bool`, *optional*): fills the axes that differ from row to row (V, L, K and Q, at
            the front) and rows that lack the tensor. None: the collator makes the tensor itself.
    """

    axes: tuple[str | int, ...]
    dtypes: tuple[torch.dtype, ...]
    part: Part
    padding: float | int | bool | None = None

    @property
    def ragged_axes(self) -> str:
        """The letters of the axes behind B that differ from row to row."""
        letters = ""
        for axis in self.axes[1:]:
            if axis not in ("V", "L", "K", "Q"):
                break
            letters += axis
        return letters


NAN = float("nan")
INPUTS: dict[str, Input] = {
    "pixel_values": Input(("B", "V", 3, "S", "S"), FLOATS, "scene", 0.0),
    # The collator pads with the tokenizer's own token.
    "input_ids": Input(("B", "L"), WHOLE, "text", 0),
    # Checked by `check_mask`: the library has other kinds of masks as well.
    "attention_mask": Input(("B", "L"), (), "text", 0),
    "segment_ids": Input(("B", "L"), WHOLE, "text", -1),
    "labels": Input(("B", "L"), WHOLE, "target", -100),
    "shift_labels": Input(("B", "L"), WHOLE, "target", -100),
    "loss_weights": Input(("B", "L"), METRES, "target", 0.0),
    "view_mask": Input(("B", "V"), TRUTH, "scene", False),
    "bool_masked_views": Input(("B", "V"), TRUTH, "hiding"),
    "patch_coords": Input(("B", "V", "h", "w", 3), METRES, "scene", 0.0),
    "patch_valid": Input(("B", "V", "h", "w"), TRUTH, "scene", False),
    "proposal_boxes": Input(("B", "K", 6), METRES, "proposals", 0.0),
    "proposal_mask": Input(("B", "K"), TRUTH, "proposals", False),
    "proposal_patches": Input(("B", "K", "V", "..."), (*WHOLE, *TRUTH), "proposals", False),
    "query_coords": Input(("B", "Q", 3), METRES, "question", NAN),
    "grounding_labels": Input(("B", "Q", "*"), (*WHOLE, *TRUTH, *FLOATS), "target", 0),
    "bev_pixel_values": Input(("B", 3, "b", "b"), FLOATS, "target", 0.0),
    "bev_valid": Input(("B", "b", "b"), TRUTH, "target", False),
    "bev_bounds": Input(("B", 4), METRES, "target", NAN),
    "view_latents": Input(("B", "V", "..."), FLOATS, "target", 0.0),
    "bev_latents": Input(("B", "..."), FLOATS, "target", 0.0),
    "row_seed": Input(("B",), WHOLE, "target"),
}


def list_inputs(*parts: Part) -> tuple[str, ...]:
    """Names of the tensors that these parts of the model read, in the order of the table."""
    return tuple(name for name, row in INPUTS.items() if row.part in parts)


def list_float32() -> frozenset[str]:
    """Names of metres and loss weights, which are read in float32 in every precision."""
    return frozenset(name for name, row in INPUTS.items() if row.dtypes is METRES)


def stack_rows(rows: Sequence[Mapping[str, torch.Tensor]], **padding: float) -> dict[str, torch.Tensor]:
    """Tensors of each row -> (B, ...), padded at the end as the table says; a key that no row has is absent.

    Args:
        rows: tensors by name, without the axis B.
        padding (`float`): what fills a tensor instead of the table's own value, by name.

    Raises:
        ValueError: for axes that differ from row to row and should not, as those of pictures of two sizes do.
    """
    sizes: dict[str, int] = {}
    for row in rows:
        for name, tensor in row.items():
            for axis, size in zip(INPUTS[name].ragged_axes, tensor.shape, strict=False):
                sizes[axis] = max(size, sizes.get(axis, 0))
    stacked = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        tensors = [row.get(name) for row in rows]
        value = padding.get(name, INPUTS[name].padding)
        stacked[name] = stack_padded(name, tensors, [sizes[axis] for axis in INPUTS[name].ragged_axes], value)
    return stacked


def stack_padded(
    name: str, tensors: Sequence[torch.Tensor | None], leading: Sequence[int], value: float
) -> torch.Tensor:
    """Stack tensors of one kind, their leading axes padded to the given lengths; None becomes padding alone."""
    given = next(tensor for tensor in tensors if tensor is not None)
    if len(tensors) == 1:
        return given[None]
    rest = given.shape[len(leading) :]
    stacked = torch.full((len(tensors), *leading, *rest), value, dtype=given.dtype)
    for place, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if tensor.shape[len(leading) :] != rest:
            raise ValueError(
                f"rows: expected {name} of shape (..., {', '.join(map(str, rest))}) in every row of a batch, got"
                f" {tuple(tensor.shape)} in row {place}; prepare all rows with one processor."
            )
        stacked[(place, *(slice(size) for size in tensor.shape[: len(leading)]))] = tensor
    return stacked


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


def check(rule: bool, name: str, expected: str, got: Any, remedy: str) -> None:
    """Raise a `ValueError` that says what was expected, what came and what to do, unless `rule` holds."""
    if not rule:
        got = shorten(str(got))
        raise ValueError(f"{name}: expected {expected}, got {got}; {remedy}.")


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
    for name, row in INPUTS.items():
        tensor, axes, dtypes = inputs.get(name), row.axes, row.dtypes
        if tensor is None or not dtypes:
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


__all__ = [
    "INPUTS",
    "Input",
    "check",
    "check_inputs",
    "check_mask",
    "check_mask_values",
    "check_numbers",
    "list_float32",
    "list_inputs",
    "read_float32",
    "stack_rows",
]
