"""Pages: one file, nothing from outside, every text escaped, and drawings where the geometry says."""

import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.geometry_ross3d import project_bev
from ross3d.report.bev import SIDE, DrawnBox, draw_cameras, make_bev_drawing, place_points
from ross3d.report.charts import choose_ticks, make_line_chart, smooth
from ross3d.report.html import clip_text, element, encode_png, make_page, make_section, make_table, render, shrink
from ross3d.report.picture import COLUMNS, GAP, HEAD, TILE, make_picture, save_picture
from ross3d.report.run import make_run_page, write_run_page
from ross3d.report.scores import make_score_table
from ross3d.report.summary import format_summary
from ross3d.tests.tiny import get_rooms
from ross3d.tools import view


def check_page(page: str) -> Counter:
    """Refuse a page that is not well formed or would load something; returns how often each tag occurs."""
    tree = ElementTree.fromstring(page.removeprefix("<!doctype html>\n"))
    tags = Counter(node.tag for node in tree.iter())
    for node in tree.iter():
        for name in {"src", "href", "srcset"} & set(node.attrib):
            assert re.match("data:image/(png|jpeg);base64,", node.attrib[name]), node.attrib[name][:80]
    assert not {"script", "link", "iframe"} & set(tags) and "@import" not in page and "url(" not in page
    return tags


def write_run(folder: Path, **changes) -> Path:
    """Output of a small evaluation, made by hand."""
    types = {
        "existence": {"num_questions": 2, "main_score": "exact_match", "exact_match": 0.5},
        "caption": {"num_questions": 1, "main_score": "attribute_accuracy", "attribute_accuracy": 0.4, "CIDEr": 1.0},
    }
    metrics = {
        "scores": {"rooms": {"num_questions": 3, "macro_exact_match": 0.5, "types": types}},
        "intervals": {},
        "baselines": {"rooms": {"majority": {"macro_exact_match": 0.25, "types": {}}, "lookup": None}},
        "settings": {
            "model": str(folder / "model"),
            "data": str(get_rooms()),
            "num_views": 4,
            "decode": "exact",
            "view_size": 64,
            "tasks": {"rooms": {"split": "val", "scene_path": "{split}/{scene_id}", "proposals": "depth"}},
        },
        "commit": "abc",
        "command": ["eval.py", "--model", "<b>model</b>"],
        "config": {"model_type": "ross3d"},
    }
    record = {"task": "rooms", "scene_id": "val-000000", "query_coords": None, "references": ["yes"], "right": False}
    shared = {"best_box": [0, 0, 0.5, 1, 1, 1], "no_target_wins": False, "target_boxes": [[1, 1, 0.5, 1, 1, 1]]}
    records = [
        record | {"id": "0", "question_type": "existence", "question": "Is <here> a bed?", "prediction": "<no> & no"},
        record | {"id": "1", "question_type": "grounding_unique", "question": "Find it.", "prediction": None}
        | shared | {"answer_boxes": [[0, 0, 0.5, 1, 1, 1]]},
    ]  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records))
    (folder / "model").mkdir()
    history = [{"step": step, "loss": 2.0 / step, "lm_loss": 1.0 / step} for step in range(1, 20)]
    state = {"global_step": 20, "log_history": history}
    (folder / "model" / "trainer_state.json").write_text(json.dumps(state))
    return folder


def test_text_is_escaped_and_markup_is_not():
    assert render(element("p", "a < b & 'c'", title='say "x"')) == (
        '<p title="say &quot;x&quot;">a &lt; b &amp; &#x27;c&#x27;</p>'
    )
    assert render(make_section("<h>", element("b", "x"))).startswith("<section><h2>&lt;h&gt;</h2><b>x</b>")
    check_page(make_page("<t>", "lead", [("name", "1")], [make_table(["<a>"], [["</td>"]], numeric=[0])]))


def test_characters_that_no_page_may_hold_are_replaced():
    page = make_page("\x00", "\ud800 \x1b[0m", [], [element("p", "\x0f\ufffe\tfine", title="\x01")])
    assert "\ufffd\ufffd\tfine" in page and check_page(page)["p"] == 2 and page.encode("utf-8")


