"""Attempts -> verdicts, judged in worker processes that can be killed: the only timeout that always works.

One thread per worker slot takes one check at a time, so a hung sample costs one worker its deadline and
nothing else. Trusted `inline` verifiers run in the slot's thread, without a process.
"""

import base64
import contextlib
import json
import logging
import os
import queue
import statistics
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import blame, registry
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.worker import EXIT_MEMORY
from verigrad.verifiers.worker_process import WorkerDied, WorkerLate, WorkerProcess

MAX_TEXT = 50_000  # characters of an attempt that a verifier gets to see; the answer is at the end
MAX_FAILED_STARTS = 5  # in a row, after which every check is undecided at once
log = logging.getLogger(__name__)


class VerifierPool:
    """Killable workers around one verifier; `submit` never blocks, `close` never hangs."""

    def __init__(
        self,
        verifier: str,
        *,
        options: Mapping[str, Any] | None = None,
        num_workers: int = 2,
        deadline_s: float | None = None,
        memory_mb: int = 2048,
        seed: int = 0,
        max_text: int = MAX_TEXT,
        sandbox: SandboxSettings | None = None,
    ) -> None:
        """`sandbox`: where a verifier with runs = "sandbox" runs what it judges; None is the strongest here.

        SandboxUnavailable when there is none.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers = {num_workers}: a pool needs at least 1 worker")
        self.verifier = registry.load(verifier, options)
        policy = self.verifier.policy
        self.deadline_s = policy.deadline_s if deadline_s is None else deadline_s
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s = {deadline_s}: expected a number of seconds above 0")
        order = {"verifier": verifier, "options": dict(options or {}), "memory_mb": memory_mb, "seed": seed}
        if policy.runs == "sandbox":
            # Chosen once, here: a worker that is started later must not end up in a weaker one.
            self.sandbox = (sandbox or SandboxSettings()).chosen()
            order["sandbox"] = self.sandbox.to_json()
            self.deadline_s += self.sandbox.patience_s  # waiting for an engine that restarts blames nobody
        self._order = _plain(order, f"the options of verifier {verifier!r}")
        self._seed, self._max_text = seed, max_text
        self._cwd = os.getcwd()
        self._queue: queue.SimpleQueue[_Check | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._stats = _Stats()
        self._inline = policy.runs == "inline"
        self._workers: dict[int, WorkerProcess] = {}
        self._failed_starts = 0  # in a row
        self._threads = [
            threading.Thread(target=self._slot, args=(slot,), name=f"verifier-{slot}", daemon=True)
            for slot in range(1 if self._inline else num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(self, problem: Problem, attempts: Sequence[Attempt]) -> "Future[list[Verdict]]":
        """Queue one group of attempts; the future's verdicts stand in the attempts' order.

        Raises ValueError at once when the row lacks what the verifier needs or cannot be written as JSON.
        """
        if self._closed:
            raise RuntimeError("this VerifierPool is closed; submit before close()")
        self.verifier.check_row(problem)
        attempts = [_bounded(attempt, self._max_text) for attempt in attempts]
        sent = {} if self._inline else _problem_json(problem)
        group = _Group(len(attempts))
        if not attempts:
            group.future.set_result([])
        whole = [list(range(len(attempts)))] if self.verifier.group else [[n] for n in range(len(attempts))]
        for indices in whole if attempts else []:
            check = _Check(problem, [attempts[n] for n in indices], indices, group, sent)
            self._queue.put(check)
        return group.future

    def stats(self) -> dict[str, Any]:
        """Counts so far, the slowest check, and the median and 99th percentile of seconds per check."""
        with self._lock:
            return self._stats.summary()

    def worker_pids(self) -> list[int]:
        """The process ids of the workers alive now."""
        return [worker.process.pid for worker in list(self._workers.values())]

    def close(self) -> None:
        """Kill the workers and cancel what is still queued; returns within seconds whatever hangs."""
        self._closed = True
        while True:
            try:
                check = self._queue.get_nowait()
            except queue.Empty:
                break
            if check is not None:
                check.group.future.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for worker in list(self._workers.values()):
            worker.process.kill()  # its thread sees the end of the pipe, and cleans up
        for thread in self._threads:
            thread.join(10)

    def _slot(self, slot: int) -> None:
        if not self._inline:
            with contextlib.suppress(Exception):  # the first check tries again, and says what went wrong
                self._start(slot)
        while (check := self._queue.get()) is not None and not self._closed:
            try:
                verdicts = self._inline_verdicts(check) if self._inline else self._verdicts(slot, check)
            except BaseException:  # ours, and still no reason to leave the caller waiting forever
                log.exception("the verifier pool failed on problem %r", check.problem.id)
                verdicts = [Verdict.undecided("the verifier pool itself failed; see the log")] * len(
                    check.indices
                )
            with self._lock:
                self._stats.add(check, verdicts)
            check.group.settle(check.indices, verdicts, closed=self._closed)
        self._stop(slot)
        if check is not None:
            check.group.future.cancel()

    def _start(self, slot: int) -> WorkerProcess | None:
        """The slot's living worker, started if need be; None (and a line in the log) if it cannot start."""
        if slot in self._workers or self._closed:
            return self._workers.get(slot)
        if self._failed_starts >= MAX_FAILED_STARTS:
            return None  # waiting for each start to fail would hold up every attempt of the batch
        try:
            self._workers[slot] = WorkerProcess(self._order, cwd=self._cwd)
        except (WorkerDied, WorkerLate, OSError) as error:
            log.error("a worker of verifier %r did not start: %s", self.verifier.name, error)
            with self._lock:
                self._failed_starts += 1
                self._stats.last_traceback = str(error)
            return None
        self._failed_starts = 0
        if self._closed:  # close() did not know of this one yet
            self._stop(slot)
        return self._workers.get(slot)

    def _stop(self, slot: int) -> int:
        worker = self._workers.pop(slot, None)
        return worker.kill() if worker else 0

    def _inline_verdicts(self, check: "_Check") -> list[Verdict]:
        started = time.perf_counter()
        try:
            verdicts = self.verifier.judge(
                check.problem, check.attempts, indices=check.indices, seed=self._seed
            )
        except BaseException as error:  # also sys.exit: nobody else is there to answer
            self._note(blame.user_traceback(error))
            last = traceback.format_exception_only(error)[-1].strip()[:500]
            verdicts = [Verdict.undecided(last)] * len(check.indices)
        seconds = time.perf_counter() - started
        return [replace(verdict, seconds=seconds) for verdict in verdicts]

    def _verdicts(self, slot: int, check: "_Check") -> list[Verdict]:
        """Judge in the slot's worker; one that was killed or died is tried once more before anyone is blamed.

        The first time it may have been the machine: a paused process, a swap storm, a kill from outside.
        """
        started = time.perf_counter()
        for attempt in range(2):
            worker = self._start(slot)
            if worker is None:
                return check.all(Verdict.undecided("no worker process could be started; see the log"))
            try:
                return self._read(check, worker.ask(check.message(), deadline_s=self.deadline_s))
            except WorkerLate:
                self._respawned(slot)
                blame = f"killed at the deadline of {self.deadline_s:g} s"
                if attempt == 0:
                    continue
            except WorkerDied as error:
                if self._respawned(slot) != EXIT_MEMORY:
                    blame = f"the worker died ({error})"
                    continue
                blame = "killed at the memory limit"
                if attempt == 0:
                    continue  # the checks before it may have filled that worker
            verdict = self._after_kill(slot, check, blame)
            return check.all(replace(verdict, seconds=time.perf_counter() - started))
        return check.all(replace(Verdict.undecided(f"twice: {blame}"), seconds=time.perf_counter() - started))

    def _after_kill(self, slot: int, check: "_Check", blame: str) -> Verdict:
        """Whose fault was it? The attempt's, if a fresh worker still judges a known case."""
        worker = self._start(slot)
        if worker is None:
            return Verdict.undecided(f"{blame}, and no new worker could be started")
        canary = check.canary(self.verifier.policy.canary)
        try:
            reply = worker.ask(canary.message(), deadline_s=max(self.deadline_s, 1.0))
            answers = self._read(canary, reply)
        except (WorkerLate, WorkerDied):
            self._respawned(slot)
            return Verdict.undecided(f"{blame}, and so was a known case: the verifier is broken")
        known = self.verifier.policy.canary is not None
        if any(answer.reward is None or (known and answer.reward <= 0) for answer in answers):
            return Verdict.undecided(f"{blame}, and a known case fails too: the verifier is broken")
        return Verdict.wrong(blame, outcome="timeout")

    def _read(self, check: "_Check", reply: Mapping[str, Any]) -> list[Verdict]:
        seconds = reply.get("seconds", 0.0)
        seconds = float(seconds) if isinstance(seconds, (int, float)) else 0.0
        if "raised" in reply:
            self._note(str(reply.get("traceback", "")))
            return check.all(replace(Verdict.undecided(str(reply["raised"])), seconds=seconds))
        try:
            verdicts = [Verdict(**{**row, "seconds": seconds}) for row in reply["verdicts"]]
            if len(verdicts) != len(check.indices):
                raise ValueError(f"{len(verdicts)} verdicts on {len(check.indices)} attempts")
        except (KeyError, TypeError, ValueError) as error:
            raise WorkerDied(f"an answer that is no verdict: {error}") from error
        return verdicts

    def _respawned(self, slot: int) -> int:
        with self._lock:
            self._stats.num_respawned += 1
        return self._stop(slot)

    def _note(self, trace: str) -> None:
        with self._lock:
            first = not self._stats.last_traceback
            self._stats.last_traceback = trace
        (log.warning if first else log.debug)("verifier %r raised:\n%s", self.verifier.name, trace)


