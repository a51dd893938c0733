# Copyright 2026 The ross3d authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Open picture files: within stated limits, and turned upright.

A camera that was held on its side may store its pixels as the sensor lies, with a tag (EXIF orientation) that says how
to turn them. `turn_upright` turns the picture; where cameras or depth maps belong to the pixels as stored,
`get_stored_turns` says by how much to turn those (`geometry_ross3d.turn_cameras`).

Pillow turns TIFF by itself when it decodes it, and reports the turned size from the beginning; it leaves JPEG, PNG and
WebP as they are stored. The orientation, the stored turns and the upright size returned here are those of the file for
all formats. The exception is a TIFF that was decoded elsewhere first (`picture.load()`): Pillow has removed its tag,
so it counts as stored upright, like the result of `ImageOps.exif_transpose`.
"""

import base64
import os
import re
import stat
import struct
import time
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse
from urllib.request import url2pathname

from huggingface_hub.utils import httpx
from PIL import Image, ImageOps


# A picture with more pixels (a phone's 50 megapixels pass), or with a larger aspect ratio, is refused before memory is
# allocated for it.
MAX_PICTURE_PIXELS = 64_000_000
MAX_PICTURE_ASPECT = 20.0
ORIENTATION_TAG = 0x0112
# Largest download in bytes: one per pixel of the largest picture, which is more than its JPEG takes.
MAX_DOWNLOAD_BYTES = MAX_PICTURE_PIXELS
# Seconds that a server may take for each part of its answer, and for the whole answer.
ANSWER_TIMEOUT, DOWNLOAD_TIMEOUT = 60.0, 600.0
# The largest file of a picture: 16 bits of four colours for each pixel of the largest one, and its tags.
MAX_PICTURE_BYTES = 8 * MAX_PICTURE_PIXELS + (1 << 24)
# Exceptions that PIL raises for damaged files of its many formats.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
# Quarter turns, counter-clockwise, that bring stored pixels upright; the other orientations (2, 4, 5, 7) also mirror.
STORED_TURNS = {1: 0, 3: 2, 6: 3, 8: 1}
# Schemes of the addresses that are read, and how addresses begin; a letter alone is a drive of Windows.
SCHEMES = ("http", "https", "file")
ADDRESS = r"([A-Za-z][A-Za-z0-9+.-]+):/"
# Bytes of a beginning by which contents are recognised, and the largest file that may be a Git-LFS pointer.
HEAD_BYTES, POINTER_BYTES = 64, 1024
POINTER = ("a Git-LFS pointer in place of the file", "fetch the file: git lfs pull")
CONVERT = "convert it to JPEG or PNG first, such as by `magick FILE FILE.jpg`"
AGAIN = "copy it again, or leave it out"
VIDEO = "a video"
OTHER_NAME = "check whether the right file has another name"
CUT = ("a picture that is truncated or damaged, or of a kind that Pillow does not decode", AGAIN)
UNKNOWN = ("bytes that no known format begins with: no picture, or a damaged one", AGAIN)
ARRAYS = "pictures are read from JPEG, PNG, WebP, AVIF or TIFF, depth from PNG, TIFF or PGM of 16 bits or .npy"
# How files begin that are no picture which Pillow decodes: the first match counts.
CONTENTS = tuple(
    (re.compile(beginning, re.DOTALL | re.IGNORECASE), kind, remedy)
    for beginning, kind, remedy in (
        (rb"version https?:..git-lfs", *POINTER),
        (rb"\s*<(!doctype html|html|head)", "an HTML page", "download the file itself, not the page that shows it"),
        (rb"\s*(<\?xml|<svg|<[a-z!])", "an XML or SVG text", CONVERT),
        (rb"....ftyp.{0,48}avi[fs]", "an AVIF picture, which this Pillow cannot decode or which is damaged", CONVERT),
        (rb"....ftyp.{0,48}(hei[cxms]|hev[cxms]|mif1|msf1)", "a HEIC picture", CONVERT),
        (rb"....ftypcrx", "a raw picture of a camera (CR3)", CONVERT),
        (rb"....(ftyp|moov)|\x1a\x45\xdf\xa3|RIFF....AVI ", VIDEO, "save its frames as pictures"),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", CONVERT),
        (rb"\x89HDF", "an HDF5 file", ARRAYS),
        (rb"\x93NUMPY", "a NumPy array", ARRAYS),
        (rb"\x76\x2f\x31\x01", "an OpenEXR picture", ARRAYS),
        (rb"PK\x03\x04", "a zip archive, such as torch.save and numpy.savez write", ARRAYS),
        (rb"\x1f\x8b|BZh|\xfd7zXZ|\x28\xb5\x2f\xfd", "a compressed file", "unpack it first"),
        (rb"%PDF|%!PS", "a PDF or PostScript document", CONVERT),
        (rb"[{\[]", "a text that looks like JSON", OTHER_NAME),
        (rb"[\t\r\n\x20-\x7e]+\Z", "a text", OTHER_NAME),
        (rb"\Z", "an empty file", AGAIN),
        (rb"\xff\xd8\xff|\x89PNG|RIFF....WEBP|II\*\0|MM\0\*|GIF8", *CUT),
    )
)
# Raw pictures of cameras: their files are TIFF or like it, and Pillow opens the small preview in some of them.
RAW_SUFFIXES = (".dng", ".nef", ".arw", ".cr2", ".cr3", ".orf", ".pef", ".raf", ".rw2")
DNG_TAG = 0xC612
RAW = ("a raw picture of a camera", "develop it to JPEG first, such as by `magick FILE FILE.jpg`")
# Pillow recognises these, which hold drawings or arrays and no pixels of their own.
NOT_PIXELS = ("BUFR", "EPS", "GRIB", "HDF5", "WMF")


def shorten(text: str, limit: int = 200) -> str:
    """Shorten a text for an error message to its beginning and its end if it is longer than `limit` letters."""
    return text if len(text) <= limit else f"{text[: limit - 40]} ... {text[-20:]}"


def check_regular_file(file: str | os.PathLike, name: str) -> Path:
    """The path of a regular file.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a folder, a pipe or a device, which may never end; a
            pointer of Git LFS.
    """
    path = Path(file)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        is_address = re.match(ADDRESS, str(path)) is not None
        remedy = "pass an address as a string, with //" if is_address else "correct the path"
        raise FileNotFoundError(f"{name}: the file {path} does not exist; {remedy}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: expected a path to a file, got {shorten(str(path))!r} ({reason}).") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise ValueError(f"{name}: expected a regular file, got the {kind} {path}; give the path of a picture.")
    check_no_pointer(path, name, f"the content of {path}")
    return path


def describe_content(head: bytes) -> tuple[str, str] | None:
    """What a file with this beginning (`HEAD_BYTES` of it) is, and what to do; None if it is nothing known."""
    return next(((kind, remedy) for beginning, kind, remedy in CONTENTS if beginning.match(head)), None)


def describe_file(file: Path) -> tuple[str, str] | None:
    """`describe_content` of a file."""
    with file.open("rb") as opened:
        return describe_content(opened.read(HEAD_BYTES))


def check_no_pointer(file: Path, name: str, meaning: str) -> None:
    """Refuse the text that Git LFS leaves in place of a file that was not fetched; other files are not judged.

    Raises:
        ValueError: names the file (`name`) and what it should hold (`meaning`).
    """
    if file.stat().st_size > POINTER_BYTES:
        return
    if describe_file(file) == POINTER:
        raise ValueError(
            f"{name}: expected {meaning}, got a Git-LFS pointer in place of the file; fetch the file: git lfs pull."
        )


def check_picture_size(size: tuple[int, int], name: str) -> None:
    """Refuse pictures of a (width, height) beyond the limits of this file.

    Raises:
        ValueError: names the picture, its size and the limit.
    """
    width, height = size
    is_empty = width < 1 or height < 1
    if is_empty or width * height > MAX_PICTURE_PIXELS:
        raise ValueError(
            f"{name}: expected a picture of 1 to {MAX_PICTURE_PIXELS / 1e6:g} megapixels, got {width} x {height}"
            f" (width x height); {'leave it out' if is_empty else 'make it smaller'}."
        )
    if max(width, height) > MAX_PICTURE_ASPECT * min(width, height):
        raise ValueError(
            f"{name}: expected a picture at most {MAX_PICTURE_ASPECT:g} times as long as wide, got {width} x {height}"
            " (width x height); crop it."
        )


def open_picture(source: str | os.PathLike | BinaryIO | Image.Image, name: str) -> Image.Image:
    """Open a picture without decoding it; its size is checked first.

    The picture is still oriented as stored: `turn_upright` turns it.

    Args:
        source: a path, an open binary file, or a picture of PIL.
        name (`str`): what errors call it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a readable picture, not a regular file, or beyond the limits.
    """
    if isinstance(source, Image.Image):
        check_picture_size(source.size, name)
        return source
    file = None
    if isinstance(source, str | os.PathLike):
        file = check_regular_file(source, name)
        # Of a file in memory nothing stays open, whichever way decoding ends.
        source = BytesIO(read_picture_file(file, name))
    picture, cause = None, None
    try:
        picture = Image.open(source)
    # PIL has a limit of its own, above ours.
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: expected a picture of 1 to {MAX_PICTURE_PIXELS / 1e6:g} megapixels, got a larger one;"
            " make it smaller."
        ) from error
    # PIL raises SyntaxError for broken PNG files.
    except (OSError, SyntaxError, ValueError) as error:
        cause = error
    if picture is None or picture.format in NOT_PIXELS or is_raw(picture, file):
        kind, remedy = describe_no_picture(source, file, picture)
        place = "" if file is None or str(file) in name else f" ({file})"
        raise ValueError(f"{name}: expected a readable picture, got {kind}{place}; {remedy}.") from cause
    if file is not None:
        picture.filename = str(file)
    check_picture_size(picture.size, name)
    return picture


def read_picture_file(file: Path, name: str) -> bytes:
    """The bytes of a regular file, of at most `MAX_PICTURE_BYTES`."""
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_PICTURE_BYTES:
            raise ValueError(
                f"{name}: expected a picture's file of at most {MAX_PICTURE_BYTES / 1e6:.0f} MB, got"
                f" {size / 1e6:.0f} MB; make the picture smaller."
            )
        return opened.read(size)


def is_raw(picture: Image.Image | None, file: Path | None) -> bool:
    """Whether content is a raw picture of a camera; `picture` is its preview if Pillow opened that."""
    is_named_so = file is not None and file.suffix.lower() in RAW_SUFFIXES
    if picture is None:
        return is_named_so
    return picture.format == "TIFF" and (is_named_so or DNG_TAG in picture.tag_v2)


def describe_no_picture(source: BinaryIO, file: Path | None, picture: Image.Image | None) -> tuple[str, str]:
    """What content is that is not read as a picture, and what to do.

    Args:
        source: the content.
        file (`Path`, *optional*): where it lies.
        picture (*optional*): what Pillow opened.
    """
    source.seek(0)
    found = describe_content(source.read(HEAD_BYTES))
    if found in (None, CUT) and is_raw(picture, file):
        return RAW
    if found is None and picture is not None:
        return f"the format {picture.format}, which holds no pixels", CONVERT
    return found or UNKNOWN


def check_address(text: str, name: str) -> None:
    """Refuse blank text, and an address whose scheme is not read."""
    found = re.match(f"{ADDRESS}/", text)
    if not text.strip() or (found is not None and found[1].lower() not in SCHEMES):
        schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(
            f"{name}: expected a path, a data URI or an address that begins with one of {schemes}, got"
            f" {shorten(text)!r}; download the picture, and pass its path."
        )


def open_named_picture(text: str, name: str) -> Image.Image:
    """Open the picture that a string names, in the forms that the library's `load_image` accepts.

    These are `http://` and `https://` addresses, `file://`, paths, data URIs (`data:image/jpeg;base64,...`) and bare
    base64. All are opened by `open_picture`, within its limits, and stay oriented as stored. A download ends at
    `MAX_DOWNLOAD_BYTES`.

    Raises:
        FileNotFoundError: the path does not exist. ValueError: anything that is not a picture; the message shows the
            address and never the data.
    """
    scheme = text[:8].lower()
    check_address(text, name)
    if scheme.startswith(("http://", "https://")):
        return open_picture(_download(text, name), f"{name} at {shorten(text)!r}")
    if scheme.startswith("data:"):
        content = _decode_base64(text.partition(",")[2])
        if not content:
            raise ValueError(
                f"{name}: expected a picture in a data URI ('data:image/jpeg;base64,' and its base64), got"
                f" {len(text)} letters that are none: {shorten(text, 60)!r}; encode the whole file again."
            )
        return open_picture(BytesIO(content), name)
    if scheme.startswith("file://"):
        address = urlparse(text)
        if address.netloc not in ("", "localhost"):
            raise ValueError(
                f"{name}: expected file:///path/of/a/picture on this machine, got {shorten(text)!r}; pass its path."
            )
        return open_picture(url2pathname(address.path), name)
    # Paths contain a dot, and the base64 of a picture is longer than this.
    content = _decode_base64(text) if len(text) > 40 and not os.path.exists(text) else None
    return open_picture(BytesIO(content) if content else text, name)


def _download(address: str, name: str) -> BytesIO:
    """The bytes that a server sends, uncompressed: a compressed answer could unpack to any size."""
    try:
        return _read_answer(address)
    # Network and address can fail in many ways; each error is re-raised with the name of the picture.
    except Exception as error:
        raise ValueError(
            f"{name}: expected a picture of at most {MAX_DOWNLOAD_BYTES / 1e6:g} MB at {shorten(address)!r}, got"
            f" {shorten(str(error) or type(error).__name__)}; check the address, or download the picture and pass its"
            " path."
        ) from error


def _read_answer(address: str) -> BytesIO:
    """The bytes at an address.

    Raises:
        ValueError: for an error of the server, and an answer that is too long or too slow, with the reason alone.
            Exception: any error that `httpx` raises where the answer is incomplete.
    """
    end, content = time.monotonic() + DOWNLOAD_TIMEOUT, BytesIO()
    headers = {"Accept-Encoding": "identity"}
    with httpx.stream("GET", address, headers=headers, timeout=ANSWER_TIMEOUT, follow_redirects=True) as answer:
        if not answer.is_success:
            raise ValueError(f"an error of the server, status {answer.status_code}")
        length = answer.headers.get("Content-Length", "")
        if length.isdecimal() and int(length) > MAX_DOWNLOAD_BYTES:
            raise ValueError(f"an answer of {int(length) / 1e6:.0f} MB")
        for piece in answer.iter_raw():
            content.write(piece)
            if content.tell() > MAX_DOWNLOAD_BYTES:
                raise ValueError("an answer that goes on behind them")
            if time.monotonic() > end:
                raise ValueError(f"{content.tell() / 1e6:.1f} MB of it within {DOWNLOAD_TIMEOUT:.0f} seconds")
    content.seek(0)
    return content


def _decode_base64(text: str) -> bytes | None:
    """The bytes that a base64 text encodes, or None if the text is not base64."""
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        return None


def decode_upright(picture: Image.Image, name: str) -> Image.Image:
    """The picture in RGB, turned upright by its orientation tag.

    The largest picture within the limits takes 0.9 GB while it is decoded and turned.

    Raises:
        ValueError: for a picture of 16 bits or floats, and one that is truncated or damaged; it names the file.
    """
    if picture.mode.startswith(("I", "F")):
        raise ValueError(
            f"{name}: expected a colour picture, got PIL mode {picture.mode}; 16-bit pictures are depth: pass them in"
            " metres as depth_maps."
        )
    try:
        upright = turn_upright(picture)
        upright.load()
        return upright if upright.mode == "RGB" else upright.convert("RGB")
    except DAMAGED as error:
        file = getattr(picture, "filename", "")
        raise ValueError(
            f"{name}: expected a readable picture, got a truncated or damaged one{f' ({file})' if file else ''}:"
            f" {error}; copy it again."
        ) from error


def has_upright_tag(picture: Image.Image) -> bool:
    """Whether a picture has its orientation in TIFF tags, so that its reported size is the upright one.

    Once read, `picture.tag` still holds the orientation after Pillow has turned the pixels.
    """
    return picture.format == "TIFF" and ORIENTATION_TAG in picture.tag


def load_picture(picture: Image.Image) -> None:
    """Decode a picture in place.

    Pillow memory-maps files of gray, RGBA and 16-bit TIFF with the turned size, which scrambles pictures stored on
    their side; without a file name it reads them instead.
    """
    if not has_upright_tag(picture):
        picture.load()
        return
    file, picture.filename = picture.filename, ""
    try:
        picture.load()
    finally:
        picture.filename = file


def get_orientation(picture: Image.Image) -> int:
    """EXIF orientation of the file, 1 to 8; 1 (as stored) if the picture has none or an invalid one."""
    try:
        if has_upright_tag(picture):
            orientation = picture.tag[ORIENTATION_TAG][0]
        else:
            orientation = picture.getexif().get(ORIENTATION_TAG, 1)
    # A damaged tag block says nothing about how the camera was held.
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def get_stored_turns(picture: Image.Image) -> int | None:
    """Counter-clockwise quarter turns that bring the stored pixels upright; None if they are also mirrored."""
    return STORED_TURNS.get(get_orientation(picture))


def get_upright_size(picture: Image.Image) -> tuple[int, int]:
    """Height and width of a picture after it is turned upright; nothing is decoded."""
    width, height = picture.size
    return (width, height) if get_orientation(picture) >= 5 and not has_upright_tag(picture) else (height, width)


def turn_upright(picture: Image.Image) -> Image.Image:
    """The picture turned upright by its EXIF orientation, without the tag."""
    if get_orientation(picture) == 1:
        return picture
    load_picture(picture)
    return ImageOps.exif_transpose(picture)


__all__ = [
    "HEAD_BYTES",
    "VIDEO",
    "shorten",
    "MAX_PICTURE_ASPECT",
    "MAX_PICTURE_PIXELS",
    "RAW_SUFFIXES",
    "check_no_pointer",
    "check_picture_size",
    "check_regular_file",
    "decode_upright",
    "describe_content",
    "describe_file",
    "get_orientation",
    "get_stored_turns",
    "get_upright_size",
    "load_picture",
    "open_named_picture",
    "open_picture",
    "turn_upright",
]
