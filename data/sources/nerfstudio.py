"""Read a folder with a `transforms.json`: nerfstudio, instant-ngp and their conversions of Polycam, Record3D, COLMAP.

    transforms.json   fl_x fl_y cx cy w h, or camera_angle_x, for all frames or in each; frames: file_path,
                      transform_matrix (camera to world, OpenGL axes: x right, y up, z backward), and depth_file_path
                      or depth_path

What differs from our conventions, and is converted here: OpenGL camera axes; pixel centres at half integers (a
principal point of w / 2 is the middle of the picture); `applied_scale`, by which the world was multiplied; and units
of depth. That of `depth_file_path` (nerfstudio) is `depth_unit_scale_factor` metres a unit, by default 0.001, or
metres for floats whose nearest readings are below 50; that of `depth_path` (instant-ngp, NeRFCapture) is
`integer_depth_scale` metres a unit. Either key is accepted for either depth, a frame's own before the file's. Depth
may be smaller than the picture. Paths may be written with backslashes; missing pictures are skipped.

Not converted: COLMAP's world has no unit and no upright axis, Record3D's has y up; give `axis_align_matrix` for the
latter. Frames are in the order of the file.
"""

import difflib
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    Exclusions,
    StoredDepth,
    choose_views,
    decode_views,
    merge_intrinsics,
    read_json,
    read_stored_depth,
    scale_intrinsics,
)
from ross3d.data.sources.inside import resolve_inside, split_name
from ross3d.data.sources.optional_files import OptionalFiles, align_cameras, make_scene, read_alignment
from ross3d.data.sources.spelling import PICTURE_SUFFIXES, Listing, ScanFiles
from ross3d.geometry_ross3d import find_calibration_fault, is_centre_of_turned
from ross3d.inputs_ross3d import MAX_ASPECT_DIFFERENCE


# The file itself, and the one that ScanNet++ has next to it for pictures without distortion.
KEY_FILE, UNDISTORTED_FILE = "transforms.json", "transforms_undistorted.json"
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
# Key of a frame's depth map -> key of its unit in metres.
DEPTH_UNITS = {"depth_file_path": "depth_unit_scale_factor", "depth_path": "integer_depth_scale"}
DEPTH_WORDS = (*DEPTH_UNITS, *DEPTH_UNITS.values())
CAMERA_MODELS = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL"}
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
# Coefficients of lens models that are not read: no view may have any.
OTHER_DISTORTION = ("k5", "k6", "distortion_params", "distortion_coeffs", "distortion_coefficients")
# Keys that decide where a pixel lies. Another spelling of one would be passed over, and its default taken.
GEOMETRY_KEYS = (
    "fl_x", "fl_y", "cx", "cy", "w", "h", "camera_angle_x", "camera_angle_y", "camera_model", "is_fisheye",
    "applied_scale", *DEPTH_UNITS.values(), *DISTORTION,
)  # fmt: skip
SYNONYMS = {
    "ppx": "cx", "ppy": "cy", "principal_point_x": "cx", "principal_point_y": "cy",
    "depth_scale": "integer_depth_scale",
}  # fmt: skip
# Share of letters in common from which on a long key is taken for a misspelling.
MISSPELT_FROM = 0.9
# Share of the picture's width by which lens distortion may move a corner; a visual token is 7 % wide.
MAX_DISTORTION = 0.02


@dataclass(frozen=True)
class DepthUnit:
    """The unit of a depth map.

    Attributes:
        per_metre (`float`, *optional*): units a metre; None if not given: see `StoredDepth`.
        said (`str`): the key and its value, for errors.
    """

    per_metre: float | None
    said: str


