"""From a cold start to a model that can answer, against a plain model of the library of the same size.

    python bench/import_time.py [--rounds 5]

A fresh process each: import, processor and model from a folder. The plain one is the library's LLaVA-OneVision with a
SigLIP tower and a Qwen2 of the same sizes. Interleaved.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    SiglipImageProcessor,
)

from ross3d.bench.harness import compare, describe_run, print_line
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tools.make_tiny import make_tiny_checkpoint


START = (
    "from transformers import AutoProcessor, {cls};"
    " AutoProcessor.from_pretrained({path!r}, trust_remote_code=True);"
    " {cls}.from_pretrained({path!r}, trust_remote_code=True)"
)


def make_plain_checkpoint(path: Path, ours: Path) -> None:
    """The library's model with our tower and language model, and its processor with our tokenizer."""
    config = Ross3DForConditionalGeneration.from_pretrained(ours).config
    torch.manual_seed(0)
    plain = LlavaOnevisionConfig(
        vision_config=config.vision_config, text_config=config.text_config, image_token_index=config.image_token_id
    )
    LlavaOnevisionForConditionalGeneration(plain).save_pretrained(path)
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    tokenizer = AutoProcessor.from_pretrained(ours, trust_remote_code=True).tokenizer
    LlavaProcessor(SiglipImageProcessor(size=size), tokenizer, patch_size=8).save_pretrained(path)


def start(path: Path, cls: str) -> float:
    begin = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", START.format(path=str(path), cls=cls)]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def run(rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        ours, plain = make_tiny_checkpoint(Path(name) / "ours"), Path(name) / "plain"
        make_plain_checkpoint(plain, ours)
        ways = {"ours": (ours, "AutoModel"), "plain": (plain, "AutoModelForImageTextToText")}
        for path, cls in ways.values():
            start(path, cls)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (path, cls) in ways.items():
                seconds[name].append(start(path, cls))
    return {
        "bench": "import_time", **describe_run(), "rounds": rounds,
        "ours_over_plain": compare(seconds, "ours", "plain"),
        "seconds": round(min(seconds["ours"]), 2), "plain_seconds": round(min(seconds["plain"]), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    print_line(run(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
