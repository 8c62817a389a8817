"""A file of recorded responses -> one verdict per line, in the same order. No model, no torch."""

import argparse
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from verigrad.engine.failures import WorkError
from verigrad.sandboxes.base import SandboxError
from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.service_keeper import ServiceUnavailable

EXAMPLE = """\
example:
  verigrad verify math_answer cases.jsonl -o verdicts.jsonl
  verigrad verify my_verifier.py:even_number cases.jsonl --option strict=true
  verigrad verify unit_tests cases.jsonl --sandbox bubblewrap
  verigrad verify unit_tests cases.jsonl --sandbox-option runtime=runsc

--sandbox NAME is what a recipe calls sandbox.backend, --sandbox-option KEY=VALUE its sandbox.KEY.

Each line of CASES is {"response": text, "answer": any, "prompt"?: text or messages, "meta"?: {...}}; each
line of the output is {"index", "reward", "outcome", "parts", "reason", "seconds"}. reward is null where the
check itself failed.

Exit status 0: every case was decided. 1: some check failed, or what the verifier needs (its reward model, its
judge, its sandbox) does not start or cannot be reached. 2: the cases, the verifier or its options are wrong.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad verify`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Score a file of responses with a verifier; one verdict per row, in the same order."
    parser.epilog = EXAMPLE
    parser.add_argument(
        "verifier", metavar="VERIFIER", help="a name, path/file.py:name or package.module:name"
    )
    parser.add_argument("cases", metavar="CASES.jsonl", help="the responses to score; - reads standard input")
    parser.add_argument("-o", "--output", metavar="OUT", help="where the verdicts go (default: stdout)")
    parser.add_argument(
        "--num-workers", type=int, default=2, metavar="N", help="worker processes (default: 2)"
    )
    parser.add_argument(
        "--deadline-s", type=float, metavar="S", help="seconds per check (default: the verifier's)"
    )
    parser.add_argument("--seed", type=int, default=0, help="for verifiers that draw (default: 0)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the verifier; repeatable",
    )
    parser.add_argument(
        "--sandbox",
        metavar="NAME",
        help="where a verifier runs what it judges: container, bubblewrap, ... (default: the strongest here)",
    )
    parser.add_argument(
        "--sandbox-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the sandbox, as in a recipe's [sandbox]; repeatable",
    )
    parser.add_argument("--json", action="store_true", help="write the summary to stderr as one JSON object")


def run(args: argparse.Namespace) -> int:
    """Score the file; 0 if every case was decided, 1 if some check failed, 2 if the input is wrong.

    WorkError, which is 1, where the verifier's service (a learned reward, a judge) or sandbox does not start.
    """
    try:
        options = dict(parse_option(text) for text in args.option)
        # Everything is read before anything is scored: a bad last line must not cost an hour of work.
        cases = read_cases(args.cases)
        sandbox = sandbox_of(args.verifier, options, args.sandbox, args.sandbox_option)
        pool = VerifierPool(
            args.verifier,
            options=options,
            num_workers=args.num_workers,
            deadline_s=args.deadline_s,
            seed=args.seed,
            sandbox=sandbox,
        )
    except (ServiceUnavailable, SandboxError) as error:
        raise WorkError(str(error)) from error
    except (ValueError, OSError) as error:
        print(f"verigrad: {error}", file=sys.stderr)
        return 2
    with pool:
        try:
            for number, (problem, _) in enumerate(cases, start=1):
                _check_case(pool, problem, source_name(args.cases), number)
        except ValueError as error:
            print(f"verigrad: {error}", file=sys.stderr)
            return 2
        with _output(args.output) as out:
            verdicts = []
            for index, verdict in enumerate(judged(pool, cases)):
                verdicts.append(verdict)
                out.write(json.dumps(row(index, verdict)) + "\n")
        stats = pool.stats()
    summary: dict[str, int] = {"cases": len(verdicts)}
    summary |= Counter(str(verdict.outcome) for verdict in verdicts)
    _report(summary, stats, verdicts, as_json=args.json)
    return 1 if summary.get("error") else 0


def sandbox_of(
    verifier: str, options: Mapping[str, Any], name: str | None, given: Sequence[str]
) -> SandboxSettings | None:
    """The sandbox that a verifier gets, said on stderr; None for a verifier that runs nothing.

    ValueError (ConfigError) for settings that are wrong or would have no effect, NoSandbox when none works.
    """
    if registry.load(verifier, options).policy.runs != "sandbox":
        if name is not None or given:
            word = "--sandbox" if name is not None else "--sandbox-option"
            raise ValueError(f"{word} has no effect: {verifier} runs nothing in a sandbox; leave it out")
        return None
    from verigrad.engine import sandboxing  # only here: it reads the settings of recipes

    settings = sandboxing.chosen(sandboxing.config_of(name, dict(map(sandbox_option, given))))
    print(f"verigrad: sandbox: {settings.spec.backend}", file=sys.stderr)
    return settings


def judged(pool: VerifierPool, cases: Sequence[tuple[Problem, Attempt]]) -> Iterator[Verdict]:
    """The cases' verdicts in order, each as soon as it and those before it are there."""
    futures = [pool.submit(problem, [attempt]) for problem, attempt in cases]
    for future in futures:
        yield from future.result()


