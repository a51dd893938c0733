"""Raw ScanNet scans and official annotations -> our layout: `python -m ross3d.data.prepare scannet`.

    OUTPUT/{train,val,test}/SCENE/          sampled views, boxes, proposals, bird's-eye picture, scene.json
    OUTPUT/annotations/SPLIT.parquet        questions (data/annotations.py)
    OUTPUT/scans/SPLIT.parquet, README.md   the table of scans, and the card that `datasets` reads
    OUTPUT/processed/, OUTPUT/metadata/     with --published: the public records and box files
    OUTPUT/account.json                     what was made and what was left out and why; written last

A scan belongs to the splits whose lists (`scannetv2_SPLIT.txt`) or annotations name it; several splits share its files
by hard links. Every scene depends on its own raw files alone, so an interrupted run can continue and ends with the
same bytes.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.atomic import hold_folder
from ross3d.data.bev import BEVPicture, render_scene_bev
from ross3d.data.names import is_inside
from ross3d.data.prepare.bev import list_scans, read_published_bev, render_mesh_bev
from ross3d.data.prepare.boxes import make_box
from ross3d.data.prepare.finish import Finished, check_no_strangers, check_settings, finish, hash_text
from ross3d.data.prepare.mask_files import read_mask_boxes
from ross3d.data.prepare.official_set import SPLITS, OfficialSet, make_public_files, read_official
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.scene_folder import View, link_scene, read_facts, write_scene
from ross3d.data.sampling import (
    get_view_voxels,
    list_coverage_candidates,
    quantize_points,
    sample_uniform,
    select_max_coverage,
    take_covering_frames,
)
from ross3d.data.scene import Scene
from ross3d.data.sources.frames import MILLIMETRES_PER_METRE
from ross3d.data.sources.inside import check_all_inside
from ross3d.data.sources.ply import Mesh, read_ply
from ross3d.data.sources.posed_images import PUBLISHED_BEV_NAMES
from ross3d.data.sources.scannet import FRAME_STEP, find_labels_file, list_scan_names, read_mesh_with_segments
from ross3d.data.sources.scannet_objects import (
    align_vertices,
    get_nyu40_id,
    label_vertices,
    read_axis_alignment,
    read_nyu40_ids,
    read_segment_groups,
)
from ross3d.data.sources.sens import iterate_sens_frames, read_sens_cameras
from ross3d.data.tensor_cache import hash_file


# Raise when the same raw files would give other bytes.
VERSION = 1
# Share of the voxels seen by all frames that is enough, for each way of choosing by coverage.
COVERAGE_RATIOS = {"coverage": 1.0, "coverage95": 0.95, "coverage90": 0.9}
CHOICES = ("uniform", *COVERAGE_RATIOS)


@dataclass(frozen=True)
class ScanSettings:
    """How scans become scenes.

    Attributes:
        num_views (`int`): views of a scene, of the frames with a pose among every tenth.
        choose (`str`): which ones: `uniform`, evenly spread; `coverage`, those that together see most of the mesh; or
            `coverage95`, `coverage90`, only as many of these as see 95 % or 90 % of what all frames see (published
            names: mc, mc-ratio95, mc-ratio90).
        bev_source (`str`): what the bird's-eye picture is made from, one of `bev.SOURCES`.
        bev_size (`int`): its pixels.
    """

    num_views: int = 32
    choose: str = "uniform"
    bev_source: str = "mesh"
    bev_size: int = 432


@dataclass(frozen=True)
class ScanJob:
    """One scan: its raw folder, its mask file, the splits it belongs to, whether its links may lead out of it."""

    scan: Path
    masks: Path | None
    splits: tuple[str, ...]
    allow_outside: bool = False

    @property
    def scene_id(self) -> str:
        return self.scan.name


def plan_jobs(
    scans: dict[str, Path],
    official: OfficialSet,
    proposals: Path | None,
    partial_scans: bool,
    allow_outside: bool = False,
) -> tuple[list[ScanJob], dict[str, str]]:
    """Plan which scans to prepare, and list those that are left out, with the reason.

    Raises:
        ValueError: for scenes that are named but missing, or have no masks while others do, unless `partial_scans`.
    """
    named = set().union(*official.scenes.values())
    unknown = sorted(named - scans.keys())
    if unknown and not partial_scans:
        raise ValueError(
            f"--scans: {len(unknown)} scenes of the annotations are missing, such as {unknown[:3]}; download them, or"
            " use --partial to leave out their questions."
        )
    objectless = sorted(
        scene_id
        for scene_id in official.list_with_objects() & scans.keys()
        if not (scans[scene_id] / f"{scene_id}.aggregation.json").is_file()
    )
    if objectless and not partial_scans:
        raise ValueError(
            f"--scans: {len(objectless)} scenes with questions about objects have no SCENE.aggregation.json, such as"
            f" {objectless[:3]}; download it with --type .aggregation.json and _vh_clean_2.0.010000.segs.json, or use"
            " --partial to leave out their questions."
        )
    asked = official.list_scored_on_boxes() & scans.keys() if proposals is not None else set()
    unmasked = sorted(scene_id for scene_id in asked if find_masks(proposals, scene_id) is None)
    if unmasked and not partial_scans:
        raise ValueError(
            f"--proposals: {len(unmasked)} validation scenes have no SCENE.mask.npz in {proposals}, such as"
            f" {unmasked[:3]}; download them, or use --partial to leave out their captions."
        )
    jobs, excluded = [], {}
    for scene_id, path in scans.items():
        splits = tuple(split for split in SPLITS if scene_id in official.scenes[split])
        if splits:
            jobs.append(ScanJob(path, find_masks(proposals, scene_id), splits, allow_outside))
        else:
            excluded[scene_id] = "it is in no list of a split and no annotation file"
    return jobs, excluded


def find_masks(proposals: Path | None, scene_id: str) -> Path | None:
    """The mask file of a scene; None if there is none, which the account counts."""
    if proposals is None:
        return None
    file = proposals / f"{scene_id}.mask.npz"
    return file if file.is_file() else None


def describe_inputs(job: ScanJob) -> dict[str, int]:
    """Name and size of every raw file of a scan, its published picture too."""
    files = [job.scan / name for name in list_scan_names(job.scene_id)]
    files += [job.scan / name for name in PUBLISHED_BEV_NAMES]
    return {file.name: file.stat().st_size for file in [*files, job.masks] if file is not None and file.is_file()}


def prepare_scan(job: ScanJob, output: Path, settings: ScanSettings, nyu40_ids: dict[str, int]) -> str | None:
    """Write a scan's folder unless it exists, made from the same files; returns the reason if it cannot be made."""
    folder = output / job.splits[0] / job.scene_id
    inputs = describe_inputs(job) | {"labels": hash_text(sorted(nyu40_ids.items()))}
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
    """Write one scene's folder; returns the reason if no frame of the scan can be used."""
    check_all_inside(job.scan, [*list_scan_names(job.scene_id), *PUBLISHED_BEV_NAMES], job.allow_outside)
    stem = job.scan / job.scene_id
    recording = Path(f"{stem}.sens")
    if not recording.is_file():
        raise FileNotFoundError(
            f"expected {recording.name} in {job.scan}, found none; download that file of the scan."
        )
    header, cameras = read_sens_cameras(recording)
    strided = range(0, len(cameras), FRAME_STEP)
    tracked = [index for index in strided if np.isfinite(cameras[index]).all()]
    if not tracked:
        return f"none of its {len(strided)} frames (every tenth) has a pose"
    axis_align_matrix = read_axis_alignment(Path(f"{stem}.txt"))
    axis_align_matrix = np.eye(4) if axis_align_matrix is None else axis_align_matrix
    mesh, segments = read_mesh(job, only_vertices=settings.bev_source != "mesh")
    vertices = align_vertices(mesh.vertices, axis_align_matrix)
    chosen = choose_frames(recording, tracked, header.depth_intrinsics[:3, :3], axis_align_matrix, vertices, settings)
    boxes, unknown_labels = read_objects(job, vertices, segments, nyu40_ids)
    mask_boxes = None if job.masks is None else read_mask_boxes(job.masks, vertices)

    def render(scene: Scene) -> BEVPicture:
        if settings.bev_source == "published":
            return read_published_bev(job.scan)
        if settings.bev_source == "depth":
            return render_scene_bev(scene, settings.bev_size)
        return render_mesh_bev(vertices, mesh, settings.bev_size, f"{stem}_vh_clean_2.ply")

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
        job.scan,
        (View(f.index, f.color_jpeg, f.depth, f.cam2world) for f in iterate_sens_frames(recording, indices=chosen)),
        header.depth_intrinsics[:3, :3],
        axis_align_matrix,
        boxes,
        None if mask_boxes is None else [box for box in mask_boxes if box is not None],
        facts,
        render,
        settings.bev_source,
    )
    return None


