"""Scan2Cap: caption scores over all objects; an object without a matching proposal has the empty text.

For `evaluate.load` with this folder; columns and scores are those of `score_scan2cap`.
`compute(..., use_meteor=True)` adds METEOR, which needs Java and `pycocoevalcap`.
"""

from ross3d.metrics.benchmarks import score_scan2cap
from ross3d.metrics.evaluate_module import TEXT, TEXTS, make_module, offer_meteor


Scan2Cap = make_module("Scan2Cap", __doc__, offer_meteor(score_scan2cap), predictions=TEXT, references=TEXTS)
