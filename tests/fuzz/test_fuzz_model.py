"""Malformed inputs of the model's methods: tensors of a wrong kind, shape or value, and what is no tensor."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves

from ross3d.tests.fabricate import make_collator, make_model, make_row
from ross3d.tests.fuzz.junk import junk
from ross3d.tests.fuzz.limits import attempt, limit_memory, run_seeded


SCENE = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
PROPOSALS = ("proposal_boxes", "proposal_mask", "proposal_patches")
# What each method is given.
METHODS = {
    "forward": (*SCENE, *PROPOSALS, "query_coords", "labels", "shift_labels", "loss_weights", "grounding_labels",
                "bev_pixel_values", "bev_valid", "bev_bounds", "bool_masked_views", "row_seed"),
    "generate": SCENE,
    "encode_scene": (*SCENE, *PROPOSALS),
    "answer": ("input_ids", "attention_mask"),
    "ground": (*SCENE, *PROPOSALS, "query_coords"),
    "reconstruct": (*SCENE, "bev_bounds"),
}  # fmt: skip
OWN = {
    "answer": {"scene_index": torch.tensor([1, 0]), "max_new_tokens": 2},
    "generate": {"max_new_tokens": 2},
    "reconstruct": {"masked_views": [[1], [0]], "num_inference_steps": 1},
}
NAMES = "|".join(sorted({name for names in METHODS.values() for name in names} | {
    "scene", "masked_views", "num_inference_steps", "expected", "inputs_embeds", "model_kwargs"}))  # fmt: skip


@pytest.fixture(autouse=True)
def memory():
    with limit_memory():
        yield


@cache
def get_model():
    return make_model().eval()


@cache
def get_batch() -> dict[str, torch.Tensor]:
    rows = [make_row(0, 3, 4, ["text", "ground", "coord"]), make_row(1, 2, 5, ["text", "ground", "coord"])]
    return make_collator()(rows)


@cache
def get_read_scenes():
    """The same two scenes, read."""
    with torch.no_grad():
        return get_model().encode_scene(**{name: get_scenes()[name] for name in SCENE if name in get_scenes()})


@cache
def get_scenes() -> dict[str, torch.Tensor]:
    """Two scenes of as many tokens, without questions or with one, as answers are asked of."""
    rows = [make_row(seed, 3, 4, []) for seed in (0, 1)]
    return make_collator()(rows)


def make_inputs(method: str) -> dict:
    if method == "answer":
        ids = torch.tensor([[5, 7, 11], [13, 17, 19]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | OWN["answer"]
    batch = get_scenes() if method in ("encode_scene", "generate") else get_batch()
    return {name: batch[name] for name in METHODS[method] if name in batch} | OWN.get(method, {})


def run(method: str, inputs: dict):
    model = get_model()
    with torch.no_grad():
        if method == "answer":
            return model.generate(scene=get_read_scenes(), **inputs)
        return model(**inputs) if method == "forward" else getattr(model, method)(**inputs)


@pytest.mark.parametrize("method", METHODS)
def test_right_inputs_pass(method):
    """Each method's input is right before it is spoiled; `tests/test_model_errors.py` compares what it gives."""
    assert attempt(lambda: run(method, make_inputs(method)), method)[1] is None


@st.composite
def spoiled_inputs(draw) -> tuple[str, dict]:
    method = draw(st.sampled_from(list(METHODS)))
    inputs = make_inputs(method)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(list(inputs)))
        value = inputs[name]
        kind = draw(st.sampled_from(["junk", "absent", "cut", "scenes", "complex", "nan", "flat", "new"]))
        if kind == "new":
            inputs[draw(st.sampled_from(["scene", "scene_index", "pixel_value", "views"]))] = draw(junk())
        elif kind == "absent":
            del inputs[name]
            if not inputs:
                break
        elif not isinstance(value, torch.Tensor) or kind == "junk":
            inputs[name] = draw(junk())
        elif kind == "cut":
            inputs[name] = value[..., :-1] if value.dim() else value[None]
        elif kind == "scenes":
            inputs[name] = value[:1] if value.dim() else value[None]
        elif kind == "flat":
            inputs[name] = value.flatten()
        elif kind == "nan" and value.is_floating_point():
            inputs[name] = value * float("nan")
        else:
            inputs[name] = value.to(torch.complex64)
    return method, inputs


@run_seeded(120)
@given(drawn=spoiled_inputs())
def test_inputs_of_the_model(drawn):
    method, inputs = drawn
    shapes = {name: getattr(value, "shape", value) for name, value in inputs.items()}
    result, _ = attempt(lambda: run(method, inputs), (method, shapes), NAMES)
    if method == "forward" and result is not None:
        result = [result.logits, result.loss, result.grounding_scores]
    for tensor in tree_leaves(result):
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            assert not bool(tensor.isnan().any()), (method, shapes)


WRONG_INDICES = {
    "floats": torch.tensor([1.0, 0.0]), "fractions": [0.5, 1.0], "negative": [-1, 0], "too large": [0, 2],
    "true and false": torch.tensor([True, False]), "one for two": [0], "text": "01", "complex": torch.ones(2) * 1j,
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_INDICES)
def test_a_scene_index_that_is_none_is_refused(fault):
    inputs = make_inputs("answer") | {"scene_index": WRONG_INDICES[fault]}
    assert attempt(lambda: run("answer", inputs), fault, "scene_index")[1] is not None
