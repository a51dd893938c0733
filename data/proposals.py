"""Propose class-agnostic object boxes from posed depth.

Floor, ceiling and walls are removed from an upright scene. The remaining points are grouped in several ways, since no
single one suits all objects: points linked within a distance in space, or in plan (a lamp's shade and its foot are
one), at several distances; points above and between level surfaces (a cup on a table); and each level surface down to
the floor (the table without the cup). Each grouping gives boxes. Boxes that several groupings find, and that show much
surface, come first; near duplicates are dropped. The result is deterministic.

`ross3d.data.box_files` reads boxes of external detectors. Shape letters: N points, M patches, K boxes, G groups.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from scipy import sparse

from ross3d.data.prepare.boxes import MAX_PROPOSALS
from ross3d.data.scene import Scene
from ross3d.data.surface import Surface, check_depth, count_voxel_votes, find_upright_planes, sample_surface
from ross3d.geometry_ross3d import compute_box_iou, keep_distinct, unproject


# Pixels sampled along a depth map's longer side: 2 cm apart at 3 m, as fine as the voxels below.
PIXELS_ACROSS = 160
# Metres: one point is kept of each voxel of this side, half of the smallest reach.
THIN_SIZE = 0.02
# Metres: side of the voxels that areas are counted in; the spacing of `sample_surface` patches at 4 m.
VOTE_SIZE = 0.05

# Share of the points that may lie further below the floor than this, metres: mirrors and windows cause such points.
MAX_BELOW, BELOW = 0.2, 0.3
# Metres: points this near to floor or wall belong to it; sensors err by half of that at 4 m.
FLOOR_BAND, WALL_BAND = 0.05, 0.05
# Metres: a wall is removed this far beyond its visible ends, where furniture hides it.
WALL_OVERHANG = 0.5
# Square metres: a wall is larger than a cupboard's side that happens to have nothing behind it.
MIN_WALL_AREA = 0.6
# A wall reaches this share of the height of what was seen; furniture seldom does.
MIN_WALL_REACH = 0.8
# Share of all votes that may lie behind a wall: points seen through doors.
MAX_BEHIND = 0.02
# Metres: a surface facing down above this is a ceiling, below it is the underside of furniture.
MIN_CEILING_HEIGHT = 1.9
# Square metres of ceiling that have to be seen, and metres below it that belong to it, lamps' mountings among them.
MIN_CEILING_AREA, CEILING_BAND = 0.5, 0.06

# Metres: sides of the cells that link points, from just above what sampling leaves between them to a hand's breadth,
# beyond which neighbours become one.
SPACE_REACHES = (0.04, 0.1)
PLAN_REACHES = (0.03, 0.06, 0.1)
# The same for what lies off the level surfaces, which are what joined it.
RAISED_REACHES = (0.04, 0.08)

# Cosine to straight up from which a patch is level: 18 degrees, beyond the error of a normal.
MIN_LEVEL = 0.95
# Metres and square metres: lower and smaller ones are no table, seat or shelf.
MIN_LEVEL_HEIGHT, MIN_LEVEL_AREA = 0.15, 0.05
# Metres: cells that link a level surface, wide since patches lie apart, low since boards lie close.
LEVEL_CELL = (0.08, 0.08, 0.04)
# Metres, and cells to each side: points this near to a level patch are on its surface.
ON_LEVEL_CELL, ON_LEVEL_REACH = (0.04, 0.04, 0.02), (2, 2, 1)

# Voxels, and metres along the longest side: smaller groups are noise.
MIN_GROUP_VOXELS, MIN_GROUP_SIZE = 8, 0.1
# Metres: a group that comes this near to the floor stands on it; feet are hidden, or removed with the floor.
STANDING = 0.22
# Share of a group's points dropped at each end of each axis, against outliers.
TRIM = 0.002
# IoU from which boxes agree (that at which a box counts as found), and from which they are duplicates.
AGREEING, COPIES = 0.5, 0.8


@dataclass(frozen=True)
class Proposals:
    """Boxes without names, best first.

    Attributes:
        boxes (`np.ndarray` of shape `(K, 6)`, float32): centre and size, metres, in the scene's world.
        agreement (`np.ndarray` of shape `(K,)`): share of the groupings that found the box, or one with IoU >= 0.5.
        areas (`np.ndarray` of shape `(K,)`): approximate visible surface in each box, square metres.
    """

    boxes: np.ndarray
    agreement: np.ndarray
    areas: np.ndarray

    def describe(self) -> str:
        """A one-sentence summary."""
        if not len(self.boxes):
            return "no boxes proposed: nothing was found apart from floor and walls"
        return (
            f"{len(self.boxes)} boxes proposed from depth; the groupings agree on a box by "
            f"{self.agreement.mean():.2f} on average, by {self.agreement.max():.2f} at best"
        )


def propose_boxes(scene: Scene, max_proposals: int = MAX_PROPOSALS, surface: Surface | None = None) -> Proposals:
    """Propose boxes of the objects in an upright scene, at most `max_proposals`, best first.

    Args:
        scene (`Scene`): posed depth, z up, floor at z = 0.
        surface (`Surface`, *optional*): `sample_surface(scene)`, if already computed.

    Raises:
        ValueError: without posed depth, and where much lies below the floor.
    """
    points = gather_points(scene)
    check_upright(points, scene.scene_id)
    surface = sample_surface(scene) if surface is None else surface
    points = points[~find_room(points, surface)]
    level = (surface.normals[:, 2] > MIN_LEVEL) & (surface.points[:, 2] > MIN_LEVEL_HEIGHT)
    found = rank_groupings(make_groupings(points, surface.points[level]))
    best = slice(max_proposals)
    return Proposals(found.boxes[best], found.agreement[best], found.areas[best])


def gather_points(scene: Scene) -> np.ndarray:
    """World points (N, 3) of readings, metres, one for each occupied voxel of `THIN_SIZE`: the mean of those in it."""
    check_depth(scene, "proposing boxes")
    height, width = scene.depth_maps.shape[1:]
    step = max(1, round(max(height, width) / PIXELS_ACROSS))
    depth = torch.from_numpy(np.ascontiguousarray(scene.depth_maps[:, ::step, ::step], dtype=np.float32))
    rows, columns = torch.arange(0, height, step), torch.arange(0, width, step)
    intrinsics, cam2world = torch.from_numpy(scene.intrinsics), torch.from_numpy(scene.cam2world)
    points = unproject(depth, intrinsics, cam2world, rows, columns)[depth > 0].double().numpy()
    labels = label_voxels(points, THIN_SIZE)
    counts = np.bincount(labels)
    return np.stack([np.bincount(labels, axis) / counts for axis in points.T], axis=-1)


def check_upright(points: np.ndarray, scene_id: str) -> None:
    """Refuse points (N, 3) of a scene whose floor is not at z = 0.

    Raises:
        ValueError: when more than a few lie well below.
    """
    below = float((points[:, 2] < -BELOW).mean()) if len(points) else 0.0
    if below > MAX_BELOW:
        raise ValueError(
            f"scene {scene_id!r}: expected z up and the floor at z = 0 for proposing boxes, but {100 * below:.0f} %"
            f" of the surface is more than {BELOW} m below; write an alignment into the scan's folder (python -m"
            " ross3d.data.prepare align --data FOLDER), or give your own in axis_align.txt or as axis_align_matrix=."
        )


def number_cells(points: np.ndarray, cell) -> tuple[np.ndarray, np.ndarray]:
    """A linear index (N,) for the cell of each of points (N, 3), and its strides (3,) from one cell to the next.

    Rows are padded with two empty cells, so that one or two steps never wrap around to another row.
    """
    cells = np.floor((points - points.min(0)) / cell).astype(np.int64)
    _, rows, columns = cells.max(0) + 3
    steps = np.array([rows * columns, columns, 1])
    return (cells + 1) @ steps, steps


def label_voxels(points: np.ndarray, voxel_size: float) -> np.ndarray:
    """For each point (N, 3) the number (N,) of its voxel among the occupied ones."""
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    return np.unique(number_cells(points, voxel_size)[0], return_inverse=True)[1].reshape(-1)


def link_points(points: np.ndarray, cell) -> np.ndarray:
    """Group numbers (N,) of points (N, 3): those in cells that touch, corners included, belong together.

    Args:
        cell: sides of a cell, metres: one for all axes, or three; infinite on an axis that is to be ignored.
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    numbers, steps = number_cells(points, cell)
    occupied, place = np.unique(numbers, return_inverse=True)
    links = []
    for offset in list(product((-1, 0, 1), repeat=3))[14:]:
        beside = occupied + np.dot(offset, steps)
        index = np.minimum(np.searchsorted(occupied, beside), len(occupied) - 1)
        first = np.flatnonzero(occupied[index] == beside)
        links.append(np.stack([first, index[first]]))
    first, second = np.concatenate(links, axis=1)
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(len(occupied), len(occupied)))
    return sparse.csgraph.connected_components(graph, directed=False)[1][place.reshape(-1)]


