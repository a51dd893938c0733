"""`generate`: every argument of the library's own, with views and with `scene=`; where answers end; what they hold."""

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ross3d.modeling_ross3d import Ross3DForConditionalGeneration
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.tests.fabricate import COORD_TOKEN, IMAGE_TOKEN, make_collator, make_config, make_model, make_row
from ross3d.tests.posed_views import make_views
from ross3d.tests.tiny import get_checkpoint


QUESTIONS = ["How many chairs are there?", "What is on the table?"]
LENGTH = 6


@pytest.fixture(scope="module")
def processor():
    return Ross3DProcessor.from_pretrained(get_checkpoint())


@pytest.fixture(scope="module")
def model():
    return Ross3DForConditionalGeneration.from_pretrained(get_checkpoint()).eval()


@pytest.fixture(scope="module")
def asked(model, processor):
    """The same two questions about two scenes, with views and about scenes that were read before."""
    views = [make_views(num_views=3, seed=1), make_views(num_views=2, num_proposals=2, seed=2)]
    views = {name: [view[name] for view in views] for name in views[0]}
    scene = model.encode_scene(**processor(**views))
    return {
        "views": dict(processor(**views, text=[[question] for question in QUESTIONS])),
        "scene": {"scene": scene, **processor(text=QUESTIONS, scene_index=[0, 1])},
    }


@pytest.fixture(params=["views", "scene"])
def inputs(asked, request):
    return dict(asked[request.param])


def answer(model, inputs, **settings) -> list[list[int]]:
    """Ids of the answers alone."""
    length = {} if "generation_config" in settings else {"max_new_tokens": LENGTH}
    ids = model.generate(**inputs, **length, **settings)
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


