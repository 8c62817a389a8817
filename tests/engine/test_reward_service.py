"""Learned rewards as verifiers: the scores of the model itself, in batches, one process, faults undecided."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from tests.engine import tiny_rewards
from verigrad.engine import reward_model, reward_service
from verigrad.engine.config import ConfigError
from verigrad.engine.reward_card import Card
from verigrad.engine.reward_model import Scored
from verigrad.engine.reward_service import Batcher, answered, is_lasting, with_solution
from verigrad.verifiers import registry, services
from verigrad.verifiers.audit_cases import Row
from verigrad.verifiers.audit_learned import learned_results
from verigrad.verifiers.audit_report import Judged
from verigrad.verifiers.base import Attempt, Problem, Verdict
from verigrad.verifiers.isolation import VerifierPool
from verigrad.verifiers.service_keeper import ServiceRefused

PROMPT = "tell: cat sun"
GOOD, RUDE = "the cat is soft . the sun is warm .", "the silly cat is soft ."
PROBLEM = Problem("p", PROMPT, GOOD)


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    return tiny_rewards.make(tmp_path_factory.mktemp("rewards"), Card(mean=0.25, std=0.5, max_length=64))


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return tiny_rewards.make(tmp_path_factory.mktemp("steps"), Card(kind="steps", separator="."))


@pytest.fixture(scope="module")
def pool(rewards):
    with VerifierPool("reward_model", options={"model": str(rewards)}, num_workers=2, cache=True) as pool:
        yield pool


def judge(pool, *texts, problem=PROBLEM):
    return pool.submit(problem, [Attempt(text) for text in texts]).result(60)


@pytest.fixture
def here(monkeypatch):
    """Verdicts without a process: the service's own parts, called where they would be asked."""
    batchers = {}

    def ask(service, path, request, *, timeout_s):
        if service.key not in batchers:
            batchers[service.key] = Batcher(reward_service.load(service.options))
        return answered(batchers[service.key], json.loads(json.dumps(request)))

    monkeypatch.setattr(services, "ask", ask)

    def judge_here(verifier, *texts, truncated=False, **options):
        loaded = registry.load(verifier, options)
        return loaded.judge(PROBLEM, [Attempt(text, truncated) for text in texts])

    return judge_here


class Fake:
    """A model that counts what it is asked and pays a text's length; `boom` breaks it."""

    def __init__(self):
        self.card, self.asked = Card(mean=1.0, std=2.0), []

    def judge(self, prompts, responses):
        self.asked.append(list(responses))
        time.sleep(0.02)
        if "boom" in responses:
            raise RuntimeError("out of\nmemory")
        return [
            Scored(None, reason="the answer has 9 tokens, more than 8")
            if text == "long" or prompt == "long"
            else Scored(float("nan"), reason="")
            if text == "nan"
            else Scored(float(len(text)))
            for prompt, text in zip(prompts, responses, strict=True)
        ]


# Batches ---------------------------------------------------------------------------------------------------


def scores(asked):
    return [dict(one.result(10)) for one in asked]


def test_what_arrives_together_is_scored_together_and_equal_texts_once():
    model = Fake()
    batcher = Batcher(model, gather_s=0.2)
    asked = [one for text in ["a", "bb", "a", "ccc"] for one in batcher.ask("p", [text])]
    assert [one["reward"] for one in scores(asked)] == [1, 2, 1, 3]
    assert scores(batcher.ask("p", ["bb"]))[0]["reward"] == 2
    assert model.asked == [["a", "bb", "ccc"]]
    assert scores(batcher.ask("q", ["a"]))[0]["reward"] == 1  # another prompt is another question
    assert len(model.asked) == 2


def test_a_text_that_breaks_the_model_costs_its_neighbours_nothing():
    batcher = Batcher(Fake(), gather_s=0.2)
    a, boom, b = scores(batcher.ask("p", ["a", "boom", "bb"]))
    assert (a["reward"], b["reward"]) == (1, 2)
    assert boom == {"error": "RuntimeError: out of memory"}
    assert scores(batcher.ask("p", ["boom"]))  # asked again, not remembered
    assert batcher.model.asked[-1] == ["boom"]


