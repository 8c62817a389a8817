"""agent_task: what a row's check says of the files an agent left, judged in a fresh sandbox."""

import dataclasses
import io
import json
import stat
import tarfile

import pytest

from tests import boxes
from verigrad.sandboxes.base import SandboxLost, SandboxSpec
from verigrad.sandboxes.pool import SandboxPool, SandboxSettings
from verigrad.verifiers import registry
from verigrad.verifiers.agent_rehearsal import CannotSetUp, doings, rehearse
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.verdict_cache import cacheable

KINDS = [
    pytest.param("container", marks=pytest.mark.docker),
    "bubblewrap",
]


@pytest.fixture(scope="module", params=KINDS)
def pool(request):
    boxes.require(request.param)
    with SandboxPool(SandboxSettings(SandboxSpec(request.param))) as opened:
        yield opened


def judge(pool, check, *, files=None, said="done", answer=None, options=None):
    """The verdict on an agent that left these files and said this."""
    verifier = registry.load("agent_task", options)
    problem = Problem("p", "do it", answer, {"check": check})
    attempt = pool.run(lambda box: rehearse(problem, {"files": files or {}, "answer": said}, box))

    def judged(box):
        box.load(attempt.snapshot)
        return verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0]

    return pool.run(judged)


ECHO = "import sys\nprint(sys.stdin.read().upper(), end='')\n"


@pytest.mark.parametrize(
    ("step", "want"),
    [
        ({"file": "out.txt", "equals": "one  two\n"}, "right"),
        ({"file": "out.txt", "equals": "one  two\n", "compare": "exact"}, "wrong"),
        ({"file": "out.txt", "equals": "two one"}, "wrong"),
        ({"file": "out.txt", "contains": ["one", "two"]}, "right"),
        ({"file": "out.txt", "contains": ["one", "three"]}, "wrong"),
        ({"file": "out.txt", "lacks": "three"}, "right"),
        ({"file": "out.txt", "lacks": "two"}, "wrong"),
        ({"file": "out.txt", "exists": True}, "right"),
        ({"file": "out.txt", "exists": False}, "wrong"),
        ({"file": "missing.txt", "exists": False}, "right"),
        ({"file": "missing.txt", "equals": ""}, "wrong"),
        ({"file": "data.json", "json": {"a": [1, True]}}, "right"),
        ({"file": "data.json", "json": {"a": [1, 1]}}, "wrong"),
        ({"file": "pi.txt", "equals": "3.14159", "compare": "float", "tolerance": 0.01}, "right"),
        ({"file": "pi.txt", "equals": "3.5", "compare": "float", "tolerance": 0.01}, "wrong"),
        ({"file": "lines.txt", "equals": "b\na\n", "compare": "lines"}, "right"),
        ({"file": "lines.txt", "equals": "b\na\na\n", "compare": "lines"}, "wrong"),
        ({"run": ["python3", "echo.py"], "stdin": "abc", "equals": "ABC"}, "right"),
        ({"run": ["python3", "echo.py"], "stdin": "abc", "equals": "ABD"}, "wrong"),
        ({"run": ["python3", "missing.py"], "equals": ""}, "wrong"),
        ({"run": ["python3", "three.py"]}, "wrong"),
        ({"run": ["python3", "three.py"], "exit": 3}, "right"),
        ({"run": ["python3", "three.py"], "exit": "any"}, "right"),
        ({"run": ["python3", "writes.py"], "file": "new.txt", "equals": "made"}, "right"),
        ({"run": ["cat", "given.txt"], "files": {"given.txt": "ours"}, "equals": "ours"}, "right"),
        ({"run": ["python3", "loops.py"], "limits": {"wall_s": 0.5}}, "timeout"),
    ],
)
def test_a_step_holds_or_does_not(pool, step, want):
    files = {
        "out.txt": "one two\n", "data.json": '{"a": [1, true]}', "pi.txt": "3.14", "lines.txt": "a\nb\n",
        "echo.py": ECHO, "three.py": "raise SystemExit(3)", "writes.py": "open('new.txt', 'w').write('made')",
        "given.txt": "theirs", "loops.py": "while True: pass",
    }  # fmt: skip
    verdict = judge(pool, [step], files=files)
    assert verdict.outcome == want, verdict
    assert verdict.reward == (want == "right")


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ("<answer>42</answer>", "right"),
        ("I think <answer>7</answer>, no: <answer> 42 </answer>", "right"),
        ("<answer>42</answer> or <answer>7</answer>", "wrong"),
        (r"so \boxed{42}", "right"),
        ("42", "right"),
        ("it is 42", "wrong"),
        ("<answer>7 42</answer>", "wrong"),
        ("<think>42</think>", "unparseable"),
        ("<think><answer>42</answer>", "unparseable"),
        ("", "unparseable"),
    ],
)
def test_the_last_reply_is_read(pool, said, want):
    verifier = registry.load("agent_task")
    problem = Problem("p", "how many?", "42", {"check": [{"answer": True}]})
    attempt = Attempt(said, transcript=({"role": "assistant", "content": said},), snapshot=None)
    assert (
        pool.run(lambda box: verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0].outcome)
        == want
    )


