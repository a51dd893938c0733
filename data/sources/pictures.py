"""Decode the picture and depth map of one frame: colour upright, depth in metres from any stored unit.

Pictures are decoded exactly unless `reduce_to` allows a smaller size (`decode_color`). Depth maps are always decoded
exactly, because a model uses single readings of them.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from ross3d.data.text_files import check_file
from ross3d.geometry_ross3d import MAX_CAMERA_DISTANCE, MAX_MEDIAN_DEPTH
from ross3d.image_processing_ross3d import (
    HEAD_BYTES,
    UNKNOWN,
    check_picture_size,
    describe_content,
    get_orientation,
    load_picture,
    open_picture,
)


MILLIMETRES_PER_METRE = 1000.0
# Whole numbers of depth whose largest reading is nearer than this, metres, were stored in another unit than assumed.
MIN_LARGEST_DEPTH = 0.05
# Written by TSDF tools and 7-Scenes where there is no reading.
NO_READING = 65535
# Orientation 1 to 8 of EXIF: whether the stored picture is mirrored left to right first, and by how many quarter
# turns, counter-clockwise, it is turned then.
UPRIGHT = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}
# The inverse of each orientation.
LAY_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
# Width, height and largest value, between blanks and comments, at the beginning of a binary PGM.
_GAP = rb"(?:\s|#[^\n]*\n)+"
PGM_HEAD = re.compile(rb"P5" + 3 * (_GAP + rb"(\d{1,9})") + rb"\s")
PGM_HEAD_BYTES = 4096
# How a .npy array begins, and a beginning that holds the type of most.
NPY_MAGIC, NPY_HEAD_BYTES = b"\x93NUMPY", 512
# Depth maps that are read, for errors.
READ_DEPTH = "a PNG, TIFF or PGM of 16 bits (millimetres), a TIFF of floats or a .npy array (h, w) (metres)"
# Known forms of depth that are not read, and how to convert each; {old} and {new} are the names of files.
OPENCV = "np.save('{new}', cv2.imread('{old}', cv2.IMREAD_UNCHANGED)), metres or millimetres as they are"
SHAPED = "np.save('{new}', np.fromfile('{old}', TYPE).reshape(HEIGHT, WIDTH)), with the type and size of the sensor"
TORCH = "a file of torch.save", "np.save('{new}', torch.load('{old}').numpy())"
HDF5 = "HDF5", "np.save('{new}', h5py.File('{old}')['depth'][:]), with the name of its data set"
NOT_READ_DEPTH = {
    ".exr": ("OpenEXR", f"with OPENCV_IO_ENABLE_OPENEXR=1, {OPENCV}"),
    ".pfm": ("a portable float map", OPENCV),
    ".npz": ("a NumPy archive", "np.save('{new}', np.load('{old}')['depth']), with the name of its array"),
    ".pt": TORCH,
    ".pth": TORCH,
    ".h5": HDF5,
    ".hdf5": HDF5,
    ".mat": ("a MATLAB file", "np.save('{new}', scipy.io.loadmat('{old}')['depth']), with the name of its variable"),
    ".raw": ("raw numbers", SHAPED),
    ".bin": ("raw numbers", SHAPED),
    ".dpt": ("raw floats", "np.save('{new}', np.fromfile('{old}', np.float32)[3:].reshape(HEIGHT, WIDTH))"),
    ".gz": ("a compressed file", "gunzip '{old}'"),
    ".zst": ("a compressed file", "unzstd '{old}'"),
    ".pkl": ("a pickle", "np.save('{new}', np.load('{old}', allow_pickle=True)), where you trust its writer"),
    ".depth": ("Record3D's compressed depth", "export from the app as EXR + RGB, and convert those files"),
}


@contextmanager
def _name_broken_picture(where) -> Iterator[None]:
    """Name the picture in errors of decoding."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where}: the picture cannot be read ({error}); it is truncated or damaged: copy it again, or leave the"
            " frame out."
        ) from error


def _open(source: Path | BinaryIO, where) -> Image.Image:
    if isinstance(source, Path) and not source.exists():
        raise FileNotFoundError(f"{where}: the picture does not exist; copy it again, or leave it out.")
    return open_picture(source, str(where))


