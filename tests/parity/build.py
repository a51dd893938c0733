"""Our model, teacher, processor and inputs for a recorded set; every size comes from the set."""

import math
from functools import cached_property

import torch
from diffusers import AutoencoderKL
from PIL import Image
from transformers import AutoTokenizer

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.geometry_ross3d import assign_patches, pool_patch_coords
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.rows_ross3d import IMAGE_TOKEN
from ross3d.tests.parity.golden import GoldenCase, GoldenSet, read_factor
from ross3d.tools.checkpoints.ingredients import VISION_KEYS
from ross3d.tools.checkpoints.keys import to_ours
from ross3d.tools.checkpoints.published_config import get_denoiser_settings, get_vocab_size
from ross3d.tools.checkpoints.published_config import make_config as convert_config


# What the published code writes where its one scene slot is.
SLOT = -200


def make_config(golden: GoldenSet) -> Ross3DConfig:
    """Our config of the recorded model, with the published choice of every named value."""
    reference, vision = golden.config["reference_config"], golden.config["siglip_config"]
    head, special = golden.config["denoiser"], golden.config["special_ids"]
    assert head["noise_schedule"] == "cosine" and not head["learn_sigma"]
    shapes = {name: tuple(tensor.shape) for name, tensor in golden.weights.items()}
    denoiser = get_denoiser_settings(shapes, golden.config["vae_config"])
    recorded = {
        "hidden_size": head["embed_dim"],
        "num_hidden_layers": head["depth"],
        "num_attention_heads": head["num_heads"],
        "num_pool_heads": head["attn_pool_heads"],
        "intermediate_size": int(head["embed_dim"] * head["mlp_ratio"]),
        "prediction_type": head["predict"],
        "num_train_timesteps": head["diffusion_steps"],
        "bev_grid_size": math.isqrt(head["n_patches_bev"]),
    }
    return convert_config(
        reference,
        vocab_size=get_vocab_size(shapes),
        token_ids={
            **{name: special[f"<{name}>"] for name in ("image", "ground", "coord")},
            # Recorded answers go on behind the end mark.
            "eos": None,
            "pad": special["<|endoftext|>"],
        },
        vision={
            **{key: value for key, value in vision.items() if key in VISION_KEYS},
            "num_hidden_layers": vision["num_layers_kept"] + 1,
        },
        denoiser=denoiser | recorded,
        grounding=True,
    )


