"""Metrics against hand-worked cases, brute force, and recorded references where they are at hand."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from ross3d.metrics.bootstrap import compute_paired_interval
from ross3d.metrics.captioning import compute_bleu, compute_caption_scores, compute_cider, compute_rouge_l
from ross3d.metrics.grounding import (
    assign_rows,
    choose_proposal,
    compute_accuracy_at_iou,
    compute_f1,
    compute_iou,
    select_proposals,
)
from ross3d.metrics.qa import compute_exact_match, compute_relative_accuracy, parse_number


ROOT = Path(__file__).resolve().parents[1]
GOLDENS = Path(os.environ.get("ROSS3D_GOLDENS", ROOT.parent / "shared" / "goldens")) / "metrics"


def load_golden(name: str) -> dict:
    path = GOLDENS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no recorded reference {path.name}")
    return json.loads(path.read_text())


def test_exact_match_ignores_case_blanks_and_final_periods():
    matches = compute_exact_match(["Two  chairs. ", "red", ""], [["two chairs"], ["blue", "dark red"], ["no"]])
    assert matches.tolist() == [True, False, False]


def test_numbers_are_read_from_the_start_of_an_answer():
    assert parse_number("12.5 square metres") == 12.5
    assert parse_number("3.") == 3.0
    assert np.isnan(parse_number("about 3")) and np.isnan(parse_number(""))


def test_relative_accuracy_counts_thresholds():
    scores = compute_relative_accuracy([100, 90, 50, 49, np.nan, np.inf], [100] * 6)
    assert scores.tolist() == [1.0, 0.9, 0.1, 0.0, 0.0, 0.0]
    assert compute_relative_accuracy([0, 1], [0, 0]).tolist() == [1.0, 0.0]
    assert compute_relative_accuracy([-9], [-10]).tolist() == compute_relative_accuracy([9], [10]).tolist()


def test_relative_accuracy_refuses_targets_that_are_no_numbers():
    with pytest.raises(ValueError, match=r"targets: expected finite numbers .* 1 that are not finite"):
        compute_relative_accuracy([1.0, 2.0], [1.0, np.nan])


def test_captions_that_repeat_a_reference_score_full():
    texts = ["a red chair by the door", "a blue bed under the window", "one small green lamp on the floor"]
    scores = compute_caption_scores(texts, [[text] for text in texts])
    assert scores["CIDEr"] == pytest.approx(10) and scores["ROUGE-L"] == pytest.approx(1)
    assert all(scores[f"BLEU-{order}"] == pytest.approx(1, abs=1e-6) for order in (1, 2, 3, 4))


def test_bleu_clips_repetition_and_punishes_short_texts():
    assert compute_bleu(["the the the the"], [["the cat"]])[0] == pytest.approx(0.25, abs=1e-6)
    short = compute_bleu(["the cat"], [["the cat sat on"]])[0]
    assert short == pytest.approx(np.exp(1 - 4 / 2), abs=1e-6)


def test_cider_of_one_item_is_zero():
    assert compute_cider(["a chair"], [["a chair"]]).tolist() == [0.0]


def test_rouge_counts_empty_tokens_between_blanks():
    assert compute_rouge_l(["a  b"], [["a  b"]])[0] == pytest.approx(1)
    assert compute_rouge_l(["a b"], [["a  b"]])[0] < 1
    assert compute_rouge_l([""], [["a"]])[0] == 0


def test_caption_scores_refuse_bare_strings_and_missing_references():
    with pytest.raises(ValueError, match=r"references\[0\]: expected a list .* wrap a single reference"):
        compute_bleu(["a"], ["a"])
    with pytest.raises(ValueError, match=r"references: expected one list for each of 2 hypotheses, got 1"):
        compute_cider(["a", "b"], [["a"]])


def test_assignment_is_the_cheapest_of_all_permutations():
    rng = np.random.default_rng(0)
    for size in (1, 2, 3, 4, 5, 6):
        for _ in range(10):
            cost = rng.normal(size=(size, size)).round(1)  # rounding makes ties
            chosen = assign_rows(cost)
            assert sorted(chosen) == list(range(size))
            best = min(cost[range(size), list(order)].sum() for order in itertools.permutations(range(size)))
            assert cost[range(size), chosen].sum() == pytest.approx(best)


def test_f1_of_empty_and_partly_right_sets():
    box = np.array([[0, 0, 0, 1, 1, 1]])
    far = np.array([[5, 5, 5, 1, 1, 1]])
    none = np.zeros((0, 6))
    assert compute_f1(none, none, 0.5) == 1 and compute_f1(box, none, 0.5) == 0 and compute_f1(none, box, 0.5) == 0
    assert compute_f1(np.concatenate([box, far]), box, 0.5) == pytest.approx(2 / 3)
    assert compute_f1(np.concatenate([far, box]), np.concatenate([box, far]), 0.5) == 1


def test_proposals_are_chosen_with_and_without_no_target():
    scores = np.array([0.1, 0.6, 0.9])
    assert choose_proposal(scores) == 1 and choose_proposal(scores, allow_none=True) is None
    assert choose_proposal(np.array([0.4])) is None
    assert select_proposals(scores) == []
    assert select_proposals(np.array([0.9, 0.9, -np.inf, 0.1])) == [0]
    assert select_proposals(np.array([0.9, 0.9, 0.9, 0.1])) == [0, 1]


def test_accuracy_at_iou_counts_a_missing_box_as_wrong():
    target = np.array([0, 0, 0, 1, 1, 1.0])
    hits = compute_accuracy_at_iou([target, None, target + 4], [target] * 3, 0.5)
    assert hits.tolist() == [True, False, False]


def test_paired_interval_covers_the_difference_and_is_seeded():
    rng = np.random.default_rng(0)
    base = rng.normal(size=400) * 10
    better = base + 1 + rng.normal(size=400)
    interval = compute_paired_interval(better, base)
    assert 0.8 < interval.low < 1.0 < interval.high < 1.2 and interval.num_groups == 400
    assert interval == compute_paired_interval(better, base)
    assert interval != compute_paired_interval(better, base, seed=1)


def test_pairs_of_one_group_are_drawn_together():
    a = np.repeat(np.random.default_rng(0).normal(size=20), 10)
    alone = compute_paired_interval(a, np.zeros(200))
    grouped = compute_paired_interval(a, np.zeros(200), np.repeat(np.arange(20), 10))
    assert grouped.num_groups == 20 and (grouped.high - grouped.low) > 2 * (alone.high - alone.low)


def test_paired_interval_refuses_what_is_no_pair():
    with pytest.raises(ValueError, match="two lists of the same length > 0, got shapes"):
        compute_paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected finite scores"):
        compute_paired_interval([1.0, np.inf], [1.0, 2.0])


def test_recorded_scanqa_scores():
    golden = load_golden("scanqa")
    hypotheses = [item["pred"].rstrip(".") for item in golden["items"]]
    references = [item["answers"] for item in golden["items"]]
    scores = compute_caption_scores(hypotheses, references)
    for name, value in scores.items():
        assert value == pytest.approx(golden["expected_corpus_fraction"][name], abs=1e-5), name
    per_item = {"CIDEr": compute_cider(hypotheses, references), "ROUGE-L": compute_rouge_l(hypotheses, references)}
    for index, item in enumerate(golden["items"]):
        for name, values in per_item.items():
            assert values[index] == pytest.approx(item["expected"]["scores"][name], abs=1e-5), item["sample_id"]
        alone = compute_bleu(hypotheses[index : index + 1], references[index : index + 1])
        expected = [item["expected"]["scores"][f"BLEU-{order}"] for order in (1, 2, 3, 4)]
        assert alone == pytest.approx(expected, abs=1e-5), item["sample_id"]


def test_recorded_box_overlaps():
    for item in load_golden("box3d_iou")["items"]:
        iou = compute_iou(item["a"], item["b"])[0, 0]
        assert iou == pytest.approx(float(item["expected"]["iou_float64"]), abs=1e-12), item["name"]
        assert bool(iou >= 0.5) == item["expected"]["ge_0.5_f64"], item["name"]
        assert bool(iou >= 0.25) == item["expected"]["ge_0.25_f64"], item["name"]


def test_recorded_selection_and_f1():
    golden = load_golden("multi3drefer")
    for item in golden["items"]:
        chosen = select_proposals(np.array(item["scores"]), golden["threshold"])
        assert chosen == item["expected"]["selected_indices"]
        predicted = np.array(item["objects"], np.float64).reshape(-1, 6)[chosen]
        for threshold in ("0.25", "0.5"):
            score = compute_f1(predicted, np.array(item["gt_boxes"]).reshape(-1, 6), float(threshold))
            assert score == pytest.approx(item["expected"][f"f1_{threshold}"], abs=1e-5)


def test_recorded_relative_accuracies():
    golden = load_golden("vsibench")
    items = [item for item in golden["items"] if "MRA:.5:.95:.05" in item["expected"]]
    assert items
    for item in items:
        target = parse_number(item["ground_truth"])
        score = compute_relative_accuracy([parse_number(item["prediction"])], [target])[0]
        assert score == pytest.approx(item["expected"]["MRA:.5:.95:.05"]), item["prediction"]
