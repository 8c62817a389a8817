"""Log-probabilities and advantages to a scalar loss and its metrics, over trainable tokens only.

N: trainable tokens of one micro-batch. Nothing here normalises: weights do (aggregation.py), so that the
losses, gradients and sums of micro-batches add up to those of the whole optimizer step.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verigrad.engine.correction import Correction, correction_sums, importance_weights, off_policy_keep
from verigrad.engine.divergence import Estimator, kl_term, kl_values, log_mismatch, log_ratio
from verigrad.engine.schema import Coefs, LossInputs, Metrics, TokenLoss

LossSums = dict[str, Tensor]

LossFn = Callable[[LossInputs, Coefs], tuple[Tensor, LossSums]]
"""One micro-batch -> its share of the step's loss (scalar) and of the step's sums."""


@dataclass(frozen=True, slots=True)
class TokenWise:
    """A LossFn of single tokens: it may be given a few of a micro-batch's at a time, its results added up."""

    loss: LossFn

    def __call__(self, inputs: LossInputs, coefs: Coefs) -> tuple[Tensor, LossSums]:
        """The same loss."""
        return self.loss(inputs, coefs)


def policy_loss(
    inputs: LossInputs,
    coefs: Coefs,
    *,
    token_loss: Callable[[LossInputs], TokenLoss],
    correction: Correction,
    correction_low: float | None,
    correction_high: float | None,
    off_policy_delta: float | None,
    kl_estimator: Estimator | None,
    positive_nll_coef: float = 0.0,
) -> tuple[Tensor, LossSums]:
    """Weighted sum over tokens of corrected token loss + coefs.kl * KL - coefs.entropy * entropy.

    To it comes `positive_nll_coef` times the negative log-likelihood of the step's right rollouts, the mean
    over their tokens whatever the aggregation (VAPO, arXiv 2504.05118).

    The correction and the off-policy mask (`off_policy_delta`; None is off) multiply the token loss alone: a
    token whose sampling probability cannot be trusted is still held to the reference. With `kl_estimator`
    None there is no KL in the loss; it is measured wherever there is a reference.
    """
    bounded = token_loss(inputs)
    weights = importance_weights(inputs, kind=correction, low=correction_low, high=correction_high)
    keep = torch.ones_like(weights, dtype=torch.bool)
    if off_policy_delta is not None:
        keep = off_policy_keep(inputs, delta=off_policy_delta)
    values = bounded.values * torch.where(keep, weights, 0.0)
    if kl_estimator is not None and coefs.kl:
        values = values + coefs.kl * kl_term(inputs, estimator=kl_estimator)
    if coefs.entropy:
        assert inputs.entropy is not None, "an entropy bonus needs the entropy"
        values = values - coefs.entropy * inputs.entropy
    loss = (inputs.weights * values).sum()
    sums = {"off_policy_dropped_count": _count(~keep)}
    if positive_nll_coef and inputs.nll_weights is not None:
        likelihood = -(inputs.nll_weights * inputs.logprobs).sum()
        loss = loss + positive_nll_coef * likelihood
        sums["positive_nll_sum"] = likelihood.detach().double()
    sums["loss_sum"] = loss.detach().double()
    sums |= _policy_sums(inputs, bounded)
    sums |= correction_sums(inputs, weights, kind=correction, low=correction_low, high=correction_high)
    return loss, sums | mismatch_sums(inputs) | dict(bounded.sums or {})


@TokenWise
def nll(inputs: LossInputs, coefs: Coefs) -> tuple[Tensor, LossSums]:
    """Minus the weighted sum of log-probabilities: supervised learning of the labels, with the same sums.

    It has no policy to compare with: advantages, old and sampler's log-probabilities are not looked at, and
    `coefs` are those of policy_loss's side terms, which are none of its own.
    """
    own = inputs.logprobs.detach()
    inputs = dataclasses.replace(inputs, old_logprobs=own, rollout_logprobs=own)
    return policy_loss(
        inputs,
        dataclasses.replace(coefs, kl=0.0, entropy=0.0),
        token_loss=_nll_values,
        correction="none",
        correction_low=None,
        correction_high=None,
        off_policy_delta=None,
        kl_estimator=None,
    )


def _nll_values(inputs: LossInputs) -> TokenLoss:
    never = torch.zeros_like(inputs.logprobs, dtype=torch.bool)
    return TokenLoss(-inputs.logprobs, stopped_low=never, stopped_high=never)


