"""Folders of two layouts, or of one that is known and not read; names and cameras that belong elsewhere."""

import json
import math
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources import find_layout, read_scene
from ross3d.data.sources.inside import OutsideError, resolve_inside
from ross3d.data.sources.nerfstudio import read_nerfstudio
from ross3d.inputs_ross3d import check_intrinsics
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import save_transforms, write_nerfstudio, write_rgbd


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=2, index=2)


@pytest.fixture
def content(raw, tmp_path):
    return write_nerfstudio(raw, tmp_path / "capture")


@pytest.fixture
def folder(content, tmp_path):
    return tmp_path / "capture"


FOREIGN = {
    "ICL-NUIM": ["associations.txt", "livingRoom0.gt.freiburg", "rgb/0.png", "depth/0.png"],
    "Record3D's EXR": ["EXR_RGBD/metadata.json", "EXR_RGBD/rgb/0.jpg", "EXR_RGBD/depth/0.exr"],
    "LLFF": ["poses_bounds.npy", "images/a.JPG"],
    "Metashape": ["cameras.xml", "images/a.jpg"],
    "ETH3D": ["dslr_calibration_undistorted/cameras.txt", "images/dslr_images_undistorted/a.JPG"],
    "Hypersim": ["images/scene_cam_00_final_hdf5/frame.0000.color.hdf5"],
    "KITTI": ["image_02/data/0000000000.png", "oxts/data/0000000000.txt"],
    "full resolution": ["vga_wide/4733_1.0.png"],
    "3D Scanner App": ["frame_00000.jpg", "frame_00000.json", "info.json", "depth_00000.png", "textured.jpg"],
    "workspace of COLMAP": ["distorted/sparse/0/cameras.bin", "input/a.jpg", "images/a.jpg"],
    "numbered pictures": ["000000.jpg", "000000.png", "000000.txt"],
    "pictures without cameras": ["IMG_0001.HEIC"],
    "RTAB-Map": ["rgb/1.jpg", "depth/1.png", "calib/1.yaml", "poses.txt"],
    "SUN RGB-D": ["image/a.jpg", "depth/a.png", "depth_bfx/a.png", "extrinsics/a.txt", "intrinsics.txt"],
    "MVSNet": ["images/00000000.jpg", "cams/00000000_cam.txt", "pair.txt"],
    "folders of their own": ["rgb/0.png", "depth/0.png", "poses/0.txt"],
}
# The same under other names, in other parts, in upper case.
VARIANTS = [
    ("ScanNet's SensReader", ["color/0.png", "depth/0.png", "pose/0.txt", "intrinsic/intrinsic_depth.txt"]),
    ("ScanNet's SensReader", ["Color/0.JPG", "Depth/0.PNG", "Pose/0.TXT"]),
    ("Matterport3D", ["matterport_camera_poses/a_pose_0_0.txt", "matterport_camera_intrinsics/a_intrinsics_0.txt"]),
    ("Matterport3D", ["undistorted_color_images/a_i0_0.jpg"]),
    (
        "ScanNet\\+\\+",
        ["nerfstudio/transforms.json", "nerfstudio/transforms_undistorted.json", "resized_images/a.JPG"],
    ),
    ("ScanNet\\+\\+", ["transforms_undistorted.json", "train_test_lists.json"]),
    ("TUM RGB-D", ["associations.txt", "rgb/1305031102.175304.png", "depth/1305031102.160407.png"]),
    ("RTAB-Map", ["rtabmap.db"]),
    ("RTAB-Map", ["room_rgb/1.jpg", "room_depth/1.png", "room_calib/1.yaml", "room_camera_poses.txt"]),
    ("SUN RGB-D", ["fullres/a.jpg", "intrinsics.txt"]),
    ("Redwood", ["Apartment.LOG", "depth/1.png", "image/1.jpg"]),
    ("folders of their own", ["images/0.jpg", "poses/0.txt", "intrinsics.txt"]),
    ("folders of their own", ["rgb/0.jpg", "depth/0.png"]),
    ("pictures without cameras", ["images/IMG_0001.JPEG"]),
    ("ORB-SLAM", ["KeyFrameTrajectory.txt", "rgb/0.png"]),
    ("ORB-SLAM", ["CameraTrajectory_kinect.txt", "walk.mp4"]),
    ("numbered pictures", ["frame000000.color.png", "frame000000.pose.txt"]),
    ("numbered pictures", ["frame-000000.PNG", "frame-000000-depth.png", "frame-000000.txt"]),
]


