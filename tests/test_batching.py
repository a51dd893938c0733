"""Scenes in one batch answer as each does alone: views, proposals, depth and text differ, and so does the padding.

The processor makes the rows, a tiny random model reads them. In float32 the two ways differ by the order of additions
alone; in bfloat16 by what that order does to numbers of eight bits.
"""

import pytest
import torch

from ross3d.modeling_ross3d import LOSS_NAMES
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.fabricate import WORST_KINDS, make_collator, make_model
from ross3d.tests.posed_views import make_views
from ross3d.tests.test_contract_model import get_error
from ross3d.tools.make_tiny import make_tiny_model, make_tiny_processor, make_tiny_teacher


# Largest difference from the row alone, relative to the largest number of a tensor.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 0.04}
# Views, proposals, depth of each scene.
SCENES = [(2, 3, True), (4, 1, True), (3, 5, False)]
SCENE_KEYS = ("images", "depth_maps", "intrinsics", "cam2world", "proposal_boxes")
QUESTIONS = ["Why?", "How many chairs are there in the room, and what color is the table next to the bed?", "the lamp"]
POINT_QUESTIONS = ["What is at <coord>?", "Why?", "How large is the one at <coord>?"]
POINTS = [[[0.5, 1.0, 0.2]], [None], [[-1.0, 0.3, 0.9]]]
LISTS = [["Why?", "the lamp"], ["How many chairs are there?"], ["a", "What color is the table?", "Where?"]]


def make_scene(index: int) -> dict:
    views, proposals, depth = SCENES[index]
    scene = make_views(views, proposals, seed=index)
    return scene if depth else {key: scene[key] for key in ("images", "proposal_boxes")}


def make_batch(processor: Ross3DProcessor, **words) -> dict:
    """All scenes at once; `words` hold an item a scene."""
    scenes = [make_scene(index) for index in range(len(SCENES))]
    return dict(processor(**{key: [scene.get(key) for scene in scenes] for key in SCENE_KEYS}, **words))


def make_single(processor: Ross3DProcessor, index: int, **words) -> dict:
    return dict(processor(**make_scene(index), **{key: value[index] for key, value in words.items()}))


def get_paddings(batch: dict) -> list[int]:
    return (batch["attention_mask"] == 0).sum(dim=1).tolist()


@pytest.fixture(scope="module")
def processor():
    return make_tiny_processor()


@pytest.fixture(scope="module")
def model(processor):
    model = make_tiny_model(processor.tokenizer, seed=1)
    model.attach_teacher(make_tiny_teacher())
    with torch.no_grad():
        for weight in model.reconstruction_head.denoiser.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module")
def half_model(model, tmp_path_factory):
    """The same weights in bfloat16, as loading makes them: the reconstruction head stays in float32."""
    path = tmp_path_factory.mktemp("half")
    model.save_pretrained(path)
    loaded = type(model).from_pretrained(path, dtype=torch.bfloat16).eval()
    loaded.attach_teacher(make_tiny_teacher())
    return loaded


@pytest.fixture(params=["float32", "bfloat16"])
def either_model(request, model):
    return model if request.param == "float32" else request.getfixturevalue("half_model")


# One forward


@pytest.mark.parametrize(
    "words",
    [{"text": QUESTIONS}, {"text": POINT_QUESTIONS, "query_coords": POINTS}, {"text": LISTS}, {}],
    ids=["a question a scene", "questions with points", "packed rows", "scenes alone"],
)
def test_states_and_logits_equal_those_of_each_scene_alone(either_model, processor, words):
    batch = make_batch(processor, **words)
    assert len(set(get_paddings(batch))) == len(SCENES), "no two rows may have the same padding"
    with torch.no_grad():
        found = either_model(**batch, output_hidden_states=True)
        for index in range(len(SCENES)):
            single = make_single(processor, index, **words)
            wanted = either_model(**single, output_hidden_states=True)
            real = batch["attention_mask"][index].bool()
            tolerance = TOLERANCE[either_model.dtype]
            assert get_error(found.logits[index][real], wanted.logits[0]) <= tolerance
            for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
                assert get_error(one[index][real], other[0]) <= tolerance


