"""Build furnished rooms with questions on disk: `python -m ross3d.scenes.build --output DIR --train 4000 --val 300`.

    DIR/SPLIT/<scene_id>/           posed RGB-D folder (data/sources/rgbd_folder.py), boxes, bird's-eye picture
    DIR/annotations/SPLIT.jsonl     questions (data/annotations.py)
    DIR/manifest.json               arguments, version and counts of each split, written last

Splits that a matching manifest lists are complete and are not built again; others are added to the folder. An
interrupted build continues with the missing scenes; each scene depends only on (seed, split, index), so the result is
the same. `--splits` names those of `SPLITS` in scenes/rooms.py, `--questions spatial` adds the questions of
scenes/spatial.py to the standard ones, which stay as they are.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ross3d.command_line import COUNT, NUM_VIEWS, SEED, add_debug, parse_path, run_program
from ross3d.data.annotations import load_annotations, save_annotations
from ross3d.data.atomic import check_output_folder, remove_leftovers, write_text
from ross3d.data.bev import render_scene_bev
from ross3d.data.processes import open_pool
from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.data.text_files import read_json
from ross3d.scenes.lookup import score_words_only
from ross3d.scenes.questions import (
    Candidate,
    balance_candidates,
    make_annotations,
    make_candidates,
    make_pieces,
)
from ross3d.scenes.render import Rendering, render_room
from ross3d.scenes.rooms import SPLITS, Room, get_split, make_cameras, make_room
from ross3d.scenes.spatial import SpatialCandidate, balance_spatial, make_spatial_candidates


# Raise when the same arguments would give other scenes or questions.
VERSION = 3
DEFAULT_SPLITS = ("train", "val")
STANDARD, SPATIAL = "standard", "spatial"
QUESTION_SETS = (STANDARD, SPATIAL)


@dataclass(frozen=True)
class SeenRoom:
    """A room and what its cameras see: `intrinsics` (3, 3) pixels, `cam2world` (V, 4, 4) metres.

    `rng` is the room's generator, for further draws.
    """

    room: Room
    rng: np.random.Generator
    rendering: Rendering
    intrinsics: np.ndarray
    cam2world: np.ndarray

    def compute_shares(self) -> np.ndarray:
        """The share of each view's pixels that shows each piece, (K, V)."""
        return np.stack([(self.rendering.object_ids == k).mean((1, 2)) for k in range(len(self.room.furniture))])


def make_scene(
    seed: int, split: str, index: int, num_views: int = 8, image_size: tuple[int, int] = (64, 64), bev_size: int = 96
) -> tuple[Scene, Room, np.random.Generator]:
    """Room `index` of `split` as a `Scene`; also the room itself, and its generator for further draws (questions)."""
    seen = see_room(seed, split, index, num_views, image_size)
    return describe_room(seen, get_scene_id(split, index), bev_size), seen.room, seen.rng


def describe_room(seen: SeenRoom, scene_id: str, bev_size: int) -> Scene:
    """A room as a `Scene`, with its bird's-eye picture of `bev_size` pixels."""
    room, rendering = seen.room, seen.rendering
    labels = [
        {
            "category": piece.category,
            "color": piece.color,
            "size": piece.size,
            "yaw": round(float(piece.yaw), 4),
            "visible_share": round(float(share.max()), 5),
        }
        for piece, share in zip(room.furniture, seen.compute_shares(), strict=True)
    ]
    scene = Scene(
        scene_id=scene_id,
        images=rendering.images,
        # Rounded as on disk, so that a scene in memory equals the one read.
        depth_maps=np.round(rendering.depth_maps * 1000).astype(np.float32) / np.float32(1000),
        intrinsics=seen.intrinsics,
        cam2world=seen.cam2world,
        view_names=[f"frame-{view:06d}" for view in range(len(seen.cam2world))],
        boxes=room.boxes,
        box_labels=labels,
    )
    picture = render_scene_bev(scene, bev_size)
    scene.bev_image, scene.bev_valid, scene.bev_bounds = picture.image, picture.valid, picture.bounds
    return scene


