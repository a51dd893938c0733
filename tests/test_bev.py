"""The bird's-eye picture: framing, what wins a cell, what is closed and what stays void."""

import numpy as np
import pytest
import torch

from ross3d.data.bev import get_scene_points, render_bev, render_scene_bev
from ross3d.data.scene import Scene
from ross3d.geometry_ross3d import get_bev_bounds
from ross3d.tests.limited_memory import call_within
from ross3d.tests.test_sources import make_scene


FLOOR, TABLE, LAMP = (100, 90, 80), (200, 20, 20), (20, 200, 20)


def make_plane(xs, ys, z, color, step=0.04):
    """A level rectangle as points `step` metres apart, and their colours."""
    x, y = np.meshgrid(np.arange(xs[0], xs[1], step), np.arange(ys[0], ys[1], step))
    points = np.stack([x.ravel(), y.ravel(), np.full(x.size, z)], axis=1)
    return points, np.tile(np.array(color, np.uint8), (len(points), 1))


def join(*parts):
    return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def get_cell(picture, x, y):
    """Row and column of a place in the world, by the documented framing."""
    size = len(picture.image)
    xmin, ymin, xmax, ymax = picture.bounds
    return int((ymax - y) / (ymax - ymin) * size), int((x - xmin) / (xmax - xmin) * size)


@pytest.mark.parametrize("size", [40, 97])
def test_a_map_with_x_to_the_right_and_y_upwards(size):
    points, colors = join(
        make_plane((-2, 3), (-1, 1.5), 0.0, FLOOR, 0.02),
        make_plane((2.0, 2.6), (0.7, 1.2), 0.8, TABLE, 0.02),
    )
    picture = render_bev(points, colors, size=size)
    assert picture.image.shape == (size, size, 3) and picture.image.dtype == np.uint8
    assert picture.valid.shape == (size, size) and picture.valid.dtype == bool
    for (x, y), color in {(2.3, 0.95): TABLE, (2.3, -0.5): FLOOR, (-1.5, 0.95): FLOOR}.items():
        assert tuple(picture.image[get_cell(picture, x, y)]) == color, (x, y)
    rows, _ = np.nonzero((picture.image == TABLE).all(-1))
    assert rows.mean() < size / 2


def test_the_frame_is_a_square_around_the_middle_of_the_points():
    """0.5 to 99.5 percentile of x and of y, the larger extent plus 5 %, the same middle: strays do not move it."""
    points, colors = make_plane((0, 4), (-3, 3), 0.0, FLOOR, 0.05)
    strays = np.array([[50.0, 0, 0], [0, -70, 0]])
    points, colors = join((points, colors), (strays, colors[:2]))
    low, high = np.percentile(points[:, :2], [0.5, 99.5], axis=0)
    half = 1.05 * (high - low).max() / 2
    expected = np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half])
    picture = render_bev(points, colors, size=60)
    assert np.allclose(picture.bounds, expected, atol=0.06)
    assert np.allclose(picture.bounds[2:] - picture.bounds[:2], 2 * half, atol=0.06)
    given = np.array([-1, -4, 7, 4])
    assert np.array_equal(render_bev(points, colors, bounds=given, size=60).bounds, given)


def test_the_highest_point_under_the_ceiling_wins_in_any_order():
    parts = [
        make_plane((0, 3), (0, 3), 0.0, FLOOR),
        make_plane((1, 2), (1, 2), 0.7, TABLE),
        make_plane((0, 3), (0, 3), 2.5, LAMP),
    ]
    pictures = [render_bev(*join(*order), size=50) for order in (parts, parts[::-1])]
    assert np.array_equal(pictures[0].image, pictures[1].image)
    picture = pictures[0]
    assert tuple(picture.image[get_cell(picture, 1.5, 1.5)]) == TABLE
    assert tuple(picture.image[get_cell(picture, 0.5, 0.5)]) == FLOOR
    higher = render_bev(*join(*parts), size=50, ceiling_height=2.6)
    assert tuple(higher.image[get_cell(higher, 0.5, 0.5)]) == LAMP


