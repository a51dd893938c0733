"""One test for each row of docs/DEVIATIONS.md: the published rule and ours, run side by side."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ross3d.data.bev import render_bev
from ross3d.data.collator import Ross3DCollator
from ross3d.data.dataset import order_rows
from ross3d.diffusion_ross3d import sample_latents, space_timesteps
from ross3d.geometry_ross3d import pool_patch_coords, quantize_coords, unproject
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import SPATIAL_INSTRUCTION
from ross3d.reconstruction_ross3d import Ross3DConditionPooler, SceneStates, get_bev_cells
from ross3d.tests.fabricate import (
    COORD_TOKEN,
    GROUND_TOKEN,
    PAD_TOKEN,
    make_collator,
    make_config,
    make_model,
    make_row,
    make_teacher,
)
from ross3d.tests.posed_views import BEV_SIZE, HEIGHT, WIDTH, make_bev, make_test_processor, make_views
from ross3d.training.trainer import open_view_gate


DOCUMENT = Path(__file__).parents[1] / "docs" / "DEVIATIONS.md"


def make_batch(*rows, hidden: list[list[int]] | None = None) -> dict[str, torch.Tensor]:
    """Padded rows; `hidden` lists the views of each row to hide, none by default."""
    batch = make_collator()(list(rows))
    batch["bool_masked_views"] = torch.zeros_like(batch["bool_masked_views"])
    for row, views in enumerate(hidden or []):
        batch["bool_masked_views"][row, views] = True
    return batch


def make_states(batch: int = 2, views: int = 4, seed: int = 0) -> SceneStates:
    """Random states of 3 x 3 tokens, the last view hidden; every scene looks elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.ones(batch, views, dtype=torch.bool)
    visible[:, -2:] = False
    states, positions = (torch.randn(batch, views, 9, 32, generator=generator) for _ in range(2))
    return SceneStates(states, visible, positions)


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


# ---- the rows


def test_condition_of_hidden_views():
    """1: `pooled` gives all hidden views of a scene one condition, `per_view` each its own; scenes never mix."""
    states = make_states()
    hidden = ~states.visible
    for condition, shared in (("pooled", True), ("per_view", False)):
        model = make_model(denoiser={"condition": condition})
        randomize(model.reconstruction_head.view_pooler)
        found = model.get_view_conditions(states, hidden).unflatten(0, (2, 2))
        assert torch.allclose(found[:, 0], found[:, 1]) == shared
        assert not torch.allclose(found[0], found[1])
        for scene in range(2):
            alone = SceneStates(*(t[scene : scene + 1] for t in (states.states, states.visible, states.positions)))
            assert torch.allclose(model.get_view_conditions(alone, hidden[scene : scene + 1]), found[scene], atol=1e-5)


@pytest.mark.parametrize("repeats", [4, 3])
def test_repeated_keys(repeats):
    """2: keys repeated any number of times give the condition that we compute from them once."""
    pooler = randomize(Ross3DConditionPooler(make_config(denoiser={"condition": "pooled"}).denoiser_config, 32, 5))
    states = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 7, dtype=torch.bool)
    once = pooler(states, mask)
    assert torch.allclose(pooler(states.repeat(1, repeats, 1), mask.repeat(1, repeats)), once, atol=1e-6)


@pytest.mark.parametrize("steps", [4, 7])
def test_clipping_of_sampled_latents(steps):
    """3: `sampler: published` clips predicted latents to [-1, 1] and `ancestral` does not."""
    truth = torch.full((2, 3, 2, 2), 2.5)
    predicted = {}
    for clip in (True, False):
        found = []

        def predict(sample, timesteps):
            return torch.zeros_like(sample)

        sample_latents(
            predict,
            truth,
            lambda index: torch.zeros_like(truth),
            num_train_timesteps=20,
            num_inference_steps=steps,
            prediction_type="epsilon",
            clip=clip,
            on_step=lambda index, sample, latents, found=found: found.append(latents),
        )
        predicted[clip] = torch.stack(found)
    assert predicted[True].abs().max() == 1 and predicted[False].abs().max() > 2
    head = {name: make_model(denoiser={"sampler": name}).reconstruction_head for name in ("published", "ancestral")}
    condition = 3 * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    latents = {name: h.sample(condition, "view", steps, torch.Generator().manual_seed(1)) for name, h in head.items()}
    assert latents["published"].abs().max() <= 1 + 1e-6
    assert latents["ancestral"].abs().max() > 1


