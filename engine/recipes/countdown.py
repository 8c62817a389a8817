"""TinyZero's task, made here: reach a target with three or four given numbers, each used once.

The task is that of TinyZero (github.com/Jiayi-Pan/TinyZero), whose rows are a data set of the hub. These are
made instead, each around an expression that solves it, so that all can be solved and nothing is downloaded.
"""

import itertools
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

Row = dict[str, Any]


def problems(
    *,
    seed: int,
    num_problems: int = 20_000,
    min_numbers: int = 3,
    max_numbers: int = 4,
    max_number: int = 99,
    max_target: int = 100,
) -> list[Row]:
    """Rows {prompt, answer, nums, difficulty} in mixed order, equally many of each count of numbers.

    `nums` are from 1 to `max_number`, the target (`answer`) from 10 to `max_target`; no two rows have the
    same numbers, in whatever order, and the same target. `difficulty` is the count of numbers, with `sums` if
    + and - are enough and `products` if not: "3 sums", "4 products".
    """
    check(num_problems, min_numbers, max_numbers, max_number, max_target)
    rng = random.Random(f"countdown {seed}")
    counts = range(min_numbers, max_numbers + 1)
    rows: list[Row] = []
    for place, count in enumerate(counts):
        wanted = num_problems // len(counts) + (place < num_problems % len(counts))
        rows += rows_of(count, wanted, rng, max_number=max_number, max_target=max_target)
    rng.shuffle(rows)
    return rows


def check(num_problems: int, min_numbers: int, max_numbers: int, max_number: int, max_target: int) -> None:
    """Refuse what has no problems, or too many expressions to look at."""
    if num_problems < 1:
        raise ValueError(f"num_problems = {num_problems}: expected at least 1. Raise it.")
    if not 2 <= min_numbers <= max_numbers <= 6:
        raise ValueError(
            f"min_numbers = {min_numbers}, max_numbers = {max_numbers}: expected 2 <= min_numbers <= "
            "max_numbers <= 6. Correct them."
        )
    if max_number < 10 or max_target < 10:
        raise ValueError(
            f"max_number = {max_number}, max_target = {max_target}: expected at least 10 of each. Raise them."
        )


def rows_of(count: int, wanted: int, rng: random.Random, *, max_number: int, max_target: int) -> list[Row]:
    """Different problems of `count` numbers."""
    drawn: dict[tuple[tuple[int, ...], int], Row] = {}
    for _ in range(200 * wanted):
        if len(drawn) == wanted:
            return list(drawn.values())
        nums = [rng.randint(1, max_number) for _ in range(count)]
        target = some_value(nums, rng)
        if target.denominator == 1 and 10 <= target <= max_target:
            goal = int(target)
            drawn.setdefault((tuple(sorted(nums)), goal), row_of(nums, goal))
    raise ValueError(
        f"found {len(drawn)} different problems of {count} numbers up to {max_number} and targets up to "
        f"{max_target}, expected {wanted}. Set a smaller num_problems, or larger limits."
    )


def some_value(nums: Sequence[int], rng: random.Random) -> Fraction:
    """The value of a random expression that uses every number once."""
    values = [Fraction(n) for n in nums]
    while len(values) > 1:
        rng.shuffle(values)
        a, b = values.pop(), values.pop()
        sign = rng.choice("+-*/" if b else "+-*")
        values.append(a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b)
    return values[0]


def row_of(nums: Sequence[int], target: int) -> Row:
    """A row, with its question in words."""
    listed = f"{', '.join(map(str, nums[:-1]))} and {nums[-1]}"
    kind = "sums" if by_sums(nums, target) else "products"
    return {
        "prompt": f"Use each of the numbers {listed} exactly once, with +, -, *, / and brackets, to write an "
        f"expression that equals {target}. For example, (1 + 2) / 3 uses 1, 2 and 3 and equals 1.",
        "answer": str(target),
        "nums": list(nums),
        "difficulty": f"{len(nums)} {kind}",
    }


def by_sums(nums: Sequence[int], target: int) -> bool:
    """Whether adding and subtracting the numbers, in whatever order and brackets, reaches the target.

    Some number must keep its plus sign: an expression begins with one.
    """
    signs = itertools.product((1, -1), repeat=len(nums))
    return any(1 in s and sum(a * n for a, n in zip(s, nums, strict=True)) == target for s in signs)
