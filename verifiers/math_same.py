"""Two readings -> whether they say the same; each kind of node has its rule."""

import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from verigrad.verifiers.math_nodes import (
    INFINITY,
    MINUS_INFINITY,
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
)
from verigrad.verifiers.math_read import read

# |AB|, [ABC], f(2), P(X = 1), \gcd(8, 12), \#S, \overline{AB}, AB^{2}
QUANTITY = re.compile(
    r"\|[^|]+\||\[[^\[\]]+\]|(?:[A-Za-z]|\\(?:gcd|lcm|max|min|det)|\\mathbb\{[A-Z]\})\s*\([^()]*\)"
    r"|\\#\s*\(?[A-Za-z]+\)?|\\overline\{[A-Z]+\}|[A-Z]{2}\^\{\d\}"
)


def same(gold: Node, found: Node) -> bool:
    """Whether two readings say the same; each kind of node has its rule below."""
    if isinstance(gold, Named | Bag) and isinstance(found, Named | Bag):
        gold, found = _expanded(gold, found)
    if isinstance(gold, Named) != isinstance(found, Named):
        if isinstance(gold, Relation) or isinstance(found, Relation):
            return _relations(gold, found)
        gold = gold.value if isinstance(gold, Named) else gold
        found = found.value if isinstance(found, Named) else found
        return same(gold, found)
    if isinstance(gold, Bag) and len(gold.items) == 1 and not isinstance(found, Bag):
        return same(gold.items[0], found)
    if isinstance(found, Bag) and len(found.items) == 1 and not isinstance(gold, Bag):
        return same(gold, found.items[0])
    if isinstance(gold, Residue) != isinstance(found, Residue):
        return _residue_alone(gold, found)
    if isinstance(gold, Bag) and isinstance(found, Seq):
        return _coordinates(gold, found)
    if isinstance(found, Bag) and isinstance(gold, Seq):
        return _coordinates(found, gold)
    if isinstance(gold, Relation) and isinstance(found, Leaf):
        return _asked_for(gold, found)
    if isinstance(found, Relation) and isinstance(gold, Leaf):
        return _asked_for(found, gold)
    if isinstance(gold, Union | Seq) and isinstance(found, Union | Seq) and type(gold) is not type(found):
        return type(one := merged(gold)) is type(other := merged(found)) and same(one, other)
    if isinstance(gold, Text | Leaf) and isinstance(found, Text | Leaf) and type(gold) is not type(found):
        return _product(gold, found)
    if type(gold) is not type(found):
        return False
    return RULES[type(gold)](gold, found)


def _leaves(gold: Leaf, found: Leaf) -> bool:
    if gold.unit and found.unit and gold.unit.dimensions != found.unit.dimensions:
        return False
    if (gold.percent and found.unit) or (found.percent and gold.unit):
        return False
    scales = (gold.unit.factor, found.unit.factor) if gold.unit and found.unit else (1, 1)
    if gold.value is not None and found.value is not None:
        if gold.base or found.base:
            both = gold.base and found.base
            return gold.value == found.value if both else gold.text == found.text
        one, other = gold.value * scales[0], found.value * scales[1]
        return _percent(gold, found) if gold.percent != found.percent else one == other
    infinite = {INFINITY.text, MINUS_INFINITY.text, "+" + INFINITY.text}
    texts = [leaf.text.replace(" ", "") for leaf in (gold, found)]
    if infinite & set(texts):
        return texts[0].lstrip("+") == texts[1].lstrip("+")
    from verigrad.verifiers import math_symbolic  # sympy takes half a second: only who needs it waits

    left, right = (f"({leaf.text})*({scale})" for leaf, scale in zip((gold, found), scales, strict=True))
    if scales == (1, 1):
        left, right = gold.text, found.text
    return math_symbolic.equal(left, right)


def _percent(gold: Leaf, found: Leaf) -> bool:
    """`50%` agrees with 0.5 by value; with 50 it does as any unit that only one side has."""
    assert gold.value is not None
    assert found.value is not None
    by_value = gold.value / 100 == found.value if gold.percent else gold.value == found.value / 100
    return by_value or (gold.value == found.value and abs(gold.value) > 1)


