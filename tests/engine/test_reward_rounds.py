"""Rounds: answers of the policy are labelled, the reward model learns from all labels so far, and pays."""

import json

import pytest

from tests.engine.test_resume import rows
from tests.tiny import Forked, model_folder, write_recipe

LABELLER = '''\
"""A scripted labeller: of two answers the one that begins with an earlier letter is better."""
import json
from collections import defaultdict
from pathlib import Path


def label(*, seed, samples):
    answers = defaultdict(list)
    for line in Path(samples).read_text().splitlines():
        row = json.loads(line)
        answers[row["prompt"]].append(row["completion"])
    rows = []
    for prompt, some in answers.items():
        some = sorted(set(some))
        rows += [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in zip(some, some[1:])]
    return rows
'''

ROUNDS = """\
[run]
folder = "run"

[train]
num_steps = 2

[data]
path = "sums.jsonl"
num_eval = 6

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 512

[rollout]
backend = "transformers"
group_size = 4
groups_per_step = 8
max_prompt_tokens = 250
max_tokens = 8

[optim]
lr = 1e-3

[reward]
max_length = 64

[sample]
num_samples = 4
keep = "all"

[verifier]
name = "verifiers_of_tests.py:low_first"

[[stage]]
name = "answers1"
verb = "sample"

[[stage]]
name = "rewards1"
verb = "reward"
data = {{path = "labeller.py:label", options = {{samples = "{{answers1}}/samples.jsonl"}}}}

[[stage]]
name = "policy1"
verifier = {{name = "reward_model", options = {{model = "{{rewards1}}", allow_biased = true}}, audit = "off"}}
eval.verifier = "verifiers_of_tests.py:low_first"

[[stage]]
name = "answers2"
verb = "sample"

[[stage]]
name = "rewards2"
verb = "reward"
policy.model = "{model}"

[stage.data]
path = "labeller.py:label"
options = {{samples = "{{answers2}}/samples.jsonl"}}

[stage.data.mix.round1]
path = "labeller.py:label"
options = {{samples = "{{answers1}}/samples.jsonl"}}
num_eval = 4
weight = 0.5
"""


@pytest.mark.slow
def test_two_rounds_of_labels_rewards_and_policy(tmp_path):
    write_recipe(tmp_path)
    (tmp_path / "labeller.py").write_text(LABELLER)
    (tmp_path / "rounds.toml").write_text(ROUNDS.format(model=model_folder()))
    status, printed = Forked("train", "rounds.toml", folder=tmp_path).wait(600)
    assert status == 0, printed
    samples = [rows(tmp_path / "run" / f"{k}_answers{n}" / "samples.jsonl") for k, n in ((1, 1), (4, 2))]
    assert {row["truncated"] for row in samples[0]} == {True, False}
    assert all(len({row["prompt"] for row in some}) > 20 for some in samples)
    assert samples[0] != samples[1]  # fresh ones, of another policy
    wrong = [row for some in samples for row in some if row["reward"] < 1]
    assert wrong  # kept is also what the verifier does not accept
    trained = rows(tmp_path / "run" / "3_policy1" / "metrics.jsonl")
    assert len(trained) == 2
    assert trained[0]["undecided_frac"] == 0
    evals = rows(tmp_path / "run" / "5_rewards2" / "eval.jsonl")
    assert {row["data"] for row in evals} == {"held_out", "round1"}
    metrics = rows(tmp_path / "run" / "5_rewards2" / "metrics.jsonl")
    drawn = {name: metrics[-1][f"epoch/{name}"] for name in ("path", "round1")}
    assert all(share > 0 for share in drawn.values())
    audit = json.loads(next((tmp_path / "run" / "5_rewards2").glob("checkpoints/*/audit.json")).read_text())
    assert audit["num_rows"] > 0
