"""Groups of rollouts to verdicts, judged by worker processes while others are still being sampled."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from verigrad.engine import sandboxing, trace_file
from verigrad.engine.config import Config, ConfigError
from verigrad.engine.rollout import Arriving
from verigrad.engine.sandboxing import NoSandbox
from verigrad.engine.schema import Metrics, Rollout, RolloutGroup, VerifiedGroup
from verigrad.engine.settings import EvalConfig, EvalSet
from verigrad.engine.verifier_health import UndecidedError, VerifierHealth, as_metrics
from verigrad.sandboxes.base import SandboxUnavailable
from verigrad.verifiers.base import Problem, Verdict
from verigrad.verifiers.identity import identity
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.pool_checks import Opened


@dataclass(frozen=True, slots=True)
class Pending:
    """A group whose verdicts are on their way."""

    position: int
    group: RolloutGroup
    verdicts: "Future[list[Verdict]]"


class Scorer:
    """One verifier and its worker processes."""

    def __init__(self, cfg: Config, name: str, options: Mapping[str, Any], *, setting: str) -> None:
        """`setting` is where the recipe names it, for errors; limits are those of [verifier]."""
        verifier = cfg.verifier
        self.name, self.setting, self.max_undecided_frac = name, setting, verifier.max_undecided_frac
        self.watch = VerifierHealth(name, verifier)
        sandbox = sandboxing.settings_of(cfg.sandbox)
        try:
            self.pool = VerifierPool(
                name,
                options=options,
                num_workers=verifier.num_workers,
                deadline_s=verifier.deadline_s,
                memory_mb=verifier.memory_mb,
                seed=cfg.train.seed,
                sandbox=sandbox,
                cache=verifier.cache,
            )
        except SandboxUnavailable as error:
            raise NoSandbox(f"{setting} = {name!r} runs what it judges in a sandbox, and {error}") from error
        except ValueError as error:  # no such verifier, or not with these options
            raise ConfigError(f"{setting}: {error}") from error
        self.pool.on_check = trace_file.watcher(name)
        self._waited_s = 0.0  # for verdicts, since it was last asked
        self.identity = identity(name, options, version=self.pool.verifier.policy.version)

    @property
    def runs_code(self) -> bool:
        """Whether it runs what it judges."""
        return self.pool.verifier.policy.runs == "sandbox"

    def require_fit(self, problem: Problem) -> None:
        """Raise ConfigError when rows like this one lack what the verifier asks for."""
        try:
            self.pool.verifier.check_row(problem)
        except ValueError as error:
            raise ConfigError(f"{self.setting} = {self.name!r} does not fit the data: {error}") from error

    def submit(self, arriving: Iterable[tuple[int, RolloutGroup]]) -> list[Pending]:
        """Hand what arrives to the workers; returns when the last group has arrived.

        A rollout is judged as soon as it ends, where whoever samples tells of it (rollout.Arriving) and the
        verifier looks at one attempt at a time; else when its group is whole.
        """
        opened: dict[int, Opened] = {}

        def begin(position: int, problem: Problem, index: int, size: int, rollout: Rollout) -> None:
            if position not in opened:
                with self._fitting():
                    opened[position] = self.pool.open(problem, size)
            self.pool.add(opened[position], index, rollout.attempt)

        if isinstance(arriving, Arriving) and self.pool.takes_single:
            arriving.on_rollout = begin
        pending = []
        for position, group in arriving:
            if position in opened:
                verdicts = opened[position].group.future
            else:
                attempts = [rollout.attempt for rollout in group.rollouts if rollout.settled is None]
                with self._fitting():
                    verdicts = self.pool.submit(group.problem, attempts)
            pending.append(Pending(position, group, verdicts))
        return pending

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:  # the row lacks what the verifier asks for
            raise ConfigError(f"{self.setting} = {self.name!r} does not fit the data: {error}") from error

    def wait(self, pending: Sequence[Pending]) -> list[VerifiedGroup]:
        """All verdicts, in order of position: which group was sampled or judged first leaves no trace."""
        ordered = sorted(pending, key=lambda item: item.position)
        started = time.perf_counter()
        verdicts = [_with_settled(item) for item in ordered]
        self._waited_s += time.perf_counter() - started
        return [
            VerifiedGroup(item.group.problem, item.group.rollouts, given)
            for item, given in zip(ordered, verdicts, strict=True)
        ]

    def waited(self, seconds: float) -> None:
        """Somebody had nothing to do but to wait for verdicts, otherwise than by `wait`."""
        self._waited_s += seconds

    def too_undecided(self, groups: Sequence[VerifiedGroup]) -> bool:
        """Whether more than `verifier.max_undecided_frac` of the verdicts are undecided."""
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        return sum(not v.decided for v in verdicts) > self.max_undecided_frac * len(verdicts)

    def require_decided(self, groups: Sequence[VerifiedGroup]) -> None:
        """Raise UndecidedError when too many verdicts are undecided to go by the rest."""
        verdicts = [verdict for group in groups for verdict in group.verdicts]
        undecided = [verdict for verdict in verdicts if not verdict.decided]
        if self.too_undecided(groups):
            raise UndecidedError(
                f"verifier {self.name!r} could not decide {len(undecided)} of {len(verdicts)} attempts "
                f"(limit verifier.max_undecided_frac = {self.max_undecided_frac}); the first reason was: "
                f"{undecided[0].reason or 'none given'}. Nothing of this step was trained on; mend the "
                "verifier and start the same command again to resume"
            )

    def health(self) -> dict[str, Any]:
        """Counts and latencies of the checks made so far."""
        return dict(self.pool.stats())

    def step_health(self, groups: Sequence[VerifiedGroup], *, note: Callable[[str], None]) -> Metrics:
        """verify/... since this was last asked; counts the step's undecided verdicts towards a pause."""
        self.watch.observe([verdict for group in groups for verdict in group.verdicts])
        hidden = {"verify/hidden_frac": self._hidden_frac()}
        return hidden | self.watch.metrics(self.pool.take_stats(), note=note)

    def _hidden_frac(self) -> float:
        """Share of the judging since this was last asked that nobody waited for; 1 where there was none."""
        busy, waited = self.pool.busy.take(), self._waited_s
        self._waited_s = 0.0
        return 1.0 - min(busy, waited) / busy if busy > 0 else 1.0

    def take_health(self) -> Metrics:
        """verify/... since this was last asked, and nothing else."""
        self._hidden_frac()
        return as_metrics(self.pool.take_stats())

    def __enter__(self) -> "Scorer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()


