"""One test for each row of docs/DEVIATIONS.md: the published rule and ours, run side by side."""

import ast
import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ross3d.configuration_ross3d import Ross3DConfig
from ross3d.data.annotations import Annotation
from ross3d.data.arguments import DataArguments
from ross3d.data.bev import render_bev
from ross3d.data.dataset import SceneRows
from ross3d.data.prepared import SceneReader
from ross3d.diffusion_ross3d import get_cosine_betas, space_timesteps
from ross3d.geometry_ross3d import pool_patch_coords, quantize_coords, unproject
from ross3d.grounding_ross3d import get_proposal_features
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.objectives_ross3d import SceneStates
from ross3d.reconstruction_ross3d import encode_pictures, get_bev_cells, get_latents, get_view_queries
from ross3d.rows_ross3d import SPATIAL_INSTRUCTION
from ross3d.tests.fabricate import (
    COORD_TOKEN,
    GROUND_TOKEN,
    make_collator,
    make_config,
    make_model,
    make_row,
    make_teacher,
)
from ross3d.tests.posed_views import BEV_SIZE, HEIGHT, WIDTH, make_test_processor, make_views
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
    """Random states of 3 x 3 tokens, the last two views hidden; every scene looks elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    visible = torch.ones(batch, views, dtype=torch.bool)
    visible[:, -2:] = False
    states, positions = (torch.randn(batch, views, 9, 32, generator=generator) for _ in range(2))
    return SceneStates(states, visible, positions)


def pool_as_published(pooler: torch.nn.Module, states: torch.Tensor, repeats: int) -> torch.Tensor:
    """The published condition (M, C) of one scene: its visible states (S, D), repeated, behind one softmax."""
    hidden = pooler.state_proj(F.silu(F.layer_norm(states, states.shape[-1:]).repeat(repeats, 1)))
    parts = (pooler.queries[0], pooler.k_proj(hidden), pooler.v_proj(hidden))
    queries, keys, values = (part.unflatten(-1, (pooler.num_heads, -1)).transpose(0, 1) for part in parts)
    shares = (queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5).softmax(dim=-1)
    return pooler.out_proj((shares @ values).transpose(0, 1).flatten(1))


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


# ---- the rows


def get_view_conditions(model, states: SceneStates, hidden: torch.Tensor) -> torch.Tensor:
    return get_view_queries(states, hidden, model.config).get_conditions(model.reconstruction_head)


@pytest.mark.parametrize(("batch", "views"), [(2, 4), (3, 5)])
def test_condition_of_hidden_views(batch, views):
    """1: `pooled` gives all masked views of a scene its one published condition, `per_view` each one of its own."""
    states = make_states(batch, views)
    hidden = ~states.visible
    for condition in ("pooled", "per_view"):
        model = make_model(denoiser={"condition": condition})
        pooler = randomize(model.reconstruction_head.view_pooler)
        found = get_view_conditions(model, states, hidden).unflatten(0, (batch, 2))
        published = torch.stack(
            [pool_as_published(pooler, states.states[i, :-2].flatten(0, 1), 1) for i in range(batch)]
        )
        moved = copy.deepcopy(states)
        moved.positions[:, -1] += 1.0
        again = get_view_conditions(model, moved, hidden).unflatten(0, (batch, 2))
        assert torch.equal(found[:, 0], again[:, 0])
        if condition == "pooled":
            assert torch.allclose(found, published[:, None].expand_as(found), atol=1e-4)
            assert torch.equal(found[:, 1], again[:, 1])
        else:
            assert not torch.isclose(found[:, 0], found[:, 1]).all(dim=-1).any()
            assert not torch.isclose(found[:, 1], again[:, 1]).all(dim=-1).any()
            lost = get_view_conditions(model, SceneStates(states.states, states.visible), hidden).unflatten(
                0, (batch, 2)
            )
            assert torch.equal(lost[:, 0], lost[:, 1])
        for scene in range(batch):
            alone = SceneStates(*(t[scene : scene + 1] for t in (states.states, states.visible, states.positions)))
            assert torch.allclose(
                get_view_conditions(model, alone, hidden[scene : scene + 1]), found[scene], atol=1e-5
            )


@pytest.mark.parametrize(("views", "repeats"), [(6, 4), (5, 3)])
def test_repeated_keys(views, repeats):
    """2: the condition of keys repeated as published is the one we compute from each of them once."""
    states = make_states(2, views)
    model = make_model(denoiser={"condition": "pooled"})
    pooler = randomize(model.reconstruction_head.view_pooler)
    num_keys = []
    pooler.k_proj.register_forward_pre_hook(lambda module, inputs: num_keys.append(inputs[0].shape[1]))
    found = get_view_conditions(model, states, ~states.visible)[::2]
    assert num_keys == [views * 9]
    for scene in range(2):
        published = pool_as_published(pooler, states.states[scene, :-2].flatten(0, 1), repeats)
        assert torch.allclose(found[scene], published, atol=1e-4)


def walk_by_hand(predict, noises: list[torch.Tensor], total: int, published: bool) -> torch.Tensor:
    """Ancestral sampling with predicted noise over `len(noises) - 1` steps, written out: clipped with the variance
    beta if `published`, else as it comes with the posterior's variance."""
    steps = len(noises) - 1
    kept = torch.cumprod(1 - get_cosine_betas(total), dim=0)
    timesteps = [round(i * (total - 1) / (steps - 1)) for i in range(steps)]
    sample = noises[0]
    for index in reversed(range(steps)):
        a = float(kept[timesteps[index]])
        before = float(kept[timesteps[index - 1]]) if index else 1.0
        beta = 1 - a / before
        latents = (sample - (1 - a) ** 0.5 * predict(sample, timesteps[index])) / a**0.5
        latents = latents.clamp(-1, 1) if published else latents
        sample = (beta * before**0.5 * latents + (1 - before) * (1 - beta) ** 0.5 * sample) / (1 - a)
        if index:
            variance = beta if published else beta * (1 - before) / (1 - a)
            sample = sample + variance**0.5 * noises[steps - index]
    return sample


