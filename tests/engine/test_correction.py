"""engine/correction.py against the reference vectors, and the edges that peers fall over."""

import dataclasses
import math
from functools import partial

import pytest
import torch

from tests.loss_inputs import batch, padded, random_step, tokens
from tests.vectors import load
from verigrad.engine.aggregation import seq_mean_token_mean
from verigrad.engine.catalogue import CORRECTIONS
from verigrad.engine.correction import acceptable, importance_weights, off_policy_keep, ratio_weights
from verigrad.engine.divergence import log_mismatch, rollout_mean, rollout_sum
from verigrad.engine.loss import merge, policy_loss
from verigrad.engine.schema import Coefs
from verigrad.engine.token_losses import clip

NO_COEFS = Coefs(kl=0.0, entropy=0.0)
KINDS = list(CORRECTIONS)


def corrected(inputs, kind="none", low=None, high=None, *, clip_high=0.28, delta=None):
    return policy_loss(
        inputs,
        NO_COEFS,
        token_loss=partial(clip, clip_low=0.2, clip_high=clip_high),
        correction=kind,
        correction_low=low,
        correction_high=high,
        off_policy_delta=delta,
        kl_estimator=None,
    )


# counts of tokens held at a bound and put to 0, by hand from the vectors' weights:
# tis: 2.46 and 6.05 exceed 2; icepop: 0.449 falls below 0.5 and 6.05 exceeds 5; the rest are whole rows of
# 6, 4, 3 and 5 tokens
VECTORS = {
    "tis_token": ("tis", 2, 0),
    "icepop_token_mask": ("icepop", 0, 2),
    "tis_sequence": ("sequence_tis", 11, 0),
    "mis_sequence": ("sequence_mask", 0, 5),
    "geo_rs_token_is": ("geometric_mask", 0, 15),
}


@pytest.mark.parametrize("name", VECTORS)
def test_corrections_match_the_reference(name):
    vector = load(name)
    kind, capped, dropped = VECTORS[name]
    low, high = vector.params.get("low"), vector.params.get("high", vector.params.get("cap"))
    inputs, logp = batch(vector)
    weights = importance_weights(inputs, kind=kind, low=low, high=high)
    vector.check(padded(vector, weights), "weight")
    loss, sums = corrected(inputs, kind, low, high)
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    if vector.bug_values:
        vector.check_no_bug(loss)
    counts = (sums["correction_capped_count"], sums["correction_dropped_count"])
    assert counts == (capped, dropped)


@pytest.mark.parametrize("kind", KINDS)
def test_a_correction_has_no_gradient_even_if_old_has(kind):
    inputs = tokens(rollout_logprobs=[-1.1])
    inputs = dataclasses.replace(inputs, old_logprobs=inputs.logprobs)
    assert not importance_weights(inputs, kind=kind, low=0.0, high=2.0).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_bypass_is_not_corrected_twice(kind):
    inputs = tokens(logprobs=[-1.0, -2.0], old_logprobs=[-1.5, -1.5])
    low, high = CORRECTIONS[kind]
    assert importance_weights(inputs, kind=kind, low=low, high=high).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["tis", "icepop", "none", "geometric_mask"])
def test_a_missing_sampler_logprob_weighs_one_and_is_counted(kind):
    inputs = tokens(logprobs=[-1.0, -1.0], rollout_logprobs=[math.nan, -1.1])
    weights = importance_weights(inputs, kind=kind, low=0.5, high=5.0)
    assert weights.tolist() == pytest.approx([1.0, 1.0 if kind == "none" else math.exp(0.1)])
    loss, sums = corrected(inputs, kind, 0.5, 5.0)
    assert torch.isfinite(loss)
    assert merge([sums])["nan_logprob_frac"] == 0.5
    assert sums["mismatch_max"] == pytest.approx(0.1)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_token_adds_nothing_to_its_rollouts_ratio(kind, garbage):
    inputs = tokens(logprobs=[-1.0] * 3, rollout_logprobs=[-1.2, garbage, -1.1], sequence=[0, 0, 1])
    same = tokens(logprobs=[-1.0] * 3, rollout_logprobs=[-1.2, -1.0, -1.1], sequence=[0, 0, 1])
    low, high = CORRECTIONS[kind]
    weigh = partial(importance_weights, kind=kind, low=low, high=high)
    assert torch.equal(weigh(inputs), weigh(same))


def test_whole_rollouts_are_weighed_by_product_or_geometric_mean():
    vector = load("rejection_masks")
    inputs, _ = batch(vector)
    gap, first = log_mismatch(inputs), torch.tensor([0, 6, 10, 13])
    vector.check(rollout_sum(gap, inputs.sequence).exp()[first], "seq_ratio")
    vector.check(rollout_mean(gap, inputs.sequence).exp()[first], "geo_ratio")
    vector.check(-rollout_mean(gap, inputs.sequence)[first], "k1_mean")


