"""reasoning-gym as data and verifier: the real package, its real scorers, and text that attacks them."""

import json
import os
import re
import socket

import pytest

from verigrad.engine import makers
from verigrad.engine.settings import ConfigError
from verigrad.verifiers import registry
from verigrad.verifiers.adapters import confined, plain_answers, reasoning_gym
from verigrad.verifiers.base import POLICY_ATTRIBUTE, Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

EVALUATED = sorted(reasoning_gym.EVALUATED)


def problems(name, *, in_worker=False, **options):
    """Rows for this process; `in_worker`: as the engine makes them, in another one."""
    if in_worker:
        made = makers.make_rows(f"reasoning_gym:{name}", seed=1, options={"size": 4, **options})
    else:
        config = options.pop("config", {})
        made = reasoning_gym._made(name, {"seed": 1, "size": 4, **config, **options})
    return [
        Problem(str(index), row["prompt"], row.get("answer"), row["meta"]) for index, row in enumerate(made)
    ]


def judge(problem, *answers, **options):
    verifier = registry.load("reasoning_gym", options)
    return verifier.judge(problem, [Attempt(f"so <answer>{answer}</answer>") for answer in answers])


def attack(marker):
    return f"__import__('os').system('touch {marker}')"


def test_rows_are_the_same_for_the_same_seed_and_others_for_another():
    first = makers.make_rows("reasoning_gym:countdown", seed=3, options={"size": 5})
    assert first == makers.make_rows("reasoning_gym:countdown", seed=3, options={"size": 5})
    other = makers.make_rows("reasoning_gym:countdown", seed=4, options={"size": 5})
    assert [row["prompt"] for row in first] != [row["prompt"] for row in other]
    named = makers.make_rows("reasoning_gym:countdown", seed=3, options={"size": 5, "config": {"seed": 4}})
    assert named == other


def test_the_config_reaches_the_task():
    config = {"min_numbers": 2, "max_numbers": 2}
    for problem in problems("countdown", config=config):
        assert problem.meta["reasoning_gym"]["config"] == {**config, "seed": 1, "size": 4}
        assert len(re.findall(r"\d+", problem.answer)) == 2


TANGLED = ("list_functions", "polynomial_multiplication")  # no seed; the order of sets


@pytest.mark.parametrize("name", TANGLED)
def test_tasks_that_depend_on_the_order_of_sets_or_forget_their_seed_are_rebuilt_in_a_worker(name):
    made = problems(name, in_worker=True)
    with VerifierPool("reasoning_gym", num_workers=1) as pool:
        golds = [pool.submit(p, [Attempt(f"<answer>{p.answer}</answer>")]) for p in made]
        assert [verdict.reward for gold in golds for verdict in gold.result(120)] == [1.0] * len(made)


def test_a_row_that_this_package_does_not_make_decides_nothing():
    problem = problems("countdown")[0]
    source = {**problem.meta["reasoning_gym"], "sha256": "0" * 16}
    other = Problem("1", problem.prompt, problem.answer, {"reasoning_gym": source})
    (verdict,) = judge(other, problem.answer)
    assert verdict.reward is None
    assert "another version" in verdict.reason


def test_composite_mixes_tasks_and_each_row_is_judged_by_its_own():
    parts = [{"name": "leg_counting", "weight": 1.0}, {"name": "chain_sum", "weight": 1.0}]
    made = problems("composite", size=12, config={"datasets": parts})
    assert {problem.meta["task"] for problem in made} == {"leg_counting", "chain_sum"}
    for problem in made:
        assert [v.reward for v in judge(problem, problem.answer, "-1")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("countdwn", {}, "did you mean 'countdown'"),
        ("countdown", {"config": {"max_nums": 3}}, "has no setting 'max_nums'"),
        ("countdown", {"config": {"min_numbers": 9, "max_numbers": 2}}, "refuses its config"),
        ("countdown", {"size": 0}, "expected a whole number of rows above 0"),
        ("countdown", {"sise": 3}, "takes no option 'sise'"),
        ("composite", {}, "composite needs config.datasets"),
        ("game_of_life_halting", {}, "pays any text"),
        ("puzzle24", {}, "one answer fits every row"),
        ("composite", {"config": {"datasets": [{"name": "puzzle24", "weight": 1}]}}, "one answer fits"),
    ],
)
def test_a_wrong_request_is_one_clear_line(name, options, says):
    with pytest.raises(ConfigError, match=says):
        makers.make_rows(f"reasoning_gym:{name}", seed=1, options=options)


