"""Video-3D-LLM's public files -> our layout: `python -m ross3d.data.prepare posed-images`.

    ROOT/scannet/posed_images/SCENE/          frames (data/sources/posed_images.py)
    ROOT/embodiedscan/embodiedscan_infos_*.pkl  or ROOT/scannet/scans/SCENE/SCENE.txt: axis alignment
    ROOT/scannet/scans/SCENE/view_0.jpg       only with --bev published
    ROOT/metadata/scannet_SPLIT_{gt,pred}_box.json
    ROOT/processed/NAME_SPLIT_llava_style.json  or in a folder for each task, as Ross3D has it

A scene that the box file lacks gets the objects that the records ask about, with the boxes from the records.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.atomic import hold_folder
from ross3d.data.bev import BEVPicture, render_scene_bev
from ross3d.data.prepare.bev import read_published_bev
from ross3d.data.prepare.finish import Finished, check_no_strangers, check_settings, finish, hash_text
from ross3d.data.prepare.llava_style import Boxes, Record, get_scene_id, read_record, read_task
from ross3d.data.prepare.official import read_official_json
from ross3d.data.prepare.official_set import ARCHIVE, ARCHIVES, SPLITS
from ross3d.data.prepare.parallel import run_jobs
from ross3d.data.prepare.scene_folder import View, read_facts, write_scene
from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene
from ross3d.data.sources.frames import open_image, read_depth, read_matrix
from ross3d.data.sources.inside import check_all_inside
from ross3d.data.sources.posed_images import PUBLISHED_BEV_NAMES, EmbodiedScanInfo, load_embodiedscan_infos
from ross3d.data.sources.scannet_objects import read_axis_alignment
from ross3d.data.tensor_cache import hash_file
from ross3d.inputs_ross3d import check_boxes


VERSION = 1
# Maximum of uint16.
MAX_DEPTH_MM = 65535
# Record files: name -> published splits; other splits are read if they exist.
RECORD_FILES = {
    "scanqa": ("train", "val"),
    "sqa3d": SPLITS,
    "scan2cap": ("train", "val"),
    "scanrefer_vg": ("train", "val"),
    "multi3drefer": ("train", "val"),
    "mmscan_qa": ("train",),
}


UNKNOWN = "not the path of a file of records, boxes or infos (docs/DATA.md lists them)"


@dataclass
class PublicSet:
    """The content of a folder of public files.

    Attributes:
        files (`list[Path]`): files that were read. missing (`list[str]`): absent record files.
        not_read (`dict`): reason -> files in the folders of records, boxes and infos that are not used.
        records (`dict`): split -> file name -> records.
        scenes (`dict`): split -> scenes that its record and box files name.
        boxes, proposals (`dict`): scene -> boxes by object id, or detected boxes; from the files of all splits, since
            SQA3D splits the scenes differently.
    """

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    not_read: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    records: dict[str, dict[str, list[Record]]] = field(default_factory=lambda: defaultdict(dict))
    scenes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    boxes: dict[str, Boxes] = field(default_factory=dict)
    proposals: dict[str, list[list[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class PublicJob:
    """One scene of a split: its folder of frames, its EmbodiedScan info, objects and proposals, and whether links in
    its folders may lead out of them."""

    folder: Path
    split: str
    info: EmbodiedScanInfo | None
    boxes: Boxes
    proposals: list[list[float]] | None
    allow_outside: bool = False

    @property
    def scene_id(self) -> str:
        return self.folder.name

    @property
    def scan(self) -> Path:
        return self.folder.parents[1] / "scans" / self.scene_id


def read_public(root: Path) -> PublicSet:
    """Read record and box files below `root`.

    Raises:
        FileNotFoundError, ValueError: no record file; one that exists in both layouts; malformed ones.
    """
    public = PublicSet()
    for split in SPLITS:
        for name, splits in RECORD_FILES.items():
            file_name = f"{name}_{split}_llava_style.json"
            found = sorted([*root.glob(f"processed/{file_name}"), *root.glob(f"processed/*/{file_name}")])
            if len(found) > 1:
                raise ValueError(
                    f"--root: expected one layout, got both {found[0]} and {found[1]}; remove one of them."
                )
            if not found:
                public.missing += [file_name] if split in splits else []
                continue
            records = read_official_json(found[0])
            if not isinstance(records, list):
                raise ValueError(f"{found[0]}: expected a JSON list of records, got {type(records).__name__}.")
            public.records[split][file_name] = records
            public.files.append(found[0])
        for kind in ("gt", "pred"):
            file = root / "metadata" / f"scannet_{split}_{kind}_box.json"
            if file.is_file():
                public.files.append(file)
                read_box_file(file, public, split, kind)
    add_record_boxes(public)
    if not public.records:
        raise FileNotFoundError(f"--root: no NAME_SPLIT_llava_style.json in {root / 'processed'} or its subfolders.")
    return public


def list_unread(root: Path, public: PublicSet, info_files: list[Path]) -> None:
    """Note every unread file in the folders of records, boxes and infos, with the reason."""
    known = {*public.files, *info_files}
    for folder in ("processed", "metadata", "embodiedscan"):
        for file in sorted((root / folder).rglob("*")):
            if file in known or file.is_dir() or file.name.startswith("."):
                continue
            reason = ARCHIVE if file.suffix.lower() in ARCHIVES else UNKNOWN
            public.not_read[reason].append(file.relative_to(root).as_posix())


def read_box_file(file: Path, public: PublicSet, split: str, kind: str) -> None:
    content = read_official_json(file)
    if not isinstance(content, dict) or not all(isinstance(rows, list) for rows in content.values()):
        raise ValueError(f"{file}: expected a list of boxes for each scene; check that it is the right file.")
    for video, rows in content.items():
        scene_id = get_scene_id(video, str(file))
        check_box_rows(rows, f"{file}, {video}")
        public.scenes[split].add(scene_id)
        if kind == "gt":
            public.boxes[scene_id] = dict(enumerate(rows))
        else:
            public.proposals[scene_id] = rows


def check_box_rows(rows: list, where: str) -> None:
    """Refuse rows that are not boxes (centre and size).

    Raises:
        ValueError: names the file and the scene or record.
    """
    try:
        boxes = np.array(rows, dtype=np.float64).reshape(len(rows), -1 if rows else 6)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where}: expected boxes of six numbers, centre and size in metres, got {str(rows)[:100]} ({error});"
            " download the file again."
        ) from error
    check_boxes(boxes, f"boxes of {where}")


def add_record_boxes(public: PublicSet) -> None:
    """Add scenes of the records and, for scenes without a row in a box file, the objects that records ask about."""
    listed = set(public.boxes)
    for split, files in public.records.items():
        for name, records in files.items():
            for place, record in enumerate(records):
                where = f"{name}, record {place}"
                annotation = read_record(record, read_task(record, where), "", where)
                public.scenes[split].add(annotation.scene_id)
                if annotation.scene_id not in listed:
                    check_box_rows(annotation.target_boxes or [], where)
                    boxes = zip(annotation.target_ids or [], annotation.target_boxes or [], strict=True)
                    public.boxes.setdefault(annotation.scene_id, {}).update(boxes)


def plan_jobs(
    root: Path,
    public: PublicSet,
    infos: Mapping[str, EmbodiedScanInfo],
    partial_scans: bool,
    allow_outside: bool = False,
) -> list[PublicJob]:
    """Make a job for each scene that a split's records or boxes name.

    Raises:
        ValueError: for scenes whose frames are missing, unless `partial_scans`.
    """
    jobs, unknown = [], []
    for split in SPLITS:
        for scene_id in sorted(public.scenes[split]):
            folder = root / "scannet" / "posed_images" / scene_id
            if not folder.is_dir():
                unknown.append(scene_id)
                continue
            boxes, proposals = public.boxes.get(scene_id, {}), public.proposals.get(scene_id)
            jobs.append(PublicJob(folder, split, infos.get(scene_id), boxes, proposals, allow_outside))
    if unknown and not partial_scans:
        raise ValueError(
            f"--root: {len(unknown)} scenes of the records or boxes have no folder in scannet/posed_images, such as"
            f" {unknown[:3]}; unpack them, or use --partial to leave out their questions."
        )
    return jobs


def describe_inputs(job: PublicJob) -> dict[str, Any]:
    """A description of a scene's sources: number and size of its files, and a hash of its entries in other files.

    Raises:
        FileNotFoundError, ValueError: without intrinsics, or without the alignment that its boxes are given in; for
            links that lead out of the scene's folders.
    """
    files = list(job.folder.iterdir())
    check_all_inside(job.folder, [file.name for file in files], job.allow_outside)
    check_all_inside(job.scan, [f"{job.scene_id}.txt", *PUBLISHED_BEV_NAMES], job.allow_outside)
    sizes = [file.stat().st_size for file in files]
    cameras = [get_alignment(job).tolist(), get_intrinsics(job).tolist()]
    names = None if job.info is None else job.info.image_names
    pictures = [[name, file.stat().st_size] for name in PUBLISHED_BEV_NAMES if (file := job.scan / name).is_file()]
    return {
        "files": len(sizes),
        "bytes": sum(sizes),
        "known": hash_text([sorted(job.boxes.items()), job.proposals, cameras, names, pictures]),
    }


def describe_inputs_or_fault(job: PublicJob) -> dict[str, Any] | str:
    """`describe_inputs`, or its error message, which is reported once the others are done."""
    try:
        return describe_inputs(job)
    except (ValueError, OSError) as error:
        return str(error)


def prepare_public_scene(job: PublicJob, output: Path, num_views: int, bev_source: str, bev_size: int) -> str | None:
    """Write a scene's folder unless it exists, made from the same files; returns the reason if it cannot be made."""
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

    def render(scene: Scene) -> BEVPicture:
        return read_published_bev(job.scan) if bev_source == "published" else render_scene_bev(scene, bev_size)

    write_scene(
        folder,
        job.folder,
        (read_view(job.folder, name, cameras[name]) for name in chosen),
        get_intrinsics(job),
        get_alignment(job),
        [{"box": job.boxes[number], "object_id": number} for number in sorted(job.boxes)] or None,
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
        bev_source,
    )
    return None


