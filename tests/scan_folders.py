"""The rooms of `raw_scannet.py` in the other layouts: RGB-D folder, public ScanNet export, nerfstudio, ARKitScenes.

Formulas here are written from the formats' own conventions, not from the readers.
"""

import io
import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.scene import Scene
from ross3d.scenes.rooms import Room
from ross3d.tests.raw_scannet import COLOR_SIZE, RawScan


def decode_colors(scan: RawScan) -> np.ndarray:
    """The pictures (N, H, W, 3) as any reader decodes them."""
    return np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in scan.color_jpegs])


def write_posed_images(scan: RawScan) -> Path:
    """The export of every frame of a raw scan, beside its `scans` folder."""
    folder = scan.folder.parents[1] / "posed_images" / scan.folder.name
    folder.mkdir(parents=True)
    poses = np.linalg.inv(scan.axis_align_matrix) @ scan.cam2world
    poses[list(scan.lost)] = -np.inf
    for index, (jpeg, depth, matrix) in enumerate(zip(scan.color_jpegs, scan.depth_mm, poses, strict=True)):
        stem = folder / f"{10 * index:05d}"
        stem.with_suffix(".jpg").write_bytes(jpeg)
        Image.fromarray(depth).save(stem.with_suffix(".png"))
        np.savetxt(stem.with_suffix(".txt"), matrix, fmt="%f")
    whole = np.eye(4)
    whole[:3, :3] = scan.depth_intrinsics
    np.savetxt(folder / "depth_intrinsic.txt", whole, fmt="%f")
    return folder


def make_info(scan: RawScan, indices) -> dict:
    """EmbodiedScan's entry of a scan whose list of images has frames `indices` of the export."""
    whole = np.eye(4)
    whole[:3, :3] = scan.depth_intrinsics
    name = scan.folder.name
    return {
        "sample_idx": f"scannet/{name}",
        "axis_align_matrix": scan.axis_align_matrix,
        "depth_cam2img": whole,
        "cam2img": np.eye(4, dtype=np.float32),
        "instances": [{"bbox_3d": [0.0] * 9, "bbox_label_3d": np.int64(3)}],
        "images": [
            {"img_path": f"scannet/posed_images/{name}/{10 * index:05d}.jpg", "cam2global": np.eye(4)}
            for index in indices
        ],
    }


def write_infos(path: Path, entries: list, protocol: int = 4) -> Path:
    content = {"metainfo": {"categories": {"chair": 1}}, "data_list": entries}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def write_rgbd(scan: RawScan, folder: Path) -> Path:
    """A folder of posed RGB-D frames in the frame of the scan, with its alignment and the boxes of the furniture."""
    folder.mkdir(parents=True)
    world2scan = np.linalg.inv(scan.axis_align_matrix)
    for index, (jpeg, depth, matrix) in enumerate(zip(scan.color_jpegs, scan.depth_mm, scan.cam2world, strict=True)):
        stem = folder / f"frame-{index:06d}"
        Path(f"{stem}.color.jpg").write_bytes(jpeg)
        Image.fromarray(depth).save(f"{stem}.depth.png")
        np.savetxt(f"{stem}.pose.txt", world2scan @ matrix, fmt="%.12f")
    np.savetxt(folder / "camera-intrinsics.txt", scan.depth_intrinsics, fmt="%.12f")
    np.savetxt(folder / "axis_align.txt", scan.axis_align_matrix, fmt="%.12f")
    labels = [{"category": piece.category} for piece in scan.room.furniture]
    rows = [{"box": box} | label for box, label in zip(scan.room.boxes.tolist(), labels, strict=True)]
    (folder / "boxes.json").write_text(json.dumps(rows))
    return folder


def enlarge_pictures(folder: Path, factor: int) -> None:
    """The pictures of an RGB-D folder become JPEG of `factor` times their size, as of a sharper camera."""
    for file in folder.glob("*.color.png"):
        image = Image.open(file)
        size = factor * image.width, factor * image.height
        image.resize(size, Image.Resampling.BICUBIC).save(file.with_suffix(".jpg"), quality=92)
        file.unlink()


def write_nerfstudio(scan: RawScan, folder: Path, shared: dict | None = None, depth_unit: float = 1e-3) -> dict:
    """A folder with transforms.json, and its content. `shared` replaces the keys that stand for all frames."""
    (folder / "images").mkdir(parents=True)
    (folder / "depth").mkdir()
    (focal_x, _, centre_x), (_, focal_y, centre_y), _ = scan.color_intrinsics
    # The corner of the picture is at (0, 0), so the middle of its first pixel at (0.5, 0.5).
    camera = {"fl_x": focal_x, "fl_y": focal_y, "cx": centre_x + 0.5, "cy": centre_y + 0.5}
    content = camera | {"w": COLOR_SIZE[0], "h": COLOR_SIZE[1], "camera_model": "OPENCV", "k1": 0.0}
    content = content if shared is None else shared
    content["frames"] = []
    for index, (jpeg, depth, matrix) in enumerate(zip(scan.color_jpegs, scan.depth_mm, scan.cam2world, strict=True)):
        (folder / "images" / f"frame_{index:05d}.jpg").write_bytes(jpeg)
        units = np.round(depth * (1e-3 / depth_unit)).astype(np.uint16)
        Image.fromarray(units).save(folder / "depth" / f"frame_{index:05d}.png")
        opengl = matrix.copy()
        opengl[:3, 1:3] *= -1
        content["frames"].append(
            {
                "file_path": f"./images/frame_{index:05d}.jpg",
                "depth_file_path": f"depth/frame_{index:05d}.png",
                "transform_matrix": opengl.tolist(),
            }
        )
    save_transforms(folder, content)
    return content


