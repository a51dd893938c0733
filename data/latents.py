"""The teacher's latents of scenes, cached on disk, so that training steps do not run the teacher.

One file per scene, made by `python -m ross3d.training.latents`. Shapes: V views, z channels of a latent, a x a its
size.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from ross3d.data.atomic import remove_leftovers_of_the_dead
from ross3d.data.tensor_cache import (
    Stored,
    describe_source,
    get_file_name,
    load_cache,
    load_cache_or_none,
    make_cache,
    write_cache,
)


# Raise when the content of a file, or the meaning of its numbers, changes.
LATENTS_VERSION = 2


def get_teacher_fingerprint(folder: Path) -> str:
    """One hash of a teacher's config and weights."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix in {".json", ".safetensors", ".bin"}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


class SceneLatents:
    """Cached latents: for each scene `view_latents` (V, 2z, a, a) and, with a bird's-eye picture, `bev_latents`
    (2z, b, b), both posterior mean and log-variance.

    Args:
        folder (`Path`): where they are stored.
        settings (`dict`): what they depend on in addition to the scene's files: processor, model and teacher.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.settings = settings
        remove_leftovers_of_the_dead(self.folder)

    def get_file(self, path: Path) -> Path:
        return self.folder / get_file_name(path, "latents")

    def get_identity(self, path: Path) -> dict[str, Any]:
        """The identity of a scene's latents, to detect changes; take it before the pictures are read."""
        return {"version": LATENTS_VERSION, "settings": self.settings, "source": describe_source(path)}

    def has(self, path: Path) -> bool:
        """Whether the latents of a scene exist; damaged ones count as absent, with a warning."""
        return load_cache_or_none(self.get_file(path), self.get_identity(path)) is not None

    def write(self, path: Path, identity: dict[str, Any], latents: dict[str, torch.Tensor]) -> None:
        write_cache(self.get_file(path), make_cache(identity, {}, latents))

    def refuse_missing(self, paths: list[Path]) -> None:
        """Refuse to start if scenes have no file; whether a file is the right one is checked when it is read.

        Raises:
            ValueError: names how many are missing, and the first.
        """
        missing = [path for path in paths if not self.get_file(path).is_file()]
        if missing:
            raise ValueError(
                f"data.latents: expected the teacher's latents of {len(paths)} scenes in {self.folder}, got none of"
                f" {len(missing)}, first {missing[0].name}; make them with `python -m ross3d.training.latents"
                " CONFIG.yaml`, or leave out data.latents."
            )

    def read(self, path: Path) -> Stored:
        """Latents of the scene in this folder.

        Raises:
            ValueError: when there are none, or those of other pictures, settings or another teacher.
        """
        kept = load_cache(self.get_file(path), self.get_identity(path))
        if kept is None:
            found = "latents of other files or settings" if self.get_file(path).is_file() else "none"
            raise ValueError(
                f"data.latents: expected the teacher's latents of {path} in {self.get_file(path)}, got {found}; make"
                " them with `python -m ross3d.training.latents CONFIG.yaml`, or leave out data.latents."
            )
        return Stored(dict(kept["tensors"]))
