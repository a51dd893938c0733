"""Scan2Cap: captions of the objects that ScanRefer's rows describe -> public records."""

from ross3d.data.annotations import Annotation
from ross3d.data.prepare.boxes import match_proposal
from ross3d.data.prepare.llava_style import Boxes, Record, make_record
from ross3d.data.prepare.official import Row
from ross3d.data.prepare.scanrefer import get_box, get_eval_types


HUMAN = "<image> Given an object located at <coord> , describe the object in detail."
# IoU from which a proposal represents an object: the "@0.5" of published scores.
MIN_IOU = 0.5


def make_records(
    rows: list[Row],
    split: str,
    boxes: dict[str, Boxes],
    nyu40_ids: dict[str, int],
    proposals: dict[str, list[list[float]]],
) -> list[Record]:
    """Make records: for training one per description, otherwise one per object with all its descriptions.

    `box_input` is the object's box in training, otherwise the proposal that overlaps it most, or None where that is
    less than half. `id` is the place of the (first) description in the official file.
    """
    described: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        described.setdefault(_get_key(row), []).append(row["description"])
    records = []
    for place, (row, kind) in enumerate(zip(rows, get_eval_types(rows, nyu40_ids), strict=True)):
        texts = [row["description"]] if split == "train" else described.pop(_get_key(row), None)
        if texts is None:
            continue
        box = box_input = get_box(row, boxes)
        if split != "train" and box is not None:
            proposal, iou = match_proposal(box, proposals.get(row["scene_id"], []))
            box_input = proposal if iou >= MIN_IOU else None
        fields = {
            "box_input": box_input,
            "gt_box": box,
            "metadata": {
                "dataset": "scan2cap",
                "question_type": kind,
                "ann_id": row["ann_id"],
                "object_id": row["object_id"],
            },
        }
        if split != "train":
            fields["annotations"] = texts
        records.append(make_record(place, row["scene_id"], HUMAN, row["description"].capitalize(), **fields))
    return records


def _get_key(row: Row) -> tuple[str, str, str]:
    return row["scene_id"], row["object_id"], row["object_name"]


def add_best_proposal(annotation: Annotation, proposals: list[list[float]]) -> None:
    """Give a validation row the proposal that overlaps its object most, at any IoU, for other thresholds."""
    annotation.query_box, annotation.query_iou = match_proposal(annotation.target_boxes[0], proposals)
