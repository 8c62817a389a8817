"""A run folder: opened by one, recorded row by row, cleared of what is about to happen again."""

import json
import math
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from tests.tiny import config, rollout
from verigrad.engine.config import ConfigError, to_toml
from verigrad.engine.run import Run, RunError, read_jsonl
from verigrad.engine.schema import Evaluation, ScoredGroup, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict


def settings(folder, **sections):
    return config(run={"folder": str(folder), "save_every": 2}, **sections)


def group():
    rollouts = [rollout([3, 4], [5, 6]), rollout([3, 4], [7])]
    return VerifiedGroup(Problem("p", "1+1=", 2, {"level": 3}), rollouts, [Verdict.right(), Verdict.wrong()])


def log(run, step, **metrics):
    scored = ScoredGroup(group().problem, group().rollouts, group().verdicts, [0.5, -0.5])
    run.log_rollouts(step, [group()], {0: scored})
    return run.log_step(step, {"reward": 0.5, **metrics})


def save(run, step):
    return run.save(step, {"value": step}, lambda folder: (folder / "model.bin").write_text(f"{step}"))


def evaluate(run, step):
    run.log_eval(
        Evaluation({"step": step, "data": "d", "avg": math.nan, "pass_at": {"1": math.nan}}, [group()])
    )


@pytest.fixture
def folder(tmp_path):
    """Four steps recorded, the second and fourth saved, the run then killed after a fifth."""
    with Run(settings(tmp_path / "run")) as run:
        evaluate(run, 0)
        for step in (1, 2, 3, 4, 5):
            log(run, step)
            if step % 2 == 0:
                evaluate(run, step)
                save(run, step)
    return tmp_path / "run"


def steps(folder, name="metrics.jsonl"):
    return [row["step"] for row in read_jsonl(folder / name)]


def test_a_resumed_run_forgets_what_it_will_do_again(folder):
    with Run(settings(folder)) as run:
        assert (run.first_step, run.resume_from[0], run.load_state()) == (5, 4, {"value": 4})
        assert steps(folder) == [1, 2, 3, 4]
        assert [p.name for p in sorted(folder.glob("rollouts/*"))][-1] == "step_000004.parquet"


def test_a_damaged_checkpoint_takes_its_steps_with_it(folder):
    (folder / "checkpoints" / "step_000004" / "model.bin").write_text("?")
    with Run(settings(folder)) as run:
        assert run.first_step == 3
        assert "step_000004 is damaged (model.bin has changed" in run.take_notes()[0]
    assert steps(folder) == [1, 2]
    assert steps(folder, "eval.jsonl") == [0, 2]
    assert len(list(folder.glob("evals/*"))) == 2


def test_without_any_checkpoint_everything_starts_again(tmp_path):
    with Run(settings(tmp_path / "run")) as run:
        evaluate(run, 0)
        log(run, 1)
    with Run(settings(tmp_path / "run")) as run:
        assert (run.first_step, run.resume_from) == (1, None)
    assert steps(tmp_path / "run") == steps(tmp_path / "run", "eval.jsonl") == []
    assert not list(tmp_path.glob("run/evals/*"))


def test_a_line_cut_off_by_a_kill_is_no_row(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')
    with Run(settings(folder)) as run:
        log(run, 5)
    assert steps(folder) == [1, 2, 3, 4, 5]
    assert (folder / "metrics.jsonl").read_text().endswith("}\n")


def test_a_kill_before_pruning_is_made_up_for(folder):
    with Run(settings(folder)) as run:
        save(run, 6)
    shutil.copytree(folder / "checkpoints" / "step_000004", folder / "checkpoints" / "step_000002")
    with Run(settings(folder)):
        assert sorted(p.name for p in folder.glob("checkpoints/*")) == ["step_000004", "step_000006"]


def test_halves_of_files_are_cleared_away(folder):
    (folder / "rollouts" / "step_000005.parquet.half").write_text("x")
    (folder / "rollouts" / "step_000004.parquet.half").write_text("x")
    (folder / "metrics.jsonl.half").write_text("x")
    (folder / "checkpoints" / "step_000006.half").mkdir()
    with Run(settings(folder)):
        assert not list(folder.glob("**/*.half"))


def test_a_kill_before_the_recipe_is_recorded_is_no_strange_folder(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", "log.txt", "config.toml.half"):
        (tmp_path / "run" / name).write_text("")
    with Run(settings(tmp_path / "run")) as run:
        assert (run.folder / "config.toml").read_text() == to_toml(run.cfg)


def test_numbers_that_json_lacks_are_null(tmp_path):
    with Run(settings(tmp_path / "run")) as run:
        log(run, 1, loss=math.nan, grad_norm=math.inf)
        evaluate(run, 1)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["loss"] is row["grad_norm"] is None
    assert read_jsonl(tmp_path / "run" / "eval.jsonl")[0]["pass_at"] == {"1": None}
    assert "NaN" not in (tmp_path / "run" / "eval.jsonl").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex, ...\) and no run"):
        Run(settings(tmp_path))
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        Run(settings(tmp_path / "thesis.tex"))
    with pytest.raises(ConfigError, match=r"cannot be made \(Not a directory\)"):
        Run(settings(tmp_path / "thesis.tex" / "run"))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_changed_settings_are_all_named_and_harmless_ones_are_not(folder):
    changed = settings(folder, optim={"lr": 0.5}, train={"seed": 9})
    with pytest.raises(ConfigError) as caught:
        Run(changed)
    assert "optim.lr: 0.01 -> 0.5" in str(caught.value)
    assert "train.seed: 0 -> 9" in str(caught.value)
    assert steps(folder) == [1, 2, 3, 4, 5]  # refused before anything was touched
    with Run(settings(folder, verifier={"num_workers": 7}, train={"num_steps": 200})) as run:
        assert run.first_step == 5


def test_settings_may_change_while_nothing_has_happened(tmp_path):
    folder = tmp_path / "run"
    with Run(settings(folder)):
        pass  # ended before the first evaluation: a model that is not there, say
    with Run(settings(folder, optim={"lr": 0.5})) as run:
        assert run.first_step == 1
    assert "lr = 0.5" in (folder / "config.toml").read_text()


def test_a_refused_run_does_not_keep_the_folder(folder):
    with pytest.raises(ConfigError) as kept:  # the exception holds the half-opened run alive
        Run(settings(folder, optim={"lr": 0.5}))
    with Run(settings(folder)):
        assert kept


def test_one_writer_at_a_time(folder):
    lock = f"lock = filelock.FileLock({str(folder / '.lock')!r})"
    other = f"import filelock; {lock}; lock.acquire(); print(1, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", other], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(RunError, match="is being written by another process"):
            Run(settings(folder))
    finally:
        holder.communicate(b"\n")
    with Run(settings(folder)):
        assert steps(folder) == [1, 2, 3, 4]


