"""What the words of questions give away: answers of look-ups that are fitted to training questions and see no scene.

A question is reduced to a `Case`: its type, its words, and what could be right: the contents of its choices ("to the
left", not "B"; objects without their colours), or everything that was right in training. Numbers count by mean
relative accuracy, other answers by exact match. Of grounding questions the answer is whether there is a target.
Captions have no words to look up and are left out.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np
import torch

from ross3d.data.annotations import Annotation
from ross3d.metrics.benchmarks import VSIBENCH_NUMBERS
from ross3d.metrics.prompts import INTRODUCTION, NUMBER_REQUEST
from ross3d.metrics.qa import compute_relative_accuracy, find_best_constant
from ross3d.scenes.questions import get_plural
from ross3d.scenes.rooms import CATEGORIES, COLORS


NUMBER_TYPES = ("room_size", *VSIBENCH_NUMBERS)
LEFT_OUT = ("caption",)
GROUNDING = "grounding"
SINGULARS = {get_plural(noun): noun for noun in (*CATEGORIES, "object")}
# Training questions that a key of the look-up needs.
MIN_COUNT = 5
# Ranges of numbers among which the model of words chooses.
NUM_RANGES = 8
# Strength of the pull of its weights to 0, per training question, and steps of its optimizer.
WEIGHT_DECAY, STEPS = 1e-3, 40


class Case(NamedTuple):
    """A question without its scene; `options` is None where the question does not list what could be right."""

    kind: str
    words: tuple[str, ...]
    options: tuple[str, ...] | None
    answer: str


@dataclass(frozen=True)
class WordsOnly:
    """Scores in [0, 1] on held-out questions of one type.

    Attributes:
        count (`int`): questions. chance (`float`, *optional*): of a blind choice among all answers; None for numbers.
        majority (`float`): the most frequent training answer, or the best constant number.
        lookup (`float`): the most frequent answer of the most specific words that are frequent enough in training.
        model (`float`): logistic regression on the words and their pairs.
    """

    count: int
    chance: float | None
    majority: float
    lookup: float
    model: float

    @property
    def best(self) -> float:
        return max(self.majority, self.lookup, self.model)


def make_case(annotation: Annotation) -> Case:
    text = annotation.question.removeprefix(INTRODUCTION).removesuffix(NUMBER_REQUEST)
    stem, *rest = text.split("\nOptions:")
    words = tuple(SINGULARS.get(word, word) for word in re.findall(r"[a-z]+|<coord>", stem.lower()))
    if annotation.object_ids is not None:
        return Case(GROUNDING, words, None, "some" if annotation.object_ids else "none")
    if not rest:
        return Case(annotation.question_type, words, None, annotation.answer)
    options = tuple(_drop_colors(text) for text in re.findall(r"^[A-F]\. (.+)$", rest[0], flags=re.MULTILINE))
    return Case(annotation.question_type, words, options, options[ascii_uppercase.index(annotation.answer)])


def _drop_colors(text: str) -> str:
    return re.sub(rf"\b(?:{'|'.join(COLORS)}) ", "", text)


def get_content(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word in CATEGORIES or word in COLORS or word == "object")


def get_lookup_keys(words: tuple[str, ...]) -> list[tuple]:
    """Keys a look-up may use for a question, most specific first: its text, its content words, fewer of them."""
    content = get_content(words)
    categories = tuple(word for word in content if word in CATEGORIES)
    keys = [("text", words), ("content", content), ("categories", categories)]
    keys += [("word", place, word) for place, word in enumerate(content)]
    return [*keys, ("any",)]


class Lookup:
    """The answers to training questions of one type by their keys."""

    def __init__(self, cases: Iterable[Case]):
        self.tables: dict[tuple, Counter] = defaultdict(Counter)
        self.constants: dict[tuple, str] = {}
        for case in cases:
            for key in get_lookup_keys(case.words):
                self.tables[key][case.answer] += 1

    def guess(self, case: Case, min_count: int = MIN_COUNT) -> str:
        """The answer of the first key with `min_count` training questions."""
        keys = [key for key in get_lookup_keys(case.words) if self.tables[key].total() >= min_count]
        return self.choose(case, keys[0]) if keys else self.guess_majority(case)

    def guess_majority(self, case: Case) -> str:
        return self.choose(case, ("any",))

    def choose(self, case: Case, key: tuple) -> str:
        """The most frequent answer of a key, among the options if there are any; of numbers the best constant."""
        table = self.tables[key]
        if case.kind not in NUMBER_TYPES:
            return min(case.options or sorted(table), key=lambda answer: (-table[answer], answer))
        if key not in self.constants:
            self.constants[key] = str(find_best_constant([float(answer) for answer in table.elements()]))
        return self.constants[key]


def list_features(case: Case, option: str) -> list[tuple]:
    """What a linear model sees of an option: it beside each word, each place of a content word, and each two of them.

    Of an option that is a list, as an order of appearance, also each of its parts at its place, and which of two comes
    first.
    """
    content = get_content(case.words)
    contexts = [(), *set(case.words), *enumerate(content), *{tuple(sorted(p)) for p in combinations(content, 2)}]
    parts = option.split(", ")
    features = [(context, option) for context in contexts]
    if len(parts) > 1:
        features += [("part", place, part) for place, part in enumerate(parts)]
        features += [("before", *pair) for pair in combinations(parts, 2)]
    return features


class WordModel:
    """Logistic regression: the scores of an option are sums of the weights of its features, those offered compete."""

    def __init__(self, cases: Sequence[Case]):
        self.answers = sorted({case.answer for case in cases})
        self.constants, self.gains = np.zeros(0), np.zeros((0, 0))
        if cases[0].kind in NUMBER_TYPES:
            cases = self._make_ranges(cases)
        counts = Counter(f for case in cases for option in self.get_options(case) for f in list_features(case, option))
        kept = [feature for feature, count in counts.items() if count >= MIN_COUNT]
        # Row 0 has no weight.
        self.rows = {feature: row for row, feature in enumerate(kept, start=1)}
        self.weights = torch.zeros(len(kept) + 1)
        self._fit(cases)

    def _make_ranges(self, cases: Sequence[Case]) -> list[Case]:
        """The cases with ranges as answers; numbers to say, and the relative accuracy of each in each range."""
        numbers = np.array([float(case.answer) for case in cases])
        ends = np.unique(np.quantile(numbers, np.linspace(0, 1, NUM_RANGES + 1)[1:-1]))
        places = np.unique(np.searchsorted(ends, numbers), return_inverse=True)[1]
        of_ranges = [numbers[places == place] for place in range(places.max() + 1)]
        self.constants = np.array([find_best_constant(known) for known in (numbers, *of_ranges)])
        gains = [
            [compute_relative_accuracy(np.full(len(known), said), known).mean() for known in of_ranges]
            for said in self.constants
        ]
        self.gains = np.array(gains)
        self.answers = [str(place) for place in range(len(of_ranges))]
        return [case._replace(answer=str(place)) for case, place in zip(cases, places, strict=True)]

    def get_options(self, case: Case) -> Sequence[str]:
        return case.options or self.answers

    def _index(self, cases: Sequence[Case]) -> torch.Tensor:
        """Rows of the features of each option of each case, (cases, options, features), 0 where there are fewer."""
        found = [
            [[self.rows.get(f, 0) for f in list_features(case, option)] for option in self.get_options(case)]
            for case in cases
        ]
        longest = max(len(rows) for options in found for rows in options)
        return torch.tensor([[rows + [0] * (longest - len(rows)) for rows in options] for options in found])

    def _fit(self, cases: Sequence[Case]) -> None:
        rows = self._index(cases)
        right = torch.tensor([list(self.get_options(case)).index(case.answer) for case in cases])
        weights = self.weights.requires_grad_()
        optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

        def compute_loss() -> torch.Tensor:
            optimizer.zero_grad()
            scores = weights[rows].sum(-1)
            loss = torch.nn.functional.cross_entropy(scores, right) + WEIGHT_DECAY * (weights**2).sum()
            loss.backward()
            weights.grad[0] = 0
            return loss

        optimizer.step(compute_loss)
        self.weights = weights.detach()

    def guess(self, cases: Sequence[Case]) -> list[str]:
        """The most probable options; of numbers those of the highest expected relative accuracy."""
        scores = self.weights[self._index(cases)].sum(-1)
        if len(self.constants):
            expected = scores.softmax(-1).numpy() @ self.gains.T
            return [str(self.constants[place]) for place in expected.argmax(-1)]
        return [self.get_options(case)[place] for case, place in zip(cases, scores.argmax(-1).tolist(), strict=True)]


def group_cases(annotations: Iterable[Annotation]) -> dict[str, list[Case]]:
    """Cases by their type; captions left out."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for annotation in annotations:
        case = make_case(annotation)
        if case.kind not in LEFT_OUT:
            groups[case.kind].append(case)
    return groups


