"""engine/token_losses.py against the reference vectors: values, gradients, who was stopped."""

import math

import pytest
import torch

from tests.loss_inputs import AGGREGATIONS, batch, padded, tokens
from tests.vectors import load
from verigrad.engine.token_losses import (
    cispo,
    clip,
    dppo_kl,
    dppo_tv,
    dro,
    dual_clip,
    prime,
    reinforce,
    sapo,
    two_sided,
)

BOUNDS = {"clip_low": 0.2, "clip_high": 0.2}
REGION = {"clip_low": 0.1, "clip_high": 0.1, "ratio_cap": 20.0}

CASES = {
    "ppo_clip_token-mean": (clip, BOUNDS),
    "ppo_clip_seq-mean-token-mean": (clip, BOUNDS),
    "ppo_clip_seq-mean-token-sum": (clip, BOUNDS),
    "ppo_clip_dr-grpo": (clip, BOUNDS),
    "ppo_clip_higher_dapo": (clip, {"clip_low": 0.2, "clip_high": 0.28}),
    "ppo_on_policy_identity": (clip, BOUNDS),
    "ppo_dual_clip": (dual_clip, BOUNDS | {"dual_clip": 3.0}),
    "ppo_two_sided_delta": (two_sided, BOUNDS | {"ratio_cap": 4.0}),
    "cispo_capped_at_eps_high": (cispo, {"ratio_floor": 0.0, "ratio_cap": 1.25}),
    "cispo_band": (cispo, {"ratio_floor": 0.8, "ratio_cap": 1.25}),
    "sapo": (sapo, {"tau_pos": 1.0, "tau_neg": 1.05}),
    "dppo_tv": (dppo_tv, REGION),
    "dppo_kl": (dppo_kl, REGION | {"clip_low": 0.025, "clip_high": 0.025}),
    "prime_rl_default": (prime, {"clip_low": 0.12, "clip_high": 0.12, "pull": 1e-3}),
    "reinforce": (reinforce, {}),
    "dro": (dro, {"pull": 0.3}),
}


def run(name):
    vector = load(name)
    function, settings = CASES[name]
    inputs, logp = batch(vector, AGGREGATIONS[vector.params.get("agg", "token-mean")])
    result = function(inputs, **settings)
    loss = (inputs.weights * result.values).sum()
    loss.backward()
    return vector, result, loss, logp.grad


@pytest.mark.parametrize("name", CASES)
def test_losses_match_the_reference(name):
    vector, result, loss, gradient = run(name)
    vector.check(loss, "loss")
    vector.check(gradient, "grad")
    for bug in vector.bug_values:
        vector.check_no_bug(gradient if bug.endswith("grad") else loss, bug)
    assert (result.stopped_low.dtype, result.stopped_high.dtype) == (torch.bool, torch.bool)


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n][0] not in (cispo, prime)])
def test_the_stopped_tokens_are_those_without_a_gradient(name):
    vector, result, _, gradient = run(name)
    stopped = padded(vector, result.stopped_low | result.stopped_high).bool()
    assert torch.equal(stopped, vector.tensor("mask").bool() & (gradient == 0))


def test_a_region_drops_the_tokens_the_reference_drops():
    for name in ("dppo_tv", "dppo_kl"):
        vector, result, _, _ = run(name)
        kept = padded(vector, ~(result.stopped_low | result.stopped_high))
        assert torch.equal(kept, vector.tensor("mask") * torch.tensor(vector.expected["keep"]))
    vector, result, _, _ = run("prime_rl_default")
    vector.check(padded(vector, result.stopped_low | result.stopped_high), "dropped")


def test_clip_fractions_go_by_the_sign_of_the_advantage():
    vector = load("ppo_clip_metrics")
    result = clip(batch(vector)[0], **BOUNDS)
    vector.check(result.stopped_high.double().mean(), "clip_frac_high")
    vector.check(result.stopped_low.double().mean(), "clip_frac_low")


def test_a_token_moving_with_its_advantage_from_the_far_side_is_not_clipped():
    inputs = tokens(
        logprobs=[-1.5, -1.5, -1.5, -0.5, -0.5],
        old_logprobs=[-1.0] * 5,
        advantages=[1.0, -1.0, -1.0, 1.0, -1.0],
    )
    result = clip(inputs, **BOUNDS)
    result.values.sum().backward()
    assert [g != 0 for g in inputs.logprobs.grad.tolist()] == [True, False, False, False, True]
    assert (result.stopped_low.sum(), result.stopped_high.sum()) == (2, 1)


