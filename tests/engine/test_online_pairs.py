"""Online preference losses: pairs of a group's rollouts, in the loop that every algorithm shares."""

import math

import pyarrow.parquet as pq
import pytest
import torch

from tests.engine.test_resume import assert_same, kill_when, rows, rows_or_none
from tests.tiny import Forked, config, model_folder, rollout, tokenizer, write_recipe
from verigrad.engine import advantage, algorithms
from verigrad.engine.config import ConfigError, build
from verigrad.engine.loss import merge
from verigrad.engine.online_pairs import members, only_paired
from verigrad.engine.pack import pack
from verigrad.engine.policy import Policy, combine
from verigrad.engine.schema import GroupRewards, LossInputs, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict


def recipe(name="online_dpo", **sections):
    return config(algorithm={"name": name} | sections.pop("algorithm", {}), **sections)


def tokens(of, *, logprobs, ref, advantages, groups):
    """LossInputs of rollouts of `of` tokens each, numbered in order, with the weights of the row."""
    sequence = torch.repeat_interleave(torch.arange(len(of)), torch.tensor(of))
    column = [torch.tensor(values, dtype=torch.float64) for values in (logprobs, ref, advantages)]
    zeros = torch.zeros(len(sequence), dtype=torch.float64)
    return LossInputs(
        logprobs=column[0].requires_grad_(), old_logprobs=zeros, rollout_logprobs=zeros,
        ref_logprobs=column[1], entropy=None, advantages=column[2][sequence],
        weights=1 / (len(of) * torch.tensor(of, dtype=torch.float64))[sequence], sequence=sequence,
        groups=torch.tensor(groups)[sequence],
    )  # fmt: skip


def test_a_step_worked_out_by_hand():
    """Two groups: rollouts of 2 and 1 tokens, and of 1 and 2; sums and log-ratios by hand."""
    inputs = tokens(
        [2, 1, 1, 2],
        logprobs=[-1.0, -2.0, -1.5, -0.5, -3.0, -1.0],
        ref=[-1.5, -2.5, -1.0, -0.5, -2.0, -1.5],
        advantages=[1.0, -1.0, -1.0, 1.0],
        groups=[0, 0, 1, 1],
    )
    # log-ratios: 1.0 against -0.5, and 0.0 (rejected) against -0.5 (chosen)
    margins = [0.2 * 1.5, 0.2 * -0.5]
    loss, sums = algorithms.build(recipe(algorithm={"beta": 0.2})).loss(inputs, algorithms.Coefs(0.0, 0.0))
    loss.backward()
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 2)
    pulls = [0.2 / (1 + math.exp(m)) / 2 for m in margins]
    a, b = pulls
    assert inputs.logprobs.grad.tolist() == pytest.approx([-a, -a, a, b, -b, -b])
    metrics = merge([sums])
    assert metrics["pairs/num"] == 2
    assert metrics["pairs/accuracy"] == 0.5
    assert metrics["pairs/margin"] == pytest.approx(sum(margins) / 2)
    assert metrics["pairs/reward_chosen"] == pytest.approx(0.2 * (1.0 - 0.5) / 2)
    assert metrics["pairs/logprobs_rejected"] == pytest.approx((-1.5 - 0.5) / 2)
    assert metrics["clip_frac_low"] == metrics["clip_frac_high"] == 0


def test_every_rollout_above_its_group_meets_every_one_below():
    inputs = tokens(
        [1] * 6, logprobs=[-1.0] * 6, ref=[-1.0] * 6, advantages=[0.5, -0.5, 0.5, -0.5, 2.0, -2.0],
        groups=[0, 0, 0, 0, 1, 1],
    )  # fmt: skip
    assert {tuple(pair) for pair in torch.stack(members(inputs), 1).tolist()} == {
        (0, 1), (0, 3), (2, 1), (2, 3), (4, 5),
    }  # fmt: skip
    loss, _ = algorithms.build(recipe()).loss(inputs, algorithms.Coefs(0.0, 0.0))
    assert loss.item() == pytest.approx(math.log(2))  # a mean, however many pairs a group has


def test_other_losses_of_pairs_by_hand():
    inputs = tokens(
        [2, 1], logprobs=[-1.0, -2.0, -1.0], ref=[-1.5, -2.5, -1.5], advantages=[1.0, -1.0], groups=[0, 0]
    )
    none = algorithms.Coefs(0.0, 0.0)
    ipo = algorithms.build(recipe("online_ipo", algorithm={"beta": 0.25})).loss(inputs, none)[0]
    assert ipo.item() == pytest.approx((1.0 - 0.5 - 2.0) ** 2)
    simpo = algorithms.build(recipe("online_simpo")).loss(inputs, none)[0]
    assert simpo.item() == pytest.approx(math.log1p(math.exp(-(2.5 * (-1.5 + 1.0) - 1.375))))
    with_nll = algorithms.build(recipe(algorithm={"nll_coef": 0.5})).loss(inputs, none)[0]
    plain = algorithms.build(recipe()).loss(inputs, none)[0]
    assert (with_nll - plain).item() == pytest.approx(0.5 * 1.5)


