"""Two models' judged answers to the same problems -> how often one wins, at any and at equal length.

The length-controlled rate is that of length-controlled AlpacaEval (arXiv 2404.04475): a logistic regression
of the outcome on the difference in length, read where the lengths are the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from verigrad.engine.intervals import mean_interval
from verigrad.engine.schema import VerifiedGroup

TIE = 1e-9  # rewards closer than this are a tie
RIDGE = 1e-2  # pull of both coefficients to 0, so that they exist where one side always wins
NUM_RESAMPLES = 1000
Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How often the later model's answer is the better one; ties count half. Bounds are 95%."""

    rate: float
    low: float
    high: float
    controlled: float  # at equal length
    controlled_low: float
    controlled_high: float
    length_weight: float  # log-odds of winning per standard deviation of extra length
    num_comparisons: int
    num_ties: int
    longer_frac: float  # share of comparisons in which the later model's answer is the longer one

    def in_words(self) -> str:
        """One line."""
        return (
            f"{self.rate:.1%} [{self.low:.1%}, {self.high:.1%}], at equal length {self.controlled:.1%} "
            f"[{self.controlled_low:.1%}, {self.controlled_high:.1%}]; {self.num_comparisons} comparisons, "
            f"{self.num_ties} ties, the answer is longer in {self.longer_frac:.0%}"
        )


def win_rate(
    before: Sequence[VerifiedGroup], after: Sequence[VerifiedGroup], *, seed: int = 0
) -> WinRate | None:
    """The later model's answers against the first's, sample by sample of the problems both were asked.

    The answer with the higher reward wins. Undecided verdicts are in no comparison. Problems are resampled
    for the intervals (1,000 bootstrap draws). None where fewer than two problems can be compared.
    """
    first = {group.problem.id: group for group in before}
    outcomes, lengths, problems = [], [], []
    for number, group in enumerate(after):
        other = first.get(group.problem.id)
        if other is None:
            continue
        pairs = zip(other.rollouts, other.verdicts, group.rollouts, group.verdicts, strict=False)
        for old_rollout, old, new_rollout, new in pairs:
            if old.reward is not None and new.reward is not None:
                difference = new.reward - old.reward
                outcomes.append(0.5 if abs(difference) <= TIE else float(difference > 0))
                lengths.append(new_rollout.num_completion_tokens - old_rollout.num_completion_tokens)
                problems.append(number)
    if len(set(problems)) < 2:
        return None
    won, longer, of = np.array(outcomes), np.array(lengths, float), np.array(problems)
    scale = float(longer.std()) or 1.0
    rate, controlled, weight = rates(won, longer / scale)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(of == number) for number in dict.fromkeys(problems)]
    draws = []
    for _ in range(NUM_RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        draws.append(rates(won[rows], longer[rows] / scale)[:2])
    low, high = np.quantile(np.array(draws), [0.025, 0.975], axis=0)
    if low[0] == high[0]:  # all alike, and so are the draws: as many problems more could still show otherwise
        _, least, most = mean_interval([won[rows].tolist() for rows in members])
        low, high = np.minimum(low, least), np.maximum(high, most)
    return WinRate(
        rate, float(low[0]), float(high[0]), controlled, float(low[1]), float(high[1]), weight,
        num_comparisons=len(won), num_ties=int((won == 0.5).sum()), longer_frac=float((longer > 0).mean()),
    )  # fmt: skip


def rates(won: Vector, longer: Vector) -> tuple[float, float, float]:
    """(win rate, win rate at equal length, weight of length); both [N], length differences in deviations."""
    intercept, weight = logistic(won, np.tanh(longer))
    return float(won.mean()), 1 / (1 + math.exp(-intercept)), weight


def logistic(won: Vector, longer: Vector, *, num_steps: int = 100) -> tuple[float, float]:
    """Intercept and weight of a logistic regression of `won` [N] in [0, 1] on `longer` [N], by Newton."""
    design = np.stack([np.ones_like(longer), longer], axis=1)  # [N, 2]
    beta = np.zeros(2)
    for _ in range(num_steps):
        chance = 1 / (1 + np.exp(-design @ beta))
        slope = design.T @ (won - chance) - RIDGE * beta
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(curve, slope).clip(-2.0, 2.0)
        beta = beta + step
        if np.abs(step).max() < 1e-10:
            break
    return float(beta[0]), float(beta[1])
