"""engine/intervals.py against the reference vectors and small cases worked out by hand."""

import itertools
import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import load
from verigrad.engine.intervals import Z_95, maj_at_k, mean_interval, paired_gain, pass_at_k


def test_pass_at_k_matches_the_reference():
    vector = load("pass_at_k")
    values = [pass_at_k(*case) for case in vector.inputs["cases"]]
    vector.check(values, "values")
    assert max(abs(v - b) for v, b in zip(values, vector.expected["biased_plugin"], strict=True)) > 1e-3


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_refuses_more_draws_than_samples(k):
    with pytest.raises(ValueError, match="between 1 and"):
        pass_at_k(4, 2, k)


def test_maj_at_k_matches_the_reference():
    vector = load("maj_at_k")
    answers = vector.inputs["answers"]
    rewards = [float(answer == vector.inputs["gold"]) for answer in answers]
    vector.check(maj_at_k(answers, rewards, vector.params["k"]), "value")


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=7), st.data())
def test_maj_at_k_is_the_mean_over_all_subsets(votes, data):
    k = data.draw(st.integers(1, len(votes)))
    rewards = [1.0 if vote in ("a", "b") else 0.25 if vote == "c" else 0.0 for vote in votes]
    credits = []
    for subset in itertools.combinations(range(len(votes)), k):
        cast = [votes[i] for i in subset if votes[i] is not None]
        most = max((cast.count(vote) for vote in cast), default=0)
        winners = {vote for vote in cast if cast.count(vote) == most}
        credits.append(sum(rewards[votes.index(vote)] for vote in winners) / max(len(winners), 1))
    assert maj_at_k(votes, rewards, k) == pytest.approx(sum(credits) / len(credits), abs=1e-12)


def test_maj_at_k_of_many_samples_is_quick_and_near_its_limit():
    votes = ["right"] * 40 + ["wrong"] * 20 + [f"noise {i}" for i in range(20)]
    value = maj_at_k(votes, [float(vote == "right") for vote in votes], 64)
    assert value == pytest.approx(1.0, abs=1e-6)


def test_intervals_count_problems_not_samples():
    vector = load("avg_at_k_and_intervals")
    mean, low, high = mean_interval(vector.inputs["correct"])
    vector.check(mean, "avg_at_k")
    vector.check([low, high], "normal_ci_clustered")
    vector.check((high - low) / (2 * Z_95), "se_clustered")
    assert abs((high - low) / (2 * Z_95) - vector.expected["se_iid_wrong"]) > 0.05


def test_one_sample_per_problem_gives_wilsons_interval():
    vector = load("avg_at_k_and_intervals")
    first = [row[:1] for row in vector.inputs["correct"]]
    mean, low, high = mean_interval(first)
    assert mean == pytest.approx(0.6)
    vector.check([low, high], "wilson_first_sample")


def test_an_evaluation_with_nothing_right_is_still_uncertain():
    mean, low, high = mean_interval([[0.0, 0.0]] * 10)
    assert (mean, low) == (0.0, 0.0)
    assert high == pytest.approx(Z_95**2 / (10 + Z_95**2))


def test_one_problem_has_no_interval():
    mean, low, high = mean_interval([[1.0, 0.0]])
    assert mean == 0.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_no_problems_are_refused():
    with pytest.raises(ValueError, match="0 problems"):
        mean_interval([])


def test_gain_is_paired_by_problem():
    vector = load("paired_difference")
    gain, low, high = paired_gain(vector.inputs["model_a"], vector.inputs["model_b"])
    vector.check(gain, "diff")
    vector.check((high - low) / (2 * Z_95), "se_paired")
    assert abs((high - low) / (2 * Z_95) - vector.expected["se_unpaired"]) > 0.1


def test_gain_needs_the_same_problems():
    with pytest.raises(ValueError, match="shorter"):
        paired_gain([1.0, 0.0], [1.0])


def test_intervals_do_not_import_torch():
    code = "import sys, verigrad.engine.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_change_on_few_problems_is_no_certainty():
    gain, low, high = paired_gain([0.0] * 20, [0.0] * 20)
    bound = 1.959963984540054**2 / (20 + 1.959963984540054**2)  # Wilson's upper bound of 0 of 20
    assert gain == 0
    assert (low, high) == pytest.approx((-bound, bound))


def test_the_interval_of_a_share_stays_a_share():
    _, low, high = mean_interval([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert low == 0.0
    assert high < 1
