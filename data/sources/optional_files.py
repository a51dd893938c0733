"""Optional files next to a scan of any layout, and the scene that is made with them.

    axis_align.txt      4x4: the scan's world -> z up, floor at 0; takes the place of the layout's own alignment
    <scan>.txt          ScanNet's meta data: its axisAlignment counts where there is no other alignment
    boxes.json          [{"box": [cx, cy, cz, dx, dy, dz], "category": ..., ...}, ...] or the lists of numbers alone;
                        metres, in the aligned world; takes the place of the layout's own boxes
    proposals.json      boxes to choose among, as in boxes.json
    bev.png, bev.json   RGBA bird's-eye picture (alpha 0 = void) and {"bounds": [...]}, null if unknown

Boxes, proposals and picture are in the world given by these files and the layout: if another alignment is given, they
are left out with a warning. If a layout stores its frames in a subfolder of the scan, both folders are searched.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.frames import (
    MAX_MATRIX_BYTES,
    Exclusions,
    Views,
    check_rotation,
    open_image,
    read_axis_align_matrix,
    read_boxes,
    read_json,
    settle_turns,
    turn_by_cameras,
    turn_stored_views,
    turn_views,
)
from ross3d.data.sources.scannet_objects import AXIS_ALIGNMENT, read_axis_alignment
from ross3d.data.sources.spelling import ScanFiles
from ross3d.inputs_ross3d import check_cam2world, check_intrinsics


ALIGNMENT_FILE = "axis_align.txt"
BEV_FORM = 'expected {"bounds": [xmin, ymin, xmax, ymax]}'
WORLD_FILES = ("boxes.json", "proposals.json", "bev.png")

Boxes = tuple[np.ndarray | None, list[dict] | None]


@dataclass(frozen=True)
class OptionalFiles:
    """The folders of a scan in which these optional files are searched.

    Attributes:
        places (`tuple[Path, ...]`): the scan's folder first; the first folder that has a file is used.
        allow_outside (`bool`): whether a link may lead out of them.
    """

    places: tuple[Path, ...]
    allow_outside: bool = False

    @property
    def scene_id(self) -> str:
        """The scan's name: that of its folder."""
        return self.places[0].resolve().name

    @cached_property
    def _files(self) -> list[ScanFiles]:
        return [ScanFiles(place, self.allow_outside) for place in self.places]

    def find(self, name: str) -> Path | None:
        """The file with this name; None if no folder has it.

        Raises:
            OutsideError: it is a link that leads out of its folder.
        """
        for files in self._files:
            file = files.find(name)
            # A link that leads nowhere is an error, not an absence.
            if os.path.lexists(file):
                return file
        return None

    def read_meta_alignment(self) -> np.ndarray | None:
        """The `axisAlignment` (4, 4) of ScanNet's meta data, in a file named as the scan; None without."""
        file = self.find(f"{self.scene_id}.txt")
        return read_axis_alignment(file) if file is not None and names_alignment(file) else None


@dataclass(frozen=True)
class Alignment:
    """Scan to upright world.

    Attributes:
        matrix (`(4, 4)`, *optional*): None if unknown: the scan keeps its own world.
        is_own (`bool`): whether it leads to the world of the boxes and pictures stored with the scan.
    """

    matrix: np.ndarray | None
    is_own: bool = True


def names_alignment(file: Path) -> bool:
    """Whether a file is ScanNet's meta data with an `axisAlignment`, as `read_axis_alignment` looks for it."""
    is_small = file.is_file() and file.stat().st_size <= MAX_MATRIX_BYTES
    return is_small and AXIS_ALIGNMENT.search(file.read_bytes().decode("latin-1")) is not None


