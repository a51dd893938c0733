"""Recorded metrics: every item and every sum of every benchmark that the metrics room scores.

The files are `metrics/*.json` of the recorded references, one a benchmark, with `items` that hold what is `expected`
of each, and `expected...` of all. Published rules throughout: counts, flags and texts exactly, scores to 1e-5,
oriented overlaps (recorded in float32) to 2e-5.
"""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ross3d.data.prepare.sqa3d import get_question_type
from ross3d.metrics import benchmarks, captioning, qa
from ross3d.metrics.box_text import LabelledBox, parse_labelled_boxes
from ross3d.metrics.detection import PUBLISHED_CATEGORIES, compute_category_scores, count_detections, sum_counts
from ross3d.metrics.grounding import compute_f1, compute_iou, compute_paired_iou, select_proposals
from ross3d.metrics.meteor import Meteor, check_meteor, compute_meteor_of_counts
from ross3d.metrics.oriented_boxes import compute_corners, compute_oriented_box_iou, get_rotation_matrices
from ross3d.tests.parity.golden import get_goldens_folder


pytestmark = pytest.mark.parity

TOLERANCE, OBB_TOLERANCE = 1e-5, 2e-5
MRA = "MRA:.5:.95:.05"
GOLDENS = get_goldens_folder()
# What is recorded of an item or a file and not compared by its metric, as `file:key`, and why.
EXCUSED = {
    "*:prompt": "prompts: test_recorded_prompts.py",
    "scanqa:ptb": "texts as another tokeniser cuts them, which needs Java: test_recorded_tokenisation",
}
# Files beside those of metrics.
ELSEWHERE = {
    "pre_*": "preparation of raw data",
    "frames": "geometry of views: test_recorded_views.py",
    "max_coverage": "choice of views: test_recorded_views.py",
    "prompt_and_labels": "text of training rows: test_recorded_prompts.py",
    "sampler": "order of training rows: test_recorded_sampler.py",
}


class RecordedMetric:
    """One recorded file: its items and sums, and what of them has been compared."""

    def __init__(self, path: Path):
        self.name, self.golden = path.stem, json.loads(path.read_text())
        self.items = self.golden["items"]
        self.compared: set[tuple[int | None, str]] = set()

    def column(self, key: str, default: Any = None) -> list[Any]:
        return [item.get(key, default) for item in self.items]

    def compare(self, index: int | None, key: str, got: Any, tolerance: float = TOLERANCE) -> None:
        """An item's expected value, or with no index one of the file, which must be what we get."""
        wanted = self.golden[key] if index is None else self.items[index]["expected"][key]
        check_same(f"{self.name}, {'sum' if index is None else f'item {index}'}, {key}", got, wanted, tolerance)
        self.compared.add((index, key))

    def compare_items(self, key: str, values: Any, tolerance: float = TOLERANCE) -> None:
        """An expected value of every item that has it, from a list over all items."""
        assert len(values) == len(self.items)
        for index, (item, value) in enumerate(zip(self.items, values, strict=True)):
            if key in item["expected"]:
                self.compare(index, key, value, tolerance)

    def check_complete(self) -> int:
        """Every expected value was compared or is excused; how many items something was compared of."""
        recorded = {(None, key) for key in self.golden if key.startswith(("expected", "variant"))}
        recorded |= {(index, key) for index, item in enumerate(self.items) for key in item["expected"]}
        left = [
            (index, key)
            for index, key in recorded - self.compared
            if not any(fnmatch.fnmatchcase(f"{self.name}:{key}", pattern) for pattern in EXCUSED)
        ]
        assert not left, f"{self.name}: neither compared nor excused: {left}"
        return len({index for index, _ in self.compared} - {None})


def check_same(where: str, got: Any, wanted: Any, tolerance: float) -> None:
    """Numbers within the tolerance; texts, flags and None exactly; lists and dicts item by item.

    METEOR is left to `test_recorded_meteor`, which can only run where Java is.
    """
    if isinstance(wanted, dict):
        wanted = {key: value for key, value in wanted.items() if key != "METEOR"}
        assert got.keys() - {"METEOR"} == wanted.keys(), f"{where}: got {sorted(got)}, wanted {sorted(wanted)}"
        for key, value in wanted.items():
            check_same(f"{where}, {key}", got[key], value, tolerance)
    elif isinstance(wanted, list):
        assert len(got) == len(wanted), f"{where}: got {got}, wanted {wanted}"
        for index, value in enumerate(wanted):
            check_same(f"{where}[{index}]", got[index], value, tolerance)
    elif isinstance(wanted, int | float) and not isinstance(wanted, bool):
        assert abs(got - wanted) <= tolerance, f"{where}: got {got}, wanted {wanted}"
    else:
        assert got == wanted, f"{where}: got {got!r}, wanted {wanted!r}"


