"""The comparison rules of code verifiers, by hand: what is the same, and what only looks so."""

import math

import pytest

from verigrad.verifiers.code_compare import longest_first, same_output, same_value
from verigrad.verifiers.code_view import MAX_BITS, MAX_DEPTH, NotPlain, decode, encode


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("3\n", "3", True),
        ("  3 \r\n\n\n", "3\n", True),
        ("1 2\n3", "1  2\n\n3\n", True),
        ("1 2 3", "1 2\n3", False),
        ("03", "3", False),
        ("3.0", "3", False),
        ("3 4", "3", False),
        ("", "3", False),
        ("", "", True),
        ("3\u00a0", "3", False),
        ("3\u2028", "3", False),
        ("1\x1c2", "1\n2", False),
        ("\u0663", "3", False),
        ("YES", "Yes", False),
    ],
)
def test_tokens(found, expected, same):
    assert same_output(found.encode(), expected.encode()) == same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [("a b\n", "a b", True), ("a b", "a b\n", True), ("a b\n\n", "a b\n", False), ("a  b", "a b", False)],
)
def test_exact(found, expected, same):
    assert same_output(found.encode(), expected.encode(), compare="exact") == same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("0.333333", "0.33333349", True),
        ("0.33", "0.34", False),
        ("1000000.5", "1000000", True),  # 0.5 <= 1e-6 * 1e6
        ("1000002", "1000000", False),
        ("0", "1000000", False),  # scaled by what is expected, not by what was printed
        ("1e3", "1000", True),
        ("+1000.", "1000", True),
        (".5", "0.5", True),
        ("nan", "1", False),
        ("nan", "nan", True),  # the same text
        ("inf", "1e308", False),
        ("1e999", "1", False),
        ("1", "1e999", False),
        ("1_0", "10", False),
        ("0x1p3", "8", False),
        ("\u0661", "1", False),
        ("9" * 500, "9" * 499 + "8", False),  # too long for a number, and another text
        ("1 2", "1", False),
        ("ok 1.0000001", "ok 1", True),
        ("no 1.0000001", "ok 1", False),
    ],
)
def test_float(found, expected, same):
    assert same_output(found.encode(), expected.encode(), compare="float", tolerance=1e-6) == same


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (1, 1, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (None, None, True),
        (None, False, False),
        (0, None, False),
        (2.0, 2, True),
        (2, 2.0, True),
        (2.0000000001, 2, False),  # an int is exact
        (2.0000000001, 2.0, True),
        (2.00001, 2.0, False),
        (1e-30, 0.0, False),
        (1e-30, 2e-30, False),
        (10**16 + 1, 10**16, False),
        (float(10**16), 10**16 + 1, False),
        (math.nan, math.nan, False),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        (-math.inf, math.inf, False),
        (10**400, 1e308, False),
        (1.0, 10**400, False),
        (1 + 2j, 1 + 2j, True),
        (1 + 2j, 1, False),
        ("a", "a", True),
        ("a", b"a", False),
        ("1", 1, False),
        ([1, 2], (1, 2), True),
        ([1, [2, (3,)]], (1, (2, [3])), True),
        ([1, 2], [1, 2, 3], False),
        ([1, 2], [2, 1], False),
        ([True], [1], False),
        ("ab", ["a", "b"], False),
        ({1, 2}, {2, 1}, True),
        ({1, 2}, [1, 2], False),
        ({True}, {1}, False),
        ({0.1 + 0.2}, {0.3}, True),
        ({1.0, 2.5}, {1.0, 2.6}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({1: "a"}, {"1": "a"}, False),
        ({True: "a"}, {1: "a"}, False),
        ({(1, 2): [0.1 + 0.2]}, {(1, 2): (0.3,)}, True),
        ([], (), True),
        ([], {}, False),
        ([], None, False),
        ("", None, False),
    ],
)
def test_values(found, expected, same):
    assert same_value(found, expected) is same


def test_a_tolerance_is_scaled_by_what_is_expected():
    assert same_value(0.001, 0.0, tolerance=0.01)
    assert same_value(109.0, 100.0, tolerance=0.1)
    assert not same_value(100.0, 1.0, tolerance=0.1)
    assert not same_value(11, 10, tolerance=0.2), "between ints there is no tolerance"
    assert not same_value(math.inf, 1.0, tolerance=1.0)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -7, 2**200, 0.1, math.inf, 1 + 2j, "ü\x00\ud800", b"\xff", [], [1, [2]], (1, (2, [3])),
     {1, 2}, {"a": {2: (3,)}}, {(1, 2): {3}}, {frozenset({1, 2}), 3}],
)  # fmt: skip
def test_a_view_keeps_the_value(value):
    back = decode(encode(value))
    assert back == value
    assert repr(type(back)) == repr(type(value))


def test_a_set_of_sets_and_nan_come_back():
    assert decode(encode({frozenset({1})})) == {frozenset({1})}
    assert math.isnan(decode(encode(math.nan)))


class Pretends(int):
    """Says it is equal, an int, and nine."""

    __hash__ = None

    def __eq__(self, other):
        return True

    @property
    def __class__(self):
        return int


@pytest.mark.parametrize(
    "value",
    [Pretends(9), [Pretends(9)], {"a": Pretends(9)}, object(), iter([]), range(3), type, 2 ** (MAX_BITS + 1)],
)
def test_what_is_no_plain_data_has_no_view(value):
    with pytest.raises(NotPlain):
        encode(value)


def test_what_is_too_deep_or_too_large_has_no_view():
    deep = []
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value in (deep, [0] * 1_000_000):
        with pytest.raises(NotPlain):
            encode(value)


@pytest.mark.parametrize(
    "view",
    [{}, {"a": 1, "b": 2}, {"dict": 3}, {"dict": [1]}, {"dict": [[[1], 2]]}, {"set": [[1]]}, {"set": 1},
     {"bytes": "xyz"}, {"bytes": 3}, {"float": "1"}, {"complex": [1]}, {"object": 3}],
)  # fmt: skip
def test_what_is_no_view_is_refused(view):
    with pytest.raises(ValueError):  # noqa: PT011 - which part of it was wrong does not matter
        decode(view)


def test_the_longest_tests_come_first_and_equal_ones_keep_their_order():
    assert longest_first([1, 5, 3, 5], 3) == [1, 3, 2]
    assert longest_first([1, 5, 3], 0) == [0, 1, 2]
