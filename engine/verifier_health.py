"""One step's verdicts and checks -> metrics of the verifier, and whether it fails too often to go on."""

from collections import Counter
from collections.abc import Callable, Sequence

from verigrad.engine.failures import WorkError
from verigrad.engine.schema import Metrics
from verigrad.engine.settings import VerifierConfig
from verigrad.verifiers.base import Verdict
from verigrad.verifiers.pool_stats import PoolStats

SLOW_S = 1.0  # a check below this is not worth a line
SLOWER = 2.0  # nor is one that is not this much slower than the one told before
MAX_REASON = 160  # characters of a reason in a message


class UndecidedError(WorkError):
    """So many checks failed that the rest of the batch would mislead."""


class VerifierHealth:
    """Watches one verifier from step to step; `steps_in_row` is what a checkpoint keeps of it."""

    def __init__(self, name: str, limits: VerifierConfig) -> None:
        self.name, self.limits = name, limits
        self.steps_in_row = 0  # whose undecided share was above the limit
        self._reasons: Counter[str] = Counter()  # of the undecided verdicts of these steps
        self._counts = (0, 0)  # undecided verdicts and all verdicts of these steps
        self._slowest_told = SLOW_S / SLOWER

    def observe(self, verdicts: Sequence[Verdict]) -> None:
        """Count a step: one above the limit adds to the row, any other ends it."""
        undecided = [verdict for verdict in verdicts if not verdict.decided]
        if len(undecided) <= self.limits.steady_undecided_frac * len(verdicts):
            self.steps_in_row, self._counts = 0, (0, 0)
            self._reasons.clear()
            return
        self.steps_in_row += 1
        self._counts = (self._counts[0] + len(undecided), self._counts[1] + len(verdicts))
        self._reasons.update(" ".join(verdict.reason.split())[:MAX_REASON] for verdict in undecided)

    @property
    def must_pause(self) -> bool:
        """Whether the undecided share has stayed above the limit for too long."""
        return self.steps_in_row >= self.limits.steady_undecided_steps

    def paused(self, *, step: int, saved: bool) -> UndecidedError:
        """The error that pauses a run after `step`: who, how many, why, and what to do."""
        undecided, total = self._counts
        reasons = "; ".join(
            f"{count} x {reason or 'none given'}" for reason, count in self._reasons.most_common(3)
        )
        state = f"saved after step {step}" if saved else f"NOT saved after step {step}, see above"
        return UndecidedError(
            f"paused: verifier {self.name!r} left more than {self.limits.steady_undecided_frac:.0%} of the "
            f"attempts undecided for {self.steps_in_row} steps in a row (verifier.steady_undecided_frac, "
            f"steady_undecided_steps), lately {undecided} of {total}: {reasons}. The run is {state}; mend "
            "the verifier, its sandbox or its data, then start the same command again to go on"
        )

    def metrics(self, stats: PoolStats, *, note: Callable[[str], None]) -> Metrics:
        """verify/... of a step; a sample far slower than any before is named in a note."""
        seconds, sample = stats.slowest
        if seconds >= SLOWER * self._slowest_told:
            self._slowest_told = seconds
            note(f"slowest check of verifier {self.name!r} so far: {seconds:.2f} s, {sample}")
        return as_metrics(stats)


def as_metrics(stats: PoolStats) -> Metrics:
    """The verify/... keys of metrics.jsonl and eval.jsonl; docs/health.md says what each is."""
    return {f"verify/{name}": value for name, value in stats.metrics().items()}
