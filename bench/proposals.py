"""How many objects of furnished rooms class-agnostic boxes find, how long that takes, and what the boxes are like.

    python bench/proposals.py [--rooms 40] [--views 32]
    python bench/proposals.py --statistics [--rooms 200] [--views 8]

The rooms are none of those that the constants of `data/proposals.py` were chosen on. `recall` is the share of objects
that a box of their scene overlaps by that much, among all proposals (at most 50) and among the first ten. `exact` is
depth as rendered at 160 x 120 pixels, `sensor` the same with what a structured-light camera does to it: noise that
grows with the square of the distance, steps of its resolution, a tenth of the readings missing, none beyond 5 m.

`--statistics` describes the boxes proposed from 64 x 64 pixels, as in the demo's rooms, and, beside them, those that
`data/simulated_proposals.py` draws for the same objects; its constants are `quantiles` of the first. A box is the
first of these that it fits: a `match` of an object (IoU at least 0.5; its best one is the `first`, others are
`further`), `merged` (it holds at least half of each of several objects), a `part` (at least half of it lies in an
object), `poor` (IoU at least 0.25), or `rest` (walls, floors and the space between). `stray` is the share of boxes
that overlap no object by 0.25. Shifts are of faces towards the object's middle, as a share of its size; places are
within the objects' common box, from 0 to 1.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ross3d.bench.harness import describe_run, print_line
from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import Scene
from ross3d.data.simulated_proposals import LEVELS, simulate_proposals
from ross3d.geometry_ross3d import compute_box_iou
from ross3d.scenes.build import make_scene


SEED, IMAGE_SIZE = 7, (160, 120)
# Of the demo's rooms.
SMALL_IMAGE = (64, 64)
# Of inverse depth, 1 / metres: standard deviation (1.6 cm at 3 m) and step.
NOISE, STEP = 0.0018, 0.0028
KINDS = ("match", "merged", "part", "poor", "rest")
# Columns of shifts.
FACES = {"sides": [0, 1, 3, 4], "bottom": [2], "top": [5]}
# Share of an object's side from which a part fills all of it, and touches both faces: those are not counted. A part
# touches a face from which it stays away less than the rest of that share.
WHOLE = 0.98


def add_sensor_noise(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene as a structured-light camera would have seen it."""
    inverse = 1 / np.maximum(scene.depth_maps, 0.1) + rng.normal(0, NOISE, scene.depth_maps.shape)
    depth = 1 / np.maximum(np.round(inverse / STEP) * STEP, STEP)
    lost = (rng.random(depth.shape) < 0.1) | (depth > 5) | (scene.depth_maps == 0)
    return replace(scene, depth_maps=np.where(lost, 0, depth).astype(np.float32))


