"""METEOR through a program of its own: the talk with it, with a stand-in, and its failures."""

import sys
from pathlib import Path

import numpy as np
import pytest

from ross3d.metrics import meteor as meteor_module
from ross3d.metrics.meteor import Meteor, clean_text, compute_meteor_of_counts, find_java, find_program


# Answers as the program does: of each item the number of words of its last part, of all their sum.
STAND_IN = """
import sys
for line in sys.stdin:
    command, *parts = line.rstrip("\\n").split(" ||| ")
    if command == "SCORE":
        print(" ".join([str(len(parts[-1].split()))] + [str(len(parts))] * 22), flush=True)
    else:
        words = [float(part.split()[0]) for part in parts]
        print(*words, sum(words), sep="\\n", flush=True)
"""


def write_program(folder: Path, text: str) -> list[str]:
    path = folder / "program.py"
    path.write_text(text)
    return [sys.executable, "-S", str(path)]


def test_every_item_gets_its_own_answer(tmp_path):
    with Meteor(command=write_program(tmp_path, STAND_IN)) as meteor:
        corpus, items = meteor.score(["a b", "", "c d e"], [["x"], ["y", "z"], ["w"]])
        assert items.tolist() == [2, 0, 3] and corpus == 5
        again = meteor.score(["a"], [["x"]])
    assert again[0] == 1 and again[1].tolist() == [1]


def test_line_breaks_and_separators_do_not_put_answers_out_of_step(tmp_path):
    texts = ["a\nb", "a ||| b c", "a\r\n\x0b\u2028b", "\ud800 b", "\n"]
    with Meteor(command=write_program(tmp_path, STAND_IN)) as meteor:
        _, items = meteor.score(texts, [["x\ny", "|||"]] * 5)
    assert items.tolist() == [2, 3, 2, 2, 0]
    assert clean_text(" a |||b\n\n c ") == "a b c"


def test_many_items_are_asked_at_once(tmp_path):
    """The second command is far longer than what a pipe holds."""
    with Meteor(command=write_program(tmp_path, STAND_IN)) as meteor:
        corpus, items = meteor.score(["a b c"] * 3000, [["x"]] * 3000)
    assert corpus == 9000 and (items == 3).all()


