"""Log-probabilities and advantages to a loss that looks at whole rollouts, at each of their tokens.

As token_losses.py, with what a rollout has as a whole repeated at each of its n trainable tokens: with the
weights of seq_mean_token_mean, 1 / (S n), the sum over tokens is the papers' mean over rollouts. d is the
log-ratio policy / old of a token, 0 where the old log-probability is unknown; A its advantage. No rollout is
ever divided between micro-batches.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import torch

from verigrad.engine.divergence import LOG_RATIO_LIMIT, bounded, log_ratio, rollout_mean, rollout_sum
from verigrad.engine.schema import LossInputs, TokenLoss
from verigrad.engine.token_losses import clipped

LEAST_LOG_WEIGHT = math.log(1e-8)


def gspo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """`clip` of s = exp(mean d), the geometric mean of the rollout's ratios (GSPO, arXiv 2507.18071).

    stopped_low and stopped_high tell all tokens of a rollout whose s has left [1 - clip_low, 1 + clip_high].
    """
    ratio = rollout_mean(log_ratio(inputs), inputs.sequence).exp()
    return clipped(ratio, inputs.advantages, clip_low=clip_low, clip_high=clip_high)


def gspo_token(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """`gspo` by value; each token's gradient is its own, -A s, so that advantages may differ by token."""
    log_ratios = log_ratio(inputs)
    of_rollout = rollout_mean(log_ratios.detach(), inputs.sequence)
    ratio = (of_rollout + (log_ratios - log_ratios.detach())).exp()
    return clipped(ratio, inputs.advantages, clip_low=clip_low, clip_high=clip_high)


def sequence_clip(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """`clip` of exp(sum d), the ratio of the whole rollout (RLOO, arXiv 2402.14740, as TRL has it).

    Its gradient is n times that of a loss by tokens, and the ratio leaves any bounds as rollouts grow long.
    stopped_low and stopped_high tell all tokens of a rollout.
    """
    ratio = bounded(rollout_sum(log_ratio(inputs), inputs.sequence)).exp()
    return clipped(ratio, inputs.advantages, clip_low=clip_low, clip_high=clip_high)


def luspo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """`gspo` times the rollout's n, so that long rollouts do not weigh less (LUSPO, arXiv 2602.05261)."""
    plain = gspo(inputs, clip_low=clip_low, clip_high=clip_high)
    length = rollout_sum(torch.ones_like(plain.values), inputs.sequence)
    return dataclasses.replace(plain, values=length * plain.values)


def gmpo(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """-A exp(mean of clipped d): the geometric mean of clipped ratios (GMPO, arXiv 2507.20673).

    d is held to at most clip_high where A > 0 and at least -clip_low where it is not, before the mean; the
    bounds are in nats. stopped_low and stopped_high tell the tokens clipped, not their rollout.
    """
    log_ratios, rises = log_ratio(inputs), inputs.advantages > 0
    held = torch.where(rises, log_ratios.clamp(max=clip_high), log_ratios.clamp(min=-clip_low))
    return TokenLoss(
        -inputs.advantages * rollout_mean(held, inputs.sequence).exp(),
        stopped_low=(inputs.advantages < 0) & (log_ratios < -clip_low),
        stopped_high=rises & (log_ratios > clip_high),
    )


def vespo(
    inputs: LossInputs,
    *,
    vespo_k_pos: float,
    vespo_lam_pos: float,
    vespo_k_neg: float,
    vespo_lam_neg: float,
) -> TokenLoss:
    """-A log p weighted by W^k exp(lam (1 - W)), W = exp(sum d), without gradient (VESPO, arXiv 2602.10693).

    k and lam are those of the advantage's sign (0 counts as positive). Smooth: nothing is stopped. log W is
    held within [log 1e-8, LOG_RATIO_LIMIT], and the weight below exp(LOG_RATIO_LIMIT).
    """
    log_weight = rollout_sum(log_ratio(inputs).detach(), inputs.sequence)
    log_weight = log_weight.clamp(LEAST_LOG_WEIGHT, LOG_RATIO_LIMIT)
    negative = inputs.advantages < 0
    k = torch.full_like(log_weight, vespo_k_pos).masked_fill(negative, vespo_k_neg)
    lam = torch.full_like(log_weight, vespo_lam_pos).masked_fill(negative, vespo_lam_neg)
    phi = (lam + k * log_weight - lam * log_weight.exp()).clamp(max=LOG_RATIO_LIMIT).exp()
    never = torch.zeros_like(negative)
    return TokenLoss(-phi * inputs.advantages * inputs.logprobs, stopped_low=never, stopped_high=never)


LOSSES: Mapping[str, Callable[..., TokenLoss]] = {
    "gspo": gspo,
    "gspo_token": gspo_token,
    "sequence_clip": sequence_clip,
    "luspo": luspo,
    "gmpo": gmpo,
    "vespo": vespo,
}
"""Names of catalogue.LOSSES that look at whole rollouts."""
