"""What an attempt left, as bytes, and what a check expects of it -> "" when it fits, else what is wrong.

Everything here runs outside the sandbox, on plain bytes; what is wrong is said without the expected value.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from verigrad.verifiers.code_compare import same_output

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
    if "equals" in step and not equal(found, step):
        return "differs"
    text = found.decode("utf-8", "replace")
    if not all(piece in text for piece in _pieces(step.get("contains", []))):
        return "lacks something"
    if any(piece in text for piece in _pieces(step.get("lacks", []))):
        return "holds something that must not be there"
    if "json" in step:
        return json_mismatch(text, step["json"])
    return ""


def equal(found: bytes, step: Mapping[str, Any]) -> bool:
    """Whether these bytes are what `equals` says, as `compare` has it: see code_compare, and `lines` is as
    `tokens`, the lines in any order."""
    expected, compare = step["equals"].encode(), step.get("compare", "tokens")
    if compare == "lines":
        return _lines(found) == _lines(expected)
    return same_output(found, expected, compare=compare, tolerance=step.get("tolerance", 0.0))


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


def _lines(text: bytes) -> Counter[tuple[bytes, ...]]:
    return Counter(tuple(tokens) for line in text.split(b"\n") if (tokens := line.split()))


def _pieces(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
