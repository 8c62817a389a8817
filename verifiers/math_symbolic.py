"""Two expressions -> whether they are equal, by sympy: parsed from LaTeX, sized first, compared at 50 digits.

Nothing here evaluates text as code: LaTeX goes through a grammar.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from verigrad.verifiers.math_exact import MAX_DIGITS, TooLarge
from verigrad.verifiers.math_nodes import Unreadable
from verigrad.verifiers.math_text import FUNCTIONS

CONVERSION = ConversionConfig(lowercase_symbols=False)
MAX_LENGTH = 1000  # characters given to the LaTeX parser
MAX_PARENTHESES = 16  # nested: the parser's time grows steeply with them
MAX_TERMS_LOG10 = 4  # of a sum or product with numbers for limits
MAX_NODES = 2000  # of an expression's tree
POINTS = (
    ("7", "13"),
    ("-11", "17"),
    ("23", "10"),
    ("3", "19"),
)  # fractions that satisfy no equation by chance
INTEGER_LETTERS = {"n", "k", "m", "j"}


def equal(left: str, right: str) -> bool:
    """Whether two plain expressions have the same value wherever both are defined.

    Raises Unreadable for an expression that does not parse, TooLarge for one nobody can work out.
    """
    with _sympy_trouble():
        one, other = expression(left), expression(right)
        return one == other or _same(one, other)


def spelled(text: str) -> str:
    """Sympy's own spelling of a plain expression, in which its simplest rewritings agree."""
    with _sympy_trouble():
        return str(expression(text).doit())


def rounds(exact: str, rounded: str, unit: Fraction) -> bool:
    """Whether a plain number is another one to the nearest unit, or cut off at it."""
    with _sympy_trouble():
        value, given = _number(expression(exact), {}), _number(expression(rounded), {})
        if value is None or given is None or not value.is_real:
            return False
        gap, step = abs(value - given), sympy.Rational(unit.numerator, unit.denominator)
        cut = abs(given) < abs(value) and gap < step * (1 - sympy.Rational(1, 10**9))
        return bool(gap <= step / 2) or bool(cut)


def same_relation(left: tuple[str, str, str], right: tuple[str, str, str]) -> bool:
    """Whether two equations or inequalities are the same up to a factor."""
    with _sympy_trouble():
        return _same_relation(left, right)


@contextlib.contextmanager
def _sympy_trouble() -> Iterator[None]:
    """Sympy raises all kinds of errors on odd expressions (poles, infinities): such a text is unreadable."""
    try:
        yield
    except (TooLarge, Unreadable, MemoryError, RecursionError):
        raise
    except Exception as error:
        raise Unreadable("it cannot be worked out") from error


def _same_relation(left: tuple[str, str, str], right: tuple[str, str, str]) -> bool:
    sign = left[1]
    one = expression(left[0]) - expression(left[2])
    other = expression(right[0]) - expression(right[2])
    if right[1] != sign:
        if right[1] != {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}.get(sign):
            return False
        other = -other
    ratios = []
    for point in _points(one, other):
        top, bottom = _number(one, point), _number(other, point)
        if top is None or bottom is None or bottom == 0:
            return False
        ratios.append(top / bottom)
    same = all(abs(ratio - ratios[0]) <= abs(ratios[0]) * 1e-30 for ratio in ratios)
    return same and ratios[0] != 0 and (sign in ("=", r"\ne") or bool(sympy.re(ratios[0]) > 0))


