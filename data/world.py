"""Check a scan's world from its depth readings: whether it is upright, has its floor at z = 0 and is within bounds.

Every scan that is read is checked once per process (`check_world`). A few views and coarse patches are enough to see
that a world is upright; only if they do not show it, an alignment is estimated (`data/upright.py`).
"""

import warnings
from dataclasses import replace

import numpy as np

from ross3d.data.consistency import LOOKED_AT, OF_UNKNOWN_SIZE, get_fingerprint, sample_points
from ross3d.data.scene import Scene
from ross3d.data.surface import count_voxel_votes, sample_surface
from ross3d.data.upright import (
    AUTO,
    LOW_CONFIDENCE,
    MIN_AGREEING,
    MIN_UPRIGHT,
    TURN_BACK,
    UPWARDS,
    VOXEL_SIZE,
    UprightEstimate,
    count_picture_turns,
    describe_disagreement,
    describe_pictures,
    find_alignment,
    find_floor_height,
    get_camera_ups,
    get_turned_ups,
    refine_up,
)


# Views used, and cells along their longer side: for the quick check, and for an estimate.
QUICK_VIEWS, QUICK_CELLS, VIEWS, CELLS = 8, 32, 16, 48
# The quick check passes if at least this share of the flat surface is level.
MIN_LEVEL_SHARE = 0.1
# Degrees of tilt, and metres of floor above or below z = 0, beyond which a world is not upright.
MAX_TILT, MAX_FLOOR_HEIGHT = 3.0, 0.2
# Positions outside are clamped to these bounds by published checkpoints and by the default configuration, metres
# (`scene_bounds_min` and `scene_bounds_max`); a larger share than this gives a warning.
SCENE_BOUNDS = ((-15.0, -15.0, -5.0), (15.0, 15.0, 5.0))
MAX_CLAMPED = 0.01

ALIGNMENT = "axis_align.txt"
ALIGN = (
    "write the estimated alignment into the scan's folder (python -m ross3d.data.prepare align --data {folder}, or"
    " the folder above it for all), or your own 4x4 matrix, scan to upright world, as axis_align.txt"
)
REPLACE = (
    "replace the axis_align.txt that lies with the scan by an estimate (python -m ross3d.data.prepare align --force "
    "--data {folder}), or by your own 4x4 matrix, scan to upright world"
)
# `align` writes nothing if the recording has an alignment or the caller gave one.
GIVE = "write your own 4x4 matrix, scan to upright world, as axis_align.txt"
CORRECT = f"correct the alignment that was given, or {GIVE}"


class WorldWarning(UserWarning):
    """The world of a scan is unlike those that models were trained on."""


def take_views(scene: Scene, count: int) -> Scene:
    """At most `count` views of a scene, evenly spread, with the fields that surfaces need."""
    chosen = np.unique(np.linspace(0, scene.num_views - 1, min(count, scene.num_views)).round().astype(int))
    intrinsics = np.broadcast_to(np.asarray(scene.intrinsics), (scene.num_views, 3, 3))[chosen]
    return replace(
        scene,
        images=scene.images[chosen],
        depth_maps=scene.depth_maps[chosen],
        intrinsics=intrinsics,
        cam2world=np.asarray(scene.cam2world)[chosen],
        view_names=[],
    )