class Script(LogitsProcessor):
    """Makes row i say the words of `rows[i]`, one after the other, in any beam."""

    def __init__(self, rows: list[list[int]], width: int):
        self.rows, self.width = rows, width

    def __call__(self, input_ids, scores):
        copies = len(input_ids) // len(self.rows)
        step = input_ids.shape[1] - self.width
        scores = scores - 1e4
        for row in range(len(input_ids)):
            scores[row, self.rows[row // copies][step]] += 2e4
        return scores


@pytest.mark.parametrize("reader", ["tokenizer", "processor"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_stop_strings_end_an_answer(model, processor, inputs, settings, reader):
    """Each row ends with the piece that completes the string; the other goes on. The processor has a tokenizer."""
    tokenizer = processor.tokenizer
    table, chair, lamp, end = (tokenizer.encode(word, add_special_tokens=False)[0] for word in "tcl.")
    rows = [[table, end, chair, lamp, lamp, lamp], [chair, table, table, end, lamp, lamp]]
    script = Script(rows, inputs["input_ids"].shape[1])
    for string, wanted in {
        ".": [[table, end], [chair, table, table, end]],
        "cl": [[table, end, chair, lamp], rows[1]],
    }.items():
        found = answer(model, inputs, stop_strings=[string, "never"], **settings,
                       tokenizer=tokenizer if reader == "tokenizer" else processor,
                       logits_processor=LogitsProcessorList([script]))  # fmt: skip
        # Behind the string stands padding, for which beams take the end token.
        rest = {tokenizer.pad_token_id, tokenizer.eos_token_id}
        assert [[token for token in row if token not in rest] for row in found] == wanted


def test_stop_strings_without_a_tokenizer_are_refused(model, inputs):
    with pytest.raises(ValueError, match="pass the model's tokenizer to the `tokenizer` argument of `generate`"):
        answer(model, inputs, stop_strings=["."])


class Only(LogitsProcessor):
    """Leaves one word."""

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids, scores):
        kept = torch.full_like(scores, float("-inf"))
        kept[:, self.token] = scores[:, self.token]
        return kept


class EndAfter(StoppingCriteria):
    def __init__(self, length: int):
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)


class Pieces(BaseStreamer):
    def __init__(self):
        self.tokens, self.has_ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.has_ended = True


def test_processors_criteria_and_prefix_functions_reach_the_loop(model, inputs):
    width = inputs["input_ids"].shape[1]
    assert answer(model, inputs, logits_processor=LogitsProcessorList([Only(7)])) == [[7] * LENGTH] * 2
    ended = answer(model, inputs, stopping_criteria=StoppingCriteriaList([EndAfter(width + 2)]))
    assert ended == [row[:2] for row in answer(model, inputs)]
    allowed = answer(model, inputs, prefix_allowed_tokens_fn=lambda row, ids: [8 + row])
    assert allowed == [[8] * LENGTH, [9] * LENGTH]


def test_generation_configs_reach_the_loop(model, inputs):
    """Of the library's own kind, also one with rules of its own."""
    short = answer(model, inputs, generation_config=GenerationConfig(max_new_tokens=3))
    assert short == [row[:3] for row in answer(model, inputs)]
    banned = answer(model, inputs)[0][0]
    config = GenerationConfig(max_new_tokens=LENGTH, bad_words_ids=[[banned]])
    found = answer(model, inputs, generation_config=config)
    assert banned not in found[0] and len(found[0]) == LENGTH


def test_streamers_hear_every_piece(model, asked):
    for inputs in asked.values():
        one = {name: value[:1] if torch.is_tensor(value) else value for name, value in inputs.items()}
        streamer = Pieces()
        ids = model.generate(**one, max_new_tokens=LENGTH, streamer=streamer)
        assert streamer.has_ended and streamer.tokens == ids[0].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {"assistant_model": "itself"},
        {"prompt_lookup_num_tokens": 2},
        {"custom_generate": "own"},
        {"synced_gpus": False},
        {"max_time": 600.0},
        {"top_k": 1, "do_sample": True},
        {"guidance_scale": 1.0},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_ways_to_the_same_answer(model, asked, settings):
    def sample(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        return model._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    named = {"itself": model, "own": sample}
    settings = {name: named[value] if isinstance(value, str) else value for name, value in settings.items()}
    for inputs in asked.values():
        if "assistant_model" in settings or "prompt_lookup_num_tokens" in settings:
            inputs = {name: value[:1] if torch.is_tensor(value) else value for name, value in inputs.items()}
        assert answer(model, inputs, **settings) == answer(model, inputs)


def test_negative_prompts_reach_the_loop(model, inputs):
    plain = answer(model, inputs)
    pushed = answer(model, inputs, guidance_scale=3.0, negative_prompt_ids=torch.tensor([[9, 8], [7, 6]]))
    assert pushed != plain and [len(row) for row in pushed] == [LENGTH] * 2


def test_names_that_nobody_knows_are_refused(model, inputs):
    for name in ("max_new_tokns", "tokenzier", "views"):
        with pytest.raises(ValueError, match=rf"are not used by the model: \['{name}'\]"):
            model.generate(**inputs, **{name: 3})
    # Straight into the model, the tokenizer of stop strings is none of its arguments.
    row = {name: value for name, value in inputs.items() if name not in ("scene", "scene_index", "segment_ids")}
    with pytest.raises(TypeError, match="the processor's output and arguments of Transformers, got tokenizer"):
        model(**row, tokenizer=3)


def test_a_scene_takes_no_other_cache(model, asked):
    with pytest.raises(ValueError, match="expected no cache_implementation with scene=, which is already a cache"):
        model.generate(**asked["scene"], cache_implementation="static")
    config = GenerationConfig(cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="expected no cache_implementation with scene=, which is already a cache"):
        model.generate(**asked["scene"], generation_config=config)
    assert answer(model, asked["views"], cache_implementation="static") == answer(model, asked["views"])


# What an answer never holds


def make_eager_writer():
    """A model that would say `<image>`, then `<coord>`, wherever it may."""
    writer = make_model(text_config=make_config().text_config.to_dict() | {"tie_word_embeddings": False}).eval()
    with torch.no_grad():
        writer.lm_head.weight.zero_()
        writer.lm_head.weight[IMAGE_TOKEN], writer.lm_head.weight[COORD_TOKEN] = 5.0, 4.0
        writer.lm_head.weight[3] = 0.1
        writer.model.language_model.norm.weight.zero_()
    # All states are alike, and positive.
    writer.model.language_model.norm.register_forward_hook(lambda module, args, output: torch.ones_like(output))
    return writer


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"generation_config": GenerationConfig(max_new_tokens=3)},
        {"generation_config": GenerationConfig(max_new_tokens=3, suppress_tokens=[7])},
        {"suppress_tokens": [7]},
        {"num_beams": 3},
        {"do_sample": True},
        {"prompt_lookup_num_tokens": 2},
    ],
    ids=str,
)
def test_placeholders_are_never_written(settings):
    """Neither with a config that knows nothing of them nor where the model's own was put in its place."""
    writer = make_eager_writer()
    ids = torch.tensor([[4, 5, 6]] if "prompt_lookup_num_tokens" in settings else [[4, 5, 6], [7, 8, 9]])
    with torch.no_grad():
        assert (writer(input_ids=ids).logits[:, -1].argmax(dim=-1) == IMAGE_TOKEN).all()
    limit = {} if "generation_config" in settings else {"max_new_tokens": 3}
    for config in (writer.generation_config, GenerationConfig(pad_token_id=0, eos_token_id=98)):
        writer.generation_config = config
        written = writer.generate(input_ids=ids, **limit, **settings)[:, 3:]
        assert written.shape[1] == 3 and not set(written.flatten().tolist()) & {IMAGE_TOKEN, COORD_TOKEN}
        if "do_sample" not in settings:
            assert (written == 3).all()


