"""Benchmarks: raw ScanNet files to scores, videos, windows of frames, prompts, and what is refused."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from ross3d.data.annotations import Annotation, load_annotations, save_annotations
from ross3d.data.arguments import DataArguments
from ross3d.data.prepare.__main__ import main as prepare
from ross3d.data.proposal_sources import ProposalMaker
from ross3d.data.sources import read_scene
from ross3d.data.sources.video import read_video
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tasks import find_tasks
from ross3d.tasks.answering import clean_response, get_proposals
from ross3d.tasks.intervals import compute_intervals, get_sums
from ross3d.tasks.task import EvalContext, EvalSettings, OpenScene, Task
from ross3d.tests.official_annotations import write_masks, write_official, write_raw_set
from ross3d.tests.test_eval import door
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.train import main as train
from ross3d.training.arguments import RunArguments


SCANNET_TASKS = {"scanqa": "val", "sqa3d": "test", "scan2cap": "val", "scanrefer": "val", "multi3drefer": "val"}
TASKS = find_tasks()
CHOICE = "Answer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A data folder prepared from raw ScanNet files of three synthetic rooms."""
    raw = tmp_path_factory.mktemp("raw")
    scans = write_raw_set(raw, num_frames=31)
    write_official(raw / "official", scans)
    write_masks(raw / "masks", scans)
    output = raw / "data"
    command = ["scannet", "--scans", raw / "scans", "--annotations", raw / "official", "--proposals", raw / "masks"]
    command += ["--output", output, "--views", "5", "--bev-size", "48", "--num-workers", "1"]
    prepare([str(word) for word in command])
    return output


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> Path:
    """A tiny model trained for two steps on the prepared questions of all five benchmarks."""
    output = tmp_path_factory.mktemp("trained") / "model"
    trainer = {"output_dir": str(output), "max_steps": 2, "per_device_train_batch_size": 1, "logging_steps": 1}
    trainer |= {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    data = DataArguments(root=str(prepared), epochs=2, questions_per_row=6)
    train(RunArguments(init_from=str(get_checkpoint()), data=data, trainer=trainer))
    return output


def evaluate(output: Path, data: Path, model: Path, tasks: str, *more: str) -> dict:
    given = ["--model", model, "--task", tasks, "--data", data, "--output", output, "--max_new_tokens", "5"]
    return door.main(door.parse_arguments([str(word) for word in [*given, *more]]))


def read_records(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_raw_scans_are_prepared_trained_on_and_scored(prepared, trained, tmp_path):
    metrics = evaluate(tmp_path, prepared, trained, ",".join(SCANNET_TASKS))
    records = read_records(tmp_path)
    for name, split in SCANNET_TASKS.items():
        asked = [a for a in load_annotations(prepared / "annotations" / f"{split}.parquet") if a.task == name]
        mine = [record for record in records if record["task"] == name]
        assert [record["id"] for record in mine] == [a.id for a in asked] and asked
        assert [record["question"] for record in mine] == [a.question for a in asked]
        assert metrics["scores"][name]["num_items"] == len(asked)
        for score, interval in metrics["intervals"][name].items():
            assert interval["mean"] == pytest.approx(metrics["scores"][name][score], abs=1e-6)
            assert interval["num_scenes"] == 1 and interval["low"] is interval["high"] is None
    assert {"exact_match", "CIDEr", "BLEU-4"} < metrics["scores"]["scanqa"].keys()
    assert {"accuracy@0.5", "accuracy@0.5/multiple"} < metrics["intervals"]["scanrefer"].keys()
    assert {"f1@0.5/zt_wo_d", "f1@0.5/mt"} < metrics["intervals"]["multi3drefer"].keys()
    page = (tmp_path / "report.html").read_text()
    assert all(f"Scores: {name}" in page for name in SCANNET_TASKS) and "Scene scene0003_00" in page


def test_an_object_without_a_detected_box_gets_no_caption_and_counts(prepared, trained, tmp_path):
    metrics = evaluate(tmp_path, prepared, trained, "scan2cap")
    records = read_records(tmp_path)
    without = [record for record in records if record["query_coords"] is None]
    assert without and len(without) < len(records)
    assert all(record["prediction"] == "" and record["response"] is None for record in without)
    assert metrics["scores"]["scan2cap"]["num_without_box"] == len(without)
    own = EvalSettings(split="val", proposals="ground_truth")
    objects = TASKS["scan2cap"].load_items(prepared, own)
    assert [item.query_coords for item in objects] == [tuple(item.target_boxes[0][:3]) for item in objects]


def test_grounding_chooses_among_detected_boxes_or_the_objects_own(prepared, trained, tmp_path):
    scene = read_scene(prepared / "val" / "scene0003_00", num_views=3)
    for proposals, boxes in (("given", scene.proposal_boxes), ("ground_truth", scene.boxes)):
        evaluate(tmp_path / proposals, prepared, trained, "scanrefer,multi3drefer", "--proposals", proposals)
        known = boxes.astype(np.float64).tolist()
        for record in read_records(tmp_path / proposals):
            assert len(record["scores"]) == len(boxes) + 1
            assert all(box in known for box in record["answer_boxes"])
            assert len(record["answer_boxes"]) == 1 or record["task"] == "multi3drefer"
    assert not np.array_equal(scene.boxes, scene.proposal_boxes)


def make_context(data: Path, task: Task, **settings) -> EvalContext:
    filled = task.fill_settings(EvalSettings(max_new_tokens=3, **settings))
    return EvalContext(
        model=Ross3DForConditionalGeneration.from_pretrained(get_checkpoint()).eval(),
        processor=AutoProcessor.from_pretrained(get_checkpoint(), trust_remote_code=True),
        device=torch.device("cpu"),
        data_dir=data,
        output_dir=data,
        read_scene=lambda path: read_scene(path, num_views=filled.num_views),
        make_proposals=ProposalMaker("--proposals").propose,
        get_seed=lambda seed, purpose: seed,
        settings=filled,
        scene_path=task.scene_path,
    )


@torch.no_grad()
def answer(context: EvalContext, task: Task) -> list[dict]:
    items = task.load_items(context.data_dir, context.settings)
    groups = {item.scene_id: [other for other in items if other.scene_id == item.scene_id] for item in items}
    scenes = [OpenScene(group, task.prepare(context, group)) for group in groups.values()]
    return [record for records in task.answer(context, scenes) for record in records]


def test_scenes_without_boxes_are_named(prepared):
    context = make_context(prepared, TASKS["scanrefer"])
    scene = read_scene(prepared / "train" / "scene0001_00", num_views=2)
    with pytest.raises(ValueError, match=r"'scene0001_00'.*proposals.json, got no such file; prepare the scene"):
        get_proposals(context, replace(scene, proposal_boxes=None))
    own = replace(context, settings=replace(context.settings, proposals="ground_truth"))
    with pytest.raises(ValueError, match=r"boxes.json, got no such file.*--proposals depth or given"):
        get_proposals(own, replace(scene, boxes=None))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("scanqa", {"task": "other"}, "expected questions of task 'scanqa', got none"),
        ("sqa3d", {"question_type": "why"}, r"id 'a': expected a question_type of \['what', .*got 'why'"),
        ("scanrefer", {"question_type": "single"}, r"expected a question_type of \['unique', 'multiple'\]"),
        ("scanrefer", {"question_type": "unique"}, "id 'a': expected one box in target_boxes, got None"),
        ("multi3drefer", {"question_type": "mt"}, "id 'a': expected a list in target_boxes"),
    ],
)
def test_annotations_that_cannot_be_scored_are_named(tmp_path, task, changes, message):
    grounding = {"answer": "<ground>", "object_ids": [0]} if task in {"scanrefer", "multi3drefer"} else {"answer": "b"}
    values = {"task": task, "question_type": "what", "question": "q"} | grounding | changes
    save_annotations([Annotation("a", "scene", **values)], tmp_path / "annotations" / "val.jsonl")
    with pytest.raises(ValueError, match=message):
        TASKS[task].load_items(tmp_path, EvalSettings(split="val"))


