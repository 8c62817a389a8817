"""A seed -> problems with known answers, and responses as reasoning models write them, half of them right.

What is asked is spread as in competition and textbook sets, by our own guess: mostly integers, some
fractions, decimals, roots and polynomials, a few intervals, pairs and quantities. No data set is copied.
"""

import random
from collections.abc import Callable
from fractions import Fraction

SHORTEST, LONGEST = 200, 30_000  # characters of a response, spread evenly in their logarithm
FILLER = (
    "Let me think about this again. ",
    "We have $x^2 - 5x + 6 = 0$, so $(x-2)(x-3) = 0$. ",
    "Wait, that is not quite right, since $\\frac{a}{b} \\ne \\frac{b}{a}$ in general. ",
    "Substituting gives $2(3) + 4 = 10$, which checks out. ",
    "Hmm, let me try small cases first: for $n = 1$ we get 1, for $n = 2$ we get 4. ",
    "By symmetry the two cases are equal, so we count one and double it.\n\n",
    "Therefore the sum is \\[ \\sum_{k=1}^{n} k = \\frac{n(n+1)}{2}. \\] ",
    "So far the answer would be \\boxed{12}, but I should double-check. ",
)
Kind = Callable[[random.Random], tuple[str, list[str], list[str]]]
"""Draws a right answer, spellings that are right too, and wrong ones."""


def integer(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A whole number, small or large."""
    value = draw.choice([draw.randint(0, 20), draw.randint(21, 999), draw.randint(1000, 10**6)])
    grouped = f"{value:,}"
    return (
        str(value),
        [str(value), grouped, grouped.replace(",", "{,}"), f"{value}.", f"x = {value}"],
        [str(value + by) for by in (1, -1, 2, 10, value + 1)],
    )


def fraction(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A fraction in lowest terms."""
    value = Fraction(draw.randint(1, 40), draw.randint(2, 30))
    top, bottom = value.numerator, value.denominator
    forms = [rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}", f"{top}/{bottom}",
             rf"\frac{{{2 * top}}}{{{2 * bottom}}}"]  # fmt: skip
    return rf"\frac{{{top}}}{{{bottom}}}", forms, [rf"\frac{{{top + by}}}{{{bottom}}}" for by in (1, 2, 3, 4)]


def decimal(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A decimal or a percentage."""
    cents = draw.randint(101, 9999)
    text = f"{cents / 100:.2f}"
    return text, [text, rf"\${text}", text + "0"], [f"{(cents + by) / 100:.2f}" for by in (1, -1, 10, 100)]


def root(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A multiple of a square root, or of pi."""
    factor, inner = draw.randint(2, 9), draw.choice([2, 3, 5, 7])
    if draw.random() < 0.4:
        return (
            rf"{factor}\pi",
            [rf"{factor}\pi", rf"\pi \cdot {factor}"],
            [rf"{factor + 1}\pi", rf"{factor}\pi^2", f"{factor}"],
        )
    same = [rf"{factor}\sqrt{{{inner}}}", rf"\sqrt{{{factor**2 * inner}}}", rf"{factor} \sqrt {inner}"]
    return same[0], same, [rf"{factor}\sqrt{{{inner + 1}}}", rf"{factor + 1}\sqrt{{{inner}}}", str(factor)]


def polynomial(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A quadratic, expanded or factored."""
    a, b = draw.randint(1, 9), draw.randint(1, 9)
    gold = f"x^2 + {a + b}x + {a * b}"
    return gold, [gold, f"(x+{a})(x+{b})", f"{a * b} + {a + b}x + x^2"], [
        f"x^2 + {a + b}x + {a * b + 1}", f"(x-{a})(x+{b})", f"x^2 + {a + b + 1}x + {a * b}",
    ]  # fmt: skip


def several(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A pair, a set of solutions or an interval."""
    a, b = draw.randint(-9, 0), draw.randint(1, 9)
    gold, same, wrong = draw.choice([
        (f"({a},{b})", [f"({a}, {b})", rf"\left({a},{b}\right)"], [f"({b},{a})", f"({a},{b + 1})"]),
        (f"{a}, {b}", [f"{b}, {a}", rf"{a} \text{{ and }} {b}"], [f"{a}, {b + 1}", f"{b}"]),
        (f"[{a},{b})", [f"[{a}, {b})", rf"\left[{a},{b}\right)"], [f"({a},{b}]", f"[{a},{b}]"]),
    ])  # fmt: skip
    return gold, same, wrong


def quantity(draw: random.Random) -> tuple[str, list[str], list[str]]:
    """A number with a unit, or a word."""
    value = draw.randint(2, 500)
    if draw.random() < 0.3:
        return r"\text{even}", [r"\text{even}", "even", r"\textbf{even}"], [r"\text{odd}", r"\text{neither}"]
    return (
        rf"{value}\text{{ cm}}",
        [rf"{value} \text{{ cm}}", str(value), rf"{value}\mathrm{{cm}}"],
        [str(value + 2), rf"{value}\text{{ m}}", rf"{value + 1} \text{{ cm}}"],
    )


KINDS: dict[str, tuple[Kind, float]] = {
    "integer": (integer, 0.58),
    "fraction": (fraction, 0.12),
    "decimal": (decimal, 0.05),
    "root": (root, 0.09),
    "polynomial": (polynomial, 0.05),
    "several": (several, 0.07),
    "quantity": (quantity, 0.04),
}


def mix(seed: int, num_problems: int, *, num_samples: int) -> list[dict[str, object]]:
    """Rows {kind, response, answer, right}; about half of each problem's responses are right."""
    draw = random.Random(seed)
    weights = [share for _, share in KINDS.values()]
    rows: list[dict[str, object]] = []
    for name in draw.choices(list(KINDS), weights, k=num_problems):
        gold, same, wrong = KINDS[name][0](draw)
        for _ in range(num_samples):
            right = draw.random() < 0.5
            box = rf"\boxed{{{draw.choice(same if right else wrong)}}}"
            rows.append({"kind": name, "response": response(draw, box), "answer": gold, "right": right})
    return rows


def response(draw: random.Random, box: str) -> str:
    """Reasoning of some length and a box at the end; half the time the reasoning stands in think tags."""
    length = round(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
    parts: list[str] = []
    total = len(box)
    while total < length:
        parts.append(draw.choice(FILLER))
        total += len(parts[-1])
    reasoning = "".join(parts)
    if draw.random() < 0.5:
        return f"<think>\n{reasoning}\n</think>\n\nThe final answer is ${box}$."
    return f"{reasoning}\n\n**Answer:** ${box}$"
