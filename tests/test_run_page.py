"""The page of a run: what it says of the model, which examples it shows, boxes in views, no path of the machine."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ross3d.data.scene import Scene
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.report.bev import DrawnBox
from ross3d.report.boxes import VIEW_PIXELS, choose_views, count_readings, draw_view
from ross3d.report.examples import choose_examples, find_asked_boxes, find_named_boxes
from ross3d.report.glance import CAN, CANNOT, UNKNOWN, list_abilities
from ross3d.report.html import encode_picture, make_bar
from ross3d.report.run import make_run_page, read_training
from ross3d.report.words import shorten_path
from ross3d.tests.tiny import get_rooms


# A row of main scores, and whether the interval is above the blind model's 0.5.
SCORES = {"existence": 0.52, "color": 0.75, "grounding_unique": 0.6}
INTERVALS = {"existence": (0.4, 0.64), "color": (0.65, 0.85), "grounding_unique": (0.51, 0.69)}


def make_scores(scores: dict[str, float]) -> dict:
    names = {"grounding_unique": "accuracy@0.5"}
    types = {}
    for name, value in scores.items():
        main = names.get(name, "exact_match")
        types[name] = {"num_questions": 9, "main_score": main, main: value}
    return {"rooms": {"num_questions": 9 * len(types), "macro_exact_match": 0.6, "types": types}}


def make_metrics(model: str, **changes) -> dict:
    """Metrics of an evaluation of `SCORES` on our rooms."""
    task = {"split": "val", "scene_path": "{split}/{scene_id}", "proposals": "depth", "items_sha256": "a"}
    intervals = {name: {"low": low, "high": high, "num_scenes": 3} for name, (low, high) in INTERVALS.items()}
    settings = {"model": model, "data": str(get_rooms()), "num_views": 6, "tasks": {"rooms": task}}
    metrics = {
        "scores": make_scores(SCORES),
        "intervals": {"rooms": intervals},
        "baselines": {},
        "settings": settings,
        "commit": "abc",
        "command": ["/a/code/eval.py", "--model", model, f"--data={get_rooms()}"],
        "config": {"model_type": "ross3d", "_name_or_path": model},
    }
    return metrics | changes


def make_records() -> list[dict]:
    """Nine questions about colours, five right, of differing sureness; two of grounding, in all three rooms."""
    right = [True, False, True, True, False, True, False, True, False]
    sure = [0.2, 0.9, 0.7, 0.7, 0.3, 0.5, 0.4, 0.7, 0.8]
    records = [
        {"task": "rooms", "id": f"c{place}", "scene_id": f"val-00000{place % 3}", "question_type": "color",
         "question": f"Question {place}?", "query_coords": None, "references": ["red"], "prediction": "blue",
         "token_probability": sure[place], "right": right[place]}
        for place in range(9)
    ]  # fmt: skip
    for place, (is_right, boxes) in enumerate([(True, [0]), (False, [])]):
        scene = read_rgbd_folder(get_rooms() / "val" / f"val-00000{place}")
        true = scene.boxes[0].tolist()
        records.append(
            {"task": "rooms", "id": f"g{place}", "scene_id": scene.scene_id, "question_type": "grounding_unique",
             "question": f"Find {place}.", "query_coords": None, "references": [""], "prediction": None,
             "margin": 0.1, "right": is_right, "target_boxes": [true], "answer_boxes": [true for _ in boxes]}
        )  # fmt: skip
    return records


def write_run(folder: Path, records: list[dict] | None = None, **changes) -> Path:
    """An evaluation with a model in its own folder."""
    (folder / "model").mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(make_metrics(str(folder / "model"), **changes)))
    lines = [json.dumps(record) for record in records or make_records()]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def parse(page: str) -> ElementTree.Element:
    return ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))


def get_text(node: ElementTree.Element) -> str:
    return "".join(node.itertext())


def find_section(page: str, title: str) -> ElementTree.Element:
    (section,) = [node for node in parse(page).iter("section") if node.find("h2").text == title]
    return section


def get_table(section: ElementTree.Element) -> list[list[str]]:
    return [[get_text(cell) for cell in row] for row in next(section.iter("table")).iter("tr")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with its blind model and two others beside it, one of which answered other questions."""
    folder = write_run(tmp_path_factory.mktemp("deep") / "my_run")
    blind = dict.fromkeys(SCORES, 0.5)
    for name, scores in (("blind", blind), ("start", SCORES | {"color": 0.25}), ("other", SCORES)):
        metrics = make_metrics(str(folder / name), scores=make_scores(scores))
        if name == "other":
            metrics["settings"]["tasks"]["rooms"]["items_sha256"] = "b"
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture(scope="module")
def page(run):
    return make_run_page(run, read_rgbd_folder)


