"""Each defence of the code verifiers holds one attack: without it the attack earns the reward."""

import json
from pathlib import Path

import pytest

from verigrad.sandboxes.base import ExecResult, SandboxLost, SandboxSpec
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings
from verigrad.sandboxes.registry import open_sandbox
from verigrad.verifiers import (
    code_compare,
    code_harness,
    code_relay,
    program_output,
    registry,
    unit_tests,
)
from verigrad.verifiers.base import Attempt, Problem

ROWS = {
    row["id"]: row
    for row in map(json.loads, Path(__file__).with_name("code_cases.jsonl").read_text().splitlines())
}
OWN = SandboxSettings(SandboxSpec("local_process", {"trusted": True}))  # all programs here are ours


@pytest.fixture(scope="module")
def boxes():
    with SandboxPool(OWN) as pool:
        yield pool


@pytest.fixture
def judge(boxes):
    def run(row, **options):
        row = ROWS[row] if isinstance(row, str) else row
        loaded = registry.load(row["verifier"], options)
        problem = Problem("p", "", None, row["meta"])

        def verdict(box):
            return loaded.judge(problem, [Attempt(row["response"], sandbox=box)])[0]

        return boxes.run(verdict)

    return run


def case(source, verifier="unit_tests", **meta):
    return {"verifier": verifier, "response": f"```python\n{source}\n```", "meta": meta}


def falls(judge, monkeypatch, row, target, name, replacement):
    """Wrong with the defence, right without it."""
    assert judge(row).outcome == "wrong"
    monkeypatch.setattr(target, name, replacement)
    assert judge(row).outcome == "right", "what was taken away is not what held this attack"


def replaced(source, old, new):
    assert old in source
    return source.replace(old, new)


def test_strict_comparison(judge, monkeypatch):
    falls(judge, monkeypatch, "bool for int", unit_tests, "same_value", lambda a, b, tolerance: a == b)


def test_blanks_of_unicode_are_no_blanks(judge, monkeypatch):
    def naive(found, expected, **rules):
        return found.decode().split() == expected.decode().split()

    falls(judge, monkeypatch, "hidden blanks", program_output, "same_output", naive)


def test_the_same_lines(judge, monkeypatch):
    row = case("print(1, 2)", "program_output", tests=[{"stdin": "", "stdout": "1\n2\n"}])
    falls(judge, monkeypatch, row, code_compare, "_tokens", lambda text: text.split())


def test_a_bad_end_is_a_failed_test(judge, monkeypatch):
    monkeypatch.setattr(ExecResult, "ok", property(lambda self: True))
    assert judge("right output and a bad end").outcome == "right"
    monkeypatch.undo()
    assert judge("right output and a bad end").outcome == "wrong"


def test_one_answer_per_call(judge, monkeypatch):
    """Without the count, a program may print many answers and have the one that suits taken."""
    source = (
        "import os\ndef f(x):\n    for n in range(10):\n        for fd in range(3, 10):\n            try:\n"
        "                os.write(fd, b'{\"value\": %d}\\n' % n)\n            except OSError: pass\n"
        "    return 0"
    )
    row = case(source, entry_point="f", cases=[{"args": [1], "expected": 7}])

    def any_of_them(ended, asked):
        found = [code_harness._result(code_harness._loads(line)) for line in ended.stdout.splitlines()]
        return [next(result for result in found if result.value == 7)]

    falls(judge, monkeypatch, row, code_harness, "results_of", any_of_them)


def test_the_comparison_is_made_outside_the_program(judge, monkeypatch):
    """A harness that compares in the program's process, as most do, is fooled by an object."""
    naive = replaced(
        code_harness.CANDIDATE,
        b'{"value": encode(target(*args, **kwargs))}',
        b'{"value": target(*args) == 9}',
    )
    meta = {"entry_point": "square", "cases": [{"args": [3], "expected": 9}]}
    row = {**ROWS["always equal object"], "meta": meta}
    assert judge(row).outcome == "wrong"
    monkeypatch.setattr(code_harness, "CANDIDATE", naive)
    monkeypatch.setattr(unit_tests, "same_value", lambda found, expected, tolerance: found is True)
    assert judge(row).outcome == "right"


def test_plain_data_only(judge, monkeypatch):
    """A subclass is refused whatever it holds: what it does when it is looked at is its own affair."""
    naive = replaced(code_harness.CANDIDATE, b"kind = type(value)", b"kind = value.__class__")
    source = "class L(list):\n    __class__ = list\ndef f():\n    return L()"
    row = case(source, entry_point="f", cases=[{"expected": []}])
    falls(judge, monkeypatch, row, code_harness, "CANDIDATE", naive)


