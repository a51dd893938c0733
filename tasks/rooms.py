"""The benchmark of our own synthetic rooms (`scenes/`): short answers, a number, captions, grounded boxes.

Rooms that were built with spatial questions have those types of VSI-Bench too, parsed and scored as there.
`macro_exact_match` is the mean over a fixed list of question types, so that leaving a type out cannot improve it: with
a type missing it is None; so is `overall` of `spatial`, the mean over VSI-Bench's eight tasks.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import (
    VSIBENCH_CHOICES,
    VSIBENCH_NUMBERS,
    get_task_counts,
    score_choices_and_numbers,
    score_tasks,
)
from ross3d.metrics.captioning import compute_caption_scores
from ross3d.metrics.grounding import compute_accuracy_at_iou, compute_f1
from ross3d.metrics.qa import compute_exact_match, compute_relative_accuracy, find_best_constant, parse_number
from ross3d.tasks.answering import (
    answer_questions,
    check_detected,
    get_columns,
    get_question,
    load_questions,
    make_record,
    prepare_questions_about_boxes,
)
from ross3d.tasks.intervals import Summed, average, make_mean
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Record, Task


NAME = "rooms"
EXACT_MATCH_TYPES = ("existence", "color", "count", "size_comparison", "object_at", "direction", "nearest")
NUMBER_TYPES = ("room_size",)
CAPTION_TYPES = ("caption",)
GROUNDING_TYPES = ("grounding_unique", "grounding_multiple", "grounding_none")
SPATIAL_TYPES = VSIBENCH_NUMBERS + VSIBENCH_CHOICES
QUESTION_TYPES = EXACT_MATCH_TYPES + NUMBER_TYPES + CAPTION_TYPES + GROUNDING_TYPES + SPATIAL_TYPES
IOU_THRESHOLDS = (0.25, 0.5)
# The main score of a type, which tables show first.
MAIN_SCORES = (
    dict.fromkeys(EXACT_MATCH_TYPES, "exact_match")
    | {"room_size": "relative_accuracy", "caption": "attribute_accuracy"}
    | {"grounding_unique": "accuracy@0.5", "grounding_multiple": "f1@0.5", "grounding_none": "accuracy"}
    | dict.fromkeys(VSIBENCH_NUMBERS, "relative_accuracy")
    | dict.fromkeys(VSIBENCH_CHOICES, "accuracy")
)
# Words of a caption that say nothing about the object.
FUNCTION_WORDS = frozenset("a an the is are it this that there in on at of by with and to near next from".split())


def load_items(data_dir: Path, settings: EvalSettings) -> list[Annotation]:
    """Questions of a split.

    Raises:
        ValueError: with `--proposals given`, if scenes have no given boxes.
    """
    items = load_questions(data_dir, settings, NAME, QUESTION_TYPES)
    check_detected(data_dir, items, settings)
    return items


def parse_answer(annotation: Annotation, response: str) -> str:
    """The first line of the response; a number without the words after it. Of spatial questions the whole response."""
    if annotation.question_type in SPATIAL_TYPES:
        return response
    lines = response.strip().splitlines()
    answer = lines[0].strip() if lines else ""
    if annotation.question_type in NUMBER_TYPES:
        return str(parse_number(answer)) if np.isfinite(parse_number(answer)) else ""
    return answer


def answer(context: EvalContext, scenes: list[OpenScene]) -> list[list[Record]]:
    records = answer_questions(context, scenes, NAME, get_question, parse_answer)
    return [[add_answer(record) for record in of_scene] for of_scene in records]


def add_answer(record: Record) -> Record:
    """The record with `right` and, for grounding, `answer_boxes`: the boxes that count as the answer."""
    if record["question_type"] in GROUNDING_TYPES:
        one = record["question_type"] != "grounding_multiple"
        best = [] if record["no_target_wins"] or record["best_box"] is None else [record["best_box"]]
        record = record | {"answer_boxes": best if one else record["predicted_boxes"]}
    return record | {"right": is_right(record)}


def get_attributes(caption: str) -> set[str]:
    """Content words of a caption: no articles, prepositions or punctuation."""
    words = caption.lower().replace(",", " ").replace(".", " ").split()
    return set(words) - FUNCTION_WORDS


def compute_attribute_accuracy(prediction: str, reference: str) -> float:
    """Share of the reference's content words that a caption contains."""
    wanted = get_attributes(reference)
    return len(wanted & get_attributes(prediction)) / max(len(wanted), 1)