@pytest.mark.parametrize("task", ["scanrefer", "multi3drefer"])
def test_missing_proposals_are_told_before_anything_is_asked(prepared, trained, tmp_path, task, monkeypatch):
    shutil.copytree(prepared, tmp_path / "data")
    (tmp_path / "data" / "val" / "scene0003_00" / "proposals.json").unlink()
    monkeypatch.setattr(door, "load_model", lambda *arguments: pytest.fail("the model was loaded first"))
    message = "expected detected boxes in proposals.json of 1 scenes, got none in 1, first scene0003_00"
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "out", tmp_path / "data", trained, f"scanqa,{task}")
    for source in ("depth", "jittered", "ground_truth"):
        assert TASKS[task].load_items(tmp_path / "data", EvalSettings(split="val", proposals=source))


def test_captions_want_boxes_that_were_detected_when_they_were_prepared(prepared, tmp_path):
    """Boxes that came later stand for no object; an object that none was found for is no reason."""
    rows = load_annotations(prepared / "annotations" / "val.parquet")
    for row in rows:
        row.query_coords = row.query_box = row.query_iou = None
    save_annotations(rows, tmp_path / "annotations" / "val.parquet")
    settings = TASKS["scan2cap"].fill_settings(EvalSettings(split="val"))
    with pytest.raises(ValueError, match="expected detected boxes matched to the objects of scan2cap, got none"):
        TASKS["scan2cap"].load_items(tmp_path, settings)
    own = TASKS["scan2cap"].load_items(tmp_path, replace(settings, proposals="ground_truth"))
    assert own and all(item.query_coords is not None for item in own)
    assert len(TASKS["scan2cap"].load_items(prepared, settings)) == len(own)


