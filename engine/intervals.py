"""Rewards of an evaluation to scores with 95% intervals. Problems are the units; needs no torch.

Several samples of one problem are not independent draws, so every interval counts problems.
"""

import functools
import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054

Interval = tuple[float, float, float]
"""Estimate, low, high."""


def mean_interval(per_problem: Sequence[Sequence[float]]) -> Interval:
    """Mean over problems of each one's mean reward, with its 95% interval (arXiv 2411.00640).

    `per_problem` [P][n]. The standard error is that of the problems' means. Where every problem's mean
    is 0 or 1 (one sample each, or samples that all agree) it is Wilson's interval instead, which does
    not shrink to a point when everything is wrong. NaN bounds when one problem is all there is.
    """
    means = [statistics.fmean(rewards) for rewards in per_problem]
    if not means:
        raise ValueError("an interval over 0 problems: evaluate at least one")
    if all(mean in (0.0, 1.0) for mean in means):
        return _wilson(int(sum(means)), len(means))
    mean, low, high = _normal(means)
    if low == high:  # all alike: as many problems more could still show otherwise
        half = _wilson(0, len(means))[2]
        low, high = mean - half, mean + half
    if len(means) > 1 and all(0 <= value <= 1 for value in means):  # no mean lies outside
        low, high = max(0.0, low), min(1.0, high)
    return mean, low, high


