"""The loop itself, where a step goes wrong: nothing to train on, no verdicts, no finite loss."""

import dataclasses
import json
import math
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import config as tiny_config
from tests.tiny import model_folder, random_groups, tokenizer, write_recipe
from verigrad.engine import algorithms, config
from verigrad.engine import train as loop
from verigrad.engine.config import ConfigError
from verigrad.engine.policy import Policy
from verigrad.engine.run import RunError
from verigrad.engine.screen import Screen
from verigrad.engine.sync import WeightSync, WeightSyncError
from verigrad.engine.verifier_health import UndecidedError
from verigrad.verifiers.pool_stats import CLOCKED

HOUSE_KEYS = """
step reward reward_std kept_frac undecided_frac solve_all_frac solve_none_frac loss grad_norm entropy
clip_frac_low clip_frac_high kl_ref mismatch_kl mismatch_max completion_tokens_mean truncated_frac
policy_version staleness_mean lr tokens_per_s seconds/rollout seconds/verify
seconds/train seconds/sync seconds/total
"""
PARQUET_COLUMNS = """
step group index problem_id prompt answer meta token_ids loss_mask logprobs policy_versions text finish_reason
seed reward outcome parts reason extracted verify_s advantage kept
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A function that trains the tiny recipe here: (exit status, run folder, what was on the screen)."""
    monkeypatch.chdir(tmp_path)

    def train(*overrides, verifier="low_first"):
        cfg = config.load(str(write_recipe(tmp_path, verifier=verifier)), overrides)
        with open(tmp_path / "screen.txt", "w") as file, Screen(Console(file=file, width=200)) as screen:
            status = loop.train(cfg, screen)
        return status, tmp_path / "run", (tmp_path / "screen.txt").read_text()

    return train


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run, step):
    return (run / "checkpoints" / f"step_{step:06d}" / "model.safetensors").read_bytes()


def spoil_loss(monkeypatch, is_spoilt):
    """Let the loss of the optimizer steps for which `is_spoilt(number)` be NaN; they count from 1."""
    build, count = algorithms.build, iter(range(1, 100))

    def spoilt(cfg):
        algorithm = build(cfg)

        def loss(inputs, coefs):
            value, sums = algorithm.loss(inputs, coefs)
            if is_spoilt(next(count)):
                value = value * math.nan
                sums = {**sums, "loss_sum": value.detach().double()}
            return value, sums

        return dataclasses.replace(algorithm, loss=loss)

    monkeypatch.setattr(algorithms, "build", spoilt)


def test_a_row_and_a_rollout_have_what_the_format_asks_for(task):
    status, run, _ = task("train.num_steps=2")
    assert status == 0
    for row in metrics(run):
        assert set(HOUSE_KEYS.split()) <= set(row)
    table = pq.read_table(run / "rollouts" / "step_000002.parquet")
    assert set(PARQUET_COLUMNS.split()) <= set(table.column_names)
    rows = table.to_pylist()
    assert len(rows) % 4 == 0
    first = rows[0]
    assert first["step"] == 2
    assert (
        len(first["token_ids"])
        == len(first["loss_mask"])
        == len(first["logprobs"])
        == len(first["policy_versions"])
    )
    assert {v for v, m in zip(first["policy_versions"], first["loss_mask"], strict=True) if m} == {1}
    assert sum(row["kept"] for row in rows) % 4 == 0
    assert all(row["advantage"] == 0 for row in rows if not row["kept"])


def test_non_finite_steps_are_skipped_counted_and_kept_then_stop_the_run(task, monkeypatch):
    spoil_loss(monkeypatch, lambda number: number > 2)  # the first step is fine
    with pytest.raises(RunError, match="2 steps in a row had a non-finite loss") as caught:
        task("run.save_every=1")
    assert "/rollouts" in str(caught.value)
    rows = metrics(run := task_folder(caught))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["skipped_updates"] for row in rows] == [0.0, 2.0, 2.0]
    assert rows[1]["loss"] is None  # NaN is no JSON
    assert weights(run, 2) == weights(run, 3)
    assert len(pq.read_table(run / "rollouts" / "step_000003.parquet")) >= 16


