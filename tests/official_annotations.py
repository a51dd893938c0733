"""The official files of five benchmarks about the raw scans that `tests/raw_scannet.py` writes, and masks of Mask3D."""

import json
from pathlib import Path

import numpy as np
import scipy.sparse

from ross3d.tests.raw_scannet import RawScan, write_raw_scan


def write_raw_set(folder: Path, num_frames: int = 31) -> dict[str, RawScan]:
    """Two training scans (the second with a gap in its ids and a lost frame) and a validation scan, under `folder`."""
    return {
        "scene0001_00": write_raw_scan(folder, "scene0001_00", 0, num_frames),
        "scene0002_00": write_raw_scan(folder, "scene0002_00", 1, num_frames, lost=(10,), id_gap=True),
        "scene0003_00": write_raw_scan(folder, "scene0003_00", 2, num_frames),
    }


SPLIT_OF = {"scene0001_00": "train", "scene0002_00": "train", "scene0003_00": "val"}


def write_official(folder: Path, scans: dict[str, RawScan]) -> None:
    """All official files; SQA3D's test split is about the validation scan."""
    for split in ("train", "val"):
        ours = {scene_id: scan for scene_id, scan in scans.items() if SPLIT_OF[scene_id] == split}
        write(folder / "scanqa" / f"ScanQA_v1.0_{split}.json", make_scanqa(ours, split))
        write(folder / "scanrefer" / f"ScanRefer_filtered_{split}.json", make_scanrefer(ours))
        write(folder / "multi3drefer" / f"multi3drefer_{split}.json", make_multi3drefer(ours))
        write_sqa3d(folder / "sqa_task" / "balanced", ours, split)
        (folder / f"scannetv2_{split}.txt").write_text("".join(f"{scene_id}\n" for scene_id in ours))
    write_sqa3d(folder / "sqa_task" / "balanced", {"scene0003_00": scans["scene0003_00"]}, "test")


def write(file: Path, content) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def make_scanqa(scans: dict[str, RawScan], split: str) -> list[dict]:
    return [
        {
            "question_id": f"{split}-{scene_id}-{number}",
            "scene_id": scene_id,
            "question": f"What stands beside the {category}?",
            "answers": ["bed", f"large bed {number}"],
            "object_ids": [number],
            "object_names": [category],
        }
        for scene_id, scan in scans.items()
        for number, category in zip(scan.object_ids[2:4], scan.categories[2:4], strict=True)
    ]


def write_sqa3d(folder: Path, scans: dict[str, RawScan], split: str) -> None:
    start = {"train": 100, "val": 200, "test": 300}[split]
    questions, annotations = [], []
    for number, scene_id in enumerate(scans, start=start):
        questions.append(
            {
                "question_id": number,
                "scene_id": scene_id,
                "situation": "I am facing a window.",
                "alternative_situation": ["I stand by the bed.", "The bed is behind me."],
                "question": "Is the door open?",
            }
        )
        answers = [{"answer": "no", "answer_confidence": "yes", "answer_id": 1}]
        annotations.append({"question_id": number, "scene_id": scene_id, "answers": answers, "answer_type": "other"})
    write(folder / f"v1_balanced_questions_{split}_scannetv2.json", {"questions": questions})
    write(folder / f"v1_balanced_sqa_annotations_{split}_scannetv2.json", {"annotations": annotations})


def make_scanrefer(scans: dict[str, RawScan]) -> list[dict]:
    """Two descriptions of every piece of furniture, one after the other round."""
    return [
        {
            "scene_id": scene_id,
            "object_id": str(number),
            "object_name": category.replace(" ", "_"),
            "ann_id": ann_id,
            "description": f"this is a {category}. It is Number {number}.",
            "token": ["this"],
        }
        for scene_id, scan in scans.items()
        for ann_id in ("0", "1")
        for number, category in zip(scan.object_ids[2:], scan.categories[2:], strict=True)
    ]


def make_multi3drefer(scans: dict[str, RawScan]) -> list[dict]:
    rows = []
    for scene_id, scan in scans.items():
        targets = ([], "zt_wo_d"), (scan.object_ids[2:3], "st_w_d"), (scan.object_ids[-2:], "mt")
        rows += [
            {
                "scene_id": scene_id,
                "object_ids": ids,
                "object_name": "thing",
                "ann_id": number,
                "description": f"things, {len(ids)} of them",
                "eval_type": kind,
            }
            for number, (ids, kind) in enumerate(targets)
        ]
    return rows


def write_masks(folder: Path, scans: dict[str, RawScan]) -> None:
    """Masks of the validation scan: all objects but the last, the first one twice (a half of it first), one empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene_id, scan in scans.items():
        if SPLIT_OF[scene_id] == "val":
            masks = [scan.instance_ids == number for number in scan.object_ids[:-1]]
            first = masks[2].copy()
            first[np.flatnonzero(first)[::2]] = False
            rows = np.stack([first, *masks, np.zeros_like(first)]).astype(np.uint8)
            scipy.sparse.save_npz(folder / f"{scene_id}.mask.npz", scipy.sparse.csr_matrix(rows))
