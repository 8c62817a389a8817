"""The mix that math_answer and math-verify are raced on: made by a seed, half right, and right is right."""

import sys
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(HERE))

import math_mix  # noqa: E402
import math_side  # noqa: E402
import math_verifier  # noqa: E402

from verigrad.verifiers.base import Attempt  # noqa: E402


def test_the_mix_is_what_the_page_says():
    rows = math_mix.mix(3, 300, num_samples=4)
    assert rows == math_mix.mix(3, 300, num_samples=4)
    assert len(rows) == 1200
    assert 0.45 < sum(row["right"] for row in rows) / len(rows) < 0.55
    lengths = [len(row["response"]) for row in rows]
    assert min(lengths) >= 190
    assert 25_000 < max(lengths) < 31_000
    shares = Counter(row["kind"] for row in rows)
    assert 0.5 < shares["integer"] / len(rows) < 0.66
    assert set(shares) == set(math_mix.KINDS)
    assert 0.4 < sum(row["response"].startswith("<think>") for row in rows) / len(rows) < 0.6


def test_both_sides_judge_what_they_are_given():
    rows = math_mix.mix(5, 60, num_samples=2)
    said = [math_side.ours(Attempt(row["response"]).final_text, row["answer"]).reward == 1.0 for row in rows]
    assert said == [row["right"] for row in rows]
    assert math_side.math_verify(r"so $\boxed{\frac{1}{2}}$", "0.5")
    assert not math_side.math_verify(r"so $\boxed{3}$", "0.5")


def test_intervals_and_percentiles_by_hand():
    assert math_verifier.wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert math_verifier.wilson(10, 10)[1] == pytest.approx(1.0)
    assert math_verifier.percentile(list(range(100)), 0.99) == 99
    assert math_verifier.percentile([5.0], 0.99) == 5.0


def test_a_ratio_is_taken_within_its_round():
    rows = [{"kind": "integer", "right": True}, {"kind": "root", "right": False}]
    rounds = [
        [{"right": True, "cpu_s": 0.1, "wall_s": 1.0}, {"right": True, "cpu_s": 0.3, "wall_s": 1.0}]
    ] * 2
    found = math_verifier.summary(rows, rounds)
    assert found["answers_per_cpu_s"] == pytest.approx(5.0)
    assert found["judged_as_made"] == 0.5
    assert found["mean_ms_by_kind"] == {"integer": pytest.approx(100), "root": pytest.approx(300)}
