"""Estimate gravity, floor and heading of a scan from its posed depth, for scans without an alignment.

1. Up: flat patches of the surface vote with their normals; the winner is the direction that most patches share,
   weighted by how well it agrees with the cameras' up directions.
2. Floor: the lowest large plane facing up; a trimmed least-squares fit to it corrects the direction.
3. Heading: patches of upright surfaces vote modulo 90 degrees; of the four solutions, the one is taken in which the
   first camera looks most towards +y, which is up in the bird's-eye picture.

The floor becomes z = 0 and its middle x = y = 0. Every occupied voxel has one vote, so that surfaces seen for longer
do not count more. The result is deterministic.

The upper edge of the pictures need not point up: phones held upright write pictures that lie on their side. All four
edges are tried (`find_alignment`). If two fit, the one that leaves a z-up world as it is wins, then the upper edge.
Where only some pictures are turned, so that no edge is up in most of them, each picture may have its own edge if the
world is z-up as it is; in any other world nothing says where up is (`find_dissenters`).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.surface import Surface, count_voxel_votes, sample_surface


# Metres: side of the voxels that vote.
VOXEL_SIZE = 0.05
# Normals within this angle of a direction vote for it; the last rounds are narrower.
CONE_DEGREES = (12.0, 8.0, 5.0, 5.0)
# Gravity is looked for within this angle of the cameras' mean up.
MAX_TILT_DEGREES = 65.0
# Cosine of that angle: an edge of a picture that is further from up does not point up.
UPWARDS = 0.4226
# Cosine, 55 degrees, beyond which a single picture is not taken to lie on its side against the others.
SIDEWARDS = 0.5736
# Where each picture has its own edge, chance is greater, and this share of them needs one that points up.
MIN_UPRIGHT = 0.9
# An edge of the pictures may point up if this share of them agrees. An estimate within this many degrees of the scan's
# own z axis is preferred if its fit to the cameras is at most this much below the best; the upper edge has this bonus.
MIN_AGREEING, KEPT_DEGREES, KEPT_FIT, UPPER_EDGE_FIT = 0.8, 5.0, 0.15, 0.1
# Margin at floor and ceiling, metres, within which level surfaces are not counted, and the minimum share of the others
# that faces up: objects stand on floors and seldom hang from ceilings.
LEVEL_MARGIN, MIN_STANDING = 0.25, 0.3
# Maximum numbers of directions tried and of normals they are tried on, both sampled at even steps.
MAX_CANDIDATES, MAX_VOTERS = 400, 10_000
# Metres: thickness of the slab in which a plane gathers its votes, and the reach of the refinement's rounds.
SLAB = 0.06
FLOOR_REACH = (0.10, 0.06, 0.04)
# A floor has this share of the votes of the largest plane facing up, and at least this visible area, square metres.
MIN_FLOOR_SHARE, MIN_FLOOR_AREA = 0.3, 0.3
# Evidence is 1 if this much floor is visible, square metres, and cameras are between the middle two of these heights,
# metres; below the first and above the last height it is 0, since a table top could be mistaken for a floor.
WHOLE_FLOOR_AREA = 2.0
CAMERA_HEIGHTS = (0.6, 1.1, 2.2, 3.5)
# Points this far below the floor contradict it, metres; this share of all votes is a full contradiction.
BELOW, FULL_CONTRADICTION = 0.12, 0.08
# Refinement of the heading: degrees within which angles are averaged, rounds; degrees within which a surface supports
# it.
HEADING_REACH = 6.0
HEADING_ROUNDS = 3
STRAIGHT_DEGREES = 10.0
LOW_CONFIDENCE = 0.5
# Names of pictures in a message.
MAX_NAMED = 8

WAYS_OUT = (
    "give the right 4x4 matrix, scan to upright world, in axis_align.txt next to the frames, as --axis-align FILE, or "
    "as axis_align_matrix= of the reader"
)
# Ways out for pictures that are turned against each other.
TURN_BACK = "turn these pictures upright, with their depth and cameras"
AUTO = "--rotate auto, which turns each picture with its depth and camera"


class UprightWarning(UserWarning):
    """A scan was aligned with little evidence."""


@dataclass(frozen=True)
class UprightEstimate:
    """An alignment with its evidence.

    Attributes:
        axis_align_matrix (`np.ndarray` of shape `(4, 4)`, float64): rigid, scan to upright world, metres.
        confidence (`float`): in [0, 1], the smallest value of `evidence`.
        floor_height_error (`float`): metres; 68 % of the visible floor lies within this distance of z = 0.
        floor_area (`float`): square metres of floor that were seen.
        evidence (`dict[str, float]`): shares in [0, 1].
            "cameras": views whose own up is within 65 degrees of the one found.
            "votes": flat surface within 10 degrees of level or of upright, 0 for the share that chance would give.
            "floor": visible area of the floor, 1 from 2 square metres on.
            "nothing below": 1 when nothing lies under the floor, 0 from 8 % of the surface on.
            "camera height": mean over the views, 1 from 1.1 to 2.2 m above the floor, 0 below 0.6 and above 3.5 m.
            "walls": upright surface within 10 degrees of the heading or at right angles to it, less chance as above.
        num_patches (`int`): flat patches that the estimate is based on.
        num_views (`int`): views that they were seen in.
        picture_turns (`int`): quarter turns counter-clockwise that bring the upper edge of most pictures up; 0 where
            it is.
    """

    axis_align_matrix: np.ndarray
    confidence: float
    floor_height_error: float
    floor_area: float
    evidence: dict[str, float]
    num_patches: int
    num_views: int
    picture_turns: int = 0

    @property
    def weakest(self) -> str:
        """The name of the evidence that sets the confidence."""
        return min(self.evidence, key=self.evidence.get)

    @property
    def tilt(self) -> float:
        """Degrees between the estimated up and the z axis of the scan's own world."""
        return float(np.rad2deg(np.arccos(np.clip(self.axis_align_matrix[2, 2], -1.0, 1.0))))

    @property
    def floor_height(self) -> float:
        """Metres of the floor's middle above z = 0 in the scan's own world."""
        return float(np.linalg.inv(self.axis_align_matrix)[2, 3])

    def describe(self) -> str:
        """A one-sentence summary."""
        shares = ", ".join(f"{name} {share:.2f}" for name, share in self.evidence.items())
        return (
            f"alignment estimated from {self.num_patches} flat patches in {self.num_views} views, confidence "
            f"{self.confidence:.2f} ({shares}); {self.floor_area:.1f} m2 of floor lie within "
            f"{100 * self.floor_height_error:.1f} cm of z = 0"
        )


