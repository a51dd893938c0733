"""Procedural furnished rooms, described by boxes; nothing here is rendered yet.

World frame: metres, z up, floor at z = 0, walls along x and y, the room roughly centred on the origin. A piece of
furniture is a handful of boxes in its own frame (origin on the floor below its middle, back towards +y), turned by
`yaw` (radians, counter-clockwise seen from above) and moved to `position`. Its `box` is the axis-aligned hull in the
world.

All random draws come from one `np.random.default_rng([seed, number of the split, index])`, so rooms are independent of
each other, and two splits never share a stream. `SPLITS` has the splits.
"""

import math
from dataclasses import dataclass

import numpy as np


COLORS = {
    "red": (214, 38, 38),
    "orange": (246, 134, 20),
    "yellow": (240, 220, 40),
    "green": (46, 160, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 70, 210),
    "purple": (128, 44, 168),
    "pink": (250, 135, 190),
}
SIZES = {"small": 0.75, "normal": 1.0, "large": 1.3}

# Muted surroundings, so that the colours above stand out.
WALL_COLORS = ((214, 208, 196), (200, 206, 210), (222, 216, 210), (196, 198, 190), (208, 200, 204), (186, 190, 196))
FLOOR_COLORS = ((140, 122, 104), (118, 112, 108), (156, 146, 132), (104, 96, 90), (128, 128, 132), (92, 88, 92))
CEILING_COLOR = (238, 238, 234)
DARK = (38, 38, 44)
EARTH = (96, 68, 52)
WOOD = (150, 104, 62)
LINEN = (236, 230, 214)
STEEL = (150, 154, 162)
MAX_HEIGHT = 2.1


def _box(x0, x1, y0, y1, z0, z1, tone=1.0, paint=None):
    """One part: its corners in the furniture's frame (metres), and its colour times `tone`, or a fixed paint."""
    return (x0, y0, z0, x1, y1, z1), tone, paint


def _legs(half_width, half_depth, height, thickness, paint):
    parts = []
    for x in (-half_width, half_width - thickness):
        for y in (-half_depth, half_depth - thickness):
            parts.append(_box(x, x + thickness, y, y + thickness, 0, height, paint=paint))
    return parts


def _bed():
    return [
        _box(-0.75, 0.75, -1.0, 0.95, 0.0, 0.28, 0.75),
        _box(-0.72, 0.72, -0.97, 0.95, 0.28, 0.52),
        _box(-0.62, 0.62, 0.35, 0.9, 0.52, 0.64, paint=LINEN),
        _box(-0.75, 0.75, 0.92, 1.0, 0.0, 0.95, 0.75),
    ]


def _sofa():
    return [
        _box(-0.9, 0.9, -0.42, 0.42, 0.0, 0.42),
        _box(-0.9, 0.9, 0.2, 0.42, 0.42, 0.82, 0.9),
        _box(-0.62, -0.08, -0.2, 0.2, 0.42, 0.66, paint=LINEN),
        _box(0.08, 0.62, -0.2, 0.2, 0.42, 0.66, paint=LINEN),
        _box(-0.9, -0.7, -0.42, 0.2, 0.42, 0.62, 0.8),
        _box(0.7, 0.9, -0.42, 0.2, 0.42, 0.62, 0.8),
    ]


def _chair():
    return [
        _box(-0.27, 0.27, -0.27, 0.27, 0.42, 0.5),
        _box(-0.27, 0.27, 0.2, 0.27, 0.5, 0.98),
        *_legs(0.27, 0.27, 0.42, 0.08, DARK),
    ]


def _table():
    return [_box(-0.65, 0.65, -0.45, 0.45, 0.66, 0.76), *_legs(0.6, 0.4, 0.66, 0.12, WOOD)]


def _desk():
    return [
        _box(-0.65, 0.65, -0.33, 0.33, 0.68, 0.76),
        _box(-0.65, -0.28, -0.3, 0.33, 0.0, 0.68, paint=STEEL),
        _box(0.28, 0.65, -0.3, 0.33, 0.0, 0.68, paint=STEEL),
        _box(-0.06, 0.06, 0.12, 0.2, 0.76, 0.86, paint=DARK),
        _box(-0.34, 0.34, 0.12, 0.18, 0.86, 1.22, paint=DARK),
    ]


def _cabinet():
    return [
        _box(-0.5, 0.5, -0.24, 0.26, 0.0, 1.15),
        _box(-0.46, -0.02, -0.26, -0.24, 0.12, 0.56, paint=WOOD),
        _box(0.02, 0.46, -0.26, -0.24, 0.12, 0.56, paint=WOOD),
        _box(-0.1, -0.05, -0.29, -0.26, 0.55, 0.7, paint=DARK),
        _box(0.05, 0.1, -0.29, -0.26, 0.55, 0.7, paint=DARK),
    ]


