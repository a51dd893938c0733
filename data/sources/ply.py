"""Read vertices and faces of `.ply` files, binary of either byte order or text.

The header is read completely first and compared with the size of the file, so that no header makes this reader use
more than a few times the memory of the file.
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np

from ross3d.data.text_files import check_file


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
MAX_HEADER_BYTES, MAX_LINE_BYTES = 1 << 20, 1 << 24
# Several times the largest mesh of a ScanNet scan; reading takes some five times as much memory.
MAX_FILE_BYTES = 1 << 30
# Metres between a vertex and the middle of all; farther ones are stray, or the mesh is in millimetres.
MAX_REACH = 1000.0
# Accepted names of a vertex's colour and normal, and of the faces' list of corners.
COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
NORMALS = (("nx", "ny", "nz"), ("normal_x", "normal_y", "normal_z"))
FACE_LISTS = ("vertex_indices", "vertex_index", "indices")
# Other names of the element of faces, in lower case, and elements that hold a surface in another form.
FACE_ELEMENTS = ("face", "faces", "triangle", "triangles", "polygon", "polygons")
STRIP_ELEMENTS = ("tristrip", "tristrips", "tri_strips", "trifan", "trifans")


@dataclass(frozen=True)
class Mesh:
    """A mesh or a cloud of points.

    Attributes:
        vertices (`(M, 3)`, float32): metres, in the file's own frame.
        colors (`(M, 3)`, uint8, *optional*): RGB.
        normals (`(M, 3)`, float32, *optional*).
        faces (`(F, 3)`, int64, *optional*): triangles of vertices. A face with more corners is cut into triangles
            that share its first corner; faces of one or two corners, which have no surface, are left out.
        columns (`tuple[str, ...]`): names of the numbers of a vertex in the file.
    """

    vertices: np.ndarray
    colors: np.ndarray | None = None
    normals: np.ndarray | None = None
    faces: np.ndarray | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Property:
    """A column of an element; `length` is the type of a list's length, None for a single number."""

    name: str
    kind: str
    length: str | None


@dataclass(frozen=True)
class _Element:
    """One kind of row: its name, how many there are, and its columns."""

    name: str
    count: int
    properties: list[_Property]


@dataclass(frozen=True)
class _Lists:
    """Lists of one column: the length of each (R,), and the concatenated entries of all."""

    lengths: np.ndarray
    entries: np.ndarray


_Columns = dict[str, np.ndarray | _Lists]
# A row: the entries of each column; one entry for a column that is not a list.
_Row = list[list[int] | list[float]]


def read_ply(path: str | os.PathLike, only_vertices: bool = False) -> Mesh:
    """Read the vertices of a mesh, with colours and normals where they have them, and its faces.

    Elements with other names are skipped, at any position.

    Args:
        only_vertices (`bool`): read no further than the vertices, and of them the positions alone.

    Raises:
        FileNotFoundError, ValueError: name the file: no such file, not a PLY, a header that is invalid or promises
            more than the file holds, no x, y, z, a file that ends early, numbers that do not fit their type, faces
            whose corners have an unknown name or are vertices that do not exist, vertices that are not finite or a
            kilometre away from the others.
    """
    path = check_file(path, "a mesh in PLY format", MAX_FILE_BYTES)
    wanted = {"vertex"} if only_vertices else {"vertex", "face"}
    with path.open("rb") as file:
        order, elements = _read_header(file, path)
        _check_size(file, path, elements, order)
        # Text may end its lines in any of the three ways.
        lines = io.TextIOWrapper(file, encoding="ascii", errors="replace") if order is None else None
        wanted &= {element.name for element in elements}
        found: dict[str, _Columns] = {}
        for element in elements:
            if wanted <= found.keys():
                break
            if lines is None:
                found[element.name] = _read_binary_rows(file, path, element, order)
            else:
                found[element.name] = _gather(_walk_text_rows(lines, path, element), element)
    if not only_vertices:
        _check_surface(elements, path)
    return _make_mesh(found, path, only_vertices)


