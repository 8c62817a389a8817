"""[algorithm] against the catalogue: what cannot be, what would have no effect, what a silent recipe gets."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from verigrad.engine.catalogue import ADVANTAGES, AGGREGATIONS, CORRECTIONS, LOSSES, ROWS, SEQ
from verigrad.engine.settings import AlgorithmConfig, Config

PART_SETTINGS = {name for part in ADVANTAGES.values() for name in part.settings} | {
    name for part in LOSSES.values() for name in part.settings
}
KL_DEFAULT = {"loss": "k3_ratio", "reward": "k1"}
ONE_SIDED = ("top_two",)  # advantages that are never negative
KL_IN_REWARD = ("k1", "k2", "k3", "abs")
REJECT_BOUNDS = {"k1": (0.5, 2.0), "k2": (None, 0.1), "k3": (None, 0.1)}


def row_of(a: AlgorithmConfig) -> tuple[str, str, str]:
    """(advantage, loss, aggregation) the recipe asks for."""
    row = ROWS[a.name]
    return a.advantage or row.advantage, a.loss or row.loss, a.aggregation or row.aggregation


def unknown(a: AlgorithmConfig) -> Iterator[str]:
    """Names that are not in the catalogue."""
    tables: Mapping[str, Mapping[str, object]] = {
        "name": ROWS,
        "advantage": ADVANTAGES,
        "loss": LOSSES,
        "aggregation": AGGREGATIONS,
    }
    for setting, table in tables.items():
        given = getattr(a, setting)
        if given not in table and (given or setting == "name"):
            close = difflib.get_close_matches(given, table, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(table)}"
            yield f"algorithm.{setting} = {given!r} is not known; {hint}"


def contradictions(c: Config) -> Iterator[str]:
    """One sentence each; the names are known to be right."""
    yield from _part_settings(c)
    yield from _one_advantage(c.algorithm)
    yield from _gae(c.algorithm)
    yield from _groups(c)
    yield from _pairs(c)
    yield from _bounds(c.algorithm)
    yield from _corrections(c.algorithm)
    yield from _trainer_needed(c.algorithm)
    yield from _kl(c.algorithm)
    yield from _entropy(c.algorithm)


def _part_settings(c: Config) -> Iterator[str]:
    """Numbers that neither the advantage nor the loss takes, or that do nothing at a ratio of 1."""
    a = c.algorithm
    advantage, loss, _ = row_of(a)
    takes = {*ADVANTAGES[advantage].settings, *LOSSES[loss].settings}
    chosen = [name for name in sorted(PART_SETTINGS) if getattr(a, name) is not None]
    for name in chosen:
        if name not in takes:
            yield (
                f"algorithm.{name} has no effect: advantage {advantage!r} and loss {loss!r} do not take it; "
                "remove it"
            )
    if a.part_weights and not ADVANTAGES[advantage].parts:
        yield f"algorithm.part_weights has no effect with advantage {advantage!r}; remove it, or take gdpo"
    exact = a.old_logprobs == "trainer" and c.train.num_minibatches == 1
    if exact and a.off_policy_delta is not None:
        yield (
            "algorithm.off_policy_delta has no effect with train.num_minibatches = 1: with one optimizer "
            "step per batch no policy moves away from its rollouts; remove it or raise train.num_minibatches"
        )
    if exact and loss != "prime" and not LOSSES[loss].pairs:  # whose ratio is to the sampler; which have none
        defaults = resolved_numbers(a.name, advantage, loss)
        for name in chosen:
            if name in LOSSES[loss].settings and getattr(a, name) != defaults[name]:
                yield (
                    f"algorithm.{name} has no effect with train.num_minibatches = 1: with one optimizer step "
                    "per batch every ratio is exactly 1; remove it or raise train.num_minibatches"
                )


def _one_advantage(a: AlgorithmConfig) -> Iterator[str]:
    """A loss of whole rollouts spreads each token's advantage over all of them."""
    advantage, loss, _ = row_of(a)
    if not LOSSES[loss].one_advantage:
        return
    gamma = resolved_numbers(a.name, advantage, loss).get("gamma", 1.0) if a.gamma is None else a.gamma
    reasons = {
        f"advantage {advantage!r}": bool(ADVANTAGES[advantage].per_token),
        "algorithm.kl_place = 'reward'": a.kl_place == "reward" and a.kl_coef > 0,
        f"algorithm.gamma = {gamma}": gamma < 1,
    }
    if given := [reason for reason, holds in reasons.items() if holds]:
        yield (
            f"loss {loss!r} needs one advantage per rollout, and {' and '.join(given)} may give each token "
            "its own; set algorithm.loss = 'gspo_token' or another loss by tokens, or remove the former"
        )