@lru_cache(maxsize=512)
def expression(text: str) -> Any:
    """The sympy expression a plain text stands for, its size checked before anything is worked out."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"it is longer than {MAX_LENGTH} characters")
    if _nesting(text) > MAX_PARENTHESES:
        raise Unreadable("it is nested too deeply")
    if re.search(r"\d\s*\^\s*\{[^{}]*\}\s*_", text):
        raise Unreadable("it holds a number with an index")
    if "'" in text or '"' in text or re.search(r"\^\{?\s*(?:T|\\top|\\prime)\b", text):
        raise Unreadable("it holds a sign that is no arithmetic")
    try:
        parsed = latex2sympy(latex(text), conversion_config=CONVERSION)
    except MemoryError:
        raise
    except Exception as error:  # the grammar raises bare Exception
        raise Unreadable("it is no expression that we can read") from error
    if not isinstance(parsed, sympy.Expr):
        raise Unreadable(f"it reads as {type(parsed).__name__}, not as a value")
    check_size(parsed)
    parsed = parsed.subs({sympy.Symbol("i"): sympy.I, sympy.Symbol("e"): sympy.E})
    return parsed.doit() if parsed.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Limit) else parsed


def latex(text: str) -> str:
    """A plain text as the grammar wants it: commands for functions, fractions for decimals."""
    names = "|".join(name for name in FUNCTIONS if name not in ("mod", "inf", "infinity", "abs"))
    text = re.sub(rf"(?<![\\A-Za-z])({names})(?![A-Za-z])", r"\\\1", text)
    text = re.sub(r"(?<![\\A-Za-z])abs\s*\(([^()]*)\)", r"|\1|", text)
    for _ in range(4):
        text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\^\s*\(([^()]*)\)", r"^{\1}", text)
    # The grammar would work a binomial out at once, whatever its size.
    part = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
    text = re.sub(rf"\\binom{part}{part}", r"\\frac{(\1)!}{(\2)!*((\1)-(\2))!}", text)
    return re.sub(
        r"(\d*)\.(\d+)", lambda m: f"\\frac{{{int((m[1] + m[2]) or '0')}}}{{1{'0' * len(m[2])}}}", text
    )


def _nesting(text: str) -> int:
    deepest = depth = 0
    for sign in text:
        depth += (sign in "([{") - (sign in ")]}")
        deepest = max(deepest, depth)
    return deepest


def check_size(expr: Any) -> None:
    """Raise TooLarge if any number in the tree would have more than MAX_DIGITS digits."""
    for num_nodes, node in enumerate(sympy.preorder_traversal(expr)):
        if num_nodes > MAX_NODES:
            raise TooLarge
        if isinstance(node, sympy.Sum | sympy.Product):
            for _, low, high in (limit for limit in node.limits if len(limit) == 3):
                if (
                    low.is_Integer
                    and high.is_number
                    and high.is_finite
                    and _log10(high - low) > MAX_TERMS_LOG10
                ):
                    raise TooLarge
    _log10(expr)


def _log10(expr: Any) -> float:
    """An upper bound of the digits of a number; symbols count as one digit."""
    if expr.is_Rational:
        size = max(abs(expr.p).bit_length(), expr.q.bit_length()) * 0.30103
    elif not getattr(expr, "args", ()):
        size = 1.0
    else:
        sizes = [_log10(arg) for arg in expr.args if isinstance(arg, sympy.Basic)]
        if isinstance(expr, sympy.Pow | sympy.exp):
            base, exponent = sizes if len(sizes) == 2 else (0.5, sizes[0])
            value = expr.args[-1]
            if value.is_Rational:
                size = base * abs(float(value)) if exponent < 300 else math.inf
            else:
                size = base * 10.0 ** min(exponent, 300) if value.is_number else base
        elif isinstance(expr, sympy.factorial):
            arg = 10.0 ** min(sizes[0], 300)
            size = arg * sizes[0] if expr.args[0].is_number else 1.0
            if not expr.args[0].is_number and expr.args[0].has(sympy.factorial):
                raise TooLarge  # ((x!)!)! at x = 7
        elif isinstance(expr, sympy.Mul):
            size = sum(sizes)
        elif isinstance(expr, sympy.Add):
            size = max(sizes) + math.log10(len(sizes))
        else:
            size = max(sizes, default=1.0)
    size = float(size)
    if size > MAX_DIGITS:
        raise TooLarge
    return size


def _same(one: Any, other: Any) -> bool:
    if {one, other} & {sympy.oo, -sympy.oo, sympy.zoo, sympy.nan}:
        return False
    difference = one - other
    if difference == 0:
        return True
    verdicts = [_vanishes(difference, point) for point in _points(one, other)]
    known = [verdict for verdict in verdicts if verdict is not None]
    if len(known) >= min(2, len(verdicts)):
        if all(known):
            return True
        letters = {str(symbol) for symbol in difference.free_symbols}
        if not letters or not letters <= INTEGER_LETTERS or not _integer_minded(difference):
            return False
        # (-1)^n and cos(n pi) agree only where such letters live: on the integers.
        # Each letter has values of its own: n! is not k!.
        symbols = sorted(difference.free_symbols, key=str)
        points = [{one: at + 3 + n * (2 * at + 1) for n, one in enumerate(symbols)} for at in range(8)]
        return all(_vanishes(difference, point) is True for point in points)
    return False


def _integer_minded(expr: Any) -> bool:
    powers = any(power.base.is_negative for power in expr.atoms(sympy.Pow))
    return powers or expr.has(sympy.sin, sympy.cos, sympy.factorial)


def _points(one: Any, other: Any) -> list[dict[Any, Any]]:
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if not symbols:
        return [{}]
    return [
        {symbol: sympy.Rational(int(top) + 5 * at, int(bottom) + at) for at, symbol in enumerate(symbols)}
        for top, bottom in POINTS
    ]


def _vanishes(difference: Any, point: dict[Any, Any]) -> bool | None:
    """Whether it is zero at a point: no digit of significance was found among a hundred."""
    value = difference.subs(point) if point else difference
    if value.has(sympy.nan, sympy.zoo, sympy.oo):
        return None
    parts = value.evalf(15, maxn=110).as_real_imag()
    zero = []
    for part in parts:
        if part == 0:
            zero.append(True)
        elif isinstance(part, sympy.Float):
            zero.append(part._prec == 1)
        else:
            return None
    return all(zero)


def _number(expr: Any, point: dict[Any, Any]) -> Any:
    value = expr.subs(point).evalf(50)
    return value if value.is_number and value.is_finite else None