def _read_header(file: BinaryIO, path: Path) -> tuple[str | None, list[_Element]]:
    """Byte order (None for text) and elements, with the file at the first row."""
    data = file.read(MAX_HEADER_BYTES)
    start = re.match(rb"ply[ \t]*(\r\n|\n|\r)", data)
    if start is None:
        raise ValueError(f"{path}: expected a PLY file, whose first line is 'ply'; this is something else.")
    # A file ends its lines in one way, and binary rows may begin with any byte.
    end = re.compile(rb"(?:\r\n|\n|\r)end_header[ \t]*" + start[1]).search(data)
    if end is None:
        raise ValueError(f"{path}: the PLY header has no 'end_header'; the file is damaged.")
    file.seek(end.end())
    order, elements = "", []
    for line in re.split(r"\r\n|\n|\r", data[start.end() : end.start()].decode("ascii", errors="replace")):
        words = line.split()
        try:
            if words[:1] == ["format"]:
                order = ORDERS[words[1]]
            elif words[:1] == ["element"]:
                elements.append(_make_element(words, elements))
            elif words[:1] == ["property"]:
                elements[-1].properties.append(_make_property(words, elements[-1]))
            elif words[:1] not in ([], ["comment"], ["obj_info"]):
                raise ValueError("no line of a PLY header begins so")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{path}: the header's line {line.strip()[:200]!r} cannot be understood ({error!r}); export the mesh"
                " again."
            ) from error
    if order == "":
        raise ValueError(
            f"{path}: the header has no 'format' line, such as 'format ascii 1.0'; export the mesh again."
        )
    return order, elements


def _make_element(words: list[str], before: list[_Element]) -> _Element:
    _, name, count = words
    if int(count) < 0:
        raise ValueError("a number of rows is 0 or more")
    if name in {element.name for element in before}:
        raise ValueError("each element occurs once in a header")
    return _Element(name, int(count), [])


def _make_property(words: list[str], element: _Element) -> _Property:
    length = TYPES[words[2]] if words[1] == "list" else None
    kind, name = words[3:] if words[1] == "list" else words[1:]
    if length is not None and length.startswith("f"):
        raise ValueError("the length of a list has a type of whole numbers")
    if name in {known.name for known in element.properties}:
        raise ValueError("each property occurs once in an element")
    return _Property(name, TYPES[kind], length)


def _check_size(file: BinaryIO, path: Path, elements: list[_Element], order: str | None) -> None:
    """Refuse a header that promises more than the rest of the file holds, before memory is taken for it."""
    left = os.fstat(file.fileno()).st_size - file.tell()
    for element in elements:
        if not element.properties and element.count:
            raise ValueError(
                f"{path}: expected properties of the {element.count} rows of {element.name!r}, the header has none;"
                " export the mesh again."
            )
        # In text a number takes at least a digit and a separator; the last one of a file may lack the separator.
        sizes = [2 if order is None else np.dtype(p.length or p.kind).itemsize for p in element.properties]
        left -= element.count * sum(sizes)
        if left < (-1 if order is None else 0):
            _refuse_cut_file(path, element)


def _read_binary_rows(file: BinaryIO, path: Path, element: _Element, order: str) -> _Columns:
    """Columns of an element; rows whose lists are as long as those of the first row are read at once."""
    if not element.count:
        return _gather([], element)
    start = file.tell()
    first = next(_walk_binary_rows(file, path, element, order))
    file.seek(start)
    fields: list[tuple] = []
    for p, entries in zip(element.properties, first, strict=True):
        fields += [] if p.length is None else [(f"length of {p.name}", order + p.length)]
        fields.append((p.name, order + p.kind) if p.length is None else (p.name, order + p.kind, (len(entries),)))
    kind = np.dtype(fields)
    if element.count * kind.itemsize <= os.fstat(file.fileno()).st_size - start:
        rows = np.frombuffer(file.read(element.count * kind.itemsize), dtype=kind)
        lists = [(p.name, len(entries)) for p, entries in zip(element.properties, first, strict=True) if p.length]
        if all((rows[f"length of {name}"] == length).all() for name, length in lists):
            columns: _Columns = {p.name: rows[p.name] for p in element.properties}
            return columns | {
                name: _Lists(np.full(len(rows), length), rows[name].reshape(-1)) for name, length in lists
            }
        file.seek(start)
    return _gather(_walk_binary_rows(file, path, element, order), element)


