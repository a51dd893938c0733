"""Calls of the processor as the library and its users write them: `<image>` in text, chats, per-call arguments."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import PaddingStrategy, TensorType

from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.rows_ross3d import COORD_TOKEN, GROUND_TOKEN, LLAVA_VIDEO
from ross3d.tests.posed_views import NUM_VIEWS, VIEW_SIZE, make_test_processor, make_views
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor


ANSWER_HEADER = LLAVA_VIDEO.answer_header
SCENE_PREFIX = LLAVA_VIDEO.scene_prefix
TURN_END = LLAVA_VIDEO.turn_end


QUESTION = "How many chairs are there?"
PER_VIEW = 12


@pytest.fixture(scope="module")
def processor() -> Ross3DProcessor:
    return make_test_processor()


@pytest.fixture(scope="module")
def views() -> dict:
    views = make_views()
    return {**views, "images": [Image.fromarray(image) for image in views["images"]]}


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(found[key].nan_to_num(7), wanted[key].nan_to_num(7)), key


class TestSlots:
    @pytest.mark.parametrize(
        "text",
        [
            f"<image>\n{QUESTION}",
            f"<image>{QUESTION}",
            f"{QUESTION}\n<image>",
            f" <image> \n {QUESTION}\n",
            "<image>" * NUM_VIEWS + f"\n{QUESTION}",
            "<image>\n" * NUM_VIEWS + QUESTION,
            f"<image>\n{QUESTION} <image><image>",
        ],
    )
    @pytest.mark.parametrize("spatial", [False, True])
    def test_a_mark_is_the_slot_of_the_views(self, processor, views, text, spatial):
        """As the records of LLaVA write it, before or behind the words; one mark, or one a view."""
        own = make_test_processor(processor.tokenizer, spatial_instruction=spatial)
        assert_equal(own(**views, text=text), own(**views, text=QUESTION))
        answered = {"answers": "two"}
        assert_equal(own(**views, text=text, **answered), own(**views, text=QUESTION, **answered))

    def test_in_packed_rows_and_batches(self, processor, views):
        marked = [f"<image>\n{QUESTION}", f"What is at {COORD_TOKEN}?", f"<image>The lamp {GROUND_TOKEN}"]
        plain = [text.removeprefix("<image>").lstrip() for text in marked]
        points = {"query_coords": [None, (0, 1, 2), None]}
        assert_equal(processor(**views, text=marked, **points), processor(**views, text=plain, **points))
        scenes = [views["images"][:2], views["images"]]
        found = processor(images=scenes, text=[marked[:1], f"<image><image><image>{QUESTION}"])
        assert_equal(found, processor(images=scenes, text=[plain[:1], QUESTION]))

    def test_whole_prompts_stay_as_they_are(self, processor, views):
        whole = f"{SCENE_PREFIX}\n{QUESTION}{TURN_END}\n{ANSWER_HEADER}"
        assert_equal(processor(**views, text=whole), processor(**views, text=QUESTION))
        odd = f"<|im_start|>user\nLook: <image> {QUESTION}{TURN_END}\n"
        ids = processor(images=views["images"], text=odd)["input_ids"][0]
        ids = [
            int(ids[0]),
            *(int(b) for a, b in zip(ids, ids[1:], strict=False) if (a, b) != (processor.image_token_id,) * 2),
        ]
        assert processor.tokenizer.decode(ids) == odd


def ask(processor, chat, **kwargs):
    given = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    return processor.apply_chat_template(chat, **given | kwargs)


def say(role: str, *blocks, text: str | None = None) -> dict:
    return {"role": role, "content": [*blocks, *([] if text is None else [{"type": "text", "text": text}])]}


class TestChats:
    @pytest.mark.parametrize("as_string", [False, True])
    def test_without_pictures(self, processor, as_string):
        """Words alone are a row that needs no scene, with every mark of the template."""
        chat = [{"role": "user", "content": QUESTION} if as_string else say("user", text=QUESTION)]
        found = ask(processor, chat)
        wanted = f"{SCENE_PREFIX.removesuffix('<image>')}{QUESTION}{TURN_END}\n{ANSWER_HEADER}"
        assert set(found) == {"input_ids", "attention_mask", "segment_ids"}
        assert processor.tokenizer.decode(found["input_ids"][0]) == wanted and not found["segment_ids"].any()
        longer = [*chat, say("assistant", text="two"), say("user", text="And tables?")]
        both = ask(processor, [chat, longer])
        assert both["attention_mask"].sum(dim=1).tolist() == [found["input_ids"].shape[1], both["input_ids"].shape[1]]
        assert both["segment_ids"][0, 0] == -1 and torch.equal(
            both["input_ids"][0, -found["input_ids"].shape[1] :], found["input_ids"][0]
        )

    def test_without_pictures_is_answered_without_a_scene(self):
        processor = make_tiny_processor()
        model = make_tiny_model(processor.tokenizer)
        inputs = ask(processor, [[say("user", text=QUESTION)], [say("user", text="Why is that?")]])
        answers = model.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
        alone = model.generate(
            input_ids=inputs["input_ids"][:1], attention_mask=inputs["attention_mask"][:1], max_new_tokens=3
        )
        assert torch.equal(answers[:1], alone[:, inputs["input_ids"].shape[1] :])
        scene = model.encode_scene(**processor(images=make_views()["images"]))
        with pytest.raises(
            ValueError, match="generate: expected plain questions with scene=, .* got whole prompts with"
        ):
            model.generate(scene=scene, **inputs)
        model.generate(scene=scene, **processor(text=[QUESTION, "Why is that?"]), max_new_tokens=3)

    def test_pictures_in_a_later_turn(self, processor, views):
        pictures = [{"type": "image", "image": image} for image in views["images"]]
        chat = [say("user", text="Hello."), say("assistant", text="Hello!"), say("user", *pictures, text=QUESTION)]
        found = ask(processor, chat)
        text = (
            f"{SCENE_PREFIX.removesuffix('<image>')}Hello.{TURN_END}\n{ANSWER_HEADER}Hello!{TURN_END}\n"
            f"<|im_start|>user\n<image>\n{QUESTION}{TURN_END}\n{ANSWER_HEADER}"
        )
        assert_equal(found, processor(images=views["images"], text=text))
        assert int((found["input_ids"] == processor.image_token_id).sum()) == NUM_VIEWS * PER_VIEW

    def test_chats_are_left_as_they_were(self, processor, views):
        block = {"type": "image", "base64": None, "image": views["images"][0], "url": None}
        chat = [say("user", block, text=QUESTION), {"role": "assistant", "content": None, "tool_calls": None}]
        before = copy.deepcopy(chat)
        found = ask(processor, chat[:1])
        assert [list(message) for message in chat] == [list(message) for message in before]
        assert list(chat[0]["content"][0]) == ["type", "base64", "image", "url"]
        assert_equal(found, processor(images=views["images"][:1], text=QUESTION))
        # Keys of other programs and columns without a value are the caller's own.
        noted = [say("user", block | {"cache_control": {"type": "x"}, "depth": None}, text=QUESTION)]
        assert_equal(ask(processor, noted), found)

    def test_pictures_beside_the_chat(self, processor, views):
        """LLaVA's records: a string with `<image>`, and the pictures in another place."""
        chat = [{"role": "user", "content": f"<image>\n{QUESTION}"}]
        found = ask(processor, chat, processor_kwargs={"images": views["images"]})
        assert_equal(found, processor(images=views["images"], text=QUESTION))

    @pytest.mark.parametrize(
        ("chat", "message"),
        [
            ([], r"conversation: expected a list of messages, or a list of such lists, got \[\]; pass \[{'role'"),
            ("Hello", "conversation: expected a list of messages, .* got 'Hello'"),
            ([{"content": "Hello"}], r"message 0 of chat 0: expected a role and a content, got \['content'\]; add"),
            ([say("user", {"type": "video", "url": "a.mp4"})], "block 0 of message 0 of chat 0: expected a block of"
             " words or of a picture, got a video, of which this model sees frames; pass them as {'type'"),
            *(
                ([say("user", {"type": "video", "video": video})], "block 0 of message 0 of chat 0: .*got a video, of")
                for video in (None, 5, ["a.png"])
            ),
            *(
                ([say("user", block)], "block 0 of message 0 of chat 0: expected a block of words or of a picture, got"
                 f" {type(block).__name__}; write {{'type': 'text', 'text': ...}} or {{'type': 'image', ")
                for block in ("Hello", None, 5, ["Hello"])
            ),
            ([say("user", {"image": "a.png"})], "block 0 of .*: expected type 'text' or 'image', got None; write"),
            ([say("user", {"type": "audio", "audio": "a"})], "expected type 'text' or 'image', got 'audio'; write"),
            ([say("user", {"type": "text", "text": "a", "image": "a.png"})], "block 0 of message 0 of chat 0: expected"
             r" no more than its type 'text' says, got \['image'\] as well; give them blocks of their own"),
            ([say("user", {"type": "image", "image": "a.png", "video": [1], "text": "a"})],
             r"expected no more than its type 'image' says, got \['text', 'video'\] as well; give them blocks"),
            ([say("user", {"type": "image", "url": 5})], "block 0 of message 0 of chat 0: expected a string under"
             " 'url', got int; pass a picture in memory under 'image', and base64 decoded to a string"),
            ([say("user", {"type": "image", "base64": b"AAAA"})], "expected a string under 'base64', got bytes; pass"),
            ([say("user", {"type": "image", "image": [5]})], "block 0 of message 0 of chat 0: expected a picture "
             r"\(of PIL, its file or address, or an array of uint8\), got list; pass one of these"),
            ([say("user", {"type": "image"}, text="What?")], r"expected no <image>, since there are no views, got one;"
             r" pass images= as well \(in a chat: the picture in its block, {'type': 'image', 'image': ...}\)"),
            ([None], "message 0 of chat 0: expected a role and a content, got NoneType; pass {'role': 'user', 'con"),
            ([["Hello"]], "message 0 of chat 0: expected a role and a content, got str; pass {'role'"),
            ([[]], r"chat 0: expected a list of messages, got \[\]; pass \[{'role'"),
            ([[{"role": "user", "content": "a"}], 5], "chat 1: expected a list of messages, got 5; pass"),
            ([say("user", {"type": "text"})], "block 0 of message 0 of chat 0: expected a string under 'text', got"),
            ([say("user", {"type": "image", "url": "a", "path": "b"})], "block 0 of .*: expected one of .* in"
             r" the block of a picture, got \['url', 'path'\]; leave one of them"),
            ([say("user", {"type": "image", "path": "a"}, text="<image>?")], "chat 0: expected no <image> in its"
             " words, since the blocks of pictures stand for it, got one; leave it out"),
            ([say("user", {"type": "image", "path": "a"}), {"role": "assistant", "content": "<image>"}],
             "chat 0: expected no <image> in its words"),
            ([say("user", {"type": "image", "path": "a"}), say("user", {"type": "image", "path": "b"})],
             r"chat 0: expected pictures in one message, since they are views of one scene, got pictures in messages"
             r" \[0, 1\]; move them"),
            ([say("user", {"type": "image", "path": "a", "depth": [1.0]})], "block 0 of message 0 of chat 0: expected"
             " keys .* in the block of a picture, got 'depth'; write 'depth_map'"),
            ([say("user", {"type": "image", "path": "a"}, {"type": "image", "path": "b", "cam2word": [1.0]})],
             "block 1 of message 0 of chat 0: expected keys .*, got 'cam2word'; write 'cam2world'"),
            ([say("user", {"type": "image", "image": "a", "c2w": [[1]]})],
             "in the block of a picture, got 'c2w'; write 'cam2world', camera to world with OpenCV axes"),
            ([say("user", {"type": "image", "image": "a", "K": [[1]]})], "a picture, got 'K'; write 'intrinsics'"),
            ([say("user", {"type": "image", "src": "a.png"})], "in the block of a picture, got 'src'; write 'url'"),
            ([say("user", {"type": "image", "imge": "a"})], "in the block of a picture, got 'imge'; write 'image'"),
            ([say("user", {"type": "image", "path": "a"}, {"type": "image", "image": None})],
             r"chat 0: expected a picture in each of 2 blocks, or in none, got none in picture blocks"
             r" \[1\]; pass these pictures"),
            ([{"role": "human", "content": "Hello"}], r"message 0 of chat 0: expected a role of \('system', 'user', .*"
             " got 'human'; write 'user' for questions"),
            ([{"role": "user"}], "message 0 of chat 0: expected a content, words or a list of blocks, got NoneType"),
            ([{"role": "assistant", "content": None}], "expected a content, words or a list of blocks, got NoneType;"),
            ([{"role": "user", "content": " "}], "expected words in what a user says, got ' '; leave the message out"),
            ([{"role": "user", "content": []}], "expected blocks in what a user says, got none; leave the"),
        ],
    )  # fmt: skip
    def test_what_is_no_chat(self, processor, chat, message):
        with pytest.raises(ValueError, match=message):
            ask(processor, chat)

    def test_a_picture_that_is_not_there(self, processor, views):
        with pytest.raises(
            ValueError, match=r"text of question 0 .* no <image>, since there are no views, got one; pass"
        ):
            ask(processor, [say("user", {"type": "image"}, text=QUESTION)])
        with pytest.raises(
            ValueError, match="images of scene 1: expected at least one view, got none; .* a call of their"
        ):
            ask(
                processor, [[say("user", {"type": "image", "image": views["images"][0]})], [say("user", text="Hello")]]
            )


