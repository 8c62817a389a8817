"""Rewards to advantages: how much better than its baseline each rollout did.

One function per name in ADVANTAGES, each from the rewards of all kept groups of a step to one number per
rollout. Common rules: float64; a group of one gives 0 wherever the baseline is its group's (verl leaves the
raw reward there); where equal rewards give 0 on paper they give exactly 0 here, because dividing rounding
noise by a tiny epsilon would turn it into advantages of order one. What is done once the number stands on
every token (discount, whitening, token baseline) is in token_advantage.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from verigrad.engine.failures import WorkError
from verigrad.engine.schema import GroupRewards, Rollout, ScoredGroup, VerifiedGroup
from verigrad.verifiers.base import Verdict

TOLERANCE = 1e-8  # rewards closer than this are equal
PASS_STD_EPS = 1e-6  # added to the standard deviation of pass@k
SHAPE = "shape"  # name of the part that shaping adds

AdvantageFn = Callable[[Sequence[GroupRewards]], list[Tensor]]
"""Rewards of every kept group -> advantages [G'] float64 of each."""


def score(
    groups: Sequence[VerifiedGroup],
    advantage: AdvantageFn,
    *,
    shape: Callable[[Rollout], float],
    greedy: Sequence[float | None] | None = None,
) -> list[ScoredGroup]:
    """Give each rollout of the kept groups its advantage, and 0.0 to the undecided.

    `shape` is added to the verifier's reward first (a length penalty, say). `greedy` is the reward of a
    greedy rollout of each group's problem, None where that one is undecided; it is not shaped. Undecided
    rollouts enter no baseline; leaving them out of the loss as well is up to whoever counts trainable tokens.
    """
    shaping = [[shape(rollout) for rollout in group.rollouts] for group in groups]
    shaped = any(value != 0.0 for values in shaping for value in values)
    baselines = [None] * len(groups) if greedy is None else greedy
    rewards = [
        _rewards(group, values, greedy=baseline, shaped=shaped)
        for group, values, baseline in zip(groups, shaping, baselines, strict=True)
    ]
    return [_with_advantages(group, values) for group, values in zip(groups, advantage(rewards), strict=True)]


def _rewards(
    group: VerifiedGroup, shaping: Sequence[float], *, greedy: float | None, shaped: bool
) -> GroupRewards:
    """The decided rollouts of one group; `shaped`: whether any rollout of the step is."""
    decided = [
        (rollout, verdict, extra)
        for rollout, verdict, extra in zip(group.rollouts, group.verdicts, shaping, strict=True)
        if verdict.decided
    ]
    parts = _parts([verdict for _, verdict, _ in decided])
    if shaped and parts:
        own = parts.get(SHAPE, [0.0] * len(decided))
        parts[SHAPE] = [value + extra for value, (_, _, extra) in zip(own, decided, strict=True)]
    return GroupRewards(
        rewards=_column([(verdict.reward or 0.0) + extra for _, verdict, extra in decided]),
        lengths=_column([rollout.num_completion_tokens for rollout, _, _ in decided]),
        right=torch.tensor([verdict.outcome == "right" for _, verdict, _ in decided], dtype=torch.bool),
        parts={name: _column(values) for name, values in parts.items()},
        greedy=greedy,
    )


def _parts(verdicts: Sequence[Verdict]) -> dict[str, list[float]]:
    """Parts that every verdict has; an attempt killed on its deadline earned 0 of each, as of the whole."""
    judged = [v.parts for v in verdicts if v.parts or v.outcome != "timeout"]
    if not judged:
        return {}
    shared = [name for name in judged[0] if all(isinstance(parts.get(name), int | float) for parts in judged)]
    return {name: [v.parts.get(name, 0.0) for v in verdicts] for name in shared}


def _column(values: Sequence[float] | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _with_advantages(group: VerifiedGroup, values: Tensor) -> ScoredGroup:
    decided = iter(values.tolist())
    advantages = [next(decided) if verdict.decided else 0.0 for verdict in group.verdicts]
    return ScoredGroup(group.problem, group.rollouts, group.verdicts, advantages)


def group_norm(groups: Sequence[GroupRewards], *, std_eps: float) -> list[Tensor]:
    """Rewards minus their group's mean, over its sample standard deviation (GRPO, arXiv 2402.03300)."""
    return [_normalised(group.rewards, std_eps) for group in groups]


def group_mean(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus their group's mean, not scaled (Dr. GRPO, arXiv 2503.20783)."""
    return [_centred(group.rewards) for group in groups]


def batch_std(groups: Sequence[GroupRewards], *, std_eps: float) -> list[Tensor]:
    """Rewards minus their group's mean, over the sample standard deviation of all rewards of the step.

    Lite PPO (arXiv 2508.08221): of the raw rewards, not of the centred ones.
    """
    scale = _std(_all(groups)) + std_eps
    return [_centred(group.rewards) / scale for group in groups]


def batch_norm(groups: Sequence[GroupRewards], *, std_eps: float) -> list[Tensor]:
    """Rewards minus the mean of all rewards of the step, over their sample standard deviation.

    One baseline for every problem, so groups of one will do; no critic, so no per-token credit.
    """
    return _split(_normalised(_all(groups), std_eps), groups)


def gae(
    groups: Sequence[GroupRewards], *, gamma: float, lam: float, critic_lam: float, lam_alpha: float
) -> list[Tensor]:
    """The rewards; gae.place_gae makes advantages of tokens of them and of a critic's values."""
    return raw(groups)


def leave_one_out(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus the mean of the *other* rollouts of the group (RLOO, arXiv 2402.14740)."""
    return [_centred(g.rewards) * (g.rewards.numel() / max(g.rewards.numel() - 1, 1)) for g in groups]


def raw(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """The rewards, no baseline (REINFORCE, Williams 1992)."""
    return [group.rewards for group in groups]


def reinforce_pp(groups: Sequence[GroupRewards], *, gamma: float) -> list[Tensor]:
    """The rewards (REINFORCE++, arXiv 2501.03262).

    `gamma` changes nothing yet: token_advantage.place discounts by it, and whitens.
    """
    return raw(groups)


def reinforce_pp_baseline(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus their group's mean (REINFORCE++-baseline, arXiv 2501.03262); place whitens them."""
    return group_mean(groups)


def optimal_token_baseline(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """The rewards; the baseline is subtracted token by token, by token_advantage.place."""
    return [g.rewards if g.rewards.numel() > 1 else torch.zeros_like(g.rewards) for g in groups]


def remax(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus that of a greedy rollout of the same problem (ReMax, arXiv 2310.10505).

    0 where the greedy rollout is undecided: its group then has no baseline.
    """
    return [torch.zeros_like(g.rewards) if g.greedy is None else g.rewards - g.greedy for g in groups]


def maxrl(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus their group's mean, over that mean (MaxRL, arXiv 2602.02710).

    Equal rewards give 0, so a group of zeros does. Raises WorkError on a negative reward: the mean it would
    be divided by is then no longer a pass rate.
    """
    lowest = min((group.rewards.min().item() for group in groups if group.rewards.numel()), default=0.0)
    if lowest < -TOLERANCE:
        raise WorkError(
            f"advantage 'maxrl' divides by a group's mean reward, and found a reward of {lowest:g}; expected "
            "0 or more. Use a verifier without negative rewards and algorithm.overlong_buffer_tokens = 0, or "
            "another algorithm.advantage"
        )
    return [
        torch.zeros_like(g.rewards) if _equal(g.rewards) else _centred(g.rewards) / g.rewards.mean()
        for g in groups
    ]


def opo(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus their group's mean weighted by length (OPO, arXiv 2505.23585)."""

    def one(rewards: Tensor, lengths: Tensor) -> Tensor:
        if _equal(rewards):
            return torch.zeros_like(rewards)
        return rewards - (lengths * rewards).sum() / lengths.sum().clamp(min=1.0)

    return [one(group.rewards, group.lengths) for group in groups]


def gpg(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """Rewards minus their group's mean, times all rollouts of the step over those whose reward is not zero.

    GPG (arXiv 2504.02546). Undecided rollouts count on neither side.
    """
    rewards = _all(groups)
    scale = rewards.numel() / max(int((rewards.abs() > TOLERANCE).sum()), 1)
    return [_centred(group.rewards) * scale for group in groups]


def gdpo(
    groups: Sequence[GroupRewards], *, std_eps: float, part_weights: Mapping[str, float]
) -> list[Tensor]:
    """Each part of the reward normalised in its group, summed by weight, normalised over the step.

    GDPO (arXiv 2601.05242). `part_weights` by name of the part, 1 where it is silent; what shaping adds is
    the part "shape". A part that a group lacks adds nothing there. The last step only divides: every group's
    sum has mean 0, and subtracting its rounding would make something of groups without signal. Raises
    WorkError where the verifier gives no parts, gives one that is not finite, or a weight names none of them.
    """
    _check_parts(groups, part_weights)
    sums = [torch.zeros_like(group.rewards) for group in groups]
    for total, group in zip(sums, groups, strict=True):
        for name, values in group.parts.items():
            total += part_weights.get(name, 1.0) * _normalised(values, std_eps)
    if not sums:
        return []
    scale = _std(torch.cat(sums)) + std_eps
    return [total / scale for total in sums]


def _check_parts(groups: Sequence[GroupRewards], part_weights: Mapping[str, float]) -> None:
    names = sorted({name for group in groups for name in group.parts})
    if not names:
        if all(_equal(group.rewards) for group in groups):
            return  # nothing decided, or nothing that could move the policy
        raise WorkError(
            "advantage 'gdpo' normalises each part of the reward by itself, and the verifier gave no part "
            "that all verdicts of a group share. Use verifier.name = 'combine' or another algorithm.advantage"
        )
    unknown = sorted(part_weights.keys() - {*names, SHAPE})
    if unknown:
        raise WorkError(
            f"algorithm.part_weights names {unknown[0]!r}, which is no part of the verifier's reward; "
            f"there are: {', '.join(names)}. Correct it, or add that part with verifier.name = 'combine'"
        )
    for group in groups:
        for name, values in group.parts.items():
            if not values.isfinite().all():
                raise WorkError(
                    f"the verifier's part {name!r} holds {values[~values.isfinite()][0].item()}; "
                    "expected finite numbers. Let the verifier give None as its reward where it cannot decide"
                )


def pass_at_k(groups: Sequence[GroupRewards], *, pass_k: int) -> list[Tensor]:
    """The mean advantage of the k-subsets a rollout is in, each paid 1 if any of it is right.

    Pass@k training (arXiv 2508.10751), in closed form: a subset's advantage is its pay minus pass@k, over the
    standard deviation of that pay + 1e-6. 0 where every subset has a right rollout. Right is what the verdict
    says, not the reward. In a group with fewer than `pass_k` decided rollouts, k is their number.
    """

    def one(right: Tensor) -> Tensor:
        n, c = right.numel(), int(right.sum())
        k = min(pass_k, n)
        if c == 0 or n - c < k:
            return torch.zeros(n, dtype=torch.float64)
        fails = math.comb(n - c, k) / math.comb(n, k)
        std = math.sqrt(fails * (1.0 - fails)) + PASS_STD_EPS
        fails_with_me = math.comb(n - c - 1, k - 1) / math.comb(n - 1, k - 1)
        return _either(right, fails / std, (fails - fails_with_me) / std)

    return [one(group.right) for group in groups]


def pkpo(groups: Sequence[GroupRewards], *, pass_k: int) -> list[Tensor]:
    """Weights whose policy gradient is unbiased for that of pass@k, minus a baseline from the others.

    PKPO (arXiv 2505.15201), binary case: right and k as in `pass_at_k`. A rollout's baseline is k / n times
    pass@k of the *other* rollouts: it does not depend on the rollout itself, so the gradient stays unbiased,
    and its expectation is that of the weights. The mean of the others' weights would not do: they depend on
    how many of all rollouts are right.
    """

    def one(right: Tensor) -> Tensor:
        n, c = right.numel(), int(right.sum())
        if n < 2:
            return torch.zeros(n, dtype=torch.float64)
        k = min(pass_k, n)
        others = [_pass_rate(n - 1, c - is_right, min(k, n - 1)) for is_right in right.tolist()]
        return pkpo_weights(right, k=k) - (k / n) * _column(others)

    return [one(group.right) for group in groups]


def pkpo_weights(right: Tensor, *, k: int) -> Tensor:
    """Factor [n] float64 of each rollout's grad log-probability in the unbiased gradient of pass@k, k <= n.

    The k-subsets that hold the rollout and have a right one, over all k-subsets.
    """
    n, c = right.numel(), int(right.sum())
    return (k / n) * _either(right, 1.0, _pass_rate(n - 1, c, k - 1))


def _either(right: Tensor, if_right: float, if_wrong: float) -> Tensor:
    # torch.where of two plain numbers would round them to float32
    return torch.where(right, _column(if_right), _column(if_wrong))


def _pass_rate(n: int, c: int, k: int) -> float:
    """Share of the k-subsets of n, c of them right, that have a right one."""
    return 1.0 - math.comb(n - c, k) / math.comb(n, k) if n >= c else 1.0


def best_worst(groups: Sequence[GroupRewards]) -> list[Tensor]:
    """1 for the best rollout of a group and -1 for the worst, 0 for the others and where all are equal.

    Of several that are best, or worst, the first: which one is chance. (Iterative DPO, arXiv 2404.19733,
    pairs rollouts by the ends of their rewards.)
    """
    done = []
    for group in groups:
        values = torch.zeros_like(group.rewards)
        if group.rewards.numel() and float(group.rewards.max() - group.rewards.min()) > TOLERANCE:
            values[int(group.rewards.argmax())] = 1.0
            values[int(group.rewards.argmin())] = -1.0
        done.append(values)
    return done


def top_two(groups: Sequence[GroupRewards], *, std_eps: float) -> list[Tensor]:
    """The best rollout's lead over the second, over the group's standard deviation; 0 for the others.

    Pass@k training by the best of a group (arXiv 2503.19595). A tie at the top gives 0.
    """

    def one(rewards: Tensor) -> Tensor:
        values = torch.zeros_like(rewards)
        if not _equal(rewards):
            first, second = rewards.topk(2).values
            values[rewards.argmax()] = (first - second) / (rewards.std(correction=1) + std_eps)
        return values

    return [one(group.rewards) for group in groups]


def length_shaped(groups: Sequence[GroupRewards], *, length_weight: float) -> list[Tensor]:
    """Rewards minus a penalty for length, minus the group's mean of that.

    prime-rl's linear length penalty: the group's mean reward times `length_weight` times the share of the
    group's longest rollout. It shrinks with the pass rate, so hopeless problems are not pushed to be short;
    ours is 0 where the mean is negative, else it would pay for length.
    """

    def one(rewards: Tensor, lengths: Tensor) -> Tensor:
        if rewards.numel() < 2:
            return torch.zeros_like(rewards)
        share = lengths / lengths.max().clamp(min=1.0)
        return _centred(rewards - rewards.mean().clamp(min=0.0) * length_weight * share)

    return [one(group.rewards, group.lengths) for group in groups]


def _centred(rewards: Tensor) -> Tensor:
    return torch.zeros_like(rewards) if _equal(rewards) else rewards - rewards.mean()


def _normalised(rewards: Tensor, std_eps: float) -> Tensor:
    return _centred(rewards) / (_std(rewards) + std_eps)


def _std(values: Tensor) -> float:
    """Sample standard deviation, 0 where it has none."""
    return values.std(correction=1).item() if values.numel() > 1 else 0.0


def _equal(rewards: Tensor) -> bool:
    # max - min and not std: in floating point the mean of equal numbers need not be that number
    return rewards.numel() < 2 or (rewards.max() - rewards.min()).item() <= TOLERANCE


def _all(groups: Sequence[GroupRewards]) -> Tensor:
    return torch.cat([group.rewards for group in groups]) if groups else _column([])


def _split(values: Tensor, groups: Sequence[GroupRewards]) -> list[Tensor]:
    return list(torch.split(values, [group.rewards.numel() for group in groups])) if groups else []


def soft_overlong(num_tokens: int, *, max_tokens: int, buffer_tokens: int) -> float:
    """Punishment in [-1, 0] that grows over the last `buffer_tokens` before `max_tokens`.

    DAPO (arXiv 2503.14476), equation 13: 0 up to max_tokens - buffer_tokens, then linear, and never
    below -1 (verl's lets it go on falling).
    """
    excess = num_tokens - (max_tokens - buffer_tokens)
    return -min(max(excess / buffer_tokens, 0.0), 1.0)


def unshaped(rollout: Rollout) -> float:
    """Add nothing to the verifier's reward."""
    return 0.0


ADVANTAGES: Mapping[str, Callable[..., list[Tensor]]] = {
    function.__name__: function
    for function in (
        group_norm, group_mean, batch_std, batch_norm, gae, leave_one_out, raw, reinforce_pp,
        reinforce_pp_baseline, remax, maxrl, opo, gpg, gdpo, pass_at_k, pkpo, top_two, best_worst,
        optimal_token_baseline, length_shaped,
    )
}  # fmt: skip
"""Name in catalogue.ADVANTAGES -> function. Keywords: the part's settings; gdpo's `part_weights` besides."""
