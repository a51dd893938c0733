"""Files under other spellings: read where only one fits, named where they come near, never passed over in silence."""

import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ross3d.data.sources import find_layout, find_video, list_files, list_not_read, read_scene
from ross3d.data.sources.frames import read_alignment_file, read_axis_align_matrix
from ross3d.data.sources.inside import OutsideError
from ross3d.data.sources.spelling import PICTURE_SUFFIXES, Listing, ScanFiles, find_near_misses
from ross3d.data.sources.video import SUFFIXES
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import (
    save_transforms,
    write_arkitscenes,
    write_nerfstudio,
    write_posed_images,
    write_rgbd,
)


NUM_FRAMES = 3


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A room in the layouts whose files have names of their own."""
    path = tmp_path_factory.mktemp("originals")
    raw = write_raw_scan(path / "raw", num_frames=NUM_FRAMES, index=3)
    write_nerfstudio(raw, path / "capture")
    write_arkitscenes(raw, path / "4735")
    write_rgbd(raw, path / "room")
    return {"nerfstudio": path / "capture", "arkitscenes": path / "4735", "rgbd_folder": path / "room", "raw": raw}


@pytest.fixture
def make_copy(originals, tmp_path):
    """Layout -> a copy of its folder that may be changed, and the scene that the original is."""

    def copy(name):
        if name == "posed_images":
            raw = write_raw_scan(tmp_path / "raw", num_frames=NUM_FRAMES, index=3)
            folder = write_posed_images(raw)
        else:
            folder = shutil.copytree(originals[name], tmp_path / originals[name].name)
        return folder, read_scene(folder)

    return copy


def rename(folder, change):
    """Give every file a new name; `change` returns it from the old one."""
    for file in [file for file in folder.rglob("*") if file.is_file()]:
        file.rename(file.with_name(change(file.name)))


def assert_same(found, wanted):
    for part in ("depth_maps", "intrinsics", "cam2world"):
        assert np.array_equal(getattr(found, part), getattr(wanted, part)), part
    assert np.array_equal(found.images, wanted.images)
    assert found.num_views == NUM_FRAMES


def save_as(file, suffix, **options):
    """Save a picture in another format under the same stem; lossless ones keep its pixels."""
    Image.open(file).save(file.with_name(file.name.rpartition(".")[0] + suffix), **options)
    file.unlink()


# ---- read


@pytest.mark.parametrize("name", ["nerfstudio", "arkitscenes", "rgbd_folder", "posed_images"])
@pytest.mark.parametrize("change", [str.upper, str.title])
def test_names_count_in_upper_and_lower_case(make_copy, name, change):
    folder, wanted = make_copy(name)
    rename(folder, change)
    found = read_scene(folder)
    assert_same(found, wanted)
    assert found.boxes is None or np.array_equal(found.boxes, wanted.boxes)
    assert (found.axis_align_matrix is None) == (wanted.axis_align_matrix is None)
    assert list_not_read(folder) == {}


def test_pictures_of_transforms_json_under_another_spelling(make_copy):
    folder, wanted = make_copy("nerfstudio")
    (folder / "images").rename(folder / "Images")
    (folder / "depth").rename(folder / "DEPTH")
    assert_same(read_scene(folder), wanted)
    for file in (folder / "Images").glob("*.jpg"):
        save_as(file, ".PNG", format="PNG")
    assert_same(read_scene(folder), wanted)
    assert {file.name for file in list_files(folder) if file.parent.name == "Images"} == {
        f"frame_{index:05d}.PNG" for index in range(NUM_FRAMES)
    }
    assert list_not_read(folder) == {}


@pytest.mark.parametrize("suffix", [".PNG", ".webp"])
def test_pictures_of_another_suffix_are_found(make_copy, suffix):
    folder, wanted = make_copy("nerfstudio")
    for file in (folder / "images").glob("*.jpg"):
        save_as(file, suffix, **({"lossless": True} if suffix == ".webp" else {}))
    assert_same(read_scene(folder), wanted)


def test_of_two_candidates_none_is_taken_and_both_are_named(make_copy):
    folder, wanted = make_copy("nerfstudio")
    file = folder / "images" / "frame_00001.jpg"
    for suffix in (".PNG", ".webp"):
        Image.open(file).save(file.with_suffix(suffix), lossless=True)
    assert_same(read_scene(folder), wanted)
    file.unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"frame_00001.jpg: the picture .*\(images/frame_00001.PNG, images/frame_00001.webp lie there\); correct",
    ):
        read_scene(folder, max_excluded=0)


def test_a_depth_map_is_no_picture_of_another_suffix(make_copy):
    """Pictures and depth maps in one folder, of the same stem: a lost picture stays lost."""
    folder, _ = make_copy("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    for frame in content["frames"]:
        name = frame["depth_file_path"].removeprefix("depth/")
        (folder / "depth" / name).rename(folder / "images" / name)
        frame["depth_file_path"] = f"images/{name}"
    save_transforms(folder, content)
    assert read_scene(folder).num_views == NUM_FRAMES
    (folder / "images" / "frame_00001.jpg").unlink()
    with pytest.warns(UserWarning, match="left out 1 of 3 frames"):
        assert read_scene(folder).view_names == ["images/frame_00000", "images/frame_00002"]
    with pytest.raises(
        FileNotFoundError, match="frame_00001.jpg: the picture does not exist; copy it again, or leave"
    ):
        read_scene(folder, max_excluded=0)


@pytest.mark.parametrize("place", ["", "rgb/"])
def test_pictures_in_another_folder_are_named(make_copy, place):
    folder, _ = make_copy("nerfstudio")
    (folder / place).mkdir(exist_ok=True)
    for file in (folder / "images").iterdir():
        file.rename(folder / place / file.name)
    # Depth maps have the same stems.
    with pytest.raises(
        (ValueError, FileNotFoundError),
        match=rf"images/frame_00000.jpg: the picture .*exist \({place}frame_00000.jpg lies there\); correct the n",
    ):
        read_scene(folder)


def test_a_picture_of_one_frame_is_none_of_another(make_copy):
    folder, _ = make_copy("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    (folder / "images" / "frame_00001.jpg").unlink()
    for name in ("images/FRAME_00000.jpg", "images/Frame_00002.png"):
        content["frames"][1]["file_path"] = name
        save_transforms(folder, content)
        with pytest.warns(UserWarning, match="left out 1 of 3 frames .picture is missing"):
            assert read_scene(folder).view_names == ["images/frame_00000", "images/frame_00002"]


@pytest.mark.parametrize("mark", ["_", "-"])
@pytest.mark.parametrize(("word", "suffix"), [("rgb", ".png"), ("color", ".webp"), ("rgb", ".webp")])
def test_frames_of_an_rgbd_folder_under_other_names(make_copy, mark, word, suffix):
    folder, wanted = make_copy("rgbd_folder")
    for file in folder.glob("*.color.jpg"):
        save_as(file, suffix, **({"lossless": True} if suffix == ".webp" else {}))
    rename(folder, lambda name: name.replace("frame-", f"frame{mark}").replace(".color.", f".{word}."))
    assert len(list(folder.glob(f"frame{mark}*.{word}{suffix}"))) == NUM_FRAMES
    found = read_scene(folder)
    assert_same(found, wanted)
    assert found.view_names == wanted.view_names and list_not_read(folder) == {}
    shutil.copy(folder / f"frame{mark}000001.{word}{suffix}", folder / f"frame-000001.{word}.jpg")
    with pytest.raises(ValueError, match="frame-000001 has two pictures, "):
        read_scene(folder)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
JXL = b"\xff\x0a" + bytes(200)
REFUSED = {".heic": (HEIC, "a HEIC picture"), ".HEIF": (HEIC, "a HEIC picture"), ".jxl": (JXL, "a JPEG XL picture")}
COLORS = {"rgbd_folder": "*.color.jpg", "nerfstudio": "images/*.jpg", "arkitscenes": "lowres_wide/*.png",
          "posed_images": "*.jpg"}  # fmt: skip


@pytest.mark.parametrize("suffix", [".tif", ".bmp", ".TIFF", ".ppm"])
@pytest.mark.parametrize("layout", COLORS)
def test_pictures_that_are_decoded_are_read_under_any_suffix(make_copy, layout, suffix):
    folder, wanted = make_copy(layout)
    for file in folder.glob(COLORS[layout]):
        save_as(file, suffix)
    found = read_scene(folder)
    assert_same(found, wanted)
    assert found.view_names == wanted.view_names and list_not_read(folder) == {}


@pytest.mark.parametrize("suffix", [".gif", ".jpe", ".jfif", ".jp2", ".avif"])
def test_pictures_of_rarer_kinds_are_read(make_copy, suffix):
    folder, wanted = make_copy("rgbd_folder")
    for file in folder.glob("*.color.jpg"):
        kind = {".jpe": "JPEG", ".jfif": "JPEG"}.get(suffix)
        save_as(file, suffix, format=kind)
    found = read_scene(folder)
    assert found.num_views == NUM_FRAMES and found.images.shape == wanted.images.shape


@pytest.mark.parametrize("suffix", REFUSED)
@pytest.mark.parametrize("layout", COLORS)
def test_pictures_of_kinds_that_are_not_read_are_named_by_their_kind(make_copy, layout, suffix):
    folder, _ = make_copy(layout)
    content, kind = REFUSED[suffix]
    files = sorted(folder.glob(COLORS[layout]))
    for file in files:
        file.with_suffix(suffix).write_bytes(content)
    # A phone's second file of each picture is no reason to refuse the first.
    assert read_scene(folder).num_views == NUM_FRAMES
    files[1].unlink()
    with pytest.warns(UserWarning, match=f"left out 1 of 3 frames .picture cannot be read.*got {kind}.*; convert it"):
        assert read_scene(folder, max_excluded=0.4).num_views == NUM_FRAMES - 1
    for file in (files[0], files[2]):
        file.unlink()
    with pytest.raises(ValueError, match=f"expected a readable picture, got {kind}.*; convert it to JPEG") as caught:
        read_scene(folder)
    assert "absent" not in str(caught.value) and "not exist" not in str(caught.value)


def test_pictures_that_are_read_come_before_others_of_either_word(make_copy):
    folder, wanted = make_copy("rgbd_folder")
    for file in folder.glob("*.color.jpg"):
        file.with_suffix(".heic").write_bytes(HEIC)
        file.rename(folder / file.name.replace(".color.", ".rgb."))
    assert_same(read_scene(folder), wanted)


def test_raw_pictures_of_frames_are_named_so(make_copy):
    folder, _ = make_copy("rgbd_folder")
    for file in folder.glob("*.color.jpg"):
        Image.open(file).save(file.with_suffix(".dng"), format="TIFF")
        file.unlink()
    with pytest.raises(ValueError, match="got a raw picture of a camera.*; develop it"):
        read_scene(folder)


def test_files_of_frames_that_are_no_pictures_are_named_where_pictures_are_absent(make_copy):
    folder, _ = make_copy("rgbd_folder")
    rename(folder, lambda name: name.replace(".color.jpg", ".color.bayer"))
    with pytest.raises(
        FileNotFoundError, match=r"all 3 frames are absent.*; frame-000000.color.bayer is there, whose"
    ):
        read_scene(folder)


def test_of_color_and_rgb_the_first_is_read(make_copy):
    folder, wanted = make_copy("rgbd_folder")
    for file in folder.glob("*.color.jpg"):
        Image.new("RGB", (64, 48)).save(folder / file.name.replace(".color.jpg", ".rgb.png"))
    assert_same(read_scene(folder), wanted)


def test_public_exports_with_jpeg_pictures(make_copy):
    folder, wanted = make_copy("posed_images")
    for file in folder.glob("*.jpg"):
        file.rename(file.with_suffix(".jpeg"))
    assert find_layout(folder).name == "posed_images" and list_not_read(folder) == {}
    assert_same(read_scene(folder), wanted)


def test_other_spellings_stay_inside(tmp_path):
    (tmp_path / "scan" / "Images").mkdir(parents=True)
    (tmp_path / "secret.png").write_text("")
    (tmp_path / "scan" / "Images" / "A.PNG").symlink_to(tmp_path / "secret.png")
    files = ScanFiles(tmp_path / "scan")
    for name, suffixes in (("images/a.png", ()), ("images\\a.jpg", PICTURE_SUFFIXES), ("Images/a", PICTURE_SUFFIXES)):
        with pytest.raises(OutsideError, match="a link to .*secret.png, which lies outside"):
            files.find(name, suffixes=suffixes)
        assert ScanFiles(tmp_path / "scan", allow_outside=True).find(name, suffixes=suffixes).name == "A.PNG"
    assert files.find("images/b.png").name == "b.png" and files.find("images/a.jpg").name == "a.jpg"
    with pytest.raises(OutsideError, match="leads out of it"):
        files.find("../SECRET.png")


def test_listings_match_in_either_case(tmp_path):
    for name in ("a/B.Txt", "A2/c.TXT", "d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = Listing(tmp_path)
    assert [str(file.relative_to(tmp_path)) for file in listing.glob("a*/*.txt")] == ["A2/c.TXT", "a/B.Txt"]
    assert listing.has("A/b.txt") and not listing.has("a/c.txt") and not listing.has("d.png/*")
    assert listing.find("D.PNG") == ["d.png"] and Listing(tmp_path / "none").find("x") == []


# ---- named


@pytest.mark.parametrize(
    "name",
    [
        "transforms (1).json",
        "transform.json",
        "transforms.json.txt",
        "transforms - Copy.json",
        "tranforms.json",
        "Copy of transforms.json",
        "transforms (kopie).json",
        "transforms - Copie.json",
    ],
)
@pytest.mark.parametrize("place", ["", "export/scan"])
def test_cameras_under_a_near_name_are_not_dropped(make_copy, name, place):
    folder, wanted = make_copy("nerfstudio")
    (folder / "transforms.json").rename(folder / name)
    given = folder
    if place:
        given = folder.parent / "outer"
        shutil.copytree(folder, given / place)
    verb = "rename it to" if name.endswith(".json") else "save it as"
    with pytest.raises(ValueError) as caught:
        read_scene(given)
    assert (
        f"is no scan of the layout nerfstudio, whose file transforms.json is not there; {name} is not read: {verb}"
        in (str(caught.value))
    )
    assert "pictures without cameras" not in str(caught.value) and (
        not place or f"; {place} in it is" in str(caught.value)
    )
    (folder / name).rename(folder / "transforms.json")
    assert_same(read_scene(folder), wanted)


@pytest.mark.parametrize(
    ("layout", "name", "near"),
    [
        ("rgbd_folder", "camera-intrinsics.txt", "camera_intrinsics.txt"),
        ("rgbd_folder", "camera-intrinsics.txt", "intrinsics.txt"),
        ("posed_images", "depth_intrinsic.txt", "depth_intrinsics.txt"),
        ("posed_images", "depth_intrinsic.txt", "intrinsic_depth.txt"),
    ],
)
def test_intrinsics_under_a_near_name_are_named(make_copy, layout, name, near):
    folder, wanted = make_copy(layout)
    (folder / name).rename(folder / near)
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; .*; {near} is not read: rename it to {name} if"):
        read_scene(folder)
    (folder / near).rename(folder / name)
    assert_same(read_scene(folder), wanted)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("axis_align.txt", "axis_alignment.txt"),
        ("axis_align.txt", "axis_align (1).txt"),
        ("boxes.json", "bboxes.json"),
        ("boxes.json", "boxes copy 2.json"),
    ],
)
def test_files_beside_a_scan_under_a_near_name_are_told(make_copy, name, near):
    folder, wanted = make_copy("rgbd_folder")
    (folder / name).rename(folder / near)
    with pytest.warns(
        UserWarning, match=rf"scene 'room': {near.replace('(1)', '.1.')} is not read: rename it to {name}"
    ):
        found = read_scene(folder, look_at_world=False)
    value = "axis_align_matrix" if name.startswith("axis") else "boxes"
    assert getattr(found, value) is None and getattr(wanted, value) is not None


def test_names_that_come_near_no_other(tmp_path):
    for name in (
        "box_of_things.txt",
        "transformer.json",
        "00010.txt",
        "frame-000000.pose.txt",
        "notes.txt",
        "mesh.ply",
    ):
        (tmp_path / name).touch()
    for name in ("transforms.json", "boxes.json", "axis_align.txt", "camera-intrinsics.txt", "lowres_wide.traj"):
        assert find_near_misses(Listing(tmp_path), name) == []
    (tmp_path / "transforms.json").mkdir()
    assert find_near_misses(Listing(tmp_path), "boxes.json") == []


def test_programs_and_sources_are_no_near_misses(tmp_path):
    for name in ("transformers", "transform"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o755)
    for name in ("transforms.py", "transform.cpython.so", "transforms.mp4"):
        (tmp_path / name).touch()
    assert find_near_misses(Listing(tmp_path), "transforms.json") == []
    for name in ("transform.txt", "transforms.json~", "transforms.json.bak", "Transforms.npy"):
        (tmp_path / name).touch()
        assert find_near_misses(Listing(tmp_path), "transforms.json") == [name]
        (tmp_path / name).unlink()


def test_hidden_and_unreadable_folders_are_not_searched(tmp_path, monkeypatch):
    for folder in (".venv/lib", "closed", "code"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "transform.json").touch()
    (tmp_path / "code" / "transform.json").unlink()
    (tmp_path / "closed" / "link").symlink_to(tmp_path)
    # Root may look everywhere, so the refusal is made here.
    stat = os.stat

    def refuse(path, *args, **kwargs):
        if Path(path).parent == tmp_path and Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(ValueError, match="the layout of this folder is not known"):
        find_layout(tmp_path)
    (tmp_path / "code" / "transform.json").touch()
    with pytest.raises(ValueError, match="code in it is no scan of the layout nerfstudio"):
        find_layout(tmp_path)


def test_pictures_beside_unknown_cameras_are_told_of_them(tmp_path):
    for name in ("a.jpg", "b.jpg", "all_poses.npy"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="pictures without cameras.*; or all_poses.npy in it may hold them, in no f"):
        find_layout(tmp_path)
    (tmp_path / "all_poses.npy").unlink()
    with pytest.raises(ValueError, match="pictures without cameras") as caught:
        find_layout(tmp_path)
    assert "in it may hold" not in str(caught.value)
    for name, words in (
        ("walk.mp4", "or give the video itself: .*walk.mp4"),
        ("room.obj", "or room.obj in it is a mesh"),
    ):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=f"pictures without cameras.*; {words}"):
            find_layout(tmp_path)


def test_a_recording_of_another_name_is_named(originals, tmp_path):
    folder = shutil.copytree(originals["raw"].folder, tmp_path / "kitchen")
    with pytest.raises(
        FileNotFoundError, match=r"kitchen.sens does not exist \(scene\w+.sens lies there: name the fol"
    ):
        read_scene(folder)


# ---- alignments


MATRIX = np.array([[0.0, -1, 0, 2], [1, 0, 0, -0.5], [0, 0, 1, 0.25], [0, 0, 0, 1]])
META = "numDepthFrames = 3\naxisAlignment = {} \nsceneType = Office\n"


def describe_matrix(rows):
    return META.format(" ".join(str(value) for value in np.ravel(rows)))


def save_array(file, array):
    """Write an array as numpy.save does, whatever the suffix is."""
    with file.open("wb") as opened:
        np.save(opened, array)


WRITERS = {
    "a.txt": lambda file, rows: np.savetxt(file, rows),
    "one_line.txt": lambda file, rows: file.write_text(" ".join(map(str, np.ravel(rows)))),
    "brackets.txt": lambda file, rows: file.write_text(str(np.asarray(rows).tolist())),
    "commas.csv": lambda file, rows: np.savetxt(file, rows, delimiter=","),
    "a.npy": lambda file, rows: np.save(file, np.asarray(rows, np.float32)),
    "a.json": lambda file, rows: file.write_text(json.dumps(np.asarray(rows).tolist())),
    "flat.json": lambda file, rows: file.write_text(json.dumps(np.ravel(rows).tolist())),
    "comments.txt": lambda file, rows: np.savetxt(file, rows, header="scan to world", footer="end of 1 matrix"),
    "printed.txt": lambda file, rows: file.write_text(f"# rows\n{np.asarray(rows)}  # metres\n"),
    "upper.txt": lambda file, rows: file.write_text(json.dumps({"AXIS_ALIGN": np.asarray(rows).tolist()}, indent=1)),
    "array.txt": lambda file, rows: save_array(file, np.asarray(rows)),
    "whole.npy": lambda file, rows: np.save(file, np.asarray(rows, np.float16)),
    "named.JSON": lambda file, rows: file.write_text(json.dumps({"axis_align_matrix": np.asarray(rows).tolist()})),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("rows", [3, 4])
def test_alignments_are_read_from_the_usual_files(make_copy, tmp_path, name, rows):
    file = tmp_path / name
    WRITERS[name](file, MATRIX[:rows])
    assert np.array_equal(read_alignment_file(file), MATRIX)
    folder, scene = make_copy("nerfstudio")
    found = read_scene(folder, axis_align_matrix=file, look_at_world=False)
    assert np.allclose(found.cam2world, MATRIX @ scene.cam2world)


WRONG = {
    "words.txt": (
        "1 0 0 up",
        r"words.txt: expected a 4x4 matrix, scan .*, got 'up', which is no number; write the 16",
    ),
    "few.txt": ("1 0 0", "few.txt: expected a 4x4 matrix.*or the first three rows of it, got 3 values; write the 16"),
    "other.json": (
        '{"matrix": [1], "id": "x"}',
        "other.json: expected .* under the key axis_align_matrix or axisAlignment or axis_align, got the keys"
        " 'matrix', 'id'; rename the key",
    ),
    "nested.json": ('{"axis_align": {"rows": 5}}', "nested.json: expected a 4x4 .*which is no number; write the 16"),
    "truths.json": ("[true, false]", "truths.json: expected a 4x4 matrix, .*'true', which is no number; write the 16"),
    "words.json": ('[["a"]]', "words.json: expected a 4x4 matrix, scan .*'\"a\"', which is no number; write the 16"),
    "ragged.json": ("[[1, 2], [3]]", "ragged.json: expected a 4x4 matrix, scan .*; write the 16 numbers"),
    "broken.json": ('{"axis_align": [1,', "broken.json: expected a 4x4 matrix.*, but the file is not valid JSON"),
    "broken.npy": ("no array", "broken.npy: expected .*, got a text; write the array alone, with numpy.save, or the"),
    "meta.txt": (
        "axisAlignment = 1 2",
        "meta.txt: axisAlignment: expected 16 numbers, row by row, got '1 2'; write the line 'axisAlignment = '",
    ),
    "large.txt": ("1 " * 60_000, "large.txt: expected a 4x4 matrix.*, of at most 100.0 kB, got 120.0 kB"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_that_hold_no_alignment_are_refused(tmp_path, name):
    text, message = WRONG[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_alignment_file(tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match="none.npy does not exist; expected a 4x4 matrix, scan to upright world"
    ):
        read_alignment_file(tmp_path / "none.npy")


@pytest.mark.parametrize("kind", [bool, complex, str])
def test_arrays_that_are_no_numbers_are_refused(tmp_path, kind):
    array = np.eye(4).astype(kind)
    save_array(tmp_path / "a.txt", array)
    for given in (tmp_path / "a.txt", array, array.tolist()):
        with pytest.raises(ValueError, match="expected a 4x4 .*of whole numbers or floats, got an array of .*4, 4"):
            read_axis_align_matrix(given, "x")
    with pytest.raises(ValueError, match="of scene 'x': expected a 4x4 matrix, got .*; write four rows"):
        read_axis_align_matrix([[1, 2], [3]], "x")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "axis_align.txt"])
def test_archives_of_arrays_are_no_alignment(tmp_path, name):
    with (tmp_path / name).open("wb") as opened:
        np.savez(opened, np.eye(4), np.eye(3))
    with pytest.raises(ValueError, match=f"{name}: expected a 4x4 .* got a zip archive.*; write the array alone"):
        read_alignment_file(tmp_path / name)


ROWS = json.dumps(MATRIX.tolist())
SPELT = {
    "colon": META.replace(" =", " :").format(" ".join(map(str, MATRIX.ravel()))),
    "lower": describe_matrix(MATRIX).lower(),
    "no blank": describe_matrix(MATRIX).replace(" = ", "="),
    "quotes": f'sceneType = Office\n"axisAlignment": {ROWS},\nextra = 3\n',
    "json": json.dumps({"sceneType": "Office", "axisAlignment": MATRIX.tolist(), "extra": 1}, indent=2),
    "json in a line": json.dumps({"axisAlignment": MATRIX.ravel().tolist(), "extra": "e"}),
    "lines": f"axisAlignment: {ROWS.replace('], ', '],' + chr(10))}\nextra = 3\n",
    "comment": f"# axisAlignment is scan to world\n{describe_matrix(MATRIX)}",
    "other word": f"hasAxisAlignment = true\n{describe_matrix(MATRIX)}",
    "parts": describe_matrix(MATRIX).replace("axisAlignment", "axis_alignment"),
}


@pytest.mark.parametrize("text", SPELT.values(), ids=SPELT)
@pytest.mark.parametrize("layout", ["rgbd_folder", "nerfstudio"])
def test_meta_data_in_other_spellings_count(make_copy, layout, text):
    folder, _ = make_copy(layout)
    (folder / "axis_align.txt").unlink(missing_ok=True)
    meta = folder / f"{folder.name}.txt"
    meta.write_text(text)
    assert np.array_equal(read_scene(folder, look_at_world=False).axis_align_matrix, MATRIX)
    assert meta.name not in list_not_read(folder)
    meta.rename(folder.parent / "other.txt")
    given = read_scene(folder, axis_align_matrix=folder.parent / "other.txt", look_at_world=False)
    assert np.array_equal(given.axis_align_matrix, MATRIX)
    meta.write_text("axisalignment : up 1 2\n")
    with pytest.raises(ValueError, match="axisAlignment: expected 16 numbers, .*'up 1 2'; write the line 'axisAlign"):
        read_scene(folder)


@pytest.mark.parametrize("near", ["align.json", "axis_align.npy", "axis_alignment.txt"])
def test_near_alignments_are_read_under_the_name_that_is_told(make_copy, near):
    folder, _ = make_copy("nerfstudio")
    if near.endswith(".npy"):
        np.save(folder / near, MATRIX)
    else:
        (folder / near).write_text(json.dumps({"axisAlignment": MATRIX.tolist()}))
    with pytest.warns(UserWarning, match=f"{near} is not read: .* axis_align.txt if that is what it is"):
        assert read_scene(folder, look_at_world=False).axis_align_matrix is None
    (folder / near).rename(folder / "axis_align.txt")
    assert np.array_equal(read_scene(folder, look_at_world=False).axis_align_matrix, MATRIX)


def test_matrices_of_frames_may_have_comments_and_brackets(make_copy):
    folder, wanted = make_copy("rgbd_folder")
    for file in (*folder.glob("*.pose.txt"), folder / "camera-intrinsics.txt"):
        matrix = np.loadtxt(file)
        np.savetxt(file, matrix, fmt="%.12f", header="made by hand", delimiter=", ")
    assert_same(read_scene(folder), wanted)
    for file in folder.glob("*.pose.txt"):
        file.write_text(str(np.loadtxt(file, delimiter=",").tolist()))
    assert_same(read_scene(folder), wanted)


@pytest.mark.parametrize("layout", ["rgbd_folder", "nerfstudio", "posed_images"])
def test_meta_data_of_scannet_in_the_folder_of_a_scan_count(make_copy, layout):
    folder, scene = make_copy(layout)
    base = np.eye(4) if scene.axis_align_matrix is None else scene.axis_align_matrix
    for file in (folder / "axis_align.txt", folder.parents[1] / "scans" / folder.name / f"{folder.name}.txt"):
        file.unlink(missing_ok=True)
    meta = folder / f"{folder.name}.txt"
    meta.write_text(describe_matrix(MATRIX))
    found = read_scene(folder, look_at_world=False)
    assert np.array_equal(found.axis_align_matrix, MATRIX)
    assert np.allclose(found.cam2world, MATRIX @ np.linalg.inv(base) @ scene.cam2world)
    assert meta.name not in list_not_read(folder)
    # A file of the scan's own name that says nothing about an alignment is no meta data; neither need it be UTF-8.
    meta.write_bytes(b"caf\xe9")
    assert read_scene(folder, look_at_world=False).axis_align_matrix is None
    # Those of another scan are named with the way to use them, which works.
    meta.unlink()
    (folder / "scene0415_00.txt").write_text(describe_matrix(MATRIX))
    with pytest.warns(
        UserWarning, match="scene0415_00.txt is not read: save it as axis_align.txt if it is of this scan"
    ):
        assert read_scene(folder, look_at_world=False).axis_align_matrix is None
    (folder / "scene0415_00.txt").rename(folder / "axis_align.txt")
    assert np.array_equal(read_scene(folder, look_at_world=False).axis_align_matrix, MATRIX)


# ---- files alone


@pytest.mark.parametrize("suffix", [".ts", ".WMV", ".mts", ".webm", ".3gp", ".mpg"])
def test_videos_are_known_by_their_suffix(tmp_path, suffix):
    assert suffix.lower() in SUFFIXES
    file = tmp_path / f"walk{suffix}"
    file.write_bytes(b"1")
    assert find_video(file) == file
    with pytest.raises(ValueError, match="expected a video, got a text"):
        read_scene(file)
    with pytest.raises(ValueError, match=rf"is no scan, but holds 1 video; give the video itself: .*walk{suffix}\.$"):
        find_layout(tmp_path)


def test_a_transport_stream_is_read(tmp_path):
    with av.open(str(tmp_path / "walk.ts"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for shade in (10, *(200,) * 11):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    scene = read_scene(tmp_path / "walk.ts", num_views=1)
    assert scene.images.shape == (1, 48, 64, 3) and abs(int(scene.images.mean()) - 10) < 12


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scan.tar.gz", "an archive: unpack it"),
        ("scan.7z", "an archive: unpack it"),
        ("room.GLB", "a mesh, without the pictures"),
        ("room.gltf", "a mesh, without the pictures"),
        ("room.ply", "a mesh or a point cloud, without the pictures"),
        ("walk.svo2", "a recording of a ZED camera: export it"),
        ("walk.mcap", "a recording of a robot"),
        ("room.e57", "a laser scan: export the pictures"),
    ],
)
def test_files_that_are_scans_of_their_own_are_told_what_to_export(tmp_path, name, words):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=f"{name} is no folder of a scan, but {words}"):
        read_scene(tmp_path / name)
    with pytest.raises(ValueError, match=f": this folder is no scan of a known layout; {name} in it is {words}"):
        read_scene(tmp_path)
    (tmp_path / "walk.xyz9").touch()
    with pytest.raises(
        ValueError, match=r"a file of an unknown kind \(.xyz9\): give the folder of one scan, or a vid"
    ):
        read_scene(tmp_path / "walk.xyz9")


def test_lens_models_count_in_lower_case(make_copy):
    folder, wanted = make_copy("nerfstudio")
    content = json.loads((folder / "transforms.json").read_text())
    for model in ("opencv", "Pinhole", "perspective"):
        save_transforms(folder, content | {"camera_model": model})
        assert_same(read_scene(folder), wanted)
    save_transforms(folder, content | {"camera_model": "opencv_fisheye"})
    with pytest.raises(ValueError, match="got 'opencv_fisheye'; undistort the pictures to a pinhole camera first"):
        read_scene(folder)
    (folder / "transforms_undistorted.json").touch()
    with pytest.raises(
        ValueError, match="; copy transforms_undistorted.json as transforms.json into the folder of the"
    ):
        read_scene(folder)
