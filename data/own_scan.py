"""Prepare a user's scan for questions: make it upright and give it boxes.

The world counts as upright if an alignment was given or came with the scan, or if the scan has boxes of objects, which
lie in an upright world. Otherwise the alignment is estimated from posed depth; a world that the estimate would hardly
move is left as it is. Boxes are proposed from depth if the scan has none.
"""

import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.box_files import read_box_list
from ross3d.data.proposals import Proposals, propose_boxes
from ross3d.data.scene import Scene
from ross3d.data.sources import describe_not_read, find_layout, find_video, list_not_read, read_scene
from ross3d.data.sources.frames import MAX_EXCLUDED
from ross3d.data.sources.optional_files import turn_pictures
from ross3d.data.surface import Surface, sample_surface
from ross3d.data.upright import LOW_CONFIDENCE, UprightEstimate, align_scene, describe_pictures, estimate_upright
from ross3d.data.world import check_bounds


# Maximum number of frames for alignment, boxes and bird's-eye pictures, and the picture size they need, pixels.
NUM_FRAMES, PICTURE_SIZE = 64, 432
# A world is already upright if the estimate would tilt it, turn it (apart from quarter turns), in degrees, and lift or
# lower its floor, in metres, by less than this. Proposals remove 5 cm of floor, which just covers a room of 6 m tilted
# by half a degree.
UPRIGHT_DEGREES, UPRIGHT_TURN, UPRIGHT_HEIGHT = 0.5, 3.0, 0.02
ALIGNED = "the alignment came with the scan"


@dataclass(frozen=True)
class OwnScan:
    """A scan in an upright world.

    Attributes:
        path (`Path`), scene (`Scene`): where it lies, and frames spread over all of it.
        alignment (`str`): a sentence on the source of the alignment, and on pictures that are not upright in it.
        estimate (`UprightEstimate`, *optional*): the estimate, if one was made.
        axis_align_matrix (`(4, 4)` array or its file, *optional*): given or estimated, for `read_scene`; None where
            the scan is read as it lies.
        given_boxes (`Path`, *optional*): the file given in place of the scan's own boxes.
        proposals (`Proposals`, *optional*): where the scan came without boxes.
        reading (`dict`): further options that it is read with, see `make_reading`.
        surface (`Surface`, *optional*): flat patches of `scene`, in its world; None without depth.
        trust (`str`): in a few words, the evidence that the world is upright; empty where unknown.
    """

    path: Path
    scene: Scene
    alignment: str
    estimate: UprightEstimate | None = None
    axis_align_matrix: np.ndarray | Path | None = None
    given_boxes: Path | None = None
    proposals: Proposals | None = None
    reading: dict[str, Any] = field(default_factory=dict)
    surface: Surface | None = None
    trust: str = ""

    @property
    def boxes(self) -> np.ndarray:
        """Boxes (K, 6) to choose among, metres, upright world: the scan's or the given ones, else the proposed."""
        for came in (self.scene.boxes, self.scene.proposal_boxes):
            if has_any(came):
                return came
        return np.zeros((0, 6), np.float32) if self.proposals is None else self.proposals.boxes

    def describe_boxes(self) -> str:
        """A sentence that says where the boxes come from."""
        if self.proposals is not None:
            return f"no boxes came with the scan: {self.proposals.describe()}"
        count = len(self.boxes)
        if self.given_boxes is not None:
            return f"{count} boxes given: {self.given_boxes.name}"
        return f"{count} boxes came with the scan" if count else "no boxes: none came, and none can be proposed"

    @property
    def scan_to_world(self) -> np.ndarray:
        """The matrix (4, 4) from the scan's own frame to the world of `scene` and `boxes`; the identity where both are
        one."""
        matrix = self.scene.axis_align_matrix
        return np.eye(4) if matrix is None else np.asarray(matrix, np.float64)

    def describe_world(self) -> str:
        """A sentence that describes unit and axes, as far as known, with the evidence."""
        if self.scene.cam2world is None:
            return "Pictures without cameras: nothing is known of places, sizes and directions."
        if self.scene.depth_maps is None:
            axes = "the upright axis rests on the alignment" if self.trust else "nor its upright axis"
            return f"Posed views without depth: the unit of their world is not known, {axes}."
        return f"Posed views with depth in metres, as its files give it; z up: {self.trust}."

    def read_views(self, num_views: int) -> Scene:
        """Read `num_views` views of the scan at full size, in the same world; without proposed boxes."""
        given = make_options(self.axis_align_matrix, self.given_boxes)
        limits = make_limits(self.path) | self.reading
        return read_scene(self.path, look_at_world=False, num_views=num_views, **given, **limits)


def make_options(axis_align_matrix, boxes) -> dict:
    """Options of `read_scene` that are not None; videos accept neither."""
    given = {"axis_align_matrix": axis_align_matrix, "boxes": boxes}
    return {name: value for name, value in given.items() if value is not None}


def make_limits(path: Path) -> dict:
    """A `max_excluded` for layouts that by default allow no lost or damaged frame."""
    is_strict = path.is_dir() and find_layout(path).name == "rgbd_folder"
    return {"max_excluded": MAX_EXCLUDED} if is_strict else {}


def has_any(boxes: np.ndarray | None) -> bool:
    return boxes is not None and len(boxes) > 0


