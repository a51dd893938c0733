"""Check that the views of a scan agree, by looking up depth readings of one view in others, and diagnose mistakes.

A reading of one view, seen from another camera, either agrees with the depth there, lies behind it (occluded), or lies
in front of it. The last is a contradiction in a static scene: the other view looked through that place. The share that
agrees, of those that agree or contradict, is 1 for cameras and depth that belong together; noise, drift of some
centimetres and people who walk by leave it above 0.9. Wrong cameras give 0.2 to 0.8.

Where views do not agree, common mistakes are undone one by one (`list_mistakes`), and the one that makes the views
agree is the likely reason. Places that no two views see are not judged.

Only a few hundred readings of each view are compared. Shape letters: V views, H W depth pixels, N readings of a view,
P ordered pairs of views.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ross3d.data.scene import Scene
from ross3d.data.upright import count_and_name, get_view_names
from ross3d.geometry_ross3d import turn_cameras


# Maximum number of views checked, evenly spread; readings of each; up to this many views, all pairs are compared.
MAX_VIEWS, NUM_READINGS, ALL_PAIRS = 32, 200, 14
# Readings agree within this share of the scan's median depth plus this share of their own: sensors err by 2 % at 3 m.
BASE_TOLERANCE, TOLERANCE = 0.03, 0.04
# Readings that the nine pixels around a place need before it is compared.
MIN_AROUND = 3
# Compared readings needed before views are reported to disagree, or to agree once a mistake is undone.
MIN_COMPARED = 200
# From the first share on views agree and the check ends; below the second they disagree even if no reason is found.
AGREES, DISAGREES = 0.97, 0.75
# An explanation must make this share agree and remove this share of the contradictions.
EXPLAINS, EXPLAINED = 0.93, 0.65
# Below this share, with an explanation from this share on, the cameras are certainly wrong.
CERTAINLY_WRONG, CERTAIN = 0.7, 0.97
# Translations are off by a factor when the best one is further from 1 than this.
MIN_FACTOR = 1.15
# A single view does not belong to the others below this share, where the others agree among themselves.
STRAY_VIEW = 0.6
# Colours of the same places in two views: pictures lie right over their depth from this correlation on, if it is this
# much above that of another way to lay them; and places that are needed to tell.
SAME_COLORS, OTHER_COLORS, MIN_SHARED_PLACES = 0.4, 0.3, 50
# Quarter turns, counter-clockwise, in words.
DEGREES = {1: "90 degrees counter-clockwise", 2: "180 degrees", 3: "90 degrees clockwise"}
# Rounds in which single views that are turned are looked for: each round knows more of the others.
TURNING_ROUNDS = 4
# Cameras at least this many median depths from their centre that see nothing in common are in another unit.
FAR_APART = 30.0
# Units that are often mixed up: how many of them make a metre.
UNITS = {1000.0: "millimetres", 100.0: "centimetres", 39.37: "inches", 3.2808: "feet"}
# Readings per view while searching for a mistake, in scans with many views.
SEARCHED_READINGS, FEW_VIEWS = 64, 6
# Factors are tried in even ratios, then in finer ones around the best. Focal lengths are off by no more than the last
# of these; for translations all are tried that bring the median distance of the cameras from their middle between
# these shares of the median depth: cameras nearer to each other see what one camera sees, those further apart nothing.
STEP, FINE_STEP, FINE_STEPS = 1.15, 1.02, 10
FOCAL_FACTORS = STEP ** np.arange(-14.0, 15.0)
MIN_SPREAD, MAX_SPREAD = 0.02, 10.0
# A translation factor can be estimated only if putting all cameras in one place makes this share contradict.
TELLING = 0.1

OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
# Camera axes that are known by name: rows are the OpenCV axes x, y, z in terms of theirs.
CAMERA_AXES = {
    ((1, 0, 0), (0, -1, 0), (0, 0, -1)): "OpenGL axes (x right, y up, z backward)",
    ((-1, 0, 0), (0, -1, 0), (0, 0, 1)): "PyTorch3D axes (x left, y up, z forward)",
    ((0, -1, 0), (0, 0, -1), (1, 0, 0)): "axes of a robot's body (x forward, y left, z up)",
}


class ConsistencyWarning(UserWarning):
    """The views of a scan do not agree with each other."""


@dataclass(frozen=True)
class Agreement:
    """How far depth readings of views agree with other views.

    Attributes:
        agreeing, contradicting (`np.ndarray` of shape `(P,)`): counts of readings by pair.
        pairs (`np.ndarray` of shape `(2, P)`): the view that a reading is of, and the view it was looked up in.
    """

    agreeing: np.ndarray
    contradicting: np.ndarray
    pairs: np.ndarray

    @property
    def num_compared(self) -> int:
        """Readings that agree or contradict."""
        return int(self.agreeing.sum() + self.contradicting.sum())

    @property
    def share(self) -> float:
        """Share of the compared readings that agree; NaN where none could be compared."""
        return float(self.agreeing.sum() / self.num_compared) if self.num_compared else float("nan")

    def get_share_of_view(self, view: int) -> float:
        """The same of the pairs that a view is in; NaN where too few of its readings could be compared."""
        chosen = (self.pairs == view).any(0)
        total = self.agreeing[chosen].sum() + self.contradicting[chosen].sum()
        return float(self.agreeing[chosen].sum() / total) if total >= MIN_COMPARED / 2 else float("nan")

    def count_balance(self, view: int) -> int:
        """Readings that agree less those that contradict, of the pairs that a view is in."""
        chosen = (self.pairs == view).any(0)
        return int(self.agreeing[chosen].sum() - self.contradicting[chosen].sum())

    def drop_views(self, views: list[int]) -> "Agreement":
        """Without the pairs of some views."""
        rest = ~np.isin(self.pairs, views).any(0)
        return Agreement(self.agreeing[rest], self.contradicting[rest], self.pairs[:, rest])


@dataclass(frozen=True)
class Cameras:
    """The data to compare: depth maps (V, H, W), intrinsics (V, 3, 3) and cam2world (V, 4, 4), float64.

    `kept` caches sampled readings by their number, with the depth maps they come from: most mistakes leave the maps
    unchanged, and sampling is slow for large, sparse maps.
    """

    depth_maps: np.ndarray
    intrinsics: np.ndarray
    cam2world: np.ndarray
    kept: dict = field(default_factory=dict, repr=False, compare=False)

    def get_readings(self, num_readings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`sample_readings` of the depth maps."""
        maps, readings = self.kept.get(num_readings, (None, None))
        if maps is not self.depth_maps:
            readings = sample_readings(self.depth_maps, num_readings)
            self.kept[num_readings] = self.depth_maps, readings
        return readings


