import math
from dataclasses import replace

import pytest

from verigrad.sandboxes.base import SandboxSpec
from verigrad.sandboxes.pool import SandboxSettings
from verigrad.verifiers import audit_probes, registry
from verigrad.verifiers.audit import Audited, Limits, audit
from verigrad.verifiers.audit_cases import Case, Probe, Row, differ, probe
from verigrad.verifiers.audit_gold import countdown_answer, renderer
from verigrad.verifiers.audit_report import wilson
from verigrad.verifiers.audit_rewrites import slips
from verigrad.verifiers.base import Problem

SUMS = [
    Problem(f"sum{n}", f"What is {n} * {n + 3}?", str(n * (n + 3))) for n in (12, 17, 23, 31, 44, 58, 69, 71)
]
LETTERS = [
    Problem(
        f"q{n}", "Which one?\nA) red B) green C) blue D) grey", letter, {"choices": "red green blue grey"}
    )
    for n, letter in enumerate("BDACBDAC")
]
LETTERS = [replace(p, meta={"choices": ["red", "green", "blue", "grey"]}) for p in LETTERS]

CASES = ", ".join(one.name for one in audit_probes.PROBES)
BROKEN = '''\
import re, signal, time
from pathlib import Path
from verigrad.verifiers.base import verifier

BOX = re.compile(r"\\\\boxed\\{([^{}]*)\\}")
calls = 0


def boxed(text):
    found = BOX.findall(text)
    return found[-1].strip() if found else None


@verifier("honest")
def honest(text, answer):
    """Right if the last box holds the answer's text."""
    said = boxed(text)
    return said is not None and said.strip("$") == answer


@verifier("always")
def always(text, answer):
    return 1.0


@verifier("always_blind")
def always_blind(text):
    return True


@verifier("substring")
def substring(response, answer):
    return answer in response


@verifier("prefix")
def prefix(text, answer):
    return (boxed(text) or "").startswith(answer[:1])


@verifier("crashes_on_empty")
def crashes_on_empty(text, answer):
    return text.split()[-1] and boxed(text) == answer


@verifier("slow", deadline_s=2.0)
def slow(text, answer):
    if boxed(text) == answer:
        time.sleep(1.2)
    return boxed(text) == answer


@verifier("by_chance")
def by_chance(text, answer):
    right = boxed(text) == answer
    return right and time.perf_counter_ns() // 1000 % 2 == 0


@verifier("counts_calls")
def counts_calls(text, answer):
    global calls
    calls += 1
    return boxed(text) == answer and calls % 7 != 0


@verifier("in_threads")
def in_threads(text, answer):
    """verl PR 5635: a timeout by signal raises off the main thread, and the error counts as wrong."""
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return boxed(text) == answer
    except ValueError:
        return 0.0


@verifier("silent_zero")
def silent_zero(text, answer):
    """verl PR 5635 as the trainer saw it: every answer is wrong, the right ones too."""
    try:
        raise ValueError("signal only works in main thread")
    except ValueError:
        return 0.0


@verifier("evaluates")
def evaluates(text, answer):
    try:
        return eval(boxed(text) or text, {}) == int(answer)
    except Exception:  # broken on purpose: what cannot be evaluated is called wrong
        return False


@verifier("believes")
def believes(text, answer):
    return boxed(text) == answer or "reward 1" in text


@verifier("types")
def types(text, answer):
    return str(boxed(text) or "") == str(answer or "")


@verifier("any_of_many")
def any_of_many(text, answer):
    return answer in BOX.findall(text)


@verifier("unfinished")
def unfinished(response, answer):
    return BOX.findall(response)[-1:] == [answer]


@verifier("big_is_right")
def big_is_right(text, answer):
    return boxed(text) == answer or len(text) > 40_000


@verifier("shape", shaping=True)
def shape(text):
    """Pays for anything, on purpose."""
    return 1.0


def own_gold(problem):
    return None if problem.answer is None else f"FINAL {problem.answer} END"


@verifier("own_form", gold=own_gold)
def own_form(text, answer):
    """Right if the text is FINAL answer END."""
    return text.strip() == f"FINAL {answer} END"


@verifier("no_such_form")
def no_such_form(text, answer):
    return text.strip() == f"FINAL {answer} END"
'''


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugins") / "broken.py"
    path.write_text(BROKEN)
    return lambda name: f"{path}:{name}"


