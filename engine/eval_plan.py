"""The words of `verigrad eval` to what is evaluated and with which settings. Needs no torch."""

import argparse
import copy
import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from verigrad.engine import checkpoint, config, makers, stage_recipe, suite
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.config_checks import (
    DATA_FILES,
    LEAST_TEMPERATURE,
    MOST_TEMPERATURE,
    sampling,
    sampling_of_evals,
)
from verigrad.engine.config_verbs import verb_of
from verigrad.engine.rows import short_name
from verigrad.engine.settings import (
    AgentConfig,
    EvalConfig,
    EvalSet,
    PromptsConfig,
    SandboxConfig,
    VerifierConfig,
)
from verigrad.engine.verify import parse_option

OVERRIDE = re.compile(r"\w+\.[^/=]+=")
READ: Mapping[str, frozenset[str]] = {
    "train": frozenset({"seed"}),
    "data": frozenset({"path", "split", "options", "columns", "eval_path", "eval_split", "num_eval", "evals",
                       "on_bad_row"}),
    "prompts": frozenset(PromptsConfig.model_fields),
    "rollout": frozenset({"backend", "max_tokens", "max_prompt_tokens", "temperature", "stop", "max_seqs",
                          "kv_cache_gb", "gpu_memory_frac", "enforce_eager"}),
    "verifier": frozenset(VerifierConfig.model_fields) - {"audit", "audit_rows"},
    "sandbox": frozenset(SandboxConfig.model_fields),
    "agent": frozenset(AgentConfig.model_fields),
    "policy": frozenset({"model", "options", "dtype", "device", "trust_remote_code"}),
    "eval": frozenset(EvalConfig.model_fields) - {"every"},
}  # fmt: skip
"""Section -> the settings of a recipe that an evaluation reads."""

OF_ANSWERS = ("num_samples", "temperature", "verifier", "verifier_options")
"""Settings of a [data.evals.NAME] that leave its problems as they are."""

OF_DATA = ("columns", "split", "options")
"""Settings of [data] that, given on the command line, are for the sets of --data."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One model to evaluate, as the user named it."""

    label: str  # what tables call it
    model: str  # a folder, hub id or maker
    recipe: Mapping[str, Any] | None = None  # of the run it comes from
    step: int = 0  # of its checkpoint
    run: Path | None = None  # its folder


@dataclass(frozen=True, slots=True)
class Planned:
    """A model and all settings of its evaluation."""

    subject: Subject
    cfg: Config
    asked_of: Subject | None = None  # whose held-out problems these must be: a run's, where it has any


def plan(args: argparse.Namespace) -> list[Planned]:
    """Every model of the command line with its settings; ConfigError for what cannot be.

    A run brings its recipe. A model alone takes --recipe, else the recipe of the first run beside it, so that
    both get the same questions, else defaults.
    """
    overrides = [word for word in args.words if OVERRIDE.match(word) and not Path(word).exists()]
    references = [word for word in args.words if word not in overrides]
    if not references:
        raise ConfigError("name at least one model or run folder to evaluate")
    check_words(args)
    subjects = unique([find(reference, step=args.step) for reference in references])
    if args.step is not None and not any(subject.recipe for subject in subjects):
        raise ConfigError("--step picks a checkpoint of a run, and no run folder was named; remove it")
    shared: Mapping[str, Any] | None
    if args.recipe:
        shared = config.read_tree(config.find_recipe(args.recipe))
    else:
        shared = next((subject.recipe for subject in subjects if subject.recipe), None)
    planned = []
    for one in subjects:
        asked_of = one if one.recipe else next((other for other in subjects if other.recipe), None)
        if args.data or args.suite or (args.recipe and not one.recipe):
            asked_of = None
        planned.append(Planned(one, settings_of(one, shared, args, overrides), asked_of))
    return planned


