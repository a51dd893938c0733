"""Frame handling shared by all readers: read cameras, pictures, depth and boxes; exclude lost frames; choose views.

A reader lists its frames with their cameras, lets `Exclusions` drop those whose tracking was lost, chooses views
before anything is decoded (`choose_views`), decodes those (`decode_views`) and passes them to `make_scene`
(optional_files.py).

A picture may be stored on its side with an EXIF orientation tag. Usually cameras and depth belong to the stored
pixels, and all are turned together (`turn_stored_views`). If their size, the colours of places that two views see, or
cameras that are already upright show that they belong to the upright picture, only the picture is turned
(`decode_views`, `settle_turns`).
"""

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch

from ross3d.data.consistency import Cameras, tell_tagged_pictures
from ross3d.data.sampling import sample_uniform
from ross3d.data.sources.inside import OutsideError
from ross3d.data.sources.pictures import (
    MILLIMETRES_PER_METRE,
    NPY_MAGIC,
    StoredDepth,
    StoredPicture,
    decode_color,
    decode_stored,
    find_float_units,
    open_image,
    read_depth,
    read_stored_depth,
    scale_depth,
)
from ross3d.data.sources.scannet_objects import AXIS_ALIGNMENT, read_axis_alignment
from ross3d.data.sources.spelling import Listing, describe_near_misses
from ross3d.data.text_files import check_file, parse_json, parse_numbers, read_json, read_text
from ross3d.data.upright import count_and_name, count_picture_turns, find_common_up
from ross3d.geometry_ross3d import turn_cameras
from ross3d.image_processing_ross3d import HEAD_BYTES, describe_content
from ross3d.inputs_ross3d import check, check_boxes, check_cam2world, has_same_aspect


# Share of a scan's frames that may be lost, missing or damaged before the whole scan is refused; and share of listed
# pictures that may be absent, as in a capture that was thinned out afterwards.
MAX_EXCLUDED = 0.2
MAX_ABSENT = 0.5
RAISE_LIMIT = "raise the limit: --max-excluded SHARE (train.py: --data.max_excluded, in Python max_excluded=)"
# Quarter turns by the degrees of `rotate`, counter-clockwise; "auto" turns by the cameras.
ROTATIONS = ("auto", 0, 90, 180, 270)
# Keys of a JSON file that hold an alignment.
ALIGNMENT_KEYS = ("axis_align_matrix", "axisAlignment", "axis_align")
ALIGNMENT_FORM = "a 4x4 matrix, scan to upright world, as text, .npy or .json"
ALIGNMENT_REMEDY = "write the 16 numbers, row by row"
# The beginning of an archive of arrays.
ZIP_MARK = b"PK\x03\x04"
# Maximum size of a file with one matrix.
MAX_MATRIX_BYTES = 100_000
# Cameras are already upright if at least this share of the tagged ones is nearer to the world's up as stored than
# turned, and the mean cosine between their up and the world's is at least this.
MIN_UPRIGHT_SHARE, MIN_UP_COSINE = 0.9, 0.5
# Minimum difference of the logarithms of two aspect ratios that count as different.
MIN_ASPECT_STEP = 0.02
# Maximum memory of all views together.
MAX_DECODED_BYTES = 16 * 2**30
# If a larger share of frames cannot be used, errors do not suggest raising the limit.
HOPELESS_SHARE = 0.99
LOST = "{where}, {name}: cam2world is not finite, so tracking was lost there; leave the frame out."
LOST_ZEROS = "{where}, {name}: cam2world is all zeros, so tracking was lost there; leave the frame out."

BOXES_FORM = (
    'expected [{"box": [cx, cy, cz, dx, dy, dz], "category": ...}, ...] or [[cx, cy, cz, dx, dy, dz], ...] in metres'
)

Value = TypeVar("Value")


def check_share(max_excluded: float | None) -> None:
    """Refuse a limit that is not a share of the frames.

    Raises:
        ValueError: it is not a number from 0 to below 1.
    """
    is_number = isinstance(max_excluded, Real) and not isinstance(max_excluded, bool)
    if max_excluded is not None and not (is_number and 0 <= max_excluded < 1):
        raise ValueError(f"max_excluded must be a share of the frames, at least 0 and below 1, got {max_excluded!r}.")


