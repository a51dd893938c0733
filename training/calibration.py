"""`calibration.json` beside a model's weights: for which weights it holds, and what the model sees of a scan."""

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from ross3d.data.atomic import write_text
from ross3d.data.likeness import check_scans, list_unlike, measure_scan
from ross3d.tasks.confidence import CALIBRATION_FILE, REMEDY, read_calibration


# Lists of numbers, which JSON with indents would write a number a line.
NUMBER_LIST = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")


def get_weights_mark(folder: Path) -> str:
    """A hash of the first row of every weight in a checkpoint folder, however it is divided into files.

    Training, and merging an adapter, change it; sharding and the Hub do not. It reads a thousandth of the weights.
    """
    digests = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, "pt") as stored:
            for name in list(stored.keys()):
                part = stored.get_slice(name)
                rows = part[:1] if part.get_shape() else stored.get_tensor(name)
                raw = rows.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                digests[name] = hashlib.sha256(raw).hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def load_calibration(folder: Path) -> dict[str, Any] | None:
    """The calibration of a model folder; None, with a warning, if it was made for other weights, and None without one.

    Raises:
        ValueError: for a damaged file; names it.
    """
    content = read_calibration(folder)
    if content is None:
        return None
    file = folder / CALIBRATION_FILE
    if content["scans"] is not None:
        check_scans(content["scans"], f"{file}, scans", REMEDY)
    if content["weights"] != get_weights_mark(folder):
        warnings.warn(
            f"{file}: made for other weights than those beside it, so it is not used; {REMEDY}", stacklevel=2
        )
        return None
    return content


def save_calibration(folder: Path, content: dict[str, Any]) -> Path:
    """Write `calibration.json` into a model folder; returns its path."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    text = NUMBER_LIST.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
    write_text(folder / CALIBRATION_FILE, f"{text}\n")
    return folder / CALIBRATION_FILE


@torch.no_grad()
def measure_seen(
    model: Any, processor: Any, inputs: Any, cam2world: np.ndarray | None
) -> tuple[dict[str, float], np.ndarray]:
    """The numbers of a scan as `measure_scan` gives them, and its look (D,): mean and spread of its patches' features.

    Args:
        inputs: of the processor, for one scene. cam2world (V, 4, 4), *optional*: the scene's cameras.
    """
    values, settings = inputs["pixel_values"], processor.image_processor
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (settings.image_mean, settings.image_std))
    pixels = (values[0].float().cpu() * std + mean).numpy()
    places = [inputs[name][0].cpu().numpy() if name in inputs else None for name in ("patch_coords", "patch_valid")]
    features = model.get_image_features(values.to(model.device, model.dtype)).patch_features.float().flatten(0, 1)
    look = torch.cat([features.mean(dim=0), features.std(dim=0)]).cpu().numpy().astype(np.float64)
    return measure_scan(pixels, *places, cam2world), look


def list_scan_warnings(
    calibration: dict[str, Any] | None, model: Any, processor: Any, inputs: Any, cam2world: np.ndarray | None
) -> list[str]:
    """A sentence for each thing in which a scan is unlike those of the training; none without a comparison."""
    if calibration is None or calibration["scans"] is None:
        return []
    return list_unlike(*measure_seen(model, processor, inputs, cam2world), calibration["scans"])


__all__ = [
    "get_weights_mark",
    "list_scan_warnings",
    "load_calibration",
    "measure_seen",
    "save_calibration",
]
