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
"""Grounding: which of the proposed boxes a referring expression means; the head and the objective.

Shapes: B rows, L positions, V views, P = p*p patches of a view, N = h*w tokens of a view, D width, K proposals, Q
questions of a row.
"""

from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .configuration_ross3d import Ross3DConfig
from .geometry_ross3d import MAX_COORDINATE, check_shape, unpack_patches
from .inputs_ross3d import HINT, check_numbers, list_inputs, read_float32
from .objectives_ross3d import Batch, Draws, Objective, SceneStates, count_nothing, take_part


class Ross3DGroundingMLP(nn.Module):
    """Linear, ReLU, LayerNorm, Linear, then unit length."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.linear_2(self.norm(F.relu(self.linear_1(states))))
        # In float32, since squares overflow in float16. New biases are zero, so a proposal that nothing shows is a
        # zero vector here: it stays zero, where an epsilon below the length would make its gradient 1 / epsilon.
        exact = states.float()
        lengths = exact.norm(dim=-1, keepdim=True)
        return (exact / lengths.masked_fill(lengths == 0, 1.0)).to(states.dtype)


class Ross3DGroundingHead(nn.Module):
    """Cosine scores between the state at `<ground>` and each proposal, with a learned "no target" as the last one."""

    def __init__(self, config: Ross3DConfig):
        super().__init__()
        hidden_size = config.text_config.hidden_size
        self.no_target = nn.Parameter(torch.zeros(hidden_size))
        self.proposal_mlp = Ross3DGroundingMLP(hidden_size)
        self.query_mlp = Ross3DGroundingMLP(hidden_size)

    def forward(
        self, queries: torch.Tensor, proposal_features: torch.Tensor, proposal_mask: torch.Tensor
    ) -> torch.Tensor:
        """Scores (B, Q, K + 1) for queries (B, Q, D), proposals (B, K, D) and their mask (B, K), -inf at padding."""
        # In float16 the library keeps this head in float32.
        queries, proposal_features = queries.to(self.no_target.dtype), proposal_features.to(self.no_target.dtype)
        no_target = self.no_target.expand(queries.shape[0], 1, -1)
        candidates = self.proposal_mlp(torch.cat([proposal_features, no_target], dim=1))
        scores = self.query_mlp(queries) @ candidates.transpose(1, 2)
        padding = F.pad(~proposal_mask, (0, 1), value=False)
        return scores.masked_fill(padding[:, None], float("-inf"))


def compute_grounding_losses(scores: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE (..., ) of scores (..., K + 1) against multi-hot labels (..., K + 1), float32."""
    logits = scores.float() / temperature
    positive = logits.masked_fill(labels <= 0, float("-inf"))
    return torch.logsumexp(logits, dim=-1) - torch.logsumexp(positive, dim=-1)


