"""Find a checkpoint, on disk or on the Hub, and load its processor, without running any code from it.

Our own classes read it; Python files, pickled weights and `auto_map` entries of a checkpoint are ignored.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from huggingface_hub import snapshot_download
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template

from ross3d.data.names import check_name
from ross3d.data.text_files import check_file, read_json, read_text
from ross3d.processing_ross3d import GeometryMode, Ross3DProcessor


WAY_OUT = "download the whole checkpoint again, or save it again with save_pretrained"
WEIGHTS, ADAPTER = "model.safetensors", "adapter_config.json"
GEOMETRY_MODES = get_args(GeometryMode)
# Files fetched from the Hub: weights, settings, tokenizer, teacher, and files for converting back.
CHECKPOINT_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt", "teacher/*", "published/*")


def is_hub_id(name: str) -> bool:
    """Whether a name is a Hub id: `user/name`, unless there is a local folder `user`, which makes it a path."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1 and not Path(name).parts[0].startswith(".") and not Path(name).parent.exists()


def find_folder(name: str | os.PathLike, option: str, patterns: Sequence[str], meaning: str = "checkpoint") -> Path:
    """A folder on disk, or the local copy of a Hub repository's files that fit `patterns`.

    Args:
        name: a path, or a Hub id such as `user/name`.
        option (`str`): what the user set, for errors, such as `--model`.
        patterns: names of the files that are fetched.
        meaning (`str`): what the folder should hold, for errors.

    Raises:
        FileNotFoundError: there is no such folder, and no such repository can be reached. A path is never looked up on
            the Hub.
        NotADirectoryError: for a file.
    """
    if not str(name).strip():
        raise ValueError(f"{option}: expected a {meaning}'s folder or a Hub id, got nothing; name one.")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise NotADirectoryError(
            f"{option}: expected a {meaning}'s folder, got the file {folder}; give the folder that contains it."
        )
    if not is_hub_id(str(name)):
        known = next(parent for parent in [*folder.parents, Path(".")] if parent.is_dir())
        raise FileNotFoundError(
            f"{option}: expected a {meaning}'s folder or a Hub id such as user/name, got {name}: no such folder (the"
            f" path exists as far as {known.resolve()}); correct it."
        )
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    # Hub and network raise errors of many libraries, all of them OSError or ValueError.
    except (OSError, ValueError) as error:
        reason = "the Hub is disabled (HF_HUB_OFFLINE) and there is no local copy" if is_offline_mode() else error
        raise FileNotFoundError(
            f"{option}: expected a {meaning}'s folder or a reachable Hub id, got {name}: no such folder, and the Hub"
            f" answered: {' '.join(str(reason).split())}; correct it, or log in with `hf auth login`."
        ) from error


def find_checkpoint(name: str | os.PathLike, option: str = "--model") -> Path:
    """The folder of a checkpoint in our format; a Hub repository is downloaded first.

    Raises:
        FileNotFoundError: there is none; as `find_folder`.
        ValueError: for a checkpoint of another model, or in the published format.
    """
    folder = find_folder(name, option, CHECKPOINT_FILES)
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{option}: expected a checkpoint's folder or a Hub id, got {folder}, which has no config.json; give a"
            " folder that train.py, tools/convert.py or tools/make_tiny.py wrote."
        )
    kind = read_json(file, "the config of a checkpoint", kind=dict).get("model_type")
    if kind != "ross3d":
        raise ValueError(
            f"{option}: expected a checkpoint of ross3d, got model_type {kind!r} in {file}; convert it with"
            " tools/convert.py (docs/CHECKPOINTS.md)."
        )
    return folder


def load_processor(folder: Path, geometry_mode: str | None = None) -> Ross3DProcessor:
    """A checkpoint's processor.

    Args:
        folder (`Path`): see `find_checkpoint`.
        geometry_mode (`str`, *optional*): replaces the saved one.

    Raises:
        ValueError: names the folder when its files are broken, lack the tokenizer's settings, or ask for custom code.
    """
    check_processor_files(folder)
    try:
        processor = Ross3DProcessor.from_pretrained(folder, trust_remote_code=False)
    # The tokenizer's library raises a bare Exception for a broken file.
    except Exception as error:
        message = " ".join(str(error).split())
        if "custom code" in message:
            message = "its tokenizer needs its own Python code, which is not run"
        raise ValueError(
            f"{folder}: expected the processor of a checkpoint (processor_config.json, tokenizer.json and"
            f" tokenizer_config.json), got files that cannot be read: {message}; download them again."
        ) from error
    if processor.tokenizer.pad_token is None:
        file = folder / "tokenizer_config.json"
        got = "none in it" if file.is_file() else "no such file"
        raise ValueError(f"{file}: expected the tokenizer's settings with a pad_token, got {got}; {WAY_OUT}.")
    if geometry_mode is not None:
        processor.geometry_mode = geometry_mode
    return processor


