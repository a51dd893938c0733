"""8-bit and 4-bit loading: the language model and the tower are converted, what draws and what points is not."""

import pytest
import torch
from transformers import BitsAndBytesConfig
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module
from transformers.utils import is_bitsandbytes_available

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.fabricate import make_collator, make_config, make_model, make_row, make_teacher


WHOLE = ("reconstruction_head", "grounding_head", "lm_head")


def list_linear(model: torch.nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.mark.parametrize("named", [None, ["lm_head"], ["model.vision_tower"]])
def test_which_layers_every_quantisation_of_the_library_converts(named):
    """By its own functions, which all of them call; `named`: what a user says is to be left alone."""
    model = make_model()
    kept = HfQuantizer.get_modules_to_not_convert(model, named, model._keep_in_fp32_modules)
    converted = {name for name in list_linear(model) if should_convert_module(name, kept)}
    assert converted and not [name for name in converted if name.startswith(("reconstruction_head", "grounding_head"))]
    assert ("lm_head" in converted) == (named == ["model.vision_tower"])
    towers = [name for name in converted if name.startswith("model.vision_tower")]
    assert bool(towers) == (named != ["model.vision_tower"])
    # Without what the class says, the denoiser would be converted: the check can fail.
    assert [
        name for name in list_linear(model)
        if name.startswith("reconstruction_head")
        and should_convert_module(name, HfQuantizer.get_modules_to_not_convert(model, named, None))
    ]  # fmt: skip


def make_wide_checkpoint(folder):
    """Widths that the kernels of a CPU take."""
    config = make_config()
    text = config.text_config.to_dict() | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    vision = config.vision_config.to_dict() | {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
    make_model(text_config=text, vision_config=vision).save_pretrained(folder)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_answers_points_and_draws(bits, tmp_path):
    if not is_bitsandbytes_available():
        pytest.skip("bitsandbytes is not installed; it has kernels for CPUs: pip install bitsandbytes")
    make_wide_checkpoint(tmp_path)
    whole = Ross3DForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    quantised = Ross3DForConditionalGeneration.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4),
    ).eval()
    bnb = "bitsandbytes"
    converted = {name for name, part in quantised.named_modules() if type(part).__module__.startswith(bnb)}
    plain = list_linear(quantised) - converted
    assert plain == {name for name in list_linear(whole) if name.startswith(WHOLE)}
    for name, weight in quantised.named_parameters():
        if name.startswith("reconstruction_head"):
            assert weight.dtype == torch.float32, name
    batch = make_collator(0.0)([make_row(3, 2, 3, ["ground"]), make_row(4, 3, 2, ["ground"])])
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid",
             "proposal_boxes", "proposal_mask", "proposal_patches")  # fmt: skip
    inputs = {name: batch[name] for name in names} | {"pixel_values": batch["pixel_values"].bfloat16()}
    found = []
    for model in (whole, quantised):
        model.attach_teacher(make_teacher())
        views, bevs = model.reconstruct(**inputs, masked_views=[1], num_inference_steps=3,
                                        generator=torch.Generator().manual_seed(0))  # fmt: skip
        found.append([model.ground(**inputs).float(), views[0], bevs[1]])
    # Rounded to so many bits, and no more than that.
    tolerance = 0.05 if bits == 8 else 0.3
    for one, other in zip(*found, strict=True):
        finite = one.isfinite()
        assert torch.equal(finite, other.isfinite()) and (one[finite] - other[finite]).abs().max() < tolerance
    words = torch.tensor([[4, 5, 6], [7, 8, 9]])
    assert quantised.generate(input_ids=words, max_new_tokens=3, min_new_tokens=3).shape == (2, 6)
