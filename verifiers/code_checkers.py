"""Names in rows -> trusted functions that judge an output where many are right.

A row may only name a checker; which function that is says the recipe, for rows come from anywhere.
"""

from collections.abc import Callable, Mapping
from typing import Any

from verigrad.verifiers import registry
from verigrad.verifiers.options import shown

Checker = Callable[[Any, Any, Any], bool]


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

    def holds(self, name: str, asked: Any, found: Any, expected: Any) -> bool:
        """What the checker says of an output; a checker that raises, or says neither, leaves it undecided."""
        says = self._found[name](asked, found, expected)
        if not isinstance(says, bool):
            raise TypeError(f"checker {name!r} returned {shown(says)}; expected True or False")
        return says


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
