"""An answer -> one spelling that equal answers share, as far as it is cheap: majority votes count it."""

from verigrad.verifiers.math_exact import TooLarge
from verigrad.verifiers.math_nodes import (
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
from verigrad.verifiers.math_read import readings
from verigrad.verifiers.math_same import merged
from verigrad.verifiers.math_text import plain

MAX_SPELLED = 400  # characters: two longer answers vote apart


def canonical(stated: str) -> str:
    """`1/2` for `\\frac{2}{4}`, `0.5` and `50\\%`; sorted members for a set; sympy's form for an expression.

    Units, and the name in `x = 5`, are left out. Text that cannot be read stands for itself.
    """
    text = plain(stated)
    try:
        return spelled(readings(text)[0])[:MAX_SPELLED]
    except (Unreadable, TooLarge, RecursionError):
        return text[:MAX_SPELLED]


def spelled(node: Node) -> str:
    """One spelling of a reading."""
    if isinstance(node, Leaf):
        return _number(node)
    if isinstance(node, Text):
        return node.words
    if isinstance(node, Named):
        return spelled(node.value)
    if isinstance(node, Residue):
        return spelled(node.value)
    if isinstance(node, Seq):
        return f"{node.opening}{', '.join(map(spelled, node.items))}{node.closing}"
    if isinstance(node, Bag):
        return "{" + ", ".join(sorted(_member(item) for item in node.items)) + "}"
    if isinstance(node, Union):
        whole = merged(node)
        return " u ".join(sorted(map(spelled, whole.parts))) if isinstance(whole, Union) else spelled(whole)
    if isinstance(node, Matrix):
        return "[" + ", ".join("[" + ", ".join(map(spelled, row)) + "]" for row in node.rows) + "]"
    if isinstance(node, Ratio):
        return ":".join(map(spelled, node.parts)) + node.half
    assert isinstance(node, Relation)
    return f"{node.left} {node.sign} {node.right}".replace(" ", "")


def _member(item: Node) -> str:
    return f"{item.name}={spelled(item.value)}" if isinstance(item, Named) else spelled(item)


def _number(leaf: Leaf) -> str:
    if leaf.value is not None and not leaf.base:
        value = leaf.value / 100 if leaf.percent else leaf.value
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > 3 * MAX_SPELLED:
            return leaf.text  # writing out its digits takes long, and shows nothing
        return str(value)
    if leaf.base:
        return f"{leaf.text}_{leaf.base}"
    from verigrad.verifiers import math_symbolic  # sympy takes half a second: only who needs it waits

    return math_symbolic.spelled(leaf.text)