# ---- the first screen


def test_the_first_section_says_what_the_model_can_and_cannot_do(page):
    """Color and grounding are above the blind 50 % with their whole interval, existence is not."""
    first = next(parse(page).iter("section"))
    assert first.find("h2").text == "At a glance"
    lists = {}
    for column in first.find("div"):
        title = get_text(column.find("h3"))
        lists[title] = [get_text(item).replace("\N{NO-BREAK SPACE}", " ") for item in column.iter("li")]
    assert lists["It can (2 of 3)"] == [
        "Name an object's colour75 % [65, 85], 9 questions; the blind model: 50 %",
        "Find the one object that is meant60 % [51, 69], 9 questions; the blind model: 50 %",
    ]
    assert lists["It cannot yet (1 of 3)"] == [
        "Say whether an object is there52 % [40, 64], 9 questions; the blind model: 50 %"
    ]
    # The surest right and wrong answer about boxes.
    assert "Find 0." in get_text(first) and "Find 1." in get_text(first)
    assert "It does 2 of 3 things better than can be done without seeing the room." in page


@pytest.mark.parametrize(
    ("interval", "baseline", "verdict"),
    [((0.51, 0.9), 0.5, CAN), ((0.5, 0.9), 0.5, CANNOT), ((None, None), 0.5, UNKNOWN), ((0.6, 0.9), None, UNKNOWN)],
)
def test_a_verdict_needs_an_interval_and_something_to_compare_with(interval, baseline, verdict):
    metrics = make_metrics("m", scores=make_scores({"color": 0.7}))
    metrics["intervals"]["rooms"]["color"] = {"low": interval[0], "high": interval[1], "num_scenes": 3}
    baselines = {} if baseline is None else {"look-up": make_scores({"color": baseline})["rooms"]}
    assert [ability.verdict for ability in list_abilities(metrics, baselines)] == [verdict]


@pytest.mark.parametrize(("low", "verdict"), [(0.1, CAN), (-0.2, CANNOT)])
def test_one_sample_is_judged_against_the_mean_picture(low, verdict):
    row = {"mean": 0.5, "low": low, "high": 1.5}
    part = {"num_pictures": 4, "psnr": {}, "differences": {"one_sample - mean_picture": row}}
    (ability,) = list_abilities({"scores": {"reconstruction": {"view": part}}, "intervals": {}}, {})
    assert ability.verdict == verdict and f"+0.5 dB [{low:+.1f}, +1.5] in 4 pictures" in ability.text


def test_other_runs_stand_side_by_side_if_they_answered_the_same_questions(page, run):
    section = find_section(page, "Side by side")
    assert get_table(section) == [
        ["kind of question, %", "questions", "this run", "start", "blind"],
        ["Say whether an object is there", "9", "52.0 [40.0, 64.0]", "52.0 [40.0, 64.0]", "50.0 [40.0, 64.0]"],
        ["Name an object's colour", "9", "75.0 [65.0, 85.0]", "25.0 [65.0, 85.0]", "50.0 [65.0, 85.0]"],
        ["Find the one object that is meant", "9", "60.0 [51.0, 69.0]", "60.0 [51.0, 69.0]", "50.0 [51.0, 69.0]"],
        ["Mean of the kinds with exact answers", "18", "60.0", "60.0", "60.0"],
    ]
    assert "Left out, because they answered other questions: other." in get_text(section)
    assert [item.text for item in section.iter("li")] == [
        "this run: ./model, boxes: depth",
        "start: ./start, boxes: depth",
        "blind: ./blind, boxes: depth",
    ]