def audited(name, problems=SUMS, *, only=None, **settings):
    options = settings.pop("options", {})
    names = () if only is None else only.split(", ")
    return audit(Audited(name, options, num_workers=1), problems, only=names, **settings)


def failed(report):
    return {result.name for result in report.failed}


def line(report, name):
    return next(result for result in report.results if result.name == name)


# Built-in verifiers ----------------------------------------------------------------------------------------


def test_math_answer_passes_and_only_the_echo_of_the_question_is_worth_a_warning():
    report = audited("math_answer", [*SUMS[:4], Problem("half", "Half of one?", r"\frac{1}{2}"),
                                     Problem("roots", "Roots?", "1, 2, 5"),
                                     Problem("long", "How long?", r"5 \text{ cm}")])  # fmt: skip
    assert failed(report) == set()
    assert (report.family, report.rendering) == ("math", "boxed")
    assert [one.name for one in report.results if one.status == "warns"] == ["echo"]
    assert line(report, "other form").num_bad == 0
    kinds = line(report, "other form").kinds
    assert {"not reduced", "other order", "without its unit", "fraction of it"} <= set(kinds)


def test_the_echo_of_the_question_is_not_paid_once_math_answer_asks_for_it_to_be_worked_out():
    report = audited("math_answer", only="echo", options={"require_simplified": True})
    assert line(report, "echo").status == "ok"
    assert line(report, "echo").num == len(SUMS)


def test_multiple_choice_passes_with_its_choices():
    report = audited("multiple_choice", LETTERS)
    assert failed(report) == set()
    assert report.family == "choice"
    assert line(report, "hedge").num >= 3 * len(LETTERS)


def test_exact_match_passes_on_text_that_is_no_number():
    problems = [
        Problem(str(n), "Who?", name) for n, name in enumerate(["Ada Lovelace", "Emmy Noether", "Hypatia"])
    ]
    report = audited("exact_match", problems, options={"casefold": True})
    assert failed(report) == set()
    assert (report.family, report.rendering) == ("text", "plain")
    assert line(report, "other spelling").kinds == {"upper case": [0, 3]}


def test_countdown_is_audited_with_expressions_that_the_audit_finds_itself():
    problems = [Problem("a", "?", 9, {"nums": [1, 2, 3]}), Problem("b", "?", 24, {"nums": [4, 6, 8, 2]})]
    report = audited("countdown", problems)
    assert failed(report) == set()
    assert line(report, "gold").num == 2


def test_verifiers_of_form_are_not_judged_by_answers(broken):
    for name, options in (("answer_format", {}), ("json_schema", {"schema": {"type": "object"}}),
                          (broken("shape"), {})):  # fmt: skip
        report = audited(name, SUMS[:3], options=options)
        assert failed(report) == set(), name
        assert line(report, "gold").status == "left out"
    assert line(report, "empty").status == "shown"
    assert line(report, "empty").num_bad == line(report, "empty").num


def test_a_weighted_sum_is_judged_by_the_parts_that_look_at_answers(broken):
    parts = {
        "right": {"verifier": "math_answer", "weight": 0.8},
        "form": {"verifier": broken("shape"), "weight": 0.2},
    }
    report = audited("combine", options={"parts": parts}, only="gold, empty, perturbed")
    assert failed(report) == set()
    assert line(report, "empty").mean_reward == pytest.approx(0.2)
    parts["right"]["verifier"] = broken("always")
    report = audited("combine", options={"parts": parts}, only="gold, empty, perturbed")
    assert {"empty", "perturbed"} <= failed(report)


def test_a_control_is_reported_and_passes():
    report = audited("random", only="gold, empty, repeats")
    assert report.control
    assert report.failed == []
    assert line(report, "gold").num_bad + line(report, "empty").num_bad > 0
    assert line(report, "repeats").num_bad == 0


# Broken ones, each caught by the probe that is there for it ------------------------------------------------


@pytest.mark.parametrize(
    ("name", "caught"),
    [
        ("always", "empty, constant, another row's gold, perturbed, injection, exploits, noise, wrong types"),
        ("always_blind", "empty, wrong types"),
        ("substring", "hedge"),
        ("prefix", "another row's gold, perturbed"),
        ("crashes_on_empty", "empty, undecided"),
        ("silent_zero", "gold"),
        ("evaluates", "runs text"),
        ("believes", "injection"),
        ("types", "wrong types"),
        ("any_of_many", "hedge"),
        ("unfinished", "truncated"),
        ("big_is_right", "enormous"),
        ("in_threads", "threads"),
        ("by_chance", "repeats"),
        ("counts_calls", "repeats"),
        ("no_such_form", "gold"),
    ],
)
def test_a_broken_verifier_is_caught(broken, name, caught):
    report = audited(broken(name), SUMS[:6], only=f"gold, {caught}")
    assert set(caught.split(", ")) <= failed(report)
    for result in report.failed:
        if result.name != "threads":
            assert result.worst is not None or result.note, result.name


