"""The library's image-text-to-text pipeline on a saved checkpoint: the answers of processor and `generate`."""

import numpy as np
import pytest
from PIL import Image
from transformers import pipeline

from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint


QUESTION, OTHER = "How many chairs are there?", "Is there a sofa?"
NAMES = ("images", "depth_maps", "intrinsics", "cam2world")
POSED = ("depth_map", "intrinsics", "cam2world")
LENGTH = {"max_new_tokens": 6, "return_full_text": False}


@pytest.fixture(scope="module")
def ask():
    return pipeline("image-text-to-text", model=str(get_checkpoint()), trust_remote_code=True)


@pytest.fixture(scope="module")
def views() -> dict:
    views = make_views()
    return {**views, "images": [Image.fromarray(image) for image in views["images"]]}


def make_blocks(views: dict, *names: str) -> list[dict]:
    """A block for every picture, with what is named of its depth and camera."""
    matrices = {
        "depth_map": views["depth_maps"],
        "intrinsics": [views["intrinsics"]] * len(views["images"]),
        "cam2world": views["cam2world"],
    }
    return [
        {"type": "image", "image": image, **{name: matrices[name][view] for name in names}}
        for view, image in enumerate(views["images"])
    ]


def make_message(blocks: list[dict], text: str = QUESTION) -> dict:
    return {"role": "user", "content": [*blocks, {"type": "text", "text": text}]}


def generate(ask, text: str, **scene) -> str:
    """What processor and model say without a pipeline."""
    inputs = ask.processor(text=text, **scene)
    ids = ask.model.generate(**inputs, max_new_tokens=LENGTH["max_new_tokens"])
    return ask.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]


def test_positions_travel_in_the_blocks_of_a_chat(ask, views):
    scene = {name: views[name] for name in NAMES}
    wanted = generate(ask, QUESTION, **scene)
    (found,) = ask(text=[make_message(make_blocks(views, *POSED))], **LENGTH)
    assert found["generated_text"] == wanted != generate(ask, QUESTION, images=views["images"])
    (blind,) = ask(text=[make_message(make_blocks(views))], **LENGTH)
    assert blind["generated_text"] == generate(ask, QUESTION, images=views["images"])


def test_whatever_the_processor_takes_goes_beside_a_chat(ask, views):
    """Boxes and a place that is asked about; the pipeline's inputs are the processor's."""
    boxes, point = views["proposal_boxes"], np.array([0.5, -0.25, 1.0])
    message = make_message(make_blocks(views, *POSED), "What is at <coord>?")
    given = {"proposal_boxes": boxes, "query_coords": point}
    (found,) = ask(text=[message], processor_kwargs=given, **LENGTH)
    assert found["generated_text"] == generate(ask, "What is at <coord>?", **views, query_coords=point)


def test_pictures_and_words_without_a_chat(ask, views):
    cameras = {name: views[name] for name in NAMES[1:]}
    wanted = generate(ask, QUESTION, images=views["images"], **cameras)
    (found,) = ask(images=views["images"], text=QUESTION, **cameras, **LENGTH)
    assert found["generated_text"] == wanted
    (found,) = ask(images=views["images"][0], text=QUESTION, **LENGTH)
    assert found["generated_text"] == generate(ask, QUESTION, images=views["images"][0])


def test_chats_one_after_the_other_and_side_by_side(ask, views):
    """Questions of different lengths; scenes with as many views each, where several are answered at once."""
    second = make_views(seed=5)
    second["images"] = [Image.fromarray(image) for image in second["images"]]
    scenes = [{name: scene[name] for name in NAMES} for scene in (views, second)]
    fewer = {name: value if name == "intrinsics" else value[:2] for name, value in scenes[1].items()}
    asked = list(zip((*scenes, fewer), (QUESTION, f"{OTHER} And what is next to it?", OTHER), strict=True))
    wanted = [generate(ask, text, **scene) for scene, text in asked]
    chats = [[make_message(make_blocks(scene, *POSED), text)] for scene, text in asked]
    assert [answer[0]["generated_text"] for answer in ask(text=chats, **LENGTH)] == wanted
    assert len(set(wanted)) == 3
    together = ask(text=chats[:2], batch_size=2, **LENGTH)
    assert [answer[0]["generated_text"] for answer in together] == wanted[:2]


def test_a_chat_of_several_turns_and_one_that_is_continued(ask, views):
    first = make_message(make_blocks(views, *POSED))
    said = {"role": "assistant", "content": [{"type": "text", "text": "There are"}]}
    (found,) = ask(text=[first, said, make_message([], OTHER)], max_new_tokens=6)
    assert [turn["role"] for turn in found["generated_text"]] == ["user", "assistant", "user", "assistant"]
    template = ask.processor.apply_chat_template([first, said], continue_final_message=True)
    assert template.endswith("<|im_start|>assistant\nThere are")
    (found,) = ask(text=[first, said], **LENGTH)
    scene = {name: views[name] for name in NAMES}
    assert found["generated_text"] == generate(ask, template, **scene)
