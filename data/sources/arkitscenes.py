"""One video of ARKitScenes, as the raw download (or that of its 3dod part) lays it out.

    DIR/<video>/lowres_wide/<video>_<time>.png                  colour, 256x192, seconds in the name
    DIR/<video>/lowres_depth/<video>_<time>.png                 depth, uint16 millimetres
    DIR/<video>/lowres_wide_intrinsics/<video>_<time>.pincam    width height fx fy cx cy
    DIR/<video>/lowres_wide.traj                                time, axis-angle (radians) and translation (metres) of
                                                                world to camera, about ten lines a second
    DIR/<video>/<video>_3dod_annotation.json                    optional: oriented boxes

In the 3dod download the first four are in DIR/<video>/<video>_frames. The world has z up and is metric.

A frame is a line of the trajectory with the picture nearest in time. Pictures are stored in the sensor's orientation,
on their side when the tablet was held upright; all pictures of a video are turned by the same quarter turns until they
are upright. The turn is computed from the cameras: the metadata's `sky_direction` is not reliable. Boxes become the
axis-aligned hulls of the oriented ones, whose yaw and size stay in `box_labels`.
"""

import os
from pathlib import Path

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    Exclusions,
    choose_views,
    decode_views,
    merge_intrinsics,
    read_json,
    read_matrix,
    read_stored_depth,
    scale_intrinsics,
)
from ross3d.data.sources.optional_files import Boxes, OptionalFiles, make_scene, read_alignment
from ross3d.data.sources.spelling import PICTURE_SUFFIXES, Listing, ScanFiles
from ross3d.data.text_files import read_text


# Seconds between a camera and the picture, depth map or intrinsics that belong to it, as in the official loader.
MAX_TIME_DIFFERENCE = 0.005
# Metres; nothing in a room is larger.
MAX_BOX_SIZE = 30.0


def read_arkitscenes(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float | None = None,
    reduce_to: int | None = None,
    rotate: str | int | None = "auto",
    allow_outside: bool = False,
) -> Scene:
    """Read and check one video.

    Args:
        path (`str` or `Path`): DIR/<video>; its name is the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread; all lines of the trajectory by default.
        axis_align_matrix (`(4, 4)` array or file, *optional*): the video's world to another upright one.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of the annotated ones.
        max_excluded (`float`): share of frames that may be lost, missing or damaged.
        reduce_to (`int`, *optional*): as in the other readers; PNG pictures are always decoded exactly.
        rotate (defaults to `"auto"`): 0 leaves the pictures in the sensor's orientation, always landscape; see
            `make_scene`.
        allow_outside (`bool`): let links in the folder lead out of it.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content, and the remedy.
    """
    path = Path(path)
    scene_id = path.resolve().name
    folder = find_frames_folder(path)

    files = ScanFiles(folder, allow_outside)

    def find(file: Path) -> Path:
        return files.find(str(file.relative_to(folder)))

    cameras = read_trajectory(find(folder / "lowres_wide.traj"))
    colors, depths = (
        _list_times(folder / "lowres_wide", *PICTURE_SUFFIXES),
        _list_times(folder / "lowres_depth", ".png"),
    )
    pincams = _list_times(folder / "lowres_wide_intrinsics", ".pincam")
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    tracked = exclusions.drop_lost(cameras)
    color_files = exclusions.read_each(tracked, lambda name: _find_nearest(colors, float(name)), "picture")
    times = {name: _get_time(file) for name, file in color_files.items()}
    depth_files = exclusions.read_each(times, lambda name: _find_nearest(depths, times[name]), "depth map")
    pincam_files = exclusions.read_each(depth_files, lambda name: _find_nearest(pincams, times[name]), "intrinsics")
    views = decode_views(
        choose_views(pincam_files, num_views),
        lambda name: find(color_files[name]),
        lambda name: read_stored_depth(find(depth_files[name])),
        exclusions,
        reduce_to,
    )
    intrinsics = merge_intrinsics(
        np.stack([read_pincam(find(pincam_files[name]), views.depth_size) for name in views.names])
    )
    optional = OptionalFiles(tuple(dict.fromkeys((path, folder))), allow_outside)
    alignment = read_alignment(axis_align_matrix, optional)

    def read_own_boxes() -> Boxes:
        annotation = optional.find(f"{scene_id}_3dod_annotation.json")
        to_world = np.eye(4) if alignment.matrix is None else alignment.matrix
        return (None, None) if annotation is None else read_oriented_boxes(annotation, to_world)

    return make_scene(
        views=views,
        intrinsics=intrinsics,
        cam2world=np.stack([cameras[name] for name in views.names]),
        alignment=alignment,
        exclusions=exclusions,
        optional=optional,
        given_boxes=boxes,
        read_own_boxes=read_own_boxes,
        rotate=rotate,
    )


