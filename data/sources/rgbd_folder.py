"""A folder of posed RGB-D frames, as 7-Scenes and TSDF tools write it. Our own scenes have the same layout.

    DIR/frame-NNNNNN.color.jpg (or .png)   RGB
    DIR/frame-NNNNNN.depth.png             uint16 millimetres along z, 0 = no reading
    DIR/frame-NNNNNN.pose.txt              4x4 camera to world, metres, OpenCV axes
    DIR/camera-intrinsics.txt              3x3, pixels of the depth map
    DIR/axis_align.txt                     optional 4x4: the world of the poses -> z up, floor at 0; applied here, once
    DIR/boxes.json                         optional [{"box": [cx, cy, cz, dx, dy, dz], "category": ..., ...}, ...]
                                           or [[cx, cy, cz, dx, dy, dz], ...], metres, in the aligned world
    DIR/bev.png, DIR/bev.json              optional RGBA picture from above (alpha 0 = void) and {"bounds": [...]}

Depth and colour may differ in size when their aspect agrees; a folder in which no frame has depth is read without
depth.
"""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene, check_boxes, check_cam2world, check_scene


MILLIMETRES_PER_METRE = 1000.0
COLOR_PATTERN = re.compile(r"^(frame-\d+)\.color\.(jpg|jpeg|png)$")


