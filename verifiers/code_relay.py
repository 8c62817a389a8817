"""A row's tests and a program, each in a sandbox of its own -> which tests passed.

The judge carries the messages. Neither side sees the other's files or processes. What the program returns
reaches the tests as plain data; what the tests expect never reaches the program.
"""

import ast
import builtins
import json
import secrets
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from verigrad.sandboxes.base import Limits, Process, Sandbox
from verigrad.verifiers.code_harness import CANDIDATE, HARNESS, PROGRAM, TESTER, failed_to_load
from verigrad.verifiers.code_lift import LINE, required_tests
from verigrad.verifiers.code_run import TIMES, Clock, OutOfTime, how_it_ended
from verigrad.verifiers.code_view import line

TESTER_LIMITS = Limits(wall_s=120.0, cpu_s=120.0, memory_mb=1024, output_bytes=64 << 20)
MAX_LINE = 8 << 20  # bytes of one message
POLL_S = 5.0
GONE = "gone"  # the program's side ended, or says what nobody asked


class BrokenTests(Exception):
    """The tests cannot be run here, whatever the program is."""


@dataclass(slots=True)
class Report:
    """What the test process said, and why it said no more."""

    passed: dict[str, bool] = field(default_factory=dict)  # by test, in the order they ran
    collected: list[str] | None = None
    ended: str = ""  # why the program's side ended early; "" where it did not
    late: bool = False  # and whether for lack of time

    def share(self, required: Sequence[str]) -> tuple[int, int, int]:
        """Tests passed, tests there are, and the number of the first that did not pass (0 for none).

        Each that was required or collected counts; one that is not reported did not pass.
        """
        wanted = list(dict.fromkeys(self.collected or ()))
        covered = {base_name(test) for test in wanted}
        wanted += [name for name in required if name not in covered]
        missed = [place for place, name in enumerate(wanted, start=1) if not self.passed.get(name, False)]
        return len(wanted) - len(missed), len(wanted), missed[0] if missed else 0


def base_name(test: str) -> str:
    """`file.py::TestClass::test_it[3]` as test_names has it: `TestClass.test_it`."""
    return test.partition("::")[2].partition("[")[0].replace("::", ".")


def order_of(source: str, entry_point: str, token: str) -> dict[str, Any]:
    """What the test process is told before it meets the program."""
    tree = ast.parse(source)
    imports = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports.add(node.module)
    names = required_tests(source)
    with_pytest = not names[0].startswith(LINE)
    named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    mentioned = {name for name in named if not name.startswith("__")}
    return {
        "token": token,
        "source": source,
        "lines": [] if with_pytest else [int(name.removeprefix(LINE)) for name in names],
        "imports": sorted(imports - {"solution"} | ({"pytest"} if with_pytest else set())),
        # The program must not put its own `all` or `len` in the place of the tests'.
        "mentioned": sorted(mentioned - (set(dir(builtins)) - {entry_point})),
    }


class Line:
    """A process that speaks in lines."""

    def __init__(self, process: Process, clock: Clock) -> None:
        self.process, self.clock = process, clock
        self._buffer = b""

    def send(self, message: Any) -> None:
        """One line to it."""
        self.process.send(line(message))

    def read(self) -> bytes | None:
        """The next line; None when it has ended, or says too much at once. OutOfTime when time is up."""
        while b"\n" not in self._buffer:
            try:
                said = self.process.receive(timeout_s=min(POLL_S, self.clock.left()))
            except TimeoutError:
                continue
            if not said or len(self._buffer) + len(said) > MAX_LINE:
                return None
            self._buffer += said
        first, _, self._buffer = self._buffer.partition(b"\n")
        return first


def run_apart(
    source: str, program: bytes, *, entry_point: str, sandbox: Sandbox, limits: Limits, clock: Clock
) -> Report:
    """Run the tests in a sandbox beside the program's.

    Raises BrokenTests when the tests cannot be run at all, SandboxError when a sandbox failed.
    """
    if sandbox.sibling is None:
        raise BrokenTests("these tests need a second sandbox, and this one was made without a pool")
    other = sandbox.sibling()
    other.write_file("harness.py", TESTER)
    token = secrets.token_hex(16)
    tester = other.start(["python3", "harness.py"], limits=TESTER_LIMITS)
    report = Report()
    try:
        says = Line(tester, clock)
        says.send(order_of(source, entry_point, token))
        _ready(says, token)
        sandbox.write_file(PROGRAM, program)
        sandbox.write_file("harness.py", CANDIDATE)
        candidate = sandbox.start(HARNESS, limits=clock.within(limits))
        try:
            _carry(says, Line(candidate, clock), token, report)
        except OutOfTime as error:
            report.ended, report.late = str(error), True
        finally:
            ended = candidate.kill()
        if report.ended == GONE:
            report.late = ended.status in TIMES
            report.ended = "did not answer" if ended.signal == signal.SIGKILL else how_it_ended(ended)
    finally:
        tester.kill()
    return report


def _ready(says: Line, token: str) -> None:
    """Wait until the test process has all it needs; nothing of the program has reached it so far."""
    try:
        said = _message(says.read(), token)
    except OutOfTime as error:
        raise BrokenTests("the test process did not start in time") from error
    if said and "lacks" in said:
        raise BrokenTests(f"the tests import {said['lacks']!r}, which the sandbox does not have")
    if not said or "ready" not in said:
        raise BrokenTests("the test process did not start")


def _carry(says: Line, program: Line, token: str, report: Report) -> None:
    """Carry requests and answers until the tests are done or one side has ended."""
    greeting = _loads(program.read())
    if not isinstance(greeting, dict) or not isinstance(greeting.get("names"), list):
        report.ended = failed_to_load(greeting) if isinstance(greeting, dict) else GONE
        return
    says.send(
        {"names": [name for name in greeting["names"] if isinstance(name, str) and name.isidentifier()]}
    )
    while True:
        said = _message(says.read(), token)
        if said is None:
            report.ended = "the tests ended before they were done with it"
            return
        if "done" in said:
            return
        if "cannot" in said:
            raise BrokenTests(str(said["cannot"]))
        if "collected" in said:
            report.collected = list(said["collected"])
        elif "report" in said:
            report.passed[said["report"]] = said["passed"] is True
        elif "ask" in said:
            program.send(said["ask"])
            reply = _loads(program.read())
            if not _is_reply(reply):
                report.ended = GONE
                return
            try:
                says.send(reply)
            except RecursionError:  # just shallow enough to be read, and too deep to be written
                report.ended = GONE
                return


def _is_reply(reply: Any) -> bool:
    """Whether the program's side answered in the form that the test process can take."""
    if not isinstance(reply, dict):
        return False
    raised = reply.get("raised")
    if raised is not None:
        return (
            isinstance(raised, dict)
            and isinstance(raised.get("classes"), list)
            and bool(raised["classes"])
            and all(isinstance(name, str) and name.isidentifier() for name in raised["classes"])
            and isinstance(raised.get("says"), str)
            and isinstance(raised.get("handled"), bool)
        )
    return "value" in reply


def _loads(text: bytes | None) -> Any:
    """JSON that nobody trusts; None for what is none."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _message(text: bytes | None, token: str) -> dict[str, Any] | None:
    """A message of the test process, its token checked."""
    said = _loads(text)
    if not isinstance(said, dict) or not secrets.compare_digest(str(said.get("token")), token):
        return None
    return said