def scale(scores: dict[str, float], factor: float, names: dict[str, str] | None = None) -> dict[str, float]:
    """Scores times a factor under other names."""
    return {(names or {}).get(name, name): value * factor for name, value in scores.items()}


def get_item_captions(hypotheses: list[str], references: list[list[str]]) -> list[dict[str, float]]:
    """Scores of each item: BLEU of it alone, CIDEr with the frequencies of all."""
    cider = captioning.compute_cider(hypotheses, references)
    rouge = captioning.compute_rouge_l(hypotheses, references)
    bleu = [captioning.compute_bleu([text], [texts]) for text, texts in zip(hypotheses, references, strict=True)]
    return [
        {"CIDEr": cider[index], "ROUGE-L": rouge[index], **{f"BLEU-{n}": bleu[index][n - 1] for n in (1, 2, 3, 4)}}
        for index in range(len(hypotheses))
    ]


def get_protocols(recorded: RecordedMetric) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Texts and references of each recorded corpus score: the benchmark's own, and others recorded for contrast."""
    if recorded.name == "scanqa":
        hypotheses = [text.rstrip(".") for text in recorded.column("pred")]
        tokenised = [item["expected"]["ptb"] for item in recorded.items]
        ptb = [row["hypothesis"] for row in tokenised], [row["references"] for row in tokenised]
        own = hypotheses, recorded.column("answers")
        return {"expected_corpus_fraction": own, "expected_corpus_fraction_if_ptb_tokenised": ptb}
    predictions = recorded.column("pred")
    hypotheses = [captioning.wrap_caption(text) for text in predictions]
    wrapped = [[captioning.wrap_caption(text) for text in texts] for texts in recorded.column("annotations")]
    single = [text if said else "sos eos" for said, text in zip(predictions, hypotheses, strict=True)]
    kept = [index for index, text in enumerate(predictions) if text]
    return {
        "expected_corpus_fraction": (hypotheses, wrapped),
        "variant_single_space_placeholder_fraction": (single, wrapped),
        "variant_drop_unmatched_fraction_WRONG": ([hypotheses[i] for i in kept], [wrapped[i] for i in kept]),
    }


def compare_scanqa(recorded: RecordedMetric) -> None:
    predictions, references = recorded.column("pred"), recorded.column("answers")
    hypotheses = [text.rstrip(".") for text in predictions]
    recorded.compare_items("hypothesis_used", hypotheses)
    recorded.compare_items("hypothesis_tokens_ws", [text.split() for text in hypotheses])
    recorded.compare_items("hypothesis_tokens_rouge", [text.split(" ") for text in hypotheses])
    recorded.compare_items("reference_tokens_ws", [[text.split() for text in texts] for texts in references])
    recorded.compare_items("em", qa.compute_verbatim_match(predictions, references).astype(int))
    recorded.compare_items("scores", get_item_captions(hypotheses, references))
    scores = benchmarks.score_scanqa(predictions, references)
    captions = captioning.compute_caption_scores(hypotheses, references)
    assert captions == {name: scores[name] for name in captions}
    percent = {**captions, "EM": scores["exact_match_published"]}
    recorded.compare(None, "expected_reference_csv", scale(percent, 100, {"ROUGE-L": "Rouge"}), 100 * TOLERANCE)
    for key, columns in get_protocols(recorded).items():
        recorded.compare(None, key, captioning.compute_caption_scores(*columns))


