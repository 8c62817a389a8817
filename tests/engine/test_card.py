import json

import pytest

from verigrad.engine.card import card
from verigrad.engine.config import ConfigError

RECIPE = """
[train]
num_steps = 4
[run]
folder = "runs/x"
[data]
path = "org/questions"
[policy]
model = "org/base"
[verifier]
name = "reward_model"
options = {model = "rm"}
[optim]
lr = 1e-6
"""


def write_run(folder, recipe=RECIPE, *, evals=(), metrics=(), audit=None):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(recipe)
    (folder / "environment.json").write_text(json.dumps({"data": "d1", "model": "m1", "seed": 3}))
    (folder / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in evals))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if audit is not None:
        (folder / "audit.json").write_text(json.dumps(audit))
    return folder


def test_what_the_run_recorded_is_on_the_card(tmp_path):
    evals = [
        {"step": step, "data": "held_out", "avg": avg, "avg_low": avg - 0.1, "avg_high": avg + 0.1,
         "num_problems": 50, "truncated_frac": 0.2}
        for step, avg in ((0, 0.25), (4, 0.5))
    ]  # fmt: skip
    metrics = [{"step": 1, "undecided_frac": 0.1, "skipped_updates": 1.0}, {"step": 2, "undecided_frac": 0.0}]
    audit = {"results": [{"name": "empty", "status": "FAILS", "num": 8, "num_bad": 3, "worst": "<b>|x"}]}
    text = card(write_run(tmp_path / "x", evals=evals, metrics=metrics, audit=audit))
    assert text.startswith("---\n")
    for line in (
        "base_model: org/base",
        "- org/questions",
        "| fingerprint of the rows | `d1` |",
        "| verifier | `reward_model` |",
        "| second reward, not trained on | none |",
        "| held_out | avg | 0.250 [0.150, 0.350] at step 0 | 0.500 [0.400, 0.600] at step 4 | 50 problems |",
        "probe 'empty' in 3 of 8 cases",
        "checks failed in 1 of 2 steps, at most 10.0%",
        "1 optimizer steps were skipped",
        "20.0% of held-out answers were cut off by the token limit, on held_out",
        "the reward is learned",
        "the results on held_out rest on 50 problems",
        "were not measured",
    ):
        assert line in text, line
    assert "<b>" not in text
    assert "\\|x" in text


def test_every_evaluation_set_has_its_rows_and_its_warnings(tmp_path):
    evals = [
        {"step": step, "data": name, "avg": avg, "num_problems": num, "truncated_frac": cut}
        for step, more in ((0, 0.0), (4, 0.25))
        for name, avg, num, cut in (("easy", 0.5 + more, 30, 0.3), ("hard", 0.0 + more, 500, 0.0))
    ]
    text = card(write_run(tmp_path / "x", evals=evals))
    for line in (
        "| easy | avg | 0.500 at step 0 | 0.750 at step 4 | 30 problems |",
        "| hard | avg | 0.000 at step 0 | 0.250 at step 4 | 500 problems |",
        "30.0% of held-out answers were cut off by the token limit, on easy",
        "the results on easy rest on 30 problems",
    ):
        assert line in text, line
    assert "on hard" not in text


def test_side_effects_are_told_and_the_worse_ones_are_failures(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    effect = {
        "name": "refused", "says": "harmless questions refused", "before": [0.1, 0, 1], "after": [0.4, 0, 1],
        "paired": {"gain": 0.3, "low": 0.2, "high": 0.4}, "reading": "WORSE",
    }  # fmt: skip
    (folder / "side_effects.json").write_text(json.dumps({"side_effects": [effect], "wins": {}}))
    text = card(write_run(tmp_path / "x"), effects=folder)
    assert (
        "| refused | harmless questions refused | 0.100 | 0.400 | +0.300 [+0.200, +0.400] | WORSE |" in text
    )
    assert "- side effect: refused got worse by 0.300" in text
    assert "were not measured" not in text


def test_a_run_of_stages_has_a_part_for_each_and_its_constitution(tmp_path):
    principles = tmp_path / "principles.md"
    principles.write_text("Be kind.\n\nBe brief.\n")
    label = f'[label]\nconstitution = "{principles}"\n[judge]\nmodel = "j"\n[data]\npath = "q.jsonl"\n'
    prefer = '[prefer]\nloss = "ipo"\n[policy]\nmodel = "org/base"\n[data]\npath = "labels.jsonl"\n'
    write_run(tmp_path / "s" / "1_label", label)
    write_run(tmp_path / "s" / "2_prefer", prefer)
    text = card(tmp_path / "s")
    assert text.index("## 1_label: verigrad label") < text.index("## 2_prefer: verigrad prefer")
    assert "> Be kind." in text
    assert "`ipo`" in text
    assert "2_prefer: nothing was held out" in text


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        card(tmp_path)
    with pytest.raises(ConfigError, match="no folder"):
        card(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no side_effects\.json"):
        card(write_run(tmp_path / "x"), effects=tmp_path)


def test_a_half_written_last_line_is_passed_over(tmp_path):
    folder = write_run(tmp_path / "x", evals=[{"step": 0, "data": "d", "avg": 0.5, "num_problems": 9}])
    with (folder / "eval.jsonl").open("a") as file:
        file.write('{"step": 1, "da')
    assert "0.500 at step 0" in card(folder)


def test_what_the_audit_of_a_reward_model_found_is_on_the_card(tmp_path):
    recipe = RECIPE.split("[verifier]")[0] + "[reward]\n"
    evals = [{"step": 4, "data": "held_out", "accuracy": 0.7, "num_rows": 12}]
    folder = write_run(tmp_path / "rm", recipe, evals=evals)
    newest = folder / "checkpoints" / "step_000004"
    newest.mkdir(parents=True)
    audit = {"refused": True, "reason": "it pays for length", "findings": ["an empty answer is worth much"]}
    (newest / "audit.json").write_text(json.dumps(audit))
    text = card(folder)
    assert "- rm: the reward model was refused by its audit: it pays for length" in text
    assert "- rm: an empty answer is worth much" in text
    assert "| 12 rows |" in text


def test_a_folder_of_runs_with_dates_for_names_is_one_line(tmp_path):
    write_run(tmp_path / "2024-01-05-run")
    with pytest.raises(ConfigError, match="holds no run"):
        card(tmp_path)
