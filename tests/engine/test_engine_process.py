"""The sampler in a process of its own: the same answers, weights under way, and either side dying."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from tests.tiny import config, model_folder, new_model
from verigrad.engine.config import ConfigError
from verigrad.engine.engine_process import EngineProcess, environment, is_wanted
from verigrad.engine.engine_process_weights import SharedWeights, new_file
from verigrad.engine.rollout import SamplerError, SamplingParams, TokenRequest, derive_seed
from verigrad.engine.rollout_backends import build_engine
from verigrad.engine.weight_sharing import NoLayout

PARAMS = SamplingParams(1.0, 20)
REQUESTS = [TokenRequest([5 + i % 4, 7, 9, 11] * (1 + i % 3), seed=derive_seed(i)) for i in range(12)]


def settings(backend="transformers", **rollout):
    rollout = {"backend": backend, "max_prompt_tokens": 200, "max_tokens": 200, "max_seqs": 16, **rollout}
    return config(rollout={"max_staleness": 1, **rollout}, policy={"tokens_per_batch": 2048})


def weights(model):
    return [(name, weight.detach()) for name, weight in model.named_parameters()]


def shifted(seed):
    model = new_model()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=g)
    return model


def by_index(outputs):
    return sorted(outputs, key=lambda output: output.index)


def logprobs(model, prompt, tokens):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(list(tokens))[:, None])[:, 0]


@pytest.fixture(scope="module")
def engine():
    built = EngineProcess(settings(), model_folder(), eos_ids=[1], seed=0)
    yield built
    built.close()


@pytest.fixture(scope="module")
def inside():
    built = build_engine(settings(), model_folder(), eos_ids=[1], seed=0)
    yield built
    built.close()


@pytest.fixture(autouse=True)
def original_weights(request):
    """Each test starts from the model folder's weights."""
    for name in {"engine", "inside"} & set(request.fixturenames):
        built = request.getfixturevalue(name)
        built.load_weights(weights(new_model()))
        built.version = 0


@pytest.fixture
def mortal():
    """One that may die."""
    built = EngineProcess(settings(), model_folder(), eos_ids=[1], seed=0)
    yield built
    built.close()


def test_it_samples_what_an_engine_in_this_process_samples(engine, inside):
    def drawn(one):
        return [(o.token_ids, o.finish_reason) for o in by_index(one.generate(REQUESTS, PARAMS))]

    assert drawn(engine) == drawn(inside)
    for one in (engine, inside):
        one.load_weights(weights(shifted(1)))
        one.version = 3
    after = drawn(engine)
    assert after == drawn(inside)
    engine.load_weights(weights(shifted(2)))  # the block is there already
    engine.version = 4
    outputs = by_index(engine.generate(REQUESTS, PARAMS))
    assert {version for output in outputs for version in output.versions} == {4}
    assert drawn(engine) != after


def test_others_are_served_beside_a_lasting_stream_and_nothing_is_mixed_up(engine):
    alone = [output.token_ids for output in by_index(engine.generate(REQUESTS, PARAMS))]
    with engine.stream(lasting=True) as stream:
        for index, request in enumerate(REQUESTS):
            stream.add(100 + index, request, SamplingParams(1.0, 150))
        beside = [output.token_ids for output in by_index(engine.generate(REQUESTS, PARAMS))]
        lasting = []
        while stream.busy:
            lasting += stream.step()
    assert beside == alone
    assert sorted(output.index for output in lasting) == list(range(100, 112))
    assert engine.busy_s > 0


def test_without_a_version_new_weights_are_not_used(engine):
    with engine.stream(lasting=True) as stream:
        engine.version = 1
        engine.load_weights(weights(shifted(1)))
        stream.add(0, REQUESTS[0], PARAMS)
        assert not any(stream.step() for _ in range(6))
        engine.version = 2
        outputs = []
        while stream.busy:
            outputs += stream.step()
    assert set(outputs[0].versions) == {2}
    engine.load_weights(weights(shifted(2)))  # who asks for a whole call needs no version
    assert len(list(engine.generate(REQUESTS, PARAMS))) == len(REQUESTS)


def test_an_engine_without_known_places_says_so_and_takes_weights_all_the_same(engine):
    with pytest.raises(NoLayout, match="no vLLM engine"):
        engine.lay_out({name: weight.shape for name, weight in weights(new_model())})
    assert engine.lay_out(None) is None
    engine.load_weights(weights(shifted(1)))


