"""Questions dealt to rows, rows dealt to steps: nothing is lost, budgets hold, seeds decide."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ross3d.data.annotations import Annotation
from ross3d.data.arguments import DataArguments
from ross3d.data.dataset import SceneRows
from ross3d.data.prepared import SceneReader
from ross3d.data.rows import STEPS_AT_ONCE, PlannedRow, count_rows, cut_questions, deal_questions, order_rows
from ross3d.tools.make_tiny import make_tiny_processor


@pytest.mark.parametrize(
    ("lengths", "per_row", "budget", "rows"),
    [
        ([], 3, None, 1),
        ([5], 3, None, 1),
        ([5] * 7, 3, None, 3),
        ([5] * 7, 8, 12, 3),
        ([50], 8, 12, 1),
        ([1] * 4, 4, 4, 1),
    ],
)  # fmt: skip
def test_rows_that_questions_need(lengths, per_row, budget, rows):
    assert count_rows(lengths, per_row, budget) == rows


@pytest.mark.parametrize("seed", range(5))
def test_dealing_keeps_every_question_and_balances_tokens(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, 23).tolist()
    rows = deal_questions(lengths, 4, 7, rng)
    assert Counter(place for row in rows for place in row) == Counter(range(23))
    assert max(map(len, rows)) <= 7
    tokens = [sum(lengths[place] for place in row) for row in rows]
    assert max(tokens) - min(tokens) <= max(lengths)


def test_cutting_to_a_budget_leaves_at_least_one():
    assert cut_questions([2, 0, 1], [5, 100, 7], 12) == [2, 0]
    assert cut_questions([1, 0], [5, 100, 7], 12) == [1]


@pytest.mark.parametrize("one_task", [False, True])
def test_steps_hold_rows_of_similar_length_and_nothing_is_left_out(one_task):
    rng = np.random.default_rng(0)
    rows = [PlannedRow(i, 0, (), int(rng.integers(10, 1000)), bool(rng.random() < 0.3)) for i in range(203)]
    ordered = order_rows(rows, 4, one_task, np.random.default_rng(1))
    assert Counter(row.scene for row in ordered) == Counter(range(203))
    kinds = [{row.grounds for row in ordered[i : i + 4]} for i in range(0, 203, 4)]
    mixed = [step for step, kind in enumerate(kinds) if len(kind) > 1]
    assert mixed and (not one_task or min(mixed) >= len(kinds) - 2)
    spread = np.mean([np.ptp([row.num_tokens for row in ordered[i : i + 4]]) for i in range(0, 200, 4)])
    drawn = np.mean([np.ptp([row.num_tokens for row in rows[i : i + 4]]) for i in range(0, 200, 4)])
    assert spread < drawn / 3 and len(rows) > STEPS_AT_ONCE


@pytest.mark.parametrize("num_scenes", [61, 64])
def test_steps_go_on_over_the_ends_of_epochs(num_scenes):
    """Rows of an epoch that do not fill its last step are completed by the next; tasks still do not mix."""
    names = [f"s{i}" for i in range(num_scenes)]
    annotations = {
        name: [Annotation(f"{name}-{i}", name, "rooms", "kind", "why?", "so", object_ids=[0] if i else None)
               for i in range(2)]
        for name in names
    }  # fmt: skip

    class Tokens:
        tokenizer = make_tiny_processor().tokenizer

    data = DataArguments(epochs=4, visit="questions", one_task_per_step=True)
    scenes = [Path(name) for name in names]
    reader = SceneReader(lambda path: None)
    rows = SceneRows(data, scenes, annotations, Tokens(), reader, None, seed=0, rows_per_step=8)
    planned = [row for epoch in range(4) for row in rows.plan_epoch(epoch)]
    steps = [planned[i : i + 8] for i in range(0, len(planned), 8)]
    mixed = [step for step in steps if len({row.grounds for row in step}) > 1]
    assert len(planned) == 8 * num_scenes and len(mixed) <= 8


def make_rows(unlabelled=(), rows_per_step=1, **changes) -> SceneRows:
    """Four scenes with 0, 1, 9 and 20 questions, a third of them answered by boxes."""
    annotations = {
        f"scene{scene}": [
            Annotation(f"{scene}-{i}", f"scene{scene}", "rooms", "kind", "what is there? " * (1 + i % 5), "a bed",
                       object_ids=[0] if i % 3 == 0 else None)
            for i in range(count)
        ]
        for scene, count in enumerate((0, 1, 9, 20))
    }  # fmt: skip

    class ListedRows(SceneRows):
        def get_inputs(self, scene, fitted, path, questions, row_seed):
            return {"ids": [(path.name, [q.id for q in questions], [q.object_ids is not None for q in questions])]}

    class Listing:
        tokenizer = make_tiny_processor().tokenizer

        def __call__(self, return_tensors, **inputs):
            return inputs

    data = DataArguments(
        **{"epochs": 2, "questions_per_row": 4, "visit": "questions"} | changes,
        unlabelled_root="scans" if unlabelled else None,
    )
    scenes, more = [Path(name) for name in annotations], {"unlabelled": unlabelled, "rows_per_step": rows_per_step}
    return ListedRows(data, scenes, annotations, Listing(), SceneReader(lambda path: None), None, seed=5, **more)


@pytest.mark.parametrize("budget", [None, 30])
def test_an_epoch_visits_every_question_once(budget):
    """Scenes without questions come once; rows and seeds differ between epochs, and a second reader gets the same."""
    rows, again = make_rows(tokens_per_row=budget), make_rows(tokens_per_row=budget)
    assert len(rows) == 2 * rows.rows_per_epoch
    seen = []
    for epoch in range(2):
        met = [rows[epoch * rows.rows_per_epoch + place] for place in range(rows.rows_per_epoch)]
        ids = [name for row in met for name in row["ids"][1]]
        assert Counter(ids) == Counter(q.id for questions in rows.annotations.values() for q in questions)
        assert sum(row["ids"][0] == "scene0" for row in met) == 1
        assert max(len(row["ids"][1]) for row in met) <= 4
        assert len({int(row["row_seed"]) for row in met}) == len(met)
        if budget is not None:
            longest = max(length for scene in rows.annotations for length in rows.get_lengths(scene))
            tokens = [row.num_tokens for row in rows.plan_epoch(epoch)]
            assert max(tokens) <= budget + longest
        seen.append([row["ids"] for row in met])
    assert seen[0] != seen[1]
    place = rows.rows_per_epoch + 2
    assert again[place]["ids"] == rows[place]["ids"] and again[place]["row_seed"] == rows[place]["row_seed"]


def test_the_published_recipe_has_one_question_a_row_and_one_task_a_step():
    rows = make_rows(questions_per_row=1, rows_per_step=4, one_task_per_step=True)
    met = [rows[place]["ids"] for place in range(rows.rows_per_epoch)]
    assert rows.rows_per_epoch == 31 and all(len(ids) <= 1 for _, ids, _ in met)
    kinds = [{any(grounds) for _, _, grounds in met[i : i + 4]} for i in range(0, 31, 4)]
    assert all(len(kind) == 1 for kind in kinds[:-2])


@pytest.mark.parametrize("per_row", [1, 4])
def test_half_of_the_questions_lose_their_text(per_row):
    """The paper's half: the same questions in every pass, no row less, and both kinds in the steps."""
    rows, whole = make_rows(questions_per_row=per_row, labelled_share=0.5), make_rows(questions_per_row=per_row)
    asked = []
    for epoch in range(2):
        met = [rows[epoch * rows.rows_per_epoch + place] for place in range(rows.rows_per_epoch)]
        asked.append(sorted(name for row in met for name in row["ids"][1]))
        assert len({int(row["row_seed"]) for row in met}) == len(met)
    assert asked[0] == asked[1] and len(set(asked[0])) == len(asked[0]) == 15
    assert rows.rows_per_epoch >= whole.rows_per_epoch
    if per_row == 1:
        assert rows.rows_per_epoch == whole.rows_per_epoch == 31
        assert sum(not row["ids"][1] for row in met) == 16  # fifteen questions and the scene that never had one
    planned = rows.plan_epoch(0)
    silent = [row.num_tokens for row in planned if not row.questions and row.scene]
    assert min(silent) > 0 and not any(row.grounds for row in planned if not row.questions)


