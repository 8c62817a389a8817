"""Problems drawn by how much they teach at the moment: neither solved nor out of reach.

Two curricula, by the category a problem belongs to or by each problem alone. Both weigh by p * (1 - p), the
variance of a right-or-wrong reward and p its solve rate: how often a group will disagree with itself, and so
have a gradient.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import ProblemStream, fingerprint_of
from verigrad.engine.schema import Metrics, VerifiedGroup
from verigrad.engine.settings import CurriculumConfig
from verigrad.verifiers.base import Problem

MOMENTUM = 0.9  # of a category's running solve rate, per group
PRIOR = 2.0  # rollouts that a problem's first estimate counts as; with a rate of 0.5, Beta(1, 1)
TOLERANCE = 1e-8  # a reward this close to 1 is right

Indices = NDArray[np.int64]


class Curriculum(Protocol):
    """An order of problems that may depend on what came of them."""

    def next_batch(self, num_problems: int) -> list[Problem]:
        """The next problems."""

    def observe(self, groups: Sequence[VerifiedGroup]) -> None:
        """Learn from judged groups, in the order given; undecided rollouts say nothing."""

    def metrics(self) -> Metrics:
        """Where the curriculum stands, by bare name."""

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs, in plain values and tensors."""

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; ConfigError if it belongs to other data."""


def problem_stream(problems: Sequence[Problem], cfg: Config) -> ProblemStream | Curriculum:
    """The order in which the recipe draws its problems."""
    seed, shuffle, chosen = cfg.train.seed, cfg.data.shuffle, cfg.curriculum
    if chosen.by == "category":
        return CategoryCurriculum(problems, chosen, seed=seed, shuffle=shuffle)
    if chosen.by == "problem":
        if not shuffle:
            raise ConfigError(
                "data.shuffle = false has no effect with curriculum.by = 'problem', which draws by solve "
                "rate. Remove one of the two."
            )
        return ProblemCurriculum(problems, chosen, seed=seed)
    return ProblemStream(problems, seed=seed, shuffle=shuffle)


# By category -----------------------------------------------------------------------------------------------


class CategoryCurriculum:
    """Draws each problem's category in proportion to p * (1 - p) + floor, p being its running solve rate.

    Within a category every problem is visited once per epoch, as without a curriculum.
    """

    def __init__(
        self, problems: Sequence[Problem], cfg: CurriculumConfig, *, seed: int, shuffle: bool
    ) -> None:
        members: dict[str, list[Problem]] = {}
        for problem in problems:
            members.setdefault(self._category(problem, cfg.column), []).append(problem)
        self.cfg, self.seed = cfg, seed
        self.streams = {
            name: ProblemStream(members[name], seed=seed, shuffle=shuffle) for name in sorted(members)
        }
        self.solve_rates: dict[str, float] = {}
        self.num_drawn = 0

    def next_batch(self, num_problems: int) -> list[Problem]:
        """The next problems; which categories they come from depends on what was observed so far."""
        rng = random.Random(f"curriculum {self.seed} {self.num_drawn}")
        self.num_drawn += num_problems
        names = list(self.streams)
        drawn = rng.choices(names, [self.weight(name) for name in names], k=num_problems)
        return [next(self.streams[name]) for name in drawn]

    def weight(self, name: str) -> float:
        """How much a category teaches now; one never seen counts as half solved."""
        rate = self.solve_rates.get(name, 0.5)
        return rate * (1 - rate) + self.cfg.floor

    def observe(self, groups: Sequence[VerifiedGroup]) -> None:
        """Learn from judged groups, in the order given; undecided rollouts say nothing."""
        for group in groups:
            if rewards := group.correctness:
                name, now = self._category(group.problem, self.cfg.column), sum(rewards) / len(rewards)
                before = self.solve_rates.get(name, now)
                self.solve_rates[name] = MOMENTUM * before + (1 - MOMENTUM) * min(max(now, 0.0), 1.0)

    def metrics(self) -> Metrics:
        """`unseen_frac`: share of the categories that no judged group has come from."""
        return {"unseen_frac": 1 - len(self.solve_rates) / len(self.streams)}

    def state(self) -> dict[str, Any]:
        """Where every category stands."""
        return {
            "streams": {name: stream.state() for name, stream in self.streams.items()},
            "solve_rates": dict(self.solve_rates),
            "num_drawn": self.num_drawn,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused if it belongs to other data."""
        if state["streams"].keys() != self.streams.keys():
            raise ConfigError(
                f"the checkpoint's categories {sorted(state['streams'])} are not the data's "
                f"{sorted(self.streams)}. Restore the run's data, or start a new run."
            )
        for name, stream in self.streams.items():
            stream.load_state(state["streams"][name])
        self.solve_rates, self.num_drawn = dict(state["solve_rates"]), state["num_drawn"]

    @staticmethod
    def _category(problem: Problem, column: str) -> str:
        if column not in problem.meta:
            raise _no_column(problem, "curriculum.column", column)
        return str(problem.meta[column])


