"""What the model refuses: name, expected, got and remedy of each message; and what the nearest right input gives."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from ross3d.diffusion_ross3d import space_timesteps
from ross3d.inputs_ross3d import read_float32
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.reconstruction_ross3d import get_bev_cells
from ross3d.tests.fabricate import (
    COORD_TOKEN,
    EOS_TOKEN,
    GRID,
    GROUND_TOKEN,
    IMAGE_TOKEN,
    RaggedRows,
    make_collator,
    make_config,
    make_model,
    make_row,
    make_teacher,
)
from ross3d.tests.plain_rows import assert_plain, compute_lm_loss
from ross3d.views_ross3d import get_views


FROM_PROCESSOR = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords")
PROPOSALS = ("proposal_boxes", "proposal_mask", "proposal_patches")


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


@pytest.fixture(scope="module")
def bare():
    """A model without grounding and reconstruction."""
    return make_model(denoiser_config=None, grounding=False).eval()


@pytest.fixture
def row():
    """Two views, three proposals, one question with its answer."""
    return make_collator(0.0)([make_row(3, 2, 3, ["text"])])


@pytest.fixture
def grounding():
    """A question that is answered by `<ground>` and one in words."""
    return make_collator(0.0)([make_row(5, 2, 3, ["ground", "text"])])


@pytest.fixture
def packed():
    return make_collator()([RaggedRows(3)[index] for index in range(3)])


def select(batch, *names):
    return {name: batch[name] for name in names if name in batch}


def get_prefix(batch) -> dict:
    """The scene alone."""
    length = int((batch["segment_ids"] == 0).sum())
    cut = {name: batch[name][:, :length] for name in ("input_ids", "attention_mask", "segment_ids")}
    return select(batch, *FROM_PROCESSOR, *PROPOSALS) | cut


def refuses(message: str, kind=ValueError):
    """`pytest.raises` for a literal message in which `...` stands for anything."""
    return pytest.raises(kind, match=".*".join(re.escape(part) for part in message.split("...")))


def forward(model, batch, **changes):
    with torch.no_grad():
        return model(**batch | changes)


def rebuild(model, inputs, *masked_views, **changes):
    """Sampled masked views and bird's-eye pictures, from the same noise each time."""
    generator = torch.Generator().manual_seed(0)
    return model.reconstruct(*masked_views, **inputs | changes, num_inference_steps=2, generator=generator)


# Tensors of a scene


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "pixel_values",
            lambda x: x[..., :16, :16],
            "pixel_values: expected views of 20 x 20 pixels (vision_config.image_size), got (16, 16); prepare them",
        ),
        (
            "pixel_values",
            lambda x: x[:, :, :1],
            "pixel_values: expected shape (B, V, 3, S, S), got (1, 2, 1, 20, 20); build rows with",
        ),
        ("view_mask", lambda x: x[:, :1], "view_mask: expected shape (1, 2), got (1, 1); build rows with"),
        (
            "view_mask",
            lambda x: torch.tensor([[True, False]]),
            "input_ids: expected [12] image placeholders (id 90) per row, 12 for each of [1] views, got [24]; build",
        ),
        (
            "patch_coords",
            lambda x: x[:, :, :2],
            "patch_coords: expected shape (1, 2, 3, 3, 3), got (1, 2, 2, 3, 3); build rows with this model's",
        ),
        ("patch_valid", lambda x: x[:, 0], "patch_valid: expected shape (1, 2, 3, 3), got (1, 3, 3); build rows with"),
        (
            "bool_masked_views",
            lambda x: x[:, :1],
            "bool_masked_views: expected shape (1, 2), got (1, 1); pass one value a view, True = masked",
        ),
        (
            "proposal_boxes",
            lambda x: x[..., :3],
            "proposal_boxes: expected shape (1, K, 6), got (1, 3, 3); build rows with this model's processor",
        ),
        ("proposal_mask", lambda x: x[:, :2], "proposal_mask: expected shape (1, 3), got (1, 2); build rows with"),
        (
            "proposal_patches",
            lambda x: x[:, :, :1],
            "proposal_patches: expected shape (1, 3, 2, ...), got (1, 3, 1, 4); build rows with this model's",
        ),
        (
            "bev_bounds",
            lambda x: x[:, :2],
            "bev_bounds: expected shape (1, 4), got (1, 2); pass x_min, y_min",
        ),
    ],
)
def test_scene_tensors_belong_together(model, row, name, change, message):
    with refuses(message):
        forward(model, row, **{name: change(row[name])})
    assert_plain(model, row)


@pytest.mark.parametrize("change", [-1, 1])
def test_number_of_placeholders(model, row, change):
    """One placeholder too few or too many, as a prompt with no slot or two would bring."""
    place = int((row["input_ids"][0] == IMAGE_TOKEN).nonzero()[0]) + (0 if change < 0 else -1)
    ids = row["input_ids"].clone()
    ids[0, place] = 5 if change < 0 else IMAGE_TOKEN
    with refuses(f"expected [24] image placeholders (id 90) per row, 12 for each of [2] views, got [{24 + change}]"):
        forward(model, row, input_ids=ids)
    assert_plain(model, row)


def test_number_of_placeholders_in_embeddings(model, row):
    embeds = model.get_input_embeddings()(row["input_ids"])
    batch = select(row, "attention_mask", "segment_ids", "pixel_values", "view_mask")
    changed = embeds.clone()
    changed[:, 3] = 0.0
    with refuses("expected [24] image placeholders (id 90) per row, 12 for each of [2] views, got [23]; build rows"):
        forward(model, batch, inputs_embeds=changed)
    assert_plain(model, batch | {"input_ids": row["input_ids"]}, batch | {"inputs_embeds": embeds})


# Rows


def test_either_ids_or_embeddings(model):
    ids = torch.tensor([[4, 5, 6]])
    embeds = model.get_input_embeddings()(ids)
    with refuses("input_ids: expected either input_ids or inputs_embeds, got neither; pass the processor's input_ids"):
        forward(model, {})
    with refuses("input_ids: expected either input_ids or inputs_embeds, got both; pass the processor's input_ids"):
        forward(model, {"input_ids": ids, "inputs_embeds": embeds})
    assert torch.equal(forward(model, {"inputs_embeds": embeds}).logits, forward(model, {"input_ids": ids}).logits)


def test_rows_over_the_context_limit(model):
    ids = torch.randint(1, 80, (1, 257))
    with refuses("input_ids: expected at most 256 positions (max_position_embeddings), got 257; use fewer views (12"):
        forward(model, {"input_ids": ids})
    cache = forward(model, {"input_ids": ids[:, :250]}, use_cache=True).past_key_values
    with refuses("expected at most 256 positions (max_position_embeddings), got 257; use fewer views (12 positions"):
        forward(model, {"input_ids": ids[:, 250:]}, past_key_values=cache)
    found = forward(model, {"input_ids": ids[:, 250:256]}, past_key_values=cache).logits
    whole = forward(model, {"input_ids": ids[:, :256]}).logits
    torch.testing.assert_close(found, whole[:, 250:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 3)])
