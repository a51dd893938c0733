"""What the head rebuilds from what: the vanilla objective and the condition on positions alone."""

import copy
from types import SimpleNamespace

import pytest
import torch

from ross3d.tasks import reconstruction
from ross3d.tests.fabricate import make_collator, make_model, make_row
from ross3d.training.trainer import count_losses


def make_batch(hidden: list[list[int]]) -> dict[str, torch.Tensor]:
    """Scenes of 3 and 5 views, all but the pixels their own, with the given views to rebuild."""
    batch = make_collator()([make_row(0, 3, 2, ["text"]), make_row(1, 5, 4, ["text", "ground"])])
    batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
    for row, views in enumerate(hidden):
        batch["bool_masked_views"][row, views] = True
    return batch


def get_view_conditions(model, batch) -> torch.Tensor:
    """Conditions (k, M, C) with which the view loss of a training step calls the denoiser, each once."""
    found = []

    def compute(module, given, work):
        if given[0] == "view":
            found.append(module.get_conditions(*given)[work["items"]])

    handle = model.reconstruction_head.register_forward_pre_hook(compute, with_kwargs=True)
    model.train()(**batch)
    handle.remove()
    return found[0].detach()


@pytest.mark.parametrize("condition", ["pooled", "per_view"])
def test_vanilla_hides_nothing_and_rebuilds_each_view_from_its_own_states(condition):
    hidden = [[1], [0, 4]]
    batch = make_batch(hidden)
    vanilla = make_model(denoiser={"condition": condition}, view_objective="vanilla").train()
    seen = vanilla(**batch)
    open_batch = batch | {"bool_masked_views": torch.zeros_like(batch["bool_masked_views"])}
    cross_view = make_model(denoiser={"condition": condition}).train()
    for name in ("lm_loss", "grounding_loss", "bev_loss"):
        assert torch.equal(seen[name], cross_view(**open_batch)[name]), name
    assert not torch.equal(seen.lm_loss, cross_view(**batch).lm_loss)
    # Draws of one view each: scene 0 rebuilds 1 view 3 times, scene 1 two views twice.
    conditions = get_view_conditions(vanilla, batch)
    assert torch.equal(conditions[0], conditions[2]) and torch.equal(conditions[3], conditions[5])
    assert len(conditions) == 7 and not torch.isclose(conditions[3], conditions[4]).all()
    # As a scene of that view alone, whatever the states of the others.
    states = vanilla.model(
        **{name: batch[name] for name in ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask")},
        **{name: batch[name] for name in ("patch_coords", "patch_valid", "query_coords") if name in batch},
    )
    head = vanilla.reconstruction_head
    for item, (row, view) in zip((0, 3, 4), ((0, 1), (1, 0), (1, 4)), strict=True):
        one = (states.visual_states[row, view], states.visual_positions[row, view])
        own, positions = (tensor[None, None] for tensor in one)
        place, seen = torch.zeros(1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
        asked = positions if condition == "per_view" else None
        wanted = head.get_conditions("view", own, seen, positions, asked, (place, place))[0]
        assert torch.allclose(conditions[item], wanted, atol=1e-6)


def test_vanilla_counts_and_gradients_are_those_of_the_views_to_rebuild():
    model = make_model(view_objective="vanilla").train()
    batch = make_batch([[1], []])
    assert count_losses(batch, model.config).tolist() == [2, 1, 2, 1]
    output = model(**batch)
    assert output.loss_counts.tolist() == [2, 1, 2, 1] and output.view_loss > 0
    output.view_loss.backward()
    # Nothing reads what stands for masked views.
    assert not model.model.mask_token.grad.any()
    assert model.model.vision_tower.embeddings.patch_embedding.weight.grad.abs().max() > 0


def test_vanilla_models_rebuild_what_they_see():
    model = make_model(view_objective="vanilla").eval()
    batch = make_batch([[], []])
    scene = {name: batch[name] for name in ("input_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")}
    scene |= {"attention_mask": batch["attention_mask"], "bev_bounds": batch["bev_bounds"]}

    def rebuild(pixel_values: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        given = scene | {"pixel_values": pixel_values}
        return model.reconstruct(**given, masked_views=[[2], []], num_inference_steps=2, generator=generator)[0][0]

    changed = scene["pixel_values"].clone()
    changed[0, 2] *= -1
    assert not torch.equal(rebuild(scene["pixel_values"]), rebuild(changed))


def test_positions_alone_know_nothing_of_the_states():
    """Other pictures: the same conditions. Other places: others. The language model learns nothing from rebuilding."""
    model = make_model(denoiser={"condition": "positions"}).train()
    batch = make_batch([[1], [0, 4]])
    conditions = get_view_conditions(model, batch)
    assert torch.equal(get_view_conditions(model, batch | {"pixel_values": -batch["pixel_values"]}), conditions)
    moved = copy.deepcopy(batch["patch_coords"])
    moved[1, 4] += 1.0
    others = get_view_conditions(model, batch | {"patch_coords": moved})
    assert torch.equal(others[0], conditions[0]) and not torch.isclose(others[4], conditions[4]).all()
    output = model(**batch)
    (output.view_loss + output.bev_loss).backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learned and all(name.startswith("reconstruction_head.") for name in learned)
    # In contrast, `per_view` depends on the pictures.
    seeing = make_model().train()
    before = get_view_conditions(seeing, batch)
    assert not torch.equal(get_view_conditions(seeing, batch | {"pixel_values": -batch["pixel_values"]}), before)


def test_hidden_views_are_not_scored_of_a_model_that_never_hid_any():
    context = SimpleNamespace(model=make_model(view_objective="vanilla"))
    with pytest.raises(ValueError, match=r"expected a model with view_objective 'cross_view', got 'vanilla'"):
        reconstruction.prepare(context, [])


def test_nothing_to_rebuild_is_zero_however_large_the_errors():
    """A step without masked views and pictures runs the head on nothing: infinite errors of it are not NaN."""
    model = make_model().train()
    with torch.no_grad():
        model.reconstruction_head.denoiser.final_layer.linear.bias.fill_(1e30)
    for row in (make_row(0, 3, 2, ["text"], bev=False), make_row(1, 2, 1, ["text", "text"], bev=False)):
        batch = make_collator()([row])
        batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
        outputs = model(**batch)
        assert outputs.view_loss == outputs.bev_loss == 0 and outputs.loss.isfinite()


@pytest.mark.parametrize("views", [2, 3])
def test_features_in_place_of_pixels_have_nothing_to_rebuild(views):
    model = make_model().eval()
    batch = make_collator()([make_row(0, views, 2, ["text"])])
    names = ("input_ids", "attention_mask", "view_mask", "bev_pixel_values", "bev_valid")
    given = {name: batch[name] for name in names}
    features = model.get_image_features(batch["pixel_values"], batch["view_mask"])
    hidden = torch.zeros_like(batch["view_mask"])
    hidden[0, 0] = True
    outputs = model(**given, mm_encoder_outputs={"image": features}, bool_masked_views=hidden)
    assert outputs.view_loss is None and outputs.bev_loss is None and outputs.loss is None
    plain = model(**given, pixel_values=batch["pixel_values"], bool_masked_views=hidden)
    assert torch.equal(outputs.logits, plain.logits) and plain.view_loss > 0


def test_answers_are_counted_over_all_rows_before_they_are_rounded():
    """Weights of one's own may be shares of an answer."""
    model = make_model()
    batch = make_collator()([make_row(0, 3, 2, ["text"]), make_row(1, 5, 4, ["text"])])
    batch["loss_weights"] = batch["loss_weights"] / 2
    assert count_losses(batch, model.config)[0] == 1 and model.train()(**batch).loss_counts[0] == 1
