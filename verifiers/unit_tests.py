"""A program in the response, and a row's calls or test source -> whether every test passes.

The program runs in a sandbox; what its functions return is compared outside it. Which tests are made of calls
and which run in a process of their own is written down in docs/verifiers/unit_tests.md.
"""

import ast
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.sandboxes.base import Limits, Sandbox
from verigrad.verifiers.base import Outcome, Problem, Verdict, verifier
from verigrad.verifiers.code_block import gold_block, last_program
from verigrad.verifiers.code_checkers import Checkers
from verigrad.verifiers.code_compare import longest_first, same_value
from verigrad.verifiers.code_expression import EXCEPTIONS, Call, NotLiftable, Result
from verigrad.verifiers.code_harness import call_all
from verigrad.verifiers.code_holds import Failed
from verigrad.verifiers.code_lift import Lifted, can_fail, lift, required_tests, with_check
from verigrad.verifiers.code_relay import BrokenTests, run_apart
from verigrad.verifiers.code_run import Clock, OutOfTime, limits_of, verdict_of
from verigrad.verifiers.code_view import NotPlain, encode
from verigrad.verifiers.marked import Unreadable
from verigrad.verifiers.options import flag, number, shown, whole, with_options

NAME = "unit_tests"
MAX_TESTS = 1000
MAX_TEST_CODE = 200_000  # characters
CASE_KEYS = ("args", "args_literal", "kwargs", "expected", "expected_literal", "expected_error")
ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\(\))?(\.[A-Za-z_]\w*)?")
APART = "; the tests ran in a process of their own"


@dataclass(frozen=True, slots=True)
class Case:
    """One call and what it must come to."""

    call: Call
    expected: Any
    error: str  # the exception it must raise; "" where it must return


@dataclass(frozen=True, slots=True)
class Tests:
    """What a row asks for: cases, or test source, lifted where that can be done."""

    cases: Sequence[Case]
    source: str
    lifted: Lifted | None
    entry_point: str
    tolerance: float | None
    limits: Limits
    checker: str