@pytest.mark.parametrize(("branch", "grid", "steps"), [("view", 3, 4), ("bev", 2, 7)])
def test_clipping_of_sampled_latents(branch, grid, steps):
    """3: `sampler: published` clips predicted latents to [-1, 1] and adds more noise; `ancestral` does neither."""
    condition = torch.randn(2, grid**2, 16, generator=torch.Generator().manual_seed(0))
    found = {}
    for sampler in ("published", "ancestral"):
        head = make_model(denoiser={"sampler": sampler, "num_train_timesteps": 25}).reconstruction_head
        generator = torch.Generator().manual_seed(1)
        noises = [torch.randn(2, 12, grid, grid, generator=generator) for _ in range(steps + 1)]

        def predict(sample, timestep, head=head):
            return head.predict(sample, torch.full((2,), timestep), condition, branch)

        expected = F.pixel_shuffle(walk_by_hand(predict, noises, 25, sampler == "published"), 2)
        tokens = head.sample(condition, branch, steps, torch.Generator().manual_seed(1))
        found[sampler] = get_latents(tokens, head.config)
        assert torch.allclose(found[sampler], expected, rtol=1e-3, atol=1e-3)
    assert found["published"].abs().max() <= 1 + 1e-6 < found["ancestral"].abs().max()


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


@pytest.mark.parametrize(("probability", "period"), [(0.25, 4), (0.3, 3), (0.4, 2), (1.0, 1)])
def test_period_of_hidden_views(probability, period):
    """5: the published `view_mask_prob` opens the steps that `view_mask_period` names; neither is a chance."""
    proposed = torch.tensor([[True, False, True]])
    found = []
    for step in range(13):
        batch = {"bool_masked_views": proposed.clone()}
        open_view_gate(batch, step, period)
        if batch["bool_masked_views"].any():
            assert torch.equal(batch["bool_masked_views"], proposed)
            found.append(step)
    assert found == [step for step in range(13) if step % int(1 / probability) == 0]
    assert make_config().view_mask_period == int(1 / 0.25)