class Exclusions:
    """Frames of one scan that are left out, with the reason of each, and how large their share may be.

    The limit applies twice: to all frames requested so far, and to each request, so that a few chosen views may not
    have a larger damaged share than a whole scan.

    Args:
        where (`str`): the scan, for errors.
        max_excluded (`float`, *optional*): from 0 to below 1; at 0 the first frame that cannot be used raises its own
            error. By default 0.2, and 0.5 for absent pictures that a list or another file of the frame names
            (`drop_absent`).
    """

    def __init__(self, where: str, max_excluded: float | None = None):
        check_share(max_excluded)
        self.where = where
        self.max_excluded = MAX_EXCLUDED if max_excluded is None else max_excluded
        self.max_absent = MAX_ABSENT if max_excluded is None else max_excluded
        self.reasons: dict[str, str] = {}
        self._absent: set[str] = set()
        self._names: dict[str, None] = {}
        self._errors: dict[str, Exception] = {}

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
            except OutsideError:
                raise
            except FileNotFoundError as error:
                self._exclude(name, f"{what} is missing", error)
            except ValueError as error:
                self._exclude(name, f"{what} cannot be read", error)
        self._check(names)
        return found

    def drop_absent(
        self, files: Mapping[str, Path], describe_alike: Callable[[Path], str] = lambda file: ""
    ) -> list[str]:
        """The names of frames whose pictures exist.

        Args:
            files: the picture of every frame that a list, a depth map or a pose names.
            describe_alike: an absent picture -> where it may lie instead, for the error; may be empty.

        Raises:
            ValueError: more of them are absent than may be; FileNotFoundError where none may be.
        """
        self._names |= dict.fromkeys(files)
        for name, file in files.items():
            if not file.exists():
                # Errors quote the first of them.
                alike = describe_alike(file) if "picture is missing" not in self._errors else ""
                remedy = "correct the name, copy it again" if alike else "copy it again"
                error = FileNotFoundError(
                    f"{file}: the picture does not exist{alike}; {remedy}, or leave the frame out."
                )
                self._exclude(name, "picture is missing", error)
                self._absent.add(name)
        if len(self._absent) > self.max_absent * len(files):
            self._refuse(list(files), f"listed pictures are not there, more than {self.max_absent:.0%} of them")
        return [name for name in files if name not in self._absent]

    def drop_lost(self, cameras: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The cameras (4, 4) by name, without lost ones, which tools write as not finite or all zeros.

        Raises:
            ValueError: tracking was lost in more frames than may be.
        """
        for name, cam2world in cameras.items():
            is_finite = bool(np.isfinite(cam2world).all())
            if not is_finite or not cam2world[:3, :3].any():
                message = LOST_ZEROS if is_finite else LOST
                self._exclude(name, "tracking was lost", ValueError(message.format(where=self.where, name=name)))
        self._check(list(cameras))
        return {name: cam2world for name, cam2world in cameras.items() if name not in self.reasons}

    def _exclude(self, name: str, reason: str, error: Exception) -> None:
        self.reasons[name] = reason
        self._errors.setdefault(reason, error)

    def _describe(self, names: list[str]) -> str:
        counts = Counter(self.reasons[name] for name in names if name in self.reasons)
        return "; ".join(
            f"{reason}: {count}, such as {str(self._errors[reason]).rstrip('.')}" for reason, count in counts.items()
        )

    def _check(self, names: list[str]) -> None:
        self._names |= dict.fromkeys(names)
        # Absent pictures have a separate limit.
        for asked in (names, [name for name in self._names if name not in self._absent]):
            excluded = sum(name in self.reasons for name in asked)
            if excluded > self.max_excluded * len(asked):
                self._refuse(asked, f"frames cannot be used, more than max_excluded = {self.max_excluded:g} of them")

    def _refuse(self, asked: list[str], complaint: str) -> None:
        """Raise the error of a scan of which too many frames are lost, with the limit only where raising it helps."""
        failed = [name for name in asked if name in self.reasons]
        is_hopeless = len(failed) > HOPELESS_SHARE * len(asked)
        if self.max_excluded == 0:
            error = self._errors[self.reasons[failed[0]]]
            if is_hopeless:
                raise error
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"{str(error).rstrip('.')}; or {RAISE_LIMIT}.") from error
        if is_hopeless:
            usable = f"{len(asked) - len(failed)} of {len(asked)} frames can be used"
            raise ValueError(f"{self.where}: {self._describe(failed)}. {usable}.")
        raise ValueError(
            f"{self.where}: {len(failed)} of {len(asked)} {complaint} ({self._describe(asked)}); repair the"
            f" scan, or {RAISE_LIMIT}."
        )

    def warn(self) -> None:
        """Warn how many of the scan's frames were left out, and why; do nothing if none was."""
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
        turns (`tuple[int, ...]`): quarter turns, counter-clockwise, of each view until it is upright; empty when they
            are.
        are_cameras_upright (`bool`, *optional*): where tags turn pictures and no size tells whether depth and cameras
            belong to the stored pixels: whether the cameras are upright as they are. None if it is known, and without
            depth. See `settle_turns`.
        units (`str`): see `Scene.units`.
    """

    names: list[str]
    images: np.ndarray
    depth_maps: np.ndarray | None
    stored_size: tuple[int, int]
    turns: tuple[int, ...] = ()
    are_cameras_upright: bool | None = None
    units: str = ""

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
    read_depth: Callable[[str], StoredDepth] | None,
    exclusions: Exclusions,
    reduce_to: int | None = None,
    camera_size: tuple[float, float] | None = None,
    cam2world: Mapping[str, np.ndarray] | None = None,
) -> Views:
    """Decode the views; those that cannot be decoded are left out.

    Pictures that are stored on their side are returned as stored, and `Views.turns` says how to turn them, unless the
    size of depth or `camera_size` is that of the upright picture: then the picture alone is turned here. For square
    pictures, and those stored upside down, the size does not tell: with depth, `settle_turns` decides; without, the
    picture alone is turned if `cam2world` is upright without the turn (`_are_upright`), and otherwise cameras belong
    to the pixels as stored.

    Args:
        find_color: name -> the compressed picture, a file or its bytes in memory.
        read_depth: name -> depth map (h, w) as it is stored; None for a scan without depth.
        reduce_to (`int`, *optional*): pixels of the shorter side that are enough, see `decode_color`.
        camera_size (`(width, height)`, *optional*): size of the pictures that the intrinsics belong to, if known.
        cam2world (*optional*): name -> camera (4, 4) to the aligned world, as stored.

    Raises:
        ValueError: too many cannot be decoded; sizes differ; colour and depth differ in aspect; pictures are stored
            mirrored, which no camera model describes; they need too much memory together.
    """
    if reduce_to is not None and reduce_to < 1:
        raise ValueError(f"reduce_to must be at least 1 pixel, or None for exact pictures, got {reduce_to}.")

    total = 0

    def read_color(name: str) -> StoredPicture:
        nonlocal total
        source = find_color(name)
        label = source if isinstance(source, Path) else f"{exclusions.where}, {name}"
        picture = decode_stored(source, label, reduce_to)
        total += picture.pixels.nbytes
        check_memory(total, len(names), exclusions.where)
        return picture

    pictures, depth_maps = exclusions.read_each(names, read_color, "picture"), None
    if read_depth is not None:
        stored = exclusions.read_each(pictures, read_depth, "depth map")
        float_units = find_float_units(stored.values())
        # Each map is let go once it is in metres: all of them together are large.
        depths = exclusions.read_each(list(stored), lambda name: stored.pop(name).scale(float_units), "depth map")
        pictures = {name: pictures[name] for name in depths}
        _check_one_size({name: depth.shape[::-1] for name, depth in depths.items()}, "depth map", exclusions.where)
        depth_maps = np.stack(list(depths.values()))
        camera_size = depth_maps.shape[:0:-1]
    if _is_any_size_of_upright(pictures, camera_size):
        pictures = {name: picture.turn_upright() for name, picture in pictures.items()}
    are_cameras_upright = _are_cameras_upright(pictures, cam2world)
    is_open = depth_maps is not None and any(picture.turns for picture in pictures.values())
    is_open &= all(picture.size == picture.upright_size and not picture.is_mirrored for picture in pictures.values())
    if are_cameras_upright and not is_open:
        pictures = {name: picture.turn_upright() for name, picture in pictures.items()}
    _check_one_size({name: picture.size for name, picture in pictures.items()}, "picture", exclusions.where)
    for name, picture in pictures.items():
        if picture.is_mirrored:
            raise ValueError(
                f"{exclusions.where}, {name}: the picture is stored mirrored (EXIF orientation"
                f" {picture.orientation}), and no camera can be turned along; save it as it is to be seen, without"
                " that tag."
            )
    _check_one_size(
        {name: picture.upright_size for name, picture in pictures.items()},
        "picture, turned upright by its EXIF orientation,",
        exclusions.where,
        ", or correct the EXIF orientation",
    )
    turns = tuple(picture.turns for picture in pictures.values())
    images = np.stack([picture.pixels for picture in pictures.values()])
    stored_size = next(picture.size for picture in pictures.values())
    turns = turns if any(turns) else ()
    are_cameras_upright = are_cameras_upright if is_open else None
    views = Views(list(pictures), images, depth_maps, stored_size, turns, are_cameras_upright)
    _check_aspect(views, exclusions.where)
    return views


def check_memory(num_bytes: int, num_views: int, where: str) -> None:
    """Refuse views that need more memory than allowed for the pictures of one scan.

    Raises:
        ValueError: names the scan and the remedies.
    """
    if num_bytes > MAX_DECODED_BYTES:
        raise ValueError(
            f"{where}: {num_views} views take more than {MAX_DECODED_BYTES / 1e9:.0f} GB together; read fewer views"
            " (num_views=), or smaller ones (reduce_to=)."
        )


def _is_any_size_of_upright(pictures: Mapping[str, StoredPicture], camera_size: tuple[float, float] | None) -> bool:
    """Whether cameras and depth belong to the upright pictures by their size."""
    return camera_size is not None and any(_is_size_of_upright(picture, camera_size) for picture in pictures.values())


def _are_cameras_upright(pictures: Mapping[str, StoredPicture], cam2world: Mapping[str, np.ndarray] | None) -> bool:
    """Whether cameras and depth belong to the upright pictures by the cameras' up, where no size tells."""
    steps = [np.log(p.size[0] / p.size[1]) - np.log(p.upright_size[0] / p.upright_size[1]) for p in pictures.values()]
    # Pictures that are not square without a known camera size: their intrinsics are of the stored size.
    if cam2world is None or np.abs(steps).max() > MIN_ASPECT_STEP:
        return False
    turns = np.array([picture.turns for picture in pictures.values()])
    return _are_upright(np.stack([cam2world[name] for name in pictures]), turns)


def _are_upright(cam2world: np.ndarray, turns: np.ndarray) -> bool:
    """Whether cameras (V, 4, 4) are already upright, so that the quarter turns (V,) of their pictures' tags would
    turn them on their side or upside down.

    Up is the world's z, or the up of the cameras without a turn if these agree.
    """
    is_tagged = turns != 0
    if not is_tagged.any():
        return False
    ups = -cam2world[:, :3, 1]
    # After a quarter turn, counter-clockwise, a camera's old x axis points up.
    around = np.stack([ups, cam2world[:, :3, 0], -ups, -cam2world[:, :3, 0]])
    turned_ups = around[turns, np.arange(len(turns))]
    references = [np.array([0.0, 0.0, 1.0])]
    if not is_tagged.all():
        mean = ups[~is_tagged].mean(axis=0)
        length = np.linalg.norm(mean)
        references += [mean / length] if length > MIN_UP_COSINE else []
    for reference in references:
        stored, turned = ups[is_tagged] @ reference, turned_ups[is_tagged] @ reference
        if (stored > turned).mean() >= MIN_UPRIGHT_SHARE and stored.mean() >= MIN_UP_COSINE:
            return True
    return False


def _is_size_of_upright(picture: StoredPicture, size: tuple[float, float]) -> bool:
    """Whether (width, height) has the aspect of the upright picture rather than that of the stored one."""
    aspects = (np.log(width / height) for width, height in (size, picture.size, picture.upright_size))
    wanted, stored, upright = aspects
    return bool(abs(wanted - upright) < abs(wanted - stored))


def _check_one_size(sizes: dict[str, tuple[int, int]], what: str, where: str, cause: str = "") -> None:
    """Refuse views of several sizes, and name those that lie on their side; `cause` is a further way out for these."""
    first_name, first = next(iter(sizes.items()))
    for name, size in sizes.items():
        if size != first:
            remedy = ": split the scan, or resize with the intrinsics"
            if size == first[::-1]:
                names = list(sizes)
                exchanged = [sizes[other] == size for other in names]
                fewer = np.flatnonzero(np.array(exchanged) == (2 * sum(exchanged) <= len(names)))
                told = count_and_name(names, fewer, "seem to lie on their side, width and height exchanged")
                remedy = (
                    f", and {told}: turn these upright, each picture with its depth map, intrinsics and camera{cause},"
                    " or make a scan of their own of them"
                )
            raise ValueError(
                f"{where}, {name}: {what} of size {size[0]}x{size[1]} differs from {first_name} with"
                f" {first[0]}x{first[1]}; the views of a scan have one size{remedy}."
            )


def _check_aspect(views: Views, where: str) -> None:
    """Refuse colour and depth with different aspect ratios."""
    if views.depth_maps is None:
        return
    (width, height), (color_width, color_height) = views.depth_size, views.stored_size
    check(has_same_aspect((color_height, color_width), (height, width)), f"depth_maps of {where}",
          f"the aspect of the {color_height} x {color_width} pictures (height x width)", f"{height} x {width}",
          "register depth and colour to one camera first")  # fmt: skip


def settle_turns(views: Views, intrinsics: np.ndarray, cam2world: np.ndarray, where: str) -> Views:
    """The views with `turns` settled where no size tells which pixels depth and cameras belong to.

    The colours of places that two views see tell how each picture lies over its depth map. If it does so once it is
    turned, it is turned here, alone. If it does so as stored, depth and camera turn with it later, unless the cameras
    are upright already: then the tag was left on pixels that had been turned, and nothing is turned. Where the colours
    tell nothing, upright cameras stay, and the picture is turned alone. The last two are warned of.
    """
    if views.are_cameras_upright is None:
        return views
    matrices = np.broadcast_to(np.asarray(intrinsics, np.float64), (len(views.names), 3, 3))
    cameras = Cameras(views.depth_maps, matrices, np.asarray(cam2world, np.float64))
    turns = np.array(views.turns)
    is_turned, is_stored = tell_tagged_pictures(views.images, cameras, turns)
    if not views.are_cameras_upright:
        return turn_alone(views, is_turned)
    is_open = (turns != 0) & ~is_turned & ~is_stored
    for which, told in (
        (
            is_stored,
            "that is not obeyed: their cameras are upright, and they lie right over their depth maps as they are"
            " stored, so it was left on pixels that had been turned; take the tag away.",
        ),
        (
            is_open,
            "that turned them, and not their depth maps, since the cameras are upright as they are; the colours that"
            " are seen twice do not show that depth lies right over them: look, and take the tag away if it does not.",
        ),
    ):
        if which.any():
            tagged = count_and_name(views.names, np.flatnonzero(which), "pictures carry an EXIF orientation")
            warnings.warn(f"{where}: {tagged} {told}", stacklevel=4)
    return replace(turn_alone(views, is_turned | is_open), turns=())


def turn_alone(views: Views, which: np.ndarray) -> Views:
    """The views with some pictures (V,), and not their depth maps, turned as `Views.turns` says; none changes its
    size."""
    images = [np.rot90(i, turns * one) for i, turns, one in zip(views.images, views.turns, which, strict=True)]
    turns = tuple(0 if one else turns for turns, one in zip(views.turns, which, strict=True))
    return replace(views, images=np.stack(images), turns=turns if any(turns) else ())


def turn_by_cameras(
    views: Views, intrinsics: np.ndarray, cam2world: np.ndarray
) -> tuple[Views, np.ndarray, np.ndarray]:
    """The views, each turned by quarter turns until the world's z points up in it, as far as they keep one size.

    If that turns pictures against each other that agreed about up, z is not up: all are turned as most of them are.
    """
    width, height = views.image_size
    turns = count_picture_turns(cam2world, quarters=width == height)
    turned = turn_stored_views(replace(views, turns=tuple(turns.tolist())), intrinsics, cam2world)
    if find_common_up(turned[2])[1] >= find_common_up(cam2world)[1]:
        return turned
    most = int(np.argmax(np.bincount(turns)))
    return turn_views(views, intrinsics, cam2world, most)


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
        torch.from_numpy(np.array(intrinsics, dtype=np.float64)),
        torch.from_numpy(np.array(cam2world, dtype=np.float64)),
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


def turn_stored_views(
    views: Views, intrinsics: np.ndarray, cam2world: np.ndarray
) -> tuple[Views, np.ndarray, np.ndarray]:
    """The views, each turned as `Views.turns` says, with intrinsics and cameras; see `turn_views`."""
    upright = replace(views, turns=())
    if not any(views.turns):
        return upright, intrinsics, cam2world
    if len(set(views.turns)) == 1:
        return turn_views(upright, intrinsics, cam2world, views.turns[0])
    matrices = np.broadcast_to(intrinsics, (len(views.names), 3, 3))
    parts = [
        turn_views(
            replace(
                upright,
                images=views.images[index : index + 1],
                depth_maps=None if views.depth_maps is None else views.depth_maps[index : index + 1],
            ),
            matrices[index : index + 1],
            cam2world[index : index + 1],
            turns,
        )
        for index, turns in enumerate(views.turns)
    ]
    depth_maps = None if views.depth_maps is None else np.concatenate([part.depth_maps for part, _, _ in parts])
    images = np.concatenate([part.images for part, _, _ in parts])
    turned = replace(parts[0][0], images=images, depth_maps=depth_maps)
    return turned, np.concatenate([part for _, part, _ in parts]), np.concatenate([part for _, _, part in parts])


def check_rotation(rotate: Any) -> str | int | None:
    """`rotate` as one of `ROTATIONS`, or None; strings from the command line are parsed.

    Raises:
        ValueError: another value.
    """
    known = {str(value): value for value in ROTATIONS}
    if rotate is None or (not isinstance(rotate, bool) and rotate in ROTATIONS):
        return rotate
    if isinstance(rotate, str) and rotate in known:
        return known[rotate]
    raise ValueError(f"rotate must be one of {', '.join(known)} (degrees, counter-clockwise), got {rotate!r}.")


def scale_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Rescale intrinsics (..., 3, 3) of pictures of `size` (width, height) to the same view at `new_size`.

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
    """Read a matrix of numbers from a text file, float64; `meaning` is quoted in errors."""
    if not file.exists():
        near = describe_near_misses(Listing(file.parent), file.name)
        raise FileNotFoundError(
            f"{file} is missing; expected a text file with a {shape[0]}x{shape[1]} matrix: {meaning}"
            f"{near and f'; {near}'}."
        )
    form = f"a {shape[0]}x{shape[1]} matrix ({meaning})"
    text = read_text(file, form, MAX_MATRIX_BYTES)
    remedy = f"write its {shape[0] * shape[1]} numbers, row by row"
    try:
        values = np.array(parse_numbers(text))
    except ValueError as error:
        raise ValueError(f"{file}: expected {form} and nothing else, got {error}; {remedy}.") from error
    if values.size != shape[0] * shape[1]:
        raise ValueError(f"{file}: expected {form}, got a file of {values.size} numbers; {remedy}.")
    return values.reshape(shape)


def read_alignment_file(file: Path) -> np.ndarray:
    """Scan to upright world (4, 4), float64: a matrix of four rows, or of the first three, as text, as an array of
    NumPy or in JSON (also `{"axis_align_matrix": [...]}`); or the line `axisAlignment` of ScanNet's `SCENE.txt`.

    The content of the file tells which, whatever its suffix is.

    Raises:
        FileNotFoundError, ValueError: names the file, and what it holds instead.
    """
    check_file(file, ALIGNMENT_FORM, MAX_MATRIX_BYTES)
    with file.open("rb") as opened:
        head = opened.read(HEAD_BYTES)
    if not head.startswith(NPY_MAGIC) and (head.startswith(ZIP_MARK) or file.suffix.lower() in (".npy", ".npz")):
        kind, _ = describe_content(head) or ("something else", "")
        raise ValueError(
            f"{file}: expected {ALIGNMENT_FORM}, got {kind}; write the array alone, with numpy.save, or"
            f" {ALIGNMENT_REMEDY.removeprefix('write ')} as text."
        )
    values = _read_alignment_array(file) if head.startswith(NPY_MAGIC) else _read_alignment_text(file)
    if values.size == 12:
        values = np.append(values, [0, 0, 0, 1])
    if values.size != 16:
        raise ValueError(
            f"{file}: expected {ALIGNMENT_FORM}, or the first three rows of it, got {values.size} values;"
            f" {ALIGNMENT_REMEDY}."
        )
    return values.reshape(4, 4)


def _read_alignment_array(file: Path) -> np.ndarray:
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    # A damaged header can make its parser raise anything.
    except Exception as error:
        raise ValueError(f"{file}: expected {ALIGNMENT_FORM}, got {error}; {ALIGNMENT_REMEDY}.") from error
    return _check_real(values, f"{file}: expected {ALIGNMENT_FORM}")


def _read_alignment_text(file: Path) -> np.ndarray:
    text = read_text(file, ALIGNMENT_FORM)
    if text.lstrip().startswith("{"):
        content = parse_json(text, str(file), ALIGNMENT_FORM)
        keys = [key for key in content if key.lower() in map(str.lower, ALIGNMENT_KEYS)]
        if not keys:
            raise ValueError(
                f"{file}: expected {ALIGNMENT_FORM}, as a list or under the key {' or '.join(ALIGNMENT_KEYS)}, got the"
                f" keys {', '.join(map(repr, content))[:200] or 'of an empty object'}; rename the key of the matrix."
            )
        text = json.dumps(content[keys[0]])
    elif AXIS_ALIGNMENT.search(text):
        return read_axis_alignment(file)
    try:
        return np.array(parse_numbers(text))
    except ValueError as error:
        raise ValueError(f"{file}: expected {ALIGNMENT_FORM}, got {error}; {ALIGNMENT_REMEDY}.") from error


def _check_real(values: np.ndarray, expected: str) -> np.ndarray:
    """An array as float64, unless it holds truth values, complex numbers or no numbers."""
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"{expected}, of whole numbers or floats, got an array of {values.dtype} {values.shape}; convert it."
        )
    return np.asarray(values, dtype=np.float64)


