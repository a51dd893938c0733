"""Detection in windows of ScanNet views: precision, recall and F1 of oriented boxes written as text.

For `evaluate.load` with this folder; columns and scores are those of `score_scannet_det`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_scannet_det


class ScanNetDetection(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.List(
                {"label": datasets.Value("string"), "bbox_3d": datasets.List(datasets.Value("float64"))}
            ),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_scannet_det.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references):
        return score_scannet_det(predictions, references)
