"""Attention over shared prefixes: against attention over all keys at once, and what it holds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ross3d import attention_ross3d
from ross3d.attention_ross3d import (
    PackedRows,
    SharedPrefixCache,
    attend,
    attend_by_parts,
    attend_shared_prefix,
    count_segments,
    get_packed_rows,
    merge_attention,
    shared_prefix_attention_forward,
    shares_prefixes,
)
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import make_collator, make_config, make_model, make_row


ROUNDING = 2e-6


def draw(*shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, ROUNDING), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_and_parts_agree_with_the_definition(dtype, tolerance, masked, monkeypatch):
    """Two rows, four heads, five queries, nine keys; a query that sees nothing gets 0 and -inf."""
    query, key, value = draw((2, 4, 5, 16), (2, 4, 9, 16), (2, 4, 9, 16), dtype=dtype)
    mask = torch.rand(2, 1, 5, 9, generator=torch.Generator().manual_seed(1)) > 0.4 if masked else None
    if masked:
        mask[1, 0, 3] = False
    scores = query.float() @ key.float().transpose(2, 3) / 4
    scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
    wanted_sum = scores.logsumexp(dim=-1)
    wanted = (scores.softmax(dim=-1).nan_to_num() @ value.float()).to(dtype)
    monkeypatch.setattr("ross3d.attention_ross3d.SCORES_AT_ONCE", 2 * 4 * 9 * 2)  # two queries at once
    for out, log_sum in (attend(query, key, value, mask), attend_by_parts(query, key, value, mask, False, 0.25)):
        assert out.dtype == dtype and log_sum.dtype == torch.float32
        assert torch.allclose(out.float(), wanted.float(), atol=tolerance)
        assert torch.allclose(log_sum, wanted_sum, atol=tolerance) and torch.equal(log_sum.isinf(), wanted_sum.isinf())


def test_causal_attention_agrees():
    query, key, value = draw((1, 2, 6, 8), (1, 2, 6, 8), (1, 2, 6, 8))
    wanted = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    for out, _ in (attend(query, key, value, is_causal=True), attend_by_parts(query, key, value, None, True, 8**-0.5)):
        assert torch.allclose(out, wanted, atol=ROUNDING)


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_merging_two_halves_is_attending_the_whole(cut):
    query, key, value = draw((2, 3, 5, 16), (2, 3, 9, 16), (2, 3, 9, 16))
    whole, _ = attend(query, key, value)
    halves = attend(query, key[:, :, :cut], value[:, :, :cut]), attend(query, key[:, :, cut:], value[:, :, cut:])
    assert torch.allclose(merge_attention(*halves[0], *halves[1]), whole, atol=ROUNDING)


def test_merging_with_nothing_changes_nothing():
    query, key, value = draw((1, 2, 3, 8), (1, 2, 4, 8), (1, 2, 4, 8))
    out, log_sum = attend(query, key, value)
    nothing = torch.zeros_like(out), torch.full_like(log_sum, -torch.inf)
    assert torch.equal(merge_attention(out, log_sum, *nothing), out)


@pytest.mark.parametrize("scenes", [[0, 0, 0, 0, 0], [0, 2, 0, 1, 2]])
@pytest.mark.parametrize("length", [1, 3])
def test_questions_see_their_scene_and_themselves(scenes, length):
    """Five questions about one or three scenes of 7, 4 and 11 positions, six heads on two key heads, left padding."""
    prefixes = [tuple(draw((1, 2, size, 8), (1, 2, size, 8), seed=size)) for size in (7, 4, 11)]
    cache = SharedPrefixCache([prefixes], torch.tensor(scenes), [7, 4, 11], torch.tensor([7, 4, 11]))
    query, key, value = draw((5, 6, length, 8), (5, 2, 4, 8), (5, 2, 4, 8), seed=9)
    mask = torch.arange(4)[None, :] <= torch.arange(4 - length, 4)[:, None]
    mask = mask.expand(5, 1, length, 4).clone()
    mask[1, :, :, :2] = False
    found = attend_shared_prefix(query, key, value, mask, 8**-0.5, cache, 0)
    for row, scene in enumerate(scenes):
        keys, values = (
            torch.cat([own, new[row : row + 1]], dim=2).repeat_interleave(3, dim=1)
            for own, new in zip(prefixes[scene], (key, value), strict=True)
        )
        seen = F.pad(mask[row : row + 1], (prefixes[scene][0].shape[2], 0), value=True)
        wanted = F.scaled_dot_product_attention(query[row : row + 1], keys, values, attn_mask=seen)
        assert torch.allclose(found[row : row + 1], wanted, atol=ROUNDING)
    assert cache.get_row_starts().tolist() == [[[7, 4, 11][scene]] for scene in scenes]


def test_rows_are_repeated_and_chosen_with_their_scenes():
    """What beam search and the like do to a cache."""
    prefixes = [tuple(draw((1, 1, size, 4), (1, 1, size, 4), seed=size)) for size in (3, 5)]
    cache = SharedPrefixCache([prefixes], torch.tensor([1, 0]), [3, 5], torch.tensor([3, 5]))
    cache.update(*draw((2, 1, 2, 4), (2, 1, 2, 4)), 0)
    cache.batch_repeat_interleave(2)
    assert cache.row_scenes.tolist() == [1, 1, 0, 0] and len(cache.layers[0].keys) == 4
    cache.batch_select_indices(torch.tensor([0, 3]))
    assert cache.row_scenes.tolist() == [1, 0] and cache.get_seq_length() == 2
    assert [scene for scene, _ in cache.groups] == [0, 1]


def test_layout_of_packed_rows():
    """A row of two segments and a shorter one with padding; the prefix that all have in common is two long."""
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, -1, -1]])
    assert count_segments(segments) == (2, 2)
    rows = get_packed_rows(segments, 2)
    assert rows.prefix_length == 2 and rows.mask.shape == (2, 1, 5, 7)
    first = ["1110000", "1111000", "1111100", "1110010", "1110011"]
    second = ["1110000", "1111000", "1100100", "1100010", "1100011"]
    for mask, wanted in zip(rows.mask[:, 0], (first, second), strict=True):
        assert ["".join(str(int(seen)) for seen in row) for row in mask] == wanted
    assert count_segments(torch.tensor([[-1, 0, 1]])) == (1, 0)


@pytest.mark.parametrize("prefix_length", [0, 3])
def test_packed_rows_are_attended_in_two_parts(prefix_length):
    """Values and gradients are those of one mask over the whole row; the layout's mask is smaller than the row's."""
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2]])
    place = torch.arange(8)
    full = (segments[:, None] == 0) | (segments[:, None] == segments[:, :, None])
    full = (full & (place[None, :] <= place[:, None]))[:, None]
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    results = []
    for rows in (get_packed_rows(segments, prefix_length), PackedRows(0, full)):
        tensors = [tensor.requires_grad_() for tensor in draw((1, 4, 8, 16), (1, 2, 8, 16), (1, 2, 8, 16))]
        out, _ = shared_prefix_attention_forward(module, *tensors, None, scaling=0.25, packed_rows=rows)
        out.square().sum().backward()
        results.append([out, *(tensor.grad for tensor in tensors)])
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Remembers how large a tensor any operation inside makes, in bytes."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self.nbytes = max(self.nbytes, tensor.numel() * tensor.element_size())
        return made


@pytest.mark.parametrize("implementation", ["sdpa_shared_prefix", "sdpa"])
@pytest.mark.parametrize("num_scenes", [1, 2])
def test_a_scene_is_held_once_for_any_number_of_questions(num_scenes, implementation):
    """The keys that questions attend are the scene cache's own memory, and no tensor as large as a copy a question is
    made while 64 of them are answered; with the library's `sdpa` there is one."""
    model = make_model().eval()
    model.model.language_model.set_attn_implementation(implementation)
    batch = make_collator(0.0)([make_row(0, 12, 1, [])] * num_scenes)
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    scene = model.encode_scene(**{name: batch[name] for name in names})
    keys = scene.past_key_values.layers[0].keys
    copies = 64 * keys[:1].numel() * keys.element_size()
    held = {tensor.untyped_storage().data_ptr() for layer in scene.past_key_values.layers
            for tensor in (layer.keys, layer.values)}  # fmt: skip
    index = torch.arange(64) % num_scenes
    for layer in scene.share_prefixes(index).prefixes:
        assert {tensor.untyped_storage().data_ptr() for pair in layer for tensor in pair} <= held
    questions = torch.randint(1, 80, (64, 3), generator=torch.Generator().manual_seed(0))
    with LargestTensor() as largest:
        model.generate(scene=scene, scene_index=index, input_ids=questions, max_new_tokens=3, min_new_tokens=3)
    if implementation == "sdpa":
        assert largest.nbytes >= copies
    else:
        assert largest.nbytes < copies / 4


