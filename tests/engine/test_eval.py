"""Evaluations by hand: which keys, which numbers, what is left out."""

import math

import pytest

from tests.tiny import config
from verigrad.engine.eval import evaluate, summarise
from verigrad.engine.rollout import Sampler, TokenOutput
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.engine.scoring import open_scorers
from verigrad.verifiers.base import Problem, Verdict

HOUSE_KEYS = {
    "step", "data", "num_problems", "num_samples", "avg", "avg_low", "avg_high", "pass_at", "maj_at",
    "truncated_frac", "undecided_frac",
}  # fmt: skip


def group(rewards, texts=None, truncated=()):
    texts = texts or [f"{r}" for r in rewards]
    rollouts = [
        Rollout([1, 2], [False, True], [0.0, -1.0], [-1, 0], text, "length" if i in truncated else "stop", i)
        for i, text in enumerate(texts)
    ]
    verdicts = [
        Verdict.undecided("broken") if r is None else Verdict(r, "right" if r >= 1 else "wrong")
        for r in rewards
    ]
    return VerifiedGroup(Problem("p", "q", "a"), rollouts, verdicts)


def row(*groups, ks=()):
    return summarise("held_out", groups, step=3, ks=ks)


def test_a_row_has_the_keys_of_the_format_and_no_others():
    assert set(row(group([1.0]))) == HOUSE_KEYS


def test_numbers_worked_out_by_hand():
    made = row(group([1.0, 0.0]), group([1.0, 1.0], truncated=[1]), ks=[1, 2])
    assert (made["step"], made["data"], made["num_problems"], made["num_samples"]) == (3, "held_out", 2, 2)
    assert made["avg"] == 0.75  # of the means 0.5 and 1
    half = 1.959963984540054 * math.sqrt(0.125) / math.sqrt(2)  # their standard deviation is sqrt(1/8)
    assert made["avg_low"] == pytest.approx(0.75 - half)
    assert made["avg_high"] == 1.0  # 0.75 + half is more than a share can be
    assert made["pass_at"] == {"1": 0.75, "2": 1.0}
    assert made["maj_at"] == {"1": 0.75, "2": 0.75}  # the two answers of the first problem tie
    assert made["truncated_frac"] == 0.25
    assert made["undecided_frac"] == 0.0


def test_one_sample_each_has_the_interval_of_a_proportion():
    made = row(*[group([1.0])] * 3, group([0.0]))
    z2 = 1.959963984540054**2
    centre, half = (0.75 + z2 / 8) / (1 + z2 / 4), math.sqrt(z2 * (0.1875 / 4 + z2 / 64)) / (1 + z2 / 4)
    assert (made["avg_low"], made["avg_high"]) == pytest.approx((centre - half, centre + half))


def test_the_majority_may_be_wrong():
    made = row(group([0.0, 0.0, 1.0], texts=["4", " 4 ", "5"]), ks=[1, 3])
    assert made["maj_at"] == pytest.approx({"1": 1 / 3, "3": 0.0})
    assert made["pass_at"] == pytest.approx({"1": 1 / 3, "3": 1.0})


def test_thinking_casts_no_vote():
    texts = ["<think>a</think>5", "<think>b</think>5", "<think>c</think>4"]
    assert row(group([1.0, 1.0, 0.0], texts=texts), ks=[3])["maj_at"] == {"3": 1.0}


def test_undecided_samples_are_left_out_and_counted():
    made = row(group([1.0, None]), group([None, None]), group([0.0, 0.0]), ks=[1, 2])
    assert made["num_problems"] == 3
    assert made["avg"] == 0.5  # of the two problems with a decided sample
    assert made["undecided_frac"] == 0.5
    assert made["pass_at"] == {"1": 0.5, "2": 0.0}  # two samples were decided of the last problem only


def test_nothing_decided_has_no_score():
    made = row(group([None, None]), ks=[1])
    assert all(math.isnan(made[key]) for key in ("avg", "avg_low", "avg_high"))
    assert math.isnan(made["pass_at"]["1"])
    assert made["undecided_frac"] == 1.0


class Echo:
    """An engine that says its seed's last digit."""

    def generate(self, requests, params):
        for index in reversed(range(len(requests))):
            yield TokenOutput(index, [requests[index].seed % 10], [-0.5], "stop")


class Digits:
    def token_ids(self, problem):
        return [int(problem.id)]

    def text_of(self, ids):
        return str(ids[0])


def test_an_evaluation_does_not_depend_on_the_step():
    cfg = config(
        verifier={"name": "exact_match"}, eval={"num_samples": 3, "temperature": 1.0, "pass_k": [1, 3]}
    )
    problems = [Problem(str(i), "digit?", str(i)) for i in range(8)]
    with open_scorers(cfg) as (scorer, _):
        made = [
            evaluate("d", problems, Sampler(Echo(), Digits()), scorer, cfg=cfg, step=step) for step in (0, 5)
        ]
    first, second = ({**one.row, "step": None} for one in made)
    assert first == second
    assert [g.problem.id for g in made[0].groups] == [p.id for p in problems]  # though they came in reverse
    assert len({r.seed for g in made[0].groups for r in g.rollouts}) == 24