def paired_gain(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean gain over problems, with its 95% interval; both [P] mean reward of the same problems in order.

    Pairing takes out how hard each problem is: far narrower than the difference of two intervals.
    """
    changes = [new - old for old, new in zip(before, after, strict=True)]
    mean, low, high = _normal(changes)
    if low == high:  # all changed alike, or none: as many problems more could still show otherwise
        half = _wilson(0, len(changes))[2]
        low, high = mean - half, mean + half
    if len(changes) > 1 and all(0 <= value <= 1 for value in (*before, *after)):
        low, high = max(-1.0, low), min(1.0, high)
    return mean, low, high


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models on the same problems, the second against the first."""

    gain: float
    low: float  # 95% interval of the gain, as `paired_gain`
    high: float
    p: float  # as `sign_flip_p`
    num_better: int  # problems on which the second scores higher
    num_worse: int
    num_same: int


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Paired:
    """Everything said about two models; both [P], a score per problem, of the same problems in order."""
    gain, low, high = paired_gain(before, after)
    changes = [new - old for old, new in zip(before, after, strict=True)]
    better, worse = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return Paired(gain, low, high, sign_flip_p(changes), better, worse, len(changes) - better - worse)


def sign_flip_p(changes: Sequence[float]) -> float:
    """Two-sided P of a mean change at least this far from 0, were each problem's change as likely to go the
    other way (Fisher's permutation test for pairs).

    Exact up to 16 problems that changed; beyond, from 20,000 seeded draws: its standard error is at most
    0.0036, and 0.0016 at P = 0.05, and it is never below 1/20,001.
    """
    moved = np.array([change for change in changes if change])
    observed = abs(moved.sum()) * (1 - 1e-9)  # equal sums may differ in their last bits
    if len(moved) <= EXACT_FLIPS:
        flips = np.arange(2 ** len(moved))[:, None] >> np.arange(len(moved)) & 1
        return float(np.mean(np.abs((2 * flips - 1) @ moved) >= observed))
    rng, extreme = np.random.default_rng(0), 0
    for _ in range(NUM_DRAWS // 1000):
        flips = rng.integers(0, 2, (1000, len(moved)), dtype=np.int8)
        extreme += int((np.abs((2 * flips - 1) @ moved) >= observed).sum())
    return (extreme + 1) / (NUM_DRAWS + 1)


EXACT_FLIPS, NUM_DRAWS = 16, 20_000


def _normal(values: Sequence[float]) -> Interval:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = Z_95 * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _wilson(num_right: int, num: int) -> Interval:
    """Wilson's score interval of a proportion (1927)."""
    mean = num_right / num
    scale = 1 + Z_95**2 / num
    centre = (mean + Z_95**2 / (2 * num)) / scale
    half = Z_95 / scale * math.sqrt(mean * (1 - mean) / num + Z_95**2 / (4 * num**2))
    return mean, max(0.0, centre - half), min(1.0, centre + half)


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a right one (arXiv 2107.03374).

    Unbiased for k <= num_samples; plugging the share of right ones into 1 - (1 - p)**k is not.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: k must be between 1 and the number of samples")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def maj_at_k(votes: Sequence[Hashable | None], rewards: Sequence[float], k: int) -> float:
    """`maj_at_ks` of one k."""
    return maj_at_ks(votes, rewards, [k])[k]


def maj_at_ks(
    votes: Sequence[Hashable | None], rewards: Sequence[float], ks: Sequence[int]
) -> dict[int, float]:
    """Expected reward of the most frequent answer among k of the samples (arXiv 2203.11171), for each k.

    `votes` [n] are answers made canonical by the verifier's own equivalence, None where there is none;
    None never votes. `rewards` [n] is what each sample earns, an answer earning the mean of its samples.
    Exact over all subsets of size k, to 10 digits; tied answers share the credit, and a subset without
    votes earns 0. Some milliseconds for n = 256 and all ks together.
    """
    n = len(votes)
    if bad := [k for k in ks if not 1 <= k <= n]:
        raise ValueError(f"maj@{bad[0]} of {n} samples: k must be between 1 and the number of samples")
    earned: dict[Hashable, list[float]] = {}
    for vote, reward in zip(votes, rewards, strict=True):
        if vote is not None:
            earned.setdefault(vote, []).append(reward)
    sizes = Counter({vote: len(each) for vote, each in earned.items()})
    paying: dict[int, float] = {}  # size -> reward of all answers of that size: their chances are the same
    for vote, each in earned.items():
        paying[sizes[vote]] = paying.get(sizes[vote], 0.0) + statistics.fmean(each)
    result = dict.fromkeys(ks, 0.0)
    for some in filter(None, [ks] if n <= MAX_SHARED else [[k] for k in ks]):
        for size, reward in paying.items():
            rivals = sorted(sizes.values(), reverse=True)
            rivals.remove(size)
            if reward:
                chances = _win_shares(size, rivals, num_samples=n, ks=some)
                for k, chance in zip(some, chances, strict=True):
                    result[k] += reward * chance
    return {k: round(value, 10) for k, value in result.items()}  # a sure thing is 1, not 1 - 1e-13


MAX_SHARED = 1000
"""Samples up to which binomials of p = 1/2 serve every k at once; beyond, they would underflow."""


def _win_shares(size: int, rivals: Sequence[int], *, num_samples: int, ks: Sequence[int]) -> list[float]:
    """Chance that an answer given `size` times has the most votes in k draws, a tie of m counting 1/m.

    Drawing k of n without replacement is drawing each sample with probability p, given that k were drawn. So
    an answer's votes are binomial, independent of the others', and what is left is to add them up: exact for
    any p, with positive terms only. `rivals` are the sizes of the other answers, largest first.
    """
    largest = max(ks)
    p = 0.5 if num_samples <= MAX_SHARED else largest / (num_samples + 1)
    own_votes, drawn = _binomial(size, p), _binomial(num_samples, p)
    shares = np.zeros(len(ks))
    for own in range(1, min(size, largest) + 1):
        strong = [rival for rival in rivals if rival >= own]  # the others can neither win nor tie
        room = largest - own
        ways = np.zeros((min(len(strong), room // own) + 1, room + 1))  # [tied, votes of all others]
        weak = _binomial(num_samples - size - sum(strong), p)[: room + 1]
        ways[0, : len(weak)] = weak
        for rival in strong:
            ways = _with_rival(ways, _binomial(rival, p)[: own + 1])
        credit = own_votes[own] * (ways / np.arange(1, len(ways) + 1)[:, None]).sum(0)  # [room + 1]
        shares += [credit[k - own] / drawn[k] if k >= own else 0.0 for k in ks]
    return [float(share) for share in shares]


def _with_rival(ways: NDArray[np.float64], votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """`ways` [tied, drawn] with one more rival, whose last allowed number of votes ties."""
    own = len(votes) - 1
    num_drawn = ways.shape[1]
    result: NDArray[np.float64] = votes[0] * ways
    for count in range(1, min(own, num_drawn)):
        result[:, count:] += votes[count] * ways[:, : num_drawn - count]
    if own < num_drawn:
        result[1:, own:] += votes[own] * ways[:-1, : num_drawn - own]
    return result


@functools.cache
def _binomial(num: int, p: float) -> NDArray[np.float64]:
    """[num + 1] chance of each number of successes; read-only."""
    counts = np.arange(num + 1)
    choose = [math.lgamma(num + 1) - math.lgamma(i + 1) - math.lgamma(num - i + 1) for i in range(num + 1)]
    chances: NDArray[np.float64] = np.exp(
        np.array(choose) + counts * math.log(p) + (num - counts) * math.log1p(-p)
    )
    chances.setflags(write=False)
    return chances
