"""Scores of the benchmarks, on items worked by hand, and the `evaluate` modules that give the same."""

import inspect
from pathlib import Path

import evaluate
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ross3d.metrics import benchmarks
from ross3d.metrics.columns import check_boxes, check_columns, check_known, check_texts, compute_group_means, match_ids
from ross3d.metrics.oriented_boxes import compute_oriented_box_iou
from ross3d.metrics.qa import compute_relative_accuracy


MODULES = Path(benchmarks.__file__).parent / "evaluate_modules"
UNIT, WIDE, FAR = [0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 1, 1], [9, 0, 0, 1, 1, 1]
CUBE = [0, 0, 0, 1, 1, 1, 0, 0, 0]


class StandInMeteor:
    """Scores an item by whether it has words, the corpus as 0.25."""

    def score(self, hypotheses, references):
        return 0.25, np.array([bool(text.split()) for text in hypotheses])


def test_scanqa():
    predictions, references = ["brown.", "Two  beds", ""], [["brown", "tan"], ["two beds"], ["a door"]]
    scores = benchmarks.score_scanqa(predictions, references)
    assert scores["exact_match"] == pytest.approx(2 / 3) and scores["exact_match_published"] == 0
    assert scores["num_items"] == 3 and "METEOR" not in scores
    # Final periods go before words are compared: "brown" is right, "Two" is not "two"; brevity against 5 words.
    assert scores["BLEU-1"] == pytest.approx(2 / 3 * np.exp(1 - 5 / 3), abs=1e-6)
    assert benchmarks.score_scanqa(predictions, references, StandInMeteor())["METEOR"] == 0.25


def test_sqa3d():
    columns = ["The bed.", "north", "2", ""], ["bed", "no", "two", "left"], ["what", "is", "how", "what"]
    scores = benchmarks.score_sqa3d(*columns)
    assert scores == {
        "exact_match": 0.5,
        "refined_exact_match": 0.5,
        "refined_exact_match_published": 1.0,
        "exact_match/what": 0.5,
        "exact_match/is": 0.0,
        "exact_match/how": 1.0,
        "num_items": 4,
    }


def test_scan2cap():
    references = [["A red chair.", "It is red."], ["A bed."], ["A lamp, small."]]
    scores = benchmarks.score_scan2cap(["a RED chair.", "", "A lamp, small."], references)
    assert scores["num_empty"] == 1 and scores["num_items"] == 3
    assert scores["BLEU-1"] < 1
    without = benchmarks.score_scan2cap(["a red chair.", "A lamp, small."], [references[0], references[2]])
    assert without["BLEU-1"] == pytest.approx(1) and without["ROUGE-L"] == 1 > scores["ROUGE-L"]


def test_scanrefer():
    scores = benchmarks.score_scanrefer(
        [UNIT, WIDE, None, FAR, [0, 0, 0, 0, 1, 1]], [UNIT] * 5, ["unique", "multiple", "multiple", "unique", "unique"]
    )
    assert scores["accuracy@0.25"] == scores["accuracy@0.25_published"] == 0.4
    # An exact half is a hit of ours, and a miss with the published epsilon.
    assert scores["accuracy@0.5"] == 0.4 and scores["accuracy@0.5_published"] == 0.2
    assert scores["accuracy@0.5/unique"] == pytest.approx(1 / 3) and scores["accuracy@0.5/multiple"] == 0.5
    assert scores["accuracy@0.5_published/multiple"] == 0
    assert (scores["num_items"], scores["num_missing"], scores["num_degenerate"]) == (5, 1, 1)


