"""Rollouts with results of tools between sampled tokens: packed, and learned from, sampled tokens alone."""

import pytest
import torch

from tests.tiny import config, model_folder, new_model, tokenizer
from verigrad.engine import algorithms
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy
from verigrad.engine.schema import Coefs, Rollout, ScoredGroup
from verigrad.verifiers.base import Problem, Verdict

# prompt, then turns of the model (True) with results between them
EPISODES = [
    ([3, 4], [(True, [10, 11]), (False, [12, 13]), (True, [14])]),
    ([3, 4], [(True, [20]), (False, [21, 22, 23, 24, 25]), (True, [26, 27]), (False, [28]), (True, [29, 1])]),
    ([3, 4], [(True, [30, 31, 1])]),
]
ADVANTAGES = [1.5, -0.7, 0.4]


def model():
    return new_model(seed=1).eval()


def logprobs_of(model, ids):
    """[L] of each id given those before it; the first has none. The textbook way, one sequence alone."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    chosen = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return torch.cat([torch.zeros(1), chosen])


def made(model):
    """The episodes as rollouts, with the log-probabilities they would have been sampled with."""
    rollouts = []
    for prompt, parts in EPISODES:
        ids = [*prompt, *(i for _, some in parts for i in some)]
        mask = [False] * len(prompt) + [own for own, some in parts for _ in some]
        with torch.no_grad():
            values = logprobs_of(model, ids).tolist()
        values = [value if own else 0.0 for value, own in zip(values, mask, strict=True)]
        rollouts.append(Rollout(ids, mask, values, [own - 1 for own in mask], "", "stop", 0))
    return rollouts


def group(rollouts):
    verdicts = [Verdict.right() if advantage > 0 else Verdict.wrong() for advantage in ADVANTAGES]
    return ScoredGroup(Problem("p", "p"), rollouts, verdicts, ADVANTAGES)


def policy(cfg):
    folder = model_folder(seed=1)
    return Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)


def test_labels_masks_and_positions_across_gaps():
    cfg = config(algorithm={"name": "grpo"})
    rollouts = made(model())
    (batch,) = pack([group(rollouts)], algorithms.build(cfg).aggregate, max_tokens=64)
    assert batch.cu_seqlens.tolist() == [0, 13, 20, 25]  # longest first
    first, second = slice(13, 20), slice(0, 13)
    assert batch.loss_mask[first].tolist() == [False, True, True, False, False, True, False]
    assert batch.labels[first][batch.loss_mask[first]].tolist() == [10, 11, 14]
    assert batch.labels[second][batch.loss_mask[second]].tolist() == [20, 26, 27, 29, 1]
    assert batch.position_ids[first].tolist() == list(range(7))
    assert (batch.rollout_logprobs[~batch.loss_mask] == 0).all()
    ours = policy(cfg).logprobs(batch, temperature=1.0)
    assert (ours[~batch.loss_mask] == 0).all()
    assert torch.allclose(ours, batch.rollout_logprobs, atol=2e-6)


WEIGHTS = {
    "grpo": lambda own, everyone: 1 / (len(everyone) * own),
    "gspo": lambda own, everyone: 1 / (len(everyone) * own),
    "dapo": lambda own, everyone: 1 / sum(everyone),
}
"""What one token weighs, from its rollout's sampled tokens and those of all; results count nowhere."""


@pytest.mark.parametrize("name", sorted(WEIGHTS))
@pytest.mark.parametrize("max_tokens", [64, 13])
def test_an_update_s_gradient_is_that_of_the_sampled_tokens_and_of_nothing_else(
    name, max_tokens, monkeypatch
):
    cfg = config(algorithm={"name": name}, optim={"max_grad_norm": 1e9})
    algorithm, ours, reference = algorithms.build(cfg), policy(cfg), model()
    rollouts = made(reference)
    batches = pack([group(rollouts)], algorithm.aggregate, max_tokens=max_tokens)
    assert len(batches) == (1 if max_tokens == 64 else 2)
    seen = {}

    def step():
        seen.update((n, w.grad.clone()) for n, w in ours.model.named_parameters())

    monkeypatch.setattr(ours.optimizer, "step", step)
    update = ours.update(
        ours.frozen(batches, with_old=True), algorithm.loss, Coefs(0.0, 0.0), step=1, first=True
    )
    assert update.applied
    ours_flat = torch.cat([seen[n].flatten() for n, _ in reference.named_parameters()])

    expected = expected_gradient(reference, rollouts, WEIGHTS[name])
    assert expected.norm() > 1e-2
    assert torch.allclose(ours_flat, expected, atol=1e-6, rtol=1e-4)
    # and the results of tools would have been seen, had they counted
    whole = expected_gradient(reference, [filled(one) for one in rollouts], WEIGHTS[name])
    assert (whole - expected).norm() > 0.1 * expected.norm()


def expected_gradient(reference, rollouts, weight):
    """Of minus the weighted sum of advantage times log-probability; at a ratio of 1 all three losses' own."""
    reference.zero_grad()
    lengths = [sum(one.loss_mask) for one in rollouts]
    for one, length, advantage in zip(rollouts, lengths, ADVANTAGES, strict=True):
        chosen = logprobs_of(reference, one.token_ids)[torch.tensor(one.loss_mask)]
        (-advantage * weight(length, lengths) * chosen.sum()).backward()
    return torch.cat([w.grad.flatten() for w in reference.parameters()])


def filled(one):
    """The rollout as if everything after its prompt had been sampled."""
    mask = [False, False] + [True] * (len(one.token_ids) - 2)
    return Rollout(one.token_ids, mask, one.logprobs, one.policy_versions, "", "stop", 0)
