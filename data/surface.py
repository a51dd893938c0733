"""Flat surface patches from depth maps: points and normals that are robust to noise, edges and missing readings.

A depth map is cut into square cells. The inverse depth of a plane is linear in the pixel, so a cell's mean inverse
depth, taken at the mean pixel of its readings, lies exactly on the plane, and the plane through three by three cells
is a linear fit whose three coefficients give the normal.

Shape letters: V views, H W depth pixels, R C rows and columns of cells, N patches.
"""

from dataclasses import dataclass

import numpy as np

from ross3d.data.scene import Scene


# A cell needs readings in this share of its pixels.
MIN_CELL_SHARE = 0.5
# A patch of three by three cells is flat when its inverse depths miss their plane by less than this share (rms).
MAX_RELATIVE_RESIDUAL = 0.012
# Cosine between a patch's normal and the ray that met it; nearer to grazing, depth says too little.
MIN_FACING = 0.1

# Planes: largest z of a normal, bins of the vote, reach of the rounds of the fit, cosine between normals that agree.
MAX_LEAN = 0.2
HOUGH_DEGREES, HOUGH_OFFSET = 4.0, 0.05
PLANE_REACH = (0.12, 0.06, 0.05)
MIN_ALIKE = 0.93


@dataclass
class Surface:
    """Flat patches in the scene's world.

    Attributes:
        points (`np.ndarray` of shape `(N, 3)`, float64): metres.
        normals (`np.ndarray` of shape `(N, 3)`, float64): unit length, towards the camera that saw the patch.
        views (`np.ndarray` of shape `(N,)`, int64): the view that saw it.
    """

    points: np.ndarray
    normals: np.ndarray
    views: np.ndarray

    def move(self, matrix: np.ndarray) -> "Surface":
        """The same patches in another world; `matrix` (4, 4) is rigid."""
        rotation = np.asarray(matrix, np.float64)[:3, :3]
        return Surface(self.points @ rotation.T + matrix[:3, 3], self.normals @ rotation.T, self.views)


@dataclass(frozen=True)
class UprightPlane:
    """A flat piece of wall or furniture, at right angles to the floor.

    Attributes:
        normal (`np.ndarray` of shape `(2,)`): x and y of its unit normal, towards the cameras that saw it.
        offset (`float`): metres; the plane is where `normal . (x, y) = offset`.
        area (`float`): visible area, square metres.
        start, end (`float`): its extent along `(-normal y, normal x)`, metres.
        top (`float`): the height it reaches, metres.
    """

    normal: np.ndarray
    offset: float
    area: float
    start: float
    end: float
    top: float


def check_depth(scene: Scene, purpose: str) -> None:
    """Refuse a scene without posed depth.

    Raises:
        ValueError: names the scene and what the depth is for.
    """
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None:
        raise ValueError(
            f"scene {scene.scene_id!r}: {purpose} needs depth_maps, intrinsics and cam2world, got a scene that"
            " lacks some of them; add depth and cameras of the frames."
        )


