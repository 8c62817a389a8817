"""A judge with a hole, as many are in use: solution and tests in one file, right when it exits with status 0.

It runs in the sandbox all the same: a wall around a program does not mend a verdict that the program gives
itself. `verigrad audit benchmarks/naive_judge.py:exit_status DATA` finds the hole; docs/planted-hole.md tells
what training makes of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from verigrad.sandboxes.base import Limits, Sandbox
from verigrad.verifiers.base import verifier

FENCE = "```"


@verifier("exit_status", runs="sandbox", deadline_s=60)
def exit_status(text: str, entry_point: str, cases: Sequence[Mapping[str, Any]], sandbox: Sandbox) -> bool:
    """Whether the last fenced program, with asserts below it, ends with status 0."""
    _, _, block = text.removesuffix(FENCE).rpartition(FENCE)
    program = block.removeprefix("python")
    asserts = [f"assert {entry_point}(*{case['args']!r}) == {case['expected']!r}" for case in cases]
    sandbox.write_file("solution.py", "\n".join([program, *asserts]).encode())
    return sandbox.exec(["python3", "solution.py"], limits=Limits(wall_s=5, cpu_s=5)).ok