# Pairing ---------------------------------------------------------------------------------------------------


def scored(algorithm, *rewards):
    """One group for each list of rewards (None is undecided), with rollouts that differ in every token."""
    groups = []
    for number, row in enumerate(rewards):
        rollouts = [rollout([3, 4 + number], [10 + i, 20 + i, 30 + number]) for i in range(len(row))]
        verdicts = [
            Verdict.undecided("the judge is away") if value is None else Verdict(value, "partial")
            for value in row
        ]
        groups.append(VerifiedGroup(Problem(str(number), "p"), rollouts, verdicts))
    return advantage.score(groups, algorithm.advantage, shape=algorithm.shape)


def test_the_best_meets_the_worst_and_the_undecided_nobody():
    algorithm = algorithms.build(recipe())
    groups = scored(algorithm, [0.3, None, 0.9, 0.1], [1.0, 1.0, None, 1.0], [None, 0.0, None, None])
    assert [group.advantages for group in groups] == [[0, 0, 1, -1], [0, 0, 0, 0], [0, 0, 0, 0]]
    (batch,) = pack(groups, algorithm.aggregate, max_tokens=64, together=True)
    assert batch.num_rollouts == 2  # only those of the one pair are looked at
    assert batch.groups.tolist() == [0, 0]
    assert float(batch.loss_weights[batch.loss_mask].sum()) == pytest.approx(1)


@pytest.mark.parametrize("part", ["best_worst", "group_mean", "group_norm", "opo", "length_shaped"])
def test_what_is_in_no_pair_is_in_no_divisor(part):
    """Groups that tie, or of which none or one is decided, leave the weight of a pair as it is."""
    algorithm = algorithms.build(recipe(algorithm={"advantage": part}))
    tied = [0.1] * 3, [0.7, 0.7, None], [None] * 3, [None, 0.3, None]
    groups = scored(algorithm, [0.2, 0.9], *tied)
    assert all(value == 0 for group in groups[1:] for value in group.advantages)
    (batch,) = pack(groups, algorithm.aggregate, max_tokens=512, together=True)
    assert batch.num_rollouts == 2
    assert batch.loss_weights[batch.loss_mask].tolist() == pytest.approx([1 / 6] * 6)


def test_a_side_without_a_token_makes_no_pair():
    def advantage_of(groups):
        return [torch.tensor([1.0, -1.0, 0.0]), torch.tensor([1e-17, 1e-17]), torch.tensor([2.0, -1.0, -1.0])]

    lengths = torch.tensor([3.0, 0.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0, 2.0])
    groups = [GroupRewards(torch.zeros(len(n)), n, torch.zeros(len(n)).bool(), {}) for n in lengths]
    assert [values.tolist() for values in only_paired(advantage_of)(groups)] == [
        [0, 0, 0], [0, 0], [2, 0, -1],
    ]  # fmt: skip


def test_a_mean_over_no_pair_is_no_number():
    inputs = tokens([1, 1], logprobs=[-1.0] * 2, ref=[-1.0] * 2, advantages=[1.0, 1.0], groups=[0, 0])
    _, sums = algorithms.build(recipe()).loss(inputs, algorithms.Coefs(0.0, 0.0))
    metrics = merge([sums])
    assert metrics["pairs/num"] == metrics["loss"] == 0
    for name in ("accuracy", "margin", "reward_chosen", "logprobs_rejected"):
        assert math.isnan(metrics[f"pairs/{name}"]), name


def test_all_right_against_all_wrong():
    algorithm = algorithms.build(recipe(algorithm={"advantage": "group_mean"}))
    groups = scored(algorithm, [1.0, 0.0, None, 0.0])
    (batch,) = pack(groups, algorithm.aggregate, max_tokens=64, together=True)
    assert batch.num_rollouts == 3


def test_a_group_is_never_divided_and_one_too_large_is_refused():
    algorithm = algorithms.build(recipe())
    groups = scored(algorithm, [1.0, 0.0], [0.0, 1.0], [1.0, 0.0])
    batches = pack(groups, algorithm.aggregate, max_tokens=14, together=True)
    assert sorted(batch.groups.tolist() for batch in batches) == [[0, 0], [1, 1], [2, 2]]
    with pytest.raises(ValueError, match="a group's paired rollouts of 10 tokens does not fit"):
        pack(groups, algorithm.aggregate, max_tokens=9, together=True)