def test_other_scenes_do_not_go_on_with_an_evaluation(prepared, trained, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    evaluate(tmp_path / "out", tmp_path / "data", trained, "scanrefer")
    file = tmp_path / "data" / "val" / "scene0003_00" / "proposals.json"
    file.write_text(json.dumps([[50.0, *box[1:]] for box in json.loads(file.read_text())]))
    with pytest.raises(ValueError, match="expected tasks.scanrefer.scenes_sha256="):
        evaluate(tmp_path / "out", tmp_path / "data", trained, "scanrefer")


def test_captions_of_own_boxes_need_them(tmp_path):
    item = Annotation("a", "scene", "scan2cap", "unique", "At <coord> .", "b", query_coords=(0.0, 1.0, 2.0))
    save_annotations([item], tmp_path / "annotations" / "val.jsonl")
    assert TASKS["scan2cap"].load_items(tmp_path, EvalSettings(split="val")) == [item]
    for source in ("depth", "jittered"):
        message = f"--proposals {source}: expected given or ground_truth for scan2cap, because"
        with pytest.raises(ValueError, match=message):
            TASKS["scan2cap"].load_items(tmp_path, EvalSettings(split="val", proposals=source))
    with pytest.raises(ValueError, match="id 'a': expected target_boxes with --proposals ground_truth, got None"):
        TASKS["scan2cap"].load_items(tmp_path, EvalSettings(split="val", proposals="ground_truth"))


def test_responses_lose_blanks_and_a_spelt_end_mark():
    item = Annotation("a", "scene", "scanqa", "unknow", "q", "b")
    assert clean_response(item, " brown. <|im_end|>\n") == "brown."
    assert clean_response(item, "<|im_end|> brown\nchair ") == "<|im_end|> brown\nchair"


def test_published_prompts_reach_the_model_blank_for_blank():
    """The leading blank of prepared questions stays, and the instruction stands where training has it."""
    processor = AutoProcessor.from_pretrained(get_checkpoint(), trust_remote_code=True)
    question, picture = " What is it? Answer the question simply.", np.zeros((8, 8, 3), np.uint8)
    for instruction in (False, True):
        processor.spatial_instruction = instruction
        ids = processor(images=[picture], text=question, return_tensors="pt")["input_ids"][0]
        text = processor.tokenizer.decode(ids).replace("<image>", "")
        said = (
            "The video captures 3D spatial information of a scene. Please focus on the spatial relationships in the"
            " video and answer the following questions.\n" if instruction else ""
        )  # fmt: skip
        assert text == (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\n"
            f"{said}{question}<|im_end|>\n<|im_start|>assistant\n"
        )


# Videos.


def write_video(path: Path, frames: np.ndarray, options: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_frames(count: int) -> np.ndarray:
    """Frames that grow brighter, each of one shade."""
    shades = np.linspace(20, 230, count).round().astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (count, 48, 64, 3)).copy()


@pytest.mark.parametrize(("count", "num_views"), [(23, 5), (7, 32), (9, None)])
def test_views_of_a_video_are_evenly_spread(tmp_path, count, num_views):
    write_video(tmp_path / "walk.mp4", make_frames(count))
    scene = read_scene(tmp_path / "walk", num_views=num_views)
    wanted = np.unique(np.linspace(0, count - 1, num_views or count).astype(int))
    assert scene.view_names == [f"frame-{index:06d}" for index in wanted] and scene.scene_id == "walk"
    shades = scene.images.mean(axis=(1, 2, 3))
    assert np.abs(shades - make_frames(count)[wanted, 0, 0, 0]).max() < 4 and scene.depth_maps is None


def test_frames_of_a_video_are_halved_as_far_as_is_enough(tmp_path):
    write_video(tmp_path / "walk.mp4", make_frames(3))
    for reduce_to, height in ((None, 48), (25, 48), (24, 24), (12, 12), (13, 24)):
        images = read_video(tmp_path / "walk.mp4", reduce_to=reduce_to).images
        assert images.shape == (3, height, height * 4 // 3, 3)
        assert np.abs(images - make_frames(3)[:, :1, :1].astype(float)).max() < 8


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_videos_that_break_off_are_told(tmp_path, suffix):
    """The index lies in front, so that the beginning alone can be read."""
    file = tmp_path / f"walk.{suffix}"
    write_video(file, make_frames(30), {"movflags": "faststart"} if suffix == "mp4" else {})
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    if suffix == "mp4":
        with pytest.warns(UserWarning, match=r"walk.mp4: \d+ of the 30 frames that the file counts are there; it has"):
            assert 1 <= read_video(file).num_views < 27
    start = content.index(b"mdat") + 8 if suffix == "mp4" else content.index(b"movi") + 4
    file.write_bytes(content[:start])
    with pytest.raises(ValueError, match=f"walk.{suffix}: expected a video, got one that breaks off before its first"):
        read_video(file)


def write_with_sound(file: Path, shape: tuple[int, int], seconds_of_sound: float) -> None:
    """Twenty pictures in two seconds, with sound if it is to last any."""
    rng = np.random.default_rng(3)
    with av.open(str(file), "w") as container:
        stream = container.add_stream({".webm": "libvpx", ".flv": "flv"}.get(file.suffix, "mpeg4"), rate=10)
        (stream.height, stream.width), stream.pix_fmt = shape, "yuv420p"
        sound = container.add_stream("libopus" if file.suffix == ".webm" else "aac", rate=48000)
        pictures = rng.integers(0, 256, (20, *shape, 3), dtype=np.uint8)
        packets = [p for pixels in pictures for p in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))]
        packets += stream.encode()
        for start in range(0, round(48000 * seconds_of_sound), 960):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="flt", layout="mono")
            frame.sample_rate, frame.pts = 48000, start
            packets += sound.encode(frame)
        packets += sound.encode()
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)


