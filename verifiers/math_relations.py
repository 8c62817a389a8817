"""Equations and inequalities, in plain mathematics -> a named value, an interval, or two sides."""

import contextlib
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise

from verigrad.verifiers.math_exact import rational
from verigrad.verifiers.math_nodes import (
    INFINITY,
    MINUS_INFINITY,
    Leaf,
    Named,
    Node,
    Relation,
    Seq,
    Union,
    Unreadable,
)
from verigrad.verifiers.math_text import FUNCTIONS, split_top

Reader = Callable[[str, int], Node]
RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>=]")
NAME = re.compile(
    # Possessive: a long word must not be tried in every way of cutting it up.
    r"(?:\\?[A-Za-z]++|\"[^\"]*\")(?:_(?:\w|\{[^{}]*\}))?'*(?:\s*+(?:\\?[A-Za-z]++|\"[^\"]*\"))*+"
    r"(?:\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?|\([A-Za-z](?:_\w|_\{\w+\})?(?:\s*,\s*[A-Za-z](?:_\w|_\{\w+\})?)+\)"
)
DISTANCE = re.compile(
    r"\|\s*(?P<name>[A-Za-z]|\\[A-Za-z]+)\s*(?:(?P<sign>[-+])\s*(?P<centre>\d+(?:\.\d+)?|\\frac\{\d+\}\{\d+\}))?\s*\|"
)
UNSOLVED = re.compile(r"\\?(?:log|ln|exp|lg)(?![A-Za-z])")  # \log(x) = 4
UNCOUNTED = re.compile(r"\\?(?:gcd|lcm|max|min|det|lim|mod)(?![A-Za-z])")  # sympy does not work them out
GREEK = {
    "alpha",
    "beta",
    "gamma",
    "delta",
    "theta",
    "lambda",
    "mu",
    "phi",
    "omega",
    "sigma",
    "rho",
    "tau",
    "angle",
}
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}


def relation(text: str, depth: int, read: Reader) -> Node | None:
    """An equation, inequality, chain or membership; None when the text holds no relation."""
    sides = split_top(text, RELATION.pattern)
    if len(sides) == 1:
        return None
    if not all(sides):
        raise Unreadable("a side of its relation is missing")
    signs = _signs(text, sides)
    if set(signs) <= {"="}:
        return _equation(sides, depth, read)
    if len(sides) == 3:
        return _chain(sides, signs, depth, read)
    if len(sides) > 3:
        raise Unreadable("it chains more relations than an interval has")
    left, sign, right = sides[0], signs[0], sides[1]
    if sign == r"\in" or (sign == "=" and _is_name(left)):
        return Named(short_name(left), read(right, depth + 1))
    if sign == r"\approx":
        return Named(short_name(left), read(right, depth + 1))
    inside = DISTANCE.fullmatch(left)
    if inside and sign in ("<", r"\le", ">", r"\ge"):
        centre = rational(inside["centre"]) if inside["centre"] else Fraction(0)
        assert centre is not None
        centre = centre if inside["sign"] == "-" else -centre
        return _absolute(short_name(inside["name"]), sign, read(right, depth + 1), centre)
    if not NAME.fullmatch(left) and NAME.fullmatch(right) and not right.startswith(r"\infty"):
        left, sign, right = right, FLIPPED.get(sign, sign), left
    if not NAME.fullmatch(left):
        return Relation(left, sign, right)
    bound = read(right, depth + 1)
    if sign == r"\ne":
        return Named(short_name(left), punctured((bound,)))
    below = sign in ("<", r"\le")
    edges = (MINUS_INFINITY, bound) if below else (bound, INFINITY)
    closed = sign in (r"\le", r"\ge")
    return Named(
        short_name(left), Seq("[" if closed and not below else "(", edges, "]" if closed and below else ")")
    )


def _signs(text: str, sides: Sequence[str]) -> list[str]:
    """The relations between the sides; those inside brackets, as in `P(X=1) = 3/8`, are not among them."""
    signs, at = [], 0
    for side in sides[:-1]:
        match = RELATION.search(text, text.index(side, at) + len(side))
        assert match is not None
        signs.append(match.group())
        at = match.end()
    return signs


def _absolute(name: str, sign: str, bound: Node, centre: Fraction) -> Node:
    """`|x - 4| < 2` as what lies around 4."""
    if not isinstance(bound, Leaf) or bound.value is None or bound.value <= 0:
        raise Unreadable("it bounds an absolute value by something that is no positive number")
    low, high = (Leaf(str(edge), edge) for edge in (centre - bound.value, centre + bound.value))
    opening, closing = ("[", "]") if sign in (r"\le", r"\ge") else ("(", ")")
    if sign in ("<", r"\le"):
        return Named(name, Seq(opening, (low, high), closing))
    outside = (Seq("(", (MINUS_INFINITY, low), closing), Seq(opening, (high, INFINITY), ")"))
    return Named(name, Union(outside))