def is_plainly_upright(scene: Scene) -> bool:
    """Quick check: the pictures' upper edges are up, or those of some are down, and much of the surface is level, its
    lowest part near z = 0."""
    turns = count_picture_turns(scene.cam2world, quarters=False)
    upright = get_camera_ups(scene.cam2world)[:, 2] > UPWARDS
    either = get_turned_ups(scene.cam2world, turns)[:, 2] > UPWARDS
    if upright.mean() < MIN_AGREEING and (turns[0] % 2 or either.mean() < MIN_UPRIGHT):
        return False
    surface = sample_surface(take_views(scene, QUICK_VIEWS), QUICK_CELLS)
    if not len(surface.points):
        return False
    votes = count_voxel_votes(surface.points, 2 * VOXEL_SIZE)
    up = refine_up(np.array([0.0, 0.0, 1.0]), surface.normals, votes)
    cosines = surface.normals @ up
    is_level = np.abs(cosines) > np.cos(np.deg2rad(5.0))
    facing = cosines > np.cos(np.deg2rad(12.0))
    # Votes are voxels of twice the side.
    height = find_floor_height(surface.points[facing] @ up, 4 * votes[facing])
    return bool(
        up[2] > np.cos(np.deg2rad(MAX_TILT))
        and votes[is_level].sum() > MIN_LEVEL_SHARE * votes.sum()
        and height is not None
        and abs(height) < MAX_FLOOR_HEIGHT
    )


def describe_doubt(estimate: UprightEstimate | None, camera_ups: np.ndarray) -> str | None:
    """A problem with a world whose alignment was estimated; None if there is none.

    Args:
        camera_ups (`np.ndarray` of shape `(V, 3)`): see `get_camera_ups`.
    """
    if estimate is not None and estimate.confidence >= LOW_CONFIDENCE:
        if estimate.tilt > MAX_TILT:
            up = np.linalg.inv(estimate.axis_align_matrix)[:3, 2]
            axis = int(np.argmax(np.abs(up)))
            name = f"{'-' if up[axis] < 0 else ''}{'xyz'[axis]}"
            near = f", {name} is up" if abs(up[axis]) > np.cos(np.deg2rad(MAX_TILT)) else ""
            return f"its floor is tilted by {estimate.tilt:.0f} degrees{near}"
        if abs(estimate.floor_height) > MAX_FLOOR_HEIGHT:
            return f"its floor lies at z = {estimate.floor_height:.2f} m"
        return None
    mean_up = camera_ups.mean(0)
    if (camera_ups[:, 2] > UPWARDS).mean() < 0.5 and np.linalg.norm(mean_up) > 0.5:
        axis = int(np.argmax(np.abs(mean_up)))
        name = f"{'-' if mean_up[axis] < 0 else ''}{'xyz'[axis]}"
        return f"the upper edges of its pictures point along {name}, not along z"
    return None


def measure_clamped(scene: Scene) -> float:
    """Share of a scene's readings that lie outside of `SCENE_BOUNDS`."""
    points = sample_points(scene)
    low, high = np.array(SCENE_BOUNDS)
    return float(((points < low) | (points > high)).any(-1).mean()) if len(points) else 0.0


def check_world(scene: Scene) -> None:
    """Warn, once per scene and process, of a world that is not upright, of pictures that are upside down or on their
    side, and of positions that a model will clamp.

    Scenes without posed depth, or with a single view, are not checked.
    """
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None or scene.num_views < 2:
        return
    fingerprint = get_fingerprint(scene, "world")
    if fingerprint in LOOKED_AT:
        return
    LOOKED_AT[fingerprint] = found = []
    clamped = describe_clamped(scene)
    if clamped is not None:
        found.append(clamped)
    _, doubt = examine_world(scene)
    pictures = describe_pictures(scene) if doubt is None else None
    if doubt is not None:
        found.append(doubt)
    elif pictures is not None:
        found.append(f"scene {scene.scene_id!r}: {pictures}.")
    for message in found:
        warnings.warn(message, WorldWarning, stacklevel=3)


def recall_warnings(scene: Scene) -> list[str]:
    """Warnings of `check_consistency` and `check_world` about a scene that this process has checked."""
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None:
        return []
    fingerprints = [get_fingerprint(scene, purpose) for purpose in ("consistency", "world")]
    return [said for fingerprint in fingerprints for said in LOOKED_AT.get(fingerprint, [])]


