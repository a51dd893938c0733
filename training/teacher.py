"""A small VAE teacher, trained on pictures of our own scenes: views and bird's-eye pictures.

    python -m ross3d.training.teacher --scenes DIR/train --output DIR/teacher

The published model is taught by a large VAE; the tiny run needs one of its own size. The result is an ordinary
diffusers `AutoencoderKL` folder whose scaling factor makes the latents of these pictures unit variance.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F
from tqdm import tqdm

from ross3d.command_line import COUNT, POSITIVE, SEED, add_debug, parse_path, run_program
from ross3d.data.sources import list_folders
from ross3d.data.sources.rgbd_folder import read_rgbd_folder


def build_teacher(latent_channels: int = 4, widths: tuple[int, ...] = (16, 32, 48)) -> AutoencoderKL:
    """A new VAE that halves pictures `len(widths) - 1` times."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def load_pictures(paths: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Views (n, 3, H, W) and bird's-eye pictures (m, 3, Hb, Wb), uint8, of the scenes in `paths`."""
    scenes = [read_rgbd_folder(path) for path in tqdm(paths, desc="reading pictures")]
    views = torch.from_numpy(np.concatenate([scene.images for scene in scenes])).permute(0, 3, 1, 2)
    bevs = torch.from_numpy(np.stack([scene.bev_image for scene in scenes])).permute(0, 3, 1, 2)
    return views.contiguous(), bevs.contiguous()


def draw_pictures(pictures: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` of the pictures, as floats in [-1, 1]."""
    index = torch.randint(len(pictures), (count,), generator=generator)
    return pictures[index].float() / 127.5 - 1


def train_teacher(
    views: torch.Tensor, bevs: torch.Tensor, steps: int, batch_size: int, learning_rate: float, seed: int
) -> AutoencoderKL:
    """Train on views and, every fourth step, bird's-eye pictures, with an L1 loss and a small KL term."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    teacher = build_teacher()
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    progress = tqdm(range(steps), desc="VAE teacher")
    for step in progress:
        pictures = draw_pictures(bevs if step % 4 == 3 else views, batch_size, generator)
        posterior = teacher.encode(pictures).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        rebuilt = teacher.decode(latents).sample
        loss = F.l1_loss(rebuilt, pictures) + 1e-4 * posterior.kl().mean() / pictures[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            progress.set_postfix(l1=float(F.l1_loss(rebuilt, pictures)))
    return teacher


@torch.no_grad()
def set_scale(teacher: AutoencoderKL, views: torch.Tensor, bevs: torch.Tensor, seed: int) -> None:
    """Set `shift_factor` and `scaling_factor` to the mean and inverse spread of the latents of these pictures."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [teacher.encode(draw_pictures(p, 256, generator)).latent_dist.mean.flatten() for p in (views, bevs)]
    latents = torch.cat(drawn)
    teacher.register_to_config(
        shift_factor=round(float(latents.mean()), 4), scaling_factor=round(1 / float(latents.std()), 4)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=parse_path, required=True, help="folder of scene folders")
    parser.add_argument("--output", type=parse_path, required=True, help="output folder of the VAE (diffusers format)")
    parser.add_argument("--num-scenes", type=COUNT, default=800, help="maximum number of scenes")
    parser.add_argument("--steps", type=COUNT, default=2000, help="optimizer steps")
    parser.add_argument("--batch-size", type=COUNT, default=16, help="images per step")
    parser.add_argument("--learning-rate", type=POSITIVE, default=2e-3, help="learning rate of AdamW")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed")
    parser.add_argument("--threads", type=COUNT, default=1, help="processor threads")
    add_debug(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    paths = list_folders(arguments.scenes)[: arguments.num_scenes]
    views, bevs = load_pictures(paths)
    teacher = train_teacher(
        views, bevs, arguments.steps, arguments.batch_size, arguments.learning_rate, arguments.seed
    )
    set_scale(teacher, views, bevs, arguments.seed)
    teacher.half().save_pretrained(arguments.output)


if __name__ == "__main__":
    run_program(main)
