"""What a conformance check is given: a clean sandbox of the kind under test, and ways to attack it.

A check is a function with one promise as its docstring. It attacks that promise from the inside and judges
from the outside; an attack that could not be carried out is no proof, so programs say DONE when they came to
their end. Attacks do no harm where they succeed: they open, connect and probe, and leave empty files at most.
"""

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import ExecResult, Limits, ProgramFault, Sandbox, SandboxError, SandboxSpec

SECRET_VARIABLE = "VERIGRAD_CONFORMANCE_SECRET"
MEMORY_MB = 1024  # of a whole sandbox, unless its options say otherwise
DISK_MB = 64
ESCAPED, DONE = "ESCAPED", "DONE"

# Before each attack: `attempt(what, function)` reports what went through, `syscall` calls the kernel itself.
PRELUDE = """
import ctypes, errno, os, platform, signal, socket, stat, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
def escaped(what):
    print("ESCAPED", what, flush=True)
def attempt(what, function, *arguments):
    try:
        result = function(*arguments)
    except (OSError, ValueError, OverflowError, MemoryError, ImportError):
        return None
    escaped(what)
    return result
def syscall(x86, arm, *arguments):
    result = libc.syscall(x86 if X86 else arm, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result
"""


class Broken(Exception):
    """The promise does not hold; the message says what went through."""


class NotApplicable(Exception):
    """The promise says nothing about this sandbox; the message says why."""


Check = Callable[["Bench"], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under its own name."""
    assert function.__doc__, f"{function.__name__} has no promise"
    assert function.__name__ not in CHECKS, f"two checks are named {function.__name__}"
    CHECKS[function.__name__] = function
    return function


def expect(holds: object, what: str) -> None:
    """Raise Broken unless it holds."""
    if not holds:
        raise Broken(what)


class Bench:
    """Clean sandboxes of one kind, one check after the other."""

    def __init__(self, spec: SandboxSpec) -> None:
        self.spec = spec
        self.secret = secrets.token_hex(16)
        os.environ[SECRET_VARIABLE] = self.secret  # before a sandbox is opened: none may inherit it
        self._box: Sandbox | None = None
        self._extra = ExitStack()

    @property
    def box(self) -> Sandbox:
        """The sandbox under test."""
        if self._box is None:
            self._box = registry.open_sandbox(self.spec)
        return self._box

    def another(self) -> Sandbox:
        """A second one, open until the check ends."""
        return self._extra.enter_context(registry.open_sandbox(self.spec))

    def option(self, name: str, default: int) -> int:
        """A size of the whole sandbox."""
        value = self.spec.options.get(name, default)
        return int(value) if isinstance(value, int | float) else default

    def run(
        self,
        source: str,
        *arguments: str,
        stdin: bytes = b"",
        limits: Limits | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecResult:
        """A Python program, written to a file and run."""
        self.box.write_file("attack.py", source.encode())
        return self.box.exec(["python3", "attack.py", *arguments], stdin=stdin, limits=limits, env=env)

    def attack(
        self, source: str, *, limits: Limits | None = None, env: Mapping[str, str] | None = None
    ) -> str:
        """Run an attack to its end; Broken with what went through. Returns its output."""
        done = self.run(
            f"{PRELUDE}\n{source}\nprint('{DONE}')", limits=limits or Limits(wall_s=30.0), env=env
        )
        text = done.stdout.decode(errors="replace")
        through = [
            line.removeprefix(ESCAPED).strip() for line in text.split("\n") if line.startswith(ESCAPED)
        ]
        expect(not through, "; ".join(through[:5]))
        if DONE not in text:
            raise RuntimeError(f"the attack did not come to its end: {describe(done)}")
        return text

    def still_works(self) -> None:
        """Broken unless the sandbox runs the next program."""
        done = self.run("print(42)")
        expect(done.ok and done.stdout == b"42\n", f"the next program does not run: {describe(done)}")

    def clean_up(self) -> None:
        """Make the sandbox as new, or throw it away."""
        with suppress(Exception):
            self._extra.close()
        self._extra = ExitStack()
        if self._box is not None:
            try:
                self._box.reset()
            except SandboxError:
                self.throw_away()

    def throw_away(self) -> None:
        """The next check gets another one."""
        box, self._box = self._box, None
        if box is not None:
            with suppress(Exception):
                box.close()

    def close(self) -> None:
        """Leave nothing behind."""
        self._extra.close()
        self.throw_away()
        os.environ.pop(SECRET_VARIABLE, None)


def describe(done: ExecResult) -> str:
    """A result in one line."""
    said = done.stderr.decode(errors="replace").strip().split("\n")[-1][-200:]
    code = f" {done.exit_code}" if done.status == "exited" else f" {done.signal}" if done.signal else ""
    return f"{done.status}{code} after {done.seconds:.1f} s, stdout {done.stdout[-80:]!r}, stderr {said!r}"


def refused(function: Callable[..., Any], *arguments: Any, **named: Any) -> str | None:
    """The name of what a call raised, ValueError or ProgramFault; None when it went through."""
    try:
        function(*arguments, **named)
    except (ValueError, ProgramFault) as error:
        return type(error).__name__
    return None


def took(function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[Any, float]:
    """A call's result, and its seconds."""
    started = time.monotonic()
    return function(*arguments, **named), time.monotonic() - started


def ends_at(done: ExecResult, status: str | Sequence[str], what: str) -> None:
    """Broken unless the program was ended so."""
    wanted = (status,) if isinstance(status, str) else status
    expect(done.status in wanted, f"{what}: expected {' or '.join(wanted)}, found {describe(done)}")
