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
"""Inputs of the model: one table of a batch's tensors, checks at the entry of the model, and checks of raw scenes.

Processor, collator, model, generation and trainer take their lists from the table. `check_inputs` checks shapes and
dtypes only: reading values would make the host wait for the GPU. Scan readers (`data/scene.py`) and the processor both
check depth, cameras and boxes with the functions at the end of this file.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any, Literal

import numpy as np
import torch

from .geometry_ross3d import (
    MAX_CAMERA_DISTANCE,
    MAX_FOCAL_SHARE,
    MAX_MEDIAN_DEPTH,
    MAX_ROTATION_ERROR,
    MAX_SKEW,
    MIN_FOCAL_SHARE,
    MIN_MEDIAN_DEPTH,
    TURN_BACK,
    check_shape,
    find_calibration_fault,
    get_median_depths,
    is_centre_of_turned,
)
from .image_processing_ross3d import check_picture_size, shorten


# Largest difference of the aspect ratios of a picture and of its depth map that show the same field of view. Sizes of
# registered sensors are rounded: ScanNet's 1296x968 and 640x480 differ by 0.4 %, RealSense's 1920x1080 and 848x480 by
# 0.6 %; ARKit's 1920x1440 and 256x192 do not differ. Sensors with different fields of view differ by more: 4:3
# pictures and 224x172 depth by 2.4 %, Kinect's 1280x1024 and 640x480 by 6 %.
MAX_ASPECT_DIFFERENCE = 0.01
RIGID = "rigid transforms (a rotation, a translation, last row 0 0 0 1)"
LOST = "drop the views whose tracking was lost"

WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# Metres, angles and loss weights: float32, or its bits as int32; half precision is refused where it is read.
METRES = (*FLOATS, torch.int32)
TRUTH = (torch.bool,)
COLOURS = (torch.uint8, *FLOATS)
KINDS = {
    WHOLE: "torch.int64",
    FLOATS: "torch.float32 or another floating-point one",
    METRES: "torch.float32",
    TRUTH: "torch.bool",
    COLOURS: "torch.uint8, or a floating-point one in [0, 1]",
    (*WHOLE, *TRUTH): "torch.bool, or torch.uint8 for packed bits",
    (*WHOLE, *TRUTH, *FLOATS): "torch.int64",
}
Part = Literal["text", "scene", "masking", "question", "proposals", "target"]


@dataclass(frozen=True)
class Input:
    """Description of one tensor of a batch.

    Attributes:
        axes (tuple of `str` and `int`): a letter has the same size wherever it occurs: B rows, V views, L positions, K
            proposals, Q questions, h and w token grid, S pixels of a view, b of a
            bird's-eye picture; "*" is any size, "..." any further axes.
        dtypes (tuple of `torch.dtype`): the accepted ones.
        part (`str`): what it is for: "text" the language model, "scene" encoding a scene, "masking" which views are
            masked, "question" the questions, "proposals" the grounding head, "target" the losses alone.
        padding (`float`, `int` or `bool`, *optional*): fills the axes that differ from row to row (V, L, K and Q, the
            leading ones) and rows that lack the tensor. None: the collator makes the tensor itself.
    """

    axes: tuple[str | int, ...]
    dtypes: tuple[torch.dtype, ...]
    part: Part
    padding: float | int | bool | None = None

    @property
    def ragged_axes(self) -> str:
        """The letters of the axes after B that differ from row to row."""
        letters = ""
        for axis in self.axes[1:]:
            if axis not in ("V", "L", "K", "Q"):
                break
            letters += axis
        return letters


NAN = float("nan")
INPUTS: dict[str, Input] = {
    "pixel_values": Input(("B", "V", 3, "S", "S"), FLOATS, "scene", 0.0),
    # The collator pads with the tokenizer's padding token.
    "input_ids": Input(("B", "L"), WHOLE, "text", 0),
    # Checked by `check_mask`: the library has other kinds of masks too.
    "attention_mask": Input(("B", "L"), (), "text", 0),
    "segment_ids": Input(("B", "L"), WHOLE, "text", -1),
    "labels": Input(("B", "L"), WHOLE, "target", -100),
    "shift_labels": Input(("B", "L"), WHOLE, "target", -100),
    "loss_weights": Input(("B", "L"), METRES, "target", 0.0),
    "view_mask": Input(("B", "V"), TRUTH, "scene", False),
    "bool_masked_views": Input(("B", "V"), TRUTH, "masking"),
    "patch_coords": Input(("B", "V", "h", "w", 3), METRES, "scene", 0.0),
    "patch_valid": Input(("B", "V", "h", "w"), TRUTH, "scene", False),
    "proposal_boxes": Input(("B", "K", 6), METRES, "proposals", 0.0),
    "proposal_mask": Input(("B", "K"), TRUTH, "proposals", False),
    "proposal_patches": Input(("B", "K", "V", "..."), (*WHOLE, *TRUTH), "proposals", False),
    "proposal_tokens": Input(("B", "K", "V", "..."), (*WHOLE, *TRUTH), "proposals", False),
    "query_coords": Input(("B", "Q", 3), METRES, "question", NAN),
    "grounding_labels": Input(("B", "Q", "*"), (*WHOLE, *TRUTH, *FLOATS), "target", 0),
    "geometry_pixel_values": Input(("B", "V", 3, "*", "*"), COLOURS, "target", 0),
    "cam2world": Input(("B", "V", 4, 4), METRES, "target", NAN),
    "fields_of_view": Input(("B", "V", 2), METRES, "target", NAN),
    "bev_pixel_values": Input(("B", 3, "b", "b"), FLOATS, "target", 0.0),
    "bev_valid": Input(("B", "b", "b"), TRUTH, "target", False),
    "bev_bounds": Input(("B", 4), METRES, "target", NAN),
    "view_latents": Input(("B", "V", "..."), FLOATS, "target", 0.0),
    "bev_latents": Input(("B", "..."), FLOATS, "target", 0.0),
    "geometry_features": Input(("B", "V", "*", "h", "w", "*"), FLOATS, "target", NAN),
    "row_seed": Input(("B",), WHOLE, "target"),
}


# What to do about rows that cannot be stacked.
STACK_HINT = "prepare all rows with one processor."
STACK_HINTS = {
    "geometry_pixel_values": (
        "scenes whose pictures differ in aspect cannot share a batch: one scene per call, one row per step"
        " (--trainer.per_device_train_batch_size 1), features from files (data.geometry_features), or a processor with"
        " view_fit='center_crop'."
    )
}


def list_inputs(*parts: Part) -> tuple[str, ...]:
    """Names of the tensors of these parts, in the order of the table."""
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
        ValueError: for axes that must not differ from row to row but do, such as the sides of pictures.
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
    """Stack the rows of one tensor, their leading axes padded to the given lengths; None becomes padding alone."""
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
                f" {tuple(tensor.shape)} in row {place}; {STACK_HINTS.get(name, STACK_HINT)}"
            )
        stacked[(place, *(slice(size) for size in tensor.shape[: len(leading)]))] = tensor
    return stacked


# Tensors that describe another tensor and would be ignored without it.
BELONG_TO = {
    "patch_valid": "patch_coords",
    "proposal_mask": "proposal_boxes",
    "proposal_patches": "proposal_boxes",
    "proposal_tokens": "proposal_boxes",
}
CAMERA_HINT = "build rows with a processor whose return_cameras is True."
BEV_HINT = "build rows with a processor whose bev_size is this model's config.denoiser_config.bev_image_size."
HINTS = {
    "bev_pixel_values": BEV_HINT,
    "bev_valid": BEV_HINT,
    "cam2world": CAMERA_HINT,
    "fields_of_view": CAMERA_HINT,
    "bool_masked_views": "pass one value a view, True = masked.",
    "bev_bounds": "pass x_min, y_min, x_max, y_max of each picture, metres.",
    "query_coords": "pass x, y, z of each question, metres.",
    "geometry_features": "pass features of every view, for each layer, pooled to the token grid.",
}
HINT = "build rows with this model's processor."


def check(rule: bool, name: str, expected: str, got: Any, remedy: str) -> None:
    """Raise a `ValueError` that says what was expected, what was given and what to do, unless `rule` holds."""
    if not rule:
        got = shorten(str(got))
        raise ValueError(f"{name}: expected {expected}, got {got}; {remedy}.")


def check_inputs(inputs: Mapping[str, Any], **sizes: int) -> None:
    """Refuse values that are not tensors, have another dtype, or do not fit the other tensors of the batch.

    Args:
        inputs: the arguments of a call by name; those that are None, or not in the table, are skipped.
        sizes (`int`): letters of axes whose size is known beforehand.

    Raises:
        TypeError: for a value that is not a tensor or has another dtype.
        ValueError: for axes that do not fit, and a tensor that describes a missing one.
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
        attention_mask: numbers (B, past + L), or another form that the library accepts: four axes, a mask for each
            kind of layer, a block mask.
        num_rows, length (`int`): B and L.
        num_cached (`int` or None): past; None where only the device knows it, since reading it would wait.

    Raises:
        TypeError: for a value that is not a mask.
        ValueError: for another shape.
    """
    is_tensor = isinstance(attention_mask, torch.Tensor)
    # The block mask is recognised by its class name, so that flex attention need not be imported.
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
    """Refuse a mask (B, L) with numbers other than 0 and 1, rows without a token, and rows with gaps.

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
    # A run of ones begins where a one does not follow another.
    runs = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0]
    if bool((runs != 1).any()):
        row = int((runs != 1).nonzero()[0])
        got = "a row without tokens" if not runs[row] else "padding between them"
        raise ValueError(
            f"attention_mask: expected tokens in one piece, padded at one end or both, got {got} in row {row}; {HINT}"
        )


