"""Log-probabilities and advantages to a loss of each token by itself.

Every function takes LossInputs and the settings of its part in catalogue.py, and gives values [N] with
gradient and which tokens lost theirs to a bound. Nothing here normalises. r is the ratio policy / old of a
token, 1 where the old log-probability is unknown; A its advantage.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from verigrad.engine.divergence import bounded, known_old, log_ratio
from verigrad.engine.schema import LossInputs, TokenLoss

TINY = 1e-8


def clip(inputs: LossInputs, *, clip_low: float, clip_high: float) -> TokenLoss:
    """PPO's clipped ratio (arXiv 1707.06347), with bounds of their own (arXiv 2503.14476).

    A token stops pushing once r has left [1 - clip_low, 1 + clip_high] in the direction A asks for.
    """
    ratio = log_ratio(inputs).exp()
    return clipped(ratio, inputs.advantages, clip_low=clip_low, clip_high=clip_high)


def clipped(ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float) -> TokenLoss:
    """max(-A r, -A clip(r)) of any ratio [N] with gradient, a token's or its rollout's."""
    inside = ratio.clamp(1 - clip_low, 1 + clip_high)
    return TokenLoss(
        torch.maximum(-advantages * ratio, -advantages * inside),
        stopped_low=(advantages < 0) & (ratio < 1 - clip_low),
        stopped_high=(advantages > 0) & (ratio > 1 + clip_high),
    )


def dual_clip(inputs: LossInputs, *, clip_low: float, clip_high: float, dual_clip: float) -> TokenLoss:
    """`clip`, and where A < 0 at most -A * dual_clip (arXiv 1912.09729).

    There r > dual_clip stops the gradient, counted as stopped_high: one stray token cannot rule the step.
    """
    ratio, advantages = log_ratio(inputs).exp(), inputs.advantages
    plain = clipped(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    over = (advantages < 0) & (ratio > dual_clip)
    return TokenLoss(
        torch.where(over, -advantages * dual_clip, plain.values),
        stopped_low=plain.stopped_low,
        stopped_high=plain.stopped_high | over,
    )


def two_sided(inputs: LossInputs, *, clip_low: float, clip_high: float, ratio_cap: float) -> TokenLoss:
    """`clip` of min(r, ratio_cap), so that r > ratio_cap stops either sign of A (arXiv 2505.07291).

    Both count as stopped_high. With ratio_cap < 1 + clip_high the cap is the upper bound for both signs.
    """
    ratio = log_ratio(inputs).exp()
    plain = clipped(ratio.clamp(max=ratio_cap), inputs.advantages, clip_low=clip_low, clip_high=clip_high)
    over = (inputs.advantages != 0) & (ratio > ratio_cap)
    return TokenLoss(plain.values, stopped_low=plain.stopped_low, stopped_high=plain.stopped_high | over)


def cispo(inputs: LossInputs, *, ratio_floor: float, ratio_cap: float) -> TokenLoss:
    """-A log p weighted by r held within [ratio_floor, ratio_cap], without gradient (arXiv 2506.13585).

    The bounds are ratios themselves, not distances from 1. No token loses its gradient: stopped_low and
    stopped_high tell whose weight was raised to the floor or lowered to the cap. The value depends on the
    log-probability's size; only the gradient means something.
    """
    ratio = log_ratio(inputs).detach().exp()
    values = -ratio.clamp(ratio_floor, ratio_cap) * inputs.advantages * inputs.logprobs
    return TokenLoss(values, stopped_low=ratio < ratio_floor, stopped_high=ratio > ratio_cap)


def sapo(inputs: LossInputs, *, tau_pos: float, tau_neg: float) -> TokenLoss:
    """-A * (4 / tau) * sigmoid(tau (r - 1)), slope 1 at r = 1 and fading on both sides (arXiv 2511.20347).

    tau is tau_pos where A > 0, tau_neg elsewhere. Nothing is ever quite stopped.
    """
    tau = torch.full_like(inputs.advantages, tau_neg).masked_fill(inputs.advantages > 0, tau_pos)
    gate = torch.sigmoid(tau * (log_ratio(inputs).exp() - 1)) * 4 / tau
    return _unbounded(-inputs.advantages * gate)


def dppo_tv(inputs: LossInputs, *, clip_low: float, clip_high: float, ratio_cap: float) -> TokenLoss:
    """-A log p weighted by min(r, ratio_cap), dropped outside a trust region (arXiv 2602.04879).

    The region is the total variation of the sampled token: its probability may rise by clip_high where
    A > 0, and fall by clip_low where A < 0. stopped_low and stopped_high tell who was dropped.
    """
    moved = (inputs.logprobs.exp() - known_old(inputs).exp()).detach()
    return _dropped(inputs, low=moved < -clip_low, high=moved > clip_high, ratio_cap=ratio_cap)


def dppo_kl(inputs: LossInputs, *, clip_low: float, clip_high: float, ratio_cap: float) -> TokenLoss:
    """As `dppo_tv`, with the region's size in nats: KL(old || policy) of "this token or another".

    A token is dropped where that KL exceeds clip_high and A > 0 raised it, or clip_low and A < 0 lowered it.
    """
    old, new = known_old(inputs), inputs.logprobs.detach()
    # the probability of all other tokens; rounding may put a log-probability above 0
    old_rest, new_rest = (-torch.expm1(x.clamp(max=0.0)) + TINY for x in (old, new))
    moved = old.exp() * (old - new) + (1 - old.exp()) * (old_rest / new_rest).log()
    return _dropped(
        inputs,
        low=(moved > clip_low) & (new < old),
        high=(moved > clip_high) & (new > old),
        ratio_cap=ratio_cap,
    )


def _dropped(inputs: LossInputs, *, low: Tensor, high: Tensor, ratio_cap: float) -> TokenLoss:
    stopped_low, stopped_high = (inputs.advantages < 0) & low, (inputs.advantages > 0) & high
    weight = log_ratio(inputs).detach().exp().clamp(max=ratio_cap)
    weight = torch.where(stopped_low | stopped_high, 0.0, weight)
    return TokenLoss(-weight * inputs.advantages * inputs.logprobs, stopped_low, stopped_high)


def prime(inputs: LossInputs, *, clip_low: float, clip_high: float, pull: float) -> TokenLoss:
    """-A r + pull * log(r)^2 with r = policy / sampler, the first term within dppo_tv's region (prime-rl).

    r holds the importance correction already, so no other may be applied (correction "none"). It is taken
    against the old policy where the sampler gave no log-probability. The pull back holds for every token,
    also one that stopped_low or stopped_high tell was dropped.
    """
    behind = torch.where(inputs.rollout_logprobs.isfinite(), inputs.rollout_logprobs, known_old(inputs))
    log_gap = inputs.logprobs - behind
    moved = (inputs.logprobs.exp() - behind.exp()).detach()
    stopped_low = (inputs.advantages < 0) & (moved < -clip_low)
    stopped_high = (inputs.advantages > 0) & (moved > clip_high)
    pushes = torch.where(stopped_low | stopped_high, 0.0, -inputs.advantages * bounded(log_gap).exp())
    return TokenLoss(pushes + pull * log_gap**2, stopped_low, stopped_high)


def reinforce(inputs: LossInputs) -> TokenLoss:
    """-A log p: the policy gradient as derived (Williams 1992). No ratio, so right on-policy only."""
    return _unbounded(-inputs.advantages * inputs.logprobs)


def dro(inputs: LossInputs, *, pull: float) -> TokenLoss:
    """-A log p + pull / 2 * log(r)^2 (Direct Reward Optimization, arXiv 2405.19107)."""
    log_gap = inputs.logprobs - known_old(inputs)
    return _unbounded(-inputs.advantages * inputs.logprobs + 0.5 * pull * log_gap**2)


def _unbounded(values: Tensor) -> TokenLoss:
    never = torch.zeros_like(values, dtype=torch.bool)
    return TokenLoss(values, stopped_low=never, stopped_high=never)


LOSSES: Mapping[str, Callable[..., TokenLoss]] = {
    "clip": clip,
    "dual_clip": dual_clip,
    "two_sided": two_sided,
    "cispo": cispo,
    "sapo": sapo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
    "prime": prime,
    "reinforce": reinforce,
    "dro": dro,
}
"""Names of catalogue.LOSSES that look at one token at a time."""
