"""The model card of a checkpoint, its `README.md`: description, usage, origin and scores.

The page also stores the origin: a run reads it from the checkpoint that it starts from, and a push adds scores to the
existing page, so text that was written there by hand stays.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ross3d.report.summary import format_interval, get_main_score


CARD_NAME = "README.md"
OPEN_LICENSE = "Apache-2.0"
PROJECT = "the ross3d project"
PIPELINE_TAG = "image-text-to-text"
INTRODUCTION = (
    "A language model over posed RGB-D views of an indoor scene ([Ross3D](https://arxiv.org/abs/2504.01901))"
)


@dataclass(frozen=True)
class Ingredient:
    """A source of weights or training data, and the terms on which its authors publish it."""

    name: str
    source: str
    license: str
    note: str = ""

    def describe(self) -> str:
        """One line: name, source and terms."""
        return f"{self.name} ({self.source}): {self.license}{f'; {self.note}' if self.note else ''}"


INGREDIENTS: dict[str, Ingredient] = {
    "code": Ingredient("code", PROJECT, OPEN_LICENSE, "see LICENSE"),
    "release": Ingredient(
        "Ross3D weights and `mm_inv_projector.bin`",
        "HaochenWang/llava-video-qwen2-7b-ross3d, HaochenWang/ross3d-utils",
        "as stated on their pages",
        "trained on ScanNet, whose terms of use are non-commercial",
    ),
    "release_3drs": Ingredient(
        "3DRS weights",
        "OliverHuang1998/3DRS",
        "as stated on their page",
        "trained on ScanNet, whose terms of use are non-commercial, with features of facebook/VGGT-1B (CC BY-NC 4.0)",
    ),
    "base": Ingredient("LLaVA-Video-7B-Qwen2", "lmms-lab/LLaVA-Video-7B-Qwen2", OPEN_LICENSE),
    "language_model": Ingredient("Qwen2-7B", "Qwen/Qwen2-7B-Instruct", OPEN_LICENSE),
    "vision_tower": Ingredient("SigLIP so400m", "google/siglip-so400m-patch14-384", OPEN_LICENSE),
    "teacher": Ingredient(
        "VAE of FLUX.1-dev (`teacher/`)",
        "black-forest-labs/FLUX.1-dev",
        "FLUX.1 [dev] Non-Commercial License",
        "no commercial use; needed for training and for sampling images, not for answers",
    ),
    "rooms_teacher": Ingredient("VAE of our rooms (`teacher/`)", PROJECT, OPEN_LICENSE),
    "vggt": Ingredient(
        "features of VGGT-1B", "facebook/VGGT-1B", "CC BY-NC 4.0", "no commercial use; needed for training only"
    ),
    "rooms_encoder": Ingredient("features of the VGGT of our rooms", PROJECT, OPEN_LICENSE),
    "rooms": Ingredient("synthetic rooms", PROJECT, OPEN_LICENSE),
}
# Benchmarks over ScanNet, by the `task` of their annotations.
SCANNET_TASKS = {
    "scanqa": "ScanQA",
    "sqa3d": "SQA3D",
    "scan2cap": "Scan2Cap",
    "scanrefer": "ScanRefer",
    "multi3drefer": "Multi3DRefer",
}

# The PSNR scores that are the model's own; the others are its baselines.
SAMPLES = ("one_sample", "mean_of_samples")

USAGE = """Needs `pip install torch pillow "transformers>=5.23"` only.

```python
import numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

path = "."
processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
model = AutoModel.from_pretrained(path, trust_remote_code=True)

# Two grey images of a wall two metres away; put your own here.
looking_along_y = np.array([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])
views = {
    "images": [Image.new("RGB", (640, 480), "grey")] * 2,
    "depth_maps": np.full((2, 480, 640), 2.0, dtype=np.float32),  # metres, 0 = no reading
    "intrinsics": np.array([[580.0, 0, 319.5], [0, 580.0, 239.5], [0, 0, 1]]),  # pixels of the depth map
    "cam2world": np.stack([looking_along_y] * 2),  # OpenCV axes, metres, z up
}
inputs = processor(**views, text="How many chairs are there?").to(model.device, model.dtype)
ids = model.generate(**inputs, max_new_tokens=32)
print(processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

# The same with a pipeline; images without depth and cameras work too.
ask = pipeline("image-text-to-text", model=path, trust_remote_code=True)
pictures = [
    {"type": "image", "image": image, "depth_map": depth_map, "intrinsics": views["intrinsics"], "cam2world": matrix}
    for image, depth_map, matrix in zip(views["images"], views["depth_maps"], views["cam2world"])
]
message = {"role": "user", "content": [*pictures, {"type": "text", "text": "How many chairs are there?"}]}
print(ask(text=[message], max_new_tokens=32, return_full_text=False)[0]["generated_text"])
```"""
LIMITATIONS = """\
- It reads images of indoor scenes with depth and camera poses, in metres, z up. Without depth it answers from the
  images alone, for which it had little or no training.
