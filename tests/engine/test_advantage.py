"""engine/advantage.py against the reference vectors and groups worked out by hand."""

from functools import partial

import pytest
import torch

from tests.vectors import load
from verigrad.engine.advantage import (
    batch_norm,
    group_mean,
    group_norm,
    leave_one_out,
    per_group,
    score,
    soft_overlong,
    unshaped,
)
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict


def rollout(num_tokens=3, finish_reason="stop"):
    length = num_tokens + 1
    return Rollout(
        token_ids=[1] * length,
        loss_mask=[False] + [True] * num_tokens,
        logprobs=[0.0] * length,
        policy_versions=[-1] + [0] * num_tokens,
        text="",
        finish_reason=finish_reason,
        seed=0,
    )


def group(rewards, lengths=None):
    verdicts = [
        Verdict.undecided("sandbox died") if r is None else Verdict(r, "right" if r else "wrong")
        for r in rewards
    ]
    lengths = lengths or [3] * len(rewards)
    return VerifiedGroup(Problem("p", "?"), [rollout(n) for n in lengths], verdicts)


def run(vector, advantage, order=None):
    """Advantages of a vector's rewards, grouped by id, back in the vector's order."""
    rewards, ids = vector.tensor("rewards"), vector.inputs["group"]
    indices = order if order is not None else range(len(ids))
    members = {g: [i for i in indices if ids[i] == g] for g in dict.fromkeys(ids[i] for i in indices)}
    result = torch.full_like(rewards, torch.nan)
    for places, values in zip(
        members.values(), advantage([rewards[m] for m in members.values()]), strict=True
    ):
        result[places] = values
    return result


@pytest.mark.parametrize("name", ["adv_grpo_verl_eps1e-6", "adv_grpo_trl_eps1e-4"])
def test_group_norm_matches_the_reference(name):
    vector = load(name)
    advantages = run(vector, per_group(partial(group_norm, std_eps=vector.params["eps"])))
    vector.check(advantages, "adv")
    vector.check_no_bug(advantages)


@pytest.mark.parametrize(
    ("name", "function"),
    [("adv_dr_grpo", group_mean), ("adv_rloo", leave_one_out)],
    ids=lambda x: str(x)[:12],
)
def test_unscaled_baselines_match_the_reference(name, function):
    vector = load(name)
    vector.check(run(vector, per_group(function)), "adv")


def test_advantages_do_not_depend_on_the_order_of_rollouts():
    vector = load("adv_grpo_verl_eps1e-6")
    advantage = per_group(partial(group_norm, std_eps=1e-6))
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(run(vector, advantage, order), run(vector, advantage), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "function",
    [partial(group_norm, std_eps=1e-9), partial(group_norm, std_eps=1e-6), group_mean, leave_one_out],
)
def test_equal_rewards_give_exactly_zero(function, dtype):
    vector = load("adv_zero_variance_exact_zero")
    rewards = vector.tensor("rewards").to(dtype)
    assert function(rewards).tolist() == vector.expected["adv"]
    leak = ((rewards - rewards.mean()) / (rewards.std() + 1e-9)).abs().max()
    assert dtype == torch.float64 or leak > 0.5  # what would come out without the rule


def test_rewards_equal_but_for_rounding_give_exactly_zero():
    rewards = torch.tensor([0.1 + 0.2, 0.3], dtype=torch.float64)
    assert rewards[0] != rewards[1]
    assert group_norm(rewards, std_eps=1e-20).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("function", [partial(group_norm, std_eps=1e-6), group_mean, leave_one_out])
@pytest.mark.parametrize("num", [0, 1])
def test_too_small_a_group_has_no_advantage(function, num):
    assert function(torch.full([num], 0.7, dtype=torch.float64)).tolist() == [0.0] * num


def test_batch_norm_has_one_baseline_for_all_groups():
    groups = [torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0]).double(), torch.tensor([0.0]).double()]
    values = batch_norm(groups, std_eps=1e-6)
    std = (4 * 0.25 / 3) ** 0.5
    assert [v.tolist() for v in values] == [
        pytest.approx([0.5 / std, -0.5 / std], abs=1e-5),
        pytest.approx([0.5 / std], abs=1e-5),
        pytest.approx([-0.5 / std], abs=1e-5),
    ]
    assert [v.tolist() for v in batch_norm([torch.ones(2), torch.ones(1)], std_eps=1e-6)] == [[0, 0], [0]]
    assert batch_norm([], std_eps=1e-6) == []


def test_undecided_rollouts_do_not_shift_the_baseline():
    (scored,) = score([group([1.0, None, 0.0])], per_group(group_mean), shape=unshaped)
    assert scored.advantages == pytest.approx([0.5, 0.0, -0.5])


def test_a_group_with_nothing_decided_gets_zeros():
    scored = score([group([None, None]), group([1.0, 0.0])], per_group(leave_one_out), shape=unshaped)
    assert [s.advantages for s in scored] == [[0.0, 0.0], [1.0, -1.0]]


def test_a_group_keeps_its_rollouts_and_verdicts():
    verified = group([1.0, 0.0])
    (scored,) = score([verified], per_group(group_mean), shape=unshaped)
    assert (scored.problem, scored.rollouts, scored.verdicts) == (
        verified.problem,
        verified.rollouts,
        verified.verdicts,
    )


def test_shaping_is_added_before_the_baseline():
    verified = group([1.0, 1.0, None], lengths=[80, 90, 100])

    def shape(rollout):
        return soft_overlong(rollout.num_completion_tokens, max_tokens=100, buffer_tokens=20)

    (scored,) = score([verified], per_group(group_mean), shape=shape)
    assert scored.advantages == pytest.approx([0.25, -0.25, 0.0])


def test_soft_overlong_punishment_matches_the_reference():
    vector = load("soft_overlong_punishment")
    values = [
        soft_overlong(n, max_tokens=vector.params["l_max"], buffer_tokens=vector.params["l_cache"])
        for n in vector.inputs["lengths"]
    ]
    vector.check(values, "paper")
    vector.check(values, "openrlhf_capped")
    assert values[-1] != vector.expected["verl_uncapped"][-1]
