"""A completion and the right answer -> whether the answer it states has the same value.

What counts as the same is written down in docs/verifiers/math_answer.md. Numbers are compared exactly; sympy
is asked only about what is no rational number, and only about sizes that can be worked out.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from verigrad.verifiers.base import Verdict, verifier
from verigrad.verifiers.math_exact import TooLarge
from verigrad.verifiers.math_extract import Extract, last_box, stated_answer
from verigrad.verifiers.math_read import (
    HEDGE,
    INFINITY,
    MINUS_INFINITY,
    Bag,
    Leaf,
    Matrix,
    Named,
    Node,
    Ratio,
    Relation,
    Seq,
    Text,
    Union,
    Unreadable,
    readings,
)
from verigrad.verifiers.math_text import plain

MAX_ANSWER = 4000  # characters
CHOICE = re.compile(r"\(?\s*([A-Ja-j])\s*(?:\)(?:\s*[.:])?|[.:])?\s*")
OTHER_CHOICES = re.compile(r"\b[A-J]\b|(?<![A-Za-z])(?:\(\s*[a-j]\s*\)|[a-j][).:])")
CHOICE_WITH_TEXT = re.compile(r"(?:\(\s*([A-Ja-j])\s*\)|([A-Ja-j])[).:])\s*\S.*", re.DOTALL)
UNEVALUATED = (r"\sum", r"\prod", r"\int", r"\binom", r"\lim", "!", "*", "+")


def warm_up() -> None:
    """Import sympy and build the LaTeX grammar's tables, which takes a second."""
    same_value(r"\frac{\sqrt{12}}{2}", r"\sqrt{3}")


@verifier(
    "math_answer",
    version="1",
    deadline_s=2.0,
    canary={"response": r"\boxed{\sqrt{12}}", "answer": r"2\sqrt{3}"},
    warm_up=warm_up,
)
def math_answer(
    text: str, answer: Any, extract: Extract = "boxed", require_simplified: bool = False
) -> Verdict:
    """Right if the last closed box holds a value equal to the answer (or to one of a list of answers).

    `extract` also accepts answer tags or the last number where there is no box; `require_simplified`
    rejects an answer that leaves the work to the reader, such as a sum for a number.
    """
    try:
        golds = [gold_text(one) for one in (answer if isinstance(answer, list) else [answer])]
        golds_read = [_readings(gold) for gold in golds]
    except (Unreadable, TooLarge, RecursionError) as error:
        return Verdict.undecided(f"the problem's own answer cannot be read: {error or 'it is too large'}")
    stated = stated_answer(text, extract)
    if stated is None:
        return Verdict.wrong("states no answer", outcome="unparseable")
    if len(stated) > MAX_ANSWER:
        return Verdict.wrong(f"an answer of {len(stated)} characters", outcome="unparseable")
    shown = " ".join(stated.split())[:80]
    try:
        found = plain(stated)
        if not any(matches(gold, nodes, found) for gold, nodes in zip(golds, golds_read, strict=True)):
            return Verdict.wrong(shown)
    except Unreadable as error:
        return Verdict.wrong(f"{shown}: {error}", outcome="unparseable")
    except TooLarge:
        return Verdict.wrong(f"{shown}: too large to work out")
    except RecursionError:
        return Verdict.wrong(f"{shown}: nested too deeply", outcome="unparseable")
    if require_simplified and not any(simplified(found, gold) for gold in golds):
        return Verdict.wrong(f"{shown}: not worked out")
    return Verdict.right(shown)


def gold_text(answer: Any) -> str:
    """The right answer in plain spelling; of a whole solution, its box or what follows `####`."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise Unreadable(f"it is a {type(answer).__name__}; expected text, a number or a list of these")
    text = str(answer)
    box = last_box(text)
    if box is None and "####" in text:
        box = text.rpartition("####")[2]
    return plain(text if box is None else box)


@lru_cache(maxsize=4096)
def _readings(gold: str) -> list[Node]:
    """The gold's readings, each proven to be comparable: an unreadable gold must not cost the attempt."""
    nodes = readings(gold)
    for node in nodes:
        if not same(node, node):
            raise Unreadable("it does not even equal itself")
    return nodes


def matches(gold: str, gold_nodes: Sequence[Node], found: str) -> bool:
    """Whether two plain texts say the same under some reading of each."""
    if re.fullmatch(CHOICE, gold.replace('"', "")) and gold.strip('"( ')[:1].isupper():
        unquoted = found.replace('"', "").strip()
        choice = re.fullmatch(CHOICE, unquoted) or re.fullmatch(CHOICE_WITH_TEXT, unquoted)
        # `(B) or (C)` hedges: what follows the letter may be the choice's text, not another choice.
        if choice and (HEDGE.search(unquoted) or len(OTHER_CHOICES.findall(unquoted)) > 1):
            return False
        if choice:
            letter = next(group for group in choice.groups() if group)
            return letter.upper() == gold.strip('"( ')[0]
    if found == gold:
        readings(found)  # a false equation is no answer even to itself
        return True
    return any(same(mine, theirs) for mine in gold_nodes for theirs in readings(found))


def same_value(gold: str, found: str) -> bool:
    """Whether two answers, in LaTeX or plain, have the same value."""
    return matches(plain(gold), _readings(plain(gold)), plain(found))


def simplified(found: str, gold: str) -> bool:
    """Whether the answer leaves no more work to the reader than the gold does."""
    bare = re.sub(r"(?:\d(?:\.\d+)?)\s*\*\s*10\s*\^", "", found)  # 6.02 * 10^{23} is a literal
    signs = [sign for sign in UNEVALUATED if bare.count(sign) > gold.count(sign)]
    if not signs and re.search(r"\d\s*-\s*\d|\d\)?\s*\(|\d\s*\^", bare):
        return bool(re.search(r"\d\s*-\s*\d|\d\)?\s*\(|\d\s*\^", gold))
    # x + 1 against 1 + x needs its plus; only signs between numbers are left-over work.
    between = re.search(r"[\d)}]\s*[*+]\s*[({]?\s*\d", bare)
    return not signs or (set(signs) <= {"*", "+"} and not between)


def same(gold: Node, found: Node) -> bool:
    """Whether two readings say the same; each kind of node has its rule below."""
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
    if type(gold) is not type(found):
        return False
    return RULES[type(gold)](gold, found)


def _leaves(gold: Leaf, found: Leaf) -> bool:
    if gold.unit and found.unit and gold.unit.dimensions != found.unit.dimensions:
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


def _ratios(gold: Ratio, found: Ratio) -> bool:
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
    Bag: lambda gold, found: _unordered(gold.items, found.items),
    Union: lambda gold, found: _unordered(gold.parts, found.parts),
    Named: lambda gold, found: gold.name == found.name and same(gold.value, found.value),
    Relation: _relations,
    Matrix: lambda gold, found: (
        len(gold.rows) == len(found.rows)
        and all(_all_same(one, other) for one, other in zip(gold.rows, found.rows, strict=True))
    ),
    Ratio: _ratios,
}