def check_numbers(name: str, tensor: torch.Tensor, used: torch.Tensor, limit: float = float("inf")) -> None:
    """Refuse NaN, infinities and coordinates that are not metres: the model would take them for valid positions.

    Args:
        name (`str`): what the error calls the tensor.
        tensor (B, ...): the numbers.
        used (`torch.BoolTensor`, broadcast to the tensor): which of them to check; padding may hold anything.
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
    """A tensor of metres or loss weights in float32; int32 is read as the bits of float32.

    Raises:
        ValueError: for half precision: bfloat16 moves a point that is five metres away by up to 16 mm, into another
            voxel, without a trace. For int32 that holds metres instead of bits: it would read as numbers below 1e-30.
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


# Depth, cameras and boxes: `data.scene` and the processor check their inputs with these


def to_array(value: Any, name: str) -> np.ndarray:
    """Numbers in an array, a tensor or nested lists -> an array in this machine's byte order."""
    if isinstance(value, torch.Tensor):
        value = to_tensor(value, name)
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    kind = f"an array of dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    try:
        array = np.asarray(value)
        if array.dtype == object:
            array = np.asarray(array.tolist())
    except (ValueError, TypeError, OverflowError) as error:
        kind, array = f"{kind} ({shorten(str(error))})", np.asarray("")
    holds_numbers = array.dtype.kind in "biuf"
    wrong = [] if holds_numbers else list_no_numbers(value)
    kind = f"{type(wrong[0]).__name__} in a {kind}" if wrong and isinstance(value, (list, tuple)) else kind
    check(holds_numbers, name, "an array of numbers", kind, suggest_numbers(wrong))
    check(not np.ma.is_masked(value), name, "an array without a mask", "masked values", "fill them: 0 = no depth")
    if not array.dtype.isnative or array.dtype.itemsize > 8:
        array = array.astype(array.dtype.newbyteorder("=") if array.dtype.itemsize <= 8 else np.float64)
    return array


