"""Verified groups to those worth training on, and how many more to sample."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, get_args

from verigrad.engine.schema import Episode, Metrics, StopReason, VerifiedGroup

TOLERANCE = 1e-8  # rewards closer than this are equal
MIN_KEEP_RATE = 0.01  # a keep rate of 0 would ask for infinitely many groups

KeepFn = Callable[[VerifiedGroup], bool]


def has_signal(group: VerifiedGroup) -> bool:
    """Whether the group can move the policy: equal rewards give equal advantages, all zero.

    DAPO (arXiv 2503.14476) drops such groups and samples others. Looks at the verifier's rewards before
    any shaping, since a length penalty would make a group of wrong answers look informative.
    Undecided verdicts do not count: one right answer and seven dead sandboxes have no signal.
    """
    rewards = group.correctness
    return len(rewards) >= 2 and max(rewards) - min(rewards) > TOLERANCE


def keep_all(group: VerifiedGroup) -> bool:
    """Whether at least one of the group's rollouts was decided."""
    return bool(group.correctness)


@dataclass(frozen=True, slots=True)
class KeepRate:
    """Moving average of the share of sampled groups that were kept; float() of it is its whole state."""

    value: float = 1.0
    momentum: float = 0.7

    def update(self, kept: int, sampled: int) -> "KeepRate":
        """The average after `kept` of `sampled` groups passed (before any surplus was cut)."""
        if sampled == 0:
            return self
        value = self.momentum * self.value + (1 - self.momentum) * kept / sampled
        return KeepRate(value, self.momentum)

    def __float__(self) -> float:
        return self.value


def num_to_sample(missing: int, *, keep_rate: SupportsFloat, sampled: int, cap: int) -> int:
    """Groups to ask for next: enough, at the expected keep rate, to fill `missing` places.

    Never takes the step's total beyond `cap`. 0 ends the step: train on what was kept, however few;
    nothing is repeated or padded.
    """
    wanted = math.ceil(missing / max(float(keep_rate), MIN_KEEP_RATE))
    return max(0, min(wanted, cap - sampled))


def sampling_cap(groups_per_step: int, *, oversample: float) -> int:
    """Most groups one step may sample."""
    return math.ceil(oversample * groups_per_step)


def group_stats(groups: Sequence[VerifiedGroup], kept: Sequence[VerifiedGroup]) -> Metrics:
    """Metrics over everything sampled in a step, kept or not, so that filtering cannot flatter them.

    `reward_std` is the mean over groups of the standard deviation within. `solve_all_frac` is
    the share of groups whose decided verdicts are all right, `solve_none_frac` of those whose decided rewards
    are all at most 0.
    `reward` is NaN when nothing was decided. `reward_parts/NAME` is the mean of a verdict's part of that
    name, over the verdicts that have it.
    """
    rewards = [group.correctness for group in groups]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    decided = [reward for group in rewards for reward in group]
    parts: dict[str, list[float]] = {}
    for name, part in (pair for g in groups for v in g.verdicts if v.decided for pair in v.parts.items()):
        parts.setdefault(name, []).append(part)
    return {
        "reward": statistics.fmean(decided) if decided else math.nan,
        "reward_std": _mean([statistics.stdev(group) for group in rewards if len(group) >= 2]),
        "kept_frac": _frac(len(kept), len(groups)),
        "solve_all_frac": _frac(sum(map(_all_right, groups)), len(groups)),
        "solve_none_frac": _frac(sum(bool(r) and max(r) <= TOLERANCE for r in rewards), len(groups)),
        "undecided_frac": _frac(len(rollouts) - len(decided), len(rollouts)),
        "completion_tokens_mean": _mean([rollout.num_completion_tokens for rollout in rollouts]),
        "truncated_frac": _frac(sum(rollout.truncated for rollout in rollouts), len(rollouts)),
        **{f"reward_parts/{name}": statistics.fmean(values) for name, values in sorted(parts.items())},
        **episode_stats([rollout.episode for rollout in rollouts if rollout.episode is not None]),
    }


def episode_stats(episodes: Sequence[Episode]) -> Metrics:
    """How the episodes of a step went; nothing where there were none. Shares of stop reasons sum to 1."""
    if not episodes:
        return {}
    num_calls = sum(one.num_calls for one in episodes)
    reasons = [one.stop_reason for one in episodes]
    return {
        "agent/turns_mean": _mean([one.num_turns for one in episodes]),
        "agent/tool_calls_mean": num_calls / len(episodes),
        "agent/tool_error_frac": _frac(sum(one.num_errors for one in episodes), num_calls),
        **{
            f"agent/stop/{reason}": _frac(reasons.count(reason), len(reasons))
            for reason in get_args(StopReason)
        },
    }


def _all_right(group: VerifiedGroup) -> bool:
    # not a reward of at least 1: a sum of parts may pay 1 for form alone
    outcomes = [verdict.outcome for verdict in group.verdicts if verdict.decided]
    return bool(outcomes) and set(outcomes) == {"right"}


def _frac(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else 0.0