# The policy ------------------------------------------------------------------------------------------------


def policy_of(cfg):
    return Policy(cfg, model_folder(), tokenizer=tokenizer(), start_folder=model_folder())


def gradient(policy, batches, algorithm):
    seen = {}

    def keep(*_args, **_kwargs):
        seen["grad"] = torch.cat([w.grad.flatten().clone() for w in policy.model.parameters()])

    policy.optimizer.step = keep
    done = policy.update(batches, algorithm.loss, algorithm.coefs, step=1, first=True)
    return seen["grad"], combine([done])


@pytest.mark.parametrize("name", ["online_dpo", "online_ipo", "online_simpo"])
def test_micro_batches_change_nothing(name):
    cfg = recipe(name, algorithm={"advantage": "group_mean"}, optim={"max_grad_norm": 1e9})
    algorithm, policy = algorithms.build(cfg), policy_of(cfg)
    groups = scored(algorithm, [1.0, 0.0, 0.0], [0.0, 1.0], [1.0, 1.0, 0.0, 0.0])
    found = []
    for max_tokens in (20, 512):
        batches = pack(groups, algorithm.aggregate, max_tokens=max_tokens, together=True)
        found.append(gradient(policy, policy.frozen(batches, with_old=False), algorithm))
    (cut, one), (whole, other) = found
    assert torch.allclose(whole, cut, rtol=1e-4, atol=1e-6 * float(whole.abs().max()))
    close = {name for name in one if not name.startswith("pairs/")}
    assert {k: one[k] for k in close} == pytest.approx({k: other[k] for k in close}, rel=1e-4, abs=1e-6)


def test_the_reference_is_kept_where_the_loss_asks_for_it_and_can_become_the_policy():
    cfg = recipe(algorithm={"ref_sync_every": 1, "ref_sync_mix": 1.0})
    algorithm, policy = algorithms.build(cfg), policy_of(cfg)
    assert policy.has_reference
    assert not policy_of(recipe("online_simpo")).has_reference
    assert not policy_of(recipe("grpo")).has_reference
    batches = pack(scored(algorithm, [1.0, 0.0]), algorithm.aggregate, max_tokens=512, together=True)
    for _ in range(2):
        frozen = policy.frozen(batches, with_old=False)
        policy.update(frozen, algorithm.loss, algorithm.coefs, step=1, first=True)
    margin = combine([policy.update(frozen, algorithm.loss, algorithm.coefs, step=1, first=True)])
    assert margin["pairs/margin"] > 0.01
    policy.move_reference()
    own = dict(policy.model.named_parameters())
    assert all(torch.equal(theirs, own[name]) for name, theirs in policy.reference.named_parameters())
    (again,) = policy.frozen(batches, with_old=False)
    assert torch.allclose(again.ref_logprobs, policy.logprobs(again, temperature=1.0))


def test_with_adapters_the_reference_is_the_model_without_them():
    cfg = recipe(lora={"rank": 4})
    algorithm, policy = algorithms.build(cfg), policy_of(cfg)
    batches = pack(scored(algorithm, [1.0, 0.0]), algorithm.aggregate, max_tokens=512, together=True)
    first = policy.frozen(batches, with_old=False)
    for step in (1, 2):
        policy.update(first, algorithm.loss, algorithm.coefs, step=step, first=True)
    (again,) = policy.frozen(batches, with_old=True)
    assert policy.reference is None
    assert torch.equal(again.ref_logprobs, first[0].ref_logprobs)
    assert not torch.allclose(again.old_logprobs, again.ref_logprobs)


# Recipes ---------------------------------------------------------------------------------------------------


