"""One row type for every question about a scene, and its JSON-lines store."""

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

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


_NAMES = {f.name for f in fields(Annotation)}
_TEXT_NAMES = ("id", "scene_id", "task", "question_type", "question", "answer")


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
    if (coords is not None) != ("<coord>" in annotation.question):
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


def _is_finite_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def load_annotations(path: str | os.PathLike) -> list[Annotation]:
    """Read and check a JSON-lines file; an error names file and line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotations file {path} does not exist; build it or check the path.")
    annotations, lines_of_id = [], {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not a JSON object ({error}); the file may have been cut off.") from error
            annotation = _parse_row(row, where)
            if annotation.id in lines_of_id:
                raise ValueError(
                    f"{where}: id {annotation.id!r} was used on line {lines_of_id[annotation.id]} already."
                )
            lines_of_id[annotation.id] = number
            annotations.append(annotation)
    return annotations


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
    """Write a JSON-lines file at once: a reader sees the old file or the whole new one."""
    path = Path(path)
    with replace_file(path) as partial, partial.open("w", encoding="utf-8") as file:
        for number, annotation in enumerate(annotations, start=1):
            check_annotation(annotation, f"{path.name}:{number}")
            file.write(json.dumps(asdict(annotation), ensure_ascii=False) + "\n")


def group_by_scene(annotations: list[Annotation]) -> dict[str, list[Annotation]]:
    """Annotations of each scene, scenes in order of first appearance."""
    groups: dict[str, list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault(annotation.scene_id, []).append(annotation)
    return groups


__all__ = ["Annotation", "check_annotation", "group_by_scene", "load_annotations", "save_annotations"]