def collate_as_trl(processor, examples: list[dict]) -> dict:
    """What TRL's `DataCollatorForVisionLanguageModeling` does with prompts and completions (1.16)."""
    images = [example["images"] for example in examples]
    whole = [
        (
            processor.apply_chat_template(example["prompt"], tokenize=False, add_generation_prompt=True),
            processor.apply_chat_template(example["prompt"] + example["completion"], tokenize=False),
        )
        for example in examples
    ]
    prompts = [prompt for prompt, _ in whole]
    completions = [text.removeprefix(prompt) for prompt, text in whole]
    first = processor(
        images=images, text=prompts, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False
    )
    second = processor(
        text=completions, padding=True, padding_side="right", return_tensors="pt", add_special_tokens=False
    )
    output = first
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    output["input_ids"] = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    completion_mask = torch.cat([torch.zeros_like(first["attention_mask"]), second["attention_mask"]], dim=1)
    output["attention_mask"] = mask
    output["labels"] = output["input_ids"].masked_fill(completion_mask == 0, -100)
    return output


class TestTrl:
    def make_examples(self) -> list[dict]:
        pictures = [Image.fromarray(image) for image in make_views()["images"]]
        return [
            {
                "images": pictures[:count],
                "prompt": [say("user", *({"type": "image", "image": p} for p in pictures[:count]), text=question)],
                "completion": [say("assistant", text=answer)],
            }
            for count, question, answer in ((2, QUESTION, "two"), (3, "Is there a window?", "no, there is none"))
        ]

    def test_prompts_and_completions(self):
        """The loss is that of the rows which the processor itself makes from questions and answers."""
        processor = make_tiny_processor()
        model = make_tiny_model(processor.tokenizer).eval()
        examples = self.make_examples()
        batch = collate_as_trl(processor, examples)
        assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "view_mask", "labels"}
        assert batch["view_mask"].sum(dim=1).tolist() == [2, 3]
        for row, answer in zip(batch["labels"], ("two", "no, there is none"), strict=True):
            assert processor.tokenizer.decode(row[row != -100]) == f"{answer}{TURN_END}\n"
        loss = model(**batch).loss
        rows = processor(
            images=[example["images"] for example in examples], text=[QUESTION, "Is there a window?"],
            answers=["two", "no, there is none"],
        )  # fmt: skip
        logits = model(**rows).logits
        errors = []
        for row in range(2):
            kept = batch["labels"][row] != -100
            ids = rows["input_ids"][row][rows["attention_mask"][row].bool()]
            start = len(ids) - int(kept.sum())
            scores = logits[row][start - 1 : len(ids) - 1].log_softmax(dim=-1)
            errors.append(-scores.gather(1, ids[start:, None]).mean().item())
        assert loss.item() == pytest.approx(sum(errors) / 2, rel=1e-4)

    @pytest.mark.parametrize("max_length", [None, 200])
    def test_conversations(self, max_length):
        processor = make_tiny_processor()
        chats = [example["prompt"] + example["completion"] for example in self.make_examples()]
        kwargs = {
            "padding": True, "padding_side": "right", "pad_to_multiple_of": 16, "truncation": max_length is not None,
            "max_length": max_length, "add_special_tokens": False,
        }  # fmt: skip
        batch = processor.apply_chat_template(
            chats, chat_template=None, tokenize=True, return_dict=True, return_tensors="pt",
            return_assistant_tokens_mask=False, processor_kwargs=kwargs,
        )  # fmt: skip
        assert batch["input_ids"].shape[1] % 16 == 0 and "segment_ids" not in batch
        assert batch["attention_mask"][:, 0].all() and not batch["attention_mask"][0, -1]
        plain = processor.apply_chat_template(chats, tokenize=True, return_dict=True)
        for row in range(2):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            assert torch.equal(ids, plain["input_ids"][row][plain["attention_mask"][row].bool()])
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        assert torch.isfinite(make_tiny_model(processor.tokenizer)(**batch, labels=labels).loss)