def test_no_bound_is_no_bound():
    inputs = tokens(logprobs=[-5.0, -1.0], rollout_logprobs=[-1.0, -5.0])
    for kind in ("tis", "icepop"):
        weights = importance_weights(inputs, kind=kind, low=None, high=None)
        assert weights.tolist() == pytest.approx([math.exp(-4), math.exp(4)])


def test_a_kind_that_caps_also_has_a_floor():
    inputs = tokens(logprobs=[-5.0, -1.0], rollout_logprobs=[-1.0, -5.0])
    assert importance_weights(inputs, kind="tis", low=0.5, high=2.0).tolist() == [0.5, 2.0]
    assert corrected(inputs, "tis", 0.5, 2.0)[1]["correction_capped_count"] == 2


def test_the_scale_multiplies_the_weights_and_never_those_of_none():
    inputs = tokens(logprobs=[-1.0, -1.0], rollout_logprobs=[-1.0, -9.0], correction_scale=0.5)
    assert importance_weights(inputs, kind="tis", low=None, high=2.0).tolist() == [0.5, 1.0]
    assert importance_weights(inputs, kind="none", low=None, high=None).tolist() == [1.0, 1.0]
    # the bounds are of the ratio itself, before any scale
    assert corrected(inputs, "tis", None, 2.0)[1]["correction_capped_count"] == 1


def test_weights_can_be_had_before_there_is_a_loss():
    inputs = random_step()
    for kind, (low, high) in CORRECTIONS.items():
        bounds = {"kind": kind, "low": low, "high": high}
        weights = ratio_weights(inputs.old_logprobs - inputs.rollout_logprobs, inputs.sequence, **bounds)
        assert torch.equal(weights, importance_weights(inputs, **bounds))


def test_metrics_of_the_weights_match_the_reference():
    vector = load("rejection_masks")
    metrics = merge([corrected(batch(vector)[0], "tis", None, 2.0)[1]])
    vector.check(metrics["ess_frac"], "ess")
    vector.check(metrics["mismatch_chi2"], "chi2_token")


def test_the_effective_sample_size_ignores_the_scale_and_ends_at_zero():
    inputs = tokens(logprobs=[-1.0, -1.0], rollout_logprobs=[-1.0, -1.0 - math.log(3)])  # weights 1, 3
    for scale in (1.0, 0.25):
        scaled = dataclasses.replace(inputs, correction_scale=scale)
        assert merge([corrected(scaled, "tis")[1]])["ess_frac"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))
    assert merge([corrected(inputs, "icepop", 10.0, 11.0)[1]])["ess_frac"] == 0.0
    assert merge([corrected(inputs)[1]])["ess_frac"] == 1.0


def test_the_masked_share_is_counted_by_the_advantages_sign():
    ten = math.log(10.0)
    inputs = tokens(
        logprobs=[-1.0] * 6,
        rollout_logprobs=[-1.0, -1.0 - ten, -1.0, -1.0, -1.0 + ten, -1.0 - ten],
        advantages=[1.0, 1.0, 1.0, 1.0, -1.0, 0.0],
    )
    metrics = merge([corrected(inputs, "icepop", 0.5, 5.0)[1]])
    assert metrics["correction_masked_pos_frac"] == 0.25
    assert metrics["correction_masked_neg_frac"] == 1.0
    assert metrics["correction_dropped_frac"] == 0.5
    capped = merge([corrected(inputs, "tis", None, 2.0)[1]])
    assert capped["correction_capped_frac"] == pytest.approx(2 / 6)
    assert capped["correction_masked_pos_frac"] == 0.0


def test_the_off_policy_mask_matches_the_reference():
    vector = load("off_policy_sequence_mask")
    inputs, logp = batch(vector, seq_mean_token_mean)
    delta = vector.params["delta"]
    keep = padded(vector, off_policy_keep(inputs, delta=delta)).amax(1)
    vector.check(keep, "keep")
    loss, sums = corrected(inputs, clip_high=0.2, delta=delta)
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    assert merge([sums])["off_policy_dropped_frac"] == pytest.approx(5 / 18)


