"""Plain Python values <-> a JSON view of them. Runs in the judge and, copied, in sandboxes.

A view is data without behaviour: what an object would say of itself (`__eq__`, `__class__`, ...) is never
asked. Standard library alone, and nothing of this package: this text is run beside what nobody trusts.
"""

import collections
import json
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100  # lists in lists
MAX_NODES = 200_000  # values in a view
MAX_BITS = 10_000  # of an integer: 3,010 digits, below the limit at which Python refuses to read them
NO_VIEW = "not the view of a value"
PLAIN_DICTS = (dict, collections.Counter, collections.OrderedDict, collections.defaultdict)


class NotPlain(Exception):
    """A value that is no plain data, or too large to be looked at."""


def encode(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """The view of a value. Exact types only, for a subclass may be anything.

    `other` makes a view of what is no plain data; without it that raises NotPlain.
    """
    left = MAX_NODES

    def view(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > MAX_DEPTH:
            raise NotPlain(f"nested more than {MAX_DEPTH} deep")
        if left < 0:
            raise NotPlain(f"more than {MAX_NODES} values")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            if value.bit_length() > MAX_BITS:
                raise NotPlain(f"an integer of more than {MAX_BITS} bits")
            return value
        if kind is float:
            return value if value - value == 0 else {"float": repr(value)}
        if kind is complex:
            return {"complex": [view(value.real, depth), view(value.imag, depth)]}
        if kind is list:
            return [view(item, depth + 1) for item in value]
        if kind is tuple:
            return {"tuple": [view(item, depth + 1) for item in value]}
        if kind is set or kind is frozenset:
            return {"set": [view(item, depth + 1) for item in value]}
        if kind in PLAIN_DICTS:
            return {"dict": [[view(k, depth + 1), view(v, depth + 1)] for k, v in dict.items(value)]}
        if kind is bytes or kind is bytearray:
            return {"bytes": value.hex()}
        if other is not None:
            return other(value)
        raise NotPlain(f"a value of type {kind.__name__:.40}, which is no plain data")

    return view(value, 0)


def decode(view: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """The value of a view; ValueError for what is none. `other` reads what only it knows."""

    def value(view: Any, depth: int, hashable: bool = False) -> Any:
        if depth > 2 * MAX_DEPTH:
            raise ValueError("nested too deep")
        if view is None or isinstance(view, (bool, int, float, str)):
            return view
        if isinstance(view, list):
            return [value(item, depth + 1) for item in view]
        if not isinstance(view, dict) or len(view) != 1:
            raise ValueError(NO_VIEW)
        ((kind, inner),) = view.items()
        if kind in ("tuple", "set", "dict", "complex") and not isinstance(inner, list):
            raise ValueError(NO_VIEW)
        if kind == "tuple":
            return tuple([value(item, depth + 1, hashable) for item in inner])
        if kind == "set":
            items = [value(item, depth + 1, True) for item in inner]
            return frozenset(items) if hashable else set(items)
        if kind == "dict":
            return {value(k, depth + 1, True): value(v, depth + 1) for k, v in inner}
        if kind == "bytes":
            return bytes.fromhex(inner)
        if kind == "float" and inner in ("inf", "-inf", "nan"):
            return float(inner)
        if kind == "complex":
            real, imag = [value(part, depth + 1) for part in inner]
            return complex(real, imag)
        if other is not None:
            return other(view)
        raise ValueError(NO_VIEW)

    try:
        return value(view, 0)
    except (TypeError, OverflowError, RecursionError) as error:
        raise ValueError(NO_VIEW) from error


def line(message: Any) -> bytes:
    """A message as one line of JSON."""
    return json.dumps(message).encode() + b"\n"
