"""engine/preference_batch.py: pairs stay whole, and how they were packed changes nothing."""

import math

import pytest
import torch

from tests.tiny import config, model_folder, tokenizer, whole
from verigrad.engine.policy import Policy
from verigrad.engine.preference_batch import (
    LabelledExample,
    PairExample,
    batches_of,
    measure,
    mismatched,
    reference_sums,
    update,
)
from verigrad.engine.preference_loss import kto_of, pairs_of
from verigrad.engine.settings import PreferConfig
from verigrad.engine.sft_rows import Example


def example(prompt, answer):
    return Example([*prompt, *answer], [False] * len(prompt) + [True] * len(answer))


ANSWERS = [
    (example([3, 4], [5, 6, 7]), example([3, 4], [8])),
    (example([9], [10, 11, 12, 13, 14, 15]), example([9], [16, 17])),
    (example([20, 21, 22], [23]), example([20, 21, 22], [24, 25, 26, 27, 28])),
    (example([30], [31]), example([30], [32])),
]
PAIRS = [PairExample(chosen, rejected) for chosen, rejected in ANSWERS]


def loss_of(**values):
    cfg = config()
    return (kto_of if values.get("loss") == "kto" else pairs_of)(
        cfg.model_copy(update={"prefer": PreferConfig(**values)})
    )


def new_policy():
    cfg = config(optim={"lr": 1e-2, "max_grad_norm": 1e9})
    return Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())


def by_hand(policy, example):
    """Sum of log-probabilities of the learned tokens of one example on its own."""
    ids = torch.tensor(example.token_ids)
    logits = policy.model(ids[None], packed_layout=whole(len(ids)), use_cache=False).logits[0, :-1]
    chosen = logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return chosen[torch.tensor(example.loss_mask[1:])].sum()


def with_references(pairs, sums):
    return [
        PairExample(pair.chosen, pair.rejected, pair.p_chosen, *both)
        for pair, both in zip(pairs, sums, strict=True)
    ]


REFERENCES = [(-9.0, -4.0), (-20.0, -7.0), (-3.0, -15.0), (-5.0, -5.0)]


def singles(*, refs=True):
    found = []
    for index, (answer, _) in enumerate(ANSWERS):
        other = ANSWERS[(index + 1) % len(ANSWERS)][0]
        given = {"ref": -8.0 - index, "kl_ref": -50.0 - index} if refs else {}
        found.append(
            LabelledExample(answer, index % 2 == 0, mismatched(answer, other, max_length=64), **given)
        )
    return found


def test_sums_come_back_in_the_order_given_whatever_was_packed_with_what():
    policy = new_policy()
    expected = [[by_hand(policy, side).item() for side in pair] for pair in ANSWERS]
    for max_tokens in (13, 20, 512):
        batches = batches_of(PAIRS, max_tokens)
        assert all(len(batch.sequences.packed.input_ids) <= max_tokens for batch in batches)
        assert sorted(p for batch in batches for p in batch.positions) == [0, 1, 2, 3]
        for ours, hand in zip(reference_sums(policy, batches), expected, strict=True):
            assert ours == pytest.approx(hand, abs=2e-5)
    assert len(batches_of(PAIRS, 13)) > 2


def test_single_answers_come_back_with_the_sums_of_their_mismatched_twins():
    policy = new_policy()
    ours = reference_sums(policy, batches_of(singles(refs=False), 512))
    for one, found in zip(singles(refs=False), ours, strict=True):
        hand = [by_hand(policy, side).item() for side in (one.answer, one.mismatched)]
        assert found == pytest.approx(hand, abs=2e-5)


def test_a_mismatched_answer_has_the_one_prompt_and_the_others_answer():
    first, second = example([3, 4], [5, 6]), example([7], [8, 9, 10])
    assert mismatched(first, second, max_length=64) == example([3, 4], [8, 9, 10])
    assert mismatched(first, second, max_length=4) == example([3, 4], [8, 9])


def gradient(policy, batches, loss):
    """The gradient of the step that update() takes, and its metrics."""
    seen = {}

    def keep(*_args, **_kwargs):
        seen["grad"] = torch.cat([w.grad.flatten().clone() for w in policy.model.parameters()])

    policy.optimizer.step = keep
    done, metrics = update(policy, batches, loss, step=1)
    assert done.applied
    return seen["grad"], metrics


