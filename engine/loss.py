"""Log-probabilities and advantages to a scalar loss and its metrics, over trainable tokens only.

N: trainable tokens of one micro-batch. Nothing here normalises: weights do (aggregation.py), so that the
losses, gradients and sums of micro-batches add up to those of the whole optimizer step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from verigrad.engine.schema import Metrics

LOG_RATIO_LIMIT = (
    20.0  # beyond it exp() heads for infinity, and 0 * inf in a clipped branch's gradient is NaN
)

Correction = Literal["icepop", "tis", "none"]
Estimator = Literal["k3_ratio", "k2"]
LossSums = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What the loss sees of one micro-batch: the trainable tokens, already selected."""

    logprobs: Tensor  # [N] float, with gradient: under the policy being trained
    old_logprobs: Tensor  # [N] float: under the policy the ratio is taken against
    rollout_logprobs: Tensor  # [N] float: as the sampler reported them; NaN where it did not
    ref_logprobs: Tensor | None  # [N] float: under the frozen reference
    entropy: Tensor | None  # [N] float, with gradient: of the whole next-token distribution, in nats
    advantages: Tensor  # [N] float
    weights: Tensor  # [N] float: loss = sum(weights * token loss)
    sequence: Tensor  # [N] int64: index of the token's rollout within the micro-batch


LossFn = Callable[[LossInputs], tuple[Tensor, LossSums]]
"""One micro-batch -> its share of the step's loss (scalar) and of the step's sums."""


def policy_loss(
    inputs: LossInputs,
    *,
    clip_low: float,
    clip_high: float,
    correction: Correction,
    correction_low: float,
    correction_high: float,
    kl_coef: float,
    kl_estimator: Estimator,
    entropy_coef: float,
) -> tuple[Tensor, LossSums]:
    """Weighted sum over tokens of corrected clipped loss + kl_coef * KL - entropy_coef * entropy.

    The correction multiplies the clipped loss alone: a token whose sampling probability cannot be
    trusted is still held to the reference.
    """
    token_loss = clipped(inputs, clip_low=clip_low, clip_high=clip_high) * importance_weights(
        inputs, kind=correction, low=correction_low, high=correction_high
    )
    if kl_coef:
        token_loss = token_loss + kl_coef * kl_term(inputs, estimator=kl_estimator)
    if entropy_coef:
        assert inputs.entropy is not None, "an entropy bonus needs the entropy"
        token_loss = token_loss - entropy_coef * inputs.entropy
    loss = (inputs.weights * token_loss).sum()
    sums = {"loss_sum": loss.detach().double()}
    sums |= _policy_sums(inputs, clip_low=clip_low, clip_high=clip_high)
    sums |= _correction_sums(inputs, kind=correction, low=correction_low, high=correction_high)
    sums |= mismatch_sums(inputs)
    return loss, sums


def clipped(inputs: LossInputs, *, clip_low: float, clip_high: float) -> Tensor:
    """Loss [N] of PPO's clipped ratio (arXiv 1707.06347), with bounds of their own (arXiv 2503.14476).

    A token stops pushing once the ratio has left [1 - clip_low, 1 + clip_high] in the direction its
    advantage asks for.
    """
    ratio = _log_ratio(inputs).exp()
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(-inputs.advantages * ratio, -inputs.advantages * bounded)


def importance_weights(inputs: LossInputs, *, kind: Correction, low: float, high: float) -> Tensor:
    """Weight [N], without gradient, that corrects for the sampler not being the trainer: old / rollout.

    "tis" truncates it at `high`; "icepop" (arXiv 2510.18855) puts 0 outside [low, high]; "none" is 1.
    A token weighted 0 stays in the loss's denominator. Where the sampler reported no log-probability,
    the weight is 1. When old is rollout (bypass) every weight is 1: the ratio holds the correction.
    """
    if kind == "none":
        return torch.ones_like(inputs.advantages)
    weight = _log_mismatch(inputs).exp()
    if kind == "tis":
        return weight.clamp(max=high)
    return torch.where((weight >= low) & (weight <= high), weight, 0.0)


def kl_term(inputs: LossInputs, *, estimator: Estimator) -> Tensor:
    """Loss [N] whose expected gradient is that of KL(policy || reference).

    "k3_ratio" is ratio * k3 with the gradient flowing through the ratio too (arXiv 2512.02556), right
    off-policy as well; "k2" is half the squared log-ratio, right on-policy only. Plain k3, GRPO's
    choice, has the gradient of the *opposite* KL, and k1 in the loss has none (arXiv 2510.01555).
    """
    assert inputs.ref_logprobs is not None, "a KL term needs a reference"
    if estimator == "k2":
        return 0.5 * (inputs.logprobs - inputs.ref_logprobs) ** 2
    # the ratio must not be detached: ratio * k3 alone has k3's gradient, that of the opposite KL
    return _log_ratio(inputs).exp() * _k3(inputs.logprobs - inputs.ref_logprobs)