def _shelf():
    boards = [_box(-0.45, 0.45, -0.16, 0.16, z, z + 0.06) for z in (0.04, 0.46, 0.88, 1.3, 1.72)]
    sides = [_box(x, x + 0.06, -0.18, 0.18, 0.0, 1.8, 0.85) for x in (-0.5, 0.44)]
    return [*boards, *sides, _box(-0.44, 0.44, 0.12, 0.18, 0.0, 1.8, paint=DARK)]


def _lamp():
    return [
        _box(-0.17, 0.17, -0.17, 0.17, 0.0, 0.06, 0.8),
        _box(-0.03, 0.03, -0.03, 0.03, 0.06, 1.15, paint=(70, 70, 74)),
        _box(-0.25, 0.25, -0.25, 0.25, 1.1, 1.5, 1.1),
    ]


def _television():
    return [
        _box(-0.65, 0.65, -0.2, 0.2, 0.0, 0.4),
        _box(-0.1, 0.1, -0.05, 0.05, 0.4, 0.48, paint=DARK),
        _box(-0.62, 0.62, -0.02, 0.05, 0.48, 1.18, 0.9),
        _box(-0.54, 0.54, -0.04, -0.02, 0.56, 1.1, paint=(24, 26, 32)),
    ]


def _plant():
    return [
        _box(-0.17, 0.17, -0.17, 0.17, 0.0, 0.34, paint=EARTH),
        _box(-0.04, 0.04, -0.04, 0.04, 0.34, 0.55, paint=EARTH),
        _box(-0.3, 0.3, -0.3, 0.3, 0.5, 0.78, 0.85),
        _box(-0.22, 0.22, -0.22, 0.22, 0.78, 1.0),
        _box(-0.12, 0.12, -0.12, 0.12, 1.0, 1.18, 1.1),
    ]


@dataclass(frozen=True)
class Category:
    """How a kind of furniture is built, and where it is usually placed."""

    parts: tuple
    against_wall: float  # probability of standing with its back to a wall


CATEGORIES = {
    "bed": Category(tuple(_bed()), 0.7),
    "sofa": Category(tuple(_sofa()), 0.6),
    "chair": Category(tuple(_chair()), 0.3),
    "table": Category(tuple(_table()), 0.3),
    "desk": Category(tuple(_desk()), 0.7),
    "cabinet": Category(tuple(_cabinet()), 0.7),
    "shelf": Category(tuple(_shelf()), 0.7),
    "lamp": Category(tuple(_lamp()), 0.4),
    "television": Category(tuple(_television()), 0.7),
    "plant": Category(tuple(_plant()), 0.4),
}


# One of four combinations is in no room of `train_seen_pairs`; every colour and every category is.
UNSEEN_PAIRS = frozenset(
    (list(COLORS)[(3 * number + step) % len(COLORS)], category)
    for number, category in enumerate(CATEGORIES)
    for step in (0, 4)
)


@dataclass(frozen=True)
class Split:
    """What the rooms of a split are like; the defaults are those of `train` and `val`.

    Attributes:
        number (`int`): of its random draws; never changed, never given to two splits. 2 and 3 draw questions.
        area (`tuple`): floor area from and to, square metres. longest (`float`): longest side of a room, metres.
        pieces (`tuple`): fewest and most pieces of furniture that are wanted; a piece without a place is left out.
        more_pieces (`int`): how many more are wanted than rooms of this area have in `train`.
        max_views (`int`, *optional*): views of a scene, if more are asked for.
        camera_heights (`tuple`): from and to, metres above the floor.
        pairs (`str`): combinations of colour and category: `all`, `seen` (without `UNSEEN_PAIRS`) or `unseen` (those
            alone).
        trained_on (`str`): the split that models are trained on which this one tests; baselines are fitted to it.
    """

    number: int
    area: tuple[float, float] = (10.0, 28.0)
    longest: float = 7.0
    pieces: tuple[int, int] = (4, 9)
    more_pieces: int = 0
    max_views: int | None = None
    camera_heights: tuple[float, float] = (1.2, 1.7)
    pairs: str = "all"
    trained_on: str = "train"

    def allows(self, color: str, category: str) -> bool:
        return self.pairs == "all" or ((color, category) in UNSEEN_PAIRS) == (self.pairs == "unseen")


