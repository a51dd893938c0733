"""One row type for every question about a scene, and its store: `annotations/SPLIT.jsonl`, or the same as Parquet.

People write JSON lines; `python -m ross3d.data.prepare` writes Parquet, which `datasets` reads with its types. A data
folder has one of them for a split.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ross3d.data.atomic import replace_file


@dataclass
class Annotation:
    """A question about a scene with what is accepted as its answer.

    Attributes:
        id (`str`): unique within its file.
        scene_id (`str`): the scene it is about.
        task (`str`): the benchmark it belongs to.
        question_type (`str`): the group it is scored in.
        question (`str`): plain words; `<coord>` marks where `query_coords` is meant.
        answer (`str`): the answer that is trained on; `<ground>` when the answer is boxes.
        references (`list[str]`): every accepted answer.
        query_coords (`tuple` of 3 floats, *optional*): the place asked about, metres in the aligned world.
        object_ids (`list[int]`, *optional*): box indices of the targets; `[]` = no target, `None` = not grounding.

    What only benchmarks fill in, each None where it does not apply:

        ann_id (`str`): the official number of a description among those of its object.
        target_ids (`list[int]`): the objects asked about by the ids that the scan's authors gave them.
        target_boxes (`list` of 6 floats each): their boxes, centre and size in metres, to the last published digit.
        query_box (6 floats): the detected box that stands for the object asked about, and
        query_iou (`float`): its overlap with that object. A benchmark asks only above a threshold, so `query_coords`
            may be None while `<coord>` stands in the question: such an object gets no answer, and counts.
    """

    id: str
    scene_id: str
    task: str
    question_type: str
    question: str
    answer: str
    references: list[str] = field(default_factory=list)
    query_coords: tuple[float, float, float] | None = None
    object_ids: list[int] | None = None
    ann_id: str | None = None
    target_ids: list[int] | None = None
    target_boxes: list[list[float]] | None = None
    query_box: list[float] | None = None
    query_iou: float | None = None


_NAMES = {f.name for f in fields(Annotation)}
_TEXT_NAMES = ("id", "scene_id", "task", "question_type", "question", "answer")
_BENCHMARK_NAMES = ("ann_id", "target_ids", "target_boxes", "query_box", "query_iou")
_BOX = pa.list_(pa.float64(), 6)
SCHEMA = pa.schema(
    [(name, pa.string()) for name in _TEXT_NAMES]
    + [
        ("references", pa.list_(pa.string())),
        ("query_coords", pa.list_(pa.float64(), 3)),
        ("object_ids", pa.list_(pa.int64())),
        ("ann_id", pa.string()),
        ("target_ids", pa.list_(pa.int64())),
        ("target_boxes", pa.list_(_BOX)),
        ("query_box", _BOX),
        ("query_iou", pa.float64()),
    ]
)


def check_annotation(annotation: Annotation, where: str) -> Annotation:
    """Refuse a row whose fields are of the wrong kind or contradict each other; `where` is file:line."""
    for name in _TEXT_NAMES:
        value = getattr(annotation, name)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{where}: {name} must be a non-empty string, got {value!r}.")
    references = annotation.references
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise ValueError(f"{where}: references must be a list of strings, got {references!r}; wrap one answer in [].")
    coords = annotation.query_coords
    if coords is not None and (len(coords) != 3 or not all(_is_finite_number(c) for c in coords)):
        raise ValueError(f"{where}: query_coords must be three finite numbers (metres), got {coords!r}.")
    _check_benchmark_fields(annotation, where)
    unmatched = coords is None and annotation.target_boxes is not None
    if (coords is not None) != ("<coord>" in annotation.question) and not unmatched:
        raise ValueError(
            f"{where}: query_coords is {coords!r} while the question holds {annotation.question.count('<coord>')} "
            "<coord> marks; give both or neither."
        )
    ids = annotation.object_ids
    if ids is not None and not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError(f"{where}: object_ids must be a list of box indices >= 0, got {ids!r}.")
    if (ids is not None) != (annotation.answer == "<ground>"):
        raise ValueError(
            f"{where}: answer is {annotation.answer!r} while object_ids is {ids!r}; a grounding question has the "
            "answer '<ground>' and object_ids ([] = no target), every other has object_ids null."
        )
    return annotation


def _check_benchmark_fields(annotation: Annotation, where: str) -> None:
    if annotation.ann_id is not None and not isinstance(annotation.ann_id, str):
        raise ValueError(f"{where}: ann_id must be a string, got {annotation.ann_id!r}.")
    ids, boxes = annotation.target_ids, annotation.target_boxes
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise ValueError(f"{where}: target_ids must be a list of whole numbers, got {ids!r}.")
    if boxes is not None and not (isinstance(boxes, list) and all(_is_box(box) for box in boxes)):
        raise ValueError(f"{where}: target_boxes must be a list of [cx, cy, cz, dx, dy, dz], got {boxes!r}.")
    box, iou = annotation.query_box, annotation.query_iou
    if box is not None and not _is_box(box):
        raise ValueError(f"{where}: query_box must be six numbers, centre and size in metres, got {box!r}.")
    if iou is not None and not (_is_finite_number(iou) and 0 <= iou <= 1):
        raise ValueError(f"{where}: query_iou must be a number from 0 to 1, got {iou!r}.")


def _is_box(value) -> bool:
    return isinstance(value, list) and len(value) == 6 and all(_is_finite_number(number) for number in value)


def _is_finite_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def find_annotations(data_dir: str | os.PathLike, split: str) -> Path:
    """The file of a data folder's split: `annotations/SPLIT.jsonl` or `.parquet`; the first where there is none.

    Raises:
        ValueError: when both are there.
    """
    files = [Path(data_dir) / "annotations" / f"{split}{suffix}" for suffix in (".jsonl", ".parquet")]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise ValueError(f"{files[0]} and {files[1].name} are both there; keep the one that holds your questions.")
    return (found or files)[0]


def load_annotations(path: str | os.PathLike) -> list[Annotation]:
    """Read and check a file of JSON lines or, by its suffix, Parquet; an error names file and line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations file {path} does not exist; build it or check the path.")
    read = _read_parquet if path.suffix == ".parquet" else _read_lines
    annotations, lines_of_id = [], {}
    for number, row in read(path):
        where = f"{path.name}:{number}"
        annotation = _parse_row(row, where)
        if annotation.id in lines_of_id:
            raise ValueError(f"{where}: id {annotation.id!r} was used on line {lines_of_id[annotation.id]} already.")
        lines_of_id[annotation.id] = number
        annotations.append(annotation)
    return annotations