def compute_text_values(question_type: str, records: list[Record]) -> dict[str, np.ndarray]:
    predictions, references = get_columns(records, "prediction", "references")
    if question_type in SPATIAL_TYPES:
        right, types = [texts[0] for texts in references], [question_type] * len(records)
        scores = score_choices_and_numbers(predictions, right, types, VSIBENCH_CHOICES, VSIBENCH_NUMBERS)
        return {MAIN_SCORES[question_type]: scores}
    if question_type in NUMBER_TYPES:
        numbers, targets = map(parse_number, predictions), [parse_number(texts[0]) for texts in references]
        return {"relative_accuracy": compute_relative_accuracy(list(numbers), targets)}
    exact = {"exact_match": compute_exact_match(predictions, references).astype(np.float64)}
    if question_type in CAPTION_TYPES:
        pairs = zip(predictions, references, strict=True)
        attributes = [compute_attribute_accuracy(prediction, texts[0]) for prediction, texts in pairs]
        return {"attribute_accuracy": np.array(attributes)} | exact
    return exact


def compute_grounding_values(question_type: str, records: list[Record]) -> dict[str, np.ndarray]:
    """Unique: the best box, and "no target" is a miss. Several: F1 of the selected boxes. None: "no target" wins.

    `best_box` ignores "no target"; `f1_above_no_target` takes every box above it, instead of the published rule.
    """
    targets = [np.array(record["target_boxes"]).reshape(-1, 6) for record in records]
    if question_type == "grounding_none":
        return {"accuracy": np.array([record["no_target_wins"] for record in records], np.float64)}
    if question_type == "grounding_unique":
        best = [None if record["best_box"] is None else np.array(record["best_box"]) for record in records]
        strict = [None if r["no_target_wins"] else box for r, box in zip(records, best, strict=True)]
        columns = (("accuracy", strict), ("best_box", best))
        return {
            f"{name}@{t}": compute_accuracy_at_iou(boxes, targets, t).astype(np.float64)
            for name, boxes in columns
            for t in IOU_THRESHOLDS
        }
    values = {}
    for prefix, field in (("f1", "predicted_boxes"), ("f1_above_no_target", "boxes_above_no_target")):
        pairs = [(np.array(r[field]).reshape(-1, 6), boxes) for r, boxes in zip(records, targets, strict=True)]
        values |= {f"{prefix}@{t}": np.array([compute_f1(*pair, t) for pair in pairs]) for t in IOU_THRESHOLDS}
    return values


def compute_type_values(question_type: str, records: list[Record]) -> dict[str, np.ndarray]:
    """The scores of each question of one type, (N,) float64, by name; a score of the type is their mean."""
    compute = compute_grounding_values if question_type in GROUNDING_TYPES else compute_text_values
    return compute(question_type, records)


def get_values(records: list[Record]) -> dict[str, np.ndarray]:
    """The main score of each question, under the name of its type."""
    values = {}
    for name in QUESTION_TYPES:
        places = [place for place, record in enumerate(records) if record["question_type"] == name]
        if places:
            values[name] = np.full(len(records), np.nan)
            values[name][places] = compute_type_values(name, [records[place] for place in places])[MAIN_SCORES[name]]
    return values


def get_sums(records: list[Record]) -> dict[str, Summed]:
    """The means over exact-match types and over VSI-Bench's tasks, each if all its types are there."""
    values = get_values(records)
    sums = {}
    if all(name in values for name in EXACT_MATCH_TYPES):
        parts = [make_mean(values[name]) for name in EXACT_MATCH_TYPES]
        sums["macro_exact_match"] = average(parts)
    if not all(name in values for name in SPATIAL_TYPES):
        return sums
    # Each question has a score under one of these names.
    stacked = np.stack([values[name] for name in SPATIAL_TYPES])
    scores = np.where(np.isnan(stacked), 0.0, stacked).sum(axis=0)
    scores[np.isnan(stacked).all(axis=0)] = np.nan
    types = get_columns(records, "question_type")[0]
    return sums | {"spatial: overall": Summed(*get_task_counts(scores, types))}


def is_right(record: Record) -> bool:
    """Whether a report calls a record right: exact match, number within a tenth, all attributes, boxes at IoU 0.5."""
    question_type = record["question_type"]
    value = compute_type_values(question_type, [record])[MAIN_SCORES[question_type]][0]
    return bool(value >= 0.9 if question_type in NUMBER_TYPES + VSIBENCH_NUMBERS else value == 1.0)