def test_the_off_policy_mask_spares_what_the_policy_likes_or_should_like():
    away, towards = [-1.5, -1.3], [-0.5, -0.7]  # mean log(old / policy) 0.4 and -0.4
    inputs = tokens(
        logprobs=away + towards + away,
        old_logprobs=[-1.0] * 6,
        advantages=[-1.0, -1.0, -1.0, -1.0, 1.0, 1.0],
        sequence=[0, 0, 1, 1, 2, 2],
    )
    assert off_policy_keep(inputs, delta=0.39).tolist() == [False] * 2 + [True] * 4
    assert off_policy_keep(inputs, delta=0.41).all()
    assert off_policy_keep(dataclasses.replace(inputs, advantages=torch.zeros(6)), delta=0.39).all()
    assert not off_policy_keep(inputs, delta=0.0).requires_grad


def test_rejection_matches_the_reference():
    vector = load("rejection_masks")
    inputs, _ = batch(vector)
    judge = partial(acceptable, log_mismatch(inputs), inputs.sequence)
    low, high, k3_max = (vector.params[k] for k in ("lower", "upper", "k3_max"))
    kept = judge(level="token", measure="k1", low=low, high=high)
    vector.check(padded(vector, kept), "token_ratio_0_5_to_2")
    kept = judge(level="sequence_mean", measure="k3", low=None, high=k3_max)
    vector.check(padded(vector, kept), "seq_mean_k3_le_0_08")


def test_a_band_is_on_trainer_over_sampler_and_not_its_inverse():
    ratios = torch.tensor([0.15, 1.0, 9.0]).double().log()
    kept = acceptable(ratios, torch.arange(3), level="token", measure="k1", low=0.1, high=1.2)
    assert kept.tolist() == [True, True, False]


# two rollouts: log-ratios (0.6, -0.4) and (0.3, 0.3), so sums 0.2 and 0.6, means 0.1 and 0.3
REJECTIONS = [
    ("token", "k1", -0.5, 0.5, [False, True, True, True]),
    ("sequence_sum", "k1", -0.5, 0.5, [True, True, False, False]),
    ("sequence_mean", "k1", -0.2, 0.2, [True, True, False, False]),
    ("sequence_mean", "k1", 0.2, 0.5, [False, False, True, True]),
    ("sequence_max", "k1", -0.5, 0.5, [False, False, True, True]),
    ("sequence_max", "k1", -0.5, 0.7, [True] * 4),
    ("sequence_max", "k1", -0.3, 0.7, [False, False, True, True]),
    # k2: 0.18, 0.08 and 0.045, 0.045
    ("token", "k2", None, 0.1, [False, True, True, True]),
    ("sequence_sum", "k2", None, 0.1, [False, False, True, True]),
    ("sequence_mean", "k2", None, 0.14, [True] * 4),
    ("sequence_max", "k2", None, 0.14, [False, False, True, True]),
    # k3 = e^x - 1 - x: 0.222, 0.070 and 0.0499, 0.0499; the other way round 0.149, 0.092 and 0.041
    ("token", "k3", None, 0.2, [False, True, True, True]),
    ("token", "k3", None, 0.08, [False, True, True, True]),
    ("sequence_sum", "k3", None, 0.1, [False, False, True, True]),
    ("sequence_mean", "k3", None, 0.15, [True] * 4),
    ("sequence_max", "k3", None, 0.15, [False, False, True, True]),
]


@pytest.mark.parametrize(("level", "measure", "low", "high", "kept"), REJECTIONS)
def test_every_level_and_measure_by_hand(level, measure, low, high, kept):
    log_ratios, sequence = torch.tensor([0.6, -0.4, 0.3, 0.3]).double(), torch.tensor([0, 0, 1, 1])
    bounds = {"low": low, "high": high}
    if measure == "k1":  # its bounds are ratios
        bounds = {"low": math.exp(low), "high": math.exp(high)}
    assert acceptable(log_ratios, sequence, level=level, measure=measure, **bounds).tolist() == kept


@pytest.mark.parametrize("level", ["token", "sequence_sum", "sequence_mean", "sequence_max"])
@pytest.mark.parametrize("measure", ["k1", "k2", "k3"])
def test_a_missing_or_absurd_ratio_is_judged_without_an_error(level, measure):
    judge = partial(acceptable, level=level, measure=measure, low=0.5, high=2.0)
    unknown = torch.tensor([math.nan, math.inf, -math.inf])
    assert judge(unknown, torch.tensor([0, 0, 0])).all()
    assert not judge(torch.tensor([800.0, -800.0]), torch.tensor([0, 1])).any()
    assert judge(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).tolist() == []


@pytest.mark.parametrize("low", [None, 0.0])
def test_a_lower_bound_of_zero_is_none(low):
    log_ratios = torch.tensor([-800.0, 0.0])
    for level in ("token", "sequence_sum", "sequence_mean", "sequence_max"):
        kept = acceptable(log_ratios, torch.arange(2), level=level, measure="k1", low=low, high=None)
        assert kept.all()
