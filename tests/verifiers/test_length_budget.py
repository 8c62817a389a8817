"""length_budget: every formula at lengths worked out by hand, and padding that must not count."""

import math
import time

import pytest

from verigrad.verifiers import length_budget as module
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.binding import bind


def load(**options):
    return bind(module.length_budget, name="length_budget", source="here", options=options)


def judge(length, **options):
    text = length if isinstance(length, str) else "word " * length
    (verdict,) = load(**options).judge(Problem("p", "?"), [Attempt(text)])
    return verdict


@pytest.mark.parametrize(
    ("length", "reward", "outcome"),
    [
        (0, 1.0, "right"),
        (99, 1.0, "right"),
        (100, 1.0, "right"),
        (101, 0.99, "partial"),
        (150, 0.5, "partial"),
        (199, 0.01, "partial"),
        (200, 0.0, "wrong"),
        (1000, 0.0, "wrong"),
    ],
)
def test_max_pays_in_full_up_to_the_budget(length, reward, outcome):
    verdict = judge(length, budget=100, slope=0.01)
    assert (verdict.reward, verdict.outcome) == (pytest.approx(reward, abs=1e-9), outcome)


@pytest.mark.parametrize(
    ("length", "reward"), [(0, 1.0), (50, 1.0), (60, 0.9), (100, 0.5), (120, 0.3), (150, 0.0), (151, 0.0)]
)
def test_max_as_in_l1_pays_half_at_the_budget(length, reward):
    assert judge(length, budget=100, slope=0.01, at_budget=0.5).reward == pytest.approx(reward, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "reward"),
    [(100, 1.0), (99, 0.99), (101, 0.99), (50, 0.5), (150, 0.5), (0, 0.0), (200, 0.0), (900, 0.0)],
)  # fmt: skip
def test_exact_pays_by_distance(length, reward):
    assert judge(length, budget=100, slope=0.01, mode="exact").reward == pytest.approx(reward, abs=1e-9)


@pytest.mark.parametrize(
    ("length", "reward"),
    [
        (0, 1.0),
        (25, (1 + math.sqrt(0.5)) / 2),
        (50, 0.5),
        (75, (1 - math.sqrt(0.5)) / 2),
        (100, 0.0),
        (101, 0.0),
    ],
)
def test_cosine_falls_along_half_a_cosine(length, reward):
    assert judge(length, budget=100, mode="cosine").reward == pytest.approx(reward, abs=1e-9)


def test_cosine_may_end_above_0_but_beyond_the_budget_pays_nothing():
    assert judge(100, budget=100, mode="cosine", at_budget=0.5).reward == pytest.approx(0.5)
    assert judge(50, budget=100, mode="cosine", at_budget=0.5).reward == pytest.approx(0.75)
    assert judge(101, budget=100, mode="cosine", at_budget=0.5).reward == 0.0
    assert judge(0, budget=100, mode="cosine", at_budget=0.5).outcome == "right"


@pytest.mark.parametrize(
    ("text", "num_words", "num_characters"),
    [
        ("", 0, 0),
        (" \n\t ", 0, 0),
        ("one two", 2, 6),
        ("one  \n two\n\n", 2, 6),
        ("one-two", 2, 7),
        ("... !!! ---", 0, 9),
        ("don't", 2, 5),
        ("o\u200bne\u200b \u200b", 1, 3),
        ("x" * 20, 1, 20),
        ("x" * 21, 21, 21),
        ("onetwothreefourfivesixseven", 27, 27),
        ("长度预算", 4, 4),
        ("한국어 문장", 2, 5),
        ("a_b", 2, 3),
        ("\x00\x01", 0, 0),
        ("\ud800", 0, 1),
        ("e\u0301e\u0301", 1, 2),
    ],
)
def test_padding_and_glue_do_not_change_the_length(text, num_words, num_characters):
    assert judge(text, budget=9).reason == f"{num_words} words, budget 9"
    assert judge(text, budget=9, unit="characters").reason == f"{num_characters} characters, budget 9"


def test_thinking_counts_unless_told_otherwise():
    text = "<think>one two three</think>four"
    assert judge(text, budget=9).reason == "6 words, budget 9"  # with the two tags' names
    assert judge(text, budget=9, of="final_text").reason == "1 words, budget 9"


def test_the_budget_may_stand_in_the_row():
    (verdict,) = load(slope=0.5).judge(Problem("p", "?", None, {"budget": 2}), [Attempt("a b c")])
    assert verdict.reward == 0.5
    with pytest.raises(ValueError, match="needs 'budget'"):
        load().check_row(Problem("p", "?"))
    with pytest.raises(ValueError, match="budget = 0; expected a whole number from 1"):
        load().judge(Problem("p", "?", None, {"budget": 0}), [Attempt("a")])


@pytest.mark.parametrize(
    "options",
    [{"budget": -1}, {"budget": 2.5}, {"mode": "min"}, {"unit": "tokens"}, {"of": "text"}, {"slope": 0},
     {"slope": float("inf")}, {"at_budget": 2}, {"at_budget": None}],
)  # fmt: skip
def test_bad_options_are_refused_when_it_is_loaded(options):
    with pytest.raises(ValueError, match=r"length_budget: .* expected"):
        load(**options)


def test_an_option_without_effect_is_refused():
    with pytest.raises(ValueError, match="no effect with mode = 'exact'"):
        load(budget=1, mode="exact", at_budget=0.5)
    with pytest.raises(ValueError, match="no effect with mode = 'cosine'"):
        load(budget=1, mode="cosine", slope=0.5)


def test_the_longest_text_takes_a_moment():
    started = time.perf_counter()
    judge("ﷺ" * 50_000, budget=10)
    assert time.perf_counter() - started < 3
