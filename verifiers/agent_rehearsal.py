"""A task and what somebody does about it -> the attempt that comes of it: how oracles and cheats are tried.

An oracle is the doing that must pass, the do-nothing agent and every cheat must not; no model is needed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from verigrad.sandboxes.base import Limits, Sandbox
from verigrad.verifiers.agent_check import read_files
from verigrad.verifiers.base import Attempt, Problem

LIMITS = Limits(wall_s=60.0, cpu_s=60.0)
MAX_BYTES = 4 << 20


class CannotSetUp(Exception):
    """The task's own files or commands fail: the row is wrong, whatever an agent does."""


def doings(problem: Problem) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """(name, whether it must pass, what is done) for what the row brings: oracle, nothing, cheats."""
    if oracle := problem.meta.get("oracle"):
        yield "oracle", True, oracle
    yield "does nothing", False, {}
    for number, cheat in enumerate(problem.meta.get("cheats") or (), 1):
        yield f"cheat {number}", False, cheat


def rehearse(problem: Problem, doing: Mapping[str, Any], box: Sandbox) -> Attempt:
    """Set the task up in a clean sandbox, do this, and take what is left as an agent's attempt."""
    set_up(problem.meta.get("setup"), box)
    for path, text in read_files(doing.get("files") or {}, "doing").items():
        box.write_file(path, text.encode())
    for command in doing.get("commands") or ():
        box.exec(words_of(command), limits=LIMITS)
    answer = str(doing.get("answer") or "done")
    return Attempt(
        answer,
        transcript=({"role": "assistant", "content": answer},),
        snapshot=box.save(max_bytes=MAX_BYTES),
    )


def set_up(setup: Mapping[str, Any] | None, box: Sandbox) -> None:
    """Put the task's files there and run its commands; CannotSetUp names one that fails."""
    setup = setup or {}
    if unknown := set(setup) - {"files", "commands"}:
        raise CannotSetUp(f"meta.setup has no {min(unknown)!r}; expected some of files, commands")
    for path, text in read_files(setup.get("files") or {}, "meta.setup").items():
        box.write_file(path, text.encode())
    for command in setup.get("commands") or ():
        done = box.exec(words_of(command), limits=LIMITS)
        if not done.ok:
            said = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:120]
            raise CannotSetUp(f"setup command {command!r} ended with {done.status} {done.exit_code}: {said}")


def words_of(command: str) -> list[str]:
    """A command of the shell as a list of words."""
    return ["bash", "-c", command]
