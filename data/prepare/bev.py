"""Bird's-eye pictures of all scenes of a data folder: `python -m ross3d.data.prepare bev --data DIR`.

`bev.json` records how a picture was made, so a second run makes only pictures that are missing or were made otherwise.
A picture is made from the frames' depth, from ScanNet's mesh, or from a published `view_0.jpg`, whose bounds are
unknown.
"""

import json
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ross3d.data.atomic import hold_folder, remove_leftovers, replace_file, write_text
from ross3d.data.bev import BEVPicture, render_bev, render_scene_bev
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.tables import refresh_scans_tables
from ross3d.data.sources import check_looks, list_layouts, read_scene
from ross3d.data.sources.frames import open_image
from ross3d.data.sources.inside import check_all_inside
from ross3d.data.sources.ply import Mesh, read_ply
from ross3d.data.sources.posed_images import JPEG_RINGING, PUBLISHED_BEV_NAMES
from ross3d.data.sources.scannet_objects import align_vertices, read_axis_alignment
from ross3d.data.text_files import read_json
from ross3d.data.world import require_upright
from ross3d.geometry_ross3d import get_bev_bounds


SOURCES = ("mesh", "depth", "published")
SCENE_ID = re.compile(r"scene\d{4}_\d{2}$")
# Maximum number of points sampled on a mesh: 2 GB while it is drawn. A room takes a few million.
MAX_POINTS = 40_000_000
# Maximum number of frames read to make a picture from depth.
MAX_VIEWS = 100


def sample_mesh(
    vertices: np.ndarray, colors: np.ndarray, faces: np.ndarray, spacing: float, where: str = "the mesh"
) -> tuple[np.ndarray, np.ndarray]:
    """Sample points (N, 3) and colours (N, 3) on a mesh, at most `spacing` metres apart on every triangle.

    Args:
        vertices (`(M, 3)`), colors (`(M, 3)`, uint8), faces (`(F, 3)`): vertices without a face are included.
        where (`str`): what errors call the mesh.

    Raises:
        ValueError: for triangles so large that they would take more than `MAX_POINTS` points.
    """
    corners = vertices[faces]  # (F, 3, 3)
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(1)
    steps = np.maximum(np.ceil(edges.astype(np.float64) / spacing), 1)
    num_points = len(vertices) + ((steps + 1) * (steps + 2) / 2 - 3).sum()
    if num_points > MAX_POINTS:
        raise ValueError(
            f"{where}: expected triangles that {MAX_POINTS} points fill at {spacing:.2g} m spacing, got triangles"
            f" that need {num_points:.2g}, with edges up to {edges.max():.4g} m; remove stray vertices, or render the"
            " picture from depth (--bev depth, or --from depth)."
        )
    steps = steps.astype(np.int64)
    points, shades = [vertices], [colors]
    for count in np.unique(steps[steps > 1]):
        weights = _make_lattice(int(count))
        chosen = faces[steps == count]
        points.append(np.einsum("pc,fcx->fpx", weights, vertices[chosen]).reshape(-1, 3))
        shades.append(np.einsum("pc,fcx->fpx", weights, colors[chosen].astype(np.float32)).reshape(-1, 3).round())
    return np.concatenate(points).astype(np.float32), np.concatenate(shades).astype(np.uint8)


def _make_lattice(steps: int) -> np.ndarray:
    """Barycentric weights (P, 3) of a triangle's points when its sides have `steps` steps, without its corners."""
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(steps + 1), np.arange(steps + 1), indexing="ij"))
    inside = (first + second <= steps) & (np.stack([first, second, steps - first - second]).max(0) < steps)
    weights = np.stack([first, second, steps - first - second], axis=1)[inside]
    return weights.astype(np.float32) / np.float32(steps)


def render_mesh_bev(vertices: np.ndarray, mesh: Mesh, size: int, where: str) -> BEVPicture:
    """Bird's-eye picture of a mesh, its triangles filled at half a pixel; a cloud without faces is drawn as points.

    Args:
        vertices (`(M, 3)`): those of `mesh` in the aligned world.
        where (`str`): what errors call the mesh.

    Raises:
        ValueError: for a mesh without colours, or one that takes too many points.
    """
    if mesh.colors is None:
        raise ValueError(
            f"{where}: expected vertices with red, green and blue, got {', '.join(mesh.columns)}; use a mesh with"
            " colours, or render the picture from depth (--bev depth, or --from depth)."
        )
    faces = np.zeros((0, 3), np.int64) if mesh.faces is None else mesh.faces
    bounds = get_bev_bounds(torch.from_numpy(np.asarray(vertices, np.float32)))
    spacing = float(bounds[2] - bounds[0]) / size / 2
    return render_bev(*sample_mesh(vertices, mesh.colors, faces, spacing, where), size=size)


def read_published_bev(scan: Path) -> BEVPicture:
    """The published picture of a scan's folder, `view_0.png` or `.jpg`, in its own size, void exactly black."""
    files = [scan / name for name in PUBLISHED_BEV_NAMES]
    file = next((file for file in files if file.is_file()), files[-1])
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected a published bird's-eye picture, found none; unpack it there.")
    image = np.array(open_image(file).convert("RGB"))
    valid = image.max(axis=-1) > JPEG_RINGING
    image[~valid] = 0
    return BEVPicture(image, valid, None)


def describe(source: str, size: int) -> dict[str, str | int]:
    """How a picture was made, for `bev.json`; published ones have a fixed size."""
    return {"from": source} if source == "published" else {"from": source, "size": size}


