"""Intervals by resampling: what they cover, what they draw together, and tables of seeds."""

import numpy as np
import pytest

from ross3d.metrics.benchmarks import get_task_counts, score_tasks
from ross3d.metrics.bootstrap import (
    compute_mean_interval,
    compute_paired_interval,
    compute_score_interval,
    summarize_seeds,
)
from ross3d.metrics.captioning import compute_bleu, compute_bleu_of_counts, get_bleu_counts


def make_grouped_scores(rng: np.random.Generator, num_scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of mean 0 with a part that the questions of a scene share, 1 to 6 questions a scene; their scenes."""
    scenes = np.repeat(np.arange(num_scenes), rng.integers(1, 7, num_scenes))
    return rng.normal(size=num_scenes)[scenes] + 0.5 * rng.normal(size=len(scenes)), scenes


def test_intervals_cover_the_truth_as_often_as_they_say():
    """Of 400 draws of 50 scenes; resampling questions as if they were independent covers far less."""
    rng = np.random.default_rng(0)
    covered = {"scenes": 0, "questions": 0}
    for _ in range(400):
        scores, scenes = make_grouped_scores(rng, 50)
        for name, groups in (("scenes", scenes), ("questions", None)):
            interval = compute_mean_interval(scores, groups, num_samples=400)
            covered[name] += interval.low <= 0 <= interval.high
    assert 0.91 * 400 <= covered["scenes"] <= 0.98 * 400 and covered["questions"] < 0.82 * 400


def test_an_interval_has_the_width_that_theory_gives():
    scores = np.random.default_rng(0).normal(size=900)
    interval = compute_mean_interval(scores)
    assert interval.mean == pytest.approx(scores.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * scores.std() / 30, rel=0.03)
    narrow = compute_mean_interval(scores, confidence=0.5)
    assert interval.low < narrow.low < interval.mean < narrow.high < interval.high


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
    grouped = compute_paired_interval(a, np.zeros(200), np.repeat([f"scene {i:02}" for i in range(20)], 10))
    assert grouped.num_groups == 20 and (grouped.high - grouped.low) > 2 * (alone.high - alone.low)
    # As wide as that of the scenes' means, since all questions of a scene are the same here.
    means = compute_paired_interval(a[::10], np.zeros(20))
    assert (grouped.low, grouped.high) == pytest.approx((means.low, means.high))


def test_one_group_says_nothing_about_others():
    interval = compute_mean_interval(np.arange(5.0), ["scene"] * 5)
    assert interval.low == interval.high == 2.0 and (interval.num_pairs, interval.num_groups) == (5, 1)


def test_sums_are_resampled_as_the_texts_would_be():
    """BLEU of resampled counts is BLEU of the resampled corpus, and the interval lies among such scores."""
    rng = np.random.default_rng(0)
    hypotheses = [" ".join("abc"[i] for i in rng.integers(0, 3, 6)) for _ in range(30)]
    references = [[" ".join("abc"[i] for i in rng.integers(0, 3, 5))] for _ in range(30)]
    counts = get_bleu_counts(hypotheses, references)
    scenes = np.repeat(np.arange(10), 3)
    interval = compute_score_interval(counts, lambda sums: compute_bleu_of_counts(sums)[:, 3], scenes)
    assert interval.mean == pytest.approx(compute_bleu(hypotheses, references)[3])
    scores = []
    for _ in range(400):
        items = [3 * scene + place for scene in rng.integers(10, size=10) for place in range(3)]
        scores.append(compute_bleu([hypotheses[i] for i in items], [references[i] for i in items])[3])
    assert (interval.low, interval.high) == pytest.approx(np.quantile(scores, (0.025, 0.975)), abs=0.03)


def test_means_of_tasks_are_resampled_with_their_tasks():
    types = (
        ["route_planning"] * 3 + ["object_rel_direction_easy", "object_rel_direction_hard"] + ["object_counting"] * 2
    )
    scores = np.array([1, 0, 0.5, 1, 0, 0.25, np.nan])
    counts, compute_overall = get_task_counts(scores, types)
    assert counts.shape == (7, 8)
    rows = {"all": [0, 1, 2, 3, 4, 5, 6], "no direction": [0, 5], "one level": [1, 3], "none": [6]}
    for name, items in rows.items():
        expected = score_tasks(scores[items], [types[item] for item in items]).get("overall", np.nan)
        assert compute_overall(counts[items].sum(axis=0, keepdims=True)) == pytest.approx(expected, nan_ok=True), name
    assert compute_overall(np.stack([counts[:3].sum(axis=0), counts[3:].sum(axis=0)])) == pytest.approx([0.5, 0.375])


def test_intervals_refuse_what_is_no_pair():
    with pytest.raises(ValueError, match="two lists of the same length > 0, got shapes"):
        compute_paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"expected finite numbers, one row per item .* 1 NaN or infinite"):
        compute_paired_interval([1.0, np.inf], [1.0, 2.0])
    with pytest.raises(ValueError, match="expected finite numbers, one row per item and at least one item"):
        compute_mean_interval([])
    with pytest.raises(ValueError, match=r"scores: expected one score per item, got shape \(2, 2\)"):
        compute_mean_interval(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"groups: expected one label for each of 3 scores, got shape \(2,\)"):
        compute_mean_interval([1.0, 2.0, 3.0], ["a", "b"])


def test_seeds_are_summarised():
    runs = [{"accuracy": value, "num_items": 12} for value in (0.5, 0.7, 0.9)]
    summaries = summarize_seeds(runs)
    assert summaries["accuracy"].mean == pytest.approx(0.7) and summaries["accuracy"].std == pytest.approx(0.2)
    assert summaries["accuracy"].num_runs == 3 and summaries["num_items"].std == 0
    assert summarize_seeds(runs[:1])["accuracy"].std is None
    with pytest.raises(ValueError, match="runs: expected the scores of at least one run, got none"):
        summarize_seeds([])
    with pytest.raises(ValueError, match=r"runs\[1\]: expected the named scores of the first run, got"):
        summarize_seeds([runs[0], {"accuracy": 0.5}])
