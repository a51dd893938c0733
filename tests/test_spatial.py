"""Spatial questions: every answer measured another way, no answer near a border, no words that give it away."""

import re
from collections import Counter, defaultdict
from string import ascii_uppercase

import numpy as np
import pytest

from ross3d.data.annotations import load_annotations
from ross3d.metrics.prompts import CHOICE_REQUEST, INTRODUCTION, NUMBER_REQUEST
from ross3d.scenes.build import build_scenes, get_scene_id, see_room
from ross3d.scenes.lookup import score_words_only
from ross3d.scenes.questions import MIN_VISIBLE_SHARE, QUESTION_TYPES, get_plural, make_annotations, make_pieces
from ross3d.scenes.rooms import CATEGORIES, get_split, make_room
from ross3d.scenes.spatial import (
    SPATIAL_TYPES,
    balance_spatial,
    compute_gap,
    find_first_views,
    is_free,
    list_claims,
    make_spatial_candidates,
    name_turn,
    pick_even,
)


BUILDS = {"val": (50, 7, (40, 30)), "val_crowded": (16, 6, (32, 32))}


@pytest.fixture(scope="module", params=BUILDS)
def built(request, tmp_path_factory):
    """Annotations, and rooms with what each view shows, by scene."""
    split, folder = request.param, tmp_path_factory.mktemp(request.param)
    count, views, size = BUILDS[split]
    settings = {"image_size": size, "num_views": views, "bev_size": 8, "workers": 1, "splits": [split]}
    build_scenes(folder, num_train=1, num_val=count, **settings, question_set="spatial")
    rooms = {}
    for index in range(count):
        seen = see_room(0, split, index, views, size)
        rooms[get_scene_id(split, index)] = seen.room, seen.compute_shares()
    return load_annotations(folder / "annotations" / f"{split}.jsonl"), rooms


def find_piece(room, name: str) -> int:
    """The one piece that a name means."""
    words = name.split()
    found = [
        index
        for index, piece in enumerate(room.furniture)
        if words[-1] in (piece.category, "object") and (len(words) == 1 or words[0] == piece.color)
    ]
    assert len(found) == 1, name
    return found[0]


def sample_outline(piece) -> np.ndarray:
    """Points (N, 2) on the outline of a piece seen from above, under two centimetres apart."""
    (x0, y0), (x1, y1) = piece.low[:2], piece.high[:2]
    share = np.linspace(0, 1, 150)[:, None]
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]])
    points = np.concatenate([a + share * (b - a) for a, b in zip(corners, corners[1:], strict=False)])
    turned = (points[:, 0] + 1j * points[:, 1]) * np.exp(1j * piece.yaw)
    return np.stack([turned.real, turned.imag], -1) + piece.position


def measure_gap(room, one: int, other: int) -> float:
    first, second = (sample_outline(room.furniture[index]) for index in (one, other))
    return float(np.linalg.norm(first[:, None] - second, axis=-1).min())


def get_place(room, index: int) -> complex:
    return complex(*room.furniture[index].box[:2])


def turn_left(facing: complex, way: complex) -> float:
    """Degrees, counter-clockwise."""
    return float(np.degrees(np.angle(way / facing)))


def get_side(degrees: float, kind: str) -> str:
    side = "left" if degrees > 0 else "right"
    if kind == "object_rel_direction_hard":
        return f"{'front' if abs(degrees) < 90 else 'back'}-{side}"
    return "back" if kind != "object_rel_direction_easy" and abs(degrees) >= 135 else side


def read_choices(question: str) -> dict[str, str]:
    assert question.endswith(f"\n{CHOICE_REQUEST}") and question.startswith(f"{INTRODUCTION}\n")
    found = dict(re.findall(r"^([A-F])\. (.+)$", question, flags=re.MULTILINE))
    assert list(found) == list(ascii_uppercase[: len(found)]) and len(set(found.values())) == len(found)
    return found


