"""Pass the pictures of all scenes of a run through its teacher once, and keep the latents.

    python -m ross3d.training.latents CONFIG.yaml [--section.key value ...]

Reads the run's own file; `data.latents` names the folder. Scenes that have theirs already are left alone.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from ross3d.command_line import run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.latents import SceneLatents
from ross3d.data.sources import read_scene
from ross3d.reconstruction_ross3d import encode_pictures, get_bev_pictures, get_view_pictures
from ross3d.training.arguments import RunArguments, read_command_line
from ross3d.training.build import (
    build_config,
    build_latents,
    build_processor,
    find_teacher,
    get_run_reading,
    list_scenes,
    list_unlabelled,
)


PICTURES_AT_ONCE = 16


def encode_in_parts(teacher: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """As `encode_pictures`, with as many pictures at a time as fit the device."""
    return torch.cat([encode_pictures(teacher, part) for part in pictures.split(PICTURES_AT_ONCE)])


def encode_scene_pictures(teacher: AutoencoderKL, inputs: dict[str, Any], config: Ross3DConfig) -> dict[str, Any]:
    """Latents of the pictures of one scene, from the processor's output."""
    latents = {"view_latents": encode_in_parts(teacher, get_view_pictures(inputs["pixel_values"][0], config))}
    if "bev_pixel_values" in inputs:
        latents["bev_latents"] = encode_in_parts(teacher, get_bev_pictures(inputs["bev_pixel_values"]))[0]
    return latents


def main(arguments: RunArguments) -> None:
    """Encode the scenes whose latents are missing.

    Raises:
        ValueError: for a run without `data.latents` or without a teacher.
    """
    teacher_folder = find_teacher(arguments)
    if arguments.data.latents is None or teacher_folder is None:
        raise ValueError(
            f"data.latents: expected a folder for latents, and a teacher, got {arguments.data.latents!r} and teacher"
            f" {teacher_folder}; set both in the run's file."
        )
    processor = build_processor(arguments)
    config = build_config(arguments, processor)
    kept: SceneLatents = build_latents(arguments, processor, config)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    teacher = AutoencoderKL.from_pretrained(teacher_folder).to(device).eval()
    wanted: list[Path] = [*list_scenes(arguments.data), *list_unlabelled(arguments.data, config)]
    scenes = [path for path in wanted if not kept.has(path)]
    for path in tqdm(scenes, desc="latents", unit="scene"):
        identity = kept.get_identity(path)
        scene = read_scene(path, **get_run_reading(arguments, processor))
        inputs = processor(**scene.get_inputs(bev=True), return_tensors="pt")
        kept.write(path, identity, encode_scene_pictures(teacher, inputs, config))


if __name__ == "__main__":
    run_program(lambda: main(read_command_line(sys.argv[1:], __doc__)))
