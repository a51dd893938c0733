"""Annotation files: what is written comes back; what is wrong is refused with file and line."""

import json
from pathlib import Path

import pytest

from ross3d.data.annotations import Annotation, group_by_scene, load_annotations, save_annotations


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
            r"rows.jsonl:2: query_coords is None while the question holds 1 <coord> marks; give",
        ),
        (0, {"query_coords": [1, 2, 3]}, r"query_coords is \(1, 2, 3\) while the question holds 0 <coord> marks"),
        (2, {"object_ids": [True]}, r"rows.jsonl:3: object_ids must be a list of box indices >= 0, got \[True\]"),
        (
            2,
            {"object_ids": None},
            r"answer is '<ground>' while object_ids is None; a grounding question has the answer",
        ),
        (0, {"object_ids": []}, r"rows.jsonl:1: answer is 'red' while object_ids is \[\]; a grounding question has"),
        (3, {"id": "b"}, r"rows.jsonl:4: id 'b' was used on line 2 already"),
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
    ("line", "message"),
    [
        ('{"id": "a", "scene', r"rows.jsonl:3: not a JSON object \(.*\); the file may have been cut"),
        ("[1, 2]", r"rows.jsonl:3: expected a JSON object, got list"),
        ('{"id": "z", "scene_id": "s"}', r"rows.jsonl:3: missing fields \['answer', 'question', 'question_type'"),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path, line, message):
    write(tmp_path / "rows.jsonl", [*make_rows()[:2], line])
    with pytest.raises(ValueError, match=message):
        load_annotations(tmp_path / "rows.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations file .*none.jsonl does not exist; build it or check"):
        load_annotations(tmp_path / "none.jsonl")


def test_references_and_places_are_optional():
    row = Annotation("i", "s", "rooms", "color", "What color?", "red")
    assert row.references == [] and row.query_coords is None and row.object_ids is None
