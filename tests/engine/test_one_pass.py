import pytest
import torch

from tests.tiny import config, model_folder, random_groups, tokenizer
from verigrad.engine import algorithms
from verigrad.engine.loss import TokenWise, merge, nll
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy
from verigrad.kernels.logit_chunks import LogitChunks


def gradient(cfg, *, one_pass, first):
    folder = model_folder(tied=True)
    p = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    algorithm = algorithms.build(cfg)
    loss_fn = algorithm.loss if one_pass else algorithm.loss.loss
    batches = pack(random_groups(num=3, size=4, seed=3), algorithm.aggregate, max_tokens=10_000)
    (batch,) = p.frozen(batches, with_old=not first)
    with torch.no_grad():
        for weight in p.model.parameters():  # so that ratios are not 1 where old ones are taken before
            weight.add_(1e-3)
    loss, sums = p._loss(batch, loss_fn, algorithm.coefs, first=first)
    loss.backward()
    return torch.cat([w.grad.flatten() for w in p.model.parameters()]), loss.item(), sums


@pytest.mark.parametrize("chunk", [7, 64, None])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "dapo", "kl_coef": 0.1, "entropy_coef": 0.01},
        {"name": "grpo", "old_logprobs": "rollout"},
        {"name": "prime", "correction": "icepop"},
        {"name": "grpo", "correction": "tis", "positive_nll_coef": 0.1},
    ],
)
def test_one_pass_in_chunks_is_two_passes_over_all(algorithm, first, chunk):
    cfg = config(algorithm=algorithm, policy={"head_chunk_tokens": chunk})
    ours, loss, sums = gradient(cfg, one_pass=True, first=first)
    expected, other, others = gradient(cfg, one_pass=False, first=first)
    assert expected.norm() > 1e-3
    assert torch.allclose(ours, expected, atol=1e-6)
    assert loss == pytest.approx(other, abs=1e-6)
    assert sums.keys() == others.keys()
    assert merge([sums]) == pytest.approx(merge([others]), abs=1e-6, nan_ok=True)


def test_logits_are_computed_once(monkeypatch):
    calls = []
    logits = LogitChunks.logits
    monkeypatch.setattr(LogitChunks, "logits", lambda *args: calls.append(1) or logits(*args))
    cfg = config(algorithm={"name": "grpo"}, policy={"head_chunk_tokens": 16})
    gradient(cfg, one_pass=True, first=True)
    once = len(calls)
    gradient(cfg, one_pass=False, first=True)
    assert once > 1
    assert len(calls) == 3 * once


@pytest.mark.parametrize(
    ("algorithm", "by_tokens"),
    [
        ({"name": "dapo"}, True),
        ({"name": "cispo", "correction": "tis"}, True),
        ({"name": "dppo_kl", "correction": "icepop"}, True),
        ({"name": "gspo"}, False),
        ({"name": "vespo"}, False),
        ({"name": "online_dpo"}, False),
        ({"name": "grpo", "correction": "sequence_mask"}, False),
        ({"name": "grpo", "correction": "geometric_mask"}, False),
        ({"name": "grpo", "off_policy_delta": 0.1}, False),
    ],
)
def test_only_losses_of_single_tokens_are_taken_by_chunks(algorithm, by_tokens):
    assert isinstance(algorithms.build(config(algorithm=algorithm)).loss, TokenWise) == by_tokens


def test_supervised_learning_is_of_single_tokens():
    assert isinstance(nll, TokenWise)
