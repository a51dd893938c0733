"""Benchmarks whose questions each come with frames of their own (VG-LLM): rows in public form, answers as text.

A row names its frames by paths below the data folder. The frames are views without depth or cameras, in their order,
behind one slot of the prompt; the published prompts repeat the slot, with words between the frames.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.data.scene import BLIND_PICTURE
from ross3d.data.sources.frames import decode_color
from ross3d.tasks.answering import SceneForQuestions, answer_questions, clean_response, get_question
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, limit_scenes


@dataclass
class Window(Annotation):
    """A question about frames of its own.

    Attributes:
        images (`list[str]`): frames, below the data folder.
        facts (`dict`): what its score needs, kept in the record.
    """

    images: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def load_windows(
    data_dir: Path, settings: EvalSettings, pattern: str, make_window: Callable[[dict[str, Any], str, str], Window]
) -> list[Window]:
    """Questions of a file of public rows.

    Args:
        pattern (`str`): names of the file, a JSON list anywhere below the data folder; `{split}` is filled in.
            Published names tell the number of frames.
        make_window: (row, id, where) -> question; `where` is file and entry, for errors.

    Raises:
        FileNotFoundError, ValueError: for a file that is not there, is there twice, or is no list of rows.
    """
    name = pattern.format(split=settings.split)
    found = sorted(data_dir.rglob(name))
    if not found:
        raise FileNotFoundError(
            f"--data {data_dir}: expected the benchmark's rows in a file {name}, got none; put the published file"
            " there (docs/DATA.md)."
        )
    if len(found) > 1:
        raise ValueError(f"--data {data_dir}: expected one file {name}, got {[str(f) for f in found]}; keep one.")
    file = found[0]
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected a JSON list of rows, got {error}; download it again.") from error
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: expected a JSON list of rows, got {type(rows).__name__} {str(rows)[:60]}.")
    windows = []
    for place, row in enumerate(rows):
        where = f"{file.name}, entry {place}"
        try:
            windows.append(make_window(row, f"{file.stem}-{place}", where))
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{where}: expected a row as published (docs/DATA.md), got {error!r} while reading its"
                f" {sorted(row) if isinstance(row, dict) else type(row).__name__}."
            ) from error
    return limit_scenes(windows, settings.limit)


def get_scene_id(images: list[str]) -> str:
    """The scan that frames are of: the folder that holds them.

    Raises:
        IndexError: without a frame.
    """
    return Path(images[0]).parent.name


def prepare_windows(context: EvalContext, windows: list[Window]) -> list[SceneForQuestions]:
    """What the processor makes of each window's frames."""
    prepared = []
    for window in windows:
        images = [BLIND_PICTURE]
        if not context.settings.blind:
            files = [context.data_dir / image for image in window.images]
            images = [decode_color(file, file)[0] for file in files]
        inputs = context.processor(images=images, scene_ids=[window.id], return_tensors="pt")
        prepared.append(SceneForQuestions(inputs))
    return prepared


def answer_windows(
    context: EvalContext, scenes: list[OpenScene], task_name: str, is_right: Callable[[Record], bool | None]
) -> list[list[Record]]:
    """Records of all windows; those of one scan are answered together."""
    answered = []
    for scene in scenes:
        alone = [OpenScene([item], inputs) for item, inputs in zip(scene.items, scene.prepared, strict=True)]
        records = [record for (record,) in answer_questions(context, alone, task_name, get_question, clean_response)]
        records = [record | item.facts for record, item in zip(records, scene.items, strict=True)]
        answered.append([record | {"right": is_right(record)} for record in records])
    return answered


def to_matrix(value: Any, where: str, name: str) -> np.ndarray:
    """A (4, 4) matrix.

    Raises:
        ValueError: for another shape or numbers that are not finite.
    """
    matrix = np.asarray(value, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"{where}: expected {name} to be a finite 4x4 matrix, got shape {matrix.shape}.")
    return matrix


__all__ = ["Window", "answer_windows", "get_scene_id", "load_windows", "prepare_windows", "to_matrix"]