def open_image(file: Path) -> Image.Image:
    """Open a picture and read it to its end, as it is stored.

    Raises:
        FileNotFoundError, ValueError: names the file that is missing, too large, no picture or damaged.
    """
    image = _open(file, file)
    with _name_broken_picture(file):
        return load_stored(image, get_orientation(image))


def load_stored(image: Image.Image, orientation: int) -> Image.Image:
    """A picture, decoded, as it is stored: TIFF, which Pillow turns upright while it decodes it, is turned back."""
    load_picture(image)
    return image.transpose(LAY_BACK[orientation]) if image.format == "TIFF" and orientation > 1 else image


@dataclass(frozen=True)
class StoredPicture:
    """A decoded picture as it is stored.

    Attributes:
        pixels (`(H, W, 3)`, uint8): RGB.
        size (`(width, height)`): on disk; larger than that of `pixels` where it was decoded at a reduced size.
        orientation (`int`): EXIF orientation, 1 to 8.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    orientation: int

    @property
    def turns(self) -> int:
        """Quarter turns, counter-clockwise, that make it upright, after mirroring if it `is_mirrored`."""
        return UPRIGHT[self.orientation][1]

    @property
    def is_mirrored(self) -> bool:
        return UPRIGHT[self.orientation][0]

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height on disk, of the upright picture."""
        return self.size[:: -1 if self.turns % 2 else 1]

    def turn_upright(self) -> "StoredPicture":
        """The upright picture."""
        return StoredPicture(turn_pixels(self.pixels, self.is_mirrored, self.turns), self.upright_size, 1)


def turn_pixels(pixels: np.ndarray, is_mirrored: bool, turns: int) -> np.ndarray:
    """A picture (H, W, ...), mirrored left to right if so, then turned by quarter turns, counter-clockwise."""
    return np.ascontiguousarray(np.rot90(pixels[:, ::-1] if is_mirrored else pixels, turns))


def decode_stored(source: Path | BinaryIO, where: Path | str, reduce_to: int | None = None) -> StoredPicture:
    """The picture of a file or of bytes in memory as it is stored; see `decode_color`."""
    image = _open(source, where)
    size = image.size
    if image.mode.startswith(("I", "F")):
        image.close()
        raise ValueError(
            f"{where}: expected a colour picture of 8 bits, got mode {image.mode!r}, such as depth maps have; give the"
            " colour picture, or convert it to 8 bits."
        )
    with _name_broken_picture(where):
        orientation = get_orientation(image)
        if reduce_to is not None:
            image.draft(None, (reduce_to, reduce_to))
        stored = load_stored(image, orientation)
        # A reduced JPEG is smaller than the one on disk; TIFF states another size than it is stored with.
        size = stored.size if image.format == "TIFF" else size
        return StoredPicture(np.asarray(stored.convert("RGB")), size, orientation)