@pytest.mark.parametrize("shape", [(64, 96), (80, 48)])
@pytest.mark.parametrize("suffix", [".mkv", ".webm", ".flv"])
@pytest.mark.parametrize("seconds_of_sound", [2.0, 4.0])
def test_videos_that_count_no_frames_and_break_off_are_told_by_their_length(tmp_path, suffix, shape, seconds_of_sound):
    """Also where the sound goes on after the pictures, which is nothing to be told."""
    file = tmp_path / f"walk{suffix}"
    write_with_sound(file, shape, seconds_of_sound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_video(file).num_views == 20
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    told = rf"walk{suffix}: [01]\.\d of the {seconds_of_sound:.0f}\.\d seconds that the file states are there; it has"
    with pytest.warns(UserWarning, match=told):
        assert 1 <= read_video(file).num_views < 18


def test_a_video_without_pictures_is_told(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="flt", layout="mono")
        frame.sample_rate = 44100
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with pytest.raises(ValueError, match="sound.mp4: expected a video, got a file without pictures: sound alone, or"):
        read_video(tmp_path / "sound.mp4")


def test_damaged_videos_are_named(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    for content, message in (
        (b"no video", "a text; check whether the right file"),
        (b"<html>404</html>", "an HTML page; download the file itself"),
        (b"\0\0\0\x18ftypisom" + bytes(90), r"one that cannot be decoded \(.*\): truncated or damaged; copy it again"),
        (bytes(range(256)), r"one that cannot be decoded \(.*\): truncated or damaged; copy it again"),
    ):
        (tmp_path / "text.mp4").write_bytes(content)
        with pytest.raises(ValueError, match=f"text.mp4: expected a video, got {message}") as error:
            read_video(tmp_path / "text.mp4")
        assert "Errno" not in str(error.value)
    write_video(tmp_path / "whole.avi", make_frames(30))
    data = bytearray((tmp_path / "whole.avi").read_bytes())
    # Frames of zeros decode to nothing.
    start = data.index(b"movi") + 4
    for place in range(start, len(data)):
        if data[place : place + 4] == b"00dc":
            size = int.from_bytes(data[place + 4 : place + 8], "little")
            data[place + 8 : place + 8 + size] = bytes(size)
    (tmp_path / "broken.avi").write_bytes(data)
    with pytest.raises(ValueError, match=r"broken.avi: expected (4 of its \d+ frames, got 0|a video)"):
        read_video(tmp_path / "broken.avi", num_views=4)
    with pytest.raises(FileNotFoundError, match="nothing is not a folder, and no video"):
        read_scene(tmp_path / "nothing")


def make_video_rows() -> list[dict]:
    shared = {"dataset": "scannet", "scene_name": "scene0011_00"}
    choice = {
        "question_type": "object_rel_distance",
        "question": "Which is closest?",
        "options": ["A. bed", "B. lamp"],
    }
    return [
        shared | choice | {"id": 0, "ground_truth": "B"},
        shared | {"id": 1, "question_type": "object_counting", "question": "How many?", "ground_truth": "4"},
        {"dataset": "arkitscenes", "scene_name": "410"} | choice | {"id": 2, "ground_truth": "A"},
    ]


def write_rows(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture()
def videos(tmp_path) -> Path:
    return write_videos(tmp_path)


def test_answers_about_videos_are_read_as_they_are(videos, monkeypatch):
    """The published rule takes the text before the first blank, so a blank in front is a wrong answer."""
    task = TASKS["vsibench"]
    said = iter([" B", "4.", "A"])
    context = make_context(videos, task, num_views=2, batch_size=1)
    monkeypatch.setattr(context.processor, "batch_decode", lambda *_, **__: [next(said)])
    records = answer(context, task)
    assert [record["prediction"] for record in records] == [" B", "4.", "A"]
    assert [record["right"] for record in records] == [False, True, True]


def test_questions_about_videos_are_asked_as_published_and_scored(videos):
    task = TASKS["vsibench"]
    context = make_context(videos, task, num_views=4)
    assert context.settings.split == "test" and task.max_new_tokens == 16
    records = answer(context, task)
    assert [record["id"] for record in records] == ["0", "1", "2"]
    assert records[0]["question"] == (
        f"These are frames of a video.\nWhich is closest?\nOptions:\nA. bed\nB. lamp\n{CHOICE}"
    )
    assert records[1]["question"] == (
        "These are frames of a video.\nHow many?\nPlease answer the question using a single word or phrase."
    )
    said = [record | {"prediction": text} for record, text in zip(records, ["B. the lamp", "5", "B"], strict=True)]
    scores = task.score(said)
    assert scores["object_rel_distance"] == 0.5 and scores["object_counting"] == pytest.approx(0.6)
    assert scores["overall"] == pytest.approx(0.55) and scores["num_items"] == 3
    intervals = compute_intervals(get_sums(task, said), np.array([record["scene_id"] for record in said]))
    assert intervals["object_rel_distance"] == {"mean": 0.5, "low": 0.0, "high": 1.0, "num_scenes": 2}
    assert intervals["object_counting"] == {"mean": 0.6, "low": 0.6, "high": 0.6, "num_scenes": 2}
    assert intervals["overall"]["mean"] == pytest.approx(scores["overall"])


def test_a_posed_scan_takes_the_place_of_a_video(videos, prepared):
    (videos / "scannet" / "scene0011_00").symlink_to(prepared / "val" / "scene0003_00")
    context = make_context(videos, TASKS["vsibench"], num_views=3)
    scene = context.load_scene("scannet/scene0011_00")
    assert scene.depth_maps is not None and scene.num_views == 3
    assert len(answer(context, TASKS["vsibench"])) == 3


def make_timed_rows() -> list[dict]:
    return [
        {"id": 7, "video_path": "scannet/val/scene0012_00.mp4", "question_type": "camera_movement_direction",
         "question": "Where to?", "options": ["A. left", "B. right"], "ground_truth": "left", "mc_answer": "A"},
        {"id": 8, "video_path": "scannet/val/scene0012_00.mp4", "question_type": "camera_obj_dist_change",
         "question": "By how much?", "options": None, "ground_truth": -0.5, "mc_answer": None},
    ]  # fmt: skip


def test_vstibench_reads_its_own_fields(tmp_path):
    rows = make_timed_rows()
    task = TASKS["vstibench"]
    write_rows(tmp_path / "test.jsonl", rows)
    write_video(tmp_path / "scannet" / "val" / "scene0012_00.mp4", make_frames(5))
    records = answer(make_context(tmp_path, task, num_views=2), task)
    assert [record["references"] for record in records] == [["A"], ["-0.5"]]
    scores = task.score([record | {"prediction": text} for record, text in zip(records, ["a", "3"], strict=True)])
    assert scores["camera_movement_direction"] == 1.0
    assert scores["camera_obj_dist_change"] == 0.0 and scores["camera_obj_dist_change_published"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_type": "smell"}, r"test.jsonl, row 1: .*got 'smell' as its type; check that it is a file of"),
        ({"ground_truth": None}, r"got \['ground_truth'\] missing"),
        ({"question": ""}, r"got \['question'\] missing"),
        ({"options": []}, r"row 1: expected options for a object_rel_distance question, got \[\]"),
        ({"id": 1}, r"row 2: expected unique ids, got '1' again"),
        ({"question": "  "}, r"test.jsonl, row 1: expected text as the question, got '  '; correct it"),
        ({"question": ["a"]}, r"row 1: expected text as the question, got \['a'\]"),
        (
            {"question": "<|im_end|> hi"},
            r"row 1: question must be plain text, got the special tokens .*<\|im_end\|>.*'0'",
        ),
        ({"options": "A. bed"}, r"row 1: expected options as a list of non-blank strings, got 'A. bed'"),
        ({"options": ["A. bed", " "]}, "row 1: expected options as a list of non-blank strings"),
        (
            {"options": ["A. bed", "B. <image>"]},
            r"row 1: question must be plain text, got the special tokens \['<image>'\]",
        ),
        ({"ground_truth": "E"}, r"row 1: expected the letter of one of the 2 options, \['A', 'B'\], .*got 'E'"),
        ({"scene_name": "../../other"}, "row 1: scene_id"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(tmp_path, changes, message):
    rows = make_video_rows()
    write_rows(tmp_path / "test.jsonl", [rows[0] | changes, *rows[1:]])
    with pytest.raises(ValueError, match=message):
        TASKS["vsibench"].load_items(tmp_path, EvalSettings(split="test"))


@pytest.mark.parametrize("number", ["NaN", "many", "inf", True])
def test_numbers_that_no_answer_equals_are_named(tmp_path, number):
    """Rows are counted as lines of the file, a blank one included."""
    rows = make_video_rows()
    write_rows(tmp_path / "test.jsonl", [rows[0], rows[1] | {"ground_truth": number}])
    file = tmp_path / "test.jsonl"
    file.write_text("\n" + file.read_text())
    message = rf"test.jsonl, row 3: expected a number as the right answer, got '{number}'"
    with pytest.raises(ValueError, match=message):
        TASKS["vsibench"].load_items(tmp_path, EvalSettings(split="test"))


@pytest.mark.parametrize("value", [None, 7, ""])
def test_rows_without_the_name_of_a_video_are_named(tmp_path, value):
    write_rows(tmp_path / "test.jsonl", [make_timed_rows()[0] | {"video_path": value}])
    with pytest.raises(ValueError, match="test.jsonl, row 1: expected the name of a video, got"):
        TASKS["vstibench"].load_items(tmp_path, EvalSettings(split="test"))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_file_without_rows_is_refused(tmp_path, suffix):
    file = tmp_path / f"test.{suffix}"
    if suffix == "jsonl":
        file.write_text("\n")
    else:
        pq.write_table(pa.table({"id": pa.array([], pa.int64())}), file)
    with pytest.raises(ValueError, match=rf"test.{suffix}: expected a benchmark's rows, got none; download the file"):
        TASKS["vsibench"].load_items(tmp_path, EvalSettings(split="test"))


def test_files_of_rows_that_cannot_be_read_are_named(tmp_path):
    task, settings = TASKS["vsibench"], EvalSettings(split="test")
    with pytest.raises(FileNotFoundError, match=r"expected the benchmark's rows in one of \['test.jsonl'"):
        task.load_items(tmp_path, settings)
    (tmp_path / "test.parquet").write_text("x")
    with pytest.raises(ValueError, match="test.parquet: expected a Parquet file of a benchmark's rows, got"):
        task.load_items(tmp_path, settings)
    (tmp_path / "test.jsonl").write_text("{}\n{cut")
    with pytest.raises(ValueError, match=r"expected one file of rows, got \['test.jsonl', 'test.parquet'\]"):
        task.load_items(tmp_path, settings)
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(ValueError, match=r"test.jsonl:2: expected a row of JSON, but the file is not valid JSON"):
        task.load_items(tmp_path, settings)
    row = make_video_rows()[0]
    del row["scene_name"]
    write_rows(tmp_path / "test.jsonl", [row])
    with pytest.raises(ValueError, match="row 1: expected the field 'scene_name' with the name of the video"):
        task.load_items(tmp_path, settings)


# Windows of frames.


def write_frames(folder: Path, scenes: dict[str, int]) -> None:
    for scene_id, count in scenes.items():
        for index, frame in enumerate(make_frames(count)):
            file = folder / "scannet" / "posed_images" / scene_id / f"{index:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(file)


def make_detection_row(scene_id: str, first: int) -> dict:
    images = [f"scannet/posed_images/{scene_id}/{index:05d}.jpg" for index in range(first, first + 2)]
    human = "<image>\n<image>\nDetect the 3D bounding boxes in the camera coordinate system of the first frame.\n..."
    boxes = [{"label": "chair", "bbox_3d": [0, 0, 2, 0.5, 0.5, 1, 0.1, 0, 0]}]
    return {
        "images": images,
        "boxes": boxes,
        "conversations": [{"from": "human", "value": human}, {"from": "gpt", "value": "[]"}],
    }


def test_detection_asks_each_window_about_its_own_frames(tmp_path):
    task = TASKS["scannet_det"]
    write_frames(tmp_path, {"scene0011_00": 4, "scene0012_00": 3})
    rows = [make_detection_row("scene0011_00", 0), make_detection_row("scene0012_00", 1)]
    rows.append(make_detection_row("scene0011_00", 2))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "scannet_det_val_4frames.json").write_text(json.dumps(rows))
    records = answer(make_context(tmp_path, task), task)
    assert [record["scene_id"] for record in records] == ["scene0011_00", "scene0012_00", "scene0011_00"]
    assert len(task.load_items(tmp_path, EvalSettings(split="val", limit=1))) == 2
    # The published text has a line break for each slot; the first is part of ours.
    assert records[0]["question"].startswith("\nDetect the 3D") and records[0]["right"] is None
    context = make_context(tmp_path, task)
    context.processor.spatial_instruction = True
    assert answer(context, task)[0]["question"].startswith("\nDetect")
    found = json.dumps([{"label": "chair", "bbox_3d": [0, 0, 2, 0.5, 0.5, 1, 0.1, 0, 0]}])
    said = [record | {"prediction": text} for record, text in zip(records, [found, "?", "[]"], strict=True)]
    scores = task.score(said)
    assert scores["recall_cate8"] == pytest.approx(1 / 3 / 8) and scores["num_items"] == 3
    assert task.get_values(said)["window_f1"].tolist() == [1.0, 0.0, 0.0]
    for name, summed in task.get_sums(said).items():
        assert summed.compute(summed.counts.sum(axis=0, keepdims=True))[0] == pytest.approx(scores[name])


def make_located_row(views: int = 2) -> dict:
    turn = [[0, 0, 1, 1.0], [-1, 0, 0, 2.0], [0, -1, 0, 1.5], [0, 0, 0, 1]]
    return {
        "images": [f"scannet/posed_images/scene0011_00/{index:05d}.jpg" for index in range(views)],
        "prompt": "Localize the first clear frame.\nText: A chair.\n",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "{}"}],
        "gt_bbox": [3.0, 2.0, 1.5, 1.0, 1.0, 1.0, 0, 0, 0],
        "cam2global": [np.eye(4).tolist(), turn],
        "cam2img": np.eye(4).tolist(),
        "axis_align_matrix": np.eye(4).tolist(),
        "metadata": {"question_type": "unique"},
    }


def test_an_answered_frame_and_box_are_turned_into_the_world(tmp_path):
    task = TASKS["vgllm_scanrefer"]
    write_frames(tmp_path, {"scene0011_00": 2})
    (tmp_path / "scanrefer_val_24frames.json").write_text(json.dumps([make_located_row()]))
    (record,) = answer(make_context(tmp_path, task), task)
    assert record["question"] == "Localize the first clear frame.\nText: A chair.\n"
    right = record | {"prediction": '{"frame": 1, "bbox_3d": [0, 0, 2, 1, 1, 1, 0, 0, 0]}'}
    wrong = record | {"prediction": '{"frame": 0, "bbox_3d": [0, 0, 2, 1, 1, 1, 0, 0, 0]}'}
    assert task.score([right, wrong])["accuracy@0.5"] == 0.5
    assert task.get_values([right, wrong, record])["accuracy@0.25"].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cam2global": [np.eye(4).tolist()]}, "entry 0: expected one cam2global for each of 2 images, got 1"),
        (
            {"axis_align_matrix": [1, 2]},
            "entry 0: expected axis_align_matrix to be a finite 4x4 matrix",
        ),
        ({"gt_bbox": [1, 2, 3]}, "entry 0, gt_bbox: expected an array of shape"),
        ({"images": []}, r"entry 0: expected a row as published \(docs/DATA.md\), got IndexError"),
        ({"images": None}, "entry 0: expected a row as published"),
    ],
)
def test_rows_of_windows_that_cannot_be_read_are_named(tmp_path, changes, message):
    if changes.get("images") == []:
        changes = changes | {"cam2global": []}
    (tmp_path / "scanrefer_val_32frames.json").write_text(json.dumps([make_located_row() | changes]))
    with pytest.raises(ValueError, match=message):
        TASKS["vgllm_scanrefer"].load_items(tmp_path, EvalSettings(split="val"))


