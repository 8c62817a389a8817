"""engine/algorithms.py: each row is put together from the right parts with the right numbers."""

import dataclasses
import inspect
import json

import pytest
import torch

from tests.tiny import Forked, config, rollout
from verigrad.engine import algorithm_settings
from verigrad.engine.advantage import ADVANTAGES
from verigrad.engine.aggregation import token_mean
from verigrad.engine.algorithms import AGGREGATES, LOSSES, build
from verigrad.engine.catalogue import ADVANTAGES as ADVANTAGE_PARTS
from verigrad.engine.catalogue import AGGREGATIONS, CORRECTIONS, ROWS
from verigrad.engine.catalogue import LOSSES as LOSS_PARTS
from verigrad.engine.config import AlgorithmConfig
from verigrad.engine.dynamic_sampling import has_signal, keep_all
from verigrad.engine.pack import pack
from verigrad.engine.schema import Coefs, GroupRewards, LossInputs, Rollout, ScoredGroup
from verigrad.verifiers.base import Problem, Verdict

NONE = Coefs(kl=0.0, entropy=0.0)


def recipe(name, **sections):
    algorithm = {"name": name} | sections.pop("algorithm", {})
    return config(algorithm=algorithm, train={"num_minibatches": 2}, **sections)


def rewards(*groups, parts=()):
    return [
        GroupRewards(
            torch.tensor(group).double(),
            torch.ones(len(group)).double(),
            torch.tensor(group) == 1,
            {name: torch.tensor(group).double() for name in parts},
            greedy=0.0,
        )
        for group in groups
    ]


def one_token(ratio, advantage, *, requires_grad=True):
    logprobs = torch.tensor([ratio]).double().log().requires_grad_(requires_grad)
    zero, one = torch.zeros(1).double(), torch.ones(1).double()
    return LossInputs(logprobs, zero, zero, None, None, advantage * one, one, torch.zeros(1).long())


def clip_range(algorithm):
    """The ratios beyond which a token of advantage +1 and of -1 stops pushing."""

    def pushes(ratio, advantage):
        inputs = one_token(ratio, advantage)
        algorithm.loss(inputs, NONE)[0].backward()
        return inputs.logprobs.grad.item() != 0

    grid = [round(0.5 + 0.01 * i, 2) for i in range(101)]
    return min(r for r in grid if pushes(r, -1.0)), max(r for r in grid if pushes(r, 1.0))


def test_every_name_of_the_catalogue_is_a_function_and_the_other_way_round():
    assert ADVANTAGES.keys() == ADVANTAGE_PARTS.keys()
    assert LOSSES.keys() == LOSS_PARTS.keys()
    assert AGGREGATES.keys() == AGGREGATIONS.keys()
    for row in ROWS.values():
        assert row.advantage in ADVANTAGES
        assert row.loss in LOSSES
        assert row.aggregation in AGGREGATES


def test_a_parts_settings_are_its_functions_keywords_and_the_recipes_fields():
    for functions, catalogue in ((ADVANTAGES, ADVANTAGE_PARTS), (LOSSES, LOSS_PARTS)):
        for name, part in catalogue.items():
            keywords = {
                p.name for p in inspect.signature(functions[name]).parameters.values()
                if p.kind is p.KEYWORD_ONLY
            }  # fmt: skip
            assert keywords - {"part_weights"} == set(part.settings), name
            assert set(part.settings) <= AlgorithmConfig.model_fields.keys(), name


def test_no_part_is_without_a_row():
    assert {row.advantage for row in ROWS.values()} == set(ADVANTAGES)
    assert {row.loss for row in ROWS.values()} == set(LOSSES)


