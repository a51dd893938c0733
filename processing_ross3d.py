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
"""Posed RGB-D views and words -> tensors; grounding scores -> boxes.

A row is `[prefix | segment 1 | ... | segment Q | padding]`: the scene once, then its questions. Geometry is pooled to
visual tokens and vision patches here, so no map of full resolution travels to the model.

Shapes: B scenes, V views, H x W pixels of a depth map, S x S pixels of a cropped view, p x p vision patches, h x w
tokens after pooling, K proposals, Q questions of a scene, L sequence.
"""

import os
import warnings
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import MultiModalData, ProcessorMixin

from .geometry_ross3d import (
    MAX_MEDIAN_DEPTH,
    MAX_ROTATION_ERROR,
    MIN_MEDIAN_DEPTH,
    assign_patches,
    check_shape,
    get_median_depths,
    get_nearest_indices,
    get_token_grid_size,
    pool_patch_coords,
    resize_nearest,
    unproject,
)


IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN = "<image>", "<ground>", "<coord>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SYSTEM_PROMPT = "You are a helpful assistant."
# The published training prompts carry this sentence, the published evaluation prompts do not.
SPATIAL_INSTRUCTION = (
    "The video captures 3D spatial information of a scene. Please focus on the spatial relationships in the video and"
    " answer the following questions."
)
ANSWER_HEADER = f"{TURN_START}assistant\n"
SCENE_PREFIX = f"{TURN_START}system\n{SYSTEM_PROMPT}{TURN_END}\n{TURN_START}user\n{IMAGE_TOKEN}"
# One `<image>` stands for all consecutive pictures of a message; the scene's words follow on a new line.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\n" + SYSTEM_PROMPT + "<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- else -%}"
    "{%- set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list -%}"
    "{%- if pictures -%}"
    "{{ '<image>\\n' }}{%- if spatial_instruction -%}{{ spatial_instruction + '\\n' }}{%- endif -%}"
    "{%- endif -%}"
    "{%- for block in message['content'] if block['type'] == 'text' -%}{{ block['text'] }}{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
IGNORED_LABEL = -100
PADDING_SEGMENT = -1
# Cameras are metres away; beyond this distance it is another unit.
MAX_CAMERA_DISTANCE = 500.0
MAX_ASPECT_DIFFERENCE = 0.05
# Tensors that `Ross3DInputs.to(dtype)` leaves in float32: metres lose centimetres in half precision.
FLOAT32_KEYS = frozenset({"patch_coords", "proposal_boxes", "query_coords", "bev_bounds", "loss_weights"})

GeometryMode = Literal["published", "valid_depth"]
LabelRule = Literal["published", "answer_only"]


def check(rule: bool, name: str, expected: str, got: Any, remedy: str) -> None:
    """Raise a `ValueError` that says what was expected, what came and what to do, unless `rule` holds."""
    if not rule:
        raise ValueError(f"{name}: expected {expected}, got {got}; {remedy}.")


class Ross3DInputs(BatchFeature):
    """The processor's output; a cast with `to(dtype)` leaves coordinates and loss weights in float32."""

    def to(self, *args, **kwargs) -> "Ross3DInputs":
        kept = {key: value for key, value in self.items() if key in FLOAT32_KEYS}
        super().to(*args, **kwargs)
        for key, value in kept.items():
            self.data[key] = value.to(self.data[key].device)
        return self


# Pictures