def test_points_of_the_wrong_shape(model, shape):
    ids = torch.tensor([[4, COORD_TOKEN, 6]])
    with refuses(f"query_coords: expected shape (1, Q, 3), got {shape}; pass x, y, z of"):
        forward(model, {"input_ids": ids}, query_coords=torch.zeros(shape))
    assert_plain(model, {"input_ids": ids, "query_coords": torch.zeros(1, 1, 3)})


def test_points_that_are_not_there(model):
    ids = torch.tensor([[4, 5, 6], [4, COORD_TOKEN, 6]])
    given, missing = torch.zeros(2, 1, 3), torch.full((2, 1, 3), float("nan"))
    with refuses(
        "query_coords: expected a point for the <coord> of row 1, got [nan, nan, nan]; pass query_coords for every"
    ):
        forward(model, {"input_ids": ids}, query_coords=missing)
    # A row without <coord> needs no point.
    missing[1] = 0.0
    assert torch.equal(
        forward(model, {"input_ids": ids}, query_coords=missing).logits,
        forward(model, {"input_ids": ids}, query_coords=given).logits,
    )
    embeds = model.get_input_embeddings()(ids)
    with refuses("query_coords: expected input_ids with them to find <coord>, got only inputs_embeds"):
        forward(model, {"inputs_embeds": embeds}, query_coords=given)
    assert_plain(model, {"input_ids": ids}, {"inputs_embeds": embeds})


def test_several_questions_a_row_need_masks_that_flash_attention_has_not(packed):
    """Asked by name alone: the kernels are not installed, and a row with one question never meets the refusal."""
    changed = make_model().eval()
    changed.config.text_config._attn_implementation_internal = "flash_attention_2"
    with refuses("attn_implementation: expected 'sdpa', 'eager' or 'flex_attention' for rows with several questions"):
        forward(changed, packed)
    changed.config.text_config._attn_implementation_internal = "eager"
    assert_plain(changed, packed)


def test_several_questions_a_row_take_no_cache(model, row, packed):
    cache = forward(model, {"input_ids": torch.tensor([[4, 5]] * 3)}, use_cache=True).past_key_values
    batch = select(packed, *FROM_PROCESSOR)
    batch.pop("attention_mask")
    with refuses("past_key_values: expected none for rows with several questions, ... got a cache of 2 positions"):
        forward(model, batch, past_key_values=cache)
    assert_plain(model, batch | {"attention_mask": packed["attention_mask"]}, batch)


def test_no_cache_under_activation_checkpointing():
    trained = make_model().train()
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        cache = trained(input_ids=ids, use_cache=True).past_key_values
        trained.activation_checkpointing_enable()
        with refuses("past_key_values: expected no cache with activation checkpointing, ... model.eval()"):
            trained(input_ids=ids, past_key_values=cache)
        found = trained.eval()(input_ids=ids, past_key_values=cache).logits
        torch.testing.assert_close(found, trained(input_ids=ids.repeat(1, 2)).logits[:, 3:], rtol=1e-5, atol=1e-5)


# Precision of metres and weights


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["patch_coords", "proposal_boxes", "query_coords", "bev_bounds", "loss_weights"])
def test_metres_and_weights_in_half_precision(model, name, dtype):
    """What a Trainer under DeepSpeed does to every float tensor of a batch, and what it cannot do."""
    batch = make_collator(0.0)([make_row(5, 2, 3, ["coord", "ground"])])
    wanted = forward(model, batch)
    with refuses(f"{name}: expected float32, which voxels and loss weights need in every precision, got {dtype}"):
        forward(model, batch, **{name: batch[name].to(dtype)})
    bits = {name: batch[name].view(torch.int32)}
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in bits.items()}
    found = forward(model, batch, **cast)
    assert torch.equal(found.loss, wanted.loss) and torch.equal(found.grounding_scores, wanted.grounding_scores)
    assert torch.equal(forward(model, batch, **{name: batch[name].double()}).loss, wanted.loss)


def test_model_in_half_precision_takes_metres_in_float32():
    """The usual way to load a large model, and a batch that was cast as a whole on its way to it."""
    half = make_model().eval().to(torch.bfloat16)
    batch = make_collator(0.4)([make_row(5, 3, 3, ["coord", "ground", "text"])])
    metres = ("patch_coords", "proposal_boxes", "query_coords", "bev_bounds", "loss_weights")

    def cast(inputs):
        return {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}

    wanted = forward(half, cast(batch) | {name: batch[name] for name in metres})
    assert wanted.loss.isfinite() and wanted.loss_counts.tolist() == [2, 1, 1, 1]
    with refuses("expected float32, ... in every precision, got torch.bfloat16; cast with the processor's output.to"):
        forward(half, cast(batch))
    found = forward(half, cast(batch | {name: batch[name].view(torch.int32) for name in metres}))
    for name in ("loss", "grounding_scores", "logits"):
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("proposals", [False, True])
@pytest.mark.parametrize("index", range(len(RaggedRows.KINDS)))
def test_every_kind_of_row_trains_in_half_precision(index, proposals, saved, tmp_path):
    """Loss and gradients are those of float32 for every kind of row, whose missing parts are computed on placeholders.

    `saved`: the head in float32, as loading makes it.
    """
    half = make_model().to(torch.bfloat16)
    exact = copy.deepcopy(half).float()
    if saved:
        half.save_pretrained(tmp_path)
        half, exact = (type(half).from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
        half.attach_teacher(make_teacher())
        exact.attach_teacher(make_teacher())
    row = RaggedRows(len(RaggedRows.KINDS))[index]
    if not proposals and "ground" not in RaggedRows.KINDS[index][2]:
        row = {name: value for name, value in row.items() if name not in PROPOSALS}
    batch = make_collator(0.4)([row])
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    output = half.train()(**batch)
    output.loss.backward()
    wanted = exact.train()(**batch | {"pixel_values": batch["pixel_values"].float()})
    wanted.loss.backward()
    # Measured: losses at most 0.9 % apart; cosines of gradients 0.9999, but 0.91 where rounding moves a unit of the
    # grounding head across the kink of its ReLU (row 6).
    assert output.loss.item() == pytest.approx(wanted.loss.item(), rel=0.02)
    grads, exact_grads = (
        torch.cat([weight.grad.float().flatten() for weight in trained.parameters() if weight.requires_grad])
        for trained in (half, exact)
    )
    assert torch.cosine_similarity(grads, exact_grads, dim=0) >= (0.85 if index == 6 else 0.999)


def test_half_precision_would_move_points_into_other_voxels(model):
    """Why it is refused: in bfloat16 a tenth of the points of a room are read 10 cm away or more."""
    points = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)) * 12 - 6
    exact = model.model.get_position_embedding(points)
    rounded = model.model.get_position_embedding(points.to(torch.bfloat16).float())
    moved = (exact != rounded).any(dim=-1).float().mean()
    assert 0.1 < moved < 0.5
    assert torch.equal(read_float32("points", points.view(torch.int32)), points)


