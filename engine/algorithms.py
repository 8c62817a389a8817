"""The table of algorithms: a recipe to the plain functions of one row.

catalogue.py says which advantage, loss and aggregation a row is made of, and their numbers; here those names
become functions. Whatever the recipe sets wins. docs/algorithms/ explains each against its paper.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from verigrad.engine import online_pairs, sequence_losses, token_losses
from verigrad.engine.advantage import ADVANTAGES, AdvantageFn, soft_overlong, unshaped
from verigrad.engine.aggregation import (
    AggregateFn,
    constant,
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
    token_sum,
)
from verigrad.engine.catalogue import ADVANTAGES as ADVANTAGE_PARTS
from verigrad.engine.catalogue import AGGREGATIONS, ROWS
from verigrad.engine.catalogue import LOSSES as LOSS_PARTS
from verigrad.engine.config import AlgorithmConfig, Config
from verigrad.engine.correction import TOKEN_WISE
from verigrad.engine.divergence import adapt_entropy, adapt_kl
from verigrad.engine.dynamic_sampling import KeepFn, has_signal, keep_all
from verigrad.engine.gae import place_gae
from verigrad.engine.loss import LossFn, TokenWise, policy_loss
from verigrad.engine.schema import Coefs, LossInputs, Metrics, PackedBatch, Rollout, TokenLoss
from verigrad.engine.token_advantage import place
from verigrad.engine.token_selection import Selection

LOSSES: Mapping[str, Callable[..., TokenLoss]] = {
    **token_losses.LOSSES,
    **sequence_losses.LOSSES,
    **online_pairs.LOSSES,
}

AGGREGATES: Mapping[str, Callable[[int], AggregateFn]] = {
    "token_mean": lambda max_tokens: token_mean,
    "seq_mean_token_mean": lambda max_tokens: seq_mean_token_mean,
    "seq_mean_token_sum": lambda max_tokens: seq_mean_token_sum,
    "constant": constant,
    "token_sum": lambda max_tokens: token_sum,
}
"""Name -> of the longest completion allowed, the function."""

assert ADVANTAGES.keys() == ADVANTAGE_PARTS.keys(), "catalogue.py and advantage.py name the same"
assert LOSSES.keys() == LOSS_PARTS.keys(), "catalogue.py and the losses' files name the same"
assert AGGREGATES.keys() == AGGREGATIONS.keys(), "catalogue.py and aggregation.py name the same"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What one step does between verdicts and optimizer step."""

    shape: Callable[[Rollout], float]  # what is added to the verifier's reward
    keep: KeepFn  # whether a verified group is trained on
    advantage: AdvantageFn  # rewards of every kept group -> advantages
    greedy: bool  # the advantage needs one greedy rollout of each problem
    critic: bool  # the advantage needs a critic's values
    together: bool  # the loss is of pairs of a group's rollouts
    place: Callable[[Sequence[PackedBatch], Coefs], list[PackedBatch]] | None  # advantages of tokens
    select: Selection  # tokens left out, and the scale of importance weights
    needs: frozenset[str]  # of the trainer's before the first optimizer step: "old", "entropy", "collision"
    aggregate: AggregateFn  # trainable tokens of each rollout of an optimizer step -> weight of its tokens
    loss: LossFn  # micro-batch and coefficients -> scalar and sums
    coefs: Coefs  # to start with
    adapt: Callable[[Coefs, Metrics, int], Coefs]  # after a step of so many rollouts


def build(cfg: Config) -> Algorithm:
    """The functions of a recipe that `config.load` has resolved."""
    a = cfg.algorithm
    part = ADVANTAGE_PARTS[a.advantage]
    options: dict[str, Any] = {name: getattr(a, name) for name in part.settings}
    if part.parts:
        options["part_weights"] = a.part_weights
    advantage: AdvantageFn = partial(ADVANTAGES[a.advantage], **options)
    aggregate = AGGREGATES[a.aggregation](cfg.rollout.max_tokens)
    pairs = LOSS_PARTS[a.loss].pairs
    return Algorithm(
        shape=_shape(cfg),
        keep=has_signal if cfg.dynamic_sampling.enabled else keep_all,
        advantage=online_pairs.only_paired(advantage) if pairs else advantage,
        greedy=part.greedy,
        critic=part.per_token == "gae",
        together=pairs,
        place=_place(a),
        select=Selection(a, aggregate),
        needs=_needs(a),
        aggregate=aggregate,
        loss=_loss(a),
        coefs=Coefs(
            kl=a.kl_coef, entropy=0.0 if a.entropy_target else a.entropy_coef, entropy_next=a.entropy_coef
        ),
        adapt=partial(_adapt, a),
    )


