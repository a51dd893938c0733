"""A `Scene`: posed views of one place, in metres, z up, the same for all source layouts.

Frames and units: `cam2world` maps OpenCV camera axes (x right, y down, z forward) to a world whose z points up and
whose axis alignment is already applied; `depth_maps` are metres along the camera's z, 0 = no reading; `intrinsics` are
pixels of the depth map, with the centre of the top-left pixel at (0, 0).

Shape letters: V views, H W picture pixels, h w depth pixels, K boxes, Hb Wb pixels of the bird's-eye picture.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.geometry_ross3d import MAX_OUTSIDE_DISTANCE
from ross3d.inputs_ross3d import (
    check_boxes,
    check_cam2world,
    check_camera_positions,
    check_depth_maps,
    check_edges,
    check_has_cameras,
    check_intrinsics,
)


# The picture that a blind model sees instead of the views.
BLIND_PICTURE = np.full((8, 8, 3), 128, dtype=np.uint8)
# Boxes in metres are not longer than twice the diagonal of the visible depth (8 m at least, since a view may show a
# corner only), and not further from it than that plus this margin, metres.
MIN_EXTENT, NEIGHBOURHOOD = 8.0, 5.0
# Other units, how many make a metre; metres of the shortest and of the usual object, by its longest side.
BOX_UNITS = {"millimetres": 1000.0, "centimetres": 100.0, "inches": 39.37}
SHORTEST_BOX, USUAL_BOX = 0.05, 0.7


# Cameras that are this many times further apart than they see are probably in another unit than depth.
FAR_APART = 10.0


@dataclass
class Scene:
    """Posed RGB-D views of one place with optional boxes and a bird's-eye picture.

    Attributes:
        scene_id (`str`): unique name, used in every error.
        images (`np.ndarray` of shape `(V, H, W, 3)`, uint8): RGB.
        depth_maps (`np.ndarray` of shape `(V, h, w)`, float32, *optional*): metres along z, 0 = no reading.
        intrinsics (`np.ndarray` of shape `(3, 3)` or `(V, 3, 3)`, float64, *optional*): pixels of the depth map.
        cam2world (`np.ndarray` of shape `(V, 4, 4)`, float64, *optional*): camera to aligned world, metres.
        view_names (`list[str]`): one name a view, such as `frame-000120`.
        boxes (`np.ndarray` of shape `(K, 6)`, float32, *optional*): centre xyz and size xyz, metres.
        box_labels (`list[dict]`, *optional*): K dictionaries: category, color, yaw and any other known facts.
        proposal_boxes (`np.ndarray` of shape `(P, 6)`, float32, *optional*): boxes that a detector found, metres.
        bev_image (`np.ndarray` of shape `(Hb, Wb, 3)`, uint8, *optional*): seen from above, void exactly black.
        bev_valid (`np.ndarray` of shape `(Hb, Wb)`, bool, *optional*): True where something was seen.
        bev_bounds (`np.ndarray` of shape `(4,)`, float32, *optional*): xmin, ymin, xmax, ymax in metres.
        axis_align_matrix (`np.ndarray` of shape `(4, 4)`, *optional*): the alignment already applied to `cam2world`;
            None for a scan without one, whose world is that of its capture.
        path (`Path`, *optional*): the folder it was read from.
        exclusions (`dict[str, str]`): frames of the scan that were left out, by name, with the reason.
        units (`str`): what in the scan's files says in which unit depth and poses are, for errors; empty if nothing
            does, as in layouts that have one unit.
    """

    scene_id: str
    images: np.ndarray
    depth_maps: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    cam2world: np.ndarray | None = None
    view_names: list[str] = field(default_factory=list)
    boxes: np.ndarray | None = None
    box_labels: list[dict[str, Any]] | None = None
    proposal_boxes: np.ndarray | None = None
    bev_image: np.ndarray | None = None
    bev_valid: np.ndarray | None = None
    bev_bounds: np.ndarray | None = None
    axis_align_matrix: np.ndarray | None = None
    path: Path | None = None
    exclusions: dict[str, str] = field(default_factory=dict)
    units: str = ""

    @property
    def num_views(self) -> int:
        return len(self.images)

    def get_inputs(self, bev: bool = False, proposal_boxes: np.ndarray | None = None) -> dict[str, Any]:
        """The processor's arguments for this scene, without those it has no value for.

        Args:
            bev (`bool`): its bird's-eye picture as well.
            proposal_boxes (`np.ndarray` of shape `(K, 6)`, *optional*): metres; passed on where there are any.
        """
        inputs = {"images": list(self.images), "scene_ids": [self.scene_id]}
        if proposal_boxes is not None:
            inputs["proposal_boxes"] = proposal_boxes
        if self.depth_maps is not None:
            inputs |= {"depth_maps": self.depth_maps, "intrinsics": self.intrinsics, "cam2world": self.cam2world}
        if bev and self.bev_image is not None:
            given = {"bev_image": self.bev_image, "bev_valid": self.bev_valid, "bev_bounds": self.bev_bounds}
            inputs |= {name: value for name, value in given.items() if value is not None}
        return inputs


def check_scene(scene: Scene) -> Scene:
    """Refuse a scene whose arrays contradict each other, its units or its frame; return it otherwise.

    Raises:
        ValueError: names the scene, the field, the expected and the actual value, and the remedy.
    """
    where = f"scene {scene.scene_id!r}"
    if not scene.scene_id:
        raise ValueError("Scene.scene_id: expected a name, got an empty one; set a name.")
    _check_images(scene, where)
    if scene.view_names and len(scene.view_names) != scene.num_views:
        raise ValueError(
            f"view_names of {where}: expected {scene.num_views} names, one per view, got {len(scene.view_names)};"
            " name all views or none."
        )
    _check_geometry(scene, where)
    for key in ("boxes", "proposal_boxes"):
        boxes, name = getattr(scene, key), f"{key} of {where}"
        if boxes is not None:
            check_boxes(boxes, name)
            _check_boxes_near_views(scene, boxes, name)
    if scene.box_labels is not None and (scene.boxes is None or len(scene.box_labels) != len(scene.boxes)):
        count = 0 if scene.boxes is None else len(scene.boxes)
        raise ValueError(
            f"box_labels of {where}: expected {count} entries, one per box, got {len(scene.box_labels)}; give one per"
            " box."
        )
    _check_bev(scene, where)
    return scene


def _check_images(scene: Scene, where: str) -> None:
    images = scene.images
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        got = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(
            f"images of {where}: expected a uint8 array (V, H, W, 3), got {got}; convert to RGB bytes first."
        )
    if len(images) == 0:
        raise ValueError(f"images of {where}: expected at least one view, got none; add views.")


def _check_geometry(scene: Scene, where: str) -> None:
    """Check depth and cameras by the rules of the processor."""
    size, num_views, names = None, scene.num_views, scene.view_names
    when_other_unit = f"correct the unit: {scene.units}" if scene.units else ""
    if scene.depth_maps is not None:
        check_has_cameras(where, intrinsics=scene.intrinsics, cam2world=scene.cam2world)
        check_depth_maps(scene.depth_maps, num_views, f"depth_maps of {where}", names, when_other_unit)
        size = scene.depth_maps.shape[1:]
    if scene.intrinsics is not None:
        check_intrinsics(scene.intrinsics, num_views, size, f"intrinsics of {where}")
    if scene.cam2world is not None:
        poses = check_cam2world(scene.cam2world, num_views, f"cam2world of {where}", names)
        # Without depth nothing depends on their unit.
        if scene.depth_maps is not None:
            check_camera_positions(poses, f"cam2world of {where}", names, when_other_unit)


def _check_boxes_near_views(scene: Scene, boxes: np.ndarray, name: str) -> None:
    """Refuse boxes whose centre lies far outside of what the views can show: they are not in metres."""
    if scene.cam2world is None or not len(boxes):
        return
    _check_unit_of_boxes(scene, boxes, name)
    positions = scene.cam2world[:, :3, 3]
    reach = MAX_OUTSIDE_DISTANCE + (0.0 if scene.depth_maps is None else float(scene.depth_maps.max()))
    beyond = np.maximum(positions.min(axis=0) - boxes[:, :3], boxes[:, :3] - positions.max(axis=0)).max(axis=1)
    far = np.maximum(beyond, boxes[:, 3:].max(axis=1)) > reach
    if far.any():
        index = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"{name}: expected metres, in the world of the cameras, got box {index} = {boxes[index].tolist()},"
            f" more than {reach:.0f} m from every camera or as long; {_advise_on_far_boxes(scene)}."
        )


def _advise_on_far_boxes(scene: Scene) -> str:
    """The remedy for boxes far from all cameras: boxes or cameras are in another unit; the cameras, if they are much
    further apart than they see."""
    if scene.depth_maps is not None:
        apart, seen = float(np.ptp(scene.cam2world[:, :3, 3], axis=0).max()), float(scene.depth_maps.max())
        if apart > FAR_APART * seen:
            return (
                f"the cameras are {apart:.0f} apart and see {seen:.1f} m far, so the poses are likely in another unit"
                " than depth (divide translations of centimetres by 100); else the boxes are (divide millimetres by"
                " 1000)"
            )
    return "divide boxes of millimetres by 1000, or the translations of the poses, if those are not in metres"


def _check_unit_of_boxes(scene: Scene, boxes: np.ndarray, name: str) -> None:
    """Refuse boxes far outside of, or much longer than, the visible depth, if another unit would make them fit.

    Boxes of a neighbouring room, and long ones of a scan of which only a few views were read, are accepted: in another
    unit, half of them would be shorter than 5 cm.
    """
    if scene.depth_maps is None:
        return
    low, high = _get_extent(scene)
    diagonal = max(float(np.linalg.norm(high - low)), MIN_EXTENT)
    beyond = np.linalg.norm(np.maximum(low - boxes[:, :3], 0) + np.maximum(boxes[:, :3] - high, 0), axis=1)
    lengths = boxes[:, 3:].max(axis=1)
    far = np.flatnonzero((beyond > 2 * diagonal + NEIGHBOURHOOD) | (lengths > 2 * diagonal))
    if not len(far):
        return
    middle_length = float(np.median(lengths))
    reach = diagonal + NEIGHBOURHOOD
    fitting = {}
    for unit, number in BOX_UNITS.items():
        centres = boxes[:, :3] / number
        is_near = (centres > low - reach).all() and (centres < high + reach).all()
        if is_near and middle_length / number >= SHORTEST_BOX:
            fitting[unit] = number
    if fitting:
        unit = min(fitting, key=lambda unit: abs(np.log(middle_length / fitting[unit] / USUAL_BOX)))
        index = int(far[0])
        raise ValueError(
            f"{name}: expected metres, in the world of the cameras, got box {index} = {boxes[index].tolist()},"
            f" where depth shows a place of {' x '.join(f'{side:.1f}' for side in high - low)} m; these look like"
            f" {unit}: divide them by {fitting[unit]:g}."
        )


def _get_extent(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest x, y, z (3,) of cameras and of all but 2 % of the readings, metres."""
    _, height, width = scene.depth_maps.shape
    v, u = np.mgrid[0 : height : max(1, height // 24), 0 : width : max(1, width // 24)]
    depth = scene.depth_maps[:, v, u].reshape(scene.num_views, -1)
    pixels = np.stack([u.ravel(), v.ravel(), np.ones(u.size)])
    intrinsics = np.broadcast_to(np.asarray(scene.intrinsics, np.float64), (scene.num_views, 3, 3))
    rays = scene.cam2world[:, :3, :3] @ np.linalg.inv(intrinsics) @ pixels  # (V, 3, N)
    positions = scene.cam2world[:, :3, 3]
    points = (rays * depth[:, None] + positions[:, :, None]).transpose(0, 2, 1)[depth > 0]
    if not len(points):
        return positions.min(axis=0), positions.max(axis=0)
    low, high = np.quantile(points, (0.01, 0.99), axis=0)
    return np.minimum(low, positions.min(axis=0)), np.maximum(high, positions.max(axis=0))


def _check_bev(scene: Scene, where: str) -> None:
    image, valid, bounds = scene.bev_image, scene.bev_valid, scene.bev_bounds
    if image is not None and (image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8):
        raise ValueError(
            f"bev_image of {where}: expected a uint8 array (Hb, Wb, 3), got {image.dtype} {image.shape}; convert it to"
            " RGB bytes."
        )
    if valid is not None and (image is None or valid.shape != image.shape[:2] or valid.dtype != np.bool_):
        expected = None if image is None else image.shape[:2]
        raise ValueError(
            f"bev_valid of {where}: expected a bool array {expected} with bev_image, got {valid.dtype} {valid.shape};"
            " give one value per pixel of bev_image."
        )
    if bounds is not None:
        check_edges(bounds, f"bev_bounds of {where}")
