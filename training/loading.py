"""Load a model whose every weight comes from the checkpoint folder, or raise an error that names the others."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import GenerationConfig
from transformers.modeling_utils import set_zero3_state
from transformers.utils import GENERATION_CONFIG_NAME

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.training.checkpoint import check_model_files


# The most names that an error lists; the rest is counted.
NAMES_SHOWN = 3
# The most layers of one part of a model; building many more would take too long before an error is raised.
MAX_LAYERS = 10_000
LIBRARY_LOGGER = logging.getLogger("transformers.modeling_utils")


def load_model(
    folder: str | os.PathLike, dtype: str | torch.dtype = "auto", allow_missing: bool = False, **settings: Any
) -> Ross3DForConditionalGeneration:
    """Load a checkpoint in our format; no weight is initialised at random or ignored silently.

    The library initialises weights that a file lacks and ignores those that the model has no place for, each with a
    warning. Here both are errors, unless `settings` ask for them: a head that they add is new, a head that they remove
    is ignored.

    Args:
        folder: a checkpoint's folder, or a Hub id.
        dtype: of the weights in memory; by default the file's.
        allow_missing (`bool`): initialise weights that the files lack at random, with the library's warning.
        settings: keys of `Ross3DConfig` to change, and arguments of `from_pretrained`.

    Returns:
        the model on the CPU, in evaluation mode.

    Raises:
        ValueError: for a broken weight file, and weights that are missing, unknown, of another shape, or not finite;
            names the folder and the weights.
        OSError: if there is no checkpoint.
    """
    if Path(folder).is_dir():
        check_model_files(Path(folder))
    # The errors below replace the library's report.
    LIBRARY_LOGGER.addFilter(is_no_report)
    try:
        if Path(folder).is_dir():
            check_generation_config(Path(folder))
            check_stored_shapes(Path(folder))
        model, info = Ross3DForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, ignore_mismatched_sizes=True, output_loading_info=True, **settings
        )
    except SafetensorError as error:
        raise ValueError(
            f"{find_broken_file(Path(folder))}: expected weights in the safetensors format, got a damaged or"
            f" truncated file ({error}); download it again."
        ) from error
    finally:
        LIBRARY_LOGGER.removeFilter(is_no_report)
    check_loading(folder, info, allow_missing)
    check_finite_weights(model, str(folder))
    check_stored_weights(model, folder)
    return model


def is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def check_loading(folder: str | os.PathLike, info: dict[str, Any], allow_missing: bool = False) -> None:
    """Refuse a model whose weights do not match its files.

    Args:
        folder: where the files are.
        info (`dict`): what `from_pretrained(..., output_loading_info=True)` returned with the model.
        allow_missing (`bool`): accept that the files lack weights.

    Raises:
        ValueError: names the weights.
    """
    refuse_other_shapes(folder, info["mismatched_keys"])
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if not missing and not unexpected:
        return
    # Weights of the checkpoint's own config have to be there; those that settings add are new, those that they remove
    # are unused.
    own = list_own_weights(folder).keys()
    missing, unexpected = sorted(missing & own), sorted(unexpected - own)
    if missing and allow_missing:
        LIBRARY_LOGGER.warning(
            "%s: %s initialised at random, because the files lack them.", folder, show_names(missing)
        )
    elif missing:
        raise ValueError(
            f"{folder}: expected all weights of the model in config.json, but {show_names(missing)} are missing;"
            " download the whole checkpoint again, because answers would come from random weights."
        )
    if unexpected:
        raise ValueError(
            f"{folder}: expected only the weights of the model in config.json, got unknown weights"
            f" {show_names(unexpected)}; config.json and weights belong to different checkpoints: download both"
            " again."
        )


def refuse_other_shapes(folder: str | os.PathLike, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse weights (name, shape that was found, shape by the config) that do not fit, if there are any.

    Raises:
        ValueError: names the first.
    """
    mismatched = sorted(mismatched)
    if mismatched:
        name, found, wanted = mismatched[0]
        raise ValueError(
            f"{folder}: expected {name} of shape {tuple(wanted)}, as in the config, got {tuple(found)}"
            f" ({len(mismatched)} such weights); the files belong to another config, or a setting of this run changes"
            " the size of trained weights: leave that setting out."
        )