def list_no_numbers(value: Any) -> list[Any]:
    """The entries of nested lists that are neither numbers nor arrays."""
    if isinstance(value, (list, tuple)):
        return [wrong for item in value for wrong in list_no_numbers(item)]
    return [] if isinstance(value, (Number, np.ndarray, torch.Tensor)) else [value]


def suggest_numbers(wrong: list[Any]) -> str:
    """What to do about entries that are no numbers."""
    if wrong and isinstance(wrong[0], (str, bytes, os.PathLike)):
        return "read the file, and pass the array of its numbers"
    if wrong and wrong[0] is None:
        return "give numbers for it, or leave the argument out"
    return "pass numbers alone, in arrays or nested lists"


def to_tensor(value: Any, name: str) -> torch.Tensor:
    """An array, a tensor or a list of equal ones -> one tensor on the CPU."""
    if isinstance(value, torch.Tensor):
        holds_numbers = value.layout == torch.strided and not value.is_meta
        check(holds_numbers, name, "a dense tensor that holds numbers", f"{value.layout} on {value.device}",
              "call to_dense(), or load the tensor first")  # fmt: skip
        return value.detach().cpu()
    if isinstance(value, (list, tuple)):
        arrays = [to_array(item, f"item {place} of {name}") for place, item in enumerate(value)]
        shapes = sorted({array.shape for array in arrays})
        check(len(shapes) <= 1, name, "arrays of one shape", shapes, "resize them to a common size")
        array = np.stack(arrays) if arrays else np.zeros(0)
    else:
        array = to_array(value, name)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return torch.as_tensor(array)


