"""verl-style compute_score functions as verifiers, and verifiers as compute_score."""

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.adapters.verl import Undecided, as_compute_score
from verigrad.verifiers.base import Attempt, Problem

SCORES = """
def plain(data_source, solution_str, ground_truth, extra_info=None):
    return solution_str.endswith(ground_truth)

def rich(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
    assert data_source == "gsm8k" and extra_info["split"] == "train"
    return {"score": 0.5 + bonus, "acc": True, "pred": "4", "length": len(solution_str)}

async def later(data_source, solution_str, ground_truth, extra_info=None):
    return None

def no_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"reward": 1.0}

def text(data_source, solution_str, ground_truth, extra_info=None):
    return "1.0"
"""


@pytest.fixture
def load(tmp_path):
    (tmp_path / "scores.py").write_text(SCORES)
    return lambda name, **options: registry.load(f"verl:{tmp_path / 'scores.py'}:{name}", options)


def judge(verifier, response, problem=None):
    (verdict,) = verifier.judge(problem or Problem("1", "2+2?", "4"), [Attempt(response)])
    return verdict


def test_the_whole_completion_and_the_answer_arrive(load):
    assert judge(load("plain"), "<think>so</think> 4").reward == 1.0
    assert judge(load("plain"), "5").reward == 0.0


def test_verls_own_rows_are_read(load):
    meta = {"data_source": "gsm8k", "reward_model": {"ground_truth": "4", "style": "rule"},
            "extra_info": {"split": "train"}}  # fmt: skip
    problem = Problem("1", "2+2?", None, meta)
    assert judge(load("plain"), "4", problem).reward == 1.0
    verdict = judge(load("rich", kwargs={"bonus": 0.25}), "four", problem)
    assert (verdict.reward, verdict.outcome) == (0.75, "partial")
    assert verdict.parts == {"acc": 1.0, "length": 4.0}


def test_a_data_source_can_be_set_for_rows_without_one(load):
    problem = Problem("1", "2+2?", "4", {"split": "train"})
    assert judge(load("rich", data_source="gsm8k"), "4", problem).reward == 0.5


def test_none_is_undecided_and_what_is_no_number_is_no_reward(load):
    assert judge(load("later"), "4").reward is None
    with pytest.raises(ValueError, match="without 'score'"):
        judge(load("no_score"), "4")
    with pytest.raises(ValueError, match="expected a Verdict, bool, finite number"):
        judge(load("text"), "4")


def test_a_verifier_is_a_compute_score():
    score = as_compute_score("math_answer", num_workers=1)
    assert score("gsm8k", r"\boxed{0.5}", "1/2", {"index": 3})["score"] == 1.0
    wrong = score(data_source="gsm8k", solution_str=r"\boxed{3}", ground_truth="1/2", extra_info=None)
    assert (wrong["score"], wrong["acc"], wrong["outcome"]) == (0.0, False, "wrong")
    score.pool.close()


def test_extra_info_are_the_columns():
    score = as_compute_score("countdown", num_workers=1)
    assert score("tinyzero", "<answer>1+2</answer>", 3, {"nums": [1, 2]})["score"] == 1.0
    score.pool.close()


def test_undecided_is_raised_because_verl_has_no_word_for_it(tmp_path):
    (tmp_path / "broken.py").write_text("def broken(text):\n    raise OSError('the judge is away')\n")
    score = as_compute_score(f"{tmp_path / 'broken.py'}:broken", num_workers=1)
    with pytest.raises(Undecided, match="the judge is away"):
        score("any", "4", "4")
    score.pool.close()
