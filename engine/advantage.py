"""Rewards to advantages: how much better than its baseline each rollout did."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verigrad.engine.schema import Rollout, ScoredGroup, VerifiedGroup

TOLERANCE = 1e-8  # rewards closer than this are equal

AdvantageFn = Callable[[Sequence[Tensor]], list[Tensor]]
"""Rewards [G'] float64 of the decided rollouts of every kept group -> advantages [G'] of each."""


def score(
    groups: Sequence[VerifiedGroup], advantage: AdvantageFn, *, shape: Callable[[Rollout], float]
) -> list[ScoredGroup]:
    """Give each rollout of the kept groups its advantage, and 0.0 to the undecided.

    `shape` is added to the verifier's reward first (a length penalty, say). Undecided rollouts enter no
    baseline; leaving them out of the loss as well is up to whoever counts trainable tokens.
    """
    rewards = [
        torch.tensor(
            [
                verdict.reward + shape(rollout)
                for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True)
                if verdict.reward is not None
            ],
            dtype=torch.float64,
        )
        for group in groups
    ]
    return [_with_advantages(group, values) for group, values in zip(groups, advantage(rewards), strict=True)]


def _with_advantages(group: VerifiedGroup, values: Tensor) -> ScoredGroup:
    decided = iter(values.tolist())
    advantages = [next(decided) if verdict.decided else 0.0 for verdict in group.verdicts]
    return ScoredGroup(group.problem, group.rollouts, group.verdicts, advantages)


def per_group(function: Callable[[Tensor], Tensor]) -> AdvantageFn:
    """Lift a function of one group's rewards to all groups, each by itself."""

    def advantages(groups: Sequence[Tensor]) -> list[Tensor]:
        return [function(rewards) for rewards in groups]

    return advantages


def group_norm(rewards: Tensor, *, std_eps: float) -> Tensor:
    """Rewards minus their group's mean, over its sample standard deviation (GRPO, arXiv 2402.03300).

    Equal rewards give exactly 0, as does a group of one: dividing rounding noise by a tiny epsilon
    would turn it into advantages of order one.
    """
    if _equal(rewards):
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean()) / (rewards.std(correction=1) + std_eps)


def group_mean(rewards: Tensor) -> Tensor:
    """Rewards minus their group's mean, not scaled (Dr. GRPO, arXiv 2503.20783)."""
    if _equal(rewards):
        return torch.zeros_like(rewards)
    return rewards - rewards.mean()


def leave_one_out(rewards: Tensor) -> Tensor:
    """Rewards minus the mean of the *other* rollouts of the group (RLOO, arXiv 2402.14740).

    A group of one has no others and gets 0.
    """
    if _equal(rewards):
        return torch.zeros_like(rewards)
    others = (rewards.sum() - rewards) / (rewards.numel() - 1)
    return rewards - others


def batch_norm(groups: Sequence[Tensor], *, std_eps: float) -> list[Tensor]:
    """Rewards minus the mean of all rewards of the step, over their sample standard deviation.

    One baseline for every problem, so groups of one will do; no critic, so no per-token credit.
    """
    if not groups:
        return []
    rewards = torch.cat(list(groups))
    sizes = [group.numel() for group in groups]
    return list(torch.split(group_norm(rewards, std_eps=std_eps), sizes))


def _equal(rewards: Tensor) -> bool:
    # max - min and not std: in floating point the mean of equal numbers need not be that number
    return rewards.numel() < 2 or (rewards.max() - rewards.min()).item() <= TOLERANCE


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
