"""Rows of different sizes -> one padded batch, with a proposal of which views to hide.

Shapes: V views, K proposals, Q questions, L sequence of a row; B rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F


# What fills the padding of each tensor, and stands for it where a row has none while another has.
PADDING: dict[str, float | int | bool] = {
    "attention_mask": 0,
    "segment_ids": -1,
    "labels": -100,
    "shift_labels": -100,
    "loss_weights": 0.0,
    "pixel_values": 0.0,
    "view_mask": False,
    "patch_coords": 0.0,
    "patch_valid": False,
    "proposal_boxes": 0.0,
    "proposal_mask": False,
    "proposal_patches": False,
    "query_coords": float("nan"),
    "grounding_labels": 0,
    "bev_pixel_values": 0.0,
    "bev_valid": False,
    "bev_bounds": float("nan"),
    "view_latents": 0.0,
    "bev_latents": 0.0,
}


def pad_to(tensor: torch.Tensor, shape: Sequence[int], value: float | int | bool) -> torch.Tensor:
    """Pad `tensor` at the end of every axis to `shape`."""
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    padded = torch.full(tuple(shape), value, dtype=tensor.dtype)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def stack_padded(tensors: list[torch.Tensor | None], value: float | int | bool) -> torch.Tensor:
    """Stack tensors of one rank, padded to their largest sizes; None becomes padding alone."""
    given = [tensor for tensor in tensors if tensor is not None]
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in given), strict=True)]
    empty = torch.full(shape, value, dtype=given[0].dtype)
    return torch.stack([empty if tensor is None else pad_to(tensor, shape, value) for tensor in tensors])


def widen_grounding_labels(labels: torch.Tensor, num_proposals: int) -> torch.Tensor:
    """(Q, K + 1) -> (Q, num_proposals + 1): new proposals are no targets, "no target" stays the last column."""
    missing = num_proposals + 1 - labels.shape[1]
    return torch.cat([F.pad(labels[:, :-1], (0, missing)), labels[:, -1:]], dim=1)


def propose_hidden_views(may_hide: torch.Tensor, ratio: float, row_seed: int) -> torch.Tensor:
    """Which views (V,) bool of a row to hide: all but `int(V * (1 - ratio))` of them, drawn from `row_seed`.

    Published rule: the views with the largest of V uniform numbers are hidden. Views that may not be hidden (no
    depth: nothing says where they look) do not count.
    """
    candidates = may_hide.nonzero()[:, 0]
    num_kept = int(len(candidates) * (1 - ratio))
    numbers = torch.rand(len(candidates), generator=torch.Generator().manual_seed(row_seed))
    hidden = torch.zeros_like(may_hide)
    hidden[candidates[numbers.argsort()[num_kept:]]] = True
    return hidden


@dataclass
class Ross3DCollator:
    """Pads and stacks rows of `SceneRows`.

    Attributes:
        pad_token_id (`int`): fills `input_ids`.
        view_mask_ratio (`float`): share of views to propose for hiding; the trainer opens the gate.
    """

    pad_token_id: int
    view_mask_ratio: float

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        keys = sorted(set().union(*rows) - {"row_seed"})
        unknown = set(keys) - set(PADDING) - {"input_ids"}
        if unknown:
            raise ValueError(f"rows: expected the processor's keys {sorted(PADDING)}, got {sorted(unknown)} as well.")
        columns = {key: [row.get(key) for row in rows] for key in keys}
        if "grounding_labels" in columns:
            width = max(len(row["proposal_boxes"]) for row in rows if "proposal_boxes" in row)
            columns["grounding_labels"] = [
                None if labels is None else widen_grounding_labels(labels, width)
                for labels in columns["grounding_labels"]
            ]
        padding = PADDING | {"input_ids": self.pad_token_id}
        batch = {key: stack_padded(column, padding[key]) for key, column in columns.items()}
        batch["row_seed"] = torch.stack([row["row_seed"] for row in rows])
        batch["bool_masked_views"] = self.propose(batch)
        return batch

    def propose(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Hidden views (B, V) of every row; none where no depth tells what a hidden view looks at."""
        view_mask = batch["view_mask"]
        if "patch_valid" not in batch:
            return torch.zeros_like(view_mask)
        may_hide = view_mask & batch["patch_valid"].flatten(2).any(dim=2)
        proposals = [
            propose_hidden_views(row, self.view_mask_ratio, seed)
            for row, seed in zip(may_hide, batch["row_seed"].tolist(), strict=True)
        ]
        return torch.stack(proposals)
