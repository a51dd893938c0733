"""docs/DATA.md: its commands and its Python run on synthetic downloads, and its picture is what they make."""

import re
import shlex
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from ross3d.data.annotations import load_annotations
from ross3d.data.prepare.__main__ import main
from ross3d.data.sources import LAYOUTS
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.tasks import find_tasks
from ross3d.tests.laws.house import ROOT
from ross3d.tests.laws.test_readme import get_blocks, run_python_blocks
from ross3d.tests.official_annotations import write_masks, write_official, write_raw_set
from ross3d.tests.public_files import write_public_root


DOCUMENT = Path("docs/DATA.md")
OUR_TASKS = {"rooms", "reconstruction"}


def list_commands() -> list[list[str]]:
    """Arguments of every command of the document, in its order."""
    lines = [line for code in get_blocks(ROOT, DOCUMENT, "bash") for line in code.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line) for line in lines]
    assert all(line[:3] == ["python", "-m", "ross3d.data.prepare"] for line in words)
    return [line[3:] for line in words]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Downloads as the document lays them out, and what its commands make of them."""
    folder = tmp_path_factory.mktemp("document")
    downloads = folder / "downloads"
    scans = write_raw_set(downloads / "scannet")
    write_official(downloads / "official", scans)
    write_masks(downloads / "mask", scans)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        for arguments in list_commands():
            if arguments[0] == "posed-images":
                write_public_root(downloads / "data", scans, folder / "outputs" / "published")
            main([*arguments, "--num-workers", "1"])
        run_python_blocks(ROOT, DOCUMENT)
    return folder


def test_commands_make_what_is_promised(folder):
    assert sorted(path.name for path in (folder / "outputs").iterdir()) == ["from_public", "published", "scannet"]
    counts = [
        len(load_annotations(folder / "outputs" / name / "annotations" / "val.parquet"))
        for name in ("from_public", "published", "scannet")
    ]
    assert counts == [18] * 3
    assert {path.name for path in (folder / "outputs" / "scannet").iterdir()} == {
        "train", "val", "test", "annotations", "scans", "README.md", "account.json",
    }  # fmt: skip
    scene = read_rgbd_folder(folder / "outputs" / "scannet" / "val" / "scene0003_00")
    assert scene.bev_image.shape == (216, 216, 3) and scene.num_views == 4
    scenes = [read_rgbd_folder(path) for path in (folder / "outputs" / "scannet").glob("*/*_00")]
    assert len(scenes) == 4 and all(len(scene.proposal_boxes) for scene in scenes)


def test_the_picture_is_what_the_code_makes(folder):
    made, shown = (
        np.array(Image.open(file).convert("RGB")).astype(int)
        for file in (folder / "bev.png", ROOT / "docs" / "pictures" / "bev.png")
    )
    assert made.shape == shown.shape
    # Other versions of the libraries may round a few pixels another way.
    assert (np.abs(made - shown).max(-1) > 8).mean() < 0.01


def test_every_file_that_is_read_is_in_the_document():
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    for name in (
        "ScanQA_v1.0_{train,val}.json", "ScanRefer_filtered_{train,val}.json", "multi3drefer_{train,val}.json",
        "v1_balanced_questions_{train,val,test}_scannetv2.json", "scannetv2_{train,val,test}.txt",
        "scannetv2-labels.combined.tsv", "SCENE.mask.npz", "_vh_clean_2.0.010000.segs.json", ".aggregation.json",
        "_vh_clean_2.ply", ".sens", "embodiedscan_infos_{train,val,test}.pkl", "processed.zip", "metadata.zip",
    ):  # fmt: skip
        assert name in text, name


def test_every_benchmark_and_layout_is_in_the_document():
    text = (ROOT / DOCUMENT).read_text(encoding="utf-8")
    public = [name for name, task in find_tasks().items() if task.split in {"val", "test"} and name not in OUR_TASKS]
    assert len(public) >= 9 and all(f"`{name}`" in text for name in public)
    for layout in LAYOUTS:
        marks = re.findall(r"[\w.-]*\.(?:traj|json|sens|txt|jpg)", layout.looks_like)
        assert marks and any(mark in text for mark in marks) or layout.name.endswith("_3dod"), layout.name