@pytest.mark.parametrize(("width", "spread"), [(32, 0.15), (48, 0.5)])
def test_mask_token_of_a_checkpoint_without_one(width, spread):
    """6: a mask token missing from the file is drawn, the same from the same seed, and reported."""
    config = make_config(initializer_range=spread)
    config.text_config.hidden_size = width
    model = Ross3DForConditionalGeneration(config)
    state = {name: value for name, value in model.state_dict().items() if name != "model.mask_token"}
    tokens = []
    for _ in range(2):
        torch.manual_seed(3)
        loaded, report = Ross3DForConditionalGeneration.from_pretrained(
            None, config=copy.deepcopy(config), state_dict=state, output_loading_info=True
        )
        assert set(report["missing_keys"]) == {"model.mask_token"}
        tokens.append(loaded.model.mask_token.detach())
    assert torch.equal(*tokens) and tokens[0].numel() == width
    assert 0.5 < float(tokens[0].std()) / spread < 1.5


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


@pytest.mark.parametrize(
    ("num_views", "question", "answer"),
    [(3, "What color is it?", "brown"), (2, "Describe the object.", "a tall lamp")],
)
def test_prompts_and_supervised_tokens(num_views, question, answer):
    """9: one setting of the instruction for training and evaluation; `published` supervises chat marks too."""
    views = make_views(num_views)
    for instruction in (True, False):
        found = {}
        for rule in ("published", "answer_only"):
            processor = make_test_processor(spatial_instruction=instruction, label_rule=rule)
            tokenizer = processor.tokenizer
            trained = processor(**views, text=[question], answers=[answer], return_tensors="pt")
            asked = processor(**views, text=question, return_tensors="pt")
            for inputs in (trained, asked):
                assert (SPATIAL_INSTRUCTION in tokenizer.decode(inputs["input_ids"][0])) == instruction
            found[rule] = trained["labels"][0].tolist()
        # The whole last message and, anywhere, the marks of messages and line breaks that are a token of their own.
        ids = trained["input_ids"][0].tolist()
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        structure = {start, tokenizer.convert_tokens_to_ids("<|im_end|>"), *tokenizer("\n")["input_ids"]}
        message = len(ids) - 1 - ids[::-1].index(start)
        expected = [token if i >= message or token in structure else -100 for i, token in enumerate(ids)]
        assert found["published"] == expected and len(structure) == 3
        assert any(label != -100 for label in found["published"][:message])
        assert tokenizer.decode([label for label in found["answer_only"] if label != -100]) == f"{answer}<|im_end|>"


