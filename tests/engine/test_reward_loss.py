"""Losses of reward models: the reference vectors, values worked out by hand, and gradients."""

import math

import pytest
import torch

from tests import vectors
from verigrad.engine.reward_loss import bradley_terry, centring, plackett_luce, step_cross_entropy
from verigrad.engine.reward_model import aggregated, of_steps


@pytest.mark.parametrize("name", ["bt_loss", "bt_loss_margin", "bt_loss_centered"])
def test_bradley_terry_is_that_of_the_reference_vectors(name):
    vector = vectors.load(name)
    chosen, rejected = (vector.tensor(side).requires_grad_() for side in ("chosen", "rejected"))
    margin = vector.tensor("margin") if "margin" in vector.inputs else None
    loss = bradley_terry(chosen, rejected, margin=margin).mean()
    if coef := vector.params.get("coef"):
        loss = loss + coef * centring(torch.stack([chosen, rejected], -1)).mean()
    loss.backward()
    vector.check(loss, "loss")
    vector.check(chosen.grad, "grad_chosen")
    vector.check(rejected.grad, "grad_rejected")
    if "accuracy" in vector.expected:
        vector.check((chosen > rejected).double().mean(), "accuracy")


def test_cross_entropy_of_steps_is_that_of_the_reference_vector():
    vector = vectors.load("prm_token_ce")
    logits, labels = vector.tensor("logits").requires_grad_(), vector.tensor("labels")
    ends = labels >= 0
    loss = step_cross_entropy(logits[ends], labels[ends]).mean()
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logits.grad, "grad_logits")
    vector.check(logits[ends].softmax(-1)[:, 1], "step_scores")


def test_soft_labels_of_steps_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)]], dtype=torch.float64)  # p = 3/4
    loss = step_cross_entropy(logits, torch.tensor([0.25], dtype=torch.float64))
    assert loss.item() == pytest.approx(-(0.25 * math.log(0.75) + 0.75 * math.log(0.25)))


@pytest.mark.parametrize("how", ["min", "product", "last", "mean"])
def test_scores_of_solutions_are_those_of_the_reference_vector(how):
    vector = vectors.load("prm_aggregation")
    vector.check(of_steps(vector.inputs["step_scores"], how), how)


def test_an_answer_without_a_step_is_worth_nothing():
    assert of_steps([], "product") == 0.0


def test_soft_preferences_and_offsets_by_hand():
    two = torch.tensor([math.log(3.0)], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    soft = bradley_terry(two, zero, p_chosen=torch.tensor([0.75], dtype=torch.float64))
    assert soft.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    # an offset of -log 3 takes all that the rewards say
    assert bradley_terry(two, zero, offset=-two).item() == pytest.approx(math.log(2))
    # a tie pulls the two together: no gradient where they are equal
    one = zero.clone().requires_grad_()
    bradley_terry(one, zero, p_chosen=torch.tensor([0.5], dtype=torch.float64)).sum().backward()
    assert one.grad.item() == 0.0


def test_bradley_terry_does_not_overflow():
    far = torch.tensor([-1e4, 1e4])
    assert torch.isfinite(bradley_terry(far, -far)).all()


def test_a_ranking_of_two_is_a_pair():
    rewards = torch.tensor([0.3, -1.1], dtype=torch.float64)
    ranks = torch.tensor([0, 1])
    assert plackett_luce(rewards, ranks).item() == pytest.approx(bradley_terry(*rewards[:, None]).item())


def test_rankings_by_hand():
    rewards = torch.log(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    # first of all: 2/4, then 1/2: -log(1/4) over two choices
    assert plackett_luce(rewards, torch.tensor([0, 1, 2])).item() == pytest.approx(math.log(4) / 2)
    # two tied at the end, each 1/2 of what is left, after 2/4: three choices
    assert plackett_luce(rewards, torch.tensor([0, 1, 1])).item() == pytest.approx(3 * math.log(2) / 3)
    # the order of the answers in the tensors does not matter
    turned = plackett_luce(rewards.flip(0), torch.tensor([2, 1, 0]))
    assert turned.item() == pytest.approx(math.log(4) / 2)


def test_a_rankings_gradient_by_finite_differences():
    rewards = torch.tensor([0.2, -0.4, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    ranks = torch.tensor([0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda r: plackett_luce(r, ranks), rewards)


def test_aggregates_by_hand():
    rewards = [1.0, 2.0, 6.0]  # mean 3, population std sqrt(14/3)
    assert aggregated(rewards, "mean", std_coef=1.0) == pytest.approx(3.0)
    assert aggregated(rewards, "min", std_coef=1.0) == 1.0
    assert aggregated(rewards, "mean_minus_std", std_coef=2.0) == pytest.approx(3 - 2 * math.sqrt(14 / 3))