def test_an_answer_too_long_is_its_own_fault_and_a_prompt_too_long_is_not():
    batcher = Batcher(Fake())
    assert scores(batcher.ask("p", ["long"])) == [{"unreadable": "the answer has 9 tokens, more than 8"}]
    assert scores(batcher.ask("long", ["a"])) == [{"error": "the answer has 9 tokens, more than 8"}]


def test_half_characters_and_chat_prompts_arrive_as_text():
    batcher = Batcher(Fake())
    assert scores(batcher.ask([{"role": "user", "content": "\ud800"}], ["\ud800x"]))[0]["reward"] == 2


def test_another_reading_of_the_steps():
    score = {"reward": 0.5, "steps": [0.5, 1.0]}
    assert with_solution(score, "")["reward"] == 0.5
    assert with_solution(score, "last")["reward"] == 1.0
    assert with_solution(score, "mean")["reward"] == 0.75
    assert with_solution({"error": "x"}, "mean") == {"error": "x"}


# Verdicts --------------------------------------------------------------------------------------------------


def test_the_reward_is_the_models_own_score_standardised(pool, rewards):
    model = reward_model.load(rewards)
    wanted = model.score([PROMPT] * 2, [GOOD, RUDE])
    verdicts = judge(pool, GOOD, f"<think>tell: ice</think> {RUDE}")
    for verdict, raw in zip(verdicts, wanted, strict=True):
        assert verdict.outcome == "partial"
        assert verdict.parts["score"] == pytest.approx(raw, abs=1e-4)
        assert verdict.reward == pytest.approx((raw - 0.25) / 0.5, abs=2e-4)


def test_bounds_thresholds_and_what_is_given_instead_of_measured(rewards, here):
    (raw,) = reward_model.load(rewards).score([PROMPT], [GOOD])
    cases = [
        ({"standardise": False}, raw, "partial"),
        ({"mean": raw - 8.0, "std": 1.0, "clip": 2.0}, 2.0, "partial"),
        ({"mean": raw + 8.0, "std": 1.0}, -5.0, "partial"),
        ({"mean": raw, "std": 1.0, "bound": "sigmoid"}, 0.5, "partial"),
        ({"mean": raw - 1, "std": 1.0, "threshold": 0.5}, 1.0, "right"),
        ({"mean": raw - 1, "std": 1.0, "threshold": 1.5}, 0.0, "wrong"),
    ]
    for options, reward, outcome in cases:
        (verdict,) = here("reward_model", GOOD, model=str(rewards), **options)
        assert verdict.reward == pytest.approx(reward, abs=2e-4), options
        assert verdict.outcome == outcome


def test_what_cannot_be_read_earns_least_and_what_was_cut_off_what_the_recipe_says(rewards, here):
    long, short = here("reward_model", "cat " * 500, GOOD, model=str(rewards))
    assert (long.reward, long.outcome) == (-5.0, "unparseable")
    assert short.reward is not None
    (cut,) = here("reward_model", GOOD, truncated=True, model=str(rewards), truncated_reward=-1.0)
    assert (cut.reward, cut.outcome) == (-1.0, "wrong")


def test_equal_answers_are_remembered_and_equal_verdicts(pool):
    before = pool.stats()["num_cached"]
    first, second = judge(pool, GOOD)[0], judge(pool, GOOD)[0]
    assert (first.reward, first.parts) == (second.reward, second.parts)
    assert pool.stats()["num_cached"] > before


def test_steps_are_scored_and_read_as_the_recipe_says(steps, here):
    (each,) = reward_model.load(steps).steps([PROMPT], [GOOD])
    assert len(each) == 2
    for solution, wanted in (("", min(each)), ("product", each[0] * each[1]), ("mean", sum(each) / 2)):
        verdict, nothing = here("process_reward", GOOD, "", model=str(steps), solution=solution)
        assert verdict.reward == pytest.approx(wanted, abs=1e-3)
        assert verdict.parts["step_2"] == pytest.approx(each[1], abs=1e-3)
        assert (nothing.reward, nothing.outcome) == (0.0, "partial")


