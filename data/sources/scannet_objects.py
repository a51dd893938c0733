"""Objects of a raw ScanNet scan: from segments of the mesh to instance ids, labels and axis-aligned boxes.

The rules are those of the published preparation (Video-3D-LLM, after LEO): groups are applied in the order of the
file, so a later object takes segments over from an earlier one; an object that loses all its vertices vanishes.
"""

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.text_files import parse_numbers, read_json, read_text
from ross3d.inputs_ross3d import check_cam2world


# nyu40 ids that have a class of their own, in the order of the classes; all other ids share the last class.
NYU40_CLASSES = (*range(1, 13), 14, 16, 24, 28, 33, 34, 36, 39)
OTHER_CLASS = len(NYU40_CLASSES) - 1
# The word with a list in brackets, or else the rest of its line, outside of comments.
AXIS_ALIGNMENT = re.compile(
    r"^[^#\n]*(?<![a-z])axis_?Alignment[\"']?[ \t]*[:=]?[ \t]*(\[[][\s\d.,e+-]*\]|[^\n}]*)",
    re.IGNORECASE | re.MULTILINE,
)
# Object ids are stored as int16.
MAX_OBJECT_ID = 32767
# The row of the label table that unknown names are mapped to.
UNKNOWN_LABEL = "case"


@dataclass(frozen=True)
class SegmentGroup:
    """One object of an aggregation: its id, its raw label and the segments of the mesh it is made of."""

    object_id: int
    label: str
    segments: tuple[int, ...]


@dataclass(frozen=True)
class VertexLabels:
    """The object and class of each vertex (M).

    Attributes:
        instance_ids (`(M,)`, int16): ids of objects, -1 = none.
        semantic_labels (`(M,)`, int8): class 0..19, see `get_semantic_class`.
        vanished (`list[int]`): objects that lost all their vertices to a later one, or had none.
    """

    instance_ids: np.ndarray
    semantic_labels: np.ndarray
    vanished: list[int]


@dataclass(frozen=True)
class InstanceBoxes:
    """Axis-aligned boxes of K objects, by increasing id.

    Attributes:
        object_ids (`(K,)`, int16).
        corners (`(K, 8, 3)`, float32): for z in (low, high): for x in (low, high): for y in (low, high).
        boxes (`(K, 6)`, float32): centre and size.
    """

    object_ids: np.ndarray
    corners: np.ndarray
    boxes: np.ndarray


def read_axis_alignment(path: str | os.PathLike) -> np.ndarray | None:
    """Scan to aligned world (4, 4), float64, from a scan's `.txt`; None where it names no `axisAlignment`.

    The word counts in upper and lower case, and with a colon, quotes and brackets as well.

    Raises:
        FileNotFoundError, ValueError: no such file; not 16 numbers, or those of no rigid transform.
    """
    path = Path(path)
    found = AXIS_ALIGNMENT.search(read_text(path, "the scan's meta data with its axisAlignment line"))
    if found is None:
        return None
    try:
        matrix = np.array(parse_numbers(found[1])).reshape(4, 4)
    except ValueError as error:
        raise ValueError(
            f"{path}: axisAlignment: expected 16 numbers, row by row, got {found[1].strip()[:200]!r}; write the line"
            " 'axisAlignment = ' and these numbers, or download the file again."
        ) from error
    check_cam2world(matrix[None], 1, "axisAlignment", [str(path)], "download the file again")
    return matrix


def read_segments(path: str | os.PathLike) -> np.ndarray:
    """The segment of every vertex (M,), int64, from `*.segs.json`."""
    meaning = 'a dictionary with "segIndices", the segment of every vertex'
    segments = read_json(path, meaning, keys=("segIndices",))["segIndices"]
    _check_numbers(segments, f"{path}: segIndices", "one a vertex")
    return np.array(segments, dtype=np.int64)


def _check_numbers(numbers: Any, name: str, meaning: str) -> None:
    """Refuse a value that is not a list of segments."""
    if not isinstance(numbers, list):
        raise ValueError(f"{name} must be a list of whole numbers, {meaning}, got {type(numbers).__name__}.")
    wrong = next((n for n, number in enumerate(numbers) if type(number) is not int or abs(number) >= 2**63), None)
    if wrong is not None:
        raise ValueError(
            f"{name} must be whole numbers, {meaning}, got {str(numbers[wrong])[:50]} at place {wrong}; download the"
            " file again."
        )


def read_segment_groups(path: str | os.PathLike) -> list[SegmentGroup]:
    """The objects of `*.aggregation.json`, in the order of the file.

    Raises:
        FileNotFoundError, ValueError: no such file; an object without an integer id, a label or segments.
    """
    meaning = 'a dictionary with "segGroups", the objects of the scan'
    rows = read_json(path, meaning, keys=("segGroups",))["segGroups"]
    if not isinstance(rows, list):
        raise ValueError(f"{path}: segGroups must be a list of objects, got {type(rows).__name__}.")
    return [_read_group(row, f"{path}: segGroups, object {place}") for place, row in enumerate(rows)]


