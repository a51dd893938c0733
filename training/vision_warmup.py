"""A supervised start for a vision tower with random weights: classify each patch's object and colour.

Only for training from scratch (the tiny run). The two linear heads are discarded afterwards.

Shapes: R views of all scenes of a step, P = p*p patches of a view, K boxes of a scene.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from ross3d.data.scene import Scene
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.training.arguments import VisionWarmupArguments
from ross3d.training.optimizer import MuonAdamW


LABEL_NAMES = ("category", "color")


def get_label_vocabulary(scenes: Sequence[Scene]) -> dict[str, dict[str, int]]:
    """For each label name, the values that occur in the scenes, numbered from 1 (0 is "no object")."""
    vocabulary = {}
    for name in LABEL_NAMES:
        values = {label[name] for scene in scenes for label in scene.box_labels or []}
        vocabulary[name] = {value: place for place, value in enumerate(sorted(values), start=1)}
    return vocabulary


def label_patches(
    proposal_patches: torch.Tensor, labels: list[dict[str, Any]], vocabulary: dict[str, dict[str, int]]
) -> dict[str, torch.Tensor]:
    """Class (V, P) of every patch by label name; 0 for patches in no box, -100 for patches in several."""
    member = proposal_patches.flatten(2)  # (K, V, P)
    owners = member.sum(dim=0)
    labelled = {}
    for name in LABEL_NAMES:
        numbers = torch.tensor([vocabulary[name][label[name]] for label in labels]).view(-1, 1, 1)
        classes = (member * numbers).sum(dim=0)
        labelled[name] = torch.where(owners > 1, -100, classes)
    return labelled


def check_labels(path: Path, scene: Scene) -> None:
    """Refuse a scene whose patches cannot be labelled.

    Raises:
        ValueError: names what the scene lacks.
    """
    labels = scene.box_labels or []
    missing = [name for name in LABEL_NAMES if not labels or any(name not in label for label in labels)]
    missing += [] if scene.depth_maps is not None else ["depth"]
    if missing:
        raise ValueError(
            f"vision_warmup: expected depth, and boxes with {' and '.join(LABEL_NAMES)}, in scene {path}, but"
            f" {missing[0]} is missing; set vision_warmup: null, or complete boxes.json."
        )


def read_labelled_views(
    paths: Sequence[Path], processor: Any, read_scene: Callable[[Path], Scene]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, int]]:
    """Every view of the scenes with a class for each patch.

    Returns:
        pixels (R, 3, H, W) float16, classes (R, P) int16 by label name, and how many classes each name has.
    """
    scenes = [read_scene(path) for path in paths]
    for path, scene in zip(paths, scenes, strict=True):
        check_labels(path, scene)
    vocabulary = get_label_vocabulary(scenes)
    pixels, classes = [], {name: [] for name in LABEL_NAMES}
    for scene in tqdm(scenes, desc="vision warm-up: reading"):
        inputs = processor(
            images=list(scene.images),
            depth_maps=scene.depth_maps,
            intrinsics=scene.intrinsics,
            cam2world=scene.cam2world,
            proposal_boxes=scene.boxes,
            return_tensors="pt",
        )
        pixels.append(inputs["pixel_values"][0].half())
        for name, values in label_patches(inputs["proposal_patches"][0], scene.box_labels, vocabulary).items():
            classes[name].append(values.short())
    numbers = {name: len(vocabulary[name]) + 1 for name in LABEL_NAMES}
    return torch.cat(pixels), {name: torch.cat(values) for name, values in classes.items()}, numbers


def group_parameters(
    parts: Sequence[nn.Module], heads: nn.Module, arguments: VisionWarmupArguments
) -> list[dict[str, Any]]:
    """Muon for the matrices of the parts' linear layers, AdamW for everything else that is trained."""
    matrices = [
        module.weight
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.Linear) and module.weight.requires_grad
    ]
    known = {id(parameter) for parameter in matrices}
    rest = [p for part in (*parts, heads) for p in part.parameters() if p.requires_grad and id(p) not in known]
    return [
        {"params": matrices, "lr": arguments.muon_learning_rate, "weight_decay": 0.05, "muon": True},
        {"params": rest, "lr": arguments.learning_rate, "weight_decay": 0.05, "betas": (0.9, 0.98), "muon": False},
    ]


def warm_up_vision(
    model: Ross3DForConditionalGeneration,
    processor: Any,
    paths: Sequence[Path],
    read_scene: Callable[[Path], Scene],
    arguments: VisionWarmupArguments,
    seed: int,
) -> dict[str, float]:
    """Train vision tower and projector in place.

    Args:
        model, processor: the model to start and its processor.
        paths (sequence of `Path`): scene folders with labelled boxes.
        read_scene: folder -> `Scene`.
        arguments (`VisionWarmupArguments`): steps and learning rates.
        seed (`int`): of heads and of the order of views.

    Returns:
        accuracy over patches of objects, by label name, over the last tenth of the steps.
    """
    torch.manual_seed(seed)
    pixels, classes, numbers = read_labelled_views(paths[: arguments.scenes], processor, read_scene)
    width = model.config.text_config.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, numbers[name]) for name in LABEL_NAMES})
    groups = group_parameters([model.model.vision_tower, model.model.multi_modal_projector], heads, arguments)
    optimizer = MuonAdamW(groups, lr=arguments.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in groups],
        total_steps=arguments.steps,
        pct_start=0.1,
        cycle_momentum=False,
    )
    parameters = [parameter for group in groups for parameter in group["params"]]
    model.train()
    hits = {name: [] for name in LABEL_NAMES}
    for step in tqdm(range(arguments.steps), desc="vision warm-up"):
        index = torch.randint(len(pixels), (arguments.views_per_step,))
        features = model.get_image_features(pixels[index].float()).patch_features  # (R, P, D)
        loss = torch.zeros(())
        for name in LABEL_NAMES:
            target = classes[name][index].long()
            logits = heads[name](features)
            loss = loss + F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)
            if step >= arguments.steps * 9 // 10:
                hits[name].append((logits.argmax(dim=-1) == target)[target > 0].float())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
    return {name: float(torch.cat(values).mean()) for name, values in hits.items()}
