"""Stages run in order, each in its own process; whatever ends one, the same command goes on there."""

import os
import signal
import subprocess
import sys
import time

import filelock
import pytest

from tests.engine.test_resume import rows, rows_or_none
from tests.tiny import Forked, run_cli, start_cli
from tests.tiny_stages import write_stages
from verigrad.engine import config, stage_recipe, stages
from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.engine.stages import Forwarder, is_done, require_all


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_stages(tmp_path)
    return tmp_path


def pretend_done(stage):
    """The files of a stage that ended."""
    place = config.Path(stage.cfg.run.folder)
    place.mkdir(parents=True)
    (place / "config.toml").write_text(config.to_toml(stage.cfg))
    if stage.cfg.verb == "sample":
        (place / "samples.jsonl").write_text("{}\n")
        return
    from verigrad.engine import checkpoint

    step = stage.cfg.train.num_steps
    checkpoint.save(place / "checkpoints", step, lambda half: (half / "x").write_text("x"), keep=2)


# Without a run ---------------------------------------------------------------------------------------------


def test_a_stage_is_done_with_its_very_recipe_and_its_whole_result(folder):
    recipe = stage_recipe.load("stages.toml")
    assert not any(map(is_done, recipe.stages))
    for stage in recipe.stages:
        pretend_done(stage)
    assert all(map(is_done, recipe.stages))
    other = stage_recipe.load("stages.toml", ["optim.lr=0.5"])
    assert [is_done(stage) for stage in other.stages] == [False, False, True, False]
    (folder / recipe.stages[0].result / "x").write_text("y")
    assert not is_done(recipe.stages[0])


@pytest.fixture
def commands(folder, monkeypatch):
    """What the stages would have run, with `status` as their exit status."""
    seen = []

    class Fake(Forwarder):
        status = 0

        def wait_for(self, words):
            seen.append(words)
            return Fake.status

    monkeypatch.setattr(stages, "Forwarder", Fake)
    seen_and_fake = (seen, Fake)
    yield seen_and_fake
    Fake.status = 0


def run(*overrides):
    return stages.run("stages.toml", overrides, dry_run=False, debug=False)


def test_every_stage_is_its_own_command_on_a_recipe_that_is_left_beside_it(commands, folder):
    seen, _ = commands
    assert run() == 0
    assert [words[-2:] for words in seen] == [
        ["sft", "run/1_shown.toml"],
        ["train", "run/2_rewarded.toml"],
        ["sample", "run/3_rejection.toml"],
        ["sft", "run/4_distilled.toml"],
    ]
    for stage in stage_recipe.load("stages.toml").stages:
        assert config.load(f"run/{stage.label}.toml", verb=stage.cfg.verb) == stage.cfg


def test_what_is_done_is_not_started(commands, folder, capsys):
    seen, _ = commands
    for stage in stage_recipe.load("stages.toml").stages[:2]:
        pretend_done(stage)
    assert run() == 0
    assert [words[-2] for words in seen] == ["sample", "sft"]
    assert (
        "stage 1/4 shown: verigrad sft is done: run/1_shown/checkpoints/step_000003"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("status", [1, 2, 130])
def test_the_status_of_the_stage_that_ended_it_is_passed_on(commands, status, capsys):
    seen, fake = commands
    fake.status = status
    assert run() == status
    assert len(seen) == 1
    assert f"stage shown (1 of 4) ended with status {status}" in capsys.readouterr().err


def test_a_stage_that_was_killed_is_said(commands):
    commands[1].status = -9
    with pytest.raises(
        WorkError, match=r"stage shown was killed by signal 9 \(SIGKILL\); run the same command"
    ):
        run()


def test_two_at_once_are_refused(commands, folder):
    (folder / "run").mkdir()
    with filelock.FileLock("run/.lock"), pytest.raises(WorkError, match="written by another process"):
        run()


def test_debug_is_passed_on(commands):
    stages.run("stages.toml", [], dry_run=False, debug=True)
    assert all(words[-1] == "--debug" for words in commands[0])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rewarded.verifier.name=math_anser", "stage rewarded: verifier.name: "),
        ("rejection.verifier.name=verifiers_of_tests.py:low_frist", "did you mean 'low_first'?"),
        ("rewarded.eval.verifier=nobody", "stage rewarded: eval.verifier: "),
        ("shown.data.path=shwn.jsonl", "stage shown: data.path = 'shwn.jsonl': no such file"),
    ],
)
def test_what_would_end_a_later_stage_is_said_before_the_first(commands, override, says):
    with pytest.raises(ConfigError) as caught:
        run(override)
    assert says in str(caught.value)
    assert commands[0] == []
    assert not config.Path("run").exists()


def test_everything_shipped_passes_the_first_look_but_for_what_lies_elsewhere():
    for name in ("r1_pipeline", "long_context_stages"):
        require_all(stage_recipe.load(name))


def test_a_dry_run_shows_every_stage_and_makes_nothing(folder):
    status, out, err = run_cli("train", "stages.toml", "--dry-run", folder=folder)
    assert (status, err) == (0, "")
    assert "# 3_rejection: verigrad sample -> run/3_rejection" in out
    (folder / "again.toml").write_text(out)
    assert run_cli("train", "again.toml", "--dry-run", folder=folder)[1] == out
    assert not (folder / "run").exists()


