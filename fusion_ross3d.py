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
"""Features of a geometry encoder: what they are, and the encoder that a model is given.

Shapes: B scenes, V views, p x q patches of a view for the encoder, C channels of one of its layers, H x W pixels of
its pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_outputs import ModelOutput

from .configuration_ross3d import Ross3DConfig, Ross3DDistillationConfig, Ross3DVGGTConfig
from .inputs_ross3d import check_inputs
from .vggt_ross3d import Ross3DVGGT


# Precision of the weights for each `encoder_dtype`.
WEIGHT_DTYPES = {
    "float32": torch.float32,
    "autocast_bfloat16": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass
class GeometryFeatures(ModelOutput):
    """What a geometry encoder says about the views of a scene; zeros at padding views.

    Attributes:
        patches (tuple of `torch.Tensor` of shape `(B, V, p, q, C)`): features of the patches, one for each layer that
            was asked for, in that order.
        camera (tuple of `torch.Tensor` of shape `(B, V, C)`): features of the camera token, for the same layers.
        extent (tuple of four `float`): top, left, bottom and right of the part of the model's views that the patches
            cover, in heights and widths of a view: (0, 0, 1, 1), the same field of view.
        cam2world (`torch.Tensor` of shape `(B, V, 4, 4)`, *optional*): OpenCV axes; the world is the camera of the
            first view. Present where the encoder has a camera head.
        intrinsics (`torch.Tensor` of shape `(B, V, 3, 3)`, *optional*): pixels of the encoder's pictures.
        depth_maps (`torch.Tensor` of shape `(B, V, H, W)`, *optional*): along the camera's z axis.
        depth_confidence (`torch.Tensor` of shape `(B, V, H, W)`, *optional*): from 1 on; higher is surer.
        scale_source (`str`): what the unit of translations and depth rests on: `"arbitrary"`, a unit of the encoder's
            own choice for every scene, not metres.
    """

    patches: tuple[torch.Tensor, ...] | None = None
    camera: tuple[torch.Tensor, ...] | None = None
    extent: tuple[float, float, float, float] | None = None
    cam2world: torch.Tensor | None = None
    intrinsics: torch.Tensor | None = None
    depth_maps: torch.Tensor | None = None
    depth_confidence: torch.Tensor | None = None
    scale_source: str | None = None


def check_encoder(encoder: Ross3DVGGTConfig, config: Ross3DDistillationConfig) -> None:
    """Refuse an encoder whose features are not those that a model was made to predict.

    Raises:
        ValueError: names the setting of `distillation_config`.
    """
    depth, width = encoder.num_hidden_layers, 2 * encoder.hidden_size
    if config.feature_size != width:
        raise ValueError(
            f"distillation_config.feature_size: expected {width}, twice the hidden_size of the geometry encoder, got"
            f" {config.feature_size}; name the encoder that the model was made for, or change the setting of a new"
            " model."
        )
    wrong = [layer for layer in config.encoder_layers if not -depth <= layer < depth]
    if wrong or len({layer % depth for layer in config.encoder_layers}) < len(config.encoder_layers):
        raise ValueError(
            f"distillation_config.encoder_layers: expected different layers of the geometry encoder, 0 to {depth - 1}"
            f" or -1 to {-depth}, got {list(config.encoder_layers)}; correct them, or name another encoder."
        )
    if config.encoder_image_size % encoder.patch_size:
        raise ValueError(
            "distillation_config.encoder_image_size: expected a multiple of the geometry encoder's patch_size"
            f" {encoder.patch_size}, got {config.encoder_image_size}; correct it."
        )


def check_encoder_heads(encoder: Ross3DVGGTConfig, config: Ross3DConfig) -> None:
    """Refuse an encoder without a head whose output a model predicts.

    Raises:
        ValueError: names the section of the config.
    """
    missing = [name for name in config.list_predictions("encoder") if name not in encoder.heads]
    if missing:
        raise ValueError(
            f"{missing[0]}_config.source: expected a geometry encoder with a {missing[0]} head for 'encoder', got one"
            f" with the heads {list(encoder.heads)}; name another encoder, load all of its heads, or set 'scene'."
        )


@torch.no_grad()
def run_encoder(
    encoder: Ross3DVGGT,
    pictures: torch.Tensor,
    view_mask: torch.Tensor | None,
    layers: Sequence[int],
    heads: Sequence[str],
    dtype: str,
) -> GeometryFeatures:
    """Encode pictures (B, V, 3, H, W), uint8 or floats in [0, 1], without gradients.

    Args:
        dtype (`str`): one of `WEIGHT_DTYPES`. With `autocast_bfloat16` the pictures are rounded to bfloat16 before
            they are normalised, as the published extraction does.
    """
    pictures = pictures.to(encoder.device)
    mixes = dtype == "autocast_bfloat16"
    scale = 255.0 if pictures.dtype == torch.uint8 else 1.0
    pictures = (pictures.float() / scale).to(torch.bfloat16 if mixes else WEIGHT_DTYPES[dtype])
    if view_mask is not None:
        view_mask = view_mask.to(encoder.device)
    # Also turns off what surrounds the call, such as the Trainer's mixed precision.
    kind = "cpu" if encoder.device.type == "meta" else encoder.device.type
    with torch.autocast(kind, dtype=torch.bfloat16, enabled=mixes):
        output = encoder(pictures, view_mask, layers=layers, heads=heads)
    start, patch = 1 + encoder.config.num_register_tokens, encoder.config.patch_size
    grid = tuple(side // patch for side in pictures.shape[3:])
    return GeometryFeatures(
        patches=tuple(layer[:, :, start:].unflatten(2, grid) for layer in output.features or ()),
        camera=tuple(layer[:, :, 0] for layer in output.features or ()),
        extent=(0.0, 0.0, 1.0, 1.0),
        scale_source="arbitrary",
        cam2world=None if output.world2cam is None else invert_cameras(output.world2cam),
        intrinsics=output.intrinsics,
        depth_maps=output.depth_maps,
        depth_confidence=output.depth_confidence,
    )


def invert_cameras(world2cam: torch.Tensor) -> torch.Tensor:
    """Rigid transforms (..., 4, 4) -> their inverses; zeros at padding views stay zeros."""
    rotation, translation = world2cam[..., :3, :3].mT, world2cam[..., :3, 3:]
    inverse = torch.zeros_like(world2cam)
    inverse[..., :3, :3], inverse[..., :3, 3:] = rotation, -rotation @ translation
    inverse[..., 3, 3] = world2cam[..., 3, 3]
    return inverse


class Ross3DGeometryMixin:
    """The geometry encoder that a model is given for training. Its weights are never saved with the model's."""

    # In a tuple, so that it is not registered as a sub-module.
    _geometry_encoder = ()

    def attach_geometry_encoder(self, encoder: "Ross3DVGGT | str | Path") -> None:
        """Give the model the frozen encoder whose features it learns to predict.

        Args:
            encoder ([`Ross3DVGGT`], `str` or `Path`): an encoder, or what `Ross3DVGGT.from_pretrained` reads: a folder
                (a checkpoint's `geometry_encoder/`), a published file or a Hub id such as `facebook/VGGT-1B`. Its
                weights are cast as `distillation_config.encoder_dtype` says.

        Raises:
            ValueError: for a model without `distillation_config`, and an encoder that does not fit it.
        """
        config = self.config.distillation_config
        if config is None:
            raise ValueError(
                "attach_geometry_encoder: expected a model with distillation_config, got None; leave the encoder out."
            )
        if isinstance(encoder, str | Path):
            encoder = Ross3DVGGT.from_pretrained(encoder)
        check_encoder(encoder.config, config)
        check_encoder_heads(encoder.config, self.config)
        encoder = encoder.to(WEIGHT_DTYPES[config.encoder_dtype])
        self._geometry_encoder = (encoder.requires_grad_(False).eval(),)

    def get_geometry_encoder(self) -> Ross3DVGGT:
        """The attached encoder, on this model's device.

        Raises:
            ValueError: when none is attached.
        """
        if not self._geometry_encoder:
            raise ValueError(
                "geometry_encoder: expected an attached encoder to compute features of views, got none; call"
                " model.attach_geometry_encoder(DIR/'geometry_encoder'), name it in the run file (geometry_encoder:"
                " DIR), or give features from files (data.geometry_features)."
            )
        encoder = self._geometry_encoder[0]
        # Not by the weight's name: that would gather it from all processes under ZeRO-3.
        device = next(self.lm_head.parameters()).device
        return encoder.to(device) if device.type != "meta" else encoder

    def encode_geometry(
        self,
        geometry_pixel_values: torch.Tensor | None = None,
        view_mask: torch.Tensor | None = None,
        layers: Sequence[int] | None = None,
        heads: Sequence[str] | None = None,
        **inputs: Any,
    ) -> GeometryFeatures:
        """What the geometry encoder says about the views of B scenes, without gradients.

        Args:
            geometry_pixel_values (`torch.Tensor` of shape `(B, V, 3, H, W)`): views for the encoder, uint8, or floats
                in [0, 1]; the processor returns them where its `geometry_image_size` is set.
            view_mask (`torch.BoolTensor` of shape `(B, V)`, *optional*): real views.
            layers (sequence of `int`, *optional*): by default `distillation_config.encoder_layers`.
            heads (sequence of `str`, *optional*): the encoder's heads that run; by default all that it has.
            inputs: further outputs of the processor, which are not read.

        Returns:
            see `GeometryFeatures`.

        Raises:
            ValueError: without an encoder or without pictures for it.
        """
        encoder, config = self.get_geometry_encoder(), self.config.distillation_config
        if geometry_pixel_values is None:
            raise ValueError(
                "geometry_pixel_values: expected the views for the geometry encoder, got None; set"
                f" processor.geometry_image_size = {config.encoder_image_size} and processor.geometry_patch_size ="
                f" {encoder.config.patch_size}, and pass the processor's whole output."
            )
        check_inputs({"geometry_pixel_values": geometry_pixel_values, "view_mask": view_mask, **inputs})
        layers = config.encoder_layers if layers is None else layers
        heads = encoder.config.heads if heads is None else heads
        return run_encoder(encoder, geometry_pixel_values, view_mask, layers, heads, config.encoder_dtype)


__all__ = ["GeometryFeatures", "Ross3DGeometryMixin", "check_encoder", "check_encoder_heads", "run_encoder"]
