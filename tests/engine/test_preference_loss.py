"""engine/preference_loss.py and preference_catalogue.py: the reference vectors, and what a recipe may say."""

import dataclasses
import math

import pytest
import torch

from tests import vectors
from verigrad.engine.config import ConfigError, build, to_toml
from verigrad.engine.preference_catalogue import PREFERENCES
from verigrad.engine.preference_loss import (
    Answers,
    Pairs,
    cpo,
    dpo,
    dpo_hinge,
    dpo_robust,
    ipo,
    kl_estimate,
    kto,
    orpo,
    pair_loss,
    pairs_of,
    simpo,
)


def pairs_of_vector(vector):
    """The pairs of a vector, leaves with gradient; averages are given as answers of one token."""
    averages = "avg_logp_chosen" in vector.inputs
    sides = [f"avg_logp_{side}" if averages else f"policy_{side}" for side in ("chosen", "rejected")]
    chosen, rejected = (vector.tensor(name).requires_grad_() for name in sides)

    def maybe(name):
        return vector.tensor(name) if name in vector.inputs else None

    ones = torch.ones_like(chosen.detach())
    lengths = [maybe(f"len_{side}") for side in ("chosen", "rejected")]
    num_chosen, num_rejected = (ones if length is None else length for length in lengths)
    return Pairs(chosen, rejected, num_chosen, num_rejected, maybe("ref_chosen"), maybe("ref_rejected"))


@pytest.mark.parametrize(
    ("name", "term", "key"),
    [
        ("dpo", lambda p: dpo(p, beta=0.1), "loss"),
        ("dpo_label_smoothing", lambda p: dpo(p, beta=0.1, label_smoothing=0.1), "loss"),
        ("dpo_robust", lambda p: dpo_robust(p, beta=0.1, label_smoothing=0.1), "loss"),
        ("dpo_hinge", lambda p: dpo_hinge(p, beta=0.1), "loss"),
        ("ipo_sum", lambda p: ipo(p, beta=0.1), "loss"),
        ("ipo_token_mean", lambda p: ipo(p, beta=0.1, length_norm=True), "loss"),
        ("dpo_length_normalised", lambda p: dpo(p, beta=0.1, length_norm=True), "loss"),
        ("orpo_or_term", lambda p: orpo(p, odds_coef=0.1), "or_loss"),
        ("simpo", lambda p: simpo(p, beta=2.5, margin=1.375), "loss"),
        ("cpo", lambda p: cpo(p, beta=0.1), "pref_loss"),
    ],
)
def test_values_and_gradients_are_those_of_the_reference_vectors(name, term, key):
    vector = vectors.load(name)
    pairs = pairs_of_vector(vector)
    said = pair_loss(pairs, term=term)
    loss = said.values.mean()
    loss.backward()
    vector.check(loss, key)
    vector.check(pairs.chosen.grad, "grad_chosen")
    vector.check(pairs.rejected.grad, "grad_rejected")
    if "reward_chosen" in vector.expected:
        vector.check(said.reward_chosen, "reward_chosen")
        vector.check(said.reward_rejected, "reward_rejected")
        vector.check(said.agrees.mean(), "accuracy")
    if "log_odds" in vector.expected:
        vector.check(said.reward_chosen - said.reward_rejected, "log_odds")
    if vector.bug_values:
        vector.check_no_bug(loss)


def test_kto_is_that_of_the_reference_vector():
    vector = vectors.load("kto")
    logprobs = vector.tensor("policy").requires_grad_()
    kl_ref = kl_estimate(vector.tensor("kl_policy").requires_grad_(), vector.tensor("kl_ref"))
    assert not kl_ref.requires_grad
    vector.check(kl_ref, "z_ref")
    answers = Answers(logprobs, vector.tensor("ref"), vector.tensor("label").bool(), kl_ref)
    said = kto(answers, beta=0.1, good_weight=1.0, bad_weight=1.33)
    said.values.mean().backward()
    vector.check(said.values.mean(), "loss")
    vector.check(logprobs.grad, "grad")
    # log-ratios 0.8, 0.5, -0.9, -0.8 around 0.15: the good ones lie above, the bad ones below
    assert said.agrees.tolist() == [1, 1, 1, 1]
    assert said.rewards.tolist() == pytest.approx([0.08, 0.05, -0.09, -0.08])


