"""Verdicts as they come in -> a verifier's health: counts, latencies, the slowest sample, what went wrong."""

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from verigrad.verifiers.base import Outcome, Verdict

NAMES = {outcome: "undecided" if outcome == "error" else outcome for outcome in get_args(Outcome)}
CLOCKED = (
    "p50_s",
    "p99_s",
    "slowest_s",
    "queue_max",
    "restarts",
    "cache_hit_frac",
    "hidden_frac",
)  # differ between two runs
MAX_LATENCIES = 10_000


class BusyTime:
    """Wall time in which at least one check was waiting or being judged."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_open, self._since, self._seconds = 0, 0.0, 0.0

    def begin(self) -> None:
        """One check more."""
        with self._lock:
            if self._num_open == 0:
                self._since = time.perf_counter()
            self._num_open += 1

    def end(self) -> None:
        """One check is judged."""
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                self._seconds += time.perf_counter() - self._since

    def take(self) -> float:
        """Seconds since this was last asked."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
            if self._num_open:
                now = time.perf_counter()
                seconds, self._since = seconds + now - self._since, now
            return seconds


@dataclass(slots=True)
class PoolStats:
    """Counts since it was made; a pool keeps one for its whole life and one since it was last looked at."""

    outcomes: Counter[str] = field(default_factory=Counter)
    num_cached: int = 0  # verdicts that were taken from memory or shared with an equal attempt
    num_respawned: int = 0  # workers killed or found dead
    queue_max: int = 0  # checks that waited for a worker at once, at most
    slowest: tuple[float, str] = (0.0, "")  # seconds, and which sample
    last_traceback: str = ""
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MAX_LATENCIES))  # of the latest checks

    def add(self, verdicts: Sequence[Verdict], *, sample: str) -> None:
        """Count what one check said; `sample` names it for people."""
        self.count(verdicts)
        longest = max((verdict.seconds for verdict in verdicts), default=0.0)
        self.seconds.append(longest)
        if longest > self.slowest[0]:
            self.slowest = (longest, sample)

    def count(self, verdicts: Sequence[Verdict], *, cached: bool = False) -> None:
        """Count verdicts that nobody waited for."""
        self.outcomes.update(verdict.outcome for verdict in verdicts)
        self.num_cached += len(verdicts) if cached else 0

    @property
    def num_checked(self) -> int:
        """Verdicts given."""
        return self.outcomes.total()

    def percentile(self, share: float) -> float:
        """Seconds that this share of the latest checks stayed below; 0 before the first."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    def summary(self) -> dict[str, Any]:
        """Counts by name, the slowest check, the median and the 99th percentile of seconds per check."""
        return {
            "num_checked": self.num_checked,
            "num_timeout": self.outcomes["timeout"],
            "num_error": self.outcomes["error"],
            "num_cached": self.num_cached,
            "num_respawned": self.num_respawned,
            "queue_max": self.queue_max,
            "slowest": self.slowest,
            "p50_s": statistics.median(self.seconds) if self.seconds else 0.0,
            "p99_s": self.percentile(0.99),
            "last_traceback": self.last_traceback,
        }

    def metrics(self) -> dict[str, float]:
        """Shares of the outcomes, latencies, queue, restarts and the share taken from memory."""
        total = max(1, self.num_checked)
        shares = {f"{name}_frac": self.outcomes[outcome] / total for outcome, name in NAMES.items()}
        clocked = {
            "p50_s": statistics.median(self.seconds) if self.seconds else 0.0,
            "p99_s": self.percentile(0.99),
            "slowest_s": self.slowest[0],
            "queue_max": float(self.queue_max),
            "restarts": float(self.num_respawned),
            "cache_hit_frac": self.num_cached / total,
        }
        return shares | clocked
