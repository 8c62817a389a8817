"""Warm sandboxes, lent one at a time and cleaned in between; what fails is tried again in another one."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeVar

from verigrad.sandboxes import registry
from verigrad.sandboxes.base import Sandbox, SandboxError, SandboxLost, SandboxSpec

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
    """At most `size` sandboxes, each lent to one job at a time and reset before the next one gets it."""

    def __init__(self, settings: SandboxSettings, *, size: int = 1) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: a pool needs at least 1 sandbox")
        self.settings, self.size = settings, size
        self._idle: list[Sandbox] = []
        self._room = threading.Semaphore(size)
        self._lock = threading.Lock()
        self._closed = False
        self.num_opened = self.num_lost = 0

    @classmethod
    def of(cls, row: Mapping[str, Any], *, size: int = 1) -> "SandboxPool":
        """From `SandboxSettings.to_json`, with the first sandbox opened."""
        spec = SandboxSpec(row["spec"]["backend"], row["spec"]["options"])
        pool = cls(SandboxSettings(spec, row["retries"], row["patience_s"]), size=size)
        pool.warm(1)
        return pool

    def warm(self, num: int | None = None) -> None:
        """Open sandboxes until `num` (all) are there. Raises SandboxError when one does not come up."""
        while len(self._idle) < (self.size if num is None else num):
            self._idle.append(self._open())

    def run(self, job: Callable[[Sandbox], T]) -> T:
        """The job's result, done in a clean sandbox; done again in another one when that is lost under it.

        A job must be repeatable. What the program itself does wrong is a result and never tried again.
        SandboxError when `retries` sandboxes were lost, or none could be had within `patience_s`.
        """
        ends = time.monotonic() + self.settings.patience_s
        for turn in range(self.settings.retries + 1):
            try:
                with self.lease(ends=ends) as box:
                    return job(box)
            except SandboxLost:
                if turn == self.settings.retries:
                    raise
        raise AssertionError("unreachable")

    @contextmanager
    def lease(self, *, ends: float | None = None) -> Iterator[Sandbox]:
        """A clean sandbox, for as long as the block lasts. A sandbox that failed in it is thrown away."""
        with self._room:
            box = self._take(time.monotonic() + self.settings.patience_s if ends is None else ends)
            siblings: list[Sandbox] = []

            def sibling() -> Sandbox:
                siblings.append(self._open())
                return siblings[-1]

            box.sibling = sibling
            try:
                yield box
            except SandboxError:
                self._throw_away(box)
                raise
            except BaseException:
                self._give_back(box)
                raise
            else:
                self._give_back(box)
            finally:
                for other in siblings:
                    self._throw_away(other, lost=False)

    def close(self) -> None:
        """Close every idle sandbox; those that are lent are closed when they come back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for box in idle:
            self._throw_away(box, lost=False)

    def __enter__(self) -> "SandboxPool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, ends: float) -> Sandbox:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        pause = 0.1
        while True:
            try:
                return self._open()
            except SandboxError:
                if time.monotonic() + pause >= ends or self._closed:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def _give_back(self, box: Sandbox) -> None:
        try:
            box.reset()
        except SandboxError:
            self._throw_away(box)
            return
        with self._lock:
            if not self._closed:
                self._idle.append(box)
                return
        self._throw_away(box, lost=False)

    def _open(self) -> Sandbox:
        box = registry.open_sandbox(self.settings.spec)
        with self._lock:
            self.num_opened += 1
        return box

    def _throw_away(self, box: Sandbox, *, lost: bool = True) -> None:
        with self._lock:
            self.num_lost += lost
        with suppress(Exception):
            box.close()
