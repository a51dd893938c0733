"""The interface of a benchmark for `eval.py`: items that belong to scenes, a way to answer them, and a score.

Answers are records: flat dictionaries of JSON values with at least `task`, `id` and `scene_id`, one line each in the
files that `eval.py` writes. A score is computed from records alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ross3d.command_line import COUNT, COUNT_OR_NONE, NUM_VIEWS, SEED, check_fields
from ross3d.data.proposal_sources import PROPOSAL_SOURCES
from ross3d.data.scene import Scene
from ross3d.data.sources import DECODES
from ross3d.data.sources.inside import resolve_inside
from ross3d.data.sources.options import get_scan_options


Record = dict[str, Any]
SCENE_PATH = "{split}/{scene_id}"
# Allowed ranges of numeric settings, by name.
EVAL_NUMBERS = {
    "limit": COUNT,
    "num_views": NUM_VIEWS,
    "seed": SEED,
    **dict.fromkeys(("scenes_at_once", "batch_size", "max_new_tokens", "num_samples", "num_inference_steps"), COUNT),
    "reconstruction_scenes": COUNT_OR_NONE,
}


class Item(Protocol):
    """A question or other item of a scene, such as an `Annotation`."""

    id: str
    scene_id: str


@dataclass
class EvalSettings:
    """All settings that affect the output of an evaluation.

    Attributes:
        split (`str`, *optional*): which scenes and annotations of the data folder; each task's published one by
            default.
        limit (`int`, *optional*): at most this many scenes of each task.
        blind (`bool`): text only: one grey picture, no coordinates, grounding chosen at random.
        scenes_at_once (`int`): scenes whose questions are answered together; each is in memory once.
        batch_size (`int`): questions answered in one batch.
        max_new_tokens (`int`, *optional*): longest answer; each task's published limit by default.
        num_views (`int`): views of a scan that are read, evenly spread (published: 32).
        decode (`str`): how JPEG pictures are decoded, `exact` (published) or `reduced`; at the
            smallest size that is no smaller than the model's input.
        rotate (`str`, *optional*): degrees by which pictures, with their depth and cameras, are turned
            counter-clockwise, 0, 90, 180 or 270; `auto` each until the world's z points up in it. By
            default as each layout has it: `auto` for ARKitScenes, else 0.
        max_excluded (`float`, *optional*): share of a scan's frames that may be lost, missing or damaged, from 0 to
            below 1; by default as each layout has it.
        allow_outside (`bool`): let annotations, files and links name scenes and pictures outside the data folder and
            the scan's; only for data that you trust.
        proposals (`str`, *optional*): the boxes that grounding chooses among and captions are about. `depth`: boxes
            proposed from the depth of the views that are read; duplicates among the selected ones are dropped.
            `given`, boxes of a detector: `proposals.json` in each scene's folder, a JSON list of boxes
            [cx, cy, cz, dx, dy, dz] or {"box": [...]}, metres, as python -m ross3d.data.prepare proposals writes it.
            `ground_truth`, the objects' own: `boxes.json`, in the same form, or the layout's own boxes. `jittered`:
            these, moved by a few per cent, among boxes of no object. By default `depth` for task rooms and `given`
            (published) for the benchmarks.
        seed (`int`): of proposals, masked views, diffusion draws and blind choices.
        num_samples (`int`): sampled pictures whose mean is scored.
        num_inference_steps (`int`): sampler steps.
        reconstruction_scenes (`int`): scenes whose masked views and bird's-eye picture are rebuilt.
    """

    split: str | None = None
    limit: int | None = None
    blind: bool = False
    scenes_at_once: int = 1
    batch_size: int = 64
    max_new_tokens: int | None = None
    num_views: int = 32
    decode: str = "exact"
    rotate: str | None = None
    max_excluded: float | None = None
    allow_outside: bool = False
    proposals: str | None = None
    seed: int = 0
    num_samples: int = 8
    num_inference_steps: int = 50
    reconstruction_scenes: int = 32

    def __post_init__(self):
        check_fields(self, "--", EVAL_NUMBERS)
        for name, known in (("proposals", PROPOSAL_SOURCES), ("decode", DECODES)):
            value = getattr(self, name)
            is_default = name == "proposals" and value is None
            if value not in known and not is_default:
                raise ValueError(f"--{name}: expected one of {list(known)}, got {value!r}.")
        get_scan_options(self)


@dataclass
class EvalContext:
    """Model, data and settings that a task gets to answer with.

    Attributes:
        model (`Ross3DForConditionalGeneration`), processor (`Ross3DProcessor`): ready, on `device`.
        device: where inputs go.
        data_dir (`Path`): scenes under `scene_path`, annotations under `annotations/SPLIT.jsonl` or `.parquet`.
        output_dir (`Path`): pictures go to `pictures/` in it.
        read_scene: folder -> `Scene`.
        make_proposals: (scene, source, seed) -> proposal boxes (K, 6).
        get_seed: (seed, purpose) -> a seed that depends on nothing else.
        settings (`EvalSettings`): see there.
        scene_path (`str`): where a scene lies in the data folder, `{split}` and `{scene_id}` filled in.
        cache (`dict`): values that a task computes once for all scenes.
    """

    model: Any
    processor: Any
    device: Any
    data_dir: Path
    output_dir: Path
    read_scene: Callable[[Path], Scene]
    make_proposals: Callable[[Scene, str, int], np.ndarray]
    get_seed: Callable[[int, str], int]
    settings: EvalSettings = field(default_factory=EvalSettings)
    scene_path: str = SCENE_PATH
    cache: dict[str, Any] = field(default_factory=dict)

    def find_scene(self, scene_id: str, split: str | None = None) -> Path:
        """The path of a scene in the data folder, whose scenes may be links to other disks.

        Raises:
            OutsideError: its id leads out of the data folder.
        """
        return resolve_inside(
            self.data_dir,
            self.scene_path.format(split=split or self.settings.split, scene_id=scene_id),
            where=f"scene {scene_id!r}",
            allow_outside=self.settings.allow_outside,
            check_links=False,
        )

    def load_scene(self, scene_id: str, split: str | None = None) -> Scene:
        return self.read_scene(self.find_scene(scene_id, split))


@dataclass(frozen=True)
class OpenScene:
    """A scene's items, and the result of `Task.prepare` for them."""

    items: list[Any]
    prepared: Any


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        name (`str`): what `eval.py --task` calls it, and the `task` of its records.
        records_file (`str`): the file of the output folder that its records are written to.
        load_items: (data folder, settings) -> items in the order in which they are to be written.
        prepare: (context, items of one scene) -> inputs that can be prepared without the model; called in advance, in
            another thread.
        answer: (context, scenes) -> for each scene a record for each item, in order; depends on nothing else.
        score: all records -> JSON values; with `is_captions`, (all records, running METEOR or None).
        get_values: all records -> scores of each question by name (N,), NaN where a question has none of that name;
            None where `score` gives its own intervals. Their mean is the score, so runs are compared by them.
        get_sums: all records -> `Summed` of scores that are not means over questions, by name; with `is_captions`,
            (all records, running METEOR or None).
        is_captions (`bool`): whether METEOR can be asked for.
        scene_path (`str`, *optional*): path of a scene in the data folder; None if every question has its own frames.
        proposals (`str`, *optional*): the source of its boxes unless `--proposals` says another; None without boxes.
        split (`str`): the split of the published numbers.
        max_new_tokens (`int`): as published.
    """

    name: str
    records_file: str
    load_items: Callable[[Path, EvalSettings], list[Any]]
    prepare: Callable[[EvalContext, list[Any]], Any]
    answer: Callable[[EvalContext, list[OpenScene]], list[list[Record]]]
    score: Callable[..., dict[str, Any]]
    get_values: Callable[[list[Record]], dict[str, np.ndarray]] | None = None
    get_sums: Callable[..., dict[str, Any]] | None = None
    is_captions: bool = False
    scene_path: str | None = SCENE_PATH
    proposals: str | None = None
    split: str = "val"
    max_new_tokens: int = 48

    def __post_init__(self):
        is_name = self.records_file == Path(self.records_file).name and self.records_file.endswith(".jsonl")
        if not self.name or not is_name:
            raise ValueError(
                f"Task: expected a name and a records_file that ends in .jsonl, got {self.name!r} and"
                f" {self.records_file!r}; most tasks use predictions.jsonl."
            )
        for name in ("load_items", "prepare", "answer", "score"):
            if not callable(getattr(self, name)):
                raise ValueError(f"Task {self.name!r}: expected a function as {name}, got {getattr(self, name)!r}.")

    def fill_settings(self, settings: EvalSettings) -> EvalSettings:
        """`settings` with the task's defaults for values that are None."""
        return replace(
            settings,
            split=settings.split or self.split,
            max_new_tokens=settings.max_new_tokens or self.max_new_tokens,
            proposals=self.proposals and (settings.proposals or self.proposals),
        )


def limit_scenes(items: list[Any], limit: int | None) -> list[Any]:
    """The items of the first `limit` scenes, in their order."""
    if limit is None:
        return items
    kept = set(list(dict.fromkeys(item.scene_id for item in items))[:limit])
    return [item for item in items if item.scene_id in kept]


__all__ = ["EvalContext", "EvalSettings", "Item", "OpenScene", "Record", "Task", "limit_scenes"]
