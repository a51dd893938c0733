"""Training rows from pictures on disk, against rows from prepared scenes.

    python bench/loader.py [--scenes 4] [--views 32] [--rounds 3]

The scenes are rooms of our own, 640 x 480 pixels, JPEG colour and 16-bit PNG depth, processed as published (384 x 384
pixels, 27 x 27 patches). One epoch in turn from the pictures and from what an earlier epoch prepared; rows have to be
equal, bit for bit.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ross3d.bench.harness import compare, describe_run, print_line, time_rounds
from ross3d.data.arguments import DataArguments
from ross3d.data.dataset import SceneRows
from ross3d.data.prepared import PreparedScenes, SceneReader
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.sources.rgbd_folder import read_rgbd_folder, write_rgbd_folder
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.scenes.build import make_scene
from ross3d.tests.published import make_base_tokenizer


def write_scenes(folder: Path, num_scenes: int, num_views: int) -> list[Path]:
    paths = []
    for index in range(num_scenes):
        scene, *_ = make_scene(0, "train", index, num_views=num_views, image_size=(640, 480), bev_size=432)
        paths.append(write_rgbd_folder(scene, folder / scene.scene_id))
    return paths


def run(num_scenes: int, num_views: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_scenes(folder / "scenes", num_scenes, num_views)
        processor = Ross3DProcessor(image_processor=Ross3DImageProcessor(), tokenizer=make_base_tokenizer())
        prepared = PreparedScenes(folder / "prepared", processor, read_rgbd_folder)
        make_proposals = partial(ProposalMaker("--data.proposals").make_set, source="jittered")
        plain, later = (
            SceneRows(DataArguments(), paths, {}, processor, reader, make_proposals, seed=0)
            for reader in (SceneReader(read_rgbd_folder), prepared)
        )
        for place in range(num_scenes):
            first, second = plain[place], later[place]
            wrong = [key for key in first if not torch.equal(first[key].nan_to_num(7), second[key].nan_to_num(7))]
            if wrong or first.keys() != second.keys():
                raise RuntimeError(f"bench/loader.py: expected the same rows, got others in {wrong}.")

        def read(rows: SceneRows) -> int:
            return sum(rows[place]["pixel_values"].shape[0] for place in range(num_scenes))

        seconds, _ = time_rounds({"pictures": lambda: read(plain), "prepared": lambda: read(later)}, rounds)
        size = sum(file.stat().st_size for file in (folder / "prepared").iterdir()) / num_scenes / 1e6
    return {
        "bench": "loader", **describe_run(), "scenes": num_scenes, "views": num_views, "rounds": rounds,
        "pictures_over_prepared": compare(seconds, "pictures", "prepared"),
        "prepared_ms": round(1000 * min(seconds["prepared"]) / num_scenes, 1), "mb_a_scene": round(size, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4, help="number of scenes")
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.scenes, options.views, options.rounds))


if __name__ == "__main__":
    main()
