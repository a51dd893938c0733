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
    """`Trainer` whose losses are averaged over answers and scenes, not over batches.

    `get_batch_samples` counts them for an optimizer step: the counts of all micro-batches and ranks reach the model as
    `num_items_in_batch`, so the losses of a step do not depend on how it was split. `evaluation_loop` does the same
    for an evaluation, and reports each named loss. Rows that the library repeats, so that all processes have as many,
    count as often as they are evaluated.

    Raises:
        ValueError: for `label_smoothing_factor`, which none of the losses knows.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None:
            raise ValueError(
                "label_smoothing_factor: expected 0, since the Trainer would smooth targets that it does not see"
                f" (loss_weights, shift_labels), got {self.args.label_smoothing_factor}; leave it out."
            )
        self.model_accepts_loss_kwargs = True
        if self.args.label_names is None:
            # Rows without text have losses as well: no name in a batch says whether it has one.
            self.label_names, self.can_return_loss = [], True
        self.evaluated = torch.zeros(2, len(LOSS_NAMES), dtype=torch.float64)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As the library's; metres stay in float32."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            keep_float32(inputs)
        # The library's own counting gathers over processes only where a batch has labels: others would wait.
        self.model_accepts_loss_kwargs = False
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As the library's; in an evaluation a batch counts its own answers and scenes, which may be none.

        Other processes gather a number all the same: then the loss is zero.
        """
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs["loss"] if "loss" in outputs else torch.zeros((), device=self.args.device)
        if outputs.get("loss_counts") is not None:
            counts = outputs["loss_counts"].double().cpu()
            means = [float(outputs[name]) if outputs.get(name) is not None else 0.0 for name in LOSS_NAMES]
            self.evaluated += torch.stack([torch.tensor(means, dtype=torch.float64) * counts, counts])
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As the library's, with the loss averaged as in training and the mean of each named loss that applies."""
        self.evaluated.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self.evaluated.float().to(self.args.device)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        config = self.accelerator.unwrap_model(self.model).config
        loss = 0.0
        for name, total, count in zip(LOSS_NAMES, *sums.tolist(), strict=True):
            if count:
                output.metrics[f"{metric_key_prefix}_{name}"] = total / count
                loss += getattr(config, f"{name}_weight") * total / count
        if f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

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
