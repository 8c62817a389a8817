"""`verigrad train ... data.path=reasoning_gym:NAME`: a whole run on the real package."""

import json

import pyarrow.parquet as pq

from tests.tiny import run_cli, write_recipe

OVERRIDES = [
    "data.path=reasoning_gym:chain_sum",
    "data.options.size=24",
    "data.options.config={min_terms=2,max_terms=2}",
    "data.num_eval=4",
    "verifier.name=reasoning_gym",
    "rollout.max_prompt_tokens=300",
    "dynamic_sampling.enabled=false",
    "train.num_steps=2",
]


def test_a_run_trains_on_reasoning_gym_and_its_rewards_are_the_tasks_own(tmp_path):
    recipe = write_recipe(tmp_path)
    status, out, err = run_cli("train", recipe, *OVERRIDES, folder=tmp_path)
    assert status == 0, out + err
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    assert all(line["undecided_frac"] == 0 for line in metrics)
    rows = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    assert len(rows) == 16
    # A random model writes no tags; that is a verdict of the scorer's door, not a failure.
    assert {row["outcome"] for row in rows} <= {"unparseable", "wrong", "right"}
    source = json.loads(rows[0]["meta"])["reasoning_gym"]
    assert (source["name"], source["config"]["size"], source["config"]["max_terms"]) == ("chain_sum", 24, 2)


def test_a_task_that_is_not_there_is_one_line(tmp_path):
    recipe = write_recipe(tmp_path)
    status, out, err = run_cli(
        "train", recipe, *OVERRIDES, "data.path=reasoning_gym:chian_sum", folder=tmp_path
    )
    assert status == 2
    assert "reasoning-gym has no task 'chian_sum'; did you mean 'chain_sum'?" in " ".join((out + err).split())
