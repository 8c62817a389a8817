"""What each command reads of a recipe; the rest would have no effect there, and is refused in its recipe.

One recipe file is for one command: the one whose own section, [sft] or [sample], it brings, else `train`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from verigrad.engine.settings import Config, Verb

VERBS: tuple[Verb, ...] = get_args(Verb)
OWN = ("sft", "sample")  # sections of one command alone, named as it
SECTIONS: Mapping[str, frozenset[str]] = {
    "train": frozenset(Config.model_fields) - set(OWN),
    "sft": frozenset({"train", "run", "data", "prompts", "policy", "lora", "optim", "eval", "sft"}),
    "sample": frozenset(
        {"train", "run", "data", "prompts", "rollout", "verifier", "sandbox", "policy", "sample"}
    ),
}
"""Command -> the sections it reads."""

ONLY: Mapping[tuple[str, str], frozenset[str]] = {
    ("sft", "eval"): frozenset({"every"}),
    ("sample", "train"): frozenset({"seed"}),
    ("sample", "run"): frozenset({"folder", "trackers", "project"}),
}
"""Command and section -> the few settings of it that are read."""

NOT: Mapping[tuple[str, str], frozenset[str]] = {
    ("sft", "train"): frozenset({"num_minibatches"}),
    ("sft", "data"): frozenset({"evals"}),
    ("sft", "lora"): frozenset({"load"}),
    ("sample", "rollout"): frozenset({"group_size"}),
    ("sample", "verifier"): frozenset(
        {"audit", "audit_rows", "steady_undecided_frac", "steady_undecided_steps"}
    ),
    ("sample", "policy"): frozenset({"gradient_checkpointing", "tokens_per_batch", "head_chunk_tokens"}),
}
"""Command and section -> the few settings of it that are not read."""

NEUTRAL: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "train": {},
    "sft": {"rollout": {"max_prompt_tokens": 1, "max_tokens": 1}},
    "sample": {"policy": {"tokens_per_batch": 2**40}, "eval": {"every": 0}},
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
    return "sft" if "sft" in tree else "sample" if "sample" in tree else "train"


def unread(tree: Mapping[str, Any], verb: Verb) -> Iterator[str]:
    """What is wrong with settings that the command does not read; unknown names are not its affair."""
    names: list[str] = []
    for section, values in tree.items():
        if section not in Config.model_fields:
            continue
        if section in OWN and section != verb:
            yield f"[{section}] is for `verigrad {section}` and has no effect on `verigrad {verb}`; remove it"
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
    if c.verb == "sft" and c.sft.max_length > c.policy.tokens_per_batch:
        yield (
            f"policy.tokens_per_batch = {c.policy.tokens_per_batch} cannot hold one example of up to "
            f"sft.max_length = {c.sft.max_length}; raise it or lower that"
        )
    if c.verb == "sample" and c.sample.keep_per_problem > c.sample.num_samples:
        yield (
            f"sample.keep_per_problem = {c.sample.keep_per_problem} is more than sample.num_samples = "
            f"{c.sample.num_samples}, so no problem ever has as many; lower it"
        )