def choose_frames(
    recording: Path,
    tracked: list[int],
    intrinsics: np.ndarray,
    axis_align_matrix: np.ndarray,
    vertices: np.ndarray,
    settings: ScanSettings,
) -> set[int]:
    """Numbers of the frames to use, chosen among the tracked ones."""
    if settings.choose == "uniform":
        return {tracked[i] for i in sample_uniform(len(tracked), settings.num_views, unique=True)}
    candidates = [tracked[i] for i in list_coverage_candidates(len(tracked), settings.num_views)]
    seen = [
        get_view_voxels(
            frame.depth.astype(np.float32) / MILLIMETRES_PER_METRE, intrinsics, axis_align_matrix @ frame.cam2world
        )
        for frame in iterate_sens_frames(recording, indices=set(candidates))
    ]
    coverage = select_max_coverage(seen, quantize_points(vertices), settings.num_views)
    kept = take_covering_frames(coverage, settings.num_views, COVERAGE_RATIOS[settings.choose])
    return {candidates[i] for i in kept}


def read_mesh(job: ScanJob, only_vertices: bool) -> tuple[Mesh, np.ndarray | None]:
    """A scan's mesh, and the segment of each vertex; None for test scans, which have neither segments nor objects."""
    if (job.scan / f"{job.scene_id}.aggregation.json").is_file():
        return read_mesh_with_segments(job.scan, only_vertices)
    return read_ply(job.scan / f"{job.scene_id}_vh_clean_2.ply", only_vertices), None


