"""Cases judged before -> whether a repeat, another order, workers or threads change a verdict; seconds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

from verigrad.verifiers import service_keeper
from verigrad.verifiers.audit_report import (
    Example,
    Judged,
    Result,
    Status,
    example,
    left_out,
    wilson,
)
from verigrad.verifiers.audit_threads import NUM_THREADS
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.binding import LoadedVerifier
from verigrad.verifiers.isolation import VerifierPool

MAX_CASES = 60  # compared again
SAYS = {
    "repeats": "The same cases a second time: the same verdicts.",
    "order": "The same cases in the opposite order, in a fresh worker: the same verdicts.",
    "concurrent": "The same case to all workers at once: the same verdicts.",
    "threads": "The same cases from several threads of one process: the same verdicts.",
    "latency": "Seconds per check of ordinary responses.",
    "second verifier": "Cases on which the second verifier decides otherwise.",
}
OpenPool = Callable[[int], VerifierPool]


@dataclass(frozen=True, slots=True)
class Order:
    """What a process of its own needs to make the same verifier."""

    verifier: str
    options: dict[str, object]
    seed: int


def spread(judged: Sequence[Judged]) -> list[Judged]:
    """Some of the cases, from all over; none that ran into a limit of time, which is no matter of chance."""
    steady = [one for one in judged if one.case.problem is None and one.verdict.outcome != "timeout"]
    steady = [one for one in steady if len(one.case.text) < 10_000]
    step = max(1, len(steady) // MAX_CASES)
    return steady[::step][:MAX_CASES]


def submit_all(pool: VerifierPool, cases: Sequence[Judged], *, times: int = 1) -> list[list[Verdict]]:
    """Each case's verdicts, `times` of them, all submitted before any is waited for."""
    futures = [
        [pool.submit(one.problem, [one.case.attempt])
         for one in repeat(case, times)]
        for case in cases
    ]  # fmt: skip
    return [[future.result()[0] for future in row] for row in futures]


def repeats(pool: VerifierPool, cases: Sequence[Judged]) -> Result:
    """The same workers, once more."""
    return compared("repeats", cases, submit_all(pool, cases))


def order(open_pool: OpenPool, cases: Sequence[Judged]) -> Result:
    """One fresh worker judges from the last to the first."""
    with open_pool(1) as pool:
        verdicts = submit_all(pool, cases[::-1])[::-1]
    return compared("order", cases, verdicts)


def concurrent(open_pool: OpenPool, cases: Sequence[Judged], *, num_workers: int) -> Result:
    """Fresh workers judge the same cases at the same time."""
    with open_pool(num_workers) as pool:
        return compared("concurrent", cases, submit_all(pool, cases, times=num_workers))


def threads(loaded: LoadedVerifier, made: Order, cases: Sequence[Judged], *, deadline_s: float) -> Result:
    """Several threads of one process; a verifier that uses signals for its timeouts fails here."""
    if loaded.policy.runs == "sandbox":
        return left_out("threads", SAYS["threads"], "it runs in a sandbox, one attempt at a time")
    if loaded.group:
        return left_out("threads", SAYS["threads"], "it judges whole groups, one at a time")
    sent = [
        {
            "problem": {"id": c.problem.id, "prompt": c.problem.prompt if isinstance(c.problem.prompt, str)
                        else [dict(turn) for turn in c.problem.prompt],
                        "answer": c.problem.answer, "meta": dict(c.problem.meta)},
            "text": c.case.text,
        }
        for c in cases
    ]  # fmt: skip
    asked = {"verifier": made.verifier, "options": made.options, "seed": made.seed,
             "cases": sent, "parent": os.getpid(), "services": service_keeper.running()}  # fmt: skip
    seconds = 60 + deadline_s + sum(case.verdict.seconds for case in cases) * NUM_THREADS * 4
    command = [sys.executable, "-m", "verigrad.verifiers.audit_threads"]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked), capture_output=True, text=True, timeout=seconds
        )
        said = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return failed("threads", cases, f"did not end within {seconds:.0f} s")
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return failed("threads", cases, f"the process ended with status {done.returncode}: {last[:200]}")
    pairs = [(reward, reason) for reward, reason in said]
    verdicts = [
        [Verdict(None, "error", reason=why) if reward is None
         else Verdict(reward, "right" if reward >= 1 else "wrong", reason=why)
         for reward, why in pairs[index :: len(cases)]]
        for index in range(len(cases))
    ]  # fmt: skip
    return compared("threads", cases, verdicts)