def test_half_of_the_scenes_lose_their_text():
    rows = make_rows(visit="scenes", labelled_share=0.5)
    met = [rows[place]["ids"] for place in range(len(rows))]
    silent = [{name for name, ids, _ in met[epoch * 4 : epoch * 4 + 4] if not ids} for epoch in range(2)]
    assert silent[0] == silent[1] and rows.labelled_scenes.sum() == 2
    assert {f"scene{i}" for i in np.flatnonzero(~rows.labelled_scenes)} <= silent[0]


@pytest.mark.parametrize("visit", ["scenes", "questions"])
def test_scans_without_questions_take_their_share_in_turns(visit):
    """All questions are kept, each scan comes before any comes again, over the ends of epochs too."""
    scans = [Path(f"scan{i}") for i in range(5)]
    rows = make_rows(visit=visit, questions_per_row=20, unlabelled=scans, unlabelled_share=0.4, epochs=4)
    plain = make_rows(visit=visit, questions_per_row=20)
    assert rows.rows_per_epoch == plain.rows_per_epoch + round(plain.rows_per_epoch * 0.4 / 0.6)
    met = [[rows[e * rows.rows_per_epoch + i] for i in range(rows.rows_per_epoch)] for e in range(4)]
    came = Counter(row["ids"][0] for epoch in met for row in epoch if row["ids"][0].startswith("scan"))
    assert came.keys() == {path.name for path in scans} and max(came.values()) - min(came.values()) <= 1
    for epoch in met:
        assert len({int(row["row_seed"]) for row in epoch}) == len(epoch)
        assert not any(row["ids"][1] for row in epoch if row["ids"][0].startswith("scan"))
        if visit == "questions":
            ids = Counter(name for row in epoch for name in row["ids"][1])
            assert ids == Counter(q.id for questions in rows.annotations.values() for q in questions)


