"""Readers of scans, one layout a file; `read_scene` looks at a folder and calls the right one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ross3d.data.consistency import check_consistency
from ross3d.data.scene import Scene
from ross3d.data.sources.arkitscenes import read_arkitscenes
from ross3d.data.sources.frames import read_boxes
from ross3d.data.sources.nerfstudio import list_named_files, read_nerfstudio
from ross3d.data.sources.posed_images import list_scan_files, read_posed_images
from ross3d.data.sources.rgbd_folder import read_bev, read_rgbd_folder
from ross3d.data.sources.scannet import find_labels_file, read_scannet_scan
from ross3d.data.sources.video import find_video, read_video
from ross3d.data.world import check_world


DECODES = ("exact", "reduced")


@dataclass(frozen=True)
class Layout:
    """How a folder of one kind of scan is recognised (a pattern that some file in it fits) and read."""

    name: str
    pattern: str
    read: Callable[..., Scene]
    looks_like: str
    # Files of a scan that do not lie in its folder.
    list_elsewhere: Callable[[Path], list[Path]] = lambda path: []


LAYOUTS = (
    Layout(
        "rgbd_folder",
        "frame-*.color.*",
        read_rgbd_folder,
        "camera-intrinsics.txt and frame-NNNNNN.color.jpg, .depth.png, .pose.txt (7-Scenes, TSDF tools)",
    ),
    Layout(
        "scannet",
        "*.sens",
        read_scannet_scan,
        "<scene>.sens, .txt and the mesh's files (raw ScanNet)",
        lambda path: [find_labels_file(path)],
    ),
    Layout(
        "nerfstudio",
        "transforms.json",
        read_nerfstudio,
        "transforms.json (nerfstudio, Polycam, Record3D, COLMAP)",
        list_named_files,
    ),
    Layout(
        "arkitscenes",
        "lowres_wide.traj",
        read_arkitscenes,
        "lowres_wide.traj and lowres_wide/, lowres_depth/, lowres_wide_intrinsics/ (ARKitScenes)",
    ),
    Layout(
        "arkitscenes_3dod",
        "*_frames/lowres_wide.traj",
        read_arkitscenes,
        "the same in a folder <video>_frames (the 3dod part of ARKitScenes)",
    ),
    Layout(
        "posed_images",
        "[0-9][0-9][0-9][0-9][0-9].jpg",
        read_posed_images,
        "NNNNN.jpg, .png, .txt and depth_intrinsic.txt (ScanNet's posed_images/<scene>)",
        list_scan_files,
    ),
)


def find_layout(path: str | os.PathLike) -> Layout:
    """The layout of a folder.

    Raises:
        FileNotFoundError, ValueError: no folder; a folder that looks like none of the layouts, which are listed.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder, and no video; give the folder of one scan, or a video.")
    for layout in LAYOUTS:
        if next(path.glob(layout.pattern), None) is not None:
            return layout
    known = "\n".join(f"  {layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    raise ValueError(f"{path}: the layout of this folder is not known; a scan is one of these folders:\n{known}")


def read_scene(path: str | os.PathLike, *, look_at_world: bool = True, **options) -> Scene:
    """Read and check a scan of any layout, or a video; a folder's `bev.png` is its picture from above, and its
    `proposals.json` the boxes to choose among.

    Args:
        path (`str` or `Path`): the folder of one scan, whose name is the scene's id; or a video, whose suffix may be
            left out where there is no folder of that name.
        look_at_world (`bool`): warn of a world that is not upright; False for those who set it upright themselves.
        options: of every reader `num_views` and `reduce_to`, of every folder's `axis_align_matrix`, `boxes` and
            `max_excluded`; further ones of the layout, such as `infos` (posed_images) or `labels_file` (scannet).

    Raises:
        FileNotFoundError, ValueError: of `find_layout`, of the layout's reader and of `check_consistency`.
    """
    video = None if Path(path).is_dir() else find_video(path)
    scene = find_layout(path).read(path, **options) if video is None else read_video(video, **options)
    # Both lie in the world that the folder itself gives.
    if options.get("axis_align_matrix") is None:
        if scene.bev_image is None:
            scene.bev_image, scene.bev_valid, scene.bev_bounds = read_bev(Path(path))
        detected = Path(path) / "proposals.json"
        if scene.proposal_boxes is None and detected.is_file():
            scene.proposal_boxes, _ = read_boxes(detected, scene.scene_id)
    check_consistency(scene)
    if look_at_world:
        check_world(scene)
    return scene


def list_files(path: Path) -> list[Path]:
    """Every file that a scan is read from: below its folder, links followed, and where its layout has others.

    Raises:
        FileNotFoundError, ValueError: of `find_layout`.
    """
    video = None if Path(path).is_dir() else find_video(path)
    if video is not None:
        return [video]
    inside = [Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names]
    elsewhere = [file for file in find_layout(path).list_elsewhere(Path(path)) if file.is_file()]
    return sorted({*inside, *elsewhere})


def get_reading(num_views: int, decode: str, view_size: int) -> dict[str, Any]:
    """Options of `read_scene` for a model: so many views, decoded whole or no larger than its input needs.

    Args:
        decode (`str`): `exact`, pictures at their own size (published); or `reduced`, JPEG at the smallest of its
            scales that is no smaller than the model's input, which is faster and changes pixels slightly.
        view_size (`int`): side of the model's input, pixels.
    """
    return {"num_views": num_views} | ({} if decode == "exact" else {"reduce_to": view_size})


__all__ = ["DECODES", "LAYOUTS", "Layout", "find_layout", "get_reading", "list_files", "read_scene"]
