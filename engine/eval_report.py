"""Results of `verigrad eval` to tables for people and JSON for programs."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from verigrad.engine.intervals import Paired
from verigrad.engine.schema import VerifiedGroup

PIPED_WIDTH = 10_000  # what is read by a program keeps one line per row
USED = {
    "model": "model",
    "num_samples": "samples per problem",
    "temperature": "temperature",
    "max_tokens": "max tokens",
    "prompts": "prompt template",
    "verifier": "verifier",
    "data": "data",
    "sampler": "sampler",
    "seed": "seed",
}
"""What is printed of what was used, and what it is called."""

ALIKE = ("num_samples", "temperature", "max_tokens", "prompts", "verifier", "sampler")
"""What two models must share for their difference to be one of their weights alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one set."""

    label: str
    model: str
    row: Mapping[str, Any]  # as in eval.jsonl
    used: Mapping[str, Any]
    scores: Mapping[str, Mapping[int, float]] = field(repr=False)  # score's name -> problem -> score
    groups: Sequence[VerifiedGroup] = field(repr=False, default=())  # every attempt


@dataclass(frozen=True, slots=True)
class Comparison:
    """One score of two models on the same problems."""

    data: str
    score: str  # avg or pass@k
    before: str  # labels
    after: str
    num_problems: int
    paired: Paired


def as_json(results: Sequence[Result], comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """Everything in one object."""
    return {
        "evaluations": [row_json(result) for result in results],
        "comparisons": [comparison_json(one) for one in comparisons],
    }


def row_json(result: Result) -> dict[str, Any]:
    """A row of eval.jsonl: a run's columns, the model they are about, and what was used."""
    row: dict[str, Any] = finite(
        {"model": result.label, "path": result.model, **result.row, "used": result.used}
    )
    return row


def comparison_json(one: Comparison) -> dict[str, Any]:
    """A comparison as plain values."""
    named = {name: getattr(one, name) for name in ("data", "score", "before", "after", "num_problems")}
    row: dict[str, Any] = finite({**named, **dataclasses.asdict(one.paired)})
    return row


def finite(value: Any) -> Any:
    """NaN and infinity become null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(results: Sequence[Result], comparisons: Sequence[Comparison], *, file: IO[str]) -> None:
    """A table of scores for each set, one of categories where asked for, and one of differences."""
    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console = Console(file=file, highlight=False, width=PIPED_WIDTH)
    for data in dict.fromkeys(result.row["data"] for result in results):
        some = [result for result in results if result.row["data"] == data]
        console.print(table_of(f"{data}: {sizes(some)}", scores_rows(some), some))
        for other in some[1:]:
            if unlike := [USED[key] for key in ALIKE if other.used[key] != some[0].used[key]]:
                console.print(
                    escape(
                        f"note: {other.label} differs from {some[0].label} in more than its "
                        f"weights: {', '.join(unlike)}"
                    )
                )
        if any("by" in result.row for result in some):
            console.print()
            console.print(table_of(f"{data}, avg by category", category_rows(some), some))
        differences = [one for one in comparisons if one.data == data]
        if differences:
            console.print()
            console.print(difference_table(data, differences))
        elif len(some) > 1:
            console.print("no comparison: the models were not asked the same problems")
        console.print()


def sizes(results: Sequence[Result]) -> str:
    """How many problems, where all agree."""
    counts = sorted({result.row["num_problems"] for result in results})
    return f"{' or '.join(map(str, counts))} problem{'' if counts == [1] else 's'}"


def table_of(title: str, rows: Iterator[tuple[str, list[str]]], results: Sequence[Result]) -> Table:
    """A column for each model."""
    table = Table(box=None, title=escape(title), title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    for result in results:
        table.add_column(escape(result.label), overflow="fold")
    for name, cells in rows:
        table.add_row(escape(name), *(escape(cell) for cell in cells))
    return table


def scores_rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Scores, shares, and what was used."""
    rows = [result.row for result in results]
    counts = [str(row["num_samples"]) for row in rows]
    name = f"avg@{counts[0]}" if len(set(counts)) == 1 else f"avg@{' or '.join(counts)}"
    yield name, [interval(row, "avg") for row in rows]
    for kind in ("pass", "maj"):
        for k in dict.fromkeys(k for row in rows for k in row[f"{kind}_at"]):
            yield f"{kind}@{k}", [interval(row, f"{kind}_at", k) for row in rows]
    yield "truncated", [f"{row['truncated_frac']:.1%}" for row in rows]
    yield "undecided", [f"{row['undecided_frac']:.1%}" for row in rows]
    yield "completion tokens", [f"{row['completion_tokens_mean']:.1f}" for row in rows]
    for key, shown in USED.items():
        yield shown, [str(result.used[key]) for result in results]


def category_rows(results: Sequence[Result]) -> Iterator[tuple[str, list[str]]]:
    """Each category's avg, and how many problems it has."""
    tables: list[Mapping[str, Any]] = [result.row.get("by", {}) for result in results]
    for name in dict.fromkeys(name for table in tables for name in table):
        cells = [
            f"{interval(table[name], 'avg')}  of {table[name]['num_problems']}" if name in table else "-"
            for table in tables
        ]
        yield name, cells


def difference_table(data: str, comparisons: Sequence[Comparison]) -> Table:
    """Differences by problem, with what speaks for and against them."""
    title = f"{escape(data)}, compared problem by problem"
    table = Table(box=None, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    for heading in ("score", "difference", "P", "better", "worse", "same"):
        table.add_column(heading, no_wrap=True)
    for one in comparisons:
        paired = one.paired
        table.add_row(
            escape(f"{one.after} - {one.before}"),
            one.score,
            escape(f"{paired.gain:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"),
            "<0.0001" if paired.p < 1e-4 else f"{paired.p:.4f}",
            *(str(count) for count in (paired.num_better, paired.num_worse, paired.num_same)),
        )
    return table


def interval(row: Mapping[str, Any], name: str, k: str | None = None) -> str:
    """`0.412 [0.351, 0.473]`, or a dash for what was not measured."""
    values = [row[name + end] if k is None else row[name + end].get(k) for end in ("", "_low", "_high")]
    if values[0] is None or not math.isfinite(values[0]):
        return "-"
    if not math.isfinite(values[1]):
        return f"{values[0]:.3f}"
    return f"{values[0]:.3f} [{values[1]:.3f}, {values[2]:.3f}]"