def read_axis_align_matrix(
    given, scene_id: str, default: Callable[[], np.ndarray | None] = lambda: None
) -> np.ndarray | None:
    """Scan to upright world (4, 4): a matrix, a file with one (`read_alignment_file`), or, when None, the result of
    `default`; None if unknown.
    """
    if given is None:
        matrix, name = default(), "its own axis alignment"
    elif isinstance(given, (str, os.PathLike)):
        matrix, name = read_alignment_file(Path(given)), str(given)
    else:
        name, expected = "axis_align_matrix", f"axis_align_matrix of scene {scene_id!r}: expected a 4x4 matrix"
        try:
            matrix = np.asarray(given)
        # Rows of several lengths, and what cannot be an array.
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{expected}, got {str(given)[:80]}; write four rows of four numbers.") from error
        matrix = _check_real(matrix, expected)
    if matrix is None:
        return None
    if matrix.shape != (4, 4):
        raise ValueError(
            f"axis_align_matrix of scene {scene_id!r}: expected shape (4, 4), got {matrix.shape}; correct it."
        )
    remedy = "write the right 4x4 matrix, scan to upright world, in its place, or take it away to have it estimated"
    check_cam2world(matrix[None], 1, f"the axis alignment of scene {scene_id!r}", [name], remedy)
    return matrix


