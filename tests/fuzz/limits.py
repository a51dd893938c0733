"""What malformed input may lead to: a result, or an error that teaches; never a hang, nor memory beyond a bound."""

import os
import re
import resource
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, settings


# Seconds for one input, and bytes by which the process may grow over all inputs of a test.
SECONDS, MEMORY = 60, 1 << 30
# What our own code raises on purpose. Everything else is a fault that nobody foresaw.
REFUSALS = (ValueError, TypeError, FileNotFoundError, NotADirectoryError, ImportError)
# The words of library code that says neither which argument nor which file it is about.
RAW = re.compile(
    r"object (is not|of type|has no)|unsupported operand|could not (convert|broadcast|be broadcast)|got an unexpected"
    r"|invalid literal|setting an array element|not subscriptable|must be real number|shape mismatch|cannot unpack"
    r"|out of (range|bounds)$|The truth value|not supported between|Traceback|inhomogeneous"
)


def run_seeded(examples: int, slow: int = 20) -> Callable:
    """Settings of a fuzz test: the same inputs in every run, `slow` times as many with ROSS3D_FUZZ=long."""
    is_long = os.environ.get("ROSS3D_FUZZ") == "long"
    return settings(
        max_examples=examples * (slow if is_long else 1),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def limit_time(what: Any) -> Iterator[None]:
    """Fail where the body takes longer than SECONDS."""

    def stop(signum, frame):
        raise AssertionError(f"no end after {SECONDS} s with {what}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limit_memory() -> Iterator[None]:
    """Fail where the process has grown by more than MEMORY when the body ends, or at any time in between."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"the process grew by {grown / 1e6:.0f} MB"


def attempt(run: Callable[[], Any], what: Any, quotes: str = "") -> tuple[Any, str | None]:
    """Run, and judge how it ends.

    Args:
        run: what is tried. what: what stands in a failed test. quotes: one of these words, separated by `|`, has to
            stand in the error.

    Returns:
        the result and None, or None and the error's message.
    """
    with limit_time(what), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return run(), None
        except REFUSALS as error:
            message = str(error)
            assert message.strip(), f"an error without words with {what}"
            assert len(message) < 5000, f"a message of {len(message)} characters with {what}: {message[:300]}"
            is_raw = RAW.search(message) and "expected" not in message
            assert not is_raw, f"{type(error).__name__} of a library with {what}: {message}"
            named = not quotes or any(word in message for word in quotes.split("|"))
            assert named, f"none of {quotes} is named with {what}: {message}"
            return None, message
