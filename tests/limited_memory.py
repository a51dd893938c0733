"""A call in a process of its own that may take only so much more memory than this one has."""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any


def call_within(megabytes: int, function: Callable, *arguments, **options) -> Any:
    """What `function` returns or raises; taking more memory than so many megabytes raises MemoryError in it.

    Memory is address space: what is asked for counts, whether or not it is written to.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        try:
            limit_memory(megabytes)
            sender.send((function(*arguments, **options), None))
        except Exception as error:
            sender.send((None, error))

    process = context.Process(target=run)
    process.start()
    sender.close()
    value, error = receiver.recv()
    process.join()
    if error is not None:
        raise error
    return value


def limit_memory(megabytes: int) -> None:
    """Let this process take no more than so many megabytes from now on."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = taken + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
