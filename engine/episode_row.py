"""A problem's meta.setup, meta.tools and meta.max_turns -> what its episodes start from, each checked."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigrad.verifiers.base import Problem

SETUP = ("files", "commands")


@dataclass(frozen=True, slots=True)
class EpisodeSetup:
    """What is done to a clean sandbox before an episode's first tool call, and what is allowed there."""

    files: Mapping[str, str]  # path -> text
    commands: Sequence[str]  # of the shell, in order, each of which must succeed
    tools: Sequence[str] | None  # the tools of the recipe that this problem allows; None is all
    max_turns: int | None  # fewer than agent.max_turns


def setup_of(problem: Problem, known: Collection[str]) -> EpisodeSetup:
    """Read the columns; `known` are the recipe's tools. ValueError says what is wrong with the row.

    A column may hold JSON as text. What is null, as columns of a Parquet file are that only other rows have,
    counts as absent.
    """
    setup = _read(problem.meta.get("setup"), "setup", dict) or {}
    if unknown := sorted(set(setup) - set(SETUP)):
        raise ValueError(f"setup has no {unknown[0]!r}; expected some of {', '.join(SETUP)}")
    files = _read(setup.get("files"), "setup.files", dict) or {}
    files = {path: text for path, text in files.items() if text is not None}
    commands = _read(setup.get("commands"), "setup.commands", list) or []
    for what, values in (("setup.files", files.values()), ("setup.commands", commands)):
        for value in values:
            if not isinstance(value, str):
                raise ValueError(f"{what} holds {value!r:.60}; expected text")
    tools = _read(problem.meta.get("tools"), "tools", list)
    for name in tools or ():
        if name not in known:
            raise ValueError(
                f"tools names {name!r}, which agent.tools does not load; loaded: {', '.join(known)}"
            )
    max_turns = problem.meta.get("max_turns")
    if max_turns is not None and (
        isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1
    ):
        raise ValueError(f"max_turns = {max_turns!r:.60}; expected a whole number above 0")
    return EpisodeSetup(files, commands, tools, max_turns)


def _read(value: Any, name: str, kind: type) -> Any:
    """The value, JSON read, or None where there is none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{name} is text, and no JSON: {error}") from error
    if value is not None and not isinstance(value, kind):
        wanted = "an object" if kind is dict else "a list"
        raise ValueError(f"{name} = {value!r:.60}; expected {wanted}")
    return value