def compute_share_over_chance(share: float, chance: float) -> float:
    """Rescale a share so that the chance level and below become 0 and 1 stays 1."""
    return float(np.clip((share - chance) / (1 - chance), 0.0, 1.0))


def get_camera_ups(cam2world: np.ndarray, picture_turns: int = 0) -> np.ndarray:
    """World direction (V, 3) of the upper edge of every picture, once turned by quarter turns counter-clockwise.

    In OpenCV axes the upper edge is at minus y, the right one at x, the lower one at y, the left one at minus x.
    """
    axis, sign = ((1, -1.0), (0, 1.0), (1, 1.0), (0, -1.0))[picture_turns]
    return sign * np.asarray(cam2world, np.float64)[:, :3, axis]


def count_picture_turns(
    cam2world: np.ndarray, up: Sequence[float] = (0.0, 0.0, 1.0), quarters: bool = True
) -> np.ndarray:
    """Quarter turns (V,), counter-clockwise, that bring the upper edge of each picture up.

    A picture none of whose edges points up, such as one of the floor straight below, has the turns of most pictures. A
    quarter turn needs more than half a turn does: who looks down steeply holds a camera level seldom.

    Args:
        cam2world (`np.ndarray` of shape `(V, 4, 4)`): to any world.
        up: the direction in it that is up.
        quarters (`bool`): whether pictures may differ by a quarter turn; otherwise by half a turn only, as pictures
            of one size that are not square.
    """
    cosines = np.stack([get_camera_ups(cam2world, turns) @ np.asarray(up, np.float64) for turns in range(4)])
    most = int(np.argmax(np.clip(cosines, 0, None).sum(axis=1)))
    is_half = np.arange(4)[:, None] % 2 == most % 2
    possible = np.where(is_half | (quarters & (cosines > SIDEWARDS)), cosines, -1.0)
    is_other = (cosines[most] <= UPWARDS) & (possible.max(axis=0) > UPWARDS)
    return np.where(is_other, np.argmax(possible, axis=0), most)


