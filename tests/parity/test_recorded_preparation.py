"""Official annotation files and boxes -> public records, against recorded results of the published scripts."""

import json
from itertools import product

import numpy as np
import pytest

from ross3d.data.prepare import multi3drefer, scan2cap, scanqa, scanrefer, sqa3d
from ross3d.data.prepare.boxes import make_box, make_gt_file, make_mask_boxes, make_pred_file
from ross3d.data.sources.scannet_objects import NYU40_CLASSES
from ross3d.tests.parity.golden import get_goldens_folder


pytestmark = pytest.mark.parity
FOLDER = get_goldens_folder() / "metrics"


def load(name: str) -> dict:
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"no recorded {file.name} in {FOLDER} (environment variable ROSS3D_GOLDENS)")
    return json.loads(file.read_text(encoding="utf-8"))


def compare(made: dict[str, object], recorded: dict[str, object]) -> int:
    """Every recorded file, byte by byte as JSON, keys in their order; the number of entries."""
    assert made.keys() == recorded.keys()
    for name, wanted in recorded.items():
        assert json.dumps(made[name]) == json.dumps(wanted), name
    return sum(map(len, recorded.values()))


def get_split(name: str) -> str:
    return next(split for split in ("train", "val", "test") if split in name.split(".json")[0].split("_"))


def test_scanqa():
    golden = load("pre_scanqa")
    made = {}
    for name, rows in golden["input"].items():
        split = get_split(name)
        made[f"scanqa_{split}_llava_style.json"] = scanqa.make_records(scanqa.check(rows, name), split)
    assert compare(made, golden["expected"]) >= sum(map(len, golden["input"].values())) > 0


def test_sqa3d():
    golden = load("pre_sqa3d")
    made = {}
    for name, questions in golden["input"].items():
        if "questions" in name:
            split = get_split(name)
            annotations = golden["input"][name.replace("questions", "sqa_annotations")]
            made[f"sqa3d_{split}_llava_style.json"] = sqa3d.make_records(
                *sqa3d.check(questions, annotations, name), split
            )
    answers = [file["annotations"] for file in golden["input"].values() if "annotations" in file]
    assert compare(made, golden["expected"]) >= sum(map(len, answers)) > 0


def test_grounding_and_captions():
    golden = load("pre_grounding")
    given, made = golden["input"], {}
    scenes = {
        split: {
            scene_id: {row["object_id"]: make_box(row["min"], row["max"]) for row in scene["aabbs"]}
            for scene_id, scene in of_split.items()
        }
        for split, of_split in given["scenes"].items()
    }
    assert given["valid_nyu40"] == list(NYU40_CLASSES)
    masks = {
        split: {
            scene_id: make_mask_boxes(np.array(scene["xyz"], np.float32), np.array(given["masks"][scene_id]))
            for scene_id, scene in of_split.items()
            if scene_id in given["masks"]
        }
        for split, of_split in given["scenes"].items()
    }
    proposals = {k: [box for box in boxes if box] for found in masks.values() for k, boxes in found.items()}
    for split, boxes in scenes.items():
        rows, nyu40_ids = scanrefer.check(given["scanrefer"][split], split), given["nyu40_of_names"]
        assert scanrefer.get_eval_types(rows, nyu40_ids) == golden["expected"]["eval_type"][split]
        made |= {
            f"scanrefer_vg_{split}_llava_style.json": scanrefer.make_records(rows, boxes, nyu40_ids),
            f"scan2cap_{split}_llava_style.json": scan2cap.make_records(rows, split, boxes, nyu40_ids, proposals),
            f"multi3drefer_{split}_llava_style.json": multi3drefer.make_records(
                multi3drefer.check(given["multi3drefer"][split], split), boxes
            ),
            f"scannet_{split}_gt_box.json": make_gt_file(boxes),
        }
    for name in golden["expected"]:
        if name.endswith("_pred_box.json"):
            made[name] = make_pred_file(masks.get(get_split(name), {}))
    recorded = {name: value for name, value in golden["expected"].items() if name != "eval_type"}
    rows = [rows for name in ("scanrefer", "multi3drefer") for rows in given[name].values()]
    assert compare(made, recorded) >= sum(map(len, rows)) > 0


def test_boxes_from_corners():
    """The limits of recorded corners are those of our boxes."""
    golden = load("pre_scannet_aabb")
    vertices = np.array(golden["expected"]["aligned_xyz"], np.float32)
    owners = np.array(golden["expected"]["instance_ids"])
    compared = 0
    for number, corners in zip(golden["expected"]["aabb_obj_ids"], golden["expected"]["aabb_corner_xyz"], strict=True):
        (box,) = make_mask_boxes(vertices, [owners == number])
        low, high = np.array(box[:3]) - np.array(box[3:]) / 2, np.array(box[:3]) + np.array(box[3:]) / 2
        ours = [[(low, high)[x][0], (low, high)[y][1], (low, high)[z][2]] for z, x, y in product((0, 1), repeat=3)]
        np.testing.assert_allclose(ours, corners, atol=1e-6)
        compared += 1
    assert compared == len(golden["expected"]["aabb_obj_ids"]) > 0