def _chain(sides: Sequence[str], signs: Sequence[str], depth: int, read: Reader) -> Node:
    """`1 < x \\le 5` as an interval."""
    low, name, high = sides
    if signs[0] in (">", r"\ge"):
        low, high, signs = high, low, [FLIPPED.get(sign, sign) for sign in reversed(signs)]
    if not NAME.fullmatch(name) or not set(signs) <= {"<", r"\le"}:
        raise Unreadable("its relations make no interval")
    edges = (read(low, depth + 1), read(high, depth + 1))
    opening, closing = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return Named(short_name(name), Seq(opening, edges, closing))


def _equation(sides: Sequence[str], depth: int, read: Reader) -> Node:
    names = [side for side in sides if _is_name(side)]
    values = [side for side in sides if side not in names]
    read_values = [read(side, depth + 1) for side in values]
    if not _holds([node for node in read_values if isinstance(node, Leaf)]):
        raise Unreadable("its equation is false")
    if _is_name(sides[0]):
        value = read_values[-1] if read_values else read(sides[-1], depth + 1)
        return Named(short_name(sides[0]), value)
    if names and len(sides) == 2:
        return Named(short_name(names[0]), read_values[0])
    if all(isinstance(node, Leaf) and is_constant(node.text) for node in read_values):
        return read_values[-1]
    if len(sides) != 2:
        raise Unreadable("it chains equations without a name")
    return Relation(sides[0], "=", sides[1])


def _holds(leaves: Sequence[Leaf]) -> bool:
    """Whether the numbers of a chain are one number; what is no number is not looked at."""
    for one, other in pairwise([leaf for leaf in leaves if is_constant(leaf.text)]):
        if one.value is None or other.value is None:
            if one.unit or other.unit:
                continue
            from verigrad.verifiers import math_symbolic  # sympy takes half a second: only who needs it waits

            with contextlib.suppress(Unreadable):
                if not math_symbolic.equal(one.text, other.text):
                    return False
            continue
        worths = [
            leaf.value / (100 if leaf.percent else 1) for leaf in (one, other) if leaf.value is not None
        ]
        scaled = [
            worth * (leaf.unit.factor if leaf.unit else 1)
            for worth, leaf in zip(worths, (one, other), strict=True)
        ]
        if one.value != other.value and worths[0] != worths[1] and scaled[0] != scaled[1]:
            return False
    return True


def is_constant(text: str) -> bool:
    """Whether a value's text holds no letter that could stand for anything: `2\\pi`, `\\sqrt{2}`, `3/4`."""
    if UNCOUNTED.search(text):
        return False
    bare = re.sub(r"\\([A-Za-z]+)", lambda m: " x " if m[1] in GREEK else " ", text)
    bare = re.sub(rf"(?<![A-Za-z])(?:{'|'.join(FUNCTIONS)})(?![A-Za-z])", " ", bare)
    return not re.search(r"[A-Za-df-hj-z\"]|[A-Za-z]{2}", bare) and bool(text)


def approximation(text: str, read: Reader) -> list[Node] | None:
    """`22/7 \\approx 3.14` as its exact side, or else its rounded one; None when nothing is rounded there.

    Raises Unreadable when the right side is no rounding of the left one.
    """
    sides = split_top(text, r"\\approx(?![A-Za-z])")
    if len(sides) != 2 or not all(sides):
        return None
    left, right = read(sides[0], 1), read(sides[1], 1)
    exact = left.value if isinstance(left, Named) else left
    if not isinstance(exact, Leaf) or not is_constant(exact.text):
        name = short_name(sides[0]) if NAME.fullmatch(sides[0]) else ""
        return [Named(name, right)] if name else [right]
    rounded = (
        re.search(r"(?:\.(\d+))?$", right.text)
        if isinstance(right, Leaf) and right.value is not None
        else None
    )
    if rounded is None:
        raise Unreadable("it rounds to something that is no number")
    from verigrad.verifiers import math_symbolic

    assert isinstance(right, Leaf)
    if not math_symbolic.rounds(exact.text, right.text, Fraction(1, 10 ** len(rounded[1] or ""))):
        raise Unreadable("its approximation is false")
    return [left, Named(left.name, right) if isinstance(left, Named) else right]


def _is_name(side: str) -> bool:
    """Whether it stands for a value: `x`, `AB`, `f(x)`; neither a constant nor something to be solved."""
    constant = side in ("e", "i", r"\pi", r"\infty", "pi")
    return NAME.fullmatch(side) is not None and not constant and not UNSOLVED.match(side)


def short_name(text: str) -> str:
    """A name as names are compared."""
    return re.sub(r'[\s"{}\\]', "", text)


def punctured(points: Sequence[Node]) -> Node:
    """The real line without some points."""
    known = [(point.value, point) for point in points if isinstance(point, Leaf) and point.value is not None]
    if len(known) == len(points):
        points = [point for _, point in sorted(known, key=lambda pair: pair[0])]
    elif len(points) > 1:
        raise Unreadable("it leaves out several points that are no numbers")
    edges = [MINUS_INFINITY, *points, INFINITY]
    return Union(tuple(Seq("(", pair, ")") for pair in pairwise(edges)))
