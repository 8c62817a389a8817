"""engine/loss.py, and what must hold for every loss of the catalogue: names, micro-batches, garbage."""

import dataclasses
import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.loss_inputs import AGGREGATIONS, batch, part, random_step, spoiled, tokens
from tests.vectors import load
from verigrad.engine import catalogue, online_pairs, sequence_losses, token_losses
from verigrad.engine.aggregation import seq_mean_token_mean, token_mean
from verigrad.engine.loss import merge, mismatch_sums, nll, policy_loss
from verigrad.engine.schema import Coefs
from verigrad.engine.token_losses import clip

CLIP = partial(clip, clip_low=0.2, clip_high=0.2)
PLAIN = {
    "token_loss": CLIP,
    "correction": "none",
    "correction_low": None,
    "correction_high": None,
    "off_policy_delta": None,
    "kl_estimator": None,
}
OFF = Coefs(kl=0.0, entropy=0.0)
LOSSES = {**token_losses.LOSSES, **sequence_losses.LOSSES}
LENGTH_TIMES_ADVANTAGE = ("sequence_clip", "luspo")  # whose on-policy gradient is n * -A
every_loss = pytest.mark.parametrize("name", LOSSES)


def finished(name, **numbers):
    """The loss of this name with the catalogue's numbers, or others where it has them."""
    known = catalogue.LOSSES[name].settings
    return partial(LOSSES[name], **{**known, **{k: v for k, v in numbers.items() if k in known}})


def run(inputs, coefs=OFF, **changes):
    loss, sums = policy_loss(inputs, coefs, **PLAIN | changes)
    loss.backward()
    return loss, sums


# ---- the table


def test_every_name_of_the_catalogue_has_one_function():
    of_pairs = {name for name, part in catalogue.LOSSES.items() if part.pairs}
    assert of_pairs == set(online_pairs.LOSSES)  # see test_online_pairs.py
    assert set(LOSSES) == set(catalogue.LOSSES) - of_pairs
    assert not set(token_losses.LOSSES) & set(sequence_losses.LOSSES)
    assert all(function.__name__ == name for name, function in LOSSES.items())


@every_loss
def test_a_loss_takes_exactly_the_settings_the_catalogue_lists(name):
    first, *rest = inspect.signature(LOSSES[name]).parameters.values()
    assert first.name == "inputs"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.annotation is float for p in rest)
    assert [p.name for p in rest] == list(catalogue.LOSSES[name].settings)


# ---- what holds for every loss


@every_loss
def test_on_policy_the_gradient_is_that_of_reinforce(name):
    inputs = random_step(on_policy=True)
    result = finished(name)(inputs)
    (inputs.weights * result.values).sum().backward()
    expected = -inputs.advantages * inputs.weights
    if name in LENGTH_TIMES_ADVANTAGE:
        expected = expected * torch.bincount(inputs.sequence)[inputs.sequence]
    assert catalogue.LOSSES[name].on_policy_identity or name in LENGTH_TIMES_ADVANTAGE
    assert torch.allclose(inputs.logprobs.grad, expected, rtol=0, atol=1e-12)
    assert not (result.stopped_low | result.stopped_high).any()


SPLITS = ([range(8)], [range(3), range(3, 8)], [[5, 0], [7], [1, 2, 6], [3, 4]])
FULL = {
    "correction": "sequence_mask",
    "correction_low": 0.5,
    "correction_high": 2.0,
    "off_policy_delta": 0.1,
    "kl_estimator": "k3_ratio",
}


@every_loss
@pytest.mark.parametrize("aggregate", [token_mean, seq_mean_token_mean])
def test_micro_batches_add_up_to_the_step(name, aggregate):
    coefs = Coefs(kl=0.1, entropy=0.01)
    inputs = random_step(aggregate=aggregate)
    loss, sums = run(inputs, coefs, token_loss=finished(name), **FULL)
    for split in SPLITS:
        total, gradient, parts = 0.0, torch.zeros_like(inputs.logprobs.grad), []
        for rollouts in split:
            some = part(inputs, list(rollouts))
            share, share_sums = run(some, coefs, token_loss=finished(name), **FULL)
            total += share.item()
            parts.append(share_sums)
            gradient[torch.isin(inputs.sequence, torch.tensor(list(rollouts)))] += some.logprobs.grad
        assert total == pytest.approx(loss.item(), abs=1e-12)
        assert torch.allclose(gradient, inputs.logprobs.grad, rtol=0, atol=1e-12)
        assert merge(parts) == pytest.approx(merge([sums]), abs=1e-12)


