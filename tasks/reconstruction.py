"""Reconstruct masked views and bird's-eye pictures of held-out scenes, with controls and the teacher's own limit.

Each picture is reconstructed from the scene itself, from another scene's visual states at this scene's positions, and
from positions alone (every view masked). The mean training picture is the baseline without any knowledge of the scene,
the teacher's round trip the upper bound. Scores are PSNR in dB; for the bird's-eye picture on the pixels of objects,
since one floor colour does well on the rest.

Shapes: n masked views of a scene, S samples, H W pixels.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ross3d.data.atomic import replace_file
from ross3d.data.scene import Scene
from ross3d.data.sources import list_folders
from ross3d.geometry_ross3d import project_bev, unproject
from ross3d.metrics.bootstrap import compute_paired_interval
from ross3d.objectives_ross3d import SceneStates
from ross3d.reconstruction_ross3d import (
    PictureQueries,
    decode_latents,
    encode_pictures,
    get_bev_pictures,
    get_bev_queries,
    get_latents,
    get_target_tokens,
    get_view_pictures,
    get_view_queries,
    resize_bilinear,
)
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task


NAME = "reconstruction"
MAIN = "mean_of_samples"
CONTROLS = ("mean_picture", "other_scene", "positions_only")
PREDICTORS = ("one_sample", MAIN, "teacher", *CONTROLS)
# A point belongs to an object when it is inside its box and this far above the box's bottom, metres.
FLOOR_CLEARANCE = 0.05
MEAN_PICTURE_SCENES = 64
# Number of scenes whose pictures are saved for the report.
PICTURE_SCENES = 6
# The score of an exact picture, dB.
MAX_PSNR = 100.0


@dataclass(frozen=True)
class SceneItem:
    """One held-out scene, and the scene whose visual states replace its own in a control."""

    id: str
    scene_id: str
    other_scene_id: str
    keep_pictures: bool


@dataclass
class Targets:
    """The pictures to reconstruct for a scene, in [0, 1].

    Attributes:
        masked (`torch.BoolTensor` of shape `(1, V)`): the views that are masked.
        views (`torch.Tensor` of shape `(n, 3, H, W)`): the masked views as the teacher sees them.
        bev (`torch.Tensor` of shape `(1, 3, H, W)`, *optional*): the bird's-eye picture.
        regions (`dict`): name -> (H, W) bool: pixels of the bird's-eye picture that are scored together.
    """

    masked: torch.Tensor
    views: torch.Tensor
    bev: torch.Tensor | None
    regions: dict[str, torch.Tensor]


def load_items(data_dir: Path, settings: EvalSettings) -> list[SceneItem]:
    """The first scenes of the split by name, each paired with the next."""
    if settings.blind:
        raise ValueError(
            "task reconstruction: expected a model that is not blind, got blind=True; leave out the task, because a"
            " blind model has no views to reconstruct."
        )
    folders = [path.name for path in list_folders(Path(data_dir) / settings.split)]
    limit = len(folders) if settings.limit is None else settings.limit
    wanted = min(settings.reconstruction_scenes, limit, len(folders))
    if len(folders) < 2:
        raise ValueError(
            f"{Path(data_dir) / settings.split}: expected at least two scenes, one to reconstruct and another as its"
            f" control, got {len(folders)}."
        )
    return [
        SceneItem(name, name, folders[(index + 1) % len(folders)], index < PICTURE_SCENES)
        for index, name in enumerate(folders[:wanted])
    ]


def choose_masked_views(scene: Scene, ratio: float, seed: int) -> list[int]:
    """Views to mask: as many as in training, at least one, drawn from those whose depth tells where they look."""
    candidates = np.arange(scene.num_views)
    if scene.depth_maps is not None:
        candidates = np.flatnonzero((scene.depth_maps > 0).any(axis=(1, 2)))
    count = max(1, len(candidates) - int(len(candidates) * (1 - ratio)))
    return sorted(np.random.default_rng(seed).permutation(candidates)[:count].tolist())


def get_object_pixels(scene: Scene) -> np.ndarray:
    """Pixels (Hb, Wb) of the scene's bird's-eye picture that a reading of an object falls on; none without bounds."""
    mask = np.zeros(scene.bev_image.shape[:2], dtype=bool)
    if scene.boxes is None or scene.depth_maps is None or len(scene.boxes) == 0 or scene.bev_bounds is None:
        return mask
    points = unproject(*(torch.as_tensor(array) for array in (scene.depth_maps, scene.intrinsics, scene.cam2world)))
    points = points[torch.as_tensor(scene.depth_maps) > 0]
    boxes = torch.as_tensor(scene.boxes, dtype=points.dtype)
    low, high = boxes[:, :3] - boxes[:, 3:] / 2, boxes[:, :3] + boxes[:, 3:] / 2
    low[:, 2] += FLOOR_CLEARANCE
    inside = torch.zeros(len(points), dtype=torch.bool)
    for box_low, box_high in zip(low, high, strict=True):
        inside |= ((points >= box_low) & (points <= box_high)).all(dim=1)
    pixels, in_frame = project_bev(points[inside], torch.as_tensor(scene.bev_bounds), mask.shape[0])
    columns, rows = pixels[in_frame].round().long().clamp(0, mask.shape[0] - 1).T.numpy()
    mask[rows, columns] = True
    return mask & (scene.bev_valid if scene.bev_valid is not None else True)


def prepare_scene(context: EvalContext, scene: Scene, masked_views: list[int]) -> tuple[dict[str, Any], Targets]:
    """The model's inputs for a scene, and its reconstruction targets."""
    inputs = scene.get_inputs(bev=True)
    tensors = context.processor(**inputs, return_tensors="pt").to(context.device)
    masked = torch.zeros(1, scene.num_views, dtype=torch.bool, device=context.device)
    masked[0, masked_views] = True
    bev, regions = None, {}
    if scene.bev_image is not None:
        bev = tensors["bev_pixel_values"].float()
        # The processor treats the mask like the picture, so that both are resized alike.
        bev_inputs = {"images": [scene.images[0]], "bev_image": scene.bev_image}
        painted = context.processor(**bev_inputs, bev_valid=get_object_pixels(scene), return_tensors="pt")
        objects = painted["bev_valid"][0].to(context.device)
        regions = {"object": objects, "rest": tensors["bev_valid"][0] & ~objects}
    return tensors, Targets(masked, get_view_targets(context.model, tensors["pixel_values"][masked]), bev, regions)