def row(index: int, verdict: Verdict) -> dict[str, Any]:
    """A verdict as a line of the output file."""
    return {
        "index": index,
        "reward": verdict.reward,
        "outcome": verdict.outcome,
        "parts": dict(verdict.parts),
        "reason": verdict.reason,
        "seconds": round(verdict.seconds, 6),
    }


def read_cases(path: str) -> list[tuple[Problem, Attempt]]:
    """The cases of a JSONL file; ValueError with file and line number for one that is none."""
    name = source_name(path)
    try:
        text = sys.stdin.read() if path == "-" else Path(path).expanduser().read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"no file {path} (looked from {Path.cwd()}); correct the path") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 ({error.reason} at byte {error.start}); convert it") from None
    cases: list[tuple[Problem, Attempt]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            cases.append(_case(line, f"{name} line {number}", len(cases)))
    if not cases:
        raise ValueError(f"{name} holds no cases; expected one JSON object per line")
    return cases


def source_name(path: str) -> str:
    """What errors call the file of cases."""
    return "standard input" if path == "-" else Path(path).name


def _case(line: str, where: str, index: int) -> tuple[Problem, Attempt]:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        if index == 0 and line.lstrip().startswith("["):
            raise ValueError(f"{where}: looks like one JSON array; write one object per line") from None
        reason = f"{error.msg} at column {error.colno}"
        raise ValueError(f"{where}: is not JSON ({reason}); expected one object per line") from None
    if not isinstance(fields, dict):
        raise ValueError(
            f"{where}: found {type(fields).__name__}; expected an object with 'response' and 'answer'"
        )
    if not isinstance(fields.get("response"), str):
        names = ", ".join(map(repr, fields)) or "nothing"
        found = f"response = {fields['response']!r}" if "response" in fields else f"no 'response' in {names}"
        raise ValueError(f"{where}: {found[:80]}; expected the model's text as a string")
    if unknown := set(fields) - {"prompt", "response", "answer", "meta", "id", "truncated"}:
        raise ValueError(f"{where}: unknown field {sorted(unknown)[0]!r}; put other columns under 'meta'")
    if not isinstance(fields.get("meta", {}), dict):
        raise ValueError(f"{where}: meta is {type(fields['meta']).__name__}; expected an object")
    problem = Problem(
        id=str(fields.get("id", index)),
        prompt=fields.get("prompt", ""),
        answer=fields.get("answer"),
        meta=fields.get("meta", {}),
    )
    return problem, Attempt(fields["response"], truncated=bool(fields.get("truncated", False)))


def sandbox_option(text: str) -> tuple[str, Any]:
    """`key=value` of the sandbox."""
    return parse_option(text, of="--sandbox-option", example="memory_mb=512")


def parse_option(text: str, *, of: str = "--option", example: str = "casefold=true") -> tuple[str, Any]:
    """`key=value`, the value read as JSON where it is JSON and as text otherwise."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"{of} {text}: expected key=value, e.g. {of} {example}")
    try:
        return key.strip(), json.loads(value)
    except ValueError:
        return key.strip(), value


def _check_case(pool: VerifierPool, problem: Problem, name: str, number: int) -> None:
    try:
        pool.verifier.check_row(problem)
    except ValueError as error:
        raise ValueError(f"{name} case {number}: {error}") from None


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        yield file


def _report(
    summary: Mapping[str, int], stats: Mapping[str, Any], verdicts: Sequence[Verdict], *, as_json: bool
) -> None:
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    mean = sum(rewards) / len(rewards) if rewards else None
    if as_json:
        print(json.dumps({**summary, "reward": mean, "p99_s": stats["p99_s"]}), file=sys.stderr)
        return
    table = Table(box=None)
    for name in ("outcome", "cases"):
        table.add_column(name, justify="left" if name == "outcome" else "right")
    for outcome, count in summary.items():
        if outcome != "cases":
            table.add_row(outcome, str(count))
    console = Console(stderr=True)
    console.print(table)
    shown = "none decided" if mean is None else f"mean reward {mean:.4f} of {len(rewards)} decided"
    seconds, slowest = stats["slowest"]
    console.print(f"{shown}; slowest {seconds:.3f} s", highlight=False)
    if seconds > 1:
        console.print(f"slowest: {slowest}", highlight=False, markup=False)
