"""What a program printed or returned and what was expected -> whether they are the same.

The rules are written down in docs/verifiers/program_output.md and unit_tests.md. Pure functions, run by the
judge on plain data: nothing a model wrote is asked anything.
"""

import cmath
import math
import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

COMPARES = ("tokens", "exact", "float")
DECIMAL = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
MAX_DIGITS = 400  # characters of a number
RELATIVE = 1e-9  # of floats that a call returned, where the row says nothing


def same_output(found: bytes, expected: bytes, *, compare: str = "tokens", tolerance: float = 1e-6) -> bool:
    """Whether a program printed what was expected.

    `tokens`: the same lines that are not blank, each of the same blank-separated tokens. `exact`: byte for
    byte, but for one newline at the end. `float`: as `tokens`, where expected decimals need only be met
    within tolerance * max(1, |expected|).
    """
    if compare == "exact":
        return found.removesuffix(b"\n") == expected.removesuffix(b"\n")
    found_lines, expected_lines = _tokens(found), _tokens(expected)
    if compare == "tokens":
        return found_lines == expected_lines
    return len(found_lines) == len(expected_lines) and all(
        len(left) == len(right)
        and all(_same_token(one, other, tolerance) for one, other in zip(left, right, strict=True))
        for left, right in zip(found_lines, expected_lines, strict=True)
    )


def _tokens(text: bytes) -> list[list[bytes]]:
    """The lines that are not blank; bytes, so that no blank of Unicode passes for one."""
    return [tokens for line in text.split(b"\n") if (tokens := line.split())]


def _same_token(found: bytes, expected: bytes, tolerance: float) -> bool:
    if found == expected:
        return True
    right = _decimal(expected)
    left = None if right is None else _decimal(found)
    if left is None or right is None:
        return False
    return abs(left - right) <= tolerance * max(1.0, abs(right))


def _decimal(token: bytes) -> float | None:
    """A finite number in plain decimal digits, or None: no `nan`, no `inf`, no `1_000`, no `0x1p3`."""
    if len(token) > MAX_DIGITS or not DECIMAL.fullmatch(token):
        return None
    number = float(token)
    return number if math.isfinite(number) else None


def same_value(found: Any, expected: Any, *, tolerance: float | None = None) -> bool:
    """Whether a call returned what was expected; both are plain data.

    A bool is no int; ints are exact; a float is met within 1e-9 of its size, or within
    tolerance * max(1, |expected|); nan equals nothing; a tuple is a list; the order of sets and keys is no
    matter; text, bytes and None are themselves.
    """
    if _is_number(expected) and _is_number(found):
        return _same_number(found, expected, tolerance)
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        return len(found) == len(expected) and all(
            same_value(one, other, tolerance=tolerance) for one, other in zip(found, expected, strict=True)
        )
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        return _same_mapping(found, expected, tolerance)
    if isinstance(expected, (set, frozenset)) and isinstance(found, (set, frozenset)):
        return _same_set(found, expected, tolerance)
    return type(found) is type(expected) and bool(found == expected)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, complex)) and not isinstance(value, bool)


def _same_number(found: Any, expected: Any, tolerance: float | None) -> bool:
    if found == expected:  # exact between an int and a float, too
        return True
    if isinstance(found, complex) or isinstance(expected, complex):
        if not (_finite(found) and _finite(expected)):  # among them an int beyond every float
            return False
        one, other = complex(found), complex(expected)
        return _same_number(one.real, other.real, tolerance) and _same_number(one.imag, other.imag, tolerance)
    if isinstance(expected, int) and (isinstance(found, int) or tolerance is None):
        return False
    if not (_finite(found) and _finite(expected)):
        return False
    allowed = RELATIVE * abs(expected) if tolerance is None else tolerance * max(1.0, abs(expected))
    return bool(abs(float(found) - float(expected)) <= allowed)


def _finite(number: complex) -> bool:
    try:
        return cmath.isfinite(number)
    except OverflowError:  # an int beyond every float
        return False


def _same_mapping(found: Mapping[Any, Any], expected: Mapping[Any, Any], tolerance: float | None) -> bool:
    mine = {_key(key): value for key, value in found.items()}
    theirs = {_key(key): value for key, value in expected.items()}
    return mine.keys() == theirs.keys() and all(
        same_value(mine[key], theirs[key], tolerance=tolerance) for key in theirs
    )


def _same_set(found: Any, expected: Any, tolerance: float | None) -> bool:
    if Counter(map(_key, found)) == Counter(map(_key, expected)):
        return True
    if len(found) != len(expected) or not all(map(_is_real, [*found, *expected])):
        return False
    return same_value(sorted(found), sorted(expected), tolerance=tolerance)


def _is_real(value: Any) -> bool:
    return _is_number(value) and not isinstance(value, complex)


def _key(value: Any) -> Hashable:
    """What equal keys share: as Python has it, but a bool is no int."""
    if isinstance(value, tuple):
        return ("tuple", tuple(map(_key, value)))
    if isinstance(value, frozenset):
        return ("set", frozenset(map(_key, value)))
    return ("number" if _is_number(value) else type(value).__name__, value)


def longest_first(sizes: Sequence[int], most: int) -> list[int]:
    """The places of the `most` largest, largest first, equal ones in their order; 0 keeps all as they are."""
    if not most:
        return list(range(len(sizes)))
    return sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))[:most]
