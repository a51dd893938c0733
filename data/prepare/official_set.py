"""Read all official files of a folder; convert them to public records by file, and to annotations of a split."""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ross3d.data.names import check_name, is_inside
from ross3d.data.prepare import multi3drefer, scan2cap, scanqa, scanrefer, sqa3d
from ross3d.data.prepare.llava_style import Boxes, Conversion, Record, make_annotations
from ross3d.data.prepare.official import read_official_json
from ross3d.data.text_files import read_text


SPLITS = ("train", "val", "test")
SCENE_LIST = "scannetv2_{}.txt"


@dataclass(frozen=True)
class Benchmark:
    """The files of one benchmark and how to read them.

    Attributes:
        files: names of its files, with `{}` for the split.
        splits: those whose answers are public.
        check_files: refuses wrong content, and returns the rows.
        test_files: of a test split whose answers are not public.
        answer: the field that rows of such files then lack.
    """

    files: tuple[str, ...]
    splits: tuple[str, ...]
    check_files: Callable[..., Any]
    test_files: tuple[str, ...] = ()
    answer: str = ""


BENCHMARKS = {
    "scanqa": Benchmark(
        ("ScanQA_v1.0_{}.json",),
        ("train", "val"),
        scanqa.check,
        ("ScanQA_v1.0_test.json", "ScanQA_v1.0_test_w_obj.json", "ScanQA_v1.0_test_wo_obj.json"),
        "answers",
    ),
    "sqa3d": Benchmark(
        ("v1_balanced_questions_{}_scannetv2.json", "v1_balanced_sqa_annotations_{}_scannetv2.json"),
        SPLITS,
        sqa3d.check,
    ),
    "scanrefer": Benchmark(
        ("ScanRefer_filtered_{}.json",),
        ("train", "val"),
        scanrefer.check,
        ("ScanRefer_filtered_test.json",),
        "object_id",
    ),
    "multi3drefer": Benchmark(
        ("multi3drefer_{}.json",), ("train", "val"), multi3drefer.check, ("multi3drefer_test.json",), "object_ids"
    ),
}
# Reasons why a file below the folder is not read.
WITHOUT_ANSWERS = "test questions without answers cannot be scored"
OF_ALL_SPLITS = "has the rows of all splits; the file of each split is read instead"
ARCHIVE = "an archive; unpack it if its files are missing"
UNKNOWN = "not the name of an official file (docs/DATA.md lists them)"
ARCHIVES = {".zip", ".gz", ".tgz", ".tar", ".bz2", ".xz", ".7z", ".rar"}


@dataclass
class OfficialSet:
    """The content of a folder of official files.

    Attributes:
        files (`list[Path]`): files that were read. missing (`list[str]`): names that are absent.
        rows (`dict`): split -> benchmark -> checked rows (SQA3D: questions by id, and annotations).
        not_read (`dict`): reason -> files below the folder that were found and are not used.
        lists (`dict`): split -> scenes of its list. scenes: those that its list or any of its files name.
    """

    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    not_read: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[str, dict[str, Any]] = field(default_factory=lambda: defaultdict(dict))
    lists: dict[str, set[str]] = field(default_factory=dict)
    scenes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def list_with_objects(self) -> set[str]:
        """Scenes about whose objects any split asks."""
        rows = [
            row
            for split in self.rows.values()
            for name in ("scanrefer", "multi3drefer")
            for row in split.get(name, [])
        ]
        return {row["scene_id"] for row in rows}

    def list_scored_on_boxes(self) -> set[str]:
        """Scenes about whose detected boxes validation asks."""
        rows = self.rows["val"].get("scanrefer", []) + self.rows["val"].get("multi3drefer", [])
        return {row["scene_id"] for row in rows}


def find_file(folder: Path, name: str) -> Path | None:
    """The file of that name anywhere below a folder.

    Raises:
        ValueError: when there are two.
    """
    found = sorted(folder.rglob(name))
    if len(found) > 1:
        raise ValueError(f"--annotations: expected {name} once, got {found[0]} and {found[1]}; remove one.")
    return found[0] if found else None


