"""Read a published checkpoint, on disk or on the Hub, with the parts that it names."""

import fnmatch
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, Qwen2Tokenizer
from transformers.utils import logging

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.report.card import INGREDIENTS, Ingredient, make_unknown
from ross3d.rows_ross3d import COORD_TOKEN, GROUND_TOKEN, IMAGE_TOKEN
from ross3d.tools.checkpoints.files import Readable, find_checkpoint, list_tensors, read_json
from ross3d.tools.checkpoints.ingredients import (
    DEFAULT_TEACHER,
    DEFAULT_VISION_TOWER,
    TEACHERS,
    VISION_TOWERS,
    find_config,
    find_known_name,
    find_part,
)
from ross3d.tools.checkpoints.keys import INVERSE_PROJECTOR, TEACHER_PREFIX, TOWER_PREFIX, VISION_LAYER, is_3drs
from ross3d.tools.checkpoints.plan import check_num_layers
from ross3d.tools.checkpoints.published_config import (
    get_denoiser_settings,
    get_distillation_settings,
    get_vocab_size,
    is_3drs_model,
    make_config,
)


MAX_NEW_TOKENS = 512
TOKENS = {"image": IMAGE_TOKEN, "ground": GROUND_TOKEN, "coord": COORD_TOKEN}


@dataclass
class PublishedSource:
    """A published checkpoint: configurations, tokenizer, and where its tensors are.

    Attributes:
        folder (`Path`): of the checkpoint.
        raw_config (`dict`): its `config.json`.
        config (`dict`): the same without nulls, with the parts of the published recipe if it names none.
        tensors: by published name, including vision tower and VAE if they were found.
        vision (`dict`): SigLIP's configuration.
        teacher (`dict`, *optional*): the VAE's configuration, if there are weights that need it.
        tokenizer: with all three scene tokens.
        num_old_tokens (`int`): the number of its tokens before these were added.
        tower_folder, teacher_folder (`Path`, *optional*): the sources of weights that the checkpoint lacks.
        dropped: keys left out on request.
    """

    folder: Path
    raw_config: dict[str, Any]
    config: dict[str, Any]
    tensors: dict[str, Readable]
    vision: dict[str, Any]
    teacher: dict[str, Any] | None
    tokenizer: PreTrainedTokenizerBase
    num_old_tokens: int
    tower_folder: Path | None
    teacher_folder: Path | None
    dropped: list[str]

    @property
    def used(self) -> list[Path]:
        """Folders that tensors come from."""
        return [path for path in (self.folder, self.tower_folder, self.teacher_folder) if path is not None]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def has_teacher(self) -> bool:
        return any(name.startswith(TEACHER_PREFIX) for name in self.tensors)

    @property
    def is_3drs(self) -> bool:
        """Whether it is of 3DRS, whose views and proposals are read in another way; keys that were left out count."""
        return is_3drs([*self.tensors, *self.dropped])

    @property
    def token_ids(self) -> dict[str, int | None]:
        ids = {name: self.tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
        return ids | {"eos": self.tokenizer.eos_token_id, "pad": self.tokenizer.pad_token_id}


def read_source(
    name: str | Path, vision_tower: str | None = None, teacher: str | None = None, drop: Iterable[str] = ()
) -> PublishedSource:
    """Read a published checkpoint's configuration and find its tensors; no tensor is read.

    Args:
        name: folder or Hub id.
        vision_tower, teacher (`str`, *optional*): folder or Hub id of SigLIP and of the VAE, for checkpoints that
            lack their weights or name one that cannot be found.
        drop: patterns of keys to leave out.

    Raises:
        FileNotFoundError: for missing files.
        ValueError: for broken or contradictory files.
    """
    folder = find_checkpoint(name)
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected the checkpoint's folder, got a file; config and tokenizer are needed too."
        )
    raw_config = read_json(folder / "config.json")
    if raw_config.get("model_type") == "ross3d":
        raise ValueError(
            f"{folder}: expected a published checkpoint, got one in our format; add --reverse to convert it back."
        )
    parts = {"mm_vision_tower": DEFAULT_VISION_TOWER, "mm_pixel_decoder": DEFAULT_TEACHER}
    config = parts | {key: value for key, value in raw_config.items() if value not in (None, "")}
    tokenizer, num_old_tokens = load_tokenizer(folder, config)
    found = list_tensors(folder)
    tensors: dict[str, Readable] = {key: t for key, t in found.items() if not fits_any(key, drop)}
    check_num_layers({"num_hidden_layers": config.get("num_hidden_layers")}, tensors, folder / "config.json")
    idle = [pattern for pattern in drop if not any(fnmatch.fnmatch(key, pattern) for key in found)]
    if idle:
        raise ValueError(
            f"--drop: expected patterns of keys of {folder}, got {idle}, which match none; leave them out."
        )
    has_tower = any(key.startswith(TOWER_PREFIX) for key in tensors)
    if is_3drs(found) and not has_tower:
        raise ValueError(
            f"{folder}: expected the weights of the vision tower, {TOWER_PREFIX}*, in a checkpoint of 3DRS, found"
            " none; download its other files: 3DRS trained its tower, and any other gives worse answers."
        )
    vision = find_config("mm_vision_tower", config, folder, vision_tower)
    tower = None
    if not has_tower:
        tower = find_part("mm_vision_tower", config, folder, vision_tower)
        tensors |= list_tower(tower)
    is_known = vision_tower is None and find_known_name("mm_vision_tower", config["mm_vision_tower"]) is not None
    check_tower(vision, tensors, folder if tower is None else tower, is_whole=tower is not None or is_known)
    needs_teacher = teacher is not None or any(key.startswith((TEACHER_PREFIX, INVERSE_PROJECTOR)) for key in tensors)
    vae_config = find_config("mm_pixel_decoder", config, folder, teacher) if needs_teacher else None
    vae = None
    if teacher is not None and not any(key.startswith(TEACHER_PREFIX) for key in tensors):
        vae = find_part("mm_pixel_decoder", config, folder, teacher)
        tensors |= {f"{TEACHER_PREFIX}{key}": tensor for key, tensor in list_tensors(vae).items()}
    return PublishedSource(
        folder=folder,
        raw_config=raw_config,
        config=config,
        tensors=tensors,
        vision=vision,
        teacher=vae_config,
        tokenizer=tokenizer,
        num_old_tokens=num_old_tokens,
        tower_folder=tower,
        teacher_folder=vae,
        dropped=sorted(set(found) - set(tensors)),
    )


