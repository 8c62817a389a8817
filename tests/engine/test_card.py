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
        "paired": {"gain": 0.3, "low": 0.2, "high": 0.4}, "reading": "WORSE", "num_problems": 40,
    }  # fmt: skip
    found = {"side_effects": [effect], "wins": {}, "how": "temperature 0, 1 answer to each problem"}
    (folder / "side_effects.json").write_text(json.dumps(found))
    text = card(write_run(tmp_path / "x"), effects=folder)
    assert (
        "| refused | harmless questions refused | 0.100 | 0.400 | +0.300 [+0.200, +0.400] | 40 | WORSE |"
        in text
    )
    assert "\nTemperature 0, 1 answer to each problem.\n" in text
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


JUDGED = '[label]\n{more}[judge]\nmodel = "org/judge"\n[data]\npath = "q.jsonl"\n'


def test_the_constitution_is_the_runs_copy_or_else_the_file_found_as_the_run_found_it(tmp_path):
    shipped = JUDGED.format(more='constitution = "small_talk_constitution.txt"\n')
    folder = write_run(tmp_path / "x", shipped)
    text = card(folder)
    assert "As `small_talk_constitution.txt` is now; the run kept no copy." in text
    assert "> The answer is polite and has no rude word." in text
    (folder / "constitution.txt").write_text("Be <b>kind</b>.\n\nBe brief.\n")
    text = card(folder)
    assert "> Be &lt;b>kind&lt;/b>.\n>\n> Be brief.\n" in text
    assert "polite" not in text
    gone = write_run(tmp_path / "y", JUDGED.format(more='constitution = "no_such_file.txt"\n'))
    assert "`no_such_file.txt` is not there now, and the run kept no copy." in card(gone)


def test_a_models_judgement_is_a_risk_wherever_it_came_in(tmp_path):
    stages = tmp_path / "s"
    label = write_run(stages / "1_ask", JUDGED.format(more='task = "revise"\n'))
    (label / "labels.jsonl").write_text("")
    sample = '[sample]\n[verifier]\nname = "process_reward"\noptions = {model = "x"}\n[data]\npath = "q"\n'
    write_run(stages / "2_pick", sample)
    parts = '{parts = {a = {verifier = "exact_match"}, b = {verifier = "judge_score"}}}'
    mixed = RECIPE.replace('"reward_model"', '"combine"').replace('{model = "rm"}', parts)
    write_run(stages / "3_rl", mixed)
    text = card(stages)
    for line in (
        "- 1_ask: a model (org/judge) rewrote the answers; they teach what it likes, which may not be",
        "- 2_pick: answers were picked by a model (process_reward); they teach what it likes",
        "- 3_rl: the reward is learned or judged by a model (judge_score); what it likes is what was",
        "- 3_rl: the same model judged held-out answers",
    ):
        assert line in text, line
    learned = f'[prefer]\n[policy]\nmodel = "org/base"\n[data]\npath = "{label / "labels.jsonl"}"\n'
    text = card(write_run(tmp_path / "alone", learned))
    assert f"- alone: its data is of {label}, where a model (org/judge) rewrote the answers" in text
    text = card(write_run(tmp_path / "math", RECIPE.replace("reward_model", "math_answer")))
    assert "by a model" not in text


