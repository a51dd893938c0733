"""Scores of short answers: exact match under several rules, letters of choices, and numbers.

Where our rule differs, the published one is provided too. Sources: ScanQA and SQA3D as LEO and Video-3D-LLM score
them, VSI-Bench and VSTI-Bench as their evaluations do, CV-Bench and BLINK as VG-LLM does.
"""

import re
from typing import Literal

import numpy as np

from ross3d.metrics.columns import check_columns, check_known


# Thresholds of relative accuracy: the score of a number is the share of thresholds it meets.
MRA_THRESHOLDS = np.linspace(0.5, 0.95, 10)
REFINED_RULES = ("substring", "whole_words")
ERROR_RULES = ("absolute", "signed")
LETTER_RULES = ("first_capital", "standalone")
SQA3D_QUESTION_TYPES = ("what", "is", "how", "can", "which", "others")

NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    " eighteen nineteen twenty"
).split()
# SQA3D's spelling corrections, each of a whole word, in their order.
SQA3D_WORDS = {
    "letf": "left",
    "let": "left",
    "tehre": "there",
    "rigth": "right",
    "rght": "right",
    "behine": "behind",
    "tv": "TV",
    "chai": "chair",
    "wasing": "washing",
    "waslked": "walked",
    "oclock": "o'clock",
    "o'[ ]+clock": "o'clock",
    "0": "zero",
    "none": "zero",
    **{str(number): word for number, word in enumerate(NUMBER_WORDS) if number},
    "23": "twenty-three",
}
# All steps of SQA3D's cleaning after lower-casing: pattern and replacement.
SQA3D_STEPS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[ ]+$", ""),
        (r"^[ ]+", ""),
        (r" {2,}", " "),
        (r"\.[ ]{2,}", ". "),
        (r"[^a-zA-Z0-9,'\s\-:]+", ""),
        *((rf"\b{word}\b", right) for word, right in SQA3D_WORDS.items()),
        (r"\b([a-zA-Z]+)[0-9]\b", r"\1"),
        *((rf"\b{article}\b ([a-zA-Z]+)", r"\1") for article in ("a", "an", "the")),
        (r"\bbackwards\b", "backward"),
    )
]

# A capital that is a word of its own; an A before a word in lower case may be an article.
STANDALONE_LETTER = re.compile(r"\b(?:A(?! [a-z])|[B-F])\b")


def normalize_answer(text: str) -> str:
    """Lower case, runs of blanks as one, no blanks or periods at the ends."""
    return re.sub(r"\s+", " ", text).strip(" .").lower()


