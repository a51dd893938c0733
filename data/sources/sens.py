"""ScanNet's `.sens` recordings, format version 4: a header, then one record a frame, all little endian.

    uint32 version = 4; uint64 length and bytes of the sensor's name
    4 x 16 float32: colour intrinsics, colour extrinsic, depth intrinsics, depth extrinsic (row major)
    int32 colour compression (2 = JPEG), int32 depth compression (1 = zlib of uint16)
    uint32 colour width, height, depth width, height; float32 depth shift (units a metre); uint64 number of frames
    a frame: 16 float32 camera to world; uint64 colour time, depth time, colour bytes, depth bytes; the two payloads

One frame is in memory at a time; unused frames are skipped with a seek. A frame whose tracking was lost has a
`cam2world` of -inf. Colour and depth are treated as one camera, as in the published pipeline, so the two extrinsics
are ignored.
"""

import os
import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ross3d.image_processing_ross3d import check_picture_size, check_regular_file


VERSION = 4
JPEG, ZLIB_USHORT = 2, 1
MAX_NAME_BYTES = 4096
# Maximum number of frames: nine hours at 30 frames a second.
MAX_FRAMES = 1_000_000
# Maximum compressed size of a picture: bytes per pixel, plus a constant.
MAX_PIXEL_BYTES, MAX_MORE_BYTES = 4, 1 << 21
MILLIMETRES_PER_METRE = 1000.0
SIZES = struct.Struct("<iiIIIIfQ")
FRAME = struct.Struct("<16f4Q")


@dataclass(frozen=True)
class SensHeader:
    """The header of a recording.

    Attributes:
        path (`Path`): the file, quoted in errors.
        sensor_name (`str`): such as `StructureSensor`.
        color_intrinsics, depth_intrinsics (`(4, 4)`, float64): pixels of the colour picture and of the depth map.
        color_size, depth_size (`(width, height)`): pixels.
        depth_shift (`float`): stored depth units a metre.
        num_frames (`int`): frames that the file should contain.
    """

    path: Path
    sensor_name: str
    color_intrinsics: np.ndarray
    depth_intrinsics: np.ndarray
    color_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_shift: float
    num_frames: int


@dataclass(frozen=True)
class SensFrame:
    """One frame of a recording; depth is unpacked when it is asked for.

    Attributes:
        header (`SensHeader`): of the file it came from.
        index (`int`): its place in the file, from 0.
        cam2world (`(4, 4)`, float64): camera to the scan's own world, metres, OpenCV axes; -inf where tracking was
            lost.
        color_jpeg (`bytes`): the picture as it was stored.
        depth_zlib (`bytes`): the depth map as it was stored.
    """

    header: SensHeader
    index: int
    cam2world: np.ndarray
    color_jpeg: bytes
    depth_zlib: bytes

    @property
    def depth(self) -> np.ndarray:
        """Depth map (h, w), uint16 millimetres along z, 0 = no reading.

        Raises:
            ValueError: names the file and the frame when the payload is damaged or does not fit the header.
        """
        width, height = self.header.depth_size
        where = f"{self.header.path}, frame {self.index}"
        expected, unpacker = 2 * width * height, zlib.decompressobj()
        try:
            # Unpack at most one byte more than expected: a few bytes can unpack to gigabytes.
            payload = unpacker.decompress(self.depth_zlib, expected + 1)
        except zlib.error as error:
            raise ValueError(
                f"{where}: expected depth that zlib packed, got damaged bytes ({error}); export the recording again."
            ) from error
        if len(payload) != expected or not unpacker.eof:
            found = f"more than {expected}" if len(payload) > expected else len(payload)
            end = "" if unpacker.eof or len(payload) > expected else " and then is cut off"
            raise ValueError(
                f"{where}: depth unpacks to {found} bytes{end}, expected {expected} for {width}x{height} uint16; the"
                " frame is damaged."
            )
        values = np.frombuffer(payload, dtype="<u2").reshape(height, width)
        if self.header.depth_shift == MILLIMETRES_PER_METRE:
            return values.astype(np.uint16)
        millimetres = np.round(values * (MILLIMETRES_PER_METRE / self.header.depth_shift))
        if millimetres.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"{where}: depth reaches {millimetres.max() / MILLIMETRES_PER_METRE:.1f} m, more than uint16"
                f" millimetres hold; is the header's depth shift of {self.header.depth_shift:g} right?"
            )
        return millimetres.astype(np.uint16)


