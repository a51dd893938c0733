"""Features of proposals from the vision tower, the language model's output states, or both (3DRS)."""

import copy

import numpy as np
import pytest
import torch

from ross3d.geometry_ross3d import pack_patches
from ross3d.grounding_ross3d import get_proposal_features
from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.scene_cache_ross3d import sum_bytes
from ross3d.tests.fabricate import (
    GRID,
    GROUND_TOKEN,
    IMAGE_TOKEN,
    PATCH_GRID,
    add_proposal_tokens,
    make_collator,
    make_model,
    make_row,
)
from ross3d.tests.posed_views import make_views
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor


POOLINGS = ("states", "mean")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
QUESTIONS = ["Why?", "the lamp", "What color is the table next to the bed?"]
# Views, proposals and depth of each scene.
SCENES = ((2, 3, True), (4, 1, True), (3, 5, False))
SCENE_KEYS = ("images", "depth_maps", "intrinsics", "cam2world", "proposal_boxes")


@pytest.fixture(scope="module")
def processor():
    processor = make_tiny_processor()
    # Depth is noise here: a box has few of the points of any patch or token.
    processor.object_patch_threshold, processor.object_token_threshold = 0.125, 0.1
    inputs = processor(**make_scene(0))
    for name in ("proposal_patches", "proposal_tokens"):
        assert inputs[name].flatten(2).any(dim=2).all() and not inputs[name].all()
    return processor


@pytest.fixture(scope="module")
def models(processor) -> dict[str, Ross3DForConditionalGeneration]:
    """One set of weights under every rule."""
    built = {pooling: make_tiny_model(processor.tokenizer, seed=1).eval() for pooling in ("vision", *POOLINGS)}
    for pooling, model in built.items():
        model.config.proposal_pooling = pooling
    return built


def make_boxes(num_views: int, num_proposals: int, seed: int) -> np.ndarray:
    """Large boxes, each of which the views of `make_scene` see in part."""
    boxes = make_views(num_views, num_proposals, seed=seed)["proposal_boxes"]
    return boxes * np.float32([1, 1, 1, 2, 2, 2]) - np.float32([0.5, 0, 0, 0, 0, 0])


def make_scene(index: int) -> dict:
    views, proposals, depth = SCENES[index]
    scene = make_views(views, proposals, seed=index) | {"proposal_boxes": make_boxes(views, proposals, index)}
    return scene if depth else {key: scene[key] for key in ("images", "proposal_boxes")}


def make_batch(processor, **words) -> dict:
    scenes = [make_scene(index) for index in range(len(SCENES))]
    return dict(processor(**{key: [scene.get(key) for scene in scenes] for key in SCENE_KEYS}, **words))


def get_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, where both are finite; they are infinite at the same places."""
    assert found.shape == wanted.shape and torch.equal(found.isfinite(), wanted.isfinite())
    return float((found - wanted)[wanted.isfinite()].abs().max())


# ---- the rule


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("views", "proposals"), [(2, 4), (3, 3)])
@pytest.mark.parametrize("packed", [False, True])
def test_features_by_hand(pooling, views, proposals, packed):
    """One scene's proposals after the other; the last is padding, the one before it has neither patch nor token."""
    model = make_model(denoiser_config=None, proposal_pooling=pooling).eval()
    generator = torch.Generator().manual_seed(views)
    boxes = torch.rand(2, proposals, 6, generator=generator) * 3
    patch_features = torch.randn(2, views, PATCH_GRID**2, 32, generator=generator)
    states = torch.randn(2, views, GRID**2, 32, generator=generator)
    patches = torch.rand(2, proposals, views, PATCH_GRID, PATCH_GRID, generator=generator) > 0.8
    tokens = torch.rand(2, proposals, views, GRID, GRID, generator=generator) > 0.7
    real = torch.ones(2, proposals, dtype=torch.bool)
    real[1, -1] = False
    for member in (patches, tokens):
        member[:, -2], member[1, -1] = False, False
    given = [pack_patches(member) if packed else member for member in (patches, tokens)]
    found, mask = get_proposal_features(model, patch_features, boxes, real, given[0], states, given[1])
    assert torch.equal(mask, real)
    centres = model.model.get_position_embedding(boxes[..., :3])
    for row, place in real.nonzero().tolist():
        seen = patch_features[row][patches[row, place].flatten(1)]
        read = states[row][tokens[row, place].flatten(1)]
        vision = centres[row, place] + (seen.mean(dim=0) if len(seen) else 0)
        language = read.mean(dim=0) if len(read) else torch.zeros(32)
        wanted = language if pooling == "states" else (vision + language) / 2
        torch.testing.assert_close(found[row, place], wanted)
    assert torch.equal(found[0, -2], (centres[0, -2] if pooling == "mean" else torch.zeros(32)) / 2)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("views", "proposals", "masked"), [(2, 3, None), (4, 5, None), (4, 3, [1, 2])])