def test_any_batch_size():
    """4: where the release asserts one row, rows of different sizes together give the mean of each alone."""
    rows = [make_row(3, 3, 4, ["text", "coord"]), make_row(4, 2, 2, ["text"], bev=False), make_row(5, 4, 1, ["text"])]
    model = make_model().eval()
    together = model(**make_batch(*rows, hidden=[[1], [0], [2, 3]]))
    alone = [model(**make_batch(row, hidden=[views])) for row, views in zip(rows, ([1], [0], [2, 3]), strict=True)]
    assert torch.allclose(together.view_loss, torch.stack([one.view_loss for one in alone]).mean(), atol=1e-5)
    answers = torch.tensor([2.0, 1.0, 1.0])
    expected = (torch.stack([one.lm_loss for one in alone]) * answers).sum() / answers.sum()
    assert torch.allclose(together.lm_loss, expected, atol=1e-5)


@pytest.mark.parametrize(("period", "open_steps"), [(4, [0, 4, 8]), (1, list(range(9))), (3, [0, 3, 6])])
def test_period_of_hidden_views(period, open_steps):
    """5: the published `view_mask_prob` of 0.25 is a period of 4 steps; ours says so and takes any whole period."""
    proposed = torch.tensor([[True, False, True]])
    found = []
    for step in range(9):
        batch = {"bool_masked_views": proposed.clone()}
        open_view_gate(batch, step, period)
        if batch["bool_masked_views"].any():
            assert torch.equal(batch["bool_masked_views"], proposed)
            found.append(step)
    assert found == open_steps
    assert make_config().view_mask_period == int(1 / 0.25)


def test_mask_token_of_a_checkpoint_without_one(tmp_path):
    """6: a mask token missing from the file is drawn, finite and of the stated width, and reported."""
    model = make_model()
    state = {name: value for name, value in model.state_dict().items() if name != "model.mask_token"}
    loaded, report = Ross3DForConditionalGeneration.from_pretrained(
        None, config=copy.deepcopy(model.config), state_dict=state, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"model.mask_token"}
    spread = loaded.model.mask_token.std().item()
    assert loaded.model.mask_token.isfinite().all() and 0.5 < spread / model.config.initializer_range < 1.5


def test_a_step_without_hidden_views():
    """7: the view loss is zero, as published, but of a graph that runs the same modules: gradients are zero, not
    absent."""
    for rows in ([make_row(1, 3, 2, ["text"])], [make_row(1, 3, 2, ["text"]), make_row(2, 5, 1, [])]):
        model = make_model().train()
        outputs = model(**make_batch(*rows))
        assert float(outputs.view_loss.detach()) == 0.0 and outputs.view_loss.requires_grad
        outputs.view_loss.backward()
        pooler = list(model.reconstruction_head.view_pooler.parameters())
        assert all(weight.grad is not None and not weight.grad.any() for weight in pooler)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_of_a_model_in_half_precision(dtype):
    """8: the release rounds metres with the rest of the model; ours reads them in float32 and embeds them the same."""
    points = torch.rand(2, 300, 3, generator=torch.Generator().manual_seed(0)) * 12 - 6
    exact = make_model().model.get_position_embedding(points)
    half = make_model().to(dtype).model
    assert torch.equal(half.get_position_embedding(points), exact)
    rounded = half.get_position_embedding(points.to(dtype).float())
    assert (rounded != exact).any(dim=-1).float().mean() > 0.01


