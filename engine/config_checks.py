"""A recipe's contradictions: what cannot be, and settings that would silently have no effect."""

from collections.abc import Iterator
from pathlib import Path

from verigrad.engine import algorithm_settings
from verigrad.engine.catalogue import ADVANTAGES, ROWS
from verigrad.engine.settings import Config, Section

DATA_FILES = (".jsonl", ".parquet", ".csv")
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 2.0
"""What vLLM takes: it raises less, so that the trainer's ratios would be off, and refuses more."""


def contradictions(c: Config) -> Iterator[str]:
    """One sentence each: what was found, what was expected, what to do."""
    if wrong := list(algorithm_settings.unknown(c.algorithm)):
        yield from wrong
        return
    yield from _missing(c)
    yield from _group_contradictions(c)
    yield from _size_contradictions(c)
    yield from algorithm_settings.contradictions(c)
    yield from sampling(c)
    yield from _agent_contradictions(c)
    yield from _eval_contradictions(c)
    yield from _sampling_without_effect(c)
    yield from _asynchronous_contradictions(c)
    yield from _verifier_without_effect(c)
    yield from _files_without_effect(c)
    yield from _monitor_contradictions(c)
    yield from _mix_contradictions(c)
    yield from _lora_contradictions(c)
    yield from _critic_contradictions(c)
    yield from _sync_contradictions(c)


def _missing(c: Config) -> Iterator[str]:
    if not c.policy.model:
        yield "policy.model is empty; set a Hugging Face folder, a hub id or a maker"
    if not c.data.path:
        yield "data.path is empty; set a .jsonl, .parquet or .csv file, a hub id or a maker"
    mixed = any(one.num_eval for one in c.data.mix.values())
    if c.eval.every and not (c.data.eval_path or c.data.num_eval or c.data.evals or mixed):
        yield (
            "eval.every > 0, but data.num_eval = 0 holds nothing out; "
            "set data.num_eval, data.eval_path, data.evals.NAME.path, or eval.every = 0"
        )


def _group_contradictions(c: Config) -> Iterator[str]:
    rollout, baseline = c.rollout, ADVANTAGES[algorithm_settings.row_of(c.algorithm)[0]].group_baseline
    if rollout.group_size < 2 and not baseline and _dynamic(c):
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


def _size_contradictions(c: Config) -> Iterator[str]:
    rollout = c.rollout
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
            f"rollout.max_tokens = {rollout.max_tokens}; lower it"
        )
    if c.optim.schedule != "constant" and c.optim.warmup_steps >= c.train.num_steps:
        yield (
            f"optim.warmup_steps = {c.optim.warmup_steps} leaves no step for optim.schedule = "
            f"{c.optim.schedule!r} within train.num_steps = {c.train.num_steps}; lower it"
        )


def sampling(c: Config) -> Iterator[str]:
    """What cannot be of how completions are sampled, whatever for."""
    if "" in c.rollout.stop:
        yield "rollout.stop holds an empty string, which every completion contains; remove it"
    if c.prompts.system and c.prompts.chat == "never":
        yield "prompts.system has no effect with prompts.chat = 'never'; remove it"
    temperatures = {"rollout.temperature": c.rollout.temperature, "eval.temperature": c.eval.temperature}
    for name, one in c.data.evals.items():
        temperatures[f"data.evals.{name}.temperature"] = one.temperature or 0.0
    for where, value in temperatures.items():
        if value and not LEAST_TEMPERATURE <= value <= MOST_TEMPERATURE:
            greedy = "" if where == "rollout.temperature" else " or 0 (greedy)"
            yield (
                f"{where} = {value:g}: the samplers take {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}{greedy}; "
                "change it"
            )


def _agent_contradictions(c: Config) -> Iterator[str]:
    agent = c.agent
    if not agent.tools:
        if unused := sorted(_chosen(agent)):
            yield f"agent.{unused[0]} has no effect without agent.tools; remove it or name tools"
        return
    if agent.protocol == "chat" and c.prompts.chat == "never":
        yield "agent.protocol = 'chat' cannot be with prompts.chat = 'never'; change one"
    if agent.max_turn_tokens is not None and agent.max_turn_tokens >= c.rollout.max_tokens:
        yield (
            f"agent.max_turn_tokens = {agent.max_turn_tokens} has no effect with rollout.max_tokens = "
            f"{c.rollout.max_tokens}; remove it or lower it"
        )
    if agent.tool_seconds > agent.max_seconds:
        yield (
            f"agent.tool_seconds = {agent.tool_seconds:g} has no effect above agent.max_seconds = "
            f"{agent.max_seconds:g}; lower it or raise that"
        )
    if not agent.artifacts:
        yield "agent.artifacts is empty, so nothing could be judged; name files, or leave it out for all"


def _eval_contradictions(c: Config) -> Iterator[str]:
    yield from sampling_of_evals(c)
    if c.eval.every == 0 and (unused := sorted(_chosen(c.eval) - {"every"})):
        yield f"eval.{unused[0]} has no effect with eval.every = 0; remove it or set eval.every > 0"
    for name, one in c.data.evals.items():
        if one.options and not _is_maker(one.path):
            yield (
                f"data.evals.{name}.options are for makers, and its path {one.path!r} is none; remove them"
            )
        if "split" in _chosen(one) and not _has_splits(one.path):
            yield f"data.evals.{name}.split has no effect: its path {one.path!r} is no hub data; remove it"


