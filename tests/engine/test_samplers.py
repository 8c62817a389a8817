"""One suite for both engines: what the loop leans on, with the real vLLM."""

import pytest
import torch

from tests.tiny import config, model_folder, new_model, tokenizer
from verigrad.engine.config import PromptsConfig
from verigrad.engine.pack import lay_out
from verigrad.engine.policy import Policy
from verigrad.engine.prompts import Prompter
from verigrad.engine.rollout import Sampler, SamplingParams, TokenRequest, derive_seed
from verigrad.engine.rollout_backends import build_engine
from verigrad.engine.sync import WeightSync, WeightSyncError
from verigrad.verifiers.base import Problem

KINDS = [
    pytest.param(("transformers", False), id="transformers"),
    pytest.param(("transformers", True), id="transformers-tied"),
    pytest.param(("vllm", False), id="vllm", marks=pytest.mark.vllm),
    pytest.param(("vllm", True), id="vllm-tied", marks=pytest.mark.vllm),
]
REQUESTS = [TokenRequest([5 + i % 4, 7, 9, 11] * (1 + i % 3), seed=derive_seed(i)) for i in range(24)]


def settings(backend, **rollout):
    rollout = {"backend": backend, "max_prompt_tokens": 200, "max_tokens": 40, "max_seqs": 16, **rollout}
    return config(rollout=rollout, policy={"tokens_per_batch": 2048})


@pytest.fixture(scope="module", params=KINDS)
def engine(request):
    backend, tied = request.param
    built = build_engine(settings(backend), model_folder(tied=tied), eos_ids=[1], seed=0)
    built.tied = tied
    yield built
    built.close()


@pytest.fixture(autouse=True)
def original_weights(request):
    """Each test starts from the model folder's weights."""
    if "engine" in request.fixturenames:
        built = request.getfixturevalue("engine")
        built.load_weights((n, p.detach()) for n, p in new_model(tied=built.tied).named_parameters())


def run(engine, requests=REQUESTS, temperature=1.0, max_tokens=20):
    outputs = list(engine.generate(requests, SamplingParams(temperature, max_tokens)))
    assert sorted(o.index for o in outputs) == list(range(len(requests)))
    return sorted(outputs, key=lambda o: o.index)


def trainer_logprobs(model, prompt, tokens, temperature):
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(list(tokens))[:, None])[:, 0]


def gap(outputs, model, temperature, requests=REQUESTS):
    return max(
        float((torch.tensor(o.logprobs)
               - trainer_logprobs(model, requests[o.index].prompt_ids, o.token_ids, temperature)).abs().max())
        for o in outputs
    )  # fmt: skip


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_logprobs_are_those_of_the_tempered_distribution(engine, temperature):
    assert gap(run(engine, temperature=temperature), new_model(tied=engine.tied), temperature) < 3e-5


def test_greedy_takes_the_most_likely_token(engine):
    model = new_model(tied=engine.tied)
    for output in run(engine, temperature=0.0)[:6]:
        prompt = list(REQUESTS[output.index].prompt_ids)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *output.token_ids]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(output.token_ids)


def test_the_same_requests_give_the_same_tokens_and_bits(engine):
    first, second = run(engine), run(engine)
    assert [o.token_ids for o in first] == [o.token_ids for o in second]
    assert [o.logprobs for o in first] == [o.logprobs for o in second]


def test_a_sample_depends_on_its_seed_and_not_on_its_neighbours(engine):
    together = run(engine)
    alone = run(engine, REQUESTS[3:4])
    assert list(alone[0].token_ids) == list(together[3].token_ids)
    other = run(engine, [TokenRequest(REQUESTS[3].prompt_ids, seed=99)])
    assert list(other[0].token_ids) != list(together[3].token_ids)


