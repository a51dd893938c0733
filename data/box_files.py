"""Read boxes of external detectors: plain lists, and masks in the format of ScanNet's instance benchmark (Mask3D)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ross3d.data.prepare.boxes import MAX_PROPOSALS, make_mask_boxes
from ross3d.data.sources.frames import find_scene_key, parse_box_rows, read_box_rows, read_boxes
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.text_files import check_file, read_text


# Bytes that a mask file may have in addition to its numbers.
MAX_MORE_BYTES = 1 << 16


@dataclass(frozen=True)
class MaskBoxes:
    """Boxes of a detector's masks, the highest score first.

    Attributes:
        boxes (`np.ndarray` of shape `(K, 6)`, float64): centre and size, metres, in the world of the vertices.
        scores (`np.ndarray` of shape `(K,)`): as the detector gave them.
        labels (`list[str]`): K classes, as written in the file.
        num_empty (`int`): masks without a vertex, left out.
        num_points (`int`): masks whose vertices all coincide, left out.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: list[str]
    num_empty: int
    num_points: int


def read_box_list(file: str | os.PathLike, scene_id: str) -> np.ndarray:
    """Boxes (K, 6), float32, centre and size in metres, of a JSON file as `read_boxes` takes it.

    Raises:
        FileNotFoundError, ValueError: no such file; no boxes; a file by scenes that lacks this one.
    """
    return read_boxes(file, scene_id, must_have=True)[0]


def check_box_file(file: str | os.PathLike, scene_ids: Sequence[str]) -> None:
    """Refuse a file that holds no boxes, or boxes of other scenes, before it is used.

    Raises:
        FileNotFoundError, ValueError: no such file; no boxes; a plain list for several scenes, whose boxes differ; a
            file by scenes that has none of these.
    """
    file = Path(file)
    rows = read_box_rows(file)
    if not isinstance(rows, dict):
        parse_box_rows(rows, str(file))
        if len(scene_ids) > 1:
            raise ValueError(
                f"{file}: expected boxes by scene for {len(scene_ids)} scenes, got one list without scene names;"
                " write {SCENE: [...], ...}, or give only the scene that the boxes belong to."
            )
        return
    keys = [key for scene_id in scene_ids if (key := find_scene_key(rows, scene_id)) is not None]
    if not keys:
        raise ValueError(
            f"{file}: expected boxes of {len(scene_ids)} scenes, such as {scene_ids[0]!r}, got boxes of {len(rows)}"
            f" other scenes, such as {list(rows)[:3]}; give the file of these scenes."
        )
    for key in keys:
        parse_box_rows(rows[key], f"{file}, {key}")


def read_mask3d(
    file: str | os.PathLike,
    vertices: np.ndarray,
    max_proposals: int = MAX_PROPOSALS,
    allow_outside: bool = False,
) -> MaskBoxes:
    """Boxes of the masks of one scene, in the form of ScanNet's instance benchmark.

    Args:
        file (`str` or `Path`): a line a mask, `pred_mask/FILE.txt LABEL SCORE`, the path from the file's own folder;
            FILE.txt has 0 or 1 for each vertex.
        vertices (`np.ndarray` of shape `(M, 3)`): of the mesh or cloud that the masks are over, metres; boxes lie in
            their world, so align them first (`align_vertices`).
        max_proposals (`int`): maximum number of boxes; masks with lower scores are not read.
        allow_outside (`bool`): let the list name files outside its own folder.

    Raises:
        FileNotFoundError, ValueError: name the file and its line, the expected and the actual content.
    """
    file = Path(file)
    if not np.isfinite(vertices).all():
        raise ValueError(f"{file}: expected finite mesh vertices, found NaN or inf; export the mesh again.")
    lines = read_text(file, "a list of masks: pred_mask/FILE.txt LABEL SCORE").splitlines()
    entries = [_read_entry(file, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    boxes, kept, num_empty, num_points = [], [], 0, 0
    for entry in sorted(entries, key=lambda entry: -entry[2]):
        mask_file = resolve_inside(file.parent, entry[0], where=str(file), allow_outside=allow_outside)
        (box,) = make_mask_boxes(vertices, [_read_mask(mask_file, len(vertices))])
        if box is None:
            num_empty += 1
        elif max(box[3:]) == 0:
            num_points += 1
        elif len(boxes) < max_proposals:
            boxes.append(box)
            kept.append(entry)
        else:
            break
    return MaskBoxes(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 6),
        scores=np.array([score for _, _, score in kept]),
        labels=[label for _, label, _ in kept],
        num_empty=num_empty,
        num_points=num_points,
    )


def _read_entry(file: Path, number: int, line: str) -> tuple[str, str, float]:
    """Mask file, label and score of a line."""
    words = line.split()
    try:
        name, label, score = words[0], words[1], float(words[2])
    except (IndexError, ValueError):
        name, label, score = "", "", math.nan
    if len(words) != 3 or not math.isfinite(score):
        raise ValueError(
            f"{file}, line {number}: expected `pred_mask/FILE.txt LABEL SCORE` with a finite score, got {line!r}; "
            "export the masks again."
        )
    return name, label, score


def _read_mask(file: Path, num_vertices: int) -> np.ndarray:
    """A mask (M,) of zeros and ones, uint8."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is in the list of masks but missing; copy the folder of masks too.")
    # A digit and a blank or two of each; others are refused below.
    check_file(file, f"0 or 1 for each of {num_vertices} vertices", 32 * num_vertices + MAX_MORE_BYTES)
    words = np.array(file.read_bytes().split())
    if len(words) != num_vertices:
        raise ValueError(
            f"{file}: expected a mask value for each of the {num_vertices} vertices of the mesh, got {len(words)};"
            " use the mesh or point cloud that the detector got, with its vertices in the same order."
        )
    mask = words == b"1"
    if not (mask | (words == b"0")).all():
        raise ValueError(
            f"{file}: expected 0 or 1 for each vertex, got {words[~mask & (words != b'0')][0].decode()!r}; apply a"
            " threshold when exporting."
        )
    return mask.astype(np.uint8)


__all__ = ["MaskBoxes", "check_box_file", "read_box_list", "read_mask3d"]
