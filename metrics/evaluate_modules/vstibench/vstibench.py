"""VSTI-Bench: accuracy of choices, mean relative accuracy of numbers.

For `evaluate.load` with this folder; columns and scores are those of `score_vstibench`.
"""

from ross3d.metrics.benchmarks import score_vstibench
from ross3d.metrics.evaluate_module import TEXT, make_module


VSTIBench = make_module("VSTIBench", __doc__, score_vstibench, predictions=TEXT, references=TEXT, question_types=TEXT)
