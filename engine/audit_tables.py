"""Reports of `verigrad audit` -> tables for people: one line per probe, and what went wrong below."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from verigrad.sandboxes.conformance import CheckResult
from verigrad.verifiers.audit_report import Report, Result

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per probe
COLOURS = {"ok": "green", "FAILS": "bold red", "warns": "yellow", "shown": "cyan", "left out": "dim"}


def show(report: Report, *, data: str, console: Console | None = None) -> None:
    """Print the table, the worst case of each probe that failed, and one line that sums it up."""
    console = console or _console()
    where = f", in {report.sandbox}" if report.sandbox else ""
    console.print(
        f"{report.verifier} (version {report.version}{where}) on {report.num_rows} rows of {data}; answers "
        f"taken for {report.family}, written as {report.rendering}",
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    table = Table(box=None)
    for heading in (
        "probe",
        "",
        "cases",
        "bad",
        "bad share, 95%",
        "undecided",
        "mean reward",
        "limit",
        "note",
    ):
        justify: Any = "right" if heading in ("cases", "bad", "undecided", "mean reward") else "left"
        table.add_column(heading, justify=justify, no_wrap=heading != "note")
    for result in report.results:
        table.add_row(*_cells(result))
    console.print(table, highlight=False)
    for result in report.results:
        if result.worst is not None and result.status in ("FAILS", "warns"):
            console.print(worst_line(result), highlight=False, markup=False, soft_wrap=True)
    console.print(verdict_line(report), highlight=False, markup=False, soft_wrap=True)


def _cells(result: Result) -> Sequence[str]:
    status = f"[{COLOURS[result.status]}]{result.status}[/]"
    if result.num == 0:
        return [result.name, status, "", "", "", "", "", "", result.note]
    reward = "" if result.mean_reward is None else f"{result.mean_reward:.3f}"
    limit = result.expect
    counted = result.name != "latency"
    if counted and result.expect:
        limit = f"{result.expect}, but for {result.allowed:.0%}" if result.allowed else result.expect
    bad = [str(result.num_bad), f"{result.low:.3f} to {result.high:.3f}", str(result.num_undecided)]
    return [
        result.name,
        status,
        str(result.num),
        *(bad if counted else ["", "", ""]),
        reward,
        limit,
        result.note,
    ]


def worst_line(result: Result) -> str:
    """The worst case of a probe, in one line."""
    worst = result.worst
    assert worst is not None
    paid = "undecided" if worst.reward is None else f"reward {worst.reward:g} ({worst.outcome})"
    why = f": {worst.reason}" if worst.reason else ""
    kind = "" if worst.kind == result.name else f" [{worst.kind}]"
    return f"{result.name}{kind}, row {worst.row}: {worst.response} -> {paid}{why}"


def verdict_line(report: Report) -> str:
    """What came of it all, in one line."""
    took = f"{report.seconds:.1f} s"
    if report.control:
        return f"CONTROL: {report.verifier} knows nothing on purpose; nothing is expected of it ({took})"
    if not report.failed:
        return f"passed ({took})"
    return f"FAILED: {', '.join(result.name for result in report.failed)} ({took})"


# Sandboxes -------------------------------------------------------------------------------------------------


def is_broken(result: CheckResult) -> bool:
    """Whether a promise does not hold, or could not be checked."""
    return result.status not in ("held", "not applicable")


def show_checks(name: str, rows: Sequence[Mapping[str, Any]], *, num_broken: int) -> None:
    """One line per promise."""
    console, table = _console(), Table(box=None)
    for heading in ("check", "", "promise", "note"):
        table.add_column(heading, no_wrap=heading in ("check", ""))
    for row in rows:
        colour = {"held": "green", "not applicable": "dim"}.get(str(row["status"]), "bold red")
        status = f"[{colour}]{row['status']}[/]"
        table.add_row(str(row["name"]), status, str(row["promise"]), str(row.get("detail", "")))
    console.print(table, highlight=False)
    told = f"{num_broken} broken" if num_broken else "all that apply are held"
    console.print(
        f"{name}: {len(rows)} promise{'s' * (len(rows) != 1)}, {told}", highlight=False, markup=False
    )


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