def find_room(points: np.ndarray, surface: Surface) -> np.ndarray:
    """Which points (N, 3) of an upright scene belong to floor, walls or ceiling, or lie behind them.

    A wall is an upright plane that reaches nearly as high as anything seen and has almost nothing behind it.
    """
    votes = count_voxel_votes(surface.points, VOTE_SIZE)
    room = points[:, 2] < FLOOR_BAND
    overhead = (surface.normals[:, 2] < -MIN_LEVEL) & (surface.points[:, 2] > MIN_CEILING_HEIGHT)
    if votes[overhead].sum() * VOTE_SIZE**2 > MIN_CEILING_AREA:
        room |= points[:, 2] > np.median(surface.points[overhead, 2]) - CEILING_BAND
    highest = np.quantile(points[:, 2], 0.99) if len(points) else 0.0
    for plane in find_upright_planes(surface, votes, VOTE_SIZE, MIN_WALL_AREA):
        direction = np.array([-plane.normal[1], plane.normal[0]])
        along = surface.points[:, :2] @ direction
        behind = surface.points[:, :2] @ plane.normal < plane.offset - 3 * WALL_BAND
        behind &= (along > plane.start) & (along < plane.end)
        if plane.top > MIN_WALL_REACH * highest and votes[behind].sum() < MAX_BEHIND * votes.sum():
            along = points[:, :2] @ direction
            beyond = points[:, :2] @ plane.normal < plane.offset + WALL_BAND
            room |= beyond & (along > plane.start - WALL_OVERHANG) & (along < plane.end + WALL_OVERHANG)
    return room


