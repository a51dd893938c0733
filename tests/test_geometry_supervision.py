"""Cameras and depth as targets: losses by hand from both sources, views and rows that carry them, errors, training."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from scipy.spatial.transform import Rotation
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import AutoModel

from ross3d.configuration_ross3d import Ross3DPredictionConfig
from ross3d.data.arguments import DataArguments
from ross3d.fusion_ross3d import run_encoder
from ross3d.geometry_supervision_ross3d import MIN_DEPTH, encode_relative_cameras, get_fields_of_view
from ross3d.modeling_ross3d import count_losses, get_loss_names
from ross3d.tests import fabricate
from ross3d.tests.fabricate import (
    GRID,
    add_cameras,
    make_collator,
    make_config,
    make_model,
    make_row,
)
from ross3d.tests.posed_views import VIEW_SIZE, make_test_processor, make_views
from ross3d.tests.tiny import get_checkpoint, get_rooms
from ross3d.training.arguments import RunArguments
from ross3d.training.build import build_collator, build_config, build_model, build_processor, build_rows
from ross3d.training.trainer import keep_float32
from ross3d.vggt_ross3d import Ross3DVGGT, decode_cameras, get_quaternions


DISTILLATION = {
    "head_hidden_size": 20, "feature_size": 16, "encoder_image_size": 16, "encoder_dtype": "float32",
}  # fmt: skip
NAMES = ("camera", "depth")


def make_encoder(spread: float = 0.003) -> Ross3DVGGT:
    """A random encoder whose depths differ by a factor of some hundreds; with a spread of 0.3 many are infinite."""
    encoder = fabricate.make_geometry_encoder()
    with torch.no_grad():
        encoder.depth_head.scratch.output_conv2[2].weight *= spread
    return encoder


def make_student(seed: int = 0, distills: bool = False, encoder: Ross3DVGGT | None = None, **changes):
    """A model that predicts cameras and depth; `changes` of both sections, others of the config."""
    given = {name: changes.pop(name) for name in list(changes) if name in Ross3DPredictionConfig.__annotations__}
    section = {"head_hidden_size": 24} | given
    if distills or section.get("source") == "encoder":
        changes["distillation_config"] = DISTILLATION
    model = make_model(seed=seed, camera_config=section, depth_config=section, **changes)
    if model.config.distillation_config is not None:
        model.attach_geometry_encoder(encoder or make_encoder())
    return model.train()


def make_batch(hidden=((), ()), kinds=(["text"], ["text", "ground", "coord"]), geometry=False):
    """Scenes of 3 and 5 views with cameras, the given views hidden; in each one token has no position."""
    rows = [make_row(0, 3, 2, kinds[0], geometry=geometry), make_row(1, 5, 4, kinds[1], geometry=geometry)]
    for number, row in enumerate(rows):
        row["patch_valid"][number, 1, 2] = False
    batch = make_collator()([add_cameras(row, number) for number, row in enumerate(rows)])
    batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
    for row, views in enumerate(hidden):
        batch["bool_masked_views"][row, list(views)] = True
    return batch


def get_states(model, batch, layer=-1) -> torch.Tensor:
    """States (B, V, N, D) of a layer, from the inner model."""
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid",
             "query_coords")  # fmt: skip
    masked = batch["bool_masked_views"] & batch["view_mask"]
    output = model.model(
        **{name: batch[name] for name in names if name in batch}, bool_masked_views=masked, visual_layers=(layer,)
    )
    return output.visual_layers[layer]


def get_encoder_output(batch, encoder=None):
    encoder = (encoder or make_encoder()).eval()
    return run_encoder(encoder, batch["geometry_pixel_values"], batch["view_mask"], (-1,), NAMES, "float32")


def predict(head, states: torch.Tensor) -> torch.Tensor:
    return head.linear_2(F.gelu(head.linear_1(states)))


def compute_camera_by_hand(model, batch, views, layer=-1) -> float:
    """The mean over rows of the mean over the given views, in float64."""
    states, means = get_states(model, batch, layer).mean(dim=2), []
    if model.config.camera_config.source == "encoder":
        found = get_encoder_output(batch)
        cameras, focal = found.cam2world, found.intrinsics[..., (1, 0), (1, 0)]
        fields = 2 * torch.atan(torch.tensor([6.0, 8.0]) / focal)
    else:
        cameras, fields = batch["cam2world"], batch["fields_of_view"]
    for row, chosen in enumerate(views):
        errors = []
        for view in chosen:
            relative = np.linalg.inv(cameras[row, view].double().numpy()) @ cameras[row, chosen[0]].double().numpy()
            turn = Rotation.from_matrix(relative[:3, :3]).as_quat()
            pair = torch.cat([states[row, view], states[row, chosen[0]]])
            predicted = predict(model.camera_head, pair).detach().double().numpy()
            error = np.abs(predicted[:3] - relative[:3, 3]).mean()
            error += min(np.abs(predicted[3:7] - turn).mean(), np.abs(predicted[3:7] + turn).mean())
            errors.append(error + 0.5 * np.abs(predicted[7:] - fields[row, view].double().numpy()).mean())
        means += [np.mean(errors)] if errors else []
    return float(np.mean(means))


def compute_depth_by_hand(model, batch, views, layer=-1) -> float:
    """The mean over rows of the mean over the tokens of the given views that have a depth, in float64."""
    predicted, means = predict(model.depth_head, get_states(model, batch, layer))[..., 0].detach().double(), []
    for row, chosen in enumerate(views):
        errors = []
        for view in chosen:
            if model.config.depth_config.source == "encoder":
                # Pictures of 12 x 16 pixels on 3 x 3 tokens: cells of 4 rows and of columns 0-5, 5-10 and 10-15.
                depths = get_encoder_output(batch).depth_maps[row, view].double()
                cells = [depths[4 * i : 4 * i + 4, 5 * j : 5 * j + 6].mean() for i in range(3) for j in range(3)]
                errors += [float(predicted[row, view, n] - cell.log()) for n, cell in enumerate(cells)]
                continue
            world2cam = np.linalg.inv(batch["cam2world"][row, view].double().numpy())
            for n, point in enumerate(batch["patch_coords"][row, view].flatten(0, 1).double().numpy()):
                depth = (world2cam[:3, :3] @ point + world2cam[:3, 3])[2]
                if depth > MIN_DEPTH and batch["patch_valid"][row, view].flatten()[n]:
                    errors.append(float(predicted[row, view, n]) - np.log(depth))
        errors = np.array(errors) - (np.median(errors) if model.config.depth_config.source == "encoder" else 0)
        means += [np.abs(errors).mean()] if len(errors) else []
    return float(np.mean(means))


@pytest.mark.parametrize("source", ["scene", "encoder"])
@pytest.mark.parametrize(
    ("changes", "hidden", "views"),
    [
        ({}, ((), ()), ([0, 1, 2], [0, 1, 2, 3, 4])),
        ({}, ((1,), (0, 4)), ([0, 2], [1, 2, 3])),
        ({"masked_views": "include"}, ((1,), (0, 4)), ([0, 1, 2], [0, 1, 2, 3, 4])),
        ({"student_layer": 1}, ((0,), (2,)), ([1, 2], [0, 1, 3, 4])),
        ({"view_objective": "vanilla"}, ((0,), (2,)), ([0, 1, 2], [0, 1, 2, 3, 4])),
    ],
)
def test_losses_are_means_over_rows(source, changes, hidden, views):
    model, batch = make_student(source=source, **changes), make_batch(hidden, geometry=source == "encoder")
    output = model(**batch)
    layer = changes.get("student_layer", -1)
    if "view_objective" in changes:
        batch = batch | {"bool_masked_views": torch.zeros_like(batch["bool_masked_views"])}
    assert output.camera_loss.item() == pytest.approx(compute_camera_by_hand(model, batch, views, layer), rel=1e-5)
    assert output.depth_loss.item() == pytest.approx(compute_depth_by_hand(model, batch, views, layer), rel=1e-5)
    assert get_loss_names(model.config)[-2:] == ("camera_loss", "depth_loss")
    assert output.loss_counts[-2:].tolist() == count_losses(batch, model.config)[-2:].tolist() == [2, 2]
    for name in NAMES:
        model.zero_grad()
        output[f"{name}_loss"].backward(retain_graph=True)
        assert getattr(model, f"{name}_head").linear_1.weight.grad.abs().max() > 0
        assert model.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
        assert model.model.multi_modal_projector.linear_1.weight.grad.abs().max() > 0


def test_weights_of_the_losses_and_their_precision():
    """Metres and angles reach the loss as they are where DeepSpeed and FSDP would cast them, and under autocast."""
    batch = make_batch(((), (1,)))
    wanted = make_student()(**batch)
    weighted = make_student(camera_loss_weight=0.25, depth_loss_weight=3.0)(**batch)
    assert_close(weighted.loss - wanted.loss, 2 * wanted.depth_loss - 0.75 * wanted.camera_loss)
    bits = {name: tensor.clone() for name, tensor in batch.items()}
    keep_float32(bits)
    assert bits["cam2world"].dtype == bits["fields_of_view"].dtype == torch.int32
    found = make_student()(**bits)
    assert torch.equal(found.camera_loss, wanted.camera_loss) and torch.equal(found.depth_loss, wanted.depth_loss)
    with pytest.raises(ValueError, match="cam2world: expected float32, which voxels and loss weights need"):
        make_student()(**batch | {"cam2world": batch["cam2world"].bfloat16()})
    # A camera a hundred metres away, at which bfloat16 has steps of half a metre.
    far = batch | {name: batch[name].clone() for name in ("cam2world", "patch_coords")}
    far["cam2world"][..., :3, 3] += 100
    targets = encode_relative_cameras(far["cam2world"], far["cam2world"][:, :1], batch["fields_of_view"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = encode_relative_cameras(far["cam2world"], far["cam2world"][:, :1], batch["fields_of_view"])
    assert torch.equal(targets[batch["view_mask"]], again[batch["view_mask"]])


@pytest.mark.parametrize("seed", [0, 1])
def test_encodings_are_those_of_the_encoder(seed):
    """Decoded again they are the relative cameras; the world's origin and axes are of no account."""
    row = add_cameras(make_row(seed, 6, 1, []), seed)
    cameras, fields = row["cam2world"].double(), row["fields_of_view"].double()
    encodings = encode_relative_cameras(cameras, cameras[2], fields)
    world2cam, intrinsics = decode_cameras(encodings, (30, 42))
    assert_close(world2cam, (torch.linalg.inv(cameras) @ cameras[2]).float())
    assert_close(get_fields_of_view(intrinsics, (30, 42)), fields.float())
    turns = Rotation.random(200, random_state=seed).as_matrix()
    turns = np.concatenate([turns, np.diag([1.0, -1, -1])[None], np.diag([-1.0, -1, 1])[None], np.eye(3)[None]])
    found = get_quaternions(torch.from_numpy(turns))
    assert (found[:, 3] >= 0).all()
    assert_close(torch.from_numpy(Rotation.from_quat(found.numpy()).as_matrix()), torch.from_numpy(turns))
    moved = torch.from_numpy(np.block([[turns[0], np.array([[3.0], [-1], [2]])], [np.zeros((1, 3)), np.ones((1, 1))]]))
    assert_close(encode_relative_cameras(moved @ cameras, moved @ cameras[2], fields), encodings)