def compare_scan2cap(recorded: RecordedMetric) -> None:
    predictions, references = recorded.column("pred"), recorded.column("annotations")
    hypotheses = [captioning.wrap_caption(text) for text in predictions]
    wrapped = [[captioning.wrap_caption(text) for text in texts] for texts in references]
    recorded.compare_items("hypothesis_wrapped", hypotheses)
    recorded.compare_items("references_wrapped", wrapped)
    recorded.compare_items("hypothesis_tokens_rouge", [text.split(" ") for text in hypotheses])
    recorded.compare_items("scores", get_item_captions(hypotheses, wrapped))
    scores = benchmarks.score_scan2cap(predictions, references)
    captions = captioning.compute_caption_scores(hypotheses, wrapped)
    assert captions == {name: scores[name] for name in captions}
    names = {"CIDEr": "CIDER", "ROUGE-L": "ROUGE"}
    recorded.compare(None, "expected_reference_csv", scale(captions, 100, names), 100 * TOLERANCE)
    for key, columns in get_protocols(recorded).items():
        recorded.compare(None, key, captioning.compute_caption_scores(*columns))


def compare_sqa3d(recorded: RecordedMetric) -> None:
    columns = [recorded.column(key) for key in ("pred", "gt", "question_type")]
    predictions, answers = ([qa.clean_sqa3d_answer(text) for text in column] for column in columns[:2])
    recorded.compare_items("pred_clean", predictions)
    recorded.compare_items("gt_clean", answers)
    recorded.compare_items("em", [int(a == b) for a, b in zip(predictions, answers, strict=True)])
    refined = qa.compute_refined_match(predictions, answers, rule="substring")
    recorded.compare_items("em_refined", refined.astype(int))
    scores = benchmarks.score_sqa3d(*columns)
    percent = {"all": scores["exact_match"], "refined": scores["refined_exact_match_published"]}
    percent |= {name: scores[f"exact_match/{name}"] for name in set(columns[2])}
    recorded.compare(None, "expected_percent", scale(percent, 100), 100 * TOLERANCE)
    for case in recorded.golden["question_type_cases"]:
        assert get_question_type(case["question"]) == case["expected_type"], case["question"]
    assert recorded.golden["question_type_cases"]


def compare_box3d_iou(recorded: RecordedMetric) -> None:
    exact = [compute_iou(item["a"], item["b"])[0, 0] for item in recorded.items]
    rounded = [np.float32(value) for value in exact]
    for index, item in enumerate(recorded.items):
        for key, got in (("iou_float64", exact[index]), ("iou_float32", float(rounded[index]))):
            assert abs(got - float(item["expected"][key])) <= 1e-12, (item["name"], key)
            recorded.compared.add((index, key))
    for threshold in benchmarks.IOU_THRESHOLDS:
        recorded.compare_items(f"ge_{threshold}_f64", [bool(value >= threshold) for value in exact])
        recorded.compare_items(f"ge_{threshold}_f32", [bool(value >= threshold) for value in rounded])


def compare_scanrefer(recorded: RecordedMetric) -> None:
    columns = [recorded.column(key) for key in ("pred_box", "gt_box", "question_type")]
    overlaps = compute_paired_iou(*columns[:2])
    for index, item in enumerate(recorded.items):
        assert abs(overlaps[index] - float(item["expected"]["iou"])) <= 1e-12, index
        recorded.compared.add((index, "iou"))
    scores = benchmarks.score_scanrefer(*columns)
    printed, written = {}, {}
    for threshold in benchmarks.IOU_THRESHOLDS:
        recorded.compare_items(f"hit_{threshold}", [bool(value >= threshold) for value in overlaps])
        for group in ("all", *sorted(set(columns[2]))):
            value = scores[f"accuracy@{threshold}_published" + (f"/{group}" if group != "all" else "")]
            printed[f"{group} iou@{threshold}"] = 100 * value
            written[f"{group} IoU@{round(100 * threshold)}"] = value
    recorded.compare(None, "expected_stdout_percent", printed, 100 * TOLERANCE)
    recorded.compare(None, "expected_reference_csv_fraction", written)


