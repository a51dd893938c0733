"""A scene's folder (`data/sources/rgbd_folder.py`), written once, with `scene.json`, which records its sources.

The folder is written atomically. Pictures are copied byte by byte.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ross3d.data.bev import BEVPicture
from ross3d.data.consistency import check_consistency
from ross3d.data.names import check_name
from ross3d.data.prepare.bev import write_bev
from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.data.text_files import read_json


@dataclass
class View:
    """A frame: its number, its picture as stored (JPEG), depth (h, w) uint16 millimetres, cam2world of the scan."""

    index: int
    color_jpeg: bytes
    depth_mm: np.ndarray
    cam2world: np.ndarray

    @property
    def name(self) -> str:
        return f"frame-{self.index:06d}"


def write_scene(
    path: Path,
    source: Path,
    views: Iterable[View],
    intrinsics: np.ndarray,
    axis_align_matrix: np.ndarray,
    boxes: list[dict[str, Any]] | None,
    proposals: list[list[float]] | None,
    facts: dict[str, Any],
    render: Callable[[Scene], BEVPicture],
    bev_source: str,
) -> None:
    """Write a scene's folder, read it back, check that its views agree, and add the bird's-eye picture.

    Args:
        path (`Path`): replaced if it is a scene's folder that was prepared before.
        source (`Path`): what the scene is made from, for errors.
        views: read one after the other.
        intrinsics (`(3, 3)`): pixels of the depth map. axis_align_matrix (`(4, 4)`): scan to upright world.
        boxes (*optional*): `boxes.json`, a dictionary with `box` and `object_id` an object.
        proposals (*optional*): `proposals.json`, detected boxes.
        facts (`dict`): `scene.json`.
        render: the scene -> its picture. bev_source (`str`): what that is made from.

    Raises:
        ValueError: names the fault of the scene, such as cameras that are certainly wrong (`check_consistency`, which
            only warns if they may be); also if something else is at `path`.
    """
    check_name(path.name, f"{source}")
    check_replaceable(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        for view in views:
            (part / f"{view.name}.color.jpg").write_bytes(view.color_jpeg)
            Image.fromarray(view.depth_mm).save(part / f"{view.name}.depth.png")
            _write_matrix(view.cam2world, part / f"{view.name}.pose.txt")
        _write_matrix(intrinsics, part / "camera-intrinsics.txt")
        _write_matrix(axis_align_matrix, part / "axis_align.txt")
        for name, rows in (("boxes.json", boxes), ("proposals.json", proposals)):
            if rows is not None:
                (part / name).write_text(format_rows(rows), encoding="utf-8")
        (part / "scene.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        # Errors name the final folder: the temporary one that is read will not exist any more.
        scene = replace(read_rgbd_folder(part), scene_id=path.name, path=source)
        check_consistency(scene)
        write_bev(render(scene), part, bev_source)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    except (ValueError, FileNotFoundError) as error:
        told = str(error).replace(f"{part}{os.sep}", "").replace(part.name, path.name)
        if told == str(error):
            raise
        # The error must not name the temporary files: they are gone.
        raise ValueError(f"{source}: the scene made from it is not valid: {told}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse a path that exists and is not a scene prepared before.

    Raises:
        ValueError: names it.
    """
    if path.is_symlink() or (path.exists() and not (path / "scene.json").is_file()):
        raise ValueError(
            f"--output: {path} exists and is not a prepared scene; move it away, or choose another folder."
        )


def link_scene(path: Path, other: Path) -> None:
    """Add a scene to another split by hard links, so that its files are on disk once.

    Raises:
        ValueError: where something else is at `other`.
    """
    check_replaceable(other)
    part = other.with_name(f".{other.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for file in sorted(path.iterdir()):
        os.link(file, part / file.name)
    shutil.rmtree(other, ignore_errors=True)
    os.replace(part, other)


def read_facts(path: Path) -> dict[str, Any] | None:
    """The content of a folder's `scene.json`; None if there is no such folder, and, with a warning, if the file is
    damaged: the scene is then made again.
    """
    file = path / "scene.json"
    if not file.is_file():
        return None
    try:
        return read_json(file, "the record of how the scene was made", keys=("inputs", "source", "num_frames"))
    except ValueError as error:
        warnings.warn(f"{error} The scene is prepared again.", stacklevel=2)
        return None


def _write_matrix(matrix: np.ndarray, file: Path) -> None:
    file.write_text("\n".join(" ".join(f"{value:.10g}" for value in row) for row in matrix.tolist()) + "\n")


def format_rows(rows: list[Any]) -> str:
    """A JSON list with one row per line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
