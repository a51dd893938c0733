"""Plan an epoch: deal the questions to rows of their scenes, and order the rows.

The plan depends only on counts, lengths and a generator, so a resumed run makes the same plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


# Rows of this many steps are sorted by length before they are cut into steps.
STEPS_AT_ONCE = 16


@dataclass(frozen=True)
class PlannedRow:
    """A scene and its questions, both by their position in the dataset's lists.

    Attributes:
        number (`int`): tells the rows of one scene apart.
        num_tokens (`int`): tokens of the questions and their answers; a row without text gets the length of one with
            text, so that rows of both kinds are mixed in every step.
        grounds (`bool`): whether one of the questions is answered by boxes.
    """

    scene: int
    number: int
    questions: tuple[int, ...]
    num_tokens: int = 0
    grounds: bool = False


def choose_labelled(count: int, share: float, seed: int) -> np.ndarray:
    """Which of `count` samples (bool) keep their text: a random `share` of them, rounded, at least 1."""
    kept = np.zeros(count, dtype=bool)
    kept[np.random.default_rng([seed, 0, 1]).permutation(count)[: max(1, round(share * count))]] = True
    return kept


def count_unlabelled_rows(num_rows: int, share: float) -> int:
    """How many rows of scans without text, added to `num_rows` others, make up `share` of all."""
    return round(num_rows * share / (1 - share))


def take_turns(first: int, count: int, num_scans: int, seed: int) -> list[int]:
    """Indices of `count` scans from turn `first` on: every scan once in random order, then again in another order."""
    orders: dict[int, np.ndarray] = {}
    places = []
    for turn in range(first, first + count):
        passed, place = divmod(turn, num_scans)
        if passed not in orders:
            orders[passed] = np.random.default_rng([seed, 0, 2, passed]).permutation(num_scans)
        places.append(int(orders[passed][place]))
    return places


def count_rows(lengths: Sequence[int], questions_per_row: int, tokens_per_row: int | None) -> int:
    """Rows that a scene's questions of these lengths (tokens) need; one for a scene without any, none empty."""
    by_tokens = 1 if tokens_per_row is None else -(-sum(lengths) // tokens_per_row)
    return max(1, -(-len(lengths) // questions_per_row), min(by_tokens, len(lengths)))


def deal_questions(
    lengths: Sequence[int], num_rows: int, questions_per_row: int, rng: np.random.Generator
) -> list[list[int]]:
    """Indices of all questions in `num_rows` rows with similar numbers of tokens, in random order within a row.

    The longest come first, each to the row with the fewest tokens that has room for it.
    """
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    tokens = np.zeros(num_rows)
    drawn = rng.permutation(len(lengths))
    for place in sorted(drawn.tolist(), key=lambda place: -lengths[place]):
        room = [row for row in range(num_rows) if len(rows[row]) < questions_per_row]
        row = min(room, key=lambda row: tokens[row])
        rows[row].append(place)
        tokens[row] += lengths[place]
    return [[row[i] for i in rng.permutation(len(row))] for row in rows]


def cut_questions(order: Sequence[int], lengths: Sequence[int], tokens_per_row: int) -> list[int]:
    """The first questions of an order that fit into a budget of tokens; at least one."""
    total = np.cumsum([lengths[place] for place in order])
    return list(order[: max(1, int((total <= tokens_per_row).sum()))])


def order_rows(
    rows: Sequence[PlannedRow], rows_per_step: int, one_task_per_step: bool, rng: np.random.Generator, begun: int = 0
) -> list[PlannedRow]:
    """Rows in random order; the rows of one step have similar lengths.

    Args:
        rows: of an epoch.
        rows_per_step (`int`): rows of one optimizer step, over all processes and accumulated batches.
        one_task_per_step (`bool`): keep rows with and without grounding questions in separate steps, as the
            published sampler does; only the remainders of both share the last steps.
        begun (`int`): rows that the previous epoch put into its unfinished last step; remainders complete it first.
    """
    drawn = [rows[place] for place in rng.permutation(len(rows))]
    kinds = [[row for row in drawn if row.grounds == kind] for kind in (False, True)] if one_task_per_step else [drawn]
    steps, rest = [], []
    for group in kinds:
        for start in range(0, len(group), STEPS_AT_ONCE * rows_per_step):
            window = sorted(group[start : start + STEPS_AT_ONCE * rows_per_step], key=lambda row: row.num_tokens)
            cut = [window[i : i + rows_per_step] for i in range(0, len(window), rows_per_step)]
            steps += [step for step in cut if len(step) == rows_per_step]
            rest += [row for step in cut if len(step) < rows_per_step for row in step]
    steps = [steps[place] for place in rng.permutation(len(steps))]
    missing = -begun % rows_per_step
    while len(rest) < missing and steps:
        rest += steps.pop()
    return rest[:missing] + [row for step in steps for row in step] + rest[missing:]