def _gae(a: AlgorithmConfig) -> Iterator[str]:
    """What only a critic's values give a meaning to."""
    advantage, loss, _ = row_of(a)
    if ADVANTAGES[advantage].per_token != "gae":
        if a.whiten_rewards:
            yield f"algorithm.whiten_rewards has no effect with advantage {advantage!r}; set it to false"
        return
    numbers = resolved_numbers(a.name, advantage, loss)
    lam_alpha = numbers["lam_alpha"] if a.lam_alpha is None else a.lam_alpha
    if lam_alpha and a.lam not in (None, numbers["lam"]):
        yield (
            f"algorithm.lam = {a.lam:g} has no effect with algorithm.lam_alpha = {lam_alpha:g}, which takes "
            "lambda from the length; remove it or set lam_alpha = 0"
        )


def _groups(c: Config) -> Iterator[str]:
    a, size = c.algorithm, c.rollout.group_size
    part = ADVANTAGES[row_of(a)[0]]
    if size < 2 and part.group_baseline:
        yield (
            f"rollout.group_size = {size}: {a.name} compares the rollouts of a group "
            "and needs at least 2; set rollout.group_size >= 2, or algorithm.name = 'ppo', which has a critic"
        )
    k = a.pass_k if a.pass_k is not None else part.settings.get("pass_k", 1)
    if k > size >= 2:
        yield (
            f"algorithm.pass_k = {k:g} is more than rollout.group_size = {size}; lower it, or "
            "sample larger groups"
        )
    if row_of(a)[0] == "pass_at_k" and k == size >= 2:
        yield (
            f"algorithm.pass_k = rollout.group_size = {size}: one right answer in a group then gives every "
            "rollout the advantage 0; lower pass_k, or sample larger groups"
        )


def _pairs(c: Config) -> Iterator[str]:
    """A loss of pairs reads the signs of a group's advantages, and needs the whole of both rollouts."""
    a, (advantage, loss, aggregation) = c.algorithm, row_of(c.algorithm)
    if not LOSSES[loss].pairs:
        return
    if aggregation != SEQ:
        yield (
            f"loss {loss!r} is a number per pair, and algorithm.aggregation = {aggregation!r} would weigh it "
            f"by the length of its answers; set algorithm.aggregation = {SEQ!r}"
        )
    if not ADVANTAGES[advantage].group_baseline:
        yield (
            f"loss {loss!r} pairs a group's rollouts by the sign of their advantages, and advantage "
            f"{advantage!r} has no group to compare with; take 'best_worst' or 'group_mean'"
        )
    if advantage in ONE_SIDED:
        yield (
            f"loss {loss!r} pairs rollouts of positive advantage with those of negative, and advantage "
            f"{advantage!r} is never negative, so there would be no pairs; take 'best_worst' or 'group_mean'"
        )
    parts_left_out = {
        "reject": a.reject != "none",
        "top_entropy_frac": a.top_entropy_frac is not None,
        "overlong_filter": a.overlong_filter,
        "off_policy_delta": a.off_policy_delta is not None,
    }
    for name in (name for name, given in parts_left_out.items() if given):
        yield f"algorithm.{name} leaves out parts of pairs, which loss {loss!r} needs whole; remove it"
    num = 2 if advantage == "best_worst" else c.rollout.group_size
    longest = c.rollout.max_prompt_tokens + c.rollout.max_tokens
    if longest <= c.policy.tokens_per_batch < num * longest:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold the {num} rollouts of a "
            f"group that loss {loss!r} pairs, of up to {longest} tokens each; raise it to {num * longest}"
        )


def holds_reference(a: AlgorithmConfig) -> bool:
    """Whether the frozen starting model is kept, for a KL term or for a loss that compares with it."""
    return a.kl_coef > 0 or LOSSES[row_of(a)[1]].reference