def _log_ratio(inputs: LossInputs) -> Tensor:
    """log(policy / old) [N]; where old is unknown (bypass, and the sampler gave no number) the ratio is 1."""
    known = inputs.old_logprobs.isfinite()
    old = torch.where(known, inputs.old_logprobs, inputs.logprobs.detach())
    return (inputs.logprobs - old).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@torch.no_grad()
def _log_mismatch(inputs: LossInputs) -> Tensor:
    """log(old / rollout) [N], 0 where either is missing."""
    difference = inputs.old_logprobs - inputs.rollout_logprobs
    known = torch.where(difference.isfinite(), difference, 0.0)
    return known.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(-d) - 1 + d: never negative, and its mean under the policy that samples is the KL."""
    return (-log_ratio).clamp(max=LOG_RATIO_LIMIT).exp() - 1 + log_ratio


@torch.no_grad()
def _policy_sums(inputs: LossInputs, *, clip_low: float, clip_high: float) -> LossSums:
    ratio = _log_ratio(inputs).exp()
    zeros = torch.zeros_like(inputs.advantages)
    kl_ref = zeros if inputs.ref_logprobs is None else _k3(inputs.logprobs - inputs.ref_logprobs)
    return {
        "num_tokens": _count(torch.ones_like(zeros)),
        "clip_low_count": _count((inputs.advantages < 0) & (ratio < 1 - clip_low)),
        "clip_high_count": _count((inputs.advantages > 0) & (ratio > 1 + clip_high)),
        "entropy_sum": _count(zeros if inputs.entropy is None else inputs.entropy),
        "kl_ref_sum": _count(kl_ref),
        "ratio_max_dev": _largest((ratio - 1).abs()),
    }


@torch.no_grad()
def _correction_sums(inputs: LossInputs, *, kind: Correction, low: float, high: float) -> LossSums:
    weight = _log_mismatch(inputs).exp()
    outside = (weight < low) | (weight > high)
    return {
        "correction_dropped_count": _count(outside & (kind == "icepop")),
        "correction_capped_count": _count((weight > high) & (kind == "tis")),
    }


@torch.no_grad()
def mismatch_sums(inputs: LossInputs) -> LossSums:
    """How far the sampler's log-probabilities are from `old_logprobs`.

    In bypass these are one and the same: give the trainer's own as the old ones to see a difference.
    """
    log_mismatch = _log_mismatch(inputs)
    return {
        # k3 of the sampler against the trainer, d = log(rollout / old)
        "mismatch_k3_sum": _count(_k3(-log_mismatch)),
        "mismatch_max": _largest(log_mismatch.abs()),
        "nan_logprob_count": _count(~inputs.rollout_logprobs.isfinite()),
    }


def _count(values: Tensor) -> Tensor:
    # float64, because float32 stops counting at 2**24 tokens
    return values.sum(dtype=torch.float64)


def _largest(values: Tensor) -> Tensor:
    # the 0 lets a micro-batch without trainable tokens have a largest value
    return torch.cat([values, values.new_zeros(1)]).amax().double()


def merge(parts: Sequence[LossSums], *, num_optimizer_steps: int = 1) -> Metrics:
    """Add up the sums of micro-batches and turn them into means over tokens.

    The loss is the mean over optimizer steps of each one's whole loss. Entropy and KL are 0.0 where
    none was measured.
    """
    largest = {"mismatch_max", "ratio_max_dev"}
    total = {
        key: float(torch.stack([part[key] for part in parts]).amax(0))
        if key in largest
        else float(torch.stack([part[key] for part in parts]).sum(0))
        for key in (parts[0] if parts else ())
    }
    num_tokens = max(total.pop("num_tokens", 0.0), 1.0)
    metrics = {"loss": total.get("loss_sum", 0.0) / num_optimizer_steps}
    metrics |= {name: total.get(key, 0.0) / num_tokens for name, key in _MEANS.items()}
    return metrics | {name: total.get(name, 0.0) for name in sorted(largest)}


_MEANS = {
    "clip_frac_low": "clip_low_count",
    "clip_frac_high": "clip_high_count",
    "entropy": "entropy_sum",
    "kl_ref": "kl_ref_sum",
    "mismatch_kl": "mismatch_k3_sum",
    "correction_dropped_frac": "correction_dropped_count",
    "correction_capped_frac": "correction_capped_count",
    "nan_logprob_frac": "nan_logprob_count",
}
