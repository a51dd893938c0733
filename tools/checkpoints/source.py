"""A published checkpoint as it lies on disk or on the Hub, with the parts that it names."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import COORD_TOKEN, GROUND_TOKEN, IMAGE_TOKEN, Ross3DImageProcessor, Ross3DProcessor
from ross3d.tools.checkpoints.files import Readable, find_checkpoint, list_tensors, read_json
from ross3d.tools.checkpoints.ingredients import (
    DEFAULT_TEACHER,
    DEFAULT_VISION_TOWER,
    find_config,
    find_part,
)
from ross3d.tools.checkpoints.published_config import get_denoiser_settings, get_vocab_size, make_config


TOWER_PREFIX, TEACHER_PREFIX = "model.vision_tower.vision_tower.", "model.mm_pixel_decoder.pixel_decoder."
MAX_NEW_TOKENS = 512
TOKENS = {"image": IMAGE_TOKEN, "ground": GROUND_TOKEN, "coord": COORD_TOKEN}


@dataclass
class PublishedSource:
    """What was found.

    Attributes:
        folder (`Path`): of the checkpoint.
        config (`dict`): its `config.json`, with the parts of the published recipe where it names none.
        tensors: by published name, vision tower and VAE included where they were found.
        vision (`dict`): SigLIP's configuration.
        teacher (`dict`): the VAE's configuration.
        tokenizer: with all three scene tokens.
        num_old_tokens (`int`): how many tokens it knew before.
        dropped: keys left out because they were asked to be.
        used (list of `Path`): folders and files that tensors come from.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Readable]
    vision: dict[str, Any]
    teacher: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    num_old_tokens: int
    dropped: list[str] = field(default_factory=list)
    used: list[Path] = field(default_factory=list)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def has_teacher(self) -> bool:
        return any(name.startswith(TEACHER_PREFIX) for name in self.tensors)

    @property
    def token_ids(self) -> dict[str, int | None]:
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
        return ids | {"eos": self.tokenizer.eos_token_id, "pad": self.tokenizer.pad_token_id}


