"""tools/ask.py: from a folder of frames to answers, boxes, a rebuilt view and a page."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from ross3d.tests.test_report import check_page
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import ask


ROOT = Path(__file__).resolve().parents[1]
KITCHEN = ROOT.parent / "shared" / "kitchen"
FEW_STEPS = ["--steps", "2", "--max-new-tokens", "4"]


def run(scan: Path, output: Path, *more: str, model: Path | None = None) -> list:
    given = [str(scan), "--model", str(model or get_checkpoint()), "--output", str(output), *FEW_STEPS]
    return ask.main([*given, *more])


def test_questions_are_answered_in_order_by_words_or_boxes(tmp_path, capsys):
    questions = ["How many beds are there?", "find the bed", "Is there a lamp?", "Find all chairs."]
    answers = run(get_rooms() / "val" / "val-000000", tmp_path / "page.html", "--views", "4", *questions)
    assert [answer.question for answer in answers] == questions
    assert [answer.boxes is not None for answer in answers] == [False, True, False, True]
    said = capsys.readouterr().out
    assert "4 views: frame-000000, frame-000001, frame-000003, frame-000005" in said and answers[0].text in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert check_page(page)["polygon"] == 4 and "having not seen it" in page and "find the bed" in page


def test_every_question_is_grounded_when_asked_to(tmp_path):
    scan = get_rooms() / "val" / "val-000000"
    boxes = json.loads((scan / "boxes.json").read_text())[:2]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    given = ["--ground", "--boxes", str(tmp_path / "boxes.json")]
    (answer,) = run(scan, tmp_path / "page.html", *given, "the bed")
    known = [[pytest.approx(value) for value in row["box"]] for row in boxes]
    assert answer.boxes is not None and all(box in known for box in answer.boxes)


def test_without_boxes_and_teacher_words_are_all_there_is(tmp_path, capsys):
    scan, model = tmp_path / "scan", tmp_path / "model"
    shutil.copytree(get_rooms() / "val" / "val-000000", scan)
    (scan / "boxes.json").unlink()
    shutil.copytree(get_checkpoint(), model, ignore=shutil.ignore_patterns("teacher"))
    (answer,) = run(scan, tmp_path / "page.html", "find the bed", model=model)
    assert answer.boxes is None and "having not seen it" not in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "no boxes were given (--boxes FILE or a boxes.json)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"questions: expected words in each, got \['the bed', ' '\]; ask something"):
        run(scan, tmp_path / "page.html", "the bed", " ", model=model)
    with pytest.raises(ValueError, match="--ground: expected a model with a grounding head, got one without"):
        ask.choose_grounded(["the bed"], ground_all=True, has_boxes=True, has_head=False)
    assert ask.choose_grounded(["find it", "why?"], ground_all=False, has_boxes=True, has_head=False) == [False, False]
    assert ask.choose_grounded(["find it", "why?"], ground_all=False, has_boxes=True, has_head=True) == [True, False]
    assert "this model has no grounding head" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--ground: expected boxes to choose among, got none; give --boxes FILE"):
        run(scan, tmp_path / "page.html", "--ground", "the bed", model=model)


def test_an_axis_align_file_moves_the_cameras(tmp_path):
    matrix = np.eye(4)
    matrix[2, 3] = 5.0
    np.savetxt(tmp_path / "axis_align.txt", matrix)
    scan = get_rooms() / "val" / "val-000000"
    with pytest.raises(ValueError, match="no point lies below ceiling_height"):
        run(scan, tmp_path / "page.html", "--axis-align", str(tmp_path / "axis_align.txt"), "Is there a bed?")


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="no kitchen scan beside the checkout")
def test_a_real_scan_goes_the_whole_way(tmp_path):
    boxes = [{"box": [0.0, 0.0, 0.4, 1.0, 1.5, 0.8]}, {"box": [0.6, 0.0, 0.45, 0.6, 3.0, 0.9]}]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    given = ["--boxes", str(tmp_path / "boxes.json"), "--axis-align", str(KITCHEN / "axis_align.txt")]
    answers = run(KITCHEN, tmp_path / "page.html", *given, "What color is the table?", "find the table")
    assert len(answers) == 2 and answers[1].boxes is not None
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert check_page(page)["polygon"] == 8 and "frame-000940" in page and "from above: sampled" in page
