"""Readers of scans, one layout a file; `read_scene` looks at a folder and calls the right one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ross3d.data.scene import Scene
from ross3d.data.sources.arkitscenes import read_arkitscenes
from ross3d.data.sources.nerfstudio import read_nerfstudio
from ross3d.data.sources.posed_images import read_posed_images
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.data.sources.scannet import read_scannet_scan


@dataclass(frozen=True)
class Layout:
    """How a folder of one kind of scan is recognised (a pattern that some file in it fits) and read."""

    name: str
    pattern: str
    read: Callable[..., Scene]
    looks_like: str


LAYOUTS = (
    Layout(
        "rgbd_folder",
        "frame-*.color.*",
        read_rgbd_folder,
        "camera-intrinsics.txt and frame-NNNNNN.color.jpg, .depth.png, .pose.txt (7-Scenes, TSDF tools)",
    ),
    Layout("scannet", "*.sens", read_scannet_scan, "<scene>.sens, .txt and the mesh's files (raw ScanNet)"),
    Layout(
        "nerfstudio", "transforms.json", read_nerfstudio, "transforms.json (nerfstudio, Polycam, Record3D, COLMAP)"
    ),
    Layout(
        "arkitscenes",
        "**/lowres_wide.traj",
        read_arkitscenes,
        "lowres_wide.traj and lowres_wide/, lowres_depth/, lowres_wide_intrinsics/ (ARKitScenes)",
    ),
    Layout(
        "posed_images",
        "[0-9][0-9][0-9][0-9][0-9].jpg",
        read_posed_images,
        "NNNNN.jpg, .png, .txt and depth_intrinsic.txt (ScanNet's posed_images/<scene>)",
    ),
)


def find_layout(path: str | os.PathLike) -> Layout:
    """The layout of a folder.

    Raises:
        FileNotFoundError, ValueError: no folder; a folder that looks like none of the layouts, which are listed.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder of one scan.")
    for layout in LAYOUTS:
        if next(path.glob(layout.pattern), None) is not None:
            return layout
    known = "\n".join(f"  {layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    raise ValueError(f"{path}: the layout of this folder is not known; a scan is one of these folders:\n{known}")


def read_scene(path: str | os.PathLike, **options) -> Scene:
    """Read and check a scan of any layout.

    Args:
        path (`str` or `Path`): the folder of one scan; its name is the scene's id.
        options: of every reader `num_views`, `axis_align_matrix`, `boxes` and `max_excluded`; further ones of the
            layout's own, such as `infos` (posed_images) or `labels_file` (scannet).
    """
    return find_layout(path).read(path, **options)


__all__ = ["LAYOUTS", "Layout", "find_layout", "read_scene"]
