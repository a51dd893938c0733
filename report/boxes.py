"""Boxes and points of a scene drawn into the views that see them best.

Shapes: V views, H W picture pixels, h w depth pixels, K boxes. Boxes are centre xyz and size xyz, metres.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from ross3d.data.scene import Scene
from ross3d.geometry_ross3d import get_box_limits, unproject
from ross3d.report.bev import DrawnBox
from ross3d.report.html import shrink


# Width of a drawn view, pixels: larger pictures are shrunk to it, smaller ones are enlarged by a whole factor.
VIEW_PIXELS = 300
# Depth is read at so many rows and columns at most, to find the views that see a box.
READINGS = 96
# Readings of a box's own surface may lie this far outside of it, metres.
SLACK = 0.03
# Nothing nearer to a camera than this is drawn, metres.
NEAREST = 0.1
DASH, GAP = 9.0, 6.0
RIM_COLOR = "#111827"
# Pairs of a box's corners, of which bit i says on which side of axis i they are, that an edge joins.
EDGES = [(a, a | bit) for a in range(8) for bit in (1, 2, 4) if not a & bit]


def count_readings(scene: Scene, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """How many depth readings of each view lie in each box, (K, V); none without depth."""
    boxes = torch.as_tensor(np.asarray(boxes, np.float64).reshape(-1, 6))
    if scene.depth_maps is None:
        return np.zeros((len(boxes), scene.num_views), int)
    height, width = scene.depth_maps.shape[1:]
    rows, columns = (torch.arange(0, size, max(1, size // READINGS)) for size in (height, width))
    depth = torch.from_numpy(np.ascontiguousarray(scene.depth_maps[:, rows][:, :, columns]))
    points = unproject(depth, torch.as_tensor(scene.intrinsics), torch.as_tensor(scene.cam2world), rows, columns)
    low, high = get_box_limits(boxes)
    counts = np.zeros((len(boxes), scene.num_views), int)
    for number in range(len(boxes)):
        inside = ((points >= low[number] - SLACK) & (points <= high[number] + SLACK)).all(dim=-1) & (depth > 0)
        counts[number] = inside.sum(dim=(1, 2)).numpy()
    return counts


def choose_views(scene: Scene, groups: Sequence[Sequence[Sequence[float]]]) -> list[int]:
    """For each group of boxes the view that sees them best, if any does: see `rate_views`."""
    rated = [rate_views(scene, boxes) for boxes in groups]
    return list(dict.fromkeys(int(rates.argmax()) for rates in rated if rates.any()))


def rate_views(scene: Scene, boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """How well each view shows boxes, (V,): the root of the readings in a box, times the share of it in the picture.

    A view from too near has many readings, but shows only a part.
    """
    rates = np.zeros(scene.num_views)
    for box, counts in zip(boxes, count_readings(scene, boxes), strict=True):
        for view in np.flatnonzero(counts):
            places = project_to_view(scene, view, get_corners(box))[:, :2]
            seen = np.clip(places, 0, 1)
            rates[view] += np.sqrt(counts[view]) * np.prod(np.ptp(seen, axis=0)) / np.prod(np.ptp(places, axis=0))
    return rates


def get_corners(box: Sequence[float]) -> np.ndarray:
    """The corners (8, 3) of a box; bit i of a corner's number says on which side of axis i it is."""
    sides = np.array([[number >> axis & 1 for axis in range(3)] for number in range(8)]) - 0.5
    box = np.asarray(box, np.float64)
    return box[:3] + sides * box[3:6]


def project_to_view(scene: Scene, view: int, points: np.ndarray) -> np.ndarray:
    """World points (N, 3) -> (N, 3): x and y in shares of the picture's width and height, and depth in metres."""
    height, width = scene.depth_maps.shape[1:]
    camera = np.broadcast_to(np.asarray(scene.intrinsics, np.float64), (scene.num_views, 3, 3))[view]
    world2cam = np.linalg.inv(np.asarray(scene.cam2world[view], np.float64))
    seen = np.asarray(points, np.float64) @ world2cam[:3, :3].T + world2cam[:3, 3]
    depth = np.maximum(seen[:, 2], NEAREST)
    # Pixel centres are integers, the edges of the picture half a pixel outside of them.
    across = (camera[0, 0] * seen[:, 0] + camera[0, 1] * seen[:, 1]) / depth + camera[0, 2] + 0.5
    down = camera[1, 1] * seen[:, 1] / depth + camera[1, 2] + 0.5
    return np.stack([across / width, down / height, seen[:, 2]], axis=1)


def list_edges(scene: Scene, view: int, box: Sequence[float]) -> list[np.ndarray]:
    """The edges of a box in front of the camera, each as two places (2, 2) in shares of the picture."""
    corners = get_corners(box)
    depths = project_to_view(scene, view, corners)[:, 2]
    edges = []
    for a, b in EDGES:
        if max(depths[a], depths[b]) <= NEAREST:
            continue
        ends = corners[[a, b]]
        for i, j in ((0, 1), (1, 0)):
            if depths[(a, b)[i]] < NEAREST:
                share = (NEAREST - depths[(a, b)[i]]) / (depths[(a, b)[j]] - depths[(a, b)[i]])
                ends[i] = ends[i] + share * (ends[j] - ends[i])
        edges.append(project_to_view(scene, view, ends)[:, :2])
    return edges


def cut_dashes(ends: np.ndarray) -> list[np.ndarray]:
    """A line (2, 2) in pixels as dashes."""
    length = float(np.linalg.norm(ends[1] - ends[0]))
    starts = np.arange(0.0, max(length, 1e-6), DASH + GAP)
    step = (ends[1] - ends[0]) / max(length, 1e-6)
    return [np.stack([ends[0] + step * at, ends[0] + step * min(at + DASH, length)]) for at in starts]


def enlarge(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) about `VIEW_PIXELS` wide."""
    factor = max(1, VIEW_PIXELS // max(image.shape[:2]))
    return shrink(image.repeat(factor, axis=0).repeat(factor, axis=1), VIEW_PIXELS)


def draw_view(
    scene: Scene, view: int, boxes: Sequence[DrawnBox] = (), points: Sequence[Sequence[float]] = (), color: str = ""
) -> np.ndarray:
    """A view (about `VIEW_PIXELS` wide) with the edges of boxes, later ones on top, and rings around points.

    Args:
        points (N, 3): metres. color (`str`): of their rings.
    """
    picture = Image.fromarray(enlarge(scene.images[view]))
    draw, size = ImageDraw.Draw(picture), np.array(picture.size, np.float64)
    for drawn in boxes:
        lines = [ends * size for ends in list_edges(scene, view, drawn.box)]
        lines = [dash for ends in lines for dash in cut_dashes(ends)] if drawn.dashed else lines
        for width, line_color in ((drawn.width + 2, RIM_COLOR), (drawn.width, drawn.color)):
            for ends in lines:
                draw.line([tuple(end) for end in ends.tolist()], fill=line_color, width=round(width))
    for across, down, depth in project_to_view(scene, view, np.reshape(points, (-1, 3))):
        if depth > NEAREST:
            x, y = across * size[0], down * size[1]
            for radius, width, ring_color in ((11, 6, RIM_COLOR), (10, 3, color)):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=ring_color, width=width)
    return np.asarray(picture)


__all__ = ["choose_views", "count_readings", "draw_view", "get_corners", "list_edges", "project_to_view"]
