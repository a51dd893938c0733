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
"""Posed RGB-D views and text -> tensors; grounding scores -> boxes.

A row is `[prefix | segment 1 | ... | segment Q | padding]`: the scene once, then its questions. Geometry is pooled to
visual tokens and vision patches here, so the model receives no map of full resolution.

Shapes: B scenes, V views, H x W pixels of a depth map, S x S pixels of a view, Hg x Wg pixels of a view for a geometry
encoder, p x p vision patches, h x w tokens after pooling, K proposals, Q questions of a scene, L sequence.
"""

import copy
import difflib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .geometry_ross3d import (
    MAX_OUTSIDE_DISTANCE,
    assign_patches,
    assign_tokens,
    check_shape,
    compute_box_iou,
    get_box_limits,
    get_nearest_indices,
    get_token_grid_size,
    keep_distinct,
    pool_patch_coords,
    resize_nearest,
    select_by_scores,
    select_pixels,
    turn_cameras,
    unproject,
)
from .image_processing_ross3d import (
    check_picture_size,
    decode_upright,
    get_stored_turns,
    get_upright_size,
    open_named_picture,
    open_picture,
    shorten,
)
from .inputs_ross3d import (
    check,
    check_boxes,
    check_cam2world,
    check_camera_positions,
    check_depth_maps,
    check_distance,
    check_edges,
    check_has_cameras,
    check_intrinsics,
    has_same_aspect,
    list_float32,
    list_inputs,
    stack_rows,
    to_array,
    to_coords,
    to_tensor,
)
from .rows_ross3d import (
    COORD_TOKEN,
    GROUND_TOKEN,
    IMAGE_TOKEN,
    LLAVA_VIDEO,
    SPATIAL_INSTRUCTION,
    LabelRule,
    Question,
    RowBuilder,
    RowOptions,
    SceneWords,
)


GeometryMode = Literal["published", "valid_depth"]
ViewFit = Literal["center_crop", "squash"]


class Ross3DInputs(BatchFeature):
    """The processor's output; a cast with `to(dtype)` leaves coordinates and loss weights in float32."""

    def to(self, *args, **kwargs) -> "Ross3DInputs":
        kept = {key: value for key, value in self.items() if key in list_float32()}
        super().to(*args, **kwargs)
        for key, value in kept.items():
            self.data[key] = value.to(self.data[key].device)
        return self


# Pictures


class Ross3DImageProcessor(PilBackend):
    r"""
    Views to `pixel_values`, with PIL only: every machine computes the same pixels, with or without torchvision.

    `size` must be square. The processor brings pictures to it by its `view_fit`; called directly on pictures, this
    class stretches them to `size` as SigLIP's image processor does.
    """

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def normalize_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
        """uint8 (V, S, S, 3) -> float32 (V, 3, S, S), contiguous."""
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.image_mean, self.image_std))
        values = torch.empty(len(pictures), 3, *pictures.shape[1:3])
        # One view after the other, in place: these are the largest tensors of a scene.
        for view, picture in zip(values, pictures, strict=True):
            view.copy_(picture.permute(2, 0, 1))
            if self.do_rescale:
                view = view.div_(255) if self.rescale_factor == 1 / 255 else view.mul_(self.rescale_factor)
            if self.do_normalize:
                view.sub_(mean).div_(std)
        return values


def open_view(image: Any, name: str) -> Image.Image | np.ndarray:
    """Open a view without decoding it (a PIL picture, path, address or data URI), or take pixels, uint8 (H, W, 3)."""
    if isinstance(image, (str, os.PathLike)):
        return open_named_picture(image, name) if isinstance(image, str) else open_picture(image, name)
    if isinstance(image, Image.Image):
        return open_picture(image, name)
    check_is_picture(image, name)
    array = to_array(image, name)
    check(
        array.dtype == np.uint8, name, "uint8 colours in 0..255", f"dtype {array.dtype}", "scale colours and cast them"
    )
    if array.ndim == 3 and array.shape[2] != 3 and array.shape[0] == 3:
        array = array.transpose(1, 2, 0)
    check(
        array.ndim == 3 and array.shape[2] == 3 and array.size > 0,
        name,
        "shape (H, W, 3)",
        array.shape,
        "pass RGB pictures",
    )
    check_picture_size((array.shape[1], array.shape[0]), name)
    return array


def check_is_picture(image: Any, name: str) -> None:
    """Refuse a value that is none of the kinds that `open_view` reads, by its type alone."""
    is_known = isinstance(image, (str, os.PathLike, Image.Image)) or hasattr(image, "__array__")
    remedy = "pass one of these, or leave the view out with its depth and camera"
    if isinstance(image, (bytes, bytearray, memoryview)):
        remedy = "open it first: PIL.Image.open(io.BytesIO(...))"
    check(is_known, name, "a picture (of PIL, its file or address, or an array of uint8)", type(image).__name__,
          remedy)  # fmt: skip


def get_view_size(view: Image.Image | np.ndarray) -> tuple[int, int]:
    """Height and width of what `open_view` returned, turned upright."""
    return view.shape[:2] if isinstance(view, np.ndarray) else get_upright_size(view)


def decode_view(view: Image.Image | np.ndarray, name: str) -> Image.Image:
    """The picture that `open_view` returned, in RGB and turned upright."""
    return Image.fromarray(view) if isinstance(view, np.ndarray) else decode_upright(view, name)


def get_depth_turns(view: Image.Image | np.ndarray, depth_size: tuple[int, int], name: str) -> int:
    """Counter-clockwise quarter turns that align a view's depth map and camera with its upright picture.

    Depth maps and cameras belong to the pixels as the file stores them, since cameras are calibrated for those. The
    exception is a depth map (height and width `depth_size`) whose aspect ratio is nearer to that of the upright
    picture: it is upright already. Where the aspect ratio cannot tell (half turns, squares), it belongs to the stored
    pixels.
    """
    turns = 0 if isinstance(view, np.ndarray) else get_stored_turns(view)
    check(
        turns is not None,
        name,
        "a picture that its EXIF orientation only turns, with a depth map",
        "a mirrored one",
        "save it upright with PIL.ImageOps.exif_transpose, and mirror depth_maps, intrinsics and cam2world with it",
    )
    if turns not in (1, 3):
        return turns
    height, width = get_view_size(view)
    upright, depth = math.log(width / height), math.log(depth_size[1] / depth_size[0])
    return 0 if abs(depth - upright) < abs(depth + upright) else turns


def get_resized_size(height: int, width: int, size: int, mode: GeometryMode, name: str) -> tuple[int, int]:
    """Height and width to which a picture is resized before its centre is cropped to `size`.

    "published" scales the height to `size`, so the picture has to be at least as wide as high; "valid_depth" scales
    the short side to `size`.
    """
    if mode == "published":
        check(
            width >= height,
            name,
            "pictures at least as wide as high, as geometry_mode='published' crops them",
            f"{height} x {width} (height x width)",
            "set geometry_mode='valid_depth' on the processor, or give --geometry-mode valid_depth to ask.py and"
            " eval.py",
        )
    if width >= height:
        return size, int(width * size / height)
    return int(height * size / width), size


