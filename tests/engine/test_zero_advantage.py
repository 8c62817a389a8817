import dataclasses

import pytest
import torch

from tests.tiny import config, model_folder, random_groups, rollout, tokenizer
from verigrad.engine import algorithms
from verigrad.engine.catalogue import LOSSES, ROWS
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy, combine
from verigrad.engine.schema import Coefs, LossInputs, ScoredGroup
from verigrad.engine.zero_advantage import PULLS, follows_advantage, with_gradient
from verigrad.verifiers.base import Problem, Verdict

NONE = Coefs(kl=0.0, entropy=0.0)


def groups():
    """Two groups with advantages, one without, and one in which half have none; prompts of 40 tokens."""
    scored = random_groups(num=4, size=4)
    done = []
    for index, group in enumerate(scored):
        advantages = [[0.0] * 4 if index == 1 else group.advantages, [0.0, 0.0, *group.advantages[2:]]]
        rows = [
            rollout([3, *range(4, 43)], list(r.token_ids)[-3:] * 3)
            for r in group.rollouts
        ]  # fmt: skip
        rollouts = rows if index else group.rollouts
        done.append(dataclasses.replace(group, rollouts=rollouts, advantages=advantages[index == 2]))
    return done


def after_step(*, skip, first=True, **algorithm):
    cfg = config(
        algorithm=algorithm, policy={"skip_zero_advantage": skip, "tokens_per_batch": 96}, optim={"lr": 1e-3}
    )
    built = algorithms.build(cfg)
    policy = Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())
    policy.model.double()
    policy.optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    batches = pack(groups(), built.aggregate, max_tokens=96, apart=policy.skips(built.coefs))
    batches = policy.frozen(batches, with_old=False)
    before = torch.cat([p.detach().flatten().clone() for p in policy.model.parameters()])
    done = policy.update(batches, built.loss, built.coefs, step=1, first=first)
    after = torch.cat([p.detach().flatten() for p in policy.model.parameters()])
    return after - before, combine([done]), batches


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["grpo", "dapo", "gspo", "cispo"])
def test_the_step_and_the_metrics_are_the_same_without_the_backward_pass(name, first):
    moved, metrics, batches = after_step(skip=True, name=name, first=first, kl_coef=0.0)
    expected, whole, _ = after_step(skip=False, name=name, first=first, kl_coef=0.0)
    assert [bool(b.advantages[b.loss_mask].any()) for b in batches].count(False) >= 1
    assert (moved - expected).norm() <= 1e-6 * expected.norm()  # norms are taken in float32
    assert expected.norm() > 0
    assert metrics == pytest.approx(whole, rel=1e-5, abs=1e-9)


def test_a_backward_pass_is_saved(monkeypatch):
    seen = []
    real = Policy._loss
    monkeypatch.setattr(
        Policy, "_loss", lambda *a, **k: seen.append(torch.is_grad_enabled()) or real(*a, **k)
    )
    _, _, batches = after_step(skip=True, name="grpo", kl_coef=0.0)
    assert seen.count(False) >= 1
    assert len(seen) == len(batches)
    seen.clear()
    after_step(skip=True, name="grpo", kl_coef=0.01)  # held to the reference, whatever its advantage
    assert all(seen)


def test_one_batch_always_has_its_backward_pass():
    [batch] = pack([dataclasses.replace(groups()[1])], lambda n: [1.0] * len(n), max_tokens=512)
    assert with_gradient([batch], skip=True) == [True]
    assert with_gradient([batch], skip=False) == [True]
    assert with_gradient([], skip=True) == []


def test_rollouts_stay_where_their_prompt_costs_more_than_they_save():
    prompt, rows = list(range(3, 63)), [[5] * 9, [6] * 9, [7] * 9]
    few = ScoredGroup(
        Problem("p", "q", "a"), [rollout(prompt, row) for row in rows], [Verdict.right()] * 3,
        [1.0, -1.0, 0.0],
    )  # fmt: skip
    # away: the prompt of 60 again and 9 forward, against 18 of backward saved
    assert len(pack([few], lambda n: [1.0] * len(n), max_tokens=512, apart=True)) == 1
    long = dataclasses.replace(few, rollouts=[*few.rollouts[:2], rollout(prompt, [8] * 99)])
    assert len(pack([long], lambda n: [1.0] * len(n), max_tokens=512, apart=True)) == 2


@pytest.mark.parametrize("name", sorted(name for name in set(LOSSES) - PULLS if not LOSSES[name].pairs))
def test_losses_without_advantage_have_no_gradient(name):
    row = next((row for row, part in ROWS.items() if part.loss == name), "grpo")
    built = algorithms.build(config(algorithm={"name": row, "loss": name, "kl_coef": 0.0}))
    logprobs = torch.tensor([-0.1, -3.0, -2.0, -0.5], requires_grad=True)
    loss, _ = built.loss(
        LossInputs(
            logprobs=logprobs, old_logprobs=torch.tensor([-2.0, -0.2, -2.0, -0.4]),
            rollout_logprobs=torch.tensor([-2.0, -0.2, -2.1, -0.4]), ref_logprobs=None,
            entropy=torch.ones(4), advantages=torch.zeros(4), weights=torch.full((4,), 0.25),
            sequence=torch.tensor([0, 0, 1, 1]),
        ),
        NONE,
    )  # fmt: skip
    loss.backward()
    assert not logprobs.grad.any()


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "grpo", "kl_coef": 0.1},
        {"name": "reinforce_pp", "kl_coef": 0.0},
        {"name": "grpo", "kl_coef": 0.0, "loss": "dro"},
        {"name": "vapo"},
    ],
)
def test_what_reaches_every_token_is_never_skipped(algorithm):
    cfg = config(algorithm=algorithm)
    assert not follows_advantage(cfg, NONE)


def test_an_entropy_bonus_reaches_every_token():
    cfg = config(algorithm={"name": "grpo", "kl_coef": 0.0})
    assert follows_advantage(cfg, NONE)
    assert not follows_advantage(cfg, Coefs(kl=0.0, entropy=0.01))
