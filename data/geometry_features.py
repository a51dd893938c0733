"""Features of a geometry encoder, cached on disk, so that training steps do not run the encoder.

One file per scene, made by `python -m ross3d.training.geometry_features`: features pooled to the token grid, as
float32, bfloat16, or int8 with one scale per token. The files are memory-mapped, and may be moved to another machine
together with the scenes. 3DRS's own files, `SCENE/vggt.npz`, are read by `read_npz`.

Shapes: V views, T layers of the encoder, h x w token grid, p x q patches of the encoder, C channels.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ross3d.data.atomic import remove_leftovers_of_the_dead
from ross3d.data.sources import list_files
from ross3d.data.tensor_cache import DamagedError, Stored, hash_file, load_any_cache, make_cache, write_cache


# Raise when the content of a file, or the meaning of its numbers, changes.
FEATURES_VERSION = 1
SUFFIX = "features"
Storage = Literal["float32", "bfloat16", "int8"]
STORAGES = ("float32", "bfloat16", "int8")
REMAKE = "make them with `python -m ross3d.training.geometry_features` and the settings of this run"
# Beginnings of the names of files that say nothing about views: boxes, bird's-eye pictures, the way up.
NO_VIEWS = ("boxes", "proposals", "bev", "axis_align")


def get_encoder_fingerprint(path: Path) -> str:
    """One hash of an encoder: of a published file, or of the weights and the config of a folder."""
    if path.is_file():
        return hash_file(path)[:16]
    digest = hashlib.sha256()
    for file in [*sorted(path.glob("*.safetensors")), path / "config.json"]:
        digest.update(f"{file.name} {hash_file(file)}".encode())
    return digest.hexdigest()[:16]


def describe_files(path: Path) -> list[list[Any]]:
    """Name and size of every file that a scan's views are read from: they stay the same when the scan is copied."""
    files = [file for file in list_files(path) if not file.name.startswith(NO_VIEWS)]
    return sorted([os.path.relpath(file, path), file.stat().st_size] for file in files)


def compress(features: torch.Tensor, storage: Storage) -> dict[str, torch.Tensor]:
    """Features (V, T, h, w, C) as they are stored."""
    if storage != "int8":
        return {"features": features.to(getattr(torch, storage)).contiguous()}
    # Scales are bfloat16, rounded up, so that no value leaves the range.
    scales = (features.float().abs().amax(dim=-1, keepdim=True) / 127).clamp(min=1e-30)
    scales = (scales * (1 + 2**-7)).bfloat16()
    return {"features": (features.float() / scales.float()).round().to(torch.int8), "scales": scales}


