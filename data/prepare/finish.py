"""Finish a data folder once all scenes are on disk: annotations, tables, the card for `datasets`, the account."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ross3d.data.annotations import save_annotations
from ross3d.data.atomic import remove_leftovers, write_text
from ross3d.data.prepare.boxes import make_gt_file, make_pred_file
from ross3d.data.prepare.llava_style import Boxes, Record
from ross3d.data.prepare.official_set import SPLITS, convert_files, drop_boxless, needs_proposals
from ross3d.data.prepare.scene_folder import read_facts
from ross3d.data.prepare.tables import write_card, write_scans_table
from ross3d.data.sources import list_folders
from ross3d.data.text_files import read_json


# Files per reason that are named when a command ends.
SHOWN_FILES = 20
# split, boxes by scene, proposals by scene -> public file name -> records
MakeFiles = Callable[[str, dict[str, Boxes], dict[str, list[list[float]]]], dict[str, list[Record]]]


@dataclass
class Finished:
    """The account, and whether this run made anything."""

    account: dict[str, Any]
    new: bool


def check_settings(output: Path, settings: dict[str, Any], inputs: dict[str, Any]) -> Finished | None:
    """The account of a complete folder; else None, after writing the settings.

    Leftovers of killed runs are removed.

    Raises:
        ValueError: when the folder was begun with other settings.
    """
    account, begun = output / "account.json", output / "account.part.json"
    for file in (account, begun):
        if not file.is_file():
            continue
        found = read_json(file, "the settings of a prepared folder", keys=("settings",))
        if found["settings"] != settings:
            changed = sorted(k for k in {*found["settings"], *settings} if found["settings"].get(k) != settings.get(k))
            raise ValueError(
                f"--output: {output} was prepared with { ({k: found['settings'].get(k) for k in changed}) }, but this"
                f" command sets { ({k: settings.get(k) for k in changed}) }; choose another folder, or delete this"
                " one."
            )
        is_same = file == account and found.get("inputs") == inputs
        if is_same and not begun.is_file() and is_whole(output, found["made"]):
            return Finished(found, new=False)
    output.mkdir(parents=True, exist_ok=True)
    for folder in (output, *(path for path in output.iterdir() if path.is_dir())):
        remove_leftovers(folder)
    write_json(begun, {"settings": settings})
    return None


def list_made(output: Path) -> list[str]:
    """Scene folders and tables of a data folder."""
    files = [*output.glob("*/*/scene.json"), *output.glob("annotations/*.parquet"), *output.glob("scans/*.parquet")]
    return sorted(file.relative_to(output).as_posix() for file in files)


def is_whole(output: Path, made: list[str]) -> bool:
    """Whether everything that was made exists and is not empty."""
    return made == list_made(output) and all((output / name).stat().st_size for name in made)


def check_no_strangers(output: Path, scenes: dict[str, set[str]]) -> None:
    """Refuse a folder that also has scenes which are not prepared by this run: they would be trained on."""
    strangers = [
        folder
        for split in SPLITS
        for folder in sorted(file.parent for file in (output / split).glob("*/scene.json"))
        if folder.name not in scenes[split]
    ]
    if strangers:
        raise ValueError(
            f"--output: {len(strangers)} scenes in this folder are not part of the input, such as {strangers[0]};"
            " delete them, or choose another folder."
        )


def finish(
    output: Path,
    settings: dict[str, Any],
    inputs: dict[str, Any],
    make_files: MakeFiles,
    excluded: dict[str, str],
    missing: list[str],
    not_read: dict[str, list[str]],
    published: dict[str, set[str]] | None = None,
) -> Finished:
    """Write everything that is made from all scenes together, the account last.

    Args:
        make_files: (split, boxes, proposals) -> public files of a split.
        excluded (`dict`): scans that have no folder, and why. missing (`list[str]`): absent files.
        not_read (`dict`): reason -> existing files that are not used.
        published (`dict`, *optional*): also write public records and box files, by the published rules; split ->
            scenes of its box files, all where it names none.
    """
    splits, left_out, unknown_labels = {}, {}, Counter()
    for split in SPLITS:
        folders = [path for path in list_folders(output / split) if (path / "scene.json").is_file()]
        facts = [read_facts(folder) for folder in folders]
        boxes = {folder.name: read_object_boxes(folder) for folder in folders}
        proposals = {folder.name: read_rows(folder / "proposals.json") for folder in folders}
        proposals = {scene_id: rows for scene_id, rows in proposals.items() if rows is not None}
        files = make_files(split, boxes, proposals)
        conversion = convert_files(files, boxes, proposals)
        if conversion.left_out:
            left_out[split] = conversion.left_out
        if not folders:
            continue
        save_annotations(conversion.annotations, output / "annotations" / f"{split}.parquet")
        num_views = write_scans_table(folders, facts, split, output / "scans" / f"{split}.parquet")
        if published is not None:
            masks = {f["scene_id"]: f["mask_boxes"] for f in facts if f["mask_boxes"] is not None}
            write_published(output, split, files, boxes, masks, published.get(split, boxes.keys()))
        tasks = Counter(annotation.task for annotation in conversion.annotations)
        splits[split] = {
            "scenes": len(folders),
            "views": num_views,
            "frames": sum(f["num_frames"] for f in facts),
            "frames_without_pose": sum(f["lost_frames"] for f in facts),
            "scenes_without_objects": [scene_id for scene_id, known in boxes.items() if not known],
            "scenes_without_proposals": [scene_id for scene_id in boxes if scene_id not in proposals],
            "empty_masks": sum(box is None for f in facts for box in f["mask_boxes"] or []),
            "annotations": dict(sorted(tasks.items())),
        }
        unknown_labels.update(label for f in facts for label in f["unknown_labels"])
    account = {
        "made": list_made(output),
        "settings": settings,
        "inputs": inputs,
        "splits": splits,
        "excluded_scans": excluded,
        "left_out_annotations": left_out,
        "labels_not_in_the_table": dict(sorted(unknown_labels.items())),
        "files_not_there": missing,
        "files_not_read": not_read,
    }
    write_card(output, [split for split in SPLITS if split in splits])
    write_json(output / "account.json", account)
    (output / "account.part.json").unlink()
    return Finished(account, new=True)


def read_rows(file: Path) -> list[Any] | None:
    return read_json(file, "boxes", kind=list) if file.is_file() else None


def read_object_boxes(folder: Path) -> Boxes:
    """Official object id -> box of a scene's folder."""
    return {row["object_id"]: row["box"] for row in read_rows(folder / "boxes.json") or []}