def decode_color(
    source: Path | BinaryIO, where: Path | str, reduce_to: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Decode a file or bytes to upright RGB (H, W, 3), uint8; also returns the (width, height) on disk, turned alike.

    With `reduce_to`, JPEG is decoded at the smallest of its scales 1, 1/2, 1/4 and 1/8 whose shorter side (rounded up)
    has at least `reduce_to` pixels; other formats have no such scales and are decoded exactly.

    Raises:
        FileNotFoundError, ValueError: `where` the picture is missing, too large, of 16 bits, no picture or damaged.
    """
    picture = decode_stored(source, where, reduce_to).turn_upright()
    return picture.pixels, picture.size


# Share of a frame's readings, the nearest ones, that tell the unit of float depth.
NEAR_SHARE = 0.1


@dataclass(frozen=True)
class StoredDepth:
    """A depth map in the units that it is stored in.

    Attributes:
        values (`(h, w)`): no reading is 0 or, in whole numbers, 65535, and in floats NaN or infinity.
        where: the file or frame, for errors.
        units_per_metre (`float`, *optional*): by default 1000 (millimetres) in whole numbers; in floats 1 or 1000, as
            `find_float_units` finds.
        said (`str`): what says this unit, for errors.
    """

    values: np.ndarray
    where: Path | str
    units_per_metre: float | None = None
    said: str = ""

    @property
    def is_of_unknown_unit(self) -> bool:
        return self.values.dtype.kind == "f" and self.units_per_metre is None

    def get_near_reading(self) -> float:
        """The reading that a tenth of the readings do not exceed, as it is stored; 0 where there is none."""
        readings = self.values[np.isfinite(self.values) & (self.values > 0)]
        return float(np.quantile(readings, NEAR_SHARE)) if readings.size else 0.0

    def scale(self, float_units: float) -> np.ndarray:
        """Depth (h, w), float32 metres, 0 = no reading.

        Args:
            float_units (`float`): units per metre of floats whose unit nothing says, 1 or 1000.

        Raises:
            ValueError: names `where`: depth is negative, too small for its unit, in another unit than most frames, or
                has readings too far away to be any.
        """
        where, units = self.where, self.units_per_metre
        is_float = self.values.dtype.kind == "f"
        values = np.where(np.isfinite(self.values) if is_float else self.values != NO_READING, self.values, 0)
        if values.size and values.min() < 0:
            raise ValueError(
                f"{where}: depth must be 0 (no reading) or more, got {values.min():g}; was it saved as a signed"
                " number, or along another axis?"
            )
        if self.is_of_unknown_unit:
            near = self.get_near_reading()
            if near and (near > MAX_MEDIAN_DEPTH) != (float_units > 1):
                unit = "millimetres" if float_units > 1 else "metres"
                raise ValueError(
                    f"{where}: expected depth in {unit}, as in most frames of the scan, got nearest readings of"
                    f" about {near:g}; save it in that unit, and 0 where the sensor has no reading."
                )
            per_metre = float_units
        else:
            per_metre = MILLIMETRES_PER_METRE if units is None else units
            largest = values.max(initial=0)
            if 0 < largest < MIN_LARGEST_DEPTH * per_metre:
                raise ValueError(
                    f"{where}: the largest depth is {largest}, which looks like metres; expected millimetres: multiply"
                    " by 1000 before saving as uint16."
                    if units is None
                    else f"{where}: the largest depth is {largest}, which at {per_metre:g} units a metre is nearer"
                    f" than {MIN_LARGEST_DEPTH:g} m; correct the unit{f': {self.said}' if self.said else ''}."
                )
        metres = values.astype(np.float32) / np.float32(per_metre)
        far = np.argwhere(metres > MAX_CAMERA_DISTANCE)
        # Where most are as far, the unit is wrong, which is told of the whole scan.
        if len(far) and self.get_near_reading() <= MAX_MEDIAN_DEPTH * per_metre:
            row, column = far[0]
            raise ValueError(
                f"{where}: expected readings up to {MAX_CAMERA_DISTANCE:g} m, got {metres[row, column]:g} m in row"
                f" {row}, column {column}, and {len(far)} of them; write 0 where the sensor has no reading."
            )
        return metres


def find_float_units(depths: Iterable[StoredDepth]) -> float:
    """Units per metre of the float depth of a scan's frames whose unit nothing says: 1 (metres) or 1000 (millimetres).

    A scan has one unit: the one that the nearest readings of most frames are in, since many readings far away may be a
    window or a mark of no reading. In millimetres hardly any reading is below 50; in metres those of a room are.

    Raises:
        ValueError: as many frames seem to be in either; names one of each.
    """
    readings = {depth.where: depth.get_near_reading() for depth in depths if depth.is_of_unknown_unit}
    metres = {where: near for where, near in readings.items() if 0 < near <= MAX_MEDIAN_DEPTH}
    others = {where: near for where, near in readings.items() if near > MAX_MEDIAN_DEPTH}
    if metres and len(metres) == len(others):
        (here, near), (there, far) = next(iter(metres.items())), next(iter(others.items()))
        raise ValueError(
            f"{here}: expected float depth of all frames of a scan in one unit, got nearest readings of about {near:g}"
            f" here, which looks like metres, and of {far:g} in {there}, which looks like millimetres, and as many"
            " frames of either; save all in one unit, and 0 where the sensor has no reading."
        )
    return 1.0 if len(metres) >= len(others) else MILLIMETRES_PER_METRE


def read_depth(file: Path) -> np.ndarray:
    """Depth (h, w), float32 metres, 0 = no reading, of a single file; see `read_stored_depth`."""
    return scale_depth(read_stored_depth(file).values, file)


def read_stored_depth(file: Path, units_per_metre: float | None = None, said: str = "") -> StoredDepth:
    """A depth map as it is stored.

    Args:
        file (`Path`): a 16-bit PNG, TIFF or PGM, a float TIFF, or a `.npy` array.
        units_per_metre, said (*optional*): see `StoredDepth`.

    Raises:
        FileNotFoundError, ValueError: names the file and what to save in its place.
    """
    suffix = file.suffix.lower()
    if suffix in NOT_READ_DEPTH:
        kind, way = NOT_READ_DEPTH[suffix]
        way = way.format(old=file.name, new=f"{file.stem}.npy")
        raise ValueError(
            f"{file}: expected {READ_DEPTH}, got depth as {kind} ({suffix}), which is not read; convert it: {way}."
        )
    if not file.exists():
        raise FileNotFoundError(f"{file}: the depth map does not exist; copy it again, or leave the frame out.")
    read = {".npy": _read_npy, ".pgm": _read_pgm}.get(suffix, _read_depth_picture)
    return StoredDepth(read(file), file, units_per_metre, said)


def _read_depth_picture(file: Path) -> np.ndarray:
    image = open_image(file)
    if image.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
        raise ValueError(
            f"{file}: expected a 16-bit one-channel PNG (millimetres), got mode {image.mode!r}; save depth as uint16."
        )
    return np.asarray(image)


def _read_npy(file: Path) -> np.ndarray:
    """An array (h, w), without axes of size 1; memory-mapped, so that a false size in its header allocates nothing."""
    check_file(file, "a depth map")
    with file.open("rb") as opened:
        head = opened.read(NPY_HEAD_BYTES)
    if not head.startswith(NPY_MAGIC):
        kind, remedy = describe_content(head[:HEAD_BYTES]) or UNKNOWN
        if head.startswith(b"PK"):
            way = NOT_READ_DEPTH[".npz"][1].format(old=file.name, new=file.name)
            remedy = f"if it is one of NumPy, save its array alone: {way}"
        raise ValueError(f"{file}: expected a .npy array of depth, got {kind}; {remedy}.")
    if b"'|O'" in head:
        raise ValueError(
            f"{file}: expected a .npy array of depth, got one of Python objects, which could run code when it is read;"
            " save it as numbers, such as depth.astype('float32')."
        )
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    # A damaged header can make its parser raise anything.
    except Exception as error:
        raise ValueError(
            f"{file}: expected a .npy array of depth, got one that is truncated or damaged; copy it again, or leave"
            " the frame out."
        ) from error
    if values.ndim > 2:
        values = values.squeeze()
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.dtype.itemsize < 2:
        raise ValueError(
            f"{file}: expected an array (h, w) of float metres or uint16 millimetres, got {values.dtype}"
            f" {values.shape}; save depth so."
        )
    check_picture_size(values.shape[::-1], str(file))
    return np.array(values)


def _read_pgm(file: Path) -> np.ndarray:
    """Values (h, w) of a binary 16-bit PGM as they are stored; PIL would stretch them to 65535."""
    check_file(file, "a depth map")
    with file.open("rb") as opened:
        head = opened.read(PGM_HEAD_BYTES)
        found = PGM_HEAD.match(head)
        if found is None:
            raise ValueError(
                f"{file}: expected a binary PGM picture (P5), got {head[:20]!r}; save depth as 16-bit PNG."
            )
        width, height, largest = map(int, found.groups())
        check_picture_size((width, height), str(file))
        if not 255 < largest < 65536:
            raise ValueError(
                f"{file}: expected a 16-bit PGM (millimetres), got a largest value of {largest}; save depth as uint16."
            )
        opened.seek(found.end())
        content = opened.read(2 * width * height)
    if len(content) < 2 * width * height:
        raise ValueError(
            f"{file}: the depth map is truncated: expected {2 * width * height} bytes of readings, got {len(content)};"
            " copy it again, or leave the frame out."
        )
    return np.frombuffer(content, dtype=">u2").reshape(height, width).astype(np.uint16)


def scale_depth(values: np.ndarray, where, units_per_metre: float | None = None, said: str = "") -> np.ndarray:
    """Depth (h, w), float32 metres, of a single map; arguments and errors as of `StoredDepth`."""
    depth = StoredDepth(values, where, units_per_metre, said)
    return depth.scale(find_float_units([depth]))


__all__ = [
    "MILLIMETRES_PER_METRE",
    "NOT_READ_DEPTH",
    "StoredDepth",
    "StoredPicture",
    "decode_color",
    "decode_stored",
    "find_float_units",
    "open_image",
    "read_depth",
    "read_stored_depth",
    "scale_depth",
    "turn_pixels",
]
