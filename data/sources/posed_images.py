"""One scan of the public ScanNet export, as EmbodiedScan and Video-3D-LLM lay it out.

    DIR/posed_images/<scene>/NNNNN.jpg .png .txt   colour; depth, uint16 millimetres; camera to the scan's world
    DIR/posed_images/<scene>/depth_intrinsic.txt   4x4, pixels of the depth map
    DIR/scans/<scene>/<scene>.txt                  axisAlignment
    DIR/scans/<scene>/view_0.png or .jpg           optional picture from above

An EmbodiedScan info file (`load_embodiedscan_infos`) takes the place of the two middle ones, and its list of images
that of the folder's: that is the order, and the choice without lost frames, of the published pipeline.
"""

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    MAX_EXCLUDED,
    Exclusions,
    choose_views,
    decode_views,
    make_scene,
    open_image,
    read_axis_align_matrix,
    read_boxes,
    read_color,
    read_depth,
    read_matrix,
)
from ross3d.data.sources.scannet_objects import read_axis_alignment


# Side of the published picture from above, pixels.
BEV_SIZE = 432
# Of 255; our choice: JPEG leaves traces of a few levels in the black around a seen area, which are void all the same.
JPEG_RINGING = 8

# What a pickle of arrays and builtins needs, and nothing that runs code.
ARRAY_PARTS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "bytearray"),
    ("builtins", "complex"),
    # Bytes of older pickles.
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class EmbodiedScanInfo:
    """What EmbodiedScan knows of one scan.

    Attributes:
        image_names (`list[str]`): file names of the pictures, in the order of time.
        axis_align_matrix (`(4, 4)`, float64): scan to aligned world.
        depth_intrinsics (`(3, 3)`, float64): pixels of the depth map.
    """

    image_names: list[str]
    axis_align_matrix: np.ndarray
    depth_intrinsics: np.ndarray


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and builtins; refuses everything else by name, so that no code of the file can run."""

    def find_class(self, module: str, name: str):
        # NumPy 2 moved its inner parts; files written before still name the old place.
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in ARRAY_PARTS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is neither an array nor a builtin")
        return super().find_class(module, name)


def load_embodiedscan_infos(path: str | os.PathLike) -> dict[str, EmbodiedScanInfo]:
    """ScanNet's scans of an `embodiedscan_infos_{train,val,test}.pkl`, by scene id such as `scene0415_00`.

    Raises:
        FileNotFoundError, ValueError: no such file; a pickle that holds more than arrays and builtins, or other keys.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an embodiedscan_infos_<split>.pkl.")
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError) as error:
        raise ValueError(
            f"{path}: the pickle is refused ({error}); expected EmbodiedScan's infos, made of numpy arrays alone."
        ) from error
    try:
        return {
            entry["sample_idx"].removeprefix("scannet/"): EmbodiedScanInfo(
                image_names=[Path(image["img_path"]).name for image in entry["images"]],
                axis_align_matrix=np.asarray(entry["axis_align_matrix"], dtype=np.float64).reshape(4, 4),
                depth_intrinsics=np.asarray(entry["depth_cam2img"], dtype=np.float64)[:3, :3],
            )
            for entry in content["data_list"]
            if entry["sample_idx"].startswith("scannet/")
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected data_list with sample_idx, images[i].img_path, axis_align_matrix (4x4) and"
            f" depth_cam2img in each entry, got {error!r}."
        ) from error


