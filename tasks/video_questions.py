"""What VSI-Bench and VSTI-Bench share: public rows, the words of the prompt, choices and numbers as answers.

A row: `id`, `question_type`, `question`, `options` (["A. left", ...] or nothing), the right letter or number, and the
name of its video. Videos lie beside the file of rows, in the folders of the public archives; a folder of a posed scan
with the name of a video takes its place, so that the same questions can be asked with depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation, read_parquet_rows
from ross3d.data.text_files import read_json_lines
from ross3d.metrics.benchmarks import get_task_counts, score_choices_and_numbers
from ross3d.metrics.prompts import make_prompt
from ross3d.tasks.answering import (
    answer_questions,
    get_columns,
    get_question,
    prepare_questions,
)
from ross3d.tasks.intervals import Summed
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task, limit_scenes


SCENE_PATH = "{scene_id}"
MAX_NEW_TOKENS = 16
FIELDS = ("id", "question_type", "question")


def find_rows(data_dir: Path, split: str) -> Path:
    """The one file of rows in a folder: `SPLIT.jsonl`, `SPLIT.parquet` or `SPLIT-00000-of-00001.parquet`.

    Raises:
        FileNotFoundError, ValueError: when there is none, or more than one.
    """
    names = [f"{split}.jsonl", f"{split}.parquet", f"{split}-*.parquet"]
    found = [file for name in names for file in sorted(data_dir.glob(name))]
    if not found:
        raise FileNotFoundError(
            f"--data {data_dir}: expected the benchmark's rows as one of {names}, got no such file; download the"
            " benchmark's repository there (docs/DATA.md)."
        )
    if len(found) > 1:
        raise ValueError(
            f"--data {data_dir}: expected one file of rows, got {[file.name for file in found]}; keep one of them."
        )
    return found[0]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of JSON lines or Parquet.

    Raises:
        ValueError: names the file and the line that cannot be read.
    """
    if file.suffix == ".parquet":
        return [row for _, row in read_parquet_rows(file, "a benchmark's rows")]
    return [row for _, row in read_json_lines(file, "a row of JSON", kind=dict)]


@dataclass(frozen=True)
class VideoBenchmark:
    """One benchmark of questions about videos.

    Attributes:
        name (`str`): of the task.
        choices, numbers: question types answered by a letter, and by a number.
        get_video: row -> the video's path in the data folder, without its suffix.
        choice_field (`str`): field of the right letter; that of a number is `ground_truth`.
        score: (predictions, references, question types) -> scores.
    """

    name: str
    choices: tuple[str, ...]
    numbers: tuple[str, ...]
    get_video: Callable[[dict[str, Any]], str]
    choice_field: str
    score: Callable[[list[str], list[str], list[str]], dict[str, Any]]

    def load_items(self, data_dir: Path, settings: EvalSettings) -> list[Annotation]:
        """Questions of the public rows.

        Raises:
            ValueError: for rows without a field, of another type, or with an id that came before.
        """
        file = find_rows(data_dir, settings.split)
        items: dict[str, Annotation] = {}
        for number, row in enumerate(read_rows(file), start=1):
            item = self.make_item(row, f"{file.name}, row {number}")
            if item.id in items:
                raise ValueError(f"{file.name}, row {number}: the id {item.id!r} came before; expected one row an id.")
            items[item.id] = item
        return limit_scenes(list(items.values()), settings.limit)

    def make_item(self, row: dict[str, Any], where: str) -> Annotation:
        known = (*self.choices, *self.numbers)
        is_choice = row.get("question_type") in self.choices
        answer_field = self.choice_field if is_choice else "ground_truth"
        missing = [name for name in (*FIELDS, answer_field) if row.get(name) in (None, "")]
        if missing or row["question_type"] not in known:
            raise ValueError(
                f"{where}: expected {[*FIELDS, answer_field]} with a question_type of {list(known)}, got"
                f" {missing or row['question_type']!r} {'missing' if missing else 'as its type'}; is it the file of"
                f" another benchmark than {self.name}?"
            )
        options = row.get("options")
        if is_choice and not options:
            raise ValueError(f"{where}: expected options for a {row['question_type']} question, got {options!r}.")
        try:
            video = self.get_video(row)
        except KeyError as error:
            raise ValueError(
                f"{where}: expected the field {error} that names the video, got {sorted(row)}."
            ) from error
        return Annotation(
            id=str(row["id"]),
            scene_id=video,
            task=self.name,
            question_type=row["question_type"],
            question=make_prompt(row["question"], options if is_choice else None),
            answer=str(row[answer_field]),
        )

    def answer(self, context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
        # The published rule reads the first word of the answer as it is, blanks in front included.
        answered = answer_questions(context, scenes, self.name, get_question, lambda _, response: response)
        return [[record | {"right": self.is_right(record)} for record in records] for records in answered]

    def compute_scores(self, records: list[Record]) -> np.ndarray:
        """Accuracy or mean relative accuracy of each question, (N,)."""
        return score_choices_and_numbers(*get_answers(records), self.choices, self.numbers)

    def is_right(self, record: Record) -> bool:
        """The right letter, or a number within a tenth."""
        return bool(self.compute_scores([record])[0] >= 0.9)

    def score_records(self, records: list[Record]) -> dict[str, Any]:
        return self.score(*get_answers(records))

    def get_sums(self, records: list[Record]) -> dict[str, Summed]:
        """The unweighted mean of the tasks, by our rule for numbers."""
        return {"overall": Summed(*get_task_counts(self.compute_scores(records), get_answers(records)[2]))}

    def get_values(self, records: list[Record]) -> dict[str, np.ndarray]:
        """The score of each question, for all and under its type's name."""
        scores, types = self.compute_scores(records), get_columns(records, "question_type")[0]
        by_type = {name: np.array([kind == name for kind in types]) for name in dict.fromkeys(types)}
        return {"mean": scores} | {name: np.where(chosen, scores, np.nan) for name, chosen in by_type.items()}

    def make_task(self) -> Task:
        return Task(
            self.name,
            "predictions.jsonl",
            self.load_items,
            prepare_questions,
            self.answer,
            self.score_records,
            self.get_values,
            self.get_sums,
            scene_path=SCENE_PATH,
            split="test",
            max_new_tokens=MAX_NEW_TOKENS,
        )


def get_answers(records: list[Record]) -> tuple[list[str], list[str], list[str]]:
    """Predictions, right answers and question types."""
    predictions, references, types = get_columns(records, "prediction", "references", "question_type")
    return predictions, [texts[0] for texts in references], types


__all__ = ["VideoBenchmark", "find_rows", "read_rows"]
