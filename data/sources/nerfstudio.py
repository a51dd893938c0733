"""A folder with a `transforms.json`: nerfstudio, instant-ngp and what they make of Polycam, Record3D and COLMAP.

    transforms.json   fl_x fl_y cx cy w h, or camera_angle_x, for all frames or in each; frames: file_path,
                      transform_matrix (camera to world, OpenGL axes: x right, y up, z backward), depth_file_path

What differs from our conventions, and is converted here: OpenGL camera axes; pixel centres at half integers (a
principal point of w / 2 is the middle of the picture); depth of `depth_unit_scale_factor` metres a unit (0.001 unless
said otherwise); `applied_scale`, by which the world was multiplied. Depth may be smaller than the picture.

What is not known and stays with the user: COLMAP's world has no unit and no upright axis, Record3D's has y up; give
`axis_align_matrix` for the latter. Frames stand in the order of the file.
"""

import os
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    MAX_ASPECT_DIFFERENCE,
    MAX_EXCLUDED,
    Exclusions,
    choose_views,
    decode_views,
    make_scene,
    merge_intrinsics,
    read_axis_align_matrix,
    read_boxes,
    read_depth,
    read_json,
    scale_intrinsics,
)


OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
DEPTH_UNIT = 1e-3
CAMERA_MODELS = {"OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL"}
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
# Share of the picture's width by which lens distortion may move a corner; a visual token is 7 % wide.
MAX_DISTORTION = 0.02


def read_nerfstudio(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float = MAX_EXCLUDED,
    reduce_to: int | None = None,
    depth_unit_scale_factor: float | None = None,
) -> Scene:
    """Read and check a folder with a `transforms.json`.

    Args:
        path (`str` or `Path`): the folder; its name becomes the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread, none twice; all frames by default.
        axis_align_matrix (`(4, 4)` array or file, *optional*): the file's world to an upright one; none by default.
        boxes (`(K, 6)` array or JSON file, *optional*).
        max_excluded (`float`): share of frames that may be lost, missing or damaged.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of so many pixels
            (a processor's `view_size`); exactly by default.
        depth_unit_scale_factor (`float`, *optional*): metres of one depth unit; instead of the file's.

    Raises:
        FileNotFoundError, ValueError: name the file, what was expected, what came, and what to do about it.
    """
    path = Path(path)
    scene_id = path.resolve().name
    where = f"scene {scene_id!r}"
    content = read_json(path / "transforms.json", "cameras as nerfstudio writes them")
    frames = _list_frames(content, path / "transforms.json")
    scale = _get_number(content, "applied_scale", 1.0, where)
    exclusions = Exclusions(where, max_excluded)
    cameras = exclusions.read_each(frames, lambda name: _get_cam2world(frames[name], scale), "pose")
    chosen = choose_views(exclusions.drop_lost(cameras), num_views)
    given = {} if depth_unit_scale_factor is None else {"depth_unit_scale_factor": depth_unit_scale_factor}
    unit = _get_number(content | given, "depth_unit_scale_factor", DEPTH_UNIT, where)
    with_depth = any("depth_file_path" in frames[name] for name in chosen)
    views = decode_views(
        chosen,
        lambda name: _find_picture(path, frames[name]["file_path"]),
        (lambda name: _read_depth(path, frames[name], unit)) if with_depth else None,
        exclusions,
        reduce_to,
    )
    intrinsics = np.stack(
        [
            _get_intrinsics(frames[name], views.stored_size, views.depth_size, f"{where}, {name}")
            for name in views.names
        ]
    )
    box_array, box_labels = (None, None) if boxes is None else read_boxes(boxes, scene_id)
    return make_scene(
        path=path,
        scene_id=scene_id,
        views=views,
        intrinsics=merge_intrinsics(intrinsics),
        cam2world=np.stack([cameras[name] for name in views.names]),
        axis_align_matrix=read_axis_align_matrix(axis_align_matrix, scene_id),
        exclusions=exclusions,
        boxes=box_array,
        box_labels=box_labels,
    )


def list_named_files(path: Path) -> list[Path]:
    """Pictures and depth maps that transforms.json names, wherever they lie."""
    frames = _list_frames(read_json(path / "transforms.json", "frames and cameras"), path / "transforms.json")
    named = [frame[key] for frame in frames.values() for key in ("file_path", "depth_file_path") if key in frame]
    return [path / name for name in named]