def test_placeholders_are_suppressed_after_saving_another_generation_config(tmp_path):
    writer = make_model()
    writer.generation_config = GenerationConfig(max_new_tokens=7, pad_token_id=0)
    writer.save_pretrained(tmp_path)
    loaded = Ross3DForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert loaded.generation_config.max_new_tokens == 7
    scores = []

    class Spy(LogitsProcessor):
        def __call__(self, input_ids, given):
            scores.append(given)
            return given

    out = loaded.generate(input_ids=torch.tensor([[4, 5], [6, 7]]), logits_processor=LogitsProcessorList([Spy()]),
                          output_scores=True, return_dict_in_generate=True)  # fmt: skip
    # Behind those of the user: what these bring in is suppressed as well.
    assert len(scores) == 7 and scores[0][:, IMAGE_TOKEN].isfinite().all()
    for step in out.scores:
        assert step[:, [IMAGE_TOKEN, COORD_TOKEN]].isneginf().all() and step[:, 3].isfinite().all()


# Where an answer ends


def make_short(limit: int, **rope) -> Ross3DForConditionalGeneration:
    text = make_config().text_config.to_dict() | {"max_position_embeddings": limit}
    return make_model(text_config=text | rope).eval()


def make_prompts(num_views: int = 2) -> dict[str, torch.Tensor]:
    """Two scenes with a question each, of the same length."""
    rows = [make_row(seed, num_views, 3, []) for seed in (3, 4)]
    batch = make_collator(0.0)(rows)
    names = ("input_ids", "attention_mask", "segment_ids", "pixel_values", "view_mask", "patch_coords", "patch_valid")
    return {name: batch[name] for name in names if name in batch}


