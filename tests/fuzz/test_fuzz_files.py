"""Malformed files: scans of every layout, annotations, boxes, run files. Each is read, or named in the error."""

import io
import json
import math
import os
import re
import shutil
import stat
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ross3d.data.annotations import Annotation, load_annotations, save_annotations
from ross3d.data.scene import Scene, check_scene
from ross3d.data.sources import read_scene
from ross3d.tests.fuzz.junk import json_junk, spoiled_bytes, spoiled_document
from ross3d.tests.fuzz.limits import attempt, limit_memory, run_seeded
from ross3d.tests.raw_scannet import write_raw_scan
from ross3d.tests.scan_folders import write_arkitscenes, write_nerfstudio, write_posed_images, write_rgbd
from ross3d.training.arguments import RunArguments, read_run_arguments


CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny.yaml"


@pytest.fixture(autouse=True)
def memory():
    with limit_memory():
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> dict[str, Path]:
    """Layout -> folder of one room of four frames, with files beside it that all layouts know."""
    raw = write_raw_scan(tmp_path_factory.mktemp("raw"), num_frames=4, index=4)
    path = tmp_path_factory.mktemp("scans")
    write_nerfstudio(raw, path / "capture")
    write_arkitscenes(raw, path / "4733")
    folders = {
        "rgbd_folder": write_rgbd(raw, path / "room"),
        "scannet": raw.folder,
        "nerfstudio": path / "capture",
        "arkitscenes": path / "4733",
        "posed_images": write_posed_images(raw),
    }
    for name in ("nerfstudio", "arkitscenes", "posed_images"):
        shutil.copy(folders["rgbd_folder"] / "axis_align.txt", folders[name])
        shutil.copy(folders["rgbd_folder"] / "boxes.json", folders[name])
        shutil.copy(folders["rgbd_folder"] / "boxes.json", folders[name] / "proposals.json")
    return folders


LAYOUTS = ("rgbd_folder", "scannet", "nerfstudio", "arkitscenes", "posed_images")


PICTURES = (".png", ".jpg")
# Beyond what any memory holds; a disk keeps nothing of it.
SPARSE_BYTES = 1 << 42


@cache
def make_huge_picture(suffix: str) -> bytes:
    """A small file that says it is a picture of 1.6 billion pixels, which its format packs as well as nothing else."""
    content = io.BytesIO()
    if suffix == ".jpg":
        Image.new("L", (16, 16)).save(content, "JPEG")
        # Height and width stand behind the mark of a frame, its length and its precision.
        start = content.getvalue().index(b"\xff\xc0") + 5
        return content.getvalue()[:start] + struct.pack(">HH", 40_000, 40_000) + content.getvalue()[start + 4 :]
    # Row by row, since Pillow would take a byte a pixel to write it.
    packer, row = zlib.compressobj(9), bytes(1 + 40_000 // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(40_000)), packer.flush()])
    parts = {b"IHDR": struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0), b"IDAT": packed, b"IEND": b""}
    content.write(b"\x89PNG\r\n\x1a\n")
    for kind, body in parts.items():
        content.write(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)))
    return content.getvalue()


def spoil_file(data, file: Path) -> str:
    """Spoil one file of a scan; what was done to it."""
    kinds = ["bytes", "bytes", "document", "numbers", "sparse", "gone", "folder", "pipe", "loop"]
    kind = data.draw(st.sampled_from([*kinds, *(["thin", "huge"] if file.suffix in PICTURES else [])]))
    content = file.read_bytes()
    file.unlink()
    if kind == "sparse":
        file.write_bytes(content)
        os.truncate(file, SPARSE_BYTES)
    elif kind == "numbers":
        # Sizes among them: a mesh of billions of points, a table of as many rows.
        many = data.draw(st.sampled_from([b"4000000000", b"-1", b"9" * 400]))
        file.write_bytes(re.sub(rb"(?<=[\s:])\d+(?=[\s,])", many, content, count=data.draw(st.integers(1, 9))))
    elif kind == "thin":
        mode = Image.open(io.BytesIO(content)).mode
        Image.new(mode, data.draw(st.sampled_from([(1, 60_000), (60_000, 1)]))).save(file)
    elif kind == "huge":
        file.write_bytes(make_huge_picture(file.suffix))
    elif kind == "document" and file.suffix == ".json":
        document = data.draw(spoiled_document(json.loads(content)))
        file.write_text(json.dumps(document))
    elif kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind != "gone":
        file.write_bytes(data.draw(spoiled_bytes(content)))
    return f"{file.name}: {kind}"


