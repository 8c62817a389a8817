"""Plain mathematics (see math_text) -> what was said: a number, text, a list, an interval, an equation."""

import re
from collections.abc import Sequence
from fractions import Fraction

from verigrad.verifiers.math_exact import rational
from verigrad.verifiers.math_nodes import (
    INFINITY,
    MINUS_INFINITY,
    REALS,
    Bag,
    Leaf,
    Matrix,
    Named,
    Node,
    Ratio,
    Relation,
    Residue,
    Seq,
    Text,
    Union,
    Unreadable,
)
from verigrad.verifiers.math_relations import NAME, RELATION, approximation, punctured, relation, short_name
from verigrad.verifiers.math_text import split_top
from verigrad.verifiers.math_units import split_unit
from verigrad.verifiers.math_words import (
    CHANGE,
    COUNTS,
    HEDGE,
    PROSE,
    is_words,
    scaled,
    without_remarks,
    words,
)

TRIGONOMETRIC = re.compile(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
BUILDER = re.compile(r"[A-Za-z](?:\s*\\in\s*\\mathbb\s*\{R\})?\s*[|:](.*)", re.DOTALL)  # { x | x > 2 }
EVERYTHING = {"all real numbers", "all reals", "the real numbers", "real numbers"}
OUTWARD = re.compile(
    r"(?P<before>^|\\cup\s*|\\in\s*|=\s*)(?P<opening>[\[\]])(?P<ends>[^\[\],]+,[^\[\],]+)(?P<closing>[\[\]])"
    r"(?=\s*$|\s*\\cup)"
)
MODULUS = re.compile(r"(?P<value>.+?)\s*\(?\s*\\?(?:pmod|bmod|mod)\s*\{?\s*(?P<modulus>\d{1,30})\s*\}?\s*\)?")
TIME = re.compile(r'(\d{1,2}:\d{2})\s*"?\s*([ap])\.?\s*m\.?\s*"?', re.IGNORECASE)
FACTOR = r"(?P<factor>-|-?\d+(?:\.\d+)?|-?\\frac\{-?\d+\}\{\d+\})?\s*\*?\s*"
MATRIX = re.compile(rf"{FACTOR}\\begin\{{[pbB]?matrix\}}(?P<rows>.*)\\end\{{[pbB]?matrix\}}", re.DOTALL)
MAX_PARTS = 200
MAX_DEPTH = 12


def readings(text: str) -> list[Node]:
    """What the text may mean, likeliest first: `1,234` is a number, or else a list of two.

    Raises Unreadable when it means nothing, and TooLarge when nobody can work it out.
    """
    if not text:
        raise Unreadable("it is empty")
    text = OUTWARD.sub(_inward, without_remarks(text))
    joined = re.sub(r"(?<![\d.,(\[{])\d{1,3}(?:,\d{3})+(?![\d,])", lambda m: m.group().replace(",", ""), text)
    spellings = [joined, text]
    if re.fullmatch(r"-?\d+(?: -?\d+){2,}", text):
        spellings.append(text.replace(" ", ","))
    if re.fullmatch(r'"[A-Za-z ]+(?:,|\band\b)[A-Za-z, ]+"', text):  # \text{red, blue}
        spellings.append(text.strip('"'))
    rounded = approximation(text, read)
    return rounded if rounded else [read(one) for one in dict.fromkeys(spellings)]


def _inward(match: re.Match[str]) -> str:
    opening = "(" if match["opening"] == "]" else "["
    closing = ")" if match["closing"] == "[" else "]"
    return f"{match['before']}{opening}{match['ends']}{closing}"


def read(text: str, depth: int = 0) -> Node:
    """One reading of a plain text."""
    text = _unwrapped(text.strip())
    if depth > MAX_DEPTH:
        raise Unreadable("it is nested too deeply")
    if re.sub(r'[".]', "", text).strip().casefold() in EVERYTHING or text in (r"\mathbb{R}", r"\R"):
        return REALS
    if r"\begin{" in text:
        return _matrix(text, depth)
    if r"\equiv" in text or "mod" in text:
        node = _residue(text, depth)
        if node is not None:
            return node
    for reader in (_list, _union, _relation, _bracketed, _plus_minus, _ratio):
        node = reader(text, depth)
        if node is not None:
            return node
    return _leaf(text)


def _relation(text: str, depth: int) -> Node | None:
    return relation(text, depth, read)


def _residue(text: str, depth: int) -> Node | None:
    """`x \\equiv 3 \\pmod 7`; a congruence between numbers must hold."""
    match = MODULUS.fullmatch(text)
    if match is None or not int(match["modulus"]):
        return None
    modulus = int(match["modulus"])
    sides = split_top(match["value"].strip(), r"\\equiv(?![A-Za-z])|=")
    if not all(sides):
        raise Unreadable("a side of its congruence is missing")
    value = read(sides[-1], depth + 1)
    name = short_name(sides[0]) if len(sides) > 1 and NAME.fullmatch(sides[0]) else ""
    for side in sides[bool(name) : -1]:
        other = read(side, depth + 1)
        if isinstance(other, Leaf) and isinstance(value, Leaf) and None not in (other.value, value.value):
            assert other.value is not None
            assert value.value is not None
            if (other.value - value.value) % modulus:
                raise Unreadable("its congruence is false")
    node = Residue(value, modulus)
    return Named(name, node) if name else node


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
        if separator.startswith(r"\s+or") and ";" not in text and (single := _one_value(items)):
            return single
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


def _one_value(items: Sequence[Node]) -> Node | None:
    """`1/2 or 50%`: the same number twice is one answer."""
    numbers = [item for item in items if isinstance(item, Leaf) and item.value is not None and not item.unit]
    values = {item.value / (100 if item.percent else 1) for item in numbers if item.value is not None}
    return items[0] if len(numbers) == len(items) and len(values) == 1 else None


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
        sets = tuple(read(part, depth + 1) for part in parts)
        if all(isinstance(one, Bag) for one in sets):
            return Bag(
                tuple(dict.fromkeys(item for one in sets if isinstance(one, Bag) for item in one.items))
            )
        return Union(sets)
    whole = split_top(text, r"\\setminus(?![A-Za-z])")
    if len(whole) == 2 and read(whole[0], depth + 1) == REALS:
        without = read(whole[1], depth + 1)
        return punctured(without.items if isinstance(without, Bag) else (without,))
    return None


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
    # A set whose backslashes were lost.
    if re.fullmatch(r"\{.*\}", text, re.DOTALL) and len(split_top(text[1:-1], ",")) > 1:
        return _bracketed(rf"\{{{text[1:-1]}\}}", depth)
    if text in (r"\emptyset", r"\{\}"):
        return Bag(())
    if point := re.fullmatch(r"([A-Z])\s*(\(.*,.*\))", text, re.DOTALL):  # P(3,-4)
        node = _bracketed(point[2], depth)
        return Named(point[1], node) if node and point[1] != "C" else None
    match = re.fullmatch(r"(\(|\[|\\langle)(.*)(\)|\]|\\rangle)", text, re.DOTALL)
    if match is None:
        return None
    parts = split_top(match[2], ",")
    if len(parts) < 2 or not all(parts) or len(parts) > MAX_PARTS:
        return None
    opening, closing = match[1].replace(r"\langle", "("), match[3].replace(r"\rangle", ")")
    return Seq(opening, tuple(read(part, depth + 1) for part in parts), closing)


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
    half = ""
    if time := TIME.fullmatch(text):
        text, half = time[1], time[2].lower()
    parts = split_top(text, ":")
    if not 2 <= len(parts) <= 6 or not all(re.fullmatch(r"[\d./ ]+|\\frac\{\d+\}\{\d+\}", p) for p in parts):
        return None
    return Ratio(tuple(_leaf(part) for part in parts), half)


def _matrix(text: str, depth: int) -> Node:
    named = re.fullmatch(rf"({NAME.pattern})\s*=\s*(\\begin.*)", text, re.DOTALL)
    if named:
        return Named(short_name(named[1]), _matrix(named[2], depth))
    match = MATRIX.fullmatch(text)
    if match is None:
        raise Unreadable("it holds a LaTeX environment other than one matrix")
    rows = [row for row in re.split(r"\\\\", match["rows"]) if row.strip()]
    if not rows or len(rows) > MAX_PARTS:
        raise Unreadable("its matrix has no rows")
    factor = {None: "", "-": "-1"}.get(match["factor"], match["factor"])
    cells = [[f"({factor})*({cell.strip()})" if factor else cell for cell in row.split("&")] for row in rows]
    return Matrix(tuple(tuple(read(cell, depth + 1) for cell in row) for row in cells))


def _leaf(text: str) -> Node:
    if not text:
        raise Unreadable("a part of it is empty")
    label = re.fullmatch(r'"[^"]*(?:[:,=.]|\bis|\bare)"\s*(.*\d.*)', text)
    doubted = HEDGE.search(text) or CHANGE.search(text)
    if label and not doubted and not re.search(r"\d", label[0][: label.start(1)]):  # \text{five, i.e. } 5
        text = label[1]
    text = scaled(text)
    if is_words(text) and (count := COUNTS.get(words(text))) is not None:
        return Leaf(str(count), Fraction(count))
    if is_words(text):
        return Text(words(text), "".join(sorted(text)) if re.fullmatch(r"[A-Za-z]{2,3}", text) else "")
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


def in_base(digits: str, base: int) -> Fraction | None:
    """The value of a numeral in a base, if its digits allow it."""
    try:
        return Fraction(int(digits, base)) if 2 <= base <= 36 and digits[0].isalnum() else None
    except ValueError:
        return None