def test_prompts_and_supervised_tokens():
    """9: the instruction is a setting, the same in training and evaluation; `published` supervises chat marks too."""
    views = make_views()
    texts, counts = {}, {}
    for instruction in (True, False):
        for rule in ("published", "answer_only"):
            processor = make_test_processor(spatial_instruction=instruction, label_rule=rule)
            trained = processor(**views, text=["What color is it?"], answers=["brown"], return_tensors="pt")
            asked = processor(**views, text="What color is it?", return_tensors="pt")
            for inputs in (trained, asked):
                text = processor.tokenizer.decode(inputs["input_ids"][0])
                assert (SPATIAL_INSTRUCTION in text) == instruction
            supervised = trained["input_ids"][trained["labels"] != -100]
            texts[rule] = processor.tokenizer.decode(supervised)
            counts[rule] = len(supervised)
    assert texts["answer_only"] == "brown<|im_end|>"
    assert "assistant" in texts["published"] and texts["published"].count("<|im_start|>") == 3
    assert counts["published"] > counts["answer_only"] + 5


@pytest.mark.parametrize("sizes", [(2, 12, 4), (3, 20, 5)])
def test_readings_that_are_missing(sizes):
    """10: `published` averages missing readings in, on the camera's centre; `valid_depth` takes real ones alone."""
    views, side, patch = sizes
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(views, side, side, generator=generator) + 1
    depth[torch.rand(depth.shape, generator=generator) < 0.4] = 0
    intrinsics = torch.tensor([[20.0, 0, side / 2], [0, 20.0, side / 2], [0, 0, 1]])
    world = unproject(depth, intrinsics, torch.eye(4).repeat(views, 1, 1))
    found = {mode: pool_patch_coords(world, depth > 0, patch, mode)[0] for mode in ("published", "valid_depth")}
    cells = -(-(side // patch) // 2)
    width = side // patch * patch / cells
    cell = (slice(None), slice(0, int(width)), slice(0, int(width)))
    assert torch.allclose(found["published"][:, 0, 0], world[cell].flatten(1, 2).mean(dim=1), atol=1e-5)
    for view in range(views):
        real = world[cell][view][depth[cell][view] > 0]
        assert torch.allclose(found["valid_depth"][view, 0, 0], real.mean(dim=0), atol=1e-5)
    assert (found["valid_depth"][..., 2] > found["published"][..., 2]).all()


@pytest.mark.parametrize("size", [12, 20])
def test_faint_noise_in_the_void(size):
    """10: one grey level of JPEG noise makes a void cell count for `rgb_positive`, not for `valid`."""
    picture, valid = torch.zeros(1, 3, size, size), torch.zeros(1, size, size, dtype=torch.bool)
    picture[..., : size // 2], valid[..., : size // 2] = 0.6, True
    picture[..., size // 2 :] = 1 / 255
    assert get_bev_cells(picture, valid, 4, "rgb_positive").all()
    cells = get_bev_cells(picture, valid, 4, "valid")
    assert cells[..., :2].all() and not cells[..., 2:].any()


@pytest.mark.parametrize("num_rows", [7, 10])
def test_no_row_is_dropped(num_rows):
    """11: every row of an epoch comes once, and rows of all kinds share a step."""
    for epoch in (0, 1):
        assert sorted(order_rows(num_rows, 3, epoch)) == list(range(num_rows))
    batch = Ross3DCollator(pad_token_id=PAD_TOKEN, view_mask_ratio=0.4)(
        [make_row(1, 3, 4, ["ground"]), make_row(2, 2, 2, ["text", "coord"]), make_row(3, 4, 1, [])]
    )
    outputs = make_model()(**batch)
    assert min(float(loss) for loss in (outputs.lm_loss, outputs.grounding_loss, outputs.bev_loss)) > 0


def test_a_black_picture_from_above():
    """12: a picture without a counted cell adds nothing instead of NaN, under both rules."""
    dark = make_row(1, 3, 2, ["text"])
    dark["bev_pixel_values"], dark["bev_valid"] = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    plain = make_row(2, 2, 1, ["text"])
    for rule in ("rgb_positive", "valid"):
        model = make_model(denoiser={"bev_loss_mask": rule}).eval()
        assert float(model(**make_batch(dark)).bev_loss) == 0.0
        both, alone = (model(**make_batch(*rows)).bev_loss for rows in ((dark, plain), (plain,)))
        assert float(alone) > 0 and torch.allclose(both, alone, atol=1e-5)


def test_a_square_picture_from_above():
    """12: `published` stretches it to the views' aspect and crops the middle, `valid_depth` shows all of it."""
    bev = make_bev()
    image = np.zeros((30, 30, 3), np.uint8)
    image[:, :3] = image[:, -3:] = 255
    found = {}
    for mode in ("published", "valid_depth"):
        views = make_views()
        inputs = make_test_processor(geometry_mode=mode)(**views, bev_image=image, return_tensors="pt")
        found[mode] = inputs["bev_pixel_values"][0]
        assert found[mode].shape == (3, BEV_SIZE, BEV_SIZE)
    assert found["valid_depth"][..., 0].min() > 0.9 and found["valid_depth"][..., -1].min() > 0.9
    # 24 of 32 columns are left, so both edges are cut away but for a sliver.
    assert WIDTH * BEV_SIZE // HEIGHT == 32 and found["published"].mean() < found["valid_depth"].mean() - 0.1
    assert bev["bev_image"].shape == (30, 30, 3)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, (0.05, 0.4)), (torch.float16, (0.005, 0.05))])
def test_metres_in_half_precision(dtype, share):
    """13: cast metres move so many voxel indices by one; we refuse them with the way out."""
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) * 12 - 6
    low, high = torch.tensor([-15.0, -15, -5]), torch.tensor([15.0, 15, 5])
    exact, cast = (quantize_coords(p, 0.1, low, high) for p in (points, points.to(dtype).float()))
    moved = (exact != cast).any(dim=-1).float().mean()
    assert share[0] < float(moved) < share[1]
    batch = make_batch(make_row(1, 3, 2, ["text"]))
    batch["patch_coords"] = batch["patch_coords"].to(dtype)
    with pytest.raises(ValueError, match="patch_coords: expected float32"):
        make_model()(**batch)


