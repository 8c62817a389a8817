"""Names in rows -> trusted functions that judge an output where many are right.

A row may only name a checker; which function that is says the recipe, for rows come from anywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

from verigrad.verifiers import registry
from verigrad.verifiers.options import shown

Checker = Callable[[Any, Any, Any], bool]
# What data that is not as expected makes plain code raise.
OF_DATA = (
    ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RecursionError,
    StopIteration,
)  # fmt: skip


class Checkers:
    """The option `checkers`: name -> `path/file.py:function` or `package.module:function`."""

    def __init__(self, given: Mapping[str, str] | None, verifier: str) -> None:
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(
                f"{verifier}: checkers = {shown(given)}; expected a table of names and path/file.py:function"
            )
        self.verifier = verifier
        self._found = {name: _load(name, path, verifier) for name, path in (given or {}).items()}

    def known(self, name: Any) -> None:
        """Raise ValueError for a row's checker that the options do not have; "" is none."""
        if name == "" or (isinstance(name, str) and name in self._found):
            return
        have = ", ".join(sorted(self._found)) or "none"
        raise ValueError(
            f"{self.verifier}: meta.checker = {shown(name)}, which the option `checkers` does not have "
            f"(it has: {have}); add it there as path/file.py:function"
        )

    def objection(self, name: str, asked: Any, found: Any, expected: Any) -> str:
        """Why the checker does not take an output; "" where it does.

        Output that it cannot read is wrong: or a program could leave every attempt undecided by printing
        what is no number. Where it cannot read the expected output either, it is broken, and what
        it raised goes through, as does what no data can cause.
        """
        try:
            says = self._found[name](asked, found, expected)
        except OF_DATA as error:
            if expected is not None:
                self._found[name](asked, expected, expected)
            return f"its checker cannot read it ({type(error).__name__})"
        if not isinstance(says, bool):
            raise TypeError(f"checker {name!r} returned {shown(says)}; expected True or False")
        return "" if says else "its checker does not take it"


def _load(name: str, path: Any, verifier: str) -> Checker:
    if not isinstance(path, str) or ":" not in path:
        raise ValueError(f"{verifier}: checkers.{name} = {shown(path)}; expected path/file.py:function")
    try:
        found: Checker = registry.find(path, what="checker")
    except ValueError as error:
        raise ValueError(f"{verifier}: checkers.{name}: {error}") from error
    if not callable(found):
        raise ValueError(f"{verifier}: checkers.{name} is {shown(found)}; expected a function")
    return found