def get_view_targets(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Normalised views (n, 3, H, W) as the teacher sees them, in [0, 1]."""
    return get_view_pictures(pixel_values, model.config) / 2 + 0.5


def get_scene_states(model: Any, inputs: dict[str, Any], masked: torch.Tensor) -> SceneStates:
    """States of the views of one scene, `masked` (1, V) of them replaced by the mask token."""
    return model.get_scene_states(masked, **inputs)


def get_control_states(
    model: Any, inputs: dict[str, Any], other_inputs: dict[str, Any], masked: torch.Tensor
) -> dict[str, SceneStates]:
    """The scene's own states, another scene's at this scene's positions, and those of positions alone."""
    own = get_scene_states(model, inputs, masked)
    num_views = masked.shape[1]
    places = torch.arange(num_views, device=masked.device) % other_inputs["view_mask"].shape[1]
    other_masked = torch.zeros_like(other_inputs["view_mask"])
    other_masked[0, places[masked[0]]] = True
    other = get_scene_states(model, other_inputs, other_masked)
    everything = get_scene_states(model, inputs, inputs["view_mask"])
    return {
        MAIN: own,
        "other_scene": SceneStates(other.states[:, places], own.visible, own.positions),
        "positions_only": SceneStates(everything.states, own.visible, own.positions),
    }


def sample_pictures(context: EvalContext, queries: PictureQueries, seed: int, size: int) -> torch.Tensor:
    """Sampled pictures (S, n, 3, size, size) in [0, 1] of n queries; the same seed, the same noise."""
    settings, generator = context.settings, torch.Generator().manual_seed(seed)
    repeated = queries.repeat(settings.num_samples)
    pictures = context.model.sample_pictures(repeated, settings.num_inference_steps, generator)
    return resize_bilinear(pictures, size).unflatten(0, (settings.num_samples, -1))


def pass_through_teacher(model: Any, pictures: torch.Tensor, branch: str) -> torch.Tensor:
    """Encode pictures (n, 3, H, W) in [0, 1], resize to the denoiser's grid and decode: the best it can output."""
    config, teacher = model.config.denoiser_config, model.get_teacher()
    # Pictures in [0, 1] are encoded like bird's-eye pictures, views too.
    mean, _ = encode_pictures(teacher, get_bev_pictures(pictures)).chunk(2, dim=1)
    tokens = get_target_tokens(mean, config, model.reconstruction_head.get_grid_size(branch))
    return resize_bilinear(decode_latents(teacher, get_latents(tokens, config)), pictures.shape[-1])


def get_mean_pictures(context: EvalContext) -> dict[str, torch.Tensor]:
    """Mean view and mean bird's-eye picture (3, H, W) of training scenes, in [0, 1]; computed once."""
    if "mean_pictures" in context.cache:
        return context.cache["mean_pictures"]
    folders = [path.name for path in list_folders(context.data_dir / "train")]
    totals: dict[str, list[torch.Tensor]] = {"view": [], "bev": [], "bev_valid": []}
    for name in folders[:MEAN_PICTURE_SCENES]:
        scene = context.load_scene(name, "train")
        inputs, targets = prepare_scene(context, scene, [0])
        totals["view"].append(get_view_targets(context.model, inputs["pixel_values"][0]).mean(dim=0))
        if targets.bev is not None:
            valid = inputs["bev_valid"].float()
            totals["bev"].append(targets.bev[0] * valid)
            totals["bev_valid"].append(valid)
    means = {"view": torch.stack(totals["view"]).mean(dim=0)}
    if totals["bev"]:
        # A pixel that no training picture saw takes the mean of all pixels that were seen.
        total, count = torch.stack(totals["bev"]).sum(dim=0), torch.stack(totals["bev_valid"]).sum(dim=0)
        overall = total.sum(dim=(1, 2), keepdim=True) / count.sum().clamp(min=1)
        means["bev"] = torch.where(count > 0, total / count.clamp(min=1), overall)
    context.cache["mean_pictures"] = means
    return means


def compute_psnr(pictures: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor | None = None) -> list[float]:
    """PSNR in dB of pictures (n, 3, H, W) in [0, 1], over the pixels of `mask` (H, W), all by default."""
    errors = (pictures.double() - truth.double()).square()
    errors = errors.flatten(1) if mask is None else errors[:, :, mask].flatten(1)
    psnr = -10 * torch.log10(errors.mean(dim=1).clamp(min=10 ** (-MAX_PSNR / 10)))
    return [round(value, 4) for value in psnr.tolist()]


def rebuild(
    context: EvalContext, states: dict[str, SceneStates], targets: Targets, branch: str, bounds: Any, seed: int
) -> dict[str, torch.Tensor]:
    """Predict the masked views, or the bird's-eye picture, with each predictor: name -> (n, 3, H, W)."""
    truth = targets.views if branch == "view" else targets.bev
    pictures = {"teacher": pass_through_teacher(context.model, truth, branch)}
    pictures["mean_picture"] = get_mean_pictures(context)[branch].expand_as(truth)
    for name, scene_states in states.items():
        if branch == "view":
            queries = get_view_queries(scene_states, targets.masked, context.model.config)
        else:
            queries = get_bev_queries(context.model, scene_states, bounds)
        samples = sample_pictures(context, queries, seed, truth.shape[-1])
        pictures[name] = samples.mean(dim=0)
        if name == MAIN:
            pictures["one_sample"] = samples[0]
    return pictures


def save_picture(path: Path, picture: torch.Tensor) -> None:
    """Write a picture (3, H, W) in [0, 1] as PNG, atomically."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    with replace_file(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def save_pictures(folder: Path, name: str, truth: torch.Tensor, pictures: dict[str, torch.Tensor], index: int) -> None:
    save_picture(folder / f"{name}_truth.png", truth[index])
    for predictor in PREDICTORS:
        save_picture(folder / f"{name}_{predictor}.png", pictures[predictor][index])


def get_seed(context: EvalContext, purpose: str) -> int:
    return context.get_seed(context.settings.seed, f"{NAME}/{purpose}")


def prepare(context: EvalContext, items: list[SceneItem]) -> tuple[Scene, Scene]:
    """Read the scene to reconstruct, and the other scene of its control.

    Raises:
        ValueError: for a model that was not trained with reconstruction.
    """
    objective = context.model.config.view_objective
    if objective != "cross_view":
        raise ValueError(
            f"task reconstruction: expected a model with view_objective 'cross_view', got {objective!r}, which"
            " reconstructs visible views; leave out the task."
        )
    return context.load_scene(items[0].scene_id), context.load_scene(items[0].other_scene_id)


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    return [[rebuild_scene(context, scene.items[0], *scene.prepared)] for scene in scenes]


@torch.no_grad()
def rebuild_scene(context: EvalContext, item: SceneItem, scene: Scene, other: Scene) -> Record:
    """The record of one scene: PSNR of every masked view and, by region, of the bird's-eye picture."""
    masked_views = choose_masked_views(scene, context.model.config.view_mask_ratio, get_seed(context, item.id))
    inputs, targets = prepare_scene(context, scene, masked_views)
    other_inputs, _ = prepare_scene(context, other, [0])
    states = get_control_states(context.model, inputs, other_inputs, targets.masked)
    seed = get_seed(context, f"noise/{item.id}")
    folder = context.output_dir / "pictures" / item.scene_id

    pictures = rebuild(context, states, targets, "view", None, seed)
    psnr = {name: compute_psnr(pictures[name], targets.views) for name in PREDICTORS}
    views = [
        {"view": view, "psnr": {name: psnr[name][index] for name in PREDICTORS}}
        for index, view in enumerate(masked_views)
    ]
    if item.keep_pictures:
        for index, view in enumerate(masked_views):
            save_pictures(folder, f"view{view:02d}", targets.views, pictures, index)
    bev = {}
    if targets.bev is not None:
        pictures = rebuild(context, states, targets, "bev", inputs.get("bev_bounds"), seed + 1)
        bev = {
            region: {name: compute_psnr(pictures[name], targets.bev, mask)[0] for name in PREDICTORS}
            for region, mask in targets.regions.items()
            if bool(mask.any())
        }
        if item.keep_pictures:
            save_pictures(folder, "bev", targets.bev, pictures, 0)
    record = {"task": NAME, **asdict(item), "masked_views": masked_views, "views": views, "bev": bev}
    return record | {"num_pixels": {name: int(mask.sum()) for name, mask in targets.regions.items()}}


def compare_predictors(rows: list[dict[str, float]], scenes: list[str]) -> dict[str, Any]:
    """Mean PSNR of each predictor, and paired differences of ours and each control, whole scenes resampled."""
    columns = {name: np.array([row[name] for row in rows]) for name in PREDICTORS}
    differences = {
        f"{ours} - {control}": asdict(compute_paired_interval(columns[ours], columns[control], np.array(scenes)))
        for ours in (MAIN, "one_sample")
        for control in CONTROLS
    }
    means = {name: float(values.mean()) for name, values in columns.items()}
    return {"num_pictures": len(rows), "psnr": means, "differences": differences}


def score(records: list[Record]) -> dict[str, Any]:
    """Masked views, object pixels of the bird's-eye picture and the rest of it, each with its comparison."""
    parts: dict[str, tuple[list[dict[str, float]], list[str]]] = {}
    for record in records:
        rows = [("view", view["psnr"]) for view in record["views"]]
        rows += [(f"bev_{region}", psnr) for region, psnr in record["bev"].items()]
        for name, psnr in rows:
            kept, scenes = parts.setdefault(name, ([], []))
            kept.append(psnr)
            scenes.append(record["scene_id"])
    return {"num_scenes": len(records)} | {name: compare_predictors(*rows) for name, rows in parts.items()}


TASK = Task(NAME, "reconstruction.jsonl", load_items, prepare, answer, score)

__all__ = ["CONTROLS", "MAIN", "PREDICTORS", "TASK"]
