"""Scores of all benchmarks: one function per benchmark, from columns to a flat dictionary of named scores.

Columns are lists with one entry per item, in the same order. Scores are shares in [0, 1], CIDEr in [0, 10], and
`num_...` are counts; tables in percent multiply by 100. A score named `_published` follows the published rule where
ours differs; without the suffix it is ours. Scores of one question type have its name after a slash. A score without
items (a type without questions, METEOR without its program) is absent.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from ross3d.metrics.box_text import LabelledBox, parse_labelled_boxes, parse_located_box
from ross3d.metrics.captioning import compute_caption_scores, wrap_caption
from ross3d.metrics.columns import check_boxes, check_columns, check_known, check_texts, compute_group_means
from ross3d.metrics.detection import (
    CATEGORIES,
    PUBLISHED_CATEGORIES,
    Counts,
    compute_category_scores,
    count_detections,
    sum_counts,
)
from ross3d.metrics.grounding import compute_paired_iou, get_f1, match_boxes
from ross3d.metrics.meteor import Meteor
from ross3d.metrics.oriented_boxes import compute_oriented_box_iou, find_degenerate, move_boxes
from ross3d.metrics.qa import (
    SQA3D_QUESTION_TYPES,
    clean_sqa3d_answer,
    compute_exact_match,
    compute_refined_match,
    compute_relative_accuracy,
    compute_verbatim_match,
    convert_number,
    extract_letter,
    parse_first_word,
)


IOU_THRESHOLDS = (0.25, 0.5)
SCANREFER_TYPES = ("unique", "multiple")
MULTI3DREFER_TYPES = ("zt_wo_d", "zt_w_d", "st_wo_d", "st_w_d", "mt")
DIRECTION_TYPES = tuple(f"object_rel_direction_{level}" for level in ("easy", "medium", "hard"))
VSIBENCH_CHOICES = (*DIRECTION_TYPES, "object_rel_distance", "route_planning", "obj_appearance_order")
VSIBENCH_NUMBERS = ("object_abs_distance", "object_counting", "object_size_estimation", "room_size_estimation")
VSTIBENCH_CHOICES = (
    *(f"obj_obj_relative_pos_{axis}" for axis in ("nf", "ud", "lr")),
    *(f"camera_obj_rel_dist_v{version}" for version in (1, 2, 3)),
    "camera_movement_direction",
)
VSTIBENCH_NUMBERS = ("camera_obj_abs_dist", "camera_displacement", "camera_obj_dist_change")
CVBENCH_SOURCES = {"ADE20K": "2d", "COCO": "2d", "Omni3D": "3d"}
Scores = dict[str, float]
# A score of each item, (N,) float64, by name; a benchmark's score of that name is its mean.
Values = dict[str, np.ndarray]


def score_values(values: Values, groups: Sequence[str] | None = None) -> Scores:
    """The mean of each score over all items and, as `NAME/GROUP`, over those of each group."""
    scores = {}
    for name, scores_of_items in values.items():
        scores[name] = float(scores_of_items.mean())
        if groups is not None:
            means = compute_group_means(scores_of_items, groups)
            scores |= {f"{name}/{group}": mean for group, mean in means.items()}
    return scores


def score_captions(hypotheses: list[str], references: list[list[str]], meteor: Meteor | None) -> Scores:
    """BLEU-1..4, CIDEr, ROUGE-L, and METEOR if its program is given."""
    scores = compute_caption_scores(hypotheses, references)
    if meteor is not None:
        scores["METEOR"] = meteor.score(hypotheses, references)[0]
    return scores


def get_scanqa_captions(predictions: list[str], references: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Answers and references in the form in which they are scored as captions."""
    check_texts("predictions", predictions)
    return [text.rstrip(".") for text in predictions], references


def compute_scanqa_values(predictions: list[str], references: list[list[str]]) -> Values:
    """`exact_match` and `exact_match_published` of each answer; see `score_scanqa`."""
    return {
        "exact_match": compute_exact_match(predictions, references).astype(np.float64),
        "exact_match_published": compute_verbatim_match(predictions, references).astype(np.float64),
    }


