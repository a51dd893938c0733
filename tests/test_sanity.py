"""The sanity picture: what is measured of an upright room, of one that is off, and where it is drawn."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from ross3d.data.sanity import find_weighted_median, fold_angle, measure_cameras_inside, measure_sanity
from ross3d.data.scene import Scene
from ross3d.report.bev import SIDE
from ross3d.report.sanity import make_sanity_section, make_side
from ross3d.scenes.build import make_scene


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_scene(5, "val", 1, num_views=7, image_size=(96, 72), bev_size=32)[0]


def move(scene: Scene, degrees: float = 0.0, height: float = 0.0) -> Scene:
    angle, matrix = np.deg2rad(degrees), np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[2, 3] = height
    return replace(scene, cam2world=matrix @ scene.cam2world)


def test_an_upright_room_passes(room):
    sanity = measure_sanity(room)
    assert sanity.cameras_inside == 1.0 and abs(sanity.floor_height) < 0.005 and sanity.floor_rms < 0.005
    assert sanity.wall_degrees < 0.5 and sanity.floor_area > 2 and sanity.list_warnings() == []
    names = [name for name, _ in sanity.list_facts()]
    assert names[:2] == ["cameras inside the room, %", "cameras with their upper edge up, %"] and len(names) == 8


def test_what_is_off_is_said_in_words(room):
    sanity = measure_sanity(move(room, degrees=7.0, height=-0.4))
    assert sanity.floor_height == pytest.approx(-0.4, abs=0.01)
    assert sanity.wall_degrees == pytest.approx(7.0, abs=0.5) and sanity.worst_wall_degrees >= sanity.wall_degrees
    assert sanity.list_warnings() == [
        "the floor lies -40 cm from z = 0",
        f"the walls are {sanity.wall_degrees:.1f}° off the axes",
    ]
    bad = replace(
        sanity, cameras_inside=0.25, floor_height=None, floor_rms=0.042, wall_degrees=None, worst_wall_degrees=None
    )
    assert bad.list_warnings() == [
        "only 25 % of the cameras are inside or close to what they saw, above its floor",
        "no floor is in view: nothing checks that z = 0 is the floor",
        "the floor is not flat: its cells scatter 4.2 cm",
        "no wall of 1 m² is in view: nothing checks the heading",
    ]
    assert len(bad.list_facts()) == 2


def test_cameras_far_outside_or_below_the_floor_are_counted(room):
    points = np.array([[-1.0, -2.0, 0.0], [3.0, 2.0, 1.0]])
    cam2world = np.tile(np.eye(4), (4, 1, 1))
    # Inside; half a metre behind; two metres outside; below the floor.
    cam2world[:, :3, 3] = [[0, 0, 1.5], [3.5, 0, 1.5], [0, 4.0, 1.5], [0, 0, -0.5]]
    scene = replace(room, images=room.images[:4], cam2world=cam2world)
    assert measure_cameras_inside(scene, points, 0.0) == 0.5
    assert measure_cameras_inside(scene, points, None) == 0.5
    assert measure_cameras_inside(scene, points[:0], 0.0) == 0.0
    assert [fold_angle(angle) for angle in (92.0, -1.5, 44.0, 225.0)] == [2.0, 1.5, 44.0, 45.0]


def test_the_median_goes_by_weight():
    assert find_weighted_median([40.0, 1.0, 2.0], [1.0, 0.9, 1.3]) == 2.0
    assert find_weighted_median([40.0, 1.0], [3.0, 1.0]) == 40.0


def test_a_scene_without_depth_is_refused(room):
    bare = Scene(scene_id="walk", images=room.images)
    with pytest.raises(ValueError, match="'walk': finding surfaces needs depth_maps, intrinsics and cam2world"):
        measure_sanity(bare)


def test_a_side_view_has_its_marks_where_the_geometry_says():
    """One metre is 80 units: cameras, boxes and the floor line along either axis."""
    cam2world = np.tile(np.eye(4), (2, 1, 1))
    cam2world[:, :3, 3] = [[1.0, -1.0, 1.5], [2.0, 0.0, 1.0]]
    points = np.random.default_rng(0).uniform([0, -2, 0], [5, 3, 1.9], (500, 3))
    box = [2.5, 0.5, 0.4, 1.0, 0.5, 0.8]
    for axis, start in ((0, 0.0), (1, -2.0)):
        tree = ElementTree.fromstring(str(make_side(points, cam2world, [box], (0, -2, 5, 3), axis)))
        (line,) = tree.iter("line")
        floor, metre = float(line.get("y1")), SIDE / 5
        eyes = [(float(mark.get("cx")), float(mark.get("cy"))) for mark in tree.iter("circle")]
        expected = [((eye[axis] - start) * metre, floor - eye[2] * metre) for eye in cam2world[:, :3, 3]]
        np.testing.assert_allclose(eyes, expected, atol=0.11)
        (drawn,) = tree.iter("rect")
        left, top, width, height = (float(drawn.get(name)) for name in ("x", "y", "width", "height"))
        assert (width, height) == pytest.approx((box[3 + axis] * metre, 0.8 * metre))
        assert left == pytest.approx((box[axis] - box[3 + axis] / 2 - start) * metre)
        assert top == pytest.approx(floor - 0.8 * metre, abs=0.11)


def test_the_section_shows_numbers_notes_and_warnings(room):
    sanity = measure_sanity(move(room, height=0.3))
    bev = room.bev_image, room.bev_bounds
    text = str(
        make_sanity_section(
            room.cam2world,
            room.boxes,
            bev,
            sanity.points,
            sanity.list_facts(),
            sanity.list_warnings(),
            ["<given>"],
        )
    )
    tree = ElementTree.fromstring(text)
    assert len(list(tree.iter("circle"))) == 2 * 7 and len(list(tree.iter("polygon"))) == 7
    assert "&lt;given&gt;" in text and "Warning: the floor lies 30 cm from z = 0." in text
    assert "visible floor, m²" in text
