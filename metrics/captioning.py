"""Caption scores: BLEU-1..4, CIDEr-D and ROUGE-L, as the published 3D evaluations compute them.

Texts are compared as they come: tokens are separated by blanks, case counts, punctuation belongs to its word. What a
benchmark wants lower-cased or split is done to its texts first (`wrap_caption` for Scan2Cap).
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np


MAX_ORDER = 4
# Width of CIDEr-D's length penalty, in tokens.
CIDER_SIGMA = 6.0
# Weight of recall in ROUGE-L's F-measure.
ROUGE_BETA = 1.2

Ngram = tuple[str, ...]


def wrap_caption(text: str) -> str:
    """A text as Scan2Cap compares it: lower case, blanks around periods and commas, between "sos" and "eos".

    An empty text becomes "sos  eos" with two blanks; ROUGE-L sees an empty token between them.
    """
    return f"sos {text.replace('.', ' . ').replace(',', ' , ').lower()} eos"


def count_ngrams(tokens: Sequence[str], order: int) -> Counter[Ngram]:
    """How often each run of `order` tokens occurs."""
    return Counter(tuple(tokens[start : start + order]) for start in range(len(tokens) - order + 1))


def check_pairs(hypotheses: list[str], references: list[list[str]]) -> None:
    """Refuse lists of different length, and items without a reference."""
    if len(hypotheses) != len(references):
        raise ValueError(
            f"references: expected one list for each of {len(hypotheses)} hypotheses, got {len(references)}."
        )
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(
                f"references[{index}]: expected a list with at least one text, got {texts!r}; wrap a single reference"
                " in a list."
            )


def compute_bleu(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """BLEU-1..4 of a corpus: clipped n-gram counts, brevity against the reference closest in length.

    Args:
        hypotheses (list of `str`): one text an item.
        references (list of list of `str`): at least one an item.

    Returns:
        (4,) in [0, 1].
    """
    check_pairs(hypotheses, references)
    clipped, guessed = np.zeros(MAX_ORDER), np.zeros(MAX_ORDER)
    hypothesis_length = reference_length = 0
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        tokens = hypothesis.split()
        reference_tokens = [text.split() for text in texts]
        hypothesis_length += len(tokens)
        reference_length += min((abs(len(other) - len(tokens)), len(other)) for other in reference_tokens)[1]
        for order in range(1, MAX_ORDER + 1):
            counts = count_ngrams(tokens, order)
            allowed: Counter[Ngram] = Counter()
            for other in reference_tokens:
                allowed |= count_ngrams(other, order)
            clipped[order - 1] += (counts & allowed).total()
            guessed[order - 1] += counts.total()
    precision = (clipped + 1e-15) / (guessed + 1e-9)
    scores = np.exp(np.cumsum(np.log(precision)) / np.arange(1, MAX_ORDER + 1))
    ratio = (hypothesis_length + 1e-15) / (reference_length + 1e-9)
    return scores * math.exp(1 - 1 / ratio) if ratio < 1 else scores


def get_document_frequency(references: list[list[str]]) -> Counter[Ngram]:
    """In how many items' references each n-gram of 1 to 4 tokens occurs."""
    frequency: Counter[Ngram] = Counter()
    for texts in references:
        present: set[Ngram] = set()
        for text in texts:
            for order in range(1, MAX_ORDER + 1):
                present.update(count_ngrams(text.split(), order))
        frequency.update(present)
    return frequency


def weigh_ngrams(text: str, frequency: Counter[Ngram], num_items: int) -> tuple[list[dict[Ngram, float]], int]:
    """TF-IDF vectors of a text, one an order, and the length (in bigrams) that CIDEr-D compares."""
    tokens = text.split()
    vectors = []
    for order in range(1, MAX_ORDER + 1):
        counts = count_ngrams(tokens, order)
        vectors.append(
            {gram: n * (math.log(num_items) - math.log(max(1, frequency[gram]))) for gram, n in counts.items()}
        )
    return vectors, max(0, len(tokens) - 1)


def compare_vectors(hypothesis: dict[Ngram, float], reference: dict[Ngram, float]) -> float:
    """Cosine of two TF-IDF vectors with the hypothesis clipped to the reference; the bare product for a zero norm."""
    shared = [(weight, reference[gram]) for gram, weight in hypothesis.items() if gram in reference]
    product = sum(min(weight, other) * other for weight, other in shared)
    norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (hypothesis, reference)]
    return product / (norms[0] * norms[1]) if all(norms) else product


def compute_cider(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """CIDEr-D of each item, document frequencies taken from the given references; the corpus score is the mean.

    Args:
        hypotheses, references: as in `compute_bleu`.

    Returns:
        (number of items,) in [0, 10]. A single item scores 0: every n-gram occurs in every item.
    """
    check_pairs(hypotheses, references)
    frequency = get_document_frequency(references)
    scores = np.zeros(len(hypotheses))
    for item, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True)):
        vectors, length = weigh_ngrams(hypothesis, frequency, len(hypotheses))
        for text in texts:
            others, other_length = weigh_ngrams(text, frequency, len(hypotheses))
            similarity = sum(compare_vectors(a, b) for a, b in zip(vectors, others, strict=True)) / MAX_ORDER
            penalty = math.exp(-((length - other_length) ** 2) / (2 * CIDER_SIGMA**2))
            scores[item] += 10 * similarity * penalty / len(texts)
    return scores


def get_common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(b) + 1)
    for token in a:
        diagonal = 0
        for index, other in enumerate(b, start=1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if token == other else max(above, lengths[index - 1])
            diagonal = above
    return lengths[-1]


def compute_rouge_l(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """ROUGE-L of each item: F-measure of the best precision and the best recall over its references.

    Tokens are separated by single blanks, so a double blank holds an empty token. The corpus score is the mean.

    Args:
        hypotheses, references: as in `compute_bleu`.

    Returns:
        (number of items,) in [0, 1].
    """
    check_pairs(hypotheses, references)
    scores = np.zeros(len(hypotheses))
    for item, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True)):
        tokens = hypothesis.split(" ")
        others = [text.split(" ") for text in texts]
        common = [get_common_length(tokens, other) for other in others]
        precision = max(length / len(tokens) for length in common)
        recall = max(length / len(other) for length, other in zip(common, others, strict=True))
        if precision and recall:
            scores[item] = (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)
    return scores


def compute_caption_scores(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """All caption scores of a corpus by name: BLEU-1..4 and ROUGE-L in [0, 1], CIDEr in [0, 10]."""
    bleu = compute_bleu(hypotheses, references)
    scores = {f"BLEU-{order}": float(bleu[order - 1]) for order in range(1, MAX_ORDER + 1)}
    scores["CIDEr"] = float(compute_cider(hypotheses, references).mean())
    scores["ROUGE-L"] = float(compute_rouge_l(hypotheses, references).mean())
    return scores


__all__ = ["compute_bleu", "compute_caption_scores", "compute_cider", "compute_rouge_l", "wrap_caption"]
