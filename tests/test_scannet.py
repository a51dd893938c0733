"""Raw ScanNet scans: meshes, objects of segments, and whole scans equal to the rooms they were written from."""

import json
import warnings

import numpy as np
import pytest

from ross3d.data.sources.ply import read_ply
from ross3d.data.sources.scannet import read_scannet_scan
from ross3d.data.sources.scannet_objects import (
    SegmentGroup,
    compute_instance_boxes,
    get_semantic_class,
    label_vertices,
    read_axis_alignment,
    read_nyu40_ids,
    read_segment_groups,
    read_segments,
)
from ross3d.tests.raw_scannet import write_ply, write_raw_scan
from ross3d.tests.scan_folders import decode_colors, get_depth_metres


# ---- whole scans


@pytest.mark.parametrize("settings", [{}, {"index": 3, "num_frames": 5, "axis_alignment": False, "normals": True}])
def test_a_scan_is_the_room_it_was_written_from(tmp_path, settings):
    raw = write_raw_scan(tmp_path, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = read_scannet_scan(raw.folder, frame_step=1)
    assert scene.scene_id == "scene0000_00" and scene.exclusions == {}
    assert scene.view_names == [f"{index:05d}" for index in range(len(raw.depth_mm))]
    assert np.array_equal(scene.images, decode_colors(raw))
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw))
    assert np.abs(scene.cam2world - raw.cam2world).max() < 1e-5
    assert np.allclose(scene.intrinsics, raw.depth_intrinsics, rtol=1e-6)
    assert np.abs(scene.boxes - raw.boxes).max() < 1e-5
    assert np.abs(scene.boxes[2:] - raw.room.boxes).max() < 1e-5
    assert [label["category"] for label in scene.box_labels] == raw.categories
    assert [label["object_id"] for label in scene.box_labels] == raw.object_ids
    assert [label["nyu40_id"] for label in scene.box_labels][:2] == [2, 1]


def test_every_tenth_frame_is_read_and_no_other_is_decoded(tmp_path):
    raw = write_raw_scan(tmp_path, num_frames=31)
    assert read_scannet_scan(raw.folder).view_names == ["00000", "00010", "00020", "00030"]
    chosen = read_scannet_scan(raw.folder, frame_step=2, num_views=3)
    assert chosen.view_names == ["00000", "00014", "00030"]
    damaged = bytearray((raw.folder / "scene0000_00.sens").read_bytes())
    start = damaged.index(raw.color_jpegs[10])
    damaged[start : start + 50] = bytes(50)
    (raw.folder / "scene0000_00.sens").write_bytes(damaged)
    assert read_scannet_scan(raw.folder, num_views=2).view_names == ["00000", "00030"]
    with pytest.raises(ValueError, match=r"1 of 4 frames cannot be used, .*picture cannot be read: 1, such as"):
        read_scannet_scan(raw.folder)


def test_lost_frames_are_left_out_and_ids_keep_their_gaps(tmp_path):
    raw = write_raw_scan(tmp_path, num_frames=11, lost=(0, 7), id_gap=True)
    with pytest.warns(UserWarning) as caught:
        scene = read_scannet_scan(raw.folder, frame_step=1)
    texts = [str(warning.message) for warning in caught]
    assert any(
        "scene 'scene0000_00': objects [2] have no vertices left, so they have no box" in text for text in texts
    )
    assert any(
        "scene 'scene0000_00': left out 2 of 11 frames (tracking was lost: 2, such as" in text for text in texts
    )
    assert scene.exclusions == {"00000": "tracking was lost", "00007": "tracking was lost"}
    kept = [index for index in range(11) if index not in raw.lost]
    assert np.abs(scene.cam2world - raw.cam2world[kept]).max() < 1e-5
    assert [label["object_id"] for label in scene.box_labels] == raw.object_ids
    assert raw.object_ids[:3] == [0, 1, 3]
    assert np.abs(scene.boxes - raw.boxes).max() < 1e-5


