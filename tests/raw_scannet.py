"""Synthetic rooms written as raw ScanNet downloads: recording, mesh, segments, objects, meta data, table of labels.

    DIR/scannetv2-labels.combined.tsv
    DIR/scans/<scene_id>/<scene_id>.sens, .txt, .aggregation.json, _vh_clean_2.ply, _vh_clean_2.0.010000.segs.json

The mesh is a grid of points on every face of floor, walls and furniture; a piece of furniture also has the eight
corners of its hull, so the box of its points is the hull's. All files are in the frame of the scan, which the
axis alignment of the `.txt` turns into the room's own world.
"""

import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import Room, make_cameras, make_room


DEPTH_SIZE, COLOR_SIZE = (32, 24), (64, 48)  # (width, height), pixels
FACE_POINTS = 5  # points along a side of a face
# raw_category -> nyu40id; `case` is what unknown names count as.
NYU40_IDS = {
    "wall": 1,
    "floor": 2,
    "cabinet": 3,
    "bed": 4,
    "chair": 5,
    "sofa": 6,
    "table": 7,
    "desk": 14,
    "shelf": 15,
    "television": 25,
    "lamp": 35,
    "plant": 40,
    "case": 40,
}


@dataclass
class RawScan:
    """What was written, and what a reader has to find.

    Attributes:
        folder (`Path`): DIR/scans/<scene_id>. labels_file (`Path`): the table of labels.
        room (`Room`): the room; its world is the aligned one.
        axis_align_matrix (`(4, 4)`): scan to aligned world.
        color_jpegs (`list[bytes]`): pictures as stored. depth_mm (`(N, h, w)`, uint16). cam2world (`(N, 4, 4)`):
            camera to aligned world, also of frames that were written as lost.
        color_intrinsics, depth_intrinsics (`(3, 3)`): pixels of the picture and of the depth map.
        lost (`tuple[int, ...]`): frames written without tracking.
        vertices (`(M, 3)`), colors (`(M, 3)`, uint8), faces (`(F, 3)`): the mesh, in the aligned world.
        object_ids (`list[int]`), categories (`list[str]`), boxes (`(K, 6)`): objects that keep vertices: floor, wall,
            then the furniture.
        instance_ids (`(M,)`): object of each vertex, -1 for none.
        vanished (`list[int]`): objects in the aggregation that lose all their segments to a later one.
    """

    folder: Path
    labels_file: Path
    room: Room
    axis_align_matrix: np.ndarray
    color_jpegs: list[bytes]
    depth_mm: np.ndarray
    cam2world: np.ndarray
    color_intrinsics: np.ndarray
    depth_intrinsics: np.ndarray
    lost: tuple[int, ...]
    vertices: np.ndarray
    colors: np.ndarray
    faces: np.ndarray
    object_ids: list[int]
    categories: list[str]
    boxes: np.ndarray
    instance_ids: np.ndarray
    vanished: list[int]


def write_raw_scan(
    path: Path,
    scene_id: str = "scene0000_00",
    index: int = 0,
    num_frames: int = 7,
    lost: tuple[int, ...] = (),
    id_gap: bool = False,
    axis_alignment: bool = True,
    normals: bool = False,
) -> RawScan:
    """Write room `index` under `path`.

    Args:
        lost: frames whose tracking is lost (cam2world of -inf).
        id_gap: object 2 loses all its segments to object 3, so the ids that are left have a gap.
        axis_alignment: False leaves the line out of the `.txt`, as in test scans; the scan's frame is then the world.
        normals: vertices of the mesh have normals.
    """
    room, rng = make_room(11, "train", index)
    color_intrinsics, cam2world = make_cameras(room, rng, num_frames, COLOR_SIZE)
    depth_intrinsics = _scale_intrinsics(color_intrinsics, DEPTH_SIZE[0] / COLOR_SIZE[0])
    images = render_room(room, color_intrinsics, cam2world, COLOR_SIZE).images
    depth_maps = render_room(room, depth_intrinsics, cam2world, DEPTH_SIZE).depth_maps
    align = make_axis_alignment() if axis_alignment else np.eye(4)
    vertices, colors, faces, segments, owners = _make_mesh(room)
    first = 3 if id_gap else 2
    object_ids = [0, 1, *range(first, first + len(room.furniture))]
    scan = RawScan(
        folder=path / "scans" / scene_id,
        labels_file=path / "scannetv2-labels.combined.tsv",
        room=room,
        axis_align_matrix=align,
        color_jpegs=[encode_jpeg(image) for image in images],
        depth_mm=np.round(depth_maps * 1000).astype(np.uint16),
        cam2world=cam2world,
        color_intrinsics=color_intrinsics,
        depth_intrinsics=depth_intrinsics,
        lost=lost,
        vertices=vertices,
        colors=colors,
        faces=faces,
        object_ids=object_ids,
        categories=["floor", "wall", *(piece.category for piece in room.furniture)],
        boxes=np.stack([_get_box(vertices[owners == number]) for number in range(len(object_ids))]),
        instance_ids=np.array([*object_ids, -1])[owners],
        vanished=[2] if id_gap else [],
    )
    scan.folder.mkdir(parents=True)
    stem = scan.folder / scene_id
    world2scan = np.linalg.inv(align)
    poses = world2scan @ cam2world
    poses[list(lost)] = -np.inf
    write_sens(Path(f"{stem}.sens"), scan.color_jpegs, scan.depth_mm, poses, color_intrinsics, depth_intrinsics)
    in_scan = vertices @ world2scan[:3, :3].T + world2scan[:3, 3]
    write_ply(Path(f"{stem}_vh_clean_2.ply"), in_scan, colors, faces, normals)
    groups = [
        {
            "id": number,
            "objectId": object_id,
            "label": category,
            "segments": np.unique(segments[owners == number]).tolist(),
        }
        for number, (object_id, category) in enumerate(zip(object_ids, scan.categories, strict=True))
    ]
    if id_gap:
        groups.insert(2, groups[2] | {"objectId": 2, "label": "lamp"})
    _write_json(Path(f"{stem}_vh_clean_2.0.010000.segs.json"), {"sceneId": scene_id, "segIndices": segments.tolist()})
    _write_json(Path(f"{stem}.aggregation.json"), {"sceneId": f"scannet.{scene_id}", "segGroups": groups})
    Path(f"{stem}.txt").write_text(_describe(scan, axis_alignment))
    write_labels(scan.labels_file)
    return scan


