"""ScanRefer answered with a view and an oriented box in it, written as text.

For `evaluate.load` with this folder; columns and scores are those of `score_vgllm_scanrefer`.
"""

from ross3d.metrics.benchmarks import score_vgllm_scanrefer
from ross3d.metrics.evaluate_module import MATRICES, NUMBERS, TEXT, make_module


VGLLMScanRefer = make_module(
    "VGLLMScanRefer", __doc__, score_vgllm_scanrefer, predictions=TEXT, references=NUMBERS, cam2world=MATRICES
)
