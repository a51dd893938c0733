"""Caption scores: BLEU-1..4, CIDEr-D and ROUGE-L, as the published 3D evaluations compute them.

Texts are compared unchanged: tokens are separated by blanks, case matters, punctuation belongs to its word. If a
benchmark requires lower case or splitting, its texts are processed first (`wrap_caption` for Scan2Cap).
"""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array

from ross3d.metrics.columns import check_columns, check_texts


MAX_ORDER = 4
# Width of CIDEr-D's length penalty, in tokens.
CIDER_SIGMA = 6.0
# Weight of recall in ROUGE-L's F-measure.
ROUGE_BETA = 1.2


def wrap_caption(text: str) -> str:
    """A text in Scan2Cap's form: lower case, blanks around periods and commas, between "sos" and "eos".

    An empty text becomes "sos  eos" with two blanks, which for ROUGE-L contains an empty token.
    """
    return f"sos {text.replace('.', ' . ').replace(',', ' , ').lower()} eos"


def check_pairs(hypotheses: list[str], references: list[list[str]]) -> None:
    """Refuse lists of different length, no items, items without a reference, and values that are not strings."""
    check_columns(hypotheses=hypotheses, references=references)
    check_texts("hypotheses", hypotheses)
    for index, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(
                f"references[{index}]: expected a list with at least one string, got {texts!r}; wrap a single"
                " reference in a list."
            )
        check_texts(f"references[{index}]", texts)


def count_ngrams(texts: list[str]) -> list[csr_array]:
    """Counts of n-grams of 1, 2, 3 and 4 tokens: one table (texts, n-grams) per order."""
    tokens = [text.split() for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(words) for words in tokens])
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for text in tokens for word in text], np.int64)
    grams, tables = words, []
    for order in range(1, MAX_ORDER + 1):
        if order > 1:
            grams = np.unique(grams[:-1] * len(numbers) + words[order - 1 :], return_inverse=True)[1]
        in_one_text = rows[: len(grams)] == rows[order - 1 :]
        places = rows[: len(grams)][in_one_text], grams[in_one_text]
        shape = len(texts), int(grams.max(initial=-1)) + 1
        tables.append(csr_array((np.ones(len(places[0])), places), shape=shape))
    return tables


def count_pairs(hypotheses: list[str], references: list[list[str]]) -> tuple[np.ndarray, list[csr_array]]:
    """The item index of each reference (R,), and the n-gram counts of hypotheses and, below them, references."""
    check_pairs(hypotheses, references)
    owners = np.repeat(np.arange(len(references)), [len(texts) for texts in references])
    return owners, count_ngrams([*hypotheses, *(text for texts in references for text in texts)])


def get_largest(table: csr_array, owners: np.ndarray, num_items: int) -> csr_array:
    """The largest entry of each column (num_items, columns) among the rows (R, columns) of each item."""
    entries = table.tocoo()
    keys = owners[entries.row] * table.shape[1] + entries.col
    order = np.argsort(keys, kind="stable")
    kept, starts = np.unique(keys[order], return_index=True)
    largest = np.maximum.reduceat(entries.data[order], starts) if len(starts) else entries.data
    return csr_array((largest, np.divmod(kept, max(1, table.shape[1]))), shape=(num_items, table.shape[1]))


