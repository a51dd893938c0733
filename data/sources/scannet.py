"""A raw ScanNet scan, as the official download lays it out.

    DIR/scans/<scene>/<scene>.sens                               frames, read one at a time (sens.py)
    DIR/scans/<scene>/<scene>.txt                                axisAlignment; test scans have none
    DIR/scans/<scene>/<scene>_vh_clean_2.ply                     mesh
    DIR/scans/<scene>/<scene>_vh_clean_2.0.010000.segs.json      segment of every vertex
    DIR/scans/<scene>/<scene>.aggregation.json                   objects; test scans have none
    DIR/scannetv2-labels.combined.tsv                            table of labels, here or up to two folders nearer

Boxes are those of scannet_objects.py, in the aligned world. Their ids may have gaps: `box_labels` holds each box's
`object_id`, so a row is not an id.
"""

import io
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.sources.frames import (
    Exclusions,
    StoredDepth,
    choose_views,
    decode_views,
)
from ross3d.data.sources.inside import check_all_inside
from ross3d.data.sources.optional_files import OptionalFiles, align_cameras, make_scene, read_alignment
from ross3d.data.sources.ply import Mesh, read_ply
from ross3d.data.sources.scannet_objects import (
    align_vertices,
    compute_instance_boxes,
    get_nyu40_id,
    label_vertices,
    read_axis_alignment,
    read_nyu40_ids,
    read_segment_groups,
    read_segments,
)
from ross3d.data.sources.sens import iterate_sens_frames, read_sens_cameras
from ross3d.data.sources.spelling import Listing


LABELS_FILE = "scannetv2-labels.combined.tsv"
# The public export keeps every tenth frame, about three a second.
FRAME_STEP = 10
SUFFIXES = (".sens", ".txt", "_vh_clean_2.ply", "_vh_clean_2.0.010000.segs.json", ".aggregation.json")


def read_scannet_scan(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    axis_align_matrix: np.ndarray | str | os.PathLike | None = None,
    boxes: np.ndarray | str | os.PathLike | None = None,
    max_excluded: float | None = None,
    reduce_to: int | None = None,
    rotate: str | int | None = None,
    allow_outside: bool = False,
    frame_step: int = FRAME_STEP,
    labels_file: str | os.PathLike | None = None,
) -> Scene:
    """Read and check one raw scan.

    Args:
        path (`str` or `Path`): the scan's folder; its name is the scene's id.
        num_views (`int`, *optional*): read this many frames, evenly spread over those with a pose.
        axis_align_matrix (`(4, 4)` array or file, *optional*): instead of the `.txt`'s.
        boxes (`(K, 6)` array or JSON file, *optional*): instead of those of the mesh's objects.
        max_excluded (`float`): share of frames that may be lost or damaged.
        reduce_to (`int`, *optional*): decode JPEG pictures no larger than needed for a shorter side of this many
            pixels (a processor's `view_size`); exactly by default.
        rotate (*optional*): degrees, counter-clockwise, to turn pictures, depth and cameras by; see `make_scene`.
        allow_outside (`bool`): let links in the folder lead out of it.
        frame_step (`int`, defaults to 10): frames 0, step, 2 * step ... are the scan.
        labels_file (`str` or `Path`, *optional*): the table of labels, if it is not next to the scans.

    Raises:
        FileNotFoundError, ValueError: name the file, the expected and the actual content, and the remedy.
    """
    path = Path(path)
    scene_id = path.resolve().name
    check_all_inside(path, list_scan_names(scene_id), allow_outside)
    recording = path / f"{scene_id}.sens"
    if not recording.exists():
        others = [file.name for file in Listing(path).glob("*.sens")]
        there = f" ({', '.join(others)} lies there: name the folder, or the file, as the scan)" if others else ""
        raise FileNotFoundError(
            f"{recording} does not exist{there}; give the folder of one scan with its .sens recording."
        )
    if frame_step < 1:
        raise ValueError(f"frame_step must be at least 1 frame, got {frame_step}; 10 is that of the public export.")
    optional = OptionalFiles((path,), allow_outside)

    def read_own_alignment() -> np.ndarray | None:
        file = path / f"{scene_id}.txt"
        return None if axis_align_matrix is not None and not file.exists() else read_axis_alignment(file)

    alignment = read_alignment(axis_align_matrix, optional, read_own_alignment)
    exclusions = Exclusions(f"scene {scene_id!r}", max_excluded)
    header, all_cameras = read_sens_cameras(recording)
    cameras = {f"{index:05d}": all_cameras[index] for index in range(0, len(all_cameras), frame_step)}
    if not cameras:
        raise ValueError(f"{recording} holds zero frames; export or download it again.")
    tracked = exclusions.drop_lost(cameras)
    chosen = choose_views(tracked, num_views)
    frames = {f"{f.index:05d}": f for f in iterate_sens_frames(recording, indices={int(name) for name in chosen})}
    views = decode_views(
        chosen,
        lambda name: io.BytesIO(frames[name].color_jpeg),
        lambda name: StoredDepth(frames[name].depth, f"{recording}, frame {int(name)}"),
        exclusions,
        reduce_to,
        cam2world=align_cameras(tracked, alignment),
    )
    to_world = np.eye(4) if alignment.matrix is None else alignment.matrix
    return make_scene(
        views=replace(views, units=f"{recording} says depthShift = {header.depth_shift:g}, units of depth a metre"),
        intrinsics=header.depth_intrinsics[:3, :3],
        cam2world=np.stack([cameras[name] for name in views.names]),
        alignment=alignment,
        exclusions=exclusions,
        optional=optional,
        given_boxes=boxes,
        read_own_boxes=lambda: read_object_boxes(path, to_world, labels_file),
        rotate=rotate,
    )