def see_room(seed: int, split: str, index: int, num_views: int, image_size: tuple[int, int]) -> SeenRoom:
    """Room `index` of `split`, rendered in `num_views` views, or as many as the split has at most."""
    kind = get_split(split)
    num_views = num_views if kind.max_views is None else min(num_views, kind.max_views)
    room, rng = make_room(seed, split, index)
    intrinsics, cam2world = make_cameras(room, rng, num_views, image_size, kind.camera_heights)
    return SeenRoom(room, rng, render_room(room, intrinsics, cam2world, image_size), intrinsics, cam2world)


def get_scene_id(split: str, index: int) -> str:
    return f"{split}-{index:06d}"


def build_scene(
    index: int, output: str, split: str, seed: int, num_views: int, image_size, bev_size: int, question_set: str
) -> tuple[list[Candidate], list[SpatialCandidate]]:
    """Write scene `index` unless it exists; return the questions that could be asked about it."""
    folder = Path(output) / split / get_scene_id(split, index)
    number, is_built, is_spatial = get_split(split).number, folder.is_dir(), question_set == SPATIAL
    # Of a room on disk only the largest share of each piece is known; spatial questions need those of all views.
    seen = see_room(seed, split, index, num_views, image_size) if is_spatial or not is_built else None
    if is_built:
        shares = [row["visible_share"] for row in read_json(folder / "boxes.json", "a list of boxes")]
    else:
        scene = describe_room(seen, get_scene_id(split, index), bev_size)
        shares = [label["visible_share"] for label in scene.box_labels]
        write_rgbd_folder(scene, folder)
    room = make_room(seed, split, index)[0] if seen is None else seen.room
    candidates = make_candidates(room, np.array(shares), np.random.default_rng([seed, number, index, 1]))
    if not is_spatial:
        return candidates, []
    rng = np.random.default_rng([seed, number, index, 2])
    return candidates, make_spatial_candidates(make_pieces(room, np.array(shares)), seen.compute_shares(), rng)


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
        question_set=arguments["question_set"],
    )
    progress = partial(tqdm, total=count, desc=f"{split} scenes", unit="scene", mininterval=1.0)
    if workers > 1:
        with open_pool(workers, torch.set_num_threads, 1) as pool:
            built = list(progress(pool.map(build, range(count), chunksize=8)))
    else:
        built = [build(index) for index in progress(range(count))]
    candidates, spatial = zip(*built, strict=True)
    chosen = balance_candidates(list(candidates), arguments["seed"], split)
    more = balance_spatial(list(spatial), arguments["seed"], get_split(split).number)
    annotations = [
        row
        for index, (standard, added) in enumerate(zip(chosen, more, strict=True))
        for row in make_annotations(get_scene_id(split, index), [*standard, *added])
    ]
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
    splits: Sequence[str] = DEFAULT_SPLITS,
    question_set: str = STANDARD,
) -> bool:
    """Build splits into `output` that its manifest does not list as complete; returns whether anything was built.

    Args:
        num_train, num_val (`int`): rooms of each split whose name begins with `train`, and of each other one.
        splits: names of `SPLITS`. question_set (`str`): one of `QUESTION_SETS`.

    Raises:
        ValueError: when `output` holds scenes of other arguments, or nothing can be written there; for a name that is
            not known.
        FileExistsError: when `output` holds something else.
    """
    output = Path(output)
    for split in splits:
        get_split(split)
    numbers = {split: num_train if split.startswith("train") else num_val for split in splits}
    if question_set not in QUESTION_SETS:
        raise ValueError(f"question_set: expected one of {list(QUESTION_SETS)}, got {question_set!r}.")
    arguments = {
        "version": VERSION,
        "num_train": num_train,
        "num_val": num_val,
        "image_size": list(image_size),
        "num_views": num_views,
        "bev_size": bev_size,
        "seed": seed,
        "question_set": question_set,
    }
    known: dict[str, dict[str, int]] = {}
    manifest, begun = output / "manifest.json", output / "manifest.part.json"
    for file in (manifest, begun):
        if not file.is_file():
            continue
        read = read_json(file, "the record of how the scenes were built", keys=["arguments"])
        # Folders of earlier code have the standard questions.
        found = {"question_set": STANDARD, **read["arguments"]}
        if found != arguments:
            changed = sorted(k for k in {*found, *arguments} if found.get(k) != arguments.get(k))
            raise ValueError(
                f"{output} has scenes built with { ({k: found.get(k) for k in changed}) }, but this command sets"
                f" { ({k: arguments.get(k) for k in changed}) }; choose another --output, or delete this folder."
            )
        known = known or read.get("questions", {})
    wanted = {split: number for split, number in numbers.items() if number and split not in known}
    if not wanted and manifest.is_file():
        return False
    is_ours = manifest.is_file() or begun.is_file()
    if not is_ours and output.is_dir() and any(output.iterdir()):
        raise FileExistsError(
            f"{output}: expected a new or empty folder, or one of this program, found other files and no"
            " manifest.json; choose another --output."
        )
    check_output_folder(output, "--output")
    _write_json({"arguments": arguments}, begun)
    counts = {split: build_split(output, split, number, arguments, workers) for split, number in wanted.items()}
    _write_json({"arguments": arguments, "questions": known | counts}, manifest)
    begun.unlink()
    return True


