"""An environment's name, import path or file -> its tasks, the tools to do them with, and their check."""

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from verigrad.engine.settings import ConfigError
from verigrad.verifiers import blame

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
    installed = {point.name: point.value for point in entry_points(group=GROUP)}
    path = BUILTIN.get(name) or installed.get(name, name)
    module, colon, attribute = path.rpartition(":")
    if not colon or not module or not attribute:
        near = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(available())}"
        raise ConfigError(f"environment {name!r} is not known; {hint} (or path/file.py:name)")
    holder = _from_file(module) if module.endswith(".py") else _from_module(module)
    found = getattr(holder, attribute, None)
    if found is None:
        there = [each for each, value in vars(holder).items() if isinstance(value, Environment)]
        has = f"its environments: {', '.join(there) or 'none'}"
        raise ConfigError(f"environment {name!r}: {module} has no {attribute!r}; {has}")
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


def _from_file(file: str) -> Any:
    """Run a Python file as a module of its own; a file is run once per process."""
    path = Path(file).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"no file {file} for an environment (looked from {Path.cwd()}). Correct the path.")
    content = hashlib.sha256(str(path).encode() + path.read_bytes())
    name = f"verigrad_environment_{path.stem}_{content.hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):
            raise ConfigError(blame.import_failure(error, path.name)) from error
        raise
    return module


def _from_module(name: str) -> Any:
    """Import a module; one found only in the working folder counts, as for `python -m`."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(blame.import_failure(error, name)) from error