def task_folder(caught):
    from pathlib import Path

    return Path(str(caught.value).split("rollouts are in ")[1].split("/rollouts")[0])


def test_one_bad_step_is_passed_over(task, monkeypatch):
    spoil_loss(monkeypatch, lambda number: number in (3, 7))
    status, run, screen = task("run.save_every=1", "run.keep_checkpoints=9")
    assert status == 0
    assert [row["skipped_updates"] for row in metrics(run)] == [0.0, 1.0, 0.0, 1.0, 0.0]
    assert "SKIPPED 1 non-finite" in screen
    assert weights(run, 1) != weights(run, 2)  # its other minibatch was fine
    assert metrics(run)[2]["loss"] is not None


def test_a_non_finite_mismatch_of_a_skipped_step_is_not_taken_for_a_stale_sampler():
    sync = WeightSync.__new__(WeightSync)
    sync.max_mismatch_kl = 1e-3
    sync.require_match({"mismatch_kl": math.nan, "skipped_updates": 1.0})
    sync.require_match({"mismatch_kl": 1e-4})
    for bad in (
        {"mismatch_kl": math.nan, "skipped_updates": 0.0},
        {"mismatch_kl": 0.1, "skipped_updates": 1.0},
    ):
        with pytest.raises(WeightSyncError, match="the policy that samples is not"):
            sync.require_match(bad)


def test_steps_without_a_group_worth_training_on_change_nothing(task):
    status, run, _ = task("run.save_every=1", "run.keep_checkpoints=9", verifier="never_right")
    assert status == 0
    assert {weights(run, step) for step in range(1, 6)} == {weights(run, 1)}
    for row in metrics(run):
        assert (row["reward"], row["kept_frac"], row["loss"], row["grad_norm"]) == (0.0, 0.0, 0.0, 0.0)
        assert row["solve_none_frac"] == 1.0
    assert len(pq.read_table(run / "rollouts" / "step_000001.parquet")) == 4 * 12  # the cap, 3 x 4 groups


def test_a_verifier_that_always_raises_stops_before_anything_is_trained(task, tmp_path):
    no_eval = "eval.every=0 data.num_eval=0 eval.pass_k=[] eval.num_samples=1 eval.temperature=0.0"
    no_eval += " verifier.audit=off"
    with pytest.raises(UndecidedError, match="could not decide 16 of 16") as caught:
        task(*no_eval.split(), verifier="always_raises")
    assert "a bug of the verifier" in str(caught.value)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    evidence = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet").to_pylist()
    assert [row["outcome"] for row in evidence] == ["error"] * 16
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_undecided_verdicts_that_are_allowed_train_nothing_and_break_nothing(task):
    status, run, screen = task("verifier.max_undecided_frac=1.0", verifier="always_raises")
    assert status == 0
    assert [row["undecided_frac"] for row in metrics(run)] == [1.0] * 5
    assert metrics(run)[0]["reward"] is None
    evals = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    assert evals[0]["avg"] is None
    assert evals[0]["pass_at"] == {"1": None, "2": None}
    assert evals[0]["undecided_frac"] == 1.0
    assert "undefined" in screen
    assert (run / "curve.png").stat().st_size > 5000


