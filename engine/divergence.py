"""Two policies' log-probabilities of the same tokens to how far they are apart: ratios, KL, controllers.

N: trainable tokens of one micro-batch.
"""

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from verigrad.engine.schema import Coefs, LossInputs

# beyond it exp() heads for infinity, and 0 * inf in a clipped branch's gradient is NaN
LOG_RATIO_LIMIT = 20.0
MOST_KL_ERROR = 0.2

Estimator = Literal["k1", "k2", "k3", "k3_plus", "k3_ratio", "abs"]


def known_old(inputs: LossInputs) -> Tensor:
    """Old log-probabilities [N]; where there is none (bypass, and the sampler gave none), the policy's."""
    return torch.where(inputs.old_logprobs.isfinite(), inputs.old_logprobs, inputs.logprobs.detach())


def log_ratio(inputs: LossInputs) -> Tensor:
    """log(policy / old) [N] with gradient, within LOG_RATIO_LIMIT; 0 where old is unknown."""
    return bounded(inputs.logprobs - known_old(inputs))


@torch.no_grad()
def log_mismatch(inputs: LossInputs) -> Tensor:
    """log(old / rollout) [N] without gradient, within LOG_RATIO_LIMIT; 0 where either is missing."""
    difference = inputs.old_logprobs - inputs.rollout_logprobs
    return bounded(torch.where(difference.isfinite(), difference, 0.0))


def bounded(log_ratios: Tensor) -> Tensor:
    """The log-ratios, none beyond LOG_RATIO_LIMIT; one that is has no gradient."""
    return log_ratios.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def rollout_sum(values: Tensor, sequence: Tensor) -> Tensor:
    """The sum over each rollout's tokens, at every one of its tokens: [N] and [N] int64 -> [N].

    Added up in float64: the bounds on a rollout's ratio are narrow, and rollouts are long.
    """
    num_rollouts = int(sequence.max()) + 1 if sequence.numel() else 0
    sums = values.new_zeros(num_rollouts, dtype=torch.float64)
    return sums.index_add(0, sequence, values.double())[sequence].to(values.dtype)


def rollout_mean(values: Tensor, sequence: Tensor) -> Tensor:
    """The mean over each rollout's tokens, at every one of its tokens: [N] and [N] int64 -> [N]."""
    return rollout_sum(values, sequence) / rollout_sum(torch.ones_like(values), sequence)


def kl_values(log_ratios: Tensor, *, estimator: Estimator) -> Tensor:
    """Each token's estimate of KL(policy || reference) in nats, from d = log(policy / reference).

    k1 is d, right on average and of any sign; k2 is d^2 / 2; k3 is exp(-d) - 1 + d, right on average and
    never negative (joschu.net/blog/kl-approx.html); abs is |d|. k3_plus and k3_ratio have k3's value:
    they differ by their gradient, see `kl_term`.
    """
    if estimator == "k1":
        return log_ratios
    if estimator == "k2":
        return 0.5 * log_ratios**2
    if estimator == "abs":
        return log_ratios.abs()
    # expm1, because exp(-d) - 1 is mere rounding in float32 for the small d that are the rule
    return (-log_ratios).clamp(max=LOG_RATIO_LIMIT).expm1() + log_ratios


def kl_term(inputs: LossInputs, *, estimator: Estimator) -> Tensor:
    """The KL term [N] of the loss, with the gradient that each estimator really has (arXiv 2510.01555).

    Expected gradient with tokens sampled from the policy: k2 and k3_plus that of KL(policy || reference);
    k3_ratio, the ratio policy / old times k3 (arXiv 2512.02556), the same one with tokens sampled from the
    old policy as well; k3, GRPO's choice, that of the *opposite* KL(reference || policy); abs that of no
    divergence; k1 none at all, it only adds noise. `k3_plus` has the value of k3 and the gradient of k2.
    """
    assert inputs.ref_logprobs is not None, "a KL term needs a reference"
    difference = inputs.logprobs - inputs.ref_logprobs
    values = kl_values(difference, estimator=estimator)
    if estimator == "k3_plus":
        half_square = kl_values(difference, estimator="k2")
        return half_square + (values - half_square).detach()
    if estimator == "k3_ratio":
        # the ratio must not be detached: it is what turns k3's gradient into that of the right KL
        return log_ratio(inputs).exp() * values
    return values


def adapt_kl(coef: float, *, kl: float, target: float, horizon: float, num_rollouts: int) -> float:
    """The KL coefficient of the next step, moved so that the KL per token nears `target` (arXiv 1909.08593).

    `num_rollouts`: of the step; after `horizon` rollouts the coefficient has moved by up to a factor of
    about e^0.2. No step moves it by more than 20%. A KL that is not finite moves nothing.
    """
    if not math.isfinite(kl):
        return coef
    error = min(max(kl / target - 1, -MOST_KL_ERROR), MOST_KL_ERROR)
    return coef * (1 + error * min(num_rollouts / horizon, 1.0))


def adapt_entropy(coefs: Coefs, *, entropy: float, target: float, delta: float) -> Coefs:
    """The coefficients of the next step, given this step's entropy in nats (Skywork-OR1, arXiv 2505.22312).

    `entropy_next` grows by `delta` where the entropy is at most `target` and shrinks by it elsewhere,
    within [0, 1]; it is applied only after a step whose entropy was at most `target`. So a run starts from
    Coefs(entropy=0, entropy_next=entropy_coef). An entropy that is not finite moves nothing.
    """
    if not math.isfinite(entropy):
        return coefs
    low = entropy <= target
    grown = min(max(coefs.entropy_next + (delta if low else -delta), 0.0), 1.0)
    return dataclasses.replace(coefs, entropy=grown if low else 0.0, entropy_next=grown)
