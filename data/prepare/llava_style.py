"""Convert public records ("LLaVA style"), which Video-3D-LLM and Ross3D train on, into annotations.

    {"id": ..., "video": "scannet/SCENE", "metadata": {"dataset": ..., "question_type": ..., ...}, ...,
     "conversations": [{"value": "<image> ...", "from": "human"}, {"value": ..., "from": "gpt"}]}

An `Annotation`'s question is the human value without `<image>`, with all blanks and line breaks, so that it is exactly
the published prompt.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from ross3d.data.annotations import Annotation, check_annotation
from ross3d.data.names import check_name


PREFIX = "scannet/"
GROUNDING = ("scanrefer", "multi3drefer")
# Situations share the id of their question; MMScan's counting questions come in two forms.
REPEATING = ("sqa3d", "mmscan_qa")
TASKS = ("scanqa", "sqa3d", "scan2cap", "mmscan_qa", *GROUNDING)
Record = dict[str, Any]
Boxes = dict[int, list[float]]


def make_record(record_id: str | int, scene_id: str, human: str, gpt: str, **fields: Any) -> Record:
    """A record with its keys in the published order; `fields` follow the conversation."""
    return {
        "id": record_id,
        "video": PREFIX + scene_id,
        "conversations": [{"value": human, "from": "human"}, {"value": gpt, "from": "gpt"}],
        **fields,
    }


@dataclass
class Conversion:
    """Annotations, and the records that were not converted: reason -> ids."""

    annotations: list[Annotation] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, name: str) -> None:
        self.left_out.setdefault(reason, []).append(name)


def make_annotations(records: list[Record], where: str, rows_of_objects: dict[str, dict[int, int]]) -> Conversion:
    """Annotations of public records, in their order.

    Args:
        records (list): public records of one file.
        where (`str`): the file, quoted in errors.
        rows_of_objects (`dict`): scene -> official object id -> row of the scene's boxes. Records about other scenes
            or objects are left out and reported.

    Raises:
        ValueError: for records of another form, and for ids that come twice.
    """
    conversion, repeats = Conversion(), Counter()
    for place, record in enumerate(records):
        at = f"{where}, record {place}"
        task = read_task(record, at)
        name = str(record["id"]) if str(record["id"]).startswith(f"{task}_") else f"{task}-{record['id']}"
        repeats[name] += 1
        if repeats[name] > 1 and (task not in REPEATING or "_train_" not in where):
            raise ValueError(f"{at}: expected unique ids, got {record['id']!r} again.")
        if repeats[name] > 1:
            name = f"{name}-{repeats[name] - 1}"
        annotation = read_record(record, task, name, at)
        rows = rows_of_objects.get(annotation.scene_id)
        if rows is None:
            conversion.leave_out(f"{task}: its scene is missing", name)
            continue
        if any(number not in rows for number in annotation.target_ids or []):
            conversion.leave_out(f"{task}: its object has no points in the scan, or the scan has no objects", name)
            continue
        if annotation.object_ids is not None:
            annotation.object_ids = [rows[number] for number in annotation.object_ids]
        conversion.annotations.append(check_annotation(annotation, at))
    return conversion


def read_task(record: Record, where: str) -> str:
    """Check the fields that all records have, and return the benchmark of a record."""
    try:
        human, gpt = record["conversations"]
        texts = {
            "video": record["video"],
            "metadata.dataset": record["metadata"]["dataset"],
            "metadata.question_type": record["metadata"]["question_type"],
            "the human turn's value": human["value"],
        }
        answer = gpt["value"]
        order = (human["from"], gpt["from"])
        record["id"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected id, video, two turns of conversations and metadata with dataset and question_type,"
            f" got {describe_fault(error)}."
        ) from error
    for name, text in texts.items():
        if not isinstance(text, str):
            meaning = f"a text such as {PREFIX}scene0000_00" if name == "video" else "a text"
            raise ValueError(f"{where}: {name}: expected {meaning}, got {str(text)[:80]}; correct the record.")
    # Published MMScan records have bare numbers for answers.
    if order != ("human", "gpt") or type(answer) not in (str, int):
        raise ValueError(
            f"{where}: expected one human turn and one gpt turn with text, got {record['conversations']!r}."
        )
    task = record["metadata"]["dataset"].lower()
    if task not in TASKS:
        raise ValueError(f"{where}: expected a dataset of {list(TASKS)}, got {record['metadata']['dataset']!r}.")
    return task


def describe_fault(error: Exception) -> str:
    """What a record lacks, or what is wrong with it, from the error of reading it."""
    return f"no {error}" if isinstance(error, KeyError) else f"another form ({error})"


def read_record(record: Record, task: str, name: str, where: str) -> Annotation:
    """Convert one record; `object_ids` are still the official ones."""
    metadata = record["metadata"]
    human, gpt = (turn["value"] for turn in record["conversations"])
    annotation = Annotation(
        id=name,
        scene_id=get_scene_id(record["video"], where),
        task=task,
        question_type=metadata["question_type"],
        question=human.replace("<image>", ""),
        answer=str(gpt),
        references=metadata.get("answers") or record.get("annotations") or [str(gpt)],
    )
    try:
        if task in GROUNDING:
            _read_targets(annotation, record)
        elif task == "scan2cap":
            _read_caption(annotation, record)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected the boxes and ids of a {task} record (docs/DATA.md), got {describe_fault(error)}."
        ) from error
    return annotation


def get_scene_id(video: str, where: str) -> str:
    """The scene of a record's or box file's `scannet/SCENE`.

    Raises:
        ValueError: for a name that could lead out of the folder of scenes.
    """
    return check_name(video.removeprefix(PREFIX), where)


def read_object_id(value: Any) -> int:
    """A whole number, which records may write as a text."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"the object id {value!r}, which is no whole number")
    return int(value)


def _read_targets(annotation: Annotation, record: Record) -> None:
    """`object_id` and `box` are one id and box (ScanRefer) or lists of them (Multi3DRefer)."""
    ids, boxes = record["metadata"]["object_id"], record["box"]
    one = not isinstance(ids, list)
    annotation.target_ids = [read_object_id(number) for number in ([ids] if one else ids)]
    annotation.object_ids = list(annotation.target_ids)
    annotation.target_boxes = [boxes] if one else list(boxes)
    if len(annotation.target_ids) != len(annotation.target_boxes):
        raise ValueError(f"{len(annotation.target_ids)} ids for {len(annotation.target_boxes)} boxes of objects")
    annotation.ann_id = str(record["metadata"]["ann_id"])
    annotation.references = []


def _read_caption(annotation: Annotation, record: Record) -> None:
    box = record["box_input"]
    annotation.target_ids = [read_object_id(record["metadata"]["object_id"])]
    annotation.target_boxes = [record["gt_box"]]
    annotation.ann_id = str(record["metadata"]["ann_id"])
    annotation.query_box = box
    annotation.query_coords = None if box is None else tuple(box[:3])


__all__ = ["Boxes", "Conversion", "Record", "get_scene_id", "make_annotations", "make_record"]