def test_weights_it_does_not_know_are_refused_and_it_lives_on(engine):
    with pytest.raises(SamplerError, match="did not send 1 weights"):
        engine.load_weights(weights(shifted(1))[1:])
    assert len(list(engine.generate(REQUESTS, PARAMS))) == len(REQUESTS)


def test_a_killed_child_is_one_line_to_everyone_who_waits(mortal):
    engine = mortal
    with engine.stream(lasting=True) as stream:
        stream.add(0, REQUESTS[0], PARAMS)
        os.kill(engine.process.pid, signal.SIGKILL)
        with pytest.raises(SamplerError, match=r"process was killed by signal 9.*goes on from the last"):
            list(iter(stream.step, None))
        with pytest.raises(SamplerError, match="killed by signal 9"):
            engine.load_weights(weights(new_model()))
        with pytest.raises(SamplerError, match="killed by signal 9"):
            next(engine.generate(REQUESTS, PARAMS))
    engine.close()


@pytest.mark.slow
def test_a_child_that_cannot_start_says_why(tmp_path):
    with pytest.raises(SamplerError, match=r"ended with status 1; its last words: .*no-such-model"):
        list(
            EngineProcess(settings(), str(tmp_path / "no-such-model"), eos_ids=[1], seed=0).generate(
                [], PARAMS
            )
        )


@pytest.mark.slow
def test_a_failure_within_the_child_is_told(mortal):
    with pytest.raises(SamplerError, match="process failed: IndexError"):
        list(mortal.generate([TokenRequest([10**6], 0)], PARAMS))  # no such token


OWNER = """
import sys, time
from tests.tiny import config, model_folder
from verigrad.engine.engine_process import EngineProcess
from verigrad.engine.rollout import SamplingParams, TokenRequest
from tests.engine.test_engine_process import settings
if __name__ == "__main__":
    engine = EngineProcess(settings(), model_folder(), eos_ids=[1], seed=0)
    print(engine.process.pid, flush=True)
    time.sleep(60)
"""


