"""From an evaluation to confidence: the program that calibrates, and who reads its file."""

import json
import shutil
from pathlib import Path

import pytest

from ross3d.bench import unlike_scans
from ross3d.data import likeness
from ross3d.eval import get_fingerprint
from ross3d.tests.test_confidence import make_records
from ross3d.tests.test_eval import FEW_STEPS, door, read_lines
from ross3d.tests.test_report import check_page
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import ask, calibrate
from ross3d.training.calibration import get_weights_mark, load_calibration, save_calibration


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "model"
    shutil.copytree(get_checkpoint(), folder, ignore=shutil.ignore_patterns("teacher"))
    return folder


@pytest.fixture
def run(model, tmp_path) -> Path:
    """An evaluation by hand: the answers of `make_records` about the held-out rooms and others."""
    rooms, records = ["val-000000", "val-000001", "val-000002"], make_records()
    for number, record in enumerate(records[:60]):
        record["scene_id"] = rooms[number % 3]
    settings = {
        "model": str(model), "model_sha256": get_fingerprint(str(model)), "data": str(get_rooms()), "num_views": 4,
        "decode": "exact", "view_size": 64, "blind": False,
        "tasks": {"rooms": {"split": "val", "scene_path": "{split}/{scene_id}", "proposals": "depth"}},
    }  # fmt: skip
    (tmp_path / "metrics.json").write_text(json.dumps({"scores": {"rooms": {"count": 1}}, "settings": settings}))
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return tmp_path


def change_settings(run: Path, **changes) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps(metrics | {"settings": metrics["settings"] | changes}))


def test_a_calibration_is_written_beside_the_weights(run, model, capsys):
    content = calibrate.main([str(run), "--scans", "0"])
    assert load_calibration(model) == content and content["scans"] is None
    assert set(content["confidence"]) == {"text", "rooms/color", "box", "no_target"}
    assert content["evaluation"]["proposals"] == "depth"
    said = capsys.readouterr().out
    assert "answers in words" in said and str(model / "calibration.json") in said
    # The model is still the one that was evaluated: calibrating again is no change.
    assert calibrate.main([str(run), "--scans", "0"]) == content


