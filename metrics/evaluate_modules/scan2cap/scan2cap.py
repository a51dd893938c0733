"""Scan2Cap: caption scores over all objects; the empty text stands for an object without a matching proposal.

For `evaluate.load` with this folder; columns and scores are those of `score_scan2cap`.
`compute(..., use_meteor=True)` adds METEOR, which needs Java and `pycocoevalcap`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_scan2cap
from ross3d.metrics.meteor import Meteor


class Scan2Cap(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.List(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_scan2cap.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, use_meteor=False):
        if not use_meteor:
            return score_scan2cap(predictions, references)
        with Meteor() as meteor:
            return score_scan2cap(predictions, references, meteor)