def test_one_scan_can_come_several_times_in_an_epoch():
    rows = make_rows(unlabelled=[Path("scan")], unlabelled_share=0.5)
    met = [rows[place] for place in range(rows.rows_per_epoch)]
    again = [int(row["row_seed"]) for row in met if row["ids"][0] == "scan"]
    assert len(again) == len(set(again)) == rows.rows_per_epoch // 2


def test_a_token_budget_also_cuts_drawn_questions():
    rows = make_rows(visit="scenes", questions_per_row=20, tokens_per_row=30)
    for place in range(len(rows)):
        name, ids, _ = rows[place]["ids"]
        lengths = dict(zip([q.id for q in rows.annotations[name]], rows.get_lengths(name), strict=True))
        assert sum(lengths[i] for i in ids) <= 30 or len(ids) == 1
        assert bool(ids) == bool(rows.annotations[name])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"visit": "both"}, "data.visit: expected one of"),
        ({"proposals": "simulated"}, r"data.proposals: expected one of \('given', .*'mixed'\), got 'simulated'"),
        ({"proposals": "predicted"}, r"data.proposals: expected one of \('given', .*'mixed'\), got 'predicted'"),
        (
            {"one_task_per_step": True},
            "data.one_task_per_step: expected visit: questions, got visit: scenes; change one",
        ),
        ({"questions_per_row": 0}, "data.questions_per_row: expected a whole number of at least 1, got 0"),
        ({"tokens_per_row": -1}, "data.tokens_per_row: expected a whole number of at least 1, got -1"),
        ({"labelled_share": 0.0}, "data.labelled_share: expected a fraction above 0 and at most 1, got 0.0"),
        (
            {"unlabelled_share": 0.5},
            "data.unlabelled_share: expected a fraction above 0 and below 1 .* got 0.5 with None",
        ),
        ({"unlabelled_root": "x"}, "data.unlabelled_share: expected a fraction above 0 and below 1 .* got 0.0 with x"),
    ],
)
def test_settings_that_plan_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**settings)
    assert DataArguments(visit="questions", one_task_per_step=True).questions_per_row == 1
