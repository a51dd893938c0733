"""How long the scores of a full validation set take, METEOR apart.

    python bench/metrics.py [--items 4675] [--rounds 3]

One set of invented predictions for each benchmark, all of as many items as ScanQA's validation set has questions:
answers of 1 to 5 words with 1 to 3 references, captions of 15 to 49 words with 5 references (fewer objects have as
many in Scan2Cap), sets of up to 5 boxes, and windows with up to 8 detected boxes. Words are as uneven as in language.
`bootstrap` is the interval of BLEU-4 over 71 scenes from 10,000 resamples, `bootstrap_items` that of a mean without
scenes. Seconds, the middle of the rounds, and the slowest of all.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from ross3d.bench.harness import describe_run, get_peak_gb, print_line, time_rounds
from ross3d.metrics import benchmarks
from ross3d.metrics.bootstrap import compute_mean_interval, compute_score_interval
from ross3d.metrics.captioning import compute_bleu_of_counts, get_bleu_counts
from ross3d.metrics.qa import SQA3D_QUESTION_TYPES


NUM_WORDS, NUM_SCENES = 3000, 71


class Inventor:
    """Texts and boxes of one seed."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        shares = 1 / np.arange(1, NUM_WORDS + 1)
        self.shares = shares / shares.sum()

    def make_texts(self, count: int, low: int, high: int) -> list[str]:
        """Texts of `low` to `high` words."""
        sizes = self.rng.integers(low, high + 1, count)
        words = [f"w{index}" for index in self.rng.choice(NUM_WORDS, sizes.sum(), p=self.shares)]
        ends = sizes.cumsum()
        return [" ".join(words[end - size : end]) for end, size in zip(ends, sizes, strict=True)]

    def make_references(self, count: int, numbers: tuple[int, int], low: int, high: int) -> list[list[str]]:
        return [self.make_texts(self.rng.integers(numbers[0], numbers[1] + 1), low, high) for _ in range(count)]

    def choose(self, names: tuple[str, ...], count: int) -> list[str]:
        return [names[index] for index in self.rng.integers(0, len(names), count)]

    def make_boxes(self, count: int, width: int) -> np.ndarray:
        """Boxes (count, width) in a room of 4 m, so that some overlap."""
        parts = [self.rng.uniform(0, 4, (count, 3)), self.rng.uniform(0.2, 2, (count, 3))]
        return np.concatenate([*parts, self.rng.uniform(-3, 3, (count, width - 6))], axis=1)

    def make_box_sets(self, count: int) -> list[np.ndarray]:
        return [self.make_boxes(self.rng.integers(0, 6), 6) for _ in range(count)]

    def make_detections(self, count: int) -> list[list[dict[str, Any]]]:
        labels = ("chair", "table", "bed", "lamp", "sink")
        return [
            [
                {"label": label, "bbox_3d": box.round(2).tolist()}
                for label, box in zip(self.choose(labels, size), self.make_boxes(size, 9), strict=True)
            ]
            for size in self.rng.integers(0, 9, count)
        ]


def make_ways(num_items: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; the sets are made here."""
    inventor = Inventor(seed=0)
    answers, answer_references = (
        inventor.make_texts(num_items, 1, 5),
        inventor.make_references(num_items, (1, 3), 1, 5),
    )
    captions = inventor.make_texts(num_items, 15, 49)
    caption_references = inventor.make_references(num_items, (5, 5), 10, 39)
    letters, rights = inventor.choose(tuple("ABCD"), num_items), inventor.choose(tuple("ABCD"), num_items)
    marked = [f"({letter})" for letter in rights]
    boxes, targets = inventor.make_boxes(num_items, 6), inventor.make_boxes(num_items, 6)
    predicted_sets, target_sets = inventor.make_box_sets(num_items), inventor.make_box_sets(num_items)
    detections, objects = inventor.make_detections(num_items), inventor.make_detections(num_items)
    lines = ["\n".join(json.dumps(box) for box in row) for row in detections]
    oriented, meant = inventor.make_boxes(num_items, 9), inventor.make_boxes(num_items, 9)
    located = [json.dumps({"frame": 1, "bbox_3d": box.round(2).tolist()}) for box in oriented]
    views = [np.tile(np.eye(4), (24, 1, 1))] * num_items
    kinds = {
        "sqa3d": SQA3D_QUESTION_TYPES,
        "scanrefer": benchmarks.SCANREFER_TYPES,
        "multi3drefer": benchmarks.MULTI3DREFER_TYPES,
        "vsibench": benchmarks.VSIBENCH_NUMBERS,
        "vstibench": benchmarks.VSTIBENCH_NUMBERS,
        "tasks": ("Count", "Depth"),
        "sources": tuple(benchmarks.CVBENCH_SOURCES),
    }
    types = {name: inventor.choose(values, num_items) for name, values in kinds.items()}
    said, wanted = (inventor.rng.uniform(0.5, 5, num_items).round(1).astype(str).tolist() for _ in range(2))
    scenes, scores = inventor.rng.integers(0, NUM_SCENES, num_items), inventor.rng.random(num_items)
    counts = get_bleu_counts(answers, answer_references)
    return {
        "scanqa": lambda: benchmarks.score_scanqa(answers, answer_references),
        "scan2cap": lambda: benchmarks.score_scan2cap(captions, caption_references),
        "sqa3d": lambda: benchmarks.score_sqa3d(answers, [row[0] for row in answer_references], types["sqa3d"]),
        "scanrefer": lambda: benchmarks.score_scanrefer(list(boxes), list(targets), types["scanrefer"]),
        "multi3drefer": lambda: benchmarks.score_multi3drefer(predicted_sets, target_sets, types["multi3drefer"]),
        "vsibench": lambda: benchmarks.score_vsibench(said, wanted, types["vsibench"]),
        "vstibench": lambda: benchmarks.score_vstibench(said, wanted, types["vstibench"]),
        "cvbench": lambda: benchmarks.score_cvbench(letters, marked, types["sources"], types["tasks"]),
        "blink": lambda: benchmarks.score_blink(letters, marked, types["tasks"]),
        "vgllm_scanrefer": lambda: benchmarks.score_vgllm_scanrefer(located, meant, views),
        "scannet_det": lambda: benchmarks.score_scannet_det(lines, objects),
        "bootstrap": lambda: compute_score_interval(counts, lambda sums: compute_bleu_of_counts(sums)[:, 3], scenes),
        "bootstrap_items": lambda: compute_mean_interval(scores),
    }


def run(num_items: int, rounds: int) -> dict[str, Any]:
    seconds, results = time_rounds(make_ways(num_items), rounds)
    for name, scores in results.items():
        if isinstance(scores, dict) and scores["num_items"] != num_items:
            raise RuntimeError(f"bench/metrics.py: expected {num_items} items in {name}, got {scores['num_items']}.")
    return {
        "bench": "metrics", **describe_run(), "items": num_items, "rounds": rounds,
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "slowest_s": round(max(max(times) for times in seconds.values()), 3), "peak_gb": round(get_peak_gb(), 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=4675, help="number of questions of the benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way is timed")
    options = parser.parse_args()
    print_line(run(options.items, options.rounds))


if __name__ == "__main__":
    main()
