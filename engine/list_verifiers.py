"""`verigrad verifiers`: every verifier with a name, where it comes from, and how it runs."""

import argparse
import inspect
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from verigrad.verifiers import registry

EXAMPLE = """\
example:
  verigrad verifiers
  verigrad verifiers --json
"""

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per verifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad verifiers`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "List the verifiers that are built in or installed, and where each comes from."
    parser.epilog = EXAMPLE
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output")


def run(args: argparse.Namespace) -> int:
    """Print the list; a plug-in that cannot be imported is listed with its error."""
    rows = [describe(name, source) for name, source in registry.available().items()]
    if args.json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table(box=None)
    for heading in ("name", "from", "runs", "what it says"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "runs"))
    for row in rows:
        what = f"cannot be loaded: {row['error']}" if row["error"] else row["doc"]
        if row["error"] and row["doc"]:
            what = f"{row['doc']} Needs options."
        table.add_row(row["name"], row["from"], row["runs"] or "-", what)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    console.print(table, markup=False, highlight=False)
    return 0


def describe(name: str, source: str) -> dict[str, Any]:
    """One verifier's row."""
    row: dict[str, Any] = {"name": name, "from": source, "error": None}
    row |= {"runs": None, "deadline_s": None, "version": None, "doc": ""}
    try:
        loaded = registry.load(name)
    except (Exception, SystemExit) as error:  # a plug-in's import may do anything; the list must stand
        lines = str(error).strip().splitlines()
        said = lines[-1] if lines else ""
        row["error"] = said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"
        if (
            isinstance(error, ValueError) and name in registry.BUILTIN
        ):  # one that says nothing without options
            row["doc"] = (inspect.getdoc(registry.find(registry.BUILTIN[name])) or "").partition("\n")[0]
        return row
    policy = loaded.policy
    row.update(runs=policy.runs, deadline_s=policy.deadline_s, version=policy.version, doc=loaded.doc)
    return row