def test_the_page_says_what_its_numbers_rest_on(page, tmp_path):
    told = [item.text for item in find_section(page, "What the numbers rest on").iter("li")]
    assert any(line.startswith("rooms: 27 questions, 3 scenes of the split val.") for line in told)
    assert any("With so few scenes they are too narrow." in line for line in told)
    assert any("proposed by this repository from the scene's depth" in line for line in told)
    assert any(line.startswith("Blind model, ./blind: ") for line in told)
    alone = find_section(make_run_page(write_run(tmp_path / "alone"), read_rgbd_folder), "What the numbers rest on")
    assert "No blind model was evaluated" in get_text(alone) and "Look-up" not in get_text(alone)


def test_a_single_scene_has_nothing_to_compare(tmp_path):
    """Without intervals and without a blind model nothing is claimed either way."""
    none = {name: {"low": None, "high": None, "num_scenes": 1} for name in SCORES}
    records = [record for record in make_records() if record["scene_id"] == "val-000000"]
    page = make_run_page(write_run(tmp_path / "run", records, intervals={"rooms": none}), read_rgbd_folder)
    first = find_section(page, "At a glance")
    titles = [get_text(title) for title in first.iter("h3")]
    assert titles == ["Nothing to compare with (3 of 3)", "In pictures: what it was surest of"]
    assert "1 scene of the split val, without intervals" in page and "Side by side" not in page


# ---- examples


def test_examples_are_the_surest_answers_and_of_equally_sure_ones_the_first():
    (colors, boxes) = choose_examples(make_records())
    assert colors.question_type == "color" and colors.counts == {True: 5, False: 4, None: 0}
    assert [record["id"] for record in colors.chosen[True]] == ["c2", "c3", "c7"]
    assert [record["id"] for record in colors.chosen[False]] == ["c1", "c8", "c6"]
    # Nothing was chosen with a margin above zero, so this answer is not sure.
    assert [record["id"] for record in boxes.chosen[False]] == ["g1"]
    calibrated = [record | {"confidence": 1 - (record.get("token_probability") or 0)} for record in make_records()]
    assert [record["id"] for record in choose_examples(calibrated)[0].chosen[True]] == ["c0", "c5", "c2"]
    unjudged = [record | {"right": None} for record in make_records()]
    assert choose_examples(unjudged)[0].counts == {True: 0, False: 0, None: 9}


def test_the_page_shows_these_examples_and_says_how_many_there_are(page):
    section = find_section(page, "Examples")
    kinds = {get_text(part.find("summary")): part for part in section.iter("details")}
    assert list(kinds) == [
        "Name an object's colour · 5 of 9 answers right",
        "Find the one object that is meant · 1 of 2 answers right",
    ]
    colors = list(kinds.values())[0]
    assert [title.text for title in colors.iter("h3")] == [
        "Right: the surest 3 of 5 right answers",
        "Wrong: the surest 3 of 4 wrong answers",
    ]
    asked = re.findall(r"Question \d\?", get_text(colors))
    assert asked == [f"Question {number}?" for number in (2, 3, 7, 1, 8, 6)]
    assert "Wrong: the surest 1 of 1 wrong answers" in get_text(list(kinds.values())[1])


def test_examples_are_told_without_pictures_where_the_scenes_are_gone(tmp_path):
    metrics = make_metrics("user/model")
    settings = metrics["settings"] | {"data": str(tmp_path / "gone")}
    page = make_run_page(write_run(tmp_path / "run", settings=settings), read_rgbd_folder)
    section = find_section(page, "Examples")
    assert "Question 2?" in get_text(section) and not list(section.iter("img"))
    assert "…/val-000000 does not exist any more" in page


