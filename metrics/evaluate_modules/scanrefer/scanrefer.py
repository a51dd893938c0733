"""ScanRefer: accuracy of one axis-aligned box an expression at IoU 0.25 and 0.5.

For `evaluate.load` with this folder; columns and scores are those of `score_scanrefer`.
"""

from ross3d.metrics.benchmarks import score_scanrefer
from ross3d.metrics.evaluate_module import NUMBERS, TEXT, make_module


ScanRefer = make_module(
    "ScanRefer", __doc__, score_scanrefer, predictions=NUMBERS, references=NUMBERS, question_types=TEXT
)
