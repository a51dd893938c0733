"""Videos without cameras or depth: evenly spread frames are the views."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ross3d.data.sampling import sample_uniform
from ross3d.data.scene import Scene, check_scene


SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def find_video(path: str | os.PathLike) -> Path | None:
    """The video at a path, or at the path with a video's suffix added."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    added = [path.with_name(path.name + suffix) for suffix in SUFFIXES]
    return next((file for file in added if file.is_file()), None)


def read_video(path: str | os.PathLike, *, num_views: int | None = None, reduce_to: int | None = None) -> Scene:
    """Read frames of a video.

    Args:
        path (`str` or `Path`): the file; its name without suffix becomes the scene's id.
        num_views (`int`, *optional*): so many frames by the published rule, floor(linspace(0, n - 1, num_views)), none
            twice; all by default.
        reduce_to (`int`, *optional*): pixels of the shorter side that are enough: frames, which can only be decoded
            whole, are halved as long as they stay at least so large.

    Raises:
        ValueError: for a file that is no video, or that breaks off.
    """
    # Takes 0.1 s, which nobody else should wait for.
    import av

    path = Path(path)
    try:
        with av.open(str(path)) as container:
            num_frames = sum(packet.size > 0 for packet in container.demux(video=0))
        chosen = sample_uniform(num_frames, num_views or num_frames, unique=True) if num_frames else []
        with av.open(str(path)) as container:
            frames = _take_frames(container, chosen)
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"{path}: expected a video, got a file that cannot be decoded ({error}).") from error
    if not frames or len(frames) < len(chosen):
        raise ValueError(
            f"{path}: expected {len(chosen)} of its {num_frames} frames, got {len(frames)} before the video broke off;"
            " copy it again."
        )
    if reduce_to is not None:
        frames = [_halve(frame, reduce_to) for frame in frames]
    names = [f"frame-{index:06d}" for index in chosen]
    return check_scene(Scene(scene_id=path.stem, images=np.stack(frames), view_names=names, path=path))


def _halve(frame: np.ndarray, reduce_to: int) -> np.ndarray:
    factor = 1
    while min(frame.shape[:2]) >= 2 * factor * reduce_to:
        factor *= 2
    return frame if factor == 1 else np.asarray(Image.fromarray(frame).reduce(factor))


def _take_frames(container, chosen) -> list[np.ndarray]:
    """The frames at the chosen places, RGB (H, W, 3), decoding up to the last of them."""
    wanted, frames = set(map(int, chosen)), []
    for index, frame in enumerate(container.decode(video=0)):
        if index in wanted:
            frames.append(frame.to_ndarray(format="rgb24"))
        if len(frames) == len(wanted):
            break
    return frames


__all__ = ["find_video", "read_video"]