def read_alignment(
    given, optional: OptionalFiles, get_own: Callable[[], np.ndarray | None] = lambda: None
) -> Alignment:
    """The alignment of a scan: `given` (a matrix or its file), else `axis_align.txt`, else the layout's own, else that
    of a `<scan>.txt` of ScanNet in its folder.

    Args:
        get_own: the layout's own, None where it has none.

    Raises:
        FileNotFoundError, ValueError: names the file or argument that is not a rigid 4x4 matrix.
    """
    scene_id = optional.scene_id
    own, file = read_axis_align_matrix(None, scene_id, get_own), optional.find(ALIGNMENT_FILE)
    own = optional.read_meta_alignment() if own is None else own
    default = own if file is None else read_axis_align_matrix(file, scene_id)
    if given is not None:
        matrix = read_axis_align_matrix(given, scene_id)
        return Alignment(matrix, _is_same(matrix, default))
    if file is not None and own is not None and not _is_same(own, default):
        warnings.warn(f"scene {scene_id!r}: {file} is read in place of the alignment that came with it", stacklevel=3)
    return Alignment(default)


def align_cameras(cameras: Mapping[str, np.ndarray], alignment: Alignment) -> dict[str, np.ndarray]:
    """Cameras (4, 4) by name, from the scan's own world to the aligned one."""
    to_world = np.eye(4) if alignment.matrix is None else alignment.matrix
    return {name: to_world @ cam2world for name, cam2world in cameras.items()}


def _is_same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two alignments lead to the same world; None is the scan's own world."""
    one, other = (np.eye(4) if matrix is None else matrix for matrix in (one, other))
    return bool(np.allclose(one, other, atol=1e-6))


