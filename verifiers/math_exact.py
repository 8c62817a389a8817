"""Plain mathematics -> exact rational numbers. No floating point, no sympy."""

import math
import re
from fractions import Fraction

MAX_DIGITS = 100_000  # of any number that is worked out
MAX_NESTING = 40
TOKEN = re.compile(
    r"\s*(?:(?P<repeat>\d*\.\d*(?:\\overline\s*\{\d+\}|\(\d+\)))"
    r"|(?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?)"
    r"|(?P<name>\\(?:frac|binom|sqrt))(?![A-Za-z])|(?P<sign>[-+*/^!(){}\[\]]))"
)


class TooLarge(ValueError):
    """A number has more digits than anyone will work out."""


class _NotRational(ValueError):
    """The text is something other than rational arithmetic."""


def rational(text: str) -> Fraction | None:
    """The exact value of plain arithmetic (see math_text), or None when it is something else.

    Raises TooLarge before working out a value of more than MAX_DIGITS digits.
    """
    mixed = re.fullmatch(r"(-?)\s*(\d+)\s+(\d+)\s*/\s*(\d+)", text)
    try:
        if mixed:
            sign, whole, top, bottom = mixed.groups()
            value = int(whole) + Fraction(int(top), int(bottom))
            return -value if sign else value
        reader = _Reader(text)
        value = reader.sum()
        return value if reader.done() else None
    except (_NotRational, ZeroDivisionError):
        return None


class _Reader:
    """Recursive descent over the tokens: sum, product, signed, power, atom."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = TOKEN.match(text, at)
            if match is None:
                raise _NotRational
            self.tokens.append((match.lastgroup or "", match.group(match.lastgroup or 0)))
            at = match.end()
        self.at = 0
        self.nesting = 0

    def done(self) -> bool:
        return self.at == len(self.tokens) > 0

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        at = self.at + ahead
        return self.tokens[at] if at < len(self.tokens) else ("", "")

    def take(self, sign: str) -> bool:
        if self.peek() == ("sign", sign):
            self.at += 1
            return True
        return False

    def sum(self) -> Fraction:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise _NotRational
        value = self.product()
        while self.peek() in (("sign", "+"), ("sign", "-")):
            plus = self.take("+") or not self.take("-")
            other = self.product()
            value = value + other if plus else value - other
        self.nesting -= 1
        return value

    def product(self) -> Fraction:
        value = self.signed()
        while True:
            if self.take("*"):
                value = bounded(value, self.signed())
            elif self.take("/"):
                value = bounded(value, 1 / self.signed())
            elif self.peek() == ("sign", "("):  # 2(3)
                value = bounded(value, self.power())
            else:
                return value

    def signed(self) -> Fraction:
        self.nesting += 1
        if self.nesting > MAX_NESTING:
            raise _NotRational
        try:
            if self.take("-"):
                return -self.signed()
            return self.signed() if self.take("+") else self.power()
        finally:
            self.nesting -= 1

    def power(self) -> Fraction:
        base = self.atom()
        while self.take("!"):
            base = factorial(base)
        if not self.take("^"):
            return base
        exponent = self.group() if self.peek() == ("sign", "{") else self.signed()
        return power(base, exponent)

    def atom(self) -> Fraction:
        kind, token = self.peek()
        if kind == "repeat":
            self.at += 1
            return repeating(token)
        if kind == "number":
            self.at += 1
            value = decimal(token)
            if self.peek() == ("name", r"\frac") and token.isdigit() and self._plain_fraction():
                self.at += 1
                value += self.group() / self.group()  # a mixed number
            return value
        if kind == "name":
            self.at += 1
            return self.command(token)
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if self.take(opening):
                value = self.sum()
                if self.take(closing):
                    return value
        raise _NotRational

    def _plain_fraction(self) -> bool:
        shape = [("sign", "{"), None, ("sign", "}"), ("sign", "{"), None, ("sign", "}")]
        tokens = [self.peek(ahead) for ahead in range(1, 7)]
        return all(t[1].isdigit() if s is None else t == s for t, s in zip(tokens, shape, strict=True))

    def group(self) -> Fraction:
        if not self.take("{"):
            raise _NotRational
        value = self.sum()
        if not self.take("}"):
            raise _NotRational
        return value

    def command(self, name: str) -> Fraction:
        if name == r"\sqrt":
            return root(self.group())
        top, bottom = self.group(), self.group()
        return top / bottom if name == r"\frac" else binomial(top, bottom)


def digits(value: Fraction) -> float:
    """How many decimal digits numerator and denominator have, about."""
    return max(value.numerator.bit_length(), value.denominator.bit_length()) * 0.30103


def bounded(left: Fraction, right: Fraction) -> Fraction:
    """The product, unless it is too large."""
    if digits(left) + digits(right) > MAX_DIGITS:
        raise TooLarge
    return left * right


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """The rational power, if there is one and it is not too large."""
    if base in (0, 1) and exponent > 0:
        return base
    if digits(exponent) > 12:
        raise TooLarge
    if digits(base) * abs(exponent) > MAX_DIGITS and abs(base) != 1:
        raise TooLarge
    if exponent.denominator == 1:
        return base**exponent.numerator
    if exponent.denominator == 2:
        return root(base) ** exponent.numerator
    raise _NotRational


def root(value: Fraction) -> Fraction:
    """The square root of a perfect square."""
    if value < 0:
        raise _NotRational
    top, bottom = math.isqrt(value.numerator), math.isqrt(value.denominator)
    if top * top != value.numerator or bottom * bottom != value.denominator:
        raise _NotRational
    return Fraction(top, bottom)


def factorial(value: Fraction) -> Fraction:
    """n! for a natural number of bearable size."""
    if value.denominator != 1 or value < 0:
        raise _NotRational
    if value > 25_000:  # 25206! is the last one of less than 100,000 digits
        raise TooLarge
    return Fraction(math.factorial(int(value)))


def binomial(top: Fraction, bottom: Fraction) -> Fraction:
    """Binomial coefficient of naturals, its size estimated first."""
    if top.denominator != 1 or bottom.denominator != 1 or top < 0 or bottom < 0:
        raise _NotRational
    smaller = min(bottom, top - bottom)
    if smaller > 0 and (digits(top) > 30 or float(smaller) * digits(top) > MAX_DIGITS):
        raise TooLarge
    return Fraction(math.comb(int(top), int(bottom)))


def decimal(token: str) -> Fraction:
    """`12`, `1.5`, `1e3` exactly."""
    mantissa, _, exponent = token.lower().partition("e")
    if len(mantissa) > 4000:
        raise TooLarge
    if exponent and abs(int(exponent[:12])) > MAX_DIGITS:
        raise TooLarge
    whole, _, fraction = mantissa.partition(".")
    value = Fraction(int((whole + fraction) or "0"), 10 ** len(fraction))
    return value * Fraction(10) ** int(exponent) if exponent else value


def repeating(token: str) -> Fraction:
    """`0.1\\overline{6}` and `0.1(6)` exactly."""
    whole, _, rest = token.partition(".")
    match = re.fullmatch(r"(\d*)(?:\\overline\s*\{(\d+)\}|\((\d+)\))", rest)
    if match is None or len(token) > 200:
        raise _NotRational
    steady, period = match.group(1), match.group(2) or match.group(3)
    base = decimal(f"{whole or '0'}.{steady}")
    return base + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(steady))
