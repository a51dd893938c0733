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
"""Pure geometry: pixels to world points, points to patches, voxels, boxes and their choice by score, bird's-eye plane.

Frames and units: world in metres, z up; cameras in OpenCV axes (x right, y down, z forward); pixel coordinates are
those of pixel centres, the top-left pixel at (0, 0). A box is centre xyz and size xyz, axis aligned.

Shapes: V views, H x W pixels of a depth map, S x S pixels of a cropped view, p x p vision patches, h x w tokens
after pooling, K boxes, N points.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch.nn import functional as F


# Patch-and-box pairs whose points are compared at once; bounds the memory of `assign_patches`.
PAIRS_AT_ONCE = 8192
# Median depth, of a room and of every view, in metres; readings outside of this range are in another unit.
MIN_MEDIAN_DEPTH = 0.05
MAX_MEDIAN_DEPTH = 50.0
# Largest difference between entries of a rotation times its transpose and those of the identity.
MAX_ROTATION_ERROR = 1e-2
# Largest distance of cameras, boxes and points from the origin, metres; beyond it they are in another unit.
MAX_CAMERA_DISTANCE = 500.0
# Largest coordinate that a camera at that distance sees at that distance, metres.
MAX_COORDINATE = 2 * MAX_CAMERA_DISTANCE
# Boxes and points may lie outside of what the views show (in other rooms), by at most this many metres.
MAX_OUTSIDE_DISTANCE = 50.0
# Focal lengths as shares of the depth map's side: fields of view from 168 degrees to 3.
MIN_FOCAL_SHARE, MAX_FOCAL_SHARE = 0.05, 20.0
# Remedy for cameras of a picture with width and height swapped. Rotating a scan does not help: it turns cameras too.
TURN_BACK = "swap fx with fy and cx with cy, or rotate images and depth by 90 degrees, whichever matches the poses"
# Skew, as a share of the focal length; and how far off the middle the principal point may be, as a share of the side.
MAX_SKEW, MAX_CENTRE_SHIFT = 1e-3, 0.3


def check_shape(name: str, tensor: torch.Tensor, spec: Sequence[int | str], hint: str = "") -> dict[str, int]:
    """Refuse a tensor whose shape does not fit `spec`.

    Args:
        name (`str`): what the error calls the tensor.
        tensor: anything with a `shape`.
        spec: one entry per axis, a number or a letter; a letter has the same size wherever it occurs.
        hint (`str`, *optional*): what to do about it.

    Returns:
        the size of each letter.

    Raises:
        ValueError: name, expected, got and the hint.
    """
    shape = tuple(tensor.shape)
    sizes: dict[str, int] = {}
    fits = len(shape) == len(spec)
    for size, wanted in zip(shape, spec, strict=False):
        expected = sizes.setdefault(wanted, size) if isinstance(wanted, str) else wanted
        fits = fits and size == expected
    if not fits:
        expected = f"({', '.join(str(wanted) for wanted in spec)}{',' if len(spec) == 1 else ''})"
        raise ValueError(f"{name}: expected shape {expected}, got {shape}{'; ' + hint if hint else '.'}")
    return sizes


def find_calibration_fault(centre_x: float, centre_y: float, height: int, width: int) -> str | None:
    """The reason why a principal point does not belong to a height x width map, or None where it does.

    A camera's principal point lies near the middle. If both coordinates are off by the same factor, it belongs to
    another resolution; if width and height are swapped, to a turned picture. Crops may move it by `MAX_CENTRE_SHIFT`
    of the side.
    """
    scale_x, scale_y = (2 * centre_x + 1) / width, (2 * centre_y + 1) / height
    if abs(scale_x - scale_y) < 0.1 * abs(scale_x) and abs(scale_x - 1) > MAX_CENTRE_SHIFT:
        return f", which looks made for pictures {scale_x:.2g} times as large"
    if is_centre_of_turned(centre_x, centre_y, height, width):
        return ", which seems to belong to the image rotated by 90 degrees"
    if max(abs(scale_x - 1), abs(scale_y - 1)) > 2 * MAX_CENTRE_SHIFT:
        return ", which is far from the image centre"
    return None


def is_centre_of_turned(centre_x: float, centre_y: float, height: int, width: int) -> bool:
    """Whether a principal point is in the middle of the height x width map after a quarter turn."""
    turned_x, turned_y = (2 * centre_x + 1) / height, (2 * centre_y + 1) / width
    return abs(turned_x - 1) < 0.05 and abs(turned_y - 1) < 0.05 and abs(height - width) > 0.15 * width


def get_median_depths(depth_maps: torch.Tensor) -> torch.Tensor:
    """Median reading (V,) of each depth map (V, H, W), 0 = no reading; NaN where a view has none.

    Uses every eighth pixel along both sides, or all pixels of a view where those hold no reading.
    """
    medians = []
    for depth in depth_maps:
        readings = depth[::8, ::8]
        readings = readings[readings > 0]
        medians.append((readings if len(readings) else depth[depth > 0]).nanmedian())
    return torch.stack(medians)


def turn_cameras(
    intrinsics: torch.Tensor, cam2world: torch.Tensor, size: tuple[int, int], turns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cameras of the same views after `turns` quarter turns of their pictures, counter-clockwise.

    Args:
        intrinsics (`(..., 3, 3)`): pixels of the maps before the turn.
        cam2world (`(..., 4, 4)`): OpenCV axes.
        size: height and width of the maps before the turn.
        turns (`int`): as `numpy.rot90` counts them; any whole number.

    Returns:
        new `intrinsics`, pixels of the turned maps, and new `cam2world`.
    """
    height, width = size
    intrinsics, cam2world = intrinsics.clone(), cam2world.clone()
    # The new x axis of a camera is its old y axis, the new y axis its old -x axis.
    quarter = cam2world.new_tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for _ in range(turns % 4):
        focal_x, focal_y = intrinsics[..., 0, 0].clone(), intrinsics[..., 1, 1].clone()
        centre_x, centre_y = intrinsics[..., 0, 2].clone(), intrinsics[..., 1, 2].clone()
        intrinsics[..., 0, 0], intrinsics[..., 1, 1] = focal_y, focal_x
        intrinsics[..., 0, 2], intrinsics[..., 1, 2] = centre_y, width - 1 - centre_x
        cam2world[..., :3, :3] = cam2world[..., :3, :3] @ quarter
        height, width = width, height
    return intrinsics, cam2world


