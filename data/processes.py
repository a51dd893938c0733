"""Pools of processes."""

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any


@contextmanager
def open_pool(num_workers: int, initializer: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that are forked, at the first job, after this one's unreachable objects were freed.

    An object that waits for threads when it is freed, such as a frame of a video, would wait for ever in a forked
    process, which has none of them. Objects that become unreachable between opening and the first job are not freed.

    Args:
        num_workers (`int`): processes.
        initializer: called in each with `arguments`.
    """
    gc.collect()
    with ProcessPoolExecutor(num_workers, initializer=initializer, initargs=arguments) as pool:
        yield pool


__all__ = ["open_pool"]