def compared(name: str, cases: Sequence[Judged], verdicts: Sequence[Sequence[Verdict]]) -> Result:
    """A case is bad as soon as one of its new verdicts has another reward than the first."""
    bad: list[tuple[Judged, Verdict]] = []
    for case, new in zip(cases, verdicts, strict=True):
        if other := next((one for one in new if one.reward != case.verdict.reward), None):
            bad.append((case, other))
    low, high = wilson(len(bad), len(cases))
    worst = None
    if bad:
        case, other = bad[0]
        shown = example(case)
        reason = f"then {_paid(other)}: {other.reason}"[:200]
        worst = Example(shown.row, shown.kind, shown.response, shown.reward, shown.outcome, reason)
    status: Status = "FAILS" if bad else "ok"
    num = sum(len(new) for new in verdicts)
    return Result(
        name, SAYS[name], status, "same reward", 0.0, len(cases), len(bad), 0, low, high, worst=worst,
        note=f"{num} checks",
    )  # fmt: skip


def failed(name: str, cases: Sequence[Judged], why: str) -> Result:
    """All cases came to nothing."""
    low, high = wilson(len(cases), len(cases))
    return Result(
        name, SAYS[name], "FAILS", "same reward", 0.0, len(cases), len(cases), 0, low, high, note=why
    )


def latency(judged: Sequence[Judged], *, max_p50_s: float, max_p99_s: float) -> Result:
    """Seconds of ordinary checks against both limits; the slowest is the example."""
    ordered = sorted(judged, key=lambda one: one.verdict.seconds)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))].verdict.seconds
                for share in (0.5, 0.99))  # fmt: skip
    slowest = ordered[-1].verdict.seconds
    slow = p50 > max_p50_s or p99 > max_p99_s
    return Result(
        "latency",
        SAYS["latency"],
        "FAILS" if slow else "ok",
        f"p50 <= {max_p50_s:g} s, p99 <= {max_p99_s:g} s",
        num=len(ordered),
        worst=example(ordered[-1]) if slow else None,
        note=f"p50 {p50 * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms, max {slowest * 1000:.1f} ms",
        figures={"p50_s": p50, "p99_s": p99, "max_s": slowest},
    )


def disagreement(
    pool: VerifierPool, judged: Sequence[Judged], full: Callable[[Verdict], bool], *, allowed: float
) -> Result:
    """Cases that one of two verifiers pays in full and the other does not; undecided ones are left aside."""
    cases = [one for one in judged if one.case.problem is None]
    try:
        verdicts = list(chain.from_iterable(submit_all(pool, cases)))
    except ValueError as error:
        return left_out("second verifier", SAYS["second verifier"], f"does not take these rows: {error}")
    both = [(one, v) for one, v in zip(cases, verdicts, strict=True) if one.verdict.decided and v.decided]
    bad = [(one, verdict) for one, verdict in both if one.full != full(verdict)]
    low, high = wilson(len(bad), len(both))
    worst = None
    if bad:
        shown = example(bad[0][0])
        reason = f"the second says {_paid(bad[0][1])}"
        worst = Example(shown.row, shown.kind, shown.response, shown.reward, shown.outcome, reason)
    status: Status = "FAILS" if len(bad) > allowed * len(both) else "ok"
    kinds: dict[str, list[int]] = {}
    for one, verdict in both:
        counts = kinds.setdefault(one.case.kind, [0, 0])
        counts[0] += one.full != full(verdict)
        counts[1] += 1
    return Result(
        "second verifier", SAYS["second verifier"], status, "same decision", allowed, len(both), len(bad),
        sum(not verdict.decided for verdict in verdicts), low, high, kinds=kinds, worst=worst,
        note=f"{pool.verifier.name}",
    )  # fmt: skip


def _paid(verdict: Verdict) -> str:
    return "undecided" if verdict.reward is None else f"{verdict.reward:g}"
