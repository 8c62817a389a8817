"""Episodes with a real engine and real sandboxes: masks, prefixes, log-probabilities, a run to its end."""

import itertools
import json

import pyarrow.parquet as pq
import pytest

from tests import boxes
from tests.agents import TRUSTED, calling_model, memory_pool, tokenizer
from tests.tiny import Forked, config
from verigrad.engine import pack, rollout_file
from verigrad.engine.episode import EpisodeSampler
from verigrad.engine.model_files import ModelFiles
from verigrad.engine.policy import Policy
from verigrad.engine.rollout import SamplingParams
from verigrad.engine.rollout_backends import build_engine, build_prompter
from verigrad.engine.run import read_jsonl
from verigrad.verifiers.base import Problem

BACKENDS = ["transformers", pytest.param("vllm", marks=pytest.mark.vllm)]


def settings(backend):
    return config(
        policy={"model": calling_model()},
        rollout={"backend": backend, "max_prompt_tokens": 16, "max_tokens": 160},
        agent={"tools": ["shell"], "explain": False, "max_turns": 4},
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_trainer_and_sampler_agree_on_every_turn_and_prompts_are_prefixes(backend):
    cfg = settings(backend)
    model = ModelFiles(calling_model(), tokenizer(), (1,), "")
    asks = build_prompter(cfg, model)
    engine = build_engine(cfg, model.folder, eos_ids=model.eos_ids, seed=0)
    try:
        with memory_pool(size=4) as pool:
            sampler = EpisodeSampler(engine, asks, cfg.agent, pool)
            sampler.policy_version = 0
            problems = [Problem(p, p) for p in "abc"]
            arrived = dict(sampler.sample(problems, SamplingParams(1.0, 160), group_size=4, seed=(0, 1)))
    finally:
        engine.close()
    rollouts = [rollout for group in arrived.values() for rollout in group.rollouts]
    assert len(rollouts) == 12
    several = [rollout for rollout in rollouts if rollout.episode.num_turns > 1]
    assert len(several) >= 6, "the model of this test calls its tool nearly always"
    for rollout in several:
        turns = [own for own, _ in itertools.groupby(rollout.loss_mask)]
        assert turns.count(True) == rollout.episode.num_turns  # a gap between any two turns
    batch = pack.lay_out(rollouts)
    policy = Policy(cfg, model.folder, tokenizer=model.tokenizer, start_folder=model.folder)
    ours = policy.logprobs(batch, temperature=1.0)
    gap = (ours - batch.rollout_logprobs)[batch.loss_mask].abs().max()
    assert gap < 1e-3
    assert batch.loss_mask.sum() == sum(rollout.num_completion_tokens for rollout in rollouts)


RECIPE = """\
[train]
num_steps = 2

[data]
path = "tasks.jsonl"
num_eval = 2

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 1024

[verifier]
name = "judge.py:wrote_something"
audit = "off"

[agent]
tools = ["shell"]
explain = false
max_turns = 3
max_sandboxes = 2

[sandbox]
{sandbox}

[rollout]
backend = "{backend}"
group_size = 2
groups_per_step = 2
max_prompt_tokens = 16
max_tokens = 120

[dynamic_sampling]
enabled = false

[eval]
every = 2

[optim]
lr = 1e-4
"""

JUDGE = '''\
from verigrad.verifiers.base import verifier


@verifier("wrote_something", runs="inline")
def wrote_something(text, transcript):
    """Paid by how often the sandbox was used: enough for a run to have something to learn."""
    return min(1.0, 0.4 * sum(message["role"] == "tool" for message in transcript))
'''


def trained(folder, *, backend, sandbox):
    """A run of two steps: its metrics, and its rollouts."""
    rows = [{"prompt": p, "answer": "42", "setup": {"files": {"a": "42"}}} for p in "abcabc"]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "judge.py").write_text(JUDGE)
    recipe = folder / "agent.toml"
    recipe.write_text(RECIPE.format(model=calling_model(), backend=backend, sandbox=sandbox))
    status, printed = Forked("train", "agent.toml", "run.folder=run", folder=folder).wait(300)
    assert status == 0, printed
    files = sorted((folder / "run/rollouts").glob("*.parquet"))
    assert len(files) == 2
    return read_jsonl(folder / "run/metrics.jsonl"), files


def check_run(metrics, files):
    for row in metrics:
        assert row["mismatch_kl"] < 1e-4
        assert row["agent/turns_mean"] > 1
        assert row["undecided_frac"] == 0
        assert sum(value for name, value in row.items() if name.startswith("agent/stop/")) == 1
    for file in files:
        recorded = list(rollout_file.read_attempts(file))
        assert len(recorded) == 4
        told = [m["content"] for r in recorded for m in r.attempt.transcript if m["role"] == "tool"]
        assert "12" in told
        assert all(r.attempt.snapshot for r in recorded)
        columns = pq.read_table(file, columns=["loss_mask", "policy_versions"]).to_pydict()
        for mask, versions in zip(columns["loss_mask"], columns["policy_versions"], strict=True):
            assert [version >= 0 for version in versions] == mask


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_with_tools_trains_and_records(tmp_path, backend):
    check_run(*trained(tmp_path, backend=backend, sandbox=TRUSTED))


def test_a_run_with_tools_in_bubblewrap(tmp_path):
    boxes.require("bubblewrap")
    check_run(*trained(tmp_path, backend="transformers", sandbox='backend = "bubblewrap"'))


@pytest.mark.docker
def test_a_run_with_tools_in_containers(tmp_path):
    check_run(*trained(tmp_path, backend="transformers", sandbox='backend = "container"'))


def test_with_the_transformers_engine_a_run_with_tools_can_be_repeated(tmp_path):
    masks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        _, files = trained(tmp_path / name, backend="transformers", sandbox=TRUSTED)
        masks.append([pq.read_table(file, columns=["token_ids", "logprobs"]).to_pydict() for file in files])
    assert masks[0] == masks[1]
