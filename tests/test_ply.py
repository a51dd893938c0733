"""Every legal form of a PLY file, and headers and rows that lie."""

import itertools
import os
import struct

import numpy as np
import pytest

from ross3d.data.sources.ply import read_ply
from ross3d.tests.limited_memory import call_within


VERTICES = np.array([[0, 0, 0], [2, 0, 0.5], [2, 1, 0], [0, 1.25, 0], [-1, 0.5, 3]], dtype=np.float32)
FACES = [[0, 1, 2, 3], [3, 4, 0], [], [2, 1], [0, 1, 2, 3, 4]]
# Each face about its first corner.
TRIANGLES = [[0, 1, 2], [0, 2, 3], [3, 4, 0], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
CORNERS = "property list uchar int vertex_indices"
CODES = {"uchar": "B", "int8": "b", "ushort": "H", "int": "i", "uint32": "I", "short": "h"}


def write_mesh(file, order="<", newline="\n", length="uchar", corner="int", faces=FACES, more="", vertices=VERTICES):
    """A mesh with an element of lists before the vertices, and a column of lists among the faces' own."""
    form = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    header = f"""ply
format {form} 1.0
comment end_header in a comment, \xe9
obj_info made by a test
element camera 2
property list {length} float lens
property uchar kind
element vertex {len(vertices)}
property float x
property double y
property float z
property uchar red
property uchar green
property uchar blue
{more}element face {len(faces)}
property list {length} {corner} vertex_indices
property short material
element edge 1
property int first
end_header
""".replace("\n", newline)
    n, c = CODES[length], CODES[corner]
    rows = [(n, 3), ("3f", 0.5, 1, 2), ("B", 7), "", (n, 1), ("f", 0.25), ("B", 8), ""]
    for x, y, z in vertices.tolist():
        rows += [("f", x), ("d", y), ("f", z), ("3B", 9, 8, 7), ""]
    for face in faces:
        rows += [(n, len(face)), (f"{len(face)}{c}", *face), ("h", -1), ""]
    rows += [("i", 5), ""]
    if order:
        body = b"".join(struct.pack(order + row[0], *row[1:]) for row in rows if row)
    else:
        lines = [[str(value) for row in line for value in row[1:]] for line in split(rows)]
        body = newline.join(map(" ".join, lines)).encode()
    file.write_bytes(header.encode("latin-1") + body)
    return file


def split(rows: list) -> list[list]:
    return [list(group) for is_row, group in itertools.groupby(rows, bool) if is_row]


@pytest.mark.parametrize("order", ["<", ">", ""])
@pytest.mark.parametrize(
    ("length", "corner", "newline"),
    [("uchar", "int", "\n"), ("int", "uint32", "\r\n"), ("ushort", "short", "\r"), ("int8", "uchar", "\n")],
)
def test_every_form_is_read(tmp_path, order, length, corner, newline):
    file = write_mesh(tmp_path / "mesh.ply", order, newline, length, corner)
    mesh = read_ply(file)
    assert np.array_equal(mesh.vertices, VERTICES) and mesh.colors.tolist() == [[9, 8, 7]] * 5
    assert mesh.faces.tolist() == TRIANGLES and mesh.normals is None
    alone = read_ply(file, only_vertices=True)
    assert np.array_equal(alone.vertices, VERTICES) and alone.faces is None
    for faces, wanted in (([[0, 1, 2, 3]] * 3, [[0, 1, 2], [0, 2, 3]] * 3), ([], []), ([[1], [2]], [])):
        found = read_ply(write_mesh(tmp_path / "alike.ply", order, newline, length, corner, faces)).faces
        assert found.tolist() == wanted and found.shape == (len(wanted), 3)


def test_faces_may_stand_before_the_vertices(tmp_path):
    (tmp_path / "mesh.ply").write_text(
        "ply\nformat ascii 1.0\nelement face 1\nproperty list uchar int vertex_index\nelement vertex 4\n"
        "property float x\nproperty float y\nproperty float z\nend_header\n\n4 0 1 2 3\n0 0 0\n1 0 0\n\n1 1 0\n0 1.5 0"
    )
    assert read_ply(tmp_path / "mesh.ply").faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert read_ply(tmp_path / "mesh.ply", only_vertices=True).vertices[3].tolist() == [0, 1.5, 0]


@pytest.mark.parametrize("order", ["<", ">", ""])
@pytest.mark.parametrize(
    ("colors", "normals", "faces"),
    [
        (("r", "g", "b"), ("normal_x", "normal_y", "normal_z"), "indices"),
        (("diffuse_red", "diffuse_green", "diffuse_blue"), ("nx", "ny", "nz"), "vertex_index"),
    ],
)
def test_columns_count_under_their_other_names(tmp_path, order, colors, normals, faces):
    columns = [f"property uchar {name}" for name in colors] + [f"property float {name}" for name in normals]
    form = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    lists = ("element face 2", f"property list uchar int {faces}", "property list uchar float texcoord")
    header = make_header("element vertex 3", *XYZ, *columns, *lists, form=form)
    vertices = [(0, 0, 0, 9, 8, 7, 0, 0, 1), (1, 0, 0, 255, 0, 1, 0, 1, 0), (0, 2, 0, 3, 4, 5, 1, 0, 0)]
    corners = [(3, 0, 1, 2, 2, 0.5, 0.25), (3, 2, 1, 0, 2, 0, 1)]
    if order:
        rows = [struct.pack(f"{order}3f3B3f", *row) for row in vertices]
        rows += [struct.pack(f"{order}B3iB2f", *row) for row in corners]
        body = b"".join(rows)
    else:
        body = "\n".join(" ".join(map(str, row)) for row in [*vertices, *corners]).encode()
    (tmp_path / "mesh.ply").write_bytes(header + body)
    mesh = read_ply(tmp_path / "mesh.ply")
    assert mesh.colors.tolist() == [[9, 8, 7], [255, 0, 1], [3, 4, 5]]
    assert mesh.normals.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    assert mesh.faces.tolist() == [[0, 1, 2], [2, 1, 0]] and mesh.columns == ("x", "y", "z", *colors, *normals)
    alone = read_ply(tmp_path / "mesh.ply", only_vertices=True)
    assert alone.vertices.tolist() == mesh.vertices.tolist() and alone.colors is alone.normals is alone.faces is None


def test_faces_of_an_unknown_name_are_no_cloud_of_points(tmp_path):
    faces = ("element face 1", "property list uchar int corners", "property list uchar float texcoord")
    text = make_header("element vertex 3", *XYZ, *faces, form="ascii").decode() + "0 0 0\n1 0 0\n1 1 0\n"
    (tmp_path / "mesh.ply").write_text(text + "3 0 1 2 0\n")
    message = "faces as a list vertex_indices or vertex_index or indices, got 'corners', 'texcoord'; rename it in the"
    with pytest.raises(ValueError, match=message):
        read_ply(tmp_path / "mesh.ply")
    assert read_ply(tmp_path / "mesh.ply", only_vertices=True).vertices.shape == (3, 3)
    # An element without rows, or without lists, is no mesh either way.
    for lines in (["element face 0", *faces[1:]], ["element face 0", "property int material"]):
        text = make_header("element vertex 1", *XYZ, *lines, form="ascii").decode()
        (tmp_path / "mesh.ply").write_text(text + "0 0 0\n")
        assert read_ply(tmp_path / "mesh.ply").faces is None


@pytest.mark.parametrize("order", ["<", ">", ""])
@pytest.mark.parametrize(
    ("lines", "row", "message"),
    [
        (
            ("element face 1", *(f"property int v{number}" for number in (1, 2, 3))),
            (0, 1, 2),
            "as a list vertex_indices or .*, got 'v1', 'v2', 'v3'; numbers of their own are not read: export",
        ),
        (("element faces 1", CORNERS), (3, 0, 1, 2), "as the element 'face', got 'faces'; rename it in the file's h"),
        (("element Face 1", CORNERS), (3, 2, 1, 0), "as the element 'face', got 'Face'; rename it in the file's head"),
        (
            ("element face 0", CORNERS, "element tristrips 1", CORNERS),
            (4, 0, 1, 2, -1),
            "as the element 'face', got strips of triangles .'tristrips'.; export the mesh with single faces",
        ),
    ],
)
def test_a_surface_in_another_form_is_no_cloud_of_points(tmp_path, order, lines, row, message):
    form = {"<": "binary_little_endian", ">": "binary_big_endian", "": "ascii"}[order]
    vertices = [(0, 0, 0), (1, 0, 0), (1, 1, 0)]
    if order:
        first = "B" if any("list" in line for line in lines) else "i"
        body = b"".join(struct.pack(f"{order}3f", *vertex) for vertex in vertices)
        body += struct.pack(f"{order}{first}{len(row) - 1}i", *row)
    else:
        body = "\n".join(" ".join(map(str, numbers)) for numbers in [*vertices, row]).encode()
    (tmp_path / "mesh.ply").write_bytes(make_header("element vertex 3", *XYZ, *lines, form=form) + body)
    with pytest.raises(ValueError, match=message):
        read_ply(tmp_path / "mesh.ply")
    assert read_ply(tmp_path / "mesh.ply", only_vertices=True).vertices.tolist() == [list(v) for v in vertices]


def make_header(*lines: str, form: str = "binary_little_endian") -> bytes:
    return "\n".join(["ply", f"format {form} 1.0", *lines, "end_header", ""]).encode()


XYZ = ("property float x", "property float y", "property float z")
LISTS = "property list uchar int vertex_index"
CUT = r"mesh.ply: the file ends before its \d+ rows of '(vertex|face|edge)' do; download or copy it again"
FORMS = ("binary_little_endian", "binary_big_endian", "ascii")
LIES = {
    "many vertices": (["element vertex 1152921504606846976", *XYZ], CUT),
    "many faces": (["element vertex 1", *XYZ, "element face 10000000000", LISTS], CUT),
    "many edges": (["element edge 99999999999", "property int first", "element vertex 1", *XYZ], CUT),
    "fewer than none": (
        ["element vertex -1", *XYZ],
        r"'element vertex -1' cannot be understood \(.*a number of rows is 0 or more",
    ),
    "a fraction": (["element vertex 1.5", *XYZ], "'element vertex 1.5' cannot be understood"),
    "no number": (["element vertex", *XYZ], "'element vertex' cannot be understood"),
    "digits": (
        ["element vertex 1" + 5000 * "0", *XYZ],
        "the header's line 'element vertex 1000.*cannot be understood",
    ),
    "an element twice": (["element vertex 1", *XYZ, "element vertex 1"], "each element occurs once in a header"),
    "a property twice": (
        ["element vertex 1", *XYZ, XYZ[1]],
        "'property float y' .*each property occurs once in an element",
    ),
    "an element of nothing": (
        ["element edge 1152921504606846976", "element vertex 1", *XYZ],
        "mesh.ply: expected properties of the 1152921504606846976 rows of 'edge', the header has none; export",
    ),
    "a property of nothing": (["property float x"], "'property float x' cannot be understood"),
    "a length of floats": (["element face 1", "property list float int a"], "a list has a type of whole numbers"),
    "another word": (["element vertex 1", *XYZ, "proprety uchar red"], "no line of a PLY header begins so"),
    "coordinates in lists": (
        ["element vertex 1", "property list uchar float x", "property float y", "property float z"],
        r"expected vertices with x, y and z, the file has \['y', 'z'\]; export the mesh again",
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_take_no_memory(tmp_path, form, lie):
    lines, message = LIES[lie]
    (tmp_path / "mesh.ply").write_bytes(
        make_header(*lines, form=form) + (b"1 0 0 0\n" if form == "ascii" else b"\x01" * 20)
    )
    with pytest.raises(ValueError, match=message):
        call_within(64, read_ply, tmp_path / "mesh.ply")


def test_files_of_holes_and_pipes_are_refused(tmp_path):
    file = tmp_path / "mesh.ply"
    file.write_bytes(make_header("element vertex 1666666666", *XYZ))
    os.truncate(file, 20 * 2**30)
    with pytest.raises(ValueError, match="mesh.ply: expected a mesh in PLY format, of at most 1074 MB, got 21475 MB"):
        call_within(64, read_ply, file)
    os.mkfifo(tmp_path / "pipe.ply")
    with pytest.raises(ValueError, match="pipe.ply: expected a mesh in PLY format, got a pipe, socket or device"):
        read_ply(tmp_path / "pipe.ply")
    with pytest.raises(ValueError, match="expected a mesh in PLY format, got a folder"):
        read_ply(tmp_path)
    file.write_bytes(b"ply\nelement vertex 0\n" + "\n".join(XYZ).encode() + b"\nend_header\n")
    with pytest.raises(ValueError, match="mesh.ply: the header has no 'format' line, such as"):
        read_ply(file)
    file.write_bytes(make_header("element vertex 1", *XYZ) + np.array([1, 2, -3], "<f4").tobytes())
    assert read_ply(file).vertices.tolist() == [[1, 2, -3]]


@pytest.mark.parametrize("order", ["<", ">", ""])
def test_rows_that_are_wrong_name_their_place(tmp_path, order):
    def read(**changes):
        return read_ply(write_mesh(tmp_path / "mesh.ply", order, **changes))

    for wrong, found in (([0, 1, 5], 5), ([0, -1, 2, 3], -1)):
        with pytest.raises(ValueError, match=rf"face 5: expected corners of 0 to 4, the mesh's vert.*got {found};"):
            read(faces=[*FACES, wrong])
    for value in (np.nan, np.inf):
        spoiled = VERTICES.copy()
        spoiled[3, 1] = value
        with pytest.raises(
            ValueError, match=rf"expected finite vertices, got \[0.0, {value}, 0.0\] for vertex 3 \(1 "
        ):
            read(vertices=spoiled)
    far = VERTICES.copy()
    far[2, 0] = 1e6
    with pytest.raises(
        ValueError, match="no more than 1000 m from the middle of the mesh, got 1 beyond, such as vertex 2"
    ):
        read(vertices=far)
    with pytest.raises(ValueError, match="remove stray vertices, or scale millimetres to metres"):
        read(vertices=VERTICES * 1000)
    # A whole building passes, wherever its origin is.
    assert read(vertices=VERTICES * 100 + 4e6).vertices[1, 0] == np.float32(4000200)


def test_numbers_that_do_not_fit_their_type(tmp_path):
    head = make_header("element vertex 2", *XYZ, "property uchar red", form="ascii").decode()
    faces = make_header("element vertex 1", *XYZ, "element face 1", LISTS, form="ascii").decode() + "0 0 0\n"
    cases = {
        head
        + "1 2 3 255\n4 5 6 256\n": "row 1 of 'vertex' cannot be understood .'256' is no whole number of 0 to 255",
        head + "1 2 3 255\n4 5 6 1.5\n": "'1.5' is no whole number of 0 to 255",
        head + "1 2 3 255\n4 5 six 7\n": "row 1 of 'vertex' cannot be understood .could not convert",
        head + "1 2 3 255\n4 5 6 7 8\n": "1 numbers more than the header names",
        head
        + "1 2 3 255\n4.125 5 6\n": "row 1 of 'vertex' cannot be understood .pop from empty|1 numbers expected for",
        faces + "999 0 0 0\n": "row 0 of 'face' cannot be understood .'999' is no whole number of 0 to 255",
        faces + "200 0 0 0\n": "200 numbers expected for 'vertex_index', 3 are left in its line",
    }
    for text, message in cases.items():
        (tmp_path / "mesh.ply").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ply(tmp_path / "mesh.ply")
    signed = make_header("element face 1", "property list char int vertex_index", "element vertex 1", *XYZ)
    (tmp_path / "mesh.ply").write_bytes(signed + b"\xff" + bytes(40))
    with pytest.raises(ValueError, match="row 0 of 'face' cannot be understood .a list 'vertex_index' of -1 entries"):
        read_ply(tmp_path / "mesh.ply")
    lists = make_header("element face 1", "property list uint int vertex_index", "element vertex 1", *XYZ)
    (tmp_path / "mesh.ply").write_bytes(lists + b"\xff\xff\xff\xff" + bytes(40))
    with pytest.raises(ValueError, match="the file ends before its 1 rows of 'face' do"):
        call_within(64, read_ply, tmp_path / "mesh.ply")
