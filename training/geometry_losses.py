"""Targets and losses of an encoder of geometry, as VGGT publishes them (arXiv 2503.11651).

Shapes: B scenes, V views of a scene, H x W pixels, C values of a pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ross3d.geometry_ross3d import unproject
from ross3d.geometry_supervision_ross3d import compute_camera_errors, get_fields_of_view
from ross3d.vggt_ross3d import decode_cameras, get_quaternions


# Weight of an iteration's cameras relative to the next iteration's.
DISCOUNT = 0.6
# Reward of confidence.
ALPHA = 0.2
# Share of the depth by which a point may miss a surface on which it is seen; spread of likeness in the matching loss.
SAME_DEPTH, TEMPERATURE = 0.05, 0.1
SMALLEST_DEPTH = 1e-3


@dataclass
class GeometryTargets:
    """What an encoder should predict; the unit is the mean distance of a scene's points from the first camera.

    Attributes:
        encodings (B, V, 9): cameras as in `Ross3DVGGTOutput.camera_encodings`.
        depth_maps (B, V, H, W), world_coords (B, V, H, W, 3): in the first view's camera.
        valid (B, V, H, W) bool: pixels with a reading.
    """

    encodings: torch.Tensor
    depth_maps: torch.Tensor
    world_coords: torch.Tensor
    valid: torch.Tensor


def encode_cameras(world2cam: torch.Tensor, intrinsics: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The way back from `decode_cameras`: encodings (..., 9) of cameras whose principal point is at the centre.

    Args:
        world2cam (..., 4, 4): OpenCV axes.
        intrinsics (..., 3, 3): pixels.
        size (`(H, W)`): the pictures' size, pixels.
    """
    fields = get_fields_of_view(intrinsics, size)
    return torch.cat([world2cam[..., :3, 3], get_quaternions(world2cam[..., :3, :3]), fields], dim=-1)


def make_targets(depth_maps: torch.Tensor, intrinsics: torch.Tensor, cam2world: torch.Tensor) -> GeometryTargets:
    """Targets of scenes with known cameras: the world is the first view's camera, and the unit of length the mean
    distance of the scene's points from it.

    Args:
        depth_maps (B, V, H, W): metres; 0 is no reading.
        intrinsics (B, 3, 3): pixels.
        cam2world (B, V, 4, 4): metres, in any world.

    Raises:
        ValueError: for a scene without a reading.
    """
    valid = depth_maps > 0
    if not valid.flatten(1).any(dim=1).all():
        raise ValueError(
            "depth_maps: expected at least one reading above 0 in each scene, got none in scene"
            f" {int(valid.flatten(1).any(dim=1).int().argmin())}; leave this scene out."
        )
    # Inverted in double precision, in which a walk's cameras differ by metres.
    world2cam = torch.linalg.inv(cam2world.double())
    relative = (world2cam @ cam2world[:, :1].double()).float()
    points = torch.stack(
        [
            unproject(depth, camera, pose)
            for depth, camera, pose in zip(
                depth_maps, intrinsics, torch.linalg.inv(relative.double()).float(), strict=True
            )
        ]
    )
    distances = points.norm(dim=-1)
    unit = torch.stack([part[mask].mean() for part, mask in zip(distances, valid, strict=True)])
    relative[..., :3, 3] /= unit[:, None, None]
    cameras = intrinsics.float()[:, None].expand(*relative.shape[:2], 3, 3)
    return GeometryTargets(
        encodings=encode_cameras(relative, cameras, depth_maps.shape[2:]),
        depth_maps=depth_maps / unit[:, None, None, None],
        world_coords=points / unit[:, None, None, None, None],
        valid=valid,
    )


def compute_camera_loss(predicted: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    """L1 of the cameras, each iteration's counted `DISCOUNT` times as much as the next one's; their mean.

    Both quaternions of a rotation count as right. The published loss has one only, with w >= 0, whose sign is chance
    for a view from the opposite side of a room.

    Args:
        predicted (iterations of (B, V, 9)), target (B, V, 9): encodings.
    """
    losses = [compute_camera_errors(encoding, target).mean() for encoding in predicted]
    weights = [DISCOUNT ** (len(losses) - 1 - iteration) for iteration in range(len(losses))]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True)) / len(losses)


