"""Scenes prepared once: decoded, resized and pooled, kept as tensors, so that later epochs read no pictures.

A file a scene, in a folder that may be thrown away at any time. It is mapped into memory, compared with the files it
was made of, and its bytes are summed up each time it is read.
"""

import pickle
import warnings
import zlib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ross3d.data.atomic import replace_file
from ross3d.data.scene import Scene


# Changes whenever what a file holds, or what the numbers in it mean, changes.
PREPARED_VERSION = 1
FIELDS = {"identity", "scene_id", "box_labels", "tensors", "checksum"}


def describe_source(path: Path) -> list[list[Any]]:
    """Name, size and time of change of every file of a scene folder: what tells it from what it was."""
    stats = [(file, file.stat()) for file in sorted(path.iterdir()) if file.is_file()]
    return [[file.name, stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def sum_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """A checksum of all tensors, by name."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        total = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy(), total)
    return total


def to_metres(millimetres: torch.Tensor) -> torch.Tensor:
    """uint16 -> float32, rounded once, as readers of depth maps divide."""
    return millimetres.float().div_(1000)


class PreparedScenes:
    """Reads scenes for training rows, each from its pictures the first time and from its prepared tensors later.

    Args:
        folder (`Path`): where prepared scenes are kept; made when it is not there.
        processor (`Ross3DProcessor`): prepares them; a file of another one's settings is made anew.
        read_scene: folder -> `Scene`.
    """

    def __init__(self, folder: Path, processor: Any, read_scene: Callable[[Path], Scene]):
        self.folder = Path(folder)
        self.processor = processor
        self.read_scene = read_scene

    def read(self, path: Path) -> tuple[Scene, Any]:
        """A scene without its pictures, and what the processor made of them (`FittedScene`)."""
        file = self.folder / f"{path.name}.prepared"
        identity = {
            "version": PREPARED_VERSION,
            "settings": self.processor.get_fit_settings(),
            "path": str(path.resolve()),
            "source": describe_source(path),
        }
        state = self.load(file, identity)
        if state is None:
            state = self.prepare(path, identity)
            self.keep(state, file)
        return self.build(state, path)

    def keep(self, state: dict[str, Any], file: Path) -> None:
        """Write a prepared scene; where there is no room for it, training goes on without."""
        try:
            with replace_file(file) as partial:
                torch.save(state, partial)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"{file}: the prepared scene could not be kept ({error}); it is made anew each time.",
                          stacklevel=2)  # fmt: skip

    def load(self, file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
        """What a file holds, or None when it is not there or was made of something else.

        Raises:
            ValueError: for a broken file.
        """
        if not file.is_file():
            return None
        broken = f"{file}: expected a whole prepared scene, got a broken file; remove it, and it is made anew."
        try:
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        except FileNotFoundError:
            return None
        except (RuntimeError, EOFError, OSError, KeyError, UnicodeDecodeError, pickle.UnpicklingError) as error:
            raise ValueError(broken) from error
        if not isinstance(state, dict) or state.keys() != FIELDS:
            raise ValueError(broken)
        if state["identity"] != identity:
            return None
        if sum_bytes(state["tensors"]) != state["checksum"]:
            raise ValueError(broken)
        return state

    def prepare(self, path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Read a scene's own files and let the processor fit them."""
        scene = self.read_scene(path)
        has_depth = scene.depth_maps is not None
        fitted = self.processor.fit_scene(
            list(scene.images),
            scene.depth_maps,
            scene.intrinsics if has_depth else None,
            scene.cam2world if has_depth else None,
            scene.bev_image,
            scene.bev_valid,
            scene.bev_bounds,
            scene_id=scene.scene_id,
        )
        names = [field.name for field in fields(fitted) if field.name != "settings"]
        tensors = {name: getattr(fitted, name) for name in names if getattr(fitted, name) is not None}
        if "depth" in tensors:
            millimetres = (tensors["depth"] * 1000).round().clamp(max=2**16 - 1).to(torch.uint16)
            # Sensors write whole millimetres; others keep their floats.
            if torch.equal(to_metres(millimetres), tensors["depth"]):
                tensors["depth"] = millimetres
        if scene.boxes is not None:
            tensors["boxes"] = torch.from_numpy(scene.boxes)
        return {
            "identity": identity,
            "scene_id": scene.scene_id,
            "box_labels": scene.box_labels,
            "tensors": tensors,
            "checksum": sum_bytes(tensors),
        }

    def build(self, state: dict[str, Any], path: Path) -> tuple[Scene, Any]:
        tensors = dict(state["tensors"])
        boxes = tensors.pop("boxes", None)
        if "depth" in tensors and tensors["depth"].dtype == torch.uint16:
            tensors["depth"] = to_metres(tensors["depth"])
        fitted = self.processor.make_fitted(tensors)
        scene = Scene(
            scene_id=state["scene_id"],
            images=tensors["pictures"].numpy(),
            boxes=None if boxes is None else boxes.numpy(),
            box_labels=state["box_labels"],
            path=path,
        )
        return scene, fitted
