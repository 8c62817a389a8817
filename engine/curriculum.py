"""Problems drawn by how much their category teaches at the moment: neither solved nor out of reach."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from verigrad.engine.config import Config, ConfigError
from verigrad.engine.data import ProblemStream
from verigrad.engine.schema import VerifiedGroup
from verigrad.verifiers.base import Problem

FLOOR = 0.04  # so that a solved or hopeless category is still looked at now and then
MOMENTUM = 0.9  # of a category's running solve rate, per group


class Curriculum:
    """Draws each problem's category in proportion to p * (1 - p) + 0.04, p being its running solve rate.

    p * (1 - p) is the variance of a right-or-wrong reward: how often a group will disagree with itself, and
    so have a gradient. Within a category every problem is visited once per epoch, as without a curriculum.
    """

    def __init__(self, problems: Sequence[Problem], *, column: str, seed: int, shuffle: bool) -> None:
        members: dict[str, list[Problem]] = {}
        for problem in problems:
            members.setdefault(_category(problem, column), []).append(problem)
        self.column, self.seed = column, seed
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
        return rate * (1 - rate) + FLOOR

    def observe(self, groups: Sequence[VerifiedGroup]) -> None:
        """Learn from judged groups, in the order given; undecided rollouts say nothing."""
        for group in groups:
            if rewards := group.correctness:
                name, now = _category(group.problem, self.column), sum(rewards) / len(rewards)
                before = self.solve_rates.get(name, now)
                self.solve_rates[name] = MOMENTUM * before + (1 - MOMENTUM) * min(max(now, 0.0), 1.0)

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


def problem_stream(problems: Sequence[Problem], cfg: Config) -> ProblemStream | Curriculum:
    """The order in which the recipe draws its problems."""
    seed, shuffle = cfg.train.seed, cfg.data.shuffle
    if not cfg.data.curriculum:
        return ProblemStream(problems, seed=seed, shuffle=shuffle)
    return Curriculum(problems, column=cfg.data.curriculum, seed=seed, shuffle=shuffle)


def _category(problem: Problem, column: str) -> str:
    if column not in problem.meta:
        raise ConfigError(
            f"data.curriculum = {column!r}, but problem {problem.id} has no such column; it has "
            f"{', '.join(sorted(problem.meta)) or 'none'}. Name a column that every row has."
        )
    return str(problem.meta[column])