def check_processor_files(folder: Path) -> None:
    """Refuse processor and tokenizer files that are missing or cannot be read.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    needed = {"processor_config.json": ("processor_config.json",), "tokenizer.json": ("tokenizer.json", "vocab.json")}
    for name, any_of in needed.items():
        if not any((folder / other).is_file() for other in any_of):
            raise FileNotFoundError(
                f"{folder / name}: expected this file in the checkpoint's folder, got none; {WAY_OUT}."
            )
    for name in (*needed, "tokenizer_config.json"):
        if (folder / name).is_file():
            read_json(folder / name, "the settings of a checkpoint's processor", kind=dict, remedy=WAY_OUT)
    template = folder / "chat_template.jinja"
    if template.is_file():
        text = read_text(template, "the chat template of a checkpoint")
        try:
            _compile_jinja_template(text)
        except TemplateError as error:
            raise ValueError(
                f"{template}: expected a chat template in Jinja, got a syntax error ({error}); {WAY_OUT}."
            ) from error


def check_model_files(folder: Path) -> None:
    """Refuse settings and weights of a model that are missing, unreadable, or refer to code or weights elsewhere.

    Raises:
        FileNotFoundError, ValueError: names the file.
    """
    for name in ("config.json", "generation_config.json"):
        # Without a config the library would initialise the billions of weights of the default config.
        if name == "config.json" or (folder / name).exists():
            settings = read_json(folder / name, "the settings of a checkpoint's model", kind=dict, remedy=WAY_OUT)
            check_no_kernels(settings, folder / name)
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{folder / ADAPTER}: expected a checkpoint without adapters, because Transformers would load one"
            " unchecked, got an adapter next to config.json; merge it into the weights, or remove the file."
        )
    for file in sorted(folder.glob("*.safetensors")):
        check_file(file, "weights in the safetensors format")
    if (folder / WEIGHTS).is_file():
        return
    index = folder / f"{WEIGHTS}.index.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{folder / WEIGHTS}: expected the weights of a checkpoint in this file or in shards listed in"
            f" {index.name}, got neither; {WAY_OUT}."
        )
    shards = read_json(index, "the index of a checkpoint's weights", keys=["weight_map"], remedy=WAY_OUT)["weight_map"]
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index}: expected a weight_map with the shard of every weight, got {shards!r}; {WAY_OUT}.")
    for name in shards.values():
        check_name(name, f"{index}, weight_map")


def check_no_kernels(settings: dict[str, Any], file: Path) -> None:
    """Refuse settings that name a Hub repository as an implementation: the library would run its code.

    Raises:
        ValueError: names the file and the setting.
    """
    for name, value in settings.items():
        if name.endswith("_implementation") and "/" in str(value):
            raise ValueError(
                f"{file}: expected {name} from Transformers, such as sdpa, got {str(value)[:100]!r}, which would run"
                " third-party code; remove the key."
            )
        if isinstance(value, dict):
            check_no_kernels(value, file)


def check_lengths(questions: Sequence[Any], processor: Ross3DProcessor, where: str) -> None:
    """Refuse questions that are too long for a row even with a single view, before the first one is asked.

    Args:
        questions: annotations.
        processor (`Ross3DProcessor`): with the model's limit.
        where (`str`): the file of the questions, for errors.

    Raises:
        ValueError: names the longest question.
    """
    limit = processor.max_position_embeddings
    if limit is None or not questions:
        return
    texts = [question.question + question.answer for question in questions]
    lengths = [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if lengths[longest] > limit - processor.tokens_per_view:
        raise ValueError(
            f"{where}: expected questions that fit with their answers and one view of {processor.tokens_per_view}"
            f" tokens into the model's {limit} positions (max_position_embeddings), got {lengths[longest]} tokens in"
            f" question {questions[longest].id!r}; shorten it."
        )


__all__ = [
    "CHECKPOINT_FILES",
    "GEOMETRY_MODES",
    "check_lengths",
    "check_model_files",
    "find_checkpoint",
    "find_folder",
    "is_hub_id",
    "load_processor",
]
