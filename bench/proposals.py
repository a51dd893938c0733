"""How many objects of furnished rooms class-agnostic boxes find, and how long that takes.

    python bench/proposals.py [--rooms 40] [--views 32]

The rooms are none of those that the constants of `data/proposals.py` were chosen on. `recall` is the share of objects
that a box of their scene overlaps by that much, among all proposals (at most 50) and among the first ten. `exact` is
depth as rendered at 160 x 120 pixels, `sensor` the same with what a structured-light camera does to it: noise that
grows with the square of the distance, steps of its resolution, a tenth of the readings missing, none beyond 5 m.
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ross3d.bench.harness import describe_run, print_line
from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import Scene
from ross3d.geometry_ross3d import compute_box_iou
from ross3d.scenes.build import make_scene


SEED, IMAGE_SIZE = 7, (160, 120)
# Of inverse depth, 1 / metres: standard deviation (1.6 cm at 3 m) and step.
NOISE, STEP = 0.0018, 0.0028


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


def run(num_rooms: int, num_views: int) -> dict[str, Any]:
    exact = [make_scene(SEED, "train", index, num_views, IMAGE_SIZE)[0] for index in range(num_rooms)]
    sensor = [add_sensor_noise(scene, np.random.default_rng(index)) for index, scene in enumerate(exact)]
    return {
        "bench": "proposals", **describe_run(), "rooms": num_rooms, "views": num_views,
        "exact": measure(exact), "sensor": measure(sensor),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=40, help="number of synthetic rooms")
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    options = parser.parse_args()
    print_line(run(options.rooms, options.views))


if __name__ == "__main__":
    main()
