"""Boxes that others made: plain lists and masks in ScanNet's benchmark form, and what is refused of both."""

import json

import numpy as np
import pytest

from ross3d.data.box_files import read_box_list, read_mask3d
from ross3d.data.prepare.boxes import make_mask_boxes


ROWS = [[0.5, 1, 0.25, 0.1, 0.2, 0.5], [-2, 1.25, 0.7, 1, 2, 0.3], [3, 0, 1, 0.5, 0.5, 2]]


@pytest.mark.parametrize(
    "content",
    [
        ROWS,
        [{"box": row, "category": "chair"} for row in ROWS],
        {"room": ROWS, "other": []},
        {"scannet/room": ROWS},
    ],
)
def test_lists_of_boxes(tmp_path, content):
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    boxes = read_box_list(str(tmp_path / "boxes.json"), "room")
    assert boxes.dtype == np.float32
    np.testing.assert_array_equal(boxes, np.array(ROWS, np.float32))


def test_an_empty_list_is_no_boxes(tmp_path):
    """Documented shape: a list without boxes is (0, 6)."""
    (tmp_path / "boxes.json").write_text("[]")
    assert read_box_list(tmp_path / "boxes.json", "room").shape == (0, 6)


@pytest.mark.filterwarnings("ignore:boxes.json has no boxes of scene")
def test_lists_that_are_none(tmp_path):
    file = tmp_path / "boxes.json"
    with pytest.raises(FileNotFoundError, match="boxes.json does not exist; expected a JSON list of boxes"):
        read_box_list(file, "room")
    file.write_text(json.dumps({"scene0001_00": ROWS}))
    with pytest.raises(ValueError, match="expected boxes of scene 'room', the file has other scenes only"):
        read_box_list(file, "room")
    file.write_text(json.dumps([row[:5] for row in ROWS]))
    with pytest.raises(ValueError, match=r"boxes.json: expected shape \(K, 6\), got \(3, 5\)"):
        read_box_list(file, "room")


NUM_VERTICES = 37


@pytest.fixture
def export(tmp_path):
    """Five masks: two things, the first twice, an empty one, and one of a single vertex; the list out of order."""
    vertices = np.random.default_rng(4).uniform(-2, 2, (NUM_VERTICES, 3)).astype(np.float32)
    masks = np.zeros((5, NUM_VERTICES), np.uint8)
    masks[0, :9], masks[1, :20], masks[2, 20:33], masks[4, 36] = 1, 1, 1, 1
    scores = (0.4, 0.91, 0.65, 0.8, 0.1)
    (tmp_path / "pred_mask").mkdir()
    lines = []
    for number, (mask, score) in enumerate(zip(masks, scores, strict=True)):
        (tmp_path / "pred_mask" / f"room_{number}.txt").write_text("".join(f"{value}\n" for value in mask))
        lines.append(f"pred_mask/room_{number}.txt {number + 3} {score}")
    (tmp_path / "room.txt").write_text("\n".join(lines) + "\n\n")
    return tmp_path / "room.txt", vertices, masks


def test_masks_become_boxes_by_score(export):
    file, vertices, masks = export
    found = read_mask3d(file, vertices)
    np.testing.assert_array_equal(found.boxes, make_mask_boxes(vertices, masks[[1, 2, 0]]))
    assert found.scores.tolist() == [0.91, 0.65, 0.4] and found.labels == ["4", "5", "3"]
    assert (found.num_empty, found.num_points) == (1, 1)
    corner = found.boxes[0, :3] - found.boxes[0, 3:] / 2
    np.testing.assert_allclose(corner, vertices[:20].min(0), atol=1e-6)
    few = read_mask3d(str(file), vertices, max_proposals=2)
    np.testing.assert_array_equal(few.boxes, found.boxes[:2])


def test_equal_scores_keep_the_order_of_the_file(export):
    file, vertices, masks = export
    file.write_text("pred_mask/room_2.txt 1 0.5\npred_mask/room_0.txt 1 0.5\npred_mask/room_1.txt 1 0.5\n")
    np.testing.assert_array_equal(read_mask3d(file, vertices).boxes, make_mask_boxes(vertices, masks[[2, 0, 1]]))


def test_a_detector_that_found_nothing(export):
    file, vertices, _ = export
    file.write_text("")
    found = read_mask3d(file, vertices)
    assert found.boxes.shape == (0, 6) and found.scores.shape == (0,) and found.labels == []


@pytest.mark.parametrize(
    "line", ["pred_mask/room_0.txt 3", "pred_mask/room_0.txt 3 high", "pred_mask/room_0.txt 3 nan", "a b 0.5 0.5"]
)
def test_lines_that_are_none(export, line):
    file, vertices, _ = export
    file.write_text(f"pred_mask/room_1.txt 3 0.5\n{line}\n")
    with pytest.raises(ValueError, match=r"room.txt, line 2: expected `pred_mask/FILE.txt LABEL SCORE` with a finite"):
        read_mask3d(file, vertices)


def test_masks_that_do_not_fit(export):
    file, vertices, _ = export
    with pytest.raises(
        FileNotFoundError, match="none.txt does not exist; expected a list of masks: pred_mask/FILE.txt"
    ):
        read_mask3d(file.with_name("none.txt"), vertices)
    with pytest.raises(
        ValueError, match=r"room_1.txt: expected a mask value for each of the 36 vertices of the mesh, got 37; use"
    ):
        read_mask3d(file, vertices[:-1])
    with pytest.raises(ValueError, match="expected finite mesh vertices, found NaN or inf"):
        read_mask3d(file, np.where(np.arange(NUM_VERTICES)[:, None] == 5, np.nan, vertices))
    mask = file.parent / "pred_mask" / "room_1.txt"
    mask.write_text(mask.read_text().replace("1", "0.7", 1))
    with pytest.raises(ValueError, match=r"room_1.txt: expected 0 or 1 for each vertex, got '0.7'; apply a threshold"):
        read_mask3d(file, vertices)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match="room_1.txt is in the list of masks but missing"):
        read_mask3d(file, vertices)