def read_posed_images(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float = MAX_EXCLUDED,
    infos: Mapping[str, EmbodiedScanInfo] | None = None,
) -> Scene:
    """Read and check one scan of the export.

    Args:
        path (`str` or `Path`): DIR/posed_images/<scene>; its name is the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread over those with a pose.
        axis_align_matrix (`(4, 4)` array or file, *optional*): instead of the info's or the meta data's.
        boxes (`(K, 6)` array or JSON file, *optional*): such as `scannet_val_pred_box.json`.
        max_excluded (`float`): share of frames that may be lost, missing or damaged.
        infos (*optional*): what `load_embodiedscan_infos` returned.

    Raises:
        FileNotFoundError, ValueError: name the file, what was expected, what came, and what to do about it.
    """
    path = Path(path)
    scene_id = path.resolve().name
    scan = path.resolve().parents[1] / "scans" / scene_id
    info = _get_info(infos, scene_id)
    if info is None:
        names = sorted(file.stem for file in path.glob("*.jpg"))
        intrinsics = read_matrix(path / "depth_intrinsic.txt", (4, 4), "the depth camera, pixels")[:3, :3]
        align = read_axis_align_matrix(
            axis_align_matrix, scene_id, lambda: _read_alignment(scan / f"{scene_id}.txt", scene_id)
        )
    else:
        names = [Path(name).stem for name in info.image_names]
        intrinsics = info.depth_intrinsics
        align = read_axis_align_matrix(axis_align_matrix, scene_id, lambda: info.axis_align_matrix)
    if not names:
        raise ValueError(f"{path} holds zero frames; expected 00000.jpg, 00000.png and 00000.txt and so on.")
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    cameras = exclusions.read_each(
        names, lambda name: read_matrix(path / f"{name}.txt", (4, 4), "camera to world, metres"), "pose"
    )
    names, images, depth_maps = decode_views(
        choose_views(exclusions.drop_lost(cameras), num_views),
        lambda name: read_color(path / f"{name}.jpg"),
        lambda name: read_depth(path / f"{name}.png"),
        exclusions,
    )
    box_array, box_labels = (None, None) if boxes is None else read_boxes(boxes, scene_id)
    bev_files = [file for file in (scan / "view_0.png", scan / "view_0.jpg") if file.is_file()]
    return make_scene(
        path=path,
        scene_id=scene_id,
        names=names,
        images=images,
        depth_maps=depth_maps,
        intrinsics=intrinsics,
        cam2world=np.stack([cameras[name] for name in names]),
        axis_align_matrix=align,
        exclusions=exclusions,
        num_frames=len(cameras),
        boxes=box_array,
        box_labels=box_labels,
        bev=(*read_bev_view(bev_files[0], depth_maps.shape[:0:-1]), None) if bev_files else (None, None, None),
    )


def read_bev_view(file: Path, depth_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A published picture from above: image (432, 432, 3) uint8 with void exactly black, and what was seen (432, 432).

    The published rule stretches it to the aspect of the depth map (width, height), whatever its own, at a height of
    432 pixels, and cuts the middle out. Nobody says which metres it shows.
    """
    width, height = depth_size
    stretched = (int(width * BEV_SIZE / height), BEV_SIZE)
    picture = np.array(open_image(file, file).convert("RGB").resize(stretched, Image.Resampling.BICUBIC))
    left = (stretched[0] - BEV_SIZE) // 2
    if left < 0:
        raise ValueError(
            f"{file}: depth maps of {width}x{height} pixels are higher than wide, so the published rule cuts more than"
            " there is; turn the scan, or leave the picture from above out."
        )
    picture = picture[:, left : left + BEV_SIZE]
    valid = picture.max(axis=-1) > JPEG_RINGING
    picture[~valid] = 0
    return picture, valid


def _get_info(infos: Mapping[str, EmbodiedScanInfo] | None, scene_id: str) -> EmbodiedScanInfo | None:
    if infos is None:
        return None
    if scene_id not in infos:
        raise ValueError(f"infos has {len(infos)} scans but not {scene_id!r}; load the info file of its split too.")
    return infos[scene_id]


def _read_alignment(file: Path, scene_id: str) -> np.ndarray:
    matrix = read_axis_alignment(file) if file.is_file() else None
    if matrix is None:
        raise ValueError(
            f"scene {scene_id!r}: no axis alignment is at hand ({file} is missing or has none); give axis_align_matrix"
            " (np.eye(4) for the scan's own world) or infos."
        )
    return matrix


__all__ = ["EmbodiedScanInfo", "load_embodiedscan_infos", "read_bev_view", "read_posed_images"]