@pytest.mark.parametrize("verb", ["sft", "sample"])
def test_another_verb_does_not_run_stages(folder, verb):
    status, _, err = run_cli(verb, "stages.toml", folder=folder)
    assert status == 2
    assert "stages.toml is a recipe of stages, which only `verigrad train` runs" in err


# Signals ---------------------------------------------------------------------------------------------------

COUNTS = """
import signal, sys, time
caught = []
signal.signal(signal.SIGINT, lambda *_: caught.append(1))
print("ready", flush=True)
while len(caught) < {num}:
    time.sleep(0.01)
sys.exit(40 + len(caught))
"""


def parent_of(code):
    """A process that waits for `code` as the stages do."""
    program = (
        "import sys; from verigrad.engine.stages import Forwarder\n"
        f"with Forwarder() as f: status = f.wait_for([sys.executable, '-c', {code!r}])\n"
        "print('ended', status, f.asked, flush=True)"
    )
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


def test_each_signal_reaches_the_stage_once_and_its_status_comes_back():
    parent = parent_of(COUNTS.format(num=2))
    assert parent.stdout.readline() == "ready\n"
    for _ in range(2):
        parent.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert parent.communicate(timeout=30)[0] == "ended 42 True\n"


def test_a_stage_dies_with_its_parent():
    parent = parent_of("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and alive(child):
        time.sleep(0.02)
    assert not alive(child)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = config.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return state != "Z"


# The whole thing -------------------------------------------------------------------------------------------


def records(folder):
    return {
        path.relative_to(folder).as_posix(): rows(path)
        for path in sorted(folder.glob("run/*/*.jsonl"))
    }  # fmt: skip


@pytest.mark.slow
def test_killed_and_interrupted_in_the_middle_it_ends_as_if_never_disturbed(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    write_stages(whole)
    for stage in stage_recipe.load("stages.toml").stages:  # each command by itself, undisturbed
        (whole / f"{stage.label}.toml").write_text(config.to_toml(stage.cfg))
        status, printed = Forked(stage.cfg.verb, f"{stage.label}.toml", folder=whole).wait()
        assert status == 0, printed

    process = start_cli("train", "stages.toml", folder=folder)
    wait_for_rows(process, folder / "run/2_rewarded/metrics.jsonl", 2)
    process.kill()  # the stage dies with it
    process.communicate()
    process = start_cli("train", "stages.toml", folder=folder)
    wait_for_rows(process, folder / "run/3_rejection/metrics.jsonl", 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "stage 1/4 shown: verigrad sft is done" in out
    assert "run the same command again to go on" in out
    status, out, err = run_cli("train", "stages.toml", folder=folder)
    assert (status, err) == (0, ""), out + err
    assert "stage 2/4 rewarded: verigrad train is done" in out
    assert "4_distilled: run/4_distilled/checkpoints/step_000003" in out
    assert records(folder) == records(whole)
    status, out, err = run_cli("train", "stages.toml", folder=folder)
    assert (status, out.count(" is done: ")) == (0, 4)


def wait_for_rows(process, metrics, num):
    while len(rows_or_none(metrics)) < num:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


LOCAL = {
    "r1_pipeline": [
        "data.path=sums.jsonl", "data.split=train", "data.columns={}", "data.num_eval=6",
        "cold_start.data.path=shown.jsonl", "cold_start.data.split=train", "cold_start.data.columns={}",
        "policy.model={model}", "second_sft.policy.model={model}", "distilled.policy.model={other}",
        "prompts.template=plain", "prompts.prefill=''", "sft.batch_size=8", "sft.max_length=64",
        "rollout.max_tokens=8", "rollout.max_prompt_tokens=64", "rollout.groups_per_step=4",
        "rollout.group_size=4", "sample.num_samples=32", "eval.every=2",
    ],
    "long_context_stages": [
        "data.path=sums.jsonl", "data.columns={}", "data.eval_path=''", "data.eval_split=test",
        "data.num_eval=6", "policy.model={model}", "prompts.template=plain", "rollout.groups_per_step=4",
        "rollout.group_size=4", "rollout.max_prompt_tokens=64", "eval.every=2", "eval.num_samples=2",
        "context_8k.rollout.max_tokens=4", "context_16k.rollout.max_tokens=8",
        "context_24k.rollout.max_tokens=12",
    ],
}  # fmt: skip
SMALL = [
    "run.folder=out", "run.save_every=1", "train.num_steps=2", "policy.dtype=float32", "policy.device=cpu",
    "policy.tokens_per_batch=512", "policy.gradient_checkpointing=false", "rollout.backend=transformers",
    "optim.lr=1e-3", "verifier.name=verifiers_of_tests.py:low_first",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first"), [("r1_pipeline", "2_reasoning_rl"), ("long_context_stages", "2_context_16k")]
)
def test_a_shipped_recipe_runs_on_local_models_and_data_and_survives_a_kill(folder, name, first):
    from tests.tiny import model_folder

    models = {"{model}": model_folder(), "{other}": model_folder(seed=1)}
    overrides = [*SMALL, *LOCAL[name]]
    for placeholder, path in models.items():
        overrides = [override.replace(placeholder, path) for override in overrides]
    process = start_cli("train", name, *overrides, folder=folder)
    wait_for_rows(process, folder / "out" / first / "metrics.jsonl", 1)
    process.kill()
    process.communicate()
    status, out, err = run_cli("train", name, *overrides, folder=folder)
    assert (status, err) == (0, ""), out + err
    for stage in stage_recipe.load(name, overrides).stages:
        assert is_done(stage)