# Values that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("pixel_values", (1, 0, 2, 3, 4), "pixel_values: expected finite numbers, got NaN or infinity in row 1; look"),
        ("patch_coords", (0, 1, 2, 0, 1), "patch_coords: expected finite numbers, got NaN or infinity in row 0; look"),
        ("proposal_boxes", (1, 1, 4), "proposal_boxes: expected finite numbers, got NaN or infinity in row 1; look"),
        ("query_coords", (1, 0, 2), "query_coords: expected a point for the <coord> of row 1, got ["),
    ],
)
def test_values_that_are_no_numbers(model, name, place, value, message):
    """In each tensor of a scene, wherever they count; what stands at padding counts nowhere."""
    rows = [make_row(3, 3, 4, ["coord", "ground"]), make_row(4, 2, 2, ["coord"])]
    batch = make_collator(0.0)(rows)
    wrong = batch[name].clone()
    wrong[place] = value
    with refuses(message):
        forward(model, batch, **{name: wrong})
    if name != "query_coords":
        padding = {"pixel_values": (1, 2), "patch_coords": (1, 2), "proposal_boxes": (1, 3)}[name]
        ignored = batch[name].clone()
        ignored[padding] = value
        assert torch.equal(forward(model, batch, **{name: ignored}).loss, forward(model, batch).loss)
    scene = select(batch, *FROM_PROCESSOR, "patch_valid", *PROPOSALS, "query_coords") | {name: wrong}
    with refuses(message):
        model.ground(**scene)


def test_positions_without_a_reading_may_be_anything(model, row):
    wanted = forward(model, row, patch_valid=row["patch_valid"] & (row["patch_coords"][..., 0] > 0))
    coords = row["patch_coords"].clone()
    coords[coords[..., 0] <= 0] = float("nan")
    found = forward(model, row, patch_coords=coords, patch_valid=row["patch_valid"] & (coords[..., 0] > 0))
    assert torch.equal(found.logits, wanted.logits)
    with refuses("patch_coords: expected finite numbers, got NaN or infinity in row 0; look at the scene"):
        forward(model, row, patch_coords=coords)


@pytest.mark.parametrize("name", ["pixel_values", "patch_coords", "query_coords"])
def test_values_that_are_no_numbers_are_refused_in_training(name):
    trained = make_model().train()
    batch = make_collator(0.0)([make_row(3, 3, 4, ["coord"]), make_row(4, 2, 2, ["coord"])])
    batch[name][0, 0] = float("nan")
    with refuses(f"{name}: expected"):
        trained(**batch)


@pytest.mark.parametrize(
    "bounds",
    [
        [2.0, -2.0, -2.0, 2.0],
        [-2.0, 2.0, 2.0, -2.0],
        [-2.0, -2.0, -2.0, 2.0],
        [-2.0, -2.0, float("inf"), 2.0],
        [-2.0, float("nan"), 2.0, 2.0],
    ],
)
def test_edges_of_a_picture_in_the_wrong_order(model, bounds):
    batch = make_collator(0.0)([make_row(3, 3, 4, ["text"]), make_row(4, 2, 2, ["text"])])
    inputs = select(batch, *FROM_PROCESSOR, "patch_valid")
    right = torch.tensor([[-2.0, -2.0, 2.0, 2.0]] * 2)
    wrong = right.clone()
    wrong[1] = torch.tensor(bounds)
    message = "bev_bounds: expected finite x_min < x_max and y_min < y_max, in the order x_min, y_min, x_max, y_max"
    with refuses(f"{message}, metres up to 1000, got ... for scene 1; pass x_min"):
        model.reconstruct(**inputs, bev_bounds=wrong, num_inference_steps=1)
    with refuses(message):
        forward(model, batch, bev_bounds=wrong)
    # No picture of a scene: NaN, as the collator pads.
    right[1] = float("nan")
    (first, second), (_, wanted) = (rebuild(model, inputs, bev_bounds=given)[1] for given in (right, None))
    assert torch.equal(second, wanted) and not torch.equal(first, rebuild(model, inputs)[1][0])


@pytest.mark.parametrize(
    ("views", "kind", "message"),
    [
        ([0.5], ValueError, "masked_views: expected views 0..1 of scene 0, got 0.5; name views that exist by whole"),
        ([1.0], ValueError, "masked_views: expected views 0..1 of scene 0, got 1.0; name views that exist by whole"),
        ([True, False], ValueError, "got True; name views that exist by whole numbers, or pass bool_masked_views"),
        (["1"], ValueError, "masked_views: expected views 0..1 of scene 0, got '1'; name views that exist by whole"),
        (
            "01",
            TypeError,
            "expected a list of views such as [3, 7], or such a list for each scene, got '01'",
        ),
        (
            1,
            TypeError,
            "expected a list of views such as [3, 7], or such a list for each scene, got 1; pass",
        ),
        (
            [[0], 1],
            TypeError,
            "expected a list of views such as [3, 7], or such a list for each scene, got",
        ),
        (torch.tensor([True, False]), ValueError, "got True; name views that exist by whole numbers, or pass"),
    ],
)
def test_views_to_hide_are_whole_numbers(model, row, views, kind, message):
    inputs = select(row, *FROM_PROCESSOR)
    with refuses(message, kind):
        model.reconstruct(**inputs, masked_views=views, num_inference_steps=1)
    wanted, _ = rebuild(model, inputs, bool_masked_views=torch.tensor([[False, True]]))
    for right in ([1], (1,), [[1]], torch.tensor([1])):
        assert torch.equal(rebuild(model, inputs, right)[0][0], wanted[0])


@pytest.mark.parametrize("steps", [0, 1001, 2.5, "many", True])
def test_sampler_steps_are_refused_before_anything_is_computed(model, row, steps, monkeypatch):
    monkeypatch.setattr(model.model, "forward", None)
    with refuses(f"num_inference_steps: expected ..., got {steps!r}; ..."):
        model.reconstruct(**select(row, *FROM_PROCESSOR), masked_views=[1], num_inference_steps=steps)


@pytest.mark.parametrize("scene", ["room.scene", Path("room.scene"), {"prefix_mask": 1}, True])
@pytest.mark.parametrize("method", ["generate", "ground"])
def test_what_is_no_encoded_scene(model, method, scene):
    kind = type(scene).__name__
    with refuses(
        f"scene: expected a scene from model.encode_scene(...), got a {kind} ... model.load_scene", TypeError
    ):
        getattr(model, method)(scene=scene, input_ids=torch.tensor([[4, 5, 6]]))


# Losses


def check_grounding_loss(model, batch) -> None:
    """The loss of one row is the InfoNCE of the scores that `ground` gives its first question, by hand."""
    scores = (
        model.ground(**select(batch, *FROM_PROCESSOR, *PROPOSALS))[0].double() / model.config.grounding_temperature
    )
    wanted = scores.exp().sum().log() - scores[batch["grounding_labels"][0, 0] > 0].exp().sum().log()
    assert float(forward(model, batch).grounding_loss) == pytest.approx(float(wanted), rel=1e-4)


def test_more_than_one_ground_a_question(model, grounding):
    ids = grounding["input_ids"].clone()
    place = int((ids[0] == GROUND_TOKEN).nonzero()[0])
    ids[0, place - 1] = GROUND_TOKEN
    with refuses("input_ids: expected at most one <ground> per question, got 2 in question 0 of row 0; use one"):
        forward(model, grounding, input_ids=ids)
    check_grounding_loss(model, grounding)


