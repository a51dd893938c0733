"""Questions about a room with answers known by construction, balanced so that the words do not give them away.

`make_candidates` lists far more questions than are used. `balance_candidates` then picks, over all rooms of a split,
so that every answer is equally frequent *for each key*, where the key is the information in the question's words (the
category asked about, the phrase, the pair compared). A look-up from words to answers is then at chance;
`scenes/lookup.py` measures it.

A room in which something is hidden from every view is not asked about that thing, nor about its category or colour.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.scenes.rooms import CATEGORIES, COLORS, Room


TASK = "rooms"

# Average number of questions per room, by type.
QUESTIONS_PER_SCENE = {
    "existence": 3.0,
    "color": 2.5,
    "count": 2.0,
    "size_comparison": 2.0,
    "object_at": 2.0,
    "direction": 2.0,
    "nearest": 2.0,
    "room_size": 1.0,
    "caption": 1.5,
    "grounding_unique": 3.0,
    "grounding_multiple": 1.0,
    "grounding_none": 2.0,
}
QUESTION_TYPES = tuple(QUESTIONS_PER_SCENE)
EXACT_MATCH_TYPES = ("existence", "color", "count", "size_comparison", "object_at", "direction", "nearest")
GROUNDING_TYPES = ("grounding_unique", "grounding_multiple", "grounding_none")
DIRECTIONS = ("left", "right", "front", "back")

# A piece counts as seen when one view shows at least this share of its pixels.
MIN_VISIBLE_SHARE = 0.02

TEMPLATES = {
    "existence": ("Is there {a} in the room?", "Does the room have {a}?", "Can you see {a}?"),
    "color": ("What color is the {one}?", "Which color does the {one} have?", "Tell me the color of the {one}."),
    "count": ("How many {many} are there?", "How many {many} does the room have?", "Count the {many}."),
    "size_comparison": (
        "Is the {one} taller or shorter than the {other}?",
        "Compared with the {other}, is the {one} taller or shorter?",
    ),
    "object_at": ("What is at <coord>?", "What object is at <coord>?", "Name the object at <coord>."),
    "direction": (
        "I stand at the {here} and face the {ahead}. On which side is the {target}?",
        "Standing at the {here}, facing the {ahead}, where is the {target}?",
    ),
    "nearest": ("What is nearest to the {one}?", "Which object is closest to the {one}?"),
    "room_size": (
        "How large is the room in square meters?",
        "What is the floor area of the room in square meters?",
    ),
    "caption": ("Describe the object at <coord>.", "Write a caption for the object at <coord>."),
    "ground_one": ("Find the {one}.", "Where is the {one}?", "Locate the {one}."),
    "ground_all": ("Find all {many}.", "Where are the {many}?", "Locate all {many}."),
}

PLURALS = {"shelf": "shelves"}


def get_plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


def get_article(phrase: str) -> str:
    """The phrase with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


class Candidate(NamedTuple):
    """A question that could be asked.

    `group` is balanced separately (a question type, or the wording that two grounding types share); `key` is the
    information in the words; `answer` must be unpredictable from `key`; `text` is the answer's text.
    """

    group: str
    key: tuple
    answer: str
    question_type: str
    question: str
    text: str
    references: tuple = ()
    query_coords: tuple | None = None
    object_ids: tuple | None = None


@dataclass
class Pieces:
    """Facts about a room that questions use: arrays over its K pieces."""

    categories: list[str]
    colors: list[str]
    sizes: list[str]
    boxes: np.ndarray
    seen: np.ndarray
    room: Room

    def __post_init__(self):
        hidden = np.flatnonzero(~self.seen)
        self.hidden_categories = {self.categories[i] for i in hidden}
        self.hidden_colors = {self.colors[i] for i in hidden}
        self.category_counts = Counter(self.categories)
        self.color_counts = Counter(self.colors)
        self.pair_counts = Counter(zip(self.colors, self.categories, strict=True))
        self.by_category = defaultdict(list)
        self.by_color = defaultdict(list)
        for i, (category, color) in enumerate(zip(self.categories, self.colors, strict=True)):
            self.by_category[category].append(i)
            self.by_color[color].append(i)

    def get_names(self, i: int) -> list[str]:
        """Phrases that match piece `i` and nothing else in the room."""
        names = []
        if self.category_counts[self.categories[i]] == 1:
            names.append(self.categories[i])
        if self.pair_counts[self.colors[i], self.categories[i]] == 1:
            names.append(f"{self.colors[i]} {self.categories[i]}")
        return names


def make_pieces(room: Room, visible_shares: np.ndarray) -> Pieces:
    """The facts about a room; `visible_shares` as in `make_candidates`."""
    return Pieces(
        [piece.category for piece in room.furniture],
        [piece.color for piece in room.furniture],
        [piece.size for piece in room.furniture],
        room.boxes.astype(np.float64),
        np.asarray(visible_shares) >= MIN_VISIBLE_SHARE,
        room,
    )