def test_alignment_boxes_and_labels_can_be_given(tmp_path):
    raw = write_raw_scan(tmp_path / "here")
    scene = read_scannet_scan(raw.folder, frame_step=3, axis_align_matrix=np.eye(4), boxes=np.ones((4, 6)))
    assert np.allclose(raw.axis_align_matrix @ scene.cam2world, raw.cam2world[::3], atol=1e-5)
    assert scene.boxes.shape == (4, 6) and scene.box_labels is None
    moved = raw.labels_file.rename(tmp_path / "labels.tsv")
    with pytest.raises(FileNotFoundError, match="labels.combined.tsv is missing; expected ScanNet's table of labels"):
        read_scannet_scan(raw.folder)
    assert len(read_scannet_scan(raw.folder, labels_file=moved).boxes) == len(raw.boxes)
    (raw.folder / "scene0000_00.aggregation.json").unlink()
    assert read_scannet_scan(raw.folder).boxes is None


def test_scans_that_are_wrong_are_refused(tmp_path):
    raw = write_raw_scan(tmp_path, lost=(1,), num_frames=3)
    with pytest.raises(FileNotFoundError, match="scans.sens does not exist; give the folder of one scan"):
        read_scannet_scan(raw.folder.parent)
    with pytest.raises(
        ValueError, match="frame_step must be at least 1 frame, got 0; 10 is that of the public export"
    ):
        read_scannet_scan(raw.folder, frame_step=0)
    message = r"scene 'scene0000_00': 1 of 3 frames cannot be used, more than max_excluded = 0.2 of them \(track"
    with pytest.raises(ValueError, match=message):
        read_scannet_scan(raw.folder, frame_step=1)
    with pytest.warns(UserWarning, match="left out 1 of 3 frames"):
        assert read_scannet_scan(raw.folder, frame_step=1, max_excluded=0.4).num_views == 2
    segments = raw.folder / "scene0000_00_vh_clean_2.0.010000.segs.json"
    whole = json.loads(segments.read_text())
    segments.write_text(json.dumps({"segIndices": whole["segIndices"][:-2]}))
    with pytest.raises(ValueError, match=r"segs.json: \d+ segments for the \d+ vertices of the mesh; they belong"):
        read_scannet_scan(raw.folder)
    (raw.folder / "scene0000_00.txt").unlink()
    with pytest.raises(FileNotFoundError, match="scene0000_00.txt does not exist; expected the scan's meta data"):
        read_scannet_scan(raw.folder)


def test_a_recording_of_no_frames_is_refused(tmp_path):
    raw = write_raw_scan(tmp_path)
    sens = raw.folder / "scene0000_00.sens"
    content = sens.read_bytes()
    start = content.index((7).to_bytes(8, "little"))
    sens.write_bytes(content[:start] + bytes(8))
    with pytest.raises(ValueError, match="scene0000_00.sens holds zero frames; export or download it again"):
        read_scannet_scan(raw.folder)


# ---- objects


GROUPS = [SegmentGroup(0, "chair", (4, 9)), SegmentGroup(5, "what is this", (7,)), SegmentGroup(3, "table", (9,))]
NYU40 = {"chair": 5, "table": 7, "case": 40}


def test_later_objects_take_segments_over():
    labels = label_vertices(np.array([4, 9, 9, 7, 1]), GROUPS, NYU40)
    assert labels.instance_ids.tolist() == [0, 3, 3, 5, -1]
    assert labels.semantic_labels.tolist() == [4, 6, 6, 19, 19]
    assert labels.vanished == [] and labels.instance_ids.dtype == np.int16
    assert label_vertices(np.array([9, 7, 1]), GROUPS, NYU40).vanished == [0]


def test_classes_of_nyu40_ids():
    assert [get_semantic_class(nyu) for nyu in (0, 1, 12, 13, 14, 16, 24, 36, 39, 40)] == [
        *(19, 0, 11, 19, 12, 13, 14, 18, 19, 19)
    ]


