"""Groups to verdicts: in the problems' order, whatever finishes first; too many undecided is an error."""

import re
import time

import pytest

from tests.tiny import VERIFIERS, config, rollout
from verigrad.engine.config import ConfigError
from verigrad.engine.rollout import Arriving
from verigrad.engine.schema import Rollout, RolloutGroup, VerifiedGroup
from verigrad.engine.scoring import Scorer, open_scorers
from verigrad.engine.verifier_health import UndecidedError
from verigrad.verifiers.base import Problem, Verdict

SLEEPY = """
import time
def sleepy(text):
    time.sleep(float(text))
    return float(text) < 0.1
def together(texts):
    return [len(texts) / 10 for _ in texts]
"""


def paying(cfg):
    return Scorer(cfg, cfg.verifier.name, cfg.verifier.options, setting="verifier.name")


@pytest.fixture
def scorer(tmp_path, request):
    def build(name, **verifier):
        (tmp_path / "own.py").write_text(VERIFIERS + SLEEPY)
        built = paying(config(verifier={"name": f"{tmp_path}/own.py:{name}", **verifier}))
        request.addfinalizer(built.pool.close)
        return built

    return build


def group(name, *texts):
    rollouts = [Rollout([1, 2], [False, True], [0.0, -1.0], [-1, 0], text, "stop", 0) for text in texts]
    return RolloutGroup(Problem(name, "p", "a"), rollouts)


def test_the_slow_and_the_late_leave_no_trace(scorer):
    judge = scorer("sleepy")
    arriving = [(2, group("c", "0.01", "0.3")), (0, group("a", "0.3", "0.01")), (1, group("b", "0.01"))]
    judged = judge.wait(judge.submit(arriving))
    assert [one.problem.id for one in judged] == ["a", "b", "c"]
    assert [one.correctness for one in judged] == [[0.0, 1.0], [1.0], [1.0, 0.0]]
    assert judge.health()["num_checked"] == 5


def telling(wanted, between):
    """A sampler whose rollouts end one by one: all of a group's are told of before the group is yielded."""
    arriving = Arriving()

    def run():
        for position, whole in wanted:
            for index, one in enumerate(whole.rollouts):
                arriving.tell(position, whole.problem, index, len(whole.rollouts), one)
                between(index)
            yield position, whole

    arriving.groups = run()
    return arriving


def test_a_rollout_is_judged_before_its_group_is_whole(scorer):
    judge, seen = scorer("sleepy", num_workers=1), []

    def between(index):
        ends = time.monotonic() + 30
        while judge.health()["num_checked"] <= index and time.monotonic() < ends:
            time.sleep(0.01)
        seen.append(judge.health()["num_checked"])

    [one] = judge.wait(judge.submit(telling([(0, group("a", "0.3", "0.01", "0.02"))], between)))
    assert seen == [1, 2, 3]
    assert one.correctness == [0.0, 1.0, 1.0]
    assert judge._hidden_frac() > 0.9


def test_a_verifier_of_groups_still_gets_whole_groups(scorer):
    judge = scorer("together")
    [one] = judge.wait(judge.submit(telling([(0, group("a", "x", "y", "z"))], lambda index: None)))
    assert one.correctness == [0.3, 0.3, 0.3]


def test_one_by_one_or_together_the_place_in_the_group_is_the_same():
    cfg = config(verifier={"name": "random", "cache": False})
    wanted = [(n, group(str(n), *"abcdefgh")) for n in range(4)]
    rewards = []
    for arriving in (wanted, telling(wanted, lambda index: None)):
        with paying(cfg) as judge:
            rewards.append([one.correctness for one in judge.wait(judge.submit(arriving))])
    assert rewards[0] == rewards[1]
    assert len({tuple(one) for one in rewards[0]}) > 1


def test_a_row_that_does_not_fit_is_told_of_by_its_first_rollout(scorer):
    with pytest.raises(ConfigError, match="does not fit the data"):
        scorer("wants_hint").submit(telling([(0, group("a", "x"))], lambda index: None))


def judged(*decided):
    verdicts = [Verdict.right() if yes else Verdict.undecided("the sandbox died") for yes in decided]
    return [VerifiedGroup(Problem("p", "q", "a"), [rollout([1], [2])] * len(decided), verdicts)]


def test_undecided_verdicts_up_to_the_limit_are_borne(scorer):
    scorer("low_first", max_undecided_frac=0.5).require_decided(judged(True, False))
    scorer("low_first", max_undecided_frac=1.0).require_decided(judged(False, False))
    scorer("low_first", max_undecided_frac=0.0).require_decided(judged(True, True))


def test_more_of_them_stop_the_run_and_say_why(scorer):
    with pytest.raises(UndecidedError, match="could not decide 2 of 3 attempts") as caught:
        scorer("low_first", max_undecided_frac=0.5).require_decided(judged(True, False, False))
    assert "the sandbox died" in str(caught.value)
    assert "verifier.max_undecided_frac = 0.5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verifier_that_is_not_there_is_the_users_input():
    with pytest.raises(ConfigError, match=r"verifier\.name: .*did you mean 'math_answer'"):
        paying(config(verifier={"name": "math_anser"}))


def test_a_row_that_lacks_what_the_verifier_asks_for_is_the_users_input(scorer):
    judge = scorer("wants_hint")
    with pytest.raises(ConfigError, match=r"does not fit the data: .*hint"):
        judge.submit([(0, group("a", "text"))])


def test_held_out_answers_have_a_judge_of_their_own_when_the_recipe_names_one():
    cfg = config(verifier={"name": "random", "options": {"p": 1.0}}, eval={"verifier": "exact_match"})
    with open_scorers(cfg) as (scorer, judges):
        arriving, judge = [(0, group("a", "no"))], judges.of("held_out")
        assert scorer.wait(scorer.submit(arriving))[0].correctness == [1.0]
        assert judge.wait(judge.submit(arriving))[0].correctness == [0.0]


@pytest.mark.parametrize("name", ["", "exact_match"])
def test_without_another_judge_one_pool_does_both(name):
    evals = {"plain": {"path": "x.jsonl"}, "same": {"path": "x.jsonl", "verifier": "exact_match"}}
    cfg = config(verifier={"name": "exact_match"}, eval={"verifier": name}, data={"evals": evals})
    with open_scorers(cfg) as (scorer, judges):
        assert judges.of("held_out") is judges.of("plain") is judges.of("same") is scorer


def test_each_set_may_have_a_judge_of_its_own():
    evals = {
        "easy": {"path": "x.jsonl", "verifier": "random", "verifier_options": {"p": 1.0}},
        "looser": {"path": "x.jsonl", "verifier_options": {"casefold": True}},
        "plain": {"path": "x.jsonl"},
    }
    cfg = config(verifier={"name": "random"}, eval={"verifier": "exact_match"}, data={"evals": evals})
    arriving = [(0, group("a", "A"))]
    with open_scorers(cfg) as (_, judges):
        paid = {name: judges.of(name).wait(judges.of(name).submit(arriving))[0].correctness for name in evals}
    assert paid == {"easy": [1.0], "looser": [1.0], "plain": [0.0]}


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"eval": {"verifier": "exact_mtach"}}, "eval.verifier"),
        ({"data": {"evals": {"d": {"path": "x", "verifier": "exact_mtach"}}}}, "data.evals.d.verifier"),
    ],
)
def test_a_judge_that_does_not_exist_is_named_by_its_own_setting(settings, setting):
    cfg = config(verifier={"name": "exact_match"}, **settings)
    with pytest.raises(ConfigError, match=f"^{re.escape(setting)}: "), open_scorers(cfg):
        pass