@verifier(
    NAME,
    version="1",
    runs="sandbox",
    deadline_s=150.0,  # above max_seconds: what the model wrote is ended by its own limits
    canary={
        "response": "```python\ndef f(x):\n    return x + 1\n```",
        "answer": None,
        "meta": {"entry_point": "f", "cases": [{"args": [1], "expected": 2}]},
    },
    gold=gold_block,
)
class UnitTests:
    """Right if the program, the response's last code block, passes every test of the row."""

    @with_options(
        partial=flag, max_tests=whole(0, MAX_TESTS), max_seconds=number(0.1, 120), lift_asserts=flag
    )
    def __init__(
        self,
        partial: bool = False,
        max_tests: int = 0,
        max_seconds: float = 90.0,
        lift_asserts: bool = True,
        checkers: Mapping[str, str] | None = None,
    ) -> None:
        """`checkers`: name in a row's `checker` -> trusted function (call, found, expected) -> bool."""
        self.partial, self.max_tests, self.max_seconds = partial, max_tests, max_seconds
        self.lift_asserts = lift_asserts
        self.checkers = Checkers(checkers, NAME)

    def check_row(self, problem: Problem) -> None:
        """Raise ValueError when the row's tests cannot be used."""
        self._tests(problem.meta)

    def verify(self, text: str, meta: Mapping[str, Any], stop_reason: str, sandbox: Sandbox) -> Verdict:
        """Judge one response; SandboxError goes through, for it says nothing of the program."""
        tests = self._tests(meta)
        try:
            program = last_program(text).source
        except Unreadable as error:
            cut = ", and the response was cut off" if stop_reason == "length" else ""
            return Verdict.wrong(f"{error}{cut}", outcome="unparseable")
        clock = Clock(self.max_seconds)
        if tests.cases:
            return self._cases_judged(tests, program, sandbox, clock)
        if tests.lifted is not None:
            return self._lifted_judged(tests, tests.lifted, program, sandbox, clock)
        return self._judged_apart(tests, program, sandbox, clock)

    def _cases_judged(self, tests: Tests, program: bytes, sandbox: Sandbox, clock: Clock) -> Verdict:
        sizes = [len(repr((case.call.args, case.call.kwargs))) for case in tests.cases]
        places = longest_first(sizes, self.max_tests)
        calls = [tests.cases[place].call for place in places]
        results, late = call_all(calls, program, sandbox=sandbox, limits=clock.within(tests.limits))
        failures = [
            (f"case {place + 1} of {len(tests.cases)}: {why}", result)
            for place, result in zip(places, results, strict=True)
            if (why := self._failed(tests, tests.cases[place], result))
        ]
        return self._verdict(len(places), failures, late=late)

    def _failed(self, tests: Tests, case: Case, result: Result) -> str:
        """Why a case fails, "" if it does not."""
        try:
            if case.error:
                raises = result.raised_one_of(case.error)
                return "" if raises else result.failed or "returned where it should raise"
            found = result.get()
        except Failed as failed:
            return str(failed)
        if tests.checker:
            asked = {"args": list(case.call.args), "kwargs": dict(case.call.kwargs)}
            return self.checkers.objection(tests.checker, asked, found, case.expected)
        holds = same_value(found, case.expected, tolerance=tests.tolerance)
        return "" if holds else "returned another value"

    def _lifted_judged(
        self, tests: Tests, lifted: Lifted, program: bytes, sandbox: Sandbox, clock: Clock
    ) -> Verdict:
        results, late = call_all(lifted.calls, program, sandbox=sandbox, limits=clock.within(tests.limits))
        missing = next((result for result in results if result.missing), Result())
        failures = [
            (f"test {place} of {len(lifted.tests)}: {why}", missing if why == missing.failed else Result())
            for place, test in enumerate(lifted.tests, start=1)
            if (why := test.passes(results))
        ]
        return self._verdict(len(lifted.tests), failures, late=late)

    def _verdict(self, total: int, failures: Sequence[tuple[str, Result]], *, late: bool) -> Verdict:
        """`late`: the process ran out of time; that counts if the first failure is a missing answer."""
        reason, result = failures[0] if failures else ("", Result())
        outcome: Outcome = "timeout" if late and result.missing else "wrong"
        return verdict_of(total - len(failures), total, partial=self.partial, reason=reason, outcome=outcome)

    def _judged_apart(self, tests: Tests, program: bytes, sandbox: Sandbox, clock: Clock) -> Verdict:
        try:
            report = run_apart(
                tests.source,
                program,
                entry_point=tests.entry_point,
                sandbox=sandbox,
                limits=tests.limits,
                clock=clock,
            )
        except BrokenTests as error:
            return Verdict.undecided(str(error))
        except OutOfTime as error:
            return Verdict.undecided(f"no time was left to start the tests: {error}")
        passed, total, first = report.share(required_tests(tests.source))
        why = f": {report.ended}" if report.ended else " did not pass"
        reason = f"test {first} of {total}{why}{APART}"  # no names: those of parametrized tests tell values
        outcome: Outcome = "timeout" if report.late else "wrong"
        return verdict_of(passed, total, partial=self.partial, reason=reason, outcome=outcome)

    def _tests(self, meta: Mapping[str, Any]) -> Tests:
        """The row's tests; ValueError in one line for what is none."""
        entry_point, tolerance = meta.get("entry_point", ""), meta.get("tolerance")
        checker, source = meta.get("checker", ""), meta.get("test_code")
        if not isinstance(entry_point, str) or (entry_point and not ENTRY_POINT.fullmatch(entry_point)):
            raise ValueError(
                f"{NAME}: meta.entry_point = {shown(entry_point)}; expected a function's name "
                "or Class().method"
            )
        if tolerance is not None and number(1e-300, 1.0)(tolerance):
            raise ValueError(
                f"{NAME}: meta.tolerance = {shown(tolerance)}; expected a number above 0 and at most 1"
            )
        self.checkers.known(checker)
        given = meta.get("cases")
        if (given is None) == (source is None):
            both = "both" if given is not None else "neither"
            why = "" if given is not None else ", for without tests no program can be right"
            raise ValueError(
                f"{NAME}: the row has {both} of meta.cases and meta.test_code; expected one of them{why}"
            )
        limits = limits_of(meta, NAME)
        if source is None:
            cases = _cases(given, entry_point, with_checker=bool(checker))
            return Tests(cases, "", None, entry_point, tolerance, limits, checker)
        if checker or tolerance is not None:
            raise ValueError(
                f"{NAME}: meta.checker and meta.tolerance have no effect with meta.test_code; remove them"
            )
        source = _test_code(source, entry_point)
        lifted = _lifted(source, entry_point) if self.lift_asserts else None
        return Tests((), source, lifted, entry_point, None, limits, "")