def _sequences(gold: Seq, found: Seq) -> bool:
    brackets = (gold.opening, gold.closing) == (found.opening, found.closing)
    return brackets and _all_same(gold.items, found.items)


def _all_same(gold: Sequence[Node], found: Sequence[Node]) -> bool:
    return len(gold) == len(found) and all(same(one, other) for one, other in zip(gold, found, strict=True))


def _unordered(gold: Sequence[Node], found: Sequence[Node]) -> bool:
    if len(gold) != len(found):
        return False
    left = list(found)
    for one in gold:
        for at, other in enumerate(left):
            if same(one, other):
                del left[at]
                break
        else:
            return False
    return True


def _expanded(gold: Named | Bag, found: Named | Bag) -> tuple[Node, Node]:
    """`(a,b)=(1,2)` as `a=1, b=2`, unless both sides are written so with the same names."""
    if isinstance(gold, Named) and isinstance(found, Named) and gold.name == found.name:
        return gold, found
    return _by_name(gold), _by_name(found)


def _by_name(node: Node) -> Node:
    if not isinstance(node, Named) or not isinstance(node.value, Seq):
        return node
    names = node.name[1:-1].split(",")
    if not re.fullmatch(r"\(\w+(?:,\w+)+\)", node.name) or len(names) != len(node.value.items):
        return node
    return Bag(tuple(Named(name, item) for name, item in zip(names, node.value.items, strict=True)))


def _bags(gold: Bag, found: Bag) -> bool:
    """Unordered, but for `x = 1, y = 2` against `1, 2`: there the names say which is which."""
    for named, other in ((gold, found), (found, gold)):
        names = {re.sub("_.*|'", "", item.name) for item in named.items if isinstance(item, Named)}
        if len(names) > 1 and not any(isinstance(item, Named) for item in other.items):
            values = [item.value for item in _in_order(named) if isinstance(item, Named)]
            return _all_same(values, other.items)
    return _unordered(gold.items, found.items)


def _in_order(bag: Bag) -> list[Node]:
    return sorted(bag.items, key=lambda item: item.name if isinstance(item, Named) else "")


def _coordinates(bag: Bag, point: Seq) -> bool:
    """`x = 3, y = -4` as the point (3, -4): coordinates in the order of their names."""
    named = [item for item in _in_order(bag) if isinstance(item, Named)]
    distinct = len({item.name for item in named}) == len(bag.items) > 1
    if not distinct or (point.opening, point.closing) != ("(", ")"):
        return False
    return _all_same([item.value for item in named], point.items)


def _residue_alone(gold: Node, found: Node) -> bool:
    """`3 \\pmod 7` against a plain number: the modulus may be left out, and 10 is not yet reduced."""
    residue, other = (gold, found) if isinstance(gold, Residue) else (found, gold)
    assert isinstance(residue, Residue)
    if isinstance(residue.value, Leaf) and isinstance(other, Leaf) and residue.value.value is not None:
        return other.value in (residue.value.value % residue.modulus, residue.value.value)
    return same(residue.value, other)


def _residues(gold: Residue, found: Residue) -> bool:
    if gold.modulus != found.modulus:
        return False
    one, other = gold.value, found.value
    if (
        isinstance(one, Leaf)
        and isinstance(other, Leaf)
        and one.value is not None
        and other.value is not None
    ):
        return (one.value - other.value) % gold.modulus == 0
    return same(one, other)


def _asked_for(relation: Relation, number: Leaf) -> bool:
    """`a + b + c = 7`, `f(2) = 7`, `|AB| = 7` state a number; `2x = 18` leaves the work to do."""
    if relation.sign != "=" or number.value is None or not number.value:
        return False
    letters = set(re.findall(r"(?<![\\A-Za-z])[A-Za-z]", relation.left))
    coefficients = re.search(
        r"\d", re.sub(r"\^\{\d+\}|_\{?\d+\}?", "", relation.left)
    )  # 3x - y = 2 is a line
    if not QUANTITY.fullmatch(relation.left) and (len(letters) < 2 or coefficients):
        return False
    return same(number, read(relation.right)) if not re.search("[A-Za-z]", relation.right) else False


