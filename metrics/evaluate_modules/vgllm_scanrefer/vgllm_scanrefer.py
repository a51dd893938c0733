"""ScanRefer answered with a view and an oriented box in it, written as text.

For `evaluate.load` with this folder; columns and scores are those of `score_vgllm_scanrefer`.
"""

import datasets
import evaluate

from ross3d.metrics.benchmarks import score_vgllm_scanrefer


class VGLLMScanRefer(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Value("string"),
            "references": datasets.List(datasets.Value("float64")),
            "cam2world": datasets.List(datasets.List(datasets.List(datasets.Value("float64")))),
        }
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=score_vgllm_scanrefer.__doc__,
            features=datasets.Features(columns),
        )

    def _compute(self, predictions, references, cam2world):
        return score_vgllm_scanrefer(predictions, references, cam2world)
