"""Known scan layouts that are not supported, each with the way to convert it to a supported one."""

from dataclasses import dataclass
from pathlib import Path


# The layout that is easiest to write.
AS_FOLDER = (
    "write frame-NNNNNN.color.jpg, frame-NNNNNN.depth.png (16 bits, millimetres), frame-NNNNNN.pose.txt (4x4 camera to"
    " world, metres, OpenCV axes) and camera-intrinsics.txt (3x3, pixels of the depth map)"
)
# Suffixes of pictures from cameras and phones.
PICTURE_SUFFIXES = ("jpg", "JPG", "jpeg", "JPEG", "png", "PNG", "heic", "HEIC", "webp")


@dataclass(frozen=True)
class ForeignLayout:
    """How a folder is recognised (files match all patterns of one alternative) and how to convert it."""

    name: str
    alternatives: tuple[tuple[str, ...], ...]
    way: str


FOREIGN = (
    ForeignLayout(
        "ScanNet's SensReader export",
        (("color/*.jpg", "pose/*.txt"), ("color/*.jpg", "intrinsic/*.txt")),
        "give the scan's folder with SCENE.sens instead, which is read as it is; or, from color/N.jpg, depth/N.png,"
        f" pose/N.txt and the 3x3 of intrinsic/intrinsic_depth.txt, {AS_FOLDER}",
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
        (("groundtruth.txt", "rgb/*"), ("groundtruth.txt", "rgb.txt"), ("rgb.txt", "depth.txt")),
        "associate rgb, depth and groundtruth.txt (tx ty tz qx qy qz qw, camera to world) by time, divide depth by 5"
        f" to get millimetres, and {AS_FOLDER}",
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
        "a Redwood, Open3D or similar RGB-D sequence",
        (
            ("*.log", "depth/*"),
            ("*/*.log", "depth/*"),
            ("color/*", "depth/*", "camera_*.json"),
            ("color/*", "depth/*", "intrinsic.json"),
            ("image/*", "depth/*"),
            ("rgb/*.jpg", "depth/*.png"),
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
        (("iphone/*", "scans/*"), ("dslr/*", "scans/*"), ("iphone/pose_intrinsic_imu.json",)),
        "give dslr/nerfstudio with its pictures undistorted by the dataset's own toolkit; or, from the iPhone's"
        f" frames, {AS_FOLDER}",
    ),
    ForeignLayout(
        "a Matterport3D building",
        (("undistorted_camera_parameters/*",), ("matterport_color_images/*",), ("matterport_depth_images/*",)),
        f"depth is 4000 units a metre (divide by 4 to get millimetres): {AS_FOLDER}, a folder for each room",
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
        "a NeRF scene of several transforms files",
        (("transforms_train.json",), ("transforms_*.json",)),
        "copy the file of the frames that you want to transforms.json in the same folder",
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
        (("[0-9]*.jpg", "[0-9]*.png", "[0-9]*.txt"), ("[0-9]*.color.*", "[0-9]*.depth.*")),
        f"name them 00000.jpg, 00000.png, 00000.txt (five digits) and write depth_intrinsic.txt (4x4); or {AS_FOLDER}",
    ),
    ForeignLayout(
        "a folder of pictures without cameras",
        tuple((f"{folder}*.{suffix}",) for folder in ("", "images/") for suffix in PICTURE_SUFFIXES),
        "find their cameras first, with COLMAP or nerfstudio: ns-process-data images --data {path} --output-dir"
        " NEW_FOLDER; its world has no metres",
    ),
)
# Scans that are single files, by suffix.
FOREIGN_FILES = {
    ".r3d": "a Record3D capture: it is a zip file; export it from the app as EXR + RGB instead, and convert that with"
    " ns-process-data record3d --data FOLDER --output-dir NEW_FOLDER",
    ".zip": "an archive: unpack it and give the folder",
    ".sens": "the recording of a raw ScanNet scan: give the folder that it lies in, named as the scan",
    ".ply": "a mesh or a point cloud, without pictures: give the folder of posed frames that it was made of",
    ".bag": "a recording of a robot or a RealSense camera: take frames and poses out of it, and " + AS_FOLDER,
    ".json": "a file of a scan: give the folder that it lies in",
    **dict.fromkeys(
        (".jpg", ".jpeg", ".png", ".heic", ".heif", ".webp"),
        "a single picture: give the folder of posed frames, or a video",
    ),
    ".gif": "an animation: convert it to a video (ffmpeg -i FILE FILE.mp4)",
    ".svo": "a recording of a ZED camera: export it with the maker's tools, and " + AS_FOLDER,
}


def find_foreign_layout(path: Path) -> ForeignLayout | None:
    """The known but unsupported layout of a folder; None if it has none."""
    for layout in FOREIGN:
        for patterns in layout.alternatives:
            if all(next(path.glob(pattern), None) is not None for pattern in patterns):
                return layout
    return None


__all__ = ["FOREIGN", "FOREIGN_FILES", "ForeignLayout", "find_foreign_layout"]