def test_samples_follow_the_distribution(engine):
    model, prompt = new_model(tied=engine.tied), [5, 7, 9]
    requests = [TokenRequest(prompt, seed=derive_seed("d", i)) for i in range(800)]
    outputs = run(engine, requests, max_tokens=1)
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([o.token_ids[0] for o in outputs]), minlength=64) / len(outputs)
    # Total variation of 800 honest draws over 64 tokens is below 0.15 with near certainty.
    assert 0.5 * (counts - expected).abs().sum() < 0.15


def test_the_end_token_is_included_and_truncation_is_flagged(engine):
    outputs = run(engine, max_tokens=20)
    reasons = {o.finish_reason for o in outputs}
    assert reasons == {"stop", "length"}
    for output in outputs:
        assert (output.token_ids[-1] == 1) == (output.finish_reason == "stop")
        assert 1 not in output.token_ids[:-1]
        assert output.finish_reason == "stop" or len(output.token_ids) == 20
        assert len(output.logprobs) == len(output.token_ids)


def test_short_samples_come_back_before_long_ones_end(engine):
    lengths = [len(o.token_ids) for o in engine.generate(REQUESTS[:16], SamplingParams(1.0, 40))]
    assert lengths[0] < max(lengths)
    assert lengths == sorted(lengths)


def test_new_weights_change_what_is_sampled_and_match_the_trainer(engine):
    model = new_model(tied=engine.tied, seed=5)
    old = run(engine)
    engine.load_weights((n, p.detach()) for n, p in model.named_parameters())
    new = run(engine)
    assert gap(new, model, 1.0) < 1e-5
    assert [o.token_ids for o in new] != [o.token_ids for o in old]


def test_cached_prompts_are_forgotten_with_the_old_weights(engine):
    # Longer than vLLM's cache block of 128 tokens, so that a cache left in place would be used.
    requests = [TokenRequest([5, 7, 9, 11, 13] * 36, seed=i) for i in range(2)]
    run(engine, requests, max_tokens=4)
    model = new_model(tied=engine.tied, seed=6)
    engine.load_weights((n, p.detach()) for n, p in model.named_parameters())
    assert gap(run(engine, requests, max_tokens=4), model, 1.0, requests) < 1e-5


def test_giving_up_half_way_leaves_the_engine_usable(engine):
    stream = engine.generate(REQUESTS, SamplingParams(1.0, 40))
    next(stream)
    stream.close()
    assert len(run(engine)) == len(REQUESTS)


