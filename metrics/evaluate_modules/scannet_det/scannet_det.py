"""Detection in windows of ScanNet views: precision, recall and F1 of oriented boxes written as text.

For `evaluate.load` with this folder; columns and scores are those of `score_scannet_det`.
"""

import datasets

from ross3d.metrics.benchmarks import score_scannet_det
from ross3d.metrics.evaluate_module import NUMBERS, TEXT, make_module


ScanNetDetection = make_module(
    "ScanNetDetection",
    __doc__,
    score_scannet_det,
    predictions=TEXT,
    references=datasets.List({"label": TEXT, "bbox_3d": NUMBERS}),
)
