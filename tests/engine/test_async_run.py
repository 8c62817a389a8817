"""Whole asynchronous runs: killed and gone on, learning, and synchronous ones that are what they were."""

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch

from tests.engine.test_resume import assert_same, kill_when, rows_or_none
from tests.tiny import Forked, run_cli, write_recipe

HERE = ["rollout.max_staleness=1", "rollout.engine_process=false"]
APART = ["rollout.max_staleness=1", "rollout.engine_process=true"]


def train(folder, *overrides, timeout=200):
    return Forked("train", "tiny.toml", *overrides, folder=folder).wait(timeout)


def metrics(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def problems_by_step(folder):
    """Ids in the order of each step's groups."""
    found = {}
    for path in sorted((folder / "run" / "rollouts").glob("*.parquet")):
        table = pq.read_table(path, columns=["step", "group", "problem_id"]).to_pylist()
        groups = {row["group"]: row["problem_id"] for row in table}
        found[table[0]["step"]] = [groups[number] for number in sorted(groups)]
    return found


def assert_nothing_lost_or_repeated(folder):
    """What was drawn, step after step and then what waits, is whole epochs of the data and a part of one."""
    taken = [one for ids in problems_by_step(folder).values() for one in ids]
    newest = max((folder / "run" / "checkpoints").iterdir())
    queue = torch.load(newest / "trainer_state.pt", weights_only=True)["flow"]["queue"]
    drawn = taken + [row["problem"] for row in queue]
    num = 30  # 36 rows, 6 held out
    for start in range(0, len(drawn), num):
        epoch = drawn[start : start + num]
        assert max(Counter(epoch).values()) == 1
    numbers = [row["number"] for row in queue]
    assert numbers == list(range(len(taken), len(drawn)))


def test_zero_is_the_synchronous_run_to_the_bit(tmp_path):
    for name, settings in {"plain": [], "zero": ["rollout.max_staleness=0"]}.items():
        (tmp_path / name).mkdir()
        write_recipe(tmp_path / name)
        status, printed = train(tmp_path / name, *settings)
        assert status == 0, printed
    assert_same(tmp_path / "zero" / "run", tmp_path / "plain" / "run")
    assert {row["staleness_max"] for row in metrics(tmp_path / "zero")} == {0.0}


@pytest.mark.parametrize(
    "settings",
    [pytest.param(HERE, id="here"), pytest.param(APART, id="apart", marks=pytest.mark.slow)],
)
def test_killed_at_any_moment_it_goes_on_and_loses_nothing(tmp_path, settings):
    write_recipe(tmp_path, verifier="in_worker")
    settings = [*settings, "train.num_steps=9", "run.save_every=1", "eval.every=4"]
    before = {}
    for num_rows, after in ((2, 0.0), (5, 0.05)):
        process = Forked("train", "tiny.toml", *settings, folder=tmp_path)
        ready = tmp_path / "run" / "metrics.jsonl"
        assert kill_when(process, lambda n=num_rows, m=ready: len(rows_or_none(m)) >= n, after=after)
        before = problems_by_step(tmp_path)
    status, printed = train(tmp_path, *settings)
    assert status == 0, printed
    assert "resuming after step" in printed
    run = metrics(tmp_path)
    assert [row["step"] for row in run] == list(range(1, 10))
    assert max(row["staleness_max"] for row in run) == 1
    last = int(printed.split("resuming after step ")[1].split()[0])
    after = problems_by_step(tmp_path)
    assert {step: after[step] for step in before if step <= last} == {
        step: before[step] for step in before if step <= last
    }
    assert_nothing_lost_or_repeated(tmp_path)


def test_a_run_a_step_behind_learns(tmp_path):
    write_recipe(tmp_path)
    settings = [*HERE, "train.num_steps=30", "optim.lr=4e-3", "eval.every=30", "rollout.groups_per_step=8"]
    status, printed = train(tmp_path, *settings)
    assert status == 0, printed
    rewards = [row["reward"] for row in metrics(tmp_path)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert max(row["staleness_max"] for row in metrics(tmp_path)) == 1
    assert all(row["mismatch_kl"] < 0.5 for row in metrics(tmp_path))


def test_the_dry_run_says_what_is_behind_and_how_it_is_weighted(tmp_path):
    write_recipe(tmp_path)
    status, printed = Forked("train", "tiny.toml", "--dry-run", *HERE, folder=tmp_path).wait()
    assert status == 0
    assert "at most 1 step" in " ".join(printed.split())
    assert "tis" in printed


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_apart_trains_and_the_samples_are_of_both_sides_of_an_update(tmp_path):
    write_recipe(tmp_path, backend="vllm", verifier="in_worker")
    wide = [
        "rollout.max_staleness=2",
        "rollout.groups_per_step=8",
        "train.num_steps=8",
        "rollout.max_tokens=40",
    ]
    status, out, err = run_cli("train", "tiny.toml", *wide, folder=tmp_path)
    assert status == 0, out + err
    run = metrics(tmp_path)
    assert 0 < max(row["staleness_max"] for row in run) <= 2
    assert max(row["canary_gap"] for row in run) < 1e-3
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "run" / "rollouts").iterdir()]
    spans = [len({v for v in row["policy_versions"] if v >= 0}) for table in tables for row in table]
    assert max(spans) >= 2  # some were begun by one version and ended by another