def check_stored_shapes(folder: Path) -> None:
    """Refuse files whose weights have other shapes than their own config says, before any of them is allocated.

    The library would allocate weights of the config's shapes, of any size, before it reported the difference.

    Raises:
        ValueError: names the folder and the weights.
    """
    config = read_config(folder)
    if getattr(config, "quantization_config", None) is not None:
        return  # Quantised weights are packed and have other shapes.
    for section in ("vision_config", "text_config", "denoiser_config"):
        layers = getattr(getattr(config, section), "num_hidden_layers", 0)
        if layers > MAX_LAYERS:
            raise ValueError(
                f"{folder / 'config.json'}: expected {section} with at most {MAX_LAYERS} layers, got {layers};"
                " download the whole checkpoint again."
            )
    own = list_own_weights(folder)
    stored = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            stored |= {name: tuple(opened.get_slice(name).get_shape()) for name in list(opened.keys())}
    both = own.keys() & stored.keys()
    refuse_other_shapes(folder, ((name, stored[name], own[name]) for name in both if stored[name] != own[name]))


def read_config(folder: str | os.PathLike) -> Ross3DConfig:
    """The config of a checkpoint.

    Raises:
        ValueError: for values that its classes refuse; names the file and the key.
    """
    try:
        return Ross3DConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(
            f"{Path(folder) / 'config.json'}: {reason.rstrip('.')}; download the checkpoint again."
        ) from error


def check_generation_config(folder: Path) -> None:
    """Refuse a checkpoint whose generation config, if it has one, the library cannot read.

    Raises:
        ValueError: names the file.
    """
    file = folder / GENERATION_CONFIG_NAME
    try:
        if file.exists():
            GenerationConfig.from_pretrained(folder)
    # The library checks few values, so a wrong one can raise any error.
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"{file}: expected generation settings, got values that cannot be read: {' '.join(str(error).split())};"
            " download the checkpoint again, or remove the file."
        ) from error


def list_own_weights(folder: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights that a checkpoint should hold by its own config; nothing is allocated."""
    # ZeRO-3 would shard tower and language model.
    with set_zero3_state(), torch.device("meta"):
        model = Ross3DForConditionalGeneration(read_config(folder))
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items()}


def show_names(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def check_finite_weights(model: nn.Module, source: str) -> None:
    """Refuse weights with NaN or infinities: every answer and loss would be NaN.

    Args:
        model (`nn.Module`): weights that are offloaded to disk are not checked; with ZeRO-3 each process checks its
            own shard.
        source (`str`): the file or folder that the error names.

    Raises:
        ValueError: names the weights.
    """
    tensors = [*model.named_parameters(), *((name, buffer) for name, buffer in model.named_buffers())]
    broken = [name for name, tensor in tensors if not is_finite(getattr(tensor, "ds_tensor", tensor))]
    if broken:
        raise ValueError(
            f"{source}: expected finite weights, got NaN or infinity in {show_names(broken)}; the run that saved them"
            " had diverged, the file is damaged, or its values overflow in float16: download it again, use an"
            " earlier checkpoint, or load it as bfloat16."
        )


def check_stored_weights(model: Ross3DForConditionalGeneration, folder: str | os.PathLike) -> None:
    """Refuse files that hold whole numbers as weights, and word embeddings of zeros, which answer nothing.

    Raises:
        ValueError: names the file, or the weights.
    """
    quantised = getattr(model.config, "quantization_config", None) is not None
    for file in [] if quantised else sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            dtypes = {name: stored.get_slice(name).get_dtype() for name in list(stored.keys())}
        whole = sorted(name for name, dtype in dtypes.items() if dtype.startswith(("I", "U", "BOOL")))
        if whole:
            raise ValueError(
                f"{file}: expected floating-point weights, got {dtypes[whole[0]]} in {show_names(whole)}; they are"
                " quantised, but config.json has no quantization_config: download the whole checkpoint again."
            )
    for name, layer in (("embed_tokens", model.get_input_embeddings()), ("lm_head", model.get_output_embeddings())):
        weight = layer.weight
        if not weight.is_meta and weight.numel() and not bool(weight.any()):
            raise ValueError(
                f"{folder}: expected trained weights, got only zeros in {name}, so every answer would be the same;"
                " download the checkpoint again."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; quantised and offloaded weights are not checked and count as finite."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    # torch has no such test for float8.
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


def find_broken_file(folder: Path) -> Path:
    """The first weight file of a folder that cannot be opened; the folder where all can."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file
    return folder
