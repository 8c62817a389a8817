"""engine/divergence.py: KL estimators with the gradient each really has, and the two controllers."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.loss_inputs import batch, padded, tokens
from tests.vectors import load
from verigrad.engine.divergence import (
    adapt_entropy,
    adapt_kl,
    kl_term,
    kl_values,
    log_ratio,
    rollout_mean,
    rollout_sum,
)
from verigrad.engine.schema import Coefs

VECTORS = {
    "kl_k1": "k1",
    "kl_k2": "k2",
    "kl_k3": "k3",
    "kl_abs": "abs",
    "kl_k3_plus_straight_through": "k3_plus",
    "kl_k3_times_ratio": "k3_ratio",
}


@pytest.mark.parametrize("name", VECTORS)
def test_kl_terms_match_the_reference(name):
    vector = load(name)
    inputs, logp = batch(vector)
    value = (inputs.weights * kl_term(inputs, estimator=VECTORS[name])).sum()
    value.backward()
    vector.check(value, "value")
    vector.check(logp.grad, "grad")


@pytest.mark.parametrize("name", ["kl_k1", "kl_k2", "kl_k3", "kl_abs"])
def test_kl_values_match_the_reference(name):
    vector = load(name)
    inputs, _ = batch(vector)
    gap = inputs.logprobs - inputs.ref_logprobs
    vector.check(padded(vector, kl_values(gap, estimator=VECTORS[name]).detach()), "per_token")


@pytest.mark.parametrize("estimator", ["k3_plus", "k3_ratio"])
def test_as_plain_values_these_are_k3(estimator):
    gap = torch.tensor([-0.5, 0.0, 2.0]).double()
    assert torch.equal(kl_values(gap, estimator=estimator), kl_values(gap, estimator="k3"))


def expected_gradient(estimator, *, old=None):
    """d/d theta of the term's mean over all tokens of a softmax, sampled from it or from `old` logits."""
    vector = load("kl_expected_gradients")
    theta = vector.tensor("theta").requires_grad_()
    log_p = theta.log_softmax(0)
    sampled = log_p.detach() if old is None else old.log_softmax(0)
    inputs = tokens(
        logprobs=[0.0] * 4,
        old_logprobs=sampled.tolist(),
        ref_logprobs=vector.tensor("ref_theta").log_softmax(0).tolist(),
        weights=sampled.exp().tolist(),
    )
    inputs = dataclasses.replace(inputs, logprobs=log_p)
    (inputs.weights * kl_term(inputs, estimator=estimator)).sum().backward()
    return vector, theta.grad


@pytest.mark.parametrize("estimator", ["k2", "k3_plus", "k3_ratio"])
def test_on_policy_these_have_the_gradient_of_the_reverse_kl(estimator):
    vector, gradient = expected_gradient(estimator)
    vector.check(gradient, "grad_reverse_kl")
    assert gradient.tolist() != pytest.approx(vector.expected["grad_forward_kl"], abs=1e-3)


def test_plain_k3_has_the_gradient_of_the_opposite_kl():
    vector, gradient = expected_gradient("k3")
    vector.check(gradient, "grad_forward_kl")


def test_k1_in_the_loss_has_no_gradient():
    _, gradient = expected_gradient("k1")
    assert gradient.tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_only_the_ratio_keeps_the_gradient_right_off_policy():
    old = torch.tensor([1.0, 0.2, -0.3, 0.4]).double()
    vector, gradient = expected_gradient("k3_ratio", old=old)
    vector.check(gradient, "grad_reverse_kl")
    for estimator in ("k2", "k3_plus"):
        _, wrong = expected_gradient(estimator, old=old)
        assert wrong.tolist() != pytest.approx(vector.expected["grad_reverse_kl"], abs=1e-3)


def test_the_mean_of_k1_and_k3_is_the_kl():
    vector = load("kl_expected_gradients")
    log_p, log_q = vector.tensor("theta").log_softmax(0), vector.tensor("ref_theta").log_softmax(0)
    for estimator in ("k1", "k2", "k3"):
        mean = (log_p.exp() * kl_values(log_p - log_q, estimator=estimator)).sum()
        assert mean.item() == pytest.approx(vector.expected["expected_value"][estimator], abs=1e-12)


def test_k3_of_a_small_gap_is_no_rounding_error():
    gap = torch.tensor([1e-4, -1e-4])  # float32: exp(-d) - 1 + d gives 0 or 6e-8
    assert kl_values(gap, estimator="k3").tolist() == pytest.approx([0.5e-8] * 2, rel=1e-2)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_plus", "k3_ratio", "abs"])