- It chooses among given boxes and does not detect boxes itself; with wrong boxes its answers are wrong.
- Images that it samples show its prediction, not the real scene.
- The scores hold for the scenes, questions and settings given with them. Other rooms, cameras, languages and wordings
  were not measured.
- Answers can be wrong without any sign of it. Do not use them where safety depends on them."""


@dataclass
class Origin:
    """The origin of a checkpoint.

    Attributes:
        base_model (`str`, *optional*): the Hub id of the nearest ancestor that has one.
        datasets (list of `str`): benchmarks and rooms that it was trained on.
        licenses (list of `str`): one line per ingredient.
        is_open (`bool`): whether all ingredients have the same terms as this code.
    """

    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    licenses: list[str] = field(default_factory=list)
    is_open: bool = True

    def add(self, ingredients: Sequence[Ingredient]) -> None:
        """Add ingredients; those that are there already are not repeated."""
        self.licenses = list(dict.fromkeys([*self.licenses, *(item.describe() for item in ingredients)]))
        self.is_open = self.is_open and all(item.license == OPEN_LICENSE for item in ingredients)


def make_unknown(name: str) -> Ingredient:
    """Weights of unknown origin."""
    return Ingredient("weights", name, "as stated by their authors")


def make_scans(name: str) -> Ingredient:
    """Scans without questions, which trained reconstruction."""
    return Ingredient("scans without questions", name, "as stated by their owners")


def find_data(tasks: Sequence[str]) -> list[Ingredient]:
    """The data that questions of these tasks are about, with their terms."""
    scannet = "about scans of ScanNet, whose terms of use are non-commercial"
    return [
        INGREDIENTS["rooms"]
        if task == "rooms"
        else Ingredient(f"questions of {SCANNET_TASKS[task]}", "its authors", "as stated on their pages", scannet)
        if task in SCANNET_TASKS
        else Ingredient(f"questions of {task}", "the data of the run", "as stated by its authors")
        for task in tasks
    ]


def make_card(introduction: str, origin: Origin, sections: Mapping[str, str]) -> ModelCard:
    """A page from its sections.

    Args:
        introduction (`str`): what the checkpoint is.
        origin (`Origin`): fills the metadata and the last section.
        sections: title -> Markdown, in order.
    """
    terms = {"license": "apache-2.0"} if origin.is_open else {"license": "other", "license_name": "several-see-below"}
    data = ModelCardData(
        **terms,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAG if "Use" in sections else None,
        base_model=origin.base_model,
        datasets=origin.datasets or None,
        language="en",
        tags=["ross3d", "3d-scene-understanding", "rgb-d"],
    )
    text = f"\n# ross3d\n\n{introduction}\n"
    licenses = "\n".join(f"- {line}" for line in origin.licenses)
    for title, body in {**sections, "Licences": licenses}.items():
        text = set_section(text, title, body)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def load_card(path: Path) -> ModelCard:
    """The page in a file.

    Raises:
        ValueError: when its metadata cannot be read.
    """
    try:
        return ModelCard.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path}: expected a model card with YAML metadata between two lines `---`, got metadata that cannot be"
            f" read: {error}; correct it, or delete the file."
        ) from error


def read_origin(card: ModelCard) -> Origin:
    """The origin of a checkpoint, from its page."""
    lines = get_section(card.text, "Licences").splitlines()
    return Origin(
        card.data.base_model,
        list(card.data.datasets or []),
        [line.removeprefix("- ") for line in lines if line.startswith("- ")],
        card.data.license == "apache-2.0",
    )


def find_section(text: str, title: str) -> re.Match | None:
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)


def get_section(text: str, title: str) -> str:
    """The text under `## title`; empty if there is no such section."""
    found = find_section(text, title)
    return "" if found is None else found[1].strip()


def set_section(text: str, title: str, body: str, before: str | None = None) -> str:
    """Put `body` under `## title`: in place of its text, or as a new section in front of `before` or at the end."""
    found, section = find_section(text, title), f"## {title}\n\n{body}\n\n"
    if found is not None:
        return f"{text[: found.start()]}{section}{text[found.end() :]}".rstrip("\n") + "\n"
    place = None if before is None else find_section(text, before)
    if place is None:
        return f"{text.rstrip()}\n\n{section.rstrip()}\n"
    return f"{text[: place.start()]}{section}{text[place.start() :]}"


# Scores


def list_scores(scores: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """(names of groups and score, value) of all scores; not the counts, and not the ends of intervals."""
    for name, value in scores.items():
        if isinstance(value, dict) and not {"low", "high"} <= value.keys():
            yield from list_scores(value, (*place, name))
        elif isinstance(value, float):
            yield (*place, name), value


def find_interval(
    scores: Mapping[str, Any], intervals: Mapping[str, Any], place: tuple[str, ...]
) -> dict[str, Any] | None:
    """The interval of a score; the interval of a question type is that of its main score."""
    if len(place) == 3 and place[0] == "types" and scores["types"][place[1]].get("main_score") == place[2]:
        return intervals.get(place[1])
    return intervals.get(": ".join(place))


def count_questions(scores: Mapping[str, Any], place: tuple[str, ...]) -> str:
    """The number of questions or pictures behind a score, if its task says it."""
    if place == ("macro_exact_match",):
        return str(sum(row["num_questions"] for row in scores["types"].values() if row["main_score"] == "exact_match"))
    group = scores
    counts = [scores.get("num_questions", "")]
    for name in place[:-1]:
        group = group[name]
        counts.append(group.get("num_questions", group.get("num_pictures", "")) if isinstance(group, dict) else "")
    return str(next((count for count in reversed(counts) if count != ""), ""))


def find_baseline(scores: Mapping[str, Any], baselines: Mapping[str, Any], place: tuple[str, ...]) -> str:
    """The best baseline without a model, for the main score of a question type or for the overall mean."""
    if place == ("macro_exact_match",):
        known = [baseline.get("macro_exact_match") for baseline in baselines.values()]
    elif len(place) == 3 and place[0] == "types" and scores["types"][place[1]].get("main_score") == place[2]:
        known = [get_main_score(baseline, place[1]) for baseline in baselines.values()]
    else:
        known = []
    known = [value for value in known if value is not None]
    return f"{max(known):.4f}" if known else ""


def get_proposals(settings: Mapping[str, Any], task: str) -> dict[str, str]:
    """The source of the boxes that a task's grounding chose among, if it has any."""
    # Evaluations of earlier code have one for all tasks, and other names.
    source = settings["tasks"][task].get("proposals")
    return {} if source is None else {"proposals": source}


