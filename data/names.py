"""Check names and links from untrusted folders before they are used as paths.

`is_inside` tests whether a path stays in its folder. `check_name` is for names that must not be paths, `check_links`
for files of a folder that are copied, `resolve_inside` (sources/inside.py) for names that may be paths.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any


# Letters, digits, `_`, `-` and `.`, no dot at the start: no path leads out of a folder through such a name.
NAME = re.compile(r"[\w-][\w.-]*")
MAX_NAME_LETTERS = 200


def check_name(name: Any, where: str) -> str:
    """Return the name of a scene or file if it is a plain one; `where` (file and place) begins the error.

    Raises:
        ValueError: for a name that is not a string, is empty or too long, contains a slash or a blank, or starts with
            a dot.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME_LETTERS or NAME.fullmatch(name) is None:
        raise ValueError(
            f"{where}: expected a name of letters, digits, _, - and . (none at its start), got {str(name)[:100]!r};"
            " rename it."
        )
    return name


def is_inside(file: Path, folder: Path) -> bool:
    """Whether the target of a path, links followed, lies in a folder. For a folder of the Hub's cache, whose files are
    links, the files that the cache stores for that repository count too.
    """
    root = folder.resolve()
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    return any(file.resolve().is_relative_to(place) for place in (root, *blobs))


def check_links(files: Iterable[Path], folder: Path) -> None:
    """Refuse links among the files of a folder that lead out of it: their targets would be copied as its own files.

    Raises:
        ValueError: names the first, and where it leads.
    """
    for file in files:
        if not is_inside(file, folder):
            raise ValueError(
                f"{file}: expected a file of {folder}, got a link that leads out of it, to {file.resolve()}; put a"
                " copy of the file there (`cp -L`), or remove the link."
            )


__all__ = ["check_links", "check_name", "is_inside"]
