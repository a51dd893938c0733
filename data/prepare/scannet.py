"""Raw ScanNet scans and official annotations -> our layout: `python -m ross3d.data.prepare scannet`.

    OUTPUT/{train,val,test}/SCENE/          sampled views, boxes, proposals, picture from above, scene.json
    OUTPUT/annotations/SPLIT.parquet        questions (data/annotations.py)
    OUTPUT/scans/SPLIT.parquet, README.md   the table of scans, and the card that `datasets` reads
    OUTPUT/processed/, OUTPUT/metadata/     with --published: the public records and box files
    OUTPUT/account.json                     what was made and what was left out and why; written last

A scan belongs to the splits whose lists (`scannetv2_SPLIT.txt`) or annotations name it; in a second one it is the same
files. Every scene depends on its own raw files alone, so a run that was cut off goes on and ends with the same bytes.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from ross3d.data.bev import BEVPicture, render_scene_bev
from ross3d.data.prepare.boxes import MAX_PROPOSALS, make_box, make_mask_boxes
from ross3d.data.prepare.finish import Finished, check_settings, finish, hash_file, hash_text
from ross3d.data.prepare.from_above import render_mesh_bev
from ross3d.data.prepare.official_set import SPLITS, OfficialSet, make_public_files, read_official
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.scene_folder import View, link_scene, read_facts, remove_parts, write_scene
from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene
from ross3d.data.sources.scannet import FRAME_STEP, find_labels_file, read_mesh_with_segments
from ross3d.data.sources.scannet_objects import (
    align_vertices,
    get_nyu40_id,
    label_vertices,
    read_axis_alignment,
    read_nyu40_ids,
    read_segment_groups,
)
from ross3d.data.sources.sens import iterate_sens_frames, read_sens_cameras


# Raise when the same raw files would give other bytes.
VERSION = 1
SCENE_ID = re.compile(r"scene\d{4}_\d{2}$")
SUFFIXES = (".sens", ".txt", "_vh_clean_2.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json")


@dataclass(frozen=True)
class ScanSettings:
    """How scans become scenes.

    Attributes:
        num_views (`int`): views of a scene, evenly spread over the frames with a pose among every tenth.
        bev_source (`str`): `"mesh"` or `"depth"`. bev_size (`int`): pixels of the picture from above.
    """

    num_views: int = 32
    bev_source: str = "mesh"
    bev_size: int = 432


@dataclass(frozen=True)
class ScanJob:
    """One scan: its raw folder, its mask file, the splits it belongs to."""

    scan: Path
    masks: Path | None
    splits: tuple[str, ...]

    @property
    def scene_id(self) -> str:
        return self.scan.name


def list_scans(scans: Path) -> dict[str, Path]:
    """Scene id -> folder, in `scans` itself or in the `scans` and `scans_test` of a download."""
    if not scans.is_dir():
        raise FileNotFoundError(f"--scans: {scans} is not a folder; give the one with the folders sceneNNNN_NN.")
    candidates = [path for pattern in ("*", "scans/*", "scans_test/*") for path in sorted(scans.glob(pattern))]
    found = {path.name: path for path in candidates if SCENE_ID.match(path.name) and path.is_dir()}
    if not found:
        raise FileNotFoundError(f"--scans: no folder sceneNNNN_NN in {scans}; give the folder of the download.")
    return dict(sorted(found.items()))


def plan_jobs(
    scans: dict[str, Path], official: OfficialSet, proposals: Path | None, partial_scans: bool
) -> tuple[list[ScanJob], dict[str, str]]:
    """What is to be prepared, and the scans that are not, with the reason.

    Raises:
        ValueError: for scenes that are named but not there, unless `partial_scans`.
    """
    named = set().union(*official.scenes.values())
    unknown = sorted(named - scans.keys())
    if unknown and not partial_scans:
        raise ValueError(
            f"--scans: {len(unknown)} scenes that the annotations name are not there, such as {unknown[:3]}; download"
            " them, or give --partial to leave their questions out."
        )
    jobs, excluded = [], {}
    for scene_id, path in scans.items():
        splits = tuple(split for split in SPLITS if scene_id in official.scenes[split])
        if splits:
            jobs.append(ScanJob(path, find_masks(proposals, scene_id), splits))
        else:
            excluded[scene_id] = "no split's list and no annotation file names it"
    return jobs, excluded


def find_masks(proposals: Path | None, scene_id: str) -> Path | None:
    """The mask file of a scene; None where there is none, which the account counts."""
    if proposals is None:
        return None
    file = proposals / f"{scene_id}.mask.npz"
    return file if file.is_file() else None


def describe_inputs(job: ScanJob) -> dict[str, int]:
    """Name and size of every raw file of a scan."""
    files = [job.scan / f"{job.scene_id}{suffix}" for suffix in SUFFIXES]
    return {file.name: file.stat().st_size for file in [*files, job.masks] if file is not None and file.is_file()}


def prepare_scan(job: ScanJob, output: Path, settings: ScanSettings, nyu40_ids: dict[str, int]) -> str | None:
    """Write a scan's folder unless it is there, made of the same files; the reason when it can have none."""
    folder = output / job.splits[0] / job.scene_id
    inputs = describe_inputs(job)
    facts = read_facts(folder)
    if facts is None or facts["inputs"] != inputs:
        excluded = write_scan(job, folder, settings, nyu40_ids, inputs)
        if excluded is not None:
            return excluded
    for split in job.splits[1:]:
        other = output / split / job.scene_id
        if not (other / "scene.json").is_file() or not (other / "scene.json").samefile(folder / "scene.json"):
            link_scene(folder, other)
    return None