def test_a_child_whose_trainer_is_killed_ends_by_itself(tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(textwrap.dedent(OWNER))
    root = str(Path(__file__).parents[2])
    owner = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    child = int(owner.stdout.readline())
    owner.kill()
    owner.wait()
    ends = time.monotonic() + 10
    while running(child) and time.monotonic() < ends:
        time.sleep(0.05)
    assert not running(child)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_cores_are_divided_and_the_recipe_decides(monkeypatch):
    monkeypatch.setattr("verigrad.engine.engine_process.num_cores", lambda: 8)
    assert environment(settings(), threads=4)["OMP_NUM_THREADS"] == "4"
    assert is_wanted(settings())
    assert not is_wanted(settings(engine_process=False))
    assert not is_wanted(settings(max_staleness=0))
    monkeypatch.setattr("verigrad.engine.engine_process.num_cores", lambda: 1)
    assert not is_wanted(settings())
    assert is_wanted(settings(engine_process=True))


def test_of_several_gpus_the_child_has_the_last(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    cfg = settings().model_copy(update={"policy": settings().policy.model_copy(update={"device": "auto"})})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment(cfg, threads=1)["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,6,7")
    assert environment(cfg, threads=1)["CUDA_VISIBLE_DEVICES"] == "7"
    assert is_wanted(cfg)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert not is_wanted(cfg)


def test_the_block_holds_every_kind_of_weight_to_the_bit():
    given = [
        ("a", torch.randn(3, 5)),
        ("b", torch.randn(7).bfloat16()),
        ("scalar", torch.tensor(2.5)),
        ("c", torch.arange(6).view(2, 3).t()),
    ]
    with new_file() as file:
        block = SharedWeights.of(file.fileno(), given)
        other = SharedWeights(file.fileno(), block.places, block.size)
        assert all(torch.equal(dict(other.read())[name], weight) for name, weight in given)
        block.write([(name, weight + 1) for name, weight in given])
        assert all(torch.equal(dict(other.read())[name], weight + 1) for name, weight in given)
        with pytest.raises(SamplerError, match="did not send 1 weights, 'c'"):
            block.write(given[:3])
        with pytest.raises(SamplerError, match="'a' that was not there at first"):
            block.write([("a", torch.zeros(2))])


# Weights that arrive in the middle of a sample -------------------------------------------------------------


def in_flight(engine, *, cut):
    """Samples under weights 0, then, once one sample has `cut` tokens or more, under weights 1."""
    models = [shifted(1), shifted(2)]
    long = [TokenRequest(request.prompt_ids, request.seed) for request in REQUESTS]
    engine.load_weights(weights(models[0]))
    engine.version = 0
    outputs = []
    with engine.stream(lasting=True) as stream:
        for index, request in enumerate(long):
            stream.add(index, request, SamplingParams(1.0, 60 + 10 * index))
        cut(stream, outputs)
        engine.load_weights(weights(models[1]))
        engine.version = 1
        beside = by_index(engine.generate(REQUESTS[:2], PARAMS))
        while stream.busy:
            outputs += stream.step()
    assert {version for output in beside for version in output.versions} == {1}
    return models, by_index(outputs)


def assert_exact(models, outputs):
    """Each token has the log-probability that the weights it is tagged with give it after all before it."""
    both = 0
    for output in outputs:
        versions = torch.tensor(list(output.versions))
        assert len(versions) == len(output.token_ids)
        assert versions.tolist() == sorted(versions.tolist())
        both += len(set(versions.tolist())) == 2
        prompt = REQUESTS[output.index].prompt_ids
        under = torch.stack([logprobs(model, prompt, output.token_ids) for model in models])  # [2, L]
        ours = under.gather(0, versions[None])[0]
        assert (ours - torch.tensor(output.logprobs)).abs().max() < 1e-4
        other = under.gather(0, 1 - versions[None])[0]
        assert (other - torch.tensor(output.logprobs)).abs().max() > 1e-3
    return both


@pytest.mark.vllm
def test_vllm_goes_on_with_half_a_sample_exactly_under_new_weights():
    engine = build_engine(settings("vllm"), model_folder(), eos_ids=[63], seed=0)
    try:

        def cut(stream, outputs):
            for _ in range(25):
                outputs += stream.step()

        models, outputs = in_flight(engine, cut=cut)
        assert assert_exact(models, outputs) >= 6
        with engine.stream() as stream:  # one that does not last still refuses
            stream.add(0, REQUESTS[0], PARAMS)
            stream.step()
            with pytest.raises(SamplerError, match="refused to reset"):
                engine.load_weights(weights(models[0]))
    finally:
        engine.close()


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_in_its_own_process_goes_on_exactly():
    engine = EngineProcess(settings("vllm"), model_folder(), eos_ids=[63], seed=0)
    try:

        def cut(stream, outputs):
            while not outputs:
                outputs += stream.step()

        layout = engine.lay_out({name: weight.shape for name, weight in weights(new_model())})
        assert layout.holds(weights(new_model()))
        assert not layout.holds(weights(shifted(1)))
        with pytest.raises(NoLayout, match="a process of its own"):
            layout.share(new_model())
        models, outputs = in_flight(engine, cut=cut)
        assert_exact(models, outputs)
    finally:
        engine.close()


def test_settings_that_cannot_be_are_one_line():
    from verigrad.engine.config import build

    base = {"policy": {"model": "m", "tokens_per_batch": 4096}, "data": {"path": "d.jsonl"}}

    def refusal(**sections):
        with pytest.raises(ConfigError) as caught:
            build({**base, **sections}, name="r")
        return str(caught.value)

    ahead = {"max_staleness": 2}
    assert "engine_process has no effect with rollout.max_staleness = 0" in refusal(
        rollout={"engine_process": False}
    )
    assert "agent.tools run in episodes" in refusal(rollout=ahead, agent={"tools": ["shell"]})
    one_process = {**ahead, "engine_process": False, "num_engines": 2}
    assert "needs processes beside the trainer's" in refusal(rollout=one_process)
    assert "old adapter" in refusal(rollout=ahead, lora={"rank": 4, "load": "adapter"})
    assert "greedy rollouts of the same weights" in refusal(rollout=ahead, algorithm={"name": "remax"})
    made = build({**base, "rollout": ahead}, name="r")
    assert (made.algorithm.correction, made.algorithm.correction_high) == ("tis", 2.0)
    assert made.sync.max_mismatch_kl == 0.5
    named = build({**base, "rollout": ahead, "algorithm": {"correction": "icepop"}}, name="r")
    assert (named.algorithm.correction, named.algorithm.correction_low) == ("icepop", 0.5)
    assert build(base, name="r").algorithm.correction == "icepop"
