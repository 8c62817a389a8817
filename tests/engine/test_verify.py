"""`verigrad verify` and `verigrad verifiers`, called as the command line calls them."""

import argparse
import json
import subprocess
import sys

import pytest

from verigrad.engine import cli, list_verifiers, verify


def call(module, *words):
    parser = argparse.ArgumentParser(prog="verigrad")
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def cases(tmp_path):
    def write(*rows):
        path = tmp_path / "cases.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def test_verdicts_stand_in_the_order_of_the_cases(cases, tmp_path):
    rows = [{"response": rf"\boxed{{{n % 3}}}", "answer": 1, "prompt": "1?"} for n in range(30)]
    out = tmp_path / "new" / "out.jsonl"
    assert call(verify, "math_answer", cases(*rows), "-o", out) == 0
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["index"] for row in verdicts] == list(range(30))
    assert [row["reward"] for row in verdicts] == [1.0 if n % 3 == 1 else 0.0 for n in range(30)]
    assert set(verdicts[0]) == {"index", "reward", "outcome", "parts", "reason", "seconds"}


def test_verdicts_go_to_stdout_and_the_summary_to_stderr(cases, capsys):
    path = cases({"response": "yes", "answer": "YES"}, {"response": "no", "answer": "YES"})
    assert call(verify, "exact_match", path, "--option", "casefold=true", "--json") == 0
    captured = capsys.readouterr()
    assert [json.loads(line)["outcome"] for line in captured.out.splitlines()] == ["right", "wrong"]
    summary = json.loads(captured.err)
    assert summary["cases"] == 2
    assert summary["right"] == 1
    assert summary["reward"] == 0.5


