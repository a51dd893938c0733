"""Store the records of an evaluation on disk, so that a kill at any moment neither loses nor repeats an answer.

While an evaluation runs, each process appends whole scenes to its own file under `parts/`; a restarted process opens
a new file and never touches an old one. A scene is complete once all of its records can be read: a truncated last
line, or an incomplete scene, is answered again. At the end all records are written, in the order of the items, to the
final files, which replace older ones atomically.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ross3d.data.atomic import remove_leftovers, write_text
from ross3d.data.text_files import parse_json
from ross3d.tasks.task import Record


PARTS_FOLDER, PARTS = "parts", "rank*-*.jsonl"
# Contains a folder for each scene.
PICTURES_FOLDER = "pictures"


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def format_lines(records: Sequence[Record]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)


def read_whole_lines(path: Path) -> list[Record]:
    """Records of a file up to its last line break; a rest after it is an interrupted write."""
    # Split bytes, since text may contain other characters that Python treats as line breaks.
    *whole, _ = path.read_bytes().split(b"\n")
    lines = ((f"{path}:{number}", line) for number, line in enumerate(whole, start=1))
    return [parse_record(line, where) for where, line in lines]


def parse_record(line: bytes, where: str) -> Record:
    """Parse the record of a line.

    Raises:
        ValueError: for a damaged line; names file and line.
    """
    meaning, remedy = "a record of eval.py", "remove the line, and its scene is answered again"
    try:
        record = parse_json(line.decode("utf-8"), where, meaning, remedy, is_line=True)
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected {meaning}, got bytes that are not UTF-8; {remedy}.") from error
    if not isinstance(record, dict) or not {"task", "id", "scene_id"} <= record.keys():
        raise ValueError(f"{where}: expected {meaning} with task, id and scene_id, got {str(record)[:60]}; {remedy}.")
    return record


def group_items(items: Sequence[Any]) -> dict[str, list[Any]]:
    """Items of each scene, scenes and items in their order."""
    groups: dict[str, list[Any]] = defaultdict(list)
    for item in items:
        groups[item.scene_id].append(item)
    return dict(groups)


class RecordStore:
    """Records of one output folder.

    Args:
        output_dir (`Path`): of the evaluation.
        final_files (list of `str`): names of files with finished records.
        rank (`int`): of this process.
    """

    def __init__(self, output_dir: Path, final_files: Sequence[str], rank: int = 0):
        self.output_dir = output_dir
        self.parts_dir = output_dir / PARTS_FOLDER
        self.records: dict[tuple[str, str], Record] = {}
        self.read_again(final_files)
        taken = [int(path.stem.split("-")[-1]) for path in self.parts_dir.glob(f"rank{rank}-*.jsonl")]
        self.part = self.parts_dir / f"rank{rank}-{max(taken, default=-1) + 1}.jsonl"

    def read_again(self, final_files: Sequence[str] = ()) -> None:
        """Read what all processes have written so far."""
        finished = [self.output_dir / name for name in final_files]
        for path in [path for path in finished if path.is_file()] + sorted(self.parts_dir.glob(PARTS)):
            for record in read_whole_lines(path):
                self.records.setdefault((record["task"], record["id"]), record)

    def get_open_scenes(self, task_name: str, items: Sequence[Any]) -> dict[str, list[Any]]:
        """Scenes that are not answered yet, each with all of its items, in the order of the items."""
        return {
            scene_id: group
            for scene_id, group in group_items(items).items()
            if any((task_name, item.id) not in self.records for item in group)
        }

    def append_scene(self, records: Sequence[Record]) -> None:
        """Append the records of a whole scene; on return they are on disk."""
        self.parts_dir.mkdir(parents=True, exist_ok=True)
        with self.part.open("ab") as file:
            file.write(format_lines(records).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        for record in records:
            self.records[record["task"], record["id"]] = record

    def get_records(self, task_name: str, items: Sequence[Any]) -> list[Record]:
        """A record for every item, in order.

        Raises:
            ValueError: when an item was not answered.
        """
        missing = [item.id for item in items if (task_name, item.id) not in self.records]
        if missing:
            raise ValueError(
                f"records of {task_name}: expected one for each of {len(items)} items, got none for {len(missing)},"
                f" first {missing[0]!r}; start the evaluation again to answer the missing ones."
            )
        return [self.records[task_name, item.id] for item in items]

    def write_final(self, name: str, records: Sequence[Record]) -> None:
        write_text(self.output_dir / name, format_lines(records))

    def remove_parts(self) -> None:
        """Remove files that only a running evaluation needs, and unfinished files of killed ones."""
        for path in self.parts_dir.glob(PARTS):
            path.unlink()
        # Other files in the folder stay.
        if self.parts_dir.is_dir() and not any(self.parts_dir.iterdir()):
            self.parts_dir.rmdir()
        for folder in (self.output_dir, *self.output_dir.glob(f"{PICTURES_FOLDER}/*")):
            remove_leftovers(folder)


__all__ = ["RecordStore", "format_lines", "group_items", "read_whole_lines", "write_json"]
