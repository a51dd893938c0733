"""Scans of which only some pictures are upside down or on their side: told with their names, turned when asked."""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from ross3d.data.consistency import (
    ConsistencyWarning,
    check_consistency,
    find_disagreement,
    find_turned_pictures,
    get_cameras,
)
from ross3d.data.own_scan import read_own_scan
from ross3d.data.prepare.__main__ import main as prepare
from ross3d.data.prepare.align import align_folder
from ross3d.data.sources import read_scene
from ross3d.data.sources.optional_files import turn_pictures
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.data.upright import count_picture_turns, describe_disagreement, describe_pictures, find_dissenters
from ross3d.data.world import WorldWarning, check_world
from ross3d.tests.test_orientation import TAGS, save_tagged
from ross3d.tests.turned_views import SHAPES, make_room, move, turn_some
from ross3d.tools.view import main as view_main


Y_UP = np.array([[1.0, 0, 0, 0.2], [0, 0, 1, -1.3], [0, -1, 0, 0.5], [0, 0, 0, 1]])
# Views that are turned, by the shape of the scan: many, half and one.
SOME = {"wide": ([1, 4, 5, 8, 10], [0, 1, 2, 6, 7, 11], [6]), "tall": ([0, 3, 4, 8], [2, 5, 6, 7], [8])}
# What is cut off to make the pictures square, left and at the top.
SQUARE = {"wide": (24, 0), "tall": (0, 28)}
CASES = [(shape, views) for shape in SHAPES for views in SOME[shape]]


def name(views) -> str:
    return ", ".join(f"frame-{view:06d}" for view in views)


def crop(scene, left: int, top: int):
    """The same pictures without their left columns and top rows, so that the principal point is off the middle."""
    intrinsics = scene.intrinsics - np.array([[0, 0, left], [0, 0, top], [0, 0, 0]])
    return replace(
        scene,
        images=scene.images[:, top:, left:],
        depth_maps=scene.depth_maps[:, top:, left:],
        intrinsics=np.tile(intrinsics, (scene.num_views, 1, 1)),
    )


def check_same(found, wanted) -> None:
    assert np.array_equal(found.images, wanted.images)
    np.testing.assert_allclose(found.depth_maps, wanted.depth_maps, atol=6e-4)
    np.testing.assert_allclose(found.cam2world, wanted.cam2world, atol=1e-5)
    intrinsics = np.broadcast_to(wanted.intrinsics, (wanted.num_views, 3, 3))
    np.testing.assert_allclose(np.broadcast_to(found.intrinsics, intrinsics.shape), intrinsics, atol=1e-4)


# ---- turned with their depth and cameras, in a world with z up


@pytest.mark.parametrize(("shape", "views"), CASES)
def test_pictures_that_are_turned_are_told_and_each_is_turned_when_asked(tmp_path, shape, views):
    room = make_room(shape)
    folder = write_rgbd_folder(turn_some(room, views), tmp_path / "room")
    told = rf"{len(views)} of {room.num_views} upside down \({name(views)}\); give --rotate auto"
    with pytest.warns(WorldWarning, match=f"'room': its pictures are not upright, though .* right: {told}"):
        read_scene(folder)
    scan = read_own_scan(folder)
    assert scan.axis_align_matrix is None and re.search(told, scan.alignment) and scan.estimate.confidence > 0.7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(read_scene(folder, rotate="auto"), room)
        turned = read_own_scan(folder, reading={"rotate": "auto"})
        check_same(turned.scene, room)
        check_same(turned.read_views(room.num_views), room)
    assert "pictures" not in turned.alignment