def _read_group(row: Any, where: str) -> SegmentGroup:
    if not isinstance(row, dict) or not {"objectId", "label", "segments"} <= row.keys():
        raise ValueError(
            f'{where}: expected {{"objectId": ..., "label": ..., "segments": [...]}}, got {str(row)[:200]}; download'
            " the file again."
        )
    object_id, label = row["objectId"], row["label"]
    if type(object_id) is not int or not 0 <= object_id <= MAX_OBJECT_ID:
        raise ValueError(f"{where}: objectId must be a whole number of 0 to {MAX_OBJECT_ID}, got {object_id!r}.")
    if not isinstance(label, str):
        raise ValueError(f"{where}: label must be a name, got {label!r}.")
    _check_numbers(row["segments"], f"{where}: segments", "those of the object")
    return SegmentGroup(object_id, label, tuple(row["segments"]))


def read_nyu40_ids(path: str | os.PathLike) -> dict[str, int]:
    """nyu40 id by raw label, from the columns `raw_category` and `nyu40id` of `scannetv2-labels.combined.tsv`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected ScanNet's table of labels there, or in a folder above.")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, "ScanNet's table of labels")), delimiter="\t"))
    except csv.Error as error:
        raise ValueError(f"{path}: the table of labels cannot be read ({error}); download it again.") from error
    if not rows or not {"raw_category", "nyu40id"} <= set(rows[0]):
        raise ValueError(
            f"{path}: expected tab-separated columns raw_category and nyu40id, got {sorted(rows[0]) if rows else []}."
        )
    try:
        nyu40_ids = {row["raw_category"]: int(row["nyu40id"]) for row in rows}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: nyu40id must be a whole number in each row ({error}).") from error
    if UNKNOWN_LABEL not in nyu40_ids:
        raise ValueError(
            f"{path}: no row of {UNKNOWN_LABEL!r}, which unknown names count as; take ScanNet's own file."
        )
    return nyu40_ids


def get_nyu40_id(label: str, nyu40_ids: Mapping[str, int]) -> int:
    """The nyu40 id of a raw label; names the table does not have count as `case`."""
    return nyu40_ids[label if label in nyu40_ids else UNKNOWN_LABEL]


def get_semantic_class(nyu40_id: int) -> int:
    """Class 0..19 of a nyu40 id: its place among the valid ids, and 19 for all others."""
    return NYU40_CLASSES.index(nyu40_id) if nyu40_id in NYU40_CLASSES else OTHER_CLASS


def label_vertices(segments: np.ndarray, groups: Sequence[SegmentGroup], nyu40_ids: Mapping[str, int]) -> VertexLabels:
    """Objects and classes of vertices.

    Args:
        segments (`(M,)`): segment of each vertex.
        groups: objects; a later one overwrites an earlier one.
        nyu40_ids: nyu40 id by raw label; must contain `case`.
    """
    instance_ids = np.full(len(segments), -1, dtype=np.int16)
    semantic_labels = np.full(len(segments), OTHER_CLASS, dtype=np.int8)
    for group in groups:
        members = np.isin(segments, group.segments)
        instance_ids[members] = group.object_id
        semantic_labels[members] = get_semantic_class(get_nyu40_id(group.label, nyu40_ids))
    vanished = sorted({group.object_id for group in groups} - set(instance_ids.tolist()))
    return VertexLabels(instance_ids, semantic_labels, vanished)


def align_vertices(vertices: np.ndarray, axis_align_matrix: np.ndarray) -> np.ndarray:
    """Vertices (M, 3) in the aligned world, float32."""
    matrix = np.asarray(axis_align_matrix, dtype=np.float64)
    return (vertices.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3]).astype(np.float32)


def compute_instance_boxes(vertices: np.ndarray, instance_ids: np.ndarray) -> InstanceBoxes:
    """Boxes of all objects that have vertices. `vertices` (M, 3), metres, aligned; `instance_ids` (M,), -1 = none."""
    object_ids = np.unique(instance_ids[instance_ids >= 0])
    limits = np.zeros((len(object_ids), 2, 3), dtype=np.float32)
    for row, object_id in enumerate(object_ids):
        points = vertices[instance_ids == object_id]
        limits[row] = points.min(axis=0), points.max(axis=0)
    sides = [(x, y, z) for z in (0, 1) for x in (0, 1) for y in (0, 1)]
    corners = np.stack([limits[:, side, range(3)] for side in sides], axis=1)
    boxes = np.concatenate([(limits[:, 0] + limits[:, 1]) / 2, limits[:, 1] - limits[:, 0]], axis=1)
    return InstanceBoxes(object_ids.astype(np.int16), corners, boxes)


__all__ = [
    "AXIS_ALIGNMENT",
    "InstanceBoxes",
    "SegmentGroup",
    "VertexLabels",
    "align_vertices",
    "compute_instance_boxes",
    "get_nyu40_id",
    "get_semantic_class",
    "label_vertices",
    "read_axis_alignment",
    "read_nyu40_ids",
    "read_segment_groups",
    "read_segments",
]