def score_scanqa(predictions: list[str], references: list[list[str]], meteor: Meteor | None = None) -> Scores:
    """ScanQA: caption scores of the answer without final periods, and exact match with any reference.

    Texts are neither lower-cased nor tokenised (published). `exact_match_published` compares letter by letter;
    `exact_match` ignores case, runs of blanks and final periods.

    Args:
        predictions (list of `str`): answers as the model gave them.
        references (list of list of `str`): all answers of each question.
        meteor (`Meteor`, *optional*): the running program.
    """
    num_items = check_columns(predictions=predictions, references=references)
    scores = score_captions(*get_scanqa_captions(predictions, references), meteor)
    return scores | score_values(compute_scanqa_values(predictions, references)) | {"num_items": num_items}


def compute_sqa3d_values(predictions: list[str], references: list[str]) -> Values:
    """`exact_match`, `refined_exact_match` and `refined_exact_match_published` of each answer; see `score_sqa3d`."""
    check_texts("predictions", predictions)
    check_texts("references", references)
    cleaned = [[clean_sqa3d_answer(text) for text in column] for column in (predictions, references)]
    matches = {
        "exact_match": np.array([prediction == answer for prediction, answer in zip(*cleaned, strict=True)]),
        "refined_exact_match": compute_refined_match(*cleaned),
        "refined_exact_match_published": compute_refined_match(*cleaned, rule="substring"),
    }
    return {name: values.astype(np.float64) for name, values in matches.items()}


def score_sqa3d(predictions: list[str], references: list[str], question_types: list[str]) -> Scores:
    """SQA3D: exact match of cleaned answers, for all questions and each type, and refined exact match ("EM-R").

    The two refined scores differ in when one answer contains the other: see `compute_refined_match`.

    Args:
        predictions, references (list of `str`): unprocessed; both are cleaned here.
        question_types (list of `str`): what, is, how, can, which or others: the start of the question.
    """
    num_items = check_columns(predictions=predictions, references=references, question_types=question_types)
    check_known("question_types", question_types, SQA3D_QUESTION_TYPES)
    values = compute_sqa3d_values(predictions, references)
    by_type = score_values({"exact_match": values["exact_match"]}, question_types)
    return score_values(values) | by_type | {"num_items": num_items}