def score_type(question_type: str, records: list[Record]) -> dict[str, float]:
    """Means over the questions of one type, and of captions the scores of all together."""
    scores = {name: float(values.mean()) for name, values in compute_type_values(question_type, records).items()}
    if question_type not in CAPTION_TYPES:
        return scores
    predictions, references = get_columns(records, "prediction", "references")
    return scores | compute_caption_scores(predictions, references)


def score(records: list[Record]) -> dict[str, Any]:
    """Scores of each question type with the number of questions, and the macro mean of exact matches."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record["question_type"]].append(record)
    types = {}
    for question_type in QUESTION_TYPES:
        group = groups.get(question_type, [])
        if group:
            main = {"num_questions": len(group), "main_score": MAIN_SCORES[question_type]}
            types[question_type] = main | score_type(question_type, group)
    missing = [name for name in EXACT_MATCH_TYPES if name not in types]
    macro = None if missing else float(np.mean([types[name]["exact_match"] for name in EXACT_MATCH_TYPES]))
    scores = {"num_questions": len(records), "macro_exact_match": macro, "macro_missing_types": missing}
    spatial = {name: types[name] for name in SPATIAL_TYPES if name in types}
    return scores | ({"spatial": score_spatial(spatial)} if spatial else {}) | {"types": types}


def score_spatial(types: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """VSI-Bench's mean over its eight tasks, the levels of direction being one; None with a type missing."""
    means = np.array([row[row["main_score"]] for row in types.values()])
    overall = score_tasks(means, list(types))["overall"] if len(types) == len(SPATIAL_TYPES) else None
    return {"num_questions": sum(row["num_questions"] for row in types.values()), "overall": overall}


def find_majority_answers(annotations: list[Annotation]) -> dict[str, str]:
    """The most frequent training answer of each question type; for numbers, the constant that scores best."""
    answers: dict[str, list[str]] = defaultdict(list)
    for annotation in annotations:
        answers[annotation.question_type].append(annotation.answer)
    majority = {}
    for question_type, texts in answers.items():
        if question_type in NUMBER_TYPES + VSIBENCH_NUMBERS:
            majority[question_type] = str(find_best_constant([parse_number(text) for text in texts]))
        else:
            majority[question_type] = min(Counter(texts).items(), key=lambda item: (-item[1], item[0]))[0]
    return majority


def score_baseline(annotations: list[Annotation], get_answer: Callable[[Annotation], str]) -> dict[str, Any]:
    """Scores of answers that need no model; questions about boxes are left out."""
    spoken = [annotation for annotation in annotations if annotation.object_ids is None]
    records = []
    for annotation in spoken:
        text = get_answer(annotation)
        records.append(make_record(NAME, annotation, response=text, prediction=parse_answer(annotation, text)))
    return score(records)


def score_majority(train: list[Annotation], annotations: list[Annotation]) -> dict[str, Any]:
    """Scores of always giving the most frequent training answer of a question's type."""
    majority = find_majority_answers(train)
    return score_baseline(annotations, lambda annotation: majority.get(annotation.question_type, ""))


def describe_lookup(accuracies: dict[str, float]) -> dict[str, Any]:
    """Scores of a look-up on the question's words, in the form of `score`; of types that words can answer."""
    answered = EXACT_MATCH_TYPES + NUMBER_TYPES + SPATIAL_TYPES
    known = [name for name in answered if name in accuracies]
    types = {name: {"main_score": MAIN_SCORES[name], MAIN_SCORES[name]: accuracies[name]} for name in known}
    complete = all(name in types for name in EXACT_MATCH_TYPES)
    macro = float(np.mean([accuracies[name] for name in EXACT_MATCH_TYPES])) if complete else None
    return {"macro_exact_match": macro, "types": types}


TASK = Task(
    NAME,
    "predictions.jsonl",
    load_items,
    prepare_questions_about_boxes,
    answer,
    score,
    get_values,
    get_sums,
    proposals="depth",
)

__all__ = [
    "EXACT_MATCH_TYPES",
    "MAIN_SCORES",
    "QUESTION_TYPES",
    "TASK",
    "describe_lookup",
    "is_right",
    "score_baseline",
    "score_majority",
]