def test_long_answers_are_clipped():
    assert clip_text("short") == "short" and len(clip_text("x" * 500)) == 160


def test_pictures_keep_their_pixels_and_their_aspect():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels / 255)))), pixels)
    assert shrink(np.zeros((400, 800, 3), np.uint8), 200).shape == (100, 200, 3)
    assert shrink(pixels, 200) is pixels


def test_curves_are_smoothed_and_leave_out_what_is_not_finite():
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert choose_ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    chart = render(make_line_chart("lm_loss", [1, 2, 3], [3.0, float("nan"), 1.0]))
    assert "1 values not finite" in chart and chart.count("<polyline") == 2 and "nan" not in chart
    # Not the end of the smoothed curve.
    assert "lm_loss: 1 at step 3, the last of the log" in chart
    assert "no finite values" in render(make_line_chart("x", [1], [float("inf")]))
    check_page(make_page("t", "l", [], [make_line_chart("flat", [5], [2.0])]))


def test_drawings_lie_where_the_geometry_puts_them():
    bounds = (-2.0, -1.0, 3.0, 4.0)
    points = np.random.default_rng(0).uniform(-1, 3, (20, 3))
    pixels, _ = project_bev(torch.from_numpy(points), torch.tensor(bounds), SIDE)
    # Pixel centres are integers there, edges are here: half a pixel apart.
    assert place_points(points, bounds) == pytest.approx(pixels.numpy() + 0.5)


