"""Checks of generation and export that the library makes and its source archive does not hold.

`docs/CONTRACT_TESTS.md` is written from the docstrings of all contract tests; more are in `test_contract_model.py`.
"""

import copy

import pytest
import torch
from transformers import CompileConfig, StaticCache
from transformers.exporters import DynamoConfig, DynamoExporter
from transformers.exporters.utils import decompose_for_generation, get_leaf_tensors

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import IMAGE_TOKEN, make_config, make_model
from ross3d.views_ross3d import get_views


NUM_VIEWS = 2
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.fixture
def rows():
    """Two rows, the first of which has one view, its first, and padding on the left."""
    generator = torch.Generator().manual_seed(0)
    num_tokens = get_views(make_config()).layout.num_positions
    ids = torch.randint(1, 80, (2, NUM_VIEWS * num_tokens + 6), generator=generator)
    ids[1, 1 : 1 + NUM_VIEWS * num_tokens] = IMAGE_TOKEN
    ids[0, 1 + num_tokens : 1 + 2 * num_tokens] = IMAGE_TOKEN
    mask = torch.ones_like(ids)
    mask[0, :num_tokens] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.randn(2, NUM_VIEWS, 3, 20, 20, generator=generator),
        "view_mask": torch.tensor([[True, False], [True, True]]),
        "patch_coords": torch.randn(2, NUM_VIEWS, 3, 3, 3, generator=generator),
    }


def answer(model, inputs, **settings) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=5, min_new_tokens=5, **settings)


# Features instead of pixels


@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 3}])
def test_features_stand_for_pixels(model, rows, settings):
    """Answers from features of `get_image_features` equal answers from pixels, in every mode of search.

    Library: test_generate_from_multimodal_encoder_outputs
    """
    torch.manual_seed(0)
    wanted = answer(model, rows, **settings)
    torch.manual_seed(0)
    features = model.get_image_features(rows["pixel_values"], rows["view_mask"])
    assert len(features.pooler_output) == 3
    given = {name: value for name, value in rows.items() if name not in ("pixel_values", "view_mask")}
    assert torch.equal(answer(model, given, mm_encoder_outputs={"image": features}, **settings), wanted)


def test_features_are_prepared_as_the_library_does(model, rows):
    """Features that the library prepares for generation keep `view_mask`, so the same views count.

    Library: test_generate_from_multimodal_encoder_outputs
    """
    rows["view_mask"][0] = torch.tensor([False, True])
    wanted = answer(model, rows)
    prepared = model._prepare_multimodal_encoder_kwargs_for_generation(rows)
    assert "pixel_values" not in prepared and prepared["view_mask"].tolist() == [[False, True], [True, True]]
    assert torch.equal(answer(model, prepared), wanted)


def test_features_change_nothing_that_forward_returns(model, rows):
    """Every output of the base model is bit-equal from features and from pixels."""
    features = model.get_image_features(rows["pixel_values"], rows["view_mask"])
    with torch.no_grad():
        wanted = model.model(**rows)
        found = model.model(**{**rows, "pixel_values": None}, mm_encoder_outputs={"image": features})
    for name in ("last_hidden_state", "visual_states", "visual_positions", "patch_features"):
        assert torch.equal(found[name], wanted[name]), name


def test_features_beside_pixels_are_refused(model, rows):
    """Features together with pixels are refused by `forward` and by `generate`.

    Library: test_generate_from_multimodal_encoder_outputs_and_raw_data
    """
    features = {"image": model.get_image_features(rows["pixel_values"], rows["view_mask"])}
    with pytest.raises(
        ValueError, match="mm_encoder_outputs: expected no pixel_values together with features of views"
    ):
        model(**rows, mm_encoder_outputs=features)
    with pytest.raises(ValueError, match="You cannot pass both: raw pixels and pre-computed embeddings"):
        answer(model, rows, mm_encoder_outputs=features)


def test_features_of_other_views_are_refused(model, rows):
    """Features of more views than `view_mask` has are refused, with both shapes in the message."""
    features = {"image": model.get_image_features(rows["pixel_values"])}
    with pytest.raises(
        ValueError, match=r"mm_encoder_outputs: expected shape \(3, 9, 32\), got \(4, 9, 32\); pass the output"
    ):
        model(**{**rows, "pixel_values": None}, mm_encoder_outputs=features)


def test_features_beside_a_scene_are_refused(model, rows):
    """Features together with an encoded scene are refused."""
    scene = model.encode_scene(
        input_ids=rows["input_ids"][1:, : 1 + NUM_VIEWS * 12],
        **{name: rows[name][1:] for name in ("pixel_values", "view_mask", "patch_coords")},
    )
    features = model.get_image_features(rows["pixel_values"][1])
    with pytest.raises(ValueError, match="expected questions alone with scene=, .* got mm_encoder_outputs"):
        model.generate(input_ids=torch.tensor([[5, 6]]), scene=scene, mm_encoder_outputs={"image": features})


