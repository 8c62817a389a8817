import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.tiny import write_recipe
from verigrad.engine import audit, audit_tables, cli, config, data
from verigrad.engine.quick_audit import VerifierRefused, note_control
from verigrad.engine.screen import Screen
from verigrad.engine.settings import DataConfig
from verigrad.sandboxes.conformance import CheckResult
from verigrad.verifiers import registry

MINE = '''\
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Policy, Verdict, verifier
from verigrad.verifiers.audit_cases import probe


@verifier("always", runs="inline")
def always(text, answer):
    return 1.0


@verifier("silent_zero", runs="inline")
def silent_zero(text, answer):
    return 0.0


@verifier("right", runs="inline")
def right(text, answer):
    return text.strip() == answer


@probe("shout")
def shout(row):
    """The prompt in capitals."""
    yield row.prompt.upper()


@probe("raises")
def raising(row):
    """Adds a number to a text."""
    yield row.prompt + 1


class LearnedGate:
    """Stands for a learned reward with a threshold: it likes questions, and numbers a little less."""

    def __init__(self, threshold=None):
        self.threshold = threshold
        setattr(self, POLICY_ATTRIBUTE, Policy("gate", runs="inline", learned=True))

    def verify(self, prompt, text):
        reward = 0.75 * ("?" in text) + 0.5 * ("number" in text)
        if self.threshold is None:
            return Verdict(reward, "partial")
        return Verdict(float(reward >= self.threshold), "right" if reward >= self.threshold else "wrong")
'''


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """A function that runs `verigrad audit` in this process: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    rows = [{"id": f"r{n}", "question": f"Who is number {n}?", "answer": name}
            for n, name in enumerate(["Ada", "Emmy", "Grace", "Hypatia"])]  # fmt: skip
    (tmp_path / "who.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(["audit", *words])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


WHO = ("who.jsonl", 'data.columns={prompt="question"}')


def test_a_verifier_that_holds_passes_with_one_line_per_probe(call):
    status, out, _ = call("mine.py:right", *WHO)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("mine.py:right (version 0) on 4 rows of who; answers taken for text")
    assert sum(line.startswith(" gold ") for line in lines) == 1
    assert lines[-1].startswith("passed (")


def test_one_that_is_fooled_ends_with_1_and_the_worst_case_of_each_probe(call):
    status, out, _ = call("mine.py:always", *WHO, "-o", "audit.json")
    assert status == 1
    assert "\nempty [nothing], row r0: '' -> reward 1 (right)" in out
    assert "FAILED: " in out.splitlines()[-1]
    written = json.loads(Path("audit.json").read_text())
    assert written["passed"] is False
    assert {one["name"] for one in written["results"]} >= {"gold", "empty", "latency", "threads"}


def test_a_learned_reward_that_pays_the_question_given_back_is_told_plainly(call):
    rows = [{"prompt": f"Who is {n}?", "answer": f"She is the number {n} ."} for n in range(40)]
    Path("said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def audited(*words):
        status, out, err = call("mine.py:LearnedGate", "said.jsonl", *words)
        assert status == 0, out + err
        return out, {line.split("  ")[0].strip(): line for line in out.splitlines()}

    out, lines = audited()
    assert "warns" in lines["prompt copied"]
    assert "prompt copied [the prompt], row" in out
    assert "shown" in lines["prompt copy"]
    out, lines = audited("--option", "threshold=0.6")  # accepts the question, and refuses the honest answer
    assert "warns" in lines["prompt copied"]
    assert "left out" in lines["no answer"]
    assert "its threshold accepts neither" in lines["no answer"]
    assert "warns" in lines["prompt copy"]  # with a threshold there is a full reward
    assert "a learned reward with a threshold" in lines["prompt copy"]
    _, lines = audited("--option", "threshold=0.4")
    assert "ok" in lines["no answer"]
    assert "warns" in lines["prompt copied"]  # both are accepted


@pytest.mark.parametrize("column", ["chosen", "completion"])
def test_preferences_and_written_answers_are_rows_of_a_learned_reward_as_they_are(call, column):
    rows = [
        {"prompt": f"Who is {n}?", column: f"She is the number {n} .", "rejected": "no"} for n in range(9)
    ]
    Path("said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, out, _ = call("mine.py:LearnedGate", "said.jsonl", "--json")
    found = {one["name"]: one for one in json.loads(out)["results"]}
    assert status == 0
    assert (found["no answer"]["num"], found["prompt copied"]["num_bad"]) == (9, 9)
    status, _, err = call("mine.py:right", "said.jsonl")  # who asks for the answer gets no stand-in
    assert status == 2
    assert "has no column 'answer'" in err


def test_a_long_audit_says_on_the_error_output_what_it_does(call, monkeypatch):
    monkeypatch.setattr(audit, "SAY_EVERY_S", 0.0)
    status, out, err = call("mine.py:right", *WHO, "--json")
    assert status == 0
    assert json.loads(out)["passed"]
    assert "audit: gold: 0 of 4 cases judged\naudit: gold: 1 of 4 cases judged\n" in err
    assert {"audit: repeats", "audit: threads"} <= set(err.splitlines())
    monkeypatch.setattr(audit, "SAY_EVERY_S", 1e9)
    assert call("mine.py:right", *WHO)[2] == ""


def test_json_is_all_there_is_on_standard_output(call):
    status, out, _ = call("mine.py:right", *WHO, "--json", "--only", "gold")
    assert status == 0
    report = json.loads(out)
    gold = report["results"][0]
    assert (gold["name"], gold["num"], gold["num_bad"], gold["low"]) == ("gold", 4, 0, 0.0)
    assert gold["high"] == pytest.approx(0.489891, abs=1e-6)  # z^2 / (4 + z^2)


def test_a_probe_of_ones_own_and_a_second_verifier(call):
    status, out, _ = call("mine.py:right", *WHO, "--probe", "mine.py:shout", "--only", "shout", "--only",
                          "gold", "--second", "mine.py:silent_zero", "--json")  # fmt: skip
    assert status == 0
    names = {one["name"]: one for one in json.loads(out)["results"]}
    assert names["shout"]["num"] == 4
    assert (names["second verifier"]["num"], names["second verifier"]["num_bad"]) == (8, 4)


def test_a_limit_is_the_users_to_set(call):
    words = ("mine.py:silent_zero", *WHO, "--only", "gold")
    assert call(*words)[0] == 1
    assert call(*words, "--allow", "gold=1.0")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "expected VERIFIER and DATA, or --sandbox NAME"),
        (("math_anser", *WHO), "did you mean 'math_answer'?"),
        (("math_answer", "nothere.jsonl"), "no file nothere.jsonl"),
        (("math_answer", "who.jsonl"), "has no column 'prompt'"),
        (("countdown", *WHO), "needs 'nums'"),
        (("mine.py:right", *WHO, "--option", "strict=true"), "has no option 'strict'"),
        (("mine.py:right", *WHO, "--allow", "gold"), "expected PROBE=SHARE"),
        (("mine.py:right", *WHO, "--allow", "golden=0.1"), "no such probe"),
        (("mine.py:right", *WHO, "--only", "golden"), "no such probe"),
        (("mine.py:right", *WHO, "--probe", "mine.py:right"), "mark the function with @probe"),
        (("mine.py:right", *WHO, "--probe", "mine.py:raising"), "the probe 'raises' failed on row"),
        (("mine.py:right", *WHO, "--limit", "0"), "expected at least 1 row"),
        (("mine.py:right", *WHO, "verifier.cache=false"), "no effect on `verigrad audit`"),
        (("mine.py:right", *WHO, "optim.lr=1"), "optim.lr has no effect on `verigrad audit`"),
        (("mine.py:right", *WHO, "sandbox.colour=red"), "sandbox.colour is not a setting"),
        (("--sandbox", "dockr"), "dockr"),
        (("--sandbox", "bubblewrap", "who.jsonl"), "takes no VERIFIER and DATA"),
    ],
)
def test_wrong_words_are_told_in_one_line_with_status_2(call, words, says):
    status, out, err = call(*words)
    assert status == 2
    assert says in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_sandbox_that_does_not_work_here_is_told_in_one_line(call):
    status, out, err = call("--sandbox", "local_process")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "sandbox.trusted = true" in err


def test_a_sandbox_is_checked_promise_by_promise(call, monkeypatch):
    """The suite itself runs in tests/sandboxes; here, what is made of its results."""
    held = CheckResult("exit_codes", "An exit code is reported as it was.", "held", "", 0.1)
    broken = CheckResult("forks", "Forks are limited.", "broken", "400 children", 0.1)
    given = []

    def suite(spec, only):
        given.append((spec.backend, only))
        return [held, broken][: 1 if only else 2]

    monkeypatch.setattr("verigrad.sandboxes.conformance.run", suite)
    words = ("--sandbox", "local_process", "sandbox.trusted=true")
    status, out, _ = call(*words)
    assert status == 1
    assert "400 children" in out
    assert out.splitlines()[-1] == "local_process: 2 promises, 1 broken"
    status, out, _ = call(*words, "--json", "--only", "exit_codes")
    assert (status, json.loads(out)["passed"]) == (0, True)
    assert given == [("local_process", None), ("local_process", ["exit_codes"])]


def test_a_sandbox_is_really_checked(call):
    status, out, _ = call(
        "--sandbox", "local_process", "sandbox.trusted=true", "--only", "exit_codes", "--json"
    )
    assert status == 0
    assert [row["status"] for row in json.loads(out)["checks"]] == ["held"]


def test_a_promise_that_could_not_be_checked_is_not_held():
    for status, counts in (
        ("held", False),
        ("not applicable", False),
        ("broken", True),
        ("failed to run", True),
    ):
        assert audit_tables.is_broken(CheckResult("n", "p", status, "", 0.0)) is counts


# Rows ------------------------------------------------------------------------------------------------------


def test_a_sample_is_drawn_from_all_rows_and_holds_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"{n}?", "answer": str(n)}) + "\n" for n in range(100)) + "{}\n"
    )
    cfg = DataConfig(path=str(path), on_bad_row="stop")
    some = [problem.answer for problem in data.sample(cfg, seed=0, num=10)]
    assert len(set(some)) == 10
    assert some[0] == "0"
    assert max(map(int, some)) > 50
    assert some == [problem.answer for problem in data.sample(cfg, seed=0, num=10)]
    assert some != [problem.answer for problem in data.sample(cfg, seed=1, num=10)]
    assert len(data.sample(cfg, seed=0, num=1000)) == 100


# Before training -------------------------------------------------------------------------------------------


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A function that trains two steps of the tiny recipe: (status, run folder, what the screen showed)."""
    from rich.console import Console

    from verigrad.engine.train import train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)

    def run(*overrides):
        console = Console(record=True, width=200, file=open(tmp_path / "screen.txt", "a"))  # noqa: SIM115
        few = ["train.num_steps=2", "eval.every=0", "data.num_eval=0", "eval.pass_k=[]", "eval.num_samples=1",
               "eval.temperature=0.0"]  # fmt: skip
        cfg = config.load(str(write_recipe(tmp_path)), [*few, *overrides])
        with Screen(console) as screen:
            status = train(cfg, screen)
        return status, tmp_path / "run", console.export_text()

    return run