def is_upright(estimate: UprightEstimate) -> bool:
    """Whether an alignment hardly changes anything apart from the origin and quarter turns."""
    rotation = estimate.axis_align_matrix[:3, :3]
    tilt = np.rad2deg(np.arccos(np.clip(rotation[2, 2], -1.0, 1.0)))
    turn = np.mod(np.rad2deg(np.arctan2(rotation[1, 0], rotation[0, 0])) + 45.0, 90.0) - 45.0
    is_level = tilt < UPRIGHT_DEGREES and abs(estimate.axis_align_matrix[2, 3]) < UPRIGHT_HEIGHT
    return bool(is_level and abs(turn) < UPRIGHT_TURN)


def read_own_scan(
    path: str | os.PathLike,
    *,
    axis_align_matrix: Path | None = None,
    boxes: Path | None = None,
    reading: dict[str, Any] | None = None,
) -> OwnScan:
    """Read and prepare a scan of any layout, or a video; a warning names files of its folder that are not read.

    Args:
        path: see `read_scene`.
        axis_align_matrix (`Path`, *optional*): file of a 4x4 matrix, scan to upright world; nothing is estimated then.
        boxes (`Path`, *optional*): JSON file of boxes in the upright world.
        reading (`dict`, *optional*): further options of `read_scene`, see `make_reading`.

    Raises:
        ValueError: an alignment or boxes given for a video; a file of boxes that is wrong or holds none of this scan;
            of `read_scene`; of `estimate_upright` where no floor is in view.
    """
    path, given = Path(path), make_options(axis_align_matrix, boxes)
    if given and not path.is_dir() and find_video(path) is not None:
        raise ValueError(
            f"{path}: expected no {' and no '.join(given)} with a video, whose cameras are unknown; leave them out, "
            "or give a folder of posed frames."
        )
    if boxes is not None:
        read_box_list(boxes, path.resolve().name)
    reading = reading or {}
    limits = make_limits(path) | reading
    # Pictures are turned by a world that may have to be estimated first.
    is_auto = limits.get("rotate") == "auto" and path.is_dir()
    first = limits | {"rotate": 0} if is_auto else limits
    scene = read_scene(path, look_at_world=False, num_views=NUM_FRAMES, reduce_to=PICTURE_SIZE, **given, **first)
    not_read = list_not_read(path) if path.is_dir() else {}
    if not_read:
        warnings.warn(f"scene {scene.scene_id!r}: {describe_not_read(not_read)}", stacklevel=2)
    if scene.depth_maps is None:
        scene = turn_pictures(scene) if is_auto else scene
        sentence, trust = "the views have no depth: nothing was estimated", ""
        if scene.axis_align_matrix is not None:
            sentence, trust = "alignment given; the views have no depth: nothing checks it", "given, unchecked"
        return OwnScan(path, scene, sentence, None, axis_align_matrix, boxes, reading=reading, trust=trust)
    scan = make_upright(path, scene, axis_align_matrix)
    scan = replace(scan, scene=turn_pictures(scan.scene)) if is_auto else scan
    pictures = describe_pictures(scan.scene)
    if pictures is not None:
        scan = replace(scan, alignment=f"{scan.alignment}; {pictures}")
    check_bounds(scan.scene)
    came = has_any(scan.scene.boxes) or has_any(scan.scene.proposal_boxes)
    proposals = None if came else propose_boxes(scan.scene, surface=scan.surface)
    return replace(scan, given_boxes=boxes, proposals=proposals, reading=reading)


def make_upright(path: Path, scene: Scene, given: Path | None = None) -> OwnScan:
    """A scan with posed depth in an upright world, without proposals."""
    surface = sample_surface(scene)
    if given is not None:
        sentence, trust = f"alignment given: {given.name}", f"by the alignment given, {given.name}"
        return OwnScan(path, scene, sentence, axis_align_matrix=given, surface=surface, trust=trust)
    if scene.axis_align_matrix is not None:
        return OwnScan(path, scene, ALIGNED, surface=surface, trust="by the alignment that came with the scan")
    # Proposals and pictures made from depth are no evidence that their world is upright.
    if has_any(scene.boxes):
        sentence = "no alignment came with the scan, but boxes did: its world is taken to be upright"
        return OwnScan(path, scene, sentence, surface=surface, trust="taken for granted, since boxes came with it")
    estimate = estimate_upright(scene, surface)
    little = "" if estimate.confidence >= LOW_CONFIDENCE else "which little speaks for, "
    trust = f"by an estimate, {little}with a confidence of {estimate.confidence:.2f}"
    if is_upright(estimate):
        sentence = f"the scan is upright already and was not turned (confidence {estimate.confidence:.2f})"
        return OwnScan(path, scene, sentence, estimate, surface=surface, trust=trust)
    # Proposals and pictures made in the old world are dropped.
    scene = replace(scene, boxes=None, proposal_boxes=None, bev_image=None, bev_valid=None, bev_bounds=None)
    matrix, sentence = estimate.axis_align_matrix, estimate.describe()
    aligned, surface = align_scene(scene, estimate), surface.move(matrix)
    return OwnScan(path, aligned, sentence, estimate, matrix, surface=surface, trust=trust)


def get_box_corners(boxes: np.ndarray, scan_to_world: np.ndarray) -> np.ndarray:
    """Corners (K, 8, 3) in the scan's own frame of boxes (K, 6) in the upright world.

    Corner 4 a + 2 b + c has the smaller (0) or larger (1) x, y and z of the box where a, b and c say so.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 6)
    corners = boxes[:, None, :3] + (np.indices((2, 2, 2)).reshape(3, 8).T - 0.5) * boxes[:, None, 3:]
    inverse = np.linalg.inv(scan_to_world)
    return corners @ inverse[:3, :3].T + inverse[:3, 3]


__all__ = ["NUM_FRAMES", "OwnScan", "get_box_corners", "is_upright", "read_own_scan"]
