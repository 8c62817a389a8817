"""Rules of options: what each refuses, when it is asked, and what an object may settle for itself."""

import math

import pytest

from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Policy, Problem, verifier
from verigrad.verifiers.binding import bind
from verigrad.verifiers.options import flag, number, one_of, shown, whole, with_options


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (flag, [True, False], [0, 1, None, "true"]),
        (one_of("a", "b"), ["a", "b"], ["c", "", None, 1, ["a"]]),
        (number(0), [0, 0.5, 10**9], [-1, True, "1", None, math.nan, math.inf]),
        (number(0, 1), [0, 1, 0.5], [1.01, -0.01, math.nan]),
        (whole(1, 3), [1, 3], [0, 4, 2.0, True, "2", None, math.nan]),
    ],
)
def test_rules(rule, good, bad):
    assert [rule(value) for value in good] == [""] * len(good)
    assert all(rule(value) for value in bad)


@verifier("limited", version="4")
@with_options(
    lambda low=0, high=9, **_: "low is above high" if low > high else "", low=whole(0, 9), high=whole(0, 9)
)
def limited(text: str, low: int = 0, high: int = 9) -> bool:
    """Right for a text of so many characters."""
    return low <= len(text) <= high


def load(**options):
    return bind(limited, name="limited", source="here", options=options)


def test_the_function_stays_what_it_was():
    assert limited("abc", low=3) is True
    assert (load().doc, load().policy.version) == ("Right for a text of so many characters.", "4")
    with pytest.raises(ValueError, match="did you mean 'high'"):
        load(hihg=3)


def test_options_are_checked_when_they_are_settled_and_columns_when_they_come():
    with pytest.raises(ValueError, match="limited: low = 10; expected a whole number from 0 to 9"):
        load(low=10)
    with pytest.raises(ValueError, match="limited: low is above high"):
        load(low=5, high=4)
    with pytest.raises(ValueError, match="limited: high = 'x'; expected"):
        load(low=5).judge(Problem("p", "?", None, {"high": "x"}), [Attempt("a")])
    with pytest.raises(ValueError, match="low is above high"):
        load(low=5).judge(Problem("p", "?", None, {"high": 4}), [Attempt("a")])


def test_a_value_is_quoted_on_one_short_line():
    assert shown("a\nb") == r"'a\nb'"
    assert len(shown(list(range(1000)))) == 80


@verifier("object", deadline_s=1.0)
class Object:
    """Settles its own policy and its own rows."""

    def __init__(self, deadline_s: float = 7.0) -> None:
        setattr(self, POLICY_ATTRIBUTE, Policy("object", deadline_s=deadline_s))

    def verify(self, text: str) -> bool:
        return bool(text)

    def check_row(self, problem: Problem) -> None:
        if "level" not in problem.meta:
            raise ValueError("no level")


def test_an_object_may_settle_its_policy_and_check_rows():
    loaded = bind(Object, name="object", source="here", options={"deadline_s": 2.0})
    assert loaded.policy.deadline_s == 2.0
    with pytest.raises(ValueError, match="no level"):
        loaded.judge(Problem("p", "?"), [Attempt("a")])
    assert loaded.judge(Problem("p", "?", None, {"level": 1}), [Attempt("a")])[0].reward == 1.0
