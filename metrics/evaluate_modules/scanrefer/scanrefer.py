"""ScanRefer: accuracy of one axis-aligned box an expression at IoU 0.25 and 0.5.

For `evaluate.load` with this folder; columns and scores are those of `score_scanrefer`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_scanrefer


class ScanRefer(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.List(datasets.Value("float64")),
            "references": datasets.List(datasets.Value("float64")),
            "question_types": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_scanrefer.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, question_types):
        return score_scanrefer(predictions, references, question_types)
