"""Where sampler and trainer disagree: importance weights, and which tokens or rollouts are left out for it.

N: trainable tokens of one micro-batch. Nothing here has a gradient. A token weighted 0 stays in the loss's
denominator; one that is not `acceptable` should be taken out of the loss mask, denominator and all.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from verigrad.engine.divergence import bounded, kl_values, log_mismatch, log_ratio, rollout_mean, rollout_sum
from verigrad.engine.schema import LossInputs

Correction = Literal["icepop", "tis", "sequence_tis", "sequence_mask", "geometric_mask", "none"]
Level = Literal["token", "sequence_sum", "sequence_mean", "sequence_max"]
Measure = Literal["k1", "k2", "k3"]

TOKEN_WISE = ("icepop", "tis", "none")  # kinds that look at each token by itself
CAPS = ("tis", "sequence_tis")  # kinds that hold the ratio at a bound; the others put 0 beyond it


@torch.no_grad()
def importance_weights(
    inputs: LossInputs, *, kind: Correction, low: float | None, high: float | None
) -> Tensor:
    """Weight [N] of each token's loss for the sampler not being the trainer, times correction_scale.

    With w = old / rollout of a token and W the product over its rollout: "tis" is w held within [low, high],
    "sequence_tis" W so held; "icepop" (arXiv 2510.18855) is w and 0 outside, "sequence_mask" W and 0
    outside; "geometric_mask" is w, and 0 for a rollout whose geometric mean of w is outside. "none" is 1,
    whatever the scale. None is no bound. Where sampler or old log-probability is missing w is 1. When old is
    rollout (bypass) every weight is 1: the loss's own ratio holds the correction.
    """
    if kind == "none":
        return torch.ones_like(inputs.advantages)
    return inputs.correction_scale * ratio_weights(
        log_mismatch(inputs), inputs.sequence, kind=kind, low=low, high=high
    )


@torch.no_grad()
def ratio_weights(
    log_ratios: Tensor, sequence: Tensor, *, kind: Correction, low: float | None, high: float | None
) -> Tensor:
    """`importance_weights` without the scale, from log(trainer / sampler) [N] and each token's rollout."""
    if kind == "none":
        return torch.ones_like(log_ratios)
    gate = _gate(log_ratios, sequence, kind=kind)
    if kind in CAPS:
        return gate.clamp(low or 0.0, math.inf if high is None else high)
    weights = bounded(log_ratios).exp() if kind == "geometric_mask" else gate
    return torch.where(_inside(gate, low=low, high=high), weights, 0.0)


def _gate(log_ratios: Tensor, sequence: Tensor, *, kind: Correction) -> Tensor:
    """The ratio [N] that the bounds of this kind speak about."""
    if kind in ("sequence_tis", "sequence_mask"):
        log_ratios = rollout_sum(log_ratios, sequence)
    if kind == "geometric_mask":
        log_ratios = rollout_mean(log_ratios, sequence)
    return bounded(log_ratios).exp()


@torch.no_grad()
def off_policy_keep(inputs: LossInputs, *, delta: float) -> Tensor:
    """Off-policy sequence mask [N] bool: False drops a token's loss (DeepSeek-V3.2, arXiv 2512.02556).

    Dropped where the advantage is negative and the policy has moved away from the rollout: its mean
    log(old / policy) is larger than `delta`. A dropped token stays in the denominator.
    """
    moved_away = rollout_mean(-log_ratio(inputs), inputs.sequence)
    return ~((inputs.advantages < 0) & (moved_away > delta))


@torch.no_grad()
def acceptable(
    log_ratios: Tensor,
    sequence: Tensor,
    *,
    level: Level,
    measure: Measure,
    low: float | None,
    high: float | None,
) -> Tensor:
    """Which tokens [N] bool to train on, from log(trainer / sampler) [N] and the rollout of each token.

    Measure k1 keeps the ratio trainer / sampler itself within [low, high] (verl's k1 bounds its inverse);
    k2 and k3 keep that estimate of KL(sampler || trainer) in nats at most `high`, and have no `low`. Level
    "token" judges each token; the others a rollout as one, by the sum over its tokens (for k1 the product of
    ratios), by their mean (for k1 the geometric mean), or by the worst: every token must be acceptable. None
    is no bound. A log-ratio that is not finite, for want of the sampler's number, counts as 0.
    """
    known = torch.where(log_ratios.isfinite(), log_ratios, 0.0)
    if measure == "k1":
        values, least, most = known, _log(low, -math.inf), _log(high, math.inf)
    else:
        # the sampler sampled, so k3 is of sampler against trainer: d = -log(trainer / sampler)
        values, least = kl_values(-known, estimator=measure), -math.inf
        most = math.inf if high is None else high
    if level == "sequence_sum":
        values = rollout_sum(values, sequence)
    if level == "sequence_mean":
        values = rollout_mean(values, sequence)
    inside = _inside(values, low=least, high=most)
    if level == "sequence_max":
        return rollout_sum((~inside).to(log_ratios.dtype), sequence) == 0
    return inside


def _log(bound: float | None, default: float) -> float:
    if bound is None:
        return default
    return math.log(bound) if bound > 0 else -math.inf


def _inside(values: Tensor, *, low: float | None, high: float | None) -> Tensor:
    inside = torch.ones_like(values, dtype=torch.bool)
    if low is not None:
        inside &= values >= low
    return inside if high is None else inside & (values <= high)


@torch.no_grad()
def correction_sums(
    inputs: LossInputs, weights: Tensor, *, kind: Correction, low: float | None, high: float | None
) -> dict[str, Tensor]:
    """What `importance_weights` did, as float64 sums over tokens: how many it put to 0 or held at a bound."""
    none = torch.zeros_like(weights, dtype=torch.bool)
    gate = _gate(log_mismatch(inputs), inputs.sequence, kind=kind)
    outside = none if kind == "none" else ~_inside(gate, low=low, high=high)
    capped, dropped = (outside, none) if kind in CAPS else (none, outside)
    positive, negative = inputs.advantages > 0, inputs.advantages < 0
    double = weights.double()
    sums = {
        "correction_dropped_count": dropped,
        "correction_capped_count": capped,
        "positive_count": positive,
        "negative_count": negative,
        "masked_positive_count": dropped & positive,
        "masked_negative_count": dropped & negative,
        "weight_sum": double,
        "weight_square_sum": double**2,
    }
    return {name: values.sum(dtype=torch.float64) for name, values in sums.items()}
