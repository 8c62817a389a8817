"""An arithmetic expression over given numbers -> whether it uses them as told and reaches the target.

The task of TinyZero (github.com/Jiayi-Pan/TinyZero); what is refused is written down in
docs/verifiers/countdown.md. The expression is read by hand and worked out in exact rationals.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from verigrad.verifiers.base import Outcome, Verdict, verifier
from verigrad.verifiers.marked import Unreadable, last_line, nothing_follows, one_box, one_tag, short
from verigrad.verifiers.options import flag, number, one_of, shown, with_options

MAX_EXPRESSION = 1000  # characters
MAX_NUMS = 100
MAX_NUMBER = 10**12
TOKEN = re.compile(r"[0-9]+|\S")
INTEGER = re.compile(r"-?[0-9]{1,13}")
SIGNS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
STRENGTH = {"+": 1, "-": 1, "*": 2, "/": 2, "(": 0, "end": 0}
# ruff: noqa: RUF001 - look-alike signs on purpose
SPELLINGS = {
    "×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", r"\times": "*", r"\cdot": "*", r"\div": "/",
    r"\left(": "(", r"\right)": ")", "$": "",
}  # fmt: skip


@verifier(
    "countdown",
    version="1",
    deadline_s=2.0,
    canary={
        "response": "<answer>(1 + 2) * 3</answer>",
        "answer": None,
        "meta": {"nums": [1, 2, 3], "target": 9},
    },
)
@with_options(
    extract=one_of("answer_tag", "boxed", "last_line"),
    use_all=flag,
    equals_target=flag,
    trailing_text=flag,
    format_reward=number(0, 0.99),
)
def countdown(
    text: str,
    answer: Any,
    nums: Sequence[int],
    target: Any = None,
    extract: str = "answer_tag",
    use_all: bool = True,
    equals_target: bool = True,
    trailing_text: bool = False,
    format_reward: float = 0.0,
) -> Verdict:
    """Right if the one stated expression uses the given numbers once each and has the target's value.

    `nums` and `target` are columns of the row (without `target`, its answer). `format_reward` is paid for an
    expression that can be read and is wrong.
    """
    given, goal = _numbers(nums), _goal(target, answer)
    try:
        expression = _stated(text, extract, trailing_text=trailing_text)
        tokens = _tokens(_without_tail(expression, goal, allowed=equals_target))
        value = _value(tokens)
    except Unreadable as error:
        return Verdict.wrong(str(error), outcome="unparseable")
    read = "".join(tokens)
    wrong = _misuse([int(token) for token in tokens if token.isdigit()], given, use_all=use_all)
    if not wrong and value != goal:
        wrong = "divides by zero" if value is None else "has another value"
    if wrong:
        outcome: Outcome = "partial" if format_reward else "wrong"
        parts = {"format": 1.0, "right": 0.0}
        return Verdict(format_reward, outcome, parts, f"{short(read)}: {wrong}", extracted=read)
    return Verdict(1.0, "right", {"format": 1.0, "right": 1.0}, short(read), extracted=read)


def _stated(text: str, extract: str, *, trailing_text: bool) -> str:
    if extract == "last_line":
        return last_line(text)
    stated, after = one_tag(text, "answer") if extract == "answer_tag" else one_box(text)
    if not trailing_text:
        nothing_follows(after)
    return stated


def _without_tail(expression: str, goal: Fraction, *, allowed: bool) -> str:
    """`1 + 2 = 3` without `= 3`, if it names the target."""
    left, equals, right = expression.partition("=")
    if not equals:
        return expression
    if not allowed:
        raise Unreadable("holds an equals sign")
    right = right.strip().strip("$").strip()
    if not INTEGER.fullmatch(right) or int(right) != goal:
        raise Unreadable("what follows its equals sign is not the target")
    return left


def _tokens(expression: str) -> list[str]:
    """Numbers, signs and brackets; Unreadable for anything else, however alike it looks."""
    if len(expression) > MAX_EXPRESSION:
        raise Unreadable(f"an expression of {len(expression)} characters")
    for spelling, sign in SPELLINGS.items():
        expression = expression.replace(spelling, sign)
    tokens: list[str] = TOKEN.findall(expression)
    for token in tokens:
        number = token[0] in "0123456789"
        if number and (len(token) > len(str(MAX_NUMBER)) or token != str(int(token))):
            raise Unreadable(f"{short(token)} is not a number as the row gives them")
        if not number and token not in "+-*/()":
            raise Unreadable(f"{token!a} has no place in an expression of + - * / ( )")
    if not tokens:
        raise Unreadable("an empty expression")
    return tokens


def _value(tokens: Sequence[str]) -> Fraction | None:
    """The value of an infix expression, None where it divides by zero. No recursion: no depth to exhaust."""
    values: list[Fraction | None] = []
    waiting: list[str] = []  # signs and opening brackets
    wants_number = True
    for token in [*tokens, ")"]:
        if wants_number:
            if token == "(":
                waiting.append(token)
            elif token.isdigit():
                values.append(Fraction(int(token)))
                wants_number = False
            else:
                raise Unreadable(f"a number is missing before {token!r} (a sign needs one on each side)")
        elif token in SIGNS:
            while waiting and STRENGTH[waiting[-1]] >= STRENGTH[token]:
                _apply(waiting.pop(), values)
            waiting.append(token)
            wants_number = True
        elif token == ")":
            while waiting and waiting[-1] != "(":
                _apply(waiting.pop(), values)
            waiting.append("end") if not waiting else waiting.pop()
        else:
            raise Unreadable(f"a sign is missing before {token!r}")
    if waiting != ["end"]:
        raise Unreadable("its brackets do not match")
    return values[0]


def _apply(sign: str, values: list[Fraction | None]) -> None:
    if sign not in SIGNS:
        raise Unreadable("its brackets do not match")
    right, left = values.pop(), values.pop()
    divides_by_zero = sign == "/" and right == 0
    values.append(None if left is None or right is None or divides_by_zero else SIGNS[sign](left, right))


def _misuse(used: Sequence[int], given: Sequence[int], *, use_all: bool) -> str:
    """What is wrong with the numbers used, or ""."""
    extra, unused = Counter(used) - Counter(given), Counter(given) - Counter(used)
    if extra:
        return f"uses {next(iter(extra))} more often than it is given"
    return f"does not use {next(iter(unused))}" if use_all and unused else ""


def _numbers(nums: Any) -> list[int]:
    plain = isinstance(nums, (list, tuple)) and all(
        isinstance(n, int) and not isinstance(n, bool) and 0 <= n < MAX_NUMBER for n in nums
    )
    if not plain or not 0 < len(nums) <= MAX_NUMS:
        raise ValueError(
            f"countdown: nums = {shown(nums)}; expected a list of 1 to {MAX_NUMS} whole numbers of at least 0"
        )
    return list(nums)


def _goal(target: Any, answer: Any) -> Fraction:
    goal = answer if target is None else target
    if isinstance(goal, int) and not isinstance(goal, bool):
        return Fraction(goal)
    if isinstance(goal, str) and INTEGER.fullmatch(goal.strip()):
        return Fraction(int(goal))
    where = "answer (the row has no target)" if target is None else "target"
    raise ValueError(f"countdown: {where} = {shown(goal)}; expected a whole number")
