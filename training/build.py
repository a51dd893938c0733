"""Build processor, model and data from a run's settings, before the Trainer runs."""

import copy
import hashlib
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.modeling_utils import set_zero3_state

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.annotations import check_all_object_ids, find_annotations, group_by_scene, load_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.atomic import write_text
from ross3d.data.collator import Ross3DCollator
from ross3d.data.dataset import SceneRows
from ross3d.data.geometry_features import SceneFeatures, get_encoder_fingerprint
from ross3d.data.latents import SceneLatents, get_teacher_fingerprint
from ross3d.data.names import check_links
from ross3d.data.prepared import PreparedScenes, SceneReader
from ross3d.data.proposal_sources import ProposalMaker, check_given
from ross3d.data.sources import get_reading, list_files, list_folders, read_scene
from ross3d.data.text_files import read_json, read_yaml
from ross3d.fusion_ross3d import check_encoder, check_encoder_heads
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.report.card import CARD_NAME
from ross3d.scenes.tokenizer import make_tokenizer
from ross3d.training.arguments import NewWeightsArguments, PartArguments, RunArguments
from ross3d.training.callbacks import COMPLETE_MARK, mark_complete
from ross3d.training.card import make_run_card
from ross3d.training.checkpoint import (
    CHECKPOINT_FILES,
    check_lengths,
    find_checkpoint,
    find_folder,
    load_processor,
)
from ross3d.training.loading import check_finite_weights, find_broken_file, load_model
from ross3d.training.lora import PEFT_PREFIX
from ross3d.training.model_section import make_config
from ross3d.training.optimizer import MuonAdamW
from ross3d.training.shards import check_whole_matrices, is_launched_with, without_zero3
from ross3d.vggt_ross3d import Ross3DVGGT, find_published_file, read_encoder_config


# Files of a geometry encoder that are fetched from the Hub.
ENCODER_FILES = (("config.json", "*.safetensors"), ("config.json", "model.pt"))
# Key of `run_data.json` for the hash of the sizes of the scenes' files.
SIZES = "file sizes of the scenes"
PROCESSOR_SETTINGS = inspect.signature(Ross3DProcessor.__init__).parameters.keys() - {"self"}


def list_scenes(arguments: DataArguments) -> list[Path]:
    """The first `limit` scene folders of the split, by name.

    Raises:
        FileNotFoundError: when there are none.
    """
    return list_split(arguments)[: arguments.limit]


def list_split(arguments: DataArguments) -> list[Path]:
    folder = Path(arguments.root) / arguments.split
    splits = list_splits(Path(arguments.root))
    if splits and arguments.split not in splits:
        raise FileNotFoundError(
            f"data.split: expected one of the splits of {arguments.root}, {splits}, got {arguments.split!r}; set"
            " --data.split to one of them."
        )
    scenes = list_folders(folder)
    if not scenes:
        raise FileNotFoundError(
            f"data.root: expected scene folders in {folder}, found none; make them with"
            f" `python -m ross3d.scenes.build --output {arguments.root}`."
        )
    return scenes


def list_splits(root: Path) -> list[str]:
    """Names of the folders in `root` that hold scene folders."""
    return [folder.name for folder in list_folders(root) if folder.name != "annotations" and list_folders(folder)]


def get_data_fingerprint(arguments: DataArguments) -> dict[str, str]:
    """Hashes of all data that determines a run's rows: questions, scene names, and names and sizes of scene files."""
    splits = dict.fromkeys((arguments.split, "train"))
    files = [file for split in splits if (file := find_annotations(arguments.root, split)).is_file()]
    told = {str(file.relative_to(arguments.root)): hash_bytes(file.read_bytes()) for file in files}
    names = [path.name for path in list_split(arguments)]
    told[f"names of the scenes in {arguments.split}"] = hash_bytes("\n".join(names).encode())
    # Not the modification times, which a copy on another machine's disk does not preserve.
    folders = list_scenes(arguments)
    folders += [] if arguments.unlabelled_root is None else list_folders(Path(arguments.unlabelled_root))
    told[SIZES] = hash_bytes(repr([describe_sizes(path) for path in folders]).encode())
    return told


