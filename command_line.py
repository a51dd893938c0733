"""How every program ends: an error is one line, a warning is one line, `--debug` shows where they came from."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


DEBUG_HELP = "show where an error or a warning came from"
# What bad input and a bad environment raise; anything else is a fault of the program, and its message says so.
EXPECTED = (ValueError, OSError, ImportError, TypeError, MemoryError, EOFError)


def describe_error(error: BaseException) -> str:
    """An error as one line, however many its message has."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, EXPECTED):
        return message
    return f"{type(error).__name__}: {message} (unexpected: please report it, with the output of --debug)"


def run_program(main: Callable[[], Any], argv: list[str] | None = None) -> None:
    """Run `main` and exit; with 1 and one line on stderr where it raises.

    Args:
        main: takes no arguments and reads `sys.argv`, from which `--debug` is taken out first.
        argv (list of `str`, *optional*): the command line to change, `sys.argv` by default.

    Raises:
        SystemExit: with 1 after an error. With `--debug` the error itself.
    """
    argv = sys.argv if argv is None else argv
    name = Path(argv[0]).name if argv else "ross3d"
    debug = "--debug" in argv[1:]
    if debug:
        argv[1:] = [word for word in argv[1:] if word != "--debug"]
        main()
        return
    warnings.formatwarning = lambda message, *_: f"{name}: warning: {' '.join(str(message).split())}\n"
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.stderr.write(f"{name}: error: {describe_error(error)}\n")
        sys.exit(1)


__all__ = ["DEBUG_HELP", "describe_error", "run_program"]