def to_coords(value: Any, name: str) -> torch.Tensor:
    """Real numbers -> float64; booleans and complex numbers are refused."""
    tensor = to_tensor(value, name)
    is_real = tensor.dtype != torch.bool and not tensor.is_complex()
    check(is_real, name, "real numbers", f"dtype {tensor.dtype}", "pass floating point numbers")
    return tensor.double()


def locate(wrong: torch.Tensor, views: Sequence[str] = ()) -> str:
    """The views that are wrong, for an error message: the first names of `views`, or numbers if they have no names.

    Args:
        wrong (V,): bool.
    """
    places = wrong.nonzero()[:, 0].tolist()
    if not len(views):
        return f" in views {places}"
    more = f" and {len(places) - 3} more" if len(places) > 3 else ""
    return f" in {', '.join(str(views[place]) for place in places[:3])}{more}"


def has_same_aspect(size: tuple[int, int], depth_size: tuple[int, int]) -> bool:
    """Whether a picture and a depth map (height and width of each) may show the same field of view.

    Their aspect ratios may differ by `MAX_ASPECT_DIFFERENCE`, or by the rounding of one side to a pixel.
    """
    (height, width), (depth_height, depth_width) = size, depth_size
    difference = abs(depth_width * height - depth_height * width)
    rounding = max(height, width, depth_height, depth_width)
    return difference <= max(rounding, MAX_ASPECT_DIFFERENCE * depth_width * height)


def check_has_cameras(scene_name: str, **cameras: Any) -> None:
    """Refuse depth without cameras, by name: readings without a camera have no position."""
    for key, value in cameras.items():
        check(value is not None, f"{key} of {scene_name}", "cameras with depth_maps", "None",
              "give intrinsics and cam2world, or leave depth_maps out")  # fmt: skip


def check_depth_maps(
    depth_maps: Any, num_views: int | None, name: str, views: Sequence[str] = (), when_other_unit: str = ""
) -> torch.Tensor:
    """Depth in metres, float32 (V, H, W); maps in another unit, or without a reading, are refused.

    Args:
        num_views (`int` or None): V, where it is known.
        name (`str`): what errors call the maps.
        views (sequence of `str`): what errors call the views; their numbers by default.
        when_other_unit (`str`): the remedy for depth that is not in metres, where the caller knows a better one.

    Raises:
        ValueError: names the maps, and the views where only some are wrong.
    """
    depth = to_tensor(depth_maps, name)
    one_each = "give one depth map a view, all zeros where a view has none."
    sizes = check_shape(name, depth, (num_views or "V", "H", "W"), one_each)
    check(depth.numel() > 0, name, "maps that hold pixels", f"shape {tuple(depth.shape)}",
          "leave depth_maps out to use the pictures alone")  # fmt: skip
    check_picture_size((sizes["W"], sizes["H"]), name)
    metres = "divide millimetres by 1000 and pass float32"
    check(depth.is_floating_point(), name, "metres as floating point", f"dtype {depth.dtype}", metres)
    depth = depth.float()
    lowest = depth.min()
    is_depth = bool(torch.isfinite(lowest)) and bool(torch.isfinite(depth.max())) and bool(lowest >= 0)
    check(is_depth, name, "finite metres >= 0", "negative, infinite or NaN depth",
          "write 0 where the sensor has no reading")  # fmt: skip
    medians = get_median_depths(depth)
    check(not bool(medians.isnan().all()), name, "a reading in at least one view", "no depth above 0 in any view",
          "look at the depth files, or leave depth_maps out to use the pictures alone")  # fmt: skip
    far = medians > MAX_MEDIAN_DEPTH
    check(not bool(far.any()), name, "metres",
          f"a median depth of {medians[far][:1].sum():.0f}{locate(far, views)}, which looks like millimetres",
          when_other_unit or metres)  # fmt: skip
    median = medians.nanmedian().item()
    check(median >= MIN_MEDIAN_DEPTH, name, "metres",
          f"a median depth of {median:.5f}, which looks divided by 1000 twice",
          when_other_unit or "pass metres")  # fmt: skip
    highest = depth.max().item()
    check(highest <= MAX_CAMERA_DISTANCE, name, f"readings up to {MAX_CAMERA_DISTANCE:.0f} metres",
          f"one of {highest:g}", "write 0 where the sensor has no reading")  # fmt: skip
    return depth


