"""Splits of our rooms: those of before stay as they are, the others are harder in the way that their row says."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from ross3d.data.annotations import load_annotations
from ross3d.data.sources import read_scene
from ross3d.scenes.build import build_scenes, format_baselines, get_scene_id, main, make_scene
from ross3d.scenes.rooms import CATEGORIES, COLORS, SPLITS, UNSEEN_PAIRS, find_training_split, make_room


def hash_build(folder: Path, splits=("train", "val")) -> str:
    """Questions, boxes, pixels, depth in millimetres and cameras of a build."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update((folder / "annotations" / f"{split}.jsonl").read_bytes())
        for path in sorted((folder / split).iterdir()):
            scene = read_scene(path)
            digest.update((path / "boxes.json").read_bytes() + scene.images.tobytes())
            digest.update(np.round(scene.depth_maps * 1000).astype(np.uint16).tobytes())
            digest.update((np.round(scene.cam2world, 6) + 0.0).tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("seed", "counts", "size", "views", "expected"),
    [
        (0, (12, 5), (24, 16), 3, "4ef502c3372a74e093f680de889c65bd65e7f80535647a067888f7c6ac573900"),
        (7, (5, 4), (16, 20), 2, "c632880ef4fe469b210cff2e3de8436f495ba7a84ef37efa8c6fc114941938ce"),
    ],
)
def test_train_and_val_are_what_they_were_before_there_were_other_splits(
    tmp_path, seed, counts, size, views, expected
):
    settings = {"image_size": size, "num_views": views, "bev_size": 8, "seed": seed, "workers": 1}
    build_scenes(tmp_path / "rooms", *counts, **settings)
    assert hash_build(tmp_path / "rooms") == expected


def test_numbers_of_splits_are_their_own():
    numbers = [split.number for split in SPLITS.values()]
    assert len(set(numbers)) == len(numbers) and not {2, 3} & set(numbers)
    assert {split.trained_on for split in SPLITS.values()} <= SPLITS.keys()
    assert find_training_split("val_unseen_pairs") == "train_seen_pairs" and find_training_split("test") == "train"


@pytest.mark.parametrize("name", SPLITS)
def test_rooms_of_a_split_are_as_its_row_says(name):
    split = SPLITS[name]
    for index in range(12):
        room, _ = make_room(3, name, index)
        assert split.area[0] <= room.area <= split.area[1] + 1e-6
        assert (room.high - room.low)[:2].max() <= split.longest + 1e-6
        assert split.pieces[0] <= len(room.furniture) <= split.pieces[1]
        assert all(split.allows(piece.color, piece.category) for piece in room.furniture)
    scene, _, _ = make_scene(3, name, 1, num_views=5, image_size=(16, 12), bev_size=8)
    assert scene.num_views == len(scene.view_names) == min(5, split.max_views or 5)
    heights = scene.cam2world[:, 2, 3]
    assert split.camera_heights[0] <= heights.min() <= heights.max() <= split.camera_heights[1]


def test_unseen_pairs_are_of_colours_and_categories_that_are_seen():
    assert len(UNSEEN_PAIRS) == len(CATEGORIES) * len(COLORS) // 4
    for names, place in ((COLORS, 0), (CATEGORIES, 1)):
        counts = [sum(pair[place] == name for pair in UNSEEN_PAIRS) for name in names]
        assert 2 <= min(counts) and max(counts) <= 3


SMALL = {"num_train": 4, "num_val": 3, "image_size": (16, 12), "num_views": 2, "bev_size": 8, "workers": 1}