def test_grounding_labels_without_a_ground(model, grounding):
    labels = grounding["grounding_labels"]
    wrong = labels.clone()
    wrong[0, 1, 0] = 1
    with refuses("expected a <ground> in question 1 of row 0, which has labels, got none; answer grounding"):
        forward(model, grounding, grounding_labels=wrong)
    with refuses("grounding_labels: expected shape (1, 2, 4), got (1, 2, 3); pass one row per question, with one"):
        forward(model, grounding, grounding_labels=labels[..., :3])
    check_grounding_loss(model, grounding)


def test_labels_alone_do_not_say_what_packed_rows_may_predict(model, packed, row):
    batch = {name: value for name, value in packed.items() if name not in ("shift_labels", "loss_weights")}
    message = (
        "shift_labels: expected shift_labels and loss_weights with labels, because a row contains several questions"
    )
    with refuses(
        f"{message} ... got None; pass answers= to the processor, give ... and set remove_unused_columns=False"
    ):
        forward(model, batch, labels=packed["input_ids"])
    found = forward(model, packed, labels=packed["input_ids"]).lm_loss
    assert float(found) == pytest.approx(compute_lm_loss(model, packed), rel=1e-5)
    # Every token of a row with one question, weighed alike.
    alone = select(row, *FROM_PROCESSOR)
    shifted = row["input_ids"].roll(-1)
    weights = torch.ones(shifted.shape).index_fill(1, torch.tensor([shifted.shape[1] - 1]), 0.0)
    wanted = compute_lm_loss(model, row | {"shift_labels": shifted, "loss_weights": weights})
    assert float(forward(model, alone, labels=row["input_ids"]).lm_loss) == pytest.approx(wanted, rel=1e-5)


def test_counts_of_a_stock_trainer(model, packed):
    with refuses(
        "num_items_in_batch: expected 4 counts ('lm_loss', ..., got shape (); a stock Trainer counts tokens: use"
    ):
        forward(model, packed, num_items_in_batch=torch.tensor(7))
    counts = forward(model, packed).loss_counts
    found = forward(model, packed, num_items_in_batch=counts)
    assert torch.equal(found.loss, forward(model, packed).loss)


@pytest.mark.parametrize(
    ("rule", "missing", "message"),
    [
        (
            "valid",
            "bev_valid",
            "bev_valid: expected a mask (B, H, W) of the observed pixels, because bev_loss_mask='valid' ...",
        ),
        (
            "rgb_positive",
            "bev_pixel_values",
            "bev_pixel_values: expected the picture itself, because bev_loss_mask='rgb_positive' counts its ...",
        ),
    ],
)
def test_cells_of_the_birds_eye_loss(rule, missing, message):
    given = {"bev_pixel_values": torch.ones(1, 3, 8, 8), "bev_valid": torch.ones(1, 8, 8, dtype=torch.bool)}
    with refuses(f"{message} got None; pass"):
        get_bev_cells(**given | {missing: None}, grid_size=2, rule=rule)
    other = (set(given) - {missing}).pop()
    assert get_bev_cells(**given | {other: None}, grid_size=2, rule=rule).all()


# The teacher and reconstruction


@pytest.mark.parametrize("size", [4, 16])
def test_bev_pictures_of_another_size(model, bare, row, size):
    """Those of a processor with another `bev_size`; a model that rebuilds nothing does not look at them."""
    picture = {"bev_pixel_values": torch.rand(1, 3, size, size), "bev_valid": torch.ones(1, size, size).bool()}
    message = (
        f"bev_pixel_values: expected shape (1, 3, 8, 8), got (1, 3, {size}, {size}); build rows with a processor whose"
        " bev_size is this model's config.denoiser_config.bev_image_size."
    )
    for own in (model, copy.deepcopy(model).train()):
        with refuses(message):
            forward(own, row, **picture)
    assert float(forward(bare, row, **picture).lm_loss) == pytest.approx(compute_lm_loss(bare, row), rel=1e-5)


def test_reconstruct_needs_pictures(model, row):
    inputs = select(row, *FROM_PROCESSOR) | {"pixel_values": None}
    with refuses("pixel_values: expected the views of the scenes, got None; pass the processor's output"):
        model.reconstruct(**inputs, masked_views=[0], num_inference_steps=1)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_bev_pictures_with_nan(model, row, number):
    """Outside training, where no loss is watched; the same picture with numbers alone is rebuilt."""
    picture = {"bev_pixel_values": torch.rand(1, 3, 8, 8), "bev_valid": torch.ones(1, 8, 8).bool()}
    assert 0 < float(forward(model, row, **picture).bev_loss) < math.inf
    picture["bev_pixel_values"][0, 1, 2, 3] = number
    with refuses("bev_pixel_values: expected finite numbers, got NaN or infinity in row 0"):
        forward(model, row, **picture)


def test_no_teacher(model, row):
    untaught = Ross3DForConditionalGeneration(make_config()).eval()
    untaught.load_state_dict(model.state_dict())
    message = "teacher: expected an attached VAE to encode or decode images, got none; call"
    with refuses(message):
        forward(untaught, row)
    with refuses(message):
        untaught.reconstruct(**select(row, *FROM_PROCESSOR), masked_views=[0])
    untaught.attach_teacher(make_teacher())
    assert torch.equal(forward(untaught, row).bev_loss, forward(model, row).bev_loss)


def test_a_teacher_of_another_model(model, row):
    other = make_teacher()
    other.register_to_config(scaling_factor=0.5)
    changed = make_model().eval()
    with refuses("attach_teacher: expected a VAE with scaling_factor=1.0 (denoiser_config), got 0.5; attach the VAE"):
        changed.attach_teacher(other)
    assert torch.equal(forward(changed, row).bev_loss, forward(model, row).bev_loss)
    changed.attach_teacher(make_teacher(seed=6))
    assert not torch.equal(forward(changed, row).bev_loss, forward(model, row).bev_loss)


def test_nothing_to_reconstruct_with(bare, row):
    with refuses("attach_teacher: expected a model with denoiser_config, got None; leave out the teacher"):
        bare.attach_teacher(make_teacher())
    with refuses("reconstruct: expected a model with denoiser_config, got None; load another checkpoint"):
        bare.reconstruct(**select(row, *FROM_PROCESSOR), masked_views=[0])
    found = forward(bare, row)
    assert found.view_loss is None and found.bev_loss is None
    assert float(found.loss) == pytest.approx(compute_lm_loss(bare, row), rel=1e-5)


@pytest.mark.parametrize("views", [[2], [-1], [[5]]])
def test_views_that_do_not_exist(model, row, views):
    inputs = select(row, *FROM_PROCESSOR)
    number = views[0][0] if isinstance(views[0], list) else views[0]
    with refuses(f"masked_views: expected views 0..1 of scene 0, got {number}; name views that exist"):
        model.reconstruct(**inputs, masked_views=views, num_inference_steps=1)
    wanted, _ = rebuild(model, inputs, bool_masked_views=torch.tensor([[False, True]]))
    assert torch.equal(rebuild(model, inputs, [1])[0][0], wanted[0])


