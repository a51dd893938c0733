"""The parts of a published checkpoint: those that it names, and their configurations, which are not in its weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import SiglipVisionConfig

from ross3d.data.names import is_inside
from ross3d.tools.checkpoints.files import fetch_folder, find_folder, read_json


# Configurations of well-known parts, by the last component of their name in a published config.
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
# The released VAE has four blocks of two layers.
MAX_VAE_LAYERS = 32
DEFAULT_VISION_TOWER, DEFAULT_TEACHER = "google/siglip-so400m-patch14-384", "checkpoints/FLUX.1-dev"


def read_vision_config(folder: Path) -> dict[str, Any]:
    """The vision half of a SigLIP folder's `config.json`, all values written out.

    Raises:
        ValueError: when it is not a SigLIP.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in ("siglip", "siglip_vision_model"):
        raise ValueError(
            f"{folder / 'config.json'}: expected model_type siglip or siglip_vision_model, got {kind!r}; give a"
            " SigLIP tower, or add its model_type."
        )
    vision = SiglipVisionConfig(**config.get("vision_config", config))
    if vision.hidden_size % vision.num_attention_heads:
        raise ValueError(
            f"{folder / 'config.json'}: expected num_attention_heads that divide hidden_size {vision.hidden_size},"
            f" got {vision.num_attention_heads}; use the tower's own number."
        )
    return {key: getattr(vision, key) for key in VISION_KEYS}


def read_teacher_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a diffusers VAE.

    Raises:
        ValueError: when it is another class.
    """
    config = read_json(folder / "config.json")
    kind = config.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"{folder}: expected a diffusers AutoencoderKL, got {kind}; give the folder of the VAE.")
    blocks = [config.get(key, []) for key in ("block_out_channels", "down_block_types", "up_block_types")]
    layers = config.get("layers_per_block", 1)
    # A model is built to find its values; with a wrong number that would never end.
    if type(layers) is not int or layers > MAX_VAE_LAYERS or not all(is_short_list(value) for value in blocks):
        raise ValueError(
            f"{folder / 'config.json'}: expected lists of at most {MAX_VAE_LAYERS} blocks with at most"
            f" {MAX_VAE_LAYERS} layers_per_block, got {str(blocks)[:200]} and {layers}; use the VAE's own file."
        )
    try:
        with torch.device("meta"):
            whole = AutoencoderKL.from_config(config).config
    except (ValueError, TypeError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: expected the settings of a VAE, got values for which no VAE can be built"
            f" ({error}); use the VAE's own file."
        ) from error
    return {key: value for key, value in whole.items() if not key.startswith("_")}


def is_short_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) <= MAX_VAE_LAYERS


@dataclass(frozen=True)
class Part:
    """A part that a published config refers to by name.

    Holds the configurations of well-known names, the reader for others, the option that names a folder, and the files
    that are needed from a Hub repository.
    """

    known: Mapping[str, dict[str, Any]]
    read: Callable[[Path], dict[str, Any]]
    option: str
    config_files: tuple[str, ...]
    weight_files: tuple[str, ...]


PARTS = {
    "mm_vision_tower": Part(
        VISION_TOWERS, read_vision_config, "--vision-tower", ("config.json",), ("config.json", "model*.safetensors*")
    ),
    "mm_pixel_decoder": Part(
        TEACHERS,
        read_teacher_config,
        "--teacher",
        ("config.json", "vae/config.json"),
        ("config.json", "diffusion_pytorch_model*", "vae/*"),
    ),
}


def find_known_name(key: str, name: str) -> str | None:
    """The well-known part among the components of a name, such as `FLUX.1-dev` in `/models/FLUX.1-dev/vae`."""
    return next((part for part in Path(str(name)).parts if part in PARTS[key].known), None)


def is_part_inside(name: Any, beside: Path) -> bool:
    """Whether a name refers to a folder inside a checkpoint's folder."""
    if not isinstance(name, str) or "\0" in name or not name:
        return False
    folder = beside / name
    return folder.is_dir() and is_inside(folder, beside) and not folder.samefile(beside)


def find_part(
    key: str, published: Mapping[str, Any], beside: Path, given: str | None, only_config: bool = False
) -> Path:
    """The folder of vision tower or VAE: the one given, or the one that `published[key]` names.

    The given name is a folder or a Hub id. A name in a config is a folder inside `beside` or a Hub id: a config must
    not choose among the folders of this machine. The VAE of a whole pipeline is its `vae`.

    Raises:
        ValueError: when the name is neither.
    """
    part = PARTS[key]
    name = published.get(key) if given is None else given
    needed = part.config_files if only_config else part.weight_files
    if given is not None:
        folder = find_folder(given, needed)
    elif is_part_inside(name, beside):
        folder = beside / name
    elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        folder = fetch_folder(name, needed)
    else:
        needed = "configuration" if only_config else "weights (they are not in the checkpoint)"
        raise ValueError(
            f"{key} of {beside / 'config.json'}: expected a folder next to this file or a Hub id, with {needed}, got"
            f" {name!r}, which is neither; give its place with {part.option} DIR_OR_REPO. The configuration is a"
            " config.json of Transformers or diffusers."
        )
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def find_config(key: str, published: Mapping[str, Any], beside: Path, given: str | None) -> dict[str, Any]:
    """The configuration of vision tower or VAE, which is not in the weights; well-known names need no folder.

    Raises:
        ValueError: as `find_part`.
    """
    part, name = PARTS[key], published[key]
    known = find_known_name(key, name)
    if given is None and not is_part_inside(name, beside) and known is not None:
        return dict(part.known[known])
    return part.read(find_part(key, published, beside, given, only_config=True))
