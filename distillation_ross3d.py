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

Shapes: V views, h x w token grid, N = h w tokens, p x q patches of the encoder, D width of the language model,
C channels of the encoder's features.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Ross3DDistillationHead(nn.Module):
    """Projection of states to features: Linear, GELU, Linear (D -> 2 D -> C in the published model)."""

    def __init__(self, state_size: int, hidden_size: int, feature_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(state_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, feature_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(states)))


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


__all__ = ["Ross3DDistillationHead", "compute_distillation_errors", "pool_features"]
