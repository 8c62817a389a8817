"""Two plain values and a comparison of a test -> whether it holds; `==` is code_compare's, not Python's."""

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verigrad.verifiers.code_compare import same_value

ORDER: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip


class Failed(Exception):
    """A call did not return what can be looked at; says so in words for people."""


@dataclass(frozen=True, slots=True)
class Approx:
    """`pytest.approx(expected)`."""

    expected: Any
    relative: float
    absolute: float

    def same(self, found: Any) -> bool:
        """Whether a number, or each of a sequence or mapping of numbers, is near enough."""
        return self._same(found, self.expected)

    def _same(self, found: Any, expected: Any) -> bool:
        if isinstance(expected, (list, tuple)):
            return (
                isinstance(found, (list, tuple))
                and len(found) == len(expected)
                and all(map(self._same, found, expected))
            )
        if isinstance(expected, dict):
            return (
                isinstance(found, dict)
                and found.keys() == expected.keys()
                and all(self._same(found[key], expected[key]) for key in expected)
            )
        if isinstance(found, bool) or not isinstance(found, (int, float)):
            return same_value(found, expected)
        return bool(
            found == expected
            or abs(found - expected) <= max(self.relative * abs(expected), self.absolute) < math.inf
        )


def comparison(kind: type[ast.cmpop], *, swap: bool) -> Callable[[Any, Any], bool]:
    """One comparison of plain data; `swap` where the left side is the expected one."""

    def same(left: Any, right: Any) -> bool:
        found, expected = (right, left) if swap else (left, right)
        return expected.same(found) if isinstance(expected, Approx) else same_value(found, expected)

    if kind is ast.Eq:
        return same
    if kind is ast.NotEq:  # neither by our rules nor by Python's, which differ about 1 and True
        return lambda left, right: not same(left, right) and not _equal(left, right)
    if kind in (ast.Is, ast.IsNot):
        return _identity(negative=kind is ast.IsNot)
    if kind in (ast.In, ast.NotIn):
        return lambda left, right: _contains(left, right) == (kind is ast.In)
    act = ORDER[kind]

    def ordered(left: Any, right: Any) -> bool:
        if left != left or right != right:
            raise Failed("it returned nan")
        return bool(act(left, right))

    return ordered


def _identity(*, negative: bool) -> Callable[[Any, Any], bool]:
    def same(left: Any, right: Any) -> bool:
        if not any(side is one for side in (left, right) for one in (None, True, False)):
            raise Failed("`is` between two values that are no constants")
        return (left is right) != negative

    return same


def _equal(left: Any, right: Any) -> bool:
    return not isinstance(left, Approx) and not isinstance(right, Approx) and bool(left == right)


def _contains(item: Any, whole: Any) -> bool:
    if isinstance(whole, (str, bytes)):
        return item in whole
    if isinstance(whole, (list, tuple, set, frozenset, dict, range)):
        return any(same_value(item, one) for one in whole)
    raise Failed("`in` a value that holds nothing")


def is_instance(value: Any, kind: Any) -> bool:
    """isinstance of exact plain types: a bool is an int here, as in Python."""
    return isinstance(value, kind)