def get_scan2cap_captions(predictions: list[str], references: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Captions and references as they are scored."""
    check_texts("predictions", predictions)
    return [wrap_caption(text) for text in predictions], [
        [wrap_caption(text) for text in texts] for texts in references
    ]


def score_scan2cap(predictions: list[str], references: list[list[str]], meteor: Meteor | None = None) -> Scores:
    """Scan2Cap: caption scores over all objects of texts in lower case, split and wrapped in "sos ... eos".

    "@0.5" means that an object without a proposal of IoU 0.5 has the empty text as its prediction; it must not be left
    out. `num_empty` counts them.

    Args:
        predictions (list of `str`): one per object.
        references (list of list of `str`): all annotations of each object.
        meteor (`Meteor`, *optional*): the running program.
    """
    num_items = check_columns(predictions=predictions, references=references)
    scores = score_captions(*get_scan2cap_captions(predictions, references), meteor)
    return scores | {"num_items": num_items, "num_empty": sum(not text for text in predictions)}


def find_hits(overlaps: np.ndarray, suffix: str = "") -> Values:
    """`accuracy@0.25` and `@0.5` of each item: 1 where its overlap (N,) reaches the threshold, else 0."""
    return {f"accuracy@{t}{suffix}": (overlaps >= t).astype(np.float64) for t in IOU_THRESHOLDS}


def compute_scanrefer_values(predictions: list[Sequence[float] | None], references: list[Sequence[float]]) -> Values:
    """`accuracy@0.25`, `accuracy@0.5` and both as published, of each expression; see `score_scanrefer`."""
    exact = compute_paired_iou(predictions, references, union_eps=0.0).astype(np.float32)
    return find_hits(exact) | find_hits(compute_paired_iou(predictions, references), "_published")


def score_scanrefer(
    predictions: list[Sequence[float] | None],
    references: list[Sequence[float]],
    question_types: list[str],
) -> Scores:
    """ScanRefer: accuracy at IoU 0.25 and 0.5 of one box per expression, over all, unique and multiple objects.

    The published scores add 1e-8 to the union, so an IoU of exactly 0.5 is a miss for small boxes; ours add nothing
    and round the IoU to float32, so it is a hit. A box without volume has IoU 0; `num_degenerate` counts those
    predicted.

    Args:
        predictions (list of boxes (6,)): centre and size, metres; None for no box, which is a miss.
        references (list of boxes (6,)): the target objects.
        question_types (list of `str`): unique or multiple.
    """
    num_items = check_columns(predictions=predictions, references=references, question_types=question_types)
    check_known("question_types", question_types, SCANREFER_TYPES)
    scores = score_values(compute_scanrefer_values(predictions, references), question_types)
    boxes = np.array([np.ravel(box) for box in predictions if box is not None]).reshape(-1, 6)
    counts = {"num_missing": num_items - len(boxes), "num_degenerate": int(find_degenerate(boxes).sum())}
    return scores | {"num_items": num_items} | counts


def compute_multi3drefer_values(
    predictions: list[Sequence[Sequence[float]]], references: list[Sequence[Sequence[float]]]
) -> Values:
    """`f1@0.25` and `f1@0.5` of each expression; see `score_multi3drefer`."""
    columns = (("predictions", predictions), ("references", references))
    checked = [[check_boxes(f"{name}[{item}]", boxes, 6) for item, boxes in enumerate(rows)] for name, rows in columns]
    pairs = list(zip(*checked, strict=True))
    matched = [match_boxes(*pair) for pair in pairs]
    return {
        f"f1@{t}": np.array([get_f1(iou, *map(len, pair), t) for iou, pair in zip(matched, pairs, strict=True)])
        for t in IOU_THRESHOLDS
    }


def score_multi3drefer(
    predictions: list[Sequence[Sequence[float]]],
    references: list[Sequence[Sequence[float]]],
    question_types: list[str],
) -> Scores:
    """Multi3DRefer: mean F1 at IoU 0.25 and 0.5 of sets of boxes, over all expressions and each type.

    Args:
        predictions (list of boxes (n, 6)): the selected ones, possibly none; see `select_proposals`.
        references (list of boxes (m, 6)): the target objects, possibly none.
        question_types (list of `str`): zt_wo_d, zt_w_d, st_wo_d, st_w_d or mt.
    """
    num_items = check_columns(predictions=predictions, references=references, question_types=question_types)
    check_known("question_types", question_types, MULTI3DREFER_TYPES)
    scores = score_values(compute_multi3drefer_values(predictions, references), question_types)
    boxes = np.concatenate([check_boxes("predictions", boxes, 6) for boxes in predictions])
    return scores | {"num_items": num_items, "num_degenerate": int(find_degenerate(boxes).sum())}


def score_choices_and_numbers(
    predictions: list[str],
    references: list[str | float],
    question_types: list[str],
    choices: Sequence[str],
    numbers: Sequence[str],
    error: Literal["absolute", "signed"] = "absolute",
) -> np.ndarray:
    """Score of each item: right or wrong for choices, mean relative accuracy for numbers, with the published parser.

    Args:
        choices, numbers: the question types answered by a choice, and by a number.
        error (`str`): see `compute_relative_accuracy`.

    Returns:
        (number of items,) in [0, 1]; NaN where the published rule for numbers has no score.
    """
    check_columns(predictions=predictions, references=references, question_types=question_types)
    check_known("question_types", question_types, (*choices, *numbers))
    check_texts("predictions", predictions)
    words = [parse_first_word(text) for text in predictions]
    scores = np.array([word.lower() == str(target).lower() for word, target in zip(words, references, strict=True)])
    scores = scores.astype(np.float64)
    rows = np.array([name in numbers for name in question_types])
    if rows.any():
        said, wanted = (
            [convert_number(str(value)) for value, is_number in zip(column, rows, strict=True) if is_number]
            for column in (words, references)
        )
        scores[rows] = compute_relative_accuracy(np.array(said), np.array(wanted), error)
    return scores


def score_tasks(scores: np.ndarray, question_types: Sequence[str], suffix: str = "") -> Scores:
    """Mean of each task, and the unweighted mean of the tasks present; the levels of direction are one task."""
    means = compute_group_means(scores, question_types)
    directions = [means.pop(name) for name in DIRECTION_TYPES if name in means]
    if directions:
        means["object_rel_direction"] = float(np.mean(directions))
    named = {f"{name}{suffix}": mean for name, mean in means.items()}
    overall = {f"overall{suffix}": float(np.mean(list(means.values())))} if means else {}
    return named | overall | {f"num_tasks{suffix}": len(means)}


def get_task_counts(
    scores: np.ndarray, question_types: Sequence[str]
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The counts that `compute_score_interval` resamples for the `overall` of `score_tasks`.

    Args:
        scores (N,), question_types: as in `score_tasks`.

    Returns:
        each item's contribution to each type's sum and number, (N, 2 * types), and a function from sums
        (R, 2 * types) to overall scores (R,). Types without an item in a resample are left out of its mean.
    """
    names = sorted(set(question_types))
    is_scored = (np.array(question_types)[:, None] == names) & ~np.isnan(scores)[:, None]
    counts = np.concatenate([np.where(is_scored, scores[:, None], 0.0), is_scored], axis=1)
    levels = [index for index, name in enumerate(names) if name in DIRECTION_TYPES]
    others = [index for index, name in enumerate(names) if name not in DIRECTION_TYPES]

    def compute_overall(sums: np.ndarray) -> np.ndarray:
        totals, numbers = np.split(sums, 2, axis=1)
        means = np.ma.masked_array(totals, numbers == 0) / np.maximum(numbers, 1)
        directions = means[:, levels].mean(axis=1, keepdims=True)
        tasks = np.ma.concatenate([means[:, others], directions], axis=1)
        return tasks.mean(axis=1).filled(np.nan)

    return counts, compute_overall


def score_vsibench(predictions: list[str], references: list[str | float], question_types: list[str]) -> Scores:
    """VSI-Bench: accuracy of the six kinds of choice, mean relative accuracy of the four kinds of number.

    `overall` is the unweighted mean of the tasks, eight (`num_tasks`) in a complete run.

    Args:
        predictions (list of `str`): answers.
        references (list): the right letter, or the number.
        question_types (list of `str`): the benchmark's names.
    """
    kinds = (VSIBENCH_CHOICES, VSIBENCH_NUMBERS)
    scores = score_choices_and_numbers(predictions, references, question_types, *kinds)
    return score_tasks(scores, question_types) | {"num_items": len(predictions)}


def score_vstibench(predictions: list[str], references: list[str | float], question_types: list[str]) -> Scores:
    """VSTI-Bench: as VSI-Bench, but every question type is a separate task.

    Targets may be negative, since distances can shrink. The published rule divides by them, so any number is right for
    a negative target, and fails at 0, so the item is left out. Ours divides by the absolute value; 0 is right for 0.

    Args:
        predictions (list of `str`): answers.
        references (list): the right letter (`mc_answer`), or the number.
        question_types (list of `str`): the benchmark's names.
    """
    columns = (predictions, references, question_types, VSTIBENCH_CHOICES, VSTIBENCH_NUMBERS)
    scores = score_tasks(score_choices_and_numbers(*columns), question_types)
    published = score_tasks(score_choices_and_numbers(*columns, error="signed"), question_types, "_published")
    return scores | published | {"num_items": len(predictions)}


def compare_letters(predictions: list[str], references: list[str], rule: str) -> np.ndarray:
    """Which answers choose the right letter, (N,) bool.

    Args:
        references (list of `str`): letters as these benchmarks write them, "(B)".
    """
    check_texts("predictions", predictions)
    check_texts("references", references)
    for index, target in enumerate(references):
        if len(target) != 3 or target[::2] != "()":
            raise ValueError(f'references[{index}]: expected a letter in brackets such as "(B)", got {target!r}.')
    letters = [extract_letter(text, rule) for text in predictions]
    return np.array([letter == target[1] for letter, target in zip(letters, references, strict=True)])


def score_cvbench(
    predictions: list[str], references: list[str], sources: list[str], question_types: list[str]
) -> Scores:
    """CV-Bench: mean accuracy of the two sources in 2D, of the one in 3D, of both, and of each task.

    Args:
        predictions (list of `str`): answers; the letter is found as `extract_letter` says.
        references (list of `str`): "(A)" to "(F)".
        sources (list of `str`): ADE20K, COCO or Omni3D.
        question_types (list of `str`): Count, Relation, Distance, Depth.
    """
    columns = {"predictions": predictions, "references": references}
    num_items = check_columns(**columns, sources=sources, question_types=question_types)
    check_known("sources", sources, tuple(CVBENCH_SOURCES))
    scores: Scores = {}
    for rule, suffix in (("standalone", ""), ("first_capital", "_published")):
        hits = compare_letters(predictions, references, rule)
        by_source = compute_group_means(hits, sources)
        parts = {
            part: float(np.mean([mean for source, mean in by_source.items() if CVBENCH_SOURCES[source] == part]))
            for part in sorted({CVBENCH_SOURCES[source] for source in by_source})
        }
        scores |= {f"accuracy_{part}{suffix}": mean for part, mean in parts.items()}
        if len(parts) == len(set(CVBENCH_SOURCES.values())):
            scores[f"accuracy{suffix}"] = float(np.mean(list(parts.values())))
        scores |= {
            f"accuracy{suffix}/{name}": mean for name, mean in compute_group_means(hits, question_types).items()
        }
    return scores | {"num_items": num_items}


def score_blink(predictions: list[str], references: list[str], question_types: list[str]) -> Scores:
    """BLINK: accuracy over all items and of each sub-task, and the unweighted mean of the sub-tasks.

    Args:
        predictions (list of `str`): answers; the letter is found as `extract_letter` says.
        references (list of `str`): "(A)" to "(F)".
        question_types (list of `str`): sub-tasks.
    """
    num_items = check_columns(predictions=predictions, references=references, question_types=question_types)
    scores: Scores = {}
    for rule, suffix in (("standalone", ""), ("first_capital", "_published")):
        hits = compare_letters(predictions, references, rule)
        means = compute_group_means(hits, question_types)
        scores |= {f"accuracy{suffix}": float(hits.mean()), f"task_mean{suffix}": float(np.mean(list(means.values())))}
        scores |= {f"accuracy{suffix}/{name}": mean for name, mean in means.items()}
    return scores | {"num_items": num_items}


def count_scannet_det(
    predictions: list[str],
    references: list[list[dict[str, Any]]],
    text_rule: Literal["whole_text", "lines"] = "whole_text",
    box_rule: Literal["no_volume", "small_faces"] = "no_volume",
) -> tuple[list[Counts], int]:
    """Hits and misses of each item, and the number of predicted boxes; see `score_scannet_det`."""
    check_texts("predictions", predictions)
    targets = [
        [LabelledBox(box["label"], check_boxes(f"references[{item}]", [box["bbox_3d"]], 9)[0]) for box in boxes]
        for item, boxes in enumerate(references)
    ]
    boxes = [parse_labelled_boxes(text, text_rule) for text in predictions]
    return count_detections(boxes, targets, box_rule), sum(map(len, boxes))


def score_scannet_det(predictions: list[str], references: list[list[dict[str, Any]]]) -> Scores:
    """Detection in windows of ScanNet views: precision, recall and F1, means over 8, 20 and 31 categories.

    The published scores read one record per line, give boxes with small faces an IoU of 0, and average over a list of
    31 names with "lamp" twice and "towl"; ours also read lists, accept every box that has a volume, and average over
    the 30 intended categories.

    Args:
        predictions (list of `str`): answers.
        references (list): boxes of each item, each with "label" and "bbox_3d", nine numbers in the coordinates of the
            first view.
    """
    num_items = check_columns(predictions=predictions, references=references)
    rules = (
        ("", "whole_text", "no_volume", CATEGORIES),
        ("_published", "lines", "small_faces", PUBLISHED_CATEGORIES),
    )
    scores: Scores = {}
    for suffix, text_rule, box_rule, categories in rules:
        counts, num_boxes = count_scannet_det(predictions, references, text_rule, box_rule)
        totals = sum_counts(counts)
        for group, names in categories.items():
            means = compute_category_scores(totals, names)
            scores |= {f"{name}_{group}{suffix}": mean for name, mean in means.items()}
        scores[f"num_boxes{suffix}"] = num_boxes
    return scores | {"num_items": num_items}


def compute_located_overlaps(
    predictions: list[str],
    references: np.ndarray,
    cam2world: list[Any],
    *,
    convention: Literal["ZXY", "zxy"] = "ZXY",
    text_rule: Literal["whole_text", "lines"] = "whole_text",
    box_rule: Literal["no_volume", "small_faces"] = "no_volume",
) -> tuple[np.ndarray, np.ndarray]:
    """IoU of the box that each answer gives in one of its views with the target box in the world.

    Args:
        predictions (list of `str`): answers with "frame" and "bbox_3d".
        references (N, 9): boxes in the aligned world; their angles are "ZXY".
        cam2world (list of (V, 4, 4)): of each item's views, in the aligned world.
        convention (`str`): of the angles when boxes are transformed to the world. The results are always read as
            "ZXY" (the published inconsistency, with "zxy").

    Returns:
        IoU (N,), 0 without a readable box; the boxes (N, 9) in the world, NaN without a readable box.
    """
    overlaps, boxes = np.zeros(len(references)), np.full((len(references), 9), np.nan)
    found = [
        parse_located_box(text, len(views), text_rule) for text, views in zip(predictions, cam2world, strict=True)
    ]
    rows = [row for row, located in enumerate(found) if located is not None]
    if rows:
        transforms = np.array([np.asarray(cam2world[row], np.float64)[found[row].view] for row in rows])
        boxes[rows] = move_boxes(np.array([found[row].box for row in rows]), transforms, convention)
        overlaps[rows] = compute_oriented_box_iou(boxes[rows], references[rows], rule=box_rule)[0]
    return overlaps, boxes


def score_vgllm_scanrefer(
    predictions: list[str],
    references: list[Sequence[float]],
    cam2world: list[Any],
) -> Scores:
    """ScanRefer answered by text with a view and a box in it (VG-LLM): accuracy at IoU 0.25 and 0.5.

    Three variants: ours (angles "ZXY" throughout, answers over several lines, boxes with any volume), `_published` (as
    first released: angles transformed as "zxy", read as "ZXY") and `_published_ZXY` (as released later).

    Args:
        predictions (list of `str`): answers with "frame" and "bbox_3d".
        references (list of boxes (9,)): the target objects, in the aligned world.
        cam2world (list of (V, 4, 4)): of each item's views, in the aligned world: `axis_align_matrix @ cam2world`.
    """
    num_items = check_columns(predictions=predictions, references=references, cam2world=cam2world)
    check_texts("predictions", predictions)
    targets = check_boxes("references", references, 9)
    variants = {
        "": {},
        "_published": {"convention": "zxy", "text_rule": "lines", "box_rule": "small_faces"},
        "_published_ZXY": {"text_rule": "lines", "box_rule": "small_faces"},
    }
    scores: Scores = {}
    for suffix, settings in variants.items():
        overlaps, boxes = compute_located_overlaps(predictions, targets, cam2world, **settings)
        scores |= score_values(find_hits(overlaps.astype(np.float32), suffix))
        boxes = boxes[~np.isnan(boxes).any(axis=1)]
        scores[f"num_unread{suffix}"] = num_items - len(boxes)
        rule = settings.get("box_rule", "no_volume")
        scores[f"num_degenerate{suffix}"] = int(find_degenerate(boxes, rule).sum())
    return scores | {"num_items": num_items}


__all__ = [
    "compute_multi3drefer_values",
    "compute_scanqa_values",
    "compute_scanrefer_values",
    "compute_sqa3d_values",
    "count_scannet_det",
    "find_hits",
    "get_scan2cap_captions",
    "get_scanqa_captions",
    "compute_located_overlaps",
    "get_task_counts",
    "score_blink",
    "score_choices_and_numbers",
    "score_cvbench",
    "score_multi3drefer",
    "score_scan2cap",
    "score_scannet_det",
    "score_scanqa",
    "score_scanrefer",
    "score_sqa3d",
    "score_tasks",
    "score_vgllm_scanrefer",
    "score_vsibench",
    "score_vstibench",
]
