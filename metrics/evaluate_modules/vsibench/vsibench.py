"""VSI-Bench: accuracy of choices, mean relative accuracy of numbers.

For `evaluate.load` with this folder; columns and scores are those of `score_vsibench`.
"""

from ross3d.metrics.benchmarks import score_vsibench
from ross3d.metrics.evaluate_module import TEXT, make_module


VSIBench = make_module("VSIBench", __doc__, score_vsibench, predictions=TEXT, references=TEXT, question_types=TEXT)