def test_an_assistant_of_another_width_makes_its_own_features(model, rows):
    """Assisted generation with an assistant of another hidden size gives the same answer."""
    single = {name: value[1:] for name, value in rows.items()}
    text = make_config().text_config.to_dict() | {"hidden_size": 16, "num_attention_heads": 2}
    torch.manual_seed(1)
    assistant = Ross3DForConditionalGeneration(make_config(text_config=text)).eval()
    assert torch.equal(answer(model, single, assistant_model=assistant), answer(model, single))


# What the library's loop asks of a model


def test_arguments_of_generation_are_forwarded(model):
    """`prepare_inputs_for_generation` forwards unknown arguments, and `forward` refuses them by name.

    Library: test_prepare_inputs_for_generation_kwargs_forwards
    """
    ids, more = torch.tensor([[1, 2, 3]]), {"output_attentions": True, "custom_arg": "value", "numeric_arg": 42}
    prepared = model.prepare_inputs_for_generation(ids, **more, tokenizer=object())
    assert prepared.items() >= more.items() and "tokenizer" not in prepared
    with pytest.raises(TypeError, match="forward: expected the processor's output .* got custom_arg, numeric_arg"):
        model(**prepared)


def test_answers_with_and_without_a_cache_have_the_same_logits(model, rows):
    """Generation with and without a cache gives the same ids and the same logits.

    Library: test_cached_decode_matches_cacheless
    """
    keep = {"output_logits": True, "return_dict_in_generate": True}
    one, other = (answer(model, rows, use_cache=use_cache, **keep) for use_cache in (True, False))
    assert torch.equal(one.sequences, other.sequences)
    torch.testing.assert_close(torch.stack(one.logits), torch.stack(other.logits), rtol=1e-5, atol=1e-5)


def test_a_mask_of_every_pair_of_positions_is_obeyed(model):
    """A 4D mask lets one row hold three endings of one beginning, with the logits of three rows.

    Library: test_custom_4d_attention_mask
    """
    ids = torch.tensor([[10, 11, 12, 13], [10, 11, 12, 14], [10, 11, 12, 15]])
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[4, 3] = mask[5, 3] = mask[5, 4] = False
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[:, -1]
        shared = torch.cat([ids[:1, :3], ids[None, :, 3]], dim=1)
        positions = torch.tensor([[0, 1, 2, 3, 3, 3]])
        found = model(input_ids=shared, attention_mask=mask[None, None], position_ids=positions).logits[0, 3:]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_generation_is_one_graph_and_gives_the_same_answers(model, rows):
    """Compiled generation has no graph break, is not compiled again for a shorter answer, and gives the same ids.

    Library: test_generate_compile_model_forward_fullgraph, test_static_cache_no_recompile_with_smaller_length
    """
    assert model._can_compile_fullgraph
    other = rows | {"pixel_values": rows["pixel_values"].flip(0)}
    wanted = [answer(model, inputs) for inputs in (rows, other)]
    settings = CompileConfig(fullgraph=True, dynamic=False)
    settings._compile_all_devices = True
    torch.compiler.reset()
    compiled = copy.deepcopy(model)
    for inputs, ids in zip((rows, other), wanted, strict=True):
        found = compiled.generate(
            **inputs, max_new_tokens=5, min_new_tokens=5, cache_implementation="static", compile_config=settings,
            return_dict_in_generate=True,
        )  # fmt: skip
        assert torch.equal(found.sequences, ids) and isinstance(found.past_key_values, StaticCache)
    assert hasattr(compiled, "_compiled_call")
    with torch.compiler.set_stance("fail_on_recompile"):
        compiled.generate(**rows, max_new_tokens=2, cache_implementation="static", compile_config=settings)


# Export


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_parts_of_generation_are_exported(model, rows, dynamic):
    """Projector, language model, head and decoding step export to graphs with the outputs of the modules.

    Library: test_torch_export, test_torch_export_generate
    """
    components = decompose_for_generation(model, copy.deepcopy(rows))
    assert components.keys() >= {"multi_modal_projector", "language_model", "lm_head", "decode"}
    for name, (module, inputs) in components.items():
        with torch.no_grad():
            wanted = get_leaf_tensors(module(**copy.deepcopy(inputs)))
            exported = DynamoExporter().export(module, copy.deepcopy(inputs), DynamoConfig(dynamic=dynamic))
            found = get_leaf_tensors(exported(**copy.deepcopy(inputs)))
        assert wanted and found.keys() == wanted.keys(), name
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
