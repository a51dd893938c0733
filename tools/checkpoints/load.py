"""Load a published checkpoint without converting it first: Transformers renames its keys while loading."""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tools.checkpoints.keys import KEY_TABLE, TEACHER_PREFIX
from ross3d.tools.checkpoints.plan import make_mask_token, plan_ours
from ross3d.tools.checkpoints.published_config import EMBEDDINGS
from ross3d.tools.checkpoints.source import (
    PublishedSource,
    make_release_config,
    quiet,
    read_source,
    set_generation_defaults,
)


def get_key_mapping() -> dict[str, str]:
    """The key table in the form of `from_pretrained(key_mapping=)`: prefixes of names, a layer number as a group."""
    mapping = {}
    for published, ours in KEY_TABLE:
        if published != ours and not ours.startswith("teacher."):
            source, target = (name.removesuffix("*") for name in (published, ours))
            mapping["^" + re.escape(source).replace(r"\*", "(.+)")] = target.replace("*", r"\1")
    return mapping


def load_published(
    path: str | Path, vision_tower: str | None = None, teacher: str | None = None, **kwargs
) -> Ross3DForConditionalGeneration:
    """Load a published checkpoint as our model, with the teacher attached if its weights are there.

    `save_pretrained` of the result writes our names. To get a processor, or for a checkpoint without its tower's
    weights, convert it with `tools/convert.py`.

    Args:
        path: folder or Hub id of the checkpoint.
        vision_tower, teacher (`str`, *optional*): folders or Hub ids of the parts, as in `tools/convert.py`.
        kwargs: of `from_pretrained`, such as `dtype` and `device_map`.

    Raises:
        ValueError: for a checkpoint that cannot be read without being rewritten.
    """
    source = read_source(path, vision_tower, teacher)
    config = make_release_config(source)
    check_direct(source)
    new = make_mask_token(config, source.tensors[EMBEDDINGS[0]].dtype, seed=0)
    # Refuses what does not fit, as the converter does; no tensor is read yet.
    plan = plan_ours(source.tensors, config, source.teacher if source.has_teacher else None, new)
    with quiet():
        model = Ross3DForConditionalGeneration.from_pretrained(
            source.folder, config=config, key_mapping=get_key_mapping(), **kwargs
        )
    if any(record.fate == "generated" for record in plan.records):
        with torch.no_grad():
            model.model.mask_token.copy_(new["model.mask_token"].read())
    # Without this the library would undo the renaming when the model is saved.
    model._weight_conversions = []
    model.config.architectures = [type(model).__name__]
    set_generation_defaults(model)
    if plan.teacher and model.reconstruction_head is not None:
        model.attach_teacher(load_teacher(source))
    return model


def check_direct(source: PublishedSource) -> None:
    """Refuse checkpoints whose tensors have to change.

    Raises:
        ValueError: with the remedy.
    """
    rows = {name: source.tensors[name].shape[0] for name in EMBEDDINGS if name in source.tensors}
    if len(set(rows.values())) > 1:
        raise ValueError(
            f"{source.folder}: expected input and output embeddings of one size, got {rows}; convert the checkpoint"
            " with tools/convert.py."
        )
    if source.tower_folder is not None:
        raise ValueError(
            f"{source.folder}: expected the vision tower's weights in the checkpoint, found them in"
            f" {source.tower_folder}; convert it with tools/convert.py."
        )


def load_teacher(source: PublishedSource) -> AutoencoderKL:
    with torch.device("meta"):
        teacher = AutoencoderKL.from_config(source.teacher)
    weights = {name.removeprefix(TEACHER_PREFIX): tensor.read() for name, tensor in source.tensors.items()
               if name.startswith(TEACHER_PREFIX)}  # fmt: skip
    teacher.load_state_dict(weights, assign=True)
    return teacher
