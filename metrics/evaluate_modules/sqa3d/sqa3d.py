"""SQA3D: exact match and refined exact match of cleaned answers.

For `evaluate.load` with this folder; columns and scores are those of `score_sqa3d`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_sqa3d


class SQA3D(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("string"),
            "question_types": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_sqa3d.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, question_types):
        return score_sqa3d(predictions, references, question_types)
