"""Recorded verdicts and those of now -> what differs, and which groups would have taught something else."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.engine.dynamic_sampling import TOLERANCE, has_signal
from verigrad.engine.rollout_file import Recorded
from verigrad.engine.schema import VerifiedGroup
from verigrad.verifiers.base import Verdict


@dataclass(frozen=True, slots=True)
class Difference:
    """One rollout that is judged otherwise now."""

    step: int
    group: int
    index: int
    problem_id: str
    old: Verdict
    new: Verdict
    what: tuple[str, ...]  # which of reward, outcome, parts, extracted

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "step": self.step,
            "group": self.group,
            "index": self.index,
            "problem_id": self.problem_id,
            "what": list(self.what),
            "old": _plain(self.old),
            "new": _plain(self.new),
        }


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A group that trains otherwise by the verdicts of now: other mean, kept or dropped, other signs."""

    step: int
    group: int
    problem_id: str
    old_mean: float | None  # of the decided rewards
    new_mean: float | None
    old_kept: bool  # whether its rewards differ, so that dynamic sampling keeps it
    new_kept: bool
    num_flipped: int  # rollouts whose advantage, reward minus mean, has another sign

    @property
    def flips(self) -> bool:
        """Whether it is kept or dropped otherwise, or pushes some rollout the other way."""
        return self.old_kept != self.new_kept or self.num_flipped > 0

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One file of rollouts, judged again."""

    file: str
    step: int
    num_rollouts: int
    num_groups: int
    num_reworded: int  # same verdict, another reason
    num_settled: int  # episodes that ended without a final state to judge: no verifier was or is asked
    old_reward: float | None  # mean of the decided
    new_reward: float | None
    differences: Sequence[Difference]
    groups: Sequence[GroupChange]  # only those in which something changed

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        plain = {name: getattr(self, name) for name in self.__slots__}
        return plain | {
            "differences": [one.to_json() for one in self.differences],
            "groups": [one.to_json() | {"flips": one.flips} for one in self.groups],
        }


def compare(file: str, groups: Sequence[Sequence[Recorded]], now: Sequence[Sequence[Verdict]]) -> Comparison:
    """Recorded groups [P][G] against the verdicts of now [P][G]."""
    pairs = [list(zip(rows, verdicts, strict=True)) for rows, verdicts in zip(groups, now, strict=True)]
    flat = [pair for group in pairs for pair in group]
    same = [(row, new) for row, new in flat if not differs(row.verdict, new)]
    return Comparison(
        file=file,
        step=flat[0][0].step if flat else 0,
        num_rollouts=len(flat),
        num_groups=len(pairs),
        num_reworded=sum(_written(row.verdict.reason) != _written(new.reason) for row, new in same),
        num_settled=sum(row.episode is not None and row.episode.verdict is not None for row, _ in flat),
        old_reward=_mean([row.verdict for row, _ in flat]),
        new_reward=_mean([new for _, new in flat]),
        differences=[
            Difference(row.step, row.group, row.index, row.problem.id, row.verdict, new, what)
            for row, new in flat
            if (what := differs(row.verdict, new))
        ],
        groups=list(_changes(groups, now)),
    )


def differs(old: Verdict, new: Verdict) -> tuple[str, ...]:
    """What of a verdict is another: reward, outcome, parts, extracted; the wording of its reason is not."""
    pairs = {
        "reward": (old.reward, new.reward),
        "outcome": (old.outcome, new.outcome),
        "parts": (dict(old.parts), dict(new.parts)),
        "extracted": (_written(old.extracted), _written(new.extracted)),
    }
    return tuple(name for name, (before, after) in pairs.items() if before != after)


def signs(verdicts: Sequence[Verdict]) -> list[int]:
    """Which way each rollout is pushed: the sign of its reward minus the mean of the decided; else 0."""
    mean = _mean(verdicts)
    gaps = [0.0 if mean is None or one.reward is None else one.reward - mean for one in verdicts]
    return [0 if abs(gap) <= TOLERANCE else 1 if gap > 0 else -1 for gap in gaps]


def _changes(groups: Sequence[Sequence[Recorded]], now: Sequence[Sequence[Verdict]]) -> Iterator[GroupChange]:
    for rows, new in zip(groups, now, strict=True):
        old = [row.verdict for row in rows]
        if not any(differs(before, after) for before, after in zip(old, new, strict=True)):
            continue
        first = rows[0]
        yield GroupChange(
            step=first.step,
            group=first.group,
            problem_id=first.problem.id,
            old_mean=_mean(old),
            new_mean=_mean(new),
            old_kept=has_signal(VerifiedGroup(first.problem, [], old)),
            new_kept=has_signal(VerifiedGroup(first.problem, [], new)),
            num_flipped=sum(a != b for a, b in zip(signs(old), signs(new), strict=True)),
        )


def _mean(verdicts: Sequence[Verdict]) -> float | None:
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    return statistics.fmean(rewards) if rewards else None


def _plain(verdict: Verdict) -> dict[str, Any]:
    return {
        "reward": verdict.reward,
        "outcome": verdict.outcome,
        "parts": dict(verdict.parts),
        "extracted": verdict.extracted,
        "reason": verdict.reason,
    }


def _written(text: str) -> str:
    """As a rollout file holds it: half a surrogate pair is shown as ?."""
    return text.encode("utf-8", "replace").decode("utf-8")
