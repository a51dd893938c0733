"""Build furnished rooms with questions on disk: `python -m ross3d.scenes.build --output DIR --train 4000 --val 300`.

    DIR/{train,val}/<scene_id>/           posed RGB-D folder (data/sources/rgbd_folder.py), boxes, bird's-eye picture
    DIR/annotations/{train,val}.jsonl     questions (data/annotations.py)
    DIR/manifest.json                     arguments, version and counts, written last

A matching manifest means the folder is complete and nothing is built. An interrupted build continues with the missing
scenes; each scene depends only on (seed, split, index), so the result is the same.
"""

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ross3d.command_line import COUNT, NUM_VIEWS, SEED, add_debug, parse_path, run_program
from ross3d.data.annotations import load_annotations, save_annotations
from ross3d.data.atomic import check_output_folder, remove_leftovers, write_text
from ross3d.data.bev import render_scene_bev
from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.data.text_files import read_json
from ross3d.scenes.questions import Candidate, balance_candidates, lookup_baseline, make_annotations, make_candidates
from ross3d.scenes.render import render_room
from ross3d.scenes.rooms import SPLITS, Room, get_split, make_cameras, make_room


# Raise when the same arguments would give other scenes or questions.
VERSION = 3


def make_scene(
    seed: int, split: str, index: int, num_views: int = 8, image_size: tuple[int, int] = (64, 64), bev_size: int = 96
) -> tuple[Scene, Room, np.random.Generator]:
    """Room `index` of `split` as a `Scene`; also the room itself, and its generator for further draws (questions)."""
    room, rng = make_room(seed, split, index)
    intrinsics, cam2world = make_cameras(room, rng, num_views, image_size, get_split(split).camera_heights)
    rendering = render_room(room, intrinsics, cam2world, image_size)
    shares = np.stack([(rendering.object_ids == k).mean((1, 2)) for k in range(len(room.furniture))])  # (K, V)
    labels = [
        {
            "category": piece.category,
            "color": piece.color,
            "size": piece.size,
            "yaw": round(float(piece.yaw), 4),
            "visible_share": round(float(share.max()), 5),
        }
        for piece, share in zip(room.furniture, shares, strict=True)
    ]
    scene = Scene(
        scene_id=get_scene_id(split, index),
        images=rendering.images,
        # Rounded as on disk, so that a scene in memory equals the one read.
        depth_maps=np.round(rendering.depth_maps * 1000).astype(np.float32) / np.float32(1000),
        intrinsics=intrinsics,
        cam2world=cam2world,
        view_names=[f"frame-{view:06d}" for view in range(num_views)],
        boxes=room.boxes,
        box_labels=labels,
    )
    picture = render_scene_bev(scene, bev_size)
    scene.bev_image, scene.bev_valid, scene.bev_bounds = picture.image, picture.valid, picture.bounds
    return scene, room, rng