def test_void_is_exactly_black_and_nothing_else_is():
    black = np.zeros(3, np.uint8)
    points, colors = join(
        make_plane((0, 1.5), (0, 3), 0.0, black),
        make_plane((2.5, 3), (0, 3), 0.0, FLOOR),
        (np.array([[3.5, 1.5, 0]]), np.full((1, 3), 9, np.uint8)),
    )
    picture = render_bev(points, colors, bounds=(-1, -0.5, 4, 4.5), size=64)
    assert np.array_equal(picture.valid, picture.image.any(-1))
    assert not picture.valid[get_cell(picture, 2.0, 1.5)] and not picture.valid[get_cell(picture, -0.5, 1.5)]
    assert tuple(picture.image[get_cell(picture, 0.7, 1.5)]) == (1, 1, 1)


@pytest.mark.parametrize(("size", "extent"), [(64, 4.0), (96, 5.0)])
def test_closing_fills_holes_and_leaves_objects_their_size(size, extent):
    """A strip of 0.3 m that no camera saw beside a table becomes floor; the table's own hole becomes table."""
    bounds = (-extent / 2, -extent / 2, extent / 2, extent / 2)
    step = 0.7 * extent / size
    floor, floor_colors = make_plane((-1.8, 1.8), (-1.8, 1.8), 0.0, FLOOR, step)
    hidden = (np.abs(floor[:, 0]) < 0.8) & (np.abs(floor[:, 1]) < 0.6)
    table, table_colors = make_plane((-0.5, 0.5), (-0.3, 0.3), 0.7, TABLE, step)
    hole = np.linalg.norm(table[:, :2], axis=1) < 0.12
    picture = render_bev(
        *join((floor[~hidden], floor_colors[~hidden]), (table[~hole], table_colors[~hole])), bounds=bounds, size=size
    )
    cell = extent / size
    rows, columns = np.nonzero((picture.image == TABLE).all(-1))
    assert (columns.max() - columns.min() + 1) * cell == pytest.approx(1.0, abs=2 * cell)
    assert (rows.max() - rows.min() + 1) * cell == pytest.approx(0.6, abs=2 * cell)
    assert tuple(picture.image[get_cell(picture, 0.0, 0.0)]) == TABLE
    assert tuple(picture.image[get_cell(picture, 0.65, 0.0)]) == FLOOR
    inside = np.abs(np.add.outer(np.zeros(size), (np.arange(size) + 0.5) * cell - extent / 2)) < 1.6
    assert picture.valid[inside & inside.T].all()


def test_a_wide_gap_stays_void():
    points, colors = join(make_plane((0, 1), (0, 3), 0.0, FLOOR), make_plane((1.6, 3), (0, 3), 0.0, FLOOR))
    for splat, closed in ((0.1, False), (0.35, True)):
        picture = render_bev(points, colors, bounds=(-0.2, -0.2, 3.2, 3.2), size=80, splat=splat)
        assert picture.valid[get_cell(picture, 1.3, 1.5)] == closed


@pytest.mark.parametrize(("size", "splat"), [(48, 0.16), (61, 0.5)])
def test_nothing_is_closed_towards_the_edge(size, splat):
    """The margin is narrower than a gap that would be closed; what lies in it was not seen."""
    points, colors = make_plane((-1.5, 1.5), (-1, 1), 0.0, FLOOR)
    picture = render_bev(points, colors, np.array([-1.6, -1.6, 1.6, 1.6]), size=size, splat=splat)
    rows, columns = np.nonzero(picture.valid)
    cell = 3.2 / size
    wanted = [(1.6 - 1) / cell, (1.6 + 1) / cell, 0.1 / cell, 3.1 / cell]
    assert np.allclose([rows.min(), rows.max(), columns.min(), columns.max()], wanted, atol=1.5)
    assert not picture.image[~picture.valid].any()


def test_a_surface_seen_at_a_slant_has_no_floor_in_it():
    """Rows of a table's points stand four cells apart and floor shows through: the picture has a whole table."""
    size, extent = 80, 4.0
    cell = extent / size
    floor = make_plane((-1.9, 1.9), (-1.9, 1.9), 0.0, FLOOR, 0.8 * cell)
    table, colors = make_plane((-0.6, 0.6), (-0.6, 0.6), 0.7, TABLE, 0.8 * cell)
    kept = np.round(table[:, 1] / (0.8 * cell)).astype(int) % 5 == 0
    picture = render_bev(*join(floor, (table[kept], colors[kept])), bounds=(-2, -2, 2, 2), size=size)
    rows, columns = get_cell(picture, -0.4, 0.4)[0], get_cell(picture, 0.4, -0.4)
    inner = picture.image[rows : columns[0], get_cell(picture, -0.4, 0)[1] : columns[1]]
    assert (inner == TABLE).all()