def compute_exact_match(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """Which predictions equal one of their references after normalisation.

    Args:
        predictions (list of `str`): one an item.
        references (list of list of `str`): all accepted answers of each item.

    Returns:
        (number of items,) bool.
    """
    return np.array(
        [
            normalize_answer(prediction) in {normalize_answer(reference) for reference in accepted}
            for prediction, accepted in zip(predictions, references, strict=True)
        ],
        dtype=bool,
    )


def compute_verbatim_match(predictions: list[str], references: list[list[str]]) -> np.ndarray:
    """Which predictions equal one of their references letter by letter: the published ScanQA rule, (N,) bool.

    "brown." and "Brown" are not "brown".
    """
    return np.array([text in accepted for text, accepted in zip(predictions, references, strict=True)], dtype=bool)


def clean_sqa3d_answer(text: str) -> str:
    """An answer cleaned as in SQA3D: lower case, known misspellings corrected, numbers as words, no articles.

    Periods vanish before numbers are read, so "2.5" is "25"; 21 and 22 have no words (published).
    """
    text = text.lower()
    for pattern, replacement in SQA3D_STEPS:
        text = pattern.sub(replacement, text)
    return text


def contains_words(text: str, part: str) -> bool:
    """Whether `text` contains the words of `part` (at least one) in a row; punctuation at word ends is ignored."""
    words, wanted = ([word.strip(",:-'") for word in side.split()] for side in (text, part))
    spans = (words[start : start + len(wanted)] for start in range(len(words) - len(wanted) + 1))
    return bool(wanted) and any(span == wanted for span in spans)


def compute_refined_match(
    predictions: list[str],
    answers: list[str],
    rule: Literal["substring", "whole_words"] = "whole_words",
) -> np.ndarray:
    """Whether answers are equal or one contains the other: SQA3D's "EM-R", (N,) bool.

    Args:
        predictions, answers (list of `str`): cleaned.
        rule (`str`, defaults to `"whole_words"`):
            - `"substring"` (published): without blanks, one is a substring of the other. An empty prediction is right,
              "no" is in "north" and "one" in "phone".
            - `"whole_words"` (ours): one contains the words of the other in a row. An empty prediction is wrong.
    """
    check_columns(predictions=predictions, answers=answers)
    check_known("rule", [rule], REFINED_RULES)
    matches = []
    for prediction, answer in zip(predictions, answers, strict=True):
        if rule == "substring":
            short, long = "".join(prediction.split()), "".join(answer.split())
            matches.append(short in long or long in short)
        else:
            held = contains_words(answer, prediction) or contains_words(prediction, answer)
            matches.append(held or prediction == answer)
    return np.array(matches, dtype=bool)


def convert_number(word: str) -> float:
    """A word as a number; NaN when it is none."""
    try:
        return float(word)
    except ValueError:
        return float("nan")


def parse_number(text: str) -> float:
    """The number at the beginning of an answer ("12.5 square metres" -> 12.5); NaN when there is none."""
    words = text.split()
    return convert_number(words[0].rstrip(".")) if words else float("nan")


def parse_first_word(text: str) -> str:
    """The text before the first blank, without periods at its end: the published rule of VSI-Bench and VSTI-Bench.

    " B" is empty, "(B)" and "B:" keep their punctuation.
    """
    return text.split(" ")[0].rstrip(".").strip()


def extract_letter(text: str, rule: Literal["first_capital", "standalone"] = "standalone") -> str:
    """The letter A to F that an answer chooses; "" when there is none.

    Args:
        rule (`str`, defaults to `"standalone"`):
            - `"first_capital"` (published for CV-Bench and BLINK): the first capital A to F anywhere, so "Answer: B"
              is A and "Door" is D. The published rule deletes some phrases first; the only one of them with such a
              letter is "Best answer:Best option:", two entries of the list that were fused.
            - `"standalone"` (ours): the first of these capitals that is a word of its own; an A before a word in lower
              case, which may be an article, only where there is no other.
    """
    check_known("rule", [rule], LETTER_RULES)
    if rule == "first_capital":
        found = re.search(r"[A-F]", text.strip().replace("Best answer:Best option:", ""))
        return found.group() if found else ""
    found = STANDALONE_LETTER.search(text) or re.search(r"\bA\b", text)
    return found.group() if found else ""


def compute_relative_accuracy(
    predictions: np.ndarray,
    targets: np.ndarray,
    error: Literal["absolute", "signed"] = "absolute",
) -> np.ndarray:
    """Mean relative accuracy: the share of thresholds t in .5, .55, ... .95 with |p - target| / |target| <= 1 - t.

    Args:
        predictions (`np.ndarray` of shape `(number of items,)`): NaN and infinite values score 0.
        targets (`np.ndarray` of the same shape): finite.
        error (`str`, defaults to `"absolute"`):
            - `"absolute"` (ours): for a target of 0 only 0 is right.
            - `"signed"` (published): divided by the target itself, so any number is right for a negative target. For a
              target of 0 the published code fails on a number: the score is NaN, and the item is left out of means.

    Returns:
        (number of items,) in [0, 1], float64.
    """
    predictions, targets = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
    check_known("error", [error], ERROR_RULES)
    if predictions.shape != targets.shape or not np.isfinite(targets).all():
        raise ValueError(
            f"targets: expected finite numbers of the predictions' shape {predictions.shape}, got shape"
            f" {targets.shape} with {int((~np.isfinite(targets)).sum())} that are not finite; check the annotations."
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        if error == "signed":
            relative = np.abs(predictions - targets) / targets
        else:
            distance = np.abs(np.where(np.isfinite(predictions), predictions, np.inf) - targets)
            relative = np.where(targets == 0, np.where(distance == 0, 0.0, np.inf), distance / np.abs(targets))
    scores = (relative[:, None] <= 1 - MRA_THRESHOLDS).mean(axis=1)
    fails = (error == "signed") & (targets == 0) & ~np.isnan(predictions)
    return np.where(fails, np.nan, scores)


def find_best_constant(targets: np.ndarray) -> float:
    """The target that, given as the answer to all, has the highest mean relative accuracy; of equals the smallest."""
    values, counts = np.unique(np.asarray(targets, np.float64), return_counts=True)
    scores = [counts @ compute_relative_accuracy(np.full(len(values), value), values) for value in values]
    return float(values[int(np.argmax(scores))])


__all__ = [
    "MRA_THRESHOLDS",
    "SQA3D_QUESTION_TYPES",
    "clean_sqa3d_answer",
    "compute_exact_match",
    "compute_refined_match",
    "compute_relative_accuracy",
    "compute_verbatim_match",
    "convert_number",
    "extract_letter",
    "find_best_constant",
    "normalize_answer",
    "parse_first_word",
    "parse_number",
]
