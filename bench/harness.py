"""What every harness shares: a small model with a realistic scene, interleaved rounds, and the line of figures."""

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.views_ross3d import get_views


ROOT = Path(__file__).resolve().parents[1]
IMAGE, GROUND, COORD, EOS, PAD = 1001, 1002, 1003, 1004, 1005
VOCAB_SIZE = 1024


def make_config(text: dict[str, Any], denoiser: dict[str, Any] | None = None) -> Ross3DConfig:
    """Views of 27 x 27 patches, 210 positions each, as in the released model; a narrow tower and a language model of
    the given sizes."""
    return Ross3DConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 384,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": VOCAB_SIZE,
            "max_position_embeddings": 32768,
            "eos_token_id": EOS,
            "pad_token_id": PAD,
            "initializer_range": 0.1,
            **text,
        },
        denoiser_config=denoiser,
        image_token_id=IMAGE,
        ground_token_id=GROUND,
        coord_token_id=COORD,
    )


def make_model(config: Ross3DConfig, seed: int = 0) -> Ross3DForConditionalGeneration:
    torch.manual_seed(seed)
    model = Ross3DForConditionalGeneration(config).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def make_scene(config: Ross3DConfig, num_views: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The tensors of one scene alone: 20 words, then its views, as the processor gives them."""
    grid, size = config.view_grid_size, config.vision_config.image_size
    words = torch.randint(0, 1000, (20,), generator=generator)
    ids = torch.cat([words, torch.full((num_views * get_views(config).layout.num_positions,), IMAGE)])[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "segment_ids": torch.zeros_like(ids),
        "pixel_values": torch.rand(1, num_views, 3, size, size, generator=generator) * 2 - 1,
        "view_mask": torch.ones(1, num_views, dtype=torch.bool),
        "patch_coords": torch.rand(1, num_views, grid, grid, 3, generator=generator) * 6 - 3,
        "patch_valid": torch.ones(1, num_views, grid, grid, dtype=torch.bool),
    }


def make_questions(count: int, lengths: tuple[int, int], generator: torch.Generator) -> list[torch.Tensor]:
    """Token ids of questions, each of a length between the two."""
    low, high = lengths
    sizes = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    return [torch.randint(0, 1000, (size,), generator=generator) for size in sizes]


def pad_left(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) and mask (B, L)."""
    length = max(len(row) for row in rows)
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, length - len(row) :] = row
        mask[place, length - len(row) :] = 1
    return ids, mask


def time_rounds(
    ways: dict[str, Callable[[], Any]], rounds: int, repeats: dict[str, int] | None = None
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each way in each round, one after the other, and what each returned last.

    A way that is so fast that a neighbour's work would decide its time is repeated; the middle of its times counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(rounds):
        for name, way in ways.items():
            times = []
            for _ in range((repeats or {}).get(name, 1)):
                begin = time.perf_counter()
                results[name] = way()
                times.append(time.perf_counter() - begin)
            seconds[name].append(statistics.median(times))
    return seconds, results


def compare(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster: least, middle and largest of the rounds' ratios."""
    ratios = sorted(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))
    return {
        "min": round(ratios[0], 2),
        "median": round(statistics.median(ratios), 2),
        "max": round(ratios[-1], 2),
    }


def get_peak_gb() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def describe_run(device: str = "cpu") -> dict[str, Any]:
    """What every line of figures begins with: commit and hardware."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    name = torch.cuda.get_device_name() if device != "cpu" else f"{platform.machine()}, {os.cpu_count()} cores"
    return {"commit": commit, "hardware": name, "threads": torch.get_num_threads()}


def print_line(figures: dict[str, Any]) -> None:
    print(json.dumps(figures), flush=True)