def save_transforms(folder: Path, content: dict) -> None:
    (folder / "transforms.json").write_text(json.dumps(content))


def lay_on_side(
    intrinsics: np.ndarray, cam2world: np.ndarray, size: tuple[int, int], quarter_turns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Camera of a picture of `size` (width, height) after it was turned clockwise."""
    width, height = size
    for _ in range(quarter_turns):
        # The new x axis is the old -y axis, the new y axis the old x axis.
        camera = np.eye(4)
        camera[:3, :3] = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]]).T
        cam2world = cam2world @ camera
        (focal_x, _, centre_x), (_, focal_y, centre_y), _ = intrinsics
        intrinsics = np.array([[focal_y, 0, height - 1 - centre_y], [0, focal_x, centre_x], [0, 0, 1]])
        width, height = height, width
    return intrinsics, cam2world


def write_arkitscenes(scan: RawScan, folder: Path, quarter_turns: int = 0, frames_folder: str = "") -> list[str]:
    """A video whose pictures lie `quarter_turns` clockwise of upright; its frames' times."""
    part = folder / frames_folder
    for name in ("lowres_wide", "lowres_depth", "lowres_wide_intrinsics"):
        (part / name).mkdir(parents=True)
    lines, times = [], []
    for index, (color, depth) in enumerate(zip(decode_colors(scan), scan.depth_mm, strict=True)):
        color, depth = np.rot90(color, -quarter_turns), np.rot90(depth, -quarter_turns)
        intrinsics, cam2world = lay_on_side(scan.color_intrinsics, scan.cam2world[index], COLOR_SIZE, quarter_turns)
        width, height = COLOR_SIZE[:: -1 if quarter_turns % 2 else 1]
        time = 6845.1 + 0.1 * index
        # Pictures come a little later than the cameras, as in the recordings.
        name = f"{folder.name}_{time + 0.002:.3f}"
        Image.fromarray(np.ascontiguousarray(color)).save(part / "lowres_wide" / f"{name}.png")
        Image.fromarray(np.ascontiguousarray(depth)).save(part / "lowres_depth" / f"{name}.png")
        row = [width, height, intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]]
        (part / "lowres_wide_intrinsics" / f"{name}.pincam").write_text(" ".join(f"{value:.10g}" for value in row))
        world2cam = np.linalg.inv(cam2world)
        values = [*get_axis_angle(world2cam[:3, :3]), *world2cam[:3, 3]]
        lines.append(f"{time:.6f} " + " ".join(f"{value:.12f}" for value in values))
        times.append(f"{time:.3f}")
    (part / "lowres_wide.traj").write_text("\n".join(lines) + "\n")
    write_oriented_boxes(scan, folder)
    return times


def get_axis_angle(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle, from the rotation's eigenvector of 1."""
    values, vectors = np.linalg.eig(rotation)
    axis = np.real(vectors[:, np.abs(values - 1).argmin()])
    helper = np.cross(axis, [0.3, -0.5, 0.8])
    helper /= np.linalg.norm(helper)
    angle = np.arctan2(np.dot(np.cross(helper, rotation @ helper), axis), np.dot(helper, rotation @ helper))
    return axis * angle


def write_oriented_boxes(scan: RawScan, folder: Path) -> None:
    rows = []
    for number, piece in enumerate(scan.room.furniture):
        cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
        x, y, z = (piece.low + piece.high) / 2
        box = {
            "centroid": [cos * x - sin * y + piece.position[0], sin * x + cos * y + piece.position[1], z],
            "axesLengths": (piece.high - piece.low).tolist(),
            "normalizedAxes": [cos, sin, 0, -sin, cos, 0, 0, 0, 1],
        }
        rows.append({"label": piece.category, "uid": f"uid-{number}", "segments": {"obbAligned": box}})
    path = folder / f"{folder.name}_3dod_annotation.json"
    path.write_text(json.dumps({"data": rows, "skipped": False}))


def get_depth_metres(scan: RawScan) -> np.ndarray:
    return scan.depth_mm.astype(np.float32) / np.float32(1000)


def measure_misfit(scene: Scene, room: Room) -> float:
    """Metres between the room's surfaces and that point of the scene's depth maps which is farthest from them."""
    points = []
    matrices = np.broadcast_to(scene.intrinsics, (scene.num_views, 3, 3))
    for depth, matrix, cam2world in zip(scene.depth_maps, matrices, scene.cam2world, strict=True):
        rows, columns = np.nonzero(depth)
        rays = np.linalg.inv(matrix) @ np.stack([columns, rows, np.ones(len(rows))])
        points.append((cam2world[:3, :3] @ (rays * depth[rows, columns])).T + cam2world[:3, 3])
    stacked = np.concatenate(points)
    distances = [_get_distance(stacked, room.low, room.high)]
    for piece in room.furniture:
        cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
        x, y = (stacked[:, :2] - np.asarray(piece.position)[:2]).T
        own = np.stack([cos * x + sin * y, cos * y - sin * x, stacked[:, 2]], axis=1)
        distances += [_get_distance(own, *part) for part in zip(piece.part_low, piece.part_high, strict=True)]
    return float(np.min(distances, axis=0).max())


def _get_distance(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Distances (P,) of points (P, 3) from the surface of a box."""
    beyond = np.maximum(low - points, points - high)
    outside = np.linalg.norm(np.maximum(beyond, 0), axis=1)
    return np.where(outside > 0, outside, -beyond.max(axis=1))