@pytest.mark.parametrize("backend", ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_stop_strings_end_a_completion(backend):
    cfg = settings(backend, stop=["7"])
    built = build_engine(cfg, model_folder(), eos_ids=[1], seed=0)
    try:
        outputs = list(built.generate(REQUESTS, SamplingParams(1.0, 40, ("7",))))
    finally:
        built.close()
    seven = tokenizer().convert_tokens_to_ids("7")
    stopped = [o for o in outputs if seven in o.token_ids]
    assert stopped
    for output in stopped:
        assert list(output.token_ids).index(seven) == len(output.token_ids) - 1
        assert output.finish_reason == "stop"


def sampler_over(engine):
    return Sampler(engine, Prompter(tokenizer(), PromptsConfig()))


PROBLEMS = [Problem(str(i), f"{i}+{i}=", str(2 * i)) for i in range(6)]


def test_groups_hold_prompt_and_sample_with_masks_and_versions(engine):
    sampler = sampler_over(engine)
    sampler.policy_version = 7
    arrived = list(sampler.sample(PROBLEMS, SamplingParams(1.0, 12), group_size=4, seed=(0, 1)))
    assert sorted(position for position, _ in arrived) == list(range(6))
    for position, group in arrived:
        assert group.problem is PROBLEMS[position]
        assert len({r.seed for r in group.rollouts}) == 4
        prompt = tokenizer()(PROBLEMS[position].prompt).input_ids
        for rollout in group.rollouts:
            n = len(prompt)
            assert list(rollout.token_ids[:n]) == prompt
            assert list(rollout.loss_mask) == [False] * n + [True] * (len(rollout.token_ids) - n)
            assert set(rollout.policy_versions[n:]) == {7}
            assert rollout.text == tokenizer().decode(rollout.token_ids[n:], skip_special_tokens=True)


def test_groups_arrive_before_the_last_sample_ends(engine):
    sampler = sampler_over(engine)
    stream = sampler.sample(PROBLEMS * 8, SamplingParams(1.0, 40), group_size=2, seed=(0, 2))
    next(stream)
    if hasattr(engine, "llm"):
        assert engine.llm.llm_engine.has_unfinished_requests()
    stream.close()


def weight_sync(engine, tmp=None):
    cfg = settings("transformers")
    folder = model_folder(tied=engine.tied)
    policy = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    return WeightSync(policy, sampler_over(engine), PROBLEMS[:2], cfg=cfg), policy


def test_a_sync_is_proved(engine):
    sync, policy = weight_sync(engine)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    assert sync.push(3)["canary_gap"] < 1e-5
    assert sync.sampler.policy_version == 3


@pytest.mark.parametrize("part", ["lm_head", "embed_tokens", "q_proj", "norm"])
def test_weights_that_did_not_arrive_stop_the_run(engine, part):
    sync, policy = weight_sync(engine)
    stale = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    if not any(part in name for name in stale):
        part = "embed_tokens"  # the tied head
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if part in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    engine.load_weights(stale.items())
    with pytest.raises(WeightSyncError, match="trainer and sampler disagree"):
        sync.prove()


def test_one_small_step_that_did_not_arrive_is_noticed_below_the_limit(engine, monkeypatch):
    sync, policy = weight_sync(engine)
    sync.push(1)
    rollouts, before = sync.last
    head = policy.model.get_output_embeddings().weight
    start = head.detach().clone()
    direction = torch.randn(head.shape, generator=torch.Generator().manual_seed(0))
    direction[0] = 0  # the padding token's embedding is zero, and its norm would blow any change up
    for size in (1e-6 * 1.5**k for k in range(40)):  # the first that can be noticed
        with torch.no_grad():
            head.copy_(start + size * direction)
        if (policy.logprobs(lay_out(rollouts), temperature=1.0) - before).abs().max() > 5e-5:
            break
    monkeypatch.setattr(engine, "load_weights", lambda weights: None)
    with pytest.raises(WeightSyncError, match="sync 2 did not reach the sampler"):
        sync.push(2)
    monkeypatch.undo()
    sync.push(3)


def test_the_same_weights_sent_twice_are_no_fault(engine):
    sync, _ = weight_sync(engine)
    assert sync.push(1) == sync.push(2)


@pytest.mark.vllm
def test_a_prefix_cache_that_will_not_reset_is_an_error():
    from verigrad.engine.rollout import SamplerError

    built = build_engine(settings("vllm"), model_folder(), eos_ids=[1], seed=0)
    try:
        stream = built.generate(REQUESTS, SamplingParams(1.0, 40))
        next(stream)
        with pytest.raises(SamplerError, match="refused to reset its prefix cache"):
            built.load_weights((n, p.detach()) for n, p in new_model().named_parameters())
        stream.close()
    finally:
        built.close()


@pytest.mark.vllm
def test_bfloat16_stays_within_its_limit():
    cfg = config(
        policy={"dtype": "bfloat16", "tokens_per_batch": 2048},
        rollout={"backend": "vllm", "max_prompt_tokens": 64, "max_tokens": 40},
    )
    engine = build_engine(cfg, model_folder(), eos_ids=[1], seed=0)
    try:
        policy = Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())
        found = WeightSync(policy, sampler_over(engine), PROBLEMS[:2], cfg=cfg).push(1)["canary_gap"]
        assert 1e-4 < found < 0.25
    finally:
        engine.close()