def copy_scan(scan: Path, path: Path) -> Path:
    """A copy of the folders that a layout reads from: the scan alone, or what stands around it too."""
    shutil.rmtree(path, ignore_errors=True)
    if scan.parent.name in ("scans", "posed_images"):
        shutil.copytree(scan.parents[1], path)
        return path / scan.relative_to(scan.parents[1])
    shutil.copytree(scan, path / scan.name)
    return path / scan.name


@pytest.mark.parametrize("layout", LAYOUTS)
@run_seeded(30)
@given(data=st.data())
def test_scans(layout, data, scans, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "spoiled"
    scan = copy_scan(scans[layout], path)
    files = sorted(file for file in scan.rglob("*") if file.is_file())
    done = [spoil_file(data, data.draw(st.sampled_from(files)))]
    quotes = f"{scan.name}|{done[0].partition(':')[0]}"
    scene, _ = attempt(lambda: read_scene(scan, **({"frame_step": 1} if layout == "scannet" else {})), done, quotes)
    if scene is not None:
        check_scene(scene)
        check_metres(scene)


def check_metres(scene: Scene) -> None:
    """A scene that was read is finite, and a room in metres."""
    for name in ("depth_maps", "cam2world", "intrinsics", "boxes", "proposal_boxes"):
        array = getattr(scene, name)
        assert array is None or np.isfinite(array).all(), name
    for name in ("boxes", "proposal_boxes"):
        array = getattr(scene, name)
        assert array is None or not array.size or np.abs(array).max() <= 1000, name


ROWS = [
    {"id": "q0", "scene_id": "room", "task": "rooms", "question_type": "count", "question": "How many chairs?",
     "answer": "two", "references": ["two", "2"]},
    {"id": "q1", "scene_id": "room", "task": "rooms", "question_type": "unique", "question": "the red chair",
     "answer": "<ground>", "references": [], "object_ids": [1, 2]},
    {"id": "q2", "scene_id": "room", "task": "rooms", "question_type": "place", "question": "What is at <coord>?",
     "answer": "a table", "references": ["a table"], "query_coords": [0.5, 1.0, 0.25]},
]  # fmt: skip


def test_right_annotations_load(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row.id for row in load_annotations(file)] == ["q0", "q1", "q2"]


@run_seeded(200)
@given(data=st.data())
def test_annotations(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoiled.jsonl"
    rows = data.draw(spoiled_document(ROWS))
    lines = [json.dumps(row) for row in rows] if isinstance(rows, list) else [json.dumps(rows)]
    content = "\n".join(lines).encode()
    if data.draw(st.booleans()):
        content = data.draw(spoiled_bytes(content))
    file.write_bytes(content)
    loaded, _ = attempt(lambda: load_annotations(file), content[:500], file.name)
    check_rows(loaded or [])


def check_rows(rows: list[Annotation]) -> None:
    """What was read is a question with an answer, without chat marks, about a finite point if any."""
    for row in rows:
        assert row.question.strip() and row.answer.strip(), row
        assert row.query_coords is None or np.isfinite(row.query_coords).all()
        assert "<|im_" not in row.question + row.answer


@run_seeded(80)
@given(data=st.data())
def test_annotations_in_a_table(data, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoiled.parquet"
    right = file.with_name("right.jsonl")
    right.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    save_annotations(load_annotations(right), file)
    file.write_bytes(data.draw(spoiled_bytes(file.read_bytes())))
    loaded, _ = attempt(lambda: load_annotations(file), "a spoiled table", file.name)
    check_rows(loaded or [])


@cache
def get_config() -> dict:
    return yaml.safe_load(CONFIG.read_text())


@run_seeded(200)
@given(settings=spoiled_document(get_config(), json_junk()))
def test_run_files(settings, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoiled.yaml"
    file.write_text(yaml.safe_dump(settings))
    check_run(attempt(lambda: read_run_arguments(file), settings)[0])


def check_run(arguments: RunArguments | None) -> None:
    """What was read, if anything, can be trained with: counts from 1 on and a finite learning rate."""
    if arguments is not None:
        data = arguments.data
        assert data.num_views >= 1 and data.epochs >= 1 and isinstance(data.blind, bool)
        assert data.limit is None or data.limit >= 1
        rate = arguments.trainer.get("learning_rate", 0.0)
        assert math.isfinite(rate) and rate >= 0


@run_seeded(60)
@given(content=spoiled_bytes(CONFIG.read_bytes()))
def test_bytes_of_run_files(content, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / "spoiled.yaml"
    file.write_bytes(content)
    check_run(attempt(lambda: read_run_arguments(file), content[:300])[0])


def test_a_pipe_is_no_file(tmp_path):
    """The helper that spoils files makes real pipes: reading one without a check would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    for read in (load_annotations, read_run_arguments):
        assert attempt(lambda read=read: read(tmp_path / "pipe"), "a pipe", "pipe")[1] is not None
