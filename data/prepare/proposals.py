"""Proposals for all scenes of a data folder or one scan: `python -m ross3d.data.prepare proposals --data DIR`.

A scene's `proposals.json` is made from its depth, from a detector's masks over the vertices of its mesh, or from a
list of boxes. An existing file stays unless --force is given, since benchmarks are scored on it.
"""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.atomic import hold_folder, remove_leftovers, write_text
from ross3d.data.box_files import check_box_file, read_box_list, read_mask3d
from ross3d.data.prepare.bev import MAX_VIEWS, list_scene_folders
from ross3d.data.prepare.mask_files import read_mask_boxes
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.scene_folder import format_rows
from ross3d.data.prepare.tables import refresh_scans_tables
from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import check_scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.ply import read_ply
from ross3d.data.sources.scannet_objects import align_vertices
from ross3d.data.world import VIEWS, require_upright


@dataclass(frozen=True)
class ProposalSource:
    """Where proposals come from: depth, unless one of the first two is given.

    Attributes:
        masks (`Path`, *optional*): a folder with `SCENE.mask.npz` or Mask3D's `SCENE.txt`, or such a file.
        boxes (`Path`, *optional*): a JSON file of boxes, by scene where there are several.
        scans (`Path`, *optional*): where the meshes are, in folders named as the scenes; else in the scenes' own.
        reading (`dict`): options that scans are read with, see `make_reading`.
    """

    masks: Path | None = None
    boxes: Path | None = None
    scans: Path | None = None
    reading: dict[str, Any] = field(default_factory=dict)


def find_masks(masks: Path, scene_id: str) -> Path:
    """The file of a scene's masks."""
    if not masks.is_dir():
        return masks
    files = [masks / f"{scene_id}{suffix}" for suffix in (".mask.npz", ".txt")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"--masks: expected {files[0].name} or {files[1].name} in {masks}, found neither; add the masks of this"
            " scene, or give --data without it."
        )
    return found[0]


def find_mesh(folder: Path, source: ProposalSource, masks: Path) -> Path:
    """The mesh or cloud of a scene: among its raw files, else next to its masks."""
    places = [folder if source.scans is None else source.scans / folder.name, masks.parent]
    files = [place / f"{folder.name}{suffix}" for place in places for suffix in ("_vh_clean_2.ply", ".ply")]
    found = [file for file in files if file.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder.name}: expected the mesh of the masks, one of {[str(file) for file in files]}; copy it there,"
            " or give the folder of the scans with --scans."
        )
    return found[0]


def get_alignment(folder: Path, reading: dict[str, Any]) -> np.ndarray:
    """Scan to upright world (4, 4), as the reader of the folder's layout applies it.

    Raises:
        ValueError: of `require_upright`.
    """
    scene = read_scene(folder, num_views=VIEWS, **({"look_at_world": False} | reading))
    require_upright(scene)
    matrix = scene.axis_align_matrix
    return np.eye(4) if matrix is None else matrix


def make_boxes(folder: Path, source: ProposalSource) -> list[list[float]]:
    """The proposals of a scene, best first: lists of centre and size, metres, in its upright world."""
    if source.boxes is not None:
        boxes = read_box_list(source.boxes, folder.name)
        # Refuse boxes that the readers would refuse, before they are written.
        scene = read_scene(folder, num_views=MAX_VIEWS, **({"look_at_world": False} | source.reading))
        try:
            check_scene(replace(scene, proposal_boxes=boxes))
        except ValueError as error:
            raise ValueError(f"{source.boxes}: the boxes are not valid: {error}") from error
        return boxes.tolist()
    if source.masks is None:
        scene = read_scene(folder, num_views=MAX_VIEWS, **({"look_at_world": False} | source.reading))
        require_upright(scene)
        boxes = propose_boxes(scene).boxes
        return boxes.astype(np.float64).round(4).tolist()
    masks = find_masks(source.masks, folder.name)
    mesh = read_ply(find_mesh(folder, source, masks), only_vertices=True)
    vertices = align_vertices(mesh.vertices, get_alignment(folder, source.reading))
    if masks.suffix == ".npz":
        return [box for box in read_mask_boxes(masks, vertices) if box is not None]
    allow_outside = source.reading.get("allow_outside", False)
    return read_mask3d(masks, vertices, allow_outside=allow_outside).boxes.tolist()


def make_proposals(folder: Path, source: ProposalSource, force: bool) -> bool:
    """Make a scene's `proposals.json` unless it has one; returns whether it was made."""
    file = folder / "proposals.json"
    if file.is_file() and not force:
        return False
    try:
        boxes = make_boxes(folder, source)
    except ValueError as error:
        if file.is_file() and str(error).startswith(f"proposal_boxes of scene {folder.name!r}"):
            raise ValueError(
                f"{error} This error is about {file}: move it away and run this command again."
            ) from error
        raise
    remove_leftovers(folder)
    write_text(file, format_rows(boxes))
    return True


def prepare_proposals(data_dir: Path, source: ProposalSource, force: bool, num_workers: int) -> dict[str, int]:
    """Make the proposals of all scenes below `data_dir`; returns how many were made and how many existed.

    Raises:
        FileNotFoundError, ValueError: the options are wrong; or lists the scenes that failed, including those that are
            not upright, after all others are made.
    """
    folders = list_scene_folders(data_dir)
    if source.masks is not None and not source.masks.exists():
        raise FileNotFoundError(
            f"--masks: expected the folder of the masks or one file, found nothing at {source.masks}; correct the"
            " path."
        )
    if source.masks is not None and source.masks.is_file() and len(folders) > 1:
        raise ValueError(
            f"--masks: expected masks of {len(folders)} scenes (--data), got those of one scene, {source.masks}; give"
            " the folder of the masks, or one scene as --data."
        )
    if source.boxes is not None:
        check_box_file(source.boxes, [folder.name for folder in folders])
    job = partial(make_proposals, source=source, force=force)
    with hold_folder(data_dir, option="--data"):
        made = run_jobs(job, folders, num_workers, "proposals", lambda path: path.name)
        refresh_scans_tables(data_dir)
    return {"made": sum(made), "there already": len(made) - sum(made)}