def compute_dense_loss(
    predicted: torch.Tensor, confidence: torch.Tensor, target: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Distance weighted by confidence, c |p - t| - alpha log c, plus the distance between neighbours' differences.

    Args:
        predicted, target (..., H, W, C): depth (C = 1) or points (C = 3).
        confidence (..., H, W): above 0.
        valid (..., H, W) bool: pixels that count; of neighbours both do.
    """
    error = predicted - target
    loss = mean_over(confidence * error.norm(dim=-1) - ALPHA * confidence.log(), valid)
    down, across = (error.diff(dim=dim).abs().mean(dim=-1) for dim in (-3, -2))
    loss = loss + mean_over(down, valid[..., 1:, :] & valid[..., :-1, :])
    return loss + mean_over(across, valid[..., 1:] & valid[..., :-1])


def get_patch_middles(targets: GeometryTargets, patch_size: int) -> torch.Tensor:
    """Point and logarithm of the depth (B, V, P, 4) of the pixel in the middle of each patch, row by row."""
    middle = slice(patch_size // 2, None, patch_size)
    points, depth = targets.world_coords[:, :, middle, middle], targets.depth_maps[:, :, middle, middle, None]
    return torch.cat([points, depth.clamp(min=SMALLEST_DEPTH).log()], dim=-1).flatten(2, 3)


@torch.no_grad()
def find_matches(targets: GeometryTargets, patch_size: int) -> torch.Tensor:
    """Which patch of every other view shows the middle of a patch.

    Args:
        targets (`GeometryTargets`): of pictures whose sides are multiples of `patch_size`.
        patch_size (`int`): pixels.

    Returns:
        (B, V, V, P) long: for patch p of view a (second axis) the number of the patch in view b (third axis), row by
        row; -100 where it is hidden or outside, in its own view, or without a reading.
    """
    num_views, height, width = targets.depth_maps.shape[1:]
    middle = slice(patch_size // 2, None, patch_size)
    points = targets.world_coords[:, :, middle, middle].flatten(2, 3)  # (B, V, P, 3)
    world2cam, intrinsics = decode_cameras(targets.encodings, (height, width))
    seen = torch.einsum("bwij,bvpj->bvwpi", world2cam[..., :3, :3], points) + world2cam[:, None, :, None, :3, 3]
    depth = seen[..., 2].clamp(min=1e-6)
    pixels = torch.einsum("bwij,bvwpj->bvwpi", intrinsics[..., :2, :], seen / depth[..., None]).floor().long()
    column, row = pixels[..., 0], pixels[..., 1]
    inside = (seen[..., 2] > 1e-6) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column, row = column.clamp(0, width - 1), row.clamp(0, height - 1)
    maps = targets.depth_maps[:, None].expand(-1, num_views, -1, -1, -1).flatten(3)  # (B, V, V, H W)
    there = maps.gather(3, row * width + column)
    is_seen = inside & ((there - depth).abs() < SAME_DEPTH * depth)
    is_seen &= targets.valid[:, :, middle, middle].flatten(2)[:, :, None]
    is_seen &= ~torch.eye(num_views, dtype=torch.bool)[:, :, None]
    number = row // patch_size * (width // patch_size) + column // patch_size
    return torch.where(is_seen, number, -100)


def compute_matching_loss(features: torch.Tensor, matches: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of finding a patch's match among all patches of another view by the likeness of features.

    It takes the place of the published loss for tracks, for which there is no head here.

    Args:
        features (B, V, P, C): of the patches.
        matches (B, V, V, P): of `find_matches`.
    """
    features = F.normalize(features.float(), dim=-1)
    logits = torch.einsum("bvpc,bwqc->bvwpq", features, features) / TEMPERATURE
    if not (matches >= 0).any():
        return 0 * logits.sum()
    return F.cross_entropy(logits.flatten(0, 3), matches.flatten(), ignore_index=-100)


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values where the mask is true, 0 if it is nowhere."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


__all__ = [
    "GeometryTargets",
    "compute_camera_loss",
    "compute_dense_loss",
    "compute_matching_loss",
    "encode_cameras",
    "find_matches",
    "get_patch_middles",
    "make_targets",
]