def _loss(a: AlgorithmConfig) -> LossFn:
    options = {name: getattr(a, name) for name in LOSS_PARTS[a.loss].settings}
    token_loss: Callable[[LossInputs], TokenLoss] = partial(LOSSES[a.loss], **options)
    loss = partial(
        policy_loss,
        token_loss=token_loss,
        correction=a.correction,
        correction_low=a.correction_low,
        correction_high=a.correction_high,
        off_policy_delta=a.off_policy_delta,
        kl_estimator=a.kl_estimator if a.kl_coef and a.kl_place == "loss" else None,
        positive_nll_coef=a.positive_nll_coef or 0.0,
    )
    by_tokens = a.loss in token_losses.LOSSES and a.correction in TOKEN_WISE and a.off_policy_delta is None
    return TokenWise(loss) if by_tokens else loss


def _place(a: AlgorithmConfig) -> Callable[[Sequence[PackedBatch], Coefs], list[PackedBatch]] | None:
    part = ADVANTAGE_PARTS[a.advantage]
    kl_in_reward = a.kl_coef > 0 and a.kl_place == "reward"
    gamma = 1.0 if a.gamma is None else a.gamma
    if not part.per_token and not kl_in_reward and gamma == 1.0:
        return None

    def placed(batches: Sequence[PackedBatch], coefs: Coefs) -> list[PackedBatch]:
        kl_coef, estimator = coefs.kl if kl_in_reward else 0.0, a.kl_estimator or "k1"
        if part.per_token == "gae":
            return place_gae(
                batches,
                kl_coef=kl_coef,
                kl_estimator=estimator,
                whiten_rewards=a.whiten_rewards,
                **{name: getattr(a, name) for name in part.settings},
            )
        return place(batches, per_token=part.per_token, gamma=gamma, kl_coef=kl_coef, kl_estimator=estimator)

    return placed


def _needs(a: AlgorithmConfig) -> frozenset[str]:
    part = ADVANTAGE_PARTS[a.advantage]
    kl_in_reward = a.kl_coef > 0 and a.kl_place == "reward"
    wanted = {
        "old": kl_in_reward
        or part.per_token == "optimal_baseline"
        or a.reject != "none"
        or a.correction_norm,
        "entropy": a.top_entropy_frac is not None,
        "collision": part.per_token == "optimal_baseline",
    }
    return frozenset(name for name, needed in wanted.items() if needed)


def _adapt(a: AlgorithmConfig, coefs: Coefs, metrics: Metrics, num_rollouts: int) -> Coefs:
    """The coefficients of the next step; a step that trained on nothing, or on no number, moves none."""
    if not num_rollouts or not math.isfinite(metrics["entropy"] + metrics["kl_ref"]):
        return coefs
    if a.entropy_target is not None and a.entropy_delta is not None:
        coefs = adapt_entropy(
            coefs, entropy=metrics["entropy"], target=a.entropy_target, delta=a.entropy_delta
        )
    if a.kl_target is not None and a.kl_horizon is not None:
        kl = adapt_kl(
            coefs.kl,
            kl=metrics["kl_ref"],
            target=a.kl_target,
            horizon=a.kl_horizon,
            num_rollouts=num_rollouts,
        )
        coefs = Coefs(kl, coefs.entropy, coefs.entropy_next)
    return coefs


def _shape(cfg: Config) -> Callable[[Rollout], float]:
    buffer_tokens = cfg.algorithm.overlong_buffer_tokens
    if not buffer_tokens:
        return unshaped

    def shape(rollout: Rollout) -> float:
        return soft_overlong(
            rollout.num_tokens_after_prompt, max_tokens=cfg.rollout.max_tokens, buffer_tokens=buffer_tokens
        )

    return shape


assert all(row.advantage in ADVANTAGES and row.loss in LOSSES for row in ROWS.values()), "rows name parts"
