"""Rows of different sizes -> one padded batch, with a proposal of which views to hide.

Shapes: V views, K proposals, Q questions, L sequence of a row; B rows.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ross3d.geometry_ross3d import pack_patches


@dataclass(frozen=True)
class Padding:
    """How a tensor of a row is padded: which leading axes are ragged, and what fills them.

    The value also stands for the whole tensor where a row has none while another has.
    """

    axes: str
    value: float | int | bool


PADDING: dict[str, Padding] = {
    "attention_mask": Padding("L", 0),
    "segment_ids": Padding("L", -1),
    "labels": Padding("L", -100),
    "shift_labels": Padding("L", -100),
    "loss_weights": Padding("L", 0.0),
    "pixel_values": Padding("V", 0.0),
    "view_mask": Padding("V", False),
    "patch_coords": Padding("V", 0.0),
    "patch_valid": Padding("V", False),
    "proposal_boxes": Padding("K", 0.0),
    "proposal_mask": Padding("K", False),
    "proposal_patches": Padding("KV", False),
    "query_coords": Padding("Q", float("nan")),
    "grounding_labels": Padding("Q", 0),
    "bev_pixel_values": Padding("", 0.0),
    "bev_valid": Padding("", False),
    "bev_bounds": Padding("", float("nan")),
    "view_latents": Padding("V", 0.0),
    "bev_latents": Padding("", 0.0),
}


def get_sizes(rows: list[dict[str, torch.Tensor]], padding: dict[str, Padding]) -> dict[str, int]:
    """The largest L, V, K and Q of the rows."""
    sizes: dict[str, int] = {}
    for row in rows:
        for key, tensor in row.items():
            for axis, size in zip(padding[key].axes if key in padding else "", tensor.shape, strict=False):
                sizes[axis] = max(sizes.get(axis, 0), size)
    return sizes


def stack_padded(tensors: list[torch.Tensor | None], padding: Padding, sizes: dict[str, int]) -> torch.Tensor:
    """Stack tensors of one kind, padded at the end of their ragged axes; None becomes padding alone.

    Raises:
        ValueError: when the other axes differ, as those of pictures of two sizes would.
    """
    given = next(tensor for tensor in tensors if tensor is not None)
    rest = given.shape[len(padding.axes) :]
    shape = (*(sizes[axis] for axis in padding.axes), *rest)
    stacked = torch.full((len(tensors), *shape), padding.value, dtype=given.dtype)
    for place, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if tensor.shape[len(padding.axes) :] != rest:
            raise ValueError(
                f"rows: expected tensors of shape (..., {', '.join(map(str, rest))}) in every row of a batch, got"
                f" {tuple(tensor.shape)} in row {place}; prepare all rows with one processor."
            )
        stacked[(place, *(slice(size) for size in tensor.shape[: len(padding.axes)]))] = tensor
    return stacked


def check_latents(rows: list[dict[str, torch.Tensor]]) -> None:
    """Refuse a batch in which some pictures come with their latents and some without: those would be taught zeros."""
    for latents, pictures in (("view_latents", "pixel_values"), ("bev_latents", "bev_pixel_values")):
        bare = [place for place, row in enumerate(rows) if latents not in row and pictures in row]
        if bare and any(latents in row for row in rows):
            raise ValueError(
                f"rows: expected {latents} in every row with {pictures}, got none in row {bare[0]}; give them to all"
                " rows of a batch or to none."
            )


def widen_grounding_labels(labels: torch.Tensor, num_proposals: int) -> torch.Tensor:
    """(Q, K + 1) -> (Q, num_proposals + 1): new proposals are no targets, "no target" stays the last column."""
    missing = num_proposals + 1 - labels.shape[1]
    return torch.cat([F.pad(labels[:, :-1], (0, missing)), labels[:, -1:]], dim=1)


def propose_hidden_views(may_hide: torch.Tensor, ratio: float, row_seed: int) -> torch.Tensor:
    """Which views (V,) bool of a row to hide, drawn from `row_seed` by the published rule of `choose_hidden_views`.

    Views that may not be hidden (no depth: nothing says where they look) do not count.
    """
    candidates = may_hide.nonzero()[:, 0]
    numbers = torch.rand(len(candidates), generator=torch.Generator().manual_seed(row_seed))
    hidden = torch.zeros_like(may_hide)
    hidden[candidates] = choose_hidden_views(numbers, ratio)
    return hidden


def choose_hidden_views(numbers: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which of V views (bool) to hide, given a uniform number (V,) each: `int(V * (1 - ratio))` smallest are kept."""
    hidden = torch.ones(len(numbers), dtype=torch.bool)
    hidden[numbers.argsort()[: int(len(numbers) * (1 - ratio))]] = False
    return hidden


@dataclass
class Ross3DCollator:
    """Pads and stacks rows of `SceneRows`; `proposal_patches` leave as bits (`pack_patches`), which the model reads.

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
        check_latents(rows)
        padding = PADDING | {"input_ids": Padding("L", self.pad_token_id)}
        sizes = get_sizes(rows, padding)
        columns = {key: [row.get(key) for row in rows] for key in keys}
        if "grounding_labels" in columns:
            columns["grounding_labels"] = [
                None if labels is None else widen_grounding_labels(labels, sizes.get("K", 0))
                for labels in columns["grounding_labels"]
            ]
        batch = {key: stack_padded(column, padding[key], sizes) for key, column in columns.items()}
        batch["row_seed"] = torch.stack([row["row_seed"] for row in rows])
        if "view_mask" in batch:
            batch["bool_masked_views"] = self.propose(batch)
        if "proposal_patches" in batch:
            batch["proposal_patches"] = pack_patches(batch["proposal_patches"])
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
