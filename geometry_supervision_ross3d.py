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
"""Geometry as supervision: visual states predict the camera of their view and the depth at their token.

Targets come from the scene's own cameras and depth maps, or from the attached geometry encoder. A model that reads
positions (`position_embedding="sin3d"`) is given these depths as inputs; without, the pictures have to tell them.

Shapes: B rows, V views, N = h w tokens of a view, n items that carry the loss, D width of the language model, H x W
pixels of the encoder's pictures.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ross3d import Ross3DConfig, Ross3DPredictionConfig
from .inputs_ross3d import read_float32
from .objectives_ross3d import (
    LAST_LAYER,
    Batch,
    Draws,
    Objective,
    Ross3DPredictionHead,
    SceneStates,
    count_nothing,
    encode_views,
    get_masked_views,
    get_student_layer,
)
from .reconstruction_ross3d import get_unseen_views, get_visible_views
from .vggt_ross3d import get_quaternions


# Weights of translation, quaternion and fields of view, and the size of the three together.
CAMERA_WEIGHTS = (1.0, 1.0, 0.5)
CAMERA_SIZES = (3, 4, 2)
# Metres. Published positions of cells without a reading lie on the camera, nearer than any reading.
MIN_DEPTH = 0.1


# Cameras


def encode_relative_cameras(
    cam2world: torch.Tensor, reference: torch.Tensor, fields_of_view: torch.Tensor
) -> torch.Tensor:
    """Cameras in the encoding of VGGT (`vggt_ross3d.decode_cameras`), the world being the reference camera.

    Args:
        cam2world (..., 4, 4): rigid, OpenCV axes; metres, or another unit.
        reference (..., 4, 4): the camera that is the world.
        fields_of_view (..., 2): vertical and horizontal, radians.

    Returns:
        (..., 9) float32: translation and quaternion x, y, z, w of world2cam, fields of view.
    """
    # Not by matrix products, which autocast rounds.
    to_camera = cam2world[..., :3, :3].mT[..., None]
    rotations = (to_camera * reference[..., None, :3, :3]).sum(dim=-2)
    offsets = reference[..., :3, 3] - cam2world[..., :3, 3]
    translations = (to_camera[..., 0] * offsets[..., None, :]).sum(dim=-1)
    return torch.cat([translations, get_quaternions(rotations), fields_of_view], dim=-1)


def get_fields_of_view(intrinsics: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Vertical and horizontal field of view (..., 2), radians, of intrinsics (..., 3, 3) of pictures H x W, pixels."""
    focal = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], dim=-1)
    return 2 * torch.atan(focal.new_tensor(size) / (2 * focal))


def compute_camera_errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Distance (...) of two cameras in VGGT's encoding (..., 9), in float32.

    The mean absolute differences of translation, quaternion and fields of view, with weights 1, 1 and 0.5: the loss of
    VGGT's published training (the paper, arXiv 2503.11651, names the Huber loss). Here both quaternions of a rotation
    are right.
    """
    predicted, target = predicted.float(), target.float()
    distances = (predicted - target).abs().split(CAMERA_SIZES, dim=-1)
    opposite = (predicted + target).abs().split(CAMERA_SIZES, dim=-1)[1]
    translation, turn, field = (part.mean(dim=-1) for part in distances)
    turn = torch.minimum(turn, opposite.mean(dim=-1))
    return sum(weight * part for weight, part in zip(CAMERA_WEIGHTS, (translation, turn, field), strict=True))


def get_depths(coords: torch.Tensor, cam2world: torch.Tensor) -> torch.Tensor:
    """Depth (B, V, N) along their view's z axis of points (B, V, h, w, 3), seen by cameras (B, V, 4, 4)."""
    offsets = coords.flatten(2, 3) - cam2world[:, :, None, :3, 3]
    return (offsets * cam2world[:, :, None, :3, 2]).sum(dim=-1)


# Objectives


