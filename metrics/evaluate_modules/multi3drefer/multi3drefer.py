"""Multi3DRefer: F1 of sets of axis-aligned boxes at IoU 0.25 and 0.5.

For `evaluate.load` with this folder; columns and scores are those of `score_multi3drefer`.
"""

from ross3d.metrics.benchmarks import score_multi3drefer
from ross3d.metrics.evaluate_module import BOXES, TEXT, make_module


Multi3DRefer = make_module(
    "Multi3DRefer", __doc__, score_multi3drefer, predictions=BOXES, references=BOXES, question_types=TEXT
)