def test_a_held_out_set_of_one_problem(task):
    status, run, screen = task("data.num_eval=1", "train.num_steps=1")
    assert status == 0
    assert "NaN" not in (run / "eval.jsonl").read_text()
    assert "nan" not in screen.split("run: 1 steps")[1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["verifier.name=exact_mach"], "did you mean 'exact_match'"),
        (["policy.model=./nowhere"], "policy.model = './nowhere'"),
        (["data.path=none.jsonl"], "no file none.jsonl"),
        (["curriculum.by=category", "curriculum.column=level"], "curriculum.column = 'level'"),
        (["rollout.max_prompt_tokens=2"], "sums.jsonl line 1"),
        (["rollout.max_prompt_tokens=600"], "= 608 is more than the 512 positions of policy.model"),
    ],
)
def test_what_the_recipe_names_wrongly_is_told_in_one_line(task, overrides, says):
    with pytest.raises(ConfigError) as caught:
        task(*overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_a_model_folder_like_any_other(task):
    _, run, _ = task("train.num_steps=2")
    folder = run / "checkpoints" / "step_000002"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = AutoTokenizer.from_pretrained(folder)("1+1=", return_tensors="pt")
    row = pq.read_table(run / "evals" / "step_000002_held_out.parquet").to_pylist()[0]
    ids, mask = torch.tensor([row["token_ids"]]), torch.tensor(row["loss_mask"][1:])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1].float() / 0.7, -1)
    chosen = logprobs.gather(1, ids[0, 1:, None])[:, 0][mask]
    assert torch.allclose(chosen, torch.tensor(row["logprobs"])[1:][mask], atol=1e-4)
    assert model.generate(**tokens, max_new_tokens=3).shape[1] > tokens["input_ids"].shape[1]


def test_torch_alone_decides_nothing(task):
    """Sampling draws from seeds of its own: what was drawn from torch before leaves no trace."""
    _, run, _ = task("train.num_steps=1")
    first = pq.read_table(run / "rollouts" / "step_000001.parquet").drop_columns("verify_s").to_pylist()
    torch.rand(17)
    _, again, _ = task("train.num_steps=1", "run.folder=again")
    assert again.name == "run"
    folder = run.parent / "again" / "rollouts" / "step_000001.parquet"
    assert pq.read_table(folder).drop_columns("verify_s").to_pylist() == first


def test_a_greedy_baseline_is_sampled_judged_recorded_and_trains_nothing_itself(task):
    _, run, _ = task("algorithm.name=remax", "train.num_steps=2")
    for step, row in enumerate(metrics(run), 1):
        rows = pq.read_table(run / f"rollouts/step_{step:06d}.parquet").to_pylist()
        sampled, greedy = [r for r in rows if r["kept"]], [r for r in rows if not r["kept"]]
        assert len(sampled) == 16
        assert len(greedy) == 4  # one of each group's problem
        baseline = {r["problem_id"]: r["reward"] for r in greedy}
        assert all(r["advantage"] == r["reward"] - baseline[r["problem_id"]] for r in sampled)
        assert row["reward"] == pytest.approx(sum(r["reward"] for r in sampled) / 16)


@pytest.mark.parametrize(
    "overrides",
    [
        "algorithm.kl_coef=0.01 algorithm.kl_place=reward algorithm.kl_target=0.01 algorithm.kl_horizon=50",
        "algorithm.kl_coef=0.01 algorithm.ref_sync_every=2",
        "algorithm.entropy_coef=0.01 algorithm.entropy_target=4 algorithm.name=reinforce_pp",
    ],
)
def test_what_adapts_goes_on_where_it_stood(task, tmp_path, overrides):
    task(*overrides.split(), "run.folder=whole")
    task(*overrides.split(), "run.folder=halves", "train.num_steps=3")
    task(*overrides.split(), "run.folder=halves")
    whole, halves = tmp_path / "whole", tmp_path / "halves"

    def untimed(run):
        skipped = ("seconds/", "tokens_per_s", *(f"verify/{name}" for name in CLOCKED))
        return [{k: v for k, v in row.items() if not k.startswith(skipped)} for row in metrics(run)]

    assert untimed(whole) == untimed(halves)
    assert len(untimed(whole)) == 5
    moved = {(row["kl_coef"], row["entropy_coef"], row["kl_ref"]) for row in untimed(whole)}
    assert len(moved) > 2


def parts_of(**sections):
    """(recipe, what `update` needs of a loop), over a tiny policy."""
    cfg = tiny_config(**sections)
    folder, algorithm = model_folder(), algorithms.build(cfg)
    made = Policy(cfg, folder, tokenizer=tokenizer(), start_folder=folder)
    parts = {"policy": made, "algorithm": algorithm, "coefs": algorithm.coefs, "critic": None}
    return cfg, SimpleNamespace(**parts, nonfinite_in_row=1)