def test_scans_are_compared_where_there_are_enough(run, model, monkeypatch, capsys):
    assert calibrate.main([str(run)])["scans"] is None
    assert "scans are not compared with the training: 10 scans in the split 'train'" in capsys.readouterr().out
    names = [f"val-{number:06d}" for number in range(3)]
    monkeypatch.setattr(calibrate, "MIN_SCANS", 1)
    monkeypatch.setattr(likeness, "MIN_SCANS", 1)
    monkeypatch.setattr(calibrate, "is_for_fitting", lambda name: name == names[0])
    records = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    kept = [record for record in records if record["scene_id"] in names]
    monkeypatch.setattr(calibrate, "fit_confidences", lambda records, where: {"text": {"slope": 1, "offset": 0}})
    monkeypatch.setattr(calibrate, "format_calibration", lambda content: "")
    (run / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    scans = calibrate.main([str(run)])["scans"]
    assert scans["training"]["num_scans"] == 10 and scans["num_held_out"] == 3 and scans["threshold"] > 0
    assert scans["training"]["numbers"]["num_views"] == {"low": 4, "middle": 4, "high": 4}
    # The harness that changes rooms, on the same three.
    figures = unlike_scans.run(model, get_rooms(), "val", 3)
    assert figures["rooms"] == 3 and figures["changes"]["none"]["warned"] == 0
    assert figures["changes"]["everything x 3"]["named"]["camera_height"] == 1
    assert figures["changes"]["a quarter as bright"]["named"]["brightness"] == 1


def test_other_runs_and_models_are_refused(run, model, tmp_path):
    change_settings(run, blind=True)
    with pytest.raises(
        ValueError, match="expected an evaluation in which the model saw the rooms, got one with --blind"
    ):
        calibrate.main([str(run)])
    change_settings(run, blind=False, model_sha256="0" * 64)
    with pytest.raises(ValueError, match="expected the model that was evaluated .* got another one in"):
        calibrate.main([str(run)])
    change_settings(run, model="user/name")
    with pytest.raises(ValueError, match="beside whose weights calibration.json is written, got 'user/name'; copy it"):
        calibrate.main([str(run)])


def write_calibration(model: Path, scans: dict | None = None) -> None:
    row = {
        "slope": 0.5, "offset": 0.25, "accuracy": 0.5, "ranking": None, "reported_on": {"questions": 9},
        "error_before": 0.2, "error_after": 0.1, "error_by_chance": 0.05,
        "table": [{"low": 0.4, "high": 0.5, "count": 9, "predicted": 0.45, "observed": 0.5, "interval": [0.2, 0.8]}],
    }  # fmt: skip
    rows = {"text": row, "box": row, "no_target": row}
    content = {"version": 1, "weights": get_weights_mark(model), "evaluation": {"proposals": "ground_truth"}}
    save_calibration(model, content | {"confidence": rows, "scans": scans})


@pytest.mark.parametrize(
    ("calibrated", "sources", "warned"),
    [("depth", "depth", False), ("depth", "none", False), ("depth", "depth, given", True), ("none", "given", True)],
)
def test_boxes_of_another_source_are_warned_of(recwarn, calibrated, sources, warned):
    """Tasks without boxes are not: nothing of theirs depends on the source."""
    door.warn_of_other_boxes({"evaluation": {"proposals": calibrated}}, sources)
    door.warn_of_other_boxes(None, sources)
    assert [str(one.message) for one in recwarn] == warned * [
        f"the confidence of boxes was calibrated with --proposals {calibrated}; with {sources} it is a guess"
    ]


def test_an_evaluation_gets_confidence_without_asking_again(model, tmp_path, capsys):
    (model / "calibration.json").unlink(missing_ok=True)
    given = [
        "--model",
        model,
        "--task",
        "rooms",
        "--data",
        get_rooms(),
        "--output",
        tmp_path,
        "--limit",
        "2",
        *FEW_STEPS,
    ]
    arguments = door.parse_arguments([str(value) for value in given])
    door.main(arguments)
    assert "no calibration.json for these weights: answers" in capsys.readouterr().out
    raw = read_lines(tmp_path / "predictions.jsonl")
    assert not any("confidence" in record for record in raw)
    for record in raw:
        names = {"best_score", "margin"} if record["prediction"] is None else {"token_probability"}
        assert names <= set(record)
    before = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Reliability" not in before and "token probability 0." in before
    write_calibration(model)
    with pytest.warns(
        UserWarning, match="boxes was calibrated with --proposals ground_truth; with depth it is a guess"
    ):
        door.main(arguments)
    sure = read_lines(tmp_path / "predictions.jsonl")
    assert [{k: v for k, v in record.items() if k != "confidence"} for record in sure] == raw
    assert all(0 < record["confidence"] < 1 for record in sure)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Reliability: answers in words" in page and check_page(page)["details"] > check_page(before)["details"]


def test_answers_about_a_scan_have_confidence_and_warnings(model, tmp_path, capsys):
    numbers = {"brightness": {"low": 0.98, "middle": 0.99, "high": 1.0}}
    look = {"mean": [0.0], "directions": [], "variances": [], "rest": 1.0, "high": 1.0}
    size = 2 * json.loads((model / "config.json").read_text())["text_config"]["hidden_size"]
    look |= {"mean": [0.0] * size, "rest": 1e6}
    write_calibration(model, {"threshold": 1.4, "training": {"num_scans": 9, "numbers": numbers, "look": look}})
    scan, page = get_rooms() / "val" / "val-000000", tmp_path / "page.html"
    given = [str(scan), "--model", str(model), "--output", str(page), "--max-new-tokens", "3", "--views", "3"]
    answers = ask.main([*given, "Is there a bed?", "find the bed"])
    said = capsys.readouterr().out
    assert said.count("(confidence ") == 2 and "the views are darker than in the scans that this model was" in said
    record = json.loads(page.with_suffix(".json").read_text())
    assert len(record["unlike_training"]) == 1 and record["answers"][0]["confidence"] == answers[0].confidences[0]
    assert 0 < record["answers"][0]["token_probability"] < 1
    found = record["answers"][1]["boxes"] or [record["answers"][1]]
    assert all({"score", "margin", "confidence"} <= set(box) for box in found)
    assert "the views are darker" in page.read_text(encoding="utf-8")
    (model / "calibration.json").unlink()
    ask.main([*given, "Is there a bed?", "find the bed"])
    said = capsys.readouterr().out
    assert (
        "no calibration.json for this model's weights" in said
        and "(token probability 0." in said
        and "(margin " in said
    )