def check_number(row, room) -> None:
    question, value = row.question, float(row.answer)
    assert question.endswith(f"\n{NUMBER_REQUEST}") and row.references == [row.answer]
    if row.question_type == "object_counting":
        name = re.search(r"How many (.+) are in", question)[1]
        noun = name.removesuffix(" objects")
        pieces = [p for p in room.furniture if noun in (p.color if noun != name else get_plural(p.category),)]
        assert value == len(pieces) > 0
    elif row.question_type == "room_size_estimation":
        assert abs(value - np.prod((room.high - room.low)[:2])) <= 0.0501
    elif row.question_type == "object_size_estimation":
        piece = room.furniture[find_piece(room, re.search(r"of the (\w+ object), measured", question)[1])]
        sides = piece.part_high.max(0) - piece.part_low.min(0)
        assert abs(value - 100 * sides.max()) <= 0.501
    else:
        one, other = re.search(r"between the (.+) and the (.+) \(in meters\)", question).groups()
        gap = measure_gap(room, find_piece(room, one), find_piece(room, other))
        assert gap > 0.79 and abs(value - gap) <= 0.06


def find_choice(row, room, shares, texts: list[str]) -> str:
    """The text of the right choice."""
    question, kind = row.question, row.question_type
    if kind == "object_rel_distance":
        one = find_piece(room, re.search(r"closest to the (.+)\?", question)[1])
        gaps = sorted((measure_gap(room, one, find_piece(room, text)), text) for text in texts)
        assert gaps[0][0] < 0.8 * gaps[1][0] and gaps[1][0] - gaps[0][0] > 0.2
        return gaps[0][1]
    if kind == "obj_appearance_order":
        pieces = {text: find_piece(room, text) for text in texts[0].split(", ")}
        first = {text: int(np.flatnonzero(shares[piece] >= MIN_VISIBLE_SHARE)[0]) for text, piece in pieces.items()}
        assert len(set(first.values())) == len(first)
        for text, piece in pieces.items():
            assert shares[piece][: first[text]].max(initial=0) <= 0.005
        return ", ".join(sorted(first, key=first.get))
    if kind == "route_planning":
        stops = re.search(
            r"at the (.+) and facing the (.+)\. You want to navigate to the (.+)\. You will.* until the (.+)\. 4\.",
            question,
        ).groups()
        start, ahead, end, then = (get_place(room, find_piece(room, name)) for name in stops)
        turns = [turn_left(ahead - start, then - ahead), turn_left(then - ahead, end - then)]
        assert all(25 < abs(turn) for turn in turns)
        return ", ".join(f"Turn {get_side(turn, kind).title()}" for turn in turns)
    here, ahead, target = re.search(r"by the (.+) and facing the (.+), is the (.+?) to (?:my|the)", question).groups()
    here, ahead, target = (get_place(room, find_piece(room, name)) for name in (here, ahead, target))
    degrees = turn_left(ahead - here, target - here)
    borders = {"easy": (0, 180), "medium": (0, 135), "hard": (0, 90, 180)}[kind.rpartition("_")[2]]
    assert min(abs(abs(degrees) - border) for border in borders) > 11.9
    return get_side(degrees, kind)


def test_every_answer_follows_from_the_room(built):
    rows, rooms = built
    kinds = Counter()
    for row in rows:
        room, shares = rooms[row.scene_id]
        if row.question_type in QUESTION_TYPES:
            continue
        kinds[row.question_type] += 1
        if "Options:" not in row.question:
            check_number(row, room)
            continue
        choices = read_choices(row.question)
        assert choices[row.answer] == find_choice(row, room, shares, list(choices.values())), row
    assert set(kinds) == set(SPATIAL_TYPES)


