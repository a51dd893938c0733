"""How often a scan is called unlike the training: held-out rooms as they are, and changed in known ways.

    python bench/unlike_scans.py --model DIR --data ROOMS [--split val] [--rooms 100]

DIR has a `calibration.json` with a comparison of scans; ROOMS should not be those that decided its threshold
(`python -m ross3d.scenes.build --seed 1` makes others). For each change: the share of rooms with a warning, how often
each number was named in one, and in how many rooms the check that every reader makes (`data/consistency.py`: do views,
depth and cameras agree?) warns or refuses.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from ross3d.bench.harness import describe_run, print_line
from ross3d.data.consistency import check_consistency
from ross3d.data.likeness import compute_unlikeness
from ross3d.data.scene import Scene
from ross3d.data.sources import get_reading, read_scene
from ross3d.metrics.calibration import compute_share_interval
from ross3d.tools.calibrate import choose_evenly, list_scans
from ross3d.training.calibration import load_calibration, measure_seen
from ross3d.training.checkpoint import load_processor
from ross3d.training.loading import load_model


Change = Callable[[Scene, np.random.Generator], Scene]
# A picture that is upside down, with its camera.
TURNED = np.diag([-1.0, -1.0, 1.0, 1.0])


def change_pictures(scene: Scene, pictures: np.ndarray) -> Scene:
    return replace(scene, images=np.clip(pictures, 0, 255).astype(np.uint8))


def add_noise(scene: Scene, rng: np.random.Generator) -> Scene:
    return change_pictures(scene, scene.images + rng.normal(0, 40, scene.images.shape))


def turn_with_cameras(scene: Scene, rng: np.random.Generator) -> Scene:
    turned = scene.depth_maps[:, ::-1, ::-1].copy()
    intrinsics = np.array(scene.intrinsics, np.float64)
    height, width = turned.shape[1:]
    intrinsics[..., 0, 2] = width - 1 - intrinsics[..., 0, 2]
    intrinsics[..., 1, 2] = height - 1 - intrinsics[..., 1, 2]
    images = scene.images[:, ::-1, ::-1].copy()
    return replace(scene, images=images, depth_maps=turned, intrinsics=intrinsics, cam2world=scene.cam2world @ TURNED)


def enlarge(scene: Scene, factor: float) -> Scene:
    """The room, its furniture and the camera's height `factor` times as large."""
    cam2world = scene.cam2world.copy()
    cam2world[:, :3, 3] *= factor
    return replace(scene, depth_maps=scene.depth_maps * np.float32(factor), cam2world=cam2world)


def tilt_world(scene: Scene, degrees: float) -> Scene:
    tilt = np.eye(4)
    tilt[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix()
    return replace(scene, cam2world=tilt @ scene.cam2world)


def lose_depth(scene: Scene, rng: np.random.Generator, share: float) -> Scene:
    kept = rng.random(scene.depth_maps.shape) >= share
    return replace(scene, depth_maps=scene.depth_maps * kept)


def keep_views(scene: Scene, count: int) -> Scene:
    return replace(
        scene, images=scene.images[:count], depth_maps=scene.depth_maps[:count], cam2world=scene.cam2world[:count]
    )


CHANGES: dict[str, Change] = {
    "none": lambda scene, rng: scene,
    "a quarter as bright": lambda scene, rng: change_pictures(scene, scene.images * 0.25),
    "half as bright": lambda scene, rng: change_pictures(scene, scene.images * 0.5),
    "noise, deviation 40 of 255": add_noise,
    "noise alone": lambda scene, rng: change_pictures(scene, rng.integers(0, 256, scene.images.shape)),
    "colours exchanged": lambda scene, rng: change_pictures(scene, scene.images[..., [2, 0, 1]]),
    "pictures upside down": lambda scene, rng: change_pictures(scene, scene.images[:, ::-1, ::-1]),
    "pictures and cameras upside down": turn_with_cameras,
    "depth x 2": lambda scene, rng: replace(scene, depth_maps=scene.depth_maps * np.float32(2)),
    "depth / 2": lambda scene, rng: replace(scene, depth_maps=scene.depth_maps / np.float32(2)),
    "depth x 1.2": lambda scene, rng: replace(scene, depth_maps=scene.depth_maps * np.float32(1.2)),
    "two thirds of depth lost": lambda scene, rng: lose_depth(scene, rng, 2 / 3),
    "everything x 3": lambda scene, rng: enlarge(scene, 3.0),
    "everything x 1.5": lambda scene, rng: enlarge(scene, 1.5),
    "world tilted by 20 degrees": lambda scene, rng: tilt_world(scene, 20.0),
    "one view": lambda scene, rng: keep_views(scene, 1),
}


def is_contradictory(scene: Scene) -> bool:
    """Whether the readers' own check of a scene warns or refuses."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_consistency(scene)
        except ValueError:
            return True
    return bool(caught)


def run(folder: Path, data: Path, split: str, num_rooms: int) -> dict[str, Any]:
    calibration = load_calibration(folder)
    if calibration is None or calibration["scans"] is None:
        raise ValueError(
            f"--model {folder}: expected a calibration.json with scans; write it with `python -m"
            " ross3d.tools.calibrate RUN`."
        )
    scans = calibration["scans"]
    model, processor = load_model(folder).eval(), load_processor(folder)
    names = choose_evenly(list_scans(data, split), num_rooms)
    reading = get_reading(scans["num_views"], "exact", processor.view_size)
    warned, disagreeing, named = Counter(), Counter(), {change: Counter() for change in CHANGES}
    for place, name in enumerate(names):
        scene = read_scene(data / split / name, **reading)
        for change, apply in CHANGES.items():
            changed = apply(scene, np.random.default_rng(place))
            inputs = processor(**changed.get_inputs(), return_tensors="pt")
            unlike = compute_unlikeness(*measure_seen(model, processor, inputs, changed.cam2world), scans["training"])
            found = [number for number, value in unlike.items() if value > scans["threshold"]]
            warned[change] += bool(found)
            disagreeing[change] += is_contradictory(changed)
            named[change].update(found)
    rows = {
        change: {
            "warned": round(warned[change] / len(names), 3),
            "interval": [round(end, 3) for end in compute_share_interval(warned[change], len(names))],
            "views_disagree": round(disagreeing[change] / len(names), 3),
            "named": {number: round(count / len(names), 2) for number, count in named[change].most_common(4)},
        }
        for change in CHANGES
    }
    return {"bench": "unlike_scans", **describe_run(), "rooms": len(names), "changes": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a calibrated model")
    parser.add_argument("--data", type=Path, required=True, help="folder of rooms")
    parser.add_argument("--split", default="val", help="split of held-out rooms")
    parser.add_argument("--rooms", type=int, default=100, help="number of rooms, at most")
    options = parser.parse_args()
    print_line(run(options.model, options.data, options.split, options.rooms))


if __name__ == "__main__":
    main()