def test_visual_states_equal_those_of_each_scene_alone(either_model, processor):
    batch = make_batch(processor, text=QUESTIONS)
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    hidden = torch.zeros_like(batch["view_mask"])
    hidden[:, 1] = True
    with torch.no_grad():
        found = either_model.model(**{name: batch[name] for name in names}, bool_masked_views=hidden)
        for index, (views, _, _) in enumerate(SCENES):
            single = make_single(processor, index, text=QUESTIONS)
            single = {name: single[name] for name in names if name in single}
            wanted = either_model.model(**single, bool_masked_views=hidden[index : index + 1, :views])
            error = get_error(found.visual_states[index, :views], wanted.visual_states[0])
            assert error <= TOLERANCE[either_model.dtype]
            assert not found.visual_states[index, views:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_of_a_batch_are_the_stated_means(dtype):
    """Answers, scenes and grounding questions count each once, wherever they stand, whatever stands beside them."""
    model = make_model().to(dtype)
    model.reconstruction_head.float()
    collate, rows = make_collator(), [kind.make_row(index) for index, kind in enumerate(WORST_KINDS)]
    alone = [row for row in rows if "view_mask" in row and len(row["view_mask"]) == 1 and "patch_coords" in row]
    assert alone, "a scene that hides its only view attends it, not the padding of others"
    with torch.no_grad():
        found = model.train()(**collate(rows))
        singles = [model(**collate([row])) for row in rows]
    counts = torch.stack([single.loss_counts for single in singles])
    assert torch.equal(found.loss_counts, counts.sum(dim=0)) and (found.loss_counts > 1).all()
    for column, name in enumerate(LOSS_NAMES):
        total = sum(single[name] * count for single, count in zip(singles, counts[:, column], strict=True))
        wanted = total / counts[:, column].sum()
        assert float(found[name]) == pytest.approx(float(wanted), rel=1e-6 if dtype == torch.float32 else 0.02), name


# Grounding


def assert_scores_equal(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    """Scores of one scene's questions within a batch of scenes with more proposals, and alone."""
    num_proposals = wanted.shape[1] - 1
    # A cosine is at most one: here the tolerance is absolute.
    assert float((found[:, :num_proposals] - wanted[:, :-1]).abs().amax()) <= tolerance
    assert float((found[:, -1] - wanted[:, -1]).abs().amax()) <= tolerance
    assert (found[:, num_proposals:-1] == float("-inf")).all()


@pytest.mark.parametrize("text", [QUESTIONS, LISTS], ids=["a question a scene", "packed rows"])
def test_grounding_equals_that_of_each_scene_alone(either_model, processor, text):
    found = either_model.ground(**make_batch(processor, text=text))
    first = 0
    for index in range(len(SCENES)):
        wanted = either_model.ground(**make_single(processor, index, text=text))
        part = found[first : first + len(wanted)]
        assert_scores_equal(part, wanted, TOLERANCE[either_model.dtype])
        first += len(wanted)
    assert first == len(found) and found.shape[1] == max(proposals for _, proposals, _ in SCENES) + 1


def test_grounding_a_list_equals_one_question_at_a_time(either_model, processor):
    scene = make_scene(0)
    found = either_model.ground(**processor(**scene, text=QUESTIONS))
    for question, scores in zip(QUESTIONS, found, strict=True):
        wanted = either_model.ground(**processor(**scene, text=question))
        assert_scores_equal(scores[None], wanted, TOLERANCE[either_model.dtype])


def test_grounding_with_and_without_the_slot_written(model, processor):
    scene = make_scene(0)
    plain = processor(**scene, text="the lamp")
    ground = torch.tensor([[processor.ground_token_id]])
    one = torch.ones_like(ground)
    written = dict(plain) | {
        "input_ids": torch.cat([plain["input_ids"], ground], dim=1),
        "attention_mask": torch.cat([plain["attention_mask"], one], dim=1),
        "segment_ids": torch.cat([plain["segment_ids"], one], dim=1),
    }
    assert torch.equal(model.ground(**written), model.ground(**plain))


def test_scores_of_forward_are_those_of_ground(model, processor):
    trained = make_batch(processor, text=LISTS, answers=[["<ground>"] * len(row) for row in LISTS],
                         target_objects=[[[0]] * len(row) for row in LISTS])  # fmt: skip
    with torch.no_grad():
        scores = model(**trained).grounding_scores
    asked = torch.tensor([[question < len(row) for question in range(3)] for row in LISTS])
    assert (scores[~asked] == float("-inf")).all()
    found = model.ground(**make_batch(processor, text=LISTS))
    # The two end differently: a trained answer follows the assistant's header as well.
    assert get_error(found, scores[asked]) <= TOLERANCE[torch.float32]


# Reconstruction


def test_reconstructions_equal_those_of_each_scene_alone(model, processor, monkeypatch):
    """With the same noise for all: zeros."""
    monkeypatch.setattr(torch, "randn", lambda shape, generator=None: torch.zeros(shape))
    bounds = torch.tensor([[-2.0, -2.0, 2.0, 2.0], [-1.0, -3.0, 5.0, 3.0], [0.0, 0.0, 4.0, 4.0]])
    batch = make_batch(processor, text=QUESTIONS) | {"bev_bounds": bounds}
    hidden = [[1], [0, 3], []]
    views, bevs = model.reconstruct(**batch, masked_views=hidden, num_inference_steps=2)
    assert [None if view is None else len(view) for view in views] == [1, 2, None]
    for index in range(len(SCENES)):
        single = make_single(processor, index, text=QUESTIONS) | {"bev_bounds": bounds[index : index + 1]}
        view, bev = model.reconstruct(**single, masked_views=hidden[index], num_inference_steps=2)
        assert get_error(bevs[index], bev[0]) <= 1e-4
        assert (views[index] is None) == (view[0] is None)
        if view[0] is not None:
            assert get_error(views[index], view[0]) <= 1e-4


# Answers

SEARCHES = [
    {},
    {"use_cache": False},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2},
    {"num_beams": 3, "use_cache": False},
    {"cache_implementation": "static"},
]


def get_name(search: dict) -> str:
    return " ".join(f"{key}={value}" for key, value in search.items()) or "greedy"


def generate(model, inputs: dict, **search) -> list[list[int]]:
    """Answers of at most six tokens, each as far as its end mark."""
    ids = model.generate(**inputs, max_new_tokens=6, **search)[:, inputs["input_ids"].shape[1] :]
    ends = {model.generation_config.eos_token_id, model.generation_config.pad_token_id}
    answers = []
    for row in ids.tolist():
        length = next((place for place, token in enumerate(row) if token in ends), len(row))
        answers.append(row[:length])
    return answers


@pytest.mark.parametrize(
    "words",
    [{"text": QUESTIONS}, {"text": POINT_QUESTIONS, "query_coords": POINTS}, {}],
    ids=["questions", "questions with points", "scenes alone"],
)
@pytest.mark.parametrize("search", SEARCHES, ids=get_name)
def test_answers_of_a_batch_equal_those_one_at_a_time(model, processor, search, words):
    batch = make_batch(processor, **words)
    paddings = get_paddings(batch)
    assert len(set(paddings)) == len(SCENES) and not batch["attention_mask"][paddings.index(max(paddings)), 0]
    found = generate(model, batch, **search)
    wanted = [
        answer
        for index in range(len(SCENES))
        for answer in generate(model, make_single(processor, index, **words), **search)
    ]
    assert found == wanted
    assert len({tuple(answer) for answer in found}) > 1, "rows that all say the same prove nothing"


@pytest.mark.parametrize("search", SEARCHES, ids=get_name)
def test_searches_agree_with_the_greedy_cached_one(model, processor, search):
    """Another cache changes nothing; beams are at least as probable as the greedy answer."""
    batch = make_batch(processor, text=QUESTIONS)
    greedy = generate(model, batch)
    found = generate(model, batch, **search)
    copies = search.get("num_return_sequences", 1)
    assert len(found) == copies * len(SCENES)
    if "num_beams" not in search:
        assert found == greedy
        return
    for index in range(len(SCENES)):
        single = make_single(processor, index, text=QUESTIONS)
        best = found[index * copies]
        if len(best) == len(greedy[index]) == 6:
            assert score_answer(model, single, best) >= score_answer(model, single, greedy[index]) - 1e-5
        if copies == 2:
            assert best != found[index * copies + 1]


def score_answer(model, inputs: dict, answer: list[int]) -> float:
    """Log probability of an answer."""
    ids = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
    names = ("pixel_values", "view_mask", "patch_coords", "patch_valid")
    with torch.no_grad():
        logits = model(input_ids=ids, **{name: inputs[name] for name in names if name in inputs}).logits
    logits[..., model.generation_config.suppress_tokens] = float("-inf")
    steps = logits.log_softmax(dim=-1)[0, -len(answer) - 1 : -1]
    return float(steps.gather(1, torch.tensor(answer)[:, None]).sum())


# Scenes that were read before


@pytest.mark.parametrize("search", [*SEARCHES[:1], *SEARCHES[2:4]], ids=get_name)
@pytest.mark.parametrize("points", [False, True], ids=["", "points"])
def test_answers_about_encoded_scenes_equal_uncached_ones(model, processor, search, points):
    words = {"text": POINT_QUESTIONS, "query_coords": POINTS} if points else {"text": QUESTIONS}
    scene = model.encode_scene(**make_batch(processor))
    assert len(set((~scene.prefix_mask).sum(dim=1).tolist())) == len(SCENES)
    asks = dict(
        processor(**{key: [[item] for item in value] if key == "text" else value for key, value in words.items()})
    )
    assert asks["scene_index"].tolist() == [0, 1, 2]
    assert generate(model, asks, scene=scene, **search) == generate(model, make_batch(processor, **words), **search)


def test_answers_about_encoded_scenes_in_any_order(model, processor):
    """Several questions about one scene, none about another, mixed up; the cache serves again afterwards."""
    scene = model.encode_scene(**make_batch(processor))
    questions, index = [QUESTIONS[1], "the lamp", "Why?", "Why?"], [2, 0, 2, 0]
    asks = dict(processor(text=questions, scene_index=index))
    wanted = [
        generate(model, dict(processor(**make_scene(number), text=question)))[0]
        for question, number in zip(questions, index, strict=True)
    ]
    before = [layer.keys.clone() for layer in scene.past_key_values.layers]
    assert generate(model, asks, scene=scene) == wanted
    assert generate(model, asks, scene=scene, num_beams=2) != [] and generate(model, asks, scene=scene) == wanted
    for layer, keys in zip(scene.past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_answers_contain_the_question_and_what_follows(model, processor):
    scene = model.encode_scene(**processor(**make_scene(0)))
    asks = processor(text=QUESTIONS)
    ids = model.generate(scene=scene, **asks, max_new_tokens=3, min_new_tokens=3)
    assert ids.shape == (3, asks["input_ids"].shape[1] + 3)
    assert torch.equal(ids[:, :-3], asks["input_ids"])


def test_encoded_scenes_equal_each_alone(either_model, processor):
    found = either_model.encode_scene(**make_batch(processor))
    tolerance = TOLERANCE[either_model.dtype]
    for index, (_, proposals, _) in enumerate(SCENES):
        wanted = either_model.encode_scene(**make_single(processor, index))
        real = found.prefix_mask[index]
        assert get_error(found.proposal_features[index, :proposals], wanted.proposal_features[0]) <= tolerance
        for one, other in zip(found.past_key_values.layers, wanted.past_key_values.layers, strict=True):
            assert get_error(one.keys[index][:, real], other.keys[0]) <= tolerance
            assert get_error(one.values[index][:, real], other.values[0]) <= tolerance


def test_scenes_encoded_apart_are_joined(model, processor):
    whole = model.encode_scene(**make_batch(processor), keep_patch_features=True)
    alone = [
        model.encode_scene(**make_single(processor, index), keep_patch_features=True) for index in range(len(SCENES))
    ]
    before = [layer.keys.clone() for layer in alone[1].past_key_values.layers]
    joined = type(whole).join(alone)
    asks = dict(processor(text=QUESTIONS, scene_index=[2, 0, 1]))
    assert generate(model, asks, scene=joined) == generate(model, asks, scene=whole)
    asks = dict(processor(text=LISTS))
    assert get_error(model.ground(scene=joined, **asks), model.ground(scene=whole, **asks)) <= TOLERANCE[model.dtype]
    for name in ("prefix_mask", "proposal_mask"):
        assert torch.equal(getattr(joined, name), getattr(whole, name))
    for name in ("proposal_features", "patch_features"):
        assert get_error(getattr(joined, name), getattr(whole, name)) <= TOLERANCE[model.dtype]
    for layer, keys in zip(alone[1].past_key_values.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)
    assert type(whole).join(alone[:1]) is alone[0]
    with pytest.raises(ValueError, match="join: expected at least one encoded scene, got none"):
        type(whole).join([])
    bare = model.encode_scene(**make_single(processor, 1))
    with pytest.raises(ValueError, match="expected patch_features in all scenes or in none, got none in scene 1"):
        type(whole).join([alone[0], bare])


def test_grounding_in_encoded_scenes_equals_uncached(either_model, processor):
    scene = either_model.encode_scene(**make_batch(processor))
    found = either_model.ground(scene=scene, **processor(text=LISTS))
    wanted = either_model.ground(**make_batch(processor, text=LISTS))
    assert torch.equal(found.isinf(), wanted.isinf())
    real = wanted.isfinite()
    assert float((found - wanted)[real].abs().amax()) <= TOLERANCE[either_model.dtype]


def test_grounding_with_points_in_encoded_scenes_equals_uncached(model, processor):
    scene = model.encode_scene(**make_batch(processor))
    asks = processor(text=[[question] for question in POINT_QUESTIONS], query_coords=POINTS)
    wanted = model.ground(**make_batch(processor, text=POINT_QUESTIONS, query_coords=POINTS))
    assert get_error(model.ground(scene=scene, **asks), wanted) <= TOLERANCE[torch.float32]


def test_grounding_new_boxes_in_an_encoded_scene(model, processor):
    """Boxes that come with the questions are scored as if the scene had been encoded with them."""
    given = make_scene(0)
    other = make_views(2, 6, seed=9)["proposal_boxes"]
    geometry = {key: given[key] for key in ("depth_maps", "intrinsics", "cam2world")}
    scene = model.encode_scene(**processor(**given), keep_patch_features=True)
    asks = processor(text=QUESTIONS, proposal_boxes=other, **geometry)
    wanted = model.ground(**processor(**given | {"proposal_boxes": other}, text=QUESTIONS))
    assert get_error(model.ground(scene=scene, **asks), wanted) <= TOLERANCE[torch.float32]


def test_no_proposals_leave_no_target_alone(model, processor):
    given = make_scene(0) | {"proposal_boxes": []}
    alone = model.ground(**processor(**given, text="the lamp"))
    assert alone.shape == (1, 1) and alone.isfinite().all()
    scenes = [given, make_scene(1)]
    batch = processor(**{key: [scene[key] for scene in scenes] for key in SCENE_KEYS}, text=["the lamp", "the lamp"])
    both = model.ground(**batch)
    assert both[0, 0] == float("-inf") and both[1].isfinite().all()
    assert get_error(both[:1, -1:], alone) <= TOLERANCE[torch.float32]


def test_packed_rows_are_not_for_generation(model, processor):
    packed = processor(**make_scene(0), text=QUESTIONS)
    message = r"generate: expected one question a row, got rows with up to 3; .*encode_scene"
    with pytest.raises(ValueError, match=message):
        model.generate(**packed, max_new_tokens=2)
    found = model.generate(**processor(**make_scene(0), text=QUESTIONS[:1]), max_new_tokens=2)
    scene = model.encode_scene(**processor(**make_scene(0)))
    wanted = model.generate(scene=scene, **processor(text=QUESTIONS[:1]), max_new_tokens=2)
    assert torch.equal(found[:, -2:], wanted[:, -2:])
