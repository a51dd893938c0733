"""Names that files of others give, checked once before they become parts of paths."""

import re
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


__all__ = ["check_name"]