def ask_of(prompts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with three words of question behind each scene."""
    words = torch.tensor([[5, 6, 7], [8, 9, 10]])
    longer = {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "segment_ids": torch.ones_like(words),
    }
    return prompts | {name: torch.cat([prompts[name], value], dim=1) for name, value in longer.items()}


@pytest.mark.parametrize("way", ["views", "scene", "scene copied"])
@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 50},
        {"max_length": 200},
        {"generation_config": GenerationConfig(max_new_tokens=50)},
        {"max_new_tokens": 50, "num_beams": 2},
        {},
    ],
    ids=str,
)
def test_an_answer_ends_at_the_limit(way, settings):
    """With a warning, and with the very words that a longer context would have begun with."""
    prompts = make_prompts()
    length = prompts["input_ids"].shape[1]
    room = 4
    answers = []
    for limit in (length + 3 + room, 256):
        built = make_short(limit)
        if way == "scene copied":
            built.set_attn_implementation("eager")
        inputs = ask_of(prompts)
        if way != "views":
            scene = built.encode_scene(**prompts)
            words = inputs["input_ids"][:, length:]
            inputs = {"scene": scene, "scene_index": [0, 1], "input_ids": words}
        width = inputs["input_ids"].shape[1]
        given = settings if limit < 256 else {"max_new_tokens": room, "num_beams": settings.get("num_beams", 1)}
        if limit < 256:
            with pytest.warns(UserWarning, match=rf"new tokens behind {length + 3} positions pass the limit"):
                ids = built.generate(**inputs, **given, min_new_tokens=2)
        else:
            ids = built.generate(**inputs, **given, min_new_tokens=2)
        answers.append(ids[:, width:])
    short, long = answers
    assert short.shape[1] <= room and short.shape[1] > 1
    if settings.get("num_beams", 1) == 1:
        assert torch.equal(short, long[:, : short.shape[1]])


def test_rows_that_have_finished_keep_their_answers_at_the_limit():
    prompts = ask_of(make_prompts())
    length = prompts["input_ids"].shape[1]
    long = make_short(256).generate(**prompts, max_new_tokens=5, min_new_tokens=5)[:, length:]
    end = next(int(token) for token in long[0, 1:3] if token not in long[1] and token != long[0, 0])
    place = long[0].tolist().index(end)
    with pytest.warns(UserWarning, match="answers end after 5 at the latest"):
        found = make_short(length + 5).generate(**prompts, max_new_tokens=30, eos_token_id=end)[:, length:]
    assert found.shape == (2, 5) and torch.equal(found[1], long[1])
    assert torch.equal(found[0, : place + 1], long[0, : place + 1]) and not found[0, place + 1 :].any()


def test_prompts_that_leave_no_room_are_refused_before_anything_is_computed(monkeypatch):
    prompts = ask_of(make_prompts())
    length = prompts["input_ids"].shape[1]
    full = make_short(length)
    message = rf"generate: expected fewer than {length} positions \(max_position_embeddings\), so that an answer has"
    with pytest.raises(ValueError, match=message), monkeypatch.context() as patch:
        patch.setattr(full.model, "forward", None)
        full.generate(**prompts, max_new_tokens=1)
    long = make_short(256)
    assert torch.equal(full(**prompts).logits, long(**prompts).logits)
    found = make_short(length + 1).generate(**prompts, max_new_tokens=1)
    assert torch.equal(found, long.generate(**prompts, max_new_tokens=1))


def test_guesses_stay_within_the_limit():
    """An assistant and looked-up words propose several tokens at once, none of them behind the limit."""
    prompts = {name: value[:1] for name, value in ask_of(make_prompts()).items()}
    length = prompts["input_ids"].shape[1]
    short = make_short(length + 4)
    wanted = make_short(256).generate(**prompts, max_new_tokens=4, min_new_tokens=4)
    for guesses in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": short}, {"cache_implementation": "static"}):
        with pytest.warns(UserWarning, match="pass the limit"):
            found = short.generate(**prompts, max_new_tokens=40, min_new_tokens=4, **guesses)
        assert torch.equal(found, wanted), guesses


# Positions beyond those of training

SCALED = {
    "linear": ({"rope_type": "linear", "factor": 2.0}, 40, 80),
    "dynamic": ({"rope_type": "dynamic", "factor": 2.0}, 40, 80),
    "yarn": ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 40}, 40, 80),
    "yarn, original left out": ({"rope_type": "yarn", "factor": 2.5}, 40, 100),
    "yarn, scaled length": ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 40}, 80, 80),
    "longrope": (
        {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0,
         "original_max_position_embeddings": 40}, 80, 80,
    ),
    "llama3": (
        {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 40}, 80, 80,
    ),
    "default": ({"rope_type": "default"}, 40, 40),
    "default, trained on longer rows": ({"rope_type": "default", "original_max_position_embeddings": 60}, 40, 60),
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_scaled_positions_reach_as_far_as_their_factor_says(kind, tmp_path):
    rope, longest, limit = SCALED[kind]
    built = make_short(longest, rope_parameters={"rope_theta": 10000.0, **rope})
    assert built.config.context_length == limit
    ids = torch.randint(1, 80, (2, limit), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = built(input_ids=ids).logits
        assert torch.equal(logits, built.lm_head(built.model.language_model(input_ids=ids).last_hidden_state))
        with pytest.raises(ValueError, match=rf"expected at most {limit} positions \(max_position_embeddings\), got"):
            built(input_ids=torch.cat([ids, ids[:, :1]], dim=1))
    start = limit - 6
    with pytest.warns(UserWarning, match=f"pass the limit of {limit}"):
        found = built.generate(input_ids=ids[:, :start], max_new_tokens=9, min_new_tokens=6)
    assert found.shape == (2, limit)
    built.save_pretrained(tmp_path)
    assert Ross3DForConditionalGeneration.from_pretrained(tmp_path).config.context_length == limit


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_scenes_are_asked_about_beyond_the_original_length(kind):
    """A scene of 51 positions where 40 were trained: with views, and read before, the same answer."""
    rope, longest, limit = SCALED[kind]
    built = make_short(longest, rope_parameters={"rope_theta": 10000.0, **rope})
    prompts = make_prompts(num_views=4)
    length = prompts["input_ids"].shape[1]
    assert longest < length < limit
    wanted = built.generate(**ask_of(prompts), max_new_tokens=5, min_new_tokens=5)[:, length + 3 :]
    scene = built.encode_scene(**prompts)
    words = ask_of(prompts)["input_ids"][:, length:]
    found = built.generate(scene=scene, scene_index=[0, 1], input_ids=words, max_new_tokens=5, min_new_tokens=5)
    assert torch.equal(found[:, 3:], wanted)
