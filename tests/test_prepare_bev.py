"""Bird's-eye pictures of data folders and of meshes: every layout, only what is missing, and what they show."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ross3d.data.bev import render_scene_bev
from ross3d.data.prepare.__main__ import main
from ross3d.data.prepare.bev import list_scene_folders, render_mesh_bev, sample_mesh
from ross3d.data.sources import read_scene
from ross3d.data.sources.ply import Mesh
from ross3d.data.sources.rgbd_folder import read_rgbd_folder, write_rgbd_folder
from ross3d.tests.public_files import write_posed_images
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.test_prepare import hash_files, list_states
from ross3d.tests.tiny import get_rooms


def run(*arguments) -> None:
    main(["bev", *map(str, arguments), "--num-workers", "1"])


@pytest.fixture
def rooms(tmp_path) -> Path:
    """Two training rooms and one held-out one."""
    for name in ("train/train-000001", "train/train-000004", "val/val-000000"):
        shutil.copytree(get_rooms() / name, tmp_path / "rooms" / name)
    return tmp_path / "rooms"


def test_only_what_is_missing_is_made(rooms, capsys):
    run("--data", rooms, "--bev-size", 56)
    assert capsys.readouterr().out == f"{rooms}: 3 made, 0 there already\n"
    for folder in list_scene_folders(rooms):
        scene = read_rgbd_folder(folder)
        assert scene.bev_image.shape == (56, 56, 3) and np.array_equal(scene.bev_valid, scene.bev_image.any(-1))
    made, states = hash_files(rooms), list_states(rooms)
    run("--data", rooms, "--bev-size", 56)
    assert "0 made, 3 there already" in capsys.readouterr().out
    assert list_states(rooms) == states
    (rooms / "val" / "val-000000" / "bev.png").unlink()
    (rooms / "train" / "train-000001" / ".bev.png.17.0123abcd.partial").write_text("half")
    shutil.copy(rooms / "val" / "val-000000" / "bev.json", rooms / "train" / "train-000001")
    (rooms / "train" / "train-000001" / "bev.png").unlink()
    run("--data", rooms, "--bev-size", 56)
    assert "2 made, 1 there already" in capsys.readouterr().out and hash_files(rooms) == made
    run("--data", rooms, "--bev-size", 40, "--num-workers", 2)
    assert "3 made" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("", ["train-000001", "train-000004", "val-000000"]),
        ("train", ["train-000001", "train-000004"]),
        ("val/val-000000", ["val-000000"]),
    ],
)
def test_a_data_set_a_split_and_a_scene_are_found(rooms, place, names):
    assert [folder.name for folder in list_scene_folders(rooms / place)] == names


def test_folders_without_scans(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="--data: .*nothing is not a folder; give the data set, a split or one"
    ):
        run("--data", tmp_path / "nothing")
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(
        FileNotFoundError, match="--data: no folder of a scan in .*empty, two levels deep; prepare the"
    ):
        run("--data", tmp_path / "empty")


def test_folders_that_look_like_scans_are_not_left_out_in_silence(scan, tmp_path):
    write_posed_images(tmp_path, "scene0004_00", scan)
    data = tmp_path / "posed_images"
    (data / "attic").mkdir()
    (data / "attic" / "transforms (1).json").touch()
    with pytest.warns(
        UserWarning, match=r"--data: left out: .*attic is no scan of .*; transforms \(1\).json is not read"
    ):
        assert [folder.name for folder in list_scene_folders(data)] == ["scene0004_00"]
    (data / "scene0004_00").rename(tmp_path / "elsewhere")
    (data / "cellar" / "color").mkdir(parents=True)
    (data / "cellar" / "pose").mkdir()
    for name in ("color/0.png", "pose/0.txt"):
        (data / "cellar" / name).touch()
    with pytest.raises(
        ValueError, match=r"--data: expected a folder of scans, got 2 that cannot be read: .*attic is no"
    ):
        list_scene_folders(data)


def test_a_scene_that_fails_is_named_and_the_others_are_made(rooms):
    for file in (rooms / "train" / "train-000004").glob("*.depth.png"):
        file.unlink()
    with pytest.raises(ValueError, match=r"(?s)bird's-eye pictures: 1 of 3 failed.*train-000004: .*has no depth"):
        run("--data", rooms, "--bev-size", 56)
    for name in ("train/train-000001", "val/val-000000"):
        scene = read_rgbd_folder(rooms / name)
        np.testing.assert_array_equal(scene.bev_image, render_scene_bev(scene, 56).image)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), "scene0004_00", 3, 31)


def test_any_layout_gets_a_picture_that_its_reader_finds(scan, tmp_path):
    shutil.copytree(scan.folder.parents[1], tmp_path / "raw")
    write_posed_images(tmp_path / "scannet", "scene0004_00", scan)
    for folder in (tmp_path / "raw" / "scans", tmp_path / "scannet" / "posed_images"):
        assert read_scene(folder / "scene0004_00").bev_image is None
        run("--data", folder, "--bev-size", 52)
        scene = read_scene(folder / "scene0004_00")
        assert scene.bev_image.shape == (52, 52, 3) and scene.bev_valid.mean() > 0.3
        assert scene.bev_bounds[2] - scene.bev_bounds[0] > 2
        turned = read_scene(folder / "scene0004_00", axis_align_matrix=np.eye(4))
        assert turned.bev_image is None, "the picture is of another world"


def get_cell(bounds: np.ndarray, size: int, x: float, y: float) -> tuple[int, int]:
    xmin, ymin, xmax, ymax = bounds
    return int((ymax - y) / (ymax - ymin) * size), int((x - xmin) / (xmax - xmin) * size)


@pytest.mark.parametrize("size", [240, 300])
def test_a_mesh_from_above_is_the_room(scan, size):
    """Floor where nothing stands, void beyond the long walls, furniture at its place, the ceiling taken off."""
    picture = render_mesh_bev(scan.vertices, Mesh(scan.vertices, scan.colors, faces=scan.faces), size, "mesh")
    low, high = scan.room.low, scan.room.high
    assert picture.image.shape == (size, size, 3)
    ceiling = np.full(3, 238)
    assert not (picture.image == ceiling).all(-1).any()
    x, y = np.meshgrid(np.linspace(low[0] + 0.2, high[0] - 0.2, 40), np.linspace(low[1] + 0.2, high[1] - 0.2, 40))
    covered = np.zeros(x.shape, bool)
    for box in scan.boxes[2:]:
        covered |= (np.abs(x - box[0]) < box[3] / 2 + 0.2) & (np.abs(y - box[1]) < box[4] / 2 + 0.2)
    floor = np.clip(scan.room.floor_color, 0, 255).astype(np.uint8)
    free = [
        picture.image[get_cell(picture.bounds, size, *place)] for place in zip(x[~covered], y[~covered], strict=True)
    ]
    assert len(free) > 200 and (np.stack(free) == floor).all()
    for box in scan.boxes[2:]:
        assert not (picture.image[get_cell(picture.bounds, size, *box[:2])] == floor).all()
    _, columns = np.nonzero(picture.valid)
    cell = float(picture.bounds[2] - picture.bounds[0]) / size
    assert (columns.max() - columns.min() + 1) * cell == pytest.approx(high[0] - low[0], abs=3 * cell)


def test_mesh_and_published_pictures_of_prepared_scenes(scan, tmp_path, capsys):
    """By the command, from the scans' folder; a published picture has no bounds."""
    shutil.copytree(scan.folder.parents[1], tmp_path / "raw")
    shutil.copytree(get_rooms() / "val" / "val-000000", tmp_path / "data" / "val" / "scene0004_00")
    scans = tmp_path / "raw" / "scans"
    picture = np.zeros((30, 30, 3), np.uint8)
    picture[10:20, 10:20] = 200
    Image.fromarray(picture).save(scans / "scene0004_00" / "view_0.png")
    for source, more in (("mesh", ["--bev-size", 44]), ("published", [])):
        run("--data", tmp_path / "data", "--from", source, "--scans", scans, *more)
        run("--data", tmp_path / "data", "--from", source, "--scans", scans, *more)
        assert capsys.readouterr().out.splitlines()[1].endswith("0 made, 1 there already")
        folder = tmp_path / "data" / "val" / "scene0004_00"
        scene = read_rgbd_folder(folder)
        if source == "mesh":
            vertices = scan.vertices.astype(np.float32)
            mesh = render_mesh_bev(vertices, Mesh(vertices, scan.colors, faces=scan.faces), 44, "mesh")
            assert (np.abs(scene.bev_image.astype(int) - mesh.image).max(-1) > 3).mean() < 0.02
        else:
            assert np.array_equal(scene.bev_image, picture) and scene.bev_bounds is None
            assert json.loads((folder / "bev.json").read_text()) == {"bounds": None, "made": {"from": "published"}}


