import dataclasses
import math
import random

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from tests.tiny import config, model_folder, new_model, random_groups, rollout, tokenizer, whole
from verigrad.engine import algorithms
from verigrad.engine.config import ConfigError, OptimConfig
from verigrad.engine.optim import learning_rate
from verigrad.engine.pack import lay_out, pack
from verigrad.engine.packed_attention import packed_attention
from verigrad.engine.policy import Policy, combine
from verigrad.engine.schema import ScoredGroup


def policy(cfg=None, **model):
    folder = model_folder(**model)
    return Policy(cfg or config(), folder, tokenizer=tokenizer(), start_folder=folder)


def plain_logprobs(model, ids, temperature):
    """The textbook way, one unpadded sequence at a time, all logits held."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("tied", [False, True])
def test_packed_logprobs_equal_one_sequence_at_a_time(tied):
    rows = [r for g in random_groups() for r in g.rollouts]
    batch = lay_out(rows)
    ours = policy(tied=tied).logprobs(batch, temperature=0.7)
    model = new_model(tied=tied).eval()
    rows = sorted(rows, key=lambda r: len(r.token_ids), reverse=True)
    for row, start, end in zip(rows, batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        expected = plain_logprobs(model, list(row.token_ids), 0.7)
        mask = batch.loss_mask[start : end - 1]
        assert torch.allclose(ours[start : end - 1][mask], expected[mask], atol=2e-6)


def test_no_rollout_sees_another():
    a, b, c = rollout([3, 4], [5, 6, 7]), rollout([8, 9], [10, 11, 12]), rollout([8, 9], [20, 21, 22])
    p = policy()
    with_b = p.logprobs(lay_out([a, b]), temperature=1.0)[:5]
    with_c = p.logprobs(lay_out([a, c]), temperature=1.0)[:5]
    assert torch.equal(with_b, with_c)


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
def test_attention_that_would_be_computed_otherwise_is_refused(extra):
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(ConfigError, match="does not compute; use a model without"):
        packed_attention(torch.nn.Linear(1, 1), q, q, q, None, packed_layout=whole(4), **extra)


def test_a_recurrent_model_is_refused(tmp_path):
    recurrent = MambaForCausalLM(
        MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, state_size=4)
    )
    recurrent.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="recurrent layers would carry their state"):
        Policy(config(), str(tmp_path), tokenizer=tokenizer(), start_folder=str(tmp_path))


def test_a_sliding_window_sees_no_further():
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    v = torch.randn(1, 2, 6, 8)
    module = torch.nn.Linear(1, 1)
    out, _ = packed_attention(module, q, k, v, None, packed_layout=whole(6), sliding_window=2)
    far = v.clone()
    far[:, :, :4] = 99.0
    again, _ = packed_attention(module, q, k, far, None, packed_layout=whole(6), sliding_window=2)
    assert torch.allclose(out[0, 5], again[0, 5])  # column 5 sees columns 4 and 5 alone
    assert not torch.allclose(out[0, 4], again[0, 4])


def gradients(p, batches, algorithm, *, first=True):
    p.optimizer.zero_grad(set_to_none=True)
    sums = []
    for batch in batches:
        loss, part = p._loss(batch, algorithm.loss, algorithm.coefs, first=first)
        loss.backward()
        sums.append(part)
    return torch.cat([w.grad.flatten() for w in p.model.parameters()]), sums


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "rloo", "ppo"])
def test_an_update_does_not_depend_on_micro_batches_packing_or_order(name):
    cfg = config(algorithm={"name": name, "kl_coef": 0.1, "entropy_coef": 0.01})
    algorithm, p = algorithms.build(cfg), policy(cfg)
    groups = random_groups(num=5, size=4, seed=3)
    shuffled = [
        ScoredGroup(g.problem, [g.rollouts[i] for i in order], [g.verdicts[i] for i in order],
                    [g.advantages[i] for i in order])
        for g in random.Random(1).sample(groups, len(groups))
        for order in [random.Random(2).sample(range(4), 4)]
    ]  # fmt: skip
    reference = None
    for some, max_tokens in ((groups, 10_000), (groups, 64), (groups, 31), (shuffled, 100)):
        batches = p.frozen(pack(some, algorithm.aggregate, max_tokens=max_tokens), with_old=True)
        gradient, sums = gradients(p, batches, algorithm, first=False)
        loss = sum(float(part["loss_sum"]) for part in sums)
        if reference is None:
            reference = gradient, loss
            assert gradient.norm() > 1e-3
            assert len(batches) == 1
            continue
        assert len(batches) > 1
        assert loss == pytest.approx(reference[1], abs=1e-6)
        assert torch.allclose(gradient, reference[0], atol=2e-6)


def test_the_first_ratio_is_one_and_the_second_is_not():
    cfg = config()
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batches = pack(random_groups(), algorithm.aggregate, max_tokens=512)
    batches = p.frozen(batches, with_old=True)
    first = p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True)
    assert first.applied
    assert combine([first])["ratio_max_dev"] == 0
    second = p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=False)
    assert combine([second])["ratio_max_dev"] > 1e-3


def test_frozen_old_logprobs_give_the_ratio_one_too():
    cfg = config()
    algorithm, p = algorithms.build(cfg), policy(cfg, dropout=0.5)  # dropout in the config must not act
    batches = p.frozen(pack(random_groups(), algorithm.aggregate, max_tokens=512), with_old=True)
    _, sums = gradients(p, batches, algorithm, first=False)
    assert max(float(part["ratio_max_dev"]) for part in sums) < 1e-5


def test_bypass_takes_the_ratio_against_the_sampler_and_still_reports_the_mismatch():
    cfg = config(algorithm={"old_logprobs": "rollout"})
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batches = pack(random_groups(), algorithm.aggregate, max_tokens=512)
    done = p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True)
    metrics = combine([done])
    truth = torch.cat([p.logprobs(b, temperature=1.0)[b.loss_mask] for b in batches])
    assert metrics["mismatch_max"] > 0.5  # the groups' log-probabilities are invented
    assert metrics["ratio_max_dev"] > 0.5
    assert truth.isfinite().all()


def test_a_gradient_step_lowers_the_loss_it_was_taken_for():
    cfg = config(optim={"lr": 1e-3})
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batches = p.frozen(pack(random_groups(), algorithm.aggregate, max_tokens=512), with_old=True)
    losses = []
    for _ in range(3):
        done = p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=False)
        losses.append(combine([done])["loss"])
    assert losses[2] < losses[1] < losses[0]


def test_a_non_finite_loss_changes_nothing_and_says_so():
    cfg = config()
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batches = pack(random_groups(), algorithm.aggregate, max_tokens=512)
    broken = [dataclasses.replace(b, advantages=b.advantages * math.inf) for b in batches]
    before = [w.clone() for _, w in p.weights()]
    done = p.update(broken, algorithm.loss, algorithm.coefs, step=1, first=True)
    assert not done.applied
    assert all(torch.equal(a, b) for a, (_, b) in zip(before, p.weights(), strict=True))
    assert not p.optimizer.state
    assert p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True).applied


def test_gradient_checkpointing_gives_the_same_gradient():
    groups, algorithm = random_groups(), algorithms.build(config())
    found = []
    for on in (False, True):
        cfg = config(policy={"gradient_checkpointing": on})
        p = policy(cfg)
        gradient, _ = gradients(p, pack(groups, algorithm.aggregate, max_tokens=512), algorithm)
        assert p.model.is_gradient_checkpointing == on
        found.append(gradient)
    assert torch.allclose(*found, atol=1e-6)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights():
    groups, algorithm = random_groups(), algorithms.build(config())
    exact = policy()
    rough = policy(config(policy={"dtype": "bfloat16"}))
    batch = pack(groups, algorithm.aggregate, max_tokens=512)[0]
    gap = (exact.logprobs(batch, temperature=1.0) - rough.logprobs(batch, temperature=1.0)).abs().max()
    assert 1e-4 < gap < 0.3
    assert all(w.dtype == torch.float32 for _, w in rough.weights())
    assert rough.update([batch], algorithm.loss, algorithm.coefs, step=1, first=True).applied


def test_the_kl_reference_is_the_start_and_does_not_move():
    cfg = config(algorithm={"kl_coef": 0.5})
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batches = p.frozen(pack(random_groups(), algorithm.aggregate, max_tokens=512), with_old=False)
    metrics = combine([p.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True)])
    assert metrics["kl_ref"] == pytest.approx(0, abs=1e-6)
    before = batches[0].ref_logprobs
    again = p.frozen(pack(random_groups(), algorithm.aggregate, max_tokens=512), with_old=False)
    assert torch.equal(before, again[0].ref_logprobs)
    assert combine([p.update(again, algorithm.loss, algorithm.coefs, step=1, first=True)])["kl_ref"] > 1e-5


def test_a_policy_without_kl_holds_no_reference():
    assert policy().reference is None


def test_the_saved_folder_loads_in_transformers_with_the_same_logprobs(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cfg = config()
    algorithm, p = algorithms.build(cfg), policy(cfg)
    batch = pack(random_groups(), algorithm.aggregate, max_tokens=512)[0]
    p.update([batch], algorithm.loss, algorithm.coefs, step=1, first=True)
    p.save_model(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = [2, 5, 9, 12, 7]
    ours = p.logprobs(lay_out([rollout(ids[:1], ids[1:])]), temperature=1.0)[:4]
    assert torch.allclose(ours, plain_logprobs(loaded, ids, 1.0), atol=2e-6)
    assert AutoTokenizer.from_pretrained(tmp_path)("12").input_ids == tokenizer()("12").input_ids


def test_a_model_that_is_not_there_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"policy.model = '/nowhere' could not be loaded"):
        Policy(config(), "/nowhere", tokenizer=None, start_folder="/nowhere")


def test_learning_rates_by_hand():
    cfg = OptimConfig(lr=1.0, warmup_steps=4)
    assert [learning_rate(cfg, step=s, num_steps=10) for s in (1, 2, 4, 5, 10)] == [0.25, 0.5, 1, 1, 1]
    linear = OptimConfig(lr=1.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(linear, step=s, num_steps=6) for s in (3, 4, 5, 6)] == [1.0, 0.75, 0.5, 0.25]
    cosine = OptimConfig(lr=2.0, schedule="cosine")
    assert learning_rate(cosine, step=6, num_steps=10) == pytest.approx(1.0)
