"""Callbacks for the stock Trainer, and checks of its checkpoints: named losses, and marks of complete checkpoints."""

import itertools
import json
import math
import platform
import re
import shutil
import time
import warnings
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from ross3d.data.atomic import write_text
from ross3d.modeling_ross3d import get_loss_names
from ross3d.training.damage import CHECKSUMS, COMPLETE_MARK, check_checkpoint_files, find_changed_file, sum_files


DIVERGED = (
    "the run has diverged and stops; its last checkpoint is from before that. Start another run with a lower"
    " trainer.learning_rate or trainer.max_grad_norm"
)
# Seconds after which a new file must be visible to other machines on a shared disk.
SHARED_PATIENCE = 120.0


class NamedLosses(TrainerCallback):
    """Adds the mean of each named loss since the last report to the Trainer's logs.

    The model reports its losses as shares of the step's global mean, so their sum over micro-batches and ranks is
    that mean. A step without items for a loss does not count in that loss's mean.
    """

    def __init__(self, model: torch.nn.Module):
        self.names = get_loss_names(model.config)
        self.step = torch.zeros(2, len(self.names), dtype=torch.float64)
        self.totals = torch.zeros(2, len(self.names), dtype=torch.float64)
        model.register_forward_hook(self.collect)

    def collect(self, module, arguments, output) -> None:
        if not module.training or output.loss_counts is None:
            return
        for place, name in enumerate(self.names):
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
        check_finite_losses(dict(zip(self.names, self.step[0].tolist(), strict=True)), state.global_step)
        counted = (self.step[1] > 0).double()
        self.totals[0] += self.step[0] * counted
        self.totals[1] += counted
        self.step.zero_()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        means = {
            name: float(total / count)
            for name, total, count in zip(self.names, *self.totals.tolist(), strict=True)
            if count > 0
        }
        self.totals.zero_()
        logs.update(means)
        if state.log_history:
            state.log_history[-1].update(means)


def check_finite_losses(losses: dict[str, float], step: int) -> None:
    """Stop a run that has diverged; its last checkpoint is from before that.

    Args:
        losses: by name, of a step, over all processes.

    Raises:
        ValueError: names step and losses.
    """
    broken = [name for name, loss in losses.items() if not math.isfinite(loss)]
    if broken:
        raise ValueError(
            f"step {step}: expected finite losses, got NaN or infinity in {', '.join(broken)}; {DIVERGED}."
        )


def has_finite_weights(model: torch.nn.Module, world_size: int) -> bool:
    """Whether all trained weights are finite, on all processes; each process checks its own shards."""
    # ZeRO-3 and FSDP hold the shards under other names.
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in model.parameters() if parameter.requires_grad]
    held = [piece.to_local() if hasattr(piece, "to_local") else piece for piece in held]
    finite = all(bool(piece.isfinite().all()) for piece in held)
    if world_size > 1:
        # Not on the device of the shards: they may be offloaded to memory that cannot take part in the reduction.
        flag = torch.tensor(float(finite), device=PartialState().device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        finite = bool(flag)
    return finite


class MarkComplete(TrainerCallback):
    """Writes `complete.json` as the last file of a checkpoint, and only then removes older ones.

    A run never resumes from an incomplete checkpoint, and at every moment a complete one exists. A checkpoint whose
    weights are not finite is removed, and the run ends.

    Args:
        keep (`int`, *optional*): how many complete checkpoints stay; all when absent.
    """

    def __init__(self, keep: int | None = None):
        self.keep = keep

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.remove_old(Path(args.output_dir))

    def on_save(self, args, state, control, **kwargs):
        if args.world_size > 1:
            # Every rank writes its own files into the folder.
            torch.distributed.barrier()
        self.check_weights(args, state, kwargs.get("model"))
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self.remove_old(Path(args.output_dir))

    def on_train_end(self, args, state, control, **kwargs):
        self.check_weights(args, state, kwargs.get("model"))

    def check_weights(self, args, state, model: torch.nn.Module | None) -> None:
        """Raises ValueError for weights that are not finite; a checkpoint of this step is removed first."""
        if model is None or has_finite_weights(model, args.world_size):
            return
        if state.is_world_process_zero:
            shutil.rmtree(Path(args.output_dir) / f"checkpoint-{state.global_step}", ignore_errors=True)
        raise ValueError(
            f"step {state.global_step}: expected finite weights, got NaN or infinity in some trained weights;"
            f" {DIVERGED}."
        )

    def remove_old(self, output_dir: Path) -> None:
        """Removes all but the last `keep` checkpoints, including those that an interrupted removal left incomplete."""
        folders = list(list_checkpoints(output_dir).values())
        for folder in folders[: -self.keep] if self.keep else []:
            shutil.rmtree(folder)


def mark_complete(folder: Path) -> None:
    """Write the list of checksums of a folder, then its mark, which lists its files with their sizes."""
    write_text(folder / CHECKSUMS, json.dumps(sum_files(folder), indent=1))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE_MARK)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    write_text(folder / COMPLETE_MARK, json.dumps(sizes, indent=1))


