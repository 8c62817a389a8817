"""A program in the response, and a row's inputs with their expected outputs -> whether it prints them.

The program runs in a sandbox, once per test; what it should print never goes there. Fences, comparison and
limits are written down in docs/verifiers/program_output.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.sandboxes.base import Limits, ProgramFault, Sandbox
from verigrad.verifiers.base import Outcome, Problem, Verdict, verifier
from verigrad.verifiers.code_block import Program, gold_block, last_program
from verigrad.verifiers.code_checkers import Checkers
from verigrad.verifiers.code_compare import COMPARES, longest_first, same_output
from verigrad.verifiers.code_run import (
    TIMES,
    Clock,
    OutOfTime,
    how_it_ended,
    last_words,
    limits_of,
    verdict_of,
)
from verigrad.verifiers.marked import Unreadable
from verigrad.verifiers.options import flag, number, one_of, shown, whole, with_options

MAX_TESTS = 1000
TEST_KEYS = {"stdin", "stdout"}
COMPILE_LIMITS = Limits(wall_s=60.0, cpu_s=30.0, memory_mb=1024, file_mb=32, pids=32)
COMPILER = ["g++", "-std=c++17", "-O2", "-pipe", "-o", "program", "program.cpp"]
NAME = "program_output"


@dataclass(frozen=True, slots=True)
class Tests:
    """What a row asks for."""

    cases: Sequence[tuple[str, str | None]]  # standard input, expected output
    compare: str
    tolerance: float
    language: str
    limits: Limits
    checker: str


@verifier(
    NAME,
    version="1",
    runs="sandbox",
    deadline_s=150.0,  # above max_seconds: what the model wrote is ended by its own limits
    canary={
        "response": "```python\nprint(int(input()) + 1)\n```",
        "answer": None,
        "meta": {"tests": [{"stdin": "1\n", "stdout": "2\n"}]},
    },
    gold=gold_block,
)
class ProgramOutput:
    """Right if the program, the response's last code block, prints what each test expects of its input."""

    @with_options(
        partial=flag,
        max_tests=whole(0, MAX_TESTS),
        max_seconds=number(0.1, 120),
        language=one_of("python", "cpp"),
    )
    def __init__(
        self,
        partial: bool = False,
        max_tests: int = 0,
        max_seconds: float = 90.0,
        language: str = "python",
        checkers: Mapping[str, str] | None = None,
    ) -> None:
        """`language`: of rows that name none; `checkers`: name in a row's `checker` -> trusted function."""
        self.partial, self.max_tests, self.max_seconds = partial, max_tests, max_seconds
        self.language = language
        self.checkers = Checkers(checkers, NAME)

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when the row's tests cannot be used."""
        self._tests(problem.meta)

    def verify(self, text: str, meta: Mapping[str, Any], stop_reason: str, sandbox: Sandbox) -> Verdict:
        """Judge one response; SandboxError goes through, for it says nothing of the program."""
        tests = self._tests(meta)
        try:
            program = last_program(text)
        except Unreadable as error:
            cut = ", and the response was cut off" if stop_reason == "length" else ""
            return Verdict.wrong(f"{error}{cut}", outcome="unparseable")
        clock = Clock(self.max_seconds)
        total = len(tests.cases)
        try:
            command, fault = build(program, tests.language, sandbox, clock)
        except OutOfTime as error:
            return verdict_of(0, total, partial=False, reason=f"compiling: {error}", outcome="timeout")
        if fault:
            return verdict_of(0, total, partial=False, reason=fault)
        return self._judged(tests, command, sandbox, clock)

    def _judged(self, tests: Tests, command: Sequence[str], sandbox: Sandbox, clock: Clock) -> Verdict:
        passed, total, first = 0, len(tests.cases), ""
        outcome: Outcome = "wrong"
        for place in longest_first([len(stdin) for stdin, _ in tests.cases], self.max_tests):
            try:
                reason, late = self._failed(tests, place, command, sandbox, clock)
            except OutOfTime as error:
                first = first or f"test {place + 1} of {total}: {error}"
                outcome = "timeout"
                break
            if not reason:
                passed += 1
                continue
            if not first:
                first, outcome = f"test {place + 1} of {total}: {reason}", "timeout" if late else "wrong"
            if not self.partial:
                break
        asked = min(total, self.max_tests or total)
        return verdict_of(passed, asked, partial=self.partial, reason=first, outcome=outcome)

    def _failed(
        self, tests: Tests, place: int, command: Sequence[str], sandbox: Sandbox, clock: Clock
    ) -> tuple[str, bool]:
        """Why one test fails ("" if it does not), and whether for lack of time."""
        stdin, expected = tests.cases[place]
        result = sandbox.exec(command, stdin=stdin.encode(), limits=clock.within(tests.limits))
        if not result.ok:  # and that it ended well says nothing yet
            return how_it_ended(result), result.status in TIMES
        if tests.checker:
            printed = result.stdout.decode(errors="replace")
            return self.checkers.objection(tests.checker, stdin, printed, expected), False
        assert expected is not None
        wanted = expected.encode()
        holds = same_output(result.stdout, wanted, compare=tests.compare, tolerance=tests.tolerance)
        return "" if holds else "another output", False

    def _tests(self, meta: Mapping[str, Any]) -> Tests:
        """The row's tests; ValueError in one line for what is none."""
        compare, language = meta.get("compare", "tokens"), meta.get("language", self.language)
        tolerance, checker = meta.get("tolerance"), meta.get("checker", "")
        if compare not in COMPARES:
            raise ValueError(f"{NAME}: meta.compare = {shown(compare)}; expected {', '.join(COMPARES)}")
        if language not in ("python", "cpp"):
            raise ValueError(f"{NAME}: meta.language = {shown(language)}; expected python or cpp")
        if tolerance is not None and (compare != "float" or number(1e-300, 1.0)(tolerance)):
            raise ValueError(
                f"{NAME}: meta.tolerance = {shown(tolerance)} with meta.compare = {shown(compare)}; expected "
                "a number above 0 and at most 1, with compare = 'float'"
            )
        self.checkers.known(checker)
        cases = _cases(meta.get("tests"), with_checker=bool(checker))
        return Tests(cases, compare, tolerance or 1e-6, language, limits_of(meta, NAME), checker)