def test_objects_that_are_named_are_seen(built):
    rows, rooms = built
    pattern = rf"(?:the |, |\()((?:[a-z]+ )?(?:{'|'.join(CATEGORIES)}))\b"
    for row in rows:
        room, shares = rooms[row.scene_id]
        if row.question_type in SPATIAL_TYPES and row.question_type != "object_counting":
            for name in re.findall(pattern, row.question.split("\nOptions:")[0]):
                name = name.removeprefix("the ")
                assert shares[find_piece(room, name)].max() >= MIN_VISIBLE_SHARE - 1e-5, row


def test_standard_questions_stay_as_they_are(tmp_path):
    """A folder with spatial questions has all the rows of one without them, in each room first."""
    settings = {"num_train": 6, "num_val": 2, "image_size": (24, 16), "num_views": 3, "bev_size": 8, "workers": 1}
    build_scenes(tmp_path / "plain", **settings)
    build_scenes(tmp_path / "spatial", **settings, question_set="spatial")
    for split in ("train", "val"):
        plain, spatial = (
            load_annotations(tmp_path / n / "annotations" / f"{split}.jsonl") for n in ("plain", "spatial")
        )
        assert [row for row in spatial if row.question_type not in SPATIAL_TYPES] == plain
        assert len(spatial) > len(plain)
    first = tmp_path / "plain" / "train" / get_scene_id("train", 0)
    for file in first.iterdir():
        assert (tmp_path / "spatial" / "train" / first.name / file.name).read_bytes() == file.read_bytes()


def test_a_build_that_was_cut_off_asks_the_same(tmp_path):
    """What views show is not on disk, and is found again for scenes that are."""
    settings = {"num_train": 1, "num_val": 3, "image_size": (24, 16), "num_views": 4, "bev_size": 8, "workers": 1}
    build_scenes(tmp_path / "rooms", **settings, splits=["val"], question_set="spatial")
    file = tmp_path / "rooms" / "annotations" / "val.jsonl"
    before = file.read_bytes()
    (tmp_path / "rooms" / "manifest.json").rename(tmp_path / "rooms" / "manifest.part.json")
    assert build_scenes(tmp_path / "rooms", **settings, splits=["val"], question_set="spatial")
    assert file.read_bytes() == before


# ---- balance


@pytest.fixture(scope="module")
def many():
    """Candidates of training and held-out rooms, whose pieces the views show one after the other."""
    found = {}
    for split, count in (("train", 250), ("val", 150)):
        found[split] = []
        for index in range(count):
            room, _ = make_room(1, split, index)
            rng = np.random.default_rng([1, get_split(split).number, index])
            shares = np.triu(np.full((len(room.furniture), len(room.furniture)), 0.1))
            pieces = make_pieces(room, shares.max(1))
            found[split].append(make_spatial_candidates(pieces, shares[rng.permutation(len(shares))], rng))
    return found


def test_options_ranges_and_letters_are_equally_frequent(many):
    chosen = balance_spatial(many["train"], 1, 0)
    questions = [question for listed in chosen for question in listed]
    texts, answers = defaultdict(Counter), defaultdict(Counter)
    for question in questions:
        texts[question.question_type][question.text] += 1
        answers[question.question_type][question.answer] += 1
    assert set(texts) == set(SPATIAL_TYPES)
    for kind, counter in texts.items():
        if "Options:" in next(q.question for q in questions if q.question_type == kind):
            assert max(counter.values()) - min(counter.values()) <= 1, kind
    for kind in ("object_abs_distance", "object_size_estimation", "object_rel_direction_hard", "object_counting"):
        counts = answers[kind].values()
        assert max(counts) <= 1.1 * min(counts) + 2, (kind, answers[kind])
    loads = [len(listed) for listed in chosen]
    assert max(loads) < 3 * np.mean(loads)


