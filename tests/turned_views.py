"""Scans of which some pictures are turned: with their depth and cameras, with their depth alone, or on their own."""

from dataclasses import replace
from functools import cache

import numpy as np

from ross3d.data.scene import Scene
from ross3d.scenes.build import make_scene
from ross3d.tests.scan_folders import lay_on_side


# Views, and (width, height) of their pictures.
SHAPES = {"wide": (12, (96, 72)), "tall": (9, (60, 88))}


@cache
def make_room(shape: str = "wide", index: int = 0) -> Scene:
    """A room in its upright world, without boxes and bird's-eye picture."""
    num_views, size = SHAPES[shape]
    scene, *_ = make_scene(seed=9, split="val", index=index, num_views=num_views, image_size=size, bev_size=48)
    return replace(scene, boxes=None, box_labels=None, bev_image=None, bev_valid=None, bev_bounds=None)


def move(scene: Scene, matrix: np.ndarray) -> Scene:
    return replace(scene, cam2world=matrix @ scene.cam2world)


def turn_some(scene: Scene, views, turns: int = 2, depth: bool = True, cameras: bool = True) -> Scene:
    """The pictures of some views after clockwise quarter turns, with their depth and cameras if so.

    The size stays, so pictures that are not square take half turns only.
    """
    height, width = scene.images.shape[1:3]
    images, depth_maps, cam2world = scene.images.copy(), scene.depth_maps.copy(), np.array(scene.cam2world)
    intrinsics = np.array(np.broadcast_to(scene.intrinsics, (scene.num_views, 3, 3)))
    for view in views:
        images[view] = np.rot90(images[view], -turns)
        if depth:
            depth_maps[view] = np.rot90(depth_maps[view], -turns)
        if cameras:
            intrinsics[view], cam2world[view] = lay_on_side(intrinsics[view], cam2world[view], (width, height), turns)
    return replace(scene, images=images, depth_maps=depth_maps, intrinsics=intrinsics, cam2world=cam2world)
