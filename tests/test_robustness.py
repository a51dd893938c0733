"""Errors of scans have the size that they are said to have; a run adds the lines that are missing, and draws them."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from ross3d.bench import robustness
from ross3d.bench.robustness import CLEAN, CURVES, list_errors, main, make_room, parse_models, read_lines
from ross3d.scenes.build import build_scenes, make_scene
from ross3d.tests.tiny import get_checkpoint


@pytest.fixture(scope="module", params=[(0, 6, (48, 32)), (4, 8, (32, 40))])
def scene(request):
    index, views, size = request.param
    return make_scene(2, "val", index, num_views=views, image_size=size, bev_size=8)[0]


def perturb(scene, kind: str, level: float):
    scene = replace(scene, proposal_boxes=np.zeros((400, 6), np.float32))
    return CURVES[kind].perturb(scene, level, np.random.default_rng(0))


def test_noise_is_a_share_of_the_depth(scene):
    for level in (1, 10):
        ratio = perturb(scene, "depth_noise", level).depth_maps / scene.depth_maps
        assert ratio.dtype == np.float32 and abs(ratio.mean() - 1) < level / 500
        assert ratio.std() == pytest.approx(level / 100, rel=0.05)


def test_holes_have_no_reading_and_come_in_squares(scene):
    for level in (10, 75):
        holes = perturb(scene, "depth_holes", level).depth_maps
        lost = holes == 0
        assert lost.mean() == pytest.approx(level / 100, abs=0.05)
        assert np.array_equal(holes[~lost], scene.depth_maps[~lost])
        assert np.array_equal(lost[:, 0::2, 0::2], lost[:, 1::2, 1::2])


def test_cameras_are_turned_and_moved_by_their_error(scene):
    scene = replace(scene, cam2world=scene.cam2world.repeat(200, axis=0), images=scene.images.repeat(200, axis=0))
    turned = perturb(scene, "camera_turn", 5).cam2world
    between = np.swapaxes(scene.cam2world[:, :3, :3], 1, 2) @ turned[:, :3, :3]
    degrees = np.rad2deg(np.arccos(np.clip((np.trace(between, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert np.sqrt((degrees**2).mean()) == pytest.approx(5, rel=0.1)
    assert np.array_equal(turned[:, :3, 3], scene.cam2world[:, :3, 3])
    moved = perturb(scene, "camera_move", 10).cam2world
    metres = np.linalg.norm(moved[:, :3, 3] - scene.cam2world[:, :3, 3], axis=1)
    assert np.sqrt((metres**2).mean()) == pytest.approx(0.1, rel=0.1)
    assert np.array_equal(moved[:, :3, :3], scene.cam2world[:, :3, :3])


def test_focal_lengths_views_and_proposals(scene):
    scaled = perturb(scene, "focal_length", 5).intrinsics / np.where(scene.intrinsics == 0, 1, scene.intrinsics)
    assert abs(scaled[0, 0] - 1) == pytest.approx(0.05) and scaled[0, 0] == scaled[1, 1]
    assert np.array_equal(scaled[:, 2], np.ones(3))
    few = perturb(scene, "views", 3)
    assert few.num_views == len(few.depth_maps) == len(few.cam2world) == len(few.view_names) == 3
    assert few.view_names[0] == "frame-000000" and few.view_names[1] == f"frame-{scene.num_views // 3:06d}"
    assert perturb(scene, "views", 50).num_views == scene.num_views
    assert len(perturb(scene, "missing_proposals", 25).proposal_boxes) == pytest.approx(300, abs=40)


def test_proposals_come_from_the_depth_with_its_errors(scene):
    clean, is_refused, has_none = make_room(scene, CLEAN, 0.0)
    assert not is_refused and not has_none and len(clean.proposal_boxes) > 3
    noisy = make_room(scene, "depth_noise", 10.0)[0]
    assert not np.array_equal(noisy.depth_maps, scene.depth_maps)
    assert noisy.proposal_boxes.shape != clean.proposal_boxes.shape or (
        not np.allclose(noisy.proposal_boxes, clean.proposal_boxes)
    )
    fewer = make_room(scene, "missing_proposals", 50.0)[0].proposal_boxes
    assert 0 < len(fewer) < len(clean.proposal_boxes)
    assert all((box == clean.proposal_boxes).all(axis=1).any() for box in fewer)
    again = make_room(scene, "depth_noise", 10.0)[0]
    assert np.array_equal(again.depth_maps, noisy.depth_maps)


def test_rooms_without_proposals_and_with_wrong_cameras_are_counted(scene, monkeypatch):
    def refuse(scene):
        raise ValueError("much lies below the floor")

    for name in ("propose_boxes", "check_consistency"):
        monkeypatch.setattr(robustness, name, refuse)
    made, is_refused, has_none = make_room(scene, "focal_length", 10.0)
    assert is_refused and has_none and made.proposal_boxes.shape == (0, 6)


def test_models_have_names_of_their_own():
    assert parse_models(["outputs/a/model", "blind=outputs/b"]) == {"model": "outputs/a/model", "blind": "outputs/b"}
    for texts in (["a/model", "b/model"], ["name="]):
        with pytest.raises(ValueError, match="--models: expected models of different names, got .*; write NAME="):
            parse_models(texts)


@pytest.fixture
def run_small(tmp_path, monkeypatch):
    """Runs and draws two rooms with spatial questions; returns the output folder."""
    rooms = {"num_train": 1, "num_val": 3, "num_views": 6, "image_size": (64, 64), "bev_size": 8, "workers": 1}
    build_scenes(tmp_path / "rooms", **rooms, splits=["val"], question_set="spatial")
    levels = {"depth_holes": (90,), "views": (2,)}
    monkeypatch.setattr(robustness, "CURVES", {k: replace(CURVES[k], levels=v) for k, v in levels.items()})

    def run(*models: str, kinds: str) -> None:
        given = ["--data", str(tmp_path / "rooms"), "--output", str(tmp_path / "out"), "--rooms", "2"]
        main(["run", *given, "--kinds", kinds, "--models", *models])

    run.output = tmp_path / "out"
    return run


def test_a_run_adds_lines_with_intervals_and_draws_them(run_small, monkeypatch):
    model = str(get_checkpoint())
    run_small(model, kinds="views")
    lines = read_lines(run_small.output / "robustness.jsonl")
    assert [(line["kind"], line["level"]) for line in lines] == [(CLEAN, 0), ("views", 2)]
    assert [line["views"] for line in lines] == [6, 2] and all(line["rooms"] == 2 for line in lines)
    for line in lines:
        assert line["commit"] and line["split"] == "val" and line["model"] == "checkpoint"
        score = line["scores"]["grounding_unique"]
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1 and score["num_scenes"] == 2
    assert "object_abs_distance" in lines[1]["scores"] and "obj_appearance_order" not in lines[1]["scores"]
    # Neither is evaluated again; a second model is, and another kind.
    called, evaluate = [], robustness.evaluate_rooms
    monkeypatch.setattr(robustness, "evaluate_rooms", lambda *given: called.append(given[0]) or evaluate(*given))
    run_small(model, kinds="views")
    assert called == [] and read_lines(run_small.output / "robustness.jsonl") == lines
    run_small(model, f"other={model}", kinds="views,depth_holes")
    assert called == [model] * 4
    names = [(line["model"], line["kind"]) for line in read_lines(run_small.output / "robustness.jsonl")[2:]]
    assert names == [("other", CLEAN), ("other", "views"), ("checkpoint", "depth_holes"), ("other", "depth_holes")]
    assert list((run_small.output / "data").iterdir()) == []
    drawing = ElementTree.parse(run_small.output / "views.svg").getroot()
    texts = [element.text for element in drawing.iter() if element.text]
    assert {"Scores over views", "checkpoint", "other", "existence, %", "grounding unique, %"} <= set(texts)
    assert "obj appearance order, %" not in texts
    curves = [element for element in drawing.iter() if element.tag.endswith("polyline")]
    assert len(curves) == 2 * sum(text.endswith(", %") for text in texts)


def test_an_evaluation_that_was_cut_off_goes_on_with_the_same_rooms(run_small, monkeypatch):
    evaluate, written = robustness.evaluate, robustness.write_rgbd_folder
    counts = []
    monkeypatch.setattr(robustness, "write_rgbd_folder", lambda *given: counts.append(1) or written(*given))

    def stop(arguments):
        folder, given = arguments.data / "val", "proposals.json"
        assert arguments.proposals == "given"
        assert all((room / given).is_file() for room in folder.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):
        run_small(str(get_checkpoint()), kinds="views")
    assert len(counts) == 2 and not (run_small.output / "robustness.jsonl").exists()
    monkeypatch.setattr(robustness, "evaluate", evaluate)
    run_small(str(get_checkpoint()), kinds="views")
    assert len(counts) == 4 and len(read_lines(run_small.output / "robustness.jsonl")) == 2


def test_other_splits_and_numbers_of_rooms_do_not_share_a_plot(tmp_path):
    line = {"model": "a", "kind": "views", "level": 2.0, "split": "val", "rooms": 5, "views": 2, "scores": {}}
    lines = [line, line | {"level": 3.0, "rooms": 6}]
    (tmp_path / "robustness.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"expected lines of one split and number of rooms, got \[\('val', 5\), "):
        main(["plot", "--output", str(tmp_path)])


def test_what_cannot_be_run_is_refused(tmp_path, capsys):
    build_scenes(tmp_path, num_train=1, num_val=1, num_views=1, image_size=(8, 8), bev_size=8, workers=1)
    (tmp_path / "annotations" / "val.jsonl").write_text("")
    given = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--models", "m"]
    with pytest.raises(ValueError, match="expected questions of rooms in val, got none"):
        main(["run", *given])
    with pytest.raises(SystemExit):
        main(["run", *given, "--kinds", "fog"])
    assert "expected names of ['depth_noise', " in capsys.readouterr().err
    assert list_errors(["views"])[0] == (CLEAN, 0.0) and len(list_errors(["views"])) == 6
