"""Spatial questions about a room in the forms of VSI-Bench; a build asks them with `--questions spatial`.

Types, prompts and forms of answers are VSI-Bench's: a letter for a choice, a number otherwise. The questions' wording
follows the benchmark's, but was not compared with its rows. Answers follow
from the furniture's boxes in their own frames (turned, not the axis-aligned hulls) and from what each view shows. All
objects that a question names are seen, and answers near a border are not asked for: see the margins below.

`balance_spatial` picks among the candidates of all rooms so that no word of a question, and no two words of what it
names, make an option or a range of numbers more probable than the others; letters are equally frequent.
"""

from collections import Counter, defaultdict, deque
from itertools import combinations, permutations
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np

from ross3d.metrics.prompts import make_prompt
from ross3d.scenes.questions import Candidate, Pieces, get_plural
from ross3d.scenes.rooms import Furniture


# Average number of questions per room, by type.
SPATIAL_QUESTIONS_PER_SCENE = {
    "object_counting": 1.0,
    "object_abs_distance": 1.0,
    "object_size_estimation": 1.0,
    "room_size_estimation": 0.5,
    "object_rel_distance": 0.5,
    "object_rel_direction_easy": 0.6,
    "object_rel_direction_medium": 0.6,
    "object_rel_direction_hard": 0.6,
    "route_planning": 0.6,
    "obj_appearance_order": 0.2,
}
SPATIAL_TYPES = tuple(SPATIAL_QUESTIONS_PER_SCENE)
STEMS = {
    "object_counting": "How many {many} are in this room?",
    "object_abs_distance": "Measuring from the closest point of each object, what is the distance between the {one}"
    " and the {other} (in meters)?",
    "object_size_estimation": "What is the length of the longest dimension (length, width, or height) of the {one},"
    " measured in centimeters?",
    "room_size_estimation": "What is the size of this room (in square meters)? If multiple rooms are shown, estimate"
    " the size of the combined space.",
    "object_rel_distance": "Measuring from the closest point of each object, which of these objects ({listed}) is"
    " the closest to the {one}?",
    "object_rel_direction_easy": "If I am standing by the {here} and facing the {ahead}, is the {target} to the left"
    " or the right of the {ahead}?",
    "object_rel_direction_medium": "If I am standing by the {here} and facing the {ahead}, is the {target} to my left,"
    " right, or back? An object is to my back if I would have to turn at least 135 degrees in order to face it.",
    "object_rel_direction_hard": "If I am standing by the {here} and facing the {ahead}, is the {target} to my"
    " front-left, front-right, back-left, or back-right? The directions refer to the quadrants of a Cartesian plane"
    " (if I am standing at the origin and facing along the positive y-axis).",
    "route_planning": "You are a robot beginning at the {here} and facing the {ahead}. You want to navigate to the"
    " {target}. You will perform the following actions (Note: for each [please fill in], choose either 'turn back,'"
    " 'turn left,' or 'turn right.'): 1. Go forward until the {ahead}. 2. [please fill in] 3. Go forward until the"
    " {then}. 4. [please fill in] 5. Go forward until the {target}. You have reached the final destination.",
    "obj_appearance_order": "What will be the first-time appearance order of the following categories in the video:"
    " {listed}?",
}

# Metres: distances below this would lose too much when they are rounded to 0.1 m.
MIN_GAP = 0.8
# The nearest of four objects is nearer than the second by both: share of its distance, and metres.
MAX_NEAREST_SHARE, MIN_NEAREST_LEAD = 0.75, 0.25
# Metres between places from which a direction is taken, and degrees between a direction and the border of its name.
MIN_STEP, BORDER = 0.9, 12.0
# Degrees to the left between which an answer lies; those to the right mirror them. From 135 degrees on it is behind.
LEFT_OR_RIGHT = {"left": (15.0, 165.0)}
LEFT_RIGHT_BACK = {"left": (15.0, 135.0 - BORDER), "back": (135.0 + BORDER, 180.0)}
QUADRANTS = {"front-left": (BORDER, 90.0 - BORDER), "back-left": (90.0 + BORDER, 180.0 - BORDER)}
# A turn of less than 30 degrees would be none.
TURNS = {"left": (30.0, 135.0 - BORDER), "back": (135.0 + BORDER, 180.0)}
# An object appears in the first view that shows it with the larger share of its pixels; views before that must show it
# with the smaller share at most.
APPEARS, HIDDEN = 0.02, 0.005
# VSI-Bench orders four objects; a walk around a room of ours, which looks across it, seldom finds four one by one.
NUM_ORDERED = 3
MAX_COUNT = 4
# Upper ends of the ranges of numbers that are asked for equally often: metres, centimetres.
DISTANCE_RANGES = (1.2, 1.7, 2.3, 3.1)
SIZE_RANGES = (95.0, 120.0, 145.0, 185.0)
# Questions of a type that are listed of one room.
MAX_LISTED = 12
# Candidates that are compared for each question that is picked, and the largest share of all that is picked: without
# others to choose from nothing could be balanced.
WINDOW, MAX_PICKED = 32, 0.5


