"""Killed, interrupted, damaged, out of disk: the same command goes on and records what it would have."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import filelock
import pyarrow.parquet as pq
import pytest

from tests.tiny import Forked, run_cli, start_cli, write_recipe
from verigrad.verifiers.pool_stats import CLOCKED

PREFIX = "the sum of these two numbers, please: " * 4  # longer than a block of vLLM's prefix cache


def rows(path):
    """Rows of a JSONL file without what a clock wrote."""
    if not path.exists():
        return []
    timed = ("seconds/", "tokens_per_s", *(f"verify/{name}" for name in CLOCKED))
    lines = path.read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be half written
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in whole]


def everything(run):
    """All that a run records and a clock does not."""
    tables = {
        path.relative_to(run).as_posix(): pq.read_table(path).drop_columns("verify_s").to_pylist()
        for path in sorted(run.glob("*/*.parquet"))
    }
    names = sorted(path.relative_to(run).as_posix() for path in run.glob("checkpoints/*/*"))
    weights = (sorted(run.glob("checkpoints/step_*"))[-1] / "model.safetensors").read_bytes()
    return {
        "metrics": rows(run / "metrics.jsonl"),
        "evals": rows(run / "eval.jsonl"),
        "tables": tables,
        "checkpoints": names,
        "weights": weights,
        "recipe": (run / "config.toml").read_text(),
        "top": sorted(p.name for p in run.iterdir() if p.name != "log.txt"),
    }


def assert_same(run, reference):
    ours, theirs = everything(run), everything(reference)
    for part, value in theirs.items():
        assert ours[part] == value, part


def train(folder, *overrides, timeout=120):
    return Forked("train", "tiny.toml", *overrides, folder=folder).wait(timeout)


def kill_when(process, ready, *, after=0.0):
    """kill -9 `after` seconds after `ready()`; False if the process ended before that."""
    while process.running() and not ready():
        time.sleep(0.0005)
    time.sleep(after)
    alive = process.running()
    process.kill()
    return alive


def kill_after_rows(process, metrics, num):
    while len(rows_or_none(metrics)) < num:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    write_recipe(folder)
    status, printed = train(folder)
    assert status == 0, printed
    return folder


@pytest.fixture
def fresh(tmp_path, reference):
    """The same recipe, nothing run yet."""
    for path in reference.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


@pytest.fixture
def finished(fresh, reference):
    """A copy of the finished run."""
    shutil.copytree(reference / "run", fresh / "run")
    return fresh


def test_the_reference_has_every_row_once(reference):
    run = everything(reference / "run")
    assert [row["step"] for row in run["metrics"]] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in run["evals"]] == [0, 2, 4, 5]
    assert len(run["tables"]) == 9
    assert any(row["reward_std"] > 0 for row in run["metrics"])
    assert len({row["loss"] for row in run["metrics"]}) == 5  # it is trained, not only sampled


def test_killed_at_random_moments_it_ends_as_if_never_killed(fresh, reference):
    draw, kills = random.Random(7), 0
    for num_rows in (0, 1, 3, 4):
        metrics = fresh / "run" / "metrics.jsonl"
        process = Forked("train", "tiny.toml", folder=fresh)
        kills += kill_when(
            process, lambda n=num_rows, m=metrics: len(rows_or_none(m)) >= n, after=draw.uniform(0, 0.3)
        )
    assert kills >= 3
    status, printed = train(fresh)
    assert status == 0, printed
    assert_same(fresh / "run", reference / "run")


def test_with_a_curriculum_a_schedule_and_a_reference(fresh, tmp_path_factory):
    settings = [
        "curriculum.by=category",
        "curriculum.column=kind",
        "optim.schedule=cosine",
        "algorithm.kl_coef=0.1",
        "optim.warmup_steps=2",
    ]
    whole = tmp_path_factory.mktemp("whole")
    for path in fresh.iterdir():
        shutil.copy(path, whole)
    assert train(whole, *settings)[0] == 0
    process = Forked("train", "tiny.toml", *settings, folder=fresh)
    assert kill_when(process, lambda: len(rows_or_none(fresh / "run" / "metrics.jsonl")) >= 3)
    status, printed = train(fresh, *settings)
    assert status == 0, printed
    assert "resuming after step 2" in printed
    assert_same(fresh / "run", whole / "run")
    assert len({row["lr"] for row in rows(fresh / "run" / "metrics.jsonl")}) >= 4
    assert rows(fresh / "run" / "metrics.jsonl")[-1]["kl_ref"] > 0


def rows_or_none(path):
    try:
        return rows(path)
    except ValueError:  # caught in the middle of a line
        return []


def test_killed_while_a_checkpoint_is_written(fresh, reference):
    checkpoints, caught = fresh / "run" / "checkpoints", 0
    for after in (0, 0, 0.002, 0, 0):
        process = Forked("train", "tiny.toml", folder=fresh)
        kill_when(process, lambda: any(checkpoints.glob("*.half")), after=after)
        caught += any(checkpoints.glob("*.half"))
    assert caught, "no kill fell into a save"
    status, printed = train(fresh)
    assert status == 0, printed
    assert_same(fresh / "run", reference / "run")


@pytest.mark.slow
def test_the_real_command_killed_and_started_again(fresh, reference):
    process = start_cli("train", "tiny.toml", folder=fresh)
    metrics = fresh / "run" / "metrics.jsonl"
    kill_after_rows(process, metrics, 3)
    status, out, err = run_cli("train", "tiny.toml", folder=fresh)
    assert (status, err) == (0, "")
    assert "resuming after step 2" in out
    assert_same(fresh / "run", reference / "run")


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_killed_and_started_again(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name, backend="vllm", verifier="in_worker", shared_prefix=PREFIX)
    shutil.copy(tmp_path / "whole" / "tiny.toml", tmp_path / "killed" / "tiny.toml")
    status, out, err = run_cli("train", "tiny.toml", folder=tmp_path / "whole")
    assert status == 0, out + err
    process = start_cli("train", "tiny.toml", folder=tmp_path / "killed")
    kill_after_rows(process, tmp_path / "killed" / "run" / "metrics.jsonl", 3)
    status, out, err = run_cli("train", "tiny.toml", folder=tmp_path / "killed")
    assert status == 0, out + err
    assert_same(tmp_path / "killed" / "run", tmp_path / "whole" / "run")


@pytest.mark.parametrize("harm", ["truncated", "absent", "manifest"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(finished, reference, harm):
    newest = finished / "run" / "checkpoints" / "step_000005"
    if harm == "truncated":
        os.truncate(newest / "model.safetensors", 1000)
    elif harm == "absent":
        (newest / "trainer_state.pt").unlink()
    else:
        (newest / "manifest.json").write_text('{"step": 5, "fil')
    status, printed = train(finished)
    assert status == 0, printed
    assert "resuming after step 4" in printed
    assert "step_000005 is damaged" in printed
    shutil.rmtree(finished / "run" / "checkpoints" / "step_000005.damaged")
    assert_same(finished / "run", reference / "run")


def test_with_every_checkpoint_damaged_it_starts_again(finished, reference):
    for path in finished.glob("run/checkpoints/*/trainer_state.pt"):
        path.write_bytes(b"")
    status, printed = train(finished)
    assert status == 0, printed
    for path in finished.glob("run/checkpoints/*.damaged"):
        shutil.rmtree(path)
    assert_same(finished / "run", reference / "run")


def test_a_finished_run_is_shown_again_and_left_alone(finished):
    before = {p: p.stat().st_mtime_ns for p in finished.glob("run/**/*") if p.is_file()}
    status, printed = train(finished)
    assert status == 0
    assert "already holds all 5 steps" in printed
    assert "held_out gain" in printed
    changed = {p.name for p, then in before.items() if p.stat().st_mtime_ns != then}
    assert changed <= {"curve.png", ".lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_how_to_go_on(fresh, reference, number):
    process = Forked("train", "tiny.toml", "run.save_every=100", folder=fresh)
    while len(rows_or_none(fresh / "run" / "metrics.jsonl")) < 2:
        assert process.running(), process.text()
        time.sleep(0.001)
    os.kill(process.pid, number)
    status, printed = process.wait()
    assert status == 130, printed
    assert "finishing this step" in printed
    assert "run the same command again to go on" in printed
    assert len(list(fresh.glob("run/checkpoints/*"))) == 1
    status, printed = train(fresh)  # with the recipe's own save_every: when to save is free to change
    assert status == 0, printed
    assert "resuming after step" in printed
    ours, theirs = everything(fresh / "run"), everything(reference / "run")
    assert all(ours[part] == theirs[part] for part in ("metrics", "evals", "tables", "weights"))


def test_a_second_process_on_the_folder_is_refused_in_one_line(finished, reference):
    with filelock.FileLock(finished / "run" / ".lock"):
        status, printed = train(finished)
    assert status == 1
    assert printed.count("\n") <= 2  # what was started, and why not
    assert "run is being written by another process" in printed
    assert_same(finished / "run", reference / "run")


def test_changed_settings_are_refused_by_name(finished):
    before = everything(finished / "run")
    status, printed = train(finished, "optim.lr=5e-4", "rollout.group_size=8", "run.save_every=3")
    assert status == 2
    last = printed.splitlines()[-1]
    assert "optim.lr: 0.001 -> 0.0005" in last
    assert "rollout.group_size: 4 -> 8" in last
    assert "save_every" not in last
    assert "run.folder=NEW" in last
    assert "Traceback" not in printed
    assert everything(finished / "run") == before


def test_more_steps_give_the_rows_of_a_longer_run(finished, tmp_path_factory):
    longer = tmp_path_factory.mktemp("longer")
    for path in finished.iterdir():
        if path.is_file():
            shutil.copy(path, longer)
    assert train(longer, "train.num_steps=7")[0] == 0
    status, printed = train(finished, "train.num_steps=7")
    assert status == 0, printed
    assert rows(finished / "run" / "metrics.jsonl") == rows(longer / "run" / "metrics.jsonl")


def test_more_steps_are_refused_where_the_schedule_ends_with_them(fresh):
    first = train(fresh, "optim.schedule=cosine", "train.num_steps=1")
    assert first[0] == 0, first[1]
    status, printed = train(fresh, "optim.schedule=cosine", "train.num_steps=2")
    assert status == 2
    assert "train.num_steps: 1 -> 2" in printed


def test_changed_data_is_refused_though_the_settings_are_the_same(finished):
    (finished / "run" / "checkpoints" / "step_000005" / "trainer_state.pt").unlink()  # so something is left
    lines = (finished / "sums.jsonl").read_text().splitlines(keepends=True)
    (finished / "sums.jsonl").write_text("".join(lines[:-1]))
    status, printed = train(finished)
    assert status == 2, printed
    assert "Traceback" not in printed
    assert "data" in printed.splitlines()[-1]


def test_another_version_of_a_library_is_noted(finished):
    (finished / "run" / "checkpoints" / "step_000005" / "trainer_state.pt").unlink()
    record = json.loads((finished / "run" / "environment.json").read_text())
    record["versions"]["torch"] = "1.0"
    (finished / "run" / "environment.json").write_text(json.dumps(record))
    status, printed = train(finished)
    assert status == 0, printed
    assert "note: versions changed since the run was started" in printed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:  # only root may mount: a user's own run goes without, CI does not
        without = pytest.fail if os.environ.get("VERIGRAD_REQUIRE_ALL") == "1" else pytest.skip
        without(f"no small file system to fill: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_costs_no_checkpoint_that_was_there(fresh, reference, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1400 * 1024))  # room for one checkpoint, not for two
    status, printed = train(fresh, "run.folder=disk/run")
    assert status == 1, printed
    assert "note: checkpoint of step 4 could not be written" in printed
    assert "verigrad: the last checkpoint could not be written; free space" in printed
    assert "Traceback" not in printed
    assert [p.name for p in small_disk.glob("run/checkpoints/*")] == ["step_000002"]
    ballast.unlink()
    status, printed = train(fresh, "run.folder=disk/run")
    assert status == 0, printed
    assert "resuming after step 2" in printed
    ours, theirs = everything(small_disk / "run"), everything(reference / "run")
    assert all(ours[part] == theirs[part] for part in ("metrics", "evals", "tables", "weights"))


def test_a_disk_too_full_for_a_row_ends_the_run_in_one_line(fresh, reference, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 * 2**20 - 24 * 1024))
    status, printed = train(fresh, "run.folder=disk/run")
    assert status == 1, printed
    assert "could not be written (" in printed
    assert "free some space" in printed
    assert "Traceback" not in printed
    ballast.unlink()
    assert train(fresh, "run.folder=disk/run")[0] == 0
    ours, theirs = everything(small_disk / "run"), everything(reference / "run")
    assert all(ours[part] == theirs[part] for part in ("metrics", "evals", "tables", "weights"))
