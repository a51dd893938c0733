"""One scan of the public ScanNet export, as EmbodiedScan and Video-3D-LLM lay it out.

    DIR/posed_images/<scene>/NNNNN.jpg .png .txt   colour; depth, uint16 millimetres; camera to the scan's world
    DIR/posed_images/<scene>/depth_intrinsic.txt   4x4, pixels of the depth map
    DIR/scans/<scene>/<scene>.txt                  axisAlignment; without it (a scene that was copied alone) the
                                                   scene keeps the scan's own world, unless it has an axis_align.txt
    DIR/scans/<scene>/view_0.png or .jpg           optional bird's-eye picture

An EmbodiedScan info file (`load_embodiedscan_infos`) replaces the two middle ones, and its list of images replaces
the folder's listing: it has the order, and the choice without lost frames, of the published pipeline.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    Exclusions,
    choose_views,
    decode_views,
    open_image,
    read_matrix,
    read_stored_depth,
)
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.sources.optional_files import OptionalFiles, align_cameras, make_scene, read_alignment
from ross3d.data.sources.plain_pickle import load_plain_pickle
from ross3d.data.sources.scannet_objects import read_axis_alignment
from ross3d.data.sources.spelling import PICTURE_SUFFIXES, ScanFiles


# Side of the published bird's-eye picture, pixels.
BEV_SIZE = 432
# Grey levels of 255 that still count as void (our choice): JPEG leaves traces in the black around a seen area.
JPEG_RINGING = 8
# Suffixes of a frame's picture, and of its picture, depth map and pose.
COLOR_SUFFIXES = tuple(suffix for suffix in PICTURE_SUFFIXES if suffix != ".png")
SUFFIXES = (*COLOR_SUFFIXES, ".png", ".txt")
PUBLISHED_BEV_NAMES = ("view_0.png", "view_0.jpg")


@dataclass(frozen=True)
class EmbodiedScanInfo:
    """EmbodiedScan's information about one scan.

    Attributes:
        image_names (`list[str]`): file names of the pictures, in the order of time.
        axis_align_matrix (`(4, 4)`, float64): scan to aligned world.
        depth_intrinsics (`(3, 3)`, float64): pixels of the depth map.
    """

    image_names: list[str]
    axis_align_matrix: np.ndarray
    depth_intrinsics: np.ndarray


def load_embodiedscan_infos(path: str | os.PathLike) -> dict[str, EmbodiedScanInfo]:
    """ScanNet's scans of an `embodiedscan_infos_{train,val,test}.pkl`, by scene id such as `scene0415_00`.

    Raises:
        FileNotFoundError, ValueError: no such file; a pickle that holds more than arrays and builtins, or other keys.
    """
    path = Path(path)
    content = load_plain_pickle(path, "EmbodiedScan's embodiedscan_infos_<split>.pkl")
    try:
        return {
            entry["sample_idx"].removeprefix("scannet/"): EmbodiedScanInfo(
                image_names=[Path(image["img_path"]).name for image in entry["images"]],
                axis_align_matrix=np.asarray(entry["axis_align_matrix"], dtype=np.float64).reshape(4, 4),
                depth_intrinsics=np.asarray(entry["depth_cam2img"], dtype=np.float64).reshape(4, 4)[:3, :3],
            )
            for entry in content["data_list"]
            if entry["sample_idx"].startswith("scannet/")
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected data_list with sample_idx, images[i].img_path, axis_align_matrix (4x4) and"
            f" depth_cam2img in each entry, got {error!r}."
        ) from error


def _find_scan(path: Path) -> Path:
    """The scan's folder next to the export: DIR/scans/<scene> for DIR/posed_images/<scene>."""
    return path.resolve().parent.parent / "scans" / path.resolve().name


def list_scan_files(path: Path) -> list[Path]:
    """Files that may be read from the scan's folder next to the export: meta data and bird's-eye picture."""
    scan = _find_scan(path)
    return [scan / name for name in (f"{scan.name}.txt", *PUBLISHED_BEV_NAMES)]


