"""Boxes as `data/proposals.py` would propose them from depth, drawn for the objects of a scene without its depth.

The tables are quantiles measured on proposals of 200 synthetic rooms seen in 8 views of 64 x 64 pixels
(`python bench/proposals.py --statistics`, docs/LOG.md, which says what each name counts). A draw interpolates between
them. Shape letters: N draws, K objects, P boxes.
"""

import numpy as np
import torch

from ross3d.data.prepare.boxes import MAX_PROPOSALS
from ross3d.data.proposals import AGREEING, COPIES, THIN_SIZE
from ross3d.geometry_ross3d import compute_box_iou, keep_distinct


LEVELS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)

# Shares of objects that no, one, two and three boxes match.
MATCHES = (0.062, 0.547, 0.331, 0.06)
# Shares of an object's parts that touch a side, its bottom and its top.
TOUCHING = {"sides": 0.182, "bottom": 0.498, "top": 0.218}
# Averages of a room: boxes that hold an object and its neighbour, and boxes too large for their object.
MERGED, POOR = 0.31, 0.33
# Metres: no box of a wall reaches higher.
HIGHEST = 2.8
TABLES = {
    # How far faces are shifted towards the object's middle, as a share of its size.
    "first sides": (-0.001, -0.001, -0.001, 0.0, 0.003, 0.02, 0.067, 0.127, 0.238),
    "first bottom": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "first top": (-0.001, -0.001, 0.0, 0.0, 0.0, 0.003, 0.014, 0.023, 0.113),
    "further sides": (-0.109, -0.001, -0.001, 0.0, 0.009, 0.076, 0.217, 0.292, 0.414),
    "further bottom": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.425, 0.426, 0.431),
    "further top": (-0.463, -0.012, -0.008, 0.0, 0.0, 0.137, 0.377, 0.398, 0.413),
    # Number, and extents as shares of the object's size.
    "parts of an object": (0.0, 1.0, 1.0, 3.0, 5.0, 7.0, 10.0, 12.0, 15.27),
    "part width": (0.013, 0.034, 0.065, 0.138, 0.332, 0.621, 0.895, 0.977, 0.999),
    "part height": (0.013, 0.068, 0.126, 0.244, 0.416, 0.655, 0.969, 1.0, 1.0),
    # Boxes of walls, floors and what lies between objects: number, metres, place in the objects' common box.
    "rests of a room": (0.0, 0.0, 0.0, 1.0, 3.0, 6.0, 12.0, 14.05, 17.02),
    "rest width": (0.02, 0.02, 0.02, 0.02, 0.2, 0.619, 1.572, 2.45, 3.839),
    "rest height": (0.02, 0.02, 0.02, 0.066, 0.421, 1.479, 2.329, 2.573, 2.746),
    "rest bottom": (0.0, 0.0, 0.0, 0.0, 0.835, 1.799, 2.601, 2.681, 2.766),
    "rest place": (-0.104, -0.019, -0.012, 0.05, 0.496, 0.922, 1.01, 1.034, 1.169),
}

# Draws of a box that is wanted with or without a given overlap; without success it is left out.
TRIES = 12