def describe_sizes(scene: Path) -> list[tuple[str, int]]:
    """Name and size of each file that a scan is read from; hidden files are leftovers of a killed run."""
    files = [file for file in list_files(scene) if file.is_file() and not file.name.startswith(".")]
    return [(os.path.relpath(file, scene), file.stat().st_size) for file in files]


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_same_data(told: dict[str, str], file: Path) -> None:
    """Refuse to resume a run whose questions or scenes have changed since it began.

    Args:
        told (`dict`): what `get_data_fingerprint` gives now.
        file (`Path`): where it was written when the run began; nothing is checked where it is absent.

    Raises:
        ValueError: names what has changed.
    """
    if not file.is_file():
        return
    before = read_json(file, "the data of the run in this folder", kind=dict)
    # Runs of earlier code did not record sizes.
    told = {name: value for name, value in told.items() if name != SIZES or name in before}
    changed = sorted(name for name in before.keys() | told.keys() if before.get(name) != told.get(name))
    if changed:
        raise ValueError(
            f"data: expected the questions and scenes of the run in {file.parent}, but {', '.join(changed)} changed;"
            " restore them, choose another --trainer.output_dir, or remove that folder to start over."
        )


def list_unlabelled(arguments: DataArguments, config: Ross3DConfig) -> list[Path]:
    """Folders of the scans that have no questions, by name.

    Raises:
        FileNotFoundError: when there are none in the given folder.
        ValueError: when one has the name of a scene of the split, and for rows without text with a model that
            learns nothing from them.
    """
    if arguments.labelled_share < 1 or arguments.unlabelled_root is not None:
        section = config.distillation_config
        distils = section is not None and "text" in section.tasks
        if arguments.blind or not (distils or config.denoiser_config is not None):
            raise ValueError(
                "data.labelled_share, data.unlabelled_root: expected a model that is not blind and has"
                " denoiser_config, or distillation_config with the task text, because rows without text train only"
                " reconstruction and distillation, got another; leave both out."
            )
    if arguments.unlabelled_root is None:
        return []
    folder = Path(arguments.unlabelled_root)
    scans = list_folders(folder)
    if not scans:
        raise FileNotFoundError(
            f"data.unlabelled_root: expected scan folders in {folder}, found none; correct the path."
        )
    both = sorted({path.name for path in scans} & {path.name for path in list_split(arguments)})
    if both:
        raise ValueError(
            f"data.unlabelled_root: expected scans that are not in {Path(arguments.root) / arguments.split}, got"
            f" {both[:3]} and {len(both)} in both; leave scans with questions there and move the others to {folder}."
        )
    return scans


def find_init_folder(arguments: RunArguments) -> Path | None:
    """The folder of the checkpoint that a run starts from; None for new weights.

    Raises:
        FileNotFoundError, ValueError: as `find_checkpoint`; also for links that lead out of the checkpoint.
    """
    if arguments.init_from is None:
        return None
    folder = find_checkpoint(arguments.init_from, "init_from")
    # The target of a link would be saved with the run, and pushed with it.
    check_links([file for pattern in (*CHECKPOINT_FILES, CARD_NAME) for file in folder.glob(pattern)], folder)
    return folder


def check_new_weights(arguments: RunArguments) -> None:
    """Refuse new weights for a run that starts from a checkpoint, before anything is read.

    Raises:
        ValueError: names the settings of the run file that are for a new model.
    """
    if arguments.init_from is not None and arguments.new_weights is not None:
        with naming_conflicts(arguments):
            raise ValueError(
                f"new_weights: expected none with init_from, got {arguments.new_weights}; leave it out, because the"
                " checkpoint's weights are not rescaled."
            )


def build_processor(arguments: RunArguments) -> Ross3DProcessor:
    """The checkpoint's processor with the settings that the run changes, or a new one whose tokenizer is trained on
    the questions.

    Raises:
        ValueError: names the key of the run's file.
    """
    check_new_weights(arguments)
    with naming_processor():
        return make_processor(arguments)


@contextmanager
def naming_processor() -> Iterator[None]:
    """Prefix the name of a setting that the processor refuses with its section in the run's file."""
    try:
        yield
    except ValueError as error:
        if re.match(rf"({'|'.join(PROCESSOR_SETTINGS)})\b[^:]*: ", str(error)):
            raise ValueError(f"processor settings of the run file: processor.{error}") from error
        raise


