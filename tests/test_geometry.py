"""Geometry against loops written out pixel by pixel, and against rooms whose answer is known."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ross3d.geometry_ross3d import (
    assign_patches,
    assign_tokens,
    check_shape,
    compute_box_iou,
    get_bev_bounds,
    get_nearest_indices,
    get_sin3d_embedding,
    get_token_grid_size,
    pack_patches,
    pool_patch_coords,
    project_bev,
    quantize_coords,
    resize_nearest,
    unpack_patches,
    unproject,
)
from ross3d.tests.posed_views import make_poses


BOUNDS_MIN, BOUNDS_MAX = torch.tensor([-15.0, -15.0, -5.0]), torch.tensor([15.0, 15.0, 5.0])


def make_cameras(num_views: int) -> torch.Tensor:
    """One camera a view, all numbers different."""
    cameras = [[[40.0 + v, 0, 20.5 + v], [0, 43.0 + v, 14.0 + v], [0, 0, 1]] for v in range(num_views)]
    return torch.tensor(cameras)


class TestUnproject:
    def test_every_pixel_by_hand(self):
        depth = torch.rand(2, 5, 7) * 3
        cameras, poses = make_cameras(2), torch.from_numpy(make_poses(2)).float()
        world = unproject(depth, cameras, poses)
        assert world.shape == (2, 5, 7, 3) and world.dtype == torch.float32
        for view, row, column in np.ndindex(2, 5, 7):
            z = depth[view, row, column].item()
            (fx, _, cx), (_, fy, cy), _ = cameras[view].tolist()
            point = torch.tensor([(column - cx) * z / fx, (row - cy) * z / fy, z, 1.0])
            assert_close(world[view, row, column], (poses[view] @ point)[:3], rtol=1e-5, atol=1e-5)

    def test_one_camera_for_all_views(self):
        depth, poses = torch.rand(3, 4, 6), torch.from_numpy(make_poses(3))
        camera = make_cameras(1)[0]
        assert_close(unproject(depth, camera, poses), unproject(depth, camera.expand(3, 3, 3), poses))

    def test_no_reading_is_the_camera_centre(self):
        poses = torch.from_numpy(make_poses(2)).float()
        world = unproject(torch.zeros(2, 3, 4), make_cameras(2), poses)
        assert torch.equal(world, poses[:, None, None, :3, 3].expand(2, 3, 4, 3))

    def test_some_pixels_of_a_larger_map(self):
        depth, poses = torch.rand(2, 9, 11), torch.from_numpy(make_poses(2))
        rows, columns = torch.tensor([8, 0, 3, 3]), torch.tensor([1, 10])
        part = unproject(depth[:, rows][:, :, columns], make_cameras(2), poses, rows, columns)
        assert torch.equal(part, unproject(depth, make_cameras(2), poses)[:, rows][:, :, columns])

    def test_a_wall_is_flat(self):
        """A camera that looks along x at the wall x = 4 from (1, 2, 1.5): depth to it is 3 in every pixel."""
        pose = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 1.5], [0, 0, 0, 1]])
        world = unproject(torch.full((1, 8, 10), 3.0), make_cameras(1), pose[None])[0]
        assert_close(world[..., 0], torch.full((8, 10), 4.0))
        assert (world[0, :, 2] > world[-1, :, 2]).all(), "the top row of a picture is up"
        assert (world[:, 0, 1] > world[:, -1, 1]).all(), "looking along x, the left of a picture is +y"


class TestResizeNearest:
    @pytest.mark.parametrize(("in_size", "out_size"), [(480, 384), (640, 512), (7, 20), (20, 7), (5, 5)])
    def test_rule(self, in_size, out_size):
        indices = get_nearest_indices(in_size, out_size).tolist()
        assert indices == [math.floor(i * (1 / (out_size / in_size))) for i in range(out_size)]
        assert indices[0] == 0 and indices[-1] < in_size

    def test_not_the_centre_rule(self):
        """Halving keeps the even pixels; the rule of pixel centres would keep the odd ones."""
        assert get_nearest_indices(8, 4).tolist() == [0, 2, 4, 6]

    def test_axes(self):
        x = torch.arange(2 * 6 * 8 * 3).view(2, 6, 8, 3)
        assert torch.equal(resize_nearest(x, (3, 4), dim=-3), x[:, ::2, ::2])
        assert torch.equal(resize_nearest(x[..., 0], (3, 4)), x[:, ::2, ::2, 0])


class TestPoolPatchCoords:
    @pytest.mark.parametrize(("size", "patch", "grid"), [(384, 14, 14), (64, 8, 4), (40, 8, 3), (30, 7, 2)])
    def test_grid(self, size, patch, grid):
        assert get_token_grid_size(size, patch) == grid
        coords, valid = pool_patch_coords(torch.rand(1, size, size, 3), None, patch, "published")
        assert coords.shape == (1, grid, grid, 3) and valid.shape == (1, grid, grid) and valid.all()

    def test_means_over_cells_of_the_covered_pixels(self):
        world = torch.rand(2, 35, 35, 3)
        coords, _ = pool_patch_coords(world, None, 8, "published")  # 4 patches cover 32 pixels, 2 tokens of 16
        for row, column in np.ndindex(2, 2):
            cell = world[:, row * 16 : (row + 1) * 16, column * 16 : (column + 1) * 16]
            assert_close(coords[:, row, column], cell.mean(dim=(1, 2)))

    def test_uneven_cells_cover_all_pixels(self):
        """5 patches of 8 pixels make 3 tokens: cells of 13 1/3 pixels, rounded outwards."""
        world = torch.rand(1, 40, 40, 3)
        coords, _ = pool_patch_coords(world, None, 8, "published")
        assert_close(coords[0, 1, 2], world[0, 13:27, 26:40].mean(dim=(0, 1)))

    def test_the_two_modes_differ_where_readings_lack(self):
        world, valid = torch.rand(2, 32, 32, 3) + 1, torch.rand(2, 32, 32) < 0.5
        valid[1, :16, 16:] = False
        world[~valid] = 0
        published, all_valid = pool_patch_coords(world, valid, 8, "published")
        coords, has_reading = pool_patch_coords(world, valid, 8, "valid_depth")
        assert all_valid.all() and has_reading.sum() == 7 and not has_reading[1, 0, 1]
        assert_close(coords[0, 1, 0], world[0, 16:, :16][valid[0, 16:, :16]].mean(dim=0))
        assert_close(published[0, 1, 0], world[0, 16:, :16].mean(dim=(0, 1)))
        assert torch.equal(coords[1, 0, 1], torch.zeros(3)), "not NaN"
        assert not torch.isnan(coords).any()

    def test_the_two_modes_agree_on_full_depth(self):
        world = torch.rand(2, 40, 40, 3)
        everywhere = torch.ones(2, 40, 40, dtype=torch.bool)
        published, _ = pool_patch_coords(world, None, 8, "published")
        valid_depth, _ = pool_patch_coords(world, everywhere, 8, "valid_depth")
        assert_close(published, valid_depth)


class TestVoxelsAndSinusoids:
    def test_clamp_subtract_divide_round(self):
        coords = torch.tensor([[0.0, 0.0, 0.0], [-20.0, 20.0, 9.0], [1.26, -3.14, 0.04]])
        voxels = quantize_coords(coords, 0.1, BOUNDS_MIN, BOUNDS_MAX)
        assert voxels.tolist() == [[150, 150, 50], [0, 300, 100], [163, 119, 50]]
        assert voxels.dtype == torch.float32

    def test_it_divides_in_float32(self):
        """Multiplying by 10 puts some coordinates into the neighbouring voxel."""
        coords = (torch.arange(3000).view(-1, 3) * 0.05 - 5).float()
        expected = torch.from_numpy(np.round((coords.numpy() - BOUNDS_MIN.numpy()) / np.float32(0.1)))
        wide = torch.tensor([200.0, 200.0, 200.0])
        assert torch.equal(quantize_coords(coords, 0.1, BOUNDS_MIN, wide), expected)
        assert not torch.equal(((coords - BOUNDS_MIN) * 10).round(), expected)

    @pytest.mark.parametrize("dim", [64, 70, 72])
    def test_channels(self, dim):
        coords = torch.rand(2, 5, 3) * 300
        embedding = get_sin3d_embedding(coords, dim, base=100.0)
        assert embedding.shape == (2, 5, dim)
        width = dim // 3
        for axis, channel in np.ndindex(3, width):
            wave = torch.sin if channel % 2 == 0 else torch.cos
            angle = coords[..., axis] / 100.0 ** (2 * (channel // 2) / width)
            assert_close(embedding[..., axis * width + channel], wave(angle), rtol=1e-4, atol=1e-4)
        assert (embedding[..., 3 * width :] == 0).all()

    def test_dtype_is_that_of_the_coordinates(self):
        coords = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, -0.25]])
        found = get_sin3d_embedding(coords.bfloat16(), 12)
        assert found.dtype == torch.bfloat16
        assert_close(found.float(), get_sin3d_embedding(coords, 12), rtol=0.01, atol=0.01)


def count_points_inside(world, boxes, patch_size, grid):
    """Points of each patch inside each box, one pair after the other."""
    counts = torch.zeros(len(boxes), len(world), grid, grid)
    for k, v, i, j in np.ndindex(*counts.shape):
        patch = world[v, i * patch_size : (i + 1) * patch_size, j * patch_size : (j + 1) * patch_size].reshape(-1, 3)
        low, high = boxes[k, :3] - boxes[k, 3:] / 2, boxes[k, :3] + boxes[k, 3:] / 2
        counts[k, v, i, j] = ((patch >= low) & (patch <= high)).all(dim=1).sum()
    return counts


class TestAssignPatches:
    def make_world(self):
        """Smooth surfaces, so that patches lie inside, outside and across the boxes; limits are exact numbers."""
        steps = torch.arange(26) / 8
        x, y = torch.meshgrid(steps, steps, indexing="ij")
        return torch.stack([torch.stack([x, y, (x + y) / 8], dim=-1), torch.stack([y, x / 2, x - y], dim=-1)])

    def make_boxes(self):
        centres = torch.tensor([[1.0, 1.0, 0.25], [2.0, 1.5, 0.0], [1.5, 0.75, 0.5], [9.0, 9.0, 9.0]])
        return torch.cat(
            [centres, torch.tensor([[2.0, 1.5, 1.0], [1.0, 3.0, 4.0], [9.0, 9.0, 9.0], [1, 1, 1]])], dim=1
        )

    @pytest.mark.parametrize("threshold", [0.5, 0.3, 1.0])
    def test_against_counting(self, threshold):
        world, boxes = self.make_world(), self.make_boxes()
        member = assign_patches(world, boxes, 4, threshold)
        assert member.shape == (4, 2, 6, 6) and member.dtype == torch.bool
        counts = count_points_inside(world, boxes, 4, 6)
        assert torch.equal(member, counts >= int(16 * threshold))
        assert member.any() and not member.all()

    def test_the_limits_count(self):
        """All points lie on one corner of the box."""
        world = torch.full((1, 4, 4, 3), 1.5)
        boxes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.99, 1.0, 1.0]])
        assert assign_patches(world, boxes, 4)[:, 0, 0, 0].tolist() == [True, False]

    def test_exactly_half_is_enough(self):
        world = torch.zeros(1, 4, 4, 3)
        world[0, :2] = 5.0
        box = torch.tensor([[0.0, 0, 0, 1, 1, 1]])
        assert assign_patches(world, box, 4).all()
        world[0, 2, 0] = 5.0
        assert not assign_patches(world, box, 4).any()

    def test_missing_readings_do_not_count(self):
        """3 of 4 readings lie inside; the 12 pixels without one would all lie inside as well."""
        world = torch.zeros(1, 4, 4, 3)
        valid = torch.zeros(1, 4, 4, dtype=torch.bool)
        valid[0, 0] = True
        box = torch.tensor([[0.0, 0, 0, 1, 1, 1]])
        world[0, 0, :3] = 5.0
        assert assign_patches(world, box, 4).all()
        assert not assign_patches(world, box, 4, depth_valid=valid).any()
        world[0, 0, :2] = 0.0
        assert assign_patches(world, box, 4, depth_valid=valid).all()
        assert not assign_patches(world, box, 4, depth_valid=torch.zeros_like(valid)).any()

    def test_no_boxes(self):
        """Documented shape: no rows, and the views and patches of the others."""
        assert assign_patches(self.make_world(), torch.zeros(0, 6), 4).shape == (0, 2, 6, 6)


def count_in_cells(world, boxes, valid, used, grid):
    """Counted points (K, V, h, w) of each cell inside each box, and all its counted points (V, h, w)."""
    inside, total = torch.zeros(len(boxes), len(world), grid, grid), torch.zeros(len(world), grid, grid)
    for v, i, j in np.ndindex(*total.shape):
        rows, columns = (slice(n * used // grid, math.ceil((n + 1) * used / grid)) for n in (i, j))
        points = world[v, rows, columns][valid[v, rows, columns]]
        total[v, i, j] = len(points)
        for k, box in enumerate(boxes):
            distance = (points - box[:3]).abs()
            inside[k, v, i, j] = (distance <= box[3:] / 2).all(dim=1).sum()
    return inside, total


class TestAssignTokens:
    """Cells of 2 x 2 patches where these are even in number, else overlapping ones of different sizes."""

    @pytest.mark.parametrize("threshold", [0.125, 0.5])
    @pytest.mark.parametrize(("size", "patch", "used", "grid"), [(26, 4, 24, 3), (22, 4, 20, 3), (26, 3, 24, 4)])
    def test_against_counting(self, size, patch, used, grid, threshold):
        world, boxes = TestAssignPatches().make_world()[:, :size, :size], TestAssignPatches().make_boxes()
        tokens = assign_tokens(world, boxes, patch, threshold)
        everywhere = torch.ones(world.shape[:3], dtype=torch.bool)
        inside, total = count_in_cells(world, boxes, everywhere, used, grid)
        assert tokens.shape == (4, 2, grid, grid) and torch.equal(tokens, inside >= (total * threshold).floor())
        assert tokens.any() and not tokens.all()
        valid = torch.rand(world.shape[:3], generator=torch.Generator().manual_seed(patch)) < 0.4
        valid[1, : used // 2] = False
        inside, total = count_in_cells(world, boxes, valid, used, grid)
        found = assign_tokens(world, boxes, patch, threshold, valid)
        assert torch.equal(found, inside >= (total * threshold).floor().clamp(min=1))
        assert not torch.equal(found, tokens)

    @pytest.mark.parametrize("count", [90, 91])
    def test_the_published_share(self, count):
        """91 of the 729 points of the token of a published view are enough; the uncovered edge counts nowhere."""
        world = torch.zeros(1, 384, 384, 3)
        world[0, :378, :378] = 5.0
        cell = torch.full((729, 3), 5.0)
        cell[:count] = 0.0
        world[0, 27:54, 54:81] = cell.view(27, 27, 3)
        tokens = assign_tokens(world, torch.tensor([[0.0, 0, 0, 1, 1, 1]]), 14, 0.125)
        assert tokens.shape == (1, 1, 14, 14)
        assert tokens.nonzero().tolist() == ([[0, 0, 1, 2]] if count == 91 else [])

    def test_no_boxes(self):
        for patch in (4, 5):
            assert assign_tokens(torch.zeros(2, 25, 25, 3), torch.zeros(0, 6), patch, 0.5).shape == (0, 2, 3, 3)


class TestBoxIoU:
    def test_known_overlaps(self):
        a = torch.tensor([[0.0, 0, 0, 2, 2, 2]])
        b = torch.tensor([[0.0, 0, 0, 2, 2, 2], [1.0, 0, 0, 2, 2, 2], [3.0, 0, 0, 2, 2, 2], [0.0, 0, 0, 0, 0, 0]])
        assert_close(compute_box_iou(a, b), torch.tensor([[1.0, 4 / 12, 0.0, 0.0]]))

    def test_shape_and_epsilon(self):
        boxes = torch.rand(3, 6)
        assert compute_box_iou(boxes, torch.rand(4, 6)).shape == (3, 4)
        half = torch.tensor([[0.0, 0, 0, 1, 1, 1]], dtype=torch.float64)
        whole = torch.tensor([[0.0, 0, 0, 1, 1, 2]], dtype=torch.float64)
        assert compute_box_iou(half, whole).item() == 0.5
        assert compute_box_iou(half, whole, eps=1e-8).item() < 0.5

    def test_empty_boxes_give_zero(self):
        empty = torch.zeros(1, 6)
        assert compute_box_iou(empty, empty).item() == 0.0


class TestBirdsEye:
    def test_bounds_are_a_square_around_the_middle(self):
        points = torch.rand(20000, 3) * torch.tensor([6.0, 3.0, 2.0]) + torch.tensor([1.0, -1.0, 0.0])
        xmin, ymin, xmax, ymax = get_bev_bounds(points).tolist()
        assert xmax - xmin == pytest.approx(ymax - ymin, rel=1e-5)
        assert xmax - xmin == pytest.approx(6 * 0.99 * 1.05, rel=0.01)
        assert (xmin + xmax) / 2 == pytest.approx(4.0, abs=0.05)
        assert (ymin + ymax) / 2 == pytest.approx(0.5, abs=0.05)

    def test_far_outliers_do_not_move_them(self):
        points = torch.rand(10000, 3)
        outliers = torch.cat([points, torch.full((20, 3), 80.0)])
        assert_close(get_bev_bounds(points), get_bev_bounds(outliers), rtol=0, atol=0.02)

    def test_a_single_point_has_bounds(self):
        xmin, _, xmax, _ = get_bev_bounds(torch.ones(1, 3)).tolist()
        assert xmin < 1 < xmax

    def test_x_right_y_up(self):
        bounds = torch.tensor([0.0, 0.0, 4.0, 4.0])
        corners = torch.tensor([[0.5, 3.5, 0.0], [3.5, 3.5, 1.0], [0.5, 0.5, 2.0], [2.5, 0.5, 0.0]])
        pixels, inside = project_bev(corners, bounds, 4)
        assert pixels.tolist() == [[0, 0], [3, 0], [0, 3], [2, 3]] and inside.all()

    def test_what_lies_on_the_picture(self):
        bounds = torch.tensor([0.0, 0.0, 4.0, 4.0])
        points = torch.tensor([[0.0, 4.0, 0.0], [3.999, 0.001, 0.0], [4.0, 1.0, 0.0], [1.0, -0.1, 0.0]])
        pixels, inside = project_bev(points, bounds, 8)
        assert inside.tolist() == [True, True, False, False]
        cells = (pixels[inside] + 0.5).floor().long()
        assert cells.min() >= 0 and cells.max() < 8


class TestErrors:
    def test_check_shape(self):
        assert check_shape("boxes", torch.zeros(4, 6), ("K", 6)) == {"K": 4}
        with pytest.raises(ValueError, match=r"boxes: expected shape \(K, 6\), got \(4, 7\); centre and size"):
            check_shape("boxes", torch.zeros(4, 7), ("K", 6), "centre and size")
        with pytest.raises(ValueError, match=r"world: expected shape \(V, S, S, 3\), got \(1, 4, 5, 3\)"):
            check_shape("world", torch.zeros(1, 4, 5, 3), ("V", "S", "S", 3))
        with pytest.raises(ValueError, match=r"point: expected shape \(3,\), got \(1, 3\)"):
            check_shape("point", torch.zeros(1, 3), (3,))

    def test_shapes_at_the_borders(self):
        depth, cameras, poses = torch.rand(2, 3, 4), make_cameras(2), torch.from_numpy(make_poses(2))
        with pytest.raises(ValueError, match=r"cam2world: expected shape \(2, 4, 4\), got \(3, 4, 4\)"):
            unproject(depth, cameras, torch.from_numpy(make_poses(3)))
        with pytest.raises(ValueError, match=r"intrinsics: expected shape \(2, 3, 3\), got \(4, 4\)|\(2, 4, 4\)"):
            unproject(depth, torch.eye(4).expand(2, 4, 4), poses)
        with pytest.raises(ValueError, match=r"depth_maps: expected shape \(V, H, W\), got \(3, 4\)"):
            unproject(depth[0], cameras, poses)
        with pytest.raises(ValueError, match=r"bounds: expected shape \(4,\), got \(2,\).*xmin"):
            project_bev(torch.rand(3, 3), torch.rand(2), 4)
        with pytest.raises(ValueError, match="points: expected at least one point for the bounds, got none"):
            get_bev_bounds(torch.zeros(0, 3))
        unproject(depth, cameras, poses)


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (4, 7), (27, 27)])
def test_packed_patches_come_back(grid):
    """An eighth of the bytes, whatever is left over of the last one."""
    patches = torch.rand(2, 3, 4, *grid, generator=torch.Generator().manual_seed(grid[0])) > 0.6
    packed = pack_patches(patches)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3, 4, -(-(grid[0] * grid[1]) // 8))
    assert torch.equal(unpack_patches(packed, *grid), patches)
    wanted = np.packbits(patches.flatten(-2).numpy(), axis=-1)
    assert np.array_equal(packed.numpy(), wanted)
