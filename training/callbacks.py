"""What training tells and keeps besides the stock Trainer: named losses, and which checkpoints are whole."""

import json
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback

from ross3d.data.atomic import write_text
from ross3d.modeling_ross3d import LOSS_NAMES


# Written last into a checkpoint folder; a folder without it is a torn one.
COMPLETE_MARK = "complete.json"


class NamedLosses(TrainerCallback):
    """Adds the mean of each named loss since the last report to the Trainer's logs.

    The model reports its losses as shares of the step's global mean, so their sum over micro-batches and ranks is
    that mean. A loss that nothing in a step asked for does not count for the step.
    """

    def __init__(self, model: torch.nn.Module):
        self.step = torch.zeros(2, len(LOSS_NAMES), dtype=torch.float64)
        self.totals = torch.zeros(2, len(LOSS_NAMES), dtype=torch.float64)
        model.register_forward_hook(self.collect)

    def collect(self, module, arguments, output) -> None:
        if not module.training or output.loss_counts is None:
            return
        for place, name in enumerate(LOSS_NAMES):
            loss = output[name] if name in output else None
            if loss is not None:
                self.step[0, place] += loss.detach().double().cpu()
        self.step[1] += output.loss_counts.detach().double().cpu()

    def on_step_end(self, args, state, control, **kwargs):
        if args.world_size > 1:
            device = args.device
            reduced = self.step.float().to(device)
            torch.distributed.all_reduce(reduced)
            self.step = reduced.double().cpu()
        counted = (self.step[1] > 0).double()
        self.totals[0] += self.step[0] * counted
        self.totals[1] += counted
        self.step.zero_()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        means = {
            name: float(total / count)
            for name, total, count in zip(LOSS_NAMES, *self.totals.tolist(), strict=True)
            if count > 0
        }
        self.totals.zero_()
        logs.update(means)
        if state.log_history:
            state.log_history[-1].update(means)


class MarkComplete(TrainerCallback):
    """Writes `complete.json` as the last file of a checkpoint, and only then removes older ones.

    A torn checkpoint is never resumed from, and at no moment is there none that is whole.

    Args:
        keep (`int`, *optional*): how many whole checkpoints stay; all when absent.
    """

    def __init__(self, keep: int | None = None):
        self.keep = keep

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.remove_old(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        if args.world_size > 1:
            # Every rank writes files of its own into the folder.
            torch.distributed.barrier()
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self.remove_old(Path(args.output_dir))

    def remove_old(self, output_dir: Path) -> None:
        """Removes all but the last `keep` checkpoints, those that an earlier removal left torn included."""
        folders = list_checkpoints(output_dir)
        for folder in folders[: -self.keep] if self.keep else []:
            shutil.rmtree(folder)


def mark_complete(folder: Path) -> None:
    """Write the mark of a folder, which lists its files with their sizes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE_MARK)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_text(folder / COMPLETE_MARK, json.dumps(sizes, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether a folder has its mark and every file that the mark lists, at its size."""
    mark = folder / COMPLETE_MARK
    if not mark.exists():
        return False
    sizes = json.loads(mark.read_text())
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoint folders of a run, whole or torn, by step."""
    return sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]))


def find_checkpoint(output_dir: Path) -> Path | None:
    """The last whole checkpoint of a run; torn ones behind it are removed.

    Returns:
        its folder, or None when the run has to begin anew.
    """
    for folder in reversed(list_checkpoints(output_dir)):
        if is_complete(folder):
            return folder
        # Ranks look side by side: another one may have removed it first.
        shutil.rmtree(folder, ignore_errors=True)
    return None