def write_scan(
    job: ScanJob, folder: Path, settings: ScanSettings, nyu40_ids: dict[str, int], inputs: dict[str, int]
) -> str | None:
    """Write one scene's folder; the reason when no frame of the scan can be used."""
    stem = job.scan / job.scene_id
    recording = Path(f"{stem}.sens")
    if not recording.is_file():
        raise FileNotFoundError(f"{recording.name} is not in {job.scan}; download the scan again, with that file.")
    header, cameras = read_sens_cameras(recording)
    strided = range(0, len(cameras), FRAME_STEP)
    tracked = [index for index in strided if np.isfinite(cameras[index]).all()]
    if not tracked:
        return f"none of its {len(strided)} frames (every tenth) has a pose"
    chosen = {tracked[i] for i in sample_uniform(len(tracked), settings.num_views, unique=True)}
    axis_align_matrix = read_axis_alignment(Path(f"{stem}.txt"))
    axis_align_matrix = np.eye(4) if axis_align_matrix is None else axis_align_matrix
    mesh, segments = read_mesh_with_segments(job.scan)
    vertices = align_vertices(mesh.vertices, axis_align_matrix)
    boxes, unknown_labels = read_objects(job, vertices, segments, nyu40_ids)
    mask_boxes = None if job.masks is None else read_mask_boxes(job.masks, vertices)

    def render(scene: Scene) -> tuple[BEVPicture, str]:
        if settings.bev_source == "depth":
            return render_scene_bev(scene, settings.bev_size), "depth"
        return render_mesh_bev(vertices, mesh.colors, mesh.faces, settings.bev_size), "mesh"

    facts = {
        "scene_id": job.scene_id,
        "source": "scannet",
        "inputs": inputs,
        "num_frames": len(cameras),
        "frame_step": FRAME_STEP,
        "lost_frames": len(strided) - len(tracked),
        "unknown_labels": unknown_labels,
        "mask_boxes": mask_boxes,
    }
    write_scene(
        folder,
        (View(f.index, f.color_jpeg, f.depth, f.cam2world) for f in iterate_sens_frames(recording, indices=chosen)),
        header.depth_intrinsics[:3, :3],
        axis_align_matrix,
        boxes,
        None if mask_boxes is None else [box for box in mask_boxes if box is not None],
        facts,
        render,
    )
    return None


def read_objects(
    job: ScanJob, vertices: np.ndarray, segments: np.ndarray, nyu40_ids: dict[str, int]
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """`boxes.json` of a scan by increasing object id (None for a scan without objects), and labels the table lacks."""
    file = job.scan / f"{job.scene_id}.aggregation.json"
    if not file.is_file():
        return None, []
    groups = read_segment_groups(file)
    instance_ids = label_vertices(segments, groups, nyu40_ids).instance_ids
    categories = {group.object_id: group.label for group in groups}
    boxes = []
    for object_id in np.unique(instance_ids[instance_ids >= 0]).tolist():
        points = vertices[instance_ids == object_id]
        category = categories[object_id]
        boxes.append(
            {
                "box": make_box(points.min(0), points.max(0)),
                "object_id": object_id,
                "category": category,
                "nyu40_id": get_nyu40_id(category, nyu40_ids),
            }
        )
    return boxes, sorted(set(categories.values()) - nyu40_ids.keys())


def read_mask_boxes(file: Path, vertices: np.ndarray) -> list[list[float] | None]:
    """Boxes of the first 50 masks of a file (sparse, masks x vertices); None for an empty mask."""
    try:
        masks = scipy.sparse.load_npz(file)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: expected a sparse matrix of masks ({error}); download it again.") from error
    if masks.shape[1] != len(vertices):
        raise ValueError(
            f"{file}: masks of {masks.shape[1]} vertices for a mesh of {len(vertices)}; expected masks over the"
            " vertices of _vh_clean_2.ply."
        )
    return make_mask_boxes(vertices, masks.tocsr()[:MAX_PROPOSALS].toarray())


def prepare_scannet(
    scans: Path,
    annotations: Path,
    output: Path,
    settings: ScanSettings,
    proposals: Path | None = None,
    partial_scans: bool = False,
    published: bool = False,
    num_workers: int = 1,
) -> Finished:
    """Prepare raw scans and official annotations into `output`, or go on where a run was cut off.

    Raises:
        FileNotFoundError, ValueError: name the file or the scans that are wrong; what was prepared stays.
    """
    official = read_official(annotations)
    found = list_scans(scans)
    jobs, excluded = plan_jobs(found, official, proposals, partial_scans)
    labels_file = find_labels_file(next(iter(found.values())))
    nyu40_ids = read_nyu40_ids(labels_file)
    described = {
        "version": VERSION,
        "num_views": settings.num_views,
        "bev_source": settings.bev_source,
        "bev_size": settings.bev_size,
    }
    inputs = {
        "annotations": {file.name: hash_file(file) for file in [*official.files, labels_file]},
        "scans": hash_text([[job.scene_id, job.splits, sorted(describe_inputs(job).items())] for job in jobs]),
        "published": published,
    }
    finished = check_settings(output, described, inputs)
    if finished is not None:
        return finished
    for split in SPLITS:
        remove_parts(output / split)
    job = partial(prepare_scan, output=output, settings=settings, nyu40_ids=nyu40_ids)
    reasons = run_jobs(job, jobs, num_workers, "scans", lambda item: item.scene_id)
    excluded |= {item.scene_id: why for item, why in zip(jobs, reasons, strict=True) if why is not None}
    make_files = partial(make_public_files, official, nyu40_ids=nyu40_ids)
    return finish(output, described, inputs, make_files, excluded, official.missing, published)