def make_processor(arguments: RunArguments) -> Ross3DProcessor:
    settings = dict(arguments.processor)
    image_settings = settings.pop("image_processor", {})
    folder = find_init_folder(arguments)
    if folder is not None:
        saved = load_processor(folder)
        return Ross3DProcessor(
            **{name: getattr(saved, name) for name in PROCESSOR_SETTINGS - {"image_processor"} - settings.keys()},
            image_processor=Ross3DImageProcessor.from_pretrained(folder, **image_settings),
            **settings,
        )
    annotations = load_annotations(find_annotations(arguments.data.root, "train"))
    texts = [text for annotation in annotations for text in (annotation.question, annotation.answer)]
    return Ross3DProcessor(
        image_processor=Ross3DImageProcessor(**image_settings), tokenizer=make_tokenizer(texts), **settings
    )


def build_config(arguments: RunArguments, processor: Ross3DProcessor) -> Ross3DConfig:
    """The checkpoint's config with the run's changes, or a new one whose vocabulary is the tokenizer's."""
    folder = find_init_folder(arguments)
    if folder is not None:
        saved = read_json(folder / "config.json", "the config of a checkpoint", kind=dict)
        with naming_conflicts(arguments):
            config = make_config(arguments.model, saved)
            check_sizes(config, saved)
            return config
    settings = dict(arguments.model)
    tokenizer = processor.tokenizer
    settings["text_config"] = {
        **settings.get("text_config", {}),
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for name in ("image", "ground", "coord"):
        settings[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(f"<{name}>")
    return make_config(settings)


# Settings of a run file that describe a new model, in the order of a command line.
NEW_MODEL_SETTINGS = ("model", "processor", "teacher", "new_weights", "vision_warmup")
# Sizes that are fixed by trained weights.
WEIGHT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "patch_size",
    "image_size",
)


@contextmanager
def naming_conflicts(arguments: RunArguments) -> Iterator[None]:
    """Make errors of a run that starts from a checkpoint name all settings in its file that are for a new model."""
    try:
        yield
    except ValueError as error:
        given = [name for name in NEW_MODEL_SETTINGS if getattr(arguments, name)]
        if arguments.init_from is None or not given:
            raise
        raise ValueError(
            f"init_from: expected settings that fit the checkpoint {arguments.init_from}, got:"
            f" {str(error).rstrip('.')}. To use the checkpoint unchanged, without the model settings of this run"
            f" file, add {' '.join(f'--{name} null' for name in given)}."
        ) from error


def check_sizes(config: Ross3DConfig, saved: dict[str, Any]) -> None:
    """Refuse a config that asks for shapes other than those of a checkpoint's weights.

    Args:
        config (`Ross3DConfig`): with the run's changes.
        saved (`dict`): the checkpoint's own.

    Raises:
        ValueError: names the first size that differs.
    """
    for section in ("vision_config", "text_config"):
        for name in WEIGHT_SIZES:
            before, now = (saved.get(section) or {}).get(name), getattr(getattr(config, section), name, None)
            if None not in (before, now) and before != now:
                raise ValueError(
                    f"model.{section}.{name}: expected {before}, as in the checkpoint's weights, got {now}; leave it"
                    " out."
                )


def build_model(arguments: RunArguments, processor: Ross3DProcessor) -> Ross3DForConditionalGeneration:
    """The checkpoint's model, or a new one."""
    # Also for weights that a checkpoint lacks.
    torch.manual_seed(arguments.seed)
    folder = find_init_folder(arguments)
    config = build_config(arguments, processor)
    teacher, encoder = find_teacher(arguments), find_geometry_encoder(arguments, config)
    with naming_conflicts(arguments):
        check_fit(processor, config)
        if encoder is not None:
            check_encoder_heads(read_encoder_config(encoder), config)
        if teacher is not None and config.denoiser_config is not None:
            check_normalization(processor, config)
            check_teacher(teacher, config)
    if folder is not None:
        model = load_model(folder, allow_missing=arguments.allow_missing_weights, **arguments.model)
        # Adapters and pages name the Hub repository of a checkpoint, not this machine's copy.
        model.name_or_path = model.config.name_or_path = arguments.init_from
        # Under ZeRO-3 the library would save loaded weights under the names of a file that it did not read.
        model._weight_conversions = []
    else:
        # ZeRO-3 would shard tower and language model here, before initialisation; the Trainer shards everything later.
        with set_zero3_state():
            model = Ross3DForConditionalGeneration(config)
        if arguments.new_weights is not None:
            scale_new_weights(model, arguments.new_weights)
        model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
        model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    if teacher is not None and model.reconstruction_head is not None:
        model.attach_teacher(teacher)
    if encoder is not None and arguments.data.geometry_features is None:
        model.attach_geometry_encoder(load_geometry_encoder(encoder, config.list_predictions("encoder")))
    return model


def load_geometry_encoder(path: Path, heads: Sequence[str] = ()) -> Ross3DVGGT:
    """The encoder with these heads, whole in every process.

    Raises:
        ValueError: for damaged weights, and for any that are not finite; names the file.
    """
    try:
        # ZeRO-3 would shard it while it is loaded: it is no part of the model.
        with without_zero3():
            encoder = Ross3DVGGT.from_pretrained(path, heads=list(heads))
    except SafetensorError as error:
        raise ValueError(
            f"geometry_encoder: {find_broken_file(path)}: expected weights in the safetensors format, got a damaged or"
            f" truncated file ({error}); copy it again."
        ) from error
    check_finite_weights(encoder, f"geometry_encoder: {path}")
    return encoder


@torch.no_grad()
def scale_new_weights(model: Ross3DForConditionalGeneration, arguments: NewWeightsArguments) -> None:
    """Scale word embeddings and visual features up and each layer's output down, in place, before any training."""
    words = model.get_input_embeddings().weight
    words.mul_(arguments.embedding_std / words.std())
    projector = model.model.multi_modal_projector
    (projector.norm or projector.linear_2).weight.mul_(arguments.visual_scale)
    for layer in model.model.language_model.layers:
        layer.self_attn.o_proj.weight.mul_(arguments.residual_scale)
        layer.mlp.down_proj.weight.mul_(arguments.residual_scale)


def find_teacher(arguments: RunArguments) -> Path | None:
    """The teacher's folder: the one named, on disk or from the Hub, or the one in the checkpoint's folder.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: for a folder without a VAE.
    """
    if arguments.teacher is not None:
        folder = find_folder(arguments.teacher, "teacher", ("config.json", "*.safetensors"), "teacher")
        file = folder / "config.json"
        if not file.is_file():
            raise FileNotFoundError(
                f"teacher: expected the folder of a VAE, got {folder}, which has no config.json; name a folder such"
                " as scenes/teacher, or set --teacher null."
            )
        kind = read_json(file, "the config of a teacher", kind=dict).get("_class_name")
        if kind != "AutoencoderKL":
            raise ValueError(
                f"teacher: expected a VAE saved by diffusers (_class_name AutoencoderKL), got {kind!r} in {file};"
                " name another folder, such as scenes/teacher."
            )
        return folder
    folder = find_init_folder(arguments)
    return None if folder is None or not (folder / "teacher").is_dir() else folder / "teacher"


def find_geometry_encoder(arguments: RunArguments, config: Ross3DConfig) -> Path | None:
    """The geometry encoder's folder or file: the one named, on disk or from the Hub, or the one in the checkpoint's
    folder; None for a model that does not learn from one.

    Raises:
        FileNotFoundError: there is none of that name.
        ValueError: for a model without `distillation_config`, and for one with it in a blind run, or where neither an
            encoder nor features are given.
    """
    given = arguments.geometry_encoder
    settings = {"geometry_encoder": given, "data.geometry_features": arguments.data.geometry_features}
    sources = [name for name, value in settings.items() if value is not None]
    if config.distillation_config is None:
        for name in sources:
            raise ValueError(
                f"{name}: expected a model with distillation_config, which learns from it, got None; leave it out"
                f" (--{name} null) or set model.distillation_config."
            )
        return None
    if arguments.data.blind:
        remedy = " ".join(f"--{name} null" for name in ("model.distillation_config", *sources))
        raise ValueError(
            "data.blind: expected a model without distillation_config, because a blind run shows it no views whose"
            f" features it could predict, got one with it; add {remedy}."
        )
    predicted = config.list_predictions("encoder")
    if predicted and arguments.data.geometry_features is not None:
        raise ValueError(
            f"data.geometry_features: expected None with model.{predicted[0]}_config.source 'encoder', because files"
            f" hold no cameras and depth, got {arguments.data.geometry_features}; leave it out, or set 'scene'."
        )
    if given is not None:
        path = Path(given).expanduser()
        return path if path.is_file() else find_encoder_folder(given)
    folder = find_init_folder(arguments)
    if folder is not None and (folder / "geometry_encoder").is_dir():
        return folder / "geometry_encoder"
    if arguments.data.geometry_features is None:
        raise ValueError(
            "geometry_encoder: expected an encoder or its features for model.distillation_config, got neither; name"
            " one (--geometry_encoder facebook/VGGT-1B, or scenes/geometry_encoder for small models), set"
            " data.geometry_features, or train without it: --model.distillation_config null."
        )
    return None


def find_encoder_folder(given: str) -> Path:
    """A folder on disk, or the local copy of a Hub repository; of one that has both kinds of weights, safetensors.

    Raises:
        FileNotFoundError, NotADirectoryError: as `find_folder`.
    """
    for patterns in ENCODER_FILES:
        folder = find_folder(given, "geometry_encoder", patterns, "geometry encoder")
        if any(folder.glob(patterns[-1])):
            break
    return folder


def get_encoder_processor(processor: Ross3DProcessor, config: Ross3DConfig, patch_size: int) -> Ross3DProcessor:
    """A processor that also returns the views for the geometry encoder, which the model needs in training only."""
    changed = copy.copy(processor)
    changed.geometry_patch_size = patch_size
    changed.geometry_image_size = config.distillation_config.encoder_image_size
    return changed


def build_features(arguments: RunArguments, processor: Ross3DProcessor, config: Ross3DConfig) -> SceneFeatures | None:
    """The store of the geometry encoder's features of the run's scenes, or None.

    Raises:
        ValueError: as `find_geometry_encoder`.
    """
    encoder = find_geometry_encoder(arguments, config)
    if arguments.data.geometry_features is None or config.distillation_config is None:
        return None
    section, known = config.distillation_config, {}
    if encoder is not None:
        told = read_encoder_config(encoder)
        check_encoder(told, section)
        # A published folder may hold the same weights twice; it counts as the file that is read of it.
        source = find_published_file(encoder, {}) or encoder
        known = {"encoder": get_encoder_fingerprint(source), "encoder_depth": told.num_hidden_layers}
    settings = {
        "processor": {**processor.get_view_settings(), "view_fit": processor.view_fit},
        "reading": get_run_reading(arguments, processor),
        **known,
        "encoder_layers": list(section.encoder_layers),
        "encoder_image_size": section.encoder_image_size,
        "encoder_dtype": section.encoder_dtype,
        "grid": [config.view_grid_size, config.view_grid_size],
    }
    return SceneFeatures(Path(arguments.data.geometry_features), settings, arguments.data.geometry_storage)


def get_run_reading(arguments: RunArguments, processor: Ross3DProcessor) -> dict[str, Any]:
    """The options for reading a run's scenes."""
    data = arguments.data
    return get_reading(
        data.num_views, data.decode, processor.decoded_size, data.rotate, data.max_excluded, data.allow_outside
    )


def check_normalization(processor: Ross3DProcessor, config: Ross3DConfig) -> None:
    """Refuse a processor whose normalisation differs from the one that the model undoes for the VAE.

    Raises:
        ValueError: names the setting.
    """
    pixels = processor.image_processor
    for name in ("image_mean", "image_std"):
        made, read = list(getattr(pixels, name)), list(getattr(config, name))
        if made != read or not (pixels.do_rescale and pixels.do_normalize):
            raise ValueError(
                f"processor.image_processor: expected do_rescale, do_normalize and {name} {read} as in the model's"
                f" config, got {pixels.do_rescale}, {pixels.do_normalize} and {made}; set both to the same value."
            )


def check_teacher(teacher: Path, config: Ross3DConfig) -> None:
    """Refuse a teacher whose latents differ from those that the model rebuilds, before it is loaded.

    Raises:
        ValueError: names the setting.
    """
    told = read_json(teacher / "config.json", "the config of a teacher", kind=dict)
    for name, default in (("latent_channels", 4), ("scaling_factor", 0.18215), ("shift_factor", 0.0)):
        wanted, found = getattr(config.denoiser_config, name), told.get(name, default) or 0.0
        if wanted != found:
            raise ValueError(
                f"teacher: expected a VAE with {name} {wanted}, as in model.denoiser_config, got {found} in"
                f" {teacher}; name the model's own teacher, or for a new model set --model.denoiser_config.{name}"
                f" {found}."
            )


def check_fit(processor: Ross3DProcessor, config: Ross3DConfig) -> None:
    """Refuse a processor whose views, proposals and rows do not fit the model.

    Raises:
        ValueError: names the setting.
    """
    vision = config.vision_config
    for name, made, read in (
        ("patch_size", processor.patch_size, vision.patch_size),
        ("image_processor.size", processor.view_size, vision.image_size),
    ):
        if made != read:
            raise ValueError(
                f"processor.{name}: expected {read}, as in model.vision_config, got {made}; set both to the same"
                " value."
            )
    if config.grounding and config.proposal_pooling != "vision" and processor.object_token_threshold is None:
        raise ValueError(
            "processor.object_token_threshold: expected a share of the points of a visual token, which"
            f" model.proposal_pooling {config.proposal_pooling!r} needs, got None; set it (3DRS: 0.125)."
        )
    longest = processor.max_position_embeddings
    if longest is not None and longest > config.context_length:
        raise ValueError(
            f"processor.max_position_embeddings: expected at most the {config.context_length} positions of"
            f" model.text_config, got {longest}; lower it."
        )


def build_latents(arguments: RunArguments, processor: Ross3DProcessor, config: Ross3DConfig) -> SceneLatents | None:
    """The store of the teacher's latents of the run's scenes, or None.

    Raises:
        ValueError: for a model that rebuilds nothing, or without a teacher to check them against.
    """
    if arguments.data.latents is None:
        return None
    teacher = find_teacher(arguments)
    if teacher is None or config.denoiser_config is None:
        raise ValueError(
            f"data.latents: expected a teacher and a model with denoiser_config, got teacher {teacher} and"
            f" denoiser_config {config.denoiser_config}; leave data.latents out."
        )
    check_normalization(processor, config)
    pixels = processor.image_processor
    settings = {
        "processor": processor.get_view_settings(),
        "pixels": [pixels.do_rescale, pixels.rescale_factor, pixels.do_normalize],
        "reading": get_run_reading(arguments, processor),
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "view_image_size": config.denoiser_config.view_image_size,
        "teacher": get_teacher_fingerprint(teacher),
    }
    return SceneLatents(Path(arguments.data.latents), settings)


def build_rows(
    arguments: RunArguments, processor: Ross3DProcessor, rows_per_step: int, config: Ross3DConfig
) -> SceneRows:
    """Training rows of all epochs.

    Args:
        config (`Ross3DConfig`): of the model that is trained.
        rows_per_step (`int`): rows of one optimizer step, over processes and accumulated batches.

    Raises:
        ValueError: when annotations are about scenes that the split does not have.
    """
    data = arguments.data
    file = find_annotations(data.root, data.split)
    annotations = load_annotations(file)
    known = {path.name for path in list_split(data)}
    lost = [annotation for annotation in annotations if annotation.scene_id not in known]
    if lost:
        unknown = sorted({annotation.scene_id for annotation in lost})
        raise ValueError(
            f"{file}: expected every scene_id to be a folder in {Path(data.root) / data.split}, got {len(lost)}"
            f" questions, first {lost[0].id!r}, about {len(unknown)} scenes that are not, such as {unknown[:3]}; copy"
            " or prepare these scenes, or remove their questions."
        )
    check_all_object_ids(annotations, lambda name: Path(data.root) / data.split / name)
    check_lengths(annotations, processor, str(file))
    if data.proposals == "given" and not data.blind:
        check_given(list_scenes(data), f"data.root {data.root}", "--data.proposals")
    unlabelled = list_unlabelled(data, config)
    built = build_latents(arguments, processor, config), build_features(arguments, processor, config)
    stores = [store for store in built if store is not None]
    for store in stores:
        store.refuse_missing([*list_scenes(data), *unlabelled])
    encoder = find_geometry_encoder(arguments, config)
    if config.list_predictions("scene"):
        processor = copy.copy(processor)
        processor.return_cameras = True
    if encoder is not None and data.geometry_features is None:
        processor = get_encoder_processor(processor, config, read_encoder_config(encoder).patch_size)
    reading = get_run_reading(arguments, processor)
    # Prepared scenes keep neither depth at its own size nor given boxes.
    again = None if data.prepared is None else partial(read_scene, **reading)
    maker = ProposalMaker("--data.proposals", again)
    if data.prepared is None:
        reader = SceneReader(read_scene, reading)
    else:
        reader = PreparedScenes(data.prepared, processor, read_scene, reading)
    return SceneRows(
        data,
        list_scenes(data),
        group_by_scene(annotations),
        processor,
        reader,
        partial(maker.make_set, source=data.proposals),
        seed=arguments.seed,
        rows_per_step=rows_per_step,
        unlabelled=unlabelled,
        stores=stores,
    )


def build_collator(processor: Ross3DProcessor, config: Ross3DConfig) -> Ross3DCollator:
    # For a model that rebuilds nothing, masking views has no use.
    ratio = 0.0 if config.denoiser_config is None else config.view_mask_ratio
    return Ross3DCollator(pad_token_id=processor.tokenizer.pad_token_id, view_mask_ratio=ratio)


def freeze_parts(model: nn.Module, parts: dict[str, PartArguments]) -> None:
    """Turn off the gradients of frozen parts.

    Raises:
        ValueError: for a part that no parameter's name begins with.
    """
    names = [name for name, _ in model.named_parameters()]
    for prefix, part in parts.items():
        if not any(name.startswith(prefix) for name in names):
            heads = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(
                f"parts: expected the prefix of a parameter name such as {heads}, got `{prefix}`; correct it, or"
                f" remove it with --parts.{prefix} null."
            )
        for name, parameter in model.named_parameters():
            if part.freeze and name.startswith(prefix):
                parameter.requires_grad_(False)


def group_parameters(
    model: nn.Module, parts: dict[str, PartArguments], arguments: TrainingArguments
) -> list[dict[str, Any]]:
    """Optimizer groups: each parameter by its longest matching prefix; no decay of biases, norms and vectors."""
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own_name = name.removeprefix(PEFT_PREFIX)
        prefixes = [prefix for prefix in parts if own_name.startswith(prefix)]
        part = parts[max(prefixes, key=len)] if prefixes else PartArguments()
        # Parameters that ZeRO-3 has sharded keep their full shape in `ds_shape`.
        num_axes = len(getattr(parameter, "ds_shape", parameter.shape))
        muon = part.optimizer == "muon" and num_axes == 2
        own_rate = part.learning_rate is not None and (muon or part.optimizer == "adamw")
        rate = part.learning_rate if own_rate else arguments.learning_rate
        decay = arguments.weight_decay if num_axes > 1 else 0.0
        groups.setdefault((rate, decay, muon), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay, "muon": muon}
        for (rate, decay, muon), parameters in groups.items()
    ]