@pytest.mark.parametrize("method", ["encode_scene", "ground", "reconstruct"])
def test_misspelt_inputs(model, row, method):
    """`views` is none of the names; everything that the processor gives is taken, needed or not."""
    inputs = select(row, *FROM_PROCESSOR, *PROPOSALS)
    if method == "encode_scene":
        inputs = select(make_collator(0.0)([make_row(1, 2, 3, [])]), *FROM_PROCESSOR, *PROPOSALS)
    own = {"masked_views": [1], "num_inference_steps": 1} if method == "reconstruct" else {}
    getattr(model, method)(**inputs, **own, bev_valid=None)
    with pytest.raises(TypeError, match=f"{method}: expected the processor's output and this method's own arguments,"):
        getattr(model, method)(**inputs, **own, views=[1])


def test_hidden_views_of_several_scenes(model):
    batch = make_collator(0.0)([make_row(seed, 2, 1, []) for seed in (1, 2)])
    inputs = select(batch, *FROM_PROCESSOR)
    with refuses("masked_views: expected one list for each of 2 scenes, got 1; pass [] for a scene that keeps all"):
        model.reconstruct(**inputs, masked_views=[[0]], num_inference_steps=1)
    pictures, _ = rebuild(model, inputs, [[0], []])
    wanted, _ = rebuild(model, {name: value[:1] for name, value in inputs.items()}, [0])
    assert pictures[1] is None and len(pictures[0]) == 1
    torch.testing.assert_close(pictures[0], wanted[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [0, 1001, 2.5, True])
def test_number_of_sampler_steps(steps):
    expected = "1..1000 (the training schedule's length)"
    with refuses(f"num_inference_steps: expected {expected}, got {steps}; choose a number"):
        space_timesteps(1000, steps)
    assert len(space_timesteps(1000, 1000)) == 1000 and space_timesteps(1000, 1) == [999]


# Answers


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "token_healing",
            True,
            "which would decode the prompt and tokenise it again, without its views, got",
        ),
        (
            "assistant_early_exit",
            1,
            "which would answer from the first layers, on which this model was not",
        ),
    ],
)
def test_strategies_that_cannot_be_used(model, row, name, value, message):
    for given in ({name: value}, {"generation_config": GenerationConfig(**{name: value})}):
        with refuses(f"generate: expected no {name}, {message}"):
            model.generate(**row, max_new_tokens=2, **given)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("generation_config", {"max_length": 4}, "a GenerationConfig"),
        ("num_beams", "2", "a whole number from 1 on"),
        ("num_beams", None, "a whole number from 1 on"),
        ("num_return_sequences", 1.0, "a whole number from 1 on"),
        ("max_time", "3", "seconds, a number"),
        ("tokenizer", 5, "a tokenizer or the processor"),
        ("streamer", print, "a streamer, such as TextStreamer(processor.tokenizer)"),
        ("logits_processor", print, "a list of logits processors"),
        ("stopping_criteria", 5, "a list of stopping criteria"),
        ("assistant_model", "tiny", "a model"),
        ("temperature", "0.5", "a number"),
        ("repetition_penalty", True, "a number"),
        ("top_k", 2.5, "a whole number"),
        ("min_new_tokens", "1", "a whole number"),
        ("eos_token_id", "a", "the id of a token"),
        ("pad_token_id", [1.5], "the id of a token"),
    ],
)
def test_arguments_of_generate_of_another_type(model, row, name, value, expected):
    with refuses(f"generate: {name}: expected {expected}, got {value!r}; correct it, or leave it out", TypeError):
        model.generate(**row, **({"max_new_tokens": 2} | {name: value}))


def test_answers_of_rows_with_several_questions(model, packed, row):
    batch = select(packed, *FROM_PROCESSOR)
    with refuses("generate: expected one question a row, got rows with up to 4; encode the scene once with scene ="):
        model.generate(**batch, max_new_tokens=1)
    found = model.generate(**select(row, *FROM_PROCESSOR), max_new_tokens=1)[0, -1]
    assert found == forward(model, select(row, *FROM_PROCESSOR)).logits[0, -1, :IMAGE_TOKEN].argmax()


