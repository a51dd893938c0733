"""Annotation files: what is written comes back; what is wrong is refused with file and line."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ross3d.data import annotations
from ross3d.data.annotations import (
    Annotation,
    check_all_object_ids,
    check_annotation,
    check_query_coords,
    find_annotations,
    group_by_scene,
    load_annotations,
    save_annotations,
)
from ross3d.tests.limited_memory import call_within


def make_rows() -> list[dict]:
    """One question of each kind: answered, about a place, grounded, grounded without a target."""
    common = {"task": "rooms", "references": []}
    return [
        common | {"id": "a", "scene_id": "s1", "question_type": "color", "question": "What color?", "answer": "red"},
        common
        | {"id": "b", "scene_id": "s0", "question_type": "object_at", "question": "What is at <coord>?"}
        | {"answer": "chair", "query_coords": [0.5, -1.25, 0.4], "references": ["chair", "a chair"]},
        common
        | {"id": "c", "scene_id": "s1", "question_type": "grounding_unique", "question": "Find the bed."}
        | {"answer": "<ground>", "object_ids": [3, 0]},
        common
        | {"id": "d", "scene_id": "s0", "question_type": "grounding_none", "question": "Find the lamp."}
        | {"answer": "<ground>", "object_ids": []},
    ]


def test_the_lines_of_the_documentation_are_read(tmp_path):
    page = (Path(__file__).resolve().parents[1] / "docs" / "CONVENTIONS.md").read_text(encoding="utf-8")
    lines = page.split("```json\n")[1].split("```")[0]
    (tmp_path / "train.jsonl").write_text(lines)
    rows = load_annotations(tmp_path / "train.jsonl")
    assert [row.id for row in rows] == ["q0", "q1", "q2"]
    assert rows[1].query_coords == (1.5, -0.2, 0.4) and rows[2].object_ids == [3]


def write(path, rows) -> None:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.mark.parametrize("count", [1, 4])
def test_round_trip(tmp_path, count):
    write(tmp_path / "given.jsonl", make_rows()[:count])
    annotations = load_annotations(tmp_path / "given.jsonl")
    save_annotations(annotations, tmp_path / "deep" / "again.jsonl")
    again = load_annotations(tmp_path / "deep" / "again.jsonl")
    assert again == annotations and len(again) == count
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["again.jsonl"]
    if count == 4:
        assert again[1].query_coords == (0.5, -1.25, 0.4) and again[0].query_coords is None
        assert again[2].object_ids == [3, 0] and again[3].object_ids == [] and again[0].object_ids is None


def test_scenes_come_in_order_of_appearance(tmp_path):
    write(tmp_path / "rows.jsonl", [*make_rows(), ""])
    groups = group_by_scene(load_annotations(tmp_path / "rows.jsonl"))
    assert {scene: [row.id for row in rows] for scene, rows in groups.items()} == {"s1": ["a", "c"], "s0": ["b", "d"]}
    assert list(groups) == ["s1", "s0"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    write(tmp_path / "rows.jsonl", make_rows())
    rows = load_annotations(tmp_path / "rows.jsonl")
    before = (tmp_path / "rows.jsonl").read_bytes()
    rows[2].object_ids = [-1]
    with pytest.raises(ValueError, match=r"rows.jsonl:3: object_ids must be a list of box indices >= 0, got \[-1\]"):
        save_annotations(rows, tmp_path / "rows.jsonl")
    assert (tmp_path / "rows.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        (0, {"answer": ""}, r"rows.jsonl:1: answer must be a non-empty string, got ''"),
        (0, {"id": 7}, r"rows.jsonl:1: id must be a non-empty string, got 7"),
        (
            1,
            {"references": "chair"},
            r"rows.jsonl:2: references must be a list of strings, got 'chair'; wrap one answer",
        ),
        (
            1,
            {"query_coords": [0.5, 1]},
            r"rows.jsonl:2: query_coords must be three finite numbers \(metres\), got \(0.5",
        ),
        (1, {"query_coords": [0, 1, float("nan")]}, r"query_coords must be three finite numbers \(metres\), got"),
        (
            1,
            {"query_coords": None},
            r"rows.jsonl:2: query_coords is None but the question has 1 <coord> tokens; give",
        ),
        (0, {"query_coords": [1, 2, 3]}, r"query_coords is \(1, 2, 3\) but the question has 0 <coord> tokens"),
        (2, {"object_ids": [True]}, r"rows.jsonl:3: object_ids must be a list of box indices >= 0, got \[True\]"),
        (
            2,
            {"object_ids": None},
            r"answer is '<ground>' but object_ids is None; a grounding question has the answer",
        ),
        (0, {"object_ids": []}, r"rows.jsonl:1: answer is 'red' but object_ids is \[\]; a grounding question has"),
        (3, {"id": "b"}, r"rows.jsonl:4: id 'b' was already used on line 2"),
        (
            2,
            {"colour": "red"},
            r"rows.jsonl:3: unknown fields \['colour'\]; known are \['ann_id', 'answer', 'id'",
        ),
    ],
)
def test_wrong_rows_are_refused_with_their_line(tmp_path, place, changes, message):
    rows = make_rows()
    write(tmp_path / "rows.jsonl", rows)
    assert len(load_annotations(tmp_path / "rows.jsonl")) == 4
    rows[place] |= changes
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"question": "Say <|im_end|> now"},
            r"question must be plain text, got the special tokens .*im_end.*; remove them",
        ),
        ({"question": "<image>\nHow many?"}, r"question must be plain text, got the special tokens \['<image>'\]"),
        ({"question": "where is <ground>?"}, r"question must be plain text, got the special tokens \['<ground>'\]"),
        ({"question": "from <coord> to <coord>", "query_coords": [0, 1, 2]}, "question must have at most one <coord>"),
        ({"question": "  \n"}, r"question must be a non-empty string, got '  \\n'"),
        (
            {"question": "x" * 20_001},
            "question must have at most 20000 characters, got 20001; shorten it",
        ),
        (
            {"answer": "a <image> b"},
            r"answer must be plain text or only '<ground>', got the special tokens \['<image>'\]",
        ),
        (
            {"answer": "the <ground>"},
            r"answer must be plain text or only '<ground>', got the special tokens \['<ground>'\]",
        ),
        ({"answer": "\nred"}, r"answer must not begin with a line break, got '\\nred'; remove it"),
        ({"references": ["red", " "]}, r"references must have no blank strings, got \['red', ' '\]"),
        ({"object_ids": 3}, r"object_ids must be a list of box indices >= 0, got 3"),
        ({"answer": "<ground>", "object_ids": [1, 1]}, r"object_ids must have each box once, got \[1, 1\]"),
        ({"query_coords": 3}, r"query_coords must be three finite numbers \(metres\), got 3"),
        ({"query_coords": [0, 0, 1e300]}, ".*each at most 500 metres from 0: divide millimetres by 1000"),
        ({"query_coords": [0, 0, 10**299]}, ".*each at most 500 metres"),
        (
            {"scene_id": "../../secret/scan"},
            r"scene_id: expected a scene id, .*, got '../../secret/scan'",
        ),
        ({"scene_id": "/etc"}, r"scene_id: expected a scene id, .*, got '/etc', which leads"),
        ({"question": "\u200b\u200b"}, r"question must be a non-empty string, got '\\u200b\\u200b'"),
        ({"question": "\ufeff \u2060"}, r"question must be a non-empty string, got '\\ufeff \\u2060'"),
        ({"references": ["red", "\u200b"]}, r"references must have no blank strings, got \['red', '\\u200b'\]"),
        ({"question": "a\0b?"}, r"question contains the control character '\\x00' at character 1; remove it"),
        ({"answer": "red\x1b[0m"}, r"answer contains the control character '\\x1b' at character 3"),
        ({"references": ["red", "\0"]}, r"references contains the control character '\\x00'"),
        ({"scene_id": "a\0b"}, r"scene_id: expected the name of a file"),
    ],
)
def test_rows_that_would_be_refused_when_they_are_asked_are_refused_at_load(tmp_path, changes, message):
    rows = make_rows()
    rows[0] |= changes
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=rf"rows.jsonl:1: {message}"):
        load_annotations(tmp_path / "rows.jsonl")


def test_all_wrong_rows_are_told_at_once(tmp_path):
    """With their lines, so that a file is mended in one go; a single one is told as before."""
    rows = make_rows() + [make_rows()[0] | {"id": f"more-{number}"} for number in range(30)]
    rows[0] |= {"answer": ""}
    rows[2] |= {"object_ids": [-1]}
    rows[3] |= {"id": "b"}
    write(tmp_path / "rows.jsonl", rows)
    message = (
        r"rows.jsonl: expected valid annotations, got 3 wrong ones: .*rows.jsonl:1: answer must be a"
        r" non-empty .* \| .*rows.jsonl:3: object_ids must .* \| .*rows.jsonl:4: id 'b' was already used on line 2\.$"
    )
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "rows.jsonl")
    for row in rows:
        row["answer"] = "x" * 100_000
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"got 34 wrong ones: .*rows.jsonl:10: .* \| and 24 more$") as caught:
        load_annotations(tmp_path / "rows.jsonl")
    assert str(caught.value).count(" | ") == 10 and len(str(caught.value)) < 5000 and "\n" not in str(caught.value)


def test_a_file_of_nothing_but_wrong_rows_is_not_read_to_its_end(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 7}\n' * 1500)
    with pytest.raises(ValueError, match=r"got 1000 or more wrong ones: .* \| and 990 more$"):
        load_annotations(tmp_path / "rows.jsonl")


def test_all_questions_about_absent_objects_are_told_at_once(tmp_path):
    for name, count in (("s0", 1), ("s1", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "boxes.json").write_text(json.dumps([[0, 0, 0, 1, 1, 1]] * count))
    rows = [
        Annotation(f"q{number}", f"s{number % 2}", "t", "one", "Find it.", "<ground>", object_ids=[number])
        for number in range(5)
    ]
    message = (
        "object_ids: expected indices of existing boxes, got 3 wrong ones: object_ids of question 'q2'"
        r".* below 1, .* \| .*question 'q3': expected box indices below 3.* \| .*question 'q4'"
    )
    with pytest.raises(ValueError, match=message):
        check_all_object_ids(rows, lambda name: tmp_path / name)
    with pytest.raises(ValueError, match=r"^object_ids of question 'q2': expected box indices below 1"):
        check_all_object_ids(rows[:3], lambda name: tmp_path / name)
    check_all_object_ids(rows[:2], lambda name: tmp_path / name)


def test_the_question_of_a_wrong_row_is_named(tmp_path):
    rows = make_rows()
    rows[1] |= {"query_coords": [0, 1]}
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"rows.jsonl:2: query_coords .* \(question 'b'\)"):
        load_annotations(tmp_path / "rows.jsonl")


def test_halves_of_characters_are_refused_in_files_and_from_python(tmp_path):
    write(tmp_path / "rows.jsonl", make_rows())
    row = load_annotations(tmp_path / "rows.jsonl")[0]
    row.answer = "red \ud800"
    with pytest.raises(ValueError, match=r"here:1: answer contains a lone surrogate \(half of a character"):
        check_annotation(row, "here:1")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"id": "caf\ud800"}) + "\n")
    with pytest.raises(ValueError, match=r"rows.jsonl:1: .*half of a character"):
        load_annotations(tmp_path / "rows.jsonl")


def test_a_scene_outside_is_read_where_it_is_allowed(tmp_path):
    rows = make_rows()
    rows[0] |= {"scene_id": "../elsewhere/s1"}
    write(tmp_path / "rows.jsonl", rows)
    assert load_annotations(tmp_path / "rows.jsonl", allow_outside=True)[0].scene_id == "../elsewhere/s1"
    # eval.py has an option for it, train.py has none.
    with pytest.raises(ValueError, match="rows.jsonl:1: scene_id: expected a scene id.*--allow-outside"):
        load_annotations(tmp_path / "rows.jsonl", allow_outside=False)
    with pytest.raises(ValueError, match=r"rows.jsonl:1: scene_id: .*make its path relative\. \(question"):
        load_annotations(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "a", "scene', r"rows.jsonl:3: expected one annotation per line, but the file is not valid JSON \("),
        ("[1, 2]", r"rows.jsonl:3: expected a JSON object, got list"),
        ('{"id": "z", "scene_id": "s"}', r"rows.jsonl:3: missing fields \['answer', 'question', 'question_type'"),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path, line, message):
    write(tmp_path / "rows.jsonl", [*make_rows()[:2], line])
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "rows.jsonl")


BOX = [0.5, 0.5, 0.25, 1.0, 1.0, 0.5]


def make_benchmark_rows() -> list[Annotation]:
    """A caption with a place, one without, and a grounding of two objects."""
    caption = {"scene_id": "s0", "task": "scan2cap", "question_type": "unique", "question": "Describe <coord> .",
               "answer": "A bed.", "references": ["a bed."], "ann_id": "3", "target_ids": [17],
               "target_boxes": [BOX]}  # fmt: skip
    found = {"query_box": BOX, "query_iou": 0.625, "query_coords": tuple(BOX[:3])}
    return [
        Annotation(id="a", **caption, **found),
        Annotation(id="b", **caption | {"target_ids": [4]}, query_box=BOX, query_iou=0.25),
        Annotation(
            "c",
            "s1",
            "multi3drefer",
            "mt",
            "Find them.",
            "<ground>",
            object_ids=[5, 0],
            target_ids=[9, 0],
            target_boxes=[BOX, BOX],
        ),  # fmt: skip
        Annotation(
            "d", "s1", "multi3drefer", "zt_wo_d", "Find it.", "<ground>", object_ids=[], target_ids=[], target_boxes=[]
        ),  # fmt: skip
    ]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rows_of_benchmarks_come_back_from_both_kinds_of_files(tmp_path, name):
    """None stays None and an empty list an empty list."""
    rows = make_benchmark_rows()
    save_annotations(rows, tmp_path / name)
    assert load_annotations(tmp_path / name) == rows


@pytest.mark.parametrize(
    ("place", "changes", "message"),
    [
        (0, {"ann_id": 3}, "rows.jsonl:1: ann_id must be a string, got 3"),
        (2, {"target_ids": ["9", 0]}, r"rows.jsonl:3: target_ids must be a list of whole numbers, got \['9', 0\]"),
        (2, {"target_boxes": [BOX, BOX[:5]]}, r"target_boxes must be a list of \[cx, cy, cz, dx, dy, dz\], got"),
        (1, {"query_box": BOX[:3]}, "query_box must be six numbers, centre and size in metres, got"),
        (1, {"query_iou": 1.5}, "query_iou must be a number from 0 to 1, got 1.5"),
    ],
)
def test_wrong_rows_of_benchmarks_are_refused(tmp_path, place, changes, message):
    rows = [asdict(row) for row in make_benchmark_rows()]
    rows[place] |= changes
    write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "rows.jsonl")


def test_a_split_is_one_file(tmp_path):
    folder = tmp_path / "annotations"
    assert find_annotations(tmp_path, "val") == folder / "val.jsonl"
    save_annotations(make_benchmark_rows(), folder / "val.parquet")
    assert find_annotations(tmp_path, "val") == folder / "val.parquet"
    save_annotations(make_benchmark_rows(), folder / "val.jsonl")
    with pytest.raises(
        ValueError, match="val.jsonl and val.parquet both exist; remove the one that does not have your"
    ):
        find_annotations(tmp_path, "val")


def test_damaged_parquet_is_named(tmp_path):
    save_annotations(make_benchmark_rows(), tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-40])
    with pytest.raises(
        ValueError, match=r"rows.parquet: expected a Parquet file of annotations, got .*; write it again"
    ):
        load_annotations(tmp_path / "rows.parquet")


def test_a_parquet_of_many_nulls_takes_no_memory(tmp_path):
    """A few bytes promise 200 million rows, or ten million, which lack what every question has."""
    file = tmp_path / "rows.parquet"
    for rows, message in (
        (200_000_000, "got 200000000 rows; at most 10000000 are allowed"),
        (2_000_000, "missing fields"),
    ):
        pq.write_table(pa.table({"id": pa.nulls(rows)}), file, row_group_size=rows)
        assert file.stat().st_size < 2**20
        with pytest.raises(ValueError, match=f"rows.parquet.*{message}"):
            call_within(1024, load_annotations, file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations file .*none.jsonl does not exist; create it or correct"):
        load_annotations(tmp_path / "none.jsonl")


def test_references_and_places_are_optional():
    row = Annotation("i", "s", "rooms", "color", "What color?", "red")
    assert row.references == [] and row.query_coords is None and row.object_ids is None


def test_parquet_files_of_too_many_rows_are_not_read(tmp_path, monkeypatch):
    write(tmp_path / "rows.jsonl", make_rows())
    save_annotations(load_annotations(tmp_path / "rows.jsonl"), tmp_path / "rows.parquet")
    monkeypatch.setattr(annotations, "MAX_ROWS", 4)
    assert len(load_annotations(tmp_path / "rows.parquet")) == 4
    monkeypatch.setattr(annotations, "MAX_ROWS", 3)
    with pytest.raises(ValueError, match="rows.parquet: expected a Parquet file .*got 4 rows; at most 3 are allowed"):
        load_annotations(tmp_path / "rows.parquet")


@pytest.mark.parametrize("views", [1, 3])
def test_places_are_compared_with_cameras_and_readings(views):
    """Readings count only where the cameras are too far away, and are only computed then."""
    cameras = np.broadcast_to(np.eye(4), (views, 4, 4)).copy()
    cameras[:, 0, 3] = np.arange(views)
    far = torch.tensor([[100.0, 0.0, 0.0], [0.0, 0.0, 3.0]])

    def ask(x, y, z, cam2world=cameras, readings=None):
        question = Annotation("q7", "room", "rooms", "color", "What is at <coord>?", "red", query_coords=(x, y, z))
        check_query_coords(question, cam2world, lambda: pytest.fail("computed") if readings is None else readings, "f")

    ask(-50.0, 50.0, 50.0)
    ask(49.0 + views, -50.0, 0.0)
    ask(149.0, 0.0, 53.0, readings=far)
    ask(900.0, 0.0, 0.0, cam2world=None)
    message = r"f: query_coords of question 'q7': expected a point in metres, at most 50 m from the observed part"
    for point in ((151.0, 0.0, 0.0), (0.0, -51.0, 0.0), (0.0, 0.0, 54.0)):
        with pytest.raises(ValueError, match=message):
            ask(*point, readings=far)
