"""Vertices and triangles of `.ply` files, binary of either byte order or text."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np


TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "i2",
    "int16": "i2",
    "ushort": "u2",
    "uint16": "u2",
    "int": "i4",
    "int32": "i4",
    "uint": "u4",
    "uint32": "u4",
    "float": "f4",
    "float32": "f4",
    "double": "f8",
    "float64": "f8",
}
ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": None}
MAX_HEADER_LINES = 1000


@dataclass(frozen=True)
class Mesh:
    """A mesh or a cloud of points.

    Attributes:
        vertices (`(M, 3)`, float32): in the file's own frame.
        colors (`(M, 3)`, uint8, *optional*): RGB.
        normals (`(M, 3)`, float32, *optional*).
        faces (`(F, 3)`, int64, *optional*): triangles of vertices.
    """

    vertices: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    faces: np.ndarray | None = None


@dataclass(frozen=True)
class _Element:
    """One kind of row: its name, how many there are, and its properties as (name, type, type of a list's length)."""

    name: str
    count: int
    properties: list[tuple[str, str, str | None]]


def read_ply(path: str | os.PathLike) -> Mesh:
    """Read the vertices of a mesh, and its faces when all are triangles that follow the vertices.

    Raises:
        FileNotFoundError, ValueError: no such file, no PLY, unknown types, no x, y, z, or a file that ends early.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a mesh in PLY format.")
    with path.open("rb") as file:
        order, elements = _read_header(file, path)
        rows = {}
        for element in elements:
            read = _read_text_rows if order is None else _read_binary_rows
            rows[element.name] = read(file, path, element, order or "")
            if "vertex" in rows and "face" in rows:
                break
    return _make_mesh(rows, path)


def _read_header(file: BinaryIO, path: Path) -> tuple[str | None, list[_Element]]:
    if file.readline(80).strip() != b"ply":
        raise ValueError(f"{path}: expected a PLY file, whose first line is 'ply'; this is something else.")
    order: str | None = None
    elements: list[_Element] = []
    for _ in range(MAX_HEADER_LINES):
        line = file.readline(1000).decode("ascii", errors="replace")
        words = line.split()
        if words[:1] == ["end_header"]:
            return order, elements
        try:
            if words[:1] == ["format"]:
                order = ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_Element(words[1], int(words[2]), []))
            elif words[:1] == ["property"]:
                is_list = words[1] == "list"
                kind = TYPES[words[3 if is_list else 1]]
                elements[-1].properties.append((words[-1], kind, TYPES[words[2]] if is_list else None))
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path}: the header's line {line.strip()!r} cannot be understood ({error!r})."
            ) from error
    raise ValueError(f"{path}: the PLY header has no 'end_header'; the file is damaged.")


def _read_binary_rows(file: BinaryIO, path: Path, element: _Element, order: str) -> np.ndarray:
    """Rows as a structured array; lists must have three entries each, as triangles have."""
    fields: list[tuple] = []
    for name, kind, length in element.properties:
        if length is None:
            fields.append((name, order + kind))
        else:
            fields += [(f"{name} count", order + length), (name, order + kind, 3)]
    kind = np.dtype(fields)
    data = file.read(kind.itemsize * element.count)
    if len(data) < kind.itemsize * element.count:
        _refuse_cut_file(path, element)
    return _check_triangles(np.frombuffer(data, dtype=kind), element, path)


def _read_text_rows(file: BinaryIO, path: Path, element: _Element, order: str) -> np.ndarray:
    fields: list[tuple] = []
    for name, kind, length in element.properties:
        fields += [(name, kind)] if length is None else [(f"{name} count", length), (name, kind, 3)]
    rows = np.zeros(element.count, dtype=fields)
    for index in range(element.count):
        words = file.readline().split()
        if not words:
            _refuse_cut_file(path, element)
        try:
            _fill_row(rows[index], element, [float(word) for word in words])
        except (ValueError, IndexError) as error:
            raise ValueError(f"{path}: row {index} of {element.name!r} cannot be understood ({error}).") from error
    return _check_triangles(rows, element, path)


def _fill_row(row: np.void, element: _Element, values: list[float]) -> None:
    place = 0
    for name, _, length in element.properties:
        count = 1 if length is None else int(values[place])
        if length is None:
            row[name] = values[place]
        else:
            row[f"{name} count"] = count
            place += 1
            # Lists of other lengths are refused by their count once all rows are read.
            row[name] = values[place : place + 3] if count == 3 else 0
        place += count


def _refuse_cut_file(path: Path, element: _Element) -> None:
    raise ValueError(
        f"{path}: the file ends before its {element.count} rows of {element.name!r} do; download or copy it again."
    )


def _check_triangles(rows: np.ndarray, element: _Element, path: Path) -> np.ndarray:
    for name, _, length in element.properties:
        if length is not None and (rows[f"{name} count"] != 3).any():
            raise ValueError(
                f"{path}: expected lists of three in {name!r} of {element.name!r} (triangles), got lists of other"
                " lengths; triangulate the mesh first."
            )
    return rows


def _make_mesh(rows: dict[str, np.ndarray], path: Path) -> Mesh:
    vertex = rows.get("vertex")
    if vertex is None or not {"x", "y", "z"} <= set(vertex.dtype.names or ()):
        found = sorted(rows) if vertex is None else list(vertex.dtype.names or ())
        raise ValueError(f"{path}: expected vertices with x, y and z, the file has {found}.")

    if "red" in vertex.dtype.names and vertex.dtype["red"] != np.uint8:
        raise ValueError(f"{path}: expected colours of type uchar (0 to 255), got {vertex.dtype['red']}.")

    def get(names: tuple[str, ...], kind) -> np.ndarray | None:
        if not set(names) <= set(vertex.dtype.names):
            return None
        return np.stack([vertex[name].astype(kind) for name in names], axis=1)

    face = rows.get("face")
    lists = [name for name in ("vertex_indices", "vertex_index") if face is not None and name in face.dtype.names]
    return Mesh(
        vertices=get(("x", "y", "z"), np.float32),
        colors=get(("red", "green", "blue"), np.uint8),
        normals=get(("nx", "ny", "nz"), np.float32),
        faces=face[lists[0]].astype(np.int64) if lists else None,
    )


__all__ = ["Mesh", "read_ply"]
