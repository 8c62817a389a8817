"""Scores of lm-evaluation-harness, document by document."""

import numpy as np

from verigrad.engine import lm_harness


def test_a_document_is_scored_by_the_first_metric_that_is_a_number():
    samples = [
        {"doc_id": 1, "acc": np.float32(1)},
        {"doc_id": 2, "acc": True, "acc_norm": 0.0},
        {"doc_id": 3, "f1": (1.0, 0.5)},
        {"doc_id": 4, "f1": (1.0, 0.5), "exact_match": 0.0},
        {"doc_id": 5, "bleu": 0.3},
        {"doc_id": 6, "acc": float("nan")},
    ]
    assert lm_harness._scores(samples) == [("1", 1.0), ("2", 1.0), ("4", 0.0)]