def read_source(
    name: str | Path, vision_tower: str | None = None, teacher: str | None = None, drop: Iterable[str] = ()
) -> PublishedSource:
    """Read a published checkpoint's configuration and where its tensors lie; no tensor is read.

    Args:
        name: folder or Hub id.
        vision_tower, teacher (`str`, *optional*): folder or Hub id of SigLIP and of the VAE, for checkpoints that
            name one that is not to be found, or that come without their weights.
        drop: patterns of keys to leave out.

    Raises:
        FileNotFoundError: for absent files.
        ValueError: for broken or contradicting ones.
    """
    folder = find_checkpoint(name)
    config = read_json(folder / "config.json")
    if config.get("model_type") == "ross3d":
        raise ValueError(f"{folder}: expected a published checkpoint, got one of ours; add --reverse to go back.")
    parts = {"mm_vision_tower": DEFAULT_VISION_TOWER, "mm_pixel_decoder": DEFAULT_TEACHER}
    config = {**parts, **config}
    found = list_tensors(folder)
    tensors: dict[str, Readable] = {
        key: tensor for key, tensor in found.items() if not any(fnmatch.fnmatch(key, pattern) for pattern in drop)
    }
    used = [folder]
    if not any(key.startswith(TOWER_PREFIX) for key in tensors):
        tower = find_part("mm_vision_tower", config, folder, vision_tower)
        tensors |= list_tower(tower)
        used.append(tower)
    if teacher is not None and not any(key.startswith(TEACHER_PREFIX) for key in tensors):
        vae = find_part("mm_pixel_decoder", config, folder, teacher)
        tensors |= {f"{TEACHER_PREFIX}{key}": tensor for key, tensor in list_tensors(vae).items()}
        used.append(vae)
    vision = find_config("mm_vision_tower", config, folder, vision_tower)
    vae_config = find_config("mm_pixel_decoder", config, folder, teacher)
    tokenizer, num_old_tokens = load_tokenizer(folder, config)
    return PublishedSource(
        folder, config, tensors, vision, vae_config, tokenizer, num_old_tokens,
        sorted(set(found) - set(tensors)), used,
    )  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """The library's warnings and reports are off inside."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def list_tower(folder: Path) -> dict[str, Readable]:
    """Tensors of a SigLIP folder under the names that a published checkpoint gives them."""
    found = list_tensors(folder)
    alone = any(name.startswith("embeddings.") for name in found)
    return {f"{TOWER_PREFIX}{'vision_model.' if alone else ''}{name}": tensor for name, tensor in found.items()}


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, int]:
    """The checkpoint's tokenizer with the scene tokens, and how many tokens it had without those that were added.

    `<ground>` and `<coord>` are ordinary tokens, as published: decoding keeps them.

    Raises:
        FileNotFoundError: when there is no tokenizer.
        ValueError: when the ids are not those that `config` says.
    """
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"{folder}: expected a tokenizer (tokenizer.json or vocab.json), found none; copy it there."
        )
    with quiet():  # The library warns of a model_type that it does not know.
        tokenizer = AutoTokenizer.from_pretrained(folder)
    num_old_tokens = len(tokenizer)
    for token in TOKENS.values():
        if token not in tokenizer.get_vocab():
            special = token == IMAGE_TOKEN
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=not special)], special_tokens=special)
    for name in ("ground", "coord"):
        wanted, found = config.get(f"{name}_token_ids"), [tokenizer.convert_tokens_to_ids(TOKENS[name])]
        if wanted not in (None, found):
            raise ValueError(
                f"{name}_token_ids of {folder / 'config.json'}: expected those of the tokenizer beside it, {found},"
                f" got {wanted}; the tokenizer belongs to another checkpoint."
            )
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(
                f"{folder}: expected a tokenizer with a {name}, got none; set it in tokenizer_config.json."
            )
    return tokenizer, num_old_tokens


def make_release_config(source: PublishedSource) -> Ross3DConfig:
    """Our config of a released checkpoint: it has the heads whose weights are there.

    Raises:
        ValueError: when word embeddings lack rows of scene tokens, as those of base models do.
    """
    vocab_size = get_vocab_size(source.shapes)
    tokens = {token: source.token_ids[name] for name, token in TOKENS.items()}
    if max(tokens.values()) >= vocab_size:
        raise ValueError(
            f"{source.folder}: expected a row of word embeddings for each of {tokens}, got {vocab_size} rows; a base"
            " model gets them with --init."
        )
    return make_config(
        source.config,
        vocab_size,
        source.token_ids,
        source.vision,
        get_denoiser_settings(source.shapes, source.teacher),
        grounding=any(name.startswith("ground_head_") for name in source.tensors),
    )


def set_generation_defaults(model: Ross3DForConditionalGeneration) -> None:
    """Answers as the published evaluation generates them: greedy, to the end mark, 512 tokens at most."""
    config = model.config
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        # Their vectors mean places of a scene: an answer never holds them.
        suppress_tokens=[config.image_token_id, config.coord_token_id],
        use_cache=True,
    )


def make_processor(tokenizer: PreTrainedTokenizerBase, config: Ross3DConfig, for_training: bool) -> Ross3DProcessor:
    """The published processing of a model; its training prompts carry the spatial instruction, its evaluation not."""
    side = config.vision_config.image_size
    denoiser = config.denoiser_config
    return Ross3DProcessor(
        image_processor=Ross3DImageProcessor(size={"height": side, "width": side}),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        geometry_mode="published",
        label_rule="published",
        spatial_instruction=for_training,
        max_position_embeddings=config.text_config.max_position_embeddings,
        **({} if denoiser is None else {"bev_size": denoiser.bev_image_size}),
    )