def make_candidates(room: Room, visible_shares: np.ndarray, rng: np.random.Generator) -> list[Candidate]:
    """Every question that may be asked about `room`.

    Args:
        visible_shares (`(K,)`): for each piece, the largest share of a view's pixels that shows it.
        rng: draws wordings, coordinates and which of very many are listed.
    """
    pieces = make_pieces(room, visible_shares)
    candidates: list[Candidate] = []
    for ask in (
        _ask_existence,
        _ask_color,
        _ask_count,
        _ask_size_comparison,
        _ask_object_at,
        _ask_direction,
        _ask_nearest,
        _ask_room_size,
        _ask_caption,
        _ask_grounding_one,
        _ask_grounding_all,
    ):
        candidates.extend(ask(pieces, rng))
    return candidates


def _word(template: str, rng: np.random.Generator, **slots: str) -> str:
    options = TEMPLATES[template]
    return options[rng.integers(len(options))].format(**slots)


def _pick(options: list, rng: np.random.Generator):
    return options[rng.integers(len(options))]


def _draw_absent(pieces: Pieces, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(colour, category) pairs that the room lacks: some wrong in colour only, some in category only, some in both."""
    absent = []
    for i in range(len(pieces.categories)):
        absent.append((_pick(list(COLORS), rng), pieces.categories[i]))
        absent.append((pieces.colors[i], _pick(list(CATEGORIES), rng)))
        absent.append((_pick(list(COLORS), rng), _pick(list(CATEGORIES), rng)))
    return [
        (color, category)
        for color, category in dict.fromkeys(absent)
        if not pieces.pair_counts[color, category]
        and not (color in pieces.hidden_colors and category in pieces.hidden_categories)
    ]


def _ask_existence(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    phrases = {}
    for category in CATEGORIES:
        if category not in pieces.hidden_categories:
            phrases[category] = bool(pieces.category_counts[category])
    for color in COLORS:
        if color not in pieces.hidden_colors:
            phrases[f"{color} object"] = bool(pieces.color_counts[color])
    for i in np.flatnonzero(pieces.seen):
        phrases[f"{pieces.colors[i]} {pieces.categories[i]}"] = True
    for color, category in _draw_absent(pieces, rng):
        phrases[f"{color} {category}"] = False
    return [
        Candidate("existence", (phrase,), answer, "existence", _word("existence", rng, a=get_article(phrase)), answer)
        for phrase, present in phrases.items()
        for answer in ("yes" if present else "no",)
    ]


def _ask_color(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    return [
        Candidate("color", (category,), pieces.colors[i], "color", _word("color", rng, one=category), pieces.colors[i])
        for i, category in enumerate(pieces.categories)
        if pieces.category_counts[category] == 1 and pieces.seen[i]
    ]


def _ask_count(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    things = [(get_plural(c), pieces.category_counts[c]) for c in CATEGORIES if c not in pieces.hidden_categories]
    things += [(f"{c} objects", pieces.color_counts[c]) for c in COLORS if c not in pieces.hidden_colors]
    return [
        Candidate("count", (many,), str(count), "count", _word("count", rng, many=many), str(count))
        for many, count in things
        if count <= 4
    ]


def _ask_size_comparison(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    named = [i for i in np.flatnonzero(pieces.seen) if pieces.get_names(i)]
    for i in named:
        for j in named:
            first, second = pieces.boxes[i, 5], pieces.boxes[j, 5]
            if i == j or abs(first - second) < 0.12 * max(first, second):
                continue
            answer = "taller" if first > second else "shorter"
            one, other = _pick(pieces.get_names(i), rng), _pick(pieces.get_names(j), rng)
            question = _word("size_comparison", rng, one=one, other=other)
            key = (pieces.categories[i], pieces.categories[j])
            candidates.append(Candidate("size_comparison", key, answer, "size_comparison", question, answer))
    return candidates


def _draw_point(pieces: Pieces, i: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """A point within piece `i` in plan view; its height is drawn alike for all pieces, so it gives no hint."""
    centre, size = pieces.boxes[i, :2], pieces.boxes[i, 3:5]
    x, y = centre + size * rng.uniform(-0.25, 0.25, 2)
    return round(float(x), 3), round(float(y), 3), round(float(rng.uniform(0.25, 0.75)), 3)


def _ask_object_at(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    for i in np.flatnonzero(pieces.seen):
        category, coords = pieces.categories[i], _draw_point(pieces, i, rng)
        question = _word("object_at", rng)
        candidates.append(Candidate("object_at", (), category, "object_at", question, category, query_coords=coords))
    return candidates


def _get_side(here: np.ndarray, ahead: np.ndarray, target: np.ndarray) -> str | None:
    """On which side `target` lies for somebody at `here` who faces `ahead`; None within 12 degrees of a border."""
    facing, to_target = ahead - here, target - here
    angle = np.rad2deg(
        np.arctan2(facing[0] * to_target[1] - facing[1] * to_target[0], facing @ to_target)
    )  # counter-clockwise: positive is left
    for side, middle in (("front", 0.0), ("left", 90.0), ("right", -90.0), ("back", 180.0)):
        if abs((angle - middle + 180.0) % 360.0 - 180.0) < 33.0:
            return side
    return None


def _ask_direction(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    named = [i for i in np.flatnonzero(pieces.seen) if pieces.get_names(i)]
    places = pieces.boxes[:, :2]
    triples = [(i, j, k) for i in named for j in named for k in named if len({i, j, k}) == 3]
    for index in rng.permutation(len(triples))[:40]:
        i, j, k = triples[index]
        if min(np.linalg.norm(places[i] - places[j]), np.linalg.norm(places[i] - places[k])) < 0.9:
            continue
        side = _get_side(places[i], places[j], places[k])
        if side is None:
            continue
        here, ahead, target = (_pick(pieces.get_names(n), rng) for n in (i, j, k))
        question = _word("direction", rng, here=here, ahead=ahead, target=target)
        key = (pieces.categories[k],)
        candidates.append(Candidate("direction", key, side, "direction", question, side))
    return candidates


def _ask_nearest(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    places = pieces.boxes[:, :2]
    for i in np.flatnonzero(pieces.seen):
        distances = np.linalg.norm(places - places[i], axis=-1)
        order = np.argsort(distances)[1:]
        answer = pieces.categories[order[0]]
        rest = [distances[k] for k in order if pieces.categories[k] != answer]
        is_clear = not rest or distances[order[0]] < 0.8 * min(rest)
        if not is_clear or not pieces.seen[order[0]] or answer == pieces.categories[i] or not pieces.get_names(i):
            continue
        question = _word("nearest", rng, one=_pick(pieces.get_names(i), rng))
        candidates.append(Candidate("nearest", (pieces.categories[i],), answer, "nearest", question, answer))
    return candidates


def _ask_room_size(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    area = str(round(pieces.room.area))
    return [Candidate("room_size", (), "", "room_size", _word("room_size", rng), area)]


def _describe_place(pieces: Pieces, i: int) -> tuple[str, str]:
    """Where piece `i` stands, in two wordings."""
    room, box = pieces.room, pieces.boxes[i]
    gaps = np.concatenate([box[:2] - box[3:5] / 2 - room.low[:2], room.high[:2] - box[:2] - box[3:5] / 2])
    near = gaps < 0.35
    if (near[0] or near[2]) and (near[1] or near[3]):
        return "in the corner", "standing in a corner of the room"
    if near.any():
        return "against the wall", "standing at a wall"
    return "in the middle of the room", "standing free in the room"


def _ask_caption(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    candidates = []
    for i in np.flatnonzero(pieces.seen):
        size = "" if pieces.sizes[i] == "normal" else pieces.sizes[i] + " "
        noun = get_article(f"{size}{pieces.colors[i]} {pieces.categories[i]}")
        texts = tuple(f"{noun} {place}" for place in _describe_place(pieces, i))
        question, coords = _word("caption", rng), _draw_point(pieces, i, rng)
        key, answer = (), pieces.categories[i]
        candidates.append(Candidate("caption", key, answer, "caption", question, texts[0], texts, query_coords=coords))
    return candidates


def _ask_grounding_one(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    """ "Find the red chair.": exactly one object matches, or none."""
    phrases: dict[str, tuple] = {}
    for i in np.flatnonzero(pieces.seen):
        for name in pieces.get_names(i):
            phrases[name] = (int(i),)
    for color, category in _draw_absent(pieces, rng):
        phrases[f"{color} {category}"] = ()
    for category in CATEGORIES:
        if not pieces.category_counts[category]:
            phrases[category] = ()
    return [
        Candidate(
            "ground_one",
            (phrase,),
            "one" if ids else "none",
            "grounding_unique" if ids else "grounding_none",
            _word("ground_one", rng, one=phrase),
            "<ground>",
            object_ids=ids,
        )
        for phrase, ids in phrases.items()
    ]


def _ask_grounding_all(pieces: Pieces, rng: np.random.Generator) -> list[Candidate]:
    """ "Find all chairs.": several objects match, or none."""
    things = [(get_plural(c), pieces.by_category[c], c in pieces.hidden_categories) for c in CATEGORIES]
    things += [(f"{c} objects", pieces.by_color[c], c in pieces.hidden_colors) for c in COLORS]
    return [
        Candidate(
            "ground_all",
            (many,),
            "several" if ids else "none",
            "grounding_multiple" if ids else "grounding_none",
            _word("ground_all", rng, many=many),
            "<ground>",
            object_ids=tuple(int(i) for i in ids),
        )
        for many, ids, is_hidden in things
        if len(ids) != 1 and not is_hidden
    ]


def balance_candidates(
    candidates: list[list[Candidate]], seed: int, split: str, questions_per_scene: dict[str, float] | None = None
) -> list[list[Candidate]]:
    """Pick questions over all rooms: every answer of a key equally often, similar numbers per room.

    Args:
        candidates: one list per room.
        questions_per_scene (`dict[str, float]`, *optional*): average number by type; `QUESTIONS_PER_SCENE` by default.

    Returns:
        one list per room, in the order of `QUESTION_TYPES`.
    """
    wanted = dict(QUESTIONS_PER_SCENE if questions_per_scene is None else questions_per_scene)
    # Grounding wordings share their "none" questions; each wording is balanced separately.
    shares = {name: wanted.get(name, 0.0) for name in QUESTION_TYPES if name not in GROUNDING_TYPES}
    answering = wanted.get("grounding_unique", 0.0) + wanted.get("grounding_multiple", 0.0)
    none_share = wanted.get("grounding_none", 0.0) / answering if answering else 0.0
    shares["ground_one"] = wanted.get("grounding_unique", 0.0) * (1 + none_share)
    shares["ground_all"] = wanted.get("grounding_multiple", 0.0) * (1 + none_share)

    rng = np.random.default_rng([seed, 2 if split == "train" else 3])
    places: dict[str, dict] = {group: defaultdict(lambda: defaultdict(list)) for group in shares}
    for room, listed in enumerate(candidates):
        for number, candidate in enumerate(listed):
            if candidate.group in places:
                places[candidate.group][candidate.key][candidate.answer].append((room, number))
    chosen: list[list[Candidate]] = [[] for _ in candidates]
    for group, keys in places.items():
        ratios = {"none": none_share} if group.startswith("ground") else {}
        load = np.zeros(len(candidates))
        for room, number in _pick_balanced(keys, shares[group] * len(candidates), ratios, load, rng):
            chosen[room].append(candidates[room][number])
    order = {name: place for place, name in enumerate(QUESTION_TYPES)}
    return [sorted(listed, key=lambda c: order[c.question_type]) for listed in chosen]


def _pick_balanced(keys: dict, total: float, ratios: dict, load: np.ndarray, rng) -> list[tuple[int, int]]:
    """Fill every (key, answer) cell to one level, the level chosen so that about `total` are picked."""
    cells = []
    for key in sorted(keys):
        supply = {answer: len(found) / ratios.get(answer, 1.0) for answer, found in keys[key].items()}
        # An answer that is very rare for this key would limit all others: it is left out for this key.
        supply = {answer: n for answer, n in supply.items() if n >= 0.15 * np.median(list(supply.values()))}
        if len(supply) > 1 or key == ():
            cells.append((key, sorted(supply), min(supply.values())))
    if not cells:
        return []
    weight = [sum(ratios.get(answer, 1.0) for answer in answers) for _, answers, _ in cells]
    low, high = 0.0, max(level for *_, level in cells)
    for _ in range(40):
        middle = (low + high) / 2
        picked = sum(w * min(level, middle) for w, (*_, level) in zip(weight, cells, strict=True))
        low, high = (middle, high) if picked < total else (low, middle)
    picks = []
    for place in rng.permutation(len(cells)):
        key, answers, level = cells[place]
        # A fractional level is met on average: the same draw for all answers of the key.
        count = int(np.floor(min(level, high) + rng.random() * 0.999))
        for answer in answers:
            found = keys[key][answer]
            number = int(np.floor(count * ratios.get(answer, 1.0) + 0.5))
            order = rng.permutation(len(found))
            rooms = np.array([found[i][0] for i in order])
            for i in order[np.argsort(load[rooms], kind="stable")[:number]]:
                load[found[i][0]] += 1
                picks.append(found[i])
    return picks


def make_annotations(scene_id: str, chosen: list[Candidate]) -> list[Annotation]:
    """Annotations of one room; ids count within a type."""
    numbers: Counter = Counter()
    annotations = []
    for candidate in chosen:
        kind = candidate.question_type
        annotations.append(
            Annotation(
                id=f"{scene_id}-{kind}-{numbers[kind]}",
                scene_id=scene_id,
                task=TASK,
                question_type=kind,
                question=candidate.question,
                answer=candidate.text,
                references=[] if candidate.text == "<ground>" else list(candidate.references or (candidate.text,)),
                query_coords=candidate.query_coords,
                object_ids=None if candidate.object_ids is None else list(candidate.object_ids),
            )
        )
        numbers[kind] += 1
    return annotations
