"""What distillation costs a training step, with features from the encoder and from files.

    python bench/distillation.py [--views 32] [--scenes 4] [--rounds 5]

The settings are those of `configs/tiny_3drs.yaml`, on rooms that are made for it. Steps of the same rows take turns:
without distillation (`text`), with features from files, and with the encoder in the step (`online`). `targets` is the
time to get the features of a scene alone, from the encoder over from files.
"""

import argparse
import copy
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ross3d.bench.harness import ROOT, compare, describe_run, get_peak_gb, print_line, time_rounds
from ross3d.scenes.build import build_scenes
from ross3d.training import geometry_features
from ross3d.training.arguments import RunArguments, read_run_arguments
from ross3d.training.build import (
    build_collator,
    build_config,
    build_features,
    build_model,
    build_processor,
    build_rows,
)


CONFIG = "configs/tiny_3drs.yaml"
STORAGES = ("float32", "bfloat16", "int8")


class Steps:
    """Training steps of one model on the same rows, with and without distillation."""

    def __init__(self, folder: Path, num_views: int, num_scenes: int):
        build_scenes(folder / "rooms", num_train=num_scenes, num_val=1, num_views=num_views, workers=1)
        overrides = ["--data.root", str(folder / "rooms"), "--data.num_views", str(num_views)]
        overrides += ["--geometry_encoder", str(ROOT / "scenes" / "geometry_encoder")]
        arguments = read_run_arguments(ROOT / CONFIG, overrides)
        self.arguments = arguments
        processor = build_processor(arguments)
        self.model = build_model(arguments, processor).train()
        self.plain = copy.deepcopy(self.model)
        self.plain.config.distillation_config = None
        del self.plain.distillation_head
        config = build_config(arguments, processor)
        self.batches, self.stores, self.sizes = {}, {}, {}
        for storage in STORAGES:
            kept = self.keep(folder / storage, storage)
            geometry_features.main(kept)
            self.stores[storage] = build_features(kept, processor, config)
            files = list((folder / storage).iterdir())
            self.sizes[storage] = round(sum(file.stat().st_size for file in files) / len(files) / 1000)
        for name, run in (("online", arguments), ("files", self.keep(folder / "float32", "float32"))):
            rows = build_rows(run, processor, 1, config)
            self.scenes = rows.scenes
            self.batches[name] = build_collator(processor, config)([rows[index] for index in range(num_scenes)])
        self.batches["text"] = {k: v for k, v in self.batches["files"].items() if k != "geometry_features"}

    def keep(self, folder: Path, storage: str) -> RunArguments:
        """The run with features in files."""
        data = replace(self.arguments.data, geometry_features=str(folder), geometry_storage=storage)
        return replace(self.arguments, data=data)

    def step(self, name: str) -> float:
        model = self.plain if name == "text" else self.model
        model.zero_grad()
        output = model(**self.batches[name])
        output.loss.backward()
        return 0.0 if name == "text" else output.distill_loss.item()

    def encode(self) -> None:
        """The features of one scene, from the encoder."""
        batch = self.batches["online"]
        pictures, mask = batch["geometry_pixel_values"][:1], batch["view_mask"][:1]
        self.model.encode_geometry(geometry_pixel_values=pictures, view_mask=mask, heads=())

    def read(self, storage: str) -> torch.Tensor:
        """The features of one scene, from its file."""
        return self.stores[storage].read(self.scenes[0]).tensors["geometry_features"].float()


def run(num_views: int, num_scenes: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(Path(folder), num_views, num_scenes)
        ways = {name: lambda name=name: steps.step(name) for name in ("text", "files", "online")}
        reads = {storage: lambda storage=storage: steps.read(storage) for storage in STORAGES}
        for way in (*ways.values(), *reads.values()):
            way()
        seconds, results = time_rounds(ways | reads | {"encode": steps.encode}, rounds, dict.fromkeys(STORAGES, 20))
    if abs(results["files"] - results["online"]) > 1e-5 * results["online"]:
        raise RuntimeError(f"bench/distillation.py: expected equal losses, got {results}.")
    return {
        "bench": "distillation", **describe_run(), "views": num_views, "scenes": num_scenes, "rounds": rounds,
        "files_over_text": compare(seconds, "files", "text"), "online_over_text": compare(seconds, "online", "text"),
        "targets": {storage: compare(seconds, "encode", storage) for storage in STORAGES},
        "text_ms": round(1000 * min(seconds["text"])), "encode_ms": round(1000 * min(seconds["encode"]), 1),
        "kilobytes_a_scene": steps.sizes, "peak_gb": round(get_peak_gb(), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of a scene")
    parser.add_argument("--scenes", type=int, default=4, help="scenes of a step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.scenes, options.rounds))


if __name__ == "__main__":
    main()
