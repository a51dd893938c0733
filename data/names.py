"""Names and links that folders of others hold, checked once before they become paths."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


# Letters, digits, `_`, `-` and `.`, no dot at the start: no path leads out of a folder through such a name.
NAME = re.compile(r"[\w-][\w.-]*")
MAX_NAME_LETTERS = 200


def check_name(name: Any, where: str) -> str:
    """The name of a scene or file, where it is a plain one; `where` (file and place) begins the error.

    Raises:
        ValueError: for what is no text, is empty or long, or has a slash, a blank or a dot at its start.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_LETTERS or NAME.fullmatch(name) is None:
        raise ValueError(
            f"{where}: expected a name of letters, digits, _, - and . (none at its start), got {str(name)[:100]!r};"
            " names with parts of a path are not followed: rename it."
        )
    return name


def is_inside(file: Path, folder: Path) -> bool:
    """Whether what a path leads to, links followed, lies in a folder; of a folder of the Hub's cache, whose files are
    links, in what the cache holds of that repository.
    """
    root = folder.resolve()
    if root.parent.name == "snapshots":
        root = root.parents[1]
    return file.resolve().is_relative_to(root)


def check_links(files: Iterable[Path], folder: Path) -> None:
    """Refuse links among the files of a folder that lead out of it: what they lead to would be copied as its own.

    Raises:
        ValueError: names the first, and where it leads.
    """
    for file in files:
        if not is_inside(file, folder):
            raise ValueError(
                f"{file}: expected a file of {folder}, got a link that leads out of it, to {file.resolve()}; put the"
                " file itself there (`cp -L`), or remove the link."
            )


__all__ = ["check_links", "check_name", "is_inside"]
