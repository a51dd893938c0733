# Copyright 2026 The ross3d authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Cache of encoded scenes: for any number of questions, saved to disk, and loaded again by the same model."""

import hashlib
import json
import os
import secrets
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicCache

from .attention_ross3d import SharedPrefixCache
from .views_ross3d import get_views


# Increased when the contents of a file, or the meaning of its numbers, change.
SCENE_CACHE_VERSION = 3


@dataclass
class Ross3DSceneCache:
    """Scenes encoded once, for any number of questions (`Ross3DForConditionalGeneration.encode_scene`).

    Attributes:
        past_key_values (`DynamicCache`): keys and values of the B prefixes, aligned at their ends.
        prefix_mask (`torch.BoolTensor` of shape `(B, L)`): True for real prefix tokens.
        next_positions (`torch.LongTensor` of shape `(B,)`): the position of the first token after each prefix.
        proposal_features (`torch.FloatTensor` of shape `(B, K, D)`, *optional*): features of the proposals.
        proposal_mask (`torch.BoolTensor` of shape `(B, K)`, *optional*): True for real proposals.
        patch_features (`torch.FloatTensor` of shape `(B, V, P, D)`, *optional*): stored on request, so that other
            boxes can be grounded later.
        visual_states (`torch.FloatTensor` of shape `(B, V, N, D)`, *optional*): output states of the views, stored
            with the patches by models whose `config.proposal_pooling` reads them.
        readers (set of `weakref.ref`): the models that encoded the scenes; empty in a copy and in another process.
        is_checked (`bool`): whether shapes and numbers have been checked, which is done before the first answer.
    """

    past_key_values: DynamicCache
    prefix_mask: torch.Tensor
    next_positions: torch.Tensor
    proposal_features: torch.Tensor | None = None
    proposal_mask: torch.Tensor | None = None
    patch_features: torch.Tensor | None = None
    visual_states: torch.Tensor | None = None
    readers: frozenset[weakref.ref] = field(default=frozenset(), repr=False, compare=False)
    is_checked: bool = field(default=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # References to models are not pickled.
        return self.__dict__ | {"readers": frozenset(), "is_checked": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Scenes pickled by an earlier version count their positions along the row.
        state = {
            "next_positions": state["prefix_mask"].sum(dim=1),
            "visual_states": None,
            "readers": frozenset(),
            "is_checked": False,
        } | state
        self.__dict__.update(state)

    @classmethod
    def join(cls, scenes: "Sequence[Ross3DSceneCache]") -> "Ross3DSceneCache":
        """Join scenes that one model encoded separately, to ask about them together; their order stays.

        Raises:
            ValueError: for an empty sequence, or when only some scenes have proposals or patch features.
        """
        scenes = list(scenes)
        if not scenes:
            raise ValueError("join: expected at least one encoded scene, got none.")
        if len(scenes) == 1:
            return scenes[0]
        for name in ("proposal_features", "patch_features", "visual_states"):
            missing = [place for place, scene in enumerate(scenes) if getattr(scene, name) is None]
            if 0 < len(missing) < len(scenes):
                raise ValueError(
                    f"join: expected {name} in all scenes or in none, got none in scene {missing[0]}; encode all with"
                    " proposals (K = 0 is allowed) and the same keep_patch_features."
                )
        cache = DynamicCache()
        for index in range(len(scenes[0].past_key_values.layers)):
            layers = [scene.past_key_values.layers[index] for scene in scenes]
            cache.update(
                join_padded([layer.keys for layer in layers], 2, at_start=True),
                join_padded([layer.values for layer in layers], 2, at_start=True),
                index,
            )
        padded_axes = {"prefix_mask": (1, True), "proposal_features": (1, False), "proposal_mask": (1, False),
                       "patch_features": (1, False), "visual_states": (1, False)}  # fmt: skip
        tensors = {
            name: None
            if getattr(scenes[0], name) is None
            else join_padded([getattr(scene, name) for scene in scenes], axis, at_start)
            for name, (axis, at_start) in padded_axes.items()
        }
        next_positions = torch.cat([scene.next_positions for scene in scenes])
        readers = frozenset().union(*(scene.readers for scene in scenes))
        return cls(past_key_values=cache, next_positions=next_positions, readers=readers, **tensors)

    def share_prefixes(self, scene_index: torch.Tensor) -> SharedPrefixCache:
        """A cache with one row per question, question i about scene `scene_index[i]`; prefixes are not copied."""
        lengths = self.prefix_mask.sum(dim=1).tolist()
        starts = [self.prefix_mask.shape[1] - length for length in lengths]
        prefixes = [
            [(layer.keys[s : s + 1, :, start:], layer.values[s : s + 1, :, start:]) for s, start in enumerate(starts)]
            for layer in self.past_key_values.layers
        ]
        return SharedPrefixCache(prefixes, scene_index, lengths, self.next_positions)

    def copy_prefixes(self, scene_index: torch.Tensor) -> DynamicCache:
        """The same for attention implementations without shared prefixes: every row has a copy of its prefix."""
        cache = DynamicCache()
        for layer_index, layer in enumerate(self.past_key_values.layers):
            rows = scene_index.to(layer.keys.device)
            cache.update(layer.keys[rows], layer.values[rows], layer_index)
        return cache

    def save(self, file: str | os.PathLike, model: nn.Module, processor: Any = None) -> None:
        """Write the scenes to one file, atomically.

        Args:
            file: such as `kitchen.scene`.
            model: the one that encoded them; another model cannot load the file.
            processor (*optional*): the one that prepared them; if given here and to `load`, its settings are compared.

        Raises:
            ValueError: for a model other than the one that encoded the scenes, and one whose weights are offloaded.
            OSError: when the disk is full.
        """
        file = Path(file)
        check_readers(self, model)
        state = {
            "version": SCENE_CACHE_VERSION,
            "model": get_model_fingerprint(model),
            "processor": None if processor is None else processor.get_scene_settings(),
            "layers": [
                # Copies: torch would save a slice with the whole tensor it was cut from.
                {"keys": layer.keys.contiguous().clone(), "values": layer.values.contiguous().clone()}
                for layer in self.past_key_values.layers
            ],
            **{name: getattr(self, name) for name in TENSORS},
        }
        state["checksum"] = sum_bytes(state)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
        try:
            torch.save(state, partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, file)
        except RuntimeError as error:
            # torch reports where writing stopped, not why.
            free = shutil.disk_usage(file.parent).free
            raise OSError(
                f"{file}: expected to write {count_bytes(state) / 1e6:.1f} MB of scenes, got an error from torch with"
                f" {free / 1e6:.1f} MB free on that disk ({error}); free space there or choose another folder."
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, file: str | os.PathLike, model: nn.Module, processor: Any = None) -> "Ross3DSceneCache":
        """Load scenes that `save` wrote to the model's device. No code in the file is run.

        Args:
            file, model, processor: see `save`.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: for a broken file, another version, a file of another model or processor, and tensors that
                cannot be this model's. No more memory is allocated than the tensors of a valid file need.
        """
        state = read_state(Path(file))
        if state["model"] != get_model_fingerprint(model):
            raise ValueError(
                f"{file}: expected scenes encoded by this model, got scenes of other weights or another config;"
                " encode the scene again."
            )
        if processor is not None and state["processor"] != processor.get_scene_settings():
            raise ValueError(
                f"{file}: expected scenes prepared with {processor.get_scene_settings()}, got"
                f" {state['processor']}; encode the scene again, or load the processor that prepared it."
            )
        check_tensors(f"{file}", state, model.config)
        if sum_bytes(state) != state["checksum"]:
            raise ValueError(
                f"{file}: expected scenes written by save(), got another or a damaged file; encode the scene again."
            )
        # Copies: so far the tensors are memory-mapped from the file.
        cache = DynamicCache()
        for index, (layer, saved) in enumerate(zip(find_layers(model), state["layers"], strict=True)):
            device = next(layer.parameters()).device
            cache.update(saved["keys"].to(device, copy=True), saved["values"].to(device, copy=True), index)
        device = model.get_input_embeddings().weight.device
        tensors = {name: None if state[name] is None else state[name].to(device, copy=True) for name in TENSORS}
        return cls(past_key_values=cache, readers=frozenset({weakref.ref(model)}), **tensors)


TENSORS = (
    "prefix_mask", "next_positions", "proposal_features", "proposal_mask", "patch_features", "visual_states",
)  # fmt: skip
AGAIN = "these scenes were not encoded by this model: encode them again."
FIELDS = ("version", "model", "processor", "layers", "checksum")
# Elements of each matrix that go into a model's fingerprint.
SAMPLE = 1024


def join_padded(tensors: Sequence[torch.Tensor], axis: int, at_start: bool) -> torch.Tensor:
    """Concatenate tensors of rows, padded with zeros to the largest size of an axis."""
    size = max(tensor.shape[axis] for tensor in tensors)
    sizes = [size - tensor.shape[axis] for tensor in tensors]
    after = [0, 0] * (tensors[0].dim() - axis - 1)
    padded = [
        nn.functional.pad(tensor, [*after, *((missing, 0) if at_start else (0, missing))]) if missing else tensor
        for tensor, missing in zip(tensors, sizes, strict=True)
    ]
    return torch.cat(padded)


def read_state(file: Path) -> dict[str, Any]:
    """Read what `save` wrote, with memory-mapped tensors; only the names of the fields are checked.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: for a broken file or one of another version.
    """
    if not file.is_file():
        found = "something else" if file.exists() else "nothing"
        raise FileNotFoundError(f"{file}: expected a file written by scene.save(), got {found}.")
    broken = f"{file}: expected scenes written by save(), got another or a damaged file; encode the scene again."
    try:
        with zipfile.ZipFile(file) as archive:
            # torch stores its parts uncompressed; compressed ones could unpack to any size.
            is_plain = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True) if is_plain else None
    except Exception as error:  # A damaged file can raise anything.
        raise ValueError(broken) from error
    version = state.get("version") if isinstance(state, dict) else None
    if isinstance(state, dict) and version != SCENE_CACHE_VERSION:
        raise ValueError(
            f"{file}: expected version {SCENE_CACHE_VERSION} of a scene cache, got {version}; encode the scene again."
        )
    if not isinstance(state, dict) or state.keys() != {*FIELDS, *TENSORS}:
        raise ValueError(broken)
    return state


def check_tensors(file: str, state: dict[str, Any], config: Any) -> None:
    """Refuse tensors that cannot belong to a scene of the model: by shape and type first, then by their values.

    Args:
        file (`str`): what the error calls the place.
        state (`dict`): fields of a saved scene cache.
        config (`Ross3DConfig`): of the model.

    Raises:
        ValueError: names the tensor, what was expected and what came.
    """
    floats = check_shapes(file, state, config)
    mask, length = state["prefix_mask"], state["prefix_mask"].shape[1]
    # A scene follows its padding and fills the rest of the row.
    if not length or not bool(mask[:, -1].all()) or bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError(
            f"{file}: expected prefix_mask with padding only at the start, got padding elsewhere; {AGAIN}"
        )
    positions = state["next_positions"]
    if not bool(((positions > 0) & (positions <= mask.sum(dim=1))).all()):
        raise ValueError(f"{file}: expected next_positions within the prefixes, got {positions.tolist()}; {AGAIN}")
    check_finite(file, floats)


def check_scene(scene: Ross3DSceneCache, model: nn.Module) -> None:
    """Refuse a scene in memory that another model encoded, or that holds NaN.

    Raises:
        ValueError: names the tensor, what was expected and what came.
    """
    layers = [{"keys": layer.keys, "values": layer.values} for layer in scene.past_key_values.layers]
    state = {"layers": layers, **{name: getattr(scene, name) for name in TENSORS}}
    floats = check_shapes("scene", state, model.config, whole=False)
    check_readers(scene, model)
    # Reading all numbers takes as long as a short answer, so it is done once per scene.
    if not scene.is_checked:
        check_finite("scene", floats)
        scene.is_checked = True


def check_readers(scene: Ross3DSceneCache, model: nn.Module) -> None:
    """Refuse scenes that were encoded by another model, unless it has the same weights.

    Later changes to the weights of the same model are not detected: that would take as long as a short answer.
    """
    for reader in (reader() for reader in scene.readers):
        if reader is model or (reader is not None and get_model_fingerprint(reader) == get_model_fingerprint(model)):
            continue
        found = "other weights or another config" if reader is not None else "a model that is no longer in memory"
        raise ValueError(
            f"scene: expected scenes encoded by this model, got scenes of {found}; encode the scene again, or load a"
            " file of scene.save() with model.load_scene(file)."
        )


def check_finite(file: str, floats: dict[str, torch.Tensor]) -> None:
    """Refuse NaN and infinities in tensors of floating point numbers, given by name."""
    # A sum is finite if all its numbers are, and is cheaper to compute; only one result is copied to the host.
    sums = [tensor.sum(dtype=torch.float32) for tensor in floats.values()]
    finite = torch.stack([total.isfinite().to(sums[0].device) for total in sums]).tolist() if sums else []
    for name, is_finite in zip(floats, finite, strict=True):
        if not is_finite:
            raise ValueError(f"{file}: expected finite {name}, got NaN or infinity; {AGAIN}")


def check_shapes(file: str, state: dict[str, Any], config: Any, whole: bool = True) -> dict[str, torch.Tensor]:
    """The part of `check_tensors` by shape and type; `whole`: refuse views onto fewer numbers than their shape says.

    Returns:
        the tensors of floating point numbers, by the names that errors give them.
    """
    text, mask, layers = config.text_config, state["prefix_mask"], state["layers"]
    check_tensor(file, "prefix_mask", mask, ("B", "L"), is_bool=True, whole=whole)
    num_scenes, length = mask.shape
    positions = state["next_positions"]
    is_whole = isinstance(positions, torch.Tensor) and positions.dtype == torch.int64
    if not is_whole or positions.shape != (num_scenes,):
        got = f"{positions.dtype} of {tuple(positions.shape)}" if isinstance(positions, torch.Tensor) else positions
        raise ValueError(f"{file}: expected next_positions, int64, of shape ({num_scenes},), got {got}; {AGAIN}")
    is_list = isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers)
    if not is_list or [layer.keys() for layer in layers] != [{"keys", "values"}] * text.num_hidden_layers:
        raise ValueError(
            f"{file}: expected keys and values of {text.num_hidden_layers} layers, got other layers; {AGAIN}"
        )
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    shape = (num_scenes, text.num_key_value_heads, length, head_size)
    floats = {f"{name} of layer {place}": layer[name] for place, layer in enumerate(layers) for name in layer}
    for name, tensor in floats.items():
        check_tensor(file, name, tensor, shape, whole=whole)
    if (state["proposal_features"] is None) != (state["proposal_mask"] is None):
        raise ValueError(f"{file}: expected proposal_features and proposal_mask or neither, got one of them; {AGAIN}")
    if state["proposal_features"] is not None:
        check_tensor(file, "proposal_mask", state["proposal_mask"], (num_scenes, "K"), is_bool=True, whole=whole)
        shape = (*state["proposal_mask"].shape, text.hidden_size)
        check_tensor(file, "proposal_features", state["proposal_features"], shape, whole=whole)
        floats["proposal_features"] = state["proposal_features"]
    if state["patch_features"] is not None:
        shape = (num_scenes, "V", config.patch_grid_size**2, text.hidden_size)
        check_tensor(file, "patch_features", state["patch_features"], shape, whole=whole)
        floats["patch_features"] = state["patch_features"]
    keeps_states = state["patch_features"] is not None and config.proposal_pooling != "vision"
    if keeps_states:
        shape = (*state["patch_features"].shape[:2], get_views(config).layout.num_cells, text.hidden_size)
        check_tensor(file, "visual_states", state["visual_states"], shape, whole=whole)
        floats["visual_states"] = state["visual_states"]
    elif state["visual_states"] is not None:
        raise ValueError(f"{file}: expected no visual_states beside these patch_features, got some; {AGAIN}")
    if length > config.context_length:
        raise ValueError(
            f"{file}: expected scenes of at most {config.context_length} positions (max_position_embeddings), got"
            f" {length}; {AGAIN}"
        )
    return floats


