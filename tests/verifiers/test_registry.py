"""Three doors into one table, and the errors a plug-in author meets at them."""

import subprocess
import sys

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem, Verdict, verifier
from verigrad.verifiers.binding import bind
from verigrad.verifiers.isolation import VerifierPool

PLUGIN = """
from verigrad.verifiers.base import verifier

@verifier("even", version="3", deadline_s=1.0)
def even(text, strict=False):
    '''Right for an even number.'''
    return int(text) % 2 == 0

class Longer:
    '''An object with verify.'''
    def __init__(self, than=3):
        self.than = than
    def verify(self, problem, attempt):
        return len(attempt.text) > self.than

three = 3
"""


def distribution(folder, name, points):
    info = folder / f"{name}-2.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.1\n")
    (info / "entry_points.txt").write_text("[verigrad.verifiers]\n" + points)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "even_numbers.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "even_numbers.py"
    sys.modules.pop("even_numbers", None)


def test_the_first_door_is_a_built_in_name():
    loaded = registry.load("exact_match", {"casefold": True})
    assert loaded.policy.runs == "inline"
    assert loaded.judge(Problem("p", "?", "A"), [Attempt("a")])[0].reward == 1.0


def test_the_second_door_is_an_installed_entry_point(plugin):
    distribution(plugin.parent, "even-numbers", "even = even_numbers:even\n")
    assert registry.available()["even"] == "even-numbers 2.1 (even_numbers:even)"
    assert "even_numbers" not in sys.modules, "listing imports nothing"
    loaded = registry.load("even")
    assert (loaded.name, loaded.policy.version, loaded.doc) == ("even", "3", "Right for an even number.")
    with VerifierPool("even", num_workers=1) as pool:
        verdicts = pool.submit(Problem("p", "?"), [Attempt("4"), Attempt("5")]).result(60)
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0]


def test_the_third_door_is_a_file_or_a_module(plugin):
    for source in (f"{plugin}:even", "even_numbers:even"):
        assert registry.load(source).judge(Problem("p", "?"), [Attempt("4")])[0].outcome == "right"


def test_a_class_gets_the_options_and_judges_with_verify(plugin):
    loaded = registry.load(f"{plugin}:Longer", {"than": 1})
    assert [v.reward for v in loaded.judge(Problem("p", "?"), [Attempt("ab"), Attempt("a")])] == [1.0, 0.0]
    with pytest.raises(ValueError, match="did you mean 'than'"):
        registry.load(f"{plugin}:Longer", {"thn": 1})


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("math_anser", {}, "did you mean 'math_answer'"),
        ("exact_match", {"casefolded": True}, "did you mean 'casefold'"),
        ("exact_match", {"answer": "4"}, "has no option 'answer'"),
        ("random", {"zebra": 1}, "it has: p"),
        ("nowhere.py:even", {}, "does not exist"),
        ("nowhere.py", {}, "write nowhere.py:NAME"),
        ("no_such_package.verify:it", {}, "no module 'no_such_package'"),
        ("PLUGIN:evn", {}, "did you mean 'even'"),
        ("PLUGIN:three", {}, "expected a function"),
    ],
)
def test_errors_name_what_was_probably_meant(plugin, name, options, complaint):
    with pytest.raises(ValueError, match="verifier") as caught:
        registry.load(name.replace("PLUGIN", str(plugin)), options)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("taken", ["math_answer", "twice"])
def test_a_name_taken_twice_is_refused(plugin, taken):
    distribution(plugin.parent, "one", f"{taken} = even_numbers:even\n")
    distribution(plugin.parent, "other", f"{taken} = even_numbers:Longer\n")
    with pytest.raises(ValueError, match="rename the entry point"):
        registry.available()


def test_columns_reach_a_verifier_by_name_and_options_come_first():
    def near(text, answer, tolerance, scale=1.0):
        return abs(float(text) - answer) <= tolerance * scale

    bound = bind(near, name="near", source="here", options={})
    assert bound.judge(Problem("p", "?", 1.0, {"tolerance": 0.5}), [Attempt("1.4")])[0].reward == 1.0
    with pytest.raises(ValueError, match=r"needs 'tolerance'.*verifier\.options\.tolerance"):
        bound.judge(Problem("p", "?", 1.0, {"tolerence": 0.5}), [Attempt("1.4")])
    strict = bind(near, name="near", source="here", options={"tolerance": 0.1})
    assert strict.judge(Problem("p", "?", 1.0, {"tolerance": 0.5}), [Attempt("1.4")])[0].reward == 0.0


