"""Scans whose views do not agree are warned of or refused where they are prepared, as where they are read."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ross3d.data.consistency import ConsistencyWarning
from ross3d.data.prepare.__main__ import main
from ross3d.data.sources.sens import iterate_sens_frames
from ross3d.tests.given_scans import copy_given, prepare_given
from ross3d.tests.official_annotations import write
from ross3d.tests.public_files import write_posed_images
from ross3d.tests.raw_scannet import RawScan, write_raw_scan, write_sens


SCENE = "scene0001_00"


def turn_to_opengl(cam2world: np.ndarray) -> np.ndarray:
    return cam2world @ np.diag([1.0, -1.0, -1.0, 1.0])


def scale(cam2world: np.ndarray, factor: float) -> np.ndarray:
    scaled = cam2world.copy()
    scaled[..., :3, 3] *= factor
    return scaled


def shuffle(cameras: np.ndarray) -> np.ndarray:
    return cameras[np.random.default_rng(3).permutation(len(cameras))]


# How poses are spoiled, how that is undone, and what is told.
FAULTS = {
    "inverted": (
        np.linalg.inv,
        np.linalg.inv,
        "Undoing one mistake makes .* the poses are world to camera where camera to world is expected",
    ),
    "OpenGL": (
        turn_to_opengl,
        turn_to_opengl,
        "Undoing one mistake makes .*OpenGL axes .x right, y up, z backward. stand where OpenCV",
    ),
    "centimetres": (
        partial(scale, factor=100),
        partial(scale, factor=0.01),
        "Undoing one mistake makes .*the translations are in centimetres where metres are expected",
    ),
}


@pytest.fixture
def scan(tmp_path) -> RawScan:
    """Nine frames of which every one is read, in a world that an alignment turns upright."""
    return write_raw_scan(tmp_path / "made", SCENE, 0, 81)


def make_public(root: Path, scan: RawScan) -> Path:
    """The folder of frames, and one question about it."""
    write_posed_images(root / "scannet", SCENE, scan)
    turns = [{"value": "<image> Why?", "from": "human"}, {"value": "so", "from": "gpt"}]
    record = {"id": 7, "video": f"scannet/{SCENE}", "conversations": turns}
    record["metadata"] = {"dataset": "scanqa", "question_type": "unknow"}
    write(root / "processed" / "scanqa_train_llava_style.json", [record])
    return root / "scannet" / "posed_images" / SCENE


def prepare_public(root: Path, *more) -> None:
    given = ["posed-images", "--root", root, "--output", root / "out", "--views", 9, "--bev-size", 24]
    main([str(argument) for argument in [*given, "--num-workers", 1, *more]])


def spoil_poses(folder: Path, change) -> None:
    for file in folder.glob("[0-9]*.txt"):
        np.savetxt(file, change(np.loadtxt(file)), fmt="%f")


@pytest.mark.parametrize("fault", FAULTS)
def test_public_files_with_other_cameras_are_refused(scan, tmp_path, fault):
    folder = make_public(tmp_path, scan)
    change, undo, message = FAULTS[fault]
    spoil_poses(folder, change)
    with pytest.raises(
        ValueError, match=rf"(?s)1 of 1 failed.*{SCENE}: .*the views do not agree with each.*{message}"
    ):
        prepare_public(tmp_path)
    assert not list((tmp_path / "out").glob("*/scene*")), "nothing of a refused scene stays"
    spoil_poses(folder, undo)
    prepare_public(tmp_path)
    assert (tmp_path / "out" / "train" / SCENE / "scene.json").is_file()


def test_public_files_with_doubtful_cameras_are_warned_of(scan, tmp_path):
    """Poses in another order: no usual mistake explains them, so the scene is made all the same."""
    folder = make_public(tmp_path, scan)
    files = sorted(folder.glob("[0-9]*.txt"))
    poses = shuffle(np.array([file.read_text() for file in files]))
    for file, pose in zip(files, poses, strict=True):
        file.write_text(pose)
    with pytest.warns(
        ConsistencyWarning, match=f"scene '{SCENE}': the views do not agree.*every frame has its own pose"
    ):
        prepare_public(tmp_path)
    facts = json.loads((tmp_path / "out" / "train" / SCENE / "scene.json").read_text())
    assert facts["scene_id"] == SCENE


@pytest.mark.parametrize("fault", ["inverted", None])
def test_raw_scans_with_other_cameras_are_refused(scan, tmp_path, fault):
    given = copy_given(tmp_path / "given")
    cameras = np.stack([frame.cam2world for frame in iterate_sens_frames(scan.folder / f"{SCENE}.sens")])
    # The recording of a longer scan of the same room.
    write_sens(
        given / "raw" / "scans" / SCENE / f"{SCENE}.sens",
        scan.color_jpegs,
        scan.depth_mm,
        cameras if fault is None else FAULTS[fault][0](cameras),
        scan.color_intrinsics,
        scan.depth_intrinsics,
    )
    made = {"scene0002_00", "scene0003_00"}
    if fault is None:
        prepare_given(given, "--views", 9)
        made.add(SCENE)
    else:
        with pytest.raises(
            ValueError, match=rf"(?s)scans: 1 of 3 failed; .*{SCENE}: .*do not agree.*{FAULTS[fault][2]}"
        ):
            prepare_given(given, "--views", 9)
    assert {path.name for path in (given / "out").glob("*/scene*")} == made