FAILURES = {
    "ends at once": ("import sys; sys.exit('no table')", "ended .*error output: no table"),
    "ends when asked": ("import sys; input(); sys.exit('lost')", "ended without an answer; its error output: lost"),
    "says something else": (
        "input(); print('Error: 1 2', flush=True); input()",
        r"answered 'Error: 1 2' instead of a line",
    ),
    "says too little": ("input(); print('1 2', flush=True); input()", "instead of a line of 23 numbers"),
    "stays silent": ("input(); input()", "gave no answer for 0.5 seconds; its error output: nothing"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_program_that_fails_is_an_error_with_its_own_words(name, tmp_path):
    text, message = FAILURES[name]
    with Meteor(timeout=0.5 if "silent" in name else 30, command=write_program(tmp_path, text)) as meteor:
        with pytest.raises(RuntimeError, match=message):
            meteor.score(["a b"], [["x"]])
    meteor.close()
    assert meteor.process.poll() is not None


def test_a_program_that_has_ended_is_not_asked(tmp_path):
    with Meteor(command=write_program(tmp_path, "print('ready', flush=True)")) as meteor:
        meteor.process.wait()
        with pytest.raises(RuntimeError, match="ended before it got all requests"):
            meteor.score(["a b"], [["x"]])


def test_texts_are_checked_before_the_program_is_asked(tmp_path):
    with Meteor(command=write_program(tmp_path, STAND_IN)) as meteor:
        with pytest.raises(ValueError, match=r"references\[0\]: expected a list with at least one string"):
            meteor.score(["a"], [[]])
        with pytest.raises(ValueError, match="hypotheses, references: expected one entry per item"):
            meteor.score([], [])
        assert meteor.score(["a"], [["x"]])[0] == 1


def test_a_missing_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(meteor_module, "PACKAGE", "ross3d_no_such_package")
    with pytest.raises(ModuleNotFoundError, match="is not installed; run `pip install .*`, or score without METEOR"):
        find_program()
    (tmp_path / "half_a_package" / "meteor").mkdir(parents=True)
    monkeypatch.setattr(meteor_module, "PACKAGE", "half_a_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="METEOR needs meteor-1.5.jar and data/paraphrase-en.gz .* lacks"):
        find_program()
    (tmp_path / "half_a_package" / "meteor" / "data").mkdir()
    for name in ("meteor-1.5.jar", "data/paraphrase-en.gz"):
        (tmp_path / "half_a_package" / "meteor" / name).touch()
    assert find_program() == tmp_path / "half_a_package" / "meteor" / "meteor-1.5.jar"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="METEOR needs Java, but there is no `java` on PATH"):
        find_java()
    with pytest.raises(FileNotFoundError, match="no `java` on PATH"):
        Meteor()


def make_counts(lengths, function_words, matched, chunks, matches) -> list[float]:
    """A row of numbers; `matched` has content and function words of both sides for each matcher."""
    return [*lengths, *function_words, *np.ravel(matched), chunks, *matches]


def test_meteor_of_counts_by_hand():
    nothing = [0] * 4
    # Four words, one of them a function word, against five; an exact content word, a function word, a synonym.
    row = make_counts((4, 5), (1, 2), [[1, 1, 1, 1], nothing, [1, 1, 0, 0], nothing], 2, (3, 3))
    precision = (0.75 * (1 + 0.8) + 0.25) / (0.75 * 3 + 0.25)
    recall = (0.75 * (1 + 0.8) + 0.25) / (0.75 * 3 + 0.25 * 2)
    expected = precision * recall / (0.85 * precision + 0.15 * recall) * (1 - 0.6 * (2 / 3) ** 0.2)
    empty = make_counts((0, 5), (0, 2), [nothing] * 4, 0, (0, 0))
    assert compute_meteor_of_counts([row, empty]) == pytest.approx([expected, 0])
    assert compute_meteor_of_counts(np.ones((2, 3, 23))).shape == (2, 3)


def test_counts_of_texts_that_are_equal_have_no_chunk(tmp_path):
    """The program's line says one chunk; its sums over a set leave it out."""
    rows = [make_counts((2, size), (0, 0), [[2, 2, 0, 0]] + [[0] * 4] * 3, 1, (2, 2)) for size in (2, 3)]
    lines = [" ".join(map(str, row)) for row in rows]
    program = "".join(f"input(); print({line!r}, flush=True)\n" for line in lines)
    with Meteor(command=write_program(tmp_path, program)) as meteor:
        counts = meteor.get_counts(["a b", "a b"], [["a b"], ["a b c"]])
    assert counts[:, 20].tolist() == [0, 1] and counts.shape == (2, 23)
    assert compute_meteor_of_counts(counts)[0] == 1


@pytest.mark.slow
def test_the_installed_program_scores_the_same_text_best():
    """Where Java and the package are: equal texts, no text, and text with line breaks."""
    try:
        find_program(), find_java()
    except (ModuleNotFoundError, FileNotFoundError) as error:
        pytest.skip(str(error))
    references = [["a red chair by the door"], ["the chair is red", "a red chair"], ["it is left of the bed"]]
    hypotheses = ["a red chair by the door", "", "it is left\nof the bed"]
    with Meteor() as meteor:
        corpus, items = meteor.score(hypotheses, references)
        counts = meteor.get_counts(hypotheses, references)
    assert np.round(items, 6).tolist() == [1, 0, 1] and 0 < corpus < 1
    assert compute_meteor_of_counts(counts) == pytest.approx(items)
    assert compute_meteor_of_counts(counts.sum(axis=0)) == pytest.approx(corpus)
