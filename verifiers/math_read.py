"""Plain mathematics (see math_text) -> what was said: a number, text, a list, an interval, an equation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from verigrad.verifiers.math_exact import rational
from verigrad.verifiers.math_text import FUNCTIONS, split_top
from verigrad.verifiers.math_units import CHANGE_WORDS, HEDGE_WORDS, Unit, split_unit

RELATION = re.compile(r"\\(?:le|ge|ne|in|approx)(?![A-Za-z])|[<>=]")
NAME = re.compile(
    # Possessive: a long word must not be tried in every way of cutting it up.
    r"(?:\\?[A-Za-z]++|\"[^\"]*\")(?:_(?:\w|\{[^{}]*\}))?'*(?:\s*+(?:\\?[A-Za-z]++|\"[^\"]*\"))*+"
    r"(?:\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?|\([A-Za-z](?:\s*,\s*[A-Za-z])+\)"
)
PROSE = re.compile(rf'"|(?<![\\A-Za-z])(?!(?:{"|".join(FUNCTIONS)})\b)[A-Za-z]{{4,}}')
TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
BUILDER = re.compile(r"[A-Za-z](?:\s*\\in\s*\\mathbb\{R\})?\s*[|:](.*)", re.DOTALL)  # { x | x > 2 }
HEDGE = re.compile(rf"\b(?:{HEDGE_WORDS})\b", re.IGNORECASE)
CHANGE = re.compile(rf"\b(?:{CHANGE_WORDS})\b", re.IGNORECASE)
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
EVERYTHING = {"all real numbers", "all reals", "the real numbers", "real numbers"}
SIGNED_WORD = re.compile(r"\d+\.\d+|[^\W_]+|[+<>^]|-(?=[\s\"{(]*(?:\d|\\|[a-z]\b))")
MAX_PARTS = 200
MAX_DEPTH = 12


class Unreadable(ValueError):
    """The text states nothing that could be compared."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value: exact when it is rational arithmetic, else an expression for the symbolic layer."""

    text: str
    value: Fraction | None
    unit: Unit | None = None
    percent: bool = False
    base: int = 0  # 1010_2


@dataclass(frozen=True, slots=True)
class Text:
    """Words, in the spelling they are compared in."""

    words: str


@dataclass(frozen=True, slots=True)
class Seq:
    """Something ordered between brackets: a tuple, a point, an interval."""

    opening: str
    items: "tuple[Node, ...]"
    closing: str


@dataclass(frozen=True, slots=True)
class Bag:
    """Something unordered: a set, or a list of solutions."""

    items: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Union:
    """Several intervals or sets as one set."""

    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Named:
    """`x = 9`: a name and what it stands for."""

    name: str
    value: "Node"