def test_the_unit_of_the_encoder_is_free_for_depth_and_metres_are_not(monkeypatch):
    batch = make_batch(geometry=True)
    model = make_student(source="encoder")
    wanted = model(**batch)
    forward = Ross3DVGGT.forward

    def forward_in_other_units(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.depth_maps = output.depth_maps * torch.tensor([7.0, 0.2])[:, None, None, None]
        return output

    monkeypatch.setattr(Ross3DVGGT, "forward", forward_in_other_units)
    found = model(**batch)
    assert_close(found.depth_loss, wanted.depth_loss)
    scene = make_student()
    larger = batch | {"patch_coords": batch["patch_coords"] * 2, "cam2world": batch["cam2world"].clone()}
    larger["cam2world"][..., :3, 3] *= 2
    states, twice = scene(**batch), scene(**larger)
    assert not torch.isclose(states.depth_loss, twice.depth_loss, rtol=0.01)


def test_depths_that_are_no_numbers_carry_no_loss():
    batch, wild = make_batch(geometry=True), make_encoder(0.3)
    depths = get_encoder_output(batch, wild).depth_maps
    assert depths.isinf().any()
    model = make_student(source="encoder", encoder=wild)
    loss = model(**batch).depth_loss
    predicted, means = predict(model.depth_head, get_states(model, batch))[..., 0].detach(), []
    for row, count in enumerate((3, 5)):
        errors = predicted[row, :count] - F.adaptive_avg_pool2d(depths[row, :count], (GRID, GRID)).flatten(1).log()
        errors = errors[errors.isfinite()].numpy()
        assert 1 < len(errors) < 9 * count
        means.append(np.abs(errors - np.median(errors)).mean())
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-5)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_encoder_runs_once_a_step(monkeypatch):
    """Features, cameras and depth of one pass; without cameras and depth of the encoder, none of its heads."""
    calls, forward = [], Ross3DVGGT.forward

    def count_forward(self, *args, **kwargs):
        calls.append(list(kwargs["heads"]))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(Ross3DVGGT, "forward", count_forward)
    batch = make_batch(geometry=True)
    output = make_student(source="encoder")(**batch)
    assert calls == [["camera", "depth"]] and min(output.distill_loss, output.camera_loss, output.depth_loss) > 0
    calls.clear()
    alone = make_student(distills=True)(**batch)
    assert calls == [[]] and torch.equal(alone.distill_loss, output.distill_loss)
    calls.clear()
    mixed = make_model(
        distillation_config=DISTILLATION | {"tasks": ["grounding"]}, depth_config={"source": "encoder"},
        camera_config={},
    ).train()  # fmt: skip
    mixed.attach_geometry_encoder(make_encoder())
    output = mixed(**batch)
    assert calls == [["depth"]] and output.loss_counts[-3:].tolist() == [1, 2, 2]
    tasks = make_model(distillation_config=DISTILLATION | {"tasks": ["grounding"]}).train()
    tasks.load_state_dict(mixed.state_dict(), strict=False)
    tasks.attach_geometry_encoder(make_encoder())
    assert_close(tasks(**batch).distill_loss, output.distill_loss)


