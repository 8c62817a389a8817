"""One advantage per rollout to one per token: discount, KL in the reward, whitening, token baselines.

Tokens are counted among a rollout's *trained* ones, so a tool's output neither discounts nor shifts what
follows it. Statistics are taken in float64 over the batches of all optimizer steps of one rollout batch,
hence depend neither on packing nor on order.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from verigrad.engine.advantage import TOLERANCE
from verigrad.engine.divergence import Estimator, kl_values
from verigrad.engine.schema import PackedBatch

WHITEN_EPS = 1e-8  # added to the variance


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What is known of the n trained tokens of one rollout."""

    group: int
    reward: Tensor  # [n] float64 reward-to-go
    kl: Tensor  # [n] float64 KL-to-go, 0 without a KL term in the reward
    score_norm: Tensor  # [n] float64 estimate of the squared norm of the score up to and with each token

    @property
    def togo(self) -> Tensor:
        """[n] float64 what the policy gets from each token on."""
        return self.reward + self.kl


@torch.no_grad()
def place(
    batches: Sequence[PackedBatch],
    *,
    per_token: Literal["", "whiten", "optimal_baseline"],
    gamma: float,
    kl_coef: float,
    kl_estimator: Estimator,
) -> list[PackedBatch]:
    """All batches of one step, with an advantage for each trained token and 0 elsewhere.

    Comes in: `advantages` with each rollout's number repeated. That number is paid at the rollout's last
    trained token; each token before it gets `gamma` times what the next trained one gets (REINFORCE++, arXiv
    2501.03262). With `kl_coef` above 0 each trained token also pays `kl_coef` times its estimated
    KL(old policy || reference), and every token gets the discounted sum from itself on (arXiv 2203.02155).

    Then "whiten" subtracts the mean over all trained tokens of the step and divides by their standard
    deviation, sqrt(sample variance + 1e-8); every token weighs the same, so long rollouts weigh more
    (OpenRLHF divides by n, verl as we do by n - 1). "optimal_baseline" subtracts a baseline of each token
    position of each group, see `_minus_baseline`. A token without an old log-probability has KL and score 0.
    """
    step = [list(_rollouts(batch, gamma, kl_coef, kl_estimator, per_token)) for batch in batches]
    rollouts = [rollout for batch in step for rollout in batch]
    if per_token == "whiten":
        values = whitened([rollout.togo for rollout in rollouts])
    elif per_token == "optimal_baseline":
        values = _minus_baseline(rollouts)
    else:
        values = [rollout.togo for rollout in rollouts]
    placed = iter(values)
    return [
        _with_advantages(batch, [next(placed) for _ in members])
        for batch, members in zip(batches, step, strict=True)
    ]


def _rollouts(
    batch: PackedBatch, gamma: float, kl_coef: float, kl_estimator: Estimator, per_token: str
) -> Iterator[_Tokens]:
    """The batch's rollouts in its order."""
    baseline = per_token == "optimal_baseline"
    assert kl_coef == 0 or batch.ref_logprobs is not None, "KL in the reward needs a reference"
    assert not baseline or batch.groups is not None, "a token baseline needs to know the groups"
    groups = [0] * batch.num_rollouts if batch.groups is None else batch.groups.tolist()
    kl = kl_rewards(batch, kl_coef, kl_estimator) if kl_coef else torch.zeros_like(batch.advantages).double()
    energy = _score_norms(batch) if baseline else torch.zeros_like(kl)
    for group, (start, end) in zip(groups, pairwise(batch.cu_seqlens.tolist()), strict=True):
        trained = batch.loss_mask[start:end]
        paid = batch.advantages[start:end][trained].double()
        later = torch.arange(paid.numel() - 1, -1, -1, dtype=torch.float64, device=paid.device)
        yield _Tokens(
            group=group,
            reward=paid * gamma**later,
            kl=_to_go(kl[start:end][trained], gamma),
            score_norm=energy[start:end][trained].cumsum(0),
        )