@pytest.mark.parametrize("gap", [800.0, -800.0])
def test_an_absurd_gap_leaves_value_and_gradient_finite(estimator, gap):
    inputs = tokens(logprobs=[-800.0 + gap], old_logprobs=[-800.0], ref_logprobs=[-800.0])
    kl_term(inputs, estimator=estimator).sum().backward()
    assert torch.isfinite(inputs.logprobs.grad).all()


def test_a_missing_old_logprob_gives_ratio_one():
    inputs = tokens(logprobs=[-1.0, -1.0], old_logprobs=[math.nan, -1.5])
    assert log_ratio(inputs).tolist() == [0.0, 0.5]


def test_sums_and_means_are_each_rollouts_own():
    values, sequence = torch.tensor([1.0, 2.0, 6.0, 4.0]), torch.tensor([7, 2, 7, 2])
    assert rollout_sum(values, sequence).tolist() == [7.0, 6.0, 7.0, 6.0]
    assert rollout_mean(values, sequence).tolist() == [3.5, 3.0, 3.5, 3.0]
    empty = torch.zeros(0)
    assert rollout_mean(empty, torch.zeros(0, dtype=torch.int64)).tolist() == []


def test_sums_of_long_rollouts_do_not_drift():
    values = torch.full((300_000,), 0.1)  # one by one in float32 these make 30,033
    total = rollout_sum(values, torch.zeros(300_000, dtype=torch.int64))
    assert total.dtype == torch.float32
    assert total[0].item() == pytest.approx(30_000, abs=0.01)


def test_the_kl_coefficient_adapts_as_the_reference_does():
    vector = load("adaptive_kl_controller")
    coef, seen = vector.params["init"], []
    for kl, num_rollouts in zip(vector.inputs["kl"], vector.inputs["n_steps"], strict=True):
        coef = adapt_kl(
            coef,
            kl=kl,
            target=vector.params["target"],
            horizon=vector.params["horizon"],
            num_rollouts=num_rollouts,
        )
        seen.append(coef)
    vector.check(seen, "coef")


@given(st.floats(allow_nan=True), st.floats(1e-3, 1e3), st.integers(0, 10**6), st.floats(1.0, 1e5))
def test_a_kl_coefficient_stays_positive_and_moves_by_at_most_a_fifth(kl, target, num_rollouts, horizon):
    # a step of more rollouts than the horizon would otherwise turn the coefficient's sign
    coef = adapt_kl(0.1, kl=kl, target=target, horizon=horizon, num_rollouts=num_rollouts)
    assert 0.08 - 1e-12 <= coef <= 0.12 + 1e-12


@pytest.mark.parametrize("kl", [math.nan, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_moves_nothing(kl):
    assert adapt_kl(0.1, kl=kl, target=0.1, horizon=100, num_rollouts=64) == 0.1


def test_the_entropy_coefficient_adapts_as_the_reference_does():
    vector = load("adaptive_entropy_controller")
    coefs = Coefs(kl=0.3, entropy=0.0, entropy_next=vector.params["init"])
    for entropy, step in zip(vector.inputs["entropy"], vector.expected["steps"], strict=True):
        assert coefs.entropy == pytest.approx(step["applied"], abs=vector.tolerance)
        coefs = adapt_entropy(
            coefs, entropy=entropy, target=vector.params["target"], delta=vector.params["delta"]
        )
        assert coefs.entropy_next == pytest.approx(step["coef_after"], abs=vector.tolerance)
    assert coefs.kl == 0.3


def test_the_entropy_coefficient_stays_between_zero_and_one():
    coefs = Coefs(kl=0.0, entropy=0.0, entropy_next=0.999)
    for entropy, applied, grown in ((0.1, 1.0, 1.0), (0.1, 1.0, 1.0), (9.0, 0.0, 0.7)):
        coefs = adapt_entropy(coefs, entropy=entropy, target=0.2, delta=0.3)
        assert (coefs.entropy, coefs.entropy_next) == pytest.approx((applied, grown))
    for _ in range(3):
        coefs = adapt_entropy(coefs, entropy=9.0, target=0.2, delta=0.3)
    assert (coefs.entropy, coefs.entropy_next) == (0.0, 0.0)


def test_an_entropy_at_the_target_counts_as_low():
    assert adapt_entropy(Coefs(0.0, 0.0, 0.1), entropy=0.2, target=0.2, delta=0.1).entropy == 0.2


def test_an_entropy_that_was_not_measured_moves_nothing():
    coefs = Coefs(kl=0.0, entropy=0.01, entropy_next=0.02)
    assert adapt_entropy(coefs, entropy=math.nan, target=0.2, delta=0.1) == coefs