def choose_optimizer(
    model: nn.Module, parts: dict[str, PartArguments], arguments: TrainingArguments
) -> tuple[type[Optimizer], dict[str, Any]]:
    """Class and arguments of the optimizer: the one of `trainer.optim`, combined with Muon where parts ask for it.

    Raises:
        ValueError: for Muon with an optimizer other than the library's AdamW.
    """
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    groups = group_parameters(model, parts, arguments)
    if not any(group["muon"] for group in groups):
        return cls, {**settings, "params": [{k: v for k, v in group.items() if k != "muon"} for group in groups]}
    check_whole_matrices("parts")
    if cls is not torch.optim.AdamW:
        raise ValueError(
            f"trainer.optim: expected adamw_torch because some parts have optimizer: muon, got {arguments.optim};"
            " remove one of the two settings."
        )
    adamw = {name: settings[name] for name in ("betas", "eps")}
    groups = [group if group["muon"] else group | adamw for group in groups]
    return MuonAdamW, {"params": groups, "lr": arguments.learning_rate}


def find_published(arguments: RunArguments) -> Path | None:
    """The folder that a converted checkpoint stores for converting it back to the published format, or None.

    Raises:
        ValueError: for a link in it that leads out of the checkpoint.
    """
    folder = find_init_folder(arguments)
    if folder is None or not (folder / "published").is_dir():
        return None
    # The target of a link would be copied into the run, and pushed with it.
    check_links([folder / "published", *(folder / "published").rglob("*")], folder)
    return folder / "published"


