"""A small VGGT that knows synthetic rooms, trained on their exact cameras and depth.

    python -m ross3d.training.small_vggt --output DIR

The published encoder is large and knows the real world; the tiny run needs one of its own size. `DIR` becomes a
checkpoint folder of `Ross3DVGGT` with a model card that has the figures on held-out rooms. The same command continues
an interrupted training, with the same result.

The losses of cameras, depth and points are the published ones. Two more make up for the few steps: matches between
views take the place of the published loss for tracks, and linear layers read each patch's point and depth from the
features of every pair; these layers are thrown away.

Shapes: B scenes, V views of a scene, H x W pixels.
"""

import argparse
import dataclasses
import hashlib
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ross3d.command_line import COUNT, POSITIVE, SEED, Number, add_debug, parse_path, run_program, spell_option
from ross3d.configuration_ross3d import Ross3DVGGTConfig
from ross3d.data.atomic import hold_folder, remove_leftovers, replace_file, write_text
from ross3d.data.text_files import read_json
from ross3d.metrics.bootstrap import Interval, compute_mean_interval, compute_paired_interval
from ross3d.metrics.multiview import compute_depth_error, compute_pose_auc, compute_pose_errors
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import make_cameras, make_room
from ross3d.training.geometry_losses import (
    GeometryTargets,
    compute_camera_loss,
    compute_dense_loss,
    compute_matching_loss,
    find_matches,
    get_patch_middles,
    make_targets,
)
from ross3d.training.optimizer import MuonAdamW
from ross3d.vggt_ross3d import Ross3DVGGT, Ross3DVGGTOutput


# Held-out rooms have this many views, once around the room. A training scene has some neighbouring views of a walk of
# so many or more, in any order: views that are nearer to each other are learned from first.
NUM_VIEWS = 8
WALKS = (8, 8, 16, 32)
# How many views a scene has up to this share of the steps: among few, matches in the first view are found soon.
PHASES = ((0.35, (2,)), (0.6, (2, 4)), (1.0, (4, 8)))
# Heights and widths of pictures: the square views of the tiny run, and whole pictures of 4:3 and 3:4.
PICTURE_SIZES = ((64, 64), (64, 64), (48, 64), (64, 48))
# The dense heads, which take as long as the rest, run in turn.
HEADS_IN_TURN = (("camera", "depth"), ("camera",), ("camera", "point"), ("camera",))
CAMERA_WEIGHT = 5.0
# The pair whose features find their matches in other views.
MATCHING_LAYER, MATCHING_WEIGHT = 1, 0.5
PATCH_WEIGHT = 4.0
# New LayerScales, and spread of new camera and register tokens: the published 0.01 and 1e-6 need far more steps than a
# small model is trained for.
LAYER_SCALE, TOKEN_SPREAD = 0.5, 0.5
FIRST_CAMERA = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.3, 1.3)
WARMUP_SHARE, LAST_RATE_SHARE = 0.05, 0.02
WEIGHT_DECAY = 0.01
RECORD, CHECKPOINT = "training.json", "training.pt"
# A step holds at least one scene of all views.
VIEWS_PER_STEP = Number(whole=True, least=NUM_VIEWS, most=1024)


@dataclass(frozen=True)
class Settings:
    """What a training depends on.

    Attributes:
        steps: optimizer steps. views_per_step: views of all scenes of a step.
        learning_rate, camera_learning_rate: highest rates of AdamW, and for the camera head.
        muon_learning_rate: highest rate of Muon, which takes the trunk's matrices.
        rooms: held-out rooms for the figures. seed: random seed.
    """

    steps: int = 1000
    views_per_step: int = 16
    learning_rate: float = 6e-4
    camera_learning_rate: float = 3e-4
    muon_learning_rate: float = 8e-3
    rooms: int = 100
    seed: int = 0


@dataclass
class Views:
    """Views of scenes: `images` (B, V, H, W, 3) uint8, `depth_maps` (B, V, H, W) metres, `intrinsics` (B, 3, 3)
    pixels, `cam2world` (B, V, 4, 4) metres."""

    images: np.ndarray
    depth_maps: np.ndarray
    intrinsics: np.ndarray
    cam2world: np.ndarray

    def get_pictures(self) -> torch.Tensor:
        """Pictures (B, V, 3, H, W) in [0, 1]."""
        return torch.from_numpy(self.images).movedim(-1, 2).float() / 255

    def get_targets(self) -> GeometryTargets:
        return make_targets(*map(torch.from_numpy, (self.depth_maps, self.intrinsics, self.cam2world)))


