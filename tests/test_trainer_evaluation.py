"""Evaluation while training, and the best checkpoint at the end: by the stock Trainer and by ours."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from ross3d.modeling_ross3d import get_loss_names
from ross3d.tests.fabricate import DISTILLATION, RaggedRows, make_collator, make_model, make_row
from ross3d.training.trainer import Ross3DTrainer


class TextRows(torch.utils.data.Dataset):
    """Rows as most are: a few questions in words about rooms of different sizes, nothing to be grounded."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return make_row(
            index, 2 + index % 3, 1 + index % 2, ["text"] * (1 + index % 2), depth=index % 2 == 0, bev=False
        )


def make_trainer(cls, folder, rows, model=None, **changes):
    settings = {
        "max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3,
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "remove_unused_columns": False, "use_cpu": True, "report_to": [], "disable_tqdm": True,
    }  # fmt: skip
    arguments = TrainingArguments(folder, **settings | changes)
    model = make_model() if model is None else model
    return cls(model=model, args=arguments, train_dataset=rows, eval_dataset=rows, data_collator=make_collator())


@pytest.mark.parametrize(
    ("cls", "rows"), [(Trainer, TextRows()), (Ross3DTrainer, RaggedRows(8))], ids=["stock", "ours"]
)
def test_the_best_checkpoint_is_loaded_at_the_end(cls, rows, tmp_path):
    """A rate that grows too large on the way: the best checkpoint is not the last."""
    trainer = make_trainer(cls, tmp_path, rows, load_best_model_at_end=True, lr_scheduler_type="constant",
                           learning_rate=1.0 if isinstance(rows, TextRows) else 0.3)  # fmt: skip
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert sorted(losses) == [1, 2, 3, 4] and all(loss > 0 for loss in losses.values())
    best = min(losses, key=losses.get)
    assert trainer.state.best_global_step == best and trainer.state.best_metric == losses[best]
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    # The weights are those of that checkpoint: its loss comes out again.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_our_evaluation_averages_over_answers_and_scenes_however_rows_are_batched(size, tmp_path):
    """As a training step does: each named loss over all it applies to, not over batches."""
    model, rows = make_model(distillation_config=DISTILLATION), RaggedRows(8, geometry=True)
    names = get_loss_names(model.config)
    metrics = make_trainer(Ross3DTrainer, tmp_path, rows, model, per_device_eval_batch_size=size).evaluate()
    totals, counts = torch.zeros(5), torch.zeros(5)
    for index in range(len(rows)):
        with torch.no_grad():
            output = model.eval()(**make_collator()([rows[index]]))
        for place, name in enumerate(names):
            if output.get(name) is not None:
                totals[place] += output[name] * output.loss_counts[place]
        counts += output.loss_counts
    assert (counts > 1).all()
    for name, wanted in zip(names, totals / counts, strict=True):
        assert metrics[f"eval_{name}"] == pytest.approx(float(wanted), rel=1e-4), name
    weights = [getattr(model.config, f"{name}_weight") for name in names]
    wanted = sum(weight * metrics[f"eval_{name}"] for weight, name in zip(weights, names, strict=True))
    assert metrics["eval_loss"] == pytest.approx(wanted, rel=1e-6)


def test_what_does_not_apply_is_not_reported(tmp_path):
    metrics = make_trainer(Ross3DTrainer, tmp_path, TextRows()).evaluate()
    assert {"eval_loss", "eval_lm_loss", "eval_view_loss"} <= metrics.keys()
    assert not {"eval_grounding_loss", "eval_bev_loss"} & metrics.keys()


@pytest.mark.parametrize("cls", [Trainer, Ross3DTrainer])
def test_predictions_of_ragged_rows_are_gathered(cls, tmp_path):
    """Logits alone: they are padded to one length; scores of as many questions and boxes as a row has cannot be."""
    trainer = make_trainer(cls, tmp_path, RaggedRows(8))
    found = trainer.predict(RaggedRows(8))
    lengths = [len(RaggedRows(8)[index]["input_ids"]) for index in range(8)]
    assert found.predictions.shape == (8, max(lengths), 99) and found.metrics["test_loss"] > 0
    seen = []
    trainer.compute_metrics = lambda given: seen.append(given.predictions.shape) or {"rows": len(given.predictions)}
    assert trainer.evaluate()["eval_rows"] == 8 and seen == [(8, max(lengths), 99)]


def test_smoothed_labels_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="label_smoothing_factor: expected 0, because the Trainer's smoothing ignores"
    ):
        make_trainer(Ross3DTrainer, tmp_path, TextRows(), label_smoothing_factor=0.1)
    trainer = make_trainer(Trainer, tmp_path, TextRows(), label_smoothing_factor=0.1)
    message = (
        "labels: expected them with shift_labels and loss_weights, .* a Trainer with label_smoothing_factor removes"
    )
    with pytest.raises(ValueError, match=message):
        trainer.train()
    with pytest.raises(ValueError, match=message):
        trainer.evaluate()
    assert make_trainer(Trainer, tmp_path, TextRows(), label_smoothing_factor=0.0).evaluate()["eval_loss"] > 0


def test_columns_that_a_stock_trainer_drops_are_missed(tmp_path):
    """It keeps what `forward` names; its other targets are missed where they matter, not in silence."""

    class Grounded(TextRows):
        def __getitem__(self, index):
            return make_row(index, 2, 3, ["ground"])

    class Packed(TextRows):
        def __getitem__(self, index):
            return make_row(index, 2, 3, ["text", "text"])

    for rows, message in (
        (Grounded(), "grounding_labels: expected them in training with <ground>, got none; pass target_objects="),
        (Packed(), "and set remove_unused_columns=False for a stock Trainer"),
    ):
        trainer = make_trainer(Trainer, tmp_path, rows, remove_unused_columns=True)
        with pytest.raises(ValueError, match=message):
            trainer.train()
        make_trainer(Trainer, tmp_path / "whole", rows, max_steps=1, eval_strategy="no", save_strategy="no").train()