# ---- boxes in views


def make_wall(size: tuple[int, int] = (24, 36), enlarged: int = 2) -> Scene:
    """Two views from the origin, along x and against it, of a wall 4 m away; pictures are larger than depth maps."""
    height, width = size
    looks_along_x = np.eye(4)
    looks_along_x[:3, :3] = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    turned = looks_along_x.copy()
    turned[:2, :3] *= -1
    return Scene(
        "wall",
        images=np.full((2, enlarged * height, enlarged * width, 3), 90, np.uint8),
        depth_maps=np.full((2, height, width), 4.0, np.float32),
        intrinsics=np.array([[20.0, 0, (width - 1) / 2], [0, 20.0, (height - 1) / 2], [0, 0, 1]]),
        cam2world=np.stack([looks_along_x, turned]),
    )


@pytest.mark.parametrize(("size", "enlarged"), [((24, 36), 2), ((30, 20), 1), ((24, 36), 20)])
def test_a_box_is_drawn_where_a_pinhole_camera_sees_it(size, enlarged):
    scene = make_wall(size, enlarged)
    # Its front is 3.5 m away, from 0.5 m left of the middle to 0.3 m right, and from 0.2 m below to 0.6 m above.
    box = [3.75, 0.1, 0.2, 0.5, 0.8, 0.8]
    plain, drawn = draw_view(scene, 0), draw_view(scene, 0, [DrawnBox(box, "#ff0000", width=2.0)])
    rows, columns = np.nonzero((plain != drawn).any(axis=-1))
    scale = plain.shape[1] / size[1]
    assert max(plain.shape) <= VIEW_PIXELS and len(rows) > 50
    left, right = (scale * (size[1] / 2 + 20 * side / 3.5) for side in (-0.5, 0.3))
    top, bottom = (scale * (size[0] / 2 + 20 * side / 3.5) for side in (-0.6, 0.2))
    assert [columns.min(), columns.max(), rows.min(), rows.max()] == pytest.approx([left, right, top, bottom], abs=4)
    assert (drawn[rows, columns] == (255, 0, 0)).all(axis=1).any()
    # Dashes leave some of these pixels as they were.
    dashed = draw_view(scene, 0, [DrawnBox(box, "#ff0000", dashed=True, width=2.0)])
    assert 0 < (plain != dashed).any(axis=-1).sum() < len(rows)


def test_nothing_behind_the_camera_is_drawn_and_a_box_around_it_is_cut_off():
    scene = make_wall()
    behind = [DrawnBox([-3.0, 0, 0, 1, 1, 1], "#ff0000")]
    assert np.array_equal(draw_view(scene, 0, behind, [[-2.0, 0, 0]], "#ffff00"), draw_view(scene, 0))
    around = draw_view(scene, 0, [DrawnBox([1.0, 0, 0, 4, 1, 1], "#ff0000")])
    assert (around != draw_view(scene, 0)).any()


def test_a_ring_is_drawn_around_a_place():
    scene = make_wall()
    ringed = draw_view(scene, 1, (), [[-4.0, 0.0, 0.0]], "#ffd60a")
    rows, columns = np.nonzero((ringed != draw_view(scene, 1)).any(axis=-1))
    assert [rows.mean(), columns.mean()] == pytest.approx([ringed.shape[0] / 2, ringed.shape[1] / 2], abs=1)


def test_the_view_is_chosen_that_sees_a_box_best():
    scene = make_wall()
    ahead, back, hidden = [4.0, 0, 0, 1, 1, 1], [-4.0, 0.5, 0, 1, 1, 1], [2.0, 0, 0, 0.5, 0.5, 0.5]
    counts = count_readings(scene, [ahead, back, hidden])
    # At 4 m a pixel is 20 cm wide: a side of one metre has five of them, and one half outside of a pixel's middle.
    assert counts[0, 0] in (25, 30, 36) and counts[1, 1] in (25, 30, 36)
    assert counts[0, 1] == counts[1, 0] == 0 and (counts[2] == 0).all()
    assert choose_views(scene, [[back], [ahead]]) == [1, 0]
    assert choose_views(scene, [[ahead], [ahead], [hidden], []]) == [0]
    without = replace(scene, depth_maps=None, cam2world=None, intrinsics=None)
    assert choose_views(without, [[ahead]]) == []


