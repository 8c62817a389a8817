"""A killable process: JSON lines with checks in, JSON lines with one verifier's verdicts out.

Started by verifiers/isolation.py as `python -m verigrad.verifiers.worker`. Nothing but JSON goes back to the
parent, so whatever happens in here can say a wrong verdict at worst, never run code there.
"""

import base64
import ctypes
import dataclasses
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from typing import IO, Any

from verigrad.sandboxes.base import ProgramFault, Sandbox
from verigrad.sandboxes.pool import SandboxPool
from verigrad.verifiers import blame, registry, services
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.binding import LoadedVerifier

PR_SET_PDEATHSIG = 1
EXIT_MEMORY = 77  # the verifier ran into the memory limit


def main() -> None:
    """Load the verifier named in the first line, then judge line after line until the pipe closes."""
    checks = os.fdopen(os.dup(0), "rb")
    verdicts = os.fdopen(os.dup(1), "wb")
    # A verifier that prints must not break into the protocol, and one that reads must not eat a check.
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    order = json.loads(checks.readline())
    die_with(order["parent"])
    limit = order["memory_mb"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    services.announce(order.get("services", {}))
    try:
        verifier = registry.load(order["verifier"], order["options"])
        if verifier.policy.warm_up:
            verifier.policy.warm_up()
        boxes = SandboxPool.of(order["sandbox"]) if verifier.policy.runs == "sandbox" else None
    except BaseException as error:
        say(verdicts, {"failed": blame.user_traceback(error)})
        return
    say(verdicts, {"ready": os.getpid()})
    home = os.getpid()
    for line in checks:
        check = json.loads(line)
        with services.deadline(check["deadline_s"]):
            reply = judge(verifier, check, boxes, seed=order["seed"])
        if os.getpid() != home:
            os._exit(0)  # a child that the verifier forked came back: it must neither answer nor read checks
        say(verdicts, {**reply, "turn": check["turn"]})


def judge(
    verifier: LoadedVerifier, check: Mapping[str, Any], boxes: SandboxPool | None, *, seed: int
) -> dict[str, Any]:
    """One check's verdicts, or what the verifier raised; a lack of memory ends this process."""
    started = time.perf_counter()
    problem = Problem(**check["problem"])
    attempts = [attempt_of(row) for row in check["attempts"]]

    def answers_in(box: Sandbox | None) -> list[Verdict]:
        placed = attempts if box is None else [in_sandbox(attempt, box) for attempt in attempts]
        return verifier.judge(problem, placed, indices=check["indices"], seed=seed)

    try:
        answers = boxes.run(answers_in) if boxes else answers_in(None)
        verdicts = [{**dataclasses.asdict(answer), "parts": dict(answer.parts)} for answer in answers]
        # Here and not in `say`: a part that is no number is the verifier's fault, and is reported as such.
        json.dumps(verdicts)
        return {"verdicts": verdicts, "seconds": time.perf_counter() - started}
    except ProgramFault as fault:
        # What the attempt left cannot be put or looked at: its own doing, and never a way out of a verdict.
        wrong = Verdict.wrong(f"what it left: {blame.one_line(fault)}")
        return {
            "verdicts": [dataclasses.asdict(wrong)] * len(attempts),
            "seconds": time.perf_counter() - started,
        }
    except MemoryError:
        # What survived an allocation failure may be half built; the parent sees the exit status.
        os._exit(EXIT_MEMORY)
    except BaseException as error:
        last = traceback.format_exception_only(error)[-1].strip()[:500]
        return {
            "raised": last,
            "traceback": blame.user_traceback(error)[-8000:],
            "seconds": time.perf_counter() - started,
        }


def attempt_of(row: Mapping[str, Any]) -> Attempt:
    """An attempt as it travelled."""
    snapshot = row.get("snapshot")
    return Attempt(**{**row, "snapshot": None if snapshot is None else base64.b64decode(snapshot)})


def in_sandbox(attempt: Attempt, box: Sandbox) -> Attempt:
    """The attempt with a clean sandbox, what it left behind unpacked in it."""
    if attempt.snapshot is not None:
        box.load(attempt.snapshot)
    return dataclasses.replace(attempt, sandbox=box)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even in the middle of a check."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(1)


def say(verdicts: IO[bytes], message: Mapping[str, Any]) -> None:
    """Write one line to the parent; a parent that is gone ends this process quietly."""
    try:
        verdicts.write(json.dumps(message).encode() + b"\n")
        verdicts.flush()
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