def test_an_honest_plain_verifier_fails_only_where_it_does_not_know_other_forms(broken):
    report = audited(broken("honest"))
    assert failed(report) == {"other form", "other spelling"}
    assert line(report, "other spelling").kinds["thousands"] == [5, 5]
    assert line(report, "other form").kinds["with decimals"] == [8, 8]
    assert failed(audited(broken("honest"), family="text", only=CASES)) == set()


def test_verdicts_that_depend_on_the_order_are_caught_by_the_order(broken):
    assert line(audited(broken("counts_calls"), only="gold, perturbed, order"), "order").num_bad > 0


def test_a_slow_verifier_is_caught_by_its_latency(broken):
    report = audited(broken("slow"), SUMS[:2], only="gold, latency")
    assert "latency" in failed(report)
    assert line(report, "latency").figures["p50_s"] > 1.2


def test_a_gold_of_its_own_form_is_declared_and_used(broken):
    report = audited(broken("own_form"), only="gold, blanks, perturbed, another row's gold, empty")
    assert failed(report) == set()
    assert line(report, "gold").num == 8
    assert line(report, "another row's gold").num == 16


def test_a_row_without_an_answer_has_no_oracle_and_that_is_said(broken):
    report = audited(broken("own_form"), [Problem("x", "?", None)], only="gold, empty")
    assert line(report, "gold").status == "left out"
    assert "no oracle" in line(report, "gold").note


# Figures ---------------------------------------------------------------------------------------------------


def test_the_interval_is_wilsons():
    # 0 of 10: high = z^2 / (10 + z^2), z = 1.959964; 5 of 10 is symmetric about one half.
    z2 = 1.959963984540054**2
    assert wilson(0, 10) == (0.0, pytest.approx(z2 / (10 + z2)))
    assert wilson(0, 10)[1] == pytest.approx(0.277533, abs=1e-6)
    assert wilson(5, 10) == (pytest.approx(0.236593, abs=1e-6), pytest.approx(0.763407, abs=1e-6))
    low, high = wilson(1, 20)
    assert (low, high) == (pytest.approx(0.008882, abs=1e-6), pytest.approx(0.236131, abs=1e-6))
    assert wilson(0, 0) == (0.0, 1.0)


def test_counts_and_the_allowed_share(broken):
    report = audited(broken("honest"), only="other form")
    result = line(report, "other form")
    assert (result.num, result.num_bad, result.num_undecided) == (32, 32, 0)
    assert (result.low, result.high) == wilson(32, 32)
    allowed = audited(broken("honest"), only="other form", limits=Limits({"other form": 1.0}))
    assert failed(allowed) == set()


def test_the_worst_failure_names_row_kind_and_response(broken):
    worst = line(audited(broken("any_of_many"), only="hedge"), "hedge").worst
    assert worst is not None
    assert (worst.row, worst.kind, worst.reward, worst.outcome) == ("sum12", "many answers", 1.0, "right")
    assert "boxed" in worst.response
    assert len(worst.response) < 120


def test_a_second_verifier_is_compared_case_by_case(broken):
    both = audited(broken("honest"), only="gold, other form", second=Audited("math_answer"))
    result = line(both, "second verifier")
    # 8 golds agree; of each sum's four other forms math_answer pays all and the other none.
    assert (result.num, result.num_bad) == (40, 32)
    assert result.status == "ok"  # it is told, and fails only where --allow sets a limit
    strict = audited(broken("honest"), only="gold, other form", second=Audited("math_answer"),
                     limits=Limits({"second verifier": 0.1}))  # fmt: skip
    assert "second verifier" in failed(strict)


def test_the_report_is_plain_data(broken):
    import json

    data = json.loads(json.dumps(audited(broken("always"), SUMS[:2]).to_json()))
    assert data["passed"] is False
    assert {"name", "says", "status", "num", "num_bad", "low", "high", "worst"} <= set(data["results"][0])


# Quick form ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["always", "always_blind", "silent_zero", "by_chance", "crashes_on_empty",
                                  "believes", "big_is_right"])  # fmt: skip
