"""Video-3D-LLM's public files -> our layout: `python -m ross3d.data.prepare posed-images`.

    ROOT/scannet/posed_images/SCENE/          frames (data/sources/posed_images.py)
    ROOT/embodiedscan/embodiedscan_infos_*.pkl  or ROOT/scannet/scans/SCENE/SCENE.txt: axis alignment
    ROOT/metadata/scannet_SPLIT_{gt,pred}_box.json
    ROOT/processed/NAME_SPLIT_llava_style.json  or in a folder for each task, as Ross3D has it

Objects of a scene that the box file leaves out are those that the records ask about, with the records' boxes.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ross3d.data.bev import BEVPicture, render_scene_bev
from ross3d.data.prepare.finish import Finished, check_settings, finish, hash_file, hash_text
from ross3d.data.prepare.llava_style import PREFIX, Boxes, Record, read_record, read_task
from ross3d.data.prepare.official import read_json
from ross3d.data.prepare.official_set import SPLITS
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.scene_folder import View, read_facts, remove_parts, write_scene
from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene
from ross3d.data.sources.frames import read_matrix
from ross3d.data.sources.posed_images import EmbodiedScanInfo, load_embodiedscan_infos
from ross3d.data.sources.scannet_objects import read_axis_alignment


VERSION = 1
NAMES = ("scanqa", "sqa3d", "scan2cap", "scanrefer_vg", "multi3drefer", "mmscan_qa")


@dataclass
class PublicSet:
    """What a folder of public files holds.

    Attributes:
        files (`list[Path]`): that were read. missing (`list[str]`): record files that are not there.
        records (`dict`): split -> file name -> records.
        boxes, proposals (`dict`): split -> scene -> boxes by object id, or detected boxes.
    """

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    records: dict[str, dict[str, list[Record]]] = field(default_factory=lambda: defaultdict(dict))
    boxes: dict[str, dict[str, Boxes]] = field(default_factory=lambda: defaultdict(dict))
    proposals: dict[str, dict[str, list[list[float]]]] = field(default_factory=lambda: defaultdict(dict))


@dataclass(frozen=True)
class PublicJob:
    """One scene of a split: its folder of frames, what is known of it, its objects and proposals."""

    folder: Path
    split: str
    info: EmbodiedScanInfo | None
    boxes: Boxes
    proposals: list[list[float]] | None

    @property
    def scene_id(self) -> str:
        return self.folder.name


def read_public(root: Path) -> PublicSet:
    """Read record and box files below `root`.

    Raises:
        FileNotFoundError, ValueError: no record file; one that is there in both layouts; malformed ones.
    """
    public = PublicSet()
    for split in SPLITS:
        for name in NAMES:
            file_name = f"{name}_{split}_llava_style.json"
            found = sorted([*root.glob(f"processed/{file_name}"), *root.glob(f"processed/*/{file_name}")])
            if len(found) > 1:
                raise ValueError(f"--root: {found[0]} and {found[1]} are both there; keep one of the two layouts.")
            if not found:
                public.missing.append(file_name)
                continue
            records = read_json(found[0])
            if not isinstance(records, list):
                raise ValueError(f"{found[0]}: expected a JSON list of records, got {type(records).__name__}.")
            public.records[split][file_name] = records
            public.files.append(found[0])
        for kind in ("gt", "pred"):
            file = root / "metadata" / f"scannet_{split}_{kind}_box.json"
            if file.is_file():
                public.files.append(file)
                read_box_file(read_json(file), public, split, kind)
        add_record_boxes(public, split)
    if not public.records:
        raise FileNotFoundError(f"--root: no NAME_SPLIT_llava_style.json in {root / 'processed'} or a folder of it.")
    return public


def read_box_file(content: dict[str, list[list[float]]], public: PublicSet, split: str, kind: str) -> None:
    for video, rows in content.items():
        scene_id = video.removeprefix(PREFIX)
        if kind == "gt":
            public.boxes[split][scene_id] = dict(enumerate(rows))
        else:
            public.proposals[split][scene_id] = rows


def add_record_boxes(public: PublicSet, split: str) -> None:
    """Objects that records ask about, in scenes without a row in the box file."""
    listed = set(public.boxes[split])
    for name, records in public.records[split].items():
        for place, record in enumerate(records):
            where = f"{name}, record {place}"
            annotation = read_record(record, read_task(record, where), "", where)
            if annotation.scene_id not in listed:
                boxes = zip(annotation.target_ids or [], annotation.target_boxes or [], strict=True)
                public.boxes[split].setdefault(annotation.scene_id, {}).update(boxes)


def plan_jobs(
    root: Path, public: PublicSet, infos: Mapping[str, EmbodiedScanInfo], partial_scans: bool
) -> list[PublicJob]:
    """A job for each scene that a split's records name.

    Raises:
        ValueError: for scenes whose frames are not there, unless `partial_scans`.
    """
    jobs, unknown = [], []
    for split in SPLITS:
        for scene_id in sorted(public.boxes[split]):
            folder = root / "scannet" / "posed_images" / scene_id
            if not folder.is_dir():
                unknown.append(scene_id)
                continue
            info, proposals = infos.get(scene_id), public.proposals[split].get(scene_id)
            jobs.append(PublicJob(folder, split, info, public.boxes[split][scene_id], proposals))
    if unknown and not partial_scans:
        raise ValueError(
            f"--root: {len(unknown)} scenes that records or boxes name have no folder in scannet/posed_images, such as"
            f" {unknown[:3]}; unpack them, or give --partial to leave their questions out."
        )
    return jobs


def describe_inputs(job: PublicJob) -> dict[str, Any]:
    return {"files": len(list(job.folder.iterdir())), "boxes": hash_text([sorted(job.boxes.items()), job.proposals])}


def prepare_public_scene(job: PublicJob, output: Path, num_views: int, bev_size: int) -> str | None:
    """Write a scene's folder unless it is there, made of the same files; the reason when it can have none."""
    folder = output / job.split / job.scene_id
    inputs = describe_inputs(job)
    facts = read_facts(folder)
    if facts is not None and facts["inputs"] == inputs:
        return None
    names = list_frames(job)
    cameras = {name: read_matrix(job.folder / f"{name}.txt", (4, 4), "camera to world, metres") for name in names}
    tracked = [name for name in names if np.isfinite(cameras[name]).all()]
    if not tracked:
        return f"none of its {len(names)} frames has a pose"
    chosen = [tracked[i] for i in sample_uniform(len(tracked), num_views, unique=True)]

    def render(scene: Scene) -> tuple[BEVPicture, str]:
        return render_scene_bev(scene, bev_size), "depth"

    write_scene(
        folder,
        (read_view(job.folder, name, cameras[name]) for name in chosen),
        get_intrinsics(job),
        get_alignment(job),
        [{"box": job.boxes[number], "object_id": number} for number in sorted(job.boxes)],
        job.proposals,
        {
            "scene_id": job.scene_id,
            "source": "posed_images",
            "inputs": inputs,
            "num_frames": len(names),
            "lost_frames": len(names) - len(tracked),
            "unknown_labels": [],
            "mask_boxes": None,
        },
        render,
    )
    return None


