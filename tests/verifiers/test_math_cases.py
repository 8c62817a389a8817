"""math_answer against a file of graded cases, and against math-verify where it pays for a wrong one.

Each line of math_cases.jsonl is {"response", "answer", "right", "kind", "why"}, with "options" where the
answer stands outside a box. Graded by hand after docs/verifiers/math_answer.md.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from math_verify import parse, verify

from verigrad.verifiers.base import Attempt, Problem
from verigrad.verifiers.isolation import VerifierPool

CASES = [json.loads(line) for line in Path(__file__).with_name("math_cases.jsonl").read_text().splitlines()]
MIN_RIGHT_FRAC = 0.98


def judge(cases):
    """The verdict on each case, by workers that can be killed: one asks for an integral nobody can do."""
    pools = {}
    futures = []
    try:
        for case in cases:
            extract = case.get("options", {}).get("extract", "boxed")
            if extract not in pools:
                pools[extract] = VerifierPool("math_answer", options={"extract": extract}, num_workers=1)
            problem = Problem("p", "?", case["answer"])
            futures.append(pools[extract].submit(problem, [Attempt(case["response"])]))
        return [future.result(300)[0] for future in futures]
    finally:
        for pool in pools.values():
            pool.close()


@pytest.fixture(scope="module")
def verdicts():
    return judge(CASES)


def shown(case, verdict):
    return f"{case['kind']}: {case['answer']!r} <- {case['response']!r} ({case['why']}): {verdict.reason}"


def test_the_file_is_broad_and_balanced():
    assert len(CASES) >= 450
    assert len({(case["answer"], case["response"], str(case.get("options"))) for case in CASES}) == len(CASES)
    assert 0.4 < sum(case["right"] for case in CASES) / len(CASES) < 0.6
    assert len(Counter(case["kind"] for case in CASES)) >= 25


def test_at_least_98_percent_are_judged_right(verdicts):
    pairs = list(zip(CASES, verdicts, strict=True))
    missed = [shown(case, v) for case, v in pairs if v.reward is None or (v.reward == 1.0) != case["right"]]
    assert len(missed) <= (1 - MIN_RIGHT_FRAC) * len(CASES), "\n".join(missed)


def test_nothing_wrong_is_paid_that_math_verify_does_not_pay_too(verdicts):
    ours_alone = []
    for case, verdict in zip(CASES, verdicts, strict=True):
        if verdict.reward == 1.0 and not case["right"]:
            gold = parse(rf"\boxed{{{case['answer'].rpartition('####')[2]}}}")
            if not verify(gold, parse(case["response"].rpartition("</think>")[2])):
                ours_alone.append(shown(case, verdict))
    assert not ours_alone, "\n".join(ours_alone)


def test_right_answers_to_one_problem_vote_together(verdicts):
    """Equal numbers read the same, so that a majority vote counts them together."""
    read = {}
    for case, verdict in zip(CASES, verdicts, strict=True):
        if verdict.reward == 1.0 and case["kind"] in ("integer", "decimal", "fraction", "radical"):
            read.setdefault(case["answer"], set()).add(verdict.extracted)
    assert len(read) > 20
    together = sum(len(found) == 1 for found in read.values())
    assert together / len(read) > 0.9, {gold: found for gold, found in read.items() if len(found) > 1}