def check_intrinsics(intrinsics: Any, num_views: int, size: tuple[int, int] | None, name: str) -> torch.Tensor:
    """Camera matrices (V, 3, 3), float64, of pinhole cameras.

    Args:
        size (`(height, width)`, *optional*): of the depth maps whose pixels they refer to; None without depth.
        name (`str`): what errors call them.

    Raises:
        ValueError: names them and the likely reason.
    """
    cameras = to_coords(intrinsics, name)
    if cameras.dim() == 2:
        check_shape(name, cameras, (3, 3), "of a 4 x 4 matrix pass [:3, :3].")
        cameras = cameras.expand(num_views, 3, 3)
    check_shape(name, cameras, (num_views, 3, 3), "pass one matrix, or one a view; of a 4 x 4 matrix pass [:3, :3].")
    check(bool(torch.isfinite(cameras).all()), name, "finite numbers", "NaN or infinity", "repair the calibration")
    for camera in cameras.unique(dim=0):
        check_camera(camera, size, name)
    return cameras


def check_camera(camera: torch.Tensor, size: tuple[int, int] | None, name: str) -> None:
    """Refuse a matrix (3, 3) that is not a pinhole camera's, or does not fit a depth map of `size` (height, width).

    The error gives the likely reason.
    """
    (focal_x, skew, centre_x), (below, focal_y, centre_y), last = camera.tolist()
    is_transposed = last[:2] != [0, 0] and last[2] == 1 and centre_x == centre_y == 0
    is_pinhole = max(abs(last[0]), abs(last[1]), abs(last[2] - 1)) < 1e-4
    check(
        is_pinhole and max(abs(skew), abs(below)) <= MAX_SKEW * abs(focal_x),
        name,
        "a pinhole camera fx 0 cx, 0 fy cy, 0 0 1",
        f"{camera.tolist()}{', which looks transposed' if is_transposed else ''}",
        "transpose matrices that are stored by columns, divide by the last entry, and rectify pictures with skew",
    )
    focal = f"focal [{focal_x:g}, {focal_y:g}]"
    check(min(focal_x, focal_y) > 1, name, "focal lengths in pixels, above 1", focal,
          "multiply normalised values by the size of the depth map, and look for a mirrored axis")  # fmt: skip
    if size is None:
        return
    height, width = size
    fits = all(
        MIN_FOCAL_SHARE * side < focal < MAX_FOCAL_SHARE * side
        for focal, side in ((focal_x, width), (focal_y, height))
    )
    reason = find_calibration_fault(centre_x, centre_y, height, width)
    is_turned = is_centre_of_turned(centre_x, centre_y, height, width)
    check(
        fits and reason is None,
        name,
        f"focal lengths and a principal point in pixels of the {height} x {width} depth map",
        f"{focal}, centre [{centre_x:g}, {centre_y:g}]{reason or ''}",
        TURN_BACK if is_turned else "scale the calibration from the size it was made for to that of the depth map",
    )


def check_cam2world(
    cam2world: Any, num_views: int, name: str, views: Sequence[str] = (), when_lost: str = LOST
) -> torch.Tensor:
    """Rigid camera poses (V, 4, 4), float64.

    Args:
        name (`str`): what errors call the matrices.
        views (sequence of `str`): what errors call the views; their numbers by default.
        when_lost (`str`): the remedy for a matrix that holds no transform at all.

    Raises:
        ValueError: names the matrices and the views.
    """
    poses = to_coords(cam2world, name)
    check_shape(name, poses, (num_views, 4, 4), "pass one camera-to-world matrix a view.")
    broken = ~torch.isfinite(poses).flatten(1).all(dim=1)
    check(not bool(broken.any()), name, "finite numbers", f"NaN or infinity{locate(broken, views)}", when_lost)
    rotation, bottom = poses[:, :3, :3], poses[:, 3]
    empty = ~rotation.flatten(1).any(dim=1)
    check(not bool(empty.any()), name, RIGID, f"a rotation of zeros{locate(empty, views)}", when_lost)
    by_columns = ~poses[:, :3, 3].any(dim=1) & (bottom[:, 3] == 1) & (bottom[:, :3].abs().amax(dim=1) > 1e-4)
    check(not bool(by_columns.any()), name, RIGID,
          f"the last row {bottom[by_columns][:1].flatten().tolist()}{locate(by_columns, views)}",
          "transpose matrices that are stored by columns")  # fmt: skip
    error = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=poses.dtype)).abs().flatten(1).amax(dim=1)
    determinant = torch.linalg.det(rotation)
    rigid = (error < MAX_ROTATION_ERROR) & (determinant > 0)
    rigid = rigid & ((bottom - torch.tensor([0.0, 0.0, 0.0, 1.0]).double()).abs().amax(dim=1) < 1e-4)
    first = int(rigid.to(torch.uint8).argmin())
    check(
        bool(rigid.all()),
        name,
        RIGID,
        f"deviation {error[first]:.3g} from a rotation, determinant {determinant[first]:.3g}, last row"
        f" {bottom[first].tolist()}{locate(~rigid, views)}",
        "remove scale or a mirrored axis (OpenCV axes: x right, y down, z forward)",
    )
    return poses


