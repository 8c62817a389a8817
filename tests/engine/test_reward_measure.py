"""What is measured of reward models: accuracy, calibration and lean on length, worked out by hand."""

import math

import numpy as np
import pytest

from verigrad.engine.reward_audit import best_answers, probe, report
from verigrad.engine.reward_data import Comparison, LabelledSteps
from verigrad.engine.reward_measure import (
    Judged,
    calibration_error,
    comparison_row,
    fisher_interval,
    lean_on_length,
    partial_correlation,
    reliability,
    right,
    steps_row,
)
from verigrad.engine.reward_model import Scored
from verigrad.engine.reward_text import Text


def judged(rewards, lengths=None, *, ranks=None, prompt=0, **values):
    lengths = lengths or [1] * len(rewards)
    texts = [Text([1] * n, [n - 1], n) for n in lengths]
    ranks = ranks or list(range(len(rewards)))
    names = [f"answer {k}" for k in range(len(rewards))]
    one = Comparison(["p"] * len(rewards), names, texts, ranks, **values)
    probs = [1 / (1 + math.exp(rewards[j] - rewards[i])) for i, j in one.pairs]
    return Judged(one, prompt, rewards, probs)


def test_a_row_is_right_as_far_as_its_pairs_are():
    assert right(judged([2.0, 1.0])) == 1.0
    assert right(judged([1.0, 1.0])) == 0.0  # equal rewards prefer nothing
    assert right(judged([1.0, 2.0], p_chosen=0.5)) is None
    assert right(judged([3.0, 1.0, 2.0])) == pytest.approx(2 / 3)
    assert right(judged([3.0, 1.0, 3.0, 0.0], ranks=[0, 1, 1, 1])) == pytest.approx(2 / 3)
    assert right(judged([3.0, 1.0, 3.0, 0.0], ranks=[0, 1, 1, 1], best_of=True)) == 0.0
    assert right(judged([3.1, 1.0, 3.0, 0.0], ranks=[0, 1, 1, 1], best_of=True)) == 1.0


def test_calibration_by_hand():
    # confidences 0.9, 0.9 (both right) and 0.6 (wrong): gaps 0.1 and 0.6
    table = reliability(np.array([0.9, 0.1, 0.6]), np.array([1.0, 0.0, 0.0]))
    assert [(each["num"], each["right"]) for each in table] == [(1, 0.0), (2, 1.0)]
    assert calibration_error(table) == pytest.approx((2 * 0.1 + 0.6) / 3)
    assert math.isnan(calibration_error([]))


def test_categories_and_prompts_as_units():
    rows = [
        judged([2.0, 1.0], prompt=1, category="easy"),
        judged([1.0, 2.0], prompt=1, category="hard"),
        judged([2.0, 1.0], prompt=2, category="hard"),
    ]
    found = comparison_row(rows, by="subset")
    assert found["accuracy"] == pytest.approx(0.75)  # prompts 1/2 and 1
    assert found["by"]["easy"]["accuracy"] == 1.0
    assert found["by"]["hard"] == pytest.approx(
        {"num_rows": 2, "accuracy": 0.5, "accuracy_low": found["by"]["hard"]["accuracy_low"],
         "accuracy_high": found["by"]["hard"]["accuracy_high"]}
    )  # fmt: skip
    assert found["accuracy_of_categories"] == pytest.approx(0.75)
    assert found["reward_mean"] == pytest.approx(1.5)


def test_a_reward_that_is_length_is_seen_within_and_at_equal_preference():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, size=(200, 2))
    rows = [judged([float(a), float(b)], [a, b], prompt=k) for k, (a, b) in enumerate(lengths.tolist())]
    found = lean_on_length(rows)
    assert found["length_corr_within"] == pytest.approx(1.0)
    assert found["length_corr_equal"] == pytest.approx(1.0)


def test_preferring_what_is_longer_is_no_lean_at_equal_preference():
    """The better one is always 5 longer; the reward knows which is better and nothing else."""
    rng = np.random.default_rng(1)
    rows = []
    for k in range(400):
        long, short = 10 + int(rng.integers(0, 5)), 5 + int(rng.integers(0, 5))
        rows.append(judged([1 + rng.normal() / 10, 0.0], [long, short], prompt=k))
    found = lean_on_length(rows)
    assert found["length_corr_within"] > 0.8
    assert abs(found["length_corr_equal"]) < 0.15
    ties = [judged([one.rewards[0], 0.0], [3, 3], prompt=k, p_chosen=0.5) for k, one in enumerate(rows)]
    assert math.isnan(lean_on_length(ties)["length_corr_equal"])
    assert lean_on_length(ties)["num_ties"] == 400