def check_tensor(
    file: str, name: str, tensor: Any, shape: Sequence[int | str], is_bool: bool = False, whole: bool = True
) -> None:
    """Refuse a value that is not a tensor of the shape (letters are any size), or stores fewer numbers than that."""
    wanted = "bool" if is_bool else "floating point"
    # An expanded tensor has a larger shape than the file has numbers.
    fits = (
        isinstance(tensor, torch.Tensor)
        and tensor.dim() == len(shape)
        and all(isinstance(size, str) or size == found for size, found in zip(shape, tensor.shape, strict=True))
        and (tensor.dtype == torch.bool if is_bool else tensor.is_floating_point())
        and (tensor.is_contiguous() or not whole)
    )
    if not fits:
        is_tensor = isinstance(tensor, torch.Tensor)
        found = f"{tensor.dtype} of {tuple(tensor.shape)}" if is_tensor else type(tensor).__name__
        sizes = ", ".join(str(size) for size in shape)
        raise ValueError(f"{file}: expected {name}, {wanted}, of shape ({sizes}), got {found}; {AGAIN}")


def list_saved(state: dict[str, Any]) -> list[torch.Tensor]:
    layers = [layer[name] for layer in state["layers"] for name in ("keys", "values")]
    return [*layers, *(state[name] for name in TENSORS if state[name] is not None)]