def make_views(
    seed: int,
    split: str,
    indices: list[int],
    size: tuple[int, int],
    walk: int = NUM_VIEWS,
    chosen: list[np.ndarray] | None = None,
) -> Views:
    """Views of synthetic rooms.

    Args:
        seed, split, indices: which rooms, as in `scenes.rooms.make_room`.
        size (`(H, W)`): of the pictures.
        walk (`int`, defaults to 8): views of a walk around a room.
        chosen (B arrays (V,), *optional*): which of these, in which order; all by default.
    """
    parts = []
    for number, index in enumerate(indices):
        room, rng = make_room(seed, split, index)
        intrinsics, cam2world = make_cameras(room, rng, walk, size[::-1])
        if chosen is not None:
            cam2world = cam2world[chosen[number]]
        rendering = render_room(room, intrinsics, cam2world, size[::-1])
        parts.append((rendering.images, rendering.depth_maps, intrinsics, cam2world))
    return Views(*map(np.stack, zip(*parts, strict=True)))


def draw_views(settings: Settings, step: int) -> Views:
    """The views of a training step, of rooms that no other step has. They depend on the seed and the step alone."""
    rng = np.random.default_rng([settings.seed, step])
    size = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
    counts = next(counts for share, counts in PHASES if step < share * settings.steps)
    count = counts[rng.integers(len(counts))]
    walk = WALKS[rng.integers(len(WALKS))]
    most = settings.views_per_step // 2
    indices = list(range(step * most, step * most + settings.views_per_step // count))
    chosen = [rng.permutation((rng.integers(walk) + np.arange(count)) % walk) for _ in indices]
    return make_views(settings.seed, "train", indices, size, walk, chosen)


def make_config() -> Ross3DVGGTConfig:
    """The size of the shipped encoder: less than 3 MB in half precision."""
    return Ross3DVGGTConfig(
        image_size=64,
        patch_size=8,
        hidden_size=96,
        vision_num_hidden_layers=2,
        vision_num_attention_heads=3,
        num_hidden_layers=4,
        num_attention_heads=3,
        mlp_ratio=2,
        camera_num_hidden_layers=1,
        camera_num_attention_heads=3,
        camera_num_iterations=1,
        dense_layers=(0, 1, 2, 3),
        neck_hidden_sizes=(16, 24, 24, 24),
        fusion_hidden_size=24,
        initializer_range=0.1,
    )


def build_encoder(config: Ross3DVGGTConfig, seed: int) -> Ross3DVGGT:
    """A new encoder for training from scratch."""
    torch.manual_seed(seed)
    model = Ross3DVGGT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".gamma", ".lambda1")):
                parameter.fill_(LAYER_SCALE)
            elif name.endswith(("camera_token", "register_token")):
                parameter.normal_(std=TOKEN_SPREAD)
        # Every view starts as the first one, with a usual field of view.
        model.camera_head.pose_branch.fc2.weight.zero_()
        model.camera_head.pose_branch.fc2.bias.copy_(torch.tensor(FIRST_CAMERA))
        for block in model.aggregator.global_blocks:
            # Keys like queries: across views tokens first look at what they resemble.
            query, key, _ = block.attn.qkv.weight.chunk(3)
            key.copy_(query)
    return model


def group_parameters(model: Ross3DVGGT, readers: torch.nn.Module, settings: Settings) -> list[dict]:
    """Muon for the matrices of the trunk's linear layers, AdamW for everything else; `highest` is the highest rate.

    The camera head gives numbers that a step must not move far: Muon, and the rate of the rest, only make it noisy.
    """
    matrices = {
        id(module.weight): module.weight
        for module in model.aggregator.modules()
        if isinstance(module, torch.nn.Linear)
    }
    camera = list(model.camera_head.parameters())
    known = {*matrices, *map(id, camera)}
    rest = [part for part in (*model.parameters(), *readers.parameters()) if id(part) not in known]
    rates = (
        (list(matrices.values()), settings.muon_learning_rate, True),
        (camera, settings.camera_learning_rate, False),
        (rest, settings.learning_rate, False),
    )
    return [
        {"params": part, "lr": rate, "highest": rate, "muon": muon, "weight_decay": WEIGHT_DECAY}
        | ({} if muon else {"betas": (0.9, 0.98)})
        for part, rate, muon in rates
    ]