SKIPS = {
    "test_code": "import pytest\nfrom solution import f\n\n"
    "def test_it():\n    got = f(1)\n    if got is None:\n"
    "        pytest.skip('nothing to see')\n    while got > 2:\n        got -= 1\n    assert got == 2\n"
}


def test_skipped_is_not_passed(judge, monkeypatch):
    row = case("def f(x):\n    return None", **SKIPS)
    naive = replaced(code_relay.TESTER, b'report.outcome == "passed"', b'report.outcome != "failed"')
    falls(judge, monkeypatch, row, code_relay, "TESTER", naive)


def test_expected_to_fail_is_not_passed(judge, monkeypatch):
    source = SKIPS["test_code"].replace("pytest.skip(", "pytest.xfail(")
    row = case("def f(x):\n    return None", test_code=source)
    naive = replaced(
        code_relay.TESTER,
        b'report.outcome == "passed" and not hasattr(report, "wasxfail")',
        b"not report.failed",
    )
    falls(judge, monkeypatch, row, code_relay, "TESTER", naive)


def test_every_required_test_must_be_reported(judge, monkeypatch):
    class Trusting(dict):
        def get(self, key, default=None):
            return super().get(key, True)

    def naive():
        return code_relay_report(passed=Trusting())

    code_relay_report = code_relay.Report
    falls(judge, monkeypatch, "pytest: leaves in a call", code_relay, "Report", naive)


def test_the_end_of_a_loop_is_no_exception_of_the_program(judge, monkeypatch):
    naive = replaced(code_relay.TESTER, b'("StopIteration", "StopAsyncIteration")', b"()")
    row = case("def check(x):\n    raise StopIteration", test_code="assert all(map(check, [1, 2])) is True\n")
    falls(judge, monkeypatch, row, code_relay, "TESTER", naive)


def test_builtins_of_the_tests_are_their_own(judge, monkeypatch):
    order = code_relay.order_of

    def naive(source, entry_point, token):
        return {**order(source, entry_point, token), "mentioned": ["len", "evens"]}

    source = "r = evens(10)\nwhile r[-1] > 100:\n    r.pop()\nassert len(r) == 5\n"
    row = case("def len(xs):\n    return 5\ndef evens(n):\n    return [1]", test_code=source)
    falls(judge, monkeypatch, row, code_relay, "order_of", naive)


def test_a_message_without_the_token_is_no_message():
    said = code_relay.line({"report": "line 1", "passed": True, "token": "mine"})
    assert code_relay._message(said, "mine") is not None
    assert code_relay._message(said, "another") is None
    assert code_relay._message(b'{"report": "line 1", "passed": true}', "mine") is None
    assert code_relay._message(b"[" * 100_000, "mine") is None


def test_the_programs_sandbox_never_holds_what_is_expected(judge, monkeypatch):
    """Nothing that goes to the program contains the expected value, in any of the routes."""
    secret = "4711-expected"
    sent = []
    with open_sandbox(OWN.spec) as box:
        kind = type(box)
    for name in ("write_file", "exec", "start"):
        real = getattr(kind, name)

        def spy(self, *args, _real=real, **kwargs):
            sent.append(repr((args, kwargs)))
            return _real(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, spy)
    program = "def f(x):\n    return x"
    judge(case(program, entry_point="f", cases=[{"args": [1], "expected": secret}]))
    judge(case(program, test_code=f"assert f(1) == {secret!r}\nassert f(2) in ({secret!r}, 3)"))
    judge(case("print(input())", "program_output", tests=[{"stdin": "1", "stdout": secret}]))
    assert sent
    assert not [text for text in sent if secret in text]


def test_a_lost_sandbox_is_nobodys_verdict(judge, monkeypatch):
    def dies(*args, **kwargs):
        raise SandboxLost("gone")

    monkeypatch.setattr(unit_tests, "call_all", dies)
    with pytest.raises(SandboxLost):
        judge("honest function")


def test_tests_that_cannot_run_here_are_undecided(judge):
    verdict = judge(case("def f(x):\n    return 1", test_code="import no_such_module\nassert f(1) == 1"))
    assert (verdict.reward, verdict.outcome) == (None, "error")
    assert "no_such_module" in verdict.reason
    verdict = judge(case("def f(g):\n    return g(1)", test_code="assert f(lambda x: x) == 1"))
    assert verdict.reward is None


