"""Answers about one scene: read once for all questions, against once a question.

    python bench/answer.py [--views 32] [--questions 64] [--rounds 3]

Three ways through the same model, in turn: each question with the whole scene before it; the library's cache of the
scene, cropped after each question; `encode_scene` and one `generate` for all. Answers have to be equal, token for
token.
"""

import argparse
from typing import Any

import torch
from transformers import DynamicCache

from ross3d.bench.harness import (
    compare,
    describe_run,
    get_peak_gb,
    make_config,
    make_model,
    make_questions,
    make_scene,
    pad_left,
    print_line,
    time_rounds,
)


TEXT = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip


class Ways:
    """The three ways to answer the same questions."""

    def __init__(self, num_views: int, num_questions: int, new_tokens: int, batch: int):
        generator = torch.Generator().manual_seed(0)
        self.model = make_model(make_config(TEXT))
        self.scene = make_scene(self.model.config, num_views, generator)
        self.questions = make_questions(num_questions, (8, 20), generator)
        self.lengths = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "do_sample": False}
        self.batch = batch

    def answer_whole(self) -> list[list[int]]:
        """The scene is read again for every question, as the published evaluation does."""
        answers = []
        for question in self.questions:
            inputs = dict(self.scene)
            inputs["input_ids"] = torch.cat([self.scene["input_ids"], question[None]], dim=1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["segment_ids"] = torch.cat([self.scene["segment_ids"], torch.ones_like(question)[None]], dim=1)
            ids = self.model.generate(**inputs, **self.lengths)
            answers.append(ids[0, inputs["input_ids"].shape[1] :].tolist())
        return answers

    @torch.no_grad()
    def answer_cropped(self) -> list[list[int]]:
        """The library's cache of the scene; what a question added is cut off again."""
        cache = DynamicCache(config=self.model.config.text_config)
        self.model(**self.scene, past_key_values=cache, use_cache=True, logits_to_keep=1)
        prefix, answers = cache.get_seq_length(), []
        for question in self.questions:
            mask = torch.ones(1, prefix + len(question), dtype=torch.long)
            ids = self.model.generate(
                input_ids=question[None], attention_mask=mask, past_key_values=cache, **self.lengths
            )
            answers.append(ids[0, len(question) :].tolist())
            cache.crop(prefix - cache.get_seq_length())
        return answers

    def answer_shared(self) -> list[list[int]]:
        """The scene is read once and held once for all questions."""
        scene = self.model.encode_scene(**self.scene)
        answers = []
        for start in range(0, len(self.questions), self.batch):
            ids, mask = pad_left(self.questions[start : start + self.batch])
            found = self.model.generate(scene=scene, input_ids=ids, attention_mask=mask, **self.lengths)
            answers += found[:, ids.shape[1] :].tolist()
        return answers


def run(num_views: int, num_questions: int, rounds: int, new_tokens: int, batch: int) -> dict[str, Any]:
    ways = Ways(num_views, num_questions, new_tokens, batch)
    seconds, answers = time_rounds(
        {"whole": ways.answer_whole, "cropped": ways.answer_cropped, "shared": ways.answer_shared},
        rounds,
        repeats={"shared": 3},
    )
    if not answers["whole"] == answers["cropped"] == answers["shared"]:
        raise RuntimeError("bench/answer.py: expected the same answers from the three ways, got others.")
    tokens = ways.scene["input_ids"].shape[1]
    length = sum(map(len, ways.questions)) / num_questions + new_tokens
    return {
        "bench": "answer", **describe_run(), "views": num_views, "prefix": tokens, "questions": num_questions,
        "new_tokens": new_tokens, "batch": batch, "text_config": TEXT, "rounds": rounds,
        "whole_over_shared": compare(seconds, "whole", "shared"),
        "cropped_over_shared": compare(seconds, "cropped", "shared"),
        # Were every position as dear as any other, and nothing shared but the scene.
        "bound": round(num_questions * (tokens + length) / (tokens + num_questions * length), 1),
        "answers_per_second": round(num_questions / min(seconds["shared"]), 2), "peak_gb": round(get_peak_gb(), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=32, help="number of views of the scene")
    parser.add_argument("--questions", type=int, default=64, help="number of questions")
    parser.add_argument("--new-tokens", type=int, default=8, help="tokens of each answer")
    parser.add_argument("--batch", type=int, default=64, help="questions that are answered at once")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.views, options.questions, options.rounds, options.new_tokens, options.batch))


if __name__ == "__main__":
    main()