def test_a_page_and_a_preparation_tell_of_turned_pictures(tmp_path, capsys):
    folder = write_rgbd_folder(turn_some(make_room(), [6]), tmp_path / "scans" / "room")
    told = "1 of 12 upside down (frame-000006); give --rotate auto"
    page = view_main([str(folder), "--output", str(tmp_path / "a.html")]).read_text(encoding="utf-8")
    assert told in capsys.readouterr().out and told in page
    page = view_main([str(folder), "--rotate", "auto", "--output", str(tmp_path / "b.html")]).read_text(
        encoding="utf-8"
    )
    assert "not upright" not in capsys.readouterr().out and "upside down" not in page
    prepare(["align", "--data", str(tmp_path / "scans"), "--num-workers", "1"])
    assert told in capsys.readouterr().out
    assert np.array_equal(np.loadtxt(folder / "axis_align.txt"), np.eye(4))
    prepare(["align", "--data", str(tmp_path / "scans"), "--num-workers", "1", "--rotate", "auto", "--force"])
    assert "upside down" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", SHAPES)
def test_a_principal_point_off_the_middle_turns_along(shape):
    room = crop(make_room(shape), 7, 4)
    check_same(turn_pictures(turn_some(room, [0, 2, 3])), room)
    check_same(turn_pictures(turn_some(room, range(room.num_views))), room)


def test_square_pictures_turn_by_quarters_of_their_own():
    room = crop(make_room("wide"), 24, 0)
    assert room.images.shape[1] == room.images.shape[2]
    mixed = turn_some(turn_some(turn_some(room, [1, 4], 1), [5, 6], 2), [9], 3)
    assert count_picture_turns(mixed.cam2world).tolist() == [0, 1, 0, 0, 1, 2, 2, 0, 0, 3, 0, 0]
    with pytest.warns(WorldWarning, match=r"right: 2 of 12 upside down \(.*\), 3 of 12 on their side \(.*rotate auto"):
        check_world(mixed)
    check_same(turn_pictures(mixed), room)


@pytest.mark.parametrize(("shape", "views"), [("wide", [2, 7, 9]), ("tall", [5])])
def test_a_camera_that_was_held_on_its_side_for_a_while_is_told_with_a_way_out_that_works(shape, views):
    """Pictures of one size, some taken on their side: upright, they would have another size."""
    room = make_room(shape)
    quarter = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    cam2world = np.array(room.cam2world)
    cam2world[views] = cam2world[views] @ quarter
    # What these cameras see: the wall and floor of the room would have to be rendered; cameras are all that counts.
    rolled = replace(room, cam2world=cam2world, view_names=[])
    turns = count_picture_turns(cam2world)
    assert np.flatnonzero(turns).tolist() == views and not count_picture_turns(cam2world, quarters=False).any()
    told = describe_pictures(rolled)
    assert f"{len(views)} of {room.num_views} on their side (view {views[0]}" in told and "--rotate" not in told
    assert "would have another size than the others" in told and "leave them out" in told


def test_pictures_that_look_straight_down_have_no_upper_edge():
    """A picture of the floor stays as most are."""
    room = make_room("wide")
    cam2world = np.array(room.cam2world)
    down = np.diag([1.0, -1.0, -1.0])
    cam2world[3, :3, :3] = down @ np.array([[np.cos(2), -np.sin(2), 0], [np.sin(2), np.cos(2), 0], [0, 0, 1]])
    assert not count_picture_turns(cam2world).any()
    half = np.diag([-1.0, -1, 1, 1])
    assert (count_picture_turns(cam2world @ half) == 2).all()


# ---- in a world of which nothing says where up is