def test_the_dual_clip_bounds_only_negative_advantages():
    five = math.log(5.0)
    inputs = tokens(logprobs=[0.0, 0.0], old_logprobs=[-five, -five], advantages=[-2.0, 2.0])
    result = dual_clip(inputs, clip_low=0.2, clip_high=9.0, dual_clip=3.0)
    assert result.values.tolist() == pytest.approx([2.0 * 3.0, -2.0 * 5.0])
    assert result.stopped_high.tolist() == [True, False]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_two_sided_cap_stops_both_signs_wherever_it_lies(advantage):
    # a cap below 1 + clip_high is odd, and still a cap
    inputs = tokens(
        logprobs=[math.log(0.15), math.log(0.12)],
        old_logprobs=[math.log(0.1)] * 2,
        advantages=[advantage] * 2,
    )
    result = two_sided(inputs, clip_low=0.2, clip_high=0.6, ratio_cap=1.3)
    result.values.sum().backward()
    assert result.stopped_high.tolist() == [True, False]
    assert inputs.logprobs.grad.tolist() == pytest.approx([0.0, -advantage * 1.2])


def test_cispo_keeps_every_gradient_and_tells_whose_weight_was_bounded():
    vector, result, _, gradient = run("cispo_band")
    mask = vector.tensor("mask").bool()
    assert (gradient[mask] != 0).all()
    weight = vector.tensor("mask") * torch.tensor(vector.expected["weight"], dtype=torch.float64)
    assert torch.equal(padded(vector, result.stopped_low), (weight == 0.8).double())
    assert torch.equal(padded(vector, result.stopped_high), (weight == 1.25).double())


def test_a_probability_of_one_has_a_bernoulli_kl():
    # the last pair is what rounding gives: a log-probability above 0
    inputs = tokens(logprobs=[0.0, -1e-9, 1e-7], old_logprobs=[-1e-9, 0.0, 0.0], advantages=[1.0, -1.0, 1.0])
    result = dppo_kl(inputs, clip_low=0.05, clip_high=0.05, ratio_cap=20.0)
    assert torch.isfinite(result.values).all()
    assert not (result.stopped_low | result.stopped_high).any()
    inputs = tokens(logprobs=[1e-7], old_logprobs=[-0.7])
    assert dppo_kl(inputs, clip_low=0.05, clip_high=0.05, ratio_cap=20.0).stopped_high.all()


def test_the_bernoulli_kl_stops_only_moves_its_advantage_asked_for():
    # old 0.5, now 0.9 or 0.1: KL = 0.5 log(0.5/0.9) + 0.5 log(0.5/0.1) = 0.5108 both ways
    up, down, half = math.log(0.9), math.log(0.1), math.log(0.5)
    inputs = tokens(logprobs=[up, up, down, down], old_logprobs=[half] * 4, advantages=[1.0, -1.0, 1.0, -1.0])
    for bound, stopped in ((0.51, True), (0.511, False)):
        result = dppo_kl(inputs, clip_low=bound, clip_high=bound, ratio_cap=20.0)
        assert result.stopped_high.tolist() == [stopped, False, False, False]
        assert result.stopped_low.tolist() == [False, False, False, stopped]


def test_dropped_tokens_are_weighted_by_the_capped_ratio_else():
    inputs = tokens(logprobs=[-1.0], old_logprobs=[-5.0], advantages=[-1.0])  # ratio e^4 = 54.6
    dppo_tv(inputs, clip_low=0.2, clip_high=0.2, ratio_cap=20.0).values.sum().backward()
    assert inputs.logprobs.grad.tolist() == [20.0]


def test_prime_takes_its_ratio_against_the_sampler_and_old_where_there_is_none():
    inputs = tokens(
        logprobs=[-1.0, -1.0, -1.0],
        old_logprobs=[-1.2, -1.2, math.nan],
        rollout_logprobs=[-1.1, math.nan, math.nan],
    )
    values = prime(inputs, clip_low=0.2, clip_high=0.2, pull=0.5).values
    assert values.tolist() == pytest.approx(
        [-math.exp(0.1) + 0.5 * 0.01, -math.exp(0.2) + 0.5 * 0.04, -1.0], abs=1e-12
    )


def test_prime_pulls_dropped_tokens_back_too():
    inputs = tokens(logprobs=[-0.1], old_logprobs=[-3.0])  # probability 0.05 -> 0.9, advantage 1
    result = prime(inputs, clip_low=0.2, clip_high=0.2, pull=1e-3)
    result.values.sum().backward()
    assert result.stopped_high.tolist() == [True]
    assert inputs.logprobs.grad.tolist() == pytest.approx([2e-3 * 2.9])


def test_sapo_fades_on_both_sides_by_its_own_steepness():
    # (4 / tau) sigmoid(tau (r - 1)) at r = 3: tau 2 -> 2 sigmoid(4), tau 0.5 -> 8 sigmoid(1)
    inputs = tokens(logprobs=[0.0] * 2, old_logprobs=[-math.log(3.0)] * 2, advantages=[1.0, -1.0])
    values = sapo(inputs, tau_pos=2.0, tau_neg=0.5).values
    assert values.tolist() == pytest.approx([-2 / (1 + math.exp(-4)), 8 / (1 + math.exp(-1))])
