"""`verigrad algorithms`: every row of the table, its parts, the preference losses, and their numbers."""

import argparse
import difflib
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from verigrad.engine.algorithm_settings import resolved_numbers
from verigrad.engine.catalogue import ADVANTAGES, AGGREGATIONS, CORRECTIONS, LOSSES, ROWS
from verigrad.engine.preference_catalogue import PREFERENCES
from verigrad.engine.settings import ConfigError

EXAMPLE = """\
examples:
  verigrad algorithms
  verigrad algorithms gspo
  verigrad algorithms kto
  verigrad algorithms --json
"""

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per row


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verigrad algorithms`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = (
        "List the algorithms (algorithm.name), the parts that any of them can be given, and the losses of "
        "`verigrad prefer` (prefer.loss)."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "name", nargs="?", help="show one row, or one preference loss, with its parts and sources"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one row."""
    if args.name is None:
        described: dict[str, Any] = parts() | {"rows": [describe(name) for name in ROWS]}
    elif args.name in ROWS:
        described = describe(args.name)
    elif args.name in PREFERENCES:
        described = describe_preference(args.name)
    else:
        names = [*ROWS, *PREFERENCES]
        close = difflib.get_close_matches(args.name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}"
        raise ConfigError(f"no algorithm {args.name!r}; {hint}")
    if args.json:
        print(json.dumps(described, indent=1))
        return 0
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    if args.name in ROWS:
        _show_one(console, described)
    elif args.name is not None:
        _show_preference(console, described)
    else:
        _show_all(console, described["rows"])
    return 0


def describe_preference(name: str) -> dict[str, Any]:
    """One value of prefer.loss: what it says, what it needs, where it comes from, and its numbers."""
    part = PREFERENCES[name]
    return {
        "name": name,
        "says": part.says,
        "source": source(part.source),
        "learns_from": "pairs" if part.paired else "single answers, good or bad",
        "reference": part.reference,
        "settings": dict(part.settings),
    }


def describe(name: str) -> dict[str, Any]:
    """One row: its parts, what it says, where it comes from, and its numbers."""
    row = ROWS[name]
    return {
        "name": name,
        "says": row.says,
        "source": source(row.source),
        "advantage": row.advantage,
        "loss": row.loss,
        "aggregation": row.aggregation,
        "dynamic_sampling": row.dynamic_sampling,
        "settings": resolved_numbers(name, row.advantage, row.loss),
    }


def parts() -> dict[str, Any]:
    """Every part that a recipe can name."""
    return {
        "advantages": {
            name: {"says": part.says, "source": source(part.source), "settings": dict(part.settings)}
            for name, part in ADVANTAGES.items()
        },
        "losses": {
            name: {"says": part.says, "source": source(part.source), "settings": dict(part.settings)}
            for name, part in LOSSES.items()
        },
        "aggregations": dict(AGGREGATIONS),
        "corrections": {name: list(bounds) for name, bounds in CORRECTIONS.items()},
        "preferences": [describe_preference(name) for name in PREFERENCES],
    }


def source(text: str) -> str:
    """`arXiv 2402.03300` of a bare number."""
    return f"arXiv {text}" if text[:4].isdigit() and "." in text[:5] else text


def _show_all(console: Console, rows: list[dict[str, Any]]) -> None:
    console.print(_table(rows), markup=False, highlight=False)
    console.print(
        "\nalgorithm.advantage, .loss and .aggregation replace a row's part; docs/algorithms/ has a page for "
        "each, and `verigrad algorithms NAME` its numbers.\n\n`verigrad prefer` learns from data by one of "
        "these (prefer.loss; docs/preference-losses.md):\n",
        highlight=False,
        markup=False,
    )
    table = Table(box=None)
    for heading in ("name", "learns from", "reference", "what it is", "source"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for one in map(describe_preference, PREFERENCES):
        needs = "yes" if one["reference"] else "no"
        table.add_row(one["name"], one["learns_from"], needs, one["says"], one["source"])
    console.print(table, markup=False, highlight=False)


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None)
    for heading in ("name", "advantage", "loss", "aggregation", "what it is", "source"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for row in rows:
        says = row["says"] + (", dynamic sampling" if row["dynamic_sampling"] else "")
        table.add_row(row["name"], row["advantage"], row["loss"], row["aggregation"], says, row["source"])
    return table


def _show_preference(console: Console, one: dict[str, Any]) -> None:
    lines = [
        f"{one['name']}: {one['says']} ({one['source']})",
        f"  learns from  {one['learns_from']}",
        f"  reference    {'the starting model' if one['reference'] else 'none'}",
        f"  settings     {_numbers(one)}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _numbers(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in row["settings"].items()) or "none"


def _show_one(console: Console, row: dict[str, Any]) -> None:
    lines = [
        f"{row['name']}: {row['says']} ({row['source']})",
        f"  advantage    {row['advantage']}: {ADVANTAGES[row['advantage']].says}",
        f"  loss         {row['loss']}: {LOSSES[row['loss']].says}",
        f"  aggregation  {row['aggregation']}: {AGGREGATIONS[row['aggregation']]}",
        f"  keeps        {'groups with signal' if row['dynamic_sampling'] else 'every decided group'}",
        f"  settings     {_numbers(row)}",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