def get_rate_share(step: int, steps: int) -> float:
    """Share of the highest learning rate at a step: up over the first steps, then down along a cosine."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    place = (step - warmup) / max(1, steps - warmup)
    return LAST_RATE_SHARE + (1 - LAST_RATE_SHARE) * (1 + math.cos(math.pi * place)) / 2


def compute_losses(
    output: Ross3DVGGTOutput, targets: GeometryTargets, config: Ross3DVGGTConfig, readers: torch.nn.ModuleList
) -> dict[str, torch.Tensor]:
    """The losses of the features of all pairs and of the heads that ran, by name.

    Args:
        readers: for each pair a linear layer from a patch's features to its middle: point (3) and logarithm of depth.
    """
    patches = [features[:, :, 1 + config.num_register_tokens :] for features in output.features]
    # A part of what the block within a view gives, so that the rest can tell places in the picture.
    alike = patches[MATCHING_LAYER][..., : config.hidden_size // 2]
    matches = find_matches(targets, config.patch_size)
    middles = get_patch_middles(targets, config.patch_size)
    read = [reader(part) for reader, part in zip(readers, patches, strict=True)]
    losses = {
        "matching": MATCHING_WEIGHT * compute_matching_loss(alike, matches),
        "patch": PATCH_WEIGHT * sum((values - middles).abs().mean() for values in read) / len(read),
    }
    if output.camera_encodings is not None:
        losses["camera"] = CAMERA_WEIGHT * compute_camera_loss(output.camera_encodings, targets.encodings)
    if output.depth_maps is not None:
        maps = output.depth_maps[..., None], output.depth_confidence, targets.depth_maps[..., None]
        losses["depth"] = compute_dense_loss(*maps, targets.valid)
    if output.world_coords is not None:
        maps = output.world_coords, output.world_confidence, targets.world_coords
        losses["point"] = compute_dense_loss(*maps, targets.valid)
    return losses


class Training:
    """A model in training: `run` goes on from wherever it stands. `readers` are thrown away afterwards."""

    def __init__(self, settings: Settings, config: Ross3DVGGTConfig):
        self.settings = settings
        self.model = build_encoder(config, settings.seed).train()
        features = 2 * config.hidden_size
        self.readers = torch.nn.ModuleList(torch.nn.Linear(features, 4) for _ in range(config.num_hidden_layers))
        groups = group_parameters(self.model, self.readers, settings)
        self.optimizer = MuonAdamW(groups, lr=settings.learning_rate)
        self.step = 0

    def run_step(self) -> dict[str, float]:
        """One optimizer step; returns the losses by name."""
        views = draw_views(self.settings, self.step)
        heads = HEADS_IN_TURN[self.step % len(HEADS_IN_TURN)]
        output = self.model(views.get_pictures(), layers=range(len(self.readers)), heads=heads)
        losses = compute_losses(output, views.get_targets(), self.model.config, self.readers)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        share = get_rate_share(self.step, self.settings.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * share
        self.optimizer.step()
        self.step += 1
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def run(self) -> Iterator[dict[str, float]]:
        """All steps that are left."""
        while self.step < self.settings.steps:
            yield self.run_step()

    def save(self, file: Path) -> None:
        """Write everything that going on needs, atomically."""
        parts = {"model": self.model, "readers": self.readers, "optimizer": self.optimizer}
        state = {name: part.state_dict() for name, part in parts.items()} | {"step": self.step}
        with replace_file(file) as partial:
            torch.save(state, partial)

    def load(self, file: Path) -> None:
        """Go on from a file of `save`.

        Raises:
            ValueError: names the file, if it is damaged or of another model.
        """
        try:
            state = torch.load(file, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.readers.load_state_dict(state["readers"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]
        except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: expected the state of this training, got a file that is damaged or of another model:"
                f" {' '.join(str(error).split())[:200]}; delete it to train from the beginning."
            ) from error


def check_record(folder: Path, settings: Settings) -> dict:
    """The record of a training in its output folder; a new one in a new or empty folder.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds a training with other settings.
    """
    record = folder / RECORD
    asked = dataclasses.asdict(settings)
    if not record.is_file():
        others = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        if others:
            raise FileExistsError(
                f"--output: expected a new or empty folder, or one of this program, got {folder} with {others[:3]} and"
                f" no {RECORD}; choose another folder."
            )
        return {"settings": asked}
    found = read_json(record, "the record of a training", keys=["settings"])
    if found["settings"] != asked:
        told = found["settings"] if isinstance(found["settings"], dict) else {}
        changed = {key: told.get(key) for key in asked if told.get(key) != asked[key]}
        way_back = " ".join(f"{spell_option(key)} {value}" for key, value in changed.items())
        raise ValueError(
            f"--output: {folder} holds a training with other settings than this command's; choose another folder, or"
            f" give its settings to continue it: {way_back}."
        )
    return found


# Figures


def compute_room_scores(model: Ross3DVGGT, views: Views, baseline: Views, mean_depth: np.ndarray) -> dict[str, float]:
    """Scores of one room, and those of the baselines: another room's cameras, and a mean depth map."""
    with torch.no_grad():
        output = model(views.get_pictures())
    cameras = np.linalg.inv(views.cam2world[0])
    guesses = {"": output.world2cam[0].numpy(), "_baseline": np.linalg.inv(baseline.cam2world[0])}
    scores = {}
    for suffix, guess in guesses.items():
        errors = compute_pose_errors(guess, cameras)
        scores |= {f"auc{most}{suffix}": compute_pose_auc(errors, most) for most in (30, 10)}
    depth = views.depth_maps[0]
    scores["absrel"] = compute_depth_error(output.depth_maps[0].numpy(), depth)
    scores["absrel_baseline"] = compute_depth_error(np.broadcast_to(mean_depth, depth.shape), depth)
    return scores


