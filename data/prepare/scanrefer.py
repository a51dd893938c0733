"""ScanRefer: `ScanRefer_filtered_{train,val}.json` -> public records. Scan2Cap uses the same rows."""

from collections import Counter

from ross3d.data.prepare.llava_style import Boxes, Record, make_record
from ross3d.data.prepare.official import Row, check_rows
from ross3d.data.sources.scannet_objects import NYU40_CLASSES


FIELDS = {"scene_id": str, "object_id": str, "object_name": str, "ann_id": str, "description": str}
HUMAN = "<image>Identify the object according to the following description.\n{}"
# All names that are not in another class share this one.
OTHER = 39


def check(rows, where: str) -> list[Row]:
    check_rows(rows, where, FIELDS, lambda row: (row["scene_id"], row["object_id"], row["ann_id"]))
    for place, row in enumerate(rows):
        if not row["object_id"].isdigit():
            raise ValueError(f"{where}, entry {place}: object_id must be a whole number, got {row['object_id']!r}.")
    return rows


def get_eval_types(rows: list[Row], nyu40_ids: dict[str, int]) -> list[str]:
    """ "unique" for an object that is the only one of its class among those the file describes in its scene.

    Args:
        rows (list): one split's file, whole.
        nyu40_ids (`dict`): name of a category -> class, from ScanNet's table.
    """

    def get_class(row: Row) -> tuple[str, int]:
        number = nyu40_ids.get(row["object_name"].replace("_", " "), OTHER)
        return row["scene_id"], number if number in NYU40_CLASSES else OTHER

    objects = {(*get_class(row), row["object_id"]) for row in rows}
    counts = Counter((scene_id, number) for scene_id, number, _ in objects)
    return ["unique" if counts[get_class(row)] == 1 else "multiple" for row in rows]


def get_box(row: Row, boxes: dict[str, Boxes]) -> list[float] | None:
    """The box of a row's object; None where its scene has no points of it."""
    return boxes.get(row["scene_id"], {}).get(int(row["object_id"]))


def make_records(rows: list[Row], boxes: dict[str, Boxes], nyu40_ids: dict[str, int]) -> list[Record]:
    """One record a description; `id` is its place in the official file, `box` None where the scan lacks the object."""
    records = []
    for place, (row, kind) in enumerate(zip(rows, get_eval_types(rows, nyu40_ids), strict=True)):
        metadata = {
            "dataset": "scanrefer",
            "question_type": kind,
            "ann_id": row["ann_id"],
            "object_id": row["object_id"],
        }
        human = HUMAN.format(row["description"].capitalize())
        box = get_box(row, boxes)
        records.append(make_record(place, row["scene_id"], human, "<ground>", box=box, metadata=metadata))
    return records
