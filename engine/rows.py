"""A file, a hub data set or a maker -> rows by number, each with the place a person can find it at.

JSONL stays in its file and is read line by line when asked for; Parquet and hub data sets stay in Arrow
tables through `datasets`. Only CSV is held in memory.
"""

import csv
import json
import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from verigrad.engine import makers
from verigrad.engine.config import ConfigError


class BadRow(ValueError):
    """What is wrong with one row."""


class Rows(Protocol):
    """Rows of any source; `row` raises BadRow for one that cannot be read."""

    def __len__(self) -> int: ...
    def row(self, index: int) -> Mapping[str, Any]: ...
    def place(self, index: int) -> str: ...


class JsonLines:
    """A JSONL file, mapped into memory; empty lines are not rows."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        lines, starts, numbers, start = 0, [], [], 0
        with path.open("rb") as file:
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
            for line in file:
                lines += 1
                if line.strip():
                    starts.append((start, start + len(line)))
                    numbers.append(lines)
                start += len(line)
        self.spans = np.array(starts, np.int64).reshape(-1, 2)
        self.numbers = np.array(numbers, np.int64)

    def __len__(self) -> int:
        return len(self.spans)

    def place(self, index: int) -> str:
        return f"{self.name} line {self.numbers[index]}"

    def row(self, index: int) -> Mapping[str, Any]:
        start, end = self.spans[index]
        try:
            line = self.bytes[start:end].decode("utf-8-sig").rstrip("\r\n")
            row = json.loads(line)
        except UnicodeDecodeError as error:
            raise BadRow(f"is not UTF-8 ({error.reason} at byte {error.start})") from error
        except json.JSONDecodeError as error:
            if index == 0 and line.lstrip().startswith("["):
                raise BadRow("looks like one JSON array; write one object per line") from error
            raise BadRow(f"is not JSON ({error.msg} at column {error.colno})") from error
        except RecursionError as error:
            raise BadRow("is nested too deeply") from error
        if isinstance(row, list) and len(self) == 1:
            raise BadRow("looks like one JSON array; write one object per line")
        if not isinstance(row, dict):
            raise BadRow(f"is a {type(row).__name__}, expected an object with 'prompt' and 'answer'")
        return row


class CsvRows:
    """A CSV file with a header; every value is text, so that an answer `007` stays `007`."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self.rows: list[list[str]] = []
        self.numbers: list[int] = []  # a quoted value may span lines: the one its row begins on
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            try:
                self.header = next(reader, [])
                number = reader.line_num
                for row in reader:
                    if row:
                        self.rows.append(row)
                        self.numbers.append(number + 1)
                    number = reader.line_num
            except (csv.Error, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{self.name} line {reader.line_num}: is not CSV ({error}). Correct the file; what "
                    "follows such a line cannot be told apart, so data.on_bad_row = 'skip' does not help."
                ) from error

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        return f"{self.name} line {self.numbers[index]}"

    def row(self, index: int) -> Mapping[str, Any]:
        values = self.rows[index]
        if len(values) != len(self.header):
            raise BadRow(f"has {len(values)} values, expected {len(self.header)} as in the header")
        return dict(zip(self.header, values, strict=True))


class TableRows:
    """Rows that something else holds: an Arrow-backed `datasets.Dataset`, or what a maker returned."""

    def __init__(self, name: str, table: Sequence[Mapping[str, Any]]) -> None:
        self.name = name
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def place(self, index: int) -> str:
        return f"{self.name} row {index + 1}"

    def row(self, index: int) -> Mapping[str, Any]:
        row = self.table[index]
        if not isinstance(row, Mapping):
            raise BadRow(f"is a {type(row).__name__}, expected a dict with 'prompt' and 'answer'")
        return row


def read_rows(path: str, *, split: str, seed: int, options: Mapping[str, Any]) -> Rows:
    """Open a source: a maker, a file by its ending, or whatever `datasets` makes of the name."""
    if makers.is_maker(path):
        return TableRows(path, makers.make_rows(path, seed=seed, options=options))
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix in (".jsonl", ".parquet", ".csv"):
        if not file.is_file():
            raise ConfigError(
                f"no file {path} (looked from {Path.cwd()}). Correct data.path or data.eval_path."
            )
        if suffix == ".jsonl":
            return JsonLines(file)
        return CsvRows(file) if suffix == ".csv" else TableRows(file.name, from_parquet(file))
    if file.is_file():
        raise ConfigError(f"{path}: expected a .jsonl, .parquet or .csv file. Convert it, or write a maker.")
    return TableRows(path, from_hub(path, split))


def from_parquet(file: Path) -> Sequence[Mapping[str, Any]]:
    """A Parquet file's rows, memory-mapped in the cache of `datasets`."""
    import datasets

    try:
        table: Sequence[Mapping[str, Any]] = datasets.Dataset.from_parquet(str(file))
    except Exception as error:  # pyarrow and datasets raise a dozen kinds
        raise ConfigError(
            f"{file} cannot be read as Parquet: {first_line(error)}. Write it again."
        ) from error
    return table


def from_hub(path: str, split: str) -> Sequence[Mapping[str, Any]]:
    """A data set of the hub, or a folder laid out like one."""
    import datasets

    try:
        table: Sequence[Mapping[str, Any]] = datasets.load_dataset(path, split=split)
    except Exception as error:  # network, spelling, access, a missing split: each has its own
        raise ConfigError(
            f"{path!r} cannot be loaded as a data set, split {split!r}: {first_line(error)}. Expected a "
            ".jsonl, .parquet or .csv file, a hub id with that split, or a maker package.module:function."
        ) from error
    return table


def first_line(error: BaseException) -> str:
    """What an exception says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip(".")


def short_name(path: str) -> str:
    """`org/aime24`, `data/aime24.jsonl` and `tasks.py:aime24` are all called `aime24`."""
    return re.sub(r"\.(jsonl|parquet|csv)$", "", re.split(r"[/:]", path.rstrip("/"))[-1])
