"""engine/critic.py: the value loss against its vector, one whole step by hand, and what must not matter."""

import dataclasses
import json
import math

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from tests.loss_inputs import tokens
from tests.tiny import config, model_folder, random_groups, rollout, tokenizer, whole
from tests.vectors import load
from verigrad.engine import algorithms
from verigrad.engine.config import ConfigError
from verigrad.engine.critic import FOLDER, Critic, look, measure, open_critic, value_loss
from verigrad.engine.loss import policy_loss
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy, combine
from verigrad.engine.schema import Coefs, ScoredGroup, TokenLoss
from verigrad.engine.token_selection import reweigh
from verigrad.verifiers.base import Problem, Verdict

TRUNKS = ["own", "shared"]


def ppo(trunk="own", **sections):
    sections["algorithm"] = {"name": "ppo"} | sections.get("algorithm", {})
    sections["critic"] = {"trunk": trunk, "lr": 1e-2} | sections.get("critic", {})
    return config(**sections)


def start_of(folder):
    return ModelFiles(folder, AutoTokenizer.from_pretrained(folder), (1,), "")


def parts(cfg, seed=0):
    folder = model_folder(seed=seed)
    policy = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    critic = open_critic(cfg, policy, start_of(folder), checkpoint=None)
    return algorithms.build(cfg), policy, critic


def ready(cfg, algorithm, policy, critic, groups, *, max_tokens=512):
    batches = pack(groups, algorithm.aggregate, max_tokens=max_tokens)
    frozen = policy.frozen(batches, with_old=True, needs=algorithm.needs)
    (valued,) = critic.values([frozen])
    return algorithm.place(valued, algorithm.coefs)


def learn(algorithm, policy, critic, batches, *, step=1, first=True):
    joined = critic.joined(batches, step=step)
    done = policy.update(batches, algorithm.loss, algorithm.coefs, step=step, first=first, beside=joined)
    return done, critic.update(batches, step=step, joined=joined, applied=done.applied)


def weights(model):
    return torch.cat([w.detach().flatten() for w in model.parameters()])


def test_the_value_loss_and_its_gradient_match_the_reference():
    vector = load("value_loss_clipped")
    mask = vector.tensor("mask").bool()
    values = vector.tensor("values").requires_grad_()
    total, clipped = 0.0, 0.0
    for rows in ([0, 2], [1, 3]):  # two micro-batches, one denominator
        chosen = torch.zeros_like(mask)
        chosen[rows] = mask[rows]
        loss, sums = value_loss(
            values[chosen], vector.tensor("old_values")[chosen], vector.tensor("returns")[chosen],
            clip=vector.params["clip"], num_tokens=int(mask.sum()),
        )  # fmt: skip
        loss.backward()
        total, clipped = total + float(loss.detach()), clipped + float(sums["clip_count"])
    vector.check(total, "loss")
    vector.check(values.grad, "grad")
    vector.check(clipped / int(mask.sum()), "clip_frac")


def test_without_a_clip_it_is_half_the_squared_error():
    ones = torch.ones(2)
    loss, sums = value_loss(3 * ones, 0 * ones, ones, clip=0.0, num_tokens=4)
    assert float(loss) == 0.5 * (4 + 4) / 4
    assert sums["clip_count"] == 0


def test_the_likelihood_of_right_rollouts_matches_the_reference():
    vector = load("vapo_positive_nll")
    mask = vector.tensor("mask").bool()
    logp = vector.tensor("logp").requires_grad_()
    right = (vector.tensor("correct").bool()[:, None] & mask)[mask].double()
    never = torch.zeros(int(mask.sum()), dtype=torch.bool)
    inputs = dataclasses.replace(
        tokens(logprobs=logp[mask].tolist()), logprobs=logp[mask], nll_weights=right / right.sum()
    )
    loss, sums = policy_loss(
        inputs, Coefs(0.0, 0.0), correction="none", correction_low=None, correction_high=None,
        off_policy_delta=None, kl_estimator=None, positive_nll_coef=vector.params["mu"],
        token_loss=lambda given: TokenLoss(0 * given.logprobs, never, never),
    )  # fmt: skip
    loss.backward()
    vector.check(loss, "loss")
    vector.check(logp.grad, "grad")
    assert float(sums["positive_nll_sum"]) == pytest.approx(vector.expected["loss"] / vector.params["mu"])


