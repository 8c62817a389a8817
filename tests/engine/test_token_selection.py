"""engine/token_selection.py: which tokens are trained on, by hand."""

import dataclasses

import pytest
import torch

from tests.tiny import config, rollout
from verigrad.engine.algorithms import build
from verigrad.engine.pack import pack
from verigrad.engine.schema import ScoredGroup
from verigrad.engine.token_selection import reweigh
from verigrad.verifiers.base import Problem, Verdict


def batches_of(*, old, sampled, max_tokens=512, algorithm=None):
    """One group with the given log-probabilities of each rollout, one batch per rollout if they are long."""
    rollouts = [rollout([3], [5] * len(one), logprobs=one) for one in sampled]
    group = ScoredGroup(Problem("p", "p", "a"), rollouts, [Verdict.right()] * len(old), [1.0] * len(old))
    built = build(config(algorithm=algorithm or {}))
    packed = pack([group], built.aggregate, max_tokens=max_tokens)
    by_length = {len(one): one for one in old}
    done = []
    for batch in packed:
        column = torch.zeros_like(batch.old_logprobs)
        for start, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
            column[start : end - 1] = torch.tensor(by_length[int(end - start) - 1])
        done.append(dataclasses.replace(batch, old_logprobs=column))
    return built, done


OLD = [[-1.0, -1.0, -1.0], [-1.0, -1.0]]
SAMPLED = [[-1.0, -4.0, -1.0], [-1.0, -1.1]]  # one token that the sampler held for much less likely


@pytest.mark.parametrize("max_tokens", [4, 512])
@pytest.mark.parametrize(
    ("reject", "kept"),
    [
        ({"reject": "token"}, [[1, 0, 1], [1, 1]]),
        ({"reject": "sequence_sum"}, [[0, 0, 0], [1, 1]]),
        ({"reject": "sequence_mean"}, [[0, 0, 0], [1, 1]]),
        ({"reject": "sequence_max"}, [[0, 0, 0], [1, 1]]),
        ({"reject": "token", "reject_high": 30.0}, [[1, 1, 1], [1, 1]]),
        ({"reject": "token", "reject_measure": "k3", "reject_high": 0.004}, [[1, 0, 1], [1, 0]]),
    ],
)
def test_rejected_tokens_leave_loss_and_denominator(reject, kept, max_tokens):
    built, batches = batches_of(old=OLD, sampled=SAMPLED, max_tokens=max_tokens, algorithm=reject)
    (chosen,), metrics = built.select([batches])
    mask = torch.cat([batch.loss_mask for batch in chosen])
    assert mask.tolist() == [*map(bool, kept[0]), False, *map(bool, kept[1]), False]
    num = sum(map(sum, kept))
    assert metrics["rejected_frac"] == pytest.approx(1 - num / 5)
    weights = torch.cat([batch.loss_weights for batch in chosen])
    assert weights[mask].tolist() == pytest.approx([1 / num] * num)


def test_an_unknown_log_probability_is_no_reason_to_reject():
    built, batches = batches_of(
        old=[[-1.0, -1.0]], sampled=[[float("nan"), -1.0]], algorithm={"reject": "sequence_max"}
    )
    (chosen,), metrics = built.select([batches])
    assert metrics["rejected_frac"] == 0
    assert chosen[0].loss_mask.sum() == 2


def test_all_rejected_leaves_nothing_and_breaks_nothing():
    built, batches = batches_of(
        old=[[-1.0, -1.0]], sampled=[[-9.0, -9.0]], algorithm={"reject": "sequence_mean"}
    )
    (chosen,), metrics = built.select([batches])
    assert metrics["rejected_frac"] == 1
    assert not chosen[0].loss_mask.any()


def test_the_entropy_filter_keeps_the_denominator_and_looks_at_the_whole_step():
    built, batches = batches_of(old=OLD, sampled=OLD, max_tokens=4, algorithm={"top_entropy_frac": 0.4})
    entropies = [torch.tensor([0.1, 3.0, 0.2, 0.0]), torch.tensor([0.5, 2.0, 0.0])]
    batches = [dataclasses.replace(b, old_entropy=e) for b, e in zip(batches, entropies, strict=True)]
    chosen, metrics = built.select([[batches[0]], [batches[1]]])  # two optimizer steps, one threshold
    assert metrics["entropy_threshold"] == pytest.approx(2.0)
    assert chosen[0][0].loss_weights.tolist()[:3] == pytest.approx([0.0, 1 / 5, 0.0])
    assert chosen[1][0].loss_weights.tolist()[:2] == pytest.approx([0.0, 1 / 5])
    assert chosen[0][0].loss_mask.sum() == 3


@pytest.mark.parametrize("max_tokens", [4, 512])
def test_normalised_weights_have_mean_one_over_the_optimizer_step(max_tokens):
    algorithm = {"correction": "tis", "correction_norm": True}
    built, batches = batches_of(old=OLD, sampled=SAMPLED, max_tokens=max_tokens, algorithm=algorithm)
    (chosen,), _ = built.select([batches])
    weights = [1.0, 2.0, 1.0, 1.0, torch.tensor(0.1).exp().item()]  # exp(3) is truncated at 2
    assert [batch.correction_scale for batch in chosen] == pytest.approx([5 / sum(weights)] * len(chosen))


def test_weights_anew_from_the_tokens_that_are_left():
    built, batches = batches_of(old=OLD, sampled=OLD, max_tokens=4)
    emptied = dataclasses.replace(batches[0], loss_mask=torch.zeros_like(batches[0].loss_mask))
    again = reweigh([emptied, batches[1]], built.aggregate)
    assert again[1].loss_weights[0].item() == pytest.approx(1 / 2)
    assert again[0].loss_weights.abs().sum() == 0


def test_without_settings_nothing_is_touched():
    built, batches = batches_of(old=OLD, sampled=SAMPLED)
    (chosen,), metrics = built.select([batches])
    assert metrics == {}
    assert all(a is b for a, b in zip(chosen, batches, strict=True))


def test_a_lower_bound_of_zero_is_none_and_not_the_default():
    liked_less = {"old": [[-9.0, -1.0]], "sampled": [[-1.0, -1.0]]}  # a ratio of e^-8
    for reject, kept in (({}, 1), ({"reject_low": 0.0}, 2)):
        built, batches = batches_of(**liked_less, algorithm={"reject": "token", **reject})
        (chosen,), _ = built.select([batches])
        assert chosen[0].loss_mask.sum() == kept


def test_the_share_of_uncertain_tokens_is_rounded():
    built, (batch,) = batches_of(old=OLD, sampled=OLD, algorithm={"top_entropy_frac": 0.36})  # 1.8 of 5
    entropy = torch.tensor([0.1, 3.0, 0.2, 0.0, 0.5, 2.0, 0.0])
    _, metrics = built.select([[dataclasses.replace(batch, old_entropy=entropy)]])
    assert metrics["entropy_threshold"] == 2.0