def test_answers_of_rows_padded_at_their_ends(model):
    ids = torch.tensor([[4, 5, 6], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    message = (
        "attention_mask: expected rows padded on the left, since answers go on at their ends, got padding at the end"
    )
    with refuses(f"{message} of row 1; leave answers= out of the processor"):
        model.generate(ids, attention_mask=mask, max_new_tokens=1)
    found = model.generate(torch.tensor([[4, 5, 6], [0, 4, 5]]), attention_mask=mask.flip(1), max_new_tokens=2)
    for answer, alone in zip(found[:, 3:], (ids[:1], ids[1:, :2]), strict=True):
        assert torch.equal(answer, model.generate(alone, max_new_tokens=2)[0, alone.shape[1] :])


def test_misspelt_inputs_of_a_forward(model, row):
    with pytest.raises(TypeError, match="forward: expected the processor's output and arguments of .* got bool"):
        model(**row, bool_masked_view=1)
    found = model(**row, use_cache=False, output_hidden_states=True)
    assert torch.equal(model.lm_head(found.hidden_states[-1]), found.logits) and found.past_key_values is None


@pytest.mark.parametrize(
    ("method", "unused"),
    [("encode_scene", "bool_masked_views"), ("encode_scene", "query_coords"), ("ground", "bool_masked_views")],
)
def test_inputs_that_would_be_left_out(model, row, method, unused):
    inputs = get_prefix(row) if method == "encode_scene" else select(row, *FROM_PROCESSOR, *PROPOSALS)
    with pytest.raises(TypeError, match=f"{method}: expected no {unused}, which means nothing here, got one; leave"):
        getattr(model, method)(**inputs, **{unused: torch.zeros(1, 2)})
    getattr(model, method)(**inputs, **{unused: None})


def test_grounding_labels_without_what_they_label(model, bare, grounding):
    with refuses("grounding_labels: expected proposal_boxes with them, got None; pass the processor's whole output"):
        model(**{name: value for name, value in grounding.items() if name not in PROPOSALS})
    with refuses("grounding_labels: expected grounding_head with them, got None; pass the processor's whole output"):
        bare(**grounding)
    embedded = {name: value for name, value in grounding.items() if name not in ("input_ids", "query_coords")}
    embedded["inputs_embeds"] = model.get_input_embeddings()(grounding["input_ids"])
    with refuses("grounding_labels: expected input_ids with them, got None; pass the processor's whole output"):
        model(**embedded)
    assert model(**grounding).grounding_loss > 0


def test_int32_that_is_no_bits(model):
    with refuses("boxes: expected float32, or int32 that holds its bits, got int32 numbers such as 3; pass boxes.f"):
        read_float32("boxes", torch.tensor([0, 3], dtype=torch.int32))
    metres = torch.tensor([0.0, 3.0, -1e-3])
    assert torch.equal(read_float32("boxes", metres.view(torch.int32)), metres)


@pytest.fixture(scope="module")
def scenes(model):
    """Two encoded scenes, with and without proposals."""
    batch = make_collator(0.0)([make_row(seed, 2, 3, []) for seed in (1, 2)])
    inputs = select(batch, *FROM_PROCESSOR)
    return {
        "two": model.encode_scene(**inputs, **select(batch, *PROPOSALS)),
        "one": model.encode_scene(**get_prefix({name: value[:1] for name, value in batch.items()})),
        "bare": model.encode_scene(**{name: value[:1] for name, value in inputs.items()}),
        "patches": model.encode_scene(**{name: value[:1] for name, value in inputs.items()}, keep_patch_features=True),
    }


QUESTIONS = torch.tensor([[4, 5, 6], [7, 8, 9]])


def test_scenes_are_encoded_without_questions(model, row):
    with refuses("encode_scene: expected rows without questions, got text; call the processor without text= and ask"):
        model.encode_scene(**select(row, *FROM_PROCESSOR))
    assert model.encode_scene(**get_prefix(row)).prefix_mask.all()


@pytest.mark.parametrize("method", ["generate", "ground"])
def test_views_beside_a_scene(model, scenes, row, method):
    ask = getattr(model, method)
    with refuses(
        f"{method}: expected questions alone with scene=, which already contains the views, got pixel_values"
    ):
        ask(scene=scenes["one"], input_ids=QUESTIONS, pixel_values=row["pixel_values"])
    found = ask(scene=scenes["one"], input_ids=QUESTIONS, pixel_values=None)
    assert torch.equal(found, ask(scene=scenes["one"], input_ids=QUESTIONS))


@pytest.mark.parametrize("method", ["generate", "ground"])
def test_questions_without_their_scene(model, scenes, method):
    """What the processor makes of text alone has no scene in it; an answer would be made up."""
    ask, asks = getattr(model, method), {"input_ids": QUESTIONS, "segment_ids": torch.ones_like(QUESTIONS)}
    boxes = {"proposal_boxes": torch.zeros(2, 0, 6)} if method == "ground" else {}
    for given in ({}, {"scene_index": [0, 0]}):
        with refuses(f"{method}: expected scene= or views, since the processor made these questions without images,"):
            ask(**asks, **boxes, **given)
    assert torch.equal(ask(scene=scenes["one"], **asks), ask(scene=scenes["one"], input_ids=QUESTIONS))


def test_a_scene_index_without_a_scene(model, row):
    with refuses("scene_index: expected None without scene=, got [0]; row i is scene i"):
        model.ground(**select(row, *FROM_PROCESSOR, *PROPOSALS), scene_index=[0])


def test_a_scene_is_nowhere_but_in_the_cache(model, scenes):
    with refuses("generate: expected use_cache=True with scene=, whose views are only in the cache, got"):
        model.generate(scene=scenes["one"], input_ids=QUESTIONS, use_cache=False)
    found = model.generate(scene=scenes["one"], input_ids=QUESTIONS, use_cache=True, max_new_tokens=2)
    assert torch.equal(found, model.generate(scene=scenes["one"], input_ids=QUESTIONS, max_new_tokens=2))


@pytest.mark.parametrize("method", ["generate", "ground"])
@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            None,
            "scene_index: expected the scene (0..1) of each of 2 questions, got None while 2 scenes are cached; pass",
        ),
        ([0], "scene_index: expected 2 whole numbers in 0..1, got [0]; pass one scene for each question"),
        ([0, 2], "scene_index: expected 2 whole numbers in 0..1, got [0, 2]; pass one scene for each question"),
        ([0.5, 0.0], "scene_index: expected 2 whole numbers in 0..1, got [0.5, 0.0]; pass one scene for each"),
        ([1.0, 0.0], "scene_index: expected 2 whole numbers in 0..1, got [1.0, 0.0]; pass one scene for each"),
        ([True, False], "scene_index: expected 2 whole numbers in 0..1, got [True, False]; pass one scene for each"),
        ([-1, 0], "scene_index: expected 2 whole numbers in 0..1, got [-1, 0]; pass one scene for each question"),
    ],
)
def test_which_of_several_scenes(model, scenes, method, index, message):
    ask = getattr(model, method)
    with refuses(message):
        ask(scene=scenes["two"], scene_index=index, input_ids=QUESTIONS)
    crossed = ask(scene=scenes["two"], scene_index=[1, 0], input_ids=QUESTIONS)
    straight = ask(scene=scenes["two"], scene_index=[0, 1], input_ids=QUESTIONS.flip(0)).flip(0)
    torch.testing.assert_close(crossed, straight)
    alone = ask(scene=scenes["one"], input_ids=QUESTIONS)
    torch.testing.assert_close(alone, ask(scene=scenes["two"], scene_index=[0, 0], input_ids=QUESTIONS))


def test_grounding_needs_a_head_and_proposals(model, bare, row):
    with refuses("ground: expected a model with config.grounding=True, got False; load another checkpoint"):
        bare.ground(**select(row, *FROM_PROCESSOR, *PROPOSALS))
    with refuses("ground: expected proposal_boxes (B, K, 6), got None; pass proposal_boxes= to the processor (K = 0"):
        model.ground(**select(row, *FROM_PROCESSOR))
    with refuses("ground: expected at least one question, got scenes alone; pass text= to the processor, one expr"):
        model.ground(**get_prefix(row))
    found = model.ground(**select(row, *FROM_PROCESSOR, *PROPOSALS))
    none = {"proposal_boxes": torch.zeros(1, 0, 6)}
    torch.testing.assert_close(model.ground(**select(row, *FROM_PROCESSOR), **none), found[:, -1:])
    # As in the scene, encoded without its question.
    scene, question = model.encode_scene(**get_prefix(row)), row["input_ids"][row["segment_ids"] == 1][None]
    torch.testing.assert_close(found, model.ground(scene=scene, input_ids=question), rtol=1e-4, atol=1e-5)


def test_grounding_in_a_scene_encoded_without_what_it_takes(model, scenes, row):
    boxes = select(row, *PROPOSALS)
    with refuses("ground: expected a scene encoded with proposal_boxes, got one without; pass proposal_boxes= to the"):
        model.ground(scene=scenes["bare"], input_ids=QUESTIONS)
    with refuses(
        "ground: expected a scene encoded with keep_patch_features=True, since new proposal_boxes are given,"
    ):
        model.ground(scene=scenes["one"], input_ids=QUESTIONS, **boxes)
    own = select(make_collator(0.0)([make_row(1, 2, 3, [])]), *PROPOSALS)
    wanted = model.ground(scene=scenes["one"], input_ids=QUESTIONS)
    torch.testing.assert_close(model.ground(scene=scenes["patches"], input_ids=QUESTIONS, **own), wanted)
    other = model.ground(scene=scenes["patches"], input_ids=QUESTIONS, **boxes)
    assert not torch.allclose(other[:, :-1], wanted[:, :-1])


def test_more_than_one_ground_in_a_question_to_be_grounded(model, scenes):
    twice = torch.tensor([[4, GROUND_TOKEN, 6, GROUND_TOKEN]])
    with refuses("expected at most one <ground> per question, got 2 in question 0 of row 0; use one referring"):
        model.ground(scene=scenes["one"], input_ids=twice)
    asked, closed = (model.ground(scene=scenes["one"], input_ids=twice[:, :length]) for length in (1, 2))
    assert torch.equal(asked, closed)


def test_grid_of_the_fabricated_rows():
    """The numbers in the messages above follow from these."""
    config = make_config()
    assert (config.view_grid_size, get_views(config).layout.num_positions, config.patch_grid_size) == (GRID, 12, 5)


# Rows without the views they name, masks that do not fit, scenes of another model


