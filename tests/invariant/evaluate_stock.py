"""The library's Trainer evaluates rows with text and without on several processes. Usage:

    accelerate launch --config_file configs/accelerate/X.yaml -m ross3d.tests.invariant.evaluate_stock OUTPUT

Writes what it reports into OUTPUT/evaluated.json. A process that is stuck writes where it is, and ends.
"""

import faulthandler
import json
import sys
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from ross3d.tests.fabricate import make_collator, make_model, make_row
from ross3d.tests.invariant.train_anywhere import PATIENCE


class HalfTextRows(Dataset):
    """Every other row has text: of two processes with a row each, one has labels in a step and the other none."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return make_row(index, 3, 4, ["text"] if index % 2 == 0 else [])


def main(output: Path) -> None:
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    torch.set_num_threads(1)
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"),
        per_device_eval_batch_size=1,
        remove_unused_columns=False,
        label_names=["input_ids"],
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    metrics = Trainer(make_model(), arguments, make_collator(), eval_dataset=HalfTextRows()).evaluate()
    faulthandler.cancel_dump_traceback_later()
    if arguments.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        (output / "evaluated.json").write_text(json.dumps(metrics))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