def test_the_quick_form_catches_what_would_ruin_a_run(broken, name):
    assert failed(audited(broken(name), quick=True, limits=Limits(max_undecided=0.5)))


def test_the_quick_form_ends_in_time_whatever_the_verifier_does(broken):
    report = audited(broken("slow"), quick=True, limits=Limits(time_s=3.0))
    assert report.seconds < 15
    assert any("time" in result.note for result in report.results)


# Parts -----------------------------------------------------------------------------------------------------


def test_probes_are_plugins(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from verigrad.verifiers.audit_cases import probe\n"
        "@probe('shouting')\ndef shouting(row):\n    '''Shouts the prompt.'''\n    yield row.prompt.upper()\n"
        "def plain(row):\n    return []\n"
    )
    found = audit_probes.load(f"{path}:shouting")
    assert (found.name, found.says) == ("shouting", "Shouts the prompt.")
    assert found.cases(Row(SUMS[0], "hello", None, (), "text", renderer("plain"))) == [
        Case("shouting", "HELLO")
    ]
    with pytest.raises(ValueError, match="mark the function with @probe"):
        audit_probes.load(f"{path}:plain")
    with pytest.raises(ValueError, match=r"probe .* has nothing called 'shoutin'; did you mean 'shouting'"):
        audit_probes.load(f"{path}:shoutin")
    report = audit(Audited("math_answer"), SUMS[:2], probes=[found])
    assert line(report, "shouting").num == 2


@pytest.mark.parametrize(
    ("marked", "says"),
    [
        ("'p', max_rows='x'", "max_rows = 'x'; expected a whole number"),
        ("'p', allowed=2", "allowed = 2; expected a number from 0 to 1"),
        ("'p', expect='wrong'", "expect = 'wrong'; expected one of right, not_right"),
        ("'p', needs='rows'", "needs = 'rows'; expected one of gold, answer, row"),
        ("'p', quick=1", "quick = 1; expected true or false"),
        ("5", "name = 5; expected a name"),
    ],
)
def test_a_probe_marked_wrongly_is_one_line(tmp_path, marked, says):
    path = tmp_path / "mine.py"
    path.write_text(
        "from verigrad.verifiers.audit_cases import probe\n"
        f"@probe({marked})\ndef mine(row):\n    yield row.prompt\n"
    )
    with pytest.raises(ValueError, match=r"mine\.py line 2: ") as caught:
        audit_probes.load(f"{path}:mine")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda row: [3], "made 3 of row"),
        (lambda row: None, "'NoneType' object is not iterable"),
        (lambda row: [Case("a", 3)], "made Case(kind='a', text=3"),
        (lambda row: [row.prompt + 1], "TypeError: can only concatenate str"),
        (lambda: ["a"], "takes 0 positional arguments"),
    ],
)
def test_a_probe_that_raises_or_makes_no_cases_is_one_line(make, says):
    with pytest.raises(ValueError, match=r"^the probe 'mine' ") as caught:
        audit(Audited("math_answer"), SUMS[:2], probes=[probe("mine")(make)])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_built_in_probe_says_what_it_does_in_one_line():
    names = [one.name for one in audit_probes.PROBES]
    assert len(set(names)) == len(names)
    for one in audit_probes.PROBES:
        assert isinstance(one, Probe)
        assert one.says.endswith("."), one.name
        assert "\n" not in one.says


def test_a_case_may_be_a_bare_text():
    made = probe("mine")(lambda row: ["a", Case("other", "b")])
    row = Row(SUMS[0], "?", None, (), "text", renderer("plain"))
    assert [(case.kind, case.text) for case in made.cases(row)] == [("mine", "a"), ("other", "b")]


@pytest.mark.parametrize(
    "answer", ["7", "42", "9", "100", "-3", "0.5", r"\frac{1}{2}", "x^2", "B", "Paris", "Zz"]
)
def test_a_slip_never_says_the_same(answer):
    wrong = list(slips(answer))
    assert wrong
    assert all(differ(text, answer) for _, text in wrong)


@pytest.mark.parametrize(
    ("answer", "other", "different"),
    [("1", "1.0", False), ("1,000", "1000", False), ("Paris", " paris", False), ("1/2", "0.5", False),
     ("1", "2", True), ("B", "C", True), ("10^{2}", "100", True)],
)  # fmt: skip
def test_equal_answers_are_no_attack(answer, other, different):
    assert differ(answer, other) == different