def test_a_batch_knows_its_right_rollouts_whatever_the_packing_and_after_a_rejection():
    groups = random_groups(num=3)
    for max_tokens in (512, 40):
        batches = pack(groups, lambda counts: [1.0] * len(counts), max_tokens=max_tokens)
        weight = torch.cat([b.nll_weights[b.loss_mask] for b in batches])
        num = sum(
            r.num_completion_tokens
            for g in groups
            for r, v in zip(g.rollouts, g.verdicts, strict=True)
            if v.outcome == "right"
        )
        assert weight[weight > 0].tolist() == pytest.approx([1 / num] * num)
    fewer = [
        dataclasses.replace(b, loss_mask=b.loss_mask & (torch.arange(len(b.labels)) % 3 > 0)) for b in batches
    ]
    again = reweigh(fewer, lambda counts: [1.0] * len(counts))
    weight = torch.cat([b.nll_weights[b.loss_mask] for b in again])
    assert float(weight.sum()) == pytest.approx(1.0)
    assert 0 < int((weight > 0).sum()) < num


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_new_critic_expects_nothing(trunk):
    cfg = ppo(trunk)
    algorithm, policy, critic = parts(cfg)
    (batch,) = ready(cfg, algorithm, policy, critic, random_groups(num=2))
    assert not batch.values.any()


