"""The command line's contract: statuses, one line for what a user did, a traceback only when asked for."""

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest

from tests.tiny import run_cli, write_recipe
from verigrad.engine import cli
from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """A function that runs a command in this process: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path)
    capsys.readouterr()

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def test_help_names_every_verb_and_shows_an_example(call):
    status, out, _ = call("--help")
    assert status == 0
    assert all(verb in out for verb in cli.VERBS)
    assert "verigrad train quickstart" in out


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(call, verb):
    status, out, _ = call(verb, "--help")
    assert status == 0
    assert f"verigrad {verb}" in out
    assert "--debug" in out
    assert "example" in out.lower()


def test_no_verb_and_an_unknown_one_are_the_users_input(call):
    for words in ([], ["tarin", "x"]):
        status, _, err = call(*words)
        assert status == 2
        assert "Traceback" not in err
    assert "tarin" in err


def test_version(call):
    status, out, _ = call("--version")
    assert status == 0
    assert out.startswith("verigrad 0.")


def test_a_dry_run_prints_a_recipe_that_loads_and_what_a_step_will_do(call, tmp_path):
    status, out, err = call("train", "tiny.toml", "train.seed=5", "--dry-run")
    assert (status, err) == (0, "")
    tree = tomllib.loads(out)  # the algebra stands in comments
    assert tree["train"]["seed"] == 5
    assert tree["algorithm"]["clip_high"] == 0.28
    assert "# rollouts per step: 4 groups x 4 = 16" in out
    assert "# optimizer steps: 5 steps x 2 = 10, each over 8 rollouts" in out
    (tmp_path / "again.toml").write_text(out)
    assert call("train", "again.toml", "--dry-run")[1] == out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_imports_no_torch(tmp_path):
    write_recipe(tmp_path)
    code = (
        "import sys; from verigrad.engine import cli; "
        "status = cli.guarded(['train', 'tiny.toml', '--dry-run']); "
        "print('#', status, sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "# 0 []", done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "no recipe 'nothing'"),
        (
            ["tiny.toml", "rollout.group_sise=4"],
            "tiny.toml: rollout.group_sise is not a setting; did you mean",
        ),
        (["tiny.toml", "rollout.top_p=0.9"], "train with top_p = 1"),
        (["tiny.toml", "seed"], "override 'seed' is not of the form section.key=value"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_status_2(call, words, says):
    status, out, err = call("train", *words)
    assert (status, out) == (2, "")
    assert err.startswith("verigrad: ")
    assert err.count("\n") == 1
    assert says in err


def test_debug_shows_the_traceback_and_changes_no_status(call):
    status, _, err = call("train", "nothing", "--debug")
    assert status == 2
    assert "Traceback" in err
    assert "ConfigError: no recipe 'nothing'" in err


@pytest.mark.parametrize(
    ("error", "status", "traced"),
    [
        (ConfigError("yours"), 2, False),
        (WorkError("the work's"), 1, False),
        (OSError(28, "No space left on device"), 1, False),
        (ZeroDivisionError("ours"), 1, True),
        (KeyboardInterrupt(), 130, False),
        (BrokenPipeError(), 1, False),
    ],
)
def test_how_each_kind_of_error_ends(call, monkeypatch, error, status, traced):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("verigrad.engine.config.load", fail)
    code, _, err = call("train", "tiny.toml")
    assert code == status
    assert ("Traceback" in err) == traced


def test_an_interrupted_training_is_told_to_go_on(call, monkeypatch):
    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("verigrad.engine.config.load", fail)
    assert "the same command goes on" in call("train", "tiny.toml")[2]


def test_verifiers_are_listed(call):
    status, out, _ = call("verifiers")
    assert status == 0
    assert "math_answer" in out


def test_a_file_is_scored(call, tmp_path):
    cases = [{"response": "4", "answer": "4"}, {"response": "5", "answer": "4"}]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    status, _, _ = call("verify", "exact_match", "cases.jsonl", "-o", "out.jsonl")
    assert status == 0
    verdicts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in verdicts] == [1.0, 0.0]


def test_the_installed_command_is_this(tmp_path):
    status, out, err = run_cli("train", "nothing", folder=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("verigrad: no recipe")
    command = os.path.join(os.path.dirname(sys.executable), "verigrad")
    assert subprocess.run([command, "--version"], capture_output=True, text=True).stdout.startswith(
        "verigrad "
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tarin"], "no verb 'tarin'; did you mean train?"),
        (["train", "tiny"], "no recipe 'tiny'; did you mean tiny.toml?"),
        (["train", "tyny.toml"], "did you mean tiny.toml?"),
        (["train", "tiny.toml", "group_size=4"], "did you mean rollout.group_size=4?"),
        (["train", "tiny.toml", "--rollout.group_size=4"], "settings are written without --"),
        (["train"], "are required: recipe; see verigrad train --help\n"),
        (["train", "tiny.toml", "--dryrun"], "--dryrun: no such option, did you mean --dry-run?"),
        (
            ["card", "run", "--efects", "x"],
            "verigrad: --efects: no such option, did you mean --effects?; see",
        ),
        (["card", "run", "--zzz"], "--zzz: no such option; see verigrad card --help\n"),
        (
            ["verify", "exact_match", "c.jsonl", "d.jsonl"],
            "d.jsonl: more words than it takes; see verigrad verify",
        ),
        (["eval", "run", "--n", "many"], "argument --n: invalid int value: 'many'; see verigrad eval --help"),
        (
            ["audit", "exact_match", "c.jsonl", "--data.split=x"],
            "settings are written without --: data.split=x",
        ),
        (["audit", "exact_match", "c.jsonl", "--limt", "3"], "--limt: no such option, did you mean --limit?"),
    ],
)
def test_what_was_meant(call, words, says):
    status, out, err = call(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "none/x.md"),
            "none/x.md: no such file or directory; ",
        ),
        (IsADirectoryError(21, "Is a directory", "runs"), "runs: is a directory; name a file\n"),
        (OSError("the service is gone"), "verigrad: the service is gone\n"),
        (OSError(5, "Input/output error", "x"), "verigrad: x: input/output error\n"),
    ],
)
def test_an_error_of_the_system_names_the_file_and_a_way_out(call, monkeypatch, error, says):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("verigrad.engine.config.load", fail)
    status, _, err = call("train", "tiny.toml")
    assert (status, err.count("\n")) == (1, 1)
    assert says in err


def test_settings_of_an_audit_may_follow_its_options(tmp_path):
    words = ["exact_match", "c.jsonl", "data.options={num=3}"]
    for order in (words, [*words[:2], "--limit", "9", words[2]], ["--limit", "9", *words]):
        args = cli.parse(["audit", *order, "--json"])
        assert sorted(args.words) == sorted(words)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_lists_the_exit_statuses(call, verb):
    assert cli.STATUSES in call(verb, "--help")[1]


def test_a_closed_pipe_is_said(tmp_path):
    write_recipe(tmp_path)
    command = (
        f"{sys.executable} -m verigrad.engine.cli train tiny.toml --dry-run | true; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "the reader of its output is gone" in done.stderr


def test_flags_and_settings_come_in_any_order(tmp_path):
    recipe = str(write_recipe(tmp_path))
    words = ["train", recipe, "train.seed=3", "--dry-run", "--debug", "train.num_steps=7"]
    for order in (words, [words[0], "--debug", *words[1:4], words[5]]):
        args = cli.parse(order)
        assert (args.verb, args.recipe, args.dry_run, args.debug) == ("train", recipe, True, True)
        assert sorted(args.overrides) == ["train.num_steps=7", "train.seed=3"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "verifier.name=math_anwser",
            "verifier.name: verifier 'math_anwser' is not known; did you mean 'math_answer'?",
        ),
        ("eval.verifier=nothing", "eval.verifier: verifier 'nothing' is not known"),
        ("verifier.options={a=1}", "verifier.name: "),
        ("policy.model=/no/such", "policy.model = '/no/such': no such folder"),
    ],
)
def test_a_dry_run_sees_what_needs_no_data(tmp_path, monkeypatch, override, says):
    recipe = write_recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(says)):
        cli.run_recipe(cli.parse(["train", str(recipe), override, "--dry-run"]))


def test_without_a_verb_the_verbs_are_named(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.parse([])
    assert ended.value.code == 2
    assert (
        "what is to be done? train, sft, prefer, reward, label, sample, algorithms, eval"
        in capsys.readouterr().err
    )