def _bounds(a: AlgorithmConfig) -> Iterator[str]:
    loss = row_of(a)[1]
    numbers = resolved_numbers(a.name, *row_of(a)[:2])
    numbers |= {name: getattr(a, name) for name in numbers if getattr(a, name) is not None}
    if loss in ("clip", "dual_clip", "two_sided", "gspo", "gspo_token", "sequence_clip", "luspo"):
        if numbers["clip_low"] > 1:
            yield f"algorithm.clip_low = {numbers['clip_low']} asks for a negative ratio; set it to at most 1"
    elif loss in ("dppo_tv", "prime") and max(numbers["clip_low"], numbers["clip_high"]) > 1:
        yield f"algorithm.clip_low and clip_high bound a probability's move in {loss}; set them to at most 1"
    if loss == "cispo" and not numbers["ratio_floor"] <= 1 <= numbers["ratio_cap"]:
        yield (
            f"algorithm.ratio_floor = {numbers['ratio_floor']} and ratio_cap = {numbers['ratio_cap']} must "
            "lie on both sides of 1, or an exact policy's weight is bent; set them so"
        )
    if ADVANTAGES[row_of(a)[0]].binary and a.overlong_buffer_tokens:
        yield (
            "algorithm.overlong_buffer_tokens has no effect: it takes from the reward, and advantage "
            f"{row_of(a)[0]!r} reads only right or wrong; set it to 0, or take algorithm.overlong_filter"
        )
    if a.overlong_filter and a.overlong_buffer_tokens:
        yield (
            "algorithm.overlong_filter leaves out the rollouts that algorithm.overlong_buffer_tokens "
            "punishes most; choose one"
        )


def _corrections(a: AlgorithmConfig) -> Iterator[str]:
    low, high = CORRECTIONS[a.correction]
    asked = {name for name in ("correction_low", "correction_high") if getattr(a, name) is not None}
    asked |= {"correction_norm"} if a.correction_norm else set()
    if uncorrected := _uncorrected(a):
        chosen = "correction" in a.model_fields_set and a.correction != "none"
        for name in sorted(asked | ({"correction"} if chosen else set())):
            yield f"algorithm.{name} has no effect with {uncorrected}; remove one of the two"
        return
    for name, default in (("correction_low", low), ("correction_high", high)):
        if default is None and name in asked:
            yield f"algorithm.{name} has no effect with correction = {a.correction!r}; remove it"
    if a.correction == "none":
        if a.correction_norm:
            yield "algorithm.correction_norm has no effect with correction = 'none'; remove it"
        return
    low = a.correction_low if a.correction_low is not None else low
    high = a.correction_high if a.correction_high is not None else high
    if low is not None and high is not None and not low < 1 < high:
        yield (
            f"algorithm.correction_low = {low} and correction_high = {high} must lie on both "
            "sides of 1, or every token of an exact sampler is dropped; set them so"
        )
    elif high is not None and high < 1:
        yield (
            f"algorithm.correction_high = {high} would shrink every token's weight, also an exact sampler's; "
            "set it to at least 1"
        )


def _uncorrected(a: AlgorithmConfig) -> str:
    """Why no importance weight applies: the ratio is taken against the sampler."""
    if a.old_logprobs == "rollout":
        return "algorithm.old_logprobs = 'rollout': the ratio is already taken against the sampler"
    if LOSSES[row_of(a)[1]].pairs:
        return f"loss {row_of(a)[1]!r}: pairs may come from any policy, so no ratio enters"
    if row_of(a)[1] == "prime":
        return "loss 'prime': its ratio is already taken against the sampler"
    return ""


def _trainer_needed(a: AlgorithmConfig) -> Iterator[str]:
    """What compares trainer and sampler, or reads the trainer's distribution, before the step."""
    if a.reject == "none":
        for name in ("reject_low", "reject_high"):
            if getattr(a, name) is not None:
                yield f"algorithm.{name} has no effect with reject = 'none'; remove it"
        if a.reject_measure != "k1":
            yield "algorithm.reject_measure has no effect with reject = 'none'; remove it"
    else:
        low, high = _reject_bounds(a)
        if a.reject_measure != "k1" and a.reject_low is not None:
            yield f"algorithm.reject_low has no effect with reject_measure = {a.reject_measure!r}; remove it"
        elif low is not None and not low < 1 < high:
            yield (
                f"algorithm.reject_low = {low} and reject_high = {high} must lie on both sides of 1, "
                "or every rollout of an exact sampler is rejected; set them so"
            )
    if a.old_logprobs == "rollout":
        wanting = {
            "reject": a.reject != "none",
            "top_entropy_frac": a.top_entropy_frac is not None,
            "advantage": ADVANTAGES[row_of(a)[0]].per_token == "optimal_baseline",
        }
        for name in (name for name, wants in wanting.items() if wants):
            yield (
                f"algorithm.{name} looks at the trainer's own log-probabilities, which "
                "algorithm.old_logprobs = 'rollout' does without; set old_logprobs = 'trainer'"
            )