def kl_rewards(batch: PackedBatch, coef: float, estimator: Estimator) -> Tensor:
    """Each token's share of the KL to the reference, as a reward: [T] float64, garbage where not trained."""
    assert batch.ref_logprobs is not None
    return -coef * kl_values(_known(batch.old_logprobs.double() - batch.ref_logprobs), estimator=estimator)


def _score_norms(batch: PackedBatch) -> Tensor:
    """Squared norm of each token's gradient of its log-probability by its logits: [T] float64, likewise.

    1 - 2 p + the sum of all squared probabilities; never negative but for rounding.
    """
    assert batch.old_collision is not None, "a token baseline needs the sum of squared probabilities"
    return _known(1.0 - 2.0 * batch.old_logprobs.double().exp() + batch.old_collision).clamp(min=0.0)


def _known(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, 0.0)


def _to_go(values: Tensor, gamma: float) -> Tensor:
    """At each place the sum from there on, discounted: [n] -> [n]."""
    sums = list(accumulate(reversed(values.tolist()), lambda later, now: now + gamma * later))
    return values.new_tensor(sums[::-1])


def whitened(values: Sequence[Tensor]) -> list[Tensor]:
    """Each rollout's numbers minus the mean of all, over their standard deviation; equal ones 0."""
    if not values:
        return []
    tokens = torch.cat(list(values))
    if tokens.numel() < 2 or tokens.max() - tokens.min() <= TOLERANCE:
        return [torch.zeros_like(value) for value in values]
    mean, scale = tokens.mean(), (tokens.var(correction=1) + WHITEN_EPS).sqrt()
    return [(value - mean) / scale for value in values]


def _minus_baseline(rollouts: Sequence[_Tokens]) -> list[Tensor]:
    """What each token gets from itself on, minus the baseline of least variance of its position in its group.

    The baseline is the mean over the group's rollouts that reach the position, weighted by their score norm
    so far; as in verl's docs/algo/otb.md, with the positions of its variant for rollouts with tool output in
    between. Positions past the second-longest rollout have none: compared with itself, a rollout would learn
    nothing there. Of a group with one rollout in the batches (the others undecided or filtered) only the KL
    stays; verl leaves the raw reward.
    """
    members: dict[int, list[int]] = {}
    for index, rollout in enumerate(rollouts):
        if rollout.reward.numel():
            members.setdefault(rollout.group, []).append(index)
    values = [rollout.kl for rollout in rollouts]
    for indices in members.values():
        if len(indices) > 1:
            baselines = _baselines([rollouts[index] for index in indices])
            for index in indices:
                togo = rollouts[index].togo
                values[index] = togo - baselines[: togo.numel()]
    return values


def _baselines(rollouts: Sequence[_Tokens]) -> Tensor:
    """Of each position, as many as the longest of the rollouts has: [n] float64."""
    togo = pad_sequence([rollout.togo for rollout in rollouts], batch_first=True)  # [R, n]
    weights = pad_sequence([rollout.score_norm for rollout in rollouts], batch_first=True)
    there = pad_sequence([torch.ones_like(rollout.togo) for rollout in rollouts], batch_first=True) > 0
    # From the best of them down, so that equal numbers give exactly that number, whatever the weights.
    best = togo.masked_fill(~there, -torch.inf).amax(0)
    total = weights.sum(0)
    shares = torch.where(total > 0, weights / total, 0.0)
    baselines = best + (shares * (togo - best)).sum(0)  # who is not there has no share
    return torch.where(there.sum(0) > 1, baselines, 0.0)


def _with_advantages(batch: PackedBatch, values: Sequence[Tensor]) -> PackedBatch:
    column = torch.zeros_like(batch.advantages)
    column[batch.loss_mask] = torch.cat(list(values)).to(column.dtype)
    return dataclasses.replace(batch, advantages=column)
