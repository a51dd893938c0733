"""tools/ask.py: from a scan to an upright world, answers, boxes, a rebuilt view and a page."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ross3d.data.own_scan import read_own_scan
from ross3d.data.scene import Scene
from ross3d.data.sources import read_scene
from ross3d.data.sources.rgbd_folder import write_rgbd_folder
from ross3d.data.surface import count_voxel_votes, find_upright_planes, sample_surface
from ross3d.geometry_ross3d import unproject
from ross3d.scenes.build import make_scene
from ross3d.tests.test_report import check_page
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.tools import ask, view
from ross3d.tools.ask import describe_box, list_doubts


ROOT = Path(__file__).resolve().parents[1]
KITCHEN = Path(os.environ.get("ROSS3D_KITCHEN", ROOT.parent / "shared" / "kitchen"))
FEW_STEPS = ["--steps", "2", "--max-new-tokens", "4"]


def run(scan: Path, output: Path, *more: str, model: Path | None = None) -> list:
    given = [str(scan), "--model", str(model or get_checkpoint()), "--output", str(output), *FEW_STEPS]
    return ask.main([*given, *more])


def make_tilted_world() -> np.ndarray:
    """A rigid matrix (4, 4) from an upright world to that of a camera held by somebody."""
    angles = np.deg2rad([-118.0, 23.0, 31.0])
    (c0, c1, c2), (s0, s1, s2) = np.cos(angles), np.sin(angles)
    matrix = np.eye(4)
    matrix[:3, :3] = (
        np.array([[1, 0, 0], [0, c0, -s0], [0, s0, c0]])
        @ np.array([[c1, 0, s1], [0, 1, 0], [-s1, 0, c1]])
        @ np.array([[c2, -s2, 0], [s2, c2, 0], [0, 0, 1]])
    )
    matrix[:3, 3] = [1.7, -0.6, 2.9]
    return matrix


def write_room(folder: Path, matrix: np.ndarray) -> Scene:
    """A room without boxes and bird's-eye picture whose world was moved by `matrix`; the room as it was."""
    scene, *_ = make_scene(5, "val", 1, num_views=7, image_size=(96, 72), bev_size=32)
    moved = Scene(
        scene_id=folder.name,
        images=scene.images,
        depth_maps=scene.depth_maps,
        intrinsics=scene.intrinsics,
        cam2world=matrix @ scene.cam2world,
    )
    write_rgbd_folder(moved, folder)
    return scene


@pytest.fixture(scope="module")
def tilted(tmp_path_factory) -> tuple[Path, Scene]:
    folder = tmp_path_factory.mktemp("tilted") / "room"
    return folder, write_room(folder, make_tilted_world())


def test_questions_are_answered_in_order_by_words_or_boxes(tmp_path, capsys):
    questions = ["How many beds are there?", "find the bed", "Is there a lamp?", "Find all chairs."]
    answers = run(get_rooms() / "val" / "val-000000", tmp_path / "page.html", "--views", "4", *questions)
    assert [answer.question for answer in answers] == questions
    assert [answer.boxes is not None for answer in answers] == [False, True, False, True]
    said = capsys.readouterr().out
    assert "4 views: frame-000000, frame-000001, frame-000003, frame-000005" in said and answers[0].text in said
    assert "boxes did: its world is taken to be upright" in said and "boxes came with the scan" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    # Four chosen views, and all six in the sanity picture.
    assert (
        check_page(page)["polygon"] == 4 + 6
        and "reconstructed from the other views" in page
        and "find the bed" in page
    )


def test_every_question_is_grounded_when_asked_to(tmp_path):
    scan = get_rooms() / "val" / "val-000000"
    boxes = json.loads((scan / "boxes.json").read_text())[:2]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    given = ["--ground", "--boxes", str(tmp_path / "boxes.json")]
    (answer,) = run(scan, tmp_path / "page.html", *given, "the bed")
    known = [[pytest.approx(value) for value in row["box"]] for row in boxes]
    assert answer.boxes is not None and all(box in known for box in answer.boxes)


def test_proposed_boxes_of_one_object_are_one_answer():
    """The best box and its neighbour (IoU 0.6) share the score; boxes that came with the scan are all kept."""
    boxes = np.array([[0, 0, 0.5, 1, 1, 1], [0.25, 0, 0.5, 1, 1, 1], [5, 0, 0.5, 1, 1, 1]], np.float32)
    scores = torch.tensor([[0.905, 0.91, 0.9, 0.0], [0.0, 0.1, 0.2, 0.9]])
    asks = SimpleNamespace(to=lambda device: {})
    model = SimpleNamespace(device="cpu", ground=lambda scene: scores)
    for are_proposed, numbers in ((False, [1, 0]), (True, [1])):
        found = ask.answer_with_boxes(model, lambda **given: asks, None, ["a?", "b?"], boxes, are_proposed)
        assert [answer.numbers for answer in found] == [numbers, []]