@pytest.mark.parametrize(("views", "side", "patch", "cells"), [(2, 12, 4, 2), (3, 20, 5, 2), (4, 19, 3, 3)])
def test_readings_that_are_missing(views, side, patch, cells):
    """10: `published` averages missing readings in, on the camera's centre; `valid_depth` takes real ones alone."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(views, side, side, generator=generator) + 1
    depth[torch.rand(depth.shape, generator=generator) < 0.4] = 0
    intrinsics = torch.tensor([[20.0, 0, side / 2], [0, 20.0, side / 2], [0, 0, 1]])
    world = unproject(depth, intrinsics, torch.eye(4).repeat(views, 1, 1))
    assert not world[depth == 0].any()
    found = {mode: pool_patch_coords(world, depth > 0, patch, mode)[0] for mode in ("published", "valid_depth")}
    assert found["published"].shape == (views, cells, cells, 3)
    width = side // patch * patch // cells
    for view, row, column in np.ndindex(views, cells, cells):
        cell = (view, slice(row * width, (row + 1) * width), slice(column * width, (column + 1) * width))
        points, real = world[cell].flatten(0, 1), depth[cell].flatten() > 0
        assert torch.allclose(found["published"][view, row, column], points.mean(dim=0), atol=1e-5)
        assert torch.allclose(found["valid_depth"][view, row, column], points[real].mean(dim=0), atol=1e-5)
    assert (found["valid_depth"][..., 2] > found["published"][..., 2]).all()


@pytest.mark.parametrize("size", [12, 20])
def test_faint_noise_in_the_void(size):
    """10: one grey level of JPEG noise makes a void cell count for `rgb_positive`, not for `valid`."""
    picture, valid = torch.zeros(1, 3, size, size), torch.zeros(1, size, size, dtype=torch.bool)
    picture[..., : size // 2], valid[..., : size // 2] = 0.6, True
    noisy = torch.rand(size, size // 2, generator=torch.Generator().manual_seed(0)) < 0.5
    picture[0, 0, :, size // 2 :] = noisy / 255
    # A bilinear resize to 4 x 4 without antialias reads the middle pixel of a cell where its side is odd.
    middle = torch.arange(4) * (size // 4) + size // 8
    published = picture[0][:, middle][:, :, middle].mean(dim=0) > 0
    assert torch.equal(get_bev_cells(picture, valid, 4, "rgb_positive")[0], published)
    assert published[:, :2].all() and published[:, 2:].any() and not published[:, 2:].all()
    cells = get_bev_cells(picture, valid, 4, "valid")[0]
    assert cells[:, :2].all() and not cells[:, 2:].any()


@pytest.mark.parametrize(("num_scenes", "num_questions", "block"), [(7, 4, 3), (5, 6, 10)])
def test_no_row_is_dropped(num_scenes, num_questions, block):
    """11: every scene comes once an epoch with as many questions as a row may hold, tasks side by side in a step."""
    tasks = ("answering", "grounding")
    annotations = {
        f"scene{i}": [
            Annotation(f"{i}-{j}", f"scene{i}", tasks[j % 2], "kind", f"question {j}", "answer")
            for j in range(num_questions)
        ]
        for i in range(num_scenes)
    }
    everything = sorted(row.id for rows in annotations.values() for row in rows)
    # The published sampler cuts the rows of each task into blocks and leaves the last block of each task out.
    published = 0
    for task in tasks:
        rows = sum(row.task == task for scene in annotations.values() for row in scene)
        published += (-(-rows // block) - 1) * block
    assert published < len(everything)

    class ListedRows(SceneRows):
        def get_inputs(self, scene, fitted, path, questions, row_seed):
            return {"ids": [[row.id for row in questions]], "tasks": [[row.task for row in questions]]}

    def keep(return_tensors: str, **inputs: list) -> dict[str, list]:
        return inputs

    paths = [Path(name) for name in annotations]
    for per_row in (num_questions, 1):
        data = DataArguments(epochs=2, questions_per_row=per_row)
        rows = ListedRows(data, paths, annotations, keep, SceneReader(lambda path: None), None, seed=3)
        for epoch in range(2):
            met = [rows[epoch * num_scenes + place] for place in range(num_scenes)]
            ids = sorted(name for row in met for name in row["ids"])
            assert {name.split("-")[0] for name in ids} == {str(i) for i in range(num_scenes)}
            assert ids == everything if per_row == num_questions else len(ids) == num_scenes
            if per_row == num_questions:
                assert all(set(row["tasks"]) == set(tasks) for row in met)
    batch = make_collator()([make_row(1, 3, 4, ["ground"]), make_row(2, 2, 2, ["text", "coord"])])
    outputs = make_model()(**batch)
    assert all(float(loss.detach()) > 0 for loss in (outputs.lm_loss, outputs.grounding_loss, outputs.bev_loss))


@pytest.mark.parametrize(("views", "seed"), [(3, 1), (4, 2)])
def test_a_black_bev_picture(views, seed):
    """12: the published mean over no cell is NaN; here such a picture adds nothing, under both rules."""
    dark = make_row(seed, views, 2, ["text"])
    dark["bev_pixel_values"], dark["bev_valid"] = torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.bool)
    plain = make_row(5, 2, 1, ["text"])
    for rule in ("rgb_positive", "valid"):
        mask = get_bev_cells(dark["bev_pixel_values"][None], dark["bev_valid"][None], 2, rule).float()
        assert ((torch.ones(1, 2, 2) * mask).sum() / mask.sum()).isnan()
        model = make_model(denoiser={"bev_loss_mask": rule}).eval()
        assert float(model(**make_batch(dark)).bev_loss.detach()) == 0.0
        both, alone = (model(**make_batch(*rows)).bev_loss for rows in ((dark, plain), (plain,)))
        assert float(alone.detach()) > 0 and torch.allclose(both, alone, atol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(BEV_SIZE, 30), (18, 41)])
def test_a_square_bev_picture(size, side):
    """12: `published` stretches it to the views' aspect and crops the middle, `valid_depth` shows all of it."""
    image = np.random.default_rng(0).integers(1, 256, size=(side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(image)
    width = int(WIDTH * size / HEIGHT)
    left = (width - size) // 2
    expected = {
        "published": np.asarray(picture.resize((width, size), Image.BICUBIC))[:, left : left + size],
        "valid_depth": np.asarray(picture.resize((size, size), Image.BICUBIC)),
    }
    assert left > 0
    for mode, pixels in expected.items():
        processor = make_test_processor(geometry_mode=mode, bev_size=size)
        found = processor(**make_views(), bev_image=image, return_tensors="pt")["bev_pixel_values"][0]
        assert torch.allclose(found, torch.from_numpy(pixels / 255.0).permute(2, 0, 1).float(), atol=1e-6)
    assert np.abs(expected["published"].astype(int) - expected["valid_depth"]).mean() > 10


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, (0.05, 0.4)), (torch.float16, (0.005, 0.05))])
def test_metres_in_half_precision(dtype, share):
    """13: cast metres move so many voxel indices by one; we refuse them with the way out."""
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0)) * 12 - 6
    low, high = torch.tensor([-15.0, -15, -5]), torch.tensor([15.0, 15, 5])
    exact, cast = (quantize_coords(p, 0.1, low, high) for p in (points, points.to(dtype).float()))
    moved = (exact != cast).any(dim=-1).float().mean()
    assert share[0] < float(moved) < share[1]
    model, batch = make_model().eval(), make_batch(make_row(1, 3, 2, ["text"]))
    # A millimetre from the edge of a voxel.
    metres = torch.full_like(batch["patch_coords"], 5.049)
    with pytest.raises(ValueError, match="patch_coords: expected float32"):
        model(**batch | {"patch_coords": metres.to(dtype)})
    # The way out: a cast of float tensors leaves integers alone, and these are the bits of the metres.
    forms = {"whole": metres, "bits": metres.view(torch.int32), "rounded": metres.to(dtype).float()}
    losses = {name: model(**batch | {"patch_coords": form}).lm_loss for name, form in forms.items()}
    assert torch.equal(losses["bits"], losses["whole"]) and not torch.equal(losses["rounded"], losses["whole"])


