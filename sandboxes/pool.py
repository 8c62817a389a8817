"""Warm sandboxes, lent one at a time and cleaned in between; what fails is tried again in another one."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Sandbox, SandboxError, SandboxSpec

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SandboxSettings:
    """Which sandbox, and how long to try when it fails."""

    spec: SandboxSpec = field(default_factory=lambda: SandboxSpec(registry.AUTO))
    retries: int = 2  # more sandboxes tried for one job after one was lost under it
    patience_s: float = 60.0  # how long an engine that does not answer is waited for

    def chosen(self) -> "SandboxSettings":
        """With the backend decided: `auto` becomes the strongest that works here."""
        return replace(self, spec=registry.choose(self.spec))

    def to_json(self) -> dict[str, Any]:
        """As plain data, for `SandboxPool.of`."""
        return {"spec": self.spec.to_json(), "retries": self.retries, "patience_s": self.patience_s}


class SandboxPool:
    """At most `size` sandboxes, each lent to one job at a time and wiped before the next one gets it.

    A job that asks for siblings is lent more, from a second set that is kept warm. Threads may share a pool.
    """

    def __init__(self, settings: SandboxSettings, *, size: int = 1) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: a pool needs at least 1 sandbox")
        self.settings, self.size = settings, size
        self._idle: list[Sandbox] = []
        self._idle_siblings: list[Sandbox] = []
        self._lent_siblings: dict[Sandbox, list[Sandbox]] = {}  # by the sandbox they are siblings of
        self._room = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._closed = False
        self.num_opened = self.num_lost = self.num_resets = 0

    @classmethod
    def of(cls, row: Mapping[str, Any], *, size: int = 1) -> "SandboxPool":
        """From `SandboxSettings.to_json`, with the first sandbox opened."""
        spec = SandboxSpec(row["spec"]["backend"], row["spec"]["options"])
        pool = cls(SandboxSettings(spec, row["retries"], row["patience_s"]), size=size)
        pool.warm(1)
        return pool

    def warm(self, num: int | None = None) -> None:
        """Open sandboxes until `num` (all) are idle. Raises SandboxError when one does not come up."""
        while len(self._idle) < (self.size if num is None else num):
            box = self._open()
            with self._lock:
                self._idle.append(box)

    def run(self, job: Callable[[Sandbox], T]) -> T:
        """The job's result, done in a clean sandbox; done again in another one when that is lost under it.

        A job must be repeatable. What the program itself does wrong is a result and never tried again.
        SandboxError when a sandbox was lost under the job for the last of `retries`, or none could be had
        within `patience_s`.
        """
        for turn in range(self.settings.retries + 1):
            box = self._borrow()
            try:
                result = job(box)
            except SandboxError:
                self._return(box, lost=True)
                if turn == self.settings.retries:
                    raise
            except BaseException:
                self._return(box)
                raise
            else:
                self._return(box)
                return result
        raise AssertionError("unreachable")

    def settle(self) -> None:
        """Wait until every idle sandbox is wiped; those that cannot be are thrown away."""
        for idle in (self._idle, self._idle_siblings):
            with self._lock:
                waiting = idle.copy()
                idle.clear()
            for box in waiting:
                try:
                    box.finish_reset()
                except SandboxError:
                    self._throw_away(box, lost=True)
                    continue
                with self._lock:
                    idle.append(box)

    @contextmanager
    def lease(self) -> Iterator[Sandbox]:
        """A clean sandbox, for as long as the block lasts. A sandbox that failed in it is thrown away."""
        box = self._borrow()
        lost = False
        try:
            yield box
        except SandboxError:
            lost = True
            raise
        finally:
            self._return(box, lost=lost)

    def close(self) -> None:
        """Close every idle sandbox; those that are lent are closed when they come back."""
        with self._lock:
            self._closed = True
            idle = self._idle + self._idle_siblings
            self._idle, self._idle_siblings = [], []
        for box in idle:
            self._throw_away(box)

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _borrow(self) -> Sandbox:
        self._room.acquire()
        try:
            box = self._take(self._idle)
        except BaseException:
            self._room.release()
            raise
        box.sibling = lambda: self._borrow_sibling(box)
        return box

    def _borrow_sibling(self, box: Sandbox) -> Sandbox:
        other = self._take(self._idle_siblings)
        with self._lock:
            self._lent_siblings.setdefault(box, []).append(other)
        return other

    def _return(self, box: Sandbox, *, lost: bool = False) -> None:
        box.sibling = None
        with self._lock:
            others = self._lent_siblings.pop(box, [])
        try:
            # It may be any of them that was lost: none that saw the failure is used again.
            self._give_back(box, self._idle, lost=lost)
            for other in others:
                self._give_back(other, self._idle_siblings, lost=lost)
        finally:
            self._room.release()

    def _give_back(self, box: Sandbox, idle: list[Sandbox], *, lost: bool) -> None:
        """Begin to wipe it, so that it goes on while the caller uses the result."""
        if lost:
            return self._throw_away(box, lost=True)
        try:
            box.begin_reset()
        except SandboxError:
            return self._throw_away(box, lost=True)
        with self._lock:
            self.num_resets += 1
            if not self._closed and len(idle) < self.size:
                idle.append(box)
                return None
        return self._throw_away(box)

    def _take(self, idle: list[Sandbox]) -> Sandbox:
        """An idle one whose wiping went well, or a new one; an engine that is down is waited for."""
        while True:
            with self._lock:
                if not idle:
                    break
                box = idle.pop()
            try:
                box.finish_reset()
                return box
            except SandboxError:
                self._throw_away(box, lost=True)
        ends, pause = time.monotonic() + self.settings.patience_s, 0.1
        while True:
            try:
                return self._open()
            except SandboxError:
                if time.monotonic() + pause >= ends or self._closed:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _open(self) -> Sandbox:
        box = registry.open_sandbox(self.settings.spec)
        with self._lock:
            self.num_opened += 1
        return box

    def _throw_away(self, box: Sandbox, *, lost: bool = False) -> None:
        with self._lock:
            self.num_lost += lost
        with suppress(Exception):
            box.close()
