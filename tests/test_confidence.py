"""How sure an answer is: token probabilities, maps to confidence, and the calibration file."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from ross3d.metrics.calibration import (
    ConfidenceMap,
    compute_calibration_error,
    compute_ranking,
    compute_share_interval,
    fit_confidence,
    get_log_odds,
    make_reliability_table,
)
from ross3d.metrics.grounding import compute_margin
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tasks.confidence import (
    add_confidence,
    fit_confidences,
    get_box_confidence,
    get_text_confidence,
    is_for_fitting,
    read_calibration,
)
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint
from ross3d.tools.push import is_ours
from ross3d.training.calibration import get_weights_mark, load_calibration, save_calibration
from ross3d.training.checkpoint import CHECKPOINT_FILES


QUESTIONS = ["How many chairs are there?", "What is on the table?", "Why?"]
LENGTH = 5
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def processor():
    return Ross3DProcessor.from_pretrained(get_checkpoint())


@pytest.fixture(scope="module")
def model():
    return Ross3DForConditionalGeneration.from_pretrained(get_checkpoint()).eval()


def answer(model, inputs, **settings):
    length = {"max_new_tokens": LENGTH, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(**inputs, **(length | settings))


@pytest.mark.parametrize("sizes", [(3, 2), (1, 4)], ids=["3 and 2 views", "1 and 4 views"])
def test_token_probabilities_are_the_same_alone_in_batches_and_about_cached_scenes(model, processor, sizes):
    """The same as the library computes from all scores; padding and other rows change nothing."""
    views = [make_views(num_views=count, seed=count) for count in sizes]
    one_by_one = []
    for view in views:
        for question in QUESTIONS:
            inputs = processor(**view, text=question)
            outputs = answer(model, inputs, output_scores=True)
            each = model.compute_transition_scores(outputs.sequences, outputs.scores, normalize_logits=True)
            ends = (outputs.sequences[0, -each.shape[1] :] == model.generation_config.eos_token_id).nonzero()
            kept = each[0, : int(ends[0]) + 1 if len(ends) else None]
            assert 0 < float(outputs.token_probability) < 1
            torch.testing.assert_close(outputs.token_probability, kept.mean().exp()[None], **TOLERANCE)
            one_by_one.append(float(outputs.token_probability))
    together = {name: [view[name] for view in views] for name in views[0]}
    batched = []
    for question in QUESTIONS:
        batched.append(answer(model, processor(**together, text=[[question]] * 2)).token_probability)
    torch.testing.assert_close(torch.stack(batched, 1).flatten(), torch.tensor(one_by_one), **TOLERANCE)
    scene = model.encode_scene(**processor(**together))
    asks = processor(text=QUESTIONS * 2, scene_index=[0, 0, 0, 1, 1, 1])
    cached = answer(model, {"scene": scene, **asks}).token_probability
    torch.testing.assert_close(cached, torch.tensor(one_by_one), **TOLERANCE)


class Script(LogitsProcessor):
    """Gives row i the word `rows[i][step]` with probability `share`, and the rest to word 40."""

    def __init__(self, rows, shares, width):
        self.rows, self.shares, self.width = rows, shares, width

    def __call__(self, input_ids, scores):
        step = input_ids.shape[1] - self.width
        scores = torch.full_like(scores, float("-inf"))
        for row, (words, share) in enumerate(zip(self.rows, self.shares, strict=True)):
            scores[row, words[step]], scores[row, 40] = np.log(share), np.log(1 - share)
        return scores


def test_the_end_mark_counts_and_padding_does_not(model, processor):
    scene = model.encode_scene(**processor(**make_views(num_views=2, seed=1)))
    asks = {"scene": scene, **processor(text=["Why?", "How?"])}
    end = model.generation_config.eos_token_id
    rows, shares = [[7, end, 8, 8, 8], [7, 8, 9, 7, 8]], [0.6, 0.9]
    script = LogitsProcessorList([Script(rows, shares, asks["input_ids"].shape[1])])
    assert answer(model, asks, logits_processor=script).token_probability.tolist() == pytest.approx(shares)


def test_a_token_probability_does_not_depend_on_how_tokens_are_drawn(model, processor):
    inputs = processor(**make_views(num_views=2, seed=1), text="Why?")
    plain = answer(model, inputs).token_probability
    drawn = answer(model, inputs, do_sample=True, top_k=1, temperature=0.3).token_probability
    torch.testing.assert_close(plain, drawn, **TOLERANCE)


def test_beams_and_plain_ids_have_no_token_probability(model, processor):
    inputs = processor(**make_views(num_views=2, seed=1), text="Why?")
    assert isinstance(answer(model, inputs, return_dict_in_generate=False), torch.Tensor)
    for settings in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 2}):
        assert "token_probability" not in answer(model, inputs, **settings)


def test_a_margin_is_the_distance_to_no_target():
    assert compute_margin(np.array([0.1, 0.7, 0.4])) == pytest.approx(0.3)
    assert compute_margin(np.array([-0.2, 0.5])) == pytest.approx(-0.7) and compute_margin(np.array([0.5])) is None


@pytest.mark.parametrize(("count", "slope"), [(400, 0.5), (3000, 3.0)])
def test_a_fitted_map_is_monotone_and_finds_the_odds(count, slope):
    rng = np.random.default_rng(0)
    signals = rng.normal(2, 1.5, count)
    right = rng.random(count) < ConfidenceMap(slope, -1.0)(signals)
    found = fit_confidence(signals, right)
    assert found.slope == pytest.approx(slope, rel=0.35) and found.offset == pytest.approx(-1, abs=0.5)
    assert (np.diff(found(np.sort(signals))) > 0).all()
    assert compute_calibration_error(found(signals), right) < 0.06
    assert float(found(signals).mean()) == pytest.approx(right.mean(), abs=0.01)


def test_a_signal_that_misleads_means_nothing_rather_than_the_opposite():
    found = fit_confidence(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1, 1, 0, 1]))
    assert found.slope == 0 and float(found(np.array(99.0))) == pytest.approx(0.7, abs=0.1)
    # Perfectly separated: sure, but not infinitely so.
    assert 0 < fit_confidence(np.array([1.0, 2.0, 8.0, 9.0]), np.array([0, 0, 1, 1])).slope < 10
    with pytest.raises(
        ValueError, match="signals: expected finite numbers of right and wrong answers, got 2 with 2 right"
    ):
        fit_confidence(np.array([1.0, 2.0]), np.array([1, 1]))


def test_figures_are_those_of_a_count_by_hand():
    confidences, right = np.array([0.05, 0.15, 0.12, 0.9, 1.0]), np.array([0, 0, 1, 1, 1])
    table = make_reliability_table(confidences, right)
    assert [(row["low"], row["count"], row["observed"]) for row in table] == [(0, 1, 0), (0.1, 2, 0.5), (0.9, 2, 1)]
    assert table[1]["predicted"] == pytest.approx(0.135)
    assert compute_calibration_error(confidences, right) == pytest.approx((0.05 + 2 * 0.365 + 2 * 0.05) / 5)
    pairs = [(a > b) + 0.5 * (a == b) for a in confidences[right == 1] for b in confidences[right == 0]]
    assert compute_ranking(confidences, right) == pytest.approx(np.mean(pairs))
    assert compute_ranking(confidences, np.ones(5)) is None
    low, high = compute_share_interval(5, 10)
    assert (low, high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert compute_share_interval(0, 4)[1] > 0.4 and np.isfinite(get_log_odds(np.array([0.0, 1.0]))).all()


def make_text_record(number: int, probability: float | None, right: bool, question_type: str = "color") -> dict:
    record = {"task": "rooms", "id": f"{number}", "scene_id": f"room{number // 4}", "question_type": question_type,
              "question": "?", "response": "red", "prediction": "red", "right": right}  # fmt: skip
    return record if probability is None else record | {"token_probability": probability}


def make_box_record(number: int, margin: float, target: list[float] | None) -> dict:
    box = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
    return make_text_record(number, None, False, "grounding") | {
        "response": None, "prediction": None, "scores": [margin, -0.5, 0.0], "margin": margin, "best_box": box,
        "answer_boxes": [box] if margin > 0 else [], "target_boxes": [] if target is None else [target],
    }  # fmt: skip


def make_records(count: int = 1200) -> list[dict]:
    """Answers that are right as often as the square of their token probability, and boxes by their margin."""
    rng = np.random.default_rng(1)
    records = []
    for number in range(count):
        probability, margin = rng.uniform(0.2, 1), rng.normal(0, 0.3)
        records.append(make_text_record(number, round(probability, 5), bool(rng.random() < probability**2)))
        target = [0.1, 0, 0.5, 1, 1, 1] if rng.random() < ConfidenceMap(8, 0)(np.array(margin)) else None
        records.append(make_box_record(count + number, margin, target))
    return records


def test_confidences_are_fitted_on_half_of_the_rooms_and_better_on_the_other():
    records = make_records()
    fitted = fit_confidences(records, "run")
    assert set(fitted) == {"text", "rooms/color", "box", "no_target"}
    halves = [{r["scene_id"] for r in records if is_for_fitting(r["scene_id"]) == half} for half in (True, False)]
    for kind, row in fitted.items():
        assert 0 < row["fitted_on"]["scenes"] <= len(halves[0]) and row["reported_on"]["scenes"] <= len(halves[1])
        assert row["error_after"] < 0.07 and row["ranking"] > 0.6 and row["slope"] > 0, kind
    assert fitted["text"]["error_before"] > 2 * fitted["text"]["error_after"]
    assert sum(line["count"] for line in fitted["text"]["table"]) == fitted["text"]["reported_on"]["questions"]
    assert fitted["box"]["slope"] == pytest.approx(8, rel=0.3)
    # Both scans of one room of ScanNet go to the same half.
    assert len({is_for_fitting(f"scene0012_0{scan}") for scan in range(4)}) == 1
    assert len({is_for_fitting(f"scene{room:04d}_00") for room in range(20)}) == 2


def test_records_without_numbers_and_few_questions_are_refused():
    records = make_records(40)
    with pytest.raises(
        ValueError, match="run: expected 100 questions of a kind in half of the rooms, 15 of them right"
    ):
        fit_confidences(records, "run")
    for name in ("token_probability", "margin"):
        old = [{key: value for key, value in record.items() if key != name} for record in records]
        with pytest.raises(
            ValueError, match=f"expected {name} in the records of eval.py, got none.*earlier code; evaluate"
        ):
            fit_confidences(old, "run")


def test_answers_get_the_confidence_of_their_kind():
    calibration = {"confidence": {"text": {"slope": 1.0, "offset": 0.0}, "rooms/color": {"slope": 0.0, "offset": 0.0},
                                  "box": {"slope": 2.0, "offset": 0.0}}}  # fmt: skip
    count = make_text_record(0, 0.8, True, "count")
    assert add_confidence(count, calibration)["confidence"] == pytest.approx(0.8)
    assert add_confidence(make_text_record(0, 0.8, True), calibration)["confidence"] == 0.5
    found, none = make_box_record(0, 0.5, None), make_box_record(0, -0.5, None)
    assert add_confidence(found, calibration)["confidence"] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-4)
    # No map for "no target", and no calibration at all: none, also not an earlier one.
    assert add_confidence(none | {"confidence": 0.1}, calibration) == none
    assert add_confidence(count | {"confidence": 0.1}, None) == count
    assert get_text_confidence(None, 0.8) is None and get_box_confidence(calibration, -0.5, is_found=False) is None


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint's folder with a calibration."""
    copied = tmp_path / "model"
    shutil.copytree(get_checkpoint(), copied, ignore=shutil.ignore_patterns("teacher"))
    rows = {"text": {"slope": 1.25, "offset": -0.5}, "box": {"slope": 3.0, "offset": 0.125}}
    content = {"version": 1, "weights": get_weights_mark(copied), "confidence": rows, "scans": None}
    content |= {"evaluation": {"proposals": "given"}}
    save_calibration(copied, content)
    return copied


