"""Scores of grounded axis-aligned boxes, and the rules that choose proposals."""

import itertools

import numpy as np
import pytest

from ross3d.metrics.grounding import (
    choose_proposal,
    compute_accuracy_at_iou,
    compute_f1,
    compute_iou,
    compute_paired_iou,
    drop_duplicates,
    get_f1,
    match_boxes,
    select_above_no_target,
    select_proposals,
)


UNIT = np.array([0, 0, 0, 1, 1, 1.0])
NONE = np.zeros((0, 6))


def make_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([rng.uniform(-0.5, 0.5, (count, 3)), rng.uniform(0.5, 1.5, (count, 3))], axis=1)


def test_overlaps_by_hand():
    others = np.array([[0.5, 0, 0, 1, 1, 1], [0, 0, 0, 2, 1, 1], [1, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    overlaps = compute_iou(UNIT[None], others, union_eps=0)
    assert overlaps.shape == (1, 4)
    assert overlaps[0] == pytest.approx([1 / 3, 0.5, 0, 0])


def test_the_published_epsilon_turns_an_exact_half_into_less():
    wide = np.array([0, 0, 0, 2, 1, 1.0])
    assert compute_iou(UNIT, wide, union_eps=0)[0, 0] == 0.5
    assert compute_iou(UNIT, wide)[0, 0] == 1 / (2 + 1e-8) < 0.5
    assert compute_accuracy_at_iou([UNIT], [wide], 0.5).tolist() == [False]
    assert compute_f1(UNIT[None], wide[None], 0.5) == 1


def test_boxes_without_volume_and_of_negative_size():
    flat = np.array([0, 0, 0, 1, 1, 0.0])
    assert compute_iou(flat, flat, union_eps=0)[0, 0] == 0 and compute_iou(flat, UNIT)[0, 0] == 0
    assert compute_iou(UNIT * [1, 1, 1, -1, 1, 1], UNIT, union_eps=0)[0, 0] == 1


def test_paired_overlaps_are_the_diagonal():
    rng = np.random.default_rng(0)
    a, b = make_boxes(rng, 7), make_boxes(rng, 7)
    paired = compute_paired_iou([None, *a], [UNIT, *b])
    assert paired[0] == 0 and paired[1:] == pytest.approx(np.diag(compute_iou(a, b)), abs=1e-15)


def test_accuracy_at_iou_counts_a_missing_box_as_wrong():
    hits = compute_accuracy_at_iou([UNIT, None, UNIT + 4], [UNIT[None]] * 3, 0.5)
    assert hits.tolist() == [True, False, False]
    assert compute_accuracy_at_iou([None], [UNIT], 0.0).tolist() == [False]


def test_boxes_are_matched_for_the_greatest_sum():
    rng = np.random.default_rng(0)
    for num_predicted, num_targets in ((1, 3), (3, 2), (4, 4), (2, 5)):
        a, b = make_boxes(rng, num_predicted), make_boxes(rng, num_targets)
        size = max(num_predicted, num_targets)
        table = np.zeros((size, size))
        table[:num_predicted, :num_targets] = compute_iou(a, b)
        best = max(table[range(size), list(order)].sum() for order in itertools.permutations(range(size)))
        assert match_boxes(a, b).sum() == pytest.approx(best, rel=1e-6)


def test_f1_of_empty_and_partly_right_sets():
    box, far = UNIT[None], UNIT[None] + [5, 5, 5, 0, 0, 0]
    assert compute_f1(NONE, NONE, 0.5) == 1 and compute_f1(box, NONE, 0.5) == 0 and compute_f1(NONE, box, 0.5) == 0
    assert compute_f1(np.concatenate([box, far]), box, 0.5) == pytest.approx(2 / 3)
    assert compute_f1(np.concatenate([far, box]), np.concatenate([box, far]), 0.5) == 1
    assert get_f1(np.array([0.5, 0.3, 0], np.float32), 2, 3, 0.25) == pytest.approx(2 * 2 / 5)
    assert get_f1(np.array([0.5, 0.3, 0], np.float32), 2, 3, 0.5) == pytest.approx(2 / 5)


def test_the_best_proposal_is_chosen_whatever_no_target_scores():
    assert choose_proposal(np.array([0.1, 0.6, 0.9])) == 1 and choose_proposal(np.array([0.9, 0.6, 0.1])) == 0
    assert choose_proposal(np.array([0.4])) is None


def test_proposals_are_selected_until_their_probabilities_suffice():
    assert select_proposals(np.array([0.1, 0.6, 0.9])) == []
    assert select_proposals(np.array([0.9, 0.9, -np.inf, 0.1])) == [0]
    assert select_proposals(np.array([0.9, 0.9, 0.9, 0.1])) == [0, 1]
    assert select_proposals(np.array([0.9, 0.1, 0.9])) == [0]
    # At temperature 0.07 these are proportional to 1, 2, 3 and 4, so the shares are a tenth to four tenths.
    scores = 0.07 * np.log([2.0, 4.0, 3.0, 1.0])
    assert select_proposals(scores, 0.39) == [1] and select_proposals(scores, 0.69) == [1, 2]
    assert select_proposals(scores, 0.95) == [1, 2, 0]


def test_proposals_above_no_target_come_best_first():
    assert select_above_no_target(np.array([0.2, 0.7, 0.5, 0.3])) == [1, 2]
    assert select_above_no_target(np.array([0.2])) == []


@pytest.mark.parametrize("flip", [False, True])
def test_duplicates_of_better_boxes_are_dropped(flip):
    """Boxes 0, 1 and 2 step along x by a quarter: neighbours have an IoU of 0.6, and 0 and 2 one of 0.33."""
    boxes = np.tile(UNIT, (4, 1)).astype(np.float64)
    boxes[:, 0] += np.array([0, 0.25, 0.5, 9]) * boxes[0, 3]
    boxes = boxes[::-1] if flip else boxes
    place = (lambda order: [3 - number for number in order]) if flip else list
    assert drop_duplicates(place([1, 0, 2, 3]), boxes) == place([1, 3])
    assert drop_duplicates(place([0, 1, 2, 3]), boxes) == place([0, 2, 3])
    assert drop_duplicates([], boxes) == [] == drop_duplicates([], np.zeros((0, 6)))


def test_scores_that_are_no_numbers_are_refused():
    for scores in ([0.1, np.nan, 0.3], [np.inf, 0.3], [], [[0.1, 0.2]]):
        for rule in (choose_proposal, select_proposals, select_above_no_target):
            with pytest.raises(ValueError, match="expected one score per proposal and a last one for no target"):
                rule(np.array(scores))


def test_boxes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"boxes_b: expected an array of shape \(N, 6\), metres, got shape \(2, 5\)"):
        compute_iou(UNIT, np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"boxes_a: expected finite boxes, got \[nan, .*\] in row 1; pass None"):
        compute_iou(np.stack([UNIT, UNIT * np.nan]), UNIT)
    with pytest.raises(ValueError, match=r"predicted: expected boxes of 6 numbers, got .* in row 1"):
        compute_paired_iou([UNIT, UNIT[:5]], [UNIT, UNIT])
    with pytest.raises(ValueError, match=r"targets: expected boxes of 6 numbers, got .*None.* in row 1"):
        compute_paired_iou([UNIT, UNIT], [UNIT, None])
    with pytest.raises(ValueError, match=r"targets: expected an array of shape \(N, 6\), metres, got shape \(1, 12\)"):
        compute_paired_iou([UNIT], [np.stack([UNIT, UNIT])])
    with pytest.raises(ValueError, match=r"got \{'predicted': 2, 'targets': 1\} entries; pass predictions and"):
        compute_paired_iou([UNIT, None], [UNIT])