def read_objects(
    job: ScanJob, vertices: np.ndarray, segments: np.ndarray | None, nyu40_ids: dict[str, int]
) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """`boxes.json` of a scan by increasing object id (None for a test scan), and labels the table lacks."""
    if segments is None:
        return None, []
    groups = read_segment_groups(job.scan / f"{job.scene_id}.aggregation.json")
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


def prepare_scannet(
    scans: Path,
    annotations: Path,
    output: Path,
    settings: ScanSettings,
    proposals: Path | None = None,
    partial_scans: bool = False,
    published: bool = False,
    num_workers: int = 1,
    allow_outside: bool = False,
) -> Finished:
    """Prepare raw scans and official annotations into `output`, or continue an interrupted run.

    Args:
        allow_outside (`bool`): let links in a scan's folder lead out of it.

    Raises:
        FileNotFoundError, ValueError: name the file or the scans that are wrong; what was prepared stays.
    """
    found = list_scans(scans)
    labels_file = find_labels_file(next(iter(found.values())))
    elsewhere = [labels_file, scans, output, *([] if proposals is None else [proposals])]
    # A folder of annotations inside the folder of scans is searched too.
    official = read_official(annotations, [path for path in elsewhere if not is_inside(annotations, path)])
    jobs, excluded = plan_jobs(found, official, proposals, partial_scans, allow_outside)
    nyu40_ids = read_nyu40_ids(labels_file)
    described = {
        "version": VERSION,
        "num_views": settings.num_views,
        "choose": settings.choose,
        "bev_source": settings.bev_source,
        "bev_size": settings.bev_size,
    }
    inputs = {
        "annotations": {file.name: hash_file(file) for file in [*official.files, labels_file]},
        "scans": hash_text([[job.scene_id, job.splits, sorted(describe_inputs(job).items())] for job in jobs]),
        "published": published,
        "not_read": hash_text(official.not_read),
    }
    with hold_folder(output, option="--output"):
        finished = check_settings(output, described, inputs)
        if finished is not None:
            return finished
        check_no_strangers(output, {split: {job.scene_id for job in jobs if split in job.splits} for split in SPLITS})
        job = partial(prepare_scan, output=output, settings=settings, nyu40_ids=nyu40_ids)
        reasons = run_jobs(job, jobs, num_workers, "scans", lambda item: item.scene_id)
        excluded |= {item.scene_id: why for item, why in zip(jobs, reasons, strict=True) if why is not None}
        make_files = partial(make_public_files, official, nyu40_ids=nyu40_ids)
        lists = official.lists if published else None
        return finish(output, described, inputs, make_files, excluded, official.missing, official.not_read, lists)