def compare_multi3drefer(recorded: RecordedMetric) -> None:
    threshold = recorded.golden["threshold"]
    selected = [select_proposals(np.array(scores), threshold) for scores in recorded.column("scores")]
    recorded.compare_items("selected_indices", selected)
    boxes = [np.array(boxes, np.float64).reshape(-1, 6) for boxes in recorded.column("objects")]
    predicted = [boxes[index][chosen] for index, chosen in enumerate(selected)]
    types = recorded.column("question_type")
    scores = benchmarks.score_multi3drefer(predicted, recorded.column("gt_boxes"), types)
    means = {}
    for threshold in benchmarks.IOU_THRESHOLDS:
        pairs = zip(predicted, recorded.column("gt_boxes"), strict=True)
        recorded.compare_items(f"f1_{threshold}", [compute_f1(*pair, threshold) for pair in pairs])
        suffix = f"IoU{round(100 * threshold)}"
        means[f"all {suffix}"] = scores[f"f1@{threshold}"]
        means |= {f"{name} {suffix}": scores[f"f1@{threshold}/{name}"] for name in set(types)}
    recorded.compare(None, "expected_stdout_percent", scale(means, 100), 100 * TOLERANCE)
    recorded.compare(None, "expected_reference_csv_fraction", means)


def get_targets(recorded: RecordedMetric) -> list[Any]:
    """What answers are held against: the letter of a choice, which VSTI-Bench keeps beside the text it stands for."""
    letters, values = recorded.column("mc_answer"), recorded.column("ground_truth")
    return [value if letter is None else letter for letter, value in zip(letters, values, strict=True)]


def compare_choices_and_numbers(
    recorded: RecordedMetric, choices: tuple[str, ...], numbers: tuple[str, ...]
) -> dict[str, float]:
    """The published rule on every item, and its means; returns what is recorded of the means under our names."""
    predictions, types = recorded.column("prediction"), recorded.column("question_type")
    targets = get_targets(recorded)
    recorded.compare_items("fuzzy", [qa.parse_first_word(text) for text in predictions])
    scores = benchmarks.score_choices_and_numbers(predictions, targets, types, choices, numbers, error="signed")
    for index, item in enumerate(recorded.items):
        assert ("raises" in item["expected"]) == np.isnan(scores[index]), item
        key = "raises" if "raises" in item["expected"] else MRA if types[index] in numbers else "accuracy"
        recorded.compare(index, key, item["expected"]["raises"] if key == "raises" else scores[index])
    means = benchmarks.score_tasks(scores, types)
    named = {
        name if name == "overall" else f"{name}_{MRA if name in numbers else 'accuracy'}": value
        for name, value in means.items()
        if name != "num_tasks"
    }
    recorded.compare(None, "expected_aggregate", named)
    recorded.compare(None, "expected_overall_percent", 100 * means["overall"], 100 * TOLERANCE)
    return means


def compare_vsibench(recorded: RecordedMetric) -> None:
    kinds = benchmarks.VSIBENCH_CHOICES, benchmarks.VSIBENCH_NUMBERS
    means = compare_choices_and_numbers(recorded, *kinds)
    columns = [recorded.column(key) for key in ("prediction", "ground_truth", "question_type")]
    targets = [qa.convert_number(str(value)) for value, name in zip(*columns[1:], strict=True) if name in kinds[1]]
    if all(target > 0 for target in targets):
        scores = benchmarks.score_vsibench(*columns)
        assert {name: scores[name] for name in means} == means


def compare_vstibench(recorded: RecordedMetric) -> None:
    means = compare_choices_and_numbers(recorded, benchmarks.VSTIBENCH_CHOICES, benchmarks.VSTIBENCH_NUMBERS)
    columns = [recorded.column("prediction"), get_targets(recorded), recorded.column("question_type")]
    scores = benchmarks.score_vstibench(*columns)
    assert {name: scores[f"{name}_published"] for name in means} == means


def compare_letters(recorded: RecordedMetric) -> None:
    letters = [qa.extract_letter(text, "first_capital") for text in recorded.column("prediction")]
    recorded.compare_items("extracted", letters)
    hits = benchmarks.compare_letters(recorded.column("prediction"), recorded.column("answer"), "first_capital")
    recorded.compare_items("result", hits.astype(int))


def compare_cvbench(recorded: RecordedMetric) -> None:
    compare_letters(recorded)
    columns = [recorded.column(key) for key in ("prediction", "answer", "source", "task")]
    scores = benchmarks.score_cvbench(*columns)
    named = {f"accuracy_{part}": scores[f"accuracy_{part}_published"] for part in ("2d", "3d")}
    named["combined_accuracy"] = scores["accuracy_published"]
    named |= {name: scores[f"accuracy_published/{name}"] for name in set(columns[3])}
    recorded.compare(None, "expected_aggregate", named)
    recorded.compare(None, "expected_percent", 100 * scores["accuracy_published"], 100 * TOLERANCE)


