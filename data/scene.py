"""A `Scene`: posed views of one place, in metres, z up, whatever it was read from.

Frames and units: `cam2world` maps OpenCV camera axes (x right, y down, z forward) to a world whose z points up and
whose axis alignment is already applied; `depth_maps` are metres along the camera's z, 0 = no reading; `intrinsics` are
pixels of the depth map, with the centre of the top-left pixel at (0, 0).

Shape letters: V views, H W picture pixels, h w depth pixels, K boxes, Hb Wb pixels of the picture from above.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ross3d.geometry_ross3d import (
    MAX_CAMERA_DISTANCE,
    MAX_FOCAL_SHARE,
    MAX_MEDIAN_DEPTH,
    MAX_OUTSIDE_DISTANCE,
    MAX_ROTATION_ERROR,
    MAX_SKEW,
    MIN_FOCAL_SHARE,
    MIN_MEDIAN_DEPTH,
    TURN_BACK,
    find_calibration_fault,
    get_median_depths,
    is_centre_of_turned,
)


# What a model that has to be blind sees instead of views.
BLIND_PICTURE = np.full((8, 8, 3), 128, dtype=np.uint8)
# Boxes in metres are not longer than twice the diagonal of what depth shows (8 m at least, since a view may show a
# corner only), and not further from it than that and so many metres more.
MIN_EXTENT, NEIGHBOURHOOD = 8.0, 5.0
# Other units, how many make a metre; metres of the shortest and of the usual object, by its longest side.
BOX_UNITS = {"millimetres": 1000.0, "centimetres": 100.0, "inches": 39.37}
SHORTEST_BOX, USUAL_BOX = 0.05, 0.7


# Cameras that stand so many times further apart than they see are likely in another unit than depth.
FAR_APART = 10.0


@dataclass
class Scene:
    """Posed RGB-D views of one place with optional boxes and a picture from above.

    Attributes:
        scene_id (`str`): unique name, used in every error.
        images (`np.ndarray` of shape `(V, H, W, 3)`, uint8): RGB.
        depth_maps (`np.ndarray` of shape `(V, h, w)`, float32, *optional*): metres along z, 0 = no reading.
        intrinsics (`np.ndarray` of shape `(3, 3)` or `(V, 3, 3)`, float64, *optional*): pixels of the depth map.
        cam2world (`np.ndarray` of shape `(V, 4, 4)`, float64, *optional*): camera to aligned world, metres.
        view_names (`list[str]`): one name a view, such as `frame-000120`.
        boxes (`np.ndarray` of shape `(K, 6)`, float32, *optional*): centre xyz and size xyz, metres.
        box_labels (`list[dict]`, *optional*): K dictionaries: category, color, yaw and whatever else is known.
        proposal_boxes (`np.ndarray` of shape `(P, 6)`, float32, *optional*): boxes that a detector found, metres.
        bev_image (`np.ndarray` of shape `(Hb, Wb, 3)`, uint8, *optional*): seen from above, void exactly black.
        bev_valid (`np.ndarray` of shape `(Hb, Wb)`, bool, *optional*): True where something was seen.
        bev_bounds (`np.ndarray` of shape `(4,)`, float32, *optional*): xmin, ymin, xmax, ymax in metres.
        axis_align_matrix (`np.ndarray` of shape `(4, 4)`, *optional*): the alignment that `cam2world` has in it; None
            where the scan came without one, so that its world is whatever its capture chose.
        path (`Path`, *optional*): the folder it was read from.
        exclusions (`dict[str, str]`): frames of the scan that were left out, by name, with the reason.
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

    @property
    def num_views(self) -> int:
        return len(self.images)

    def get_inputs(self, bev: bool = False) -> dict[str, Any]:
        """The processor's arguments for this scene, what it lacks left out; `bev`: its picture from above as well."""
        inputs = {"images": list(self.images), "scene_ids": [self.scene_id]}
        if self.depth_maps is not None:
            inputs |= {"depth_maps": self.depth_maps, "intrinsics": self.intrinsics, "cam2world": self.cam2world}
        if bev and self.bev_image is not None:
            given = {"bev_image": self.bev_image, "bev_valid": self.bev_valid, "bev_bounds": self.bev_bounds}
            inputs |= {name: value for name, value in given.items() if value is not None}
        return inputs


