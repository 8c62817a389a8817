"""Log-probabilities of answers -> preference losses, one value per pair or per labelled answer.

P: pairs. A: single answers. Log-probabilities are sums over an answer's tokens, in nats, and `num_` their
tokens. Nothing here normalises over the step: preference_batch.py divides by the pairs of the whole step.
preference_catalogue.py holds the defaults, docs/preference-losses.md the reasons.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verigrad.engine.config import Config
from verigrad.engine.preference_catalogue import PREFERENCES, numbers

ROUNDING = 1e-6
"""An answer's log-probability is exact to this share of it, or of one nat; what that could turn is a tie."""
LEAST_LOG = -1e-6
"""The largest mean log-probability odds are taken of: those of a certain answer are infinite."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """What a loss sees of P pairs."""

    chosen: Tensor  # [P] with gradient: log-probability of the chosen answer
    rejected: Tensor  # [P] with gradient
    num_chosen: Tensor  # [P] tokens
    num_rejected: Tensor  # [P]
    ref_chosen: Tensor | None = None  # [P] the reference's; None where the loss holds no reference
    ref_rejected: Tensor | None = None  # [P]
    p_chosen: Tensor | None = None  # [P] probability that the chosen answer is the better one; None is 1

    def swapped(self) -> "Pairs":
        """The same pairs the other way round."""
        return Pairs(
            self.rejected, self.chosen, self.num_rejected, self.num_chosen, self.ref_rejected, self.ref_chosen
        )


@dataclass(frozen=True, slots=True)
class PairLoss:
    """What a loss says of P pairs."""

    values: Tensor  # [P] with gradient
    reward_chosen: Tensor  # [P] the implicit reward, in the loss's own unit
    reward_rejected: Tensor  # [P]
    agrees: Tensor  # [P] 1 where the implicit rewards prefer what the label does, 0 where not, a tie 1/2


@dataclass(frozen=True, slots=True)
class Answers:
    """What KTO sees of A single answers."""

    logprobs: Tensor  # [A] with gradient
    ref: Tensor  # [A]
    good: Tensor  # [A] bool
    kl_ref: Tensor  # scalar: kl_estimate() of the whole step


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """What KTO says of A answers."""

    values: Tensor  # [A] with gradient
    rewards: Tensor  # [A] implicit: beta times the log-ratio
    agrees: Tensor  # [A] 1 where the reward is on the label's side of the reference point, a tie 1/2


Term = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""Pairs and the loss's numbers -> (values, reward of chosen, reward of rejected), each [P]."""
PairLossFn = Callable[[Pairs], PairLoss]
AnswerLossFn = Callable[[Answers], AnswerLoss]


# Pairs -----------------------------------------------------------------------------------------------------