def test_the_defects_that_are_refused_are_there():
    life, _ = (problems(name) for name in ("game_of_life_halting", "puzzle24"))
    assert judge(life[0], "whatever", allow_defective=True)[0].reward == 1.0
    for problem in problems("puzzle24"):
        assert judge(problem, "6 * 4 * 1 * 1", allow_defective=True)[0].reward == 1.0
    with pytest.raises(ValueError, match="pays any text"):
        registry.load("reasoning_gym").check_row(life[0])


@pytest.mark.parametrize("name", ["countdown", "basic_arithmetic", "figlet_font", "prime_factorization"])
def test_gold_is_right_and_junk_pays_exactly_nothing(name):
    for problem in problems(name):
        verdicts = judge(problem, problem.answer, "", "junk", problem.prompt)
        assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0, 0.0]


def test_junk_keeps_its_score_as_a_part_and_not_as_reward():
    (verdict,) = judge(problems("countdown")[0], "1")
    assert (verdict.reward, verdict.parts["score"], verdict.outcome) == (0.0, 0.05, "wrong")


def test_a_threshold_takes_part_credit_and_partial_pays_it():
    problem = problems("string_insertion")[0]
    as_list = repr(list(problem.answer))  # the scorer gives 0.1
    assert judge(problem, as_list)[0].reward == 0.0
    assert judge(problem, as_list, threshold=0.1)[0].reward == 1.0
    (verdict,) = judge(problem, as_list, threshold=0.1, partial=True)
    assert (verdict.reward, verdict.outcome) == (0.1, "partial")
    with pytest.raises(ValueError, match="threshold = 0"):
        registry.load("reasoning_gym", {"threshold": 0})


def test_an_answer_without_tags_is_unparseable_unless_told_otherwise():
    problem = problems("basic_arithmetic")[0]
    assert (
        registry.load("reasoning_gym").judge(problem, [Attempt(problem.answer)])[0].outcome == "unparseable"
    )
    whole = registry.load("reasoning_gym", {"whole_text": True})
    assert whole.judge(problem, [Attempt(problem.answer)])[0].reward == 1.0


def test_rows_from_elsewhere_are_refused():
    with pytest.raises(ValueError, match="needs the column 'reasoning_gym'"):
        registry.load("reasoning_gym").check_row(Problem("1", "2+2?", "4", {}))


def test_the_canary_is_right():
    canary = getattr(reasoning_gym.ReasoningGym, POLICY_ATTRIBUTE).canary
    problem = Problem("canary", "", canary["answer"], canary["meta"])
    assert registry.load("reasoning_gym").judge(problem, [Attempt(canary["response"])])[0].reward == 1.0


@pytest.mark.parametrize("name", EVALUATED)
def test_text_that_a_scorer_would_run_never_reaches_it(name, tmp_path):
    problem = problems(name)[0]
    source, marker = problem.meta["reasoning_gym"], tmp_path / "marker"
    dataset = reasoning_gym.dataset_of(name, json.dumps(source["config"], sort_keys=True))
    dataset.score_answer(attack(marker), dataset[0])
    assert marker.exists(), "the package runs answers no more: the guard of this task can go"
    marker.unlink()
    (verdict,) = judge(problem, attack(marker), allow_defective=True)
    assert (verdict.reward, verdict.outcome) == (0.0, "unparseable")
    assert not marker.exists()


@pytest.mark.parametrize("name", EVALUATED)
def test_the_guards_let_right_answers_through(name):
    refused = [
        why for problem in problems(name, size=40) if (why := reasoning_gym.EVALUATED[name](problem.answer))
    ]
    # A gold that is an unevaluated integral would pay whoever writes the question down again.
    assert set(refused) <= {"holds the name 'Integral'"}
    assert not refused or name == "intermediate_integration"