def check_scene(scene: Scene) -> Scene:
    """Refuse a scene whose arrays contradict each other, its units or its frame; return it otherwise.

    Raises:
        ValueError: names the scene, the field, what was expected, what came, and what to do about it.
    """
    where = f"scene {scene.scene_id!r}"
    if not scene.scene_id:
        raise ValueError("Scene.scene_id is empty: every scene needs a name, which errors and predictions quote.")
    _check_images(scene, where)
    if scene.view_names and len(scene.view_names) != scene.num_views:
        raise ValueError(
            f"{where}: view_names has {len(scene.view_names)} names for {scene.num_views} views; give each a name."
        )
    if scene.depth_maps is not None:
        _check_depth_maps(scene, where)
    if scene.intrinsics is not None:
        _check_intrinsics(scene, where)
    if scene.cam2world is not None:
        check_cam2world(scene.cam2world, scene.num_views, where, scene.view_names)
        _check_positions(scene, where)
    for boxes, name in ((scene.boxes, where), (scene.proposal_boxes, f"{where}, proposal_boxes")):
        if boxes is not None:
            check_boxes(boxes, name)
            _check_boxes_near_views(scene, boxes, name)
    if scene.box_labels is not None and (scene.boxes is None or len(scene.box_labels) != len(scene.boxes)):
        count = None if scene.boxes is None else len(scene.boxes)
        raise ValueError(f"{where}: box_labels has {len(scene.box_labels)} entries for {count} boxes; give one a box.")
    _check_bev(scene, where)
    return scene


def _check_images(scene: Scene, where: str) -> None:
    images = scene.images
    if not isinstance(images, np.ndarray) or images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        got = f"{getattr(images, 'dtype', type(images).__name__)} {getattr(images, 'shape', '')}"
        raise ValueError(f"{where}: images must be a uint8 array (V, H, W, 3), got {got}; convert to RGB bytes first.")
    if len(images) == 0:
        raise ValueError(f"{where}: images holds zero views; a scene needs at least one.")


def _check_depth_maps(scene: Scene, where: str) -> None:
    depth = scene.depth_maps
    if depth.ndim != 3 or len(depth) != scene.num_views:
        raise ValueError(
            f"{where}: depth_maps must be (V, h, w) with V = {scene.num_views} as in images, got {depth.shape}; "
            "give one depth map a view (all zeros where a view has none)."
        )
    if not np.issubdtype(depth.dtype, np.floating):
        raise ValueError(
            f"{where}: depth_maps must be float32 metres, got {depth.dtype}; divide millimetres by 1000 when reading."
        )
    if scene.intrinsics is None or scene.cam2world is None:
        missing = "intrinsics" if scene.intrinsics is None else "cam2world"
        raise ValueError(f"{where}: depth_maps came without {missing}; give the cameras too, or leave the depth out.")
    if not np.isfinite(depth).all() or (depth < 0).any():
        raise ValueError(
            f"{where}: depth_maps must be finite and >= 0, found {np.nanmin(depth)} or NaN/inf; write 0 for no"
            " reading."
        )
    # torch warns of arrays that cannot be written to.
    medians = get_median_depths(torch.from_numpy(depth if depth.flags.writeable else depth.copy())).numpy()
    if np.isnan(medians).all():
        raise ValueError(
            f"{where}: depth_maps hold no reading at all (every pixel is 0); check the depth files, or leave"
            " depth_maps out to use the pictures alone."
        )
    far = np.flatnonzero(medians > MAX_MEDIAN_DEPTH)
    if len(far):
        name = scene.view_names[far[0]] if scene.view_names else f"view {far[0]}"
        raise ValueError(
            f"{where}: depth_maps must be metres, but the median reading of {name} is {medians[far[0]]:.0f}, which"
            " looks like millimetres; divide by 1000."
        )
    middle = float(np.nanmedian(medians))
    if middle < MIN_MEDIAN_DEPTH:
        raise ValueError(
            f"{where}: depth_maps must be metres, but the median reading is {middle:.5f} m; it looks divided by 1000 "
            "once too often."
        )


def _check_intrinsics(scene: Scene, where: str) -> None:
    intrinsics = scene.intrinsics
    if intrinsics.shape not in {(3, 3), (scene.num_views, 3, 3)}:
        raise ValueError(
            f"{where}: intrinsics must be (3, 3) or ({scene.num_views}, 3, 3), got {intrinsics.shape}; drop the"
            " fourth row and column of a 4x4 matrix."
        )
    if not np.isfinite(intrinsics).all() or (intrinsics[..., 0, 0] <= 1).any() or (intrinsics[..., 1, 1] <= 1).any():
        raise ValueError(
            f"{where}: intrinsics must be finite with focal lengths in pixels (> 1), got fx, fy = "
            f"{np.ravel(intrinsics[..., 0, 0])[0]}, {np.ravel(intrinsics[..., 1, 1])[0]}; multiply normalised values"
            " by the size of the depth map."
        )
    for matrix in np.unique(np.reshape(intrinsics, (-1, 3, 3)), axis=0):
        _check_camera(matrix, None if scene.depth_maps is None else scene.depth_maps.shape[1:], where)


