"""Rewards of an evaluation to scores with 95% intervals. Problems are the units; needs no torch.

Several samples of one problem are not independent draws, so every interval counts problems.
"""

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence

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
    """Expected reward of the most frequent answer among k of the samples (arXiv 2203.11171).

    `votes` [n] are answers made canonical by the verifier's own equivalence, None where there is none;
    None never votes. `rewards` [n] is what each answer earns. Exact over all subsets of size k; tied
    answers share the credit, and a subset without votes earns 0.
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"maj@{k} of {len(votes)} samples: k must be between 1 and the number of samples")
    sizes = Counter(vote for vote in votes if vote is not None)
    earned = {vote: reward for vote, reward in zip(votes, rewards, strict=True) if vote is not None}
    num_silent = len(votes) - sizes.total()
    return math.fsum(
        earned[vote] * _win_share(size, [*(sizes - Counter({vote: size})).values()], num_silent, k)
        for vote, size in sizes.items()
        if earned[vote]
    )


def _win_share(size: int, rivals: Sequence[int], num_silent: int, k: int) -> float:
    """Chance that an answer given `size` times has the most votes in k draws, a tie of m counting 1/m."""
    total = math.comb(size + sum(rivals) + num_silent, k)
    share = 0.0
    for own in range(1, min(size, k) + 1):
        # ways[drawn, tied]: subsets of the others in which nobody has more than `own` votes
        ways = {(drawn, 0): math.comb(num_silent, drawn) for drawn in range(min(num_silent, k - own) + 1)}
        for rival in rivals:
            ways = _add_rival(ways, rival, own=own, room=k - own)
        share += math.fsum(
            math.comb(size, own) * count / (total * (tied + 1))
            for (drawn, tied), count in ways.items()
            if drawn == k - own
        )
    return share


def _add_rival(
    ways: dict[tuple[int, int], int], rival: int, *, own: int, room: int
) -> dict[tuple[int, int], int]:
    result: Counter[tuple[int, int]] = Counter()
    for (drawn, tied), count in ways.items():
        for votes in range(min(rival, own, room - drawn) + 1):
            result[drawn + votes, tied + (votes == own)] += count * math.comb(rival, votes)
    return dict(result)