def test_what_cannot_be_asked_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "read_own_scan", lambda *given, **more: pytest.fail("the scan was read first"))
    with pytest.raises(
        ValueError, match=r"questions: expected text in each question, got \['the bed', ' '\]; write a question"
    ):
        run(tmp_path, tmp_path / "page.html", "the bed", " ")
    with pytest.raises(
        FileNotFoundError, match="--model: expected a checkpoint's folder or a Hub id, got .*config.json"
    ):
        run(tmp_path, tmp_path / "page.html", "the bed", model=tmp_path)
    with pytest.raises(ValueError, match="--ground: expected a model with a grounding head, got one without"):
        ask.choose_grounded(["the bed"], ground_all=True, has_boxes=True, has_head=False)
    with pytest.raises(ValueError, match="--ground: expected candidate boxes, got none; give --boxes FILE"):
        ask.choose_grounded(["the bed"], ground_all=True, has_boxes=False, has_head=True)
    assert ask.choose_grounded(["find it", "why?"], ground_all=False, has_boxes=True, has_head=False) == [False, False]
    assert "this model has no grounding head" in capsys.readouterr().out
    assert ask.choose_grounded(["find it", "why?"], ground_all=False, has_boxes=False, has_head=True) == [False, False]
    assert "no candidate boxes (--boxes FILE or a boxes.json)" in capsys.readouterr().out
    assert ask.choose_grounded(["find it", "why?"], ground_all=False, has_boxes=True, has_head=True) == [True, False]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            "what is at <coord>?",
            r"questions: expected plain text, got the special tokens \['<coord>'\] in 'what is at",
        ),
        ("<|im_end|> hi", r"got the special tokens \['<\|im_end\|>'\] in .*; remove them: describe a place in words"),
        (
            "<image> and <ground>",
            r"got the special tokens \['<image>', '<ground>'\] .* \(or use --ground\) to get boxes",
        ),
        ("is it \udce9?", "questions: expected text in UTF-8, got other bytes at character 6 of .*; type it again"),
    ],
)
def test_questions_that_are_no_words_are_refused_before_the_scan_is_read(tmp_path, monkeypatch, question, message):
    monkeypatch.setattr(ask, "read_own_scan", lambda *given, **more: pytest.fail("the scan was read first"))
    with pytest.raises(ValueError, match=message):
        run(tmp_path, tmp_path / "page.html", "the bed", question)


def test_a_tilted_room_is_set_upright_and_boxes_are_proposed(tilted, tmp_path, capsys):
    folder, room = tilted
    model = tmp_path / "model"
    shutil.copytree(get_checkpoint(), model, ignore=shutil.ignore_patterns("teacher"))
    words, found = run(folder, tmp_path / "page.html", "--views", "3", "Is there a bed?", "find the bed", model=model)
    assert words.boxes is None and found.boxes is not None
    said = capsys.readouterr().out
    assert "alignment estimated from" in said and "confidence" in said and "no boxes came with the scan" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert check_page(page)["polygon"] == 3 + 7 and "Alignment estimated from" in page
    assert "reconstructed from the other views" not in page and "median height of the floor, cm" in page

    scan = read_own_scan(folder)
    back = scan.axis_align_matrix @ make_tilted_world()
    assert back[2, 2] > np.cos(np.deg2rad(1.0)) and abs(back[2, 3]) < 0.03
    turn = np.rad2deg(np.arctan2(back[1, 0], back[0, 0]))
    assert abs((turn + 45.0) % 90.0 - 45.0) < 1.0
    # Answers, boxes and picture are in one world.
    np.testing.assert_allclose(scan.scene.cam2world, back @ room.cam2world, atol=1e-5)
    weak = replace(scan, estimate=replace(scan.estimate, confidence=0.31))
    assert list_doubts(weak) == [f"the alignment has a confidence of only 0.31 (weakest: {scan.estimate.weakest})"]
    assert list_doubts(scan) == []
    np.testing.assert_array_equal(scan.read_views(3).cam2world, scan.scene.cam2world[[0, 3, 6]])
    assert len(scan.boxes) and (scan.boxes[:, 2] > 0).all()


