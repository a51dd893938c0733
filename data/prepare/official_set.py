"""All official files of a folder -> public records by file -> annotations of a split."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ross3d.data.prepare import multi3drefer, scan2cap, scanqa, scanrefer, sqa3d
from ross3d.data.prepare.llava_style import Boxes, Conversion, Record, make_annotations
from ross3d.data.prepare.official import read_json


SPLITS = ("train", "val", "test")
FILES = {
    "scanqa": ("ScanQA_v1.0_{}.json",),
    "sqa3d": ("v1_balanced_questions_{}_scannetv2.json", "v1_balanced_sqa_annotations_{}_scannetv2.json"),
    "scanrefer": ("ScanRefer_filtered_{}.json",),
    "multi3drefer": ("multi3drefer_{}.json",),
}
CHECKS = {
    "scanqa": scanqa.check,
    "sqa3d": sqa3d.check,
    "scanrefer": scanrefer.check,
    "multi3drefer": multi3drefer.check,
}
SCENE_LIST = "scannetv2_{}.txt"


@dataclass
class OfficialSet:
    """What a folder of official files holds.

    Attributes:
        files (`list[Path]`): that were read. missing (`list[str]`): names that are not there.
        rows (`dict`): split -> benchmark -> checked rows (SQA3D: questions by id, and annotations).
        scenes (`dict`): split -> the scenes that its files and its list name.
    """

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    scenes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name anywhere below a folder.

    Raises:
        ValueError: when there are two.
    """
    found = sorted(folder.rglob(name))
    if len(found) > 1:
        raise ValueError(f"--annotations: {name} is there twice, {found[0]} and {found[1]}; remove one.")
    return found[0] if found else None


def read_official(folder: Path) -> OfficialSet:
    """Read and check every official file below a folder.

    Raises:
        FileNotFoundError: for a folder that is not there or holds none of the files.
        ValueError: names file and entry of what is wrong.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--annotations: {folder} is not a folder; give the one with the official files.")
    official = OfficialSet()
    for split in SPLITS:
        for benchmark, patterns in FILES.items():
            names = [pattern.format(split) for pattern in patterns]
            files = [find_file(folder, name) for name in names]
            official.missing += [name for name, file in zip(names, files, strict=True) if file is None]
            if None in files:
                if any(files):
                    raise FileNotFoundError(
                        f"--annotations: {benchmark} needs both {names[0]} and {names[1]}; one of them is not there."
                    )
                continue
            official.files += files
            rows = CHECKS[benchmark](*map(read_json, files), files[0].name)
            official.rows[split][benchmark] = rows
            of_scenes = rows[1] if benchmark == "sqa3d" else rows
            official.scenes[split] |= {row["scene_id"] for row in of_scenes}
        scene_list = find_file(folder, SCENE_LIST.format(split))
        if scene_list is not None:
            official.files.append(scene_list)
            official.scenes[split] |= set(scene_list.read_text(encoding="utf-8").split())
    if not official.files:
        raise FileNotFoundError(
            f"--annotations: none of the official files is below {folder}; docs/DATA.md lists their names."
        )
    return official


def make_public_files(
    official: OfficialSet,
    split: str,
    boxes: dict[str, Boxes],
    proposals: dict[str, list[list[float]]],
    nyu40_ids: dict[str, int],
) -> dict[str, list[Record]]:
    """Public file name -> records."""
    files, rows = {}, official.rows[split]
    if "scanqa" in rows:
        files["scanqa"] = scanqa.make_records(rows["scanqa"], split)
    if "sqa3d" in rows:
        files["sqa3d"] = sqa3d.make_records(*rows["sqa3d"], split)
    if "scanrefer" in rows:
        files["scanrefer_vg"] = scanrefer.make_records(rows["scanrefer"], boxes, nyu40_ids)
        files["scan2cap"] = scan2cap.make_records(rows["scanrefer"], split, boxes, nyu40_ids, proposals)
    if "multi3drefer" in rows:
        files["multi3drefer"] = multi3drefer.make_records(rows["multi3drefer"], boxes)
    return {f"{name}_{split}_llava_style.json": records for name, records in files.items()}


def convert_files(
    files: dict[str, list[Record]], boxes: dict[str, Boxes], proposals: dict[str, list[list[float]]]
) -> Conversion:
    """Annotations of a split's public files, file after file; of captions, also the best proposal of an object."""
    rows = {scene_id: {number: row for row, number in enumerate(sorted(known))} for scene_id, known in boxes.items()}
    whole = Conversion()
    for name, records in files.items():
        conversion = make_annotations(records, name, rows)
        for annotation in conversion.annotations:
            if needs_proposals(name) and annotation.scene_id in proposals:
                scan2cap.add_best_proposal(annotation, proposals[annotation.scene_id])
            elif needs_proposals(name) and annotation.query_box is None:
                whole.leave_out("scan2cap: its scene has no detected boxes", annotation.id)
                continue
            whole.annotations.append(annotation)
        for reason, names in conversion.left_out.items():
            whole.left_out.setdefault(reason, []).extend(names)
    return whole


def needs_proposals(file_name: str) -> bool:
    """Whether a public file asks about detected boxes."""
    return file_name.startswith("scan2cap_") and "_train_" not in file_name


def drop_boxless(records: list[Record]) -> list[Record]:
    """Public records whose objects all have boxes; the published scripts stop at any other."""
    kept = []
    for record in records:
        targets = record.get("gt_box", record.get("box", []))
        if targets is not None and None not in targets:
            kept.append(record)
    return kept