def _kl(a: AlgorithmConfig) -> Iterator[str]:
    if a.ref_sync_mix is not None and not a.ref_sync_every and holds_reference(a):
        yield "algorithm.ref_sync_mix has no effect with ref_sync_every = 0; remove it"
    if a.kl_coef == 0:
        names = ["kl_estimator", "kl_target", "kl_horizon", *([] if holds_reference(a) else ["ref_sync_mix"])]
        given = [name for name in names if getattr(a, name) is not None]
        given += ["kl_place"] if a.kl_place != "loss" else []
        given += ["ref_sync_every"] if a.ref_sync_every and not holds_reference(a) else []
        for name in given:
            yield f"algorithm.{name} has no effect with kl_coef = 0; remove it or set kl_coef > 0"
        return
    if a.kl_place == "loss" and a.kl_estimator == "k1":
        yield (
            "algorithm.kl_estimator = 'k1' in the loss has an expected gradient of exactly 0; "
            "take 'k3_ratio' or 'k2', or set kl_place = 'reward'"
        )
    if a.kl_place == "reward" and a.kl_estimator not in (None, *KL_IN_REWARD):
        yield (
            f"algorithm.kl_estimator = {a.kl_estimator!r} differs from its plain form in the gradient alone, "
            f"which kl_place = 'reward' does not take; expected one of {', '.join(KL_IN_REWARD)}"
        )
    if a.kl_horizon is not None and a.kl_target is None:
        yield "algorithm.kl_horizon has no effect without kl_target; remove it or set kl_target"


def _entropy(a: AlgorithmConfig) -> Iterator[str]:
    if a.entropy_delta is not None and a.entropy_target is None:
        yield "algorithm.entropy_delta has no effect without entropy_target; remove it or set entropy_target"
    if a.entropy_target is not None and a.entropy_coef > 1:
        yield (
            f"algorithm.entropy_coef = {a.entropy_coef} is above 1, the most an adapting one may be; lower it"
        )


def resolved_numbers(name: str, advantage: str, loss: str) -> dict[str, Any]:
    """The numbers of the parts, and of the row where it takes those parts from itself."""
    row = ROWS[name]
    numbers: dict[str, Any] = {**ADVANTAGES[advantage].settings, **LOSSES[loss].settings}
    kept = {*ADVANTAGES[advantage].settings} if advantage == row.advantage else set()
    kept |= {*LOSSES[loss].settings} if loss == row.loss else set()
    return numbers | {key: value for key, value in row.settings.items() if key in kept}


def corrected(a: AlgorithmConfig) -> AlgorithmConfig:
    """With the weights of tokens truncated, where a recipe whose rollouts are of older weights names none.

    The default drops tokens that disagree: with an exact sampler they are faults, here they are policy moved.
    """
    if a.model_fields_set & {"correction", "correction_low", "correction_high"}:
        return a
    return a.model_copy(update={"correction": "tis"})


def resolve(a: AlgorithmConfig) -> AlgorithmConfig:
    """Every name and number the recipe left open, written out."""
    advantage, loss, aggregation = row_of(a)
    filled: dict[str, Any] = {"advantage": advantage, "loss": loss, "aggregation": aggregation}
    filled |= resolved_numbers(a.name, advantage, loss)
    filled["positive_nll_coef"] = ROWS[a.name].settings.get("positive_nll_coef", 0.0)
    if "pass_k" in filled:
        filled["pass_k"] = int(filled["pass_k"])
    correction = "none" if _uncorrected(a) else a.correction
    low, high = CORRECTIONS[correction]
    filled |= {"correction_low": low, "correction_high": high}
    if a.reject != "none":
        filled |= dict(zip(("reject_low", "reject_high"), REJECT_BOUNDS[a.reject_measure], strict=True))
    if a.kl_coef:
        filled["kl_estimator"] = KL_DEFAULT[a.kl_place]
        filled |= {"kl_horizon": 10_000.0} if a.kl_target is not None else {}
    filled |= {"ref_sync_mix": 0.6} if a.ref_sync_every else {}
    filled |= {"entropy_delta": 0.005} if a.entropy_target is not None else {}
    open_ones = {key: value for key, value in filled.items() if getattr(a, key) in (None, "")}
    return a.model_copy(update={**open_ones, "correction": correction})


def _reject_bounds(a: AlgorithmConfig) -> tuple[float | None, float]:
    low, high = REJECT_BOUNDS[a.reject_measure]
    assert high is not None
    return (
        low if a.reject_low is None else a.reject_low,
        high if a.reject_high is None else a.reject_high,
    )
