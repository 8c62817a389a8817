"""engine/gae.py: advantages and returns of tokens against the reference vectors and by hand."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from tests.vectors import load
from verigrad.engine.gae import estimate, lam_of_length, place_gae
from verigrad.engine.schema import PackedBatch

PLAIN = {
    "gamma": 1.0, "lam": 1.0, "critic_lam": 1.0, "lam_alpha": 0.0, "kl_coef": 0.0, "kl_estimator": "k1",
    "whiten_rewards": False,
}  # fmt: skip


def batch_of(rows):
    """Rows of (reward, mask, values, log-ratio to the reference) as one batch."""
    lengths = [len(mask) for _, mask, _, _ in rows]
    mask = torch.tensor([bool(m) for _, row, _, _ in rows for m in row])
    column = torch.zeros(mask.numel())
    return PackedBatch(
        input_ids=column.long(),
        position_ids=column.long(),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        labels=column.long(),
        loss_mask=mask,
        rollout_logprobs=column,
        old_logprobs=torch.tensor([d for _, _, _, ratios in rows for d in ratios], dtype=torch.float64),
        ref_logprobs=column.double(),
        advantages=torch.tensor([r for r, row, _, _ in rows for _ in row], dtype=torch.float64),
        loss_weights=column,
        values=torch.tensor([v for _, _, values, _ in rows for v in values], dtype=torch.float64),
    )


def placed(rows, *, cuts=(), **options):
    """[advantages, returns] of each row, with the rows in one batch or cut into several."""
    bounds = [0, *cuts, len(rows)]
    batches = [batch_of(rows[a:b]) for a, b in pairwise(bounds)]
    found = place_gae(batches, **PLAIN | options)
    columns = []
    for name in ("advantages", "returns"):
        whole = torch.cat([getattr(batch, name) for batch in found])
        columns.append(list(torch.split(whole, [len(mask) for _, mask, _, _ in rows])))
    return columns


def rows_of(vector):
    """The vector's rows; its rewards of tokens come in as a KL of k1 with kl_coef 1, so none at the end."""
    rewards, mask = vector.tensor("token_rewards"), vector.tensor("mask")
    return [
        (0.0, m.tolist(), v.tolist(), (-r).tolist())
        for r, m, v in zip(rewards, mask, vector.tensor("values"), strict=True)
    ]


@pytest.mark.parametrize("name", ["gae_g1.0_l1.0", "gae_g1.0_l0.95", "gae_g0.99_l0.95"])
@pytest.mark.parametrize("cuts", [(), (2,), (1, 2, 3)])
def test_advantages_returns_and_their_whitening_match_the_reference(name, cuts):
    vector = load(name)
    gamma, lam = vector.params["gamma"], vector.params["lam"]
    options = {"gamma": gamma, "lam": lam, "critic_lam": lam, "kl_coef": 1.0, "cuts": cuts}
    advantages, returns = placed(rows_of(vector), **options)
    vector.check(torch.stack(returns), "returns")
    vector.check(torch.stack(advantages), "adv_whitened")
    mask = vector.tensor("mask").bool()
    raw = torch.zeros(mask.shape).double()
    for i, row in enumerate(mask):
        rewards, values = vector.tensor("token_rewards")[i][row], vector.tensor("values")[i][row]
        raw[i][row] = estimate(rewards, values, gamma=gamma, lam=lam)
    vector.check(raw, "adv")
    if vector.bug_values:
        vector.check_no_bug(raw, "tool_tokens_take_part")


def test_lambda_by_length_matches_the_reference():
    vector = load("gae_vapo_length_adaptive")
    mask, alpha = vector.tensor("mask").bool(), vector.params["alpha"]
    lams = [lam_of_length(int(row.sum()), lam_alpha=alpha) for row in mask]
    vector.check(lams, "lam_policy")
    raw = torch.zeros(mask.shape).double()
    for i, row in enumerate(mask):
        rewards, values = vector.tensor("token_rewards")[i][row], vector.tensor("values")[i][row]
        raw[i][row] = estimate(rewards, values, gamma=1.0, lam=lams[i])
    vector.check(raw, "adv")
    advantages, returns = placed(rows_of(vector), lam=0.3, lam_alpha=alpha, critic_lam=1.0, kl_coef=1.0)
    vector.check(torch.stack(returns), "returns")
    kept = raw[mask]
    scale = (kept.var(correction=1) + 1e-8).sqrt()
    ours = torch.stack(advantages)[mask]
    assert torch.allclose(ours, (kept - kept.mean()) / scale, atol=1e-6)


