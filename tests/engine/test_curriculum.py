import json
from collections import Counter

import pytest

from tests.tiny import config, rollout
from verigrad.engine.config import ConfigError
from verigrad.engine.curriculum import Curriculum, problem_stream
from verigrad.engine.data import ProblemStream
from verigrad.engine.schema import VerifiedGroup
from verigrad.verifiers.base import Problem, Verdict

PROBLEMS = [
    Problem(f"{level}{i}", f"{level} {i}", "1", {"level": level}) for level in "abc" for i in range(10)
]


def curriculum(seed=0):
    return Curriculum(PROBLEMS, column="level", seed=seed, shuffle=True)


def judged(level, *rewards):
    verdicts = [Verdict.undecided("x") if r is None else Verdict(r, "partial") for r in rewards]
    return VerifiedGroup(
        Problem("x", "q", "1", {"level": level}), [rollout([3], [4])] * len(rewards), verdicts
    )


def counts(stream, num=3000):
    return Counter(problem.meta["level"] for problem in stream.next_batch(num))


def test_all_categories_are_alike_before_anything_is_known():
    assert all(900 < count < 1100 for count in counts(curriculum()).values())


def test_weights_by_hand():
    stream = curriculum()
    stream.observe([judged("a", 1, 1, 1, 1), judged("b", 1, 0), judged("c", 0, 0)])
    assert [stream.weight(name) for name in "abc"] == pytest.approx([0.04, 0.29, 0.04])
    stream.observe([judged("a", 0, 0)])  # 0.9 * 1 + 0.1 * 0
    assert stream.weight("a") == pytest.approx(0.9 * 0.1 + 0.04)


def test_solved_and_hopeless_categories_become_rare_but_not_extinct():
    stream = curriculum()
    stream.observe([judged("a", 1, 1), judged("b", 1, 0), judged("c", 0, 0)])
    found = counts(stream)
    assert found["b"] > 2000  # 0.29 of 0.37
    assert 200 < found["a"] < 500
    assert 200 < found["c"] < 500


def test_undecided_rollouts_teach_nothing():
    stream = curriculum()
    stream.observe([judged("a", None, None), judged("b", 1, None)])
    assert "a" not in stream.solve_rates
    assert stream.solve_rates["b"] == 1


def test_within_a_category_no_problem_returns_before_all_were_visited():
    seen = Counter(p.id for p in curriculum().next_batch(90))
    for level in "abc":
        visits = [seen[f"{level}{i}"] for i in range(10)]
        assert max(visits) - min(visits) <= 1


def test_a_restored_stream_goes_on_as_if_nothing_had_happened():
    one = curriculum()
    one.next_batch(37)
    one.observe([judged("a", 1, 1), judged("b", 1, 0)])
    two = curriculum()
    two.load_state(json.loads(json.dumps(one.state())))
    for _ in range(3):
        assert one.next_batch(11) == two.next_batch(11)
        for stream in (one, two):
            stream.observe([judged("c", 1, 0)])


def test_other_categories_are_refused():
    state = curriculum().state()
    other = Curriculum(PROBLEMS[:20], column="level", seed=0, shuffle=True)
    with pytest.raises(ConfigError, match="categories"):
        other.load_state(state)


def test_a_missing_column_is_named_with_those_there_are():
    with pytest.raises(ConfigError, match="has no such column; it has level"):
        Curriculum(PROBLEMS, column="topic", seed=0, shuffle=True)


def test_the_recipe_chooses():
    assert isinstance(problem_stream(PROBLEMS, config(data={"curriculum": "level"})), Curriculum)
    assert isinstance(problem_stream(PROBLEMS, config()), ProblemStream)