def get_turned_ups(cam2world: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """World direction (V, 3) of the upper edge of every picture, each turned by its own quarter turns (V,)."""
    return np.stack([get_camera_ups(cam2world, turn) for turn in range(4)])[turns, np.arange(len(turns))]


def find_dissenters(cam2world: np.ndarray) -> np.ndarray:
    """Indices of the pictures that are turned against most of them, in any world."""
    of_picture = count_picture_turns(cam2world, find_common_up(cam2world)[0])
    return np.flatnonzero(of_picture != np.argmax(np.bincount(of_picture)))


def find_common_up(cam2world: np.ndarray) -> tuple[np.ndarray, int]:
    """The direction (3,) that the upper edges of most pictures point along, within 65 degrees, and how many do.

    Pictures all of which lie on their side agree by their right edge.
    """
    found = (_find_common_direction(get_camera_ups(cam2world, turns)) for turns in (0, 1))
    return max(found, key=lambda one: one[1])


def _find_common_direction(ups: np.ndarray) -> tuple[np.ndarray, int]:
    candidates = np.concatenate([ups[:: -(-len(ups) // MAX_CANDIDATES)], ups.mean(axis=0, keepdims=True)])
    for _ in range(3):
        candidates = candidates / np.maximum(np.linalg.norm(candidates, axis=1, keepdims=True), 1e-12)
        agrees = ups @ candidates.T > UPWARDS
        best = np.argmax(agrees.sum(axis=0))
        direction, count = candidates[best], int(agrees[:, best].sum())
        # Cameras that look down all around have ups that are far apart, but near their mean.
        candidates = ups[agrees[:, best]].mean(axis=0, keepdims=True)
    return direction, count


def describe_disagreement(scene: Scene) -> str | None:
    """Pictures too many of which are turned against the others to say where up is; None if most agree."""
    dissenters = find_dissenters(scene.cam2world)
    if len(dissenters) <= (1 - MIN_AGREEING) * scene.num_views:
        return None
    names = get_view_names(scene)
    told = count_and_name(names, dissenters, "are turned against most")
    return f"its pictures disagree about where up is: {told}"


def get_view_names(scene: Scene) -> list[str]:
    """V names of a scene's views, for words."""
    return scene.view_names or [f"view {index}" for index in range(scene.num_views)]


def count_and_name(names: Sequence[str], views: Sequence[int], what: str) -> str:
    """'3 of 12 WHAT (NAME, NAME, NAME)' for views of V names, with at most `MAX_NAMED` of them; 'all 12 WHAT'."""
    if len(views) == len(names):
        return f"all {len(names)} {what}"
    rest = f" and {len(views) - MAX_NAMED} more" if len(views) > MAX_NAMED else ""
    return f"{len(views)} of {len(names)} {what} ({', '.join(names[view] for view in views[:MAX_NAMED])}{rest})"


def describe_pictures(scene: Scene) -> str | None:
    """What is wrong with the orientation of pictures in a world with z up, and the remedy; None if nothing is.

    A picture that was turned together with its depth and camera is on its side in a world that is right.
    """
    cam2world, (height, width) = np.asarray(scene.cam2world, np.float64), scene.images.shape[1:3]
    turns = count_picture_turns(cam2world)
    names = get_view_names(scene)
    kinds = (("upside down", turns == 2), ("on their side", turns % 2 == 1))
    lie = [count_and_name(names, np.flatnonzero(which), how) for how, which in kinds if which.any()]
    if not lie:
        return None
    stay = np.flatnonzero(count_picture_turns(cam2world, quarters=height == width) != turns)
    ways = [] if len(stay) == np.count_nonzero(turns) else [f"give {AUTO}"]
    if len(stay):
        ways.append(
            f"{count_and_name(names, stay, 'would have another size than the others')} once they are upright: leave"
            " them out, or make a scan of their own of them"
        )
    return f"its pictures are not upright, though their cameras are right: {', '.join(lie)}; {'; '.join(ways)}"


def find_up(surface: Surface, votes: np.ndarray, camera_ups: np.ndarray) -> np.ndarray | None:
    """The direction (3,) that most normals share, up or down, among those near the cameras' up; None without any.

    Args:
        votes (`np.ndarray` of shape `(N,)`): weight of each patch.
        camera_ups (`np.ndarray` of shape `(V, 3)`): see `get_camera_ups`.
    """
    normals = surface.normals
    mean_up = camera_ups.mean(0)
    mean_up /= max(np.linalg.norm(mean_up), 1e-12)
    possible = np.flatnonzero(normals @ mean_up > np.cos(np.deg2rad(MAX_TILT_DEGREES)))
    if not len(possible):
        return None
    candidates = normals[possible[:: -(-len(possible) // MAX_CANDIDATES)]]
    agreement = np.clip((camera_ups @ candidates.T).mean(0), 0, None)
    step = -(-len(normals) // MAX_VOTERS)
    cosines = candidates.astype(np.float32) @ normals[::step].T.astype(np.float32)
    shared = np.abs(cosines) > np.cos(np.deg2rad(CONE_DEGREES[0]))
    # The fourth power tells floor from wall where all cameras look down one way.
    return refine_up(candidates[np.argmax((shared @ votes[::step]) * agreement**4)], normals, votes)


def refine_up(up: np.ndarray, normals: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The mean direction (3,) of the normals (N, 3) near `up`, or opposite to it."""
    for degrees in CONE_DEGREES[1:]:
        cosines = normals @ up
        near = np.abs(cosines) > np.cos(np.deg2rad(degrees))
        if not near.any():
            break
        up = (normals[near] * (votes[near] * np.sign(cosines[near]))[:, None]).sum(0)
        up /= np.linalg.norm(up)
    return up


def find_floor_height(heights: np.ndarray, votes: np.ndarray) -> float | None:
    """Height of the lowest large plane among patches that face up, metres; None when there is none.

    Args:
        heights, votes (`np.ndarray` of shape `(M,)`): of those patches.
    """
    if not len(heights):
        return None
    step = SLAB / 3
    low = heights.min() - 2 * step
    bins = np.floor((heights - low) / step).astype(np.int64)
    mass = np.bincount(bins, votes, minlength=bins.max() + 3)
    slabs = np.convolve(mass, np.ones(3), mode="same")
    peaks = (slabs >= np.roll(slabs, 1)) & (slabs >= np.roll(slabs, -1))
    large = peaks & (slabs * VOXEL_SIZE**2 >= MIN_FLOOR_AREA) & (slabs >= MIN_FLOOR_SHARE * slabs.max())
    if not large.any():
        return None
    return float(low + (np.flatnonzero(large)[0] + 0.5) * step)


def fit_floor(points: np.ndarray, votes: np.ndarray, up: np.ndarray, height: float) -> tuple[np.ndarray, float]:
    """Trimmed least-squares plane through points (M, 3) near `up . x = height`; its normal (3,) and height."""
    for reach in FLOOR_REACH:
        distances = points @ up - height
        near = np.abs(distances) < reach
        if near.sum() < 3:
            break
        weight = votes[near] / votes[near].sum()
        middle = weight @ points[near]
        spread = (points[near] - middle) * np.sqrt(weight)[:, None]
        normal = np.linalg.svd(spread, full_matrices=False)[2][-1]
        normal *= np.sign(normal @ up)
        up, height = normal, float(normal @ middle)
    return up, height


def find_heading(angles: np.ndarray, votes: np.ndarray) -> tuple[float, float]:
    """The heading modulo 90 degrees that most of the angles (M,), degrees, share; and the share of votes near it.

    A histogram with one-degree bins finds it, the mean of the angles around refines it; near is within 10 degrees.
    """
    folded = np.mod(angles, 90.0)
    counts = np.bincount(folded.astype(np.int64) % 90, votes, minlength=90)
    smooth = sum(np.roll(counts, shift) for shift in (-2, -1, 0, 1, 2))
    heading = np.argmax(smooth) + 0.5
    # The same width each round: a narrower one would drop one end of a wall that drift has bent.
    for _ in range(HEADING_ROUNDS):
        offset = np.mod(folded - heading + 45.0, 90.0) - 45.0
        near = np.abs(offset) < HEADING_REACH
        heading += float(votes[near] @ offset[near] / votes[near].sum())
    offset = np.mod(folded - heading + 45.0, 90.0) - 45.0
    return heading, float(votes[np.abs(offset) < STRAIGHT_DEGREES].sum() / votes.sum())


def make_level_axes(up: np.ndarray) -> np.ndarray:
    """A rotation (3, 3) whose rows are two level directions and `up`; the first is as near to world x as possible."""
    start = np.eye(3)[0] if abs(up[0]) < 0.9 else np.eye(3)[1]
    first = start - (start @ up) * up
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(up, first), up])


def turn_about_z(degrees: float) -> np.ndarray:
    """Rotation (3, 3) of coordinates by `degrees`, counter-clockwise seen from above."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def grade_camera_heights(heights: np.ndarray) -> float:
    """Mean over the views (V,) of how plausible a camera's height above the floor is, metres -> [0, 1]."""
    return float(np.interp(heights, CAMERA_HEIGHTS, (0.0, 1.0, 1.0, 0.0)).mean())


def estimate_upright(scene: Scene, surface: Surface | None = None) -> UprightEstimate:
    """Estimate the alignment of a scan from its posed depth; warns if the evidence is weak.

    Args:
        scene (`Scene`): depth, intrinsics and cameras in any rotated and shifted world, metres.
        surface (`Surface`, *optional*): `sample_surface(scene)`, if already computed.

    Raises:
        ValueError: without posed depth; where no floor is in view; where the pictures disagree about up.
    """
    estimate = find_alignment(scene, sample_surface(scene) if surface is None else surface)
    if estimate is None:
        disagreement = describe_disagreement(scene)
        if disagreement is not None:
            raise ValueError(f"scene {scene.scene_id!r}: {disagreement}; {TURN_BACK}, or {WAYS_OUT}, with {AUTO}.")
        raise ValueError(
            f"scene {scene.scene_id!r}: expected a floor to set upright by, found no level surface of at least "
            f"{MIN_FLOOR_AREA} m2 that faces the cameras' upper edge; are the pictures upright, and is the floor in "
            f"view? Take frames that show it, or {WAYS_OUT}."
        )
    if estimate.confidence < LOW_CONFIDENCE:
        warnings.warn(
            f"scene {scene.scene_id!r}: the estimated alignment has a confidence of only {estimate.confidence:.2f} "
            f"(weakest evidence: {estimate.weakest}); look at the bird's-eye pictures and from the side, and if they "
            f"are wrong {WAYS_OUT}.",
            UprightWarning,
            stacklevel=2,
        )
    return estimate


def find_alignment(scene: Scene, surface: Surface) -> UprightEstimate | None:
    """The most likely alignment of a scan by its posed depth, at any confidence; None if no floor is in view, or if
    the pictures disagree about up (`describe_disagreement`).

    Args:
        surface (`Surface`): of `sample_surface`.
    """
    votes = count_voxel_votes(surface.points, VOXEL_SIZE)
    vertical = np.array([0.0, 0.0, 1.0])
    found: list[tuple[UprightEstimate, float, float]] = []
    for turns in range(4):
        ups = get_camera_ups(scene.cam2world, turns)
        directions = [find_up(surface, votes, ups)]
        if (ups @ vertical).mean() > UPWARDS:
            directions.append(refine_up(vertical, surface.normals, votes))
        for up in directions:
            floor = None if up is None else _find_floor(surface, votes, up)
            if floor is not None:
                estimate = _make_estimate(scene, surface, votes, *floor, ups, turns)
                fit = float(np.clip(ups @ floor[0], 0, None).mean())
                found.append((estimate, fit, measure_standing(surface, votes, *floor)))
    if not any(is_credible(estimate, standing) for estimate, _, standing in found):
        kept = _keep_world(scene, surface, votes)
        if kept is not None or describe_disagreement(scene) is not None:
            return kept
    return choose_estimate(found)


def _keep_world(scene: Scene, surface: Surface, votes: np.ndarray) -> UprightEstimate | None:
    """The alignment of a world that is z-up as it is, where each picture has its own edge up; None if it is not."""
    floor = _find_floor(surface, votes, refine_up(np.array([0.0, 0.0, 1.0]), surface.normals, votes))
    if floor is None:
        return None
    turns = count_picture_turns(scene.cam2world, floor[0])
    ups = get_turned_ups(scene.cam2world, turns)
    estimate = _make_estimate(scene, surface, votes, *floor, ups, int(np.argmax(np.bincount(turns))))
    is_likely = is_credible(estimate, measure_standing(surface, votes, *floor))
    return estimate if is_likely and estimate.evidence["cameras"] >= MIN_UPRIGHT else None


def choose_estimate(found: list[tuple[UprightEstimate, float, float]]) -> UprightEstimate | None:
    """The likeliest of several estimates; None of none.

    Args:
        found: estimates, each with its fit, the mean cosine in [0, 1] between up and the picture edge that it assumes
            to point up, and the result of `measure_standing`.
    """
    credible = [(estimate, fit) for estimate, fit, standing in found if is_credible(estimate, standing)]
    if not credible:
        # Nothing fits: the upper edge is the best guess, and the low confidence shows that it is one.
        guesses = [estimate for estimate, _, _ in found if estimate.picture_turns == 0]
        return max(guesses, key=lambda estimate: estimate.confidence, default=None)
    best = max(fit for _, fit in credible)
    kept = [(e, fit) for e, fit in credible if e.tilt < KEPT_DEGREES and fit >= best - KEPT_FIT]
    return max(kept or credible, key=lambda one: one[1] + (UPPER_EDGE_FIT if one[0].picture_turns == 0 else 0.0))[0]


def is_credible(estimate: UprightEstimate, standing: float) -> bool:
    """Whether an estimate may compete with others; `standing` is the result of `measure_standing`."""
    if estimate.evidence["cameras"] < MIN_AGREEING or estimate.confidence < LOW_CONFIDENCE:
        return False
    # In upside-down pictures, which are rare, a ceiling would look like the floor.
    on_their_head = estimate.picture_turns == 2 and estimate.tilt > KEPT_DEGREES
    return standing >= (1 - MIN_STANDING if on_their_head else MIN_STANDING)


def measure_standing(surface: Surface, votes: np.ndarray, up: np.ndarray, height: float) -> float:
    """Share of the level surface between floor and ceiling that faces up; 0.5 where there is almost none."""
    cosines, heights = surface.normals @ up, surface.points @ up - height
    top = np.quantile(heights, 0.99)
    between = (heights > LEVEL_MARGIN) & (heights < top - LEVEL_MARGIN)
    level = np.cos(np.deg2rad(CONE_DEGREES[0]))
    standing, hanging = (float(votes[between & (sign * cosines > level)].sum()) for sign in (1, -1))
    area = (standing + hanging) * VOXEL_SIZE**2
    return standing / (standing + hanging) if area >= MIN_FLOOR_AREA else 0.5


def _find_floor(surface: Surface, votes: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, float] | None:
    facing = surface.normals @ up > np.cos(np.deg2rad(CONE_DEGREES[0]))
    points, weights = surface.points[facing], votes[facing]
    height = find_floor_height(points @ up, weights)
    return None if height is None else fit_floor(points, weights, up, height)


def _make_estimate(
    scene: Scene,
    surface: Surface,
    votes: np.ndarray,
    up: np.ndarray,
    height: float,
    camera_ups: np.ndarray,
    picture_turns: int,
) -> UprightEstimate:
    """The alignment with this up and floor; `camera_ups` (V, 3) are the pictures' edges assumed to point up."""
    level = make_level_axes(up)
    normals, points = surface.normals @ level.T, surface.points @ level.T - [0, 0, height]
    tilt = np.sin(np.deg2rad(STRAIGHT_DEGREES))
    upright = np.abs(normals[:, 2]) < tilt
    heading, wall_share = 0.0, 0.0
    if upright.any():
        angles = np.rad2deg(np.arctan2(normals[upright, 1], normals[upright, 0]))
        heading, wall_share = find_heading(angles, votes[upright])
    looking = level @ np.asarray(scene.cam2world, np.float64)[0, :3, 2]
    turns = [turn_about_z(quarter - heading) for quarter in (0.0, 90.0, 180.0, 270.0)]
    turn = max(turns, key=lambda rotation: round(float((rotation @ looking)[1]), 6))

    is_floor = (normals[:, 2] > np.cos(np.deg2rad(CONE_DEGREES[0]))) & (np.abs(points[:, 2]) < FLOOR_REACH[0])
    middle = np.average(points[is_floor], axis=0, weights=votes[is_floor])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ level
    matrix[:3, 3] = turn @ np.array([-middle[0], -middle[1], -height])

    floor_area = float(votes[is_floor].sum() * VOXEL_SIZE**2)
    below = float(votes[points[:, 2] < -BELOW].sum() / votes.sum())
    steep = np.abs(normals[:, 2])
    straight = float(votes[(steep < tilt) | (steep > np.sqrt(1 - tilt**2))].sum() / votes.sum())
    by_chance = float(tilt + 1 - np.sqrt(1 - tilt**2))
    eyes = np.asarray(scene.cam2world, np.float64)[:, :3, 3] @ up - height
    agreeing = camera_ups @ up > UPWARDS
    evidence = {
        "cameras": float(agreeing.mean()),
        "votes": compute_share_over_chance(straight, by_chance),
        "floor": min(1.0, floor_area / WHOLE_FLOOR_AREA),
        "nothing below": float(np.clip(1 - below / FULL_CONTRADICTION, 0.0, 1.0)),
        "camera height": grade_camera_heights(eyes),
        "walls": compute_share_over_chance(wall_share, 2 * STRAIGHT_DEGREES / 90.0),
    }
    return UprightEstimate(
        axis_align_matrix=matrix,
        confidence=min(evidence.values()),
        floor_height_error=float(np.quantile(np.abs(points[is_floor, 2]), 0.68)),
        floor_area=floor_area,
        evidence=evidence,
        num_patches=len(surface.points),
        num_views=len(np.unique(surface.views)),
        picture_turns=picture_turns,
    )


def align_scene(scene: Scene, estimate: UprightEstimate) -> Scene:
    """The same scene in the upright world of `estimate`.

    Raises:
        ValueError: when the scene has boxes, proposals or a bird's-eye picture: those are already in an aligned world,
            and it is unknown which one.
    """
    present = [name for name in ("boxes", "proposal_boxes", "bev_image") if getattr(scene, name) is not None]
    if present:
        raise ValueError(
            f"scene {scene.scene_id!r}: expected a scan without {' and '.join(present)} to align by estimate, since "
            "those are given in an aligned world and would not turn with the cameras; give the alignment that belongs "
            "to them in axis_align.txt or as axis_align_matrix=, or align without them and add them afterwards."
        )
    matrix = estimate.axis_align_matrix
    before = np.eye(4) if scene.axis_align_matrix is None else scene.axis_align_matrix
    cam2world = matrix @ np.asarray(scene.cam2world, np.float64)
    return replace(scene, cam2world=cam2world, axis_align_matrix=matrix @ before)


__all__ = [
    "AUTO",
    "LOW_CONFIDENCE",
    "TURN_BACK",
    "UprightEstimate",
    "UprightWarning",
    "align_scene",
    "count_and_name",
    "count_picture_turns",
    "describe_disagreement",
    "describe_pictures",
    "estimate_upright",
    "find_alignment",
    "get_camera_ups",
    "get_view_names",
]
