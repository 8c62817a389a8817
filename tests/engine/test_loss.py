"""engine/loss.py against the reference vectors: values, gradients, and none of the recorded bugs."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vectors import load
from verigrad.engine.aggregation import constant, seq_mean_token_mean, seq_mean_token_sum, token_mean
from verigrad.engine.loss import (
    LossInputs,
    clipped,
    importance_weights,
    kl_term,
    merge,
    mismatch_sums,
    policy_loss,
)

PLAIN = {
    "clip_low": 0.2,
    "clip_high": 0.2,
    "correction": "none",
    "correction_low": 0.5,
    "correction_high": 5.0,
    "kl_coef": 0.0,
    "kl_estimator": "k3_ratio",
    "entropy_coef": 0.0,
}


def batch(vector, aggregate=token_mean, rows=None):
    """A vector's [B, T] tensors as LossInputs of the chosen rows, and logp [B, T] to read gradients from.

    Weights come from all rows, as the optimizer step sees them.
    """
    mask = vector.tensor("mask").bool()
    weights = torch.tensor(aggregate(mask.sum(1).tolist()), dtype=torch.float64)
    logp = vector.tensor("logp").requires_grad_()
    chosen = torch.zeros_like(mask)
    chosen[list(range(len(mask)) if rows is None else rows)] = True
    chosen &= mask

    def select(name, fallback="old_logp"):
        return vector.tensor(name if name in vector.inputs else fallback)[chosen]

    row = torch.arange(len(mask))[:, None].expand_as(mask)[chosen]
    adv = vector.tensor("adv") if "adv" in vector.inputs else torch.zeros(len(mask)).double()
    inputs = LossInputs(
        logprobs=logp[chosen],
        old_logprobs=select("old_logp", "logp"),
        rollout_logprobs=select("rollout_logp", "old_logp" if "old_logp" in vector.inputs else "logp"),
        ref_logprobs=select("ref_logp") if "ref_logp" in vector.inputs else None,
        entropy=None,
        advantages=adv[row],
        weights=weights[row],
        sequence=row,
    )
    return inputs, logp


def tokens(**fields):
    """LossInputs from short lists; whatever is not given is on-policy, advantage 1, weight 1."""
    logprobs = torch.tensor(fields.pop("logprobs", [-1.0]), dtype=torch.float64, requires_grad=True)
    old = torch.tensor(fields.pop("old_logprobs", logprobs.tolist()), dtype=torch.float64)
    defaults = {
        "rollout_logprobs": old.tolist(),
        "advantages": [1.0] * len(old),
        "weights": [1.0] * len(old),
    }
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in (defaults | fields).items()}
    rest = {"ref_logprobs": None, "entropy": None} | values
    sequence = torch.zeros(len(old), dtype=torch.int64)
    return LossInputs(logprobs=logprobs, old_logprobs=old, sequence=sequence, **rest)


AGGREGATIONS = {
    "token-mean": token_mean,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "dr-grpo": constant(8),
}


@pytest.mark.parametrize("name", [*(f"ppo_clip_{a}" for a in AGGREGATIONS), "ppo_clip_higher_dapo"])
def test_clipped_loss_matches_the_reference(name):
    vector = load(name)
    inputs, logp = batch(vector, AGGREGATIONS[vector.params["agg"]])
    settings = PLAIN | {"clip_low": vector.params["eps_low"], "clip_high": vector.params["eps_high"]}
    loss, sums = policy_loss(inputs, **settings)
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    vector.check(sums["loss_sum"], "loss")
    if vector.bug_values:
        vector.check_no_bug(loss)


def test_on_policy_gradient_is_that_of_reinforce():
    vector = load("ppo_on_policy_identity")
    inputs, logp = batch(vector)
    loss, sums = policy_loss(inputs, **PLAIN)
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    assert sums["ratio_max_dev"] == 0


@pytest.mark.parametrize("split", [[[0, 1, 2, 3]], [[0], [1, 2, 3]], [[0, 1, 2], [3]], [[2], [0], [3], [1]]])
def test_micro_batches_add_up_to_the_step(split):
    vector = load("microbatch_invariance")
    loss, grad = 0.0, torch.zeros(4, 6).double()
    for rows in split:
        inputs, logp = batch(vector, rows=rows)
        part, _ = policy_loss(inputs, **PLAIN)
        part.backward()
        loss += part.item()
        grad += logp.grad
    vector.check(loss, "loss")
    vector.check(grad, "grad")
    vector.check_no_bug(loss)


def test_a_truncated_rollout_leaves_numerator_and_denominator():
    vector = load("truncated_row_masked")
    inputs, logp = batch(vector, seq_mean_token_mean)
    by_rollout, _ = policy_loss(inputs, **PLAIN)
    by_rollout.backward()
    vector.check(by_rollout, "seq_mean_token_mean")
    vector.check(logp.grad, "grad_seq_mean_token_mean")
    by_token, _ = policy_loss(batch(vector)[0], **PLAIN)
    vector.check(by_token, "token_mean")
    vector.check_no_bug(by_rollout)
    vector.check_no_bug(by_token)


def test_clip_fractions_go_by_the_sign_of_the_advantage():
    vector = load("ppo_clip_metrics")
    metrics = merge([policy_loss(batch(vector)[0], **PLAIN)[1]])
    vector.check(metrics["clip_frac_high"], "clip_frac_high")
    vector.check(metrics["clip_frac_low"], "clip_frac_low")


def test_a_token_moving_with_its_advantage_from_the_far_side_is_not_clipped():
    inputs = tokens(
        logprobs=[-1.5, -1.5, -1.5, -0.5, -0.5],
        old_logprobs=[-1.0] * 5,
        advantages=[1.0, -1.0, -1.0, 1.0, -1.0],
    )
    loss, sums = policy_loss(inputs, **PLAIN)
    loss.backward()
    assert [g != 0 for g in inputs.logprobs.grad.tolist()] == [True, False, False, False, True]
    assert (sums["clip_low_count"], sums["clip_high_count"]) == (2, 1)


@pytest.mark.parametrize(
    ("name", "kind", "low", "high"),
    [("tis_token", "tis", 0.0, 2.0), ("icepop_token_mask", "icepop", 0.5, 5.0)],
)
def test_corrections_match_the_reference(name, kind, low, high):
    vector = load(name)
    assert high == vector.params.get("high", vector.params.get("cap"))
    inputs, logp = batch(vector)
    mask = vector.tensor("mask").bool()
    weights = importance_weights(inputs, kind=kind, low=low, high=high)
    assert not weights.requires_grad
    vector.check(torch.zeros(4, 6).double().masked_scatter(mask, weights), "weight")
    loss, sums = policy_loss(
        inputs,
        **PLAIN | {"clip_high": 0.28, "correction": kind, "correction_low": low, "correction_high": high},
    )
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    if vector.bug_values:
        vector.check_no_bug(loss)
    key = {"tis": "correction_capped_count", "icepop": "correction_dropped_count"}[kind]
    # tis: 2.46 and 6.05 exceed 2; icepop: 0.449 falls below 0.5 and 6.05 exceeds 5
    assert {k: v.item() for k, v in sums.items() if k.startswith("correction")} == {
        "correction_capped_count": 0.0,
        "correction_dropped_count": 0.0,
        key: 2.0,
    }


def test_the_correction_has_no_gradient_even_if_old_has():
    inputs = tokens(rollout_logprobs=[-1.1])
    inputs = dataclasses.replace(inputs, old_logprobs=inputs.logprobs)
    assert not importance_weights(inputs, kind="tis", low=0.0, high=2.0).requires_grad


def test_bypass_is_not_corrected_twice():
    inputs = tokens(logprobs=[-1.0, -2.0], old_logprobs=[-1.5, -1.5])
    assert importance_weights(inputs, kind="icepop", low=0.5, high=5.0).tolist() == [1.0, 1.0]
    assert clipped(inputs, clip_low=1.0, clip_high=9.0).tolist() == pytest.approx(
        [-math.exp(0.5), -math.exp(-0.5)]
    )


@pytest.mark.parametrize("kind", ["tis", "icepop", "none"])
def test_a_missing_sampler_logprob_weighs_one_and_is_counted(kind):
    inputs = tokens(logprobs=[-1.0, -1.0], rollout_logprobs=[math.nan, -1.1])
    weights = importance_weights(inputs, kind=kind, low=0.5, high=5.0)
    assert weights.tolist() == pytest.approx([1.0, 1.0 if kind == "none" else math.exp(0.1)])
    loss, sums = policy_loss(inputs, **PLAIN | {"correction": kind})
    assert torch.isfinite(loss)
    assert merge([sums])["nan_logprob_frac"] == 0.5
    assert sums["mismatch_max"] == pytest.approx(0.1)


def test_a_missing_old_logprob_gives_ratio_one():
    inputs = tokens(logprobs=[-1.0], old_logprobs=[math.nan])
    loss, sums = policy_loss(inputs, **PLAIN)
    loss.backward()
    assert (loss.item(), inputs.logprobs.grad.tolist()) == (-1.0, [-1.0])
    assert sums["ratio_max_dev"] == 0


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [800.0, -800.0])  # exp(800) is infinite in float64 too
def test_absurd_ratios_leave_loss_and_gradient_finite(advantage, gap):
    inputs = tokens(
        logprobs=[-800.0 + gap], old_logprobs=[-800.0], ref_logprobs=[-800.0], advantages=[advantage]
    )
    loss, _ = policy_loss(inputs, **PLAIN | {"kl_coef": 0.1})
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs.logprobs.grad).all()


@pytest.mark.parametrize(("name", "estimator"), [("kl_k2", "k2"), ("kl_k3_times_ratio", "k3_ratio")])
def test_kl_terms_match_the_reference(name, estimator):
    vector = load(name)
    inputs, logp = batch(vector)
    value = (inputs.weights * kl_term(inputs, estimator=estimator)).sum()
    value.backward()
    vector.check(value, "value")
    vector.check(logp.grad, "grad")
    # through the whole loss: advantages are 0 here, so only the KL term is left
    still = dataclasses.replace(batch(vector)[0], advantages=torch.zeros(18).double())
    loss, _ = policy_loss(still, **PLAIN | {"kl_coef": 0.5, "kl_estimator": estimator})
    vector.check(2 * loss.detach(), "value")


@pytest.mark.parametrize(("estimator", "key"), [("k3_ratio", "k3_times_ratio"), ("k2", "k2")])
def test_expected_kl_gradient_is_that_of_the_reverse_kl(estimator, key):
    vector = load("kl_expected_gradients")
    theta = vector.tensor("theta").requires_grad_()
    log_p = theta.log_softmax(0)
    inputs = tokens(
        logprobs=[0.0] * 4,
        old_logprobs=log_p.tolist(),
        ref_logprobs=vector.tensor("ref_theta").log_softmax(0).tolist(),
        weights=log_p.exp().tolist(),
    )
    inputs = dataclasses.replace(inputs, logprobs=log_p)
    (inputs.weights * kl_term(inputs, estimator=estimator)).sum().backward()
    vector.check(theta.grad, "grad_reverse_kl")
    assert theta.grad.tolist() == pytest.approx(vector.expected["expected_grad_in_loss"][key], abs=1e-9)
    assert theta.grad.tolist() != pytest.approx(vector.expected["expected_grad_in_loss"]["k3"], abs=1e-3)


def test_logged_kl_is_k3_under_the_current_policy():
    inputs = tokens(logprobs=[-1.0, -1.0], ref_logprobs=[-1.5, -1.0])
    metrics = merge([policy_loss(inputs, **PLAIN)[1]])
    assert metrics["kl_ref"] == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)


def test_mismatch_is_k3_of_sampler_against_trainer():
    inputs = tokens(logprobs=[-1.0, -2.0], rollout_logprobs=[-1.3, -2.0])
    metrics = merge([policy_loss(inputs, **PLAIN)[1]])
    assert metrics["mismatch_kl"] == pytest.approx((math.exp(0.3) - 1 - 0.3) / 2)
    assert metrics["mismatch_max"] == pytest.approx(0.3)


def test_bypass_can_measure_its_mismatch_against_the_trainer():
    inputs = tokens(logprobs=[-1.0], old_logprobs=[-1.3])
    sums = policy_loss(inputs, **PLAIN)[1]
    assert sums["mismatch_max"] == 0
    sums |= mismatch_sums(dataclasses.replace(inputs, old_logprobs=inputs.logprobs.detach()))
    assert sums["mismatch_max"] == pytest.approx(0.3)
    assert sums["mismatch_k3_sum"] == pytest.approx(math.exp(0.3) - 1 - 0.3)


def test_entropy_bonus_lowers_the_loss():
    inputs = tokens(advantages=[0.0, 0.0], logprobs=[-1.0, -1.0], entropy=[0.5, 1.5], weights=[0.25, 0.75])
    loss, sums = policy_loss(inputs, **PLAIN | {"entropy_coef": 0.1})
    assert loss.item() == pytest.approx(-0.1 * (0.25 * 0.5 + 0.75 * 1.5))
    assert merge([sums])["entropy"] == 1.0


def test_ratio_deviation_is_the_largest_of_all_micro_batches():
    parts = [
        policy_loss(tokens(logprobs=[-1.0 + gap], old_logprobs=[-1.0]), **PLAIN)[1] for gap in (0.1, -0.3)
    ]
    assert merge(parts)["ratio_max_dev"] == pytest.approx(1 - math.exp(-0.3))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 4))
def test_metrics_do_not_depend_on_order_or_split(order, cut):
    vector = load("icepop_token_mask")
    args = PLAIN | {"correction": "icepop"}
    whole = merge([policy_loss(batch(vector)[0], **args)[1]])
    # one of the two may be an empty micro-batch
    parts = [policy_loss(batch(vector, rows=rows)[0], **args)[1] for rows in (order[:cut], order[cut:])]
    assert merge(parts) == pytest.approx(whole, abs=1e-12)


def test_metrics_have_their_names():
    metrics = merge([policy_loss(tokens(), **PLAIN)[1]])
    assert set(metrics) == {
        "loss",
        "clip_frac_low",
        "clip_frac_high",
        "entropy",
        "kl_ref",
        "mismatch_kl",
        "mismatch_max",
        "ratio_max_dev",
        "correction_dropped_frac",
        "correction_capped_frac",
        "nan_logprob_frac",
    }
    assert set(merge([])) == set(metrics)


def test_the_loss_is_the_mean_over_optimizer_steps():
    parts = [policy_loss(tokens(advantages=[a]), **PLAIN)[1] for a in (1.0, 2.0)]
    assert merge(parts, num_optimizer_steps=2)["loss"] == -1.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]), min_size=6, max_size=6))
def test_garbage_at_masked_positions_changes_nothing(garbage):
    vector = load("ppo_clip_token-mean")
    clean, clean_logp = batch(vector)
    mask = vector.tensor("mask").bool()
    spoiled = dict(vector.inputs)
    for name in ("logp", "old_logp"):
        values = vector.tensor(name)
        values[~mask] = torch.tensor(garbage).double()
        spoiled[name] = values.tolist()
    dirty, dirty_logp = batch(dataclasses.replace(vector, inputs=spoiled))
    for inputs in (clean, dirty):
        policy_loss(inputs, **PLAIN)[0].backward()
    assert torch.equal(clean_logp.grad, dirty_logp.grad)
