"""20 plain-SGD steps of the Trainer on ragged rows, for comparing ways to split a step. Usage:

    python -m ross3d.tests.invariant.run_trainer OUTPUT BATCH_SIZE ACCUMULATION [STEPS]      (or under torchrun)

Writes OUTPUT/parameters-RANK.safetensors and OUTPUT/rows-RANK.json (which rows each rank read, and the world size).
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import TrainingArguments

from ross3d.tests.fabricate import RaggedRows, make_collator, make_model
from ross3d.training.trainer import Ross3DTrainer


def main(output: Path, batch_size: int, accumulation: int, steps: int) -> None:
    torch.set_num_threads(1)
    model = make_model(view_mask_period=2)
    model.model.vision_tower.requires_grad_(False)
    collator, seen = make_collator(), []

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        seen.extend(int(row["row_seed"]) for row in rows)
        return collator(rows)

    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Ross3DTrainer(model=model, args=arguments, train_dataset=RaggedRows(400), data_collator=collate)
    trainer.train()
    rank = arguments.process_index
    output.mkdir(parents=True, exist_ok=True)
    parameters = {name: value.detach().contiguous() for name, value in model.named_parameters()}
    save_file(parameters, output / f"parameters-{rank}.safetensors")
    record = {"world_size": arguments.world_size, "rows": seen[: batch_size * accumulation * steps]}
    (output / f"rows-{rank}.json").write_text(json.dumps(record))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 20)