@pytest.fixture(scope="module")
def two():
    """Two rows of different lengths, padded on the left: a scene and a question each."""
    rows = make_collator(0.0)([make_row(3, 2, 3, ["text"]), make_row(5, 3, 2, ["text"])])
    length = rows["input_ids"].shape[1]
    order = (rows["attention_mask"] == 0).long().argsort(dim=1, descending=True, stable=True)
    assert 0 < int((rows["attention_mask"][0] == 0).sum()) < length
    turned = {name: rows[name].gather(1, order) for name in ("input_ids", "attention_mask", "segment_ids")}
    return select(rows, *FROM_PROCESSOR, "patch_valid", *PROPOSALS) | turned


@pytest.fixture(scope="module")
def prefixes(two):
    """The scenes of `two` alone."""
    ids = [row[segments == 0] for row, segments in zip(two["input_ids"], two["segment_ids"], strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_side="left")
    mask = (ids != 0).long()
    return two | {"input_ids": ids, "attention_mask": mask, "segment_ids": mask - 1}


METHODS = {
    "forward": lambda model, batch: model(**batch),
    "generate": lambda model, batch: model.generate(**batch, max_new_tokens=2),
    "ground": lambda model, batch: model.ground(**batch),
    "encode_scene": lambda model, batch: model.encode_scene(**batch),
    "reconstruct": lambda model, batch: model.reconstruct([1], num_inference_steps=2, **batch),
}


def choose(method: str, two: dict, prefixes: dict) -> dict:
    return dict(prefixes if method in ("encode_scene", "reconstruct") else two)


@pytest.mark.parametrize("method", ["generate", "ground", "encode_scene"])
def test_placeholders_without_views(model, two, prefixes, method):
    batch = choose(method, two, prefixes)
    counts = (batch["input_ids"] == IMAGE_TOKEN).sum(dim=1).tolist()
    assert counts == [24, 36]
    names = ("input_ids", "attention_mask", "segment_ids")
    with refuses(f"pixel_values: expected views for the image placeholders (id 90) of the rows, {counts} of them"):
        METHODS[method](model, select(batch, *names, *(PROPOSALS[:2] if method == "ground" else ())))


@pytest.mark.parametrize("cache", ["static", "dynamic"])
def test_placeholders_without_views_in_generation(model, two, cache):
    batch = select(two, "input_ids", "attention_mask")
    with refuses("pixel_values: expected views for the image placeholders (id 90) of the rows, [24, 36] of them"):
        model.generate(**batch, max_new_tokens=2, cache_implementation=cache)
    with refuses("pixel_values: expected views for the image placeholders (id 90) of the rows, [24, 36] of them"):
        model.generate(batch["input_ids"], max_new_tokens=2)
    # `forward` reads them as the library's models do; rows of text alone need no views.
    words = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE_TOKEN, 5)
    assert_plain(model, {"input_ids": words})
    # Behind the views of a cache, a placeholder is a token like others.
    seen = forward(model, select(two, "input_ids", "pixel_values", "view_mask"), use_cache=True).past_key_values
    embeds = model.get_input_embeddings()(batch["input_ids"])
    states = model.model.language_model(inputs_embeds=embeds, past_key_values=copy.deepcopy(seen)).last_hidden_state
    found = forward(model, {"input_ids": batch["input_ids"]}, past_key_values=seen).logits
    assert torch.equal(found, model.lm_head(states))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["short", "long", "one row", "three axes"])
def test_masks_of_another_shape(model, two, prefixes, method, name):
    batch = choose(method, two, prefixes)
    mask = batch["attention_mask"]
    length = mask.shape[1]
    changed = {"short": mask[:, 2:], "long": torch.cat([mask, mask], 1), "one row": mask[:1], "three axes": mask[None]}
    mask = changed[name]
    with refuses(f"attention_mask: expected shape (2, {length}), got {tuple(mask.shape)}; build rows with"):
        METHODS[method](model, batch | {"attention_mask": mask})


@pytest.mark.parametrize("method", METHODS)
def test_masks_that_are_no_tensors(model, two, prefixes, method):
    batch = choose(method, two, prefixes)
    with refuses("attention_mask: expected a tensor of 0 and 1, got list; pass what the processor", TypeError):
        METHODS[method](model, batch | {"attention_mask": batch["attention_mask"].tolist()})
    with refuses("attention_mask: expected 0 and 1, got dtype torch.complex64; build rows", TypeError):
        METHODS[method](model, batch | {"attention_mask": batch["attention_mask"].to(torch.complex64)})


@pytest.mark.parametrize("method", ["generate", "ground", "encode_scene"])
def test_masks_of_other_numbers(model, two, prefixes, method):
    batch = choose(method, two, prefixes)
    given = batch["attention_mask"]
    hole, empty = given.clone(), given.clone()
    hole[1, -5] = 0
    empty[1] = 0
    for mask, message in (
        (given * 2, "attention_mask: expected 0 and 1 alone, got [2, 2, 2] in row 0; build rows"),
        (given.float() * float("nan"), "attention_mask: expected 0 and 1 alone, got [nan, nan, nan] in row 0"),
        ((1 - given.float()) * -1e9, "attention_mask: expected 0 and 1 alone, got [-1000000000.0...] in row 0"),
        (hole, "attention_mask: expected tokens in one piece, padded at one end or both, got padding between them in"),
        (empty, "padded at one end or both, got a row without tokens in row 1; build rows"),
    ):
        with refuses(message):
            METHODS[method](model, batch | {"attention_mask": mask})
    for mask in (given.bool(), given.float()):
        METHODS[method](model, batch | {"attention_mask": mask})


def test_masks_of_four_axes_are_for_the_library(model, two):
    mask = torch.ones(2, 1, *2 * (two["input_ids"].shape[1],), dtype=torch.bool).tril()
    unpadded = {name: value for name, value in two.items() if name not in ("segment_ids", "attention_mask")}
    assert_plain(model, unpadded, unpadded | {"attention_mask": mask})
    with refuses("attention_mask: expected a tensor of 0 and 1 of shape (B, L), got (2, 1, ...", TypeError):
        model.ground(**two | {"attention_mask": mask})


@pytest.mark.parametrize("method", ["generate", "ground", "encode_scene"])
def test_ids_outside_the_vocabulary(model, two, prefixes, method):
    batch = choose(method, two, prefixes)
    for wrong in (99, -1):
        ids = batch["input_ids"].clone()
        ids[1, -1] = wrong
        with refuses(f"{method}: expected input_ids in 0..98, got [{wrong}]; build rows with"):
            METHODS[method](model, batch | {"input_ids": ids})


