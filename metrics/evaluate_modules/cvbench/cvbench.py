"""CV-Bench: accuracy of choices in 2D and 3D.

For `evaluate.load` with this folder; columns and scores are those of `score_cvbench`.
"""

from ross3d.metrics.benchmarks import score_cvbench
from ross3d.metrics.evaluate_module import TEXT, make_module


CVBench = make_module(
    "CVBench", __doc__, score_cvbench, predictions=TEXT, references=TEXT, sources=TEXT, question_types=TEXT
)