def test_boxes_go_by_increasing_id():
    vertices = np.array([[0, 0, 0], [1, 2, 3], [5, 5, 5], [9, 9, 9]], dtype=np.float32)
    found = compute_instance_boxes(vertices, np.array([7, 7, 2, -1]))
    assert found.object_ids.tolist() == [2, 7]
    assert found.boxes.tolist() == [[5, 5, 5, 0, 0, 0], [0.5, 1, 1.5, 1, 2, 3]]
    assert found.corners[1].tolist() == [[x, y, z] for z in (0, 3) for x in (0, 1) for y in (0, 2)]
    assert compute_instance_boxes(vertices, np.full(4, -1)).boxes.shape == (0, 6)


def make_groups(**changes) -> str:
    group = {"objectId": 4, "label": "chair", "segments": [7]}
    return json.dumps({"segGroups": [group, group | changes]})


def test_files_of_objects_that_are_wrong_are_refused(tmp_path):
    file = tmp_path / "file"
    cases = [
        (
            read_axis_alignment,
            "axisAlignment = 1 0 0",
            r"file: axisAlignment: expected 16 numbers, row by row, got '1 0 0'",
        ),
        (
            read_axis_alignment,
            "axisAlignment = " + "2 " * 16,
            r"axisAlignment: expected rigid .*file; remove",
        ),
        (
            read_axis_alignment,
            "axisAlignment = " + "nan " * 16,
            r"axisAlignment: .* in .*file; download",
        ),
        (read_axis_alignment, "axisAlignment = \udcff", r"file:1: expected the scan's meta data .*not UTF-8"),
        (read_segments, "[]", r'file: expected a dictionary with "segIndices", .*, got a list'),
        (read_segments, "{", r"file: expected a dictionary with \"segIndices\".*, but the file is not valid JSON \("),
        (read_segments, "[" * 100_000, r"file: expected a dictionary .*too deeply nested brackets"),
        (
            read_segments,
            '{"segIndices": 3}',
            r"file: segIndices must be a list of whole numbers, one a vertex, got int",
        ),
        (
            read_segments,
            '{"segIndices": [1, "2"]}',
            r"segIndices must be whole numbers, one a vertex, got 2 at place 1",
        ),
        (
            read_segments,
            '{"segIndices": [[1, 2], [3, 4]]}',
            r"segIndices must be whole numbers.*got \[1, 2\] at place 0",
        ),
        (
            read_segments,
            '{"segIndices": [1, 2.5]}',
            r"segIndices must be whole numbers, one a vertex, got 2.5 at place",
        ),
        (
            read_segments,
            '{"segIndices": [1e999]}',
            r"segIndices must be whole numbers, one a vertex, got inf at place",
        ),
        (read_segments, '{"segIndices": [99999999999999999999]}', r"got 99999999999999999999 at place 0; download"),
        (read_segment_groups, "{}", r"file: expected a dictionary with \"segGroups\", .*, got no segGroups"),
        (read_segment_groups, '{"segGroups": {}}', r"file: segGroups must be a list of objects, got dict"),
        (read_segment_groups, '{"segGroups": [3]}', r'segGroups, object 0: expected \{"objectId": ..., .*, got 3;'),
        (read_segment_groups, make_groups(label=None), r"segGroups, object 1: label must be a name, got None"),
        (read_segment_groups, make_groups(segments=[[7]]), r"object 1: segments must be whole .*object, got \[7\] at"),
        (read_segment_groups, make_groups(segments="12"), r"object 1: segments must be a list of whole numbers, tho"),
        *(
            (
                read_segment_groups,
                make_groups(objectId=wrong),
                r"object 1: objectId must be a whole number of 0 to 327",
            )
            for wrong in (99999, -1, 1.5, True, "3", float("inf"))
        ),
        (
            read_nyu40_ids,
            "id\tname\n1\tchair\n",
            r"expected tab-separated columns raw_category and nyu40id, got",
        ),
        (
            read_nyu40_ids,
            "raw_category\tnyu40id\ncase\tmany\n",
            r"file: nyu40id must be a whole number in each row \(invalid literal",
        ),
        (
            read_nyu40_ids,
            "raw_category\tnyu40id\nchair\t5\n",
            r"file: no row of 'case', which unknown names count as; take ScanNet's own file",
        ),
    ]
    for read, text, message in cases:
        file.write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=message):
            read(file)
    file.write_text("sceneType = Hotel\n")
    assert read_axis_alignment(file) is None