def test_states_are_those_of_the_language_model(pooling, views, proposals, masked):
    """Scores of a forward pass by hand, from the states at the placeholders; a masked view has the states it has."""
    model = make_model(denoiser_config=None, proposal_pooling=pooling).eval()
    row = add_proposal_tokens(make_row(3, views, proposals, ["ground", "text", "ground"]))
    batch = make_collator(0.0)([row])
    if masked:
        batch["bool_masked_views"][0, masked] = True
        model.config.reconstruct_on_grounding_rows = True
    with torch.no_grad():
        found = model(**batch).grounding_scores[0]
        names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords")
        inner = model.model(
            **{name: batch[name] for name in (*names, "patch_valid", "bool_masked_views")}, return_dict=True
        )
        hidden, ids = inner.last_hidden_state[0], batch["input_ids"][0]
        places = hidden[ids == IMAGE_TOKEN].view(views, GRID, GRID + 1, -1)[:, :, :GRID]
        projected = model.get_image_features(batch["pixel_values"]).patch_features
        features = []
        for place, box in enumerate(row["proposal_boxes"]):
            patches, tokens = (row[name][place] for name in ("proposal_patches", "proposal_tokens"))
            vision = model.model.get_position_embedding(box[:3]) + projected[patches.flatten(1)].mean(dim=0)
            states = places[tokens].mean(dim=0)
            features.append(states if pooling == "states" else (vision + states) / 2)
        candidates = torch.stack([*features, model.grounding_head.no_target])
        wanted = model.grounding_head.query_mlp(hidden[ids == GROUND_TOKEN]) @ (
            model.grounding_head.proposal_mlp(candidates).T
        )
        torch.testing.assert_close(found[[0, 2]], wanted, rtol=1e-4, atol=1e-5)
        seen = model(**batch | {"bool_masked_views": torch.zeros_like(batch["bool_masked_views"])}).grounding_scores
    assert torch.allclose(seen[0, [0, 2]], wanted, atol=1e-4) == (masked is None)


def test_no_target_and_the_vision_rule_read_no_tokens(models, processor):
    """The score of "no target" is the same under every rule, since it is not halved; the default ignores tokens."""
    inputs = dict(processor(**make_scene(0), text=QUESTIONS))
    scores = {pooling: model.ground(**inputs) for pooling, model in models.items()}
    bare = {name: value for name, value in inputs.items() if name != "proposal_tokens"}
    assert torch.equal(models["vision"].ground(**bare), scores["vision"])
    for pooling in POOLINGS:
        assert torch.equal(scores[pooling][:, -1], scores["vision"][:, -1])
        assert not torch.allclose(scores[pooling][:, :-1], scores["vision"][:, :-1], atol=1e-3)


# ---- batches, packed rows, training


@pytest.mark.parametrize("pooling", POOLINGS)
def test_batches_and_packed_rows_score_what_single_ones_do(models, processor, pooling):
    """Scenes of other sizes, one of them without depth, and questions that share a row."""
    model = models[pooling]
    together = model.ground(**make_batch(processor, text=[QUESTIONS] * len(SCENES))).split(len(QUESTIONS))
    for index, (_, proposals, _) in enumerate(SCENES):
        for question, scores in zip(QUESTIONS, together[index], strict=True):
            alone = model.ground(**processor(**make_scene(index), text=question))[0]
            assert scores[proposals:-1].isinf().all()
            found = torch.cat([scores[:proposals], scores[-1:]])
            assert get_error(found, alone) <= TOLERANCE[torch.float32]


def train(model, batch) -> tuple[float, dict[str, torch.Tensor]]:
    """The grounding loss of a batch in training, and gradients of all weights that have one."""
    model.zero_grad()
    outputs = model.train()(**batch)
    outputs.loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return outputs.grounding_loss.item(), gradients