@pytest.mark.parametrize(
    ("guard", "text"),
    [
        (plain_answers.arithmetic, "9**9**9"),
        (plain_answers.arithmetic, "9 * *9"),
        (plain_answers.arithmetic, "1" * 40),
        (plain_answers.arithmetic, "().__class__"),
        (plain_answers.arithmetic, "1" + "+1" * 5000),
        (plain_answers.algebra, "x.__class__"),
        (plain_answers.algebra, "x**(9999)"),
        (plain_answers.algebra, "factorial(99999)"),
        (plain_answers.algebra, "Integral(x, x)"),
        (plain_answers.algebra, "open('f')"),
        (plain_answers.literal, "[print(1)]"),
        (plain_answers.literal, "[1] * 10**9"),
        (plain_answers.literal, "(lambda: 0)()"),
    ],
)
def test_guards_refuse_what_is_not_asked_for(guard, text):
    assert guard(text)


@pytest.fixture
def no_guards(monkeypatch):
    """The second wall alone: what if an answer gets past the guards?"""
    monkeypatch.setattr(reasoning_gym, "EVALUATED", {})


def test_code_that_runs_in_the_scorer_can_touch_nothing(no_guards, tmp_path):
    problem, marker = problems("string_insertion")[0], tmp_path / "marker"
    (verdict,) = judge(problem, f"[str(open({str(marker)!r}, 'w'))]")
    assert verdict.reward == 0.0
    assert not marker.exists()
    judge(problem, attack(marker))
    assert not marker.exists()


def test_one_answer_cannot_change_the_next_verdict(no_guards):
    """Code that makes the scorer generous does so in a process that is gone when the next answer comes."""
    problem = problems("string_insertion")[0]
    generous = (
        "[c for c in [__import__('sys').modules['reasoning_gym.algorithmic.string_insertion']]"
        " if setattr(c.StringInsertionDataset, 'score_answer', lambda *a: 1.0)]"
    )
    dataset = reasoning_gym.dataset_of(
        "string_insertion", json.dumps(problem.meta["reasoning_gym"]["config"], sort_keys=True)
    )
    own = type(dataset).score_answer
    verdicts = judge(problem, generous, "wrong", problem.answer)
    assert [verdict.reward for verdict in verdicts] == [0.0, 0.0, 1.0]
    try:  # the same text without a process of its own does change it
        dataset.score_answer(generous, dataset[0])
        assert dataset.score_answer("wrong", dataset[0]) == 1.0
    finally:
        type(dataset).score_answer = own


def attempts_at_everything(_ready):
    tried = {
        "read": lambda: os.open("/etc/hostname", os.O_RDONLY),
        "write": lambda: os.open("marker", os.O_CREAT),
        "network": lambda: socket.socket(),
        "fork": os.fork,
        "signal the judge": lambda: os.kill(os.getppid(), 9),
        "another program": lambda: os.execv("/bin/true", ["true"]),
        "leave the group": os.setsid,
        "the judge's pipes": lambda: os.write(4, b"{}"),
    }
    done = []
    for name, attempt in tried.items():
        try:
            attempt()
            done.append(name)
        except OSError:
            pass
    return done


def test_a_confined_child_can_do_nothing_but_answer():
    assert confined.call(lambda: None, attempts_at_everything) == []


def test_a_child_that_ends_early_or_cannot_prepare_is_a_failure_of_ours():
    with pytest.raises(confined.ChildFailed, match="status 3"):
        confined.call(lambda: None, lambda ready: os._exit(3))
    with pytest.raises(confined.ChildFailed, match="ZeroDivisionError"):
        confined.call(lambda: 1 / 0, lambda ready: ready)


def test_a_scorer_that_refuses_its_own_gold_decides_nothing():
    verdict = reasoning_gym.score_of(lambda answer: 0.0, "4", known="4")
    assert verdict.reward is None
    assert "refuses the answer" in verdict.reason


def test_a_scorer_that_cannot_read_an_answer_blames_the_answer_only_if_it_reads_the_right_one():
    assert reasoning_gym.score_of(float, "four", known="1").outcome == "unparseable"
    assert reasoning_gym.score_of(float, "four", known=None).reward is None


def test_in_the_pool_an_answer_that_never_ends_is_a_timeout_and_the_next_is_judged():
    problem = problems("simple_integration")[0]
    slow = "<answer>" + "(x+1)**99*" * 3 + "(9**99)**99**99**99" + "</answer>"
    with VerifierPool("reasoning_gym", num_workers=1, deadline_s=2.0) as pool:
        attempts = [Attempt(slow), Attempt(f"<answer>{problem.answer}</answer>")]
        verdicts = pool.submit(problem, attempts).result(120)
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0]
    assert verdicts[0].outcome == "timeout"
