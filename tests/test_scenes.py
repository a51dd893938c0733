"""Rooms of our own: rays meet what stands there, answers follow from the boxes, builds go on and repeat themselves."""

import argparse
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from ross3d.data.annotations import load_annotations
from ross3d.geometry_ross3d import unproject
from ross3d.scenes import build as building
from ross3d.scenes.build import build_scenes, format_baselines, main, make_scene, parse_size
from ross3d.scenes.lookup import score_words_only
from ross3d.scenes.questions import (
    EXACT_MATCH_TYPES,
    MIN_VISIBLE_SHARE,
    QUESTION_TYPES,
    get_plural,
)
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import CATEGORIES, COLORS, Furniture, Room, make_cameras, make_room
from ross3d.scenes.tokenizer import SPECIAL_TOKENS, make_tokenizer


NUM_TRAIN, NUM_VAL = 60, 24


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A small build: rooms of 32 x 24 pixels, 5 views."""
    folder = tmp_path_factory.mktemp("rooms")
    assert build_scenes(folder, NUM_TRAIN, NUM_VAL, image_size=(32, 24), num_views=5, bev_size=20, workers=1)
    return folder


@pytest.fixture(scope="module")
def rooms(built):
    """Scene id -> (labels with boxes, room) of the validation split."""
    found = {}
    for index in range(NUM_VAL):
        name = building.get_scene_id("val", index)
        labels = json.loads((built / "val" / name / "boxes.json").read_text())
        found[name] = (labels, make_room(0, "val", index)[0])
    return found


# ---- rays


def make_box_room(yaw: float = 0.0) -> Room:
    """A room of 4 x 6 x 3 m with one red block of 1 x 0.5 x 0.8 m at (0.5, 1)."""
    room, _ = make_room(0, "train", 0)
    room.low, room.high, room.fixtures = np.array([-2.0, -3, 0]), np.array([2.0, 3, 3]), []
    block = Furniture(
        "table", "red", "normal", np.array([0.5, 1.0]), yaw,
        np.array([[-0.5, -0.25, 0.0]]), np.array([[0.5, 0.25, 0.8]]), np.array([[214.0, 38, 38]]),
    )  # fmt: skip
    room.furniture = [block]
    return room


def look_along_y(eye) -> np.ndarray:
    """cam2world (1, 4, 4) of a level camera at `eye` that looks along +y: x right, y down, z forward."""
    pose = np.eye(4)
    pose[:3, :3] = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    pose[:3, 3] = eye
    return pose[None]


@pytest.mark.parametrize(("width", "height"), [(41, 31), (24, 40)])
def test_depth_of_known_surfaces_is_exact(width, height):
    """Front face at y = 0.75, wall at y = 3, floor at z = 0, seen from (0.5, -2, 0.4)."""
    intrinsics = np.array([[20.0, 0, (width - 1) / 2], [0, 22.0, (height - 1) / 2], [0, 0, 1]])
    rendering = render_room(make_box_room(), intrinsics, look_along_y([0.5, -2, 0.4]), (width, height))
    rows, columns = np.mgrid[:height, :width]
    right, down = (columns - intrinsics[0, 2]) / 20.0, (rows - intrinsics[1, 2]) / 22.0
    on_face = (np.abs(right * 2.75) < 0.5) & (np.abs(down * 2.75) < 0.4)
    expected = np.full((height, width), 5.0)
    expected = np.minimum(expected, np.where(down > 0, 0.4 / np.maximum(down, 1e-9), np.inf))
    expected = np.minimum(expected, np.where(down < 0, 2.6 / np.maximum(-down, 1e-9), np.inf))
    expected = np.minimum(expected, np.where(right > 0, 1.5 / np.maximum(right, 1e-9), np.inf))
    expected = np.minimum(expected, np.where(right < 0, 2.5 / np.maximum(-right, 1e-9), np.inf))
    assert on_face.sum() > 10
    assert np.allclose(rendering.depth_maps[0][on_face], 2.75, atol=1e-5)
    assert (rendering.object_ids[0] == 0)[on_face].all() and not (rendering.object_ids[0] == 0)[~on_face].any()
    assert np.allclose(rendering.depth_maps[0][~on_face], expected[~on_face], rtol=1e-5)
    face = rendering.images[0][on_face].astype(int)
    assert (face[:, 0] > 2 * face[:, 1]).all() and (face[:, 0] > 2 * face[:, 2]).all()


def test_a_turned_block_is_met_where_it_stands():
    """Turned by 90 degrees its front face is at y = 0.5; by 45 degrees its corner is nearest."""
    intrinsics = np.array([[30.0, 0, 20], [0, 30.0, 15], [0, 0, 1]])
    depths = []
    for yaw in (np.pi / 2, np.pi / 4):
        rendering = render_room(make_box_room(yaw), intrinsics, look_along_y([0.5, -2, 0.4]), (41, 31))
        depths.append(rendering.depth_maps[0][rendering.object_ids[0] == 0].min())
    assert depths[0] == pytest.approx(2.5, abs=1e-5)
    corner = 3 - (0.5 + 0.25) / np.sqrt(2)
    assert corner - 1e-4 < depths[1] < corner + 0.05


@pytest.mark.parametrize("index", [3, 8])
def test_readings_lie_inside_the_box_of_the_object_they_show(index):
    scene, room, _ = make_scene(1, "train", index, num_views=4, image_size=(40, 30), bev_size=20)
    rendering = render_room(room, scene.intrinsics, scene.cam2world, (40, 30))
    world = unproject(*(torch.as_tensor(a) for a in (rendering.depth_maps, scene.intrinsics, scene.cam2world)))
    shown = np.unique(rendering.object_ids)
    assert shown[0] == -1 and len(shown) > 2
    for number in shown[1:]:
        points = world[torch.as_tensor(rendering.object_ids == number)].numpy()
        assert (np.abs(points - scene.boxes[number, :3]) <= scene.boxes[number, 3:] / 2 + 1e-4).all()
    rest = world[torch.as_tensor(rendering.object_ids == -1)].numpy()
    on_shell = np.minimum(np.abs(rest - room.low), np.abs(rest - room.high)).min(axis=1)
    assert on_shell.max() < 1e-4


# ---- rooms


def test_a_room_follows_from_its_seed_split_and_number():
    first, again = (make_scene(5, "val", 2, num_views=3, image_size=(16, 12), bev_size=10)[0] for _ in range(2))
    for name in ("images", "depth_maps", "intrinsics", "cam2world", "boxes", "bev_image", "bev_valid", "bev_bounds"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name
    assert first.box_labels == again.box_labels
    others = [make_room(*other)[0].boxes for other in ((6, "val", 2), (5, "train", 2), (5, "val", 3))]
    for boxes in others:
        assert boxes.shape != first.boxes.shape or not np.allclose(boxes, first.boxes)


def test_splits_are_disjoint(built):
    def key(file):
        return tuple(tuple(row["box"]) for row in json.loads(file.read_text()))

    train, val = ({key(file) for file in (built / split).glob("*/boxes.json")} for split in ("train", "val"))
    assert len(train) == NUM_TRAIN and len(val) == NUM_VAL and not train & val


def test_furniture_stands_in_the_room_and_apart():
    categories = set()
    for index in range(40):
        room, _ = make_room(2, "train", index)
        boxes = room.boxes.astype(np.float64)
        categories |= {piece.category for piece in room.furniture}
        assert len(boxes) >= 4 and (boxes[:, 2] - boxes[:, 5] / 2 > -1e-6).all()
        assert (boxes[:, :3] - boxes[:, 3:] / 2 >= room.low - 1e-6).all()
        assert (boxes[:, :3] + boxes[:, 3:] / 2 <= room.high + 1e-6).all()
        for i in range(len(boxes)):
            gaps = np.abs(boxes[:, :2] - boxes[i, :2]) - (boxes[:, 3:5] + boxes[i, 3:5]) / 2
            assert (np.delete(gaps, i, axis=0).max(axis=1) > 0).all()
    assert categories == set(CATEGORIES)


@pytest.mark.parametrize("num_views", [2, 7])
def test_cameras_stand_upright_in_the_room(num_views):
    for index in range(10):
        room, rng = make_room(3, "train", index)
        intrinsics, cam2world = make_cameras(room, rng, num_views, (48, 36))
        rotations, eyes = cam2world[:, :3, :3], cam2world[:, :3, 3]
        assert intrinsics.shape == (3, 3) and cam2world.shape == (num_views, 4, 4)
        assert np.allclose(rotations @ rotations.transpose(0, 2, 1), np.eye(3))
        assert np.allclose(rotations[:, 2, 0], 0) and (rotations[:, 2, 1] < 0).all()  # level, and down is down
        assert ((eyes > room.low) & (eyes < room.high)).all()


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"split must be one of \['train', 'val'.*\], got 'test'"):
        make_room(0, "test", 0)


# ---- questions


def get_matches(labels, phrase):
    """Indices of the pieces that a phrase ("red chair", "chair", "red object", plurals) means."""
    words = phrase.split()
    nouns = {get_plural(name): name for name in (*CATEGORIES, "object")}
    noun = nouns.get(words[-1], words[-1])
    color = words[0] if len(words) == 2 else None
    return [
        i
        for i, label in enumerate(labels)
        if (noun == "object" or label["category"] == noun) and (color is None or label["color"] == color)
    ]


def find_phrases(question):
    """The phrases of a question in order."""
    nouns = [*CATEGORIES, "object"]
    nouns += [get_plural(noun) for noun in nouns]
    pattern = rf"\b((?:(?:{'|'.join(COLORS)}) )?(?:{'|'.join(sorted(nouns, key=len, reverse=True))}))\b"
    return [match for match in re.findall(pattern, question) if match not in ("object",)]


def get_only(labels, phrase):
    matches = get_matches(labels, phrase)
    assert len(matches) == 1, phrase
    assert labels[matches[0]]["visible_share"] >= MIN_VISIBLE_SHARE, phrase
    return matches[0]


def answer_question(row, labels, room):
    """The answer by the boxes alone."""
    boxes = np.array([label["box"] for label in labels])
    phrases = find_phrases(row.question)
    kind = row.question_type
    if kind in ("object_at", "caption"):
        place = np.array(row.query_coords[:2])
        inside = (np.abs(boxes[:, :2] - place) <= boxes[:, 3:5] / 2).all(axis=1)
        (index,) = np.flatnonzero(inside)
        assert labels[index]["visible_share"] >= MIN_VISIBLE_SHARE
        if kind == "object_at":
            return labels[index]["category"]
        for word in (labels[index]["color"], labels[index]["category"]):
            assert all(word in reference for reference in row.references)
        assert ("large" in row.answer) == (labels[index]["size"] == "large")
        return row.answer
    if kind == "room_size":
        return str(round(float(np.prod((room.high - room.low)[:2]))))
    if kind == "existence":
        return "yes" if get_matches(labels, phrases[0]) else "no"
    if kind == "count":
        return str(len(get_matches(labels, phrases[0])))
    if kind == "color":
        return labels[get_only(labels, phrases[0])]["color"]
    pieces = [get_only(labels, phrase) for phrase in phrases]
    if kind == "size_comparison":
        one, other = reversed(pieces) if row.question.startswith("Compared") else pieces
        return "taller" if boxes[one, 5] > boxes[other, 5] else "shorter"
    places = boxes[:, :2]
    if kind == "nearest":
        distances = np.linalg.norm(places - places[pieces[0]], axis=1)
        distances[pieces[0]] = np.inf
        return labels[int(distances.argmin())]["category"]
    assert kind == "direction"
    here, ahead, target = (places[i] for i in pieces)
    forward = (ahead - here) / np.linalg.norm(ahead - here)
    left = np.array([-forward[1], forward[0]])
    along, across = forward @ (target - here), left @ (target - here)
    if abs(along) > abs(across):
        return "front" if along > 0 else "back"
    return "left" if across > 0 else "right"


def test_every_answer_follows_from_the_boxes(built, rooms):
    rows = load_annotations(built / "annotations" / "val.jsonl")
    kinds = Counter()
    for row in rows:
        labels, room = rooms[row.scene_id]
        kinds[row.question_type] += 1
        if row.object_ids is not None:
            (phrase,) = find_phrases(row.question)
            assert row.object_ids == get_matches(labels, phrase), row
            expected = {"grounding_none": 0, "grounding_unique": 1}.get(row.question_type, 2)
            assert min(len(row.object_ids), 2) == expected
            assert all(labels[i]["visible_share"] >= MIN_VISIBLE_SHARE for i in row.object_ids)
        else:
            assert answer_question(row, labels, room) == row.answer, row
            assert row.answer in row.references
    assert set(kinds) == set(QUESTION_TYPES) and min(kinds.values()) > 5
    assert len({row.id for row in rows}) == len(rows)


def test_words_alone_are_at_chance(tmp_path_factory, monkeypatch):
    """Rooms drawn without pictures: every answer of a kind is about as frequent as any other for the same words."""
    folder = tmp_path_factory.mktemp("many")
    monkeypatch.setattr(building, "make_scene", make_scene_without_pictures)
    monkeypatch.setattr(building, "write_rgbd_folder", lambda scene, path: path.mkdir(parents=True))
    build_scenes(folder, 500, 250, workers=1)
    train, val = (load_annotations(folder / "annotations" / f"{split}.jsonl") for split in ("train", "val"))
    for rows in (train, val):
        answers = defaultdict(Counter)
        for row in rows:
            if row.question_type in EXACT_MATCH_TYPES:
                answers[row.question_type][row.answer] += 1
        for kind, counter in answers.items():
            limit = 3.0 if kind in ("count", "nearest", "object_at") else 1.35
            assert max(counter.values()) < limit * counter.total() / len(counter), (kind, counter)
    known = score_words_only(train, val)
    for kind in EXACT_MATCH_TYPES:
        assert known[kind].chance == pytest.approx(1 / len({row.answer for row in train if row.question_type == kind}))
        assert known[kind].best < known[kind].chance + 0.1, (kind, known[kind])
    assert known["grounding"].best < known["grounding"].majority + 0.05


def make_scene_without_pictures(seed, split, index, num_views, image_size, bev_size):
    """In place of `make_scene` where only questions matter: every piece is seen well."""
    room, rng = make_room(seed, split, index)
    labels = [{"visible_share": 1.0} for _ in room.furniture]
    return argparse.Namespace(box_labels=labels), room, rng


def test_baselines_are_printed(built, capsys):
    table = format_baselines(built).splitlines()
    assert table[0].split() == ["val", "count", "chance", "majority", "look-up", "model", "best"]
    assert {line.split()[0] for line in table[1:]} == {*EXACT_MATCH_TYPES, "room_size", "grounding"}


# ---- builds


def list_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


SMALL = {"num_train": 6, "num_val": 3, "image_size": (16, 12), "num_views": 2, "bev_size": 8}


def test_a_finished_build_is_left_alone(tmp_path):
    assert build_scenes(tmp_path / "rooms", **SMALL, workers=1)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "rooms").rglob("*")}
    assert not build_scenes(tmp_path / "rooms", **SMALL, workers=2)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rooms").rglob("*")} == times


def test_a_build_that_was_cut_off_goes_on_to_the_same_files(tmp_path, monkeypatch):
    build_scenes(tmp_path / "whole", **SMALL, workers=2)
    write, written = building.write_rgbd_folder, []

    def write_some(scene, path):
        if len(written) == 4:
            (path.parent / f".{path.name}.1.part").mkdir(parents=True)
            raise KeyboardInterrupt
        written.append(path.name)
        return write(scene, path)

    monkeypatch.setattr(building, "write_rgbd_folder", write_some)
    with pytest.raises(KeyboardInterrupt):
        build_scenes(tmp_path / "cut", **SMALL, workers=1)
    assert not (tmp_path / "cut" / "manifest.json").exists()
    monkeypatch.setattr(building, "write_rgbd_folder", write)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("train/*/boxes.json")}
    assert len(kept) == 4
    assert build_scenes(tmp_path / "cut", **SMALL, workers=1)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert list_files(tmp_path / "cut") == list_files(tmp_path / "whole")


def test_a_build_of_other_arguments_is_refused(tmp_path):
    build_scenes(tmp_path / "rooms", **SMALL, workers=1)
    with pytest.raises(
        ValueError, match=r"rooms has scenes built with \{'seed': 0\}, but this command sets \{'seed': 1\}; choose"
    ):
        build_scenes(tmp_path / "rooms", **SMALL, seed=1, workers=1)


def test_the_command_line_builds_and_reports(tmp_path, capsys):
    sizes = ["--train", "5", "--val", "4", "--image-size", "16x12", "--views", "2", "--workers", "1"]
    main(["--output", str(tmp_path / "rooms"), *sizes])
    assert "built" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "rooms" / "manifest.json").read_text())
    assert manifest["arguments"]["image_size"] == [16, 12] and manifest["arguments"]["num_train"] == 5


def test_sizes_are_read():
    assert parse_size("64") == (64, 64) and parse_size("640x480") == (640, 480)
    for text in ("64x", "0", "1x2x3", "wide"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected SIZE or WIDTHxHEIGHT in pixels, got"):
            parse_size(text)


# ---- tokenizer


def test_tokenizer_gives_back_any_text_and_keeps_words_whole(built):
    rows = load_annotations(built / "annotations" / "train.jsonl")
    texts = [text for row in rows for text in (row.question, row.answer)]
    tokenizer, other = make_tokenizer(texts), make_tokenizer(texts[::-1])
    assert tokenizer.get_vocab() == other.get_vocab()
    for text in ("How many chairs are there?", "a large blue lamp", "Grüße, 中文! 123  ok\n\n<image>?", texts[0]):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert all(len(tokenizer(f" {word}").input_ids) == 1 for word in (*CATEGORIES, *COLORS))
    assert len(tokenizer("2026").input_ids) == 4
    assert [len(tokenizer(token).input_ids) for token in SPECIAL_TOKENS] == [1] * len(SPECIAL_TOKENS)