def _check_camera(matrix: np.ndarray, size: tuple[int, int] | None, where: str) -> None:
    """Refuse intrinsics (3, 3) of no pinhole camera, or of another picture than a depth map of `size` (h, w)."""
    (focal_x, skew, centre_x), (below, focal_y, centre_y), last = matrix.tolist()
    is_pinhole = np.abs(np.subtract(last, [0, 0, 1])).max() < 1e-4
    if not is_pinhole or max(abs(skew), abs(below)) > MAX_SKEW * focal_x:
        transposed = ", which looks transposed" if centre_x == centre_y == 0 and last[2] == 1 else ""
        raise ValueError(
            f"{where}: intrinsics must be of a pinhole camera, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], got"
            f" {matrix.tolist()}{transposed}; transpose matrices that are stored by columns, and rectify pictures with"
            " skew."
        )
    if size is None:
        return
    fault = find_calibration_fault(centre_x, centre_y, *size)
    remedy = TURN_BACK if is_centre_of_turned(centre_x, centre_y, *size) else "scale them with its size"
    fits = all(
        MIN_FOCAL_SHARE * side < focal < MAX_FOCAL_SHARE * side
        for focal, side in zip((focal_x, focal_y), size[::-1], strict=True)
    )
    if fault is not None or not fits:
        raise ValueError(
            f"{where}: intrinsics must be pixels of the {size[1]}x{size[0]} depth map, got focal lengths {focal_x:g},"
            f" {focal_y:g} and centre ({centre_x:g}, {centre_y:g}){fault or ''}; {remedy}."
        )


def _check_positions(scene: Scene, where: str) -> None:
    """Refuse cameras with depth that are no metres; without depth nothing depends on their unit."""
    if scene.depth_maps is None:
        return
    distances = np.abs(scene.cam2world[:, :3, 3]).max(axis=1)
    farthest = int(distances.argmax())
    if distances[farthest] > MAX_CAMERA_DISTANCE:
        name = scene.view_names[farthest] if scene.view_names else f"view {farthest}"
        raise ValueError(
            f"{where}, {name}: cam2world must be metres, got a camera {distances[farthest]:.0f} from the origin, which"
            " looks like millimetres; divide translations by 1000, or move the world's origin to the scan."
        )


def _check_boxes_near_views(scene: Scene, boxes: np.ndarray, where: str) -> None:
    """Refuse boxes whose middle lies far outside of what the views can show: those are no metres."""
    if scene.cam2world is None or not len(boxes):
        return
    _check_unit_of_boxes(scene, boxes, where)
    positions = scene.cam2world[:, :3, 3]
    reach = MAX_OUTSIDE_DISTANCE + (0.0 if scene.depth_maps is None else float(scene.depth_maps.max()))
    beyond = np.maximum(positions.min(axis=0) - boxes[:, :3], boxes[:, :3] - positions.max(axis=0)).max(axis=1)
    far = np.maximum(beyond, boxes[:, 3:].max(axis=1)) > reach
    if far.any():
        index = int(np.flatnonzero(far)[0])
        raise ValueError(
            f"{where}: boxes must be metres, in the world of the cameras, got box {index} = {boxes[index].tolist()},"
            f" more than {reach:.0f} m from every camera or as long; {_advise_on_far_boxes(scene)}."
        )


def _advise_on_far_boxes(scene: Scene) -> str:
    """What to do about boxes far from all cameras: either may be in another unit, the cameras where they stand much
    further apart than they see."""
    if scene.depth_maps is not None:
        apart, seen = float(np.ptp(scene.cam2world[:, :3, 3], axis=0).max()), float(scene.depth_maps.max())
        if apart > FAR_APART * seen:
            return (
                f"the cameras stand {apart:.0f} apart and see {seen:.1f} m far, so the poses are likely in another"
                " unit than depth (divide translations of centimetres by 100); else the boxes are (divide millimetres"
                " by 1000)"
            )
    return "divide boxes of millimetres by 1000, or, where the poses are no metres, their translations"