def write_published(
    output: Path,
    split: str,
    files: dict[str, list[Record]],
    boxes: dict[str, Boxes],
    masks: dict[str, list],
    scenes: Collection[str],
) -> None:
    """`processed/` and `metadata/` as Video-3D-LLM publishes them; `scenes` are those of the box files."""
    for name, records in files.items():
        if masks or not needs_proposals(name):
            write_json(output / "processed" / name, drop_boxless(records))
    with_objects = {scene_id: known for scene_id, known in boxes.items() if known and scene_id in scenes}
    masks = {scene_id: rows for scene_id, rows in masks.items() if scene_id in scenes}
    write_json(output / "metadata" / f"scannet_{split}_gt_box.json", make_gt_file(with_objects))
    write_json(output / "metadata" / f"scannet_{split}_pred_box.json", make_pred_file(masks))


def hash_text(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_json(file: Path, value: Any) -> None:
    write_text(file, json.dumps(value, indent=1) + "\n")


def format_account(finished: Finished, output: Path) -> str:
    """The summary that the command prints at its end."""
    account = finished.account
    lines = [f"{output}: {'prepared' if finished.new else 'already complete, nothing to do'}"]
    for split, row in account["splits"].items():
        questions = ", ".join(f"{task} {count}" for task, count in row["annotations"].items()) or "no questions"
        lines.append(f"  {split}: {row['scenes']} scenes, {row['views']} views of {row['frames']} frames; {questions}")
        for name in ("frames_without_pose", "scenes_without_objects", "scenes_without_proposals", "empty_masks"):
            if row[name]:
                count = len(row[name]) if isinstance(row[name], list) else row[name]
                lines.append(f"    {name.replace('_', ' ')}: {count}")
    for split, reasons in account["left_out_annotations"].items():
        for reason, names in reasons.items():
            lines.append(f"  left out of {split}: {len(names)} of {reason}, such as {names[0]}")
    for reason, count in Counter(account["excluded_scans"].values()).items():
        lines.append(f"  excluded: {count} scans: {reason}")
    if account["labels_not_in_the_table"]:
        lines.append(f"  labels missing in the table, used as `case`: {account['labels_not_in_the_table']}")
    if account["files_not_there"]:
        lines.append(f"  missing files: {', '.join(account['files_not_there'])}")
    for reason, names in account["files_not_read"].items():
        more = f" and {len(names) - SHOWN_FILES} more, in account.json" if len(names) > SHOWN_FILES else ""
        lines.append(f"  not read: {', '.join(names[:SHOWN_FILES])}{more}: {reason}")
    return "\n".join(lines)
