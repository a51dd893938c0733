"""What all sources of scans do with frames: read cameras, pictures, depth and boxes; leave out lost ones; choose.

A reader lists its frames with their cameras, lets `Exclusions` drop those whose tracking was lost, chooses views
before anything is decoded (`choose_views`), decodes those (`decode_views`) and hands the rest to `make_scene`.

Pictures are decoded exactly unless `reduce_to` asks for less (`decode_color`). Depth maps always are: a model takes
single readings out of them, which no smaller map has.
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene, check_boxes, check_cam2world, check_scene
from ross3d.geometry_ross3d import turn_cameras


MILLIMETRES_PER_METRE = 1000.0
# Share of a scan's frames that may be lost, missing or damaged before the whole scan is refused.
MAX_EXCLUDED = 0.2
# Colour and depth of one aspect show the same field of view; ScanNet's 1296x968 and 640x480 differ by 0.4 %.
MAX_ASPECT_DIFFERENCE = 0.01
LOST = "{where}, {name}: cam2world is not finite, so tracking was lost there; leave the frame out."

Value = TypeVar("Value")


class Exclusions:
    """Frames of one scan that are left out, with the reason of each, and how large their share may be.

    The share counts twice: of all frames asked for so far, and of those asked for at once, so that of a few chosen
    views no more may be damaged than of a whole scan.

    Args:
        where (`str`): the scan, for errors.
        max_excluded (`float`): from 0 to below 1; at 0 the first frame that cannot be used raises its own error.
    """

    def __init__(self, where: str, max_excluded: float):
        if not 0 <= max_excluded < 1:
            raise ValueError(
                f"max_excluded must be a share of the frames, at least 0 and below 1, got {max_excluded}."
            )
        self.where = where
        self.max_excluded = max_excluded
        self.reasons: dict[str, str] = {}
        self._names: dict[str, None] = {}
        self._examples: dict[str, str] = {}

    def read_each(self, names: Iterable[str], read: Callable[[str], Value], what: str) -> dict[str, Value]:
        """`read(name)` of every name, without the names whose `what` is missing or damaged.

        Raises:
            ValueError: more are missing or damaged than may be; lists the reasons with their counts.
        """
        names = list(names)
        found: dict[str, Value] = {}
        for name in names:
            try:
                found[name] = read(name)
            except FileNotFoundError as error:
                self._exclude(name, f"{what} is missing", error)
            except ValueError as error:
                self._exclude(name, f"{what} cannot be read", error)
        self._check(names)
        return found

    def drop_lost(self, cameras: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The cameras (4, 4) by name, without those that are not finite.

        Raises:
            ValueError: tracking was lost in more frames than may be.
        """
        for name, cam2world in cameras.items():
            if not np.isfinite(cam2world).all():
                self._exclude(name, "tracking was lost", ValueError(LOST.format(where=self.where, name=name)))
        self._check(list(cameras))
        return {name: cam2world for name, cam2world in cameras.items() if name not in self.reasons}

    def _exclude(self, name: str, reason: str, error: Exception) -> None:
        if self.max_excluded == 0:
            raise error
        self.reasons[name] = reason
        self._examples.setdefault(reason, str(error))

    def _describe(self, names: list[str]) -> str:
        counts = Counter(self.reasons[name] for name in names if name in self.reasons)
        return "; ".join(f"{reason}: {count}, such as {self._examples[reason]}" for reason, count in counts.items())

    def _check(self, names: list[str]) -> None:
        self._names |= dict.fromkeys(names)
        for asked in (names, list(self._names)):
            excluded = sum(name in self.reasons for name in asked)
            if excluded > self.max_excluded * len(asked):
                raise ValueError(
                    f"{self.where}: {excluded} of {len(asked)} frames cannot be used, more than max_excluded ="
                    f" {self.max_excluded:g} of them ({self._describe(asked)}); repair the scan, or raise"
                    " max_excluded."
                )

    def warn(self) -> None:
        """Say how many of the scan's frames were left out, and why; nothing where none was."""
        if self.reasons:
            warnings.warn(
                f"{self.where}: left out {len(self.reasons)} of {len(self._names)} frames"
                f" ({self._describe(list(self.reasons))})",
                stacklevel=4,
            )


def choose_views(names: Iterable[str], num_views: int | None) -> list[str]:
    """`num_views` names spread evenly, none twice; all when it is None."""
    names = list(names)
    return names if num_views is None else [names[i] for i in sample_uniform(len(names), num_views, unique=True)]