def two_rollouts():
    """One group of two: three tokens paid 1, two tokens paid 0."""
    rows = [rollout([3, 4], [5, 6, 1]), rollout([3, 4], [7, 1])]
    return [ScoredGroup(Problem("0", "p", "a"), rows, [Verdict.right(), Verdict.wrong()], [1.0, 0.0])]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_one_whole_step_by_hand(trunk):
    """Values, advantages, value loss and the head's gradient, worked out from the trunk's own forward."""
    cfg = ppo(trunk, algorithm={"gamma": 0.9, "lam": 0.8, "critic_lam": 0.5}, optim={"max_grad_norm": 1e9})
    algorithm, policy, critic = parts(cfg)
    torch.manual_seed(3)
    with torch.no_grad():
        critic.head.weight.normal_(std=0.1)
        critic.head.bias.fill_(0.25)
    w, b = critic.head.weight.detach().double()[0], 0.25
    (batch,) = ready(cfg, algorithm, policy, critic, two_rollouts())
    trunk_model = (critic.model or policy.model).base_model
    hidden = []
    for ids in ([3, 4, 5, 6, 1], [3, 4, 7, 1]):
        length = len(ids)
        with torch.no_grad():
            out = trunk_model(
                input_ids=torch.tensor([ids]), position_ids=torch.arange(length)[None], use_cache=False,
                packed_layout=whole(length),
            )  # fmt: skip
        hidden.append(out.last_hidden_state[0, 1:-1].double())  # what stands before each sampled token
    (a, c) = (h @ w + b for h in hidden)
    assert batch.values[batch.loss_mask].tolist() == pytest.approx([*a.tolist(), *c.tolist()], abs=1e-5)

    g, lam, low = 0.9, 0.8, 0.5
    d1 = [g * a[1] - a[0], g * a[2] - a[1], 1.0 - a[2]]
    d2 = [g * c[1] - c[0], 0.0 - c[1]]

    def gae(d, x):
        out, ahead = [], 0.0
        for error in reversed(d):
            ahead = error + g * x * ahead
            out.insert(0, float(ahead))
        return torch.tensor(out).double()

    raw = torch.cat([gae(d1, lam), gae(d2, lam)])
    whitened = (raw - raw.mean()) / (raw.var(correction=1) + 1e-8).sqrt()
    assert batch.advantages[batch.loss_mask].tolist() == pytest.approx(whitened.tolist(), abs=1e-4)
    returns = torch.cat([a + gae(d1, low), c + gae(d2, low)])
    assert batch.returns[batch.loss_mask].tolist() == pytest.approx(returns.tolist(), abs=1e-5)

    errors = torch.cat([a, c]) - returns
    seen, gradient = {}, {}
    critic.optimizer.step = lambda: gradient.update(
        weight=critic.head.weight.grad.clone(), bias=critic.head.bias.grad.clone()
    )
    done, learned = learn(algorithm, policy, critic, [batch])
    seen |= measure([[batch]], [learned])
    assert done.applied
    assert learned.applied
    assert seen["critic/loss"] == pytest.approx(float(0.5 * (errors**2).mean()), abs=1e-6)
    assert seen["critic/explained_variance"] == pytest.approx(
        float(1 - errors.var() / returns.var()), abs=1e-4
    )
    assert seen["critic/value_mean"] == pytest.approx(float(torch.cat([a, c]).mean()), abs=1e-5)
    by_hand = (errors[:, None] * torch.cat(hidden)).mean(0)
    assert torch.allclose(gradient["weight"][0].double(), by_hand, atol=1e-5)
    assert float(gradient["bias"]) == pytest.approx(float(errors.mean()), abs=1e-6)
    # token mean of -advantage * ratio at ratio 1
    assert float(done.sums[0]["loss_sum"]) == pytest.approx(float(-whitened.mean()), abs=1e-5)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_step_does_not_depend_on_micro_batches(trunk):
    cfg = ppo(trunk, critic={"coef": 0.7} if trunk == "shared" else {}, train={"num_minibatches": 2})
    found = []
    for max_tokens in (512, 64, 31):
        algorithm, policy, critic = parts(cfg)
        with torch.no_grad():
            critic.head.weight.fill_(0.02)
        batches = ready(cfg, algorithm, policy, critic, random_groups(num=5), max_tokens=max_tokens)
        done, learned = learn(algorithm, policy, critic, batches)
        metrics = measure([batches], [learned])
        found.append((weights(policy.model), weights(critic.trained), metrics, done.grad_norm))
        assert (len(batches) > 1) == (max_tokens < 512)
    for policy_weights, critic_weights, metrics, norm in found[1:]:
        # Adam's first step is the gradient's sign: where a gradient is rounding, the sign may be too
        assert ((policy_weights - found[0][0]).abs() > 1e-4).float().mean() < 0.01
        assert ((critic_weights - found[0][1]).abs() > 1e-4).float().mean() < 0.01
        assert metrics == pytest.approx(found[0][2], abs=1e-5)
        assert norm == pytest.approx(found[0][3], rel=1e-4)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_it_learns_to_expect_what_is_paid(trunk):
    cfg = ppo(trunk, critic={"lr": 1e-2, "warmup_steps": 50}, train={"num_steps": 60})
    algorithm, policy, critic = parts(cfg)
    before = weights(policy.model)
    groups = two_rollouts()
    found = []
    for step in range(1, 31):
        batches = ready(cfg, algorithm, policy, critic, groups)
        assert critic.joined(batches, step=step) is None  # the warm-up: the policy stays
        done = critic.update(batches, step=step, joined=None, applied=False)
        found.append(measure([batches], [done])["critic/loss"])
    assert found[-1] < 0.3 * found[0]
    assert torch.equal(weights(policy.model), before)
    assert all(w.grad is None for w in policy.model.parameters())


def test_the_policys_loss_of_the_warm_up_is_a_mean_over_optimizer_steps_as_later():
    cfg = ppo(critic={"warmup_steps": 50}, train={"num_steps": 60}, optim={"lr": 1e-30})
    algorithm, policy, critic = parts(cfg)
    minibatches = [ready(cfg, algorithm, policy, critic, random_groups(num=2, seed=seed)) for seed in (1, 2)]
    before = weights(policy.model)
    given = algorithm.loss, algorithm.coefs
    looked = [look(policy, batches, *given, first=False) for batches in minibatches]
    assert torch.equal(weights(policy.model), before)
    learned = [policy.update(batches, *given, step=51, first=False) for batches in minibatches]
    warm, later = combine(looked), combine(learned)
    assert warm["loss"] == pytest.approx(sum(combine([one])["loss"] for one in looked) / 2)
    assert warm["loss"] == pytest.approx(later["loss"], rel=1e-4)
    assert (warm["lr"], warm["grad_norm"]) == (0.0, 0.0)
    masked = [dataclasses.replace(b, loss_weights=torch.zeros_like(b.loss_weights)) for b in minibatches[0]]
    assert not look(policy, masked, *given, first=False).applied