class _Group:
    """The verdicts of one submitted group as they come in."""

    def __init__(self, size: int) -> None:
        self.future: Future[list[Verdict]] = Future()
        self._verdicts: list[Verdict | None] = [None] * size
        self._missing = size
        self._lock = threading.Lock()

    def settle(self, indices: Sequence[int], verdicts: Sequence[Verdict], *, closed: bool) -> None:
        with self._lock:
            for index, verdict in zip(indices, verdicts, strict=True):
                self._verdicts[index] = verdict
            self._missing -= len(indices)
            done = self._missing == 0
        if closed:
            self.future.cancel()
        elif done:
            with contextlib.suppress(InvalidStateError):  # cancelled by its owner meanwhile
                self.future.set_result([verdict for verdict in self._verdicts if verdict is not None])


@dataclass(slots=True)
class _Check:
    """What a worker judges in one go: one attempt, or a group verifier's whole group."""

    problem: Problem
    attempts: Sequence[Attempt]
    indices: list[int]
    group: _Group
    sent: Mapping[str, Any]

    def message(self) -> dict[str, Any]:
        attempts = [
            {
                "text": one.text,
                "truncated": one.truncated,
                "transcript": list(one.transcript),
                "snapshot": None if one.snapshot is None else base64.b64encode(one.snapshot).decode(),
            }
            for one in self.attempts
        ]
        return {"problem": self.sent, "attempts": attempts, "indices": self.indices}

    def all(self, verdict: Verdict) -> list[Verdict]:
        return [verdict] * len(self.indices)

    def canary(self, known: Mapping[str, Any] | None) -> "_Check":
        """The verifier's known case; without one, an empty attempt at the same problem."""
        if known is None:
            return replace(self, attempts=[Attempt("") for _ in self.attempts])
        row = {"id": "canary", "prompt": "", **{k: v for k, v in known.items() if k != "response"}}
        return replace(self, attempts=[Attempt(known["response"]) for _ in self.attempts], sent=row)