@dataclass(frozen=True)
class Views:
    """Decoded views of one scan.

    Attributes:
        names (`list[str]`): V names.
        images (`(V, H, W, 3)`, uint8): RGB.
        depth_maps (`(V, h, w)`, float32, *optional*): metres along z, 0 = no reading.
        stored_size (`(width, height)`): of the pictures on disk; larger than that of `images` where these were decoded
            at a reduced size.
    """

    names: list[str]
    images: np.ndarray
    depth_maps: np.ndarray | None
    stored_size: tuple[int, int]

    @property
    def image_size(self) -> tuple[int, int]:
        """Width and height of `images`."""
        return self.images.shape[2], self.images.shape[1]

    @property
    def depth_size(self) -> tuple[int, int]:
        """Width and height that intrinsics are pixels of: of `depth_maps`, or of `images` where there are none."""
        return self.image_size if self.depth_maps is None else self.depth_maps.shape[:0:-1]


def decode_views(
    names: list[str],
    find_color: Callable[[str], Path | BinaryIO],
    read_depth: Callable[[str], np.ndarray] | None,
    exclusions: Exclusions,
    reduce_to: int | None = None,
) -> Views:
    """The views that can be decoded.

    Args:
        find_color: name -> the compressed picture, a file or its bytes in memory.
        read_depth: name -> depth map (h, w), float32 metres; None for a scan without depth.
        reduce_to (`int`, *optional*): pixels of the shorter side that are enough, see `decode_color`.

    Raises:
        ValueError: too many cannot be decoded; sizes differ; colour and depth have another aspect.
    """
    if reduce_to is not None and reduce_to < 1:
        raise ValueError(f"reduce_to must be at least 1 pixel, or None for exact pictures, got {reduce_to}.")

    def read_color(name: str) -> tuple[np.ndarray, tuple[int, int]]:
        source = find_color(name)
        return decode_color(source, source if isinstance(source, Path) else f"{exclusions.where}, {name}", reduce_to)

    colors, depth_maps = exclusions.read_each(names, read_color, "picture"), None
    if read_depth is not None:
        depths = exclusions.read_each(colors, read_depth, "depth map")
        colors = {name: colors[name] for name in depths}
        _check_one_size({name: depth.shape[::-1] for name, depth in depths.items()}, "depth map", exclusions.where)
        depth_maps = np.stack(list(depths.values()))
    _check_one_size({name: size for name, (_, size) in colors.items()}, "picture", exclusions.where)
    images = np.stack([image for image, _ in colors.values()])
    views = Views(list(colors), images, depth_maps, next(size for _, size in colors.values()))
    _check_aspect(views, exclusions.where)
    return views


def _check_one_size(sizes: dict[str, tuple[int, int]], what: str, where: str) -> None:
    first_name, first = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != first:
            raise ValueError(
                f"{where}, {name}: {what} of size {size[0]}x{size[1]} differs from {first_name} with"
                f" {first[0]}x{first[1]}; the views of a scan have one size: split the scan, or resize with the"
                " intrinsics."
            )


def _check_aspect(views: Views, where: str) -> None:
    """Colour and depth show the same field of view; a rounded side may differ by a pixel."""
    if views.depth_maps is None:
        return
    (width, height), (color_width, color_height) = views.depth_size, views.stored_size
    difference = abs(width * color_height - height * color_width)
    if difference > max(width, height, color_width, color_height, MAX_ASPECT_DIFFERENCE * width * color_height):
        raise ValueError(
            f"{where}: depth is {width}x{height} but the colour picture is {color_width}x{color_height},"
            " another aspect; register depth and colour to one camera first."
        )


def count_quarter_turns(cam2world: np.ndarray) -> int:
    """Quarter turns, counter-clockwise, after which the world's z points up in pictures of these cameras (V, 4, 4)."""
    x, y = cam2world[:, 2, :2].mean(axis=0)
    if abs(x) > abs(y):
        return 1 if x > 0 else 3
    return 2 if y > 0 else 0


def turn_views(
    views: Views, intrinsics: np.ndarray, cam2world: np.ndarray, turns: int
) -> tuple[Views, np.ndarray, np.ndarray]:
    """The same views after `turns` quarter turns of the pictures, counter-clockwise, with the cameras that took them.

    Args:
        views (`Views`): V views, with or without depth maps.
        intrinsics (`(3, 3)` or `(V, 3, 3)`): pixels of the depth maps, or of the pictures where there is no depth.
        cam2world (`(V, 4, 4)`): to any world.
        turns (`int`): as `numpy.rot90` counts them.
    """
    width, height = views.depth_size
    turned_intrinsics, turned_cameras = turn_cameras(
        torch.from_numpy(np.asarray(intrinsics, dtype=np.float64)),
        torch.from_numpy(np.asarray(cam2world, dtype=np.float64)),
        (height, width),
        turns,
    )
    images, depth_maps = (
        None if maps is None else np.ascontiguousarray(np.rot90(maps, turns, axes=(1, 2)))
        for maps in (views.images, views.depth_maps)
    )
    stored_size = views.stored_size[:: -1 if turns % 2 else 1]
    turned_views = replace(views, images=images, depth_maps=depth_maps, stored_size=stored_size)
    return turned_views, turned_intrinsics.numpy(), turned_cameras.numpy()