@pytest.mark.parametrize(
    ("name", "advantages", "weights"),
    [
        ("grpo", [0.5**0.5, -(0.5**0.5), 0.0, 0.0], [0.5, 1 / 6]),
        ("dr_grpo", [0.5, -0.5, 0.0, 0.0], [1 / 200, 1 / 200]),
        ("dapo", [0.5**0.5, -(0.5**0.5), 0.0, 0.0], [0.25, 0.25]),
        ("lite_ppo", [1.0, -1.0, 0.0, 0.0], [0.25, 0.25]),  # std of 1, 0, 1, 1 is 1/2
        ("rloo", [1.0, -1.0, 0.0, 0.0], [0.5, 0.5]),
        ("ppo_batch_norm", [0.5, -1.5, 0.5, 0.5], [0.25, 0.25]),  # mean 3/4 and std 1/2 of all four
        ("reinforce", [1.0, 0.0, 1.0, 1.0], [0.5, 0.5]),
        ("remax", [1.0, 0.0, 1.0, 1.0], [0.5, 0.5]),
        ("maxrl", [1.0, -1.0, 0.0, 0.0], [0.25, 0.25]),
        ("gpg", [2 / 3, -2 / 3, 0.0, 0.0], [0.25, 0.25]),  # 4 rollouts, 3 with a reward
        ("top_two", [2**0.5, 0.0, 0.0, 0.0], [0.5, 1 / 6]),
        ("online_dpo", [1.0, -1.0, 0.0, 0.0], [0.5, 1 / 6]),
    ],
)
def test_each_row_does_what_its_paper_says(name, advantages, weights):
    algorithm = build(recipe(name, rollout={"max_tokens": 100}))
    values = torch.cat(algorithm.advantage(rewards([1.0, 0.0], [1.0, 1.0])))
    assert values.tolist() == pytest.approx(advantages, abs=3e-4)
    assert algorithm.aggregate([1, 3]) == pytest.approx(weights)
    assert algorithm.keep is (has_signal if name == "dapo" else keep_all)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_builds_pushes_and_has_its_numbers(name):
    cfg = recipe(name)
    algorithm = build(cfg)
    for setting, value in algorithm_settings.resolved_numbers(
        name, ROWS[name].advantage, ROWS[name].loss
    ).items():
        assert getattr(cfg.algorithm, setting) == value
    values = torch.cat(
        algorithm.advantage(rewards([1.0, *[0.0] * 6, 1.0], [0.0, 1.0, *[0.0] * 6], parts=["a"]))
    )
    assert values.isfinite().all()
    assert values.abs().sum() > 0.1
    assert algorithm.together == name.startswith("online_")
    if algorithm.together:
        return  # a loss of pairs has nothing to say of one rollout; see test_online_pairs.py
    inputs = one_token(1.0, 1.0)
    loss, sums = algorithm.loss(inputs, NONE)
    loss.backward()
    assert inputs.logprobs.grad.item() == pytest.approx(-1.0)  # one token: every loss is the policy gradient
    assert sums["num_tokens"] == 1
    assert algorithm.needs == ({"old", "collision"} if name == "otb" else set())
    assert algorithm.greedy == (name == "remax")
    placing = ("reinforce_pp", "reinforce_pp_baseline", "otb", "ppo", "vapo")
    assert (algorithm.place is not None) == (name in placing)
    assert algorithm.critic == (name in ("ppo", "vapo"))


@pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.loss == "clip"])
def test_clip_bounds_default_to_the_row(name):
    low, high = clip_range(build(recipe(name)))
    assert low == pytest.approx(0.8, abs=0.011)
    assert high == pytest.approx(1.28 if name in ("dapo", "vapo") else 1.2, abs=0.011)


def test_the_recipe_wins_over_the_row():
    cfg = recipe(
        "dapo",
        algorithm={"clip_low": 0.1, "clip_high": 0.4, "std_eps": 0.5, "aggregation": "token_sum"},
        dynamic_sampling={"enabled": False},
    )
    algorithm = build(cfg)
    assert clip_range(algorithm) == pytest.approx((0.9, 1.4), abs=0.011)
    assert algorithm.keep is keep_all
    assert algorithm.aggregate([1, 3, 0]) == [1.0, 1.0, 0.0]
    (advantages,) = algorithm.advantage(rewards([1.0, 0.0]))
    assert advantages.tolist() == pytest.approx([0.5 / (0.5**0.5 + 0.5), -0.5 / (0.5**0.5 + 0.5)])


def test_parts_of_rows_can_be_mixed():
    cfg = recipe("dapo", algorithm={"advantage": "leave_one_out", "loss": "cispo"})
    assert (cfg.algorithm.aggregation, cfg.algorithm.ratio_cap, cfg.algorithm.clip_high) == (
        "token_mean", 5.0, None,
    )  # fmt: skip
    algorithm = build(cfg)
    assert algorithm.advantage(rewards([1.0, 0.0]))[0].tolist() == [1.0, -1.0]
    assert algorithm.loss(one_token(9.0, 1.0), NONE)[0].item() == pytest.approx(-5 * torch.tensor(9.0).log())


