"""Oriented boxes: overlap, boxes written as text, and detection scores."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ross3d.metrics.box_text import LabelledBox, parse_labelled_boxes, parse_located_box
from ross3d.metrics.detection import (
    compute_category_scores,
    compute_scores_of_counts,
    count_detections,
    sum_counts,
    tabulate_counts,
)
from ross3d.metrics.grounding import compute_iou
from ross3d.metrics.oriented_boxes import (
    compute_corners,
    compute_oriented_box_iou,
    compute_shared_volume,
    find_degenerate,
    get_rotation_matrices,
    move_boxes,
)


CUBE = [0, 0, 0, 1, 1, 1, 0, 0, 0]
QUARTER = np.pi / 2


def make_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    parts = rng.uniform(-0.4, 0.4, (count, 3)), rng.uniform(0.3, 1.5, (count, 3)), rng.uniform(-4, 4, (count, 3))
    return np.concatenate(parts, axis=1)


def test_rotations_of_both_conventions():
    a, b, c = 0.3, -0.8, 1.1
    about = {axis: Rotation.from_euler(axis, angle).as_matrix() for axis, angle in zip("zxy", (a, b, c), strict=True)}
    angles = np.array([[a, b, c]])
    assert get_rotation_matrices(angles)[0] == pytest.approx(about["z"] @ about["x"] @ about["y"])
    assert get_rotation_matrices(angles, "zxy")[0] == pytest.approx(about["y"] @ about["x"] @ about["z"])
    with pytest.raises(ValueError, match=r"convention: expected values from \['ZXY', 'zxy'\], got \['xyz'\]"):
        get_rotation_matrices(angles, "xyz")


def test_corners_in_the_published_order():
    corners = compute_corners(np.array([[1, 2, 3, 2, 4, 6, QUARTER, 0, 0]]))
    assert corners.shape == (1, 8, 3)
    # Turned by a quarter about z, x points along y and y against x.
    assert corners[0, 0] == pytest.approx([3, 1, 0]) and corners[0, 1] == pytest.approx([3, 1, 6])
    assert corners[0, 6] == pytest.approx([-1, 3, 6])


@pytest.mark.parametrize(
    ("other", "iou"),
    [
        (CUBE, 1),
        ([0.5, 0, 0, 1, 1, 1, 0, 0, 0], 1 / 3),
        ([0, 0, 0, 1, 1, 1, QUARTER, QUARTER, -QUARTER], 1),
        # A square turned by an eighth about its middle: a regular octagon.
        ([0, 0, 0, 1, 1, 1, np.pi / 4, 0, 0], (2 * 2**0.5 - 2) / (2 - (2 * 2**0.5 - 2))),
        ([0, 0, 0, 2, 2, 2, 1.0, 0.5, -0.3], 1 / 8),
        ([1, 0, 0, 1, 1, 1, 0, 0, 0], 0),
        ([3, 0, 0, 1, 1, 1, 0.4, 0, 0], 0),
        ([0, 0, 0, -1, 1, 1, 0, 0, 0], 1),
    ],
)
def test_overlaps_by_hand(other, iou):
    overlaps, degenerate = compute_oriented_box_iou([CUBE], [other])
    assert overlaps[0] == pytest.approx(iou, abs=1e-7) and not degenerate[0]
    assert compute_oriented_box_iou([other], [CUBE])[0][0] == pytest.approx(iou, abs=1e-7)


def test_straight_boxes_overlap_as_boxes_without_angles():
    rng = np.random.default_rng(0)
    a, b = make_boxes(rng, 5), make_boxes(rng, 5)
    a[:, 6:] = b[:, 6:] = 0
    expected = np.diag(compute_iou(a[:, :6], b[:, :6], union_eps=0))
    assert compute_oriented_box_iou(a, b)[0] == pytest.approx(expected, abs=1e-7)


def test_shared_volumes_are_what_random_points_say():
    rng = np.random.default_rng(0)
    a, b = make_boxes(rng, 6), make_boxes(rng, 6)
    volumes = compute_shared_volume(a, b)
    for index in range(6):
        points = rng.uniform(-0.5, 0.5, (200_000, 3)) * a[index, 3:6]
        world = points @ get_rotation_matrices(a[index : index + 1, 6:])[0].T + a[index, :3]
        inside = (world - b[index, :3]) @ get_rotation_matrices(b[index : index + 1, 6:])[0]
        share = (np.abs(inside) <= b[index, 3:6] / 2).all(axis=1).mean()
        assert volumes[index] == pytest.approx(share * a[index, 3:6].prod(), abs=0.01)


def test_overlaps_do_not_change_when_both_boxes_move():
    rng = np.random.default_rng(0)
    a, b = make_boxes(rng, 7), make_boxes(rng, 7)
    for convention in ("ZXY", "zxy"):
        transforms = np.tile(np.eye(4), (7, 1, 1))
        transforms[:, :3, :3] = Rotation.random(7, rng=rng).as_matrix()
        transforms[:, :3, 3] = rng.normal(size=(7, 3))
        moved = [move_boxes(boxes, transforms, convention) for boxes in (a, b)]
        before, after = (compute_oriented_box_iou(*pair, convention)[0] for pair in ((a, b), moved))
        assert after == pytest.approx(before, abs=1e-7)
        corners = (
            compute_corners(a, convention) @ transforms[:, :3, :3].transpose(0, 2, 1) + transforms[:, None, :3, 3]
        )
        assert compute_corners(moved[0], convention) == pytest.approx(corners)


def test_degenerate_boxes_are_named_and_score_nothing():
    flat, small = [0, 0, 0, 1, 0, 1, 0.2, 0, 0], [0, 0, 0, 0.01, 0.01, 0.01, 0, 0, 0]
    overlaps, degenerate = compute_oriented_box_iou([flat, small, CUBE], [CUBE, small, flat])
    assert overlaps == pytest.approx([0, 1, 0]) and degenerate.tolist() == [True, False, True]
    overlaps, degenerate = compute_oriented_box_iou([flat, small, CUBE], [CUBE, small, CUBE], rule="small_faces")
    assert overlaps == pytest.approx([0, 0, 1]) and degenerate.tolist() == [True, True, False]
    assert find_degenerate(np.array([CUBE, flat], np.float64)).tolist() == [False, True]
    with pytest.raises(ValueError, match=r"rule: expected values from \['no_volume', 'small_faces'\]"):
        compute_oriented_box_iou([CUBE], [CUBE], rule="faces")


def test_oriented_boxes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"boxes_b: expected 2 boxes, one for each of boxes_a, got 1"):
        compute_oriented_box_iou([CUBE, CUBE], [CUBE])
    with pytest.raises(ValueError, match=r"boxes_a: expected an array of shape \(N, 9\), metres, got shape \(1, 6\)"):
        compute_oriented_box_iou([CUBE[:6]], [CUBE])
    with pytest.raises(ValueError, match=r"transforms: expected 2 finite 4x4 matrices, one per box, got shape"):
        move_boxes(np.array([CUBE, CUBE]), np.eye(4)[None])
    with pytest.raises(ValueError, match=r"with 16 values that are not finite; drop views without a camera"):
        move_boxes(np.array([CUBE]), np.full((1, 4, 4), -np.inf))


def make_located(view=1, box=CUBE) -> str:
    return f'```json\n\t{{"frame": {json.dumps(view)}, "bbox_3d": {json.dumps(box)}}}\n```'


def test_a_box_in_a_view_is_read_from_text():
    for rule in ("whole_text", "lines"):
        located = parse_located_box(make_located(), 3, rule)
        assert located.view == 1 and located.box.tolist() == CUBE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing here",
        make_located(view=3),
        make_located(view=-1),
        make_located(view="1"),
        make_located(box=CUBE[:8]),
        make_located(box="box"),
        make_located(box=[*CUBE[:8], "0"]),
        make_located(box=[1e300] * 9),
        '{"bbox_3d": [0, 0, 0, 1, 1, 1, 0, 0, 0]}',
        '{"frame": 1, "bbox_3d": [0] * 9}',
        "__import__('os').getcwd()  # bbox_3d",
        "[" * 5000 + " bbox_3d",
    ],
)
def test_text_without_a_readable_box_is_none(text):
    assert parse_located_box(text, 3) is None and parse_located_box(text, 3, "lines") is None


def test_a_record_over_several_lines_is_ours_alone():
    text = '{"frame": 2,\n "bbox_3d": [0, 0, 0, 1, 1, 1, 0, 0, 0]}'
    assert parse_located_box(text, 3).view == 2 and parse_located_box(text, 3, "lines") is None
    with pytest.raises(ValueError, match=r"rule: expected values from \['whole_text', 'lines'\]"):
        parse_located_box(text, 3, "words")


def test_labelled_boxes_are_read_line_by_line_and_as_lists():
    rows = [{"label": "bed", "bbox_3d": CUBE}, {"label": "lamp", "bbox_3d": CUBE[:5]}]
    lines = "```json\n[\n" + "".join(f"\t{json.dumps(row)},\n" for row in rows) + "]\n```"
    one_line = json.dumps(rows)
    for text, rule, count in (
        (lines, "lines", 2), (lines, "whole_text", 2), (one_line, "lines", 0), (one_line, "whole_text", 2),
    ):  # fmt: skip
        boxes = parse_labelled_boxes(text, rule)
        assert [box.label for box in boxes] == ["bed", "lamp"][:count], (text, rule)
        assert all(box.box is None for box in boxes[1:])
    assert (
        parse_labelled_boxes('{"label": "bed", "bbox_3d": "x"}\n{"bbox_3d": []}\n{"label": 3, "bbox_3d": [1]}') == []
    )
    assert parse_labelled_boxes("") == []


def label(name: str, x: float = 0.0) -> LabelledBox:
    return LabelledBox(name, np.array([x, *CUBE[1:]], np.float64))


def test_detections_are_counted_by_label():
    predictions = [[label("bed", 0.1), label("bed"), label("sofa"), LabelledBox("lamp", None)], []]
    targets = [[label("bed"), label("lamp")], [label("bed")]]
    counts = count_detections(predictions, targets)
    # The first of two boxes of a bed takes it, although the second fits better.
    assert counts[0] == {
        "bed": {"tp": 1, "fp": 1, "fn": 0},
        "lamp": {"tp": 0, "fp": 1, "fn": 1},
        "sofa": {"tp": 0, "fp": 1, "fn": 0},
    }
    assert counts[1] == {"bed": {"tp": 0, "fp": 0, "fn": 1}}
    assert sum_counts(counts)["bed"] == {"tp": 1, "fp": 1, "fn": 1}


def test_a_detection_counts_above_a_quarter_and_not_at_it():
    # Shifted by 0.6 along one side: shared 0.4 of 1.6, an exact quarter.
    assert count_detections([[label("bed", 0.6)]], [[label("bed")]])[0]["bed"]["tp"] == 0
    assert count_detections([[label("bed", 0.59)]], [[label("bed")]])[0]["bed"]["tp"] == 1


def test_category_scores_by_hand():
    totals = {"bed": {"tp": 1, "fp": 1, "fn": 0}, "lamp": {"tp": 0, "fp": 2, "fn": 1}}
    means = compute_category_scores(totals, ("bed", "lamp", "sink"))
    assert means == pytest.approx({"precision": 0.5 / 3, "recall": 1 / 3, "f1": (2 / 3) / 3})
    table = tabulate_counts([totals, {}], ("bed", "lamp"))
    assert table.tolist() == [[1, 0, 1, 2, 0, 1], [0, 0, 0, 0, 0, 0]]
    precision, recall, f1 = compute_scores_of_counts(np.tile(table[0], (4, 1)))
    assert precision.shape == (4,) and (precision[0], recall[0], f1[0]) == pytest.approx((0.25, 0.5, 1 / 3))


def test_detections_refuse_targets_that_are_no_boxes():
    with pytest.raises(ValueError, match=r"targets\[1\]\[0\]: expected an array of shape \(N, 9\)"):
        count_detections([[], []], [[label("bed")], [LabelledBox("bed", None)]])
    with pytest.raises(ValueError, match=r"got \{'predictions': 2, 'targets': 1\} entries"):
        count_detections([[], []], [[]])
