"""An answer that a scorer will hand to `eval` or sympy's parser -> why it must not get there, or None.

Both run any Python they are given. So an answer to such a task must first be what it is asked to be:
arithmetic, an algebraic expression, or a Python literal. Nothing else reaches the scorer.
"""

import ast
import re

MAX_CHARACTERS = 2000
MAX_DIGITS = 12  # of one number
MAX_POWER = 100
ARITHMETIC = re.compile(r"(?:[0-9]+(?:\.[0-9]*)?|[-+*/()\s])*")
TOKEN = re.compile(r"\s+|(?P<number>[0-9]+(?:\.[0-9]*)?)|(?P<name>[A-Za-z]+)|\*\*|[-+*/^(),]")
NAMES = frozenset(
    {"sin", "cos", "tan", "cot", "sec", "csc", "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh",
     "acosh", "atanh", "exp", "log", "ln", "sqrt", "pi", "Abs"}
)  # fmt: skip


def arithmetic(answer: str) -> str | None:
    """Why this is no sum, difference, product or quotient of plain numbers."""
    if too_long := _too_long(answer):
        return too_long
    if not ARITHMETIC.fullmatch(answer):
        return "is not plain arithmetic"
    return "holds a power" if re.search(r"\*\s*\*", answer) else _long_number(answer)


def algebra(answer: str) -> str | None:
    """Why this is no expression of numbers, one-letter variables, common functions and small powers."""
    if too_long := _too_long(answer):
        return too_long
    at = 0
    while at < len(answer):
        match = TOKEN.match(answer, at)
        if match is None:
            return f"holds {answer[at]!r}, which no algebraic expression has"
        name = match["name"]
        if name and len(name) > 1 and name not in NAMES:
            return f"holds the name {name[:20]!r}"
        at = match.end()
    return _large_power(answer) or _long_number(answer)


def literal(answer: str) -> str | None:
    """Why this is neither a Python literal nor text that names, calls and computes nothing."""
    if too_long := _too_long(answer):
        return too_long
    try:
        ast.literal_eval(answer.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        # What is no literal may be the plain text that the task asks for: a scorer compares that first, and
        # only what cannot be compiled at all is harmless when it then evaluates it.
        return None if _meaningless(answer) else "is code, not a value"
    return None


def _meaningless(answer: str) -> bool:
    """Whether Python cannot run it, or it is one bare name: letters without anything done to them."""
    try:
        tree = ast.parse(answer.strip(), mode="eval")
    except (SyntaxError, ValueError):
        return True
    except (MemoryError, RecursionError):
        return False
    return isinstance(tree.body, ast.Name)


def _too_long(answer: str) -> str | None:
    return f"is longer than {MAX_CHARACTERS} characters" if len(answer) > MAX_CHARACTERS else None


def _long_number(answer: str) -> str | None:
    longest = max((len(run) for run in re.findall(r"[0-9]+", answer)), default=0)
    return f"holds a number of more than {MAX_DIGITS} digits" if longest > MAX_DIGITS else None


def _large_power(answer: str) -> str | None:
    powers = re.findall(r"(?:\*\s*\*|\^)[\s(+-]*([0-9]+)", answer)
    large = any(int(power[: MAX_DIGITS + 1]) > MAX_POWER for power in powers)
    return f"holds a power above {MAX_POWER}" if large else None