# ---- meshes


def make_mesh():
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(7, 3)).astype(np.float32)
    return vertices, rng.integers(0, 256, (7, 3), dtype=np.uint8), rng.integers(0, 7, (4, 3))


def test_binary_meshes_come_back(tmp_path):
    vertices, colors, faces = make_mesh()
    for normals in (False, True):
        write_ply(tmp_path / "mesh.ply", vertices, colors, faces, normals)
        mesh = read_ply(tmp_path / "mesh.ply")
        assert np.array_equal(mesh.vertices, vertices) and np.array_equal(mesh.colors, colors)
        assert np.array_equal(mesh.faces, faces)
        assert (mesh.normals is not None) == normals
    assert mesh.normals.tolist() == [[0, 0, 1]] * 7


def make_header(*properties, form="ascii 1.0", count=2):
    return f"ply\nformat {form}\nelement vertex {count}\n" + "".join(f"property {p}\n" for p in properties)


XYZ = ("float x", "double y", "float z")


def test_text_and_big_endian_meshes_are_read(tmp_path):
    file = tmp_path / "mesh.ply"
    faces = "element face 1\nproperty list uchar int vertex_index\nend_header\n"
    file.write_text(make_header(*XYZ) + faces + "1 2 3\n4 5 6.5\n3 0 1 1\n")
    mesh = read_ply(file)
    assert mesh.vertices.tolist() == [[1, 2, 3], [4, 5, 6.5]] and mesh.faces.tolist() == [[0, 1, 1]]
    assert mesh.colors is None and mesh.normals is None
    rows = np.array([(1, 2, 3), (4, 5, 6.5)], dtype=[("x", ">f4"), ("y", ">f8"), ("z", ">f4")])
    file.write_bytes((make_header(*XYZ, form="binary_big_endian 1.0") + "end_header\n").encode() + rows.tobytes())
    assert np.array_equal(read_ply(file).vertices, mesh.vertices) and read_ply(file).faces is None


def test_meshes_that_are_wrong_are_refused(tmp_path):
    file = tmp_path / "mesh.ply"
    with pytest.raises(FileNotFoundError, match="mesh.ply does not exist; expected a mesh in PLY format"):
        read_ply(file)
    end = "end_header\n"
    cases = {
        "solid cube\n": "mesh.ply: expected a PLY file, whose first line is 'ply'; this is something else",
        make_header(*XYZ): "the PLY header has no 'end_header'; the file is damaged",
        make_header("half x") + end: r"the header's line 'property half x' cannot be understood \(KeyError\('half'",
        make_header(*XYZ, form="utf8 1.0") + end: r"the header's line 'format utf8 1.0' cannot be understood",
        make_header(*XYZ) + end + "1 2 3\n": r"the file ends before its 2 rows of 'vertex' do; download or copy it",
        make_header(*XYZ) + end + "1 2 3\n4.25 5.5\n": r"mesh.ply: row 1 of 'vertex' cannot be understood \(1 numb",
        make_header(*XYZ, form="binary_little_endian 1.0") + end: r"the file ends before its 2 rows of 'vertex' do",
        make_header("float x") + end + "1\n2\n": r"mesh.ply: expected vertices with x, y and z, the file has \['x'\]",
        make_header(*XYZ, "float r", "float g", "float b") + end + 2 * "1 2 3 1 0 0.5\n": (
            r"mesh.ply: expected colours of type uchar \(0 to 255\), got 'r' of type float32; export the mesh with"
        ),
    }
    for text, message in cases.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_ply(file)