def test_marks_without_what_they_mean():
    """14: a `<coord>` without a place and a second `<ground>` are errors, and inputs come out as they went in."""
    model, row = make_model(), make_row(1, 3, 2, ["coord", "ground"])
    batch = make_batch(row)
    before = {name: value.clone() for name, value in batch.items()}
    model(**batch)
    assert all(torch.equal(batch[name].nan_to_num(7.0), before[name].nan_to_num(7.0)) for name in before)
    twice = copy.deepcopy(batch)
    place = (twice["segment_ids"][0] == 2).nonzero()[0]
    assert (twice["input_ids"] == COORD_TOKEN).sum() == 1
    twice["input_ids"][0, place] = GROUND_TOKEN
    with pytest.raises(ValueError, match="expected at most one <ground> a question, got 2 in question"):
        model(**twice)
    # An empty list of labels is a question without target.
    processor = make_test_processor()
    with pytest.raises(ValueError, match="expected a point .* for its <coord>, got none; pass query_coords="):
        processor(**make_views(), text="What is at <coord>?")
    targets = [[]]
    inputs = processor(
        **make_views(), text=["the tall lamp"], answers=["<ground>"], target_objects=targets, return_tensors="pt"
    )
    assert inputs["grounding_labels"][0, 0].tolist() == [0, 0, 0, 0, 0, 1] and targets == [[]]


def test_proposals_without_patches():
    """15: as published, they keep the position embedding of their centre and nothing else."""
    model = make_model()
    boxes = torch.tensor([[[1.0, -2, 0.5, 1, 1, 1], [3, 1, 1, 2, 1, 1]]])
    features = torch.randn(1, 2, 25, 32, generator=torch.Generator().manual_seed(0))
    patches = torch.zeros(1, 2, 2, 5, 5, dtype=torch.bool)
    patches[0, 1, 0, 2, 3] = True
    found, _ = model.get_proposal_features(features, boxes, None, patches)
    centres = model.model.get_position_embedding(boxes[..., :3])
    assert torch.equal(found[0, 0], centres[0, 0])
    assert torch.allclose(found[0, 1], centres[0, 1] + features[0, 0, 2 * 5 + 3])