def test_files_of_windows_that_cannot_be_read_are_named(tmp_path):
    task, settings = TASKS["scannet_det"], EvalSettings(split="val")
    with pytest.raises(FileNotFoundError, match=r"rows in a file scannet_det_val_\*frames.json, got none"):
        task.load_items(tmp_path, settings)
    file = tmp_path / "scannet_det_val_4frames.json"
    file.write_text("[{")
    with pytest.raises(
        ValueError,
        match="scannet_det_val_4frames.json: expected a JSON list of rows, but the file is not valid JSON .*Expecting",
    ):
        task.load_items(tmp_path, settings)
    file.write_text("{}")
    with pytest.raises(ValueError, match="expected a JSON list of rows, got dict"):
        task.load_items(tmp_path, settings)
    (tmp_path / "scannet_det_val_6frames.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"expected one file scannet_det_val_\*frames.json, got .*; remove all but one"
    ):
        task.load_items(tmp_path, settings)


# Every benchmark through eval.py's own look at its scenes.


def write_videos(folder: Path) -> Path:
    write_rows(folder / "test.jsonl", make_video_rows())
    write_video(folder / "scannet" / "scene0011_00.mp4", make_frames(11))
    write_video(folder / "arkitscenes" / "410.mov", make_frames(6))
    return folder


