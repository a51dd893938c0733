"""The teacher's latents of scenes, kept on disk: training rows carry them, and no step passes pictures to the teacher.

A file a scene, made by `python -m ross3d.training.latents`. Shapes: V views, z channels of a latent, a x a its size.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from ross3d.data.kept import describe_source, load_kept, make_kept, write_kept


# Changes whenever what a file holds, or what the numbers in it mean, changes.
LATENTS_VERSION = 1


def get_teacher_fingerprint(folder: Path) -> str:
    """One hash of a teacher's config and weights."""
    digest = hashlib.sha256()
    for path in sorted(path for path in Path(folder).iterdir() if path.suffix in {".json", ".safetensors", ".bin"}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()


class SceneLatents:
    """Kept latents: for each scene `view_latents` (V, 2z, a, a) and, with a picture from above, `bev_latents`
    (2z, b, b), both posterior mean and log-variance.

    Args:
        folder (`Path`): where they are kept.
        settings (`dict`): what they depend on beside the scene's files: of processor, model and teacher.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.folder = Path(folder)
        self.settings = settings

    def get_file(self, path: Path) -> Path:
        return self.folder / f"{path.name}.latents"

    def get_identity(self, path: Path) -> dict[str, Any]:
        source = {"path": str(path.resolve()), "source": describe_source(path)}
        return {"version": LATENTS_VERSION, "settings": self.settings, **source}

    def has(self, path: Path) -> bool:
        return load_kept(self.get_file(path), self.get_identity(path)) is not None

    def write(self, path: Path, latents: dict[str, torch.Tensor]) -> None:
        write_kept(self.get_file(path), make_kept(self.get_identity(path), {}, latents))

    def read(self, path: Path) -> dict[str, torch.Tensor]:
        """Latents of the scene in this folder.

        Raises:
            ValueError: when there are none, or those of other pictures, settings or another teacher.
        """
        kept = load_kept(self.get_file(path), self.get_identity(path))
        if kept is None:
            found = "those of other files or settings" if self.get_file(path).is_file() else "none"
            raise ValueError(
                f"data.latents: expected the teacher's latents of {path} in {self.get_file(path)}, got {found}; make"
                " them with `python -m ross3d.training.latents CONFIG.yaml`, or leave data.latents out."
            )
        return dict(kept["tensors"])