def get_bleu_counts(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """Each item's contribution to the sums of corpus BLEU: (number of items, 10).

    Clipped n-gram counts of orders 1 to 4, all n-gram counts of orders 1 to 4, the length, and the length of the
    reference closest in length (the shorter one of a tie).

    Args:
        hypotheses (list of `str`): one text per item.
        references (list of list of `str`): at least one per item.
    """
    owners, tables = count_pairs(hypotheses, references)
    num_items = len(hypotheses)
    clipped = [
        table[:num_items].minimum(get_largest(table[num_items:], owners, num_items)).sum(axis=1) for table in tables
    ]
    guessed = [table[:num_items].sum(axis=1) for table in tables]
    lengths, other_lengths = guessed[0], tables[0][num_items:].sum(axis=1)
    order = np.lexsort((other_lengths, np.abs(other_lengths - lengths[owners]), owners))
    closest = other_lengths[order[np.searchsorted(owners, np.arange(num_items))]]
    return np.stack([*clipped, *guessed, lengths, closest], axis=1)


def compute_bleu_of_counts(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4 (..., 4) in [0, 1] of sums (..., 10) over the rows of `get_bleu_counts`."""
    clipped, guessed = sums[..., :MAX_ORDER], sums[..., MAX_ORDER : 2 * MAX_ORDER]
    precision = (clipped + 1e-15) / (guessed + 1e-9)
    scores = np.exp(np.cumsum(np.log(precision), axis=-1) / np.arange(1, MAX_ORDER + 1))
    ratio = (sums[..., -2] + 1e-15) / (sums[..., -1] + 1e-9)
    return scores * np.exp(1 - 1 / np.minimum(ratio, 1))[..., None]


def compute_bleu(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """BLEU-1..4 of a corpus: clipped n-gram counts, brevity against the reference closest in length.

    Args:
        hypotheses, references: as in `get_bleu_counts`.

    Returns:
        (4,) in [0, 1].
    """
    return compute_bleu_of_counts(get_bleu_counts(hypotheses, references).sum(axis=0))


def weigh_ngrams(table: csr_array, owners: np.ndarray, num_items: int) -> csr_array:
    """TF-IDF weights of the counts of hypotheses and references: count * log(items / items whose references have it).

    An n-gram that is in no reference gets the document frequency 1.
    """
    membership = csr_array((np.ones(len(owners)), (owners, np.arange(len(owners)))))
    in_items = (membership @ table[num_items:]).tocsc()
    frequency = np.diff(in_items.indptr)
    rarity = np.log(num_items) - np.log(np.maximum(frequency, 1))
    return csr_array((table.data * rarity[table.indices], table.indices, table.indptr), shape=table.shape)


def compute_cider(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """CIDEr-D of each item, document frequencies taken from the given references; the corpus score is the mean.

    The mean over orders and references of the cosine of the two texts' TF-IDF vectors, with the hypothesis clipped to
    the reference. The length penalty counts lengths in bigrams, so texts of zero and of one token are equally long
    (published).

    Args:
        hypotheses, references: as in `get_bleu_counts`.

    Returns:
        (number of items,) in [0, 10]. A single item scores 0: every n-gram occurs in every item.
    """
    owners, tables = count_pairs(hypotheses, references)
    num_items = len(hypotheses)
    similarity = np.zeros(len(owners))
    for table in tables:
        weights = weigh_ngrams(table, owners, num_items)
        norms = np.sqrt(weights.multiply(weights).sum(axis=1))
        others = weights[num_items:]
        products = weights[:num_items][owners].minimum(others).multiply(others).sum(axis=1)
        scale = norms[:num_items][owners] * norms[num_items:]
        similarity += np.divide(products, scale, out=products, where=scale > 0) / MAX_ORDER
    lengths = tables[1].sum(axis=1)
    penalty = np.exp(-((lengths[owners] - lengths[num_items:]) ** 2) / (2 * CIDER_SIGMA**2))
    return 10 * np.bincount(owners, similarity * penalty, num_items) / np.bincount(owners, minlength=num_items)


def get_common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    Each row of the usual table is stored as the bits of one integer (Crochemore et al. 2001): a bit that is 0 marks a
    position in `b` where the length grows by one.
    """
    places: dict[str, int] = {}
    for index, token in enumerate(b):
        places[token] = places.get(token, 0) | 1 << index
    row = full = (1 << len(b)) - 1
    for token in a:
        shared = row & places.get(token, 0)
        row = (row + shared | row - shared) & full
    return len(b) - row.bit_count()


def compute_rouge_l(hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
    """ROUGE-L of each item: F-measure of the best precision and the best recall over its references.

    Tokens are separated by single blanks, so a double blank contains an empty token. The corpus score is the mean.

    Args:
        hypotheses, references: as in `get_bleu_counts`.

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


def compute_caption_values(hypotheses: list[str], references: list[list[str]]) -> dict[str, np.ndarray]:
    """The caption scores that are means over items: name -> values (number of items,)."""
    return {"CIDEr": compute_cider(hypotheses, references), "ROUGE-L": compute_rouge_l(hypotheses, references)}


def compute_caption_scores(hypotheses: list[str], references: list[list[str]]) -> dict[str, float]:
    """All caption scores of a corpus by name: BLEU-1..4 and ROUGE-L in [0, 1], CIDEr in [0, 10]."""
    bleu = compute_bleu(hypotheses, references)
    scores = {f"BLEU-{order}": float(bleu[order - 1]) for order in range(1, MAX_ORDER + 1)}
    return scores | {
        name: float(values.mean()) for name, values in compute_caption_values(hypotheses, references).items()
    }


__all__ = [
    "compute_bleu",
    "compute_bleu_of_counts",
    "compute_caption_scores",
    "compute_caption_values",
    "compute_cider",
    "compute_rouge_l",
    "get_bleu_counts",
    "wrap_caption",
]
