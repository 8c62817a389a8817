"""The table of algorithms: a recipe to the plain functions of one row.

A row says which advantage and which aggregation; the numbers it starts from stand in config.ALGORITHMS,
and whatever the recipe sets wins. docs/algorithms.md explains each row against its paper.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from verigrad.engine.advantage import (
    AdvantageFn,
    batch_norm,
    group_mean,
    group_norm,
    leave_one_out,
    per_group,
    soft_overlong,
    unshaped,
)
from verigrad.engine.aggregation import (
    AggregateFn,
    constant,
    seq_mean_token_mean,
    seq_mean_token_sum,
    token_mean,
)
from verigrad.engine.config import ALGORITHMS, AlgorithmConfig, Config, ConfigError, Defaults
from verigrad.engine.dynamic_sampling import KeepFn, has_signal, keep_all
from verigrad.engine.loss import LossFn, policy_loss
from verigrad.engine.schema import Rollout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What one step does between verdicts and loss."""

    advantage: AdvantageFn  # rewards of every kept group -> advantages
    keep: KeepFn  # whether a verified group is trained on
    aggregate: AggregateFn  # trainable tokens of each rollout of an optimizer step -> weight of its tokens
    loss: LossFn  # micro-batch -> scalar and sums
    shape: Callable[[Rollout], float]  # what is added to the verifier's reward


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; each function is finished with the recipe's numbers."""

    advantage: Callable[[float], AdvantageFn]  # of std_eps
    aggregate: Callable[[int], AggregateFn]  # of the longest completion


def build(cfg: Config) -> Algorithm:
    """The functions of `cfg.algorithm.name`, with the recipe's own numbers where it gives any."""
    name = cfg.algorithm.name
    if name not in TABLE:
        close = difflib.get_close_matches(name, TABLE, n=1)
        raise ConfigError(
            f"algorithm.name = {name!r} is not an algorithm; "
            + (f"did you mean {close[0]!r}? " if close else "")
            + f"There are: {', '.join(TABLE)}"
        )
    row, defaults = TABLE[name], ALGORITHMS[name]
    std_eps = _chosen(cfg.algorithm.std_eps, defaults.std_eps or 0.0)
    filtered = _chosen(cfg.dynamic_sampling.enabled, defaults.dynamic_sampling)
    return Algorithm(
        advantage=row.advantage(std_eps),
        keep=has_signal if filtered else keep_all,
        aggregate=row.aggregate(cfg.rollout.max_tokens),
        loss=_loss(cfg.algorithm, defaults),
        shape=_shape(cfg),
    )


def _loss(algorithm: AlgorithmConfig, defaults: Defaults) -> LossFn:
    return partial(
        policy_loss,
        clip_low=_chosen(algorithm.clip_low, defaults.clip_low),
        clip_high=_chosen(algorithm.clip_high, defaults.clip_high),
        correction=algorithm.correction,
        correction_low=algorithm.correction_low,
        correction_high=_chosen(algorithm.correction_high, CORRECTION_HIGH[algorithm.correction]),
        kl_coef=algorithm.kl_coef,
        kl_estimator=algorithm.kl_estimator,
        entropy_coef=algorithm.entropy_coef,
    )


def _shape(cfg: Config) -> Callable[[Rollout], float]:
    buffer_tokens = cfg.algorithm.overlong_buffer_tokens
    if not buffer_tokens:
        return unshaped

    def shape(rollout: Rollout) -> float:
        return soft_overlong(
            rollout.num_completion_tokens, max_tokens=cfg.rollout.max_tokens, buffer_tokens=buffer_tokens
        )

    return shape


def _chosen(setting: T | None, default: T) -> T:
    return default if setting is None else setting


CORRECTION_HIGH: Mapping[str, float] = {"icepop": 5.0, "tis": 2.0, "none": 1.0}

TABLE: Mapping[str, Row] = {
    "grpo": Row(
        lambda std_eps: per_group(partial(group_norm, std_eps=std_eps)), lambda _: seq_mean_token_mean
    ),
    "dr_grpo": Row(lambda _: per_group(group_mean), constant),
    "dapo": Row(lambda std_eps: per_group(partial(group_norm, std_eps=std_eps)), lambda _: token_mean),
    "rloo": Row(lambda _: per_group(leave_one_out), lambda _: seq_mean_token_sum),
    "ppo": Row(lambda std_eps: partial(batch_norm, std_eps=std_eps), lambda _: token_mean),
}
