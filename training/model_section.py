"""The `model` section of a run -> a config; errors name the key in the run's file."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers.activations import ACT2FN

from ross3d.command_line import COUNT, POSITIVE, Number
from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.text_files import describe_kind


SECTIONS = Ross3DConfig.sub_configs_defaults
# Allowed ranges of numbers of the sub-models that their own classes do not check.
SECTION_NUMBERS = dict.fromkeys(
    (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "max_position_embeddings", "vocab_size", "image_size", "patch_size", "num_channels",
    ),
    COUNT,
) | {
    "attention_dropout": Number(least=0, below=1),
    "initializer_range": POSITIVE,
    "layer_norm_eps": POSITIVE,
    "rms_norm_eps": POSITIVE,
}  # fmt: skip


def check_tables(model: dict[str, Any]) -> None:
    """Refuse sub-models that are not tables, and numbers and choices in them that no model can be built with.

    Raises:
        ValueError: names the key.
    """
    for section in SECTIONS.keys() & model.keys():
        values = model[section]
        if values is None and SECTIONS[section].optional:
            continue
        if not isinstance(values, dict):
            got = "nothing" if values is None else f"{describe_kind(values)}: {values!r}"
            raise ValueError(
                f"model.{section}: expected a table of `key: value`, got {got}; write them, or leave the section out."
            )
        for name in SECTION_NUMBERS.keys() & values.keys():
            SECTION_NUMBERS[name].require(f"model.{section}.{name}", values[name])
        act = values.get("hidden_act", "gelu")
        if act not in list(ACT2FN):
            raise ValueError(f"model.{section}.hidden_act: expected an activation of {sorted(ACT2FN)}, got {act!r}.")


def make_config(model: dict[str, Any], saved: dict[str, Any] | None = None) -> Ross3DConfig:
    """The config of a run's `model` section, with every rule of the config's classes checked.

    Args:
        model (`dict`): the section.
        saved (`dict`, *optional*): a checkpoint's config, which the section changes.

    Raises:
        ValueError: names the key as in the run's file, such as `model.vision_config.hidden_size`.
    """
    check_tables(model)
    for section, spec in SECTIONS.items():
        given = model.get(section)
        if given is not None:
            before = (saved or {}).get(section) or {}
            with naming_keys(f"model.{section}", given):
                spec.create_subconfig(section, before | given)
    with naming_keys("model", model):
        if saved is None:
            config = Ross3DConfig(**model)
        else:
            config = Ross3DConfig.from_dict(dict(saved), **model)
            # Values set on an existing config have been checked for their types only.
            config.validate()
    check_heads(config)
    return config


def check_heads(config: Ross3DConfig) -> None:
    """Refuse sub-models whose width is not divisible by their number of heads.

    Raises:
        ValueError: names the key.
    """
    vision, text = config.vision_config, config.text_config
    if vision.hidden_size % vision.num_attention_heads:
        raise ValueError(
            f"model.vision_config.num_attention_heads: expected a divisor of hidden_size {vision.hidden_size}, got"
            f" {vision.num_attention_heads}; choose another."
        )
    heads, groups = getattr(text, "num_attention_heads", None), getattr(text, "num_key_value_heads", None)
    if heads and not getattr(text, "head_dim", None) and text.hidden_size % (2 * heads):
        raise ValueError(
            "model.text_config.num_attention_heads: expected a number of heads that divides hidden_size"
            f" {text.hidden_size} into heads of even width, got {heads}; choose another."
        )
    if heads and groups and heads % groups:
        raise ValueError(
            f"model.text_config.num_key_value_heads: expected a divisor of num_attention_heads {heads}, got {groups};"
            " choose another."
        )


@contextmanager
def naming_keys(where: str, values: dict[str, Any]) -> Iterator[None]:
    """Turn errors of config classes and their library into one `ValueError` that names the key of the run's file.

    Args:
        where (`str`): the section, such as `model.vision_config`.
        values (`dict`): its contents.
    """
    try:
        yield
        return
    except StrictDataclassFieldValidationError as error:
        name = re.search(r"field '(\w+)'", str(error))[1]
        reason = str(error.__cause__).removeprefix(f"Field '{name}' ")
        if isinstance(values.get(name), int) and "expected float" in reason:
            reason += f"; write {float(values[name])}"
        if not reason.startswith("expected "):
            kinds = re.sub(r"<class '([\w.]+)'>", r"\1", reason.partition(" in ")[2].partition(". Errors")[0])
            reason = f"expected one of the types {kinds}, got {values.get(name)!r}"
        message, cause = f"{where}.{name}: {' '.join(reason.split())}; correct it.", error
    except StrictDataclassClassValidationError as error:
        message, cause = name_key(where, error.__cause__), error
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        message, cause = name_key(where, error), error
    raise ValueError(f"wrong setting in the run file: {message}") from cause


def name_key(where: str, error: BaseException) -> str:
    """An error's message with the key of the run's file in front; errors of the library get the section's name."""
    message = " ".join(str(error).split())
    if re.match(r"(\w+_config|\w+)[\w., ]*: expected ", message):
        return f"model.{message}" if not message.startswith("Ross3DConfig: ") else f"model: {message}"
    return f"{where}: expected valid values that fit each other, got: {message}; correct them."