def test_dynamic_sampling_can_be_added_to_any_row():
    assert build(recipe("grpo", dynamic_sampling={"enabled": True})).keep is has_signal


@pytest.mark.parametrize(
    ("kind", "high", "expected"),
    [
        ("icepop", None, 4.5),
        ("tis", None, 2.0),
        ("tis", 3.0, 3.0),
        ("none", None, 1),
        ("sequence_tis", None, 2.0),
        ("sequence_mask", None, 0.0),
        ("sequence_mask", 5.0, 4.5),
        ("geometric_mask", None, 0.0),
    ],
)
def test_the_upper_bound_depends_on_the_correction(kind, high, expected):
    algorithm = build(recipe("grpo", algorithm={"correction": kind, "correction_high": high}))
    inputs = one_token(4.5, 1.0, requires_grad=False)
    inputs = dataclasses.replace(inputs, old_logprobs=inputs.logprobs)
    assert algorithm.loss(inputs, NONE)[0].item() == pytest.approx(-expected)


def test_every_correction_has_been_seen():
    assert set(CORRECTIONS) == {
        "icepop", "tis", "none", "sequence_tis", "sequence_mask", "geometric_mask",
    }  # fmt: skip


def test_overlong_punishment_is_off_unless_asked_for():
    long = Rollout([1] * 95, [False] * 5 + [True] * 90, [0.0] * 95, [0] * 95, "", "stop", 0)
    assert build(recipe("dapo", rollout={"max_tokens": 100})).shape(long) == 0.0
    cfg = recipe("dapo", rollout={"max_tokens": 100}, algorithm={"overlong_buffer_tokens": 20})
    assert build(cfg).shape(long) == pytest.approx(-0.5)


def test_coefficients_stay_unless_they_are_to_adapt():
    algorithm = build(recipe("grpo", algorithm={"kl_coef": 0.2, "entropy_coef": 0.1}))
    assert algorithm.coefs == Coefs(0.2, 0.1, 0.1)
    assert algorithm.adapt(algorithm.coefs, {"kl_ref": 9.0, "entropy": 0.0}, 100) == algorithm.coefs


def test_coefficients_adapt_to_their_targets():
    adapting = {"kl_coef": 0.2, "kl_target": 0.1, "entropy_coef": 0.01, "entropy_target": 5.0}
    algorithm = build(recipe("grpo", algorithm=adapting))
    assert algorithm.coefs == Coefs(0.2, 0.0, 0.01)  # the bonus waits for an entropy to go by
    after = algorithm.adapt(algorithm.coefs, {"kl_ref": 0.05, "entropy": 4.5}, 256)
    assert after.kl == pytest.approx(0.2 * (1 - 0.2 * 256 / 10_000))
    assert (after.entropy, after.entropy_next) == pytest.approx((0.015, 0.015))
    assert algorithm.adapt(after, {"kl_ref": 0.0, "entropy": float("nan")}, 256) == after
    assert algorithm.adapt(after, {"kl_ref": 0.0, "entropy": 0.0}, 0) == after


KL = [
    *[{"kl_place": "loss", "kl_estimator": e} for e in ("k2", "k3", "k3_plus", "k3_ratio", "abs")],
    *[{"kl_place": "reward", "kl_estimator": e} for e in ("k1", "k2", "k3", "abs")],
]


@pytest.mark.parametrize("kl", KL, ids=lambda kl: "-".join(kl.values()))
def test_the_kl_term_stands_where_it_is_put(kl):
    algorithm = build(recipe("grpo", algorithm={"kl_coef": 0.5, **kl}))
    inputs = dataclasses.replace(one_token(1.0, 0.0), ref_logprobs=torch.tensor([-0.3]).double())
    loss, _ = algorithm.loss(inputs, algorithm.coefs)
    assert (loss.item() != 0) == (kl["kl_place"] == "loss")
    assert (algorithm.place is not None) == (kl["kl_place"] == "reward")
    assert algorithm.needs == ({"old"} if kl["kl_place"] == "reward" else set())


def two_tokens(advantage, *, ref):
    """One rollout of two tokens at old log-probabilities of -1."""
    done = ScoredGroup(Problem("p", "p"), [rollout([3], [5, 6])], [Verdict.right()], [advantage])
    (batch,) = pack([done], token_mean, max_tokens=8)
    return dataclasses.replace(batch, ref_logprobs=torch.full_like(batch.old_logprobs, ref))