@functools.lru_cache(maxsize=256)  # a group's attempts share a row, which is looked at for each
def _lifted(source: str, entry_point: str) -> Lifted | None:
    try:
        return lift(source, entry_point)
    except NotLiftable:
        return None


def _test_code(source: Any, entry_point: str) -> str:
    if not isinstance(source, str) or len(source) > MAX_TEST_CODE:
        raise ValueError(
            f"{NAME}: meta.test_code = {shown(source)}; expected Python source of at most "
            f"{MAX_TEST_CODE} characters"
        )
    try:
        complete = with_check(source, entry_point)
        names = required_tests(complete)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise ValueError(
            f"{NAME}: meta.test_code is no Python ({error.args[0]}{where}); correct it"
        ) from error
    if not names:
        raise ValueError(
            f"{NAME}: meta.test_code has no test in it; expected asserts at its top, "
            "or functions named test_..."
        )
    if not can_fail(complete):
        raise ValueError(
            f"{NAME}: meta.test_code asserts nothing, so that every program would pass; expected asserts"
        )
    return complete


def _cases(given: Any, entry_point: str, *, with_checker: bool) -> list[Case]:
    example = '[{"args": [...], "expected": ...}, ...]'
    if not isinstance(given, Sequence) or isinstance(given, str) or not 0 < len(given) <= MAX_TESTS:
        raise ValueError(f"{NAME}: meta.cases = {shown(given)}; expected 1 to {MAX_TESTS} cases: {example}")
    if not entry_point:
        raise ValueError(f"{NAME}: meta.cases without meta.entry_point; name the function that they call")
    return [_case(case, place, entry_point, with_checker=with_checker) for place, case in enumerate(given)]


def _case(case: Any, place: int, entry_point: str, *, with_checker: bool) -> Case:
    here = f"{NAME}: meta.cases[{place}] = {shown(case)}"
    if not isinstance(case, Mapping) or set(case) - set(CASE_KEYS):
        raise ValueError(f"{here}; expected an object with some of {', '.join(CASE_KEYS)}")
    args = _either(case, "args", here, [])
    kwargs = case.get("kwargs") or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, Mapping):
        raise ValueError(f"{here}; expected a list of args and an object of kwargs")
    error = case.get("expected_error", "")
    says = [key for key in ("expected", "expected_literal", "expected_error") if key in case]
    if len(says) > 1 or (not says and not with_checker):
        raise ValueError(f"{here}; expected one of expected, expected_literal and expected_error")
    if error and error not in EXCEPTIONS:
        raise ValueError(f"{here}; expected_error is a built-in exception such as 'ValueError'")
    expected = _either(case, "expected", here, None)
    try:
        encode([list(args), dict(kwargs), expected])
    except NotPlain as fault:
        raise ValueError(f"{here}; it holds {fault}") from fault
    return Case(Call(entry_point, tuple(args), dict(kwargs)), expected, error)


def _either(case: Mapping[str, Any], key: str, here: str, default: Any) -> Any:
    """`key` as JSON has it, or `key_literal`, a Python literal: tuples, sets, keys that are no text."""
    if f"{key}_literal" not in case:
        return case.get(key, default)
    if key in case:
        raise ValueError(f"{here}; expected {key} or {key}_literal, not both")
    try:
        return ast.literal_eval(case[f"{key}_literal"])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{here}; {key}_literal is text that holds a Python literal") from None