def test_partial_pays_the_share_that_passed(judge):
    row = case("def f(x):\n    return 1", entry_point="f",
               cases=[{"args": [n], "expected": e} for n, e in ((1, 1), (2, 2), (3, 1), (4, 1))])  # fmt: skip
    verdict = judge(row, partial=True)
    assert (verdict.reward, verdict.outcome, dict(verdict.parts)) == (0.75, "partial", {"passed": 0.75})
    assert judge(row).reward == 0.0
    row = case("import sys\nn = int(input())\nif n == 2: sys.exit(1)\nprint(n)", "program_output",
               tests=[{"stdin": str(n), "stdout": str(n)} for n in (1, 2, 3, 4)])  # fmt: skip
    assert judge(row, partial=True).reward == 0.75
    assert judge(row).reward == 0.0
    assert judge(row, max_tests=1).reward == 1.0


def test_a_checker_judges_where_many_outputs_are_right(judge, tmp_path):
    checkers = tmp_path / "checkers.py"
    checkers.write_text(
        "def factors(stdin, stdout, expected):\n"
        "    left, right = map(int, stdout.split())\n    return left * right == int(stdin)\n"
        "def raises(asked, found, expected):\n    return found[asked['args'][0]]\n"
    )
    options = {"checkers": {"factors": f"{checkers}:factors", "raises": f"{checkers}:raises"}}
    row = case("print(3, int(input()) // 3)", "program_output", checker="factors", tests=[{"stdin": "12"}])
    assert judge(row, **options).outcome == "right"
    assert judge({**row, "meta": {**row["meta"], "tests": [{"stdin": "13"}]}}, **options).outcome == "wrong"
    row = {**row, "response": "```python\nprint('no number')\n```"}
    assert judge(row, **options).outcome == "wrong", "no way out of a verdict"
    row = case("def f(x):\n    return {}", entry_point="f", checker="raises", cases=[{"args": [1]}])
    assert judge(row, **options).outcome == "wrong"
    row = case(
        "def f(x):\n    return {}", entry_point="f", checker="raises", cases=[{"args": [1], "expected": {}}]
    )
    with pytest.raises(KeyError):  # broken: the worker makes this undecided
        judge(row, **options)
    with pytest.raises(ValueError, match="`checkers` does not have"):
        judge(row)


BAD_ROWS = [
    ("program_output", {}, "meta.tests = None; expected 1 to 1000 tests"),
    ("program_output", {"tests": []}, "expected 1 to 1000 tests"),
    ("program_output", {"tests": [{"stdin": "1"}]}, "it says no stdout"),
    ("program_output", {"tests": [{"stdin": 1, "stdout": "1"}]}, "expected text"),
    ("program_output", {"tests": [{"input": "1", "stdout": "1"}]}, "without 'input'"),
    ("program_output", {"tests": [{"stdout": "1"}], "compare": "loose"}, "expected tokens, exact, float"),
    ("program_output", {"tests": [{"stdout": "1"}], "tolerance": 0.1}, "with compare = 'float'"),
    ("program_output", {"tests": [{"stdout": "1"}], "language": "rust"}, "expected python or cpp"),
    ("program_output", {"tests": [{"stdout": "1"}], "limits": {"wall": 1}}, "limits have no 'wall'"),
    ("program_output", {"tests": [{"stdout": "1"}], "limits": {"wall_s": -1}}, "above 0"),
    ("unit_tests", {}, "neither of meta.cases and meta.test_code"),
    ("unit_tests", {"cases": [], "entry_point": "f"}, "expected 1 to 1000 cases"),
    ("unit_tests", {"cases": [{"args": [1], "expected": 1}]}, "without meta.entry_point"),
    ("unit_tests", {"cases": [{"args": [1]}], "entry_point": "f"}, "one of expected, expected_literal"),
    ("unit_tests", {"cases": [{"args": 1, "expected": 1}], "entry_point": "f"}, "a list of args"),
    ("unit_tests", {"cases": [{"expected_error": "Mine"}], "entry_point": "f"}, "a built-in exception"),
    ("unit_tests", {"cases": [{"expected_literal": "f("}], "entry_point": "f"}, "a Python literal"),
    ("unit_tests", {"cases": [{"expected": 1}], "entry_point": "f g"}, "expected a function's name"),
    ("unit_tests", {"test_code": "assert f(1) = 2"}, "is no Python"),
    ("unit_tests", {"test_code": "x = 1"}, "has no test in it"),
    ("unit_tests", {"test_code": "print(f(1))"}, "asserts nothing, so that every program would pass"),
    ("unit_tests", {"test_code": "def test_f():\n    f(1) == 2"}, "asserts nothing"),
    (
        "unit_tests",
        {"cases": [{}], "test_code": "assert f(1)"},
        "both of meta.cases and meta.test_code; expec",
    ),
    ("unit_tests", {"test_code": "assert f(1)", "tolerance": 0.1}, "have no effect with meta.test_code"),
]