def _cases(given: Any, *, with_checker: bool) -> list[tuple[str, str | None]]:
    example = '[{"stdin": text, "stdout": text}, ...]'
    if not isinstance(given, Sequence) or isinstance(given, str) or not 0 < len(given) <= MAX_TESTS:
        raise ValueError(f"{NAME}: meta.tests = {shown(given)}; expected 1 to {MAX_TESTS} tests: {example}")
    cases = []
    for place, test in enumerate(given):
        here = f"{NAME}: meta.tests[{place}] = {shown(test)}"
        if not isinstance(test, Mapping) or (unknown := set(test) - TEST_KEYS):
            extra = "" if not isinstance(test, Mapping) else f" without {shown(sorted(unknown)[0])}"
            raise ValueError(f"{here}; expected an object of stdin and stdout{extra}")
        stdin, stdout = test.get("stdin", ""), test.get("stdout")
        if not isinstance(stdin, str) or not isinstance(stdout, (str, type(None))):
            raise ValueError(f"{here}; expected text in stdin and in stdout")
        if stdout is None and not with_checker:
            raise ValueError(f"{here}; it says no stdout, so no output could be right: add it, or a checker")
        cases.append((stdin, stdout))
    return cases


def build(program: Program, language: str, sandbox: Sandbox, clock: Clock) -> tuple[list[str], str]:
    """Put the program in its sandbox: the command that runs it, and why it cannot be run, or ""."""
    if language == "python":
        sandbox.write_file("solution.py", program.source)
        return ["python3", "solution.py"], ""
    sandbox.write_file("program.cpp", program.source)
    result = sandbox.exec(COMPILER, limits=clock.within(COMPILE_LIMITS))
    if not result.ok:
        said = last_words(result.stderr) if result.status == "exited" else f": {how_it_ended(result)}"
        return [], f"does not compile{said}"
    try:
        sandbox.read_file("program", max_bytes=COMPILE_LIMITS.file_mb << 20)
    except ProgramFault:
        return [], "does not compile: it left no program"
    return ["./program"], ""