def make_scene(
    path: Path,
    scene_id: str,
    views: Views,
    intrinsics: np.ndarray,
    cam2world: np.ndarray,
    axis_align_matrix: np.ndarray | None,
    exclusions: Exclusions,
    boxes: np.ndarray | None = None,
    box_labels: list[dict] | None = None,
    proposal_boxes: np.ndarray | None = None,
    bev: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None] = (None, None, None),
) -> Scene:
    """The checked scene of decoded views, with the alignment applied.

    Args:
        intrinsics (`(3, 3)` or `(V, 3, 3)`): pixels of the depth map, or of `views.images` where there is no depth.
        cam2world (`(V, 4, 4)`): to the scan's own world. axis_align_matrix (`(4, 4)`): from there to the upright one;
            None where nobody knows it, and the scan keeps its own world.
        bev: picture from above, its mask and its bounds.
    """
    check_cam2world(cam2world, len(views.names), exclusions.where, views.names)
    if views.depth_maps is not None:
        check_centre(intrinsics, *views.depth_size, exclusions.where)
    exclusions.warn()
    scene = Scene(
        scene_id=scene_id,
        images=views.images,
        depth_maps=views.depth_maps,
        intrinsics=intrinsics,
        cam2world=cam2world if axis_align_matrix is None else axis_align_matrix @ cam2world,
        view_names=views.names,
        boxes=boxes,
        box_labels=box_labels,
        proposal_boxes=proposal_boxes,
        bev_image=bev[0],
        bev_valid=bev[1],
        bev_bounds=bev[2],
        axis_align_matrix=axis_align_matrix,
        path=path,
        exclusions=exclusions.reasons,
    )
    return check_scene(scene)


def check_centre(intrinsics: np.ndarray, width: int, height: int, where: str) -> None:
    """Refuse a principal point outside the depth map: the intrinsics of a larger picture."""
    for matrix in np.reshape(intrinsics, (-1, 3, 3)):
        if not (0 <= matrix[0, 2] < width and 0 <= matrix[1, 2] < height):
            raise ValueError(
                f"{where}: centre ({matrix[0, 2]:g}, {matrix[1, 2]:g}) of the intrinsics lies outside the"
                f" {width}x{height} depth map; intrinsics must be pixels of the depth map: scale them with its size."
            )


def scale_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Intrinsics (..., 3, 3) of pictures of `size` (width, height) for the same view at `new_size`.

    Pixel centres are at integers, so a picture's corner is at (-0.5, -0.5), and the centre moves with half a pixel.
    """
    scaled = np.array(intrinsics, dtype=np.float64)
    for axis in range(2):
        factor = new_size[axis] / size[axis]
        scaled[..., axis, :2] *= factor
        scaled[..., axis, 2] = (scaled[..., axis, 2] + 0.5) * factor - 0.5
    return scaled


def merge_intrinsics(intrinsics: np.ndarray) -> np.ndarray:
    """One matrix (3, 3) where all of (V, 3, 3) are the same."""
    return intrinsics[0] if np.ptp(intrinsics, axis=0).max() == 0 else intrinsics


def read_matrix(file: Path, shape: tuple[int, int], meaning: str) -> np.ndarray:
    """A matrix of numbers from a text file, float64; `meaning` is quoted in errors."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing; expected a text file with a {shape[0]}x{shape[1]} matrix: {meaning}."
        )
    try:
        values = np.array([float(word) for word in file.read_text().replace(",", " ").split()])
    except ValueError as error:
        raise ValueError(f"{file}: expected a {shape[0]}x{shape[1]} matrix of numbers, got {error}.") from error
    if values.size != shape[0] * shape[1]:
        raise ValueError(
            f"{file}: expected a {shape[0]}x{shape[1]} matrix ({meaning}), {values.size} values are in it."
        )
    return values.reshape(shape)