def _walk_binary_rows(file: BinaryIO, path: Path, element: _Element, order: str) -> Iterator[_Row]:
    numbers = [np.dtype(order + p.kind) for p in element.properties]
    lengths = [None if p.length is None else np.dtype(order + p.length) for p in element.properties]
    size = os.fstat(file.fileno()).st_size

    def read(kind: np.dtype, amount: int) -> np.ndarray:
        if amount * kind.itemsize > size - file.tell():
            _refuse_cut_file(path, element)
        return np.frombuffer(file.read(amount * kind.itemsize), kind)

    for index in range(element.count):
        row: _Row = []
        for p, number, length in zip(element.properties, numbers, lengths, strict=True):
            amount = 1
            if length is not None:
                amount = int(read(length, 1)[0])
                if amount < 0:
                    _refuse_row(path, element, index, f"a list {p.name!r} of {amount} entries")
            row.append(read(number, amount).tolist())
        yield row


def _walk_text_rows(lines: TextIO, path: Path, element: _Element) -> Iterator[_Row]:
    for index in range(element.count):
        words, row = _read_words(lines, path, element), []
        try:
            for p in element.properties:
                amount = 1 if p.length is None else _parse_number(words.pop(0), p.length)
                if not 0 <= amount <= len(words):
                    raise ValueError(f"{amount} numbers expected for {p.name!r}, {len(words)} are left in its line")
                row.append([_parse_number(word, p.kind) for word in words[:amount]])
                del words[:amount]
            if words:
                raise ValueError(f"{len(words)} numbers more than the header names")
        except (ValueError, IndexError, OverflowError) as error:
            _refuse_row(path, element, index, str(error))
        yield row


def _read_words(lines: TextIO, path: Path, element: _Element) -> list[str]:
    """The numbers of the next line that is not blank."""
    while line := lines.readline(MAX_LINE_BYTES):
        if words := line.split():
            return words
    _refuse_cut_file(path, element)


def _parse_number(word: str, kind: str) -> int | float:
    """Parse a number of a type; a value outside the type's range is an error."""
    value = float(word)
    if kind.startswith("f"):
        return value
    limits = np.iinfo(kind)
    if not (value.is_integer() and limits.min <= value <= limits.max):
        raise ValueError(f"{word!r} is no whole number of {limits.min} to {limits.max}")
    return int(value)


def _gather(rows: Iterable[_Row], element: _Element) -> _Columns:
    """Convert rows to columns."""
    pieces: list[list[list]] = [[] for _ in element.properties]
    for row in rows:
        for column, entries in zip(pieces, row, strict=True):
            column.append(entries)
    columns: _Columns = {}
    for p, column in zip(element.properties, pieces, strict=True):
        with np.errstate(over="ignore"):
            entries = np.array(list(chain.from_iterable(column)), dtype=p.kind)
        lengths = np.array([len(entries) for entries in column], dtype=np.int64)
        columns[p.name] = entries if p.length is None else _Lists(lengths, entries)
    return columns


def _refuse_row(path: Path, element: _Element, index: int, found: str) -> None:
    raise ValueError(f"{path}: row {index} of {element.name!r} cannot be understood ({found}); export the mesh again.")


def _refuse_cut_file(path: Path, element: _Element) -> None:
    raise ValueError(
        f"{path}: the file ends before its {element.count} rows of {element.name!r} do; download or copy it again."
    )


def _check_surface(elements: list[_Element], path: Path) -> None:
    """Refuse a file whose surface lies in elements of other names, which would leave a cloud of points."""
    filled = [element.name for element in elements if element.count]
    for name in () if "face" in filled else filled:
        if name.lower() in FACE_ELEMENTS:
            raise ValueError(
                f"{path}: expected faces as the element 'face', got {name!r}; rename it in the file's header, or"
                " export the mesh again."
            )
        if name.lower() in STRIP_ELEMENTS:
            raise ValueError(
                f"{path}: expected faces as the element 'face', got strips of triangles ({name!r}); export the mesh"
                " with single faces."
            )