def write_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"1")
    return folder


@pytest.mark.parametrize(("name", "files"), [*FOREIGN.items(), *VARIANTS])
def test_known_layouts_are_named_with_a_way_out(tmp_path, name, files):
    write_files(tmp_path, files)
    with pytest.raises(ValueError, match=f"is an? .*{name}|is {name}") as caught:
        find_layout(tmp_path)
    assert "which is not read as it is; " in str(caught.value) and "the layout of this folder" not in str(caught.value)
    # A download that was unpacked into a folder of its own names that folder.
    outer = write_files(tmp_path.parent / f"{tmp_path.name}_outer", [f"export/scan/{file}" for file in files])
    told = "outer/export/scan is" if name == "pictures without cameras" else "outer is .*export.* in it is"
    with pytest.raises(ValueError, match=f"{told} .*{name}.*, which is not read as it is"):
        find_layout(outer)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["color/0.jpg", "poses.json"],
            "color is a folder of pictures without.*; or poses.json in .*capture may hold",
        ),
        (
            ["walk.mkv", "poses.txt"],
            "give the video .*walk.mkv, which .* cameras; or poses.txt in it may hold its cam",
        ),
        (["sub/walk.mp4", "odometry.csv"], "give the video .*walk.mp4, .*; or odometry.csv in .*capture may hold"),
        (["camera.mp4", "camera0.tif", "a.jpg"], "without cameras.*; or give the video itself: .*camera.mp4.$"),
        (
            ["rgb/0.jpg", "depth/0.png", "all_poses.json"],
            "folders of their own, .*; cameras may be in all_poses.json.$",
        ),
        (
            ["transforms-final.json", "images/0.jpg", "depth/0.png"],
            "several transforms.*be in transforms-final.json.$",
        ),
        (["nerf_transforms.json", "0.png"], "a NeRF scene of several transforms.*may be in nerf_transforms.json.$"),
        (["transforms of room.json", "rgb/0.jpeg"], "a NeRF scene.*may be in transforms of room.json.$"),
    ],
)
def test_files_that_may_hold_the_cameras_are_named(tmp_path, files, message):
    folder = write_files(tmp_path / "capture", files)
    with pytest.raises(ValueError, match=message) as caught:
        find_layout(folder)
    assert "camera0.tif" not in str(caught.value)


def test_folders_without_a_scan_say_where_one_is(raw, tmp_path):
    (tmp_path / "data" / "set").mkdir(parents=True)
    with pytest.raises(ValueError, match="set is an empty folder; give the folder of one scan, or copy"):
        find_layout(tmp_path / "data" / "set")
    write_rgbd(raw, tmp_path / "data" / "set" / "room")
    (tmp_path / "data" / "overview.png").touch()
    with pytest.raises(
        ValueError, match=r"but set/room in it is one \(rgbd_folder\); give the folder of one scan: .*set/room\.$"
    ):
        find_layout(tmp_path / "data")
    # As ARKitScenes is downloaded: raw/Training/<video>.
    video = tmp_path / "ARKitScenes" / "raw" / "Training" / "47333462"
    for folder in ("lowres_wide", "lowres_depth"):
        (video / folder).mkdir(parents=True)
    (video / "lowres_wide.traj").touch()
    for given in (video.parent, video.parents[1], video.parents[2]):
        place = video.relative_to(given)
        with pytest.raises(ValueError, match=rf"but {place} in it is one \(arkitscenes\); give .*: {video}\.$"):
            find_layout(given)
    for name, words in (("walk.gif", "an animation: convert it to a video"), ("a.heic", "a single picture: give the")):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"{name} is no folder of a scan, but {words}"):
            find_layout(tmp_path / name)


def test_the_complete_layout_is_read(folder):
    expected = read_scene(folder)
    (folder / "x.sens").touch()
    assert np.array_equal(read_scene(folder).images, expected.images)
    (folder / "x.sens").unlink()
    os.mkfifo(folder / "x.sens")
    assert find_layout(folder).name == "nerfstudio"
    # Frames without the camera that this layout needs are pictures of the other one.
    (folder / "frame-000000.color.jpg").touch()
    assert find_layout(folder).name == "nerfstudio"


