"""`verigrad sandboxes`: every sandbox with a name, which work here, and which one `auto` takes."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from verigrad.engine.config import ConfigError
from verigrad.engine.failures import WorkError
from verigrad.sandboxes import registry
from verigrad.sandboxes.base import SandboxError
from verigrad.sandboxes.images import build

EXAMPLE = """\
examples:
  verigrad sandboxes
  verigrad sandboxes --build
  verigrad sandboxes --json
"""

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per sandbox


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad sandboxes`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "List the sandboxes that are built in or installed, which of them work here, and which one "
        "sandbox.backend = 'auto' takes."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--build",
        action="store_true",
        help="first make the image of the container sandbox: from a public image, or from Debian's packages "
        "where no registry is reachable (that takes root and debootstrap)",
    )
    parser.add_argument("--docker-host", default="", metavar="URL", help="address of the Docker engine")
    parser.add_argument("--json", action="store_true", help="one JSON array on standard output")


def run(args: argparse.Namespace) -> int:
    """Print the list, the image built first when asked; status 1 when that failed or `auto` finds nothing."""
    if args.build:
        try:
            build.build(args.docker_host, say=lambda line: print(line, file=sys.stderr, flush=True))
        except SandboxError as error:
            raise WorkError(str(error)) from error
    try:
        rows = describe({"docker_host": args.docker_host} if args.docker_host else {})
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        show(rows)
    return 0 if any(row["auto"] for row in rows) else 1


def describe(options: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per named sandbox: name, from, works, why_not, auto, promises."""
    where = registry.available()
    rows: list[dict[str, Any]] = []
    for name in (
        *registry.STRONGEST_FIRST,
        *(name for name in where if name not in registry.STRONGEST_FIRST),
    ):
        row: dict[str, Any] = {"name": name, "from": where[name], "promises": ""}
        try:
            backend = registry.load(name)
            row["promises"] = backend.promises
            why_not = backend.unavailable(options if name == "container" else {})
        except (Exception, SystemExit) as error:  # a plug-in may do anything; the list must stand
            why_not = f"cannot be loaded: {' '.join(str(error).split())[:300]}"
        row |= {"works": why_not is None, "why_not": why_not, "auto": False}
        rows.append(row)
    for row in rows:
        if row["works"] and row["name"] in registry.STRONGEST_FIRST:
            row["auto"] = True
            break
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table, and what `auto` takes."""
    table = Table(box=None)
    for heading in ("name", "from", "here", "promises, or why it does not work"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("name", "here"))
    for row in rows:
        here = "auto" if row["auto"] else "works" if row["works"] else "no"
        table.add_row(row["name"], row["from"], here, row["promises"] if row["works"] else row["why_not"])
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    console.print(table, markup=False, highlight=False)
    if not any(row["auto"] for row in rows):
        print("no sandbox works here that untrusted code may run in", file=sys.stderr)
