"""SQA3D: a split's two files (questions, answers) -> public records."""

from typing import Any

from ross3d.data.prepare.llava_style import Record, make_record
from ross3d.data.prepare.official import Row, check_rows


QUESTION_FIELDS = {"question_id": (str, int), "situation": str, "alternative_situation": list, "question": str}
ANSWER_FIELDS = {"question_id": (str, int), "scene_id": str, "answers": list}
QUESTION_TYPES = ("what", "is", "how", "can", "which")


def check(questions: Any, annotations: Any, where: str) -> tuple[dict[str | int, Row], list[Row]]:
    """Questions by their id, and the annotations.

    Raises:
        ValueError: names the file and the place.
    """
    if not isinstance(questions, dict) or "questions" not in questions:
        raise ValueError(
            f"{where}: expected questions under the key 'questions'; this may be the file of annotations."
        )
    if not isinstance(annotations, dict) or "annotations" not in annotations:
        raise ValueError(f"{where}: expected answers under the key 'annotations'; this may be the file of questions.")
    rows = check_rows(questions["questions"], f"{where}, questions", QUESTION_FIELDS, lambda row: row["question_id"])
    answers = check_rows(
        annotations["annotations"], f"{where}, annotations", ANSWER_FIELDS, lambda row: row["question_id"]
    )
    asked = {row["question_id"]: row for row in rows}
    for place, row in enumerate(answers):
        at = f"{where}, annotations, entry {place}"
        if row["question_id"] not in asked:
            raise ValueError(
                f"{at}: expected the id of a question, got {row['question_id']!r}, which is not in the file of"
                " questions."
            )
        if len(row["answers"]) != 1:
            raise ValueError(f"{at}: expected exactly one answer, got {row['answers']!r}.")
        check_rows(row["answers"], at, {"answer": str})
    return asked, answers


def get_question_type(question: str) -> str:
    """The prefix of a question: what, is, how, can, which, or else "others". "Isn't" and "Island" count as "is"."""
    start = question.lstrip().lower()
    return next((kind for kind in QUESTION_TYPES if start.startswith(kind)), "others")


def make_records(questions: dict[str | int, Row], annotations: list[Row], split: str) -> list[Record]:
    """Make records in the order of the annotations; for training one per situation, its rewordings first."""
    records = []
    for row in annotations:
        asked = questions[row["question_id"]]
        metadata = {"dataset": "sqa3d", "question_type": get_question_type(asked["question"])}
        reworded = asked["alternative_situation"] if split == "train" else []
        for situation in [*reworded, asked["situation"]]:
            human = f"<image> {situation} {asked['question']} Answer the question using a single word or phrase."
            answer = row["answers"][0]["answer"]
            records.append(make_record(row["question_id"], row["scene_id"], human, answer, metadata=dict(metadata)))
    return records
