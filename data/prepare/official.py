"""Official annotation files: read as they are, checked, never written.

A row that lacks a field, has one of another kind or an empty one, or repeats an id is refused with its file and place.
"""

import os
from collections.abc import Callable, Hashable
from typing import Any

from ross3d.data.names import check_name
from ross3d.data.text_files import read_json


Row = dict[str, Any]


def read_official_json(path: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError, ValueError: name the file.
    """
    return read_json(path, "the JSON file described in docs/DATA.md", remedy="download the file again")


def check_rows(
    rows: Any,
    where: str,
    fields: dict[str, type | tuple[type, ...]],
    get_key: Callable[[Row], Hashable] | None = None,
) -> list[Row]:
    """Return the rows of a benchmark's file; refuse malformed ones.

    Args:
        rows: should be a list of objects.
        where (`str`): the file, quoted in errors.
        fields (`dict`): name -> its type or types; texts must not be empty, neither must texts in lists.
        get_key: row -> a key that must be unique.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(
            f"{where}: expected a JSON list of objects, got {type(rows).__name__}; check that it is the right file."
        )
    places: dict[Hashable, int] = {}
    for place, row in enumerate(rows):
        for name, kind in fields.items():
            _check_field(row, name, kind, f"{where}, entry {place}")
        if get_key is not None:
            key = get_key(row)
            if key in places:
                raise ValueError(
                    f"{where}, entry {place}: {key!r} repeats entry {places[key]}; download the file again."
                )
            places[key] = place
    return rows


def _check_field(row: Row, name: str, kind, where: str) -> None:
    if name not in row:
        raise ValueError(
            f"{where}: expected a field {name!r}, got only {sorted(row)}; check that it is this benchmark's file."
        )
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, kind):
        wanted = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{where}: expected field {name!r} of type {wanted}, got {value!r}.")
    if name == "scene_id" and value.strip():
        check_name(value, f"{where}, field {name!r}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.strip():
            raise ValueError(
                f"{where}: expected text in field {name!r}, got {value!r}; remove the entry in a copy of the file."
            )


__all__ = ["Row", "check_rows", "read_official_json"]
