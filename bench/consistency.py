"""How often views that belong together are said to disagree, and how often faults are found and named.

    python bench/consistency.py --rooms 200

Right scans: rooms with clean depth; noise of 2 % and holes; cameras that drift by 12 mm a view; one reading in twenty;
3 views; rooms seen once each. Faults are put into every tenth room. Prints a table for docs/LOG.md.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ross3d.data.consistency import Cameras, find_disagreement, get_cameras
from ross3d.data.scene import Scene
from ross3d.data.world import WorldWarning, check_world
from ross3d.scenes.build import make_scene


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def add_noise(cameras: Cameras, rng: np.random.Generator) -> Cameras:
    depth = cameras.depth_maps * (1 + rng.normal(0, 0.02, cameras.depth_maps.shape))
    return replace(cameras, depth_maps=np.where(rng.random(depth.shape) < 0.1, 0, depth))


def add_drift(cameras: Cameras, rng: np.random.Generator) -> Cameras:
    return shift(cameras, np.cumsum(rng.normal(0, 0.012, (len(cameras.cam2world), 3)), axis=0))


def shift(cameras: Cameras, by: np.ndarray) -> Cameras:
    cam2world = cameras.cam2world.copy()
    cam2world[:, :3, 3] += by
    return replace(cameras, cam2world=cam2world)


def thin_out(cameras: Cameras, rng: np.random.Generator) -> Cameras:
    kept = rng.random(cameras.depth_maps.shape) < 0.05
    return replace(cameras, depth_maps=np.where(kept, cameras.depth_maps, 0))


def take(cameras: Cameras, count: int) -> Cameras:
    return Cameras(cameras.depth_maps[:count], cameras.intrinsics[:count], cameras.cam2world[:count])


RIGHT: dict[str, Callable[[Cameras, np.random.Generator], Cameras]] = {
    "clean": lambda c, rng: c,
    "noise of 2 %, holes": add_noise,
    "drift of 12 mm a view": add_drift,
    "5 % of the readings": thin_out,
    "3 views": lambda c, rng: take(c, 3),
    "views 9 m apart": lambda c, rng: shift(take(c, 4), 9.0 * np.eye(3)[0] * np.arange(4)[:, None]),
}


def scale(cameras: Cameras, factor: float) -> Cameras:
    return shift(cameras, (factor - 1) * cameras.cam2world[:, :3, 3])


def scale_focal(cameras: Cameras, factor: float, centre: float) -> Cameras:
    intrinsics = cameras.intrinsics.copy()
    intrinsics[:, [0, 1], [0, 1]] *= factor
    intrinsics[:, :2, 2] = (intrinsics[:, :2, 2] + 0.5) * centre - 0.5
    return replace(cameras, intrinsics=intrinsics)


def turn_rotations(cameras: Cameras) -> Cameras:
    cam2world = cameras.cam2world.copy()
    cam2world[:, :3, :3] = cam2world[:, :3, :3].transpose(0, 2, 1)
    return replace(cameras, cam2world=cam2world)


def lengthen(cameras: Cameras) -> Cameras:
    v, u = np.indices(cameras.depth_maps.shape[1:])
    rays = np.stack([u, v, np.ones_like(u)], axis=-1) @ np.linalg.inv(cameras.intrinsics[0]).T
    return replace(cameras, depth_maps=cameras.depth_maps * np.linalg.norm(rays, axis=-1))


# What is wrong, and words of the reason that should be named.
FAULTS: dict[str, tuple[Callable[[Cameras], Cameras], str]] = {
    "poses inverted": (lambda c: replace(c, cam2world=np.linalg.inv(c.cam2world)), "poses are world to camera"),
    "OpenGL axes": (lambda c: replace(c, cam2world=c.cam2world @ OPENGL), "OpenGL axes"),
    "rotations transposed": (turn_rotations, "rotations are world to camera"),
    "translations x 0.6": (lambda c: scale(c, 0.6), "translations times 1."),
    "translations x 1.5": (lambda c: scale(c, 1.5), "translations times 0."),
    "translations x 1000": (lambda c: scale(c, 1000), "in millimetres"),
    "translations x 0.001": (lambda c: scale(c, 0.001), "translations times"),
    "intrinsics of half the size": (lambda c: scale_focal(c, 0.5, 0.5), "intrinsics are of a picture"),
    "focal length x 2": (lambda c: scale_focal(c, 2, 1), "focal lengths"),
    "intrinsics transposed": (lambda c: replace(c, intrinsics=c.intrinsics.transpose(0, 2, 1)), "are transposed"),
    "depth along the ray": (lengthen, "along the ray"),
    "depth x 5": (lambda c: replace(c, depth_maps=c.depth_maps * 5), "5000 units"),
    "poses in reverse order": (lambda c: replace(c, cam2world=c.cam2world[::-1]), "reverse order"),
    "poses shifted by a frame": (lambda c: replace(c, cam2world=np.roll(c.cam2world, 1, axis=0)), "frame before it"),
}


def make_room(index: int) -> Scene:
    size = ((64, 64), (96, 72), (72, 96))[index % 3]
    scene, *_ = make_scene(1234, "val", index, num_views=(6, 8, 12)[index % 3], image_size=size, bev_size=24)
    return scene


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", type=int, default=200, help="number of synthetic rooms")
    options = parser.parse_args(args)
    false_alarms, milliseconds, worlds = dict.fromkeys(RIGHT, 0), dict.fromkeys(RIGHT, 0.0), 0
    refused, named, told = (dict.fromkeys(FAULTS, 0) for _ in range(3))
    for index in range(options.rooms):
        scene = make_room(index)
        cameras = get_cameras(scene)
        for name, change in RIGHT.items():
            changed = change(cameras, np.random.default_rng(index))
            start = time.process_time()
            false_alarms[name] += find_disagreement(changed, scene.view_names[: len(changed.cam2world)]) is not None
            milliseconds[name] += 1000 * (time.process_time() - start) / options.rooms
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", WorldWarning)
            check_world(scene)
        worlds += len(caught) > 0
        for name, (spoil, reason) in FAULTS.items() if index % 10 == 0 else ():
            found = find_disagreement(spoil(cameras), scene.view_names)
            told[name] += found is not None
            named[name] += found is not None and reason in found.reason
            refused[name] += found is not None and found.certain
    print(f"| right scans, {options.rooms} each | said to disagree | ms |\n|---|---|---|")
    for name in RIGHT:
        print(f"| {name} | {false_alarms[name]} | {milliseconds[name]:.1f} |")
    print(f"\nworlds said not to be upright: {worlds} of {options.rooms}\n")
    print(f"| fault, {(options.rooms + 9) // 10} rooms each | told | rightly named | refused |\n|---|---|---|---|")
    for name in FAULTS:
        print(f"| {name} | {told[name]} | {named[name]} | {refused[name]} |")


if __name__ == "__main__":
    main()