@pytest.mark.parametrize(("views", "num_proposals"), [(3, 2), (2, 4)])
def test_marks_without_what_they_mean(views, num_proposals):
    """14: a `<coord>` without a place and a second `<ground>` are errors, and inputs come out as they went in."""
    model, row = make_model(), make_row(1, views, num_proposals, ["coord", "ground"])
    batch = make_batch(row)
    before = {name: value.clone() for name, value in batch.items()}
    model(**batch)
    assert all(torch.equal(batch[name].nan_to_num(7.0), before[name].nan_to_num(7.0)) for name in before)
    twice = copy.deepcopy(batch)
    place = (twice["segment_ids"][0] == 2).nonzero()[0]
    assert (twice["input_ids"] == COORD_TOKEN).sum() == 1
    twice["input_ids"][0, place] = GROUND_TOKEN
    with pytest.raises(ValueError, match="expected at most one <ground> per question, got 2 in question"):
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


@pytest.mark.parametrize(("views", "num_proposals"), [(2, 4), (3, 2)])
def test_proposals_without_patches(views, num_proposals):
    """15: as published, they keep the position embedding of their centre and nothing else."""
    model = make_model()
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(1, num_proposals, 6, generator=generator) * 3
    features = torch.randn(1, views, 25, 32, generator=generator)
    patches = torch.zeros(1, num_proposals, views, 5, 5, dtype=torch.bool)
    patches[0, 1, 0, 2, 3] = patches[0, 1, 1, 4, 0] = True
    found, _ = get_proposal_features(model, features, boxes, None, patches)
    centres = model.model.get_position_embedding(boxes[..., :3])
    assert torch.equal(found[0, 0], centres[0, 0]) and torch.equal(found[0, 2:], centres[0, 2:])
    inside = torch.stack([features[0, 0, 2 * 5 + 3], features[0, 1, 4 * 5]]).mean(dim=0)
    assert torch.allclose(found[0, 1], centres[0, 1] + inside, atol=1e-6)