def refused(**algorithm):
    rollouts = algorithm.pop("rollout", {})
    tree = {
        "policy": {"model": "unused", "tokens_per_batch": 4000},
        "data": {"path": "unused"},
        "run": {"folder": "unused"},
        "eval": {"every": 0},
        "rollout": {"max_prompt_tokens": 500, "max_tokens": 500, "groups_per_step": 8} | rollouts,
        "algorithm": algorithm,
    }
    return build(tree, name="test.toml")


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        ({"name": "grpo", "beta": 0.1}, "algorithm.beta has no effect"),
        ({"name": "online_ipo", "label_smoothing": 0.1}, "label_smoothing has no effect"),
        ({"name": "online_dpo", "margin": 1.0}, "margin has no effect"),
        ({"name": "online_dpo", "correction": "tis"}, "pairs may come from any policy, so no ratio enters"),
        ({"name": "online_dpo", "reject": "token"}, "reject leaves out parts of pairs"),
        ({"name": "online_dpo", "overlong_filter": True}, "overlong_filter leaves out parts of pairs"),
        ({"name": "online_dpo", "advantage": "raw"}, "has no group to compare with"),
        ({"name": "online_dpo", "advantage": "top_two"}, "is never negative, so there would be no pairs"),
        ({"name": "online_dpo", "advantage": "reinforce_pp"}, "needs one advantage per rollout"),
        ({"name": "online_dpo", "kl_coef": 0.1, "kl_place": "reward"}, "needs one advantage per rollout"),
        ({"name": "online_simpo", "ref_sync_every": 2}, "ref_sync_every has no effect with kl_coef = 0"),
        ({"name": "online_dpo", "ref_sync_mix": 1.0}, "ref_sync_mix has no effect with ref_sync_every = 0"),
        ({"name": "online_dpo", "rollout": {"group_size": 1}}, "needs at least 2"),
        (
            {"name": "online_dpo", "aggregation": "token_sum"},
            "set algorithm.aggregation = 'seq_mean_token_mean'",
        ),
        ({"name": "online_ipo", "aggregation": "token_mean"}, "would weigh it by the length of its answers"),
        ({"name": "dapo", "loss": "dpo"}, "algorithm.aggregation = 'token_mean' would weigh"),
        ({"name": "online_dpo", "advantage": "group_mean"}, "cannot hold the 8 rollouts.*raise it to 8000"),
    ],
)
def test_what_cannot_be_is_refused(algorithm, says):
    with pytest.raises(ConfigError, match=says):
        refused(**algorithm)


def test_what_goes_together():
    found = refused(name="online_dpo", ref_sync_every=5).algorithm
    assert (found.beta, found.label_smoothing, found.nll_coef, found.ref_sync_mix) == (0.1, 0.0, 0.0, 0.6)
    assert found.correction == "none"
    assert refused(name="online_dpo", kl_coef=0.1, entropy_coef=0.01).algorithm.kl_estimator == "k3_ratio"
    assert refused(name="online_dpo", beta=0.5).algorithm.beta == 0.5  # with one minibatch too
    assert refused(name="grpo", loss="dpo", rollout={"group_size": 4}).algorithm.beta == 0.1


# Runs ------------------------------------------------------------------------------------------------------

NOISY = '''

@verifier("graded", runs="inline", shaping=True)
def graded(text):
    """A grade by the first character, and now and then no judgement."""
    place = "0123456789+-*/=()?., abcdefghijklmnopqrstuvwxyz".find(text[:1])
    return None if place % 11 == 5 else (place % 4) / 4
'''
ONLINE = [
    "algorithm.name=online_dpo", "algorithm.ref_sync_every=2", "algorithm.ref_sync_mix=1.0",
    "verifier.name=verifiers_of_tests.py:graded", "verifier.max_undecided_frac=0.9",
    "train.num_minibatches=2",
]  # fmt: skip


def start(folder):
    return Forked("train", "tiny.toml", *ONLINE, folder=folder)


def prepare(folder):
    write_recipe(folder)
    with (folder / "verifiers_of_tests.py").open("a") as file:
        file.write(NOISY)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online")
    prepare(folder)
    status, printed = start(folder).wait()
    assert status == 0, printed
    return folder / "run"


def test_a_run_records_who_was_paired_with_whom(undisturbed):
    done = rows(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in done] == [1, 2, 3, 4, 5]
    assert all(0 < row["pairs/num"] <= 2 for row in done)  # four groups in two minibatches
    assert done[1]["kl_ref"] > 0
    undecided = 0
    for path in sorted((undisturbed / "rollouts").glob("*.parquet")):
        groups = {}
        for row in pq.read_table(path).to_pylist():
            groups.setdefault(row["group"], []).append(row)
        for group in groups.values():
            decided = {row["reward"]: row["advantage"] for row in group if row["reward"] is not None}
            undecided += len(group) - sum(row["reward"] is not None for row in group)
            signs = sorted(row["advantage"] for row in group)
            assert all(row["advantage"] == 0 for row in group if row["reward"] is None)
            if len(decided) > 1:
                assert (signs[0], signs[-1], sum(map(abs, signs))) == (-1, 1, 2)
                best = max(row["reward"] for row in group if row["reward"] is not None)
                assert next(r["reward"] for r in group if r["advantage"] == 1) == best
            else:
                assert not any(signs)
    assert undecided


def test_killed_and_run_again_it_records_the_same(tmp_path, undisturbed):
    prepare(tmp_path)
    metrics = tmp_path / "run/metrics.jsonl"
    assert kill_when(start(tmp_path), lambda: len(rows_or_none(metrics)) >= 3)
    status, printed = start(tmp_path).wait()
    assert status == 0, printed
    assert_same(tmp_path / "run", undisturbed)
