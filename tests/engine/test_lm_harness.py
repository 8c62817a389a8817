"""Scores of lm-evaluation-harness, document by document."""

import sys
from types import ModuleType

import numpy as np

from verigrad.engine import lm_harness
from verigrad.engine.screen import Screen
from verigrad.engine.side_effects import SideEffects
from verigrad.engine.suite import LmEval


def test_each_metric_that_is_a_number_has_a_row_of_its_own():
    samples = [
        {"doc_id": 1, "acc": np.float32(1)},
        {"doc_id": 2, "acc": True, "acc_norm": 0.0},
        {"doc_id": 3, "f1": (1.0, 0.5)},
        {"doc_id": 4, "f1": (1.0, 0.5), "exact_match": 0.0},
        {"doc_id": 5, "bleu": 0.3},
        {"doc_id": 6, "acc": float("nan")},
    ]
    assert lm_harness._scores(samples) == {
        "acc": {"1": 1.0, "2": 1.0},
        "acc_norm": {"2": 0.0},
        "exact_match": {"4": 0.0},
    }


def test_each_filter_of_a_task_has_a_row_of_its_own():
    samples = [
        {"doc_id": doc, "filter": way, "exact_match": score}
        for way, scores in (("strict-match", (0, 1, 0)), ("flexible-extract", (1, 1, 0)))
        for doc, score in enumerate(scores)
    ]
    assert lm_harness._scores(samples) == {
        "exact_match, strict-match": {"0": 0.0, "1": 1.0, "2": 0.0},
        "exact_match, flexible-extract": {"0": 1.0, "1": 1.0, "2": 0.0},
    }


def test_the_table_names_task_metric_and_filter(monkeypatch, tmp_path):
    """The harness itself is a fake that answers as it does."""

    def simple_evaluate(*, model_args, **_):
        better = model_args["pretrained"] == "after"
        scored = [{"doc_id": n, "filter": way, "exact_match": float(better or way == "loose")}
                  for way in ("strict", "loose") for n in range(8)]  # fmt: skip
        return {"samples": {"gsm8k": scored, "arc_easy": [{"doc_id": n, "filter": "none", "acc": 1.0,
                                                           "acc_norm": 0.0} for n in range(8)]}}  # fmt: skip

    harness, tasks = ModuleType("lm_eval"), ModuleType("lm_eval.tasks")
    harness.simple_evaluate, tasks.TaskManager = simple_evaluate, lambda **_: None
    monkeypatch.setitem(sys.modules, "lm_eval", harness)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", tasks)
    found = lm_harness.added(
        SideEffects([]), LmEval(tasks=["gsm8k", "arc_easy"]), {"a": "before", "b": "after"}, Screen()
    )
    assert [(one.name, one.paired.gain) for one in found.effects] == [
        ("lm_eval gsm8k exact_match, strict", 1.0),
        ("lm_eval gsm8k exact_match, loose", 0.0),
        ("lm_eval arc_easy acc", 0.0),
        ("lm_eval arc_easy acc_norm", 0.0),
    ]
