"""Recorded prompts: tokens of every benchmark's records at training and evaluation, what is supervised, video rows.

The recording's toy tokenizer has a token for each piece of Qwen2's pre-tokenisation; it is built here from the pieces
that were recorded, so that another cut of a text is an unknown token.
"""

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ross3d.metrics.prompts import make_blink_prompt, make_cvbench_prompt, make_prompt
from ross3d.processing_ross3d import Ross3DProcessor
from ross3d.rows_ross3d import SPATIAL_INSTRUCTION
from ross3d.tests.parity.golden import get_goldens_folder
from ross3d.tests.posed_views import make_test_processor, make_views


pytestmark = pytest.mark.parity

FOLDER = get_goldens_folder() / "metrics"
MARKS = ("<|im_start|>", "<|im_end|>", "<image>", "<ground>", "<coord>")
SLOT = "<IMAGE_SLOT>"
# Qwen2's rule of how text is cut before merging, but that the recording's keeps a blank apart from punctuation.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def load(name: str) -> dict:
    file = FOLDER / f"{name}.json"
    if not file.is_file():
        pytest.skip(f"no recorded {file.name} in {FOLDER} (environment variable ROSS3D_GOLDENS)")
    return json.loads(file.read_text(encoding="utf-8"))


def make_toy_tokenizer(items: list[dict]) -> PreTrainedTokenizerFast:
    expected = [item["expected"] for item in items]
    pieces = {piece for row in expected for name in ("train_tokens", "eval_tokens") for piece in row[name]}
    words = ["<unk>", *sorted(pieces - {*MARKS, SLOT})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in MARKS[:3]])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS[3:]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<unk>", eos_token="<|im_end|>")


def make_inputs(processor: Ross3DProcessor, question: str, **words) -> dict[str, np.ndarray]:
    """Rows of one view, its placeholders taken together as the one slot of the recording."""
    if "<coord>" in question:
        words["query_coords"] = np.zeros(3, np.float32)
    if words.get("answers") == "<ground>":
        words["target_objects"] = []
    inputs = processor(**make_views(num_views=1), text=question, return_tensors="pt", **words)
    ids = inputs["input_ids"][0].numpy()
    slots = ids == processor.tokenizer.convert_tokens_to_ids("<image>")
    kept = ~slots | (np.arange(len(ids)) == slots.argmax())
    tokens = [SLOT if token == "<image>" else token for token in processor.tokenizer.convert_ids_to_tokens(ids[kept])]
    return {"tokens": tokens, "labels": inputs["labels"][0].numpy()[kept] if "labels" in inputs else None}


def test_prompts_and_labels():
    items = load("prompt_and_labels")["items"]
    tokenizer = make_toy_tokenizer(items)
    compared = 0
    for item in items:
        expected = item["expected"]
        human, gpt = (turn["value"] for turn in item["record"]["conversations"])
        question = human.replace("<image>", "")
        training = make_test_processor(tokenizer, spatial_instruction=True, label_rule="published")
        made = make_inputs(training, question, answers=gpt)
        assert made["tokens"] == expected["train_tokens"]
        assert "".join(made["tokens"]).replace(SLOT, "<image>") == expected["train_text"]
        # A published fault: a record that is read again carries the instruction twice. Ours has it once.
        twice = expected["train_user_value_if_sample_is_fetched_twice"]
        assert twice.count(SPATIAL_INSTRUCTION) == 2 and expected["train_text"].count(SPATIAL_INSTRUCTION) == 1
        assert (made["labels"] != -100).astype(int).tolist() == expected["train_supervised"]
        evaluation = make_test_processor(tokenizer)
        asked = {"answers": gpt} if "eval_ground_positions" in expected else {}
        made = make_inputs(evaluation, question, **asked)
        assert made["tokens"] == expected["eval_tokens"]
        places = [index for index, token in enumerate(made["tokens"]) if token == "<ground>"]
        assert places == expected.get("eval_ground_positions", [])
        compared += len(expected["train_tokens"]) + len(expected["eval_tokens"])
    assert compared > 0 and len(items) == len({item["record"]["metadata"]["dataset"].lower() for item in items})


MAKERS = {
    "vsibench": lambda item: make_prompt(item["question"], item.get("options")),
    "vstibench": lambda item: make_prompt(item["question"], item.get("options")),
    "cvbench": lambda item: make_cvbench_prompt(item["question"], item["choices"]),
    "blink": lambda item: make_blink_prompt(item["prompt"], item["sub_task"]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_prompts_of_benchmarks_scored_by_letters_and_numbers(name):
    items = [item for item in load(name)["items"] if "prompt" in item["expected"]]
    for item in items:
        assert MAKERS[name](item) == item["expected"]["prompt"]
    assert items
