"""Replies of a judge -> preferences, scores and yes or no; anything but one clear judgement is undecided.

Only what the judge itself wrote is read, never the question.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verigrad.verifiers.judge_base import Question, Reply
from verigrad.verifiers.judge_prompts import SCORES

LEAST_MASS = 0.5  # of all choices together; with less the judge was about to say something else


@dataclass(frozen=True, slots=True)
class Choice:
    """One judgement as read: what was chosen, and how the probability lies among the choices."""

    chosen: str
    probs: Mapping[str, float]  # sums to 1; 1 for what was chosen where the judge tells none


@dataclass(frozen=True, slots=True)
class Preference:
    """What a judge makes of answers A and B. `p_a` is None where nothing can be said, and `why` tells it."""

    p_a: float | None
    winner: str  # "a", "b", or "" for a tie and for undecided
    agreed: bool | None  # whether both orders chose the same answer; None where one order was asked or read
    why: str = ""


def choice_of(question: Question, reply: Reply) -> Choice | str:
    """The one clear choice of a reply, or why there is none."""
    if reply.text is None:
        return reply.error
    chosen = read_choice(reply.text, question.choices, reasons=question.reasons)
    if chosen is None:
        return f"no clear judgement: {_short(reply.text)}"
    return Choice(chosen, _normal(reply.probs, chosen, question.choices))


def read_choice(text: str, choices: Sequence[str], *, reasons: bool = False) -> str | None:
    """The choice that a reply consists of; with `reasons`, that its last line, `Verdict: ...`, names.

    None for two verdicts, for anything after the verdict, and for a thought that never ends.
    """
    _, closed, after = text.rpartition("</think>")
    said = after if closed else text
    if "<think>" in said:
        return None
    one = "|".join(re.escape(choice) for choice in sorted(choices, key=len, reverse=True))
    if not reasons:
        match = re.fullmatch(rf"[\s*\"'`(\[]*(?:(?:answer|verdict|score)\W{{0,3}}\s*)?({one})[\s*\"'`.)\]]*",
                             said, re.IGNORECASE)  # fmt: skip
        return _as_given(match[1], choices) if match else None
    lines = [line for line in said.splitlines() if line.strip()]
    verdicts = [line for line in lines if re.match(r"\W*verdict\b", line, re.IGNORECASE)]
    if len(verdicts) != 1 or verdicts[0] != lines[-1]:
        return None
    match = re.fullmatch(rf"[\s*_#>]*verdict[\s*_]*:[\s*_\"'`]*({one})[\s*_\"'`.]*", lines[-1], re.IGNORECASE)
    return _as_given(match[1], choices) if match else None


def preference(first: Choice | str, second: Choice | str | None) -> Preference:
    """Of the question A, B and of the question B, A (None: not asked) -> what is preferred.

    `p_a` is the mean of what both orders give A (arXiv 2309.00267). Where they choose different answers the
    judge went by the order: a tie.
    """
    if isinstance(first, str):
        return Preference(None, "", None, first)
    if second is None:
        p_a = first.probs["1"]
        return Preference(p_a, _winner(first.chosen == "1", p_a), None)
    if isinstance(second, str):
        return Preference(None, "", None, second)
    p_a = soft_label(first.probs["1"], second.probs["2"])
    agreed = (first.chosen == "1") == (second.chosen == "2")
    return Preference(p_a, _winner(first.chosen == "1", p_a) if agreed else "", agreed)


def soft_label(p_a_first: float, p_a_second: float) -> float:
    """Probability that A is better, from both orders: their mean."""
    return (p_a_first + p_a_second) / 2


def expected_score(probs: Mapping[str, float]) -> float:
    """The likelihood-weighted mean of 1 to 10 (direct RLAIF, arXiv 2309.00267); weights need not sum to 1."""
    total = math.fsum(probs.get(choice, 0.0) for choice in SCORES)
    return math.fsum(int(choice) * probs.get(choice, 0.0) for choice in SCORES) / total


def reward_of_score(expected: float) -> float:
    """A score from 1 to 10 as a reward from -1 to 1."""
    return (expected - 5.5) / 4.5


def _winner(chose_a: bool, p_a: float) -> str:
    """A choice whose own probability says otherwise (sampled at a temperature) is no clear winner."""
    return ("a" if p_a > 0.5 else "") if chose_a else ("b" if p_a < 0.5 else "")


def _normal(probs: Mapping[str, float] | None, chosen: str, choices: Sequence[str]) -> dict[str, float]:
    total = math.fsum(probs.get(choice, 0.0) for choice in choices) if probs else 0.0
    if not probs or not LEAST_MASS <= total <= 1.001 * len(choices):
        return {choice: float(choice == chosen) for choice in choices}
    return {choice: probs.get(choice, 0.0) / total for choice in choices}


def _as_given(found: str, choices: Sequence[str]) -> str:
    return next(choice for choice in choices if choice.casefold() == found.casefold())


def _short(text: str) -> str:
    line = " ".join(text.split())
    shown = line if len(line) <= 80 else f"{line[:77]}..."
    return repr(shown)
