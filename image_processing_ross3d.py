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
"""Picture files, opened once for everybody: within stated limits, and the right way up.

A camera that was held on its side may write its pixels as the sensor lies and a tag (EXIF orientation) that says how
to turn them. `turn_upright` does so; where cameras or depth maps belong to the pixels as they are stored,
`get_stored_turns` says by how much those have to be turned along (`geometry_ross3d.turn_cameras`).
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps


# A picture with more pixels (a phone's 50 megapixels pass), or one this many times longer than wide, is refused before
# memory is taken for it.
MAX_PICTURE_PIXELS = 64_000_000
MAX_PICTURE_ASPECT = 10.0
ORIENTATION_TAG = 0x0112
# Quarter turns, counter-clockwise, that bring stored pixels upright; the other orientations (2, 4, 5, 7) also mirror.
STORED_TURNS = {1: 0, 3: 2, 6: 3, 8: 1}


def shorten(text: str, limit: int = 200) -> str:
    """A text for an error message: its beginning and its end, where it is longer than `limit` letters."""
    return text if len(text) <= limit else f"{text[: limit - 40]} ... {text[-20:]}"


def check_regular_file(file: str | os.PathLike, name: str) -> Path:
    """The path, where it is a file with an end.

    Raises:
        FileNotFoundError: there is none. ValueError: a folder, a pipe or a device, which can be read without end.
    """
    path = Path(file)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: the file {path} does not exist; correct the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{name}: expected a path to a file, got {shorten(str(path))!r} ({reason}).") from None
    if not stat.S_ISREG(mode):
        kind = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise ValueError(f"{name}: expected a regular file, got the {kind} {path}; give the path of a picture.")
    return path


def check_picture_size(size: tuple[int, int], name: str) -> None:
    """Refuse pictures of a (width, height) beyond the limits of this file.

    Raises:
        ValueError: names the picture, its size and the limit.
    """
    width, height = size
    if width < 1 or height < 1 or width * height > MAX_PICTURE_PIXELS:
        raise ValueError(
            f"{name}: expected a picture of 1 to {MAX_PICTURE_PIXELS / 1e6:g} megapixels, got {width} x {height}"
            " (width x height); make it smaller."
        )
    if max(width, height) > MAX_PICTURE_ASPECT * min(width, height):
        raise ValueError(
            f"{name}: expected a picture at most {MAX_PICTURE_ASPECT:g} times as long as wide, got {width} x {height}"
            " (width x height); crop it."
        )


def open_picture(source: str | os.PathLike | BinaryIO | Image.Image, name: str) -> Image.Image:
    """Open a picture without decoding it; its size is checked first.

    The picture still lies as it is stored: `turn_upright` turns it.

    Args:
        source: a path, an open binary file, or a picture of PIL.
        name (`str`): what errors call it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no readable picture, no regular file, or one beyond the limits.
    """
    if isinstance(source, Image.Image):
        check_picture_size(source.size, name)
        return source
    if isinstance(source, str | os.PathLike):
        source = check_regular_file(source, name)
    try:
        picture = Image.open(source)
    # PIL raises SyntaxError for broken PNG files, and an error of its own for those beyond its limit.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        hint = "; HEIC has to be converted to JPEG first" if _looks_like_heic(source) else ""
        raise ValueError(f"{name}: expected a readable picture, got {error}{hint}.") from error
    check_picture_size(picture.size, name)
    return picture


def _looks_like_heic(source: Path | BinaryIO) -> bool:
    """Whether a file begins as HEIC and HEIF pictures do."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            head = file.read(32)
    else:
        source.seek(0)
        head = source.read(32)
    return head[4:8] == b"ftyp" and any(brand in head for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1"))


def get_orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (as it is stored) where the picture has none or a wrong one."""
    try:
        orientation = picture.getexif().get(ORIENTATION_TAG, 1)
    # A damaged tag block says nothing about how the camera was held.
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, EOFError):
        return 1
    return orientation if orientation in range(1, 9) else 1


def get_stored_turns(picture: Image.Image) -> int | None:
    """Quarter turns, counter-clockwise, that bring the stored pixels upright; None where they are mirrored too."""
    return STORED_TURNS.get(get_orientation(picture))


def turn_upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF orientation says it is to be seen; the tag is gone then."""
    return picture if get_orientation(picture) == 1 else ImageOps.exif_transpose(picture)


__all__ = [
    "MAX_PICTURE_ASPECT",
    "MAX_PICTURE_PIXELS",
    "check_picture_size",
    "check_regular_file",
    "get_orientation",
    "get_stored_turns",
    "open_picture",
    "shorten",
    "turn_upright",
]