@pytest.mark.parametrize("pooling", POOLINGS)
def test_packed_rows_train_as_rows_of_one_question(processor, pooling):
    """Loss and gradients, which reach the language model through the proposals' states; bits of the collator too."""
    model = make_tiny_model(processor.tokenizer, seed=1)
    model.config.proposal_pooling = pooling
    scene, targets = make_scene(0), [[0], [1, 2], []]

    def make(**words) -> dict[str, torch.Tensor]:
        inputs = dict(processor(**scene, **words))
        return inputs | {"proposal_tokens": pack_patches(inputs["proposal_tokens"])}

    loss, gradients = train(model, make(text=QUESTIONS, answers=["<ground>"] * 3, target_objects=targets))
    alone = [
        train(model, make(text=question, answers="<ground>", target_objects=target))
        for question, target in zip(QUESTIONS, targets, strict=True)
    ]
    assert loss == pytest.approx(sum(value for value, _ in alone) / 3, rel=1e-5)
    largest = max(gradient.norm().item() for gradient in gradients.values())
    for name, gradient in gradients.items():
        mean = sum(others[name] for _, others in alone) / 3
        assert (gradient - mean).norm() <= 1e-5 * max(mean.norm().item(), 1e-2 * largest), name


@pytest.mark.parametrize("seen", [False, True])
def test_proposals_that_no_token_sees_give_no_large_gradient(processor, seen):
    """Their states are zero, which has no direction: the head scores them 0, and its new biases stay near zero."""
    model = make_tiny_model(processor.tokenizer, seed=1)
    model.config.proposal_pooling = "states"
    words = {"text": "the lamp", "answers": "<ground>", "target_objects": [1]}
    inputs = dict(processor(**make_scene(0), **words))
    if not seen:
        inputs["proposal_tokens"] = torch.zeros_like(inputs["proposal_tokens"])
    with torch.no_grad():
        assert bool((model(**inputs).grounding_scores[0, 0, :-1] == 0).all()) == (not seen)
    _, gradients = train(model, inputs)
    assert max(gradient.norm() for gradient in gradients.values()) < 1e3


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_training_with_activation_checkpointing(pooling, use_reentrant):
    rows = [add_proposal_tokens(make_row(seed, 2 + seed, 3, ["ground", "text"])) for seed in (0, 1)]
    batch = make_collator(0.0)(rows)
    assert batch["proposal_tokens"].dtype == torch.uint8
    wanted, gradients = train(make_model(proposal_pooling=pooling), batch)
    model = make_model(proposal_pooling=pooling)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    found, others = train(model, batch)
    assert found == wanted and gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)


# ---- encoded scenes


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_encoded_scenes_score_what_whole_rows_do(models, processor, pooling, dtype):
    """Scenes of other sizes, with the boxes that they were encoded with."""
    model = copy.deepcopy(models[pooling]).to(dtype)
    scene = model.encode_scene(**make_batch(processor))
    assert scene.visual_states is None
    lists = [QUESTIONS[:2], QUESTIONS[2:], QUESTIONS]
    wanted = model.ground(**make_batch(processor, text=lists))
    assert get_error(model.ground(scene=scene, **processor(text=lists)), wanted) <= TOLERANCE[dtype]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("way", ["memory", "joined", "disk"])
def test_new_boxes_in_an_encoded_scene(models, processor, pooling, way, tmp_path):
    """As if the scene had been encoded with them; the states of its views are kept with the patches."""
    model, given, index = models[pooling], make_scene(0), {}
    scene = model.encode_scene(**processor(**given), keep_patch_features=True)
    assert scene.visual_states.shape[:2] == scene.patch_features.shape[:2]
    boxes = make_boxes(2, 6, 9)
    geometry = {key: given[key] for key in ("depth_maps", "intrinsics", "cam2world")}
    asks = dict(processor(text=QUESTIONS, proposal_boxes=boxes, **geometry))
    wanted = model.ground(**processor(**given | {"proposal_boxes": boxes}, text=QUESTIONS))
    if way == "joined":
        other = model.encode_scene(**processor(**make_scene(1)), keep_patch_features=True)
        scene, index = type(scene).join([scene, other]), {"scene_index": [0, 0, 0]}
        names = ("proposal_boxes", "proposal_mask", "proposal_patches", "proposal_tokens")
        # Two views more, which see nothing of them.
        asks |= {name: torch.nn.functional.pad(asks[name], (0, 0, 0, 0, 0, 2)) for name in names[2:]}
        asks |= {name: torch.cat([asks[name]] * 2) for name in names}
    if way == "disk":
        scene.save(tmp_path / "room.scene", model, processor)
        scene = model.load_scene(tmp_path / "room.scene", processor)
    assert get_error(model.ground(scene=scene, **asks, **index), wanted) <= TOLERANCE[torch.float32]


