"""engine/algorithms.py: each row is put together from the right parts with the right numbers."""

import pytest
import torch

from verigrad.engine.algorithms import TABLE, build
from verigrad.engine.config import ALGORITHMS, Config, ConfigError
from verigrad.engine.dynamic_sampling import has_signal, keep_all
from verigrad.engine.loss import LossInputs
from verigrad.engine.schema import Rollout


def recipe(name, **sections):
    algorithm = {"name": name} | sections.pop("algorithm", {})
    return Config.model_validate({"algorithm": algorithm} | sections)


def clip_range(algorithm):
    """The ratios beyond which a token of advantage +1 and of -1 stops pushing."""

    def pushes(ratio, advantage):
        logprobs = torch.tensor([ratio]).double().log().requires_grad_()
        zero = torch.zeros(1).double()
        one = torch.ones(1).double()
        inputs = LossInputs(logprobs, zero, zero, None, None, advantage * one, one, torch.zeros(1).long())
        algorithm.loss(inputs)[0].backward()
        return logprobs.grad.item() != 0

    grid = [round(0.5 + 0.01 * i, 2) for i in range(101)]
    return min(r for r in grid if pushes(r, -1.0)), max(r for r in grid if pushes(r, 1.0))


def test_the_table_has_the_rows_of_the_config():
    assert list(TABLE) == list(ALGORITHMS)


@pytest.mark.parametrize(
    ("name", "advantages", "weights"),
    [
        ("grpo", [0.5**0.5, -(0.5**0.5), 0.0, 0.0], [0.5, 1 / 6]),
        ("dr_grpo", [0.5, -0.5, 0.0, 0.0], [1 / 200, 1 / 200]),
        ("dapo", [0.5**0.5, -(0.5**0.5), 0.0, 0.0], [0.25, 0.25]),
        ("rloo", [1.0, -1.0, 0.0, 0.0], [0.5, 0.5]),
        ("ppo", [0.5, -1.5, 0.5, 0.5], [0.25, 0.25]),  # mean 3/4 and std 1/2 of all four
    ],
)
def test_each_row_does_what_its_paper_says(name, advantages, weights):
    algorithm = build(recipe(name, rollout={"max_tokens": 100}))
    groups = [torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()]
    assert torch.cat(algorithm.advantage(groups)).tolist() == pytest.approx(advantages, abs=1e-5)
    assert algorithm.aggregate([1, 3]) == pytest.approx(weights)
    assert algorithm.keep is (has_signal if name == "dapo" else keep_all)


@pytest.mark.parametrize("name", TABLE)
def test_clip_bounds_default_to_the_row(name):
    low, high = clip_range(build(recipe(name)))
    assert low == pytest.approx(1 - ALGORITHMS[name].clip_low, abs=0.011)
    assert high == pytest.approx(1 + ALGORITHMS[name].clip_high, abs=0.011)


def test_the_recipe_wins_over_the_row():
    cfg = recipe(
        "dapo",
        algorithm={"clip_low": 0.1, "clip_high": 0.4, "std_eps": 0.5},
        dynamic_sampling={"enabled": False},
    )
    algorithm = build(cfg)
    assert clip_range(algorithm) == pytest.approx((0.9, 1.4), abs=0.011)
    assert algorithm.keep is keep_all
    (advantages,) = algorithm.advantage([torch.tensor([1.0, 0.0]).double()])
    assert advantages.tolist() == pytest.approx([0.5 / (0.5**0.5 + 0.5), -0.5 / (0.5**0.5 + 0.5)])


def test_dynamic_sampling_can_be_added_to_any_row():
    assert build(recipe("grpo", dynamic_sampling={"enabled": True})).keep is has_signal


@pytest.mark.parametrize(
    ("kind", "high", "expected"),
    [("icepop", None, 4.5), ("tis", None, 2.0), ("tis", 3.0, 3.0), ("none", None, 1)],
)
def test_the_upper_bound_depends_on_the_correction(kind, high, expected):
    algorithm = build(recipe("grpo", algorithm={"correction": kind, "correction_high": high}))
    one = torch.ones(1).double()
    old = torch.tensor([4.5]).double().log()
    inputs = LossInputs(old, old, 0 * one, None, None, one, one, torch.zeros(1).long())
    assert algorithm.loss(inputs)[0].item() == pytest.approx(-expected)


def test_overlong_punishment_is_off_unless_asked_for():
    rollout = Rollout([1] * 95, [False] * 5 + [True] * 90, [0.0] * 95, [0] * 95, "", "stop", 0)
    assert build(recipe("dapo", rollout={"max_tokens": 100})).shape(rollout) == 0.0
    cfg = recipe("dapo", rollout={"max_tokens": 100}, algorithm={"overlong_buffer_tokens": 20})
    assert build(cfg).shape(rollout) == pytest.approx(-0.5)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'dr_grpo'"):
        build(Config.model_validate({"algorithm": {"name": "drgrpo"}}))