def unproject(
    depth_maps: torch.Tensor,
    intrinsics: torch.Tensor,
    cam2world: torch.Tensor,
    rows: torch.Tensor | None = None,
    columns: torch.Tensor | None = None,
) -> torch.Tensor:
    """World point of every pixel of a depth map.

    Args:
        depth_maps (V, H, W): metres along the camera's z axis; 0 (no reading) gives the camera centre.
        intrinsics (3, 3) or (V, 3, 3): pixels; the centre of the top-left pixel is (0, 0).
        cam2world (V, 4, 4): metres.
        rows (H,), columns (W,): pixel coordinates of the given rows and columns, where `depth_maps` holds some
            pixels of a larger map; 0, 1, 2 ... when absent.

    Returns:
        world coordinates (V, H, W, 3), metres, float32.
    """
    depth = torch.as_tensor(depth_maps).float()
    sizes = check_shape("depth_maps", depth, ("V", "H", "W"))
    camera = torch.as_tensor(intrinsics, dtype=torch.float64, device=depth.device)
    camera = camera.expand(sizes["V"], 3, 3) if camera.dim() == 2 else camera
    check_shape("intrinsics", camera, (sizes["V"], 3, 3), "pass one matrix, or one per view.")
    pose = torch.as_tensor(cam2world, device=depth.device).float()
    check_shape("cam2world", pose, (sizes["V"], 4, 4), "pass one matrix per view.")
    u = torch.arange(sizes["W"], device=depth.device) if columns is None else columns
    v = torch.arange(sizes["H"], device=depth.device) if rows is None else rows
    x = ((u - camera[:, 0, 2, None]) / camera[:, 0, 0, None]).float()[:, None, :]  # (V, 1, W) at depth 1
    y = ((v - camera[:, 1, 2, None]) / camera[:, 1, 1, None]).float()[:, :, None]  # (V, H, 1)
    world = depth.new_empty(*depth.shape, 3)
    # View by view: intermediate results fit the processor's cache.
    for view in range(sizes["V"]):
        for axis in range(3):
            to_x, to_y, to_z, centre = pose[view, axis]
            planes = x[view] * to_x + (y[view] * to_y + to_z)
            world[view, ..., axis] = planes.mul_(depth[view]).add_(centre)
    return world