@pytest.mark.parametrize(("shape", "views"), [(shape, SOME[shape][0]) for shape in SHAPES])
def test_pictures_that_disagree_in_another_world_are_named_in_place_of_an_estimate(tmp_path, shape, views):
    room = make_room(shape, 1)
    folder = write_rgbd_folder(move(turn_some(room, views), Y_UP), tmp_path / "room")
    told = rf"disagree about where up is: {len(views)} of {room.num_views} are turned against most \({name(views)}\)"
    with pytest.warns(WorldWarning, match=rf"{told}; turn these pictures .*axis_align.txt, and give --rotate auto"):
        read_scene(folder)
    with pytest.raises(ValueError, match=rf"'room': its pictures {told}; .* as --axis-align FILE, .*--rotate auto"):
        read_own_scan(folder)
    for rotate in (None, "auto"):
        with pytest.raises(ValueError, match=rf"{told}; .*axis_align.txt, and read the scan with --rotate auto"):
            align_folder(folder, False, 0.0, {"rotate": rotate})
    assert not (folder / "axis_align.txt").exists()
    # The way out that is named.
    np.savetxt(folder / "axis_align.txt", np.linalg.inv(Y_UP))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(read_scene(folder, rotate="auto"), room)
        check_same(read_own_scan(folder, reading={"rotate": "auto"}).scene, room)


@pytest.mark.parametrize(("shape", "view"), [("wide", 6), ("tall", 3)])
def test_a_single_turned_picture_does_not_keep_a_world_from_being_aligned(tmp_path, shape, view):
    room = make_room(shape)
    folder = write_rgbd_folder(move(turn_some(room, [view]), Y_UP), tmp_path / "room")
    told = f"1 of {room.num_views} upside down ({name([view])}); give --rotate auto"
    assert told in read_own_scan(folder).alignment
    scan = read_own_scan(folder, reading={"rotate": "auto"})
    assert "upside down" not in scan.alignment and not count_picture_turns(scan.scene.cam2world).any()
    assert np.array_equal(scan.scene.images, room.images)
    assert np.array_equal(scan.read_views(room.num_views).images, room.images)
    assert told in align_folder(folder, False, 0.5).told
    assert np.array_equal(read_scene(folder, rotate="auto").images, room.images)


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_by_a_world_that_is_not_upright_sets_no_pictures_against_each_other(tmp_path, shape):
    folder = write_rgbd_folder(move(make_room(shape, 2), Y_UP), tmp_path / "room")
    with pytest.warns(WorldWarning, match="its floor is tilted by 90 degrees, y is up.*prepare align"):
        scene = read_scene(folder, rotate="auto")
    turned = np.linalg.inv(move(make_room(shape, 2), Y_UP).cam2world) @ scene.cam2world
    np.testing.assert_allclose(turned, turned[:1].repeat(len(turned), axis=0), atol=1e-5)


def test_an_alignment_that_was_given_says_where_up_is_without_a_floor(tmp_path):
    """Half of the pictures upside down, and nothing but what lies high in view."""
    room = make_room("wide", 1)
    rows = np.arange(room.depth_maps.shape[1])[:, None]
    high = replace(room, depth_maps=np.where(rows < 18, room.depth_maps, 0))
    mixed = turn_some(high, SOME["wide"][1])
    with pytest.warns(WorldWarning, match="its pictures disagree about where up is: 6 of 12"):
        check_world(mixed)
    with pytest.warns(WorldWarning, match="not upright, though their cameras are right: 6 of 12 upside down"):
        check_world(replace(mixed, axis_align_matrix=np.eye(4), path=tmp_path))