def dpo(
    pairs: Pairs, *, beta: float, label_smoothing: float = 0.0, length_norm: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic loss of the difference in log-ratio (arXiv 2305.18290, eq. 7).

    With `label_smoothing` e, as if that share of labels were the wrong way round (cDPO). With `length_norm`
    of mean log-ratios per token (Tulu 3, arXiv 2411.15124, eq. 6).
    """
    chosen, rejected = _log_ratios(pairs, length_norm=length_norm)
    margin = beta * (chosen - rejected)
    values = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return values, beta * chosen, beta * rejected


def dpo_robust(pairs: Pairs, *, beta: float, label_smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPO whose expectation over labels flipped with probability e is that of the true ones (2403.00409)."""
    chosen, rejected = _log_ratios(pairs)
    margin, e = beta * (chosen - rejected), label_smoothing
    values = (-(1 - e) * F.logsigmoid(margin) + e * F.logsigmoid(-margin)) / (1 - 2 * e)
    return values, beta * chosen, beta * rejected


def dpo_hinge(pairs: Pairs, *, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing where the difference is above 1 / beta, else what it lacks (RSO, arXiv 2309.06657, eq. 10)."""
    chosen, rejected = _log_ratios(pairs)
    return torch.relu(1 - beta * (chosen - rejected)), beta * chosen, beta * rejected


def ipo(pairs: Pairs, *, beta: float, length_norm: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distance of the difference from 1 / (2 beta) (arXiv 2310.12036, eq. 17), of sums as printed.

    With `length_norm`, of means per token, as other engines' "ipo" has it: another loss of the same name.
    """
    chosen, rejected = _log_ratios(pairs, length_norm=length_norm)
    return (chosen - rejected - 1 / (2 * beta)).square(), beta * chosen, beta * rejected


def orpo(pairs: Pairs, *, odds_coef: float) -> tuple[Tensor, Tensor, Tensor]:
    """The odds-ratio term of ORPO (arXiv 2403.07691, eq. 7); nll_coef = 1 adds the likelihood (eq. 6)."""
    chosen = _log_odds(pairs.chosen / pairs.num_chosen)
    rejected = _log_odds(pairs.rejected / pairs.num_rejected)
    return -odds_coef * F.logsigmoid(chosen - rejected), chosen, rejected


def simpo(pairs: Pairs, *, beta: float, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic loss of the difference in mean log-probability beyond `margin` (arXiv 2405.14734, eq. 6)."""
    chosen, rejected = pairs.chosen / pairs.num_chosen, pairs.rejected / pairs.num_rejected
    return -F.logsigmoid(beta * (chosen - rejected) - margin), beta * chosen, beta * rejected


def cpo(pairs: Pairs, *, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """DPO against a uniform reference (arXiv 2401.08417, eq. 3); nll_coef = 1 adds the likelihood."""
    margin = beta * (pairs.chosen - pairs.rejected)
    return -F.logsigmoid(margin), beta * pairs.chosen, beta * pairs.rejected


TERMS: Mapping[str, Term] = {
    "dpo": dpo,
    "dpo_robust": dpo_robust,
    "dpo_hinge": dpo_hinge,
    "ipo": ipo,
    "orpo": orpo,
    "simpo": simpo,
    "cpo": cpo,
}


def pair_loss(pairs: Pairs, *, term: Term, nll_coef: float = 0.0) -> PairLoss:
    """A term plus `nll_coef` times the chosen answer's negative log-likelihood per token.

    Where `p_chosen` is not 1, the expectation of that over which answer is the better one; for dpo that is
    the loss of soft labels, whose gradient vanishes where the policy's own preference is p_chosen
    (arXiv 2309.00267).
    """

    def one_way(given: Pairs) -> tuple[Tensor, Tensor, Tensor]:
        values, chosen, rejected = term(given)
        if nll_coef:
            values = values - nll_coef * given.chosen / given.num_chosen
        return values, chosen.detach(), rejected.detach()

    values, chosen, rejected = one_way(pairs)
    label = torch.ones_like(chosen)
    if pairs.p_chosen is not None:
        label = torch.sign(pairs.p_chosen - 0.5)
        if bool((pairs.p_chosen != 1).any()):
            p = pairs.p_chosen
            values = p * values + (1 - p) * one_way(pairs.swapped())[0]
    return PairLoss(values, chosen, rejected, (_preferred(pairs, term) * label + 1) / 2)


@torch.no_grad()
def _preferred(pairs: Pairs, term: Term) -> Tensor:
    """[P] 1 where the implicit reward of chosen is the higher one, -1 where the lower, 0 for a tie.

    A policy that is its own reference gives differences of rounding alone, which prefer nothing: the sign
    must be the same with both sums of log-probabilities moved by ROUNDING, towards each other and apart.
    """

    def sign(side: int) -> Tensor:
        chosen, rejected = _moved(pairs.chosen, side), _moved(pairs.rejected, -side)
        _, high, low = term(dataclasses.replace(pairs, chosen=chosen, rejected=rejected))
        return torch.sign(high - low)

    return ((sign(1) + sign(-1)) / 2).trunc()


def _moved(sums: Tensor, side: int) -> Tensor:
    return sums + side * ROUNDING * sums.abs().clamp(min=1)


def _log_ratios(pairs: Pairs, *, length_norm: bool = False) -> tuple[Tensor, Tensor]:
    assert pairs.ref_chosen is not None, "this loss compares with a reference"
    assert pairs.ref_rejected is not None, "this loss compares with a reference"
    chosen, rejected = pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected
    return (chosen / pairs.num_chosen, rejected / pairs.num_rejected) if length_norm else (chosen, rejected)


def _log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean), also where p is close to 0 or to 1."""
    mean = mean.clamp(max=LEAST_LOG)
    close = mean > -math.log(2)
    far = torch.where(close, -1.0, mean)  # the branch not taken must have a finite gradient too
    near = torch.where(close, mean, -0.5)
    return mean - torch.where(close, torch.log(-torch.expm1(near)), torch.log1p(-torch.exp(far)))


# Single answers --------------------------------------------------------------------------------------------


def kto(answers: Answers, *, beta: float, good_weight: float, bad_weight: float) -> AnswerLoss:
    """One minus the value of a gain or loss against the reference point (arXiv 2402.01306, eq. 8).

    A good answer gains by a log-ratio above the reference point `kl_ref`, a bad one by one below.
    """
    ratios = answers.logprobs - answers.ref
    gain = torch.where(answers.good, ratios - answers.kl_ref, answers.kl_ref - ratios)
    weights = bad_weight + (good_weight - bad_weight) * answers.good.to(ratios)
    least = ROUNDING * answers.logprobs.detach().abs().clamp(min=1)
    agrees = (torch.sign(gain.detach()) * (gain.detach().abs() > least) + 1) / 2
    return AnswerLoss(weights * (1 - torch.sigmoid(beta * gain)), beta * ratios.detach(), agrees)


def kl_estimate(logprobs: Tensor, ref: Tensor) -> Tensor:
    """KTO's reference point: the mean log-ratio [A] of answers to *other* prompts, at least 0, no gradient.

    An estimate of KL(policy || reference) that is biased and cheap (arXiv 2402.01306, section 4.1).
    """
    return (logprobs.detach() - ref).mean().clamp(min=0.0)


# Recipes ---------------------------------------------------------------------------------------------------


def build(cfg: Config) -> PairLossFn | AnswerLossFn:
    """The loss of [prefer] in a resolved recipe: of Pairs, or of Answers where it is kto."""
    return kto_of(cfg) if cfg.prefer.loss == "kto" else pairs_of(cfg)


def pairs_of(cfg: Config) -> PairLossFn:
    """The loss of pairs."""
    p = cfg.prefer
    options: dict[str, Any] = numbers(p)
    nll_coef = options.pop("nll_coef")
    if PREFERENCES[p.loss].length_norm:
        options["length_norm"] = p.length_norm
    return partial(pair_loss, term=partial(TERMS[p.loss], **options), nll_coef=nll_coef)


def kto_of(cfg: Config) -> AnswerLossFn:
    """The loss of single answers."""
    options: dict[str, Any] = numbers(cfg.prefer)
    return partial(kto, **options)


assert {*TERMS, "kto"} == PREFERENCES.keys(), "preference_catalogue.py and this file name the same"
