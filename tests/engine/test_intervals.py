"""engine/intervals.py against the reference vectors and small cases worked out by hand."""

import itertools
import math
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import load
from verigrad.engine.intervals import (
    Z_95,
    maj_at_k,
    maj_at_ks,
    mean_interval,
    paired_difference,
    paired_gain,
    pass_at_k,
    sign_flip_p,
)


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
    assert maj_at_k(votes, rewards, k) == pytest.approx(sum(credits) / len(credits), abs=1e-10)


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


def test_all_alike_between_right_and_wrong_is_no_certainty():
    mean, low, high = mean_interval([[1.0, 0.0]] * 4)
    half = Z_95**2 / (4 + Z_95**2)
    assert (mean, low, high) == pytest.approx((0.5, max(0.0, 0.5 - half), min(1.0, 0.5 + half)))


@pytest.mark.parametrize(
    "votes",
    [
        ["right"] * 100 + ["a"] * 60 + ["b"] * 40 + [None] * 20 + [f"noise {i}" for i in range(36)],
        ["right"] * 20 + [f"noise {i}" for i in range(236)],
        ["right"] * 128 + ["a"] * 128,
    ],
)
def test_maj_at_k_of_256_samples_is_quick_and_agrees_with_drawing(votes):
    rewards = [float(vote == "right") for vote in votes]
    started = time.process_time()
    exact = maj_at_ks(votes, rewards, [1, 2, 16, 256])
    assert time.process_time() - started < 2
    assert exact[1] == pytest.approx(sum(rewards) / 256)
    assert exact[2] == pytest.approx(exact[1]) or None in votes  # of two votes, a tie is a draw of one
    rng, credit = random.Random(0), 0.0
    for _ in range(4000):
        cast = Counter(vote for vote in rng.sample(votes, 16) if vote is not None)
        winners = [vote for vote, count in cast.items() if count == max(cast.values())]
        credit += ("right" in winners) / len(winners)
    assert exact[16] == pytest.approx(credit / 4000, abs=4 * 0.5 / 4000**0.5)  # four standard errors
    most = max(Counter(votes).values())
    assert exact[256] == pytest.approx(
        (votes.count("right") == most) / (1 + (votes.count("a") == most == 128))
    )


def test_maj_at_k_of_more_samples_than_one_table_holds():
    votes = ["right"] * 700 + ["a"] * 800
    rewards = [float(vote == "right") for vote in votes]
    few, many = maj_at_ks(votes, rewards, [1, 3]), maj_at_ks(votes, rewards, [1499, 1500])
    p = 700 / 1500
    three = p * (699 / 1499) * (698 / 1498) + 3 * (700 * 699 * 800) / (1500 * 1499 * 1498)
    assert few == pytest.approx({1: p, 3: three}, abs=1e-9)
    assert many == pytest.approx({1499: 0.0, 1500: 0.0}, abs=1e-9)


def test_an_answer_earns_the_mean_of_its_samples():
    assert maj_at_k(["a", "a", "b"], [1.0, 0.5, 0.0], 3) == pytest.approx(0.75)


def test_votes_for_nothing_earn_nothing():
    assert maj_at_k([None, None], [0.0, 0.0], 2) == 0.0


def test_two_models_are_compared_problem_by_problem():
    vector = load("paired_difference")
    made = paired_difference(vector.inputs["model_a"], vector.inputs["model_b"])
    assert made.gain == pytest.approx(0.05)
    assert (made.num_better, made.num_worse, made.num_same) == (2, 1, 2)
    # The changes 1/4, 1/4, -1/4: of the 8 ways to flip them, all have a sum of at least 1/4.
    assert made.p == 1.0


def test_p_of_a_clear_gain_is_exact_for_few_problems():
    assert sign_flip_p([0.5] * 6 + [0.0] * 9) == pytest.approx(2 / 2**6)
    assert sign_flip_p([0.3, 0.2, -0.1]) == pytest.approx(4 / 8)  # 6, 4, -4, -6 of the sums reach 4 tenths


def test_p_of_no_change_is_one():
    assert sign_flip_p([0.0] * 5) == 1.0
    assert sign_flip_p([]) == 1.0


def test_p_of_many_problems_is_drawn_and_near_the_exact_one():
    changes = [1.0] * 15 + [-1.0] * 5
    exact = 2 * sum(math.comb(20, i) for i in range(6)) / 2**20  # a sign test: 0.0414
    assert sign_flip_p(changes) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))
    assert sign_flip_p(changes) == sign_flip_p(changes)
    assert sign_flip_p([1.0] * 400) == pytest.approx(1 / 20_001)