def fits_any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def check_tower(vision: Mapping[str, Any], tensors: Mapping[str, Readable], where: Path, is_whole: bool) -> None:
    """Refuse a tower whose configuration has another number of layers than its weights.

    Args:
        vision: the configuration, whose `num_hidden_layers` counts the last layer.
        tensors: by published name.
        where (`Path`): what the error calls it.
        is_whole (`bool`): whether the weights may have the last layer, which published checkpoints leave out.
    """
    layers = {int(name.removeprefix(VISION_LAYER).split(".")[0]) for name in tensors if name.startswith(VISION_LAYER)}
    wanted = vision["num_hidden_layers"]
    if len(layers) == wanted - 1 or (is_whole and len(layers) == wanted):
        return
    raise ValueError(
        f"num_hidden_layers of the vision tower's config.json: expected one more than the {len(layers)} layers in"
        f" {where}, because published checkpoints leave out the last one, got {wanted}; correct it (--vision-tower)."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Turn the library's warnings and reports off inside this context."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)


def list_tower(folder: Path) -> dict[str, Readable]:
    """Tensors of a SigLIP folder under their names in a published checkpoint."""
    found = list_tensors(folder)
    alone = any(name.startswith("embeddings.") for name in found)
    return {f"{TOWER_PREFIX}{'vision_model.' if alone else ''}{name}": tensor for name, tensor in found.items()}


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder, published or ours, loaded without running code from it.

    Raises:
        FileNotFoundError: when there is none.
        ValueError: when its files are broken.
    """
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise FileNotFoundError(
            f"{folder}: expected a tokenizer (tokenizer.json or vocab.json), found none; copy it there."
        )
    # For a tokenizer of several files the library goes by model_type, which it does not know here.
    is_one_file = (folder / "tokenizer.json").is_file()
    try:
        with quiet():
            # Without `trust_remote_code` the library would ask on the terminal.
            return (
                AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
                if is_one_file
                else Qwen2Tokenizer.from_pretrained(folder)
            )
    except (ValueError, OSError, KeyError) as error:
        raise ValueError(
            f"{folder}: expected a complete tokenizer, got files that cannot be loaded: {error}."
        ) from error


def load_tokenizer(folder: Path, config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, int]:
    """The checkpoint's tokenizer with the scene tokens, and its number of tokens before these were added.

    `<ground>` and `<coord>` are ordinary tokens, as published: decoding does not remove them.

    Raises:
        FileNotFoundError: when there is no tokenizer.
        ValueError: when the ids differ from those of `config`.
    """
    tokenizer = read_tokenizer(folder)
    num_old_tokens = len(tokenizer)
    for token in TOKENS.values():
        if token not in tokenizer.get_vocab():
            special = token == IMAGE_TOKEN
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=not special)], special_tokens=special)
    for name in ("ground", "coord"):
        wanted, found = config.get(f"{name}_token_ids"), [tokenizer.convert_tokens_to_ids(TOKENS[name])]
        if wanted not in (None, found):
            raise ValueError(
                f"{name}_token_ids of {folder / 'config.json'}: expected those of the tokenizer next to it, {found},"
                f" got {wanted}; the tokenizer belongs to another checkpoint."
            )
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(
                f"{folder}: expected a tokenizer with a {name}, got none; set it in tokenizer_config.json."
            )
    return tokenizer, num_old_tokens


def make_release_config(source: PublishedSource) -> Ross3DConfig:
    """Our config for a released checkpoint, with the heads whose weights are there.

    Raises:
        ValueError: when word embeddings lack rows for scene tokens, as in base models.
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
        None if source.teacher is None else get_denoiser_settings(source.shapes, source.teacher),
        grounding=any(name.startswith("ground_head_") for name in source.tensors),
        distillation=get_distillation_settings(source.shapes) if source.is_3drs else None,
    )


