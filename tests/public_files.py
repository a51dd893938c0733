"""Scans and records as Video-3D-LLM publishes them, made of those that `tests/official_annotations.py` writes."""

import pickle
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.tests.raw_scannet import RawScan


FRAME_STEP = 10


def write_public_root(root: Path, scans: dict[str, RawScan], prepared: Path, infos: bool = False) -> None:
    """`scannet/posed_images`, `scannet/scans`, and the `processed` and `metadata` of a folder that was prepared with
    `--published`; `infos` adds EmbodiedScan's pickle."""
    for scene_id, scan in scans.items():
        write_posed_images(root / "scannet", scene_id, scan)
    for name in ("processed", "metadata"):
        shutil.copytree(prepared / name, root / name)
    if infos:
        (root / "embodiedscan").mkdir()
        content = {"metainfo": {}, "data_list": [make_info(scene_id, scan) for scene_id, scan in scans.items()]}
        (root / "embodiedscan" / "embodiedscan_infos_train.pkl").write_bytes(pickle.dumps(content))


def list_frames(scan: RawScan) -> range:
    return range(0, len(scan.depth_mm), FRAME_STEP)


def write_posed_images(folder: Path, scene_id: str, scan: RawScan) -> None:
    images = folder / "posed_images" / scene_id
    images.mkdir(parents=True)
    world2scan = np.linalg.inv(scan.axis_align_matrix)
    for index in list_frames(scan):
        stem = images / f"{index:05d}"
        stem.with_suffix(".jpg").write_bytes(scan.color_jpegs[index])
        Image.fromarray(scan.depth_mm[index]).save(stem.with_suffix(".png"))
        cam2world = np.full((4, 4), -np.inf) if index in scan.lost else world2scan @ scan.cam2world[index]
        np.savetxt(stem.with_suffix(".txt"), cam2world, fmt="%f")
    whole = np.eye(4)
    whole[:3, :3] = scan.depth_intrinsics
    np.savetxt(images / "depth_intrinsic.txt", whole, fmt="%f")
    meta_data = folder / "scans" / scene_id
    meta_data.mkdir(parents=True)
    shutil.copy(scan.folder / f"{scene_id}.txt", meta_data)


def make_info(scene_id: str, scan: RawScan) -> dict:
    """An entry of EmbodiedScan's list, whose pictures all have a pose."""
    intrinsics = np.eye(4)
    intrinsics[:3, :3] = scan.depth_intrinsics
    kept = [index for index in list_frames(scan) if index not in scan.lost]
    return {
        "sample_idx": f"scannet/{scene_id}",
        "images": [{"img_path": f"scannet/posed_images/{scene_id}/{index:05d}.jpg"} for index in kept],
        "axis_align_matrix": scan.axis_align_matrix,
        "depth_cam2img": intrinsics,
    }