def test_training_audits_first_and_records_it(task):
    status, run, shown = task()
    assert status == 0
    assert "verifier audit: verifiers_of_tests.py:low_first passes" in shown
    report = json.loads((run / "audit.json").read_text())
    assert report["passed"] is True
    assert report["num_rows"] == 8
    assert json.loads((run / "environment.json").read_text())["control"] is False


@pytest.mark.parametrize(("name", "probe"), [("always", "empty"), ("silent_zero", "gold")])
def test_a_verifier_that_is_fooled_is_refused_before_a_model_is_made(task, name, probe, tmp_path):
    with pytest.raises(VerifierRefused) as caught:
        task(f"verifier.name=mine.py:{name}", "policy.model=no/such-model", "verifier.audit_rows=4")
    text = str(caught.value)
    assert f"verifier.name = 'mine.py:{name}' fails the audit: {probe}" in text
    assert ", row " in text
    assert "verifier.audit = 'off'" in text
    assert "\n" not in text
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["passed"] is False


def test_a_refused_verifier_trains_once_the_audit_is_off(task):
    with pytest.raises(VerifierRefused):
        task("verifier.name=mine.py:always")
    status, _, shown = task("verifier.name=mine.py:always", "verifier.audit=off")
    assert status == 0
    assert "verifier audit" not in shown


