"""A scene's folder (`data/sources/rgbd_folder.py`), written once, with `scene.json`, which says what it was made of.

The folder appears at once and whole. Pictures are copied as they were stored.
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
    """Write a scene's folder, read it back as a check, see whether its views agree, and add the bird's-eye picture.

    Args:
        path (`Path`): replaced if it is a scene's folder that was prepared before.
        source (`Path`): what the scene is made of, for errors.
        views: read one after the other.
        intrinsics (`(3, 3)`): pixels of the depth map. axis_align_matrix (`(4, 4)`): scan to upright world.
        boxes (*optional*): `boxes.json`, a dictionary with `box` and `object_id` an object.
        proposals (*optional*): `proposals.json`, detected boxes.
        facts (`dict`): `scene.json`.
        render: the scene -> its picture. bev_source (`str`): what that is made from.

    Raises:
        ValueError: what is wrong with the scene, cameras that are certainly wrong among it (`check_consistency`, which
            warns of those that may be); also where something else is at `path`.
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
        # By the names that people know: the folder that it is read from will not be there.
        scene = replace(read_rgbd_folder(part), scene_id=path.name, path=source)
        check_consistency(scene)
        write_bev(render(scene), part, bev_source)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(part, path)
    except (ValueError, FileNotFoundError) as error:
        told = str(error).replace(f"{part}{os.sep}", "").replace(part.name, path.name)
        if told == str(error):
            raise
        # Nobody finds the files in which the fault showed: they are gone.
        raise ValueError(f"{source}: the scene made of it is not valid: {told}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_replaceable(path: Path) -> None:
    """Refuse a place where something else lies than a scene that was prepared before.

    Raises:
        ValueError: names it.
    """
    if path.is_symlink() or (path.exists() and not (path / "scene.json").is_file()):
        raise ValueError(
            f"--output: {path} is there and is no scene that was prepared; move it away, or choose another folder."
        )


def link_scene(path: Path, other: Path) -> None:
    """The same scene in another split: the same files, by hard links, so they are on disk once.

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
    """What `scene.json` of a folder says; None where there is no such folder, and, with a warning, where the file is
    damaged: the scene is made anew then.
    """
    file = path / "scene.json"
    if not file.is_file():
        return None
    try:
        return read_json(file, "what the scene was made of", keys=("inputs", "source", "num_frames"))
    except ValueError as error:
        warnings.warn(f"{error} The scene is made anew.", stacklevel=2)
        return None


def _write_matrix(matrix: np.ndarray, file: Path) -> None:
    file.write_text("\n".join(" ".join(f"{value:.10g}" for value in row) for row in matrix.tolist()) + "\n")


def format_rows(rows: list[Any]) -> str:
    """A JSON list with a row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
