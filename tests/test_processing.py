"""The processor: rows of words, labels and their weights, pictures, pooled geometry, settings that survive saving."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from transformers import AutoProcessor

from ross3d.geometry_ross3d import (
    assign_patches,
    assign_tokens,
    get_nearest_indices,
    pool_patch_coords,
    unproject,
)
from ross3d.metrics.grounding import select_proposals
from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.rows_ross3d import COORD_TOKEN, GROUND_TOKEN, LLAVA_VIDEO, SPATIAL_INSTRUCTION
from ross3d.tests.posed_views import (
    BEV_SIZE,
    HEIGHT,
    NUM_PROPOSALS,
    NUM_VIEWS,
    PATCH_SIZE,
    VIEW_SIZE,
    WIDTH,
    make_bev,
    make_test_processor,
    make_views,
)


ANSWER_HEADER = LLAVA_VIDEO.answer_header
SCENE_PREFIX = LLAVA_VIDEO.scene_prefix
TURN_END = LLAVA_VIDEO.turn_end


GRID, PATCHES, PER_VIEW = 3, 5, 3 * 4
QUESTIONS = [
    "How many chairs are there?",
    " What color is the table next to the window? Answer the question simply.",
    "Identify the object according to the following description.\nThe tall lamp in the corner",
    "2 chairs and 13 tables: what's at (1.5, -2)?!\n",
    "Où est la chaise brune ?  Deux espaces…",
    "?",
]


@pytest.fixture(scope="module")
def processor() -> Ross3DProcessor:
    return make_test_processor()


@pytest.fixture(scope="module")
def tokenizer(processor):
    return processor.tokenizer


@pytest.fixture(params=[False, True], ids=["plain", "spatial_instruction"])
def spatial(request) -> bool:
    return request.param


def expand(text: str, num_views: int = NUM_VIEWS) -> str:
    return text.replace("<image>", "<image>" * num_views * PER_VIEW)


def get_question_text(question: str, spatial: bool) -> str:
    instruction = f"{SPATIAL_INSTRUCTION}\n" if spatial else ""
    return f"{SCENE_PREFIX}\n{instruction}{question}{TURN_END}\n{ANSWER_HEADER}"


class TestWords:
    @pytest.mark.parametrize("question", QUESTIONS)
    def test_parts_tokenize_as_the_joined_text(self, processor, tokenizer, spatial, question):
        """The prefix is read once and the segment later: together they must be the ids of the whole text."""
        own = make_test_processor(tokenizer, spatial_instruction=spatial)
        views = make_views()["images"]
        row = own(images=views, text=question)
        prefix, segment = own(images=views), own(text=question)
        joined = tokenizer(expand(get_question_text(question, spatial)))["input_ids"]
        assert row["input_ids"][0].tolist() == joined
        assert prefix["input_ids"][0].tolist() + segment["input_ids"][0].tolist() == joined
        assert tokenizer.decode(joined).replace("<image>", "") == get_question_text(question, spatial).replace(
            "<image>", ""
        )

    def test_the_tokenizer_has_merges_across_which_a_cut_would_show(self, tokenizer):
        """ ".\\n" is one token where a sentence ends, so the cut behind the instruction is not trivial."""
        assert len(tokenizer.encode("questions.\n")) < len("questions.\n") - 3
        assert tokenizer.encode("\n\n") == tokenizer.encode("\n") * 2 or len(tokenizer.encode("\n\n")) == 1

    def test_segments_are_numbered(self, processor):
        views = make_views()["images"]
        inputs = processor(images=views, text=QUESTIONS)
        prefix_length = processor(images=views)["input_ids"].shape[1]
        segments = inputs["segment_ids"][0]
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (1, len(segments))
        assert (segments[:prefix_length] == 0).all() and (segments.diff() >= 0).all()
        for number, question in enumerate(QUESTIONS, start=1):
            alone = processor(text=question)["input_ids"][0]
            assert torch.equal(inputs["input_ids"][0][segments == number], alone)

    def test_placeholders(self, processor):
        """Each of h grid rows has w tokens and its newline."""
        assert processor.tokens_per_view == PER_VIEW == GRID * (GRID + 1)
        ids = processor(images=make_views()["images"])["input_ids"]
        assert (ids == processor.image_token_id).sum() == NUM_VIEWS * PER_VIEW
        assert make_test_processor_of_the_paper(processor.tokenizer).tokens_per_view == 14 * 15

    def test_several_questions_are_padded_right_one_is_padded_left(self, processor):
        views = [make_views(n)["images"] for n in (2, 4, 3)]
        single = processor(images=views, text=QUESTIONS[:3])
        packed = processor(images=views, text=[QUESTIONS[:1], QUESTIONS[:3], QUESTIONS[1:3]])
        scenes = processor(images=views)
        trained = processor(images=views, text=QUESTIONS[:3], answers=["two", "brown", "a lamp"])
        for inputs, column in ((single, 0), (scenes, 0), (packed, -1), (trained, -1)):
            assert (inputs["attention_mask"][0, column] == 0) and (inputs["attention_mask"][:, -1 - column] == 1).any()
            padding = inputs["attention_mask"] == 0
            assert (inputs["input_ids"][padding] == processor.tokenizer.pad_token_id).all()
            assert (inputs["segment_ids"][padding] == -1).all()
            assert (inputs["segment_ids"][~padding] >= 0).all()

    def test_whole_prompts(self, processor, spatial):
        own = make_test_processor(processor.tokenizer, spatial_instruction=spatial)
        views = make_views()["images"]
        prompts = [get_question_text(question, spatial) for question in QUESTIONS]
        plain, whole = own(images=views, text=QUESTIONS), own(images=views, text=prompts)
        assert torch.equal(plain["input_ids"], whole["input_ids"])
        assert torch.equal(plain["segment_ids"], whole["segment_ids"])

    def test_a_prompt_of_another_system(self, processor):
        prompt = f"<|im_start|>system\nBe brief.{TURN_END}\n<|im_start|>user\nLook: <image>Well?{TURN_END}\n"
        inputs = processor(images=make_views()["images"], text=prompt)
        assert inputs["input_ids"][0].tolist() == processor.tokenizer(expand(prompt))["input_ids"]
        last_of_prefix = (inputs["input_ids"][0] == processor.image_token_id).nonzero().max()
        assert (inputs["segment_ids"][0] == 0).nonzero().max() == last_of_prefix

    def test_chat_template_gives_the_same_ids(self, processor, spatial):
        own = make_test_processor(processor.tokenizer, spatial_instruction=spatial)
        scene = make_views()
        for question in QUESTIONS[:4]:
            blocks = [{"type": "image", "image": view} for view in scene["images"]]
            chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": question}]}]
            text = own.apply_chat_template(chat, add_generation_prompt=True)
            assert text == get_question_text(question, spatial)
            inputs = own.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
            expected = own(images=scene["images"], text=question)
            assert inputs.keys() == expected.keys()
            for key in expected:
                assert torch.equal(inputs[key], expected[key]), key

    def test_chat_template_carries_geometry(self, processor):
        scene = make_views()
        cameras = np.broadcast_to(scene["intrinsics"], (NUM_VIEWS, 3, 3))
        blocks = [
            {"type": "image", "image": view, "depth_map": depth, "intrinsics": camera, "cam2world": pose}
            for view, depth, camera, pose in zip(
                scene["images"], scene["depth_maps"], cameras, scene["cam2world"], strict=True
            )
        ]
        chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": f"What is at {COORD_TOKEN} ?"}]}]
        point = [0.5, -1.0, 0.25]
        others = {"query_coords": point, "proposal_boxes": scene["proposal_boxes"]}
        inputs = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, processor_kwargs=others
        )
        expected = processor(**scene, text=f"What is at {COORD_TOKEN} ?", query_coords=point)
        for key in expected:
            assert torch.equal(inputs[key], expected[key]), key
        pair = processor.apply_chat_template([chat, chat], tokenize=True, return_dict=True, processor_kwargs={
            "query_coords": [point, point],
        })  # fmt: skip
        assert torch.equal(pair["patch_coords"][1], expected["patch_coords"][0])

    def test_chat_template_with_several_turns(self, processor):
        chat = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Hm?"}]},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Why?"},
        ]
        text = processor.apply_chat_template(chat)
        assert text == (
            f"<|im_start|>system\nBe brief.{TURN_END}\n<|im_start|>user\n<image>\nHm?{TURN_END}\n"
            f"{ANSWER_HEADER}Yes.{TURN_END}\n<|im_start|>user\nWhy?{TURN_END}\n"
        )


def make_test_processor_of_the_paper(tokenizer) -> Ross3DProcessor:
    return Ross3DProcessor(Ross3DImageProcessor(), tokenizer)


class TestQuestionsAlone:
    def test_one_row_each(self, processor):
        inputs = processor(text=QUESTIONS[:3])
        assert set(inputs) == {"input_ids", "attention_mask", "segment_ids"}
        assert inputs["input_ids"].shape[0] == 3
        assert (inputs["attention_mask"][:, -1] == 1).all() and (inputs["attention_mask"][:, 0] == 0).any()
        assert torch.equal(inputs["segment_ids"], inputs["attention_mask"] * 2 - 1)

    def test_points(self, processor):
        inputs = processor(text=["Where?", f"What is at {COORD_TOKEN} ?"], query_coords=[1.0, 2.0, 3.0])
        assert inputs["query_coords"].shape == (2, 1, 3)
        assert torch.isnan(inputs["query_coords"][0]).all()
        assert inputs["query_coords"][1, 0].tolist() == [1, 2, 3]

    def test_scene_index(self, processor):
        assert "scene_index" not in processor(text=QUESTIONS[:3])
        assert processor(text=QUESTIONS[:3], scene_index=[1, 0, 1])["scene_index"].tolist() == [1, 0, 1]
        nested = processor(text=[QUESTIONS[:1], QUESTIONS[1:3]])
        assert nested["scene_index"].tolist() == [0, 1, 1]
        assert torch.equal(nested["input_ids"], processor(text=QUESTIONS[:3])["input_ids"])

    def test_new_proposals(self, processor):
        scene = make_views()
        given = processor(**scene, text="Which?")
        geometry = {key: scene[key] for key in ("depth_maps", "intrinsics", "cam2world", "proposal_boxes")}
        alone = processor(text=["Which?", "And?"], **geometry)
        for key in ("proposal_boxes", "proposal_mask", "proposal_patches"):
            assert torch.equal(alone[key], given[key])
        assert "patch_coords" not in alone
        assert "proposal_patches" not in processor(text="Which?", proposal_boxes=scene["proposal_boxes"])


ANSWERS = ["two chairs", "dark brown", GROUND_TOKEN, "a lamp", "la chaise", "yes"]
TARGETS = [None, None, [1, 3], None, None, None]


class TestLabels:
    def get_row(self, processor, questions=QUESTIONS, answers=ANSWERS, targets=TARGETS):
        scene = make_views()
        inputs = processor(**scene, text=questions, answers=answers, target_objects=targets)
        return {key: value[0] for key, value in inputs.items()}

    def test_training_rows_hold_the_answers(self, processor, tokenizer):
        row = self.get_row(processor)
        for number, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True), start=1):
            text = f"\n{question}{TURN_END}\n{ANSWER_HEADER}{answer}{TURN_END}\n"
            assert row["input_ids"][row["segment_ids"] == number].tolist() == tokenizer.encode(text)

    def test_published_rule(self, processor, tokenizer):
        """The answer with header and end, and every chat mark and lone line break of the prompt."""
        row = self.get_row(processor, QUESTIONS[:1], ANSWERS[:1], None)
        head = f"<|im_start|>system\nYou are a helpful assistant.{TURN_END}\n<|im_start|>user\n"
        rest = f"\n{QUESTIONS[0]}{TURN_END}\n"
        answer = tokenizer.encode(f"{ANSWER_HEADER}{ANSWERS[0]}{TURN_END}\n")
        marks = [tokenizer.encode(mark)[0] for mark in ("\n", "<|im_start|>", TURN_END)]
        prompt = [*tokenizer.encode(head), *[-1] * NUM_VIEWS * PER_VIEW, *tokenizer.encode(rest)]
        expected = [token if token in marks else -100 for token in prompt] + answer
        assert row["labels"].tolist() == expected
        assert sum(token in marks for token in prompt) == 9

    def test_answer_only_rule(self, tokenizer):
        row = self.get_row(make_test_processor(tokenizer, label_rule="answer_only"), QUESTIONS[:1], ANSWERS[:1], None)
        supervised = row["labels"] != -100
        assert tokenizer.decode(row["labels"][supervised]) == f"{ANSWERS[0]}{TURN_END}"
        assert torch.equal(row["labels"][supervised], row["input_ids"][supervised])

    @pytest.mark.parametrize("rule", ["published", "answer_only"])
    def test_a_single_question_is_shifted_by_one(self, tokenizer, rule):
        row = self.get_row(make_test_processor(tokenizer, label_rule=rule), QUESTIONS[:1], ANSWERS[:1], None)
        assert row["shift_labels"].tolist() == row["labels"][1:].tolist() + [-100]
        weights = row["loss_weights"][row["shift_labels"] != -100]
        assert_close(weights, torch.full_like(weights, 1 / len(weights)))
        assert (row["loss_weights"][row["shift_labels"] == -100] == 0).all()

    @pytest.mark.parametrize("rule", ["published", "answer_only"])
    def test_a_packed_row_weighs_as_its_questions_alone(self, tokenizer, spatial, rule):
        """Every target of the separate rows, with its weight, stands in the packed row; shared ones add up."""
        own = make_test_processor(tokenizer, label_rule=rule, spatial_instruction=spatial)
        packed = self.get_row(own)
        prefix_length = int((packed["segment_ids"] == 0).sum())
        prefix_weights = torch.zeros(prefix_length)
        for number, (question, answer, targets) in enumerate(zip(QUESTIONS, ANSWERS, TARGETS, strict=True), start=1):
            alone = self.get_row(own, [question], [answer], [targets])
            mine = packed["segment_ids"] == number
            for key in ("input_ids", "labels", "shift_labels", "loss_weights"):
                assert torch.equal(packed[key][mine], alone[key][prefix_length:]), key
            prefix_weights += alone["loss_weights"][:prefix_length]
            counted = alone["loss_weights"][:prefix_length] > 0
            assert torch.equal(
                packed["shift_labels"][:prefix_length][counted], alone["shift_labels"][:prefix_length][counted]
            )
        assert_close(packed["loss_weights"][:prefix_length], prefix_weights)
        assert packed["loss_weights"].sum().item() == pytest.approx(len(QUESTIONS) - 1)

    def test_no_segment_predicts_the_next(self, processor):
        row = self.get_row(processor)
        ends = (row["segment_ids"][:-1] != row["segment_ids"][1:]).nonzero()[1:, 0]
        assert len(ends) == len(QUESTIONS) - 1
        assert (row["shift_labels"][ends] == -100).all() and row["shift_labels"][-1] == -100

    def test_grounding_answers_have_no_text_loss(self, processor):
        row = self.get_row(processor)
        mine = row["segment_ids"] == 1 + ANSWERS.index(GROUND_TOKEN)
        assert (row["shift_labels"][mine] == -100).all() and (row["loss_weights"][mine] == 0).all()
        assert processor.ground_token_id in row["labels"][mine].tolist(), "the recorded labels hold the slot"
        only = self.get_row(processor, QUESTIONS[:1], [GROUND_TOKEN], [[]])
        assert (only["shift_labels"] == -100).all() and only["loss_weights"].sum() == 0

    def test_grounding_labels(self, processor):
        row = self.get_row(processor, QUESTIONS[:4], [GROUND_TOKEN, GROUND_TOKEN, "yes", GROUND_TOKEN], [
            [0], [1, 4], None, [],
        ])  # fmt: skip
        assert row["grounding_labels"].tolist() == [
            [1, 0, 0, 0, 0, 0],
            [0, 1, 0, 0, 1, 0],
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 1],
        ]
        assert "grounding_labels" not in self.get_row(processor, QUESTIONS[:1], ["yes"], [None])

    def test_a_single_string_takes_bare_belongings(self, processor):
        scene = make_views()
        for targets in ([1, 4], [[1, 4]]):
            inputs = processor(**scene, text="Which?", answers=GROUND_TOKEN, target_objects=targets)
            assert inputs["grounding_labels"].tolist() == [[[0, 1, 0, 0, 1, 0]]]
        empty = processor(**scene, text="Which?", answers=[GROUND_TOKEN], target_objects=[])
        assert empty["grounding_labels"].tolist() == [[[0, 0, 0, 0, 0, 1]]]

    def test_whole_prompts_take_answers(self, processor):
        prompts = [get_question_text(question, False) for question in QUESTIONS]
        plain, whole = self.get_row(processor), self.get_row(processor, prompts)
        for key in plain:
            assert torch.equal(plain[key], whole[key]), key

    def test_a_scene_without_questions_trains_too(self, processor):
        views = [make_views(2)["images"], make_views(3)["images"]]
        inputs = processor(images=views, text=[["Where?", "What?"], []], answers=[["here", "this"], []])
        assert (inputs["shift_labels"][1] == -100).all() and inputs["loss_weights"][1].sum() == 0
        assert inputs["loss_weights"][0].sum().item() == pytest.approx(2)


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("as_list", [False, True])
def test_the_one_channel_of_a_depth_map_is_dropped(processor, num_views, axis, as_list):
    views = make_views(num_views)
    wanted = processor(**views)
    depth = np.expand_dims(views["depth_maps"], axis)
    found = processor(**views | {"depth_maps": list(depth) if as_list else depth})
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


class TestPictures:
    def get_pixels(self, processor, **inputs):
        return processor(**inputs)["pixel_values"][0]

    def test_every_kind_of_picture_gives_the_same_pixels(self, processor, tmp_path):
        arrays = make_views()["images"]
        files = [tmp_path / f"{i}.png" for i in range(NUM_VIEWS)]
        for array, file in zip(arrays, files, strict=True):
            Image.fromarray(array).save(file)
        expected = self.get_pixels(processor, images=arrays)
        assert expected.shape == (NUM_VIEWS, 3, VIEW_SIZE, VIEW_SIZE) and expected.is_contiguous()
        kinds = [
            np.stack(arrays),
            torch.from_numpy(np.stack(arrays)),
            [torch.from_numpy(array).permute(2, 0, 1) for array in arrays],
            [Image.fromarray(array) for array in arrays],
            files,
            [arrays],
        ]
        for images in kinds:
            assert torch.equal(self.get_pixels(processor, images=images), expected)
        assert torch.equal(self.get_pixels(processor, images=arrays[0]), expected[:1])

    def test_resize_crop_normalise(self, processor):
        """Height to S, width in proportion of the depth map, centre crop, (x / 255 - 0.5) / 0.5."""
        array = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        scene = make_views(1) | {"images": [array]}
        width = int(WIDTH * VIEW_SIZE / HEIGHT)
        resized = np.asarray(Image.fromarray(array).resize((width, VIEW_SIZE), Image.Resampling.BICUBIC))
        left = (width - VIEW_SIZE) // 2
        crop = torch.from_numpy(resized[:, left : left + VIEW_SIZE].copy()).permute(2, 0, 1)
        assert_close(self.get_pixels(processor, **scene)[0], (crop.float() / 255 - 0.5) / 0.5, rtol=0, atol=1e-6)

    def test_without_depth_the_picture_keeps_its_own_aspect(self, processor):
        wide = np.zeros((20, 60, 3), dtype=np.uint8)
        wide[:, 20:40] = 255  # the middle square fills the crop
        assert (self.get_pixels(processor, images=[wide])[0, :, :, 5:-5] == 1).all()

    def test_portrait_pictures(self, processor):
        portrait = np.zeros((60, 20, 3), dtype=np.uint8)
        portrait[20:40] = 255
        with pytest.raises(ValueError, match=r"images\[0\] of scene 0: expected pictures at least as wide as high"):
            processor(images=[portrait])
        ours = make_test_processor(processor.tokenizer, geometry_mode="valid_depth")
        assert (self.get_pixels(ours, images=[portrait])[0, :, 5:-5] == 1).all()

    def test_portrait_depth_follows_the_picture(self, tokenizer):
        """A turned camera sees the same points: coordinates are those of the upright scene, turned."""
        ours = make_test_processor(tokenizer, geometry_mode="valid_depth", patch_size=10)
        scene = make_views()
        size = (VIEW_SIZE * 3 // 2, VIEW_SIZE)
        scene["images"] = list(np.zeros((NUM_VIEWS, *size, 3), dtype=np.uint8))
        scene["depth_maps"] = np.random.default_rng(0).uniform(1, 2, (NUM_VIEWS, *size)).astype(np.float32)
        scene["intrinsics"] = np.array([[45.0, 0, 20.0], [0, 47.0, 30.0], [0, 0, 1]])
        coords = ours(**scene)["patch_coords"][0]
        crop = torch.from_numpy(scene["depth_maps"])[:, 10:50]
        camera = torch.tensor([[45.0, 0, 20.0], [0, 47.0, 20.0], [0, 0, 1]])
        world = unproject(crop, camera, torch.from_numpy(scene["cam2world"]))
        assert_close(coords, pool_patch_coords(world, None, 10, "published")[0], rtol=1e-5, atol=1e-5)

    def test_alone_it_stretches_as_siglip_does(self):
        own = Ross3DImageProcessor(size={"height": 8, "width": 8})
        pixels = own(np.zeros((20, 10, 3), dtype=np.uint8), return_tensors="pt")["pixel_values"]
        assert pixels.shape == (1, 3, 8, 8) and own.backend == "pil"


class TestGeometry:
    @pytest.mark.parametrize("mode", ["published", "valid_depth"])
    def test_pooled_from_the_full_point_map(self, tokenizer, mode):
        """The processor unprojects the pixels it keeps; the full map, resized and cropped, gives the same."""
        own = make_test_processor(tokenizer, geometry_mode=mode)
        scene = make_views()
        inputs = own(**scene)
        depth = torch.from_numpy(scene["depth_maps"])
        full = unproject(depth, torch.from_numpy(scene["intrinsics"]), torch.from_numpy(scene["cam2world"]))
        width = int(WIDTH * VIEW_SIZE / HEIGHT)
        left = (width - VIEW_SIZE) // 2
        rows = get_nearest_indices(HEIGHT, VIEW_SIZE)
        columns = get_nearest_indices(WIDTH, width)[left : left + VIEW_SIZE]
        world, valid = full[:, rows][:, :, columns], (depth > 0)[:, rows][:, :, columns]
        coords, patch_valid = pool_patch_coords(world, valid, PATCH_SIZE, mode)
        readings = valid if mode == "valid_depth" else None
        boxes = torch.from_numpy(scene["proposal_boxes"])
        assert_close(inputs["patch_coords"][0], coords)
        assert torch.equal(inputs["patch_valid"][0], patch_valid)
        patches = assign_patches(world, boxes, PATCH_SIZE, 0.5, readings)
        assert torch.equal(inputs["proposal_patches"][0], patches) and patches.any()
        assert inputs["proposal_patches"].shape == (1, NUM_PROPOSALS, NUM_VIEWS, PATCHES, PATCHES)
        assert inputs["patch_coords"].shape == (1, NUM_VIEWS, GRID, GRID, 3)
        assert inputs["proposal_mask"].tolist() == [[True] * NUM_PROPOSALS]

    @pytest.mark.parametrize("mode", ["published", "valid_depth"])
    @pytest.mark.parametrize(("size", "grid"), [(VIEW_SIZE, GRID), (48, 3)])
    def test_tokens_of_proposals(self, tokenizer, mode, size, grid):
        """By their own share and the rule for missing readings that patches have; without depth there are none."""
        own = make_test_processor(tokenizer, geometry_mode=mode, object_token_threshold=0.125)
        own.image_processor = Ross3DImageProcessor(size={"height": size, "width": size})
        scene = make_views()
        inputs = own(**scene, text="Where?")
        fitted = own.fit_scene(**{key: value for key, value in scene.items() if key != "proposal_boxes"})
        boxes, readings = torch.from_numpy(scene["proposal_boxes"]), fitted.depth > 0
        wanted = assign_tokens(
            fitted.world_coords, boxes, PATCH_SIZE, 0.125, readings if mode != "published" else None
        )
        assert inputs["proposal_tokens"].shape == (1, NUM_PROPOSALS, NUM_VIEWS, grid, grid)
        assert torch.equal(inputs["proposal_tokens"][0], wanted) and wanted.any() and not wanted.all()
        own.object_token_threshold = 1.0
        assert own(**scene)["proposal_tokens"].sum() < wanted.sum()
        assert "proposal_tokens" not in own(images=scene["images"], proposal_boxes=boxes)
        own.object_token_threshold = None
        plain = own(**scene, text="Where?")
        assert set(inputs) - set(plain) == {"proposal_tokens"}
        assert all(torch.equal(plain[key], inputs[key]) for key in plain)

    @pytest.mark.parametrize("value", [0, 1.5, float("nan"), True, "0.5"])
    def test_shares_that_are_none(self, tokenizer, value):
        with pytest.raises(ValueError, match="object_token_threshold: expected a share above 0, at most 1, got"):
            make_test_processor(tokenizer, object_token_threshold=value)

    def test_the_two_modes_differ(self, tokenizer):
        scene = make_views()
        published, ours = (
            make_test_processor(tokenizer, geometry_mode=mode)(**scene) for mode in ("published", "valid_depth")
        )
        assert not torch.allclose(published["patch_coords"], ours["patch_coords"], atol=1e-2)
        assert torch.equal(published["pixel_values"], ours["pixel_values"])

    def test_cameras_of_each_view(self, processor):
        scene = make_views()
        shared = processor(**scene)
        scene["intrinsics"] = np.stack([scene["intrinsics"]] * NUM_VIEWS)
        assert torch.equal(processor(**scene)["patch_coords"], shared["patch_coords"])
        scene["intrinsics"][1, 0, 0] *= 2
        changed = (processor(**scene)["patch_coords"] != shared["patch_coords"]).flatten(2).any(dim=2)
        assert changed.tolist() == [[False, True, False]]

    def test_a_view_without_readings(self, processor):
        scene = make_views()
        scene["depth_maps"][1] = 0
        ours = make_test_processor(processor.tokenizer, geometry_mode="valid_depth")
        message = r"depth_maps of scene kitchen: 1 of 3 views have no reading \(views \[1\]\)"
        with pytest.warns(UserWarning, match=message):
            inputs = ours(**scene, scene_ids="kitchen")
        assert inputs["patch_valid"].flatten(2).any(dim=2).tolist() == [[True, False, True]]
        assert (inputs["patch_coords"][0, 1] == 0).all() and not inputs["proposal_patches"][0, :, 1].any()
        published = processor(**scene)
        centre = torch.from_numpy(scene["cam2world"][1, :3, 3]).float()
        assert published["patch_valid"].all()
        assert_close(published["patch_coords"][0, 1], centre.expand(GRID, GRID, 3))

    def test_without_depth(self, processor):
        scene = make_views()
        inputs = processor(images=scene["images"], text="Where?", proposal_boxes=scene["proposal_boxes"])
        assert not {"patch_coords", "patch_valid", "proposal_patches", "query_coords"} & set(inputs)
        assert inputs["proposal_boxes"].shape == (1, NUM_PROPOSALS, 6)
        only = processor(images=scene["images"])
        assert set(only) == {"input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask"}

    @pytest.mark.parametrize("boxes", [np.zeros((0, 6)), [], torch.zeros(0, 6)])
    def test_no_proposals(self, processor, boxes):
        inputs = processor(**make_views() | {"proposal_boxes": boxes}, text="Which?", answers=GROUND_TOKEN,
                           target_objects=[])  # fmt: skip
        assert inputs["proposal_boxes"].shape == (1, 0, 6)
        assert inputs["proposal_patches"].shape == (1, 0, NUM_VIEWS, PATCHES, PATCHES)
        assert inputs["grounding_labels"].tolist() == [[[1]]]

    def test_lists_and_tensors_are_arrays_too(self, processor):
        scene = make_views()
        expected = processor(**scene)
        lists = {key: [np.asarray(item) for item in value] for key, value in scene.items() if key != "intrinsics"}
        tensors = {key: torch.from_numpy(np.stack(value)) for key, value in scene.items()}
        for given in (scene | lists, tensors, scene | {"intrinsics": scene["intrinsics"].tolist()}):
            inputs = processor(**given)
            for key in expected:
                assert torch.equal(inputs[key], expected[key]), key

    def test_dtypes(self, processor):
        inputs = processor(**make_views(), **make_bev(), text=f"At {COORD_TOKEN} ?", query_coords=(1, 2, 3),
                           answers="a lamp")  # fmt: skip
        integers = ("input_ids", "attention_mask", "segment_ids", "labels", "shift_labels")
        masks = ("view_mask", "patch_valid", "proposal_mask", "proposal_patches", "bev_valid")
        for key, value in inputs.items():
            wanted = torch.long if key in integers else torch.bool if key in masks else torch.float32
            assert value.dtype == wanted, key
            assert not torch.isnan(value.float()).any(), key

    def test_casting_keeps_metres_in_float32(self, processor):
        scene = make_views()
        inputs = processor(**scene, text=f"At {COORD_TOKEN} ?", query_coords=(1.234, 2, 3), answers="a lamp")
        before = {key: inputs[key] for key in ("patch_coords", "query_coords", "proposal_boxes", "loss_weights")}
        cast = inputs.to(torch.bfloat16)
        assert cast["pixel_values"].dtype == torch.bfloat16
        for key, value in before.items():
            assert torch.equal(cast[key], value)

    def test_numpy(self, processor):
        inputs = processor(**make_views(), return_tensors="np")
        assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_cameras_without_depth_are_said_to_be_of_no_use(processor):
    views = make_views() | {"depth_maps": None, "proposal_boxes": None}
    with pytest.warns(UserWarning, match="cam2world of .*: without depth_maps nothing says how far away a pixel is"):
        inputs = processor(**views)
    assert "patch_coords" not in inputs


class TestBirdsEyePicture:
    def test_ours_resizes_a_square(self, tokenizer):
        own = make_test_processor(tokenizer, geometry_mode="valid_depth")
        bev = make_bev()
        inputs = own(images=make_views()["images"], **bev)
        assert inputs["bev_pixel_values"].shape == (1, 3, BEV_SIZE, BEV_SIZE)
        assert inputs["bev_valid"].shape == (1, BEV_SIZE, BEV_SIZE)
        assert inputs["bev_bounds"].tolist() == [[-2, -3, 4, 3]]
        assert (
            inputs["bev_valid"][0, :, BEV_SIZE // 2 :].all() and not inputs["bev_valid"][0, :, : BEV_SIZE // 2].any()
        )
        assert (inputs["bev_pixel_values"][0][:, ~inputs["bev_valid"][0]] == 0).all(), "void stays exactly black"
        assert 0 <= inputs["bev_pixel_values"].min() and inputs["bev_pixel_values"].max() <= 1
        assert inputs["bev_pixel_values"].is_contiguous()

    def test_a_scene_without_a_picture_has_no_edges(self, tokenizer):
        own, bev = make_test_processor(tokenizer, geometry_mode="valid_depth"), make_bev()
        both = {name: [value, None] for name, value in bev.items()}
        inputs = own(images=[make_views(2)["images"], make_views(3)["images"]], **both)
        assert inputs["bev_bounds"][0].tolist() == [-2, -3, 4, 3] and inputs["bev_bounds"][1].isnan().all()
        assert not inputs["bev_valid"][1].any() and not inputs["bev_pixel_values"][1].any()

    def test_published_stretches_to_the_aspect_of_the_views(self, processor):
        bev = make_bev()
        inputs = processor(**make_views(), bev_image=Image.fromarray(bev["bev_image"]))
        width = int(WIDTH * BEV_SIZE / HEIGHT)
        resized = np.asarray(Image.fromarray(bev["bev_image"]).resize((width, BEV_SIZE), Image.Resampling.BICUBIC))
        left = (width - BEV_SIZE) // 2
        expected = torch.from_numpy(resized[:, left : left + BEV_SIZE].copy()).permute(2, 0, 1) / 255
        assert_close(inputs["bev_pixel_values"][0], expected)
        assert "bev_valid" not in inputs and "bev_bounds" not in inputs

    def test_the_right_size_is_left_alone(self, tokenizer):
        own = make_test_processor(tokenizer, geometry_mode="valid_depth", bev_size=30)
        bev = make_bev()
        inputs = own(images=make_views()["images"], **bev)
        assert torch.equal(inputs["bev_valid"][0], torch.from_numpy(bev["bev_valid"]))
        pixels = (inputs["bev_pixel_values"][0] * 255).round().byte().permute(1, 2, 0)
        assert torch.equal(pixels, torch.from_numpy(bev["bev_image"]))


class TestBatches:
    def test_ragged_scenes_equal_each_alone(self, processor):
        scenes = [make_views(views, boxes, seed=views) for views, boxes in ((2, 5), (4, 0), (3, 2))]
        texts = [QUESTIONS[:2], [f"What is at {COORD_TOKEN} ?"], []]
        points = [None, [(1.0, 2.0, 3.0)], None]
        together = processor(
            **{key: [scene[key] for scene in scenes] for key in scenes[0]}, text=texts, query_coords=points
        )
        sizes = {"view_mask": (3, 4), "proposal_mask": (3, 5), "query_coords": (3, 2, 3)}
        for key, size in sizes.items():
            assert together[key].shape == size
        for row, (scene, text, point) in enumerate(zip(scenes, texts, points, strict=True)):
            alone = processor(**scene, text=text or None, query_coords=point if text else None)
            for key, value in alone.items():
                part = together[key][row][tuple(slice(size) for size in value.shape[1:])]
                if key in ("attention_mask", "segment_ids", "input_ids"):
                    part = together[key][row][together["attention_mask"][row].bool()]
                assert torch.equal(part.nan_to_num(7), value[0].nan_to_num(7)), key
        assert together["view_mask"].sum(dim=1).tolist() == [2, 4, 3]
        assert together["proposal_mask"].sum(dim=1).tolist() == [5, 0, 2]

    def test_scenes_with_and_without_depth(self, processor):
        scenes = [make_views(2), make_views(3)]
        scenes[1] |= {"depth_maps": None, "intrinsics": None, "cam2world": None}
        inputs = processor(**{key: [scene[key] for scene in scenes] for key in scenes[0]})
        assert inputs["patch_valid"].flatten(1).any(dim=1).tolist() == [True, False]
        assert not inputs["proposal_patches"][1].any() and inputs["proposal_mask"].all()

    def test_strings_and_lists_mix(self, processor):
        views = [make_views(2)["images"], make_views(3)["images"]]
        mixed = processor(images=views, text=["Where?", ["What?", "Who?"]])
        assert mixed["segment_ids"].max(dim=1).values.tolist() == [1, 2]
        none = processor(images=views, text=["Where?", None])
        assert none["segment_ids"].max(dim=1).values.tolist() == [1, 0]


class TestGroundingAnswers:
    SCORES = torch.tensor(
        [[0.1, 0.9, 0.2, 0.3], [0.5, 0.1, 0.2, 0.8], [0.70, 0.69, 0.2, 0.1], [0.4, -torch.inf, -torch.inf, 0.1]]
    )

    def test_best(self, processor):
        boxes = torch.rand(3, 6)
        answers = processor.post_process_grounding(self.SCORES, boxes)
        assert [answer["proposals"] for answer in answers] == [[1], [0], [0], [0]]
        assert [answer["no_target"] for answer in answers] == [False, True, False, False]
        assert torch.equal(answers[0]["boxes"], boxes[[1]])

    def test_cumulative(self, processor):
        """Two nearly equal scores share the probability: one of them alone stays below the threshold."""
        answers = processor.post_process_grounding(
            self.SCORES, torch.rand(3, 6), selection="cumulative", threshold=0.55
        )
        assert [answer["proposals"] for answer in answers] == [[1], [], [0, 1], [0]]

    def test_boxes_that_overlap_a_better_one_are_dropped_where_asked(self, processor):
        """Of two scenes: boxes 0 and 1 are one in the first, far from each other in the second."""
        boxes = torch.tensor([[[0, 0, 0, 1, 1, 1.0], [0.2, 0, 0, 1, 1, 1], [9, 0, 0, 1, 1, 1]]] * 2)
        boxes[1, 1, 0] = 5
        scores, rule = self.SCORES[[2, 2]], {"selection": "cumulative", "threshold": 0.55, "scene_index": [0, 1]}
        for max_overlap, chosen in ((None, [[0, 1], [0, 1]]), (0.5, [[0], [0, 1]]), (0.7, [[0, 1], [0, 1]])):
            answers = processor.post_process_grounding(scores, boxes, max_overlap=max_overlap, **rule)
            assert [answer["proposals"] for answer in answers] == chosen
        assert answers[0]["boxes"].tolist() == boxes[0, [0, 1]].tolist()

    def test_padding_is_never_chosen(self, processor):
        answers = processor.post_process_grounding(
            self.SCORES[3:], torch.rand(3, 6), selection="cumulative", threshold=0.999
        )
        assert answers[0]["proposals"] == [0]

    @pytest.mark.parametrize("threshold", [0.3, 0.55, 0.9, 0.999])
    def test_the_rule_is_that_of_the_metrics(self, processor, threshold):
        """One rule, written for tensors where checkpoints need it and for arrays where answers are scored."""
        scores = torch.rand(40, 6, generator=torch.Generator().manual_seed(1)) * 0.4
        scores[::3, 4] = -torch.inf
        answers = processor.post_process_grounding(
            scores, torch.rand(5, 6), selection="cumulative", threshold=threshold
        )
        chosen = [select_proposals(row, threshold) for row in scores.numpy()]
        assert [answer["proposals"] for answer in answers] == chosen and len({len(row) for row in chosen}) > 2

    def test_several_scenes(self, processor):
        boxes = torch.rand(2, 3, 6)
        answers = processor.post_process_grounding(self.SCORES, boxes, scene_index=[0, 1, 1, 0])
        assert torch.equal(answers[1]["boxes"], boxes[1, [0]])

    def test_no_proposals(self, processor):
        for selection in ("best", "cumulative"):
            answer = processor.post_process_grounding(torch.zeros(1, 1), torch.zeros(0, 6), selection=selection)[0]
            assert answer["proposals"] == [] and answer["boxes"].shape == (0, 6)


SETTINGS = {
    "patch_size": 10,
    "geometry_mode": "valid_depth",
    "label_rule": "answer_only",
    "spatial_instruction": True,
    "object_patch_threshold": 0.25,
    "object_token_threshold": 0.125,
    "bev_size": 96,
    "return_cameras": True,
    "max_position_embeddings": 512,
}
FRESH_PROCESS = """
import sys
import numpy as np
from transformers import AutoImageProcessor, AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(processor).__module__.startswith("transformers_modules"), type(processor)
assert type(processor.image_processor).__module__.startswith("transformers_modules")
pictures = AutoImageProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(pictures).__name__ == "Ross3DImageProcessor" and pictures.size.height == processor.view_size
assert "torchvision" not in sys.modules and "ross3d" not in sys.modules
given = dict(np.load(sys.argv[2]))
text = [str(question) for question in given.pop("text")]
inputs = processor(text=text, **given)
np.savez(sys.argv[3], **{key: value.numpy() for key, value in inputs.items()})
"""


class TestSaving:
    def test_every_setting_survives(self, tokenizer, tmp_path):
        own = make_test_processor(tokenizer, **SETTINGS)
        own.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "processor_config.json").read_text())
        again = Ross3DProcessor.from_pretrained(tmp_path)
        for key, value in SETTINGS.items():
            assert saved[key] == value and getattr(again, key) == value
        assert again.view_size == VIEW_SIZE and again.chat_template == own.chat_template
        scene = make_views()
        first, second = own(**scene, text=QUESTIONS[:3]), again(**scene, text=QUESTIONS[:3])
        for key in first:
            assert torch.equal(first[key], second[key]), key
        override = Ross3DProcessor.from_pretrained(tmp_path, geometry_mode="published")
        assert override.geometry_mode == "published"

    def test_a_fresh_process_loads_it(self, tokenizer, tmp_path):
        """Only what was saved, in an isolated process elsewhere: the same tensors to the bit."""
        own = make_test_processor(tokenizer, **SETTINGS)
        own.save_pretrained(tmp_path / "saved")
        scene = make_views()
        np.savez(tmp_path / "given.npz", text=QUESTIONS[:3], **scene)
        command = [sys.executable, "-I", "-c", FRESH_PROCESS, "saved", "given.npz", "out.npz"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        expected, loaded = own(**scene, text=QUESTIONS[:3]), np.load(tmp_path / "out.npz")
        assert set(loaded) == set(expected)
        for key in expected:
            assert np.array_equal(loaded[key], expected[key].numpy()), key

    def test_by_remote_code_in_this_process(self, processor, tmp_path):
        processor.save_pretrained(tmp_path)
        remote = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
        assert type(remote).__name__ == "Ross3DProcessor"
        assert remote.batch_decode([[processor.tokenizer.eos_token_id]], skip_special_tokens=True) == [""]

    def test_pickles_for_workers(self, processor):
        again = pickle.loads(pickle.dumps(processor))
        scene = make_views()
        assert torch.equal(again(**scene)["input_ids"], processor(**scene)["input_ids"])

    @pytest.mark.parametrize("share", [None, 0.125])
    def test_names_of_the_inputs(self, tokenizer, share):
        processor = make_test_processor(tokenizer, object_token_threshold=share)
        inputs = processor(**make_views(), text=f"At {COORD_TOKEN} ?", query_coords=(1, 2, 3))
        assert list(inputs)[0] == processor.model_input_names[0] == "input_ids"
        assert set(inputs) == set(processor.model_input_names)
