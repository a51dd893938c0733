"""ScanQA: caption scores and exact match of short answers.

For `evaluate.load` with this folder; columns and scores are those of `score_scanqa`.
`compute(..., use_meteor=True)` adds METEOR, which needs Java and `pycocoevalcap`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_scanqa
from ross3d.metrics.meteor import Meteor


class ScanQA(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.List(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_scanqa.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, use_meteor=False):
        if not use_meteor:
            return score_scanqa(predictions, references)
        with Meteor() as meteor:
            return score_scanqa(predictions, references, meteor)
