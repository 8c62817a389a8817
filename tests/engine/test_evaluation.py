"""Evaluations by hand: which keys, which numbers, what is left out."""

import math

import pytest

from tests.tiny import config
from verigrad.engine.config import ConfigError
from verigrad.engine.evaluation import evaluate, require_column, summarise, vote_of
from verigrad.engine.rollout import Sampler, TokenOutput
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.engine.scoring import open_scorers
from verigrad.engine.verifier_health import UndecidedError
from verigrad.verifiers.base import Problem, Verdict
from verigrad.verifiers.pool_stats import CLOCKED

HOUSE_KEYS = {
    "step", "data", "num_problems", "num_samples", "avg", "avg_low", "avg_high",
    "pass_at", "pass_at_low", "pass_at_high", "maj_at", "maj_at_low", "maj_at_high",
    "truncated_frac", "undecided_frac", "completion_tokens_mean",
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
    with open_scorers(cfg) as (scorer, _judges):
        made = [
            evaluate("d", problems, Sampler(Echo(), Digits()), scorer, cfg=cfg, step=step) for step in (0, 5)
        ]
    timed = {f"verify/{name}" for name in CLOCKED} | {"step"}
    first, second = ({k: v for k, v in one.row.items() if k not in timed} for one in made)
    assert first["verify/right_frac"] + first["verify/wrong_frac"] == 1
    assert first == second
    assert [g.problem.id for g in made[0].groups] == [p.id for p in problems]  # though they came in reverse
    assert len({r.seed for g in made[0].groups for r in g.rollouts}) == 24


def read(reward, extracted="", text="5", outcome=None):
    """One sample and its verdict."""
    outcome = outcome or ("right" if reward >= 1 else "wrong")
    rollout = Rollout([1, 2], [False, True], [0.0, -1.0], [-1, 0], text, "stop", 0)
    return rollout, Verdict(reward, outcome, extracted=extracted)


def test_right_attempts_vote_together_however_they_are_written():
    samples = [
        read(1.0, "1/2"),
        read(1.0, "0.5"),
        read(0.0, "3", "it is 3"),
        read(0.0, "3", "3!"),
        read(0.0, "4"),
    ]
    groups = [VerifiedGroup(Problem("p", "q"), [r for r, _ in samples], [v for _, v in samples])]
    # Two right, two of "3", one of "4": of all five, the first two tie.
    assert row(*groups, ks=[5])["maj_at"] == {"5": pytest.approx(0.5)}


def test_wrong_attempts_vote_by_what_was_read_then_by_text_and_nothing_casts_no_vote():
    assert vote_of(*read(0.0, "3", "it is 3")) == vote_of(*read(0.0, "3", "3."))
    assert vote_of(*read(0.0, "", "<think>7</think> 3 ")) == vote_of(*read(0.0, "", "3"))
    assert vote_of(*read(0.0, "3")) != vote_of(*read(0.0, "", "3"))
    assert vote_of(*read(0.0, "", " ")) is None
    assert vote_of(*read(0.0, "3", outcome="unparseable")) is None
    assert vote_of(*read(2.0, "", "")) is not None


def test_a_wrong_answer_that_is_paid_for_its_format_is_not_right():
    samples = [read(1.0, "3", outcome="partial")] * 3 + [read(2.0, "5", outcome="right")] * 2
    samples.append(read(0.5, "5", outcome="right"))  # right, less a penalty
    samples.append((samples[0][0], Verdict.undecided("broken")))
    paid = VerifiedGroup(Problem("p", "q"), [r for r, _ in samples], [v for _, v in samples])
    made = row(paid, ks=[1, 3, 4, 6])
    assert made["avg"] == pytest.approx(7.5 / 6)  # the mean reward is what was paid
    # 3 of 6 are right: 1 of the 20 threes holds none, and votes are even by symmetry.
    assert made["pass_at"] == pytest.approx({"1": 0.5, "3": 0.95, "4": 1.0, "6": 1.0})
    assert made["maj_at"] == pytest.approx({"1": 0.5, "3": 0.5, "4": 0.5, "6": 0.5})


def test_a_problem_keeps_its_seeds_in_another_order_subset_or_set():
    cfg = config(verifier={"name": "exact_match"}, eval={"num_samples": 3, "temperature": 1.0})
    problems = [Problem(str(i), "digit?", str(i)) for i in range(8)]

    def seeds(data, some):
        with open_scorers(cfg) as (scorer, _judges):
            made = evaluate(data, some, Sampler(Echo(), Digits()), scorer, cfg=cfg, step=0)
        return {g.problem.id: [r.seed for r in g.rollouts] for g in made.groups}

    whole, some = seeds("d", problems), seeds("e", problems[5:1:-1])
    assert some == {name: whole[name] for name in ("5", "4", "3", "2")}
    assert len({seed for each in whole.values() for seed in each}) == 24


def test_pass_and_majority_have_intervals_over_problems():
    made = row(group([1.0, 0.0]), group([1.0, 0.0]), group([1.0, 1.0]), group([0.0, 0.0]), ks=[1, 2])
    half = 1.959963984540054 * math.sqrt(1 / 6) / 2  # pass@1 of the problems: 1/2, 1/2, 1 and 0
    assert made["pass_at_low"]["1"] == pytest.approx(0.5 - half)
    assert made["pass_at_high"]["1"] == pytest.approx(0.5 + half)
    z2 = 1.959963984540054**2  # pass@2 is 1, 1, 1, 0: Wilson's interval of 3 of 4
    centre, half = (0.75 + z2 / 8) / (1 + z2 / 4), math.sqrt(z2 * (0.1875 / 4 + z2 / 64)) / (1 + z2 / 4)
    assert made["pass_at_low"]["2"] == pytest.approx(centre - half)
    assert made["pass_at_high"]["2"] == pytest.approx(centre + half)
    assert made["maj_at_low"]["2"] < made["maj_at"]["2"] < made["maj_at_high"]["2"]


def of_level(rewards, **meta):
    made = group(rewards)
    return VerifiedGroup(Problem("p", "q", "a", meta), made.rollouts, made.verdicts)


def test_categories_have_scores_of_their_own():
    groups = [of_level([1.0, 0.0], level=10), of_level([1.0, 1.0], level=2), of_level([0.0, 0.0])]
    made = summarise("d", groups, step=0, ks=[2], by="level")["by"]
    assert list(made) == ["2", "10", "(none)"]
    assert [one["avg"] for one in made.values()] == [1.0, 0.5, 0.0]
    assert [one["num_problems"] for one in made.values()] == [1, 1, 1]
    assert made["10"]["pass_at"] == {"2": 1.0}
    assert "by" not in summarise("d", groups, step=0, ks=[2], by="topic")


def test_a_column_that_no_set_has_is_refused():
    sets = {"a": [Problem("1", "q", "a", {"level": 1})], "b": [Problem("2", "q", "a")]}
    require_column("level", sets)
    require_column("", {})
    with pytest.raises(ConfigError, match=r"eval\.by = 'levl': no held-out problem .* they have level"):
        require_column("levl", sets)


def test_the_mean_length_counts_sampled_tokens():
    assert row(group([1.0, 0.0]))["completion_tokens_mean"] == 1.0


def test_a_set_has_its_own_number_of_samples_and_k_beyond_it_are_not_reported():
    evals = {"few": {"path": "x", "num_samples": 2, "temperature": 0.5}, "plain": {"path": "x"}}
    cfg = config(
        verifier={"name": "exact_match"}, data={"evals": evals},
        eval={"num_samples": 3, "temperature": 1.0, "pass_k": [1, 3]},
    )  # fmt: skip
    with open_scorers(cfg) as (_, judges):
        few, plain = (
            evaluate(
                d, [Problem("1", "?", "1")], Sampler(Echo(), Digits()), judges.of(d), cfg=cfg, step=0
            ).row
            for d in evals
        )
    assert (few["num_samples"], list(few["pass_at"])) == (2, ["1"])
    assert (plain["num_samples"], list(plain["pass_at"])) == (3, ["1", "3"])


def test_too_many_undecided_end_it_clearly():
    cfg = config(verifier={"name": "exact_match", "max_undecided_frac": 0.25}, eval={"num_samples": 1})
    problems = [Problem("1", "?", "1"), Problem("2", "?", None)]
    with (
        open_scorers(cfg) as (_, judges),
        pytest.raises(UndecidedError, match=r"evaluation d: .*could not decide 1 of 2 attempts .*no answer"),
    ):
        evaluate("d", problems, Sampler(Echo(), Digits()), judges.of("d"), cfg=cfg, step=0)