def test_a_calibration_comes_back_as_it_was_and_is_uploaded(folder):
    content = load_calibration(folder)
    assert content["confidence"]["text"] == {"slope": 1.25, "offset": -0.5} and content == read_calibration(folder)
    assert load_calibration(get_checkpoint()) is None and is_ours("calibration.json")
    assert any(fnmatch("calibration.json", pattern) for pattern in CHECKPOINT_FILES)
    save_calibration(folder, content)
    assert load_calibration(folder) == content


def test_a_calibration_of_other_weights_is_not_used(folder):
    model = Ross3DForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 0.5
    model.save_pretrained(folder)
    with pytest.warns(
        UserWarning, match="calibration.json: made for other weights than those beside it, so it is not"
    ):
        assert load_calibration(folder) is None


def test_the_mark_of_weights_does_not_depend_on_files(folder, tmp_path):
    model = Ross3DForConditionalGeneration.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="300KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert get_weights_mark(tmp_path / "shards") == get_weights_mark(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"version": 7},
            "calibration.json: expected version 1 of the calibration of a model's confidence, got 7; write",
        ),
        (
            {"confidence": {"text": {"slope": -1, "offset": 0}}},
            "'text': expected a finite slope >= 0 and an offset, got",
        ),
        ({"confidence": {"text": {"slope": 1}}}, "'text': expected a finite slope >= 0 and an offset, got"),
        ({"confidence": [1]}, "expected a finite slope >= 0 and an offset, got"),
        ({"scans": {"threshold": 1.0}}, "scans: expected numbers, look and threshold of training scans, got KeyError"),
        ({"evaluation": []}, r"evaluation: expected an object with the source of proposals, got \[\]; write it again"),
        (None, "but the file is not valid JSON .*ross3d.tools.calibrate`, or remove it"),
    ],
    ids=str,
)
def test_a_damaged_calibration_is_refused(folder, change, message):
    file = folder / "calibration.json"
    text = file.read_text()
    file.write_text(text[:-20] if change is None else json.dumps(json.loads(text) | change))
    with pytest.raises(ValueError, match=message):
        load_calibration(folder)
