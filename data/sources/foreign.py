"""Known scan layouts that are not supported, each with the way to convert it to a supported one."""

import os
from dataclasses import dataclass
from pathlib import Path

from ross3d.data.sources.spelling import PICTURE_SUFFIXES, Listing
from ross3d.data.sources.video import SUFFIXES as VIDEO_SUFFIXES


# The layout that is easiest to write.
AS_FOLDER = (
    "write frame-NNNNNN.color.jpg, frame-NNNNNN.depth.png (16 bits, millimetres), frame-NNNNNN.pose.txt (4x4 camera to"
    " world, metres, OpenCV axes) and camera-intrinsics.txt (3x3, pixels of the depth map)"
)


@dataclass(frozen=True)
class ForeignLayout:
    """How a folder is recognised (files match all patterns of one alternative, in upper or lower case) and how to
    convert it.

    Attributes:
        way (`str`): what to do; may quote {path}, the folder.
        names_cameras (`bool`): whether files of it that may hold cameras are named after that, since others than
            those it is recognised by may.
    """

    name: str
    alternatives: tuple[tuple[str, ...], ...]
    way: str
    names_cameras: bool = False


FOREIGN = (
    ForeignLayout(
        "ScanNet's SensReader export",
        (("color/*.jpg", "pose/*.txt"), ("color/*.png", "pose/*.txt"), ("color/*", "intrinsic/*.txt")),
        "give the scan's folder with SCENE.sens instead, which is read as it is; or, from color/N.jpg (or .png),"
        f" depth/N.png, pose/N.txt and the 3x3 of intrinsic/intrinsic_depth.txt, {AS_FOLDER}",
    ),
    ForeignLayout(
        "Polycam's raw data",
        (
            ("keyframes/corrected_cameras/*.json",),
            ("keyframes/cameras/*.json",),
            ("corrected_cameras/*.json",),
            ("cameras/*.json", "depth/*.png"),
        ),
        "convert it with nerfstudio: ns-process-data polycam --use-depth --data {path} --output-dir NEW_FOLDER",
    ),
    ForeignLayout(
        "Record3D's EXR + RGB export",
        (("EXR_RGBD/metadata.json",), ("EXR_RGBD/rgb/*",), ("depth/*.exr", "metadata.json", "rgb/*")),
        "convert it with nerfstudio: ns-process-data record3d --data {path} --output-dir NEW_FOLDER (pictures and"
        f" cameras); or, to keep its depth, {AS_FOLDER}",
    ),
    ForeignLayout(
        "a Record3D capture",
        (("metadata", "rgbd/*"), ("metadata.json", "rgb/*"), ("metadata", "rgb/*"), ("*.r3d",)),
        "export it from the app as EXR + RGB and convert that with nerfstudio: ns-process-data record3d --data FOLDER"
        f" --output-dir NEW_FOLDER (pictures and cameras); or, to keep its depth, {AS_FOLDER}",
    ),
    ForeignLayout(
        "a sequence of TUM RGB-D",
        (
            ("groundtruth.txt", "rgb/*"),
            ("groundtruth.txt", "rgb.txt"),
            ("rgb.txt", "depth.txt"),
            # Its pictures are named by seconds, those of ICL-NUIM by numbers.
            ("rgb/[0-9]*.[0-9]*.png", "depth/[0-9]*.[0-9]*.png"),
        ),
        "associate rgb, depth and groundtruth.txt (tx ty tz qx qy qz qw, camera to world; download it if it is not"
        f" there) by time, divide depth by 5 to get millimetres, and {AS_FOLDER}",
    ),
    ForeignLayout(
        "a trajectory of ORB-SLAM",
        (("*KeyFrameTrajectory*.txt",), ("*CameraTrajectory*.txt",)),
        "a line of *Trajectory.txt is time tx ty tz qx qy qz qw, camera to world, or 12 numbers, the first three rows"
        " of that; associate it by time with the pictures, and with depth in millimetres: without a depth camera or a"
        f" second one its world has no metres; {AS_FOLDER}",
    ),
    ForeignLayout(
        "a sequence of ICL-NUIM",
        (("*.gt.freiburg",), ("associations.txt", "rgb/*", "depth/*")),
        "associations.txt pairs rgb with depth, *.gt.freiburg has tx ty tz qx qy qz qw (camera to world) by frame;"
        f" divide depth by 5 to get millimetres: {AS_FOLDER}",
    ),
    ForeignLayout(
        "a Replica sequence of NICE-SLAM",
        (("traj.txt", "results/*"), ("traj*.txt", "rgb/rgb_*", "depth/depth_*")),
        "a line of traj.txt is the 4x4 camera to world, depth is 6553.5 units a metre (divide by 6.5535 to get"
        f" millimetres): {AS_FOLDER}",
    ),
    ForeignLayout(
        "an export of RTAB-Map",
        (
            ("rtabmap*.db",),
            ("*_rgb/*", "*_calib/*.yaml"),
            ("rgb/*", "calib/*.yaml"),
            ("*_camera_poses.txt",),
            ("rtabmap*_poses*.txt",),
        ),
        "export pictures and cameras of its database (rtabmap-export --images --poses_camera --poses_format 11"
        " DATABASE), and from the folders rgb, depth (millimetres) and calib and the poses (tx ty tz qx qy qz qw,"
        f" camera to world) {AS_FOLDER}",
    ),
    ForeignLayout(
        "a picture of SUN RGB-D",
        (("image/*", "depth_bfx/*"), ("image/*", "depth/*", "extrinsics/*"), ("fullres/*", "intrinsics.txt")),
        "it is one view with its depth turned by three bits (value >> 3 | value << 13 is millimetres) and"
        f" extrinsics/*.txt, whose rotation makes it upright, as the pose: {AS_FOLDER}",
    ),
    ForeignLayout(
        "a scene of MVSNet",
        (("cams/*cam.txt",), ("cameras/*_cam.txt",)),
        "each *_cam.txt holds the 4x4 world to camera, to be inverted, and the 3x3 in pixels; its world has metres"
        f" only if its maker says so: {AS_FOLDER}",
    ),
    ForeignLayout(
        "a Redwood, Open3D or similar RGB-D sequence",
        (
            ("*.log", "depth/*"),
            ("*/*.log", "depth/*"),
            ("color/*", "depth/*", "camera_*.json"),
            ("color/*", "depth/*", "intrinsic.json"),
        ),
        "a trajectory .log has five lines a frame, the last four being the 4x4 camera to world, depth is millimetres:"
        f" {AS_FOLDER}",
    ),
    ForeignLayout(
        "a scan of 3RScan",
        (("sequence.zip",), ("sequence/_info.txt",), ("sequence/frame-*.color.jpg",), ("*semseg.v2.json",)),
        "unpack sequence.zip, write the 3x3 of m_calibrationDepthIntrinsic in _info.txt to"
        " sequence/camera-intrinsics.txt, scale the pictures to the aspect of the depth maps, and give the folder"
        " sequence",
    ),
    ForeignLayout(
        "a Stray Scanner capture",
        (("odometry.csv", "camera_matrix.csv"), ("odometry.csv", "rgb.mp4")),
        "frames of rgb.mp4, depth/N.png (millimetres), odometry.csv (x y z qx qy qz qw, camera to world) and"
        f" camera_matrix.csv (pixels of the video: scale them to the depth maps) are what is needed: {AS_FOLDER}",
    ),
    ForeignLayout(
        "a scan of ScanNet++",
        (
            ("iphone/*", "scans/*"),
            ("dslr/*", "scans/*"),
            ("iphone/pose_intrinsic_imu.json",),
            ("pose_intrinsic_imu.json",),
            ("nerfstudio/transforms_undistorted.json",),
            ("transforms_undistorted.json",),
            ("*undistorted_images/*", "nerfstudio/*"),
            ("resized_images/*", "nerfstudio/*"),
        ),
        "undistort its pictures with the dataset's own toolkit (dslr.undistort), copy transforms_undistorted.json of"
        " dslr/nerfstudio as transforms.json into the folder of these pictures, and give that; its axes are not those"
        " of the mesh, so write the 4x4 matrix to an upright world as axis_align.txt there; or, from the"
        f" iPhone's frames, {AS_FOLDER}",
    ),
    ForeignLayout(
        "a Matterport3D building",
        (
            ("matterport_*/*",),
            ("undistorted_camera_parameters/*",),
            ("undistorted_color_images/*",),
            ("undistorted_depth_images/*",),
        ),
        "its cameras are in undistorted_camera_parameters/*.conf (intrinsics_matrix, and lines of scan with the 4x4"
        " camera to world in OpenGL axes: turn the y and z axes around), depth is 4000 units a metre (divide by 4 to"
        f" get millimetres): {AS_FOLDER}, a folder for each room",
    ),
    ForeignLayout(
        "3D Scanner App's export of all data",
        (("frame_[0-9]*.jpg", "frame_[0-9]*.json"),),
        "frame_NNNNN.json holds cameraPoseARFrame (4x4 camera to world by rows, metres, y up, OpenGL axes: turn the y"
        " and z axes around) and intrinsics (3x3 by rows, pixels of frame_NNNNN.jpg), depth_NNNNN.png is millimetres:"
        " write transforms.json, with cameraPoseARFrame as each frame's transform_matrix as it is, fl_x, fl_y, cx, cy,"
        f" w and h, and depth_file_path; or {AS_FOLDER}",
    ),
    ForeignLayout(
        "a COLMAP model",
        (
            ("sparse/*/cameras.*",),
            ("sparse/cameras.*",),
            ("colmap/sparse/*/cameras.*",),
            ("cameras.bin", "images.bin"),
            ("cameras.txt", "images.txt"),
        ),
        "convert it with nerfstudio: ns-process-data images --skip-colmap --colmap-model-path MODEL --data PICTURES"
        " --output-dir NEW_FOLDER; its world has no metres",
    ),
    ForeignLayout(
        "a workspace of COLMAP whose pictures are distorted",
        (("distorted/sparse/*/cameras.*",), ("distorted/sparse/cameras.*",), ("distorted/database.db",)),
        "undistort it (colmap image_undistorter --image_path {path}/input --input_path {path}/distorted/sparse/0"
        " --output_path UNDISTORTED --output_type COLMAP) and convert what that makes with nerfstudio:"
        " ns-process-data images --skip-colmap --colmap-model-path UNDISTORTED/sparse --data UNDISTORTED/images"
        " --output-dir NEW_FOLDER; its world has no metres",
    ),
    ForeignLayout(
        "a NeRF scene of several transforms files, or of one under another name",
        (
            ("transforms_*.json",),
            *(
                ("*transforms*.json", f"{place}.{suffix}")
                for place in ("*", "*/*")
                for suffix in ("jpg", "jpeg", "png")
            ),
        ),
        "copy the file of the frames that you want to transforms.json in the same folder",
        names_cameras=True,
    ),
    ForeignLayout(
        "an ARKitScenes scan at full resolution",
        (("vga_wide/*",), ("wide/*", "highres_depth/*"), ("*_frames/vga_wide/*",)),
        "download its lowres_wide, lowres_depth, lowres_wide_intrinsics and lowres_wide.traj too, which are read",
    ),
    ForeignLayout(
        "an LLFF scene",
        (("poses_bounds.npy",),),
        "convert it with nerfstudio from its pictures: ns-process-data images --data {path}/images --output-dir"
        " NEW_FOLDER; its world has no metres",
    ),
    ForeignLayout(
        "a Metashape export",
        (("cameras.xml",), ("*/cameras.xml",)),
        "convert it with nerfstudio: ns-process-data metashape --xml CAMERAS_XML --data PICTURES --output-dir"
        " NEW_FOLDER",
    ),
    ForeignLayout(
        "an ETH3D scene",
        (("dslr_calibration_*/*",), ("images/dslr_images*",), ("calibration.txt", "groundtruth.txt")),
        "its calibration is a COLMAP model: ns-process-data images --skip-colmap --colmap-model-path MODEL --data"
        " PICTURES --output-dir NEW_FOLDER",
    ),
    ForeignLayout(
        "a Hypersim scene",
        (("images/scene_cam_*",), ("_detail/*",)),
        f"its depth is distance from the camera, not along z, and its poses are in asset units: {AS_FOLDER}",
    ),
    ForeignLayout(
        "a KITTI drive",
        (("image_02/*",), ("image_2/*",), ("oxts/*",), ("velodyne*/*",)),
        f"it is outdoors, with depth of a laser, and models here are of rooms; if you want it, {AS_FOLDER}",
    ),
    ForeignLayout(
        "a folder of numbered pictures, depth maps and poses",
        (
            ("[0-9]*.jpg", "[0-9]*.png", "[0-9]*.txt"),
            ("*[0-9].color.*", "*[0-9].depth.*"),
            ("*[0-9].color.*", "*[0-9].pose.txt"),
            ("frame*[0-9].jpg", "frame*[0-9].txt"),
            ("frame*[0-9].png", "frame*[0-9].txt"),
        ),
        f"name them 00000.jpg, 00000.png, 00000.txt (five digits) and write depth_intrinsic.txt (4x4); or {AS_FOLDER}",
        names_cameras=True,
    ),
    ForeignLayout(
        "a folder with pictures, depth maps or poses in folders of their own",
        tuple(
            (f"{pictures}/*", f"{others}/*")
            for pictures in ("rgb", "color", "colors", "image", "images", "rgbs")
            for others in ("depth", "depths", "depth_images", "pose", "poses")
        ),
        f"only you know the unit of its depth and the axes of its poses: {AS_FOLDER}; or write transforms.json, with"
        " file_path, depth_file_path and transform_matrix (4x4 camera to world, metres, OpenGL axes) of each frame and"
        " fl_x, fl_y, cx, cy, w and h, next to these folders",
        names_cameras=True,
    ),
)
PICTURES = ForeignLayout(
    "a folder of pictures without cameras",
    tuple((f"{folder}*{suffix}",) for folder in ("", "images/") for suffix in PICTURE_SUFFIXES),
    "find their cameras first, with COLMAP or nerfstudio: ns-process-data images --data {path} --output-dir"
    " NEW_FOLDER; its world has no metres",
)
# Names of files that may hold the cameras of pictures, in no form that is known.
CAMERA_NAMES = (
    "*camera*", "*pose*", "*intrinsic*", "*extrinsic*", "*traj*", "*transform*", "*calib*", "*odom*", "*c2w*", "*w2c*",
)  # fmt: skip
WITHOUT_PICTURES = (
    "without the pictures that it was made of: give the folder of posed frames, or export them from the app"
)
# Scans that are single files, by suffix.
FOREIGN_FILES = {
    ".r3d": "a Record3D capture: it is a zip file; export it from the app as EXR + RGB instead, and convert that with"
    " ns-process-data record3d --data FOLDER --output-dir NEW_FOLDER",
    **dict.fromkeys(
        (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar"),
        "an archive: unpack it and give the folder",
    ),
    ".sens": "the recording of a raw ScanNet scan: give the folder that it lies in, named as the scan",
    **dict.fromkeys((".ply", ".pcd", ".las", ".laz", ".pts", ".xyz"), f"a mesh or a point cloud, {WITHOUT_PICTURES}"),
    **dict.fromkeys(
        (".obj", ".stl", ".off", ".fbx", ".dae", ".glb", ".gltf", ".usd", ".usdc", ".usdz"),
        f"a mesh, {WITHOUT_PICTURES}",
    ),
    ".e57": f"a laser scan: export the pictures in it, with their poses, and {AS_FOLDER}",
    **dict.fromkeys((".splat", ".spz", ".ksplat"), f"a cloud of Gaussians, {WITHOUT_PICTURES}"),
    **dict.fromkeys(
        (".bag", ".db3", ".mcap", ".oni"),
        f"a recording of a robot or a depth camera: take frames and poses out of it, and {AS_FOLDER}",
    ),
    **dict.fromkeys(
        (".svo", ".svo2"), f"a recording of a ZED camera: export it with the maker's tools, and {AS_FOLDER}"
    ),
    ".db": "a database, such as RTAB-Map's: export its pictures and cameras (rtabmap-export --images --poses_camera"
    f" --poses_format 11 FILE), and {AS_FOLDER}",
    **dict.fromkeys(
        (".json", ".txt", ".csv", ".xml", ".yaml", ".yml", ".traj", ".log", ".npy", ".npz"),
        "a file of a scan: give the folder that it lies in",
    ),
    **dict.fromkeys(PICTURE_SUFFIXES, "a single picture: give the folder of posed frames, or a video"),
    ".gif": "an animation: convert it to a video (ffmpeg -i FILE FILE.mp4)",
}
# Those that are a scan by themselves, so that a folder with one of them is no scan.
WHOLE_SCANS = tuple(
    suffix for suffix, what in FOREIGN_FILES.items() if not what.startswith(("a file", "a single picture"))
)


def find_foreign_layout(listing: Listing) -> ForeignLayout | None:
    """The known but unsupported layout of a folder; None if it has none."""
    return next((one for one in FOREIGN if any(all(map(listing.has, every)) for every in one.alternatives)), None)


def describe_file(file: Path) -> str:
    """What a file that is no video is, and what to give instead."""
    known = FOREIGN_FILES.get(file.suffix.lower())
    if known is not None:
        return known
    return (
        f"a file of an unknown kind ({file.suffix or 'without a suffix'}): give the folder of one scan, or a video"
        f" ({', '.join(VIDEO_SUFFIXES[:5])}, ...)"
    )


def describe_camera_files(folder: Path) -> str:
    """The files in a folder that may hold cameras, as the subject of a sentence; empty where there are none."""
    found = {file for pattern in CAMERA_NAMES for file in Listing(folder).glob(pattern) if os.path.isfile(file)}
    names = sorted(file.name for file in found if file.suffix.lower() not in PICTURE_SUFFIXES + VIDEO_SUFFIXES)
    return ", ".join([*names[:3], "..."] if len(names) > 3 else names)


def check_loose_files(path: Path, above: tuple[Path, ...] = ()) -> None:
    """Refuse a folder of pictures without cameras, of videos, or of a file that is a scan by itself: say what to do.

    Args:
        above (`tuple[Path, ...]`): folders above it, in which files may hold its cameras.

    Raises:
        ValueError: it is one of these.
    """
    listing = Listing(path)

    def find(suffixes: tuple[str, ...]) -> list[Path]:
        found = [file for suffix in suffixes for file in listing.glob(f"[!.]*{suffix}")]
        return [file for file in found if os.path.isfile(file) and file.name.lower() != "thumbs.db"]

    videos, wholes = find(VIDEO_SUFFIXES), find(WHOLE_SCANS)
    video = f"give the video itself: {videos[0]}" if videos else ""
    whole = f"{wholes[0].name} in it is {describe_file(wholes[0])}" if wholes else ""
    places = {"it": path} | {f"{folder}": folder for folder in above}
    files = [f"{told} in {place}" for place, folder in places.items() if (told := describe_camera_files(folder))]
    cameras = f"{' and '.join(files)} may hold {{}}, in no form that is known: {{}}{AS_FOLDER}" if files else ""
    if any(listing.has(pattern) for (pattern,) in PICTURES.alternatives):
        cameras = cameras.format("them", "")
        ways = [way for way in (PICTURES.way.format(path=path), cameras, video, whole) if way]
        raise ValueError(f"{path} is {PICTURES.name}, which is not read as it is; {'; or '.join(ways)}.")
    if video:
        cameras = cameras.format("its cameras", "take the frames that they belong to out of it, and ")
        way = f"{video}, which is read without cameras; or {cameras}" if cameras else video
        raise ValueError(f"{path} is no scan, but holds {len(videos)} video{'s' if len(videos) > 1 else ''}; {way}.")
    if whole:
        raise ValueError(f"{path}: this folder is no scan of a known layout; {whole}.")


__all__ = [
    "FOREIGN",
    "FOREIGN_FILES",
    "PICTURES",
    "ForeignLayout",
    "check_loose_files",
    "describe_camera_files",
    "describe_file",
    "find_foreign_layout",
]