@pytest.mark.parametrize("loss", ["dpo", "ipo", "orpo", "simpo", "cpo", "kto"])
def test_micro_batches_change_neither_gradient_nor_metrics(loss):
    policy = new_policy()
    examples = singles() if loss == "kto" else with_references(PAIRS, REFERENCES)
    whole, one = gradient(policy, batches_of(examples, 512), loss_of(loss=loss))
    parts = batches_of(examples, 8 if loss == "kto" else 13)
    assert len(parts) > 2
    cut, other = gradient(policy, parts, loss_of(loss=loss))
    assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
    assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_the_step_is_the_one_worked_out_without_packing():
    policy = new_policy()
    examples = with_references(PAIRS, REFERENCES)
    examples[1] = PairExample(examples[1].chosen, examples[1].rejected, 0.7, *REFERENCES[1])
    ours, metrics = gradient(policy, batches_of(examples, 20), loss_of(beta=0.3))
    total = 0.0
    for pair in examples:
        h = by_hand(policy, pair.chosen) - pair.ref_chosen - by_hand(policy, pair.rejected)
        margin = 0.3 * (h + pair.ref_rejected)
        p = pair.p_chosen
        total = total - (p * margin.sigmoid().log() + (1 - p) * (-margin).sigmoid().log()) / 4
    policy.model.zero_grad()
    total.backward()
    hand = torch.cat([w.grad.flatten() for w in policy.model.parameters()])
    assert metrics["loss"] == pytest.approx(float(total), abs=1e-5)
    assert torch.allclose(ours, hand, rtol=1e-3, atol=1e-5)


def test_ktos_reference_point_is_of_the_whole_step():
    policy = new_policy()
    examples = singles()
    _, metrics = gradient(policy, batches_of(examples, 13), loss_of(loss="kto"))
    hand = sum(float(by_hand(policy, one.mismatched)) - one.kl_ref for one in examples) / 4
    assert hand > 0
    assert metrics["kl_ref"] == pytest.approx(hand, rel=1e-5)
    rewards = [0.1 * (float(by_hand(policy, one.answer)) - one.ref) for one in examples]
    assert metrics["reward_good"] == pytest.approx((rewards[0] + rewards[2]) / 2, abs=1e-5)
    assert metrics["reward_bad"] == pytest.approx((rewards[1] + rewards[3]) / 2, abs=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "simpo", "kto"])
def test_learning_moves_the_implicit_rewards_to_the_labels(loss):
    policy = new_policy()
    kind = singles(refs=False) if loss == "kto" else PAIRS
    sums = reference_sums(policy, batches_of(kind, 512))
    if loss == "kto":
        kind = [
            LabelledExample(one.answer, one.good, one.mismatched, *both)
            for one, both in zip(kind, sums, strict=True)
        ]
    elif loss == "dpo":
        kind = with_references(kind, sums)
    batches, fn = batches_of(kind, 20), loss_of(loss=loss)
    before = measure(policy, batches, fn)
    if loss != "simpo":
        assert before.metrics["margin"] == pytest.approx(0, abs=1e-5)
    for step in range(1, 9):
        update(policy, batches, fn, step=step)
    after = measure(policy, batches, fn)
    assert after.metrics["loss"] < before.metrics["loss"]
    assert after.metrics["accuracy"] == 1
    assert after.values.mean().item() == pytest.approx(after.metrics["loss"])
    if loss == "kto":
        assert after.margins is None
        assert after.rewards[0] > after.rewards[1]
    else:
        assert after.rewards is None
        assert after.margins.min() > 0


def test_measuring_keeps_the_order_and_moves_nothing():
    policy = new_policy()
    examples = with_references(PAIRS, REFERENCES)
    whole = measure(policy, batches_of(examples, 512), loss_of())
    cut = measure(policy, batches_of(examples, 13), loss_of())
    assert torch.allclose(whole.margins, cut.margins, atol=1e-5)
    hand = [
        0.1 * float(by_hand(policy, e.chosen) - e.ref_chosen - by_hand(policy, e.rejected) + e.ref_rejected)
        for e in examples
    ]
    assert whole.margins.tolist() == pytest.approx(hand, abs=1e-5)
    _, metrics = update(policy, batches_of(examples, 512), loss_of(), step=1)
    assert {name: metrics[name] for name in whole.metrics} == pytest.approx(whole.metrics, rel=1e-5)


def test_a_step_of_nothing_moves_nothing():
    policy = new_policy()
    before = [w.detach().clone() for w in policy.model.parameters()]
    done, metrics = update(policy, batches_of([], 512), loss_of(), step=1)
    assert not done.applied
    assert all(torch.equal(a, b) for a, b in zip(before, policy.model.parameters(), strict=True))
    assert math.isnan(metrics["accuracy"])


def test_a_step_without_a_bad_answer_has_no_mean_of_them():
    policy = new_policy()
    _, metrics = update(policy, batches_of([singles()[0]], 512), loss_of(loss="kto"), step=1)
    assert math.isnan(metrics["reward_bad"])
    assert math.isfinite(metrics["loss"])


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(
        ValueError, match=r"a pair of 10 tokens does not fit policy\.tokens_per_batch = 9; raise"
    ):
        batches_of(PAIRS[1:2], 9)
    with pytest.raises(
        ValueError, match="some examples have a reference's log-probability and some have not"
    ):
        batches_of([*with_references(PAIRS[:1], REFERENCES[:1]), PAIRS[1]], 512)
    with pytest.raises(ValueError, match="cannot share a step"):
        batches_of([PAIRS[0], singles()[0]], 512)
    with pytest.raises(ValueError, match="nothing of an answer is learned"):
        batches_of([PairExample(Example([1, 2], [True, False]), PAIRS[0].rejected)], 512)
