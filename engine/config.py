"""A recipe and its overrides to a checked Config, and back. Importing this must stay cheap (no torch)."""

import difflib
import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError

from verigrad.engine import algorithm_settings, config_verbs, environment, preference_catalogue
from verigrad.engine.catalogue import ROWS
from verigrad.engine.config_checks import contradictions
from verigrad.engine.settings import (
    STALE_LIMITS,
    SYNC_LIMITS,
    AlgorithmConfig,
    Config,
    ConfigError,
    DataConfig,
    EvalSet,
    MixSet,
    OptimConfig,
    PromptsConfig,
    Section,
    Verb,
)

__all__ = [
    "AlgorithmConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "OptimConfig",
    "PromptsConfig",
    "batch_algebra",
    "build",
    "differences",
    "find_recipe",
    "load",
    "read_tree",
    "resolve",
    "settings",
    "to_toml",
]

RECIPES = Path(__file__).parent / "recipes"
NAMED_SETS: Mapping[str, type[Section]] = {"evals": EvalSet, "mix": MixSet}
"""Settings of [data] that are sets by their names -> what one holds."""


def load(recipe: str, overrides: Sequence[str] = (), *, verb: Verb | None = None) -> Config:
    """Read a recipe (a .toml path, or the name of a shipped one) and apply `section.key=value` overrides.

    `verb` is the command it is for; None takes the one that the recipe's sections tell. Raises ConfigError
    with one line: what was found, what was expected, what to do.
    """
    path = find_recipe(recipe)
    tree = read_tree(path)
    if "stage" in tree:
        raise ConfigError(f"{path.name} is a recipe of stages, which only `verigrad train` runs; use that")
    for override in overrides:
        apply_override(tree, override)
    tree.setdefault("run", {})
    if isinstance(tree["run"], dict) and not tree["run"].get("folder"):
        tree["run"]["folder"] = f"runs/{path.stem}"
    return build(tree, name=path.name, verb=verb)


def read_tree(path: Path) -> dict[str, Any]:
    """A TOML file as nested dicts."""
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not a TOML file: {error}") from None


def build(tree: Mapping[str, Any], *, name: str, verb: Verb | None = None) -> Config:
    """A whole tree of settings to a checked and resolved Config; `name` is what errors begin with."""
    verb = verb or config_verbs.verb_of(tree)
    tree = environment.settle(tree, reads=functools.partial(config_verbs.reads, verb))
    if unread := list(config_verbs.unread(tree, verb)):
        raise ConfigError(f"{name}: " + "; ".join(unread))
    try:
        config = Config.model_validate({**tree, verb: tree.get(verb, {})})
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(explain(e) for e in error.errors())) from None
    problems = [*contradictions(config_verbs.neutral(config)), *config_verbs.contradictions(config)]
    if problems:
        raise ConfigError(f"{name}: " + "; ".join(problems))
    return resolve(config)


