"""Distillation: the loss by hand, targets from the encoder and from files, rows and views that carry it, errors."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel

from ross3d.configuration_ross3d import Ross3DDistillationConfig
from ross3d.distillation_ross3d import stack_targets
from ross3d.fusion_ross3d import run_encoder
from ross3d.modeling_ross3d import count_losses, get_loss_names
from ross3d.tests.fabricate import (
    DISTILLATION,
    GRID,
    make_collator,
    make_config,
    make_geometry_encoder,
    make_model,
    make_row,
)


SIZE = (GRID, GRID)


def make_student(seed: int = 0, **changes):
    """A model that distils, with its encoder."""
    given = {name: changes.pop(name) for name in list(changes) if name in Ross3DDistillationConfig.__annotations__}
    return make_model(seed=seed, distillation_config=DISTILLATION | given, **changes).train()


def make_batch(hidden=((), ()), kinds=(["text"], ["text", "ground", "coord"])) -> dict[str, torch.Tensor]:
    """Scenes of 3 and 5 views with pictures of 12 x 16 pixels for the encoder, and the given views hidden."""
    rows = [make_row(0, 3, 2, kinds[0], geometry=True), make_row(1, 5, 4, kinds[1], geometry=True)]
    batch = make_collator()(rows)
    batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
    for row, views in enumerate(hidden):
        batch["bool_masked_views"][row, list(views)] = True
    return batch


def get_features(batch, layers=(-1,), dtype="float32") -> torch.Tensor:
    encoder = make_geometry_encoder().eval()
    found = run_encoder(encoder, batch["geometry_pixel_values"], batch["view_mask"], layers, (), dtype)
    features = stack_targets(found.patches, SIZE)
    return features.masked_fill(~batch["view_mask"][..., None, None, None, None], float("nan"))


def from_files(batch, layers=(-1,)) -> dict[str, torch.Tensor]:
    """The same rows with features in place of pictures."""
    own = {name: tensor for name, tensor in batch.items() if name != "geometry_pixel_values"}
    return own | {"geometry_features": get_features(batch, layers)}


def compute_by_hand(model, batch, views, layer=-1, layers=(-1,)) -> torch.Tensor:
    """The mean over the given views of each row, from the model's states."""
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid",
             "query_coords")  # fmt: skip
    masked = batch["bool_masked_views"] & batch["view_mask"]
    output = model.model(**{name: batch[name] for name in names}, bool_masked_views=masked, visual_layers=(layer,))
    features, means = get_features(batch, layers), []
    for row, chosen in enumerate(views):
        if not chosen:
            continue
        student = output.visual_layers[layer][row, chosen]
        predicted = model.distillation_head.linear_2(F.gelu(model.distillation_head.linear_1(student)))
        predicted = predicted.view(len(chosen), GRID * GRID, len(layers), 16).double()
        wanted = features[row, chosen].flatten(2, 3).transpose(1, 2).double()
        means.append((2 - 2 * F.cosine_similarity(predicted, wanted, dim=-1)).mean())
    return torch.stack(means).mean().float()


@pytest.mark.parametrize(
    ("changes", "hidden", "views"),
    [
        ({}, ((), ()), ([0, 1, 2], [0, 1, 2, 3, 4])),
        ({}, ((1,), (0, 4)), ([0, 2], [1, 2, 3])),
        ({"masked_views": "include"}, ((1,), (0, 4)), ([0, 1, 2], [0, 1, 2, 3, 4])),
        ({"tasks": ["text"]}, ((), (2,)), ([0, 1, 2], [])),
        ({"tasks": ["grounding"]}, ((), (2,)), ([], [0, 1, 3, 4])),
        ({"student_layer": 1}, ((), (2,)), ([0, 1, 2], [0, 1, 3, 4])),
        ({"encoder_layers": [0, 2]}, ((0,), ()), ([1, 2], [0, 1, 2, 3, 4])),
    ],
)
def test_the_loss_is_the_mean_over_rows_of_their_tokens(changes, hidden, views):
    model, batch = make_student(**changes), make_batch(hidden)
    output = model(**batch)
    layers = changes.get("encoder_layers", [-1])
    wanted = compute_by_hand(model, batch, views, changes.get("student_layer", -1), layers)
    assert_close(output.distill_loss, wanted)
    counts = [1, 1, 1, 1, sum(map(bool, views))]
    assert get_loss_names(model.config)[-1] == "distill_loss" and len(get_loss_names(model.config)) == 5
    assert output.loss_counts[-1] == count_losses(batch, model.config)[-1] == counts[-1]
    # Features from files give the same numbers, gradients included.
    again = model(**from_files(batch, layers))
    for name in get_loss_names(model.config):
        assert torch.equal(again[name], output[name]), name
    output.distill_loss.backward()
    gradient = model.distillation_head.linear_1.weight.grad.clone()
    model.zero_grad()
    again.distill_loss.backward()
    assert torch.equal(model.distillation_head.linear_1.weight.grad, gradient) and gradient.abs().max() > 0
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_the_layer_of_the_student_is_counted_as_in_the_library():
    """-1 and the number of layers are the output after the final norm; others are layers' own outputs."""
    batch, losses = make_batch(), {}
    for layer in (-1, 2, -3, 0, 1, -2):
        losses[layer] = model_loss = make_student(student_layer=layer)(**batch).distill_loss
        assert model_loss > 0
    assert losses[-1] == losses[2] and losses[0] == losses[-3] and losses[1] == losses[-2]
    assert len({float(losses[layer]) for layer in (0, 1, 2)}) == 3
    checkpointed = make_student(student_layer=1)
    checkpointed.activation_checkpointing_enable()
    wanted = make_student(student_layer=1)
    for model in (checkpointed, wanted):
        model(**batch).loss.backward()
    for (name, ours), (_, other) in zip(checkpointed.named_parameters(), wanted.named_parameters(), strict=True):
        assert_close(ours.grad, other.grad, msg=name)


