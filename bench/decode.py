"""Pictures decoded at reduced size (`data.decode: reduced`), against exact ones.

    python bench/decode.py [--views 32] [--rounds 5]

The scene is a room of our own in ScanNet's sizes: JPEG colour of 1296 x 968 pixels at quality 75, with the noise of a
camera, and 16-bit PNG depth of 640 x 480. Two ratios of time: of decoding its pictures, and of reading the scene and
fitting it to the model. The differences are those of the pictures that the model gets (384 x 384, of 255), once the
processor has resized both.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ross3d.bench.harness import compare, describe_run, print_line, time_rounds
from ross3d.data.sources.frames import MILLIMETRES_PER_METRE, decode_color, scale_intrinsics
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import make_cameras, make_room
from ross3d.tests.published import make_base_tokenizer


COLOR_SIZE, DEPTH_SIZE = (1296, 968), (640, 480)
QUALITY, NOISE = 75, 4.0
REPEATS = 5


def write_scene(folder: Path, num_views: int) -> Path:
    room, rng = make_room(0, "train", 0)
    color_intrinsics, cam2world = make_cameras(room, rng, num_views, COLOR_SIZE)
    depth_intrinsics = scale_intrinsics(color_intrinsics, COLOR_SIZE, DEPTH_SIZE)
    folder.mkdir()
    np.savetxt(folder / "camera-intrinsics.txt", depth_intrinsics)
    for view in range(num_views):
        stem, camera = folder / f"frame-{view:06d}", cam2world[view : view + 1]
        image = render_room(room, color_intrinsics, camera, COLOR_SIZE).images[0]
        noisy = np.clip(image + rng.normal(0, NOISE, image.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(f"{stem}.color.jpg", quality=QUALITY)
        depth = render_room(room, depth_intrinsics, camera, DEPTH_SIZE).depth_maps[0]
        millimetres = np.round(depth * MILLIMETRES_PER_METRE).astype(np.uint16)
        Image.fromarray(millimetres).save(f"{stem}.depth.png")
        np.savetxt(f"{stem}.pose.txt", camera[0])
    return folder


def run(num_views: int, rounds: int) -> dict[str, Any]:
    processor = Ross3DProcessor(image_processor=Ross3DImageProcessor(), tokenizer=make_base_tokenizer())
    options = {"exact": None, "reduced": processor.view_size}
    with tempfile.TemporaryDirectory() as name:
        folder = write_scene(Path(name) / "room", num_views)
        files = sorted(folder.glob("*.jpg"))

        def decode(reduce_to: int | None) -> None:
            for file in files:
                decode_color(file, file, reduce_to)

        def fit(reduce_to: int | None) -> torch.Tensor:
            scene = read_rgbd_folder(folder, reduce_to=reduce_to)
            return processor.fit_scene(scene.images, scene.depth_maps, scene.intrinsics, scene.cam2world).pictures

        decoding, fitting = ({way: partial(f, size) for way, size in options.items()} for f in (decode, fit))
        repeats = dict.fromkeys(options, REPEATS)
        decode_seconds, _ = time_rounds(decoding, rounds, repeats)
        scene_seconds, fitted = time_rounds(fitting, rounds, repeats)
        reduced_size = decode_color(files[0], files[0], processor.view_size)[0].shape[1::-1]
        megabytes = sum(file.stat().st_size for file in files) / num_views / 1e6
    difference = (fitted["exact"].int() - fitted["reduced"].int()).abs()
    return {
        "bench": "decode", **describe_run(), "views": num_views, "rounds": rounds, "mb_a_picture": round(megabytes, 2),
        "from": list(COLOR_SIZE), "to": list(reduced_size),
        "pictures_exact_over_reduced": compare(decode_seconds, "exact", "reduced"),
        "fitted_scene_exact_over_reduced": compare(scene_seconds, "exact", "reduced"),
        "exact_ms_a_view": round(1000 * min(decode_seconds["exact"]) / num_views, 1),
        "reduced_ms_a_view": round(1000 * min(decode_seconds["reduced"]) / num_views, 1),
        "difference": {"max": int(difference.max()), "mean": round(difference.float().mean().item(), 2)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.rounds))


if __name__ == "__main__":
    main()
