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
"""Distillation of a geometry encoder, as in 3DRS (arXiv 2506.01946): visual states predict the encoder's features.

Shapes: B rows, V views, h x w token grid, N = h w tokens, n tokens that carry the loss, p x q patches of the encoder,
T of its layers, C channels of one layer, D width of the language model.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_ross3d import Ross3DConfig
from .objectives_ross3d import (
    LAST_LAYER,
    Batch,
    Draws,
    Objective,
    Ross3DPredictionHead,
    SceneStates,
    count_nothing,
    encode_views,
    get_grounding_rows,
    get_student_layer,
)


def pool_features(features: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Features (V, p, q, C) -> (V, h, w, C): means over the cells of a coarser grid, which overlap where h or w does
    not divide p or q."""
    return F.adaptive_avg_pool2d(features.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


def compute_distillation_errors(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared distance (...) of the directions of two features (..., C), 2 - 2 cos, in float32.

    The published loss is its mean over the tokens of all views.
    """
    predicted, target = (F.normalize(part.float(), dim=-1) for part in (predicted, target.detach()))
    return (predicted - target).square().sum(dim=-1)


def get_rows(batch: Batch, config: Ross3DConfig) -> torch.Tensor:
    """Which rows (B,) carry the loss: those with a target, of the tasks of `distillation_config`."""
    features = batch.get("geometry_features")
    if features is not None:
        # Rows without a target are padded with NaN.
        rows = features.flatten(1)[:, 0].isfinite()
    else:
        rows = batch["view_mask"].any(dim=1)
    grounds, tasks = get_grounding_rows(batch), config.distillation_config.tasks
    if grounds is None:
        return rows if "text" in tasks else torch.zeros_like(rows)
    for task, of_task in (("text", ~grounds), ("grounding", grounds)):
        rows = rows if task in tasks else rows & ~of_task.to(rows.device)
    return rows


def has_targets(batch: Batch) -> bool:
    """Whether a batch has features from files, or views for the encoder."""
    return "geometry_features" in batch or "geometry_pixel_values" in batch


class DistillationObjective(Objective):
    """Mean over rows of the mean over their views' tokens, and layers, of 2 - 2 cos(predicted, target).

    The target is pooled to the token grid. It comes from files (`geometry_features`) or from the attached encoder
    (`geometry_pixel_values`).
    """

    name = "distill"
    reads = ("geometry_features",)
    head = "distillation_head"

    def is_on(self, config: Ross3DConfig) -> bool:
        return config.distillation_config is not None

    def make_head(self, config: Ross3DConfig) -> nn.Module:
        section = config.distillation_config
        size = section.feature_size * len(section.encoder_layers)
        return Ross3DPredictionHead(config.text_config.hidden_size, section.head_hidden_size, size)

    def list_layers(self, config: Ross3DConfig) -> tuple[int, ...]:
        layer = get_student_layer(config.distillation_config, config)
        return () if layer == LAST_LAYER else (layer,)

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Refuse features of other sizes, and in training views without a target."""
        config = model.config.distillation_config
        features = batch.get("geometry_features")
        sizes = (len(config.encoder_layers), config.feature_size)
        if features is not None and (features.shape[2], features.shape[-1]) != sizes:
            raise ValueError(
                f"geometry_features: expected {sizes[0]} layers of {sizes[1]} channels (distillation_config), got"
                f" {features.shape[2]} of {features.shape[-1]}; make them again with `python -m"
                " ross3d.training.geometry_features CONFIG.yaml`."
            )
        if model.training and "pixel_values" in batch and not has_targets(batch):
            raise ValueError(
                "geometry_features: expected a target for distill_loss in training, features from files or"
                " geometry_pixel_values for the encoder, got neither; set processor.geometry_image_size ="
                f" {config.encoder_image_size} and attach the encoder, or build a model without distillation_config."
            )

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        return has_targets(batch)

    def can_run(self, model: nn.Module, states: SceneStates) -> bool:
        return states.states is not None

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        return get_rows(batch, config).long() if has_targets(batch) else count_nothing(batch)

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        head, config = getattr(model, self.head), model.config.distillation_config
        student = states.get_layer(get_student_layer(config, model.config))
        rows = get_rows(batch, model.config) if has_targets(batch) else student.new_zeros(len(student)).bool()
        rows = rows.to(student.device)
        # CODEPATH: models that also rebuild masked views; 3DRS masks none.
        views = batch["view_mask"] if config.masked_views == "include" else states.visible
        used = rows[:, None] & views.to(student.device)
        places = used.nonzero(as_tuple=True)
        if not len(places[0]):
            return head(student[:1, :1, :1])[:0].float().sum()
        if "geometry_features" in batch:
            targets = batch["geometry_features"].to(student.device)[places].flatten(2, 3)  # (n views, T, N, C)
        else:
            grid = (model.model.views.layout.num_rows, model.model.views.layout.num_columns)
            encoded, found = encode_views(model, states, batch, rows)
            targets = stack_targets(found.patches, grid).flatten(3, 4).to(student.device)
            targets = targets[used[encoded.to(used.device)]]
        predicted = head(student[places]).unflatten(-1, (len(config.encoder_layers), config.feature_size))
        errors = compute_distillation_errors(predicted, targets.transpose(1, 2)).mean(dim=(1, 2))
        return (errors / used.sum(dim=1)[places[0]]).sum()


def stack_targets(patches: tuple[torch.Tensor, ...], grid: tuple[int, int]) -> torch.Tensor:
    """Features (B, V, p, q, C) of T layers -> (B, V, T, h, w, C), pooled to the token grid `grid`."""
    pooled = [pool_features(layer.flatten(0, 1), grid).unflatten(0, layer.shape[:2]) for layer in patches]
    return torch.stack(pooled, dim=2)


__all__ = [
    "DistillationObjective",
    "compute_distillation_errors",
    "pool_features",
    "stack_targets",
]