def _read_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path.name}:{number}: not a JSON object ({error}); the file may have been cut off."
                    ) from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path}: not a Parquet file ({error}); write it anew.") from error
    yield from enumerate(table.to_pylist(), start=1)


def _parse_row(row, where: str) -> Annotation:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    unknown = sorted(set(row) - _NAMES)
    if unknown:
        raise ValueError(f"{where}: unknown fields {unknown}; known are {sorted(_NAMES)}.")
    missing = sorted(set(_TEXT_NAMES) - set(row))
    if missing:
        raise ValueError(f"{where}: missing fields {missing}.")
    annotation = Annotation(**row)
    if isinstance(annotation.query_coords, list):
        annotation.query_coords = tuple(annotation.query_coords)
    return check_annotation(annotation, where)


def save_annotations(annotations: list[Annotation], path: str | os.PathLike) -> None:
    """Write JSON lines or, by the suffix, Parquet, at once: a reader sees the old file or the whole new one."""
    path = Path(path)
    rows = [
        asdict(check_annotation(annotation, f"{path.name}:{number}"))
        for number, annotation in enumerate(annotations, start=1)
    ]
    with replace_file(path) as partial:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial)
        else:
            partial.write_text("".join(_format_line(row) for row in rows), encoding="utf-8")


def _format_line(row: dict[str, Any]) -> str:
    kept = {name: value for name, value in row.items() if value is not None or name not in _BENCHMARK_NAMES}
    return json.dumps(kept, ensure_ascii=False) + "\n"


def group_by_scene(annotations: list[Annotation]) -> dict[str, list[Annotation]]:
    """Annotations of each scene, scenes in order of first appearance."""
    groups: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault(annotation.scene_id, []).append(annotation)
    return groups


__all__ = [
    "Annotation",
    "check_annotation",
    "find_annotations",
    "group_by_scene",
    "load_annotations",
    "save_annotations",
]
