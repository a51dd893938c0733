"""Read videos without cameras or depth: evenly spread frames become the views, turned upright."""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources.frames import check_memory, check_rotation
from ross3d.data.sources.pictures import turn_pixels
from ross3d.data.text_files import check_file
from ross3d.image_processing_ross3d import VIDEO, check_picture_size, describe_file


# Containers that phones, cameras and programs write; the first ones are tried first where the suffix is left out.
SUFFIXES = (
    ".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v", ".3gp", ".3g2", ".asf", ".divx", ".dv", ".f4v", ".flv", ".m2ts",
    ".m2v", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".wmv", ".y4m",
)  # fmt: skip
# Share of the frames counted in a video's header, or of the seconds stated there, below which it has broken off.
MIN_THERE = 0.9
# Formats whose header states the seconds; of others they are estimated from what is there.
STATE_SECONDS = ("matroska", "flv")


def find_video(path: str | os.PathLike) -> Path | None:
    """The video at a path, or at the path with a video's suffix added."""
    path = Path(path)
    if path.exists() and path.suffix.lower() in SUFFIXES and not path.is_dir():
        return path
    added = [path.with_name(path.name + suffix) for suffix in SUFFIXES] if path.name else []
    return next((file for file in added if file.is_file()), None)


def read_video(
    path: str | os.PathLike,
    *,
    num_views: int | None = None,
    reduce_to: int | None = None,
    rotate: str | int | None = None,
) -> Scene:
    """Read frames of a video, turned by its display matrix, since phones store them in the sensor's orientation.

    Args:
        path (`str` or `Path`): the file; its name without suffix becomes the scene's id.
        num_views (`int`, *optional*): number of frames, by the published rule floor(linspace(0, n - 1, num_views)),
            none twice; all by default.
        reduce_to (`int`, *optional*): required pixels of the shorter side: frames are decoded at full size, then
            halved as long as they stay at least this large.
        rotate (*optional*): 0, 90, 180 or 270 degrees, counter-clockwise, by which the pictures are then turned.

    Raises:
        FileNotFoundError, ValueError: for a file that is not a video (says what it is), ends before the chosen
            frames, or has frames that are too large;
            for `rotate="auto"`, which needs cameras.
    """
    # Imported here because it takes 0.1 s, which only videos need.
    import av

    path, rotate = Path(path), check_rotation(rotate)
    if rotate == "auto":
        raise ValueError(f"{path}: rotate: a video has no cameras to be turned by; give 0, 90, 180 or 270.")
    # The protocol is explicit, so that a file name cannot select another one.
    name = f"file:{check_file(path, 'a video')}"
    try:
        with av.open(name) as container:
            if not container.streams.video:
                raise ValueError(
                    f"{path}: expected a video, got a file without pictures: sound alone, or broken off before them;"
                    " copy it again, or give another."
                )
            stream = container.streams.video[0]
            size = stream.codec_context.width, stream.codec_context.height
            num_frames, seconds = _measure(container)
            _check_end(num_frames if all(size) else 0, stream.frames, seconds, _get_stated_seconds(container), path)
            check_picture_size(size, str(path))
        chosen = sample_uniform(num_frames, num_views or num_frames, unique=True)
        check_memory(3 * size[0] * size[1] * len(chosen), len(chosen), str(path))
        with av.open(name) as container:
            frames = _take_frames(container, chosen, reduce_to, (rotate or 0) // 90, str(path))
    except av.FFmpegError as error:
        found = describe_file(path)
        if found is None or found[0] == VIDEO:
            found = f"one that cannot be decoded ({error.strerror}): truncated or damaged", "copy it again"
        raise ValueError(f"{path}: expected a video, got {found[0]}; {found[1]}.") from error
    if len(frames) < len(chosen):
        raise ValueError(
            f"{path}: expected {len(chosen)} of its {num_frames} frames, got {len(frames)} before the video broke off;"
            " copy it again."
        )
    sizes = {frame.shape[:2] for frame in frames}
    if len(sizes) > 1:
        raise ValueError(
            f"{path}: frames have several sizes, {sorted(sizes)} (height, width); expected one: encode it again."
        )
    names = [f"frame-{index:06d}" for index in chosen]
    return check_scene(Scene(scene_id=path.stem, images=np.stack(frames), view_names=names, path=path))


def _measure(container) -> tuple[int, float]:
    """The frames that are there, and the seconds until the end of what is there, sound included."""
    num_frames, seconds = 0, 0.0
    for packet in container.demux():
        num_frames += packet.size > 0 and packet.stream == container.streams.video[0]
        if packet.pts is not None:
            seconds = max(seconds, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return num_frames, seconds


def _get_stated_seconds(container) -> float:
    """The length that the header states; 0 if it states none."""
    is_stated = any(name in container.format.name for name in STATE_SECONDS)
    return container.duration / 1e6 if is_stated and container.duration else 0.0


def _check_end(num_frames: int, num_counted: int, seconds: float, num_stated: float, path: Path) -> None:
    """Refuse a video without a picture, and warn of one that lacks many of the frames that its header counts, or of
    the seconds that it states (0: unknown).

    A few may be cut away on purpose, by an edit list.
    """
    if not num_frames:
        raise ValueError(f"{path}: expected a video, got one that breaks off before its first picture; copy it again.")
    there = ""
    if num_frames < MIN_THERE * num_counted:
        there = f"{num_frames} of the {num_counted} frames that the file counts"
    elif seconds < MIN_THERE * num_stated:
        there = f"{seconds:.1f} of the {num_stated:.1f} seconds that the file states"
    if there:
        warnings.warn(
            f"{path}: {there} are there; it has broken off: copy it again if the rest is needed", stacklevel=3
        )


def get_display_turn(matrix: np.ndarray) -> tuple[bool, int]:
    """How to display a frame: whether it is first mirrored left to right, and the quarter turns, counter-clockwise,
    that follow; other angles are rounded to the nearest quarter turn.

    Args:
        matrix (`(3, 3)`): display matrix as stored in containers, x' = a x + c y and y' = b x + d y with rows
            (a, b, u), (c, d, v), both y axes pointing down.
    """
    (a, b), (c, d) = np.asarray(matrix, dtype=np.float64)[:2, :2]
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    # x' is the angle's cosine along x; a turn to the left carries x upwards, to negative y.
    return bool(is_mirrored), round(np.arctan2(-b, a) / (np.pi / 2)) % 4


def _read_display_turn(frame) -> tuple[bool, int]:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return get_display_turn(np.frombuffer(bytes(data), dtype="<i4")[:9].reshape(3, 3))
    return False, 0


def _halve(frame: np.ndarray, reduce_to: int | None) -> np.ndarray:
    factor = 1
    while reduce_to is not None and min(frame.shape[:2]) >= 2 * factor * reduce_to:
        factor *= 2
    return frame if factor == 1 else np.asarray(Image.fromarray(frame).reduce(factor))


def _take_frames(container, chosen, reduce_to: int | None, turns: int, where: str) -> list[np.ndarray]:
    """The frames at the chosen places, RGB (H, W, 3), upright, decoding up to the last of them."""
    wanted, frames = set(map(int, chosen)), []
    for index, frame in enumerate(container.decode(video=0)):
        if index in wanted:
            check_picture_size((frame.width, frame.height), where)
            is_mirrored, own_turns = _read_display_turn(frame)
            # Without threads, which live as long as the frame: freed in a forked process, it waits for them for ever.
            pixels = _halve(frame.to_ndarray(format="rgb24", threads=1), reduce_to)
            frames.append(turn_pixels(pixels, is_mirrored, own_turns + turns))
        if len(frames) == len(wanted):
            break
    return frames


__all__ = ["find_video", "get_display_turn", "read_video"]
