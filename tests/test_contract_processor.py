"""The checks Transformers makes of its own processors and image processors, made of ours.

The library's own suites run in `tests/suites`. What the processor computes is tested in `test_processing.py`.
"""

import copy
import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, pipeline
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin

from ross3d.processing_ross3d import Ross3DImageProcessor, Ross3DProcessor
from ross3d.rows_ross3d import LLAVA_VIDEO
from ross3d.tests.posed_views import VIEW_SIZE, make_test_processor, make_views
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor


QUESTION = "How many chairs are there?"


def make_pictures(count: int = 2, height: int = 30, width: int = 42) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def make_chat(pictures, text=QUESTION) -> list[dict]:
    blocks = [{"type": "image", "image": picture} for picture in pictures]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]


def assert_equal(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    for key in wanted:
        assert torch.equal(found[key], wanted[key]), key


@pytest.fixture(scope="module")
def processor():
    return make_test_processor()


@pytest.fixture(scope="module")
def saved(processor, tmp_path_factory):
    path = tmp_path_factory.mktemp("processor")
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def image_processor(processor):
    return processor.image_processor


# The processor


def test_processor_to_json_string(processor):
    """The JSON text of a processor holds every setting and its class."""
    written = json.loads(processor.to_json_string())
    for name in list(inspect.signature(Ross3DProcessor.__init__).parameters)[4:]:
        if getattr(processor, name) is not None:
            assert written[name] == getattr(processor, name)
    assert written["processor_class"] == "Ross3DProcessor"


def test_processor_from_and_save_pretrained(processor, saved, tmp_path):
    """A saved processor loads with equal settings and parts, and saves to the same file."""
    again = Ross3DProcessor.from_pretrained(saved)
    assert again.to_dict() == {key: value for key, value in processor.to_dict().items() if key != "auto_map"}
    again.save_pretrained(tmp_path)
    first, second = ((path / "processor_config.json").read_text() for path in (saved, tmp_path))
    assert first == second
    for part in Ross3DProcessor.get_attributes():
        one, other = getattr(processor, part), getattr(again, part)
        assert type(one).__name__ == type(other).__name__
        if part == "tokenizer":
            assert one.get_vocab() == other.get_vocab()
        else:
            assert one.to_dict() == other.to_dict()


def test_processor_from_pretrained_equals_processor_from_parts(saved):
    """A loaded processor gives the tensors of one that is assembled from its loaded parts."""
    whole = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    parts = Ross3DProcessor(
        image_processor=AutoImageProcessor.from_pretrained(saved, trust_remote_code=True),
        tokenizer=AutoTokenizer.from_pretrained(saved),
        **{name: getattr(whole, name) for name in ("patch_size", "bev_size")},
    )
    assert_equal(parts(**make_views(), text=QUESTION), whole(**make_views(), text=QUESTION))


def test_processor_from_pretrained_takes_other_settings(saved):
    """Arguments of `from_pretrained` replace saved settings."""
    changed = Ross3DProcessor.from_pretrained(saved, label_rule="answer_only", bev_size=32)
    assert changed.label_rule == "answer_only" and changed.bev_size == 32


def test_processor_is_a_processor_with_two_parts(processor):
    """The class is a ProcessorMixin with an image processor and a tokenizer."""
    assert isinstance(processor, ProcessorMixin)
    assert Ross3DProcessor.get_attributes() == ["image_processor", "tokenizer"]


def test_wrong_parts_are_refused(processor):
    """An image processor in place of the tokenizer is refused."""
    with pytest.raises(TypeError, match="tokenizer"):
        Ross3DProcessor(processor.image_processor, processor.image_processor)


def test_model_input_names(processor):
    """`model_input_names` lists exactly the keys of a call with every input, `input_ids` first."""
    given = processor(**make_views(), text="What is at <coord>?", query_coords=[0.0, 1.0, 0.5])
    assert set(given) == set(processor.model_input_names)
    assert processor.model_input_names[0] == "input_ids"


def test_tokenizer_defaults_are_kept(saved):
    """Padding side, truncation and length of the tokenizer are left alone and do not change rows."""
    tokenizer = AutoTokenizer.from_pretrained(saved, padding_side="right", truncation_side="left", model_max_length=8)
    changed = make_test_processor(tokenizer)
    scenes = [make_views(2, 1, seed)["images"] for seed in (0, 1)]
    texts = [QUESTION, "Why?"]
    assert_equal(changed(images=scenes, text=texts), make_test_processor()(images=scenes, text=texts))
    assert tokenizer.padding_side == "right"


def test_image_processor_defaults_are_kept(processor):
    """Settings of the image processor, such as `do_rescale`, apply within the processor."""
    changed = copy.deepcopy(processor)
    changed.image_processor = Ross3DImageProcessor(
        size={"height": VIEW_SIZE, "width": VIEW_SIZE}, do_rescale=False, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    pixels = changed(images=make_pictures())["pixel_values"]
    assert pixels.max() > 200 and torch.equal(pixels, pixels.round())


def test_unknown_keyword_arguments_are_refused(processor):
    """Unknown arguments, which the library drops with a warning, are refused: `depth_map` would lose all depth."""
    with pytest.raises(ValueError, match=r"Ross3DProcessor: expected the arguments of its __call__, got \['depth_map"):
        processor(images=make_pictures(), depth_map=None)
    assert "pixel_values" in processor(images=make_pictures(), depth_maps=None)


@pytest.mark.parametrize("return_tensors", ["pt", "np", None])
def test_return_tensors(processor, return_tensors):
    """`return_tensors` chooses torch or NumPy, with the same values."""
    given = processor(images=make_pictures(), text=QUESTION, return_tensors=return_tensors)
    kind = np.ndarray if return_tensors == "np" else torch.Tensor
    assert all(isinstance(value, kind) for value in given.values())
    assert_equal(
        {key: torch.as_tensor(value) for key, value in given.items()}, processor(images=make_pictures(), text=QUESTION)
    )


def test_text_without_pictures_has_no_visual_tensors(processor):
    """Text alone gives only ids and masks, without image placeholders."""
    given = processor(text=QUESTION)
    assert set(given) == {"input_ids", "attention_mask", "segment_ids"}
    assert processor.image_token_id not in given["input_ids"]


def test_pictures_without_text_have_placeholders_alone(processor):
    """Pictures alone give the placeholders of every view and no question."""
    given = processor(images=make_pictures())
    assert int((given["input_ids"] == processor.image_token_id).sum()) == 2 * processor.tokens_per_view
    assert not given["segment_ids"].any()


def test_batches_of_one_equal_bare_input(processor):
    """A scene gives the same tensors bare, as a batch of one, or stacked in one array."""
    pictures = make_pictures()
    wanted = processor(images=pictures, text=QUESTION)
    assert_equal(processor(images=[pictures], text=[QUESTION]), wanted)
    assert_equal(processor(images=np.stack(pictures), text=QUESTION), wanted)


def test_batch_feature_moves_and_casts(processor):
    """`to(dtype)` of the output casts pixels and leaves ids, and coordinates in float32, unchanged."""
    given = processor(**make_views(), text=QUESTION).to("cpu", torch.bfloat16)
    wanted = processor(**make_views(), text=QUESTION)
    wanted["pixel_values"] = wanted["pixel_values"].bfloat16()
    assert {key: value.dtype for key, value in given.items()} == {key: value.dtype for key, value in wanted.items()}
    assert_equal(given, wanted)
    assert given.input_ids is given["input_ids"]


def test_decode_and_batch_decode_are_those_of_the_tokenizer(processor):
    """`decode`, `batch_decode` and `post_process_image_text_to_text` give the tokenizer's texts."""
    ids = processor(text=[QUESTION, "Why?"])["input_ids"]
    kwargs = {"skip_special_tokens": True}
    assert processor.batch_decode(ids, **kwargs) == processor.tokenizer.batch_decode(ids, **kwargs)
    assert processor.decode(ids[0], **kwargs) == processor.tokenizer.decode(ids[0], **kwargs)
    texts = processor.post_process_image_text_to_text(ids, skip_special_tokens=True)
    assert texts == processor.batch_decode(ids, **kwargs)


@pytest.mark.parametrize("count", [1, 3])
def test_number_of_image_tokens_is_that_of_a_call(processor, count):
    """`_get_num_multimodal_tokens` predicts the number of placeholders of a call."""
    sizes = [(30, 42)] * count
    told = processor._get_num_multimodal_tokens(image_sizes=sizes)
    row = processor(images=make_pictures(count), text=QUESTION)["input_ids"]
    assert sum(told["num_image_tokens"]) == int((row == processor.image_token_id).sum())
    assert len(told["num_image_patches"]) == count
    assert processor._get_num_multimodal_tokens()["num_image_tokens"] == []


def test_special_tokens_have_ids(processor):
    """The ids of `<image>`, `<ground>` and `<coord>` are those of the tokenizer."""
    for name in ("image", "ground", "coord"):
        token = getattr(processor, f"{name}_token")
        assert processor.tokenizer.convert_tokens_to_ids(token) == getattr(processor, f"{name}_token_id")


# The chat template


def test_chat_template_is_saved_beside_the_processor(processor, saved, tmp_path):
    """The chat template is saved in its own file and can be replaced when loading."""
    assert (saved / "chat_template.jinja").read_text() == LLAVA_VIDEO.chat_template == processor.chat_template
    assert "chat_template" not in json.loads((saved / "processor_config.json").read_text())
    changed = Ross3DProcessor.from_pretrained(saved, chat_template="{{ messages[0]['role'] }}")
    changed.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert again.apply_chat_template(make_chat([])) == "user"


def test_chat_template_gives_the_ids_of_text(processor):
    """A chat of one question gives the tensors of `text=`."""
    pictures = make_pictures()
    found = processor.apply_chat_template(
        make_chat(pictures), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert_equal(found, processor(images=pictures, text=QUESTION))


@pytest.mark.parametrize("kind", ["array", "PIL", "path", "file URL"])
def test_chat_template_takes_every_kind_of_picture(processor, kind, tmp_path):
    """A chat takes pictures as arrays, PIL images, paths or files, with the same tensors."""
    pictures = make_pictures()
    chat = make_chat(pictures)
    for block, picture in zip(chat[0]["content"], pictures, strict=False):
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.png"
        image = Image.fromarray(picture)
        image.save(file)
        if kind == "PIL":
            block["image"] = image
        elif kind == "path":
            block |= {"image": str(file)}
        elif kind == "file URL":
            block["path"] = str(file)
            del block["image"]
    found = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert_equal(found, processor(images=pictures, text=QUESTION))


def test_chat_template_batches(processor):
    """A list of chats gives the tensors of a batch of scenes."""
    scenes = [make_pictures(2), make_pictures(1)]
    chats = [make_chat(scenes[0]), make_chat(scenes[1], "Why?")]
    found = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert_equal(found, processor(images=scenes, text=[QUESTION, "Why?"]))


def test_chat_template_without_tokenizing_is_text(processor):
    """Without tokenizing, a chat becomes a prompt with one `<image>` that gives the same tensors."""
    text = processor.apply_chat_template(make_chat(make_pictures()), add_generation_prompt=True)
    assert text.count("<image>") == 1 and text.endswith("<|im_start|>assistant\n")
    assert_equal(processor(images=make_pictures(), text=text), processor(images=make_pictures(), text=QUESTION))


def test_chat_template_passes_processor_arguments(processor):
    """`processor_kwargs` of a chat reach the processor."""
    boxes = make_views()["proposal_boxes"]
    found = processor.apply_chat_template(
        make_chat(make_pictures()), add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"proposal_boxes": boxes},
    )  # fmt: skip
    assert_equal(found, processor(images=make_pictures(), text=QUESTION, proposal_boxes=boxes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pipeline_answers(dtype):
    """`pipeline("image-text-to-text")` gives the answer of `generate`.

    The library's suite of pipelines loads models from the Hub.
    """
    processor = make_tiny_processor()
    model = make_tiny_model(processor.tokenizer).to(dtype)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    pictures = [Image.fromarray(picture) for picture in make_pictures()]
    answer = ask(text=make_chat(pictures), max_new_tokens=3, return_full_text=False)[0]["generated_text"]
    inputs = processor(images=pictures, text=QUESTION)
    ids = model.generate(**inputs, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
    assert answer == processor.batch_decode(ids, skip_special_tokens=True)[0]


# The image processor


def test_image_processor_to_json_string(image_processor):
    """The JSON text of an image processor holds its size and mean."""
    written = json.loads(image_processor.to_json_string())
    assert written["size"] == {"height": VIEW_SIZE, "width": VIEW_SIZE}
    assert written["image_mean"] == list(image_processor.image_mean)


def test_image_processor_to_json_file(image_processor, tmp_path):
    """An image processor loads from its JSON file with equal settings."""
    image_processor.to_json_file(tmp_path / "image_processor.json")
    again = Ross3DImageProcessor.from_json_file(tmp_path / "image_processor.json")
    assert again.to_dict() == image_processor.to_dict()


def test_image_processor_from_and_save_pretrained(image_processor, tmp_path):
    """A saved image processor loads with equal settings, also by AutoImageProcessor, on the PIL backend."""
    image_processor.save_pretrained(tmp_path)
    again = Ross3DImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == image_processor.to_dict()
    auto = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert auto.to_dict() == image_processor.to_dict() and auto.backend == "pil"


def test_image_processor_builds_without_arguments():
    """The default image processor normalises pictures of 384 x 384 pixels."""
    default = Ross3DImageProcessor()
    assert default.valid_kwargs is ImagesKwargs
    assert dict(default.size) == {"height": 384, "width": 384} and default.do_normalize


def test_image_processor_takes_keyword_arguments(image_processor):
    """Settings can be replaced when an image processor is built and in a call."""
    other = Ross3DImageProcessor.from_dict(image_processor.to_dict(), size={"height": 8, "width": 8})
    assert other.size.height == 8
    pixels = image_processor(make_pictures(), size={"height": 12, "width": 12}, return_tensors="pt")["pixel_values"]
    small = Ross3DImageProcessor.from_dict(image_processor.to_dict(), size={"height": 12, "width": 12})
    assert pixels.shape == (2, 3, 12, 12)
    assert torch.equal(pixels, small(make_pictures(), return_tensors="pt")["pixel_values"])


def test_image_processor_takes_pil_numpy_and_torch(image_processor):
    """PIL, NumPy, torch, channels first, stacked or single pictures give the same pixels."""
    pictures = make_pictures()
    wanted = image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert wanted.shape == (2, 3, VIEW_SIZE, VIEW_SIZE) and wanted.dtype == torch.float32
    kinds = {
        "PIL": [Image.fromarray(picture) for picture in pictures],
        "torch": [torch.from_numpy(picture) for picture in pictures],
        "channels first": [picture.transpose(2, 0, 1) for picture in pictures],
        "stacked": np.stack(pictures),
    }
    for kind, given in kinds.items():
        assert torch.equal(image_processor(given, return_tensors="pt")["pixel_values"], wanted), kind
    single = image_processor(pictures[0], return_tensors="pt")["pixel_values"]
    assert torch.equal(single, wanted[:1])


def test_image_processor_drops_transparency(image_processor):
    """An opaque alpha channel does not change the pixels."""
    picture = make_pictures(1)[0]
    rgba = Image.fromarray(np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)]), "RGBA")
    pixels = image_processor([rgba], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, image_processor([picture], return_tensors="pt")["pixel_values"])


def test_image_processor_is_deterministic_and_leaves_its_input(image_processor):
    """Two calls give the same pixels and leave the given arrays unchanged."""
    pictures = make_pictures()
    before = [picture.copy() for picture in pictures]
    first, second = (image_processor(pictures, return_tensors="pt")["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(np.array_equal(one, other) for one, other in zip(pictures, before, strict=True))


def test_processor_leaves_its_input(processor):
    """A call leaves all given arrays and lists unchanged."""
    scene = make_views()
    before = copy.deepcopy(scene)
    processor(**scene, text=QUESTION)
    for key, value in before.items():
        assert np.array_equal(np.asarray(scene[key]), np.asarray(value)), key


def get_arguments(method) -> set[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(method).parameters
    return {name for name, found in parameters.items() if name != "self" and found.kind not in kinds}


def test_arguments_have_one_place():
    """No argument of the constructor or of a call is also a class attribute, a library option or a setting."""
    options = Ross3DProcessor.valid_processor_kwargs
    assert options is ProcessingKwargs
    names = set(options.__annotations__)
    for part in options.__annotations__.values():
        names |= set(getattr(part, "__annotations__", {}))
    built, called = get_arguments(Ross3DProcessor.__init__), get_arguments(Ross3DProcessor.__call__)
    assert not {name for name in built if hasattr(Ross3DProcessor, name)}
    assert not built & names
    assert not called & names
    assert not {name for name in called if hasattr(make_test_processor(), name)}
    defaults = {name: found.default for name, found in inspect.signature(Ross3DProcessor.__call__).parameters.items()}
    assert not {name for name in called if defaults[name] is not None}
    assert not [name for name in ("text_kwargs", "images_kwargs") if getattr(Ross3DProcessor, name, None)]


def test_arguments_of_a_call_are_read_as_in_the_library(processor):
    """Repeated arguments, and ones the library ignores, change nothing; contradictory ones are refused."""
    call = {"images": make_pictures(), "text": QUESTION}
    plain = processor(**call)
    assert_equal(processor(**call, return_tensors="pt", common_kwargs={"return_tensors": "pt"}), plain)
    assert_equal(processor(**call, num_frames=None, fps=None, do_sample_frames=False), plain)
    with pytest.warns(UserWarning, match="max_length: ignored, since padding=True"):
        assert_equal(processor(**call, padding="longest", max_length=3), plain)
    with pytest.raises(ValueError, match="common_kwargs: expected arguments that are not given outside of it as well"):
        processor(**call, return_tensors="pt", common_kwargs={"return_tensors": "np"})


def test_arguments_of_from_pretrained_reach_the_parts(saved):
    """Arguments of `from_pretrained` reach the tokenizer and the image processor."""
    changed = Ross3DProcessor.from_pretrained(saved, cls_token="(CLS)", sep_token="(SEP)", do_normalize=False)
    assert changed.tokenizer.cls_token == "(CLS)" and changed.tokenizer.sep_token == "(SEP)"
    assert changed.image_processor.do_normalize is False


def test_part_given_to_from_pretrained_is_taken(saved, image_processor):
    """A part given to `from_pretrained` is used as it is, the very object."""
    own = copy.deepcopy(image_processor)
    assert Ross3DProcessor.from_pretrained(saved, image_processor=own).image_processor is own


def test_pictures_are_prepared_as_by_the_image_processor(processor, image_processor):
    """The processor's pixels are those of its image processor."""
    pictures = make_pictures(2, VIEW_SIZE, VIEW_SIZE)
    wanted = image_processor(pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(processor(images=pictures)["pixel_values"][0], wanted)


def test_call_without_input_is_refused(processor):
    """A call without any input is refused."""
    with pytest.raises(ValueError, match="images: expected views of a scene, got neither images nor text; pass"):
        processor()


def test_number_of_texts_must_be_that_of_the_scenes(processor):
    """More or fewer texts than scenes, and several `<image>` for one scene, are refused."""
    scenes = [make_pictures(1)] * 3
    with pytest.raises(ValueError, match="text: expected 3 items, one a scene, got 2"):
        processor(images=scenes, text=[QUESTION] * 2)
    with pytest.raises(ValueError, match="<image>"):
        processor(images=make_pictures(), text="<image> <image> <image> what?")


def test_named_chat_templates_are_saved(saved, tmp_path):
    """Several named chat templates are saved and loaded; a name that leaves the folder is refused."""
    changed = Ross3DProcessor.from_pretrained(saved)
    changed.chat_template = {"default": "a", "secondary": "b"}
    changed.save_pretrained(tmp_path)
    again = Ross3DProcessor.from_pretrained(tmp_path)
    assert again.chat_template == changed.chat_template == again.tokenizer.chat_template
    assert again.apply_chat_template(make_chat([]), chat_template="secondary") == "b"
    changed.chat_template = {"default": "a", "../../outside": "b"}
    with pytest.raises(ValueError, match="outside"):
        changed.save_pretrained(tmp_path / "deep/folder")
    assert not list(tmp_path.rglob("outside*"))


def test_chat_template_takes_arguments_of_its_own(processor):
    """Extra arguments of `apply_chat_template` reach the template."""
    template = "{% if loud %}{{ 'Hey! ' }}{% endif %}{{ messages[0]['content'][0]['text'] }}"
    text = processor.apply_chat_template(make_chat([]), chat_template=template, loud=True)
    assert text == f"Hey! {QUESTION}"


def test_chat_template_does_not_mark_what_the_assistant_said(processor):
    """The mask of assistant tokens is refused: placeholders become many tokens, which would shift it."""
    with pytest.raises(ValueError, match="return_offsets_mapping"):
        processor.apply_chat_template(
            make_chat(make_pictures()), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )


def test_image_processor_output_moves_and_casts(image_processor):
    """`to(device, dtype)` of the output casts pixels and keeps ids; a wrong order of arguments is refused."""
    given = image_processor(make_pictures(), return_tensors="pt")
    given["input_ids"] = torch.ones(1, 2, dtype=torch.long)
    cast = given.to("cpu", torch.bfloat16)
    wanted = image_processor(make_pictures(), return_tensors="pt")["pixel_values"].bfloat16()
    assert cast.pixel_values.dtype == torch.bfloat16 and torch.equal(cast.pixel_values, wanted)
    assert torch.equal(cast.input_ids, torch.ones(1, 2, dtype=torch.long))
    with pytest.raises(TypeError):
        given.to(torch.bfloat16, "cpu")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_image_processor_makes_every_kind_rgb(image_processor, channels):
    """Grey, RGB and RGBA pictures give three channels, the same from every kind of input."""
    picture = np.random.default_rng(0).integers(0, 256, (30, 42, channels), dtype=np.uint8)
    image = Image.fromarray(picture[..., 0] if channels == 1 else picture)
    first = picture.transpose(2, 0, 1).copy()
    kinds = [image, picture, first, torch.from_numpy(picture), torch.from_numpy(first)]
    for given in [*([kind] for kind in kinds), kinds]:
        pixels = image_processor(given, return_tensors="pt")["pixel_values"]
        assert pixels.shape == (len(given), 3, VIEW_SIZE, VIEW_SIZE)
        assert all(torch.equal(one, pixels[0]) for one in pixels)


def test_image_processors_share_no_settings():
    """Changing the settings of one image processor leaves others unchanged."""
    one, other = Ross3DImageProcessor(), Ross3DImageProcessor()
    one.size["height"] = 7
    assert other.size["height"] == Ross3DImageProcessor().size["height"] == 384
    assert isinstance(one.image_mean, tuple) and one.image_mean == other.image_mean