@dataclass(frozen=True)
class Mistake:
    """A common mistake.

    Attributes:
        reason, remedy (`str`): in words.
        undo: the cameras as given -> with the mistake undone.
        is_factor (`bool`): whether it is a factor of the translations.
        turns (`int`): quarter turns, counter-clockwise, by which undoing it turns the depth maps.
        alone, along (`tuple[str, str]`, *optional*): reason and remedy once the colours tell that the depth maps were
            turned alone, or that their pictures were turned along with them.
    """

    reason: str
    remedy: str
    undo: Callable[[Cameras], Cameras]
    is_factor: bool = False
    turns: int = 0
    alone: tuple[str, str] | None = None
    along: tuple[str, str] | None = None

    def settle(self, cameras: Cameras, images: np.ndarray) -> "Mistake":
        """The mistake with the reason that the colours of the pictures (V, H, W, 3) tell, where they tell one."""
        if self.alone is None or self.along is None:
            return self
        as_is, turned = compare_turned(self.undo(cameras), images, np.full(len(images), self.turns))
        if fits_better(as_is, turned):
            return replace(self, reason=self.alone[0], remedy=self.alone[1])
        if fits_better(turned, as_is):
            return replace(self, reason=self.along[0], remedy=self.along[1])
        return self


@dataclass(frozen=True)
class Disagreement:
    """Views that do not agree, and the likely reason.

    Attributes:
        share (`float`): of the compared readings that agree as the scan is; NaN where none could be compared.
        num_compared (`int`): readings compared as the scan is.
        reason, remedy (`str`): in words.
        explained_share (`float`, *optional*): the share once the mistake is undone; None where no mistake is known.
        certain (`bool`): whether the cameras are certainly wrong.
        is_unit (`bool`): whether translations and depth seem to differ in unit.
    """

    share: float
    num_compared: int
    reason: str
    remedy: str
    explained_share: float | None = None
    certain: bool = False
    is_unit: bool = False

    def describe(self) -> str:
        """A message with the finding, the likely reason and the remedy."""
        if self.num_compared:
            seen = f"of {self.num_compared} depth readings looked up in another view {100 * self.share:.1f} % agree"
        else:
            seen = "no depth reading of a view is seen by another"
        explained = ""
        if self.explained_share is not None:
            explained = f" Undoing one mistake makes {100 * self.explained_share:.0f} % agree:"
        return f"{seen}.{explained} {self.reason}; {self.remedy}."


def get_cameras(scene: Scene) -> Cameras | None:
    """The cameras and depth of at most `MAX_VIEWS` views of a scene; None without posed depth, and for a single view.

    Cameras are in the scan's own frame, as in its files: mistakes such as inverted poses can only be undone before the
    alignment.
    """
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None or scene.num_views < 2:
        return None
    return take_cameras(scene)


def take_cameras(scene: Scene) -> Cameras:
    """As `get_cameras`, for a scene that has posed depth; a single view is allowed."""
    chosen = choose_views(scene.num_views)
    intrinsics = np.broadcast_to(np.asarray(scene.intrinsics, np.float64), (scene.num_views, 3, 3))
    cam2world = np.asarray(scene.cam2world, np.float64)[chosen]
    if scene.axis_align_matrix is not None:
        cam2world = np.linalg.inv(np.asarray(scene.axis_align_matrix, np.float64)) @ cam2world
    return Cameras(scene.depth_maps[chosen], intrinsics[chosen], cam2world)


def choose_views(num_views: int) -> np.ndarray:
    """Indices of the views to check, evenly spread."""
    return np.unique(np.linspace(0, num_views - 1, min(MAX_VIEWS, num_views)).round().astype(int))


