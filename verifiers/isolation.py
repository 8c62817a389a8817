"""Attempts -> verdicts, judged in worker processes that can be killed: the only timeout that always works.

One thread per worker slot takes one check at a time, so a hung sample costs one worker its deadline and
nothing else. Trusted `inline` verifiers run in the slot's thread, without a process.
"""

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any

from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import blame, registry
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.pool_checks import Check, Group, Opened, bounded, plain_row, problem_json
from verigrad.verifiers.pool_stats import BusyTime, PoolStats
from verigrad.verifiers.service_keeper import Lease
from verigrad.verifiers.verdict_cache import VerdictCache, cacheable
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
        cache: bool = False,
    ) -> None:
        """`sandbox`: where a verifier with runs = "sandbox" runs what it judges; None is the strongest here.

        SandboxUnavailable when there is none. `cache`: an attempt that was judged before is not judged again
        (see verdict_cache.py for which). What the verifier's policy names as services is healthy when this
        returns; ServiceUnavailable (an OSError) or ServiceRefused (a ValueError) when it cannot be.
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
        order = plain_row(order, f"the options of verifier {verifier!r}")
        self._lease = Lease(policy.services)
        self._order = order | {"services": self._lease.addresses}
        self._seed, self._max_text = seed, max_text
        self._cwd = os.getcwd()
        self._queue: queue.SimpleQueue[Check | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the statistics, the cache and who waits for whom
        self._closed = False
        self._stats, self._recent, self.busy = PoolStats(), PoolStats(), BusyTime()
        remembers = cache and cacheable(self.verifier)
        self._cache = VerdictCache(self.verifier, options or {}, seed=seed) if remembers else None
        self._followers: dict[bytes, list[Check]] = {}  # equal to one that is being judged
        self._inline = policy.runs == "inline"
        self.on_check: Callable[[int, float, float, str], None] | None = None  # slot, start, end, sample
        self._workers: dict[int, WorkerProcess] = {}
        self._failed_starts = 0  # in a row
        self._unproven: set[int] = set()  # slots whose worker was killed or died, before a known case passed
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
        opened = self.open(problem, len(attempts))
        attempts = [bounded(attempt, self._max_text) for attempt in attempts]
        if self.verifier.prefetch is not None:
            with contextlib.suppress(Exception):  # only a hint: the check itself says what is wrong
                self.verifier.prefetch(problem, attempts)
        whole = [list(range(len(attempts)))] if self.verifier.group else [[n] for n in range(len(attempts))]
        for indices in whole if attempts else []:
            self._add(opened, indices, [attempts[n] for n in indices])
        return opened.group.future

    @property
    def takes_single(self) -> bool:
        """Whether nothing is lost by `add`ing a group's attempts one by one."""
        return not self.verifier.group and self.verifier.prefetch is None

    def open(self, problem: Problem, size: int) -> Opened:
        """A group whose attempts follow one by one, each by `add`; its future is `group.future`.

        Raises ValueError as `submit` does.
        """
        if self._closed:
            raise RuntimeError("this VerifierPool is closed; submit before close()")
        self.verifier.check_row(problem)
        opened = Opened(problem, {} if self._inline else problem_json(problem), Group(size))
        if not size:
            opened.group.future.set_result([])
        return opened

    def add(self, opened: Opened, index: int, attempt: Attempt) -> None:
        """Queue one attempt of an open group, in its place."""
        assert self.takes_single, "a verifier of groups is given whole groups"
        self._add(opened, [index], [bounded(attempt, self._max_text)])

    def _add(self, opened: Opened, indices: list[int], attempts: Sequence[Attempt]) -> None:
        key = self._cache.keys(opened.sent, attempts)[0] if self._cache is not None else None
        self._place(Check(opened.problem, attempts, indices, opened.group, opened.sent, key))

    def stats(self) -> dict[str, Any]:
        """Counts so far, the slowest check, and the median and 99th percentile of seconds per check."""
        with self._lock:
            return self._stats.summary()

    def take_stats(self) -> PoolStats:
        """What happened since this was last asked."""
        with self._lock:
            recent, self._recent = self._recent, PoolStats(queue_max=self._queue.qsize())
        return recent

    def worker_pids(self) -> list[int]:
        """The process ids of the workers alive now."""
        return [worker.process.pid for worker in list(self._workers.values())]

    def service_pids(self) -> list[int]:
        """The process ids of the verifier's services now; 0 for one that is being started again."""
        return self._lease.pids()

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
        with self._lock:
            waiting = [follower for followers in self._followers.values() for follower in followers]
        for follower in waiting:
            follower.group.future.cancel()
        for _ in self._threads:
            self._queue.put(None)
        for worker in list(self._workers.values()):
            worker.process.kill()  # its thread sees the end of the pipe, and cleans up
        for thread in self._threads:
            thread.join(10)
        self._lease.close()

    def _place(self, check: Check) -> None:
        """Answer a check from memory, have it wait for an equal one that is being judged, or queue it."""
        if check.key is not None and self._cache is not None:
            with self._lock:
                known = self._cache.get(check.key)
                if known is None and check.key in self._followers:
                    self._followers[check.key].append(check)
                    return
                if known is None:
                    self._followers[check.key] = []
                else:
                    self._count_cached([known])
            if known is not None:
                check.group.settle(check.indices, [known], closed=self._closed)
                return
        self._enqueue(check)

    def _enqueue(self, check: Check) -> None:
        self.busy.begin()
        self._queue.put(check)
        with self._lock:
            for stats in (self._stats, self._recent):
                stats.queue_max = max(stats.queue_max, self._queue.qsize())

    def _settle(self, check: Check, verdicts: Sequence[Verdict]) -> None:
        """Hand out a check's verdicts, also to those that waited for it where they are fit to be kept."""
        self.busy.end()
        followers: list[Check] = []
        shared: Verdict | None = None
        with self._lock:
            for stats in (self._stats, self._recent):
                stats.add(verdicts, sample=check.sample)
            if check.key is not None and self._cache is not None:
                followers = self._followers.pop(check.key, [])
                if self._cache.put(check.key, verdicts[0]):
                    shared = replace(verdicts[0], seconds=0.0)
                    self._count_cached([shared] * len(followers))
        check.group.settle(check.indices, verdicts, closed=self._closed)
        for follower in followers:
            if shared is not None or self._closed:
                follower.group.settle(follower.indices, [shared or verdicts[0]], closed=self._closed)
            else:  # what went wrong there says nothing about it: each is judged by itself
                self._enqueue(replace(follower, key=None))

    def _count_cached(self, verdicts: Sequence[Verdict]) -> None:
        for stats in (self._stats, self._recent):
            stats.count(verdicts, cached=True)

    def _slot(self, slot: int) -> None:
        if not self._inline:
            with contextlib.suppress(Exception):  # the first check tries again, and says what went wrong
                self._start(slot)
        while (check := self._queue.get()) is not None and not self._closed:
            started = time.perf_counter()
            try:
                verdicts = self._inline_verdicts(check) if self._inline else self._verdicts(slot, check)
            except BaseException:  # ours, and still no reason to leave the caller waiting forever
                log.exception("the verifier pool failed on problem %r", check.problem.id)
                verdicts = [Verdict.undecided("the verifier pool itself failed; see the log")] * len(
                    check.indices
                )
            if self.on_check is not None:
                self.on_check(slot, started, time.perf_counter(), check.sample)
            self._settle(check, verdicts)
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
            self._workers[slot] = WorkerProcess(
                self._order, cwd=self._cwd, python=self.verifier.policy.python
            )
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

    def _inline_verdicts(self, check: Check) -> list[Verdict]:
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

    def _verdicts(self, slot: int, check: Check) -> list[Verdict]:
        """Judge in the slot's worker; one that was killed or died is tried once more before anyone is blamed.

        The first time it may have been the machine: a paused process, a swap storm, a kill from outside.
        After every kill or death the fresh worker must judge a known case before it judges anything else.
        """
        started = time.perf_counter()
        verdicts = self._judged(slot, check)
        if isinstance(verdicts, Verdict):  # of the pool's own, not timed by a worker
            return check.all(replace(verdicts, seconds=time.perf_counter() - started))
        return verdicts

    def _judged(self, slot: int, check: Check) -> list[Verdict] | Verdict:
        blame, num_killed, at_limit = "", 0, False
        while True:
            worker = self._start(slot)
            if worker is None:
                told = f"{blame}, and no new worker" if blame else "no worker process"
                return Verdict.undecided(f"{told} could be started; see the log")
            if slot in self._unproven and (trouble := self._fails_known_case(slot, worker, check)):
                before = blame or "the worker before was killed or died"
                return Verdict.undecided(f"{before}, and {trouble}: the verifier is broken")
            if num_killed == 2:
                if at_limit:
                    return Verdict.wrong(blame, outcome="timeout")
                return Verdict.undecided(f"twice: {blame}")
            try:
                return self._read(check, worker.ask(check.message(), deadline_s=self.deadline_s))
            except WorkerLate:
                self._respawned(slot)
                blame, at_limit = f"killed at the deadline of {self.deadline_s:g} s", True
            except WorkerDied as error:
                at_limit = self._respawned(slot) == EXIT_MEMORY
                blame = "killed at the memory limit" if at_limit else f"the worker died ({error})"
            num_killed += 1

    def _fails_known_case(self, slot: int, worker: WorkerProcess, check: Check) -> str:
        """What is wrong with a worker that took a dead one's place; empty when it judges a known case."""
        known = self.verifier.policy.canary
        canary = check.canary(known)
        try:
            reply = worker.ask(canary.message(), deadline_s=max(self.deadline_s, 1.0))
            answers = self._read(canary, reply)
        except (WorkerLate, WorkerDied):
            self._respawned(slot)
            return "so was a known case"
        if any(answer.reward is None or (known is not None and answer.reward <= 0) for answer in answers):
            return "a known case fails too"
        self._unproven.discard(slot)
        return ""

    def _read(self, check: Check, reply: Mapping[str, Any]) -> list[Verdict]:
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
        self._unproven.add(slot)
        with self._lock:
            for stats in (self._stats, self._recent):
                stats.num_respawned += 1
        return self._stop(slot)

    def _note(self, trace: str) -> None:
        with self._lock:
            first = not self._stats.last_traceback
            self._stats.last_traceback = trace
        (log.warning if first else log.debug)("verifier %r raised:\n%s", self.verifier.name, trace)
