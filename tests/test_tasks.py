"""Tasks: what is asked, read and scored; the records on disk; reconstruction with its controls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from ross3d.data.annotations import Annotation, load_annotations, save_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.dataset import SceneRows, get_row_seed
from ross3d.data.prepared import SceneReader
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.proposals import propose_boxes
from ross3d.data.scene import BLIND_PICTURE
from ross3d.data.sources.rgbd_folder import read_rgbd_folder
from ross3d.metrics.benchmarks import VSIBENCH_NUMBERS
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.scenes.questions import QUESTION_TYPES as BUILT_TYPES
from ross3d.scenes.spatial import SPATIAL_TYPES
from ross3d.tasks import reconstruction, rooms
from ross3d.tasks.answering import make_grounding_record
from ross3d.tasks.records import RecordStore, format_lines, read_whole_lines
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, limit_scenes
from ross3d.tests.tiny import get_checkpoint, get_rooms


BOX = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0]
FAR_BOX = [5.0, 5.0, 0.5, 1.0, 1.0, 1.0]


def make_annotation(index: int, question_type: str, answer: str, **values) -> Annotation:
    return Annotation(f"q{index}", "room", "rooms", question_type, "A question?", answer, **values)


def make_spoken(question_type: str, prediction: str, *references: str) -> dict:
    return {"question_type": question_type, "prediction": prediction, "references": list(references)}


def make_grounded(question_type: str, scores, targets, proposals=(BOX, FAR_BOX), source: str = "jittered") -> dict:
    annotation = make_annotation(0, question_type, "<ground>", object_ids=list(range(len(targets))))
    targets = np.array(targets).reshape(-1, 6)
    return make_grounding_record("rooms", annotation, np.array(scores), np.array(proposals), targets, source)


def test_every_question_type_that_is_built_has_a_score():
    assert set(rooms.QUESTION_TYPES) == {*BUILT_TYPES, *SPATIAL_TYPES} == set(rooms.MAIN_SCORES)


def test_macro_mean_weighs_types_alike_and_wants_all_of_them():
    records = [make_spoken(name, "yes", "yes") for name in rooms.EXACT_MATCH_TYPES]
    records += [make_spoken("existence", "no", "yes")] * 3
    scores = rooms.score(records)
    assert scores["types"]["existence"] == {"num_questions": 4, "main_score": "exact_match", "exact_match": 0.25}
    assert scores["macro_exact_match"] == pytest.approx((6 + 0.25) / 7)
    summed = rooms.get_sums(records)["macro_exact_match"]
    assert summed.compute(summed.counts.sum(axis=0, keepdims=True)) == pytest.approx([scores["macro_exact_match"]])
    partial = rooms.score(records[1:-3])
    assert "macro_exact_match" not in rooms.get_sums(records[1:-3])
    assert partial["macro_exact_match"] is None and partial["macro_missing_types"] == ["existence"]


def test_numbers_and_captions_have_scores_of_their_own():
    scores = rooms.score(
        [
            make_spoken("room_size", "18.0", "20"),
            make_spoken("room_size", "", "20"),
            make_spoken("caption", "a red bed in the corner", "a small red bed against the wall"),
        ]
    )["types"]
    assert scores["room_size"]["relative_accuracy"] == pytest.approx(0.45)
    # red and bed of small, red, bed, against, wall
    assert scores["caption"]["attribute_accuracy"] == pytest.approx(2 / 5)
    assert {"CIDEr", "BLEU-4", "ROUGE-L", "exact_match"} <= set(scores["caption"])


def test_grounding_counts_no_target_as_a_miss_unless_it_is_right():
    assert make_grounded("grounding_unique", [0.9, 0.1, 0.5], [BOX])["best_box"] == BOX
    missed = make_grounded("grounding_unique", [0.4, 0.1, 0.5], [BOX])
    scores = rooms.score([missed])["types"]["grounding_unique"]
    assert scores["accuracy@0.5"] == 0 and scores["best_box@0.5"] == 1 and not rooms.is_right(missed)
    none = make_grounded("grounding_none", [0.4, 0.1, 0.5], [])
    assert rooms.score([none])["types"]["grounding_none"]["accuracy"] == 1 and rooms.is_right(none)


def test_the_published_rule_stops_early_and_the_rule_above_no_target_does_not():
    both = make_grounded("grounding_multiple", [0.9, 0.9, 0.0], [FAR_BOX, BOX])
    assert both["predicted_boxes"] == [BOX] and both["boxes_above_no_target"] == [BOX, FAR_BOX]
    scores = rooms.score([both])["types"]["grounding_multiple"]
    assert scores["f1@0.5"] == pytest.approx(2 / 3) and scores["f1_above_no_target@0.5"] == 1
    assert not rooms.is_right(both)
    assert rooms.is_right(make_grounded("grounding_multiple", [0.9, 0.1, 0.0], [BOX]))


def test_without_proposals_nothing_is_found():
    annotation = make_annotation(0, "grounding_unique", "<ground>", object_ids=[0])
    for source in ("depth", "given"):
        record = make_grounding_record("rooms", annotation, np.array([0.3]), np.zeros((0, 6)), np.array([BOX]), source)
        assert record["best_box"] is None and record["predicted_boxes"] == [] and not rooms.is_right(record)


def test_an_object_counts_once_where_boxes_come_from_depth():
    """A copy (IoU 0.6) of the best box is dropped, a box that overlaps it less (0.3) stays; of a detector all stay."""
    copy, beside = [0.25, 0.0, 0.5, 1.0, 1.0, 1.0], [0.54, 0.0, 0.5, 1.0, 1.0, 1.0]
    given = {"scores": [0.9, 0.898, 0.897, 0.0], "targets": [BOX, beside], "proposals": (BOX, copy, beside)}
    for source, boxes in (("given", [BOX, copy, beside]), ("depth", [BOX, beside])):
        record = make_grounded("grounding_multiple", **given, source=source)
        assert record["boxes_above_no_target"] == boxes
        assert record["predicted_boxes"] == boxes[: 2 if source == "given" else 1]
    assert rooms.score([record])["types"]["grounding_multiple"]["f1_above_no_target@0.5"] == 1


def test_answers_are_read_from_the_first_line():
    size = make_annotation(0, "room_size", "20")
    assert rooms.parse_answer(size, " 21.5 square meters\nor so") == "21.5"
    assert rooms.parse_answer(size, "big") == "" and rooms.parse_answer(size, "") == ""
    assert rooms.parse_answer(make_annotation(0, "color", "red"), "\nred \nblue") == "red"


def test_majority_answers_and_look_up_have_the_form_of_a_score():
    train = [make_annotation(i, "color", c) for i, c in enumerate(("red", "red", "blue"))]
    train += [make_annotation(9 + i, "room_size", size) for i, size in enumerate(("10", "12", "40"))]
    assert rooms.find_majority_answers(train) == {"color": "red", "room_size": "10.0"}
    val = [make_annotation(0, "color", "red"), make_annotation(1, "room_size", "12")]
    val.append(make_annotation(2, "grounding_none", "<ground>", object_ids=[]))
    types = rooms.score_majority(train, val)["types"]
    assert types["color"]["exact_match"] == 1 and types["room_size"]["relative_accuracy"] == pytest.approx(0.7)
    assert "grounding_none" not in types
    described = rooms.describe_lookup(dict.fromkeys(rooms.EXACT_MATCH_TYPES, 0.5) | {"grounding_none": 0.9})
    assert described["macro_exact_match"] == 0.5 and "grounding_none" not in described["types"]
    assert rooms.describe_lookup({"color": 0.5})["macro_exact_match"] is None


def test_spatial_questions_are_scored_as_in_vsi_bench():
    """Letters by the first word, whatever its case; numbers by relative accuracy; three directions are one task."""
    records = [make_spoken(name, "B", "B") for name in SPATIAL_TYPES if name not in VSIBENCH_NUMBERS]
    records += [make_spoken(name, "2.1", "2.0") for name in VSIBENCH_NUMBERS]
    records += [make_spoken("object_rel_direction_easy", text, "A") for text in ("a.", "B")]
    scores = rooms.score(records)
    easy = scores["types"]["object_rel_direction_easy"]
    assert easy["accuracy"] == pytest.approx(2 / 3) and easy["num_questions"] == 3
    assert scores["types"]["object_abs_distance"]["relative_accuracy"] == pytest.approx(1.0)
    one_task = (2 / 3 + 1 + 1) / 3
    assert scores["spatial"] == {"num_questions": 12, "overall": pytest.approx((7 + one_task) / 8)}
    others = [make_spoken("existence", "no", "yes")] * 3
    summed = rooms.get_sums(others + records)["spatial: overall"]
    assert summed.compute(summed.counts.sum(0, keepdims=True))[0] == pytest.approx((7 + one_task) / 8)
    assert rooms.get_sums(records[1:]) == rooms.get_sums(others) == {}
    assert rooms.score(records[1:])["spatial"]["overall"] is None and "spatial" not in rooms.score(records[:0])
    asked = make_annotation(0, "route_planning", "C")
    assert rooms.parse_answer(asked, " C\nsurely") == " C\nsurely"
    assert rooms.is_right(make_spoken("object_abs_distance", "2.1", "2.0"))
    assert not rooms.is_right(make_spoken("object_abs_distance", "2.5", "2.0"))


def test_unknown_question_types_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "annotations" / "val.jsonl"
    save_annotations([make_annotation(0, "smell", "sweet")], path)
    with pytest.raises(ValueError, match=r"val.jsonl, id 'q0': expected a question_type of .* got\s+'smell'"):
        rooms.load_items(tmp_path, EvalSettings(split="val"))
    save_annotations([], path)
    with pytest.raises(ValueError, match="questions of task 'rooms', got none; check that it is"):
        rooms.load_items(tmp_path, EvalSettings(split="val"))


def test_a_limit_counts_scenes():
    items = [make_annotation(i, "color", "red") for i in range(4)]
    for item, scene in zip(items, "abab", strict=True):
        item.scene_id = scene
    assert [item.id for item in limit_scenes(items, 1)] == ["q0", "q2"]
    assert limit_scenes(items, None) == items


def test_a_blind_model_is_asked_as_it_was_trained():
    rows = SceneRows(DataArguments(blind=True), [], {}, None, SceneReader(None), None, seed=0)
    (picture,) = rows.get_blind_inputs([])["images"]
    assert np.array_equal(picture, BLIND_PICTURE)


class Item:
    def __init__(self, item_id: str, scene_id: str):
        self.id, self.scene_id = item_id, scene_id


ITEMS = [Item(f"{scene}{number}", scene) for scene in "abc" for number in range(3)]
# A line separator in an answer is not a line break of the file.
RECORDS = [
    {"task": "t", "id": item.id, "scene_id": item.scene_id, "prediction": f"é\u2028\x85 {item.id}"} for item in ITEMS
]


def test_a_file_cut_at_any_byte_gives_back_its_whole_lines(tmp_path):
    data, path = format_lines(RECORDS).encode(), tmp_path / "records.jsonl"
    ends = [position + 1 for position, byte in enumerate(data) if byte == ord("\n")]
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        assert read_whole_lines(path) == RECORDS[: sum(end <= length for end in ends)]


def test_a_store_cut_at_any_byte_asks_again_for_what_is_missing_and_ends_the_same(tmp_path):
    whole = format_lines(RECORDS)
    for length in range(0, len(whole.encode()) + 1, 7):
        folder = tmp_path / str(length)
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "rank0-0.jsonl").write_bytes(whole.encode()[:length])
        store = RecordStore(folder, ["final.jsonl"])
        for scene_id, group in store.get_open_scenes("t", ITEMS).items():
            assert group == [item for item in ITEMS if item.scene_id == scene_id]
            store.append_scene([record for record in RECORDS if record["scene_id"] == scene_id])
        again = RecordStore(folder, ["final.jsonl"])
        assert not again.get_open_scenes("t", ITEMS)
        again.write_final("final.jsonl", again.get_records("t", ITEMS))
        again.remove_parts()
        assert (folder / "final.jsonl").read_text(encoding="utf-8") == whole
        assert not RecordStore(folder, ["final.jsonl"]).get_open_scenes("t", ITEMS)


def test_processes_write_files_of_their_own_and_read_each_others(tmp_path):
    first, second = RecordStore(tmp_path, [], rank=0), RecordStore(tmp_path, [], rank=1)
    first.append_scene(RECORDS[:3])
    second.append_scene(RECORDS[3:6])
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["rank0-0.jsonl", "rank1-0.jsonl"]
    first.read_again()
    assert list(first.get_open_scenes("t", ITEMS)) == ["c"]
    with pytest.raises(ValueError, match=r"expected one for each of 9 items, got none for 3, first 'c0'"):
        first.get_records("t", ITEMS)


def test_psnr_by_hand():
    truth = torch.zeros(2, 3, 4, 4)
    pictures = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert reconstruction.compute_psnr(pictures, truth) == [20.0, 100.0]
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0] = True
    pictures[1, :, 0] = 1.0
    assert reconstruction.compute_psnr(pictures, truth, mask) == [20.0, 0.0]


def test_object_pixels_show_objects_and_not_the_floor():
    scene = read_rgbd_folder(get_rooms() / "val" / "val-000000")
    mask = reconstruction.get_object_pixels(scene)
    assert 0.02 < mask.mean() < 0.6 and not (mask & ~scene.bev_valid).any()
    # Furniture is colourful, floor and walls are grey.
    pixels = scene.bev_image.astype(int)
    colourful = np.ptp(pixels, axis=-1)
    assert np.median(colourful[mask]) > 2 * np.median(colourful[scene.bev_valid & ~mask])


def test_hidden_views_are_seeded_and_have_depth():
    scene = read_rgbd_folder(get_rooms() / "val" / "val-000000")
    scene.depth_maps[[0, 3]] = 0
    drawn = [reconstruction.choose_masked_views(scene, 0.25, seed) for seed in range(20)]
    assert drawn == [reconstruction.choose_masked_views(scene, 0.25, seed) for seed in range(20)]
    assert {len(views) for views in drawn} == {1} and {view for views in drawn for view in views} == {1, 2, 4, 5}
    assert len(reconstruction.choose_masked_views(scene, 0.5, 0)) == 2


def test_reconstruction_scores_pair_ours_with_each_control():
    psnr = {name: 20.0 for name in reconstruction.PREDICTORS} | {"other_scene": 17.0, "mean_picture": 21.0}
    records = [
        {"scene_id": str(i), "views": [{"view": 0, "psnr": psnr}, {"view": 2, "psnr": psnr}], "bev": {"object": psnr}}
        for i in range(4)
    ]
    scores = reconstruction.score(records)
    assert scores["num_scenes"] == 4 and scores["view"]["num_pictures"] == 8
    differences = scores["view"]["differences"]
    assert differences["mean_of_samples - other_scene"]["low"] == pytest.approx(3)
    assert differences["mean_of_samples - mean_picture"]["high"] == pytest.approx(-1)
    assert differences["one_sample - other_scene"]["num_groups"] == 4 and scores["bev_object"]["num_pictures"] == 4


def test_reconstruction_refuses_blind_models_and_single_scenes(tmp_path):
    with pytest.raises(ValueError, match="a blind model has no views to reconstruct"):
        reconstruction.load_items(get_rooms(), EvalSettings(split="val", blind=True))
    (tmp_path / "val" / "only").mkdir(parents=True)
    with pytest.raises(ValueError, match="at least two scenes, one to reconstruct and another as its control"):
        reconstruction.load_items(tmp_path, EvalSettings(split="val"))
    items = reconstruction.load_items(get_rooms(), EvalSettings(split="val", reconstruction_scenes=2))
    assert [(item.scene_id, item.other_scene_id) for item in items] == [
        ("val-000000", "val-000001"),
        ("val-000001", "val-000002"),
    ]


def test_built_questions_load_scene_by_scene():
    items = rooms.load_items(get_rooms(), EvalSettings(split="val", limit=2))
    assert len({item.scene_id for item in items}) == 2
    everything = load_annotations(get_rooms() / "annotations" / "val.jsonl")
    assert items == everything[: len(items)]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> EvalContext:
    model = Ross3DForConditionalGeneration.from_pretrained(get_checkpoint()).eval()
    model.attach_teacher(get_checkpoint() / "teacher")
    return EvalContext(
        model=model,
        processor=AutoProcessor.from_pretrained(get_checkpoint(), trust_remote_code=True),
        device=torch.device("cpu"),
        data_dir=get_rooms(),
        output_dir=tmp_path_factory.mktemp("out"),
        read_scene=read_rgbd_folder,
        make_proposals=ProposalMaker("--proposals").propose,
        get_seed=lambda seed, purpose: get_row_seed(seed, 0, purpose),
        settings=EvalSettings(split="val", num_samples=2, num_inference_steps=2, proposals="jittered"),
    )


def test_rooms_are_grounded_among_boxes_of_the_source_that_is_asked(context):
    annotations = [a for a in rooms.load_items(get_rooms(), context.settings) if a.scene_id == "val-000000"]

    def prepare(source: str):
        settings = replace(context.settings, proposals=source)
        return rooms.TASK.prepare(replace(context, settings=settings), annotations)

    jittered, own, from_depth = (prepare(source) for source in ("jittered", "ground_truth", "depth"))
    assert len(jittered.proposal_boxes) == len(own.proposal_boxes) + 4
    assert (own.proposal_boxes == own.scene_boxes).all() and len(own.scene_boxes)
    scene = context.load_scene("val-000000")
    assert np.array_equal(from_depth.proposal_boxes, propose_boxes(scene).boxes) and len(from_depth.proposal_boxes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"proposals": "predicted"}, r"--proposals: expected one of \['given', 'depth', .*\], got 'predicted'"),
        ({"proposals": "simulated"}, r"--proposals: expected one of \['given', 'depth', .*\], got 'simulated'"),
        ({"decode": "half"}, r"--decode: expected one of \['exact', 'reduced'\], got 'half'"),
        ({"num_views": 0}, "--num-views: expected a whole number from 1 to 10,000, got 0"),
        ({"limit": -1}, "--limit: expected a whole number of at least 1, got -1"),
        ({"scenes_at_once": 0}, "--scenes-at-once: expected a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size: expected a whole number of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        EvalSettings(**values)


@torch.no_grad()
def test_controls_see_what_they_should_and_nothing_else(context):
    scene, other = context.load_scene("val-000000"), context.load_scene("val-000001")
    inputs, targets = reconstruction.prepare_scene(context, scene, [1])
    other_inputs, _ = reconstruction.prepare_scene(context, other, [0])
    states = reconstruction.get_control_states(context.model, inputs, other_inputs, targets.masked)
    same = reconstruction.get_control_states(context.model, inputs, inputs, targets.masked)
    assert torch.equal(same["other_scene"].states, states["mean_of_samples"].states)
    assert not torch.allclose(states["other_scene"].states, states["mean_of_samples"].states)
    for control in states.values():
        assert torch.equal(control.positions, states["mean_of_samples"].positions)
        assert torch.equal(control.visible, inputs["view_mask"] & ~targets.masked)
    # Other pictures at the same positions: only the states that may depend on pictures change.
    inputs["pixel_values"] = -inputs["pixel_values"]
    inverted = reconstruction.get_control_states(context.model, inputs, other_inputs, targets.masked)
    assert torch.equal(inverted["positions_only"].states, states["positions_only"].states)
    assert not torch.allclose(inverted["mean_of_samples"].states, states["mean_of_samples"].states)


@torch.no_grad()
def test_a_hidden_view_does_not_leak_into_what_rebuilds_it(context):
    inputs, targets = reconstruction.prepare_scene(context, context.load_scene("val-000000"), [2])
    states = reconstruction.get_scene_states(context.model, inputs, targets.masked)
    inputs["pixel_values"][0, 2] = 0.7
    assert torch.equal(reconstruction.get_scene_states(context.model, inputs, targets.masked).states, states.states)


def test_a_scene_is_scored_alike_wherever_it_is_answered(context):
    item = reconstruction.load_items(get_rooms(), context.settings)[1]
    other = reconstruction.load_items(get_rooms(), context.settings)[0]
    ((record,),) = answer_alone(context, [item])
    torch.manual_seed(123)
    assert answer_alone(context, [other], [item])[1] == [record]
    assert set(record["bev"]) == {"object", "rest"} and record["num_pixels"]["object"] > 0
    assert set(record["views"][0]["psnr"]) == set(reconstruction.PREDICTORS)


def test_a_scene_without_a_bev_picture_is_scored_on_its_views(context):
    blank = replace(context, read_scene=lambda path: remove_bev(read_rgbd_folder(path)), cache={})
    ((record,),) = answer_alone(blank, [reconstruction.load_items(get_rooms(), context.settings)[0]])
    assert record["bev"] == {} and record["views"] and "bev_object" not in reconstruction.score([record] * 2)


def answer_alone(context, *groups):
    return reconstruction.answer(
        context, [OpenScene(group, reconstruction.prepare(context, group)) for group in groups]
    )


def remove_bev(scene):
    scene.bev_image = scene.bev_valid = scene.bev_bounds = None
    return scene
