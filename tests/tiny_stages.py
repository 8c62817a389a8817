"""Recipes of tests for `verigrad sft`, `verigrad sample` and a pipeline of both with training."""

import json

from tests.tiny import model_folder, write_recipe

SFT = """\
[train]
num_steps = 6

[run]
folder = "run"
save_every = 2

[data]
path = "shown.jsonl"
num_eval = 8

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 64

[optim]
lr = 3e-3

[eval]
every = 2

[sft]
batch_size = 8
max_length = 32
"""

SAMPLE = """\
[run]
folder = "run"

[data]
path = "sums.jsonl"
num_eval = 6

[verifier]
name = "verifiers_of_tests.py:{verifier}"

[policy]
model = "{model}"
device = "cpu"

[rollout]
backend = "{backend}"
groups_per_step = 8
max_prompt_tokens = 250
max_tokens = 8
max_seqs = 64

[sample]
num_samples = 48
keep_per_problem = 3
"""

STAGES = """\
[run]
folder = "run"
save_every = 2

[train]
num_steps = 3

[data]
path = "sums.jsonl"
num_eval = 6

[verifier]
name = "verifiers_of_tests.py:low_first"

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

[sft]
max_length = 64

[[stage]]
name = "shown"
verb = "sft"
data.path = "shown.jsonl"
optim.lr = 5e-3

[[stage]]
name = "rewarded"
optim.lr = 1e-3

[[stage]]
name = "rejection"
verb = "sample"
sample = {{num_samples = 8, keep_per_problem = 2}}

[[stage]]
name = "distilled"
verb = "sft"
policy.model = "{other}"
data.path = "{{rejection}}/samples.jsonl"
"""


def _shown(folder):
    rows = [{"prompt": f"{a}+{b}=", "completion": str(a + b)} for a in range(8) for b in range(8)]
    (folder / "shown.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_sft(folder):
    """A recipe for `verigrad sft`: 6 steps, all sums below 16."""
    _shown(folder)
    (folder / "shown.toml").write_text(SFT.format(model=model_folder()))


def write_sample(folder, *, verifier="low_first", backend="transformers"):
    """A recipe for `verigrad sample`: 30 problems in 4 chunks."""
    write_recipe(folder)
    text = SAMPLE.format(model=model_folder(), verifier=verifier, backend=backend)
    (folder / "sample.toml").write_text(text)


def write_stages(folder):
    """A recipe of four stages: sft, train, sample, and sft of another model."""
    write_recipe(folder)
    _shown(folder)
    (folder / "stages.toml").write_text(STAGES.format(model=model_folder(), other=model_folder(seed=1)))
