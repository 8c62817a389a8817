"""What an attempt left, as bytes, and what a check expects of it -> "" when it fits, else what is wrong.

Everything here runs outside the sandbox, on plain bytes; what is wrong is said without the expected value.
"""

import json
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

COMPARES = ("tokens", "exact", "lines", "float")
MATCHERS = ("equals", "contains", "lacks", "json")
DETAILS = {"compare", "tolerance"}  # of equals
MAX_DEPTH = 50  # of JSON that an attempt left


def check_matchers(step: Mapping[str, Any], where: str) -> None:
    """Raise ValueError for an expectation that cannot be compared with."""
    for name in ("contains", "lacks"):
        if name in step and not (pieces := _pieces(step[name])):
            raise ValueError(f"{where}: {name} = {step[name]!r:.60}; expected text, or a list of texts")
        elif name in step and not all(isinstance(one, str) and one for one in pieces):
            raise ValueError(f"{where}: {name} holds {pieces!r:.60}; expected texts that are not empty")
    if "equals" in step and not isinstance(step["equals"], str):
        raise ValueError(f"{where}: equals = {step['equals']!r:.60}; expected text (json compares values)")
    compare = step.get("compare", "tokens")
    if compare not in COMPARES:
        raise ValueError(f"{where}: compare = {compare!r:.40}; expected one of {', '.join(COMPARES)}")
    if DETAILS & set(step) and "equals" not in step and not step.get("answer"):
        raise ValueError(f"{where}: {sorted(DETAILS & set(step))[0]} has no effect without equals; remove it")
    tolerance = step.get("tolerance")
    if (compare == "float") != (tolerance is not None):
        raise ValueError(f"{where}: compare = 'float' and tolerance go together; give both or neither")
    if tolerance is not None and not _positive(tolerance):
        raise ValueError(f"{where}: tolerance = {tolerance!r:.40}; expected a number above 0")


def mismatch(found: bytes, step: Mapping[str, Any]) -> str:
    """What of the step's expectations these bytes do not meet, in a few words; "" when they meet all."""
    try:
        text = found.decode("utf-8")
    except UnicodeDecodeError:
        return "is not UTF-8 text"
    if "equals" in step and not equal(
        text, step["equals"], step.get("compare", "tokens"), step.get("tolerance")
    ):
        return "differs"
    if not all(piece in text for piece in _pieces(step.get("contains", []))):
        return "lacks something"
    if any(piece in text for piece in _pieces(step.get("lacks", []))):
        return "holds something that must not be there"
    if "json" in step:
        return json_mismatch(text, step["json"])
    return ""


def equal(found: str, expected: str, compare: str, tolerance: float | None = None) -> bool:
    """Whether two texts agree: by blank-separated tokens of each non-empty line, exactly, by lines in any
    order, or by tokens of which numbers may be off by `tolerance` times the larger of 1 and the expected."""
    if compare == "exact":
        return found == expected
    ours, theirs = _lines(found), _lines(expected)
    if compare == "lines":
        return Counter(map(tuple, ours)) == Counter(map(tuple, theirs))
    if compare == "tokens":
        return ours == theirs
    assert tolerance is not None
    return [len(line) for line in ours] == [len(line) for line in theirs] and all(
        _near(a, b, tolerance)
        for mine, theirs_ in zip(ours, theirs, strict=True)
        for a, b in zip(mine, theirs_, strict=True)
    )


def json_mismatch(text: str, expected: Any) -> str:
    """ "" when the text is JSON of this very value; true is not 1, and 1.0 is not 1."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return "is not JSON"
    return "" if same(value, expected) else "holds another value"


def same(found: Any, expected: Any, depth: int = 0) -> bool:
    """Whether two values of JSON are the same, type for type."""
    if type(found) is not type(expected) or depth > MAX_DEPTH:
        return False
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[k], expected[k], depth + 1) for k in expected
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(
            same(a, b, depth + 1) for a, b in zip(found, expected, strict=True)
        )
    return bool(found == expected)


def _lines(text: str) -> list[list[str]]:
    return [tokens for line in text.splitlines() if (tokens := line.split())]


def _near(found: str, expected: str, tolerance: float) -> bool:
    if found == expected:
        return True
    try:
        a, b = Decimal(found), Decimal(expected)
    except InvalidOperation:
        return False
    if "_" in found or not (a.is_finite() and b.is_finite()) or abs(a.adjusted()) > 400:
        return False
    return abs(a - b) <= Decimal(str(tolerance)) * max(Decimal(1), abs(b))


def _pieces(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
