"""Pass the views of all scenes of a run through its geometry encoder once, and keep the features.

    python -m ross3d.training.geometry_features CONFIG.yaml [--npz DIR] [--section.key value ...]
    accelerate launch -m ross3d.training.geometry_features CONFIG.yaml    (a share of the scenes on each GPU)

Reads the run's own file; `data.geometry_features` names the folder. Scenes that have theirs already are left alone.
`--npz DIR` takes the features from 3DRS's files `DIR/SCENE/vggt.npz` instead of running an encoder.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from ross3d.command_line import run_program
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.ahead import iterate_ahead
from ross3d.data.atomic import check_output_folder
from ross3d.data.geometry_features import NPZ_DEPTH, SceneFeatures, read_npz
from ross3d.data.sources import read_scene
from ross3d.distillation_ross3d import stack_targets
from ross3d.fusion_ross3d import WEIGHT_DTYPES, run_encoder
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.training.arguments import RunArguments, read_command_line
from ross3d.training.build import (
    build_config,
    build_features,
    build_processor,
    find_geometry_encoder,
    get_encoder_processor,
    get_run_reading,
    list_scenes,
    list_unlabelled,
    load_geometry_encoder,
)
from ross3d.vggt_ross3d import Ross3DVGGT


# Side of a patch in pixels, of the encoder whose features 3DRS publishes.
NPZ_PATCH_SIZE = 14


def encode_views(encoder: Ross3DVGGT, pictures: torch.Tensor, config: Ross3DConfig) -> torch.Tensor:
    """Features (V, T, h, w, C) of a scene's views (V, 3, H, W), uint8, pooled to the token grid."""
    section = config.distillation_config
    found = run_encoder(encoder, pictures[None], None, section.encoder_layers, (), section.encoder_dtype)
    return stack_targets(found.patches, (config.view_grid_size, config.view_grid_size))[0].cpu()


def take_npz(
    folder: Path, path: Path, views: Sequence[str], grid: tuple[int, int], config: Ross3DConfig
) -> torch.Tensor:
    """Features (V, T, h, w, C) of a scene's named views from 3DRS's file of it."""
    features = read_npz(folder / path.name / "vggt.npz", path, views, grid)
    return stack_targets((features[None],), (config.view_grid_size, config.view_grid_size))[0]


def check_npz(config: Ross3DConfig, npz: Path) -> None:
    """Refuse `--npz` for a model that predicts other layers than those that 3DRS's files hold."""
    section = config.distillation_config
    if not npz.is_dir():
        raise FileNotFoundError(f"--npz: expected a folder with SCENE/vggt.npz, got {npz}; correct it.")
    if list(section.encoder_layers) not in ([-1], [NPZ_DEPTH - 1]) or section.feature_size != 2048:
        raise ValueError(
            "--npz: expected a model that predicts the last layer of VGGT-1B, which 3DRS's files hold (encoder_layers"
            f" [-1], feature_size 2048), got encoder_layers {list(section.encoder_layers)} and feature_size"
            f" {section.feature_size}; leave --npz out, and run the encoder."
        )


def main(arguments: RunArguments, npz: Path | None = None) -> None:
    """Make the features of the scenes that have none; each process takes its share of them.

    Raises:
        ValueError: for a run without `data.geometry_features` or without an encoder.
    """
    processor = build_processor(arguments)
    config = build_config(arguments, processor)
    encoder_path = find_geometry_encoder(arguments, config)
    if arguments.data.geometry_features is None or (encoder_path is None and npz is None):
        raise ValueError(
            "data.geometry_features: expected a folder for features, and a geometry encoder, got"
            f" {arguments.data.geometry_features!r} and encoder {encoder_path}; set both in the run's file."
        )
    check_output_folder(arguments.data.geometry_features, "data.geometry_features")
    if npz is not None:
        check_npz(config, npz)
    kept: SceneFeatures = build_features(arguments, processor, config)
    state = PartialState()
    encoder = None if npz is not None else load_geometry_encoder(encoder_path)
    if encoder is not None:
        encoder = encoder.to(state.device, WEIGHT_DTYPES[config.distillation_config.encoder_dtype]).eval()
    patch_size = NPZ_PATCH_SIZE if encoder is None else encoder.config.patch_size
    fitting = get_encoder_processor(processor, config, patch_size)
    if npz is not None:
        # Whatever encoder the run names, it is not known to be the one that made these files.
        kept.settings |= {"encoder": "vggt.npz of 3DRS", "encoder_depth": NPZ_DEPTH}
    wanted = [*list_scenes(arguments.data), *list_unlabelled(arguments.data, config)]
    # The shares do not depend on what is there: another process may be writing already.
    scenes = [path for path in wanted[state.process_index :: state.num_processes] if not kept.has(path)]
    reading = get_run_reading(arguments, fitting)
    prepared = iterate_ahead(lambda path: prepare(path, kept, fitting, reading), scenes)
    progress = tqdm(prepared, total=len(scenes), desc="geometry features", unit="scene",
                    disable=not state.is_main_process)  # fmt: skip
    for path, (identity, views, pictures) in zip(scenes, progress, strict=True):
        if encoder is None:
            grid = tuple(side // patch_size for side in pictures.shape[2:])
            features = take_npz(npz, path, views, grid, config)
        else:
            features = encode_views(encoder, pictures, config)
        kept.write(path, identity, views, features)
    state.wait_for_everyone()


def prepare(
    path: Path, kept: SceneFeatures, processor: Ross3DProcessor, reading: dict[str, Any]
) -> tuple[dict[str, Any], list[str], torch.Tensor]:
    """Identity of a scene's features, the names of its views, and the views (V, 3, H, W) for the encoder."""
    identity = kept.get_identity(path)
    scene = read_scene(path, **reading)
    inputs = scene.get_inputs()
    fitted = processor.fit_scene(**inputs | {"scene_id": inputs.pop("scene_ids")[0]})
    return identity, scene.view_names, fitted.geometry_pictures.permute(0, 3, 1, 2).contiguous()


def take_npz_option(words: list[str]) -> tuple[list[str], Path | None]:
    """The words of a command line without `--npz DIR` or `--npz=DIR`, and DIR."""
    place = next((place for place, word in enumerate(words) if word.split("=")[0] == "--npz"), None)
    if place is None:
        return words, None
    name, sign, folder = words[place].partition("=")
    end = place + 1
    if not sign:
        folder, end = (words[end] if end < len(words) else ""), end + 1
    if not folder:
        raise ValueError(f"{name}: expected the folder of 3DRS's files after it, got nothing; write --npz DIR.")
    return words[:place] + words[end:], Path(folder)


def start(words: list[str]) -> None:
    words, npz = take_npz_option(words)
    main(read_command_line(words, __doc__), npz)


if __name__ == "__main__":
    run_program(lambda: start(sys.argv[1:]))
