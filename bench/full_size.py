"""A 7B model of random weights, converted from the published format, answers and trains once; prints a JSON line.

    python bench/full_size.py FOLDER [--device cuda] [--views 32] [--small]

Writes 33 GB into FOLDER and empties it at the end. On a GPU it needs 80 GB for the training step: weights, gradients
and both moments in bfloat16, activations recomputed. Times are of one call each, after one that is not counted.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModel, AutoProcessor

from ross3d.bench.convert import CONFIG, NUM_WORDS, get_released_shapes, run_converter
from ross3d.bench.harness import describe_run, print_line
from ross3d.tests.published import make_base_tokenizer
from ross3d.tools.checkpoints.files import MadeTensor, write_shards


NEW_TOKENS = 32


def write_random(folder: Path, small: bool) -> None:
    """A published checkpoint whose matrices are drawn at a spread of 0.02 and whose norms are 1."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: torch.Size) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.bfloat16) * 0.02

    tensors = {}
    for name, tensor in get_released_shapes(small).items():
        is_norm = "norm" in name and name.endswith("weight")
        make = (lambda shape=tensor.shape: torch.ones(shape)) if is_norm else (lambda shape=tensor.shape: draw(shape))
        tensors[name] = MadeTensor(tuple(tensor.shape), torch.bfloat16, make)
    write_shards(tensors, folder, "model", "5GB", tqdm(desc="random weights", unit="B", unit_scale=True))
    (folder / "config.json").write_text(json.dumps(CONFIG | ({"num_hidden_layers": 2} if small else {})))
    make_base_tokenizer(num_words=NUM_WORDS).save_pretrained(folder)


def make_scan(num_views: int) -> dict[str, Any]:
    """Random pictures and depth of 640 x 480 pixels from cameras inside of a room."""
    rng = np.random.default_rng(0)
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    poses[:, :3, 3] = rng.uniform(-2, 2, (num_views, 3))
    return {
        "images": list(rng.integers(0, 256, (num_views, 480, 640, 3), dtype=np.uint8)),
        "depth_maps": rng.uniform(1, 4, (num_views, 480, 640)).astype(np.float32),
        "intrinsics": np.array([[577.0, 0, 320], [0, 577, 240], [0, 0, 1]]),
        "cam2world": poses,
    }


def measure(device: str, call) -> tuple[float, float]:
    """Seconds of one call and its peak memory on the device in GB (0 on a CPU)."""
    is_gpu = device != "cpu"
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    call()
    if is_gpu:
        torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() / 1e9 if is_gpu else 0.0
    return time.perf_counter() - begin, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that the figures are made in")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--small", action="store_true", help="two of 28 layers, to try the script")
    options = parser.parse_args()
    folder = options.folder / "ross3d_full_size"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        print_line(run(folder, options.device, options.views, options.small))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(folder: Path, device: str, num_views: int, small: bool) -> dict[str, Any]:
    """Convert, answer, train."""
    write_random(folder / "published", small)
    seconds_convert, peak_convert = run_converter("--from", str(folder / "published"), "--to", str(folder / "ours"))
    shutil.rmtree(folder / "published")

    processor = AutoProcessor.from_pretrained(folder / "ours", trust_remote_code=True)
    model = AutoModel.from_pretrained(folder / "ours", trust_remote_code=True, dtype=torch.bfloat16).to(device)
    scan = make_scan(num_views)
    asked = processor(**scan, text="How many chairs are there?").to(device, torch.bfloat16)

    def answer() -> None:
        model.generate(**asked, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)

    answer()
    seconds_answer, peak_answer = measure(device, answer)

    model.attach_teacher(str(folder / "ours" / "teacher"))
    model.train()
    model.model.vision_tower.requires_grad_(False)
    model.activation_checkpointing_enable()
    bev = np.random.default_rng(1).integers(1, 256, (432, 432, 3), dtype=np.uint8)
    row = processor(**scan, text="How many chairs are there?", answers="four", bev_image=bev)
    row = row.to(device, torch.bfloat16)
    row["bool_masked_views"] = (torch.arange(num_views) % 4 == 3)[None].to(device)
    row["row_seed"] = torch.tensor([0], device=device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0)
    losses = {}

    def step() -> None:
        output = model(**row)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for name in ("lm_loss", "view_loss", "bev_loss"):
            losses[name] = round(getattr(output, name).item(), 3)

    step()
    seconds_step, peak_step = measure(device, step)
    return {
        "bench": "full_size", **describe_run(device), "views": num_views, "small": small,
        "parameters": sum(p.numel() for p in model.parameters()), "tokens": row["input_ids"].shape[1],
        "convert_seconds": round(seconds_convert, 1), "convert_peak_gb": round(peak_convert, 2),
        "answer_seconds": round(seconds_answer, 2), "answer_peak_gb": round(peak_answer, 1),
        "new_tokens": NEW_TOKENS, "step_seconds": round(seconds_step, 2), "step_peak_gb": round(peak_step, 1),
        "losses": losses,
    }  # fmt: skip


if __name__ == "__main__":
    main()
