"""What a published checkpoint is made of: the parts it names, what weights do not tell of them, their licences."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import SiglipVisionConfig

from ross3d.tools.checkpoints.files import find_folder, read_json


@dataclass(frozen=True)
class Ingredient:
    """Something that weights come from, and on what terms its authors publish it."""

    name: str
    source: str
    license: str
    note: str = ""


INGREDIENTS = {
    "code": Ingredient("ross3d", "this repository", "Apache-2.0"),
    "release": Ingredient(
        "Ross3D weights and `mm_inv_projector.bin`",
        "HaochenWang/llava-video-qwen2-7b-ross3d, HaochenWang/ross3d-utils",
        "as their pages state",
        "trained on ScanNet, whose terms of use are non-commercial",
    ),
    "base": Ingredient("LLaVA-Video-7B-Qwen2", "lmms-lab/LLaVA-Video-7B-Qwen2", "Apache-2.0"),
    "language_model": Ingredient("Qwen2-7B", "Qwen/Qwen2-7B-Instruct", "Apache-2.0"),
    "vision_tower": Ingredient("SigLIP so400m", "google/siglip-so400m-patch14-384", "Apache-2.0"),
    "teacher": Ingredient(
        "VAE of FLUX.1-dev (`teacher/`)",
        "black-forest-labs/FLUX.1-dev",
        "FLUX.1 [dev] Non-Commercial License",
        "not for commercial use; needed for training and for sampling pictures, never for answers",
    ),
}

# Configurations that weights do not tell, by the last part of the name that a published config gives them.
VISION_TOWERS: dict[str, dict[str, Any]] = {
    "siglip-so400m-patch14-384": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
TEACHERS: dict[str, dict[str, Any]] = {
    "FLUX.1-dev": {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "act_fn": "silu",
        "latent_channels": 16,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "force_upcast": True,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "mid_block_add_attention": True,
    },
}
VISION_KEYS = tuple(VISION_TOWERS["siglip-so400m-patch14-384"])
DEFAULT_VISION_TOWER, DEFAULT_TEACHER = "google/siglip-so400m-patch14-384", "checkpoints/FLUX.1-dev"


def read_vision_config(folder: Path) -> dict[str, Any]:
    """The vision half of a SigLIP folder's `config.json`, all values written out.

    Raises:
        ValueError: when it is no SigLIP.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip_vision_model"):
        raise ValueError(f"{folder}: expected a SigLIP model (model_type siglip), got {kind!r}; name another tower.")
    vision = SiglipVisionConfig(**config.get("vision_config", config))
    return {key: getattr(vision, key) for key in VISION_KEYS}


def read_teacher_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a diffusers VAE.

    Raises:
        ValueError: when it is another class.
    """
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder}: expected a diffusers AutoencoderKL, got {kind}; name the folder of the VAE.")
    return {key: value for key, value in AutoencoderKL.load_config(folder).items() if not key.startswith("_")}


def find_teacher_folder(name: str, only_config: bool = False) -> Path:
    """A diffusers VAE's folder: `name` itself, or its `vae` where `name` is a whole pipeline."""
    folder = find_folder(name, only_config)
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def find_config(
    key: str, published: Mapping[str, Any], beside: Path, known: Mapping[str, dict], read, option: str
) -> dict[str, Any]:
    """The configuration of the part that `published[key]` names: beside the checkpoint, on disk, known, or on the Hub.

    Raises:
        ValueError: when none of these has it.
    """
    name = published.get(key)
    folders = [] if name is None else [Path(name), beside / name]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    if found is not None:
        return read(found)
    if name is not None and Path(name).name in known:
        return dict(known[Path(name).name])
    if name is not None and name.count("/") == 1 and not name.startswith((".", "/")):
        return read(find_folder(name, only_config=True))
    raise ValueError(
        f"{key} of {beside / 'config.json'}: expected a folder, a Hub id or one of {sorted(known)}, got {name!r}; say"
        f" with {option} where this part is: its weights do not tell all of its configuration."
    )