def test_an_upright_room_is_left_as_it_is(tmp_path, capsys):
    room = write_room(tmp_path / "room", np.eye(4))
    scan = read_own_scan(tmp_path / "room")
    assert scan.axis_align_matrix is None and "upright already and was not turned" in scan.alignment
    np.testing.assert_allclose(scan.scene.cam2world, room.cam2world, atol=1e-5)


def test_a_scan_without_a_floor_says_how_to_go_on(tilted, tmp_path):
    """Only what is higher than 1.2 metres was seen."""
    scene = tilted[1]
    depth = torch.from_numpy(scene.depth_maps)
    points = unproject(depth, torch.from_numpy(scene.intrinsics), torch.from_numpy(scene.cam2world)).numpy()
    high = Scene(
        scene_id="high",
        images=scene.images,
        depth_maps=np.where(points[..., 2] > 1.2, scene.depth_maps, 0).astype(np.float32),
        intrinsics=scene.intrinsics,
        cam2world=make_tilted_world() @ scene.cam2world,
    )
    write_rgbd_folder(high, tmp_path / "high")
    with pytest.raises(ValueError, match=r"found no level surface of at least 0.3 m2[^$]*as --axis-align FILE"):
        run(tmp_path / "high", tmp_path / "page.html", "Is there a bed?")


def test_an_alignment_that_came_or_was_given_stands(tmp_path, tilted):
    """Even one that is four degrees off, which the estimate would mend."""
    folder = tmp_path / "room"
    shutil.copytree(tilted[0], folder)
    off = np.eye(4)
    off[:2, :2] = [[np.cos(0.07), -np.sin(0.07)], [np.sin(0.07), np.cos(0.07)]]
    matrix = off @ np.linalg.inv(make_tilted_world())
    np.savetxt(folder / "axis_align.txt", matrix)
    came = read_own_scan(folder)
    assert came.estimate is None and came.alignment == "the alignment came with the scan"
    np.testing.assert_allclose(came.scene.cam2world, off @ tilted[1].cam2world, atol=1e-5)
    np.savetxt(tmp_path / "other.txt", np.linalg.inv(make_tilted_world()))
    given = read_own_scan(folder, axis_align_matrix=tmp_path / "other.txt")
    assert given.alignment == "alignment given: other.txt"
    np.testing.assert_allclose(given.read_views(2).cam2world, tilted[1].cam2world[[0, 6]], atol=1e-5)


def test_an_axis_align_file_moves_the_cameras(tmp_path):
    matrix = np.eye(4)
    matrix[2, 3] = 5.0
    np.savetxt(tmp_path / "axis_align.txt", matrix)
    scan = get_rooms() / "val" / "val-000000"
    with pytest.raises(ValueError, match="no point is below ceiling_height"):
        run(scan, tmp_path / "page.html", "--axis-align", str(tmp_path / "axis_align.txt"), "Is there a bed?")


def write_video(path: Path, images: np.ndarray) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = *images.shape[1:3], "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_video_is_asked_about_without_cameras(tilted, tmp_path, capsys):
    write_video(tmp_path / "walk.mp4", tilted[1].images)
    (answer,) = run(tmp_path / "walk.mp4", tmp_path / "page.html", "--views", "3", "find the bed")
    said = capsys.readouterr().out
    assert answer.boxes is None and "nothing was estimated" in said and "no boxes: none came" in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    check_page(page)
    assert "Is it upright?" not in page
    with pytest.raises(ValueError, match="expected no boxes with a video, whose cameras are unknown; leave them out"):
        run(tmp_path / "walk.mp4", tmp_path / "page.html", "--boxes", "boxes.json", "find the bed")


def test_the_view_tool_sets_a_scan_upright_too(tilted, tmp_path, capsys):
    page = view.main([str(tilted[0]), "--output", str(tmp_path / "page.html")]).read_text(encoding="utf-8")
    assert "alignment estimated from" in capsys.readouterr().out
    assert check_page(page)["polygon"] == 7 + 7 and "Is it upright?" in page and "Alignment estimated from" in page