class Ross3DImageProcessor(PilBackend):
    r"""
    Views to `pixel_values`, on PIL alone: with or without torchvision, every machine gets the same pixels.

    `size` must be square. The processor asks for an aspect-preserving resize and a centre crop; called by itself on
    pictures, this class stretches them to `size` as SigLIP's image processor does.
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
        values = pictures.permute(0, 3, 1, 2).contiguous().float()
        # In place: these are the largest tensors that a scene brings.
        if self.do_rescale:
            values = values.div_(255) if self.rescale_factor == 1 / 255 else values.mul_(self.rescale_factor)
        if self.do_normalize:
            mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (self.image_mean, self.image_std))
            values = values.sub_(mean).div_(std)
        return values


def load_picture(image: Any, name: str) -> np.ndarray:
    """A PIL image, a file, an array or a tensor -> uint8 (H, W, 3)."""
    if isinstance(image, (str, os.PathLike)):
        image = open_picture(image, name)
    if isinstance(image, Image.Image):
        check(
            not image.mode.startswith(("I", "F")),
            name,
            "a colour picture",
            f"PIL mode {image.mode}",
            "16-bit pictures are depth: pass them in metres as depth_maps",
        )
        try:
            return np.asarray(image.convert("RGB"))
        except OSError as error:
            file = getattr(image, "filename", "") or "the picture"
            raise ValueError(f"{name}: expected a readable picture, got {file}: {error}; restore the file.") from error
    array = image.numpy(force=True) if isinstance(image, torch.Tensor) else np.asarray(image)
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
    return array


def open_picture(file: str | os.PathLike, name: str) -> Image.Image:
    try:
        return Image.open(file)
    except OSError as error:
        raise ValueError(f"{name}: expected a readable picture, got {file}: {error}; restore the file.") from error


def get_resized_size(
    height: int, width: int, size: int, mode: GeometryMode, name: str, remedy: str = ""
) -> tuple[int, int]:
    """Height and width to which a picture is resized before its centre is cropped to `size`.

    "published" brings the height to `size`, which asks for a picture at least as wide as high; "valid_depth" brings
    the short side to it.
    """
    if mode == "published":
        check(
            width >= height,
            name,
            "pictures at least as wide as high, as geometry_mode='published' crops them",
            f"{height} x {width} (height x width)",
            remedy or "use geometry_mode='valid_depth' (--geometry-mode valid_depth), or turn the views upright",
        )
    if width >= height:
        return size, int(width * size / height)
    return int(height * size / width), size


def fit_picture(picture: np.ndarray, resized: tuple[int, int], size: int, resample: int) -> np.ndarray:
    """Resize uint8 (H, W, 3) to `resized` (height, width) and crop its centre to `size`."""
    if picture.shape[:2] != resized:
        picture = np.asarray(Image.fromarray(picture).resize((resized[1], resized[0]), resample))
    top, left = ((side - size) // 2 for side in resized)
    return picture[top : top + size, left : left + size]


# Cameras, depth and boxes


def to_tensor(value: Any, name: str) -> torch.Tensor:
    """An array, a tensor or a list of equal ones -> one tensor."""
    if isinstance(value, (list, tuple)):
        arrays = [item.numpy(force=True) if isinstance(item, torch.Tensor) else np.asarray(item) for item in value]
        shapes = sorted({array.shape for array in arrays})
        check(len(shapes) <= 1, name, "arrays of one shape", shapes, "resize them to a common size")
        value = np.stack(arrays) if arrays else np.zeros(0)
    if isinstance(value, np.ndarray) and (not value.flags.writeable or any(step < 0 for step in value.strides)):
        value = value.copy()
    return torch.as_tensor(value)


def check_depth_maps(depth_maps: Any, num_views: int | None, name: str) -> torch.Tensor:
    """Depth in metres, float32 (V, H, W); whatever looks like another unit or holds no reading is refused."""
    depth = to_tensor(depth_maps, name)
    check_shape(name, depth, (num_views or "V", "H", "W"), "pass one depth map a view.")
    metres = "divide millimetres by 1000 and pass float32"
    check(depth.is_floating_point(), name, "metres as floating point", f"dtype {depth.dtype}", metres)
    depth = depth.float()
    lowest = depth.min()
    check(
        bool(torch.isfinite(lowest)) and bool(torch.isfinite(depth.max())) and bool(lowest >= 0),
        name,
        "finite metres >= 0",
        "negative, infinite or NaN depth",
        "write 0 where the sensor has no reading",
    )
    medians = get_median_depths(depth)
    check(
        not bool(medians.isnan().all()),
        name,
        "a reading in at least one view",
        "no depth above 0 in any view",
        "leave depth_maps out to use the pictures alone, or pass the views that have readings",
    )
    far = (medians > MAX_MEDIAN_DEPTH).nonzero()[:, 0].tolist()
    check(
        not far,
        name,
        "metres",
        f"a median depth of {medians[far[:1]].sum():.0f} in views {far}, which looks like millimetres",
        metres,
    )
    median = medians.nanmedian().item()
    check(
        median >= MIN_MEDIAN_DEPTH,
        name,
        "metres",
        f"a median depth of {median:.5f}, which looks divided by 1000 twice",
        "pass metres",
    )
    return depth


def check_intrinsics(intrinsics: Any, num_views: int, height: int, width: int, name: str) -> torch.Tensor:
    """Camera matrices (V, 3, 3) in pixels of the depth map, float64."""
    cameras = to_tensor(intrinsics, name).double()
    if cameras.dim() == 2:
        check_shape(name, cameras, (3, 3), "of a 4 x 4 matrix pass [:3, :3].")
        cameras = cameras.expand(num_views, 3, 3)
    check_shape(name, cameras, (num_views, 3, 3), "pass one matrix, or one a view; of a 4 x 4 matrix pass [:3, :3].")
    check(bool(torch.isfinite(cameras).all()), name, "finite numbers", "NaN or infinity", "repair the calibration")
    focal = torch.stack([cameras[:, 0, 0], cameras[:, 1, 1]], dim=1)
    centre = cameras[:, :2, 2]
    side = torch.tensor([width, height])
    fits = bool(((focal > 0.05 * side) & (centre >= 0) & (centre <= side)).all())
    check(
        fits,
        name,
        f"focal lengths and a principal point in pixels of the {height} x {width} depth map",
        f"focal {focal[0].tolist()}, centre {centre[0].tolist()}",
        "scale the calibration from the size it was made for to that of the depth map",
    )
    return cameras


def check_cam2world(cam2world: Any, num_views: int, name: str) -> torch.Tensor:
    """Rigid camera poses (V, 4, 4), metres, float64."""
    poses = to_tensor(cam2world, name).double()
    check_shape(name, poses, (num_views, 4, 4), "pass one camera-to-world matrix a view.")
    finite = torch.isfinite(poses).flatten(1).all(dim=1)
    check(
        bool(finite.all()),
        name,
        "finite numbers",
        f"NaN or infinity in views {(~finite).nonzero()[:, 0].tolist()}",
        "drop the views whose tracking was lost",
    )
    rotation = poses[:, :3, :3]
    error = (rotation.transpose(1, 2) @ rotation - torch.eye(3, dtype=poses.dtype)).abs().flatten(1).amax(dim=1)
    last = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=poses.dtype)
    rigid = (error < MAX_ROTATION_ERROR) & (torch.linalg.det(rotation) > 0)
    rigid = rigid & ((poses[:, 3] - last).abs().amax(dim=1) < 1e-4)
    check(
        bool(rigid.all()),
        name,
        "rigid camera-to-world matrices (a rotation, a translation, last row 0 0 0 1)",
        f"others in views {(~rigid).nonzero()[:, 0].tolist()}",
        "remove scale or mirroring, and transpose matrices that are stored by columns",
    )
    distance = poses[:, :3, 3].abs().amax().item()
    check(
        distance <= MAX_CAMERA_DISTANCE,
        name,
        "translations in metres",
        f"a camera {distance:.0f} away, which looks like millimetres",
        "divide the translations by 1000",
    )
    return poses


def check_proposal_boxes(boxes: Any, name: str) -> torch.Tensor:
    """Boxes (K, 6), centre and size in metres, float32; K = 0 is legal."""
    boxes = to_tensor(boxes, name).float()
    if boxes.numel() == 0:
        return boxes.reshape(0, 6)
    check_shape(name, boxes, ("K", 6), "pass centre xyz and size xyz.")
    check(bool(torch.isfinite(boxes).all()), name, "finite metres", "NaN or infinity", "drop the broken proposals")
    negative = (boxes[:, 3:] < 0).any(dim=1)
    check(
        not bool(negative.any()),
        name,
        "sizes >= 0 (centre xyz, size xyz)",
        f"a negative size in proposals {negative.nonzero()[:, 0].tolist()}",
        "turn corners into centre and size",
    )
    return boxes


def check_bev_bounds(bounds: Any, name: str) -> torch.Tensor:
    """Edges (4,) of a bird's-eye picture, metres, float32."""
    bounds = to_tensor(bounds, name).float()
    check_shape(name, bounds, (4,), "pass xmin, ymin, xmax, ymax in metres.")
    ordered = bool(torch.isfinite(bounds).all()) and bool((bounds[:2] < bounds[2:]).all())
    check(ordered, name, "xmin < xmax and ymin < ymax, finite", bounds.tolist(), "pass xmin, ymin, xmax, ymax")
    return bounds


