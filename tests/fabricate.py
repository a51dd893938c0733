"""Ragged training rows and a tiny model, made from seeded noise: no processor, no files.

Sizes differ pairwise, and rows differ in what they have: depth, bird's-eye picture, grounding questions, text.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import TrainingArguments

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DVGGTConfig
from ross3d.data.collator import Ross3DCollator
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.vggt_ross3d import Ross3DVGGT


IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN, PAD_TOKEN, EOS_TOKEN = 90, 91, 92, 0, 98
PATCH_GRID, GRID = 5, 3
# For `make_model`: distillation of `make_geometry_encoder`, of pictures of rows with `geometry`.
DISTILLATION = {"head_hidden_size": 20, "feature_size": 16, "encoder_image_size": 16, "encoder_dtype": "float32"}
# Two layers of the encoder, predicted by the states of a layer below the last.
EARLY_DISTILLATION = DISTILLATION | {"student_layer": 1, "encoder_layers": [0, -1]}


def make_training_arguments(
    output: Path, batch_size: int, accumulation: int, steps: int, **changes
) -> TrainingArguments:
    """Plain gradient descent on the CPU, rows in order, nothing saved or reported: for comparing runs to the digit."""
    settings = {
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(output_dir=str(output / "trainer"), **settings | changes)


def make_config(denoiser: dict | None = None, **changes) -> Ross3DConfig:
    """A config of a few thousand weights: 5 x 5 patches pooled to 3 x 3 tokens, bird's-eye grid 2 x 2.

    `denoiser` changes keys of `denoiser_config`, the other arguments those of the config.
    """
    settings = {
        "vision_config": {
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 20,
            "patch_size": 4,
        },
        "text_config": {
            "vocab_size": 99,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.15,
            "pad_token_id": PAD_TOKEN,
            "eos_token_id": EOS_TOKEN,
        },
        "denoiser_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_pool_heads": 4,
            "intermediate_size": 36,
            "frequency_embedding_size": 10,
            "view_image_size": 12,
            "bev_image_size": 8,
            "bev_grid_size": 2,
            "latent_channels": 3,
            "latent_patch_size": 2,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
            "initializer_range": 0.1,
        },
        "image_token_id": IMAGE_TOKEN,
        "ground_token_id": GROUND_TOKEN,
        "coord_token_id": COORD_TOKEN,
        "reconstruct_on_grounding_rows": True,
        "initializer_range": 0.15,
    }
    settings["denoiser_config"] |= denoiser or {}
    return Ross3DConfig(**(settings | changes))


def make_teacher(seed: int = 5) -> AutoencoderKL:
    """A random VAE that halves pictures once: 12 px -> 6 x 6, 8 px -> 4 x 4."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=2,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def make_model(seed: int = 0, **changes) -> Ross3DForConditionalGeneration:
    """A random model with its teacher and geometry encoder, where its config has losses for them.

    Gates and output of the denoiser are not zero, so that gradients flow.
    """
    torch.manual_seed(seed)
    model = Ross3DForConditionalGeneration(make_config(**changes))
    if model.reconstruction_head is not None:
        with torch.no_grad():
            for parameter in model.reconstruction_head.denoiser.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        model.attach_teacher(make_teacher())
    if model.config.distillation_config is not None:
        model.attach_geometry_encoder(make_geometry_encoder())
    return model


def make_geometry_encoder(seed: int = 3) -> Ross3DVGGT:
    """A random VGGT with patches of 4 pixels, 3 layers of 16 channels, and a camera and a depth head."""
    torch.manual_seed(seed)
    config = Ross3DVGGTConfig(
        image_size=16, patch_size=4, hidden_size=8, vision_num_hidden_layers=1, vision_num_attention_heads=2,
        num_hidden_layers=3, num_attention_heads=2, num_register_tokens=2, camera_num_hidden_layers=1,
        camera_num_attention_heads=2, camera_num_iterations=2, heads=["camera", "depth"], dense_layers=[0, 0, 1, 2],
        neck_hidden_sizes=[4, 4, 8, 8], fusion_hidden_size=8, initializer_range=0.3,
    )  # fmt: skip
    encoder = Ross3DVGGT(config)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith("gamma") or "token" in name:
                parameter.normal_()
    return encoder


