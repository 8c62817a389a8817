"""A recipe's contradictions: what cannot be, and settings that would silently have no effect."""

import difflib
from collections.abc import Iterator

from verigrad.engine.settings import ALGORITHMS, Config, Section


def contradictions(c: Config) -> Iterator[str]:
    """What cannot be, or would silently have no effect: found, expected, what to do."""
    if c.algorithm.name not in ALGORITHMS:
        close = difflib.get_close_matches(c.algorithm.name, ALGORITHMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(ALGORITHMS)}"
        yield f"algorithm.name = {c.algorithm.name!r} is not known; {hint}"
        return
    yield from _missing(c)
    yield from _sampling_contradictions(c)
    yield from _without_effect(c)


def _missing(c: Config) -> Iterator[str]:
    if not c.policy.model:
        yield "policy.model is empty; set a Hugging Face folder, a hub id or a maker"
    if not c.data.path:
        yield "data.path is empty; set a .jsonl, .parquet or .csv file, a hub id or a maker"
    if c.eval.every and not c.data.eval_path and not c.data.num_eval:
        yield (
            "eval.every > 0, but data.num_eval = 0 holds nothing out; "
            "set data.num_eval, data.eval_path, or eval.every = 0"
        )


def _sampling_contradictions(c: Config) -> Iterator[str]:
    row, rollout = ALGORITHMS[c.algorithm.name], c.rollout
    if rollout.group_size < 2 and row.group_baseline:
        yield (
            f"rollout.group_size = {rollout.group_size}: {c.algorithm.name} compares the rollouts of a group "
            "and needs at least 2; set rollout.group_size >= 2, or algorithm.name = 'ppo'"
        )
    dynamic = row.dynamic_sampling if c.dynamic_sampling.enabled is None else c.dynamic_sampling.enabled
    if rollout.group_size < 2 and dynamic and not row.group_baseline:
        yield (
            "dynamic_sampling.enabled = true with rollout.group_size = 1: a single reward never varies; "
            "set dynamic_sampling.enabled = false"
        )
    if rollout.top_p < 1 or rollout.top_k > 0:
        yield (
            f"rollout.top_p = {rollout.top_p}, rollout.top_k = {rollout.top_k}: a truncated sampling "
            "distribution cannot be reproduced by the trainer and biases every ratio; "
            "train with top_p = 1 and top_k = 0"
        )
    if rollout.groups_per_step % c.train.num_minibatches:
        yield (
            f"rollout.groups_per_step = {rollout.groups_per_step} does not divide into "
            f"train.num_minibatches = {c.train.num_minibatches}; make the first a multiple of the second"
        )
    longest = rollout.max_prompt_tokens + rollout.max_tokens
    if c.policy.tokens_per_batch < longest:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold one rollout of up to "
            f"rollout.max_prompt_tokens + rollout.max_tokens = {longest}; raise it or lower those"
        )
    if c.algorithm.overlong_buffer_tokens >= rollout.max_tokens:
        yield (
            f"algorithm.overlong_buffer_tokens = {c.algorithm.overlong_buffer_tokens} must be less than "
            f"rollout.max_tokens = {rollout.max_tokens}"
        )
    if bad := [k for k in c.eval.pass_k if not 1 <= k <= c.eval.num_samples]:
        yield (
            f"eval.pass_k = {bad} needs at least that many samples, but "
            f"eval.num_samples = {c.eval.num_samples}; raise it"
        )


def _without_effect(c: Config) -> Iterator[str]:
    """Settings the recipe chose, other than their default, that this combination would ignore."""
    row, a, was_set = ALGORITHMS[c.algorithm.name], c.algorithm, _chosen(c.algorithm)
    if row.std_eps is None and "std_eps" in was_set:
        yield f"algorithm.std_eps has no effect: {a.name} does not divide by a standard deviation; remove it"
    bypass = a.old_logprobs == "rollout"
    if bypass and was_set & {"correction", "correction_low", "correction_high"} and a.correction != "none":
        yield (
            "algorithm.correction has no effect with algorithm.old_logprobs = 'rollout': the ratio is "
            "already taken against the sampler; remove one of the two"
        )
    if a.correction != "icepop" and "correction_low" in was_set:
        yield f"algorithm.correction_low has no effect with correction = {a.correction!r}; remove it"
    if a.correction == "none" and "correction_high" in was_set:
        yield "algorithm.correction_high has no effect with correction = 'none'; remove it"
    high = 5.0 if a.correction_high is None else a.correction_high
    if not bypass and a.correction == "icepop" and not a.correction_low < 1 < high:
        yield (
            f"algorithm.correction_low = {a.correction_low} and correction_high = {high} must lie on both "
            "sides of 1, or every token of an exact sampler is dropped"
        )
    if a.kl_coef == 0 and "kl_estimator" in was_set:
        yield "algorithm.kl_estimator has no effect with kl_coef = 0; remove it or set kl_coef > 0"
    if a.overlong_filter and a.overlong_buffer_tokens:
        yield (
            "algorithm.overlong_filter leaves out the rollouts that algorithm.overlong_buffer_tokens "
            "punishes most; choose one"
        )
    dynamic = row.dynamic_sampling if c.dynamic_sampling.enabled is None else c.dynamic_sampling.enabled
    if not dynamic and "oversample" in _chosen(c.dynamic_sampling):
        yield "dynamic_sampling.oversample has no effect with dynamic_sampling.enabled = false; remove it"
    if c.data.eval_path == "" and "eval_split" in _chosen(c.data):
        yield "data.eval_split has no effect without data.eval_path; remove it"
    if c.prompts.system and c.prompts.chat == "never":
        yield "prompts.system has no effect with prompts.chat = 'never'; remove it"
    if c.optim.schedule != "constant" and c.optim.warmup_steps >= c.train.num_steps:
        yield (
            f"optim.warmup_steps = {c.optim.warmup_steps} leaves no step for optim.schedule = "
            f"{c.optim.schedule!r} within train.num_steps = {c.train.num_steps}; lower it"
        )


def _chosen(section: Section) -> set[str]:
    """Settings that differ from their default."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].default}