def is_made(folder: Path, source: str, size: int) -> bool:
    """Whether a scene folder already has a picture made with these settings."""
    file = folder / "bev.json"
    if not file.is_file() or not (folder / "bev.png").is_file():
        return False
    return read_json(file, "the record of how the bird's-eye picture was made", kind=dict).get("made") == describe(
        source, size
    )


def write_bev(picture: BEVPicture, folder: Path, source: str) -> None:
    """Write `bev.png` (RGBA, alpha 0 = void) and `bev.json`; a kill leaves no picture rather than half of one.

    The old picture is removed first, since its bounds may differ.
    """
    remove_leftovers(folder)
    (folder / "bev.png").unlink(missing_ok=True)
    alpha = np.where(picture.valid, 255, 0).astype(np.uint8)
    content = {
        "bounds": None if picture.bounds is None else [float(value) for value in picture.bounds],
        "made": describe(source, picture.image.shape[0]),
    }
    write_text(folder / "bev.json", json.dumps(content) + "\n")
    with replace_file(folder / "bev.png") as partial_file:
        Image.fromarray(np.dstack([picture.image, alpha])).save(partial_file, format="PNG")


def list_scans(scans: Path) -> dict[str, Path]:
    """Scene id -> folder, in `scans` itself or in the `scans` and `scans_test` of a download."""
    if not scans.is_dir():
        raise FileNotFoundError(
            f"--scans: {scans} is not a folder; give the folder that contains the sceneNNNN_NN folders."
        )
    candidates = [path for pattern in ("*", "scans/*", "scans_test/*") for path in sorted(scans.glob(pattern))]
    found = {path.name: path for path in candidates if SCENE_ID.match(path.name) and path.is_dir()}
    if not found:
        raise FileNotFoundError(f"--scans: no folder sceneNNNN_NN in {scans}; give the folder of the download.")
    return dict(sorted(found.items()))


def render_folder(
    folder: Path, source: str, size: int, scans: Path | None, reading: dict[str, Any] | None = None
) -> BEVPicture:
    """The picture of a scene's folder: from its depth maps, or of the mesh or picture in it or in its raw scan."""
    if source == "depth":
        scene = read_scene(folder, num_views=MAX_VIEWS, **({"look_at_world": False} | (reading or {})))
        require_upright(scene)
        return render_scene_bev(scene, size)
    scan = folder if scans is None else list_scans(scans).get(folder.name, scans / folder.name)
    names = [f"{folder.name}.txt", f"{folder.name}_vh_clean_2.ply", *PUBLISHED_BEV_NAMES]
    check_all_inside(scan, names, (reading or {}).get("allow_outside", False))
    if source == "published":
        return read_published_bev(scan)
    file = scan / f"{folder.name}_vh_clean_2.ply"
    mesh = read_ply(file)
    alignment = read_axis_alignment(scan / f"{folder.name}.txt")
    vertices = align_vertices(mesh.vertices, np.eye(4) if alignment is None else alignment)
    return render_mesh_bev(vertices, mesh, size, str(file))


def make_bev(folder: Path, source: str, size: int, scans: Path | None, reading: dict[str, Any] | None = None) -> bool:
    """Make a scene's picture unless it exists; returns whether it was made."""
    if is_made(folder, source, size):
        return False
    write_bev(render_folder(folder, source, size, scans, reading), folder, source)
    return True


def list_scene_folders(data_dir: Path) -> list[Path]:
    """Folders of any known layout: `data_dir` itself, those in it, or those in the folders of its splits.

    A warning names folders beside them that look like scans and are not read.

    Raises:
        FileNotFoundError: no such folder, or none of a scan in it.
        ValueError: none of a scan but one that looks like it.
    """
    if not data_dir.is_dir():
        raise FileNotFoundError(f"--data: {data_dir} is not a folder; give the data set, a split or one scene of it.")
    problems: list[str] = []
    for pattern in ("", "*", "*/*"):
        candidates = sorted(data_dir.glob(pattern)) if pattern else [data_dir]
        folders = [path for path in candidates if path.is_dir() and not path.name.startswith(".")]
        found = [path for path in folders if list_layouts(path)]
        problems += [told for path in folders if path not in found and (told := _describe_problem(path))]
        if found:
            for told in problems:
                warnings.warn(f"--data: left out: {told}", stacklevel=2)
            return found
    if problems:
        raise ValueError(f"--data: expected a folder of scans, got {len(problems)} that cannot be read: {problems[0]}")
    raise FileNotFoundError(f"--data: no folder of a scan in {data_dir}, two levels deep; prepare the scans first.")


def _describe_problem(path: Path) -> str:
    """Why a folder that looks like a scan is not read; empty for others."""
    try:
        check_looks(path)
    except ValueError as error:
        return str(error)
    return ""


def prepare_bev(
    data_dir: Path,
    source: str,
    size: int,
    scans: Path | None,
    num_workers: int,
    reading: dict[str, Any] | None = None,
) -> dict[str, int]:
    """Make the pictures of all scenes below `data_dir`; returns how many were made and how many existed.

    Args:
        reading (`dict`, *optional*): options that scans are read with, see `make_reading`.

    Raises:
        ValueError: lists the scenes whose picture could not be made, including those that are not upright, after all
            others are made.
    """
    folders = list_scene_folders(data_dir)
    job = partial(make_bev, source=source, size=size, scans=scans, reading=reading)
    with hold_folder(data_dir, option="--data"):
        made = run_jobs(job, folders, num_workers, "bird's-eye pictures", lambda path: path.name)
        refresh_scans_tables(data_dir)
    return {"made": sum(made), "there already": len(made) - sum(made)}
