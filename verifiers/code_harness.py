"""Source files that run in sandboxes, and the lines the program's side says -> results of calls."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verigrad.sandboxes.base import ExecResult, Limits, Sandbox
from verigrad.verifiers.code_expression import Call, Result
from verigrad.verifiers.code_run import TIMES, how_it_ended, printable
from verigrad.verifiers.code_view import decode, encode, line

PROGRAM = "solution.py"
HARNESS = ["python3", "harness.py"]


def _source(name: str) -> bytes:
    """A module of this folder with code_view.py's text in the place of its import."""
    here = Path(__file__).parent
    views, own = ((here / f"{one}.py").read_text(encoding="utf-8") for one in ("code_view", name))
    kept = [row for row in own.split("\n") if not row.startswith("from verigrad.")]
    return "\n".join([views, "", *kept]).encode()


CANDIDATE = _source("code_candidate")
TESTER = _source("code_tester")


def call_all(
    calls: Sequence[Call], program: bytes, *, sandbox: Sandbox, limits: Limits
) -> tuple[list[Result], bool]:
    """Load the program and make the calls one after the other in one process of it.

    Returns their results and whether the time was up. The k-th line is the answer to the k-th call: a program
    that says more than it was asked has no results at all, so that it cannot try several.
    """
    sandbox.write_file(PROGRAM, program)
    sandbox.write_file("harness.py", CANDIDATE)
    requests = b"".join(
        line({"path": call.path, "args": encode(list(call.args)), "kwargs": encode(dict(call.kwargs))})
        for call in calls
    )
    ended = sandbox.exec(HARNESS, stdin=requests, limits=limits)
    late = ended.status in TIMES
    return results_of(ended, len(calls)), late


def results_of(ended: ExecResult, asked: int) -> list[Result]:
    """What the lines on standard output say of each call."""
    said = [_loads(row) for row in ended.stdout.split(b"\n")[:-1]]
    if not said or not isinstance(said[0], dict) or "names" not in said[0]:
        if said and isinstance(said[0], dict):
            return [Result(failed=failed_to_load(said[0]))] * asked
        return [Result(failed=_ended_early(ended), missing=True)] * asked
    if len(said) - 1 > asked:
        return [Result(failed="said more than it was asked")] * asked
    results = [_result(row) for row in said[1:]]
    return results + [Result(failed=_ended_early(ended), missing=True)] * (asked - len(results))


def failed_to_load(said: Mapping[str, Any]) -> str:
    """Why the program could not be loaded, in its own words."""
    return f"raised {_error(said.get('failed'))} when it was loaded"


def _ended_early(ended: ExecResult) -> str:
    return f"{how_it_ended(ended)} before its tests were done"


def _result(said: Any) -> Result:
    if isinstance(said, dict) and "raised" in said:
        raised = said["raised"]
        given = raised.get("classes") if isinstance(raised, dict) else None
        classes = [name for name in given if isinstance(name, str)] if isinstance(given, list) else []
        if classes[:1] == ["NotPlain"]:
            return Result(failed=f"returned {printable(_said(raised))}")
        return Result(failed=f"raised {_error(raised)}", raised=tuple(classes))
    if not isinstance(said, dict) or "value" not in said:
        return Result(failed="did not answer")
    try:
        return Result(decode(said["value"]))
    except ValueError:
        return Result(failed="returned what is no plain data")


def _error(raised: Any) -> str:
    if (
        not isinstance(raised, Mapping)
        or not isinstance(raised.get("classes"), list)
        or not raised["classes"]
        or not isinstance(raised["classes"][0], str)
    ):
        return "something"
    says = f": {_said(raised)}" if _said(raised) else ""
    return printable(f"{raised['classes'][0]}{says}")


def _said(raised: Mapping[str, Any]) -> str:
    """Its text; what is none may be nested too deep to be shown."""
    says = raised.get("says")
    return says if isinstance(says, str) else ""


def _loads(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
