"""engine/dynamic_sampling.py: which groups are kept, how many more are asked for, what is reported."""

import dataclasses
import math

import pytest

from tests.vectors import load
from verigrad.engine import advantage
from verigrad.engine.dynamic_sampling import (
    TOLERANCE,
    KeepRate,
    group_stats,
    has_signal,
    keep_all,
    num_to_sample,
    sampling_cap,
)
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict


def group(rewards, *, name="p", lengths=None, finish_reason="stop"):
    verdicts = [
        Verdict.undecided("sandbox died") if r is None else Verdict(r, "right" if r else "wrong")
        for r in rewards
    ]
    rollouts = [
        Rollout([1] * (n + 2), [False] * 2 + [True] * n, [0.0] * (n + 2), [0] * (n + 2), "", finish_reason, 0)
        for n in lengths or [4] * len(rewards)
    ]
    return VerifiedGroup(Problem(name, "?"), rollouts, verdicts)


def test_filter_matches_the_reference():
    vector = load("dynamic_sampling_filter")
    kept = {name: has_signal(group(rewards)) for name, rewards in vector.inputs["groups"].items()}
    assert kept == vector.expected["keep"]


def test_equal_rewards_have_no_signal_however_rounded():
    assert not has_signal(group(load("adv_zero_variance_exact_zero").inputs["rewards"]))
    assert not has_signal(group([0.1 + 0.2, 0.3]))
    assert has_signal(group([0.31, 0.3]))


def test_filter_and_advantage_agree_on_what_equal_means():
    assert advantage.TOLERANCE == TOLERANCE


def test_keep_all_still_needs_one_decided_rollout():
    assert keep_all(group([None, 0.0]))
    assert not keep_all(group([None, None]))


@pytest.mark.parametrize(
    ("missing", "keep_rate", "sampled", "expected"),
    [
        (8, 1.0, 0, 8),  # nothing is known yet
        (8, 0.5, 0, 16),
        (3, 0.4, 16, 8),  # 7.5 rounded up
        (8, 0.25, 10, 14),  # 32 wanted, 24 is the cap
        (8, 0.0, 0, 24),
        (8, 0.5, 24, 0),
        (8, 0.5, 30, 0),
        (0, 0.5, 8, 0),
    ],
)
def test_next_round_asks_for_what_is_missing_over_the_keep_rate(missing, keep_rate, sampled, expected):
    cap = sampling_cap(8, oversample=3.0)
    assert cap == 24
    assert num_to_sample(missing, keep_rate=keep_rate, sampled=sampled, cap=cap) == expected
    assert num_to_sample(missing, keep_rate=KeepRate(keep_rate), sampled=sampled, cap=cap) == expected


def test_cap_rounds_up():
    assert sampling_cap(3, oversample=1.5) == 5


def test_keep_rate_follows_what_was_kept_and_survives_a_checkpoint():
    rate = KeepRate().update(4, 8)
    assert float(rate) == pytest.approx(0.7 + 0.3 * 0.5)
    assert KeepRate(float(rate)) == rate
    assert rate.update(0, 0) == rate
    for _ in range(100):
        rate = rate.update(1, 4)
    assert float(rate) == pytest.approx(0.25)


def test_stats_cover_every_sampled_rollout():
    groups = [
        group([1.0, 1.0]),
        group([0.0, 0.0], finish_reason="length", lengths=[8, 8]),
        group([1.0, 0.0]),
        group([None, None]),
    ]
    stats = group_stats(groups, [g for g in groups if has_signal(g)])
    assert stats == pytest.approx(
        {
            "reward": 0.5,
            "reward_std": math.sqrt(0.5) / 3,
            "kept_frac": 0.25,
            "solve_all_frac": 0.25,
            "solve_none_frac": 0.25,
            "undecided_frac": 0.25,
            "completion_tokens_mean": 5.0,
            "truncated_frac": 0.25,
        }
    )


def test_all_solved_is_what_the_verdicts_say_and_not_a_reward_of_one():
    paid_for_form, worth_half = Verdict(1.0, "wrong"), Verdict(0.5, "right")
    groups = [
        dataclasses.replace(group([1.0, 1.0]), verdicts=verdicts)
        for verdicts in ([paid_for_form] * 2, [worth_half] * 2, [worth_half, Verdict.undecided("died")])
    ]
    assert group_stats(groups, [])["solve_all_frac"] == pytest.approx(2 / 3)


def test_reward_is_unknown_when_nothing_was_decided():
    assert math.isnan(group_stats([group([None])], [])["reward"])
    assert group_stats([], [])["kept_frac"] == 0.0


def test_the_mean_of_each_part_of_the_reward_is_reported():
    verdicts = [
        Verdict(1.2, "right", parts={"right": 1.0, "short": 0.2}),
        Verdict(0.4, "partial", parts={"right": 0.0, "short": 0.4}),
        Verdict(0.0, "timeout"),
        Verdict.undecided("dead"),
    ]
    stats = group_stats([dataclasses.replace(group([1.0, 1.0, 0.0, None]), verdicts=verdicts)], [])
    assert (stats["reward_parts/right"], stats["reward_parts/short"]) == pytest.approx((0.5, 0.3))
    assert not [name for name in group_stats([group([1.0, 0.0])], []) if name.startswith("reward_parts")]