@dataclass(frozen=True, slots=True)
class Relation:
    """Two sides that only the symbolic layer can bring together."""

    left: str
    sign: str
    right: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of entries."""

    rows: "tuple[tuple[Node, ...], ...]"


@dataclass(frozen=True, slots=True)
class Ratio:
    """`1:2`."""

    parts: "tuple[Node, ...]"


Node = Leaf | Text | Seq | Bag | Union | Named | Relation | Matrix | Ratio
INFINITY = Leaf(r"\infty", None)
MINUS_INFINITY = Leaf(r"-\infty", None)
REALS = Seq("(", (MINUS_INFINITY, INFINITY), ")")


def readings(text: str) -> list[Node]:
    """What the text may mean, likeliest first: `1,234` is a number, or else a list of two.

    Raises Unreadable when it means nothing, and TooLarge when nobody can work it out.
    """
    if not text:
        raise Unreadable("it is empty")
    joined = re.sub(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m.group().replace(",", ""), text)
    return [read(one) for one in dict.fromkeys((joined, text))]


def read(text: str, depth: int = 0) -> Node:
    """One reading of a plain text."""
    text = _unwrapped(text.strip())
    if depth > MAX_DEPTH:
        raise Unreadable("it is nested too deeply")
    if re.sub(r'[".]', "", text).strip().casefold() in EVERYTHING or text in (r"\mathbb{R}", r"\R"):
        return REALS
    if r"\begin{" in text:
        return _matrix(text, depth)
    for reader in (_list, _union, _relation, _bracketed, _plus_minus, _ratio):
        node = reader(text, depth)
        if node is not None:
            return node
    return _leaf(text)


def _unwrapped(text: str) -> str:
    """Without parentheses or braces that only hold the whole: `((5))` is `5`, `(1,2)` stays."""
    while len(text) > 2 and text[0] + text[-1] in ("()", "{}"):
        depth = 0
        for at, sign in enumerate(text):
            depth += (sign in "({") - (sign in ")}")
            if depth == 0 and at < len(text) - 1:
                return text
        if len(split_top(text[1:-1], ",")) > 1:
            return text
        text = text[1:-1].strip()
    return text


def _list(text: str, depth: int) -> Node | None:
    for separator in (r"\s+or\s+|;", r",|\s+and\s+"):
        parts = split_top(text, separator)
        if len(parts) == 1:
            continue
        parts = [part for part in (re.sub(r"^(?:and|or)\s+", "", part) for part in parts) if part]
        if len(parts) > MAX_PARTS or not parts:
            raise Unreadable(f"it lists {len(parts)} things")
        # One name for the whole list: `x = 1, 2`.
        first = read(parts[0], depth + 1)
        items = [first, *(read(part, depth + 1) for part in parts[1:])]
        if " and " in text and (both := _both(items)):
            return both
        if all(isinstance(item, Named) and isinstance(item.value, Seq | Union) for item in items):
            return _named_union(items)
        if isinstance(first, Named) and not any(isinstance(item, Named | Relation) for item in items[1:]):
            return Named(first.name, Bag((first.value, *items[1:])))
        names = {item.name for item in items if isinstance(item, Named)}
        if len(names) == 1 and all(isinstance(item, Named) for item in items):
            return Named(names.pop(), Bag(tuple(item.value for item in items if isinstance(item, Named))))
        return Bag(tuple(items))
    return None


def _named_union(items: Sequence[Node]) -> Node:
    named = [item for item in items if isinstance(item, Named)]
    if len({item.name for item in named}) != 1:
        return Bag(tuple(items))
    parts = tuple(
        part
        for item in named
        for part in (item.value.parts if isinstance(item.value, Union) else (item.value,))
    )
    return Named(named[0].name, Union(parts))


def _both(items: Sequence[Node]) -> Node | None:
    """`x > 1 and x < 5` as one interval."""
    if len(items) != 2 or not all(isinstance(i, Named) and isinstance(i.value, Seq) for i in items):
        return None
    one, other = items
    assert isinstance(one, Named)
    assert isinstance(other, Named)
    assert isinstance(one.value, Seq)
    assert isinstance(other.value, Seq)
    if one.value.items[0] == MINUS_INFINITY:
        one, other = other, one
    below, above = one.value, other.value
    assert isinstance(below, Seq)
    assert isinstance(above, Seq)
    if one.name != other.name or below.items[1] != INFINITY or above.items[0] != MINUS_INFINITY:
        return None
    return Named(one.name, Seq(below.opening, (below.items[0], above.items[1]), above.closing))


def _union(text: str, depth: int) -> Node | None:
    if RELATION.search(text):
        return None
    parts = split_top(text, r"\\cup(?![A-Za-z])")
    if len(parts) > 1:
        return Union(tuple(read(part, depth + 1) for part in parts))
    whole = split_top(text, r"\\setminus(?![A-Za-z])")
    if len(whole) == 2 and read(whole[0], depth + 1) == REALS:
        without = read(whole[1], depth + 1)
        return _without(without.items if isinstance(without, Bag) else (without,))
    return None


def _without(points: Sequence[Node]) -> Node:
    """The real line without some points."""
    known = [(point.value, point) for point in points if isinstance(point, Leaf) and point.value is not None]
    if len(known) == len(points):
        points = [point for _, point in sorted(known, key=lambda pair: pair[0])]
    elif len(points) > 1:
        raise Unreadable("it leaves out several points that are no numbers")
    edges = [MINUS_INFINITY, *points, INFINITY]
    return Union(tuple(Seq("(", pair, ")") for pair in pairwise(edges)))


def _relation(text: str, depth: int) -> Node | None:
    sides = split_top(text, RELATION.pattern)
    if len(sides) == 1:
        return None
    signs = [match.group() for match in RELATION.finditer(text)]
    if len(signs) != len(sides) - 1 or not all(sides):
        raise Unreadable("a side of its relation is missing")
    if set(signs) <= {"="}:
        return _equation(sides, depth)
    if len(sides) == 3:
        return _chain(sides, signs, depth)
    if len(sides) > 3:
        raise Unreadable("it chains more relations than an interval has")
    left, sign, right = sides[0], signs[0], sides[1]
    if sign == r"\in" or (sign == "=" and NAME.fullmatch(left)):
        return Named(_name(left), read(right, depth + 1))
    if sign == r"\approx":
        return Named(_name(left), read(right, depth + 1))
    inside = re.fullmatch(r"\|([^|]+)\|", left)
    if inside and NAME.fullmatch(inside[1]) and sign in ("<", r"\le", ">", r"\ge"):
        return _absolute(_name(inside[1]), sign, read(right, depth + 1))
    if not NAME.fullmatch(left) and NAME.fullmatch(right) and not right.startswith(r"\infty"):
        left, sign, right = right, FLIPPED.get(sign, sign), left
    if not NAME.fullmatch(left):
        return Relation(left, sign, right)
    bound = read(right, depth + 1)
    if sign == r"\ne":
        return Named(_name(left), _without((bound,)))
    below = sign in ("<", r"\le")
    edges = (MINUS_INFINITY, bound) if below else (bound, INFINITY)
    closed = sign in (r"\le", r"\ge")
    return Named(
        _name(left), Seq("[" if closed and not below else "(", edges, "]" if closed and below else ")")
    )


def _absolute(name: str, sign: str, bound: Node) -> Node:
    if not isinstance(bound, Leaf) or bound.value is None or bound.value <= 0:
        raise Unreadable("it bounds an absolute value by something that is no positive number")
    low = Leaf(f"-({bound.text})", -bound.value)
    opening, closing = ("[", "]") if sign in (r"\le", r"\ge") else ("(", ")")
    if sign in ("<", r"\le"):
        return Named(name, Seq(opening, (low, bound), closing))
    outside = (Seq("(", (MINUS_INFINITY, low), closing), Seq(opening, (bound, INFINITY), ")"))
    return Named(name, Union(outside))


def _chain(sides: Sequence[str], signs: Sequence[str], depth: int) -> Node:
    """`1 < x \\le 5` as an interval."""
    low, name, high = sides
    if signs[0] in (">", r"\ge"):
        low, high, signs = high, low, [FLIPPED.get(sign, sign) for sign in reversed(signs)]
    if not NAME.fullmatch(name) or not set(signs) <= {"<", r"\le"}:
        raise Unreadable("its relations make no interval")
    edges = (read(low, depth + 1), read(high, depth + 1))
    opening, closing = "[" if signs[0] == r"\le" else "(", "]" if signs[1] == r"\le" else ")"
    return Named(_name(name), Seq(opening, edges, closing))


def _equation(sides: Sequence[str], depth: int) -> Node:
    names = [side for side in sides if NAME.fullmatch(side) and not _constant(side)]
    values = [side for side in sides if side not in names]
    read_values = [read(side, depth + 1) for side in values]
    exact = {node.value for node in read_values if isinstance(node, Leaf) and node.value is not None}
    if len(exact) > 1:
        raise Unreadable("its equation is false")
    if names and NAME.fullmatch(sides[0]) and not _constant(sides[0]):
        value = read_values[-1] if read_values else _leaf(sides[-1])
        return Named(_name(sides[0]), value)
    if names and len(sides) == 2:
        return Named(_name(names[0]), read_values[0])
    if len(exact) == 1 and all(isinstance(node, Leaf) and node.value is not None for node in read_values):
        return read_values[-1]
    if len(sides) != 2:
        raise Unreadable("it chains equations without a name")
    return Relation(sides[0], "=", sides[1])


def _constant(side: str) -> bool:
    return side in ("e", "i", r"\pi", r"\infty", "pi")


def _name(text: str) -> str:
    return re.sub(r'[\s"{}\\]', "", text)


def _bracketed(text: str, depth: int) -> Node | None:
    inside = re.fullmatch(r"\\\{(.*)\\\}", text, re.DOTALL)
    if inside:
        if condition := BUILDER.fullmatch(inside[1].strip()):
            return read(condition[1], depth + 1)
        if len(split_top(text, r"(?<=\\\})\s*(?=\S)")) > 1:
            return None
        if not inside[1].strip():
            return Bag(())
        node = _list(inside[1].strip(), depth + 1)
        return node if isinstance(node, Bag) else Bag((read(inside[1], depth + 1),))
    if text in (r"\emptyset", r"\{\}"):
        return Bag(())
    match = re.fullmatch(r"(\(|\[|\\langle)(.*)(\)|\]|\\rangle)", text, re.DOTALL)
    if match is None:
        return None
    parts = split_top(match[2], ",")
    if len(parts) < 2 or not all(parts) or len(parts) > MAX_PARTS:
        return None
    return Seq(match[1], tuple(read(part, depth + 1) for part in parts), match[3])


def _plus_minus(text: str, depth: int) -> Node | None:
    if not re.search(r"\\(?:pm|mp)(?![A-Za-z])", text):
        return None
    signs = (("+", "-"), ("-", "+"))
    both = []
    for plus, minus in signs:
        one = re.sub(r"\\pm(?![A-Za-z])", plus, text)
        both.append(read(re.sub(r"\\mp(?![A-Za-z])", minus, one).strip(), depth + 1))
    return Bag(tuple(both))


def _ratio(text: str, depth: int) -> Node | None:
    parts = split_top(text, ":")
    if not 2 <= len(parts) <= 6 or not all(re.fullmatch(r"[\d./ ]+|\\frac\{\d+\}\{\d+\}", p) for p in parts):
        return None
    return Ratio(tuple(_leaf(part) for part in parts))


def _matrix(text: str, depth: int) -> Node:
    named = re.fullmatch(rf"({NAME.pattern})\s*=\s*(\\begin.*)", text, re.DOTALL)
    if named:
        return Named(_name(named[1]), _matrix(named[2], depth))
    match = re.fullmatch(r"\\begin\{[pbvB]?matrix\}(.*)\\end\{[pbvB]?matrix\}", text, re.DOTALL)
    if match is None:
        raise Unreadable("it holds a LaTeX environment other than one matrix")
    rows = [row for row in re.split(r"\\\\", match[1]) if row.strip()]
    if not rows or len(rows) > MAX_PARTS:
        raise Unreadable("its matrix has no rows")
    return Matrix(tuple(tuple(read(cell, depth + 1) for cell in row.split("&")) for row in rows))


def _leaf(text: str) -> Node:
    if not text:
        raise Unreadable("a part of it is empty")
    label = re.fullmatch(r'"[^"]*(?:[:,=.]|\bis|\bare)"\s*(.*\d.*)', text)
    doubted = HEDGE.search(text) or CHANGE.search(text)
    if label and not doubted and not re.search(r"\d", label[0][: label.start(1)]):  # \text{five, i.e. } 5
        text = label[1]
    if is_words(text):
        return Text(words(text))
    if base := re.fullmatch(r"([0-9A-Za-z]+)_(?:\{(\d{1,2})\}|(\d))", text):
        number = in_base(base[1], int(base[2] or base[3]))
        if number is not None:
            return Leaf(base[1], number, base=int(base[2] or base[3]))
    if TRIGONOMETRIC.search(text):  # \sin 75^\circ is a number, not a quantity in degrees
        text = re.sub(r"(\d+(?:\.\d+)?)\s*°", r"(\1*\\pi/180)", text)
    value, unit = split_unit(text)
    percent = value.endswith("%")
    value = _unwrapped(value.rstrip("% ").strip())
    exact = rational(value)
    if exact is None and PROSE.search(value):
        return Text(words(text, signs=True))
    return Leaf(value, exact, unit, percent)


def is_words(text: str) -> bool:
    """Whether the text is words and no product of letters: `east`, `"no solution"`, but not `x` or `xy`."""
    bare = text.replace('"', "").strip()
    if not re.fullmatch(r"[A-Za-z][A-Za-z\s'.,!?-]*", bare) or bare in FUNCTIONS:
        return False
    # "p - q" is a difference, "a well-known fact" is not: words have two letters somewhere.
    return re.search("[A-Za-z]{2}", bare) is not None and not re.fullmatch(
        r"[xyz]{2,3}|[abc]{2}|[a-z]-[a-z]", bare
    )


def words(text: str, *, signs: bool = False) -> str:
    """Words as they are compared: their letters in order, whatever the case and the typeface.

    With `signs`, those of a formula among the words count too: `-1 if n is odd` is not `1 if n is odd`.
    """
    if signs:
        typeface = r"\\(?!(?:le|ge|ne|pm|sqrt)\b)[A-Za-z]+"
        return " ".join(SIGNED_WORD.findall(re.sub(typeface, " ", text.casefold())))
    return " ".join(re.findall(r"[^\W_]+", re.sub(r"\\[A-Za-z]+", " ", text).casefold()))


def in_base(digits: str, base: int) -> Fraction | None:
    """The value of a numeral in a base, if its digits allow it."""
    try:
        return Fraction(int(digits, base)) if 2 <= base <= 36 and digits[0].isalnum() else None
    except ValueError:
        return None
