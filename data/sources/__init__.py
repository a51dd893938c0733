"""Readers of scans, one file per layout; `read_scene` detects the layout of a folder and calls its reader."""

import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from numbers import Integral
from pathlib import Path
from typing import Any

from ross3d.data.consistency import check_consistency
from ross3d.data.scene import Scene
from ross3d.data.sources.arkitscenes import read_arkitscenes
from ross3d.data.sources.foreign import (
    check_loose_files,
    describe_camera_files,
    describe_file,
    find_foreign_layout,
)
from ross3d.data.sources.frames import check_rotation, check_share
from ross3d.data.sources.nerfstudio import list_named_files, read_nerfstudio
from ross3d.data.sources.optional_files import names_alignment
from ross3d.data.sources.posed_images import SUFFIXES, list_scan_files, read_posed_images
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.data.sources.scannet import find_labels_file, read_scannet_scan
from ross3d.data.sources.spelling import NOT_READ_PICTURES, READ_PICTURES, Listing, describe_near_misses
from ross3d.data.sources.video import find_video, read_video
from ross3d.data.world import check_world


DECODES = ("exact", "reduced")
VIDEO_OPTIONS = ("num_views", "reduce_to", "rotate")
# Optional files that are read in the folder of any layout (optional_files.py).
OPTIONAL_NAMES = ("axis_align.txt", "boxes.json", "proposals.json", "bev.png", "bev.json")
# Limits of the search for scans in a folder of unknown layout: entries, levels below it
# (ARKitScenes/raw/Training/<video>), and folders of one level.
MAX_LISTED, SEARCHED_LEVELS, MAX_SEARCHED = 200, 3, 1000
# Why a file of a scan is not read: the first pattern that matches its path in lower case.
NOT_READ = (
    ("*confidence*", "confidence of depth: every reading counts, regardless of its confidence"),
    ("*depth*", "depth that the layout does not have under this name"),
    ("*.ply", "a mesh or point cloud: positions come from depth"),
    ("*.obj", "a mesh: positions come from depth"),
    ("*.glb", "a mesh: positions come from depth"),
    ("*.usdz", "a mesh: positions come from depth"),
    ("*anno*", "annotations: boxes are read from boxes.json"),
    ("*segs*", "annotations: boxes are read from boxes.json"),
    ("*semseg*", "annotations: boxes are read from boxes.json"),
    ("*aggregation*", "annotations: boxes are read from boxes.json"),
    ("*instance*", "annotations: boxes are read from boxes.json"),
    ("*label*", "annotations: boxes are read from boxes.json"),
    ("*box*", "boxes: they are read from boxes.json and proposals.json alone"),
    ("*align*", "an alignment is read from axis_align.txt alone"),
    *((f"*{suffix}", "a picture that no camera belongs to") for suffix in READ_PICTURES),
    *(
        (f"*{suffix}", "a picture that no camera belongs to, of a kind that is not read")
        for suffix in NOT_READ_PICTURES
    ),
    ("*", "no file of this layout"),
)


@dataclass(frozen=True)
class Layout:
    """How a folder of one kind of scan is recognised (patterns of which some file in it matches one) and read.

    Patterns hold in upper and lower case.
    """

    name: str
    patterns: tuple[str, ...]
    read: Callable[..., Scene]
    looks_like: str
    # Patterns of the files in its folder that are read, or known and not needed.
    files: tuple[str, ...]
    # A pattern of a required file, if files of other layouts may match the first pattern too.
    needs: str | None = None
    # A pattern that recognises a scan whose pictures are all missing: its reader says which.
    remains: str | None = None
    # The file that alone makes a folder a scan of this layout, a key of `OTHER_NAMES`.
    key_file: str | None = None
    # Files of a scan outside its folder.
    list_elsewhere: Callable[[Path], list[Path]] = lambda path: []