def pool_proposals(features: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
    """Mean feature (..., K, D) of the patches, or of the tokens, of each proposal; zero where it has none.

    Args:
        features (..., V, N, D): of the cells of a grid over each view.
        membership (..., K, V, h, w) bool: which cells belong to which proposal.
    """
    member = membership.flatten(-3).to(features)  # (..., K, V*N)
    return member @ features.flatten(-3, -2) / member.sum(dim=-1, keepdim=True).clamp(min=1)


def read_membership(name: str, membership: torch.Tensor, shape: tuple[int, int, int, int, int]) -> torch.Tensor:
    """Membership (B, K, V, h, w) bool, of this shape, of one that may be packed by `pack_patches`."""
    if membership.dtype == torch.uint8:
        check_shape(name, membership, (*shape[:3], -(-shape[3] * shape[4] // 8)), HINT)
        membership = unpack_patches(membership, *shape[3:])
    check_shape(name, membership, shape, HINT)
    return membership


def get_proposal_features(
    model: nn.Module,
    patch_features: torch.Tensor | None,
    proposal_boxes: torch.Tensor,
    proposal_mask: torch.Tensor | None,
    proposal_patches: torch.Tensor | None,
    visual_states: torch.Tensor | None = None,
    proposal_tokens: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The feature of each proposal, by `config.proposal_pooling`.

    "vision": the mean of its patches plus the embedding of its centre. "states": the mean of the output states at its
    tokens; a scene precedes its questions, so they do not depend on what is asked. "mean": the mean of these two.

    Args:
        model (`Ross3DForConditionalGeneration`): embeds the centres.
        patch_features (B, V, P, D): projected patches, never masked.
        proposal_boxes (B, K, 6): centre and size, metres.
        proposal_mask (B, K) bool: real proposals, all when absent.
        proposal_patches (B, K, V, p, p) bool, or packed by `pack_patches`: patches inside each box; a proposal
            without any is its centre alone.
        visual_states (B, V, N, D): output states at the visual tokens, those of masked views included; read unless
            features are those of the vision tower alone.
        proposal_tokens (B, K, V, h, w) bool, or packed by `pack_patches`: tokens inside each box; the states of a
            proposal without any are zero.

    Returns:
        features (B, K, D) and mask (B, K).

    Raises:
        ValueError: for shapes that do not fit, broken boxes, and patches without the tokens that the model reads.
    """
    sizes = check_shape("proposal_boxes", proposal_boxes, ("B", "K", 6), HINT)
    if proposal_mask is None:
        proposal_mask = torch.ones(proposal_boxes.shape[:2], dtype=torch.bool, device=proposal_boxes.device)
    check_shape("proposal_mask", proposal_mask, (sizes["B"], sizes["K"]), HINT)
    proposal_boxes = read_float32("proposal_boxes", proposal_boxes)
    if not model.training:
        # Not in training: it waits for the device, and the processor has checked the boxes already.
        check_numbers("proposal_boxes", proposal_boxes, proposal_mask[..., None], MAX_COORDINATE)
        negative = ((proposal_boxes[..., 3:] < 0).any(dim=-1) & proposal_mask).nonzero().tolist()
        if negative:
            row, place = negative[0]
            raise ValueError(
                "proposal_boxes: expected sizes >= 0 (centre xyz, size xyz), got"
                f" {proposal_boxes[row, place].tolist()} in row {row}; convert corners to centre and size."
            )
    centres = proposal_boxes[..., :3]
    features = take_part(model.model.get_position_embedding(centres, proposal_mask), patch_features)
    if proposal_patches is not None and patch_features is not None:
        grid = model.config.patch_grid_size
        shape = (sizes["B"], sizes["K"], patch_features.shape[1], grid, grid)
        pooled = pool_proposals(patch_features, read_membership("proposal_patches", proposal_patches, shape))
        features = features.to(pooled) + pooled
    pooling = model.config.proposal_pooling
    # CODEPATH: "vision" in checkpoints of Ross3D; "mean" in those of 3DRS; "states" in ablations of it.
    if pooling == "vision":
        return features, proposal_mask
    if proposal_patches is not None and proposal_tokens is None:
        raise ValueError(
            f"proposal_tokens: expected them with proposal_patches for config.proposal_pooling={pooling!r}, got None;"
            " set the processor's object_token_threshold (processor.object_token_threshold = 0.125, as in 3DRS)."
        )
    states = take_part(torch.zeros_like(features), visual_states)
    if proposal_tokens is not None and visual_states is not None:
        layout = model.model.views.layout
        shape = (sizes["B"], sizes["K"], visual_states.shape[1], layout.num_rows, layout.num_columns)
        states = pool_proposals(visual_states, read_membership("proposal_tokens", proposal_tokens, shape))
    if pooling == "states":
        return states, proposal_mask
    return (features.to(states) + states) / 2, proposal_mask


def append_ground_slots(
    input_ids: torch.Tensor, real: torch.Tensor, segment_ids: torch.Tensor, ground_token_id: int, pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append `<ground>` to every question that has none.

    Args:
        input_ids, segment_ids (B, L): rows; `real` (B, L) bool is False at padding, at either end.

    Returns:
        new `input_ids` and `segment_ids` (B, L'), padded on the right with `pad_token_id` and -1.
    """
    new_rows = []
    for ids, keep, segments in zip(input_ids.tolist(), real.tolist(), segment_ids.tolist(), strict=True):
        questions: dict[int, list[int]] = {}
        for token, is_real, segment in zip(ids, keep, segments, strict=True):
            if is_real:
                questions.setdefault(segment, []).append(token)
        row: list[tuple[int, int]] = []
        for segment, tokens in questions.items():
            slot = [ground_token_id] if segment > 0 and ground_token_id not in tokens else []
            row.extend((token, segment) for token in tokens + slot)
        new_rows.append(row)
    length = max(len(row) for row in new_rows)
    padded = [row + [(pad_token_id, -1)] * (length - len(row)) for row in new_rows]
    stacked = torch.tensor(padded, device=input_ids.device)
    return stacked[..., 0], stacked[..., 1]


def get_ground_queries(
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    ground_token_id: int,
    num_questions: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States at the `<ground>` tokens: queries (B, Q, D), zero where a question has none, and a mask (B, Q) of those.

    Raises:
        ValueError: when a question holds more than one `<ground>`.
    """
    rows, positions = (input_ids == ground_token_id).nonzero(as_tuple=True)
    questions = torch.zeros_like(rows) if segment_ids is None else (segment_ids[rows, positions] - 1).clamp(min=0)
    places = Counter(zip(*torch.stack([rows, questions]).tolist(), strict=True))
    for (row, question), count in sorted(places.items()):
        if count > 1:
            raise ValueError(
                f"input_ids: expected at most one <ground> per question, got {count} in question {question} of row"
                f" {row}; use one referring expression per question."
            )
    num_questions = max([num_questions, *(question + 1 for _, question in places)])
    device = hidden_states.device
    found = hidden_states[rows.to(device), positions.to(device)].to(rows.device)
    asked = torch.zeros(input_ids.shape[0], num_questions, dtype=torch.bool, device=input_ids.device)
    asked[rows, questions] = True
    queries = found.new_zeros(*asked.shape, found.shape[-1])
    return queries.index_put((rows, questions), found), asked


def compute_grounding_scores(
    head: nn.Module,
    hidden_states: torch.Tensor,
    input_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    proposals: tuple[torch.Tensor, torch.Tensor],
    ground_token_id: int,
    num_questions: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (B, Q, K + 1), and which questions (B, Q) have a `<ground>`; the scores of others mean nothing.

    Args:
        head (`Ross3DGroundingHead`): scores.
        hidden_states (B, L, D): output states of rows with `input_ids` and `segment_ids` (B, L).
        proposals: features (B, K, D) and mask (B, K) of `get_proposal_features`.
        ground_token_id (`int`): of `<ground>`.
        num_questions (`int`): Q at least.
    """
    queries, asked = get_ground_queries(hidden_states, input_ids, segment_ids, ground_token_id, num_questions)
    return head(queries, *proposals).to(asked.device), asked


def score_questions(
    model: nn.Module, outputs: ModelOutput, batch: Batch, runs_all: bool
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Scores of the proposals of a batch for its questions.

    Args:
        model: with a `grounding_head`, or None in its place.
        outputs (`Ross3DModelOutput`): of the rows.
        batch: the rows and their proposals.
        runs_all (`bool`): run the head also without proposals or `<ground>`, because other processes wait for it.

    Returns:
        scores (B, Q, K + 1) and which questions (B, Q) have a `<ground>`; None, None where no question has one.
    """
    input_ids, boxes = batch.get("input_ids"), batch.get("proposal_boxes")
    if model.grounding_head is None or input_ids is None or (boxes is None and not runs_all):
        return None, None
    if boxes is None:
        boxes = outputs.last_hidden_state.new_zeros(len(input_ids), 0, 6, dtype=torch.float32)
    given = {name: batch.get(name) for name in list_inputs("proposals")} | {"proposal_boxes": boxes}
    proposals = get_proposal_features(model, outputs.patch_features, visual_states=outputs.visual_states, **given)
    token = model.config.ground_token_id
    if not runs_all and not bool((input_ids == token).any()):
        return None, None
    count = batch["grounding_labels"].shape[1] if "grounding_labels" in batch else 1
    segment_ids = batch.get("segment_ids")
    return compute_grounding_scores(
        model.grounding_head, outputs.last_hidden_state, input_ids, segment_ids, proposals, token, count
    )


class GroundingObjective(Objective):
    """Mean over grounding questions of the InfoNCE loss against their multi-hot labels.

    A question whose labels are all zero is not a grounding question.
    """

    name = "grounding"
    reads = ("grounding_labels", "input_ids", "proposal_boxes")
    head = "grounding_head"

    def check_batch(self, model: nn.Module, batch: Batch) -> None:
        """Refuse labels without proposals, questions or head; outside training, check their values as well."""
        labels = batch.get("grounding_labels")
        if labels is None:
            return
        given = {name: name in batch for name in self.reads[1:]}
        given[self.head] = getattr(model, self.head) is not None
        for name, is_given in given.items():
            if not is_given:
                raise ValueError(
                    f"grounding_labels: expected {name} with them, got None; pass the processor's whole output to a"
                    " model with config.grounding=True, or leave out grounding questions."
                )
        if not model.training:
            check_label_numbers(labels, batch.get("proposal_mask"))

    def is_on(self, config: Ross3DConfig) -> bool:
        return config.grounding

    def can_run(self, model: nn.Module, states: SceneStates) -> bool:
        return states.grounding_scores is not None

    def count(self, batch: Batch, config: Ross3DConfig) -> torch.Tensor:
        labels = batch.get("grounding_labels")
        return count_nothing(batch) if labels is None else (labels > 0).any(dim=-1).sum(dim=1)

    def compute(self, model: nn.Module, states: SceneStates, batch: Batch, draws: Draws) -> torch.Tensor:
        scores, has_ground, labels = states.grounding_scores, states.has_ground, batch.get("grounding_labels")
        if labels is not None:
            hint = "pass one row per question, with one column per proposal and a last one for no target."
            check_shape("grounding_labels", labels, tuple(scores.shape), hint)
        asked = torch.zeros_like(has_ground) if labels is None else (labels > 0).any(dim=-1)
        places = asked.nonzero(as_tuple=True)
        # One synchronisation with the device for either condition.
        is_right = bool(has_ground[places].all() if labels is not None else ~has_ground.any())
        if not is_right and labels is None and model.training:
            raise ValueError(
                "grounding_labels: expected them in training with <ground>, got none; pass target_objects= to the"
                " processor, and set remove_unused_columns=False for a stock Trainer, which drops them otherwise."
            )
        if not is_right and labels is not None:
            row, question = (asked & ~has_ground).nonzero()[0].tolist()
            raise ValueError(
                f"grounding_labels: expected a <ground> in question {question} of row {row}, which has labels, got"
                " none; answer grounding questions with `<ground>`."
            )
        if not len(places[0]):
            return scores[..., -1].sum() * 0.0
        return compute_grounding_losses(scores[places], labels[places], model.config.grounding_temperature).sum()


def check_label_numbers(labels: torch.Tensor, proposal_mask: torch.Tensor | None) -> None:
    """Refuse labels that are negative, NaN or of padding; waits for the device, so not called in training."""
    if not bool((labels >= 0).all()):
        raise ValueError(
            "grounding_labels: expected 0 and 1, got a negative number or NaN; pass target_objects= to the processor."
        )
    if proposal_mask is None or labels.shape[-1] != proposal_mask.shape[1] + 1:
        return
    padding = ((labels[..., :-1] > 0) & ~proposal_mask[:, None]).nonzero().tolist()
    if padding:
        row, question, place = padding[0]
        raise ValueError(
            f"grounding_labels: expected targets among the real proposals, got proposal {place} for question"
            f" {question} of row {row}, where proposal_mask is False; leave it out or unmask it."
        )


__all__ = [
    "GroundingObjective",
    "Ross3DGroundingHead",
    "append_ground_slots",
    "compute_grounding_losses",
    "get_ground_queries",
    "get_proposal_features",
    "pool_proposals",
    "compute_grounding_scores",
    "score_questions",
]
