"""A completion and a budget -> a reward for its length, which no other part of the reward looks at."""

import math
from typing import Any

from verigrad.verifiers.base import Attempt, Outcome, Verdict, verifier
from verigrad.verifiers.options import number, one_of, whole, with_options
from verigrad.verifiers.text_units import num_characters, words

MAX_BUDGET = 10**7


def _without_effect(mode: str = "max", at_budget: Any = None, slope: Any = None, **_: Any) -> str:
    if mode == "exact" and at_budget is not None:
        return "at_budget has no effect with mode = 'exact'; remove it"
    if mode == "cosine" and slope is not None:
        return "slope has no effect with mode = 'cosine'; remove it"
    return ""


@verifier(
    "length_budget",
    version="1",
    shaping=True,
    deadline_s=5.0,
    canary={"response": "one two three", "answer": None, "meta": {"budget": 3}},
)
@with_options(
    _without_effect,
    budget=whole(1, MAX_BUDGET),
    mode=one_of("max", "exact", "cosine"),
    unit=one_of("words", "characters"),
    of=one_of("response", "final_text"),
    slope=number(1e-9, 1),
    at_budget=number(0, 1),
)
def length_budget(
    attempt: Attempt,
    budget: int,
    mode: str = "max",
    unit: str = "words",
    of: str = "response",
    slope: float = 0.0003,
    at_budget: float | None = None,
) -> Verdict:
    """Pays for a length of at most, of exactly, or well below a budget.

    The formulas stand in docs/verifiers/length_budget.md. `budget` is an option or a column of the row, in
    units. Says nothing about being right: join it to a gate in `combine`.
    """
    text = attempt.text if of == "response" else attempt.final_text
    length = len(words(text)) if unit == "words" else num_characters(text)
    if mode == "cosine":
        reward = cosine(length, budget, 0.0 if at_budget is None else at_budget)
    elif mode == "exact":
        reward = clip(1 - slope * abs(budget - length))
    else:
        reward = clip(slope * (budget - length) + (1.0 if at_budget is None else at_budget))
    outcome: Outcome = "right" if reward >= 1 else "partial" if reward > 0 else "wrong"
    return Verdict(reward, outcome, reason=f"{length} {unit}, budget {budget}")


def cosine(length: int, budget: int, at_budget: float) -> float:
    """From 1 at length 0 along half a cosine to `at_budget`; 0 beyond the budget (arXiv 2502.03373)."""
    if length > budget:
        return 0.0
    return at_budget + (1 - at_budget) * (1 + math.cos(math.pi * length / budget)) / 2


def clip(value: float) -> float:
    """The nearest number from 0 to 1."""
    return min(1.0, max(0.0, value))
