"""Prefetching: a thread prepares the next items while the current one is used."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


T = TypeVar("T")
R = TypeVar("R")


def iterate_ahead(prepare: Callable[[T], R], things: Sequence[T], ahead: int = 1) -> Iterator[R]:
    """Yield `prepare(thing)` of each thing, in order; up to `ahead` more are prepared while one is used.

    Args:
        prepare: runs in one background thread. Its errors are raised where its result would be yielded.
        things (sequence): what to prepare.
        ahead (`int`): at least 1.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    try:
        waiting = deque(thread.submit(prepare, thing) for thing in things[:ahead])
        for number in range(len(things)):
            result = waiting.popleft().result()
            waiting.extend(thread.submit(prepare, thing) for thing in things[number + ahead : number + ahead + 1])
            yield result
    finally:
        thread.shutdown(wait=False, cancel_futures=True)