def list_results(metrics: Mapping[str, Any]) -> list[EvalResult]:
    """The model's scores of a `metrics.json`, unchanged, for the metadata."""
    settings = metrics["settings"]
    names = ("limit", "num_views", "blind", "spatial_instruction", "seed")
    return [
        EvalResult(
            task_type=PIPELINE_TAG,
            task_name=task,
            dataset_type=task,
            dataset_name=SCANNET_TASKS.get(task, task),
            dataset_split=settings["tasks"][task]["split"],
            dataset_args={name: settings[name] for name in names if settings[name] is not None}
            | get_proposals(settings, task),
            metric_type="psnr" if "psnr" in place else place[-1],
            metric_name=": ".join(place),
            metric_value=value,
        )
        for task, scores in metrics["scores"].items()
        for place, value in list_scores(scores)
        if "psnr" not in place or place[-1] in SAMPLES
    ]


def format_results(metrics: Mapping[str, Any]) -> str:
    """The scores of a `metrics.json` as tables, one per task."""
    settings, blocks = metrics["settings"], []
    for task, scores in metrics["scores"].items():
        baselines = metrics["baselines"].get(task, {})
        rows = [
            f"| {': '.join(place)} | {value:.4f} |"
            f" {format_interval(find_interval(scores, metrics['intervals'].get(task, {}), place))} |"
            f" {count_questions(scores, place)} | {find_baseline(scores, baselines, place)} |"
            for place, value in list_scores(scores)
        ]
        asked = {"limit": settings["limit"], "views": settings["num_views"]} | get_proposals(settings, task)
        asked |= {"blind": settings["blind"], "spatial instruction": settings["spatial_instruction"]}
        described = ", ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
        blocks.append(
            f"{SCANNET_TASKS.get(task, task)}, split {settings['tasks'][task]['split']} ({described}; `eval.py` of"
            f" {PROJECT}, commit {metrics['commit']}); intervals in brackets are 95 % over scenes; the baseline is"
            " the best one without a model:\n\n"
            + "\n".join(["| score | value | interval | questions | baseline |", "|---|---|---|---|---|", *rows])
        )
    return "\n\n".join(blocks)


__all__ = [
    "CARD_NAME",
    "INGREDIENTS",
    "INTRODUCTION",
    "LIMITATIONS",
    "USAGE",
    "Ingredient",
    "Origin",
    "find_data",
    "format_results",
    "list_results",
    "load_card",
    "make_card",
    "make_scans",
    "make_unknown",
    "read_origin",
    "set_section",
]