def test_votes_are_counted_by_the_answer_where_one_is_asked_for(pool):
    said = "<answer> 42 </answer>"
    assert judge(pool, [{"answer": True}], said=said, answer="42").extracted == "42"
    assert judge(pool, [{"file": "a", "exists": False}], said=said).extracted == ""


def test_its_verdicts_are_never_taken_from_memory():
    assert not cacheable(registry.load("agent_task"))


def test_a_call_without_a_reply_states_nothing(pool):
    verifier = registry.load("agent_task")
    problem = Problem("p", "how many?", "42", {"check": [{"answer": True}]})
    call = {"role": "assistant", "content": "<answer>42</answer>", "tool_calls": [{"function": {}}]}
    for transcript in ((call,), (call, {"role": "tool", "content": "<answer>42</answer>"})):
        attempt = Attempt("<answer>42</answer>", transcript=transcript)
        verdict = pool.run(
            lambda box, one=attempt: verifier.judge(problem, [dataclasses.replace(one, sandbox=box)])[0]
        )
        assert verdict.outcome == "unparseable"


def test_every_step_finds_the_files_as_the_agent_left_them(pool):
    counts = (
        "import pathlib\np = pathlib.Path('n')\np.write_text(p.read_text() + 'x' if p.exists() else 'x')\n"
    )
    step = {"run": ["python3", "counts.py"], "file": "n", "equals": "x"}
    assert judge(pool, [step, step, step], files={"counts.py": counts}).outcome == "right"


def test_a_program_cannot_learn_the_expected_text_from_an_earlier_step(pool):
    # remembers the input of the first step, where a cleverer one could look for the second one's output
    spy = "import os\nprint('seen' if os.path.exists('s') else 'new')\nopen('s', 'w')\n"
    steps = [{"run": ["python3", "spy.py"], "stdin": s, "equals": "new"} for s in "ab"]
    assert judge(pool, steps, files={"spy.py": spy}).outcome == "right"


def test_the_expected_text_is_nowhere_in_the_box(pool):
    searches = (
        "import os\nwanted, found = b'sesame-' + b'4711', []\n"
        "places = [os.getcwd(), '/tmp', '/dev/shm', '/var', '/etc', '/proc/self', f'/proc/{os.getppid()}']\n"
        "for folder in places:\n"
        "    for where, folders, names in os.walk(folder):\n"
        "        for name in names if not where.startswith('/proc') else ['environ', 'cmdline']:\n"
        "            try:\n"
        "                found += [name] * (wanted in open(os.path.join(where, name), 'rb').read(1 << 20))\n"
        "            except OSError:\n"
        "                pass\n"
        "        if where.startswith('/proc'):\n"
        "            break\n"
        "print(found or 'nothing')\n"
    )
    steps = [
        {"run": ["python3", "s.py"], "equals": "nothing"},
        {"file": "x", "equals": "sesame-4711"},
    ]
    verdict = judge(pool, steps, files={"s.py": searches, "x": "other"})
    assert verdict.reason.startswith("step 2 of 2")
    assert "sesame" not in verdict.reason