def test_a_whole_box_is_better_than_a_part_from_near():
    """The first camera is so near that one side of the box fills its picture."""
    scene = make_wall()
    scene.cam2world[1] = scene.cam2world[0]
    scene.cam2world[0, 0, 3] = 3.3
    scene.depth_maps[0], scene.depth_maps[1] = 0.2, 3.5
    box = [4.0, 0, 0, 1, 1, 1]
    counts = count_readings(scene, [box])[0]
    assert counts[0] > counts[1] > 0 and choose_views(scene, [[box]]) == [1]


def test_the_objects_that_a_question_names_are_found():
    names = [("red", "lamp"), ("green", "lamp"), ("red", "shelf"), ("blue", "bed")]
    labels = [{"color": color, "category": category} for color, category in names]
    scene = replace(make_wall(), boxes=np.arange(24, dtype=np.float32).reshape(4, 6), box_labels=labels)

    def find(question):
        return [int(box[0]) // 6 for box in find_named_boxes(question, scene)]

    assert find("Is the red lamp taller or shorter than the bed?") == [0, 3]
    assert find("How many lamps are there?") == [0, 1] and find("Count the shelves.") == [2]
    assert find("Count the red objects.") == [0, 2] and find("What object is at that place?") == []
    assert find("Can you see a blue lamp?") == [] and find("How large is the room?") == []
    assert find_named_boxes("Where is the lamp?", make_wall()) == []
    near = {"question": "What is at <coord>?", "query_coords": [1.7, 2.2, 2.7]}
    assert [box[0] for box in find_asked_boxes(near, scene)] == [6.0]
    assert find_asked_boxes(near | {"target_boxes": [[1] * 6]}, scene) == [[1] * 6]


def test_the_page_draws_the_boxes_of_its_examples(page):
    """The same room is on the page plainly too, among the scenes in full."""
    (grounding,) = [part for part in find_section(page, "Examples").iter("details") if "Find 0." in get_text(part)]
    told = [image.attrib["alt"] for image in grounding.iter("img")]
    assert any("of val-000000 with 1 true box, 1 box that the model chose" in text for text in told)
    assert any("of val-000001 with 1 true box" in text and "chose" not in text for text in told)
    plain = {image.attrib["src"] for image in find_section(page, "Scenes in full").iter("img")}
    assert plain and not {image.attrib["src"] for image in grounding.iter("img")} & plain


def test_a_picture_is_kept_in_the_smaller_form():
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    assert encode_picture(noise).startswith(b"\xff\xd8")
    assert encode_picture(np.full((64, 48, 3), 7, np.uint8)).startswith(b"\x89PNG")


def test_rebuilt_pictures_are_shown_of_the_first_scenes(tmp_path):
    """Four scenes, each with two hidden views and a picture from above; of three the first view and from above."""
    names = ("one_sample", "mean_of_samples", "teacher", "mean_picture", "other_scene", "positions_only")
    difference = {"mean": 0.5, "low": 0.1, "high": 1.5, "num_pairs": 8}
    part = {"num_pictures": 8, "psnr": dict.fromkeys(names, 12.0)}
    part["differences"] = {"one_sample - mean_picture": difference}
    scores = make_scores(SCORES) | {"reconstruction": {"num_scenes": 4, "view": part}}
    folder = write_run(tmp_path / "run", scores=scores)
    for number in range(4):
        for name in ("view04", "view02", "bev"):
            for kind in ("truth", *names[:2]):
                path = folder / "pictures" / f"val-00000{number}" / f"{name}_{kind}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (number, len(name), len(kind))).save(path)
    page = make_run_page(folder, read_rgbd_folder)
    section = find_section(page, "Reconstruction")
    assert "Pictures of 3 of 4 scenes" in get_text(section)
    told = [image.attrib["alt"] for image in section.iter("img")]
    wanted = [f"val-00000{number}, {thing}" for number in range(3) for thing in ("view 2", "from above")]
    assert told == [f"{title}: {kind}" for title in wanted for kind in ("original", "one sample", "mean of samples")]
    first = [image.attrib["alt"] for image in find_section(page, "At a glance").iter("img")]
    assert first[-2:] == ["hidden view of val-000000", "rebuilt, one sample of val-000000"]
    assert "Rebuild a view that was hidden" in get_text(find_section(page, "At a glance"))


def test_a_bar_shows_a_score_its_interval_and_another_score():
    bar = ElementTree.fromstring(str(make_bar(0.5, (0.4, 1.2), 0.25)))
    assert [part.attrib["style"] for part in bar] == ["width:50.0%", "left:40.0%;width:60.0%", "left:25.0%"]


# ---- losses, paths, and what everybody can read


def test_the_last_values_of_losses_are_the_last_of_the_log(tmp_path):
    model = tmp_path / "run" / "model"
    write_run(tmp_path / "run")
    assert read_training(str(model)) == {}
    for steps in (100, 50):
        history = [{"step": step, "lm_loss": 2.0 - step / 100} for step in range(10, steps + 1, 10)]
        (model / f"checkpoint-{steps}").mkdir()
        state = {"global_step": steps, "log_history": [*history, {"step": steps, "train_loss": 9.0}]}
        (model / f"checkpoint-{steps}" / "trainer_state.json").write_text(json.dumps(state))
    page = make_run_page(tmp_path / "run", read_rgbd_folder)
    titles = [part.text for part in find_section(page, "Losses").iter("div") if part.get("class") == "chart-title"]
    assert titles == ["lm_loss: 1 at step 100, the last of the log"]
    assert "./model, after 100 training steps" in page
    state = {"global_step": 7, "log_history": [{"step": 7, "lm_loss": 0.25}]}
    (model / "trainer_state.json").write_text(json.dumps(state))
    assert read_training(str(model))["global_step"] == 7


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/a/me/run/model", "./model"),
        ("/a/me/run", "."),
        ("/a/me/other/data", "…/data"),
        ("--data=/a/me/run/x", "--data=./x"),
        ("--data=/b/disk/rooms", "--data=…/rooms"),
        ("outputs/demo/model", "outputs/demo/model"),
        ("user/model", "user/model"),
        ("a / b", "a / b"),
        ("--rate=1e-4", "--rate=1e-4"),
    ],
)
def test_paths_begin_with_the_folder_of_the_run(text, shown):
    assert shorten_path(text, Path("/a/me/run")) == shown