def snapshot(policy):
    state = [value.clone() for s in policy.optimizer.state.values() for value in s.values()]
    return [*(w.clone() for _, w in policy.weights()), *state]


def record_updates(monkeypatch, stub):
    """The batches, coefficients and `first` of each optimizer step, as they come."""
    seen, real = [], stub.policy.update

    def update(batches, loss, coefs, *, step, first, beside):
        seen.append((batches, coefs, first))
        return real(batches, loss, coefs, step=step, first=first, beside=beside)

    monkeypatch.setattr(stub.policy, "update", update)
    return seen


def test_a_step_with_every_token_rejected_moves_nothing_and_is_no_failure():
    algorithm = {"reject": "token", "kl_coef": 0.1, "kl_target": 0.1, "entropy_target": 1.0}
    cfg, stub = parts_of(algorithm=algorithm, train={"num_minibatches": 2})
    groups = random_groups()
    open_wide = {"reject_low": 0.0, "reject_high": 1e30}
    fine = algorithms.build(tiny_config(algorithm={**algorithm, **open_wide}, train={"num_minibatches": 2}))
    strict, stub.algorithm = stub.algorithm, fine
    assert loop.update(stub, groups, cfg, 1)["rejected_frac"] == 0
    before = snapshot(stub.policy)  # with momentum
    assert len(before) > len(list(stub.policy.weights()))
    stub.algorithm, stub.nonfinite_in_row = strict, 1
    rollouts = [
        dataclasses.replace(r, logprobs=[-99.0] * len(r.logprobs)) for g in groups for r in g.rollouts
    ]
    far = [dataclasses.replace(g, rollouts=rollouts[i * 4 : i * 4 + 4]) for i, g in enumerate(groups)]
    row = loop.update(stub, far, cfg, 2)
    assert row["rejected_frac"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(stub.policy), strict=True))
    assert (row["skipped_updates"], stub.nonfinite_in_row, row["grad_norm"], row["loss"]) == (0, 0, 0, 0)
    assert math.isnan(row["entropy"])
    assert math.isnan(row["kl_ref"])
    assert strict.adapt(stub.coefs, row, 16) == stub.coefs


@pytest.mark.parametrize(
    ("groups", "minibatches", "sizes"),
    [(5, 4, [1, 1, 1, 2]), (3, 4, [1, 1, 1]), (4, 2, [2, 2]), (7, 2, [3, 4]), (0, 4, [])],
)
def test_groups_are_cut_into_parts_as_equal_as_can_be(monkeypatch, groups, minibatches, sizes):
    cfg, stub = parts_of(rollout={"groups_per_step": 8}, train={"num_minibatches": minibatches})
    seen = record_updates(monkeypatch, stub)
    loop.update(stub, random_groups(num=groups), cfg, 1)
    numbers = [sorted({n for b in batches for n in b.groups.tolist()}) for batches, _, _ in seen]
    assert [len(of_part) for of_part in numbers] == sizes
    assert [n for of_part in numbers for n in of_part] == list(range(groups))
    assert [first for _, _, first in seen] == [index == 0 for index in range(len(sizes))]


def test_the_entropy_filter_has_one_threshold_for_all_parts(monkeypatch):
    cfg, stub = parts_of(algorithm={"top_entropy_frac": 0.2}, train={"num_minibatches": 2})
    seen = record_updates(monkeypatch, stub)
    row = loop.update(stub, random_groups(), cfg, 1)
    entropies = [torch.cat([b.old_entropy[b.loss_mask] for b in batches]) for batches, _, _ in seen]
    weights = [torch.cat([b.loss_weights[b.loss_mask] for b in batches]) for batches, _, _ in seen]
    every = torch.cat(entropies).sort(descending=True).values
    threshold = every[round(0.2 * every.numel()) - 1]
    assert row["entropy_threshold"] == threshold
    for entropy, weight in zip(entropies, weights, strict=True):
        assert torch.equal(weight > 0, entropy >= threshold)
    counts = [int((weight > 0).sum()) for weight in weights]
    assert counts != [
        round(0.2 * entropy.numel()) for entropy in entropies
    ]  # what each part alone would keep
