"""`verigrad audit`: a verifier and data -> which attacks it withstands; a sandbox -> which promises hold."""

import argparse
import dataclasses
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from verigrad.engine import audit_tables, config, data, environment, sandboxing, tools
from verigrad.engine.config import ConfigError
from verigrad.engine.episode_row import setup_of
from verigrad.engine.eval import take_words_anywhere
from verigrad.engine.rows import BadRow, read_rows, short_name
from verigrad.engine.sandboxing import NoSandbox
from verigrad.engine.settings import DataConfig, SandboxConfig, VerifierConfig
from verigrad.engine.verify import parse_option
from verigrad.sandboxes import conformance
from verigrad.sandboxes.base import SandboxError, SandboxUnavailable
from verigrad.verifiers import audit_agent, audit_learned, audit_probes, registry
from verigrad.verifiers.audit import STEADY, Audited, Limits, audit
from verigrad.verifiers.audit_cases import FAMILIES, Probe
from verigrad.verifiers.audit_learned import readings
from verigrad.verifiers.audit_report import Report
from verigrad.verifiers.base import Problem

NUM_ROWS = 50
SAY_EVERY_S = 5.0
HONEST_COLUMNS = ("chosen", "completion")
EXAMPLE = """\
examples:
  verigrad audit math_answer sums.jsonl
  verigrad audit my_verifier.py:check tasks.jsonl --option strict=true --limit 200 -o audit.json
  verigrad audit math_answer gsm8k.jsonl 'data.columns={prompt="question"}' --second exact_match
  verigrad audit --sandbox bubblewrap
  verigrad audit agent_task environment:chores --limit 4

DATA is a .jsonl, .parquet or .csv file, a hub id, a maker or environment:NAME, as in recipes; settings of
[data], [verifier] and [sandbox] follow as section.key=value. What each probe does, and its limit:
docs/audit.md. A probe of your own: --probe path/to/file.py:name, or an entry point of the group
verigrad.probes.
"""


class Settings(BaseModel):
    """The sections of a recipe that an audit reads."""

    model_config = ConfigDict(extra="forbid")
    data: DataConfig = DataConfig()
    verifier: VerifierConfig = VerifierConfig()
    sandbox: SandboxConfig = SandboxConfig()


