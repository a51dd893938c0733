"""Official annotation files: read as they are, checked, never written.

A row that lacks a field, has one of another kind, repeats an id, or holds a line break (which would cut scores of
METEOR, a line protocol, in two) is refused with its file and place.
"""

import json
import os
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any


Row = dict[str, Any]


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError, ValueError: name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; docs/DATA.md says where each file comes from.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); download the file again.") from error


def check_rows(
    rows: Any,
    where: str,
    fields: dict[str, type | tuple[type, ...]],
    get_key: Callable[[Row], Hashable] | None = None,
) -> list[Row]:
    """Refuse rows that are not what a benchmark's file holds; return them otherwise.

    Args:
        rows: what should be a list of objects.
        where (`str`): the file, quoted in errors.
        fields (`dict`): name -> its type or types; texts are neither empty nor hold line breaks.
        get_key: row -> what no two rows share.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{where}: expected a JSON list of objects, got {type(rows).__name__}; is it another file?")
    places: dict[Hashable, int] = {}
    for place, row in enumerate(rows):
        for name, kind in fields.items():
            _check_field(row, name, kind, f"{where}, entry {place}")
        if get_key is not None:
            key = get_key(row)
            if key in places:
                raise ValueError(
                    f"{where}, entry {place}: {key!r} is entry {places[key]} already; the file was joined from pieces:"
                    " download it again."
                )
            places[key] = place
    return rows


def _check_field(row: Row, name: str, kind, where: str) -> None:
    if name not in row:
        raise ValueError(f"{where}: no field {name!r}, only {sorted(row)}; is it another benchmark's file?")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: field {name!r} must be {wanted}, got {value!r}.")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and (not text.strip() or "\n" in text or "\r" in text):
            raise ValueError(
                f"{where}: field {name!r} is {text!r}; expected words in one line: put a blank for the line break, or"
                " take the entry out, in a copy of the file."
            )


__all__ = ["Row", "check_rows", "read_json"]