def test_models_of_other_rules_share_no_scenes(models, processor, tmp_path):
    """In memory and on disk; nor do processors of another share."""
    inputs = dict(processor(**make_scene(0)))
    for keep in (False, True):
        scenes = {name: model.encode_scene(**inputs, keep_patch_features=keep) for name, model in models.items()}
        assert {name: scene.visual_states is not None for name, scene in scenes.items()} == {
            "vision": False, "states": keep, "mean": keep
        }  # fmt: skip
        for name, scene in scenes.items():
            scene.save(tmp_path / "room.scene", models[name], processor)
            for other, model in models.items():
                if other == name:
                    model.ground(scene=model.load_scene(tmp_path / "room.scene", processor), **processor(text="a"))
                    continue
                with pytest.raises(ValueError, match=r"^scene: expected .* encode"):
                    model.ground(scene=scene, **processor(text=QUESTIONS))
                with pytest.raises(ValueError, match="got scenes of other weights or another config"):
                    model.load_scene(tmp_path / "room.scene")
    mixed = [scenes["vision"], scenes["mean"]]
    with pytest.raises(ValueError, match="join: expected visual_states in all scenes or in none, got none in scene 0"):
        type(scene).join(mixed)
    moved = copy.deepcopy(processor)
    moved.object_token_threshold = 0.2
    with pytest.raises(ValueError, match="prepared with .*'object_token_threshold': 0.2.*_token_threshold': 0.1"):
        models["mean"].load_scene(tmp_path / "room.scene", moved)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", lambda x: None, r"expected visual_states, floating point, of shape \(1, 2, 16, 64\), got NoneType"),
        ("mean", lambda x: x[:, 1:].clone(), r"expected visual_states, floating .* got torch.float32 of \(1, 1, 16"),
        ("states", lambda x: x * float("nan"), "expected finite visual_states, got NaN or infinity"),
        ("vision", lambda x: torch.zeros(1, 2, 16, 64), "expected no visual_states beside these patch_features, got"),
    ],
)
def test_saved_states_that_are_none_of_the_model(models, processor, tmp_path, name, change, message):
    file, model = tmp_path / "room.scene", models[name]
    model.encode_scene(**processor(**make_scene(0)), keep_patch_features=True).save(file, model)
    model.load_scene(file)
    state = torch.load(file, weights_only=True)
    state["visual_states"] = change(state["visual_states"])
    torch.save(state | {"checksum": sum_bytes(state)}, file)
    with pytest.raises(ValueError, match=rf"room\.scene: {message}"):
        model.load_scene(file)


# ---- errors


@pytest.mark.parametrize("pooling", POOLINGS)
def test_patches_without_tokens_are_refused(models, processor, pooling):
    """Of a processor without the setting; without depth neither is there, and proposals have no states."""
    model, silent = models[pooling], make_tiny_processor()
    message = rf"expected them with proposal_patches for config.proposal_pooling='{pooling}', got None; set the"
    for method, words in ((model.ground, {"text": "the lamp"}), (model.encode_scene, {})):
        with pytest.raises(ValueError, match=f"^proposal_tokens: {message} processor's object_token_threshold"):
            method(**silent(**make_scene(0), **words))
        method(**processor(**make_scene(0), **words))
    asks = {"text": "the lamp", "answers": "<ground>", "target_objects": [0]}
    with pytest.raises(ValueError, match="^proposal_tokens: expected them with proposal_patches"):
        model(**silent(**make_scene(0), **asks))
    assert model.ground(**silent(**make_scene(2), text="the lamp")).isfinite().all()


@pytest.mark.parametrize("packed", [False, True])
def test_tokens_of_another_grid_are_refused(models, processor, packed):
    inputs = dict(processor(**make_scene(0), text="the lamp"))
    tokens = inputs["proposal_tokens"][..., :-1]
    given = pack_patches(tokens) if packed else tokens
    expected, got = ((1, 3, 2, 2), (1, 3, 2, 2)) if packed else ((1, 3, 2, 4, 4), (1, 3, 2, 4, 3))
    if packed:
        given = given[..., :1]
        got = (1, 3, 2, 1)
    with pytest.raises(ValueError) as error:
        models["mean"].ground(**inputs | {"proposal_tokens": given})
    assert str(error.value).startswith(f"proposal_tokens: expected shape {expected}, got {got}; build rows with")
