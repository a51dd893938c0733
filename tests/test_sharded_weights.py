"""Weights in shards, in a single process: what is not finite is found in the pieces, and nothing waits for others."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ross3d.modeling_ross3d import is_sharded
from ross3d.tests.fabricate import make_collator, make_model, make_row
from ross3d.training.callbacks import has_finite_weights
from ross3d.training.loading import check_finite_weights


REFUSED = "here: expected finite weights, got NaN or infinity in lm_head.weight; the run that saved them had diverged"


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def model():
    return make_model().eval()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("place", [0, -1])
def test_pieces_of_fsdp2_are_looked_at(model, one_process, value, place):
    """Before and after a forward pass, which puts the pieces together and cuts them again."""
    fully_shard(model, mesh=one_process)
    assert is_sharded(model) and isinstance(model.lm_head.weight, DTensor)
    with torch.no_grad():
        assert model(**make_collator(0.0)([make_row(3, 2, 3, ["text"])])).loss.isfinite()
    model.reshard()
    check_finite_weights(model, "here")
    assert has_finite_weights(model, 1) and has_finite_weights(model, 2)
    model.lm_head.weight.to_local().detach().view(-1)[place] = value
    assert not has_finite_weights(model, 1) and not has_finite_weights(model, 2)
    with pytest.raises(ValueError, match=REFUSED):
        check_finite_weights(model, "here")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("size", [5, 12])
def test_pieces_of_zero3_are_looked_at(model, one_process, value, size):
    """The parameters themselves are empty there; a process looks at its piece and gathers nothing."""
    for parameter in model.parameters():
        parameter.ds_id, parameter.ds_tensor = 0, torch.zeros(size)
        parameter.data = torch.empty(0)
    assert is_sharded(model)
    check_finite_weights(model, "here")
    assert has_finite_weights(model, 1) and has_finite_weights(model, 2)
    model.lm_head.weight.ds_tensor[-1] = value
    assert not has_finite_weights(model, 1) and not has_finite_weights(model, 2)
    with pytest.raises(ValueError, match=REFUSED):
        check_finite_weights(model, "here")
