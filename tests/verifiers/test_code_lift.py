"""Tests lifted to calls by the AST: which calls, what then holds, and what is left to a test process."""

import math

import pytest

from verigrad.verifiers.code_expression import NotLiftable, Result
from verigrad.verifiers.code_lift import lift, required_tests, with_check


def calls(source, **options):
    return [(call.path, list(call.args), dict(call.kwargs)) for call in lift(source, **options).calls]


def passes(source, *values, **options):
    """Which tests pass when the calls return these values."""
    lifted = lift(source, **options)
    results = [value if isinstance(value, Result) else Result(value) for value in values]
    assert len(results) == len(lifted.calls)
    return [not test.passes(results) for test in lifted.tests]


def test_an_assert_is_a_call_and_a_comparison():
    assert calls("assert f(1, [2, -3], k='a') == {'x': (1,)}") == [("f", [1, [2, -3]], {"k": "a"})]
    assert passes("assert f(1) == {'x': (1,)}", {"x": [1]}) == [True]
    assert passes("assert f(1) == {'x': (1,)}", {"x": [2]}) == [False]


@pytest.mark.parametrize(
    ("source", "right", "wrong"),
    [
        ("assert f() == 3", 3, True),
        ("assert 3 == f()", 3, 3.5),
        ("assert f() != 3", 4, 3),
        ("assert f() != 1", 2, True),  # equal to Python, another value to us: not different either way
        ("assert f() is None", None, 0),
        ("assert f() is not None", 0, None),
        ("assert f() is True", True, 1),
        ("assert f() == True", True, 1),
        ("assert f()", [1], []),
        ("assert not f()", "", "a"),
        ("assert f() in (1, 2)", 2, 3),
        ("assert f() not in [1, 2]", 3, 2),
        ("assert 'a' in f()", "cab", "cub"),
        ("assert 2 in f()", [1, 2], [True, 3]),
        ("assert 1 < f() <= 3", 3, 4),
        ("assert f() > 1", 2, math.nan),
        ("assert not f() > 1", 1, math.nan),
        ("assert abs(f() - 2) < 1e-6", 2.0000001, 2.1),
        ("assert f() + 1 == 3", 2, "2"),
        ("assert -f() == 3", -3, 3),
        ("assert f()[0] == 1", [1, 2], []),
        ("assert f()['a'][1:] == [2]", {"a": [1, 2]}, {"a": 3}),
        ("assert len(f()) == 2", "ab", 7),
        ("assert sorted(f()) == [1, 2]", [2, 1], [1, "a"]),
        ("assert set(f()) == {1, 2}", [2, 1, 1], [1]),
        ("assert round(f(), 2) == 3.14", math.pi, 3.2),
        ("assert isinstance(f(), list)", [], ()),
        ("import math\nassert math.isclose(f(), math.pi)", 3.141592653589793, 3.14),
        ("from math import isclose as near\nassert near(f(), 1.0)", 1.0, 2.0),
        ("import pytest\nassert f() == pytest.approx(0.3)", 0.1 + 0.2, 0.31),
        ("from pytest import approx\nassert f() == approx([1, 2.0], abs=0.1)", [1.05, 2], [1.05, 2.2]),
        ("assert f() == [1] * 3 and True", [1, 1, 1], [1, 1]),
        ("expected = [1, 2]\nassert f() == expected", [1, 2], [2, 1]),
        ("result = f()\nassert result == 2\n", 2, 3),
        ("a, b = 1, 2\nassert f() == a + b", 3, 4),
    ],
)  # fmt: skip
def test_what_holds(source, right, wrong):
    assert passes(source, right) == [True]
    assert passes(source, wrong) == [False]


def test_either_of_two():
    assert passes("assert f(1) == 1 or f(2) == 2", 3, 2) == [True]
    assert passes("assert f(1) == 1 or f(2) == 2", 3, 3) == [False]


def test_a_call_that_raised_or_never_answered_fails_its_test_only():
    source = "assert f(1) == 1\nassert f(2) == 2\nassert not f(3)"
    failed = Result(failed="raised ValueError", raised=("ValueError", "Exception"))
    assert passes(source, 1, failed, Result(failed="ended early")) == [True, False, False]