def get_nearest_indices(in_size: int, out_size: int) -> torch.Tensor:
    """Source index of every output pixel of a nearest resize, by OpenCV's rule `floor(i * in / out)`.

    The factor is rounded to float64 as OpenCV rounds it, so that ties fall the same way.
    """
    factor = 1.0 / (out_size / in_size)
    return (torch.arange(out_size, dtype=torch.float64) * factor).floor().long().clamp(max=in_size - 1)


def select_pixels(maps: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Some rows (h,) and columns (w,) of maps (V, H, W): (V, h, w)."""
    # By indices into the flattened map: choosing columns alone is many times slower on a CPU.
    places = (rows[:, None] * maps.shape[2] + columns).flatten()
    return maps.flatten(1).gather(1, places.expand(len(maps), -1)).unflatten(1, (len(rows), len(columns)))


def resize_nearest(x: torch.Tensor, size: tuple[int, int], dim: int = -2) -> torch.Tensor:
    """Nearest resize of the two axes that begin at `dim` (-2 for (..., H, W), -3 for (..., H, W, C)) to `size`."""
    rows = get_nearest_indices(x.shape[dim], size[0]).to(x.device)
    columns = get_nearest_indices(x.shape[dim + 1], size[1]).to(x.device)
    return x.index_select(dim, rows).index_select(dim + 1, columns)


def get_token_grid_size(view_size: int, patch_size: int) -> int:
    """h = w: tokens along a side of a view of `view_size` pixels, half of its vision patches, rounded up."""
    return (view_size // patch_size + 1) // 2


def pool_cells(x: torch.Tensor, grid: int) -> torch.Tensor:
    """Means (V, grid, grid, C) over equal cells of (V, S, S, C); cells overlap where they cannot be equal."""
    cell, rest = divmod(x.shape[1], grid)
    if rest:
        return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
    return x.unflatten(2, (grid, cell)).unflatten(1, (grid, cell)).mean(dim=(2, 4))


def pool_patch_coords(
    world_coords: torch.Tensor,
    depth_valid: torch.Tensor | None,
    patch_size: int,
    mode: Literal["published", "valid_depth"],
) -> tuple[torch.Tensor, torch.Tensor]:
    """World position of every visual token: the mean over its cell of pixels.

    Pixels that no vision patch covers (right and bottom rest of `S / patch_size`) are left out.

    Args:
        world_coords (V, S, S, 3): metres.
        depth_valid (V, S, S) bool: pixels with a reading; used by "valid_depth" only, all when absent.
        patch_size (`int`): side of a vision patch in pixels.
        mode (`str`): "published" averages all pixels of a cell, the camera centres of missing readings included,
            and calls every cell valid; "valid_depth" averages the readings.

    Returns:
        coordinates (V, h, w, 3), metres, 0 where not valid; validity (V, h, w) bool.
    """
    sizes = check_shape("world_coords", world_coords, ("V", "S", "S", 3))
    used = sizes["S"] // patch_size * patch_size
    grid = get_token_grid_size(sizes["S"], patch_size)
    points = world_coords[:, :used, :used].float()
    if mode == "published" or depth_valid is None:
        coords = pool_cells(points, grid)
        return coords, torch.ones(coords.shape[:3], dtype=torch.bool, device=coords.device)
    check_shape("depth_valid", depth_valid, world_coords.shape[:3])
    valid = depth_valid[:, :used, :used, None].to(points.dtype)
    share = pool_cells(valid, grid)
    coords = pool_cells(points * valid, grid) / share.clamp(min=0.5 / used**2)
    return coords, share[..., 0] > 0


def quantize_coords(
    coords: torch.Tensor, voxel_size: float, bounds_min: torch.Tensor, bounds_max: torch.Tensor
) -> torch.Tensor:
    """Voxel index, as a float, of coordinates (..., 3) in metres, clamped to the bounds (3,); ties go to even."""
    clamped = torch.minimum(torch.maximum(coords, bounds_min.to(coords)), bounds_max.to(coords))
    # The divisor is a tensor of the same device: CUDA would multiply by the reciprocal of a Python number.
    size = torch.full((), voxel_size, dtype=coords.dtype, device=coords.device)
    return ((clamped - bounds_min.to(coords)) / size).round()


def get_sin3d_embedding(voxel_coords: torch.Tensor, dim: int, base: float = 10000.0) -> torch.Tensor:
    """Sinusoids (..., dim) of voxel coordinates (..., 3), computed in float32, returned in their dtype.

    Each axis has `n = dim // 3` channels, x then y then z; channel j is the sine (even j) or cosine (odd j) of the
    coordinate over `base ** (2 * (j // 2) / n)`. The `dim - 3 n` last channels are zero.
    """
    width = dim // 3
    pairs = torch.arange((width + 1) // 2, dtype=torch.float32, device=voxel_coords.device)
    angles = voxel_coords.float()[..., None] / base ** (2 * pairs / width)  # (..., 3, pairs)
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :width]
    return F.pad(waves.flatten(-2), (0, dim - 3 * width)).to(voxel_coords.dtype)


def get_box_limits(boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper corners (..., 3) of boxes (..., 6)."""
    centre, half = boxes[..., :3], boxes[..., 3:6] / 2
    return centre - half, centre + half


def split_patches(x: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(V, S, S, C) -> (C, V * p * p, patch_size ** 2), patches in row-major order, the rest of S left out."""
    grid = x.shape[1] // patch_size
    x = x[:, : grid * patch_size, : grid * patch_size]
    x = x.unflatten(2, (grid, patch_size)).unflatten(1, (grid, patch_size))  # (V, p, n, p, n, C)
    return x.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(1, 3)


def assign_patches(
    world_coords: torch.Tensor,
    boxes: torch.Tensor,
    patch_size: int,
    threshold: float = 0.5,
    depth_valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which vision patches see which box: those with enough of their points inside it, limits included.

    A patch's bounding box settles most pairs; points are compared only where a patch straddles a box.

    Args:
        world_coords (V, S, S, 3): metres.
        boxes (K, 6): centre and size, metres.
        patch_size (`int`): side of a vision patch in pixels.
        threshold (`float`): at least `int(patch_size ** 2 * threshold)` points must be inside.
        depth_valid (V, S, S) bool, *optional*: count readings alone, and take the threshold of their number.

    Returns:
        membership (K, V, p, p) bool.
    """
    sizes = check_shape("world_coords", world_coords, ("V", "S", "S", 3))
    check_shape("boxes", boxes, ("K", 6))
    grid = sizes["S"] // patch_size
    points = split_patches(world_coords.float(), patch_size)  # (3, P, n), P = V * p * p
    num_patches, num_points = points.shape[1:]
    needed = torch.full((num_patches,), int(patch_size**2 * threshold), device=points.device)
    if depth_valid is not None:
        valid = split_patches(depth_valid[..., None], patch_size)[0]
        points = points.masked_fill(~valid, torch.inf)
        needed = (valid.sum(dim=1) * threshold).long().clamp(min=1)
    low, high = (limit.T for limit in get_box_limits(boxes.float()))  # (3, K)
    patch_low, patch_high = points.amin(dim=2), points.amax(dim=2)  # (3, P)
    touching = torch.ones(len(boxes), num_patches, dtype=torch.bool, device=points.device)
    within = []
    for axis in range(3):
        box_low, box_high = low[axis, :, None], high[axis, :, None]
        within.append((patch_low[axis] >= box_low) & (patch_high[axis] <= box_high))
        touching &= (patch_low[axis] <= box_high) & (patch_high[axis] >= box_low)
    member = within[0] & within[1] & within[2]
    pairs = (touching & ~member).nonzero()
    for box, patch in (chunk.unbind(1) for chunk in pairs.split(PAIRS_AT_ONCE)):
        inside = torch.ones(len(box), num_points, dtype=torch.bool, device=points.device)
        for axis in range(3):
            # Points need no comparison on an axis on which the whole patch lies inside.
            open_pairs = (~within[axis][box, patch]).nonzero()[:, 0]
            candidates, of_box = points[axis].index_select(0, patch[open_pairs]), box[open_pairs]
            fits = (candidates >= low[axis, of_box, None]) & (candidates <= high[axis, of_box, None])
            inside.index_copy_(0, open_pairs, fits & inside.index_select(0, open_pairs))
        member[box, patch] = inside.sum(dim=1) >= needed[patch]
    return member.unflatten(1, (sizes["V"], grid, grid))


def assign_tokens(
    world_coords: torch.Tensor,
    boxes: torch.Tensor,
    patch_size: int,
    threshold: float,
    depth_valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which visual tokens see which box: as `assign_patches`, for the cells of pixels that `pool_patch_coords` pools.

    Args:
        world_coords, boxes, depth_valid: see `assign_patches`.
        patch_size (`int`): side of a vision patch in pixels.
        threshold (`float`): share of a cell's points that must be inside, its number of points rounded down.

    Returns:
        membership (K, V, h, w) bool.
    """
    sizes = check_shape("world_coords", world_coords, ("V", "S", "S", 3))
    used = sizes["S"] // patch_size * patch_size
    grid = get_token_grid_size(sizes["S"], patch_size)
    cell, rest = divmod(used, grid)
    if not rest:
        return assign_patches(world_coords, boxes, cell, threshold, depth_valid)
    # Cells overlap and differ in size: each gets its own copy of its pixels, and the smaller ones pixels that do not
    # count.
    starts = torch.arange(grid, device=world_coords.device) * used // grid
    ends = -(-torch.arange(1, grid + 1, device=world_coords.device) * used // grid)
    side = int((ends - starts).max())
    pixels = starts[:, None] + torch.arange(side, device=world_coords.device)  # (grid, side)
    own = (pixels < ends[:, None]).flatten()
    pixels = pixels.clamp(max=used - 1).flatten()
    counted = (own[:, None] & own).expand(sizes["V"], -1, -1)
    if depth_valid is not None:
        counted = counted & depth_valid[:, pixels][:, :, pixels]
    return assign_patches(world_coords[:, pixels][:, :, pixels], boxes, side, threshold, counted)


def pack_patches(patches: torch.Tensor) -> torch.Tensor:
    """Membership (..., h, w) bool -> (..., ceil(h * w / 8)) uint8, an eighth of the bytes to transfer to the model.

    The first patch, or token, is the highest bit of the first byte.
    """
    flat = patches.flatten(-2)
    flat = F.pad(flat.to(torch.uint8), (0, -flat.shape[-1] % 8)).unflatten(-1, (-1, 8))
    weights = 2 ** torch.arange(7, -1, -1, device=flat.device, dtype=torch.uint8)
    return (flat * weights).sum(dim=-1, dtype=torch.uint8)


def unpack_patches(packed: torch.Tensor, num_rows: int, num_columns: int) -> torch.Tensor:
    """What `pack_patches` packed: (..., ceil(h * w / 8)) uint8 -> (..., h, w) bool, rows h and columns w."""
    shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
    bits = ((packed[..., None] >> shifts) & 1).bool().flatten(-2)
    return bits[..., : num_rows * num_columns].unflatten(-1, (num_rows, num_columns))


def compute_box_iou(boxes_a: torch.Tensor, boxes_b: torch.Tensor, eps: float = 0.0) -> torch.Tensor:
    """Overlap (N, M) of boxes (N, 6) and (M, 6), intersection / (union + eps); 0 where both are empty."""
    (low_a, high_a), (low_b, high_b) = get_box_limits(boxes_a[:, None]), get_box_limits(boxes_b[None])
    shared = (torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp(min=0).prod(dim=-1)
    union = boxes_a[:, None, 3:6].prod(dim=-1) + boxes_b[None, :, 3:6].prod(dim=-1) - shared + eps
    return torch.where(union > 0, shared / union, 0.0)


def keep_distinct(order: Iterable[int], overlaps: np.ndarray, max_iou: float) -> list[int]:
    """The boxes of `order`, best first, that overlap no better one that was kept by an IoU of `max_iou` or more.

    Args:
        overlaps (`np.ndarray` of shape `(K, K)`): IoU of all boxes with each other.
    """
    kept: list[int] = []
    for index in order:
        if not (overlaps[index, kept] >= max_iou).any():
            kept.append(int(index))
    return kept


def get_bev_bounds(points: torch.Tensor) -> torch.Tensor:
    """The square a bird's-eye picture shows: (xmin, ymin, xmax, ymax), metres, float32.

    Its middle is the middle of the box from the 0.5th to the 99.5th percentile of the points' x and y; its side is
    the larger extent of that box and 5 % more, so far outliers do not shrink a room.

    Args:
        points (N, 3): metres.
    """
    sizes = check_shape("points", points, ("N", 3))
    if sizes["N"] == 0:
        raise ValueError(
            "points: expected at least one point for the bounds, got none; give the scene depth or a point cloud."
        )
    xy = points[:, :2].float()
    ranks = [round(share * (sizes["N"] - 1)) + 1 for share in (0.005, 0.995)]
    low, high = (xy.kthvalue(rank, dim=0).values for rank in ranks)
    half = 1.05 * (high - low).max().clamp(min=1e-3) / 2
    middle = (low + high) / 2
    return torch.cat([middle - half, middle + half])


def project_bev(points: torch.Tensor, bounds: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of points on a bird's-eye picture: x to the right, y up, so row 0 lies along the largest y.

    Args:
        points (N, 3): metres.
        bounds (4,): xmin, ymin, xmax, ymax, metres.
        size (`int`): side of the picture in pixels.

    Returns:
        pixel coordinates (N, 2), column then row, pixel centres at integers; which points (N,) lie on the picture.
    """
    check_shape("bounds", bounds, (4,), "pass xmin, ymin, xmax, ymax.")
    xmin, ymin, xmax, ymax = bounds.to(points).unbind()
    column = (points[:, 0] - xmin) / (xmax - xmin) * size - 0.5
    row = (ymax - points[:, 1]) / (ymax - ymin) * size - 0.5
    pixels = torch.stack([column, row], dim=-1)
    return pixels, ((pixels >= -0.5) & (pixels < size - 0.5)).all(dim=-1)


def select_by_scores(scores: np.ndarray, temperature: float, threshold: float) -> list[int]:
    """The boxes that an expression with no, one or several targets means (published rule).

    None when "no target" has the highest score. Else softmax of all scores at `temperature`, and boxes in falling
    order until their probabilities sum to `threshold`.

    Args:
        scores (`np.ndarray` of shape `(K + 1,)`, float64): boxes, then "no target"; -inf at padding.

    Returns:
        indices, best first.
    """
    if scores.argmax() == len(scores) - 1:
        return []
    weights = np.exp((scores - scores.max()) / temperature)
    probabilities = weights[:-1] / weights.sum()
    order = np.argsort(-probabilities, kind="stable")
    order = order[probabilities[order] > 0]
    taken = int(np.searchsorted(np.cumsum(probabilities[order]), threshold)) + 1
    return order[:taken].tolist()


__all__ = [
    "assign_patches",
    "assign_tokens",
    "check_shape",
    "compute_box_iou",
    "find_calibration_fault",
    "get_bev_bounds",
    "get_box_limits",
    "get_nearest_indices",
    "get_sin3d_embedding",
    "get_token_grid_size",
    "is_centre_of_turned",
    "keep_distinct",
    "pack_patches",
    "pool_patch_coords",
    "project_bev",
    "quantize_coords",
    "resize_nearest",
    "select_by_scores",
    "select_pixels",
    "turn_cameras",
    "unpack_patches",
    "unproject",
]