SMOOTH = (
    "clip", "dual_clip", "two_sided", "sapo", "prime", "reinforce", "dro",
    "gspo", "sequence_clip", "luspo", "gmpo",
)  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("width", [0.02, 0.2, 2.0])
def test_gradients_are_those_of_the_value(name, width):
    """Finite differences; the other losses hold part of their value constant on purpose."""
    inputs = random_step()
    loss = finished(name, clip_low=width, clip_high=width, ratio_cap=3.0, pull=0.3)

    def values(logprobs):
        return loss(dataclasses.replace(inputs, logprobs=logprobs)).values

    assert torch.autograd.gradcheck(values, (inputs.logprobs,), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [n for n in LOSSES if n not in SMOOTH])
def test_a_stopped_weight_multiplies_the_gradient_alone(name):
    """With the weight held the loss is linear in log p: its slope is the weight times -advantage."""
    inputs = random_step()
    finished(name)(inputs).values.sum().backward()
    if name != "gspo_token":  # the one whose value is not weight * log p
        weight = (-finished(name)(inputs).values / (inputs.advantages * inputs.logprobs)).detach()
        assert torch.allclose(inputs.logprobs.grad, -weight * inputs.advantages)
        assert (weight >= 0).all()
    assert ((inputs.logprobs.grad == 0) | (inputs.logprobs.grad.sign() == -inputs.advantages.sign())).all()


@every_loss
def test_a_missing_old_logprob_gives_ratio_one(name):
    known = tokens(logprobs=[-1.0, -2.0], advantages=[1.0, -1.0], sequence=[0, 1])
    missing = dataclasses.replace(
        known,
        logprobs=known.logprobs.detach().clone().requires_grad_(),
        old_logprobs=torch.full((2,), math.nan, dtype=torch.float64),
        rollout_logprobs=torch.full((2,), math.nan, dtype=torch.float64),
    )
    losses = [run(inputs, token_loss=finished(name))[0] for inputs in (known, missing)]
    assert torch.equal(*losses)
    assert torch.equal(known.logprobs.grad, missing.logprobs.grad)
    assert policy_loss(missing, OFF, **PLAIN)[1]["ratio_max_dev"] == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("gap", [800.0, -800.0])  # exp(800) is infinite in float64 too
def test_absurd_ratios_leave_loss_and_gradient_finite(name, dtype, advantage, gap):
    inputs = tokens(
        logprobs=[-800.0 + gap, -1.0],
        old_logprobs=[-800.0, -1.1],
        ref_logprobs=[-800.0, -1.0],
        advantages=[advantage] * 2,
    )
    fields = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs)}
    fields = {
        k: v.to(dtype) for k, v in fields.items() if isinstance(v, torch.Tensor) and v.is_floating_point()
    }
    fields["logprobs"] = fields["logprobs"].detach().requires_grad_()
    inputs = dataclasses.replace(inputs, **fields)
    loss, _ = run(
        inputs, Coefs(kl=0.1, entropy=0.0), token_loss=finished(name), **FULL | {"kl_estimator": "k3_ratio"}
    )
    assert loss.dtype == dtype
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs.logprobs.grad).all()


@every_loss
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("gap", [9.0, -9.0])
def test_a_long_rollouts_product_of_ratios_leaves_loss_and_gradient_finite(name, advantage, gap):
    inputs = tokens(logprobs=[-10.0 + gap] * 100, old_logprobs=[-10.0] * 100, advantages=[advantage] * 100)
    loss, _ = run(inputs, token_loss=finished(name))
    assert torch.isfinite(loss)
    assert torch.isfinite(inputs.logprobs.grad).all()


@every_loss
def test_a_micro_batch_without_tokens_adds_nothing(name):
    inputs = part(random_step(), [])
    loss, sums = run(inputs, Coefs(kl=0.1, entropy=0.1), token_loss=finished(name), **FULL)
    assert loss.item() == 0
    whole = run(random_step(), token_loss=finished(name), **FULL)[1]
    assert merge([whole, sums]) == merge([whole])


@every_loss
@settings(max_examples=5, deadline=None)
@given(st.lists(st.sampled_from([0.0, math.nan, math.inf, -math.inf, 1e30]), min_size=6, max_size=6))
def test_garbage_at_masked_positions_changes_nothing(name, garbage):
    vector = load("tis_token")
    seen = []
    for case in (vector, spoiled(vector, garbage)):
        inputs, logp = batch(case)
        loss, sums = run(inputs, token_loss=finished(name), **FULL | {"kl_estimator": None})
        seen.append([loss, logp.grad, *sums.values()])
    assert all(torch.equal(clean, dirty) for clean, dirty in zip(*seen, strict=True))


# ---- the whole loss