def compare_blink(recorded: RecordedMetric) -> None:
    compare_letters(recorded)
    scores = benchmarks.score_blink(*(recorded.column(key) for key in ("prediction", "answer", "sub_task")))
    recorded.compare(None, "expected_aggregate", {"accuracy": scores["accuracy_published"]})
    recorded.compare(None, "expected_percent", 100 * scores["accuracy_published"], 100 * TOLERANCE)


def compare_obb_iou(recorded: RecordedMetric) -> None:
    boxes = [np.array(recorded.column(key), np.float64) for key in "ab"]
    overlaps, degenerate = compute_oriented_box_iou(*boxes, rule="small_faces")
    recorded.compare_items("iou", overlaps, OBB_TOLERANCE)
    recorded.compare_items("corners_a", compute_corners(boxes[0]).tolist())
    for index, item in enumerate(recorded.items):
        assert degenerate[index] == ("raises" in item["expected"]), item["name"]
        if degenerate[index]:
            recorded.compare(index, "raises", item["expected"]["raises"])


def compare_vgllm_scanrefer(recorded: RecordedMetric) -> None:
    aligned = [
        np.array(item["axis_align_matrix"], np.float64) @ np.array(item["cam2global"], np.float64)
        for item in recorded.items
    ]
    references = np.array(recorded.column("gt_bbox"), np.float64)
    scores = benchmarks.score_vgllm_scanrefer(recorded.column("response"), references, aligned)
    variants = (("zxy", "iou_zxy_extrinsic_as_released", ""), ("ZXY", "iou_ZXY_intrinsic_fixed", "_ZXY"))
    for convention, key, suffix in variants:
        overlaps, boxes = benchmarks.compute_located_overlaps(
            recorded.column("response"),
            references,
            aligned,
            convention=convention,
            text_rule="lines",
            box_rule="small_faces",
        )
        recorded.compare_items(key, overlaps, OBB_TOLERANCE)
        for index, item in enumerate(recorded.items):
            wanted = item["expected"][f"world_bbox_{convention}"]
            assert np.isnan(boxes[index]).all() == (wanted is None), item["response"]
            if wanted is not None:
                # The same turn may have other angles: compare what they turn to.
                check_same(f"world_bbox_{convention}[{index}]", boxes[index, :6].tolist(), wanted[:6], TOLERANCE)
                turns = [get_rotation_matrices(np.array([box[6:]]), convention) for box in (boxes[index], wanted)]
                assert np.abs(turns[0] - turns[1]).max() <= TOLERANCE, item["response"]
            recorded.compared.add((index, f"world_bbox_{convention}"))
        percent = {f"iou{round(100 * t)}": 100 * scores[f"accuracy@{t}_published{suffix}"] for t in (0.25, 0.5)}
        # An overlap recorded in float32 may fall on either side of a threshold it meets exactly.
        close = [np.abs(overlaps - threshold) <= OBB_TOLERANCE for threshold in benchmarks.IOU_THRESHOLDS]
        tolerance = 100 * (TOLERANCE + max(np.mean(items) for items in close))
        recorded.compare(None, f"expected_percent_{convention}", percent, tolerance)


def compare_vgllm_threedod(recorded: RecordedMetric) -> None:
    predictions = [parse_labelled_boxes(text, "lines") for text in recorded.column("response")]
    references = recorded.column("boxes")
    targets = [[LabelledBox(box["label"], np.array(box["bbox_3d"])) for box in row] for row in references]
    counts = count_detections(predictions, targets, "small_faces")
    recorded.compare_items("per_category", counts, 0)
    recorded.compare(None, "expected_totals", sum_counts(counts), 0)
    lists = recorded.golden["category_lists"]
    assert {name: list(names) for name, names in PUBLISHED_CATEGORIES.items()} == lists
    means = {name: compute_category_scores(sum_counts(counts), names) for name, names in lists.items()}
    recorded.compare(None, "expected_averages", means)
    scores = benchmarks.score_scannet_det(recorded.column("response"), references)
    assert all(scores[f"{key}_{name}_published"] == mean for name, row in means.items() for key, mean in row.items())
    recorded.compare(None, "expected_returned_value", scores["f1_cate31_published"])