def read_sens_header(file: BinaryIO) -> SensHeader:
    """Read the header from the start of an open file and leave the file at its first frame.

    Raises:
        ValueError: another version, a compression other than JPEG and zlib, invalid sizes, or a file that ends within
            the header.
    """
    path = Path(file.name)
    (version,) = struct.unpack("<I", _read_exactly(file, 4, path, "the header"))
    if version != VERSION:
        raise ValueError(
            f"{path}: expected a .sens file of version {VERSION}, got version {version}; export it again."
        )
    (length,) = struct.unpack("<Q", _read_exactly(file, 8, path, "the header"))
    if length > MAX_NAME_BYTES:
        raise ValueError(f"{path}: the sensor's name would take {length} bytes, so this is no .sens file.")
    name = _read_exactly(file, length, path, "the header").decode("utf-8", errors="replace")
    matrices = np.frombuffer(_read_exactly(file, 256, path, "the header"), dtype="<f4").reshape(4, 4, 4)
    sizes = SIZES.unpack(_read_exactly(file, SIZES.size, path, "the header"))
    color_compression, depth_compression, color_width, color_height, depth_width, depth_height, shift, frames = sizes
    if (color_compression, depth_compression) != (JPEG, ZLIB_USHORT):
        raise ValueError(
            f"{path}: expected colour compression {JPEG} (JPEG) and depth compression {ZLIB_USHORT} (zlib of uint16),"
            f" got {color_compression} and {depth_compression}; other encodings are not read."
        )
    if not (np.isfinite(shift) and shift > 0) or 0 in (color_width, color_height, depth_width, depth_height):
        raise ValueError(
            f"{path}: the header makes no sense: colour {color_width}x{color_height}, depth"
            f" {depth_width}x{depth_height}, depth shift {shift}; the file is damaged."
        )
    check_picture_size((color_width, color_height), f"{path}, colour")
    check_picture_size((depth_width, depth_height), f"{path}, depth")
    if frames > MAX_FRAMES:
        raise ValueError(
            f"{path}: expected a recording of at most {MAX_FRAMES} frames, the header counts {frames}; the file is"
            " damaged."
        )
    return SensHeader(
        path=path,
        sensor_name=name,
        color_intrinsics=matrices[0].astype(np.float64),
        depth_intrinsics=matrices[2].astype(np.float64),
        color_size=(color_width, color_height),
        depth_size=(depth_width, depth_height),
        depth_shift=float(shift),
        num_frames=frames,
    )


def iterate_sens_frames(
    path: str | os.PathLike, step: int = 1, indices: Container[int] | None = None
) -> Iterator[SensFrame]:
    """Frames 0, step, 2 * step ... of a recording, or those at `indices`, in the order of the file.

    Raises:
        ValueError: as `read_sens_header`; a file that ends early (names the frame), also when a skipped frame is cut.
    """
    if step < 1:
        raise ValueError(f"step must be at least 1 frame, got {step}.")
    with check_regular_file(path, "recording").open("rb") as file:
        header = read_sens_header(file)
        for index, cam2world, color_bytes, depth_bytes in _walk_frames(file, header):
            if index % step == 0 if indices is None else index in indices:
                where = _describe_frame(header, index)
                color = _read_exactly(file, color_bytes, header.path, where)
                depth = _read_exactly(file, depth_bytes, header.path, where)
                yield SensFrame(header, index, cam2world, color, depth)


def read_sens_cameras(path: str | os.PathLike) -> tuple[SensHeader, np.ndarray]:
    """The header and every frame's `cam2world` (N, 4, 4), float64, -inf where tracking was lost; no payload is read.

    Raises:
        ValueError: as `iterate_sens_frames`.
    """
    with check_regular_file(path, "recording").open("rb") as file:
        header = read_sens_header(file)
        cameras = [cam2world for _, cam2world, _, _ in _walk_frames(file, header)]
    return header, np.stack(cameras) if cameras else np.zeros((0, 4, 4))


def _walk_frames(file: BinaryIO, header: SensHeader) -> Iterator[tuple[int, np.ndarray, int, int]]:
    """Index, cam2world and the two payloads' bytes of each frame, with the file at the payloads."""
    size = os.fstat(file.fileno()).st_size
    for index in range(header.num_frames):
        where = _describe_frame(header, index)
        *values, _, _, color_bytes, depth_bytes = FRAME.unpack(_read_exactly(file, FRAME.size, header.path, where))
        for what, count, (width, height) in (
            ("picture", color_bytes, header.color_size),
            ("depth map", depth_bytes, header.depth_size),
        ):
            if count > MAX_PIXEL_BYTES * width * height + MAX_MORE_BYTES:
                raise ValueError(
                    f"{header.path}: {where}: expected a compressed {what} of {width}x{height} pixels, got"
                    f" {count} bytes, more than it has plain; the file is damaged."
                )
        end = file.tell() + color_bytes + depth_bytes
        if end > size:
            _refuse_cut_file(header.path, where, end - size)
        yield index, np.array(values).reshape(4, 4), color_bytes, depth_bytes
        file.seek(end)


def _describe_frame(header: SensHeader, index: int) -> str:
    return f"frame {index} of {header.num_frames}"


def _read_exactly(file: BinaryIO, count: int, path: Path, where: str) -> bytes:
    data = file.read(count)
    if len(data) < count:
        _refuse_cut_file(path, where, count - len(data))
    return data


def _refuse_cut_file(path: Path, where: str, missing: int) -> None:
    raise ValueError(f"{path}: the file ends in {where}, {missing} bytes short; download or copy it again.")


__all__ = ["SensFrame", "SensHeader", "iterate_sens_frames", "read_sens_cameras", "read_sens_header"]