def test_packed_rows_have_the_losses_of_their_scene():
    packed = make_batch(kinds=(["text", "coord"], ["text", "text"]))
    single = make_batch(kinds=(["text"], []))
    for name in ("pixel_values", "patch_coords", "cam2world"):
        single[name] = packed[name]
    single["input_ids"][:, :3] = packed["input_ids"][:, :3]
    model = make_student()
    one, other = model(**packed), model(**single)
    assert_close(one.camera_loss, other.camera_loss)
    assert_close(one.depth_loss, other.depth_loss)


def test_rows_without_targets_carry_no_loss():
    model = make_student()
    rows = [add_cameras(make_row(0, 3, 2, ["text"]), 0), make_row(1, 5, 4, ["text"], depth=False)]
    blank = add_cameras(make_row(2, 4, 1, ["text"]), 2)
    blank["patch_valid"] = torch.zeros_like(blank["patch_valid"])
    batch = make_collator(0.0)([*rows, blank])
    output, alone = model(**batch), model(**make_collator(0.0)(rows[:1]))
    # A scene whose cells have no reading has cameras all the same.
    assert output.loss_counts[-2:].tolist() == [2, 1] == count_losses(batch, model.config)[-2:].tolist()
    assert_close(output.depth_loss, alone.depth_loss)
    assert_close(model(**make_collator(0.0)(rows)).camera_loss, alone.camera_loss)
    for cast in (False, True):
        bare = make_collator(0.0)(rows[1:])
        if cast:
            keep_float32(bare)
        output = model(**bare)
        assert output.camera_loss == output.depth_loss == 0 and output.loss_counts[-2:].tolist() == [0, 0]
        model.zero_grad()
        output.loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        assert not model.camera_head.linear_2.weight.grad.any() and not model.depth_head.linear_1.weight.grad.any()
    # Text alone, without a picture.
    row = make_row(0, 3, 2, ["text"])
    keep = row["input_ids"] != 90
    words = {name: row[name][keep][None] for name in ("input_ids", "labels", "shift_labels", "loss_weights")}
    for source in ("scene", "encoder"):
        output = make_student(source=source)(**words)
        assert output.camera_loss == output.depth_loss == 0 and output.loss_counts[-2:].tolist() == [0, 0]
    # In evaluation a batch without targets has no such loss.
    output = model.eval()(**bare)
    assert output.camera_loss is None and output.depth_loss is None and output.lm_loss > 0