def test_of_two_complete_layouts_the_other_one_is_named(raw, tmp_path):
    write_rgbd(raw, tmp_path / "room")
    content = write_nerfstudio(raw, tmp_path / "other")
    for part in ("images", "depth"):
        shutil.copytree(tmp_path / "other" / part, tmp_path / "room" / part)
    save_transforms(tmp_path / "room", content)
    with pytest.warns(UserWarning, match="is read as rgbd_folder; it is also a scan of the layout nerfstudio, which"):
        assert read_scene(tmp_path / "room").view_names == ["frame-000000", "frame-000001"]


def test_paths_are_resolved_before_they_are_compared(folder, content):
    content["frames"][0]["file_path"] = "images/../images/frame_00000.jpg"
    content["frames"][1]["file_path"] = "../capture/images/frame_00001.jpg"
    save_transforms(folder, content)
    assert read_nerfstudio(folder).num_views == 2
    assert resolve_inside(folder, "a/b/../../c.png") == folder / "c.png"
    for name in ("../x.png", "images/../../x.png", "../capture2/x.png"):
        with pytest.raises(OutsideError, match="expected a file inside .*capture, got .*which leads out of it; copy"):
            resolve_inside(folder, name)
    for name in ("C:\\data\\f.png", "d:/data/f.png", "\\\\server\\data\\f.png"):
        with pytest.raises(OutsideError, match="a path of another machine; copy it there and make") as caught:
            resolve_inside(folder, name, allow_outside=True)
        assert "--allow-outside" not in str(caught.value)
    with pytest.raises(ValueError, match="got the address 'https://github.com/f.png'; download it, and name the copy"):
        resolve_inside(folder, "https://github.com/f.png")
    with pytest.raises(OutsideError, match="row 3: expected a scene id, got '../sec', which leads out of it"):
        resolve_inside(".", "../sec", where="row 3", expected="a scene id")


def test_cameras_of_another_size_are_quoted_as_written(folder, content):
    doubled = content | {"w": 128, "h": 96}
    save_transforms(folder, doubled)
    message = (
        r"transforms.json has cameras of w = 128, h = 96 with fl_x = .*, cx = 32, cy = 24, which .*correct the siz"
    )
    with pytest.raises(ValueError, match=message):
        read_nerfstudio(folder)
    save_transforms(folder, content | {"cx": content["cy"], "cy": content["cx"]})
    with pytest.raises(
        ValueError, match="rotated by 90 degrees; w and h .*swap fl_x with fl_y and cx with cy, or turn"
    ):
        read_nerfstudio(folder)
    angle = {key: value for key, value in content.items() if key not in ("fl_x", "fl_y")} | {"camera_angle_x": 60.0}
    (folder / "transforms.json").write_text(json.dumps(angle))
    with pytest.raises(ValueError, match="camera_angle_x must be radians below pi, got 60, which looks like degrees"):
        read_nerfstudio(folder)
    save_transforms(folder, angle | {"camera_angle_x": math.radians(60.0)})
    assert abs(read_nerfstudio(folder).intrinsics[0, 0] - 16 / math.tan(math.radians(30.0))) < 1e-9


def test_a_calibration_of_the_turned_picture_is_to_be_swapped():
    landscape = np.array([[600.0, 0, 319.5], [0, 610.0, 239.5], [0, 0, 1]])
    check_intrinsics(landscape, 3, (480, 640), "cameras")
    message = (
        r"^cameras: .* 640 x 480 depth map, got focal .*, centre \[319.5, 239.5\], which seems to belong to the image"
        r" rotated by 90 degrees; swap fx with fy and cx with cy, or"
    )
    with pytest.raises(ValueError, match=message):
        check_intrinsics(landscape, 3, (640, 480), "cameras")


def test_videos_refuse_what_needs_cameras(tmp_path):
    (tmp_path / "walk.mp4").touch()
    with pytest.raises(ValueError, match="walk.mp4: axis_align_matrix: a video has no cameras and no world"):
        read_scene(tmp_path / "walk.mp4", axis_align_matrix=np.eye(4), boxes=None)


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_refused_pictures_are_closed(folder):
    Image.fromarray(np.full((48, 64), 900, np.uint16)).save(folder / "images" / "frame_00000.png")
    (folder / "images" / "frame_00000.png").rename(folder / "images" / "frame_00000.jpg")
    with pytest.raises(ValueError, match="expected a colour picture of 8 bits, got mode 'I;16'"):
        read_nerfstudio(folder, max_excluded=0)
