"""Benchmarks whose questions each have their own frames (VG-LLM): rows in public form, answers as text.

A row names its frames by paths below the data folder. The frames are views without depth or cameras, in their order,
all at one slot of the prompt; the published prompts repeat the slot, with words between the frames.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.data.scene import BLIND_PICTURE
from ross3d.data.sources import get_reading
from ross3d.data.sources.frames import decode_color
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.text_files import read_json
from ross3d.tasks.answering import SceneForQuestions, answer_questions, clean_response
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record


@dataclass
class Window(Annotation):
    """A question with its own frames, treated as a separate scene.

    Attributes:
        scan (`str`): the scan that its frames belong to.
        images (`list[str]`): frames, below the data folder.
        facts (`dict`): values that its score needs, stored in the record.
    """

    scan: str = ""
    images: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def load_windows(
    data_dir: Path, settings: EvalSettings, pattern: str, make_window: Callable[[dict[str, Any], str, str], Window]
) -> list[Window]:
    """Questions of a file of public rows.

    Args:
        pattern (`str`): names of the file, a JSON list anywhere below the data folder; `{split}` is filled in.
            Published names contain the number of frames.
        make_window: (row, id, where) -> question; `where` is file and entry, for errors.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing, exists twice, or is not a list of rows.
    """
    name = pattern.format(split=settings.split)
    found = sorted(data_dir.rglob(name))
    if not found:
        raise FileNotFoundError(
            f"--data {data_dir}: expected the benchmark's rows in a file {name}, got none; put the published file"
            " there (docs/DATA.md)."
        )
    if len(found) > 1:
        raise ValueError(
            f"--data {data_dir}: expected one file {name}, got {[str(f) for f in found]}; remove all but one."
        )
    file = found[0]
    rows = read_json(file, "a JSON list of rows", remedy="download it again")
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: expected a JSON list of rows, got {type(rows).__name__} {str(rows)[:60]}.")
    windows = []
    for place, row in enumerate(rows):
        where = f"{file.name}, entry {place}"
        try:
            window = make_window(row, f"{file.stem}-{place}", where)
            for image in window.images:
                resolve_inside(data_dir, image, where=where, allow_outside=settings.allow_outside, check_links=False)
            windows.append(window)
        except (KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{where}: expected a row as published (docs/DATA.md), got {error!r} while reading its"
                f" {sorted(row) if isinstance(row, dict) else type(row).__name__}."
            ) from error
    scans = list(dict.fromkeys(window.scan for window in windows))[: settings.limit]
    return [window for window in windows if window.scan in scans]


def get_scan(images: list[str]) -> str:
    """The scan that frames belong to: the name of their folder.

    Raises:
        IndexError: if there is no frame.
    """
    return Path(images[0]).parent.name


def find_frame(data_dir: Path, name: str, allow_outside: bool) -> Path:
    """The file of a frame below the data folder, whose folders may be links to other disks.

    Raises:
        OutsideError: its name leads out of the data folder, or it is itself a link that leads out of its folder.
    """
    file = resolve_inside(data_dir, name, allow_outside=allow_outside, check_links=False)
    return resolve_inside(file.parent, file.name, allow_outside=allow_outside)


def prepare_window(context: EvalContext, windows: list[Window]) -> SceneForQuestions:
    """The processor's inputs for the frames of one window."""
    (window,) = windows
    images = [BLIND_PICTURE]
    if not context.settings.blind:
        settings = context.settings
        reading = get_reading(settings.num_views, settings.decode, context.processor.view_size, settings.rotate)
        if reading.get("rotate") == "auto":
            raise ValueError(
                f"{window.id}: --rotate: expected 0, 90, 180 or 270, got auto; frames without cameras cannot be"
                " rotated automatically."
            )
        files = [find_frame(context.data_dir, image, settings.allow_outside) for image in window.images]
        pictures = [decode_color(file, file, reading.get("reduce_to"))[0] for file in files]
        images = [np.rot90(picture, reading.get("rotate", 0) // 90).copy() for picture in pictures]
    return SceneForQuestions(context.processor(images=images, scene_ids=[window.id], return_tensors="pt"))


def answer_windows(
    context: EvalContext, scenes: list[OpenScene], task_name: str, is_right: Callable[[Record], bool | None]
) -> list[list[Record]]:
    """Answer windows; records have the scan as their scene, since windows of one scan are not independent."""

    def get_prompt(window: Window) -> str:
        """The prompt with the spatial instruction, as in training, which omits the line breaks of the slots."""
        return window.question.lstrip("\n") if context.processor.spatial_instruction else window.question

    answered = answer_questions(context, scenes, task_name, get_prompt, clean_response)
    windows = [item for scene in scenes for item in scene.items]
    records = [
        record | window.facts | {"scene_id": window.scan} for (record,), window in zip(answered, windows, strict=True)
    ]
    return [[record | {"right": is_right(record)}] for record in records]


def to_matrix(value: Any, where: str, name: str) -> np.ndarray:
    """A (4, 4) matrix.

    Raises:
        ValueError: for another shape or numbers that are not finite.
    """
    matrix = np.asarray(value, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"{where}: expected {name} to be a finite 4x4 matrix, got shape {matrix.shape}.")
    return matrix


__all__ = ["Window", "answer_windows", "get_scan", "load_windows", "prepare_window", "to_matrix"]
