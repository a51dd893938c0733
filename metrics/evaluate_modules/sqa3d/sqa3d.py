"""SQA3D: exact match and refined exact match of cleaned answers.

For `evaluate.load` with this folder; columns and scores are those of `score_sqa3d`.
"""

from ross3d.metrics.benchmarks import score_sqa3d
from ross3d.metrics.evaluate_module import TEXT, make_module


SQA3D = make_module("SQA3D", __doc__, score_sqa3d, predictions=TEXT, references=TEXT, question_types=TEXT)
