"""Multi3DRefer: `multi3drefer_{train,val}.json` -> public records."""

from ross3d.data.prepare.llava_style import Boxes, Record, make_record
from ross3d.data.prepare.official import Row, check_rows


FIELDS = {"scene_id": str, "object_ids": list, "ann_id": int, "description": str, "eval_type": str}
# Zero, one, several targets; with and without other objects of the class.
EVAL_TYPES = ("zt_wo_d", "zt_w_d", "st_wo_d", "st_w_d", "mt")
HUMAN = (
    "<image>Identify the object according to the following description.\n{}\n"
    "There may be no corresponding object, or there may be one or more objects."
)


def check(rows, where: str) -> list[Row]:
    check_rows(rows, where, FIELDS)
    for place, row in enumerate(rows):
        if not all(type(number) is int and number >= 0 for number in row["object_ids"]):
            raise ValueError(f"{where}, entry {place}: object_ids must be whole numbers, got {row['object_ids']!r}.")
        if row["eval_type"] not in EVAL_TYPES:
            raise ValueError(
                f"{where}, entry {place}: eval_type must be of {list(EVAL_TYPES)}, got {row['eval_type']!r}."
            )
    return rows


def make_records(rows: list[Row], boxes: dict[str, Boxes]) -> list[Record]:
    """One record a description; a box is None where the scan lacks the object."""
    records = []
    for place, row in enumerate(rows):
        metadata = {
            "dataset": "multi3drefer",
            "question_type": row["eval_type"],
            "ann_id": row["ann_id"],
            "object_id": row["object_ids"],
        }
        targets = [boxes.get(row["scene_id"], {}).get(number) for number in row["object_ids"]]
        human = HUMAN.format(row["description"].capitalize())
        records.append(make_record(place, row["scene_id"], human, "<ground>", box=targets, metadata=metadata))
    return records