ARKITSCENES_FILES = (
    "lowres_wide.traj",
    "lowres_wide/*",
    "lowres_depth/*",
    "lowres_wide_intrinsics/*",
    "*_3dod_annotation.json",
)
LAYOUTS = (
    Layout(
        "rgbd_folder",
        ("frame[-_]*.color.*", "frame[-_]*.rgb.*"),
        read_rgbd_folder,
        "camera-intrinsics.txt and frame-NNNNNN.color.jpg, .depth.png, .pose.txt (7-Scenes, TSDF tools)",
        (
            "camera-intrinsics.txt",
            "scene.json",
            "frame[-_]*.color.*",
            "frame[-_]*.rgb.*",
            "frame[-_]*.pose.txt",
            *(f"frame[-_]{6 * '[0-9]'}.depth.{suffix}" for suffix in ("png", "pgm", "tif", "tiff", "npy")),
        ),
        needs="camera-intrinsics.txt",
        remains="frame[-_]*.pose.txt",
    ),
    Layout(
        "scannet",
        ("*.sens",),
        read_scannet_scan,
        "<scene>.sens, .txt and the mesh's files (raw ScanNet)",
        ("*.sens", "scene*.txt", "*_vh_clean*", "*.aggregation.json", "*_2d-*.zip", "*.zip", "*-labels.combined.tsv"),
        list_elsewhere=lambda path: [find_labels_file(path)],
    ),
    Layout(
        "nerfstudio",
        ("transforms.json",),
        read_nerfstudio,
        "transforms.json (nerfstudio, instant-ngp; converted from Polycam, Record3D, COLMAP)",
        # Copies of the pictures at other sizes, and leftovers of the conversion.
        ("transforms.json", "images_[0-9]*/*", "colmap/*", "sparse_pc.ply"),
        key_file="transforms.json",
        list_elsewhere=list_named_files,
    ),
    Layout(
        "arkitscenes",
        ("lowres_wide.traj",),
        read_arkitscenes,
        "lowres_wide.traj and lowres_wide/, lowres_depth/, lowres_wide_intrinsics/ (ARKitScenes)",
        ARKITSCENES_FILES,
        key_file="lowres_wide.traj",
    ),
    Layout(
        "arkitscenes_3dod",
        ("*_frames/lowres_wide.traj",),
        read_arkitscenes,
        "the same in a folder <video>_frames (the 3dod part of ARKitScenes)",
        tuple(pattern for name in ARKITSCENES_FILES for pattern in (name, f"*_frames/{name}")),
    ),
    Layout(
        "posed_images",
        ("[0-9][0-9][0-9][0-9][0-9].jpg", "[0-9][0-9][0-9][0-9][0-9].jpeg"),
        read_posed_images,
        "NNNNN.jpg, .png, .txt and depth_intrinsic.txt (ScanNet's posed_images/<scene>)",
        (*(f"[0-9]*{suffix}" for suffix in SUFFIXES), "depth_intrinsic.txt", "intrinsic.txt"),
        needs="depth_intrinsic.txt",
        remains="[0-9][0-9][0-9][0-9][0-9].txt",
        list_elsewhere=list_scan_files,
    ),
)


def find_layout(path: str | os.PathLike) -> Layout:
    """The layout of a folder.

    Raises:
        FileNotFoundError, ValueError: no folder; a folder of a known layout that is not supported, with the way to
            convert it; one that matches no layout, with what it looks like, or a list of the layouts.
    """
    path = Path(path)
    if path.is_file():
        raise ValueError(f"{path} is no folder of a scan, but {describe_file(path)}.")
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder, and no video; give the folder of one scan, or a video.")
    listing = Listing(path)
    found = _match_layouts(listing)
    if found:
        return next((layout for layout in found if _is_complete(listing, layout)), found[0])
    if next(path.iterdir(), None) is None:
        raise ValueError(f"{path} is an empty folder; give the folder of one scan, or copy the scan there again.")
    check_looks(path)
    # Loose pictures and files do not make a folder of scans a scan.
    _check_below(path)
    # A folder in a folder, as archives are unpacked, counts as one.
    folders = (path, *(level[0] for level in _list_levels(path) if len(level) == 1))
    for number, folder in enumerate(folders):
        check_loose_files(folder, folders[:number])
    known = "\n".join(f"  {layout.name}: {layout.looks_like}" for layout in LAYOUTS)
    raise ValueError(f"{path}: the layout of this folder is not known; a scan is one of these folders:\n{known}")


