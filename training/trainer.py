"""The stock Trainer, with losses averaged over the answers and scenes of a whole optimizer step."""

from collections.abc import Iterator
from itertools import islice

import torch
from transformers import Trainer

from ross3d.inputs_ross3d import list_float32
from ross3d.modeling_ross3d import count_losses, get_loss_names


def open_view_gate(batch: dict[str, torch.Tensor], global_step: int, period: int) -> None:
    """Mask the drawn views in optimizer steps divisible by `period` (published: 4), and no views in other steps."""
    if global_step % period != 0 and "bool_masked_views" in batch:
        batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])


def keep_float32(batch: dict[str, torch.Tensor]) -> None:
    """Reinterpret metres and weights as int32: DeepSpeed and FSDP would cast every float of a batch."""
    for name in list_float32() & batch.keys():
        batch[name] = batch[name].view(torch.int32)


class Ross3DTrainer(Trainer):
    """`Trainer` whose losses are averaged over answers and scenes, not over batches.

    `get_batch_samples` counts them for an optimizer step: the counts of all micro-batches and ranks reach the model as
    `num_items_in_batch`, so the losses of a step do not depend on how it was split. `evaluation_loop` does the same
    for an evaluation, and reports each named loss. Rows that the library repeats, so that all processes have the same
    number, count as often as they are evaluated.

    Raises:
        ValueError: for `label_smoothing_factor`, which none of the losses supports.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.label_smoother is not None:
            raise ValueError(
                "label_smoothing_factor: expected 0, because the Trainer's smoothing ignores loss_weights and"
                f" shift_labels, got {self.args.label_smoothing_factor}; leave it out."
            )
        self.model_accepts_loss_kwargs = True
        if self.args.label_names is None:
            # Rows without text have losses too: the presence of labels does not tell whether a batch has a loss.
            self.label_names, self.can_return_loss = [], True
        self.loss_names = get_loss_names(self.accelerator.unwrap_model(self.model).config)
        self.evaluated = torch.zeros(2, len(self.loss_names), dtype=torch.float64)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """As in the library; metres stay in float32."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            keep_float32(inputs)
        # The library's own counting gathers over processes only if a batch has labels: other processes would wait.
        self.model_accepts_loss_kwargs = False
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """As in the library; in an evaluation a batch counts its own answers and scenes, which may be none.

        Without any the loss is zero, since other processes gather a number in any case.
        """
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**inputs)
        loss = outputs["loss"] if "loss" in outputs else torch.zeros((), device=self.args.device)
        if outputs.get("loss_counts") is not None:
            counts = outputs["loss_counts"].double().cpu()
            means = [float(outputs[name]) if outputs.get(name) is not None else 0.0 for name in self.loss_names]
            self.evaluated += torch.stack([torch.tensor(means, dtype=torch.float64) * counts, counts])
        return (loss, outputs) if return_outputs else loss

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs):
        """As in the library, with the loss averaged as in training and the mean of each named loss that applies."""
        self.evaluated.zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        sums = self.evaluated.float().to(self.args.device)
        if self.args.world_size > 1:
            sums = self.accelerator.reduce(sums, reduction="sum")
        config = self.accelerator.unwrap_model(self.model).config
        loss = 0.0
        for name, total, count in zip(self.loss_names, *sums.tolist(), strict=True):
            if count:
                output.metrics[f"{metric_key_prefix}_{name}"] = total / count
                loss += getattr(config, f"{name}_weight") * total / count
        if f"{metric_key_prefix}_loss" in output.metrics:
            output.metrics[f"{metric_key_prefix}_loss"] = loss
        return output

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
        """The step's micro-batches, with the gate on masked views applied, and their global counts (n,)."""
        # The library's own counting gathers over processes only if the first batch has labels: others would wait.
        batches = list(islice(epoch_iterator, num_batches))
        config = self.accelerator.unwrap_model(self.model).config
        counts = torch.zeros(len(self.loss_names), device=device)
        for batch in batches:
            open_view_gate(batch, self.state.global_step, config.view_mask_period)
            counts += count_losses(batch, config).to(device)
            if self.is_deepspeed_enabled or self.is_fsdp_enabled:
                keep_float32(batch)
        if self.args.world_size > 1:
            counts = self.accelerator.reduce(counts, reduction="sum")
        # As whole numbers, which are not cast to half precision.
        return batches, counts.long()
