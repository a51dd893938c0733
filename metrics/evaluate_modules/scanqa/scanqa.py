"""ScanQA: caption scores and exact match of short answers.

For `evaluate.load` with this folder; columns and scores are those of `score_scanqa`.
`compute(..., use_meteor=True)` adds METEOR, which needs Java and `pycocoevalcap`.
"""

from ross3d.metrics.benchmarks import score_scanqa
from ross3d.metrics.evaluate_module import TEXT, TEXTS, make_module, offer_meteor


ScanQA = make_module("ScanQA", __doc__, offer_meteor(score_scanqa), predictions=TEXT, references=TEXTS)