def read_rgbd_folder(
    path: str | os.PathLike,
    *,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    num_views: int | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
) -> Scene:
    """Read and check a folder of posed frames.

    Args:
        path (`str` or `Path`): the folder; its name becomes the scene's id.
        axis_align_matrix (`(4, 4)` array or file, *optional*): scan to upright world; instead of `axis_align.txt`.
        num_views (`int`, *optional*): read this many frames, evenly spread, none twice; all frames by default.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of `boxes.json`.

    Returns:
        `Scene` in metres with the alignment applied.

    Raises:
        FileNotFoundError, ValueError: name the file, what was expected, what came, and what to do about it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder that holds frame-NNNNNN.color.jpg files.")
    color_files = _find_frames(path)
    names = list(color_files)
    if num_views is not None:
        names = [names[i] for i in sample_uniform(len(names), num_views, unique=True)]
    intrinsics = _read_matrix(
        path / "camera-intrinsics.txt", (3, 3), "the camera's focal lengths and centre in pixels"
    )
    images = np.stack(_same_sizes([(color_files[name], _read_color(color_files[name])) for name in names]))
    cam2world = np.stack(
        [_read_matrix(path / f"{name}.pose.txt", (4, 4), "camera to world, metres") for name in names]
    )
    check_cam2world(cam2world, len(names), f"scene {path.name!r}", [f"{name}.pose.txt" for name in names])
    box_array, box_labels = _read_boxes(path, boxes)
    bev_image, bev_valid, bev_bounds = _read_bev(path)
    scene = Scene(
        scene_id=path.resolve().name,
        images=images,
        depth_maps=_read_depths(path, names, images.shape[1:3], intrinsics),
        intrinsics=intrinsics,
        cam2world=_read_alignment(path, axis_align_matrix) @ cam2world,
        view_names=names,
        boxes=box_array,
        box_labels=box_labels,
        bev_image=bev_image,
        bev_valid=bev_valid,
        bev_bounds=bev_bounds,
        path=path,
    )
    return check_scene(scene)


def _find_frames(path: Path) -> dict[str, Path]:
    frames: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        match = COLOR_PATTERN.match(file.name)
        if match is None:
            continue
        if match[1] in frames:
            raise ValueError(f"{path.name}: {match[1]} has two pictures, {frames[match[1]].name} and {file.name}.")
        frames[match[1]] = file
    if not frames:
        raise ValueError(
            f"{path} holds zero frames; expected files named frame-000000.color.jpg (or .png), frame-000000.depth.png "
            "and frame-000000.pose.txt."
        )
    return frames


def _read_matrix(file: Path, shape: tuple[int, int], meaning: str) -> np.ndarray:
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


def _open_image(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{file}: the picture cannot be read ({error}); it is truncated or damaged: copy it again, or leave the"
            " frame out."
        ) from error
    return image


def _read_color(file: Path) -> np.ndarray:
    return np.asarray(_open_image(file).convert("RGB"))


def _same_sizes(files_and_arrays: list[tuple[Path, np.ndarray]]) -> list[np.ndarray]:
    first_file, first = files_and_arrays[0]
    for file, array in files_and_arrays:
        if array.shape != first.shape:
            raise ValueError(
                f"{file}: size {array.shape[1]}x{array.shape[0]} differs from {first_file.name} with "
                f"{first.shape[1]}x{first.shape[0]}; one folder is one camera: split it, or resize"
                " with the intrinsics."
            )
    return [array for _, array in files_and_arrays]


def _read_depths(path: Path, names: list[str], image_size: tuple[int, int], intrinsics) -> np.ndarray | None:
    files = [path / f"{name}.depth.png" for name in names]
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing ({len(missing)} of {len(files)} frames have no depth); remove those frames, or"
            " all depth files to use the pictures alone."
        )
    depth = np.stack(_same_sizes([(file, _read_depth(file)) for file in files]))
    height, width = depth.shape[1:]
    # Pictures of another size are fine when they show the same field of view, that is, have the same aspect.
    if abs(width * image_size[0] - height * image_size[1]) > max(width, height, *image_size):
        raise ValueError(
            f"{files[0]}: depth is {width}x{height} but the colour picture is {image_size[1]}x{image_size[0]},"
            " another aspect; register depth and colour to one camera first."
        )
    if not (0 <= intrinsics[0, 2] < width and 0 <= intrinsics[1, 2] < height):
        raise ValueError(
            f"{path / 'camera-intrinsics.txt'}: centre ({intrinsics[0, 2]:g}, {intrinsics[1, 2]:g}) lies outside the "
            f"{width}x{height} depth map; intrinsics must be pixels of the depth map: scale them with its size."
        )
    return depth


def _read_depth(file: Path) -> np.ndarray:
    image = _open_image(file)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(
            f"{file}: expected a 16-bit one-channel PNG (millimetres), got mode {image.mode!r}; save depth as uint16."
        )
    values = np.asarray(image)
    readings = values[values > 0]
    if readings.size and readings.max() < MILLIMETRES_PER_METRE / 20:
        raise ValueError(
            f"{file}: the largest depth is {readings.max()}, which looks like metres; expected millimetres: multiply"
            " by 1000 before saving as uint16."
        )
    # TSDF tools and 7-Scenes mark "no reading" with the largest value.
    values = np.where(values == 65535, 0, values)
    return values.astype(np.float32) / np.float32(MILLIMETRES_PER_METRE)


def _read_alignment(path: Path, given) -> np.ndarray:
    if given is None:
        file = path / "axis_align.txt"
        if not file.is_file():
            return np.eye(4)
        matrix, name = _read_matrix(file, (4, 4), "scan to upright world"), str(file)
    elif isinstance(given, (str, os.PathLike)):
        matrix, name = _read_matrix(Path(given), (4, 4), "scan to upright world"), str(given)
    else:
        matrix, name = np.asarray(given, dtype=np.float64), "axis_align_matrix"
    if matrix.shape != (4, 4):
        raise ValueError(f"axis_align_matrix must be (4, 4), got {matrix.shape}.")
    check_cam2world(matrix[None], 1, f"scene {path.name!r}", [name])
    return matrix


def _read_boxes(path: Path, given) -> tuple[np.ndarray | None, list[dict] | None]:
    if given is not None and not isinstance(given, (str, os.PathLike)):
        array = np.asarray(given, dtype=np.float32)
        check_boxes(array, f"scene {path.name!r}, boxes")
        return array, None
    file = path / "boxes.json" if given is None else Path(given)
    if not file.is_file():
        if given is not None:
            raise FileNotFoundError(f"{file} does not exist; expected a JSON list of boxes.")
        return None, None
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
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


def _read_bev(path: Path) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    file = path / "bev.png"
    if not file.is_file():
        return None, None, None
    image = _open_image(file)
    if image.mode != "RGBA":
        raise ValueError(
            f"{file}: expected RGBA with alpha 0 = void, got mode {image.mode!r}; build the picture again."
        )
    pixels = np.array(image)
    bounds_file = path / "bev.json"
    if not bounds_file.is_file():
        raise FileNotFoundError(
            f'{bounds_file} is missing beside bev.png; expected {{"bounds": [xmin, ymin, xmax, ymax]}}.'
        )
    try:
        bounds = np.array(json.loads(bounds_file.read_text())["bounds"], dtype=np.float32)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{bounds_file}: expected {{"bounds": [xmin, ymin, xmax, ymax]}}, got {error!r}.') from error
    valid = pixels[..., 3] > 0
    return pixels[..., :3] * valid[..., None].astype(np.uint8), valid, bounds


def write_rgbd_folder(scene: Scene, path: str | os.PathLike) -> Path:
    """Write `scene` (its world is upright already, so no axis_align.txt) as PNG files; the folder appears at once."""
    path = Path(path)
    check_scene(scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    names = scene.view_names or [f"frame-{index:06d}" for index in range(scene.num_views)]
    for index, name in enumerate(names):
        Image.fromarray(scene.images[index]).save(part / f"{name}.color.png", compress_level=1)
        if scene.depth_maps is not None:
            millimetres = np.round(scene.depth_maps[index] * MILLIMETRES_PER_METRE)
            if millimetres.max() >= 65535:
                raise ValueError(
                    f"scene {scene.scene_id!r}, {name}: depth over 65.5 m does not fit uint16 millimetres."
                )
            Image.fromarray(millimetres.astype(np.uint16)).save(part / f"{name}.depth.png", compress_level=1)
        if scene.cam2world is not None:
            _write_matrix(scene.cam2world[index], part / f"{name}.pose.txt")
    if scene.intrinsics is not None:
        if np.ndim(scene.intrinsics) == 3 and np.ptp(scene.intrinsics, axis=0).max() > 0:
            raise ValueError(f"scene {scene.scene_id!r}: this layout has one camera; intrinsics differ between views.")
        _write_matrix(np.reshape(scene.intrinsics, (-1, 3, 3))[0], part / "camera-intrinsics.txt")
    if scene.boxes is not None:
        labels = scene.box_labels or [{}] * len(scene.boxes)
        rows = [
            {"box": [round(float(v), 4) for v in box], **label} for box, label in zip(scene.boxes, labels, strict=True)
        ]
        (part / "boxes.json").write_text(json.dumps(rows))
    if scene.bev_image is not None:
        _write_bev(scene, part)
    if path.exists():
        shutil.rmtree(path)
    os.replace(part, path)
    return path


def _write_matrix(matrix: np.ndarray, file: Path) -> None:
    file.write_text("\n".join(" ".join(f"{value:.10g}" for value in row) for row in matrix.tolist()) + "\n")


def _write_bev(scene: Scene, folder: Path) -> None:
    valid = scene.bev_image.any(-1) if scene.bev_valid is None else scene.bev_valid
    alpha = np.where(valid, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([scene.bev_image, alpha])).save(folder / "bev.png", compress_level=1)
    bounds = [] if scene.bev_bounds is None else [float(value) for value in scene.bev_bounds]
    (folder / "bev.json").write_text(json.dumps({"bounds": bounds}))
