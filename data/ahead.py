"""Work done ahead: while one thing is worked on, a thread prepares the next."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar


T = TypeVar("T")
R = TypeVar("R")


def iterate_ahead(prepare: Callable[[T], R], things: Sequence[T], ahead: int = 1) -> Iterator[R]:
    """`prepare` of each thing, in order; `ahead` more are under way while one is worked on.

    Args:
        prepare: runs in one other thread. Its errors are raised where its result would have come.
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