def test_an_expected_exception():
    source = "import pytest\ndef test_it():\n    with pytest.raises(LookupError):\n        f(1)"
    key = Result(failed="raised KeyError", raised=("KeyError", "LookupError", "Exception"))
    assert passes(source, key) == [True]
    assert passes(source, 3) == [False]
    assert passes(source, Result(failed="ended early")) == [False], "not to answer is no exception"


def test_loops_are_written_out():
    source = "for x, y in [(1, 2), (3, 4)]:\n    assert f(x) == y"
    assert calls(source) == [("f", [1], {}), ("f", [3], {})]
    assert passes(source, 2, 4) == [True]
    assert passes(source, 2, 5) == [False]


def test_arguments_belong_to_each_call():
    lifted = lift("xs = [3, 1]\nassert f(xs) == 1\nassert f(xs) == 1")
    assert lifted.calls[0].args[0] is not lifted.calls[1].args[0]


def test_forms_of_tests():
    human = with_check(
        "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(3) == 4", "f"
    )
    assert calls(human, entry_point="f") == [("f", [1], {}), ("f", [3], {})]
    assert passes(human, 2, 5, entry_point="f") == [True, False]
    unit = (
        "import unittest\nfrom solution import f\nclass TestF(unittest.TestCase):\n"
        "    def test_a(self):\n        self.assertEqual(f(1), 2)\n        self.assertTrue(f(2))\n"
        "if __name__ == '__main__':\n    unittest.main()"
    )
    assert [test.name for test in lift(unit).tests] == ["TestF.test_a"]
    assert passes(unit, 2, False) == [False]
    assert calls("import solution\nassert solution.f(1) == 2") == [("f", [1], {})]
    assert calls("assert Solution().two_sum([1], 1) == []") == [("Solution().two_sum", [[1], 1], {})]


@pytest.mark.parametrize("name", ["sum", "sorted", "len"])
def test_only_the_entry_point_may_bear_the_name_of_a_builtin(name):
    assert calls(f"assert {name}(1, 2) == 3", entry_point=name) == [(name, [1, 2], {})]
    with pytest.raises(NotLiftable, match="asserts nothing about the program"):
        lift(f"assert {name}([1, 2]) == 3")


@pytest.mark.parametrize(
    "source",
    [
        "assert f(g(1)) == 1",
        "assert f(lambda x: x) == 1",
        "assert all(f(x) == x for x in [1, 2])",
        "assert all(map(f, [1, 2]))",
        "def helper(x):\n    return x\nassert helper(f(1)) == 1",
        "import numpy as np\nassert f(1) == 1",
        "while f(1):\n    pass",
        "s = Stack()\ns.push(1)\nassert s.pop() == 1",
        "try:\n    f(1)\nexcept ValueError:\n    pass",
        "import pytest\n@pytest.mark.skip\ndef test_it():\n    assert f(1) == 1",
        "def test_it(tmp_path):\n    assert f(1) == 1",
        "def test_it():\n    f(1)",
        "assert 1 == 1",
        "assert f(10 ** 10 ** 10) == 1",
        "assert f('a' * 10 ** 9) == 1",
        "assert f(1) ** 10 ** 9 == 1",
        "x = 3",
        "assert __import__('os').getcwd() == f(1)",
        "assert open('x').read() == f(1)",
        "assert f(1).__class__ == int",
    ],
)
def test_what_is_left_to_a_test_process(source):
    with pytest.raises(NotLiftable):
        lift(source)


def test_the_tests_that_must_be_reported():
    source = (
        "import pytest\nclass TestA:\n    def test_x(self): pass\n    def other(self): pass\n"
        "async def test_y(): pass\ndef helper(): pass\nassert True\n"
    )
    assert required_tests(source) == ["TestA.test_x", "test_y"]
    plain = "'doc'\nimport math\nx = 1\nassert x\nfor y in [1]:\n    assert y\ncheck(1)\n"
    assert required_tests(plain) == ["line 4", "line 5", "line 7"]
    assert required_tests("x = 1\ndef f(): pass") == []
