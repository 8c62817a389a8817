"""What each command reads of a recipe; the rest would have no effect there, and is refused in its recipe.

One recipe file is for one command: the one whose own section ([sft], [prefer], ...) it brings, else `train`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from verigrad.engine import label_settings, preference_catalogue, reward_settings
from verigrad.engine.settings import OWN_SECTIONS, Config, SampleConfig, Verb

VERBS: tuple[Verb, ...] = get_args(Verb)
LEARNS = frozenset({"train", "run", "data", "prompts", "policy", "lora", "optim", "eval"})
SECTIONS: Mapping[str, frozenset[str]] = {
    "train": frozenset(Config.model_fields) - {*OWN_SECTIONS, "judge"},
    "sft": LEARNS | {"sft"},
    "prefer": LEARNS | {"prefer"},
    "reward": LEARNS | {"reward"},
    "sample": frozenset(
        {"train", "run", "data", "prompts", "rollout", "verifier", "sandbox", "policy", "sample"}
    ),
    "label": frozenset({"train", "run", "data", "prompts", "rollout", "policy", "judge", "label"}),
}
"""Command -> the sections it reads."""

ONLY: Mapping[tuple[str, str], frozenset[str]] = {
    ("sft", "eval"): frozenset({"every"}),
    ("prefer", "eval"): frozenset({"every"}),
    ("reward", "eval"): frozenset({"every", "by"}),
    ("sample", "train"): frozenset({"seed"}),
    ("sample", "run"): frozenset({"folder", "trackers", "project"}),
    ("label", "train"): frozenset({"seed"}),
    ("label", "run"): frozenset({"folder", "trackers", "project"}),
}
"""Command and section -> the few settings of it that are read."""

_OF_MIXTURES = frozenset({"mix", "weight"})
_OF_ROLLOUTS = frozenset({"update_dtype", "skip_zero_advantage"})
_OF_PASSES = frozenset({"attention", "offload_activations"})
_OF_TRAINING = (
    frozenset({"gradient_checkpointing", "tokens_per_batch", "share_prefixes", "head_chunk_tokens"})
    | _OF_ROLLOUTS
    | _OF_PASSES
)
NOT: Mapping[tuple[str, str], frozenset[str]] = {
    ("train", "data"): _OF_MIXTURES,
    ("sft", "train"): frozenset({"num_minibatches"}),
    ("sft", "data"): frozenset({"evals"}),
    ("sft", "lora"): frozenset({"load"}),
    ("prefer", "train"): frozenset({"num_minibatches"}),
    ("prefer", "data"): frozenset({"evals"}),
    ("prefer", "lora"): frozenset({"load"}),
    ("reward", "train"): frozenset({"num_minibatches"}),
    ("reward", "lora"): frozenset({"load"}),
    ("sft", "policy"): _OF_ROLLOUTS,
    ("prefer", "policy"): _OF_ROLLOUTS,
    ("reward", "policy"): frozenset({"head_chunk_tokens"}) | _OF_ROLLOUTS | _OF_PASSES,
    ("reward", "prompts"): frozenset({"prefill"}),
    ("sample", "data"): _OF_MIXTURES,
    ("sample", "rollout"): frozenset({"group_size", "max_staleness", "engine_process"}),
    ("sample", "verifier"): frozenset(
        {"audit", "audit_rows", "steady_undecided_frac", "steady_undecided_steps"}
    ),
    ("sample", "policy"): _OF_TRAINING,
    ("label", "data"): _OF_MIXTURES | {"eval_path", "eval_split", "num_eval", "evals"},
    ("label", "rollout"): frozenset({"group_size", "max_staleness", "engine_process"}),
    ("label", "policy"): _OF_TRAINING,
}
"""Command and section -> the few settings of it that are not read."""

_NO_ROLLOUTS: Mapping[str, Mapping[str, Any]] = {"rollout": {"max_prompt_tokens": 1, "max_tokens": 1}}
_NO_TRAINING: Mapping[str, Mapping[str, Any]] = {"policy": {"tokens_per_batch": 2**40}, "eval": {"every": 0}}
NEUTRAL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "train": {},
    "sft": _NO_ROLLOUTS,
    "prefer": _NO_ROLLOUTS,
    "reward": _NO_ROLLOUTS,
    "sample": _NO_TRAINING,
    "label": _NO_TRAINING,
}
"""Values for settings a command does not read, with which no check of `train` speaks up."""


def reads(verb: Verb, section: str, key: str) -> bool:
    """Whether the command reads this setting."""
    if section not in SECTIONS[verb]:
        return False
    if only := ONLY.get((verb, section)):
        return key in only
    return key not in NOT.get((verb, section), ())


def verb_of(tree: Mapping[str, Any]) -> Verb:
    """The command a recipe is for."""
    return next((verb for verb in OWN_SECTIONS if verb in tree), "train")


def unread(tree: Mapping[str, Any], verb: Verb) -> Iterator[str]:
    """What is wrong with settings that the command does not read; unknown names are not its affair."""
    names: list[str] = []
    for section, values in tree.items():
        if section not in Config.model_fields:
            continue
        if section in OWN_SECTIONS and section != verb:
            yield (
                f"[{section}] is for `verigrad {section}` and has no effect on `verigrad {verb}`; use that "
                "command, or remove it"
            )
        elif section not in SECTIONS[verb]:
            names.append(f"[{section}]")
        elif isinstance(values, dict):
            known = getattr(Config.model_fields[section].annotation, "model_fields", {})
            names += [f"{section}.{key}" for key in values if key in known and not reads(verb, section, key)]
    if names:
        have, them = ("have", "them") if len(names) > 1 else ("has", "it")
        yield f"{', '.join(names)} {have} no effect on `verigrad {verb}`; remove {them}"


def neutral(config: Config) -> Config:
    """The recipe with NEUTRAL's values; not to run from, only to be checked as if it were for `train`."""
    sections = {
        section: getattr(config, section).model_copy(update=dict(values))
        for section, values in NEUTRAL[config.verb].items()
    }
    if config.verb == "label" and not config.policy.model:  # rows that bring their answers need no policy
        policy = sections.get("policy", config.policy)
        sections["policy"] = policy.model_copy(update={"model": "of no use here"})
    return config.model_copy(update=sections)


