"""What a benchmark is to `eval.py`: items that belong to scenes, a way to answer a scene's items, and a score.

Answers are records: flat dictionaries of JSON values with at least `task`, `id` and `scene_id`, one line each in the
files that `eval.py` writes. A score is computed from records alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ross3d.data.scene import Scene


Record = dict[str, Any]


class Item(Protocol):
    """Something to answer about a scene, such as an `Annotation`."""

    id: str
    scene_id: str


@dataclass
class EvalSettings:
    """Every value that changes what an evaluation writes.

    Attributes:
        split (`str`): which scenes and annotations of the data folder.
        limit (`int`, *optional*): at most so many scenes a task.
        blind (`bool`): words alone: one grey picture, no coordinates, grounding chosen without information.
        batch_size (`int`): questions answered at once.
        max_new_tokens (`int`): longest answer.
        seed (`int`): of proposals, hidden views, diffusion draws and blind choices.
        num_samples (`int`): sampled pictures whose mean is scored.
        num_inference_steps (`int`): sampler steps.
        reconstruction_scenes (`int`): scenes whose hidden views and bird's-eye picture are rebuilt.
    """

    split: str = "val"
    limit: int | None = None
    blind: bool = False
    batch_size: int = 64
    max_new_tokens: int = 48
    seed: int = 0
    num_samples: int = 8
    num_inference_steps: int = 50
    reconstruction_scenes: int = 32


@dataclass
class EvalContext:
    """What a task is handed to answer with.

    Attributes:
        model (`Ross3DForConditionalGeneration`), processor (`Ross3DProcessor`): ready, on `device`.
        device: where inputs go.
        data_dir (`Path`): scenes under `SPLIT/SCENE_ID`, annotations under `annotations/SPLIT.jsonl` or `.parquet`.
        output_dir (`Path`): pictures go to `pictures/` in it.
        read_scene: folder -> `Scene`.
        make_proposals: (scene, seed) -> proposal boxes (K, 6) and object index -> proposal index (K,).
        get_seed: (seed, purpose) -> a seed that depends on nothing else.
        settings (`EvalSettings`): see there.
        cache (`dict`): what a task computes once for all scenes.
    """

    model: Any
    processor: Any
    device: Any
    data_dir: Path
    output_dir: Path
    read_scene: Callable[[Path], Scene]
    make_proposals: Callable[[Scene, int], tuple[np.ndarray, np.ndarray]]
    get_seed: Callable[[int, str], int]
    settings: EvalSettings = field(default_factory=EvalSettings)
    cache: dict[str, Any] = field(default_factory=dict)

    def load_scene(self, scene_id: str, split: str | None = None) -> Scene:
        return self.read_scene(self.get_folder(scene_id, split))

    def get_folder(self, scene_id: str, split: str | None = None) -> Path:
        return self.data_dir / (split or self.settings.split) / scene_id


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name (`str`): what `eval.py --task` calls it, and the `task` of its records.
        records_file (`str`): where its records are kept.
        load_items: (data folder, settings) -> items in the order in which they are to be written.
        answer: (context, items of one scene) -> a record for each, in order; depends on nothing else.
        score: all records -> JSON values.
    """

    name: str
    records_file: str
    load_items: Callable[[Path, EvalSettings], list[Any]]
    answer: Callable[[EvalContext, list[Any]], list[Record]]
    score: Callable[[list[Record]], dict[str, Any]]


def limit_scenes(items: list[Any], limit: int | None) -> list[Any]:
    """The items of the first `limit` scenes, in their order."""
    if limit is None:
        return items
    kept = set(list(dict.fromkeys(item.scene_id for item in items))[:limit])
    return [item for item in items if item.scene_id in kept]


__all__ = ["EvalContext", "EvalSettings", "Item", "Record", "Task", "limit_scenes"]