class SpatialCandidate(NamedTuple):
    """A spatial question that could be asked.

    `words` are the things its text names (categories, colours); `options` what could be right, of which `answer` is:
    the contents of the choices, or the ranges of a number. `shown` are the choices' texts, empty for a number, whose
    text is `number`.
    """

    question_type: str
    stem: str
    words: tuple
    options: tuple
    answer: str
    shown: tuple = ()
    number: str = ""


def make_spatial_candidates(
    pieces: Pieces, view_shares: np.ndarray, rng: np.random.Generator
) -> list[SpatialCandidate]:
    """Spatial questions that may be asked about a room.

    Args:
        pieces (`Pieces`): of the room.
        view_shares (`(K, V)`): the share of each view's pixels that shows each piece, views in their order.
        rng: draws names, options and which of many questions are listed.
    """
    named = [int(i) for i in np.flatnonzero(pieces.seen) if pieces.get_names(i)]
    names = {i: str(rng.choice(pieces.get_names(i))) for i in named}
    return [
        *_ask_counting(pieces),
        *_ask_abs_distance(pieces, names, rng),
        *_ask_size(pieces),
        *_ask_room_size(pieces),
        *_ask_rel_distance(pieces, names, rng),
        *_ask_direction(pieces, names, rng),
        *_ask_route(pieces, names, rng),
        *_ask_order(pieces, names, view_shares, rng),
    ]


# ---- geometry


def get_corners(piece: Furniture) -> np.ndarray:
    """Corners (4, 2) of a piece seen from above, in the world, metres, counter-clockwise."""
    (x0, y0), (x1, y1) = piece.low[:2], piece.high[:2]
    cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return corners @ np.array([[cos, sin], [-sin, cos]]) + piece.position


def compute_gap(first: Furniture, second: Furniture) -> float:
    """Metres between the closest points of two pieces that stand apart.

    Both stand on the floor, so their closest points are at one height.
    """
    corners = get_corners(first), get_corners(second)
    return min(_measure_to_edges(corners[0], corners[1]), _measure_to_edges(corners[1], corners[0]))


def _measure_to_edges(points: np.ndarray, corners: np.ndarray) -> float:
    """The least distance of points (N, 2) to the edges of a polygon (M, 2)."""
    along = np.roll(corners, -1, axis=0) - corners
    offset = points[:, None] - corners
    share = np.clip((offset * along).sum(-1) / (along**2).sum(-1), 0, 1)
    return float(np.linalg.norm(offset - share[..., None] * along, axis=-1).min())


def compute_turn(facing: np.ndarray, to_target: np.ndarray) -> float:
    """Degrees from -180 to 180 to turn from one direction (2,) to another, counter-clockwise: positive is left."""
    across = facing[0] * to_target[1] - facing[1] * to_target[0]
    return float(np.rad2deg(np.arctan2(across, facing @ to_target)))


def name_turn(degrees: float, ranges: dict[str, tuple[float, float]]) -> str | None:
    """The name of a turn, of ranges to the left and of their mirror images; None near a border."""
    for name, (low, high) in ranges.items():
        if low <= abs(degrees) <= high:
            return name if degrees > 0 else name.replace("left", "right")
    return None


def is_free(start: np.ndarray, end: np.ndarray, boxes: np.ndarray) -> bool:
    """Whether the way from `start` to `end` (2,) crosses none of the boxes (K, 6), seen from above."""
    way = np.where(np.abs(end - start) < 1e-9, 1e-9, end - start)
    faces = boxes[:, None, :2] + boxes[:, None, 3:5] * np.array([[-0.5], [0.5]]) - start  # (K, 2, 2)
    shares = np.sort(faces / way, axis=1)
    enter, leave = shares[:, 0].max(-1), shares[:, 1].min(-1)
    return not ((enter < leave) & (leave > 0) & (enter < 1)).any()