def examine_world(scene: Scene) -> tuple[UprightEstimate | None, str | None]:
    """The estimate of a scan's alignment (None if it passes the quick check, shows no floor, or has pictures that
    disagree about up), and a sentence on the problem with its world and the remedy (None if there is none)."""
    if is_plainly_upright(scene):
        return None, None
    few = take_views(scene, VIEWS)
    estimate = find_alignment(few, sample_surface(few, CELLS))
    disagreement = describe_disagreement(scene) if estimate is None else None
    if disagreement is None:
        doubt = describe_doubt(estimate, get_camera_ups(scene.cam2world))
        return estimate, None if doubt is None else describe_world(scene, doubt)
    if scene.axis_align_matrix is not None and is_up_of_pictures(scene.cam2world):
        return None, None
    remedy = f"{TURN_BACK}, or {CORRECT if scene.axis_align_matrix is not None else GIVE}, and give {AUTO}"
    return None, f"scene {scene.scene_id!r}: {disagreement}; {remedy}."


def is_up_of_pictures(cam2world: np.ndarray) -> bool:
    """Whether z could be up in almost every picture, after quarter turns of its own."""
    ups = get_turned_ups(cam2world, count_picture_turns(cam2world))
    return bool((ups[:, 2] > UPWARDS).mean() >= MIN_UPRIGHT)


def describe_world(scene: Scene, doubt: str) -> str:
    """The problem with a world, and the remedy for this scan."""
    given, remedy = "came without an alignment", ALIGN
    if scene.axis_align_matrix is not None:
        given = "is not upright once it is aligned"
        remedy = REPLACE if scene.path is not None and (scene.path / ALIGNMENT).is_file() else CORRECT
    return (
        f"scene {scene.scene_id!r} {given}, and {doubt}: models, boxes and bird's-eye pictures expect z up and "
        f"the floor at z = 0; {remedy.format(folder=scene.path or 'FOLDER')}."
    )


def require_upright(scene: Scene) -> None:
    """Warn, each time, of a world that is not upright, before something is made in it.

    Raises:
        ValueError: the scan has no alignment and its floor is tilted: anything made in that world would have to be
            made again, and would keep `align` from turning it.
    """
    if scene.depth_maps is None or scene.intrinsics is None or scene.cam2world is None or scene.num_views < 2:
        return
    check_bounds(scene)
    estimate, told = examine_world(scene)
    if told is None:
        return
    is_sure = estimate is not None and estimate.confidence >= LOW_CONFIDENCE and estimate.tilt > MAX_TILT
    if is_sure and scene.axis_align_matrix is None:
        raise ValueError(
            f"{told} Nothing was made, since it would not turn with the scan: align it first; or write the "
            "identity as axis_align.txt to keep this world."
        )
    warnings.warn(told, WorldWarning, stacklevel=3)


def check_bounds(scene: Scene) -> None:
    """Warn of positions that a model will clamp, unless another warning already reported a wrong unit."""
    message = describe_clamped(scene)
    if message is not None:
        warnings.warn(message, WorldWarning, stacklevel=3)


def describe_clamped(scene: Scene) -> str | None:
    """The warning about positions that a model will clamp; None if few are, or the unit is known to be wrong."""
    if (scene.path, scene.scene_id) in OF_UNKNOWN_SIZE:
        return None
    share = measure_clamped(scene)
    if share <= MAX_CLAMPED:
        return None
    low, high = (", ".join(f"{value:g}" for value in bound) for bound in SCENE_BOUNDS)
    return (
        f"scene {scene.scene_id!r}: {100 * share:.0f} % of its readings lie outside of scene_bounds (from {low} "
        f"to {high} m), where positions are clamped and places cannot be told apart; give it an alignment that "
        "brings its middle to the origin, or split it."
    )


__all__ = [
    "ALIGNMENT",
    "SCENE_BOUNDS",
    "WorldWarning",
    "check_bounds",
    "check_world",
    "measure_clamped",
    "recall_warnings",
    "require_upright",
]
