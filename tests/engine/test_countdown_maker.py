"""The countdown maker: every problem can be solved, none is there twice, the difficulty is as it says."""

import itertools
import re
from collections import Counter
from fractions import Fraction

import pytest

from verigrad.engine import makers
from verigrad.engine.config import ConfigError, DataConfig
from verigrad.engine.data import load
from verigrad.engine.recipes import countdown
from verigrad.verifiers.base import Attempt
from verigrad.verifiers.registry import load as load_verifier

PROBLEMS = "verigrad.engine.recipes.countdown:problems"


def solutions(nums, target, signs="+-*/"):
    """Expressions by trying all there are; written apart from the maker."""
    parts = [(Fraction(n), str(n)) for n in nums]

    def search(parts):
        if len(parts) == 1:
            if parts[0][0] == target:
                yield parts[0][1]
            return
        for i, j in itertools.permutations(range(len(parts)), 2):
            rest = [part for k, part in enumerate(parts) if k not in (i, j)]
            (a, x), (b, y) = parts[i], parts[j]
            for sign in signs:
                if sign == "/" and b == 0:
                    continue
                value = {"+": a + b, "-": a - b, "*": a * b}[sign] if sign != "/" else a / b
                yield from search([*rest, (value, f"({x} {sign} {y})")])

    return search(parts)


def test_every_problem_can_be_solved_and_the_verifier_says_so():
    verifier = load_verifier("countdown", {})
    data = load(DataConfig(path=PROBLEMS, options={"num_problems": 24}, num_eval=4), seed=0)
    for problem in [*data.train, *data.evals["held_out"]]:
        found = next(solutions(problem.meta["nums"], int(problem.answer)), None)
        assert found, problem
        (verdict,) = verifier.judge(problem, [Attempt(f"<think>x</think><answer>{found}</answer>")])
        assert verdict.reward == 1.0, verdict.reason
        wrong = f"<answer>{problem.answer}</answer>"
        assert verifier.judge(problem, [Attempt(wrong)])[0].reward == 0.0


def test_difficulty_says_whether_sums_are_enough():
    rows = countdown.problems(seed=1, num_problems=30)
    for row in rows:
        count, kind = row["difficulty"].split()
        assert int(count) == len(row["nums"])
        sums = next(solutions(row["nums"], int(row["answer"]), "+-"), None)
        assert kind == ("sums" if sums else "products"), row
    assert {row["difficulty"] for row in rows} == {"3 sums", "3 products", "4 sums", "4 products"}


@pytest.mark.parametrize(
    ("nums", "target", "enough"),
    [([1, 2, 3], 6, True), ([10, 30, 5], 15, True), ([2, 3, 4], 24, False), ([7, 3, 3], 1, True),
     ([5, 5, 5], 20, False)],
)  # fmt: skip
def test_sums_by_hand(nums, target, enough):
    assert countdown.by_sums(nums, target) is enough


def test_an_expression_needs_one_plus():
    assert not countdown.by_sums([1, 2], -3)  # -1-2 has no number to begin with


def test_no_two_rows_have_the_same_numbers_and_target():
    rows = countdown.problems(seed=0, num_problems=4000)
    assert len({(tuple(sorted(row["nums"])), row["answer"]) for row in rows}) == 4000
    assert len({row["prompt"] for row in rows}) == 4000
    assert Counter(len(row["nums"]) for row in rows) == {3: 2000, 4: 2000}
    for row in rows:
        assert all(1 <= n <= 99 for n in row["nums"])
        assert 10 <= int(row["answer"]) <= 100
        asked = [int(n) for n in re.findall(r"\d+", row["prompt"].split(" For example")[0])]
        assert asked == [*row["nums"], int(row["answer"])]


def test_the_seed_decides():
    assert countdown.problems(seed=1, num_problems=50) == countdown.problems(seed=1, num_problems=50)
    assert countdown.problems(seed=1, num_problems=50) != countdown.problems(seed=2, num_problems=50)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_problems": 0}, "num_problems = 0: expected at least 1"),
        ({"min_numbers": 1}, "expected 2 <= min_numbers <= max_numbers <= 6"),
        ({"min_numbers": 5}, "min_numbers = 5, max_numbers = 4"),
        ({"max_number": 3}, "max_number = 3"),
        ({"min_numbers": 2, "max_numbers": 2, "max_number": 10, "num_problems": 500}, "of 2 numbers"),
        ({"numbers": 3}, "takes no option 'numbers'"),
    ],
)  # fmt: skip
def test_options_without_sense_are_refused(options, says):
    with pytest.raises(ConfigError) as caught:
        makers.make_rows(PROBLEMS, seed=0, options=options)
    assert says in str(caught.value)
