"""VSI-Bench: accuracy of choices, mean relative accuracy of numbers.

For `evaluate.load` with this folder; columns and scores are those of `score_vsibench`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_vsibench


class VSIBench(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("string"),
            "question_types": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_vsibench.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, question_types):
        return score_vsibench(predictions, references, question_types)