def write_timed_videos(folder: Path) -> Path:
    write_rows(folder / "test.jsonl", make_timed_rows())
    write_video(folder / "scannet" / "val" / "scene0012_00.mp4", make_frames(5))
    return folder


def write_detection(folder: Path) -> Path:
    write_frames(folder, {"scene0011_00": 4, "scene0012_00": 3})
    rows = [make_detection_row("scene0011_00", 0), make_detection_row("scene0012_00", 1)]
    (folder / "scannet_det_val_4frames.json").write_text(json.dumps(rows))
    return folder


def write_located(folder: Path) -> Path:
    write_frames(folder, {"scene0011_00": 2})
    (folder / "scanrefer_val_24frames.json").write_text(json.dumps([make_located_row()]))
    return folder


# Benchmarks whose published files are read as they are, with what writes a small one.
WRITERS = {
    "vsibench": write_videos,
    "vstibench": write_timed_videos,
    "scannet_det": write_detection,
    "vgllm_scanrefer": write_located,
}


def find_data(name: str, folder: Path, request: pytest.FixtureRequest) -> Path:
    """A small data folder of a task; a new one needs a row in `WRITERS`, or a line here."""
    if name in WRITERS:
        return WRITERS[name](folder)
    if name in {"rooms", "reconstruction"}:
        return get_rooms()
    assert name in SCANNET_TASKS, f"no small data of task {name}"
    return request.getfixturevalue("prepared")