@pytest.mark.parametrize("name", [*(f"ppo_clip_{a}" for a in AGGREGATIONS), "ppo_clip_higher_dapo"])
def test_the_whole_loss_matches_the_reference(name):
    vector = load(name)
    inputs, logp = batch(vector, AGGREGATIONS[vector.params["agg"]])
    bounds = {"clip_low": vector.params["eps_low"], "clip_high": vector.params["eps_high"]}
    loss, sums = run(inputs, token_loss=partial(clip, **bounds))
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    vector.check(sums["loss_sum"], "loss")
    if vector.bug_values:
        vector.check_no_bug(loss)


@pytest.mark.parametrize("split", [[[0, 1, 2, 3]], [[0], [1, 2, 3]], [[0, 1, 2], [3]], [[2], [0], [3], [1]]])
def test_micro_batches_match_the_reference(split):
    vector = load("microbatch_invariance")
    loss, grad = 0.0, torch.zeros(4, 6).double()
    for rows in split:
        inputs, logp = batch(vector, rows=rows)
        loss += run(inputs)[0].item()
        grad += logp.grad
    vector.check(loss, "loss")
    vector.check(grad, "grad")
    vector.check_no_bug(loss)


def test_a_truncated_rollout_leaves_numerator_and_denominator():
    vector = load("truncated_row_masked")
    inputs, logp = batch(vector, seq_mean_token_mean)
    by_rollout, _ = run(inputs)
    vector.check(by_rollout, "seq_mean_token_mean")
    vector.check(logp.grad, "grad_seq_mean_token_mean")
    by_token, _ = run(batch(vector)[0])
    vector.check(by_token, "token_mean")
    vector.check_no_bug(by_rollout)
    vector.check_no_bug(by_token)


def test_clip_fractions_are_the_losses_own():
    vector = load("ppo_clip_metrics")
    metrics = merge([run(batch(vector)[0])[1]])
    vector.check(metrics["clip_frac_high"], "clip_frac_high")
    vector.check(metrics["clip_frac_low"], "clip_frac_low")
    by_rollout = merge([run(batch(vector)[0], token_loss=finished("gspo"))[1]])
    # gspo's narrow bounds: rows 0 (6 tokens) and 2 (3) are above them with a positive advantage, row 3 (5)
    # below them with a negative one
    assert by_rollout["clip_frac_high"] == pytest.approx(9 / 18)
    assert by_rollout["clip_frac_low"] == pytest.approx(5 / 18)


def test_correction_and_off_policy_mask_spare_the_kl_term():
    far = tokens(
        logprobs=[-1.0], old_logprobs=[-0.5], rollout_logprobs=[-9.0], ref_logprobs=[-3.0], advantages=[-1.0]
    )
    options = {"correction": "icepop", "correction_low": 0.5, "correction_high": 5.0, "kl_estimator": "k2"}
    assert run(far, Coefs(kl=0.1, entropy=0.0), **options)[0].item() == pytest.approx(0.1 * 0.5 * 2.0**2)
    options = {"off_policy_delta": 0.4, "kl_estimator": "k2"}
    loss, sums = run(far, Coefs(kl=0.1, entropy=0.0), **options)
    assert loss.item() == pytest.approx(0.1 * 0.5 * 2.0**2)
    assert merge([sums])["off_policy_dropped_frac"] == 1.0


@pytest.mark.parametrize(("name", "estimator"), [("kl_k2", "k2"), ("kl_k3_times_ratio", "k3_ratio")])
def test_the_kl_term_stands_in_the_loss_with_its_coefficient(name, estimator):
    vector = load(name)
    still = dataclasses.replace(batch(vector)[0], advantages=torch.zeros(18).double())
    loss, _ = run(still, Coefs(kl=0.5, entropy=0.0), kl_estimator=estimator)
    vector.check(2 * loss.detach(), "value")


def test_a_coefficient_of_zero_needs_no_reference():
    assert run(tokens(), kl_estimator="k2")[0].item() == -1.0


def test_without_an_estimator_the_kl_is_measured_and_not_trained_on():
    inputs = tokens(logprobs=[-1.0, -1.0], ref_logprobs=[-1.5, -1.0], advantages=[0.0, 0.0])
    loss, sums = run(inputs, Coefs(kl=0.5, entropy=0.0))
    assert (loss.item(), inputs.logprobs.grad.tolist()) == (0.0, [0.0, 0.0])
    assert merge([sums])["kl_ref"] == pytest.approx((math.exp(-0.5) - 1 + 0.5) / 2)


def test_mismatch_is_k3_of_sampler_against_trainer():
    inputs = tokens(logprobs=[-1.0, -2.0], rollout_logprobs=[-1.3, -2.0])
    metrics = merge([run(inputs)[1]])
    assert metrics["mismatch_kl"] == pytest.approx((math.exp(0.3) - 1 - 0.3) / 2)
    assert metrics["mismatch_chi2"] == pytest.approx((math.exp(0.6) - 1) / 2)
    assert metrics["mismatch_max"] == pytest.approx(0.3)


