"""A folder of posed RGB-D frames, as 7-Scenes and TSDF tools write it. Our own scenes have the same layout.

    DIR/frame-NNNNNN.color.jpg (or .png)   RGB
    DIR/frame-NNNNNN.depth.png             uint16 millimetres along z, 0 = no reading
    DIR/frame-NNNNNN.pose.txt              4x4 camera to world, metres, OpenCV axes
    DIR/camera-intrinsics.txt              3x3, pixels of the depth map
    DIR/axis_align.txt                     optional 4x4: the world of the poses -> z up, floor at 0; applied here, once
    DIR/boxes.json                         optional [{"box": [cx, cy, cz, dx, dy, dz], "category": ..., ...}, ...]
                                           or [[cx, cy, cz, dx, dy, dz], ...], metres, in the aligned world
    DIR/proposals.json                     optional, a detector's boxes, as in boxes.json
    DIR/bev.png, DIR/bev.json              optional RGBA picture from above (alpha 0 = void) and {"bounds": [...]},
                                           null where nobody knows them

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

from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.frames import (
    MILLIMETRES_PER_METRE,
    Exclusions,
    choose_views,
    decode_views,
    make_scene,
    open_image,
    read_axis_align_matrix,
    read_boxes,
    read_depth,
    read_matrix,
    scale_intrinsics,
)


COLOR_PATTERN = re.compile(r"^(frame-\d+)\.color\.(jpg|jpeg|png)$")


def read_rgbd_folder(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float = 0.0,
    reduce_to: int | None = None,
) -> Scene:
    """Read and check a folder of posed frames.

    Args:
        path (`str` or `Path`): the folder; its name becomes the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread, none twice; all frames by default.
        axis_align_matrix (`(4, 4)` array or file, *optional*): scan to upright world; instead of `axis_align.txt`. In
            another world than the folder's own its boxes, proposals and picture from above are left out.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of `boxes.json`.
        max_excluded (`float`, defaults to 0): share of frames that may be lost, missing or damaged; they are left out
            and listed in `Scene.exclusions`.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of so many pixels
            (a processor's `view_size`); exactly by default.

    Returns:
        `Scene` in metres with the alignment applied.

    Raises:
        FileNotFoundError, ValueError: name the file, what was expected, what came, and what to do about it.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder that holds frame-NNNNNN.color.jpg files.")
    scene_id = path.resolve().name
    color_files = _find_frames(path)
    intrinsics = read_matrix(path / "camera-intrinsics.txt", (3, 3), "the camera's focal lengths and centre in pixels")
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    cameras = exclusions.read_each(
        color_files, lambda name: read_matrix(path / f"{name}.pose.txt", (4, 4), "camera to world, metres"), "pose"
    )
    chosen = choose_views(exclusions.drop_lost(cameras), num_views)
    views = decode_views(chosen, color_files.__getitem__, _make_depth_reader(path, chosen), exclusions, reduce_to)
    if views.image_size != views.stored_size and views.depth_maps is None:
        intrinsics = scale_intrinsics(intrinsics, views.stored_size, views.image_size)
    align = read_axis_align_matrix(axis_align_matrix, scene_id, lambda: _read_alignment(path))
    own_world = axis_align_matrix is None or _is_same(align, _read_alignment(path))
    default_boxes, detected = path / "boxes.json", path / "proposals.json"
    given_boxes = default_boxes if boxes is None and own_world and default_boxes.is_file() else boxes
    box_array, box_labels = (None, None) if given_boxes is None else read_boxes(given_boxes, scene_id)
    return make_scene(
        path=path,
        scene_id=scene_id,
        views=views,
        intrinsics=intrinsics,
        cam2world=np.stack([cameras[name] for name in views.names]),
        axis_align_matrix=align,
        exclusions=exclusions,
        boxes=box_array,
        box_labels=box_labels,
        proposal_boxes=read_boxes(detected, scene_id)[0] if own_world and detected.is_file() else None,
        bev=read_bev(path) if own_world else (None, None, None),
    )


def _is_same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    """Whether two alignments make the same world; None is the scan's own."""
    one, other = (np.eye(4) if matrix is None else matrix for matrix in (one, other))
    return bool(np.allclose(one, other, atol=1e-6))


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


def _make_depth_reader(path: Path, names: list[str]):
    """The function that reads the depth map of a frame; None where no frame has one."""
    files = {name: path / f"{name}.depth.png" for name in names}
    missing = [file for file in files.values() if not file.is_file()]
    if len(missing) == len(files):
        return None

    def read(name: str) -> np.ndarray:
        if not files[name].is_file():
            raise FileNotFoundError(
                f"{files[name]} is missing ({len(missing)} of {len(files)} frames have no depth); remove those frames,"
                " or all depth files to use the pictures alone."
            )
        return read_depth(files[name])

    return read


def _read_alignment(path: Path) -> np.ndarray | None:
    file = path / "axis_align.txt"
    return read_matrix(file, (4, 4), "scan to upright world") if file.is_file() else None


def read_bev(path: Path) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """The picture from above of a scan's folder, what was seen, and its bounds where they are known; else None.

    Raises:
        FileNotFoundError, ValueError: a picture without `bev.json`, or of another mode than RGBA.
    """
    file = path / "bev.png"
    if not file.is_file():
        return None, None, None
    image = open_image(file)
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
        edges = json.loads(bounds_file.read_text())["bounds"]
        bounds = None if edges is None else np.array(edges, dtype=np.float32)
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
    if scene.proposal_boxes is not None:
        (part / "proposals.json").write_text(json.dumps(scene.proposal_boxes.astype(np.float64).round(4).tolist()))
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
    bounds = None if scene.bev_bounds is None else [float(value) for value in scene.bev_bounds]
    (folder / "bev.json").write_text(json.dumps({"bounds": bounds}))
