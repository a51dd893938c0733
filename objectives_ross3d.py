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
"""Losses on the model's output: the base class of objectives, the states they read, and the text objective.

Every loss of the model is an `Objective`: it counts the items that each row of a batch adds and computes the sum over
these items. The model loops over its objectives (`OBJECTIVES` in `modeling_ross3d.py`); the Trainer calls the same
`count`. An objective holds no weights: it looks up its head on the model when it is called, since wrappers such as
PEFT replace modules, and calls the head's `forward`, where sharded weights are gathered.

Shapes: B rows, L positions, V views, N tokens of a view, P patches of a view, D width, K proposals, Q questions.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .configuration_ross3d import Ross3DConfig
from .inputs_ross3d import HINT, read_float32


Batch = Mapping[str, torch.Tensor]
# Layers are counted as in the library's `hidden_states`: 0 the embeddings, i the output of layer i, negative numbers
# from the last, which is the output after the final norm.
LAST_LAYER = -1


@dataclass
class SceneStates:
    """The model's output states for a batch.

    Attributes:
        states (`torch.Tensor` of shape `(B, V, N, D)`, *optional*): output states at the visual tokens, newlines left
            out; None for rows without views.
        visible (`torch.BoolTensor` of shape `(B, V)`, *optional*): real views that were not masked; all real views of
            a row that masks all of them.
        positions (`torch.Tensor` of shape `(B, V, N, D)`, *optional*): 3D position embedding of each token, zero
            where it has none.
        last_hidden_state (`torch.Tensor` of shape `(B, L, D)`, *optional*): output states at all positions.
        grounding_scores (`torch.Tensor` of shape `(B, Q, K + 1)`, *optional*): of the grounding head; meaningless for
            questions without `<ground>`.
        has_ground (`torch.BoolTensor` of shape `(B, Q)`, *optional*): which questions have a `<ground>`.
        layers (`dict`): states (B, V, N, D) at the visual tokens of further layers that objectives read
            (`Objective.list_layers`), by layer.
        encoded (`tuple`, *optional*): what `encode_views` found.
    """

    states: torch.Tensor | None
    visible: torch.Tensor | None
    positions: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    grounding_scores: torch.Tensor | None = None
    has_ground: torch.Tensor | None = None
    layers: dict[int, torch.Tensor] = field(default_factory=dict)
    encoded: tuple[torch.Tensor, Any] | None = None

    def get_layer(self, layer: int) -> torch.Tensor:
        """States (B, V, N, D) of a layer, -1 being the output after the final norm."""
        return self.states if layer == LAST_LAYER else self.layers[layer]

    def select(self, rows: torch.Tensor | slice, views: torch.Tensor | None = None) -> "SceneStates":
        """Visual states of some rows; with `views` (n,), of one view of each row, as a scene of that view alone."""

        def choose(tensor: torch.Tensor | None) -> torch.Tensor | None:
            if tensor is None:
                return None
            return tensor[rows] if views is None else tensor[rows, views][:, None]

        return SceneStates(choose(self.states), choose(self.visible), choose(self.positions))


# Seed numbers of the original purposes, fixed so that seeds reproduce; other purposes are hashed by name.
PURPOSES = {
    "view.posterior_noise": 0,
    "view.timesteps": 1,
    "view.noise": 2,
    "bev.posterior_noise": 3,
    "bev.timesteps": 4,
    "bev.noise": 5,
}
Draw = Callable[[tuple[int, ...], torch.Generator | None], torch.Tensor]


def get_seed(row_seed: int, purpose: str) -> int:
    """The seed of one row's draws for one purpose."""
    if purpose in PURPOSES:
        return (row_seed * 8 + PURPOSES[purpose]) % 2**63
    digest = hashlib.sha256(f"{row_seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


def draw_rows(
    row_seed: torch.Tensor | None, purpose: str, shapes: list[tuple[int, ...]], draw: Draw
) -> list[torch.Tensor]:
    """One draw per row, from the row's own generator seeded by (row_seed, purpose), or from torch's global one.

    Draws are made on CPU, so they do not depend on device, batch composition or process count.
    """
    if row_seed is None:
        return [draw(shape, None) for shape in shapes]
    generators = [torch.Generator().manual_seed(get_seed(seed, purpose)) for seed in row_seed.tolist()]
    return [draw(shape, generator) for shape, generator in zip(shapes, generators, strict=True)]


def draw_normal(shape: tuple[int, ...], generator: torch.Generator | None) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


class Draws:
    """The random numbers of a step, by the name of their purpose, such as "view.noise".

    Args:
        row_seed (`torch.LongTensor` of shape `(B,)`, *optional*): absent, torch's global generator draws.
        given (`dict`): numbers given by the caller, by purpose.
    """

    def __init__(self, row_seed: torch.Tensor | None = None, given: Mapping[str, torch.Tensor] | None = None):
        # Numbers are drawn on the host: copy the seeds there once.
        self.row_seed = None if row_seed is None else row_seed.cpu()
        self.given = {name: value for name, value in (given or {}).items() if value is not None}

    def take(
        self, purpose: str, shapes: list[tuple[int, ...]], draw: Draw, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The numbers of a purpose, joined along the first axis, on the host unless they are given.

        Args:
            purpose (`str`): the objective's name and what the numbers are for.
            shapes (list of `tuple`): one per row.
            draw (callable): (shape, generator) -> numbers.
            rows (`torch.LongTensor`, *optional*): the rows that the shapes belong to; all of the batch by default.
        """
        if purpose in self.given:
            return self.given[purpose]
        seeds = self.row_seed
        if seeds is not None and rows is not None:
            seeds = seeds[rows.to(seeds.device)]
        return torch.cat(draw_rows(seeds, purpose, shapes, draw))


class Ross3DPredictionHead(nn.Module):
    """Prediction of a target's numbers from states: Linear, GELU, Linear."""

    def __init__(self, state_size: int, hidden_size: int, num_outputs: int):
        super().__init__()
        self.linear_1 = nn.Linear(state_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, num_outputs)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.gelu(self.linear_1(states)))


class Objective(ABC):
    """One loss of the model.

    Attributes:
        name (`str`): "view" is logged as `view_loss`, is weighted by `config.view_loss_weight` and has a column in
            `loss_counts` and `num_items_in_batch`.
        reads (tuple of `str`): tensors of a batch (`inputs_ross3d.INPUTS`): first the target, then those that it
            needs; a batch with the target and without one of these is refused.
        head (`str`, *optional*): the model's attribute that holds the head.
    """

    name: str
    reads: tuple[str, ...]
    head: str | None = None

    @property
    def loss_name(self) -> str:
        return f"{self.name}_loss"

    def is_on(self, config: Ross3DConfig) -> bool:
        """Whether models with this config are trained with this objective."""
        return True

    def make_head(self, config: Ross3DConfig) -> nn.Module | None:
        """A new head, for objectives that have one of their own."""
        return None

    def list_layers(self, config: Ross3DConfig) -> tuple[int, ...]:
        """Layers of the language model whose visual states are read in addition to the output."""
        return ()

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Refuse a batch that has the target and lacks a tensor that it needs.

        Raises:
            ValueError: names the tensor that is missing.
        """
        target, *others = self.reads
        missing = [name for name in others if target in batch and name not in batch]
        if missing:
            raise ValueError(f"{target}: expected {missing[0]} with this target, to compare the two, got none; {HINT}")

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        """Whether any row has a target. Called in evaluation only: in training all objectives run in every step."""
        return self.reads[0] in batch

    def can_run(self, model: nn.Module, states: SceneStates) -> bool:
        """Whether the model has the head and the states that the objective needs."""
        return self.head is None or getattr(model, self.head) is not None

    @abstractmethod
    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        """How many items each row adds to the mean (B,), on the batch's device, without waiting for it.

        Whole numbers up to rounding, where they are sums of weights.
        """

    @abstractmethod
    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        """The sum over all items that `count` counts, in float32.

        Without items the sum is zero, computed through the same modules: other processes that have items wait for the
        weights and gradients of this one.
        """


def get_grounding_rows(batch: Batch) -> torch.Tensor | None:
    """Which rows (B,) have grounding questions; None for a batch without any."""
    labels = batch.get("grounding_labels")
    return None if labels is None else (labels > 0).flatten(1).any(dim=1)


def get_allowed_rows(batch: Batch, config: Ross3DConfig) -> torch.Tensor | None:
    """Which rows (B,) may carry reconstruction losses; None where all may."""
    grounds = get_grounding_rows(batch)
    # CODEPATH: published checkpoints rebuild nothing on grounding rows; models trained on mixed rows do.
    return None if grounds is None or config.reconstruct_on_grounding_rows else ~grounds


def get_masked_views(batch: Batch, config: Ross3DConfig) -> torch.Tensor | None:
    """Which views (B, V) are to be rebuilt: real masked ones, on rows that may carry the loss."""
    masked, view_mask = batch.get("bool_masked_views"), batch.get("view_mask")
    if masked is None:
        return None
    if view_mask is not None:
        masked = masked & view_mask
    allowed = get_allowed_rows(batch, config)
    return masked if allowed is None else masked & allowed[:, None]


def count_nothing(batch: Batch) -> torch.Tensor:
    """Zeros (B,) on the batch's device; an empty tensor for an empty batch."""
    first = next(iter(batch.values()), torch.zeros(0))
    return torch.zeros(len(first), dtype=torch.long, device=first.device)


def count_items(objective: Objective, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
    """The number of items () of all rows of a batch, float32, rounded to a whole number."""
    return objective.count(batch, config).sum().float().round()


def get_text_targets(batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What each position predicts (B, L) and its weight (B, L) float32; the weights of an answer sum to 1."""
    labels, targets, weights = (batch.get(name) for name in ("labels", "shift_labels", "loss_weights"))
    if labels is None and targets is None:
        return None
    if targets is None:
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    if weights is not None:
        return targets, read_float32("loss_weights", weights)
    supervised = targets != -100
    if "grounding_labels" in batch:
        supervised = supervised & ~(batch["grounding_labels"] > 0).flatten(1).any(dim=1)[:, None]
    return targets, supervised / supervised.sum(dim=1, keepdim=True).clamp(min=1)


def get_student_layer(section: PreTrainedConfig, config: Ross3DConfig) -> int:
    """The layer whose states predict a target, counted from the last, from the `student_layer` of an objective's
    section; `LAST_LAYER` is the output."""
    return range(-config.text_config.num_hidden_layers - 1, 0)[section.student_layer]


def encode_views(model: nn.Module, states: SceneStates, batch: Batch, rows: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """What the attached geometry encoder says about the views of rows, computed once for all objectives of a step.

    Args:
        rows (`torch.BoolTensor` of shape `(B,)`): the rows that are needed; all rows with views are encoded where
            cameras or depth are predicted too.

    Returns:
        which rows (B,) were encoded, and `GeometryFeatures` of these.
    """
    if states.encoded is None:
        heads = model.config.list_predictions("encoder")
        rows = (batch["view_mask"].any(dim=1) if heads else rows).to(batch["geometry_pixel_values"].device)
        mask = batch["view_mask"].to(rows.device)[rows]
        states.encoded = rows, model.encode_geometry(batch["geometry_pixel_values"][rows], mask, heads=heads)
    return states.encoded


class TextObjective(Objective):
    """Mean over answers of the mean cross entropy over an answer's tokens."""

    name = "lm"
    reads = ("labels",)

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Refuse unshifted labels for rows with several questions; outside training, check the numbers as well."""
        labels, shift_labels, weights = (batch.get(name) for name in ("labels", "shift_labels", "loss_weights"))
        if labels is None and shift_labels is None:
            return
        if labels is None and weights is not None:
            raise ValueError(
                "labels: expected them with shift_labels and loss_weights, as the processor returns them, got none;"
                " a Trainer with label_smoothing_factor removes them: set it to 0."
            )
        if not model.training:
            check_text_numbers(labels if shift_labels is None else shift_labels, weights, model.config)
        segment_ids = batch.get("segment_ids")
        if labels is None or shift_labels is not None or segment_ids is None:
            return
        if int(segment_ids.max()) > 1:
            raise ValueError(
                "shift_labels: expected shift_labels and loss_weights with labels, because a row contains several"
                " questions and only the processor knows their targets, got None; pass answers= to the processor,"
                " give the model its whole output, and set remove_unused_columns=False for a stock Trainer."
            )

    def has_target(self, states: SceneStates, batch: Batch, config: Ross3DConfig) -> bool:
        return "labels" in batch or "shift_labels" in batch

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        targets = get_text_targets(batch)
        return count_nothing(batch) if targets is None else targets[1].sum(dim=1)

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        hidden_states, targets = states.last_hidden_state, get_text_targets(batch)
        places = () if targets is None else (targets[1] > 0).nonzero(as_tuple=True)
        if targets is None or not len(places[0]):
            return model.lm_head(hidden_states[:, :1]).sum() * 0.0
        labels, weights = targets
        row, position = (index.to(hidden_states.device) for index in places)
        # Only supervised positions are projected to the vocabulary.
        logits = model.lm_head(hidden_states[row, position]).float().to(weights.device)
        errors = F.cross_entropy(logits, labels[places], reduction="none")
        return (errors * weights[places]).sum()


def check_text_numbers(labels: torch.Tensor | None, loss_weights: torch.Tensor | None, config: Ross3DConfig) -> None:
    """Refuse targets that are not tokens, and invalid weights; waits for the device, so not called in training."""
    size = config.text_config.vocab_size
    if labels is not None:
        wrong = labels[((labels < 0) | (labels >= size)) & (labels != -100)]
        if len(wrong):
            raise ValueError(
                f"labels: expected tokens in 0..{size - 1}, or -100 for ignored positions, got {wrong[:5].tolist()};"
                f" {HINT}"
            )
    if loss_weights is not None:
        weights = read_float32("loss_weights", loss_weights)
        wrong = weights[~(weights >= 0) | weights.isinf()]
        if len(wrong):
            raise ValueError(f"loss_weights: expected finite numbers >= 0, got {wrong[:5].tolist()}; {HINT}")


def combine_losses(
    objectives: Sequence[Objective],
    sums: Mapping[str, torch.Tensor],
    counts: torch.Tensor,
    num_items_in_batch: torch.Tensor | None,
    config: Ross3DConfig,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The mean of each loss by name, and their sum weighted by the config.

    Args:
        objectives: all n of the model.
        sums (`dict`): loss name -> sum over items, for the losses that were computed.
        counts (`torch.Tensor` of shape `(n,)`): items of this batch, the default divisors of the means.
        num_items_in_batch (`torch.Tensor` of shape `(n,)`, *optional*): items of the whole step instead.

    Raises:
        ValueError: for a wrong number of counts.
    """
    names = tuple(objective.loss_name for objective in objectives)
    shape = getattr(num_items_in_batch, "shape", type(num_items_in_batch).__name__)
    got = shape if isinstance(shape, str) else tuple(shape)
    if num_items_in_batch is not None and shape[-1:] != (len(names),):
        raise ValueError(
            f"num_items_in_batch: expected {len(names)} counts {names}, got shape {got}; a stock Trainer counts"
            " tokens: use train.py's Ross3DTrainer, or keep accepts_loss_kwargs = False on the model."
        )
    divisors = counts
    if num_items_in_batch is not None:
        # DataParallel concatenates the counts of its replicas.
        divisors = num_items_in_batch.reshape(-1)[: len(names)].to(counts.device)
    losses, loss = {}, torch.zeros((), device=counts.device)
    for name, divisor in zip(names, divisors, strict=True):
        if name in sums:
            losses[name] = sums[name].to(counts.device) / divisor.clamp(min=1)
            loss = loss + getattr(config, f"{name}_weight") * losses[name]
    return losses, loss


def list_read_layers(
    objectives: Sequence[Objective], batch: Batch, config: Ross3DConfig, runs_all: bool
) -> tuple[int, ...]:
    """Layers whose visual states the objectives that run read beside the output; see `compute_losses`."""
    nothing = SceneStates(None, None)
    return tuple(
        dict.fromkeys(
            layer
            for objective in objectives
            if objective.is_on(config)
            for layer in objective.list_layers(config)
            if runs_all or objective.has_target(nothing, batch, config)
        )
    )


def compute_losses(
    model: nn.Module,
    objectives: Sequence[Objective],
    states: SceneStates,
    batch: Batch,
    draws: Draws,
    runs_all: bool,
    num_items_in_batch: torch.Tensor | None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, torch.Tensor | None]:
    """The mean of each loss by name, their weighted sum, and the number of items (n,) of this batch in each mean.

    With `runs_all` every objective runs; without items it is a zero with a computation graph.
    """
    sums = {}
    for objective in objectives:
        runs = objective.is_on(model.config) and objective.can_run(model, states)
        if runs and (runs_all or objective.has_target(states, batch, model.config)):
            sums[objective.loss_name] = objective.compute(model, states, batch, draws)
    if not sums:
        return {}, None, None
    device = states.last_hidden_state.device
    counts = torch.stack(
        [
            count_items(objective, batch, model.config).to(device)
            if objective.loss_name in sums
            else torch.zeros((), device=device)
            for objective in objectives
        ]
    )
    losses, loss = combine_losses(objectives, sums, counts, num_items_in_batch, model.config)
    return losses, loss, counts


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are sharded (ZeRO-3, FSDP2), so that all processes gather them when a module runs."""
    return hasattr(next(model.parameters()), "ds_id") or hasattr(model, "reshard")


class TakePart(torch.autograd.Function):
    """Returns the first tensor unchanged; the others get gradients of zero."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        ctx.others = [(other.shape, other.dtype, other.device) for other in others]
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        zeros = [torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.others]
        return gradient, *zeros


def take_part(tensor: torch.Tensor, *others: Any) -> torch.Tensor:
    """Return `tensor` unchanged, with all others in its graph: those that need a gradient get zeros.

    In the backward pass sharded weights are gathered again for each output of a module that a gradient reaches. If an
    output were used on one process and not on another, they would wait for each other forever.
    """
    others = [other for other in others if isinstance(other, torch.Tensor) and other.requires_grad]
    return TakePart.apply(tensor, *others) if others else tensor


__all__ = [
    "Draws",
    "Objective",
    "Ross3DPredictionHead",
    "SceneStates",
    "TextObjective",
    "combine_losses",
    "compute_losses",
    "count_items",
    "count_nothing",
    "draw_normal",
    "draw_rows",
    "encode_views",
    "get_allowed_rows",
    "get_grounding_rows",
    "get_masked_views",
    "get_student_layer",
    "is_sharded",
    "list_read_layers",
    "take_part",
]