def find_first_views(view_shares: np.ndarray) -> dict[int, int]:
    """The view in which each piece first appears, of shares (K, V); without pieces that show a little before it."""
    first = {}
    for i, shares in enumerate(view_shares):
        views = np.flatnonzero(shares > HIDDEN)
        if len(views) and shares[views[0]] >= APPEARS:
            first[i] = int(views[0])
    return first


# ---- questions


def _find_range(value: float, ends: tuple[float, ...]) -> str:
    return str(int(np.searchsorted(ends, value, side="right")))


def _list_ranges(ends: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(str(place) for place in range(len(ends) + 1))


def _ask_counting(pieces: Pieces) -> list[SpatialCandidate]:
    things = [(get_plural(c), n) for c, n in pieces.category_counts.items() if c not in pieces.hidden_categories]
    things += [(f"{c} objects", n) for c, n in pieces.color_counts.items() if c not in pieces.hidden_colors]
    options = tuple(str(count) for count in range(1, MAX_COUNT + 1))
    return [
        SpatialCandidate(
            "object_counting", STEMS["object_counting"].format(many=many), (many,), options, str(count),
            number=str(count),
        )
        for many, count in things
        if count <= MAX_COUNT
    ]  # fmt: skip


def _ask_abs_distance(pieces: Pieces, names: dict[int, str], rng: np.random.Generator) -> list[SpatialCandidate]:
    found = []
    for i, j in _draw(list(combinations(names, 2)), rng):
        one, other = (i, j) if rng.random() < 0.5 else (j, i)
        gap = compute_gap(pieces.room.furniture[one], pieces.room.furniture[other])
        if gap < MIN_GAP:
            continue
        stem = STEMS["object_abs_distance"].format(one=names[one], other=names[other])
        words, options = _get_categories(pieces, i, j), _list_ranges(DISTANCE_RANGES)
        answer = _find_range(gap, DISTANCE_RANGES)
        found.append(SpatialCandidate("object_abs_distance", stem, words, options, answer, number=f"{gap:.1f}"))
    return found


def _ask_size(pieces: Pieces) -> list[SpatialCandidate]:
    """Asked by colour: a category would give its usual size away."""
    found = []
    for i in np.flatnonzero(pieces.seen):
        if pieces.color_counts[pieces.colors[i]] > 1:
            continue
        piece = pieces.room.furniture[i]
        longest = 100 * float((piece.high - piece.low).max())
        stem = STEMS["object_size_estimation"].format(one=f"{piece.color} object")
        options, answer = _list_ranges(SIZE_RANGES), _find_range(longest, SIZE_RANGES)
        number = str(round(longest))
        found.append(SpatialCandidate("object_size_estimation", stem, (piece.color,), options, answer, number=number))
    return found


def _ask_room_size(pieces: Pieces) -> list[SpatialCandidate]:
    area, stem = f"{pieces.room.area:.1f}", STEMS["room_size_estimation"]
    return [SpatialCandidate("room_size_estimation", stem, (), ("",), "", number=area)]


def _ask_rel_distance(pieces: Pieces, names: dict[int, str], rng: np.random.Generator) -> list[SpatialCandidate]:
    found = []
    for i in names:
        gaps = {j: compute_gap(pieces.room.furniture[i], pieces.room.furniture[j]) for j in names if j != i}
        for chosen in _draw(list(combinations(gaps, 4)), rng, 4):
            order = sorted(chosen, key=gaps.get)
            nearest, second = gaps[order[0]], gaps[order[1]]
            options = tuple(pieces.categories[j] for j in order)
            is_clear = nearest <= MAX_NEAREST_SHARE * second and second - nearest >= MIN_NEAREST_LEAD
            if not is_clear or len(set(options)) < 4:
                continue
            shown = tuple(names[j] for j in order)
            listed = ", ".join(str(name) for name in rng.permutation(shown))
            stem = STEMS["object_rel_distance"].format(listed=listed, one=names[i])
            words = (pieces.categories[i],)
            found.append(SpatialCandidate("object_rel_distance", stem, words, options, options[0], shown))
    return found


def _ask_direction(pieces: Pieces, names: dict[int, str], rng: np.random.Generator) -> list[SpatialCandidate]:
    found, counts = [], Counter()
    places = pieces.boxes[:, :2]
    for here, ahead, target in _draw(list(permutations(names, 3)), rng, 4 * MAX_LISTED):
        facing, to_target = places[ahead] - places[here], places[target] - places[here]
        if min(np.linalg.norm(facing), np.linalg.norm(to_target)) < MIN_STEP:
            continue
        turn = compute_turn(facing, to_target)
        for level, ranges in (("easy", LEFT_OR_RIGHT), ("medium", LEFT_RIGHT_BACK), ("hard", QUADRANTS)):
            kind, answer = f"object_rel_direction_{level}", name_turn(turn, ranges)
            if answer is None or counts[kind] == MAX_LISTED:
                continue
            counts[kind] += 1
            stem = STEMS[kind].format(here=names[here], ahead=names[ahead], target=names[target])
            words = _get_roles(pieces, here=here, ahead=ahead, target=target)
            options = _list_names(ranges)
            found.append(SpatialCandidate(kind, stem, words, options, answer, options))
    return found


def _ask_route(pieces: Pieces, names: dict[int, str], rng: np.random.Generator) -> list[SpatialCandidate]:
    found = []
    places, turns = pieces.boxes[:, :2], _list_names(TURNS)
    for stops in _draw(list(permutations(names, 4)), rng, 8 * MAX_LISTED):
        steps = np.diff(places[list(stops)], axis=0)  # (3, 2)
        taken = [name_turn(compute_turn(steps[n], steps[n + 1]), TURNS) for n in range(2)]
        if len(found) == MAX_LISTED or None in taken or np.linalg.norm(steps, axis=1).min() < MIN_STEP:
            continue
        ways = list(zip(stops, stops[1:], strict=False))
        if not all(is_free(places[a], places[b], np.delete(pieces.boxes, [a, b], axis=0)) for a, b in ways):
            continue
        answer = ", ".join(taken)
        others = [", ".join(pair) for pair in np.array(np.meshgrid(turns, turns)).reshape(2, -1).T]
        wrong = [str(text) for text in rng.permutation([text for text in others if text != answer])[:3]]
        options = (answer, *wrong)
        shown = tuple(", ".join(f"Turn {turn.title()}" for turn in option.split(", ")) for option in options)
        here, ahead, then, target = stops
        stem = STEMS["route_planning"].format(
            here=names[here], ahead=names[ahead], then=names[then], target=names[target]
        )
        words = _get_roles(pieces, here=here, ahead=ahead, then=then, target=target)
        found.append(SpatialCandidate("route_planning", stem, words, options, answer, shown))
    return found


def _ask_order(
    pieces: Pieces, names: dict[int, str], view_shares: np.ndarray, rng: np.random.Generator
) -> list[SpatialCandidate]:
    found = []
    first = {i: view for i, view in find_first_views(view_shares).items() if i in names}
    right, *wrong = permutations(range(NUM_ORDERED))
    for chosen in _draw(list(combinations(first, NUM_ORDERED)), rng):
        order = sorted(chosen, key=first.get)
        categories = tuple(pieces.categories[i] for i in order)
        if len({first[i] for i in order}) < NUM_ORDERED or len(set(categories)) < NUM_ORDERED:
            continue
        ways = [right, *_draw(wrong, rng, 3)]
        options = tuple(tuple(categories[n] for n in way) for way in ways)
        shown = tuple(", ".join(names[order[n]] for n in way) for way in ways)
        listed = ", ".join(names[order[n]] for n in rng.permutation(NUM_ORDERED))
        stem = STEMS["obj_appearance_order"].format(listed=listed)
        found.append(SpatialCandidate("obj_appearance_order", stem, (), options, categories, shown))
    return found


def _draw(listed: list, rng: np.random.Generator, most: int = MAX_LISTED) -> list:
    return [listed[n] for n in rng.permutation(len(listed))[:most]]


def _list_names(ranges: dict[str, tuple[float, float]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(side for name in ranges for side in (name, name.replace("left", "right"))))


def _get_categories(pieces: Pieces, *indices: int) -> tuple[str, ...]:
    """Categories in the order of the alphabet: which is named first says nothing."""
    return tuple(sorted(pieces.categories[i] for i in indices))


def _get_roles(pieces: Pieces, **indices: int) -> tuple[str, ...]:
    return tuple(f"{role}: {pieces.categories[i]}" for role, i in indices.items())


# ---- balance


def list_claims(candidate: SpatialCandidate) -> list[tuple[tuple, float]]:
    """What a look-up could learn from a question: (words, answer) and 1 or 0, less the probability by chance.

    Over all questions that are asked, the numbers of a claim should add up to 0. An order of appearance claims places
    of its categories and which of two comes first; all others claim each of their options, alone, beside each of
    their words, and beside every two words.
    """
    if candidate.question_type == "obj_appearance_order":
        order = candidate.answer
        places = range(len(order))
        ranks = [((name, place), (order[place] == name) - 1 / len(order)) for name in order for place in places]
        pairs = combinations(order, 2)
        return ranks + [(tuple(sorted(pair)), 0.5 if pair == tuple(sorted(pair)) else -0.5) for pair in pairs]
    chance = 1 / len(candidate.options)
    contexts = [(), *((word,) for word in candidate.words), *combinations(candidate.words, 2)]
    return [
        ((*context, option), (option == candidate.answer) - chance)
        for option in candidate.options
        for context in contexts
    ]


def balance_spatial(
    candidates: list[list[SpatialCandidate]],
    seed: int,
    number: int,
    questions_per_scene: dict[str, float] | None = None,
) -> list[list[Candidate]]:
    """Pick spatial questions over all rooms, with claims that add up to about 0 and similar numbers per room.

    Args:
        candidates: one list per room.
        number (`int`): of the split.
        questions_per_scene (`dict[str, float]`, *optional*): average number by type; `SPATIAL_QUESTIONS_PER_SCENE` by
            default.

    Returns:
        one list per room, in the order of `SPATIAL_TYPES`.
    """
    wanted = SPATIAL_QUESTIONS_PER_SCENE if questions_per_scene is None else questions_per_scene
    chosen: list[list[Candidate]] = [[] for _ in candidates]
    for place, kind in enumerate(SPATIAL_TYPES):
        rng = np.random.default_rng([seed, number, place, 3])
        found = [(room, one) for room, listed in enumerate(candidates) for one in listed if one.question_type == kind]
        letters: deque[str] = deque()
        total = min(wanted.get(kind, 0.0) * len(candidates), MAX_PICKED * len(found))
        for room, one in pick_even(found, round(total), rng):
            if one.shown and not letters:
                letters.extend(rng.permutation(list(ascii_uppercase[: len(one.shown)])))
            chosen[room].append(_make_question(one, str(letters.popleft()) if one.shown else "", rng))
    return chosen


def pick_even(found: list[tuple[int, SpatialCandidate]], total: int, rng: np.random.Generator) -> list:
    """Of some drawn candidates, again and again the one that brings the sums of its claims nearest to 0."""
    sums: dict[tuple, float] = defaultdict(float)
    load: dict[int, int] = defaultdict(int)
    waiting = deque((room, one, list_claims(one)) for room, one in (found[n] for n in rng.permutation(len(found))))
    picks = []
    while waiting and len(picks) < total:
        drawn = [waiting.popleft() for _ in range(min(WINDOW, len(waiting)))]
        costs = [
            load[room] + sum(value * (2 * sums[claim] + value) for claim, value in claims) for room, _, claims in drawn
        ]
        room, one, claims = drawn.pop(int(np.argmin(costs)))
        waiting.extend(drawn)
        load[room] += 1
        for claim, value in claims:
            sums[claim] += value
        picks.append((room, one))
    return picks


def _make_question(one: SpatialCandidate, letter: str, rng: np.random.Generator) -> Candidate:
    """The question with its prompt; the right one of its options stands under `letter`."""
    if not one.shown:
        prompt = make_prompt(one.stem, None)
        return Candidate(one.question_type, one.words, one.answer, one.question_type, prompt, one.number)
    right = one.options.index(one.answer)
    others = [text for place, text in enumerate(one.shown) if place != right]
    texts = [others[n] for n in rng.permutation(len(others))]
    texts.insert(ascii_uppercase.index(letter), one.shown[right])
    prompt = make_prompt(one.stem, [f"{a}. {text}" for a, text in zip(ascii_uppercase, texts, strict=False)])
    return Candidate(one.question_type, one.words, str(one.answer), one.question_type, prompt, letter)