@dataclass
class FittedScene:
    """A scene as the model sees it, before boxes and words: what `Ross3DProcessor.fit_scene` makes.

    It stands in for `images` and all that belongs to them in `Ross3DProcessor.__call__`; kept on disk, it saves
    decoding, resizing and pooling them again.

    Attributes:
        settings (`dict`): of the processor that made it; another refuses it.
        pictures (V, S, S, 3): uint8.
        patch_coords (V, h, w, 3), patch_valid (V, h, w), *optional*: metres; absent without depth.
        depth (V, S, S), *optional*: metres, of the pixels that are left after resize and crop, float32.
        rows (S,), columns (S,), *optional*: where those pixels are in the depth map.
        intrinsics (V, 3, 3), cam2world (V, 4, 4), *optional*: float64.
        bev_pixels (Hb, Hb, 3), bev_valid (Hb, Hb), bev_bounds (4,), *optional*: the picture from above, uint8.
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

    def __len__(self) -> int:
        """V."""
        return len(self.pictures)

    def unproject(self) -> torch.Tensor:
        """World points (V, S, S, 3) of the kept pixels, metres."""
        return unproject(self.depth, self.intrinsics, self.cam2world, self.rows, self.columns)


# Words


@dataclass
class Question:
    """A question of a scene and, in training, what is wanted of it."""

    text: str
    name: str
    answer: str | None = None
    targets: list[int] | None = None
    coords: list[float] | None = None


def check_question(question: Question) -> None:
    """Refuse marks that contradict each other or what came beside the question."""
    text, answer, name = question.text, question.answer, question.name
    check(isinstance(text, str), f"text of {name}", "a string", type(text).__name__, "pass words, or no text at all")
    if answer is not None:
        check_answer(answer, f"answers of {name}")
    grounds, coords = text.count(GROUND_TOKEN) + (answer == GROUND_TOKEN), text.count(COORD_TOKEN)
    check(grounds <= 1, f"text of {name}", "at most one <ground>, the answer's included", f"{grounds} of them",
          "ask about one referring expression at a time")  # fmt: skip
    check(coords <= 1, f"text of {name}", "at most one <coord>", f"{coords} of them", "ask about one place at a time")
    check(coords == 0 or question.coords is not None, f"query_coords of {name}",
          "a point (x, y, z) in metres for its <coord>", "none", "pass query_coords=")  # fmt: skip
    check(coords == 1 or question.coords is None, f"query_coords of {name}", "none, since it has no <coord>",
          question.coords, "write <coord> where the point is meant, or leave the point out")  # fmt: skip
    check(question.targets is None or grounds == 1, f"target_objects of {name}",
          "None for a question that is not answered by <ground>", question.targets,
          "pass '<ground>' as its answer, or None as its targets")  # fmt: skip
    check(answer != GROUND_TOKEN or question.targets is not None, f"target_objects of {name}",
          "a list of proposal indices ([] = no target) for the answer <ground>", "None",
          "pass target_objects=")  # fmt: skip


def check_answer(answer: Any, name: str) -> None:
    check(isinstance(answer, str), name, "a string", type(answer).__name__, "convert numbers with str()")
    marks = [mark for mark in (TURN_START, TURN_END, IMAGE_TOKEN, COORD_TOKEN) if mark in answer]
    if GROUND_TOKEN in answer and answer != GROUND_TOKEN:
        marks.append(GROUND_TOKEN)
    check(not marks, name, "plain words, or <ground> alone", f"{marks} in {answer!r}", "remove these marks")
    check(not answer.startswith(("\n", "\r")), name, "no line break at the beginning", repr(answer[:20]),
          "strip the answer first")  # fmt: skip


def is_whole_prompt(text: str) -> bool:
    return any(mark in text for mark in (TURN_START, TURN_END, IMAGE_TOKEN))


@dataclass
class Prompt:
    """The texts of a question: their token ids, one after the other, are those of the joined text."""

    prefix: str
    question: str
    answer: str = ""


def get_scene_prefix(spatial_instruction: bool) -> str:
    """All that stands before a question, shared by the questions of a scene."""
    return SCENE_PREFIX + (f"\n{SPATIAL_INSTRUCTION}\n" if spatial_instruction else "")


def split_prompt(question: Question, spatial_instruction: bool, with_answer: bool) -> Prompt:
    """Prefix (up to the scene slot and the instruction behind it), question and, in training, the assistant's turn.

    A plain question is put into the chat template; a whole prompt is split behind its one slot.
    """
    name = f"text of {question.name}"
    if is_whole_prompt(question.text):
        prefix, segment = split_whole_prompt(question.text, spatial_instruction, name)
    else:
        prefix = get_scene_prefix(spatial_instruction)
        check(not (spatial_instruction and question.text.startswith(("\n", "\r"))), name,
              "no line break at the beginning, which would merge with that of the instruction",
              repr(question.text[:20]), "strip it")  # fmt: skip
        line_break = "" if spatial_instruction else "\n"
        segment = f"{line_break}{question.text}{TURN_END}\n{ANSWER_HEADER}"
    if not with_answer:
        return Prompt(prefix, segment)
    check(segment.endswith(ANSWER_HEADER), name, f"a whole prompt that ends with {ANSWER_HEADER!r} for its answer",
          repr(segment[-30:]), "add the assistant's header, or pass the plain question")  # fmt: skip
    answer = f"{ANSWER_HEADER}{question.answer}{TURN_END}\n"
    return Prompt(prefix, segment.removesuffix(ANSWER_HEADER), answer)


def split_whole_prompt(text: str, spatial_instruction: bool, name: str) -> tuple[str, str]:
    slots = text.count(IMAGE_TOKEN)
    check(slots == 1, name, "exactly one <image> in a whole prompt (it stands for all views)", f"{slots} of them",
          "write one <image>, or pass the plain question without chat marks")  # fmt: skip
    head, tail = text.split(IMAGE_TOKEN)
    instruction = f"\n{SPATIAL_INSTRUCTION}\n" if spatial_instruction else ""
    rest = tail.removeprefix(instruction)
    if rest.startswith(("\n", "\r")):
        return head + IMAGE_TOKEN, tail
    return text.removesuffix(rest), rest


@dataclass
class Segment:
    """Token ids (n,) of a part of a row, and the labels (n,) of those to be learnt."""

    ids: np.ndarray
    labels: np.ndarray
    has_text_answer: bool = False


@dataclass
class Row:
    """One packed row, arrays (L,); `targets` is empty without answers."""

    input_ids: np.ndarray
    segment_ids: np.ndarray
    targets: dict[str, np.ndarray] = field(default_factory=dict)


def get_segment_targets(segment: Segment, num_prefix_targets: int) -> tuple[np.ndarray, np.ndarray, float]:
    """What each position of a segment predicts, with which weight, and the weight of one of its targets."""
    targets = np.append(segment.labels[1:], IGNORED_LABEL)
    if not segment.has_text_answer:
        return np.full_like(targets, IGNORED_LABEL), np.zeros(len(targets)), 0.0
    num_targets = num_prefix_targets + int((segment.labels != IGNORED_LABEL).sum())
    share = 1.0 / max(num_targets, 1)
    return targets, share * (targets != IGNORED_LABEL), share


def shift_targets(prefix: Segment, segments: list[Segment], name: str) -> dict[str, np.ndarray]:
    """Next-token targets and their weights, as if each question stood behind the prefix in a row of its own.

    Position t of `shift_labels` holds what is predicted at t: the last position of the prefix predicts the first
    token of every segment, the last of a segment predicts nothing. An answer's n targets weigh 1 / n each, those in
    the prefix included, so a prefix target of Q answers weighs their sum. Grounding answers have no text targets.
    """
    inside = np.append(prefix.labels[1:], IGNORED_LABEL)
    is_inside = inside != IGNORED_LABEL
    parts = [get_segment_targets(segment, int(is_inside.sum())) for segment in segments]
    prefix_weights = is_inside * sum(share for _, _, share in parts)
    first = sorted({int(segment.labels[0]) for segment in segments if segment.has_text_answer} - {IGNORED_LABEL})
    check(len(first) <= 1, f"text of {name}",
          "segments whose first supervised token is the same, since the last prefix position predicts it",
          f"token ids {first}", "pass one question a row, or use label_rule='answer_only'")  # fmt: skip
    if first:
        inside[-1] = first[0]
        prefix_weights[-1] = sum(
            share for segment, (_, _, share) in zip(segments, parts, strict=True) if segment.labels[0] == first[0]
        )
    inside[prefix_weights == 0] = IGNORED_LABEL
    return {
        "shift_labels": np.concatenate([inside, *(targets for targets, _, _ in parts)]),
        "loss_weights": np.concatenate([prefix_weights, *(weights for _, weights, _ in parts)]),
    }


def build_row(prefix: Segment | None, segments: list[Segment], with_targets: bool, name: str) -> Row:
    """`[prefix | segment 1 | ...]`; without a prefix the one segment alone, numbered 1."""
    parts = segments if prefix is None else [prefix, *segments]
    numbers = range(1 if prefix is None else 0, len(segments) + 1)
    row = Row(
        input_ids=np.concatenate([part.ids for part in parts]),
        segment_ids=np.concatenate([np.full(len(part.ids), n) for n, part in zip(numbers, parts, strict=True)]),
    )
    if with_targets:
        row.targets = {"labels": np.concatenate([part.labels for part in parts])}
        row.targets |= shift_targets(prefix, segments, name)
    return row


def pad_rows(rows: list[np.ndarray], value: float, side: Literal["left", "right"]) -> torch.Tensor:
    """Arrays (L,) -> (B, longest L); float64 becomes float32."""
    tensors = [torch.from_numpy(row if row.dtype == np.int64 else row.astype(np.float32)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)


# Sorting a call's arguments by scene and question


@dataclass
class SceneRequest:
    """What a call brings for one scene."""

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


# Axes of what a single scene brings; more axes, or as many items as scenes, mean a list of scenes.
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
    ids = [scene_ids] if isinstance(scene_ids, str) else list(range(num_scenes)) if scene_ids is None else scene_ids
    check(len(ids) == num_scenes, "scene_ids", f"{num_scenes} names, one a scene", f"{len(ids)}", "pass one a scene")
    return [f"scene {scene_id}" for scene_id in ids]


def split_views(images: Any) -> tuple[list[Any], bool]:
    """A picture, V pictures, or a list of B such lists -> B lists, and whether there was a list of scenes.

    A `FittedScene` stands for the views of a scene.
    """
    if isinstance(images, FittedScene):
        return [images], False
    if isinstance(images, (list, tuple)) and images and isinstance(images[0], FittedScene):
        return list(images), True
    if isinstance(images, (Image.Image, str, os.PathLike)) or getattr(images, "ndim", 0) == 3:
        return [[images]], False
    views = list(images)
    if views and (isinstance(views[0], (list, tuple)) or getattr(views[0], "ndim", 0) == 4):
        return [list(scene) for scene in views], True
    return [views], False


def split_by_scene(key: str, value: Any, num_scenes: int) -> list[Any]:
    """One item a scene; a single scene may be given bare or as a list of one."""
    if value is None:
        return [None] * num_scenes
    ndim, scene_ndim = get_ndim(value), SCENE_NDIM[key]
    if num_scenes == 1 and (ndim <= scene_ndim or len(value) != 1):
        return [value]
    check(num_scenes == 1 or (ndim >= 1 and len(value) == num_scenes), key, f"{num_scenes} items, one a scene",
          "none" if ndim == 0 else f"{len(value)}", "nest it as images are nested")  # fmt: skip
    return list(value)


def split_requests(
    names: list[str], views: list[Any], questions: list[list[Question]], belongings: dict[str, Any]
) -> list[SceneRequest]:
    """Sort by scene; boxes and targets are checked here, for questions need the number of proposals."""
    sorted_by_scene = {key: split_by_scene(key, value, len(names)) for key, value in belongings.items()}
    requests = []
    for index, name in enumerate(names):
        items = {key: values[index] for key, values in sorted_by_scene.items()}
        if items["proposal_boxes"] is not None:
            items["proposal_boxes"] = check_proposal_boxes(items["proposal_boxes"], f"proposal_boxes of {name}")
        for key in ("bev_valid", "bev_bounds"):
            check(items[key] is None or items["bev_image"] is not None, f"{key} of {name}", "bev_image beside it",
                  "None", "pass bev_image=")  # fmt: skip
        requests.append(SceneRequest(name, views[index], questions[index], **items))
        check_targets(requests[-1])
    return requests


def check_targets(request: SceneRequest) -> None:
    """Targets must be proposals of their scene."""
    boxes = request.proposal_boxes
    for question in request.questions:
        if question.targets is None:
            continue
        name = f"target_objects of {question.name}"
        check(boxes is not None, name, "proposal_boxes beside it", "None", "pass proposal_boxes=")
        legal = all(isinstance(index, (int, np.integer)) and 0 <= index < len(boxes) for index in question.targets)
        check(legal, name, f"indices of the {len(boxes)} proposals", question.targets,
              "count proposals from 0, in the order of proposal_boxes")  # fmt: skip


def split_questions(words: dict[str, Any], names: list[str], bare: bool) -> list[list[Question]]:
    """Questions of every scene with their points, answers and targets; `bare`: all belongs to a single scene."""
    if words["text"] is None:
        given = [key for key, value in words.items() if value is not None]
        check(not given, "text", f"questions beside {given}", "None", "pass text=, or leave these out")
        return [[] for _ in names]
    by_scene = {key: [value] if bare else value for key, value in words.items()}
    for key, value in by_scene.items():
        check(value is None or len(value) == len(names), key, f"{len(names)} items, one a scene",
              None if value is None else len(value), "nest the words as images are nested")  # fmt: skip
    return [
        split_scene_questions({key: None if value is None else value[i] for key, value in by_scene.items()}, name)
        for i, name in enumerate(names)
    ]


def split_scene_questions(words: dict[str, Any], scene_name: str) -> list[Question]:
    """Questions of one scene: a string with bare belongings, or lists of one length."""
    text = words["text"]
    is_single = text is not None and not isinstance(text, (list, tuple))
    texts = [text] if is_single else list(text or [])
    columns = {
        "query_coords": spread_point(words["query_coords"], texts, scene_name),
        "answers": wrap_single(words["answers"], is_single, (str,)),
        "target_objects": wrap_single(words["target_objects"], is_single, (list, tuple, type(None))),
    }
    for key, column in columns.items():
        fits = column is None or (not isinstance(column, str) and len(column) == len(texts))
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
                  targets, "put one index into a list")  # fmt: skip
            question.targets = list(targets)
        check_question(question)
        questions.append(question)
    return questions


def wrap_single(value: Any, is_single: bool, item_types: tuple[type, ...]) -> Any:
    """What came beside a single string, as a list of one; a list of one such item already is."""
    if value is None or not is_single:
        return value
    is_list_of_one = isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], item_types)
    return value if is_list_of_one else [value]


def spread_point(points: Any, texts: list[str], scene_name: str) -> Any:
    """One bare point (3,) is meant for every question with a `<coord>`; a list has an item a question."""
    if get_ndim(points) != 1 or len(points) != 3 or any(point is None for point in points):
        return points
    marked = [isinstance(text, str) and COORD_TOKEN in text for text in texts]
    check(any(marked), f"query_coords of {scene_name}", "a question with <coord>", "none",
          "write <coord> where the point is meant, or leave the point out")  # fmt: skip
    return [points if mark else None for mark in marked]


def check_point(point: Any, name: str) -> list[float]:
    point = to_tensor(point, name).float()
    check_shape(name, point, (3,), "pass x, y, z in metres.")
    check(bool(torch.isfinite(point).all()), name, "finite metres", point.tolist(), "leave the point out")
    return point.tolist()


def get_question_inputs(requests: list[SceneRequest]) -> dict[str, torch.Tensor]:
    """`query_coords` (B, Q, 3), NaN without `<coord>`, and `grounding_labels` (B, Q, K + 1), each where it applies."""
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


# Leading axes of a scene's tensors that other tensors of it have as well: a batch pads all of them to one length.
SHARED_AXES = {
    "pixel_values": "V", "view_mask": "V", "patch_coords": "V", "patch_valid": "V", "proposal_boxes": "K",
    "proposal_mask": "K", "proposal_patches": "KV",
}  # fmt: skip


def stack_scenes(scenes: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Tensors of each scene -> (B, ...), padded with 0 or False (bounds: NaN); a key that no scene has is absent."""
    longest: dict[str, int] = {}
    for scene in scenes:
        for key, tensor in scene.items():
            for axis, size in zip(SHARED_AXES.get(key, ""), tensor.shape, strict=False):
                longest[axis] = max(size, longest.get(axis, 0))
    keys = dict.fromkeys(key for scene in scenes for key in scene)
    return {
        key: stack_padded(
            [scene.get(key) for scene in scenes],
            [longest[axis] for axis in SHARED_AXES.get(key, "")],
            # A scene without a bird's-eye picture has no edges either; zeros would be a place.
            torch.nan if key == "bev_bounds" else 0,
        )
        for key in keys
    }


