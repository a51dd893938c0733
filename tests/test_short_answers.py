"""Scores of short answers: matches, cleaning, letters and numbers."""

import numpy as np
import pytest

from ross3d.data.prepare.sqa3d import get_question_type
from ross3d.metrics.qa import (
    clean_sqa3d_answer,
    compute_exact_match,
    compute_refined_match,
    compute_relative_accuracy,
    compute_verbatim_match,
    convert_number,
    extract_letter,
    normalize_answer,
    parse_first_word,
    parse_number,
)


def test_exact_match_ignores_case_blanks_and_final_periods():
    matches = compute_exact_match(["Two  chairs. ", "red", ""], [["two chairs"], ["blue", "dark red"], ["no"]])
    assert matches.tolist() == [True, False, False]
    assert normalize_answer(" A\nTV.. ") == "a tv"


def test_verbatim_match_is_letter_by_letter():
    predictions = ["brown", "brown.", "Brown", "", "tan"]
    references = [["red", "brown"], ["brown"], ["brown"], ["brown"], ["a tan"]]
    assert compute_verbatim_match(predictions, references).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  The 2 Chairs. ", "two chairs"),
        ("Mat2 near a TV", "mat near TV"),
        ("none", "zero"),
        ("0", "zero"),
        ("2.5", "25"),
        ("21", "21"),
        ("23", "twenty-three"),
        ("10 oclock", "ten o'clock"),
        ("o'  clock", "o'clock"),
        ("let  rigth", "left right"),
        ("go backwards!", "go backward"),
        ("an apple", "apple"),
        ("a 4", "four"),
        ("", ""),
        ("one.  two", "one two"),
    ],
)
def test_answers_are_cleaned_as_sqa3d_does(text, cleaned):
    assert clean_sqa3d_answer(text) == cleaned


def test_question_types_are_what_questions_begin_with():
    questions = ["  What is it?", "Isn't it?", "Island?", "How many?", "Candle?", "Which one?", "Am I?", ""]
    types = ["what", "is", "is", "how", "can", "which", "others", "others"]
    assert [get_question_type(question) for question in questions] == types


def test_refined_match_under_both_rules():
    pairs = [
        ("left", "left"),
        ("to the left", "left"),
        ("no", "north"),
        ("", "bed"),
        ("", ""),
        ("two beds", "bedstwo"),
    ]
    predictions, answers = zip(*pairs, strict=True)
    published = compute_refined_match(predictions, answers, rule="substring")
    assert published.tolist() == [True, True, True, True, True, False]
    assert compute_refined_match(predictions, answers).tolist() == [True, True, False, False, True, False]
    assert compute_refined_match(["the left, behind"], ["left"]).tolist() == [True]
    with pytest.raises(ValueError, match=r"rule: expected values from .*, got \['words'\]"):
        compute_refined_match(["a"], ["a"], rule="words")


def test_numbers_are_read_from_the_start_of_an_answer():
    assert parse_number("12.5 square metres") == 12.5
    assert parse_number("3.") == 3.0
    assert np.isnan(parse_number("about 3")) and np.isnan(parse_number(""))
    assert convert_number("-2e3") == -2000 and np.isnan(convert_number("two"))


def test_first_words_as_published():
    answers = {"B. the door": "B", " B": "", "(B)": "(B)", "B:": "B:", "3.5.": "3.5", "B\nbecause": "B\nbecause"}
    assert {answer: parse_first_word(answer) for answer in answers} == answers


def test_letters_under_both_rules():
    answers = {
        "B": ("B", "B"),
        "Answer: B": ("A", "B"),
        "Door": ("D", ""),
        "A chair, so C": ("A", "C"),
        "(A) a chair": ("A", "A"),
        "A chair": ("A", "A"),
        "G": ("", ""),
        "": ("", ""),
        "Best answer:Best option: C": ("C", "C"),
    }
    for answer, (published, ours) in answers.items():
        assert extract_letter(answer, "first_capital") == published, answer
        assert extract_letter(answer) == ours, answer


def test_relative_accuracy_counts_thresholds():
    scores = compute_relative_accuracy([100, 90, 50, 49, np.nan, np.inf], [100] * 6)
    assert scores.tolist() == [1.0, 0.9, 0.1, 0.0, 0.0, 0.0]
    assert compute_relative_accuracy([0, 1], [0, 0]).tolist() == [1.0, 0.0]
    assert compute_relative_accuracy([-9], [-10]).tolist() == compute_relative_accuracy([9], [10]).tolist()


def test_relative_accuracy_as_published_below_and_at_zero():
    scores = compute_relative_accuracy([5, -10, 3, np.nan, 90], [-10, -10, 0, 0, 100], error="signed")
    assert scores[[0, 1, 3, 4]].tolist() == [1.0, 1.0, 0.0, 0.9] and np.isnan(scores[2])


def test_relative_accuracy_refuses_targets_that_are_no_numbers():
    with pytest.raises(ValueError, match=r"targets: expected finite numbers .* 1 that are not finite"):
        compute_relative_accuracy([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match=r"the predictions' shape \(2,\), got shape \(3,\)"):
        compute_relative_accuracy([1.0, 2.0], [1.0, 2.0, 3.0])