def get_scene(model, num_scenes: int = 1) -> tuple:
    batch = make_collator(0.0)([make_row(0, 3, 1, [])] * num_scenes)
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    inputs = {name: batch[name] for name in names}
    return model.encode_scene(**inputs), inputs


def test_scenes_padded_on_the_right_are_refused():
    model = make_model().eval()
    _, inputs = get_scene(model)
    inputs["attention_mask"] = inputs["attention_mask"].clone()
    inputs["attention_mask"][0, -1] = 0
    with pytest.raises(ValueError, match="attention_mask: expected rows padded on the left"):
        model.encode_scene(**inputs)


def test_calls_that_a_scene_cannot_answer_are_refused():
    """No question, a cache of one's own, guesses that would cut a copied scene away."""
    model = make_model().eval()
    scene, _ = get_scene(model)
    question = torch.tensor([[5, 6, 7]])
    for wrong in ({}, {"input_ids": question[:0]}, {"input_ids": question, "past_key_values": scene.past_key_values}):
        with pytest.raises(ValueError, match="generate: expected input_ids of at least one question with scene="):
            model.generate(scene=scene, **wrong)
    shared = model.generate(scene=scene, input_ids=question, max_new_tokens=6)
    guessed = model.generate(scene=scene, input_ids=question, max_new_tokens=6, prompt_lookup_num_tokens=2)
    assert torch.equal(shared, guessed)
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="generate: expected no prompt_lookup_num_tokens together with scene="):
        model.generate(scene=scene, input_ids=question, max_new_tokens=6, prompt_lookup_num_tokens=2)


