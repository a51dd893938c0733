"""An analytic ray caster for rooms of boxes: RGB, exact depth along z, and which object each pixel shows.

Every pixel is one ray through the pixel's centre (OpenCV: the top-left centre is at 0, 0). A camera ray is scaled to
z = 1, so the distance along it *is* the depth. Objects are met by slab tests in their own frame, on the rays whose
pixel lies inside the object's projected hull only.

Shape letters: V views, H W pixels, R rays (V * H * W), N rays near one object, P parts of one object.
"""

from dataclasses import dataclass

import numpy as np

from ross3d.scenes.rooms import CEILING_COLOR, Furniture, Room


NEAR = 0.02  # metres before the camera; nothing is nearer


@dataclass
class Rendering:
    """What the cameras see: `images` (V, H, W, 3) uint8, `depth_maps` (V, H, W) float32 metres, `object_ids`
    (V, H, W) int16 with -1 for the room itself."""

    images: np.ndarray
    depth_maps: np.ndarray
    object_ids: np.ndarray


def render_room(room: Room, intrinsics: np.ndarray, cam2world: np.ndarray, image_size: tuple[int, int]) -> Rendering:
    """Render `room` from every camera. `image_size` is (width, height); `cam2world` (V, 4, 4) must lie in the room."""
    width, height = image_size
    num_views, num_pixels = len(cam2world), width * height
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), 0).reshape(2, num_pixels)
    in_camera = np.linalg.inv(intrinsics) @ np.concatenate([pixels, np.ones((1, num_pixels))])
    directions = (cam2world[:, :3, :3] @ in_camera).transpose(1, 0, 2).reshape(3, -1).astype(np.float32)  # (3, R)
    directions[np.abs(directions) < 1e-7] = 1e-7
    origins = cam2world[:, :3, 3].astype(np.float32)  # (V, 3)

    depth, face = _exit_room(room, origins, directions, num_pixels)
    object_ids = np.full(len(depth), -1, dtype=np.int16)
    colors = np.empty((len(depth), 3), dtype=np.float32)
    for number, piece in enumerate(room.furniture):
        rays = _rays_near(piece, intrinsics, cam2world, image_size)
        _hit_furniture(piece, number, room.light, rays, origins, directions, num_pixels, depth, object_ids, colors)
    _paint_room(room, origins, directions, num_pixels, depth, face, object_ids, colors)
    shape = (num_views, height, width)
    images = np.clip(colors + 0.5, 1, 255).astype(np.uint8).reshape(*shape, 3)
    return Rendering(images, depth.reshape(shape), object_ids.reshape(shape))