def test_an_ensemble_tells_its_members_and_takes_another_aggregate(tmp_path, here):
    folder = tiny_rewards.ensemble(tmp_path)
    (one,) = reward_model.load(folder).judge([PROMPT], [GOOD])
    (verdict,) = here("reward_model", GOOD, model=str(folder))
    assert verdict.reward == pytest.approx((one.reward - 0.2) / 2.0, abs=2e-4)
    assert verdict.parts["member_1"] == pytest.approx(one.members[0], abs=1e-3)
    assert verdict.parts["disagreement"] == pytest.approx(one.disagreement, abs=1e-3)
    (least,) = here("reward_model", GOOD, model=str(folder), aggregate="min")
    assert least.reward == pytest.approx(min(one.members), abs=1e-3)


def test_rules_and_a_learned_reward_in_one_sum(rewards, here):
    parts = {
        "right": {"verifier": "exact_match", "gate": True, "weight": 0.5},
        "style": {
            "verifier": "reward_model",
            "options": {"model": str(rewards), "bound": "sigmoid"},
            "weight": 0.5,
        },
    }
    good, bad = here("combine", GOOD, RUDE, parts=parts)
    assert 0.5 < good.reward < 1
    assert good.outcome == "partial"
    assert bad.reward == 0


# Faults ----------------------------------------------------------------------------------------------------


def test_a_killed_model_comes_back_and_nobody_is_paid_or_blamed_for_it(pool):
    healthy = services.client(services.address_of(_service(pool)))
    pid = healthy.get("/health").json()["pid"]
    os.kill(pid, signal.SIGKILL)
    verdicts = judge(pool, *[f"the cat is {word} ." for word in ("soft", "hot", "red", "old")])
    assert all(verdict.reward is None or verdict.outcome == "partial" for verdict in verdicts)
    assert judge(pool, GOOD)[0].outcome == "partial"
    assert healthy.get("/health").json()["pid"] != pid
    assert "process" not in str([verdict.reason for verdict in verdicts])


def _service(pool):
    return pool.verifier.policy.services[0]