def test_multi3drefer():
    predictions = [[], [UNIT], [UNIT, FAR], [WIDE], [[0, 0, 0, 1, 0, 1]]]
    targets = [[], [], [UNIT], [UNIT], [UNIT, FAR]]
    scores = benchmarks.score_multi3drefer(predictions, targets, ["zt_wo_d", "zt_w_d", "st_wo_d", "st_wo_d", "mt"])
    assert scores["f1@0.5/zt_wo_d"] == 1 and scores["f1@0.5/zt_w_d"] == scores["f1@0.5/mt"] == 0
    assert scores["f1@0.5/st_wo_d"] == pytest.approx((2 / 3 + 1) / 2) and "f1@0.5/st_w_d" not in scores
    assert scores["f1@0.5"] == scores["f1@0.25"] == pytest.approx((1 + 2 / 3 + 1) / 5)
    assert scores["num_items"] == 5 and scores["num_degenerate"] == 1


def test_vsibench():
    predictions = ["B", "b.", "C", "A", "9", "about 4"]
    references = ["B", "B", "A", "A", "10", 4]
    levels = [f"object_rel_direction_{level}" for level in ("easy", "hard", "hard")]
    types = [*levels, "route_planning", "object_counting", "object_counting"]
    scores = benchmarks.score_vsibench(predictions, references, types)
    relative = compute_relative_accuracy([9], [10])[0] / 2
    assert scores["object_rel_direction"] == (1 + 0.5) / 2 and scores["object_counting"] == pytest.approx(relative)
    assert scores["overall"] == pytest.approx((0.75 + 1 + relative) / 3)
    assert (scores["num_tasks"], scores["num_items"]) == (3, 6) and not any("easy" in name for name in scores)


def test_vstibench():
    types = ["camera_displacement"] * 2 + ["camera_obj_dist_change"] * 2
    scores = benchmarks.score_vstibench(["1.0", "5", "0.3", "7"], [1, -2, "0", -1], types)
    assert scores["camera_displacement"] == 0.5 and scores["camera_displacement_published"] == 1
    # A target of 0 has no published score: the mean is that of the other item.
    assert scores["camera_obj_dist_change"] == 0 and scores["camera_obj_dist_change_published"] == 1
    assert scores["overall"] == 0.25 and scores["overall_published"] == 1
    alone = benchmarks.score_vstibench(["7"], ["0"], ["camera_obj_dist_change"])
    assert alone["overall"] == 0 and alone["num_tasks_published"] == 0 and "overall_published" not in alone


def test_items_of_choices_and_numbers():
    columns = ["a", "2"], ["A", "4"], ["route_planning", "object_counting"]
    kinds = benchmarks.VSIBENCH_CHOICES, benchmarks.VSIBENCH_NUMBERS
    assert benchmarks.score_choices_and_numbers(*columns, *kinds).tolist() == [1, 0.1]
    assert benchmarks.score_tasks(np.array([1, np.nan]), ["a", "b"], "_x") == {
        "a_x": 1,
        "overall_x": 1,
        "num_tasks_x": 1,
    }


def test_cvbench():
    predictions = ["B", "Answer: B", "(C) a chair", "Door", "E"]
    columns = [["(B)"] * 2 + ["(C)", "(D)", "(E)"], ["ADE20K", "COCO", "COCO", "COCO", "Omni3D"]]
    scores = benchmarks.score_cvbench(predictions, *columns, ["Count", "Count", "Relation", "Relation", "Depth"])
    assert scores["accuracy_2d"] == pytest.approx((1 + 2 / 3) / 2) and scores["accuracy_3d"] == 1
    assert scores["accuracy"] == pytest.approx((5 / 6 + 1) / 2)
    # As published "Answer: B" is A, and "Door" is D.
    assert scores["accuracy/Count"] == 1 and scores["accuracy_published/Count"] == 0.5
    assert scores["accuracy/Relation"] == 0.5 and scores["accuracy_published/Relation"] == 1
    assert scores["num_items"] == 5
    flat = benchmarks.score_cvbench(["A"], ["(A)"], ["COCO"], ["Count"])
    assert flat["accuracy_2d"] == 1 and "accuracy" not in flat and "accuracy_3d" not in flat


