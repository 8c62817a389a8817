"""`verigrad train` with a critic: killed and resumed, whole runs of both trunks, groups of one."""

import json
import shutil
import time

import pytest

from tests.tiny import Forked, write_recipe

TIMED = ("seconds/", "tokens_per_s", "verify/")
PPO = [
    "algorithm.name=ppo",
    "rollout.group_size=1",
    "rollout.groups_per_step=8",
    "critic.lr=0.003",
    "critic.value_clip=0.2",
    "critic.warmup_steps=1",
    "algorithm.kl_coef=0.05",
    "algorithm.kl_place=reward",
    "algorithm.kl_target=0.01",
    "algorithm.kl_horizon=100",
    "optim.schedule=cosine",
]
KINDS = {
    "own": ["critic.trunk=own"],
    "shared": ["critic.trunk=shared", "critic.coef=0.5"],
    "lora": ["lora.rank=4"],
}


def rows(run):
    path = run / "metrics.jsonl"
    whole = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{k: v for k, v in row.items() if not k.startswith(TIMED)} for row in whole]


def train(folder, *overrides):
    return Forked("train", "tiny.toml", *PPO, *overrides, folder=folder)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_resumed_a_critic_is_what_it_would_have_been(kind, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        write_recipe(folder)
    status, printed = train(whole, *KINDS[kind]).wait()
    assert status == 0, printed

    process = train(killed, *KINDS[kind])
    while len(partial(killed / "run")) < 3:
        assert process.running(), process.text()
        time.sleep(0.001)
    process.kill()
    status, printed = train(killed, *KINDS[kind]).wait()
    assert status == 0, printed
    assert "resuming after step" in printed
    ours, theirs = rows(killed / "run"), rows(whole / "run")
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert {k: (v, other.get(k)) for k, v in one.items() if v != other.get(k)} == {}
    for name in weights(whole / "run"):
        same = (killed / "run" / name).read_bytes() == (whole / "run" / name).read_bytes()
        assert same, name

    first, second = theirs[:2]
    assert (first["lr"], first["grad_norm"], first["critic/value_mean"]) == (0.0, 0.0, 0.0)  # warm-up
    assert first["entropy"] > 0
    assert first["kl_coef"] == second["kl_coef"] == 0.05  # nothing adapts to a policy that stays
    assert second["lr"] > 0
    assert second["critic/value_mean"] != 0
    assert theirs[-1]["kl_coef"] != 0.05
    assert all(row["critic/lr"] > 0 and row["critic/grad_norm"] > 0 for row in theirs[:-1])


def partial(run):
    try:
        return rows(run)
    except ValueError:  # a line is being written
        return []


def weights(run):
    newest = sorted(run.glob("checkpoints/step_*"))[-1]
    found = [path.relative_to(run) for path in newest.rglob("*.safetensors")]
    assert len(found) == 2
    return found


def test_a_damaged_critic_is_a_damaged_checkpoint(tmp_path):
    write_recipe(tmp_path)
    settings = ["critic.trunk=shared", "train.num_minibatches=1", "critic.value_clip=0.5"]
    status, printed = train(tmp_path, *settings, "train.num_steps=4").wait()
    assert status == 0, printed
    shutil.rmtree(tmp_path / "run/checkpoints/step_000004/critic")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    status, printed = train(tmp_path, *settings, "train.num_steps=4").wait()
    assert status == 0, printed
    assert "checkpoint step_000004 is damaged (critic/value_head.safetensors is missing)" in printed
    assert rows(tmp_path / "run") == rows(tmp_path / "copy")


def test_vapo_runs_with_groups_and_says_how_likely_right_answers_are(tmp_path):
    write_recipe(tmp_path)
    settings = ["algorithm.name=vapo", "critic.lr=0.003", "train.num_steps=2", "eval.every=0"]
    settings += ["eval.num_samples=1", "eval.temperature=0", "eval.pass_k=[]"]
    process = Forked("train", "tiny.toml", *settings, folder=tmp_path)
    status, printed = process.wait()
    assert status == 0, printed
    assert all(row["positive_nll"] > 0 for row in rows(tmp_path / "run"))