def test_packed_rows_have_the_loss_of_their_scene():
    """Several questions of a scene in one row, or a row each: the visual states do not depend on the questions."""
    packed = make_batch(kinds=(["text", "coord"], ["text", "text"]))
    single = make_batch(kinds=(["text"], []))
    for name in ("pixel_values", "geometry_pixel_values", "patch_coords"):
        single[name] = packed[name]
    single["input_ids"][:, :3] = packed["input_ids"][:, :3]
    model = make_student()
    assert_close(model(**packed).distill_loss, model(**single).distill_loss)


def test_every_weight_takes_part_whatever_a_row_has():
    """A row without a target, without views, or of another task runs the same modules; its loss is zero."""
    for changes, row in (({"tasks": ["grounding"]}, 0), ({}, None)):
        model = make_student(**changes)
        rows = [make_row(0, 3, 2, ["text"], geometry=True)]
        if row is None:
            # Text alone: the trainer's batch has no pictures at all.
            blank = {name: rows[0][name] for name in ("input_ids", "labels", "shift_labels", "loss_weights")}
            keep = rows[0]["input_ids"] != 90
            batch = {name: tensor[keep][None] for name, tensor in blank.items()} | {"row_seed": torch.tensor([1])}
        else:
            batch = make_collator()(rows)
        output = model(**batch)
        assert output.distill_loss == 0 and output.loss_counts[-1] == 0
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    # A row with features beside one without: the collator marks the absent ones.
    features = get_features(make_collator()([make_row(0, 3, 2, ["text"], geometry=True)]))[0]
    bare, full = make_row(1, 5, 4, ["text"]), make_row(0, 3, 2, ["text"]) | {"geometry_features": features}
    batch = make_collator()([bare, full])
    model = make_student()
    output = model(**batch)
    assert output.loss_counts[-1] == 1
    assert_close(output.distill_loss, model(**make_collator()([full])).distill_loss)


def test_models_without_the_section_are_what_they_were():
    model, batch = make_model().train(), make_batch()
    assert not hasattr(model, "distillation_head") and model(**batch).loss_counts.shape == (4,)
    with pytest.raises(ValueError, match="expected a model with distillation_config, got None"):
        model.attach_geometry_encoder(make_geometry_encoder())


def test_the_encoder_is_never_saved_and_is_frozen(tmp_path):
    model, batch = make_student(), make_batch()
    before = copy.deepcopy(model.get_geometry_encoder().state_dict())
    model(**batch).loss.backward()
    encoder = model.get_geometry_encoder()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in encoder.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    model.save_pretrained(tmp_path / "model")
    encoder.save_pretrained(tmp_path / "model" / "geometry_encoder")
    loaded = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert not any("aggregator" in name for name in loaded.state_dict())
    loaded.attach_teacher(model.get_teacher())
    with pytest.raises(ValueError, match="expected an attached encoder to compute features of views"):
        loaded.train()(**batch)
    loaded.attach_geometry_encoder(tmp_path / "model" / "geometry_encoder")
    assert_close(loaded.train()(**batch).loss, model(**batch).loss)
    # Evaluation needs neither encoder nor target.
    bare = {name: tensor for name, tensor in batch.items() if name != "geometry_pixel_values"}
    assert loaded.eval()(**bare).distill_loss is None
    assert_close(loaded(**batch).distill_loss, model.eval()(**batch).distill_loss)