def test_a_model_that_may_not_be_used_is_refused_in_one_line(tmp_path, rewards, steps, here):
    def refused(verifier, **options):
        with pytest.raises(ConfigError) as raised:
            here(verifier, GOOD, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    biased = tiny_rewards.make(tmp_path, Card())
    assert "no mean and std" in refused("reward_model", model=str(biased))
    (biased / "audit.json").write_text(json.dumps({"refused": True, "reason": "it pays for length"}))
    said = refused("reward_model", model=str(biased), standardise=False)
    assert "it pays for length" in said
    assert "allow_biased" in said
    assert here("reward_model", GOOD, model=str(biased), standardise=False, allow_biased=True)[0].decided
    assert "process_reward" in refused("reward_model", model=str(steps), standardise=False)
    assert "reward_model" in refused("process_reward", model=str(rewards))
    assert "no ensemble" in refused("reward_model", model=str(rewards), aggregate="min")
    assert "no reward model" in refused("reward_model", model="./nowhere")
    with pytest.raises(ServiceRefused, match=r"^[^\n]*nowhere[^\n]*$"):  # and by the process itself
        VerifierPool("reward_model", options={"model": "./nowhere"}, num_workers=1)


@pytest.mark.slow
def test_a_run_goes_on_when_the_process_with_its_rewards_is_killed(tmp_path, rewards):
    talk = "verigrad.engine.recipes.small_talk"
    (tmp_path / "rl.toml").write_text(f"""
train.num_steps = 6
eval.every = 0
policy = {{model = "{talk}:model", options = {{num_steps = 5}}}}
data = {{path = "{talk}:prompts", options = {{num = 64}}, num_eval = 0}}
[rollout]
backend = "transformers"
groups_per_step = 4
group_size = 4
max_prompt_tokens = 16
max_tokens = 24
[verifier]
name = "reward_model"
options = {{model = "{rewards}"}}
audit = "off"
max_undecided_frac = 1.0
""")
    command = [sys.executable, "-m", "verigrad.engine.cli", "train", "rl.toml"]
    run = psutil.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "runs" / "rl" / "metrics.jsonl"
    ends = time.monotonic() + 300
    while run.poll() is None and not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
        assert time.monotonic() < ends
        time.sleep(0.05)
    services = [
        one for one in run.children(recursive=True) if "verigrad.engine.reward_service" in one.cmdline()
    ]
    for one in services:
        one.kill()
    assert services
    assert run.wait(300) == 0
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(rows) == 6
    assert rows[-1]["undecided_frac"] == 0
    assert not any(one.is_running() for one in services)


# Audit -----------------------------------------------------------------------------------------------------


class Bench:
    """Pays as the function it is given, as a learned verifier."""

    def __init__(self, pays, threshold=None):
        self.pays, self.threshold = pays, threshold
        self.loaded = registry.load("reward_model", {"model": "m", "threshold": threshold})

    def judge(self, cases):
        return [Judged(row.problem, case, self.verdict(self.pays(case.text)), False) for row, case in cases]

    def verdict(self, reward):
        if self.threshold is None:
            return Verdict(reward, "partial")
        return Verdict(float(reward >= self.threshold), "right" if reward >= self.threshold else "wrong")


@pytest.mark.parametrize(
    ("pays", "statuses"),
    [
        (lambda text: 1.0 if text.count(".") == 1 else 0.0, ["ok", "ok", "ok", "warns"]),
        (lambda text: float(len(text)), ["ok", "ok", "warns", "warns"]),
        (lambda text: -float(len(text)), ["FAILS", "warns", "ok", "warns"]),
        (lambda text: float(text.startswith("tell")), ["FAILS", "warns", "warns", "warns"]),
    ],
)
def test_an_audit_says_what_a_learned_reward_pays_for(pays, statuses):
    problems = [
        Problem(str(n), f"tell: {n}", f"the cat is {'soft' if n % 2 else 'hard'} .") for n in range(30)
    ]
    rows = [Row(one, one.prompt, None, (), "text", str) for one in problems]
    assert [one.status for one in learned_results(Bench(pays), rows)] == statuses
    bare = [Row(replace(one, answer="7"), "", None, (), "text", str) for one in problems]
    assert {one.status for one in learned_results(Bench(pays), bare)} == {"left out"}


@pytest.mark.parametrize(
    ("threshold", "statuses"),
    [
        (1.0, ["ok", "ok", "warns", "warns"]),  # accepts what is long: an honest answer, also said again
        (-1.0, ["FAILS", "warns", "warns", "warns"]),  # accepts everything
        (1e6, ["left out"] * 4),  # accepts nothing: an empty answer that is refused is not paid
    ],
)
def test_of_a_gate_the_audit_compares_what_is_accepted(threshold, statuses):
    problems = [Problem(str(n), "?", f"the cat is {'soft' if n % 2 else 'hard'} .") for n in range(30)]
    rows = [Row(one, one.prompt, None, (), "text", str) for one in problems]
    found = learned_results(Bench(lambda text: len(text) / 10, threshold), rows)
    assert [one.status for one in found] == statuses


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "model = ''; expected a folder"),
        ({"model": "m", "clip": 0}, "clip = 0; expected a number"),
        ({"model": "m", "mean": 0.0}, "belong together"),
        ({"model": "m", "mean": 0.0, "std": 1.0, "standardise": False}, "no effect"),
        ({"model": "m", "bound": "sigmoid", "clip": 2.0}, "clip has no effect"),
        ({"model": "m", "std_coef": 1.0}, "std_coef has no effect"),
        ({"model": "m", "aggregate": "max"}, "one of mean"),
        ({"model": "m", "device": "gpu"}, "one of auto"),
        ({"model": "m", "cliip": 1}, "did you mean 'clip'"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(options, says):
    with pytest.raises(ValueError, match=says):
        VerifierPool("reward_model", options=options)


def test_a_device_that_failed_for_good_is_told_from_memory_that_ran_out():
    assert is_lasting(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_lasting(RuntimeError("CUDA error: out of memory"))
    assert not is_lasting(ValueError("a text of 9 tokens"))
