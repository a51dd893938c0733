"""A folder of posed RGB-D frames, as 7-Scenes and TSDF tools write it. Our own scenes have the same layout.

    DIR/frame-NNNNNN.color.jpg (or .png)   RGB; or .rgb.jpg, and other suffixes of pictures
    DIR/frame-NNNNNN.depth.png             uint16 millimetres along z, 0 = no reading; or .pgm (3RScan, ScanNet's
                                           tools), .tif, or .npy, whose floats are metres
    DIR/frame-NNNNNN.pose.txt              4x4 camera to world, metres, OpenCV axes
    DIR/camera-intrinsics.txt              3x3, pixels of the depth map
    DIR/axis_align.txt, boxes.json, ...    see optional_files.py

`frame_NNNNNN` and upper case count as well. Depth and colour may differ in size when their aspect agrees; a folder in
which no frame has depth is read without depth.
"""

import json
import os
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.names import check_name
from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.frames import (
    MILLIMETRES_PER_METRE,
    Exclusions,
    StoredDepth,
    choose_views,
    decode_views,
    read_matrix,
    read_stored_depth,
    scale_intrinsics,
)
from ross3d.data.sources.optional_files import OptionalFiles, align_cameras, make_scene, read_alignment
from ross3d.data.sources.pictures import NOT_READ_DEPTH
from ross3d.data.sources.spelling import NOT_READ_PICTURES, READ_PICTURES, Listing, ScanFiles


# Words in the names of pictures; the second counts in folders without the first.
COLOR_WORDS = ("color", "rgb")
# `.depth.proj.png` and `.rendered.depth.png`, written by other tools, are not depth maps of this layout.
DEPTH_SUFFIXES = (".png", ".pgm", ".tif", ".tiff", ".npy", *NOT_READ_DEPTH)
DEPTH_PATTERN = re.compile(
    rf"^frame[-_](\d+)\.depth((?:\.npy|\.raw)?(?:{'|'.join(map(re.escape, DEPTH_SUFFIXES))}))$", re.IGNORECASE
)
POSE_PATTERN = re.compile(r"^frame[-_](\d+)\.pose\.(txt)$", re.IGNORECASE)
POSE = "camera to world, metres"
# Files that `write_rgbd_folder` writes.
WRITTEN = (
    "*.color.png", "*.depth.png", "*.pose.txt", "camera-intrinsics.txt", "boxes.json", "proposals.json", "bev.png",
    "bev.json",
)  # fmt: skip