def read_json(file: Path, meaning: str):
    """The content of a JSON file; `meaning` says in errors what it should hold."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected {meaning}.")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: expected {meaning}, but the file is no JSON ({error}).") from error


@contextmanager
def _name_broken_picture(where) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: the picture does not exist; copy it again, or leave it out.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{where}: the picture cannot be read ({error}); it is truncated or damaged: copy it again, or leave the"
            " frame out."
        ) from error


def open_image(file: Path) -> Image.Image:
    """A picture, read to its end."""
    with _name_broken_picture(file):
        image = Image.open(file)
        image.load()
    return image


def decode_color(
    source: Path | BinaryIO, where: Path | str, reduce_to: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """RGB (H, W, 3), uint8, and the stored (width, height), of a file or of bytes in memory.

    With `reduce_to`, JPEG is decoded at the smallest of its scales 1, 1/2, 1/4 and 1/8 that leaves the shorter side at
    least so many pixels, a side that does not divide being rounded up; other formats have no such scales and are
    decoded exactly.
    """
    with _name_broken_picture(where):
        image = Image.open(source)
        stored_size = image.size
        if reduce_to is not None:
            image.draft(None, (reduce_to, reduce_to))
        return np.asarray(image.convert("RGB")), stored_size


def read_depth(file: Path, units_per_metre: float = MILLIMETRES_PER_METRE) -> np.ndarray:
    """Depth (h, w), float32 metres, 0 = no reading, from a 16-bit picture."""
    image = open_image(file)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(
            f"{file}: expected a 16-bit one-channel PNG (millimetres), got mode {image.mode!r}; save depth as uint16."
        )
    return scale_depth(np.asarray(image), file, units_per_metre)


def scale_depth(values: np.ndarray, where, units_per_metre: float = MILLIMETRES_PER_METRE) -> np.ndarray:
    """Whole depth units (h, w) as float32 metres; the largest uint16 value stands for no reading, as 0 does."""
    readings = values[values > 0]
    if readings.size and readings.max() < units_per_metre / 20:
        raise ValueError(
            f"{where}: the largest depth is {readings.max()}, which looks like metres; expected millimetres: multiply"
            " by 1000 before saving as uint16."
        )
    # TSDF tools and 7-Scenes mark "no reading" with the largest value.
    values = np.where(values == 65535, 0, values)
    return values.astype(np.float32) / np.float32(units_per_metre)


def read_axis_align_matrix(
    given, scene_id: str, default: Callable[[], np.ndarray | None] = lambda: None
) -> np.ndarray | None:
    """Scan to upright world (4, 4): a matrix, a text file that holds one, or, when None, what `default` returns;
    None where nobody knows it.
    """
    if given is None:
        matrix, name = default(), "its own axis alignment"
    elif isinstance(given, (str, os.PathLike)):
        matrix, name = read_matrix(Path(given), (4, 4), "scan to upright world"), str(given)
    else:
        matrix, name = np.asarray(given, dtype=np.float64), "axis_align_matrix"
    if matrix is None:
        return None
    if matrix.shape != (4, 4):
        raise ValueError(f"axis_align_matrix must be (4, 4), got {matrix.shape}.")
    check_cam2world(matrix[None], 1, f"scene {scene_id!r}", [name])
    return matrix


def read_boxes(given, scene_id: str) -> tuple[np.ndarray | None, list[dict] | None]:
    """Boxes (K, 6) and what is known of each, from an array or a JSON file.

    The file holds a list (`[{"box": [cx, cy, cz, dx, dy, dz], ...}, ...]` or `[[cx, cy, cz, dx, dy, dz], ...]`), or a
    dictionary of such lists by scene, as `scannet_{split}_{gt,pred}_box.json` does with `scannet/<scene>`. A scene
    that such a dictionary lacks has no boxes, and a warning says so.
    """
    if not isinstance(given, (str, os.PathLike)):
        array = np.asarray(given, dtype=np.float32)
        check_boxes(array, f"scene {scene_id!r}, boxes")
        return array, None
    file = Path(given)
    rows = read_json(file, "a JSON list of boxes")
    if isinstance(rows, dict):
        keys = [key for key in (scene_id, f"scannet/{scene_id}") if key in rows]
        if not keys:
            warnings.warn(f"{file.name} has no boxes of scene {scene_id!r}; it is read without", stacklevel=2)
            return None, None
        rows = rows[keys[0]]
    try:
        rows = [{"box": row} if isinstance(row, list) else row for row in rows]
        array = np.array([row["box"] for row in rows], dtype=np.float32).reshape(len(rows), -1 if rows else 6)
        labels = [{key: value for key, value in row.items() if key != "box"} for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f'{file}: expected [{{"box": [cx, cy, cz, dx, dy, dz], "category": ...}}, ...] or '
            f"[[cx, cy, cz, dx, dy, dz], ...] in metres, got {error!r}."
        ) from error
    check_boxes(array, str(file))
    return array, labels


__all__ = [
    "MAX_ASPECT_DIFFERENCE",
    "MAX_EXCLUDED",
    "MILLIMETRES_PER_METRE",
    "Exclusions",
    "Views",
    "choose_views",
    "count_quarter_turns",
    "decode_color",
    "decode_views",
    "make_scene",
    "merge_intrinsics",
    "open_image",
    "read_axis_align_matrix",
    "read_boxes",
    "read_depth",
    "read_json",
    "read_matrix",
    "scale_depth",
    "scale_intrinsics",
    "turn_views",
]