def simulate_proposals(objects: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Boxes (P, 6), float32, in random order, that may match an object several times or not at all.

    Args:
        objects (`np.ndarray` of shape `(K, 6)`): centre and size, metres.
        rng: the same state gives the same boxes.
    """
    objects = np.asarray(objects, np.float64)
    if not len(objects):
        return np.zeros((0, 6), np.float32)
    low, high = objects[:, :3] - objects[:, 3:] / 2, objects[:, :3] + objects[:, 3:] / 2
    whole = [box for pair in zip(low, high, strict=True) for box in draw_matches(*pair, rng)]
    whole += [draw_merged(low, high, rng) for _ in range(rng.poisson(MERGED))]
    whole += [draw_poor(low, high, rng) for _ in range(rng.poisson(POOR))]
    parts = [draw_parts(*pair, rng) for pair in zip(low, high, strict=True)]
    pieces = rng.permutation(np.concatenate([*parts, draw_rests(low, high, rng)]))
    limits = np.concatenate([np.reshape(whole, (-1, 6)), pieces])
    boxes = to_boxes(limits)
    overlaps = compute_overlaps(boxes, boxes)
    kept = keep_distinct(range(len(boxes)), overlaps, COPIES)[:MAX_PROPOSALS]
    return rng.permutation(boxes[kept]).astype(np.float32)


def draw(name: str, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers with the quantiles of a table, none beyond its ends."""
    return np.interp(rng.random(shape), LEVELS, TABLES[name])


def to_boxes(limits: np.ndarray) -> np.ndarray:
    """Centre and size (N, 6) of lowest and highest corners (N, 6); flat ones get the thickness of real proposals."""
    low, high = limits[:, :3], limits[:, 3:]
    return np.concatenate([(low + high) / 2, np.maximum(high - low, THIN_SIZE)], axis=1)


def compute_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU (P, K) of boxes (P, 6) and (K, 6)."""
    return compute_box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()


def shift_faces(low: np.ndarray, high: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Limits (`TRIES`, 6) of an object (3,), (3,) with its faces shifted as those of `first` or `further` matches."""
    sides, bottom, top = (
        draw(f"{kind} {face}", rng, TRIES, n) for face, n in (("sides", 4), ("bottom", 1), ("top", 1))
    )
    inwards = np.concatenate([sides[:, :2], bottom, -sides[:, 2:], -top], axis=1)
    return np.concatenate([low, high]) + inwards * np.tile(high - low, 2)


def draw_matches(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The limits (6,) of the boxes that match an object: one near it, and some that differ from it and each other."""
    count = rng.choice(len(MATCHES), p=MATCHES)
    first = shift_faces(low, high, "first", rng)
    further = shift_faces(low, high, "further", rng)
    item = to_boxes(np.concatenate([low, high])[None])
    found: list[np.ndarray] = []
    for drawn in (first, *[further] * (count - 1)) if count else ():
        boxes = to_boxes(drawn)
        fits = compute_overlaps(boxes, item)[:, 0] >= AGREEING
        if found:
            fits &= compute_overlaps(boxes, to_boxes(np.stack(found))).max(1) < COPIES
        found += list(drawn[fits][:1])
    return found


def draw_merged(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The limits (6,) of a box around one of the objects, (K, 3) and (K, 3), and the nearest other one."""
    chosen = rng.integers(len(low))
    gaps = np.maximum(low - high[chosen], low[chosen] - high).max(1)
    gaps[chosen] = np.inf
    both = [chosen, gaps.argmin()]
    return np.concatenate([low[both].min(0), high[both].max(0)])


def draw_poor(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The limits (6,) of one of the objects, lengthened on one side until it fills a quarter to half of the box."""
    chosen, axis, side = rng.integers(len(low)), rng.integers(2), rng.integers(2)
    share = rng.uniform(AGREEING / 2, AGREEING)
    limits = np.concatenate([low[chosen], high[chosen]])
    limits[axis + 3 * side] += (-1, 1)[side] * (1 / share - 1) * (high - low)[chosen, axis]
    return limits


def draw_parts(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Limits (N, 6) of parts of an object, none of which matches it."""
    count = round(float(draw("parts of an object", rng)))
    extents = np.concatenate([draw("part width", rng, count, 2), draw("part height", rng, count, 1)], axis=1)
    extents = extents[extents.prod(1) < AGREEING]
    where = rng.random(extents.shape)
    at_low, at_high = ([TOUCHING["sides"]] * 2 + [TOUCHING[face]] for face in ("bottom", "top"))
    place = (where - at_low) / (1 - np.add(at_low, at_high))
    start = np.clip(place, 0, 1) * (1 - extents)
    return np.concatenate([low + start * (high - low), low + (start + extents) * (high - low)], axis=1)


def draw_rests(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Limits (N, 6) of boxes of no object, among and around objects (K, 3), (K, 3)."""
    count = round(float(draw("rests of a room", rng)))
    sizes = np.concatenate([draw("rest width", rng, count, 2), draw("rest height", rng, count, 1)], axis=1)
    common, extent = low.min(0)[:2], (high.max(0) - low.min(0))[:2]
    middle = common + draw("rest place", rng, count, 2) * extent
    bottom = draw("rest bottom", rng, count)
    top = np.minimum(bottom + sizes[:, 2], HIGHEST)
    limits = np.column_stack([middle - sizes[:, :2] / 2, bottom, middle + sizes[:, :2] / 2, top])
    strays = compute_overlaps(to_boxes(limits), to_boxes(np.concatenate([low, high], axis=1))).max(1) < AGREEING / 2
    return limits[strays]


__all__ = ["compute_overlaps", "simulate_proposals"]