def sampling_of_evals(c: Config) -> Iterator[str]:
    """What cannot be of how held-out problems are sampled, in training or by `verigrad eval`."""
    samples = {"eval.num_samples": (c.eval.num_samples, c.eval.temperature)}
    for name, one in c.data.evals.items():
        num = c.eval.num_samples if one.num_samples is None else one.num_samples
        temperature = c.eval.temperature if one.temperature is None else one.temperature
        if one.num_samples is not None or one.temperature is not None:
            samples[f"data.evals.{name}.num_samples"] = (num, temperature)
    most = max(num for num, _ in samples.values())
    if bad := [k for k in c.eval.pass_k if not 1 <= k <= most]:
        name = next(name for name, (num, _) in samples.items() if num == most)
        yield f"eval.pass_k = {bad}: each k must be from 1 to {name} = {most}; raise it or change eval.pass_k"
    for name, (num, temperature) in samples.items():
        if num > 1 and temperature == 0:
            where = name.replace("num_samples", "temperature")
            yield (
                f"{name} = {num} has no effect at {where} = 0: greedy samples are all the same; "
                f"set {where} > 0 or {name} = 1"
            )


def _sampling_without_effect(c: Config) -> Iterator[str]:
    on_gpu = {"gpu_memory_frac", "sleep", "enforce_eager"}
    ignored = {
        "rollout.backend = 'transformers'": on_gpu | {"kv_cache_gb"}
        if c.rollout.backend == "transformers"
        else set(),
        "policy.device = 'cpu'": on_gpu if c.policy.device == "cpu" else set(),
        "policy.device = 'cuda'": {"kv_cache_gb"} if c.policy.device == "cuda" else set(),
    }
    for why, names in ignored.items():
        for name in sorted(names & _chosen(c.rollout)):
            yield f"rollout.{name} has no effect with {why}; remove it"
    if not _dynamic(c) and "oversample" in _chosen(c.dynamic_sampling):
        yield "dynamic_sampling.oversample has no effect with dynamic_sampling.enabled = false; remove it"


def _asynchronous_contradictions(c: Config) -> Iterator[str]:
    """What needs the weights that sample to be those that train."""
    rollout = c.rollout
    if not rollout.max_staleness:
        if rollout.engine_process is not None:
            yield (
                "rollout.engine_process has no effect with rollout.max_staleness = 0; remove it or set "
                "rollout.max_staleness > 0"
            )
        return
    if rollout.engine_process is False and (rollout.num_engines or 1) > 1:
        yield (
            f"rollout.num_engines = {rollout.num_engines} needs processes beside the trainer's, and "
            "rollout.engine_process = false with rollout.max_staleness > 0 has none; remove one of the two"
        )
    advantage = algorithm_settings.row_of(c.algorithm)[0]
    kept_apart = {
        "agent.tools run in episodes, which are sampled step by step": bool(c.agent.tools),
        "lora.load = 'adapter' leaves what is half sampled on the old adapter; 'merged' does not": (
            c.lora.rank > 0 and c.lora.load == "adapter"
        ),
        f"advantage {advantage!r} needs greedy rollouts of the same weights": ADVANTAGES[advantage].greedy,
    }
    for why in (why for why, holds in kept_apart.items() if holds):
        yield f"rollout.max_staleness = {rollout.max_staleness}: {why}; set rollout.max_staleness = 0"


def _verifier_without_effect(c: Config) -> Iterator[str]:
    limits, chosen = c.verifier, _chosen(c.verifier)
    steady, most = limits.steady_undecided_frac, limits.max_undecided_frac
    if "steady_undecided_frac" in chosen and most <= steady < 1:
        yield (
            f"verifier.steady_undecided_frac = {steady} has no effect above verifier.max_undecided_frac = "
            f"{most}, which stops the run at once; lower it, or set 1 to never pause"
        )
    if "steady_undecided_steps" in chosen and steady == 1:
        yield (
            "verifier.steady_undecided_steps has no effect with verifier.steady_undecided_frac = 1, which "
            "never pauses; remove it"
        )


def _files_without_effect(c: Config) -> Iterator[str]:
    data = c.data
    if data.options and not (_is_maker(data.path) or _is_maker(data.eval_path)):
        yield f"data.options are for makers, and data.path = {data.path!r} is none; remove them"
    if c.policy.options and not _is_maker(c.policy.model):
        yield f"policy.options are for makers, and policy.model = {c.policy.model!r} is none; remove them"
    if "split" in _chosen(data) and not _has_splits(data.path):
        yield f"data.split has no effect: data.path = {data.path!r} is no hub data; remove it"
    if "eval_split" in _chosen(data) and not data.eval_path:
        yield "data.eval_split has no effect without data.eval_path; remove it"
    elif "eval_split" in _chosen(data) and not _has_splits(data.eval_path):
        yield f"data.eval_split has no effect: data.eval_path = {data.eval_path!r} is no hub data; remove it"