def read_boxes(given, scene_id: str, must_have: bool = False) -> tuple[np.ndarray | None, list[dict] | None]:
    """Boxes (K, 6) and the other facts of each, from an array or a JSON file.

    The file holds a list (`[{"box": [cx, cy, cz, dx, dy, dz], ...}, ...]` or `[[cx, cy, cz, dx, dy, dz], ...]`), or a
    dictionary of such lists by scene, as `scannet_{split}_{gt,pred}_box.json` does with `scannet/<scene>`. A scene
    that such a dictionary lacks has no boxes, and a warning says so; it is refused where the file `must_have` them.

    Raises:
        FileNotFoundError, ValueError: names the file and the row that is not a box in metres.
    """
    if not isinstance(given, (str, os.PathLike)):
        array = np.asarray(given, dtype=np.float32)
        check_boxes(array, f"boxes of scene {scene_id!r}")
        return array, None
    file = Path(given)
    rows = read_box_rows(file)
    if isinstance(rows, dict):
        key = find_scene_key(rows, scene_id)
        if key is None and must_have:
            raise ValueError(
                f"{file}: expected boxes of scene {scene_id!r}, the file has other scenes only; give the file of this"
                " split, or a plain list."
            )
        if key is None:
            warnings.warn(f"{file.name} has no boxes of scene {scene_id!r}; it is read without", stacklevel=2)
            return None, None
        rows = rows[key]
    return parse_box_rows(rows, str(file))


