"""One row type for every question about a scene, and its store: `annotations/SPLIT.jsonl`, or the same as Parquet.

JSON lines are easy to write by hand; `python -m ross3d.data.prepare` writes Parquet, which `datasets` reads with its
types. Each split of a data folder has one of the two.
"""

import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ross3d.command_line import is_finite
from ross3d.data.atomic import replace_file
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.text_files import MAX_TEXT_BYTES, check_file, read_json, read_json_lines
from ross3d.geometry_ross3d import MAX_OUTSIDE_DISTANCE


@dataclass
class Annotation:
    """A question about a scene with its accepted answers.

    Attributes:
        id (`str`): unique within its file.
        scene_id (`str`): the scene it is about.
        task (`str`): the benchmark it belongs to.
        question_type (`str`): the group it is scored in.
        question (`str`): plain text; `<coord>` is the placeholder for `query_coords`.
        answer (`str`): the training target; `<ground>` when the answer is boxes.
        references (`list[str]`): every accepted answer.
        query_coords (`tuple` of 3 floats, *optional*): the place asked about, metres in the aligned world.
        object_ids (`list[int]`, *optional*): box indices of the targets; `[]` = no target, `None` = not grounding.

    Fields for benchmarks, each None where it does not apply:

        ann_id (`str`): the official number of a description among those of its object.
        target_ids (`list[int]`): official ids of the target objects.
        target_boxes (`list` of 6 floats each): their boxes, centre and size in metres, to the last published digit.
        query_box (6 floats): the detected box that represents the object asked about.
        query_iou (`float`): IoU of that box with the object. Benchmarks ask only above a threshold: below it
            `query_coords` is None although the question contains `<coord>`, and the object is scored with an empty
            answer.
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


# A larger coordinate cannot be in metres of a room; a longer text does not fit into any model's context.
MAX_METRES = 500.0
MAX_LETTERS = 20_000
# Faulty rows that an error lists, characters shown of each, and the number at which counting stops.
SHOWN_FAULTS, MAX_FAULT_LETTERS, MAX_FAULTS = 10, 400, 1000
# The largest mixture of the published training data has about 200,000 questions.
MAX_ROWS = 10_000_000
ROWS_AT_ONCE = 4096
# Control characters that no text should contain; tabs and line ends are allowed.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_RESERVED_MARKS = ("<|im_start|>", "<|im_end|>", "<image>")
# Markers that a text may contain and that the processor does not read as words.
MARKS = (*_RESERVED_MARKS, "<coord>", "<ground>")
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


def check_annotation(annotation: Annotation, where: str, allow_outside: bool | None = None) -> Annotation:
    """Refuse a row whose fields have wrong types, contradict each other, or would be refused by the processor.

    Args:
        where (`str`): file:line, for errors.
        allow_outside (`bool`, *optional*): let `scene_id` lead out of the data folder; see `load_annotations`.

    Raises:
        ValueError: names file, line, field and question.
    """
    for name in _TEXT_NAMES:
        value = getattr(annotation, name)
        if not isinstance(value, str) or not _has_words(value):
            raise ValueError(f"{where}: {name} must be a non-empty string, got {value!a}.")
    source = f"{where}: scene_id"
    try:
        resolve_inside(
            ".",
            annotation.scene_id,
            where=source,
            allow_outside=allow_outside,
            check_links=False,
            expected="a scene id, the name of a folder inside the data folder",
        )
        _check_fields(annotation, where)
        _check_benchmark_fields(annotation, where)
        _check_words(annotation, where)
        _check_agreement(annotation, where)
    except ValueError as error:
        error.args = (f"{error} (question {annotation.id[:100]!r})",)
        raise
    return annotation


def _has_words(text: str) -> bool:
    """Whether a text has a visible character: blanks and zero-width characters (U+200B and others) are not."""
    return any(not letter.isspace() and unicodedata.category(letter) != "Cf" for letter in text)


def _check_fields(annotation: Annotation, where: str) -> None:
    references = annotation.references
    if not isinstance(references, list) or not all(isinstance(r, str) for r in references):
        raise ValueError(f"{where}: references must be a list of strings, got {references!r}; wrap one answer in [].")
    if not all(_has_words(reference) for reference in references):
        raise ValueError(f"{where}: references must have no blank strings, got {references!a}; remove them.")
    coords = annotation.query_coords
    if coords is not None and not _is_point(coords):
        raise ValueError(
            f"{where}: query_coords must be three finite numbers (metres), got {coords!r}; each at most"
            f" {MAX_METRES:g} metres from 0: divide millimetres by 1000."
        )
    ids = annotation.object_ids
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids)):
        raise ValueError(f"{where}: object_ids must be a list of box indices >= 0, got {ids!r}.")
    if ids is not None and len(set(ids)) < len(ids):
        raise ValueError(f"{where}: object_ids must have each box once, got {ids!r}; remove repeated ones.")


def _check_agreement(annotation: Annotation, where: str) -> None:
    coords, ids = annotation.query_coords, annotation.object_ids
    unmatched = coords is None and annotation.target_boxes is not None
    if (coords is not None) != ("<coord>" in annotation.question) and not unmatched:
        raise ValueError(
            f"{where}: query_coords is {coords!r} but the question has {annotation.question.count('<coord>')} <coord>"
            " tokens; give both or neither."
        )
    if (ids is not None) != (annotation.answer == "<ground>"):
        raise ValueError(
            f"{where}: answer is {annotation.answer!r} but object_ids is {ids!r}; a grounding question has the answer"
            " '<ground>' and object_ids ([] = no target), all others have object_ids null."
        )


def _check_words(annotation: Annotation, where: str) -> None:
    """Refuse text that the processor would refuse or misread as special tokens."""
    texts = {name: getattr(annotation, name) for name in _TEXT_NAMES}
    for name, text in {**texts, "references": "\n".join(annotation.references)}.items():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: {name} contains a lone surrogate (half of a character); write the whole character."
            ) from error
        found = _CONTROL.search(text)
        if found is not None:
            raise ValueError(
                f"{where}: {name} contains the control character {found[0]!a} at character {found.start()}; remove it."
            )
        if len(text) > MAX_LETTERS:
            raise ValueError(
                f"{where}: {name} must have at most {MAX_LETTERS} characters, got {len(text)}; shorten it."
            )
    question, answer = annotation.question, annotation.answer
    marks = [mark for mark in (*_RESERVED_MARKS, "<ground>") if mark in question]
    if marks:
        raise ValueError(
            f"{where}: question must be plain text, got the special tokens {marks}; remove them: views and chat turns"
            " are added automatically, and the answer '<ground>' makes a grounding question."
        )
    if question.count("<coord>") > 1:
        raise ValueError(
            f"{where}: question must have at most one <coord>, got {question.count('<coord>')}; ask about one place."
        )
    marks = [mark for mark in MARKS if mark in answer and answer != "<ground>"]
    if marks:
        raise ValueError(
            f"{where}: answer must be plain text or only '<ground>', got the special tokens {marks} in it."
        )
    if answer.startswith(("\n", "\r")):
        raise ValueError(f"{where}: answer must not begin with a line break, got {answer[:20]!r}; remove it.")


def _check_benchmark_fields(annotation: Annotation, where: str) -> None:
    if annotation.ann_id is not None and not isinstance(annotation.ann_id, str):
        raise ValueError(f"{where}: ann_id must be a string, got {annotation.ann_id!r}.")
    ids, boxes = annotation.target_ids, annotation.target_boxes
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise ValueError(f"{where}: target_ids must be a list of whole numbers, got {ids!r}.")
    if boxes is not None and not (isinstance(boxes, list) and all(_is_box(box) for box in boxes)):
        raise ValueError(
            f"{where}: target_boxes must be a list of [cx, cy, cz, dx, dy, dz], got {boxes!r}; metres, no size below"
            f" 0, no value beyond {MAX_METRES:g}."
        )
    box, iou = annotation.query_box, annotation.query_iou
    if box is not None and not _is_box(box):
        raise ValueError(f"{where}: query_box must be six numbers, centre and size in metres, got {box!r}.")
    if iou is not None and not (_is_finite_number(iou) and 0 <= iou <= 1):
        raise ValueError(f"{where}: query_iou must be a number from 0 to 1, got {iou!r}.")


def _is_box(value) -> bool:
    """Whether a value is a box: centre and size in metres, no size below 0."""
    is_box = isinstance(value, list) and len(value) == 6 and all(map(_is_distance, value))
    return is_box and min(value[3:]) >= 0


def _is_point(value) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_distance, value))


def _is_distance(value) -> bool:
    return _is_finite_number(value) and abs(value) <= MAX_METRES


def _is_finite_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and is_finite(value)


def find_annotations(data_dir: str | os.PathLike, split: str) -> Path:
    """The annotation file of a split: `annotations/SPLIT.jsonl` or `.parquet`; the former if neither exists.

    Raises:
        ValueError: when both are there.
    """
    files = [Path(data_dir) / "annotations" / f"{split}{suffix}" for suffix in (".jsonl", ".parquet")]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise ValueError(
            f"{files[0]} and {files[1].name} both exist; remove the one that does not have your questions."
        )
    return (found or files)[0]


def load_annotations(path: str | os.PathLike, allow_outside: bool | None = None) -> list[Annotation]:
    """Read and check a file of JSON lines or, by its suffix, Parquet; an error lists all rows that are wrong.

    Args:
        allow_outside (`bool`, *optional*): let scene ids lead out of the data folder; None for callers without that
            option, so that errors do not offer it.

    Raises:
        FileNotFoundError, ValueError: name file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations file {path} does not exist; create it or correct the path.")
    rows = (
        read_parquet_rows(path, "annotations")
        if path.suffix == ".parquet"
        else read_json_lines(path, "one annotation per line")
    )
    annotations, lines_of_id, faults = [], {}, []
    for number, row in rows:
        where = f"{path}:{number}"
        try:
            annotation = _parse_row(row, where, allow_outside)
            if annotation.id in lines_of_id:
                raise ValueError(
                    f"{where}: id {annotation.id!r} was already used on line {lines_of_id[annotation.id]}."
                )
        except ValueError as error:
            faults.append(error.with_traceback(None))
            if len(faults) == MAX_FAULTS:
                break
            continue
        lines_of_id[annotation.id] = number
        annotations.append(annotation)
    _refuse_all(faults, f"{path}: expected valid annotations")
    return annotations