def test_models_without_the_sections_are_what_they_were():
    batch = make_batch()
    model = make_model().train()
    assert not hasattr(model, "camera_head") and not hasattr(model, "depth_head")
    output = model(**batch)
    assert output.loss_counts.shape == (4,) and "camera_loss" not in output
    bare = {name: tensor for name, tensor in batch.items() if name not in ("cam2world", "fields_of_view")}
    assert torch.equal(model(**bare).loss, output.loss)
    alone = make_model(depth_config={"head_hidden_size": 5}).train()
    assert get_loss_names(alone.config)[4:] == ("depth_loss",) and not hasattr(alone, "camera_head")
    assert alone.depth_head.linear_1.weight.shape == (5, 32) and alone(**batch).depth_loss > 0


def test_a_saved_model_has_its_heads(tmp_path):
    model, batch = make_student(denoiser_config=None), make_batch()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    for name in NAMES:
        assert torch.equal(
            getattr(loaded, f"{name}_head").linear_2.weight, getattr(model, f"{name}_head").linear_2.weight
        )
    found, wanted = loaded.eval()(**batch), model.eval()(**batch)
    assert_close(found.camera_loss, wanted.camera_loss)
    assert_close(found.depth_loss, wanted.depth_loss)


@pytest.mark.parametrize("source", ["scene", "encoder"])
def test_both_losses_fall(source):
    """On two scenes, from pictures alone: the model gets no positions."""
    model = make_student(source=source, position_embedding="none", denoiser_config=None)
    batch = make_batch(geometry=source == "encoder")
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(60):
        output = model(**batch)
        losses.append((output.camera_loss.item(), output.depth_loss.item()))
        optimizer.zero_grad()
        (output.camera_loss + output.depth_loss).backward()
        optimizer.step()
    assert all(last < 0.6 * first for first, last in zip(losses[0], losses[-1], strict=True)), (losses[0], losses[-1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"camera_config": {"source": "encoder"}}, "camera_config.source: expected 'scene' without distillation_conf"),
        ({"depth_config": {"source": "encoder"}}, "depth_config.source: expected 'scene' without distillation_config"),
        ({"depth_config": {"source": "sensor"}}, "'source' expected one of"),
        ({"camera_config": {"head_hidden_size": 0}}, "camera_config.head_hidden_size: expected a number >= 1, got 0"),
        ({"depth_config": {"student_layer": 3}}, r"depth_config.student_layer: expected 0 \(embeddings\) to 2"),
        ({"camera_config": {"student_layer": -4}}, r"camera_config.student_layer: expected 0 \(embeddings\) to 2"),
        ({"camera_config": {"sorce": "scene"}}, "camera_config: .* unknown key `sorce`; did you mean `source`"),
        ({"depth_config": {"masked_views": "drop"}}, "masked_views"),
        ({"depth_loss_weight": -1.0}, "depth_loss_weight: expected a finite number >= 0"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        make_config(**changes)


def test_batches_that_are_refused():
    batch = make_batch(geometry=True)
    bare = {name: tensor for name, tensor in batch.items() if name not in ("cam2world", "fields_of_view")}
    model = make_student()
    message = (
        "cam2world: expected the cameras of views with depth for camera_loss in training, got none; set processor"
    )
    with pytest.raises(ValueError, match=message):
        model(**bare)
    assert model.eval()(**bare).camera_loss is None
    for name in ("fields_of_view", "patch_coords"):
        without = {other: tensor for other, tensor in batch.items() if other not in (name, "patch_valid")}
        with pytest.raises(ValueError, match=f"cam2world: expected {name} with this target, to compare the two"):
            model.train()(**without)
    for name, wrong in (("cam2world", batch["cam2world"][:, :, :3]), ("fields_of_view", batch["fields_of_view"][:1])):
        with pytest.raises(ValueError, match=f"{name}: expected shape .* a processor whose return_cameras is True"):
            model(**batch | {name: wrong})
    unseen = {name: tensor for name, tensor in batch.items() if name != "geometry_pixel_values"}
    message = "geometry_pixel_values: expected views for the geometry encoder for camera_loss in training, got none"
    camera = make_model(
        distillation_config=DISTILLATION, camera_config={"source": "encoder"}, distill_loss_weight=0.0
    ).train()
    features = torch.zeros(2, 5, 1, GRID, GRID, 16)
    with pytest.raises(ValueError, match=message):
        camera(**unseen, geometry_features=features)
    camera.attach_geometry_encoder(make_encoder())
    output = camera(**batch, geometry_features=features)
    assert output.camera_loss > 0 and "depth_loss" not in output


def test_encoders_without_the_head_are_refused():
    config = copy.deepcopy(make_encoder().config)
    config.heads = ["camera"]
    encoder = Ross3DVGGT(config)
    message = (
        r"depth_config.source: expected a geometry encoder with a depth head for 'encoder', got one .*\['camera'\]"
    )
    with pytest.raises(ValueError, match=message):
        make_student(source="encoder", encoder=encoder)
    model = make_model(distillation_config=DISTILLATION, camera_config={"source": "encoder"})
    model.attach_geometry_encoder(encoder)
    assert model.encode_geometry(**make_batch(geometry=True)).cam2world.shape == (2, 5, 4, 4)


@pytest.mark.parametrize("fit", ["center_crop", "squash"])
@pytest.mark.parametrize("mode", ["published", "valid_depth"])
def test_the_processor_returns_cameras(fit, mode):
    """Depth maps of 36 x 48 pixels as views of 40 x 40: the crop shows 36 of 48 columns."""
    own = make_test_processor(geometry_mode=mode, view_fit=fit)
    scene = make_views()
    plain = own(**scene, text="Which?")
    own.return_cameras = True
    found = own(**scene, text="Which?")
    assert found.keys() - plain.keys() == {"cam2world", "fields_of_view"}
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert found["cam2world"].dtype == found["fields_of_view"].dtype == torch.float32
    assert_close(found["cam2world"][0], torch.from_numpy(scene["cam2world"]).float())
    # Within a third of a pixel of the depth map.
    width = 48 if fit == "squash" else 36
    for pixels, focal, angle in ((36, 47.0, 0), (width, 45.0, 1)):
        low, high = (2 * np.arctan((pixels + rest) / 2 / focal) for rest in (-0.3, 0.3))
        assert ((found["fields_of_view"][0, :, angle] > low) & (found["fields_of_view"][0, :, angle] < high)).all()
    # Prepared scenes give the same, and pictures alone have no cameras.
    fitted = own.fit_scene(**{name: value for name, value in scene.items() if name != "proposal_boxes"})
    again = own(images=fitted, text="Which?")
    assert all(torch.equal(again[name], found[name]) for name in ("cam2world", "fields_of_view"))
    assert "cam2world" not in own(images=scene["images"], text="Which?")
    with pytest.raises(ValueError, match=r"return_cameras: expected one of \(False, True\), got 'yes'"):
        own.return_cameras = "yes"


@pytest.mark.parametrize("fit", ["center_crop", "squash"])
def test_targets_are_the_depth_of_the_pictures(fit):
    """The depth of a cell is the mean of its readings; projected by the fields of view it is seen in its cell."""
    own = make_test_processor(geometry_mode="valid_depth", view_fit=fit, return_cameras=True)
    scene = make_views()
    # A principal point in the middle, as the encoding assumes.
    scene["intrinsics"] = np.array([[45.0, 0, 23.5], [0, 47.0, 17.5], [0, 0, 1]])
    scene["depth_maps"] = np.full_like(scene["depth_maps"], 2.0)
    scene["depth_maps"][:, ::5, ::3] = 0
    found = {name: tensor[0] for name, tensor in own(**scene, text="Which?").items()}
    coords, cameras = found["patch_coords"].flatten(1, 2), found["cam2world"]
    seen = (coords - cameras[:, None, :3, 3]) @ cameras[:, :3, :3]
    assert_close(seen[..., 2], torch.full_like(seen[..., 2], 2.0))
    half = torch.tan(found["fields_of_view"] / 2)[:, None]
    places = (seen[..., (1, 0)] / seen[..., 2:] / half + 1) / 2 * VIEW_SIZE
    cell = VIEW_SIZE / GRID
    centres = torch.cartesian_prod(*[(torch.arange(3) + 0.5) * cell] * 2)
    assert ((places - centres).abs() < 2).all()


@pytest.fixture
def arguments() -> RunArguments:
    data = DataArguments(root=str(get_rooms()), limit=2, questions_per_row=2)
    sections = {"camera_config": {"head_hidden_size": 16}, "depth_config": {"head_hidden_size": 8}}
    return RunArguments(seed=3, init_from=str(get_checkpoint()), model=sections, data=data, allow_missing_weights=True)


def run_batch(arguments: RunArguments):
    processor = build_processor(arguments)
    model = build_model(arguments, processor).train()
    rows = build_rows(arguments, processor, 1, model.config)
    assert not processor.return_cameras and processor.geometry_image_size is None
    batch = build_collator(processor, model.config)([rows[0], rows[1]])
    return model, batch, model(**batch)


def test_a_run_file_turns_them_on(arguments, tmp_path):
    model, batch, output = run_batch(arguments)
    assert {"cam2world", "fields_of_view"} <= batch.keys() and "geometry_pixel_values" not in batch
    assert output.loss_counts[4:].tolist() == [2, 2] and min(output.camera_loss, output.depth_loss) > 0
    prepared = replace(arguments.data, prepared=str(tmp_path / "prepared"))
    for _ in range(2):
        again = run_batch(replace(arguments, data=prepared))[2]
        assert torch.equal(again.camera_loss, output.camera_loss) and torch.equal(again.depth_loss, output.depth_loss)


def test_a_run_file_names_the_encoder_as_source(arguments, tmp_path):
    sections = {name: section | {"source": "encoder"} for name, section in arguments.model.items()}
    encoder = get_checkpoint("3drs") / "geometry_encoder"
    plain = replace(arguments, init_from=str(get_checkpoint("3drs")), model=sections)
    Ross3DVGGT.from_pretrained(encoder, heads=["depth"]).save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="camera_config.source: expected a geometry encoder with a camera head"):
        run_batch(replace(plain, geometry_encoder=str(tmp_path / "encoder")))
    model, batch, output = run_batch(plain)
    assert "cam2world" not in batch and "geometry_pixel_values" in batch
    assert list(model.get_geometry_encoder().config.heads) == ["camera", "depth"]
    assert output.loss_counts[4:].tolist() == [2, 2, 2] and min(output.camera_loss, output.depth_loss) > 0
    files = replace(plain, data=replace(plain.data, geometry_features=str(tmp_path / "features")))
    processor = build_processor(files)
    message = "data.geometry_features: expected None with model.camera_config.source 'encoder', because files"
    with pytest.raises(ValueError, match=message):
        build_rows(files, processor, 1, build_config(files, processor))