@pytest.mark.parametrize("layers", [2, 3])
def test_layer_and_pooling_of_the_vision_tower(layers):
    """16: there is no switch that does nothing: the tower has the layers its config counts, and views are halved."""
    config = make_config()
    config.vision_config.num_hidden_layers = layers
    model = Ross3DForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    assert len(tower.encoder.layers if hasattr(tower, "encoder") else tower.vision_model.encoder.layers) == layers
    pixels = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    patches = model.get_image_features(pixels).last_hidden_state
    pooled = model.model.pool_patches(patches)
    grid = patches.transpose(1, 2).unflatten(2, (5, 5))
    expected = F.interpolate(grid, size=(3, 3), mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    assert torch.allclose(pooled, expected, atol=1e-6)
    for name in ("mm_vision_select_layer", "mm_spatial_pool_mode"):
        with pytest.raises((TypeError, ValueError, AttributeError), match=name):
            make_config(**{name: -2})


def test_denoiser_and_teacher_of_a_checkpoint(tmp_path):
    """17: what was saved is what rebuilds; any number of sampler steps goes, the whole schedule too."""
    model = make_model().eval()
    model.save_pretrained(tmp_path)
    make_teacher().save_pretrained(tmp_path / "teacher")
    loaded = Ross3DForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.attach_teacher(tmp_path / "teacher")
    row = make_row(1, 4, 2, [])
    scene = {name: row[name][None] for name in ("input_ids", "attention_mask", "segment_ids", "pixel_values")}
    scene |= {name: row[name][None] for name in ("view_mask", "patch_coords", "patch_valid")}
    for steps in (3, 8):
        found = [
            m.reconstruct(
                **scene, masked_views=[2], num_inference_steps=steps, generator=torch.Generator().manual_seed(2)
            )[0][0]
            for m in (model, loaded)
        ]
        assert torch.allclose(found[0], found[1], atol=1e-5)
    assert space_timesteps(1000, 1000) == list(range(1000)) and len(space_timesteps(1000, 17)) == 17


@pytest.mark.parametrize("size", [(12, 16), (20, 12)])
def test_pictures_for_the_teacher_are_contiguous(size):
    """18: a picture in another memory order gives the latents of the same picture in the plain one."""
    model, received = make_model(), []
    teacher = model.get_teacher()
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0].is_contiguous()))
    picture = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    assert not picture.is_contiguous()
    strided, plain = (model.encode_pictures(p)[0] for p in (picture, picture.contiguous()))
    assert torch.equal(strided, plain) and received == [True, True]


def test_rendering_from_above():
    """19: ours is written down: a square frame with y up, the ceiling off, the highest point first, void black."""
    floor = np.stack(np.meshgrid(np.arange(0, 3, 0.05), np.arange(0, 2, 0.05)), -1).reshape(-1, 2)
    points = np.concatenate([np.c_[floor, np.full(len(floor), z)] for z in (0.0, 2.6)])
    colors = np.repeat(np.array([[90, 80, 70], [250, 250, 250]], np.uint8), len(floor), axis=0)
    picture = render_bev(points, colors, size=50)
    assert picture.image.max() == 90 and np.ptp(picture.bounds[[0, 2]]) == pytest.approx(
        np.ptp(picture.bounds[[1, 3]])
    )
    assert not picture.image[~picture.valid].any() and not picture.valid.all()


# ---- the table


def read_rows() -> list[tuple[str, set[str]]]:
    """First cell and named tests of every row of the first table."""
    rows = []
    for line in DOCUMENT.read_text(encoding="utf-8").split("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells and cells[0].isdigit():
            rows.append((cells[0], set(re.findall(r"`(test_\w+)`", cells[-1]))))
    return rows


def test_the_table_names_every_test_and_every_quirk():
    rows = read_rows()
    assert [number for number, _ in rows] == [str(number) for number in range(1, 20)]
    assert all(tests for _, tests in rows)
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_the_table_names_every_test_and_every_quirk"
    }
    here -= {"test_other_deviations_name_tests_that_exist"}
    assert set().union(*(tests for _, tests in rows)) == here


def test_other_deviations_name_tests_that_exist():
    root = Path(__file__).parents[1]
    _, rest = DOCUMENT.read_text(encoding="utf-8").split("\n## ", 1)
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+(?:::\w+)?)`", rest)
    assert len(named) >= 5
    for file, name in named:
        text = (root / file).read_text(encoding="utf-8")
        assert all(re.search(rf"\b(?:def|class) {part}\b", text) for part in name.split("::")), (file, name)
