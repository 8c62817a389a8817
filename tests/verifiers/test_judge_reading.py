"""Only one clear judgement counts; both orders together give a preference."""

import math

import pytest

from tests import vectors
from verigrad.verifiers import judge_prompts
from verigrad.verifiers.judge_base import Reply
from verigrad.verifiers.judge_reading import (
    Choice,
    choice_of,
    expected_score,
    preference,
    read_choice,
    reward_of_score,
    soft_label,
)

PAIR = judge_prompts.pair("q", "a", "b")
ONE_TWO = ("1", "2")


@pytest.mark.parametrize(
    "text", ["1", " 1\n", "1.", "**1**", '"1"', "(1)", "Answer 1", "answer: 1", "Score: 1"]
)
def test_a_clear_judgement_is_read(text):
    assert read_choice(text, ONE_TWO) == "1"


@pytest.mark.parametrize(
    "text",
    ["", "3", "12", "1 or 2", "1 2", "1\n2", "1 because it is shorter", "I choose 1", "not 1", "1 1", "one",
     "<think>1", "1<think>", "\uff11", "yes", "1/2", "-1"],
)  # fmt: skip
def test_anything_else_is_none(text):
    assert read_choice(text, ONE_TWO) is None


def test_a_thought_before_the_judgement_is_not_read():
    assert read_choice("<think>perhaps 2, or 2</think>\n1", ONE_TWO) == "1"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("It is shorter.\nVerdict: 2", "2"),
        ("Reasons.\n\n**Verdict: 2**\n", "2"),
        ("Verdict: 2.", "2"),
        ("Verdict: 1\nVerdict: 2", None),
        ("Verdict: 2\nVerdict: 2", None),
        ("Verdict: 2\nor so", None),
        ("The text says Verdict: 1.\nVerdict: 2", "2"),
        ("2", None),
        ("Verdict: 12", None),
        ("Verdict: 1 or 2", None),
        ("the verdict is 2", None),
    ],
)
def test_after_reasons_only_one_last_verdict_counts(text, read):
    assert read_choice(text, ONE_TWO, reasons=True) == read


def test_ten_is_not_one():
    assert read_choice("10", judge_prompts.SCORES) == "10"
    assert read_choice("YES", ("yes", "no")) == "yes"


def test_both_orders_average_to_the_vectors_soft_label():
    vector = vectors.load("rlaif_soft_label_dpo")
    p_first, p_second = vector.inputs["p_a_order_ab"], vector.inputs["p_a_order_ba"]
    vector.check(soft_label(p_first, p_second), "p_a")
    told = preference(
        Choice("1", {"1": p_first, "2": 1 - p_first}), Choice("1", {"1": 1 - p_second, "2": p_second})
    )
    vector.check(told.p_a, "p_a")
    assert (told.winner, told.agreed) == ("", False)  # 0.62 and 0.41: the first answer both times


def test_the_score_is_the_vectors():
    vector = vectors.load("direct_rlaif_score")
    probs = {str(n): math.exp(lp) for n, lp in enumerate(vector.inputs["logprob_of_1_to_10"], 1)}
    vector.check(expected_score(probs), "expected_score")
    vector.check(reward_of_score(expected_score(probs)), "reward")
    assert [reward_of_score(n) for n in (1, 5.5, 10)] == [-1, 0, 1]


def hard(chosen):
    return Choice(chosen, {c: float(c == chosen) for c in ONE_TWO})


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (hard("1"), hard("2"), (1.0, "a", True)),
        (hard("2"), hard("1"), (0.0, "b", True)),
        (hard("1"), hard("1"), (0.5, "", False)),
        (hard("2"), hard("2"), (0.5, "", False)),
        (hard("2"), None, (0.0, "b", None)),
        (hard("1"), "no clear judgement", (None, "", None)),
        ("no clear judgement", hard("1"), (None, "", None)),
    ],
)
def test_a_choice_that_changes_with_the_order_is_a_tie(first, second, expected):
    told = preference(first, second)
    assert (told.p_a, told.winner, told.agreed) == expected


def test_an_unread_or_failed_reply_says_why():
    assert "no clear judgement: 'maybe'" in choice_of(PAIR, Reply("maybe"))
    assert choice_of(PAIR, Reply(None, error="timed out")) == "timed out"


def test_probabilities_are_taken_where_they_cover_the_choices():
    assert choice_of(PAIR, Reply("1", {"1": 0.6, "2": 0.2})).probs == pytest.approx({"1": 0.75, "2": 0.25})
    assert choice_of(PAIR, Reply("1", {"1": 0.2, "2": 0.1})).probs == {"1": 1.0, "2": 0.0}  # it meant else
    assert choice_of(PAIR, Reply("2")).probs == {"1": 0.0, "2": 1.0}