def test_a_control_runs_and_labels_its_run(task):
    status, run, shown = task("verifier.name=random")
    assert status == 0
    assert json.loads((run / "environment.json").read_text())["control"] is True
    assert json.loads((run / "audit.json").read_text())["control"] is True
    assert "CONTROL: random pays whatever is answered" in shown
    assert "CONTROL" in (run / "log.txt").read_text()
    assert shown.rindex("CONTROL") > shown.rindex("what was trained") - 400  # in the summary, too


def test_noise_upon_a_reward_that_knows_something_makes_no_control():
    noise = {"verifier": "random", "weight": 0.3}
    noted = []
    run = SimpleNamespace(note=noted.append)
    both = registry.load("combine", {"parts": {"truth": {"verifier": "math_answer"}, "noise": noise}})
    assert not note_control(both, run)
    assert noted == ["a part of what combine pays is drawn at random, whatever is answered"]


ENVIRONMENT = """
from verigrad.engine.environment import Environment


def rows(*, seed):
    yield {"prompt": "Write 7 to a.txt.", "meta": {
        "setup": {"SETUP": {"b.txt": "7"}},
        "check": [{"file": "a.txt", "equals": "7"}],
        "oracle": {"files": {"a.txt": "7"}},
        "cheats": [{"commands": ["cp b.txt a.txt"]}],
    }}


TASK = Environment(rows=rows, tools=["TOOL"], sandbox={"memory_mb": 300})
"""