def score_guesses(cases: Sequence[Case], guesses: Sequence[str]) -> float:
    """Mean of exact matches, or of relative accuracy."""
    answers = [case.answer for case in cases]
    if cases[0].kind in NUMBER_TYPES:
        numbers = (np.array([float(text) for text in texts]) for texts in (guesses, answers))
        return float(compute_relative_accuracy(*numbers).mean())
    return float(np.mean([guess == answer for guess, answer in zip(guesses, answers, strict=True)]))


def lookup_baseline(train: list[Annotation], val: list[Annotation], min_count: int = MIN_COUNT) -> dict[str, float]:
    """Scores in [0, 1] of the look-up by type, of the types that occur in both."""
    fitted = {kind: Lookup(cases) for kind, cases in group_cases(train).items()}
    return {
        kind: score_guesses(cases, [fitted[kind].guess(case, min_count) for case in cases])
        for kind, cases in group_cases(val).items()
        if kind in fitted
    }


def score_words_only(train: list[Annotation], val: list[Annotation]) -> dict[str, WordsOnly]:
    """All look-ups on held-out questions, by type; seconds to a minute for thousands of questions."""
    scores, known = {}, group_cases(train)
    for kind, cases in group_cases(val).items():
        if kind not in known:
            continue
        lookup, model = Lookup(known[kind]), WordModel(known[kind])
        chance = None
        if kind not in NUMBER_TYPES:
            chance = float(np.mean([1 / len(model.get_options(case)) for case in cases]))
        scores[kind] = WordsOnly(
            count=len(cases),
            chance=chance,
            majority=score_guesses(cases, [lookup.guess_majority(case) for case in cases]),
            lookup=score_guesses(cases, [lookup.guess(case) for case in cases]),
            model=score_guesses(cases, model.guess(cases)),
        )
    return scores