READ: Mapping[str, frozenset[str]] = {
    "data": frozenset({"split", "options", "columns", "on_bad_row"}),
    "verifier": frozenset({"num_workers", "deadline_s", "memory_mb"}),
    "sandbox": frozenset(SandboxConfig.model_fields),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad audit`."""
    parser.description = "Attack a verifier before training on it, or put a sandbox through its checks."
    parser.epilog = EXAMPLE
    parser.usage = "verigrad audit VERIFIER DATA [options] [section.key=value ...] | --sandbox NAME"
    add = parser.add_argument
    add("words", nargs="*", metavar="VERIFIER DATA", help="who is attacked, and rows with known answers")
    add("--sandbox", metavar="NAME", help="check this sandbox's promises instead: a name, or auto")
    add("--option", action="append", default=[], metavar="KEY=VALUE",
        help="an option of the verifier; repeatable")  # fmt: skip
    add("--limit", type=int, default=NUM_ROWS, metavar="N",
        help=f"rows, drawn by the seed (default: {NUM_ROWS})")  # fmt: skip
    add("--second", metavar="VERIFIER", help="another verifier: on which cases do the two disagree?")
    add(
        "--second-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of it; repeatable",
    )
    add("--probe", action="append", default=[], metavar="FILE.py:NAME", help="one more probe; repeatable")
    add(
        "--only",
        action="append",
        default=[],
        metavar="PROBE",
        help="this probe or check alone; repeatable",
    )
    add("--allow", action="append", default=[], metavar="PROBE=SHARE",
        help="share of a probe's cases that may come out otherwise, e.g. gold=0.05; repeatable")  # fmt: skip
    add("--max-p50-s", type=float, default=1.0, metavar="S", help="limit of the median check (default: 1)")
    add("--max-p99-s", type=float, metavar="S", help="limit of the slowest 1%% (default: half the deadline)")
    add("--family", choices=FAMILIES, help="which rewritings change nothing (default: told from the answers)")
    add("--seed", type=int, default=0, help="of the rows, and for verifiers that draw (default: 0)")
    add("--json", action="store_true", help="JSON on standard output")
    add("-o", "--output", metavar="FILE", help="write the JSON there as well")
    take_words_anywhere(parser)


def run(args: argparse.Namespace) -> int:
    """Audit; 0 if everything holds, 1 if a probe or promise does not, 2 if the input is wrong."""
    overrides = [word for word in args.words if "=" in word and not Path(word).exists()]
    words = [word for word in args.words if word not in overrides]
    if args.sandbox is not None:
        if words:
            raise ConfigError(f"--sandbox takes no VERIFIER and DATA; remove {' '.join(words)}")
        return _sandbox(args, settings_of(overrides, path=""))
    if len(words) != 2:
        raise ConfigError(
            f"found {len(words)} words; expected VERIFIER and DATA, or --sandbox NAME: verigrad audit --help"
        )
    name, path = words
    settings = settings_of(overrides, path=path)
    report = _audit(args, name, settings)
    _write(args, report.to_json())
    if not args.json:
        audit_tables.show(report, data=short_name(path))
    return 1 if report.failed else 0


def settings_of(overrides: Sequence[str], *, path: str) -> Settings:
    """`section.key=value` words, checked; ConfigError for one that an audit does not read."""
    tree: dict[str, Any] = {}
    for override in overrides:
        config.apply_override(tree, override)
    for section, values in tree.items():
        unread = [key for key in values if key not in READ.get(section, ())]
        if unread and f"{section}.{unread[0]}" in config.settings():
            raise ConfigError(f"{section}.{unread[0]} has no effect on `verigrad audit`; remove it")
    settled = environment.settle(
        {**tree, "data": {**tree.get("data", {}), "path": path}},
        reads=lambda section, key: key in READ.get(section, ()),
    )
    tree |= {section: values for section, values in settled.items() if section != "data"}
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("; ".join(config.explain(each) for each in error.errors())) from None
    return settings.model_copy(update={"data": settings.data.model_copy(update={"path": path})})


def _audit(args: argparse.Namespace, name: str, settings: Settings) -> Report:
    """The verifier's report; every wrong word is told before anything is judged."""
    if args.limit < 1:
        raise ConfigError(f"--limit {args.limit}: expected at least 1 row")
    try:
        probes = _probes(args)
        audited = _audited(name, args.option, settings, seed=args.seed)
        second = _audited(args.second, args.second_option, settings, seed=args.seed) if args.second else None
        limits = Limits(_allowed(args.allow, probes), args.max_p50_s, args.max_p99_s)
        loaded = registry.load(name, audited.options)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.second_option and not args.second:
        raise ConfigError("--second-option needs --second VERIFIER")
    told = Progress()
    if loaded.policy.services:
        told.say(f"starting what {name} asks, and attacking it: this may take minutes")
    rows = with_honest_answers(settings.data, seed=args.seed) if readings(loaded) else settings.data
    problems: list[Problem] = data.sample(rows, seed=args.seed, num=args.limit)
    # What it raises on rows that were broken on purpose is in the table.
    logging.getLogger("verigrad.verifiers").setLevel(logging.ERROR)
    if (of := environment.named(settings.data.path)) is not None:
        _require_episodes(of, problems)
    try:
        report = audit(
            audited,
            problems,
            probes=probes,
            only=args.only,
            limits=limits,
            second=second,
            family=args.family,
            tell=told,
        )
    except SandboxUnavailable as error:
        raise NoSandbox(f"verifier {name!r} runs what it judges in a sandbox, and {error}") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    done = [result.name for result in report.results]
    for only in args.only:
        if only not in done:
            raise ConfigError(
                f"--only {only}: no probe of {name!r} on these rows; there are others: see docs/audit.md"
            )
    return report


def with_honest_answers(cfg: DataConfig, *, seed: int) -> DataConfig:
    """Rows of preferences or of written answers as problems: what is good there stands as the answer.

    A learned reward is compared with an honest answer, and such rows need no column `answer`.
    """
    rows = read_rows(cfg.path, split=cfg.split, seed=seed, options=cfg.options)
    try:
        names = set(rows.row(0)) if len(rows) else set()
    except BadRow:  # whoever reads the problems says so
        return cfg
    honest = next((name for name in HONEST_COLUMNS if name in names), None)
    if (
        honest is None
        or "answer" in cfg.columns
        or names & {*data.ANSWER_COLUMNS, *data.CHECK_COLUMNS, "meta"}
    ):
        return cfg
    return cfg.model_copy(update={"columns": {**cfg.columns, "answer": honest}})


class Progress:
    """What an audit is doing, on the error output: a line every few seconds, none where it is quick."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SAY_EVERY_S

    def __call__(self, text: str) -> None:
        """Say it, if the last line was long enough ago."""
        if time.monotonic() >= self._next:
            self.say(text)

    def say(self, text: str) -> None:
        """Say it now."""
        print(f"audit: {text}", file=sys.stderr, flush=True)
        self._next = time.monotonic() + SAY_EVERY_S


def _require_episodes(name: str, problems: Sequence[Problem]) -> None:
    """ConfigError when the environment's tools or its rows' setup are such that no episode could start."""
    known = tools.load(environment.load(name).tools)
    for problem in problems:
        try:
            setup_of(problem, known)
        except ValueError as error:
            raise ConfigError(f"environment {name!r}: problem {problem.id!r}: {error}") from error


def _audited(name: str, options: Sequence[str], settings: Settings, *, seed: int) -> Audited:
    """A verifier as it is run here."""
    limits = settings.verifier
    return Audited(
        verifier=name,
        options=dict(parse_option(text) for text in options),
        num_workers=limits.num_workers,
        deadline_s=limits.deadline_s,
        memory_mb=limits.memory_mb,
        seed=seed,
        sandbox=sandboxing.settings_of(settings.sandbox),
    )


def _probes(args: argparse.Namespace) -> list[Probe]:
    """Built-in, installed and named probes; ValueError where `--only` names none of them."""
    probes = [*audit_probes.PROBES, *audit_probes.installed(), *map(audit_probes.load, args.probe)]
    names = [probe.name for probe in probes]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"two probes are called {twice!r}; rename yours")
    known = (*names, *audit_agent.NAMES, *audit_learned.SAYS, "runs text", *STEADY)
    for name in args.only:
        if name not in known:
            raise ValueError(f"--only {name}: no such probe; there are: {', '.join(known)}")
    return probes


def _allowed(given: Sequence[str], probes: Sequence[Probe]) -> dict[str, float]:
    """`PROBE=SHARE` words; ValueError for one that is none."""
    known = [*(probe.name for probe in probes), *audit_agent.NAMES, "second verifier"]
    shares: dict[str, float] = {}
    for text in given:
        name, _, share = text.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            raise ValueError(f"--allow {text}: expected PROBE=SHARE, e.g. --allow gold=0.05") from None
        if name not in known:
            raise ValueError(f"--allow {text}: no such probe; there are: {', '.join(known)}")
        if not 0 <= shares[name] <= 1:
            raise ValueError(f"--allow {text}: expected a share from 0 to 1")
    return shares


def _sandbox(args: argparse.Namespace, settings: Settings) -> int:
    """Put a sandbox through the conformance suite."""
    if "backend" in settings.sandbox.model_fields_set:
        raise ConfigError("sandbox.backend and --sandbox both name a sandbox; remove one")
    wanted = settings.sandbox.model_copy(update={"backend": args.sandbox})
    spec = sandboxing.chosen(wanted).spec
    if not args.json and not args.only:
        print(f"{spec.backend}: the checks use real limits and take about a minute", file=sys.stderr)
    try:
        results = conformance.run(spec, args.only or None)
    except ValueError as error:
        raise ConfigError(f"--only: {error}") from error
    except SandboxError as error:
        raise NoSandbox(f"no sandbox of kind {spec.backend!r} came up: {error}") from error
    broken = [result for result in results if audit_tables.is_broken(result)]
    rows = [dataclasses.asdict(result) for result in results]
    _write(args, {"sandbox": spec.backend, "passed": not broken, "checks": rows})
    if not args.json:
        audit_tables.show_checks(spec.backend, rows, num_broken=len(broken))
    return 1 if broken else 0


def _write(args: argparse.Namespace, result: Mapping[str, Any]) -> None:
    text = json.dumps(result, indent=1, default=str)
    if args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        Path(args.output).write_text(text + "\n", encoding="utf-8")
    if args.json:
        sys.stdout.write(text + "\n")
