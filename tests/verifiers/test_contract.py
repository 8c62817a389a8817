"""What every verifier keeps, ours and yours.

Run it on your own: VERIGRAD_VERIFIERS=path/to/file.py:name pytest tests/verifiers/test_contract.py
"""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from verigrad.verifiers import registry
from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

NAMES = [name for name in os.environ.get("VERIGRAD_VERIFIERS", "").split(",") if name] or list(
    registry.BUILTIN
)
# What some cannot be loaded without.
OPTIONS = {
    "combine": {
        "parts": {
            "format": {"verifier": "answer_format", "weight": 0.2},
            "right": {"verifier": "countdown", "weight": 0.8, "gate": True},
        }
    },
}
LEARNED = {"reward_model": "pairs", "process_reward": "steps"}  # they need a trained model of this kind
JUDGED = {"judge_score": {}, "rubric": {"criteria": ["is right"]}}  # they need an endpoint that judges
# name -> (a right response, the problem's answer, the row's other columns)
ANSWERS = {
    "answer_format": ("<think>why</think><answer>so</answer>", None, {}),
    "combine": ("<think>why</think><answer>6*7</answer>", 42, {"nums": [6, 7]}),
    "countdown": ("<answer>6*7</answer>", 42, {"nums": [6, 7]}),
    "exact_match": ("right", "right", {}),
    "json_schema": ('{"a": 1}', None, {"schema": {"type": "object"}}),
    "math_answer": (r"\boxed{\frac{1}{2}}", "0.5", {}),
    "multiple_choice": ("Answer: B", "B", {}),
}
NASTY = [
    "",
    " ",
    "\x00\x01\x02",
    "\ud800",  # half a surrogate pair, as a cut tokenizer gives it
    "😀" * 1000,
    "{" * 10_000,
    "\\" * 10_001,
    r"\boxed{" * 1000,
    r"\boxed{" + "((((((((((" * 200 + "}",
    "<think>" * 1000,
    "</think>",
    r"\boxed{\frac{1}{0}}",
    r"\boxed{" + "9" * 49_000 + "}",
    "NaN",
    r"\boxed{\infty}",
    "-1e999999",
    "null",
    "__import__('os')._exit(0)",
    r"\boxed{a_{b_{c_{d}}}}",
    "\n" * 50_000,
    "<answer>" * 6000,
    "<answer>" + "(" * 40_000 + "</answer>",
    "<answer>" + "9" * 45_000 + "</answer>",
    "<think>a</think><answer>\x00\ud800</answer>",
    "[" * 50_000,
    '{"a": ' * 8000,
    "```json\n" * 6000,
    "answer: " * 6000,
    "\u200b" * 50_000,
    "\ufdfa" * 50_000,  # one character that stands for eighteen
    "known case of every part",
]


def named(name):
    """A name as a parameter; a verifier that runs programs needs somewhere to run them."""
    options = {"model": "made when it is needed"} if name in {*LEARNED, *JUDGED} else OPTIONS.get(name)
    runs = registry.load(name, options).policy.runs
    return pytest.param(name, marks=[pytest.mark.sandbox] if runs == "sandbox" else [])


@pytest.fixture(scope="module", params=[named(name) for name in NAMES])
def pool(request, tmp_path_factory):
    options = OPTIONS.get(request.param)
    if kind := LEARNED.get(request.param):
        from tests.engine import tiny_rewards
        from verigrad.engine.reward_card import Card

        folder = tmp_path_factory.mktemp(request.param)
        card = Card(kind=kind, mean=0.0, std=1.0, max_length=100, separator=".")
        options = {"model": str(tiny_rewards.make(folder, card))}
    with contextlib.ExitStack() as closing:
        if request.param in JUDGED:
            from tests.judge_server import Scripted

            server = closing.enter_context(Scripted(lambda asked, _: "no" if "Criterion:" in asked else "3"))
            options = {**JUDGED[request.param], "url": server.url, "model": "m"}
        yield closing.enter_context(VerifierPool(request.param, options=options, num_workers=1, seed=7))


@pytest.fixture
def problem(pool):
    known = pool.verifier.policy.canary or {}
    return Problem("p1", known.get("prompt", "1?"), known.get("answer", "1"), known.get("meta", {}))


def judge(pool, problem, *texts):
    return pool.submit(problem, [Attempt(text) for text in texts]).result(120)