def test_ktos_reference_point_is_never_negative():
    assert kl_estimate(torch.tensor([-3.0]), torch.tensor([-1.0])) == 0


def test_soft_labels_are_those_of_the_reference_vector():
    vector = vectors.load("rlaif_soft_label_dpo")
    p = (vector.inputs["p_a_order_ab"] + vector.inputs["p_a_order_ba"]) / 2
    assert p == pytest.approx(vector.expected["p_a"])
    margin = torch.tensor([vector.inputs["margin_a_minus_b"]], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    pairs = Pairs(margin, zero, one, one, zero, zero, torch.tensor([p], dtype=torch.float64))
    loss = pair_loss(pairs, term=lambda q: dpo(q, beta=0.1)).values.sum()
    loss.backward()
    vector.check(loss, "loss")
    vector.check(margin.grad[0], "grad_margin")


def two(chosen, rejected, *, p=None, lengths=(1.0, 1.0)):
    columns = [torch.tensor([value], dtype=torch.float64) for value in (chosen, rejected, *lengths, 0.0, 0.0)]
    return Pairs(*columns, None if p is None else torch.tensor([p], dtype=torch.float64))


@pytest.mark.parametrize("name", ["dpo", "dpo_robust", "dpo_hinge", "ipo", "orpo", "simpo", "cpo"])
def test_a_soft_label_is_the_expected_loss_of_any(name):
    loss = pairs_of(prefer(loss=name))
    there, back = loss(two(-2.0, -3.0)).values, loss(two(-3.0, -2.0)).values
    assert torch.allclose(loss(two(-2.0, -3.0, p=0.7)).values, 0.7 * there + 0.3 * back)
    assert torch.equal(loss(two(-2.0, -3.0, p=1.0)).values, there)


def test_accuracy_counts_a_tie_as_half_and_a_soft_label_by_its_likelier_side():
    loss = pairs_of(prefer())
    assert loss(two(-2.0, -3.0)).agrees.item() == 1
    assert loss(two(-3.0, -2.0)).agrees.item() == 0
    assert loss(two(-2.0, -2.0)).agrees.item() == 0.5
    assert loss(two(-2.0, -3.0, p=0.3)).agrees.item() == 0
    assert loss(two(-2.0, -3.0, p=0.5)).agrees.item() == 0.5


def test_a_difference_of_rounding_is_a_tie_and_one_above_it_is_none():
    def agrees(difference, name="dpo", **columns):
        given = two(-40.0, -30.0)
        given = dataclasses.replace(given, ref_chosen=given.chosen - difference, ref_rejected=given.rejected)
        return pairs_of(prefer(loss=name, **columns))(given).agrees.item()

    for name in ("dpo", "dpo_robust", "dpo_hinge", "ipo"):
        assert [agrees(d, name) for d in (4e-8, -4e-8, 6e-5, -6e-5)] == [
            0.5,
            0.5,
            0.5,
            0.5,
        ]  # 1e-6 * (40 + 30)
        assert [agrees(d, name) for d in (8e-5, -8e-5)] == [1, 0]
    almost_certain = two(-1e-8, -2e-8)  # below one nat the rounding no longer shrinks
    assert [pairs_of(prefer(loss=n))(almost_certain).agrees.item() for n in ("cpo", "simpo")] == [0.5, 0.5]
    assert [pairs_of(prefer(loss=n))(two(-2.0, -3.0)).agrees.item() for n in ("orpo", "simpo")] == [1, 1]


def test_kto_at_its_starting_model_is_a_tie_whatever_the_rounding():
    logprobs = torch.tensor([-40.0, -40.0, -40.0, -40.0], dtype=torch.float64)
    ref = logprobs - torch.tensor([3e-5, -3e-5, 5e-5, -5e-5], dtype=torch.float64)  # 1e-6 * 40 is 4e-5
    answers = Answers(logprobs, ref, good=torch.ones(4, dtype=torch.bool), kl_ref=torch.tensor(0.0))
    assert kto(answers, beta=0.1, good_weight=1.0, bad_weight=1.0).agrees.tolist() == [0.5, 0.5, 1, 0]


def test_at_the_start_every_pair_costs_log_two_and_pulls_by_half_of_beta():
    pairs = two(0.0, 0.0)
    pairs.chosen.requires_grad_()
    loss = pairs_of(prefer())(pairs).values.sum()
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert pairs.chosen.grad.item() == pytest.approx(-0.1 / 2)


def test_the_likelihood_of_the_chosen_answer_is_per_token():
    plain, with_nll = pairs_of(prefer()), pairs_of(prefer(nll_coef=0.5))
    pairs = two(-8.0, -3.0, lengths=(4.0, 1.0))
    assert (with_nll(pairs).values - plain(pairs).values).item() == pytest.approx(0.5 * 8 / 4)


@pytest.mark.parametrize("mean", [0.0, -1e-9, -0.5, -0.7, -80.0, -1e4])
def test_odds_stay_finite_at_both_ends(mean):
    pairs = two(mean, -1.0)
    pairs.chosen.requires_grad_()
    said = pairs_of(prefer(loss="orpo"))(pairs)
    said.values.sum().backward()
    assert said.values.isfinite().all()
    assert pairs.chosen.grad.isfinite().all()


def test_odds_by_hand():
    said = pairs_of(prefer(loss="orpo"))(two(math.log(0.8), math.log(0.2)))
    assert said.reward_chosen.item() == pytest.approx(math.log(4))
    assert said.reward_rejected.item() == pytest.approx(-math.log(4))


# Recipes ---------------------------------------------------------------------------------------------------


def prefer(**values):
    tree = {
        "policy": {"model": "unused", "device": "cpu"},
        "data": {"path": "unused"},
        "run": {"folder": "unused"},
        "eval": {"every": 0},
        "prefer": values,
    }
    return build(tree, name="test.toml")


def test_open_numbers_are_written_out():
    assert prefer().prefer.beta == 0.1
    assert prefer(length_norm=True).prefer.beta == 5
    assert prefer(loss="dpo_robust").prefer.label_smoothing == 0.1
    assert prefer(loss="simpo").prefer.margin == pytest.approx(1.375)
    assert prefer(loss="simpo", beta=2.0).prefer.margin == pytest.approx(1.1)
    assert prefer(loss="simpo", margin=0.0).prefer.margin == 0
    assert prefer(loss="orpo").prefer.beta is None
    assert 'loss = "orpo"' in to_toml(prefer(loss="orpo"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"loss": "orpo", "beta": 0.1}, "prefer.beta has no effect with prefer.loss = 'orpo'"),
        ({"loss": "kto", "nll_coef": 0.1}, "it is of dpo, dpo_robust"),
        ({"loss": "simpo", "length_norm": True}, "length_norm has no effect.*only with dpo and ipo"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing has no effect"),
        ({"loss": "dpo_robust", "label_smoothing": 0.0}, "makes dpo_robust plain dpo"),
        ({"max_length": 5000}, "cannot hold one pair of two answers of up to prefer.max_length = 5000"),
    ],
)
def test_what_has_no_effect_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        prefer(**values)


def test_a_resolved_recipe_is_itself_a_recipe():
    for name in PREFERENCES:
        once = prefer(loss=name)
        given = {key: value for key, value in once.prefer.model_dump().items() if value is not None}
        assert prefer(**given).prefer == once.prefer