def restore(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Features (V, T, h, w, C) from `compress`, as floats."""
    features = tensors["features"]
    return features if "scales" not in tensors else features.float() * tensors["scales"].float()


def find_difference(kept: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first entry of `wanted` that differs: its name, the kept and the wanted value; of files the first one."""
    for name, now in wanted.items():
        before = kept.get(name)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            inner = find_difference(before, {**dict.fromkeys(before), **now})
            return f"{name}.{inner[0]}", *inner[1:]
        if name == "files":
            other = [item for item in (*before, *now) if (item in before) != (item in now)][0]
            sizes = [{file: f"{size} bytes" for file, size in side}.get(other[0], "no such file")
                     for side in (before, now)]  # fmt: skip
            return f"file {other[0]}", *sizes
        return name, before, now
    return None


def sum_identity(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


class SceneFeatures:
    """Cached features: for each scene `geometry_features` (V, T, h, w, C).

    Args:
        folder (`Path`): where they are stored.
        settings (`dict`): what they depend on in addition to the scene's files, plain values: how the scene is read
            and fitted, the encoder's `encoder_layers`, pictures and precision, and the grid. `encoder` (a fingerprint)
            and `encoder_depth` (number of its layers) are absent where only the files know them, and then not
            compared.
        storage (`str`): how new files store numbers; files are read whichever way theirs are.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], storage: Storage = "bfloat16"):
        self.folder = Path(folder)
        self.settings = settings
        self.storage = storage
        remove_leftovers_of_the_dead(self.folder)

    def get_file(self, path: Path) -> Path:
        return self.folder / f"{path.name}.{SUFFIX}"

    def get_identity(self, path: Path, depth: int | None = None) -> dict[str, Any]:
        """What a scene's features belong to, to detect changes; take it before the pictures are read.

        `depth` is the number of the encoder's layers, where the settings do not know it.
        """
        depth = self.settings.get("encoder_depth", depth)
        layers = [layer % depth for layer in self.settings["encoder_layers"]]
        identity = {"version": FEATURES_VERSION, "scene": path.name, "files": describe_files(path), **self.settings,
                    "encoder_layers": layers}  # fmt: skip
        # Without shared objects, which would change the bytes of the file from process to process.
        return json.loads(json.dumps(identity))

    def load(self, path: Path, check_tensors: bool = True) -> dict[str, Any] | None:
        """The file of a scene; None where there is none. Checking its tensors takes longer.

        Raises:
            DamagedError: for a broken file.
            ValueError: for features of other files or settings; names file and entry, and both values.
        """
        file = self.get_file(path)
        kept = load_any_cache(file, check_tensors=check_tensors)
        if kept is None:
            return None
        identity = kept["identity"]
        if kept["about"].get("identity") != sum_identity(identity):
            raise DamagedError(
                f"{file}: expected the description of the features as it was written, got another; remove the file,"
                f" and {REMAKE}."
            )
        found = find_difference(identity, self.get_identity(path, identity["encoder_depth"]))
        if found is not None:
            name, before, now = found
            other = "set --geometry_encoder null to use them all the same" if name == "encoder" else "restore it"
            raise ValueError(
                f"data.geometry_features: expected features made with {name} {now!r}, as in this run, got"
                f" {before!r} in {file}; {other}, or remove the folder {self.folder} and {REMAKE}."
            )
        return kept

    def has(self, path: Path) -> bool:
        """Whether the features of a scene exist; damaged ones count as absent.

        Raises:
            ValueError: for features of other files or settings, which are not replaced without being asked.
        """
        try:
            return self.load(path) is not None
        except DamagedError:
            return False

    def write(self, path: Path, identity: dict[str, Any], views: Sequence[str], features: torch.Tensor) -> None:
        """Store the features (V, T, h, w, C) of the named views.

        Raises:
            ValueError: for features that are not finite.
        """
        if not bool(features.isfinite().all()):
            raise ValueError(
                f"{path}: expected finite features of the geometry encoder, got some that are not; set"
                " model.distillation_config.encoder_dtype to another precision than float16, whose range ends at"
                " 65504, or copy the files of features again."
            )
        about = {"views": list(views), "identity": sum_identity(identity)}
        write_cache(self.get_file(path), make_cache(identity, about, compress(features, self.storage)))

    def refuse_missing(self, paths: Sequence[Path]) -> None:
        """Refuse to start if scenes have no file, or one of other files or settings; damage is found when it is read.

        Raises:
            ValueError: names how many are missing, and the first; or what differs.
        """
        missing = [path for path in paths if self.load(path, check_tensors=False) is None]
        if missing:
            raise ValueError(
                f"data.geometry_features: expected features of {len(paths)} scenes in {self.folder}, got none of"
                f" {len(missing)}, first {missing[0].name}; {REMAKE}, or leave out data.geometry_features."
            )

    def read(self, path: Path) -> Stored:
        """The features of a scene.

        Raises:
            ValueError: when there are none, damaged ones, or those of other files or settings.
        """
        kept = self.load(path)
        if kept is None:
            raise ValueError(
                f"data.geometry_features: expected features of {path} in {self.get_file(path)}, got no such file;"
                f" {REMAKE}, or leave out data.geometry_features."
            )
        return Stored({"geometry_features": restore(kept["tensors"])}, kept["about"]["views"])


# 3DRS's files


# Special tokens before the patches of a view, and the layers of the encoder, of which the last is stored.
NPZ_SPECIAL, NPZ_DEPTH = 5, 24


def list_npz_views(path: Path, count: int) -> list[str]:
    """Names of the views that 3DRS extracts features of: `count` of the scene's sorted JPEG files, evenly spread."""
    files = sorted(file.stem for file in path.glob("*.jpg"))
    return [files[place] for place in np.linspace(0, len(files) - 1, count).astype(int)] if files else []


def read_npz(file: Path, path: Path, views: Sequence[str], grid: tuple[int, int]) -> torch.Tensor:
    """Features (V, p, q, C), float32, of 3DRS's file of a scene.

    Such a file names neither its frames nor its pictures: which views it holds follows from the list of JPEG files in
    the scene's folder.

    Args:
        file (`Path`): `SCENE/vggt.npz`, with `feature` (1, V, 5 + p q, C) and `ps_idx` 5.
        path (`Path`): the scene's folder.
        views (sequence of `str`): names of the views that the run reads.
        grid: p and q of the run's pictures for the encoder.

    Raises:
        ValueError: names the file, and what it holds in place of the run's views.
    """
    where = f"{file}: expected features of the scene {path.name}"
    try:
        with np.load(file, allow_pickle=False) as stored:
            features, start = stored["feature"], int(stored["ps_idx"])
    # A damaged archive can make numpy and zipfile raise anything.
    except Exception as error:
        raise ValueError(
            f"{where} as 3DRS stores them, got a damaged or other file ({error}); copy it again."
        ) from error
    if features.ndim != 4 or len(features) != 1 or start != NPZ_SPECIAL:
        raise ValueError(
            f"{where} of shape (1, V, {NPZ_SPECIAL} + patches, C), got {features.shape} with ps_idx {start}; give"
            " files made by 3DRS's extraction."
        )
    listed = list_npz_views(path, features.shape[1])
    if listed != list(views):
        pairs = zip([*listed, None], [*views, None], strict=False)
        first = next((pair for pair in pairs if pair[0] != pair[1]), (len(listed), len(views)))
        raise ValueError(
            f"{where} of the views of this run, got {len(listed)} views where the run reads {len(views)}, first"
            f" difference {first[0]!r} against {first[1]!r}; set --data.num_views {features.shape[1]}, and read the"
            " scene from the folder that the features were made of."
        )
    if features.shape[2] != NPZ_SPECIAL + grid[0] * grid[1]:
        raise ValueError(
            f"{where} with {grid[0]} x {grid[1]} patches a view, as this run's pictures have, got"
            f" {features.shape[2] - NPZ_SPECIAL} patches; set model.distillation_config.encoder_image_size and"
            " processor.view_fit as 3DRS does (518, squash)."
        )
    return torch.from_numpy(features[0, :, NPZ_SPECIAL:]).float().unflatten(1, grid)