def test_cameras_that_look_down_all_around_do_not_disagree():
    """Their ups are far from each other, and near their mean."""
    angles = np.linspace(0, 2 * np.pi, 15, endpoint=False)
    scene = make_room("wide")
    cameras = []
    for angle in angles:
        forward = np.array([np.cos(angle) * 0.5, np.sin(angle) * 0.5, -np.sqrt(0.75)])
        right = np.array([np.sin(angle), -np.cos(angle), 0])
        camera = np.eye(4)
        camera[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        cameras.append(camera)
    cam2world = np.stack(cameras)
    around = replace(scene, cam2world=cam2world, images=np.zeros((15, 4, 5, 3), np.uint8), view_names=[])
    assert describe_disagreement(around) is None
    cam2world[::3] = cam2world[::3] @ np.diag([-1.0, -1, 1, 1])
    assert find_dissenters(cam2world).tolist() == [0, 3, 6, 9, 12]
    assert "5 of 15 are turned against most (view 0, view 3," in describe_disagreement(around)


# ---- of two sizes


@pytest.mark.parametrize(("shape", "views"), [("wide", [2, 7, 9]), ("tall", [0, 1, 3, 5, 6, 8])])
def test_frames_on_their_side_are_named_where_their_size_differs(tmp_path, shape, views):
    room = make_room(shape)
    folder = write_rgbd_folder(room, tmp_path / "room")
    for view in views:
        for kind in ("color", "depth"):
            file = next(folder.glob(f"frame-{view:06d}.{kind}.png"))
            Image.fromarray(np.ascontiguousarray(np.rot90(np.asarray(Image.open(file))))).save(file)
    fewer = views if 2 * len(views) <= room.num_views else sorted(set(range(room.num_views)) - set(views))
    told = rf"{len(fewer)} of {room.num_views} seem to lie on their side, width and height exchanged \({name(fewer)}\)"
    with pytest.raises(ValueError, match=rf"depth map of size .* have one size, and {told}: turn these upright"):
        read_scene(folder, rotate="auto")


def test_frames_of_another_size_do_not_lie_on_their_side(tmp_path):
    folder = write_rgbd_folder(make_room("wide"), tmp_path / "room")
    Image.fromarray(np.full((36, 48), 900, np.uint16)).save(folder / "frame-000004.depth.png")
    with pytest.raises(ValueError, match="have one size: split the scan, or resize with the intrinsics"):
        read_scene(folder)


# ---- depth that is turned against its camera


@pytest.mark.parametrize(("shape", "views"), CASES)
def test_depth_maps_that_are_turned_without_their_cameras_are_named(shape, views):
    wrong = turn_some(make_room(shape, 3), views, cameras=False)
    names = [f"frame-{view:06d}" for view in range(wrong.num_views)]
    found = find_disagreement(get_cameras(wrong), names)
    assert (
        found.reason
        == f"{name(views)}: the depth map is upside down against the camera, those of the other views are not"
    )
    assert "diag(-1, -1, 1, 1)" in found.remedy and found.explained_share > 0.99
    assert found.certain == (found.share < 0.7)
    message = rf"{views[0]:06d}.*depth map is upside down"
    if found.certain:
        with pytest.raises(ValueError, match=message):
            check_consistency(replace(wrong, view_names=names))
    else:
        with pytest.warns(ConsistencyWarning, match=message):
            check_consistency(replace(wrong, view_names=names))


def test_square_depth_maps_may_be_turned_by_a_quarter():
    wrong = turn_some(crop(make_room("wide", 2), 24, 0), [2, 9], 1, cameras=False)
    found = find_disagreement(get_cameras(wrong), [str(view) for view in range(12)])
    assert found.reason.startswith("2, 9: the depth map is turned by quarter turns against the camera")


def turn_depth(scene, turns: int):
    """The depth maps of all views after clockwise quarter turns, their pictures and cameras as they are."""
    return replace(scene, depth_maps=np.ascontiguousarray(np.rot90(scene.depth_maps, -turns, axes=(1, 2))))


def check_or_tell(scene) -> str:
    """What a check says of a scan, as an error or a warning; nothing of a right one."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            check_consistency(scene)
        except ValueError as error:
            return str(error)
    return " ".join(str(one.message) for one in told)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_colours_tell_whether_depth_was_turned_alone_or_with_its_pictures(shape, turns):
    """The remedies that are named lead to a scan of which nothing is told."""
    room = crop(make_room(shape, 2), *SQUARE[shape])
    alone = turn_depth(room, turns)
    back = {1: "90 degrees counter-clockwise", 2: "180 degrees", 3: "90 degrees clockwise"}[turns]
    told = check_or_tell(alone)
    assert f"against their cameras and pictures; turn the depth maps, and nothing else, back by {back}." in told
    assert check_or_tell(turn_depth(alone, -turns)) == ""
    along = turn_some(room, range(room.num_views), turns, cameras=False)
    told = check_or_tell(along)
    assert (f"turn both back by {back}, or the cameras along" if turns % 2 else "PyTorch3D axes") in told
    assert check_or_tell(turn_some(along, range(room.num_views), -turns, cameras=False)) == ""
    grey = replace(alone, images=np.full_like(alone.images, 90))
    told = check_or_tell(grey)
    assert "either the depth maps are turned" in told and f"if not, turn them back by {back}; if they do" in told


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(("shape", "rows", "columns"), [("wide", (0, 72), (12, 84)), ("tall", (14, 74), (0, 60))])
def test_the_rotation_that_is_named_turns_cameras_along(shape, rows, columns, turns):
    """Square pictures whose principal point is in the middle."""
    room = make_room(shape, 2)
    middle = np.s_[:, slice(*rows), slice(*columns)]
    room = replace(
        room,
        images=room.images[middle],
        depth_maps=room.depth_maps[middle],
        intrinsics=room.intrinsics - np.array([[0, 0, columns[0]], [0, 0, rows[0]], [0, 0, 0]]),
    )
    along = turn_some(room, range(room.num_views), turns, cameras=False)
    told = check_or_tell(along)
    rotation = np.array(json.loads(re.search(r"each rotation by (\[\[.*\]\])", told)[1]))
    cam2world = np.array(along.cam2world)
    cam2world[:, :3, :3] = cam2world[:, :3, :3] @ rotation
    assert check_or_tell(replace(along, cam2world=cam2world)) == ""


@pytest.mark.parametrize(("shape", "views"), [("wide", [2, 9]), ("tall", [4])])
def test_depth_of_some_views_that_was_turned_alone_is_to_be_turned_alone(shape, views):
    room = crop(make_room(shape, 2), *SQUARE[shape])
    depth_maps = np.array(room.depth_maps)
    depth_maps[views] = np.rot90(depth_maps[views], axes=(1, 2))
    assert "turn these depth maps back, and nothing else" in check_or_tell(replace(room, depth_maps=depth_maps))
    assert "turn these depth maps back, with the pictures" in check_or_tell(turn_some(room, views, 1, cameras=False))


def test_a_frame_of_another_place_is_not_called_turned():
    room = make_room("wide", 2)
    cam2world = np.array(room.cam2world)
    cam2world[4, :3, :3] = cam2world[4, :3, :3] @ Rotation.from_euler("y", 50, degrees=True).as_matrix()
    found = find_disagreement(get_cameras(replace(room, cam2world=cam2world)), [str(view) for view in range(12)])
    assert found.reason == "4: pose or depth does not fit the other views"


# ---- pictures that are turned over their depth


@pytest.mark.parametrize(("shape", "views"), [*CASES, ("wide", list(range(12))), ("tall", [0, 1, 2, 3, 5, 6, 7])])
def test_pictures_that_are_turned_over_their_depth_are_named(shape, views):
    wrong = turn_some(make_room(shape, 4), views, depth=False, cameras=False)
    turns = find_turned_pictures(wrong.images, get_cameras(wrong))
    assert np.flatnonzero(turns).tolist() == views and set(turns[views]) == {2}
    count = f"all {len(views)}" if len(views) == wrong.num_views else f"{len(views)} of {wrong.num_views}"
    with pytest.warns(ConsistencyWarning, match=f"{count} pictures are upside down over their depth maps"):
        check_consistency(wrong)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_are_not_blamed_where_few_readings_contradict_wrong_cameras(shape, turns):
    """Two views of turned cameras see some places of the same colours by chance."""
    for index in range(6):
        room = crop(make_room(shape, index), *SQUARE[shape])
        arrays = {key: getattr(room, key)[:2] for key in ("images", "depth_maps", "cam2world", "intrinsics")}
        room = replace(room, view_names=[], **arrays)
        assert check_or_tell(room) == ""
        told = check_or_tell(turn_some(room, range(2), turns, cameras=False))
        assert "over their depth maps" not in told


@pytest.mark.parametrize("kind", ["right", "noise", "one colour", "no reading"])
def test_colours_that_tell_nothing_turn_no_picture(kind):
    room = make_room("tall", 5)
    images = {
        "right": room.images,
        "noise": np.random.default_rng(0).integers(0, 256, room.images.shape, dtype=np.uint8),
        "one colour": np.full_like(room.images, 90),
        "no reading": room.images[:, ::-1, ::-1],
    }[kind]
    depth_maps = np.zeros_like(room.depth_maps) if kind == "no reading" else room.depth_maps
    assert not find_turned_pictures(images, get_cameras(replace(room, depth_maps=depth_maps))).any()
    square = crop(replace(room, images=images, depth_maps=depth_maps), 0, 28)
    assert not find_turned_pictures(square.images, get_cameras(square)).any()


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize(
    ("shape", "views"),
    [("wide", [6]), ("wide", [1, 4, 5, 8]), ("wide", list(range(12))), ("tall", [3]), ("tall", list(range(9)))],
)
def test_square_pictures_on_their_side_over_their_depth_are_named(shape, views, turns):
    room = crop(make_room(shape, 4), *SQUARE[shape])
    wrong = turn_some(room, views, turns, depth=False, cameras=False)
    found = find_turned_pictures(wrong.images, get_cameras(wrong))
    assert np.flatnonzero(found).tolist() == views and set(found[views]) == {turns}
    count = f"all {len(views)}" if len(views) == wrong.num_views else f"{len(views)} of {wrong.num_views}"
    way = "counter-clockwise" if turns == 1 else "clockwise"
    told = rf"{count} pictures are on their side over their depth maps.*: turn these files by 90 degrees {way}\."
    with pytest.warns(ConsistencyWarning, match=told):
        check_consistency(wrong)


def test_pictures_turned_in_several_ways_over_their_depth_are_each_named():
    room = crop(make_room("wide", 4), 24, 0)
    wrong = room
    for turns, views in ((1, [2]), (2, [5, 9]), (3, [7])):
        wrong = turn_some(wrong, views, turns, depth=False, cameras=False)
    found = find_turned_pictures(wrong.images, get_cameras(wrong))
    assert found.tolist() == [0, 0, 1, 0, 0, 2, 0, 3, 0, 2, 0, 0]
    with pytest.warns(ConsistencyWarning, match=rf"{name([2])}.*: .*{name([5, 9])}.* by 180 degrees; .*{name([7])}"):
        check_consistency(wrong)


def tag_some(folder, scene, views, are_stored_turned: bool, turns: int = 2) -> None:
    """Pictures `views` of an RGB-D folder state so many clockwise quarter turns, are stored so or left upright."""
    for view in views:
        picture = np.rot90(scene.images[view], -turns) if are_stored_turned else scene.images[view]
        save_tagged(picture, folder / f"frame-{view:06d}.color.png", TAGS[turns])


def write_tagged(folder, scene, views, are_stored_turned: bool) -> None:
    """An RGB-D folder whose pictures `views` state orientation 3, stored upside down or left upright."""
    write_rgbd_folder(scene, folder)
    tag_some(folder, scene, views, are_stored_turned)


@pytest.mark.parametrize(("shape", "views"), [*CASES, ("wide", list(range(12)))])
def test_a_tag_that_was_left_on_upright_pixels_is_not_obeyed(tmp_path, shape, views):
    room = make_room(shape, 5)
    write_tagged(tmp_path / "room", room, views, are_stored_turned=False)
    count = f"all {len(views)}" if len(views) == room.num_views else rf"{len(views)} of {room.num_views}"
    with pytest.warns(
        UserWarning, match=rf"room.*: {count} pictures carry an EXIF orientation.* not obeyed.*take the tag"
    ):
        check_same(read_scene(tmp_path / "room"), room)
    write_tagged(tmp_path / "other", room, views, are_stored_turned=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_same(read_scene(tmp_path / "other"), room)


@pytest.mark.parametrize(
    ("shape", "is_square", "turns", "right", "stale"),
    [
        ("wide", True, 3, [1, 2], [5, 6]),
        ("wide", True, 1, [0, 3, 4, 7, 8], [10]),
        ("tall", True, 3, [4], [0, 1, 2]),
        ("wide", False, 2, [1, 2], [5, 6]),
        ("tall", False, 2, [2, 3, 7], [5]),
        ("tall", False, 2, [0, 2, 4, 6, 8], [1, 3, 5, 7]),
        ("wide", False, 2, [1, 3, 4, 7, 8, 9], [0, 2, 5, 6, 10]),
    ],
)
def test_right_and_stale_tags_of_one_scan_are_told_apart(tmp_path, shape, is_square, turns, right, stale):
    """Depth is upright in all; a tag is right where the picture is stored turned."""
    room = crop(make_room(shape, 5), *SQUARE[shape]) if is_square else make_room(shape, 5)
    room = replace(room, intrinsics=room.intrinsics[0] if room.intrinsics.ndim == 3 else room.intrinsics)
    folder = write_rgbd_folder(room, tmp_path / "room")
    tag_some(folder, room, right, True, turns)
    tag_some(folder, room, stale, False, turns)
    with pytest.warns(
        UserWarning, match=rf"{len(stale)} of {room.num_views} .*\({name(stale)}\) that is not obeyed"
    ) as told:
        check_same(read_scene(folder), room)
    assert len(told) == 1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_stale_tag_in_another_world_is_found_by_the_world(tmp_path, shape):
    """All pictures state orientation 3, so cameras tell nothing; turned with their depth, they are upside down."""
    room = make_room(shape, 1)
    write_tagged(tmp_path / "room", move(room, Y_UP), range(room.num_views), are_stored_turned=False)
    scan = read_own_scan(tmp_path / "room")
    assert f"all {room.num_views} upside down; give --rotate auto" in scan.alignment
    scan = read_own_scan(tmp_path / "room", reading={"rotate": "auto"})
    assert np.array_equal(scan.scene.images, room.images)
    np.testing.assert_allclose(scan.scene.depth_maps, room.depth_maps, atol=6e-4)


def test_a_tag_that_nothing_confirms_is_told(tmp_path):
    room = make_room("wide", 5)
    plain = replace(room, images=np.full_like(room.images, 120))
    write_tagged(tmp_path / "room", plain, [1, 2], are_stored_turned=False)
    with pytest.warns(
        UserWarning, match=r"2 of 12 pictures carry an EXIF orientation \(.*\) that turned .*: look, and take"
    ) as told:
        scene = read_scene(tmp_path / "room")
    assert len(told) == 1
    np.testing.assert_allclose(scene.cam2world, room.cam2world, atol=1e-5)


@pytest.mark.parametrize(("shape", "view"), [("wide", 6), ("tall", 4)])
def test_an_alignment_is_not_to_be_written_by_hand_while_views_disagree(tmp_path, shape, view):
    folder = write_rgbd_folder(turn_some(make_room(shape, 1), [view], cameras=False), tmp_path / "room")
    told = rf"mend first what was found of its views: scene 'room': .*{name([view])}: the depth map is upside down"
    with (
        pytest.warns(ConsistencyWarning, match="upside down"),
        pytest.raises(ValueError, match=rf"less than --min-confidence 1; {told}") as caught,
    ):
        align_folder(folder, False, 1.0)
    assert "own 4x4 matrix" not in str(caught.value)
