"""CV-Bench: accuracy of choices in 2D and 3D.

For `evaluate.load` with this folder; columns and scores are those of `score_cvbench`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_cvbench


class CVBench(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.Value("string"),
            "sources": datasets.Value("string"),
            "question_types": datasets.Value("string"),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_cvbench.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, sources, question_types):
        return score_cvbench(predictions, references, sources, question_types)