def test_a_save_that_fails_is_noted_and_costs_nothing(folder):
    def full(half):
        (half / "model.bin").write_text("half")
        raise OSError(28, "No space left on device")

    with Run(settings(folder)) as run:
        assert run.save(6, {}, full) is False
        assert "checkpoint of step 6 could not be written" in run.take_notes()[0]
        assert run.take_notes() == []
        assert save(run, 6) is True
    assert sorted(p.name for p in folder.glob("checkpoints/*")) == ["step_000004", "step_000006"]


def test_a_row_that_cannot_be_written_ends_the_run(folder):
    with Run(settings(folder)) as run:
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").mkdir()
        with pytest.raises(RunError, match=r"metrics.jsonl could not be written .*free some space"):
            log(run, 5)


def test_a_log_that_cannot_be_written_hides_no_error(tmp_path):
    def fail():
        with Run(settings(tmp_path / "run")):
            (tmp_path / "run" / "log.txt").mkdir()
            raise ValueError("the real one")

    with pytest.raises(ValueError, match="the real one"):
        fail()


def test_text_that_is_no_unicode_is_still_recorded(tmp_path):
    verdicts = [Verdict(0.0, "wrong", reason="half a pair: \ud800", extracted="\ud800 5"), Verdict.right()]
    with Run(settings(tmp_path / "run")) as run:
        run.log_rollouts(1, [VerifiedGroup(group().problem, group().rollouts, verdicts)], {})
    table = pq.read_table(tmp_path / "run" / "rollouts" / "step_000001.parquet")
    assert table["reason"].to_pylist() == ["half a pair: ?", ""]
    assert table["extracted"].to_pylist() == ["? 5", ""]


def test_a_recipe_of_another_version_is_named_as_such(folder):
    record = folder / "config.toml"
    record.write_text(record.read_text().replace("num_steps", "num_stages"))
    with pytest.raises(ConfigError, match=r"this version does not take .*train\.num_stages is not a setting"):
        Run(settings(folder))


def test_seconds_belong_to_the_step_they_were_spent_in(tmp_path):
    with Run(settings(tmp_path / "run")) as run:
        for step in (1, 2):
            with run.timed("total"), run.timed("rollout"):
                pass
            row = log(run, step)
            assert row["seconds/rollout"] <= row["seconds/total"]
            assert row["tokens_per_s"] == pytest.approx(3 / row["seconds/total"])
        with run.timed("save"):
            pass
        total = run.total_seconds()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert total["rollout"] == pytest.approx(sum(row["seconds/rollout"] for row in rows))
    assert total["save"] > 0


def test_other_data_is_another_run(folder):
    with Run(settings(folder)) as run:
        run.record_environment(data="a", model="m")
    with Run(settings(folder)) as run:
        run.record_environment(data="a", model="m")
        assert run.take_notes() == []
        with pytest.raises(ConfigError, match=r"made from other data \(data: 'a' -> 'b'\)"):
            run.record_environment(data="b", model="m")
    record = json.loads((folder / "environment.json").read_text())
    assert record["data"] == "a"
    assert {"python", "versions", "hardware", "seed", "commit", "verifier"} <= set(record)