def look_at_scenes(data: Path, task: Task) -> str:
    """What eval.py makes of the scenes of a task's questions before it answers."""
    settings = task.fill_settings(EvalSettings())
    context = EvalContext(None, None, None, data, data, None, None, None, settings, task.scene_path)
    return door.hash_scenes(context, task.load_items(data, settings))


@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_scenes_of_every_benchmark_are_found(name, tmp_path, request):
    task = TASKS[name]
    data = find_data(name, tmp_path, request)
    assert len(look_at_scenes(data, task)) == 64
    assert look_at_scenes(data, task) == look_at_scenes(data, task)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_published_files_are_evaluated_by_the_program(name, tmp_path):
    """From the command line to the page, where the benchmark is read as it is published."""
    data = WRITERS[name](tmp_path / "data")
    metrics = evaluate(tmp_path / "out", data, get_checkpoint(), name, "--num_views", "3")
    records = read_records(tmp_path / "out")
    asked = TASKS[name].load_items(data, TASKS[name].fill_settings(EvalSettings()))
    assert [record["id"] for record in records] == [item.id for item in asked] and asked
    assert metrics["scores"][name]["num_items"] == len(asked)
    assert name in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("gone", [["scannet/scene0011_00.mp4"], ["scannet/scene0011_00.mp4", "arkitscenes/410.mov"]])