@pytest.mark.parametrize(("layers", "side", "pooled_side"), [(2, 5, 3), (3, 6, 3)])
def test_layer_and_pooling_of_the_vision_tower(layers, side, pooled_side):
    """16: there is no switch that does nothing: the layers that the config counts run, and views are halved."""
    config = make_config()
    config.vision_config.num_hidden_layers, config.vision_config.image_size = layers, 4 * side
    torch.manual_seed(0)
    model = Ross3DForConditionalGeneration(config).eval()
    tower = model.model.vision_tower
    pixels = torch.randn(2, 3, 4 * side, 4 * side, generator=torch.Generator().manual_seed(0))
    patches = model.get_image_features(pixels).patch_features
    states = tower(pixels, output_hidden_states=True).hidden_states
    assert len(states) == layers + 1
    # The published state: what the last layer that is kept gives, before the norm behind it.
    assert torch.allclose(patches, model.model.multi_modal_projector(states[-1]), atol=1e-5)
    grid = patches.transpose(1, 2).unflatten(2, (side, side))
    expected = F.interpolate(grid, size=(pooled_side,) * 2, mode="bilinear", align_corners=False)
    assert torch.allclose(model.model.views.to_tokens(patches), expected.flatten(2).transpose(1, 2), atol=1e-6)
    assert Ross3DConfig().vision_config.num_hidden_layers == 26
    for name in ("mm_vision_select_layer", "mm_spatial_pool_mode"):
        with pytest.raises(ValueError, match=f"unknown key `{name}`"):
            make_config(**{name: -2})