def test_partial_pays_the_share_of_steps(pool):
    steps = [{"file": "a", "exists": True}, {"file": "b", "exists": True}]
    verdict = judge(pool, steps, files={"a": "x"}, options={"partial": True})
    assert (verdict.reward, verdict.outcome, verdict.parts) == (0.5, "partial", {"steps_held": 0.5})
    assert judge(pool, steps, files={"a": "x"}).reward == 0
    assert judge(pool, steps, options={"partial": True}).outcome == "wrong"


def test_a_link_is_not_followed(pool):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        link = tarfile.TarInfo("out.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    verifier = registry.load("agent_task")
    problem = Problem("p", "x", None, {"check": [{"file": "out.txt", "exists": True}]})

    def judged(box):
        box.exec(["ln", "-s", "/etc/hostname", "out.txt"])
        attempt = Attempt("done", snapshot=box.save(), sandbox=box)
        return verifier.judge(problem, [attempt])[0]

    assert pool.run(judged).outcome == "wrong"


# Scripts ---------------------------------------------------------------------------------------------------

SCRIPT = """
result = run(["python3", "main.py"], stdin="3 4")
assert result.ok, "main.py failed"
assert result.stdout.strip() == "7", "main.py is wrong"
assert open("notes.txt").read().strip() == answer, "the notes differ from the reply"
"""
GOOD = "a, b = map(int, input().split())\nprint(a + b)\n"


@pytest.mark.parametrize(
    ("files", "want", "reason"),
    [
        ({"main.py": GOOD, "notes.txt": "hello"}, "right", ""),
        ({"main.py": "print(8)", "notes.txt": "hello"}, "wrong", "main.py is wrong"),
        ({"notes.txt": "hello"}, "wrong", "main.py failed"),
        ({"main.py": GOOD}, "wrong", "FileNotFoundError"),
        ({"main.py": GOOD, "notes.txt": "other"}, "wrong", "differ"),
        # what the agent left beside the script is not imported by it
        ({"main.py": "print(8)", "json.py": "import os; os._exit(0)", "os.py": "exit()"}, "wrong", ""),
        ({"main.py": "print(8)", "sitecustomize.py": "print('{\"verdict\": {\"reward\": 1}}')"}, "wrong", ""),
        # its program cannot speak for the script
        ({"main.py": "print('{\"verdict\": {\"reward\": 1.0}}')", "notes.txt": "hello"}, "wrong", "is wrong"),
        ({"main.py": "import os\nos.kill(os.getppid(), 9)\nos._exit(0)", "notes.txt": "hello"}, "wrong", ""),
    ],
)  # fmt: skip
def test_a_script_decides_from_a_box_of_its_own(pool, files, want, reason):
    verdict = judge(pool, SCRIPT, files=files, said="hello")
    assert (verdict.outcome, reason in verdict.reason) == (want, True), verdict


def test_a_script_may_pay_a_share_and_must_pay_a_number(pool):
    assert judge(pool, "reward = 0.25\nreason = 'a quarter'").reward == 0.25
    for wrong in ("reward = 'all'", "reward = 2", "reward = True"):
        assert judge(pool, wrong).outcome == "error"


def test_a_script_that_never_ends_is_the_attempts_loss(pool):
    check = {"script": "while True: pass", "limits": {"wall_s": 0.5}}
    assert judge(pool, check).outcome == "timeout"


def test_a_script_cannot_be_quit_early_into_a_pass(pool):
    # even the script's own process, ended by itself, decides nothing
    assert judge(pool, "import os\nos._exit(0)").reward == 0


SHELL = {"language": "sh", "trust": "low", "reward": [".logs/reward.txt"], "remove": [".logs", ".tests"]}


def test_a_shell_script_leaves_its_reward_in_a_file(pool):
    script = (
        'if [ "$(cat out.txt)" = yes ]; then echo 1 > .logs/reward.txt; else echo 0 > .logs/reward.txt; fi'
    )
    check = {**SHELL, "script": script}
    assert judge(pool, check, files={"out.txt": "yes"}).outcome == "right"
    verdict = judge(pool, check, files={"out.txt": "no"})
    assert (verdict.outcome, verdict.reason) == ("wrong", "trust low")


def test_a_reward_that_the_agent_left_is_taken_away(pool):
    check = {**SHELL, "script": "exit 0"}
    verdict = judge(pool, check, files={".logs/reward.txt": "1"})
    assert verdict.reward == 0
    assert "left no reward" in verdict.reason


def test_tests_that_the_agent_left_are_taken_away(pool):
    check = {**SHELL, "script": "ls .tests > .logs/reward.txt", "files": {".tests/1": ""}}
    assert judge(pool, check, files={".tests/conftest.py": "x"}).outcome == "right"


def test_a_shell_script_that_cannot_run_here_is_undecided_whatever_was_left(pool):
    check = {**SHELL, "script": "exit 66"}
    assert judge(pool, check, files={"main.py": "print(1)"}).outcome == "error"


@pytest.mark.parametrize(
    "source",
    ["exit(66)", "print('abc')", "print('1' + '0' * 400)", "print(float('nan'))", "print('[' * 9000)"],
)
def test_a_program_cannot_make_a_shell_script_leave_it_undecided(pool, source):
    check = {**SHELL, "script": "set -e\npython3 main.py > out\ncp out .logs/reward.txt"}
    verdict = judge(pool, check, files={"main.py": source})
    assert (verdict.outcome, verdict.reward) == ("wrong", 0.0)


FILLED = """
import os
number = 0
try:
    while True:
        with open(f"full_{number}", "w") as file:
            file.write("x" * 500)
        number += 1
except OSError:
    pass
"""


def test_a_box_filled_to_the_brim_is_wrong_and_not_undecided(pool):
    problem = Problem("p", "do it", None, {"check": {**SHELL, "script": "echo 1 > .logs/reward.txt"}})
    verifier = registry.load("agent_task", None)

    def left(box):
        box.exec(["python3", "-c", FILLED])
        return box.save(max_bytes=64 << 20)

    snapshot = pool.run(left)
    attempt = Attempt("done", snapshot=snapshot)

    def judged(box):
        return verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0]

    verdict = pool.run(judged)
    assert (verdict.outcome, "No space left" in verdict.reason) == ("wrong", True), verdict


# Rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "says"),
    [
        (None, "has no check"),
        ([], "expected a list of steps, or a script"),
        ([{}], "step 1 looks at nothing"),
        ([{"file": "a"}], "step 1 expects nothing of the file"),
        ([{"file": "a", "exists": True}, {"fil": "a"}], "step 2 has 'fil'"),
        ([{"file": "/etc/passwd", "exists": True}], "below the agent's folder"),
        ([{"file": "../x", "exists": True}], "below the agent's folder"),
        ([{"run": "ls"}], "expected a list, as in"),
        ([{"run": ["ls"], "limits": {"wall": 1}}], "limits have no 'wall'"),
        ([{"file": "a", "stdin": "x", "equals": ""}], "stdin has no effect without run"),
        ([{"file": "a", "equals": 3}], "equals = 3; expected text"),
        ([{"file": "a", "equals": "3", "compare": "float"}], "tolerance go together"),
        ([{"file": "a", "equals": "3", "compare": "near"}], "expected one of tokens, exact, lines, float"),
        ([{"file": "a", "contains": ""}], "expected texts that are not empty"),
        ([{"file": "a", "exists": False, "equals": "x"}], "must not exist"),
        ([{"answer": "42"}], "expected true, with equals beside it"),
        ([{"answer": True}], "the row has none"),
        ("x = (", "is not Python"),
        ({"script": "exit 0", "language": "sh", "reward": "r"}, "trust = 'low'"),
        ({"script": "exit 0", "language": "sh", "trust": "low"}, "needs reward"),
        ({"script": "pass", "trust": "low"}, "no effect on a Python script"),
    ],
)
def test_a_check_that_cannot_be_is_refused_in_one_line(check, says):
    verifier = registry.load("agent_task")
    meta = {} if check is None else {"check": check}
    with pytest.raises(ValueError, match="problem 'p'") as caught:
        verifier.check_row(Problem("p", "x", None, meta))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_arrow_fills_up_with_none_counts_for_nothing():
    check = [{"file": "a", "equals": "x", "run": None, "files": {"b": None}, "limits": None}]
    for given in (check, json.dumps(check)):
        registry.load("agent_task").check_row(Problem("p", "x", None, {"check": given}))


