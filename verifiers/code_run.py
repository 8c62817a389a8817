"""Rows with tests, and commands in a sandbox -> limits kept, and how a command ended in words for people."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from verigrad.sandboxes.base import ExecResult, Limits
from verigrad.verifiers.base import Outcome, Verdict
from verigrad.verifiers.marked import short
from verigrad.verifiers.options import shown

LEAST_S = 0.1  # a command is not started with less time than this
TIMES = ("wall_time", "cpu_time")
KILLED = {
    "wall_time": "killed at its time limit",
    "cpu_time": "killed at its limit of processor time",
    "memory": "killed at its memory limit",
    "output": "killed at its output limit",
}


class OutOfTime(Exception):
    """The attempt has used up the time that all its tests together may take."""


class Clock:
    """The time that one attempt may take, over all its commands."""

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self.ends = time.monotonic() + max_seconds

    def left(self) -> float:
        """Seconds that are left; OutOfTime when there are none."""
        left = self.ends - time.monotonic()
        if left < LEAST_S:
            raise OutOfTime(f"not done after {self.max_seconds:g} s")
        return left

    def within(self, limits: Limits) -> Limits:
        """The limits of the next command, cut to the time left."""
        return replace(limits, wall_s=min(limits.wall_s, self.left()))


def limits_of(meta: Mapping[str, Any], verifier: str) -> Limits:
    """The row's `limits`; ValueError, with the verifier's name, for what is none."""
    given = meta.get("limits")
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f"{verifier}: meta.limits = {shown(given)}; expected an object such as {{'wall_s': 2}}"
        )
    try:
        return Limits.of(given)
    except ValueError as error:
        raise ValueError(f"{verifier}: meta.{error}") from error


def how_it_ended(result: ExecResult) -> str:
    """Why a command that is done did not do its work, with what it said last of an error of its own."""
    if result.status in KILLED:
        return KILLED[result.status]
    if result.status == "signalled":
        return f"ended by signal {result.signal}"
    return f"ended with status {result.exit_code}{last_words(result.stderr)}"


def last_words(stderr: bytes) -> str:
    """The last line of a traceback or a compiler's first error, as the end of a reason; "" without one."""
    lines = [line for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\berror:", line)]
    said = errors[0] if errors else lines[-1] if lines else ""
    return f" ({printable(said)})" if said else ""


def printable(said: str) -> str:
    """A piece of the program's own words: one line without control characters."""
    return short("".join(sign if sign.isprintable() else " " for sign in said[:400]))


def verdict_of(passed: int, total: int, *, partial: bool, reason: str, outcome: Outcome = "wrong") -> Verdict:
    """All or nothing; with `partial`, the share that passed. `outcome` is what to call a failure."""
    share = passed / total
    parts = {"passed": share}
    if passed == total:
        return Verdict(1.0, "right", parts, f"{total} of {total} tests passed")
    reason = f"{passed} of {total} tests passed; {reason}" if partial else reason
    if partial and passed:
        return Verdict(share, "partial", parts, reason)
    return Verdict(0.0, outcome, parts, reason)