@dataclass(slots=True)
class _Stats:
    num_checked: int = 0
    num_timeout: int = 0
    num_error: int = 0
    num_respawned: int = 0
    slowest: tuple[float, str] = (0.0, "")
    last_traceback: str = ""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=10_000))  # of the latest checks

    def add(self, check: _Check, verdicts: Sequence[Verdict]) -> None:
        self.num_checked += len(verdicts)
        self.num_timeout += sum(verdict.outcome == "timeout" for verdict in verdicts)
        self.num_error += sum(verdict.outcome == "error" for verdict in verdicts)
        longest = max((verdict.seconds for verdict in verdicts), default=0.0)
        self.seconds.append(longest)
        if longest > self.slowest[0]:
            tail = " ".join(check.attempts[0].text[-400:].split())[-120:]
            self.slowest = (longest, f"problem {check.problem.id}: ...{tail}")

    def summary(self) -> dict[str, Any]:
        seconds = sorted(self.seconds)
        return {
            "num_checked": self.num_checked,
            "num_timeout": self.num_timeout,
            "num_error": self.num_error,
            "num_respawned": self.num_respawned,
            "slowest": self.slowest,
            "p50_s": statistics.median(seconds) if seconds else 0.0,
            "p99_s": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))] if seconds else 0.0,
            "last_traceback": self.last_traceback,
        }


def _bounded(attempt: Attempt, max_text: int) -> Attempt:
    """The attempt with at most the last `max_text` characters of its text: the answer stands at the end."""
    if len(attempt.text) <= max_text:
        return attempt
    tail = attempt.text[-max_text:]
    # A thought that was cut open must stay a thought: without its beginning the tail would read as prose.
    cut = attempt.text[:-max_text]
    open_thought = cut.rfind("<think>") > cut.rfind("</think>")
    return replace(attempt, text=("<think>" + tail) if open_thought else tail)


def _problem_json(problem: Problem) -> dict[str, Any]:
    prompt = problem.prompt if isinstance(problem.prompt, str) else [dict(turn) for turn in problem.prompt]
    row = {"id": problem.id, "prompt": prompt, "answer": problem.answer, "meta": dict(problem.meta)}
    return _plain(row, f"problem {problem.id!r}")


def _plain(row: dict[str, Any], what: str) -> dict[str, Any]:
    """The row, proven to be JSON: workers are sent nothing else."""
    try:
        json.dumps(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{what} cannot be written as JSON ({error}), and that is how it travels to a worker process; "
            "use text, numbers, lists and objects"
        ) from error
    return row
