"""Tasks of lm-evaluation-harness, where it is installed -> rows of a side-effect table.

Each model is given to the harness as a Hugging Face folder, and its per-document scores are compared pair by
pair like those of our own sets (github.com/EleutherAI/lm-evaluation-harness).
"""

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from verigrad.engine.config import ConfigError
from verigrad.engine.screen import Screen
from verigrad.engine.side_effects import Effect, SideEffects, effect, held_against_each_other
from verigrad.engine.suite import LmEval

METRICS = (
    "acc",
    "exact_match",
    "acc_norm",
    "f1",
)  # those that are read: one number a document, higher better
PLAIN = "none"  # what the harness calls the filter of a task that filters nothing


def require(wanted: LmEval) -> None:
    """Raise ConfigError where the harness is not installed, or a task's folder is not there."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            f"the suite asks for tasks of lm-evaluation-harness ({', '.join(wanted.tasks)}), which is not "
            "installed; `pip install lm_eval`, or remove [lm_eval] from the suite"
        )
    if wanted.include_path and not Path(wanted.include_path).is_dir():
        raise ConfigError(
            f"lm_eval.include_path = {wanted.include_path!r}: no such folder (looked from {Path.cwd()})"
        )


def added(found: SideEffects, wanted: LmEval, folders: Mapping[str, str], screen: Screen) -> SideEffects:
    """The table with a row for each task, metric and filter; `folders` has the first model first."""
    scores: dict[str, dict[str, dict[str, float]]] = {}
    for label, folder in folders.items():
        screen.say(f"{label}: {', '.join(wanted.tasks)} by lm-evaluation-harness")
        scores[label] = by_document(folder, wanted)
    first, *others = scores
    effects: list[Effect] = []
    for other in others:
        for name in scores[first]:
            pair = (scores[first][name], scores[other].get(name, {}))
            effects += effect(f"lm_eval {name}", name, pair, "higher", (first, other))
    return dataclasses.replace(found, effects=held_against_each_other([*found.effects, *effects]))


def by_document(folder: str, wanted: LmEval) -> dict[str, dict[str, float]]:
    """`TASK METRIC`, or `TASK METRIC, FILTER` -> document -> score."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    try:
        outcome: Any = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": folder, "device": "cpu"} if not _has_gpu() else {"pretrained": folder},
            tasks=list(wanted.tasks),
            limit=wanted.limit,
            num_fewshot=wanted.num_fewshot,
            task_manager=TaskManager(include_path=wanted.include_path or None),
            log_samples=True,
            bootstrap_iters=0,
        )
    except (KeyError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"lm-evaluation-harness: {reason}; correct [lm_eval] of the suite") from error
    found: dict[str, dict[str, float]] = {}
    for task, samples in outcome["samples"].items():
        found |= {f"{task} {name}": scores for name, scores in _scores(samples).items()}
    return found


def _scores(samples: Any) -> dict[str, dict[str, float]]:
    """Metric and filter -> document -> score; a document comes once for each filter of its task."""
    found: dict[str, dict[str, float]] = {}
    for sample in samples:
        way = str(sample.get("filter", PLAIN))
        for metric in METRICS:
            # Some tasks give a tuple for their f1, from which only the whole table makes a number.
            value = sample.get(metric)
            if isinstance(value, Real) and math.isfinite(value):
                name = metric if way == PLAIN else f"{metric}, {way}"
                found.setdefault(name, {})[str(sample["doc_id"])] = float(value)
    return found


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