def _mix_contradictions(c: Config) -> Iterator[str]:
    data = c.data
    if not data.mix and "weight" in _chosen(data):
        yield "data.weight has no effect without data.mix; remove it or name more sets to learn from"
    taken = {"path": "data.path", "held_out": "what is held out of data.path"}
    for name, one in data.mix.items():
        where = f"data.mix.{name}"
        if name in taken:
            yield f"{where} has the name of {taken[name]}; call it something else"
        if one.options and not _is_maker(one.path):
            yield f"{where}.options are for makers, and its path {one.path!r} is none; remove them"
        if "split" in _chosen(one) and not _has_splits(one.path):
            yield f"{where}.split has no effect: its path {one.path!r} is no hub data; remove it"


def _lora_contradictions(c: Config) -> Iterator[str]:
    if c.lora.rank == 0:
        for name in sorted(_chosen(c.lora)):
            yield f"lora.{name} has no effect with lora.rank = 0; remove it or set lora.rank > 0"
    elif c.algorithm.ref_sync_every:
        yield (
            "algorithm.ref_sync_every moves the reference, which with lora.rank > 0 is the model without its "
            "adapters and cannot move; choose one"
        )


def _critic_contradictions(c: Config) -> Iterator[str]:
    critic, chosen = c.critic, _chosen(c.critic)
    advantage = algorithm_settings.row_of(c.algorithm)[0]
    if ADVANTAGES[advantage].per_token != "gae":
        for name in sorted(chosen):
            yield (
                f"critic.{name} has no effect with advantage {advantage!r}, which needs no critic; remove it "
                "or set algorithm.name = 'ppo'"
            )
        return
    if critic.trunk == "shared" and critic.model:
        yield "critic.model has no effect with critic.trunk = 'shared', a head on the policy; remove it"
    if critic.trunk == "own" and "coef" in chosen:
        yield "critic.coef has no effect with critic.trunk = 'own', which shares no gradient; remove it"
    if critic.warmup_steps >= c.train.num_steps:
        yield (
            f"critic.warmup_steps = {critic.warmup_steps} leaves the policy no step of train.num_steps = "
            f"{c.train.num_steps}; lower it"
        )
    if "value_clip" in chosen and c.train.num_minibatches == 1:
        yield (
            "critic.value_clip has no effect with train.num_minibatches = 1: with one optimizer step per "
            "batch no value has moved yet; remove it or raise train.num_minibatches"
        )


def _sync_contradictions(c: Config) -> Iterator[str]:
    route = c.sync.route
    if route == "auto":
        return
    if c.rollout.backend == "transformers":
        yield f"sync.route = {route!r} has no effect with rollout.backend = 'transformers'; remove it"
    if c.lora.rank and c.lora.load == "adapter":
        yield f"sync.route = {route!r} has no effect with lora.load = 'adapter'; remove it"
    elif c.lora.rank and route == "shared":
        yield (
            "sync.route = 'shared' cannot be with lora.rank > 0, whose adapters are merged on the way to the "
            "sampler; set sync.route = 'copy' or remove it"
        )
    if c.policy.dtype != "float32" and route == "shared":
        yield (
            f"sync.route = 'shared' cannot be with policy.dtype = {c.policy.dtype!r}: the trainer keeps its "
            "weights in float32 and the sampler does not; set sync.route = 'copy' or remove it"
        )


def _monitor_contradictions(c: Config) -> Iterator[str]:
    monitor, chosen = c.monitor, _chosen(c.monitor)
    if not monitor.enabled:
        for name in sorted(chosen - {"enabled"}):
            yield f"monitor.{name} has no effect with monitor.enabled = false; remove it"
        return
    of_second = {"verifier_options", "every", "num_rollouts", "max_proxy_gap", "max_second_drop"}
    if not monitor.verifier:
        for name in sorted(chosen & of_second):
            yield f"monitor.{name} has no effect without monitor.verifier; remove it or name one"
    elif (monitor.verifier, monitor.verifier_options) == (c.verifier.name, c.verifier.options):
        yield (
            f"monitor.verifier = {monitor.verifier!r} is the verifier that pays, which it is to be held "
            "against; name another"
        )
    if monitor.max_kl is not None and not algorithm_settings.holds_reference(c.algorithm):
        yield (
            f"monitor.max_kl = {monitor.max_kl:g} needs a reference, as algorithm.kl_coef > 0 keeps one; "
            "remove it or set that"
        )


def _is_maker(reference: str) -> bool:
    return ":" in reference


def _has_splits(path: str) -> bool:
    return not _is_maker(path) and Path(path).suffix.lower() not in DATA_FILES


def _dynamic(c: Config) -> bool:
    chosen = c.dynamic_sampling.enabled
    return ROWS[c.algorithm.name].dynamic_sampling if chosen is None else chosen


def _chosen(section: Section) -> set[str]:
    """Settings that differ from their default."""
    fields = type(section).model_fields
    return {name for name in fields if getattr(section, name) != fields[name].default}
