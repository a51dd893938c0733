"""A cache of prepared scenes: decoded, resized and pooled tensors, so that later epochs read no pictures.

One file per scene, in a folder that may be deleted at any time. A file that is damaged, or was made from other files
or with other processor settings, is made again. Warnings about a scene's views or world are stored next to it
(`NAME.warnings.json`), so that later runs, which do not check its views, can repeat them.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ross3d.data.atomic import remove_leftovers_of_the_dead, write_text
from ross3d.data.scene import Scene
from ross3d.data.tensor_cache import describe_source, get_file_name, load_cache_or_none, make_cache, write_cache
from ross3d.data.text_files import read_json
from ross3d.data.world import recall_warnings


# Raise when the content of a file, or the meaning of its numbers, changes.
PREPARED_VERSION = 3
WARNINGS_SUFFIX = ".warnings.json"


def to_metres(millimetres: torch.Tensor) -> torch.Tensor:
    """uint16 millimetres -> float32 metres, rounded once, exactly as the readers of depth maps do."""
    return millimetres.float().div_(1000)


def hash_identity(identity: dict[str, Any]) -> str:
    return hashlib.sha256(repr(identity).encode()).hexdigest()


class SceneReader:
    """Reads scenes for training rows, from their pictures every time.

    Args:
        read_scene: folder and `reading` -> `Scene`.
        reading (`dict`, *optional*): options of `read_scene`, plain values.
    """

    def __init__(self, read_scene: Callable[..., Scene], reading: dict[str, Any] | None = None):
        self.read_scene = read_scene
        self.reading = dict(reading or {})

    def read(self, path: Path) -> tuple[Scene, Any]:
        """Read a scene, and its `FittedScene` from the processor if it was prepared, else None."""
        return self.read_scene(path, **self.reading), None

    def warn_again(self, paths: Sequence[Path]) -> None:
        """Do nothing: this reader warns each time a scene is read."""


class PreparedScenes(SceneReader):
    """Reads scenes for training rows, each from its pictures the first time and from its prepared tensors later.

    Args:
        folder (`Path`): where prepared scenes are stored; created if missing.
        processor (`Ross3DProcessor`): prepares them; files made with other settings are made again.
        read_scene, reading: as in `SceneReader`; scenes read with other options are made again.
    """

    def __init__(
        self,
        folder: Path,
        processor: Any,
        read_scene: Callable[..., Scene],
        reading: dict[str, Any] | None = None,
    ):
        super().__init__(read_scene, reading)
        self.folder = Path(folder)
        self.processor = processor
        remove_leftovers_of_the_dead(self.folder)

    def read(self, path: Path) -> tuple[Scene, Any]:
        """Read a scene without its pictures, and the processor's `FittedScene` of them."""
        file, identity = self.folder / get_file_name(path, "prepared"), self.get_identity(path)
        kept = load_cache_or_none(file, identity)
        if kept is None:
            scene = self.read_scene(path, **self.reading)
            kept = self.prepare(scene, identity)
            self.keep(kept, file, recall_warnings(scene))
        return self.build(kept, path)

    def get_identity(self, path: Path) -> dict[str, Any]:
        """A description of everything a prepared scene is made from, to detect changes."""
        return {
            "version": PREPARED_VERSION,
            "settings": self.processor.get_fit_settings(),
            "reading": self.reading,
            "source": describe_source(path),
        }

    def keep(self, kept: dict[str, Any], file: Path, said: list[str]) -> None:
        """Write a prepared scene and its warnings; if the disk is full, training continues without the file."""
        beside = file.with_suffix(WARNINGS_SUFFIX)
        try:
            beside.unlink(missing_ok=True)
            write_cache(file, kept)
            if said:
                told = {"identity": hash_identity(kept["identity"]), "warnings": said}
                write_text(beside, json.dumps(told, indent=1) + "\n")
        except (OSError, RuntimeError) as error:
            warnings.warn(f"{file}: the prepared scene could not be saved ({error}); it is prepared each time.",
                          stacklevel=2)  # fmt: skip

    def warn_again(self, paths: Sequence[Path]) -> None:
        """Give one warning with the number of scenes whose preparation gave warnings that still hold."""
        said = {path.name: told for path in paths if (told := self.read_warnings(path))}
        if said:
            count = f"{len(said)} of {len(paths)} scenes" if len(said) > 1 else "a scene"
            (first, *_), *_ = said.values()
            more = f" (all warnings: {self.folder}/*{WARNINGS_SUFFIX})" if sum(map(len, said.values())) > 1 else ""
            warnings.warn(
                f"data.prepared: preparing {count} gave warnings, and the files have not changed since: {first}{more}",
                stacklevel=2,
            )

    def read_warnings(self, path: Path) -> list[str]:
        """Warnings stored when a scene was prepared; none if its files or settings have changed."""
        beside = (self.folder / get_file_name(path, "prepared")).with_suffix(WARNINGS_SUFFIX)
        if not beside.is_file():
            return []
        try:
            told = read_json(beside, "warnings of a prepared scene", keys=("identity", "warnings"))
        # The folder may be deleted at any time: damaged files there are no reason to stop.
        except ValueError:
            return []
        return told["warnings"] if told["identity"] == hash_identity(self.get_identity(path)) else []

    def prepare(self, scene: Scene, identity: dict[str, Any]) -> dict[str, Any]:
        """Let the processor fit a scene that was read from its own files."""
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
        about = {"scene_id": scene.scene_id, "box_labels": scene.box_labels, "view_names": scene.view_names}
        return make_cache(identity, about, tensors)

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
            # Files of earlier code have none.
            view_names=kept["about"].get("view_names", []),
            path=path,
        )
        return scene, fitted
