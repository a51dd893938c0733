"""Check whether a scan is upright: measurements of floor, walls and cameras, and warnings where something is off.

Shape letters: N flat patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ross3d.data.scene import Scene
from ross3d.data.surface import Surface, count_voxel_votes, find_upright_planes, sample_surface
from ross3d.data.upright import UPWARDS, count_picture_turns, find_floor_height, get_camera_ups


VOXEL_SIZE = 0.05
# Cosine between a patch that faces up and z; metres within which such patches belong to the floor.
FACING_UP, FLOOR_REACH = 0.966, 0.15
# Metres: side of the cells in which the floor is judged, and patches that a cell needs.
CELL, MIN_CELL_PATCHES = 0.25, 10
# Square metres that an upright plane needs to be judged.
MIN_WALL_AREA = 1.0
# Metres and degrees from which on something is off.
MAX_FLOOR_HEIGHT, MAX_FLOOR_RMS, MAX_WALL_DEGREES, MIN_CAMERAS_INSIDE = 0.05, 0.03, 3.0, 0.9
MAX_FLOOR_TILT, MIN_CAMERAS_UPRIGHT = 1.0, 0.9
# Metres that a camera may be outside of the visible area: it does not see what is behind it.
BEHIND = 1.0


@dataclass(frozen=True)
class Sanity:
    """Measurements of a scan.

    Attributes:
        points (`np.ndarray` of shape `(N, 3)`): middles of flat patches, metres, for drawings from the side.
        cameras_inside (`float`): share of cameras above the floor and no further than a metre outside of the
            readings' outermost x and y.
        floor_height (`float`, *optional*): metres; median over the 25 cm cells of the floor. None: no floor in view.
        floor_rms (`float`, *optional*): metres; root mean square of the cells' own medians about `floor_height`.
        floor_area (`float`): square metres of cells.
        wall_degrees (`float`, *optional*): how far the upright planes of 1 square metre and more are from the axes;
            median weighted by area, so that turned furniture does not count. None without such planes.
        worst_wall_degrees (`float`, *optional*): the same of the worst of them.
        cameras_upright (`float`): share of cameras whose upper edge points up, within 65 degrees.
        has_turned_pictures (`bool`): whether pictures have another edge up than their upper one.
        floor_tilt (`float`, *optional*): angle between z and the plane through the floor's cells, degrees.
    """

    points: np.ndarray
    cameras_inside: float
    floor_height: float | None
    floor_rms: float | None
    floor_area: float
    wall_degrees: float | None
    worst_wall_degrees: float | None
    cameras_upright: float
    floor_tilt: float | None
    has_turned_pictures: bool = False

    def list_facts(self) -> list[tuple[str, str]]:
        """(name, value) of every measurement, as text."""
        facts = [("cameras inside the room, %", f"{100 * self.cameras_inside:.0f}")]
        facts.append(("cameras with their upper edge up, %", f"{100 * self.cameras_upright:.0f}"))
        if self.floor_height is not None:
            facts.append(("tilt of the floor, °", f"{self.floor_tilt:.1f}"))
            facts.append(("median height of the floor, cm", f"{round(100 * self.floor_height, 1) + 0.0:.1f}"))
            facts.append(("floor, rms of 25 cm cells, cm", f"{100 * self.floor_rms:.1f}"))
            facts.append(("visible floor, m²", f"{self.floor_area:.1f}"))
        if self.wall_degrees is not None:
            facts.append(("walls off the axes, median, °", f"{self.wall_degrees:.1f}"))
            facts.append(("worst wall, °", f"{self.worst_wall_degrees:.1f}"))
        return facts

    def list_warnings(self) -> list[str]:
        """A sentence for each thing that is off."""
        found = []
        if self.cameras_inside < MIN_CAMERAS_INSIDE:
            share = f"{100 * self.cameras_inside:.0f} %"
            found.append(f"only {share} of the cameras are inside or close to what they saw, above its floor")
        if self.cameras_upright < MIN_CAMERAS_UPRIGHT:
            share = f"{100 * self.cameras_upright:.0f} %"
            turned = "the world or the pictures are turned"
            if self.has_turned_pictures and self.floor_height is not None:
                turned = "the pictures are turned (--rotate auto turns them), or the world is"
            found.append(f"only {share} of the cameras have their upper edge up: {turned}")
        if self.floor_tilt is not None and self.floor_tilt > MAX_FLOOR_TILT:
            found.append(f"the floor is tilted by {self.floor_tilt:.1f}°")
        if self.floor_height is None:
            found.append("no floor is in view: nothing checks that z = 0 is the floor")
        elif abs(self.floor_height) > MAX_FLOOR_HEIGHT:
            found.append(f"the floor lies {100 * self.floor_height:.0f} cm from z = 0")
        if self.floor_rms is not None and self.floor_rms > MAX_FLOOR_RMS:
            found.append(f"the floor is not flat: its cells scatter {100 * self.floor_rms:.1f} cm")
        if self.wall_degrees is None:
            found.append("no wall of 1 m² is in view: nothing checks the heading")
        elif self.wall_degrees > MAX_WALL_DEGREES:
            found.append(f"the walls are {self.wall_degrees:.1f}° off the axes")
        return found


def measure_sanity(scene: Scene, surface: Surface | None = None) -> Sanity:
    """Measure a scene that should be upright; `surface` is `sample_surface(scene)`, if already computed.

    Raises:
        ValueError: without posed depth.
    """
    surface = sample_surface(scene) if surface is None else surface
    votes = count_voxel_votes(surface.points, VOXEL_SIZE)
    facing_up = surface.normals[:, 2] > FACING_UP
    height, rms, area, tilt = measure_floor(surface.points[facing_up], votes[facing_up])
    planes = find_upright_planes(surface, votes, VOXEL_SIZE, MIN_WALL_AREA)
    angles = [fold_angle(np.rad2deg(np.arctan2(plane.normal[1], plane.normal[0]))) for plane in planes]
    return Sanity(
        points=surface.points,
        cameras_inside=measure_cameras_inside(scene, surface.points, height),
        floor_height=height,
        floor_rms=rms,
        floor_area=area,
        wall_degrees=find_weighted_median(angles, [plane.area for plane in planes]) if planes else None,
        worst_wall_degrees=float(max(angles)) if planes else None,
        cameras_upright=float((get_camera_ups(scene.cam2world)[:, 2] > UPWARDS).mean()),
        floor_tilt=tilt,
        has_turned_pictures=bool(count_picture_turns(scene.cam2world).any()),
    )


def find_weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The smallest of the values that, with all smaller ones, has half of the weight."""
    order = np.argsort(values)
    share = np.cumsum(np.asarray(weights)[order]) / np.sum(weights)
    return float(np.asarray(values)[order][np.searchsorted(share, 0.5)])


