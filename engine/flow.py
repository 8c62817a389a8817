"""Problems -> judged groups, sampled ahead of the trainer: what makes training asynchronous.

    draw -> sampler's stream -> group -> verifier ->  queue, in the order drawn  -> next batch to train on

No group is begun too early. Behind those in the queue it will be trained on in a certain batch at the latest,
and it is begun only if that is no more than `rollout.max_staleness` ahead of the weights. Groups leave the
queue in the order in which they were drawn, whichever was finished first: taking the first to finish would
favour short answers.
"""

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.curriculum import Curriculum
from verigrad.engine.data import ProblemStream
from verigrad.engine.dynamic_sampling import KeepFn, sampling_cap
from verigrad.engine.rollout import Sampler, SamplingParams, Stream, TokenOutput, TokenRequest
from verigrad.engine.schema import Metrics, Rollout, RolloutGroup, VerifiedGroup
from verigrad.engine.scoring import Pending, Scorer
from verigrad.verifiers.base import Problem, Verdict

LOOK_S = 0.01  # between two looks for verdicts
COLUMNS = {
    "token_ids": torch.int64,
    "loss_mask": torch.bool,
    "logprobs": torch.float64,
    "policy_versions": torch.int64,
}
"""What a rollout says of each of its tokens, as a checkpoint holds it."""

Timed = Callable[[str], AbstractContextManager[None]]


@dataclass(slots=True)
class Drawn:
    """One problem drawn, and how far its group has come."""

    number: int  # in the order drawn; part of its samples' seeds
    problem: Problem
    requests: Sequence[TokenRequest]  # [G]
    rollouts: dict[int, Rollout] = field(default_factory=dict)  # by index, those finished
    judging: Pending | None = None  # since all are finished
    verified: VerifiedGroup | None = None
    kept: bool = True  # worth training on, as far as is known

    @property
    def finished(self) -> bool:
        """Whether all its rollouts are there."""
        return self.judging is not None or self.verified is not None