def read_posed_images(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float | None = None,
    reduce_to: int | None = None,
    rotate: str | int | None = None,
    allow_outside: bool = False,
    infos: Mapping[str, EmbodiedScanInfo] | None = None,
    crop_bev: bool = True,
) -> Scene:
    """Read and check one scan of the export.

    Args:
        path (`str` or `Path`): DIR/posed_images/<scene>; its name is the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread over those with a pose.
        axis_align_matrix (`(4, 4)` array or file, *optional*): instead of the info's or the meta data's.
        boxes (`(K, 6)` array or JSON file, *optional*): such as `scannet_val_pred_box.json`.
        max_excluded (`float`): share of frames that may be lost, missing or damaged.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of this many
            pixels (a processor's `view_size`); exactly by default.
        rotate (*optional*): degrees, counter-clockwise, to turn pictures, depth and cameras by; see `make_scene`.
        allow_outside (`bool`): let links in the scan's folders lead out of them.
        infos (*optional*): the result of `load_embodiedscan_infos`.
        crop_bev (`bool`, defaults to `True`): cut the middle out of a published bird's-eye picture; False for a
            processor of `geometry_mode="published"` with `view_fit="center_crop"`, which cuts it itself.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content, and the remedy.
    """
    path = Path(path)
    scene_id = path.resolve().name
    scan = _find_scan(path)

    files = ScanFiles(path, allow_outside)

    def find_beside(name: str) -> Path:
        return resolve_inside(scan, name, allow_outside=allow_outside)

    info = _get_info(infos, scene_id)
    optional = OptionalFiles((path,), allow_outside)
    if info is None:
        # A pose or a depth map without a picture is a frame whose picture is lost.
        names = sorted({file.stem for file in files.listing.glob("[0-9]*.*") if file.suffix.lower() in SUFFIXES})
        intrinsics = read_matrix(files.find("depth_intrinsic.txt"), (4, 4), "the depth camera, pixels")[:3, :3]
        own_alignment = _read_alignment(find_beside(f"{scene_id}.txt"))
    else:
        names = [Path(name).stem for name in info.image_names]
        intrinsics, own_alignment = info.depth_intrinsics, info.axis_align_matrix
    if not names:
        raise ValueError(f"{path} holds zero frames; expected 00000.jpg, 00000.png and 00000.txt and so on.")
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    pictures = {name: files.spell(path / f"{name}.jpg", COLOR_SUFFIXES) for name in names}
    present = exclusions.drop_absent(pictures)
    cameras = exclusions.read_each(
        present, lambda name: read_matrix(files.find(f"{name}.txt"), (4, 4), "camera to world, metres"), "pose"
    )
    tracked = exclusions.drop_lost(cameras)
    alignment = read_alignment(axis_align_matrix, optional, lambda: own_alignment)
    views = decode_views(
        choose_views(tracked, num_views),
        lambda name: files.find(pictures[name].name),
        lambda name: read_stored_depth(files.find(f"{name}.png")),
        exclusions,
        reduce_to,
        cam2world=align_cameras(tracked, alignment),
    )

    def read_own_bev() -> tuple[np.ndarray, np.ndarray] | None:
        published = [find_beside(name) for name in PUBLISHED_BEV_NAMES if (scan / name).exists()]
        return read_bev_view(published[0], views.depth_size, crop_bev) if published else None

    return make_scene(
        views=views,
        intrinsics=intrinsics,
        cam2world=np.stack([cameras[name] for name in views.names]),
        alignment=alignment,
        exclusions=exclusions,
        optional=optional,
        given_boxes=boxes,
        read_own_bev=read_own_bev,
        rotate=rotate,
    )


def read_bev_view(file: Path, depth_size: tuple[int, int], crop: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A published bird's-eye picture: image (432, W, 3) uint8, void exactly black, and mask of seen pixels (432, W).

    The published rule stretches it to the aspect of the depth map (width, height), regardless of its own, at a height
    of 432 pixels, and crops the middle 432 columns (`crop`). Its bounds in metres are unknown.
    """
    width, height = depth_size
    stretched = int(width * BEV_SIZE / height)
    if stretched < BEV_SIZE:
        raise ValueError(
            f"{file}: depth maps of {width}x{height} pixels are higher than wide, so the published rule cuts more than"
            " there is; turn the scan, or leave the bird's-eye picture out."
        )
    image = open_image(file).convert("RGB").resize((stretched, BEV_SIZE), Image.Resampling.BICUBIC)
    left, right = ((stretched - BEV_SIZE) // 2, (stretched + BEV_SIZE) // 2) if crop else (0, stretched)
    picture = np.array(image)[:, left:right]
    valid = picture.max(axis=-1) > JPEG_RINGING
    picture[~valid] = 0
    return picture, valid


def _get_info(infos: Mapping[str, EmbodiedScanInfo] | None, scene_id: str) -> EmbodiedScanInfo | None:
    if infos is None:
        return None
    if scene_id not in infos:
        raise ValueError(f"infos has {len(infos)} scans but not {scene_id!r}; load the info file of its split too.")
    return infos[scene_id]


def _read_alignment(file: Path) -> np.ndarray | None:
    """The scan's own alignment; None for a scene that was copied without its scan, and for scans of the test split."""
    return read_axis_alignment(file) if file.exists() else None


__all__ = ["EmbodiedScanInfo", "load_embodiedscan_infos", "read_bev_view", "read_posed_images"]