def list_frames(job: PublicJob) -> list[str]:
    """Names of frames in the order of time: EmbodiedScan's list where there is one.

    Raises:
        ValueError: for a name that is not a number, or a repeated number.
    """
    if job.info is None:
        names = sorted({file.stem for kind in ("jpg", "txt") for file in job.folder.glob(f"[0-9]*.{kind}")})
    else:
        names = [Path(name).stem for name in job.info.image_names]
    wrong = [name for name in names if not (name.isascii() and name.isdigit())]
    if wrong or len({int(name) for name in names}) < len(names):
        raise ValueError(
            f"{job.folder}: expected frames named by unique numbers, such as 00010, got"
            f" {(wrong or sorted(names))[:5]}; unpack posed_images again."
        )
    return names


def get_intrinsics(job: PublicJob) -> np.ndarray:
    if job.info is not None:
        return job.info.depth_intrinsics
    return read_matrix(job.folder / "depth_intrinsic.txt", (4, 4), "the depth camera, pixels")[:3, :3]


def get_alignment(job: PublicJob) -> np.ndarray:
    if job.info is not None:
        return job.info.axis_align_matrix
    file = job.scan / f"{job.scene_id}.txt"
    matrix = read_axis_alignment(file)
    if matrix is None and (job.boxes or job.proposals):
        raise ValueError(
            f"{file}: expected a line axisAlignment, because the scene's boxes are in the aligned world, got none;"
            " unpack it again, or put EmbodiedScan's info files into embodiedscan/."
        )
    return np.eye(4) if matrix is None else matrix