def test_a_wedge_opens_to_where_its_camera_looks():
    looks_along_x = np.eye(4)
    looks_along_x[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    looks_down = np.diag([1.0, -1.0, -1.0, 1.0])
    drawn = [render(mark) for mark in draw_cameras(np.stack([looks_along_x, looks_down]), "ab", (-2, -2, 2, 2), [1])]
    corners = [
        np.array([pair.split(",") for pair in re.search(r'points="([^"]+)"', mark)[1].split()], float)
        for mark in drawn[::2]
    ]
    assert corners[0][0] == pytest.approx([200, 200]) and (corners[0][1:, 0] > 200).all()
    assert np.isfinite(corners[1]).all() and "#d9730d" in drawn[2] and "#2457c5" in drawn[0]


def test_boxes_are_drawn_by_their_corners():
    bev = render(
        make_bev_drawing(np.zeros((8, 8, 3), np.uint8), (0, 0, 4, 4), [DrawnBox([1, 3, 0, 2, 1, 1], "red", "a<b")])
    )
    assert 'x="0.0" y="50.0" width="200.0" height="100.0"' in bev and "a&lt;b" in bev


def test_the_score_table_names_the_gain_over_the_best_baseline():
    row = {"num_questions": 4, "main_score": "exact_match", "exact_match": 0.75}
    scores = {"macro_exact_match": 0.75, "types": {"color": row}}
    other = {"macro_exact_match": 0.5, "types": {"color": row | {"exact_match": 0.5}}}
    interval = {"mean": 0.75, "low": 0.625, "high": 0.875}
    table = ElementTree.fromstring(
        render(make_score_table(scores, {"color": interval}, {"blind": other, "majority": None}))
    )
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    assert rows[0][3:] == ["model, %", "blind, %", "majority, %", "gain, points"]
    assert rows[1][2:] == ["4", "75.0 [62.5, 87.5]", "50.0", "–", "+25.0"]
    assert rows[2][2:] == ["4", "75.0", "50.0", "–", "+25.0"]


def test_the_summary_holds_what_counts(tmp_path):
    metrics = json.loads((write_run(tmp_path) / "metrics.json").read_text())
    row = dict.fromkeys(("one_sample", "mean_of_samples", "teacher", "mean_picture", "other_scene"), 20.0)
    difference = {"mean": 1.0, "low": 0.5, "high": 1.5, "num_pairs": 64}
    part = {"psnr": row | {"positions_only": 18.0}, "differences": {"mean_of_samples - other_scene": difference}}
    metrics["scores"]["reconstruction"] = {"view": part, "bev_object": part, "bev_rest": part}
    lines = format_summary(metrics, metrics).split("\n")
    assert lines[0] == "rooms, split val"
    assert lines[1].split() == "score, % questions model blind look-up majority gain".split()
    assert "existence 2 50.0 50.0 - - +0.0".split() in [line.split() for line in lines]
    assert "grounding chooses among proposals of the source: depth" in lines
    assert "masked views, mean of samples - other scene: +1.00 [+0.50, +1.50] over 64" in lines
    assert not any(line.startswith("bev rest, ") for line in lines)


def test_a_run_page_shows_scores_curves_answers_and_boxes(tmp_path):
    path = write_run_page(write_run(tmp_path), read_rgbd_folder)
    page = path.read_text(encoding="utf-8")
    check_page(page)
    assert path == tmp_path / "report.html"
    for text in ("Is &lt;here&gt; a bed?", "&lt;no&gt; &amp; no", "&lt;b&gt;model&lt;/b&gt;", "lm_loss", "val-000000",
                 "rooms (split val)", "--proposals depth"):  # fmt: skip
        assert text in page
    assert "grounding_loss:" not in page and page.count("<polyline") == 4


def test_a_run_page_says_what_is_not_there(tmp_path):
    settings = {
        "model": "user/model",
        "data": "gone",
        "tasks": {"rooms": {"split": "val", "scene_path": "{split}/{scene_id}"}},
    }
    page = make_run_page(write_run(tmp_path, settings=settings), read_rgbd_folder)
    assert "does not exist any more" in page and "the model folder has no trainer_state.json" in page
    with pytest.raises(FileNotFoundError, match="expected the output folder of eval.py, got no such file"):
        make_run_page(tmp_path / "model", read_rgbd_folder)


def test_the_picture_of_a_run_has_a_row_for_each_thing_rebuilt(tmp_path):
    """Two scenes with a view and a bird's-eye picture each: four rows, six columns, tiles where they belong."""
    with pytest.raises(FileNotFoundError, match="expected images of reconstructed scenes, found none; evaluate with"):
        make_picture(tmp_path)
    shades = {}
    for scene in ("val-000000", "val-000001"):
        for name in ("view02", "view05", "bev"):
            for column in COLUMNS:
                shades[scene, name, column] = color = (len(shades) * 5 + 9, 90, 200)
                path = tmp_path / "pictures" / scene / f"{name}_{column}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (16, 16), color).save(path)
    picture = make_picture(tmp_path)
    step = TILE + GAP
    assert picture.size == (6 * step + GAP, HEAD + 4 * step + GAP)
    rows = [(scene, name) for scene in ("val-000000", "val-000001") for name in ("view02", "bev")]
    for row, beginning in enumerate(rows):
        for column, name in enumerate(COLUMNS):
            place = (GAP + column * step + TILE // 2, HEAD + row * step + TILE // 2)
            assert picture.getpixel(place) == shades[*beginning, name]
    save_picture(tmp_path / "deep" / "sheet.png", picture)
    with Image.open(tmp_path / "deep" / "sheet.png") as saved:
        assert saved.size == picture.size
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]


def test_blind_scores_stand_beside(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "blind").mkdir()
    write_run(tmp_path / "run")
    write_run(tmp_path / "run" / "blind")
    assert "blind, %" in make_run_page(tmp_path / "run", read_rgbd_folder)


def test_the_view_tool_tells_scenes_from_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = view.main([str(get_rooms() / "val" / "val-000001")])
    assert page == Path("val-000001.html")
    text = page.read_text(encoding="utf-8")
    # Six cameras in the bird's-eye picture, and again in the sanity picture.
    assert check_page(text)["polygon"] == 2 * 6 and "frame-000005" in text and "Boxes with their numbers" in text
    (tmp_path / "run").mkdir()
    page = view.main([str(write_run(tmp_path / "run"))])
    text = page.read_text(encoding="utf-8")
    # The run looked at four of the six views.
    assert page == tmp_path / "run" / "report.html" and "view 3" in text and "view 4" not in text


def test_the_view_tool_wants_rerun_only_when_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ImportError, match="pip install rerun-sdk"):
        view.main([str(get_rooms() / "val" / "val-000001"), "--output", str(tmp_path / "a.html"), "--rerun"])