def _exit_room(room: Room, origins, directions, num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Depth at which each ray leaves the room, and through which face (axis * 2 + side)."""
    best = None
    for axis in range(3):
        origin = np.repeat(origins[:, axis], num_pixels)
        wall = np.where(directions[axis] > 0, np.float32(room.high[axis]), np.float32(room.low[axis]))
        reach = (wall - origin) / directions[axis]
        side = axis * 2 + (directions[axis] > 0)
        if best is None:
            best, face = reach, side.astype(np.int8)
        else:
            nearer = reach < best
            best = np.where(nearer, reach, best)
            face = np.where(nearer, side, face).astype(np.int8)
    return best.astype(np.float32), face


def _rays_near(piece: Furniture, intrinsics, cam2world, image_size) -> np.ndarray:
    """Flat indices of the rays whose pixel lies in the rectangle around the projected hull of `piece`."""
    width, height = image_size
    low, high = piece.low, piece.high
    corners = np.stack(np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1).reshape(8, 3)
    cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
    world = np.stack([cos * corners[:, 0] - sin * corners[:, 1], sin * corners[:, 0] + cos * corners[:, 1]], -1)
    world = np.concatenate([world + piece.position, corners[:, 2:]], -1)
    rotations, centres = cam2world[:, :3, :3], cam2world[:, :3, 3]
    in_camera = (world[None] - centres[:, None]) @ rotations  # (V, 8, 3): rows times R is R^T applied
    chosen = []
    for view, points in enumerate(in_camera):
        if points[:, 2].max() <= NEAR:
            continue
        if points[:, 2].min() <= NEAR:
            u0, u1, v0, v1 = 0, width, 0, height
        else:
            projected = points[:, :2] / points[:, 2:] * intrinsics[(0, 1), (0, 1)] + intrinsics[:2, 2]
            (u0, v0), (u1, v1) = np.floor(projected.min(0)).astype(int), np.ceil(projected.max(0)).astype(int) + 1
            u0, u1, v0, v1 = max(u0, 0), min(u1, width), max(v0, 0), min(v1, height)
        if u0 < u1 and v0 < v1:
            rows = (np.arange(v0, v1) + view * height) * width
            chosen.append((rows[:, None] + np.arange(u0, u1)).ravel())
    return np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)


def _hit_furniture(piece, number, light, rays, origins, directions, num_pixels, depth, object_ids, colors) -> None:
    """Where `piece` is nearer than the ray's previous hit, write its depth, number and shaded colour (in place)."""
    if not len(rays):
        return
    cos, sin = np.float32(np.cos(piece.yaw)), np.float32(np.sin(piece.yaw))
    offset = origins - np.append(piece.position, 0).astype(np.float32)
    local = np.stack([cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0], offset[:, 2]])
    origin, (dx, dy, dz) = local[:, rays // num_pixels], directions[:, rays]
    turned = np.stack([cos * dx + sin * dy, cos * dy - sin * dx, dz])  # (3, N)
    enter, leave = _meet_boxes(piece.low[None], piece.high[None], origin, turned)
    near = np.flatnonzero((enter[0] <= leave[0]) & (enter[0] < depth[rays]))
    rays, origin, turned = rays[near], origin[:, near], turned[:, near]
    if not len(rays):
        return
    enter, leave = _meet_boxes(piece.part_low, piece.part_high, origin, turned)
    reach = np.where((enter <= leave) & (enter > NEAR), enter, np.float32(np.inf))
    part = reach.argmin(0)
    reach = reach[part, np.arange(len(rays))]
    won = np.flatnonzero(reach < depth[rays])
    if not len(won):
        return
    rays, part, reach = rays[won], part[won], reach[won]
    depth[rays] = reach
    object_ids[rays] = number
    point = origin[:, won] + turned[:, won] * reach  # (3, M) on one face of its part
    low, high = piece.part_low.astype(np.float32)[part].T, piece.part_high.astype(np.float32)[part].T
    face = np.abs(np.concatenate([point - low, high - point])).argmin(0)  # -x -y -z +x +y +z
    normals = np.array([[-cos, -sin, 0], [sin, -cos, 0], [0, 0, -1], [cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    shade = (0.78 + 0.27 * normals @ light).astype(np.float32)
    colors[rays] = piece.part_colors.astype(np.float32)[part] * shade[face][:, None]


def _meet_boxes(low, high, origins, directions) -> tuple[np.ndarray, np.ndarray]:
    """Depths (P, N) at which rays (3, N) enter and leave boxes (P, 3); entered after left means missed."""
    enter = leave = None
    for axis in range(3):
        inverse = 1 / np.where(np.abs(directions[axis]) < 1e-7, np.float32(1e-7), directions[axis])
        first = (low[:, axis, None].astype(np.float32) - origins[axis]) * inverse
        second = (high[:, axis, None].astype(np.float32) - origins[axis]) * inverse
        near, far = np.minimum(first, second), np.maximum(first, second)
        enter = near if enter is None else np.maximum(enter, near, out=enter)
        leave = far if leave is None else np.minimum(leave, far, out=leave)
    return enter, leave


def _paint_room(room: Room, origins, directions, num_pixels, depth, face, object_ids, colors) -> None:
    """Colour the rays that met no furniture: floor with soft shadows of the furniture, walls with their fixtures."""
    rays = np.flatnonzero(object_ids < 0)
    points = origins[rays // num_pixels].T + directions[:, rays] * depth[rays]  # (3, M)
    face = face[rays]
    inward = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])
    shade = 0.86 + 0.14 * inward @ room.light
    base = np.stack([*[room.wall_color] * 4, room.floor_color, np.array(CEILING_COLOR)])
    paint = base.astype(np.float32)[face]
    for fixture in room.fixtures:
        wall = np.flatnonzero(face == fixture.axis * 2 + (fixture.sign > 0))
        along, up = points[1 - fixture.axis, wall], points[2, wall]
        inside = (along > fixture.low[0]) & (along < fixture.high[0]) & (up > fixture.low[1]) & (up < fixture.high[1])
        paint[wall[inside]] = fixture.color
    # Corners are a little darker: light reaches them less.
    gaps = np.minimum(points - room.low[:, None].astype(np.float32), room.high[:, None].astype(np.float32) - points)
    gaps[face // 2, np.arange(len(rays))] = 10.0
    dim = shade[face] * (1 - 0.22 * np.exp(-np.maximum(gaps.min(0), 0) / 0.25))
    floor = np.flatnonzero(face == 4)
    dim[floor] *= _floor_shadow(room, points[:2, floor])
    colors[rays] = paint * dim[:, None].astype(np.float32)


def _floor_shadow(room: Room, points: np.ndarray) -> np.ndarray:
    """Light left on floor points (2, M): darker under and close to furniture."""
    shadow = np.ones(points.shape[1], dtype=np.float32)
    for piece in room.furniture:
        cos, sin = np.float32(np.cos(piece.yaw)), np.float32(np.sin(piece.yaw))
        x, y = points - piece.position[:, None].astype(np.float32)
        low, high = piece.low.astype(np.float32), piece.high.astype(np.float32)
        local_x, local_y = cos * x + sin * y, cos * y - sin * x
        outside = np.maximum(
            np.maximum(low[0] - local_x, local_x - high[0]), np.maximum(low[1] - local_y, local_y - high[1])
        )
        shadow *= 1 - 0.35 * np.clip(1 - outside / 0.18, 0, 1)
    return shadow
