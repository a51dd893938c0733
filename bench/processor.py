"""What a processor takes for the views of one scene.

    python bench/processor.py [--views 32] [--rounds 5]

Pictures of 640 x 480 pixels in memory, with depth, cameras and proposals, to views of 384 pixels in patches of 14, as
the released model reads them. `bench/checkouts.py` compares two commits with it.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from transformers.image_processing_utils import SizeDict

from ross3d.bench.harness import describe_run, print_line, time_rounds
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.scenes.build import make_scene
from ross3d.tools.make_tiny import make_tiny_checkpoint


SIZE, PATCH = 384, 14
PICTURE_SIZE = (640, 480)


def make_processor(folder: Path) -> Ross3DProcessor:
    processor = Ross3DProcessor.from_pretrained(make_tiny_checkpoint(folder))
    processor.image_processor.size = SizeDict(height=SIZE, width=SIZE)
    processor.patch_size, processor.max_position_embeddings = PATCH, 32768
    return processor


def run(num_views: int, rounds: int) -> dict[str, Any]:
    scene, *_ = make_scene(
        seed=0, split="val", index=0, num_views=num_views, image_size=PICTURE_SIZE, bev_size=96
    )  # fmt: skip
    inputs = {
        "images": [Image.fromarray(picture) for picture in scene.images],
        "depth_maps": scene.depth_maps,
        "intrinsics": scene.intrinsics,
        "cam2world": scene.cam2world,
        "proposal_boxes": scene.boxes,
        "text": ["How many chairs are in the room?"],
    }
    with tempfile.TemporaryDirectory() as folder:
        processor = make_processor(Path(folder) / "model")
        ways = {"processor": lambda: processor(**inputs, return_tensors="pt")}
        time_rounds(ways, 1)
        seconds, results = time_rounds(ways, rounds)
    sums = {name: float(tensor.double().sum()) for name, tensor in results["processor"].items()}
    return {
        "bench": "processor", **describe_run(), "views": num_views, "boxes": len(scene.boxes), "rounds": rounds,
        "seconds": round(min(seconds["processor"]), 3), "sums": sums,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of pictures")
    parser.add_argument("--rounds", type=int, default=5, help="how often it is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.rounds))


if __name__ == "__main__":
    main()