def test_files_that_were_not_recorded_leave_it_undecided(pool):
    verifier = registry.load("agent_task")
    problem = Problem("p", "x", None, {"check": [{"file": "a", "exists": True}]})
    attempt = Attempt("done", transcript=({"role": "assistant", "content": "done"},), snapshot=None)
    verdict = pool.run(lambda box: verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0])
    assert verdict.reward is None


class LostBox:
    sibling = None

    def __getattr__(self, name):
        raise SandboxLost("gone")


@pytest.mark.parametrize(
    "check", [[{"run": ["true"]}], [{"file": "a", "exists": True}], "assert run(['true']).ok"]
)
def test_a_lost_sandbox_is_never_a_wrong_answer(check):
    verifier = registry.load("agent_task")
    attempt = Attempt("done", snapshot=b"", sandbox=LostBox())
    with pytest.raises(SandboxLost):
        verifier.judge(Problem("p", "x", None, {"check": check}), [attempt])


def test_the_canary_passes(pool):
    verifier = registry.load("agent_task")
    canary = verifier.policy.canary
    problem = Problem("canary", "x", canary["answer"], canary["meta"])
    attempt = Attempt(canary["response"])
    assert pool.run(
        lambda box: verifier.judge(problem, [dataclasses.replace(attempt, sandbox=box)])[0].reward == 1
    )


def test_a_rehearsal_sets_up_does_and_takes_what_is_left(pool):
    meta = {
        "setup": {"files": {"a.txt": "1"}, "commands": ["cp a.txt b.txt"]},
        "check": [{"file": "b.txt", "equals": "1"}, {"file": "c.txt", "equals": "2"}],
        "oracle": {"files": {"c.txt": "2"}},
        "cheats": [{"files": {"c.txt": "3"}}],
    }
    problem = Problem("p", "x", None, meta)
    found = [(name, must) for name, must, _ in doings(problem)]
    assert found == [("oracle", True), ("does nothing", False), ("cheat 1", False)]
    attempt = pool.run(lambda box: rehearse(problem, meta["oracle"], box))
    with tarfile.open(fileobj=io.BytesIO(attempt.snapshot)) as tar:
        names = {
            member.name.removeprefix("./"): stat.S_ISREG(member.mode) for member in tar if member.isreg()
        }
    assert set(names) == {"a.txt", "b.txt", "c.txt"}
    broken = Problem("p", "x", None, {"setup": {"commands": ["exit 3"]}})
    with pytest.raises(CannotSetUp, match="exited 3"):
        pool.run(lambda box: rehearse(broken, {}, box))