def pool_inverse_depth(depth_map: np.ndarray, cell: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means over cells of `cell` x `cell` pixels of a depth map (H, W); the rest at the right and bottom is left out.

    Returns:
        inverse depth (R, C), 1 / metres; mean column and row (R, C) of the readings, pixels; which cells (R, C) have
        enough readings. Cells without are 0.
    """
    rows, columns = depth_map.shape[0] // cell, depth_map.shape[1] // cell
    depth = depth_map[: rows * cell, : columns * cell].astype(np.float64)
    valid = depth > 0
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=valid)
    v, u = np.indices(depth.shape)

    def add_up(values: np.ndarray) -> np.ndarray:
        return values.reshape(rows, cell, columns, cell).sum((1, 3))

    count = add_up(valid.astype(np.float64))
    means = (add_up(values * valid) / np.maximum(count, 1) for values in (inverse, u, v))
    return *means, count >= MIN_CELL_SHARE * cell**2


def fit_inverse_planes(inverse, u, v, valid) -> tuple[np.ndarray, np.ndarray]:
    """Linear fits `inverse = a u + b v + c` over three by three cells, all arguments (R, C).

    Returns:
        coefficients (R - 2, C - 2, 3) about the pixel (0, 0); which fits (R - 2, C - 2) have nine cells and are flat.
    """
    around = np.lib.stride_tricks.sliding_window_view
    d, x, y, known = (
        around(array, (3, 3)).reshape(*np.subtract(array.shape, 2), 9) for array in (inverse, u, v, valid)
    )
    known = known.all(-1)
    x, y, d = x[known], y[known], d[known]
    x0, y0, d0 = x.mean(-1, keepdims=True), y.mean(-1, keepdims=True), d.mean(-1, keepdims=True)
    x, y, d = x - x0, y - y0, d - d0
    xx, xy, yy, xd, yd = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1), (x * d).sum(-1), (y * d).sum(-1)
    determinant = xx * yy - xy**2
    a, b = (yy * xd - xy * yd) / determinant, (xx * yd - xy * xd) / determinant
    residual = np.sqrt(((d - a[:, None] * x - b[:, None] * y) ** 2).mean(-1)) / d0[:, 0]
    coefficients = np.zeros((*known.shape, 3))
    coefficients[known] = np.stack([a, b, d0[:, 0] - a * x0[:, 0] - b * y0[:, 0]], axis=-1)
    flat = np.zeros(known.shape, dtype=bool)
    flat[known] = residual < MAX_RELATIVE_RESIDUAL
    return coefficients, flat


def sample_surface(scene: Scene, cells_across: int = 80) -> Surface:
    """Flat patches of every view; a depth map is cut into about `cells_across` cells along its longer side.

    Raises:
        ValueError: when the scene has no posed depth.
    """
    check_depth(scene, "finding surfaces")
    cell = max(1, round(max(scene.depth_maps.shape[1:]) / cells_across))
    intrinsics = np.broadcast_to(np.asarray(scene.intrinsics, np.float64), (scene.num_views, 3, 3))
    points, normals, views = [], [], []
    for view, (depth_map, camera, matrix) in enumerate(
        zip(scene.depth_maps, intrinsics, np.asarray(scene.cam2world, np.float64), strict=True)
    ):
        inverse, u, v, valid = pool_inverse_depth(depth_map, cell)
        if min(inverse.shape) < 3:
            continue
        coefficients, flat = fit_inverse_planes(inverse, u, v, valid)
        u, v, coefficients = u[1:-1, 1:-1][flat], v[1:-1, 1:-1][flat], coefficients[flat]
        fitted = np.einsum("nk,nk->n", coefficients, np.stack([u, v, np.ones_like(u)], axis=-1))
        rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(camera).T
        # For a plane n . X = 1 the inverse depth of pixel p is n . K^-1 p, so its coefficients are K^-T n.
        normal = -coefficients @ camera
        normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
        facing = -np.einsum("nk,nk->n", normal, rays) / np.linalg.norm(rays, axis=-1)
        kept = (facing > MIN_FACING) & (fitted > 0)
        in_camera = rays[kept] / fitted[kept, None]
        points.append(in_camera @ matrix[:3, :3].T + matrix[:3, 3])
        normals.append(normal[kept] @ matrix[:3, :3].T)
        views.append(np.full(kept.sum(), view))
    if not points:
        return Surface(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    return Surface(np.concatenate(points), np.concatenate(normals), np.concatenate(views))


def count_voxel_votes(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """Weights (N,) that give each occupied voxel of points (N, 3) one vote in total, however often it was seen."""
    if not len(points):
        return np.zeros(0)
    voxels = np.floor(points / voxel_size).astype(np.int64)
    voxels -= voxels.min(0)
    numbers = np.ravel_multi_index(tuple(voxels.T), tuple(voxels.max(0) + 1))
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return 1.0 / counts[inverse.reshape(-1)]


def find_upright_planes(surface: Surface, votes: np.ndarray, voxel_size: float, min_area: float) -> list[UprightPlane]:
    """Upright planes of a surface whose world is upright, the largest first.

    A Hough vote over angle and offset finds a plane, trimmed least squares refine it, then its patches are removed.

    Args:
        votes (`np.ndarray` of shape `(N,)`): of `count_voxel_votes` with `voxel_size` metres.
        min_area (`float`): square metres; smaller planes are not looked for.
    """
    upright = np.abs(surface.normals[:, 2]) < MAX_LEAN
    points, normals, votes = surface.points[upright], surface.normals[upright, :2], votes[upright]
    normals = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    num_angles = round(360 / HOUGH_DEGREES)
    angle_bins = np.floor(np.rad2deg(np.arctan2(normals[:, 1], normals[:, 0])) / HOUGH_DEGREES).astype(np.int64)
    angle_bins %= num_angles
    angles = np.deg2rad((angle_bins + 0.5) * HOUGH_DEGREES)
    offsets = points[:, 0] * np.cos(angles) + points[:, 1] * np.sin(angles)
    if not len(offsets):
        return []
    offset_bins = np.floor((offsets - offsets.min()) / HOUGH_OFFSET).astype(np.int64)
    shape = (num_angles, offset_bins.max() + 1)
    cells = angle_bins * shape[1] + offset_bins
    free = np.ones(len(points), dtype=bool)
    planes = []
    while free.any():
        counts = np.bincount(cells[free], votes[free], minlength=shape[0] * shape[1]).reshape(shape)
        counts = counts + np.roll(counts, 1, axis=0) + np.roll(counts, -1, axis=0)
        counts = np.pad(counts, ((0, 0), (1, 1)))
        counts = counts[:, :-2] + counts[:, 1:-1] + counts[:, 2:]
        angle_bin, offset_bin = np.unravel_index(counts.argmax(), shape)
        angle = np.deg2rad((angle_bin + 0.5) * HOUGH_DEGREES)
        normal = np.array([np.cos(angle), np.sin(angle)])
        offset = offsets.min() + (offset_bin + 0.5) * HOUGH_OFFSET
        for reach in PLANE_REACH:
            near = free & (np.abs(points[:, :2] @ normal - offset) < reach) & (normals @ normal > MIN_ALIKE)
            if near.sum() < 3:
                break
            weight = votes[near] / votes[near].sum()
            middle = weight @ points[near, :2]
            spread = (points[near, :2] - middle) * np.sqrt(weight)[:, None]
            direction = np.linalg.svd(spread, full_matrices=False)[2][-1]
            normal = direction * np.sign(direction @ normal)
            offset = float(normal @ middle)
        area = float(votes[near].sum() * voxel_size**2)
        if area < min_area:
            break
        along = points[near, :2] @ np.array([-normal[1], normal[0]])
        start, end = np.quantile(along, (0.02, 0.98))
        planes.append(
            UprightPlane(normal, offset, area, float(start), float(end), float(np.quantile(points[near, 2], 0.98)))
        )
        free &= ~near
    return planes


__all__ = ["Surface", "UprightPlane", "check_depth", "count_voxel_votes", "find_upright_planes", "sample_surface"]