@pytest.mark.parametrize(("views", "schedule"), [(4, 12), (3, 20)])
def test_denoiser_and_teacher_of_a_checkpoint(tmp_path, views, schedule):
    """17: what was saved is what rebuilds; any number of sampler steps goes, the whole schedule too."""
    model = make_model(denoiser={"num_train_timesteps": schedule}).eval()
    model.save_pretrained(tmp_path)
    make_teacher().save_pretrained(tmp_path / "teacher")
    loaded = Ross3DForConditionalGeneration.from_pretrained(tmp_path).eval()
    loaded.attach_teacher(tmp_path / "teacher")
    row = make_row(1, views, 2, [])
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    scene = {name: row[name][None] for name in names}

    def rebuild(source, steps: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(2)
        return source.reconstruct(**scene, masked_views=[2], num_inference_steps=steps, generator=generator)[0][0]

    for steps in (5, schedule):
        assert torch.allclose(rebuild(model, steps), rebuild(loaded, steps), atol=1e-5)
    saved = rebuild(loaded, 5)
    loaded.attach_teacher(make_teacher(seed=6))
    assert not torch.allclose(rebuild(loaded, 5), saved, atol=1e-2)
    loaded.attach_teacher(make_teacher())
    randomize(loaded.reconstruction_head.denoiser.final_layer)
    assert not torch.allclose(rebuild(loaded, 5), saved, atol=1e-2)
    with pytest.raises(TypeError, match="guidance_scale"):
        model.reconstruct(**scene, masked_views=[2], guidance_scale=2.0)
    assert space_timesteps(1000, 1000) == list(range(1000)) and len(space_timesteps(1000, 17)) == 17


@pytest.mark.parametrize("size", [(12, 16), (20, 12)])
def test_pictures_for_the_teacher_are_contiguous(size):
    """18: a picture in another memory order gives the latents of the same picture in the plain one."""
    model, received = make_model(), []
    teacher = model.get_teacher()
    teacher.encoder.register_forward_pre_hook(lambda module, inputs: received.append(inputs[0].is_contiguous()))
    picture = torch.rand(2, *size, 3, generator=torch.Generator().manual_seed(0)).permute(0, 3, 1, 2)
    assert not picture.is_contiguous()
    strided, plain = (encode_pictures(model.get_teacher(), p) for p in (picture, picture.contiguous()))
    assert torch.equal(strided, plain) and received == [True, True]


@pytest.mark.parametrize(("length", "width", "size"), [(3.0, 2.0, 50), (2.0, 4.0, 36)])
def test_bev_rendering(length, width, size):
    """19: ours is written down: a square frame with y up, the ceiling off, the highest point first, void black."""
    floor = np.stack(np.meshgrid(np.arange(0, length, 0.04), np.arange(0, width, 0.04)), -1).reshape(-1, 2)
    table = floor[(floor[:, 0] > length - 0.8) & (floor[:, 1] > width - 0.8)]
    levels = [(table, 0.9, 200), (floor, 0.0, 90), (floor, 2.6, 250)]
    points = np.concatenate([np.c_[where, np.full(len(where), z)] for where, z, _ in levels])
    colors = np.concatenate([np.full((len(where), 3), grey, np.uint8) for where, _, grey in levels])
    picture = render_bev(points, colors, size=size)
    xmin, ymin, xmax, ymax = picture.bounds
    assert xmax - xmin == pytest.approx(ymax - ymin)
    assert xmax - xmin == pytest.approx(1.05 * max(length, width), rel=0.05)
    assert set(np.unique(picture.image)) == {0, 90, 200}
    assert not picture.image[~picture.valid].any() and picture.image[picture.valid].all()
    assert picture.valid.any() and not picture.valid.all()

    def get_pixel(x: float, y: float) -> int:
        return picture.image[int((ymax - y) / (ymax - ymin) * size), int((x - xmin) / (xmax - xmin) * size), 0]

    assert get_pixel(length - 0.4, width - 0.4) == 200
    assert [get_pixel(0.4, 0.4), get_pixel(0.4, width - 0.4), get_pixel(length - 0.4, 0.4)] == [90] * 3


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
    named = {name: number for number, tests in rows for name in tests}
    assert all(tests for _, tests in rows) and len(named) == sum(len(tests) for _, tests in rows)
    # A test of a row begins with the number of the row it proves; the two of the tables themselves have no words.
    here = {name: test.__doc__ for name, test in globals().items() if name.startswith("test_") and test.__doc__}
    assert {name: words.split(":")[0] for name, words in here.items()} == named
    assert sum(name.startswith("test_") for name in globals()) == len(here) + 2


def find_tests(path: Path) -> set[str]:
    """Names of the tests of a file, those of classes as `Class::name`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + member.name for member in members if isinstance(member, ast.FunctionDef)}
    return found


def test_other_deviations_name_tests_that_exist():
    root = Path(__file__).parents[1]
    _, rest = DOCUMENT.read_text(encoding="utf-8").split("\n## ", 1)
    rows = [line for line in rest.splitlines() if line.startswith("|")][2:]
    named = [re.fullmatch(r".*\| `(tests/[\w/]+\.py)::([\w:]+)` \|", row) for row in rows]
    assert len(rows) >= 10 and all(named), [row for row, match in zip(rows, named, strict=True) if not match]
    for match in named:
        assert match[2] in find_tests(root / match[1]), match[0]