def read_nerfstudio(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float | None = None,
    reduce_to: int | None = None,
    rotate: str | int | None = None,
    allow_outside: bool = False,
    depth_unit_scale_factor: float | None = None,
) -> Scene:
    """Read and check a folder with a `transforms.json`.

    Args:
        path (`str` or `Path`): the folder; its name becomes the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread, none twice; all frames by default.
        axis_align_matrix (`(4, 4)` array or file, *optional*): the file's world to an upright one; by default that of
            `axis_align.txt`, or none.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of `boxes.json`.
        max_excluded (`float`, *optional*): share of frames that may be lost, missing or damaged; by default a fifth,
            and half of the pictures may be absent.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of this many
            pixels (a processor's `view_size`); exactly by default.
        rotate (*optional*): degrees, counter-clockwise, to turn pictures, depth and cameras by; see `make_scene`.
        allow_outside (`bool`): let file and links name pictures and depth outside the folder.
        depth_unit_scale_factor (`float`, *optional*): metres of one depth unit; instead of the file's and its
            frames'.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content, and the remedy.
    """
    path = Path(path)
    scene_id = path.resolve().name
    where = f"scene {scene_id!r}"

    files = ScanFiles(path, allow_outside)
    file = files.find(KEY_FILE)
    content = read_json(file, "cameras as nerfstudio writes them")
    frames = _list_frames(content, file)
    scale = _get_number(content, "applied_scale", 1.0, where)
    for name, frame in frames.items():
        _check_camera_model(frame, f"{where}, {name}", path)
    exclusions = Exclusions(where, max_excluded)
    pictures = _find_pictures(files, frames, file)
    besides = _list_other_pictures(files.root, frames)
    present = exclusions.drop_absent(pictures, lambda absent: files.describe_alike(absent, besides))
    cameras = exclusions.read_each(present, lambda name: _get_cam2world(frames[name], scale), "pose")
    tracked = exclusions.drop_lost(cameras)
    chosen = choose_views(tracked, num_views)
    _warn_of_depth_not_read(frames, where)
    depth_keys = {name: _find_depth_key(frame) for name, frame in frames.items()}
    units = {
        name: _get_unit(frames[name], depth_keys[name], depth_unit_scale_factor, f"{where}, {name}", file)
        for name in chosen
        if depth_keys[name] is not None
    }

    def read_depth_map(name: str) -> StoredDepth:
        if depth_keys[name] is None:
            others = next(key for key in depth_keys.values() if key is not None)
            raise FileNotFoundError(
                f"{pictures[name]}: the frame has no {others} although others have one; leave it out."
            )
        unit = units[name]
        found = files.find(frames[name][depth_keys[name]], where=str(file))
        return read_stored_depth(found, unit.per_metre, unit.said)

    optional = OptionalFiles((path,), allow_outside)
    alignment = read_alignment(axis_align_matrix, optional)

    views = decode_views(
        chosen,
        pictures.__getitem__,
        read_depth_map if units else None,
        exclusions,
        reduce_to,
        _get_camera_size(frames[chosen[0]], f"{where}, {chosen[0]}"),
        align_cameras(tracked, alignment),
    )
    intrinsics = np.stack(
        [
            _get_intrinsics(frames[name], views.stored_size, views.depth_size, f"{where}, {name}")
            for name in views.names
        ]
    )
    said = "; ".join(dict.fromkeys(unit.said for unit in units.values()))
    said = f"{said}; translations are metres times applied_scale = {scale:g}" if said else ""
    return make_scene(
        views=replace(views, units=said),
        intrinsics=merge_intrinsics(intrinsics),
        cam2world=np.stack([cameras[name] for name in views.names]),
        alignment=alignment,
        exclusions=exclusions,
        optional=optional,
        given_boxes=boxes,
        rotate=rotate,
    )


def list_named_files(path: Path) -> list[Path]:
    """Pictures and depth maps that transforms.json names, in any folder."""
    files = ScanFiles(path, allow_outside=True)
    file = files.find(KEY_FILE)
    frames = _list_frames(read_json(file, "frames and cameras"), file)
    named = [frame[key] for frame in frames.values() for key in DEPTH_UNITS if isinstance(frame.get(key), str)]
    return [file, *_find_pictures(files, frames, file).values(), *map(files.find, named)]