def _list_frames(content: Any, file: Path) -> dict[str, dict]:
    """The frames by the stem of their file path, each with the keys that stand for all frames filled in."""
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(_names_picture_and_camera(frame) for frame in frames):
        raise ValueError(f"{file}: expected frames, each with file_path and transform_matrix; export it again.")
    shared = {key: value for key, value in content.items() if key != "frames"}
    names = [str(Path(frame["file_path"]).with_suffix("")) for frame in frames]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{file}: the picture {twice!r} has two frames; each frame needs a picture of its own.")
    return {name: shared | frame for name, frame in zip(names, frames, strict=True)}


def _names_picture_and_camera(frame: Any) -> bool:
    return isinstance(frame, dict) and isinstance(frame.get("file_path"), str) and "transform_matrix" in frame


def _get_number(values: Mapping[str, Any], key: str, default: float, where: str, above: float = 0.0) -> float:
    """A number of the file that has to be finite and larger than `above`."""
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, Real) or not above < value < np.inf:
        raise ValueError(f"{where}: {key} must be a finite number above {above:g}, got {value!r}; correct the file.")
    return float(value)


def _get_cam2world(frame: Mapping[str, Any], applied_scale: float) -> np.ndarray:
    """Camera to world (4, 4) with OpenCV axes, in metres when the file's world was metres before `applied_scale`."""
    try:
        matrix = np.array(frame["transform_matrix"], dtype=np.float64).reshape(-1, 4)
        matrix = np.concatenate([matrix, [[0, 0, 0, 1]]]) if len(matrix) == 3 else matrix.reshape(4, 4)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{frame['file_path']}: transform_matrix must be (4, 4) numbers, or their first three rows ({error})."
        ) from error
    matrix[:3, 3] /= applied_scale
    return matrix @ OPENGL_TO_OPENCV


def _get_intrinsics(
    frame: Mapping[str, Any], stored_size: tuple[int, int], size: tuple[int, int], where: str
) -> np.ndarray:
    """Intrinsics (3, 3) of a frame in pixels of a picture of `size` (width, height), pixel centres at integers.

    `stored_size` is that of the picture on disk, for files that do not say it.
    """
    model = str(frame.get("camera_model", "OPENCV"))
    if model not in CAMERA_MODELS:
        raise ValueError(
            f"{where}: camera_model must be one of {sorted(CAMERA_MODELS)}, got {model!r}; undistort the pictures to a"
            " pinhole camera first."
        )
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
    """Focal length in pixels along an axis of `length` pixels, from itself or from the angle of view in radians."""
    if f"fl_{axis}" in frame:
        return _get_number(frame, f"fl_{axis}", 0.0, where)
    if f"camera_angle_{axis}" in frame:
        return length / 2 / float(np.tan(_get_number(frame, f"camera_angle_{axis}", 0.0, where) / 2))
    return None


def _get_distortion(coefficients: list[float], size: np.ndarray, focal: np.ndarray, centre: np.ndarray) -> float:
    """Pixels by which OpenCV's lens model moves the corner that it moves most; `coefficients` as in DISTORTION."""
    k1, k2, k3, k4, p1, p2 = coefficients
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * size
    x, y = ((corners - centre) / focal).T
    r2 = x**2 + y**2
    radial = r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    shift_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
    shift_y = y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y
    return float(np.hypot(shift_x * focal[0], shift_y * focal[1]).max())


def _find_picture(path: Path, file_path: str) -> Path:
    """The picture of a frame; NeRF's synthetic scenes leave its suffix out."""
    file = path / file_path
    candidates = [file, *(file.with_name(file.name + suffix) for suffix in (".png", ".jpg", ".jpeg"))]
    return next((candidate for candidate in candidates if candidate.is_file()), file)


def _read_depth(path: Path, frame: Mapping[str, Any], unit: float) -> np.ndarray:
    if "depth_file_path" not in frame:
        raise FileNotFoundError(
            f"{path / frame['file_path']}: the frame has no depth_file_path although others have one; leave it out."
        )
    return read_depth(path / frame["depth_file_path"], 1.0 / unit)


__all__ = ["read_nerfstudio"]
