"""Caption scores against cases worked by hand, and against the formulas written out slowly."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from ross3d.metrics.captioning import (
    compute_bleu,
    compute_bleu_of_counts,
    compute_caption_scores,
    compute_cider,
    compute_rouge_l,
    get_bleu_counts,
    get_common_length,
    wrap_caption,
)


def make_texts(rng: np.random.Generator, num_items: int) -> tuple[list[str], list[list[str]]]:
    """Short texts of few words, so that n-grams are shared; some are empty."""

    def make_text() -> str:
        return " ".join("abcdef"[index] for index in rng.integers(0, 6, rng.integers(0, 9)))

    return [make_text() for _ in range(num_items)], [
        [make_text() for _ in range(rng.integers(1, 5))] for _ in range(num_items)
    ]


def count_slowly(text: str, order: int) -> Counter:
    words = text.split()
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def compute_cider_slowly(hypotheses: list[str], references: list[list[str]]) -> list[float]:
    """CIDEr-D as its formula reads, a text and an n-gram at a time."""
    scores = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        total = 0.0
        for text, order in itertools.product(texts, (1, 2, 3, 4)):
            weights = []
            for side in (hypothesis, text):
                counts = count_slowly(side, order)
                items = {
                    gram: sum(any(gram in count_slowly(t, order) for t in ts) for ts in references) for gram in counts
                }
                weights.append({g: n * math.log(len(references) / max(1, items[g])) for g, n in counts.items()})
            product = sum(min(w, weights[1][g]) * weights[1][g] for g, w in weights[0].items() if g in weights[1])
            norm = math.prod(math.sqrt(sum(w**2 for w in side.values())) for side in weights)
            lengths = [max(0, len(side.split()) - 1) for side in (hypothesis, text)]
            penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / 72)
            total += (product / norm if norm else product) * penalty / 4 / len(texts)
        scores.append(10 * total)
    return scores


def test_captions_that_repeat_a_reference_score_full():
    texts = ["a red chair by the door", "a blue bed under the window", "one small green lamp on the floor"]
    scores = compute_caption_scores(texts, [[text] for text in texts])
    assert scores["CIDEr"] == pytest.approx(10) and scores["ROUGE-L"] == pytest.approx(1)
    assert all(scores[f"BLEU-{order}"] == pytest.approx(1, abs=1e-6) for order in (1, 2, 3, 4))


def test_bleu_of_two_items_by_hand():
    hypotheses, references = ["a b", "d d d"], [["a b c"], ["d"]]
    counts = get_bleu_counts(hypotheses, references)
    assert counts.tolist() == [[2, 1, 0, 0, 2, 1, 0, 0, 2, 3], [1, 0, 0, 0, 3, 2, 1, 0, 3, 1]]
    scores = compute_bleu(hypotheses, references)
    assert scores[:2] == pytest.approx([3 / 5, math.sqrt(3 / 5 * 1 / 3)], abs=1e-6)


def test_bleu_clips_repetition_and_punishes_short_texts():
    assert compute_bleu(["the the the the"], [["the cat"]])[0] == pytest.approx(0.25, abs=1e-6)
    short = compute_bleu(["the cat"], [["the cat sat on"]])[0]
    assert short == pytest.approx(np.exp(1 - 4 / 2), abs=1e-6)


def test_bleu_takes_the_shorter_of_two_references_that_are_equally_close():
    assert compute_bleu(["a b c"], [["a b c d", "a b"]])[0] == pytest.approx(1, abs=1e-6)
    assert compute_bleu(["a b c"], [["a b c d", "a"]])[0] == pytest.approx(np.exp(1 - 4 / 3), abs=1e-6)


def test_bleu_allows_what_any_one_reference_has():
    """Three times "a" in one reference and once in the other allow three, not four."""
    assert get_bleu_counts(["a a a a"], [["a a a", "b a"]])[0, 0] == 3


def test_bleu_of_many_sums_at_once():
    sums = np.random.default_rng(0).integers(1, 20, (2, 3, 10))
    scores = compute_bleu_of_counts(sums)
    assert scores.shape == (2, 3, 4)
    assert scores[1, 2] == pytest.approx(compute_bleu_of_counts(sums[1, 2]))


def test_cider_of_two_items_by_hand():
    """Each n-gram is in one of two items: weight log 2. One of two words of the second text is too many."""
    scores = compute_cider(["a b", "c c"], [["a b"], ["c", "d"]])
    assert scores == pytest.approx([10 * (1 + 1) / 4, 10 * 0.5 / 4 * math.exp(-1 / 72) / 2])


def test_cider_weighs_what_every_item_has_with_nothing():
    assert compute_cider(["a chair"], [["a chair"]]).tolist() == [0.0]
    assert compute_cider(["a", "a"], [["a"], ["a"]]).tolist() == [0.0, 0.0]


def test_tables_of_ngrams_give_what_the_formula_gives():
    rng = np.random.default_rng(0)
    for num_items in (1, 2, 3, 5, 8):
        hypotheses, references = make_texts(rng, num_items)
        assert compute_cider(hypotheses, references) == pytest.approx(compute_cider_slowly(hypotheses, references))
        counts = get_bleu_counts(hypotheses, references)
        for item, (hypothesis, texts) in enumerate(zip(hypotheses, references, strict=True)):
            for order in (1, 2, 3, 4):
                allowed = Counter()
                for text in texts:
                    allowed |= count_slowly(text, order)
                assert counts[item, order - 1] == (count_slowly(hypothesis, order) & allowed).total()
                assert counts[item, order + 3] == count_slowly(hypothesis, order).total()


def test_rouge_by_hand():
    weight = 1.2**2
    expected = (1 + weight) * (2 / 3) * 1 / (1 + weight * 2 / 3)
    assert compute_rouge_l(["a c b"], [["a b"]])[0] == pytest.approx(expected)
    # The best precision comes from one reference, the best recall from the other.
    both = compute_rouge_l(["a b c"], [["a b c x y z", "c"]])[0]
    assert both == pytest.approx(1)


def test_rouge_counts_empty_tokens_between_blanks():
    assert compute_rouge_l(["a  b"], [["a  b"]])[0] == pytest.approx(1)
    assert compute_rouge_l(["a b"], [["a  b"]])[0] < 1
    assert compute_rouge_l([""], [["a"]])[0] == 0


def test_common_subsequences_are_the_longest():
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = ("".join("abc"[i] for i in rng.integers(0, 3, rng.integers(0, 7))) for _ in range(2))
        parts = [{"".join(c) for n in range(len(t) + 1) for c in itertools.combinations(t, n)} for t in (a, b)]
        assert get_common_length(a, b) == max(map(len, parts[0] & parts[1]))
    assert get_common_length(list("ab") * 100, list("ba") * 70) == 140


def test_captions_are_wrapped_as_published():
    assert wrap_caption("A chair, Red.") == "sos a chair ,  red .  eos"
    assert wrap_caption("") == "sos  eos"


def test_empty_and_broken_texts_are_scored():
    scores = compute_caption_scores(["", "a\nb"], [["a b"], ["a b", "c"]])
    assert 0 < scores["BLEU-1"] < 1 and np.isfinite(list(scores.values())).all()
    assert all(value < 1e-6 for value in compute_caption_scores([""], [["", ""]]).values() if value != 1)


def test_caption_scores_refuse_what_is_no_list_of_texts():
    with pytest.raises(ValueError, match=r"references\[0\]: expected a list .* wrap a single reference"):
        compute_bleu(["a"], ["a"])
    with pytest.raises(ValueError, match=r"references\[1\]: expected a list with at least one string, got \[\]"):
        compute_rouge_l(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match=r"expected one entry per item in every column .* 'references': 1"):
        compute_cider(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"hypotheses\[1\]: expected a list with one string per item, got None"):
        compute_cider(["a", None], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"references\[0\]\[1\]: expected a list with one string per item, got 3"):
        compute_cider(["a"], [["a", 3]])
