"""engine/sequence_losses.py against the reference vectors: values, gradients, who was stopped."""

import dataclasses
import math

import pytest
import torch

from tests.loss_inputs import AGGREGATIONS, batch, padded, random_step, tokens
from tests.vectors import load
from verigrad.engine.sequence_losses import gmpo, gspo, gspo_token, luspo, sequence_clip, vespo

BOUNDS = {"clip_low": 0.03, "clip_high": 0.04}
WIDE = {"clip_low": 0.2, "clip_high": 0.2}
VESPO = {"vespo_k_pos": 2.0, "vespo_lam_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lam_neg": 2.0}

CASES = {
    "gspo": (gspo, BOUNDS),
    "rloo_sequence_clip": (sequence_clip, WIDE),
    "luspo": (luspo, BOUNDS),
    "gmpo": (gmpo, WIDE),
    "vespo": (vespo, VESPO),
}


def run(name, function=None, settings=None):
    vector = load(name)
    function, settings = (function, settings) if function else CASES[name]
    inputs, logp = batch(vector, AGGREGATIONS[vector.params.get("agg", "seq-mean-token-mean")])
    result = function(inputs, **settings)
    loss = (inputs.weights * result.values).sum()
    loss.backward()
    return vector, result, loss, logp.grad


@pytest.mark.parametrize("name", CASES)
def test_losses_match_the_reference(name):
    vector, _, loss, gradient = run(name)
    vector.check(loss, "loss")
    vector.check(gradient, "grad")
    if vector.bug_values:
        vector.check_no_bug(loss)


@pytest.mark.parametrize("name", CASES)
def test_the_stopped_tokens_are_those_without_a_gradient(name):
    vector, result, _, gradient = run(name)
    stopped = padded(vector, result.stopped_low | result.stopped_high).bool()
    assert torch.equal(stopped, vector.tensor("mask").bool() & (gradient == 0))


def test_a_clipped_rollout_stops_all_its_tokens_on_the_side_it_left():
    vector, result, _, _ = run("gspo")
    # row 0: ratio 1.06 with advantage 0.9; row 3: ratio 0.9455 with advantage -0.7
    assert padded(vector, result.stopped_high).sum(1).tolist() == [6, 0, 0, 0]
    assert padded(vector, result.stopped_low).sum(1).tolist() == [0, 0, 0, 5]


def test_gspo_by_token_has_gspos_value_and_where_the_advantage_is_the_rollouts_its_gradient():
    vector, _, loss, gradient = run("gspo", gspo_token, BOUNDS)
    vector.check(loss, "loss")
    vector.check(gradient, "grad")


def test_gspo_by_token_lets_each_token_have_its_own_advantage():
    # ratios e^0.2 and e^-0.2, so the rollout's is 1
    inputs = tokens(logprobs=[-1.0, -1.4], old_logprobs=[-1.2, -1.2], advantages=[1.0, -3.0])
    gspo_token(inputs, **BOUNDS).values.sum().backward()
    assert inputs.logprobs.grad.tolist() == pytest.approx([-1.0, 3.0])
    inputs.logprobs.grad = None
    gspo(inputs, **BOUNDS).values.sum().backward()  # each token gets the mean of both
    assert inputs.logprobs.grad.tolist() == pytest.approx([1.0, 1.0])


def test_luspo_is_gspo_times_the_length():
    inputs = random_step()
    length = torch.bincount(inputs.sequence)[inputs.sequence]
    assert torch.equal(luspo(inputs, **BOUNDS).values, length * gspo(inputs, **BOUNDS).values)


def test_gmpo_clips_before_the_mean_and_by_the_advantages_sign():
    # d = 1.0 and -0.2; advantage 1: exp((0.4 - 0.2) / 2); advantage -1: exp((1.0 - 0.2) / 2)
    for advantage, value, high in ((1.0, -math.exp(0.1), [True, False]), (-1.0, math.exp(0.4), [False] * 2)):
        inputs = tokens(logprobs=[-1.0, -1.2], old_logprobs=[-2.0, -1.0], advantages=[advantage] * 2)
        result = gmpo(inputs, clip_low=0.4, clip_high=0.4)
        assert result.values.tolist() == pytest.approx([value] * 2)
        assert (result.stopped_high.tolist(), result.stopped_low.tolist()) == (high, [False, False])


def test_vespos_weight_is_that_of_the_reference_and_one_on_policy():
    vector, result, _, _ = run("vespo")
    inputs, _ = batch(vector)
    phi = (-result.values / (inputs.advantages * inputs.logprobs)).detach()
    first = torch.tensor([0, 6, 10, 13])  # first token of each row
    vector.check(phi[first], "phi")
    inputs = tokens(logprobs=[-2.0, -3.0], advantages=[1.0, -1.0])
    assert vespo(inputs, **VESPO).values.tolist() == pytest.approx([2.0, -3.0])


def test_vespo_stays_finite_whatever_its_numbers_and_its_ratio():
    inputs = tokens(logprobs=[-1.0] * 50, old_logprobs=[-30.0] * 50)
    inputs = dataclasses.replace(inputs, logprobs=inputs.logprobs.float())  # float32 ends at e^88
    steep = {"vespo_k_pos": 50.0, "vespo_lam_pos": 0.0, "vespo_k_neg": 0.0, "vespo_lam_neg": 0.0}
    assert torch.isfinite(vespo(inputs, **steep).values.float()).all()


@pytest.mark.parametrize("name", CASES)
def test_rollouts_need_not_lie_together_or_be_numbered_without_gaps(name):
    function, settings = CASES[name]
    inputs = random_step()
    values = function(inputs, **settings).values
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(1))
    mixed = dataclasses.replace(
        inputs,
        logprobs=inputs.logprobs[order],
        old_logprobs=inputs.old_logprobs[order],
        advantages=inputs.advantages[order],
        sequence=3 * inputs.sequence[order] + 2,
    )
    assert torch.allclose(function(mixed, **settings).values, values[order], rtol=0, atol=1e-12)


def test_a_long_rollouts_ratio_is_exact_enough_for_its_narrow_bounds():
    # 20,000 float32 tokens, each 3.5e-4 up: between gspo's bounds of -3e-4 and +4e-4
    old = -torch.linspace(0.1, 4.0, 20_000, dtype=torch.float64)
    inputs = tokens(logprobs=(old + 3.5e-4).tolist(), old_logprobs=old.tolist())
    inputs = dataclasses.replace(
        inputs, logprobs=inputs.logprobs.float(), old_logprobs=inputs.old_logprobs.float()
    )
    values = gspo(inputs, clip_low=3e-4, clip_high=1e-3).values
    assert values[0].item() == pytest.approx(-math.exp(3.5e-4), abs=2e-7)