def evaluate(model: Ross3DVGGT, seed: int, rooms: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Scores of held-out rooms, by name, one number per room.

    The views are in the order of the walk. The baselines know the walks and rooms in general, but see no picture: the
    cameras are those of the next held-out room, the depth is the mean depth map of as many training rooms.
    """
    mean_depth = make_views(seed, "train", list(range(rooms)), size).depth_maps.mean(axis=(0, 1))
    indices = list(range(rooms + 1))
    every = [make_views(seed, "val", [index], size) for index in tqdm(indices, desc="held-out rooms", unit="room")]
    model.eval()
    scores = [compute_room_scores(model, every[room], every[room + 1], mean_depth) for room in range(rooms)]
    return {name: np.array([score[name] for score in scores]) for name in scores[0]}


METRICS = {
    "auc30": "cameras, AUC at 30 degrees",
    "auc10": "cameras, AUC at 10 degrees",
    "absrel": "depth, AbsRel (lower is better)",
}


def summarize(scores: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """Mean over rooms with the ends of its 95 % interval, of each metric, its baseline and their difference."""

    def spell(interval: Interval) -> list[float]:
        return [round(number, 4) for number in (interval.mean, interval.low, interval.high)]

    return {
        name: {
            "model": spell(compute_mean_interval(scores[name])),
            "baseline": spell(compute_mean_interval(scores[f"{name}_baseline"])),
            "difference": spell(compute_paired_interval(scores[name], scores[f"{name}_baseline"])),
        }
        for name in METRICS
    }


def format_figures(figures: dict[str, dict]) -> str:
    """The table of `summarize`'s figures by size of the pictures."""
    lines = ["| pictures | metric | encoder | baseline | difference |", "|---|---|---|---|---|"]
    for size, metrics in figures.items():
        for name, row in metrics.items():
            cells = (f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in row.values())
            lines.append(f"| {size} | {METRICS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def format_failures(figures: dict[str, dict]) -> str:
    """A sentence about the metrics that are no better than the baseline, with any size of pictures; else nothing."""

    def is_better(name: str) -> bool:
        ends = (row[name]["difference"][1:] for row in figures.values())
        return all(high < 0 if name == "absrel" else low > 0 for low, high in ends)

    failed = [METRICS[name] for name in METRICS if not is_better(name)]
    return f"**Not learned, no better than the baseline: {'; '.join(failed)}.**\n\n" if failed else ""


CARD = """---
license: apache-2.0
library_name: transformers
tags: [vggt, synthetic]
---

# A small VGGT that knows synthetic rooms

`Ross3DVGGT` with {parameters:,} parameters, for the tiny run of ross3d: cameras, depth and points of the views of a
synthetic room, and features of width {width}. It knows no real pictures. Pictures are in [0, 1], with sides that are
multiples of {patch}; it was trained on 64 x 64, 64 x 48 and 48 x 64 pixels, and on 2 to {views} views of a scene.

Trained from random weights by `python -m ross3d.training.small_vggt {options}--output DIR`, on rooms of
`ross3d.scenes` with their exact cameras and depth, {steps:,} steps of {views_per_step} views, no room twice. No other
data or weights were used. Weights are stored in float16 and read as float32.

`model.safetensors`: sha256 `{sha256}`

## Figures

{rooms} held-out rooms of {views} views; mean and 95 % interval over rooms (bootstrap).

{table}

{failures}\
- Cameras: of all pairs of views of a room the relative rotation and the direction of the relative translation,
  whichever error is larger; opposite directions count as equal, as in the published evaluations. The baseline knows
  how cameras walk through rooms, but sees no picture: the cameras of another held-out room.
- Depth: mean of |predicted - true| / true over all pixels, after one factor per room that makes the medians equal. The
  baseline is the mean depth map of {rooms} training rooms, with the same factor.
"""


def save_encoder(model: Ross3DVGGT, settings: Settings, figures: dict[str, dict], folder: Path) -> None:
    """Write config, weights in half precision, and model card."""
    weights = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    options = [
        f"{spell_option(field.name)} {getattr(settings, field.name)} "
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) != field.default
    ]
    card = CARD.format(
        parameters=model.num_parameters(),
        width=2 * model.config.hidden_size,
        patch=model.config.patch_size,
        views=NUM_VIEWS,
        options="".join(options),
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        table=format_figures(figures),
        failures=format_failures(figures),
        **dataclasses.asdict(settings),
    )
    write_text(folder / "README.md", card)


def train_encoder(
    folder: Path, settings: Settings, config: Ross3DVGGTConfig | None = None, save_every: int = 50
) -> bool:
    """Train an encoder into a folder, from where an interrupted training of the same settings stopped.

    Args:
        config (`Ross3DVGGTConfig`, *optional*): sizes; those of the shipped encoder by default.
        save_every (`int`): steps between two saved states.

    Returns:
        whether anything was left to do.

    Raises:
        FileExistsError, ValueError: the folder cannot be used, or its saved state cannot be read.
    """
    with hold_folder(folder, option="--output"):
        remove_leftovers(folder)
        record = check_record(folder, settings)
        if "figures" in record:
            return False
        write_record(folder, record)
        training = Training(settings, config or make_config())
        if (folder / CHECKPOINT).is_file():
            training.load(folder / CHECKPOINT)
        progress = tqdm(training.run(), initial=training.step, total=settings.steps, desc="small VGGT", unit="step")
        for losses in progress:
            progress.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
            if training.step % save_every == 0 or training.step == settings.steps:
                training.save(folder / CHECKPOINT)
        # The figures are those of the weights as they are stored.
        training.model.half().float()
        figures = {
            f"{width} x {height}": summarize(evaluate(training.model, settings.seed, settings.rooms, (height, width)))
            for height, width in dict.fromkeys(PICTURE_SIZES)
        }
        save_encoder(training.model, settings, figures, folder)
        write_record(folder, record | {"figures": figures})
        (folder / CHECKPOINT).unlink()
    return True


def write_record(folder: Path, record: dict) -> None:
    write_text(folder / RECORD, json.dumps(record, indent=2) + "\n")


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=parse_path, required=True, help="output folder of the encoder")
    parser.add_argument(
        "--steps",
        type=COUNT,
        default=Settings.steps,
        help="optimizer steps (default: %(default)s, which give depth;"
        " the shipped encoder, which knows cameras too, had 12000)",
    )
    parser.add_argument(
        "--views-per-step", type=VIEWS_PER_STEP, default=Settings.views_per_step, help="views of all scenes of a step"
    )
    parser.add_argument(
        "--learning-rate", type=POSITIVE, default=Settings.learning_rate, help="highest learning rate of AdamW"
    )
    parser.add_argument(
        "--camera-learning-rate",
        type=POSITIVE,
        default=Settings.camera_learning_rate,
        help="highest learning rate of AdamW for the camera head",
    )
    parser.add_argument(
        "--muon-learning-rate",
        type=POSITIVE,
        default=Settings.muon_learning_rate,
        help="highest learning rate of Muon, which takes the trunk's matrices",
    )
    parser.add_argument("--rooms", type=COUNT, default=Settings.rooms, help="held-out rooms for the figures")
    parser.add_argument("--seed", type=SEED, default=Settings.seed, help="random seed of rooms and weights")
    parser.add_argument("--save-every", type=COUNT, default=50, help="steps between two saved states")
    parser.add_argument("--threads", type=COUNT, default=1, help="processor threads")
    add_debug(parser)
    options = parser.parse_args(args)
    torch.set_num_threads(options.threads)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    was_trained = train_encoder(options.output, settings, save_every=options.save_every)
    figures = read_json(options.output / RECORD, "the record of a training", keys=["figures"])["figures"]
    print(f"{options.output}: {'trained' if was_trained else 'already complete'}\n{format_figures(figures)}")


if __name__ == "__main__":
    run_program(main)