class Flow:
    """The stream of groups. With an engine in its own process a thread keeps it going while others train."""

    def __init__(
        self,
        sampler: Sampler,
        scorer: Scorer,
        problems: ProblemStream | Curriculum,
        keep: KeepFn,
        cfg: Config,
        *,
        data: Sequence[Problem],
    ) -> None:
        """`problems` are drawn of `data`; `keep` says which groups are worth training on."""
        self.data = data
        self.sampler, self.scorer, self.problems, self.keep = sampler, scorer, problems, keep
        self.group_size, self.wanted = cfg.rollout.group_size, cfg.rollout.groups_per_step
        self.max_staleness, self.seed = cfg.rollout.max_staleness, cfg.train.seed
        self.num_batches = cfg.train.num_steps
        dynamic = cfg.dynamic_sampling
        self.cap = (
            sampling_cap(self.wanted, oversample=dynamic.oversample) if dynamic.enabled else self.wanted
        )
        self.params = SamplingParams(cfg.rollout.temperature, cfg.rollout.max_tokens, tuple(cfg.rollout.stop))
        self.queue: deque[Drawn] = deque()
        self.next_batch = sampler.policy_version  # version of the weights that will train on it
        self._num_drawn = 0
        self._unfinished: dict[int, Drawn] = {}
        self._stream: Stream
        self._threaded = False
        self._changed = threading.Condition()  # and the lock of everything here
        self._failure: BaseException | None = None
        self._stopping = False
        self._left_at, self._busy_then = 0.0, 0.0  # when the trainer last left with a batch

    # -- open and close ------------------------------------------------------------------------------

    @contextmanager
    def open(self) -> Iterator["Flow"]:
        """Sample as long as this is open; the sampler holds weights of a known version."""
        apart = getattr(self.sampler.engine, "apart", False)
        self.next_batch = self.sampler.policy_version
        with self.sampler.engine.stream(lasting=True) as self._stream:
            with self._changed:
                for drawn in self._unfinished.values():  # of a checkpoint
                    self._begin(drawn)
            courier = threading.Thread(target=self._carry, name="flow", daemon=True) if apart else None
            self._threaded = courier is not None
            try:
                if courier is not None:
                    courier.start()
                yield self
            finally:
                self._stopping = True
                if courier is not None:
                    courier.join()

    def _carry(self) -> None:
        """What the thread does: take what is finished to the verifier, and begin more."""
        try:
            while not self._stopping:
                self._advance(self._stream.step() if self._stream.busy else ())
                if not self._stream.busy:
                    time.sleep(LOOK_S)
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _advance(self, outputs: Sequence[TokenOutput]) -> None:
        with self._changed:
            for output in outputs:
                self._finish(output)
            self._settle()
            self._refill()
            self._changed.notify_all()

    # -- from problem to verdict; all with the lock held ---------------------------------------------

    def room(self) -> int:
        """How many more groups may be begun now.

        The queue is cut as `_head` will cut it. What is not judged counts as kept: a group that turns out
        not to be can only bring those behind it forward.
        """
        # 1 while a batch is being trained on: the next one is then a version further
        last = self.max_staleness - (self.next_batch - self.sampler.policy_version)
        last = min(last, self.num_batches - 1 - self.next_batch)  # none is begun that no step will train on
        batch = kept = looked_at = 0
        for drawn in self.queue:
            kept += drawn.kept
            looked_at += 1
            if kept == self.wanted or looked_at == self.cap:
                batch, kept, looked_at = batch + 1, 0, 0
        if batch > last:
            return 0
        return (last - batch) * self.wanted + min(self.wanted - kept, self.cap - looked_at)

    def _refill(self) -> None:
        if (num := self.room()) == 0:
            return
        for problem in self.problems.next_batch(num):
            drawn = self._drawn(self._num_drawn, problem)
            self._num_drawn += 1
            self.queue.append(drawn)
            self._unfinished[drawn.number] = drawn
            self._begin(drawn)

    def _drawn(self, number: int, problem: Problem) -> Drawn:
        seed = (self.seed, "flow", number)
        return Drawn(number, problem, self.sampler.requests(problem, group_size=self.group_size, seed=seed))

    def _begin(self, drawn: Drawn) -> None:
        for index, request in enumerate(drawn.requests):
            self._stream.add(drawn.number * self.group_size + index, request, self.params)

    def _finish(self, output: TokenOutput) -> None:
        number, index = divmod(output.index, self.group_size)
        drawn = self._unfinished[number]
        drawn.rollouts[index] = self.sampler.rollout(drawn.requests[index], output)
        if len(drawn.rollouts) == self.group_size:
            del self._unfinished[number]
            self._judge(drawn)

    def _judge(self, drawn: Drawn) -> None:
        rollouts = [drawn.rollouts[index] for index in range(self.group_size)]
        [drawn.judging] = self.scorer.submit([(0, RolloutGroup(drawn.problem, rollouts))])

    def _settle(self) -> None:
        """Take the verdicts that are there; a group not kept makes room for another at once."""
        for drawn in self.queue:
            if drawn.verified is None and drawn.judging is not None and drawn.judging.verdicts.done():
                [drawn.verified] = self.scorer.wait([drawn.judging])
                drawn.kept = self.keep(drawn.verified)

    def _head(self) -> list[Drawn] | None:
        """The next batch, from the front of the queue; None while that is not known."""
        batch: list[Drawn] = []
        judged: list[VerifiedGroup] = []
        num_kept = 0
        for drawn in self.queue:
            if drawn.verified is None:
                return None
            batch.append(drawn)
            judged.append(drawn.verified)
            num_kept += drawn.kept
            if num_kept == self.wanted or len(batch) == self.cap:
                return batch
            if len(batch) >= self.wanted and self.scorer.too_undecided(judged):
                return batch  # the verifier is broken; more samples would not mend it
        return None

    # -- for the trainer -----------------------------------------------------------------------------

    def take(self, timed: Timed) -> tuple[list[VerifiedGroup], list[int], Metrics]:
        """The next batch: every group of it, the positions of those kept, and how long it was waited for.

        `timed` is given "rollout" while the front of the queue is being sampled, "verify" while it is judged.
        """
        start, busy = time.perf_counter(), self._busy_s()
        batch = None
        while batch is None:
            name, since = "verify" if self._sampled() else "rollout", time.perf_counter()
            with timed(name):
                while batch is None and name == ("verify" if self._sampled() else "rollout"):
                    batch = self._look()
            if name == "verify":
                self.scorer.waited(time.perf_counter() - since)
        metrics = {
            "flow/idle_s": time.perf_counter() - start,
            "flow/overlap": self._overlap(start, busy),
            "flow/queue_groups": float(sum(drawn.finished for drawn in self.queue)),
        }
        with timed("rollout"), timed("verify"):  # both are told of every step
            self._left_at, self._busy_then = time.perf_counter(), self._busy_s()
        groups = [drawn.verified for drawn in batch if drawn.verified is not None]
        return groups, [place for place, drawn in enumerate(batch) if drawn.kept], metrics

    def _look(self) -> list[Drawn] | None:
        """The next batch if it is there, taken out of the queue; else get on with it for a moment."""
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._settle()
            if (batch := self._head()) is not None:
                for _ in batch:
                    self.queue.popleft()
                self.next_batch = self.sampler.policy_version + 1
                self.problems.observe([drawn.verified for drawn in batch if drawn.verified is not None])
                return batch
            self._refill()
            if self._threaded:
                self._changed.wait(LOOK_S)
                return None
        if self._stream.busy:
            self._advance(self._stream.step())
        elif waited := [drawn.judging.verdicts for drawn in self.queue if drawn.judging is not None]:
            wait(waited, timeout=LOOK_S)
        return None

    def _sampled(self) -> bool:
        """Whether the front of the queue waits for verdicts alone."""
        with self._changed:
            first = next((drawn for drawn in self.queue if drawn.verified is None), None)
            return first is not None and first.finished

    def _busy_s(self) -> float:
        engine = self.sampler.engine
        return getattr(engine, "busy_s", 0.0)

    def _overlap(self, now: float, busy: float) -> float:
        """Share of the time since the trainer left with a batch in which the sampler's process decoded."""
        if not self._left_at:
            return 0.0
        return min(1.0, (busy - self._busy_then) / max(1e-9, now - self._left_at))

    # -- checkpoints ---------------------------------------------------------------------------------

    def held(self) -> AbstractContextManager[Any]:
        """Nothing is drawn or judged within."""
        return self._changed

    def state(self) -> dict[str, Any]:
        """The queue, as plain values; `held` with what else belongs to the same moment.

        Groups that are being sampled are there by their problem alone: they are begun again.
        """
        with self._changed:
            self._settle()
            return {"num_drawn": self._num_drawn, "queue": [_plain(drawn) for drawn in self.queue]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up `state`, before `open`."""
        self._num_drawn = state["num_drawn"]
        wanted = {row["problem"] for row in state["queue"]}
        found = {problem.id: problem for problem in self.data if problem.id in wanted} if wanted else {}
        if lost := sorted(wanted - found.keys()):
            raise ConfigError(
                f"the checkpoint's queue holds problem {lost[0]!r}, which the data has not. Restore the "
                "run's data, or start a new run."
            )
        for row in state["queue"]:
            drawn = self._drawn(row["number"], found[row["problem"]])
            self.queue.append(drawn)
            if not row["rollouts"]:
                self._unfinished[drawn.number] = drawn
                continue
            drawn.rollouts = {index: _rollout(one) for index, one in enumerate(row["rollouts"])}
            if row["verdicts"]:
                verdicts = [Verdict(**one) for one in row["verdicts"]]
                drawn.verified = VerifiedGroup(drawn.problem, list(drawn.rollouts.values()), verdicts)
                drawn.kept = self.keep(drawn.verified)
            else:
                self._judge(drawn)


def _plain(drawn: Drawn) -> dict[str, Any]:
    rollouts = [drawn.rollouts[index] for index in sorted(drawn.rollouts)] if drawn.finished else []
    verdicts = [] if drawn.verified is None else drawn.verified.verdicts
    return {
        "number": drawn.number,
        "problem": drawn.problem.id,
        "rollouts": [
            _fields(one)
            | {name: torch.tensor(getattr(one, name), dtype=kind) for name, kind in COLUMNS.items()}
            for one in rollouts
        ],
        "verdicts": [
            _fields(one)
            | {"reward": None if one.reward is None else float(one.reward)}
            | {"parts": {name: float(value) for name, value in one.parts.items()}}
            for one in verdicts
        ],
    }


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(**{**row, **{name: row[name].tolist() for name in COLUMNS}})


def _fields(one: Rollout | Verdict) -> dict[str, Any]:
    return {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