def fit_picture(picture: Image.Image, resized: tuple[int, int], size: int, resample: int) -> np.ndarray:
    """Resize a picture to `resized` (height, width) and crop its centre to `size`: uint8 (size, size, 3)."""
    top, left = ((side - size) // 2 for side in resized)
    if picture.size != resized[::-1]:
        picture = picture.resize(resized[::-1], resample)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def check_geometry_sizes(image_size: int | None, patch_size: int) -> None:
    """Refuse a longest side of the geometry encoder's pictures that is not a whole number of its patches."""
    check(image_size is None or image_size % patch_size == 0, "geometry_image_size",
          f"a multiple of geometry_patch_size {patch_size}, or None", image_size,
          f"take another, such as {37 * patch_size}")  # fmt: skip


def get_geometry_size(height: int, width: int, image_size: int, patch_size: int, name: str) -> tuple[int, int]:
    """Height and width of the geometry encoder's picture of a height x width field of view.

    The longer side is `image_size`; the other is rounded to whole patches as VGGT's loader rounds it.
    """
    shorter, longer = sorted((height, width))
    side = round(shorter * (image_size / longer) / patch_size) * patch_size
    check(side > 0, name, f"a shorter side of at least one patch of {patch_size} pixels at geometry_image_size"
          f" {image_size}", f"{height} x {width} (height x width)",
          "raise geometry_image_size, or crop the picture")  # fmt: skip
    return (side, image_size) if width >= height else (image_size, side)


def fit_geometry_picture(
    picture: Image.Image, resized: tuple[int, int], size: int, geometry_size: tuple[int, int]
) -> np.ndarray:
    """The field of view that `fit_picture` leaves of a picture, straight from its own pixels: uint8 (Hg, Wg, 3)."""
    top, left = ((side - size) // 2 for side in resized)
    (height, width), (picture_width, picture_height) = resized, picture.size
    box = (
        left * picture_width / width, top * picture_height / height,
        (left + size) * picture_width / width, (top + size) * picture_height / height,
    )  # fmt: skip
    return np.asarray(picture.resize(geometry_size[::-1], Image.Resampling.BICUBIC, box))


def check_same_size(pictures: list[np.ndarray], scene_name: str) -> None:
    """Refuse a last picture whose size differs from the first: a geometry encoder reads all views at once."""
    (height, width), first = pictures[-1].shape[:2], pictures[0].shape[:2]
    check((height, width) == first, f"images[{len(pictures) - 1}] of {scene_name}",
          f"the aspect of images[0], for geometry_image_size one of {first[0]} x {first[1]} (height x width)",
          f"one of {height} x {width}", "crop or turn one of them, or set view_fit='center_crop'")  # fmt: skip


# Depth


def turn_views(
    depth: torch.Tensor, intrinsics: torch.Tensor, cam2world: torch.Tensor, turns: list[int], name: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Depth maps (V, H, W) and cameras after `turns` quarter turns of each view, counter-clockwise."""
    lying = [view for view, turn in enumerate(turns) if turn % 2]
    check(len(lying) in (0, len(turns)), name, "depth maps of one size once pictures are turned upright",
          f"quarter turns by EXIF orientation in views {lying} alone",
          "turn all of them the same way, or pass those views as a scene of their own")  # fmt: skip
    turned = torch.stack([torch.rot90(item, turn, (0, 1)) for item, turn in zip(depth, turns, strict=True)])
    cameras = [
        turn_cameras(camera, pose, tuple(depth.shape[1:]), turn)
        for camera, pose, turn in zip(intrinsics, cam2world, turns, strict=True)
    ]
    return turned, *(torch.stack(matrices) for matrices in zip(*cameras, strict=True))


@dataclass
class FittedScene:
    """A scene prepared for the model, without boxes and text: the result of `Ross3DProcessor.fit_scene`.

    It replaces `images` and everything that belongs to them in `Ross3DProcessor.__call__`; stored on disk, it avoids
    decoding, resizing and pooling them again.

    Attributes:
        settings (`dict`): of the processor that made it; a processor with other settings refuses it.
        pictures (V, S, S, 3): uint8.
        patch_coords (V, h, w, 3), patch_valid (V, h, w), *optional*: metres; absent without depth.
        depth (V, S, S), *optional*: metres, of the pixels that are left when views are fitted, float32.
        rows (S,), columns (S,), *optional*: where those pixels are in the depth map.
        intrinsics (V, 3, 3), cam2world (V, 4, 4), *optional*: float64.
        bev_pixels (Hb, Hb, 3), bev_valid (Hb, Hb), bev_bounds (4,), *optional*: the bird's-eye picture, uint8.
        geometry_pictures (V, Hg, Wg, 3), *optional*: the views for a geometry encoder, uint8.
    """

    settings: dict[str, Any]
    pictures: torch.Tensor
    patch_coords: torch.Tensor | None = None
    patch_valid: torch.Tensor | None = None
    depth: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    cam2world: torch.Tensor | None = None
    bev_pixels: torch.Tensor | None = None
    bev_valid: torch.Tensor | None = None
    bev_bounds: torch.Tensor | None = None
    geometry_pictures: torch.Tensor | None = None

    def __len__(self) -> int:
        """V."""
        return len(self.pictures)

    @cached_property
    def world_coords(self) -> torch.Tensor:
        """World points (V, S, S, 3), metres, of the pixels that are left when views are fitted."""
        return unproject(self.depth, self.intrinsics, self.cam2world, self.rows, self.columns)

    @property
    def fields_of_view(self) -> torch.Tensor:
        """Vertical and horizontal field of view (V, 2) of fitted views, radians, as if the middle were the principal
        point; float32."""
        # Pixels of the depth map that a view spans: S mean steps between the pixels that are left, which are rounded.
        half, spans = len(self.rows) // 2, []
        for kept in (self.rows.double(), self.columns.double()):
            spans.append((kept[-half:].mean() - kept[:half].mean()) * len(kept) / (len(kept) - half))
        focal = self.intrinsics[:, (1, 0), (1, 0)]
        return (2 * torch.atan(torch.stack(spans) / (2 * focal))).float()


# Words


# Chats

PICTURE_KEYS = ("image", "url", "path", "base64")
# Keys of a picture block that describe its camera. Other keys (`cache_control`) are ignored, unless they look like a
# misspelling of one of these.
CAMERA_KEYS = ("depth_map", "intrinsics", "cam2world")
BLOCKS = "write {'type': 'text', 'text': ...} or {'type': 'image', 'image': ...}"
# Keys that belong to blocks of another type, and would be passed over.
OTHER_KEYS = {
    "text": (*PICTURE_KEYS, "video", "audio"),
    "image": ("text", "video", "audio"),
}
ROLES = ("system", "user", "assistant", "tool")
# Similarity of two words (0 to 1) from which on one counts as a misspelling of the other.
MISSPELT_FROM = 0.7


# What others call the same; a block that says so is not read without it.
PICTURE_SYNONYMS = {
    "pose": "cam2world", "camera_pose": "cam2world", "c2w": "cam2world", "camera_to_world": "cam2world",
    "transform_matrix": "cam2world", "extrinsics": "cam2world", "extrinsic": "cam2world", "w2c": "cam2world",
    "world2cam": "cam2world", "k": "intrinsics", "intrinsic": "intrinsics", "camera_matrix": "intrinsics",
    "depth": "depth_map", "depth_maps": "depth_map", "zmap": "depth_map", "src": "url", "source": "url", "uri": "url",
}  # fmt: skip


def check_picture_keys(block: Mapping[str, Any], name: str) -> None:
    """Refuse keys of a picture block that look like a misspelt camera or picture key."""
    known = (*CAMERA_KEYS, *PICTURE_KEYS)
    for key in (key for key, value in block.items() if value is not None):
        word = str(key).lower()
        near = [PICTURE_SYNONYMS[word]] if word in PICTURE_SYNONYMS else []
        if not near and key not in (*known, "type"):
            near = difflib.get_close_matches(word, known, 1, MISSPELT_FROM)
        axes = ", camera to world with OpenCV axes" if near == ["cam2world"] else ""
        check(not near, name, f"keys {known} in the block of a picture", repr(key),
              f"write {near[0]!r}{axes}" if near else "")  # fmt: skip


def check_block(block: Any, name: str) -> None:
    """Refuse a block of a message that is neither words nor a picture, or that holds more than it says."""
    check(isinstance(block, Mapping), name, "a block of words or of a picture", type(block).__name__, BLOCKS)
    kind = block.get("type")
    check(kind != "video", name, "a block of words or of a picture", "a video, of which this model sees frames",
          "pass them as {'type': 'image', 'image': frame}, one block a frame")  # fmt: skip
    check(kind in ("text", "image"), name, "type 'text' or 'image'", repr(kind), BLOCKS)
    # Datasets fill the keys of other blocks with None.
    others = [key for key in OTHER_KEYS[kind] if block.get(key) is not None and not is_one_of(block[key], ("",))]
    check(not others, name, f"no more than its type {kind!r} says", f"{others} as well",
          "give them blocks of their own, the frames of a video as pictures")  # fmt: skip


def read_picture_block(block: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The block of a picture, with the picture under the key `image`; without that key where it has none."""
    check_picture_keys(block, name)
    given = [key for key in PICTURE_KEYS if block.get(key) is not None]
    check(len(given) <= 1, name, f"one of {PICTURE_KEYS} in the block of a picture", given, "leave one of them")
    block = {key: value for key, value in block.items() if value is not None}
    if not given:
        return block
    key = given[0]
    picture = block.pop(key)
    is_text = isinstance(picture, str) or (key != "base64" and isinstance(picture, os.PathLike))
    check(key == "image" or is_text, name, f"a string under {key!r}", type(picture).__name__,
          "pass a picture in memory under 'image', and base64 decoded to a string")  # fmt: skip
    check_is_picture(picture, name)
    if key == "base64" and not picture.startswith("data:"):
        picture = f"data:;base64,{picture}"
    return block | {"image": picture}


def normalize_content(message: dict[str, Any], name: str) -> str | list[dict[str, Any]]:
    """The content of a chat message: a string, or blocks of text and pictures, each picture under the key `image`."""
    check("role" in message, name, "a role and a content", sorted(message), "add 'role': 'user'")
    role, content = message["role"], message.get("content")
    check(role in ROLES, name, f"a role of {ROLES}", repr(role), "write 'user' for questions")
    # A tool call replaces the text.
    content = "" if content is None and message.get("tool_calls") else content
    check(isinstance(content, (str, list, tuple)), name, "a content, words or a list of blocks",
          type(content).__name__, "write 'content': '...'")  # fmt: skip
    if isinstance(content, str):
        check(role != "user" or bool(content.strip()), name, "words in what a user says", repr(content),
              "leave the message out, or ask something")  # fmt: skip
        return content
    check(role != "user" or len(content) > 0, name, "blocks in what a user says", "none",
          "leave the message out, or ask something")  # fmt: skip
    blocks = []
    for place, block in enumerate(content):
        block_name = f"block {place} of {name}"
        check_block(block, block_name)
        if block["type"] == "image":
            blocks.append(read_picture_block(block, block_name))
            continue
        check(isinstance(block.get("text"), str), block_name, "a string under 'text'",
              type(block.get("text")).__name__, "pass {'type': 'text', 'text': ...}")  # fmt: skip
        blocks.append(block)
    return blocks


def check_chats(conversation: Any) -> None:
    """Refuse what is no chat, or no list of chats, before the library reads it."""
    check(isinstance(conversation, (list, tuple)) and len(conversation) > 0, "conversation",
          "a list of messages, or a list of such lists", shorten(repr(conversation), 60),
          "pass [{'role': 'user', 'content': [...]}]")  # fmt: skip
    is_batch = isinstance(conversation[0], (list, tuple))
    for index, messages in enumerate(conversation if is_batch else [conversation]):
        check(isinstance(messages, (list, tuple)) and len(messages) > 0, f"chat {index}", "a list of messages",
              shorten(repr(messages), 60), "pass [{'role': 'user', 'content': [...]}]")  # fmt: skip
        for turn, message in enumerate(messages):
            check(isinstance(message, Mapping), f"message {turn} of chat {index}", "a role and a content",
                  type(message).__name__, "pass {'role': 'user', 'content': [...]}")  # fmt: skip


def list_pictures(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The picture blocks of a message."""
    content = message["content"]
    return [] if isinstance(content, str) else [block for block in content if block["type"] == "image"]


def check_pictures_of_chat(messages: list[dict[str, Any]], name: str) -> None:
    """Require that all pictures of a chat, views of one scene, are in one turn, without `<image>` in the text."""
    turns = [turn for turn, message in enumerate(messages) if list_pictures(message)]
    check(len(turns) <= 1, name, "pictures in one message, since they are views of one scene",
          f"pictures in messages {turns}", "move them to the first of these messages")  # fmt: skip
    blocks = [block for message in messages for block in list_pictures(message)]
    empty = [place for place, block in enumerate(blocks) if "image" not in block]
    check(len(empty) in (0, len(blocks)), name, f"a picture in each of {len(blocks)} blocks, or in none",
          f"none in picture blocks {empty}", "pass these pictures, or leave the blocks out")  # fmt: skip
    texts = [
        block["text"]
        for message in messages
        if not isinstance(message["content"], str)
        for block in message["content"]
        if block["type"] == "text"
    ] + [message["content"] for message in messages if isinstance(message["content"], str)]
    check(not turns or not any(IMAGE_TOKEN in text for text in texts), name,
          "no <image> in its words, since the blocks of pictures stand for it", "one", "leave it out")  # fmt: skip


# Per-call arguments, as the library's processors understand them


@dataclass
class CallOptions:
    """The options of a call for laying out rows and scaling pictures."""

    image_processor: Ross3DImageProcessor
    rows: RowOptions
    return_tensors: str | None


# Arguments of the library with one behaviour here, and the values that ask for it; None, the default, always does.
FIXED_ARGUMENTS = {
    "add_special_tokens": (False,), "return_attention_mask": (True,), "return_token_type_ids": (False,),
    "return_mm_token_type_ids": (False,), "return_text_replacement_offsets": (False,),
    "return_overflowing_tokens": (False,), "return_special_tokens_mask": (False,),
    "return_offsets_mapping": (False,), "return_length": (False,), "sanitize_control_tokens": (False,),
    "is_split_into_words": (False,), "stride": (0,), "verbose": (True, False), "text_pair": (), "text_target": (),
    "text_pair_target": (), "do_convert_rgb": (True,), "do_resize": (True,), "do_center_crop": (True,),
    "do_pad": (False,), "pad_size": (), "default_to_square": (True, False), "data_format": ("channels_first",),
    "input_data_format": (), "device": ("cpu",), "disable_grouping": (True, False), "image_seq_length": (),
}  # fmt: skip
PIXEL_ARGUMENTS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
OTHER_ARGUMENTS = (
    "padding", "padding_side", "pad_to_multiple_of", "truncation", "max_length", "return_tensors", "size", "crop_size",
    "resample", "videos", "audio",
)  # fmt: skip
# Arguments for sampling frames from videos, which are not supported here.
VIDEO_ARGUMENTS = ("num_frames", "fps", "do_sample_frames")
PADDINGS = {True: True, "longest": True, False: False, "do_not_pad": False, "max_length": "max_length"}
TRUNCATIONS = {
    True: True, "longest_first": True, "only_first": True, "only_second": True, False: False,
    "do_not_truncate": False,
}  # fmt: skip


def flatten_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Flatten arguments given in `text_kwargs`, `images_kwargs` and `common_kwargs`.

    Arguments that the library knows are left out where they are None, their default.
    """
    flat = {key: value for key, value in given.items() if not key.endswith("_kwargs")}
    for group in (key for key in given if key.endswith("_kwargs")):
        nested = {} if given[group] is None else given[group]
        legal = group in ("text_kwargs", "images_kwargs", "common_kwargs")
        legal = isinstance(nested, dict) and (legal or len(nested) == 0)
        check(legal, group, "a dict of text_kwargs, images_kwargs or common_kwargs", nested,
              "pass pictures and words alone")  # fmt: skip
        # As in the library, `common_kwargs` may repeat an argument.
        repeats = group == "common_kwargs"
        twice = sorted(key for key in nested if key in flat and not (repeats and is_one_of(nested[key], (flat[key],))))
        check(not twice, group, "arguments that are not given outside of it as well", twice, "give each once")
        flat |= nested
    flat = {key: value.value if isinstance(value, Enum) else value for key, value in flat.items()}
    known = (*FIXED_ARGUMENTS, *PIXEL_ARGUMENTS, *OTHER_ARGUMENTS)
    return {key: value for key, value in flat.items() if value is not None or key not in known}


def is_number(value: Any) -> bool:
    """Whether a value is a real number that float32 can hold; booleans and NaN are not."""
    return isinstance(value, Real) and not isinstance(value, bool) and abs(value) < 1e38


def is_one_of(value: Any, legal: tuple) -> bool:
    """Whether `legal` holds this value with the same type; 1 is not True."""
    return any(type(value) is type(item) and value == item for item in legal)


def read_layout(given: dict[str, Any]) -> RowOptions:
    """The options of padding and truncation, removed from `given`."""
    chooses_padding = "padding" in given
    padding, truncation = given.pop("padding", True), given.pop("truncation", False)
    side, multiple = given.pop("padding_side", None), given.pop("pad_to_multiple_of", None)
    max_length = given.pop("max_length", None)
    for key, value, legal in (
        ("padding", padding, tuple(PADDINGS)),
        ("truncation", truncation, tuple(TRUNCATIONS)),
        ("padding_side", side, (None, "left", "right")),
    ):
        check(is_one_of(value, legal), key, f"one of {legal}", repr(value), "choose one of them")
    for key, value in (("pad_to_multiple_of", multiple), ("max_length", max_length)):
        legal = value is None or (is_index(value) and value > 0)
        check(legal, key, "a whole number of positions above 0", repr(value), "leave it out for rows as they are")
    padding, truncation = PADDINGS[padding], TRUNCATIONS[truncation]
    is_read = max_length is None or truncation or padding == "max_length"
    # With this padding the library ignores `max_length` too.
    if not is_read and chooses_padding and padding is True:
        warnings.warn("max_length: ignored, since padding=True makes rows as long as the longest, without"
                      " truncation=True.", stacklevel=4)  # fmt: skip
        is_read, max_length = True, None
    check(is_read, "max_length", "truncation=True or padding='max_length' with it", f"{max_length} alone",
          "say which of both it is for")  # fmt: skip
    return RowOptions(padding, truncation, side, multiple, max_length)


def read_pixel_arguments(given: dict[str, Any], image_processor: Ross3DImageProcessor) -> Ross3DImageProcessor:
    """The image processor, or a copy that scales colours as the call asks; the arguments are removed from `given`."""
    side = image_processor.size.height
    square = {"height": side, "width": side}
    for key in ("size", "crop_size"):
        value = given.pop(key, side)
        value = dict(value) if isinstance(value, Mapping) else value
        check(is_one_of(value, (side, square, {"shortest_edge": side}, [side, side], (side, side))), key,
              f"{square}, the side of the model's views", value,
              "leave it out, or load a processor with another size= for a model made for it")  # fmt: skip
    resample = given.pop("resample", image_processor.resample)
    filters = (image_processor.resample, int(image_processor.resample))
    check(is_one_of(resample, filters), "resample", f"{int(image_processor.resample)}, the filter of this"
          " processor", resample, "leave it out, or load the processor with resample=")  # fmt: skip
    changes = {key: given.pop(key) for key in PIXEL_ARGUMENTS if key in given}
    for key, value in changes.items():
        if key.startswith("do_"):
            check(isinstance(value, bool), key, "True or False", repr(value), "leave it out for the model's scaling")
            continue
        is_colour = key.startswith("image_") and isinstance(value, (list, tuple))
        numbers = list(value) if is_colour else [value] * 3
        legal = len(numbers) == 3 and all(is_number(number) for number in numbers)
        legal = legal and not (key == "image_std" and min(numbers) <= 0)
        expected = "numbers above 0" if key == "image_std" else "finite numbers"
        check(legal, key, f"{expected}, one for all colours or one a colour", repr(value),
              "leave it out for the model's scaling")  # fmt: skip
        changes[key] = numbers if key.startswith("image_") else value
    if not changes:
        return image_processor
    changed = copy.copy(image_processor)
    for key, value in changes.items():
        setattr(changed, key, value)
    return changed


# Sorting a call's arguments by scene and question


@dataclass
class SceneRequest:
    """The arguments of a call that belong to one scene."""

    name: str
    views: list[Any] | None
    questions: list[Question]
    depth_maps: Any = None
    intrinsics: Any = None
    cam2world: Any = None
    proposal_boxes: torch.Tensor | None = None
    bev_image: Any = None
    bev_valid: Any = None
    bev_bounds: Any = None


# Axes of each argument for a single scene; more axes, or as many items as scenes, mean a list of scenes.
SCENE_NDIM = {
    "depth_maps": 3, "intrinsics": 2, "cam2world": 3, "proposal_boxes": 2, "bev_image": 3, "bev_valid": 2,
    "bev_bounds": 1,
}  # fmt: skip


def get_ndim(value: Any) -> int:
    """Axes of an array, or of the array that nested lists would make."""
    if isinstance(value, Image.Image):
        return 3
    if isinstance(value, (list, tuple)):
        return 1 + max((get_ndim(item) for item in value), default=0)
    return getattr(value, "ndim", 0)


def get_scene_names(scene_ids: str | list[str] | None, num_scenes: int) -> list[str]:
    """What errors call the scenes."""
    ids = range(num_scenes) if scene_ids is None else [scene_ids] if isinstance(scene_ids, (str, int)) else scene_ids
    check(isinstance(ids, (list, tuple, range)), "scene_ids", "a name, or a list of one a scene", type(ids).__name__,
          "pass one a scene")  # fmt: skip
    wrong = [scene_id for scene_id in ids if isinstance(scene_id, bool) or not isinstance(scene_id, (str, Integral))]
    check(not wrong, "scene_ids", "names, strings or numbers", repr(wrong[:1]), "pass one a scene")
    check(len(ids) == num_scenes, "scene_ids", f"{num_scenes} names, one a scene", f"{len(ids)}", "pass one a scene")
    return [f"scene {shorten(str(scene_id))}" for scene_id in ids]


def is_scene(views: Any) -> bool:
    """Whether this is a list of pictures, rather than a picture."""
    return isinstance(views, (list, tuple)) or getattr(views, "ndim", 0) == 4


def split_views(images: Any) -> tuple[list[Any], bool]:
    """A picture, V pictures, or a list of B such lists -> B lists, and whether there was a list of scenes.

    A `FittedScene` counts as the views of a scene.
    """
    if isinstance(images, FittedScene):
        return [images], False
    if isinstance(images, (list, tuple)) and images and isinstance(images[0], FittedScene):
        return list(images), True
    if isinstance(images, (Image.Image, str, os.PathLike)) or getattr(images, "ndim", 0) == 3:
        return [[images]], False
    is_list = hasattr(images, "__iter__") and getattr(images, "ndim", 1) > 0
    has_no_order = isinstance(images, (Mapping, set, frozenset))
    check(is_list and not has_no_order and not isinstance(images, (bytes, bytearray, memoryview)), "images",
          "a picture, a list of pictures, or a list of such lists", type(images).__name__,
          "pass pictures of PIL, files or uint8 arrays")  # fmt: skip
    views = list(images)
    bare = [type(view).__name__ for view in views if not is_scene(view)]
    if len(bare) < len(views):
        check(not bare, "images", "a list of pictures for every scene", f"others of type {bare}",
              "put the pictures of each scene into a list")  # fmt: skip
        return [list(scene) for scene in views], True
    return [views], False


def split_by_scene(key: str, value: Any, num_scenes: int) -> list[Any]:
    """Split a value into one item per scene; a single scene's may be given bare or as a list of one."""
    if value is None:
        return [None] * num_scenes
    ndim, scene_ndim = get_ndim(value), SCENE_NDIM[key]
    count = len(value) if ndim > 0 and hasattr(value, "__len__") else None
    if num_scenes == 1 and (ndim <= scene_ndim or count != 1):
        return [value]
    check(count == num_scenes, key, f"{num_scenes} items, one a scene", "none" if count is None else count,
          "nest it as images are nested")  # fmt: skip
    return list(value)


def split_requests(
    names: list[str], views: list[Any], questions: list[list[Question]], belongings: dict[str, Any]
) -> list[SceneRequest]:
    """Sort arguments by scene and check boxes and targets, since questions need the number of proposals."""
    sorted_by_scene = {key: split_by_scene(key, value, len(names)) for key, value in belongings.items()}
    requests = []
    for index, name in enumerate(names):
        items = {key: values[index] for key, values in sorted_by_scene.items()}
        if items["proposal_boxes"] is not None:
            items["proposal_boxes"] = check_boxes(items["proposal_boxes"], f"proposal_boxes of {name}")
        for key in ("bev_valid", "bev_bounds"):
            check(items[key] is None or items["bev_image"] is not None, f"{key} of {name}", "bev_image with it",
                  "None", "pass bev_image=")  # fmt: skip
        requests.append(SceneRequest(name, views[index], questions[index], **items))
        check_targets(requests[-1])
    return requests


def is_index(value: Any) -> bool:
    """Whether a value is a whole number from 0 on; booleans are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 0


def check_targets(request: SceneRequest) -> None:
    """Refuse targets that are not proposals of their scene."""
    boxes = request.proposal_boxes
    for question in request.questions:
        if question.targets is None:
            continue
        name = f"target_objects of {question.name}"
        check(boxes is not None, name, "proposal_boxes with it", "None", "pass proposal_boxes=")
        legal = all(is_index(index) and index < len(boxes) for index in question.targets)
        check(legal, name, f"indices of the {len(boxes)} proposals", question.targets,
              "count proposals from 0, in the order of proposal_boxes")  # fmt: skip


def read_depth_maps(depth_maps: Any, num_views: int | None, name: str) -> torch.Tensor:
    """Checked depth maps (V, H, W); the axis that a map has for its one channel, first or last, is dropped."""
    depth = to_tensor(depth_maps, name)
    if depth.dim() == 4 and 1 in (depth.shape[1], depth.shape[3]):
        depth = depth[:, 0] if depth.shape[1] == 1 else depth[..., 0]
    # A single view's (1, H, W, 1) counts as a list of one scene, whose map this is.
    if depth.dim() == 3 and num_views == 1 and depth.shape[0] > 1 and depth.shape[2] == 1:
        depth = depth[None, ..., 0]
    return check_depth_maps(depth, num_views, name)


def check_inside(request: SceneRequest, fitted: FittedScene) -> None:
    """Refuse boxes and points too far from all cameras and readings: they are in another unit or frame."""
    if fitted.cam2world is None:
        return
    seen = torch.cat([fitted.cam2world[:, :3, 3], fitted.patch_coords[fitted.patch_valid].double()])
    low, high = seen.amin(dim=0) - MAX_OUTSIDE_DISTANCE, seen.amax(dim=0) + MAX_OUTSIDE_DISTANCE
    remedy = "divide millimetres by 1000, and give all in the frame of cam2world"
    if request.proposal_boxes is not None:
        corners = get_box_limits(request.proposal_boxes)
        outside = ((corners[0] < low) | (corners[1] > high)).any(dim=1)
        check(not bool(outside.any()), f"proposal_boxes of {request.name}",
              f"coordinates in metres, within {MAX_OUTSIDE_DISTANCE:.0f} of what the views show",
              f"others in proposals {outside.nonzero()[:, 0].tolist()}", remedy)  # fmt: skip
    for question in request.questions:
        point = low if question.coords is None else torch.tensor(question.coords)
        check(bool(((point >= low) & (point <= high)).all()), f"query_coords of {question.name}",
              f"a point in metres, within {MAX_OUTSIDE_DISTANCE:.0f} of what the views show", question.coords,
              remedy)  # fmt: skip


def split_questions(words: dict[str, Any], names: list[str], bare: bool) -> list[list[Question]]:
    """Questions of every scene with their points, answers and targets; `bare`: all belong to a single scene."""
    if words["text"] is None:
        given = [key for key, value in words.items() if value is not None]
        check(not given, "text", f"questions with {given}", "None", "pass text=, or leave these out")
        return [[] for _ in names]
    by_scene = {key: [value] if bare else value for key, value in words.items()}
    for key, value in by_scene.items():
        is_list = isinstance(value, (list, tuple, np.ndarray, torch.Tensor)) and get_ndim(value) > 0
        count = len(value) if is_list else None
        check(value is None or count == len(names), key, f"{len(names)} items, one a scene",
              type(value).__name__ if count is None else count, "nest the words as images are nested")  # fmt: skip
    return [
        split_scene_questions({key: None if value is None else value[i] for key, value in by_scene.items()}, name)
        for i, name in enumerate(names)
    ]


def split_scene_questions(words: dict[str, Any], scene_name: str) -> list[Question]:
    """Questions of one scene: a string with bare values, or lists of the same length."""
    text = words["text"]
    is_single = text is not None and not isinstance(text, (list, tuple))
    texts = [text] if is_single else list(text or [])
    columns = {
        "query_coords": spread_point(words["query_coords"], texts, scene_name),
        "answers": wrap_single(words["answers"], is_single, (str,)),
        "target_objects": wrap_single(words["target_objects"], is_single, (list, tuple, type(None))),
    }
    for key, column in columns.items():
        is_list = isinstance(column, (list, tuple, np.ndarray, torch.Tensor))
        fits = column is None or (is_list and get_ndim(column) > 0 and len(column) == len(texts))
        check(fits, f"{key} of {scene_name}", f"{len(texts)} items, one a question", f"{column!r}",
              "nest it as text is nested")  # fmt: skip
    items = [[None] * len(texts) if column is None else column for column in columns.values()]
    questions = []
    for i, (words_asked, point, answer, targets) in enumerate(zip(texts, *items, strict=True)):
        question = Question(words_asked, f"question {i} of {scene_name}", answer)
        check(answer is not None or words["answers"] is None, f"answers of {question.name}", "a string", "None",
              "leave the question out")  # fmt: skip
        if point is not None:
            question.coords = check_point(point, f"query_coords of {question.name}")
        if targets is not None:
            check(get_ndim(targets) == 1, f"target_objects of {question.name}", "a list of proposal indices, or None",
                  repr(targets), "put one index into a list")  # fmt: skip
            is_array = isinstance(targets, (torch.Tensor, np.ndarray))
            question.targets = (
                to_tensor(targets, f"target_objects of {question.name}").tolist() if is_array else list(targets)
            )
        questions.append(question)
    return questions


def wrap_single(value: Any, is_single: bool, item_types: tuple[type, ...]) -> Any:
    """Wrap the value that belongs to a single question into a list; a list of one such item stays as it is."""
    if value is None or not is_single:
        return value
    is_list_of_one = isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], item_types)
    return value if is_list_of_one else [value]


def check_scene_index(scene_index: Any, num_questions: int) -> torch.Tensor:
    """The scene of each question, (number of questions,) int64."""
    index = to_tensor(scene_index, "scene_index")
    check_shape("scene_index", index, (num_questions,), "pass one number a question.")
    whole = index.dtype != torch.bool and not index.is_floating_point() and not index.is_complex()
    check(whole and not bool((index < 0).any()), "scene_index", "whole numbers, scenes being counted from 0",
          f"{index.tolist()} ({index.dtype})",
          "number the scenes in the order in which they were encoded")  # fmt: skip
    return index.long()


def spread_point(points: Any, texts: list[str], scene_name: str) -> Any:
    """Points per question: one bare point (3,) goes to every question with `<coord>`; a list is returned unchanged."""
    if get_ndim(points) != 1 or len(points) != 3 or any(point is None for point in points):
        return points
    marked = [isinstance(text, str) and COORD_TOKEN in text for text in texts]
    check(any(marked), f"query_coords of {scene_name}", "a question with <coord>", "none",
          "write <coord> where the point is meant, or leave the point out")  # fmt: skip
    return [points if mark else None for mark in marked]


def check_point(point: Any, name: str) -> list[float]:
    point = to_coords(point, name).float()
    check_shape(name, point, (3,), "pass x, y, z in metres.")
    check(bool(torch.isfinite(point).all()), name, "finite metres", point.tolist(), "leave the point out")
    check_distance(point[None], name)
    return point.tolist()


def get_question_inputs(requests: list[SceneRequest]) -> dict[str, torch.Tensor]:
    """`query_coords` (B, Q, 3), NaN without `<coord>`, and `grounding_labels` (B, Q, K + 1), each if it is needed."""
    data = {}
    questions = [question for request in requests for question in request.questions]
    longest = max((len(request.questions) for request in requests), default=0)
    if any(question.coords is not None for question in questions):
        coords = torch.full((len(requests), longest, 3), torch.nan)
        for row, request in zip(coords, requests, strict=True):
            for slot, question in zip(row, request.questions, strict=False):
                if question.coords is not None:
                    slot[:] = torch.tensor(question.coords)
        data["query_coords"] = coords
    if any(question.targets is not None for question in questions):
        widest = max(0 if request.proposal_boxes is None else len(request.proposal_boxes) for request in requests)
        labels = torch.zeros(len(requests), longest, widest + 1, dtype=torch.long)
        for row, request in zip(labels, requests, strict=True):
            for slot, question in zip(row, request.questions, strict=False):
                if question.targets is not None:
                    slot[question.targets or [-1]] = 1
        data["grounding_labels"] = labels
    return data


def choose_proposals(
    scores: torch.Tensor, selection: Literal["best", "cumulative"], temperature: float, threshold: float
) -> list[int]:
    """Indices of the chosen proposals from one question's scores (K + 1,), highest first."""
    proposals = scores[:-1]
    if selection == "cumulative":
        return select_by_scores(scores.double().numpy(), temperature, threshold)
    return [int(proposals.argmax())] if bool((proposals > -math.inf).any()) else []


# Settings of the processor with a fixed set of values.
SETTINGS = {
    "geometry_mode": ("published", "valid_depth"),
    "view_fit": ("center_crop", "squash"),
    "label_rule": ("published", "answer_only"),
    "spatial_instruction": (False, True),
    "return_cameras": (False, True),
}


# Its counts: whole numbers from 1 on; some may be None.
OPTIONAL_COUNTS = ("max_position_embeddings", "geometry_image_size")
COUNTS = ("patch_size", "bev_size", "geometry_patch_size", *OPTIONAL_COUNTS)


class Ross3DProcessor(ProcessorMixin):
    r"""
    Views, depth, cameras, proposals and questions -> the model's tensors; see `__call__`.

    Args:
        image_processor (`Ross3DImageProcessor`): its `size` is the side S of a view.
        tokenizer: a fast tokenizer that knows `<image>`, `<ground>`, `<coord>` and the chat marks.
        chat_template (`str`, *optional*): of `apply_chat_template`; the default writes the same text as `text=`.
        patch_size (`int`, defaults to 14): side of a vision patch in pixels.
        geometry_mode (`str`, defaults to `"published"`): `"published"` averages missing readings in (they lie on the
            camera centre), brings pictures to height S and refuses portrait ones; `"valid_depth"` averages readings
            alone, marks tokens without any, and brings the short side to S.
        view_fit (`str`, defaults to `"center_crop"`): `"center_crop"` keeps the aspect of pictures and crops their
            middle; `"squash"` (3DRS) squashes whole pictures, portrait ones too, to S x S. Depth maps and bird's-eye
            pictures are fitted in the same way.
        label_rule (`str`, defaults to `"published"`): which tokens training supervises. `"published"`: the answer
            with its header and end mark, and every chat mark and lone line break of the prompt; `"answer_only"`: the
            answer and its end mark.
        spatial_instruction (`bool`, defaults to `False`): whether `SPATIAL_INSTRUCTION` follows the views.
        object_patch_threshold (`float`, defaults to 0.5): share of a patch's points inside a proposal from which on
            the patch belongs to it.
        object_token_threshold (`float`, *optional*): share of the points of a token's cell inside a proposal from
            which on the token belongs to it (3DRS: 0.125); adds `proposal_tokens`, which models with another
            `proposal_pooling` than `"vision"` read.
        bev_size (`int`, defaults to 432): side of bird's-eye pictures in pixels.
        geometry_image_size (`int`, *optional*): longest side in pixels of `geometry_pixel_values`, the views for a
            geometry encoder (518 for VGGT); None makes none.
        geometry_patch_size (`int`, defaults to 14): side of that encoder's patches; both sides of its pictures are
            multiples of it.
        return_cameras (`bool`, defaults to `False`): whether scenes with depth also have `cam2world` and
            `fields_of_view`, targets of training with `camera_config` or `depth_config`.
        max_position_embeddings (`int`, *optional*): longest row the model reads; longer ones are refused.
    """

    # The text around a question, which depends on the backbone.
    template = LLAVA_VIDEO

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        patch_size: int = 14,
        geometry_mode: GeometryMode = "published",
        view_fit: ViewFit = "center_crop",
        label_rule: LabelRule = "published",
        spatial_instruction: bool = False,
        object_patch_threshold: float = 0.5,
        object_token_threshold: float | None = None,
        bev_size: int = 432,
        geometry_image_size: int | None = None,
        geometry_patch_size: int = 14,
        return_cameras: bool = False,
        max_position_embeddings: int | None = None,
    ):
        super().__init__(image_processor, tokenizer, chat_template=chat_template or self.template.chat_template)
        self.patch_size = patch_size
        self.geometry_mode = geometry_mode
        self.view_fit = view_fit
        self.label_rule = label_rule
        self.spatial_instruction = spatial_instruction
        self.object_patch_threshold = object_patch_threshold
        self.object_token_threshold = object_token_threshold
        self.bev_size = bev_size
        self.geometry_image_size = geometry_image_size
        self.geometry_patch_size = geometry_patch_size
        self.return_cameras = return_cameras
        check_geometry_sizes(geometry_image_size, geometry_patch_size)
        self.max_position_embeddings = max_position_embeddings
        self.image_token, self.ground_token, self.coord_token = IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN
        self.image_token_id = self.get_token_id(IMAGE_TOKEN)
        self.ground_token_id = self.get_token_id(GROUND_TOKEN)
        self.coord_token_id = self.get_token_id(COORD_TOKEN)
        marks = ("\n", self.template.turn_start, self.template.turn_end)
        self.structure_ids = [self.get_token_id(token) for token in marks]
        header = self.tokenizer.encode(self.template.answer_header, add_special_tokens=False)
        self.answer_header_length = len(header)
        side = self.image_processor.size
        check(
            side.height is not None and side.height == side.width and side.height >= patch_size,
            "image_processor.size",
            f"a square of at least one patch of {patch_size} pixels",
            dict(side),
            "pass size={'height': S, 'width': S}",
        )

    @classmethod
    def _get_arguments_from_pretrained(cls, pretrained_model_name_or_path, processor_dict=None, **kwargs) -> list[Any]:
        """Load the image processor with the class of this file, so that no saved code runs."""
        image_processor = Ross3DImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        # Left padding: the library's pipelines pad as the tokenizer does, and generation continues at the row's end.
        # The tokenizer has no custom code; without `trust_remote_code` the library would ask on the terminal. Its
        # class is named in its own settings; without a config the library would look for the model's and warn.
        config = PreTrainedConfig()
        kwargs = {"padding_side": "left", "trust_remote_code": False, "config": config, **kwargs}
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; settings may be changed on a loaded processor and are checked here."""
        if name in SETTINGS:
            check(
                is_one_of(value, SETTINGS[name]), name, f"one of {SETTINGS[name]}", repr(value), "choose one of them"
            )
        is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if name in COUNTS and not (value is None and name in OPTIONAL_COUNTS):
            is_count = is_number and not isinstance(value, (float, np.floating)) and value >= 1
            check(is_count, name, "a whole number from 1 on", repr(value), "correct it")
        if name == "object_patch_threshold" or (name == "object_token_threshold" and value is not None):
            is_share = is_number and 0 < value <= 1
            check(is_share, name, "a share above 0, at most 1", repr(value), "correct it")
        super().__setattr__(name, value)

    @property
    def row_builder(self) -> RowBuilder:
        """The row builder with the current settings."""
        return RowBuilder(
            self.tokenizer, self.template, self.label_rule, self.spatial_instruction, self.tokens_per_view,
            self.max_position_embeddings, self.image_token_id, self.structure_ids, self.answer_header_length,
        )  # fmt: skip

    @property
    def view_size(self) -> int:
        """S: side of a view in pixels."""
        return self.image_processor.size.height

    @property
    def decoded_size(self) -> int:
        """Pixels of a picture's shorter side that are enough for the model's view and the geometry encoder's."""
        return max(self.view_size, self.geometry_image_size or 0)

    @property
    def tokens_per_view(self) -> int:
        """Placeholders of a view: h rows of w tokens, each closed by a newline placeholder."""
        grid = get_token_grid_size(self.view_size, self.patch_size)
        return grid * (grid + 1)

    @property
    def model_input_names(self) -> list[str]:
        left_out = ("proposal_tokens",) if self.object_token_threshold is None else ()
        names = (*list_inputs("text"), *list_inputs("scene", "proposals", "question"))
        return [name for name in names if name not in left_out]

    def get_token_id(self, token: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        check(
            len(ids) == 1,
            "tokenizer",
            f"one token for {token}",
            f"ids {ids}",
            "add it with tokenizer.add_tokens([...]) and resize the model's embeddings",
        )
        return ids[0]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | list[list[str]] | None = None,
        depth_maps: Any = None,
        intrinsics: Any = None,
        cam2world: Any = None,
        proposal_boxes: Any = None,
        query_coords: Any = None,
        answers: Any = None,
        target_objects: Any = None,
        bev_image: Any = None,
        bev_valid: Any = None,
        bev_bounds: Any = None,
        scene_ids: str | list[str] | None = None,
        scene_index: Any = None,
        **kwargs,
    ) -> Ross3DInputs:
        """Make the model's inputs for B scenes; each argument is given for one scene, or as a list of B items.

        Args:
            images: V pictures (PIL, files, http, file and data URIs, base64, uint8 (H, W, 3) arrays, tensors), or a
                list of B such lists; or what `fit_scene` made of them, which then holds depth, cameras and bird's-eye
                picture as well. Files are turned upright by their EXIF orientation.
            text: a question, a list of questions about the scene (one packed row), or a list of B of either. Without
                `images` the rows are questions alone, one per row, for scenes the model has encoded before. Without
                text a row is the scene alone. `<image>` at the beginning or end of a question marks the views. A
                text with chat marks is a whole prompt: it holds one `<image>`, or none where no images are given.
            depth_maps: V maps (H, W), (1, H, W) or (H, W, 1), metres along the camera's z axis, 0 = no reading. They,
                `intrinsics` and `cam2world` belong to pictures as their files store them and are turned with them,
                unless a depth map has the aspect of the upright picture already.
            intrinsics: (3, 3) or (V, 3, 3), pixels of the depth map, top-left pixel centre at (0, 0).
            cam2world: (V, 4, 4), OpenCV axes, metres, z up.
            proposal_boxes: (K, 6), centre xyz and size xyz, metres.
            query_coords: (3,), metres, for `<coord>`; or one per question, None where it has no `<coord>`.
            answers: nested as `text`; adds `labels`, `shift_labels`, `loss_weights`. The answer `"<ground>"` is
                grounded in the proposals.
            target_objects: nested as `text`: proposal indices, `[]` = no target, None = not a grounding question;
                adds `grounding_labels`.
            bev_image: bird's-eye picture, uint8 (Hb, Wb, 3) or PIL; adds `bev_pixel_values`.
            bev_valid: (Hb, Wb) bool, where the picture shows something.
            bev_bounds: (4,), xmin, ymin, xmax, ymax of the picture, metres.
            scene_ids: what errors and warnings call the scenes.
            scene_index: without `images`, which encoded scene each question is about; text nested in B lists says it
                too.
            kwargs: the library's per-call arguments, flat or in `text_kwargs` and `images_kwargs`. Supported are
                `return_tensors` (`"pt"`, the default, or `"np"`), `padding`, `padding_side`, `pad_to_multiple_of`,
                `truncation`, `max_length`, `do_rescale`, `rescale_factor`, `do_normalize`, `image_mean` and
                `image_std`. Arguments for sampling a video are ignored with a warning; others are refused unless they
                ask for the behaviour that this processor has anyway.

        Returns:
            `Ross3DInputs` with `input_ids`, `attention_mask`, `segment_ids` (B, L), and the tensors of the other
            arguments that were given. The setting `geometry_image_size` adds `geometry_pixel_values`
            (B, V, 3, Hg, Wg), uint8: what the views show, for a geometry encoder; `return_cameras` adds
            `cam2world` (B, V, 4, 4), metres, and `fields_of_view` (B, V, 2), radians. With `padding_side` the caller
            lays out rows himself, as TRL's collator does: then `segment_ids` are absent if no row has several
            questions, and all rows are plainly causal.

        Raises:
            ValueError: for input that contradicts itself or looks like another unit, with a remedy.
        """
        options = self.read_options(kwargs)
        check(images is not None or text is not None, "images", "views of a scene", "neither images nor text",
              "pass images=, text= or both")  # fmt: skip
        check(text is None or isinstance(text, (str, list, tuple)), "text", "a string, or a list of strings",
              type(text).__name__, "pass words, or no text at all")  # fmt: skip
        words = {"text": text, "query_coords": query_coords, "answers": answers, "target_objects": target_objects}
        belongings = {
            "depth_maps": depth_maps, "intrinsics": intrinsics, "cam2world": cam2world,
            "proposal_boxes": proposal_boxes, "bev_image": bev_image, "bev_valid": bev_valid,
            "bev_bounds": bev_bounds,
        }  # fmt: skip
        if images is None:
            data = self.get_questions_alone(words, belongings, scene_ids, scene_index, options)
        else:
            check(scene_index is None, "scene_index", "None with images", scene_index, "row i is scene i")
            data = self.get_scenes(images, words, belongings, scene_ids, options)
        if options.return_tensors == "np":
            data = {key: value.numpy() for key, value in data.items()}
        return Ross3DInputs(data)

    def read_options(self, kwargs: dict[str, Any]) -> CallOptions:
        """Read the per-call arguments of the library's processors; unsupported ones are refused with a remedy."""
        given = flatten_arguments(kwargs)
        return_tensors = given.pop("return_tensors", "pt")
        legal = is_one_of(return_tensors, (None, "pt", "np"))
        check(legal, "return_tensors", "'pt' or 'np'", repr(return_tensors), "use 'pt'")
        pixels = read_pixel_arguments(given, self.image_processor)
        options = CallOptions(pixels, read_layout(given), return_tensors)
        sampling = [key for key in VIDEO_ARGUMENTS if not is_one_of(given.pop(key, None), (None, False))]
        if sampling:
            # No error: the library's tests pass video arguments for chats that have only pictures.
            warnings.warn(f"{', '.join(sampling)}: ignored, since pictures are not sampled; pass the frames of a video"
                          " that are meant as images=.", stacklevel=3)  # fmt: skip
        for key in ("videos", "audio"):
            check(key not in given, key, "None: this model sees pictures", type(given.get(key)).__name__,
                  "pass the frames of a video as images=")  # fmt: skip
        if given.get("add_special_tokens") is True and self.tokenizer.num_special_tokens_to_add() == 0:
            del given["add_special_tokens"]
        for key in [key for key in given if key in FIXED_ARGUMENTS]:
            value, legal = given.pop(key), FIXED_ARGUMENTS[key]
            check(is_one_of(value, legal), key, f"one of {(None, *legal)}, as this model needs it", repr(value),
                  "leave it out")  # fmt: skip
        check(not given, "Ross3DProcessor", "the arguments of its __call__", sorted(given), "see its documentation")
        return options

    def get_scenes(
        self, images, words: dict[str, Any], belongings: dict[str, Any], scene_ids, options: CallOptions
    ) -> dict[str, Any]:
        """Inputs of B scenes, each with no, one or several questions."""
        views, is_batch = split_views(images)
        names = get_scene_names(scene_ids, len(views))
        for name, scene_views in zip(names, views, strict=True):
            check(len(scene_views) > 0, f"images of {name}", "at least one view", "none",
                  "pass the scene's pictures, and texts without pictures in a call of their own")  # fmt: skip
        questions = split_questions(words, names, bare=not is_batch or isinstance(words["text"], str))
        requests = split_requests(names, views, questions, belongings)
        scenes = [SceneWords(request.name, len(request.views), request.questions) for request in requests]
        rows = self.row_builder.build_scene_rows(scenes, words["answers"] is not None, options.rows)
        # Generation continues a row at its end, so rows with at most one question are padded on the left.
        is_packed = any(len(request.questions) > 1 for request in requests)
        right = words["answers"] is not None or is_packed
        data = self.row_builder.pad_text(rows, "right" if right else "left", options.rows)
        if options.rows.padding_side is not None and not is_packed:
            del data["segment_ids"]
        data |= stack_rows([self.get_scene_inputs(request, options.image_processor) for request in requests])
        return data | get_question_inputs(requests)

    def get_questions_alone(
        self, words: dict[str, Any], belongings: dict[str, Any], scene_ids, scene_index, options: CallOptions
    ) -> dict[str, Any]:
        """Inputs of questions about scenes the model has encoded before, one per row; new proposals are legal.

        Whole prompts (chats without pictures) are rows that need no scene.
        """
        remedy = "pass images= as well"
        for key, value in (words | belongings).items():
            if key in ("answers", "target_objects", "bev_image", "bev_valid", "bev_bounds"):
                check(value is None, key, "views with it", "no images", remedy)
        boxes = belongings["proposal_boxes"]
        check(belongings["depth_maps"] is None or boxes is not None, "depth_maps", "views or new proposals with it",
              "questions alone", f"{remedy}, or proposal_boxes=")  # fmt: skip
        texts = words["text"]
        is_batch = not isinstance(texts, str) and any(not isinstance(item, str) for item in texts)
        num_scenes = len(texts) if is_batch else len(boxes) if get_ndim(boxes) == 3 else 1
        names = get_scene_names(scene_ids, num_scenes)
        questions = split_questions(words, names if is_batch else names[:1], bare=not is_batch)
        flat = [question for scene in questions for question in scene]
        check(len(flat) > 0, "text", "at least one question", "none", remedy)
        rows = self.row_builder.build_question_rows(flat, options.rows)
        data = self.row_builder.pad_text(rows, "left", options.rows)
        are_whole = all(self.template.is_whole_prompt(question.text) for question in flat)
        if options.rows.padding_side is not None and are_whole:
            del data["segment_ids"]
        check(are_whole or options.rows.padding_side != "right", "padding_side",
              "'left' for questions, whose answers go on at the ends of rows", "'right'",
              "leave it out; the answers of a chat have chat marks (pass TRL's collator messages)")  # fmt: skip
        if scene_index is not None or (is_batch and not are_whole):
            counted = [index for index, scene in enumerate(questions) for _ in scene]
            data["scene_index"] = check_scene_index(counted if scene_index is None else scene_index, len(flat))
        if boxes is not None:
            scenes = split_requests(names, [None] * num_scenes, [[]] * num_scenes, belongings)
            data |= stack_rows([self.get_proposal_inputs(request) for request in scenes])
        one_a_row = [SceneRequest(question.name, None, [question]) for question in flat]
        return data | get_question_inputs(one_a_row)

    # Tensors of a scene

    def fit_scene(
        self,
        images: Any,
        depth_maps: Any = None,
        intrinsics: Any = None,
        cam2world: Any = None,
        bev_image: Any = None,
        bev_valid: Any = None,
        bev_bounds: Any = None,
        scene_id: str = "0",
    ) -> FittedScene:
        """Prepare everything of one scene that does not depend on boxes and text; see `__call__` for the arguments.

        `processor(images=fitted, text=..., proposal_boxes=...)` then returns what the original arguments would give.
        """
        views, is_batch = split_views(images)
        check(not is_batch and len(views[0]) > 0, "images", "the views of one scene", f"{len(views)} lists of views",
              "fit scenes one by one")  # fmt: skip
        request = SceneRequest(
            f"scene {scene_id}", views[0], [], depth_maps, intrinsics, cam2world, None, bev_image, bev_valid,
            bev_bounds,
        )  # fmt: skip
        return self.fit_request(request)

    def make_fitted(self, tensors: dict[str, torch.Tensor]) -> FittedScene:
        """A fitted scene from its stored tensors, which `fit_scene` of a processor with these settings made."""
        return FittedScene(self.get_fit_settings(), **tensors)

    def get_fit_settings(self) -> dict[str, Any]:
        """Settings that decide what a `FittedScene` holds."""
        settings = self.get_view_settings()
        if self.geometry_image_size is not None:
            names = ("geometry_image_size", "geometry_patch_size")
            settings |= {name: getattr(self, name) for name in names}
        return settings

    def get_view_settings(self) -> dict[str, Any]:
        """Settings that decide views, their positions and bird's-eye pictures."""
        settings = {
            "view_size": self.view_size,
            "patch_size": self.patch_size,
            "geometry_mode": self.geometry_mode,
            "bev_size": self.bev_size,
            "resample": int(self.image_processor.resample),
        }
        # Left out at its default, so that what was stored before there was this setting stays valid.
        return settings if self.view_fit == "center_crop" else settings | {"view_fit": self.view_fit}

    def get_pixel_settings(self) -> dict[str, Any]:
        """Settings that decide how fitted pictures become `pixel_values`."""
        pictures = self.image_processor
        return {
            "do_rescale": pictures.do_rescale,
            "rescale_factor": pictures.rescale_factor,
            "do_normalize": pictures.do_normalize,
            "image_mean": list(pictures.image_mean),
            "image_std": list(pictures.image_std),
        }

    def get_scene_settings(self) -> dict[str, Any]:
        """All settings that decide what the model reads of a scene; others decide targets only."""
        fitted = {name: value for name, value in self.get_view_settings().items() if name != "bev_size"}
        return {
            **fitted,
            **self.get_pixel_settings(),
            "spatial_instruction": self.spatial_instruction,
            "object_patch_threshold": self.object_patch_threshold,
            "object_token_threshold": self.object_token_threshold,
        }

    def fit_request(self, request: SceneRequest) -> FittedScene:
        """Decode and fit pictures; fit, unproject and pool depth; fit the bird's-eye picture.

        Pictures are decoded one after the other, so only one is in memory at full size.
        """
        check_geometry_sizes(self.geometry_image_size, self.geometry_patch_size)
        depth = None
        if request.depth_maps is not None:
            depth = read_depth_maps(request.depth_maps, len(request.views), f"depth_maps of {request.name}")
        fitted_views, geometry_views, turns = [], [], []
        for index, image in enumerate(request.views):
            name = f"images[{index}] of {request.name}"
            view = open_view(image, name)
            size = reference = get_view_size(view)
            if depth is not None:
                turns.append(get_depth_turns(view, depth.shape[1:], name))
                reference = tuple(depth.shape[1:][:: -1 if turns[-1] % 2 else 1])
                self.check_aspect(size, reference, name)
            resized = self.get_resized_size(*reference, self.view_size, name)
            picture = decode_view(view, name)
            fitted_views.append(fit_picture(picture, resized, self.view_size, self.image_processor.resample))
            if self.geometry_image_size is not None:
                geometry_size = self.get_geometry_size(size, name)
                geometry_views.append(fit_geometry_picture(picture, resized, self.view_size, geometry_size))
                check_same_size(geometry_views, request.name)
        fitted = FittedScene(self.get_fit_settings(), torch.from_numpy(np.stack(fitted_views)))
        if geometry_views:
            fitted.geometry_pictures = torch.from_numpy(np.stack(geometry_views))
        self.fit_geometry(fitted, request, depth, turns)
        if request.bev_image is not None:
            self.fit_bev(fitted, request, reference)
        return fitted

    def get_resized_size(self, height: int, width: int, size: int, name: str) -> tuple[int, int]:
        """Height and width to which a picture is resized before its middle, `size` x `size`, is taken."""
        if self.view_fit == "squash":
            return size, size
        return get_resized_size(height, width, size, self.geometry_mode, name)

    def get_geometry_size(self, picture_size: tuple[int, int], name: str) -> tuple[int, int]:
        """Height and width of the geometry encoder's picture of a view; the square that is cropped stays a square."""
        shown = picture_size if self.view_fit == "squash" else (self.view_size, self.view_size)
        return get_geometry_size(*shown, self.geometry_image_size, self.geometry_patch_size, name)

    def get_scene_inputs(
        self, request: SceneRequest, image_processor: Ross3DImageProcessor
    ) -> dict[str, torch.Tensor]:
        """Views, geometry, proposals and bird's-eye picture of one scene, without the leading B."""
        fitted = self.check_fitted(request) if isinstance(request.views, FittedScene) else self.fit_request(request)
        check_inside(request, fitted)
        inputs = {
            "pixel_values": image_processor.normalize_pictures(fitted.pictures),
            "view_mask": torch.ones(len(fitted), dtype=torch.bool),
        }
        inputs |= self.get_proposals_of(fitted, request.proposal_boxes)
        if fitted.patch_coords is not None:
            inputs |= {"patch_coords": fitted.patch_coords, "patch_valid": fitted.patch_valid}
        if self.return_cameras and fitted.cam2world is not None:
            inputs |= {"cam2world": fitted.cam2world.float(), "fields_of_view": fitted.fields_of_view}
        if fitted.geometry_pictures is not None:
            inputs["geometry_pixel_values"] = fitted.geometry_pictures.permute(0, 3, 1, 2).contiguous()
        if fitted.bev_pixels is not None:
            inputs["bev_pixel_values"] = fitted.bev_pixels.permute(2, 0, 1).contiguous().float() / 255
        for key in ("bev_valid", "bev_bounds"):
            if getattr(fitted, key) is not None:
                inputs[key] = getattr(fitted, key)
        return inputs

    def check_fitted(self, request: SceneRequest) -> FittedScene:
        """Refuse a fitted scene of another processor, and arguments that the fitted scene already contains."""
        fitted, wanted = request.views, self.get_fit_settings()
        check(fitted.settings == wanted, f"images of {request.name}", f"a scene fitted by a processor with {wanted}",
              fitted.settings, "fit it again with this processor's fit_scene")  # fmt: skip
        inside = ("depth_maps", "intrinsics", "cam2world", "bev_image", "bev_valid", "bev_bounds")
        given = [key for key in inside if getattr(request, key) is not None]
        check(not given, f"{', '.join(given)} of {request.name}", "None with a fitted scene, which contains it",
              "one", "leave it out")  # fmt: skip
        return fitted

    def get_proposals_of(self, fitted: FittedScene, boxes: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Proposals and, with depth, the patches and tokens they cover."""
        if boxes is None:
            return {}
        inputs = {"proposal_boxes": boxes, "proposal_mask": torch.ones(len(boxes), dtype=torch.bool)}
        if fitted.depth is not None:
            readings = fitted.depth > 0 if self.geometry_mode == "valid_depth" else None
            inputs["proposal_patches"] = assign_patches(
                fitted.world_coords, boxes, self.patch_size, self.object_patch_threshold, readings
            )
            if self.object_token_threshold is not None:
                inputs["proposal_tokens"] = assign_tokens(
                    fitted.world_coords, boxes, self.patch_size, self.object_token_threshold, readings
                )
        return inputs

    def check_aspect(self, size: tuple[int, int], depth_size: tuple[int, int], name: str) -> None:
        """Refuse a picture whose aspect ratio differs from its depth map's; published mode stretches it and warns."""
        if has_same_aspect(size, depth_size):
            return
        sizes = f"{size[0]} x {size[1]}", f"{depth_size[0]} x {depth_size[1]}"
        check(self.geometry_mode == "published", name, f"the aspect of its {sizes[1]} depth map",
              f"a {sizes[0]} picture (height x width)",
              "crop or turn one so that both show the same field of view")  # fmt: skip
        warnings.warn(
            f"{name}: the {sizes[0]} picture (height x width) is stretched to the aspect of its {sizes[1]} depth map;"
            " crop or turn one where they show different fields of view.",
            stacklevel=2,
        )

    def fit_geometry(
        self, fitted: FittedScene, request: SceneRequest, depth: torch.Tensor | None, turns: list[int]
    ) -> None:
        """Depth and cameras of the pixels left when views are fitted, and the positions pooled from them.

        Each pixel has its coordinates in the full map; `turns` are the quarter turns that bring each view upright.
        """
        name = request.name
        if depth is None:
            if request.cam2world is not None:
                warnings.warn(
                    f"cam2world of {name}: without depth_maps nothing says how far away a pixel is; views get no"
                    " position.",
                    stacklevel=2,
                )
            return
        num_views, height, width = depth.shape
        check_has_cameras(name, intrinsics=request.intrinsics, cam2world=request.cam2world)
        fitted.intrinsics = check_intrinsics(request.intrinsics, num_views, (height, width), f"intrinsics of {name}")
        fitted.cam2world = check_cam2world(request.cam2world, num_views, f"cam2world of {name}")
        check_camera_positions(fitted.cam2world, f"cam2world of {name}")
        if any(turns):
            depth, fitted.intrinsics, fitted.cam2world = turn_views(
                depth, fitted.intrinsics, fitted.cam2world, turns, f"images of {name}"
            )
            height, width = depth.shape[1:]
        resized = self.get_resized_size(height, width, self.view_size, f"depth_maps of {name}")
        top, left = ((side - self.view_size) // 2 for side in resized)
        fitted.rows = get_nearest_indices(height, resized[0])[top : top + self.view_size]
        fitted.columns = get_nearest_indices(width, resized[1])[left : left + self.view_size]
        fitted.depth = select_pixels(depth, fitted.rows, fitted.columns)
        valid = fitted.depth > 0
        fitted.patch_coords, fitted.patch_valid = pool_patch_coords(
            fitted.world_coords, valid, self.patch_size, self.geometry_mode
        )
        blank = (~valid.flatten(1).any(dim=1)).nonzero()[:, 0].tolist()
        self.check_blank_views(blank, num_views, name)

    def check_blank_views(self, blank: list[int], num_views: int, name: str) -> None:
        """Raise an error if no view has a reading; warn of single views without one if they get no position."""
        check(len(blank) < num_views, f"depth_maps of {name}", "a reading in the part of a view that is seen",
              "none in any view", "leave depth_maps out to use the pictures alone")  # fmt: skip
        if blank and self.geometry_mode == "valid_depth":
            warnings.warn(
                f"depth_maps of {name}: {len(blank)} of {num_views} views have no reading (views {blank}); their"
                " tokens get no position.",
                stacklevel=2,
            )

    def get_proposal_inputs(self, request: SceneRequest) -> dict[str, torch.Tensor]:
        """New proposals of a scene that was encoded before; with depth, the patches they cover."""
        depth = None
        if request.depth_maps is not None:
            depth = read_depth_maps(request.depth_maps, None, f"depth_maps of {request.name}")
        fitted = FittedScene(self.get_fit_settings(), torch.empty(0))
        self.fit_geometry(fitted, request, depth, [])
        check_inside(request, fitted)
        return self.get_proposals_of(fitted, request.proposal_boxes)

    def fit_bev(self, fitted: FittedScene, request: SceneRequest, reference: tuple[int, int]) -> None:
        """Bird's-eye picture of one scene at `bev_size`.

        Published: resized to height `bev_size` and the aspect ratio of the views (height and width `reference`),
        regardless of its own, then cropped; all of it squashed to a square if views are. Ours: square pictures only,
        resized to `bev_size`, with void pixels exactly black.
        """
        name, size = f"bev_image of {request.name}", self.bev_size
        picture = decode_view(open_view(request.bev_image, name), name)
        valid = None if request.bev_valid is None else to_tensor(request.bev_valid, f"bev_valid of {request.name}")
        if valid is not None:
            check_shape(f"bev_valid of {request.name}", valid, picture.size[::-1], "pass one value a pixel.")
            check(not valid.is_floating_point(), f"bev_valid of {request.name}", "truth values", f"{valid.dtype}",
                  "compare it: True where the picture shows something")  # fmt: skip
        if self.geometry_mode == "published":
            resized = self.get_resized_size(*reference, size, name)
        else:
            width, height = picture.size
            check(height == width, name, "a square picture", f"{height} x {width}", "render it with square bounds")
            resized = (size, size)
        pixels = fit_picture(picture, resized, size, self.image_processor.resample)
        if valid is not None:
            top, left = ((side - size) // 2 for side in resized)
            valid = resize_nearest(valid.bool(), resized)[top : top + size, left : left + size].contiguous()
            fitted.bev_valid = valid
            if self.geometry_mode == "valid_depth":
                pixels = np.where(valid.numpy()[..., None], pixels, np.uint8(0))
        fitted.bev_pixels = torch.from_numpy(pixels.copy())
        if request.bev_bounds is not None:
            fitted.bev_bounds = check_edges(request.bev_bounds, f"bev_bounds of {request.name}")

    # The library's interface

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """The number of placeholders of pictures of the given sizes: the same for all views."""
        count = 0 if image_sizes is None else len(image_sizes)
        return MultiModalData(num_image_tokens=[self.tokens_per_view] * count, num_image_patches=[1] * count)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """As in the library, with one `<image>` for all pictures of a message; returns the same ids as `text=`.

        A picture's block may carry its `depth_map`, `intrinsics` and `cam2world`; anything else of `__call__` goes
        into `processor_kwargs`.

        Raises:
            ValueError: for `tools` or `documents` that the template would leave out.
        """
        template = self._resolve_chat_template(chat_template)
        for name in ("tools", "documents"):
            check(not kwargs.get(name) or name in template, name, f"a chat template that writes {name}",
                  "one that leaves them out", "describe them in a system message, or pass chat_template=")  # fmt: skip
        if self.spatial_instruction and "spatial_instruction" in template:
            kwargs.setdefault("spatial_instruction", SPATIAL_INSTRUCTION)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _normalize_conversations(self, conversation):
        """As in the library, with every picture under the key `image`; refuses chats that this model cannot read."""
        check_chats(conversation)
        conversations, is_batched = super()._normalize_conversations(conversation)
        for index, messages in enumerate(conversations):
            for turn, message in enumerate(messages):
                message["content"] = normalize_content(message, f"message {turn} of chat {index}")
            check_pictures_of_chat(messages, f"chat {index}")
        return conversations, is_batched

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs):
        images, videos, audio, others = super()._multimodal_inputs_from_conversations(conversations, *args, **kwargs)
        scenes = [[block for message in messages for block in list_pictures(message)] for messages in conversations]
        for key, argument in (("depth_map", "depth_maps"), ("intrinsics", "intrinsics"), ("cam2world", "cam2world")):
            if any(key in block for blocks in scenes for block in blocks):
                others[argument] = [[block[key] for block in blocks if key in block] or None for blocks in scenes]
        return images, videos, audio, others

    def post_process_grounding(
        self,
        scores: torch.Tensor,
        proposal_boxes: torch.Tensor,
        scene_index: torch.Tensor | list[int] | None = None,
        selection: Literal["best", "cumulative"] = "best",
        temperature: float = 0.07,
        threshold: float = 0.4,
        max_overlap: float | None = None,
    ) -> list[dict[str, Any]]:
        """Boxes of each question from the scores of `model.ground`.

        Args:
            scores (sum of Q, K + 1): last column "no target", -inf at padding.
            proposal_boxes (K, 6) or (B, K, 6): metres.
            scene_index (sum of Q,), *optional*: the scene of each question; needed for several scenes.
            selection (`str`): "best" (one target is known to exist): the highest proposal, even if "no target" is
                higher. "cumulative" (none, one or several targets): nothing if "no target" is highest, otherwise
                proposals in falling order until their softmax probabilities sum to `threshold`.
            max_overlap (`float`, *optional*): drop chosen boxes whose IoU with a better chosen one is this or more;
                0.5 for proposals from depth, several of which may be one object. None (published) keeps all.

        Returns:
            one dict per question: `proposals` (list of indices), `boxes` (n, 6), `scores` (n,), `no_target` (bool).
        """
        modes = ("best", "cumulative")
        check(selection in modes, "selection", f"one of {modes}", repr(selection), "choose one of them")
        remedy = "leave it out for the published one"
        check(is_number(temperature) and temperature > 0, "temperature", "a number above 0", repr(temperature), remedy)
        check(is_number(threshold) and 0 < threshold <= 1, "threshold", "a number above 0 and at most 1",
              repr(threshold), remedy)  # fmt: skip
        legal = max_overlap is None or (is_number(max_overlap) and 0 < max_overlap <= 1)
        check(legal, "max_overlap", "an IoU above 0 and at most 1, or None", repr(max_overlap),
              "choose 0.5 for proposals from depth, None for those of a detector")  # fmt: skip
        scores, boxes = to_coords(scores, "scores").float(), to_coords(proposal_boxes, "proposal_boxes").float()
        boxes = boxes if boxes.dim() == 3 else boxes[None]
        check_shape("proposal_boxes", boxes, ("B", "K", 6), "pass those that model.ground scored.")
        if scene_index is None:
            check(len(boxes) == 1, "scene_index", "the scene of each question", "None for several scenes", "pass it")
            scene_index = [0] * len(scores)
        scene_index = check_scene_index(scene_index, len(scores)).tolist()
        legal = all(scene < len(boxes) for scene in scene_index)
        check(legal, "scene_index", f"numbers of the {len(boxes)} scenes of proposal_boxes", scene_index,
              "pass the boxes of every scene")  # fmt: skip
        check_shape("scores", scores, (len(scene_index), boxes.shape[1] + 1), "pass model.ground's own scores.")
        broken = (scores.isnan() | (scores == math.inf)).any(dim=1) | (scores[:, -1] == -math.inf)
        check(not bool(broken.any()), "scores", "numbers, -inf at padded proposals alone",
              f"NaN or infinity in questions {broken.nonzero()[:, 0].tolist()}",
              "look for NaN in the model's weights and inputs")  # fmt: skip
        chosen = [choose_proposals(row, selection, temperature, threshold) for row in scores]
        if max_overlap is not None:
            overlaps = [compute_box_iou(of_scene, of_scene).cpu().numpy() for of_scene in boxes]
            pairs = zip(chosen, scene_index, strict=True)
            chosen = [keep_distinct(indices, overlaps[scene], max_overlap) for indices, scene in pairs]
        return [
            {
                "proposals": indices,
                "boxes": boxes[scene][indices],
                "scores": row[indices],
                "no_target": bool(row.argmax() == len(row) - 1),
            }
            for row, scene, indices in zip(scores, scene_index, chosen, strict=True)
        ]


Ross3DImageProcessor.register_for_auto_class("AutoImageProcessor")
Ross3DProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["FittedScene", "Ross3DImageProcessor", "Ross3DInputs", "Ross3DProcessor"]
