"""Boxes of whatever stands in a room, without names, from posed depth; and readers of boxes made elsewhere.

Floor, ceiling and walls are taken off an upright scene. What is left is grouped in several ways, since no single one
suits all: points linked within a reach in space, or in plan (a lamp's shade and its foot are one), at several reaches;
what is left above and between level surfaces (a cup on a table); and each level surface down to the floor (the table
without the cup). Each grouping gives boxes. Boxes that several groupings find again, and that show much surface, come
first; near copies are dropped. Nothing is drawn at random.

Shape letters: N points, K boxes, G groups.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, sparse

from ross3d.data.scene import Scene, check_boxes
from ross3d.data.surface import Surface, check_depth, count_voxel_votes, find_upright_planes, sample_surface
from ross3d.geometry_ross3d import compute_box_iou, get_box_limits, unproject


# As many proposals a scene as the published files hold.
MAX_PROPOSALS = 50
# About so many pixels along the longer side of a depth map are looked at.
PIXELS_ACROSS = 160
# Metres: points are thinned to one a voxel of this side; patches vote by voxels of the other.
THIN_SIZE, VOTE_SIZE = 0.02, 0.05
# The room: everything below the floor's band, square metres of a wall, share of the height of what was seen that a
# wall reaches, share of all votes that may lie behind it, metres taken off before it and beyond its ends.
FLOOR_BAND, MIN_WALL_AREA, MIN_WALL_REACH, MAX_BEHIND = 0.05, 0.6, 0.8, 0.02
WALL_BAND, WALL_OVERHANG = 0.05, 0.5
MIN_CEILING_HEIGHT, MIN_CEILING_AREA, CEILING_BAND = 1.9, 0.5, 0.06
# Reaches in metres at which points are linked, in space and in plan, and those of what lies off the level surfaces.
SPACE_REACHES, PLAN_REACHES, RAISED_REACHES = (0.04, 0.06, 0.1), (0.03, 0.06, 0.1), (0.04, 0.08)
# A level surface: cosine to straight up, height, area in square metres, and cells that link it, metres.
MIN_LEVEL, MIN_LEVEL_HEIGHT, MIN_LEVEL_AREA, LEVEL_CELL = 0.95, 0.15, 0.05, (0.08, 0.08, 0.04)
# Groups smaller than this are noise: voxels, and metres along the longest side.
MIN_GROUP_VOXELS, MIN_GROUP_SIZE = 8, 0.1
# A group whose lowest point is below this height stands on the floor, metres.
STANDING = 0.22
# Share of a group's points left out at each end when its limits are taken.
TRIM = 0.002
# Boxes with this overlap agree with each other; with the other one they are copies.
AGREEING, COPIES = 0.5, 0.8


@dataclass(frozen=True)
class Proposals:
    """Boxes without names, best first.

    Attributes:
        boxes (`np.ndarray` of shape `(K, 6)`, float32): centre and size, metres, in the scene's world.
        agreement (`np.ndarray` of shape `(K,)`): share of the groupings that found the box, or one with IoU >= 0.5.
        areas (`np.ndarray` of shape `(K,)`): surface that was seen in each, roughly, square metres.
    """

    boxes: np.ndarray
    agreement: np.ndarray
    areas: np.ndarray

    def describe(self) -> str:
        """One sentence for people."""
        if not len(self.boxes):
            return "no boxes proposed: nothing stands out from floor and walls"
        return (
            f"{len(self.boxes)} boxes proposed from depth; the groupings agree on a box by "
            f"{self.agreement.mean():.2f} on average, by {self.agreement.max():.2f} at best"
        )


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


def label_voxels(points: np.ndarray, voxel_size) -> np.ndarray:
    """For each point (N, 3) the number (N,) of its voxel among the occupied ones."""
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    voxels = np.floor((points - points.min(0)) / voxel_size).astype(np.int64)
    flat = np.ravel_multi_index(tuple(voxels.T), tuple(voxels.max(0) + 1))
    return np.unique(flat, return_inverse=True)[1].reshape(-1)


def link_points(points: np.ndarray, cell) -> np.ndarray:
    """Group numbers (N,) of points (N, 3): those in cells that touch, corners included, belong together.

    Args:
        cell: sides of a cell, metres: one for all axes, or three; infinite on an axis that is to be ignored.
    """
    if not len(points):
        return np.zeros(0, dtype=np.int64)
    cells = np.floor((points - points.min(0)) / np.broadcast_to(cell, 3)).astype(np.int64)
    occupied = np.zeros(cells.max(0) + 1, dtype=bool)
    occupied[tuple(cells.T)] = True
    labels, _ = ndimage.label(occupied, np.ones((3, 3, 3)))
    return labels[tuple(cells.T)] - 1


def find_room(points: np.ndarray, surface: Surface) -> np.ndarray:
    """Which points (N, 3) of an upright scene belong to floor, walls or ceiling, or lie behind them.

    A wall is an upright plane that reaches nearly as high as anything seen and has next to nothing behind it.
    """
    votes = count_voxel_votes(surface.points, VOTE_SIZE)
    room = points[:, 2] < FLOOR_BAND
    overhead = (surface.normals[:, 2] < -MIN_LEVEL) & (surface.points[:, 2] > MIN_CEILING_HEIGHT)
    if votes[overhead].sum() * VOTE_SIZE**2 > MIN_CEILING_AREA:
        room |= points[:, 2] > np.median(surface.points[overhead, 2]) - CEILING_BAND
    highest = np.quantile(points[:, 2], 0.99)
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
    if not len(points) or not len(level_points):
        return np.zeros(len(points), dtype=bool)
    size = np.array([0.04, 0.04, 0.02])
    low = np.minimum(points.min(0), level_points.min(0)) - 3 * size
    cells = np.floor((points - low) / size).astype(np.int64)
    level_cells = np.floor((level_points - low) / size).astype(np.int64)
    occupied = np.zeros(np.maximum(cells.max(0), level_cells.max(0)) + 3, dtype=bool)
    occupied[tuple(level_cells.T)] = True
    return ndimage.binary_dilation(occupied, np.ones((5, 5, 3)))[tuple(cells.T)]


def get_group_boxes(points: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 6) and areas (G,) of groups (N,) of points (N, 3), without those that are too small."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    boxes, areas = [], []
    for members in np.split(order, starts[1:]):
        voxels = len(np.unique(label_voxels(points[members], VOTE_SIZE)))
        if voxels < MIN_GROUP_VOXELS:
            continue
        low, high = np.quantile(points[members], (TRIM, 1 - TRIM), axis=0)
        if (high - low).max() < MIN_GROUP_SIZE:
            continue
        low[2] = 0.0 if low[2] < STANDING else low[2]
        boxes.append([*(low + high) / 2, *(high - low)])
        areas.append(voxels * VOTE_SIZE**2)
    return np.reshape(boxes, (-1, 6)), np.array(areas)


def get_level_boxes(level_points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (G, 6) from each level surface down to the floor, and their areas (G,)."""
    boxes, areas = get_group_boxes(level_points, link_points(level_points, LEVEL_CELL))
    large = areas >= MIN_LEVEL_AREA
    low, high = boxes[large, 2] - boxes[large, 5] / 2, boxes[large, 2] + boxes[large, 5] / 2
    boxes = boxes[large]
    boxes[:, 2], boxes[:, 5] = high / 2, high
    return boxes[low > 0], areas[large][low > 0]