def count_bytes(state: dict[str, Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in list_saved(state))


def sum_bytes(state: dict[str, Any]) -> int:
    """A checksum of all tensors of a state."""
    total = 0
    for tensor in list_saved(state):
        total = zlib.crc32(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy(), total)
    return total


def find_layers(model: nn.Module) -> nn.ModuleList:
    return model.model.language_model.layers


@torch.no_grad()
def get_model_fingerprint(model: nn.Module) -> str:
    """A fingerprint of a model: from its config, all vectors among its weights, and a sample of every matrix.

    Reading whole matrices would take longer than encoding the scene again; training changes every part of them.
    """
    config = list_known_settings(model.config)
    for key in ("_name_or_path", "transformers_version", "auto_map", "architectures", "dtype"):
        config.pop(key, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ValueError(
                f"{name}: expected weights in memory to identify this model, got offloaded ones; load the model"
                " without offloading to save or load scenes."
            )
        if not name.startswith("reconstruction_head."):
            values = parameter.detach().flatten()
            values = values if parameter.dim() == 1 else values[:: max(len(values) // SAMPLE, 1)]
            digest.update(name.encode())
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def list_known_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """A config as a dictionary, without unknown keys, which no model reads."""
    known = {field.name for field in fields(config)} | {"model_type", "output_attentions", "_name_or_path"}
    settings = {name: value for name, value in config.to_dict().items() if name in known}
    for name in settings:
        section = getattr(config, name)
        if isinstance(section, PreTrainedConfig):
            settings[name] = list_known_settings(section)
    return settings


__all__ = ["SCENE_CACHE_VERSION", "Ross3DSceneCache"]