COMPARISONS: dict[str, Callable[[RecordedMetric], None]] = {
    "blink": compare_blink,
    "box3d_iou": compare_box3d_iou,
    "cvbench": compare_cvbench,
    "multi3drefer": compare_multi3drefer,
    "obb_iou": compare_obb_iou,
    "scan2cap": compare_scan2cap,
    "scanqa": compare_scanqa,
    "scanrefer": compare_scanrefer,
    "sqa3d": compare_sqa3d,
    "vgllm_scanrefer": compare_vgllm_scanrefer,
    "vgllm_threedod": compare_vgllm_threedod,
    "vsibench": compare_vsibench,
    "vstibench": compare_vstibench,
}


def list_files() -> list[Path]:
    """JSON files of folders in which one has the name of a comparison."""
    folders = [folder for folder in (GOLDENS, *sorted(GOLDENS.glob("*"))) if folder.is_dir()]
    found = [sorted(folder.glob("*.json")) for folder in folders]
    return [path for paths in found if any(path.stem in COMPARISONS for path in paths) for path in paths]


FILES = list_files()
ABSENT = pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded metrics in {GOLDENS} (ROSS3D_GOLDENS)"))


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in FILES if path.stem in COMPARISONS] or [ABSENT]
)
def test_recorded_metric(path: Path, record_property):
    recorded = RecordedMetric(path)
    COMPARISONS[path.stem](recorded)
    compared = recorded.check_complete()
    assert compared == len(recorded.items) > 0
    record_property("compared", compared)


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in FILES] or [ABSENT])
def test_every_file_is_compared_or_belongs_elsewhere(path: Path):
    reasons = [why for pattern, why in ELSEWHERE.items() if fnmatch.fnmatchcase(path.stem, pattern)]
    assert (path.stem in COMPARISONS) != bool(reasons), f"{path.name}: no comparison is written for it"


@pytest.fixture(scope="module")
def java_programs():
    """Skips where the programs of pycocoevalcap, METEOR and the PTB tokeniser, cannot run."""
    try:
        check_meteor()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def meteor(java_programs):
    """The program, started once."""
    with Meteor() as meteor:
        yield meteor


def tokenise_ptb(texts: list[str]) -> list[str]:
    """Each text as Stanford's PTB tokeniser cuts it, in lower case and without punctuation (COCO's caption scores)."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    cut = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    return [cut[index][0] for index in range(len(texts))]


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in FILES if path.stem == "scanqa"] or [ABSENT]
)
def test_recorded_tokenisation(path: Path, java_programs):
    """Texts cut by the tokeniser that the published evaluation leaves out, which one contrast score rests on."""
    recorded = RecordedMetric(path)
    hypotheses = tokenise_ptb([text.rstrip(".") for text in recorded.column("pred")])
    references = recorded.column("answers")
    cut = iter(tokenise_ptb([text for texts in references for text in texts]))
    for item, hypothesis, texts in zip(recorded.items, hypotheses, references, strict=True):
        assert item["expected"]["ptb"] == {"hypothesis": hypothesis, "references": [next(cut) for _ in texts]}
    assert recorded.items and next(cut, None) is None


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in FILES if path.stem in ("scanqa", "scan2cap")] or [ABSENT]
)
def test_recorded_meteor(path: Path, meteor):
    recorded = RecordedMetric(path)
    wanted = [item["expected"]["scores"]["METEOR"] for item in recorded.items]
    for key, columns in get_protocols(recorded).items():
        corpus, items = meteor.score(*columns)
        resampled = compute_meteor_of_counts(meteor.get_counts(*columns).sum(axis=0))
        assert [corpus, resampled] == pytest.approx([recorded.golden[key]["METEOR"]] * 2, abs=TOLERANCE), key
        if key == "expected_corpus_fraction":
            assert len(items) == len(wanted) > 0
            assert items.tolist() == pytest.approx(wanted, abs=TOLERANCE)
            percent = recorded.golden["expected_reference_csv"]["METEOR"]
            assert 100 * corpus == pytest.approx(percent, abs=100 * TOLERANCE)