def make_row(
    seed: int, num_views: int, num_proposals: int, questions: list[str], depth: bool = True, bev: bool = True,
    geometry: bool = False,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """One row; `questions` names kinds: "text", "coord" or "ground"; `geometry` adds pictures for the encoder."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def words(count: int) -> list[int]:
        return torch.randint(1, 80, (count,), generator=generator).tolist()

    ids = words(3) + [IMAGE_TOKEN] * (num_views * GRID * (GRID + 1))
    segments = [0] * len(ids)
    targets, answers = [-100] * len(ids), [-100] * len(ids)
    weights = [0.0] * len(ids)
    grounding = torch.zeros(max(len(questions), 1), num_proposals + 1, dtype=torch.long)
    coords = torch.full((max(len(questions), 1), 3), float("nan"))
    for number, kind in enumerate(questions, start=1):
        question = words(2 + number)
        if kind == "coord":
            question.append(COORD_TOKEN)
            coords[number - 1] = noise(3)
        answer = [GROUND_TOKEN] if kind == "ground" else words(1 + seed % 3 + number % 2) + [EOS_TOKEN]
        tokens = question + answer
        # The token before each answer token predicts it.
        shifted = [-100] * len(tokens)
        weighted = [0.0] * len(tokens)
        if kind == "ground":
            grounding[number - 1, (seed + number) % (num_proposals + 1)] = 1
        else:
            for place in range(len(question), len(tokens)):
                shifted[place - 1], weighted[place - 1] = tokens[place], 1.0 / len(answer)
        supervised = [] if kind == "ground" else answer
        answers += [-100] * (len(tokens) - len(supervised)) + supervised
        ids, segments = ids + tokens, segments + [number] * len(tokens)
        targets, weights = targets + shifted, weights + weighted
    row = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.ones(len(ids), dtype=torch.long),
        "segment_ids": torch.tensor(segments),
        "labels": torch.tensor(answers),
        "shift_labels": torch.tensor(targets),
        "loss_weights": torch.tensor(weights),
        "pixel_values": noise(num_views, 3, 20, 20).clamp(-1, 1),
        "view_mask": torch.ones(num_views, dtype=torch.bool),
        "proposal_boxes": noise(num_proposals, 6).abs(),
        "proposal_mask": torch.ones(num_proposals, dtype=torch.bool),
        "proposal_patches": noise(num_proposals, num_views, PATCH_GRID, PATCH_GRID) > 0.8,
        "row_seed": torch.tensor(1000 + seed),
    }
    if not questions:
        # As from the processor: a scene without questions has no targets.
        del row["labels"], row["shift_labels"], row["loss_weights"]
    if depth:
        row["patch_coords"] = noise(num_views, GRID, GRID, 3) * 2
        row["patch_valid"] = torch.ones(num_views, GRID, GRID, dtype=torch.bool)
    if bev:
        row["bev_pixel_values"] = torch.rand((3, 8, 8), generator=generator)
        row["bev_valid"] = torch.rand((8, 8), generator=generator) > 0.3
        row["bev_bounds"] = torch.tensor([-2.0, -2.0, 2.0, 2.0])
    if geometry:
        pictures = torch.randint(0, 256, (num_views, 3, 12, 16), generator=generator)
        row["geometry_pixel_values"] = pictures.to(torch.uint8)
    if "ground" in questions:
        row["grounding_labels"] = grounding
    if "coord" in questions:
        row["query_coords"] = coords
    return row


def add_cameras(row: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A row with depth and cameras of its views within a metre or two; about half of its tokens lie before them."""
    if "patch_coords" not in row:
        return row
    generator, count = torch.Generator().manual_seed(seed), len(row["patch_coords"])
    rotations = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator))[0]
    cam2world = torch.eye(4).repeat(count, 1, 1)
    cam2world[:, :3, :3] = rotations * torch.linalg.det(rotations)[:, None, None]
    cam2world[:, :3, 3] = torch.randn(count, 3, generator=generator)
    fields = 0.7 + torch.rand(count, 2, generator=generator)
    return row | {"cam2world": cam2world, "fields_of_view": fields}