class TestArguments:
    def test_padding(self, processor, views):
        scenes, texts = [views["images"][:2], views["images"]], [QUESTION, "Why?"]
        wanted = processor(images=scenes, text=texts)
        longest = wanted["input_ids"].shape[1]
        for padding in (True, "longest", PaddingStrategy.LONGEST, None):
            assert_equal(processor(images=scenes, text=texts, padding=padding), wanted)
            assert_equal(processor(images=scenes, text=texts, text_kwargs={"padding": padding}), wanted)
        longer = processor(images=scenes, text=texts, padding="max_length", max_length=longest + 5)
        assert longer["input_ids"].shape == (2, longest + 5) and (longer["segment_ids"][:, :5] == -1).all()
        assert torch.equal(longer["input_ids"][:, 5:], wanted["input_ids"])
        right = processor(images=scenes, text=texts, padding_side="right", pad_to_multiple_of=8)
        assert right["input_ids"].shape[1] == -(-longest // 8) * 8 and "segment_ids" not in right
        assert right["attention_mask"].sum(dim=1).tolist() == wanted["attention_mask"].sum(dim=1).tolist()
        assert right["attention_mask"][:, 0].all()
        with pytest.raises(
            ValueError, match=r"padding: expected True for rows of different lengths, got False for lengths"
        ):
            processor(images=scenes, text=texts, padding=False)
        assert_equal(
            processor(images=scenes[0], text=QUESTION, padding=False), processor(images=scenes[0], text=QUESTION)
        )
        with pytest.raises(ValueError, match="max_length: expected the length to pad to, got None; pass max_length="):
            processor(text=QUESTION, padding="max_length")
        own = make_test_processor(processor.tokenizer, max_position_embeddings=200)
        assert own(text=QUESTION, padding="max_length")["input_ids"].shape == (1, 200)

    def test_packed_rows_keep_their_segments(self, processor, views):
        packed = processor(**views, text=[QUESTION, "Why?"], padding_side="left")
        assert packed["segment_ids"].unique().tolist() == [0, 1, 2]

    def test_truncation(self, processor, views):
        wanted = processor(images=views["images"], text=QUESTION)
        length = wanted["input_ids"].shape[1]
        found = processor(images=views["images"], text=QUESTION, truncation=True, max_length=length)
        assert_equal(found, wanted)
        for truncation in (True, "longest_first"):
            cut = processor(images=views["images"], text=QUESTION, truncation=truncation, max_length=length - 3)
            assert torch.equal(cut["input_ids"], wanted["input_ids"][:, :-3])
            assert torch.equal(cut["segment_ids"], wanted["segment_ids"][:, :-3])
        short = make_test_processor(processor.tokenizer, max_position_embeddings=length - 3)
        assert torch.equal(
            short(images=views["images"], text=QUESTION, truncation=True)["input_ids"], cut["input_ids"]
        )
        message = (
            r"max_length of scene 0: expected room for the views \(\d+ positions\) and one question .* got 20; raise"
        )
        with pytest.raises(ValueError, match=message):
            processor(images=views["images"], text=QUESTION, truncation=True, max_length=20)
        for words in ({"text": [QUESTION, "Why?"]}, {"text": QUESTION, "answers": "two"}):
            with pytest.raises(
                ValueError, match=f"max_length of scene 0: expected room for the views .* got {length - 3};"
            ):
                processor(images=views["images"], **words, truncation=True, max_length=length - 3)

    def test_pixels(self, processor, views):
        wanted = processor(images=views["images"])["pixel_values"]
        size = {"height": VIEW_SIZE, "width": VIEW_SIZE}
        same = {"size": size, "do_resize": True, "do_center_crop": True, "do_rescale": True, "resample": 3}
        assert torch.equal(processor(images=views["images"], **same)["pixel_values"], wanted)
        assert torch.equal(processor(images=views["images"], images_kwargs=same)["pixel_values"], wanted)
        raw = processor(images=views["images"], do_rescale=False, do_normalize=False)["pixel_values"]
        assert torch.equal(raw, raw.round()) and raw.max() > 200
        own = processor(images=views["images"], images_kwargs={"image_mean": [0.1, 0.2, 0.3], "image_std": 2})
        expected = (raw / 255 - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / 2
        assert torch.allclose(own["pixel_values"], expected, atol=1e-6)
        assert torch.equal(processor(images=views["images"])["pixel_values"], wanted)

    def test_return_tensors(self, processor):
        wanted = processor(text=QUESTION)["input_ids"]
        for kind in ("np", TensorType.NUMPY):
            for given in ({"return_tensors": kind}, {"text_kwargs": {"return_tensors": kind}}):
                found = processor(text=QUESTION, **given)["input_ids"]
                assert isinstance(found, np.ndarray) and np.array_equal(found, wanted.numpy())
        found = processor(text=QUESTION, return_tensors=TensorType.PYTORCH)["input_ids"]
        assert isinstance(found, torch.Tensor) and torch.equal(found, wanted)

    def test_what_says_what_happens_anyway(self, processor, views):
        wanted = processor(images=views["images"], text=QUESTION)
        given = {
            "add_special_tokens": True, "truncation": False, "max_length": None, "pad_to_multiple_of": None,
            "return_attention_mask": True, "return_mm_token_type_ids": False, "do_convert_rgb": True, "videos": None,
            "audio": None, "verbose": False, "videos_kwargs": {}, "audio_kwargs": None, "device": "cpu",
        }  # fmt: skip
        assert_equal(processor(images=views["images"], text=QUESTION, **given), wanted)

    @pytest.mark.parametrize("name", ["tools", "documents"])
    def test_what_a_template_leaves_out_is_refused(self, processor, name):
        chat, given = [say("user", text=QUESTION)], {name: [{"title": "Map", "text": "A chair."}]}
        with pytest.raises(
            ValueError, match=f"^{name}: expected a chat template that writes {name}, got one that leav"
        ):
            processor.apply_chat_template(chat, **given)
        writes = "{{ " + name + "[0]['text'] }}{{ messages[0]['content'][0]['text'] }}"
        assert processor.apply_chat_template(chat, chat_template=writes, **given).endswith(QUESTION)
        assert processor.apply_chat_template(chat, **{name: None}) == processor.apply_chat_template(chat)

    @pytest.mark.parametrize(
        ("given", "named"),
        [({"num_frames": 0}, "num_frames"), ({"fps": 2.5, "do_sample_frames": True}, "fps, do_sample_frames")],
    )
    def test_how_to_sample_videos_is_ignored_with_a_warning(self, processor, views, given, named):
        """The library's suite asks for it in chats of pictures, and adds `do_sample_frames` itself."""
        wanted = processor(images=views["images"], text=QUESTION)
        blocks = [{"type": "image", "image": image} for image in views["images"]]
        chat = [{"role": "user", "content": [*blocks, {"type": "text", "text": QUESTION}]}]
        settings = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        for ask in (
            lambda: processor(images=views["images"], text=QUESTION, **given),
            lambda: processor(images=views["images"], text=QUESTION, images_kwargs=given),
            lambda: processor.apply_chat_template(chat, **settings, **given),
            lambda: processor.apply_chat_template(chat, **settings, processor_kwargs=given),
        ):
            with pytest.warns(UserWarning, match=f"{named}.*: ignored, since pictures are not sampled; pass the fr"):
                assert_equal(ask(), wanted)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"padding": 1}, r"padding: expected one of \(True, 'longest', .*\), got 1; choose one of them"),
            ({"truncation": "yes"}, "truncation: expected one of .*, got 'yes'"),
            ({"padding_side": "top"}, r"padding_side: expected one of \(None, 'left', 'right'\), got 'top'"),
            ({"max_length": 2.5}, "max_length: expected a whole number of positions above 0, got 2.5; leave it out"),
            ({"pad_to_multiple_of": 0}, "pad_to_multiple_of: expected a whole number of positions above 0, got 0"),
            ({"max_length": 90}, "max_length: expected truncation=True or padding='max_length' with it, got 90 alone"),
            ({"size": {"height": 56, "width": 56}}, r"size: expected {'height': 40, 'width': 40}, the side of the"
             r" model's views, got {'height': 56, 'width': 56}; leave it out, or load a processor with another size="),
            ({"crop_size": 20}, "crop_size: expected {'height': 40, 'width': 40}, the side of .*, got 20; leave"),
            ({"images_kwargs": {"size": 224}}, "size: expected .*, the side of the model's views, got 224"),
            ({"resample": 0}, "resample: expected 3, the filter of this processor, got 0; leave it out, or load"),
            ({"do_resize": False}, r"do_resize: expected one of \(None, True\), as this model needs it, got False"),
            ({"do_rescale": 1}, "do_rescale: expected True or False, got 1; leave it out for the model's scaling"),
            ({"image_std": [1, 0, 1]}, r"image_std: expected numbers above 0, .* a colour, got \[1, 0, 1\]"),
            ({"image_std": -0.5}, "image_std: expected numbers above 0, one for all .*, got -0.5"),
            ({"rescale_factor": float("nan")}, "rescale_factor: expected finite numbers, one for all .*, got nan"),
            ({"return_offsets_mapping": True}, "return_offsets_mapping: expected one of .* needs it, got True"),
            ({"text_kwargs": {"return_length": True}}, "return_length: expected one of .*, got True"),
            ({"text_kwargs": {"padding": False}, "padding": True}, "text_kwargs: expected arguments that are not given"
             r" outside of it as well, got \['padding'\]; give each once"),
            ({"videos_kwargs": {"fps": 2}}, "videos_kwargs: expected a dict of text_kwargs, images_kwargs or"),
            ({"text_kwargs": 3}, "text_kwargs: expected a dict of text_kwargs, .* got 3; pass pictures"),
            ({"audio": np.zeros(8)}, "audio: expected None: this model sees pictures, got ndarray; pass the frames"),
            ({"text_pair": "b"}, r"text_pair: expected one of \(None,\), as this model needs it, got 'b'"),
            ({"device": "cuda"}, "device: expected one of .*, got 'cuda'; leave it out"),
            ({"paddding": True}, r"Ross3DProcessor: expected the arguments of its __call__, got \['paddding'\]"),
        ],
    )  # fmt: skip
    def test_others_are_refused_by_name(self, processor, views, given, message):
        with pytest.raises(ValueError, match=message):
            processor(images=views["images"], text=QUESTION, **given)
