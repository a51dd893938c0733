"""Shared code of all programs: one-line errors, `--debug` for tracebacks, and rules that check settings."""

import argparse
import math
import numbers
import os
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tqdm import tqdm


DEBUG_HELP = "show the traceback of errors and warnings"
# Errors of bad input or a bad environment; any other error is a bug of the program, and its message says so.
EXPECTED = (ValueError, OSError, ImportError, TypeError, MemoryError, EOFError)
# The most characters of an error's message that are printed; it may quote a long input.
MAX_MESSAGE = 2000
INTERRUPTED = 130
# The beginning of an address, such as https:// and s3://; a letter alone is a drive of Windows.
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
# `name, name (`type`): what it is`, over lines that are indented further.
ATTRIBUTE = re.compile(r"^ {8}(\w+(?:, \w+)*)[^:\n]*: (.*(?:\n {9,}.*)*)", re.MULTILINE)
LAST_FRAME = re.compile(r"^  File \".*\", line \d+, in .*\n(?:    .*\n)*", re.MULTILINE)


def describe_error(error: BaseException) -> str:
    """An error as one line, regardless of how many lines its message has."""
    text = get_own_message(error)
    message = " ".join(text.split())
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE]} ... ({len(message)} characters; --debug shows all)"
    if isinstance(error, MemoryError):
        return f"not enough memory ({message or 'MemoryError'})"
    message = message or type(error).__name__
    if isinstance(error, EXPECTED):
        return message
    return f"{type(error).__name__}: {message} (unexpected: please report it, with the output of --debug)"


def get_own_message(error: BaseException) -> str:
    """An error's message without the traceback that errors from data loader workers have in theirs."""
    text = str(error)
    if "Original Traceback (most recent call last)" not in text:
        return text
    # The error with its class follows the last frame and its indented code.
    behind = LAST_FRAME.split(text)[-1]
    return re.sub(r"^[\w.]+: ", "", behind)


def run_program(main: Callable[[], Any], argv: list[str] | None = None) -> None:
    """Run `main` and exit; if it raises, with status 1 and one line on stderr.

    If a launcher started several processes, the line names the process.

    Args:
        main: takes no arguments and reads `sys.argv`, from which `--debug` is taken out first.
        argv (list of `str`, *optional*): the command line to change, `sys.argv` by default.

    Raises:
        SystemExit: with 1 after an error, with 130 after Ctrl-C. With `--debug` the error itself.
    """
    argv = sys.argv if argv is None else argv
    name = Path(argv[0]).name if argv else "ross3d"
    if name == "__main__.py":
        name = Path(argv[0]).parent.name
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        name = f"{name}, process {os.environ.get('RANK', 0)}"
    if "--debug" in argv[1:]:
        argv[1:] = [word for word in argv[1:] if word != "--debug"]
        main()
        return
    warnings.formatwarning = lambda message, *_: f"{name}: warning: {' '.join(str(message).split())}\n"
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        # An open progress bar leaves its line unfinished; lone surrogates from a command line cannot be written to a
        # stream.
        start = "\n" if getattr(tqdm, "_instances", ()) else ""
        line = f"{start}{name}: error: {describe_error(error)}\n".encode("utf-8", "backslashreplace").decode("utf-8")
        sys.stderr.write(line)
        sys.exit(1)


def parse_path(text: str) -> Path:
    """Parse a path, for `add_argument(type=...)`; an empty one, which would be the current folder, and addresses are
    refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"expected a path, got {text!r}; use . for the current folder")
    if ADDRESS.match(text):
        is_local = text.lower().startswith("file:")
        remedy = "give the path that follows file://" if is_local else "download it, and give the path of the copy"
        raise argparse.ArgumentTypeError(f"expected a path, got the address {text[:200]!r}; {remedy}")
    return Path(text)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which `run_program` handles, to a parser's help."""
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)


def is_finite(value: float) -> bool:
    """Whether a number is neither NaN nor infinite, nor an integer too large for a float."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def list_attributes(cls: type) -> dict[str, str]:
    """Help texts of a dataclass's fields, from "Attributes:" in its docstring and in those of its base classes."""
    told = {}
    for owner in reversed(cls.__mro__):
        text = (owner.__dict__.get("__doc__") or "").partition("Attributes:")[2]
        for names, meaning in ATTRIBUTE.findall(text):
            told |= dict.fromkeys(names.replace(" ", "").split(","), " ".join(meaning.replace("`", "").split()))
    return told


