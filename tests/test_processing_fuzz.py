"""Whatever is passed to the processor: an answer, or a short error that says what was expected."""

import warnings

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from ross3d.tests.posed_views import make_bev, make_test_processor, make_views


VIEWS, BEV = make_views(), make_bev()
PROCESSORS = {mode: make_test_processor(geometry_mode=mode) for mode in ("published", "valid_depth")}
TEXTS = ("Hm?", ["A?", "B?"], "At <coord>?", None)
JUNK = (
    None, 0, -1, True, 1.5, float("nan"), float("inf"), 10**400, 1e300, 1j, "", " ", "x", "\ud800", "<image>",
    "<ground>", "<coord>", "<|im_end|>", "data:,", "data:image/png;base64,AAAA", "file://", "A" * 100_000,
    "/dev/zero", ".", "gone.png", b"abc", bytearray(b"ab"), {}, {"a": 1}, [], [[]], [[[]]], (), {1, 2}, object,
    Ellipsis, range(3), ["a", None], [1, "a"], [[1, 2], [3]], np.zeros(0), np.zeros((3, 0, 0)), np.zeros(3),
    np.full((3, 3), np.nan), np.array(["a"]), np.array([None]), np.zeros(3, dtype=">f8"), np.array(3),
    np.float32(2), np.zeros(2, dtype=[("a", "f4")]), np.datetime64("2020"), np.ma.masked_all((3, 3)),
    np.zeros((3, 4, 4)), np.zeros((5, 6)), torch.tensor(3.0), torch.zeros(0),
    torch.zeros(3, 4, dtype=torch.bfloat16), torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(3).to_sparse(),
    torch.zeros(2, 3, device="meta"), Image.new("RGB", (4, 4)), Image.new("I;16", (4, 4)), Image.new("L", (1, 50)),
)  # fmt: skip
ARGUMENTS = (
    "images", "text", "depth_maps", "intrinsics", "cam2world", "proposal_boxes", "query_coords", "answers",
    "target_objects", "bev_image", "bev_valid", "bev_bounds", "scene_ids", "scene_index", "return_tensors", "padding",
    "padding_side", "truncation", "max_length", "pad_to_multiple_of", "size", "images_kwargs", "text_kwargs",
    "do_rescale", "image_mean", "rescale_factor", "resample", "videos", "common_kwargs",
)  # fmt: skip
NUMBERS = (np.nan, np.inf, -np.inf, 1e9, -1e9, 0.0, -1.0, 1e-30)


def spoil(value, data):
    """A value with one entry replaced, something else, or a list of it."""
    junk = data.draw(st.sampled_from(range(len(JUNK))).map(JUNK.__getitem__))
    way = data.draw(st.sampled_from(("entry", "entry", "whole", "list")))
    if way == "entry" and isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
        spoilt = value.copy()
        spoilt.flat[data.draw(st.integers(0, value.size - 1))] = data.draw(st.sampled_from(NUMBERS))
        return spoilt
    if way == "entry" and isinstance(value, list) and value:
        spoilt = list(value)
        spoilt[data.draw(st.integers(0, len(value) - 1))] = junk
        return spoilt
    return [junk] if way == "list" else junk


def draw_call(data) -> dict:
    call = VIEWS | (BEV if data.draw(st.booleans()) else {}) | {"text": data.draw(st.sampled_from(TEXTS))}
    if call["text"] == "At <coord>?":
        call["query_coords"] = (0, 1, 0)
    if isinstance(call["text"], list) and data.draw(st.booleans()):
        call |= {"answers": ["yes", "<ground>"], "target_objects": [None, [0]]}
    if data.draw(st.booleans()):
        call = {key: [value, value] for key, value in call.items()}
    for key in data.draw(st.lists(st.sampled_from(ARGUMENTS), min_size=1, max_size=2, unique=True)):
        call[key] = spoil(call.get(key), data)
    return call


@seed(0)
@settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_processor_answers_or_says_what_it_expects(data):
    call = draw_call(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            inputs = PROCESSORS[data.draw(st.sampled_from(sorted(PROCESSORS)))](**call)
        except (ValueError, FileNotFoundError) as error:
            message = str(error)
            assert "expected" in message or "does not exist" in message, message
            assert len(message) < 900
            return
    for key, value in inputs.items():
        numbers = torch.as_tensor(value)
        assert key in ("query_coords", "bev_bounds") or bool(torch.isfinite(numbers.float()).all()), key
