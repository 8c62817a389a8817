"""An environment's name, import path or file -> its tasks, the tools to do them with, and their check."""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from verigrad.engine.settings import ConfigError

GROUP = "verigrad.environments"
PREFIX = "environment:"
BUILTIN = {
    "chores": "verigrad.engine.recipes.chores:CHORES",
    "harbor": "verigrad.engine.harbor_tasks:HARBOR",
    "number_trail": "verigrad.engine.recipes.number_trail:NUMBER_TRAIL",
}


@dataclass(frozen=True, slots=True)
class Environment:
    """A sandbox spec, tools and a check, with the rows they are for.

    `data.path = "environment:NAME"` reads its rows; tools, turns, verifier and sandbox are taken from here
    where the recipe does not say.
    """

    rows: Callable[..., Sequence[Mapping[str, Any]]]  # called as rows(seed=..., **data.options)
    tools: Sequence[str] = ("shell",)  # names, or path/to/file.py:name, as in agent.tools
    max_turns: int = 8
    verifier: str = "agent_task"
    sandbox: Mapping[str, Any] = field(default_factory=dict)  # settings of [sandbox] that it needs

    def defaults(self) -> dict[str, dict[str, Any]]:
        """What a recipe that is silent about it gets, by section."""
        found: dict[str, dict[str, Any]] = {
            "agent": {"tools": list(self.tools), "max_turns": self.max_turns},
            "verifier": {"name": self.verifier},
        }
        return {**found, "sandbox": dict(self.sandbox)} if self.sandbox else found


def available() -> dict[str, str]:
    """Every environment that has a name, and where it comes from; imports none of them."""
    where = dict.fromkeys(BUILTIN, "built-in")
    for point in entry_points(group=GROUP):
        if point.name in BUILTIN:
            raise ConfigError(
                f"an installed package registers the environment {point.name!r}, the name of a built-in one; "
                f"rename the entry point {point.value}"
            )
        where[point.name] = point.value
    return dict(sorted(where.items()))


def load(name: str) -> Environment:
    """Find an environment by built-in name, entry point, `path/file.py:name` or `package.module:name`.

    ConfigError with the nearest right name for one that is not known.
    """
    from verigrad.engine import makers

    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    path = BUILTIN.get(name) or installed.get(name, name)
    module, colon, attribute = path.rpartition(":")
    if not colon or not module or not attribute:
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(available())}"
        raise ConfigError(f"environment {name!r} is not known; {hint} (or path/file.py:name)")
    if module.endswith(".py"):
        holder = makers.module_of_file(Path(module))
    elif path == name:
        holder = makers.module_of_name(module)
    else:
        holder = importlib.import_module(module)
    found = getattr(holder, attribute, None)
    if not isinstance(found, Environment):
        raise ConfigError(
            f"environment {name!r} is {type(found).__name__}; expected an Environment of "
            f"engine/environment.py, such as {attribute} = Environment(rows=...)"
        )
    return found


def named(path: str) -> str | None:
    """The environment that `data.path` names, or None."""
    return path.removeprefix(PREFIX) if path.startswith(PREFIX) else None


def settle(tree: Mapping[str, Any], *, reads: Callable[[str, str], bool]) -> dict[str, Any]:
    """A recipe with what its environment says filled in, wherever it is silent and the command reads it."""
    data = tree.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    name = named(path) if isinstance(path, str) else None
    if name is None:
        return dict(tree)
    settled = dict(tree)
    for section, values in load(name).defaults().items():
        given = settled.get(section, {})
        if isinstance(given, Mapping):
            wanted = {key: value for key, value in values.items() if reads(section, key)}
            if wanted or given:
                settled[section] = {**wanted, **given}
    return settled


def listed() -> Iterator[tuple[str, Environment]]:
    """Each named environment, imported."""
    for name in available():
        yield name, load(name)