def test_videos_that_are_not_there_are_counted(tmp_path, gone):
    write_videos(tmp_path)
    for name in gone:
        (tmp_path / name).unlink()
    asked = 2 if len(gone) == 1 else 3
    message = (
        rf"--data {tmp_path}, split test: expected questions about existing scenes, got {asked}, first '0',"
        rf" about {len(gone)} that are not, such as \['scannet/scene0011_00'.*and no video of that name; copy or"
    )
    with pytest.raises(FileNotFoundError, match=message):
        look_at_scenes(tmp_path, TASKS["vsibench"])


def test_a_limit_of_no_scenes_and_a_misspelt_option_are_refused(capsys):
    words = ["--model", "m", "--task", "rooms", "--data", "d", "--output", "o"]
    with pytest.raises(ValueError, match="--limit: expected a whole number of at least 1, got 0; correct the number"):
        door.parse_arguments([*words, "--limit", "0"])
    with pytest.raises(ValueError, match="--rotate must be one of auto, 0, 90"):
        door.parse_arguments([*words, "--rotate", "45"])
    with pytest.raises(ValueError, match="--max-excluded must be a share of the frames"):
        door.parse_arguments([*words, "--max_excluded", "1"])
    with pytest.raises(SystemExit):
        door.parse_arguments([*words, "--lmit", "1"])
    assert "unknown options --lmit 1; did you mean --limit?" in capsys.readouterr().err


def test_meteor_is_asked_for_before_anything_is_answered(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(door, "load_model", lambda *arguments: pytest.fail("the model was loaded first"))
    with pytest.raises((FileNotFoundError, ModuleNotFoundError), match="METEOR"):
        evaluate(tmp_path / "out", videos, get_checkpoint(), "vsibench", "--meteor", "true")


@pytest.mark.slow
def test_meteor_stands_beside_other_caption_scores(prepared, trained, tmp_path):
    pytest.importorskip("pycocoevalcap", reason="METEOR's program comes with pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("METEOR's program needs Java")
    metrics = evaluate(tmp_path, prepared, trained, "scanqa,scan2cap", "--meteor", "true")
    for name in ("scanqa", "scan2cap"):
        interval = metrics["intervals"][name]["METEOR"]
        assert interval["mean"] == pytest.approx(metrics["scores"][name]["METEOR"], abs=1e-6)
        assert interval["num_scenes"] == 1