def widen_weights(model: nn.Module, autocast: bool) -> dict[str, torch.dtype]:
    """Cast trained weights to float32, in place, unless the framework holds a float32 copy of them.

    In half precision most updates of a small learning rate would be rounded away. DeepSpeed holds float32 copies, FSDP
    makes them with `autocast`. Without `autocast`, which allows mixed precisions, frozen weights are cast too.

    Returns:
        the former dtype of each cast parameter, by name.
    """
    if is_launched_with("DEEPSPEED") or (is_launched_with("FSDP") and autocast):
        return {}
    dtypes = {}
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 and (parameter.requires_grad or not autocast):
            dtypes[name] = parameter.dtype
            parameter.data = parameter.data.float()
    return dtypes


def restore_dtypes(model: nn.Module, dtypes: dict[str, torch.dtype]) -> dict[str, torch.Tensor]:
    """Undo `widen_weights`, in place, and return the weights: a checkpoint is saved in its original precision."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    return model.state_dict()


def save_by_own_class(model: nn.Module) -> None:
    """Make a model save under its own class where FSDP replaces the class by a generated one.

    Otherwise code of torch would be saved with the weights, in the final folder and in every checkpoint.
    """
    save = model.save_pretrained

    def save_pretrained(*args, **kwargs):
        given = model.__class__
        model.__class__ = next(cls for cls in given.__mro__ if not issubclass(cls, FSDPModule))
        try:
            return save(*args, **kwargs)
        finally:
            model.__class__ = given

    model.save_pretrained = save_pretrained


def save_run(
    model: nn.Module,
    weights: dict[str, torch.Tensor],
    processor: Ross3DProcessor,
    teacher: Path | None,
    published: Path | None,
    state: TrainerState,
    output_dir: Path,
) -> None:
    """Save the final model: gathered weights, processor, teacher, log, page and files for converting it back.

    LoRA adapters are merged into the weights, and also saved in `adapter/`.

    Files are written to a temporary folder and then moved, the mark of completeness last: after a kill the folder is
    either complete, without leftovers, or has no mark.
    """
    aside = output_dir / ".final.partial"
    shutil.rmtree(aside, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.save_pretrained(aside / "adapter")
        processor.save_pretrained(aside / "adapter")
        # Peft's own page: ours replaces it after `mark_complete`, so that the mark does not record its size.
        (aside / "adapter" / CARD_NAME).unlink()
        model = model.merge_and_unload()
        weights = model.state_dict()
    model.save_pretrained(aside, state_dict=weights)
    processor.save_pretrained(aside)
    if teacher is not None and isinstance(model, Ross3DForConditionalGeneration) and model._teacher:
        save_teacher(model.get_teacher(), aside / "teacher")
    if published is not None:
        shutil.copytree(published, aside / "published")
    # The Trainer's summary gives time and mean loss since the last start, not of the whole run.
    state.log_history = [record for record in state.log_history if "train_runtime" not in record]
    state.save_to_json(str(aside / "trainer_state.json"))
    mark_complete(aside)
    # Written after the mark, which must not record the page's size: people edit it.
    run = output_dir / "run.yaml"
    if run.is_file():
        card = make_run_card(read_yaml(run, "the settings of the run"), model.config, state)
        for folder in (aside, aside / "adapter"):
            if folder.is_dir():
                write_text(folder / CARD_NAME, str(card))
    files = sorted(path.relative_to(aside) for path in aside.rglob("*") if path.is_file())
    files.remove(Path(COMPLETE_MARK))
    for file in files:
        (output_dir / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside / file, output_dir / file)
    mark = output_dir / f"{COMPLETE_MARK}.partial"
    os.replace(aside / COMPLETE_MARK, mark)
    shutil.rmtree(aside)
    os.replace(mark, output_dir / COMPLETE_MARK)


def save_teacher(teacher: nn.Module, folder: Path) -> None:
    """Save the VAE, without the local path in its config."""
    teacher.save_pretrained(folder)
    file = folder / "config.json"
    config = read_json(file, "the config of the teacher", kind=dict)
    config.pop("_name_or_path", None)
    write_text(file, json.dumps(config, indent=2, sort_keys=True) + "\n")
