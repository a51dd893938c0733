"""What lies with a scan of any layout is read, or named with the reason; names and links stay inside."""

import json
import os
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources import LAYOUTS, list_files, list_not_read, make_reading, read_scene
from ross3d.data.sources.foreign import FOREIGN, FOREIGN_FILES, PICTURES
from ross3d.data.sources.inside import OutsideError, resolve_inside
from ross3d.data.sources.options import add_scan_options, get_scan_options
from ross3d.tasks.task import EvalContext, EvalSettings
from ross3d.tasks.windows import Window, load_windows
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import (
    get_depth_metres,
    save_transforms,
    write_arkitscenes,
    write_nerfstudio,
    write_posed_images,
    write_rgbd,
)
from ross3d.tests.test_known_layouts import FOREIGN as MORE_LAYOUTS


NUM_FRAMES = 3
NAMES = [layout.name for layout in LAYOUTS]
OWN_OPTIONS = {"scannet": {"frame_step": 1}}
BOX = [0.5, 1.0, 0.75, 1.0, 0.5, 0.25]


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A room in every layout, and what it was written from."""
    path = tmp_path_factory.mktemp("folders")
    raw = write_raw_scan(path / "raw", num_frames=NUM_FRAMES, index=4)
    write_nerfstudio(raw, path / "capture")
    write_arkitscenes(raw, path / "4733", quarter_turns=1)
    write_arkitscenes(raw, path / "4734", quarter_turns=3, frames_folder="4734_frames")
    folders = {
        "rgbd_folder": write_rgbd(raw, path / "room"),
        "scannet": raw.folder,
        "nerfstudio": path / "capture",
        "arkitscenes": path / "4733",
        "arkitscenes_3dod": path / "4734",
        "posed_images": write_posed_images(raw),
    }
    return raw, folders


@pytest.fixture
def make_copy(sources, tmp_path):
    """Layout -> a copy of its folder that may be changed."""

    def copy(name):
        _, folders = sources
        # The public export reads the scan's folder, two folders up.
        root = folders[name].parents[1] if name in ("scannet", "posed_images") else folders[name].parent
        place = tmp_path / "copy" / folders[name].relative_to(root)
        shutil.copytree(folders[name], place)
        if name == "scannet":
            shutil.copy(sources[0].labels_file, place.parents[1])
        return place

    return copy


def read(name, folder, **options):
    return read_scene(folder, **OWN_OPTIONS.get(name, {}), **options)


# ---- files of any layout


@pytest.mark.parametrize("name", NAMES)
def test_alignment_boxes_and_proposals_are_read_in_every_layout(sources, make_copy, name):
    folder = make_copy(name)
    for old in ("axis_align.txt", "boxes.json"):
        (folder / old).unlink(missing_ok=True)
    own = read(name, folder)
    align = np.eye(4)
    align[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    align[:3, 3] = [3, 2, 0.5]
    np.savetxt(folder / "axis_align.txt", align)
    (folder / "boxes.json").write_text(json.dumps([{"box": BOX, "category": "lamp"}, {"box": [2 * v for v in BOX]}]))
    # A detector's boxes, in the folder of the frames where that is another.
    inner = folder / f"{folder.name}_frames" if name == "arkitscenes_3dod" else folder
    (inner / "proposals.json").write_text(json.dumps([BOX] * 3))
    scene = read(name, folder)
    base = np.linalg.inv(np.eye(4) if own.axis_align_matrix is None else own.axis_align_matrix)
    assert np.allclose(scene.cam2world, align @ base @ own.cam2world)
    assert np.array_equal(scene.axis_align_matrix, align)
    assert scene.boxes.tolist() == [BOX, [2 * v for v in BOX]] and scene.box_labels == [{"category": "lamp"}, {}]
    assert scene.proposal_boxes.tolist() == [BOX] * 3
    assert not {"axis_align.txt", "boxes.json", "proposals.json"} & {file.name for file in folder.iterdir()} - {
        file.name for file in list_files(folder)
    }
    with pytest.warns(UserWarning, match="boxes.json, proposals.json left out, which lie in the world of the scan's"):
        other = read(name, folder, axis_align_matrix=np.eye(4))
    assert other.proposal_boxes is None and np.allclose(other.cam2world, base @ own.cam2world)
    assert other.boxes is None or other.boxes.tolist() != scene.boxes.tolist()
    assert read(name, folder, axis_align_matrix=align).proposal_boxes is not None


def test_an_alignment_that_contradicts_the_scan_s_own_is_told(make_copy):
    folder = make_copy("scannet")
    np.savetxt(folder / "axis_align.txt", np.eye(4))
    with pytest.warns(UserWarning, match="axis_align.txt is read in place of the alignment that came with it"):
        read("scannet", folder)


def test_a_public_scene_without_its_scan_keeps_its_world(make_copy):
    """As in demo folders; the file that lies with it says where up is, if there is one."""
    folder = make_copy("posed_images")
    alone = read("posed_images", folder)
    assert alone.axis_align_matrix is None
    np.savetxt(folder / "axis_align.txt", np.diag([-1.0, -1, 1, 1]))
    aligned = read("posed_images", folder)
    assert np.allclose(aligned.cam2world, np.diag([-1.0, -1, 1, 1]) @ alone.cam2world)


WRONG_BOXES = {
    "of other scenes": ({"scene0001_00": [BOX]}, "expected boxes of scene 'room', the file has other scenes only"),
    "a number by name": ({"a": 1}, "or a dictionary of such lists by scene, got a dictionary whose 'a' is 1"),
    "one box as a dictionary": ({"box": BOX}, "expected boxes of scene 'room', the file has other scenes only"),
    "texts": ([{"box": ["1", "2", "3", "1", "1", "1"]}], "got TypeError.*a coordinate that is no number: '1'"),
    "corners by name": ([{"min": [0, 0, 0], "max": [1, 1, 1]}], "metres, got KeyError"),
    "NaN": ([[float("nan"), 1, 1, 1, 1, 1]], r"json: expected finite metres, got NaN or infinity in boxes \[0\]"),
    "millimetres": ([BOX, [1200, 800, 500, 600, 400, 900]], r"got .1200.0. in entries .1., which looks like millim"),
    "millimetres of small things": ([[250, 180, 90, 300, 200, 100]], "these look like millimetres: divide"),
    "a text": ("chair", "got "),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_BOXES)
@pytest.mark.parametrize("file", ["boxes.json", "proposals.json"])
def test_boxes_that_are_wrong_are_refused(make_copy, fault, file):
    folder = make_copy("rgbd_folder")
    content, message = WRONG_BOXES[fault]
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_scene(folder)
    (folder / file).write_text(json.dumps({"room": [BOX]}))
    scene = read_scene(folder)
    assert BOX in (scene.boxes if file == "boxes.json" else scene.proposal_boxes).tolist()


def test_a_video_says_what_is_not_read_beside_it(tmp_path):
    with av.open(str(tmp_path / "walk.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert read_scene(tmp_path / "walk").num_views == 1
    (tmp_path / "boxes.json").write_text("[]")
    with pytest.warns(UserWarning, match=r"walk.mp4: not read: boxes.json next to it, since a video has no cameras"):
        read_scene(tmp_path / "walk.mp4")


# ---- what is not read


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_scan_leaves_nothing_unread(sources, name):
    assert list_not_read(sources[1][name]) == {}


def test_files_that_are_not_read_are_listed_with_the_reason(make_copy):
    folder = make_copy("nerfstudio")
    (folder / "confidence").mkdir()
    for index in range(NUM_FRAMES):
        Image.fromarray(np.zeros((2, 3), np.uint8)).save(folder / "confidence" / f"{index:05d}.png")
    for file in ("mesh.ply", "annotations.json", "notes.txt", "boxes_old.json", "images/extra.jpg"):
        (folder / file).write_text("")
    listed = list_not_read(folder)
    others = {"mesh.ply", "annotations.json", "notes.txt", "boxes_old.json", "images/extra.jpg"}
    assert listed.keys() == {"confidence/*.png (3 files)", *others}
    assert listed["confidence/*.png (3 files)"].startswith("confidence of depth: every reading counts")
    assert listed["mesh.ply"].startswith("a mesh") and listed["boxes_old.json"].startswith("boxes: they are read from")
    frames = make_copy("arkitscenes")
    (frames / "confidence").mkdir()
    (frames / "confidence" / "4733_1.000.png").write_text("")
    assert list(list_not_read(frames)) == ["confidence/*_*.*.png"]


def test_depth_that_is_not_read_is_told_by_every_reader(make_copy, sources):
    folder = make_copy("rgbd_folder")
    for file in folder.glob("*.depth.png"):
        file.rename(folder / file.name.replace(".depth.png", ".depth.proj.png"))
    with pytest.warns(UserWarning, match=r"'room' is read without depth; not read: frame-\*.depth.proj.png \(3"):
        assert read_scene(folder).depth_maps is None
    folder = make_copy("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    for frame in content["frames"]:
        frame["lidar_depth"] = frame.pop("depth_file_path")
    save_transforms(folder, content)
    with pytest.warns(UserWarning, match=r"names depth as lidar_depth, which is not read \(read: none\); rename"):
        assert read_scene(folder).depth_maps is None


# ---- names stay inside


def test_names_lead_to_files_inside(tmp_path):
    root = tmp_path / "scan"
    (root / "images").mkdir(parents=True)
    (root / "images" / "a.png").write_text("")
    (tmp_path / "secret.png").write_text("")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "up").symlink_to(tmp_path)
    (tmp_path / "other").symlink_to(root)
    for name in ("images/a.png", "./images/a.png", "images\\a.png", str(root / "images" / "a.png"), "images/none.png"):
        assert resolve_inside(root, name).parent.name == "images"
    # The folder itself may be a link, as scenes of a data folder are.
    assert resolve_inside(tmp_path / "other", "images/a.png").is_file()
    outside = (
        "../secret.png",
        "/etc/hosts",
        "images/../../secret.png",
        "C:\\x.png",
        "..\\secret.png",
        "up/secret.png",
    )
    for name in outside:
        with pytest.raises(OutsideError, match="expected a file inside .*scan, got .*; copy it there and make its"):
            resolve_inside(root, name)
    with pytest.raises(
        OutsideError, match="got 'link.png', a link to .*secret.png, which lies outside; copy it there"
    ):
        resolve_inside(root, "link.png")
    # What nobody can ask for is not offered; what a command spells otherwise is spelled so.
    for name in ("/etc/hosts", "link.png"):
        with pytest.raises(
            OutsideError, match="--allow-outside .train.py: --data.allow_outside true, in Python allow"
        ):
            resolve_inside(root, name)
        with pytest.raises(OutsideError, match=r"copy it there and make its path relative\.$"):
            resolve_inside(root, name, allow_outside=None)
    assert resolve_inside(root, "link.png", check_links=False).is_file()
    assert resolve_inside(root, "../secret.png", allow_outside=True).is_file()
    for name in ("", ".", "/", "\\", 5, None, "a\0b", "a" * 5000, "a" * 300):
        with pytest.raises(ValueError, match="scan: expected the name of a file, got"):
            resolve_inside(root, name)
    with pytest.raises(ValueError, match="loop.png cannot be followed .*; remove the link"):
        resolve_inside(root, "loop.png")


@pytest.mark.parametrize("layout", ["rgbd_folder", "posed_images"])
def test_a_scan_whose_pictures_are_all_gone_is_known(make_copy, layout):
    """It is no folder of an unknown layout, nor one of pictures without cameras: depth maps are pictures, too."""
    folder = make_copy(layout)
    pictures = sorted({*folder.glob("*.color.*"), *folder.glob("*.jpg")})
    for picture in pictures:
        picture.unlink()
    named = f"{pictures[0].name.partition('.')[0]}.*\\.(jpg|png)"
    with pytest.raises(
        (ValueError, FileNotFoundError), match=f"(pictures of all|picture is missing: ).*{named}.*copy"
    ):
        read_scene(folder)


def plant_secret(tmp_path, size=(64, 48)):
    """A picture that nobody is to see: one colour that no room has."""
    Image.new("RGB", size, (255, 0, 255)).save(tmp_path / "secret.png")
    return tmp_path / "secret.png"


def test_a_transforms_file_cannot_show_other_pictures(make_copy, tmp_path):
    secret, folder = plant_secret(tmp_path), make_copy("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    own = content["frames"][1]["file_path"]
    for name in (str(secret), os.path.relpath(secret, folder), os.path.relpath(secret, folder).replace("/", "\\")):
        content["frames"][1]["file_path"] = name
        save_transforms(folder, content)
        # Neither is it passed over as a damaged picture is.
        with pytest.raises(OutsideError, match="transforms.json: expected a file inside .*secret.png'.*--allow-out"):
            read_scene(folder, max_excluded=0.9)
        assert (read_scene(folder, allow_outside=True).images[1] == (255, 0, 255)).all()
    (folder / "images" / "frame_00001.jpg").unlink()
    (folder / "images" / "frame_00001.jpg").symlink_to(secret)
    content["frames"][1]["file_path"] = own
    save_transforms(folder, content)
    with pytest.raises(OutsideError, match="a link to .*secret.png"):
        read_scene(folder)
    content["frames"][1] |= {"file_path": content["frames"][0]["file_path"], "depth_file_path": str(secret)}
    del content["frames"][0]
    save_transforms(folder, content)
    with pytest.raises(OutsideError, match="secret.png', which leads out of it"):
        read_scene(folder)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("rgbd_folder", "frame-000001.color.jpg"),
        ("rgbd_folder", "frame-000001.pose.txt"),
        ("rgbd_folder", "boxes.json"),
        ("rgbd_folder", "axis_align.txt"),
        ("posed_images", "00010.jpg"),
        ("posed_images", "00010.png"),
        ("scannet", "scene0000_00.txt"),
        ("arkitscenes", "lowres_wide.traj"),
        ("arkitscenes_3dod", "4734_3dod_annotation.json"),
    ],
)
def test_links_of_a_scan_stay_inside(make_copy, tmp_path, name, file):
    folder = make_copy(name)
    assert read(name, folder).num_views == NUM_FRAMES
    (folder / file).rename(tmp_path / f"elsewhere{(folder / file).suffix}")
    (folder / file).symlink_to(tmp_path / f"elsewhere{(folder / file).suffix}")
    with pytest.raises(OutsideError, match=rf"got '{file}', a link to .*elsewhere.*add --allow-outside"):
        read(name, folder)
    assert read(name, folder, allow_outside=True).num_views == NUM_FRAMES


def test_scene_ids_and_frames_of_benchmarks_stay_in_the_data_folder(tmp_path):
    data, secret = tmp_path / "data", plant_secret(tmp_path)
    (data / "val").mkdir(parents=True)
    (tmp_path / "disk").mkdir()
    (data / "val" / "room").symlink_to(tmp_path / "disk")
    settings = EvalSettings(split="val")
    context = EvalContext(None, None, None, data, tmp_path, lambda path: path, None, None, settings)
    assert context.load_scene("room").is_dir()
    for scene_id in ("../../secret", "../..", "a/../../b/../../c"):
        with pytest.raises(OutsideError, match=f"scene '{scene_id}': expected a file inside .*which leads out of it"):
            context.load_scene(scene_id)
    context.scene_path = "{scene_id}"
    with pytest.raises(OutsideError, match="scene '/etc': expected a file inside"):
        context.load_scene("/etc")
    context.scene_path, context.settings.allow_outside = "{split}/{scene_id}", True
    assert context.find_scene("../../secret.png").is_file()

    def make_window(row, identity, where):
        return Window(id=identity, scene_id="w", task="t", question_type="q", question="?", answer="", images=row)

    for name in (str(secret), "../secret.png"):
        (data / "rows.json").write_text(json.dumps([[name]]))
        with pytest.raises(OutsideError, match="rows.json, entry 0: expected a file inside"):
            load_windows(data, settings=EvalSettings(), pattern="rows.json", make_window=make_window)


def test_links_in_a_circle_are_walked_once(make_copy):
    folder = make_copy("rgbd_folder")
    (folder / "again").symlink_to(folder)
    assert len(list_files(folder)) == len(list(folder.iterdir())) - 1


# ---- layouts that are known and not read

LAYOUT_FILES = {
    "ScanNet's SensReader export": ["color/0.jpg", "depth/0.png", "pose/0.txt", "intrinsic/intrinsic_depth.txt"],
    "Polycam's raw data": ["keyframes/images/1.jpg", "keyframes/cameras/1.json", "keyframes/depth/1.png"],
    "a Record3D capture": ["metadata", "rgbd/0.jpg", "rgbd/0.depth"],
    "a sequence of TUM RGB-D": ["rgb.txt", "depth.txt", "groundtruth.txt", "rgb/1.png", "depth/1.png"],
    "a Replica sequence of NICE-SLAM": ["traj.txt", "results/frame000000.jpg", "results/depth000000.png"],
    "a Redwood, Open3D or similar RGB-D sequence": ["apartment.log", "image/1.png", "depth/1.png"],
    "a scan of 3RScan": ["sequence.zip", "mesh.refined.v2.obj", "semseg.v2.json"],
    "a Stray Scanner capture": ["rgb.mp4", "odometry.csv", "camera_matrix.csv", "depth/000000.png"],
    "a scan of ScanNet++": ["iphone/rgb.mkv", "iphone/pose_intrinsic_imu.json", "scans/mesh_aligned_0.05.ply"],
    "a Matterport3D building": ["matterport_color_images/a.jpg", "undistorted_camera_parameters/a.conf"],
    "a COLMAP model": ["images/1.jpg", "sparse/0/cameras.bin", "sparse/0/images.bin"],
    "a trajectory of ORB-SLAM": ["KeyFrameTrajectory.txt", "rgb/0.png"],
    "a NeRF scene of several transforms files, or of one under another name": [
        "transforms_train.json",
        "train/r_0.png",
    ],
}


def test_every_known_layout_is_tried():
    names = {layout.name for layout in (*FOREIGN, PICTURES)}
    more = {next(name for name in names if known in name) for known in MORE_LAYOUTS}
    assert LAYOUT_FILES.keys() | more == names


@pytest.mark.parametrize("name", LAYOUT_FILES)
def test_known_layouts_are_named_with_the_way_from_there(tmp_path, name):
    for file in LAYOUT_FILES[name]:
        (tmp_path / "scan" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "scan" / file).write_text("")
    with pytest.raises(ValueError, match="which is not read as it is; ") as caught:
        read_scene(tmp_path / "scan")
    assert f"scan is {name}, " in str(caught.value) and "\n" not in str(caught.value)
    ways = ("ns-process-data", "frame-NNNNNN.color.jpg", "transforms.json", "camera-intrinsics.txt")
    assert any(way in str(caught.value) for way in ways)


def test_files_and_sequences_that_are_no_folder_of_a_scan(tmp_path, make_copy):
    for suffix in FOREIGN_FILES:
        (tmp_path / f"walk{suffix}").write_text("")
        with pytest.raises(ValueError, match=f"walk{suffix} is no folder of a scan, but (an?|the) "):
            read_scene(tmp_path / f"walk{suffix}")
    folder = make_copy("rgbd_folder")
    (folder / "camera-intrinsics.txt").rename(folder / "_info.txt")
    with pytest.raises(FileNotFoundError, match="this is a sequence of 3RScan or of ScanNet's tools, whose cameras"):
        read_scene(folder)
    with pytest.raises(ValueError, match=r"is no scan of a known layout, but room in it is one \(rgbd_folder\); give"):
        read_scene(folder.parent)


# ---- limits and options


def test_absent_pictures_are_passed_over_up_to_half(sources, tmp_path):
    raw = write_raw_scan(tmp_path, num_frames=8, index=1)
    content = write_nerfstudio(raw, tmp_path / "capture")
    folder = tmp_path / "capture"
    for index in (0, 3, 5):
        (folder / "images" / f"frame_{index:05d}.jpg").unlink()
    with pytest.warns(UserWarning, match=r"left out 3 of 8 frames \(picture is missing: 3, such as .*frame_00000.jpg"):
        scene = read_scene(folder)
    kept = [1, 2, 4, 6, 7]
    assert scene.view_names == [f"images/frame_{index:05d}" for index in kept]
    assert np.array_equal(scene.depth_maps, get_depth_metres(raw)[kept])
    # Views are spread over those that are there.
    assert read_scene(folder, num_views=3).view_names == [f"images/frame_{index:05d}" for index in (1, 4, 7)]
    message = r"3 of 8 listed pictures are not there, more than 30% of them .*raise the limit: --max"
    with pytest.raises(ValueError, match=message):
        read_scene(folder, max_excluded=0.3)
    # What is damaged has a narrower limit of its own.
    for index in (1, 2):
        (folder / "images" / f"frame_{index:05d}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="2 of 5 frames cannot be used, more than max_excluded = 0.2 of them"):
        read_scene(folder)
    assert read_scene(folder, max_excluded=0.6).num_views == 3
    for index in (1, 2):
        (folder / "images" / f"frame_{index:05d}.jpg").unlink()
    with pytest.raises(ValueError, match="5 of 8 listed pictures are not there, more than 50% of them"):
        read_scene(folder)
    assert len(content["frames"]) == 8


def test_options_of_programs_are_those_of_the_reader():
    import argparse

    parser = argparse.ArgumentParser()
    add_scan_options(parser)
    assert get_scan_options(parser.parse_args([])) == {}
    words = ["--rotate", "90", "--max-excluded", "0.4", "--allow-outside"]
    wanted = {"rotate": 90, "max_excluded": 0.4, "allow_outside": True}
    assert get_scan_options(parser.parse_args(words)) == make_reading("90", 0.4, True) == wanted
    with pytest.raises(SystemExit):
        parser.parse_args(["--rotate", "45"])
    for wrong in (1, -0.1, float("nan"), "half", True):
        with pytest.raises(ValueError, match="max_excluded must be a share of the frames, at least 0 and below 1"):
            make_reading(max_excluded=wrong)
