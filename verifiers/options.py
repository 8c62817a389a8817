"""Rules for a verifier's options: a bad value is refused when it is loaded, before anything is judged."""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

Rule = Callable[[Any], str]  # "" when the value will do, else what was expected
Function = TypeVar("Function", bound=Callable[..., Any])
CHECK_ATTRIBUTE = "__verigrad_check_options__"


def with_options(*joint: Callable[..., str], **rules: Rule) -> Callable[[Function], Function]:
    """Check these keyword arguments at every call, and once when `binding.bind` settles them.

    A `joint` rule sees all of them, and returns what is wrong with them together, or "". A call is checked
    for the values that come from a row's column of the same name.
    """

    def decorate(function: Function) -> Function:
        name = getattr(function, "__name__", "verifier")

        def check(**options: Any) -> None:
            for option in rules.keys() & options.keys():
                if expected := rules[option](options[option]):
                    raise ValueError(f"{name}: {option} = {shown(options[option])}; expected {expected}")
            for together in joint:
                if wrong := together(**options):
                    raise ValueError(f"{name}: {wrong}")

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(**kwargs)
            return function(*args, **kwargs)

        setattr(checked, CHECK_ATTRIBUTE, check)
        return cast(Function, checked)

    return decorate


def one_of(*words: str) -> Rule:
    """One of these words."""
    return lambda value: "" if isinstance(value, str) and value in words else f"one of {', '.join(words)}"


def flag(value: Any) -> str:
    """True or false."""
    return "" if isinstance(value, bool) else "true or false"


def number(low: float, high: float = math.inf) -> Rule:
    """A finite number from `low` to `high`, both allowed."""
    wanted = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number of at least {low:g}"

    def rule(value: Any) -> str:
        plain = isinstance(value, (int, float)) and not isinstance(value, bool)
        return "" if plain and abs(value) < math.inf and low <= value <= high else wanted

    return rule


def whole(low: int, high: int) -> Rule:
    """An integer from `low` to `high`, both allowed."""

    def rule(value: Any) -> str:
        plain = isinstance(value, int) and not isinstance(value, bool)
        return "" if plain and low <= value <= high else f"a whole number from {low} to {high}"

    return rule


def shown(value: Any) -> str:
    """A value as errors quote it: one line of at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