def make_scene(
    views: Views,
    intrinsics: np.ndarray,
    cam2world: np.ndarray,
    alignment: Alignment,
    exclusions: Exclusions,
    optional: OptionalFiles,
    *,
    given_boxes: np.ndarray | str | os.PathLike | None = None,
    read_own_boxes: Callable[[], Boxes] = lambda: (None, None),
    read_own_bev: Callable[[], tuple[np.ndarray, np.ndarray] | None] = lambda: None,
    rotate: str | int | None = None,
) -> Scene:
    """The checked scene of decoded views and the optional files of the scan, with the alignment applied.

    Args:
        intrinsics (`(3, 3)` or `(V, 3, 3)`): pixels of the depth map, or of `views.images` where there is no depth.
        cam2world (`(V, 4, 4)`): to the scan's own world.
        given_boxes (`(K, 6)` array or JSON file, *optional*): in place of `boxes.json`.
        read_own_boxes: the layout's own boxes in the aligned world, and the other facts of each.
        read_own_bev: the layout's own bird's-eye picture, and the mask of seen pixels.
        rotate (*optional*): degrees by which upright pictures are turned, counter-clockwise, with their depth and
            cameras; `"auto"` turns each until the world's z points up in it (`turn_by_cameras`).
    """
    scene_id = optional.scene_id
    # Check before turning, so that errors describe the files as they are; the turned scene is checked again.
    check_cam2world(cam2world, len(views.names), f"cam2world of {exclusions.where}", views.names)
    if views.depth_maps is not None:
        size = views.depth_maps.shape[1:]
        check_intrinsics(intrinsics, len(views.names), size, f"intrinsics of {exclusions.where}")
    exclusions.warn()
    views = settle_turns(views, intrinsics, cam2world, exclusions.where)
    views, intrinsics, cam2world = turn_stored_views(views, intrinsics, cam2world)
    cam2world = cam2world if alignment.matrix is None else alignment.matrix @ cam2world
    rotate = check_rotation(rotate)
    if rotate == "auto":
        views, intrinsics, cam2world = turn_by_cameras(views, intrinsics, cam2world)
    elif rotate:
        views, intrinsics, cam2world = turn_views(views, intrinsics, cam2world, rotate // 90)
    boxes, box_labels = _read_boxes(given_boxes, optional, alignment, scene_id, read_own_boxes)
    proposals = optional.find("proposals.json") if alignment.is_own else None
    bev_file = optional.find("bev.png") if alignment.is_own else None
    own_bev = read_own_bev() if bev_file is None else None
    if not alignment.is_own:
        _warn_of_other_world(optional, scene_id, given_boxes is not None)
    bev_image, bev_valid, bev_bounds = (*own_bev, None) if own_bev is not None else (None, None, None)
    if bev_file is not None:
        bev_image, bev_valid, bev_bounds = read_bev(bev_file, optional.find("bev.json"))
    scene = Scene(
        scene_id=scene_id,
        images=views.images,
        depth_maps=views.depth_maps,
        intrinsics=intrinsics,
        cam2world=cam2world,
        view_names=views.names,
        boxes=boxes,
        box_labels=box_labels,
        proposal_boxes=None if proposals is None else read_boxes(proposals, scene_id, must_have=True)[0],
        bev_image=bev_image,
        bev_valid=bev_valid,
        bev_bounds=bev_bounds,
        axis_align_matrix=alignment.matrix,
        path=optional.places[0],
        exclusions=exclusions.reasons,
        units=views.units,
    )
    return check_scene(scene)


def turn_pictures(scene: Scene) -> Scene:
    """The same scene with every picture turned upright by its camera, see `turn_by_cameras`."""
    size = scene.images.shape[2], scene.images.shape[1]
    views = Views(scene.view_names, scene.images, scene.depth_maps, size)
    views, intrinsics, cam2world = turn_by_cameras(views, scene.intrinsics, np.asarray(scene.cam2world))
    return replace(scene, images=views.images, depth_maps=views.depth_maps, intrinsics=intrinsics, cam2world=cam2world)


def _read_boxes(
    given, optional: OptionalFiles, alignment: Alignment, scene_id: str, read_own_boxes: Callable[[], Boxes]
) -> Boxes:
    if given is not None:
        return read_boxes(given, scene_id)
    file = optional.find("boxes.json") if alignment.is_own else None
    return read_own_boxes() if file is None else read_boxes(file, scene_id, must_have=True)


def _warn_of_other_world(optional: OptionalFiles, scene_id: str, has_boxes: bool) -> None:
    names = WORLD_FILES[1:] if has_boxes else WORLD_FILES
    present = [name for name in names if any((place / name).exists() for place in optional.places)]
    if present:
        warnings.warn(
            f"scene {scene_id!r}: {', '.join(present)} left out, which lie in the world of the scan's own alignment"
            " and not of the given one",
            stacklevel=4,
        )


def read_bev(file: Path, bounds_file: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A bird's-eye picture (Hb, Wb, 3), its mask of seen pixels (Hb, Wb), and its bounds (4,) in metres if known.

    Args:
        file, bounds_file (`Path`): `bev.png`, and `bev.json` if it exists.

    Raises:
        FileNotFoundError, ValueError: a picture without `bev.json`, or of another mode than RGBA.
    """
    image = open_image(file)
    if image.mode != "RGBA":
        raise ValueError(
            f"{file}: expected RGBA with alpha 0 = void, got mode {image.mode!r}; build the picture again."
        )
    pixels = np.array(image)
    if bounds_file is None:
        raise FileNotFoundError(f"{file.with_name('bev.json')} is missing, which belongs to bev.png; {BEV_FORM}.")
    try:
        edges = read_json(bounds_file, "the bounds of the bird's-eye picture")["bounds"]
        bounds = None if edges is None else np.array([float(edge) for edge in edges], dtype=np.float32)
    except (TypeError, KeyError, OverflowError, ValueError) as error:
        raise ValueError(f"{bounds_file}: {BEV_FORM}, got {error!r}.") from error
    valid = pixels[..., 3] > 0
    return pixels[..., :3] * valid[..., None].astype(np.uint8), valid, bounds


__all__ = [
    "Alignment",
    "OptionalFiles",
    "Boxes",
    "align_cameras",
    "make_scene",
    "names_alignment",
    "read_alignment",
    "read_bev",
    "turn_pictures",
]