@pytest.mark.parametrize(
    ("returned", "reward", "outcome"),
    [
        (True, 1.0, "right"),
        (False, 0.0, "wrong"),
        (0.25, 0.25, "partial"),
        (1, 1.0, "right"),
        (-1.0, -1.0, "wrong"),
        (None, None, "error"),
        (Verdict.wrong("why"), 0.0, "wrong"),
    ],
)
def test_plain_returns_become_verdicts(returned, reward, outcome):
    bound = bind(lambda text: returned, name="one", source="here", options={})
    (verdict,) = bound.judge(Problem("p", "?"), [Attempt("")])
    assert (verdict.reward, verdict.outcome) == (reward, outcome)


def test_everything_there_is_to_ask_for_arrives():
    def ask(text, response, prompt, answer, meta, level, stop_reason, transcript, index, problem_id, seed):
        return Verdict.right(
            repr((text, response, prompt, answer, meta["level"], level, stop_reason, index, seed))
        )

    problem = Problem("p", "2?", 3, {"level": 4})
    bound = bind(ask, name="ask", source="here", options={})
    (verdict,) = bound.judge(problem, [Attempt("<think>a</think>b", truncated=True)], indices=[6], seed=5)
    assert verdict.reason == repr(("b", "<think>a</think>b", "2?", 3, 4, 4, "length", 6, 5))


def test_a_group_verifier_must_answer_for_everyone():
    bound = bind(lambda texts: [True], name="group", source="here", options={})
    with pytest.raises(ValueError, match="one verdict per attempt"):
        bound.judge(Problem("p", "?"), [Attempt("a"), Attempt("b")])
    with pytest.raises(ValueError, match="plural names only"):
        bind(lambda texts, response: [True], name="mixed", source="here", options={})


def test_the_decorator_refuses_what_cannot_run():
    with pytest.raises(ValueError, match="not available"):
        verifier("it", runs="elsewhere")
    with pytest.raises(ValueError, match="above 0"):
        verifier("it", deadline_s=0)
    with pytest.raises(ValueError, match="needs 'response' and 'answer'"):
        verifier("it", canary={"prompt": "?"})
    with pytest.raises(ValueError, match="runs='sandbox'"):
        bind(lambda text, sandbox: True, name="boxed", source="here", options={})


@pytest.mark.parametrize(
    "module", ["registry", "isolation", "exact_match", "random_reward", "worker", "math_answer"]
)
def test_importing_a_verifier_imports_neither_torch_nor_sympy(module):
    code = f"import sys, verigrad.verifiers.{module}; assert not {{'torch', 'sympy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("\ndef f(text)\n    return 1\n", "mine.py line 2: SyntaxError: expected ':'"),
        ("import nonexist\n", "mine.py line 1: No module named 'nonexist'; install it in this environment"),
        ("import helper\n", "mine.py line 1: No module named 'helper'; set PYTHONPATH={} to find it"),
        ("import json\n\njson.loads('')\n", "mine.py line 3: JSONDecodeError: Expecting value"),
        ("import sys\nsys.exit()\n", "mine.py line 2: SystemExit"),
    ],
)
def test_a_file_that_cannot_be_imported_is_one_line(tmp_path, code, says):
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "helper.py").touch()
    with pytest.raises(ValueError, match="mine") as raised:
        registry.load(f"{tmp_path}/mine.py:f")
    assert str(raised.value).startswith(says.format(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_file_named_without_a_function_is_answered_with_its_functions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def odd(text): ...\ndef _hidden(): ...\n")
    for name in ("mine", "mine.py"):
        with pytest.raises(ValueError, match=r"write mine\.py:NAME, where NAME is odd$"):
            registry.load(name)


def test_a_traceback_begins_in_the_users_file(tmp_path):
    (tmp_path / "mine.py").write_text("async def odd(text):\n    return {}[text]\n")
    with VerifierPool(f"{tmp_path}/mine.py:odd", num_workers=1) as pool:
        assert pool.submit(Problem("p", "?"), [Attempt("4")]).result(60)[0].outcome == "error"
        trace = pool.stats()["last_traceback"]
    assert trace.count("File ") == 1
    assert "mine.py" in trace