def read_view(folder: Path, name: str, cam2world: np.ndarray) -> View:
    """A frame with the unchanged bytes of its picture.

    Raises:
        FileNotFoundError, ValueError: a file is missing; depth that the scene's reader would refuse or that does not
            fit uint16.
    """
    depth_file = folder / f"{name}.png"
    for file in (folder / f"{name}.jpg", depth_file):
        if not file.is_file():
            raise FileNotFoundError(
                f"expected {file}, whose pose exists, found no such file; unpack posed_images again."
            )
    read_depth(depth_file)
    depth_mm = np.array(open_image(depth_file)).astype(np.int64)
    if depth_mm.min() < 0 or depth_mm.max() > MAX_DEPTH_MM:
        raise ValueError(
            f"{depth_file}: expected depth of 0 to {MAX_DEPTH_MM} millimetres, got {depth_mm.min()} to"
            f" {depth_mm.max()}; save depth as uint16."
        )
    return View(int(name), (folder / f"{name}.jpg").read_bytes(), depth_mm.astype(np.uint16), cam2world)


def prepare_posed_images(
    root: Path,
    output: Path,
    num_views: int = 32,
    bev_source: str = "depth",
    bev_size: int = 432,
    partial_scans: bool = False,
    num_workers: int = 1,
    allow_outside: bool = False,
) -> Finished:
    """Prepare public files into `output`, or continue an interrupted run.

    Args:
        allow_outside (`bool`): let links in a scene's folders lead out of them.

    Raises:
        FileNotFoundError, ValueError: name the file or the scenes that are wrong; what was prepared stays.
    """
    public = read_public(root)
    info_files = sorted(root.glob("embodiedscan/embodiedscan_infos_*.pkl"))
    infos: dict[str, EmbodiedScanInfo] = {}
    for file in info_files:
        infos |= load_embodiedscan_infos(file)
    list_unread(root, public, info_files)
    jobs = plan_jobs(root, public, infos, partial_scans, allow_outside)
    settings = {"version": VERSION, "num_views": num_views, "bev_source": bev_source, "bev_size": bev_size}
    inputs = {
        "annotations": {file.name: hash_file(file) for file in [*public.files, *info_files]},
        "scans": hash_text([[job.scene_id, job.split, describe_inputs_or_fault(job)] for job in jobs]),
        "not_read": hash_text(public.not_read),
    }
    with hold_folder(output, option="--output"):
        finished = check_settings(output, settings, inputs)
        if finished is not None:
            return finished
        check_no_strangers(output, {split: {job.scene_id for job in jobs if job.split == split} for split in SPLITS})
        job = partial(
            prepare_public_scene, output=output, num_views=num_views, bev_source=bev_source, bev_size=bev_size
        )
        reasons = run_jobs(job, jobs, num_workers, "scenes", lambda item: item.scene_id)
        excluded = {item.scene_id: why for item, why in zip(jobs, reasons, strict=True) if why is not None}

        def make_files(split: str, *_) -> dict[str, list[Record]]:
            return public.records[split]

        return finish(output, settings, inputs, make_files, excluded, public.missing, public.not_read)
