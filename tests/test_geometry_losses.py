"""Targets and losses of the small VGGT: exact cases, and what must not matter."""

import pytest
import torch
from torch.testing import assert_close

from ross3d.training.geometry_losses import (
    ALPHA,
    compute_camera_loss,
    compute_dense_loss,
    compute_matching_loss,
    encode_cameras,
    find_matches,
    get_patch_middles,
    get_quaternions,
    make_targets,
)
from ross3d.vggt_ross3d import decode_cameras, get_rotations


def draw(*shape: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_rigid(*shape: int, seed: int = 4) -> torch.Tensor:
    """Any poses (..., 4, 4)."""
    pose = torch.eye(4).repeat(*shape, 1, 1)
    pose[..., :3, :3] = get_rotations(draw(*shape, 4, seed=seed))
    pose[..., :3, 3] = draw(*shape, 3, seed=seed + 1)
    return pose


def make_scenes(num_scenes: int, num_views: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Depth maps with a hole, intrinsics and cam2world."""
    depth = draw(num_scenes, num_views, height, width).abs() + 0.5
    depth[0, 0, 1, 2] = 0
    intrinsics = torch.tensor([[30.0, 0, (width - 1) / 2], [0, 28.0, (height - 1) / 2], [0, 0, 1]])
    return depth, intrinsics.repeat(num_scenes, 1, 1), make_rigid(num_scenes, num_views)


def test_quaternions_are_those_of_the_rotations():
    """Any turns, no turn, and half turns, where w is 0."""
    quaternions = torch.nn.functional.normalize(draw(3, 5, 4), dim=-1)
    expected = torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions)
    assert_close(get_quaternions(get_rotations(quaternions)), expected)
    special = torch.cat([torch.eye(4), torch.tensor([[0.6, 0.0, -0.8, 0.0]])])
    found = get_quaternions(get_rotations(special))
    assert_close(found * (found * special).sum(dim=-1, keepdim=True).sign(), special)


@pytest.mark.parametrize("size", [(48, 64), (30, 22)])
def test_encoded_cameras_decode_to_themselves(size):
    height, width = size
    world2cam = make_rigid(2, 3)
    intrinsics = torch.tensor([[40.0, 0, width / 2], [0, 33.0, height / 2], [0, 0, 1]]).repeat(2, 3, 1, 1)
    encodings = encode_cameras(world2cam, intrinsics, size)
    assert encodings.shape == (2, 3, 9)
    found = decode_cameras(encodings, size)
    assert_close(found[0], world2cam)
    assert_close(found[1], intrinsics)
    # A vertical field of view of 90 degrees comes before the horizontal one.
    square = torch.tensor([[50.0, 0, 0], [0, height / 2, 0], [0, 0, 1]])
    assert_close(encode_cameras(torch.eye(4), square, size)[7], torch.tensor(torch.pi / 2))


@pytest.mark.parametrize(("num_scenes", "num_views", "height", "width"), [(2, 3, 4, 6), (1, 2, 5, 3)])
def test_targets_do_not_know_world_and_unit(num_scenes, num_views, height, width):
    depth, intrinsics, cam2world = make_scenes(num_scenes, num_views, height, width)
    targets = make_targets(depth, intrinsics, cam2world)
    moved = make_rigid(seed=9) @ cam2world
    moved[..., :3, 3] *= 3
    again = make_targets(depth * 3, intrinsics, moved)
    for name in ("encodings", "depth_maps", "world_coords"):
        assert_close(getattr(again, name), getattr(targets, name), rtol=1e-4, atol=1e-4, msg=name)
    assert_close(targets.encodings[:, 0, :7], torch.tensor([0.0, 0, 0, 0, 0, 0, 1]).repeat(num_scenes, 1))
    assert_close(targets.world_coords[:, 0, ..., 2], targets.depth_maps[:, 0])
    assert targets.valid.sum() == depth.numel() - 1 and not targets.valid[0, 0, 1, 2]
    for scene in range(num_scenes):
        distances = targets.world_coords[scene].norm(dim=-1)[targets.valid[scene]]
        assert_close(distances.mean(), torch.tensor(1.0))
    # The points of all views, seen by the decoded cameras, have the depth of those views.
    world2cam, _ = decode_cameras(targets.encodings, (height, width))
    seen = torch.einsum("bvij,bvhwj->bvhwi", world2cam[..., :3, :3], targets.world_coords)
    seen = seen + world2cam[..., None, None, :3, 3]
    assert_close(seen[..., 2][targets.valid], targets.depth_maps[targets.valid], rtol=1e-4, atol=1e-4)


def test_targets_of_a_wall():
    """Two pixels at depth 3 and 4, straight ahead and a focal length to the right; the unit is their mean distance."""
    depth = torch.tensor([[[[3.0, 4.0]]]])
    intrinsics = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    targets = make_targets(depth, intrinsics, torch.eye(4)[None, None])
    unit = (3 + 4 * 2**0.5) / 2
    assert_close(targets.depth_maps, depth / unit)
    assert_close(targets.world_coords[0, 0, 0], torch.tensor([[0.0, 0, 3], [4, 0, 4]]) / unit)
    with pytest.raises(ValueError, match="expected at least one reading above 0 in each scene, got none in scene 1"):
        make_targets(
            torch.stack([depth[0], 0 * depth[0]]), intrinsics.repeat(2, 1, 1), torch.eye(4).repeat(2, 1, 1, 1)
        )


def test_loss_of_cameras():
    target = draw(2, 3, 9)
    target[..., 3:7] = torch.nn.functional.normalize(target[..., 3:7], dim=-1)
    other = target.clone()
    other[..., 3:7] *= -1
    assert compute_camera_loss([target, other], target) == 0
    # 0.3 in each translation entry (weight 1) and 0.2 in each field of view (weight 1/2).
    off = target + torch.tensor([0.3] * 3 + [0.0] * 4 + [0.2] * 2)
    assert_close(compute_camera_loss([off], target), torch.tensor(0.4))
    assert_close(compute_camera_loss([target, off], target), torch.tensor(0.4 / 2))
    assert_close(compute_camera_loss([off, target], target), torch.tensor(0.6 * 0.4 / 2))
    assert_close(compute_camera_loss([off, off, off], target), torch.tensor((0.36 + 0.6 + 1) * 0.4 / 3))
    # Half a turn about z against none: each of the two entries is off by 1, a quarter of four entries each.
    still, turned = torch.zeros(1, 1, 9), torch.zeros(1, 1, 9)
    still[..., 6], turned[..., 5] = 1, 1
    assert_close(compute_camera_loss([turned], still), torch.tensor(0.5))


@pytest.mark.parametrize("shape", [(2, 3, 4, 6, 3), (5, 3, 1)])
def test_loss_of_a_perfect_map_is_its_confidence(shape):
    target = draw(*shape)
    confidence = draw(*shape[:-1], seed=5).abs() + 1
    valid = draw(*shape[:-1], seed=6) > 0
    loss = compute_dense_loss(target, confidence, target, valid)
    assert_close(loss, -ALPHA * confidence[valid].log().mean())
    assert compute_dense_loss(target, torch.ones_like(confidence), target, valid) == 0
    # The same error everywhere has no gradient, and pixels without a reading do not count.
    off = target + 1
    off[~valid] = 50
    expected = shape[-1] ** 0.5
    assert_close(compute_dense_loss(off, torch.ones_like(confidence), target, valid), torch.tensor(expected))


def test_loss_of_a_map_by_hand():
    """Errors 1, 2 / 0, 5 with confidences 1, 2 / 1, 4; neighbours down differ by 1 and 3, across by 1 and 5."""
    error = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    confidence = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    logs = 3 * torch.tensor(2.0).log()
    expected = (1 + 4 + 0 + 20 - ALPHA * logs) / 4 + (1 + 3) / 2 + (1 + 5) / 2
    assert_close(compute_dense_loss(error[..., None], confidence, torch.zeros(2, 2, 1), valid), expected)
    valid[1, 1] = False
    expected = (1 + 4 + 0 - ALPHA * torch.tensor(2.0).log()) / 3 + 1 + 1
    assert_close(compute_dense_loss(error[..., None], confidence, torch.zeros(2, 2, 1), valid), expected)
    assert compute_dense_loss(error[..., None], confidence, torch.zeros(2, 2, 1), valid & False) == 0


def make_wall(distance: float, places: list[tuple[float, float, float]], size: tuple[int, int]):
    """Cameras at these places before a wall, with a focal length of 8 pixels: targets of one scene."""
    cam2world = torch.eye(4).repeat(1, len(places), 1, 1)
    cam2world[0, :, :3, 3] = torch.tensor(places)
    depth = distance - cam2world[..., 2, 3]
    height, width = size
    intrinsics = torch.tensor([[[8.0, 0, (width - 1) / 2], [0, 8.0, (height - 1) / 2], [0, 0, 1]]])
    return make_targets(depth[..., None, None].repeat(1, 1, *size), intrinsics, cam2world)


def test_matches_on_a_wall():
    """Patches of 4 pixels on 8 x 12 pixels, 2 x 3 patches; at distance 2 a metre is 4 pixels, one patch."""
    targets = make_wall(2.0, [(0, 0, 0), (1, 0, 0), (0, -1, 0), (0, 0, 0)], (8, 12))
    matches = find_matches(targets, 4)
    assert matches.shape == (1, 4, 4, 6)
    assert matches[0, 0, 1].tolist() == [-100, 0, 1, -100, 3, 4]
    assert matches[0, 1, 0].tolist() == [1, 2, -100, 4, 5, -100]
    assert matches[0, 0, 2].tolist() == [3, 4, 5, -100, -100, -100]
    assert matches[0, 0, 3].tolist() == list(range(6)) and (matches[0, 0, 0] == -100).all()
    # A pixel without a reading has no match; a surface before the wall hides it; nothing is seen from behind.
    hidden = make_wall(2.0, [(0, 0, 0), (0, 0, 0), (0, 0, 5)], (8, 12))
    hidden.depth_maps[0, 1, 4:, :8] *= 0.9
    hidden.valid[0, 0, 2, 2] = False
    matches = find_matches(hidden, 4)
    assert matches[0, 0, 1].tolist() == [-100, 1, 2, -100, -100, 5]
    assert (matches[0, 0, 2] == -100).all()


def test_middles_of_patches():
    """2 x 3 patches of 4 pixels: the pixel right and below of the middle, row by row."""
    targets = make_wall(2.0, [(0, 0, 0), (1, 0, 0.5)], (8, 12))
    middles = get_patch_middles(targets, 4)
    assert middles.shape == (1, 2, 6, 4)
    assert_close(middles[0, 1, 5, :3], targets.world_coords[0, 1, 6, 10])
    assert_close(middles[0, 1, 1, :3], targets.world_coords[0, 1, 2, 6])
    assert_close(middles[..., 3].exp(), targets.depth_maps[:, :, :1, :6].flatten(2))


@pytest.mark.parametrize("num_patches", [3, 6])
def test_loss_of_matches(num_patches):
    features = torch.eye(num_patches).repeat(1, 2, 1, 1)
    order = torch.arange(num_patches).roll(1)
    features[0, 1] = features[0, 1][order]
    right = torch.full((1, 2, 2, num_patches), -100)
    right[0, 0, 1], right[0, 1, 0] = order.argsort(), order
    others = (num_patches - 1) * torch.tensor(-10.0).exp()
    assert_close(compute_matching_loss(5 * features, right), (1 + others).log())
    right[0, 0, 1, 0] = (right[0, 0, 1, 0] + 1) % num_patches
    expected = (1 + others).log() + 10 / (2 * num_patches)
    assert_close(compute_matching_loss(features, right), expected)
    assert compute_matching_loss(features, torch.full_like(right, -100)) == 0
