"""A seed -> rows of 39 kinds of small chores for an agent, each with its check and its oracle."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from verigrad.engine.environment import Environment
from verigrad.engine.recipes import chores_data, chores_find, chores_fix
from verigrad.engine.recipes.chore import Chore

Family = Callable[[random.Random], Chore]
TOPICS: dict[str, Sequence[Family]] = {
    "fix": chores_fix.FAMILIES,
    "find": chores_find.FAMILIES,
    "data": chores_data.FAMILIES,
}


def problems(
    *, seed: int, num_problems: int = 1000, topics: Sequence[str] = tuple(TOPICS)
) -> list[dict[str, Any]]:
    """Rows {prompt, answer, meta} in mixed order, equally many of each kind of chore.

    Names, numbers and contents are drawn by the seed, so that no two rows are the same; `topics` are of fix,
    find and data.
    """
    if not topics or not set(topics) <= set(TOPICS):
        raise ValueError(f"topics = {topics}: expected some of {', '.join(TOPICS)}. Name only these.")
    if num_problems < 1:
        raise ValueError(f"num_problems = {num_problems}: expected at least 1.")
    families = [(topic, family) for topic in TOPICS if topic in topics for family in TOPICS[topic]]
    rows = []
    for number in range(num_problems):
        topic, family = families[number % len(families)]
        rng = random.Random(f"chores {seed} {family.__name__} {number // len(families)}")
        rows.append(family(rng).row(family.__name__, topic, rng))
    random.Random(f"chores order {seed}").shuffle(rows)
    return rows


CHORES = Environment(rows=problems, tools=("shell", "python", "edit_file"), max_turns=12)