@pytest.mark.parametrize("coef", [0.5, 0.1])
def test_the_kl_in_the_reward_has_the_weight_it_has_adapted_to(coef):
    algorithm = build(recipe("dr_grpo", algorithm={"kl_coef": 0.5, "kl_place": "reward"}))
    (batch,) = algorithm.place([two_tokens(1.0, ref=-2.0)], Coefs(kl=coef, entropy=0.0))  # d = 1 at each
    assert batch.advantages[batch.loss_mask].tolist() == pytest.approx([1 - 2 * coef, 1 - coef])


def test_a_discount_alone_is_reason_enough_to_place_advantages():
    cfg = recipe("dr_grpo")
    discounted = cfg.algorithm.model_copy(update={"gamma": 0.5})
    algorithm = build(cfg.model_copy(update={"algorithm": discounted}))
    (batch,) = algorithm.place([two_tokens(1.0, ref=-1.0)], NONE)
    assert batch.advantages[batch.loss_mask].tolist() == [0.5, 1.0]


@pytest.mark.parametrize(
    ("algorithm", "needs"),
    [
        ({}, set()),
        ({"reject": "token"}, {"old"}),
        ({"correction_norm": True}, {"old"}),
        ({"top_entropy_frac": 0.2}, {"entropy"}),
        ({"kl_coef": 0.1, "kl_place": "reward"}, {"old"}),
    ],
)
def test_what_must_be_known_before_the_first_optimizer_step(algorithm, needs):
    assert build(recipe("grpo", algorithm=algorithm)).needs == needs


@pytest.mark.parametrize(("delta", "expected"), [(None, 0.8), (0.7, 0.8), (0.6, 0.0)])
def test_the_off_policy_mask_is_part_of_the_loss(delta, expected):
    algorithm = build(recipe("grpo", algorithm={"off_policy_delta": delta}))
    loss, _ = algorithm.loss(one_token(0.5, -1.0), NONE)  # moved away by log 2 = 0.69; clipped at 0.8
    assert loss.item() == pytest.approx(expected)


EXTRAS = {
    "kl_in_reward": ["algorithm.kl_coef=0.01", "algorithm.kl_place=reward", "algorithm.kl_target=0.1"],
    "moving_reference": ["algorithm.kl_coef=0.01", "algorithm.ref_sync_every=2"],
    "entropy_adapts": ["algorithm.entropy_target=0.5", "algorithm.entropy_coef=0.001"],
    "rejection": ["algorithm.reject=sequence_mean", "algorithm.reject_measure=k3"],
    "entropy_filter": ["algorithm.top_entropy_frac=0.2"],
    "normalised_sequence_weights": ["algorithm.correction=sequence_tis", "algorithm.correction_norm=true"],
    "off_policy_mask": ["algorithm.off_policy_delta=0.001"],
    "lora": ["lora.rank=8", "optim.lr=3e-3"],
}
OWN = {  # what a row needs besides its name
    "pass_at_k": ["algorithm.pass_k=2"],
    "gdpo": [
        "verifier.name=combine",
        'verifier.options={parts = {right = {verifier = "math_answer", gate = true}, '
        'short = {verifier = "length_budget", weight = 0.5, options = {unit = "characters", budget = 400}}}}',
    ],
}
SMALL = (
    "train.num_steps=5 rollout.backend=transformers rollout.groups_per_step=8 rollout.group_size=4 "
    "data.num_eval=12 run.folder=run policy.device=cpu"
)


@pytest.mark.slow
@pytest.mark.usefixtures("users_cache")  # the quickstart's model takes a minute to make
@pytest.mark.parametrize("name", [*ROWS, *EXTRAS])
def test_the_quickstart_trains_for_five_steps_with_every_row(tmp_path, name):
    chosen = EXTRAS.get(name) or [f"algorithm.name={name}", *OWN.get(name, [])]
    status, printed = Forked("train", "quickstart", *SMALL.split(), *chosen, folder=tmp_path).wait(560)
    assert status == 0, printed
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert sum(row["skipped_updates"] for row in rows) == 0
    assert sum(row["grad_norm"] > 0 for row in rows) >= 3
    assert max(row["mismatch_kl"] for row in rows) < 1e-4  # the update may compute in bfloat16