def _refuse_all(faults: list[ValueError], expected: str) -> None:
    """Raise the only fault, or one error that lists several; do nothing if there is none."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        shown = " | ".join(str(fault)[:MAX_FAULT_LETTERS] for fault in faults[:SHOWN_FAULTS])
        more = "" if len(faults) <= SHOWN_FAULTS else f" | and {len(faults) - SHOWN_FAULTS} more"
        or_more = " or more" if len(faults) == MAX_FAULTS else ""
        raise ValueError(f"{expected}, got {len(faults)}{or_more} wrong ones: {shown}{more}")


def read_parquet_rows(path: Path, meaning: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and values of every row of a Parquet file, a few thousand in memory at a time.

    Raises:
        ValueError: for a file that is not Parquet or has more than `MAX_ROWS` rows (a tiny file can claim that).
    """
    number = 0
    try:
        file = pq.ParquetFile(check_file(path, meaning, MAX_TEXT_BYTES))
        if file.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"{file.metadata.num_rows} rows; at most {MAX_ROWS} are allowed")
        for batch in file.iter_batches(ROWS_AT_ONCE):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: expected a Parquet file of {meaning}, got {error}; write it again.") from error


def _parse_row(row, where: str, allow_outside: bool | None) -> Annotation:
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
    return check_annotation(annotation, where, allow_outside)


