"""Shared code of VSI-Bench and VSTI-Bench: public rows, prompts, and choices and numbers as answers.

A row: `id`, `question_type`, `question`, `options` (["A. left", ...] or nothing), the right letter or number, and the
name of its video. Videos are next to the file of rows, in the folders of the public archives; a folder of a posed scan
with the name of a video replaces it, so that the same questions can be asked with depth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation, check_annotation, read_parquet_rows
from ross3d.data.text_files import read_json_lines
from ross3d.metrics.benchmarks import get_task_counts, score_choices_and_numbers
from ross3d.metrics.prompts import make_prompt
from ross3d.metrics.qa import convert_number
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
            f"--data {data_dir}: expected the benchmark's rows in one of {names}, got no such file; download the"
            " benchmark's repository there (docs/DATA.md)."
        )
    if len(found) > 1:
        raise ValueError(
            f"--data {data_dir}: expected one file of rows, got {[file.name for file in found]}; remove all but one."
        )
    return found[0]


def read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Number (from 1; for JSON lines the line number) and values of the rows of JSON lines or Parquet.

    Raises:
        ValueError: names the file and the line that cannot be read, or the file without a row.
    """
    is_parquet = file.suffix == ".parquet"
    rows = list(
        read_parquet_rows(file, "a benchmark's rows")
        if is_parquet
        else read_json_lines(file, "a row of JSON", kind=dict)
    )
    if not rows:
        raise ValueError(f"{file}: expected a benchmark's rows, got none; download the file again.")
    return rows


def check_row(row: dict[str, Any], answer: str, options: list[str] | None, where: str) -> None:
    """Refuse an empty question, and a right answer that no model answer could match.

    Args:
        answer (`str`): the right letter or number.
        options: the choices; None for a number.

    Raises:
        ValueError: with `where` in front.
    """
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: expected text as the question, got {question!r}; correct it.")
    if options is None:
        if not np.isfinite(convert_number(answer)):
            raise ValueError(f"{where}: expected a number as the right answer, got {answer!r}; correct it.")
        return
    if not isinstance(options, list) or not all(isinstance(text, str) and text.strip() for text in options):
        raise ValueError(f"{where}: expected options as a list of non-blank strings, got {options!r}; correct it.")
    letters = list(ascii_uppercase[: len(options)])
    if answer.upper() not in letters:
        raise ValueError(
            f"{where}: expected the letter of one of the {len(options)} options, {letters}, as the right answer, got"
            f" {answer!r}; correct it."
        )


@dataclass(frozen=True)
class VideoBenchmark:
    """One benchmark of questions about videos.

    Attributes:
        name (`str`): name of the task.
        choices, numbers: question types answered by a letter, and by a number.
        get_video: row -> the video's path in the data folder, without its suffix.
        choice_field (`str`): field with the right letter; right numbers are in `ground_truth`.
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
            ValueError: names file and row, for a row that lacks a field, has wrong types, cannot be asked or
                answered, or repeats an id.
        """
        file = find_rows(data_dir, settings.split)
        items: dict[str, Annotation] = {}
        for number, row in read_rows(file):
            where = f"{file.name}, row {number}"
            item = check_annotation(self.make_item(row, where), where, settings.allow_outside)
            if item.id in items:
                raise ValueError(f"{file.name}, row {number}: expected unique ids, got {item.id!r} again.")
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
                f" {missing or row['question_type']!r} {'missing' if missing else 'as its type'}; check that it is a"
                f" file of {self.name}."
            )
        options, answer = row.get("options") if is_choice else None, str(row[answer_field])
        if is_choice and not options:
            raise ValueError(f"{where}: expected options for a {row['question_type']} question, got {options!r}.")
        check_row(row, answer, options, where)
        try:
            video = self.get_video(row)
        except KeyError as error:
            raise ValueError(
                f"{where}: expected the field {error} with the name of the video, got {sorted(row)}."
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: expected the name of a video, got {error}; correct it.") from error
        return Annotation(
            id=str(row["id"]),
            scene_id=video,
            task=self.name,
            question_type=row["question_type"],
            question=make_prompt(row["question"], options),
            answer=answer,
        )

    def answer(self, context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
        # The published rule parses the first word of the unchanged answer, including leading blanks.
        answered = answer_questions(context, scenes, self.name, get_question, lambda _, response: response)
        return [[record | {"right": self.is_right(record)} for record in records] for records in answered]

    def compute_scores(self, records: list[Record]) -> np.ndarray:
        """Accuracy or mean relative accuracy of each question, (N,)."""
        return score_choices_and_numbers(*get_answers(records), self.choices, self.numbers)

    def is_right(self, record: Record) -> bool:
        """Whether the answer is the right letter, or a number within 10 % of the right one."""
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