def find_level(points: np.ndarray, level_points: np.ndarray) -> np.ndarray:
    """Which points (N, 3) lie on level surfaces, given as patches (M, 3): within a few centimetres of one."""
    numbers, steps = number_cells(np.concatenate([points, level_points]), ON_LEVEL_CELL)
    level = np.unique(numbers[len(points) :])
    around = product(*(range(-reach, reach + 1) for reach in ON_LEVEL_REACH))
    return np.isin(numbers[: len(points)], np.add.outer(level, [np.dot(offset, steps) for offset in around]))


def count_voxels(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Occupied voxels (G,) of `VOTE_SIZE` of each of G groups: `points` (N, 3) in the order of groups, which begin at
    `starts` (G,). A group's voxels are counted from its own lowest corner."""
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(points)))
    cells = np.floor((points - np.minimum.reduceat(points, starts)[group]) / VOTE_SIZE).astype(np.int64)
    sides = cells.max(0) + 1
    numbers = np.ravel_multi_index((group, *cells.T), (len(starts), *sides))
    return np.bincount(np.unique(numbers) // sides.prod(), minlength=len(starts))


def get_group_boxes(points: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 6) and areas (G,) of groups (N,) of points (N, 3), without those that are too small.

    Flat groups get a minimum thickness, the precision of the points, so that their boxes have a volume.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ordered = points[order]
    boxes, areas = [], []
    ends = np.append(starts, len(order))[1:]
    for start, end, voxels in zip(starts, ends, count_voxels(ordered, starts), strict=True):
        if voxels < MIN_GROUP_VOXELS:
            continue
        low, high = np.quantile(ordered[start:end], (TRIM, 1 - TRIM), axis=0)
        if (high - low).max() < MIN_GROUP_SIZE:
            continue
        low[2] = 0.0 if low[2] < STANDING else low[2]
        boxes.append([*(low + high) / 2, *np.maximum(high - low, THIN_SIZE)])
        areas.append(voxels * VOTE_SIZE**2)
    return np.reshape(boxes, (-1, 6)), np.array(areas)


def get_level_boxes(level_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 6) from each level surface down to the floor, and their areas (G,)."""
    boxes, areas = get_group_boxes(level_points, link_points(level_points, LEVEL_CELL))
    chosen = (areas >= MIN_LEVEL_AREA) & (boxes[:, 2] > boxes[:, 5] / 2)
    boxes, areas = boxes[chosen], areas[chosen]
    top = boxes[:, 2] + boxes[:, 5] / 2
    boxes[:, 2], boxes[:, 5] = top / 2, top
    return boxes, areas


def make_groupings(points: np.ndarray, level_points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and areas of every way of grouping points (N, 3), given the patches (M, 3) of level surfaces."""
    if not len(points):
        return [get_level_boxes(level_points)]
    cells = [*SPACE_REACHES, *((reach, reach, np.inf) for reach in PLAN_REACHES)]
    groupings = [get_group_boxes(points, link_points(points, cell)) for cell in cells]
    raised = points[~find_level(points, level_points)]
    groupings += [get_group_boxes(raised, link_points(raised, reach)) for reach in RAISED_REACHES]
    return [*groupings, get_level_boxes(level_points)]


def rank_groupings(groupings: list[tuple[np.ndarray, np.ndarray]]) -> Proposals:
    """The boxes of all groupings, best first, near duplicates dropped.

    A box's rank is the root of its area times the sum of its overlaps with the boxes that agree with it.
    """
    boxes, areas = (np.concatenate(parts) for parts in zip(*groupings, strict=True))
    source = np.repeat(np.arange(len(groupings)), [len(found) for found, _ in groupings])
    overlaps = compute_box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    agreeing = overlaps >= AGREEING
    score = np.sqrt(areas) * (overlaps * agreeing).sum(1)
    agreement = np.array([len(np.unique(source[row])) for row in agreeing]) / len(groupings)
    kept = keep_distinct(np.argsort(-score, kind="stable"), overlaps, COPIES)
    return Proposals(boxes[kept].astype(np.float32), agreement[kept], areas[kept])


__all__ = ["Proposals", "propose_boxes"]