def _write_json(value: dict, file: Path) -> None:
    write_text(file, json.dumps(value, indent=2) + "\n")


def format_baselines(output: str | os.PathLike) -> str:
    """Tables of what the questions' words alone give on each held-out split (`scenes/lookup.py`), per cent."""
    output = Path(output)
    counts = read_json(output / "manifest.json", "the record of how the scenes were built", keys=["questions"])
    tables = []
    for split in counts["questions"]:
        trained_on = get_split(split).trained_on
        if split.startswith("train"):
            continue
        if trained_on not in counts["questions"]:
            tables.append(f"{split}: no questions of {trained_on}, to which look-ups are fitted")
            continue
        train, val = (load_annotations(output / "annotations" / f"{name}.jsonl") for name in (trained_on, split))
        lines = [f"{split:<28}{'count':>7}{'chance':>9}{'majority':>9}{'look-up':>9}{'model':>9}{'best':>9}"]
        for kind, row in score_words_only(train, val).items():
            shares = (row.chance, row.majority, row.lookup, row.model, row.best)
            cells = ("-" if share is None else f"{100 * share:.1f}" for share in shares)
            lines.append(f"{kind:<28}{row.count:>7}" + "".join(f"{cell:>9}" for cell in cells))
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def parse_size(text: str) -> tuple[int, int]:
    """`64` -> (64, 64); `640x480` -> (640, 480), width first."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected SIZE or WIDTHxHEIGHT in pixels, got {text!r}")
    return int(parts[0]), int(parts[-1])


def parse_splits(text: str) -> list[str]:
    """`train,val_large` -> ["train", "val_large"]."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in SPLITS]
    if unknown or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(
            f"expected names of {list(SPLITS)}, each once, separated by commas, got {text!r}"
        )
    return names


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=parse_path, help="data folder to write")
    parser.add_argument("--train", type=COUNT, default=4000, help="number of scenes of each training split")
    parser.add_argument("--val", type=COUNT, default=300, help="number of scenes of each other split")
    parser.add_argument(
        "--splits",
        type=parse_splits,
        default=list(DEFAULT_SPLITS),
        help=f"which to build, separated by commas: {', '.join(SPLITS)} (default: {','.join(DEFAULT_SPLITS)})",
    )
    parser.add_argument(
        "--questions",
        choices=QUESTION_SETS,
        default=STANDARD,
        help="standard, or spatial: these and VSI-Bench's spatial questions",
    )
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
        options.splits,
        options.questions,
    )
    print(f"{options.output}: {'built' if built else 'already complete'}")
    if options.baselines:
        print(format_baselines(options.output))


if __name__ == "__main__":
    run_program(main)