def list_ingredients(name: str, source: PublishedSource, has_teacher: bool, has_release: bool) -> list[Ingredient]:
    """The ingredients of a converted checkpoint; for sizes other than the released ones, only its name."""
    ingredients = [INGREDIENTS["code"]]
    is_7b = source.config["hidden_size"] == 3584 and source.vision == VISION_TOWERS[Path(DEFAULT_VISION_TOWER).name]
    if is_7b:
        release = "release_3drs" if source.is_3drs else "release"
        parts = ([release] if has_release else []) + ["base", "language_model", "vision_tower"]
        ingredients += [INGREDIENTS[part] for part in parts]
    else:
        ingredients.append(make_unknown(name))
    if has_teacher and source.teacher in TEACHERS.values():
        ingredients.append(INGREDIENTS["teacher"])
    elif has_teacher:
        ingredients.append(
            Ingredient("VAE (`teacher/`)", source.config["mm_pixel_decoder"], "as stated by its authors")
        )
    return ingredients


def set_generation_defaults(model: Ross3DForConditionalGeneration) -> None:
    """Set generation as in the published evaluation: greedy, up to the end mark, at most 512 tokens."""
    config = model.config
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=config.text_config.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        # These tokens are placeholders of the input: an answer never contains them.
        suppress_tokens=[config.image_token_id, config.coord_token_id],
        use_cache=True,
    )


def make_processor(tokenizer: PreTrainedTokenizerBase, config: Ross3DConfig, for_training: bool) -> Ross3DProcessor:
    """The processor of a published model; with the spatial instruction in training prompts, not in evaluation."""
    side = config.vision_config.image_size
    denoiser = config.denoiser_config
    settings = {} if denoiser is None else {"bev_size": denoiser.bev_image_size}
    if is_3drs_model(config):
        # Whole pictures, and the tokens of a proposal with at least 91 of their 27 x 27 points inside.
        settings |= {"view_fit": "squash", "object_token_threshold": 0.125}
    return Ross3DProcessor(
        image_processor=Ross3DImageProcessor(
            size={"height": side, "width": side},
            image_mean=list(config.image_mean),
            image_std=list(config.image_std),
        ),
        tokenizer=tokenizer,
        patch_size=config.vision_config.patch_size,
        geometry_mode="published",
        label_rule="published",
        spatial_instruction=for_training,
        object_patch_threshold=0.5,
        max_position_embeddings=config.text_config.max_position_embeddings,
        **settings,
    )
