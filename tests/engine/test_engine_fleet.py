"""Several engines as one: who makes what, weights to all of them, and one of them dying."""

import os
import signal

import pytest
import torch

from tests.engine.test_engine_process import by_index, shifted, weights
from tests.tiny import config, model_folder, new_model
from verigrad.engine import rollout_backends
from verigrad.engine.config import ConfigError
from verigrad.engine.engine_fleet import EngineFleet, shares
from verigrad.engine.rollout import SamplerError, SamplingParams, TokenRequest, derive_seed
from verigrad.engine.rollout_backends import build_engine, early_children, num_engines
from verigrad.engine.sync import WeightSync
from verigrad.engine.weight_sharing import NoLayout
from verigrad.verifiers.base import Problem

PARAMS = SamplingParams(1.0, 20)
PROMPTS = [[5 + i, 7, 9, 11] * (1 + i % 3) for i in range(8)]
REQUESTS = [TokenRequest(prompt, derive_seed(i, j)) for i, prompt in enumerate(PROMPTS) for j in range(2)]


def settings(backend="transformers", **rollout):
    rollout = {"backend": backend, "max_prompt_tokens": 64, "max_tokens": 64, "max_seqs": 16, **rollout}
    return config(rollout=rollout)


@pytest.fixture(scope="module")
def fleet():
    built = build_engine(settings(num_engines=2), model_folder(), eos_ids=[1], seed=0)
    yield built
    built.close()


@pytest.fixture(scope="module")
def single():
    built = build_engine(settings(), model_folder(), eos_ids=[1], seed=0)
    yield built
    built.close()


def drawn(engine):
    return by_index(engine.generate(REQUESTS, PARAMS))


def test_groups_stay_together_unless_there_are_few():
    def of(sizes):
        return [TokenRequest([3, place], 0) for place, size in enumerate(sizes) for _ in range(size)]

    assert shares(of([2, 1, 3, 1, 1, 1, 1, 1]), 2) == [0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 1]
    assert shares(of([3, 2]), 2) == [0, 1, 0, 1, 0]
    assert shares([], 2) == []


def test_it_samples_what_one_engine_samples(fleet, single):
    assert isinstance(fleet, EngineFleet)
    assert not isinstance(single, EngineFleet)
    for seed, version in ((1, 3), (2, 4)):
        for engine in (fleet, single):
            engine.load_weights(weights(shifted(seed)))
            engine.version = version
        both, alone = drawn(fleet), drawn(single)
        assert [one.token_ids for one in both] == [one.token_ids for one in alone]
        assert [one.index for one in both] == list(range(len(REQUESTS)))
        assert {version for one in both for version in one.versions or [version]} == {version}
        ours = torch.tensor([value for one in both for value in one.logprobs])
        theirs = torch.tensor([value for one in alone for value in one.logprobs])
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_the_trainer_has_its_threads_back_after_sampling(fleet, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with EngineFleet(fleet.engines).stream() as stream:
            assert torch.get_num_threads() == 1
            assert not stream.busy
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_samples_can_be_added_one_by_one(fleet):
    whole = {one.index: one.token_ids for one in drawn(fleet)}
    outputs = []
    with fleet.stream() as stream:
        for index, request in enumerate(REQUESTS):
            stream.add(index, request, PARAMS)
            if index % 5 == 0:
                outputs += stream.step()
        while stream.busy:
            outputs += stream.step()
    assert {one.index: one.token_ids for one in outputs} == whole


def test_an_abandoned_call_leaves_nothing_behind(fleet):
    whole = [one.token_ids for one in drawn(fleet)]
    next(fleet.generate(REQUESTS, PARAMS))
    assert [one.token_ids for one in drawn(fleet)] == whole


def test_weights_have_no_places_in_engines_of_this_kind(fleet):
    with pytest.raises(NoLayout, match="no vLLM engine"):
        fleet.lay_out({name: weight.shape for name, weight in weights(new_model())})
    assert fleet.lay_out(None) is None


def test_a_killed_engine_is_one_line():
    engine = build_engine(settings(num_engines=2), model_folder(), eos_ids=[1], seed=0)
    try:
        assert len(drawn(engine)) == len(REQUESTS)
        os.kill(engine.engines[1].process.pid, signal.SIGKILL)
        with pytest.raises(SamplerError, match=r"process was killed by signal 9.*goes on from the last"):
            drawn(engine)
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("cores", "model_bytes", "rollout", "expected"),
    [
        (2, 10**6, {}, 2),
        (16, 10**6, {}, 4),
        (1, 10**6, {}, 1),
        (2, 2**29, {}, 1),
        (2, 2**29, {"num_engines": 3}, 3),
        (2, 10**6, {"num_engines": 1}, 1),
        (2, 10**6, {"max_staleness": 1}, 1),
        (2, 10**6, {"backend": "transformers"}, 1),
    ],
)
def test_how_many_there_are(monkeypatch, cores, model_bytes, rollout, expected):
    monkeypatch.setattr(rollout_backends, "num_cores", lambda: cores)
    monkeypatch.setattr(rollout_backends.model_files, "weight_bytes", lambda folder: model_bytes)
    monkeypatch.setattr(rollout_backends.os, "sysconf", lambda name: 2**17)  # 16 GiB in all
    cfg = settings(**{"backend": "vllm", **rollout})
    assert num_engines(cfg, "any", training=True) == expected
    assert num_engines(cfg, "any", training=False) == rollout.get("num_engines", 1)


