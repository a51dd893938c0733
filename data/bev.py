"""Bird's-eye pictures of scenes: orthographic, ceiling removed, void exactly black, with a mask of seen cells.

Framing: the square `bounds` (xmin, ymin, xmax, ymax) in metres of the aligned world; x grows to the right, y grows
upwards (row 0 is the ymax side), so the picture is a map with one scale on both axes. In each cell, points above
`ceiling_height` are dropped, then the highest point wins. A morphological closing of the heights fills gaps of at most
twice `splat` metres: an empty cell gets the height of the gap's lower rim and the colour next to it, so holes
disappear and objects do not grow. Every other cell is void, exactly (0, 0, 0). A seen cell is never exactly black.

Shape letters: N points, S pixels of the picture's side.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ross3d.data.scene import Scene
from ross3d.geometry_ross3d import get_bev_bounds, project_bev, unproject


POINTS_AT_ONCE = 2_000_000
# Maximum side in pixels; drawing takes some hundred bytes a pixel.
MAX_BEV_SIZE = 4096
# A pit at most twice this many cells wide and at least this deep (metres) was seen through gaps in a surface.
PIT_REACH, PIT_DEPTH = 2, 0.1


@dataclass
class BEVPicture:
    """`image` (S, S, 3) uint8, `valid` (S, S) bool, `bounds` (4,) float32 metres, None where unknown."""

    image: np.ndarray
    valid: np.ndarray
    bounds: np.ndarray | None


def render_bev(
    points: np.ndarray,
    colors: np.ndarray,
    bounds: np.ndarray | None = None,
    size: int = 432,
    ceiling_height: float = 2.2,
    splat: float = 0.16,
) -> BEVPicture:
    """Render a coloured point cloud from above.

    Args:
        points (`(N, 3)`): metres, z up, floor near z = 0.
        colors (`(N, 3)`, uint8): RGB.
        bounds (`(4,)`, *optional*): xmin, ymin, xmax, ymax in metres; by default those of the points.
        size (`int`, defaults to 432): pixels of a side.
        ceiling_height (`float`, defaults to 2.2): metres; higher points are dropped.
        splat (`float`, defaults to 0.16): metres; half the width of the widest gap that is closed.

    Raises:
        ValueError: when no point lies below the ceiling, or shapes or bounds do not fit.
    """
    check_bev_size(size)
    points, colors = np.asarray(points, dtype=np.float32), np.asarray(colors)
    if points.ndim != 2 or points.shape[1] != 3 or colors.shape != points.shape or colors.dtype != np.uint8:
        raise ValueError(
            f"points and colors must be (N, 3), colors uint8, got {points.shape} and {colors.dtype} {colors.shape}."
        )
    if not np.isfinite(points).all():
        raise ValueError("points: expected finite coordinates, got NaN or inf; remove those points.")
    below = points[:, 2] <= ceiling_height
    points, colors = points[below], colors[below]
    if not len(points):
        raise ValueError(
            f"no point is below ceiling_height = {ceiling_height} m; is the scan upright with its floor at z = 0?"
            " give an axis-align matrix, or a higher ceiling."
        )
    if bounds is None:
        bounds = get_bev_bounds(torch.from_numpy(points)).numpy()
    bounds = np.asarray(bounds, dtype=np.float32)
    if bounds.shape != (4,) or not np.isfinite(bounds).all() or not (bounds[:2] < bounds[2:]).all():
        raise ValueError(
            "bounds: expected xmin, ymin, xmax, ymax in metres, the first two smaller, got"
            f" {bounds.tolist()}; swap them."
        )
    height = np.full(size * size, -np.inf, dtype=np.float32)
    image = np.zeros((size * size, 3), dtype=np.uint8)
    for start in range(0, len(points), POINTS_AT_ONCE):
        chunk = slice(start, start + POINTS_AT_ONCE)
        _draw_highest(points[chunk], colors[chunk], bounds, size, height, image)
    image, height = image.reshape(size, size, 3), height.reshape(size, size)
    # At most a quarter of the picture, which matters when it shows only centimetres: wider would fill everything.
    reach = min(int(round(splat * size / float(bounds[2] - bounds[0]))), size // 4)
    valid = _close_gaps(image, height, reach)
    return BEVPicture(image, valid, bounds)


def check_bev_size(size: int) -> None:
    """Refuse a side below 1 pixel or above `MAX_BEV_SIZE`.

    Raises:
        ValueError: with the limits.
    """
    if not 1 <= size <= MAX_BEV_SIZE:
        raise ValueError(
            f"size of the bird's-eye picture (--bev-size): expected 1 to {MAX_BEV_SIZE} pixels, got {size}; 432 is the"
            " published one."
        )


def _draw_highest(points, colors, bounds, size: int, height: np.ndarray, image: np.ndarray) -> None:
    """Give each cell (flat, in place) its highest point so far; among equally high ones the last."""
    pixels, inside = project_bev(torch.from_numpy(points), torch.from_numpy(bounds), size)
    kept = np.flatnonzero(inside.numpy())
    columns, rows = np.floor(pixels.numpy()[kept] + 0.5).astype(np.int64).clip(0, size - 1).T
    cells = rows * size + columns
    order = np.argsort(points[kept, 2], kind="stable")
    winner = np.full(size * size, -1, dtype=np.int64)
    winner[cells[order]] = kept[order]
    cells = np.flatnonzero(winner >= 0)
    winner = winner[cells]
    higher = points[winner, 2] >= height[cells]
    height[cells[higher]] = points[winner[higher], 2]
    # One grey level above black, so that only void is black.
    seen = colors[winner[higher]]
    image[cells[higher]] = np.where(seen.any(-1, keepdims=True), seen, 1)


def _close_gaps(image: np.ndarray, height: np.ndarray, reach: int) -> np.ndarray:
    """Close the height map and colour the raised cells (in place); returns which cells have a height afterwards.

    A closing lifts a cell to the lower rim of the gap it lies in, so a hole in a table takes the table's height, a gap
    between table and floor the floor's, and no object grows.
    """
    closed = np.where(np.isfinite(height), _close(height, PIT_REACH), _close(height, reach))
    raised = closed > height + PIT_DEPTH
    _color_raised(image, height, closed, raised)
    return np.isfinite(closed)


def _neighbours(array: np.ndarray, outside) -> np.ndarray:
    """The 3 x 3 neighbourhood of every cell, stacked first (9, S, S)."""
    rows, columns = array.shape
    padded = np.pad(array, 1, constant_values=outside)
    return np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)])


def _close(height: np.ndarray, reach: int) -> np.ndarray:
    """Grey-scale closing with a square of 2 * reach + 1 cells: the largest value around, the smallest of those.

    Nothing was seen beyond the picture, so the space between a wall and the picture's edge is not a gap.
    """
    rows, columns = height.shape
    height = np.pad(height, reach, constant_values=-np.inf)
    for _ in range(reach):
        height = _neighbours(height, -np.inf).max(0)
    for _ in range(reach):
        height = _neighbours(height, np.inf).min(0)
    return height[reach : reach + rows, reach : reach + columns]


def _color_raised(image: np.ndarray, height: np.ndarray, closed: np.ndarray, raised: np.ndarray) -> None:
    """Colour raised cells from the rim inwards: by a neighbour of their height, or else by the nearest one."""
    done = ~raised & np.isfinite(height)
    while raised.any():
        known = np.where(done, closed, np.inf)
        steps = np.abs(_neighbours(known, np.inf) - np.where(raised, closed, 0.0))
        nearest = np.where(raised, steps.min(0), np.inf)
        rows, columns = np.nonzero(nearest <= max(PIT_DEPTH, nearest.min()))
        best = steps[:, rows, columns].argmin(0)
        image[rows, columns] = image[rows + best // 3 - 1, columns + best % 3 - 1]
        done[rows, columns], raised[rows, columns] = True, False


def get_scene_points(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """World points (N, 3) in metres and colours (N, 3) of every pixel of `scene` that has a depth reading."""
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None:
        raise ValueError(
            f"scene {scene.scene_id!r} has no depth or no cameras, so it has no bird's-eye picture; add both."
        )
    depth = torch.from_numpy(np.ascontiguousarray(scene.depth_maps, dtype=np.float32))
    world = unproject(depth, torch.from_numpy(scene.intrinsics), torch.from_numpy(scene.cam2world)).numpy()
    images = scene.images
    if images.shape[1:3] != depth.shape[1:]:
        rows = np.arange(depth.shape[1]) * images.shape[1] // depth.shape[1]
        columns = np.arange(depth.shape[2]) * images.shape[2] // depth.shape[2]
        images = images[:, rows[:, None], columns]
    real = scene.depth_maps.reshape(-1) > 0
    return world.reshape(-1, 3)[real], images.reshape(-1, 3)[real]


def render_scene_bev(scene: Scene, size: int = 432, **settings) -> BEVPicture:
    """`render_bev` of all depth readings of a scene; `settings` are passed on unchanged."""
    points, colors = get_scene_points(scene)
    return render_bev(points, colors, size=size, **settings)


__all__ = ["BEVPicture", "get_scene_points", "render_bev", "render_scene_bev"]