def split_weights(golden: GoldenSet) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Recorded weights under our names: the model's and the teacher's."""
    renamed = {to_ours(name): tensor for name, tensor in golden.weights.items()}
    assert None not in renamed and len(renamed) == len(golden.weights)
    teacher = {name.removeprefix("teacher."): w for name, w in renamed.items() if name.startswith("teacher.")}
    return {name: w for name, w in renamed.items() if not name.startswith("teacher.")}, teacher


def make_model(golden: GoldenSet) -> Ross3DForConditionalGeneration:
    """The recorded model with its teacher, in evaluation mode; what the published training froze is frozen."""
    weights, teacher_weights = split_weights(golden)
    model = Ross3DForConditionalGeneration(make_config(golden))
    model.load_state_dict(weights, strict=True)
    teacher = AutoencoderKL.from_config(golden.config["vae_config"])
    teacher.load_state_dict(teacher_weights, strict=True)
    model.attach_teacher(teacher)
    model.model.vision_tower.requires_grad_(False)
    return model.eval()


def make_processor(golden: GoldenSet, spatial_instruction: bool, views: int | None = None) -> Ross3DProcessor:
    """The published processing for views of the recorded size."""
    vision = golden.config["siglip_config"]
    side = vision["image_size"] if views is None else views
    bev = golden.get_case("inputs")
    return Ross3DProcessor(
        Ross3DImageProcessor(size={"height": side, "width": side}),
        AutoTokenizer.from_pretrained(golden.path / "toy_tokenizer"),
        patch_size=vision["patch_size"],
        geometry_mode="published",
        label_rule="published",
        spatial_instruction=spatial_instruction,
        bev_size=len(bev.read("bev_small")) * bev.scalars["bev_upsample"],
    )


def enlarge(pictures: torch.Tensor, factor: int) -> torch.Tensor:
    """Repeat every pixel of (..., H, W, C) `factor` times along both sides."""
    return pictures.repeat_interleave(factor, dim=-3).repeat_interleave(factor, dim=-2)


def enlarge_recorded(case: GoldenCase, name: str) -> torch.Tensor:
    """A recorded picture at the size its description gives; depth maps (V, H, W) too."""
    tensor, factor = case.read(name), read_factor(case.describe(name))
    if tensor.shape[-1] == 3:
        return enlarge(tensor, factor)
    return enlarge(tensor[..., None], factor)[..., 0]


def to_pictures(views: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(view.numpy()) for view in views]


def collapse_slot(row: torch.Tensor, is_image: torch.Tensor, value: int) -> torch.Tensor:
    """A row (L,) with its run of placeholders replaced by one `value`."""
    first = int(is_image.nonzero()[0])
    return torch.cat([row[:first], torch.tensor([value]), row[first:][~is_image[first:]]])


class Recorded:
    """A recorded set with the model, processors and inputs made from it."""

    def __init__(self, golden: GoldenSet):
        self.golden = golden
        self.shared = golden.get_case("inputs")

    @cached_property
    def model(self) -> Ross3DForConditionalGeneration:
        return make_model(self.golden)

    @cached_property
    def train_processor(self) -> Ross3DProcessor:
        return make_processor(self.golden, spatial_instruction=True)

    @cached_property
    def eval_processor(self) -> Ross3DProcessor:
        return make_processor(self.golden, spatial_instruction=False)

    @cached_property
    def views(self) -> torch.Tensor:
        """uint8 (V, S, S, 3)."""
        return enlarge(self.shared.read("images_small"), self.shared.scalars["image_upsample"])

    @cached_property
    def world_coords(self) -> torch.Tensor:
        """(V, S, S, 3), metres."""
        small = self.shared.read("world_coords_small").float()
        return enlarge(small, self.shared.scalars["world_coords_upsample"])

    @cached_property
    def bev(self) -> torch.Tensor:
        """uint8 (Hb, Wb, 3)."""
        return enlarge(self.shared.read("bev_small"), self.shared.scalars["bev_upsample"])

    @cached_property
    def geometry(self) -> dict[str, torch.Tensor]:
        """`patch_coords` and `patch_valid` of the one scene."""
        patch_size = self.train_processor.patch_size
        coords, valid = pool_patch_coords(self.world_coords, None, patch_size, "published")
        return {"patch_coords": coords[None], "patch_valid": valid[None]}

    @cached_property
    def object_patches(self) -> torch.Tensor:
        """(K, V, p, p) bool."""
        processor = self.train_processor
        boxes = self.shared.read("objects")
        return assign_patches(self.world_coords, boxes, processor.patch_size, processor.object_patch_threshold)

    def get_question(self, task: str) -> str:
        return self.shared.scalars[f"{task}_raw_user_text"].replace(IMAGE_TOKEN, "")

    def get_inputs(self, task: str | None = None, train: bool = False, bev: bool = False, **words) -> dict:
        """The processor's inputs of the one scene: `task` is "qa", "cap" or "ground"; None asks nothing.

        `words` go to the processor (such as `target_objects`).
        """
        processor = self.train_processor if train else self.eval_processor
        if task is not None:
            words["text"] = self.get_question(task)
        if task == "cap":
            words["query_coords"] = self.shared.read("box_input")
        if task == "ground":
            words["proposal_boxes"] = self.shared.read("objects")
        if train:
            words["answers"] = self.shared.scalars[f"{task}_answer_text"]
        if bev:
            words["bev_image"] = self.bev
        inputs = dict(processor(images=to_pictures(self.views), **words)) | self.geometry
        if task == "ground":
            inputs["proposal_patches"] = self.object_patches[None]
        return inputs
