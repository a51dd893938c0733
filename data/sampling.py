"""Choose views of a scan: evenly spread, or those that together see most of the scan."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ross3d.geometry_ross3d import unproject


# Metres; side of the voxels that coverage counts.
COVERAGE_VOXEL_SIZE = 0.1
COVERAGE_VIEWS = 32
# No scan has this many frames; a larger number is a mistake and would fill the memory.
MAX_SAMPLED_VIEWS = 1_000_000


@dataclass(frozen=True)
class Coverage:
    """A choice of frames, the one that sees most first.

    Attributes:
        indices (`(n,)`, int64): frames, in the order of choice.
        gains (`(n,)`, int64): voxels of the scan that each was the first to see.
        num_all_voxels (`int`): voxels of the scan that all candidates see together.
        num_selected_voxels (`int`): those that the chosen frames see.
    """

    indices: np.ndarray
    gains: np.ndarray
    num_all_voxels: int
    num_selected_voxels: int


def sample_uniform(num_frames: int, num_views: int, unique: bool = False) -> np.ndarray:
    """Indices of `num_views` frames spread evenly over `num_frames`.

    The published rule, floor(linspace(0, num_frames - 1, num_views)), repeats frames when there are fewer than asked
    for; with `unique` no frame comes twice, so there may be fewer indices than `num_views`.
    """
    if num_frames < 1 or num_views < 1:
        raise ValueError(
            f"num_frames and num_views must be at least 1, got {num_frames} and {num_views}; is the scan empty?"
        )
    if isinstance(num_views, bool) or num_views != int(num_views):
        raise ValueError(f"num_views must be a whole number, got {num_views!r}.")
    if unique and num_views >= num_frames:
        return np.arange(num_frames, dtype=np.int64)
    if num_views > MAX_SAMPLED_VIEWS:
        raise ValueError(f"num_views must be at most {MAX_SAMPLED_VIEWS}, got {num_views}; lower it.")
    indices = np.floor(np.linspace(0, num_frames - 1, num_views)).astype(np.int64)
    return np.unique(indices) if unique else indices


def quantize_points(points: np.ndarray, voxel_size: float = COVERAGE_VOXEL_SIZE) -> np.ndarray:
    """Unique voxels (N, 3), int64, of points (..., 3) in metres: point / size, rounded, halves to the even one."""
    scaled = np.asarray(points, dtype=np.float32).reshape(-1, 3) / np.float32(voxel_size)
    return np.unique(np.round(scaled).astype(np.int64), axis=0)


def get_view_voxels(
    depth_map: np.ndarray, intrinsics: np.ndarray, cam2world: np.ndarray, voxel_size: float = COVERAGE_VOXEL_SIZE
) -> np.ndarray:
    """Voxels (N, 3) that a view sees.

    As published, pixels without a reading count as the camera's centre, which is a voxel of no surface.

    Args:
        depth_map (`(h, w)`): metres. intrinsics (`(3, 3)`): its pixels. cam2world (`(4, 4)`): to the aligned world.
    """
    depth = torch.from_numpy(np.ascontiguousarray(depth_map, dtype=np.float32))[None]
    cameras = torch.from_numpy(np.asarray(cam2world, dtype=np.float64))[None]
    points = unproject(depth, torch.from_numpy(np.asarray(intrinsics, dtype=np.float64)), cameras)
    return quantize_points(points.numpy(), voxel_size)


def list_coverage_candidates(num_frames: int, num_views: int = COVERAGE_VIEWS) -> np.ndarray:
    """Frames that maximum coverage chooses among: every second one, or all where that leaves fewer than wanted."""
    candidates = np.arange(0, num_frames, 2)
    return candidates if len(candidates) >= num_views else np.arange(num_frames)


def select_max_coverage(
    frame_voxels: Sequence[np.ndarray], scene_voxels: np.ndarray, num_views: int = COVERAGE_VIEWS, seed: int = 0
) -> Coverage:
    """Greedy maximum coverage: repeatedly take the frame that sees most voxels of the scan not seen before.

    The published rule (Video-3D-LLM), except that ties between frames are broken by a seeded draw.

    Args:
        frame_voxels: voxels (N_i, 3), integers, of each candidate.
        scene_voxels (`(N, 3)`): voxels of the scan's point cloud; others do not count.
        num_views (`int`): frames to choose; fewer when there are fewer candidates.
        seed (`int`): of the draw between ties.
    """
    if not len(frame_voxels) or num_views < 1:
        raise ValueError(
            f"maximum coverage needs candidates and num_views >= 1, got {len(frame_voxels)} and {num_views}."
        )
    owners = np.repeat(np.arange(len(frame_voxels)), [len(voxels) for voxels in frame_voxels])
    stacked = np.concatenate([np.asarray(scene_voxels).reshape(-1, 3), *frame_voxels]).astype(np.int64)
    _, numbers = np.unique(stacked, axis=0, return_inverse=True)
    numbers = numbers.reshape(-1)
    in_scene = np.zeros(numbers.max() + 1, dtype=bool)
    in_scene[numbers[: len(stacked) - len(owners)]] = True
    # One row a frame: which voxels of the scan it sees.
    sees = np.zeros((len(frame_voxels), len(in_scene)), dtype=bool)
    sees[owners, numbers[len(stacked) - len(owners) :]] = True
    sees = sees[:, in_scene]
    rng = np.random.default_rng(seed)
    unseen, left = np.ones(sees.shape[1], dtype=bool), np.ones(len(sees), dtype=bool)
    indices, gains = [], []
    for _ in range(min(num_views, len(sees))):
        gain = np.where(left, (sees & unseen).sum(axis=1), -1)
        index = int(rng.choice(np.flatnonzero(gain == gain.max())))
        indices.append(index)
        gains.append(int(gain[index]))
        unseen &= ~sees[index]
        left[index] = False
    return Coverage(
        indices=np.array(indices, dtype=np.int64),
        gains=np.array(gains, dtype=np.int64),
        num_all_voxels=int(sees.any(axis=0).sum()),
        num_selected_voxels=int((~unseen).sum()),
    )


def take_covering_frames(coverage: Coverage, num_views: int, ratio: float = 1.0) -> np.ndarray:
    """Frames to use, in the order of time: the first `num_views` of a choice, or fewer where fewer are enough.

    Args:
        ratio (`float`): share of all voxels that is enough; published are 0.95 and 0.9. 1 takes `num_views` frames.
    """
    indices = coverage.indices[:num_views]
    if ratio < 1:
        enough = np.flatnonzero(np.cumsum(coverage.gains[:num_views]) >= ratio * coverage.num_all_voxels)
        indices = indices[: enough[0] + 1] if len(enough) else indices
    return np.sort(indices)


__all__ = [
    "Coverage",
    "get_view_voxels",
    "list_coverage_candidates",
    "quantize_points",
    "sample_uniform",
    "select_max_coverage",
    "take_covering_frames",
]