def is_complete(folder: Path) -> bool:
    """Whether a folder has its mark and every file that the mark lists, at its size.

    Raises:
        ValueError: for a mark that is broken.
    """
    return (folder / COMPLETE_MARK).exists() and find_changed_file(folder) is None


def list_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Checkpoint folders of a run, complete or not, by step; folders with other names are ignored."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in output_dir.glob("checkpoint-*")}
    return dict(sorted((int(step[1]), path) for path, step in steps.items() if step))


def has_begun(output_dir: Path) -> bool:
    """Whether a folder holds anything that a run has saved."""
    return bool(list_checkpoints(output_dir)) or (output_dir / COMPLETE_MARK).exists()


def find_checkpoint(output_dir: Path) -> Path | None:
    """The last complete checkpoint of a run.

    Incomplete checkpoints after it are removed; checkpoints that were complete and are damaged now are renamed.

    Returns:
        its folder, or None when the run has to start from the beginning.
    """
    for step, folder in reversed(list_checkpoints(output_dir).items()):
        if not (folder / COMPLETE_MARK).exists():
            shutil.rmtree(folder)
            continue
        try:
            check_checkpoint_files(folder, step)
        except (ValueError, FileNotFoundError) as error:
            names = (folder.with_name(f"{folder.name}-damaged-{number}") for number in itertools.count(1))
            aside = folder.rename(next(name for name in names if not name.exists()))
            warnings.warn(
                f"{str(error).rstrip('.')}; {folder.name} was renamed to {aside.name}; the run resumes from the last"
                " intact checkpoint, or starts over.",
                stacklevel=2,
            )
        else:
            return folder
    return None


def find_start(output_dir: Path, process_index: int) -> tuple[bool, Path | None]:
    """Whether a run is finished, and the checkpoint to resume from; the first process decides for all.

    Raises:
        FileNotFoundError: on a process that does not see that checkpoint.
    """
    found: list[tuple[bool, Path | None]] = [(False, None)]
    if process_index == 0:
        is_finished = is_complete(output_dir)
        found = [(is_finished, None if is_finished else find_checkpoint(output_dir))]
    is_finished, checkpoint = broadcast_object_list(found)[0]
    if checkpoint is not None:
        check_shared(checkpoint / COMPLETE_MARK, process_index)
    return is_finished, checkpoint


def check_shared(file: Path, process_index: int, patience: float = SHARED_PATIENCE) -> None:
    """Wait for all processes, then at most `patience` seconds until a file of the first process is visible here.

    Raises:
        FileNotFoundError: when it is not.
    """
    # The first process may be the last to arrive here.
    PartialState().wait_for_everyone()
    begin = time.monotonic()
    while process_index != 0 and not file.is_file():
        if time.monotonic() - begin > patience:
            raise FileNotFoundError(
                f"trainer.output_dir: expected a folder that all machines share, but {file.parent} on"
                f" {platform.node()} (process {process_index}) has no files of the first process; choose a folder on"
                " a shared disk."
            )
        time.sleep(0.2)