def test_little_memory_makes_them_fewer_and_a_gpu_refuses_them(monkeypatch):
    monkeypatch.setattr(rollout_backends, "num_cores", lambda: 8)
    monkeypatch.setattr(rollout_backends.os, "sysconf", lambda name: 2**16)  # 4 GiB in all
    assert rollout_backends.most_engines(settings(backend="vllm"), training=True) == 2
    monkeypatch.setattr(rollout_backends, "on_gpu", lambda cfg: True)
    assert rollout_backends.most_engines(settings(backend="vllm"), training=True) == 1
    with pytest.raises(ConfigError, match="divides a CPU's cores"):
        rollout_backends.most_engines(settings(num_engines=2), training=True)


def test_each_has_its_part_of_the_sequences():
    own = rollout_backends.share_of(settings(num_engines=3, max_seqs=16), 3).rollout
    assert (own.max_seqs, own.num_engines) == (6, 1)


def test_there_is_no_place_that_a_step_cannot_fill():
    def places(eval_every=0, oversample=None, **rollout):
        dynamic = {"enabled": False} if oversample is None else {"enabled": True, "oversample": oversample}
        rollout = {"group_size": 3, "groups_per_step": 2, "max_seqs": 16, **rollout}
        cfg = config(rollout=rollout, dynamic_sampling=dynamic, eval={"every": eval_every})
        return rollout_backends.no_idle_places(cfg).rollout.max_seqs

    assert places() == 6
    assert places(oversample=1.5) == 9
    assert places(max_seqs=4) == 4
    assert places(eval_every=2) == 16  # held-out problems may be many
    assert places(max_staleness=1) == 16


def test_processes_that_were_not_taken_end_with_the_block():
    with early_children(settings(num_engines=3)) as children:
        taken = children.pop()
        rest = list(children)
        assert len(rest) == 1
    assert [child.process.poll() for child in rest] == [-signal.SIGKILL]
    assert taken.process.poll() is None
    taken.kill()


@pytest.mark.vllm
def test_vllm_engines_share_the_work_and_each_takes_the_weights():
    cfg = settings("vllm", num_engines=2)
    engine = build_engine(cfg, model_folder(), eos_ids=[1], seed=0)
    model = shifted(1)
    try:
        shapes = {name: weight.shape for name, weight in weights(model)}
        layout = engine.lay_out(shapes)
        assert layout.holds(weights(new_model()))
        assert not layout.holds(weights(model))
        engine.load_weights(weights(model))
        engine.version = 1
        assert layout.holds(weights(model))
        outputs = drawn(engine)
        again = drawn(engine)
        assert [one.logprobs for one in outputs] == [one.logprobs for one in again]
        for output in outputs:
            prompt = list(REQUESTS[output.index].prompt_ids)
            ids = torch.tensor([[*prompt, *output.token_ids]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(prompt) - 1 : -1]
            chosen = torch.tensor(output.token_ids)[:, None]
            expected = torch.log_softmax(logits.float(), -1).gather(1, chosen)[:, 0]
            torch.testing.assert_close(torch.tensor(output.logprobs), expected, atol=2e-5, rtol=0)
    finally:
        engine.close()


@pytest.mark.vllm
def test_the_cache_is_no_larger_than_can_be_filled():
    from verigrad.engine.rollout_vllm import usable_cache_bytes

    # 16 sequences of 128 tokens are 16 blocks, and 16 to spare; 2 layers x (K, V) x 1 head of 32 in float32
    expected = (16 + 16) * 128 * (2 * 2 * 1 * 32 * 4) * 5 // 4
    assert usable_cache_bytes(settings("vllm"), model_folder()) == expected


def test_every_engine_has_a_canary(fleet):
    class Sampler:
        engine = fleet

        class codec:
            @staticmethod
            def token_ids(problem):
                return [5, 7]

    def requests(num, **rollout):
        Sampler.engine = EngineFleet([fleet.engines[0]] * num)
        return WeightSync(None, Sampler, [Problem("a", "b")] * 2, cfg=settings(**rollout)).requests

    assert len(requests(4)) == 16
    assert len(requests(4, max_tokens=1)) == 4  # room for two, said twice
    assert set(shares(requests(4, max_tokens=1), 4)) == {0, 1, 2, 3}
    assert set(shares(requests(4), 4)) == {0, 1, 2, 3}