def stack_padded(tensors: list[torch.Tensor | None], leading: list[int], value: float) -> torch.Tensor:
    """Stack tensors of one kind, their leading axes padded to the given lengths; None becomes padding alone."""
    given = [tensor for tensor in tensors if tensor is not None]
    if len(tensors) == 1:
        return given[0][None]
    stacked = torch.full((len(tensors), *leading, *given[0].shape[len(leading) :]), value, dtype=given[0].dtype)
    for row, tensor in zip(stacked, tensors, strict=True):
        if tensor is not None:
            row[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked


def select_proposals(
    scores: torch.Tensor, selection: Literal["best", "cumulative"], temperature: float, threshold: float
) -> torch.Tensor:
    """Indices of the chosen proposals from one question's scores (K + 1,), highest first."""
    best = int(scores.argmax())
    real = scores[:-1]
    if len(real) == 0 or bool(torch.isinf(real).all()):
        return torch.zeros(0, dtype=torch.long)
    if selection == "best":
        return real.argmax()[None]
    if best == len(scores) - 1:
        return torch.zeros(0, dtype=torch.long)
    probabilities = (scores / temperature).softmax(dim=0)[:-1]
    ordered, indices = probabilities.sort(descending=True, stable=True)
    reached = int((ordered.cumsum(dim=0) < threshold).sum()) + 1
    return indices[: min(reached, int((ordered > 0).sum()))]


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
        label_rule (`str`, defaults to `"published"`): which tokens training supervises. `"published"`: the answer
            with its header and end mark, and every chat mark and lone line break of the prompt; `"answer_only"`: the
            answer and its end mark.
        spatial_instruction (`bool`, defaults to `False`): whether `SPATIAL_INSTRUCTION` follows the views.
        object_patch_threshold (`float`, defaults to 0.5): share of a patch's points inside a proposal that makes the
            patch its own.
        bev_size (`int`, defaults to 432): side of bird's-eye pictures in pixels.
        max_position_embeddings (`int`, *optional*): longest row the model reads; longer ones are refused.
    """

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        chat_template: str | None = None,
        patch_size: int = 14,
        geometry_mode: GeometryMode = "published",
        label_rule: LabelRule = "published",
        spatial_instruction: bool = False,
        object_patch_threshold: float = 0.5,
        bev_size: int = 432,
        max_position_embeddings: int | None = None,
    ):
        choose = "choose one of them"
        modes, rules = ("published", "valid_depth"), ("published", "answer_only")
        check(geometry_mode in modes, "geometry_mode", f"one of {modes}", repr(geometry_mode), choose)
        check(label_rule in rules, "label_rule", f"one of {rules}", repr(label_rule), choose)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or CHAT_TEMPLATE)
        self.patch_size = patch_size
        self.geometry_mode = geometry_mode
        self.label_rule = label_rule
        self.spatial_instruction = spatial_instruction
        self.object_patch_threshold = object_patch_threshold
        self.bev_size = bev_size
        self.max_position_embeddings = max_position_embeddings
        self.image_token, self.ground_token, self.coord_token = IMAGE_TOKEN, GROUND_TOKEN, COORD_TOKEN
        self.image_token_id = self.get_token_id(IMAGE_TOKEN)
        self.ground_token_id = self.get_token_id(GROUND_TOKEN)
        self.coord_token_id = self.get_token_id(COORD_TOKEN)
        self.structure_ids = [self.get_token_id(token) for token in ("\n", TURN_START, TURN_END)]
        self.answer_header_length = len(self.tokenizer.encode(ANSWER_HEADER, add_special_tokens=False))
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
        """The image processor is the class of this file, so a checkout loads it without running saved code."""
        image_processor = Ross3DImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        # The library's pipelines pad as the tokenizer does, and answers go on at the ends of rows. The tokenizer has
        # no code of its own: without a word about trust the library would ask on the terminal. Its class stands in its
        # own settings; without a config the library would look for one of the model, and warn.
        config = PreTrainedConfig()
        kwargs = {"padding_side": "left", "trust_remote_code": False, "config": config, **kwargs}
        tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", pretrained_model_name_or_path, **kwargs)
        return [image_processor, tokenizer]

    @property
    def view_size(self) -> int:
        """S: side of a view in pixels."""
        return self.image_processor.size.height

    @property
    def tokens_per_view(self) -> int:
        """Placeholders of a view: h rows of w tokens, each closed by a newline placeholder."""
        grid = get_token_grid_size(self.view_size, self.patch_size)
        return grid * (grid + 1)

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid",
            "proposal_boxes", "proposal_mask", "proposal_patches", "query_coords",
        ]  # fmt: skip

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
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> Ross3DInputs:
        """Make the model's inputs for B scenes; everything a scene has is given bare, or as a list of B items.

        Args:
            images: V pictures (PIL, files, uint8 (H, W, 3) arrays, tensors), or a list of B such lists; or what
                `fit_scene` made of them, which then holds depth, cameras and bird's-eye picture as well.
            text: a question, a list of questions about the scene (one packed row), or a list of B of either. Without
                `images` the questions stand alone, one a row, for scenes the model has encoded before. Without text
                a row is the scene alone.
            depth_maps: V maps (H, W), metres along the camera's z axis, 0 = no reading.
            intrinsics: (3, 3) or (V, 3, 3), pixels of the depth map, top-left pixel centre at (0, 0).
            cam2world: (V, 4, 4), OpenCV axes, metres, z up.
            proposal_boxes: (K, 6), centre xyz and size xyz, metres.
            query_coords: (3,), metres, for `<coord>`, or one (None where a question has no `<coord>`) a question.
            answers: nested as `text`; adds `labels`, `shift_labels`, `loss_weights`. `"<ground>"` is answered by
                proposals.
            target_objects: nested as `text`: proposal indices, `[]` = no target, None = not a grounding question;
                adds `grounding_labels`.
            bev_image: bird's-eye picture, uint8 (Hb, Wb, 3) or PIL; adds `bev_pixel_values`.
            bev_valid: (Hb, Wb) bool, where the picture shows something.
            bev_bounds: (4,), xmin, ymin, xmax, ymax of the picture, metres.
            scene_ids: what errors and warnings call the scenes.
            scene_index: without `images`, which encoded scene each question is about; lists of B lists say it too.

        Returns:
            `Ross3DInputs` with `input_ids`, `attention_mask`, `segment_ids` (B, L), and of the rest what was given.

        Raises:
            ValueError: for input that contradicts itself or looks like another unit, with the way out.
        """
        self.check_call(kwargs, return_tensors)
        check(images is not None or text is not None, "images", "views of a scene", "neither images nor text",
              "pass images=, text= or both")  # fmt: skip
        words = {"text": text, "query_coords": query_coords, "answers": answers, "target_objects": target_objects}
        belongings = {
            "depth_maps": depth_maps, "intrinsics": intrinsics, "cam2world": cam2world,
            "proposal_boxes": proposal_boxes, "bev_image": bev_image, "bev_valid": bev_valid,
            "bev_bounds": bev_bounds,
        }  # fmt: skip
        if images is None:
            data = self.get_questions_alone(words, belongings, scene_ids, scene_index)
        else:
            check(scene_index is None, "scene_index", "None beside images", scene_index, "row i is scene i")
            data = self.get_scenes(images, words, belongings, scene_ids)
        if return_tensors == "np":
            data = {key: value.numpy() for key, value in data.items()}
        return Ross3DInputs(data)

    def check_call(self, kwargs: dict[str, Any], return_tensors: str | None) -> None:
        """The library's own callers pass a few arguments that mean nothing here; others are refused."""
        harmless = {"videos": (None,), "audio": (None,), "add_special_tokens": (False,), "padding": (True, "longest")}
        unknown = [key for key, value in kwargs.items() if value not in harmless.get(key, ())]
        check(not unknown, "Ross3DProcessor", "the arguments of its __call__", unknown, "see its documentation")
        legal = return_tensors in (None, "pt", "np")
        check(legal, "return_tensors", "'pt' or 'np'", repr(return_tensors), "use 'pt'")

    def get_scenes(self, images, words: dict[str, Any], belongings: dict[str, Any], scene_ids) -> dict[str, Any]:
        """Inputs of B scenes, each with none, one or several questions."""
        views, is_batch = split_views(images)
        names = get_scene_names(scene_ids, len(views))
        for name, scene_views in zip(names, views, strict=True):
            check(len(scene_views) > 0, f"images of {name}", "at least one view", "none", "pass the scene's pictures")
        questions = split_questions(words, names, bare=not is_batch or isinstance(words["text"], str))
        requests = split_requests(names, views, questions, belongings)
        rows = self.build_scene_rows(requests, with_targets=words["answers"] is not None)
        # Generation continues a row at its end, so rows of one question, or of none, are padded in front.
        right = words["answers"] is not None or any(len(request.questions) > 1 for request in requests)
        data = self.pad_text(rows, "right" if right else "left")
        data |= stack_scenes([self.get_scene_inputs(request) for request in requests])
        return data | get_question_inputs(requests)

    def get_questions_alone(
        self, words: dict[str, Any], belongings: dict[str, Any], scene_ids, scene_index
    ) -> dict[str, Any]:
        """Inputs of questions about scenes the model has encoded before, one a row; new proposals are legal."""
        remedy = "pass images= as well"
        for key, value in (words | belongings).items():
            if key in ("answers", "target_objects", "bev_image", "bev_valid", "bev_bounds"):
                check(value is None, key, "views beside it", "no images", remedy)
        boxes = belongings["proposal_boxes"]
        check(belongings["depth_maps"] is None or boxes is not None, "depth_maps", "views or new proposals beside it",
              "questions alone", f"{remedy}, or proposal_boxes=")  # fmt: skip
        texts = words["text"]
        is_batch = not isinstance(texts, str) and any(not isinstance(item, str) for item in texts)
        num_scenes = len(texts) if is_batch else len(boxes) if get_ndim(boxes) == 3 else 1
        names = get_scene_names(scene_ids, num_scenes)
        questions = split_questions(words, names if is_batch else names[:1], bare=not is_batch)
        flat = [question for scene in questions for question in scene]
        check(len(flat) > 0, "text", "at least one question", "none", remedy)
        rows = self.build_question_rows(flat)
        data = self.pad_text(rows, "left")
        if scene_index is not None or is_batch:
            counted = [index for index, scene in enumerate(questions) for _ in scene]
            index = torch.as_tensor(counted if scene_index is None else scene_index).long()
            check_shape("scene_index", index, (len(flat),), "pass one number a question.")
            data["scene_index"] = index
        if boxes is not None:
            scenes = split_requests(names, [None] * num_scenes, [[]] * num_scenes, belongings)
            data |= stack_scenes([self.get_proposal_inputs(request) for request in scenes])
        one_a_row = [SceneRequest(question.name, None, [question]) for question in flat]
        return data | get_question_inputs(one_a_row)

    # Rows of tokens

    def tokenize(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Token ids of every different text, in one call of the tokenizer."""
        different = list(dict.fromkeys(texts))
        ids = self.tokenizer(different, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {text: np.asarray(numbers, dtype=np.int64) for text, numbers in zip(different, ids, strict=True)}

    def get_prompt_labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of what is not an answer: the published rule supervises chat marks and lone line breaks anywhere."""
        if self.label_rule == "answer_only":
            return np.full_like(ids, IGNORED_LABEL)
        return np.where(np.isin(ids, self.structure_ids), ids, IGNORED_LABEL)

    def get_answer_labels(self, ids: np.ndarray) -> np.ndarray:
        """Labels of `header answer <|im_end|> \\n`."""
        if self.label_rule == "published":
            return ids
        labels = np.full_like(ids, IGNORED_LABEL)
        labels[self.answer_header_length : -1] = ids[self.answer_header_length : -1]
        return labels

    def build_scene_rows(self, requests: list[SceneRequest], with_targets: bool) -> list[Row]:
        """Tokenise the words of all scenes at once and lay out one row a scene."""
        prompts = [
            [split_prompt(question, self.spatial_instruction, with_targets) for question in request.questions]
            or [Prompt(get_scene_prefix(self.spatial_instruction), "")]
            for request in requests
        ]
        tokens = self.tokenize([text for scene in prompts for prompt in scene for text in vars(prompt).values()])
        rows = []
        for request, scene in zip(requests, prompts, strict=True):
            prefixes = sorted({prompt.prefix for prompt in scene})
            check(len(prefixes) == 1, f"text of {request.name}", "questions that share all that stands before <image>",
                  f"{len(prefixes)} different beginnings", "pass such prompts as scenes of their own")  # fmt: skip
            prefix = self.expand_slot(tokens[prefixes[0]], len(request.views))
            segments = [
                self.get_segment(prompt, tokens, q) for prompt, q in zip(scene, request.questions, strict=False)
            ]
            row = build_row(Segment(prefix, self.get_prompt_labels(prefix)), segments, with_targets, request.name)
            self.check_length(row, len(request.views), request.name)
            rows.append(row)
        return rows

    def build_question_rows(self, questions: list[Question]) -> list[Row]:
        """One row a question, without the scene."""
        for question in questions:
            check(not is_whole_prompt(question.text), f"text of {question.name}",
                  "a plain question, since there are no views", "chat marks or <image>",
                  "pass the plain question, or images= beside the whole prompt")  # fmt: skip
        prompts = [split_prompt(question, self.spatial_instruction, False) for question in questions]
        tokens = self.tokenize([prompt.question for prompt in prompts])
        rows = []
        for prompt, question in zip(prompts, questions, strict=True):
            rows.append(build_row(None, [self.get_segment(prompt, tokens, question)], False, question.name))
            self.check_length(rows[-1], 0, question.name)
        return rows

    def expand_slot(self, ids: np.ndarray, num_views: int) -> np.ndarray:
        """Replace the one scene slot by the placeholders of all views."""
        slot = int(np.flatnonzero(ids == self.image_token_id)[0])
        placeholders = np.full(num_views * self.tokens_per_view, self.image_token_id)
        return np.concatenate([ids[:slot], placeholders, ids[slot + 1 :]])

    def get_segment(self, prompt: Prompt, tokens: dict[str, np.ndarray], question: Question) -> Segment:
        ids = tokens[prompt.question]
        labels = self.get_prompt_labels(ids)
        if not prompt.answer:
            return Segment(ids, labels)
        answer = tokens[prompt.answer]
        return Segment(
            ids=np.concatenate([ids, answer]),
            labels=np.concatenate([labels, self.get_answer_labels(answer)]),
            has_text_answer=question.answer != GROUND_TOKEN,
        )

    def check_length(self, row: Row, num_views: int, name: str) -> None:
        limit, length = self.max_position_embeddings, len(row.input_ids)
        visual = num_views * self.tokens_per_view
        check(limit is None or length <= limit, f"input_ids of {name}",
              f"at most {limit} positions (max_position_embeddings)",
              f"{length}: {num_views} views of {self.tokens_per_view} and {length - visual} of text",
              "use fewer views, or fewer or shorter questions a row")  # fmt: skip

    def pad_text(self, rows: list[Row], side: Literal["left", "right"]) -> dict[str, torch.Tensor]:
        """Rows -> (B, L) tensors."""
        pad = self.tokenizer.pad_token_id
        ragged = len({len(row.input_ids) for row in rows}) > 1
        check(pad is not None or not ragged, "tokenizer.pad_token", "a padding token for rows of different lengths",
              "None", "set tokenizer.pad_token")  # fmt: skip
        data = {
            "input_ids": pad_rows([row.input_ids for row in rows], pad or 0, side),
            "attention_mask": pad_rows([np.ones_like(row.input_ids) for row in rows], 0, side),
            "segment_ids": pad_rows([row.segment_ids for row in rows], PADDING_SEGMENT, side),
        }
        for key, value in (("labels", IGNORED_LABEL), ("shift_labels", IGNORED_LABEL), ("loss_weights", 0.0)):
            if key in rows[0].targets:
                data[key] = pad_rows([row.targets[key] for row in rows], value, side)
        return data

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
        """All that does not depend on boxes and words, of one scene; see `__call__` for the arguments.

        `processor(images=fitted, text=..., proposal_boxes=...)` goes on from it and gives what it would have given.
        """
        request = SceneRequest(
            f"scene {scene_id}", list(images), [], depth_maps, intrinsics, cam2world, None, bev_image, bev_valid,
            bev_bounds,
        )  # fmt: skip
        return self.fit_request(request)

    def make_fitted(self, tensors: dict[str, torch.Tensor]) -> FittedScene:
        """A fitted scene from its tensors, such as `fit_scene` of this processor made and somebody kept."""
        return FittedScene(self.get_fit_settings(), **tensors)

    def get_fit_settings(self) -> dict[str, Any]:
        """Settings that decide what a `FittedScene` holds."""
        return {
            "view_size": self.view_size,
            "patch_size": self.patch_size,
            "geometry_mode": self.geometry_mode,
            "bev_size": self.bev_size,
            "resample": int(self.image_processor.resample),
        }

    def fit_request(self, request: SceneRequest) -> FittedScene:
        """Decode, resize and crop pictures; crop, unproject and pool depth; fit the bird's-eye picture."""
        name, size = request.name, self.view_size
        names = [f"images[{view}] of {name}" for view in range(len(request.views))]
        pictures = [load_picture(view, label) for view, label in zip(request.views, names, strict=True)]
        depth = None
        if request.depth_maps is not None:
            depth = check_depth_maps(request.depth_maps, len(pictures), f"depth_maps of {name}")
        resized = [
            self.get_resized_size(picture, depth, label) for picture, label in zip(pictures, names, strict=True)
        ]
        resample = self.image_processor.resample
        crops = [fit_picture(picture, to, size, resample) for picture, to in zip(pictures, resized, strict=True)]
        fitted = FittedScene(self.get_fit_settings(), torch.from_numpy(np.stack(crops)))
        self.fit_geometry(fitted, request, depth)
        if request.bev_image is not None:
            reference = pictures[0].shape[:2] if depth is None else depth.shape[1:]
            self.fit_bev(fitted, request, reference)
        return fitted

    def get_scene_inputs(self, request: SceneRequest) -> dict[str, torch.Tensor]:
        """Views, geometry, proposals and bird's-eye picture of one scene, without the leading B."""
        fitted = self.check_fitted(request) if isinstance(request.views, FittedScene) else self.fit_request(request)
        inputs = {
            "pixel_values": self.image_processor.normalize_pictures(fitted.pictures),
            "view_mask": torch.ones(len(fitted), dtype=torch.bool),
        }
        inputs |= self.get_proposals_of(fitted, request.proposal_boxes)
        if fitted.patch_coords is not None:
            inputs |= {"patch_coords": fitted.patch_coords, "patch_valid": fitted.patch_valid}
        if fitted.bev_pixels is not None:
            inputs["bev_pixel_values"] = fitted.bev_pixels.permute(2, 0, 1).contiguous().float() / 255
        for key in ("bev_valid", "bev_bounds"):
            if getattr(fitted, key) is not None:
                inputs[key] = getattr(fitted, key)
        return inputs

    def check_fitted(self, request: SceneRequest) -> FittedScene:
        """Refuse a fitted scene of another processor, and what it holds already given once more."""
        fitted, wanted = request.views, self.get_fit_settings()
        check(fitted.settings == wanted, f"images of {request.name}", f"a scene fitted by a processor with {wanted}",
              fitted.settings, "fit it again with this processor's fit_scene")  # fmt: skip
        inside = ("depth_maps", "intrinsics", "cam2world", "bev_image", "bev_valid", "bev_bounds")
        given = [key for key in inside if getattr(request, key) is not None]
        check(not given, f"{', '.join(given)} of {request.name}", "None beside a fitted scene, which holds it",
              "one", "leave it out")  # fmt: skip
        return fitted

    def get_proposals_of(self, fitted: FittedScene, boxes: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Proposals and, where there is depth, the patches they cover."""
        if boxes is None:
            return {}
        inputs = {"proposal_boxes": boxes, "proposal_mask": torch.ones(len(boxes), dtype=torch.bool)}
        if fitted.depth is not None:
            readings = fitted.depth > 0 if self.geometry_mode == "valid_depth" else None
            inputs["proposal_patches"] = assign_patches(
                fitted.unproject(), boxes, self.patch_size, self.object_patch_threshold, readings
            )
        return inputs

    def get_resized_size(self, picture: np.ndarray, depth: torch.Tensor | None, name: str) -> tuple[int, int]:
        """Size before the crop, from the depth map where there is one, so that pictures and depth stay aligned."""
        height, width = picture.shape[:2] if depth is None else depth.shape[1:]
        if depth is not None and self.geometry_mode == "valid_depth":
            stretch = picture.shape[1] / picture.shape[0] * height / width
            check(abs(stretch - 1) < MAX_ASPECT_DIFFERENCE, name, f"the aspect of its {height} x {width} depth map",
                  f"a {picture.shape[0]} x {picture.shape[1]} picture (height x width)",
                  "crop or turn one so that both show the same field of view")  # fmt: skip
        return get_resized_size(height, width, self.view_size, self.geometry_mode, name)

    def fit_geometry(self, fitted: FittedScene, request: SceneRequest, depth: torch.Tensor | None) -> None:
        """Depth and cameras of the pixels that survive resize and crop, each at its place in the full map, and the
        positions pooled from them."""
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
        for key, value in (("intrinsics", request.intrinsics), ("cam2world", request.cam2world)):
            check(value is not None, f"{key} of {name}", "cameras beside depth_maps", "None",
                  "pass intrinsics= and cam2world=, or leave depth_maps out")  # fmt: skip
        fitted.intrinsics = check_intrinsics(request.intrinsics, num_views, height, width, f"intrinsics of {name}")
        fitted.cam2world = check_cam2world(request.cam2world, num_views, f"cam2world of {name}")
        resized = get_resized_size(height, width, self.view_size, self.geometry_mode, f"depth_maps of {name}")
        top, left = ((side - self.view_size) // 2 for side in resized)
        fitted.rows = get_nearest_indices(height, resized[0])[top : top + self.view_size]
        fitted.columns = get_nearest_indices(width, resized[1])[left : left + self.view_size]
        fitted.depth = depth.index_select(1, fitted.rows).index_select(2, fitted.columns)
        valid = fitted.depth > 0
        fitted.patch_coords, fitted.patch_valid = pool_patch_coords(
            fitted.unproject(), valid, self.patch_size, self.geometry_mode
        )
        blank = (~valid.flatten(1).any(dim=1)).nonzero()[:, 0].tolist()
        self.check_blank_views(blank, num_views, name)

    def check_blank_views(self, blank: list[int], num_views: int, name: str) -> None:
        """Views without a reading: all of them are an error, some a warning where they get no position."""
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
            depth = check_depth_maps(request.depth_maps, None, f"depth_maps of {request.name}")
        fitted = FittedScene(self.get_fit_settings(), torch.empty(0))
        self.fit_geometry(fitted, request, depth)
        return self.get_proposals_of(fitted, request.proposal_boxes)

    def fit_bev(self, fitted: FittedScene, request: SceneRequest, reference: tuple[int, int]) -> None:
        """Bird's-eye picture of one scene at `bev_size`.

        Published: brought to height `bev_size` and the aspect of the views (height and width `reference`), whatever
        its own, then cropped. Ours: square pictures alone, resized to `bev_size`, void kept exactly black.
        """
        name, size = f"bev_image of {request.name}", self.bev_size
        picture = load_picture(request.bev_image, name)
        valid = None if request.bev_valid is None else to_tensor(request.bev_valid, f"bev_valid of {request.name}")
        if valid is not None:
            check_shape(f"bev_valid of {request.name}", valid, picture.shape[:2], "pass one value a pixel.")
        if self.geometry_mode == "published":
            resized = get_resized_size(*reference, size, "published", name)
        else:
            height, width = picture.shape[:2]
            check(height == width, name, "a square picture", f"{height} x {width}", "render it with square bounds")
            resized = (size, size)
        picture = fit_picture(picture, resized, size, self.image_processor.resample)
        if valid is not None:
            top, left = ((side - size) // 2 for side in resized)
            valid = resize_nearest(valid.bool(), resized)[top : top + size, left : left + size].contiguous()
            fitted.bev_valid = valid
            if self.geometry_mode == "valid_depth":
                picture = np.where(valid.numpy()[..., None], picture, np.uint8(0))
        fitted.bev_pixels = torch.from_numpy(picture.copy())
        if request.bev_bounds is not None:
            fitted.bev_bounds = check_bev_bounds(request.bev_bounds, f"bev_bounds of {request.name}")

    # The library's interface

    def _get_num_multimodal_tokens(self, image_sizes: list[tuple[int, int]] | None = None, **kwargs) -> MultiModalData:
        """Placeholders of pictures of the given sizes: all views have the same number."""
        count = 0 if image_sizes is None else len(image_sizes)
        return MultiModalData(num_image_tokens=[self.tokens_per_view] * count, num_image_patches=[1] * count)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):
        """The library's, with one `<image>` for all pictures of a message; gives the ids that `text=` gives.

        A picture's block may carry its `depth_map`, `intrinsics` and `cam2world`; anything else of `__call__` goes
        into `processor_kwargs`.
        """
        if self.spatial_instruction and "spatial_instruction" in self._resolve_chat_template(chat_template):
            kwargs.setdefault("spatial_instruction", SPATIAL_INSTRUCTION)
        return super().apply_chat_template(conversation, chat_template, **kwargs)

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs):
        images, videos, audio, others = super()._multimodal_inputs_from_conversations(conversations, *args, **kwargs)
        contents = [[message.get("content") or [] for message in messages] for messages in conversations]
        blocks = [
            [
                block
                for content in scene
                if not isinstance(content, str)
                for block in content
                if block["type"] == "image"
            ]
            for scene in contents
        ]
        for key, argument in (("depth_map", "depth_maps"), ("intrinsics", "intrinsics"), ("cam2world", "cam2world")):
            if any(key in block for scene in blocks for block in scene):
                others[argument] = [[block[key] for block in scene if key in block] or None for scene in blocks]
        return images, videos, audio, others

    def post_process_grounding(
        self,
        scores: torch.Tensor,
        proposal_boxes: torch.Tensor,
        scene_index: torch.Tensor | list[int] | None = None,
        selection: Literal["best", "cumulative"] = "best",
        temperature: float = 0.07,
        threshold: float = 0.4,
    ) -> list[dict[str, Any]]:
        """Boxes of each question from the scores of `model.ground`.

        Args:
            scores (sum of Q, K + 1): last column "no target", -inf at padding.
            proposal_boxes (K, 6) or (B, K, 6): metres.
            scene_index (sum of Q,), *optional*: the scene of each question; needed for several scenes.
            selection (`str`): "best" (one target is known to exist): the highest proposal, also where "no target" is
                higher. "cumulative" (none, one or several): nothing where "no target" is highest, otherwise
                proposals in falling order until their softmax probabilities sum to `threshold`.

        Returns:
            one dict a question: `proposals` (list of indices), `boxes` (n, 6), `scores` (n,), `no_target` (bool).
        """
        modes = ("best", "cumulative")
        check(selection in modes, "selection", f"one of {modes}", repr(selection), "choose one of them")
        boxes = proposal_boxes if proposal_boxes.dim() == 3 else proposal_boxes[None]
        if scene_index is None:
            check(len(boxes) == 1, "scene_index", "the scene of each question", "None for several scenes", "pass it")
            scene_index = [0] * len(scores)
        check_shape("scores", scores, (len(scene_index), boxes.shape[1] + 1), "pass model.ground's own scores.")
        chosen = [select_proposals(row, selection, temperature, threshold) for row in scores.float().cpu()]
        return [
            {
                "proposals": indices.tolist(),
                "boxes": boxes[int(scene)].cpu()[indices],
                "scores": row.float().cpu()[indices],
                "no_target": bool(row.argmax() == len(row) - 1),
            }
            for row, scene, indices in zip(scores, scene_index, chosen, strict=True)
        ]


Ross3DImageProcessor.register_for_auto_class("AutoImageProcessor")
Ross3DProcessor.register_for_auto_class("AutoProcessor")

__all__ = ["FittedScene", "Ross3DImageProcessor", "Ross3DInputs", "Ross3DProcessor"]