def test_lambda_by_length_is_never_negative():
    assert [lam_of_length(n, lam_alpha=0.05) for n in (0, 1, 20, 40, 100)] == [0.0, 0.0, 0.0, 0.5, 0.8]


def test_whitening_matches_the_reference():
    vector = load("masked_whiten")
    values, mask = vector.tensor("values"), vector.tensor("mask")
    # with lambda 0, no reward and values that fall by what is wanted, the advantage of a token is its error
    rows = []
    for wanted, m in zip(values, mask, strict=True):
        kept = wanted[m.bool()].tolist()
        expected = [-sum(kept[i:]) for i in range(len(kept))]
        column = iter(expected)
        rows.append((0.0, m.tolist(), [next(column) if on else 9.0 for on in m], [0.0] * len(m)))
    advantages, _ = placed(rows, lam=0.0)
    vector.check(torch.stack(advantages), "ddof1")


def test_the_reward_is_paid_at_the_last_trained_token_and_kl_at_each():
    # 3 trained tokens with a tool's answer between the second and the third, and a tail that is not trained
    row = (2.0, [1, 1, 0, 1, 0], [0.5, 1.0, 77.0, 1.5, 88.0], [0.1, 0.2, 5.0, 0.3, 6.0])
    _, (returns,) = placed([row], kl_coef=0.5)
    # rewards: -0.05, -0.1, -0.15 + 2
    assert returns.tolist() == pytest.approx([1.7, 1.75, 0.0, 1.85, 0.0])
    _, (short,) = placed([row], kl_coef=0.5, critic_lam=0.0)
    assert short.tolist() == pytest.approx([-0.05 + 1.0, -0.1 + 1.5, 0.0, 1.85, 0.0])


def test_policy_and_critic_have_lambdas_of_their_own():
    row = (1.0, [1, 1], [0.2, 0.6], [0.0, 0.0])
    advantages, returns = placed([row], lam=0.0, critic_lam=1.0)
    assert returns[0].tolist() == pytest.approx([1.0, 1.0])
    # errors are 0.6 - 0.2 and 1 - 0.6: equal, so whitened to exactly 0
    assert advantages[0].tolist() == [0.0, 0.0]
    advantages, _ = placed([row], lam=1.0, critic_lam=1.0)  # 0.8 and 0.4: one deviation apart from 0.6
    assert advantages[0].tolist() == pytest.approx([0.5**0.5, -(0.5**0.5)], abs=1e-6)


def test_rewards_are_scaled_around_their_mean():
    # token rewards 0, 1, 0, 3: mean 1, deviation sqrt(2)
    rows = [(1.0, [1, 1], [0.0, 0.0], [0.0, 0.0]), (3.0, [1, 1], [0.0, 0.0], [0.0, 0.0])]
    _, returns = placed(rows, whiten_rewards=True)
    low, one, high = 1 - 1 / math.sqrt(2), 1.0, 1 + 2 / math.sqrt(2)
    assert returns[0].tolist() == pytest.approx([low + one, one], abs=1e-6)
    assert returns[1].tolist() == pytest.approx([low + high, high], abs=1e-6)


def test_nothing_trained_changes_nothing():
    assert place_gae([], **PLAIN) == []
    advantages, returns = placed([(1.0, [0, 0], [5.0, 5.0], [1.0, 1.0])])
    assert advantages[0].tolist() == returns[0].tolist() == [0.0, 0.0]


def test_the_rest_of_a_batch_stays():
    batch = batch_of([(1.0, [1, 1], [0.2, 0.6], [0.0, 0.0])])
    (result,) = place_gae([batch], **PLAIN)
    for field in dataclasses.fields(PackedBatch):
        if field.name not in ("advantages", "returns"):
            assert getattr(result, field.name) is getattr(batch, field.name)
    assert batch.returns is None
