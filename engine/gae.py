"""Rewards and a critic's values to advantages and returns of tokens: generalised advantage estimation.

Only a rollout's trained tokens take part: the value after a tool's output is what the token before it leads
to. Statistics are taken in float64 over all optimizer steps of one rollout batch.
"""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from verigrad.engine.divergence import Estimator
from verigrad.engine.schema import PackedBatch
from verigrad.engine.token_advantage import WHITEN_EPS, kl_rewards, whitened


def estimate(rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantages [n] of one rollout's trained tokens, from their rewards [n] and values [n].

    Generalised advantage estimation (arXiv 1506.02438): the sum, discounted by gamma * lam, of the errors
    reward + gamma * next value - value from each token on. After the last token nothing is expected, whether
    the model or the token limit ended the rollout.
    """
    found, after, ahead = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        ahead = reward + gamma * after - value + gamma * lam * ahead
        after = value
        found.append(ahead)
    return rewards.new_tensor(found[::-1])


def lam_of_length(num_tokens: int, *, lam_alpha: float) -> float:
    """1 - 1 / (lam_alpha * tokens), at least 0 (VAPO, arXiv 2504.05118)."""
    return max(0.0, 1.0 - 1.0 / (lam_alpha * num_tokens)) if num_tokens else 0.0


@torch.no_grad()
def place_gae(
    batches: Sequence[PackedBatch],
    *,
    gamma: float,
    lam: float,
    critic_lam: float,
    lam_alpha: float,
    kl_coef: float,
    kl_estimator: Estimator,
    whiten_rewards: bool,
) -> list[PackedBatch]:
    """All batches of one step with whitened advantages of trained tokens, and the returns for the critic.

    Comes in: `advantages` with each rollout's reward repeated, paid at its last trained token, and the
    critic's `values`. With `kl_coef` above 0 each trained token also pays `kl_coef` times its estimated
    KL(old policy || reference) (arXiv 2203.02155). `whiten_rewards` divides the rewards' distance from their
    mean by their standard deviation over the step and leaves the mean where it is, as PPO for language models
    first did (arXiv 1909.08593).

    Advantages take `lam`, or with `lam_alpha` above 0 one that grows with the rollout's length; returns are
    values plus advantages by `critic_lam` (VC-PPO, arXiv 2503.01491), taken before the whitening.
    """
    step = [_cut(batch, kl_coef, kl_estimator) for batch in batches]
    rollouts = [rollout for batch in step for rollout in batch]
    rewards = [reward for reward, _ in rollouts]
    if whiten_rewards:
        rewards = _scaled(rewards)
    advantages, returns = [], []
    for reward, (_, values) in zip(rewards, rollouts, strict=True):
        own = lam_of_length(values.numel(), lam_alpha=lam_alpha) if lam_alpha else lam
        advantages.append(estimate(reward, values, gamma=gamma, lam=own))
        returns.append(values + estimate(reward, values, gamma=gamma, lam=critic_lam))
    ready = iter(zip(whitened(advantages), returns, strict=True))
    return [
        _filled(batch, [next(ready) for _ in members]) for batch, members in zip(batches, step, strict=True)
    ]


def _cut(batch: PackedBatch, kl_coef: float, kl_estimator: Estimator) -> list[tuple[Tensor, Tensor]]:
    """Rewards and values [n] float64 of the trained tokens of each rollout, in the batch's order."""
    assert batch.values is not None, "generalised advantage estimation needs a critic"
    assert kl_coef == 0 or batch.ref_logprobs is not None, "KL in the reward needs a reference"
    paid = torch.zeros_like(batch.advantages, dtype=torch.float64)
    if kl_coef:
        paid += kl_rewards(batch, kl_coef, kl_estimator)
    found = []
    for start, end in pairwise(batch.cu_seqlens.tolist()):
        trained = batch.loss_mask[start:end]
        rewards = paid[start:end][trained]
        if rewards.numel():
            rewards[-1] += batch.advantages[start:end][trained][-1].double()
        found.append((rewards, batch.values[start:end][trained].double()))
    return found


def _scaled(rewards: Sequence[Tensor]) -> list[Tensor]:
    if not rewards:
        return []
    tokens = torch.cat(list(rewards))
    if tokens.numel() < 2:
        return list(rewards)
    mean, scale = tokens.mean(), (tokens.var(correction=1) + WHITEN_EPS).sqrt()
    return [(reward - mean) / scale + mean for reward in rewards]


def _filled(batch: PackedBatch, tokens: Sequence[tuple[Tensor, Tensor]]) -> PackedBatch:
    """The batch with both columns; 0 where nothing is trained."""
    columns = []
    for values in ([advantages for advantages, _ in tokens], [returns for _, returns in tokens]):
        column = torch.zeros_like(batch.advantages)
        column[batch.loss_mask] = torch.cat(values).to(column.dtype)
        columns.append(column)
    return dataclasses.replace(batch, advantages=columns[0], returns=columns[1])