@dataclass(frozen=True)
class Number:
    """A rule for the numbers that a setting may have; NaN, infinities and booleans are never allowed.

    Attributes:
        whole (`bool`): whole numbers only.
        least, most (number, *optional*): inclusive limits.
        above, below (number, *optional*): exclusive limits.
    """

    whole: bool = False
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            limits = [f"from {self.least:,} to {self.most:,}"]
        else:
            limits = [
                words.format(limit)
                for words, limit in (
                    ("of at least {:,}", self.least),
                    ("above {:,}", self.above),
                    ("at most {:,}", self.most),
                    ("below {:,}", self.below),
                )
                if limit is not None
            ]
        return " ".join(["a whole number" if self.whole else "a finite number", " and ".join(limits)]).strip()

    def allows(self, value: Any) -> bool:
        kind = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool) or not is_finite(value):
            return False
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def require(self, name: str, value: Any) -> None:
        """Refuse a value that breaks the rule.

        Raises:
            ValueError: names the setting, the rule and the value.
        """
        if not self.allows(value):
            raise ValueError(f"{name}: expected {self}, got {value!r}; correct the number.")

    def __call__(self, text: str) -> int | float:
        """Parse a number of a command line, for `add_argument(type=...)`."""
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = text
        if not self.allows(value):
            raise argparse.ArgumentTypeError(f"expected {self}, got {text!r}; give another number")
        return value


def spell_option(name: str) -> str:
    """The command-line option of a setting."""
    return f"--{name.replace('_', '-')}"


def check_fields(settings: Any, prefix: str, rules: dict[str, Number]) -> None:
    """Refuse a dataclass of settings whose values do not have the types of its fields.

    Args:
        settings: the dataclass.
        prefix (`str`): goes before a field's name in errors, such as `data.`, or `--` for an option, which is then
            spelled with hyphens.
        rules (`dict`): field -> rule for its numbers, where not every number of its type is allowed.

    Raises:
        ValueError: names the field, what is expected and the value.
    """
    hints = get_type_hints(type(settings))
    for field in fields(settings):
        name = spell_option(field.name) if prefix == "--" else f"{prefix}{field.name}"
        check_value(name, getattr(settings, field.name), hints[field.name], rules.get(field.name))


def check_value(name: str, value: Any, hint: Any, rule: Number | None = None) -> None:
    """Refuse a value that is not of a type: text, path, true or false, number, choice or list of texts.

    Values that may have several types are checked by the code that reads them.

    Raises:
        ValueError: names the setting, what is expected and the value.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return
    kind, *others = [kind for kind in kinds if kind is not NoneType]
    if others:
        return
    if kind in (int, float):
        (rule or Number(whole=kind is int)).require(name, value)
    elif get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{name}: expected one of {get_args(kind)}, got {value!r}.")
    elif kind in CHECKED_KINDS:
        meaning, holds = CHECKED_KINDS[kind]
        if not holds(value):
            raise ValueError(f"{name}: expected {meaning}, got {value!r}; correct the value.")


def is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


# Type of a field -> the name of its values in errors, and their Python types.
CHECKED_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    str: ("a non-blank string", is_text),
    Path: ("a path", lambda value: isinstance(value, Path) or is_text(value)),
    list[str]: ("a list of strings", lambda value: isinstance(value, list) and all(map(is_text, value))),
}


# Rules that several programs share.
COUNT = Number(whole=True, least=1)
COUNT_OR_NONE = Number(whole=True, least=0)
# A row of more views than this fits into no model's context; the published one has 32.
NUM_VIEWS = Number(whole=True, least=1, most=10_000)
# Seeds that every random number generator accepts.
SEED = Number(whole=True, least=0, below=2**32)
RATE = Number(least=0)
POSITIVE = Number(above=0)


__all__ = [
    "COUNT",
    "COUNT_OR_NONE",
    "DEBUG_HELP",
    "NUM_VIEWS",
    "POSITIVE",
    "Number",
    "RATE",
    "SEED",
    "add_debug",
    "check_fields",
    "check_value",
    "describe_error",
    "get_own_message",
    "is_finite",
    "list_attributes",
    "parse_path",
    "run_program",
    "spell_option",
]