def test_the_page_has_no_path_of_the_machine(page, run):
    """Only paths from the run's own folder on; neither of the folders around it nor of data and programs elsewhere."""
    texts = list(parse(page).itertext())
    for node in parse(page).iter():
        texts += [value for value in node.attrib.values() if not value.startswith("data:image/")]
    told = "\n".join(texts)
    assert re.findall(r"(?<![\w.…<])/\w[^\s\"']*", told) == []
    assert str(run.parent) not in page and run.name not in page and str(get_rooms().parent) not in page
    for shown in ("./model", "--data=…/rooms", "…/eval.py"):
        assert shown in told


def test_pictures_are_described_and_tables_are_folded_and_have_headers(page):
    tree = parse(page)
    assert len(list(tree.iter("img"))) > 10
    assert all(image.attrib["alt"].strip() and "<" not in image.attrib["alt"] for image in tree.iter("img"))
    assert all(drawing.attrib["aria-label"] for drawing in tree.iter("svg"))
    assert {head.get("scope") for head in tree.iter("th")} == {"col"}
    folded = [table for part in tree.iter("details") for table in part.iter("table")]
    (other,) = [table for table in tree.iter("table") if table not in folded]
    assert len(folded) > 3 and get_text(other).startswith("kind of question, %questionsthis run")