def test_a_picture_without_bounds_comes_back(tmp_path):
    scene = read_rgbd_folder(get_rooms() / "val" / "val-000001")
    scene.bev_bounds = None
    again = read_rgbd_folder(write_rgbd_folder(scene, tmp_path / "room"))
    assert again.bev_bounds is None and np.array_equal(again.bev_image, scene.bev_image)


def test_points_of_a_mesh_lie_close():
    """No place of a triangle is further from a point than the spacing; small triangles have their corners alone."""
    rng = np.random.default_rng(3)
    vertices = np.array([[0, 0, 0], [1.0, 0, 0.2], [0.1, 0.7, 0], [0, 0.01, 0]], np.float32)
    colors = np.array([[0, 0, 0], [240, 0, 0], [0, 120, 0], [0, 0, 60]], np.uint8)
    points, shades = sample_mesh(vertices, colors, np.array([[0, 1, 2]]), 0.05)
    weights = rng.dirichlet(np.ones(3), 500)
    places, colored = weights @ vertices[:3], weights @ colors[:3].astype(float)
    gaps = np.linalg.norm(points[:, None] - places, axis=-1)
    assert gaps.min(0).max() < 0.05
    assert np.abs(shades[gaps.argmin(0)] - colored).max() < 240 * 0.1
    few, _ = sample_mesh(vertices, colors, np.array([[0, 1, 2]]), 2.0)
    assert len(few) == len(vertices)
