"""From depth maps to what the model reads of a scene, against the way it is commonly written.

    python bench/geometry.py [--views 32] [--boxes 60] [--rounds 5]

`objects`: which vision patches belong to which box, all boxes at once with patch bounds first, in turn with a loop
over boxes that compares every point with each. `coords`: unprojecting only the pixels that survive resize and crop, in
turn with unprojecting the whole map and resizing the coordinates. Outputs have to be equal. The room is one of ours,
seen at 640 x 480 pixels; boxes are its objects' and jittered copies of them. `wire_mb` is what a scene brings to the
model beside its pixels, memberships packed into bits.
"""

import argparse
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ross3d.bench.harness import compare, describe_run, print_line, time_rounds
from ross3d.geometry_ross3d import assign_patches, get_nearest_indices, pool_patch_coords, unproject
from ross3d.scenes.build import make_scene


SIZE, PATCH = 384, 14


class Geometry:
    """A room with boxes, and the ways to turn it into patches."""

    def __init__(self, num_views: int, num_boxes: int):
        scene, *_ = make_scene(seed=0, split="val", index=0, num_views=num_views, image_size=(640, 480), bev_size=96)
        self.depth = torch.from_numpy(scene.depth_maps)
        self.intrinsics = torch.from_numpy(np.asarray(scene.intrinsics, np.float64))
        self.cam2world = torch.from_numpy(np.asarray(scene.cam2world, np.float64))
        rng = np.random.default_rng(0)
        boxes = scene.boxes[rng.integers(0, len(scene.boxes), num_boxes)]
        jitter = rng.normal(0, 0.15, (num_boxes, 6))
        jitter[: len(scene.boxes)] = 0
        boxes = boxes + jitter
        boxes[:, 3:] = np.abs(boxes[:, 3:])
        self.boxes = torch.from_numpy(boxes.astype(np.float32))
        self.world = self.unproject_kept()

    def unproject_kept(self) -> torch.Tensor:
        """World points (V, 384, 384, 3) of the pixels that are left after resize and crop."""
        height, width = SIZE, int(640 * SIZE / 480)
        left = (width - SIZE) // 2
        rows, columns = get_nearest_indices(480, height), get_nearest_indices(640, width)[left : left + SIZE]
        depth = self.depth.index_select(1, rows).index_select(2, columns)
        return unproject(depth, self.intrinsics, self.cam2world, rows, columns)

    def unproject_all(self) -> torch.Tensor:
        """The same from the whole map: 307,200 points a view, resized by nearest, then cropped."""
        world = unproject(self.depth, self.intrinsics, self.cam2world)
        height, width = SIZE, int(640 * SIZE / 480)
        left = (width - SIZE) // 2
        rows, columns = get_nearest_indices(480, height), get_nearest_indices(640, width)
        return world[:, rows][:, :, columns][:, :, left : left + SIZE].contiguous()

    def assign_at_once(self) -> torch.Tensor:
        return assign_patches(self.world, self.boxes, PATCH)

    def assign_in_a_loop(self) -> torch.Tensor:
        """Every point with every box, one box after the other."""
        grid = SIZE // PATCH
        points = self.world[:, : grid * PATCH, : grid * PATCH]
        found = []
        for box in self.boxes:
            low, high = box[:3] - box[3:] / 2, box[:3] + box[3:] / 2
            inside = ((points >= low) & (points <= high)).all(dim=-1).float()
            counts = F.avg_pool2d(inside[:, None], PATCH)[:, 0] * PATCH**2
            found.append(counts.round() >= int(PATCH**2 * 0.5))
        return torch.stack(found)


def count_wire_bytes(geometry: Geometry, num_boxes: int) -> int:
    """Bytes a scene brings beside its pixels: positions and validity of tokens, boxes, and packed membership."""
    coords, valid = pool_patch_coords(geometry.world, None, PATCH, "published")
    patches = geometry.assign_at_once()
    return coords.numel() * 4 + valid.numel() + num_boxes * (6 * 4 + 1) + patches.numel() // 8


def run(num_views: int, num_boxes: int, rounds: int) -> dict[str, Any]:
    geometry = Geometry(num_views, num_boxes)
    ways = {
        "objects_loop": geometry.assign_in_a_loop, "objects": geometry.assign_at_once,
        "coords_all": geometry.unproject_all, "coords": geometry.unproject_kept,
    }  # fmt: skip
    seconds, results = time_rounds(ways, rounds)
    if not torch.equal(results["objects_loop"], results["objects"]):
        raise RuntimeError("bench/geometry.py: expected the same patches from both ways, got others.")
    if not torch.equal(results["coords_all"], results["coords"]):
        raise RuntimeError("bench/geometry.py: expected the same points from both ways, got others.")
    return {
        "bench": "geometry", **describe_run(), "views": num_views, "boxes": num_boxes, "rounds": rounds,
        "objects": compare(seconds, "objects_loop", "objects"), "coords": compare(seconds, "coords_all", "coords"),
        "objects_ms": round(1000 * min(seconds["objects"]), 1), "coords_ms": round(1000 * min(seconds["coords"]), 1),
        "wire_mb": round(count_wire_bytes(geometry, num_boxes) / 1e6, 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--boxes", type=int, default=60, help="number of proposals")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.boxes, options.rounds))


if __name__ == "__main__":
    main()
