"""Frames that lost a file are counted and limited, whichever file it was; errors offer only what helps."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ross3d.data.scene import Scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.frames import Exclusions
from ross3d.data.sources.posed_images import read_posed_images
from ross3d.data.sources.rgbd_folder import read_rgbd_folder, write_rgbd_folder


NUM_FRAMES = 6
INTRINSICS = np.array([[14.0, 0, 7.5], [0, 13.0, 5.5], [0, 0, 1]])


def make_room(num_views: int = NUM_FRAMES) -> Scene:
    generator = np.random.default_rng(3)
    cam2world = np.tile(np.eye(4), (num_views, 1, 1))
    cam2world[:, 0, 3] = np.linspace(0, 1, num_views)
    return Scene(
        scene_id="room",
        images=generator.integers(0, 255, (num_views, 12, 16, 3), dtype=np.uint8),
        depth_maps=generator.uniform(1, 3, (num_views, 12, 16)).astype(np.float32),
        intrinsics=INTRINSICS,
        cam2world=cam2world,
    )


@pytest.fixture(scope="module")
def rgbd(tmp_path_factory):
    return write_rgbd_folder(make_room(), tmp_path_factory.mktemp("rgbd") / "room")


@pytest.fixture
def folder(rgbd, tmp_path):
    return shutil.copytree(rgbd, tmp_path / "room")


@pytest.fixture
def export(folder, tmp_path):
    """The same frames as the public export of ScanNet."""
    path = tmp_path / "posed_images" / "scene0001_00"
    path.mkdir(parents=True)
    whole = np.eye(4)
    whole[:3, :3] = INTRINSICS
    np.savetxt(path / "depth_intrinsic.txt", whole)
    for index in range(NUM_FRAMES):
        stem = folder / f"frame-{index:06d}"
        Image.open(f"{stem}.color.png").save(path / f"{10 * index:05d}.jpg")
        shutil.copy(f"{stem}.depth.png", path / f"{10 * index:05d}.png")
        shutil.copy(f"{stem}.pose.txt", path / f"{10 * index:05d}.txt")
    return path


def remove_pictures(folder, indices, pattern="frame-{:06d}.color.png", step=1) -> None:
    for index in indices:
        (folder / pattern.format(step * index)).unlink()


def test_pictures_that_are_gone_count_in_a_folder_of_frames(folder):
    remove_pictures(folder, [1, 4])
    with pytest.raises(
        FileNotFoundError,
        match="frame-000001.color.jpg: the picture does not exist; copy it again, or leave the frame out; or raise the"
        " limit: --max-excluded SHARE",
    ):
        read_rgbd_folder(folder)
    with pytest.warns(UserWarning, match="left out 2 of 6 frames .picture is missing: 2, such as"):
        scene = read_rgbd_folder(folder, max_excluded=0.5)
    assert scene.view_names == [f"frame-{index:06d}" for index in (0, 2, 3, 5)]
    remove_pictures(folder, [0, 2, 3])
    with pytest.raises(ValueError, match="5 of 6 listed pictures are not there, more than 50% of them .*; repair"):
        read_rgbd_folder(folder, max_excluded=0.5)


def test_a_pose_or_a_depth_map_alone_is_a_frame(folder):
    remove_pictures(folder, [2, 3])
    (folder / "frame-000002.pose.txt").unlink()
    (folder / "frame-000003.depth.png").unlink()
    with pytest.warns(UserWarning, match="left out 2 of 6 frames"):
        assert read_rgbd_folder(folder, max_excluded=0.4).num_views == 4
    # Nothing is left of a frame that was removed as a whole.
    (folder / "frame-000002.depth.png").unlink()
    (folder / "frame-000003.pose.txt").unlink()
    assert read_rgbd_folder(folder).num_views == 4


def test_pictures_that_are_gone_count_in_an_export(export):
    remove_pictures(export, [1, 2, 5], "{:05d}.jpg", 10)
    with pytest.warns(UserWarning, match="left out 3 of 6 frames .picture is missing: 3, such as .*00010.jpg: the"):
        assert read_posed_images(export).view_names == ["00000", "00030", "00040"]
    remove_pictures(export, [3, 4], "{:05d}.jpg", 10)
    with pytest.raises(ValueError, match="5 of 6 listed pictures are not there, more than 50% of them .*--max-exclu"):
        read_posed_images(export)


@pytest.mark.parametrize("file", ["frame-000003.pose.txt", "frame-000003.depth.png"])
def test_a_missing_pose_or_depth_map_names_the_way_out(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing.*; or raise the limit: --max-excluded SHARE"):
        read_scene(folder)
    with pytest.warns(UserWarning, match="left out 1 of 6 frames"):
        assert read_scene(folder, max_excluded=0.2).num_views == 5


def test_no_limit_is_offered_where_none_helps(folder, export):
    for file in export.glob("*.png"):
        Image.fromarray(np.full((12, 16), 9, np.uint8)).save(file)
    with pytest.raises(ValueError) as caught:
        read_posed_images(export)
    assert "scene 'scene0001_00': depth map cannot be read: 6, such as" in str(caught.value)
    assert str(caught.value).endswith("save depth as uint16. 0 of 6 frames can be used.")
    assert "--max-excluded" not in str(caught.value)
    for file in folder.glob("*.depth.png"):
        Image.fromarray(np.full((12, 16), 9, np.uint8)).save(file)
    with pytest.raises(ValueError, match="frame-000000.depth.png: expected a 16-bit .*save depth as uint16.$"):
        read_rgbd_folder(folder)


def test_poses_of_zeros_are_lost_tracking(folder):
    np.savetxt(folder / "frame-000002.pose.txt", np.zeros((4, 4)))
    # Some tools keep the last row.
    np.savetxt(folder / "frame-000004.pose.txt", np.diag([0.0, 0, 0, 1]))
    message = "scene 'room', frame-000002: cam2world is all zeros, so tracking was lost there; leave the frame out; or"
    with pytest.raises(ValueError, match=message):
        read_rgbd_folder(folder)
    with pytest.warns(UserWarning, match="left out 2 of 6 frames .tracking was lost: 2, such as"):
        scene = read_rgbd_folder(folder, max_excluded=0.5)
    assert scene.exclusions == dict.fromkeys(["frame-000002", "frame-000004"], "tracking was lost")
    exclusions = Exclusions("scene 'room'", 0.5)
    assert list(exclusions.drop_lost({"a": np.eye(4), "b": np.zeros((4, 4))})) == ["a"]