def read_box_rows(file: Path) -> list | dict[str, list]:
    """The content of a JSON file of boxes: a list, or lists by scene; the rows are not yet checked.

    Raises:
        FileNotFoundError, ValueError: no such file; it holds something else.
    """
    rows = read_json(file, "a JSON list of boxes")
    wrong = [key for key, value in rows.items() if not isinstance(value, list)] if isinstance(rows, dict) else []
    if wrong:
        raise ValueError(
            f"{file}: {BOXES_FORM}, or a dictionary of such lists by scene, got a dictionary whose {wrong[0]!r} is"
            f" {str(rows[wrong[0]])[:60]}."
        )
    return rows


def find_scene_key(rows: Mapping[str, list], scene_id: str) -> str | None:
    """The key of a scene in a dictionary of boxes by scene; None if it has none."""
    return next((key for key in (scene_id, f"scannet/{scene_id}") if key in rows), None)


def parse_box_rows(rows: list, where: str) -> tuple[np.ndarray, list[dict]]:
    """Boxes (K, 6), float32, and the other facts of each, from a list as read from a file.

    Raises:
        ValueError: begins with `where`, names the row that is not a box in metres.
    """
    try:
        rows = [{"box": row} if isinstance(row, list) else row for row in rows]
        numbers = [[_get_coordinate(value) for value in row["box"]] for row in rows]
        array = np.array(numbers, dtype=np.float64).reshape(len(rows), -1 if rows else 6)
        labels = [{key: value for key, value in row.items() if key != "box"} for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where}: {BOXES_FORM}, got {error!r}.") from error
    check_boxes(array, f"boxes of {where}")
    return array.astype(np.float32), labels


def _get_coordinate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"a coordinate that is no number: {str(value)[:40]!r}")
    return float(value)


__all__ = [
    "MAX_ABSENT",
    "MAX_EXCLUDED",
    "MILLIMETRES_PER_METRE",
    "ROTATIONS",
    "Exclusions",
    "StoredDepth",
    "Views",
    "check_memory",
    "check_rotation",
    "check_share",
    "choose_views",
    "decode_color",
    "decode_views",
    "find_scene_key",
    "merge_intrinsics",
    "open_image",
    "parse_box_rows",
    "read_alignment_file",
    "read_axis_align_matrix",
    "read_box_rows",
    "read_boxes",
    "read_depth",
    "read_json",
    "read_matrix",
    "read_stored_depth",
    "scale_depth",
    "scale_intrinsics",
    "settle_turns",
    "turn_by_cameras",
    "turn_stored_views",
    "turn_views",
]