def list_frames(job: PublicJob) -> list[str]:
    """Names of frames in the order of time: EmbodiedScan's list where there is one."""
    if job.info is not None:
        return [Path(name).stem for name in job.info.image_names]
    return sorted(file.stem for file in job.folder.glob("*.jpg"))


def get_intrinsics(job: PublicJob) -> np.ndarray:
    if job.info is not None:
        return job.info.depth_intrinsics
    return read_matrix(job.folder / "depth_intrinsic.txt", (4, 4), "the depth camera, pixels")[:3, :3]


def get_alignment(job: PublicJob) -> np.ndarray:
    if job.info is not None:
        return job.info.axis_align_matrix
    file = job.folder.parents[1] / "scans" / job.scene_id / f"{job.scene_id}.txt"
    matrix = read_axis_alignment(file)
    return np.eye(4) if matrix is None else matrix


def read_view(folder: Path, name: str, cam2world: np.ndarray) -> View:
    """A frame with its picture's bytes as they are."""
    depth_file = folder / f"{name}.png"
    for file in (folder / f"{name}.jpg", depth_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not there although its pose is; unpack posed_images again.")
    with Image.open(depth_file) as image:
        depth_mm = np.array(image).astype(np.uint16)
    return View(int(name), (folder / f"{name}.jpg").read_bytes(), depth_mm, cam2world)


def prepare_posed_images(
    root: Path,
    output: Path,
    num_views: int = 32,
    bev_size: int = 432,
    partial_scans: bool = False,
    num_workers: int = 1,
) -> Finished:
    """Prepare public files into `output`, or go on where a run was cut off.

    Raises:
        FileNotFoundError, ValueError: name the file or the scenes that are wrong; what was prepared stays.
    """
    public = read_public(root)
    info_files = sorted(root.glob("embodiedscan/embodiedscan_infos_*.pkl"))
    infos: dict[str, EmbodiedScanInfo] = {}
    for file in info_files:
        infos |= load_embodiedscan_infos(file)
    jobs = plan_jobs(root, public, infos, partial_scans)
    settings = {"version": VERSION, "num_views": num_views, "bev_source": "depth", "bev_size": bev_size}
    inputs = {
        "annotations": {file.name: hash_file(file) for file in [*public.files, *info_files]},
        "scans": hash_text([[job.scene_id, job.split, describe_inputs(job)] for job in jobs]),
    }
    finished = check_settings(output, settings, inputs)
    if finished is not None:
        return finished
    for split in SPLITS:
        remove_parts(output / split)
    job = partial(prepare_public_scene, output=output, num_views=num_views, bev_size=bev_size)
    reasons = run_jobs(job, jobs, num_workers, "scenes", lambda item: item.scene_id)
    excluded = {item.scene_id: why for item, why in zip(jobs, reasons, strict=True) if why is not None}

    return finish(
        output, settings, inputs, lambda split, *_: public.records[split], excluded, public.missing, published=False
    )
