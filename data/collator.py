"""Pad rows of different sizes into one batch, with proposed views to mask.

Shapes: V views, K proposals, Q questions, L sequence of a row; B rows.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ross3d.geometry_ross3d import pack_patches
from ross3d.inputs_ross3d import INPUTS, stack_rows


# Targets that stand for the pictures behind them, and are padded with zeros.
TARGETS_OF_PICTURES = (
    ("view_latents", "pixel_values"), ("bev_latents", "bev_pixel_values"), ("geometry_pixel_values", "pixel_values"),
)  # fmt: skip


def check_targets(rows: list[dict[str, torch.Tensor]]) -> None:
    """Refuse a batch in which only some pictures come with targets: the others would be trained on zeros."""
    for target, pictures in TARGETS_OF_PICTURES:
        bare = [place for place, row in enumerate(rows) if target not in row and pictures in row]
        if bare and any(target in row for row in rows):
            raise ValueError(
                f"rows: expected {target} in all rows of a batch with {pictures} or in none, got none in row"
                f" {bare[0]}; add or remove them."
            )


def widen_grounding_labels(labels: torch.Tensor, num_proposals: int) -> torch.Tensor:
    """Pad (Q, K + 1) to (Q, num_proposals + 1): added proposals are no targets, "no target" stays the last column."""
    missing = num_proposals + 1 - labels.shape[1]
    return torch.cat([F.pad(labels[:, :-1], (0, missing)), labels[:, -1:]], dim=1)


def propose_masked_views(may_mask: torch.Tensor, ratio: float, row_seed: int) -> torch.Tensor:
    """Which views (V,) bool of a row to mask, drawn from `row_seed` by the published rule of `choose_masked_views`.

    Views that may not be masked (without depth it is unknown where they look) do not count.
    """
    candidates = may_mask.nonzero()[:, 0]
    numbers = torch.rand(len(candidates), generator=torch.Generator().manual_seed(row_seed))
    masked = torch.zeros_like(may_mask)
    masked[candidates] = choose_masked_views(numbers, ratio)
    return masked


def choose_masked_views(numbers: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which of V views (bool) to mask, given uniform numbers (V,); the `int(V * (1 - ratio))` smallest are visible."""
    masked = torch.ones(len(numbers), dtype=torch.bool)
    masked[numbers.argsort()[: int(len(numbers) * (1 - ratio))]] = False
    return masked


@dataclass
class Ross3DCollator:
    """Pads and stacks rows of `SceneRows`; what proposals cover is packed into bits (`pack_patches`) for the model.

    Attributes:
        pad_token_id (`int`): fills `input_ids`.
        view_mask_ratio (`float`): share of views to propose for masking; the trainer decides whether to mask.
    """

    pad_token_id: int
    view_mask_ratio: float

    def __call__(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        known = {name for name, row in INPUTS.items() if row.padding is not None}
        unknown = set().union(*rows) - known - {"row_seed"}
        if unknown:
            raise ValueError(
                f"rows: expected the processor's keys {sorted(known)}, also got {sorted(unknown)}; remove these."
            )
        check_targets(rows)
        widest = max((len(row["proposal_boxes"]) for row in rows if "proposal_boxes" in row), default=0)
        tensors = [{name: tensor for name, tensor in row.items() if name != "row_seed"} for row in rows]
        for row in tensors:
            if "grounding_labels" in row:
                row["grounding_labels"] = widen_grounding_labels(row["grounding_labels"], widest)
        batch = stack_rows(tensors, input_ids=self.pad_token_id)
        if len(rows) == 1:
            # Stacked without a copy: a change of the batch must not reach cached rows.
            batch = {name: tensor.clone() for name, tensor in batch.items()}
        batch["row_seed"] = torch.stack([row["row_seed"] for row in rows])
        if "view_mask" in batch:
            batch["bool_masked_views"] = self.propose(batch)
        for name in ("proposal_patches", "proposal_tokens"):
            if name in batch:
                batch[name] = pack_patches(batch[name])
        return batch

    def propose(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Masked views (B, V) of every row; none in rows without depth, where it is unknown what a view looks at."""
        view_mask = batch["view_mask"]
        if "patch_valid" not in batch:
            return torch.zeros_like(view_mask)
        may_mask = view_mask & batch["patch_valid"].flatten(2).any(dim=2)
        proposals = [
            propose_masked_views(row, self.view_mask_ratio, seed)
            for row, seed in zip(may_mask, batch["row_seed"].tolist(), strict=True)
        ]
        return torch.stack(proposals)