def test_it_has_a_name_a_version_and_a_line_of_documentation(pool):
    assert pool.verifier.name
    assert pool.verifier.doc, "write a docstring: `verigrad verifiers` shows its first line"
    assert pool.verifier.policy.deadline_s > 0


def test_nothing_a_model_writes_makes_it_fail(pool, problem):
    verdicts = judge(pool, problem, *NASTY)
    for text, verdict in zip(NASTY, verdicts, strict=True):
        assert verdict.reward is not None, f"{text[:60]!r}: {verdict.reason}"


def test_it_says_the_same_twice(pool, problem):
    texts = [*NASTY[:8], "1", r"\boxed{1}"]
    first, second = judge(pool, problem, *texts), judge(pool, problem, *texts)
    assert [(v.reward, v.outcome) for v in first] == [(v.reward, v.outcome) for v in second]


def test_verdicts_can_be_written_down(pool, problem):
    for verdict in judge(pool, problem, "1", r"\boxed{1}"):
        assert "\n" not in verdict.reason
        assert len(verdict.reason) < 1000
        assert verdict.seconds >= 0
        json.dumps([verdict.reward, verdict.outcome, dict(verdict.parts), verdict.reason], allow_nan=False)


def test_after_a_kill_it_can_be_told_whether_it_still_works(pool, problem):
    known = pool.verifier.policy.canary
    (verdict,) = judge(pool, problem, "" if known is None else known["response"])
    assert verdict.reward is not None  # without a known case the pool asks about an empty attempt
    assert known is None or verdict.reward > 0


def test_an_unknown_option_is_refused_by_name(pool):
    with pytest.raises(ValueError, match="no option 'surely_not_an_option'"):
        VerifierPool(pool.verifier.source, options={"surely_not_an_option": 1})


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_right_is_right_and_wrong_is_wrong(name):
    response, answer, meta = ANSWERS[name]
    verifier = registry.load(name, OPTIONS.get(name))
    problem = Problem("p", "?", answer, meta)
    right, wrong = verifier.judge(problem, [Attempt(response), Attempt("something else")])
    assert (right.reward, right.outcome, wrong.reward) == (1.0, "right", 0.0)
    thought = Attempt("<think>" + response.replace("</think>", ""))  # a thought that never ends is no answer
    assert verifier.judge(problem, [thought])[0].reward == 0.0


def test_listing_and_loading_the_built_in_verifiers_imports_no_heavy_library():
    code = (
        "import sys, importlib; from verigrad.verifiers.registry import BUILTIN\n"
        "for source in BUILTIN.values(): importlib.import_module(source.partition(':')[0])\n"
        "assert not {'torch', 'sympy', 'jsonschema'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_random_pays_its_share_whatever_is_said():
    verifier = registry.load("random", {"p": 0.3})
    attempts = [Attempt(f"attempt {n}") for n in range(4000)]
    rewards = [verdict.reward for verdict in verifier.judge(Problem("p", "?", "1"), attempts, seed=3)]
    assert 0.27 < sum(rewards) / len(rewards) < 0.33
    other_answer = verifier.judge(Problem("p", "?", "attempt 1"), attempts, seed=3)
    assert [verdict.reward for verdict in other_answer] == rewards, "it must not look at the answer"
    other_seed = verifier.judge(Problem("p", "?", "1"), attempts, seed=4)
    assert [verdict.reward for verdict in other_seed] != rewards
    same_text = verifier.judge(Problem("p", "?", "1"), [Attempt("same")] * 50, seed=3)
    assert len({verdict.reward for verdict in same_text}) == 2, "siblings draw apart even with equal texts"


def test_exact_match_has_two_options_and_accepts_several_answers():
    def reward(text, answer, **options):
        (verdict,) = registry.load("exact_match", options).judge(Problem("p", "?", answer), [Attempt(text)])
        return verdict.reward

    assert reward(" Paris\n", "Paris") == 1.0
    assert reward("paris", "Paris") == 0.0
    assert reward("paris", "Paris", casefold=True) == 1.0
    assert reward("New  York", "New York") == 0.0
    assert reward("New\n York", "New York", collapse_whitespace=True) == 1.0
    assert reward("<think>London</think>Paris", ["London", "Paris"]) == 1.0
    assert reward("4", 4) == 1.0
    assert reward("Paris", None) is None