def test_points_that_are_wrong_are_refused():
    points, colors = make_plane((0, 3), (0, 3), 2.5, FLOOR)
    with pytest.raises(
        ValueError, match=r"points and colors must be \(N, 3\), colors uint8, got \(5625, 3\) and float6"
    ):
        render_bev(points, colors / 255)
    with pytest.raises(
        ValueError, match=r"no point is below ceiling_height = 2.2 m; is the scan upright with its floor"
    ):
        render_bev(points, colors)
    assert render_bev(points, colors, size=20, ceiling_height=2.5).valid.any()


@pytest.mark.parametrize("sizes", [(3, 12, 16, 2), (2, 20, 14, 5)])
def test_points_of_a_scene_are_its_readings(sizes):
    scene = make_scene(*sizes)
    points, colors = get_scene_points(scene)
    seen = scene.depth_maps > 0
    assert len(points) == len(colors) == seen.sum()
    assert np.array_equal(colors, scene.images[seen])
    view, row, column = (axis[7] for axis in np.nonzero(seen))
    pixel = np.linalg.inv(scene.intrinsics) @ [column, row, 1] * scene.depth_maps[view, row, column]
    assert np.allclose(points[7], scene.cam2world[view][:3] @ np.append(pixel, 1), atol=1e-5)
    picture = render_scene_bev(scene, 33, ceiling_height=9.0)
    assert picture.image.shape == (33, 33, 3)
    assert np.allclose(picture.bounds, get_bev_bounds(torch.from_numpy(points)).numpy())


def test_colour_of_another_size_is_matched_to_the_depth():
    scene = make_scene(2)
    larger = np.repeat(np.repeat(scene.images, 3, axis=1), 3, axis=2)
    tripled = Scene("room", larger, scene.depth_maps, scene.intrinsics, scene.cam2world)
    for found, wanted in zip(get_scene_points(tripled), get_scene_points(scene), strict=True):
        assert np.array_equal(found, wanted)


def test_a_scene_without_depth_cannot_be_seen_from_above():
    scene = make_scene()
    bare = Scene("room", scene.images)
    with pytest.raises(ValueError, match="scene 'room' has no depth or no cameras, so it has no bird's-eye picture"):
        render_scene_bev(bare)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"points": np.array([[0, 0, np.nan]])},
            "points: expected finite coordinates, got NaN or inf; remove those points",
        ),
        ({"points": np.array([[np.inf, 0, 0]])}, "points: expected finite coordinates"),
        (
            {"bounds": [3, 0, 1, 2]},
            "bounds: expected xmin, ymin, xmax, ymax in metres, the first two smaller, got .3.0",
        ),
        ({"bounds": [0, 0, np.nan, 2]}, "bounds: expected xmin, ymin"),
        ({"bounds": [0, 0, 2]}, "bounds: expected xmin, ymin"),
        ({"size": 0}, "expected 1 to 4096 pixels, got 0; 432 is the published one"),
        ({"size": 10**6}, "expected 1 to 4096 pixels, got 1000000"),
    ],
)
def test_pictures_that_cannot_be_are_refused(changes, message):
    given = {
        "points": np.array([[0.5, 1, 0]]),
        "colors": np.full((1, 3), 9, np.uint8),
        "bounds": [0, 0, 2, 3],
        "size": 8,
    }
    assert render_bev(**given).valid.any()
    with pytest.raises(ValueError, match=message):
        render_bev(**given | changes)


def test_a_cloud_of_millimetres_is_drawn_within_memory():
    """Depth in a wrong unit leaves a scan of a millimetre, in which every gap would be closed over many pictures."""
    points = np.random.default_rng(0).uniform(0, 0.001, (50, 3))
    picture = call_within(256, render_bev, points, np.full((50, 3), 9, np.uint8), size=64)
    assert picture.image.shape == (64, 64, 3) and picture.valid.any()
    assert (picture.image[picture.valid] == 9).all() and not picture.image[~picture.valid].any()