@pytest.mark.parametrize("dtype", ["autocast_bfloat16", "bfloat16", "float16"])
def test_precisions_of_the_encoder(dtype):
    batch = make_batch()
    exact = make_student()(**batch).distill_loss
    model = make_student(encoder_dtype=dtype)
    weights = {parameter.dtype for parameter in model.get_geometry_encoder().parameters()}
    assert weights == {torch.float32 if dtype == "autocast_bfloat16" else getattr(torch, dtype)}
    loss = model(**batch).distill_loss
    assert loss != exact and abs(loss - exact) < 0.05 * exact
    # The precision of a training step does not change the encoder's.
    features = model.encode_geometry(**batch).patches[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_geometry(**batch).patches[0], features)
    assert features.dtype == (torch.float32 if dtype == "autocast_bfloat16" else getattr(torch, dtype))


def test_encode_geometry_gives_features_cameras_and_depth():
    """Scenes of 3 and 5 views; pictures as uint8 or as floats; the world is the first view's camera."""
    model, batch = make_student(), make_batch()
    found = model.encode_geometry(**batch)
    assert found.patches[0].shape == (2, 5, 3, 4, 16) and found.camera[0].shape == (2, 5, 16)
    assert found.cam2world.shape == (2, 5, 4, 4) and found.intrinsics.shape == (2, 5, 3, 3)
    assert found.depth_maps.shape == found.depth_confidence.shape == (2, 5, 12, 16)
    assert found.extent == (0.0, 0.0, 1.0, 1.0) and found.scale_source == "arbitrary"
    assert not found.patches[0][0, 3:].any() and not found.cam2world[0, 3:].any()
    output = make_geometry_encoder().eval()(batch["geometry_pixel_values"].float() / 255, batch["view_mask"])
    real = batch["view_mask"]
    assert_close(found.cam2world[real] @ output.world2cam[real], torch.eye(4).expand(8, 4, 4))
    floats = batch["geometry_pixel_values"].float() / 255
    layers = model.encode_geometry(geometry_pixel_values=floats, view_mask=real, layers=[0, -1], heads=())
    assert_close(layers.patches[1], found.patches[0])
    assert len(layers.patches) == 2 and layers.cam2world is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 32}, "feature_size: expected 16, twice the hidden_size of the geometry encoder, got 32"),
        ({"encoder_layers": [3]}, r"encoder_layers: expected different layers of the geometry encoder, 0 to 2"),
        ({"encoder_layers": [2, -1]}, r"encoder_layers: expected different layers of the geometry encoder, 0 to 2"),
        ({"encoder_image_size": 18}, "expected a multiple of the geometry encoder's patch_size 4, got 18"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_student(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"feature_size": 15}, "feature_size: expected an even number, twice the encoder's hidden_size, got 15"),
        ({"encoder_layers": []}, "encoder_layers: expected one or more different layers of the encoder"),
        ({"tasks": []}, "tasks: expected text, grounding or both"),
        ({"student_layer": 3}, r"student_layer: expected 0 \(embeddings\) to 2 \(layers of text_config\)"),
        ({"student_layer": -4}, r"student_layer: expected 0 \(embeddings\) to 2"),
        ({"encoder_layer": [1]}, "unknown key `encoder_layer`; did you mean `encoder_layers`"),
        ({"encoder_dtype": "bf16"}, "encoder_dtype"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make_config(distillation_config=DISTILLATION | changes)


def test_batches_that_are_refused():
    model, batch = make_student(), make_batch()
    bare = {name: tensor for name, tensor in batch.items() if name != "geometry_pixel_values"}
    with pytest.raises(ValueError, match="expected a target for distill_loss in training, features from files or"):
        model(**bare)
    with pytest.raises(ValueError, match="geometry_features: expected 1 layers of 16 channels .*got 2 of 16"):
        model(**from_files(batch, [0, 1]))
    with pytest.raises(ValueError, match="geometry_features: expected shape .* features of every view"):
        model(**bare, geometry_features=get_features(batch)[:, :3])
    with pytest.raises(ValueError, match="expected the views for the geometry encoder, got None"):
        model.encode_geometry(**bare)
    with pytest.raises(ValueError, match="multiples of patch_size 4"):
        model(**bare, geometry_pixel_values=batch["geometry_pixel_values"][..., :14])
    with pytest.raises(TypeError, match="geometry_pixel_values: expected a tensor of dtype torch.uint8, or"):
        model(**bare, geometry_pixel_values=batch["geometry_pixel_values"].long())


def test_rows_with_and_without_pictures_for_the_encoder_do_not_mix():
    rows = [make_row(0, 3, 2, ["text"], geometry=True), make_row(1, 2, 2, ["text"])]
    with pytest.raises(ValueError, match="expected geometry_pixel_values in all rows of a batch with pixel_values"):
        make_collator()(rows)
