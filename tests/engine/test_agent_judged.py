"""A run of episodes judged by their final state, and what comes after it: `verigrad eval` and `replay`."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from tests.agents import TRUSTED, calling_model, files_in
from tests.tiny import Forked
from verigrad.engine import rollout_file
from verigrad.verifiers.pool_stats import CLOCKED

COMMAND = "echo 12 >f; cat f"
KNOWN, UNKNOWN = "abcdefgh", "ijkl"  # what the model does something sensible about, and what not
RECIPE = """\
[train]
num_steps = 2

[run]
folder = "run"
save_every = 1

[data]
path = "tasks.jsonl"
num_eval = 4

[policy]
model = "{model}"
device = "cpu"
tokens_per_batch = 1024

[verifier]
name = "agent_task"
num_workers = 1
audit = "off"

[agent]
tools = ["shell"]
explain = false
max_turns = 3
max_sandboxes = 2

[sandbox]
{sandbox}

[rollout]
backend = "transformers"
group_size = 4
groups_per_step = 2
max_prompt_tokens = 16
max_tokens = 160

[dynamic_sampling]
enabled = false

[eval]
every = 2
num_samples = 3
temperature = 1.0
pass_k = [1, 2]

[optim]
lr = 1e-4
"""

CHECK = [{"file": "f", "equals": "12"}, {"file": "a", "equals": "kept"}, {"answer": True}]


def tasks(folder, *, sandbox):
    """A recipe and its tasks: the note `f` must be written, `a` kept, and the reply be right."""
    setup = {"files": {"a": "kept"}, "commands": ["test -f a"]}
    rows = [{"prompt": p, "answer": "12", "setup": setup, "check": CHECK} for p in KNOWN + UNKNOWN]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "agent.toml").write_text(
        RECIPE.format(model=calling_model(COMMAND, prompts=KNOWN), sandbox=sandbox)
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder in which such a run has come to its end."""
    folder = tmp_path_factory.mktemp("home")
    tasks(folder, sandbox=TRUSTED)
    status, printed = Forked("train", "agent.toml", folder=folder).wait(300)
    assert status == 0, printed
    return folder


def recorded(home):
    """Every rollout file of the run, and what it holds."""
    files = [*sorted(home.glob("run/rollouts/*.parquet")), *sorted(home.glob("run/evals/*.parquet"))]
    return {file: list(rollout_file.read_attempts(file)) for file in files}


def evaluations(path):
    return [untimed(json.loads(line)) for line in path.read_text().splitlines()]


def untimed(row):
    """A row without what a clock wrote, and without the name of the model."""
    others = {"model", "path", "used", *(f"verify/{name}" for name in CLOCKED)}
    return {key: value for key, value in row.items() if key not in others}


def test_the_final_state_decides_and_is_recorded(home):
    files = recorded(home)
    assert len(files) == 4  # two steps, evaluated before the first and after the last
    rows = [row for rows in files.values() for row in rows]
    assert {row.verdict.outcome for row in rows} >= {"right", "wrong"}
    for row in rows:
        assert row.verdict.decided
        left = files_in(row.attempt.snapshot)
        assert left["a"] == b"kept"
        if row.verdict.outcome == "right":
            assert left["f"] == b"12\n"
    untouched = [row for row in rows if not any(m["role"] == "tool" for m in row.attempt.transcript)]
    assert untouched
    assert all(bare(row) for row in untouched)


def bare(row):
    """Whether nothing was left but what was set up."""
    return files_in(row.attempt.snapshot) == {"a": b"kept"}


def evaluate(folder, *words):
    status, text = Forked("eval", *words, "--json", folder=folder).wait(300)
    assert status == 0, text
    (line,) = [one for one in text.splitlines() if one.startswith("{")]
    return json.loads(line)


def test_eval_asks_the_same_episodes_again(home):
    made = evaluate(home, calling_model(COMMAND, prompts=KNOWN), "run", "-o", "out")
    before, after = evaluations(home / "run/eval.jsonl")
    assert before["avg"] > 0
    assert [row["used"]["verifier"].split()[0] for row in made["evaluations"]] == ["agent_task"] * 2
    start, end = map(untimed, made["evaluations"])
    assert start == before
    assert end == after
    (written,) = home.glob("out/run_step_2/evals/*.parquet")
    (there,) = home.glob("run/evals/step_000002_*.parquet")
    columns = ["problem_id", "index", "token_ids", "loss_mask", "transcript", "stop_reason", "reward"]
    assert pq.read_table(written, columns=columns) == pq.read_table(there, columns=columns)


@pytest.fixture
def copy(home, tmp_path):
    shutil.copytree(home, tmp_path / "copy")
    return tmp_path / "copy"


def replay(folder, *words):
    status, text = Forked("replay", "run", *words, "--json", folder=folder).wait(300)
    (line,) = [one for one in text.splitlines() if one.startswith("{")]
    return status, json.loads(line)


def test_replay_judges_every_recorded_state_as_it_was_judged(copy):
    status, found = replay(copy)
    assert (status, found["identical"], found["verifier_changed"]) == (0, True, [])
    assert found["num_rollouts"] == 2 * 8 + 2 * 12


def test_replay_looks_at_the_files_that_were_left(copy):
    """A right attempt whose recorded files are those of another is right no more."""
    everything = {path: pq.read_table(path).to_pylist() for path in copy.glob("run/rollouts/*.parquet")}
    path, right = next((p, row) for p, rows in everything.items() for row in rows if row["reward"] == 1.0)
    places = [(p, n) for p, rows in recorded(copy).items() for n, row in enumerate(rows) if bare(row)]
    there, number = places[0]
    right["snapshot"] = pq.read_table(there).to_pylist()[number]["snapshot"]
    table = pq.read_table(path)
    pq.write_table(type(table).from_pylist(everything[path], schema=table.schema), path)
    status, found = replay(copy, "--set", "train")
    (difference,) = [one for file in found["files"] for one in file["differences"]]
    assert status == 1
    assert (difference["group"], difference["index"]) == (right["group"], right["index"])
    assert difference["old"]["outcome"] == "right"
    assert difference["new"]["outcome"] == "wrong"