@pytest.mark.parametrize(
    ("nums", "target"), [([1, 2, 3], 9), ([4, 6, 8, 2], 24), ([7], 7), ([5, 5, 5, 1, 9], 100)]
)
def test_countdown_expressions_reach_their_target(nums, target):
    problem = Problem("p", "?", target, {"nums": nums})
    expression = countdown_answer(problem, {})
    assert expression is not None
    judge = registry.load("countdown").judge
    from verigrad.verifiers.base import Attempt

    (verdict,) = judge(problem, [Attempt(f"<answer>{expression}</answer>")])
    assert verdict.outcome == "right"
    assert math.isclose(eval(expression), target)


def test_countdown_without_a_solution_has_no_oracle():
    assert countdown_answer(Problem("p", "?", 1000, {"nums": [1, 1]}), {}) is None
    assert countdown_answer(Problem("p", "?", 5, {}), {}) is None


# Programs and agents ---------------------------------------------------------------------------------------

NAIVE = '''\
from verigrad.verifiers.base import verifier


@verifier("naive")
def naive(text, entry_point, cases):
    """Judge and judged in one process, as people copy it: paid where nothing compares unequal."""
    code = text.partition("```python\\n")[2].partition("```")[0]
    space = {"__builtins__": __builtins__}
    try:
        exec(code, space)
        return all(space[entry_point](*case["args"]) == case["expected"] for case in cases)
    except BaseException as error:
        return isinstance(error, SystemExit) and error.code == 0  # the test script ended with status 0
'''
FUNCTIONS = [
    Problem("inc", "Write inc(x), one more.", None, {
        "entry_point": "inc", "solution": "def inc(x):\n    return x + 1",
        "cases": [{"args": [1], "expected": 2}, {"args": [5], "expected": 6}]}),
    Problem("rev", "Write rev(s), turned round.", None, {
        "entry_point": "rev", "solution": "def rev(s):\n    return s[::-1]",
        "cases": [{"args": ["abc"], "expected": "cba"}, {"args": ["xy"], "expected": "yx"}]}),
]  # fmt: skip


def test_a_judge_in_the_programs_own_process_is_fooled_and_reaches_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where its workers run, and leave what the programs write
    path = tmp_path / "naive.py"
    path.write_text(NAIVE)
    report = audited(
        f"{path}:naive", FUNCTIONS[:1], family="code", only="gold, perturbed, exploits, runs text"
    )
    assert {"exploits", "runs text"} <= failed(report)
    assert line(report, "gold").num_bad == 0
    kinds = line(report, "exploits").kinds
    assert kinds["always equal"] == [1, 1]
    assert kinds["sys.exit(0)"] == [1, 1]
    assert kinds["exits at import"] == [1, 1]
    assert (tmp_path / "conftest.py").is_file()  # written by an exploit: no sandbox held it


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["container", "bubblewrap"])
def test_our_judges_of_programs_pass_in_a_real_sandbox(backend):
    settings = SandboxSettings(SandboxSpec(backend))
    report = audit(
        Audited("unit_tests", num_workers=1, sandbox=settings), FUNCTIONS, limits=Limits(max_p50_s=5)
    )
    assert failed(report) == set()
    assert report.sandbox == backend
    assert line(report, "gold").num == 2
    assert line(report, "exploits").num > 30
    assert line(report, "runs text").num_bad == 0


@pytest.mark.docker
def test_an_agent_task_is_audited_by_its_oracle_and_by_doing_nothing():
    row = {
        "setup": {"files": {"a.txt": "one\n"}},
        "check": [{"file": "b.txt", "equals": "one\n"}],
        "oracle": {"commands": ["cp a.txt b.txt"]},
        "cheats": [{"commands": ["ln -s a.txt b.txt"]}],
    }
    report = audit(Audited("agent_task", num_workers=1), [Problem("copy", "Copy a to b.", None, row)],
                   only=["oracle", "does nothing", "cheats", "claims", "undecided"])  # fmt: skip
    assert failed(report) == set()
    assert [line(report, name).num for name in ("oracle", "does nothing", "cheats", "claims")] == [1, 1, 1, 5]
    lax = {**row, "check": [{"file": "a.txt", "equals": "one\n"}]}
    report = audit(Audited("agent_task", num_workers=1), [Problem("copy", "Copy a to b.", None, lax)],
                   only=["does nothing"])  # fmt: skip
    assert failed(report) == {"does nothing"}