@pytest.mark.parametrize(("verifier", "meta", "says"), BAD_ROWS)
def test_a_row_that_cannot_be_judged_is_refused_in_one_line(verifier, meta, says):
    with pytest.raises(ValueError, match=verifier) as raised:
        registry.load(verifier, {}).check_row(Problem("p", "", None, meta))
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("first", "outcome"), [(1, "wrong"), (0, "timeout")])
def test_the_first_failure_names_the_verdict(judge, first, outcome):
    program = "def f(x):\n    while x: pass\n    return 0"
    cases = [{"args": [0], "expected": first}, {"args": [1], "expected": 1}]
    limits = {"wall_s": 2}
    assert judge(case(program, entry_point="f", cases=cases, limits=limits)).outcome == outcome
    lifted = f"assert f(0) == {first}\nassert f(1) == 1"
    assert judge(case(program, test_code=lifted, limits=limits)).outcome == outcome


ALWAYS_RIGHT = """
class Always:
    def __sub__(self, other): return 0
    def __getitem__(self, key): return 5
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: set() if "difference" in name else True
def f(x):
    return Always()
"""


@pytest.mark.parametrize(
    "test",
    [
        "near = lambda a, b: abs(a - b) < 1e-6\n    assert all(near(f(x), 2.5 * x) for x in (1, 2))",
        "assert all(f(x).startswith(str(x)) for x in (1, 2))",
        "assert not [x for x in (1, 2) if f(x).difference({x})]",
        "assert all(f(x)[:1] == [x] for x in (1, 2))",
        "r = f(1)\n    r.sort(key=lambda x: -x)\n    assert r == [1]",
    ],
)
def test_an_object_is_neither_believed_nor_a_way_out_of_a_verdict(judge, test):
    row = case(ALWAYS_RIGHT, entry_point="f", test_code=f"def test_f():\n    {test}\n")
    verdict = judge(row)
    assert (verdict.outcome, verdict.reward) == ("wrong", 0.0)


def test_an_object_that_the_tests_make_has_its_own_methods_and_operators(judge):
    source = """
class Trie:
    def __init__(self, words): self.words = words
    def startswith(self, prefix): return any(word[:len(prefix)] == prefix for word in self.words)
    def __sub__(self, other): return len(self.words) - other
"""
    tests = """
def test_trie():
    trie = Trie(["abc"])
    assert [trie.startswith(one) for one in ("ab", "b")] == [True, False]
    assert trie - 1 == 0
"""
    assert judge(case(source, test_code=tests)).outcome == "right"


@pytest.mark.parametrize("depth", [900, 970, 976, 980, 984, 990])
@pytest.mark.parametrize(
    "form", ['{"value": %s}', '{"raised": {"classes": [%s], "says": %s, "handled": true}}']
)
def test_answers_nested_as_deep_as_can_be_are_wrong(judge, depth, form):
    nested = "[" * depth + "]" * depth
    say = form.replace("%s", nested)
    say = f'import os\nos.write(3, b\'{{"names": ["f"]}}\\n{say}\\n\')'
    source = f"{say}\nimport time\ntime.sleep(0.2)\nos._exit(0)"
    apart = "def test_f():\n    assert all(f(x) == x for x in (1, 2))\n"
    assert judge(case(source, entry_point="f", test_code=apart)).outcome == "wrong"
    assert judge(case(source, entry_point="f", cases=[{"args": [1], "expected": 1}])).outcome == "wrong"


def test_an_integer_beyond_every_float_is_compared_with_a_complex_number(judge):
    row = case("def f():\n    return 10**2000", entry_point="f", cases=[{"expected_literal": "1+2j"}])
    assert judge(row).outcome == "wrong"


@pytest.mark.parametrize(("value", "want"), [("3.14", "right"), ("3.15", "wrong"), ("Zero()", "wrong")])
def test_unittest_classes_with_set_up_run_apart(judge, value, want):
    source = f"""
class Zero:
    def __sub__(self, other): return 0
def f(x):
    return {value}
"""
    tests = """
import unittest
class TestF(unittest.TestCase):
    def setUp(self):
        self.given = 3
    def test_f(self):
        self.assertAlmostEqual(f(self.given), 3.14)
"""
    assert judge(case(source, entry_point="f", test_code=tests)).outcome == want


@pytest.mark.parametrize("form", ["assert {}", "def test_f():\n    assert {}"])
def test_modules_of_the_tests_are_never_the_programs(judge, form):
    near = "all(math.isclose(f(x), x + 0.5) for x in (1, 2))"
    tests = {"entry_point": "f", "test_code": form.format(near) + "\n"}
    yes = "class math:\n    isclose = staticmethod(lambda *args: True)\ndef f(x):\n    return 0"
    assert judge(case(yes, **tests)).outcome == "wrong"
    assert judge(case("import math\ndef f(x):\n    return x + 0.5", **tests)).outcome == "right"
