"""BLINK: accuracy of choices, and of each sub-task.

For `evaluate.load` with this folder; columns and scores are those of `score_blink`.
"""

from ross3d.metrics.benchmarks import score_blink
from ross3d.metrics.evaluate_module import TEXT, make_module


Blink = make_module("Blink", __doc__, score_blink, predictions=TEXT, references=TEXT, question_types=TEXT)