def read_part(config: Config) -> dict[str, dict[str, Any]]:
    """What the recipe's command reads of it, as TOML takes it; unset settings are None."""
    return {
        section: {key: value for key, value in values.items() if reads(config.verb, section, key)}
        for section, values in config.model_dump(mode="json").items()
        if section in SECTIONS[config.verb]
    }


def contradictions(c: Config) -> Iterator[str]:
    """What cannot be in a command's own section; the shared ones are looked at by config_checks.py."""
    if c.verb == "label":
        yield from label_settings.contradictions(c)
    if c.verb == "reward":
        yield from reward_settings.contradictions(c)
    longest = {"sft": c.sft.max_length, "prefer": c.prefer.max_length, "reward": c.reward.max_length}
    if longest.get(c.verb, 0) > c.policy.tokens_per_batch:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold one example of up to "
            f"{c.verb}.max_length = {longest[c.verb]}; raise it or lower that"
        )
    yield from preference_catalogue.contradictions(c)
    if c.verb == "sample" and c.sample.keep == "all":
        for name in ("keep_per_problem", "pick"):
            if getattr(c.sample, name) != SampleConfig.model_fields[name].default:
                yield f"sample.{name} has no effect with sample.keep = 'all'; remove it"
    if c.verb == "sample" and c.sample.keep_per_problem > c.sample.num_samples:
        yield (
            f"sample.keep_per_problem = {c.sample.keep_per_problem} is more than sample.num_samples = "
            f"{c.sample.num_samples}, so no problem ever has as many; lower it"
        )