def sample_readings(depth_maps: np.ndarray, num_readings: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, rows and depths (V, N) of readings spread over each map; depth 0 where a map has fewer."""
    num_views, height, width = depth_maps.shape
    columns, rows = np.zeros((2, num_views, num_readings), np.int64)
    # Multiples of 1/g and 1/g^2, g being the root of g^3 = g + 1, spread evenly over a square, however many are taken.
    root, step = 1.32471795724474602596, np.arange(2 * num_readings)
    even_columns = ((0.5 + step / root) % 1 * width).astype(np.int64)
    even_rows = ((0.5 + step / root**2) % 1 * height).astype(np.int64)
    depths = np.zeros((num_views, num_readings))
    for view, depth_map in enumerate(depth_maps):
        u, v = even_columns, even_rows
        chosen = np.flatnonzero(depth_map[v, u] > 0)[:num_readings]
        if len(chosen) < num_readings // 2:
            # Few readings: all of them are listed.
            places = np.flatnonzero(depth_map > 0)
            v, u = np.divmod(places, width)
            chosen = np.unique(np.linspace(0, len(places) - 1, min(num_readings, len(places))).astype(np.int64))
        columns[view, : len(chosen)], rows[view, : len(chosen)] = u[chosen], v[chosen]
        depths[view, : len(chosen)] = depth_map[v[chosen], u[chosen]]
    return columns, rows, depths


def unproject_readings(
    cameras: Cameras, columns: np.ndarray, rows: np.ndarray, depths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """World points (V, N, 3) of readings, and their depths (V, N); arguments of `sample_readings`."""
    intrinsics, cam2world = cameras.intrinsics, cameras.cam2world
    x = (columns - intrinsics[:, 0, 2, None]) / intrinsics[:, 0, 0, None]
    y = (rows - intrinsics[:, 1, 2, None]) / intrinsics[:, 1, 1, None]
    points = np.stack([x * depths, y * depths, depths], axis=-1)
    return points @ cam2world[:, :3, :3].transpose(0, 2, 1) + cam2world[:, None, :3, 3], depths


def pair_views(num_views: int) -> np.ndarray:
    """Ordered pairs (2, P) of views: all if few; else neighbours and those a quarter and half of the scan apart."""
    first, second = np.divmod(np.arange(num_views**2), num_views)
    gap = (second - first) % num_views
    steps = range(1, num_views) if num_views <= ALL_PAIRS else (1, 2, 3, num_views // 4, num_views // 2)
    wanted = np.isin(gap, [*steps, *(num_views - step for step in steps)])
    return np.stack([first[wanted], second[wanted]])


@dataclass(frozen=True)
class SeenReadings:
    """Readings that another view sees.

    Attributes:
        pairs (`np.ndarray` of shape `(2, P)`): the view that a reading is of, and the view it is looked up in.
        pair, reading (`np.ndarray` of shape `(M,)`): the pair and the reading of its first view.
        column, row (`np.ndarray` of shape `(M,)`): the pixel of the other view that sees it.
        agrees, contradicts (`np.ndarray` of shape `(M,)`): against the depth there.
    """

    pairs: np.ndarray
    pair: np.ndarray
    reading: np.ndarray
    column: np.ndarray
    row: np.ndarray
    agrees: np.ndarray
    contradicts: np.ndarray


def look_up_readings(cameras: Cameras, num_readings: int = NUM_READINGS) -> SeenReadings:
    """Look `num_readings` of every view up in others."""
    depth_maps, intrinsics, cam2world = cameras.depth_maps, cameras.intrinsics, cameras.cam2world
    num_views, height, width = depth_maps.shape
    points, depths = unproject_readings(cameras, *cameras.get_readings(num_readings))
    pairs = pair_views(num_views)
    source, target = pairs
    points = (points[source] - cam2world[target, None, :3, 3]) @ cam2world[target, :3, :3]  # (P, N, 3)
    ahead = (points[..., 2] > 1e-9) & (depths[source] > 0)
    z = np.where(ahead, points[..., 2], 1.0)
    u = np.round(points[..., 0] / z * intrinsics[target, 0, 0, None] + intrinsics[target, 0, 2, None])
    v = np.round(points[..., 1] / z * intrinsics[target, 1, 1, None] + intrinsics[target, 1, 2, None])
    seen = ahead & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    pair, reading = np.nonzero(seen)
    u, v, z = u[seen].astype(np.int64), v[seen].astype(np.int64), z[seen]
    nearest, farthest, count = np.full(len(z), np.inf), np.zeros(len(z)), np.zeros(len(z), np.int64)
    for down, right in product((-1, 0, 1), repeat=2):
        there = depth_maps[target[pair], np.clip(v + down, 0, height - 1), np.clip(u + right, 0, width - 1)]
        nearest = np.where(there > 0, np.minimum(nearest, there), nearest)
        farthest = np.maximum(farthest, there)
        count += there > 0
    tolerance = TOLERANCE * z + BASE_TOLERANCE * float(np.median(depths[depths > 0])) if len(z) else z
    known = count >= MIN_AROUND
    contradicts = known & (z < nearest - tolerance)
    agrees = known & ~contradicts & (z <= farthest + tolerance)
    return SeenReadings(pairs, pair, reading, u, v, agrees, contradicts)


def measure_agreement(cameras: Cameras, num_readings: int = NUM_READINGS) -> Agreement:
    """Look `num_readings` of every view up in others and count those that agree and those that contradict."""
    seen = look_up_readings(cameras, num_readings)
    agreeing, contradicting = (
        np.bincount(seen.pair[which], minlength=seen.pairs.shape[1]) for which in (seen.agrees, seen.contradicts)
    )
    return Agreement(agreeing, contradicting, seen.pairs)


@dataclass(frozen=True)
class SharedPlaces:
    """Places that two views see, at pixels of the depth maps.

    Attributes:
        views, columns, rows (`np.ndarray` of shape `(2, M)`): one row for each of the two views of a place.
        size (`(width, height)`): of the depth maps.
    """

    views: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    size: tuple[int, int]

    def get_colors(self, images: np.ndarray, turns: np.ndarray | None = None) -> np.ndarray:
        """Colours (2, M, 3) of the places in the pictures (V, H, W, 3) of all views, of any size over their depth.

        Args:
            turns (`np.ndarray` of shape `(V,)`, *optional*): quarter turns, counter-clockwise, of each picture before
                that; those of pictures that are not square are even.
        """
        height, width = images.shape[1:3]
        x = ((self.columns + 0.5) * (width / self.size[0])).astype(np.int64)
        y = ((self.rows + 0.5) * (height / self.size[1])).astype(np.int64)
        if turns is not None:
            turn, right, lower = turns[self.views], width - 1, height - 1
            y, x = np.choose(turn, (y, x, lower - y, lower - x)), np.choose(turn, (x, right - y, right - x, y))
        return images[self.views, y, x].astype(np.float64)


def find_shared_places(cameras: Cameras) -> SharedPlaces:
    """The places of readings that agree with another view."""
    num_readings = get_search_readings(cameras)
    columns, rows, _ = cameras.get_readings(num_readings)
    seen = look_up_readings(cameras, num_readings)
    pair, reading = seen.pair[seen.agrees], seen.reading[seen.agrees]
    views = seen.pairs[:, pair]
    return SharedPlaces(
        views,
        np.stack([columns[views[0], reading], seen.column[seen.agrees]]),
        np.stack([rows[views[0], reading], seen.row[seen.agrees]]),
        cameras.depth_maps.shape[:0:-1],
    )


def correlate_colors(colors: np.ndarray) -> float:
    """Correlation in [-1, 1] of the colours (2, M, 3) that two views have of the same places; 0 where too few are
    seen."""
    if colors.shape[1] < MIN_SHARED_PLACES:
        return 0.0
    first, second = colors - colors.mean(axis=1, keepdims=True)
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread > 0 else 0.0


def fits_better(better: float, worse: float) -> bool:
    """Whether one of two correlations of colours is certainly that of pictures that lie right over their depth."""
    return better >= SAME_COLORS and better - worse >= OTHER_COLORS


def compare_turned(cameras: Cameras, images: np.ndarray, turns: np.ndarray) -> tuple[float, float]:
    """`correlate_colors` of the pictures (V, H, W, 3) as they are, and after quarter turns (V,), counter-clockwise, of
    the places of views that are turned."""
    places = find_shared_places(cameras)
    counted = (turns != 0)[places.views].any(axis=0)
    as_is, turned = (correlate_colors(places.get_colors(images, each)[:, counted]) for each in (None, turns))
    return as_is, turned


@dataclass(frozen=True)
class LaidPictures:
    """Colours of the places that two views see, for several ways to turn each picture before it lies over its depth.

    Attributes:
        places (`SharedPlaces`): M places.
        colors (`np.ndarray` of shape `(T, 2, M, 3)`): of the T ways.
    """

    places: SharedPlaces
    colors: np.ndarray

    def correlate(self, ways: np.ndarray, views: np.ndarray) -> list[float]:
        """`correlate_colors` of the places that some views see for each way to turn these, all of them alike.

        Args:
            ways (`np.ndarray` of shape `(V,)`): of the other views.
            views (`np.ndarray` of shape `(V,)`, bool): the views that are turned.
        """
        own = views[self.places.views]
        chosen = own.any(axis=0)
        own, now = own[:, chosen, None], self.get_colors(ways)[:, chosen]
        return [correlate_colors(np.where(own, each[:, chosen], now)) for each in self.colors]

    def get_colors(self, ways: np.ndarray) -> np.ndarray:
        """The colours (2, M, 3) for one way of each view."""
        return self.colors[ways[self.places.views], [[0], [1]], np.arange(self.places.views.shape[1])]

    def find_ways(self, open_views: np.ndarray) -> np.ndarray:
        """The way (V,) to turn each picture with which the colours are the same, 0 where none is certain.

        Args:
            open_views (`np.ndarray` of shape `(V,)`, bool): the views that may have another way than 0.
        """
        ways, share = np.zeros(len(open_views), np.int64), -1.0
        for start in range(len(self.colors)):
            tried = self._refine(np.where(open_views, start, 0), open_views)
            tried_share = correlate_colors(self.get_colors(tried))
            if start == 0 or fits_better(tried_share, share):
                ways, share = tried, tried_share
            if share > 1 - OTHER_COLORS:
                break
        return ways

    def _refine(self, ways: np.ndarray, open_views: np.ndarray) -> np.ndarray:
        for _ in range(TURNING_ROUNDS):
            now, changed = self.get_colors(ways), ways.copy()
            for view in np.flatnonzero(open_views):
                as_is = correlate_colors(now[:, (self.places.views == view).any(axis=0)])
                if as_is <= 1 - OTHER_COLORS:
                    tried = self.correlate(ways, np.arange(len(ways)) == view)
                    best = int(np.argmax(tried))
                    changed[view] = best if fits_better(tried[best], as_is) else ways[view]
            if np.array_equal(changed, ways):
                break
            ways = changed
        return ways


def lay_pictures(images: np.ndarray, cameras: Cameras, ways: np.ndarray) -> LaidPictures:
    """The pictures (V, H, W, 3) over their depth maps after quarter turns (T, V), counter-clockwise."""
    places = find_shared_places(cameras)
    return LaidPictures(places, np.stack([places.get_colors(images, turns) for turns in ways]))


def find_turned_pictures(images: np.ndarray, cameras: Cameras) -> np.ndarray:
    """Quarter turns (V,), counter-clockwise, that bring each picture (V, H, W, 3) right over its depth map: with them
    the colours of places that two views see are the same. Pictures that are not square take half turns only."""
    num_views, height, width = cameras.depth_maps.shape
    is_square = images.shape[1] == images.shape[2] and height == width
    possible = np.arange(4) if is_square else np.array([0, 2])
    laid = lay_pictures(images, cameras, np.repeat(possible[:, None], num_views, axis=1))
    return possible[laid.find_ways(np.full(num_views, True))]


def tell_tagged_pictures(images: np.ndarray, cameras: Cameras, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which pictures (V, H, W, 3) with a tag lie right over their depth maps once they are turned, and which do as
    they are stored; neither where colours do not tell.

    Args:
        turns (`np.ndarray` of shape `(V,)`): quarter turns, counter-clockwise, of the tags; 0 without one.

    Returns:
        two masks (V,).
    """
    laid = lay_pictures(images, cameras, np.stack([np.zeros_like(turns), turns]))
    is_open = turns != 0
    ways = laid.find_ways(is_open)
    is_turned, is_stored = np.zeros((2, len(turns)), bool)
    for view in np.flatnonzero(is_open):
        stored, turned = laid.correlate(ways, np.arange(len(turns)) == view)
        is_turned[view], is_stored[view] = fits_better(turned, stored), fits_better(stored, turned)
    # Those that see too few places each may see enough together; else they are as the others, where these are alike.
    rest = is_open & ~is_turned & ~is_stored
    stored, turned = laid.correlate(ways, rest)
    return (
        is_turned | (rest & (fits_better(turned, stored) or (is_turned.any() and not is_stored.any()))),
        is_stored | (rest & (fits_better(stored, turned) or (is_stored.any() and not is_turned.any()))),
    )


def set_rotation(cameras: Cameras, rotation: np.ndarray) -> Cameras:
    """The cameras with other rotations (V, 3, 3)."""
    cam2world = cameras.cam2world.copy()
    cam2world[:, :3, :3] = rotation
    return replace(cameras, cam2world=cam2world)


def set_translation(cameras: Cameras, translation: np.ndarray) -> Cameras:
    """The cameras with other translations (V, 3)."""
    cam2world = cameras.cam2world.copy()
    cam2world[:, :3, 3] = translation
    return replace(cameras, cam2world=cam2world)


def scale_translations(cameras: Cameras, factor: float) -> Cameras:
    return set_translation(cameras, cameras.cam2world[:, :3, 3] * factor)


def scale_intrinsics(cameras: Cameras, factor: float, centre_factor: float) -> Cameras:
    """Focal lengths times `factor`, centres as of a picture `centre_factor` times as large."""
    intrinsics = cameras.intrinsics.copy()
    intrinsics[:, [0, 1], [0, 1]] *= factor
    intrinsics[:, :2, 2] = (intrinsics[:, :2, 2] + 0.5) * centre_factor - 0.5
    return replace(cameras, intrinsics=intrinsics)


def swap_intrinsics(cameras: Cameras) -> Cameras:
    """Focal lengths and centres of x and y exchanged."""
    intrinsics = cameras.intrinsics.copy()
    intrinsics[:, [0, 1], [0, 1]] = intrinsics[:, [1, 0], [1, 0]]
    intrinsics[:, [0, 1], 2] = intrinsics[:, [1, 0], 2]
    return replace(cameras, intrinsics=intrinsics)


def make_planar(cameras: Cameras) -> Cameras:
    """Depth along the ray (V, H, W) turned into depth along the camera's z axis."""
    _, height, width = cameras.depth_maps.shape
    focal, centre = cameras.intrinsics[:, [0, 1], [0, 1], None], cameras.intrinsics[:, :2, 2, None]
    x = (np.arange(width) - centre[:, 0]) / focal[:, 0]
    y = (np.arange(height) - centre[:, 1]) / focal[:, 1]
    lengths = (1 + x**2).astype(np.float32)[:, None] + (y**2).astype(np.float32)[:, :, None]
    # In place: maps of a sensor are large.
    np.sqrt(lengths, out=lengths)
    return replace(cameras, depth_maps=np.divide(cameras.depth_maps, lengths, out=lengths))


def reorder_quaternions(cameras: Cameras, shift: int) -> Cameras:
    """Rotations whose quaternions were read in another order: `w x y z` for `x y z w` (1) or the reverse (-1)."""
    quaternions = Rotation.from_matrix(cameras.cam2world[:, :3, :3]).as_quat()
    return set_rotation(cameras, Rotation.from_quat(np.roll(quaternions, shift, axis=1)).as_matrix())


def list_mistakes(cameras: Cameras) -> Iterator[Mistake]:
    """The usual mistakes that could have been made with these cameras, the most common first."""
    yield from _list_matrix_mistakes()
    yield from _list_turned_depth_mistakes(cameras.depth_maps.shape[1] == cameras.depth_maps.shape[2])
    yield from _list_axes_mistakes()
    yield from _list_intrinsics_mistakes(cameras)
    yield Mistake(
        "the depth maps hold distances along the ray of each pixel where depth along the camera's z axis is expected",
        "divide each reading by sqrt(1 + x^2 + y^2), x = (u - cx) / fx and y = (v - cy) / fy",
        make_planar,
    )
    yield from _list_order_mistakes(len(cameras.depth_maps))


def _list_matrix_mistakes() -> Iterator[Mistake]:
    invert = "write the inverse of each camera matrix"
    world2cam = "the poses are world to camera where camera to world is expected"
    yield Mistake(world2cam, invert, lambda c: replace(c, cam2world=np.linalg.inv(c.cam2world)))
    opengl = "turn the y and z axes of each camera around (multiply each matrix by diag(1, -1, -1, 1) from the right)"
    yield Mistake(
        f"{world2cam}, and their camera axes are OpenCV's where OpenGL's are expected, or the reverse",
        f"{invert} and {opengl}",
        lambda c: replace(c, cam2world=np.linalg.inv(c.cam2world @ OPENGL)),
    )
    yield Mistake(
        f"{world2cam}, in OpenGL axes",
        f"{invert} and {opengl}",
        lambda c: replace(c, cam2world=OPENGL @ np.linalg.inv(c.cam2world) @ OPENGL),
    )
    yield Mistake(
        "the rotations are world to camera, the translations camera to world",
        "transpose the rotations",
        lambda c: set_rotation(c, c.cam2world[:, :3, :3].transpose(0, 2, 1)),
    )
    yield Mistake(
        "the translations are world to camera, the rotations camera to world",
        "give the cameras' places in the world: minus the rotation times the translation",
        lambda c: set_translation(c, -np.einsum("vij,vj->vi", c.cam2world[:, :3, :3], c.cam2world[:, :3, 3])),
    )
    for shift, order in ((-1, "w x y z were read as x y z w"), (1, "x y z w were read as w x y z")):
        yield Mistake(
            f"quaternions {order}", "read their four numbers in the right order",
            lambda c, shift=shift: reorder_quaternions(c, shift),
        )  # fmt: skip


def _list_turned_depth_mistakes(is_square: bool) -> Iterator[Mistake]:
    """Depth maps that are mirrored or turned. Cameras with two axes turned around, or one in a left-handed world, see
    the same where the centre is in the middle of the picture, and so do cameras whose pictures were turned as well:
    both are named, unless colours tell which it is."""
    look = "check whether depth maps fit their pictures"
    for name, axis, other, other_remedy in (
        (
            "mirrored left to right", 2, "the world is left-handed, its x axis turned around",
            "turn around the x axis of the world and of each camera",
        ),
        (
            "mirrored top to bottom", 1, "the world is left-handed (as in Unity), its y axis turned around",
            "turn around the y axis of the world and of each camera",
        ),
    ):  # fmt: skip
        yield Mistake(
            f"either the depth maps are {name} against their cameras, or {other}",
            f"{look}: if not, turn them back; if they do, {other_remedy}",
            lambda c, axis=axis: replace(c, depth_maps=np.flip(c.depth_maps, axis)),
        )
    for turns in (2, 1, 3) if is_square else (2,):
        back = DEGREES[turns]
        name = f"turned by {DEGREES[-turns % 4]}"
        rotation = np.rint(Rotation.from_euler("z", -90 * turns, degrees=True).as_matrix()).astype(int).tolist()
        along = (
            f"pictures and depth maps are {name} against their cameras",
            f"turn both back by {back}, or the cameras along with them (multiply each rotation by {rotation} "
            "from the right)",
        )
        if turns == 2:
            along = (
                f"{CAMERA_AXES[(-1, 0, 0), (0, -1, 0), (0, 0, 1)]} stand where OpenCV's (x right, y down, z forward) "
                "are expected",
                "turn the x and y axes of each camera around (multiply each matrix by diag(-1, -1, 1, 1) from the "
                "right)",
            )
        yield Mistake(
            f"either the depth maps are {name} against their cameras, or {along[0]}",
            f"{look}: if not, turn them back by {back}; if they do, {along[1]}",
            lambda c, turns=turns: replace(c, depth_maps=np.rot90(c.depth_maps, turns, axes=(1, 2))),
            turns=turns,
            alone=(
                f"the depth maps are {name} against their cameras and pictures",
                f"turn the depth maps, and nothing else, back by {back}",
            ),
            along=along,
        )


def _list_axes_mistakes() -> Iterator[Mistake]:
    for order in permutations(range(3)):
        for signs in product((1, -1), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            # Columns of cam2world are the camera's axes: the correct ones are these combinations of the given ones.
            if np.linalg.det(turn) > 0 and not np.array_equal(turn, np.eye(3)):
                yield Mistake(
                    *_describe_axes(turn), lambda c, turn=turn: set_rotation(c, c.cam2world[:, :3, :3] @ turn.T)
                )
    for name, mirror in (
        ("the y and z axes of world and cameras are exchanged", np.eye(3)[[0, 2, 1]]),
        ("the world is left-handed (as in Unity), its y axis turned around", np.diag([1.0, -1.0, 1.0])),
        ("the world is left-handed, its x axis turned around", np.diag([-1.0, 1.0, 1.0])),
        ("the world is left-handed, its z axis turned around", np.diag([1.0, 1.0, -1.0])),
    ):
        yield Mistake(
            name,
            f"multiply rotations by {mirror.astype(int).tolist()} from both sides, and translations from the left",
            lambda c, mirror=mirror: set_translation(
                set_rotation(c, mirror @ c.cam2world[:, :3, :3] @ mirror), c.cam2world[:, :3, 3] @ mirror
            ),
        )
    for name, matrix in (
        ("y and z", np.eye(3)[[0, 2, 1]]),
        ("y and -z", np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
        ("-y and z", np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])),
    ):
        yield Mistake(
            f"{name} of the translations are exchanged, those of the rotations are not",
            "turn both into one world, or neither",
            lambda c, matrix=matrix: set_translation(c, c.cam2world[:, :3, 3] @ matrix.T),
        )


def _describe_axes(turn: np.ndarray) -> tuple[str, str]:
    """Reason and remedy for camera axes that `turn` (3, 3) makes OpenCV's."""
    key = tuple(tuple(int(value) for value in row) for row in turn)
    remedy = f"multiply each rotation by {turn.T.astype(int).tolist()} from the right"
    if turn[2, 2] == 1 and key not in CAMERA_AXES:
        # The x axis of the right camera is one of these: the pictures were turned, the cameras were not.
        return "pictures and depth maps are turned by a quarter or half turn against their cameras", (
            f"turn the cameras with the pictures ({remedy})"
        )
    name = CAMERA_AXES.get(key, "other camera axes")
    return f"{name} stand where OpenCV's (x right, y down, z forward) are expected, or the reverse", remedy


def _list_intrinsics_mistakes(cameras: Cameras) -> Iterator[Mistake]:
    height, width = cameras.depth_maps.shape[1:]
    first = cameras.intrinsics[0]
    if np.abs(first[2, :2]).max() > 1e-6:
        yield Mistake(
            "the intrinsics are transposed: the centre is in the last row", "transpose the matrix",
            lambda c: replace(c, intrinsics=c.intrinsics.transpose(0, 2, 1)),
        )  # fmt: skip
    if not np.allclose(swap_intrinsics(cameras).intrinsics, cameras.intrinsics, rtol=0.02):
        yield Mistake(
            "x and y of the intrinsics are exchanged, as those of a picture that was turned",
            "exchange fx with fy and cx with cy",
            swap_intrinsics,
        )
    factors = np.array([width, height]) / 2 / (first[:2, 2] + 0.5)
    if (factors > 0).all() and abs(np.log(factors[0] / factors[1])) < 0.1:
        factor = float(np.sqrt(factors.prod()))
        for name, focal in (("the intrinsics are", factor), ("the centre of the intrinsics is", 1.0)):
            if abs(np.log(factor)) > 0.15:
                remedy = "fx, fy, cx and cy" if focal != 1 else "cx and cy"
                yield Mistake(
                    f"{name} of a picture of about {width / factor:.0f}x{height / factor:.0f} pixels, the depth maps "
                    f"have {width}x{height}",
                    f"multiply {remedy} by {factor:.3g}",
                    lambda c, focal=focal: scale_intrinsics(c, focal, factor),
                )  # fmt: skip


def _list_order_mistakes(num_views: int) -> Iterator[Mistake]:
    frames = np.arange(num_views)
    orders = [
        ("the poses stand in the reverse order of the frames", frames[::-1]),
        ("every frame has the pose of the frame after it", np.roll(frames, 1)),
        ("every frame has the pose of the frame before it", np.roll(frames, -1)),
    ]
    for start in (0, 1):
        by_text = np.array(sorted(frames, key=lambda frame, start=start: str(frame + start)))
        name = "poses and frames are sorted differently, one as text (10 before 2), the other by number"
        orders += [(name, by_text), (name, np.argsort(by_text))]
    for reason, order in orders:
        if not np.array_equal(order, frames):
            yield Mistake(
                reason, "give every frame its own pose",
                lambda c, order=order: replace(c, cam2world=c.cam2world[order]),
            )  # fmt: skip


def get_search_readings(cameras: Cameras) -> int:
    return NUM_READINGS if len(cameras.depth_maps) <= FEW_VIEWS else SEARCHED_READINGS


def find_factor(
    cameras: Cameras, change: Callable[[Cameras, float], Cameras], factors: np.ndarray
) -> tuple[float, Agreement] | None:
    """The one of `factors` that makes most readings agree, refined, the middle of those that do so equally well; None
    where none makes readings comparable."""
    num_readings = get_search_readings(cameras)

    def measure(factor: float) -> float:
        found = measure_agreement(change(cameras, factor), num_readings)
        return found.share if found.num_compared >= MIN_COMPARED else 0.0

    shares = [measure(factor) for factor in factors]
    if max(shares, default=0.0) == 0:
        return None
    near = factors[int(np.argmax(shares))] * FINE_STEP ** np.arange(-FINE_STEPS, FINE_STEPS + 1.0)
    fine = np.array([measure(factor) for factor in near])
    best = float(np.exp(np.log(near[fine >= fine.max() - 0.004]).mean()))
    return best, measure_agreement(change(cameras, best))


def list_translation_factors(cameras: Cameras) -> np.ndarray:
    """Factors in even ratios within which translations can fit the depth; none where all cameras are in one place."""
    spread = measure_spread(cameras)
    if spread == 0:
        return np.zeros(0)
    first, last = (np.log(share / spread) / np.log(STEP) for share in (MIN_SPREAD, MAX_SPREAD))
    return STEP ** np.arange(np.floor(first), np.ceil(last) + 1)


def depends_on_translations(cameras: Cameras) -> bool:
    """Whether views would contradict each other if all cameras were in one place; else no factor can be estimated."""
    return measure_agreement(scale_translations(cameras, 0.0)).share < 1 - TELLING


def find_unit(factor: float) -> str | None:
    """The unit that makes metres when multiplied by `factor`."""
    return next((name for number, name in UNITS.items() if abs(np.log(factor * number)) < 0.1), None)


def list_factor_mistakes(cameras: Cameras) -> Iterator[Mistake]:
    """Translations and focal lengths that are off by a factor, with the factor that fits best."""
    found = find_factor(cameras, scale_translations, list_translation_factors(cameras))
    if found is not None and abs(np.log(found[0])) > np.log(MIN_FACTOR):
        factor, unit = found[0], find_unit(found[0])
        reason = f"translations and depth differ in unit: translations times {factor:.3g} fit the depth"
        if unit is not None:
            reason = f"the translations are in {unit} where metres are expected"
        if abs(np.log(factor / 5)) < 0.1:
            reason += " (as when depth of 5000 units a metre, TUM RGB-D's, is read as millimetres)"
        remedy = f"multiply the translations by {factor:.3g}, or divide the depth by it: whichever makes both metres"
        yield Mistake(reason, remedy, lambda c: scale_translations(c, factor), is_factor=True)
    found = find_factor(cameras, lambda c, factor: scale_intrinsics(c, factor, 1.0), FOCAL_FACTORS)
    if found is not None and abs(np.log(found[0])) > np.log(MIN_FACTOR):
        focal = found[0]
        yield Mistake(
            "the focal lengths are not those of the depth maps: their centre fits, fx and fy do not",
            f"multiply fx and fy by {focal:.3g}, as the ratio of the pictures' sizes may say",
            lambda c: scale_intrinsics(c, focal, 1.0),
        )


def list_swaps(names: list[str]) -> Iterator[Mistake]:
    """Two frames that have each other's pose or depth."""
    for first in range(len(names)):
        for second in range(first + 1, len(names)):
            order = np.arange(len(names))
            order[[first, second]] = second, first
            yield Mistake(
                f"{names[first]} and {names[second]} have each other's pose, or each other's depth",
                "give each its own",
                lambda c, order=order: replace(c, cam2world=c.cam2world[order]),
            )


def explains(better: Agreement, given: Agreement) -> bool:
    """Whether undoing a mistake makes views agree that did not."""
    if given.num_compared < MIN_COMPARED:
        # No reading contradicted the cameras as given, so an alternative needs stronger support.
        return better.num_compared >= 2 * MIN_COMPARED and better.share >= AGREES
    enough = better.num_compared >= max(MIN_COMPARED, 0.2 * given.num_compared)
    return enough and better.share >= EXPLAINS and 1 - better.share <= (1 - EXPLAINED) * (1 - given.share)


def find_mistake(cameras: Cameras, given: Agreement, mistakes: Iterator[Mistake]) -> tuple[Mistake, Agreement] | None:
    """The mistake that, undone, makes most readings agree; the earlier one of a tie; None if no mistake explains."""
    num_readings = get_search_readings(cameras)
    best, best_share = None, 0.0
    for mistake in mistakes:
        found = measure_agreement(mistake.undo(cameras), num_readings)
        if found.num_compared >= MIN_COMPARED and found.share > best_share + 0.01:
            best, best_share = mistake, found.share
    if best is None:
        return None
    better = measure_agreement(best.undo(cameras))
    return (best, better) if explains(better, given) else None


def find_stray_views(given: Agreement, num_views: int) -> list[int]:
    """Views that contradict the others while those agree among themselves, at most a quarter of them."""
    stray: list[int] = []
    while len(stray) < num_views // 4:
        rest = given.drop_views(stray)
        shares = [1.0 if view in stray else np.nan_to_num(rest.get_share_of_view(view), nan=1.0)
                  for view in range(num_views)]  # fmt: skip
        if min(shares) > STRAY_VIEW:
            break
        stray.append(int(np.argmin(shares)))
    rest = given.drop_views(stray)
    return stray if stray and rest.share >= EXPLAINS and rest.num_compared >= MIN_COMPARED else []


def find_turned_views(cameras: Cameras) -> tuple[np.ndarray, Cameras]:
    """Quarter turns (V,), counter-clockwise, by which single depth maps are turned against their cameras, and the
    cameras turned with them. Of all turns that keep the size of a map, those that make the views agree best.

    Each view is tried against the others as they are, and the better turns are taken; that is repeated, since a view
    agrees with more of the others once these are right.
    """
    num_views, height, width = cameras.depth_maps.shape
    num_readings = get_search_readings(cameras)
    given = [torch.from_numpy(np.array(matrices)) for matrices in (cameras.intrinsics, cameras.cam2world)]
    turned = [turn_cameras(*given, (height, width), turns) for turns in range(4)]
    intrinsics, cam2world = (torch.stack(matrices).numpy() for matrices in zip(*turned, strict=True))

    def turn(turns: np.ndarray) -> Cameras:
        views = np.arange(num_views)
        return replace(cameras, intrinsics=intrinsics[turns, views], cam2world=cam2world[turns, views])

    best = np.zeros(num_views, np.int64)
    for _ in range(TURNING_ROUNDS):
        as_is, changed = measure_agreement(turn(best), num_readings), best.copy()
        for view in range(num_views):
            balance = as_is.count_balance(view)
            for more in (1, 2, 3) if height == width else (2,):
                tried = best.copy()
                tried[view] = (best[view] + more) % 4
                found = measure_agreement(turn(tried), num_readings).count_balance(view)
                if found > balance:
                    balance, changed[view] = found, tried[view]
        if np.array_equal(changed, best):
            break
        best = changed
    return best, turn(best)


def describe_turned_views(
    cameras: Cameras, given: Agreement, names: list[str], images: np.ndarray | None
) -> Disagreement | None:
    """Names views whose depth maps are turned against their cameras, while those of others are not; None without."""
    turns, undone = find_turned_views(cameras)
    turned, better = np.flatnonzero(turns), measure_agreement(undone)
    if not 0 < len(turned) < len(names) or not explains(better, given):
        return None
    how = "upside down" if (turns[turned] == 2).all() else "turned by quarter turns"
    reason = (
        f"{', '.join(names[view] for view in turned)}: the depth map is {how} against the camera, those of the other"
    )
    remedy = (
        "turn these depth maps back, with the pictures that lie over them, or turn the cameras about their viewing "
        "axes along with them (half a turn: multiply the matrix by diag(-1, -1, 1, 1) from the right)"
    )
    if images is not None:
        as_is, along = compare_turned(undone, images, turns)
        if fits_better(along, as_is):
            remedy = "turn these depth maps back, and nothing else: their pictures lie right for the cameras"
    certain = given.share < CERTAINLY_WRONG and better.share >= CERTAIN and len(names) > 2
    return Disagreement(
        given.share, given.num_compared, f"{reason} views are not", remedy, better.share, certain=certain
    )


def describe_stray_views(
    cameras: Cameras, given: Agreement, names: list[str], images: np.ndarray | None
) -> Disagreement | None:
    """Names the views that do not belong to the others; None without any."""
    stray = [names[view] for view in sorted(find_stray_views(given, len(names)))]
    if not stray:
        return None
    turned = describe_turned_views(cameras, given, names, images)
    if turned is not None:
        return turned
    reason = f"{', '.join(stray)}: pose or depth does not fit the other views"
    remedy = "give these frames their own pose and depth, or leave them out"
    return Disagreement(given.share, given.num_compared, reason, remedy)


def measure_spread(cameras: Cameras) -> float:
    """The cameras' median distance from their middle, as a share of the median depth."""
    readings = cameras.get_readings(SEARCHED_READINGS)[2]
    eyes = cameras.cam2world[:, :3, 3]
    distances = np.linalg.norm(eyes - eyes.mean(axis=0), axis=1)
    return float(np.median(distances) / np.median(readings[readings > 0]))


def find_disagreement(cameras: Cameras, names: list[str], images: np.ndarray | None = None) -> Disagreement | None:
    """Compare views and, where they do not agree, look for the likely reason; None where all is well or nothing can be
    said.

    Args:
        names (`list[str]`): V names of the views, for words.
        images (`np.ndarray` of shape `(V, H, W, 3)`, *optional*): their pictures, uint8, whose colours tell apart
            mistakes that depth alone does not.
    """
    given = measure_agreement(cameras)
    far_apart = given.num_compared < MIN_COMPARED and measure_spread(cameras) > FAR_APART
    share, count = given.share, given.num_compared
    if count >= MIN_COMPARED and share >= AGREES:
        return describe_stray_views(cameras, given, names, images)
    groups = [list_mistakes(cameras), list_factor_mistakes(cameras)]
    if count < MIN_COMPARED and not depends_on_translations(cameras):
        # Nothing was compared, so factors cannot be told apart.
        groups.pop()
    if count >= MIN_COMPARED and len(names) <= ALL_PAIRS:
        groups.append(list_swaps(names))
    for mistakes in groups:
        found = find_mistake(cameras, given, mistakes)
        if found is not None:
            mistake, better = found
            if images is not None:
                mistake = mistake.settle(cameras, images)
            # The views could not be compared before, so a factor that makes them agree is certain: no other one does.
            wrong = far_apart or (mistake.is_factor if count < MIN_COMPARED else share < CERTAINLY_WRONG)
            certain = wrong and better.share >= CERTAIN and len(names) > 2
            return Disagreement(share, count, mistake.reason, mistake.remedy, better.share, certain, mistake.is_factor)
    if far_apart:
        reason = "the cameras stand many times further apart than anything they see"
        return Disagreement(share, count, reason, "give translations and depth in metres", is_unit=True)
    if count < MIN_COMPARED:
        return None
    stray = describe_turned_views(cameras, given, names, images) or describe_stray_views(cameras, given, names, images)
    if stray is not None or share >= DISAGREES:
        return stray
    reason = "no usual mistake explains it (inverted poses, other axes or units, other intrinsics were tried)"
    remedy = "see that every frame has its own pose and depth, that tracking was not lost, and which unit depth has"
    return Disagreement(share, count, reason, remedy)


# Scenes whose cameras and depth seem to differ in unit, by folder and name: their true size is unknown.
OF_UNKNOWN_SIZE: set[tuple[Path | None, str]] = set()
# Findings of the scenes that this process has checked, by fingerprint: each is checked and warned about once.
LOOKED_AT: dict[bytes, list[str]] = {}


def get_fingerprint(scene: Scene, purpose: str) -> bytes:
    """A hash of a scene with posed depth, so that changed files are checked again."""
    content = hashlib.blake2b(f"{purpose} {scene.path}".encode(), digest_size=16)
    for array in (scene.cam2world, scene.intrinsics, scene.depth_maps[:, ::16, ::16], scene.images[:, ::16, ::16]):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.digest()


def sample_points(scene: Scene) -> np.ndarray:
    """World points (M, 3) of some hundred readings of each view of a scene with posed depth, metres."""
    cameras = take_cameras(scene)
    points, depths = unproject_readings(cameras, *cameras.get_readings(NUM_READINGS))
    align = np.eye(4) if scene.axis_align_matrix is None else np.asarray(scene.axis_align_matrix, np.float64)
    return points[depths > 0] @ align[:3, :3].T + align[:3, 3]


def measure_scene_agreement(scene: Scene) -> float | None:
    """Share of the depth readings seen from another view that agree with it; None where too few are seen."""
    cameras = get_cameras(scene)
    found = None if cameras is None else measure_agreement(cameras)
    return None if found is None or found.num_compared < MIN_COMPARED else found.share


def check_consistency(scene: Scene) -> None:
    """Warn of views that do not agree with each other, and of pictures that are turned over their depth maps, once per
    scene and process; refuse cameras that are certainly wrong, each time. Scenes without posed depth, and views that
    see nothing in common, are not checked.

    Raises:
        ValueError: the views do not agree, and undoing one usual mistake makes them agree; names scene and mistake.
    """
    cameras = get_cameras(scene)
    if cameras is None:
        return
    fingerprint = get_fingerprint(scene, "consistency")
    if fingerprint in LOOKED_AT:
        return
    names = get_view_names(scene)
    chosen = choose_views(scene.num_views)
    found = find_disagreement(cameras, [names[view] for view in chosen], scene.images[chosen])
    OF_UNKNOWN_SIZE.discard((scene.path, scene.scene_id))
    if found is not None and found.is_unit:
        OF_UNKNOWN_SIZE.add((scene.path, scene.scene_id))
    if found is not None and found.is_unit and scene.units:
        found = replace(found, remedy=f"{found.remedy} ({scene.units})")
    differ = f"scene {scene.scene_id!r}: the views do not agree with each other"
    if found is not None and found.certain:
        raise ValueError(f"{differ}: {found.describe()}")
    LOOKED_AT[fingerprint] = []
    message = describe_turned_pictures(scene, cameras) if found is None else f"{differ}: {found.describe()}"
    if message is not None:
        LOOKED_AT[fingerprint].append(message)
        warnings.warn(message, ConsistencyWarning, stacklevel=3)


def describe_turned_pictures(scene: Scene, cameras: Cameras) -> str | None:
    """A warning about pictures that are turned over their depth maps; None if there is none.

    Where the few readings that could be compared contradict each other, places that two views see are not the same.
    """
    if measure_agreement(cameras).share < DISAGREES:
        return None
    chosen, names = choose_views(scene.num_views), get_view_names(scene)
    turns = find_turned_pictures(scene.images[chosen], cameras)
    told = [
        count_and_name(
            [names[view] for view in chosen],
            np.flatnonzero(turns == turn),
            f"pictures are {'upside down' if turn == 2 else 'on their side'} over their depth maps",
        )
        + f": turn these files by {degrees}"
        for turn, degrees in DEGREES.items()
        if (turns == turn).any()
    ]
    if not told:
        return None
    return (
        f"scene {scene.scene_id!r}: {'; '.join(told)}. The colours of places that two views see say so; if an EXIF "
        "orientation turned them, correct that instead."
    )


__all__ = [
    "Cameras",
    "ConsistencyWarning",
    "check_consistency",
    "find_disagreement",
    "get_cameras",
    "measure_agreement",
    "measure_scene_agreement",
]