def _check_unit_of_boxes(scene: Scene, boxes: np.ndarray, where: str) -> None:
    """Refuse boxes far from, or much longer than, what depth shows, where another unit would bring them into it.

    Boxes of a room next door, and long ones of a scan that only a few views were read of, stay: in another unit, half
    of them would be shorter than 5 cm.
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
    for name, number in BOX_UNITS.items():
        centres = boxes[:, :3] / number
        is_near = (centres > low - reach).all() and (centres < high + reach).all()
        if is_near and middle_length / number >= SHORTEST_BOX:
            fitting[name] = number
    if fitting:
        unit = min(fitting, key=lambda name: abs(np.log(middle_length / fitting[name] / USUAL_BOX)))
        index = int(far[0])
        raise ValueError(
            f"{where}: boxes must be metres, in the world of the cameras, got box {index} = {boxes[index].tolist()},"
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


def check_cam2world(
    cam2world: np.ndarray,
    num_views: int,
    where: str,
    view_names=(),
    meaning: str = "cam2world",
    when_lost: str = "tracking was lost there: leave the frame out",
) -> None:
    """Refuse camera poses that are not finite rigid transforms; the error names the first wrong view.

    Args:
        meaning (`str`): what the error calls the matrices.
        when_lost (`str`): what to do about a matrix that holds no transform at all.
    """
    if cam2world.shape != (num_views, 4, 4):
        raise ValueError(f"{where}: {meaning} must be ({num_views}, 4, 4), one a view, got {cam2world.shape}.")
    for index, matrix in enumerate(cam2world):
        name = view_names[index] if len(view_names) else f"view {index}"
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"{where}, {name}: {meaning} must be finite, got {matrix[~np.isfinite(matrix)][0]}; {when_lost}."
            )
        rotation = matrix[:3, :3]
        if not rotation.any():
            raise ValueError(f"{where}, {name}: {meaning} must be rigid, got a rotation of zeros; {when_lost}.")
        if not matrix[:3, 3].any() and matrix[3, 3] == 1 and np.abs(matrix[3, :3]).max() > 1e-4:
            raise ValueError(
                f"{where}, {name}: {meaning} must have its translation in the last column and the last row 0 0 0 1, "
                f"got the last row {matrix[3].tolist()}; it is stored by columns: transpose it."
            )
        error = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if error > MAX_ROTATION_ERROR or np.linalg.det(rotation) < 0 or np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-4:
            raise ValueError(
                f"{where}, {name}: {meaning} must be rigid (rotation times its transpose = 1, determinant +1, last"
                f" row 0 0 0 1), got deviation {error:.3g}, determinant {np.linalg.det(rotation):.3g}, last row "
                f"{matrix[3].tolist()}; remove scale or a mirrored axis (OpenCV axes: x right, y down, z forward)."
            )


def check_boxes(boxes: np.ndarray, where: str) -> None:
    """Refuse boxes that are not (K, 6) finite centre and size >= 0, in metres."""
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise ValueError(f"{where}: boxes must be (K, 6), centre xyz and size xyz in metres, got {boxes.shape}.")
    if not np.isfinite(boxes).all():
        raise ValueError(f"{where}: boxes must be finite, box {np.where(~np.isfinite(boxes).all(1))[0][0]} is not.")
    far = np.flatnonzero(np.abs(boxes).max(axis=1, initial=0.0) > MAX_CAMERA_DISTANCE)
    if len(far):
        raise ValueError(
            f"{where}: boxes must be metres, got box {far[0]} = {boxes[far[0]].tolist()}, which looks like"
            " millimetres; divide by 1000."
        )
    if (boxes[:, 3:] < 0).any():
        index = int(np.where((boxes[:, 3:] < 0).any(1))[0][0])
        raise ValueError(
            f"{where}: box sizes must be >= 0, box {index} has size {boxes[index, 3:].tolist()}; boxes are centre"
            " and size, not two corners."
        )


def _check_bev(scene: Scene, where: str) -> None:
    image, valid, bounds = scene.bev_image, scene.bev_valid, scene.bev_bounds
    if image is not None and (image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8):
        raise ValueError(f"{where}: bev_image must be a uint8 array (Hb, Wb, 3), got {image.dtype} {image.shape}.")
    if valid is not None and (image is None or valid.shape != image.shape[:2] or valid.dtype != np.bool_):
        expected = None if image is None else image.shape[:2]
        raise ValueError(
            f"{where}: bev_valid must be a bool array {expected} beside bev_image, got {valid.dtype} {valid.shape}."
        )
    is_finite = bounds is None or (np.shape(bounds) == (4,) and bool(np.isfinite(bounds).all()))
    if not is_finite or (bounds is not None and (bounds[2] <= bounds[0] or bounds[3] <= bounds[1])):
        raise ValueError(
            f"{where}: bev_bounds must be (xmin, ymin, xmax, ymax) in metres with positive extent, got {bounds}."
        )