def test_bypass_can_measure_its_mismatch_against_the_trainer():
    inputs = tokens(logprobs=[-1.0], old_logprobs=[-1.3])
    sums = run(inputs)[1]
    assert sums["mismatch_max"] == 0
    sums |= mismatch_sums(dataclasses.replace(inputs, old_logprobs=inputs.logprobs.detach()))
    assert sums["mismatch_max"] == pytest.approx(0.3)
    assert sums["mismatch_k3_sum"] == pytest.approx(math.exp(0.3) - 1 - 0.3)


def test_entropy_bonus_lowers_the_loss():
    inputs = tokens(advantages=[0.0, 0.0], logprobs=[-1.0, -1.0], entropy=[0.5, 1.5], weights=[0.25, 0.75])
    # what it may grow to is not yet applied
    loss, sums = run(inputs, Coefs(kl=0.0, entropy=0.1, entropy_next=0.7))
    assert loss.item() == pytest.approx(-0.1 * (0.25 * 0.5 + 0.75 * 1.5))
    assert merge([sums])["entropy"] == 1.0


def test_the_entropy_bonus_has_the_gradient_of_the_whole_distributions_entropy():
    vector = load("entropy_grad_logits")
    logits = vector.tensor("logits").requires_grad_()
    log_p = logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum()
    inputs = dataclasses.replace(tokens(advantages=[0.0]), entropy=entropy[None], logprobs=log_p[:1])
    _, sums = run(inputs, Coefs(kl=0.0, entropy=0.5))
    vector.check(sums["entropy_sum"], "entropy")
    vector.check(-2 * logits.grad, "grad_logits")


def test_ratio_deviation_is_the_largest_of_all_micro_batches():
    parts = [run(tokens(logprobs=[-1.0 + gap], old_logprobs=[-1.0]))[1] for gap in (0.1, -0.3)]
    assert merge(parts)["ratio_max_dev"] == pytest.approx(1 - math.exp(-0.3))


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(4)), st.integers(0, 4))
def test_metrics_do_not_depend_on_order_or_split(order, cut):
    vector = load("icepop_token_mask")
    args = {"correction": "icepop", "correction_low": 0.5, "correction_high": 5.0}
    whole = merge([run(batch(vector)[0], **args)[1]])
    # one of the two may be an empty micro-batch
    parts = [run(batch(vector, rows=rows)[0], **args)[1] for rows in (order[:cut], order[cut:])]
    assert merge(parts) == pytest.approx(whole, abs=1e-12)


def test_metrics_have_their_names():
    metrics = merge([run(tokens())[1]])
    assert set(metrics) == {
        "loss",
        "clip_frac_low",
        "clip_frac_high",
        "entropy",
        "kl_ref",
        "mismatch_kl",
        "mismatch_chi2",
        "mismatch_max",
        "ratio_max_dev",
        "correction_dropped_frac",
        "correction_capped_frac",
        "correction_masked_pos_frac",
        "correction_masked_neg_frac",
        "off_policy_dropped_frac",
        "ess_frac",
        "nan_logprob_frac",
    }
    assert set(merge([])) == set(metrics)
    nothing = merge([])
    assert math.isnan(nothing.pop("entropy"))
    assert math.isnan(nothing.pop("kl_ref"))
    assert set(nothing.values()) == {0.0}


def test_the_loss_is_the_mean_over_optimizer_steps():
    parts = [run(tokens(advantages=[a]))[1] for a in (1.0, 2.0)]
    assert merge(parts, num_optimizer_steps=2)["loss"] == -1.5


# ---- supervised


def test_the_supervised_loss_is_minus_the_weighted_log_probability():
    inputs = tokens(
        logprobs=[-1.0, -3.0],
        old_logprobs=[math.nan, -9.0],
        rollout_logprobs=[0.0, math.nan],
        advantages=[math.nan, -5.0],
        weights=[0.25, 0.75],
        entropy=[1.0, 2.0],
    )
    loss, sums = nll(inputs, Coefs(kl=0.0, entropy=0.5))
    loss.backward()
    assert loss.item() == 0.25 * 1.0 + 0.75 * 3.0
    assert inputs.logprobs.grad.tolist() == [-0.25, -0.75]
    metrics = merge([sums])
    assert (metrics["loss"], metrics["entropy"]) == (2.5, 1.5)
    assert {k for k, v in metrics.items() if v} == {"loss", "entropy", "ess_frac"}


def test_the_supervised_sums_are_those_of_the_policy_loss():
    assert set(nll(tokens(), OFF)[1]) == set(policy_loss(tokens(), OFF, **PLAIN)[1])
    assert nll(part(random_step(), []), OFF)[0].item() == 0
