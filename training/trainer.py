"""The stock Trainer, told how many answers and scenes a whole optimizer step averages its losses over."""

from collections.abc import Iterator
from itertools import islice

import torch
from transformers import Trainer

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import LOSS_NAMES
from ross3d.reconstruction_ross3d import get_bev_cells


# What the model reads in float32 in every precision.
FLOAT32_KEYS = {"patch_coords", "proposal_boxes", "query_coords", "loss_weights", "bev_bounds"}


def open_view_gate(batch: dict[str, torch.Tensor], global_step: int, period: int) -> None:
    """Hide the proposed views in optimizer steps divisible by `period` (published: 4), and none in the others."""
    if global_step % period != 0 and "bool_masked_views" in batch:
        batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])


def count_losses(batch: dict[str, torch.Tensor], config: Ross3DConfig) -> torch.Tensor:
    """How many items (4,) each named loss of a batch averages over, in the order of `LOSS_NAMES`."""
    nothing = torch.zeros_like(batch["input_ids"][:, 0], dtype=torch.bool)
    grounding = batch.get("grounding_labels")
    asked = nothing[:, None] if grounding is None else (grounding > 0).any(dim=-1)
    allowed = ~nothing
    if not config.reconstruct_on_grounding_rows:
        allowed = ~asked.any(dim=1)
    hidden = batch.get("bool_masked_views", nothing[:, None]).any(dim=1) & allowed
    pictured = nothing
    if "bev_pixel_values" in batch and config.denoiser_config is not None:
        head = config.denoiser_config
        cells = get_bev_cells(
            batch["bev_pixel_values"], batch.get("bev_valid"), head.bev_grid_size, head.bev_loss_mask
        )
        pictured = cells.flatten(1).any(dim=1) & allowed
    answers = batch["loss_weights"].sum().round() if "loss_weights" in batch else nothing.sum()
    return torch.stack([answers.float(), hidden.sum().float(), pictured.sum().float(), asked.sum().float()])


def keep_float32(batch: dict[str, torch.Tensor]) -> None:
    """Hand metres and weights on as the bits of float32: with DeepSpeed and FSDP every float of a batch is cast."""
    for name in FLOAT32_KEYS & batch.keys():
        batch[name] = batch[name].view(torch.int32)


class Ross3DTrainer(Trainer):
    """`Trainer` with one public method overridden: `get_batch_samples` counts what the named losses average over.

    The counts of all micro-batches and ranks of an optimizer step reach the model as `num_items_in_batch`, so the
    losses of a step do not depend on how it was split.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """The step's micro-batches, with the gate on hidden views applied, and their global counts (4,)."""
        # The library's own counting gathers over processes only where the first batch has labels: others would wait.
        batches = list(islice(epoch_iterator, num_batches))
        config = self.accelerator.unwrap_model(self.model).config
        counts = torch.zeros(len(LOSS_NAMES), device=device)
        for batch in batches:
            open_view_gate(batch, self.state.global_step, config.view_mask_period)
            counts += count_losses(batch, config).to(device)
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                keep_float32(batch)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        # Whole numbers, which nothing casts.
        return batches, counts.long()