def check_camera_positions(
    cam2world: torch.Tensor, name: str, views: Sequence[str] = (), when_other_unit: str = ""
) -> None:
    """Refuse cameras (V, 4, 4) beyond `MAX_CAMERA_DISTANCE`: they are not in metres; see `check_depth_maps`."""
    distances = cam2world[:, :3, 3].abs().amax(dim=1)
    far = distances > MAX_CAMERA_DISTANCE
    check(
        not bool(far.any()),
        name,
        "translations in metres",
        f"a camera {distances.max():.0f} from the origin{locate(far, views)}, which looks like millimetres",
        when_other_unit or "divide the translations by 1000, or move the world's origin to the scan",
    )


def check_boxes(boxes: Any, name: str) -> torch.Tensor:
    """Boxes (K, 6), centre and size in metres, float32; K = 0 is legal.

    Raises:
        ValueError: names the boxes and the first wrong ones.
    """
    boxes = to_coords(boxes, name).float()
    if tuple(boxes.shape) == (0,):
        return boxes.reshape(0, 6)
    check_shape(name, boxes, ("K", 6), "pass centre xyz and size xyz in metres.")
    broken = ~torch.isfinite(boxes).all(dim=1)
    check(not bool(broken.any()), name, "finite metres", f"NaN or infinity in boxes {list_first(broken)}",
          "drop the broken boxes")  # fmt: skip
    negative = (boxes[:, 3:] < 0).any(dim=1)
    check(not bool(negative.any()), name, "sizes >= 0 (centre xyz, size xyz)",
          f"a negative size in boxes {list_first(negative)}", "turn corners into centre and size")  # fmt: skip
    check_distance(boxes, name)
    return boxes


def list_first(wrong: torch.Tensor) -> list[int]:
    """Numbers of the first entries (N,) that are wrong."""
    return wrong.nonzero()[:5, 0].tolist()


def check_distance(coords: torch.Tensor, name: str) -> None:
    """Refuse boxes or points (N, ...) that reach beyond `MAX_CAMERA_DISTANCE`: they are not in metres."""
    distances = coords.abs().flatten(1).amax(dim=1)
    far = distances > MAX_CAMERA_DISTANCE
    check(
        not bool(far.any()),
        name,
        f"coordinates in metres, within {MAX_CAMERA_DISTANCE:.0f} of the origin",
        f"{distances[far][:5].tolist()} in entries {list_first(far)}, which looks like millimetres",
        "divide millimetres by 1000",
    )


def check_edges(bounds: Any, name: str) -> torch.Tensor:
    """Edges (4,) of a bird's-eye picture, metres, float32."""
    bounds = to_coords(bounds, name).float()
    check_shape(name, bounds, (4,), "pass xmin, ymin, xmax, ymax in metres.")
    ordered = bool(torch.isfinite(bounds).all()) and bool((bounds[:2] < bounds[2:]).all())
    check(ordered, name, "xmin < xmax and ymin < ymax, finite", bounds.tolist(), "pass xmin, ymin, xmax, ymax")
    check_distance(bounds[None], name)
    return bounds


__all__ = [
    "LOST",
    "MAX_ASPECT_DIFFERENCE",
    "check_boxes",
    "check_cam2world",
    "check_camera_positions",
    "check_depth_maps",
    "check_distance",
    "check_edges",
    "check_has_cameras",
    "check_intrinsics",
    "has_same_aspect",
    "to_array",
    "to_coords",
    "to_tensor",
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