SPLITS = {
    "train": Split(0),
    "val": Split(1),
    "val_large": Split(4, area=(30.0, 50.0), longest=9.0),
    "val_crowded": Split(5, area=(16.0, 28.0), pieces=(9, 15), more_pieces=6),
    "val_few_views": Split(6, max_views=3),
    "val_low_cameras": Split(7, camera_heights=(0.5, 0.9)),
    "val_high_cameras": Split(8, camera_heights=(1.9, 2.2)),
    "train_seen_pairs": Split(9, pairs="seen", trained_on="train_seen_pairs"),
    "val_unseen_pairs": Split(10, pairs="unseen", trained_on="train_seen_pairs"),
}


def get_split(name: str) -> Split:
    """The split of a name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in SPLITS:
        raise ValueError(f"split must be one of {list(SPLITS)}, got {name!r}.")
    return SPLITS[name]


def find_training_split(name: str) -> str:
    """The split that models of a split are trained on: `train` for splits of other data too."""
    return SPLITS[name].trained_on if name in SPLITS else "train"


@dataclass
class Furniture:
    """One piece of furniture standing in a room.

    Attributes:
        category, color, size (`str`): keys of `CATEGORIES`, `COLORS`, `SIZES`.
        position (`(2,)`): x, y of its middle, metres. yaw (`float`): radians.
        part_low, part_high (`(P, 3)`): corners of the boxes in its own frame, metres; `low`, `high` (`(3,)`) of all.
        part_colors (`(P, 3)`): RGB 0..255.
    """

    category: str
    color: str
    size: str
    position: np.ndarray
    yaw: float
    part_low: np.ndarray
    part_high: np.ndarray
    part_colors: np.ndarray

    def __post_init__(self):
        self.low, self.high = self.part_low.min(0), self.part_high.max(0)

    @property
    def box(self) -> np.ndarray:
        """Axis-aligned hull in the world: centre xyz, size xyz, metres."""
        low, high = self.low, self.high
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        x, y, z = (low + high) / 2
        width, depth, height = high - low
        return np.array(
            [
                self.position[0] + cos * x - sin * y,
                self.position[1] + sin * x + cos * y,
                z,
                abs(cos) * width + abs(sin) * depth,
                abs(sin) * width + abs(cos) * depth,
                height,
            ]
        )


@dataclass
class Fixture:
    """A flat door, window or picture on a wall: a painted rectangle without depth.

    `axis` 0 or 1 is the wall's normal, `sign` its side; `low`, `high` are (along the wall, height) in metres.
    """

    axis: int
    sign: int
    low: tuple[float, float]
    high: tuple[float, float]
    color: tuple[int, int, int]


@dataclass
class Room:
    """A furnished room: the inside of the box from `low` to `high`, metres."""

    low: np.ndarray
    high: np.ndarray
    wall_color: np.ndarray
    floor_color: np.ndarray
    light: np.ndarray
    fixtures: list[Fixture]
    furniture: list[Furniture]

    @property
    def area(self) -> float:
        """Floor area, square metres."""
        return float(np.prod((self.high - self.low)[:2]))

    @property
    def boxes(self) -> np.ndarray:
        return np.stack([piece.box for piece in self.furniture]).astype(np.float32)


def make_room(seed: int, split: str, index: int) -> tuple[Room, np.random.Generator]:
    """The room at `index` of `split`, and its generator for further draws (cameras, questions)."""
    kind = get_split(split)
    rng = np.random.default_rng([seed, kind.number, index])
    while True:
        room = _make_empty_room(kind, rng)
        _furnish(room, kind, rng)
        if len(room.furniture) >= kind.pieces[0]:
            return room, rng


def _make_empty_room(split: Split, rng: np.random.Generator) -> Room:
    area = np.exp(rng.uniform(np.log(split.area[0]), np.log(split.area[1])))
    widest = min(split.longest / np.sqrt(area), np.sqrt(area) / 3.0)
    ratio = np.exp(rng.uniform(-1, 1) * np.log(max(1.0, min(widest, 1.45))))
    size = np.array([np.sqrt(area) * ratio, np.sqrt(area) / ratio, rng.uniform(2.4, 2.8)])
    middle = rng.uniform(-0.4, 0.4, 2)
    low = np.append(middle - size[:2] / 2, 0.0)
    angle = rng.uniform(0, 2 * np.pi)
    light = np.array([0.5 * np.cos(angle), 0.5 * np.sin(angle), 0.85])
    return Room(
        low=low,
        high=low + size,
        wall_color=np.array(WALL_COLORS[rng.integers(len(WALL_COLORS))]) * rng.uniform(0.9, 1.03),
        floor_color=np.array(FLOOR_COLORS[rng.integers(len(FLOOR_COLORS))]) * rng.uniform(0.9, 1.1),
        light=light / np.linalg.norm(light),
        fixtures=_make_fixtures(low, low + size, rng),
        furniture=[],
    )


def _make_fixtures(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> list[Fixture]:
    """A door on one wall and windows or pictures on some of the others."""
    fixtures = []
    walls = [(axis, sign) for axis in (0, 1) for sign in (-1, 1)]
    for number, wall in enumerate(rng.permutation(4)):
        axis, sign = walls[wall]
        start, end = low[1 - axis], high[1 - axis]
        if number == 0:
            along = rng.uniform(start + 0.2, end - 1.1)
            fixtures.append(Fixture(axis, sign, (along, 0.0), (along + 0.9, 2.05), (122, 104, 88)))
        elif rng.random() < 0.6:
            width = rng.uniform(0.9, min(1.8, end - start - 0.6))
            along = rng.uniform(start + 0.3, end - 0.3 - width)
            frame, pane = (240, 240, 236), (198, 214, 226)
            fixtures.append(Fixture(axis, sign, (along, 1.0), (along + width, 2.1), frame))
            fixtures.append(Fixture(axis, sign, (along + 0.08, 1.08), (along + width / 2 - 0.03, 2.02), pane))
            fixtures.append(Fixture(axis, sign, (along + width / 2 + 0.03, 1.08), (along + width - 0.08, 2.02), pane))
    return fixtures


def _draw_categories(room: Room, split: Split, rng: np.random.Generator) -> list[str]:
    """Kinds of furniture to place; some rooms repeat one or two kinds, so that counting has something to count."""
    names = list(CATEGORIES)
    total = int(np.clip(round(3.2 + room.area / 9.0 + rng.uniform(-1.2, 2.2)) + split.more_pieces, *split.pieces))
    order = [names[i] for i in rng.permutation(len(names))]
    wanted: list[str] = []
    for name in order:
        repeats = int(rng.choice((1, 2, 3, 4), p=(0.64, 0.1, 0.12, 0.14)))
        wanted.extend([name] * min(repeats, total - len(wanted)))
        if len(wanted) == total:
            break
    return wanted


def _draw_colors(count: int, rng: np.random.Generator) -> list[str]:
    """Colours of the pieces: independent draws; in some rooms one colour is repeated."""
    names = list(COLORS)
    colors = [names[i] for i in rng.integers(len(names), size=count)]
    if rng.random() < 0.45:
        favourite = names[rng.integers(len(names))]
        for index in rng.permutation(count)[: rng.integers(2, 5)]:
            colors[index] = favourite
    return colors


def _redraw_colors(categories: list[str], colors: list[str], split: Split, rng: np.random.Generator) -> list[str]:
    """The colours of the pieces, those that the split does not allow for their category replaced by ones it allows."""
    allowed = [[color for color in COLORS if split.allows(color, category)] for category in categories]
    return [
        color if color in known else known[rng.integers(len(known))]
        for color, known in zip(colors, allowed, strict=True)
    ]


def _furnish(room: Room, split: Split, rng: np.random.Generator) -> None:
    """Place the pieces one by one where they fit; a piece that finds no place is left out."""
    categories = _draw_categories(room, split, rng)
    colors = _redraw_colors(categories, _draw_colors(len(categories), rng), split, rng)
    sizes = [list(SIZES)[i] for i in rng.integers(len(SIZES), size=len(categories))]
    hulls = np.zeros((0, 6))
    for category, color, size in zip(categories, colors, sizes, strict=True):
        piece = _make_furniture(category, color, size, rng)
        for _ in range(40):
            _draw_place(piece, room, rng)
            if _fits(piece.box, hulls, room):
                hulls = np.concatenate([hulls, piece.box[None]])
                room.furniture.append(piece)
                break
    order = rng.permutation(len(room.furniture))
    room.furniture[:] = [room.furniture[i] for i in order]


def _make_furniture(category: str, color: str, size: str, rng: np.random.Generator) -> Furniture:
    parts = CATEGORIES[category].parts
    corners = np.array([part[0] for part in parts])
    scale = SIZES[size] * rng.uniform(0.95, 1.05)
    stretch = np.array([scale * rng.uniform(0.95, 1.05), scale * rng.uniform(0.95, 1.05), scale])
    stretch[2] = min(scale, MAX_HEIGHT / corners[:, 5].max())
    base = np.array(COLORS[color], dtype=np.float64)
    paints = [np.array(paint, float) if paint is not None else base * tone for _, tone, paint in parts]
    return Furniture(
        category=category,
        color=color,
        size=size,
        position=np.zeros(2),
        yaw=0.0,
        part_low=corners[:, :3] * stretch,
        part_high=corners[:, 3:] * stretch,
        part_colors=np.clip(np.stack(paints), 0, 255),
    )


def _draw_place(piece: Furniture, room: Room, rng: np.random.Generator) -> None:
    low, high = room.low[:2], room.high[:2]
    if rng.random() < CATEGORIES[piece.category].against_wall:
        wall = int(rng.integers(4))
        # The back (+y of its own frame) turns to the wall in direction wall * 90 degrees.
        piece.yaw = wall * np.pi / 2 - np.pi / 2
        axis, sign = (0, 1, 0, 1)[wall], (1, 1, -1, -1)[wall]
        piece.position = np.zeros(2)
        half = piece.box[3 + axis] / 2
        back = sign * piece.box[axis] + half
        gap = rng.uniform(0.02, 0.08)
        piece.position = rng.uniform(low, high)
        piece.position[axis] = high[axis] - back - gap if sign > 0 else low[axis] + back + gap
    else:
        piece.yaw = float(rng.integers(4) * np.pi / 2 + rng.uniform(-0.5, 0.5))
        piece.position = rng.uniform(low + 0.3, high - 0.3)


def _fits(box: np.ndarray, hulls: np.ndarray, room: Room) -> bool:
    centre, half = box[:2], box[3:5] / 2
    if (centre - half < room.low[:2] + 0.015).any() or (centre + half > room.high[:2] - 0.015).any():
        return False
    gap = np.abs(hulls[:, :2] - centre) - (hulls[:, 3:5] / 2 + half)
    return bool((gap.max(-1) > 0.12).all()) if len(hulls) else True


def make_cameras(
    room: Room,
    rng: np.random.Generator,
    num_views: int,
    image_size: tuple[int, int],
    heights: tuple[float, float] = Split.camera_heights,
) -> tuple[np.ndarray, np.ndarray]:
    """A walk around the room, looking across it.

    Args:
        image_size (`(width, height)`): pixels.
        heights: of the cameras, from and to, metres above the floor.

    Returns:
        `intrinsics` (3, 3) in pixels and `cam2world` (V, 4, 4), OpenCV axes, metres.
    """
    width, height = image_size
    focal = 0.5 * min(width, height) / np.tan(np.deg2rad(rng.uniform(36, 40)))
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], dtype=np.float64)
    hulls = room.boxes.astype(np.float64)
    start, turn = rng.uniform(0, 2 * np.pi), rng.choice((-1.0, 1.0))
    # The angle of each view is drawn just before its camera.
    angles = (start + turn * (view + rng.uniform(-0.25, 0.25)) * 2 * np.pi / num_views for view in range(num_views))
    return intrinsics, np.stack([_make_camera(room, hulls, angle, heights, rng) for angle in angles])


def _make_camera(
    room: Room, hulls: np.ndarray, angle: float, heights: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    low, high = room.low[:2], room.high[:2]
    middle, half = (low + high) / 2, (high - low) / 2
    eye = np.zeros(3)
    for attempt in range(60):
        eye[2] = rng.uniform(*heights)
        wander = angle + rng.uniform(-0.02, 0.02) * attempt
        direction = np.array([np.cos(wander), np.sin(wander)])
        # Onto the rounded rectangle 0.3 m from the walls, then a little inwards.
        reach = np.min((half - 0.3) / np.maximum(np.abs(direction), 1e-6))
        eye[:2] = middle + direction * reach * rng.uniform(0.8, 1.0) * (1 - 0.01 * attempt)
        distance = np.abs(hulls[:, :2] - eye[:2]) - hulls[:, 3:5] / 2
        blocked = (distance.max(-1) < 0.3) & (hulls[:, 2] + hulls[:, 5] / 2 > eye[2] - 0.35)
        if not blocked.any():
            break
    target = np.append(middle + rng.uniform(-0.35, 0.35, 2) * half, rng.uniform(0.35, 0.75))
    return look_at(eye, target)


def look_at(eye: np.ndarray, target: np.ndarray) -> np.ndarray:
    """cam2world (4, 4) of a level camera at `eye` looking at `target`: OpenCV axes, world z up."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    x, y, z = forward / math.hypot(forward[0], forward[1])
    right, down = np.array([y, -x, 0.0]), np.array([x * z, y * z, -1.0]) / math.hypot(1.0, z)
    cam2world = np.eye(4)
    cam2world[:3, :4] = np.stack([right, down, forward, eye], axis=1)
    return cam2world