def check_looks(path: Path, given: Path | None = None) -> None:
    """Refuse a folder of no layout that looks like a scan.

    Args:
        given (`Path`, *optional*): the folder above it that was given in its place.

    Raises:
        ValueError: a file that cameras are read from has another name; a layout that is not supported.
    """
    name = f"{path}" if given is None else f"{given} is no scan of a known layout; {path.relative_to(given)} in it"
    listing = Listing(path)
    for layout in LAYOUTS:
        near = "" if layout.key_file is None else describe_near_misses(listing, layout.key_file)
        if near:
            raise ValueError(
                f"{name} is no scan of the layout {layout.name}, whose file {layout.key_file} is not there; {near}."
            )
    foreign = find_foreign_layout(listing)
    if foreign is not None:
        files = describe_camera_files(path) if foreign.names_cameras else ""
        cameras = f"; cameras may be in {files}" if files else ""
        raise ValueError(
            f"{name} is {foreign.name}, which is not read as it is; {foreign.way.format(path=path)}{cameras}."
        )


def _check_below(path: Path) -> None:
    """Refuse a folder with a scan, or with what looks like one, in it or in a folder of it."""
    for level in _list_levels(path):
        scan = next(filter(list_layouts, level), None)
        if scan is not None:
            raise ValueError(
                f"{path} is no scan of a known layout, but {scan.relative_to(path)} in it is one"
                f" ({list_layouts(scan)[0].name}); give the folder of one scan: {scan}."
            )
        for folder in level:
            check_looks(folder, path)


def list_layouts(path: Path) -> list[Layout]:
    """The layouts that a folder has files of, preferring those with pictures: others are listed only if there are
    none."""
    return _match_layouts(Listing(path))


def _match_layouts(listing: Listing) -> list[Layout]:
    found = [layout for layout in LAYOUTS if any(map(listing.has, layout.patterns))]
    without = [layout for layout in LAYOUTS if layout.remains is not None and _is_without_pictures(listing, layout)]
    return found or without


def _is_without_pictures(listing: Listing, layout: Layout) -> bool:
    return all(map(listing.has, (layout.remains, layout.needs)))


def _is_complete(listing: Listing, layout: Layout) -> bool:
    """Whether a folder has the files that a layout cannot be read without, none of them empty or no file."""
    required = (layout.patterns,) if layout.needs is None else (layout.patterns, (layout.needs,))
    return all(any(map(_is_filled, (file for one in patterns for file in listing.glob(one)))) for patterns in required)


def _is_filled(file: Path) -> bool:
    return os.path.isfile(file) and file.stat().st_size > 0


def _list_levels(path: Path) -> Iterator[list[Path]]:
    """The folders in a folder, those in these, and so on, as far down as downloads are laid out."""
    level = [path]
    for _ in range(SEARCHED_LEVELS):
        level = list(islice((inner for folder in level for inner in _list_inner(folder)), MAX_SEARCHED))
        yield level


def _list_inner(folder: Path) -> Iterator[Path]:
    """The folders in a folder, without hidden ones and those that may not be read."""
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    # Unlike those of `pathlib`, the tests below answer no where a link leads to a place that may not be looked at.
    except OSError:
        return
    for inner in (folder / name for name in names[:MAX_LISTED]):
        if os.path.isdir(inner) and os.access(inner, os.R_OK | os.X_OK):
            yield inner


def _warn_of_other_layouts(listing: Listing, layout: Layout) -> None:
    others = [other for other in LAYOUTS if other is not layout and other.read is not layout.read]
    names = [other.name for other in others if _is_complete(listing, other)]
    if names:
        warnings.warn(
            f"{listing.path} is read as {layout.name}; it is also a scan of the layout {' and '.join(names)}, which is"
            " not read: move that to another folder if it is the one you mean",
            stacklevel=3,
        )


