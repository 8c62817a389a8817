"""Log-probabilities and entropies of tokens to a loss of each: the objectives a fused loss layer knows.

N: tokens. r is the ratio policy / old of a token, A its advantage. Everything here looks at one token at a
time, holds no weights of a model, and is differentiable; the row kernels work out the same formulas.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

# beyond it exp() heads for infinity, and 0 * inf in a clipped branch's gradient is NaN
LOG_RATIO_LIMIT = 20.0

Loss = Literal["clip", "cispo", "reinforce"]
Correction = Literal["none", "tis", "icepop"]
Estimator = Literal["k1", "k2", "k3", "k3_plus", "k3_ratio", "abs"]


@dataclass(frozen=True, slots=True)
class TokenObjective:
    """A token-level policy objective: w * `loss` + kl_coef * KL - entropy_coef * entropy.

    `loss`, the policy's part:
    "clip": max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high)) (PPO, arXiv 1707.06347; unequal bounds:
    arXiv 2503.14476; Dr. GRPO, arXiv 2503.20783, is this with other advantages and weights);
    "cispo": -A log p times r held within [ratio_floor, ratio_cap], without gradient (arXiv 2506.13585). With
    ratio_cap = inf this is REINFORCE weighted by importance, with a finite one its truncated form;
    "reinforce": -A log p.

    `correction`, the weight w for a sampler that is not the old policy, from v = old / rollout: "none" is 1,
    "tis" v held within [correction_low, correction_high], "icepop" v and 0 outside; times correction_scale.
    None is no bound. It weighs the policy's part alone.

    `kl_estimator`, from d = log(policy / reference): "k1" d, "k2" d^2 / 2, "k3" exp(-d) - 1 + d, "k3_plus"
    the value of k3 with the gradient of k2, "k3_ratio" r times k3, "abs" |d|; None is no KL.

    Log-ratios are held within 20, beyond which they have no gradient. Where one of a ratio's two
    log-probabilities is not finite, as given, the ratio is 1.
    """

    loss: Loss = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    ratio_floor: float = 0.0
    ratio_cap: float = 5.0
    correction: Correction = "none"
    correction_low: float | None = None
    correction_high: float | None = None
    correction_scale: float = 1.0
    kl_estimator: Estimator | None = None
    kl_coef: float = 0.0
    entropy_coef: float = 0.0

    def __post_init__(self) -> None:
        """Raises ValueError for a name that is none of the above."""
        for name, allowed in (("loss", Loss), ("correction", Correction), ("kl_estimator", Estimator)):
            value = getattr(self, name)
            if value not in get_args(allowed) and not (name == "kl_estimator" and value is None):
                raise ValueError(f"{name} = {value!r}: expected one of {', '.join(get_args(allowed))}")

    @property
    def has_kl(self) -> bool:
        """Whether the KL term has any weight."""
        return self.kl_estimator is not None and self.kl_coef != 0

    @property
    def has_entropy(self) -> bool:
        """Whether the entropy term has any weight."""
        return self.entropy_coef != 0


@dataclass(frozen=True, slots=True)
class TokenColumns:
    """What is known of each token before the forward pass."""

    advantages: Tensor  # [N] float
    loss_weights: Tensor  # [N] float: loss = sum(loss_weights * token loss)
    old_logprobs: Tensor | None = None  # [N] float; None: this forward's own, every ratio exactly 1
    ref_logprobs: Tensor | None = None  # [N] float
    rollout_logprobs: Tensor | None = None  # [N] float: the sampler's

    def select(self, rows: Tensor | slice) -> "TokenColumns":
        """The columns of some tokens."""
        old, ref, rollout = self.old_logprobs, self.ref_logprobs, self.rollout_logprobs
        return TokenColumns(
            self.advantages[rows],
            self.loss_weights[rows],
            None if old is None else old[rows],
            None if ref is None else ref[rows],
            None if rollout is None else rollout[rows],
        )


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """The loss of each token by itself."""

    values: Tensor  # [N] with gradient, not weighted
    stopped_low: Tensor  # [N] bool: below a lower bound ("cispo": weight raised to the floor)
    stopped_high: Tensor  # [N] bool: above an upper bound ("cispo": weight lowered to the cap)


def token_terms(
    objective: TokenObjective, columns: TokenColumns, *, logprobs: Tensor, entropies: Tensor
) -> TokenTerms:
    """The objective's loss [N] of tokens with these log-probabilities and entropies [N], with gradient."""
    own = logprobs.detach()
    old = own if columns.old_logprobs is None else _known(columns.old_logprobs, own)
    ratio = _bounded(logprobs - old).exp()
    terms = _policy_terms(objective, columns.advantages, ratio=ratio, logprobs=logprobs)
    values = _correction(objective, columns, own) * terms.values
    if objective.has_kl:
        assert columns.ref_logprobs is not None, "a KL term needs a reference"
        kl = _kl(objective.kl_estimator, logprobs - columns.ref_logprobs, ratio=ratio)
        values = values + objective.kl_coef * kl
    if objective.has_entropy:
        values = values - objective.entropy_coef * entropies
    return TokenTerms(values, terms.stopped_low, terms.stopped_high)


def _policy_terms(
    objective: TokenObjective, advantages: Tensor, *, ratio: Tensor, logprobs: Tensor
) -> TokenTerms:
    fixed = ratio.detach()
    if objective.loss == "clip":
        least, most = 1 - objective.clip_low, 1 + objective.clip_high
        values = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(least, most))
        return TokenTerms(values, (advantages < 0) & (fixed < least), (advantages > 0) & (fixed > most))
    if objective.loss == "cispo":
        least, most = objective.ratio_floor, objective.ratio_cap
        values = -fixed.clamp(least, most) * advantages * logprobs
        return TokenTerms(values, fixed < least, fixed > most)
    never = torch.zeros_like(fixed, dtype=torch.bool)
    return TokenTerms(-advantages * logprobs, never, never.clone())


@torch.no_grad()
def _correction(objective: TokenObjective, columns: TokenColumns, own: Tensor) -> Tensor | float:
    if objective.correction == "none":
        return 1.0
    assert columns.rollout_logprobs is not None, "a correction needs the sampler's log-probabilities"
    gap = (own if columns.old_logprobs is None else columns.old_logprobs) - columns.rollout_logprobs
    weights = _bounded(torch.where(gap.isfinite(), gap, 0.0)).exp()
    low, high = correction_bounds(objective)
    if objective.correction == "tis":
        return objective.correction_scale * weights.clamp(low, high)
    inside = (weights >= low) & (weights <= high)
    return objective.correction_scale * torch.where(inside, weights, 0.0)


def correction_bounds(objective: TokenObjective) -> tuple[float, float]:
    """Lower and upper bound of the importance weight, 0 and inf where there is none."""
    low, high = objective.correction_low, objective.correction_high
    return (0.0 if low is None else low, math.inf if high is None else high)


def _kl(estimator: Estimator | None, difference: Tensor, *, ratio: Tensor) -> Tensor:
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    half_square = 0.5 * difference**2
    if estimator == "k2":
        return half_square
    # expm1, because exp(-d) - 1 is mere rounding in float32 for the small d that are the rule
    k3 = (-difference).clamp(max=LOG_RATIO_LIMIT).expm1() + difference
    if estimator == "k3_plus":
        return half_square + (k3 - half_square).detach()
    return ratio * k3 if estimator == "k3_ratio" else k3


def _known(old: Tensor, own: Tensor) -> Tensor:
    return torch.where(old.isfinite(), old, own)


def _bounded(log_ratios: Tensor) -> Tensor:
    return log_ratios.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