def test_scenes_with_a_question_behind_them(model, two, prefixes):
    """Also where nothing says which token is a question's: it ends with the end of its turn."""
    with refuses("encode_scene: expected rows without questions, got text; call the processor without text= and ask"):
        model.encode_scene(**two)
    ids = prefixes["input_ids"].clone()
    ids[1, -1] = EOS_TOKEN
    with refuses("encode_scene: expected rows without questions, got text; call the processor without text= and ask"):
        model.encode_scene(**prefixes | {"input_ids": ids, "segment_ids": None})
    # The end of the turn before the views is no question's.
    ids = prefixes["input_ids"].clone()
    ids[1, 0] = EOS_TOKEN
    model.encode_scene(**prefixes | {"input_ids": ids, "segment_ids": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            {"num_hidden_layers": 1},
            "scene: expected keys and values of 1 layers, got other layers; these scenes were",
        ),
        ({"num_key_value_heads": 1}, "scene: expected keys of layer 0, floating point, of shape (2, 1, ...), got"),
        ({"head_dim": 6}, "scene: expected keys of layer 0, floating point, of shape (2, ... 6), got"),
    ],
)
def test_scenes_of_another_model(model, prefixes, text, message):
    scene = model.encode_scene(**prefixes)
    other = make_model(denoiser_config=None)
    for name, value in text.items():
        setattr(other.config.text_config, name, value)
    questions = {"input_ids": torch.tensor([[4, 5, 6], [7, 8, 9]]), "scene_index": [0, 1]}
    for ask in (other.generate, other.ground):
        with refuses(message):
            ask(**questions, scene=scene)
    for index, scores in enumerate(model.ground(**questions, scene=scene)):
        alone = model.ground(**{name: value[index : index + 1] for name, value in questions.items()}, scene=scene)
        torch.testing.assert_close(scores, alone[0])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("patch_valid", "patch_coords"),
        ("proposal_mask", "proposal_boxes"),
        ("proposal_patches", "proposal_boxes"),
        ("proposal_tokens", "proposal_boxes"),
    ],
)
def test_half_of_a_pair(model, two, name, other):
    with refuses(f"{name}: expected {other} with it, which it is about, got none; pass both or neither."):
        pair = [name, "proposal_mask", "proposal_patches", other]
        tokens = torch.ones(2, 3, 2, GRID, GRID, dtype=torch.bool)
        given = two | {"proposal_tokens": tokens}
        forward(model, {key: value for key, value in two.items() if key not in pair} | {name: given[name]})
    rest = {key: value for key, value in two.items() if key != name}
    assert_plain(model, rest)


# Numbers that are no metres, and targets that are none


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("patch_coords", lambda x: x * 1000, "patch_coords: expected metres, at most 1000, got ... in row 0; divide"),
        (
            "proposal_boxes",
            lambda x: x * 1e4,
            "proposal_boxes: expected metres, at most 1000, got ... in row 0; divide",
        ),
        (
            "proposal_boxes",
            lambda x: -x,
            "proposal_boxes: expected sizes >= 0 (centre xyz, size xyz), got [...] in row",
        ),
    ],
)
def test_numbers_that_are_no_metres(model, two, name, change, message):
    for ask in (model, model.ground):
        with refuses(message):
            ask(**two | {name: change(two[name])})
    # A near miss: a building of half a kilometre.
    assert_plain(model, two | {name: two[name].clamp(min=0.1) * 100})


def test_points_that_are_no_metres(model):
    ids = torch.tensor([[4, 5, 6], [4, COORD_TOKEN, 6]])
    far = torch.full((2, 1, 3), 5e5)
    with refuses(
        "query_coords: expected a point for the <coord> of row 1, got [500000.0,...finite and in metres, at most"
    ):
        forward(model, {"input_ids": ids}, query_coords=far)
    assert_plain(model, {"input_ids": ids, "query_coords": far / 1000})


def test_edges_that_are_no_metres(model, prefixes):
    edges = torch.tensor([[-3.0, -3.0, 3.0, 3.0], [-3000.0, -3000.0, 3000.0, 3000.0]])
    with refuses("y_max, metres up to 1000, got [-3000.0, -3000.0, 3000.0, 3000.0] for scene 1; pass x_min"):
        model.reconstruct([], num_inference_steps=1, bev_bounds=edges, **prefixes)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("loss_weights", lambda x: x * float("nan"), "loss_weights: expected finite numbers >= 0, got [nan, nan"),
        ("loss_weights", lambda x: -x, "loss_weights: expected finite numbers >= 0, got [-"),
        (
            "shift_labels",
            lambda x: x + 1000 * (x > 0),
            "labels: expected tokens in 0..98, or -100 for ignored",
        ),
        (
            "shift_labels",
            lambda x: x.clamp(min=-5),
            "labels: expected tokens in 0..98, or -100 for ignored positions",
        ),
        (
            "grounding_labels",
            lambda x: -x,
            "grounding_labels: expected 0 and 1, got a negative number or NaN; pass tar",
        ),
        (
            "grounding_labels",
            lambda x: x * float("nan"),
            "grounding_labels: expected 0 and 1, got a negative number or",
        ),
        (
            "proposal_mask",
            torch.zeros_like,
            "expected targets among the real proposals, got proposal ... for question",
        ),
    ],
)
def test_targets_that_are_none(model, name, change, message):
    batch = make_collator(0.0)([make_row(seed, 2, 3, ["ground", "text"]) for seed in (4, 5)])
    assert float(forward(model, batch).lm_loss) == pytest.approx(compute_lm_loss(model, batch), rel=1e-5)
    with refuses(message):
        forward(model, batch, **{name: change(batch[name])})


# Arguments of other kinds


def test_arguments_of_other_kinds(model, two, prefixes):
    scene = model.encode_scene(**prefixes)
    questions = {"input_ids": torch.tensor([[4, 5, 6], [7, 8, 9]])}
    for ask in (model.generate, model.ground):
        with refuses(
            "scene_index: expected 2 whole numbers in 0..1, got '01'; number the scenes in the order", TypeError
        ):
            ask(**questions, scene=scene, scene_index="01")
    with refuses("generator: expected a torch.Generator, got 5; pass torch.Generator().manual_seed(5)", TypeError):
        model.reconstruct([1], num_inference_steps=1, generator=5, **prefixes)
    batch = make_collator(0.0)([make_row(seed, 2, 3, ["text"]) for seed in (4, 5)])
    with refuses("num_items_in_batch: expected 4 counts ... got shape int; a stock Trainer counts tokens"):
        forward(model, batch, num_items_in_batch=5)
    hidden = {"bool_masked_views": torch.tensor([[True, False], [True, False]])}
    for name in ("view_timesteps", "bev_timesteps"):
        with refuses(f"{name}: expected 0..999, got [5000, 0...]; draw them from the schedule"):
            forward(model, batch, **hidden, **{name: torch.tensor([5000, 0, 0, 0])})
    for count in (torch.tensor(3), np.int64(3)):
        answers = model.generate(**two, max_new_tokens=count)
        assert answers.shape[1] <= two["input_ids"].shape[1] + 3
        assert torch.equal(answers, model.generate(**two, max_new_tokens=3))


def test_features_of_what_are_no_views(model, two):
    views = two["pixel_values"].flatten(0, 1)
    for wrong in (views[0], views[:2].byte(), two["pixel_values"][None]):
        with refuses(
            "pixel_values: expected normalised floating-point views of shape (B, V, 3, S, S) or (R, 3, S, S)"
        ):
            model.get_image_features(wrong)
    with refuses("pixel_values: expected finite numbers, got NaN or infinity in row 1; look at the scene"):
        model.get_image_features(views.index_fill(0, torch.tensor([1]), float("nan")))
    wanted = model.get_image_features(two["pixel_values"], torch.ones(two["pixel_values"].shape[:2]).bool())
    assert torch.equal(model.get_image_features(views).pooler_output, wanted.pooler_output)
