"""The nouns of an audit: a Row of the data goes into a Probe, and Cases for the verifier come out."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, get_args

from verigrad.verifiers import blame
from verigrad.verifiers.base import Attempt, Message, Problem
from verigrad.verifiers.options import Rule, flag, number, one_of, shown, whole

Expect = Literal["right", "not_right"]
Family = Literal["math", "choice", "text", "code"]
FAMILIES: tuple[Family, ...] = get_args(Family)
Needs = Literal["", "gold", "answer", "row"]
RULES: Mapping[str, Rule] = {
    "name": lambda value: "" if isinstance(value, str) and value.strip() else "a name",
    "expect": one_of(*get_args(Expect)),
    "allowed": number(0, 1),
    "needs": lambda value: "" if value == "" else one_of(*get_args(Needs)[1:])(value),
    "quick": flag,
    "max_rows": whole(1, 10**9),
    "undecided_is_fine": flag,
    "only_warns": flag,
}
"""What the arguments of `probe` may be."""


@dataclass(frozen=True, slots=True)
class Gold:
    """A response that must be right, and the answer that stands in it."""

    response: str
    answer: str


@dataclass(frozen=True, slots=True)
class Row:
    """One problem as a probe sees it."""

    problem: Problem
    prompt: str  # what was asked, as text
    gold: Gold | None  # None: the row has no oracle
    others: tuple[Gold, ...]  # of other rows, whose answers differ
    family: Family
    render: Callable[[str], str]  # an answer as a response, in the way that this verifier reads
    options: Mapping[str, Any] = field(default_factory=dict)  # the verifier's


@dataclass(frozen=True, slots=True)
class Case:
    """One thing said to the verifier."""

    kind: str  # which variety of its probe
    text: str
    truncated: bool = False
    problem: Problem | None = None  # another problem than the row's
    snapshot: bytes | None = None  # agent tasks: the files it left behind
    transcript: tuple[Message, ...] = ()  # agent tasks: every turn
    told: str = ""  # agent tasks: what was done, for people; the text says little of it

    @property
    def attempt(self) -> Attempt:
        """What the verifier is given."""
        return Attempt(self.text, self.truncated, self.transcript, self.snapshot)


@dataclass(frozen=True, slots=True)
class Probe:
    """One attack, or one thing that must hold: how its cases are made and what must come of them."""

    name: str
    says: str  # one line for people: what it does
    make: Callable[[Row], Iterable[Case | str]]
    expect: Expect = "not_right"
    allowed: float = 0.0  # share of its cases that may come out otherwise
    needs: Needs = ""  # gold: rows with an oracle; answer: also answers in it; row: a verifier that sees rows
    quick: bool = False  # part of the audit before training
    max_rows: int | None = None  # rows it looks at, where its cases are slow
    undecided_is_fine: bool = False  # the row itself is broken
    only_warns: bool = False

    def is_quick(self, family: Family) -> bool:
        """Whether it is part of the audit before training; programs are where exploits were found by RL."""
        return self.quick or (self.name == "exploits" and family == "code")

    def cases(self, row: Row) -> list[Case]:
        """Its cases on this row; a bare text is a case of no special kind.

        ValueError in one line for a plug-in that raises, or makes something else than cases.
        """
        try:
            made = list(self.make(row))
        except Exception as error:
            if self.make.__module__.startswith("verigrad."):
                raise  # ours to mend: with its traceback
            says = f"{type(error).__name__}: {blame.one_line(error)}"
            place = f" ({where})" if (where := blame.place(error)) else ""
            raise ValueError(
                f"the probe {self.name!r} failed on row {row.problem.id!r}: {says}{place}"
            ) from error
        cases = [Case(self.name, case) if isinstance(case, str) else case for case in made]
        for case in cases:
            if not isinstance(case, Case) or not isinstance(case.text, str) or not isinstance(case.kind, str):
                raise ValueError(
                    f"the probe {self.name!r} made {shown(case)} of row {row.problem.id!r}; expected texts, "
                    "or Case(kind, text) of verigrad.verifiers.audit_cases"
                )
        return cases


def probe(
    name: str,
    *,
    expect: Expect = "not_right",
    allowed: float = 0.0,
    needs: Needs = "",
    quick: bool = False,
    max_rows: int | None = None,
    undecided_is_fine: bool = False,
    only_warns: bool = False,
) -> Callable[[Callable[[Row], Iterable[Case | str]]], Probe]:
    """Make a Probe of a function from a Row to responses; its docstring's first line says what it does.

    ValueError in one line for an argument that will not do.
    """
    given = {"name": name, "expect": expect, "allowed": allowed, "needs": needs, "quick": quick,
             "max_rows": 1 if max_rows is None else max_rows, "undecided_is_fine": undecided_is_fine,
             "only_warns": only_warns}  # fmt: skip
    for key, value in given.items():
        if expected := RULES[key](value):
            raise ValueError(f"@probe({shown(name)}): {key} = {shown(value)}; expected {expected}")

    def mark(make: Callable[[Row], Iterable[Case | str]]) -> Probe:
        says = (make.__doc__ or name).strip().partition("\n")[0]
        return Probe(name, says, make, expect, allowed, needs, quick, max_rows, undecided_is_fine, only_warns)

    return mark


@functools.lru_cache(maxsize=4096)
def value_of(answer: str) -> Fraction | str:
    """The answer as a number where it is a plain one, else its text without case and blanks."""
    text = "".join(answer.split()).casefold().strip("$.()*")
    bare = text.replace(",", "").replace("{", "").replace("}", "")
    try:
        return Fraction(bare)
    except (ValueError, ZeroDivisionError):
        return text


def differ(answer: str, other: str) -> bool:
    """Whether two answers plainly do not say the same."""
    return value_of(answer) != value_of(other)
