"""Write a tiny checkpoint with random weights, teacher included: for tests, examples and trying things out.

    python tools/make_tiny.py DIR [--system 3drs] [--seed 0]

Its answers mean nothing. It has everything a real checkpoint has, so all code paths can be run in seconds.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ross3d.command_line import SEED, add_debug, parse_path, run_program
from ross3d.configuration_ross3d import Ross3DConfig, Ross3DVGGTConfig
from ross3d.data.atomic import check_output_folder
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.scenes.questions import TEMPLATES, get_plural
from ross3d.scenes.rooms import CATEGORIES, COLORS
from ross3d.scenes.tokenizer import make_tokenizer
from ross3d.tools.checkpoints.files import check_new_folder
from ross3d.vggt_ross3d import Ross3DVGGT


VIEW_SIZE, PATCH_SIZE, BEV_SIZE = 64, 8, 64
# Width of the tiny geometry encoder; its features have twice as many channels.
ENCODER_WIDTH = 16
DENOISER = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_pool_heads": 4, "intermediate_size": 128,
    "frequency_embedding_size": 32, "view_image_size": VIEW_SIZE, "bev_image_size": BEV_SIZE, "bev_grid_size": 4,
    "latent_channels": 4, "latent_patch_size": 2, "scaling_factor": 1.0, "shift_factor": 0.0,
}  # fmt: skip
DISTILLATION = {
    "head_hidden_size": 64, "feature_size": 2 * ENCODER_WIDTH, "encoder_image_size": VIEW_SIZE,
}  # fmt: skip
# Each system's settings of the model and of the processor.
SYSTEMS = {
    "ross3d": ({"denoiser_config": DENOISER}, {}),
    "3drs": (
        {"distillation_config": DISTILLATION, "proposal_pooling": "mean"},
        {"view_fit": "squash", "object_token_threshold": 0.125},
    ),
}


def make_texts() -> list[str]:
    """The texts that the tokenizer is trained on: the questions of our synthetic rooms."""
    words = [*CATEGORIES, *COLORS, *map(get_plural, CATEGORIES)]
    return [template for templates in TEMPLATES.values() for template in templates] + [f"a {word}" for word in words]


def make_tiny_processor(system: str = "ross3d") -> Ross3DProcessor:
    return Ross3DProcessor(
        image_processor=Ross3DImageProcessor(size={"height": VIEW_SIZE, "width": VIEW_SIZE}),
        tokenizer=make_tokenizer(make_texts(), vocab_size=512),
        patch_size=PATCH_SIZE,
        geometry_mode="valid_depth",
        label_rule="answer_only",
        bev_size=BEV_SIZE,
        max_position_embeddings=2048,
        **SYSTEMS[system][1],
    )


def make_tiny_teacher(seed: int = 0) -> AutoencoderKL:
    """A random VAE that turns 8 x 8 pixels into one latent."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=VIEW_SIZE,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
    )


def make_tiny_geometry_encoder(seed: int = 0) -> Ross3DVGGT:
    """A random VGGT with patches of 8 pixels, and camera and depth heads."""
    torch.manual_seed(seed)
    return Ross3DVGGT(
        Ross3DVGGTConfig(
            image_size=VIEW_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=ENCODER_WIDTH,
            vision_num_hidden_layers=1,
            vision_num_attention_heads=2,
            num_hidden_layers=2,
            num_attention_heads=2,
            camera_num_hidden_layers=1,
            camera_num_attention_heads=2,
            heads=["camera", "depth"],
            dense_layers=[0, 0, 1, 1],
            neck_hidden_sizes=[8, 8, 16, 16],
            fusion_hidden_size=8,
            dense_hidden_size=8,
            initializer_range=0.2,
        )
    )


def make_tiny_model(tokenizer, seed: int = 0, system: str = "ross3d") -> Ross3DForConditionalGeneration:
    """A model with a few hundred thousand random weights for a tokenizer."""
    config = Ross3DConfig(
        vision_config={
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": VIEW_SIZE,
            "patch_size": PATCH_SIZE,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "initializer_range": 0.125,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        ground_token_id=tokenizer.convert_tokens_to_ids("<ground>"),
        coord_token_id=tokenizer.convert_tokens_to_ids("<coord>"),
        projector_norm="layer_norm",
        position_embedding_base=100.0,
        initializer_range=0.125,
        **SYSTEMS[system][0],
    )
    torch.manual_seed(seed)
    model = Ross3DForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_tiny_checkpoint(path: str | Path, seed: int = 0, system: str = "ross3d") -> Path:
    """Write a system's model and processor, and its `teacher/` or `geometry_encoder/`, into `path`.

    The same seed gives the same weights.
    """
    path = Path(path)
    processor = make_tiny_processor(system)
    model = make_tiny_model(processor.tokenizer, seed, system)
    model.save_pretrained(path)
    processor.save_pretrained(path)
    if model.config.denoiser_config is not None:
        make_tiny_teacher(seed).save_pretrained(path / "teacher")
    if model.config.distillation_config is not None:
        make_tiny_geometry_encoder(seed).save_pretrained(path / "geometry_encoder")
    return path


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=parse_path, help="folder to write")
    parser.add_argument("--system", choices=sorted(SYSTEMS), default="ross3d", help="which system's checkpoint")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of the weights")
    add_debug(parser)
    options = parser.parse_args(args)
    check_new_folder(options.path)
    check_output_folder(options.path, "DIR")
    print(make_tiny_checkpoint(options.path, options.seed, options.system))


if __name__ == "__main__":
    run_program(main)


__all__ = [
    "make_tiny_checkpoint",
    "make_tiny_geometry_encoder",
    "make_tiny_model",
    "make_tiny_processor",
    "make_tiny_teacher",
]