def find_recipe(recipe: str) -> Path:
    """The file behind a recipe's path or name."""
    path = Path(recipe)
    if path.suffix != ".toml" and not path.is_file():
        path = RECIPES / f"{recipe}.toml"
    if path.is_file():
        return path
    names = sorted(p.stem for p in RECIPES.glob("*.toml"))
    if Path(f"{recipe}.toml").is_file():
        raise ConfigError(f"no recipe {recipe!r}; did you mean {recipe}.toml?")
    if Path(recipe).suffix == ".toml":
        here = {p.stem: str(p) for p in sorted(path.parent.glob("*.toml"))}
        near = [here[stem] for stem in difflib.get_close_matches(path.stem, here, n=1)]
        near = near or difflib.get_close_matches(path.stem, names, n=1, cutoff=0.8)
        hint = f"did you mean {near[0]}?" if near else "correct the path"
        raise ConfigError(f"no file {recipe} (looked from {Path.cwd()}); {hint}")
    close = difflib.get_close_matches(Path(recipe).stem, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"shipped recipes: {', '.join(names)}"
    raise ConfigError(f"no recipe {recipe!r}: neither a .toml file nor a shipped recipe; {hint}")


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Put one `section.key=value` into the tree; the value is TOML, or a bare word."""
    key, equals, value = override.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        meant = [name for name in settings() if equals and name.split(".")[1] == names[0]]
        hint = f"; did you mean {' or '.join(f'{name}={value}' for name in meant)}?" if meant else ""
        raise ConfigError(f"override {override!r} is not of the form section.key=value{hint}")
    node = tree
    for name in names[:-1]:
        node = node.setdefault(name, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {name} is a value, not a section")
    try:
        parsed = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    # run.folder=2026-01-31 is a date in TOML, and 7 a number; where text is wanted, both are text.
    node[names[-1]] = value.strip() if _wants_text(names) and not isinstance(parsed, str) else parsed


def _wants_text(names: Sequence[str]) -> bool:
    if (one := _named_set(names)) is not None and len(names) == 4:
        fields: Mapping[str, Any] = one.model_fields
    else:
        section = Config.model_fields.get(names[0]) if len(names) == 2 else None
        fields = getattr(section.annotation, "model_fields", {}) if section else {}
    return names[-1] in fields and fields[names[-1]].annotation is str


def _named_set(names: Sequence[str]) -> type[Section] | None:
    """What data.evals.NAME and data.mix.NAME hold; None for another place."""
    return NAMED_SETS.get(names[1]) if len(names) > 1 and names[0] == "data" else None


def resolve(config: Config) -> Config:
    """Fill the settings left to the algorithm or the number type, so that a run's record is explicit."""
    limits = SYNC_LIMITS[config.policy.dtype]
    algorithm = config.algorithm
    if config.rollout.max_staleness:
        limits = limits | STALE_LIMITS
        algorithm = algorithm_settings.corrected(algorithm)
    updates: dict[str, Section] = {"algorithm": algorithm_settings.resolve(algorithm)}
    if config.dynamic_sampling.enabled is None:
        enabled = {"enabled": ROWS[config.algorithm.name].dynamic_sampling}
        updates["dynamic_sampling"] = config.dynamic_sampling.model_copy(update=enabled)
    missing = {name: limit for name, limit in limits.items() if getattr(config.sync, name) is None}
    updates["sync"] = config.sync.model_copy(update=missing)
    if config.verb == "prefer":
        updates["prefer"] = preference_catalogue.resolve(config.prefer)
    return config.model_copy(update=updates)


def explain(error: Any) -> str:
    """One pydantic error as a sentence that names the fix."""
    path = [str(part) for part in error["loc"]]
    where = ".".join(path)
    if error["type"] == "missing":
        return f"{where} is missing; set it"
    one = _named_set(path)
    if error["type"] == "extra_forbidden" and one is not None and len(path) > 3:
        close = difflib.get_close_matches(path[3], one.model_fields, n=1)
        hint = f"did you mean {close[0]}?" if close else f"a set holds {', '.join(one.model_fields)}"
        return f"{where} is not a setting; {hint}"
    if error["type"] != "extra_forbidden":
        shown = repr(error["input"])
        message = error["msg"].removeprefix("Value error, ")
        return f"{where} = {shown[:80]}: {message[0].lower()}{message[1:]}"
    known = settings()
    inside = [name for name in known if name.startswith(f"{path[0]}.")]
    elsewhere = [name for name in known if name.split(".")[1] == path[-1]]
    close = difflib.get_close_matches(where, inside, n=1, cutoff=0.8) or elsewhere
    if close := close or difflib.get_close_matches(where, known, n=1, cutoff=0.8):
        return f"{where} is not a setting; did you mean {close[0]}?"
    if len(path) > 1 and inside:
        return f"{where} is not a setting; [{path[0]}] holds {', '.join(n.split('.')[1] for n in inside)}"
    close = difflib.get_close_matches(path[0], list(Config.model_fields), n=1)
    hint = f"did you mean [{close[0]}]?" if close else f"sections: {', '.join(Config.model_fields)}"
    return f"{where} is not a setting; {hint}"


def settings() -> list[str]:
    """Every setting's dotted name, in the order of the sections."""
    names = []
    for section, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        names += [f"{section}.{name}" for name in model.model_fields]
    return names


def to_toml(config: Config) -> str:
    """The resolved recipe as TOML, what its command reads of it; loading it again gives the same Config.

    Unset settings are left out.
    """
    return tomli_w.dumps(without_none(config_verbs.read_part(config)))


def without_none(tree: Any) -> Any:
    """Nested dicts without the keys whose value is None, which TOML has not."""
    if isinstance(tree, list):
        return [without_none(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    return {key: without_none(value) for key, value in tree.items() if value is not None}


def flatten(config: Config) -> dict[str, Any]:
    """Dotted names to values, of what the recipe's command reads."""
    tree = config_verbs.read_part(config)
    flat = {f"{section}.{key}": value for section, node in tree.items() for key, value in node.items()}
    for kind, form in NAMED_SETS.items():
        for name, one in flat.pop(f"data.{kind}", {}).items():
            chosen = {key: value for key, value in one.items() if value != form.model_fields[key].default}
            flat[f"data.{kind}.{name}"] = chosen
    return flat


def differences(ours: Config, theirs: Config) -> list[str]:
    """Settings in which two recipes differ, as `name: theirs -> ours`."""
    if ours.verb != theirs.verb:
        return [f"command: verigrad {theirs.verb} -> verigrad {ours.verb}"]
    mine, yours = flatten(ours), flatten(theirs)
    names = dict.fromkeys([*mine, *yours])  # a named set may be on one side only
    return [
        f"{name}: {yours.get(name)!r} -> {mine.get(name)!r}"
        for name in names
        if mine.get(name) != yours.get(name)
    ]


def batch_algebra(c: Config) -> list[tuple[str, str]]:
    """What one step will do, in numbers, for `--dry-run`."""
    if c.verb in ("sft", "prefer", "reward"):
        return _offline_algebra(c)
    if c.verb == "label":
        return [("rows", str(c.label.num_rows) if c.label.num_rows else "all of data.path")]
    if c.verb == "sample":
        return _sample_algebra(c)
    P, G = c.rollout.groups_per_step, c.rollout.group_size
    per_update = P * G // c.train.num_minibatches
    longest = c.rollout.max_prompt_tokens + c.rollout.max_tokens
    lines = [
        ("rollouts per step", f"{P} groups x {G} = {P * G}"),
        ("optimizer steps", f"{c.train.num_steps} steps x {c.train.num_minibatches} = "
         f"{c.train.num_steps * c.train.num_minibatches}, each over {per_update} rollouts"),
        ("tokens per optimizer step", f"at most {per_update} x {longest} = {per_update * longest:,}"),
        ("packed passes per optimizer step",
         f"at most {-(-per_update // max(1, c.policy.tokens_per_batch // longest))} "
         f"of {c.policy.tokens_per_batch:,} tokens"),
    ]  # fmt: skip
    if c.dynamic_sampling.enabled:
        cap = math.ceil(c.dynamic_sampling.oversample * P)
        lines.append(("groups sampled per step", f"{P} to {cap} (dynamic sampling)"))
    if S := c.rollout.max_staleness:
        lines.append(
            (
                "asynchronous",
                f"groups begun by weights at most {S} steps behind, importance weights "
                f"{c.algorithm.correction}, {P * (S + 1)} groups under way",
            )
        )
    lines.append(("rollouts in the run", f"at least {c.train.num_steps * P * G:,}"))
    return lines


def _offline_algebra(c: Config) -> list[tuple[str, str]]:
    """A row of `prefer` and of `reward` is a pair: two sequences, each of up to max_length."""
    sizes = {
        "sft": ("examples", c.sft.batch_size, c.sft.max_length),
        "prefer": ("rows", c.prefer.batch_size, c.prefer.max_length),
        "reward": ("rows", c.reward.batch_size, c.reward.max_length),
    }
    what, size, longest = sizes[c.verb]
    single = c.verb == "sft" or (c.prefer.loss == "kto" if c.verb == "prefer" else c.reward.kind == "steps")
    sequences = size if single else 2 * size
    members = c.reward.members if c.verb == "reward" else 1
    return [
        (what, f"{c.train.num_steps} steps x {size} = {c.train.num_steps * size:,}"),
        *([("shares", _shares(c.data))] if c.data.mix else []),
        *([("members", str(members))] if members > 1 else []),
        ("tokens per optimizer step", f"at most {sequences} x {longest} = {sequences * longest:,}"),
        ("packed passes per optimizer step",
         f"at most {-(-sequences // max(1, c.policy.tokens_per_batch // longest))} "
         f"of {c.policy.tokens_per_batch:,} tokens"),
    ]  # fmt: skip


def _shares(data: DataConfig) -> str:
    """The share of each set of a mixture, data.path's first."""
    weights = {"path": data.weight, **{name: one.weight for name, one in data.mix.items()}}
    return ", ".join(f"{name} {weight / sum(weights.values()):.1%}" for name, weight in weights.items())


def _sample_algebra(c: Config) -> list[tuple[str, str]]:
    num, each = c.sample.num_problems, c.sample.num_samples
    total = f"{num} problems x {each} = {num * each:,}" if num else f"{each} of every problem"
    return [
        ("completions", total),
        ("completions between two writes", f"{c.rollout.groups_per_step} problems x {each} = "
         f"{c.rollout.groups_per_step * each:,}"),
        ("kept", f"at most {c.sample.keep_per_problem} per problem"),
    ]  # fmt: skip
