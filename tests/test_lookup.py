"""Look-ups that see words alone find what words give away, and nothing where they give nothing away."""

import numpy as np
import pytest

from ross3d.data.annotations import Annotation
from ross3d.metrics.prompts import make_prompt
from ross3d.metrics.qa import find_best_constant
from ross3d.scenes.lookup import lookup_baseline, make_case, score_words_only
from ross3d.scenes.rooms import CATEGORIES, COLORS


def make_row(number: int, kind: str, question: str, answer: str, **values) -> Annotation:
    return Annotation(f"q{number}", "room", "rooms", kind, question, answer, **values)


def test_questions_are_reduced_to_words_and_what_could_be_right():
    prompt = make_prompt("Which of these (red chair, bed) is closest?", ["A. red chair", "B. bed"])
    case = make_case(make_row(0, "object_rel_distance", prompt, "A"))
    assert case.options == ("chair", "bed") and case.answer == "chair" and case.words[-2:] == ("is", "closest")
    case = make_case(make_row(0, "object_abs_distance", make_prompt("How far are the sofas?", None), "1.5"))
    assert case.options is None and case.answer == "1.5" and case.words == ("how", "far", "are", "the", "sofa")
    case = make_case(make_row(0, "grounding_none", "Find all beds.", "<ground>", object_ids=[]))
    assert case == ("grounding", ("find", "all", "bed"), None, "none")


@pytest.mark.parametrize("leaks", [False, True])
def test_a_word_that_gives_the_answer_away_is_found(leaks):
    rng = np.random.default_rng(0)
    names, given = list(CATEGORIES), {"red": "blue", "cyan": "blue", "pink": "green", "orange": "green"}

    def make_rows(count):
        rows = []
        for number in range(count):
            color, one = rng.choice(list(COLORS)), rng.choice(names)
            said = given.get(color) if leaks else None
            said = said or rng.choice(["blue", "green"])
            rows.append(make_row(number, "color", f"Is the {color} {one} blue or green?", str(said)))
        return rows

    row = score_words_only(make_rows(400), make_rows(400))["color"]
    assert row.chance == 0.5 and row.count == 400
    # Four of eight colours know the answer.
    low, high = (0.7, 0.85) if leaks else (0.4, 0.57)
    assert low < row.best < high and row.best == max(row.majority, row.lookup, row.model)


def test_two_words_that_give_it_away_together_are_found():
    """Neither does alone, so that only the model's pairs can know it."""
    rng = np.random.default_rng(1)

    def make_rows(count):
        rows = []
        for number in range(count):
            one, two = rng.choice(["bed", "sofa"]), rng.choice(["lamp", "desk"])
            answer = "taller" if (one == "bed") == (two == "lamp") else "shorter"
            filler = rng.choice(list(COLORS), 3)
            rows.append(make_row(number, "size_comparison", f"{' '.join(filler)} {one} {two}?", str(answer)))
        return rows

    assert score_words_only(make_rows(400), make_rows(200))["size_comparison"].model > 0.95


def test_a_choice_is_looked_up_by_its_content_not_by_its_letter():
    rng = np.random.default_rng(2)

    def make_rows(count):
        rows = []
        for number in range(count):
            letters = rng.permutation(4)
            options = [("left", "right", "front", "back")[place] for place in letters]
            question = make_prompt("Where is the sofa?", [f"{a}. {o}" for a, o in zip("ABCD", options, strict=True)])
            rows.append(make_row(number, "route_planning", question, "ABCD"[options.index("back")]))
        return rows

    row = score_words_only(make_rows(80), make_rows(60))["route_planning"]
    assert (row.chance, row.majority, row.lookup, row.model) == (0.25, 1.0, 1.0, 1.0)


def test_numbers_are_looked_up_by_the_constant_that_scores_best():
    rows = [make_row(i, "room_size", "How large?", str(size)) for i, size in enumerate((10.5, 12, 12, 40) * 5)]
    known = score_words_only(rows, rows)["room_size"]
    # 12 for all: right for half, 8 of 10 thresholds for 10.5, none for 40.
    assert known.chance is None and known.majority == pytest.approx(0.5 + 0.25 * 0.8)
    assert lookup_baseline(rows, rows) == {"room_size": pytest.approx(0.7)}
    assert find_best_constant([10, 12, 12, 40]) == 12 and find_best_constant([3.0]) == 3.0


def test_types_without_training_questions_and_captions_are_left_out():
    rows = [make_row(0, "color", "What color?", "red"), make_row(1, "caption", "Describe.", "a red sofa")]
    assert set(lookup_baseline(rows, rows)) == {"color"} == set(score_words_only(rows, rows))
    assert lookup_baseline([], rows) == {}