def test_splits_are_added_to_a_folder_and_others_left_alone(tmp_path):
    rooms = tmp_path / "rooms"
    assert build_scenes(rooms, **SMALL)
    before = hash_build(rooms)
    times = {path: path.stat().st_mtime_ns for path in rooms.glob("*/*/boxes.json")}
    more = ("val", "val_crowded", "train_seen_pairs")
    assert build_scenes(rooms, **SMALL, splits=more) and not build_scenes(rooms, **SMALL, splits=more)
    assert hash_build(rooms) == before and all(path.stat().st_mtime_ns == time for path, time in times.items())
    questions = json.loads((rooms / "manifest.json").read_text())["questions"]
    assert list(questions) == ["train", "val", "val_crowded", "train_seen_pairs"]
    assert [len(list((rooms / split).iterdir())) for split in questions] == [4, 3, 3, 4]
    assert not (rooms / "manifest.part.json").exists()
    asked = load_annotations(rooms / "annotations" / "val_crowded.jsonl")
    assert {row.scene_id for row in asked} == {get_scene_id("val_crowded", index) for index in range(3)}
    table = format_baselines(rooms)
    assert "val_crowded" in table and "train_seen_pairs" not in table


def test_a_split_without_its_training_split_has_no_look_ups(tmp_path):
    build_scenes(tmp_path / "rooms", **SMALL, splits=["train", "val_unseen_pairs"])
    told = "val_unseen_pairs: no questions of train_seen_pairs, to which look-ups are fitted"
    assert format_baselines(tmp_path / "rooms") == told


def test_a_folder_of_earlier_code_has_the_standard_questions(tmp_path):
    """Its manifest does not say so."""
    rooms = tmp_path / "rooms"
    build_scenes(rooms, **SMALL)
    manifest = json.loads((rooms / "manifest.json").read_text())
    del manifest["arguments"]["question_set"]
    (rooms / "manifest.json").write_text(json.dumps(manifest))
    assert not build_scenes(rooms, **SMALL)
    with pytest.raises(ValueError, match=r"has scenes built with \{'question_set': 'standard'\}, but this command"):
        build_scenes(rooms, **SMALL, question_set="spatial")


def test_unknown_splits_and_questions_are_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"split must be one of \['train', .*\], got 'test'"):
        build_scenes(tmp_path / "rooms", **SMALL, splits=["val", "test"])
    with pytest.raises(ValueError, match=r"question_set: expected one of \['standard', 'spatial'\], got 'all'"):
        build_scenes(tmp_path / "rooms", **SMALL, question_set="all")
    assert not (tmp_path / "rooms").exists()
    for text in ("val,test", "val,val", ""):
        with pytest.raises(SystemExit):
            main(["--output", str(tmp_path / "rooms"), "--splits", text])
        assert "expected names of ['train', 'val', 'val_large'" in capsys.readouterr().err


def test_the_command_line_builds_named_splits(tmp_path):
    sizes = ["--val", "2", "--image-size", "16x12", "--views", "4", "--workers", "1", "--bev-size", "8"]
    main(["--output", str(tmp_path), "--splits", "val_few_views", "--questions", "spatial", *sizes])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert list(manifest["questions"]) == ["val_few_views"] and manifest["arguments"]["question_set"] == "spatial"
    assert "room_size_estimation" in manifest["questions"]["val_few_views"]
    assert read_scene(tmp_path / "val_few_views" / get_scene_id("val_few_views", 0)).num_views == 3


def test_the_document_lists_every_split_with_its_values():
    """The table of docs/DATA.md is that of the code."""
    text = (Path(__file__).parents[1] / "docs" / "DATA.md").read_text()
    cells = [[cell.strip().strip("`") for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    rows = {row[0]: row[1:] for row in cells if row[0] in SPLITS and len(row) == 8}
    assert rows == {
        name: [
            f"{split.area[0]:g} to {split.area[1]:g}",
            f"{split.longest:g}",
            f"{split.pieces[0]} to {split.pieces[1]}",
            "all" if split.max_views is None else str(split.max_views),
            f"{split.camera_heights[0]:g} to {split.camera_heights[1]:g}",
            split.pairs,
            split.trained_on,
        ]
        for name, split in SPLITS.items()
    }