def get_scene_id(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def build_scene(
    index: int, output: str, split: str, seed: int, num_views: int, image_size, bev_size: int
) -> list[Candidate]:
    """Write scene `index` unless it exists; return the questions that could be asked about it."""
    folder = Path(output) / split / get_scene_id(split, index)
    if folder.is_dir():
        room, rng = make_room(seed, split, index)
        shares = [row["visible_share"] for row in read_json(folder / "boxes.json", "a list of boxes")]
    else:
        scene, room, rng = make_scene(seed, split, index, num_views, image_size, bev_size)
        shares = [label["visible_share"] for label in scene.box_labels]
        write_rgbd_folder(scene, folder)
    question_rng = np.random.default_rng([seed, get_split(split).number, index, 1])
    return make_candidates(room, np.array(shares), question_rng)


def build_split(output: Path, split: str, count: int, arguments: dict, workers: int) -> dict[str, int]:
    """Build `count` scenes of `split` and their annotations; returns the number of questions by type."""
    (output / split).mkdir(parents=True, exist_ok=True)
    remove_leftovers(output / split)
    build = partial(
        build_scene,
        output=str(output),
        split=split,
        seed=arguments["seed"],
        num_views=arguments["num_views"],
        image_size=tuple(arguments["image_size"]),
        bev_size=arguments["bev_size"],
    )
    progress = partial(tqdm, total=count, desc=f"{split} scenes", unit="scene", mininterval=1.0)
    if workers > 1:
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            candidates = list(progress(pool.map(build, range(count), chunksize=8)))
    else:
        candidates = [build(index) for index in progress(range(count))]
    chosen = balance_candidates(candidates, arguments["seed"], split)
    annotations = [row for i, listed in enumerate(chosen) for row in make_annotations(get_scene_id(split, i), listed)]
    save_annotations(annotations, output / "annotations" / f"{split}.jsonl")
    kinds = [annotation.question_type for annotation in annotations]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def build_scenes(
    output: str | os.PathLike,
    num_train: int = 4000,
    num_val: int = 300,
    image_size: tuple[int, int] = (64, 64),
    num_views: int = 8,
    bev_size: int = 96,
    seed: int = 0,
    workers: int = 2,
) -> bool:
    """Build both splits into `output` unless a matching manifest says it is done; returns whether anything was built.

    Raises:
        ValueError: when `output` holds scenes of other arguments, or nothing can be written there.
        FileExistsError: when `output` holds something else.
    """
    output = Path(output)
    arguments = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "num_views": num_views,
        "bev_size": bev_size,
        "seed": seed,
    }
    manifest, begun = output / "manifest.json", output / "manifest.part.json"
    for file in (manifest, begun):
        if not file.is_file():
            continue
        found = read_json(file, "the record of how the scenes were built", keys=["arguments"])["arguments"]
        if found != arguments:
            changed = sorted(k for k in {*found, *arguments} if found.get(k) != arguments.get(k))
            raise ValueError(
                f"{output} has scenes built with { ({k: found.get(k) for k in changed}) }, but this command sets"
                f" { ({k: arguments.get(k) for k in changed}) }; choose another --output, or delete this folder."
            )
        if file == manifest:
            return False
    if not begun.is_file() and output.is_dir() and any(output.iterdir()):
        raise FileExistsError(
            f"{output}: expected a new or empty folder, or one of this program, found other files and no"
            " manifest.json; choose another --output."
        )
    check_output_folder(output, "--output")
    _write_json({"arguments": arguments}, begun)
    counts = {
        split: build_split(output, split, number, arguments, workers)
        for split, number in (("train", num_train), ("val", num_val))
        if number
    }
    _write_json({"arguments": arguments, "questions": counts}, manifest)
    begun.unlink()
    return True


def _write_json(value: dict, file: Path) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")


def format_baselines(output: str | os.PathLike) -> str:
    """Table of the accuracy that the questions' words alone give on the built validation split."""
    train, val = (load_annotations(Path(output) / "annotations" / f"{split}.jsonl") for split in ("train", "val"))
    lines = [f"{'type':<18}{'count':>7}{'majority':>10}{'look-up':>10}"]
    for kind, row in lookup_baseline(train, val).items():
        lines.append(f"{kind:<18}{row['count']:>7}{row['majority']:>10.3f}{row['lookup']:>10.3f}")
    return "\n".join(lines)


def parse_size(text: str) -> tuple[int, int]:
    """`64` -> (64, 64); `640x480` -> (640, 480), width first."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected SIZE or WIDTHxHEIGHT in pixels, got {text!r}")
    return int(parts[0]), int(parts[-1])


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=parse_path, help="data folder to write")
    parser.add_argument("--train", type=COUNT, default=4000, help="number of training scenes")
    parser.add_argument("--val", type=COUNT, default=300, help="number of validation scenes")
    parser.add_argument(
        "--image-size",
        type=parse_size,
        default=(64, 64),
        help="size of images in pixels: 64, or 640x480 (width x height)",
    )
    parser.add_argument("--views", type=NUM_VIEWS, default=8, help="views per scene")
    parser.add_argument("--bev-size", type=COUNT, default=96, help="side length of the bird's-eye picture, in pixels")
    parser.add_argument("--seed", type=SEED, default=0, help="random seed of rooms and questions")
    parser.add_argument("--workers", type=COUNT, default=2, help="processes")
    parser.add_argument(
        "--baselines", action="store_true", help="print the scores that the words of the questions alone give"
    )
    add_debug(parser)
    options = parser.parse_args(args)
    built = build_scenes(
        options.output,
        options.train,
        options.val,
        options.image_size,
        options.views,
        options.bev_size,
        options.seed,
        options.workers,
    )
    print(f"{options.output}: {'built' if built else 'already complete'}")
    if options.baselines:
        print(format_baselines(options.output))


if __name__ == "__main__":
    run_program(main)