def make_groupings(points: np.ndarray, level_points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Boxes and areas of every way of grouping points (N, 3), given the patches (M, 3) of level surfaces."""
    cells = [*SPACE_REACHES, *((reach, reach, np.inf) for reach in PLAN_REACHES)]
    groupings = [get_group_boxes(points, link_points(points, cell)) for cell in cells]
    raised = points[~find_level(points, level_points)]
    groupings += [get_group_boxes(raised, link_points(raised, reach)) for reach in RAISED_REACHES]
    return [*groupings, get_level_boxes(level_points)]


def compute_overlaps(boxes: np.ndarray) -> np.ndarray:
    """IoU (K, K) of boxes (K, 6) with each other."""
    boxes = torch.from_numpy(boxes)
    return compute_box_iou(boxes, boxes).numpy()


def rank_groupings(groupings: list[tuple[np.ndarray, np.ndarray]]) -> Proposals:
    """The boxes of all groupings, best first, near copies dropped.

    A box's rank is the root of its area times the sum of its overlaps with the boxes that agree with it.
    """
    boxes, areas = (np.concatenate(parts) for parts in zip(*groupings, strict=True))
    source = np.repeat(np.arange(len(groupings)), [len(found) for found, _ in groupings])
    overlaps = compute_overlaps(boxes)
    agreeing = overlaps >= AGREEING
    score = np.sqrt(areas) * (overlaps * agreeing).sum(1)
    agreement = np.array([len(np.unique(source[row])) for row in agreeing]) / len(groupings)
    kept: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        if not (overlaps[index, kept] >= COPIES).any():
            kept.append(int(index))
    return Proposals(boxes[kept].astype(np.float32), agreement[kept], areas[kept])


def propose_boxes(scene: Scene, max_proposals: int = MAX_PROPOSALS) -> Proposals:
    """Boxes of what stands in an upright scene, at most `max_proposals`, best first.

    Args:
        scene (`Scene`): posed depth, z up, floor at z = 0.

    Raises:
        ValueError: without posed depth.
    """
    points, surface = gather_points(scene), sample_surface(scene)
    points = points[~find_room(points, surface)]
    level = (surface.normals[:, 2] > MIN_LEVEL) & (surface.points[:, 2] > MIN_LEVEL_HEIGHT)
    found = rank_groupings(make_groupings(points, surface.points[level]))
    best = slice(max_proposals)
    return Proposals(found.boxes[best], found.agreement[best], found.areas[best])