def test_a_shared_trunk_learns_from_both_losses():
    moved = {}
    for coef in (1e-6, 1e3):
        cfg = ppo("shared", critic={"coef": coef})
        algorithm, policy, critic = parts(cfg)
        with torch.no_grad():
            critic.head.weight.fill_(0.05)
        batches = ready(cfg, algorithm, policy, critic, random_groups(num=2))
        done, _ = learn(algorithm, policy, critic, batches)
        moved[coef] = done.grad_norm
    assert moved[1e3] > 10 * moved[1e-6]


@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_loss_that_is_no_number_moves_nothing(trunk):
    cfg = ppo(trunk)
    algorithm, policy, critic = parts(cfg)
    batches = ready(cfg, algorithm, policy, critic, random_groups(num=2))
    broken = [dataclasses.replace(batch, returns=batch.returns * math.nan) for batch in batches]
    before = weights(critic.trained)
    _, learned = learn(algorithm, policy, critic, broken)
    assert not learned.finite
    assert torch.equal(weights(critic.trained), before)
    assert not critic.optimizer.state


@pytest.mark.parametrize("trunk", TRUNKS)
def test_what_is_saved_is_what_is_loaded(trunk, tmp_path):
    cfg = ppo(trunk)
    algorithm, policy, critic = parts(cfg)
    batches = ready(cfg, algorithm, policy, critic, random_groups(num=2))
    learn(algorithm, policy, critic, batches)
    policy.save_model(tmp_path)
    critic.save(tmp_path / FOLDER)
    loaded = Policy(cfg, str(tmp_path), tokenizer=tokenizer(), start_folder=model_folder())
    again = open_critic(cfg, loaded, start_of(model_folder()), checkpoint=tmp_path)
    again.load_state(critic.state())
    (ours,), (theirs,) = critic.values([batches]), again.values([batches])
    assert torch.equal(ours[0].values, theirs[0].values)
    assert ours[0].values.abs().max() > 0
    assert again.optimizer.state_dict().keys() == critic.optimizer.state_dict().keys()
    if trunk == "own":
        assert AutoModelForTokenClassification.from_pretrained(tmp_path / FOLDER).num_labels == 1


def test_a_reward_model_is_a_start_with_its_head(tmp_path):
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    cfg = ppo(critic={"model": str(tmp_path)})
    _, _, critic = parts(cfg)
    assert torch.equal(critic.head.weight, model.score.weight)
    assert critic.head.bias is None or not critic.head.bias.any()


def test_another_vocabulary_is_refused(tmp_path):
    cfg = ppo(critic={"model": str(tmp_path)})
    AutoModelForSequenceClassification.from_pretrained(model_folder(), num_labels=1).save_pretrained(tmp_path)
    vocabulary = json.loads(tokenizer().backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    words["3"], words["4"] = words["4"], words["3"]
    raw = Tokenizer.from_str(json.dumps(vocabulary))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"critic.model = .* has another vocabulary than policy.model"):
        parts(cfg)


def test_a_model_that_is_not_there_is_one_clear_line():
    with pytest.raises(ConfigError, match=r"critic.model = '/nowhere': no such folder") as caught:
        parts(ppo(critic={"model": "/nowhere"}))
    assert "\n" not in str(caught.value)


def test_a_head_of_two_classes_is_refused(tmp_path):
    AutoModelForTokenClassification.from_pretrained(model_folder(), num_labels=2).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="could not be loaded with one value per token"):
        parts(ppo(critic={"model": str(tmp_path)}))


def test_with_adapters_the_critic_of_its_own_is_a_whole_model():
    cfg = ppo(lora={"rank": 4})
    algorithm, policy, critic = parts(cfg)
    assert all(w.requires_grad for w in critic.model.parameters())
    batches = ready(cfg, algorithm, policy, critic, random_groups(num=2))
    done, learned = learn(algorithm, policy, critic, batches)
    assert done.applied
    assert learned.applied


def test_a_step_without_tokens_moves_nothing():
    cfg = ppo()
    algorithm, policy, critic = parts(cfg)
    before = weights(critic.model)
    _, learned = learn(algorithm, policy, critic, [])
    assert not learned.applied
    assert torch.equal(weights(critic.model), before)
    assert measure([[]], [learned])["critic/explained_variance"] == 0.0
    assert isinstance(critic, Critic)