def test_an_undecided_case_is_null_and_exits_with_1(cases, capsys):
    assert call(verify, "exact_match", cases({"response": "yes"})) == 1
    assert json.loads(capsys.readouterr().out)["reward"] is None


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (
            "{broken",
            "cases.jsonl line 2: is not JSON (Expecting property name enclosed in double quotes at column 2)",
        ),
        ("[1]", "cases.jsonl line 2: found list"),
        ('{"answer": 1}', "cases.jsonl line 2: no 'response'"),
        ('{"response": 5, "answer": 1}', "cases.jsonl line 2: response = 5"),
        ('{"response": "a", "anwser": 1}', "cases.jsonl line 2: unknown field 'anwser'"),
        ('{"response": "a", "meta": 3}', "cases.jsonl line 2: meta is int"),
    ],
)
def test_a_malformed_line_is_named_and_the_old_output_is_kept(cases, tmp_path, capsys, line, complaint):
    out = tmp_path / "out.jsonl"
    out.write_text("earlier work\n")
    assert call(verify, "exact_match", cases({"response": "a", "answer": "a"}, line), "-o", out) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1
    assert out.read_text() == "earlier work\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["exact_mach"], "did you mean 'exact_match'?"),
        (["exact_match", "--option", "casefoldd=true"], "did you mean 'casefold'?"),
        (["exact_match", "--option", "casefold"], "expected key=value"),
        (["exact_match", "--num-workers", "0"], "at least 1 worker"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exits_with_2(cases, capsys, words, complaint):
    name, *rest = words
    assert call(verify, name, cases({"response": "a", "answer": "a"}), *rest) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("\n") == 1


SERVED = """\
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Policy
from verigrad.verifiers.services import Service


class Served:
    def __init__(self, server=""):
        setattr(self, POLICY_ATTRIBUTE, Policy("served", services=(Service(server, ready_s=20.0),)))

    def verify(self, text):
        return 1.0
"""


@pytest.mark.parametrize(
    ("ends", "status", "says"),
    [
        ("sys.exit('no memory left')", 1, "ended with status 1: no memory left"),
        ("print('verigrad: model = x: no such folder', file=sys.stderr); sys.exit(2)", 2, "no such folder"),
    ],
)
def test_a_service_that_does_not_start_is_1_unless_its_options_are_wrong(
    cases, tmp_path, capsys, ends, status, says
):
    (tmp_path / "served.py").write_text(SERVED)
    (tmp_path / "server.py").write_text(f"import sys\n{ends}\n")
    words = ["verify", f"{tmp_path}/served.py:Served", str(cases({"response": "a", "answer": "a"}))]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--option", f"server={tmp_path}/server.py"])
    assert ended.value.code == status
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there_exits_with_2(tmp_path, capsys):
    assert call(verify, "exact_match", tmp_path / "nowhere.jsonl") == 2
    assert "nowhere.jsonl" in capsys.readouterr().err


def test_the_list_names_what_is_built_in(capsys):
    assert call(list_verifiers, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"math_answer", "exact_match", "random"} <= set(rows)
    assert rows["math_answer"]["runs"] == "worker"
    assert rows["math_answer"]["doc"].startswith("Right if")
    assert call(list_verifiers) == 0
    assert "exact_match" in capsys.readouterr().out


def test_a_plug_in_that_does_not_import_is_listed_with_its_error(tmp_path, monkeypatch, capsys):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[verigrad.verifiers]\nbroken = broken_plugin:verify\n")
    (tmp_path / "broken_plugin.py").write_text("raise RuntimeError('no licence file')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert call(list_verifiers, "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "no licence file" in rows["broken"]["error"]
    assert rows["broken"]["from"].startswith("broken 1.0")
    assert rows["math_answer"]["error"] is None


def test_neither_verb_imports_torch():
    code = (
        "import sys; from verigrad.engine import verify, list_verifiers;"
        "assert 'torch' not in sys.modules and 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_help_shows_an_example():
    for module in (verify, list_verifiers):
        parser = argparse.ArgumentParser(prog="verigrad")
        module.add_arguments(parser)
        assert "example:" in parser.format_help()


def test_a_missing_file_and_a_json_array_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call(verify, "exact_match", "case.jsonl") == 2
    assert f"no file case.jsonl (looked from {tmp_path})" in capsys.readouterr().err
    (tmp_path / "array.jsonl").write_text('[\n{"response": "a"}\n]')
    assert call(verify, "exact_match", "array.jsonl") == 2
    assert "array.jsonl line 1: looks like one JSON array" in capsys.readouterr().err


BOXED = {
    "response": "```python\ndef f(x):\n    return x + 1\n```",
    "meta": {"entry_point": "f", "cases": [{"args": [1], "expected": 2}]},
}


def test_the_sandbox_is_chosen_and_named(cases, capsys):
    words = ["--sandbox", "local_process", "--sandbox-option", "trusted=true"]
    assert call(verify, "unit_tests", cases(BOXED), *words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["outcome"] == "right"
    assert captured.err.startswith("verigrad: sandbox: local_process\n")


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("exact_match", ["--sandbox", "container"], "--sandbox has no effect: exact_match runs nothing"),
        ("exact_match", ["--sandbox-option", "pids=8"], "--sandbox-option has no effect"),
        ("unit_tests", ["--sandbox", "containr"], "did you mean 'container'?"),
        ("unit_tests", ["--sandbox-option", "pids"], "e.g. --sandbox-option memory_mb=512"),
        ("unit_tests", ["--sandbox-option", "pid=8"], "'auto' has no such setting; it has: trusted"),
        ("unit_tests", ["--sandbox-option", "pids=many"], "--sandbox-option pids=many: Input should be"),
        ("unit_tests", ["--sandbox", "bubblewrap", "--sandbox-option", "trusted=true"], "trusted has no"),
        ("unit_tests", ["--sandbox", "local_process"], "set sandbox.trusted = true"),
    ],
)  # fmt: skip
def test_a_wrong_sandbox_is_one_line(cases, tmp_path, name, words, says, capsys):
    status = cli.guarded(["verify", name, str(cases(BOXED)), *words])
    captured = capsys.readouterr()
    assert status == (1 if "local_process" in words else 2)
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