def find_frames_folder(path: Path) -> Path:
    """The folder that holds a video's frames: its own, or `<video>_frames` in it."""
    folder = path / f"{path.resolve().name}_frames"
    return folder if folder.is_dir() else path


def read_trajectory(file: Path) -> dict[str, np.ndarray]:
    """Camera to world (4, 4), OpenCV axes, metres, by time in seconds as `1234.567`, in the order of time."""
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; expected the trajectory of the video's cameras.")
    cameras = {}
    for number, line in enumerate(read_text(file, "the trajectory of the video's cameras").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            time, *values = (float(word) for word in line.split())
            world2cam = np.eye(4)
            world2cam[:3, :3], world2cam[:3, 3] = _rotate(np.array(values[:3])), np.array(values[3:]).reshape(3)
        except ValueError as error:
            raise ValueError(
                f"{file}, line {number}: expected time, three numbers of axis-angle rotation and three of translation,"
                f" got {line!r} ({error})."
            ) from error
        finite = np.isfinite(world2cam).all()
        cameras[f"{time:.3f}"] = np.linalg.inv(world2cam) if finite else np.full((4, 4), np.nan)
    if not cameras:
        raise ValueError(f"{file} has no line; expected one a camera.")
    return dict(sorted(cameras.items(), key=lambda item: float(item[0])))


def _rotate(axis_angle: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) about an axis by its length in radians (Rodrigues)."""
    angle = np.linalg.norm(axis_angle)
    x, y, z = axis_angle / angle if angle > 0 else axis_angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _list_times(folder: Path, *suffixes: str) -> tuple[np.ndarray, list[Path]]:
    """Times (N,) in seconds, increasing, and files named `<video>_<time>` with one of the suffixes."""
    listing = Listing(folder)
    files = sorted((file for suffix in suffixes for file in listing.glob(f"*_*{suffix}")), key=_get_time)
    if not files:
        raise FileNotFoundError(f"{folder} holds no file named <video>_<time>{suffixes[0]}; download this part too.")
    return np.array([_get_time(file) for file in files]), files


def _get_time(file: Path) -> float:
    word = file.stem.rpartition("_")[2]
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"{file}: expected a name that ends in its time in seconds, got {word!r}.") from error


def _find_nearest(listed: tuple[np.ndarray, list[Path]], time: float) -> Path:
    times, files = listed
    index = int(np.abs(times - time).argmin())
    # Times are written with three decimals, so differences may exceed the limit by a rounding error.
    if abs(times[index] - time) > MAX_TIME_DIFFERENCE + 1e-6:
        raise FileNotFoundError(
            f"{files[index].parent}: no file within {1000 * MAX_TIME_DIFFERENCE:.0f} ms of {time:.3f} s; the nearest"
            f" is {files[index].name}."
        )
    return files[index]


def read_pincam(file: Path, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics (3, 3) in pixels of a picture of `size` (width, height), pixel centres at integers."""
    width, height, focal_x, focal_y, centre_x, centre_y = read_matrix(file, (1, 6), "width height fx fy cx cy")[0]
    intrinsics = np.array([[focal_x, 0, centre_x], [0, focal_y, centre_y], [0, 0, 1]])
    return scale_intrinsics(intrinsics, (width, height), size)


def read_oriented_boxes(file: Path, axis_align_matrix: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """Axis-aligned hulls (K, 6) of a video's oriented boxes, and category, uid, yaw and oriented_size of each."""
    content = read_json(file, "a dictionary with data, the boxes of the video")
    rows, labels = [], []
    try:
        for entry in content["data"]:
            box = entry["segments"]["obbAligned"]
            # Each row is the direction of one of the box's own axes in the world.
            axes = np.array(box["normalizedAxes"], dtype=np.float64).reshape(3, 3) @ axis_align_matrix[:3, :3].T
            centre = axis_align_matrix[:3, :3] @ np.array(box["centroid"]).reshape(3) + axis_align_matrix[:3, 3]
            size = np.array(box["axesLengths"], dtype=np.float64).reshape(3)
            rows.append(np.concatenate([centre, np.abs(axes).T @ size]))
            yaw = float(np.arctan2(axes[0, 1], axes[0, 0]))
            labels.append(
                {"category": entry["label"], "uid": entry["uid"], "yaw": yaw, "oriented_size": size.tolist()}
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected data[i] with label, uid and segments.obbAligned of centroid, axesLengths and"
            f" normalizedAxes, got {error!r}."
        ) from error
    boxes = np.array(rows, dtype=np.float32).reshape(-1, 6)
    if len(boxes) and boxes[:, 3:].max() > MAX_BOX_SIZE:
        raise ValueError(
            f"{file}: a box is {boxes[:, 3:].max():.0f} m long, so these are no metres; divide by 100 or 1000 first."
        )
    return boxes, labels


__all__ = ["read_arkitscenes", "read_oriented_boxes", "read_pincam", "read_trajectory"]
