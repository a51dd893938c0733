"""Malformed arguments of the processor and malformed inputs of the model."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ross3d.tests.fuzz.junk import junk, spoiled_array
from ross3d.tests.fuzz.limits import attempt, limit_memory, run_seeded
from ross3d.tests.posed_views import make_bev, make_test_processor, make_views


QUESTIONS = ["How many chairs are there?", "the tall lamp in the corner", "What is at <coord>?"]
OTHER_ARGUMENTS = [
    "scene_ids", "scene_index", "return_tensors", "padding", "padding_side", "truncation", "max_length",
    "pad_to_multiple_of", "size", "images_kwargs", "text_kwargs", "common_kwargs", "do_rescale", "image_mean",
    "rescale_factor", "resample", "videos",
]  # fmt: skip
NAMES = (
    "images|text|depth_maps|intrinsics|cam2world|proposal|query_coords|answers|target_objects|bev_image|bev_valid"
    "|bev_bounds|geometry_pixel_values|question|__call__|" + "|".join(OTHER_ARGUMENTS)
)


@cache
def get_processor(mode: str = "valid_depth"):
    if mode == "squash":
        return make_test_processor(view_fit="squash", geometry_image_size=28, return_cameras=True)
    return make_test_processor(geometry_mode=mode)


@pytest.fixture(autouse=True)
def memory():
    with limit_memory():
        yield


def make_call() -> dict:
    """Arguments that are right."""
    words = {
        "text": list(QUESTIONS),
        "query_coords": [None, None, [0.5, -0.5, 1.0]],
        "answers": ["two", "<ground>", "a table"],
        "target_objects": [None, [1, 3], None],
    }
    return make_views() | make_bev() | words


@st.composite
def spoiled_call(draw) -> dict:
    call = make_call()
    if draw(st.booleans()):
        call = {name: [value, value] for name, value in call.items()}
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from([*call, *OTHER_ARGUMENTS]))
        value = call.get(name)
        kind = draw(st.sampled_from(["junk", "list", "array", "item", "absent"]))
        if kind == "absent":
            call.pop(name, None)
        elif kind == "list":
            call[name] = [draw(junk())]
        elif kind == "array" and isinstance(value, np.ndarray):
            call[name] = draw(spoiled_array(value))
        elif kind == "item" and isinstance(value, list) and value:
            place = draw(st.integers(0, len(value) - 1))
            spoiled = spoiled_array(value[place]) if isinstance(value[place], np.ndarray) else junk()
            call[name] = [*value[:place], draw(spoiled), *value[place + 1 :]]
        else:
            call[name] = draw(junk())
    return call


def check_inputs(inputs: dict[str, torch.Tensor], call: dict) -> None:
    """What came out is what a model may be given: finite, in range, of one batch."""
    sizes = {len(tensor) for tensor in inputs.values() if isinstance(tensor, torch.Tensor)}
    assert len(sizes) == 1, {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    for name, tensor in inputs.items():
        if tensor.is_floating_point() and name not in ("query_coords", "bev_bounds"):
            assert bool(torch.isfinite(tensor).all()), name
    changes_pixels = {"image_mean", "rescale_factor", "images_kwargs", "do_rescale"} & call.keys()
    if "pixel_values" in inputs and not changes_pixels:
        assert inputs["pixel_values"].abs().max() <= 1.0 + 1e-6
    for name in ("proposal_boxes", "patch_coords", "query_coords"):
        if name in inputs:
            # Nothing in a room is further away: such numbers are no metres.
            assert inputs[name].nan_to_num().abs().max() <= 1000, (name, call)


@run_seeded(220)
@given(call=spoiled_call(), mode=st.sampled_from(["published", "valid_depth", "squash"]))
def test_arguments_of_the_processor(call, mode):
    inputs, refusal = attempt(lambda: get_processor(mode)(**call), call, NAMES)
    if refusal is None:
        check_inputs(inputs, call)


SKEW = np.array([[0, 9.0, 0], [0, 0, 0], [0, 0, 0]])
# What the documents call wrong, and the argument that has to be named.
WRONG = {
    "depth in millimetres": ("depth_maps", lambda call: call | {"depth_maps": 1000 * call["depth_maps"]}),
    "depth as whole numbers": ("depth_maps", lambda call: call | {"depth_maps": call["depth_maps"].astype(np.int32)}),
    "depth with NaN": ("depth_maps", lambda call: call | {"depth_maps": call["depth_maps"] * np.nan}),
    "negative depth": ("depth_maps", lambda call: call | {"depth_maps": -call["depth_maps"]}),
    "transposed intrinsics": ("intrinsics", lambda call: call | {"intrinsics": call["intrinsics"].T}),
    "skewed intrinsics": ("intrinsics", lambda call: call | {"intrinsics": call["intrinsics"] + SKEW}),
    "intrinsics of another size": ("intrinsics", lambda call: call | {"intrinsics": 4 * call["intrinsics"]}),
    "boxes in millimetres": ("proposal_boxes", lambda call: call | {"proposal_boxes": 1000 * call["proposal_boxes"]}),
    "boxes as dictionaries": ("proposal_boxes", lambda call: call | {"proposal_boxes": [{"center": [0, 0, 0]}] * 5}),
    "boxes as text": ("proposal_boxes", lambda call: call | {"proposal_boxes": ["chair"] * 5}),
    "boxes with NaN": ("proposal_boxes", lambda call: call | {"proposal_boxes": call["proposal_boxes"] * np.nan}),
    "infinite boxes": ("proposal_boxes", lambda call: call | {"proposal_boxes": call["proposal_boxes"] * np.inf}),
    "poses in millimetres": ("cam2world", lambda call: call | {"cam2world": scale_translations(call, 1e5)}),
    "mirrored poses": ("cam2world", lambda call: call | {"cam2world": call["cam2world"] * [[-1, 1, 1, 1]]}),
    "transposed poses": ("cam2world", lambda call: call | {"cam2world": call["cam2world"].transpose(0, 2, 1)}),
    "a point in millimetres": ("query_coords", lambda call: call | {"query_coords": [None, None, [500, -500, 1e5]]}),
    "a point with NaN": ("query_coords", lambda call: call | {"query_coords": [None, None, [np.nan, 0.0, 1.0]]}),
    "a point that is infinite": ("query_coords", lambda call: call | {"query_coords": [None, None, [np.inf, 0, 1]]}),
    "a point as text": ("query_coords", lambda call: call | {"query_coords": [None, None, "0.5 -0.5 1.0"]}),
    "a point as a dictionary": ("query_coords", lambda call: call | {"query_coords": [None, None, {"x": 1.0}]}),
    "a point without its mark": ("query_coords", lambda call: call | {"query_coords": [[1, 1, 1], None, [1, 1, 1]]}),
    "a target that is no proposal": ("target_objects", lambda call: call | {"target_objects": [None, [7], None]}),
    "a target that is true": ("target_objects", lambda call: call | {"target_objects": [None, [True], None]}),
    "reversed bounds": ("bev_bounds", lambda call: call | {"bev_bounds": call["bev_bounds"][::-1]}),
    "an empty question": ("text", lambda call: call | {"text": ["", *QUESTIONS[1:]]}),
    "an empty answer": ("answers", lambda call: call | {"answers": ["", "<ground>", "a table"]}),
    "an answer that is a number": ("answers", lambda call: call | {"answers": [2, "<ground>", "a table"]}),
    "half of a character": ("text", lambda call: call | {"text": ["\ud800", *QUESTIONS[1:]]}),
    "a misspelt argument": ("depth_map", lambda call: call | {"depth_map": call["depth_maps"]}),
}  # fmt: skip


def scale_translations(call: dict, factor: float) -> np.ndarray:
    poses = call["cam2world"].copy()
    poses[:, :3, 3] *= factor
    return poses


@pytest.mark.parametrize("fault", WRONG)
def test_what_the_documents_call_wrong_is_refused_by_name(fault):
    name, spoil = WRONG[fault]
    call = make_call()
    assert attempt(lambda: get_processor()(**call), "right arguments")[1] is None
    _, refusal = attempt(lambda: get_processor()(**spoil(make_call())), fault, name)
    assert refusal is not None, f"{fault}: accepted in silence"
