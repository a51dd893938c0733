"""Scenes prepared once: decoded, resized and pooled, kept as tensors, so that later epochs read no pictures.

A file a scene, in a folder that may be thrown away at any time; one that is damaged, was made of other files, or by a
processor of other settings, is made anew.
"""

import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ross3d.data.atomic import remove_leftovers_of_the_dead
from ross3d.data.kept import describe_source, get_file_name, load_kept_or_none, make_kept, write_kept
from ross3d.data.scene import Scene


# Changes whenever what a file holds, or what the numbers in it mean, changes.
PREPARED_VERSION = 3


def to_metres(millimetres: torch.Tensor) -> torch.Tensor:
    """uint16 -> float32, rounded once, as readers of depth maps divide."""
    return millimetres.float().div_(1000)


class PreparedScenes:
    """Reads scenes for training rows, each from its pictures the first time and from its prepared tensors later.

    Args:
        folder (`Path`): where prepared scenes are kept; made when it is not there.
        processor (`Ross3DProcessor`): prepares them; a file of another one's settings is made anew.
        read_scene: folder and `reading` -> `Scene`.
        reading (`dict`, *optional*): options of `read_scene`, plain values; scenes read with others are made anew.
    """

    def __init__(
        self,
        folder: Path,
        processor: Any,
        read_scene: Callable[..., Scene],
        reading: dict[str, Any] | None = None,
    ):
        self.folder = Path(folder)
        self.processor = processor
        self.read_scene = read_scene
        self.reading = dict(reading or {})
        remove_leftovers_of_the_dead(self.folder)

    def read(self, path: Path) -> tuple[Scene, Any]:
        """A scene without its pictures, and what the processor made of them (`FittedScene`)."""
        file = self.folder / get_file_name(path, "prepared")
        identity = {
            "version": PREPARED_VERSION,
            "settings": self.processor.get_fit_settings(),
            "reading": self.reading,
            "source": describe_source(path),
        }
        kept = load_kept_or_none(file, identity)
        if kept is None:
            kept = self.prepare(path, identity)
            self.keep(kept, file)
        return self.build(kept, path)

    def keep(self, kept: dict[str, Any], file: Path) -> None:
        """Write a prepared scene; where there is no room for it, training goes on without."""
        try:
            write_kept(file, kept)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"{file}: the prepared scene could not be kept ({error}); it is made anew each time.",
                          stacklevel=2)  # fmt: skip

    def prepare(self, path: Path, identity: dict[str, Any]) -> dict[str, Any]:
        """Read a scene's own files and let the processor fit them."""
        scene = self.read_scene(path, **self.reading)
        inputs = scene.get_inputs(bev=True)
        fitted = self.processor.fit_scene(**inputs | {"scene_id": inputs.pop("scene_ids")[0]})
        names = [field.name for field in fields(fitted) if field.name != "settings"]
        tensors = {name: getattr(fitted, name) for name in names if getattr(fitted, name) is not None}
        if "depth" in tensors:
            millimetres = (tensors["depth"] * 1000).round().clamp(max=2**16 - 1).to(torch.uint16)
            # Sensors write whole millimetres; others keep their floats.
            if torch.equal(to_metres(millimetres), tensors["depth"]):
                tensors["depth"] = millimetres
        if scene.boxes is not None:
            tensors["boxes"] = torch.from_numpy(scene.boxes)
        return make_kept(identity, {"scene_id": scene.scene_id, "box_labels": scene.box_labels}, tensors)

    def build(self, kept: dict[str, Any], path: Path) -> tuple[Scene, Any]:
        tensors = dict(kept["tensors"])
        boxes = tensors.pop("boxes", None)
        if "depth" in tensors and tensors["depth"].dtype == torch.uint16:
            tensors["depth"] = to_metres(tensors["depth"])
        fitted = self.processor.make_fitted(tensors)
        scene = Scene(
            scene_id=kept["about"]["scene_id"],
            images=tensors["pictures"].numpy(),
            boxes=None if boxes is None else boxes.numpy(),
            box_labels=kept["about"]["box_labels"],
            path=path,
        )
        return scene, fitted