def test_what_trains_nothing_is_told_by_its_counts_and_its_failed_judgements(tmp_path):
    metrics = [
        {"step": 1, "num_rows": 5.0, "num_labels": 4.0, "num_judgements": 10.0, "undecided_frac": 0.2,
         "num_both_orders": 5.0, "num_agreed": 4.0},
        {"step": 2, "num_rows": 5.0, "num_labels": 5.0, "num_judgements": 10.0, "undecided_frac": 0.0,
         "num_both_orders": 5.0, "num_agreed": 5.0},
    ]  # fmt: skip
    folder = write_run(tmp_path / "x", JUDGED.format(more=""), metrics=metrics)
    asked = [(0, "a", "timed out"), (0, "a", None), (1, "b", "cut off at 96"), (2, "c", "cut off at 96")]
    rows = [{"row": row, "question": question, "error": error} for row, question, error in asked]
    (folder / "judgements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = card(folder)
    assert (
        "20 judgements of 10 rows gave 9 labels. Asked in both orders, the judge agreed with itself" in text
    )
    assert "90.0% of the pairs" in text
    assert (
        "judgements failed in 1 of 2 chunks of rows, at most 20.0% of the judgements of one; they were left "
        "out; the most common reason, 2 times: cut off at 96"
    ) in text
    assert "held out" not in text
    counts = {"step": 1, "num_sampled": 64.0, "num_problems": 4.0, "num_kept": 9.0, "num_problems_kept": 3.0}
    text = card(write_run(tmp_path / "y", '[sample]\n[data]\npath = "q"\n', metrics=[counts]))
    assert "Of 64 sampled answers to 4 prompts, 9 were kept, of 3 prompts." in text


def test_why_checks_failed_is_read_from_the_rollouts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = [{"step": 1, "undecided_frac": 0.0}, {"step": 2, "undecided_frac": 0.5}]
    folder = write_run(tmp_path / "x", metrics=metrics)
    (folder / "rollouts").mkdir()
    rows = {
        "outcome": ["right", "undecided", "undecided"],
        "reason": ["no", "killed at 1 s", "killed at 1 s"],
    }
    pq.write_table(pa.table(rows), folder / "rollouts" / "step_000002.parquet")
    assert "they were left out; the most common reason, 2 times: killed at 1 s" in card(folder)


def test_defaults_of_the_algorithm_and_the_loss_are_no_choices(tmp_path):
    recipe = RECIPE.replace("[verifier]", '[algorithm]\nname = "ppo"\nkl_coef = 0.2\nMORE[verifier]')
    implied = 'advantage = "gae"\ngamma = 1.0\nlam_alpha = 0.0\ncorrection_low = 0.5\nkl_estimator = "k3"\n'
    evals = '[data.evals.held]\npath = "h"\nsplit = "test"\nnum = 7\n'
    text = card(write_run(tmp_path / "x", recipe.replace("MORE", implied) + evals))
    assert '| `algorithm.name` | `"ppo"` |' in text
    assert "| `algorithm.kl_coef` | `0.2` |" in text
    for name in ("advantage", "gamma", "lam_alpha", "correction_low"):
        assert f"algorithm.{name}" not in text, name
    assert '| `data.evals` | `{"held": {"path": "h", "num": 7}}` |' in text
    text = card(write_run(tmp_path / "y", recipe.replace("MORE", "gamma = 0.9\n")))
    assert "| `algorithm.gamma` | `0.9` |" in text
    prefer = '[prefer]\nloss = "dpo"\nbeta = 0.1\nnll_coef = 0.5\n'
    prefer += '[policy]\nmodel = "org/base"\n[data]\npath = "p"\n'
    text = card(write_run(tmp_path / "z", prefer))
    assert "prefer.beta" not in text
    assert "| `prefer.nll_coef` | `0.5` |" in text


def test_one_command_has_no_order_and_its_parts_stand_under_the_title(tmp_path):
    evals = [{"step": 4, "data": "held_out", "accuracy": 0.7, "margin": 0.5, "num_examples": 12}]
    recipe = '[prefer]\n[policy]\nmodel = "org/base"\n[data]\npath = "p"\n'
    text = card(write_run(tmp_path / "x", recipe, evals=evals))
    assert "Made by `verigrad prefer`. " in text
    assert "\n## Data\n" in text
    assert "###" not in text
    assert "| held_out | margin | 0.500 at step 4 | 0.500 at step 4 | 12 examples |" in text
    assert "What its own answers are worth now they do not say" in text


def test_a_reward_models_calibration_and_lean_on_length_are_told(tmp_path):
    recipe = RECIPE.split("[verifier]")[0] + "[reward]\n"
    folder = write_run(
        tmp_path / "rm", recipe, evals=[{"step": 4, "data": "d", "accuracy": 0.7, "num_rows": 9}]
    )
    newest = folder / "checkpoints" / "step_000004"
    newest.mkdir(parents=True)
    audit = {"ece": 0.0787, "length_corr_within": 0.0969, "length_corr_within_low": -0.0424,
             "length_corr_within_high": 0.2325, "max_length_corr": 0.5}  # fmt: skip
    (newest / "audit.json").write_text(json.dumps(audit))
    text = card(folder)
    assert "| calibration error (ECE) | 0.079 |" in text
    assert "among answers to one prompt | 0.097 [-0.042, 0.233] |" in text
    assert "| refused from a correlation of | 0.5, where the interval does not hold 0 |" in text


def test_a_source_without_a_file_is_said_to_have_no_hash(tmp_path):
    folder = write_run(tmp_path / "x")
    facts = {"data": "d1", "verifier": None}
    (folder / "environment.json").write_text(json.dumps(facts))
    assert "| hash of its source | none: its source is no file that was found |" in card(folder)


def test_where_the_card_cannot_be_written_is_one_line(tmp_path, capsys):
    from verigrad.engine.cli import main

    def status_of(argv):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        return stopped.value.code

    folder = write_run(tmp_path / "x")
    for output, said in (
        (tmp_path / "none" / "x.md", f"there is no folder {tmp_path / 'none'}; make it"),
        (tmp_path, f"is a folder; name a file, such as {tmp_path / 'model_card.md'}"),
        (tmp_path / ("a" * 300), "could not be written"),
    ):
        assert status_of(["card", str(folder), "-o", str(output)]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    (tmp_path / "x.toml").write_text("")
    assert status_of(["card", str(tmp_path / "x.toml")]) == 2
    assert f"is a file; did you mean {folder}?" in capsys.readouterr().err
    (tmp_path / "x" / "config.toml").write_text("[[[")
    assert status_of(["card", str(folder)]) == 2
    assert "not a TOML file" in capsys.readouterr().err
