"""The table of published and own parameter names."""

import json

import pytest
import torch
from diffusers import AutoencoderKL

from ross3d.configuration_ross3d import Ross3DConfig, Ross3DDenoiserConfig
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.tests.parity.build import make_model, split_weights
from ross3d.tests.parity.golden import GoldenSet, get_goldens_folder, list_tensor_sets
from ross3d.tests.published import list_shapes_of_3drs
from ross3d.tools.checkpoints.ingredients import TEACHERS
from ross3d.tools.checkpoints.keys import adapt_denoiser_file, is_3drs, to_ours, to_published


pytestmark = pytest.mark.parity

GOLDENS = get_goldens_folder()
SETS = [pytest.param(GoldenSet(path), id=path.name) for path in list_tensor_sets(GOLDENS)]
RELEASED = [
    pytest.param(path, id=path.parent.name) for path in sorted(GOLDENS.glob("**/released_checkpoint_keys.json"))
]
SKIP = pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded sets in {GOLDENS} (ROSS3D_GOLDENS)"))


@pytest.mark.parametrize("golden", SETS or [SKIP])
def test_recorded_weights_arrive_bit_for_bit(golden: GoldenSet):
    model = make_model(golden)
    ours, teacher = split_weights(golden)
    loaded = model.state_dict()
    assert set(loaded) == set(ours)
    held = model.get_teacher().state_dict()
    assert set(held) == set(teacher)
    for name, tensor in golden.weights.items():
        renamed = to_ours(name)
        found = held.get(renamed.removeprefix("teacher.")) if renamed.startswith("teacher.") else loaded[renamed]
        assert torch.equal(found, tensor), name
        assert to_published(renamed) == name


@pytest.mark.parametrize("vocab_size", [151649, 152064])
@pytest.mark.parametrize("keys_file", RELEASED or [SKIP])
def test_released_7b_checkpoint_fits_our_defaults(keys_file, vocab_size: int):
    """Every key and shape of the released model is one of ours and the other way round, for both vocabularies."""
    released = {name: tuple(shape) for name, shape in json.loads(keys_file.read_text())["keys"].items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert released[name][0] in (151649, 152064)
        released[name] = (vocab_size, *released[name][1:])
    config = Ross3DConfig(
        text_config={**Ross3DConfig().text_config.to_dict(), "vocab_size": vocab_size},
        denoiser_config=Ross3DDenoiserConfig(condition="pooled").to_dict(),
    )
    with torch.device("meta"):
        model, teacher = Ross3DForConditionalGeneration(config), AutoencoderKL.from_config(TEACHERS["FLUX.1-dev"])
    shapes = {to_published(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes |= {to_published(f"teacher.{name}"): tuple(tensor.shape) for name, tensor in teacher.state_dict().items()}
    assert None not in shapes
    assert shapes == released
    assert {to_ours(name) for name in released} >= set(model.state_dict())


@pytest.mark.parametrize("keys_file", RELEASED or [SKIP])
def test_3drs_has_the_keys_that_it_shares_with_the_release(keys_file):
    """The list for 3DRS was written from its description: its base is that of the released Ross3D, key by key."""
    released = {name: tuple(shape) for name, shape in json.loads(keys_file.read_text())["keys"].items()}
    only_ross3d = ("model.mm_inv_projector.", "model.mm_pixel_decoder.", "model.mask_token")
    shared = {name: shape for name, shape in released.items() if not name.startswith(only_ross3d)}
    own = {name: shape for name, shape in list_shapes_of_3drs().items() if not is_3drs([name])}
    assert own == shared and len(own) == 778


def test_names_outside_the_table_have_no_counterpart():
    assert to_ours("model.mm_inv_projector.net.z_embedder.weight") is None
    assert to_published("reconstruction_head.view_pooler.query_position_proj.weight") is None


def test_denoiser_file_fills_both_branches():
    """A 3 x 3 table, whose middle row and column a resize to 1 x 1 keeps; names with or without their beginning."""
    table = torch.arange(9.0).view(1, 9, 1)
    weight, condition = torch.ones(1, 4, 1, 1), torch.full((1, 4), 2.0)
    file = {"net.pos_embed": table, "net.x_embedder.proj.weight": weight, "net.z_embedder.weight": condition}
    adapted = adapt_denoiser_file(file, 1, 3)
    prefixed = adapt_denoiser_file({f"model.mm_inv_projector.{name}": t for name, t in file.items()}, 1, 3)
    assert adapted.keys() == prefixed.keys() and all(torch.equal(prefixed[name], t) for name, t in adapted.items())
    head = "reconstruction_head."
    assert adapted[f"{head}view_embedding.position_embedding"].tolist() == [[[4.0]]]
    assert torch.equal(adapted[f"{head}bev_embedding.position_embedding"], table)
    assert torch.equal(adapted[f"{head}view_embedding.proj.weight"], weight)
    assert torch.equal(adapted[f"{head}bev_embedding.proj.weight"], weight)
    assert len(adapted) == 4