def get_best_overlaps(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """IoU (K,) of each of objects (K, 6) with that of boxes (P, 6) which overlaps it most; 0 without boxes."""
    if not len(boxes):
        return np.zeros(len(objects))
    return compute_box_iou(torch.from_numpy(boxes), torch.from_numpy(objects)).amax(0).numpy()


def measure(scenes: list[Scene]) -> dict[str, Any]:
    """Figures of proposals for scenes with their objects' boxes."""
    seconds, counts, overlaps, first = [], [], [], []
    for scene in scenes:
        begin = time.perf_counter()
        found = propose_boxes(scene)
        seconds.append(time.perf_counter() - begin)
        counts.append(len(found.boxes))
        overlaps.append(get_best_overlaps(found.boxes, scene.boxes))
        first.append(get_best_overlaps(found.boxes[:10], scene.boxes))
    best, best_of_ten = np.concatenate(overlaps), np.concatenate(first)
    return {
        "objects": len(best),
        "recall@0.25": round(float((best >= 0.25).mean()), 3),
        "recall@0.5": round(float((best >= 0.5).mean()), 3),
        "recall@0.5_of_ten": round(float((best_of_ten >= 0.5).mean()), 3),
        "boxes_a_scene": round(statistics.mean(counts), 1),
        "seconds_a_scene": round(statistics.median(seconds), 2),
    }


def get_limits(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2


def compute_overlaps(boxes: np.ndarray, objects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IoU (P, K) of boxes (P, 6) with objects (K, 6), the shares of the boxes in the objects, and the other way."""
    (low, high), (object_low, object_high) = get_limits(boxes), get_limits(objects)
    sides = np.minimum(high[:, None], object_high) - np.maximum(low[:, None], object_low)
    shared = np.clip(sides, 0, None).prod(-1)
    volumes, object_volumes = boxes[:, None, 3:].prod(-1), objects[:, 3:].prod(-1)
    return shared / (volumes + object_volumes - shared), shared / volumes, shared / object_volumes


def tell_kinds(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The place in `KINDS` (P,) of each of boxes (P, 6) among objects (K, 6)."""
    overlaps, inside, covered = compute_overlaps(boxes, objects)
    best = overlaps.max(1)
    tests = (best >= 0.5, (covered >= 0.5).sum(1) > 1, inside.max(1) >= 0.5, best >= 0.25)
    return np.select(tests, range(4), 4)


def get_shifts(boxes: np.ndarray, item: np.ndarray) -> np.ndarray:
    """How far (P, 6) each face of boxes (P, 6) is shifted towards the middle of an object (6,), in its sizes."""
    low, high = get_limits(boxes)
    item_low, item_high = item[:3] - item[3:] / 2, item[:3] + item[3:] / 2
    return np.concatenate([low - item_low, item_high - high], axis=1) / np.tile(item[3:], 2)


def describe_errors(shifts: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of the errors of centre and size on each axis, in the object's sizes."""
    if not len(shifts):
        return {}
    errors = {"centre": (shifts[:, :3] - shifts[:, 3:]) / 2, "size": -shifts[:, :3] - shifts[:, 3:]}
    return {
        f"{name} {statistic.__name__}": statistic(values, axis=0).round(3).tolist()
        for name, values in errors.items()
        for statistic in (np.mean, np.std)
    }


def describe_boxes(sets: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Statistics of boxes (P, 6) and objects (K, 6) of several rooms."""
    kinds, matches, parts, stray, found = [], [], [], [], []
    shifts: dict[str, list[np.ndarray]] = {"first": [], "further": []}
    extents, touching, sizes, bottoms, places = [], [], [], [], []
    for boxes, objects in ((np.asarray(b, np.float64), np.asarray(o, np.float64)) for b, o in sets):
        overlaps, inside, _ = compute_overlaps(boxes, objects)
        kind = tell_kinds(boxes, objects)
        kinds.append(np.bincount(kind, minlength=len(KINDS)))
        stray.append(overlaps.max(1) < 0.25)
        found.append(overlaps.max(0) >= 0.5)
        nearest = inside.argmax(1)
        for place, item in enumerate(objects):
            order = np.argsort(-overlaps[:, place], kind="stable")
            order = order[overlaps[order, place] >= 0.5]
            shifts["first"].append(get_shifts(boxes[order[:1]], item))
            shifts["further"].append(get_shifts(boxes[order[1:]], item))
            matches.append(len(order))
            mine = boxes[(kind == KINDS.index("part")) & (nearest == place)]
            parts.append(len(mine))
            cut = np.clip(get_shifts(mine, item), 0, 1)
            extents.append(1 - cut[:, :3] - cut[:, 3:])
            touching.append(np.where(np.tile(extents[-1], 2) < WHOLE, cut < 1 - WHOLE, np.nan))
        rest = boxes[kind == KINDS.index("rest")]
        low, high = get_limits(objects)
        low, high = low.min(0), high.max(0)
        sizes.append(rest[:, 3:])
        bottoms.append(rest[:, 2] - rest[:, 5] / 2)
        places.append((rest[:, :2] - low[:2]) / (high - low)[:2])
    kinds, extents, sizes, places = np.array(kinds), *map(np.concatenate, (extents, sizes, places))
    faces = {name: np.concatenate(rows) for name, rows in shifts.items()}
    total, touches = kinds.sum(1), np.concatenate(touching)

    def cut(values: np.ndarray) -> list[float]:
        # Adding 0 turns -0 into 0.
        return (np.quantile(values, LEVELS).round(3) + 0.0).tolist() if np.size(values) else []

    return {
        "rooms": len(kinds),
        "objects_a_room": round(len(matches) / len(kinds), 2),
        "boxes_a_room": round(float(total.mean()), 1),
        "boxes_a_room_sd": round(float(total.std()), 1),
        "recall@0.5": round(float(np.concatenate(found).mean()), 3),
        "stray": round(float(np.concatenate(stray).mean()), 3),
        "kinds_a_room": dict(zip(KINDS, kinds.mean(0).round(2).tolist(), strict=True)),
        "matches_an_object": (np.bincount(np.minimum(matches, 3), minlength=4) / len(matches)).round(3).tolist(),
        "errors_xyz": {name: describe_errors(rows) for name, rows in faces.items()},
        "touching": {
            name: round(float((touches[:, columns] == 1).sum() / max((touches[:, columns] >= 0).sum(), 1)), 3)
            for name, columns in FACES.items()
        },
        "quantiles": {
            **{
                f"{name} {face}": cut(rows[:, columns])
                for name, rows in faces.items()
                for face, columns in FACES.items()
            },
            "parts of an object": cut(parts),
            "part width": cut(extents[:, :2]),
            "part height": cut(extents[:, 2]),
            "rests of a room": cut(kinds[:, KINDS.index("rest")]),
            "rest width": cut(sizes[:, :2]),
            "rest height": cut(sizes[:, 2]),
            "rest bottom": cut(np.concatenate(bottoms)),
            "rest place": cut(places),
        },
    }


def make_rooms(num_rooms: int, num_views: int, image_size: tuple[int, int]) -> list[Scene]:
    return [make_scene(SEED, "train", index, num_views, image_size)[0] for index in range(num_rooms)]


def run(num_rooms: int, num_views: int) -> dict[str, Any]:
    exact = make_rooms(num_rooms, num_views, IMAGE_SIZE)
    sensor = [add_sensor_noise(scene, np.random.default_rng(index)) for index, scene in enumerate(exact)]
    return {
        "bench": "proposals", **describe_run(), "rooms": num_rooms, "views": num_views,
        "exact": measure(exact), "sensor": measure(sensor),
    }  # fmt: skip


def run_statistics(num_rooms: int, num_views: int) -> dict[str, Any]:
    """Statistics and processor time of proposals from depth, and of those simulated for the same rooms."""
    scenes = make_rooms(num_rooms, num_views, SMALL_IMAGE)
    begin = time.process_time()
    real = [(propose_boxes(scene).boxes, scene.boxes) for scene in scenes]
    middle = time.process_time()
    drawn = [
        (simulate_proposals(scene.boxes, np.random.default_rng(index)), scene.boxes)
        for index, scene in enumerate(scenes)
    ]
    seconds = (middle - begin) / num_rooms, (time.process_time() - middle) / num_rooms
    return {
        "bench": "proposals, statistics", **describe_run(), "rooms": num_rooms, "views": num_views,
        "processor_seconds_a_room": [round(value, 4) for value in seconds],
        "levels": LEVELS, "depth": describe_boxes(real), "simulated": describe_boxes(drawn),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statistics", action="store_true", help="describe the boxes rather than time them")
    parser.add_argument("--rooms", type=int, help="number of synthetic rooms (default: 40; 200 with --statistics)")
    parser.add_argument("--views", type=int, help="number of views of a room (default: 32; 8 with --statistics)")
    options = parser.parse_args()
    if options.statistics:
        print_line(run_statistics(options.rooms or 200, options.views or 8))
    else:
        print_line(run(options.rooms or 40, options.views or 32))


if __name__ == "__main__":
    main()