def make_axis_alignment() -> np.ndarray:
    """A turn about z and a shift (4, 4), with no more digits than ScanNet prints."""
    angle = np.deg2rad(34.0)
    align = np.eye(4)
    align[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    align[:3, 3] = [-3.25, 1.5, -0.125]
    return align.round(6)


def write_sens(path: Path, color_jpegs, depth_mm, cam2world, color_intrinsics, depth_intrinsics, **header) -> None:
    """Write a recording. `header` replaces entries: version, sensor_name, color_compression, depth_compression,
    depth_shift (units a metre: `depth_mm` is stored as given), num_frames."""
    first = Image.open(io.BytesIO(color_jpegs[0]))
    fields = {
        "version": 4,
        "sensor_name": b"StructureSensor",
        "color_compression": 2,
        "depth_compression": 1,
        "depth_shift": 1000.0,
        "num_frames": len(color_jpegs),
    } | header
    with path.open("wb") as file:
        file.write(struct.pack("<IQ", fields["version"], len(fields["sensor_name"])) + fields["sensor_name"])
        for matrix in (color_intrinsics, np.eye(3), depth_intrinsics, np.eye(3)):
            whole = np.eye(4, dtype="<f4")
            whole[:3, :3] = matrix
            file.write(whole.tobytes())
        file.write(struct.pack("<ii", fields["color_compression"], fields["depth_compression"]))
        file.write(struct.pack("<IIII", *first.size, depth_mm.shape[2], depth_mm.shape[1]))
        file.write(struct.pack("<fQ", fields["depth_shift"], fields["num_frames"]))
        for index, (jpeg, depth, matrix) in enumerate(zip(color_jpegs, depth_mm, cam2world, strict=True)):
            packed = zlib.compress(depth.astype("<u2").tobytes())
            file.write(matrix.astype("<f4").tobytes())
            file.write(struct.pack("<QQQQ", 33000 * index, 33000 * index, len(jpeg), len(packed)) + jpeg + packed)


def write_ply(path: Path, vertices: np.ndarray, colors: np.ndarray, faces: np.ndarray, normals: bool) -> None:
    """Binary little endian, laid out as ScanNet's meshes; `normals` adds nx ny nz (all along z)."""
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    fields += [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")] if normals else []
    fields += [("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
    rows = np.zeros(len(vertices), dtype=fields)
    for axis, name in enumerate("xyz"):
        rows[name] = vertices[:, axis]
    if normals:
        rows["nz"] = 1
    for channel, name in enumerate(("red", "green", "blue")):
        rows[name] = colors[:, channel]
    rows["alpha"] = 255
    triangles = np.zeros(len(faces), dtype=[("count", "u1"), ("corners", "<i4", 3)])
    triangles["count"], triangles["corners"] = 3, faces
    kinds = {"<f4": "float", "u1": "uchar"}
    header = ["ply", "format binary_little_endian 1.0", "comment a synthetic room", f"element vertex {len(vertices)}"]
    header += [f"property {kinds[kind]} {name}" for name, kind in fields]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    path.write_bytes("\n".join(header).encode() + b"\n" + rows.tobytes() + triangles.tobytes())


def write_labels(path: Path) -> None:
    """The table of labels, with the columns that ScanNet's begins with."""
    rows = ["id\traw_category\tcategory\tcount\tnyu40id\teigen13id\tnyuClass\tnyu40class"]
    rows += [f"{k}\t{name}\t{name}\t7\t{nyu}\t0\t{name}\t{name}" for k, (name, nyu) in enumerate(NYU40_IDS.items())]
    path.write_text("\n".join(rows) + "\n")


def _scale_intrinsics(intrinsics: np.ndarray, factor: float) -> np.ndarray:
    """The same camera at `factor` times the size; pixel centres at integers."""
    scaled = intrinsics.copy()
    scaled[:2] *= factor
    scaled[:2, 2] += (factor - 1) / 2
    return scaled


def encode_jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def _get_box(points: np.ndarray) -> np.ndarray:
    low, high = points.min(0), points.max(0)
    return np.concatenate([(low + high) / 2, high - low])


def _describe(scan: RawScan, axis_alignment: bool) -> str:
    rows = [f"axisAlignment = {' '.join(f'{v:.6f}' for v in scan.axis_align_matrix.ravel())} "]
    color, depth = scan.color_intrinsics, scan.depth_intrinsics
    rows = (rows if axis_alignment else []) + [
        f"colorHeight = {COLOR_SIZE[1]}",
        f"colorWidth = {COLOR_SIZE[0]}",
        f"depthHeight = {DEPTH_SIZE[1]}",
        f"depthWidth = {DEPTH_SIZE[0]}",
        f"fx_color = {color[0, 0]:.6f}",
        f"fx_depth = {depth[0, 0]:.6f}",
        f"numDepthFrames = {len(scan.depth_mm)}",
        "sceneType = Bedroom / Hotel",
    ]
    return "\n".join(rows) + "\n"


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content))


def _make_mesh(room: Room) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Vertices (M, 3), colours (M, 3), faces (F, 3), segment of each vertex, and object of each vertex.

    Objects are numbered floor 0, wall 1, furniture from 2 on; -1 is the ceiling, which belongs to none. Every face of
    a box is a segment of its own; their numbers have gaps, as ScanNet's have.
    """
    low, high = room.low, room.high
    faces_of_room = list(_make_box_faces(low, high))  # -x +x -y +y -z +z
    patches = [(faces_of_room[4], 0, room.floor_color), (faces_of_room[5], -1, np.full(3, 238))]
    patches += [(patch, 1, room.wall_color) for patch in faces_of_room[:4]]
    for number, piece in enumerate(room.furniture, start=2):
        parts = list(zip(piece.part_low, piece.part_high, piece.part_colors, strict=True))
        for part_low, part_high, color in parts:
            patches += [(_place(piece, patch), number, color) for patch in _make_box_faces(part_low, part_high)]
        corners = np.stack(np.meshgrid(*zip(piece.low, piece.high, strict=True), indexing="ij"), -1).reshape(8, 3)
        patches.append((_place(piece, corners), number, parts[0][2]))
    vertices, colors, faces, segments, owners = [], [], [], [], []
    count = 0
    for number, (points, owner, color) in enumerate(patches):
        vertices.append(points)
        colors.append(np.tile(np.clip(color, 0, 255).astype(np.uint8), (len(points), 1)))
        if len(points) == FACE_POINTS**2:
            faces.append(_make_triangles() + count)
        segments.append(np.full(len(points), 20 + 3 * number))
        owners.append(np.full(len(points), owner))
        count += len(points)
    return tuple(np.concatenate(rows) for rows in (vertices, colors, faces, segments, owners))


def _make_box_faces(low: np.ndarray, high: np.ndarray):
    """Six grids of points (FACE_POINTS ** 2, 3): -x +x -y +y -z +z."""
    steps = np.linspace(0, 1, FACE_POINTS)
    first, second = (grid.ravel() for grid in np.meshgrid(steps, steps, indexing="ij"))
    for axis in range(3):
        for side in (0.0, 1.0):
            shares = np.insert(np.stack([first, second], axis=1), axis, side, axis=1)
            yield low + shares * (high - low)


def _make_triangles() -> np.ndarray:
    """Two triangles a cell of a grid of points."""
    corner = (np.arange(FACE_POINTS - 1)[:, None] * FACE_POINTS + np.arange(FACE_POINTS - 1)).ravel()
    right, below = corner + 1, corner + FACE_POINTS
    return np.concatenate([np.stack([corner, right, below], 1), np.stack([right, below + 1, below], 1)])


def _place(piece, points: np.ndarray) -> np.ndarray:
    """Points (P, 3) of a piece's own frame in the room."""
    cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
    x, y, z = points.T
    return np.stack([cos * x - sin * y + piece.position[0], sin * x + cos * y + piece.position[1], z], axis=1)