def read_rgbd_folder(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float = 0.0,
    reduce_to: int | None = None,
    rotate: str | int | None = None,
    allow_outside: bool = False,
) -> Scene:
    """Read and check a folder of posed frames.

    Args:
        path (`str` or `Path`): the folder; its name becomes the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread, none twice; all frames by default.
        axis_align_matrix (`(4, 4)` array or file, *optional*): scan to upright world; instead of `axis_align.txt`. If
            it leads to another world than the folder's, boxes, proposals and bird's-eye picture are left out.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of `boxes.json`.
        max_excluded (`float`, defaults to 0): share of frames that may be lost, missing or damaged; they are left out
            and listed in `Scene.exclusions`.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of this many
            pixels (a processor's `view_size`); exactly by default.
        rotate (*optional*): degrees, counter-clockwise, to turn pictures, depth and cameras by; see `make_scene`.
        allow_outside (`bool`): let links in the folder lead out of it.

    Returns:
        `Scene` in metres with the alignment applied.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content, and the remedy.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder; give the folder that holds frame-NNNNNN.color.jpg files.")
    scene_id = path.resolve().name
    find = ScanFiles(path, allow_outside).find
    color_files = _find_pictures(path)
    depth_files = _find_frames(path, DEPTH_PATTERN, "depth maps")
    poses = _find_frames(path, POSE_PATTERN, "poses")
    # A pose or a depth map without a picture is a frame whose picture is lost.
    names = sorted({*color_files, *depth_files, *poses})
    if names and not color_files:
        others = [file.name for word in COLOR_WORDS for file in Listing(path).glob(f"frame[-_]*.{word}.*")]
        remedy = "copy the pictures again"
        if others:
            remedy = f"{others[0]} is there, whose suffix is that of no picture: save the pictures as .png"
        raise FileNotFoundError(
            f"{path}: the pictures of all {len(names)} frames are absent, from {names[0]}.color.jpg (or .png) to"
            f" {names[-1]}, whose poses or depth maps are there; {remedy}."
        )
    if not color_files:
        raise ValueError(
            f"{path} holds zero frames; expected files named frame-000000.color.jpg (or .png), frame-000000.depth.png "
            "and frame-000000.pose.txt."
        )
    intrinsics = _read_intrinsics(find("camera-intrinsics.txt"))
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    present = exclusions.drop_absent({name: path / color_files.get(name, f"{name}.color.jpg") for name in names})
    cameras = exclusions.read_each(
        present, lambda name: read_matrix(find(poses.get(name, f"{name}.pose.txt")), (4, 4), POSE), "pose"
    )
    tracked = exclusions.drop_lost(cameras)
    chosen = choose_views(tracked, num_views)
    missing = [name for name in chosen if name not in depth_files]

    def read_depth_map(name: str) -> StoredDepth:
        if name not in depth_files:
            raise FileNotFoundError(
                f"{path / name}.depth.png is missing ({len(missing)} of {len(chosen)} frames have no depth); remove"
                " those frames, or all depth files to use the pictures alone."
            )
        return read_stored_depth(find(depth_files[name]))

    optional = OptionalFiles((path,), allow_outside)
    alignment = read_alignment(axis_align_matrix, optional)
    views = decode_views(
        chosen,
        lambda name: find(color_files[name]),
        None if len(missing) == len(chosen) else read_depth_map,
        exclusions,
        reduce_to,
        # The centre of the camera's picture.
        camera_size=(max(2 * intrinsics[0, 2] + 1, 1.0), max(2 * intrinsics[1, 2] + 1, 1.0)),
        cam2world=align_cameras(tracked, alignment),
    )
    if views.image_size != views.stored_size and views.depth_maps is None:
        intrinsics = scale_intrinsics(intrinsics, views.stored_size, views.image_size)
    return make_scene(
        views=views,
        intrinsics=intrinsics,
        cam2world=np.stack([cameras[name] for name in views.names]),
        alignment=alignment,
        exclusions=exclusions,
        optional=optional,
        given_boxes=boxes,
        rotate=rotate,
    )


def _find_pictures(path: Path) -> dict[str, str]:
    """File names of pictures by frame; those of a kind that is not read are taken where a frame has no other."""
    found = {
        (word, suffixes): _find_frames(
            path,
            re.compile(rf"^frame[-_](\d+)\.{word}({'|'.join(map(re.escape, suffixes))})$", re.IGNORECASE),
            "pictures",
        )
        for suffixes in (READ_PICTURES, NOT_READ_PICTURES)
        for word in COLOR_WORDS
    }
    word = next((word for (word, _), files in found.items() if files), COLOR_WORDS[0])
    return found[word, NOT_READ_PICTURES] | found[word, READ_PICTURES]


def _find_frames(path: Path, pattern: re.Pattern, what: str) -> dict[str, str]:
    """File names by the frame that they begin with, as `frame-NNNNNN`."""
    frames: dict[str, str] = {}
    for name in sorted(os.listdir(path)):
        match = pattern.match(name)
        if match is None:
            continue
        frame = f"frame-{match[1]}"
        if frame in frames:
            raise ValueError(f"{path.name}: {frame} has two {what}, {frames[frame]} and {name}; leave one of the two.")
        frames[frame] = name
    return frames


def _read_intrinsics(file: Path) -> np.ndarray:
    if not file.exists() and (file.parent / "_info.txt").is_file():
        raise FileNotFoundError(
            f"{file} is missing; this is a sequence of 3RScan or of ScanNet's tools, whose cameras lie in _info.txt:"
            " write the first three numbers of the first three rows of m_calibrationDepthIntrinsic there."
        )
    return read_matrix(file, (3, 3), "the camera's focal lengths and centre in pixels")


def write_rgbd_folder(scene: Scene, path: str | os.PathLike) -> Path:
    """Write `scene` (its world is upright, so without axis_align.txt) as PNG files; the folder is written atomically.

    Raises:
        ValueError: the layout cannot store the scene; or `path` exists and was not written by this function.
    """
    path = Path(path)
    check_scene(scene)
    if path.is_symlink() or (path.exists() and not _holds_own_files(path)):
        raise ValueError(
            f"{path}: expected no such folder yet, or one with a scene's files alone, which is replaced, got something"
            " else; move it away, or choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    names = scene.view_names or [f"frame-{index:06d}" for index in range(scene.num_views)]
    for index, name in enumerate(names):
        check_name(name, f"scene {scene.scene_id!r}, view_names")
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


def _holds_own_files(path: Path) -> bool:
    """Whether a folder holds only files that `write_rgbd_folder` writes."""
    return path.is_dir() and all(any(fnmatch(file.name, name) for name in WRITTEN) for file in path.iterdir())


def _write_matrix(matrix: np.ndarray, file: Path) -> None:
    file.write_text("\n".join(" ".join(f"{value:.10g}" for value in row) for row in matrix.tolist()) + "\n")


def _write_bev(scene: Scene, folder: Path) -> None:
    valid = scene.bev_image.any(-1) if scene.bev_valid is None else scene.bev_valid
    alpha = np.where(valid, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([scene.bev_image, alpha])).save(folder / "bev.png", compress_level=1)
    bounds = None if scene.bev_bounds is None else [float(value) for value in scene.bev_bounds]
    (folder / "bev.json").write_text(json.dumps({"bounds": bounds}))
