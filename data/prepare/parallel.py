"""Run one function over many scans in worker processes, with progress; failures are reported at the end."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TypeVar

import torch
from tqdm import tqdm

from ross3d.command_line import describe_error
from ross3d.data.processes import open_pool


Item, Result = TypeVar("Item"), TypeVar("Result")
SHOWN_FAILURES = 5


def run_jobs(
    job: Callable[[Item], Result],
    items: Sequence[Item],
    num_workers: int,
    title: str,
    get_name: Callable[[Item], str],
) -> list[Result]:
    """Return `job(item)` of every item, in order.

    Raises:
        ValueError: after all others are done, lists the items for which `job` raised an error.
        OSError: when a process was killed from outside.
    """
    if num_workers < 1:
        raise ValueError(f"--num-workers: expected 1 process or more, got {num_workers}.")
    show = partial(tqdm, total=len(items), desc=title, unit="scene", mininterval=1.0)
    attempt = partial(_attempt, job)
    if num_workers == 1:
        outcomes = [attempt(item) for item in show(items)]
    else:
        try:
            with open_pool(num_workers, _start_worker) as pool:
                outcomes = list(show(pool.map(attempt, items)))
        except BrokenProcessPool as error:
            raise OSError(
                f"{title}: a process was killed, perhaps because memory ran out; finished scenes are not lost: run"
                " the same command again with a smaller --num-workers."
            ) from error
    failures = [(get_name(item), told) for item, (_, told) in zip(items, outcomes, strict=True) if told is not None]
    if failures:
        shown = [f"  {name}: {told}" for name, told in failures[:SHOWN_FAILURES]]
        if len(failures) > len(shown):
            others = [name for name, _ in failures[SHOWN_FAILURES:]]
            shown.append(f"  and {', '.join(others)}")
        told = "\n".join(shown)
        raise ValueError(
            f"{title}: {len(failures)} of {len(items)} failed; the others are done:\n{told}\nCorrect or remove these"
            " and run the same command again."
        )
    return [result for result, _ in outcomes]


def _attempt(job: Callable[[Item], Result], item: Item) -> tuple[Result | None, str | None]:
    try:
        return job(item), None
    # Any error of a malformed scan is reported at the end, after the others are done.
    except Exception as error:
        return None, describe_error(error)


def _start_worker() -> None:
    """Worker set-up: one torch thread; the worker exits with its parent, so no orphan keeps writing."""
    torch.set_num_threads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