def list_folders(path: str | os.PathLike) -> list[Path]:
    """Folders of scans in a folder, by name; none where there is no such folder.

    Hidden folders are skipped: they hold unfinished or killed writes.
    """
    path = Path(path)
    found = path.iterdir() if path.is_dir() else []
    return sorted(folder for folder in found if folder.is_dir() and not folder.name.startswith("."))


def _check_arguments(path: Any, options: Mapping[str, Any]) -> None:
    """Refuse a path and options of other types.

    Raises:
        TypeError: names the argument, what was expected and what came.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected the folder of a scan, a string or Path, got {type(path).__name__}; pass one.")
    for name in ("num_views", "reduce_to"):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise TypeError(f"{name}: expected a whole number, or None, got {value!r}; correct it, or leave it out.")
    for name in ("allow_outside", "look_at_world"):
        value = options.get(name)
        if value is not None and not isinstance(value, bool):
            raise TypeError(f"{name}: expected True or False, got {value!r}; correct it, or leave it out.")


def read_scene(path: str | os.PathLike, *, look_at_world: bool = True, **options) -> Scene:
    """Read and check a scan of any layout, or a video, with the optional files in its folder (optional_files.py).

    Args:
        path (`str` or `Path`): the folder of one scan, whose name is the scene's id; or a video, whose suffix may be
            left out where there is no folder of that name.
        look_at_world (`bool`): warn of a world that is not upright; False for callers that make it upright themselves.
        options: of every reader `num_views`, `reduce_to` and `rotate`, of every folder's `axis_align_matrix`, `boxes`,
            `max_excluded` and `allow_outside` (videos ignore the latter two); further ones of the layout,
            such as `infos` (posed_images) or `labels_file` (scannet).

    Raises:
        FileNotFoundError, ValueError: of `find_layout`, of the layout's reader and of `check_consistency`.
        TypeError: for arguments of another type.
    """
    _check_arguments(path, options | {"look_at_world": look_at_world})
    path = Path(path)
    video = None if path.is_dir() else find_video(path)
    if video is not None:
        _warn_of_files_not_read(video)
        for name in ("max_excluded", "allow_outside"):
            options.pop(name, None)
        useless = [name for name, value in options.items() if name not in VIDEO_OPTIONS and value is not None]
        if useless:
            raise ValueError(
                f"{video}: {', '.join(useless)}: a video has no cameras and no world, so it has no use for this; leave"
                f" it out, or give a folder of posed frames. Options of a video: {', '.join(VIDEO_OPTIONS)}."
            )
        options = {name: value for name, value in options.items() if name in VIDEO_OPTIONS}
        return read_video(video, **options)
    layout = find_layout(path)
    listing = Listing(path)
    _warn_of_other_layouts(listing, layout)
    scene = layout.read(path, **options)
    if scene.depth_maps is None:
        depth = {name: reason for name, reason in list_not_read(path).items() if "depth" in name.lower()}
        if depth:
            warnings.warn(f"scene {scene.scene_id!r} is read without depth; {describe_not_read(depth)}", stacklevel=2)
    _warn_of_near_misses(listing, scene)
    check_consistency(scene)
    if look_at_world:
        check_world(scene)
    return scene


def _warn_of_near_misses(listing: Listing, scene: Scene) -> None:
    """Warn of files whose names come near those of alignment, boxes and proposals, which the scan lacks."""
    values = {
        "axis_align.txt": scene.axis_align_matrix,
        "boxes.json": scene.boxes,
        "proposals.json": scene.proposal_boxes,
    }
    absent = [name for name, value in values.items() if value is None and not listing.find(name)]
    near = [told for name in absent if (told := describe_near_misses(listing, name))]
    if "axis_align.txt" in absent:
        metas = [file.name for file in listing.glob("scene*.txt") if names_alignment(file)]
        near += [f"{name} is not read: save it as axis_align.txt if it is of this scan" for name in metas]
    if near:
        warnings.warn(f"scene {scene.scene_id!r}: {'; '.join(near)}", stacklevel=3)


def _warn_of_files_not_read(video: Path) -> None:
    present = [name for name in OPTIONAL_NAMES[:3] if (video.parent / name).is_file()]
    if present:
        warnings.warn(
            f"{video}: not read: {', '.join(present)} next to it, since a video has no cameras", stacklevel=3
        )


def list_not_read(path: Path) -> dict[str, str]:
    """Files in the folder of a scan that nothing is read from, digits in their names replaced by `*`, with the reason.

    Files of a folder of the same kind are one entry, such as `confidence/*.png (60 files)`.
    """
    layout = find_layout(path)
    known = tuple(map(str.lower, (*layout.files, *OPTIONAL_NAMES)))
    named = {os.path.relpath(file, path) for file in layout.list_elsewhere(path)}
    named |= {name for name in Listing(path).find(f"{path.resolve().name}.txt") if names_alignment(path / name)}
    counts = Counter()
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.relpath(os.path.join(folder, name), path)
            if file in named or name.startswith(".") or any(fnmatchcase(file.lower(), pattern) for pattern in known):
                continue
            counts[re.sub(r"\d+", "*", file)] += 1
    return {
        f"{name} ({count} files)" if count > 1 else name: next(
            reason for pattern, reason in NOT_READ if fnmatchcase(name.lower(), pattern)
        )
        for name, count in counts.items()
    }


def describe_not_read(not_read: dict[str, str]) -> str:
    """The result of `list_not_read`, as a sentence."""
    return "not read: " + "; ".join(f"{name}, {reason}" for name, reason in not_read.items())


def list_files(path: Path) -> list[Path]:
    """Every file that a scan is read from: below its folder, links followed, and where its layout has others.

    Raises:
        FileNotFoundError, ValueError: of `find_layout`.
    """
    path = Path(path)
    video = None if path.is_dir() else find_video(path)
    if video is not None:
        return [video]
    inside, seen = set(), set()
    for folder, folders, names in os.walk(path, followlinks=True):
        # A link to a folder above would be walked without end.
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        inside.update(Path(folder) / name for name in names)
    elsewhere = [file for file in find_layout(path).list_elsewhere(path) if file.is_file()]
    return sorted({*inside, *elsewhere})


def get_reading(
    num_views: int,
    decode: str,
    view_size: int,
    rotate: str | int | None = None,
    max_excluded: float | None = None,
    allow_outside: bool = False,
) -> dict[str, Any]:
    """Options of `read_scene` for a model: number of views, and decoding at full size or as small as its input allows.

    Args:
        decode (`str`): `exact`, pictures at full size (published); or `reduced`, JPEG at the smallest of its scales
            that is no smaller than the model's input, which is faster and changes pixels slightly.
        view_size (`int`): side of the model's input, pixels.
        rotate, max_excluded, allow_outside: see `make_reading`.
    """
    reading = {"num_views": num_views} | ({} if decode == "exact" else {"reduce_to": view_size})
    return reading | make_reading(rotate, max_excluded, allow_outside)


def make_reading(
    rotate: str | int | None = None, max_excluded: float | None = None, allow_outside: bool = False
) -> dict[str, Any]:
    """Options of `read_scene` that all programs share; options not given keep the layout's default.

    Args:
        rotate (*optional*): `auto`, 0, 90, 180 or 270, see `make_scene`.
        max_excluded (`float`, *optional*): share of frames that may be lost, missing or damaged.
        allow_outside (`bool`): whether files and links of a scan may name files outside its folder.

    Raises:
        ValueError: another rotation, or a share outside [0, 1).
    """
    check_share(max_excluded)
    given = {"rotate": check_rotation(rotate), "max_excluded": max_excluded, "allow_outside": allow_outside or None}
    return {name: value for name, value in given.items() if value is not None}


__all__ = [
    "DECODES",
    "LAYOUTS",
    "Layout",
    "check_looks",
    "describe_not_read",
    "find_layout",
    "find_video",
    "get_reading",
    "list_files",
    "list_folders",
    "list_layouts",
    "list_not_read",
    "make_reading",
    "read_scene",
]