def check_words(args: argparse.Namespace) -> None:
    """Options that contradict each other, and numbers that cannot be."""
    if args.suite and (args.data or args.verifier or args.option):
        raise ConfigError("--suite brings its own data and verifiers; remove --data, --verifier and --option")
    if args.greedy and (args.temperature or (args.n or 1) > 1):
        raise ConfigError("--greedy is one sample at temperature 0; remove it, or --n and --temperature")
    least, most = LEAST_TEMPERATURE, MOST_TEMPERATURE
    for name in ("n", "num", "max_tokens"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least 1")
    if args.temperature is not None and not (args.temperature == 0 or least <= args.temperature <= most):
        raise ConfigError(f"--temperature {args.temperature:g}: expected 0 (greedy) or {least} to {most}")
    for path in args.data:
        if Path(path).suffix.lower() in DATA_FILES and not Path(path).expanduser().is_file():
            raise ConfigError(f"--data {path}: no such file (looked from {Path.cwd()}); correct the path")


# What is evaluated -----------------------------------------------------------------------------------------


def find(reference: str, *, step: int | None) -> Subject:
    """The model behind a folder, a run folder, a checkpoint in one, a hub id or a maker."""
    path = Path(reference).expanduser()
    if makers.is_maker(reference):
        place, _, function = reference.rpartition(":")
        module = path.name.rpartition(":")[0] if place.endswith(".py") else place.rpartition(".")[2]
        return Subject(f"{module}:{function}", reference)
    if path.is_file():
        raise ConfigError(f"{reference} is a file; expected a model's folder, a run folder or a hub id")
    if not path.is_dir():
        if reference.startswith((".", "/", "~")) or (reference.count("/") > 1 and not path.parent.is_dir()):
            raise ConfigError(f"no folder {reference} (looked from {Path.cwd()}); correct the path")
        if "/" in reference and path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
            hint = f"did you mean {path.parent / near[0]}?" if near else "correct the path"
            raise ConfigError(f"no folder {reference} (looked from {Path.cwd()}); {hint}")
        return Subject(reference, reference)
    path = path.resolve()
    if (path / "config.toml").is_file():
        return of_run(path, step)
    run, of_checkpoint = path.parent.parent, checkpoint.step_of(path.name)
    if path.parent.name == "checkpoints" and of_checkpoint is not None and (run / "config.toml").is_file():
        return of_run(run, of_checkpoint)
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        stage_recipe.refuse_folder(Path(reference).expanduser())
        raise ConfigError(
            f"{reference} holds neither a model (config.json) nor a run (config.toml); name one that does"
        )
    return Subject(path.name, str(path))


def of_run(run: Path, step: int | None) -> Subject:
    """A checkpoint of a run, with the run's recipe."""
    recipe = config.read_tree(run / "config.toml")
    if (verb := verb_of(recipe)) in stage_recipe.ROWS_OF:
        raise ConfigError(
            f"{run.name} is a run of `verigrad {verb}`, which trains no model: it leaves "
            f"{stage_recipe.ROWS_OF[verb]}; name a run that trained one"
        )
    step, folder = model_of(run, step)
    return Subject(f"{run.name} step {step}", str(folder), recipe, step, run)


def model_of(run: Path, step: int | None) -> tuple[int, Path]:
    """(step, model folder) of a run's newest whole checkpoint, or of that of `step`."""
    found = dict(checkpoint.newest_first(run / "checkpoints"))
    steps = ", ".join(str(one) for one in sorted(found)) or "none"
    if not found:
        raise ConfigError(f"{run.name} holds no checkpoint yet; wait for its first save (run.save_every)")
    if step is not None and step not in found:
        raise ConfigError(f"{run.name} holds no checkpoint of step {step}; it has those of steps {steps}")
    for candidate, folder in found.items() if step is None else [(step, found[step])]:
        harm = checkpoint.damage(folder)
        if harm is None:
            return candidate, folder
    raise ConfigError(f"{run.name}: no whole checkpoint among those of steps {steps} ({harm}); name another")


def unique(subjects: Sequence[Subject]) -> list[Subject]:
    """The same models under labels that differ."""
    named: list[Subject] = []
    for one in subjects:
        label, taken = one.label, {other.label for other in named}
        for number in itertools.count(2):
            if label not in taken:
                break
            label = f"{one.label} #{number}"
        named.append(dataclasses.replace(one, label=label))
    return named


# With which settings ---------------------------------------------------------------------------------------


def settings_of(
    subject: Subject, shared: Mapping[str, Any] | None, args: argparse.Namespace, overrides: Sequence[str]
) -> Config:
    """A recipe's settings, replaced by options, replaced by `section.key=value`."""
    recipe = shared if args.recipe else subject.recipe or shared
    tree = read_of(recipe or {})
    brings_data = bool(args.data or args.suite)
    if recipe is not None and verb_of(recipe) != "train" and not brings_data:
        raise ConfigError(f"{subject.label}: its recipe has no questions with answers; give --data")
    policy = tree.setdefault("policy", {})
    if policy.get("model") != subject.model:
        policy.pop("options", None)  # those of another maker
    policy["model"] = subject.model
    put_data(tree, args.data)
    if args.suite:
        put_sets(tree, suite.load(args.suite).evals())
    put_verifier(tree, args)
    put_sampling(tree, args)
    for override in overrides:
        check_override(override, args)
        if subject.recipe and not args.recipe and not brings_data:
            check_split(override, subject.recipe)
        config.apply_override(tree, override)
    if args.data:
        given = {key: tree["data"].pop(key) for key in OF_DATA if key in tree["data"]}
        for one in tree["data"]["evals"].values():
            one.update({**given, **one})
    cfg = completed(validated(tree, args.recipe or subject.label), args)
    if not (cfg.data.evals or cfg.data.eval_path or (cfg.data.path and cfg.data.num_eval)):
        is_name = not Path(subject.model).exists() and not makers.is_maker(subject.model)
        where = f"no folder here (looked from {Path.cwd()}), so a model by its name; " * is_name
        also = ", or correct the path" * is_name
        raise ConfigError(
            f"{subject.label}: {where}nothing to evaluate on; give --data (and --verifier){also}"
        )
    if problems := [*sampling(cfg), *sampling_of_evals(cfg)]:
        raise ConfigError("; ".join(problems))
    return cfg


def read_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe without what an evaluation does not read; unknown names stay, to be refused."""
    tree: dict[str, Any] = {}
    for section, values in recipe.items():
        fields = getattr(getattr(Config.model_fields.get(section), "annotation", None), "model_fields", None)
        if fields is None or not isinstance(values, Mapping):
            tree[section] = values
        elif section in READ:
            tree[section] = {k: v for k, v in values.items() if k in READ[section] or k not in fields}
    return copy.deepcopy(tree)


def put_data(tree: dict[str, Any], paths: Sequence[str]) -> None:
    """The sets of --data in place of the recipe's."""
    if not paths:
        return
    evals: dict[str, Any] = {}
    for path in paths:
        name = plain = re.sub(r"[^A-Za-z0-9_-]", "_", short_name(path)) or "data"
        while name in evals:
            name = f"{plain}_{len(evals) + 1}"
        evals[name] = {"path": path}
    put_sets(tree, evals)


def put_sets(tree: dict[str, Any], evals: Mapping[str, Any]) -> None:
    """These sets in place of the recipe's."""
    rule = tree.get("data", {}).get("on_bad_row", "stop")
    tree["data"] = {"num_eval": 0, "on_bad_row": rule, "evals": dict(evals)}


def put_verifier(tree: dict[str, Any], args: argparse.Namespace) -> None:
    """--verifier judges every set; --option goes to whichever verifier judges."""
    evaluation, paying = tree.setdefault("eval", {}), tree.setdefault("verifier", {})
    sets = tree.get("data", {}).get("evals", {}).values()
    if args.verifier:
        paying |= {"name": args.verifier, "options": {}}
        for level in (evaluation, *sets):
            level.pop("verifier", None)
            level.pop("verifier_options", None)
    try:
        options = dict(parse_option(text) for text in args.option)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not options:
        return
    if any(one.get("verifier") or one.get("verifier_options") for one in sets):
        raise ConfigError("--option: the recipe's sets have verifiers of their own; say --verifier, too")
    if evaluation.get("verifier") or evaluation.get("verifier_options"):
        evaluation["verifier_options"] = {**evaluation.get("verifier_options", {}), **options}
    else:
        paying["options"] = {**paying.get("options", {}), **options}


def put_sampling(tree: dict[str, Any], args: argparse.Namespace) -> None:
    """--n, --temperature, --greedy, --max-tokens, --pass-k and --by, for every set."""
    evaluation, sets = tree.setdefault("eval", {}), tree.get("data", {}).get("evals", {}).values()
    num_samples = 1 if args.greedy else args.n
    temperature = 0.0 if args.greedy else args.temperature
    for key, value in (("num_samples", num_samples), ("temperature", temperature)):
        if value is not None:
            evaluation[key] = value
            for one in sets:
                one.pop(key, None)
    if num_samples is not None:
        evaluation.pop("pass_k", None)
    if args.pass_k is not None:
        evaluation["pass_k"] = args.pass_k
    if args.by is not None:
        evaluation["by"] = args.by
    if args.max_tokens is not None:
        tree.setdefault("rollout", {})["max_tokens"] = args.max_tokens


def check_override(override: str, args: argparse.Namespace) -> None:
    """Refuse a setting that an evaluation does not read."""
    section, _, key = override.partition("=")[0].strip().partition(".")
    key = key.partition(".")[0]
    name = f"{section}.{key}"
    if name == "policy.model":
        raise ConfigError("policy.model: name the model itself, as in `verigrad eval MODEL`")
    if name in config.settings() and key not in READ.get(section, ()):
        raise ConfigError(f"{name} has no effect on an evaluation; remove it")
    if args.data and section == "data" and key not in (*OF_DATA, "evals", "on_bad_row"):
        raise ConfigError(f"{name} has no effect with --data; remove one of the two")


def check_split(override: str, recipe: Mapping[str, Any]) -> None:
    """Refuse a setting that would ask a run other problems than those it held out."""
    name = override.partition("=")[0].strip()
    section, key, *rest = name.split(".")
    answers = len(rest) == 2 and (rest[1] in OF_ANSWERS or rest[1] not in EvalSet.model_fields)
    if name == "train.seed":
        remedy = "use --seed to sample anew"
    elif name == "data.num_eval":
        remedy = "use --num for fewer of them"
    elif name == "rollout.max_prompt_tokens" and recipe.get("data", {}).get("on_bad_row") == "skip":
        remedy = "remove it (the run's recipe skips longer prompts)"
    elif section != "data" or answers or f"data.{key}" not in config.settings():
        return
    else:
        remedy = "remove it, or use --data for problems of your own"
    raise ConfigError(
        f"{name} decides which problems a run held out: with another value it could be asked what it was "
        f"trained on; {remedy}"
    )


def validated(tree: Mapping[str, Any], name: str) -> Config:
    """The settings as a Config."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{name}: " + "; ".join(config.explain(e) for e in error.errors())) from None


def completed(cfg: Config, args: argparse.Namespace) -> Config:
    """Several samples are drawn at the sampler's own temperature where none is named, and tell of pass@k."""
    evaluation: dict[str, Any] = {}
    if cfg.eval.num_samples > 1 and "temperature" not in chosen(cfg, args):
        evaluation["temperature"] = cfg.eval.temperature or cfg.rollout.temperature
    sets = cfg.data.evals.values()
    most = max(cfg.eval.num_samples, *(one.num_samples or 1 for one in sets), 1)
    if not cfg.eval.pass_k and most > 1:
        evaluation["pass_k"] = list(powers_of_two(most))
    data: dict[str, Any] = {}
    if args.num is not None:
        own = cfg.data.num_eval
        data["num_eval"] = min(own, args.num) if own or not cfg.data.eval_path else args.num
        data["evals"] = {
            name: one.model_copy(update={"num": min(one.num or args.num, args.num)})
            for name, one in cfg.data.evals.items()
        }
    parts = {"eval": cfg.eval.model_copy(update=evaluation), "data": cfg.data.model_copy(update=data)}
    return cfg.model_copy(update=parts)


def chosen(cfg: Config, args: argparse.Namespace) -> set[str]:
    """Settings of [eval] that the command line names."""
    words = {word.partition("=")[0].strip() for word in args.words if OVERRIDE.match(word)}
    named = {name.removeprefix("eval.") for name in words if name.startswith("eval.")}
    return named | ({"temperature"} if args.temperature is not None or args.greedy else set())


def powers_of_two(most: int) -> Iterator[int]:
    """1, 2, 4, ... up to `most`."""
    k = 1
    while k <= most:
        yield k
        k *= 2


def used_tree(cfg: Config) -> dict[str, Any]:
    """The settings an evaluation read, as TOML takes them."""
    tree = cfg.model_dump(mode="json", exclude_none=True)
    return {section: {k: tree[section][k] for k in sorted(READ[section]) if k in tree[section]}
            for section in READ}  # fmt: skip
