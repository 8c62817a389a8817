"""Recorded rollouts judged again: identical as long as nothing changed, and everything that did is named."""

import json
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.tiny import Forked, rollout, write_recipe
from verigrad.engine import cli, rollout_file
from verigrad.engine.config import ConfigError
from verigrad.engine.replay_compare import compare, differs, signs
from verigrad.engine.schema import VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict

FLIPPED = '''
from verigrad.verifiers.base import verifier

@verifier("flipped", version="9")
def flipped(text, strict=False):
    """The contrary of low_first."""
    return text[:1] not in "0123456789+-*/=()?., abc" and not strict

@verifier("hinted")
def hinted(text, hint):
    """Asks for a column that is not there."""
    return True
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 2 steps with 2 evaluations, judged in worker processes."""
    folder = tmp_path_factory.mktemp("finished")
    write_recipe(folder, verifier="in_worker")
    (folder / "flipped.py").write_text(FLIPPED)
    status, printed = Forked(
        "train", "tiny.toml", "train.num_steps=2", "verifier.audit=off", folder=folder
    ).wait()
    assert status == 0, printed
    return folder


@pytest.fixture
def replay(finished, tmp_path, monkeypatch, capsys):
    """`verigrad replay run ...` in a copy of that folder: (exit status, what it printed)."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)

    def call(*words, run="run"):
        status = cli.guarded(["replay", run, *words])
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    call.folder = folder
    return call


def test_the_same_verifier_says_the_same(replay):
    status, said = replay()
    num = sum(len(pq.read_table(path)) for path in (replay.folder / "run").glob("*/*.parquet"))
    assert (status, said) == (0, f"identical: {num} verdicts in 4 files\n")
    assert replay("--step", "2", "--set", "train")[0] == 0


def test_nothing_in_the_run_folder_is_changed(replay):
    def files():
        return {path: path.stat().st_mtime_ns for path in (replay.folder / "run").rglob("*")}

    before = files()
    replay("--verifier", "flipped.py:flipped")
    assert files() == before


def test_a_tampered_reward_is_found_and_told(replay):
    path = replay.folder / "run" / "rollouts" / "step_000002.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[5] |= {"reward": 1.0 - rows[5]["reward"], "outcome": "wrong" if rows[5]["reward"] else "right"}
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    status, said = replay("--json")
    found = json.loads(said)
    (difference,) = [one for file in found["files"] for one in file["differences"]]
    assert (status, found["identical"]) == (1, False)
    assert (difference["step"], difference["group"], difference["index"]) == (2, 1, 1)
    assert difference["what"] == ["reward", "outcome"]
    assert difference["new"]["reward"] == 1.0 - difference["old"]["reward"]
    assert replay("--step", "1")[0] == 0
    assert "1 of" in replay()[1]


def test_a_changed_verifier_is_named_with_what_it_changed(replay):
    path = replay.folder / "verifiers_of_tests.py"
    text = path.read_text().replace('@verifier("in_worker"', '@verifier("in_worker", version="2"')
    path.write_text(text.replace("return text[:1] in", "return text[:1] not in"))
    status, said = replay()
    assert status == 1
    assert "the verifier is not the one that judged" in said
    assert "and 3 more files" in said
    assert "version '0' -> '2'" in said
    assert "source '" in said
    assert "right 1" in said


def test_another_verifier_flips_groups(replay):
    status, said = replay("--verifier", "flipped.py:flipped", "--set", "train", "--json")
    found = json.loads(said)
    assert (status, found["other_verifier"], found["verifier_changed"]) == (1, True, [])
    groups = [group for file in found["files"] for group in file["groups"]]
    assert len(groups) == sum(file["num_groups"] for file in found["files"])
    for group in groups:  # the contrary of every verdict keeps the same groups and turns every sign
        assert group["new_mean"] == pytest.approx(1 - group["old_mean"])
        assert group["old_kept"] == group["new_kept"] == group["flips"]
        assert group["num_flipped"] == (4 if group["old_kept"] else 0)
    assert any(group["flips"] for group in groups)
    table = replay("--verifier", "flipped.py:flipped")[1]
    assert "groups that flip" in table
    strict = json.loads(replay("--verifier", "flipped.py:flipped", "--option", "strict=true", "--json")[1])
    assert all(file["new_reward"] == 0 for file in strict["files"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--step", "7"], "no rollouts for --step 7; it has held_out of steps 0, 2; train of steps 1 to 2"),
        (["--step", "x"], "--step x: expected a number or all"),
        (["--set", "other"], "no rollouts for --set other; it has"),
        (["--verifier", "exact_mach"], "did you mean 'exact_match'"),
        (["--verifier", "flipped.py:hinted"], "does not fit what"),
        (["--option", "nonsense"], "expected key=value"),
        (["--option", "nonsense=1"], "has no option 'nonsense'"),
    ],
)
def test_what_is_asked_wrongly_is_told_in_one_line(replay, words, says):
    status, said = replay(*words)
    assert status == 2
    assert says in said
    assert said.count("\n") == 1


def test_a_folder_that_is_no_run_or_has_a_broken_file_is_told(replay):
    status, said = replay(run="nowhere")
    assert status == 2
    assert said == f"verigrad: no folder nowhere (looked from {replay.folder}); name a run folder\n"
    assert "no run folder" in replay(run=str(replay.folder))[1]
    path = replay.folder / "run" / "rollouts" / "step_000001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    status, said = replay("--step", "1", "--set", "train")
    assert status == 2
    assert "step_000001.parquet" in said


@pytest.mark.parametrize("verb", ["sft", "prefer", "reward", "label"])
def test_a_run_that_judged_no_rollouts_is_told(replay, verb):
    folder = replay.folder / verb
    folder.mkdir()
    (folder / "config.toml").write_text(f"[{verb}]\n")
    status, said = replay(run=verb)
    assert (status, said.count("\n")) == (2, 1)
    assert (
        f"{verb} is a run of `verigrad {verb}`, which judges no rollouts: there is nothing to replay" in said
    )


def test_a_folder_of_stages_names_them_in_order(replay):
    for name in ("10_last", "2_ppo", "notes"):
        (replay.folder / "staged" / name).mkdir(parents=True)
        (replay.folder / "staged" / name / "config.toml").touch()
    status, said = replay(run="staged")
    assert (status, said.count("\n")) == (2, 1)
    assert "a recipe of stages, not of one run; name one of them: staged/2_ppo, staged/10_last\n" in said


def test_a_wrong_word_is_told_without_torch(finished):
    code = (
        "import sys; from verigrad.engine import cli; "
        "status = [cli.guarded(['replay', *words]) for words in (['nowhere'], ['run', '--step', 'x'])]; "
        "print(status, sorted({'torch', 'transformers', 'vllm'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=finished, capture_output=True, text=True)
    assert done.stdout == "[2, 2] []\n", done.stderr


def test_the_random_control_draws_the_same_again(tmp_path, monkeypatch, capsys):
    write_recipe(tmp_path)
    text = (tmp_path / "tiny.toml").read_text().replace("verifiers_of_tests.py:low_first", "random")
    (tmp_path / "tiny.toml").write_text(text)
    status, printed = Forked(
        "train", "tiny.toml", "train.num_steps=1", "train.seed=3", folder=tmp_path
    ).wait()
    assert status == 0, printed
    monkeypatch.chdir(tmp_path)
    assert cli.guarded(["replay", "run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["identical"]
    assert found["num_rollouts"] > 16


@pytest.mark.parametrize(
    "answer", ["5", 5, 5.0, None, True, ["1", 2], {"a": [1.5, "x"]}, '"5"', "[1]", "é \n"]
)
@pytest.mark.parametrize("prompt", ["2+3?", "[1]", [{"role": "user", "content": "2+3?"}]])
def test_a_problem_comes_back_as_it_was(tmp_path, answer, prompt):
    problem = Problem("p", prompt, answer, {"tests": [{"stdin": "1\n", "n": 1.5}], "none": None})
    group = VerifiedGroup(problem, [rollout([1], [2])], [Verdict(0.25, "partial", {"a": 0.1}, "r", 0.5, "x")])
    rollout_file.write(tmp_path / "r.parquet", 3, [group], {}, judged_by={"name": "v", "options": {"k": 1}})
    (read,) = rollout_file.read_attempts(tmp_path / "r.parquet")
    assert read.problem == problem
    assert type(read.problem.answer) is type(answer)
    assert read.verdict == group.verdicts[0]
    assert rollout_file.read_judge(tmp_path / "r.parquet") == {"name": "v", "options": {"k": 1}}


def test_what_counts_as_a_difference():
    old = Verdict(0.5, "partial", {"a": 1.0}, "why", 0.1, "1/2")
    assert differs(old, Verdict(0.5, "partial", {"a": 1.0}, "another reason", 9.0, "1/2")) == ()
    assert differs(old, Verdict(0.5, "partial", {"a": 0.9}, "why", 0.1, "0.5")) == ("parts", "extracted")
    assert differs(Verdict.undecided("x"), Verdict.wrong()) == ("reward", "outcome")
    assert differs(Verdict.wrong(), Verdict.wrong(outcome="timeout")) == ("outcome",)


def test_signs_leave_the_undecided_out_of_the_mean():
    verdicts = [Verdict.right(), Verdict.wrong(), Verdict.undecided("x"), Verdict(0.5, "partial")]
    assert signs(verdicts) == [1, -1, 0, 0]
    assert signs([Verdict.right()] * 3) == [0, 0, 0]
    assert signs([Verdict.undecided("x")]) == [0]


def test_a_group_that_is_dropped_by_the_other_verifier(tmp_path):
    problem = Problem("p", "?", "a")
    rollouts = [rollout([1], [2])] * 3
    old = [Verdict.right(), Verdict.wrong(), Verdict.wrong()]
    rollout_file.write(tmp_path / "r.parquet", 1, [VerifiedGroup(problem, rollouts, old)], {})
    rows = [list(rollout_file.read_attempts(tmp_path / "r.parquet"))]
    found = compare("r", rows, [[Verdict.wrong(), Verdict.wrong(), Verdict.wrong()]])
    (group,) = found.groups
    assert (group.old_kept, group.new_kept, group.num_flipped, group.flips) == (True, False, 3, True)
    assert (found.old_reward, found.new_reward) == (pytest.approx(1 / 3), 0.0)
    same = compare("r", rows, [old])
    assert (same.groups, same.differences) == ([], [])


def test_config_error_is_what_a_missing_run_raises(tmp_path):
    from verigrad.engine.replay import _sources

    with pytest.raises(ConfigError, match="no rollouts yet"):
        _sources(tmp_path, "all", None)
