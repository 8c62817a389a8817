"""A seed -> sums in words, the questions that the general suite's probes disturb."""

import random
from typing import Any

NAMES = ("Ada", "Ben", "Chloe", "Dan", "Eva", "Finn")
GOODS = ("apples", "books", "coins", "marbles", "stamps", "tickets")


def questions(*, seed: int, num: int = 200) -> list[dict[str, Any]]:
    """Rows {prompt, answer}: one addition, subtraction or product each, all different."""
    if num < 1 or num > 2000:
        raise ValueError(f"num = {num}: expected 1 to 2000. Correct it.")
    rng = random.Random(f"arithmetic {seed}")
    rows: dict[str, int] = {}
    while len(rows) < num:
        name, goods, one, other = rng.choice(NAMES), rng.choice(GOODS), rng.randint(3, 60), rng.randint(2, 40)
        kind = rng.choice(("gets", "gives", "boxes"))
        if kind == "gets":
            rows[f"{name} has {one} {goods} and gets {other} more. How many {goods} are there now?"] = (
                one + other
            )
        elif kind == "gives":
            more = one + other
            rows[f"{name} has {more} {goods} and gives away {other}. How many {goods} are left?"] = one
        else:
            rows[f"{name} has {other} boxes of {one} {goods} each. How many {goods} is that?"] = one * other
    return [{"prompt": prompt, "answer": str(answer)} for prompt, answer in rows.items()]