def _product(gold: Text | Leaf, found: Text | Leaf) -> bool:
    """`mgh` against `m * g * h`."""
    text, leaf = (gold, found) if isinstance(gold, Text) else (found, gold)
    assert isinstance(text, Text)
    assert isinstance(leaf, Leaf)
    factors = re.fullmatch(r"[A-Za-z](?:\s*\*\s*[A-Za-z])+", leaf.text)
    return factors is not None and "".join(sorted(re.findall("[A-Za-z]", leaf.text))) == text.letters


def merged(node: Union | Seq) -> Node:
    """Intervals that meet as one: `[1,2] \\cup [2,4]` is `[1,4]`; anything else as it is."""
    pieces = [
        part
        for part in (node.parts if isinstance(node, Union) else (node,))
        if isinstance(part, Seq) and _edges(part)
    ]
    if not isinstance(node, Union) or len(pieces) != len(node.parts):
        return node
    pieces.sort(key=lambda piece: (_edges(piece)[0], piece.opening == "("))
    joined = pieces[:1]
    for piece in pieces[1:]:
        last = joined[-1]
        (_, end), (begin, other) = _edges(last), _edges(piece)
        if begin > end or (begin == end and last.closing == ")" and piece.opening == "("):
            joined.append(piece)
        elif other > end or (other == end and piece.closing == "]"):
            joined[-1] = Seq(last.opening, (last.items[0], piece.items[1]), piece.closing)
    return joined[0] if len(joined) == 1 else Union(tuple(joined))


def _edges(interval: Seq) -> tuple[Fraction | float, ...]:
    """Its two ends as numbers; nothing when they are no rational numbers."""
    infinite = {INFINITY.text: math.inf, "+" + INFINITY.text: math.inf, MINUS_INFINITY.text: -math.inf}
    ends = []
    for item in interval.items:
        if not isinstance(item, Leaf) or (item.value is None and item.text.replace(" ", "") not in infinite):
            return ()
        ends.append(infinite[item.text.replace(" ", "")] if item.value is None else item.value)
    return tuple(ends) if len(ends) == 2 else ()


def _ratios(gold: Ratio, found: Ratio) -> bool:
    if gold.half and found.half and gold.half != found.half:
        return False
    if _all_same(gold.parts, found.parts):
        return True
    pairs = list(zip(gold.parts, found.parts, strict=False))
    shares = set()
    for one, other in pairs:
        if not isinstance(one, Leaf) or not isinstance(other, Leaf) or not one.value or not other.value:
            return False
        if re.fullmatch(r"0\d", one.text) or re.fullmatch(r"0\d", other.text):
            return False  # 3:05 is a time of day
        shares.add(one.value / other.value)
    return len(gold.parts) == len(found.parts) and len(shares) == 1


def _relations(gold: Node, found: Node) -> bool:
    from verigrad.verifiers import math_symbolic

    sides = []
    for node in (gold, found):
        if isinstance(node, Named) and isinstance(node.value, Leaf) and node.value.value is None:
            sides.append((node.name, "=", node.value.text))
        elif isinstance(node, Relation):
            sides.append((node.left, node.sign, node.right))
        else:
            return False  # x = 9 is not answered by 2x = 18
    return math_symbolic.same_relation(sides[0], sides[1])


RULES: dict[type, Callable[[Any, Any], bool]] = {
    Leaf: _leaves,
    Text: lambda gold, found: gold.words == found.words,
    Seq: _sequences,
    Bag: _bags,
    Union: lambda gold, found: _unordered(gold.parts, found.parts),
    Named: lambda gold, found: gold.name == found.name and same(gold.value, found.value),
    Relation: _relations,
    Matrix: lambda gold, found: (
        len(gold.rows) == len(found.rows)
        and all(_all_same(one, other) for one, other in zip(gold.rows, found.rows, strict=True))
    ),
    Ratio: _ratios,
    Residue: _residues,
}