def test_blink():
    scores = benchmarks.score_blink(["A", "So B", "C", ""], ["(A)", "(B)", "(D)", "(A)"], ["Jigsaw"] * 3 + ["Depth"])
    assert scores["accuracy"] == 0.5 and scores["task_mean"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["accuracy/Jigsaw"] == pytest.approx(2 / 3) and scores["accuracy_published/Jigsaw"] == pytest.approx(
        2 / 3
    )
    assert scores["num_items"] == 4


def test_scannet_det():
    record = '{"label": "bed", "bbox_3d": [0, 0, 0, 1, 1, 1, 0, 0, 0]}'
    targets = [[{"label": "bed", "bbox_3d": CUBE}], [{"label": "bed", "bbox_3d": CUBE}], []]
    scores = benchmarks.score_scannet_det([record, f"[{record}, {record}]", "none"], targets)
    # Eight categories; the list on one line is read by ours alone: 2 right, 1 too many.
    assert scores["precision_cate8"] == pytest.approx(2 / 3 / 8) and scores["recall_cate8"] == 1 / 8
    assert scores["precision_cate8_published"] == 1 / 8 and scores["recall_cate8_published"] == 0.5 / 8
    assert scores["f1_cate31"] == pytest.approx(0.8 / 30) and scores["f1_cate31_published"] == pytest.approx(
        2 / 3 / 31
    )
    assert (scores["num_boxes"], scores["num_boxes_published"], scores["num_items"]) == (3, 1, 3)


def make_located(view: int, box: list[float]) -> str:
    return f'{{"frame": {view}, "bbox_3d": {box}}}'


def test_vgllm_scanrefer():
    """The second view stands a metre along x, turned by a quarter about z: its x is the world's y."""
    turned = [[0, -1, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    views = [np.eye(4).tolist(), turned]
    tilted = [0, 0, 0, 1, 2, 3, 0.5, 0.7, -0.4]
    columns = {
        "predictions": [
            make_located(1, [1, 2, 3, 1, 1, 4, 0, 0, 0]),
            make_located(0, tilted),
            "no box",
            make_located(2, CUBE),
        ],
        "references": [[-1, 1, 3, 1, 1, 4, 0, 0, 0], tilted, CUBE, CUBE],
        "cam2world": [views, views, views, views],
    }
    scores = benchmarks.score_vgllm_scanrefer(**columns)
    assert scores["accuracy@0.5"] == scores["accuracy@0.5_published_ZXY"] == 0.5
    assert scores["num_unread"] == scores["num_unread_published"] == 2 and scores["num_items"] == 4
    flat = {"predictions": [make_located(0, [*CUBE[:5], 0, 0, 0, 0])], "references": [CUBE], "cam2world": [views]}
    assert benchmarks.score_vgllm_scanrefer(**flat)["num_degenerate"] == 1
    overlaps, boxes = benchmarks.compute_located_overlaps(
        columns["predictions"], np.array(columns["references"]), [views] * 4
    )
    assert overlaps == pytest.approx([1, 1, 0, 0], abs=1e-7) and np.isnan(boxes[2:]).all()
    assert boxes[0, :6] == pytest.approx([-1, 1, 3, 1, 1, 4])


def test_vgllm_scanrefer_as_first_released():
    """A camera tilted by 60 degrees about x sees a box turned by half a radian about its own z: the released code
    finds the right angles of one convention and reads them in the other."""
    cam2world, box = np.eye(4), [0, 0, 0, 1, 2, 3, 0.5, 0, 0]
    cam2world[:3, :3] = Rotation.from_euler("x", np.pi / 3).as_matrix()
    turned = cam2world[:3, :3] @ Rotation.from_euler("z", 0.5).as_matrix()
    target = np.array([[*box[:6], *Rotation.from_matrix(turned).as_euler("ZXY")]])
    columns = [make_located(0, box)], target, [[cam2world]]
    assert benchmarks.compute_located_overlaps(*columns)[0][0] == pytest.approx(1)
    released, boxes = benchmarks.compute_located_overlaps(*columns, convention="zxy")
    assert boxes[0, 6:] == pytest.approx([0.5, np.pi / 3, 0])
    assert released[0] == compute_oriented_box_iou(boxes, target)[0][0] < 0.9


def test_wrong_columns_are_refused_by_name():
    with pytest.raises(ValueError, match=r"predictions, references: expected one entry per item .* 'references': 1"):
        benchmarks.score_scanqa(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"at least one item, got \{'predictions': 0, 'references': 0\} entries"):
        benchmarks.score_scan2cap([], [])
    with pytest.raises(ValueError, match=r"question_types: expected values from .*, got \['where'\]; is it another"):
        benchmarks.score_sqa3d(["a"], ["a"], ["where"])
    with pytest.raises(ValueError, match=r"sources: expected values from .*, got \['3RScan'\]"):
        benchmarks.score_cvbench(["A"], ["(A)"], ["3RScan"], ["Count"])
    with pytest.raises(ValueError, match=r"references\[1\]: expected a letter in brackets such as \"\(B\)\", got 'B'"):
        benchmarks.score_blink(["A", "B"], ["(A)", "B"], ["Jigsaw"] * 2)
    with pytest.raises(ValueError, match=r"targets: expected finite numbers .* 1 that are not finite"):
        benchmarks.score_vsibench(["4"], ["four"], ["object_counting"])
    with pytest.raises(ValueError, match=r"predictions\[1\]: expected finite boxes, got .* in row 0"):
        benchmarks.score_multi3drefer([[], [[*UNIT[:5], np.nan]]], [[], []], ["zt_w_d"] * 2)
    with pytest.raises(ValueError, match=r"references\[0\]: expected an array of shape \(N, 6\)"):
        benchmarks.score_multi3drefer([[]], [[CUBE]], ["mt"])
    with pytest.raises(ValueError, match=r"references\[0\]: expected an array of shape \(N, 9\)"):
        benchmarks.score_scannet_det([""], [[{"label": "bed", "bbox_3d": UNIT}]])


@pytest.mark.parametrize(
    "score",
    [
        lambda texts: benchmarks.score_scanqa(texts, [["a"]] * 2),
        lambda texts: benchmarks.score_scan2cap(texts, [["a"]] * 2),
        lambda texts: benchmarks.score_sqa3d(texts, ["a"] * 2, ["what"] * 2),
        lambda texts: benchmarks.score_vsibench(texts, ["A"] * 2, ["route_planning"] * 2),
        lambda texts: benchmarks.score_blink(texts, ["(A)"] * 2, ["Jigsaw"] * 2),
        lambda texts: benchmarks.score_scannet_det(texts, [[]] * 2),
        lambda texts: benchmarks.score_vgllm_scanrefer(texts, [CUBE] * 2, [[np.eye(4)]] * 2),
    ],
)
def test_an_answer_that_is_missing_is_no_empty_answer(score):
    assert score(["", ""])["num_items"] == 2
    with pytest.raises(ValueError, match=r"predictions\[1\]: expected a list with one string per item, got None"):
        score(["A", None])


def test_predictions_of_a_file_find_their_annotations():
    assert match_ids(["c", "a", "b"], ["a", "b", "c"]) == [1, 2, 0]
    with pytest.raises(ValueError, match=r"prediction_ids: expected unique ids, got 1 repeated ones, such as \['a'\]"):
        match_ids(["a", "b", "a"], ["a", "b"])
    with pytest.raises(ValueError, match=r"reference_ids: expected unique ids, got 1 repeated"):
        match_ids(["a"], ["a", "a"])
    with pytest.raises(
        ValueError, match=r"each of 3 references, got 2: 2 missing, such as \['b', 'c'\], and 1 without"
    ):
        match_ids(["a", "x"], ["a", "b", "c"])


def test_columns_are_checked():
    assert check_columns(a=[1, 2], b="xy") == 2
    check_known("rule", ["a"], ("a", "b"))
    check_texts("texts", ["", "a"])
    with pytest.raises(ValueError, match=r"texts\[0\]: expected a list with one string per item, got 'ab'"):
        check_texts("texts", "ab")
    assert check_boxes("boxes", [], 6).shape == (0, 6) and check_boxes("boxes", UNIT, 6).shape == (1, 6)
    with pytest.raises(ValueError, match=r"boxes: expected boxes of 6 numbers, got 'wall' in row 1"):
        check_boxes("boxes", [UNIT, "wall"], 6)
    with pytest.raises(ValueError, match=r"boxes: expected boxes of 6 numbers, got '' in row 0"):
        check_boxes("boxes", "", 6)
    with pytest.raises(ValueError, match=r"boxes: expected an array of shape \(N, 6\), metres, got shape \(12,\)"):
        check_boxes("boxes", UNIT * 2, 6)
    assert compute_group_means([1, 0, np.nan], ["a", "a", "b"]) == {"a": 0.5}


COLUMNS = {
    "blink": {"predictions": ["A", "B"], "references": ["(A)", "(C)"], "question_types": ["Jigsaw", "Depth"]},
    "cvbench": {
        "predictions": ["A", "B"],
        "references": ["(A)", "(C)"],
        "sources": ["COCO", "Omni3D"],
        "question_types": ["Count", "Depth"],
    },
    "multi3drefer": {
        "predictions": [[], [UNIT, FAR]],
        "references": [[], [UNIT]],
        "question_types": ["zt_w_d", "st_w_d"],
    },
    "scan2cap": {"predictions": ["A bed.", ""], "references": [["A bed.", "It is red."], ["A chair"]]},
    "scannet_det": {
        "predictions": ['{"label": "bed", "bbox_3d": [0, 0, 0, 1, 1, 1, 0, 0, 0]}', ""],
        "references": [[{"label": "bed", "bbox_3d": CUBE}], []],
    },
    "scanqa": {"predictions": ["a\nbed", ""], "references": [["a bed", "bed"], ["a door"]]},
    "scanrefer": {"predictions": [UNIT, None], "references": [WIDE, UNIT], "question_types": ["unique", "multiple"]},
    "sqa3d": {"predictions": ["Two.", "bed"], "references": ["2", "door"], "question_types": ["how", "what"]},
    "vgllm_scanrefer": {
        "predictions": [make_located(0, CUBE), "no"],
        "references": [CUBE, CUBE],
        "cam2world": [[np.eye(4).tolist()], [np.eye(4).tolist()] * 2],
    },
    "vsibench": {
        "predictions": ["A", "3"],
        "references": ["A", "4"],
        "question_types": ["route_planning", "object_counting"],
    },
    "vstibench": {
        "predictions": ["A", "3"],
        "references": ["A", "-4"],
        "question_types": ["camera_movement_direction", "camera_displacement"],
    },
}


def test_every_benchmark_has_a_module():
    scored = {name.removeprefix("score_") for name in benchmarks.__all__ if name.startswith("score_")}
    modules = {path.name for path in MODULES.iterdir() if (path / f"{path.name}.py").is_file()}
    assert modules == scored - {"tasks", "choices_and_numbers"} == set(COLUMNS)


@pytest.mark.parametrize("name", COLUMNS)
def test_modules_give_the_same_scores_offline(name, tmp_path):
    score = getattr(benchmarks, f"score_{name}")
    metric = evaluate.load(str(MODULES / name), cache_dir=str(tmp_path))
    assert metric.compute(**COLUMNS[name]) == score(**COLUMNS[name])
    wanted = [parameter for parameter in inspect.signature(score).parameters if parameter != "meteor"]
    assert list(metric.features) == wanted


@pytest.mark.parametrize("name", ["scanqa", "scan2cap"])
def test_modules_score_meteor_when_asked(name, tmp_path, monkeypatch):
    metric = evaluate.load(str(MODULES / name), cache_dir=str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match="score without METEOR"):
        metric.compute(**COLUMNS[name], use_meteor=True)
