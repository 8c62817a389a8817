"""What was said, as a tree: a number, text, a list, an interval, an equation."""

from dataclasses import dataclass
from fractions import Fraction

from verigrad.verifiers.math_units import Unit


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
    letters: str = ""  # of a bare short word, which may also be a product: `mgh`


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
    half: str = ""  # of the day, for 3:45 p.m.


@dataclass(frozen=True, slots=True)
class Residue:
    """`3 \\pmod 7`."""

    value: "Node"
    modulus: int


Node = Leaf | Text | Seq | Bag | Union | Named | Relation | Matrix | Ratio | Residue
INFINITY = Leaf(r"\infty", None)
MINUS_INFINITY = Leaf(r"-\infty", None)
REALS = Seq("(", (MINUS_INFINITY, INFINITY), ")")