def add_proposal_tokens(row: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A row with the tokens of its proposals, where it has patches: those of which any patch belongs to them."""
    if "proposal_patches" not in row:
        return row
    patches = row["proposal_patches"].float().flatten(0, 1)
    tokens = F.adaptive_max_pool2d(patches, GRID).unflatten(0, row["proposal_patches"].shape[:2])
    return row | {"proposal_tokens": tokens > 0}


class RaggedRows(Dataset):
    """Rows of different kinds, over and over: (views, proposals, questions, depth, bird's-eye picture).

    With `geometry` all have pictures for the geometry encoder.
    """

    KINDS = (
        (3, 4, ["text", "ground", "coord"], True, True),
        (2, 1, ["text"], False, False),
        (4, 2, ["ground", "text", "text", "text"], True, False),
        (2, 2, ["coord", "text"], True, True),
        (4, 5, ["text"], False, True),
        (5, 3, [], True, True),
        (3, 6, ["ground"], True, False),
        (2, 3, ["text", "text"], True, True),
    )

    def __init__(self, length: int, geometry: bool = False):
        self.length, self.geometry = length, geometry

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        views, proposals, questions, depth, bev = self.KINDS[index % len(self.KINDS)]
        return make_row(index, views, proposals, questions, depth, bev, self.geometry)


@dataclass(frozen=True)
class RowKind:
    """What a row has, and what it lacks.

    Attributes:
        questions: kinds of questions, in order (see `make_row`).
        views: number of views; 0 for text alone.
        depth: no view has depth ("none"), all have it without a reading ("blank"), or with readings ("full").
        proposals: "none"; "empty", a list without boxes; "boxes" without patches, as where there is no depth; or boxes
            with "patches".
        bev: no bird's-eye picture ("none"), one of which nothing was seen ("blank"), or one that was ("full").
    """

    questions: tuple[str, ...]
    views: int
    depth: Literal["none", "blank", "full"]
    proposals: Literal["none", "empty", "boxes", "patches"]
    bev: Literal["none", "blank", "full"]

    def make_row(self, seed: int, geometry: bool = False) -> dict[str, torch.Tensor]:
        """A row of this kind; with `geometry` and views it has pictures for the geometry encoder."""
        count = 0 if self.proposals in ("none", "empty") else 1 + seed % 5
        has = self.depth != "none", self.bev != "none", geometry and self.views > 0
        row = make_row(seed, self.views, count, list(self.questions), *has)
        if self.depth == "blank":
            row["patch_valid"] = torch.zeros_like(row["patch_valid"])
        if self.bev == "blank":
            row["bev_valid"] = torch.zeros_like(row["bev_valid"])
        absent = {"none": ("proposal_boxes", "proposal_mask", "proposal_patches"), "boxes": ("proposal_patches",)}
        names = absent.get(self.proposals, ())
        if not self.views:
            names = (*names, "pixel_values", "view_mask", "patch_coords", "patch_valid", "proposal_patches")
        return {name: value for name, value in row.items() if name not in names}


# Rows in pairs, of which two processes get one each: what the one has the other lacks.
WORST_KINDS = (
    RowKind(("text",), 3, "full", "patches", "full"), RowKind(("text",), 2, "full", "boxes", "full"),
    RowKind(("ground",), 2, "full", "boxes", "none"), RowKind(("ground", "text"), 5, "full", "patches", "full"),
    RowKind((), 5, "full", "patches", "full"), RowKind(("text",) * 4, 1, "none", "none", "none"),
    RowKind(("text", "coord"), 1, "none", "boxes", "full"), RowKind((), 4, "full", "none", "none"),
    RowKind((), 1, "none", "none", "none"), RowKind(("ground", "coord", "text"), 4, "full", "patches", "full"),
    RowKind(("ground",), 3, "full", "empty", "blank"), RowKind(("coord",), 2, "blank", "none", "full"),
    RowKind(("text", "text"), 0, "none", "none", "none"), RowKind(("ground", "ground"), 3, "full", "patches", "full"),
    RowKind(("text",), 4, "full", "none", "full"), RowKind(("coord",), 0, "none", "none", "none"),
    RowKind((), 3, "blank", "empty", "full"), RowKind((), 2, "full", "patches", "none"),
    RowKind(("text",), 1, "none", "none", "none"), RowKind(("text",), 1, "full", "patches", "full"),
    RowKind(("ground",), 1, "full", "boxes", "full"), RowKind(("text",), 5, "none", "none", "blank"),
    RowKind((), 2, "full", "boxes", "blank"), RowKind(("ground", "text"), 2, "none", "patches", "none"),
)  # fmt: skip
QUESTIONS = ((), ("text",), ("ground",), ("coord",), ("ground", "text", "coord"), ("text",) * 3)
# Every mixture of inputs; an object is asked for among some, and what belongs to views comes with them.
EVERY_KIND = tuple(
    RowKind(questions, views, depth, proposals, bev)
    for questions, views, depth, proposals, bev in itertools.product(
        QUESTIONS,
        (0, 1, 3),
        ("none", "blank", "full"),
        ("none", "empty", "boxes", "patches"),
        ("none", "blank", "full"),
    )
    if not (proposals == "none" and "ground" in questions)
    and (views or (depth, proposals, bev) == ("none", "none", "none"))
)


class MixedRows(Dataset):
    """The worst pairs of rows, then rows of every kind as a seed draws them; `geometry` as in `RowKind.make_row`."""

    def __init__(self, length: int, seed: int = 0, geometry: bool = False):
        drawn = np.random.default_rng(seed).integers(len(EVERY_KIND), size=max(length - len(WORST_KINDS), 0))
        self.kinds = [*WORST_KINDS, *(EVERY_KIND[place] for place in drawn)][:length]
        self.geometry = geometry

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.kinds[index].make_row(index, self.geometry)


def make_collator(ratio: float = 0.4) -> Ross3DCollator:
    return Ross3DCollator(pad_token_id=PAD_TOKEN, view_mask_ratio=ratio)
