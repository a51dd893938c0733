"""Write a tiny checkpoint with random weights, teacher included: for tests, examples and trying things out.

    python tools/make_tiny.py DIR [--seed 0]

Its answers mean nothing. It has everything a real checkpoint has, so all code paths can be run in seconds.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ross3d.command_line import SEED, add_debug, parse_path, run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.atomic import check_output_folder
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.scenes.questions import TEMPLATES, get_plural
from ross3d.scenes.rooms import CATEGORIES, COLORS
from ross3d.scenes.tokenizer import make_tokenizer
from ross3d.tools.checkpoints.files import check_new_folder


VIEW_SIZE, PATCH_SIZE, BEV_SIZE = 64, 8, 64


def make_texts() -> list[str]:
    """The texts that the tokenizer is trained on: the questions of our synthetic rooms."""
    words = [*CATEGORIES, *COLORS, *map(get_plural, CATEGORIES)]
    return [template for templates in TEMPLATES.values() for template in templates] + [f"a {word}" for word in words]


def make_tiny_processor() -> Ross3DProcessor:
    return Ross3DProcessor(
        image_processor=Ross3DImageProcessor(size={"height": VIEW_SIZE, "width": VIEW_SIZE}),
        tokenizer=make_tokenizer(make_texts(), vocab_size=512),
        patch_size=PATCH_SIZE,
        geometry_mode="valid_depth",
        label_rule="answer_only",
        bev_size=BEV_SIZE,
        max_position_embeddings=2048,
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


def make_tiny_model(tokenizer, seed: int = 0) -> Ross3DForConditionalGeneration:
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
        denoiser_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_pool_heads": 4,
            "intermediate_size": 128,
            "frequency_embedding_size": 32,
            "view_image_size": VIEW_SIZE,
            "bev_image_size": BEV_SIZE,
            "bev_grid_size": 4,
            "latent_channels": 4,
            "latent_patch_size": 2,
            "scaling_factor": 1.0,
            "shift_factor": 0.0,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        ground_token_id=tokenizer.convert_tokens_to_ids("<ground>"),
        coord_token_id=tokenizer.convert_tokens_to_ids("<coord>"),
        projector_norm="layer_norm",
        position_embedding_base=100.0,
        initializer_range=0.125,
    )
    torch.manual_seed(seed)
    model = Ross3DForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def make_tiny_checkpoint(path: str | Path, seed: int = 0) -> Path:
    """Write model, processor and `teacher/` into `path`; the same seed gives the same weights."""
    path = Path(path)
    processor = make_tiny_processor()
    make_tiny_model(processor.tokenizer, seed).save_pretrained(path)
    processor.save_pretrained(path)
    make_tiny_teacher(seed).save_pretrained(path / "teacher")
    return path


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=parse_path, help="folder to write")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of the weights")
    add_debug(parser)
    options = parser.parse_args(args)
    check_new_folder(options.path)
    check_output_folder(options.path, "DIR")
    print(make_tiny_checkpoint(options.path, options.seed))


if __name__ == "__main__":
    run_program(main)


__all__ = ["make_tiny_checkpoint", "make_tiny_model", "make_tiny_processor", "make_tiny_teacher"]