def _with_settled(item: Pending) -> list[Verdict]:
    """The group's verdicts, those among them that no verifier was asked for."""
    judged = iter(item.verdicts.result())
    return [rollout.settled or next(judged) for rollout in item.group.rollouts]


class Judges:
    """The scorers of a recipe, each opened when first asked for; those that would be equal are one."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self._opened: dict[str, Scorer] = {}
        self._stack = ExitStack()

    def of(self, data: str) -> Scorer:
        """Who judges this evaluation set."""
        name, options, setting = self.choice(data)
        return self.open(name, options, setting=setting)

    def second(self) -> Scorer | None:
        """Whose reward is watched beside the one that pays and never trained on; None without."""
        monitor = self.cfg.monitor
        if not monitor.verifier:
            return None
        return self.open(monitor.verifier, monitor.verifier_options, setting="monitor.verifier")

    def choice(self, data: str) -> tuple[str, Mapping[str, Any], str]:
        """A set's verifier, its options, and the setting that names it.

        Its own, else that of [eval], else the one that pays.
        """
        name, options, setting = self.cfg.verifier.name, self.cfg.verifier.options, "verifier.name"
        levels: list[tuple[str, EvalConfig | EvalSet]] = [("eval.verifier", self.cfg.eval)]
        if data in self.cfg.data.evals:
            levels.append((f"data.evals.{data}.verifier", self.cfg.data.evals[data]))
        for where, level in levels:
            if level.verifier_options or level.verifier not in ("", name):
                name, options, setting = level.verifier or name, level.verifier_options, where
        return name, options, setting

    def open(self, name: str, options: Mapping[str, Any], *, setting: str) -> Scorer:
        """A scorer of this verifier; `setting` is where the recipe names it."""
        key = json.dumps([name, dict(options)], sort_keys=True, default=str)
        if key not in self._opened:
            scorer = Scorer(self.cfg, name, options, setting=setting)
            self._opened[key] = self._stack.enter_context(scorer)
        return self._opened[key]

    def __enter__(self) -> "Judges":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@contextmanager
def open_scorers(cfg: Config) -> Iterator[tuple[Scorer, Judges]]:
    """The scorer that pays rewards, and the judges of held-out answers, all of which can be opened."""
    with Judges(cfg) as judges:
        scorer = judges.open(cfg.verifier.name, cfg.verifier.options, setting="verifier.name")
        for data in ("", *cfg.data.evals):
            judges.of(data)
        judges.second()
        yield scorer, judges
