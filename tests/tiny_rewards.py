"""Recipes and rows of tests for `verigrad reward`."""

import json

from tests.tiny import model_folder

REWARD = """\
[train]
num_steps = 6

[run]
folder = "run"
save_every = 2

[data]
path = "pairs.jsonl"
num_eval = 8

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 256

[optim]
lr = 3e-3

[eval]
every = 2

[reward]
batch_size = 8
max_length = 32
"""


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def pairs():
    """The right sum against the next number, all sums below 16."""
    return [
        {"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": f"{a + b + 1}????????"}
        for a in range(8)
        for b in range(8)
    ]


def write_reward(folder):
    """A recipe for `verigrad reward`: 6 steps on 56 pairs."""
    write_lines(folder / "pairs.jsonl", pairs())
    (folder / "pairs.toml").write_text(REWARD.format(model=model_folder()))


def write_steps(folder):
    """The same with answers in two steps, the second of which is right when it is even."""
    rows = [
        {"prompt": f"{a}*{b}=", "steps": [f"{a}, {b}", str(a * b)], "labels": [True, a * b % 2 == 0]}
        for a in range(8)
        for b in range(8)
    ]
    write_lines(folder / "steps.jsonl", rows)
    text = REWARD.format(model=model_folder()).replace("pairs.jsonl", "steps.jsonl")
    (folder / "steps.toml").write_text(f'{text}kind = "steps"\nstep_separator = "}}"\n')
