"""What a run recorded against what it would be asked."""

import pytest

from tests.tiny import config
from verigrad.engine import rollout_file
from verigrad.engine.config import ConfigError
from verigrad.engine.eval_plan import Planned, Subject
from verigrad.engine.eval_split import recorded, require_held_out
from verigrad.engine.schema import Rollout, VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict

ODD = [Problem("1", "a\ud800", "x"), Problem("2", [{"role": "user", "content": "b"}], "x", {"k": 1})]


def write(path, problems):
    rollout = Rollout([1, 2], [False, True], [0.0, -1.0], [-1, 0], "t", "stop", 0)
    groups = [VerifiedGroup(problem, [rollout] * 2, [Verdict.right()] * 2) for problem in problems]
    rollout_file.write(path, 0, groups, {})


def planned(run, *, their=None, **ours):
    theirs = {"path": "d", "num_eval": 2, **(their or {})}
    subject = Subject("r", "m", {"data": theirs}, 1, run)
    return Planned(subject, config(data={**theirs, **ours}), subject)


def test_the_recorded_problems_pass_in_any_form(tmp_path):
    write(tmp_path / "evals" / "step_000000_held_out.parquet", ODD)
    require_held_out(planned(tmp_path), {"held_out": ODD[::-1]})
    require_held_out(planned(tmp_path, num_eval=1), {"held_out": ODD[1:]})  # --num 1


def test_another_prompt_under_the_same_id_was_not_held_out(tmp_path):
    write(tmp_path / "evals" / "step_000000_held_out.parquet", ODD)
    with pytest.raises(ConfigError, match=r"^r: 1 of 2 problems of held_out are not among the 2 .*'1'"):
        require_held_out(planned(tmp_path), {"held_out": [Problem("1", "c", "x"), ODD[1]]})


def test_a_prompt_that_is_skipped_now_is_missing(tmp_path):
    write(tmp_path / "evals" / "step_000000_held_out.parquet", ODD)
    with pytest.raises(ConfigError, match=r"1 of the 2 problems of held_out that .* are missing .*tokenizer"):
        require_held_out(planned(tmp_path), {"held_out": ODD[:1]})


def test_the_newest_record_of_that_set_counts(tmp_path):
    for name in ("step_000009_b", "step_000010_b", "step_000011_a_b"):
        write(tmp_path / "evals" / f"{name}.parquet", [Problem(name, "p")])
    assert recorded(tmp_path, "b") == {("step_000010_b", "p")}
    assert recorded(tmp_path, "c") is None


def test_without_a_record_what_was_sampled_in_training_is_refused(tmp_path):
    require_held_out(planned(tmp_path), {"held_out": ODD})
    write(tmp_path / "rollouts" / "step_000003.parquet", ODD[1:])
    with pytest.raises(
        ConfigError, match=r"was trained on 1 of 2 problems of held_out \(one is '2', in step_000003"
    ):
        require_held_out(planned(tmp_path), {"held_out": ODD})
    elsewhere = {"path": "e"}
    with pytest.raises(ConfigError, match=r"was trained on 1 of 1 problems of more"):
        require_held_out(planned(tmp_path, evals={"more": elsewhere}), {"more": ODD[1:]})


def test_nothing_is_asked_of_models_alone(tmp_path):
    write(tmp_path / "rollouts" / "step_000003.parquet", ODD)
    alone = Planned(Subject("m", "m"), config(), None)
    require_held_out(alone, {"held_out": ODD})


def test_a_broken_record_is_said_in_one_line(tmp_path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "step_000000_held_out.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ConfigError, match=r"step_000000_held_out.parquet cannot be read") as caught:
        require_held_out(planned(tmp_path), {"held_out": ODD})
    assert "\n" not in str(caught.value)