def spread_rows(values: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Values of the True rows (B,) -> (B, ...), zeros elsewhere."""
    spread = values.new_zeros(len(rows), *values.shape[1:])
    spread[rows] = values
    return spread


class PredictionObjective(Objective):
    """Base class of both: their section of the config, the source of targets, and the views that carry the loss.

    A row with a target counts once: its items are averaged first, then the rows.
    """

    def get_section(self, config: Ross3DConfig) -> Ross3DPredictionConfig | None:
        return getattr(config, f"{self.name}_config")

    def is_on(self, config: Ross3DConfig) -> bool:
        return self.get_section(config) is not None

    def list_layers(self, config: Ross3DConfig) -> tuple[int, ...]:
        layer = get_student_layer(self.get_section(config), config)
        return () if layer == LAST_LAYER else (layer,)

    def list_targets(self, config: Ross3DConfig) -> tuple[str, ...]:
        """The tensors of a batch that targets are made of."""
        return self.reads if self.get_section(config).source == "scene" else ("geometry_pixel_values",)

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Refuse cameras without what belongs to them, and in training views whose targets were left out."""
        if self.get_section(model.config).source == "scene":
            super().check_batch(model, batch)
            if model.training and "patch_coords" in batch and self.reads[0] not in batch:
                raise ValueError(
                    f"{self.reads[0]}: expected the cameras of views with depth for {self.loss_name} in training, got"
                    f" none; set processor.return_cameras = True, or build a model without {self.name}_config."
                )
        elif model.training and "pixel_values" in batch and "geometry_pixel_values" not in batch:
            size = model.config.distillation_config.encoder_image_size
            raise ValueError(
                f"geometry_pixel_values: expected views for the geometry encoder for {self.loss_name} in training, got"
                f" none; set processor.geometry_image_size = {size} and attach the encoder, or build a model with"
                f" {self.name}_config.source = 'scene'."
            )

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        return "view_mask" in batch and all(name in batch for name in self.list_targets(config))

    def can_run(self, model: nn.Module, states: SceneStates) -> bool:
        return states.states is not None

    def get_items(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        """Which views (B, V), or tokens (B, V, N), of a batch with targets carry the loss."""
        # CODEPATH: models that also rebuild masked views.
        if self.get_section(config).masked_views == "include":
            views = batch["view_mask"]
        else:
            views = get_visible_views(batch["view_mask"], get_unseen_views(get_masked_views(batch, config), config))
        if self.get_section(config).source == "scene":
            # Rows without cameras are padded with NaN.
            views = views & read_float32("cam2world", batch["cam2world"])[..., 3, 3].isfinite()
        return views

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        if not self.has_target(SceneStates(None, None), batch, config):
            return count_nothing(batch)
        return self.get_items(batch, config).flatten(1).any(dim=1).long()

    def find_items(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> torch.Tensor | None:
        """`get_items` on the states' device; None where there are none."""
        if not self.has_target(states, batch, config):
            return None
        items = self.get_items(batch, config).to(states.states.device)
        return items if bool(items.any()) else None


class CameraObjective(PredictionObjective):
    """Mean over rows of the mean over their views of `compute_camera_errors`.

    The mean state of a view and that of the first view that carries the loss predict the view's camera relative to the
    first. Translations are in metres; the encoder's are in its own unit.
    """

    name = "camera"
    reads = ("cam2world", "fields_of_view")
    head = "camera_head"

    def make_head(self, config: Ross3DConfig) -> nn.Module:
        width = 2 * config.text_config.hidden_size
        return Ross3DPredictionHead(width, config.camera_config.head_hidden_size, sum(CAMERA_SIZES))

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        head, config = getattr(model, self.head), model.config
        pooled = states.get_layer(get_student_layer(config.camera_config, config)).mean(dim=2)
        views = self.find_items(states, batch, config)
        if views is None:
            return head(torch.cat([pooled, pooled], dim=-1)[:1, :1])[:0].float().sum()
        rows = torch.arange(len(views), device=views.device)
        first = views.int().argmax(dim=1)
        states_of_first = pooled[rows, first][:, None].expand_as(pooled)
        places = views.nonzero(as_tuple=True)
        predicted = head(torch.cat([pooled, states_of_first], dim=-1)[places])
        cam2world, fields = (part.to(views.device) for part in self.get_cameras(model, states, batch))
        targets = encode_relative_cameras(cam2world, cam2world[rows, first][:, None], fields)[places]
        return (compute_camera_errors(predicted, targets) / views.sum(dim=1)[places[0]]).sum()

    def get_cameras(self, model: nn.Module, states: SceneStates, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """cam2world (B, V, 4, 4) and fields of view (B, V, 2), radians."""
        if model.config.camera_config.source == "scene":
            return tuple(read_float32(name, batch[name]) for name in self.reads)
        rows, found = encode_views(model, states, batch, batch["view_mask"].any(dim=1))
        fields = get_fields_of_view(found.intrinsics, batch["geometry_pixel_values"].shape[3:])
        return spread_rows(found.cam2world, rows), spread_rows(fields, rows)


class DepthObjective(PredictionObjective):
    """Mean over rows of the mean over their tokens of |log of the predicted depth - log of the depth|.

    The state of a token predicts the logarithm of the depth of its cell, along the camera's z axis: errors are then
    shares of the depth, and a scale is a shift. The scene's depth is in metres and its scale is learned. The encoder's
    unit is its own in every scene: there the shift of a row that makes its loss least is free.
    """

    name = "depth"
    reads = ("cam2world", "patch_coords")
    head = "depth_head"

    def make_head(self, config: Ross3DConfig) -> nn.Module:
        return Ross3DPredictionHead(config.text_config.hidden_size, config.depth_config.head_hidden_size, 1)

    def get_items(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        views = super().get_items(batch, config)
        # CODEPATH: models trained on scenes without depth maps take depth from the encoder, others from the maps.
        if config.depth_config.source == "encoder":
            return views[..., None]
        valid = self.get_scene_depths(batch) > MIN_DEPTH
        if "patch_valid" in batch:
            valid = valid & batch["patch_valid"].flatten(2)
        return valid & views[..., None]

    def get_scene_depths(self, batch: Batch) -> torch.Tensor:
        """Depth (B, V, N) of the tokens' positions in their cameras, metres."""
        cam2world, coords = (read_float32(name, batch[name]) for name in self.reads)
        return get_depths(coords, cam2world)

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        head, config = getattr(model, self.head), model.config
        student = states.get_layer(get_student_layer(config.depth_config, config))
        is_metric = config.depth_config.source == "scene"
        tokens, places = self.find_items(states, batch, config), ()
        if tokens is not None:
            depths = self.get_scene_depths(batch) if is_metric else self.encode_depths(model, states, batch)
            targets = depths.to(student.device).log()
            # An encoder of random weights may say zero or infinity.
            tokens = tokens & targets.isfinite()
            places = tokens.nonzero(as_tuple=True)
        if tokens is None or not len(places[0]):
            return head(student[:1, :1, :1])[:0].float().sum()
        errors = head(student[places])[:, 0].float() - targets[places]
        if not is_metric:
            errors = errors - get_medians(errors.detach(), tokens)[places[0]]
        return (errors.abs() / tokens.flatten(1).sum(dim=1)[places[0]]).sum()

    def encode_depths(self, model: nn.Module, states: SceneStates, batch: Batch) -> torch.Tensor:
        """Mean depth (B, V, N) over the tokens' cells, from the attached encoder, in its unit."""
        rows, found = encode_views(model, states, batch, batch["view_mask"].any(dim=1))
        layout = model.model.views.layout
        cells = F.adaptive_avg_pool2d(found.depth_maps.float(), (layout.num_rows, layout.num_columns))
        return spread_rows(cells.flatten(2), rows)


def get_medians(values: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Median (B,) of each row's values, given in order (n,) for the True places (B, V, N); NaN for rows without."""
    spread = values.new_full(items.shape, torch.nan).masked_scatter(items, values)
    # Sorting, unlike torch.median on a GPU, is deterministic.
    return spread.flatten(1).nanquantile(0.5, dim=1)


__all__ = [
    "CameraObjective",
    "DepthObjective",
    "compute_camera_errors",
    "encode_relative_cameras",
    "get_depths",
    "get_fields_of_view",
]
