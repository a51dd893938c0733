"""A tiny checkpoint and a few rooms of our own on disk, made once for all tests of a process."""

import tempfile
from functools import cache
from pathlib import Path

from ross3d.scenes.build import build_scenes
from ross3d.tools.make_tiny import make_tiny_checkpoint


@cache
def get_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="ross3d-tests-")


@cache
def get_checkpoint(system: str = "ross3d") -> Path:
    """A system's checkpoint of random weights with its teacher or geometry encoder."""
    return make_tiny_checkpoint(
        Path(get_folder().name) / ("checkpoint" if system == "ross3d" else system), system=system
    )


@cache
def get_rooms() -> Path:
    """Ten training rooms and three held-out ones, six views of 64 pixels each."""
    path = Path(get_folder().name) / "rooms"
    build_scenes(path, num_train=10, num_val=3, num_views=6, bev_size=64, workers=1)
    return path