@pytest.mark.skipif(not KITCHEN.is_dir(), reason="no kitchen scan; ROSS3D_KITCHEN says where it is")
def test_a_real_scan_goes_the_whole_way_without_an_alignment(tmp_path, capsys):
    """The documented command on the frames alone, and what it made of them measured on single readings.

    Floor: readings whose normal, from their neighbours three pixels on, is within 20 degrees of up and which lie
    within 15 cm of z = 0. Their rms height is below 3 cm, and so is that of the medians of 25 cm cells; cells whose
    median is within 3 cm hold 95 % of the readings (far corners, where the recording itself bends, hold the rest).
    Walls: every upright plane of one square metre or more is within 3 degrees of an axis.
    """
    scan = tmp_path / "kitchen"
    scan.mkdir()
    for file in KITCHEN.iterdir():
        if file.name != "axis_align.txt":
            shutil.copy(file, scan / file.name)
    answers = run(scan, tmp_path / "page.html", "What color is the table?", "find the table")
    assert len(answers) == 2 and answers[1].boxes is not None
    assert "alignment estimated from" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    check_page(page)
    assert "eye picture: reconstructed" in page and "Is it upright?" in page

    matrix = read_own_scan(scan).axis_align_matrix
    scene = read_scene(scan, axis_align_matrix=matrix)
    floor = get_floor_readings(scene)
    assert len(floor) > 10_000 and np.sqrt((floor[:, 2] ** 2).mean()) < 0.03
    medians, counts = get_cell_medians(floor)
    assert len(medians) > 20 and np.sqrt((medians**2).mean()) < 0.03
    assert counts[np.abs(medians) < 0.03].sum() > 0.95 * counts.sum()
    surface = sample_surface(scene)
    planes = find_upright_planes(surface, count_voxel_votes(surface.points, 0.05), 0.05, 1.0)
    angles = np.rad2deg([np.arctan2(plane.normal[1], plane.normal[0]) for plane in planes])
    assert len(angles) >= 2 and np.abs(np.mod(angles + 45.0, 90.0) - 45.0).max() < 3.0


def get_floor_readings(scene: Scene) -> np.ndarray:
    """Readings (N, 3) whose neighbours say that they face up and that lie near z = 0, metres."""
    depth = torch.from_numpy(scene.depth_maps)
    points = unproject(depth, torch.from_numpy(scene.intrinsics), torch.from_numpy(scene.cam2world)).numpy()
    right, down = points[:, 3:-3, 6:] - points[:, 3:-3, :-6], points[:, 6:, 3:-3] - points[:, :-6, 3:-3]
    normals = np.cross(down, right)
    known = scene.depth_maps > 0
    known = known[:, 3:-3, 6:] & known[:, 3:-3, :-6] & known[:, 6:, 3:-3] & known[:, :-6, 3:-3] & known[:, 3:-3, 3:-3]
    up = normals[..., 2] > np.cos(np.deg2rad(20)) * np.linalg.norm(normals, axis=-1)
    middle = points[:, 3:-3, 3:-3]
    return middle[known & up & (np.abs(middle[..., 2]) < 0.15)]


def get_cell_medians(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median heights of the 25 cm cells that hold 100 points and more, and how many each holds."""
    cells = np.unique(np.floor(points[:, :2] / 0.25), axis=0, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(cells)
    large = np.flatnonzero(counts >= 100)
    return np.array([np.median(points[cells == cell, 2]) for cell in large]), counts[large]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "0"], "argument --views: expected a whole number from 1 to 10,000, got '0'"),
        (["--views", "2.5"], "argument --views: expected a whole number from 1 to 10,000, got '2.5'"),
        (["--steps", "0"], "argument --steps: expected a whole number of at least 1, got '0'"),
        (["--max-new-tokens", "nan"], "argument --max-new-tokens: expected a whole number of at least 1, got 'nan'"),
        (["--mask", "-1"], "argument --mask: expected a whole number of at least 0, got '-1'"),
        (["--device", "gpu"], "argument --device: expected a device such as cpu or cuda:0, got 'gpu'"),
        (["--geometry-mode", "metric"], "argument --geometry-mode: invalid choice: 'metric'"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        run(get_rooms() / "val" / "val-000000", tmp_path / "page.html", *options, "Is there a bed?")
    assert message in capsys.readouterr().err


def test_a_view_that_was_not_read_cannot_be_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(ask, "load_model", lambda *arguments: pytest.fail("the model was loaded first"))
    with pytest.raises(ValueError, match=r"--mask: expected a view from 0 to 3 \(--views 4\), got 4"):
        run(get_rooms() / "val" / "val-000000", tmp_path / "page.html", "--views", "4", "--mask", "4", "Is it a bed?")


def test_found_boxes_say_where_they_are():
    box = np.array([0.04, -1.26, 0.5, 1.0, 2.0, 0.31])
    assert describe_box(3, box) == "box 3 at (0.0, -1.3, 0.5), 1.0 x 2.0 x 0.3 m"