def list_scan_names(scene_id: str) -> list[str]:
    """Names of the files of a raw scan, whether they exist or not."""
    return [f"{scene_id}{suffix}" for suffix in SUFFIXES]


def read_object_boxes(
    path: Path, axis_align_matrix: np.ndarray, labels_file: str | os.PathLike | None = None
) -> tuple[np.ndarray | None, list[dict] | None]:
    """Boxes (K, 6) of a scan's objects and category, object_id and nyu40_id of each; None where none are annotated.

    Raises:
        ValueError: mesh and segments do not fit together.
    """
    scene_id = path.resolve().name
    aggregation = path / f"{scene_id}.aggregation.json"
    if not aggregation.is_file():
        return None, None
    groups = read_segment_groups(aggregation)
    nyu40_ids = read_nyu40_ids(labels_file or find_labels_file(path))
    mesh, segments = read_mesh_with_segments(path, only_vertices=True)
    labels = label_vertices(segments, groups, nyu40_ids)
    if labels.vanished:
        warnings.warn(
            f"scene {scene_id!r}: objects {labels.vanished} have no vertices left, so they have no box", stacklevel=2
        )
    found = compute_instance_boxes(align_vertices(mesh.vertices, axis_align_matrix), labels.instance_ids)
    # If two groups have the same id, the later one is used, as in the instance ids.
    category = {group.object_id: group.label for group in groups}
    return found.boxes, [
        {
            "category": category[object_id],
            "object_id": object_id,
            "nyu40_id": get_nyu40_id(category[object_id], nyu40_ids),
        }
        for object_id in found.object_ids.tolist()
    ]


def read_mesh_with_segments(path: Path, only_vertices: bool = False) -> tuple[Mesh, np.ndarray]:
    """A scan's mesh (see `read_ply`), in the scan's own frame, and the segment of each of its vertices (M,)."""
    scene_id = path.resolve().name
    mesh = read_ply(path / f"{scene_id}_vh_clean_2.ply", only_vertices)
    file = path / f"{scene_id}_vh_clean_2.0.010000.segs.json"
    segments = read_segments(file)
    if len(segments) != len(mesh.vertices):
        raise ValueError(
            f"{file}: {len(segments)} segments for the {len(mesh.vertices)} vertices of the mesh; they belong to"
            " different versions of the scan: download both again."
        )
    return mesh, segments


def find_labels_file(path: Path) -> Path:
    """The table of labels in the scan's folder or up to two folders above it; if absent, the path it should have."""
    folders = [path, *path.resolve().parents[:2]]
    return next((folder / LABELS_FILE for folder in folders if (folder / LABELS_FILE).is_file()), path / LABELS_FILE)


__all__ = ["find_labels_file", "list_scan_names", "read_mesh_with_segments", "read_object_boxes", "read_scannet_scan"]