def fold_angle(degrees: float) -> float:
    """Distance of an angle from the nearest multiple of 90 degrees, degrees."""
    return float(abs(np.mod(degrees + 45.0, 90.0) - 45.0))


def measure_floor(points: np.ndarray, votes: np.ndarray) -> tuple[float | None, float | None, float, float | None]:
    """Median height, rms, area and tilt of the floor among patches (M, 3) that face up; None and 0 without a floor."""
    height = find_floor_height(points[:, 2], votes)
    if height is None:
        return None, None, 0.0, None
    points = points[np.abs(points[:, 2] - height) < FLOOR_REACH]
    cells = np.unique(np.floor(points[:, :2] / CELL).astype(np.int64), axis=0, return_inverse=True)[1].reshape(-1)
    order = np.argsort(cells, kind="stable")
    members = np.split(points[order, 2], np.flatnonzero(np.diff(cells[order])) + 1)
    kept = np.array([len(heights) >= MIN_CELL_PATCHES for heights in members])
    medians = np.array([np.median(heights) for heights in members])[kept]
    if not len(medians):
        return None, None, 0.0, None
    middle = float(np.median(medians))
    places = np.array([np.bincount(cells, axis)[kept] / np.bincount(cells)[kept] for axis in points[:, :2].T])
    plane = np.stack([*places, np.ones(len(medians))], axis=1)
    slope = np.linalg.lstsq(plane, medians, rcond=None)[0][:2]
    tilt = float(np.rad2deg(np.arctan(np.linalg.norm(slope))))
    return middle, float(np.sqrt(((medians - middle) ** 2).mean())), len(medians) * CELL**2, tilt


def measure_cameras_inside(scene: Scene, points: np.ndarray, floor_height: float | None) -> float:
    """Share of cameras within the readings' bounds in x and y, `BEHIND` metres more on each side, above the floor."""
    if not len(points):
        return 0.0
    eyes = np.asarray(scene.cam2world, np.float64)[:, :3, 3]
    low, high = points[:, :2].min(0) - BEHIND, points[:, :2].max(0) + BEHIND
    inside = ((eyes[:, :2] > low) & (eyes[:, :2] < high)).all(1)
    return float((inside & (eyes[:, 2] > (0.0 if floor_height is None else floor_height))).mean())


__all__ = ["Sanity", "measure_sanity"]