def test_a_cheat_that_succeeds_is_told_with_what_was_asked_and_done(call, tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENT.replace("SETUP", "files").replace("TOOL", "shell"))
    words = ["sandbox.backend=local_process", "sandbox.trusted=true", "--only", "cheats"]
    status, out, _ = call("agent_task", f"environment:{tmp_path}/env.py:TASK", *words)
    assert status == 1
    assert """'Write 7 to a.txt.' {"commands": ["cp b.txt a.txt"]} -> reward 1 (right)""" in out


@pytest.mark.parametrize(
    ("setup", "tool", "only", "says"),
    [
        ("file", "shell", "cheats", "setup has no 'file'; expected some of files, commands"),
        ("files", "shel", "cheats", "agent.tools: 'shel' is not known"),
        ("files", "shell", "gold", "--only gold: no probe of 'agent_task' on these rows"),
    ],
)
def test_an_environment_that_cannot_be_played_is_told_in_one_line(setup, tool, only, says, call, tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENT.replace("SETUP", setup).replace("TOOL", tool))
    words = ["sandbox.backend=local_process", "sandbox.trusted=true", "--only", only]
    status, _, err = call("agent_task", f"environment:{tmp_path}/env.py:TASK", *words)
    assert status == 2
    assert says in err


def test_what_an_environment_says_of_the_sandbox_holds_for_the_audit(tmp_path):
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    path = f"environment:{tmp_path}/env.py:TASK"
    assert audit.settings_of([], path=path).sandbox.memory_mb == 300
    assert audit.settings_of(["sandbox.memory_mb=400"], path=path).sandbox.memory_mb == 400
