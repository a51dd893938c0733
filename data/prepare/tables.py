"""The table of scans, and the card with which `datasets.load_dataset(FOLDER)` reads a prepared folder.

load_dataset(FOLDER)              the questions, one a row
load_dataset(FOLDER, "scans")     the scenes: cameras, boxes, and the names of their files
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ross3d.data.atomic import replace_file, write_text
from ross3d.data.sources import list_folders
from ross3d.data.text_files import read_json


def _matrix(rows: int, columns: int) -> pa.DataType:
    return pa.list_(pa.list_(pa.float64(), columns), rows)


_BOX = pa.list_(pa.float64(), 6)
SCHEMA = pa.schema(
    [
        ("scene_id", pa.string()),
        ("source", pa.string()),
        ("folder", pa.string()),  # of the files, relative to the data set
        ("num_frames", pa.int64()),  # of the recording
        ("color_files", pa.list_(pa.string())),
        ("depth_files", pa.list_(pa.string())),
        ("intrinsics", _matrix(3, 3)),  # pixels of the depth map
        ("cam2world", pa.list_(_matrix(4, 4))),  # to the aligned world, metres
        ("boxes", pa.list_(_BOX)),  # null: no objects are annotated
        ("object_ids", pa.list_(pa.int64())),
        ("categories", pa.list_(pa.string())),
        ("proposal_boxes", pa.list_(_BOX)),  # null: none were given
        ("bev_file", pa.string()),
        ("bev_bounds", pa.list_(pa.float64(), 4)),
    ]
)

CARD = """---
license: other
pretty_name: Scans with questions, prepared for ross3d
configs:
{configs}
---

# Scans with questions, prepared for ross3d

Made with `python -m ross3d.data.prepare`; `account.json` lists the sources, and what was left out and why.

```python
from datasets import load_dataset

questions = load_dataset("path/of/this/folder")
scans = load_dataset("path/of/this/folder", "scans")
```

Scenes are in `SPLIT/SCENE_ID/`; file names of the table of scans are relative to this folder. Lengths are metres, the
world has z up. Images, meshes and annotations stay under the terms of their publishers.
"""


def read_scan_row(folder: Path, facts: dict[str, Any], split: str) -> dict[str, Any]:
    """A row of the table, from a scene's files."""
    place = f"{split}/{folder.name}"
    names = sorted(file.name.removesuffix(".color.jpg") for file in folder.glob("*.color.jpg"))
    align = np.loadtxt(folder / "axis_align.txt")
    cameras = [(align @ np.loadtxt(folder / f"{name}.pose.txt")).tolist() for name in names]
    boxes, proposals = (
        read_json(file, "boxes", kind=list) if file.is_file() else None
        for file in (folder / "boxes.json", folder / "proposals.json")
    )
    return {
        "scene_id": folder.name,
        "source": facts["source"],
        "folder": place,
        "num_frames": facts["num_frames"],
        "color_files": [f"{place}/{name}.color.jpg" for name in names],
        "depth_files": [f"{place}/{name}.depth.png" for name in names],
        "intrinsics": np.loadtxt(folder / "camera-intrinsics.txt").tolist(),
        "cam2world": cameras,
        "boxes": None if boxes is None else [row["box"] for row in boxes],
        "object_ids": None if boxes is None else [row["object_id"] for row in boxes],
        "categories": None if boxes is None else [row.get("category") for row in boxes],
        "proposal_boxes": proposals,
        "bev_file": f"{place}/bev.png",
        "bev_bounds": read_json(folder / "bev.json", "bounds of the bird's-eye picture", keys=("bounds",))["bounds"],
    }


def write_scans_table(folders: list[Path], facts: list[dict[str, Any]], split: str, file: Path) -> int:
    """Write the scenes of a split; the number of their views."""
    rows = [read_scan_row(folder, known, split) for folder, known in zip(folders, facts, strict=True)]
    with replace_file(file) as partial:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), partial)
    return sum(len(row["color_files"]) for row in rows)


def refresh_scans_tables(data_dir: Path) -> None:
    """Write the tables of scans of a prepared folder again, after something was added to its scenes."""
    for file in sorted((data_dir / "scans").glob("*.parquet")):
        folders = [path for path in list_folders(data_dir / file.stem) if (path / "scene.json").is_file()]
        facts = [
            read_json(folder / "scene.json", "the record of how the scene was made", kind=dict) for folder in folders
        ]
        write_scans_table(folders, facts, file.stem, file)


def write_card(output: Path, splits: list[str]) -> None:
    """Write `README.md`, whose head tells `datasets` where each split's questions and scans are."""
    lines = []
    for name, folder in (("annotations", "annotations"), ("scans", "scans")):
        lines += [f"- config_name: {name}", *(["  default: true"] if name == "annotations" else []), "  data_files:"]
        for split in splits:
            lines += [f"  - split: {split}", f"    path: {folder}/{split}.parquet"]
    write_text(output / "README.md", CARD.format(configs="\n".join(lines)))