def _make_mesh(found: dict[str, _Columns], path: Path, only_vertices: bool) -> Mesh:
    vertex = {name: column for name, column in found.get("vertex", {}).items() if isinstance(column, np.ndarray)}
    if not {"x", "y", "z"} <= vertex.keys():
        raise ValueError(
            f"{path}: expected vertices with x, y and z, the file has {sorted(vertex) or sorted(found)}; export the"
            " mesh again."
        )

    def stack(names: tuple[str, ...], kind) -> np.ndarray:
        return np.stack([vertex[name].astype(kind) for name in names], axis=1)

    # A number beyond float32 becomes infinite, which is refused with the others.
    with np.errstate(over="ignore"):
        vertices = stack(("x", "y", "z"), np.float32)
    check_vertices(vertices, path)
    if only_vertices:
        return Mesh(vertices, columns=tuple(vertex))
    colors, normals = (
        next((names for names in known if vertex.keys() >= {*names}), None) for known in (COLORS, NORMALS)
    )
    for name in colors or ():
        if vertex[name].dtype != np.uint8:
            raise ValueError(
                f"{path}: expected colours of type uchar (0 to 255), got {name!r} of type {vertex[name].dtype}; export"
                " the mesh with colours of 8 bits."
            )
    return Mesh(
        vertices=vertices,
        colors=None if colors is None else stack(colors, np.uint8),
        normals=None if normals is None else stack(normals, np.float32),
        faces=_read_faces(found.get("face", {}), len(vertices), path),
        columns=tuple(vertex),
    )


def _read_faces(face: _Columns, num_vertices: int, path: Path) -> np.ndarray | None:
    """Triangles (F, 3); None without faces. A mesh whose corners have an unknown name is no cloud of points."""
    lists = {name: column for name, column in face.items() if isinstance(column, _Lists)}
    corners = next((lists[name] for name in FACE_LISTS if name in lists), None)
    if corners is not None:
        return _make_triangles(corners, num_vertices, path)
    if any(len(column.lengths if isinstance(column, _Lists) else column) for column in face.values()):
        way = "rename it in the file's header, or" if lists else "numbers of their own are not read:"
        raise ValueError(
            f"{path}: expected the corners of the faces as a list {' or '.join(FACE_LISTS)}, got"
            f" {', '.join(map(repr, lists or face))}; {way} export the mesh again."
        )
    return None


def check_vertices(vertices: np.ndarray, path: Path) -> None:
    """Refuse vertices (M, 3) that are not finite, or too far from the others to be metres of one scan."""
    wrong = np.flatnonzero(~np.isfinite(vertices).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"{path}: expected finite vertices, got {vertices[wrong[0]].tolist()} for vertex {wrong[0]} ({len(wrong)}"
            " such vertices); export the mesh again."
        )
    if not len(vertices):
        return
    distance = np.abs(vertices - np.median(vertices, axis=0)).max(axis=1)
    if distance.max() > MAX_REACH:
        raise ValueError(
            f"{path}: expected vertices in metres, no more than {MAX_REACH:g} m from the middle of the mesh, got"
            f" {(distance > MAX_REACH).sum()} beyond, such as vertex {distance.argmax()} at"
            f" {vertices[distance.argmax()].tolist()}; remove stray vertices, or scale millimetres to metres."
        )


def _make_triangles(corners: _Lists, num_vertices: int, path: Path) -> np.ndarray:
    """Faces as triangles (F, 3): a fan about each face's first corner."""
    entries = corners.entries
    outside = np.flatnonzero((entries < 0) | (entries >= num_vertices))
    if len(outside):
        face = int(np.searchsorted(np.cumsum(corners.lengths), outside[0], side="right"))
        raise ValueError(
            f"{path}: face {face}: expected corners of 0 to {num_vertices - 1}, the mesh's vertices, got"
            f" {entries[outside[0]]}; export the mesh again."
        )
    amounts = np.maximum(corners.lengths - 2, 0)
    first = np.repeat(np.cumsum(corners.lengths) - corners.lengths, amounts)
    # 0, 1, 2, ... within each face.
    step = np.arange(amounts.sum()) - np.repeat(np.cumsum(amounts) - amounts, amounts)
    return entries[np.stack([first, first + step + 1, first + step + 2], axis=1)].astype(np.int64)


__all__ = ["Mesh", "check_vertices", "read_ply"]