@pytest.mark.parametrize("kind", ["object_abs_distance", "object_rel_direction_medium", "route_planning"])
def test_claims_of_what_is_picked_nearly_add_up_to_nothing(many, kind):
    """Compared with as many questions that are drawn at random."""
    found = [(room, one) for room, listed in enumerate(many["train"]) for one in listed if one.question_type == kind]
    rng = np.random.default_rng(0)
    picked = pick_even(found, len(found) // 4, rng)
    drawn = [found[place] for place in rng.permutation(len(found))[: len(picked)]]
    assert len({(room, one.stem, one.shown) for room, one in picked}) == len(picked) == len(found) // 4
    sums = []
    for chosen in (picked, drawn):
        totals = defaultdict(float)
        for _, one in chosen:
            for claim, value in list_claims(one):
                totals[claim] += value
        sums.append(np.mean(np.square(list(totals.values()))))
    assert sums[0] < 0.3 * sums[1], sums


def test_words_alone_are_at_chance(many):
    """Held-out rooms, all look-ups; numbers are compared with the best constant."""
    rows = {}
    for split, number in (("train", 0), ("val", 1)):
        chosen = balance_spatial(many[split], 1, number)
        rows[split] = [row for i, listed in enumerate(chosen) for row in make_annotations(f"{i}", listed)]
    known = score_words_only(rows["train"], rows["val"])
    assert set(known) == set(SPATIAL_TYPES)
    for kind, row in known.items():
        chance = row.majority if row.chance is None else row.chance
        # Three standard deviations of as many questions.
        assert row.best < chance + 3 * np.sqrt(0.25 / row.count), (kind, row)


# ---- geometry


def make_block(x: float, y: float, yaw: float, size=(1.0, 0.4)):
    room, _ = make_room(0, "train", 0)
    piece = room.furniture[0]
    low, high = np.array([[-size[0] / 2, -size[1] / 2, 0.0]]), np.array([[size[0] / 2, size[1] / 2, 0.5]])
    return type(piece)("table", "red", "normal", np.array([x, y]), yaw, low, high, np.zeros((1, 3)))


def test_gaps_of_known_blocks():
    still = make_block(0, 0, 0.0)
    assert compute_gap(still, make_block(3, 0, 0.0)) == pytest.approx(2.0)
    assert compute_gap(still, make_block(3, 0, np.pi / 2)) == pytest.approx(2.3)
    assert compute_gap(still, make_block(3, 3, 0.0)) == pytest.approx(np.hypot(2.0, 2.6))
    # The corner of a turned block points to the side of the other.
    assert compute_gap(still, make_block(0, 2, np.pi / 4, (1.0, 1.0))) == pytest.approx(1.8 - np.sqrt(0.5))
    assert compute_gap(make_block(0, 2, np.pi / 4, (1.0, 1.0)), still) == pytest.approx(1.8 - np.sqrt(0.5))


def test_turns_near_a_border_have_no_name():
    ranges = {"left": (15.0, 123.0), "back": (147.0, 180.0)}
    turns = (20.0, -20.0, 150.0, -179.0, 10.0, -130.0)
    assert [name_turn(turn, ranges) for turn in turns] == ["left", "right", "back", "back", None, None]


def test_ways_are_blocked_by_boxes_between_their_ends():
    boxes = np.array([[2.0, 0.0, 0.5, 1.0, 1.0, 1.0]])
    start = np.zeros(2)
    assert not is_free(start, np.array([4.0, 0.0]), boxes) and not is_free(start, np.array([4.0, 0.8]), boxes)
    assert is_free(start, np.array([1.4, 0.0]), boxes) and is_free(start, np.array([-4.0, 0.0]), boxes)
    assert is_free(start, np.array([4.0, 2.0]), boxes) and is_free(start, np.array([4.0, 0.0]), boxes[:0])


def test_an_object_that_shows_a_little_before_has_no_first_view():
    shares = np.array([[0.0, 0.0, 0.03], [0.0, 0.01, 0.05], [0.3, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert find_first_views(shares) == {0: 2, 2: 0}
