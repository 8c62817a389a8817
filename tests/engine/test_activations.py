import pytest
import torch

from tests.tiny import config, model_folder, random_groups, rollout, tokenizer
from verigrad.engine import activations, algorithms
from verigrad.engine.activations import offloaded
from verigrad.engine.config import ConfigError
from verigrad.engine.pack import lay_out, pack
from verigrad.engine.policy import Policy, combine
from verigrad.engine.prefixes import layout_of

SHARED = [rollout([3, *range(4, 44)], [5 + j] * (3 + 2 * j)) for j in range(5)]


def policy(**settings):
    cfg = config(policy=settings)
    return Policy(cfg, folder := model_folder(), tokenizer=tokenizer(), start_folder=folder)


def gradients(of, batch):
    of.token_logprobs(batch, temperature=1.0).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in of.model.parameters()])


@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_checkpointing_gives_the_same_bits_on_shared_prefixes(attention):
    batch = lay_out(SHARED)
    assert layout_of(batch.input_ids, batch.cu_seqlens).shared > 0.5
    plain = gradients(policy(attention=attention), batch)
    assert torch.equal(gradients(policy(attention=attention, gradient_checkpointing=True), batch), plain)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_went_to_the_host_comes_back_as_it_was(checkpointing, monkeypatch):
    batch, moved = lay_out(SHARED), []

    def moves(tensor):
        moved.append(tensor.untyped_storage().data_ptr())
        return True

    plain = gradients(policy(), batch)
    of = policy(gradient_checkpointing=checkpointing)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: False))
    of.cfg = of.cfg.model_copy(
        update={"policy": of.cfg.policy.model_copy(update={"offload_activations": True})}
    )
    monkeypatch.setattr(
        "verigrad.engine.policy.offloaded", lambda model: offloaded(model, moves=moves, least_bytes=0)
    )
    assert torch.equal(gradients(of, batch), plain)
    assert moved
    kept = {p.untyped_storage().data_ptr() for p in of.model.parameters()}
    if checkpointing:  # the layers' inputs, and what lies outside the layers
        assert len(set(moved) - kept) < 12


def test_weights_and_small_tensors_stay_where_they_are(monkeypatch):
    layer, made = torch.nn.Linear(4, 4, bias=False), []
    real = torch.empty
    monkeypatch.setattr(activations.torch, "empty", lambda *a, **k: made.append(a) or real(*a, **k))
    x = torch.ones(3, 4, requires_grad=True)
    with offloaded(layer, moves=lambda tensor: True, least_bytes=0):
        y = layer(x)
    assert made == [((3, 4),)]  # the input; not the weight
    y.sum().backward()
    made.clear()
    with offloaded(layer, moves=lambda tensor: True):
        layer(x)
    assert made == []


def test_on_a_cpu_there_is_nowhere_to_move_them():
    with pytest.raises(ConfigError, match=r"offload_activations = true moves a GPU's .* remove it"):
        policy(offload_activations=True)


def test_an_update_in_bfloat16_leaves_the_canaries_in_float32():
    exact, mixed, batch = policy(), policy(update_dtype="bfloat16"), lay_out(SHARED)
    ours = [p.logprobs(batch, temperature=1.0) for p in (exact, mixed)]
    assert torch.equal(*ours)
    [old] = mixed.frozen([batch], with_old=True)
    gap = (old.old_logprobs - ours[0])[batch.loss_mask].abs()
    assert 0 < gap.max() < 0.25
    now = mixed.token_logprobs(batch, temperature=1.0).detach().float()
    # the update and the old log-probabilities are computed in the same type: ratios begin at 1
    assert torch.allclose(now, old.old_logprobs[batch.loss_mask], rtol=0, atol=5e-6)


def test_an_update_in_bfloat16_stays_within_the_limits_of_float32():
    groups = random_groups(num=3, size=4)
    found = {}
    for dtype in ("float32", "bfloat16"):
        of = policy(update_dtype=dtype)
        built = algorithms.build(of.cfg)
        rows = lay_out([r for g in groups for r in g.rollouts])
        true = of.logprobs(rows, temperature=1.0)[rows.loss_mask]
        batches = pack(groups, built.aggregate, max_tokens=4096)
        batches = [_sampled_by(of, batch) for batch in batches]
        done = of.update(batches, built.loss, built.coefs, step=1, first=True)
        found[dtype] = combine([done])
        assert true.isfinite().all()
        assert all(p.dtype == torch.float32 for p in of.model.parameters())
    assert found["float32"]["mismatch_kl"] < 1e-9
    assert 0 < found["bfloat16"]["mismatch_kl"] < 1e-3
    assert found["bfloat16"]["grad_norm"] == pytest.approx(found["float32"]["grad_norm"], rel=0.05)


def _sampled_by(of, batch):
    import dataclasses

    true = of.logprobs(batch, temperature=1.0)
    return dataclasses.replace(batch, rollout_logprobs=true, old_logprobs=true)