def _list_frames(content: Any, file: Path) -> dict[str, dict]:
    """The frames by their file path without suffix, or with it where two differ in nothing else, each with the keys
    shared by all frames filled in."""
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(_names_picture_and_camera(frame) for frame in frames):
        raise ValueError(f"{file}: expected frames, each with file_path and transform_matrix; export it again.")
    shared = {key: value for key, value in content.items() if key != "frames"}
    paths = [
        "/".join(split_name(frame["file_path"], f"{file}, frame {number}, file_path"))
        for number, frame in enumerate(frames)
    ]
    stems = [path.removesuffix(suffix) if (suffix := _get_picture_suffix(path)) else path for path in paths]
    counts = Counter(stems)
    names = [path if counts[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    for path, stem in zip(paths, stems, strict=True):
        # Of two names of which one lacks its suffix, that one may mean the picture of the other.
        if counts[stem] > 1 and (not _get_picture_suffix(path) or paths.count(path) > 1):
            raise ValueError(f"{file}: the picture {stem!r} has two frames; each frame needs a picture of its own.")
    filled = {name: _fill_in(shared, frame) for name, frame in zip(names, frames, strict=True)}
    for keys in {frozenset(frame) for frame in filled.values()}:
        _check_keys(keys, file)
    for frame in filled.values():
        _check_other_distortion(frame, file)
    return filled


def _get_picture_suffix(path: str) -> str:
    """The suffix of a picture's path as it is written; empty where it has none."""
    suffix = Path(path).suffix
    return suffix if suffix.lower() in PICTURE_SUFFIXES else ""


def _check_keys(keys: frozenset[str], file: Path) -> None:
    """Refuse other spellings of the keys that decide where a pixel lies, such as c_x and cameraModel.

    Raises:
        ValueError: names the key and the one that is meant.
    """
    plain = {_simplify(key): key for key in GEOMETRY_KEYS}
    for key in sorted(keys - {*GEOMETRY_KEYS}):
        meant = SYNONYMS.get(key.lower()) or plain.get(_simplify(key))
        if meant is None and len(key) >= len("camera_model"):
            meant = next(iter(difflib.get_close_matches(key.lower(), GEOMETRY_KEYS, 1, MISSPELT_FROM)), None)
        # Either unit counts for either depth, and without depth none does.
        alike = {*DEPTH_UNITS.values()} if meant in DEPTH_UNITS.values() else {meant}
        is_idle = meant in DEPTH_UNITS.values() and not keys & DEPTH_UNITS.keys()
        if meant is not None and not is_idle and not keys & alike:
            raise ValueError(
                f"{file}: expected the key {meant!r}, got {key!r}, which is not read; rename it, with its value in the"
                f" unit of {meant!r}, or take it out."
            )


def _simplify(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _check_other_distortion(frame: Mapping[str, Any], file: Path) -> None:
    """Refuse lens coefficients under keys that are not read, unless all are zero."""
    for key in OTHER_DISTORTION:
        value = frame.get(key)
        numbers = value if isinstance(value, list) else [value]
        if any(_is_number(number) and number != 0 for number in numbers):
            raise ValueError(
                f"{file}: expected lens distortion as {', '.join(DISTORTION)}, got {key} = {str(value)[:80]}, which is"
                " not read; rename the coefficients, or undistort the pictures first (COLMAP: image_undistorter)."
            )


def _fill_in(shared: Mapping[str, Any], frame: Mapping[str, Any]) -> dict[str, Any]:
    """A frame with the file's shared keys; its own unit of depth, under either key, replaces the shared one."""
    if any(key in frame for key in DEPTH_UNITS.values()):
        shared = {key: value for key, value in shared.items() if key not in DEPTH_UNITS.values()}
    return {**shared, **frame}


def _names_picture_and_camera(frame: Any) -> bool:
    return isinstance(frame, dict) and isinstance(frame.get("file_path"), str) and "transform_matrix" in frame


def _find_depth_key(frame: Mapping[str, Any]) -> str | None:
    """The key that names a frame's depth map; None where it has none."""
    return next((key for key in DEPTH_UNITS if frame.get(key) is not None), None)


def _warn_of_depth_not_read(frames: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Warn of keys that name depth which is not read: unknown ones, and the second of two in one frame."""
    named = [[str(frame[key]) for key in DEPTH_UNITS if frame.get(key) is not None] for frame in frames.values()]
    both = any(len(set(files)) > 1 for files in named)
    known = [key for key in DEPTH_UNITS if both or any(frame.get(key) is not None for frame in frames.values())]
    others = sorted(
        {
            key
            for frame in frames.values()
            for key, value in frame.items()
            if "depth" in key.lower() and key not in DEPTH_WORDS and isinstance(value, str | dict)
        }
    )
    if others or both:
        read = known[0] if known else "none"
        not_read = [*(known[1:] if both else []), *others]
        warnings.warn(
            f"{where}: transforms.json names depth as {', '.join(not_read)}, which is not read (read:"
            f" {read}); rename the key to one of {', '.join(DEPTH_UNITS)}, with the metres of one unit as"
            f" {' or '.join(DEPTH_UNITS.values())}, if it is to be read",
            stacklevel=3,
        )


def _get_unit(frame: Mapping[str, Any], depth_key: str, given: float | None, where: str, file: Path) -> DepthUnit:
    """The unit of a frame's depth.

    The frame's own unit is used, then the file's (`_fill_in`), under the key of either kind of depth.
    """
    values = frame if given is None else {"depth_unit_scale_factor": given}
    metres = {key: _get_number(values, key, 0.0, where) for key in DEPTH_UNITS.values() if key in values}
    said = " and ".join(f"{key} = {value:g}" for key, value in metres.items())
    if len(set(metres.values())) > 1:
        raise ValueError(
            f"{where}: expected one unit of depth, transforms.json says {said} metres; leave the right one of the two."
        )
    if metres:
        source = f"{said} in {file}" if given is None else f"the argument {said}"
        return DepthUnit(1.0 / next(iter(metres.values())), f"{source} (metres a unit; 0.001 for millimetres)")
    if depth_key == "depth_path":
        raise ValueError(
            f"{where}: transforms.json names depth as depth_path and lacks integer_depth_scale, the metres of one"
            " unit; add it (0.001 for millimetres), or take depth_path out to use the pictures alone."
        )
    return DepthUnit(None, f"no depth_unit_scale_factor in {file}, so whole numbers of depth are millimetres")


def _get_camera_size(frame: Mapping[str, Any], where: str) -> tuple[float, float] | None:
    """Width and height of the pictures that the cameras belong to; None if the file does not give them."""
    for width_key, height_key, factor in (("w", "h", 1.0), ("cx", "cy", 2.0)):
        if width_key in frame and height_key in frame:
            width, height = (_get_number(frame, key, 0.0, where) for key in (width_key, height_key))
            return factor * width, factor * height
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _get_number(values: Mapping[str, Any], key: str, default: float, where: str, above: float = 0.0) -> float:
    """A number of the file that has to be finite and larger than `above`."""
    value = values.get(key, default)
    if not _is_number(value) or not above < value < np.inf:
        raise ValueError(f"{where}: {key} must be a finite number above {above:g}, got {value!r}; correct the file.")
    return float(value)


def _get_cam2world(frame: Mapping[str, Any], applied_scale: float) -> np.ndarray:
    """Camera to world (4, 4) with OpenCV axes, in metres when the file's world was metres before `applied_scale`."""
    rows = frame["transform_matrix"]
    is_matrix = isinstance(rows, list) and len(rows) in (3, 4)
    if not is_matrix or not all(isinstance(row, list) and len(row) == 4 and all(map(_is_number, row)) for row in rows):
        raise ValueError(
            f"{frame['file_path']}: transform_matrix must be (4, 4) numbers, or their first three rows, got"
            f" {str(rows)[:80]}; export it again."
        )
    matrix = np.array(rows if len(rows) == 4 else [*rows, [0, 0, 0, 1]], dtype=np.float64)
    matrix[:3, 3] /= applied_scale
    return matrix @ OPENGL_TO_OPENCV


def _check_camera_model(frame: Mapping[str, Any], where: str, path: Path) -> None:
    """Refuse lens models other than OpenCV's; their names count in upper and lower case."""
    model = str(frame.get("camera_model", "OPENCV")).upper()
    # instant-ngp marks fisheye cameras this way and names no camera model.
    is_fisheye = bool(frame.get("is_fisheye"))
    if not is_fisheye and model in CAMERA_MODELS:
        return
    got = f"is_fisheye = {frame['is_fisheye']!r}" if is_fisheye else repr(frame["camera_model"])
    remedy = "undistort the pictures to a pinhole camera first"
    if Listing(path).find(UNDISTORTED_FILE):
        remedy = f"copy {UNDISTORTED_FILE} as {KEY_FILE} into the folder of the undistorted pictures, and give that"
    raise ValueError(f"{where}: camera_model must be one of {sorted(CAMERA_MODELS)}, got {got}; {remedy}.")


def _get_intrinsics(
    frame: Mapping[str, Any], stored_size: tuple[int, int], size: tuple[int, int], where: str
) -> np.ndarray:
    """Intrinsics (3, 3) of a frame in pixels of a picture of `size` (width, height), pixel centres at integers.

    `stored_size` is that of the picture on disk, for files that do not give it.
    """
    width, height = (_get_number(frame, key, side, where) for key, side in zip("wh", stored_size, strict=True))
    if abs(width * stored_size[1] - height * stored_size[0]) > MAX_ASPECT_DIFFERENCE * width * stored_size[1]:
        raise ValueError(
            f"{where}: cameras are of {width:g}x{height:g} pixels but the picture has {stored_size[0]}x"
            f"{stored_size[1]}, another aspect; was it cropped, or turned by its viewer alone?"
        )
    focal_x, focal_y = _get_focal(frame, "x", width, where), _get_focal(frame, "y", height, where)
    focal_x, focal_y = focal_x or focal_y, focal_y or focal_x
    if focal_x is None or focal_y is None:
        raise ValueError(f"{where}: transforms.json has neither fl_x nor camera_angle_x, for all frames or this one.")
    centre_x = _get_number(frame, "cx", width / 2, where, -np.inf)
    centre_y = _get_number(frame, "cy", height / 2, where, -np.inf)
    fault = find_calibration_fault(centre_x - 0.5, centre_y - 0.5, height, width)
    if fault is not None:
        is_turned = is_centre_of_turned(centre_x - 0.5, centre_y - 0.5, height, width)
        remedy = (
            "swap fl_x with fl_y and cx with cy, or turn the pictures" if is_turned else "correct the size or them"
        )
        raise ValueError(
            f"{where}: transforms.json has cameras of w = {width:g}, h = {height:g} with fl_x = {focal_x:g}, cx ="
            f" {centre_x:g}, cy = {centre_y:g}{fault}; w and h are those of the pictures that the others are pixels"
            f" of: {remedy}."
        )
    coefficients = [_get_number(frame, key, 0.0, where, -np.inf) for key in DISTORTION]
    focal, centre = np.array([focal_x, focal_y]), np.array([centre_x, centre_y])
    shift = _get_distortion(coefficients, np.array([width, height]), focal, centre)
    if shift > MAX_DISTORTION * width:
        raise ValueError(
            f"{where}: lens distortion ({', '.join(DISTORTION)}) moves a corner by {shift:.1f} pixels, more than"
            f" {MAX_DISTORTION:.0%} of the width; undistort the pictures first (COLMAP: image_undistorter)."
        )
    intrinsics = np.array([[focal_x, 0, centre_x - 0.5], [0, focal_y, centre_y - 0.5], [0, 0, 1]])
    return scale_intrinsics(intrinsics, (width, height), size)


def _get_focal(frame: Mapping[str, Any], axis: str, length: float, where: str) -> float | None:
    """Focal length in pixels along an axis of `length` pixels, as given or from the angle of view in radians."""
    if f"fl_{axis}" in frame:
        return _get_number(frame, f"fl_{axis}", 0.0, where)
    if f"camera_angle_{axis}" in frame:
        angle = _get_number(frame, f"camera_angle_{axis}", 0.0, where)
        if angle >= np.pi:
            raise ValueError(
                f"{where}: camera_angle_{axis} must be radians below pi, got {angle:g}, which looks like degrees;"
                " multiply by pi / 180."
            )
        return length / 2 / float(np.tan(angle / 2))
    return None


def _get_distortion(coefficients: list[float], size: np.ndarray, focal: np.ndarray, centre: np.ndarray) -> float:
    """Largest shift of a corner by OpenCV's lens model, pixels; `coefficients` as in DISTORTION."""
    k1, k2, k3, k4, p1, p2 = coefficients
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * size
    x, y = ((corners - centre) / focal).T
    r2 = x**2 + y**2
    radial = r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    shift_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    shift_y = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return float(np.hypot(shift_x * focal[0], shift_y * focal[1]).max())


def _list_other_pictures(root: Path, frames: Mapping[str, Mapping[str, Any]]) -> set[Path]:
    """Depth maps, masks and the like that the frames name."""
    others = {
        value
        for frame in frames.values()
        for key, value in frame.items()
        if key.endswith("_path") and key != "file_path" and isinstance(value, str)
    }
    return {root / os.path.normpath(name.replace("\\", "/")) for name in others}


def _find_pictures(files: ScanFiles, frames: Mapping[str, Mapping[str, Any]], file: Path) -> dict[str, Path]:
    """The picture of each frame: as it is named, or the only file of another spelling, of a suffix where it has none
    (NeRF's synthetic scenes), that is no depth map, mask or picture of another frame."""

    def resolve(name: str) -> Path:
        return resolve_inside(files.root, name, where=str(file), allow_outside=files.allow_outside)

    pictures = {name: resolve(frame["file_path"]) for name, frame in frames.items()}
    absent = [name for name, picture in pictures.items() if not picture.exists()]
    besides = {*pictures.values(), *_list_other_pictures(files.root, frames)} if absent else set()
    for name in absent:
        path = frames[name]["file_path"]
        if pictures[name].is_relative_to(files.root):
            pictures[name] = files.find(path, where=str(file), suffixes=PICTURE_SUFFIXES, besides=besides)
        else:
            added = [other for suffix in PICTURE_SUFFIXES if (other := resolve(path + suffix)).exists()]
            pictures[name] = added[0] if len(added) == 1 else pictures[name]
    return pictures


__all__ = ["list_named_files", "read_nerfstudio"]
