import dataclasses
import threading

import pytest
import torch

from tests.tiny import config, model_folder, random_groups, rollout, tokenizer
from verigrad.engine import algorithms, lanes
from verigrad.engine.pack import lay_out, pack
from verigrad.engine.policy import Policy, combine


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def sequences(batch):
    return [ids.tolist() for ids in torch.split(batch.input_ids, batch.cu_seqlens.diff().tolist())]


def test_groups_stay_whole_and_every_column_goes_along():
    one = [rollout([3] * 20, [4 + i] * 30) for i in range(4)]
    other = [rollout([9] * 20, [4 + i] * 30) for i in range(4)]
    batch = lay_out([r for pair in zip(one, other, strict=True) for r in pair])
    batch = dataclasses.replace(batch, groups=torch.tensor([0, 1] * 4), advantages=batch.input_ids.float())
    first, second = lanes.halves(batch, pair_cost=0.0)
    assert [s[0] for s in sequences(first)] == [3] * 4
    assert [s[0] for s in sequences(second)] == [9] * 4
    assert first.groups.tolist() == [0] * 4
    assert second.groups.tolist() == [1] * 4
    for half in (first, second):
        assert half.cu_seqlens.tolist() == [0, 50, 100, 150, 200]
        assert half.cu_seqlens.dtype == batch.cu_seqlens.dtype
        assert torch.equal(half.advantages, half.input_ids.float())
        assert half.loss_mask.sum() == 4 * 30
        assert half.ref_logprobs is None


def test_a_long_rollout_costs_more_than_its_tokens_where_pairs_do():
    rows = [rollout([3], [10] * 299), *(rollout([4 + i], [11] * 99) for i in range(4))]
    assert sorted(len(half.input_ids) for half in lanes.halves(lay_out(rows), pair_cost=0.0)) == [300, 400]
    # 300 + 300^2 / 2 / 10 = 4800 against 4 x (100 + 100^2 / 2 / 10) = 2400, either way
    assert sorted(len(half.input_ids) for half in lanes.halves(lay_out(rows), pair_cost=0.1)) == [300, 400]
    rows = [rollout([3], [10] * 199), *(rollout([4 + i], [11] * 99) for i in range(4))]
    # tokens alone: 300 and 300; with pairs 2200 + 600 and 1800, against 2200 and 2400
    first, second = lanes.halves(lay_out(rows), pair_cost=0.1)
    assert [len(first.input_ids), len(second.input_ids)] == [200, 400]


@pytest.mark.parametrize(
    "rows",
    [
        [rollout([3], [4] * 300)],  # one rollout
        [rollout([3], [4] * 5), rollout([5], [6] * 5)],  # hardly any work
        [rollout([3] * 200, [4 + i] * 4) for i in range(8)],  # one long prompt, computed twice
    ],
)
def test_what_saves_too_little_stays_whole(rows):
    assert lanes.halves(lay_out(rows), pair_cost=0.0) is None


def updated(name, *, side_by_side, monkeypatch, num=1, **policy):
    cfg = config(algorithm={"name": name}, policy=policy)
    p = Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())
    algorithm = algorithms.build(cfg)
    batches = pack(random_groups(num=8, size=4, seed=3), algorithm.aggregate, max_tokens=512)
    if not side_by_side:
        monkeypatch.setattr(Policy, "_halves", lambda self, batch: None)
    done = [p.update(batches, algorithm.loss, algorithm.coefs, step=i + 1, first=not i) for i in range(num)]
    monkeypatch.undo()
    return torch.cat([w.detach().flatten() for w in p.model.parameters()]), combine(done), done


@pytest.mark.parametrize("name", ["dapo", "gspo", "ppo"])
def test_side_by_side_is_the_same_step_and_the_same_bits_each_time(name, two_threads, monkeypatch):
    lone, alone, _ = updated(name, side_by_side=False, monkeypatch=monkeypatch, num=2)
    both, metrics, done = updated(name, side_by_side=True, monkeypatch=monkeypatch, num=2)
    again, same, _ = updated(name, side_by_side=True, monkeypatch=monkeypatch, num=2)
    assert len(done[0].sums) > 1
    assert torch.equal(both, again)
    assert metrics == same
    assert metrics["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
    assert metrics["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    assert metrics["entropy"] == pytest.approx(alone["entropy"], rel=1e-5)
    assert (both - lone).norm() < 1e-2 * lone.norm()  # AdamW's first steps are signs: tiny gradients may flip
    assert torch.get_num_threads() == 2


def test_gradients_add_up_to_the_whole(two_threads):
    cfg = config(algorithm={"name": "dapo"})
    p = Policy(cfg, model_folder(tied=True), tokenizer=tokenizer(), start_folder=model_folder(tied=True))
    algorithm = algorithms.build(cfg)
    (batch,) = pack(random_groups(num=8, size=4, seed=3), algorithm.aggregate, max_tokens=10_000)
    loss, _ = p._loss(batch, algorithm.loss, algorithm.coefs, first=True)
    loss.backward()
    expected = [w.grad.clone() for w in p.model.parameters()]
    p.optimizer.zero_grad()
    parameters = list(p.model.parameters())
    pair = [lambda b=b: p._loss(b, algorithm.loss, algorithm.coefs, first=True) for b in p._halves(batch)]
    for times in (1, 2):  # a second batch's are added to the first's
        lanes.add_gradients(pair, parameters)
        for weight, gradient in zip(parameters, expected, strict=True):
            assert torch.allclose(weight.grad, times * gradient, atol=1e-6 * times)


def test_with_one_thread_or_pairs_nothing_is_divided(two_threads):
    batch = lay_out([rollout([3 + i], [9] * 99) for i in range(8)])
    for algorithm, threads, divided in (("dapo", 2, True), ("dapo", 1, False), ("online_dpo", 2, False)):
        cfg = config(algorithm={"name": algorithm})
        p = Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())
        torch.set_num_threads(threads)
        assert (p._halves(batch) is not None) == divided


@pytest.mark.parametrize("failing", [0, 1])
def test_a_lane_that_fails_is_told_when_both_have_ended(failing, two_threads):
    ended = threading.Event()

    def fails():
        raise RuntimeError("no memory")

    def ends():
        threading.Event().wait(0.05)
        ended.set()

    pair = (fails, ends) if failing == 0 else (ends, fails)
    with pytest.raises(RuntimeError, match="no memory"):
        lanes.side_by_side(*pair)
    assert ended.is_set()
    assert torch.get_num_threads() == 2