@torch.no_grad()
def _policy_sums(inputs: LossInputs, bounded: TokenLoss) -> LossSums:
    zeros = torch.zeros_like(inputs.advantages)
    kl_ref = zeros
    if inputs.ref_logprobs is not None:
        kl_ref = kl_values(inputs.logprobs - inputs.ref_logprobs, estimator="k3")
    return {
        "num_tokens": _count(torch.ones_like(zeros)),
        "clip_low_count": _count(bounded.stopped_low),
        "clip_high_count": _count(bounded.stopped_high),
        "entropy_sum": _count(zeros if inputs.entropy is None else inputs.entropy),
        "kl_ref_sum": _count(kl_ref),
        "ratio_max_dev": _largest(log_ratio(inputs).expm1().abs()),
    }


@torch.no_grad()
def mismatch_sums(inputs: LossInputs) -> LossSums:
    """How far the sampler's log-probabilities are from `old_logprobs`.

    In bypass these are one and the same: give the trainer's own as the old ones to see a difference.
    """
    gap = log_mismatch(inputs)
    return {
        # k3 of the sampler against the trainer, d = log(rollout / old)
        "mismatch_k3_sum": _count(kl_values(-gap, estimator="k3")),
        # with w = old / rollout, E[w^2] - 1 is the chi-squared divergence: how much variance weights bring
        "mismatch_chi2_sum": _count((2 * gap.double()).expm1()),
        "mismatch_max": _largest(gap.abs()),
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
    none was measured, and NaN where there was no token, so that nothing adapts to them; means over pairs are
    NaN where there was no pair. `ess_frac` is the effective sample size of the importance weights over the
    number of tokens: 1 where all are equal, 0.0 where all are 0.
    """
    total = {key: float(value) for key, value in add_up(parts).items()}

    def share(key: str, of: str) -> float:
        return total.get(key, 0.0) / (total.get(of, 0.0) or 1.0)

    metrics = {"loss": total.get("loss_sum", 0.0) / num_optimizer_steps}
    if "positive_nll_sum" in total:
        metrics["positive_nll"] = total["positive_nll_sum"] / num_optimizer_steps
    metrics |= {name: share(key, of) for name, (key, of) in _MEANS.items()}
    if "num_pairs" in total:
        num = total["num_pairs"]
        metrics |= {name: total[key] / num if num else math.nan for name, key in _PAIR_MEANS.items()}
        metrics["pairs/num"] = num / num_optimizer_steps
    metrics["ess_frac"] = share("weight_sum", "num_tokens") * share("weight_sum", "weight_square_sum")
    if not total.get("num_tokens"):
        metrics |= {"entropy": math.nan, "kl_ref": math.nan}
    return metrics | {name: total.get(name, 0.0) for name in sorted(_LARGEST)}


def add_up(parts: Sequence[LossSums]) -> LossSums:
    """The sums of several parts as those of one; what is the largest of each stays the largest."""
    stacked = {key: torch.stack([part[key] for part in parts]) for key in (parts[0] if parts else ())}
    return {key: each.amax(0) if key in _LARGEST else each.sum(0) for key, each in stacked.items()}


_LARGEST = {"mismatch_max", "ratio_max_dev"}

_MEANS = {  # metric: what is added up, over what
    "clip_frac_low": ("clip_low_count", "num_tokens"),
    "clip_frac_high": ("clip_high_count", "num_tokens"),
    "entropy": ("entropy_sum", "num_tokens"),
    "kl_ref": ("kl_ref_sum", "num_tokens"),
    "mismatch_kl": ("mismatch_k3_sum", "num_tokens"),
    "mismatch_chi2": ("mismatch_chi2_sum", "num_tokens"),
    "correction_dropped_frac": ("correction_dropped_count", "num_tokens"),
    "correction_capped_frac": ("correction_capped_count", "num_tokens"),
    "correction_masked_pos_frac": ("masked_positive_count", "positive_count"),
    "correction_masked_neg_frac": ("masked_negative_count", "negative_count"),
    "off_policy_dropped_frac": ("off_policy_dropped_count", "num_tokens"),
    "nan_logprob_frac": ("nan_logprob_count", "num_tokens"),
}

_PAIR_MEANS = {  # metric: what is added up over pairs
    "pairs/accuracy": "pair_agrees_sum",
    "pairs/margin": "pair_margin_sum",
    "pairs/reward_chosen": "pair_reward_chosen_sum",
    "pairs/reward_rejected": "pair_reward_rejected_sum",
    "pairs/logprobs_chosen": "pair_logprobs_chosen_sum",
    "pairs/logprobs_rejected": "pair_logprobs_rejected_sum",
}