def test_intervals_of_correlations_by_hand():
    low, high = fisher_interval(0.5, 28)
    half = 1.959963984540054 / 5
    assert (low, high) == pytest.approx(
        (math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half))
    )
    assert math.isnan(fisher_interval(0.5, 3)[0])


def test_partial_correlation_takes_out_what_is_given():
    given = np.arange(50.0)
    noise = np.sin(given * 7)
    assert partial_correlation(given * 3 + noise, given * 2 - noise, given) == pytest.approx(-1.0)


def test_steps_are_measured_one_by_one():
    def example(labels, n):
        return LabelledSteps("p", ["s"] * len(labels), Text([1] * n, [0], n), labels)

    examples = [example([1.0, 0.0], 4), example([1.0], 2), example([0.0, 1.0, 1.0], 9)]
    scores = [[0.9, 0.2], [0.4], [0.1, 0.9, 0.8]]
    found = steps_row(examples, scores, [0.2, 0.4, 0.1], [1, 2, 3])
    assert found["num_steps"] == 6
    assert found["accuracy"] == pytest.approx((1 + 0 + 1) / 3)
    losses = [0.9, 0.8, 0.4, 0.9, 0.9, 0.8]
    assert found["loss"] == pytest.approx(-sum(map(math.log, losses)) / 6)


# Audit ------------------------------------------------------------------------------------------------------


class Length:
    """A reward that is the length of the answer, whatever the prompt."""

    def judge(self, prompts, responses):
        return [Scored(float(len(response))) for response in responses]


class Honest:
    """A reward for naming the prompt once."""

    def judge(self, prompts, responses):
        return [
            Scored(-abs(1.0 - response.split().count(p)))
            for p, response in zip(prompts, responses, strict=True)
        ]


def test_probes_tell_a_bad_reward_from_an_honest_one():
    prompts = ["sun", "sea", "tea"]
    bad = probe(Length(), prompts, prompts, separator=" ")
    assert (bad["own_prompt_wins"], bad["empty_wins"], bad["repeated_wins"]) == (0.0, 0.0, 1.0)
    good = probe(Honest(), prompts, prompts, separator=" ")
    assert (good["own_prompt_wins"], good["empty_wins"], good["repeated_wins"]) == (1.0, 0.0, 0.0)


def test_the_report_refuses_by_length_alone_and_tells_the_rest():
    lean = lean_on_length([judged([float(a), 0.0], [a, 1], prompt=a) for a in range(2, 12)])
    probes = {"num_answers": 3, "own_prompt_wins": 0.1, "empty_wins": 0.5, "repeated_wins": 0.9}
    found = report(lean, probes, max_length_corr=0.5, agreement=None)
    assert found["refused"]
    assert "goes with length by +1.00" in found["reason"]
    assert len(found["findings"]) == 3
    harmless = {"length_corr_equal": -0.2, "length_corr_within": 0.3}
    found = report(harmless, {**probes, "own_prompt_wins": 1.0}, max_length_corr=0.5, agreement=None)
    assert not found["refused"]
    unknown = report({"length_corr_equal": math.nan}, probes, max_length_corr=0.5, agreement=None)
    assert not unknown["refused"]
    assert "cannot be told" in unknown["findings"][0]


def test_a_handful_of_pairs_refuses_nothing():
    probes = {"num_answers": 3, "own_prompt_wins": 1.0, "empty_wins": 0.0, "repeated_wins": 0.0}

    def seen(num):
        """Differences in reward of 3 and -1 by turns, each with one token more: correlation about 0.4."""
        pairs = [judged([3.0 if k % 2 == 0 else -1.0, 0.0], [2, 1], prompt=k) for k in range(num)]
        lean = lean_on_length(pairs)
        return lean["length_corr_within"], report(lean, probes, max_length_corr=0.3, agreement=None)

    for num, corr in ((1, 1.0), (4, 0.447), (8, 0.447)):
        found, audit = seen(num)
        assert found == pytest.approx(corr, abs=1e-3)
        assert not audit["refused"]
        assert any("too few pairs to refuse it" in line for line in audit["findings"])
    assert seen(40)[1]["refused"]


def test_probes_are_tried_on_the_best_answers():
    one = Comparison(["p", "p"], ["good", "bad"], [], [0, 1])
    right_steps = LabelledSteps("p", ["a", "b"], Text([1], [0]), [1.0, 0.8])
    wrong_steps = LabelledSteps("p", ["a", "b"], Text([1], [0]), [1.0, 0.2])
    assert best_answers([one], separator="\n") == (["p"], ["good"])
    assert best_answers([right_steps, wrong_steps], separator="\n") == (["p"], ["a\nb\n"])