def save_annotations(annotations: list[Annotation], path: str | os.PathLike) -> None:
    """Write JSON lines or, by the suffix, Parquet, atomically: readers see the old file or the complete new one."""
    path = Path(path)
    rows = [
        asdict(check_annotation(annotation, f"{path}:{number}"))
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


def check_object_ids(annotation: Annotation, num_boxes: int | None, where: str) -> None:
    """Refuse a question about objects that its scene does not have.

    Args:
        num_boxes (`int`, *optional*): objects of the scene; None for a scene without boxes.
        where (`str`): the scene's folder or file, for errors.

    Raises:
        ValueError: names question and scene.
    """
    ids = annotation.object_ids
    if ids is not None and num_boxes is None:
        raise ValueError(
            f"object_ids of question {annotation.id!r}: expected the boxes of scene {annotation.scene_id!r}, got"
            f" none; add {where}/boxes.json or remove the question."
        )
    if ids and max(ids) >= num_boxes:
        raise ValueError(
            f"object_ids of question {annotation.id!r}: expected box indices below {num_boxes}, the number of boxes"
            f" of scene {annotation.scene_id!r} in {where}, got {ids}; indices start at 0."
        )


def check_all_object_ids(annotations: Iterable[Annotation], find_scene: Callable[[str], Path]) -> None:
    """Run `check_object_ids` on all questions whose scene folder has a list of boxes in `boxes.json`.

    The boxes of other layouts are known only when the scene is read.

    Args:
        find_scene: scene id -> its folder.

    Raises:
        ValueError: names all such questions and their scenes.
    """
    counts: dict[str, int | None] = {}
    faults = []
    for annotation in annotations:
        if annotation.object_ids:
            name = annotation.scene_id
            if name not in counts:
                file = find_scene(name) / "boxes.json"
                boxes = read_json(file, "a list of boxes") if file.is_file() else None
                counts[name] = len(boxes) if isinstance(boxes, list) else None
            if counts[name] is not None:
                try:
                    check_object_ids(annotation, counts[name], str(find_scene(name)))
                except ValueError as error:
                    faults.append(error.with_traceback(None))
            if len(faults) == MAX_FAULTS:
                break
    _refuse_all(faults, "object_ids: expected indices of existing boxes")


def check_query_coords(
    annotation: Annotation,
    cam2world: np.ndarray | torch.Tensor | None,
    get_readings: Callable[[], torch.Tensor],
    where: str,
) -> None:
    """Refuse a question about a place farther from all cameras and readings of its scene than any room.

    Args:
        cam2world (V, 4, 4), *optional*: cameras of the scene, metres; nothing is checked without them.
        get_readings: () -> points (N, 3) measured by depth, metres; only called where the cameras are far away.
        where (`str`): the file of annotations, for errors.

    Raises:
        ValueError: names file, question and scene.
    """
    if annotation.query_coords is None or cam2world is None:
        return
    point, seen = torch.tensor(annotation.query_coords, dtype=torch.float64), torch.as_tensor(cam2world)[:, :3, 3]
    if _is_near(point, seen) or _is_near(point, torch.cat([seen, get_readings().to(seen)])):
        return
    raise ValueError(
        f"{where}: query_coords of question {annotation.id!r}: expected a point in metres, at most"
        f" {MAX_OUTSIDE_DISTANCE:.0f} m from the observed part of scene {annotation.scene_id!r}, got"
        f" {list(annotation.query_coords)}; divide millimetres by 1000, and use the world frame of the cameras."
    )


def _is_near(point: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether a point (3,) lies in or near the bounding box of points (N, 3), as the processor requires."""
    low, high = seen.amin(dim=0) - MAX_OUTSIDE_DISTANCE, seen.amax(dim=0) + MAX_OUTSIDE_DISTANCE
    return bool(((point >= low) & (point <= high)).all())


def group_by_scene(annotations: list[Annotation]) -> dict[str, list[Annotation]]:
    """Annotations of each scene, scenes in order of first appearance."""
    groups: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault(annotation.scene_id, []).append(annotation)
    return groups


__all__ = [
    "MARKS",
    "Annotation",
    "check_all_object_ids",
    "check_annotation",
    "check_object_ids",
    "check_query_coords",
    "find_annotations",
    "group_by_scene",
    "load_annotations",
    "save_annotations",
]