def read_official(folder: Path, elsewhere: Collection[Path] = ()) -> OfficialSet:
    """Read and check every official file below a folder, and list those files there that are not read.

    Args:
        elsewhere: files and folders that other code reads, so that they are not listed as unread.

    Raises:
        FileNotFoundError: for a folder that does not exist or holds none of the files.
        ValueError: names the file and the faulty entry.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"--annotations: {folder} is not a folder; give the folder of the official files.")
    official = OfficialSet()
    for split in SPLITS:
        for name, benchmark in BENCHMARKS.items():
            if split in benchmark.splits:
                read_split(folder, official, name, split)
            elif split == "test":
                read_test_files(folder, official, name)
        scene_list = find_file(folder, SCENE_LIST.format(split))
        if scene_list is not None:
            official.files.append(scene_list)
            names = read_text(scene_list, "a list of scenes").split()
            official.lists[split] = {check_name(name, str(scene_list)) for name in names}
            official.scenes[split] |= official.lists[split]
    if not official.files:
        raise FileNotFoundError(
            f"--annotations: expected official files in {folder}, found none; docs/DATA.md lists their names."
        )
    list_unread(folder, official, elsewhere)
    return official


def read_split(folder: Path, official: OfficialSet, name: str, split: str) -> None:
    """Read a benchmark's files of a split whose answers are public; note absent ones."""
    benchmark = BENCHMARKS[name]
    names = [pattern.format(split) for pattern in benchmark.files]
    files = [find_file(folder, name) for name in names]
    official.missing += [missing for missing, file in zip(names, files, strict=True) if file is None]
    if None in files:
        if any(files):
            raise FileNotFoundError(
                f"--annotations: {name} needs both {names[0]} and {names[1]}, but one is missing; download it."
            )
        return
    official.files += files
    rows = benchmark.check_files(*map(read_official_json, files), files[0].name)
    official.rows[split][name] = rows
    of_scenes = rows[1] if name == "sqa3d" else rows
    official.scenes[split] |= {row["scene_id"] for row in of_scenes}


def read_test_files(folder: Path, official: OfficialSet, name: str) -> None:
    """Read a benchmark's test files, if they exist and contain answers."""
    benchmark = BENCHMARKS[name]
    for file in filter(None, (find_file(folder, name) for name in benchmark.test_files)):
        rows = read_official_json(file)
        if isinstance(rows, list) and not any(isinstance(row, dict) and row.get(benchmark.answer) for row in rows):
            official.not_read[WITHOUT_ANSWERS].append(file.relative_to(folder).as_posix())
            continue
        official.files.append(file)
        official.rows["test"].setdefault(name, []).extend(benchmark.check_files(rows, file.name))
        official.scenes["test"] |= {row["scene_id"] for row in rows}


def list_unread(folder: Path, official: OfficialSet, elsewhere: Collection[Path]) -> None:
    """Note every unread file below the folder, except hidden ones, with the reason."""
    known = {folder / name for names in official.not_read.values() for name in names} | set(official.files)
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if file in known or is_hidden or file.is_dir() or any(is_inside(file, path) for path in elsewhere):
            continue
        official.not_read[explain_unread(file)].append(name)


def explain_unread(file: Path) -> str:
    """Why a file that no benchmark knows by its name is not read."""
    if file.name in {"ScanRefer_filtered.json", "multi3drefer.json"}:
        return OF_ALL_SPLITS
    if file.suffix.lower() in ARCHIVES:
        return ARCHIVE
    patterns = [pattern for benchmark in BENCHMARKS.values() for pattern in benchmark.files]
    official_names = [pattern.format(split) for pattern in [*patterns, SCENE_LIST] for split in SPLITS]
    alike = [name for name in official_names if name.lower() == file.name.lower()]
    return f"its name is not exactly {alike[0]}; rename it" if alike else UNKNOWN


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
    files: dict[str, list[Record]],
    boxes: dict[str, Boxes],
    proposals: dict[str, list[list[float]]],
) -> Conversion:
    """Annotations of a split's public files, file after file; of captions, also the best proposal of an object.

    An object without a matching proposal stays, without coordinates.
    """
    rows = {scene_id: {number: row for row, number in enumerate(sorted(known))} for scene_id, known in boxes.items()}
    whole = Conversion()
    for name, records in files.items():
        conversion = make_annotations(records, name, rows)
        for annotation in conversion.annotations:
            if needs_proposals(name) and annotation.scene_id in proposals:
                scan2cap.add_best_proposal(annotation, proposals[annotation.scene_id])
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