def test_gradients_through_a_scene_cache_are_those_of_eager():
    """The kernels give none of the log-sum-exp; the way without them does. Positions may be left out."""
    grads = []
    for implementation in (None, "eager"):
        model = make_model().eval()
        if implementation is not None:
            model.set_attn_implementation(implementation)
        scene, _ = get_scene(model, 2)
        question = torch.tensor([[5, 6, 7], [8, 9, 4]])
        cache, mask = model.get_questions_cache(scene, torch.tensor([1, 0]), torch.ones_like(question))
        positions = (mask.cumsum(dim=1) - 1)[:, -3:] if implementation else None
        outputs = model(input_ids=question, attention_mask=mask, position_ids=positions, past_key_values=cache)
        outputs.logits.square().sum().backward()
        grads.append(model.model.language_model.layers[0].self_attn.q_proj.weight.grad)
    assert torch.allclose(*grads, atol=1e-4 * grads[1].abs().max().item())


def test_masked_positions_of_packed_rows_are_not_seen():
    """What `attention_mask` hides, the split attention hides as the library's masks do."""
    batch = make_collator(0.0)([make_row(0, 2, 2, ["text", "text"]), make_row(1, 2, 1, ["coord", "text"])])
    batch["attention_mask"][:, 5:12] = 0
    model = make_model().eval()
    with torch.no_grad():
        found = model(**batch).lm_loss
        model.set_attn_implementation("eager")
        wanted = model(**batch).lm_loss
        whole = model(**(batch | {"attention_mask": torch.ones_like(batch["attention_mask"])})).lm_loss
    assert torch.allclose(found, wanted, atol=1e-5) and not torch.allclose(found, whole, atol=1e-4)


def test_sliding_windows_keep_the_library_s_attention():
    """A scene longer than the window is asked about as one without a cache."""
    changes = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}
    config = make_config()
    for name, value in changes.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention", "sliding_attention"]
    torch.manual_seed(0)
    model = Ross3DForConditionalGeneration(config).eval()
    assert not shares_prefixes(model.config.text_config)
    scene, inputs = get_scene(model)
    question = torch.tensor([[5, 6, 7]])
    found = model.generate(scene=scene, input_ids=question, max_new_tokens=4)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], question], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["segment_ids"] = torch.nn.functional.pad(inputs["segment_ids"], (0, 3), value=1)
    assert torch.equal(found, model.generate(**inputs, max_new_tokens=4)[:, -found.shape[1] :])


def test_a_second_copy_of_the_code_changes_nothing():
    """Remote code brings this file along once for each checkpoint; the last one loaded owns the name."""
    model = make_model().eval()
    scene, _ = get_scene(model)
    question = torch.tensor([[5, 6, 7]])
    wanted = model.generate(scene=scene, input_ids=question, max_new_tokens=4)
    file = Path(attention_ross3d.__file__)
    spec = importlib.util.spec_from_file_location("another_attention_ross3d", file)
    copy = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(copy)
        assert ALL_ATTENTION_FUNCTIONS["sdpa_shared_prefix"] is copy.shared_prefix_attention_forward
        assert shares_prefixes(model.config.text_config)
        assert torch.equal(model.generate(scene=scene, input_ids=question, max_new_tokens=4), wanted)
    finally:
        AttentionInterface.register("sdpa_shared_prefix", shared_prefix_attention_forward)
