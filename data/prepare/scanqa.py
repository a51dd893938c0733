"""ScanQA: `ScanQA_v1.0_{train,val}.json` -> public records."""

from ross3d.data.prepare.llava_style import Record, make_record
from ross3d.data.prepare.official import Row, check_rows


FIELDS = {"question_id": str, "scene_id": str, "question": str, "answers": list}


def check(rows, where: str) -> list[Row]:
    check_rows(rows, where, FIELDS, lambda row: row["question_id"])
    for place, row in enumerate(rows):
        if not row["answers"]:
            raise ValueError(f"{where}, entry {place}: answers is empty; expected at least one answer.")
    return rows


def make_records(rows: list[Row], split: str) -> list[Record]:
    """Make records: for training one per answer, otherwise one per question with all its answers."""
    records = []
    for row in rows:
        answers = row["answers"] if split == "train" else row["answers"][:1]
        for number, answer in enumerate(answers):
            metadata = {"dataset": "scanQA", "question_type": "unknow"}
            if split != "train":
                metadata["answers"] = row["answers"]
            human = f"<image> {row['question']} Answer the question simply."
            name = f"scanqa_{row['question_id']}_{number}"
            records.append(make_record(name, row["scene_id"], human, answer, metadata=metadata))
    return records
