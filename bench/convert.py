"""Convert a made-up 7B checkpoint and back; print peak memory, time and whether every tensor arrived, as a JSON line.

    python bench/convert.py FOLDER [--small]

The checkpoint has the released names, shapes and type (bfloat16, 16 GB in four shards). Its files are sparse: each
tensor begins with random bytes, the rest are holes. Converted and converted back it fills 33 GB of FOLDER, which is
emptied at the end. Peak memory is what `/usr/bin/time -v` calls maximum resident set size; the bound is the largest
shard that is read plus 2 GB.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from huggingface_hub import split_torch_state_dict_into_shards

from ross3d.bench.harness import ROOT, describe_run, print_line
from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.published import make_base_tokenizer
from ross3d.tools.checkpoints.files import list_tensors
from ross3d.tools.checkpoints.ingredients import TEACHERS
from ross3d.tools.checkpoints.keys import to_ours, to_published


SAMPLE = 2048
# Tokens of Qwen2 before its marks: the scene tokens come to lie at the released ids.
NUM_WORDS = 151643
CONFIG = {
    "model_type": "ross3d_qwen", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
    "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_pixel_decoder": "./checkpoints/FLUX.1-dev",
    "ground_token_ids": [151647], "coord_token_ids": [151648], "bos_token_id": 151643, "eos_token_id": 151645,
}  # fmt: skip


def get_released_shapes(small: bool) -> dict[str, torch.Tensor]:
    """The released names with tensors on the meta device; `small` keeps two layers of the language model."""
    config = Ross3DConfig(denoiser_config=Ross3DDenoiserConfig(condition="pooled").to_dict())
    if small:
        config.text_config.num_hidden_layers = 2
        config.text_config.layer_types = config.text_config.layer_types[:2]
    with torch.device("meta"):
        model = Ross3DForConditionalGeneration(config).to(torch.bfloat16).state_dict()
        vae = AutoencoderKL.from_config(TEACHERS["FLUX.1-dev"]).to(torch.bfloat16).state_dict()
    tensors = {to_published(name): tensor for name, tensor in model.items()}
    return tensors | {to_published(f"teacher.{name}"): tensor for name, tensor in vae.items()}


def write_sparse(file: Path, tensors: Mapping[str, torch.Tensor], generator: random.Random) -> None:
    """A safetensors file whose tensors begin with random bytes and are holes from there on."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
        for record in header.values():
            start, stop = record["data_offsets"]
            opened.seek(8 + len(text) + start)
            opened.write(generator.randbytes(min(SAMPLE, stop - start)))


def write_released(folder: Path, small: bool) -> None:
    """The made-up checkpoint, its tokenizer included."""
    folder.mkdir(parents=True)
    tensors = get_released_shapes(small)
    split = split_torch_state_dict_into_shards(tensors, max_shard_size="5GB")
    generator = random.Random(0)
    for file, names in split.filename_to_tensors.items():
        write_sparse(folder / file, {name: tensors[name] for name in names}, generator)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | ({"num_hidden_layers": 2} if small else {})))
    make_base_tokenizer(num_words=NUM_WORDS).save_pretrained(folder)


def run_converter(*arguments: str) -> tuple[float, float]:
    """Seconds and peak memory in GB of `tools/convert.py` in a process of its own.

    Raises:
        RuntimeError: when it fails.
    """
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(ROOT / "tools" / "convert.py"), *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"tools/convert.py {' '.join(arguments)}: expected exit status 0, got {status}.")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024 / 1e9


def read_sample(tensor) -> torch.Tensor:
    return tensor.read().flatten()[: SAMPLE // 2].clone().view(torch.int16)


def count_arrived(published: Path, ours: Path) -> int:
    """How many published tensors lie in our folder under their name, shape and first bytes; all others are errors."""
    found = list_tensors(ours) | {f"teacher.{name}": tensor for name, tensor in list_tensors(ours / "teacher").items()}
    return count_same({to_ours(name): tensor for name, tensor in list_tensors(published).items()}, found)


def count_same(first: Mapping, second: Mapping) -> int:
    if first.keys() != second.keys():
        raise RuntimeError(f"expected the same names, got {sorted(first.keys() ^ second.keys())[:3]} on one side.")
    wrong = [
        name
        for name, tensor in first.items()
        if tensor.shape != second[name].shape or not torch.equal(read_sample(tensor), read_sample(second[name]))
    ]
    if wrong:
        raise RuntimeError(f"expected the same tensors, got others for {wrong[:3]}.")
    return len(first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder that the figures are made in")
    parser.add_argument("--small", action="store_true", help="two of 28 layers, 4 GB")
    options = parser.parse_args()
    folder = options.folder / "ross3d_convert"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        print_line(measure(folder, options.small))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, small: bool) -> dict[str, Any]:
    """There and back, compared after each way."""
    published, ours, back = (folder / name for name in ("published", "ours", "back"))
    write_released(published, small)
    sizes = sorted(file.stat().st_size / 1e9 for file in published.glob("*.safetensors"))
    forth = run_converter("--from", str(published), "--to", str(ours))
    arrived = count_arrived(published, ours)
    again = run_converter("--from", str(ours), "--to", str(back), "--reverse")
    returned = count_same(list_tensors(published), list_tensors(back))
    return {
        "bench": "convert", **describe_run(), "tensors": arrived, "tensors_back": returned,
        "checkpoint_gb": round(sum(sizes), 2), "largest_shard_gb": round(sizes[-1], 2),
        "bound_gb": round(sizes[-1] + 2, 2), "peak_gb": round(forth[1], 2), "peak_back_gb": round(again[1], 2),
        "seconds": round(forth[0], 1), "seconds_back": round(again[0], 1),
    }  # fmt: skip


if __name__ == "__main__":
    main()