# By problem ------------------------------------------------------------------------------------------------


class ProblemCurriculum:
    """Draws each problem in proportion to p * (1 - p) + floor, p being the estimate of its own solve rate.

    The estimate is the mean of a Beta distribution: a first guess worth two rollouts, and the right and wrong
    rollouts seen, of which each visit forgets a share. A problem that was all right at `retire_after` visits
    in a row is retired; `recheck_frac` of the draws look at retired ones again, and one wrong answer brings a
    problem back. No problem is twice in a batch unless there are too few.

    Balanced online difficulty filtering (arXiv 2504.03380) and adaptive difficulty curricula (arXiv
    2504.05520) aim at solve rates near one half for the same reason. Here nothing is filtered out, no target
    is set, and the estimate is made of the training rollouts alone.
    """

    def __init__(self, problems: Sequence[Problem], cfg: CurriculumConfig, *, seed: int) -> None:
        if not problems:
            raise ConfigError("no problems to draw from. Bring data with at least one.")
        num = len(problems)
        self.problems, self.cfg, self.seed = problems, cfg, seed
        self.identity = {"seed": seed, "fingerprint": fingerprint_of(problems)}
        self.first_guess = np.full(num, 0.5)  # [P]
        if cfg.rate_column:
            self.first_guess = np.array([_rate(problem, cfg.rate_column) for problem in problems])
        self.right = np.zeros(num)  # [P] right rollouts seen, the older ones counting less
        self.wrong = np.zeros(num)  # [P]
        self.streak = np.zeros(num, np.int64)  # [P] visits in a row that were all right
        self.visits = np.zeros(num, np.int64)  # [P] visits with a decided rollout
        self.num_batches = 0
        self.places: dict[str, int] = {}  # id -> index of the problems drawn so far

    @property
    def solve_rates(self) -> NDArray[np.float64]:  # [P]
        """The estimate for each problem."""
        seen = self.right + self.wrong
        return np.asarray((PRIOR * self.first_guess + self.right) / (PRIOR + seen))

    @property
    def retired(self) -> NDArray[np.bool_]:  # [P]
        """Whether each problem is left out of the ordinary draw."""
        after = self.cfg.retire_after
        return self.streak >= after if after else np.zeros(len(self.streak), np.bool_)

    def next_batch(self, num_problems: int) -> list[Problem]:
        """The next problems; beyond as many as there are, all are drawn once before one is drawn again."""
        rng = np.random.default_rng([self.seed, self.num_batches])
        self.num_batches += 1
        chosen: list[int] = []
        while len(chosen) < num_problems:
            chosen += self._draw(min(num_problems - len(chosen), len(self.problems)), rng)
        batch = [self.problems[index] for index in chosen]
        self.places |= {problem.id: index for problem, index in zip(batch, chosen, strict=True)}
        return batch

    def _draw(self, num: int, rng: np.random.Generator) -> list[int]:
        """Different problems, active and retired ones in mixed order."""
        retired, rates = self.retired, self.solve_rates
        weights = rates * (1 - rates) + self.cfg.floor
        active, resting = np.flatnonzero(~retired), np.flatnonzero(retired)
        num_rechecks = int(num * self.cfg.recheck_frac + rng.random())  # right on average, whole each time
        num_rechecks = min(max(num_rechecks, num - len(active)), len(resting))
        rechecked = rng.choice(resting, num_rechecks, replace=False)
        chosen = np.concatenate([_weighted(active, weights[active], num - num_rechecks, rng), rechecked])
        return [int(index) for index in rng.permutation(chosen)]

    def observe(self, groups: Sequence[VerifiedGroup]) -> None:
        """Learn from judged groups, in the order given; undecided rollouts say nothing."""
        for group in groups:
            index = self._place(group.problem)
            if rewards := [min(max(reward, 0.0), 1.0) for reward in group.correctness]:
                self.right[index] = self.cfg.memory * self.right[index] + sum(rewards)
                self.wrong[index] = self.cfg.memory * self.wrong[index] + len(rewards) - sum(rewards)
                all_right = min(rewards) >= 1 - TOLERANCE
                self.streak[index] = self.streak[index] + 1 if all_right else 0
                self.visits[index] += 1

    def _place(self, problem: Problem) -> int:
        if problem.id not in self.places:  # drawn before a restart, and judged after it
            self.places = {known.id: index for index, known in enumerate(self.problems)}
        return self.places[problem.id]

    def metrics(self) -> Metrics:
        """Shares of the problems: `retired_frac`, and `unseen_frac` that no judged group was of."""
        return {"retired_frac": float(self.retired.mean()), "unseen_frac": float((self.visits == 0).mean())}

    def state(self) -> dict[str, Any]:
        """What is known of every problem, as tensors [P]."""
        columns = {name: torch.from_numpy(getattr(self, name).copy()) for name in COLUMNS}
        return {**self.identity, **columns, "num_batches": self.num_batches}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; refused if it belongs to other data."""
        changed = [name for name, value in self.identity.items() if state.get(name) != value]
        if changed:
            raise ConfigError(
                f"the checkpoint's solve rates do not fit the data: {changed[0]} was "
                f"{state.get(changed[0])!r}, is {self.identity[changed[0]]!r}. Restore the run's data, or "
                "start a new run."
            )
        for name in COLUMNS:
            setattr(self, name, state[name].numpy().copy())
        self.num_batches = state["num_batches"]


COLUMNS = ("right", "wrong", "streak", "visits")


def _weighted(indices: Indices, weights: NDArray[np.float64], num: int, rng: np.random.Generator) -> Indices:
    """`num` different indices, one after another in proportion to what is left of the weights.

    Each waits an exponential time of its weight, and the first to arrive are taken (Efraimidis and
    Spirakis, 2006).
    """
    waits = rng.exponential(size=len(indices)) / weights
    return indices[np.argsort(waits, kind="stable")[:num]]


def _rate(problem: Problem, column: str) -> float:
    if column not in problem.meta:
        raise _no_column(problem, "curriculum.rate_column", column)
    value = problem.meta[column]
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = -1.0
    if isinstance(value, bool) or not 0 <= rate <= 1:
        raise ConfigError(
            f"problem {problem.id} has {column} = {value!r:.60}, expected a solve rate from 0 to 1. Correct "
            "the column, or remove curriculum.rate_column."
        )
    return rate


def _no_column(problem: Problem, setting: str, column: str) -> ConfigError:
    return ConfigError(
        f"{setting} = {column!r}, but problem {problem.id} has no such column; it has "
        f"{', '.join(sorted(problem.meta)) or 'none'}. Name a column that every row has."
    )
